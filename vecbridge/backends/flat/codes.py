"""A copy of the vectors in bytes, and how wrong it can be: what one query reads instead of float32.

A row x of float32 becomes x' = s c with codes c of int8 and a scale s; |x - x'| is kept beside it, rounded
up. With a query q of length 1 and its own q' = t b,

    |q·x - q'·x'| = |q·(x - x') + (q - q')·x'| <= |x - x'| + |q - q'| |x'|,   |x'| <= |x| + |x - x'|.

b·c is a sum of products of at most 127^2, exact in int32 up to 133,144 dimensions. How the rest is rounded,
with u = 2^-24:

- s = fl(m / 127), m the largest component's size; y = fl(x fl(127 / m)) differs from x / s by at most
  4u |x| / s as a vector. c = rint(y) lies in -127 to 127, and y - c is exact (both are multiples of the last
  place of y, and it is at most 1/2). Its length in float32 is wrong by (d + 8) u relatively at most, plus
  what underflows. So |x - x'| <= s |y - c| (1 + (d + 8) u) + 4u |x|, which is what is stored, rounded up.
- Rows whose m lies below 2^-100 would leave the range in which float32 rounds relatively: their codes are 0
  and their error is their length. Rows longer than 2^120 count as unknown (see `bounds`).
- The query, its scale and its error are float64, and so are the products: 2^-40 (|x| + |x - x'|) covers them.

The 4u |x| is also more than float64 loses when it computes the scores of those that are left, as long as
d < 2^31; so what is compared are bounds of the computed scores, and rows with equal scores stay together.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ...sizes import CODED
from .bounds import Best, bounds, sparse, within

if TYPE_CHECKING:
    from ...types import Metric
    from .matrix import Array, Vectors

    # codes of rows (n, d) and of queries (m, d), int8 -> every dot product (m, n), exact
    Dots: TypeAlias = Callable[[Array, Array], Array]

LEAST, MOST = CODED  # dimensions
FEW = 12  # queries; from here on BLAS is as fast on float32
_SCANNED = 2**21  # components; fewer are scanned in float32 before another thread has woken up
_SHARE = 16  # at least so many rows for each that is asked for
_CROWD = 4  # where one row in so many is left, the plain scan is no slower
_LEVELS = 127
_TINY = 2.0**-100
_U = 2.0**-24
_SHARED = 2**20  # components that are worth a thread
_BLOCK = 2**19  # products between two looks at what is left
_PIECE = 2**25  # bytes of codes that one thread multiplies at once


# of each row its scale, and the length of what the codes leave out
SCALES = np.dtype([("scale", "<f4"), ("error", "<f4")])


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Rows in bytes: `matrix` int8 (n, d), and `scales` (n,) as SCALES lays them out."""

    matrix: Array
    scales: Array

    def head(self, n: int) -> Codes:
        """The first `n` rows."""
        return Codes(self.matrix[:n], self.scales[:n])


