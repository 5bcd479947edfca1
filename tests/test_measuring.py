"""What is measured on a sample: right where it can be reckoned, honest where not, and what is refused."""

from __future__ import annotations

import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_vectors

from vecbridge.errors import DimensionMismatch, InputError
from vecbridge.evidence import MOST, Curve, Evidence
from vecbridge.measuring import measure, slope
from vecbridge.reduction import fit
from vecbridge.testing import data
from vecbridge.types import Element, Metric, Shorten

METRICS: list[Metric] = ["cosine", "ip", "l2"]
ELEMENTS: list[Element] = ["float16", "int8", "turbo4", "turbo2", "turbo1", "bit"]


def falling(n: int, dim: int, *, seed: int) -> np.ndarray:
    """Vectors whose spread falls from component to component, off the origin."""
    generator = np.random.default_rng(seed)
    spread = 1 / np.sqrt(np.arange(dim) + 1)
    return (generator.standard_normal((n, dim)) * spread + 0.1).astype(np.float32)


@cache
def glosses() -> real_vectors.Vectors:
    return real_vectors.lsa(real_vectors.texts(), rows=4800, queries=300, dim=192)


def mean(
    evidence: Evidence, element: Element, shorten: Shorten | None = None, *, oversample: int = 1
) -> float:
    curve = evidence.curve(element, shorten)
    assert curve is not None
    return curve.found[oversample - 1].mean


@pytest.mark.parametrize("metric", METRICS)
def test_every_representation_is_measured_and_oversampling_never_finds_less(metric: Metric) -> None:
    evidence = measure(falling(700, 40, seed=1), metric=metric, nested=(20,))
    assert (evidence.k, evidence.rows, evidence.queries, evidence.dim) == (10, 630, 70, 40)
    assert evidence.held_out
    assert evidence.seconds > 0
    assert all(evidence.curve(element, None) for element in ELEMENTS)
    assert evidence.sizes("truncate") == (8, 16, 20, 32)
    assert evidence.sizes("pca") == (8, 16, 20, 32)
    centred = {curve.shorten.centred for curve in evidence.curves if curve.shorten}
    assert centred == ({False, True} if metric == "cosine" else {False})
    assert len({(curve.element, curve.shorten) for curve in evidence.curves}) == len(evidence.curves)
    for curve in (*evidence.curves, *evidence.at_the_door):
        means = [found.mean for found in curve.found]
        assert len(means) == len(curve.trend) == MOST
        assert means == sorted(means)
        assert all(found.low <= found.mean <= found.high for found in curve.found)
    assert bool(evidence.at_the_door) == (metric != "cosine")


@pytest.mark.parametrize("metric", METRICS)
def test_recall_of_a_prefix_is_what_brute_force_finds(metric: Metric) -> None:
    rows, queries = falling(400, 24, seed=2), falling(30, 24, seed=3)
    evidence = measure(rows, queries=queries, metric=metric, k=5)
    assert not evidence.held_out
    rows, queries = rows.astype(np.float64), queries.astype(np.float64)

    def order(size: int) -> np.ndarray:
        short, asked = rows[:, :size], queries[:, :size]
        if metric == "cosine":
            short = short / np.linalg.norm(short, axis=1, keepdims=True)
        far = -asked @ short.T
        if metric == "l2":
            far = np.linalg.norm(asked[:, None] - short[None], axis=2)
        return np.argsort(far, axis=1)

    truth, found = order(24)[:, :5], order(8)
    for oversample in (1, 2, 8, MOST):
        shares = [
            len({*some[: 5 * oversample]} & {*right}) / 5 for some, right in zip(found, truth, strict=True)
        ]
        got = mean(evidence, "float16", Shorten("truncate", 8), oversample=oversample)
        # half precision may turn two neighbours round
        assert got == pytest.approx(np.mean(shares), abs=0.015)


@pytest.mark.parametrize("metric", METRICS)
def test_directions_without_energy_are_not_missed(metric: Metric) -> None:
    generator = np.random.default_rng(4)
    turn = np.linalg.qr(generator.standard_normal((40, 40)))[0][:8]
    flat = ((generator.standard_normal((600, 8)) + 1) @ turn).astype(np.float32)
    evidence = measure(flat, metric=metric, rows=600)
    assert mean(evidence, "float16", Shorten("pca", 8)) > 0.98
    assert mean(evidence, "float16", Shorten("truncate", 8)) < 0.9
    assert sum(evidence.spectrum[:8]) == pytest.approx(1, abs=1e-4)


