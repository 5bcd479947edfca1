"""Bytes, memory and seconds that a layout takes, before anything is stored.

The numbers for pgvector come from the rules by which PostgreSQL and pgvector fill their 8 KB pages; they are
compared with `pg_relation_size` on a real server in the tests; those for Qdrant were measured in its files.
Seconds are rough: see `RATES`. Documents and metadata are not counted: they come on top, and only you know
how long they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from .errors import InputError
from .limits import Limits
from .objections import BITS, QUANTISED, has_copy
from .types import Element, Index, Layout, Space

PAGE = 8192
ID = 20  # an id of 16 characters, its length byte, and the alignment of the vector behind it
DIGEST = 33
METADATA = 5  # an empty JSON object
TOASTED = 2032  # PostgreSQL moves values out of rows above this (TOAST_TUPLE_THRESHOLD)
CHUNK = 1996  # ... in pieces of this size (TOAST_MAX_CHUNK_SIZE)
POINTER = 18  # what stays in the row for each


_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("KMGTP", 1)
    for unit, base in (("B", 1000), ("IB", 1024))
}


def in_bytes(value: int | str, name: str) -> int:
    """Bytes above 0 from a number, or from text such as "16GB" or "512MiB". Raises InputError with `name`."""
    number = value
    if isinstance(number, str):
        found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]{0,3})\s*", number, flags=re.ASCII)
        if found is None or found[2].upper() not in _UNITS:
            raise InputError(
                f"expected {name} in bytes or as text such as '16GB' (10^9) or '512MiB' (2^20), "
                f"got {number[:40]!r}"
            )
        number = int(float(found[1]) * _UNITS[found[2].upper()])
    if number < 1:
        raise InputError(f"expected {name} above 0 bytes, got {value!r}")
    return number


@dataclass(frozen=True, slots=True)
class Estimates:
    """What a layout takes for a number of rows, without documents and metadata; of each machine, if several.

    `table_bytes`: everything on disk but the search index. `build_memory_bytes`: to build that in memory.
    `serve_memory_bytes`: what searches read again and again, and should therefore stay cached.
    `scan_seconds`: how long one search reads vectors from end to end; 0.0 for hnsw, which walks a graph.
    """

    table_bytes: int
    index_bytes: int
    build_memory_bytes: int
    serve_memory_bytes: int
    scan_seconds: float


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast vectors are compared with one query, serially: seconds for each row, and bytes per second."""

    row: float
    bytes: float
    source: str = field(compare=False)


# Measured with vecbridge's own tables, cosine, one query at a time on two cores of a 2024 server (AMD EPYC),
# PostgreSQL 18.4 and pgvector 0.8.5 with default settings, numpy 2.4 for flat. A cost model within a factor
# of two: processors, caches and neighbours differ.
RATES = {
    "inline": Rate(
        0.35e-6, 2.7e9, "float32 768 to 2,008: 1.9 to 3.1 us; float16 3,584: 3.0 us; bit 4,096: 0.4 us"
    ),
    "beside": Rate(
        1.0e-6, 1.0e9, "float32 768, 1,536, 3,584 TOASTed: 3.9, 8.3, 22.8 us; float16 3,584: 8.6 us"
    ),
    "flat float32": Rate(
        0.02e-6, 8e9, "float32 8, 384, 3,584: 0.009, 0.09, 0.6 us in memory; mapped files less"
    ),
    "flat float16": Rate(
        0.02e-6, 0.7e9, "float16 384, 3,584: 1.5, 10 us; numpy converts before it multiplies"
    ),
    "qdrant float32": Rate(
        0.05e-6, 8e9, "Edge 0.9.0, 1,024: 0.55 us on a busy machine, 0.19 us on an idle one, in its caches"
    ),
    "qdrant float16": Rate(
        0.05e-6, 6e9, "Edge 0.9.0, 1,024: 0.37 us on a busy machine, 0.09 us on an idle one, in its caches"
    ),
    "disk": Rate(0.0, 0.5e9, "an ordinary SSD; assumed where the memory budget does not hold what is read"),
}


