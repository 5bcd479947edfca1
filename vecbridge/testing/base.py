"""What the parts of the suite share: places, stores, and one collection that only read tests use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from ..store import Collection, Store, connect
from ..types import Batch, Metric
from . import data, oracle

if TYPE_CHECKING:
    from ..types import Floats

METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")


@dataclass(frozen=True, slots=True)
class Library:
    """A filled collection that no test writes to, and what was put into it."""

    collection: Collection
    ids: list[str]
    vectors: Floats
    documents: list[str]
    metadata: list[dict[str, Any]]

    def answer(self, query: Floats, *, k: int, where: Mapping[str, Any] | None = None) -> oracle.Answer:
        """What a search must return."""
        return oracle.answer(
            query,
            ids=self.ids,
            vectors=self.vectors,
            metric=self.collection.space.metric,
            k=k,
            metadata=self.metadata,
            where=where,
        )


class Base:
    """Fixtures of the suite. `places` is the one to override."""

    #: Tests that this store is known to fail, by name, each with the reason. They are run, and must fail.
    expected: ClassVar[Mapping[str, str]] = {}

    #: Metrics that the tests of layouts are run for; a second server of the same kind may do with one.
    metrics: ClassVar[tuple[Metric, ...]] = METRICS

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give the tests their metrics; pytest calls this."""
        if "metric" in metafunc.fixturenames:
            metafunc.parametrize("metric", self.metrics)

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls) -> Callable[[], str]:
        """A function that returns the URL of a fresh, empty place each time it is called. Override it."""
        raise NotImplementedError(f"{cls.__name__} has no fixture `places`; see docs/adding-a-backend.md")

    @pytest.fixture(autouse=True)
    def _expected(self, request: pytest.FixtureRequest) -> None:
        name = request.node.originalname
        if name in self.expected:
            request.applymarker(pytest.mark.xfail(reason=self.expected[name], strict=True))

    @pytest.fixture
    def store_url(self, places: Callable[[], str]) -> str:
        """The URL of a fresh place for one test."""
        return places()

    @pytest.fixture
    def store(self, store_url: str) -> Iterator[Store]:
        """A store on a fresh place."""
        with connect(store_url) as store:
            yield store

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls, places: Callable[[], str]) -> Iterator[Store]:
        """A store that the tests of a class share; each collection in it is written by one fixture only."""
        with connect(places()) as store:
            yield store

    @pytest.fixture(scope="class", params=METRICS)
    @classmethod
    def library(cls, request: pytest.FixtureRequest, shared: Store) -> Library:
        """300 records of 16 dimensions, exact search, for each metric."""
        return make_library(shared, f"library-{request.param}", metric=request.param, rows=300)

    def test_expected_failures_are_tests_of_this_suite(self) -> None:
        """The table of known failures holds no name that would silence nothing."""
        assert [name for name in self.expected if not callable(getattr(self, name, None))] == []


def make_library(store: Store, name: str, *, metric: Metric, rows: int) -> Library:
    """A new collection of `rows` records: lengths differ, and some vectors occur twice."""
    vectors = data.clustered(rows, 16, seed=rows)
    vectors *= lengths(rows)
    vectors[1::50] = vectors[::50]
    ids = data.names(rows)
    documents = [f"document {row}" for row in range(rows)]
    metadata = [{"row": row, "even": row % 2 == 0, "topic": f"topic {row % 7}"} for row in range(rows)]
    collection = store.create(name, dim=16, metric=metric, rows=rows)
    collection.upsert(ids, vectors, documents=documents, metadata=metadata)
    return Library(collection, ids, vectors, documents, metadata)


def lengths(rows: int) -> Floats:
    """Lengths from 0.5 to 2 as a column (rows, 1)."""
    return np.linspace(0.5, 2.0, rows, dtype=np.float32)[:, None]


def content(collection: Collection, ids: list[str]) -> dict[str, tuple[bytes, str | None, dict[str, Any]]]:
    """What the collection holds of these ids, to compare with `==`."""
    batch: Batch = collection.get(ids)
    return oracle.rows(batch)
