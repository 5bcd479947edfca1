"""How good a collection's searches really are: recall against exact search, and latency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends import Table
from .manifest import Manifest
from .types import Hit, IndexState

if TYPE_CHECKING:
    from .types import Floats

_WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Report:
    """Measured on `queries` queries: `recall` at `k` against exact search, latencies in milliseconds.

    Queries that have nothing to find do not count. A hit counts as right if its score is at least that of the
    k-th exact hit, so ties are not errors. `against`: what the exact search saw ("stored vectors", or vectors
    shortened at the door, whose own loss is then not part of the figure). `source`: where the queries came
    from. `short`: queries that returned fewer hits than exact search.
    """

    k: int
    rows: int
    queries: int
    recall: float
    p50_ms: float
    p95_ms: float
    exact_p50_ms: float
    exact_p95_ms: float
    short: int
    index: IndexState
    against: str
    source: str
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """The report, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.queries:
            return "nothing to measure: no query has anything to find"
        index = {
            "none": self.index.detail or "no index, every search is exact",
            "missing": f"the index is not built ({self.index.detail or 'call build_index'})",
            "invalid": "the index is invalid, build it again",
            "ready": "the index is used" if self.index.used else "the index is NOT used",
        }[self.index.status]
        return (
            f"recall@{self.k} {self.recall:.3f} on {self.queries} queries ({self.source}) against exact "
            f"search on {self.against}; p50 {self.p50_ms:.1f} ms, p95 {self.p95_ms:.1f} ms "
            f"(exact {self.exact_p50_ms:.1f} and {self.exact_p95_ms:.1f} ms); {index}"
        )


def evaluate(
    table: Table, *, k: int, queries: Floats | None, sample: int, seed: int, seconds: float | None
) -> Report:
    """A Report on `table`; `queries` float32 (m, stored dim), or None to take `sample` stored records.

    After `seconds` no further query is asked. A stored record that serves as a query is left out of its own
    results on both sides.
    """
    manifest = table.manifest
    own: Sequence[str | None]
    if queries is None:
        batch = table.sample(sample, seed=seed)
        queries, own = batch.vectors, batch.ids
        source = f"stored records, each left out of its own results, seed {seed}"
    else:
        own, source = [None] * len(queries), "given"
    short = index_queries(manifest, queries)
    # one more than wanted: the query's own record is among the hits
    wanted = k + 1 if own and own[0] is not None else k

    def run(row: int, *, exact: bool) -> tuple[list[Hit], float]:
        part = None if short is None else short[row : row + 1]
        start = perf_counter()
        hits = table.search(queries[row : row + 1], part, k=wanted, where=None, exact=exact)[0]
        elapsed = (perf_counter() - start) * 1e3
        return [hit for hit in hits if hit.id != own[row]][:k], elapsed

    def both(row: int) -> tuple[list[Hit], float, list[Hit], float]:
        hits, elapsed = run(row, exact=False)
        # without an index the search is the exact one
        return hits, elapsed, *(run(row, exact=True) if manifest.layout.index else (hits, elapsed))

    end = math.inf if seconds is None else perf_counter() + seconds
    for row in range(min(_WARM_UP, len(queries))):
        if perf_counter() < end:
            both(row)
    recalls: list[float] = []
    times: list[float] = []
    exact_times: list[float] = []
    fewer = 0
    for row in range(len(queries)):
        if times and perf_counter() >= end:
            break
        hits, elapsed, truth, exact_elapsed = both(row)
        times.append(elapsed)
        exact_times.append(exact_elapsed)
        fewer += len(hits) < len(truth)
        if truth:
            recalls.append(_recall(hits, truth))
    return Report(
        k=k,
        rows=table.count(),
        queries=len(recalls),
        recall=float(np.mean(recalls)) if recalls else 1.0,
        p50_ms=_percentile(times, 50),
        p95_ms=_percentile(times, 95),
        exact_p50_ms=_percentile(exact_times, 50),
        exact_p95_ms=_percentile(exact_times, 95),
        short=fewer,
        index=table.index_state(),
        against=_against(manifest),
        source=source,
        seed=seed,
    )


def index_queries(manifest: Manifest, queries: Floats) -> Floats | None:
    """What an index on a projection is asked with: queries (m, stored dim) projected, or None."""
    return None if manifest.index_reduction is None else manifest.index_reduction.apply(queries)


def _recall(hits: Sequence[Hit], truth: Sequence[Hit]) -> float:
    last = truth[-1].score
    # the two scores come from the same float32 vectors, summed in a different order
    floor = last - 1e-5 * max(1.0, abs(last))
    return min(1.0, sum(hit.score >= floor for hit in hits) / len(truth))


def _percentile(values: Sequence[float], percent: int) -> float:
    return float(np.percentile(values, percent)) if values else 0.0


def _against(manifest: Manifest) -> str:
    shorten = manifest.layout.shorten
    kept = f"stored {manifest.layout.element} vectors"
    if shorten is None:
        return kept
    how = "truncated" if shorten.method == "truncate" else "projected by PCA"
    return f"{kept} {how} to {shorten.dim} of {manifest.space.dim} dimensions"
