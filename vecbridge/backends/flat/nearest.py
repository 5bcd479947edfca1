"""Exact nearest neighbours at the speed of float32 BLAS.

One float32 scan gives every dot product with a rounding error that is bounded; whatever may still belong to
the k best within that bound is computed again in float64. So the result is the exact one, equal scores
included, and does not depend on the order of the rows or on how BLAS sums up.

The bound: with u = 2^-24, |fl(x·q) - x·q| <= n u / (1 - n u) |x| |q| for any order of summation of n products
(Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1), plus n 2^-125 for products
that underflow. Queries are scaled to length 1 first: then only rows longer than 2^120 can overflow, and
these are always computed again.

A few queries of a large collection are first looked up in bytes, where those are kept: `codes` tells with a
bound of its own which rows come into question, and only these are scanned as above.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from .bounds import Best, bounds, kth, needed, sparse, within
from .codes import candidates
from .matrix import BLOCK

if TYPE_CHECKING:
    from ...types import Floats, Metric
    from .matrix import Array, Vectors

_QUERIES = 1024  # scanned together
_DOTS = 4 * 2**20  # dot products held at once
_CACHED = 2**20  # bytes
_FIRST = 512  # rows at least that are looked at before all others


def nearest(
    vectors: Vectors, queries: Floats, *, metric: Metric, k: int, positions: Array | None
) -> list[tuple[Array, Array]]:
    """For each query (m, d) the positions of the k nearest and their scores, with all that tie for place k.

    `positions`: ascending, the only ones to look at; None for all. Scores are float64, in no order.
    """
    found: list[tuple[Array, Array]] = []
    for start in range(0, len(queries), _QUERIES):
        found += _nearest(vectors, queries[start : start + _QUERIES], metric, k, positions)
    return found


def _nearest(
    vectors: Vectors, queries: Floats, metric: Metric, k: int, positions: Array | None
) -> list[tuple[Array, Array]]:
    exact = queries.astype(np.float64)
    lengths = np.sqrt((exact * exact).sum(axis=1))
    left = candidates(vectors, exact, lengths, metric=metric, k=k, positions=positions)
    plain = [row for row, one in enumerate(left) if one is None]
    if len(plain) == len(left):
        return _scan(vectors, exact, lengths, metric, k, positions)
    scanned = iter(_scan(vectors, exact[plain], lengths[plain], metric, k, positions) if plain else ())
    return [
        next(scanned) if one is None else _scan(vectors, exact[[row]], lengths[[row]], metric, k, one)[0]
        for row, one in enumerate(left)
    ]


def _scan(
    vectors: Vectors, exact: Array, lengths: Array, metric: Metric, k: int, positions: Array | None
) -> list[tuple[Array, Array]]:
    """The answer by float32: `exact` are the queries in float64, `lengths` theirs."""
    unit = (exact / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
    best = [Best(k) for _ in exact]
    n = (vectors.dim + 8) * 2.0**-24  # 8 for the rounding of the query and of what follows
    for at, block in _blocks(vectors.matrix, positions, len(exact)):
        # rows longer than float32 can sum up overflow here, on purpose: their bound is infinite
        with np.errstate(all="ignore"):
            dots = _dots(block, unit, few=not isinstance(at, slice))
        here = None if positions is None else within(positions, at, len(block))
        where = np.arange(at.start, at.stop) if isinstance(at, slice) else at
        norms = vectors.lengths[at]
        if here is not None and isinstance(at, slice):
            dots, where, norms = dots[:, here], where[here], norms[here]
        if not len(where):
            continue
        error = n / (1 - n) * norms + vectors.dim * 2.0**-125
        least = needed(best, float(error.max()), norms, lengths, vectors.dim, metric)
        above = None if least is None else dots >= least[:, None]
        for query, one in enumerate(best):
            # of nearly all rows the product alone says that they are not among the best
            left = slice(None) if above is None else np.flatnonzero(above[query])
            products = dots[query, left].astype(np.float64)
            if len(products):
                low, high = bounds(products, error[left], norms[left], lengths[query], vectors.dim, metric)
                one.offer(where[left], low, high)
    return [
        _rank(vectors.matrix, one.positions, query, metric, k) for one, query in zip(best, exact, strict=True)
    ]


def _dots(block: Array, unit: Array, *, few: bool) -> Array:
    """Every query times every row: float32 (m, d) and (n, d) make (m, n)."""
    found: Array
    if len(unit) > 1:
        found = unit @ block.T
    elif few:
        # BLAS would wake its threads for a few rows, and they keep a core busy for some time afterwards
        found = np.einsum("ij,j->i", block, unit[0])[None]
    else:
        found = (block @ unit[0])[None]
    return found


def _blocks(matrix: Array, positions: Array | None, queries: int) -> Iterator[tuple[slice | Array, Array]]:
    """Pieces of the matrix in float32, and where they lie: slices, or gathered rows where they are few.

    A piece is valid until the next one is asked for.
    """
    rows, dim = matrix.shape
    step = max(1, _DOTS // queries)
    gather = sparse(positions, rows, queries)
    if not gather and matrix.dtype == np.float32:
        # As many rows at once as possible: each BLAS call waits for its slowest thread. For many queries a
        # few go first, to see what comes.
        first = min(rows, step) if queries == 1 else min(rows, step, max(_FIRST, rows // 32))
        for start, end in itertools.pairwise((0, *range(first, rows, step), rows)):
            yield slice(start, end), matrix[start:end]
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


def _rank(matrix: Array, positions: Array, query: Array, metric: Metric, k: int) -> tuple[Array, Array]:
    scores = np.empty(len(positions))
    step = max(1, BLOCK // (8 * matrix.shape[1]))
    for start in range(0, len(positions), step):
        rows = matrix[positions[start : start + step]].astype(np.float64)
        scores[start : start + step] = _score(rows, query, metric)
    if len(scores) > k:
        keep = scores >= kth(scores, k)
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
