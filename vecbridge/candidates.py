"""The policy: which layouts are worth considering for a backend, in order of preference.

The more exact comes first, what cannot be undone last. What a backend cannot hold is listed too: its limits
object with a sentence, and the reader learns why not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, TypeAlias

from . import sizes
from .limits import Limits
from .objections import largest_inline
from .types import Element, Index, Layout, Shorten, Space, Spread

Stored: TypeAlias = Literal["float32", "float16"]
_STORED: tuple[Stored, ...] = ("float32", "float16")

# what the index holds instead of the whole vector where it is shortened: 512 dimensions with re-ranking found
# 99 % of the neighbours in 3,072 (Supabase, 1,000,000 x text-embedding-3-large, February 2024)
_INDEXED = (1024, 512, 256)
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


def candidates(space: Space, rows: int, limits: Limits) -> Iterator[Layout]:
    """Layouts worth considering, in order of preference: the more exact first, what cannot be undone last."""
    qdrant = limits.backend in ("qdrant", "edge")
    spread = _spread(rows, limits.nodes) if limits.backend == "qdrant" else None

    def whole(dim: int, door: Shorten | None) -> Iterator[Layout]:
        return _qdrant_whole(door, spread) if qdrant else _whole_vectors(dim, rows, limits, door)

    yield from whole(space.dim, None)
    if qdrant:
        yield from _qdrant_shortened(space, spread)
    elif limits.indexed:
        yield from _shortened_index(space, rows, limits)
    for size in space.nested:
        yield from whole(size, Shorten("truncate", size))
    for size in _DOOR:
        if size * 2 <= space.dim:
            yield from whole(size, Shorten("pca", size))


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


def _shortened_index(space: Space, rows: int, limits: Limits) -> Iterator[Layout]:
    """Layouts that keep the whole vector to re-rank, and search less of it."""
    dim = space.dim
    for size in _prefixes(space):
        yield from _both(_hnsw("float16", 200, Shorten("truncate", size)), rows, oversample=20)
    if dim >= _SIGNS:
        if limits.page and dim > largest_inline(Layout(index=Index("scan", "float16")), limits.page):
            yield Layout(index=Index("scan", "bit"), oversample=40)
        yield from _both(_hnsw("bit", 400), rows, oversample=40)
    for size in _INDEXED:
        if size * 2 <= dim:
            yield from _both(_hnsw("float16", 200, Shorten("pca", size)), rows, oversample=20)
            if size < _INDEXED[0]:  # a float32 projection of 1,024 dimensions costs a page per row
                yield from _both(_hnsw("float32", 200, Shorten("pca", size)), rows, oversample=20)


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


def _qdrant_shortened(space: Space, spread: Spread | None) -> Iterator[Layout]:
    """Layouts of Qdrant that keep the whole vector to re-rank, and walk the graph with less of it."""
    for size in _prefixes(space):
        yield Layout(index=_graph("float32", Shorten("truncate", size)), oversample=20, spread=spread)
    yield _quantised("turbo2", "float32", None, spread)
    if space.dim >= _SIGNS:
        for code in ("turbo1", "bit"):
            yield _quantised(code, "float32", None, spread)
    for size in _INDEXED:
        if size * 2 <= space.dim:
            yield Layout(index=_graph("float32", Shorten("pca", size)), oversample=20, spread=spread)


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
