"""What the stores compare when they look for candidates, in numpy: half precision, int8, TurboQuant, signs.

Each model gives the scores (larger is nearer) that a search over every vector would rank by, so that what a
representation loses can be measured without a server. How the stores compute it:

* float16: both sides rounded to IEEE binary16, sums in float32 (pgvector, src/halfutils.c).
* bit: 1 where a component is above 0, in pgvector (`binary_quantize`, src/vector.c) and in Qdrant alike.
  pgvector compares with the signs of the query: Hamming distances are whole numbers, and many records tie.
  Qdrant, from 1.15 on, keeps 8 bits for each component of the query, which ties rarely and finds more.
* int8: Qdrant's scalar quantisation, 128 steps between two bounds for all components of all vectors. The
  bounds are not the quantiles of the components: of the values of up to 5,000 vectors, as many are cut off at
  either end as 1 - quantile would be of the vectors (lib/quantization/src/quantile.rs).
* turbo4, turbo2, turbo1: Qdrant's TurboQuant. A fixed rotation (Walsh-Hadamard transforms and permutations)
  makes components nearly normal; each is moved and stretched so that two of its quantiles lie on the
  outermost steps of the quantiser that Lloyd and Max found for the normal distribution; what was rounded is
  scaled back to its length. The query is not rounded (8 bits or more). The permutations here are others than
  Qdrant's, the quantiles exact instead of estimated (lib/quantization/src/turboquant).
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .ranking import together

if TYPE_CHECKING:
    from .types import Floats, Metric

Array: TypeAlias = NDArray[Any]

# the largest number that float16 holds
HALF_MOST = 65_504.0

# Qdrant: vectors that the bounds of int8 are taken from, and as it is configured by vecbridge
_SAMPLED = 5_000
_QUANTILE = 0.99
_FEWEST = 127
_STEPS = 127
# vectors that the quantiles of rotated components are taken from; Qdrant takes 2,000 to 8,000
_ROTATED = 4_096
# of which so many are rotated at once
_TURNED = 256
# a component that hardly varies is not stretched
_NARROW = 1e-3
# Lloyd and Max's levels for the normal distribution, those above 0 (J. Max, Quantizing for Minimum
# Distortion, IRE Transactions on Information Theory 6 (1960), table I)
_LEVELS: dict[int, tuple[float, ...]] = {
    1: (0.7979,),
    2: (0.4528, 1.510),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
}
_ROUNDS = 3


class Model(Protocol):
    """Scores of the queries it was made with, float32 (m, n), for a block of vectors, float32 (n, d)."""

    def scores(self, block: Floats) -> Floats:
        """Scores of a block: the larger, the nearer, in the order that a store would find them."""
        ...


def half(vectors: Array) -> Floats:
    """The vectors as float16 holds them, in float32."""
    rounded: Floats = vectors.astype(np.float16).astype(np.float32)
    return rounded


def nearness(queries: Floats, block: Floats, *, metric: Metric) -> Floats:
    """Scores (m, n) that rank as the metric does: products, or for l2 the negated square of the distance.

    For cosine the queries may have any length; the vectors are divided by theirs.
    """
    dots: Floats = queries @ block.T
    squares = np.einsum("ij,ij->i", block, block)
    if metric == "cosine":
        lengths = np.sqrt(squares)
        dots /= np.where(lengths > 0, lengths, np.float32(1))
    elif metric == "l2":
        dots *= 2
        dots -= squares
        dots -= np.einsum("ij,ij->i", queries, queries)[:, None]
    return dots


class Half:
    """Half precision on both sides. `origin`: float32 (d,), taken off after rounding where l2 is computed."""

    def __init__(self, queries: Floats, *, metric: Metric, origin: Floats | None = None) -> None:
        self._metric, self._origin = metric, origin
        self._queries = self._from_origin(half(queries))

    def scores(self, block: Floats) -> Floats:
        """Scores (m, n) of a block, float32 (n, d), rounded to half precision."""
        return nearness(self._queries, self._from_origin(half(block)), metric=self._metric)

    def _from_origin(self, vectors: Floats) -> Floats:
        moved: Floats = vectors if self._origin is None else vectors - self._origin
        return moved


class Signs:
    """Signs of the vectors against signs of the queries, or where `asymmetric` against 8 bits of them."""

    def __init__(self, queries: Floats, *, asymmetric: bool) -> None:
        if asymmetric:
            most = np.abs(queries).max(axis=1, keepdims=True)
            steps = np.rint((queries / np.where(most > 0, most, 1) + 1) * 127.5)
            self._queries = (steps / 127.5 - 1).astype(np.float32)
        else:
            self._queries = _signs(queries)

    def scores(self, block: Floats) -> Floats:
        """Scores (m, n) of a block, float32 (n, d): the more signs agree, the higher."""
        found: Floats = self._queries @ _signs(block).T
        return found


class Int8:
    """Steps between two bounds that `sample`, float32 (n, d), sets."""

    def __init__(self, queries: Floats, *, sample: Floats, metric: Metric, seed: int = 0) -> None:
        self._metric: Metric = metric
        self._low, high = _bounds(sample, seed)
        self._step = (high - self._low) / _STEPS or 1.0
        self._queries = self._rounded(queries)

    def scores(self, block: Floats) -> Floats:
        """Scores (m, n) of a block, float32 (n, d), rounded to the steps."""
        # Qdrant does not divide by the length of what it rounded: under cosine, too, it ranks by products
        metric: Metric = "l2" if self._metric == "l2" else "ip"
        return nearness(self._queries, self._rounded(block), metric=metric)

    def _rounded(self, vectors: Floats) -> Floats:
        steps: Floats = np.clip((vectors - np.float32(self._low)) / np.float32(self._step), 0, _STEPS)
        np.rint(steps, out=steps)
        steps *= np.float32(self._step)
        if self._metric != "l2":
            # a distance does not change when both sides are moved, and is computed better nearer to 0
            steps += np.float32(self._low)
        return steps


class Turbo:
    """TurboQuant with each of several numbers of bits, which share one rotation.

    `queries` and `sample`, which sets the quantiles, are float32 (n, d) and not yet rotated.
    """

    def __init__(self, queries: Floats, *, sample: Floats, metric: Metric, seed: int = 0) -> None:
        self._metric: Metric = metric
        self.rotation = Rotation(queries.shape[1], seed=seed)
        self._queries = self.rotation.apply(queries)
        chosen = sample
        if len(sample) > _ROTATED:
            chosen = sample[np.random.default_rng(seed).choice(len(sample), _ROTATED, replace=False)]
        rotated = np.empty((len(chosen), self.rotation.dim), dtype=np.float32)

        def add(start: int) -> None:
            at = slice(start, start + _TURNED)
            rotated[at] = _to_length(self.rotation.apply(chosen[at]), math.sqrt(self.rotation.dim))[0]

        together(add, range(0, len(chosen), _TURNED))
        rotated.sort(axis=0)
        self._placed = {bits: _placement(rotated, levels[-1]) for bits, levels in _LEVELS.items()}

    def scores(self, rotated: Floats, *, bits: int) -> Floats:
        """Scores (m, n) of vectors that `rotation` has turned, float32 (n, `rotation.dim`)."""
        units, lengths = _to_length(rotated, math.sqrt(self.rotation.dim))
        shift, scale = self._placed[bits]
        levels = _LEVELS[bits]
        units += shift
        units *= scale
        held = _nearest(units, levels)
        held /= scale
        held -= shift
        norms = np.sqrt(np.einsum("ij,ij->i", held, held))
        factors = lengths / np.where(norms > 0, norms, 1)
        dots: Floats = self._queries @ held.T
        dots *= factors.astype(np.float32)
        if self._metric == "l2":
            dots *= 2
            dots -= lengths.astype(np.float32) ** 2
        return dots


class Rotation:
    """A fixed rotation of vectors of `dim` components, filled up with zeros to a multiple of 8.

    Rounds of Walsh-Hadamard transforms, each of the largest power of two that fits into what is left, with a
    permutation between two rounds.
    """

    def __init__(self, dim: int, *, seed: int = 0) -> None:
        self.dim = -(-dim // 8) * 8
        generator = np.random.default_rng([seed, dim])
        self._orders = [generator.permutation(self.dim) for _ in range(_ROUNDS)]

    def apply(self, vectors: Floats) -> Floats:
        """The rotated vectors: float32 (n, dim) in, float32 (n, `self.dim`) out; lengths stay."""
        padded = np.zeros((len(vectors), self.dim), dtype=np.float32)
        padded[:, : vectors.shape[1]] = vectors
        padded = self._transformed(padded)
        for order in self._orders:
            # several times as fast as an index
            padded = self._transformed(np.take(padded, order, axis=1))
        return padded

    def _transformed(self, vectors: Floats) -> Floats:
        out, start = np.empty_like(vectors), 0
        while start < self.dim:
            size = 1 << ((self.dim - start).bit_length() - 1)
            # a transform of p × q is one of p along one side of a rectangle and one of q along the other
            p = 1 << (size.bit_length() // 2)
            q = size // p
            # one product of many rows is faster than many of few
            part = vectors[:, start : start + size].reshape(-1, q) @ _hadamard(q)
            turned = _hadamard(p) @ part.reshape(-1, p, q)
            out[:, start : start + size] = turned.reshape(-1, size)
            start += size
        return out


def _nearest(values: Floats, levels: tuple[float, ...]) -> Floats:
    """The nearest of the levels, ascending, and of their negatives."""
    # few comparisons of everything take half the time of a search for each
    sizes = np.abs(values)
    held = np.full_like(values, levels[0])
    for low, high in pairwise(levels):
        held += np.float32(high - low) * (sizes > np.float32((low + high) / 2))
    return np.copysign(held, values)


def _signs(vectors: Floats) -> Floats:
    return np.where(vectors > 0, np.float32(1), np.float32(-1))


def _bounds(sample: Floats, seed: int) -> tuple[float, float]:
    if len(sample) < _FEWEST:
        return float(sample.min()), float(sample.max())
    if len(sample) > _SAMPLED:
        sample = sample[np.random.default_rng(seed).choice(len(sample), _SAMPLED, replace=False)]
    cut = max(int(len(sample) * (1 - _QUANTILE) / 2), 1)
    values = sample.ravel()
    cut = min(cut, (values.size - 1) // 2)
    # one more goes at the lower end than at the upper
    low, high = min(cut + 1, values.size - cut - 1), values.size - cut - 1
    ranked = np.partition(values, (low, high))
    return float(ranked[low]), float(ranked[high])


def _placement(ranked: Floats, outermost: float) -> tuple[Floats, Floats]:
    """For each component what is added, and what it is then multiplied by. `ranked`: sorted by column."""
    tail = 0.5 * math.erfc(outermost / math.sqrt(2))
    last = len(ranked) - 1
    low, high = ranked[round(tail * last)], ranked[round((1 - tail) * last)]
    width = high - low
    scale = np.where(width > _NARROW, 2 * outermost / np.where(width > _NARROW, width, 1), 1)
    return -(low + high) / 2, scale.astype(np.float32)


def _to_length(vectors: Floats, length: float) -> tuple[Floats, Array]:
    """The vectors scaled to one length, zeros left alone, and the lengths they had."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    factors = length / np.where(lengths > 0, lengths, length)
    return vectors * factors[:, None].astype(np.float32), lengths


@cache
def _hadamard(size: int) -> Floats:
    matrix = np.ones((1, 1), dtype=np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]).astype(np.float32)
    return matrix / np.float32(math.sqrt(size))
