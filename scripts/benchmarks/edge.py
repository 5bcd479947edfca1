"""Qdrant Edge by hand: bare qdrant_edge, its fastest input, its log synchronised after each batch."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import numpy as np
import qdrant_edge as qe
from numpy.typing import NDArray

from .bench import EF
from .rows import SHARES, K, Rows

Floats = NDArray[np.float32]


def shard(path: Path, dim: int, *, filters: bool = False) -> qe.EdgeShard:
    """A new shard, with an index on each field that filters ask for."""
    made = qe.EdgeShard.create(
        str(path),
        qe.EdgeConfig(
            vectors=qe.EdgeVectorParams(size=dim, distance=qe.Distance.Cosine),
            hnsw_config=qe.HnswIndexConfig(m=16, ef_construct=64, full_scan_threshold=10_000),
        ),
    )
    if filters:
        for field in SHARES:
            made.update(
                qe.UpdateOperation.create_field_index(f"metadata.{field}", qe.PayloadSchemaType.Keyword)
            )
    return made


def upsert(to: qe.EdgeShard, path: Path, rows: Rows, first: int) -> None:
    """Insert or replace rows, the first of which has this number; durable afterwards."""
    to.update(
        qe.UpdateOperation.upsert_points(
            [
                qe.Point(
                    UUID(int=first + n),
                    rows.vectors[n].data,  # as a list or an array it takes four times as long
                    {"id": rows.ids[n], "document": rows.documents[n], "metadata": rows.metadata[n]},
                )
                for n in range(len(rows))
            ]
        )
    )
    for log in (path / "wal").glob("open-*"):
        descriptor = os.open(log, os.O_RDONLY)
        getattr(os, "fdatasync", os.fsync)(descriptor)
        os.close(descriptor)


def request(query: Floats, *, field: str | None = None, acorn: bool = False) -> qe.QueryRequest:
    """The k nearest, with what is stored beside them."""
    condition = None
    if field is not None:
        condition = qe.Filter(must=[qe.FieldCondition(f"metadata.{field}", match=qe.MatchValue("yes"))])
    helped = qe.AcornSearchParams(enable=True) if acorn else None
    return qe.QueryRequest(
        limit=K,
        query=qe.Query.Nearest(query),
        filter=condition,
        params=qe.SearchParams(hnsw_ef=EF, acorn=helped),
        with_payload=True,
    )


def ids(points: list[qe.ScoredPoint]) -> list[str]:
    """Our ids of what was found."""
    return [(point.payload or {})["id"] for point in points]
