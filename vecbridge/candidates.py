"""The policy: which layouts are worth considering for a backend, in order of preference.

The more exact comes first, what cannot be undone last. What a backend cannot hold is listed too: its limits
object with a sentence, and the reader learns why not.

Without evidence, how short vectors may get and how often they are oversampled are rules of thumb. With
evidence and a recall to meet, both are the smallest that meet it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from . import sizes
from .evidence import MOST, Evidence
from .limits import Limits
from .objections import largest_inline
from .recall import Recall
from .types import Element, Index, Layout, Shorten, Space, Spread

Stored: TypeAlias = Literal["float32", "float16"]
Method: TypeAlias = Literal["truncate", "pca"]
_STORED: tuple[Stored, ...] = ("float32", "float16")

# what the index holds instead of the whole vector where it is shortened: 512 dimensions with re-ranking found
# 99 % of the neighbours in 3,072 (Supabase, 1,000,000 x text-embedding-3-large, February 2024)
_INDEXED = (1024, 512, 256)
_LEAST, _LARGEST = 32, 2_000
# a smaller size that needs more candidates for each hit than this costs more by re-ranking than it saves
_OFTEN = 16
_METHODS: tuple[Method, ...] = ("truncate", "pca")
_DOOR = (1024, 512, 256, 128, 64)
# below this many signs too many vectors share a code: 128 and 960 dimensions of image features found 0 to
# 16 % of the neighbours even re-ranked (J. Katz, April 2024), text embeddings of 1,536 found 99 %
_SIGNS = 512
# candidates while walking a graph over whole vectors: with 100, questions in a text's own words found 0.988
# to 0.994 of what exact search finds (MRR@10, 6,000 x 3,584, three graphs), with 200 0.997
_WIDTH = 200
# the share of a float32 index's bytes below which half precision is the better default
_HALF = 0.6

# shards for each machine, so that a cluster can double before a collection has to be made anew; and vectors
# for each shard, beyond which building its graph and moving it take hours
_SHARDS, _SHARD_ROWS = 2, 20_000_000


# the share of what may be missed that is left to the loss of a graph, or of lists that are not read
_LEFT = 0.25


@dataclass(frozen=True, slots=True)
class Aim:
    """The recall@k that is wanted for `rows` rows, and the evidence by which it is judged."""

    target: float
    evidence: Evidence
    rows: int

    def needed(self, layout: Layout) -> float:
        """What a layout's representation has to find: more than the target where a graph loses some, too."""
        walked = layout.index is not None and layout.index.kind != "scan"
        return self.target + (1 - self.target) * _LEFT if walked else self.target

    def enough(self, layout: Layout) -> int | None:
        """The smallest oversampling with which the layout finds what is needed; None where none does."""
        if layout.shorten is not None:
            found = self.evidence.recall(layout, rows=self.rows)
            return 1 if found is not None and self.met(layout, found) else None
        return self.evidence.enough(layout, self.needed(layout), rows=self.rows)

    def met(self, layout: Layout, found: Recall) -> bool:
        """Whether so much is enough. What is cut off at the door is never measured again: it must be sure."""
        return (found.mean if layout.shorten is None else found.low) >= self.needed(layout)


def candidates(space: Space, rows: int, limits: Limits, *, aim: Aim | None = None) -> Iterator[Layout]:
    """Layouts worth considering, in order of preference: the more exact first, what cannot be undone last.

    With an `aim`, each with the smallest oversampling that meets it, and of all sizes to which vectors can be
    shortened in one way the smallest that does; where none does, the one that comes nearest.
    """
    for layout in _candidates(space, rows, limits, aim):
        yield layout if aim is None else _oversampled(layout, aim)


def _oversampled(layout: Layout, aim: Aim) -> Layout:
    # exact scans and whole float32 vectors gain nothing from re-ranking; what was cut off at the door is gone
    if layout.index is None or layout.oversample == 1 or layout.shorten is not None:
        return layout
    return replace(layout, oversample=aim.enough(layout) or MOST)


def _candidates(space: Space, rows: int, limits: Limits, aim: Aim | None) -> Iterator[Layout]:
    qdrant = limits.backend in ("qdrant", "edge")
    spread = _spread(rows, limits.nodes) if limits.backend == "qdrant" else None

    def whole(dim: int, door: Shorten | None) -> Iterator[Layout]:
        return _qdrant_whole(door, spread) if qdrant else _whole_vectors(dim, rows, limits, door)

    yield from whole(space.dim, None)
    if qdrant:
        yield from _qdrant_shortened(space, spread, aim)
    elif limits.indexed:
        yield from _shortened_index(space, rows, limits, aim)
    for shorten in _at_door(space, aim):
        yield from whole(shorten.dim, shorten)