def estimate(
    space: Space, layout: Layout, *, rows: int, limits: Limits, memory: int | None = None
) -> Estimates:
    """What `rows` vectors take in this layout; where `memory` holds less than is read, at disk speed."""
    return _MODELS[limits.backend](space.dim, layout, rows, limits, memory)


def vector_bytes(element: Element, dim: int) -> int:
    """Bytes of one vector value in PostgreSQL, with its 8 bytes of length and dimension."""
    return 8 + _component_bytes(element, dim)


def _component_bytes(element: Element, dim: int) -> int:
    return (dim * BITS[element] + 7) // 8


def _align(size: int) -> int:
    return (size + 7) // 8 * 8


def hnsw_bytes(rows: int, element: Element, dim: int, *, m: int = 16) -> int:
    """Bytes of a fresh HNSW index. Source: pgvector src/hnswbuild.c CreateGraphPages, src/hnsw.h."""
    return PAGE + math.ceil(rows * _hnsw_pages(vector_bytes(element, dim), m)) * PAGE


@lru_cache(maxsize=1024)
def _hnsw_pages(value: int, m: int) -> float:
    """Pages per row, found by filling pages as the build does.

    An element goes on a page together with its neighbours where both fit on one page at all, and the
    neighbours follow on the next page where they do not. One row in m has a level more, and with it a larger
    list of neighbours: that alone makes 1,968 float32 dimensions cost 6 % more than one page per row.
    """
    whole = PAGE - 24 - 8  # page header; what pgvector keeps at a page's end
    element, rows = _align(72 + value), 20 * m
    pages, free = 1, whole
    for row in range(rows):
        level = 0 if (row + 1) % m else 1 if (row + 1) % (m * m) else 2
        neighbours = _align(4 + 6 * m * (level + 2))
        both = element + neighbours + 8  # two line pointers
        if free < element + 4 or (both <= whole and free < both):
            pages, free = pages + 1, whole
        free -= element + 4
        if free < neighbours + 4:
            pages, free = pages + 1, whole
        free -= neighbours + 4
    return pages / rows


