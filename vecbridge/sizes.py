"""Bytes, memory and seconds that a layout takes, before anything is stored.

The numbers for pgvector come from the rules by which PostgreSQL and pgvector fill their 8 KB pages; they are
compared with `pg_relation_size` on a real server in the tests; those for Qdrant were measured in its files.
Seconds follow from `speeds`, rough or measured on the place. Documents and metadata are not counted: they
come on top, and only you know how long they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.util import find_spec

from .errors import InputError
from .limits import Limits
from .models import find
from .objections import BITS, QUANTISED, has_copy
from .speeds import DISK, HITS, ROUGH, Rate, Speeds, build_graph, build_lists, walk_graph
from .types import Element, Layout, Space

PAGE = 8192
ID = 20  # an id of 16 characters, its length byte, and the alignment of the vector behind it
DIGEST = 33
METADATA = 5  # an empty JSON object
TOASTED = 2032  # PostgreSQL moves values out of rows above this (TOAST_TUPLE_THRESHOLD)
CHUNK = 1996  # ... in pieces of this size (TOAST_MAX_CHUNK_SIZE)
POINTER = 18  # what stays in the row for each
# dimensions of vectors that flat storage keeps in bytes as well: shorter float32 rows take hardly longer to
# read than what is done with each; of longer ones a product of bytes might leave int32 (2^31 / 127^2)
CODED = (128, 2**17)


@cache
def coded() -> bool:
    """Whether flat storage on this machine keeps bytes: whether the library is installed that reads them."""
    return find_spec("numkong") is not None


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
    `build_seconds`: to build the index once the rows are there, 0.0 without one. `query_seconds`: one search
    for 10 hits, all in. `calibrated`: the seconds are by the speeds of the very place, not by rough ones.
    """

    table_bytes: int
    index_bytes: int
    build_memory_bytes: int
    serve_memory_bytes: int
    scan_seconds: float
    build_seconds: float
    query_seconds: float
    calibrated: bool


def estimate(
    space: Space,
    layout: Layout,
    *,
    rows: int,
    limits: Limits,
    memory: int | None = None,
    speeds: Speeds | None = None,
) -> Estimates:
    """What `rows` vectors take in this layout; where `memory` holds less than is read, at disk speed.

    `speeds`: those that `calibrate` measured on the place; rough ones without. Raises InputError for speeds
    of another backend.
    """
    if speeds is not None and speeds.backend != limits.backend:
        raise InputError(
            f"expected speeds of {limits.backend}, got those of {speeds.backend}; run vecbridge calibrate"
        )
    return _MODELS[limits.backend](space, layout, rows, limits, memory, speeds or ROUGH[limits.backend])


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


def _pgvector(
    space: Space, layout: Layout, rows: int, limits: Limits, memory: int | None, speeds: Speeds
) -> Estimates:
    dim = space.dim
    stored, index = layout.stored_dim(dim), layout.index
    row, vector = row_bytes(layout, stored), vector_bytes(layout.element, stored)
    beside = bool(row.beside) and not layout.inline
    table, heap = math.ceil(rows * (row.heap + row.beside + row.key)), math.ceil(rows * row.heap)
    whole = speeds.scans["beside" if beside else "inline"]
    if index is None:
        read = rows * (vector if beside else row.heap)
        seconds = _seconds(whole, rows, vector, read, memory)
        serve = math.ceil(rows * (row.heap + row.beside))
        return Estimates(table, 0, 0, serve, seconds, 0.0, speeds.trip + seconds, speeds.calibrated)
    element, value = index.element, vector_bytes(index.element, layout.index_dim(dim))
    wanted = min(HITS * layout.oversample, rows)
    again = speeds.again if beside else replace(speeds.again, bytes=speeds.scans["inline"].bytes)
    query = speeds.trip + again.seconds(wanted, vector)
    if index.kind == "scan":
        seconds = _seconds(speeds.scans["inline"], rows, value, heap, memory)
        return Estimates(table, 0, 0, heap, seconds, 0.0, query + seconds, speeds.calibrated)
    # a copy lies in the row, an expression is computed from the stored vector
    build = speeds.start + (
        speeds.scans["inline"].seconds(rows, value) if has_copy(layout) else whole.seconds(rows, vector)
    )
    if index.kind == "hnsw":
        size, seconds = hnsw_bytes(rows, element, layout.index_dim(dim), m=index.m), 0.0
        need = hnsw_memory(rows, element, layout.index_dim(dim), m=index.m)
        build += build_graph(speeds, rows, size=value, index=index)
        walk = walk_graph(speeds, rows, size=value, index=index, wanted=wanted)
        query += walk
    else:
        lists = max(index.lists, 1)
        share = min(max(index.probes, 1) / lists, 1.0)
        size = ivfflat_bytes(rows, element, layout.index_dim(dim), lists=lists)
        need = ivfflat_memory(rows, element, layout.index_dim(dim), lists=lists)
        cached = memory is None or size <= memory
        held = None if cached else 0
        seconds = _seconds(speeds.scans["inline"], math.ceil(rows * share), value, size * share, held)
        build += build_lists(speeds, rows, size=value, lists=lists)
        query += seconds + speeds.scans["inline"].seconds(lists, value)
    return Estimates(table, size, need, size, seconds, build if rows else 0.0, query, speeds.calibrated)


