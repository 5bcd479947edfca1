"""What is estimated of a collection beside what it is: bytes, and seconds to build and to search it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from statistics import median

import vecbridge
from vecbridge import backends, calibrate
from vecbridge.data import GLOSSES
from vecbridge.explain import describe
from vecbridge.sizes import estimate
from vecbridge.types import Element, Index, Layout, Shorten

from .bench import BATCH, Bench
from .measure import AnyLine, told
from .vectors import real_vectors

ROWS = 5_000  # of each kind, at most
QUERIES = 60
K = 10
SIZED, TIMED = 1.1, 1.5
# a store takes room in steps of up to a megabyte, whatever there is to store
FIXED = 8 << 20
CALIBRATED = 40.0  # seconds for a run
BRIEF = 5.0  # the same for so few rows that little is to be learnt
ROUNDS, TOGETHER = 3, 15  # of searches, and searches in a row whose median counts


@dataclass(frozen=True)
class Cost:
    """Estimates against what they are of, as ratios; None where there is too little to compare."""

    what: str
    table: float | None
    index: float | None
    build: float | None
    query: float

    def __str__(self) -> str:
        sides = (("table", self.table), ("index", self.index), ("build", self.build), ("query", self.query))
        return f"{self.what}: " + ", ".join(f"{name} {one:.2f}" for name, one in sides if one is not None)


def costs(bench: Bench) -> list[AnyLine]:
    """Bytes and seconds, estimated after a short run on the store, of collections that are built then."""
    known = real_vectors.texts(bench.glosses or GLOSSES)
    rows = min(bench.many(ROWS), ROWS, len(known) - QUERIES)
    # as many directions as texts allow
    dim = min(3_584, (rows + QUERIES) * 7 // 10)
    keep = bench.keep or bench.folder / "texts"

    def kinds() -> Iterator[real_vectors.Vectors]:
        glosses = str(bench.glosses or GLOSSES)
        yield real_vectors.cached(
            keep,
            lambda: real_vectors.wordllama(known, rows=rows, queries=QUERIES),
            "wordllama",
            glosses,
            rows,
        )
        yield real_vectors.cached(
            keep,
            lambda: real_vectors.lsa(known, rows=rows, queries=QUERIES, dim=dim),
            "lsa",
            glosses,
            rows,
            dim,
        )

    lines: list[AnyLine] = []
    for place in ("pgvector", "edge"):
        found = [one for vectors in kinds() for one in _costs(bench, place, vectors)]
        for name, values, most in (
            ("bytes of the table", [one.table for one in found], SIZED),
            ("bytes of the index", [one.index for one in found], SIZED),
            ("seconds to build", [one.build for one in found], TIMED),
            ("seconds of one search", [one.query for one in found], TIMED),
        ):
            lines += _line(place, name, found, values, most)
    return lines


def layouts(place: str, dim: int) -> Iterator[Layout]:
    """No index, and graphs over what the place can search by."""
    whole: tuple[Element, ...] = ("float16", "bit") if place == "pgvector" else ("float32", "int8", "turbo2")
    short: Element = "float16" if place == "pgvector" else "float32"
    yield Layout()
    for element in whole:
        oversample = 1 if element == "float32" else 4
        yield Layout(index=Index("hnsw", element, ef_search=200), oversample=oversample)
    for shorten in (Shorten("truncate", dim // 4), Shorten("pca", dim // 8)):
        yield Layout(index=Index("hnsw", short, shorten, ef_search=200), oversample=4)


def _costs(bench: Bench, place: str, vectors: real_vectors.Vectors) -> Iterator[Cost]:
    url = bench.url(place)
    with vecbridge.connect(url) as store:
        # just before, as machines have good days and bad ones
        speeds = calibrate.calibrate(store, seconds=CALIBRATED if len(vectors.rows) > 1_000 else BRIEF)
    for layout in layouts(place, vectors.dim):
        with vecbridge.connect(url) as store:
            papers = store.create(
                "costs",
                dim=vectors.dim,
                layout=layout,
                nested=(vectors.dim // 4,),
                sample=vectors.rows,
            )
            for at in range(0, len(vectors.rows), BATCH):
                part = vectors.rows[at : at + BATCH]
                papers.upsert([f"{at + n:016d}" for n in range(len(part))], part)
            start = time.perf_counter()
            papers.build_index()
            build = time.perf_counter() - start
            query = _query(url, vectors)
            space, limits = papers.space, store.limits
        # opened anew: what has been written may lie in a log until then
        with vecbridge.connect(url) as store:
            real = store.open("costs").sizes()
            store.drop("costs")
        guess = estimate(space, layout, rows=len(vectors.rows), limits=limits, speeds=speeds)
        one = Cost(
            f"{vectors.name} on {place}, {describe(layout, vectors.dim)}",
            guess.table_bytes / real.table if real.table > FIXED else None,
            guess.index_bytes / real.index if real.index > FIXED else None,
            None if layout.index is None else guess.build_seconds / build,
            guess.query_seconds / query,
        )
        bench.tell(f"  {one}")
        yield one


def _query(url: str, vectors: real_vectors.Vectors) -> float:
    """Seconds of one search without what the front takes: the best median of several rounds.

    As in the calibration: what the machine's other guests take is noise on both sides.
    """
    medians = []
    backend = backends.connect(url)
    try:
        with closing(backend.open("costs")) as table:
            exact = table.manifest.layout.index is None
            for _ in range(ROUNDS):
                for at in range(0, len(vectors.queries), TOGETHER):
                    taken = []
                    for query in vectors.queries[at : at + TOGETHER]:
                        asked = query[None]
                        short = table.manifest.projected(asked)
                        start = time.perf_counter()
                        table.search(asked, short, k=K, where=None, exact=exact)
                        taken.append(time.perf_counter() - start)
                    medians.append(median(taken))
    finally:
        backend.close()
    return min(medians)


def _line(
    place: str, name: str, found: Sequence[Cost], values: Sequence[float | None], most: float
) -> list[AnyLine]:
    known = [(value, one) for value, one in zip(values, found, strict=True) if value is not None]
    if not known:
        return []
    worst, one = max(known, key=lambda pair: max(pair[0], 1 / pair[0]))
    ratios = [value for value, _ in known]
    line = {
        "job": f"{name}, {place}, estimated against real, {len(known)} collections",
        "ours": f"{min(ratios):.2f} to {max(ratios):.2f} times, {median(ratios):.2f} in the middle",
        "by_hand": f"the farthest: {one.what}",
        "ratio": None,
        "goal": f"within a factor of {most}",
        "met": 1 / most <= worst <= most,
    }
    return [told("costs", line)]
