"""Haystack's own suites over three stores, and what they do not ask."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import haystack_places  # first of all that loads Haystack
import numpy as np
import pytest
from haystack import Pipeline
from haystack.core.errors import DeserializationError
from haystack.dataclasses import ByteStream, Document, SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
from haystack.errors import FilterError
from haystack.testing import document_store as suite
from haystack.testing import document_store_async as twins
from haystack.utils import Secret
from haystack.utils.filters import document_matches_filter

import vecbridge
from vecbridge.errors import DimensionMismatch, InputError, MetadataError, ModelMismatch, VectorError
from vecbridge.integrations.haystack import VecbridgeDocumentStore, VecbridgeEmbeddingRetriever

_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=haystack_places.PLACES)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with haystack_places.opened(request.param) as place:
        yield place


@pytest.fixture
def document_store(url: str) -> Iterator[VecbridgeDocumentStore]:
    store = VecbridgeDocumentStore(url, name=f"papers{next(_numbers)}")
    yield store
    store.delete_all_documents(recreate_collection=True)
    store.close()


@pytest.fixture
def flat(tmp_path: Path) -> Iterator[VecbridgeDocumentStore]:
    store = VecbridgeDocumentStore(f"flat:{tmp_path}/place")
    yield store
    store.close()


def same(received: list[Document], expected: list[Document]) -> None:
    """Documents come in any order, and embeddings are stored in float32."""

    def plain(documents: list[Document]) -> list[Document]:
        rounded = [
            one if one.embedding is None else replace(one, embedding=np.float32(one.embedding).tolist())
            for one in documents
        ]
        return sorted(rounded, key=lambda one: one.id)

    assert plain(received) == plain(expected)


class TestHaystacksSuite(
    suite.DocumentStoreBaseExtendedTests,
    suite.CountDocumentsByFilterTest,
    suite.CountUniqueMetadataByFilterTest,
    suite.GetMetadataFieldsInfoTest,
    suite.GetMetadataFieldMinMaxTest,
    suite.GetMetadataFieldUniqueValuesTest,
    twins.CountDocumentsAsyncTest,
    twins.WriteDocumentsAsyncTest,
    twins.DeleteDocumentsAsyncTest,
    twins.FilterDocumentsAsyncTest,
    twins.DeleteAllAsyncTest,
    twins.DeleteByFilterAsyncTest,
    twins.UpdateByFilterAsyncTest,
    twins.CountDocumentsByFilterAsyncTest,
    twins.CountUniqueMetadataByFilterAsyncTest,
    twins.GetMetadataFieldsInfoAsyncTest,
    twins.GetMetadataFieldMinMaxAsyncTest,
    twins.GetMetadataFieldUniqueValuesAsyncTest,
):
    """All that Haystack asks of a document store."""

    @pytest.fixture
    def document_store(self, document_store: VecbridgeDocumentStore) -> VecbridgeDocumentStore:
        return document_store

    # the suite asks stores whose documents come back otherwise to say how they compare
    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        same(received, expected)

    # the suite leaves the default policy to each store
    def test_write_documents(self, document_store: VecbridgeDocumentStore) -> None:
        one = Document(content="one")
        assert document_store.write_documents([one]) == 1
        with pytest.raises(DuplicateDocumentError, match="there already"):
            document_store.write_documents([one, Document(content="two")])
        assert document_store.filter_documents() == [one]

    @pytest.mark.asyncio
    async def test_write_documents_async(self, document_store: VecbridgeDocumentStore) -> None:
        one = Document(content="one")
        assert await document_store.write_documents_async([one]) == 1
        with pytest.raises(DuplicateDocumentError, match="there already"):
            await document_store.write_documents_async([one])


def test_every_mixin_of_haystack_is_in_the_suite() -> None:
    mixins = {
        value
        for module in (suite, twins)
        for value in vars(module).values()
        if isinstance(value, type) and any(name.startswith("test_") for name in vars(value))
    }
    assert len(mixins) >= 24
    assert mixins <= set(TestHaystacksSuite.__mro__)


# documents

META: dict[str, Any] = {
    "text": "é\U00010000 'quoted' \"\\", "empty": "", "number": 2**53 + 1, "float": 0.1, "yes": True,
    "nothing": None, "list": [1, "a", None, [True], {"x": []}], "object": {"a.b": {"c": -0.5}},
    "date": "2024-05-31T12:00:00+02:00",
}  # fmt: skip

KEPT = [
    Document(id="text", content="A text.", meta=META, embedding=[0.1, 0.2, 0.3]),
    Document(id="bare", content="A text.", meta=META),
    Document(id="empty", content="", embedding=[1.0, 0.0, 0.0]),
    Document(id="none", content=None, meta={"a": 1}),
    Document(id="none at all", embedding=[1e-3, 7.0, -1.0]),
    Document(id="blob", blob=ByteStream(bytes(range(256)), {"n": [1, None]}, "image/png")),
    Document(id="empty blob", content="x", blob=ByteStream(b""), embedding=[0.0, 0.0, 1.0]),
    Document(id="score", content="y", score=0.25, meta={"score": "mine", "id": 7, "content": None}),
    Document(id="odd id \u2028 '\"%", content="z", score=0.0, embedding=[3, 4, 5]),
]


def test_documents_come_back_as_they_were(document_store: VecbridgeDocumentStore) -> None:
    assert document_store.write_documents(KEPT) == len(KEPT)
    same(document_store.filter_documents(), KEPT)
    assert document_store.count_documents() == len(KEPT)
    assert {
        type(one.meta["number"]) for one in document_store.filter_documents() if one.meta.get("text")
    } == {int}


def test_embeddings_come_where_they_are_asked_for(url: str, document_store: VecbridgeDocumentStore) -> None:
    document_store.write_documents(KEPT)
    without = VecbridgeDocumentStore(url, name=document_store.name, return_embedding=False)
    assert [one.embedding for one in without.filter_documents()] == [None] * len(KEPT)
    missing = {"field": "embedding", "operator": "==", "value": None}
    bare = {one.id for one in KEPT if one.embedding is None}
    assert {one.id for one in without.filter_documents(missing)} == bare
    assert {one.id for one in document_store.filter_documents(missing)} == bare
    present = {"operator": "NOT", "conditions": [missing]}
    assert {one.id for one in without.filter_documents(present)} == {one.id for one in KEPT} - bare
    assert all(one.embedding is None for one in without.filter_documents(present))
    assert without.count_documents_by_filter(present) == len(KEPT) - len(bare)
    query = [0.0, 1.0, 0.0]
    assert document_store.embedding_retrieval(query, top_k=2)[0].embedding is None
    found = document_store.embedding_retrieval(query, top_k=2, return_embedding=True)
    assert found[0].embedding == np.float32([1e-3, 7.0, -1.0]).tolist()
    assert document_store.embedding_retrieval(query, filters=missing) == []
    assert len(document_store.embedding_retrieval(query, filters=present)) == len(KEPT) - len(bare)
    without.close()


@pytest.mark.parametrize(
    ("bad", "error", "said"),
    [
        (Document(id="7", embedding=[1.0, 2.0]), DimensionMismatch, "3 dimensions .* got 2 of .*'7'"),
        (Document(id="7", embedding=[]), DimensionMismatch, "3 dimensions .* got 0"),
        (Document(id="7", embedding=[0.0, 0.0, 0.0]), VectorError, "is zero"),
        (Document(id="7", embedding=[1.0, float("nan"), 0.0]), VectorError, "nan"),
        (Document(id="7", embedding=["1", "2", "3"]), InputError, "real numbers"),  # type: ignore[list-item]  # the mistake
        (Document(id="7", content="\0"), InputError, "NUL"),
        (Document(id="7" * 1025), InputError, "1 to 1,024 bytes"),
        (Document(id="7", meta={"when": datetime(2024, 5, 31)}), MetadataError, "datetime"),
        (Document(id="7", meta={"x": float("inf")}), MetadataError, "finite"),
        (Document(id="7", meta={"_haystack": 1}), MetadataError, "rename it"),
        (Document(id="7", sparse_embedding=SparseEmbedding([1], [0.5])), InputError, "dense vectors only"),
        ("7", InputError, r"got str at position \d"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_before_anything_is_written(
    flat: VecbridgeDocumentStore, bad: Document, error: type[Exception], said: str
) -> None:
    good = [Document(id="1", embedding=[1.0, 2.0, 3.0]), Document(id="2")]
    with pytest.raises(error, match=said):
        flat.write_documents([*good, bad], DuplicatePolicy.OVERWRITE)
    assert issubclass(error, ValueError)
    with vecbridge.connect(str(flat.url)) as store:
        assert store.collections() == []
    flat.write_documents(good)
    with pytest.raises(error, match=said):
        flat.write_documents([replace(good[0], content="new"), bad], DuplicatePolicy.OVERWRITE)
    same(flat.filter_documents(), good)


# two collections


def names(store: VecbridgeDocumentStore) -> set[str]:
    with vecbridge.connect(str(store.url)) as there:
        return {name for name in there.collections() if name.startswith(store.name)}


def test_collections_are_made_when_they_are_needed(document_store: VecbridgeDocumentStore) -> None:
    name = document_store.name
    assert document_store.count_documents() == 0
    assert document_store.write_documents([]) == 0
    assert document_store.embedding_retrieval([1.0, 2.0]) == []
    assert names(document_store) == set()
    document_store.write_documents([Document(id="1", content="bare")])
    assert names(document_store) == {f"{name}-unembedded"}
    document_store.write_documents([Document(id="2", content="whole", embedding=[1.0, 2.0])])
    assert names(document_store) == {f"{name}-unembedded", name}


def test_a_document_moves_when_it_gets_or_loses_its_embedding(document_store: VecbridgeDocumentStore) -> None:
    bare, whole = Document(id="1", content="a"), Document(id="1", content="b", embedding=[1.0, 2.0])
    for one in (bare, whole, whole, bare, whole):
        assert document_store.write_documents([one], DuplicatePolicy.OVERWRITE) == 1
        assert document_store.count_documents() == 1
        same(document_store.filter_documents(), [one])
        found = document_store.embedding_retrieval([1.0, 2.0])
        assert [hit.id for hit in found] == ([] if one.embedding is None else ["1"])
        with vecbridge.connect(str(document_store.url)) as there:
            held = {name: there.open(name).count() for name in names(document_store)}
        assert held.pop(document_store.name, 0) == (one.embedding is not None)
        assert sum(held.values()) == (one.embedding is None)


def test_of_a_document_that_a_crash_left_in_both_the_first_counts(
    url: str, document_store: VecbridgeDocumentStore
) -> None:
    old = [Document(id=str(n), content="old", meta={"v": "old", "n": n}) for n in range(6)]
    document_store.write_documents(old)
    new = [Document(id=str(n), content="new", meta={"v": "new"}, embedding=[1.0, float(n)]) for n in range(4)]
    with vecbridge.connect(url) as store:
        # as after the first of the two writes that a document with a new embedding takes
        store.create(document_store.name, dim=2).upsert(
            [one.id for one in new],
            [one.embedding or [] for one in new],
            documents=[one.content for one in new],
            metadata=[one.meta for one in new],
        )
    is_old = {"field": "meta.v", "operator": "==", "value": "old"}
    assert document_store.count_documents() == 6
    same(document_store.filter_documents(), [*new, *old[4:]])
    same(document_store.filter_documents(is_old), old[4:])
    assert document_store.count_documents_by_filter(is_old) == 2
    assert document_store.write_documents(old, DuplicatePolicy.SKIP) == 0
    assert document_store.get_metadata_field_min_max("n") == {"min": 4, "max": 5}
    document_store.delete_documents(["0"])
    assert document_store.count_documents() == 5
    assert document_store.delete_by_filter(is_old) == 2
    same(document_store.filter_documents(), new[1:])
    document_store.write_documents(new[1:3], DuplicatePolicy.OVERWRITE)
    same(document_store.filter_documents(), new[1:])
    assert (
        document_store.update_by_filter({"field": "id", "operator": "==", "value": "3"}, {"v": "newer"}) == 1
    )
    same(document_store.filter_documents(), [*new[1:3], replace(new[3], meta={"v": "newer"})])
    document_store.delete_all_documents()
    assert document_store.count_documents() == 0
    assert len(names(document_store)) == 2


def test_a_new_dimension_needs_new_collections(document_store: VecbridgeDocumentStore) -> None:
    document_store.write_documents([Document(id="1", embedding=[1.0, 2.0])])
    document_store.delete_all_documents()
    with pytest.raises(DimensionMismatch, match=r"expected embeddings of 2 dimensions .* got 3"):
        document_store.write_documents([Document(id="1", embedding=[1.0, 2.0, 3.0])])
    document_store.delete_all_documents(recreate_collection=True)
    assert document_store.write_documents([Document(id="1", embedding=[1.0, 2.0, 3.0])]) == 1


# policies


@pytest.mark.parametrize("policy", [DuplicatePolicy.FAIL, DuplicatePolicy.NONE])
@pytest.mark.parametrize("embedding", [None, [0.5, 1.5]])
def test_fail_writes_nothing_where_one_is_there(
    document_store: VecbridgeDocumentStore, policy: DuplicatePolicy, embedding: list[float] | None
) -> None:
    there = [Document(id="a", content="there", embedding=[1.0, 2.0]), Document(id="b", content="there")]
    document_store.write_documents(there)
    for id in ("a", "b"):
        new = [
            Document(id="new", embedding=[1.0, 1.0]),
            Document(id="new bare"),
            Document(id=id, content="x", embedding=embedding),
        ]
        with pytest.raises(DuplicateDocumentError, match=f"1 of 3 documents .*'{id}'; nothing was written"):
            document_store.write_documents(new, policy)
    twice = [Document(id="new", content="1"), Document(id="new", content="2")]
    with pytest.raises(DuplicateDocumentError, match="same id, 'new'; nothing was written"):
        document_store.write_documents(twice, policy)
    same(document_store.filter_documents(), there)


def test_skip_leaves_out_and_overwrite_replaces(document_store: VecbridgeDocumentStore) -> None:
    document_store.write_documents([Document(id="a", content="1", embedding=[1.0, 2.0]), Document(id="b")])
    given = [
        Document(id="a", content="2"),
        Document(id="b", content="2", embedding=[2.0, 1.0]),
        Document(id="c", content="2"),
        Document(id="c", content="3", embedding=[0.0, 1.0]),
    ]
    assert document_store.write_documents(given, DuplicatePolicy.SKIP) == 1
    assert {one.id: one.content for one in document_store.filter_documents()} == {
        "a": "1",
        "b": None,
        "c": "2",
    }
    assert document_store.write_documents(given, DuplicatePolicy.OVERWRITE) == 4
    same(document_store.filter_documents(), [given[0], given[1], given[3]])


# filters

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, 1.5, 2, 2**53, 2**53 + 1, "", "1", "a", "é", "2024-05-31",
    "2024-05-31T00:00:00", "2024-05-31 00:00", "2024-05-31T02:00:00+02:00", "20240531", "2024-06-01",
    "2023-12-31T23:59:59Z", "May 2024", "2024-05-31x",
    [], ["a"], [1], [None], ["a", "2024-05-31"], {}, {"x": 1}, {"x": None}, {"x": {"y": "a"}},
]  # fmt: skip

FILED = [
    *(Document(id=f"v{n}", content=f"text {n % 3}", meta={"v": value}) for n, value in enumerate(VALUES)),
    Document(id="w1", content="text 0", meta={"w": 1, "a.b": 1}),
    Document(id="w2", meta={"w": "a", "v": 1}, blob=ByteStream(b"x", mime_type="a")),
    Document(id="w3", score=0.5),
]
FILED = [replace(one, embedding=[1.0, float(n)]) if n % 2 else one for n, one in enumerate(FILED)]

OPERANDS: list[Any] = [
    *VALUES, datetime(2024, 5, 31), datetime.fromisoformat("2024-05-31T00:00:00Z"), 2**70, 1e308, "\0",
    [1, 2],
]  # fmt: skip


def orders(operand: object) -> bool:
    """Whether Haystack says that there may be an order with it."""
    if isinstance(operand, str):
        try:
            datetime.fromisoformat(operand)
        except ValueError:
            return False
        return True
    return not isinstance(operand, list | dict)


def leaf(operator: str, value: Any, field: str = "meta.v") -> dict[str, Any]:
    return {"field": field, "operator": operator, "value": value}


LEAVES: list[dict[str, Any]] = [
    *(leaf(operator, operand) for operator in ("==", "!=") for operand in OPERANDS),
    *(leaf(operator, value) for operator in (">", ">=", "<", "<=") for value in OPERANDS if orders(value)),
    *(
        leaf(operator, some)
        for operator in ("in", "not in")
        for some in ([], [None], [1, "a"], ["2024-05-31", True], [[1], {"x": 1}], OPERANDS)
    ),
    *(
        leaf(operator, value, field)
        for field in (
            "meta.v.x", "meta.v.x.y", "v", "w", "meta.w", "meta.a.b", "meta.$v", "meta.", "meta", "id",
            "content", "score", "blob", "blob.mime_type", "nothing", "author.name", "meta._haystack",
            "meta._haystack.score",
        )
        for operator, value in (
            ("==", None), ("!=", None), ("==", 1), ("==", "a"), ("in", ["w1", "text 0", 0.5])
        )
    ),
]  # fmt: skip


def holds(filters: dict[str, Any], document: Document) -> bool:
    """What Haystack itself says; where it raises because of the document's value, no."""
    if "field" not in filters:
        parts = [holds(part, document) for part in filters["conditions"]]
        return {"AND": all(parts), "OR": any(parts), "NOT": not all(parts)}[filters["operator"]]
    try:
        return document_matches_filter(filters, document)
    except (FilterError, TypeError):
        return False


