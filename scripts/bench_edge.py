"""Qdrant Edge through vecbridge, against the same work through bare qdrant_edge."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import qdrant_edge as qe
from numpy.typing import NDArray

import vecbridge
from vecbridge.types import Index, Layout

Floats = NDArray[np.float32]
BATCH = 1000
EF = 128


def load_by_hand(
    folder: Path, vectors: Floats, documents: list[str], metadata: list[dict[str, Any]]
) -> qe.EdgeShard:
    """A shard with these points, as its own documentation writes them."""
    shard = qe.EdgeShard.create(
        str(folder),
        qe.EdgeConfig(
            vectors=qe.EdgeVectorParams(size=vectors.shape[1], distance=qe.Distance.Cosine),
            hnsw_config=qe.HnswIndexConfig(m=16, ef_construct=64, full_scan_threshold=10_000),
        ),
    )
    for at in range(0, len(vectors), BATCH):
        shard.update(
            qe.UpdateOperation.upsert_points(
                [
                    qe.Point(
                        UUID(int=n),
                        vectors[n],
                        {"id": str(n), "document": documents[n], "metadata": metadata[n]},
                    )
                    for n in range(at, min(at + BATCH, len(vectors)))
                ]
            )
        )
    shard.flush()
    return shard


def search_by_hand(shard: qe.EdgeShard, query: Floats) -> list[qe.ScoredPoint]:
    """The ten nearest with their payloads."""
    return shard.query(
        qe.QueryRequest(
            limit=10, query=qe.Query.Nearest(query), params=qe.SearchParams(hnsw_ef=EF), with_payload=True
        )
    )


LAYOUT = Layout(index=Index("hnsw", ef_search=EF))


def load(
    url: str, vectors: Floats, ids: list[str], documents: list[str], metadata: list[dict[str, Any]]
) -> None:
    """The same points through vecbridge."""
    with vecbridge.connect(url) as store:
        papers = store.create("bench", dim=vectors.shape[1], layout=LAYOUT)
        for at in range(0, len(vectors), BATCH):
            part = slice(at, at + BATCH)
            papers.upsert(ids[part], vectors[part], documents=documents[part], metadata=metadata[part])


def median(
    work: Callable[[Floats], object], queries: Floats, timed: Callable[[Callable[[], object]], float]
) -> float:
    """Median seconds of `work` over the queries."""
    return statistics.median(timed(lambda q=q: work(q)) for q in queries)
