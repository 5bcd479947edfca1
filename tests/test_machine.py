"""Random calls against a dict, on every kind of store."""

from __future__ import annotations

import itertools
from pathlib import Path

from places import schemas

from vecbridge.testing.machine import play
from vecbridge.types import Index, Layout

POSTGRES = {
    "flat": Layout(inline=True),
    "hnsw": Layout(index=Index("hnsw", ef_search=100)),
    "half": Layout(index=Index("hnsw", "float16", ef_search=100), oversample=2),
    "ivfflat": Layout(index=Index("ivfflat", lists=2, probes=2)),
}


def test_flat_holds_what_a_dict_holds(tmp_path: Path) -> None:
    numbers = itertools.count()
    play(lambda: f"flat:{tmp_path}/{next(numbers)}", examples=40)


EDGE = {
    "flat": Layout(),
    "hnsw": Layout(index=Index("hnsw", ef_search=100)),
    "int8": Layout(index=Index("hnsw", "int8", ef_search=100), oversample=4),
}


def test_edge_holds_what_a_dict_holds(tmp_path: Path) -> None:
    numbers = itertools.count()
    play(lambda: f"qdrant:{tmp_path}/{next(numbers)}", layouts=EDGE, examples=20)


def test_postgresql_holds_what_a_dict_holds(pg18: str) -> None:
    with schemas(pg18) as place:
        play(place, layouts=POSTGRES)


def test_an_old_pgvector_holds_what_a_dict_holds(pg062: str) -> None:
    with schemas(pg062) as place:
        play(place, layouts={name: POSTGRES[name] for name in ("flat", "hnsw", "ivfflat")}, examples=10)
