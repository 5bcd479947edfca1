"""A loopback server that speaks Qdrant's REST over qdrant-client's local mode, and fails when it is told to.

What it answers, and in which words it refuses, follows Qdrant's source: src/actix, lib/storage errors.rs.
Local mode forgets configurations; they are kept here and merged as PATCH does.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID, uuid5

import numpy as np
from pydantic import ValidationError
from qdrant_client import QdrantClient, models
from qdrant_fakes_local import ask, local, named, store

from vecbridge.backends.qdrant.address import parse
from vecbridge.backends.qdrant.engine import Points
from vecbridge.backends.qdrant.rest import Rest

Json = dict[str, Any]

LARGEST = 32 * 1024 * 1024
# from Qdrant's config/config.yaml
_HNSW: Json = {
    "m": 16,
    "ef_construct": 100,
    "full_scan_threshold": 10_000,
    "max_indexing_threads": 0,
    "on_disk": False,
}
_OPTIMIZERS: Json = {
    "deleted_threshold": 0.2,
    "vacuum_min_vector_number": 1000,
    "default_segment_number": 0,
    "max_segment_size": None,
    "memmap_threshold": None,
    "indexing_threshold": 10_000,
    "flush_interval_sec": 5,
    "max_optimization_threads": None,
}
_PARAMS = ("shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload")


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the next request whose "METHOD /path" matches the regular expression `on`.

    `status`, `body` (JSON, or bytes as they are) and `headers`: this answer instead of the real one. `lose`:
    the connection breaks, "body" while half of the request's body has been read, "answer" after the work was
    done. `delay`: seconds before anything is answered.
    """

    status: int | None = None
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    lose: Literal["", "body", "answer"] = ""
    delay: float = 0.0
    on: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came; `body` is what was read of it."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Refusal(Exception):
    """An answer other than 200, as Qdrant words it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass
class _Collection:
    config: Json
    schema: Json = field(default_factory=dict)


class RestServer:
    """The server's state; every request is in `requests`, and `faults` are used up in their order.

    `states`: each overlays one answer to GET /collections/{name}, with status or counts for example.
    """

    def __init__(self, *, version: str, key: str | None, largest: int, prefix: str) -> None:
        self.version = version
        self.key = key
        self.largest = largest
        self.prefix = prefix
        self.port = 0
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.states: list[Json] = []
        self.peers = 0
        self.wrong: list[BaseException] = []
        self.lock = threading.RLock()
        self._client = QdrantClient(":memory:")
        self._collections: dict[str, _Collection] = {}

    @property
    def url(self) -> str:
        """The URL for `address.parse`."""
        return f"qdrant+http://127.0.0.1:{self.port}{self.prefix}"

    @property
    def http(self) -> str:
        """The URL for Qdrant's own client."""
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    def sent(self, on: str) -> list[Request]:
        """The requests so far whose "METHOD /path" matches."""
        return [request for request in self.requests if re.search(on, str(request))]

    def fault_for(self, line: str) -> Fault | None:
        with self.lock:
            for at, fault in enumerate(self.faults):
                if re.search(fault.on, line):
                    return self.faults.pop(at)
        return None

    def answer(self, request: Request) -> Json:
        """What Qdrant would answer. Raises Refusal."""
        if self.key is not None and request.path != "/":
            given = request.headers.get("api-key")
            if given is None:
                raise Refusal(401, "Must provide an API key or an Authorization bearer token")
            if given != self.key:
                raise Refusal(401, "Invalid API key or JWT")
        if request.path == "/":
            return {"title": "qdrant - vector search engine", "version": self.version, "commit": "0" * 40}
        with self.lock:
            try:
                result = self._result(request)
            except ValidationError as error:
                raise Refusal(400, f"Format error in JSON body: {error.errors()[0]['msg']}") from error
            except ValueError as error:
                raise Refusal(400, f"Wrong input: {error}") from error
        return {"result": result, "status": "ok", "time": 0.0}

    def _result(self, request: Request) -> Any:
        steps = [unquote(step) for step in request.path.split("/")[1:]]
        method = request.method
        match method, *steps:
            case "GET", "cluster":
                peers = {str(number): {"uri": f"http://p{number}:6335/"} for number in range(self.peers)}
                return {"status": "enabled", "peers": peers} if peers else {"status": "disabled"}
            case "GET", "collections":
                return {"collections": [{"name": name} for name in self._collections]}
            case "GET", "collections", name, "exists":
                return {"exists": name in self._collections}
            case "PUT", "collections", name:
                return self._create(name, request.json)
            case "DELETE", "collections", name:
                if self._collections.pop(name, None) is None:
                    return False
                return self._client.delete_collection(name)
        if len(steps) < 2 or steps[0] != "collections":
            raise Refusal(404, "")
        name, rest = steps[1], "/".join(steps[2:])
        if name not in self._collections:
            raise Refusal(404, f"Not found: Collection `{name}` doesn't exist!")
        match method, rest:
            case "GET", "":
                state = self.states.pop(0) if self.states else {}
                return {**self._describe(name), **state}
            case "PATCH", "":
                return self._patch(name, request.json)
            case "PUT", "index":
                asked = models.CreateFieldIndex.model_validate(request.json)
                self._collections[name].schema[asked.field_name] = {
                    "data_type": request.json["field_schema"],
                    "points": 0,
                }
                return _DONE
            case "PUT", "points":
                return self._upsert(name, request.json)
            case "POST", "points":
                return self._retrieve(name, request.json)
            case "POST", "points/scroll":
                return self._scroll(name, request.json)
            case "POST", "points/count":
                count = models.CountRequest.model_validate(request.json)
                return {"count": self._client.count(name, count.filter, exact=True).count}
            case "POST", "points/delete":
                self._client.delete(name, models.PointIdsList.model_validate(request.json))
                return _DONE
            case "POST", "points/query":
                return self._query(name, [request.json])[0]
            case "POST", "points/query/batch":
                searches = request.json["searches"]
                self._strict(name, "search_max_batchsize", len(searches))
                return self._query(name, searches)
        raise Refusal(404, "")

    def _create(self, name: str, body: Json) -> bool:
        asked = models.CreateCollection.model_validate(body)
        if name in self._collections:
            raise Refusal(409, f"Wrong input: Collection `{name}` already exists!")
        vectors = body.get("vectors") or {}
        config: Json = {
            "params": {
                "vectors": vectors,
                "shard_number": 1,
                "replication_factor": 1,
                "write_consistency_factor": 1,
                "on_disk_payload": True,
                **{key: body[key] for key in _PARAMS if key in body},
            },
            "hnsw_config": {**_HNSW, **(body.get("hnsw_config") or {})},
            "optimizer_config": {**_OPTIMIZERS, **(body.get("optimizers_config") or {})},
            "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
            "quantization_config": body.get("quantization_config"),
            "strict_mode_config": body.get("strict_mode_config"),
        }
        if body.get("metadata") and _order(self.version) >= (1, 16):
            config["metadata"] = body["metadata"]
        if body.get("sparse_vectors"):
            config["params"]["sparse_vectors"] = body["sparse_vectors"]
        self._client.create_collection(
            name, vectors_config=local(asked.vectors or {}), sparse_vectors_config=asked.sparse_vectors
        )
        self._collections[name] = _Collection(config)
        return True

    def _patch(self, name: str, body: Json) -> bool:
        models.UpdateCollection.model_validate(body)
        config = self._collections[name].config
        config["hnsw_config"] |= body.get("hnsw_config") or {}
        config["optimizer_config"] |= body.get("optimizers_config") or {}
        config["params"] |= body.get("params") or {}
        if "quantization_config" in body:
            asked = body["quantization_config"]
            config["quantization_config"] = None if asked == "Disabled" else asked
        for key in ("metadata", "strict_mode_config"):
            if key in body:
                config[key] = {**(config.get(key) or {}), **body[key]}
        for vector, change in (body.get("vectors") or {}).items():
            there = config["params"]["vectors"] if vector == "" else config["params"]["vectors"][vector]
            for key, value in change.items():
                old = there.get(key)
                there[key] = {**old, **value} if isinstance(old, dict) and key == "hnsw_config" else value
        return True

    def _vectors(self, name: str) -> dict[str, Json]:
        return named(self._collections[name].config["params"]["vectors"])

    def _describe(self, name: str) -> Json:
        collection = self._collections[name]
        config = collection.config
        points = self._client.count(name, exact=True).count
        threshold = config["optimizer_config"]["indexing_threshold"]
        indexed = 0
        for vector in self._vectors(name).values():
            m = (vector.get("hnsw_config") or {}).get("m", config["hnsw_config"]["m"])
            if m and threshold and points * vector["size"] * 4 / 1024 >= threshold:
                indexed += points
        return {
            "status": "green",
            "optimizer_status": "ok",
            "indexed_vectors_count": indexed,
            "points_count": points,
            "segments_count": 1,
            "config": config,
            "payload_schema": collection.schema,
        }

    def _strict(self, name: str, bound: str, asked: int) -> None:
        mode = self._collections[name].config.get("strict_mode_config") or {}
        if mode.get("enabled") and mode.get(bound) is not None and asked > mode[bound]:
            raise Refusal(
                400,
                f'Bad request: Limit exceeded {asked} > {mode[bound]} for "{bound}". Help: Reduce it.',
            )

    def _upsert(self, name: str, body: Json) -> Json:
        points = models.PointsList.model_validate(body).points
        self._strict(name, "upsert_max_batchsize", len(points))
        store(points, self._vectors(name))
        self._client.upsert(name, points)
        return _DONE

    def _retrieve(self, name: str, body: Json) -> list[Json]:
        asked = models.PointRequest.model_validate(body)
        found = self._client.retrieve(
            name,
            asked.ids,
            with_payload=True if asked.with_payload is None else asked.with_payload,
            with_vectors=asked.with_vector or False,
        )
        return [_record(record) for record in found]

    def _scroll(self, name: str, body: Json) -> Json:
        asked = models.ScrollRequest.model_validate(body)
        limit = 10 if asked.limit is None else asked.limit
        self._strict(name, "max_query_limit", limit)
        found, after = self._client.scroll(
            name,
            asked.filter,
            limit,
            offset=asked.offset,
            with_payload=True if asked.with_payload is None else asked.with_payload,
            with_vectors=asked.with_vector or False,
        )
        return {"points": [_record(record) for record in found], "next_page_offset": after}

    def _query(self, name: str, searches: list[Json]) -> list[Json]:
        requests = [models.QueryRequest.model_validate(search) for search in searches]
        vectors = self._vectors(name)
        for request in requests:
            self._strict(name, "max_query_limit", request.limit or 10)
            ask(request, vectors)
        return [
            {"points": [{**_record(point), "score": point.score} for point in answer.points]}
            for answer in self._client.query_batch_points(name, requests)
        ]


