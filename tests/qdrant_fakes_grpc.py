"""A Qdrant server by gRPC on 127.0.0.1: the official client's stubs in front of its local mode.

It keeps every request's bytes and metadata, and does on demand what a real server does rarely: refuses, asks
to wait, acknowledges without completing, drops connections, goes away and comes back.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
from qdrant_client import grpc as q
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc, payload_to_grpc
from qdrant_client.local.qdrant_local import QdrantLocal
from qdrant_fakes_local import ask, local, store

OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # two servers must never share a port: one of them would answer for the other
    ("grpc.so_reuseport", 0),
]


@dataclass(frozen=True)
class Received:
    """One request as it came: `method` as in "Points/Upsert"."""

    method: str
    raw: bytes
    metadata: dict[str, str]


@dataclass(frozen=True)
class Fault:
    """What happens to a request instead of an answer; `done`: the request is carried out all the same."""

    code: grpc.StatusCode
    details: str = ""
    trailers: Sequence[tuple[str, str]] = ()
    done: bool = False
    slow: float = 0.0


class Fake:
    """The state behind the server. Scripts are queues: one entry is used up by one request."""

    def __init__(self, version: str, key: str | None) -> None:
        self.version = version
        self.key = key
        self.local = QdrantLocal(":memory:")
        self.received: list[Received] = []
        self.faults: dict[str, deque[Fault]] = {}
        self.update_statuses: deque[int] = deque()
        self.collection_statuses: deque[int] = deque()
        self.optimizer_error = ""
        self.created: dict[str, q.CreateCollection] = {}
        self.indexes: dict[str, dict[str, int]] = {}
        self.lock = threading.RLock()
        self.port = 0
        self._server: grpc.Server | None = None

    @property
    def url(self) -> str:
        user = f"{self.key}@" if self.key else ""
        return f"qdrant://{user}127.0.0.1:{self.port}"

    def fail(self, method: str, *faults: Fault) -> None:
        """The next requests to this method meet these, one each."""
        self.faults.setdefault(method, deque()).extend(faults)

    def count(self, method: str) -> int:
        """How many requests to this method have come."""
        return sum(request.method == method for request in self.received)

    def raw(self, method: str) -> list[bytes]:
        """The bytes of the requests to this method."""
        return [request.raw for request in self.received if request.method == method]

    def vectors(self, name: str) -> dict[str, Any]:
        """The parameters of a collection's vectors, by name."""
        made = GrpcToRest.convert_vectors_config(self.created[name].vectors_config)
        each = made if isinstance(made, dict) else {"": made}
        return {key: vector.model_dump(mode="json", exclude_none=True) for key, vector in each.items()}

    def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        server = grpc.server(futures.ThreadPoolExecutor(8), interceptors=[_Recorder(self)], options=OPTIONS)
        q.add_QdrantServicer_to_server(_Health(self), server)
        q.add_CollectionsServicer_to_server(_Collections(self), server)
        q.add_PointsServicer_to_server(_Points(self), server)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        server.start()
        self._server = server

    def stop(self) -> None:
        """Go away, as a killed server does: connections are closed, requests under way are lost."""
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None


@contextmanager
def grpc_server(version: str = "1.19.0", *, key: str | None = None) -> Iterator[Fake]:
    """A server that runs; `key` is the API key it insists on."""
    fake = Fake(version, key)
    fake.start()
    try:
        yield fake
    finally:
        fake.stop()
        fake.local.close()