def trees(count: int) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(7)

    def tree(depth: int) -> dict[str, Any]:
        if depth == 0 or random.random() < 0.3:
            return LEAVES[int(random.integers(len(LEAVES)))]
        operator = ("AND", "OR", "NOT")[int(random.integers(3))]
        return {
            "operator": operator,
            "conditions": [tree(depth - 1) for _ in range(int(random.integers(0, 4)))],
        }

    return (tree(3) for _ in range(count))


@pytest.fixture(scope="module")
def filed(url: str) -> Iterator[VecbridgeDocumentStore]:
    store = VecbridgeDocumentStore(url, name="filed", return_embedding=False)
    store.write_documents(FILED)
    yield store
    store.close()


def test_filters_mean_what_haystack_means(filed: VecbridgeDocumentStore) -> None:
    for filters in [*LEAVES, *trees(60)]:
        expected = {one.id for one in FILED if holds(filters, one)}
        assert {one.id for one in filed.filter_documents(filters)} == expected, filters


def test_retrieval_finds_the_nearest_that_match(filed: VecbridgeDocumentStore) -> None:
    embedded = [one for one in FILED if one.embedding]
    order = sorted(embedded, key=lambda one: -_cosine(one.embedding or [], [0.0, 1.0]))
    for filters in [*LEAVES[::8], *trees(30)]:
        expected = [one.id for one in order if holds(filters, one)]
        for k in (1, 3, 50):
            found = filed.embedding_retrieval([0.0, 1.0], filters=filters, top_k=k)
            assert [one.id for one in found] == expected[:k], filters


