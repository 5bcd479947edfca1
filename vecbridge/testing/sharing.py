"""Several users at once: threads on one store, and two stores on one place."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from ..store import connect
from ..types import Layout
from . import data, oracle
from .base import Base

_READERS = 8


class SharingTests(Base):
    """Several users at once: threads on one store, and two stores on one place."""

    def test_two_stores_on_one_place_see_each_others_writes(self, store_url: str) -> None:
        with connect(store_url) as one, connect(store_url) as other:
            here = one.create("papers", dim=2, metric="l2")
            assert other.collections() == ["papers"]
            there = other.open("papers")
            for turn in range(5):
                here.upsert([f"a{turn}", "both"], [[turn, 0], [turn, 1]])
                assert there.count() == 2 * turn + 2
                assert there.get(["both"]).vectors.tolist() == [[turn, 1]]
                there.upsert([f"b{turn}", "both"], [[turn, 2], [turn, 3]])
                assert here.get(["both"]).vectors.tolist() == [[turn, 3]]
                assert here.search([turn, 2], k=1)[0].id == f"b{turn}"
            assert there.delete(["both"]) == 1
            assert here.delete(["both"]) == 0
            assert here.count() == 10
            other.drop("papers")
            assert one.collections() == []

    def test_eight_threads_search_while_one_writes(self, store_url: str) -> None:
        """Every write moves all records together; no search or get may see some moved and some not."""
        rows, turns = 64, 25
        ids = data.names(rows)
        done = threading.Event()
        with connect(store_url) as store:
            collection = store.create("papers", dim=8, metric="l2", layout=Layout())

            def write(turn: int) -> None:
                texts, notes = [f"turn {turn}"] * rows, [{"turn": turn}] * rows
                collection.upsert(ids, np.full((rows, 8), turn), documents=texts, metadata=notes)

            def read(number: int) -> int:
                calls, last = 0, -1
                while not done.is_set() or not calls:
                    if number % 4 == 3:
                        batch = collection.get(ids)
                        seen = {float(value) for value in batch.vectors.ravel()}
                        told = {float(note["turn"]) for note in batch.metadata}
                        assert len(batch) == rows
                    elif number % 4 == 2:
                        assert collection.count() == rows
                        seen = told = {float(last)}
                    else:
                        hits = collection.search(np.zeros(8), k=rows)
                        assert len(hits) == rows
                        # the distance from the origin of (t, t, … t), eight times, is t times the root of 8
                        seen = {round(-hit.score / np.sqrt(8), 3) for hit in hits}
                        told = {float(hit.metadata["turn"]) for hit in hits}
                        assert {hit.document for hit in hits} == {f"turn {int(turn)}" for turn in told}
                    assert seen == told, "vector and metadata are of different writes"
                    assert len(seen) == 1, "a write was seen half done"
                    assert max(seen) >= last, "a search went back in time"
                    last, calls = int(max(seen)), calls + 1
                return calls

            write(0)
            with ThreadPoolExecutor(_READERS) as pool:
                readers = [pool.submit(read, number) for number in range(_READERS)]
                try:
                    for turn in range(1, turns):
                        write(turn)
                finally:
                    done.set()
                assert all(reader.result() > 0 for reader in readers)
            assert collection.count() == rows
            assert set(collection.get(ids).vectors.ravel().tolist()) == {turns - 1}

    def test_threads_that_write_different_records_lose_none(self, store_url: str) -> None:
        with connect(store_url) as store:
            collection = store.create("papers", dim=4, metric="l2")

            def write(number: int) -> None:
                for part in range(10):
                    start = number * 1_000 + part * 10
                    collection.upsert(data.names(10, start=start), np.full((10, 4), number))
                    collection.delete(data.names(2, start=start))

            self._together([partial(write, number) for number in range(4)])
            assert collection.count() == 4 * 10 * 8
            for number in range(4):
                found = collection.get(data.names(100, start=number * 1_000))
                assert len(found) == 80
                assert set(found.vectors.ravel().tolist()) == {number}

    def test_an_inventory_is_whole_while_threads_write_and_delete(self, store_url: str) -> None:
        ids = data.names(6_000)
        done = threading.Event()
        with connect(store_url) as store:
            collection = store.create("papers", dim=2, metric="l2", layout=Layout())
            collection.upsert(ids, np.ones((len(ids), 2)), digests=[name.encode() for name in ids])

            def write(number: int) -> int:
                turns = 0
                # ids that lie among those that stay
                others = [f"{name} {number}" for name in ids[::100]]
                while not done.is_set() or not turns:
                    collection.upsert(others, np.zeros((len(others), 2)))
                    assert collection.delete(others) == len(others)
                    turns += 1
                return turns

            with ThreadPoolExecutor(2) as pool:
                writers = [pool.submit(write, number) for number in range(2)]
                try:
                    for _ in range(3):
                        met = oracle.inventory(collection.inventory())
                        assert {name: met.get(name) for name in ids} == {name: name.encode() for name in ids}
                finally:
                    done.set()
                assert all(writer.result() > 0 for writer in writers)
            assert set(oracle.inventory(collection.inventory())) == set(ids)

    def test_threads_that_write_the_same_records_leave_one_of_their_states(self, store_url: str) -> None:
        ids = data.names(40)
        with connect(store_url) as store:
            collection = store.create("papers", dim=4, metric="l2")

            def write(number: int) -> None:
                order = ids if number % 2 else ids[::-1]
                for _ in range(8):
                    collection.upsert(order, np.full((40, 4), number), metadata=[{"by": number}] * 40)

            self._together([partial(write, number) for number in range(4)])
            assert collection.count() == 40
            batch = collection.get(ids)
            assert len(set(batch.vectors.ravel().tolist())) == 1
            assert {note["by"] for note in batch.metadata} == set(batch.vectors.ravel().tolist())

    def test_of_threads_that_create_one_name_one_wins(self, store_url: str) -> None:
        with connect(store_url) as store:
            won: list[int] = []
            lost: list[str] = []

            def create(number: int) -> None:
                try:
                    store.create("papers", dim=4 + number)
                    won.append(number)
                except Exception as error:  # noqa: BLE001 - its kind is asserted below
                    lost.append(type(error).__name__)

            self._together([partial(create, number) for number in range(4)])
            assert len(won) == 1
            assert lost == ["CollectionExists"] * 3
            assert store.open("papers").space.dim == 4 + won[0]

    @staticmethod
    def _together(calls: list[Callable[[], None]]) -> None:
        with ThreadPoolExecutor(len(calls)) as pool:
            for future in [pool.submit(call) for call in calls]:
                future.result()
