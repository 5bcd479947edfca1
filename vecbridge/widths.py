"""The search widths of a layout: what can be changed without building anything, in steps worth measuring.

Two numbers widen a search: how far the index is searched (`ef_search` of a graph, `probes` of lists), and how
many of its candidates are compared again by their exact distance (`oversample`). Every store walks a graph
at least as far as it has to come by k × oversample candidates (pgvector: `backends/postgres/sql.settings`;
Qdrant: lib/segment, graph_layers.rs, max(top, ef)), so that a smaller `ef_search` than that would change
nothing and is none of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

from .limits import Limits
from .types import Layout

T = TypeVar("T")

_OVERSAMPLES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64)
_WIDTHS = (10, 15, 20, 30, 40, 60, 80, 100, 125, 160, 200, 250, 320, 400, 500, 640, 800, 1000)

# one column for each oversampling, ascending, and in it the layouts from the narrowest walk to the widest
Grid: TypeAlias = Sequence[Sequence[Layout]]


def grid(layout: Layout, *, asked: int, rows: int, limits: Limits) -> Grid:
    """Every width worth measuring where `asked` hits are wanted of `rows` records; empty without an index."""
    index = layout.index
    if index is None:
        return ()
    oversamples = [1]
    if reranks(layout):
        # beyond this, a store that cannot continue a scan compares everything
        bound = limits.ranges.get("hnsw ef_search")
        if index.kind == "scan" or bound is None or limits.has("iterative scan"):
            most = math.inf
        else:
            most = bound.high
        wider = zip(_OVERSAMPLES[1:], _OVERSAMPLES, strict=False)
        # one that takes all records is enough
        oversamples += [size for size, last in wider if asked * last < rows and asked * size <= most]
    return [column(layout, size, asked=asked, limits=limits) for size in oversamples]


def column(layout: Layout, oversample: int, *, asked: int, limits: Limits) -> Sequence[Layout]:
    """The layout with this oversampling and every walk that goes with it, the narrowest first."""
    index = layout.index
    assert index is not None
    if index.kind == "scan":
        return [replace(layout, oversample=oversample)]
    if index.kind == "ivfflat":
        bound = limits.ranges["ivfflat probes"]
        # fewer are built where there are few rows; pgvector takes more probes than lists for all lists
        lists = max(index.lists, 1)
        probes = {math.ceil(1.3**power) for power in range(40)} | {lists}
        return [
            replace(layout, oversample=oversample, index=replace(index, probes=size))
            for size in sorted(probes)
            if bound.low <= size <= min(bound.high, lists)
        ]
    bound = limits.ranges["hnsw ef_search"]
    least = max(bound.low, min(asked * oversample, bound.high))
    return [
        replace(layout, oversample=oversample, index=replace(index, ef_search=size))
        for size in (least, *(size for size in _WIDTHS if least < size <= bound.high))
    ]


def reranks(layout: Layout) -> bool:
    """Whether the index knows less of a vector than what is stored, so that comparing again finds more."""
    index = layout.index
    return index is not None and (index.element != layout.element or index.shorten is not None)


def walk(layout: Layout) -> int:
    """How far the index is searched: candidates of a graph, lists, or 0 where all of it is."""
    index = layout.index
    assert index is not None
    return {"hnsw": index.ef_search, "ivfflat": index.probes, "scan": 0}[index.kind]


def wider(grid: Grid, layout: Layout, *, widest: bool) -> Layout | None:
    """The next wider one in both respects, or the widest of all; None where there is none."""
    if not grid:
        return None
    place = grid[-1]
    if not widest:
        place = next((one for one in grid if one[0].oversample > layout.oversample), place)
    further = [one for one in place if walk(one) > walk(layout)]
    next_one = further[0] if further and not widest else place[-1]
    narrower = next_one.oversample < layout.oversample or walk(next_one) < walk(layout)
    return None if narrower or next_one == layout else next_one


def first(ascending: Sequence[T], enough: Callable[[T], bool]) -> int | None:
    """Place of the first that is enough, where all after it are, too; None where not even the last is."""
    if not ascending or not enough(ascending[-1]):
        return None
    low, high = 0, len(ascending) - 1
    while low < high:
        middle = (low + high) // 2
        if enough(ascending[middle]):
            high = middle
        else:
            low = middle + 1
    return high


def shown(layout: Layout) -> str:
    """The search width of a layout in words."""
    index = layout.index
    if index is None:
        return "exact search"
    said = []
    if index.kind == "hnsw":
        said.append(f"ef_search {index.ef_search}")
    elif index.kind == "ivfflat":
        said.append(f"{index.probes} of {index.lists} lists")
    if reranks(layout) or index.kind == "scan":
        said.append(f"oversampling {layout.oversample}")
    return ", ".join(said)