def _cosine(one: list[float], other: list[float]) -> float:
    return float(np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ([leaf("==", 1)], "as a dictionary"),
        ({"conditions": []}, "'operator' is missing"),
        ({"operator": "AND"}, "'conditions' is missing"),
        ({"operator": "XOR", "conditions": []}, "one of AND, OR, NOT"),
        ({"operator": "AND", "conditions": leaf("==", 1)}, "a list of conditions"),
        ({"operator": "AND", "conditions": ["x"]}, "as a dictionary"),
        ({"operator": "AND", "conditions": [{}]}, "'operator' is missing"),
        ({"field": "meta.v", "value": 1}, "'operator' is missing"),
        ({"field": "meta.v", "operator": "=="}, "'value' is missing"),
        ({"field": 7, "operator": "==", "value": 1}, "field as text"),
        (leaf("like", "a"), "to compare by"),
        (leaf(">", "a"), "ISO 8601"),
        (leaf("<", [1]), "a number or a date"),
        (leaf("<=", {}), "a number or a date"),
        (leaf("in", "abc"), "a list of values"),
        (leaf("not in", (1,)), "a list of values"),
    ],
)
def test_what_is_no_filter_is_refused_whatever_is_stored(
    flat: VecbridgeDocumentStore, filters: Any, said: str
) -> None:
    for ask in (flat.filter_documents, flat.count_documents_by_filter, flat.delete_by_filter):
        with pytest.raises(FilterError, match=said):
            ask(filters)
    with pytest.raises(FilterError, match=said):
        flat.embedding_retrieval([1.0], filters=filters)
    deep = leaf("==", 1)
    for _ in range(60):
        deep = {"operator": "AND", "conditions": [deep]}
    with pytest.raises(FilterError, match="levels deep"):
        flat.filter_documents(deep)