@contextmanager
def cutting(port: int, *, after: int, times: int = 1) -> Iterator[int]:
    """A port in front of another, whose first `times` connections break after so many bytes to the server.

    Connections that send less do not count.
    """
    left = times
    lock = threading.Lock()
    listener = socket.create_server(("127.0.0.1", 0))
    ends: list[socket.socket] = [listener]

    def broken(seen: int) -> bool:
        nonlocal left
        with lock:
            if seen <= after or not left:
                return False
            left -= 1
            return True

    def pump(source: socket.socket, sink: socket.socket, *, up: bool) -> None:
        seen = 0
        with suppress(OSError):
            while data := source.recv(65_536):
                seen += len(data)
                if up and broken(seen):
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                ends.extend((client, server))
                for source, sink, up in ((client, server, True), (server, client, False)):
                    threading.Thread(target=pump, args=(source, sink), kwargs={"up": up}, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        for one in ends:
            one.close()
        thread.join()


class _Recorder(grpc.ServerInterceptor):  # type: ignore[misc]  # grpcio ships no types
    """Keeps what comes, checks the key, and plays the faults."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        method = details.method.removeprefix("/qdrant.")
        metadata = {item.key: item.value for item in details.invocation_metadata}

        def read(raw: bytes) -> Any:
            self.fake.received.append(Received(method, raw, metadata))
            return handler.request_deserializer(raw)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            if self.fake.key and method != "Qdrant/HealthCheck" and metadata.get("api-key") != self.fake.key:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT")
            waiting = self.fake.faults.get(method)
            if waiting:
                fault = waiting.popleft()
                if fault.done:
                    _played(handler.unary_unary, request, context)
                time.sleep(fault.slow)
                context.set_trailing_metadata(tuple(fault.trailers))
                context.abort(fault.code, fault.details)
            return _played(handler.unary_unary, request, context)

        return grpc.unary_unary_rpc_method_handler(
            answer, request_deserializer=read, response_serializer=handler.response_serializer
        )


def _played(method: Any, request: Any, context: grpc.ServicerContext) -> Any:
    """The answer of local mode; its errors as the server's."""
    try:
        return method(request, context)
    except ValueError as error:
        missing = "not found" in str(error)
        text = f"Not found: {error}" if missing else f"Wrong input: {error}"
        context.abort(grpc.StatusCode.NOT_FOUND if missing else grpc.StatusCode.INVALID_ARGUMENT, text)


class _Health(q.QdrantServicer):  # type: ignore[misc]  # generated without types
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def HealthCheck(self, request: Any, context: Any) -> q.HealthCheckReply:
        return q.HealthCheckReply(title="qdrant - vector search engine", version=self.fake.version)


class _Collections(q.CollectionsServicer):  # type: ignore[misc]  # generated without types
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def List(self, request: Any, context: Any) -> q.ListCollectionsResponse:
        with self.fake.lock:
            return q.ListCollectionsResponse(
                collections=[q.CollectionDescription(name=name) for name in self.fake.created]
            )

    def Create(self, request: q.CreateCollection, context: Any) -> q.CollectionOperationResponse:
        name = request.collection_name
        with self.fake.lock:
            if name in self.fake.created:
                context.abort(
                    grpc.StatusCode.ALREADY_EXISTS, f"Wrong input: Collection `{name}` already exists!"
                )
            vectors = GrpcToRest.convert_vectors_config(request.vectors_config)
            sparse = GrpcToRest.convert_sparse_vector_config(request.sparse_vectors_config)
            self.fake.local.create_collection(
                name, vectors_config=local(vectors), sparse_vectors_config=sparse or None
            )
            self.fake.created[name] = request
            return q.CollectionOperationResponse(result=True)

    def Delete(self, request: Any, context: Any) -> q.CollectionOperationResponse:
        with self.fake.lock:
            there = self.fake.created.pop(request.collection_name, None) is not None
            if there:
                self.fake.local.delete_collection(request.collection_name)
            return q.CollectionOperationResponse(result=there)

    def Update(self, request: q.UpdateCollection, context: Any) -> q.CollectionOperationResponse:
        with self.fake.lock:
            self._there(request.collection_name, context)
            config = self.fake.created[request.collection_name]
            config.hnsw_config.MergeFrom(request.hnsw_config)
            config.optimizers_config.MergeFrom(request.optimizers_config)
            kind = request.quantization_config.WhichOneof("quantization")
            if kind == "disabled":
                config.ClearField("quantization_config")
            elif kind is not None:
                chosen = getattr(request.quantization_config, kind)
                getattr(config.quantization_config, kind).CopyFrom(chosen)
            for name, diff in request.vectors_config.params_map.map.items():
                vector = config.vectors_config.params_map.map[name] if name else config.vectors_config.params
                vector.hnsw_config.MergeFrom(diff.hnsw_config)
            for key in request.metadata:
                config.metadata[key].CopyFrom(request.metadata[key])
            return q.CollectionOperationResponse(result=True)

    def Get(self, request: Any, context: Any) -> q.GetCollectionInfoResponse:
        name = request.collection_name
        with self.fake.lock:
            self._there(name, context)
            created = self.fake.created[name]
            points = self.fake.local.count(name).count
        info = q.CollectionInfo(points_count=points, segments_count=1)
        info.status = self.fake.collection_statuses.popleft() if self.fake.collection_statuses else 1
        if self.fake.optimizer_error:
            info.optimizer_status.error = self.fake.optimizer_error
        else:
            info.optimizer_status.ok = True
        config = info.config
        config.params.vectors_config.CopyFrom(created.vectors_config)
        if created.HasField("sparse_vectors_config"):
            config.params.sparse_vectors_config.CopyFrom(created.sparse_vectors_config)
        config.params.shard_number = created.shard_number or 1
        config.params.on_disk_payload = created.on_disk_payload
        config.params.replication_factor = created.replication_factor or 1
        config.params.write_consistency_factor = created.write_consistency_factor or 1
        config.hnsw_config.m, config.hnsw_config.ef_construct = 16, 100
        config.hnsw_config.full_scan_threshold = 10_000
        config.hnsw_config.MergeFrom(created.hnsw_config)
        config.optimizer_config.deleted_threshold = 0.2
        config.optimizer_config.vacuum_min_vector_number = 1000
        config.optimizer_config.default_segment_number = 0
        config.optimizer_config.indexing_threshold = 10_000
        config.optimizer_config.flush_interval_sec = 5
        config.optimizer_config.MergeFrom(created.optimizers_config)
        config.wal_config.wal_capacity_mb, config.wal_config.wal_segments_ahead = 32, 0
        if created.HasField("quantization_config"):
            config.quantization_config.CopyFrom(created.quantization_config)
        if created.HasField("strict_mode_config"):
            config.strict_mode_config.CopyFrom(created.strict_mode_config)
        for key in created.metadata:
            config.metadata[key].CopyFrom(created.metadata[key])
        graphs = [
            vector.hnsw_config.m if vector.hnsw_config.HasField("m") else config.hnsw_config.m
            for vector in created.vectors_config.params_map.map.values()
        ] or [config.hnsw_config.m]
        info.indexed_vectors_count = points * sum(m > 0 for m in graphs)
        for field, kind in self.fake.indexes.get(name, {}).items():
            info.payload_schema[field].data_type = _PAYLOAD_TYPES[kind]
        return q.GetCollectionInfoResponse(result=info)

    def _there(self, name: str, context: Any) -> None:
        if name not in self.fake.created:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!")


_PAYLOAD_TYPES = {
    q.FieldType.FieldTypeKeyword: q.PayloadSchemaType.Keyword,
    q.FieldType.FieldTypeInteger: q.PayloadSchemaType.Integer,
    q.FieldType.FieldTypeFloat: q.PayloadSchemaType.Float,
    q.FieldType.FieldTypeBool: q.PayloadSchemaType.Bool,
}


class _Points(q.PointsServicer):  # type: ignore[misc]  # generated without types
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def _done(self) -> q.PointsOperationResponse:
        waiting = self.fake.update_statuses
        status = waiting.popleft() if waiting else q.UpdateStatus.Completed
        return q.PointsOperationResponse(result=q.UpdateResult(operation_id=1, status=status))

    def Upsert(self, request: q.UpsertPoints, context: Any) -> q.PointsOperationResponse:
        strict = self.fake.created.get(request.collection_name, q.CreateCollection()).strict_mode_config
        if strict.enabled and 0 < strict.upsert_max_batchsize < len(request.points):
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Bad request: Upsert limit exceeded: {len(request.points)} > {strict.upsert_max_batchsize}",
            )
        points = [GrpcToRest.convert_point_struct(point) for point in request.points]
        with self.fake.lock:
            if request.collection_name in self.fake.created:
                store(points, self.fake.vectors(request.collection_name))
            self.fake.local.upsert(request.collection_name, points)
            return self._done()

    def Delete(self, request: q.DeletePoints, context: Any) -> q.PointsOperationResponse:
        with self.fake.lock:
            selector = GrpcToRest.convert_points_selector(request.points)
            self.fake.local.delete(request.collection_name, selector)
            return self._done()

    def CreateFieldIndex(self, request: Any, context: Any) -> q.PointsOperationResponse:
        with self.fake.lock:
            self.fake.local.get_collection(request.collection_name)
            fields = self.fake.indexes.setdefault(request.collection_name, {})
            fields[request.field_name] = request.field_type
            return self._done()

    def QueryBatch(self, request: q.QueryBatchPoints, context: Any) -> q.QueryBatchResponse:
        strict = self.fake.created.get(request.collection_name, q.CreateCollection()).strict_mode_config
        if strict.enabled and 0 < strict.search_max_batchsize < len(request.query_points):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Bad request: Search batch limit exceeded")
        asked = [GrpcToRest.convert_query_points(query) for query in request.query_points]
        with self.fake.lock:
            for query in asked if request.collection_name in self.fake.created else []:
                ask(query, self.fake.vectors(request.collection_name))
            answers = self.fake.local.query_batch_points(request.collection_name, asked)
        return q.QueryBatchResponse(
            result=[
                q.BatchResult(
                    result=[
                        q.ScoredPoint(
                            id=RestToGrpc.convert_extended_point_id(point.id),
                            payload=payload_to_grpc(point.payload or {}),
                            score=point.score,
                        )
                        for point in answer.points
                    ]
                )
                for answer in answers
            ]
        )

    def Get(self, request: q.GetPoints, context: Any) -> q.GetResponse:
        with self.fake.lock:
            records = self.fake.local.retrieve(
                request.collection_name,
                [GrpcToRest.convert_point_id(id) for id in request.ids],
                with_payload=GrpcToRest.convert_with_payload_selector(request.with_payload),
                with_vectors=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
            )
        return q.GetResponse(result=map(self._record, records))

    def Scroll(self, request: q.ScrollPoints, context: Any) -> q.ScrollResponse:
        with self.fake.lock:
            records, after = self.fake.local.scroll(
                request.collection_name,
                scroll_filter=GrpcToRest.convert_filter(request.filter)
                if request.HasField("filter")
                else None,
                limit=request.limit,
                offset=GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None,
                with_payload=GrpcToRest.convert_with_payload_selector(request.with_payload),
                with_vectors=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
            )
        return q.ScrollResponse(
            result=map(self._record, records),
            next_page_offset=None if after is None else RestToGrpc.convert_extended_point_id(after),
        )

    def Count(self, request: q.CountPoints, context: Any) -> q.CountResponse:
        with self.fake.lock:
            found = self.fake.local.count(
                request.collection_name,
                GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None,
            )
        return q.CountResponse(result=q.CountResult(count=found.count))

    def _record(self, record: models.Record) -> q.RetrievedPoint:
        point = q.RetrievedPoint(
            id=RestToGrpc.convert_extended_point_id(record.id), payload=payload_to_grpc(record.payload or {})
        )
        if isinstance(record.vector, dict):
            for name, vector in record.vector.items():
                self._fill(point.vectors.vectors.vectors[name], vector)
        elif record.vector is not None:
            self._fill(point.vectors.vector, record.vector)
        return point

    def _fill(self, output: Any, vector: Any) -> None:
        if isinstance(vector, models.SparseVector):
            output.sparse.CopyFrom(q.SparseVector(values=vector.values, indices=vector.indices))
            return
        # servers before 1.16 answer with the field that is called deprecated since 1.12
        old = tuple(map(int, self.fake.version.split(".")[:2])) < (1, 16)
        (output.data if old else output.dense.data).extend(vector)


def free_port() -> int:
    """A port on which nothing listens now."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])
