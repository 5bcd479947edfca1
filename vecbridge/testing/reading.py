"""Reading everything: each record once, as `get` gives it, and no more in memory than one batch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from ..backends import PART_BYTES
from ..checks import ID_BYTES
from ..errors import FilterError
from ..filters import matches, parse
from ..store import Collection, Store
from ..types import Batch, Layout
from . import data
from .base import Base, Library


class ReadingTests(Base):
    """Reading everything: each record once, as `get` gives it, and no more in memory than one batch."""

    @pytest.fixture(scope="class")
    @classmethod
    def mixture(cls, shared: Store) -> Collection:
        """Records of every kind of text and metadata; no test writes to it."""
        texts = list(data.ODD_TEXT.values())
        values = list(data.ODD_VALUES.values())
        count = 3 * max(len(texts), len(values))
        ids = [*texts, "x" * ID_BYTES, "🦄" * (ID_BYTES // 4), *data.names(count - len(texts) - 2)]
        vectors = (
            data.clustered(count, 48, seed=31) * np.linspace(1e-3, 1e3, count, dtype=np.float32)[:, None]
        )
        collection = shared.create("mixture", dim=48)
        collection.upsert(
            ids,
            vectors,
            documents=[
                None if row % 5 == 0 else ("" if row % 7 == 0 else texts[row % len(texts)])
                for row in range(count)
            ],
            metadata=[
                {} if row % 6 == 0 else {"row": row, "odd": values[row % len(values)]} for row in range(count)
            ],
            digests=[None if row % 3 == 0 else bytes([row % 256]) * (row % 33) for row in range(count)],
        )
        return collection

    def test_a_scan_gives_every_record_as_get_does(self, mixture: Collection) -> None:
        there = dict(_records(mixture.scan()))
        assert len(there) == mixture.count()
        got = mixture.get(there)
        assert there == dict(_records([got]))
        # as text, too: for Python, 1 and 1.0 and True are equal
        for name, note in zip(got.ids, got.metadata, strict=True):
            assert json.dumps(there[name][2], sort_keys=True) == json.dumps(note, sort_keys=True)

    def test_a_scan_without_vectors_gives_all_the_rest(self, mixture: Collection) -> None:
        batches = list(mixture.scan(vectors=False))
        for batch in batches:
            assert batch.vectors.shape == (len(batch), 0)
            assert batch.vectors.dtype == np.float32
        there = {name: row[1:] for name, row in _records(batches)}
        assert there == {name: row[1:] for name, row in _records(mixture.scan())}

    @pytest.mark.parametrize("vectors", [True, False])
    def test_a_scan_of_nothing_is_empty(self, store: Store, library: Library, vectors: bool) -> None:
        assert list(store.create("papers", dim=2).scan(vectors=vectors)) == []
        nowhere = library.collection.scan(where={"topic": "none of them"}, vectors=vectors)
        assert list(nowhere) == []

    @pytest.mark.parametrize(
        "where",
        [
            {"even": True},
            {"row": {"$gte": 290}},
            {"topic": {"$in": ["topic 1", "topic 5"]}, "row": {"$lt": 100}},
            {"$or": [{"row": 3}, {"even": False}]},
            {"nothing": None},
            {"row": {"$in": list(range(0, 300, 3))}},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("vectors", [True, False])
    def test_a_filtered_scan_gives_what_matches(
        self, library: Library, where: dict[str, Any], vectors: bool
    ) -> None:
        condition = parse(where)
        met = list(library.collection.scan(where=where, vectors=vectors))
        there = {name: row[2] for name, row in _records(met)}
        assert there == {
            name: note
            for name, note in zip(library.ids, library.metadata, strict=True)
            if matches(condition, note)
        }
        if vectors:
            for batch in met:
                assert batch.vectors.tobytes() == library.collection.get(batch.ids).vectors.tobytes()

    def test_a_scan_finds_by_metadata_of_every_kind(self, mixture: Collection) -> None:
        everything = dict(_records(mixture.scan(vectors=False)))
        for name, value in data.ODD_VALUES.items():
            if isinstance(value, list | dict | float) or value is None:
                continue
            where = {"odd": value}
            condition = parse(where)
            there = {id for id, row in everything.items() if matches(condition, row[2])}
            assert there, name
            assert {id for id, _ in _records(mixture.scan(where=where))} == there, name

    def test_a_bad_filter_is_refused_before_anything_is_read(self, library: Library) -> None:
        with pytest.raises(FilterError, match=r"\$near"):
            library.collection.scan(where={"row": {"$near": 1}})

    def test_batches_are_bounded_however_long_the_vectors_are(self, store: Store) -> None:
        rows, dim = 2_500, 1_024
        vectors = np.random.default_rng(32).standard_normal((rows, dim)).astype(np.float32)
        ids = data.names(rows)
        collection = store.create("papers", dim=dim, metric="ip", layout=Layout())
        collection.upsert(ids, vectors)
        where = {name: row for row, name in enumerate(ids)}
        met: list[str] = []
        parts = 0
        for batch in collection.scan():
            assert batch.vectors.nbytes <= 1.5 * PART_BYTES
            assert batch.vectors.flags.c_contiguous
            assert batch.vectors.tobytes() == vectors[[where[name] for name in batch.ids]].tobytes()
            met += batch.ids
            parts += 1
        assert sorted(met) == ids
        assert parts > 1

    def test_batches_are_bounded_however_long_the_texts_are(self, store: Store) -> None:
        rows = 600
        collection = store.create("papers", dim=2, metric="l2", layout=Layout())
        # some are a hundred times as long as the others
        lengths = [2_000_000 if row % 50 == 0 else 20_000 for row in range(rows)]
        for start in range(0, rows, 100):
            some = range(start, start + 100)
            collection.upsert(
                data.names(100, start=start),
                np.ones((100, 2)),
                documents=["a" * lengths[row] if row % 2 == 0 else None for row in some],
                metadata=[{"text": "b" * lengths[row]} if row % 2 else {} for row in some],
            )
        met = 0
        sizes = []
        for batch in collection.scan(vectors=False):
            met += len(batch)
            texts = sum(len(text or "") for text in batch.documents)
            sizes.append(texts + sum(len(json.dumps(note)) for note in batch.metadata))
        assert met == rows
        assert max(sizes) <= 4 * PART_BYTES
        assert len(sizes) > 2

    def test_a_scan_goes_on_while_records_come_and_go_between_its_batches(self, store: Store) -> None:
        """What stays is met once, as it is; what is written, replaced or deleted meanwhile, at most once."""
        rows = 12_000
        ids = data.names(rows)
        collection = store.create("papers", dim=2, metric="l2", layout=Layout())
        for start in range(0, rows, 4_000):
            some = range(start, start + 4_000)
            collection.upsert(ids[start : start + 4_000], [[row, 1] for row in some])
        order = np.random.default_rng(33).permutation(rows // 10) * 10
        going, changing = [ids[row] for row in order], [ids[row + 1] for row in order]
        turns = 0

        def batches() -> Iterator[Batch]:
            nonlocal turns
            for batch in collection.scan():
                yield batch
                some = slice(100 * turns, 100 * turns + 100)
                assert collection.delete(going[some]) == len(going[some])
                fresh = [f"{name} {turns}" for name in going[some]]
                collection.upsert(changing[some] + fresh, np.zeros((len(changing[some]) + len(fresh), 2)))
                turns += 1

        met = {name: np.frombuffer(row[0], np.float32).tolist() for name, row in _records(batches())}
        assert turns > 1, "12,000 records came at a time"
        staying = [row for row in range(rows) if row % 10 > 1]
        assert {ids[row]: met.get(ids[row]) for row in staying} == {ids[row]: [row, 1] for row in staying}
        fresh = {f"{name} {turn}" for turn in range(turns) for name in going[100 * turn : 100 * turn + 100]}
        assert set(met) <= {*ids, *fresh}
        for name in changing:
            if name in met:
                assert met[name] in ([0, 0], [ids.index(name), 1])

    def test_what_has_been_met_can_be_deleted_between_two_batches(self, store: Store) -> None:
        rows = 9_000
        collection = store.create("papers", dim=2, metric="l2", layout=Layout())
        collection.upsert(data.names(rows), np.ones((rows, 2)), metadata=[{"n": n % 2} for n in range(rows)])
        met = 0
        for batch in collection.scan(where={"n": 1}, vectors=False):
            met += collection.delete(batch.ids)
        assert met == rows // 2
        assert collection.count() == rows // 2

    def test_scans_that_are_left_hold_nothing(self, store: Store) -> None:
        """More of them than a store has connections, each after its first batch."""
        collection = store.create("papers", dim=2, metric="l2", layout=Layout())
        for start in range(0, 12_000, 4_000):
            collection.upsert(data.names(4_000, start=start), np.ones((4_000, 2)))
        begun = [collection.scan(vectors=row % 2 == 0) for row in range(20)]
        firsts = [next(scan) for scan in begun]
        assert all(0 < len(batch) < 12_000 for batch in firsts)
        # they stand where they stood while everything else goes on
        collection.upsert(["new"], [[0, 0]])
        assert collection.count() == 12_001
        del begun[5:]
        first, scan = firsts[0], begun[0]
        assert len({*first.ids, *(name for batch in scan for name in batch.ids)}) >= 12_000

    def test_a_scan_of_a_collection_laid_out_anew_before_it_begins_reads_the_new_one(
        self, store: Store
    ) -> None:
        collection = store.create("papers", dim=2, metric="l2", layout=Layout())
        collection.upsert(["a"], [[1, 2]])
        asleep, begun = store.open("papers"), store.open("papers").scan()
        collection.replan(layout=Layout())
        for scan in (asleep.scan(), begun):
            assert {name: row[0] for name, row in _records(scan)} == {
                "a": np.array([1, 2], np.float32).tobytes()
            }


def _records(
    batches: Iterable[Batch],
) -> Iterator[tuple[str, tuple[bytes, str | None, dict[str, Any], bytes | None]]]:
    """Every record with its vector's bytes, document, metadata and digest; fails where one comes twice."""
    met: set[str] = set()
    for batch in batches:
        assert len(batch), "an empty batch"
        assert not met & set(batch.ids), "a record came twice"
        met.update(batch.ids)
        assert len(set(batch.ids)) == len(batch) == len(batch.vectors)
        columns = (batch.documents, batch.metadata, batch.digests)
        for row, (name, document, note, digest) in enumerate(zip(batch.ids, *columns, strict=True)):
            yield name, (batch.vectors[row].tobytes(), document, dict(note), digest)