def test_an_empty_filter_changes_nothing_but_reads_all(document_store: VecbridgeDocumentStore) -> None:
    document_store.write_documents([Document(id="1", embedding=[1.0, 2.0]), Document(id="2")])
    with pytest.raises(FilterError, match="delete_all_documents"):
        document_store.delete_by_filter({})
    with pytest.raises(FilterError, match="expected a filter"):
        document_store.update_by_filter({}, {"x": 1})
    assert document_store.count_documents_by_filter({}) == 2
    assert len(document_store.filter_documents({})) == 2
    assert len(document_store.embedding_retrieval([1.0, 2.0], filters={})) == 1


# metadata


def test_updates_keep_everything_else(document_store: VecbridgeDocumentStore) -> None:
    document_store.write_documents(KEPT)
    with pytest.raises(MetadataError, match="rename it"):
        document_store.update_by_filter(leaf("!=", None, "id"), {"_haystack": {}})
    with pytest.raises(MetadataError, match="JSON cannot hold"):
        document_store.update_by_filter(leaf("!=", None, "id"), {"x": object()})
    assert document_store.update_by_filter(leaf("!=", None, "id"), {"a": [1], "empty": None}) == len(KEPT)
    same(
        document_store.filter_documents(),
        [replace(one, meta={**one.meta, "a": [1], "empty": None}) for one in KEPT],
    )


