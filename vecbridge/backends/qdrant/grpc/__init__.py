"""A Qdrant server by gRPC: packed vectors on several streams, and every answer looked at before it counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qdrant_client import grpc

from ....errors import Unavailable
from ....limits import Limits
from ..engine import Found, Json, Points, Query, Scored
from ..failures import Refused, attempt
from ..server import CONTACTS, Server, cut
from . import messages, wire
from .calls import Calls

if TYPE_CHECKING:
    from ..address import Address

# a request up to this size goes as it is; a larger one is cut into parts, sent on several streams
WHOLE, PART = 32 * 1024 * 1024, 16 * 1024 * 1024
STREAMS = 3


def connect(address: Address) -> Grpc:
    """The server at this address, once it answers. Raises Unavailable, StoreError."""
    return Grpc(address)


class Grpc(Server):
    """A Qdrant server by gRPC; see `Engine`. `sleep` waits between attempts.

    gRPC has no call that tells how many machines a cluster has: `limits().nodes` stays 1.
    """

    def __init__(self, address: Address, *, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(address, sleep=sleep)
        self._calls = Calls(address)
        self._requests = wire.Requests(STREAMS)
        try:
            self._limits = self._of_version(self._version())
        except BaseException:
            self.close()
            raise
        self._dense = self._limits.lacks("the field `dense`", "1.12.0") is None

    def limits(self) -> Limits:
        return self._limits

    def _version(self) -> str:
        def call() -> str:
            path, request = "/qdrant.Qdrant/HealthCheck", grpc.HealthCheckRequest()
            return str(self._send(path, request, grpc.HealthCheckReply, timeout=self._soon).version)

        try:
            return self._try(call, attempts=CONTACTS)
        except Unavailable as error:
            raise Unavailable(
                f"{error}; is Qdrant running there, and is this its gRPC port (6334 unless configured)?"
            ) from error.__cause__

    # collections

    def _list(self) -> list[str]:
        answer = self._send(
            "/qdrant.Collections/List", grpc.ListCollectionsRequest(), grpc.ListCollectionsResponse
        )
        return [collection.name for collection in answer.collections]

    def _put(self, name: str, config: Json) -> None:
        self._change("Create", messages.creation(name, config))

    def _get(self, name: str) -> Json:
        answer = self._send(
            "/qdrant.Collections/Get",
            grpc.GetCollectionInfoRequest(collection_name=name),
            grpc.GetCollectionInfoResponse,
        )
        return messages.description(answer.result)

    def _patch(self, name: str, change: Json) -> None:
        self._change("Update", messages.change(name, change))

    def _remove(self, name: str) -> bool:
        return self._change("Delete", grpc.DeleteCollection(collection_name=name))

    def _change(self, method: str, request: Any) -> bool:
        """What the server says about a change to a collection; False where there was nothing to change."""
        path = f"/qdrant.Collections/{method}"
        return bool(self._send(path, request, grpc.CollectionOperationResponse, timeout=self._later).result)

    def index_field(self, name: str, field: str, schema: str) -> None:
        request = messages.field_index(name, field, schema)
        self._try(lambda: self._update("CreateFieldIndex", request), name)

    # points

    def upsert(self, name: str, points: Points) -> None:
        if not len(points):
            return
        pieces = wire.pieces(points, dense=self._dense)
        sizes = list(map(wire.weight, pieces))
        room = WHOLE if sum(sizes) <= WHOLE else PART

        def send(rows: range, stream: int) -> None:
            with self._requests.made(name, pieces[rows.start : rows.stop]) as request:
                attempt(lambda: self._update("Upsert", request, lane=stream), sleep=self._sleep)

        runs = list(cut(sizes, room=room, most=self._allowed(name).upsert))
        self._upload(name, runs, send, streams=STREAMS)

    def _update(self, method: str, request: Any, *, lane: int = 0) -> None:
        """One change of points. Raises Refused unless Qdrant says that it is completed."""
        path = f"/qdrant.Points/{method}"
        answer = self._send(path, request, grpc.PointsOperationResponse, timeout=self._later, lane=lane)
        status = answer.result.status
        if status != grpc.UpdateStatus.Completed:
            known = status in grpc.UpdateStatus.values()
            said = grpc.UpdateStatus.Name(status) if known else str(status)
            raise Refused("timeout", f"expected the update's status Completed, got {said}")

    def delete(self, name: str, ids: Sequence[str]) -> None:
        if not ids:
            return
        selected = grpc.PointsSelector(points=grpc.PointsIdsList(ids=map(messages.point_id, ids)))
        request = grpc.DeletePoints(collection_name=name, wait=True, points=selected)
        self._try(lambda: self._update("Delete", request), name)

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
                [
                    Scored(point.score, messages.payload(point.payload), messages.id_of(point.id))
                    for point in one.result
                ]
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
        after = messages.id_of(answer.next_page_offset) if answer.HasField("next_page_offset") else None
        return messages.found(answer.result, payload, vectors), after

    def count(self, name: str, filter: Json | None = None) -> int:
        request = grpc.CountPoints(collection_name=name, filter=messages.filter_(filter), exact=True)
        answer = self._ask("/qdrant.Points/Count", request, grpc.CountResponse, collection=name)
        return int(answer.result.count)

    def close(self) -> None:
        self._calls.close()

    def _ask(self, path: str, request: Any, answer: Any, *, collection: str) -> Any:
        """The answer to a request that may be sent again."""
        return self._try(lambda: self._send(path, request, answer), collection)

    def _send(
        self, path: str, request: Any, answer: Any, *, timeout: float | None = None, lane: int = 0
    ) -> Any:
        """The answer to one request. Raises Refused; StoreError once closed."""
        return self._calls(path, request, answer, timeout=timeout or self._address.timeout, lane=lane)
