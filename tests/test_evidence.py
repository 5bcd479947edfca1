"""What evidence says about layouts: the right curve, the smallest oversampling, a trend that is followed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vecbridge.evidence import MOST, Curve, Evidence
from vecbridge.recall import Recall
from vecbridge.types import Element, Index, Layout, Shorten


def curve(element: Element, shorten: Shorten | None, start: float, *, trend: float = 0.0) -> Curve:
    """Recall that starts somewhere and halves what is missing with each doubling of the oversampling."""
    means = [1 - (1 - start) / oversample for oversample in range(1, MOST + 1)]
    return Curve(element, shorten, tuple(Recall(m, m - 0.01, m, 100) for m in means), (trend,) * MOST, 1000)


SHORT, CENTRED = Shorten("pca", 64), Shorten("pca", 64, centred=True)
PREFIX = Shorten("truncate", 32)
EVIDENCE = Evidence(
    k=10, rows=1000, queries=100, dim=128, held_out=True, seed=0, spectrum=(), mean_energy=0.1, seconds=1.0,
    curves=(
        curve("float16", None, 0.99), curve("bit", None, 0.5, trend=-0.5), curve("float16", SHORT, 0.7),
        curve("float16", CENTRED, 0.8), curve("float16", PREFIX, 0.6), curve("int8", None, 0.9, trend=0.5),
    ),
    asymmetric_bit=curve("bit", None, 0.75),
)  # fmt: skip


def indexed(element: Element, shorten: Shorten | None = None, *, oversample: int = 1) -> Layout:
    return Layout(index=Index("hnsw", element=element, shorten=shorten), oversample=oversample)


def mean(layout: Layout, *, rows: int = 1000, evidence: Evidence = EVIDENCE) -> float:
    found = evidence.recall(layout, rows=rows)
    assert found is not None
    return found.mean


def test_whole_vectors_lose_nothing() -> None:
    assert mean(Layout()) == mean(indexed("float32")) == 1.0
    assert EVIDENCE.enough(indexed("float32"), 1.0, rows=10**9) == 1


def test_what_was_not_measured_is_not_known() -> None:
    layout = indexed("turbo2")
    assert EVIDENCE.recall(layout, rows=1000) is None
    assert EVIDENCE.enough(layout, 0.5, rows=1000) is None
    assert EVIDENCE.projection(65) is None


def test_oversampling_finds_more_and_the_smallest_that_is_enough_is_found() -> None:
    assert mean(indexed("bit", oversample=5)) == pytest.approx(0.9)
    assert EVIDENCE.enough(indexed("bit"), 0.9, rows=1000) == 5
    assert EVIDENCE.enough(indexed("bit"), 0.999, rows=1000) is None
    assert mean(indexed("bit", oversample=500)) == mean(indexed("bit", oversample=MOST))


def test_what_is_short_at_the_door_gains_nothing_by_oversampling() -> None:
    layout = Layout(shorten=SHORT, oversample=8)
    assert mean(layout) == pytest.approx(0.7)
    assert EVIDENCE.enough(layout, 0.71, rows=1000) is None
    halves = Layout(element="float16", index=Index("hnsw", element="float16"), oversample=8)
    assert mean(halves) == pytest.approx(0.99)


def test_prefixes_at_the_door_have_their_own_curve_where_lengths_matter() -> None:
    there = replace(EVIDENCE, at_the_door=(curve("float16", PREFIX, 0.65),))
    assert mean(Layout(shorten=PREFIX), evidence=there) == pytest.approx(0.65)
    assert mean(indexed("float16", PREFIX), evidence=there) == pytest.approx(0.6)
    assert mean(Layout(shorten=PREFIX)) == pytest.approx(0.6)


def test_the_better_of_two_projections_is_taken() -> None:
    assert EVIDENCE.projection(64) == CENTRED
    assert EVIDENCE.sizes("pca") == (64,)
    assert EVIDENCE.sizes("truncate") == (32,)


def test_half_precision_stands_for_full_where_vectors_are_short() -> None:
    assert EVIDENCE.curve("float32", SHORT) is EVIDENCE.curve("float16", SHORT)


def test_more_rows_are_harder_by_the_trend_and_never_easier() -> None:
    bits = indexed("bit", oversample=5)
    assert EVIDENCE.doublings(4000) == 2
    assert EVIDENCE.doublings(10) == 0
    # the logit of 0.9 is 2.197; two doublings take 1 off
    assert mean(bits, rows=4000) == pytest.approx(0.768, abs=1e-3)
    assert mean(bits, rows=10) == pytest.approx(0.9)
    assert mean(indexed("int8"), rows=10**6) == pytest.approx(0.9)
    enough = EVIDENCE.enough(bits, 0.9, rows=4000)
    assert enough is not None
    assert enough > 5
    found = EVIDENCE.recall(bits, rows=4000)
    assert found is not None
    assert found.low < found.mean


def test_who_re_ranks_more_is_never_expected_to_find_less() -> None:
    steep = replace(curve("bit", None, 0.5), trend=(-0.1,) * 4 + (-2.0,) * (MOST - 4))
    means = [steep.at(oversample, 3).mean for oversample in range(1, MOST + 1)]
    assert means == sorted(means)
    assert means[4] == means[3] > 0.8
    late = steep.at(5, 3)
    assert late.low <= late.mean <= late.high


def test_expectations_start_from_the_rows_that_a_curve_was_measured_among() -> None:
    fewer = replace(curve("float16", SHORT, 0.7, trend=-0.5), rows=250)
    known = replace(EVIDENCE, curves=(fewer,))
    assert (fewer.doublings(1000), known.doublings(1000)) == (2, 0)
    short = indexed("float16", SHORT)
    # the logit of 0.7 is 0.847; two doublings take 1 off
    assert mean(short, evidence=known) == pytest.approx(0.462, abs=1e-3)
    assert mean(short, rows=250, evidence=known) == pytest.approx(0.7)
    assert known.enough(short, 0.7, rows=250) == 1
    enough = known.enough(short, 0.7, rows=1000)
    assert enough is not None
    assert enough > 1


def test_stores_that_keep_the_query_finer_have_a_curve_of_their_own() -> None:
    assert mean(indexed("bit"), evidence=EVIDENCE.asymmetric()) == pytest.approx(0.75)
    assert mean(indexed("int8"), evidence=EVIDENCE.asymmetric()) == pytest.approx(0.9)
    without = replace(EVIDENCE, asymmetric_bit=None)
    assert without.asymmetric() is without


def test_evidence_is_json() -> None:
    told = json.loads(json.dumps(EVIDENCE.to_dict()))
    assert told["recall"][1]["oversampling"]["4"]["mean"] == pytest.approx(0.875)
    assert told["recall"][3]["shorten"] == {"method": "pca", "dim": 64, "centred": True}
