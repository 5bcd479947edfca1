"""The models of what stores compare, against the stores themselves.

The graphs are searched as widely as they can be, so that what is lost is lost by the representation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import real_vectors

import vecbridge
from vecbridge import codes
from vecbridge.evidence import Evidence
from vecbridge.measuring import measure
from vecbridge.types import Element, Index, Layout, Metric, Shorten

ROWS, QUERIES, K = 1000, 250, 10
OVERSAMPLES = (1, 2, 8)
# queries differ, and ties at the end of the list are broken by chance
NEAR = 0.02


@cache
def glosses(kind: str) -> real_vectors.Vectors:
    known = real_vectors.texts()
    if kind == "wordllama":
        return real_vectors.wordllama(known, rows=ROWS, queries=QUERIES)
    return real_vectors.hashing(known, rows=ROWS, queries=QUERIES, dim=200)


def built_recall(url: str, vectors: real_vectors.Vectors, metric: Metric, layout: Layout) -> list[float]:
    """Recall@10 of a real collection with this layout, re-ranking up to 8 times as many candidates."""
    with vecbridge.connect(url) as store:
        collection = store.create(
            "glosses", dim=vectors.dim, metric=metric, layout=layout, rows=ROWS, sample=vectors.rows,
            nested=(64,),
        )  # fmt: skip
        collection.upsert([str(row) for row in range(ROWS)], vectors.rows)
        collection.build_index()
        truth = collection.search_many(vectors.queries, k=K, exact=True)
        short = collection.manifest.projected(vectors.queries)
        found = []
        for oversample in OVERSAMPLES:
            table = collection._table.searched(replace(layout, oversample=oversample))
            hits = table.search(vectors.queries, short, k=K, where=None, exact=False)
            shares = [
                len({hit.id for hit in some} & {hit.id for hit in right}) / K
                for some, right in zip(hits, truth, strict=True)
            ]
            found.append(float(np.mean(shares)))
        store.drop("glosses")
    return found


def predicted(
    vectors: real_vectors.Vectors, metric: Metric, layout: Layout, *, asymmetric: bool
) -> list[float]:
    evidence = measured(vectors.name, metric)
    if asymmetric:
        evidence = evidence.asymmetric()
    assert layout.index is not None
    curve = evidence.curve(layout.index.element, layout.index.shorten)
    assert curve is not None
    return [curve.found[oversample - 1].mean for oversample in OVERSAMPLES]


@cache
def measured(name: str, metric: Metric) -> Evidence:
    vectors = glosses(name)
    # the sample is the collection
    return measure(vectors.rows, queries=vectors.queries, metric=metric, rows=ROWS, nested=(64,), seed=1)


def widely(element: Element, shorten: Shorten | None = None, *, ef_search: int) -> Layout:
    return Layout(
        index=Index("hnsw", element=element, shorten=shorten, m=32, ef_construction=200, ef_search=ef_search)
    )


EDGE: list[tuple[str, Metric, Element, Shorten | None]] = [
    ("wordllama", "cosine", "int8", None),
    ("wordllama", "cosine", "bit", None),
    ("wordllama", "cosine", "turbo4", None),
    ("wordllama", "cosine", "turbo2", None),
    ("wordllama", "cosine", "turbo1", None),
    ("wordllama", "cosine", "float16", Shorten("pca", 32, centred=True)),
    ("hashing", "ip", "turbo1", None),
    ("hashing", "l2", "turbo2", None),
    ("hashing", "l2", "int8", None),
    ("hashing", "cosine", "bit", None),
    ("wordllama", "l2", "float16", Shorten("truncate", 64)),
]


@pytest.mark.parametrize(("kind", "metric", "element", "shorten"), EDGE)
def test_qdrant_finds_what_the_model_finds(
    kind: str, metric: Metric, element: Element, shorten: Shorten | None, tmp_path: Path
) -> None:
    layout = widely(element, shorten, ef_search=ROWS)
    built = built_recall(f"qdrant:{tmp_path}/store", glosses(kind), metric, layout)
    expected = predicted(glosses(kind), metric, layout, asymmetric=True)
    assert built == pytest.approx(expected, abs=NEAR)


POSTGRES: list[tuple[str, Metric, Element, Shorten | None]] = [
    ("wordllama", "cosine", "bit", None),
    ("hashing", "l2", "bit", None),
    ("wordllama", "cosine", "float16", None),
    ("wordllama", "cosine", "float16", Shorten("truncate", 64)),
    ("wordllama", "ip", "float16", Shorten("truncate", 64)),
    ("wordllama", "cosine", "float16", Shorten("pca", 32)),
    ("wordllama", "cosine", "float16", Shorten("pca", 32, centred=True)),
    ("hashing", "l2", "float16", Shorten("pca", 32)),
]


@pytest.mark.parametrize(("kind", "metric", "element", "shorten"), POSTGRES)
def test_pgvector_finds_what_the_model_finds(
    kind: str, metric: Metric, element: Element, shorten: Shorten | None, pg: str
) -> None:
    layout = widely(element, shorten, ef_search=1000)
    built = built_recall(pg, glosses(kind), metric, layout)
    expected = predicted(glosses(kind), metric, layout, asymmetric=False)
    assert built == pytest.approx(expected, abs=NEAR)


def test_a_finer_query_finds_more_by_signs() -> None:
    vectors = glosses("wordllama")
    layout = widely("bit", ef_search=1)
    finer = predicted(vectors, "cosine", layout, asymmetric=True)
    coarse = predicted(vectors, "cosine", layout, asymmetric=False)
    assert all(one > other + 0.05 for one, other in zip(finer[:2], coarse[:2], strict=True))


def test_signs_rank_by_hamming_distance_and_zero_is_not_above_zero() -> None:
    queries = np.array([[1.0, -2, 0, 3]], dtype=np.float32)
    rows = np.array([[5, -1, -1, 1], [0, -1, 0, 1], [-1, 1, 1, -1], [1, 1, 1, 1]], dtype=np.float32)
    scores = codes.Signs(queries, asymmetric=False).scores(rows)
    differing = ((queries > 0) != (rows > 0)).sum(axis=1)
    assert scores[0].tolist() == (4 - 2 * differing).tolist()


def blocks(vectors: real_vectors.Floats) -> Iterator[real_vectors.Floats]:
    yield from (vectors[:7], vectors[7:8], vectors[8:])


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_scores_do_not_depend_on_how_vectors_are_cut_into_blocks(metric: Metric) -> None:
    rows, queries = glosses("hashing").rows[:200], glosses("hashing").queries[:5]
    turbo = codes.Turbo(queries, sample=rows, metric=metric)
    int8, half = codes.Int8(queries, sample=rows, metric=metric), codes.Half(queries, metric=metric)
    for score in (
        int8.scores,
        half.scores,
        lambda block: turbo.scores(turbo.rotation.apply(block), bits=2),
    ):
        parts = np.concatenate([score(block) for block in blocks(rows)], axis=1)
        assert parts == pytest.approx(score(rows), abs=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("dim", [1, 5, 300])
def test_many_bits_come_near_to_the_true_scores(metric: Metric, dim: int) -> None:
    generator = np.random.default_rng(dim)
    rows = generator.standard_normal((300, dim)).astype(np.float32)
    queries = generator.standard_normal((20, dim)).astype(np.float32)
    if metric == "cosine":
        for some in (rows, queries):
            some /= np.linalg.norm(some, axis=1, keepdims=True)
    true = codes.nearness(queries, rows, metric=metric)
    turbo = codes.Turbo(queries, sample=rows, metric=metric)
    for found in (
        codes.Half(queries, metric=metric).scores(rows),
        codes.Int8(queries, sample=rows, metric=metric).scores(rows),
        *([turbo.scores(turbo.rotation.apply(rows), bits=4)] if dim > 5 else []),
    ):
        assert np.isfinite(found).all()
        if dim > 1:
            # scores are for ranking: what is the same for all rows of a query may be left out
            for ours, right in zip(found, true, strict=True):
                assert np.corrcoef(ours, right)[0, 1] > 0.99


@pytest.mark.parametrize("dim", [1, 8, 100, 384, 1027])
def test_a_rotation_keeps_lengths_and_angles(dim: int) -> None:
    rows = np.random.default_rng(1).standard_normal((20, dim)).astype(np.float32)
    rotation = codes.Rotation(dim)
    turned = rotation.apply(rows)
    assert turned.shape == (20, rotation.dim)
    assert rotation.dim % 8 == 0
    assert turned @ turned.T == pytest.approx(rows @ rows.T, rel=1e-4, abs=1e-3)


def test_a_rotation_spreads_one_component_over_all() -> None:
    one = np.zeros((1, 768), dtype=np.float32)
    one[0, 5] = 1
    assert np.abs(codes.Rotation(768).apply(one)).max() < 0.25


def test_vectors_that_are_all_the_same_are_coded_without_warnings() -> None:
    rows = np.full((150, 12), 0.5, dtype=np.float32)
    turbo = codes.Turbo(rows[:2], sample=rows, metric="ip")
    for bits in (1, 2, 4):
        assert np.isfinite(turbo.scores(turbo.rotation.apply(rows), bits=bits)).all()
    assert np.isfinite(codes.Int8(rows[:2], sample=rows, metric="ip").scores(rows)).all()