def ivfflat_bytes(rows: int, element: Element, dim: int, *, lists: int) -> int:
    """Bytes of a fresh IVFFlat index. Source: pgvector src/ivfbuild.c InsertTuples, CreateListPages."""
    whole = PAGE - 24 - 8
    value = vector_bytes(element, dim)
    per_page = max(whole // (_align(8 + value) + 4), 1)
    centres = math.ceil(lists / max(whole // (_align(16 + value) + 4), 1))
    # every list begins on a page of its own, and its last page is on average half empty
    each = rows / lists / per_page
    listed = lists * (1.0 if each <= 1 else each + 0.5 * (per_page - 1) / per_page)
    return (1 + centres + math.ceil(listed)) * PAGE


def hnsw_memory(rows: int, element: Element, dim: int, *, m: int = 16) -> int:
    """Bytes in which an HNSW graph is built without spilling.

    205 + 32 m bytes per row beside the vector: measured from the notice "hnsw graph no longer fits into
    maintenance_work_mem", 715 bytes at m = 16 and 1,225 at m = 32; the growth is HnswCandidate's 16 bytes for
    2 m neighbours.
    """
    return rows * (vector_bytes(element, dim) + 205 + 32 * m)


def ivfflat_memory(rows: int, element: Element, dim: int, *, lists: int) -> int:
    """Bytes of the k-means behind IVFFlat; a hard error where maintenance_work_mem is below.

    Room is made for 50 samples per list, at least 10,000, even where there are fewer rows (from 0.8.4 on it
    is less where the table has few pages). Source: pgvector src/ivfbuild.c ComputeCenters, src/ivfkmeans.c
    ElkanKmeans, "memory required is …".
    """
    value, room = vector_bytes(element, dim), max(50 * lists, 10_000)
    samples = min(room, rows)
    return (room + 2 * lists) * value + 4 * lists * dim + 4 * samples * (lists + 2) + 4 * lists * lists


@dataclass(frozen=True, slots=True)
class Table:
    """Bytes of one row of pgvector's table by where they lie."""

    heap: float
    beside: float
    key: float = PAGE / ((PAGE - 40) * 0.8 // 36)  # the primary key, its pages four fifths full


@lru_cache(maxsize=1024)
def row_bytes(layout: Layout, dim: int) -> Table:
    """Where one row of `dim` stored dimensions lies: in the table's pages, and beside them (TOAST).

    Source: PostgreSQL src/include/access/heaptoast.h, src/backend/access/heap/heaptoast.c.
    """
    vector, copy = vector_bytes(layout.element, dim), 0
    if has_copy(layout):
        assert layout.index is not None
        copy = vector_bytes(layout.index.element, layout.index_dim(dim))
    fixed = 24 + ID + METADATA
    moved: list[int] = []
    heap = fixed + vector + copy + DIGEST
    # the biggest value leaves first, until the row is small enough; an inline vector never does
    for value in sorted((copy, DIGEST) if layout.inline else (vector, DIGEST), reverse=True):
        if heap > TOASTED and value > 24:
            heap += POINTER - value
            moved.append(value)
    per_page = max((PAGE - 24) // (_align(heap) + 4), 1)
    return Table(PAGE / per_page, sum(_beside(value) for value in moved))


@lru_cache(maxsize=1024)
def _beside(value: int) -> float:
    """Bytes of the TOAST table and its index for one value, found by filling pages as PostgreSQL does.

    A piece goes on the page written last, else on one that a larger piece did not fit, else on a new one.
    """
    data, rows = value - 4, 48
    pieces = [CHUNK] * (data // CHUNK) + ([data % CHUNK] if data % CHUNK else [])
    pages, free, holes = 1, PAGE - 24, list[int]()
    for piece in pieces * rows:
        need = _align(24 + 12 + piece) + 4
        if free < need:
            holes.append(free)
            fitting = next((hole for hole in holes if hole // 32 * 32 >= need), None)
            if fitting is None:
                pages, free = pages + 1, PAGE - 24
            else:
                holes.remove(fitting)
                free = fitting
        free -= need
    return pages * PAGE / rows + len(pieces) * 20 / 0.9


def _pgvector(dim: int, layout: Layout, rows: int, limits: Limits, memory: int | None) -> Estimates:
    stored, index = layout.stored_dim(dim), layout.index
    row = row_bytes(layout, stored)
    table = math.ceil(rows * (row.heap + row.beside + row.key))
    if index is None:
        vector = vector_bytes(layout.element, stored)
        read = rows * (vector if row.beside and not layout.inline else row.heap)
        seconds = _seconds(
            "beside" if row.beside and not layout.inline else "inline", rows, vector, read, memory
        )
        return Estimates(table, 0, 0, math.ceil(rows * (row.heap + row.beside)), seconds)
    return _pgvector_index(index, layout.index_dim(dim), rows, memory, table, math.ceil(rows * row.heap))


def _pgvector_index(
    index: Index, dim: int, rows: int, memory: int | None, table: int, heap: int
) -> Estimates:
    element, value = index.element, vector_bytes(index.element, dim)
    if index.kind == "scan":
        return Estimates(table, 0, 0, heap, _seconds("inline", rows, value, heap, memory))
    if index.kind == "hnsw":
        size = hnsw_bytes(rows, element, dim, m=index.m)
        return Estimates(table, size, hnsw_memory(rows, element, dim, m=index.m), size, 0.0)
    lists = max(index.lists, 1)
    share = min(max(index.probes, 1) / lists, 1.0)
    size = ivfflat_bytes(rows, element, dim, lists=lists)
    cached = memory is None or size <= memory
    seconds = _seconds("inline", math.ceil(rows * share), value, size * share, None if cached else 0)
    return Estimates(table, size, ivfflat_memory(rows, element, dim, lists=lists), size, seconds)


def _flat(dim: int, layout: Layout, rows: int, limits: Limits, memory: int | None) -> Estimates:
    value = layout.stored_dim(dim) * (4 if layout.element == "float32" else 2)
    matrix = rows * value
    seconds = _seconds(f"flat {layout.element}", rows, value, matrix, memory)
    # 160 bytes: SQLite's row and its two indexes for an id of 16 characters and a digest
    return Estimates(matrix + rows * 160, 0, 0, matrix, seconds)


# Bytes that Qdrant keeps for each point beside its vectors, measured in the files of Edge 0.9.0: a block of
# 128 for a payload of id and digest, 16 for where it lies, 29 for the point's id and version
PAYLOAD, IDS = 144, 29
# the log: what was written last, in files of 32 MiB of which one closed is kept and one is being filled
LOG, LOGGED = 48 * 2**20, 400


def graph_bytes(rows: int, m: int) -> int:
    """Bytes of Qdrant's graph once built: links to 2 m others in as few bits as their number needs.

    Vectors fill three quarters of their lists: measured 55 to 95 %, more where they lie like noise.
    Source: lib/segment/src/index/hnsw_index/graph_links, links_compressed.bin.
    """
    return math.ceil(rows * 0.75 * 2 * m * max(math.log2(max(rows, 2)), 1) / 8)


def quantised_bytes(element: Element, dim: int) -> int:
    """Bytes of one vector's quantised copy in Qdrant, with its scale and offset; measured on Edge 0.9.0."""
    extra = 0 if element == "bit" else 4 if element == "int8" else 8
    return _component_bytes(element, dim) + extra


def _qdrant(dim: int, layout: Layout, rows: int, limits: Limits, memory: int | None) -> Estimates:
    """Of each machine, where the collection is spread: replicas lie on all of them alike.

    Memory for vectors that a graph is walked with is half as much again as they take: Qdrant's own rule
    (documentation, capacity planning), which makes room for segments being rebuilt. A quantised copy is
    counted as it is: the vectors beside it can stay on disk.
    """
    stored, index, spread = layout.stored_dim(dim), layout.index, layout.spread
    share, shards = 1.0, 1
    if spread is not None:
        share, shards = spread.replication / limits.nodes, spread.shards
    value = _component_bytes(layout.element, stored)
    # a vector of its own for the index is logged as well
    short = index.shorten.dim if index is not None and index.shorten else 0
    log = min(rows * (4 * (stored + short) + LOGGED), shards * LOG)
    table = math.ceil(share * (rows * (value + PAYLOAD + IDS) + log))
    if index is None:
        # one machine scans its part of the shards, each of them once
        part = math.ceil(rows / limits.nodes) if spread is not None else rows
        seconds = _seconds(f"qdrant {layout.element}", part, value, part * value, memory)
        return Estimates(table, 0, 0, math.ceil(share * rows * (value + IDS)), seconds)
    links = graph_bytes(rows, index.m)
    if index.element in QUANTISED:
        held = rows * quantised_bytes(index.element, stored)
        walked = held
    else:
        held = rows * _component_bytes(index.element, short)
        walked = math.ceil(1.5 * rows * _component_bytes(index.element, layout.index_dim(dim)))
    # while the graph is built its links are whole numbers in lists of their own: measured 241 bytes at m = 16
    build = walked + rows * (8 * index.m + 112)
    serve = walked + links + rows * IDS
    return Estimates(
        table, math.ceil(share * (links + held)), math.ceil(share * build), math.ceil(share * serve), 0.0
    )


def _seconds(rate: str, rows: int, value: int, read: float, memory: int | None) -> float:
    """Seconds to compare `rows` vectors of `value` bytes; at disk speed where `read` exceeds `memory`."""
    seconds = rows * (RATES[rate].row + value / RATES[rate].bytes)
    if memory is not None and read > memory:
        seconds = max(seconds, read / RATES["disk"].bytes)
    return seconds


_MODELS: dict[str, Callable[[int, Layout, int, Limits, int | None], Estimates]] = {
    "flat": _flat,
    "pgvector": _pgvector,
    "qdrant": _qdrant,
    "edge": _qdrant,
}