def test_a_strong_common_mean_is_seen_and_the_better_projection_taken() -> None:
    """The mean takes a direction, and all but hides what differs: without it PCA finds more."""
    generator = np.random.default_rng(5)
    # what differs lies in few directions, the mean across them
    inside = generator.standard_normal((800, 24)) @ np.linalg.qr(generator.standard_normal((64, 24)))[0].T
    strong = (inside * 0.05 + np.linspace(0.5, 1.5, 64)).astype(np.float32)
    evidence = measure(strong)
    assert evidence.mean_energy > 0.9
    assert evidence.spectrum[0] > 0.9
    best = evidence.projection(16)
    assert best is not None
    pair = [mean(evidence, "float16", Shorten("pca", 16, centred)) for centred in (False, True)]
    assert mean(evidence, "float16", best) == max(pair)


def test_the_same_seed_measures_the_same_and_another_something_else() -> None:
    sample = falling(600, 16, seed=6)
    one, same, other = (measure(sample, seed=seed).curves for seed in (7, 7, 8))
    assert one == same
    assert one != other


def test_ties_count_as_right() -> None:
    equal = np.ones((300, 16), dtype=np.float32)
    evidence = measure(equal)
    assert all(curve.found[0].mean == 1.0 for curve in evidence.curves)
    twice = np.repeat(data.clustered(100, 32, seed=9), 12, axis=0)
    assert mean(measure(twice, seed=1), "float16") > 0.99


