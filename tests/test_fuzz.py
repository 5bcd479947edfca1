"""Anything at all, given to every store: kept and found as it was, or refused and nothing changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from places import schemas

from vecbridge.errors import CollectionNotFound, FilterError, InputError
from vecbridge.filters import matches, parse, same
from vecbridge.store import Collection, Store, connect
from vecbridge.testing import data, strategies
from vecbridge.types import Layout

# a failure prints the example and how to run it again
thorough = settings(
    max_examples=150, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(scope="module", params=["flat", "pgvector"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One store for all examples."""
    if request.param == "flat":
        with connect(f"flat:{tmp_path_factory.mktemp('fuzz')}") as store:
            yield store
    else:
        with schemas(request.getfixturevalue("pg18")) as place, connect(place()) as store:
            yield store


@pytest.fixture(scope="module")
def collection(store: Store) -> Collection:
    """One collection for all examples, empty before and after each; "kept" is always there."""
    collection = store.create("fuzz", dim=2, metric="l2", layout=Layout())
    collection.upsert(["kept"], [[9, 9]], documents=["as it was"], metadata=[{"kept": True}])
    return collection


def assert_unchanged(collection: Collection) -> None:
    assert collection.count() == 1
    batch = collection.get(["kept"])
    assert batch.vectors.tolist() == [[9, 9]]
    assert list(batch.documents) == ["as it was"]
    assert list(batch.metadata) == [{"kept": True}]


@thorough
@given(name=strategies.wild_texts | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,48}", fullmatch=True))
@example(name="fuzz-")
@example(name="FUZZ")
@example(name="a" * 48)
def test_a_name_is_a_collections_or_refused(store: Store, collection: Collection, name: str) -> None:
    before = store.collections()
    if name in before:
        return
    try:
        made = store.create(name, dim=2)
    except InputError:
        assert store.collections() == before
        with pytest.raises(CollectionNotFound, match="collection"):
            store.open(name)
    else:
        made.upsert(["a"], [[1, 2]])
        assert store.collections() == sorted([*before, name])
        assert store.open(name).count() == 1
        store.drop(name)
        assert store.collections() == before
    assert_unchanged(collection)


@thorough
@given(
    name=strategies.wild_texts | st.integers() | st.binary(max_size=3) | st.none(),
    document=st.none() | strategies.wild_texts | st.integers(),
    metadata=strategies.metadata | st.dictionaries(strategies.wild_texts, strategies.wild_values, max_size=3),
    digest=st.none() | st.binary(max_size=40),
)
def test_a_record_is_kept_as_it_is_or_refused(
    collection: Collection, name: Any, document: Any, metadata: dict[str, Any], digest: bytes | None
) -> None:
    if name == "kept":
        return
    try:
        collection.upsert([name], [[1, 2]], documents=[document], metadata=[metadata], digests=[digest])
    except InputError:
        assert_unchanged(collection)
        return
    assert collection.count() == 2
    batch = collection.get([name])
    assert list(batch.ids) == [name]
    assert list(batch.documents) == [document]
    assert same(batch.metadata[0], metadata), batch.metadata[0]
    assert batch.vectors.tolist() == [[1, 2]]
    assert collection.digests([name]) == ({} if digest is None else {name: digest})
    hit = collection.search([1, 2], k=1)[0]
    assert (hit.id, hit.document, hit.score) == (name, document, 0)
    assert same(hit.metadata, metadata)
    for key, value in metadata.items():
        if "." not in key and not key.startswith("$"):
            assert collection.count(where={key: {"$eq": value}, "kept": {"$exists": False}}) == 1
    assert collection.delete([name]) == 1
    assert_unchanged(collection)


@thorough
@given(
    records=st.lists(strategies.metadata, min_size=1, max_size=8),
    wheres=st.lists(strategies.filters, min_size=1, max_size=4),
)
@example(
    records=[{"a": value} for value in data.ODD_VALUES.values()],
    wheres=[{"a": {"$gte": value}} for value in (0, 0.1, 2**53, 2.0**53, 2**63 - 1, float(2**63 - 1024), "")],
)
def test_a_filter_finds_what_matches(
    collection: Collection, records: list[dict[str, Any]], wheres: list[dict[str, Any]]
) -> None:
    ids = data.names(len(records))
    vectors = np.stack([np.arange(len(ids)), np.zeros(len(ids))], axis=1)
    collection.upsert(ids, vectors, metadata=records)
    try:
        for where in wheres:
            condition = parse(where)
            right = [name for name, record in zip(ids, records, strict=True) if matches(condition, record)]
            whole = {"$and": [where, {"kept": {"$exists": False}}]}
            assert collection.count(where=whole) == len(right), where
            hits = collection.search([0, 0], k=len(ids) + 1, where=whole)
            assert [hit.id for hit in hits] == right, where
        gone = collection.delete(where={"$and": [wheres[0], {"kept": {"$exists": False}}]})
        condition = parse(wheres[0])
        left = [name for name, record in zip(ids, records, strict=True) if not matches(condition, record)]
        assert gone == len(ids) - len(left)
        assert list(collection.get(ids).ids) == left
    finally:
        collection.delete(ids)
    assert_unchanged(collection)


@thorough
@given(where=strategies.wild_filters)
def test_anything_is_a_filter_or_refused(collection: Collection, where: Any) -> None:
    try:
        condition = parse(where)
    except FilterError:
        for call in (
            lambda: collection.count(where=where),
            lambda: collection.search([1, 2], where=where),
            lambda: collection.delete(where=where),
        ):
            if where is not None:
                with pytest.raises(InputError, match=r"\w"):
                    call()
    else:
        right = matches(condition, {"kept": True})
        assert collection.count(where=where) == right
        assert len(collection.search([1, 2], where=where)) == right
    assert_unchanged(collection)


@thorough
@given(
    vector=st.lists(st.floats(width=64) | st.integers() | st.none(), max_size=3), k=st.integers() | st.none()
)
def test_a_vector_is_kept_or_refused(collection: Collection, vector: list[Any], k: Any) -> None:
    try:
        collection.upsert(["new"], [vector])
    except InputError:
        with pytest.raises(InputError, match=r"\w"):
            collection.search(vector)
    else:
        kept = np.array([vector], dtype=np.float32)
        assert collection.get(["new"]).vectors.tobytes() == kept.tobytes()
        hit = collection.search(vector, k=1)[0]
        assert hit.id == "new"
        assert hit.score == 0
        try:
            found = collection.search(vector, k=k)
        except InputError:
            assert not isinstance(k, int) or not 1 <= k <= 1_000_000
        else:
            assert len(found) == min(k, 2)
        collection.delete(["new"])
    assert_unchanged(collection)