def encode(vectors: Array, lengths: Array) -> Codes:
    """Rows (n, d), float16 or float32; `lengths` of the rows (n,), float64."""
    rows, dim = vectors.shape
    made = Codes(np.empty((rows, dim), dtype=np.int8), np.empty(rows, dtype=SCALES))
    sizes, squares = np.empty((2, rows), dtype=np.float32)
    # what is gone through several times stays in the processor's cache
    step = max(1, 2**17 // dim)
    parts = deque(range(0, rows, step))

    def work() -> None:
        scaled, near = np.empty((2, min(step, rows), dim), dtype=np.float32)
        for start in _taken(parts):
            part = slice(start, min(start + step, rows))
            _encode(vectors[part], made.matrix[part], sizes[part], squares[part], scaled, near)

    _together(work, min(_THREADS, rows * dim // _SHARED))
    ordinary = sizes >= _TINY
    left = np.sqrt(squares.astype(np.float64) + dim * 2.0**-126)
    scale = np.where(ordinary, sizes / np.float32(_LEVELS), np.float32(0))
    made.scales["scale"] = scale
    error = scale * left * (1 + (dim + 8) * _U) + 4 * _U * lengths
    made.scales["error"] = _above(np.where(ordinary, error, lengths))
    return made


def _encode(rows: Array, codes: Array, sizes: Array, squares: Array, scaled: Array, near: Array) -> None:
    """Fill in the codes of a few rows, the size of each one's largest component m, and |y - c|^2.

    `scaled` and `near`: room for as many rows in float32, which is written over.
    """
    block, scaled, near = rows.astype(np.float32, copy=False), scaled[: len(rows)], near[: len(rows)]
    # the largest component without a copy of absolute values
    np.maximum(block.max(axis=1), -block.min(axis=1), out=sizes)
    ordinary = sizes >= _TINY
    factors = np.where(ordinary, np.float32(_LEVELS) / np.where(ordinary, sizes, 1), np.float32(0))
    np.multiply(block, factors[:, None], out=scaled)
    np.rint(scaled, out=near)
    codes[:] = near
    scaled -= near
    np.einsum("ij,ij->i", scaled, scaled, out=squares)


def _above(values: Array) -> Array:
    """float64 values as float32, none of them smaller while they are in its range; 0 stays 0."""
    # what float32 cannot hold are errors of rows that count as unknown
    single = np.minimum(values, np.finfo(np.float32).max).astype(np.float32)
    return np.where(single < values, np.nextafter(single, np.finfo(np.float32).max), single)


@cache
def dots() -> Dots | None:
    """The fastest exact dot products of int8 vectors that are installed; None without a library for them."""
    try:
        import numkong
    except ImportError:
        return None

    def multiply(rows: Array, queries: Array) -> Array:
        if len(queries) == 1:
            return np.asarray(numkong.cdist(queries, rows, "dot"))
        packed = numkong.dots_pack(queries)
        return np.ascontiguousarray(np.asarray(numkong.dots_packed(rows, packed)).T)

    return multiply if _exact(multiply) else None


def _exact(multiply: Dots) -> bool:
    """Whether sums are exact where they are largest: the proof rests on it."""
    for dim in (LEAST, LEAST + 67, 4 * LEAST + 1):
        codes = np.empty((5, dim), dtype=np.int8)
        codes[:2] = [[_LEVELS], [-_LEVELS]]
        codes[2:] = np.arange(3 * dim).reshape(3, dim) * 89 % (2 * _LEVELS + 1) - _LEVELS
        for queries in (codes[:1], codes):
            if not np.array_equal(multiply(codes, queries), queries.astype(np.int64) @ codes.T):
                return False
    return True


def candidates(
    vectors: Vectors, queries: Array, lengths: Array, *, metric: Metric, k: int, positions: Array | None
) -> list[Array | None]:
    """For each query the ascending positions that may be among its k nearest, found in the codes alone.

    `queries` (m, d) in float64, `lengths` (m,). None for a query of which the codes tell too little to be
    worth it, for all of them where there are no codes, or where reading float32 takes no longer.
    """
    rows = len(vectors.matrix) if positions is None else len(positions)
    nothing: list[Array | None] = [None] * len(queries)
    multiply = dots()
    if multiply is None or vectors.codes is None or len(queries) >= FEW:
        return nothing
    if rows * queries.shape[1] < _SCANNED or rows < _SHARE * k:
        return nothing
    found = _scan(_Ask(vectors, queries, lengths, metric, k, positions), multiply)
    if found is None:
        return nothing
    return [None if len(one) * _CROWD > rows else np.sort(one) for one in found]


class _Ask:
    """What is looked for, with the queries in codes of their own."""

    def __init__(
        self,
        vectors: Vectors,
        queries: Array,
        lengths: Array,
        metric: Metric,
        k: int,
        positions: Array | None,
    ) -> None:
        self.vectors, self.lengths, self.metric = vectors, lengths, metric
        self.k, self.positions = k, positions
        unit = queries / np.where(lengths > 0, lengths, 1)[:, None]
        size = np.abs(unit).max(axis=1)
        self.scales = np.where(size > 0, size, 1) / _LEVELS
        near = np.rint(unit / self.scales[:, None])
        self.codes = near.astype(np.int8)
        left = unit - near * self.scales[:, None]
        # the square of a component below 1e-154 underflows: that much is added
        self.errors = np.sqrt((left * left).sum(axis=1)) * (1 + 2.0**-20) + 2.0**-40

    def __len__(self) -> int:
        return len(self.codes)


def _scan(ask: _Ask, multiply: Dots) -> list[Array] | None:
    """For each query the positions left, in no order; None as soon as they are seen to be too many."""
    best = [Best(ask.k) for _ in range(len(ask))]
    seen = 0
    for at in _blocks(ask):
        first = not seen
        seen += _look(ask, multiply, at, best)
        # of a few rows more are left than of many: so only where nothing can be told apart
        if first and sum(len(one.positions) for one in best) * 8 > 7 * seen * len(best):
            return None
    return [one.positions for one in best]


def _blocks(ask: _Ask) -> Iterator[slice | Array]:
    """The rows in blocks, a small one first to see what comes: slices, or positions where they are few."""
    codes, positions = ask.vectors.codes, ask.positions
    assert codes is not None
    rows, dim = codes.matrix.shape
    gather = sparse(positions, rows, len(ask))
    count = len(positions) if gather and positions is not None else rows
    first = min(count, max(_SHARE * ask.k, count // 32, 2**18 // dim))
    step = max(1, _BLOCK // len(ask))
    for start, end in itertools.pairwise((0, *range(first, count, step), count)):
        yield positions[start:end] if gather and positions is not None else slice(start, end)


def _look(ask: _Ask, multiply: Dots, at: slice | Array, best: list[Best]) -> int:
    """Offer the rows at `at`; returns how many there were."""
    codes = ask.vectors.codes
    assert codes is not None
    where = np.arange(at.start, at.stop) if isinstance(at, slice) else at
    found = _multiplied(ask, multiply, codes.matrix, at, len(where))
    scales, norms = codes.scales[at], ask.vectors.lengths[at]
    here = None if ask.positions is None else within(ask.positions, at, len(where))
    if here is not None:
        found, scales, norms, where = found[:, here], scales[here], norms[here], where[here]
    if not len(where):
        return 0
    scale, error, norms = (one.astype(np.float64) for one in (scales["scale"], scales["error"], norms))
    longest = norms + error
    for row, one, times, length, missed in zip(found, best, ask.scales, ask.lengths, ask.errors, strict=True):
        wrong = error + (missed + 2.0**-40) * longest
        one.offer(where, *bounds(row * (scale * times), wrong, norms, length, ask.vectors.dim, ask.metric))
    return len(where)


def _multiplied(ask: _Ask, multiply: Dots, matrix: Array, at: slice | Array, count: int) -> Array:
    """Products of every query with the rows at `at`, (m, n) in float64; by several threads where it pays."""
    found = np.empty((len(ask), count))
    dim = matrix.shape[1]
    # threads do nothing but multiply: what needs the interpreter is quicker done by one of them at once
    threads = min(_THREADS, max(1, count * dim // _SHARED))
    share = -(-count // (2 * threads)) if threads > 1 else count
    step = max(1, min(share, _PIECE // dim))
    parts = deque(range(0, count, step))

    def work() -> None:
        for start in _taken(parts):
            part = slice(start, min(start + step, count))
            if isinstance(at, slice):
                rows = matrix[at.start + part.start : at.start + part.stop]
            else:
                rows = np.take(matrix, at[part], axis=0, mode="clip")
            found[:, part] = multiply(rows, ask.codes)

    _together(work, threads)
    return found


def _taken(parts: deque[int]) -> Iterator[int]:
    """What is left of the parts, one after the other; threads may share them."""
    while True:
        try:
            yield parts.popleft()
        except IndexError:
            return


def _together(work: Callable[[], None], threads: int) -> None:
    """Do `work` in so many threads, this one among them; it returns once nothing is left to take."""
    helpers = _helpers(work, threads - 1)
    work()
    for helper in helpers:
        # one that has not begun finds nothing left to do
        if not helper.cancel():
            helper.result()


def _threads() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


_THREADS = min(_threads(), 16)
_pool: list[ThreadPoolExecutor] = []


def _helpers(work: Callable[[], None], count: int) -> list[Future[None]]:
    if count < 1:
        return []
    if not _pool:
        _pool.append(ThreadPoolExecutor(max(1, _THREADS - 1), thread_name_prefix="vecbridge-scan"))
    return [_pool[0].submit(work) for _ in range(count)]


# the threads of a pool do not exist in a child process, which would wait for them forever
os.register_at_fork(after_in_child=_pool.clear)
