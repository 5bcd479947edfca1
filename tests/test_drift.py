"""Drift: whether vectors of texts still fit the PCA that was fitted on other ones."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import vecbridge
from vecbridge import embedders
from vecbridge.data import GLOSSES
from vecbridge.drift import Drift, drift
from vecbridge.manifest import Manifest
from vecbridge.reduction import Reduction, fit
from vecbridge.types import Index, Layout, Metric, Shorten, Space

if TYPE_CHECKING:
    from vecbridge.types import Floats

DIM, SHORT, FITTED = 256, 64, 3_000


class Texts:
    """Unit vectors of definitions, of a language nobody speaks, and of Python; and the topics."""

    def __init__(self, model: str) -> None:
        lines = gzip.decompress(GLOSSES.read_bytes()).splitlines()
        glosses = [json.loads(line) for line in lines]
        rng = np.random.default_rng(0)
        order = rng.permutation(len(glosses))
        texts = [glosses[at]["text"] for at in order]
        foreign = [
            " ".join("".join(rng.permutation(list(word))) for word in text.split()) for text in texts[:800]
        ]
        sources = sorted(Path(vecbridge.__file__).parent.glob("*.py"))
        code = [line for path in sources for line in path.read_text().splitlines() if len(line) > 50]
        embed = embedders.load(model).embed
        self.english, self.foreign, self.code = (unit(embed(some)) for some in (texts, foreign, code[:800]))
        self.topics = np.array([glosses[at]["topic"] for at in order])


def unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


@pytest.fixture(scope="module", params=["wordllama:256", "hashing:256"])
def texts(request: pytest.FixtureRequest) -> Texts:
    return Texts(request.param)


@pytest.fixture(scope="module")
def words() -> Texts:
    return Texts("wordllama:256")


def projected(sample: Floats, *, metric: Metric = "cosine", centred: bool = False, seed: int = 0) -> Manifest:
    """A collection whose index is on a PCA of the sample."""
    shorten = Shorten("pca", SHORT, centred)
    reduction = fit(shorten, source=sample.shape[1], metric=metric, sample=sample, seed=seed)
    layout = Layout(index=Index("hnsw", shorten=shorten), oversample=8)
    return Manifest("texts", Space(sample.shape[1], metric), layout, 10_000, index_reduction=reduction)


def measured(manifest: Manifest, vectors: Floats) -> Drift:
    found = drift(manifest, vectors)
    assert found is not None
    return found


@pytest.mark.parametrize("centred", [False, True])
def test_texts_like_those_of_the_fit_raise_no_alarm(texts: Texts, centred: bool) -> None:
    alarms = []
    for seed in range(40):
        order = np.random.default_rng(seed).permutation(len(texts.english))
        manifest = projected(texts.english[order[:FITTED]], centred=centred, seed=seed)
        for n in (100, 2_000):
            found = measured(manifest, texts.english[order[FITTED : FITTED + n]])
            assert found.vectors == n
            assert found.low <= found.below <= found.high
            if found.drifted:
                alarms.append((seed, str(found)))
    assert alarms == []


def test_what_was_fitted_on_raises_no_alarm_either(texts: Texts) -> None:
    assert not measured(projected(texts.english[:FITTED]), texts.english[:FITTED]).drifted


@pytest.mark.parametrize("centred", [False, True])
def test_another_language_is_noticed_where_a_quarter_is_in_it(words: Texts, centred: bool) -> None:
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(words.english))
        manifest = projected(words.english[order[:FITTED]], centred=centred, seed=seed)
        mixed = np.concatenate([words.english[order[FITTED : FITTED + 1500]], words.foreign[:500]])
        found = measured(manifest, mixed)
        assert found.drifted, (seed, str(found))
        assert found.kept < found.fitted


@pytest.mark.parametrize("what", ["code", "foreign"])
def test_another_kind_of_text_is_noticed(texts: Texts, what: str) -> None:
    found = measured(projected(texts.english[:FITTED]), getattr(texts, what))
    assert found.drifted, str(found)
    assert found.below > 0.1


def test_topics_that_were_not_fitted_are_noticed(words: Texts) -> None:
    fitted = np.isin(words.topics, ["noun.animal", "noun.plant", "noun.food", "noun.body", "noun.substance"])
    inside, outside = words.english[fitted], words.english[~fitted]
    manifest = projected(inside[:1300])
    assert not measured(manifest, inside[1300:]).drifted
    assert measured(manifest, outside[:500]).drifted


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_what_is_kept_is_measured_as_at_the_fit(words: Texts, metric: Metric) -> None:
    """Energy by energy: under ip and l2 longer vectors count for more, under cosine none does."""
    lengths = np.random.default_rng(1).lognormal(0, 1, len(words.english))[:, None].astype(np.float32)
    vectors = words.english * lengths
    manifest = projected(vectors[:FITTED], metric=metric)
    rest = vectors[FITTED:]
    found, reduction = measured(manifest, rest), manifest.index_reduction
    assert reduction is not None
    assert reduction.basis is not None
    whole = (unit(rest) if metric == "cosine" else rest).astype(np.float64)
    if metric == "l2":
        assert reduction.mean is not None
        whole -= reduction.mean
    kept = ((whole @ reduction.basis.T.astype(np.float64)) ** 2).sum() / (whole**2).sum()
    assert found.kept == pytest.approx(kept, abs=1e-5)
    assert not found.drifted
    assert found.fitted == reduction.kept


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_drift_is_noticed_whatever_the_metric(words: Texts, metric: Metric) -> None:
    manifest = projected(words.english[:FITTED] * np.float32(30), metric=metric)
    assert not measured(manifest, words.english[FITTED:] * np.float32(30)).drifted
    assert measured(manifest, words.foreign * np.float32(30)).drifted


def test_only_whole_vectors_show_drift_of_a_projection_at_the_door(words: Texts) -> None:
    shorten = Shorten("pca", SHORT)
    reduction = fit(shorten, source=DIM, metric="cosine", sample=words.english[:FITTED])
    manifest = Manifest("texts", Space(DIM), Layout(shorten=shorten), 10_000, reduction=reduction)
    assert drift(manifest, reduction.apply(words.foreign)) is None
    found = drift(manifest, words.foreign, door=True)
    assert found is not None
    assert found.drifted
    same = drift(manifest, words.english[FITTED:], door=True)
    assert same is not None
    assert not same.drifted


def test_a_projection_that_keeps_everything_does_not_drift_by_rounding() -> None:
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((3_000, SHORT // 2), dtype=np.float32) @ rng.standard_normal(
        (SHORT // 2, DIM), dtype=np.float32
    )
    manifest = projected(flat[:2_000])
    found = measured(manifest, flat[2_000:])
    assert found.kept == pytest.approx(1.0, abs=1e-4)
    assert not found.drifted
    off = flat[2_000:] + rng.standard_normal((1_000, DIM), dtype=np.float32)
    assert measured(manifest, off).drifted


def test_there_is_nothing_to_say_without_a_fitted_basis(words: Texts) -> None:
    assert drift(Manifest("texts", Space(DIM), Layout(), 10), words.english[:10]) is None
    prefix = Shorten("truncate", SHORT)
    layout = Layout(index=Index("hnsw", shorten=prefix))
    manifest = Manifest("texts", Space(DIM), layout, 10, index_reduction=Reduction(prefix, DIM, rescale=True))
    assert drift(manifest, words.english[:10]) is None
    assert drift(projected(words.english[:FITTED]), words.english[:10], door=True) is None


def test_a_basis_that_does_not_say_how_it_fitted_is_not_judged(words: Texts) -> None:
    for metric in ("cosine", "l2"):
        manifest = projected(words.english[:FITTED], metric=metric)
        assert manifest.index_reduction is not None
        old = replace(manifest.index_reduction, usual=None, mean=None)
        assert drift(replace(manifest, index_reduction=old), words.foreign) is None


def test_few_and_no_vectors_raise_no_alarm(words: Texts) -> None:
    manifest = projected(words.english[:FITTED])
    nothing = measured(manifest, words.foreign[:0])
    assert (nothing.vectors, nothing.low, nothing.high, nothing.drifted) == (0, 0.0, 1.0, False)
    assert not measured(manifest, words.foreign[:29]).drifted
    assert measured(manifest, words.foreign[:30]).drifted
    for start in range(FITTED, FITTED + 1_500, 30):
        assert not measured(manifest, words.english[start : start + 30]).drifted
    zero = measured(manifest, np.zeros((5, DIM), np.float32))
    assert (zero.kept, zero.below, zero.drifted) == (1.0, 0.0, False)


def test_huge_and_tiny_vectors_are_measured_like_any(words: Texts) -> None:
    manifest = projected(words.english[:FITTED])
    expected = measured(manifest, words.english[FITTED:])
    for factor in (1e30, 1e-30):
        found = measured(manifest, (words.english[FITTED:].astype(np.float64) * factor).astype(np.float32))
        assert found.kept == pytest.approx(expected.kept, abs=1e-4)
        assert found.below == expected.below


def test_it_says_what_it_found_and_what_to_do(words: Texts) -> None:
    manifest = projected(words.english[:FITTED])
    bad, good = measured(manifest, words.foreign), measured(manifest, words.english[FITTED:])
    assert str(bad).startswith(
        f"the PCA to 64 dimensions keeps {bad.kept:.1%} of the energy of 800 vectors, "
    )
    assert f"{bad.fitted:.1%} when it was fitted; {bad.below:.0%} (" in str(bad)
    assert str(bad).endswith("5% are expected: they no longer fit; refit: collection.replan()")
    assert str(good).endswith("5% are expected: they fit")


@pytest.mark.parametrize("where", ["door", "index"])
def test_a_collection_says_whether_new_vectors_fit_its_projection(
    words: Texts, tmp_path: Path, where: str
) -> None:
    short = Shorten("pca", SHORT)
    layout = Layout(shorten=short)
    url = f"flat:{tmp_path}"
    if where == "index":
        layout, url = (
            Layout(index=Index("hnsw", shorten=short, ef_search=100), oversample=4),
            f"qdrant:{tmp_path}",
        )
    with vecbridge.connect(url) as store:
        papers = store.create("papers", dim=DIM, layout=layout, sample=words.english[:FITTED])
        like, unlike = papers.drift(words.english[FITTED:]), papers.drift(words.foreign)
        assert like is not None
        assert not like.drifted
        assert unlike is not None
        assert unlike.drifted
        assert store.create("whole", dim=DIM, layout=Layout()).drift(words.english) is None
