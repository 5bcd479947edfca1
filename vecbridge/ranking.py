"""Which rows come first by their scores, for many queries at once: what oversampling finds, in numpy.

Score and place of each row lie in one whole number of 64 bits, so that numpy's partition of plain numbers,
which is several times as fast as one of places, gives the rows in order, and rows with equal scores in the
order of their places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

    from .types import Floats

Array: TypeAlias = NDArray[Any]
T = TypeVar("T")

# queries ranked at once: the keys of so many and 10,000 rows stay near the core
_RANKED = 32
_THREADS = 2


def together(work: Callable[[T], object], parts: Iterable[T]) -> None:
    """Do the work on each part, two at a time: numpy lets go of the interpreter while it computes.

    Meanwhile products of matrices take one thread each, in the whole process: threads of BLAS beside these
    would wait for each other, and wait busily.
    """
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(work, parts):
            pass


@cache
def _libraries() -> ThreadpoolController:
    # looking for them takes milliseconds, setting them none
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def shares(scores: Floats, right: Sequence[Array], *, k: int, most: int) -> list[Array]:
    """The share of k right answers among the k, 2 k, … `most` × k rows of the highest scores.

    `scores`: float32 (m, n), no NaN. `right`: bool (m, p) for each p of the first rows that are ranked by
    themselves, p descending. More than k may be right where some tie; no share is above 1. Rows with equal
    scores come in their own order, which is by chance where they lie in random order.

    Float64 (m, most) for each of `right`.
    """
    asked, rows = scores.shape
    found = [np.empty((asked, most)) for _ in right]
    # the lower half of a key: rows that come first count more
    places = np.arange(rows - 1, -1, -1, dtype=np.int64)

    def rank(start: int) -> None:
        at = slice(start, start + _RANKED)
        keys = _ordered(scores[at]).astype(np.int64)
        keys <<= 32
        keys |= places
        # what is not among the first of some rows is not among those of more
        top, before = keys[:, :0], 0
        for rights, share in zip(reversed(right), reversed(found), strict=True):
            part = rights.shape[1]
            depth = min(k * most, part)
            top = np.concatenate([top, keys[:, before:part]], axis=1)
            before = part
            if (rest := top.shape[1] - depth) > 0:
                top = np.partition(top, rest, axis=1)[:, rest:]
            top.sort(axis=1)
            first = (rows - 1) - (top[:, ::-1] & 0xFFFFFFFF)
            first += part * np.arange(len(first))[:, None]
            hits = np.take(rights[at], first).cumsum(axis=1)
            ends = np.minimum(k * np.arange(1, most + 1), depth) - 1
            share[at] = np.minimum(hits[:, ends], k) / k

    together(rank, range(0, asked, _RANKED))
    return found


def _ordered(scores: Floats) -> NDArray[np.int32]:
    """Whole numbers in the order of the floats: their bits, but for those below 0 the larger the smaller."""
    # 0 and -0 are equal, and have different bits
    bits = (scores + np.float32(0)).view(np.int32)
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    return bits