def _at_door(space: Space, aim: Aim | None) -> Iterator[Shorten]:
    """Ways to shorten vectors before they are stored."""
    if aim is not None:
        for method in _METHODS:
            yield from _smallest(method, space, aim, lambda shorten: Layout(shorten=shorten))
        return
    for size in space.nested:
        yield Shorten("truncate", size)
    for size in _DOOR:
        if size * 2 <= space.dim:
            yield Shorten("pca", size)


def _smallest(
    method: Method, space: Space, aim: Aim, layout: Callable[[Shorten], Layout]
) -> Iterator[Shorten]:
    """The smallest measured size that meets the aim in such a layout; where none does, the largest."""
    evidence = aim.evidence
    known = [
        Shorten("truncate", size) if method == "truncate" else evidence.projection(size)
        for size in evidence.sizes(method)
    ]
    # an index on more is not worth its bytes, and some stores have none
    sizes = [one for one in known if one is not None and _LEAST <= one.dim <= min(_LARGEST, space.dim - 1)]
    if sizes:
        yield next((one for one in sizes if (aim.enough(layout(one)) or MOST) <= _OFTEN), sizes[-1])


def _spread(rows: int, nodes: int) -> Spread | None:
    """Every shard twice, so that any one machine may fail; one confirmation, so that writing goes on then."""
    if nodes < 2:
        return None
    return Spread(nodes * max(_SHARDS, math.ceil(rows / nodes / _SHARD_ROWS)), replication=2)


def _whole_vectors(dim: int, rows: int, limits: Limits, door: Shorten | None) -> Iterator[Layout]:
    """Layouts that search all of the `dim` stored dimensions."""
    for element in _STORED:
        plain = Layout(element=element, shorten=door)
        yield from _exact(plain, dim, limits)
        if not limits.indexed:
            continue
        if element == "float16":
            yield Layout(element=element, shorten=door, index=_hnsw("float16", _WIDTH))
            yield Layout(element=element, shorten=door, index=_ivfflat("float16", rows))
            continue
        half = Layout(shorten=door, index=_hnsw("float16", _WIDTH), oversample=2)
        full = Layout(shorten=door, index=_hnsw("float32", _WIDTH))
        half_lists = Layout(shorten=door, index=_ivfflat("float16", rows), oversample=2)
        full_lists = Layout(shorten=door, index=_ivfflat("float32", rows))
        fits = limits.indexed.get("hnsw float32")
        if fits and dim <= fits.high and _halves(dim):
            yield from (half, full, half_lists, full_lists)
        else:
            yield from (full, half, full_lists, half_lists)


def _exact(plain: Layout, dim: int, limits: Limits) -> Iterator[Layout]:
    if limits.page:
        inline = Layout(element=plain.element, shorten=plain.shorten, inline=True)
        yield inline
        if dim <= largest_inline(inline, limits.page):
            return
    yield plain
    if limits.page and plain.element == "float32":
        yield Layout(shorten=plain.shorten, index=Index("scan", "float16"), oversample=4)


