"""The directions in which vectors spread the most: principal axes, with the mean taken off or left in.

Both kinds come from one matrix of inner products, the smaller of the two: of the components (d × d) or of
the vectors (n × n). It is made about the mean; leaving the mean in adds rank one to it, which loses nothing,
while subtracting it afterwards would lose every direction much weaker than the mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .types import Floats

Doubles: TypeAlias = NDArray[np.float64]
Array: TypeAlias = NDArray[Any]

# rows that are worked on at once, by the bytes of their float32
_BLOCK = 16 * 2**20
# up to this many columns the whole decomposition is as fast as a few passes of the randomised one
_SMALL = 1024
# directions more than wanted, which the randomised solver and the change of the mean settle in
_MORE = 24
# powers of the matrix from a span that is nearly right; the energy that is missed falls by each
_STEPS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Axes:
    """`basis`: float32 (c, d), orthonormal rows, the strongest direction first. `energy`: float64 (c,), the
    share of all energy (sum of squares, about `mean` where it was taken off) in each. `mean`: float64 (d,),
    of the vectors, whether taken off or not."""

    basis: Floats
    energy: Doubles
    mean: Doubles


def principal(sample: Floats, most: int, *, centred: bool, seed: int = 0) -> Axes:
    """The `most` strongest axes of `sample`, float32 (n, d); most ≤ n and most ≤ d.

    Memory: a square of the smaller of n and d, and the axes, twice each. Vectors about their mean have at
    most n - 1 directions; what is asked for beyond is filled up with directions of no energy.
    """
    return _Spread(sample, most, seed).axes(centred=centred)


def both(sample: Floats, most: int, *, seed: int = 0) -> tuple[Axes, Axes]:
    """The axes with the mean left in, and with it taken off, for little more than the time of one."""
    spread = _Spread(sample, most, seed)
    return spread.axes(centred=False), spread.axes(centred=True)


def twice(sample: Floats, more: Floats, most: int, *, centred: bool, seed: int = 0) -> tuple[Axes, Axes]:
    """The axes of `sample`, and those of both, for little more than the time of the first if `more` is small.

    The second are sought from the first on: where both are alike, as parts of one sample are.
    """
    spread = _Spread(sample, most, seed)
    first = spread.axes(centred=centred)
    if not spread.by_component:
        return first, principal(np.concatenate([sample, more]), most, centred=centred, seed=seed)
    spread.add(more)
    return first, spread.axes(centred=centred)


class _Spread:
    """One sample's inner products about its mean, decomposed."""

    def __init__(self, sample: Floats, most: int, seed: int) -> None:
        self._sample, self._most, self._seed = sample, most, seed
        rows, dim = sample.shape
        self._rows = rows
        self._mean = sample.mean(axis=0, dtype=np.float64)
        self._scale = _largest(sample)
        self.by_component = dim <= rows
        self._gram = self._products()
        self._decompose(None)

    def add(self, more: Floats) -> None:
        """Take in more vectors, (m, d). Only where the inner products are of components."""
        assert self.by_component
        rows, mean = self._rows + len(more), more.mean(axis=0, dtype=np.float64)
        scale = max(self._scale, _largest(more))
        self._gram *= (self._scale / scale) ** 2
        for _, block in _blocks(more):
            about = (block - mean.astype(np.float32)) / scale
            self._gram += about.T @ about
        # Chan, Golub and LeVeque (1979): nothing is subtracted, so that nothing is lost
        apart = ((mean - self._mean) / scale).astype(np.float32)
        self._gram += np.float32(self._rows * len(more) / rows) * np.outer(apart, apart)
        self._mean = self._mean + (mean - self._mean) * (len(more) / rows)
        self._rows, self._scale = rows, scale
        self._decompose(self._directions)

    def _decompose(self, near: Floats | None) -> None:
        """`near`: columns that span nearly the same as what is sought; None where nothing is known."""
        self._total = float(np.trace(self._gram, dtype=np.float64))
        # the axes that stay strongest when the mean is left in are among these and the mean's own direction
        count = min(self._most + _MORE, len(self._gram))
        self._energies, self._directions = _strongest(self._gram, count, self._seed, near)
        # the mean in the coordinates of the square: itself, or what makes each row the sum of both
        self._ray = self._mean / self._scale

    def axes(self, *, centred: bool) -> Axes:
        if self.by_component:
            return self._component_axes(centred)
        return self._row_axes(centred)

    def _component_axes(self, centred: bool) -> Axes:
        values, vectors, total = self._energies, self._directions, self._total
        if not centred:
            # Rayleigh and Ritz in the span of the axes and of the mean, where the square is diagonal
            # but for the mean's own rank
            ray = self._ray
            inside = vectors.T.astype(np.float64) @ ray
            rest = ray - vectors.astype(np.float64) @ inside
            length = float(np.linalg.norm(rest))
            weight = float(self._rows)
            if length > 1e-6 * float(np.linalg.norm(ray)):
                rest = (rest / length).astype(np.float32)
                vectors = np.column_stack([vectors, rest])
                values = np.append(values, float(rest @ (self._gram @ rest)))
                inside = np.append(inside, length)
            small = np.diag(values) + weight * np.outer(inside, inside)
            values, turn = _decomposed(small.astype(np.float64))
            values, turn = values[::-1], turn[:, ::-1]
            vectors = vectors @ turn[:, : self._most].astype(np.float32)
            total += weight * float(ray @ ray)
        basis = np.ascontiguousarray(vectors[:, : self._most].T)
        return self._made(basis, values, total)

    def _row_axes(self, centred: bool) -> Axes:
        values, vectors, total = self._energies, self._directions, self._total
        if not centred:
            ray = self._ray.astype(np.float32)
            along = np.concatenate([block @ ray for _, block in self._about_mean()])
            square = float(ray.astype(np.float64) @ ray)
            gram = self._gram + along[:, None] + along[None, :] + np.float32(square)
            values, vectors = _strongest(gram, self._most, 0)
            total += 2 * float(along.sum(dtype=np.float64)) + len(along) * square
        basis = np.zeros((self._sample.shape[1], self._most), dtype=np.float32)
        for at, block in self._about_mean():
            part = vectors[at, : self._most]
            basis += block.T @ part
            if not centred:
                basis += np.outer(self._ray, part.sum(axis=0)).astype(np.float32)
        # columns come strongest first, orthogonal but for rounding; those of no energy become any direction
        basis = np.linalg.qr(basis)[0]
        return self._made(np.ascontiguousarray(basis.T), values, total)

    def _made(self, basis: Array, values: Array, total: float) -> Axes:
        energy = np.clip(np.asarray(values[: self._most], dtype=np.float64), 0, None)
        energy = np.minimum(energy / total, 1.0) if total > 0 else np.zeros_like(energy)
        return Axes(basis.astype(np.float32, copy=False), energy, self._mean)

    def _about_mean(self) -> Iterator[tuple[slice, Floats]]:
        mean = self._mean.astype(np.float32)
        for at, block in _blocks(self._sample):
            yield at, (block - mean) / self._scale

    def _products(self) -> Floats:
        rows, dim = self._sample.shape
        side = min(rows, dim)
        gram = np.zeros((side, side), dtype=np.float32)
        if self.by_component:
            for _, block in self._about_mean():
                gram += block.T @ block
            return gram
        for at, block in self._about_mean():
            for other, second in self._about_mean():
                if other.start <= at.start:
                    gram[at, other] = block @ second.T
                    gram[other, at] = gram[at, other].T
        return gram


