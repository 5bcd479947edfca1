"""Collections: made, listed, opened, described, dropped."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ..errors import CollectionExists, CollectionNotFound, InputError, ModelMismatch, PlanError, StoreError
from ..manifest import Chunking, Manifest
from ..store import Store, connect
from ..types import Layout, Shorten
from . import data, oracle
from .base import Base, content
from .layouts import DIM, LAYOUTS, NESTED, space


def same_manifest(one: Manifest, other: Manifest) -> bool:
    """Whether two manifests say the same, the fitted basis bit for bit."""
    return one.dump() == other.dump() and (one.name, one.space, one.layout) == (
        other.name, other.space, other.layout
    )  # fmt: skip


class LifecycleTests(Base):
    """Collections: made, listed, opened, described, dropped."""

    def test_a_fresh_place_holds_no_collection(self, store: Store) -> None:
        assert store.collections() == []

    def test_collections_are_listed_in_order(self, store: Store) -> None:
        for name in ("b", "a", "c", "B"):
            store.create(name, dim=2)
        assert store.collections() == ["B", "a", "b", "c"]

    def test_a_taken_name_is_refused_and_its_collection_untouched(self, store: Store) -> None:
        first = store.create("papers", dim=2, metric="l2")
        first.upsert(["a"], [[1, 2]])
        with pytest.raises(CollectionExists, match="papers"):
            store.create("papers", dim=3)
        assert store.open("papers").space == first.space
        assert store.open("papers").count() == 1
        assert store.collections() == ["papers"]

    def test_a_missing_collection_is_not_found(self, store: Store) -> None:
        store.create("papers", dim=2)
        with pytest.raises(CollectionNotFound, match="paper"):
            store.open("paper")
        with pytest.raises(CollectionNotFound, match="paper"):
            store.drop("paper")
        assert store.collections() == ["papers"]

    def test_not_found_is_a_key_error_with_a_readable_text(self, store: Store) -> None:
        with pytest.raises(KeyError, match=r"^[^'\"].*papers") as caught:
            store.open("papers")
        assert isinstance(caught.value, CollectionNotFound)

    def test_drop_forgets_everything_and_only_that(self, store: Store) -> None:
        for name in ("papers", "papers2", "paper"):
            store.create(name, dim=2, metric="l2").upsert(["a"], [[1, 2]], documents=[name])
        store.drop("papers")
        assert store.collections() == ["paper", "papers2"]
        again = store.create("papers", dim=3)
        assert again.count() == 0
        assert list(again.get(["a"]).ids) == []
        again.upsert(["a"], [[1, 2, 3]])
        assert store.open("papers2").search([1, 2])[0].document == "papers2"

    def test_a_dropped_collection_has_no_inventory(self, store: Store) -> None:
        collection = store.create("papers", dim=2)
        collection.upsert(["a"], [[1, 2]], digests=[b"a"])
        assert oracle.inventory(collection.inventory()) == {"a": b"a"}
        begun = [collection.inventory(), collection.scan(), collection.scan(vectors=False)]
        store.drop("papers")
        for parts in (*begun, collection.inventory(), collection.scan()):
            with pytest.raises(CollectionNotFound, match="papers"):
                next(parts)
        with pytest.raises(CollectionNotFound, match="papers"):
            collection.digests(["a"])
        with pytest.raises(CollectionNotFound, match="papers"):
            collection.delete(["a"])

    @pytest.mark.parametrize("name", data.BAD_NAMES.values(), ids=data.BAD_NAMES.keys())
    def test_a_name_that_no_store_could_hold_is_refused(self, shared: Store, name: str) -> None:
        before = shared.collections()
        with pytest.raises(InputError, match="expected a collection name"):
            shared.create(name, dim=2)
        with pytest.raises(CollectionNotFound):
            shared.open(name)
        assert shared.collections() == before

    def test_odd_names_are_collections_like_any_other(self, store: Store) -> None:
        for number, name in enumerate(data.ODD_NAMES):
            store.create(name, dim=2, metric="l2").upsert(["a"], [[number, 1]])
        assert store.collections() == sorted(data.ODD_NAMES)
        for number, name in enumerate(data.ODD_NAMES):
            assert store.open(name).get(["a"]).vectors.tolist() == [[number, 1]], name
        for name in data.ODD_NAMES[1:]:
            store.drop(name)
        assert store.collections() == data.ODD_NAMES[:1]

    def test_a_collection_describes_itself_to_whoever_opens_it(self, store_url: str) -> None:
        with connect(store_url) as store:
            made = store.create(
                "papers", dim=32, metric="ip", rows=123, model='it\'s "a" mödel \\ 🦄/v1', nested=[16, 8]
            )
        with connect(store_url) as store:
            opened = store.open("papers")
            assert same_manifest(opened.manifest, made.manifest)
            assert set(opened.space.nested) == {8, 16}
            assert opened.space.model == 'it\'s "a" mödel \\ 🦄/v1'
            assert opened.manifest.rows == 123

    def test_a_collection_remembers_how_its_texts_are_cut(self, store_url: str) -> None:
        chunking = Chunking(tokens=400, overlap=50, counter='tokenizer "é" 🦄')
        with connect(store_url) as store:
            assert store.create("papers", dim=4, chunking=chunking).manifest.chunking == chunking
            store.create("notes", dim=4)
        with connect(store_url) as store:
            assert store.open("papers").manifest.chunking == chunking
            assert store.open("notes").manifest.chunking is None

    def test_a_fitted_basis_comes_back_bit_for_bit(self, store_url: str) -> None:
        sample = data.clustered(100, 24, seed=1)
        with connect(store_url) as store:
            made = store.create("papers", dim=24, layout=Layout(shorten=Shorten("pca", 8)), sample=sample)
            made.upsert(["a"], sample[:1])
        with connect(store_url) as store:
            opened = store.open("papers")
            assert opened.manifest.reduction is not None
            assert made.manifest.reduction is not None
            assert opened.manifest.reduction.basis_bytes() == made.manifest.reduction.basis_bytes()
            assert same_manifest(opened.manifest, made.manifest)
            assert opened.search(sample[0], k=1)[0].id == "a"

    def test_what_was_planned_is_what_is_made(self, store: Store) -> None:
        collection = store.create("papers", dim=32, rows=1_000)
        assert collection.plan is not None
        assert collection.plan.layout == collection.layout
        assert store.open("papers").layout == collection.layout

    @pytest.mark.parametrize("name", LAYOUTS)
    def test_a_layout_is_made_or_refused_with_its_reason(self, store: Store, name: str) -> None:
        layout, sample = LAYOUTS[name], data.clustered(100, DIM, seed=2)
        if reason := store.limits.objection(space("cosine"), layout):
            with pytest.raises(PlanError, match=re.escape(reason)):
                store.create("papers", dim=DIM, layout=layout, sample=sample, nested=NESTED)
            assert store.collections() == []
        else:
            store.create("papers", dim=DIM, layout=layout, sample=sample, nested=NESTED)
            assert store.open("papers").layout == layout

    def test_a_pca_without_a_sample_is_refused_and_nothing_made(self, store: Store) -> None:
        with pytest.raises(InputError, match="sample"):
            store.create("papers", dim=8, layout=Layout(shorten=Shorten("pca", 4)))
        with pytest.raises(InputError, match="at least 4"):
            store.create("papers", dim=8, layout=Layout(shorten=Shorten("pca", 4)), sample=np.eye(8)[:3])
        assert store.collections() == []

    @pytest.mark.parametrize("dim", [0, -1, True, 2.0, "3", None])
    def test_a_dimension_that_is_none_is_refused(self, shared: Store, dim: int) -> None:
        before = shared.collections()
        with pytest.raises(InputError, match="dim"):
            shared.create("papers", dim=dim)
        with pytest.raises(InputError, match="dim"):
            shared.create("papers", dim=dim, layout=Layout())
        assert shared.collections() == before

    def test_another_models_vectors_are_refused(self, store: Store) -> None:
        collection = store.create("papers", dim=2, model="first")
        collection.upsert(["a"], [[1, 2]], model="first")
        with pytest.raises(ModelMismatch, match="expected vectors of first, got vectors of second"):
            store.open("papers", model="second")
        with pytest.raises(ModelMismatch, match="expected vectors of first, got vectors of second"):
            collection.upsert(["a"], [[3, 4]], model="second")
        with pytest.raises(ModelMismatch, match="expected vectors of first, got vectors of second"):
            collection.search([1, 2], model="second")
        with pytest.raises(ModelMismatch, match="expected vectors of first, got vectors of second"):
            collection.search_many([[1, 2]], model="second")
        assert collection.get(["a"]).vectors.tolist() == [[1, 2]]
        assert store.open("papers", model="first").search([1, 2], model="first")[0].id == "a"

    def test_closing_twice_is_no_error(self, store_url: str) -> None:
        store = connect(store_url)
        collection = store.create("papers", dim=2)
        collection.close()
        collection.close()
        store.close()
        store.close()

    def test_use_after_close_is_a_store_error(self, store_url: str) -> None:
        store = connect(store_url)
        collection = store.create("papers", dim=2)
        collection.upsert(["a"], [[1, 2]])
        store.close()
        for use in (
            store.collections,
            lambda: store.create("more", dim=2),
            lambda: store.open("papers"),
            lambda: store.drop("papers"),
            lambda: collection.upsert(["b"], [[1, 2]]),
            lambda: collection.search([1, 2]),
            lambda: collection.get(["a"]),
            collection.count,
            lambda: collection.digests(["a"]),
            lambda: list(collection.inventory()),
            lambda: list(collection.scan()),
            lambda: collection.delete(["a"]),
            lambda: collection.delete(where={"a": 1}),
            collection.sizes,
        ):
            with pytest.raises(StoreError, match="closed"):
                use()
        with connect(store_url) as again:
            assert again.collections() == ["papers"]
            assert list(content(again.open("papers"), ["a", "b"])) == ["a"]

    def test_a_closed_collection_can_be_opened_again(self, store: Store) -> None:
        collection = store.create("papers", dim=2)
        collection.upsert(["a"], [[1, 2]])
        collection.close()
        assert store.open("papers").count() == 1

    def test_the_store_says_what_it_is(self, store: Store) -> None:
        assert store.limits.backend
        assert store.limits.version
        assert store.url in repr(store)
