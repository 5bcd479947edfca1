"""Why a backend cannot hold a layout: one sentence each, with the numbers.

The numbers themselves are data in `limits`; what is here turns them into objections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .types import Element, Index, Layout, Shorten, Space, Spread

if TYPE_CHECKING:
    from .limits import Bound, Limits

# PostgreSQL's MaxHeapTupleSize, what one row may take of its page: 8192 - MAXALIGN(24 + 4)
ROW_BYTES = 8_160


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
    return (page - before - 3 * 24 - 8) * 8 // BITS[element]


def has_copy(layout: Layout) -> bool:
    """Whether a second column is kept beside the stored vector: a copy to scan, or a projection to index."""
    index = layout.index
    return index is not None and (
        index.kind == "scan" or (index.shorten is not None and index.shorten.method == "pca")
    )


# bits that an element takes for each component
BITS: dict[Element, int] = {
    "float32": 32,
    "float16": 16,
    "int8": 8,
    "turbo4": 4,
    "turbo2": 2,
    "turbo1": 1,
    "bit": 1,
}
# what Qdrant keeps beside the stored vectors, to walk the graph with
QUANTISED: frozenset[Element] = frozenset({"int8", "turbo4", "turbo2", "turbo1", "bit"})
_NAMES: dict[Element, str] = {
    "float32": "float32 vectors",
    "float16": "half-precision vectors",
    "bit": "binary codes",
}
# the SQL type behind an element, as an objection names it
_TYPES: dict[Element, str] = {"float32": "vector", "float16": "halfvec", "bit": "indexing bit"}


def shape(space: Space, layout: Layout) -> str | None:
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


def flat(limits: Limits, space: Space, layout: Layout) -> str | None:
    """What a matrix in a file cannot do."""
    if layout.spread is not None:
        return _one_machine("flat storage lies in one folder", layout.spread)
    if layout.index is not None:
        if layout.index.element not in _TYPES:
            return _quantised_elsewhere(layout.index)
        return f"flat storage has no index: it always scans; {layout.index.kind} was asked for"
    if layout.inline:
        return "flat storage keeps vectors in a matrix of their own: there are no pages for them to lie in"
    return None


def pgvector(limits: Limits, space: Space, layout: Layout) -> str | None:
    """What PostgreSQL with pgvector cannot do."""
    if layout.spread is not None:
        return _one_machine("pgvector keeps a table on one machine", layout.spread)
    if layout.index is not None and layout.index.element not in _TYPES:
        return _quantised_elsewhere(layout.index)
    if limits.fixed is not None and (
        layout.element != limits.fixed or layout.inline or layout.shorten is not None or has_copy(layout)
    ):
        names = _NAMES[limits.fixed]
        return f"the table is another's: its {names} stay as they are, and get no column beside them"
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
        if (BITS[index.element], dim) >= (BITS[layout.element], stored):
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
    if BITS[index.element] > BITS[layout.element]:
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


def qdrant(limits: Limits, space: Space, layout: Layout) -> str | None:
    """What Qdrant cannot do, as a server, a cluster, or Edge in this process."""
    stored, bound, spread = layout.stored_dim(space.dim), limits.stored[layout.element], layout.spread
    if stored > bound.high:
        return (
            f"Qdrant stores vectors of up to {bound.high:,} dimensions; these have {stored:,} and must be "
            f"shortened at the door"
        )
    if layout.inline:
        return "inline is PostgreSQL's: Qdrant has no pages for vectors to lie in"
    if spread is not None and (reason := _spread(limits, spread)):
        return reason
    return None if layout.index is None else _qdrant_index(limits, layout, layout.index, stored)


def _qdrant_index(limits: Limits, layout: Layout, index: Index, stored: int) -> str | None:
    if index.kind == "scan":
        return f"Qdrant keeps no copy to scan; one of {index.element} was asked for: it scans what it stores"
    if index.kind != "hnsw":
        return f"hnsw is the one index that Qdrant has for vectors; {index.kind} was asked for"
    if index.element in QUANTISED:
        if index.shorten is not None:
            return (
                f"Qdrant quantises the whole vectors of {stored:,} dimensions here, not what is shortened to "
                f"{index.shorten.dim:,} for the index; {index.element} was asked for"
            )
        if index.element.startswith("turbo"):
            lacking = limits.lacks("turboquant", limits.features["turboquant"].since)
            if lacking:
                return lacking
    elif index.shorten is None and index.element != layout.element:
        return (
            f"an hnsw index without quantisation holds the stored {layout.element} vectors of {stored:,} "
            f"dimensions themselves, not {index.element}: store {index.element}, or quantise"
        )
    ranges = limits.ranges
    return (
        _within(ranges["hnsw m"], index.m, "m of hnsw")
        or _within(ranges["hnsw ef_construction"], index.ef_construction, "ef_construction of hnsw")
        or (
            _within(ranges["hnsw ef_search"], index.ef_search, "ef_search of hnsw")
            if index.ef_search
            else None
        )
    )


def _spread(limits: Limits, spread: Spread) -> str | None:
    if limits.nodes < 2:
        return _one_machine(
            "Edge runs in this process" if limits.backend == "edge" else "this Qdrant is a single machine",
            spread,
        )
    if spread.shards < 1:
        return f"a collection is cut into at least 1 shard; this is {spread.shards:,}"
    if not 1 <= spread.replication <= limits.nodes:
        return (
            f"each shard is kept 1 to {limits.nodes:,} times on {limits.nodes:,} machines; this is "
            f"{spread.replication:,}"
        )
    if not 1 <= spread.write_consistency <= spread.replication:
        return (
            f"1 to {spread.replication:,} of the machines that hold a shard can confirm a write; this is "
            f"{spread.write_consistency:,}"
        )
    return None


def _one_machine(fact: str, spread: Spread) -> str:
    return (
        f"{fact}; {spread.shards:,} shards, each kept {times(spread.replication)}, are for a Qdrant cluster "
        f"of at least 2 machines"
    )


def times(number: int) -> str:
    """How often, in words."""
    return {1: "once", 2: "twice"}.get(number, f"{number:,} times")


def _quantised_elsewhere(index: Index) -> str:
    return (
        f"quantised {index.element} copies ({BITS[index.element]} bits for each dimension) are Qdrant's: "
        f"other stores index float32, float16 and single bits"
    )
