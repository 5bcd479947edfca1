"""What Qdrant costs through vecbridge and by hand: the job `qdrant` of scripts/bench.

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
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as q

from vecbridge.backends.qdrant.address import parse
from vecbridge.backends.qdrant.engine import Points
from vecbridge.backends.qdrant.grpc import connect

Floats = NDArray[np.float32]
# medians of both, and of their ratio pair by pair
Paired = Callable[[Callable[[], float], Callable[[], float], int], tuple[float, float, float]]
NAME = "bench"
ROWS = 1000
# uploads in one measurement: one alone is too short for the clock of a busy machine
TIMES = 5
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def rows(
    vectors: Floats, documents: list[str], metadata: list[dict[str, Any]], *, paired: Paired, rounds: int
) -> list[dict[str, Any]]:
    """The lines of the table that this job fills, as the fields of a `Row`."""
    # Edge beside bare qdrant_edge: its lines come here
    return client_rows(vectors[:ROWS], documents[:ROWS], metadata[:ROWS], paired=paired, rounds=rounds)


def client_rows(
    vectors: Floats, documents: list[str], metadata: list[dict[str, Any]], *, paired: Paired, rounds: int
) -> list[dict[str, Any]]:
    """Processor time of this process for an upload by gRPC, against both ways of the official client."""
    ids = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(row))) for row in range(len(vectors))]
    payloads = [
        {"id": id, "document": document, "metadata": entry}
        for id, document, entry in zip(ids, documents, metadata, strict=True)
    ]
    with (
        sink() as port,
        closing(connect(parse(f"qdrant://127.0.0.1:{port}"))) as engine,
        closing(
            QdrantClient(
                host="127.0.0.1", grpc_port=port, prefer_grpc=True, timeout=60, check_compatibility=False
            )
        ) as client,
    ):

        def ours() -> float:
            return busy(lambda: engine.upsert(NAME, Points(ids, {"": vectors}, payloads)))

        def structs() -> float:
            return busy(
                lambda: client.upsert(
                    NAME,
                    [
                        models.PointStruct(id=id, vector=vector.tolist(), payload=payload)
                        for id, vector, payload in zip(ids, vectors, payloads, strict=True)
                    ],
                    wait=True,
                )
            )

        def collection() -> float:
            return busy(lambda: client.upload_collection(NAME, vectors, payload=payloads, ids=ids, wait=True))

        found = []
        size = f"{len(vectors):,} x {vectors.shape[1]:,}"
        for label, theirs, goal in (
            ("upsert(PointStruct)", structs, 10),
            ("upload_collection(ndarray)", collection, 2),
        ):
            ours()
            theirs()
            ours_s, theirs_s, ratio = paired(ours, theirs, rounds)
            found.append(
                {
                    "job": f"Qdrant upload by gRPC, CPU of the client, {size}",
                    "ours": f"{ours_s * 1e3:.0f} ms",
                    "by_hand": f"{theirs_s * 1e3:.0f} ms (qdrant_client.{label})",
                    "ratio": ratio,
                    "goal": f"<= 1/{goal} of the CPU",
                    "met": ratio <= 1 / goal,
                }
            )
    return found


def busy(work: Callable[[], object]) -> float:
    """Seconds of processor time that `work` takes in this process, all its threads together."""
    start = time.process_time()
    for _ in range(TIMES):
        work()
    return (time.process_time() - start) / TIMES


@contextmanager
def sink() -> Iterator[int]:
    """The port of a sink in a process of its own."""
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


class _Sink(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio ships no types
    """Answers without looking at what came."""

    def __init__(self) -> None:
        completed = q.UpdateResult(operation_id=1, status=q.UpdateStatus.Completed)
        config = q.CollectionConfig(
            params=q.CollectionParams(shard_number=1),
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
    server = grpc.server(ThreadPoolExecutor(4), handlers=[_Sink()], options=UNLIMITED)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    serve()
