"""A Qdrant server by REST, where only HTTP passes; and every answer looked at before it counts."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx

from ...._version import __version__
from ....errors import StoreError
from ....limits import Limits
from ..engine import Found, Json, Points, Query, Scored, raw_id
from ..failures import Refused, attempt
from ..server import CONTACTS, Server, cut
from .answers import allowed, answer, found, lost
from .text import dump, payload_texts, query_text, upsert_body, widths

if TYPE_CHECKING:
    from ..address import Address

# what Qdrant accepts in one body unless configured (config/config.yaml, service.max_request_size_mb)
ROOM = 32 * 1024 * 1024
# what stands around the points or searches of a body
_FRAME = 32
# bodies on their way at a time: while the server reads one, the next is written
STREAMS = 2
# Qdrant closes a connection after 5 idle seconds (actix-web's keep-alive); one reused at that moment is lost
_IDLE = 3.0


def connect(address: Address) -> Rest:
    """The server at this address, once it answers. Raises Unavailable, Forbidden, StoreError."""
    return Rest(address)


class Rest(Server):
    """A Qdrant server by REST; see `Engine`. `sleep` waits between attempts."""

    def __init__(self, address: Address, *, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(address, sleep=sleep)
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._process = os.getpid()
        self._closed = False
        self._room = ROOM
        try:
            self._limits = replace(self._of_version(self._version()), nodes=self._nodes())
        except BaseException:
            self.close()
            raise

    def limits(self) -> Limits:
        return self._limits

    def _version(self) -> str:
        told = self._try(lambda: self._send("GET", "/", timeout=self._soon), attempts=CONTACTS)
        return str(told.get("version")) if isinstance(told, dict) else ""

    def _nodes(self) -> int:
        """Machines of the cluster; 1 where there is none, or this key may not ask."""

        def call() -> Json:
            try:
                cluster: Json = self._send("GET", "/cluster", timeout=self._soon)
            except Refused as refused:
                # a key that may read but not manage; a wrong one shows here and not at the first real call
                if refused.text.startswith("Forbidden") or refused.kind == "unsupported":
                    return {}
                raise
            return cluster

        return max(1, len(self._try(call, attempts=CONTACTS).get("peers") or ()))

    # collections

    def _list(self) -> list[str]:
        return [entry["name"] for entry in self._send("GET", "/collections")["collections"]]

    def _put(self, name: str, config: Json) -> None:
        self._send("PUT", _path(name), dump(config), timeout=self._later)

    def _get(self, name: str) -> Json:
        description: Json = self._send("GET", _path(name))
        return description

    def _patch(self, name: str, change: Json) -> None:
        self._send("PATCH", _path(name), dump(change), timeout=self._later)

    def _remove(self, name: str) -> bool:
        return bool(self._send("DELETE", _path(name), timeout=self._later))

    def index_field(self, name: str, field: str, schema: str) -> None:
        self._apply(name, "PUT", "index", {"field_name": field, "field_schema": schema})

    # points

    def upsert(self, name: str, points: Points) -> None:
        if not len(points):
            return
        path = f"{_path(name)}/points"
        payloads = payload_texts(points)
        sizes = widths(points, payloads)
        most = self._allowed(name).upsert

        def runs(rows: range) -> list[range]:
            part = cut(sizes[rows.start : rows.stop], room=self._room - _FRAME, most=most)
            return [range(rows.start + run.start, rows.start + run.stop) for run in part]

        def send(rows: range, stream: int) -> Sequence[range] | None:
            body = upsert_body(points, payloads, rows)
            try:
                attempt(lambda: self._update("PUT", path, body), sleep=self._sleep)
            except Refused as refused:
                if refused.kind != "too large" or len(rows) == 1:
                    raise
                # a proxy does not tell its limit; a body as large as this one is above it in any case
                limit = allowed(refused) or len(body) // 2
                with self._lock:
                    self._room = min(self._room, limit, len(body) - 1)
                return runs(rows)
            return None

        self._upload(name, runs(range(len(points))), send, streams=STREAMS)

    def query(self, name: str, queries: Sequence[Query]) -> list[list[Scored]]:
        if not queries:
            return []
        texts = [query_text(query) for query in queries]
        most = self._allowed(name).queries
        answers: list[list[Scored]] = []
        for run in cut([len(text) + 1 for text in texts], room=self._room - _FRAME, most=most):
            body = b'{"searches":[%b]}' % b",".join(texts[run.start : run.stop])
            part = self._ask("POST", f"{_path(name)}/points/query/batch", body, collection=name)
            answers += [
                [
                    Scored(point["score"], point.get("payload") or {}, str(point["id"]))
                    for point in one["points"]
                ]
                for one in part
            ]
        return answers

    def retrieve(
        self, name: str, ids: Sequence[str], *, payload: Sequence[str] | bool, vectors: str | None
    ) -> Found:
        body = dump({"ids": list(map(raw_id, ids)), **_wanted(payload, vectors)})
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
            request["offset"] = raw_id(offset)
        page = self._ask("POST", f"{_path(name)}/points/scroll", dump(request), collection=name)
        after = page.get("next_page_offset")
        return found(page["points"], payload, vectors), None if after is None else str(after)

    def count(self, name: str, filter: Json | None = None) -> int:
        request: Json = {"exact": True}
        if filter is not None:
            request["filter"] = filter
        return int(self._ask("POST", f"{_path(name)}/points/count", dump(request), collection=name)["count"])

    def delete(self, name: str, ids: Sequence[str]) -> None:
        if ids:
            self._apply(name, "POST", "points/delete", {"points": list(ids)})

    def close(self) -> None:
        self._leave_parent()
        with self._lock:
            self._closed = True
            client, self._client = self._client, None
        if client is not None:
            client.close()

    # requests

    def _ask(self, method: str, path: str, body: bytes, *, collection: str) -> Any:
        """The `result` of a request that may be sent again."""
        return self._try(lambda: self._send(method, path, body), collection)

    def _apply(self, name: str, method: str, tail: str, request: Json) -> None:
        body = dump(request)
        self._try(lambda: self._update(method, f"{_path(name)}/{tail}", body), name)

    def _update(self, method: str, path: str, body: bytes) -> None:
        """One change of points. Raises Refused unless Qdrant says that it is completed."""
        status = self._send(method, f"{path}?wait=true", body, timeout=self._later)["status"]
        if status != "completed":
            raise Refused("timeout", f"expected the update's status completed, got {str(status)[:40]!r}")

    def _send(self, method: str, path: str, body: bytes = b"", *, timeout: float | None = None) -> Any:
        """The `result` of one request. Raises Refused; StoreError once closed."""
        client = self._connected()
        try:
            response = client.request(
                method,
                f"{self._address.base}{path}",
                content=body,
                headers={"content-type": "application/json"} if body else None,
                timeout=httpx.Timeout(timeout or self._address.timeout, connect=self._soon),
            )
        except (httpx.HTTPError, RuntimeError) as error:
            self._connected()  # closed by another thread meanwhile: httpx has a RuntimeError for that
            if isinstance(error, RuntimeError):
                raise
            raise lost(error, self._address, len(body)) from error
        return answer(response, self._address)

    def _connected(self) -> httpx.Client:
        self._leave_parent()
        with self._lock:
            if self._closed:
                raise StoreError(f"{self.url} is closed; open it again with vecbridge.connect")
            if self._client is None:
                self._client = _client(self._address)
            return self._client

    def _leave_parent(self) -> None:
        """In a forked child, let go of the parent's connections, and of a lock that nobody may give back."""
        if os.getpid() != self._process:
            self._process, self._client, self._lock = os.getpid(), None, threading.Lock()


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