def test_what_is_said_of_metadata(flat: VecbridgeDocumentStore) -> None:
    metas: list[dict[str, Any]] = [
        {"n": 1, "mixed": 1, "both": 1, "deep": {"x": 3}, "tags": ["a", "b"], "flag": True},
        {"n": 1.5, "mixed": "a", "both": 2, "deep": {"x": 1}, "tags": ["b", "a"], "flag": False},
        {"n": None, "mixed": None, "tags": ["a", "b"], "none": None},
    ]
    documents = [
        Document(id=str(n), meta=meta, embedding=[1.0, n] if n else None, blob=ByteStream(b"x"))
        for n, meta in enumerate(metas)
    ]
    flat.write_documents(documents)
    assert flat.get_metadata_fields_info() == {
        "n": {"type": "float"},
        "mixed": {"type": "keyword"},
        "both": {"type": "int"},
        "deep": {"type": "keyword"},
        "tags": {"type": "keyword"},
        "flag": {"type": "boolean"},
    }
    assert flat.get_metadata_field_min_max("meta.deep.x") == {"min": 1, "max": 3}
    assert flat.get_metadata_field_min_max("mixed") == {"min": None, "max": None}
    assert flat.count_unique_metadata_by_filter({}, ["meta.tags", "n", "nobody"]) == {
        "tags": 2,
        "n": 2,
        "nobody": 0,
    }
    assert flat.get_metadata_field_unique_values("tags", search_term="B', 'A") == ([["b", "a"]], 1)
    assert flat.get_metadata_field_unique_values("deep.x", from_=1, size=5) == ([3], 2)