def _flat(
    space: Space, layout: Layout, rows: int, limits: Limits, memory: int | None, speeds: Speeds
) -> Estimates:
    stored = layout.stored_dim(space.dim)
    value = stored * (4 if layout.element == "float32" else 2)
    matrix = rows * value
    seconds = _seconds(speeds.scans[layout.element], rows, value, matrix, memory)
    # a copy in bytes: codes, and 8 bytes a row
    codes = rows * (stored + 8) if coded() and CODED[0] <= stored <= CODED[1] else 0
    # 160 bytes: SQLite's row and its two indexes for an id of 16 characters and a digest
    table = matrix + codes + rows * 160
    return Estimates(table, 0, 0, matrix, seconds, 0.0, speeds.trip + seconds, speeds.calibrated)


# Bytes that Qdrant keeps for each point beside its vectors, measured in the files of Edge 0.9.0: a payload of
# id and digest, in blocks; where it lies; the point's id and version
PAYLOAD, BLOCK, PLACE, IDS = 100, 128, 16, 29
# the log: each component of a vector as a number in CBOR, and the rest of the point; in files of 32 MiB, of
# which one closed is kept (wal_capacity_mb, wal_retain_closed) and one is being filled; Edge removes others
# when it loads a shard
LOG, LOGGED, COMPONENT = 32 * 2**20, 143, 5
# records that ingestion writes at a time; what is written at a time lies in one file of the log
_TOGETHER = 512


def restoring_bytes(space: Space, dim: int) -> float:
    """Bytes beside a vector of so many components that Qdrant brings to length 1, to give it back as it came.

    Its length, and two bits for each component in base64; nothing for vectors that come with length 1, as
    those of most models do.
    """
    model = None if space.model is None else find(space.model)
    if space.metric != "cosine" or model is None or model.normalised is not False:
        return 0.0
    return 40 + dim / 3


def log_bytes(rows: float, each: float) -> float:
    """Bytes of one shard's log after `rows` points were written that take `each` in it.

    Measured at 64 to 3,584 dimensions.
    """
    written = rows * each
    together = min(_TOGETHER * each, LOG)
    full = LOG // together * together if together else LOG
    return written if written <= full else full + written % full


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


def _qdrant(
    space: Space, layout: Layout, rows: int, limits: Limits, memory: int | None, speeds: Speeds
) -> Estimates:
    """Of each machine, where the collection is spread: replicas lie on all of them alike.

    Memory for vectors that a graph is walked with is half as much again as they take: Qdrant's own rule
    (documentation, capacity planning), which makes room for segments being rebuilt. A quantised copy is
    counted as it is: the vectors beside it can stay on disk.
    """
    dim, index, spread = space.dim, layout.index, layout.spread
    stored = layout.stored_dim(dim)
    share, shards, part = 1.0, 1, rows
    if spread is not None:
        share, shards = spread.replication / limits.nodes, spread.shards
        # one machine searches its part of the shards, each of them once
        part = math.ceil(rows / limits.nodes)
    value = _component_bytes(layout.element, stored)
    # a vector of its own for the index is stored and logged as well
    short = index.shorten.dim if index is not None and index.shorten else 0
    own = _component_bytes(index.element, short) if index is not None and short else 0
    rest = restoring_bytes(space, stored)
    log = shards * log_bytes(rows / shards, COMPONENT * (stored + short) + LOGGED + rest)
    held = rows * (value + own + PLACE + BLOCK * math.ceil((PAYLOAD + rest) / BLOCK) + IDS)
    table = math.ceil(share * (held + log))
    if index is None:
        seconds = _seconds(speeds.scans[layout.element], part, value, part * value, memory)
        serve = math.ceil(share * rows * (value + IDS))
        return Estimates(table, 0, 0, serve, seconds, 0.0, speeds.trip + seconds, speeds.calibrated)
    links = graph_bytes(rows, index.m)
    codes = 0
    if index.element in QUANTISED:
        codes = walked = rows * quantised_bytes(index.element, stored)
    else:
        walked = math.ceil(1.5 * rows * _component_bytes(index.element, layout.index_dim(dim)))
    # while the graph is built its links are whole numbers in lists of their own: measured 241 bytes at m = 16
    memory_to_build = walked + rows * (8 * index.m + 112)
    serve = walked + links + rows * IDS
    # what the graph is walked with counts as a whole vector of as many dimensions: see `speeds`
    wanted, size = min(HITS * layout.oversample, rows), _component_bytes("float32", layout.index_dim(dim))
    again = speeds.again.seconds(wanted if layout.oversample > 1 else 0, value)
    if short:
        again += speeds.stage
    walk = walk_graph(speeds, part, size=size, index=index, wanted=wanted)
    build = speeds.start + build_graph(speeds, math.ceil(share * rows), size=size, index=index)
    # segments with an index are written anew
    build += share * held / speeds.copies if speeds.copies else 0.0
    return Estimates(
        table,
        math.ceil(share * (links + codes)),
        math.ceil(share * memory_to_build),
        math.ceil(share * serve),
        0.0,
        build if rows else 0.0,
        speeds.trip + walk + again,
        speeds.calibrated,
    )


def _seconds(rate: Rate, rows: int, value: int, read: float, memory: int | None) -> float:
    """Seconds to compare `rows` vectors of `value` bytes; at disk speed where `read` exceeds `memory`."""
    seconds = rate.seconds(rows, value)
    if memory is not None and read > memory:
        seconds = max(seconds, read / DISK.bytes)
    return seconds


_MODELS: dict[str, Callable[[Space, Layout, int, Limits, int | None, Speeds], Estimates]] = {
    "flat": _flat,
    "pgvector": _pgvector,
    "qdrant": _qdrant,
    "edge": _qdrant,
}
