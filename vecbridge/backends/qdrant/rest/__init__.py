"""A Qdrant server by REST, where only HTTP passes; and every answer looked at before it counts."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import httpx

from ..._version import __version__
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
from . import blobs, counted
from .engine import Found, Json, Points, Query, Scored
from .failures import Refused, attempt, translated
from .rest_answers import Strict, answer, found, lost, strict
from .rest_text import dump, pieces, query_text
from .rest_upload import Upload

if TYPE_CHECKING:
    from .address import Address

# what Qdrant accepts in one body unless configured (config/config.yaml, service.max_request_size_mb)
ROOM = 32 * 1024 * 1024
# uploads, and calls after which the server rebuilds something, may take this many times longer
LONGER = 4
CONNECT = 10.0  # seconds
# Qdrant closes a connection after 5 idle seconds (actix-web's keep-alive); one reused at that moment is lost
_IDLE = 3.0
# seconds that a server may be away while it builds an index: restarts of large ones take minutes
RESTART = 300.0
POLL, SLOWEST_POLL = 0.1, 2.0  # seconds
# ids in one request to delete
_IDS = 10_000

T = TypeVar("T")


def connect(address: Address) -> Rest:
    """The server at this address, once it answers. Raises Unavailable, Forbidden, StoreError."""
    return Rest(address)


class Rest:
    """A Qdrant server by REST; see `Engine`. `sleep` waits between attempts."""

    def __init__(self, address: Address, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._address = address
        self._sleep = sleep
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._process = os.getpid()
        self._closed = False
        self._strict: dict[str, Strict] = {}
        self._room = ROOM
        try:
            self._limits = replace(limits(f"qdrant@{self._version()}"), nodes=self._nodes())
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Rest {self.url}>"

    @property
    def url(self) -> str:
        return self._address.shown

    def limits(self) -> Limits:
        return self._limits

    def _version(self) -> str:
        told = self._try(lambda: self._send("GET", "/"))
        version = told.get("version") if isinstance(told, dict) else None
        number = re.match(r"\d{1,6}(\.\d{1,6}){0,3}", str(version), flags=re.ASCII)
        if number is None:
            raise StoreError(
                f"{self.url}: expected a Qdrant server that tells its version, got another server"
            )
        return number[0]

    def _nodes(self) -> int:
        """Machines of the cluster; 1 where there is none, or this key may not ask."""

        def call() -> Json:
            try:
                cluster: Json = self._send("GET", "/cluster")["result"]
            except Refused as refused:
                # a key that may read but not manage; a wrong one shows here and not at the first real call
                if refused.text.startswith("Forbidden") or refused.kind == "unsupported":
                    return {}
                raise
            return cluster

        return max(1, len(self._try(call).get("peers") or ()))

    # collections

    def collections(self) -> list[str]:
        return [entry["name"] for entry in self._ask("GET", "/collections")["collections"]]

    def create(self, name: str, config: Json) -> None:
        body = dump(config)
        unclear = False

        def call() -> None:
            nonlocal unclear
            try:
                self._send("PUT", _path(name), body, longer=True)
            except Refused as refused:
                # an attempt whose answer was lost may have made it
                unclear |= refused.kind in ("timeout", "unavailable")
                if not unclear or refused.kind == "rate" or not self._is_as(name, config):
                    raise

        self._try(call, name)
        self._strict.pop(name, None)

    def _is_as(self, name: str, config: Json) -> bool:
        """Whether the collection that is there is the one that `config` asks for, and still empty."""
        try:
            there = self._send("GET", _path(name))["result"]
        except Refused:
            return False
        kept = there.get("config") or {}
        wanted, real = config.get("vectors") or {}, (kept.get("params") or {}).get("vectors") or {}
        return (
            not there.get("points_count")
            and (kept.get("metadata") or {}) == (config.get("metadata") or {})
            and _dimensions(wanted) == _dimensions(real)
        )

    def describe(self, name: str) -> Json:
        return self._describe(name)

    def _describe(self, name: str, *, again: bool = True) -> Json:
        description: Json = self._ask("GET", _path(name), collection=name, again=again)
        self._strict[name] = strict(description)
        return description

    def drop(self, name: str) -> None:
        unclear = False

        def call() -> None:
            nonlocal unclear
            try:
                gone = self._send("DELETE", _path(name), longer=True)["result"]
            except Refused as refused:
                if refused.kind == "missing" and unclear:
                    return
                unclear |= refused.kind in ("timeout", "unavailable")
                raise
            if not gone and not unclear:
                raise Refused("missing", "Qdrant found no such collection to delete")

        self._try(call, name)
        self._strict.pop(name, None)

    def index_field(self, name: str, field: str, schema: str) -> None:
        self._apply(name, "PUT", "index", {"field_name": field, "field_schema": schema})

    def optimise(self, name: str, change: Json, progress: Progress | None) -> None:
        body = dump(change)
        self._try(lambda: self._send("PATCH", _path(name), body, longer=True), name)
        away: float | None = None
        for pause in _pauses():
            try:
                description = self._describe(name, again=False)
                if description["status"] == "grey":
                    # after a restart Qdrant waits for an update before it goes on; this one changes nothing
                    self._try(lambda: self._send("PATCH", _path(name), body, longer=True), name)
            except (Unavailable, Busy) as error:
                away = time.monotonic() if away is None else away
                if time.monotonic() - away > RESTART:
                    raise IndexFailure(
                        f"{self.url} went away while it built the index of {name!r} and was not back after "
                        f"{RESTART:.0f} s; build_index() again once it runs ({error})"
                    ) from error
            else:
                away = None
                self._check_optimiser(name, description)
                points = description.get("points_count") or 0
                if progress is not None:
                    # with two vectors for each point, both may be counted
                    progress("index", min(description.get("indexed_vectors_count") or 0, points), points)
                if description["status"] == "green":
                    return
            self._sleep(pause)

    def _check_optimiser(self, name: str, description: Json) -> None:
        said = description.get("optimizer_status")
        if isinstance(said, dict) or description["status"] == "red":
            error = said.get("error") if isinstance(said, dict) else "its status is red"
            raise IndexFailure(
                f"{self.url} could not build the index of {name!r}: {self._address.hide(str(error))}"
            )

    def sizes(self, name: str) -> Sizes:
        return counted.sizes(self._describe(name))

    # points

    def upsert(self, name: str, points: Points) -> None:
        if not len(points):
            return
        path = f"{_path(name)}/points"
        upload = Upload(
            points,
            lambda body: attempt(lambda: self._update("PUT", path, body), sleep=self._sleep),
            room=self._room,
            most=self._allowed(name).upsert,
        )
        try:
            self._try(upload.run, name, again=False)
        except CollectionNotFound:
            raise
        except VecbridgeError as error:
            if isinstance(error, InputError):
                # strict mode may have been changed since it was read
                self._strict.pop(name, None)
            if not upload.stored:
                raise
            raise type(error)(
                f"{error}; {upload.stored:,} of {len(points):,} points are stored, the same call again "
                f"completes them"
            ) from error.__cause__
        finally:
            self._room = min(self._room, upload.room)

    def query(self, name: str, queries: Sequence[Query]) -> list[list[Scored]]:
        if not queries:
            return []
        texts = [query_text(query) for query in queries]
        most = self._allowed(name).queries
        answers: list[list[Scored]] = []
        for run in pieces([len(text) + 1 for text in texts], room=self._room - 32, most=most):
            body = b'{"searches":[%b]}' % b",".join(texts[run.start : run.stop])
            part = self._ask("POST", f"{_path(name)}/points/query/batch", body, collection=name)
            answers += [
                [Scored(point["score"], point.get("payload") or {}) for point in one["points"]]
                for one in part
            ]
        return answers

    def retrieve(
        self, name: str, ids: Sequence[str], *, payload: Sequence[str] | bool, vectors: str | None
    ) -> Found:
        body = dump({"ids": list(ids), **_wanted(payload, vectors)})
        return found(self._ask("POST", f"{_path(name)}/points", body, collection=name), payload, vectors)

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
        request: Json = {"limit": min(limit, self._allowed(name).limit or limit), **_wanted(payload, vectors)}
        if filter is not None:
            request["filter"] = filter
        if offset is not None:
            request["offset"] = offset
        page = self._ask("POST", f"{_path(name)}/points/scroll", dump(request), collection=name)
        after = page.get("next_page_offset")
        return found(page["points"], payload, vectors), None if after is None else str(after)

    def count(self, name: str, filter: Json | None = None) -> int:
        request: Json = {"exact": True}
        if filter is not None:
            request["filter"] = filter
        return int(self._ask("POST", f"{_path(name)}/points/count", dump(request), collection=name)["count"])

    def delete(self, name: str, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), _IDS):
            self._apply(name, "POST", "points/delete", {"points": list(ids[start : start + _IDS])})

    # what lies beside the collections

    def keep(self, key: str, content: bytes) -> None:
        blobs.keep(self, key, content)

    def kept(self, key: str) -> bytes | None:
        return blobs.kept(self, key)

    def forget(self, key: str) -> None:
        blobs.forget(self, key)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            client, self._client = self._client, None
        if client is not None and os.getpid() == self._process:
            client.close()

    def _allowed(self, name: str) -> Strict:
        """What the collection's strict mode allows; asked for once."""
        if name not in self._strict:
            self._describe(name)
        return self._strict.get(name) or Strict()

    # requests

    def _ask(
        self, method: str, path: str, body: bytes = b"", *, collection: str | None = None, again: bool = True
    ) -> Any:
        """The `result` of a request that may be sent again."""
        return self._try(lambda: self._send(method, path, body)["result"], collection, again=again)

    def _apply(self, name: str, method: str, tail: str, request: Json) -> None:
        body = dump(request)
        self._try(lambda: self._update(method, f"{_path(name)}/{tail}", body), name)

    def _update(self, method: str, path: str, body: bytes) -> None:
        """One change of points. Raises Refused unless Qdrant says that it is completed."""
        status = self._send(method, f"{path}?wait=true", body, longer=True)["result"]["status"]
        if status != "completed":
            raise Refused("timeout", f"expected the update's status completed, got {str(status)[:40]!r}")

    def _try(self, call: Callable[[], T], collection: str | None = None, *, again: bool = True) -> T:
        try:
            return attempt(call, again=again, sleep=self._sleep)
        except Refused as refused:
            raise translated(refused, self.url, collection=collection) from refused.__cause__

    def _send(self, method: str, path: str, body: bytes = b"", *, longer: bool = False) -> Any:
        """The JSON that one request is answered with. Raises Refused; StoreError once closed."""
        client = self._connected()
        seconds = self._address.timeout * (LONGER if longer else 1)
        try:
            response = client.request(
                method,
                f"{self._address.base}{path}",
                content=body,
                headers={"content-type": "application/json"} if body else None,
                timeout=httpx.Timeout(seconds, connect=min(CONNECT, self._address.timeout)),
            )
        except (httpx.HTTPError, RuntimeError) as error:
            self._connected()  # closed by another thread meanwhile: httpx has a RuntimeError for that
            if isinstance(error, RuntimeError):
                raise
            raise lost(error, self._address, len(body)) from error
        return answer(response, self._address)

    def _connected(self) -> httpx.Client:
        with self._lock:
            if self._closed:
                raise StoreError(f"{self.url} is closed; open it again with vecbridge.connect")
            if self._client is None or os.getpid() != self._process:
                # a forked child must not write into the connections of its parent
                self._process = os.getpid()
                self._client = _client(self._address)
            return self._client


def _client(address: Address) -> httpx.Client:
    headers = {"user-agent": f"vecbridge/{__version__}"}
    if address.key is not None:
        headers["api-key"] = address.key
    # a proxy would look for this machine's own addresses on itself
    direct = {f"all://{f'[{address.host}]' if ':' in address.host else address.host}": None}
    return httpx.Client(
        headers=headers,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=_IDLE),
        mounts=direct if address.local else None,
        # reading the certificates takes 0.1 s, and a plain connection within this machine needs none
        verify=address.tls or not address.local,
    )


def _path(name: str) -> str:
    return f"/collections/{quote(name, safe='')}"


def _wanted(payload: Sequence[str] | bool, vectors: str | None) -> Json:
    return {
        "with_payload": payload if isinstance(payload, bool) else list(payload),
        "with_vector": [vectors] if vectors else vectors is not None,
    }


def _dimensions(vectors: Json) -> dict[str, int]:
    named = {"": vectors} if "size" in vectors else vectors
    return {name: vector["size"] for name, vector in named.items()}


def _pauses() -> Iterator[float]:
    pause = POLL
    while True:
        yield pause
        pause = min(pause * 1.5, SLOWEST_POLL)
