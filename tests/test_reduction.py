"""Shorter vectors: what they keep, and that they come back as they were."""

from __future__ import annotations

import json

import numpy as np
import pytest

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
