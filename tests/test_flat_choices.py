"""What a filter let through is kept between searches of flat storage, and is never out of date."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecbridge.backends.flat import FlatBackend, FlatTable, choices, connect, sql
from vecbridge.filters import Filter, matches, parse
from vecbridge.manifest import Manifest
from vecbridge.types import Batch, Layout, Space

DIM = 4
FILTERS: list[dict[str, Any]] = [
    {"topic": "a"},
    {"topic": {"$in": ["b", "c"]}},
    {"n": {"$lt": 3}},
    {"tags": "x"},
    {"topic": {"$ne": "a"}},
    {"topic": {"$icontains": "A"}},
    {"$or": [{"n": 1}, {"missing": {"$exists": True}}]},
]


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[FlatBackend]:
    made = connect(f"flat:{tmp_path / 'data'}")
    yield made
    made.close()


@pytest.fixture
def papers(backend: FlatBackend) -> FlatTable:
    return backend.create(Manifest(name="papers", space=Space(DIM, "l2"), layout=Layout(), rows=1000))


def batch(metadata: dict[str, dict[str, Any]]) -> Batch:
    n = len(metadata)
    return Batch(
        ids=list(metadata),
        vectors=np.arange(n * DIM, dtype=np.float32).reshape(n, DIM),
        documents=[None] * n,
        metadata=list(metadata.values()),
        digests=[None] * n,
    )


def found(papers: FlatTable, where: dict[str, Any]) -> set[str]:
    queries = np.zeros((1, DIM), np.float32)
    return {hit.id for hit in papers.search(queries, None, k=10_000, where=parse(where), exact=True)[0]}


def expected(there: dict[str, dict[str, Any]], where: dict[str, Any]) -> set[str]:
    return {id for id, one in there.items() if matches(parse(where), one)}


@pytest.mark.parametrize("seed", range(6))
def test_filters_find_what_is_there_whatever_was_written_replaced_deleted_and_compacted(
    backend: FlatBackend, papers: FlatTable, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("vecbridge.backends.flat.table._DEAD", 20)  # compacts often
    chance = random.Random(seed)
    handles = [papers, backend.open("papers")]
    there: dict[str, dict[str, Any]] = {}
    compacted = set()
    for _ in range(60):
        writer = chance.choice(handles)
        if chance.random() < 0.6 or not there:
            some = {
                f"r{chance.randrange(120)}": {
                    "topic": chance.choice("abc"),
                    "n": chance.randrange(6),
                    "tags": chance.sample("xyz", 2),
                }
                for _ in range(chance.randrange(1, 30))
            }
            writer.write(batch(some))
            there |= some
        elif chance.random() < 0.7:
            ids = chance.sample(sorted(there), min(len(there), chance.randrange(1, 30)))
            writer.delete(ids)
            there = {id: one for id, one in there.items() if id not in ids}
        else:
            where = chance.choice(FILTERS)
            writer.delete_where(parse(where))
            gone = expected(there, where)
            there = {id: one for id, one in there.items() if id not in gone}
        for table in handles:
            for where in chance.sample(FILTERS, 3):
                assert found(table, where) == expected(there, where)
        with papers._snapshot() as (_, state, _):
            compacted.add(state.generation)
    assert len(compacted) > 2  # else nothing of that was tried


def test_a_filter_looks_at_each_record_once(papers: FlatTable, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def counting(where: Filter, metadata: dict[str, Any]) -> bool:
        asked.append(metadata["n"])
        return matches(where, metadata)

    monkeypatch.setattr(sql, "matches", counting)
    where = {"topic": {"$icontains": "A"}}
    papers.write(batch({f"r{n}": {"topic": "ab"[n % 2], "n": n} for n in range(20)}))
    for _ in range(3):
        assert found(papers, where) == {f"r{n}" for n in range(0, 20, 2)}
    assert asked == list(range(20))
    papers.write(batch({f"r{n}": {"topic": "a", "n": n} for n in range(18, 23)}))
    asked.clear()
    for _ in range(2):
        assert found(papers, where) == {f"r{n}" for n in [*range(0, 20, 2), *range(18, 23)]}
    assert asked == list(range(18, 23))


def test_filters_that_python_calls_equal_are_not_one(papers: FlatTable) -> None:
    values: list[Any] = [1, True, "1", 1.5]
    papers.write(batch({f"r{n}": {"v": value} for n, value in enumerate(values)}))
    for n, value in enumerate(values):
        assert found(papers, {"v": value}) == {f"r{n}"}
    assert found(papers, {"v": 1.0}) == {"r0"}


def test_a_moment_before_a_change_still_sees_what_was_there(papers: FlatTable) -> None:
    papers.write(batch({f"r{n}": {"topic": "a"} for n in range(10)}))
    where = parse({"topic": "a"})
    with papers._snapshot() as (connection, state, vectors):
        papers.delete(["r0", "r1"])
        papers.write(batch({"r10": {"topic": "a"}}))
        assert found(papers, {"topic": "a"}) == {f"r{n}" for n in range(2, 11)}
        at = papers._choices.positions(connection, state, vectors, where)
        assert at is not None
        assert at.tolist() == list(range(10))
    assert found(papers, {"topic": "a"}) == {f"r{n}" for n in range(2, 11)}


def test_what_is_kept_is_bounded(papers: FlatTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "_KEPT", 2_000)
    papers.write(batch({f"r{n:03}": {"n": n} for n in range(100)}))
    for n in [*range(0, 100, 5), *range(0, 100, 5)]:
        assert found(papers, {"n": {"$lt": n}}) == {f"r{m:03}" for m in range(n)}
        kept = papers._choices
        assert kept._size == sum(len(key) + one.rows.nbytes for key, one in kept._kept.items()) <= 2_000
    papers.close()
    assert not kept._kept