def test_a_memmap_is_read_only_where_it_is_taken(tmp_path: Path) -> None:
    rows, dim = 60_000, 128
    path = tmp_path / "sample.npy"
    whole = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dim))
    whole[:] = 1e-3
    whole[::3] = np.nan
    generator = np.random.default_rng(10)
    whole[1::3] = generator.standard_normal((rows // 3, dim))
    whole.flush()
    good = np.lib.format.open_memmap(tmp_path / "good.npy", mode="w+", dtype=np.float16, shape=(rows, dim))
    good[:] = generator.standard_normal((rows, dim))
    sample = np.load(tmp_path / "good.npy", mmap_mode="r")
    tracemalloc.start()
    evidence = measure(sample, most_rows=2000, held_out=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (evidence.rows, evidence.queries) == (1950, 50)
    # the file is 15 MB as it lies and 31 MB in float32
    assert peak < 20e6
    with pytest.raises(InputError, match=r"row [\d,]+ of the sample holds NaN"):
        measure(np.load(path, mmap_mode="r"), most_rows=2000)


def test_queries_take_no_part_in_the_fit() -> None:
    """Axes laid through the queries would find the neighbours of pure noise better than fresh ones do."""
    noise = np.random.default_rng(11).standard_normal((1200, 64)).astype(np.float32)
    own = measure(noise, seed=2, held_out=120)
    fresh = np.random.default_rng(12).standard_normal((120, 64)).astype(np.float32)
    given = measure(noise[120:], queries=fresh, seed=2)
    shorten = Shorten("pca", 32)
    assert mean(own, "float16", shorten) == pytest.approx(mean(given, "float16", shorten), abs=0.05)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("metric", METRICS)
def test_few_dimensions_are_measured_too(metric: Metric, dim: int) -> None:
    evidence = measure(falling(200, dim, seed=13), metric=metric)
    assert mean(evidence, "float16", oversample=MOST) == 1.0


def test_many_dimensions_and_few_rows_are_measured_too() -> None:
    evidence = measure(falling(120, 20_000, seed=14), metric="cosine")
    # half of the rows at most, and none below a 64th of the dimensions
    assert evidence.sizes("pca") == ()
    assert 2000 in evidence.sizes("truncate")


def test_more_rows_are_predicted_from_a_quarter_of_them() -> None:
    """Real texts, seed 0: every representation, as far as five times the candidates."""
    vectors = glosses()
    whole = measure(vectors.rows, queries=vectors.queries, rows=4800)
    part = measure(vectors.rows[:1200], queries=vectors.queries, rows=1200)
    assert part.doublings(whole.rows) == 2
    errors, naive = [], []
    for curve in part.curves:
        truth = whole.curve(curve.element, curve.shorten)
        assert truth is not None
        for oversample in (1, 2, 4):
            real = truth.found[oversample - 1].mean
            errors.append(curve.at(oversample, curve.doublings(truth.rows)).mean - real)
            naive.append(curve.at(oversample).mean - real)
    assert np.abs(errors).mean() < 0.03
    assert abs(np.mean(errors)) < 0.02
    assert np.abs(errors).mean() < np.abs(naive).mean() / 2


def found_by(
    shorten: Shorten, sample: np.ndarray, rows: np.ndarray, queries: np.ndarray, *, oversample: int
) -> float:
    """Recall@10 among `rows`, by brute force, of the reduction that a collection fits on a sample."""
    fitted = fit(shorten, source=rows.shape[1], metric="cosine", sample=sample)
    truth = np.argsort(-queries @ rows.T, axis=1)[:, :10]
    order = np.argsort(-fitted.apply(queries) @ fitted.apply(rows).T, axis=1)[:, : 10 * oversample]
    return float(np.mean([len({*some} & {*right}) / 10 for some, right in zip(order, truth, strict=True)]))


def projections(evidence: Evidence) -> list[Curve]:
    return [one for one in evidence.curves if one.shorten is not None and one.shorten.method == "pca"]


def test_a_projection_is_predicted_for_rows_that_its_fit_has_not_seen() -> None:
    vectors = glosses()
    sample, others = vectors.rows[:2700], vectors.rows[2700:]
    known = measure(sample, queries=vectors.queries, rows=10**6)
    assert known.rows == 2700
    errors, naive = [], []
    inside = measure(sample, queries=vectors.queries, rows=len(sample))
    for curve in projections(known):
        assert curve.rows == 900
        assert curve.shorten is not None
        if curve.shorten.dim not in (64, 128):
            continue
        same = inside.curve("float16", curve.shorten)
        assert same is not None
        for oversample in (1, 2):
            real = found_by(curve.shorten, sample, others, vectors.queries, oversample=oversample)
            errors.append(curve.at(oversample, curve.doublings(len(others))).mean - real)
            naive.append(same.at(oversample, same.doublings(len(others))).mean - real)
    assert np.abs(errors).mean() < 0.02
    assert abs(np.mean(errors)) < 0.02
    # which the rows of the fit would not tell
    assert np.mean(naive) > 0.02


def test_a_projection_is_predicted_for_the_very_rows_of_its_fit_where_they_are_all_there_is() -> None:
    vectors = glosses()
    sample = vectors.rows[:2700]
    known = measure(sample, queries=vectors.queries, rows=4000)
    for curve in projections(known):
        assert curve.rows == 2700
        assert curve.shorten is not None
        for oversample in (1,) if curve.shorten.dim in (64, 128) else ():
            real = found_by(curve.shorten, sample, sample, vectors.queries, oversample=oversample)
            assert curve.at(oversample).mean == pytest.approx(real, abs=0.02)


@pytest.mark.parametrize("centred", [False, True])
def test_a_projection_with_a_strong_mean_finds_what_the_reduction_finds(centred: bool) -> None:
    generator = np.random.default_rng(22)
    strong = generator.standard_normal((900, 48)) / np.sqrt(np.arange(48) + 1)
    # a large group and a small one: the mean lies along what tells them apart, and so within the axes
    strong[:, 0] += np.where(np.arange(900) % 5, 2, 0)
    strong[:, 1] += np.where(np.arange(900) % 5, 0, 2)
    unit = (strong / np.linalg.norm(strong, axis=1, keepdims=True)).astype(np.float32)
    rows, queries = unit[:800], unit[800:]
    shorten = Shorten("pca", 16, centred)
    evidence = measure(rows, queries=queries, rows=800)
    real = found_by(shorten, rows, rows, queries, oversample=1)
    assert mean(evidence, "float16", shorten) == pytest.approx(real, abs=0.03)


@pytest.mark.parametrize(("rows", "among"), [(None, 300), (1501, 300), (1500, 900), (0, 900)])
def test_only_a_collection_much_larger_than_the_sample_is_measured_as_other_rows(
    rows: int | None, among: int
) -> None:
    evidence = measure(falling(1000, 16, seed=20), rows=rows)
    assert {one.rows for one in projections(evidence)} == {among}
    assert {one.rows for one in evidence.curves if one not in projections(evidence)} == {900}
    assert evidence.sizes("pca") == (8,)


def test_a_sample_too_small_to_leave_rows_out_says_nothing_of_projections() -> None:
    assert projections(measure(falling(150, 16, seed=21))) == []
    assert projections(measure(falling(150, 16, seed=21), rows=150)) != []


def test_a_trend_is_the_slope_of_the_logit() -> None:
    rows = np.array([1000.0, 2000.0, 4000.0])
    logits = 2 - 0.3 * np.log2(rows / 1000)
    assert slope(rows, 1 / (1 + np.exp(-logits)), trials=1000) == pytest.approx(-0.3)
    assert slope(rows, np.ones(3), trials=1000) == pytest.approx(0)


def test_numbers_beyond_half_precision_are_measured_without_it() -> None:
    evidence = measure(falling(200, 16, seed=15) * np.float32(1e6), metric="ip")
    assert evidence.curve("float16", None) is None
    assert mean(evidence, "float16", Shorten("truncate", 8), oversample=MOST) == 1.0


def test_progress_is_told_and_ends_at_its_total() -> None:
    told: list[tuple[str, int, int | None]] = []
    measure(falling(200, 16, seed=16), progress=lambda stage, done, total: told.append((stage, done, total)))
    assert [done for _, done, _ in told] == list(range(1, len(told) + 1))
    assert told[-1][1] == told[-1][2]


def spoilt(value: float) -> np.ndarray:
    sample = falling(100, 8, seed=17)
    sample[42] = value
    return sample


GOOD = falling(100, 8, seed=18)
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "NaN": (spoilt(np.nan), {}, "row 42 of the sample holds NaN"),
    "infinity": (spoilt(np.inf), {}, "row 42 of the sample holds NaN, infinity"),
    "beyond float32": (spoilt(1).astype(np.float64) * 1e39, {}, "a number beyond float32"),
    "zero under cosine": (spoilt(0), {}, "row 42 of the sample has length 0, which has no direction"),
    "too long": (spoilt(1e19), {"metric": "l2"}, "row 42 of the sample has length 2.83e"),
    "one dimension": (np.ones(8), {}, r"shape \(n, d\), got shape \(8,\)"),
    "no components": (np.ones((8, 0)), {}, r"got shape \(8, 0\)"),
    "text": (np.array([["a"]]), {}, "got dtype <U1"),
    "ragged": ([[1.0], [1.0, 2.0]], {}, "expected a sample as a float array"),
    "too few": (GOOD[:49], {}, "recall@10 needs a sample of at least 50 vectors, got 49"),
    "too few for k": (GOOD, {"k": 50}, "recall@50 needs a sample of at least 110 vectors, got 100"),
    "metric": (GOOD, {"metric": "dot"}, "expected a metric of cosine, ip, l2, got 'dot'"),
    "nested": (GOOD, {"nested": (9,)}, "expected nested sizes of 1 to 8, got 9"),
    "rows": (GOOD, {"rows": -1}, "number of rows planned for, 0 or more, got -1"),
    "k": (GOOD, {"k": 0}, "expected k, most_rows and held_out of 1 or more"),
    "zero query": (GOOD, {"queries": spoilt(0)}, "row 42 of the queries has length 0"),
    "no queries": (GOOD, {"queries": np.ones((0, 8))}, "at least one query, got none"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused_with_a_reason(case: str) -> None:
    sample, named, reason = REFUSED[case]
    with pytest.raises(InputError, match=reason):
        measure(sample, **named)


def test_queries_of_other_dimensions_are_refused() -> None:
    with pytest.raises(DimensionMismatch, match="queries of 8 dimensions as the sample has them, got 9"):
        measure(GOOD, queries=np.ones((5, 9)))


def test_too_many_queries_are_chosen_from() -> None:
    assert measure(GOOD, queries=falling(90, 8, seed=19), held_out=30).queries == 30
