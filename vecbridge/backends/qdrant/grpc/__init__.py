"""A Qdrant server by gRPC: packed vectors on several streams, and every answer looked at before it counts."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from qdrant_client import grpc

from ...errors import (
    Busy,
    CollectionNotFound,
    IndexFailure,
    InputError,
    StoreError,
    Unavailable,
    VecbridgeError,
)
from ...limits import Limits, limits
from ...types import Progress, Sizes
from . import blobs, counted, wire
from . import grpc_messages as messages
from .engine import Found, Json, Points, Query, Scored
from .failures import Refused, attempt, translated
from .grpc_calls import Calls

if TYPE_CHECKING:
    from .address import Address

# a request up to this size goes as it is; a larger one is cut into parts, sent on several streams
WHOLE, PART = 32 * 1024 * 1024, 16 * 1024 * 1024
STREAMS = 3
# uploads, and calls after which the server rebuilds something, may take this many times longer
LONGER = 4
# seconds that a server may be away while it builds an index: restarts of large ones take minutes
RESTART = 300.0
POLL, SLOWEST_POLL = 0.1, 2.0  # seconds

T = TypeVar("T")


def connect(address: Address) -> Grpc:
    """The server at this address, once it answers. Raises Unavailable, Forbidden, StoreError."""
    return Grpc(address)


class Grpc:
    """A Qdrant server by gRPC; see `Engine`. `sleep` waits between attempts."""

    def __init__(self, address: Address, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._address = address
        self._sleep = sleep
        self._calls = Calls(address)
        self._strict: dict[str, messages.Strict] = {}
        try:
            self._limits = limits(f"qdrant@{self._version()}")
        except BaseException:
            self.close()
            raise
        self._dense = self._limits.lacks("the field `dense`", "1.12.0") is None

    def __repr__(self) -> str:
        return f"<Grpc {self.url}>"

    @property
    def url(self) -> str:
        return self._address.shown

    def limits(self) -> Limits:
        return self._limits

    def _version(self) -> str:
        try:
            reply = self._ask("/qdrant.Qdrant/HealthCheck", grpc.HealthCheckRequest(), grpc.HealthCheckReply)
        except Unavailable as error:
            raise Unavailable(
                f"{error}; is Qdrant running there, and is this its gRPC port (6334 unless configured)?"
            ) from error.__cause__
        found = re.match(r"\d{1,6}(\.\d{1,6}){0,3}", reply.version, flags=re.ASCII)
        if found is None:
            raise StoreError(
                f"{self.url}: expected a Qdrant server that tells its version, got {reply.version!r}"
            )
        return str(found[0])

    # collections

    def collections(self) -> list[str]:
        answer = self._ask(
            "/qdrant.Collections/List", grpc.ListCollectionsRequest(), grpc.ListCollectionsResponse
        )
        return [collection.name for collection in answer.collections]

    def create(self, name: str, config: Json) -> None:
        request = messages.creation(name, config)
        unclear = False

        def call() -> None:
            nonlocal unclear
            try:
                self._change("Create", request)
            except Refused as refused:
                # an attempt whose answer was lost may have made it
                if refused.kind == "exists" and unclear and self._is_as(name, config):
                    return
                unclear |= refused.kind in ("timeout", "unavailable")
                raise

        self._try(call, name)
        self._strict.pop(name, None)

    def _is_as(self, name: str, config: Json) -> bool:
        """Whether the collection that is there is the one that `config` asks for, and still empty."""
        there = self.describe(name)
        wanted = config.get("vectors") or {}
        found = there["config"]["params"].get("vectors") or {}
        sizes = {key: value["size"] for key, value in _named(wanted).items()}
        return (
            there.get("points_count", 0) == 0
            and there["config"]["metadata"] == (config.get("metadata") or {})
            and sizes == {key: value["size"] for key, value in _named(found).items()}
        )

    def describe(self, name: str) -> Json:
        return messages.description(self._info(name))

    def _info(self, name: str, *, again: bool = True) -> grpc.CollectionInfo:
        info: grpc.CollectionInfo = self._ask(
            "/qdrant.Collections/Get",
            grpc.GetCollectionInfoRequest(collection_name=name),
            grpc.GetCollectionInfoResponse,
            collection=name,
            again=again,
        ).result
        self._strict[name] = messages.strict(info.config.strict_mode_config)
        return info

    def drop(self, name: str) -> None:
        unclear = False

        def call() -> None:
            nonlocal unclear
            try:
                gone = self._change("Delete", grpc.DeleteCollection(collection_name=name))
            except Refused as refused:
                if refused.kind == "missing" and unclear:
                    return
                unclear |= refused.kind in ("timeout", "unavailable")
                raise
            if not gone and not unclear:
                raise Refused("missing", "Qdrant found no such collection to delete")

        self._try(call, name)
        self._strict.pop(name, None)

    def _change(self, method: str, request: Any) -> bool:
        """What the server says about a change to a collection; False where there was nothing to change."""
        answer = self._calls(
            f"/qdrant.Collections/{method}",
            request,
            grpc.CollectionOperationResponse,
            timeout=self._address.timeout * LONGER,
        )
        return bool(answer.result)

    def index_field(self, name: str, field: str, schema: str) -> None:
        self._update("CreateFieldIndex", messages.field_index(name, field, schema), name)

    def optimise(self, name: str, change: Json, progress: Progress | None) -> None:
        update = messages.change(name, change)
        self._try(lambda: self._change("Update", update), name)
        away: float | None = None
        greens = 0
        for pause in _pauses():
            try:
                info = self._info(name, again=False)
                if info.status == grpc.CollectionStatus.Grey:
                    # after a restart Qdrant waits for an update before it goes on; this one changes nothing
                    self._try(lambda: self._change("Update", update), name)
            except (Unavailable, Busy) as error:
                away = time.monotonic() if away is None else away
                if time.monotonic() - away > RESTART:
                    raise IndexFailure(
                        f"{self.url} went away while it built the index of {name!r} and was not back after "
                        f"{RESTART:.0f} s; build_index() again once it runs ({error})"
                    ) from error
            else:
                away = None
                if info.optimizer_status.error or info.status == grpc.CollectionStatus.Red:
                    said = self._address.hide(info.optimizer_status.error) or "its status is red"
                    raise IndexFailure(f"{self.url} could not build the index of {name!r}: {said}")
                if progress is not None:
                    # with two vectors for each point, both may be counted
                    progress("index", min(info.indexed_vectors_count, info.points_count), info.points_count)
                # twice: between the change and its first work a collection may still be green
                greens = greens + 1 if info.status == grpc.CollectionStatus.Green else 0
                if greens == 2:
                    return
            self._sleep(pause)

    def sizes(self, name: str) -> Sizes:
        return counted.sizes(self.describe(name))

    # points

    def upsert(self, name: str, points: Points) -> None:
        if not len(points):
            return
        pieces = wire.pieces(points, dense=self._dense)
        whole = sum(map(wire.weight, pieces)) <= WHOLE
        most = self._allowed(name).upsert
        requests = wire.requests(name, pieces, most_bytes=WHOLE if whole else PART, most_points=most)
        if whole and (most is None or len(points) <= most):
            for _, request in requests:
                self._write(name, request)
        else:
            self._stream(name, requests, len(points))

    def _stream(self, name: str, requests: Iterator[tuple[int, bytes]], total: int) -> None:
        """Sends requests side by side; after the first failure none is begun, and it says what is stored."""
        lock, stop = threading.Lock(), threading.Event()
        stored = 0
        failures: list[VecbridgeError] = []

        def send(lane: int) -> None:
            nonlocal stored
            while not stop.is_set():
                with lock:
                    count, request = next(requests, (0, b""))
                if not count:
                    return
                try:
                    self._write(name, request, lane=lane)
                except VecbridgeError as error:
                    stop.set()
                    failures.append(error)
                    return
                with lock:
                    stored += count

        with ThreadPoolExecutor(STREAMS, thread_name_prefix="vecbridge-upload") as pool:
            try:
                for lane in [pool.submit(send, lane) for lane in range(1, STREAMS + 1)]:
                    lane.result()
            finally:
                stop.set()
        if failures:
            first = failures[0]
            if isinstance(first, CollectionNotFound):
                raise first
            raise type(first)(
                f"{first}; {stored:,} of {total:,} points are stored, the same call again completes them"
            ) from first

    def _write(self, name: str, request: bytes, *, lane: int = 0) -> None:
        try:
            self._update("Upsert", request, name, lane=lane)
        except InputError:
            # strict mode may have been changed since it was read
            self._strict.pop(name, None)
            raise

    def _update(self, method: str, request: Any, name: str, *, lane: int = 0) -> None:
        """Has points changed, and sends that again until the server says that it is completed."""

        def call() -> None:
            answer = self._calls(
                f"/qdrant.Points/{method}",
                request,
                grpc.PointsOperationResponse,
                timeout=self._address.timeout * LONGER,
                lane=lane,
            )
            status = answer.result.status
            if status != grpc.UpdateStatus.Completed:
                known = status in grpc.UpdateStatus.values()
                said = grpc.UpdateStatus.Name(status) if known else str(status)
                raise Refused("timeout", f"expected the update's status Completed, got {said}")

        self._try(call, name)

    def delete(self, name: str, ids: Sequence[str]) -> None:
        selected = grpc.PointsSelector(points=grpc.PointsIdsList(ids=map(messages.point_id, ids)))
        self._update("Delete", grpc.DeletePoints(collection_name=name, wait=True, points=selected), name)

    def query(self, name: str, queries: Sequence[Query]) -> list[list[Scored]]:
        if not queries:
            return []
        most = self._allowed(name).queries or len(queries)
        found: list[list[Scored]] = []
        for start in range(0, len(queries), most):
            answer = self._ask(
                "/qdrant.Points/QueryBatch",
                messages.queries(name, queries[start : start + most]),
                grpc.QueryBatchResponse,
                collection=name,
            )
            found += [
                [Scored(point.score, messages.payload(point.payload)) for point in one.result]
                for one in answer.result
            ]
        return found

    def retrieve(
        self, name: str, ids: Sequence[str], *, payload: Sequence[str] | bool, vectors: str | None
    ) -> Found:
        request = grpc.GetPoints(
            collection_name=name,
            ids=map(messages.point_id, ids),
            with_payload=messages.with_payload(payload),
            with_vectors=messages.with_vectors(vectors),
        )
        answer = self._ask("/qdrant.Points/Get", request, grpc.GetResponse, collection=name)
        return messages.found(answer.result, payload, vectors)

    def scroll(
        self,
        name: str,
        *,
        limit: int,
        filter: Json | None = None,
        offset: str | None = None,
        payload: Sequence[str] | bool,
        vectors: str | None = None,
    ) -> tuple[Found, str | None]:
        request = grpc.ScrollPoints(
            collection_name=name,
            filter=messages.filter_(filter),
            offset=None if offset is None else messages.point_id(offset),
            limit=min(limit, self._allowed(name).limit or limit),
            with_payload=messages.with_payload(payload),
            with_vectors=messages.with_vectors(vectors),
        )
        answer = self._ask("/qdrant.Points/Scroll", request, grpc.ScrollResponse, collection=name)
        after = answer.next_page_offset.uuid if answer.HasField("next_page_offset") else None
        return messages.found(answer.result, payload, vectors), after

    def count(self, name: str, filter: Json | None = None) -> int:
        request = grpc.CountPoints(collection_name=name, filter=messages.filter_(filter), exact=True)
        answer = self._ask("/qdrant.Points/Count", request, grpc.CountResponse, collection=name)
        return int(answer.result.count)

    # what lies beside the collections

    def keep(self, key: str, content: bytes) -> None:
        blobs.keep(self, key, content)

    def kept(self, key: str) -> bytes | None:
        return blobs.kept(self, key)

    def forget(self, key: str) -> None:
        blobs.forget(self, key)

    def close(self) -> None:
        self._calls.close()

    def _allowed(self, name: str) -> messages.Strict:
        """What the collection's strict mode allows; asked for once."""
        if name not in self._strict:
            self._info(name)
        return self._strict[name]

    def _ask(
        self, path: str, request: Any, answer: Any, *, collection: str | None = None, again: bool = True
    ) -> Any:
        return self._try(
            lambda: self._calls(path, request, answer, timeout=self._address.timeout), collection, again=again
        )

    def _try(self, call: Callable[[], T], collection: str | None, *, again: bool = True) -> T:
        try:
            return attempt(call, again=again, sleep=self._sleep)
        except Refused as refused:
            error = translated(refused, self.url, collection=collection)
            raise error from refused.__cause__


def _named(vectors: Json) -> Json:
    return {"": vectors} if "size" in vectors else vectors


def _pauses() -> Iterator[float]:
    pause = POLL
    while True:
        yield pause
        pause = min(pause * 1.5, SLOWEST_POLL)
