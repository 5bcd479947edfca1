"""What oversampling finds, by keys of 64 bits: the same as a plain stable sort of each query's scores."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from vecbridge import ranking

MOST = 32


def sorted_shares(scores: np.ndarray, right: np.ndarray, k: int) -> np.ndarray:
    """The same for one part, the slow way: each query by itself, ties in the order of the rows."""
    part = right.shape[1]
    found = np.empty((len(scores), MOST))
    for share, row, rights in zip(found, scores[:, :part], right, strict=True):
        order = sorted(range(part), key=lambda place: (-float(row[place]), place))
        for times in range(1, MOST + 1):
            share[times - 1] = min(sum(bool(rights[place]) for place in order[: k * times]), k) / k
    return found


def drawn(kind: str, rows: int) -> np.ndarray:
    generator = np.random.default_rng(3)
    plain = generator.standard_normal((45, rows))
    kinds = {
        "plain": plain,
        "ties": np.rint(plain),
        "all equal": np.zeros_like(plain),
        "zeros of both signs": np.where(plain > 0, 0.0, -0.0),
        "denormal": plain * 1e-41,
        "huge": plain * 8e37,
        "infinite": np.where(np.abs(plain) > 1.5, np.sign(plain) * np.inf, plain),
        "below zero": -np.abs(plain) - 5,
    }
    return kinds[kind].astype(np.float32)


@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "ties",
        "all equal",
        "zeros of both signs",
        "denormal",
        "huge",
        "infinite",
        "below zero",
    ],
)
@pytest.mark.parametrize(("rows", "k"), [(700, 3), (90, 10), (5, 10)])
def test_shares_are_those_of_a_stable_sort(kind: str, rows: int, k: int) -> None:
    scores = drawn(kind, rows)
    truth = np.random.default_rng(4).random(scores.shape)
    parts = [size for size in (rows, rows // 2, rows // 7) if size]
    right = [truth[:, :part] < 2 * k / part for part in parts]
    found = ranking.shares(scores, right, k=k, most=MOST)
    assert len(found) == len(parts)
    for got, rights in zip(found, right, strict=True):
        assert np.array_equal(got, sorted_shares(scores, rights, k))


def test_a_view_of_some_columns_is_ranked_by_them_alone() -> None:
    scores = drawn("plain", 600)
    truth = np.random.default_rng(5).random(scores.shape) < 0.02
    (whole,) = ranking.shares(scores[:, 200:], [truth[:, 200:]], k=2, most=MOST)
    assert np.array_equal(whole, sorted_shares(scores[:, 200:], truth[:, 200:], 2))
    (again,) = ranking.shares(scores.copy()[:, 200:], [truth[:, 200:]], k=2, most=MOST)
    assert np.array_equal(scores, drawn("plain", 600))
    assert np.array_equal(whole, again)


def test_what_fails_on_one_part_is_raised_and_all_parts_are_done_otherwise() -> None:
    done: set[int] = set()
    lock = threading.Lock()

    def work(part: int) -> None:
        if part == 70:
            raise ValueError("the seventieth")
        with lock:
            done.add(part)

    ranking.together(work, range(50))
    assert done == set(range(50))
    with pytest.raises(ValueError, match="the seventieth"):
        ranking.together(work, range(60, 80))
