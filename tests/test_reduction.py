"""Shorter vectors: what they keep, and that they come back as they were."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from vecbridge import axes
from vecbridge.axes import principal, twice
from vecbridge.errors import InputError, ManifestError
from vecbridge.reduction import Reduction, fit
from vecbridge.testing import data, oracle
from vecbridge.types import Metric, Shorten

METRICS: list[Metric] = ["cosine", "ip", "l2"]


def lengths(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors.astype(np.float64), axis=1)


def flat_cloud(n: int, *, dim: int, rank: int, seed: int) -> np.ndarray:
    """Vectors (n, dim) that lie in a space of `rank` dimensions through the origin, away from it."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((dim, rank)))[0]
    inside = generator.standard_normal((n, rank)) + 2
    return np.ascontiguousarray(inside @ basis.T, dtype=np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("method", ["truncate", "pca"])
def test_what_comes_out_is_float32_contiguous_and_short(method: str, metric: Metric) -> None:
    sample = data.clustered(60, 24, seed=1)
    shorten = Shorten(method, 8)  # type: ignore[arg-type] # both are methods
    short = fit(shorten, source=24, metric=metric, sample=sample).apply(sample)
    assert short.shape == (60, 8)
    assert short.dtype == np.float32
    assert short.flags.c_contiguous
    assert np.isfinite(short).all()


@pytest.mark.parametrize("metric", METRICS)
def test_no_vectors_become_no_vectors(metric: Metric) -> None:
    reduction = fit(Shorten("pca", 4), source=8, metric=metric, sample=data.clustered(20, 8, seed=2))
    assert reduction.apply(np.empty((0, 8), dtype=np.float32)).shape == (0, 4)


@pytest.mark.parametrize(
    ("method", "metric"), [("truncate", metric) for metric in METRICS] + [("pca", "cosine"), ("pca", "ip")]
)
def test_a_shortened_vector_keeps_its_length(method: str, metric: Metric) -> None:
    sample = data.clustered(60, 24, seed=3) * np.linspace(0.1, 9, 60, dtype=np.float32)[:, None]
    shorten = Shorten(method, 8)  # type: ignore[arg-type] # both are methods
    short = fit(shorten, source=24, metric=metric, sample=sample).apply(sample)
    assert lengths(short) == pytest.approx(lengths(sample), rel=1e-5)


def test_a_projection_under_l2_only_projects() -> None:
    sample = data.clustered(60, 24, seed=4) * np.float32(3)
    reduction = fit(Shorten("pca", 8), source=24, metric="l2", sample=sample)
    assert reduction.basis is not None
    assert reduction.apply(sample) == pytest.approx(sample @ reduction.basis.T, abs=1e-5)
    assert (lengths(reduction.apply(sample)) < lengths(sample)).all()


@pytest.mark.parametrize("length", [1e-19, 1e-12, 1.0, 1e12, 8e18])
def test_lengths_survive_at_the_edges_of_float32(length: float) -> None:
    vectors = (data.clustered(20, 16, seed=5).astype(np.float64) * length).astype(np.float32)
    short = fit(Shorten("truncate", 4), source=16, metric="cosine", sample=None).apply(vectors)
    assert lengths(short) / length == pytest.approx(1, rel=1e-4)


def test_a_vector_with_nothing_in_what_is_kept_becomes_zero() -> None:
    vectors = np.array([[0, 0, 1, 1], [1, 0, 1, 1]], dtype=np.float32)
    short = fit(Shorten("truncate", 2), source=4, metric="cosine", sample=None).apply(vectors)
    assert short[0].tolist() == [0, 0]
    assert short[1].tolist() == pytest.approx([np.sqrt(3), 0])


def test_the_vectors_given_stay_as_they_are() -> None:
    sample = data.clustered(40, 12, seed=6)
    before = sample.tobytes()
    for method in ("truncate", "pca"):
        for metric in METRICS:
            shorten = Shorten(method, 4)  # type: ignore[arg-type] # both are methods
            fit(shorten, source=12, metric=metric, sample=sample).apply(sample)
    assert sample.tobytes() == before


@pytest.mark.parametrize("metric", METRICS)
def test_a_basis_has_orthonormal_rows(metric: Metric) -> None:
    reduction = fit(Shorten("pca", 8), source=24, metric=metric, sample=data.clustered(200, 24, seed=7))
    assert reduction.basis is not None
    assert reduction.basis.shape == (8, 24)
    assert reduction.basis @ reduction.basis.T == pytest.approx(np.eye(8), abs=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_pca_loses_nothing_of_vectors_that_lie_in_fewer_dimensions(metric: Metric) -> None:
    cloud = flat_cloud(300, dim=40, rank=6, seed=8)
    reduction = fit(Shorten("pca", 6), source=40, metric=metric, sample=cloud[:200])
    assert reduction.kept == pytest.approx(1.0, abs=1e-4)
    unseen, queries = cloud[200:290], cloud[290:]
    whole = oracle.scores(queries, unseen, metric=metric)
    short = oracle.scores(reduction.apply(queries), reduction.apply(unseen), metric=metric)
    assert short == pytest.approx(whole, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_the_mean_is_removed_for_l2_only(metric: Metric) -> None:
    """A cloud far from the origin: its direction is what cosine compares, and nothing that l2 can see."""
    generator = np.random.default_rng(9)
    sample = generator.standard_normal((300, 10)).astype(np.float32)
    sample[:, 0] = 50 + sample[:, 0] * 0.01
    reduction = fit(Shorten("pca", 1), source=10, metric=metric, sample=sample)
    assert reduction.basis is not None
    towards_the_mean = abs(float(reduction.basis[0, 0]))
    assert towards_the_mean < 0.05 if metric == "l2" else towards_the_mean > 0.99


def test_kept_is_the_share_of_energy() -> None:
    sample = np.zeros((100, 4), dtype=np.float32)
    sample[:, :2] = np.random.default_rng(10).standard_normal((100, 2)) * [3, 1]
    reduction = fit(Shorten("pca", 1), source=4, metric="ip", sample=sample)
    energy = (sample.astype(np.float64) ** 2).sum(axis=0)
    assert reduction.kept == pytest.approx(energy[0] / energy.sum(), abs=0.01)
    assert fit(Shorten("truncate", 1), source=4, metric="ip", sample=None).kept is None


@pytest.mark.parametrize("metric", METRICS)
def test_the_same_sample_and_seed_give_the_same_basis(metric: Metric) -> None:
    sample = data.clustered(80, 20, seed=11)
    one, other = (
        fit(Shorten("pca", 5), source=20, metric=metric, sample=sample, seed=3).basis_bytes()
        for _ in range(2)
    )
    assert one == other


@pytest.mark.parametrize("metric", METRICS)
def test_a_reduction_comes_back_from_json_and_bytes(metric: Metric) -> None:
    sample = data.clustered(80, 20, seed=12)
    made = fit(Shorten("pca", 5), source=20, metric=metric, sample=sample)
    back = Reduction.from_dict(json.loads(json.dumps(made.to_dict())), made.basis_bytes())
    assert back.basis_bytes() == made.basis_bytes()
    assert (back.shorten, back.source, back.rescale, back.kept) == (
        made.shorten, made.source, made.rescale, made.kept
    )  # fmt: skip
    assert back.apply(sample).tobytes() == made.apply(sample).tobytes()
    cut = fit(Shorten("truncate", 5), source=20, metric=metric, sample=None)
    assert Reduction.from_dict(cut.to_dict(), b"").apply(sample).tobytes() == cut.apply(sample).tobytes()


def test_a_damaged_basis_is_refused() -> None:
    made = fit(Shorten("pca", 5), source=20, metric="ip", sample=data.clustered(80, 20, seed=13))
    for damaged in (b"", made.basis_bytes()[:-1], made.basis_bytes() + b"\0"):
        with pytest.raises(ManifestError, match=r"expected a basis of 5 x 20 float32 \(400 bytes\), found"):
            Reduction.from_dict(made.to_dict(), damaged)


@pytest.mark.parametrize("dim", [0, -1, 20, 21])
def test_vectors_can_only_be_made_shorter(dim: int) -> None:
    with pytest.raises(InputError, match=f"expected a shorter dimension of 1 to 19, got {dim}"):
        fit(Shorten("truncate", dim), source=20, metric="ip", sample=None)


def test_a_pca_needs_a_sample_that_spans_it() -> None:
    with pytest.raises(InputError, match="pass sample="):
        fit(Shorten("pca", 5), source=20, metric="ip", sample=None)
    with pytest.raises(InputError, match="at least 5 vectors, got 4"):
        fit(Shorten("pca", 5), source=20, metric="ip", sample=data.clustered(4, 20, seed=14))
    with pytest.raises(InputError, match=r"expected a sample of shape \(n, 20\), got \(9, 21\)"):
        fit(Shorten("pca", 5), source=20, metric="ip", sample=data.clustered(9, 21, seed=15))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("rows", "dim"), [(5, 5), (20, 19), (19, 19)])
def test_a_sample_that_is_just_large_enough_is_enough(metric: Metric, rows: int, dim: int) -> None:
    reduction = fit(Shorten("pca", dim), source=20, metric=metric, sample=data.clustered(rows, 20, seed=16))
    assert reduction.basis is not None
    assert reduction.basis.shape == (dim, 20)
    assert np.isfinite(reduction.basis).all()


def off_centre(n: int, dim: int, *, seed: int, mean: float = 1.0) -> np.ndarray:
    """Vectors whose spread falls off from component to component, about a mean that is not zero."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((n, dim)) / np.sqrt(np.arange(dim) + 1) + mean / np.sqrt(dim)).astype(
        np.float32
    )


def test_a_centred_pca_compares_unit_vectors_about_their_mean() -> None:
    sample = off_centre(400, 24, seed=20) * np.linspace(0.1, 9, 400, dtype=np.float32)[:, None]
    reduction = fit(Shorten("pca", 8, centred=True), source=24, metric="cosine", sample=sample)
    assert reduction.basis is not None
    assert reduction.mean is not None
    units = sample / lengths(sample)[:, None]
    assert reduction.mean == pytest.approx(units.mean(axis=0), abs=0.05)
    short = reduction.apply(sample)
    directions = (units - reduction.mean) @ reduction.basis.T
    directions /= lengths(directions)[:, None]
    assert short / lengths(short)[:, None] == pytest.approx(directions, abs=1e-4)
    assert lengths(short) == pytest.approx(lengths(sample), rel=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_axes_are_those_of_a_full_decomposition(metric: Metric) -> None:
    sample = off_centre(500, 40, seed=21)
    reduction = fit(Shorten("pca", 10), source=40, metric=metric, sample=sample[:19])
    assert reduction.basis is not None
    whole = sample[:19].astype(np.float64)
    if metric == "cosine":
        whole /= lengths(whole)[:, None]
    if metric == "l2":
        whole -= whole.mean(axis=0)
    best = (np.linalg.svd(whole)[1][:10] ** 2).sum()
    assert ((whole @ reduction.basis.T) ** 2).sum() == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize(("rows", "dim"), [(600, 50), (30, 50)])
def test_both_kinds_of_axes_at_once_are_each_as_alone(rows: int, dim: int) -> None:
    sample = off_centre(rows, dim, seed=22, mean=30)
    for centred, found in zip((False, True), axes.both(sample, 12), strict=True):
        alone = axes.principal(sample, 12, centred=centred)
        whole = sample.astype(np.float64) - centred * sample.mean(axis=0, dtype=np.float64)
        squares = np.linalg.svd(whole)[1] ** 2
        for one in (found, alone):
            assert one.energy == pytest.approx(squares[:12] / squares.sum(), rel=1e-3, abs=1e-6)
            assert one.basis @ one.basis.T == pytest.approx(np.eye(12), abs=1e-4)
            assert ((whole @ one.basis.T) ** 2).sum() == pytest.approx(squares[:12].sum(), rel=1e-5)


def test_vectors_without_any_energy_still_give_orthonormal_axes() -> None:
    for rows in (5, 40):
        found = axes.principal(np.ones((rows, 12), dtype=np.float32), 5, centred=True)
        assert found.basis @ found.basis.T == pytest.approx(np.eye(5), abs=1e-5)
        assert found.energy.tolist() == [0.0] * 5


def test_the_solver_for_large_squares_finds_what_the_exact_one_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample = off_centre(500, 200, seed=23)
    exact = axes.both(sample, 10)
    monkeypatch.setattr(axes, "_SMALL", 10)
    for one, other in zip(axes.both(sample, 10), exact, strict=True):
        assert one.energy.sum() == pytest.approx(other.energy.sum(), rel=5e-3)
        assert one.basis @ one.basis.T == pytest.approx(np.eye(10), abs=1e-4)


def test_kept_is_measured_on_vectors_that_were_left_out() -> None:
    """Noise has no directions worth keeping: only a fit asked about its own sample believes so."""
    noise = np.random.default_rng(24).standard_normal((300, 200)).astype(np.float32)
    reduction = fit(Shorten("pca", 100), source=200, metric="ip", sample=noise)
    fresh = np.random.default_rng(25).standard_normal((2000, 200)).astype(np.float32)
    truth = float(reduction.keeps(fresh).mean())
    assert reduction.kept == pytest.approx(truth, abs=0.04)
    assert truth < 0.6


@pytest.mark.parametrize(
    ("metric", "centred"), [("cosine", False), ("cosine", True), ("ip", False), ("l2", False)]
)
def test_one_vector_in_twenty_keeps_less_than_usual(metric: Metric, centred: bool) -> None:
    sample = off_centre(6000, 24, seed=26)
    reduction = fit(Shorten("pca", 8, centred), source=24, metric=metric, sample=sample[:4000])
    assert reduction.usual is not None
    shares = reduction.keeps(sample[4000:])
    assert shares.shape == (2000,)
    assert ((shares >= 0) & (shares <= 1)).all()
    assert (shares < reduction.usual).mean() == pytest.approx(0.05, abs=0.03)


def test_what_is_kept_of_a_vector_is_the_share_inside_the_basis() -> None:
    sample = off_centre(300, 6, seed=27, mean=0)
    reduction = fit(Shorten("pca", 2), source=6, metric="ip", sample=sample)
    assert reduction.basis is not None
    inside = reduction.basis[0] * 3
    outside = np.linalg.svd(reduction.basis)[2][-1].astype(np.float32) * 4
    vectors = np.stack([inside, outside, inside + outside, np.zeros(6, dtype=np.float32), inside * 1e18])
    assert reduction.keeps(vectors) == pytest.approx([1, 0, 9 / 25, 1, 1], abs=1e-5)
    cut = fit(Shorten("truncate", 1), source=2, metric="cosine", sample=None)
    assert cut.keeps(np.array([[3, 4]], dtype=np.float32)) == pytest.approx([9 / 25])


def test_under_l2_a_shift_of_all_vectors_changes_nothing_of_what_is_kept() -> None:
    sample = off_centre(500, 12, seed=28)
    near, far = (
        fit(Shorten("pca", 4), source=12, metric="l2", sample=sample + shift) for shift in np.float32([0, 50])
    )
    assert far.kept == pytest.approx(near.kept, abs=1e-3)
    assert far.keeps(sample + np.float32(50)) == pytest.approx(near.keeps(sample), abs=1e-3)


@pytest.mark.parametrize(
    ("shorten", "metric"),
    [
        (Shorten("pca", 4, True), "l2"),
        (Shorten("pca", 4, True), "ip"),
        (Shorten("truncate", 4, True), "cosine"),
    ],
)
def test_a_mean_is_taken_off_for_pca_under_cosine_only(shorten: Shorten, metric: Metric) -> None:
    with pytest.raises(InputError, match=f"centred=True is for a PCA under cosine.*under '{metric}'"):
        fit(shorten, source=8, metric=metric, sample=data.clustered(50, 8, seed=29))


@pytest.mark.parametrize(("metric", "centred"), [("cosine", True), ("l2", False)])
def test_the_mean_comes_back_with_the_basis(metric: Metric, centred: bool) -> None:
    sample = off_centre(300, 20, seed=30)
    made = fit(Shorten("pca", 5, centred), source=20, metric=metric, sample=sample)
    back = Reduction.from_dict(json.loads(json.dumps(made.to_dict())), made.basis_bytes())
    assert (back.shorten, back.usual, back.kept) == (made.shorten, made.usual, made.kept)
    assert back.apply(sample).tobytes() == made.apply(sample).tobytes()
    assert back.keeps(sample).tolist() == made.keeps(sample).tolist()
    with pytest.raises(ManifestError, match=r"5 x 20 float32 and a mean \(480 bytes\), found 400 bytes"):
        Reduction.from_dict(made.to_dict(), made.basis_bytes()[:400])


def test_a_centred_basis_without_its_mean_is_refused() -> None:
    made = fit(Shorten("pca", 5, True), source=20, metric="cosine", sample=off_centre(300, 20, seed=31))
    with pytest.raises(ManifestError, match="expected the mean of a centred PCA"):
        Reduction.from_dict({**made.to_dict(), "mean": False}, made.basis_bytes()[:400])


def test_reductions_from_before_there_was_a_mean_are_read() -> None:
    sample = off_centre(300, 20, seed=32)
    for metric in METRICS:
        made = fit(Shorten("pca", 5), source=20, metric=metric, sample=sample)
        old = {key: made.to_dict()[key] for key in ("method", "dim", "source", "rescale", "kept")}
        back = Reduction.from_dict(old, made.basis_bytes()[:400])
        assert back.apply(sample).tobytes() == made.apply(sample).tobytes()
        assert (back.mean, back.usual, back.shorten.centred) == (None, None, False)
        if metric == "l2":
            with pytest.raises(InputError, match="a mean that was not kept"):
                back.keeps(sample)
        else:
            assert back.keeps(sample).tolist() == made.keeps(sample).tolist()


def _spread(rows: int, dim: int, *, far: float = 0.0, seed: int = 3) -> Any:
    """Vectors whose energy falls off slowly by direction, around a point `far` away."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    falling = np.arange(1, dim + 1) ** -0.4
    return ((rng.normal(size=(rows, dim)) * falling + far) @ turn).astype(np.float32)


def _held(basis: Any, vectors: Any, *, centred: bool) -> float:
    """The share of energy that a basis holds."""
    exact = vectors.astype(np.float64)
    exact -= exact.mean(axis=0) if centred else 0
    return float(((exact @ basis.T.astype(np.float64)) ** 2).sum() / (exact**2).sum())


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("rows", "dim", "most"), [(1800, 1200, 100), (600, 64, 16), (300, 400, 50)])
@pytest.mark.parametrize(
    ("scale", "far", "times", "less"),
    [(1.0, 0.0, 1, 1e-4), (1e-3, 2.0, 1, 1e-4), (1e20, 0.0, 1, 1e-4), (1.0, 0.0, 3, 1e-2)],
)
def test_axes_of_a_sample_that_is_extended_are_those_of_all_of_it(
    centred: bool, rows: int, dim: int, most: int, scale: float, far: float, times: int, less: float
) -> None:
    vectors = _spread(rows, dim, far=far) * np.float32(scale)
    # where what comes later is much larger, the first axes are no good beginning
    vectors[-rows // 8 :] *= np.float32(times)
    first, whole = twice(vectors[: -rows // 8], vectors[-rows // 8 :], most, centred=centred)
    alone = principal(vectors[: -rows // 8], most, centred=centred)
    assert np.array_equal(first.basis, alone.basis)
    assert np.array_equal(first.mean, alone.mean)
    cold = principal(vectors, most, centred=centred)
    np.testing.assert_allclose(whole.mean, cold.mean, rtol=1e-5, atol=1e-6 * scale)
    np.testing.assert_allclose(whole.basis @ whole.basis.T, np.eye(most), atol=1e-4)
    small = vectors / np.float32(scale)
    assert _held(whole.basis, small, centred=centred) >= _held(cold.basis, small, centred=centred) - less
    assert _held(whole.basis, small, centred=centred) > _held(first.basis, small, centred=centred)
    np.testing.assert_allclose(whole.energy.sum(), _held(whole.basis, small, centred=centred), atol=2e-3)
