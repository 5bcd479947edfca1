"""How good a collection's searches really are: recall against exact search, and latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks
from .backends import Table
from .drift import Drift, drift
from .manifest import Manifest, Tuned
from .recall import Recall, mean_recall
from .types import Hit, IndexState

if TYPE_CHECKING:
    from .filters import Filter
    from .types import Floats, Metric

_WARM_UP = 3
_BLENDED = 5
# stored vectors that are compared with the fit of a projection: with a tenth of them drift is often missed
_PROJECTED = 1_000
# beyond this many times the rows that a search width was tuned for, it is tuned again
_GROWN = 1.5


@dataclass(frozen=True, slots=True)
class Report:
    """Measured on `queries` queries: `recall` at `k` against exact search, latencies in milliseconds.

    `low` and `high`: its 95 % interval. Queries that have nothing to find do not count. A hit counts as right
    if its score is at least that of the k-th exact hit, so ties are not errors. Latencies are those of one
    search at a time. `against`: what the exact search saw ("stored vectors", or vectors shortened at the
    door, whose own loss is then not part of the figure). `source`: where the queries came from. `short`:
    queries that returned fewer hits than exact search. `where`: the filter that they were asked with, which
    `matching` of the `rows` records satisfy; `selectivity` is that share, 1 without a filter. `drift`: how
    well the stored vectors still fit the projection in the index, None where there is none. `tuned`: how the
    collection's search width was found, None where it was not.
    """

    k: int
    rows: int
    queries: int
    recall: float
    low: float
    high: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    exact_p50_ms: float
    exact_p95_ms: float
    exact_p99_ms: float
    short: int
    index: IndexState
    against: str
    source: str
    seed: int
    where: Mapping[str, Any] | None
    matching: int
    selectivity: float
    drift: Drift | None
    tuned: Tuned | None

    @property
    def outgrown(self) -> bool:
        """Whether the collection has grown so much since it was tuned that it should be again."""
        return self.tuned is not None and self.rows >= _GROWN * self.tuned.rows

    def to_dict(self) -> dict[str, Any]:
        """The report, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.where is not None and not self.matching:
            return "nothing to measure: no record matches the filter"
        if not self.queries:
            return "nothing to measure: no query has anything to find"
        index = {
            "none": self.index.detail or "no index, every search is exact",
            "missing": f"the index is not built ({self.index.detail or 'call build_index'})",
            "invalid": "the index is invalid, build it again",
            "ready": "the index is used" if self.index.used else "the index is NOT used",
        }[self.index.status]
        among = ""
        if self.where is not None:
            among = (
                f" among the {self.matching:,} of {self.rows:,} records "
                f"({self.selectivity:.2%}) that match the filter"
            )
        found = Recall(self.recall, self.low, self.high, self.queries)
        said = [
            f"recall@{self.k} {found} on {self.queries} queries ({self.source}) against exact search on "
            f"{self.against}{among}",
            f"p50 {self.p50_ms:.1f} ms, p95 {self.p95_ms:.1f} ms, p99 {self.p99_ms:.1f} ms (exact "
            f"{self.exact_p50_ms:.1f}, {self.exact_p95_ms:.1f} and {self.exact_p99_ms:.1f} ms)",
            index,
        ]
        if self.short:
            said.append(f"{self.short} queries returned fewer hits than exact search")
        if self.drift is not None and self.drift.drifted:
            said.append(str(self.drift))
        if self.tuned is not None and self.outgrown:
            said.append(
                f"tuned when there were {self.tuned.rows:,} records, now there are {self.rows:,}: tune again"
            )
        return "; ".join(said)


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """What a collection is asked, one query after the other: float32 `vectors` (n, stored dim), for k hits.

    `short`: their projections (n, index dim) where the index holds projections. `own`: for each the id of the
    stored record that it is, to be left out of its own results; None where it is none. `blended`: which of
    them are blends of stored records.
    """

    k: int
    where: Filter | None
    vectors: Floats
    short: Floats | None
    own: Sequence[str | None]
    blended: Sequence[bool]

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def asked(self) -> int:
        """How many hits a search is asked for: the query's own record may be one of them."""
        return self.k if all(own is None for own in self.own) else self.k + 1

    def rows(self, rows: Sequence[int]) -> Queries:
        """Some of the queries, in this order."""
        return Queries(
            self.k,
            self.where,
            self.vectors[rows],
            None if self.short is None else self.short[rows],
            [self.own[row] for row in rows],
            [self.blended[row] for row in rows],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What exact search finds for `queries`: the measure of every search width.

    For each query `there` hits, and `floors`: a hit of at least this score is one of the k nearest.
    `exact_ms`: how long exact search took.
    """

    queries: Queries
    there: tuple[int, ...]
    floors: tuple[float, ...]
    exact_ms: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.there)

    def rows(self, rows: Sequence[int]) -> Truth:
        """The truth on some of the queries, in this order."""
        return Truth(
            self.queries.rows(rows),
            tuple(self.there[row] for row in rows),
            tuple(self.floors[row] for row in rows),
            tuple(self.exact_ms[row] for row in rows),
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """One search width on some queries: the share found by each that has anything to find, and latencies.

    `groups`: these shares by kind of query, blends of stored records after all others; a kind without any is
    not there. `short`: queries that returned fewer hits than exact search.
    """

    groups: tuple[tuple[float, ...], ...]
    times_ms: tuple[float, ...]
    short: int

    @property
    def asked(self) -> int:
        """How many queries were asked."""
        return len(self.times_ms)

    def recall(self, k: int) -> Recall:
        """The recall@k of the kind of query that finds less."""
        return min((mean_recall(shares, k) for shares in self.groups or ((),)), key=lambda one: one.mean)


def evaluate(
    table: Table,
    *,
    k: int,
    queries: Floats | None,
    where: Mapping[str, Any] | None = None,
    sample: int,
    seed: int,
    seconds: float | None,
) -> Report:
    """A Report on `table`; `queries` float32 (m, stored dim), or None to take `sample` stored records.

    Then `sample` blends of stored records are asked as well where a graph is walked, and what is reported is
    the recall of the kind that finds less; see `ask`. Stored records serve as queries whether or not they
    match `where`. After `seconds` no further query is asked. Raises FilterError.
    """
    condition = checks.where_filter(where)
    end = math.inf if seconds is None else perf_counter() + seconds
    manifest = table.manifest
    asked, source = ask(table, k=k, queries=queries, where=condition, sample=sample, seed=seed)
    spare = _warm(table, asked, end)
    exact = truth(table, asked, end=end, spare=spare)
    found = measure(table, exact)
    recall = found.recall(k)
    rows = table.count()
    matching = rows if condition is None else table.count(condition)
    return Report(
        k=k,
        rows=rows,
        queries=recall.queries,
        recall=recall.mean,
        low=recall.low,
        high=recall.high,
        p50_ms=percentile(found.times_ms, 50),
        p95_ms=percentile(found.times_ms, 95),
        p99_ms=percentile(found.times_ms, 99),
        exact_p50_ms=percentile(exact.exact_ms, 50),
        exact_p95_ms=percentile(exact.exact_ms, 95),
        exact_p99_ms=percentile(exact.exact_ms, 99),
        short=found.short,
        index=table.index_state(),
        against=against(manifest),
        source=source,
        seed=seed,
        where=None if where is None else dict(where),
        matching=matching,
        selectivity=matching / rows if rows else 1.0,
        drift=_drift(table, seed=seed),
        tuned=manifest.tuned,
    )


def ask(
    table: Table, *, k: int, queries: Floats | None, where: Filter | None, sample: int, seed: int
) -> tuple[Queries, str]:
    """What to ask `table`: the queries given, or `sample` stored records; and that in words.

    A stored record is a query like any other to codes and projections, but not to a graph, which has an edge
    to it from each of its neighbours: on pgvector with ef_search 11, stored records found 0.98 to 0.99 of
    their neighbours and vectors that were not stored 0.76 to 0.89. Blends of five found 0.73 to 0.75 there,
    and at widths that found 0.94 to 0.99 for unknown vectors between 0.03 less and 0.02 more than these
    (wordllama, hashed and LSA vectors; blends of three found up to 0.04 more, Gaussian vectors of the same
    covariance 0.06 less). To codes and projections blends are easy, as they lie near their five. So both are
    asked where a graph is walked, in turn.
    """
    manifest = table.manifest
    if queries is not None:
        asked = len(queries)
        known = Queries(k, where, queries, manifest.projected(queries), [None] * asked, [False] * asked)
        return known, "given"
    batch = table.sample(sample, seed=seed)
    vectors, own = batch.vectors, list[str | None](batch.ids)
    source = "stored records, each left out of its own results"
    index = manifest.layout.index
    blended = [False] * len(own)
    if index is not None and index.kind == "hnsw":
        both = np.stack([vectors, _blends(vectors, manifest.space.metric, seed=seed)], axis=1)
        vectors = both.reshape(-1, vectors.shape[1])
        own = [one for name in own for one in (name, None)]
        blended = [False, True] * len(batch)
        source += ", and blends of five, whichever find less"
    asked_of = Queries(k, where, vectors, manifest.projected(vectors), own, blended)
    return asked_of, f"{source}, seed {seed}"


def _blends(vectors: Floats, metric: Metric, *, seed: int) -> Floats:
    """As many vectors, float32, each made of five of these (n, dim), as far from their mean as they are."""
    one = vectors.astype(np.float64)
    if metric == "cosine":
        one /= np.maximum(np.linalg.norm(one, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    generator = np.random.default_rng(seed)
    off = one - (one.mean(axis=0) if len(one) else 0.0)
    mixed = sum(off[generator.permutation(len(off))] for _ in range(_BLENDED))
    blend = one - off + mixed / math.sqrt(_BLENDED)
    # opposite vectors may cancel each other out, and nothing is near no direction
    blend = np.where(np.linalg.norm(blend, axis=1, keepdims=True) > 0, blend, one)
    return np.asarray(blend, dtype=np.float32)


def truth(
    table: Table,
    queries: Queries,
    *,
    end: float,
    spare: float = 0.0,
    fewest: int = 1,
    heard: Callable[[int], None] = lambda done: None,
) -> Truth:
    """What exact search finds for each query, as far as it gets until the clock shows `end`.

    For every query answered, `spare` seconds of the time are left over. `fewest` are always answered.
    `heard` is told how many are.
    """
    there: list[int] = []
    floors: list[float] = []
    times: list[float] = []
    for row in range(len(queries)):
        if row >= fewest and perf_counter() + spare * (row + 1) >= end:
            break
        hits, elapsed = _search(table, queries, row, exact=True)
        times.append(elapsed)
        there.append(len(hits))
        floors.append(_floor(hits))
        heard(row + 1)
    return Truth(queries.rows(range(len(times))), tuple(there), tuple(floors), tuple(times))


def measure(table: Table, truth: Truth, *, end: float = math.inf, fewest: int = 1) -> Measured:
    """How much the table's own search finds of the truth, and how long each search takes.

    Until the clock shows `end`; `fewest` queries are always asked.
    """
    if table.manifest.layout.index is None:
        # the search is the exact one
        found = tuple(1.0 for there in truth.there if there)
        return Measured((found,) if found else (), truth.exact_ms, 0)
    for row in range(min(_WARM_UP, len(truth))):
        if perf_counter() < end:
            _search(table, truth.queries, row, exact=False)
    shares: tuple[list[float], list[float]] = ([], [])
    times: list[float] = []
    fewer = 0
    for row, (there, floor) in enumerate(zip(truth.there, truth.floors, strict=True)):
        if row >= fewest and perf_counter() >= end:
            break
        hits, elapsed = _search(table, truth.queries, row, exact=False)
        times.append(elapsed)
        fewer += len(hits) < there
        if there:
            share = min(1.0, sum(hit.score >= floor for hit in hits) / there)
            shares[truth.queries.blended[row]].append(share)
    return Measured(tuple(tuple(some) for some in shares if some), tuple(times), fewer)


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent of the others do not exceed; 0 without any."""
    return float(np.percentile(values, percent)) if values else 0.0


def against(manifest: Manifest) -> str:
    """What exact search sees, in words."""
    shorten = manifest.layout.shorten
    kept = f"stored {manifest.layout.element} vectors"
    if shorten is None:
        return kept
    how = "truncated" if shorten.method == "truncate" else "projected by PCA"
    return f"{kept} {how} to {shorten.dim} of {manifest.space.dim} dimensions"


def _search(table: Table, queries: Queries, row: int, *, exact: bool) -> tuple[list[Hit], float]:
    """The hits of one query without its own record, and milliseconds."""
    whole = queries.vectors[row : row + 1]
    part = None if queries.short is None else queries.short[row : row + 1]
    # a query that lies across the projection has no neighbours in it: a collection compares all of them, too
    exact = exact or (part is not None and not part.any())
    start = perf_counter()
    asked = queries.k + (queries.own[row] is not None)
    hits = table.search(whole, part, k=asked, where=queries.where, exact=exact)[0]
    elapsed = (perf_counter() - start) * 1e3
    own = queries.own[row]
    return [hit for hit in hits if hit.id != own][: queries.k], elapsed


def _floor(hits: Sequence[Hit]) -> float:
    if not hits:
        return math.inf
    last = hits[-1].score
    # the two scores come from the same float32 vectors, summed in a different order
    return last - 1e-5 * max(1.0, abs(last))


def _warm(table: Table, queries: Queries, end: float) -> float:
    """Ask some queries both ways, so that nothing is cold; the seconds to leave for a search by the index."""
    spare = 0.0
    for row in range(min(_WARM_UP, len(queries))):
        if perf_counter() < end:
            _search(table, queries, row, exact=True)
            if table.manifest.layout.index is not None:
                spare = _search(table, queries, row, exact=False)[1] / 1e3
    return spare


def _drift(table: Table, *, seed: int) -> Drift | None:
    """How well the stored vectors fit the projection in the index; None where that is not a fitted one."""
    reduction = table.manifest.index_reduction
    if reduction is None or reduction.basis is None:
        return None
    return drift(table.manifest, table.sample(_PROJECTED, seed=seed).vectors)
