"""Searches: exact ones give what brute force gives, approximate ones nearly always."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from ..store import Collection, Store
from ..types import Layout, Metric
from . import data, oracle
from .base import METRICS, Base, Library
from .layouts import APPROXIMATE, DIM, EXACT, LAYOUTS, NESTED, space

if TYPE_CHECKING:
    from ..types import Floats

# more rows than candidates that pgvector keeps on one walk through a graph, which are 1,000 at most
_ROWS, _QUERIES, _SEED = 1_200, 25, 11
# the vectors of the layout tests; prefixes and projections of them keep most of what tells them apart
_VECTORS = data.clustered(_ROWS + _QUERIES, DIM, seed=_SEED)
_STORED, _ASKED = _VECTORS[:_ROWS], _VECTORS[_ROWS:]
_IDS = data.names(_ROWS)
_METADATA = [{"row": row, "rare": row == 734, "tenth": row % 10} for row in range(_ROWS)]


def make(store: Store, *, metric: Metric, layout: str) -> Collection:
    """A new, empty collection of the layout of this name; skips the test where the store cannot hold it."""
    chosen = LAYOUTS[layout]
    if reason := store.limits.objection(space(metric), chosen):
        pytest.skip(reason)
    return store.create(
        "papers", dim=DIM, metric=metric, nested=NESTED, rows=_ROWS, layout=chosen, sample=_STORED[:400]
    )


def right(collection: Collection, query: Floats, *, k: int, rows: slice = slice(None)) -> oracle.Answer:
    """What a search among `rows` of the layout tests' vectors must return."""
    return oracle.answer(
        oracle.kept(collection.manifest, query[None, :])[0],
        ids=_IDS[rows],
        vectors=oracle.kept(collection.manifest, _STORED[rows]),
        metric=collection.space.metric,
        k=k,
    )


