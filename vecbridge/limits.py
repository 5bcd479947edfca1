"""What a backend at one version can store and index: data with sources, and the sentence when it cannot.

A further backend is one more entry in `_BACKENDS`: its numbers, and one function that objects. The numbers of
pgvector were read in its source (files and constants named beside each) and did not move from 0.7.0 to 0.8.6.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from ._version import __version__
from .errors import InputError
from .types import Element, Index, Layout, Shorten, Space

# PostgreSQL's MaxHeapTupleSize, what one row may take of its page: 8192 - MAXALIGN(24 + 4)
ROW_BYTES = 8_160


@dataclass(frozen=True, slots=True)
class Bound:
    """A range of whole numbers that a backend accepts; `since` is the version that brought what it bounds."""

    low: int
    high: int
    source: str
    since: str = ""


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that a backend can do from version `since` on."""

    since: str
    source: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What one backend at one version can store and index.

    `stored`: dimensions per stored element. `indexed`: dimensions per index kind and element, as
    "hnsw float32"; empty for a store that only scans. `ranges`: index parameters, as "hnsw m".
    `features`: version gates. `page`: bytes that a row may take where rows lie in pages, 0 where they do not.
    `assumed`: the version was not given, so that the one named here is an assumption.
    """

    backend: str
    version: str
    stored: Mapping[Element, Bound] = field(hash=False)
    indexed: Mapping[str, Bound] = field(default_factory=dict, hash=False)
    ranges: Mapping[str, Bound] = field(default_factory=dict, hash=False)
    features: Mapping[str, Feature] = field(default_factory=dict, hash=False)
    page: int = 0
    assumed: bool = False

    def objection(self, space: Space, layout: Layout) -> str | None:
        """Why this layout cannot hold this space here, as one sentence with both numbers; None if it can."""
        return _shape(space, layout) or _BACKENDS[self.backend].objection(self, space, layout)

    def has(self, feature: str) -> bool:
        """Whether this version can do `feature`, a key of `features`."""
        return feature in self.features and _order(self.version) >= _order(self.features[feature].since)

    def lacks(self, feature: str, since: str) -> str | None:
        """The sentence for something that came with version `since`, if this version is older."""
        if _order(self.version) >= _order(since):
            return None
        return f"{feature} needs {self.backend} {since}, this is {self.version}"


Objection: TypeAlias = Callable[[Limits, Space, Layout], str | None]


@dataclass(frozen=True, slots=True)
class _Backend:
    limits: Limits
    objection: Objection


def limits(on: str) -> Limits:
    """The limits of "flat", "pgvector" (0.8.0 is assumed), or a version of it such as "pgvector@0.6.2".

    Raises InputError for a backend that is not known, and for a version that is not one.
    """
    if not isinstance(on, str):
        raise InputError(f"expected a backend such as 'pgvector' or 'pgvector@0.6.2', got {on!r}")
    name, at, version = on.strip().lower().partition("@")
    if name not in _BACKENDS:
        raise InputError(
            f"expected a backend with an optional version, such as 'pgvector@0.8.0'; known are "
            f"{', '.join(sorted(_BACKENDS))}; got {on[:60]!r}"
        )
    known = _BACKENDS[name].limits
    if not at:
        return known
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6}){0,3}", version, flags=re.ASCII):
        raise InputError(f"expected a version such as {name}@{known.version}, got {on[:60]!r}")
    return replace(known, version=version, assumed=False)


def largest_inline(layout: Layout, page: int) -> int:
    """Dimensions of the widest vector that stays in its row's page, in the column that `layout` keeps there.

    The row is: header 24 bytes; id, digest, document and metadata, each at most 24 bytes, as PostgreSQL moves
    longer values out of a row that is too big (toast_internals: only attributes above MAXALIGN(18) bytes);
    with a copy column also the 18 bytes that point to the whole vector. Proved on the real table.
    """
    element: Element = layout.element
    before = 24 + 24
    if has_copy(layout):
        assert layout.index is not None
        element = layout.index.element
        before = 24 + 24 + 20  # the pointer's 18 bytes, and the alignment of what follows
    return (page - before - 3 * 24 - 8) * 8 // _BITS[element]


def has_copy(layout: Layout) -> bool:
    """Whether a second column is kept beside the stored vector: a copy to scan, or a projection to index."""
    index = layout.index
    return index is not None and (
        index.kind == "scan" or (index.shorten is not None and index.shorten.method == "pca")
    )


_BITS: dict[Element, int] = {"float32": 32, "float16": 16, "bit": 1}
_NAMES: dict[Element, str] = {
    "float32": "float32 vectors",
    "float16": "half-precision vectors",
    "bit": "binary codes",
}


def _order(version: str) -> tuple[int, ...]:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:4])
    return numbers + (0,) * (4 - len(numbers))


def _shape(space: Space, layout: Layout) -> str | None:
    """What no backend can do: lengths that do not go together."""
    if space.dim < 1:
        return f"vectors have at least 1 dimension; these have {space.dim:,}"
    if layout.oversample < 1:
        return f"oversampling starts at 1; this is {layout.oversample:,}"
    door = _shorter(space, layout.shorten, space.dim)
    if door or layout.index is None:
        return door
    return _shorter(space, layout.index.shorten, layout.stored_dim(space.dim))


def _shorter(space: Space, shorten: Shorten | None, dim: int) -> str | None:
    if shorten is None:
        return None
    if not 1 <= shorten.dim < dim:
        return f"{dim:,} dimensions can be shortened to 1 to {dim - 1:,}; {shorten.dim:,} was asked for"
    if shorten.method == "truncate" and shorten.dim not in space.nested:
        named = space.model or "the model of these vectors"
        if not space.nested:
            return (
                f"{named} is not known as a Matryoshka model: a prefix of its vectors ({shorten.dim:,} of "
                f"{dim:,} dimensions) is not an embedding"
            )
        sizes = ", ".join(f"{size:,}" for size in space.nested)
        return f"{named} was trained for prefixes of {sizes} dimensions; {shorten.dim:,} was asked for"
    return None


def _within(bound: Bound, value: int, name: str) -> str | None:
    if bound.low <= value <= bound.high:
        return None
    return f"{name} takes {bound.low:,} to {bound.high:,}; this is {value:,}"


def _flat(limits: Limits, space: Space, layout: Layout) -> str | None:
    if layout.index is not None:
        return f"flat storage has no index: it always scans; {layout.index.kind} was asked for"
    if layout.inline:
        return "flat storage keeps vectors in a matrix of their own: there are no pages for them to lie in"
    return None


def _pgvector(limits: Limits, space: Space, layout: Layout) -> str | None:
    stored = layout.stored_dim(space.dim)
    bound = limits.stored[layout.element]
    if lacking := limits.lacks(_TYPES[layout.element], bound.since):
        return lacking
    if stored > bound.high:
        return (
            f"pgvector stores {_NAMES[layout.element]} of up to {bound.high:,} dimensions; these have "
            f"{stored:,} and must be shortened at the door"
        )
    if layout.inline and has_copy(layout):
        return f"one row holds either the vector of {stored:,} dimensions or its copy inline, not both"
    if layout.inline and stored > (most := largest_inline(layout, limits.page)):
        return (
            f"{_NAMES[layout.element]} fit a row's page up to {most:,} dimensions; these have {stored:,}, "
            f"and are kept beside the row"
        )
    return None if layout.index is None else _pgvector_index(limits, space, layout, layout.index)


def _pgvector_index(limits: Limits, space: Space, layout: Layout, index: Index) -> str | None:
    dim, stored = layout.index_dim(space.dim), layout.stored_dim(space.dim)
    if lacking := limits.lacks(_TYPES[index.element], limits.stored[index.element].since):
        return lacking
    if index.kind == "scan":
        most = largest_inline(layout, limits.page)
        if dim > most:
            return (
                f"a copy to scan pays where it fits a row's page: {_NAMES[index.element]} up to {most:,} "
                f"dimensions; these have {dim:,}"
            )
        if (_BITS[index.element], dim) >= (_BITS[layout.element], stored):
            return (
                f"a copy to scan must be smaller than the stored {_NAMES[layout.element]} of {stored:,} "
                f"dimensions; this one has {dim:,} of {index.element}"
            )
        return None
    bound = limits.indexed[f"{index.kind} {index.element}"]
    if lacking := limits.lacks(index.kind, bound.since):
        return lacking
    if index.shorten and index.shorten.method == "truncate":
        lacking = limits.lacks("subvector (an index on a prefix)", limits.features["subvector"].since)
        if lacking:
            return lacking
    if _BITS[index.element] > _BITS[layout.element]:
        return (
            f"an index of {_NAMES[index.element]} cannot be more precise than the stored "
            f"{_NAMES[layout.element]} of {stored:,} dimensions"
        )
    if dim > bound.high:
        return (
            f"{index.kind} on {_NAMES[index.element]} stops at {bound.high:,} dimensions; these have {dim:,}"
        )
    ranges = limits.ranges
    if index.kind == "hnsw":
        if index.ef_construction < 2 * index.m:
            return (
                f"ef_construction must be at least 2 x m = {2 * index.m:,}; this is {index.ef_construction:,}"
            )
        return (
            _within(ranges["hnsw m"], index.m, "m of hnsw")
            or _within(ranges["hnsw ef_construction"], index.ef_construction, "ef_construction of hnsw")
            or (
                _within(ranges["hnsw ef_search"], index.ef_search, "ef_search of hnsw")
                if index.ef_search
                else None
            )
        )
    if dim == 1 and space.metric != "l2" and index.element != "bit":
        return f"ivfflat under {space.metric} needs at least 2 dimensions; these have 1"
    return (_within(ranges["ivfflat lists"], index.lists, "lists of ivfflat") if index.lists else None) or (
        _within(ranges["ivfflat probes"], index.probes, "probes of ivfflat") if index.probes else None
    )


# the SQL type behind an element, as an objection names it
_TYPES: dict[Element, str] = {"float32": "vector", "float16": "halfvec", "bit": "indexing bit"}

_FLAT = Limits(
    "flat",
    __version__,
    stored={
        # far beyond any model; a row's bytes stay well within a 64-bit file offset
        "float32": Bound(1, 2**31 - 1, "vecbridge/backends/flat.py: a memory-mapped matrix"),
        "float16": Bound(1, 2**31 - 1, "vecbridge/backends/flat.py: a memory-mapped matrix"),
    },
)

_PGVECTOR = Limits(
    "pgvector",
    "0.8.0",
    stored={
        "float32": Bound(1, 16_000, "src/vector.h VECTOR_MAX_DIM", "0.4.0"),
        "float16": Bound(1, 16_000, "src/halfvec.h HALFVEC_MAX_DIM", "0.7.0"),
        "bit": Bound(1, 64_000, "bit is PostgreSQL's own; src/hnswutils.c HNSW_MAX_DIM * 32", "0.7.0"),
    },
    indexed={
        "hnsw float32": Bound(1, 2_000, "src/hnsw.h HNSW_MAX_DIM", "0.5.0"),
        "hnsw float16": Bound(1, 4_000, "src/hnswutils.c HNSW_MAX_DIM * 2", "0.7.0"),
        "hnsw bit": Bound(1, 64_000, "src/hnswutils.c HNSW_MAX_DIM * 32", "0.7.0"),
        "ivfflat float32": Bound(1, 2_000, "src/ivfflat.h IVFFLAT_MAX_DIM", "0.4.0"),
        "ivfflat float16": Bound(1, 4_000, "src/ivfutils.c IVFFLAT_MAX_DIM * 2", "0.7.0"),
        "ivfflat bit": Bound(1, 64_000, "src/ivfutils.c IVFFLAT_MAX_DIM * 32", "0.7.0"),
    },
    ranges={
        "hnsw m": Bound(2, 100, "src/hnsw.h HNSW_MIN_M, HNSW_MAX_M", "0.5.0"),
        "hnsw ef_construction": Bound(4, 1_000, "src/hnsw.h HNSW_MAX_EF_CONSTRUCTION", "0.5.0"),
        "hnsw ef_search": Bound(1, 1_000, "src/hnsw.h HNSW_MAX_EF_SEARCH", "0.5.0"),
        "ivfflat lists": Bound(1, 32_768, "src/ivfflat.h IVFFLAT_MAX_LISTS"),
        "ivfflat probes": Bound(1, 32_768, "src/ivfflat.h IVFFLAT_MAX_LISTS"),
    },
    features={
        "hnsw": Feature("0.5.0", "CHANGELOG.md 0.5.0"),
        "parallel hnsw build": Feature("0.6.0", "CHANGELOG.md 0.6.0"),
        "halfvec": Feature("0.7.0", "CHANGELOG.md 0.7.0"),
        "subvector": Feature("0.7.0", "CHANGELOG.md 0.7.0"),
        "binary_quantize": Feature("0.7.0", "CHANGELOG.md 0.7.0"),
        "iterative scan": Feature("0.8.0", "CHANGELOG.md 0.8.0"),
        "repaired hnsw vacuum": Feature("0.8.4", "CHANGELOG.md 0.8.3 and 0.8.4"),
    },
    page=ROW_BYTES,
    assumed=True,
)

_BACKENDS = {"flat": _Backend(_FLAT, _flat), "pgvector": _Backend(_PGVECTOR, _pgvector)}
