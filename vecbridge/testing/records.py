"""Records: what goes in comes out, byte for byte, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ..backends import connect as open_backend
from ..checks import ID_BYTES, METADATA_DEPTH
from ..errors import InputError
from ..filters import same
from ..store import Collection, Store, connect
from ..types import Layout
from . import data, oracle
from .base import Base, Library, content


class RecordTests(Base):
    """Records: what goes in comes out, byte for byte, and nothing else changes."""

    @pytest.fixture(scope="class")
    @classmethod
    def drawer(cls, shared: Store) -> Collection:
        """A collection for tests that put in their own records and look at no others."""
        return shared.create("drawer", dim=2, metric="l2", layout=Layout())

    def test_records_come_back_byte_for_byte(self, store_url: str) -> None:
        ids, vectors = data.names(100), data.clustered(100, 64, seed=3) * np.float32(3.7)
        documents = [f"text {row}" for row in range(100)]
        metadata = [{"row": row} for row in range(100)]
        with connect(store_url) as store:
            collection = store.create("papers", dim=64, metric="ip", layout=Layout())
            assert collection.upsert(ids, vectors, documents=documents, metadata=metadata) == 100
            here = collection.get(ids)
        with connect(store_url) as store:
            reopened = store.open("papers").get(ids)
        for batch in (here, reopened):
            assert list(batch.ids) == ids
            assert batch.vectors.dtype == np.float32
            assert batch.vectors.tobytes() == vectors.tobytes()
            assert list(batch.documents) == documents
            assert list(batch.metadata) == metadata

    def test_every_float32_comes_back_bit_for_bit(self, drawer: Collection) -> None:
        bits = np.random.default_rng(4).integers(0, 2**32, 4_000, dtype=np.uint32)
        values = bits.view(np.float32)
        values = values[np.isfinite(values) & (np.abs(values) < 6e18)]
        values = values[: len(values) // 2 * 2].reshape(-1, 2)
        ids = [f"bits-{row}" for row in range(len(values))]
        drawer.upsert(ids, values)
        assert drawer.get(ids).vectors.tobytes() == values.tobytes()

    def test_get_keeps_the_order_asked_for(self, library: Library) -> None:
        asked = [library.ids[row] for row in (7, 3, 299, 0, 150)]
        assert list(library.collection.get(asked).ids) == asked
        assert list(library.collection.get(asked).documents) == [
            f"document {row}" for row in (7, 3, 299, 0, 150)
        ]

    def test_get_leaves_out_what_is_not_there(self, library: Library) -> None:
        batch = library.collection.get(["nobody", library.ids[5], "x", library.ids[2]])
        assert list(batch.ids) == [library.ids[5], library.ids[2]]
        assert batch.vectors.tobytes() == library.vectors[[5, 2]].tobytes()

    def test_get_of_nothing_is_an_empty_batch(self, library: Library) -> None:
        for asked in ([], ["nobody"]):
            batch = library.collection.get(asked)
            assert len(batch) == 0
            assert batch.vectors.shape == (0, 16)
            assert batch.vectors.dtype == np.float32

    def test_get_gives_a_record_once_however_often_it_is_asked_for(self, library: Library) -> None:
        first, second = library.ids[:2]
        assert list(library.collection.get([second, first, second]).ids) == [second, first]

    def test_upsert_replaces_the_whole_record(self, drawer: Collection) -> None:
        drawer.upsert(["r"], [[1, 2]], documents=["old"], metadata=[{"a": 1, "b": 2}], digests=[b"old"])
        drawer.upsert(["r"], [[3, 4]], metadata=[{"b": 3}])
        batch = drawer.get(["r"])
        assert batch.vectors.tolist() == [[3, 4]]
        assert list(batch.documents) == [None]
        assert list(batch.metadata) == [{"b": 3}]
        assert drawer.digests(["r"]) == {}

    def test_of_duplicates_in_one_call_the_last_stays_as_in_two_calls(self, store: Store) -> None:
        collection = store.create("papers", dim=2, metric="l2")
        written = collection.upsert(
            ["a", "b", "a", "c", "b", "a"],
            [[1, 0], [2, 0], [3, 0], [4, 0], [5, 0], [6, 0]],
            documents=["1", "2", None, "4", "5", "6"],
            metadata=[{"n": n} for n in range(6)],
            digests=[bytes([n]) for n in range(6)],
        )
        assert written == 3
        assert collection.count() == 3
        batch = collection.get(["a", "b", "c"])
        assert batch.vectors[:, 0].tolist() == [6, 5, 4]
        assert list(batch.documents) == ["6", "5", "4"]
        assert list(batch.metadata) == [{"n": 5}, {"n": 4}, {"n": 3}]
        assert collection.digests(["a", "b", "c"]) == {"a": b"\5", "b": b"\4", "c": b"\3"}

    def test_the_same_ids_again_do_not_grow_the_collection(self, store: Store) -> None:
        collection = store.create("papers", dim=4, metric="l2")
        ids = data.names(200)
        for turn in range(3):
            collection.upsert(ids, np.full((200, 4), turn))
            assert collection.count() == 200
        assert {hit.score for hit in collection.search([2, 2, 2, 2], k=500)} == {0.0}
        mixed = data.names(150, start=100)
        collection.upsert(mixed, np.full((150, 4), 9))
        assert collection.count() == 250

    def test_an_empty_call_changes_nothing(self, drawer: Collection) -> None:
        before = drawer.count()
        assert drawer.upsert([], np.empty((0, 2))) == 0
        assert drawer.upsert([], []) == 0
        assert drawer.delete([]) == 0
        assert drawer.digests([]) == {}
        assert drawer.search_many(np.empty((0, 2))) == []
        assert drawer.count() == before

    def test_a_large_batch_is_one_call(self, store: Store) -> None:
        collection = store.create("papers", dim=8, metric="l2", layout=Layout())
        ids, vectors = data.names(20_000), data.clustered(20_000, 8, seed=5)
        assert collection.upsert(ids, vectors) == 20_000
        assert collection.count() == 20_000
        assert collection.get(ids).vectors.tobytes() == vectors.tobytes()
        assert collection.delete(ids[:15_000]) == 15_000
        assert collection.count() == 5_000

    @pytest.mark.parametrize("kind", ["float64", "float16", "int32", ">f4", "fortran", "strided", "list"])
    def test_any_array_of_numbers_is_taken(self, drawer: Collection, kind: str) -> None:
        whole = np.arange(12, dtype=np.float32).reshape(6, 2)
        given: Any
        match kind:
            case "fortran":
                given = np.asfortranarray(whole)
            case "strided":
                given = np.repeat(np.repeat(whole, 2, axis=0), 3, axis=1)[::2, ::3]
            case "list":
                given = whole.tolist()
            case _:
                given = whole.astype(kind)
        ids = [f"kind-{kind}-{row}" for row in range(6)]
        drawer.upsert(ids, given)
        assert drawer.get(ids).vectors.tobytes() == whole.tobytes()

    def test_the_callers_arrays_stay_as_they_are(self, store: Store) -> None:
        vectors = data.clustered(20, 8, seed=6) * np.float32(2)
        vectors.flags.writeable = False
        before = vectors.tobytes()
        metadata = [{"list": [row]} for row in range(20)]
        collection = store.create("papers", dim=8)
        collection.upsert(data.names(20), vectors, metadata=metadata)
        collection.search_many(vectors, k=3)
        assert vectors.tobytes() == before
        assert metadata == [{"list": [row]} for row in range(20)]

    def test_what_comes_back_belongs_to_the_caller(self, drawer: Collection) -> None:
        drawer.upsert(["mine"], [[1, 2]], metadata=[{"list": [1], "mine": True}])
        batch = drawer.get(["mine"])
        batch.metadata[0]["list"].append(2)
        if batch.vectors.flags.writeable:
            batch.vectors[:] = 9
        hit = drawer.search([1, 2], k=1, where={"mine": True})[0]
        hit.metadata["list"].append(3)
        assert content(drawer, ["mine"])["mine"][2] == {"list": [1], "mine": True}
        assert drawer.get(["mine"]).vectors.tolist() == [[1, 2]]

    def test_texts_of_a_subclass_are_the_text(self, drawer: Collection) -> None:
        ids = list(np.array(["numpy-1", "numpy-2"]))
        drawer.upsert(ids, [[1, 2], [3, 4]], documents=list(np.array(["a", "b"])))
        batch = drawer.get(["numpy-2", "numpy-1"])
        assert list(batch.documents) == ["b", "a"]
        assert drawer.delete(ids) == 2

    @pytest.mark.parametrize("text", data.ODD_TEXT.values(), ids=data.ODD_TEXT.keys())
    def test_odd_text_is_stored_and_found_byte_for_byte(self, drawer: Collection, text: str) -> None:
        # a key that begins with $ is an operator, and dots separate keys
        key = "k" + text.replace(".", "")
        metadata = {"value": text, key: {"inner": [text]}, "case": "odd"}
        drawer.upsert([text], [[1, 2]], documents=[text], metadata=[metadata])
        batch = drawer.get([text])
        assert list(batch.ids) == [text]
        assert list(batch.documents) == [text]
        assert list(batch.metadata) == [metadata]
        for where in (
            {"value": text},
            {f"{key}.inner": text},
            {key: {"$exists": True}, "value": text},
            {"value": {"$in": ["x", text]}},
            {"value": {"$gte": text, "$lte": text}},
        ):
            hits = drawer.search([1, 2], k=5, where=where)
            assert [(hit.id, hit.document, hit.metadata) for hit in hits] == [(text, text, metadata)], where
            assert drawer.count(where=where) == 1, where
        assert drawer.count(where={"value": {"$ne": text}, "case": "odd"}) == 0
        assert drawer.delete(where={"value": text}) == 1
        assert len(drawer.get([text])) == 0

    def test_texts_that_only_look_alike_are_different(self, drawer: Collection) -> None:
        alike = ["é", "e\u0301", "É", "E", "e", " e", "e ", "e\u200b", "Ω", "\u2126", "ſ", "s", "ß", "ss"]
        drawer.upsert(alike, [[n, 0] for n in range(len(alike))], metadata=[{"like": text} for text in alike])
        assert drawer.get(alike).vectors[:, 0].tolist() == list(range(len(alike)))
        for text in alike:
            assert drawer.count(where={"like": text}) == 1, text
        drawer.delete(alike)

    @pytest.mark.parametrize("text", data.BAD_TEXT.values(), ids=data.BAD_TEXT.keys())
    def test_text_that_no_store_gives_back_is_refused(self, drawer: Collection, text: str) -> None:
        before = drawer.count()
        calls: list[Callable[[], object]] = [
            lambda: drawer.upsert(["ok", text], [[1, 2], [3, 4]]),
            lambda: drawer.upsert(["ok"], [[1, 2]], documents=[text]),
            lambda: drawer.upsert(["ok"], [[1, 2]], metadata=[{"a": [text]}]),
            lambda: drawer.upsert(["ok"], [[1, 2]], metadata=[{"a": {text: 1}}]),
            lambda: drawer.get([text]),
            lambda: drawer.digests([text]),
            lambda: drawer.delete([text]),
            lambda: drawer.search([1, 2], where={"a": text}),
            lambda: drawer.search([1, 2], where={text: 1}),
            lambda: drawer.count(where={"a": {"$in": ["ok", text]}}),
            lambda: drawer.delete(where={"a": {"$ne": text}}),
        ]
        for call in calls:
            with pytest.raises(InputError, match=r"NUL|surrogate"):
                call()
        assert drawer.count() == before

    def test_ids_of_up_to_1024_bytes_are_kept_and_longer_ones_refused(self, drawer: Collection) -> None:
        longest = ["x" * ID_BYTES, "é" * (ID_BYTES // 2), "🦄" * (ID_BYTES // 4), "x" * (ID_BYTES - 1) + "y"]
        drawer.upsert(longest, [[n, 0] for n in range(4)])
        assert drawer.get(longest).vectors[:, 0].tolist() == [0, 1, 2, 3]
        for name, size in (("x" * (ID_BYTES + 1), "1,025"), ("é" * 513, "1,026"), ("x" * 65_536, "65,536")):
            with pytest.raises(InputError, match=rf"1,024 bytes, got {size} bytes at position 1"):
                drawer.upsert(["ok", name], [[1, 2], [3, 4]])
        assert len(drawer.get(["ok"])) == 0
        assert drawer.delete(longest) == 4

    def test_a_document_of_10_megabytes_is_kept(self, drawer: Collection) -> None:
        text = "".join(map(chr, np.random.default_rng(7).integers(32, 0xD800, 3_600_000)))
        assert len(text.encode()) > 10_000_000
        drawer.upsert(["long"], [[1, 2]], documents=[text])
        assert drawer.get(["long"]).documents[0] == text
        assert drawer.delete(["long"]) == 1

    def test_no_document_is_not_an_empty_document(self, drawer: Collection) -> None:
        drawer.upsert(["none", "empty"], [[1, 2], [3, 4]], documents=[None, ""])
        assert list(drawer.get(["none", "empty"]).documents) == [None, ""]

    @pytest.mark.parametrize("name", data.ODD_VALUES)
    def test_a_metadata_value_at_the_edge_comes_back_equal(self, drawer: Collection, name: str) -> None:
        value = data.ODD_VALUES[name]
        drawer.upsert(["edge"], [[1, 2]], metadata=[{"value": value, "list": [value], "edge": True}])
        back = drawer.get(["edge"]).metadata[0]
        assert same(back["value"], value), back["value"]
        assert same(back["list"], [value])
        where = {"value": {"$eq": value}, "edge": True}
        assert drawer.count(where=where) == 1
        assert drawer.search([1, 2], k=1, where=where)[0].metadata == back
        assert drawer.count(where={"value": {"$ne": value}, "edge": True}) == 0

    def test_metadata_may_be_nested_50_levels_deep(self, drawer: Collection) -> None:
        deepest = data.nested(METADATA_DEPTH)
        drawer.upsert(["deep"], [[1, 2]], metadata=[deepest])
        assert drawer.get(["deep"]).metadata[0] == deepest
        assert drawer.count(where={".".join(["a"] * METADATA_DEPTH): 1}) == 1
        with pytest.raises(InputError, match="50 levels"):
            drawer.upsert(["deep"], [[3, 4]], metadata=[data.nested(METADATA_DEPTH + 1)])
        assert drawer.get(["deep"]).vectors.tolist() == [[1, 2]]
        drawer.delete(["deep"])

    def test_delete_says_how_many_were_there(self, store: Store) -> None:
        collection = store.create("papers", dim=2, metric="l2")
        collection.upsert(data.names(10), np.ones((10, 2)), metadata=[{"n": n} for n in range(10)])
        first = data.names(3)
        assert collection.delete([*first, "nobody", first[0]]) == 3
        assert collection.delete(first) == 0
        assert collection.delete(where={"n": {"$gte": 8}}) == 2
        assert collection.delete(where={"n": {"$gte": 8}}) == 0
        assert collection.count() == 5
        assert sorted(hit.id for hit in collection.search([1, 1], k=100)) == data.names(5, start=3)
        collection.upsert(first, np.ones((3, 2)))
        assert collection.count() == 8

    def test_everything_can_be_deleted_and_written_again(self, store: Store) -> None:
        collection = store.create("papers", dim=2, metric="l2")
        for turn in range(3):
            collection.upsert(data.names(50), np.full((50, 2), turn))
            assert collection.delete(where={"missing": None}) == 50
            assert collection.count() == 0
            assert collection.search([1, 1]) == []

    def test_digests_tell_what_was_given_with_a_record(self, drawer: Collection) -> None:
        marks = [bytes(range(32)), b"", None, b"\0"]
        drawer.upsert(["d0", "d1", "d2", "d3"], np.ones((4, 2)), digests=marks)
        found = drawer.digests(["d3", "nobody", "d0", "d1", "d2"])
        assert found == {"d0": bytes(range(32)), "d1": b"", "d3": b"\0"}

    def test_an_empty_collection_has_an_empty_inventory(self, store: Store) -> None:
        assert oracle.inventory(store.create("papers", dim=2).inventory()) == {}

    def test_an_inventory_tells_the_id_and_the_digest_of_what_is_there_now(self, store: Store) -> None:
        collection = store.create("papers", dim=2, metric="l2")
        ids = [*data.ODD_TEXT.values(), "x" * ID_BYTES, "🦄" * (ID_BYTES // 4), *data.names(20)]
        marks = [None if row % 3 == 0 else bytes([row]) * (row % 33) for row in range(len(ids))]
        collection.upsert(ids, np.ones((len(ids), 2)), digests=marks)
        there = dict(zip(ids, marks, strict=True))
        assert oracle.inventory(collection.inventory()) == there
        # a digest changes, one goes, one comes; then records go, and one of them comes back
        changes = {ids[1]: b"\0" * 24, ids[2]: None, ids[3]: bytes(range(32))}
        collection.upsert(list(changes), np.zeros((3, 2)), digests=list(changes.values()))
        collection.delete(ids[5:15])
        collection.upsert(ids[7:8], np.zeros((1, 2)))
        there = {**there, **changes, ids[7]: None}
        for name in [*ids[5:7], *ids[8:15]]:
            del there[name]
        assert oracle.inventory(collection.inventory()) == there
        assert collection.digests(ids) == {name: mark for name, mark in there.items() if mark is not None}
        collection.delete(where={"missing": None})
        assert oracle.inventory(collection.inventory()) == {}

    def test_an_inventory_goes_on_while_records_come_and_go_between_its_parts(self, store: Store) -> None:
        """What stays is met once; what is written, replaced or deleted meanwhile, at most once."""
        rows = 12_000
        ids, marks = data.names(rows), [row.to_bytes(4, "big") * 8 for row in range(rows)]
        collection = store.create("papers", dim=2, metric="l2", layout=Layout())
        for start in range(0, rows, 4_000):
            some = slice(start, start + 4_000)
            collection.upsert(ids[some], np.ones((4_000, 2)), digests=marks[some])
        assert collection.digests(ids[: oracle.PART]) == dict(zip(ids[: oracle.PART], marks, strict=False))
        # every tenth record goes one day, every tenth is replaced one day, the others stay as they are
        order = np.random.default_rng(12).permutation(rows // 10) * 10
        going, changing = [ids[row] for row in order], [ids[row + 1] for row in order]
        turns = 0

        def parts() -> Iterator[list[tuple[str, bytes | None]]]:
            nonlocal turns
            for part in collection.inventory():
                yield part
                some = slice(200 * turns, 200 * turns + 200)
                assert collection.delete(going[some]) == len(going[some])
                fresh = [f"{name} {turns}" for name in going[some]]
                collection.upsert(changing[some] + fresh, np.zeros((len(changing[some]) + len(fresh), 2)))
                turns += 1

        met = oracle.inventory(parts())
        assert turns > 1, "12,000 records came at a time"
        staying = [row for row in range(rows) if row % 10 > 1]
        assert {ids[row]: met.get(ids[row]) for row in staying} == {ids[row]: marks[row] for row in staying}
        fresh = {f"{name} {turn}" for turn in range(turns) for name in going[200 * turn : 200 * turn + 200]}
        assert set(met) <= {*ids, *fresh}
        now = oracle.inventory(collection.inventory())
        assert len(now) == collection.count()
        assert collection.delete(list(now)) == len(now)
        assert collection.count() == 0

    def test_100_000_ids_can_be_deleted_in_one_call(self, store: Store) -> None:
        folder = "a folder with a long name/" * 20
        many = [f"{folder}{number}" for number in range(100_000)]
        collection = store.create("papers", dim=2, metric="l2", layout=Layout())
        there = [*many[::200], "stays"]
        collection.upsert(there, np.ones((len(there), 2)))
        assert collection.delete(many) == len(there) - 1
        assert oracle.inventory(collection.inventory()) == {"stays": None}

    def test_a_sample_is_random_and_the_same_for_the_same_seed(self, store_url: str) -> None:
        ids, vectors = data.names(400), data.clustered(400, 4, seed=8)
        with connect(store_url) as store:
            store.create("papers", dim=4).upsert(ids, vectors, documents=ids)
        backend = open_backend(store_url)
        try:
            table = backend.open("papers")
            one, again, other = (table.sample(50, seed=seed) for seed in (1, 1, 2))
            assert len(one) == 50
            assert len(set(one.ids)) == 50
            assert list(one.ids) == list(again.ids)
            assert set(one.ids) != set(other.ids)
            assert one.vectors.tobytes() == again.vectors.tobytes()
            where = {name: row for row, name in enumerate(ids)}
            assert one.vectors.tobytes() == vectors[[where[name] for name in one.ids]].tobytes()
            assert list(one.documents) == list(one.ids)
            assert sorted(table.sample(1_000, seed=1).ids) == ids
        finally:
            backend.close()

    def test_sizes_count_what_is_there(self, store: Store) -> None:
        collection = store.create("papers", dim=256, metric="l2", layout=Layout())
        collection.upsert(data.names(1_000), data.clustered(1_000, 256, seed=9))
        sizes = collection.sizes()
        assert sizes.table >= 1_000 * 256 * 4
        assert sizes.index == 0

    def test_nothing_of_a_collection_leaks_into_another(self, store: Store) -> None:
        one, other = (store.create(name, dim=2, metric="l2") for name in ("one", "other"))
        one.upsert(["a", "b"], [[1, 0], [2, 0]], metadata=[{"in": "one"}] * 2)
        other.upsert(["a"], [[9, 9]], metadata=[{"in": "other"}])
        assert other.delete(["b"]) == 0
        assert other.delete(where={"in": "one"}) == 0
        assert one.count() == 2
        assert [hit.id for hit in other.search([1, 0], k=5)] == ["a"]
        assert content(other, ["a", "b"]) == {
            "a": (np.array([9, 9], dtype=np.float32).tobytes(), None, {"in": "other"})
        }
        assert oracle.rows(one.get(["a"]))["a"][2] == {"in": "one"}
