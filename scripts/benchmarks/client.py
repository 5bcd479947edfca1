"""What an upload to Qdrant costs on the client's side, through vecbridge and otherwise.

Run as a program, this is the sink that uploads go to: a gRPC server in a process of its own, which answers
like Qdrant, keeps nothing, and whose processor time therefore counts for nobody.
"""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as q

from vecbridge.backends.qdrant.address import parse
from vecbridge.backends.qdrant.engine import Points
from vecbridge.backends.qdrant.grpc import connect

from . import peers
from .bench import BATCH, Bench, size
from .measure import Line, most, pairs, turns
from .rows import Rows, made

NAME = "bench"
# uploads in one measurement: one alone is too short for the clock of a busy machine
TIMES = 5
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def client(bench: Bench) -> list[Line]:
    """Processor time of this process for an upload to Qdrant by gRPC, against other ways to do the same.

    There is no Qdrant server here. What differs between clients is what they cost on their own side: so the
    server is a sink in another process, which answers like Qdrant and keeps nothing. The engine that
    qdrant-client has inside (":memory:") is made of Python and numpy, and says nothing of Qdrant's speed.
    """
    lines = []
    for dim in bench.wide(3584):
        lines += _uploads(bench, made(min(bench.many(BATCH), BATCH), dim), dim)
    return lines


def _uploads(bench: Bench, rows: Rows, dim: int) -> list[Line]:
    ids = [str(uuid.uuid5(uuid.NAMESPACE_OID, id)) for id in rows.ids]
    payloads = [
        {"id": id, "document": document, "metadata": entry}
        for id, document, entry in zip(rows.ids, rows.documents, rows.metadata, strict=True)
    ]
    vectors = rows.vectors
    what = f"client CPU of an upload by gRPC, {size(len(rows), dim)}"
    with (
        sink(dim) as port,
        closing(connect(parse(f"qdrant://127.0.0.1:{port}"))) as engine,
        closing(
            QdrantClient(
                host="127.0.0.1", grpc_port=port, prefer_grpc=True, timeout=60, check_compatibility=False
            )
        ) as theirs,
    ):

        def ours(turn: int) -> float:
            return busy(lambda: engine.upsert(NAME, Points(ids, {"": vectors}, payloads)))

        def structs(turn: int) -> float:
            return busy(
                lambda: theirs.upsert(
                    NAME,
                    [
                        models.PointStruct(id=id, vector=vector.tolist(), payload=payload)
                        for id, vector, payload in zip(ids, vectors, payloads, strict=True)
                    ],
                    wait=True,
                )
            )

        def collection(turn: int) -> float:
            return busy(lambda: theirs.upload_collection(NAME, vectors, payload=payloads, ids=ids, wait=True))

        found = turns({"ours": ours, "structs": structs, "collection": collection}, bench.rounds)
        lines = [
            Line("client", what, "ms", against, pairs(found, "ours", key, scale=1e3), goal=most(goal))
            for key, against, goal in (
                ("structs", "qdrant_client.upsert(PointStruct)", 0.1),
                ("collection", "qdrant_client.upload_collection(ndarray)", 0.5),
            )
        ]
        for peer in (one for one in peers.PEERS if bench.peers and one.beside == "client"):
            line = Line("client", what, "ms", peer.name)
            try:
                with peers.opened(peer, f"127.0.0.1:{port}", bench.folder, dim) as one:
                    prepared = one.prepare(replace(rows, ids=ids))
                    sides = {
                        "ours": ours,
                        "peer": lambda turn, one=one, given=prepared: busy(lambda: one.add(given)),
                    }
                    found = turns(sides, min(bench.rounds, 3))
            except peers.Unusable as error:
                lines.append(replace(line, why=str(error)))
            else:
                lines.append(replace(line, pairs=pairs(found, "ours", "peer", scale=1e3)))
    return lines


def busy(work: Callable[[], object]) -> float:
    """Seconds of processor time that `work` takes in this process, all its threads together."""
    start = time.process_time()
    for _ in range(TIMES):
        work()
    return (time.process_time() - start) / TIMES


@contextmanager
def sink(dim: int) -> Iterator[int]:
    """The port of a sink in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, str(dim)]
    home = Path(__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=home) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


class _Sink(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio ships no types
    """Answers without looking at what came."""

    def __init__(self, dim: int) -> None:
        completed = q.UpdateResult(operation_id=1, status=q.UpdateStatus.Completed)
        config = q.CollectionConfig(
            params=q.CollectionParams(
                shard_number=1,
                vectors_config=q.VectorsConfig(params=q.VectorParams(size=dim, distance=q.Distance.Cosine)),
            ),
            hnsw_config=q.HnswConfigDiff(m=0, ef_construct=100, full_scan_threshold=10_000),
            optimizer_config=q.OptimizersConfigDiff(
                deleted_threshold=0.2,
                vacuum_min_vector_number=1000,
                default_segment_number=0,
                indexing_threshold=10_000,
                flush_interval_sec=5,
            ),
            wal_config=q.WalConfigDiff(wal_capacity_mb=32, wal_segments_ahead=0),
        )
        info = q.CollectionInfo(
            status=q.CollectionStatus.Green, optimizer_status=q.OptimizerStatus(ok=True), config=config
        )
        self._answers = {
            "/qdrant.Qdrant/HealthCheck": q.HealthCheckReply(title="sink", version="1.19.0"),
            "/qdrant.Points/Upsert": q.PointsOperationResponse(result=completed),
            "/qdrant.Collections/CollectionExists": q.CollectionExistsResponse(
                result=q.CollectionExists(exists=True)
            ),
            "/qdrant.Points/CreateFieldIndex": q.PointsOperationResponse(result=completed),
            "/qdrant.Collections/Get": q.GetCollectionInfoResponse(result=info),
        }

    def service(self, details: Any) -> Any:
        answer = self._answers.get(details.method)
        if answer is None:
            return None
        raw = answer.SerializeToString()
        return grpc.unary_unary_rpc_method_handler(lambda request, context: raw)


def serve() -> None:
    """Be the sink until killed."""
    server = grpc.server(ThreadPoolExecutor(4), handlers=[_Sink(int(sys.argv[1]))], options=UNLIMITED)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    serve()
