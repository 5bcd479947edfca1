"""Copies from one store to another, beside loading the same rows there from memory."""

from __future__ import annotations

import statistics
from time import perf_counter

import vecbridge
from vecbridge.types import Layout

from .bench import BATCH, Bench, size
from .measure import Line, pairs, timed, turns
from .rows import Rows, made

SOURCE, COPY = "from", "to"
WAYS = (("flat", "pgvector"), ("pgvector", "edge"), ("edge", "flat"))
# nothing is indexed: that takes as long on both sides
EXACT = Layout()


def copy(bench: Bench) -> list[Line]:
    """`vecbridge.copy`, comparing included, beside upserts of rows that are in memory."""
    (*_, dim) = bench.wide(3584)
    rows = made(bench.many(10_000), dim)
    lines = []
    for origin, scheme in WAYS:
        bench.tell(f"copying {size(len(rows), dim)}, {origin} to {scheme}")
        with vecbridge.connect(bench.url(origin)) as there, vecbridge.connect(bench.url(scheme)) as here:
            source = _loaded(there, SOURCE, rows)
            lines.append(_way(bench, source, here, rows, f"{origin} to {scheme}, {size(len(rows), dim)}"))
            there.drop(SOURCE)
    return lines


def _way(bench: Bench, source: vecbridge.Collection, to: vecbridge.Store, rows: Rows, what: str) -> Line:
    moved: list[float] = []

    def ours(turn: int) -> float:
        begun, at = perf_counter(), 0.0

        def tell(stage: str, done: int, total: int | None) -> None:
            nonlocal at
            if stage == "copying":
                at = perf_counter()

        took = timed(lambda: vecbridge.copy(source, to, name=COPY, layout=EXACT, progress=tell))
        if turn >= 0:
            moved.append(len(rows) / (at - begun))
        _drop(to, rows)
        return took

    def by_hand(turn: int) -> float:
        took = timed(lambda: _loaded(to, COPY, rows))
        _drop(to, rows)
        return took

    found = turns({"ours": ours, "hand": by_hand}, bench.rounds)
    return Line(
        "copy",
        what,
        "rows/s",
        "upserts from memory",
        pairs(found, "ours", "hand", per=len(rows)),
        more=True,
        note=f"{statistics.median(moved):,.0f} rows/s until all were written, then they were compared",
    )


def _loaded(store: vecbridge.Store, name: str, rows: Rows) -> vecbridge.Collection:
    papers = store.create(name, dim=rows.vectors.shape[1], layout=EXACT, rows=len(rows))
    for part in rows.batches(BATCH):
        papers.upsert(part.ids, part.vectors, documents=part.documents, metadata=part.metadata)
    return papers


def _drop(store: vecbridge.Store, rows: Rows) -> None:
    assert store.open(COPY).count() == len(rows)
    store.drop(COPY)
