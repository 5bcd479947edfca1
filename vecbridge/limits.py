"""What a backend at one version can store and index: data with sources.

A further backend is one more entry in `_BACKENDS`: its numbers, and the function of `objections` that says in
a sentence what they do not allow. The numbers of pgvector were read in its source (files and constants named
beside each) and did not move from 0.7.0 to 0.8.6; those of Qdrant in the source of 1.19.0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from . import objections
from ._version import __version__
from .errors import InputError
from .types import Element, Layout, Space


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
    `assumed`: the version was not given, so that the one named here is an assumption. `nodes`: machines that
    share the work, where the backend spreads a collection over several. `fixed`: what is stored already, in a
    table that others own, where nothing but an index can be added.
    """

    backend: str
    version: str
    stored: Mapping[Element, Bound] = field(hash=False)
    indexed: Mapping[str, Bound] = field(default_factory=dict, hash=False)
    ranges: Mapping[str, Bound] = field(default_factory=dict, hash=False)
    features: Mapping[str, Feature] = field(default_factory=dict, hash=False)
    page: int = 0
    assumed: bool = False
    nodes: int = 1
    fixed: Element | None = None

    def objection(self, space: Space, layout: Layout) -> str | None:
        """Why this layout cannot hold this space here, as one sentence with both numbers; None if it can."""
        return objections.shape(space, layout) or _BACKENDS[self.backend].objection(self, space, layout)

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
    """The limits of "flat", "pgvector", "qdrant" or "edge" (Qdrant in this process), or "pgvector@0.6.2".

    Without a version, a recent one is assumed and says so in `assumed`.

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


def _order(version: str) -> tuple[int, ...]:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:4])
    return numbers + (0,) * (4 - len(numbers))


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
    page=objections.ROW_BYTES,
    assumed=True,
)

_DENSE = Bound(1, 65_536, "lib/api/build.rs VectorParams.size, lib/collection/src/operations/types.rs")

_QDRANT = Limits(
    "qdrant",
    "1.19.0",
    stored={"float32": _DENSE, "float16": _DENSE},
    indexed={
        f"hnsw {element}": _DENSE
        for element in ("float32", "float16", "int8", "turbo4", "turbo2", "turbo1", "bit")
    },
    ranges={
        # the upper end was only ever a comment there; a graph of longer lists than that serves nobody
        "hnsw m": Bound(1, 10_000, "lib/api/build.rs HnswConfigDiff.m; 0 is no graph"),
        "hnsw ef_construction": Bound(4, 2**31 - 1, "lib/api/build.rs HnswConfigDiff.ef_construct"),
        "hnsw ef_search": Bound(1, 2**31 - 1, "lib/segment/src/types.rs SearchParams.hnsw_ef: no maximum"),
    },
    features={
        "asymmetric binary quantization": Feature(
            "1.15.0", "collections.proto BinaryQuantizationQueryEncoding"
        ),
        "collection metadata": Feature("1.16.0", "collections.proto CreateCollection.metadata"),
        "acorn": Feature("1.16.0", "points.proto AcornSearchParams"),
        "turboquant": Feature("1.18.0", "collections.proto TurboQuantization"),
        "memory placement": Feature("1.19.0", "collections.proto Memory"),
    },
    assumed=True,
)

# Edge counts its versions for itself, and has had all of this from the first that vecbridge works with
_EDGE = replace(
    _QDRANT,
    backend="edge",
    version="0.9.0",
    features={name: Feature("0", "qdrant-edge-py 0.9.0") for name in _QDRANT.features},
)

_BACKENDS = {
    "flat": _Backend(_FLAT, objections.flat),
    "pgvector": _Backend(_PGVECTOR, objections.pgvector),
    "qdrant": _Backend(_QDRANT, objections.qdrant),
    "edge": _Backend(_EDGE, objections.qdrant),
}
