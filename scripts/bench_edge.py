"""Qdrant Edge through vecbridge, beside the same work through bare qdrant_edge; scripts/bench.py calls it."""

from __future__ import annotations

import itertools
import statistics
import time
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
LAYOUT = Layout(index=Index("hnsw", ef_search=EF))


def rows(
    folder: Path,
    vectors: Floats,
    ids: list[str],
    documents: list[str],
    metadata: list[dict[str, Any]],
    *,
    paired: Callable[[Callable[[], float], Callable[[], float], int], tuple[float, float, float]],
    rounds: int,
) -> list[dict[str, Any]]:
    """Lines of the table: loading into Edge, and searching its graph."""
    numbers = itertools.count()
    places: list[Path] = []
    shards: list[qe.EdgeShard] = []

    def ours() -> float:
        place = folder / f"ours-{next(numbers)}"
        places.append(place)
        with vecbridge.connect(f"qdrant:{place}") as store:
            papers = store.create("bench", dim=vectors.shape[1], layout=LAYOUT)
            start = time.perf_counter()
            for at in range(0, len(vectors), BATCH):
                part = slice(at, at + BATCH)
                papers.upsert(ids[part], vectors[part], documents=documents[part], metadata=metadata[part])
            return time.perf_counter() - start

    def by_hand() -> float:
        for shard in shards:
            shard.close()
        place = folder / f"hand-{next(numbers)}"
        shard = qe.EdgeShard.create(
            str(place),
            qe.EdgeConfig(
                vectors=qe.EdgeVectorParams(size=vectors.shape[1], distance=qe.Distance.Cosine),
                hnsw_config=qe.HnswIndexConfig(m=16, ef_construct=64, full_scan_threshold=10_000),
            ),
        )
        shards[:] = [shard]
        start = time.perf_counter()
        for at in range(0, len(vectors), BATCH):
            some = range(at, min(at + BATCH, len(vectors)))
            shard.update(
                qe.UpdateOperation.upsert_points(
                    [
                        qe.Point(
                            UUID(int=n),
                            vectors[n].data,  # as a list or an array it takes four times as long
                            {"id": ids[n], "document": documents[n], "metadata": metadata[n]},
                        )
                        for n in some
                    ]
                )
            )
        shard.flush()
        return time.perf_counter() - start

    ours_s, hand_s, slower = paired(ours, by_hand, rounds)
    size = f"{len(vectors):,} x {vectors.shape[1]:,}"
    found = [
        {
            "job": f"Edge upsert, {size}",
            "ours": f"{len(vectors) / ours_s:,.0f} rows/s",
            "by_hand": f"{len(vectors) / hand_s:,.0f} rows/s (bare qdrant_edge, its fastest input)",
            "ratio": 1 / slower,
            "goal": ">= 0.9 of the rows/s",
            "met": 1 / slower >= 0.9,
        }
    ]
    (shard,) = shards
    while shard.optimize():
        pass
    return found + _searching(f"qdrant:{places[-1]}", shard, vectors, paired=paired, rounds=rounds)


def _searching(
    url: str,
    shard: qe.EdgeShard,
    vectors: Floats,
    *,
    paired: Callable[[Callable[[], float], Callable[[], float], int], tuple[float, float, float]],
    rounds: int,
) -> list[dict[str, Any]]:
    generator = np.random.default_rng(1)
    queries = vectors[generator.choice(len(vectors), 200, replace=False)]
    queries = queries + 0.01 * generator.standard_normal(queries.shape, dtype=np.float32)
    params = qe.SearchParams(hnsw_ef=EF)

    def p50(work: Callable[[Floats], object]) -> float:
        taken = []
        for query in queries:
            start = time.perf_counter()
            work(query)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def bare(query: Floats) -> object:
        return shard.query(
            qe.QueryRequest(limit=10, query=qe.Query.Nearest(query), params=params, with_payload=True)
        )

    with vecbridge.connect(url) as store:
        papers = store.open("bench")
        start = time.perf_counter()
        papers.build_index()
        build = time.perf_counter() - start
        for work in (papers.search, bare):
            p50(work)
        ours_s, hand_s, ratio = paired(lambda: p50(papers.search), lambda: p50(bare), rounds)
        report = papers.evaluate(sample=50)
    shard.close()
    return [
        {
            "job": f"Edge search, p50, {len(vectors):,} x {vectors.shape[1]:,}, HNSW",
            "ours": f"{ours_s * 1e3:.2f} ms",
            "by_hand": f"{hand_s * 1e3:.2f} ms (bare qdrant_edge)",
            "ratio": ratio,
            "goal": "<= 1.15 times",
            "met": ratio <= 1.15,
        },
        {
            "job": "  its recall@10, and exact p50",
            "ours": f"{report.recall:.3f}",
            "by_hand": f"{report.exact_p50_ms:.1f} ms exact",
            "ratio": None,
            "goal": ">= 0.95",
            "met": report.recall >= 0.95,
        },
        {
            "job": "  its index, built in a process of its own",
            "ours": f"{build:.1f} s",
            "by_hand": "",
            "ratio": None,
            "goal": "",
            "met": True,
        },
    ]
