"""Recall with its interval: as wide as the queries leave it open, and never sure of 1."""

from __future__ import annotations

import numpy as np
import pytest

from vecbridge.recall import mean_recall


def test_nothing_asked_is_nothing_known() -> None:
    found = mean_recall([], 10)
    assert (found.low, found.high, found.queries) == (0.0, 1.0, 0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_or_nothing_found_is_no_certainty(share: float) -> None:
    found = mean_recall([share] * 100, 10)
    assert found.mean == share
    assert found.high - found.low == pytest.approx(0.037, abs=0.001)


def test_more_queries_tell_more() -> None:
    few, many = (mean_recall([0.8, 1.0] * count, 10) for count in (10, 1000))
    assert few.low < many.low < 0.9 < many.high < few.high


def test_nineteen_intervals_in_twenty_hold_the_truth() -> None:
    """Queries differ in how hard they are: their neighbours are found or missed together."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        ease = generator.beta(8, 1, 120)
        found = mean_recall((generator.binomial(10, ease) / 10).tolist(), 10)
        hits += found.low <= 8 / 9 <= found.high
    assert 0.92 <= hits / 400 <= 0.99


def test_a_recall_is_printed_with_its_interval() -> None:
    assert str(mean_recall([0.5, 1.0], 10)) == "0.750 (0.256 to 0.963)"