def _strongest(gram: Floats, count: int, seed: int, near: Floats | None = None) -> tuple[Doubles, Floats]:
    """The `count` largest eigenvalues of a symmetric matrix, descending, and their vectors as columns.

    `near`: `count` orthonormal columns that span nearly the same, where they are known.
    """
    side = len(gram)
    if side <= _SMALL or 3 * count > side:
        values, vectors = _decomposed(gram)
        return values[::-1][:count].astype(np.float64), np.ascontiguousarray(vectors[:, ::-1][:, :count])
    if near is not None:
        for _ in range(_STEPS):
            near = np.linalg.qr(gram @ near)[0]
        values, turn = _decomposed(near.T @ (gram @ near))
        return values[::-1].astype(np.float64), np.ascontiguousarray(near @ turn[:, ::-1])
    from sklearn.utils.extmath import randomized_svd

    # of a symmetric matrix without negative eigenvalues, singular values are eigenvalues; a power of this
    # matrix is two of the sample's
    vectors, values, _ = randomized_svd(
        gram, n_components=count, n_oversamples=8, n_iter=3, random_state=seed
    )
    return values.astype(np.float64), np.ascontiguousarray(vectors, dtype=np.float32)


def _decomposed(square: Array) -> tuple[Array, Array]:
    """All eigenvalues of a symmetric matrix, ascending, and their vectors as columns."""
    # faster than numpy's for thousands of columns, which two cores then do in some seconds
    from scipy.linalg import eigh

    values, vectors = eigh(square, driver="evd", check_finite=False)
    return values, vectors


def _largest(sample: Floats) -> np.float32:
    """What to divide components by before they are squared: squares overflow float32 from 1.8e19 on."""
    largest = max((float(np.abs(block).max(initial=0)) for _, block in _blocks(sample)), default=0.0)
    return np.float32(largest or 1.0)


def _blocks(sample: Floats) -> Iterator[tuple[slice, Floats]]:
    step = max(1, _BLOCK // (4 * sample.shape[1]))
    for start in range(0, len(sample), step):
        stop = min(start + step, len(sample))
        yield slice(start, stop), sample[start:stop]