# retrieval


@pytest.mark.parametrize(
    ("metric", "score", "scaled"),
    [("cosine", 0.6, 0.8), ("ip", 3.0, 1 / (1 + np.exp(-0.03))), ("l2", -np.sqrt(20), 1 / (1 + np.sqrt(20)))],
)
def test_scores(url: str, metric: Any, score: float, scaled: float) -> None:
    store = VecbridgeDocumentStore(url, name=f"scores-{metric}", metric=metric, embedding_dimension=2)
    store.write_documents([Document(id="1", content="a", score=7.0, embedding=[3.0, 4.0])])
    (raw,) = store.embedding_retrieval([1.0, 0.0])
    assert raw.score == pytest.approx(score, rel=1e-6)
    (brought,) = store.embedding_retrieval([1.0, 0.0], scale_score=True)
    assert brought.score == pytest.approx(scaled, rel=1e-6)
    assert brought == Document(id="1", content="a", score=brought.score)
    far = store.embedding_retrieval([-1e5, 1.0], scale_score=True)[0].score
    assert far is not None
    assert 0 <= far <= 1
    store.close()


def test_what_is_no_query_is_refused(document_store: VecbridgeDocumentStore) -> None:
    document_store.write_documents([Document(id="1", embedding=[1.0, 2.0])])
    with pytest.raises(DimensionMismatch, match="expected a query of 2 dimensions, got 3"):
        document_store.embedding_retrieval([1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="top_k of 0 or more, got -1"):
        document_store.embedding_retrieval([1.0, 2.0], top_k=-1)
    assert document_store.embedding_retrieval([1.0, 2.0], top_k=0) == []


def test_the_index_is_built_when_it_is_asked_for(document_store: VecbridgeDocumentStore) -> None:
    assert document_store.build_index() is None
    vectors = np.random.default_rng(3).normal(size=(300, 8))
    document_store.write_documents(
        [Document(id=str(n), embedding=vector.tolist()) for n, vector in enumerate(vectors)]
    )
    document_store.build_index()
    assert document_store.embedding_retrieval(vectors[7].tolist(), top_k=1)[0].id == "7"


def test_a_retriever_runs_in_a_pipeline(document_store: VecbridgeDocumentStore) -> None:
    document_store.write_documents(
        [Document(id=str(n), meta={"n": n}, embedding=[1.0, float(n)]) for n in range(10)]
    )
    retriever = VecbridgeEmbeddingRetriever(
        document_store, filters=leaf("<", 8, "meta.n"), top_k=3, filter_policy=FilterPolicy.MERGE
    )
    pipeline = Pipeline()
    pipeline.add_component("retriever", retriever)
    run: dict[str, Any] = {"query_embedding": [0.0, 1.0]}

    def ids(said: dict[str, Any]) -> list[str]:
        return [one.id for one in said["retriever"]["documents"]]

    assert ids(pipeline.run({"retriever": run})) == ["7", "6", "5"]
    merged = {**run, "filters": leaf("!=", 7, "meta.m"), "top_k": 2}
    assert ids(pipeline.run({"retriever": merged})) == ["7", "6"]
    other = {**run, "filters": leaf("not in", [7, 5], "meta.n"), "return_embedding": True}
    (first, *_) = pipeline.run({"retriever": other})["retriever"]["documents"]
    assert (first.id, first.embedding) == ("9", [1.0, 9.0])  # of two filters on one field, the run's
    assert ids(asyncio.run(pipeline.run_async({"retriever": merged}))) == ["7", "6"]
    assert retriever.run([0.0, 1.0], top_k=0) == {"documents": []}
    scaled = retriever.run([0.0, 1.0], scale_score=True, top_k=1)["documents"][0]
    raw = retriever.run([0.0, 1.0], top_k=1)["documents"][0]
    assert scaled.score == pytest.approx((1 + (raw.score or 0)) / 2)
    pipeline.close()
    assert retriever.run([0.0, 1.0], top_k=1)["documents"][0].id == "7"


def test_what_a_retriever_cannot_use_is_refused(flat: VecbridgeDocumentStore) -> None:
    with pytest.raises(InputError, match="expected a VecbridgeDocumentStore"):
        VecbridgeEmbeddingRetriever(object())  # type: ignore[arg-type]  # the mistake
    with pytest.raises(InputError, match="top_k of 1 or more, got 0"):
        VecbridgeEmbeddingRetriever(flat, top_k=0)


# pipelines on paper


def test_a_pipeline_is_written_and_read_without_its_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"flat:{tmp_path}/secret-place"
    monkeypatch.setenv("HAYSTACK_TEST_URL", url)
    store = VecbridgeDocumentStore(
        Secret.from_env_var("HAYSTACK_TEST_URL"),
        name="papers",
        embedding_dimension=2,
        metric="ip",
        rows=500,
        filterable={"year": "number"},
        return_embedding=False,
    )
    store.write_documents([Document(id="1", content="a", embedding=[1.0, 2.0])])
    pipeline = Pipeline()
    pipeline.add_component(
        "retriever",
        VecbridgeEmbeddingRetriever(store, leaf("==", "a", "content"), 3, True, True, FilterPolicy.MERGE),
    )
    text = pipeline.dumps()
    assert "HAYSTACK_TEST_URL" in text
    assert "secret-place" not in text
    with pytest.raises(DeserializationError, match="allow"):
        Pipeline.loads(text)
    read = Pipeline.loads(text, allowed_modules=["vecbridge.*"])
    assert read.dumps() == text
    found = read.run({"retriever": {"query_embedding": [1.0, 1.0]}})["retriever"]["documents"]
    assert [(one.id, one.embedding) for one in found] == [("1", [1.0, 2.0])]
    described = json.loads(json.dumps(store.to_dict()))
    assert VecbridgeDocumentStore.from_dict(described).to_dict() == store.to_dict()
    monkeypatch.delenv("HAYSTACK_TEST_URL")
    again = VecbridgeDocumentStore.from_dict(described)  # nothing is looked up, or connected to, yet
    with pytest.raises(ValueError, match="HAYSTACK_TEST_URL"):
        again.count_documents()
    lenient = VecbridgeDocumentStore(Secret.from_env_var("HAYSTACK_TEST_URL", strict=False))
    with pytest.raises(InputError, match="set the variable"):
        lenient.count_documents()
    for used in (store, read.get_component("retriever").document_store):
        used.close()


@pytest.mark.parametrize(
    "url",
    ["postgresql://me:hush@localhost/db", "qdrant://hush@localhost:6334", "postgresql://localhost/db?password=hush"],
)  # fmt: skip
def test_no_password_is_written_into_a_pipeline(url: str) -> None:
    store = VecbridgeDocumentStore(url)
    assert "hush" not in repr(store)
    with pytest.raises(InputError, match=r"Secret\.from_env_var") as said:
        VecbridgeEmbeddingRetriever(store).to_dict()
    assert "hush" not in str(said.value)
    with pytest.raises(ValueError, match="token"):
        VecbridgeDocumentStore(Secret.from_token(url)).to_dict()
    shown = VecbridgeDocumentStore("postgresql://me@localhost:5433/db").to_dict()
    assert shown["init_parameters"]["url"] == "postgresql://me@localhost:5433/db"


# collections of others, and other processes


def test_a_collection_of_other_tools_is_opened(url: str) -> None:
    name = f"others{next(_numbers)}"
    with vecbridge.connect(url) as there:
        there.create(name, dim=2, metric="ip", model="bge-m3").upsert(
            ["1"], [[1.0, 2.0]], documents=["a"], metadata=[{"n": 1}], digests=[b"mark"]
        )
        store = VecbridgeDocumentStore(url, name=name, model="BAAI/bge-m3")
        same(store.filter_documents(), [Document(id="1", content="a", meta={"n": 1}, embedding=[1.0, 2.0])])
        store.update_by_filter(leaf("==", "1", "id"), {"n": 2})
        assert there.open(name).digests(["1"]) == {"1": b"mark"}
        assert store.embedding_retrieval([1.0, 1.0])[0].score == pytest.approx(3.0)
        store.close()
        for other, error, said in (
            (VecbridgeDocumentStore(url, name=name, embedding_dimension=3), DimensionMismatch, "holds 2"),
            (VecbridgeDocumentStore(url, name=name, metric="l2"), InputError, "'l2' in .* made for 'ip'"),
            (VecbridgeDocumentStore(url, name=name, model="e5-large-v2"), ModelMismatch, "bge-m3"),
        ):  # fmt: skip
            for _ in range(2):
                with pytest.raises(error, match=said):
                    other.count_documents()
            other.close()


def test_shortened_embeddings_are_not_written_again(url: str) -> None:
    name = f"short{next(_numbers)}"
    layout = vecbridge.Layout(shorten=vecbridge.Shorten("truncate", 2))
    with vecbridge.connect(url) as there:
        there.create(name, dim=4, nested=(2,), layout=layout)
    store = VecbridgeDocumentStore(url, name=name)
    store.write_documents([Document(id="1", meta={"v": 1}, embedding=[3.0, 4.0, 1.0, 1.0])])
    with pytest.raises(InputError, match="shortened when they were stored"):
        store.update_by_filter(leaf("==", 1), {"v": 2})
    assert store.filter_documents()[0].meta == {"v": 1}
    store.close()


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"name": "a/b"}, "expected a collection name"),
        ({"name": "n" * 40}, "expected a collection name"),
        ({"embedding_dimension": 0}, "dim"),
        ({"metric": "euclid"}, "the metric"),
        ({"filterable": {"a": "date"}}, "filterable"),
    ],
)
def test_what_no_collection_can_be_is_refused_at_once(wishes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        VecbridgeDocumentStore("postgresql://nobody@127.0.0.1:1/none", **wishes)


def test_two_stores_see_the_same(url: str, document_store: VecbridgeDocumentStore) -> None:
    other = VecbridgeDocumentStore(url, name=document_store.name)
    assert other.count_documents() == 0
    document_store.write_documents([Document(id="1", embedding=[1.0, 2.0]), Document(id="2")])
    assert other.count_documents() == 2
    assert (
        other.write_documents(
            [Document(id="2", embedding=[1.0, 2.0]), Document(id="3")], DuplicatePolicy.SKIP
        )
        == 1
    )
    assert document_store.count_documents() == 3
    other.close()
    other.close()
    assert other.count_documents() == 3
    other.close()


def test_threads_share_a_store(document_store: VecbridgeDocumentStore) -> None:
    def write(number: int) -> int:
        written = 0
        for n in range(12):
            one = Document(
                id=f"shared {n}", content=str(number), embedding=[1.0, float(n)] if n % 2 else None
            )
            try:
                written += document_store.write_documents([one, Document(id=f"{number} {n}")])
            except DuplicateDocumentError:
                document_store.write_documents(
                    [replace(one, embedding=[2.0, float(n)])], DuplicatePolicy.OVERWRITE
                )
            document_store.embedding_retrieval([1.0, 1.0], filters=leaf("==", None, "meta.v"), top_k=3)
            assert document_store.count_documents() >= 1
        return written

    with ThreadPoolExecutor(8) as pool:
        written = sum(pool.map(write, range(8)))
    # each of the shared ids was written first by one thread, together with one of its own
    assert written == 2 * 12
    assert document_store.count_documents() == 2 * 12
    everything = document_store.filter_documents()
    assert len({one.id for one in everything}) == len(everything) == 2 * 12


def test_asynchronous_calls_run_side_by_side(document_store: VecbridgeDocumentStore) -> None:
    async def all_at_once() -> list[list[Document]]:
        await asyncio.gather(
            *(
                document_store.write_documents_async([Document(id=str(n), embedding=[1.0, float(n)])])
                for n in range(20)
            )
        )
        return await asyncio.gather(
            *(document_store.embedding_retrieval_async([0.0, 1.0], top_k=n + 1) for n in range(20))
        )

    found = asyncio.run(all_at_once())
    assert [len(some) for some in found] == list(range(1, 21))
    assert all(some[0].id == "19" for some in found)


# documentation

PAGE = (Path(__file__).parent.parent / "docs" / "haystack.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(code: str, folder: Path) -> str:
    """What a block of code prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_runs_and_prints_what_the_page_says(tmp_path: Path) -> None:
    (said,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert run(BLOCKS[0], tmp_path) == said
    assert run(BLOCKS[1], tmp_path) == ""


def test_what_replaces_pgvector_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after, moving = BLOCKS[-3:]
    assert "PgvectorDocumentStore(" in before
    assert "PgvectorDocumentStore(" in moving
    for block in (before, moving):
        compile(block, "page", "exec")
    monkeypatch.setenv("PG_CONN_STR", f"flat:{tmp_path}/place")
    run(after, tmp_path)


def test_the_page_names_what_there_is() -> None:
    calls = set(re.findall(r"`(?:store\.)?(\w+)\(", PAGE))
    assert calls >= {"build_index", "delete_all_documents"}
    for call in calls:
        assert hasattr(VecbridgeDocumentStore, call) or hasattr(vecbridge, call), call