def _prefixes(space: Space) -> list[int]:
    """Sizes to index instead of the whole; a model without known prefixes is asked once, to hear why not."""
    known = [size for size in space.nested if 64 <= size <= _INDEXED[0]]
    return (known or [min(space.dim // 2, _INDEXED[0])])[:3] if space.dim > 1 else []


def _shortened_index(space: Space, rows: int, limits: Limits, aim: Aim | None) -> Iterator[Layout]:
    """Layouts that keep the whole vector to re-rank, and search less of it."""
    dim = space.dim
    if aim is not None:

        def short(shorten: Shorten) -> Layout:
            return Layout(index=_hnsw("float16", _WIDTH, shorten), oversample=MOST)

        for shorten in _smallest("truncate", space, aim, short):
            yield from _both(_hnsw("float16", _WIDTH, shorten), rows, oversample=MOST)
        yield from _signs(dim, rows, limits, least=1)
        for shorten in _smallest("pca", space, aim, short):
            yield from _both(_hnsw("float16", _WIDTH, shorten), rows, oversample=MOST)
        return
    for size in _prefixes(space):
        yield from _both(_hnsw("float16", 200, Shorten("truncate", size)), rows, oversample=20)
    yield from _signs(dim, rows, limits, least=_SIGNS)
    for size in _INDEXED:
        if size * 2 <= dim:
            yield from _both(_hnsw("float16", 200, Shorten("pca", size)), rows, oversample=20)
            if size < _INDEXED[0]:  # a float32 projection of 1,024 dimensions costs a page per row
                yield from _both(_hnsw("float32", 200, Shorten("pca", size)), rows, oversample=20)


def _signs(dim: int, rows: int, limits: Limits, *, least: int) -> Iterator[Layout]:
    if dim < least:
        return
    if limits.page and dim > largest_inline(Layout(index=Index("scan", "float16")), limits.page):
        yield Layout(index=Index("scan", "bit"), oversample=40)
    yield from _both(_hnsw("bit", 400), rows, oversample=40)


def _both(index: Index, rows: int, *, oversample: int) -> Iterator[Layout]:
    yield Layout(index=index, oversample=oversample)
    yield Layout(index=_ivfflat(index.element, rows, index.shorten), oversample=oversample)


def _hnsw(element: Element, ef_search: int, shorten: Shorten | None = None) -> Index:
    return Index("hnsw", element, shorten, ef_search=ef_search)


def _ivfflat(element: Element, rows: int, shorten: Shorten | None = None) -> Index:
    """Lists as pgvector's README advises; more probes than it does, for recall on clustered vectors."""
    lists = min(max(rows // 1000 if rows <= 1_000_000 else math.isqrt(rows), 1), 32_768)
    probes = min(lists, max(10, math.ceil(1.5 * math.sqrt(lists))))
    return Index("ivfflat", element, shorten, lists=lists, probes=probes)


def _halves(dim: int) -> bool:
    full = sizes.hnsw_bytes(1000, "float32", dim)
    return sizes.hnsw_bytes(1000, "float16", dim) <= _HALF * full


def _qdrant_whole(door: Shorten | None, spread: Spread | None) -> Iterator[Layout]:
    """Layouts of Qdrant that search all stored dimensions, in full or with 8 or 4 bits for each."""
    for element in _STORED:
        yield Layout(element, shorten=door, spread=spread)
        yield Layout(element, shorten=door, index=_graph(element), spread=spread)
        for code in ("int8", "turbo4"):
            yield _quantised(code, element, door, spread)


def _qdrant_shortened(space: Space, spread: Spread | None, aim: Aim | None) -> Iterator[Layout]:
    """Layouts of Qdrant that keep the whole vector to re-rank, and walk the graph with less of it."""
    if aim is not None:

        def short(shorten: Shorten) -> Layout:
            return Layout(index=_graph("float32", shorten), oversample=MOST, spread=spread)

        yield from map(short, _smallest("truncate", space, aim, short))
        yield from _codes(space, spread, least=1)
        yield from map(short, _smallest("pca", space, aim, short))
        return
    for size in _prefixes(space):
        yield Layout(index=_graph("float32", Shorten("truncate", size)), oversample=20, spread=spread)
    yield from _codes(space, spread, least=_SIGNS)
    for size in _INDEXED:
        if size * 2 <= space.dim:
            yield Layout(index=_graph("float32", Shorten("pca", size)), oversample=20, spread=spread)


def _codes(space: Space, spread: Spread | None, *, least: int) -> Iterator[Layout]:
    yield _quantised("turbo2", "float32", None, spread)
    if space.dim >= least:
        for code in ("turbo1", "bit"):
            yield _quantised(code, "float32", None, spread)


# Candidates for each hit, and width of the walk, by what the graph is walked with
_AGAIN: dict[Element, tuple[int, int]] = {
    "int8": (4, 256),
    "turbo4": (4, 256),
    "turbo2": (10, 256),
    "turbo1": (40, 400),
    "bit": (40, 400),
}


def _graph(element: Element, shorten: Shorten | None = None, ef_search: int = 256) -> Index:
    """Qdrant's own m and ef_construct, and a walk twice as wide as its default."""
    return Index("hnsw", element, shorten, ef_construction=100, ef_search=ef_search)


def _quantised(code: Element, element: Stored, door: Shorten | None, spread: Spread | None) -> Layout:
    oversample, ef_search = _AGAIN[code]
    index = _graph(code, ef_search=ef_search)
    return Layout(element, shorten=door, index=index, oversample=oversample, spread=spread)
