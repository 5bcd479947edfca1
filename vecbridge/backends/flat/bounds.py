"""Between which values scores lie whose products are known up to an error, and what may be among the best.

The result of a scan is every row whose highest possible score reaches the k-th highest of the lowest possible
ones: of the k best none is missing, equal scores included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ...types import Metric
    from .matrix import Array

_HUGE = 2.0**120


def bounds(
    dots: Array, error: Array, norms: Array, length: float, dim: int, metric: Metric
) -> tuple[Array, Array]:
    """The lowest and highest value that each exact score can have; for "l2" of the negated squared distance.

    `dots`: float64 products with the query scaled to length 1, each wrong by `error` at most; `norms` of the
    rows, `length` of the query. Rows longer than 2^120 may have any score: float32 cannot sum them up.
    """
    if metric == "l2":
        score = 2 * length * dots - norms**2 - length**2
        error = 2 * length * error + (dim + 8) * 2.0**-52 * (norms + length) ** 2
    elif metric == "ip":
        score, error = length * dots, length * error
    else:
        safe = np.where(norms > 0, norms, 1)
        score, error = dots / safe, error / safe
    huge = norms > _HUGE
    if huge.any():
        score[huge], error[huge] = 0, np.inf
    return score - error, score + error


def needed(
    best: Sequence[Best], error: float, norms: Array, lengths: Array, dim: int, metric: Metric
) -> Array | None:
    """For each query the float32 product that a row must reach to be among the best; None while nobody knows.

    `error`: of any product, at most; `norms` of the rows. What lies below has by `bounds` no score that
    reaches the floor: its formulas solved for the product, at the worst of the rows' norms.
    """
    floors = np.array([one.floor for one in best])
    low, high = float(norms.min()), float(norms.max())
    if high > _HUGE or not np.isfinite(floors).all() or not (metric == "cosine" or lengths.all()):
        return None
    if metric == "l2":
        far = (high + lengths) ** 2
        least = (floors + low**2 + lengths**2 - (dim + 8) * 2.0**-51 * (far - floors)) / (2 * lengths)
    elif metric == "ip":
        least = floors / lengths
    else:
        # a row without length is divided by 1
        shortest, longest = (low, high) if low else (0.0, max(high, 1.0))
        least = np.minimum(floors * shortest, floors * longest)
    least = least - error - 2.0**-40 * (np.abs(least) + high + error)
    with np.errstate(over="ignore"):
        found: Array = np.nextafter(least.astype(np.float32), np.float32(-np.inf))
    return found


class Best:
    """What may be among the k best of one query, while the rows pass by piece by piece.

    `floor`: the k-th highest of the lowest possible scores so far, which a row must reach to matter.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.positions: Array = np.empty(0, dtype=np.int64)
        self._low: Array = np.empty(0)
        self._high: Array = np.empty(0)
        self.floor = -np.inf

    def offer(self, positions: Array, low: Array, high: Array) -> None:
        """Look at one piece: positions, lowest and highest possible scores."""
        self._raise_floor(low)
        keep = high >= self.floor
        self.positions = np.concatenate([self.positions, positions[keep]])
        self._low = np.concatenate([self._low, low[keep]])
        self._high = np.concatenate([self._high, high[keep]])
        self._raise_floor(self._low)
        keep = self._high >= self.floor
        self.positions, self._low, self._high = self.positions[keep], self._low[keep], self._high[keep]

    def _raise_floor(self, low: Array) -> None:
        if len(low) >= self.k:
            self.floor = max(self.floor, kth(low, self.k))


def kth(values: Array, k: int) -> float:
    """The k-th largest."""
    return float(np.partition(values, len(values) - k)[len(values) - k])


def within(positions: Array, at: slice | Array, size: int) -> Array | None:
    """Which of the `size` rows at `at` are wanted, of ascending `positions`; None where they are all."""
    if not isinstance(at, slice):
        return None
    first, last = np.searchsorted(positions, (at.start, at.stop))
    return None if last - first == size else positions[first:last] - at.start


def sparse(positions: Array | None, rows: int, queries: int) -> bool:
    """Whether so few rows are wanted that copying them first is cheaper than scanning them all."""
    # copying a row costs one query about as much as scanning two
    return positions is not None and len(positions) * (1 + 1 / queries) < rows
