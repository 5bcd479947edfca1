"""The smallest search width that finds enough: found on one half of the queries, confirmed on the other."""

from __future__ import annotations

from dataclasses import dataclass

from .manifest import Tuned
from .recall import Recall
from .types import Layout


@dataclass(frozen=True, slots=True)
class Step:
    """One search width, measured: `layout` differs from the collection's in `ef_search`, `probes`,
    `oversample`.

    Latencies of one query in milliseconds. `short`: queries that returned fewer hits than exact search.
    """

    layout: Layout
    recall: Recall
    p50_ms: float
    p95_ms: float
    short: int


@dataclass(frozen=True, slots=True)
class Tuning:
    """What tuning found. `tuned` is kept with the collection; its `met` tells whether the target was
    confirmed.

    `before` and `after`: the layouts with the search width that was and that now is. `steps`: every width
    that was measured, in that order, on the choosing half. `exact_p50_ms`: what exact search takes.
    `advice`: where the target was not met, what would meet it, in sentences; else empty.
    """

    tuned: Tuned
    before: Layout
    after: Layout
    steps: tuple[Step, ...]
    exact_p50_ms: float
    advice: tuple[str, ...]