_DONE = {"operation_id": 1, "status": "completed"}


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _record(record: Any) -> Json:
    found: Json = {"id": record.id, "payload": record.payload}
    if record.vector is not None:
        found["vector"] = record.vector
        if isinstance(record.vector, dict):
            found["vector"] = {
                key: one.model_dump() if isinstance(one, models.SparseVector) else one
                for key, one in record.vector.items()
            }
    return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # an answer is written in two pieces, the second of which would wait 40 ms for the first to be confirmed
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        state = self.server.state
        parts = urlsplit(self.path)
        path = parts.path.removeprefix(state.prefix) or "/"
        length = int(self.headers.get("content-length", "0"))
        fault = state.fault_for(f"{self.command} {path}") or Fault()
        body = self.rfile.read(length // 2 if fault.lose == "body" else length)
        request = Request(
            self.command, path, parse_qs(parts.query), {k.lower(): v for k, v in self.headers.items()}, body
        )
        with state.lock:
            state.requests.append(request)
        if fault.lose == "body":
            self._break_off()
            return
        if fault.delay:
            time.sleep(fault.delay)
        if fault.status is not None:
            self._reply(fault.status, fault.body, fault.headers)
            return
        if length > state.largest:
            said = f"larger than allowed (limit: {state.largest} bytes)."
            self._reply(400, error(f"Payload error: JSON payload ({length} bytes) is {said}"))
            return
        if not parts.path.startswith(state.prefix):
            self._reply(404, b"")
            return
        try:
            answer = state.answer(request)
        except Refusal as refusal:
            self._reply(refusal.status, error(refusal.text) if refusal.text else b"")
            return
        if fault.lose == "answer":
            self._break_off()
            return
        self._reply(200, answer, fault.headers)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815 - what http.server looks for

    def _reply(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _break_off(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def error(text: str) -> Json:
    """The body of a refusal."""
    return {"status": {"error": text}, "time": 0.0}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, state: RestServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state = state
        self.open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handleerror(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        # a client may go away when it likes
        if error is not None and not isinstance(error, ConnectionError):
            self.state.wrong.append(error)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def rest_server(
    *, version: str = "1.19.0", key: str | None = None, largest: int = LARGEST, prefix: str = ""
) -> Iterator[RestServer]:
    """A server on a free port of 127.0.0.1, gone when the block ends; its own mistakes are raised there.

    `key`: the API key that it wants. `largest`: bytes that a body may have. `prefix`: the path before all.
    """
    state = RestServer(version=version, key=key, largest=largest, prefix=prefix)
    server = _Server(state)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    if state.wrong:
        raise AssertionError("the fake server failed") from state.wrong[0]


@contextmanager
def opened(url: str) -> Iterator[tuple[Rest, list[float]]]:
    """The engine at a URL, and the pauses that it makes; none of them takes time."""
    waits: list[float] = []
    engine = Rest(parse(url), sleep=waits.append)
    try:
        yield engine, waits
    finally:
        engine.close()


def ids(count: int) -> list[str]:
    """Ids of points."""
    return [str(uuid5(UUID(int=0), str(number))) for number in range(count)]


def points(count: int, *, dim: int = 8, seed: int = 1) -> Points:
    """Points of one unnamed vector, with payloads that tell them apart."""
    matrix = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return Points(ids(count), {"": matrix}, [{"id": str(number)} for number in range(count)])
