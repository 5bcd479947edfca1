"""How fast a place really is: a short run on it.

The run makes collections of its own, of random vectors in two or three dimensions, measures, and drops them.
`calibrations` keeps its result for later plans.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from .errors import CollectionNotFound, Forbidden, InputError
from .sizes import BLOCK, IDS, vector_bytes
from .speeds import HITS, PARALLEL, ROUGH, Rate, Speeds, inserts, visits
from .types import Element, Index, Layout, Progress, Shorten

if TYPE_CHECKING:
    from .collection import Collection
    from .store import Store
    from .types import Floats

LEAST, MOST = 1.0, 3600.0  # seconds that a run may take
# 48 characters with 22 of prefix, 6 of machine, 7 of process, 8 of time, 2 of count: what a name may have
_PREFIX = "vecbridge-calibration"
_NAME = re.compile(rf"{_PREFIX}-([0-9a-f]{{6}})-(\d{{1,7}})-([0-9a-f]{{8}})\d{{1,2}}")
_ABANDONED = 2 * MOST  # seconds after which a collection is nobody's, wherever it was made
_SMALL, _LARGE, _LARGEST = 64, 1024, 3584  # dimensions
_PROBE = 1_000  # rows of the first collection, which tells how large the others may be
_QUERIES, _ROUNDS, _TOGETHER = 15, 4, 5
_BATCH = 1 << 22  # bytes of vectors in one write
# Principal components fall as 1/n^0.3: graphs over such vectors are walked through as many others as over
# embeddings of texts (see `speeds.visits`), where noise without any order takes a half more
_FALL = 0.3
_counted = itertools.count()


def calibrate(
    store: Store, *, seconds: float = 60.0, seed: int = 0, progress: Progress | None = None
) -> Speeds:
    """How fast a store is, measured on it in about so many seconds, for `plan` and `estimate`.

    Collections named vecbridge-calibration-… come and go; those that a killed run left are dropped, too.
    More seconds measure more rows, and more often: of what is measured several times the shortest counts,
    which is what the place does when nobody else keeps it busy. Random vectors, made from `seed`.
    Raises InputError for a store of several places, Forbidden where no collections may be made, and what
    creating, writing, building and searching raise; nothing is left behind then.
    """
    if len(store.places) != 1:
        raise InputError(f"expected one place to calibrate, got {len(store.places)}: {store.url}")
    number = float(seconds) if isinstance(seconds, int | float) and not isinstance(seconds, bool) else 0.0
    if not LEAST <= number <= MOST:
        raise InputError(f"expected {LEAST:.0f} to {MOST:,.0f} seconds to calibrate in, got {seconds!r}")
    backend = store.limits.backend
    sweep(store)
    run = _Run(store, number, seed, progress)
    try:
        times = _SERIES[backend](run)
        # again while there is time for as much once more: noise only ever makes things slower
        while run.left() > run.passed() / run.turns:
            run.turns += 1
            for name, took in _SERIES[backend](run).items():
                times[name] = min(took, times.get(name, took))
    except Forbidden as error:
        raise Forbidden(
            f"calibrating makes collections in {store.url} and drops them again, which this user may not: "
            f"{error}"
        ) from error
    run.tell(number)
    version = f"{backend} {store.limits.version}"
    source = f"measured on {store.url} ({version}) at {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return _fitted(backend, times, run, source)


def sweep(store: Store) -> list[str]:
    """Drop the collections that runs left which were killed; returns their names.

    Those of a run that may still go on stay: its process is alive, or it is on another machine and began
    less than two hours ago.
    """
    gone = []
    for name in store.collections():
        found = _NAME.fullmatch(name)
        if found is None:
            continue
        machine, process, begun = found[1], int(found[2]), int(found[3], 16)
        old = time.time() - begun > _ABANDONED
        if old or (machine == _machine() and not _alive(process)):
            with suppress(CollectionNotFound):  # another run sweeps as well
                store.drop(name)
            gone.append(name)
    return gone


def _machine() -> str:
    return sha256(socket.gethostname().encode("utf-8", "surrogateescape")).hexdigest()[:6]


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True


@dataclass
class _Run:
    """What a run goes by: its clock, its vectors, and the rows that it has time for."""

    store: Store
    seconds: float
    seed: int
    progress: Progress | None
    begun: float = field(default_factory=time.monotonic)
    turns: int = 1
    small: int = 0
    large: int = 0

    def passed(self) -> float:
        return time.monotonic() - self.begun

    def left(self) -> float:
        return self.seconds - self.passed()

    def tell(self, done: float | None = None) -> None:
        if self.progress is not None:
            at = self.passed() if done is None else done
            self.progress("seconds", min(int(at), int(self.seconds)), int(self.seconds))

    def vectors(self, rows: int, dim: int) -> Floats:
        """Unit vectors (rows + queries, dim), always the same."""
        made = np.random.default_rng([self.seed, rows, dim]).standard_normal(
            (rows + _QUERIES, dim), dtype=np.float32
        )
        made *= np.arange(1, dim + 1, dtype=np.float32) ** -_FALL
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        return made

    @contextmanager
    def filled(self, rows: int, dim: int, layout: Layout) -> Iterator[tuple[Collection, Floats]]:
        """A collection of so many rows, and queries for it; dropped at the end in any case."""
        name = f"{_PREFIX}-{_machine()}-{os.getpid()}-{int(time.time()):08x}{next(_counted) % 100}"
        vectors = self.vectors(rows, dim)
        # so that a layout may search prefixes: what they find does not matter here
        nested = (_SMALL,) if dim > _SMALL else None
        collection = self.store.create(name, dim=dim, rows=rows, layout=layout, nested=nested)
        try:
            step = max(_BATCH // (4 * dim), 1)
            for start in range(0, rows, step):
                part = vectors[start : min(start + step, rows)]
                ids = [f"{row:016}" for row in range(start, start + len(part))]
                collection.upsert(ids, part)
                self.tell()
            yield collection, vectors[rows:]
        finally:
            collection.close()
            self.store.drop(name)
            self.tell()


def _built(collection: Collection) -> float:
    start = time.perf_counter()
    collection.build_index()
    return time.perf_counter() - start


def _asked(collection: Collection, queries: Floats, *, k: int = HITS, exact: bool = False) -> float:
    """Seconds of one search: the median of the best of many short runs."""
    medians = []
    for _ in range(_ROUNDS):
        for start in range(0, len(queries), _TOGETHER):
            times = []
            for query in queries[start : start + _TOGETHER]:
                begun = time.perf_counter()
                collection.search(query, k=k, exact=exact)
                times.append(time.perf_counter() - begun)
            medians.append(statistics.median(times))
    return min(medians)


def _graph(element: Element = "float32", *, efc: int = 64) -> Index:
    return Index("hnsw", element, ef_construction=efc, ef_search=_WIDE)


_WIDE = 400
_OVERSAMPLE = 40


def _sized(run: _Run, took: float) -> None:
    """Rows for the other collections: as many as the time allows, judged by what the first one took."""
    if run.small:
        return
    each = took / _PROBE
    run.small = int(min(max(0.12 * run.seconds / each, 2 * _PROBE), PARALLEL - 100))
    run.large = int(min(max(0.08 * run.seconds / each, 500), 4_000))


def _pgvector(run: _Run) -> dict[str, float]:
    times: dict[str, float] = {}
    inline = Layout(inline=True, index=_graph())
    begun = time.perf_counter()
    with run.filled(_PROBE, _SMALL, inline) as (one, queries):
        times["build probe"] = _built(one)
        _sized(run, time.perf_counter() - begun)
        times["scan probe"] = _asked(one, queries, exact=True)
    with run.filled(run.small, _SMALL, inline) as (one, queries):
        times["build small"] = _built(one)
        times["walk small"] = _asked(one, queries)
        times["scan small"] = _asked(one, queries, exact=True)
        times["scan one"] = _asked(one, queries, k=1, exact=True)
    beside = Layout(index=_graph(), oversample=_OVERSAMPLE)
    with run.filled(run.large, _LARGE, beside) as (one, queries):
        times["build large"] = _built(one)
        times["walk one"] = _asked(one, queries, k=1)
        times["walk large"] = _asked(one, queries)
        times["scan beside"] = _asked(one, queries, exact=True)
    with run.filled(run.large, _LARGE, Layout(inline=True)) as (one, queries):
        times["scan large"] = _asked(one, queries)
    with run.filled(run.large // 2, _LARGEST, Layout()) as (one, queries):
        times["scan largest"] = _asked(one, queries)
    # with parallel workers, which a build gets from so many rows on
    if run.small == PARALLEL - 100 and run.left() > 3 * times["build small"]:
        with run.filled(PARALLEL + 100, _SMALL, inline) as (one, _):
            times["build workers"] = _built(one)
    return times


def _qdrant(run: _Run) -> dict[str, float]:
    times: dict[str, float] = {}
    whole = Layout(index=_graph(efc=100))
    begun = time.perf_counter()
    with run.filled(_PROBE, _SMALL, whole) as (one, queries):
        times["scan probe"] = _asked(one, queries, exact=True)
        times["build probe"] = _built(one)
        _sized(run, time.perf_counter() - begun)
    for name, rows, dim in (("small", run.small, _SMALL), ("large", run.large, _LARGE)):
        with run.filled(rows, dim, whole) as (one, queries):
            times[f"scan {name}"] = _asked(one, queries, exact=True)
            times[f"build {name}"] = _built(one)
            times[f"walk {name}"] = _asked(one, queries)
            times[f"walk {name} one"] = _asked(one, queries, k=1)
    with run.filled(run.large, _LARGE, Layout("float16")) as (one, queries):
        times["scan half"] = _asked(one, queries)
    coded = Layout(index=_graph("int8", efc=100), oversample=_OVERSAMPLE)
    with run.filled(run.large, _LARGE, coded) as (one, queries):
        one.build_index()
        times["coded one"] = _asked(one, queries, k=1)
        times["coded ten"] = _asked(one, queries)
    short = replace(_graph(efc=100), shorten=Shorten("truncate", _SMALL))
    with run.filled(run.large, _LARGE, Layout(index=short, oversample=_OVERSAMPLE)) as (one, queries):
        times["build staged"] = _built(one)
        times["staged"] = _asked(one, queries)
    return times


def _flat(run: _Run) -> dict[str, float]:
    times: dict[str, float] = {}
    begun = time.perf_counter()
    with run.filled(_PROBE, _SMALL, Layout()) as (one, queries):
        _sized(run, time.perf_counter() - begun)
        times["scan probe"] = _asked(one, queries)
    with run.filled(run.small, _SMALL, Layout()) as (one, queries):
        times["scan small"] = _asked(one, queries)
    with run.filled(run.large, _LARGE, Layout()) as (one, queries):
        times["scan large"] = _asked(one, queries)
    with run.filled(run.large, _LARGE, Layout("float16")) as (one, queries):
        times["scan half"] = _asked(one, queries)
    return times


_SERIES = {"pgvector": _pgvector, "qdrant": _qdrant, "edge": _qdrant, "flat": _flat}


def _fitted(backend: str, times: Mapping[str, float], run: _Run, source: str) -> Speeds:
    """The speeds that explain what was measured."""
    rough, small, large = ROUGH[backend], run.small, run.large
    size = {dim: vector_bytes("float32", dim) if backend == "pgvector" else 4 * dim for dim in
            (_SMALL, _LARGE, _LARGEST)}  # fmt: skip
    # a scan of few rows and one of many, all else alike: what each row takes, and what comes on top
    each = max((times["scan small"] - times["scan probe"]) / (small - _PROBE), 0.0)
    least = min(took for name, took in times.items() if not name.startswith("build"))
    trip = min(max(times["scan probe"] - _PROBE * each, 0.2 * least), 0.9 * least)
    name, half = ("inline", "") if backend == "pgvector" else ("float32", "float16")
    scans = dict(rough.scans)
    scans[name] = _line(
        rough.scans[name],
        (size[_SMALL], (times["scan small"] - trip) / small),
        (size[_LARGE], (times["scan large"] - trip) / large),
    )
    if half:
        scans[half] = _line(rough.scans[half], (2 * _LARGE, (times["scan half"] - trip) / large))
    found = replace(rough, trip=trip, scans=scans, calibrated=True, source=source)
    if backend == "flat":
        return found
    if backend == "pgvector":
        scans["beside"] = _line(
            rough.scans["beside"],
            (size[_LARGE], (times["scan beside"] - trip) / large),
            (size[_LARGEST], (times["scan largest"] - trip) / (large // 2)),
        )
        # ten hits instead of one cost something by themselves
        hits = max(times["scan small"] - times["scan one"], 0.0)
        more, fetched = times["walk large"] - times["walk one"] - hits, (HITS, HITS * _OVERSAMPLE)
    else:
        hits = max(times["walk large"] - times["walk large one"], 0.0)
        more, fetched = times["coded ten"] - times["coded one"] - hits, (0, 0)
    again = _line(rough.again, (size[_LARGE], more / ((HITS - 1) * _OVERSAMPLE)))
    in_row = replace(again, bytes=scans[name].bytes)
    visit = _line(
        rough.visit,
        (
            size[_SMALL],
            (times["walk small"] - trip - in_row.seconds(fetched[0], size[_SMALL]))
            / visits(small, width=_WIDE, m=16),
        ),
        (
            size[_LARGE],
            (times["walk large"] - trip - again.seconds(fetched[1], size[_LARGE]))
            / visits(large, width=_WIDE, m=16),
        ),
    )
    efc = 64 if backend == "pgvector" else 100
    entered = {rows: rows * inserts(rows, width=efc, m=16) for rows in (_PROBE, small, large)}
    slope = (times["build small"] - times["build probe"]) / (entered[small] - entered[_PROBE])
    start = min(max(times["build probe"] - slope * entered[_PROBE], 0.0), times["build probe"])
    each, copied = (times["build small"] - start) / entered[small], 0.0
    if "staged" in times:
        walked = visits(large, width=_WIDE, m=16)
        reranked = trip + again.seconds(HITS * _OVERSAMPLE, size[_LARGE])
        stage = max(times["staged"] - reranked - visit.seconds(walked, size[_SMALL]), 0.0)
        coded = (times["coded ten"] - reranked) / visit.seconds(walked, size[_LARGE])
        # a graph as small as the first one's, beside vectors that are written anew with it
        written = large * (size[_LARGE] + size[_SMALL] + BLOCK + IDS)
        copied = max(times["build staged"] - start - each * entered[large], written / rough.copies / 5)
        found = replace(found, stage=stage, coded=min(max(coded, 0.1), 1.0), copies=written / copied)
    insert = _line(
        rough.insert,
        (size[_SMALL], each),
        (size[_LARGE], (times["build large"] - start - copied) / entered[large]),
    )
    workers = rough.workers
    if "build workers" in times:
        rows = PARALLEL + 100
        alone = start + insert.seconds(rows * inserts(rows, width=efc, m=16), size[_SMALL])
        workers = max((alone - start) / max(times["build workers"] - start, 1e-9), 1.0)
    return replace(found, visit=visit, again=again, insert=insert, start=start, workers=workers)


def _line(rough: Rate, *points: tuple[int, float]) -> Rate:
    """The rate through one or two points (bytes of an item, seconds for it).

    Where two points contradict a rate, as on a machine that was busy with something else, and where there is
    only one, the rough rate is stretched to what was measured; where noise left nothing, it stays as it is.
    """
    (first, least), (last, most) = points[0], points[-1]
    if len(points) == 2 and most > least > 0:
        slope = (most - least) / (last - first)
        row = least - slope * first
        if row >= 0:
            return Rate(row, 1 / slope)
        return Rate(0.0, last / most)
    shares = [took / rough.seconds(1, size) for size, took in points if took > 0]
    share = statistics.fmean(shares) if shares else 1.0
    return Rate(share * rough.row, rough.bytes / share)
