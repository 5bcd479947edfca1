"""Exact nearest neighbours at the speed of float32 BLAS.

One float32 scan gives every dot product with a rounding error that is bounded; whatever may still belong to
the k best within that bound is computed again in float64. So the result is the exact one, equal scores
included, and does not depend on the order of the rows or on how BLAS sums up.

The bound: with u = 2^-24, |fl(x·q) - x·q| <= n u / (1 - n u) |x| |q| for any order of summation of n products
(Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1), plus n 2^-125 for products
that underflow. Queries are scaled to length 1 first: then only rows longer than 2^120 can overflow, and
these are always computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from .matrix import BLOCK

if TYPE_CHECKING:
    from ...types import Floats, Metric
    from .matrix import Array, Vectors

_QUERIES = 1024  # scanned together
_DOTS = 4 * 2**20  # dot products held at once
_CACHED = 2**20  # bytes
_HUGE = 2.0**120


def nearest(
    vectors: Vectors, queries: Floats, *, metric: Metric, k: int, positions: Array | None
) -> list[tuple[Array, Array]]:
    """For each query (m, d) the positions of the k nearest and their scores, with all that tie for place k.

    `positions`: ascending, the only ones to look at; None for all. Scores are float64, in no order.
    """
    found: list[tuple[Array, Array]] = []
    for start in range(0, len(queries), _QUERIES):
        found += _scan(vectors, queries[start : start + _QUERIES], metric, k, positions)
    return found


def _scan(
    vectors: Vectors, queries: Floats, metric: Metric, k: int, positions: Array | None
) -> list[tuple[Array, Array]]:
    exact = queries.astype(np.float64)
    lengths = np.sqrt((exact * exact).sum(axis=1))
    unit = (exact / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
    best = [_Best(k) for _ in queries]
    dim = vectors.matrix.shape[1]
    for at, block in _blocks(vectors.matrix, positions, len(queries)):
        # rows longer than float32 can sum up overflow here, on purpose: their bound is infinite
        with np.errstate(all="ignore"):
            dots = (block @ unit[0])[None] if len(unit) == 1 else unit @ block.T
        here = None if positions is None else _within(positions, at, len(block))
        where = np.arange(at.start, at.stop) if isinstance(at, slice) else at
        norms = vectors.lengths[at]
        if here is not None and isinstance(at, slice):
            dots, where, norms = dots[:, here], where[here], norms[here]
        for row, length, one in zip(dots, lengths, best, strict=True):
            one.offer(where, *_bounds(row, norms, length, dim, metric))
    return [
        _rank(vectors.matrix, one.positions, query, metric, k) for one, query in zip(best, exact, strict=True)
    ]


def _blocks(matrix: Array, positions: Array | None, queries: int) -> Iterator[tuple[slice | Array, Array]]:
    """Pieces of the matrix in float32, and where they lie: slices, or gathered rows where they are few.

    A piece is valid until the next one is asked for.
    """
    rows, dim = matrix.shape
    step = max(1, _DOTS // queries)
    # copying a row first costs one query about as much as scanning two
    gather = positions is not None and len(positions) * (1 + 1 / queries) < rows
    if not gather and matrix.dtype == np.float32:
        # one call over as many rows as possible: each BLAS call waits for its slowest thread
        for start in range(0, rows, step):
            block = matrix[start : start + step]
            yield slice(start, start + len(block)), block
        return
    # what is copied for a single query should still be in the processor's cache when it is read
    step = min(step, max(1, (BLOCK if queries > 1 else _CACHED) // (4 * dim)))
    chosen = positions if gather and positions is not None else np.arange(rows)
    buffer = np.empty((min(step, len(chosen)), dim), dtype=np.float32)
    for start in range(0, len(chosen), step):
        at = chosen[start : start + step]
        block = buffer[: len(at)]
        if gather and matrix.dtype == np.float32:
            np.take(matrix, at, axis=0, out=block, mode="clip")  # "raise" would copy once more
        else:
            block[:] = matrix[at] if gather else matrix[start : start + step]
        yield (at if gather else slice(start, start + len(at))), block


def _within(positions: Array, at: slice | Array, size: int) -> Array | None:
    """Which of the `size` rows at `at` are wanted; None where they are all."""
    if not isinstance(at, slice):
        return None
    first, last = np.searchsorted(positions, (at.start, at.stop))
    return None if last - first == size else positions[first:last] - at.start


def _bounds(dots: Array, norms: Array, length: float, dim: int, metric: Metric) -> tuple[Array, Array]:
    """The lowest and highest value that each exact score can have; for "l2" of the negated squared distance.

    `dots`: float32 products with the query scaled to length 1; `norms` of the rows, `length` of the query.
    """
    n = (dim + 8) * 2.0**-24  # 8 for the rounding of the query and of what follows here
    error = n / (1 - n) * norms + dim * 2.0**-125
    if metric == "l2":
        score = 2 * length * dots.astype(np.float64) - norms**2 - length**2
        error = 2 * length * error + (dim + 8) * 2.0**-52 * (norms + length) ** 2
    elif metric == "ip":
        score, error = length * dots.astype(np.float64), length * error
    else:
        safe = np.where(norms > 0, norms, 1)
        score, error = dots / safe, error / safe
    huge = norms > _HUGE
    if huge.any():
        score[huge], error[huge] = 0, np.inf
    return score - error, score + error


class _Best:
    """What may be among the k best of one query, while the blocks pass by."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.positions: Array = np.empty(0, dtype=np.int64)
        self._low: Array = np.empty(0)
        self._high: Array = np.empty(0)
        self._floor = -np.inf

    def offer(self, positions: Array, low: Array, high: Array) -> None:
        """Look at one block: ascending positions, lowest and highest possible scores."""
        self._raise_floor(low)
        keep = high >= self._floor
        self.positions = np.concatenate([self.positions, positions[keep]])
        self._low = np.concatenate([self._low, low[keep]])
        self._high = np.concatenate([self._high, high[keep]])
        self._raise_floor(self._low)
        keep = self._high >= self._floor
        self.positions, self._low, self._high = self.positions[keep], self._low[keep], self._high[keep]

    def _raise_floor(self, low: Array) -> None:
        if len(low) >= self.k:
            self._floor = max(self._floor, float(_kth(low, self.k)))


def _kth(values: Array, k: int) -> float:
    """The k-th largest."""
    return float(np.partition(values, len(values) - k)[len(values) - k])


def _rank(matrix: Array, positions: Array, query: Array, metric: Metric, k: int) -> tuple[Array, Array]:
    scores = np.empty(len(positions))
    step = max(1, BLOCK // (8 * matrix.shape[1]))
    for start in range(0, len(positions), step):
        rows = matrix[positions[start : start + step]].astype(np.float64)
        scores[start : start + step] = _score(rows, query, metric)
    if len(scores) > k:
        keep = scores >= _kth(scores, k)
        positions, scores = positions[keep], scores[keep]
    return positions, scores


def _score(rows: Array, query: Array, metric: Metric) -> Array:
    """float64 scores. Products are summed row by row, not by BLAS, so that equal rows have equal scores."""
    if metric == "l2":
        apart = rows - query
        found: Array = -np.sqrt((apart * apart).sum(axis=1))
        return found
    dots: Array = (rows * query).sum(axis=1)
    if metric == "ip":
        return dots
    # the root of the product, not the product of roots: a vector's cosine with itself is exactly 1
    both = np.sqrt((rows * rows).sum(axis=1) * (query * query).sum())
    cosine: Array = np.clip(np.divide(dots, both, out=np.zeros_like(dots), where=both > 0), -1, 1)
    return cosine