class SearchTests(Base):
    """Searches: exact ones give what brute force gives, approximate ones nearly always."""

    def test_exact_search_is_brute_force(self, library: Library) -> None:
        for row, query in enumerate(data.clustered(20, 16, seed=13)):
            hits = library.collection.search(query, k=10, exact=row % 2 == 0)
            oracle.assert_right(hits, library.answer(query, k=10))

    def test_hits_carry_document_and_metadata(self, library: Library) -> None:
        for hit in library.collection.search(library.vectors[0], k=20):
            row = library.ids.index(hit.id)
            assert hit.document == library.documents[row]
            assert hit.metadata == library.metadata[row]

    def test_equal_scores_are_ordered_by_id(self, store: Store) -> None:
        ids = ["b", "a", "Z", "é", "aa", "_", "~", "10", "9", "\uffff", "\U00010000"]
        for metric in METRICS:
            collection = store.create(metric, dim=4, metric=metric)
            collection.upsert(ids, np.ones((len(ids), 4)))
            for k in (3, len(ids)):
                hits = collection.search([1, 1, 1, 1], k=k, exact=True)
                assert [hit.id for hit in hits] == sorted(ids)[:k]
                assert len({hit.score for hit in hits}) == 1

    @pytest.mark.parametrize("k", [1, 100, 299, 300, 301, 10_000])
    def test_k_hits_come_back_whenever_k_exist(self, library: Library, k: int) -> None:
        query = data.clustered(1, 16, seed=14)[0]
        oracle.assert_right(library.collection.search(query, k=k), library.answer(query, k=k))

    def test_an_empty_collection_has_no_hits(self, store: Store) -> None:
        for metric in METRICS:
            collection = store.create(metric, dim=4, metric=metric)
            assert collection.search([1, 2, 3, 4]) == []
            assert collection.search([1, 2, 3, 4], exact=True, where={"a": 1}) == []
            assert collection.search_many([[1, 2, 3, 4]] * 3, k=5) == [[], [], []]
            assert collection.count() == 0
            assert str(collection.evaluate()) == "nothing to measure: no query has anything to find"

    def test_search_many_is_many_searches(self, library: Library) -> None:
        queries = data.clustered(30, 16, seed=15)
        for where in (None, {"even": True}):
            together = library.collection.search_many(queries, k=7, where=where)
            assert len(together) == 30
            for query, hits in zip(queries, together, strict=True):
                oracle.assert_right(hits, library.answer(query, k=7, where=where))
                alone = library.collection.search(query, k=7, where=where)
                assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], abs=1e-5)
                assert hits[0].document == alone[0].document

    def test_a_filtered_search_returns_the_nearest_that_match(self, library: Library) -> None:
        query = data.clustered(1, 16, seed=16)[0]
        for where in (
            {"row": 123}, {"row": {"$in": [5, 250]}}, {"even": True},
            {"topic": "topic 3", "row": {"$lt": 50}},
            {"row": {"$gte": 10}}, {"row": -1}, {"$not": {"even": True}},
        ):  # fmt: skip
            for k in (1, 10, 300):
                expected = library.answer(query, k=k, where=where)
                oracle.assert_right(library.collection.search(query, k=k, where=where), expected)

    def test_scores_are_what_the_metric_says(self, store: Store) -> None:
        stored, query = [[3.0, 4.0], [-3.0, -4.0], [8.0, -6.0]], [3.0, 4.0]
        expected = {"cosine": [1.0, -1.0, 0.0], "ip": [25.0, -25.0, 0.0], "l2": [0.0, -10.0, -np.sqrt(125)]}
        for metric in METRICS:
            collection = store.create(metric, dim=2, metric=metric, layout=Layout())
            collection.upsert(["same", "opposite", "right angle"], stored)
            scores = {hit.id: hit.score for hit in collection.search(query, k=3)}
            assert scores == pytest.approx(
                dict(zip(["same", "opposite", "right angle"], expected[metric], strict=True)), abs=1e-5
            )

    def test_vectors_at_the_edges_of_float32_are_compared_rightly(self, store: Store, metric: Metric) -> None:
        directions = data.clustered(40, 8, seed=17).astype(np.float64)
        collection = store.create("papers", dim=8, metric=metric, layout=Layout())
        for length in (8.9e18, 1e-18, 1.2e-19):
            vectors = (directions * length).astype(np.float32)
            ids = data.names(39)
            collection.upsert(ids, vectors[:39])
            hits = collection.search(vectors[39], k=39)
            assert len(hits) == 39
            expected = oracle.answer(vectors[39], ids=ids, vectors=vectors[:39], metric=metric, k=39)
            if metric == "cosine" or length > 1:
                oracle.assert_right(hits, expected)
            else:  # squares of such lengths lose their digits in float32; scores still may not be nonsense
                oracle.assert_scores(hits, expected)

    @pytest.mark.parametrize("layout", EXACT)
    def test_a_layout_without_index_is_exact(self, store: Store, layout: str, metric: Metric) -> None:
        collection = make(store, metric=metric, layout=layout)
        rows = slice(0, 500)
        collection.upsert(_IDS[rows], _STORED[rows], metadata=_METADATA[rows])
        assert collection.index_state().status == "none"
        collection.build_index()
        assert collection.index_state().status == "none"
        tolerance = oracle.tolerance(collection.manifest)
        for query in _ASKED[:10]:
            hits = collection.search(query, k=10)
            oracle.assert_right(hits, right(collection, query, k=10, rows=rows), tolerance=tolerance)
        got = collection.get(_IDS[:5]).vectors
        assert got == pytest.approx(oracle.kept(collection.manifest, _STORED[:5]), abs=1e-6)
        report = collection.evaluate(sample=10)
        assert report.recall == 1.0
        assert (report.rows, report.queries, report.short) == (500, 10, 0)
        assert collection.sizes().table > 0
        assert collection.sizes().index == 0

    @pytest.mark.parametrize("layout", APPROXIMATE)
    def test_an_index_finds_nearly_all(self, store: Store, layout: str, metric: Metric) -> None:
        """One collection from empty to changed, because building its index is what takes the time."""
        collection = make(store, metric=metric, layout=layout)
        first = slice(0, 1_000)
        collection.upsert(_IDS[first], _STORED[first], metadata=_METADATA[first])
        index = LAYOUTS[layout].index
        assert index is not None
        # a copy to scan is written with its record: there is nothing to build
        before, after = ("none", "none") if index.kind == "scan" else ("missing", "ready")
        assert collection.index_state().status == before
        # without the index the answer is exact
        oracle.assert_right(
            collection.search(_ASKED[0], k=10, exact=True),
            right(collection, _ASKED[0], k=10, rows=first),
            tolerance=oracle.tolerance(collection.manifest),
        )
        collection.build_index()
        collection.build_index()
        state = collection.index_state()
        assert state.status == after
        assert index.kind == "scan" or (state.used and collection.sizes().index > 0), state

        # written after the index was built, found by it
        collection.upsert(_IDS[1_000:], _STORED[1_000:], metadata=_METADATA[1_000:])
        assert collection.search(_STORED[1_100], k=1)[0].id == _IDS[1_100]

        tolerance = oracle.tolerance(collection.manifest)
        recalls = []
        for query, hits in zip(_ASKED, collection.search_many(_ASKED, k=10), strict=True):
            expected = right(collection, query, k=10)
            assert len(hits) == 10
            oracle.assert_scores(hits, expected, tolerance=tolerance)
            recalls.append(oracle.recall(hits, expected))
        assert np.mean(recalls) >= 0.95, f"recall {np.mean(recalls):.3f}, seed {_SEED}"

        for k in (1, 100, 500, 1_199, 1_200, 1_500):
            hits = collection.search(_ASKED[1], k=k)
            assert len(hits) == min(k, _ROWS), k
            oracle.assert_scores(hits, right(collection, _ASKED[1], k=k), tolerance=tolerance)
        for where, k, there in (
            ({"rare": True}, 10, 1),
            ({"row": {"$lt": 20}}, 10, 10),
            ({"tenth": 3}, 10, 10),
            ({"tenth": 3}, 300, 120),
            ({"row": -1}, 10, 0),
        ):
            assert len(collection.search(_ASKED[2], k=k, where=where)) == there, where
        assert collection.search(_ASKED[2], k=3, where={"rare": True})[0].id == _IDS[734]

        report = collection.evaluate(sample=20)
        assert report.recall >= 0.95
        assert report.index == state
        assert report.short == 0

        nearest = [hit.id for hit in collection.search(_ASKED[3], k=5)]
        assert collection.delete(nearest) == 5
        hits = collection.search(_ASKED[3], k=10)
        assert len(hits) == 10
        assert not {hit.id for hit in hits} & set(nearest)
        assert collection.index_state() == state

    @pytest.mark.parametrize("layout", APPROXIMATE)
    def test_an_index_on_an_empty_collection_takes_what_comes(self, store: Store, layout: str) -> None:
        collection = make(store, metric="cosine", layout=layout)
        collection.build_index()
        # lists cannot be found where there are no vectors yet: such an index waits for them
        assert collection.index_state().status in ("none", "ready", "missing")
        assert collection.search(_ASKED[0], k=5) == []
        collection.upsert(_IDS[:50], _STORED[:50])
        assert collection.search(_STORED[7], k=1)[0].id == _IDS[7]
        assert len(collection.search(_STORED[7], k=50)) == 50
        collection.build_index()
        assert collection.index_state().status in ("none", "ready")
        assert collection.search(_STORED[7], k=1)[0].id == _IDS[7]

    def test_progress_of_a_build_is_told(self, store: Store) -> None:
        collection = make(store, metric="cosine", layout="hnsw")
        collection.upsert(_IDS, _STORED)
        seen: list[tuple[str, int, int | None]] = []
        collection.build_index(progress=lambda stage, done, total: seen.append((stage, done, total)))
        assert seen
        for stage, done, total in seen:
            assert stage
            assert done >= 0
            assert total is None or done <= total

    def test_evaluate_reports_what_it_measured(self, library: Library) -> None:
        report = library.collection.evaluate(k=5, sample=30, seed=3)
        assert (report.recall, report.k, report.queries, report.rows, report.short) == (1.0, 5, 30, 300, 0)
        assert report.seed == 3
        assert 0 < report.p50_ms <= report.p95_ms
        assert 0 < report.exact_p50_ms <= report.exact_p95_ms
        given = library.collection.evaluate(queries=data.clustered(4, 16, seed=18))
        assert (given.recall, given.queries, given.source) == (1.0, 4, "given")
        assert report.to_dict()["index"]["status"] == report.index.status
