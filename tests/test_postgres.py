"""The PostgreSQL backend on real servers: records, filters, rights, lost connections."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import psycopg
import pytest
from conftest import Fresh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from vecbridge import filters
from vecbridge.backends.postgres import Postgres, Table, connect
from vecbridge.backends.postgres.copy import to_json
from vecbridge.backends.postgres.filters import compile
from vecbridge.errors import (
    Busy,
    CollectionExists,
    CollectionNotFound,
    FeatureMissing,
    Forbidden,
    ManifestError,
    StoreError,
    Unavailable,
    UrlError,
)
from vecbridge.filters import matches, parse
from vecbridge.manifest import Manifest
from vecbridge.testing.oracle import inventory
from vecbridge.types import Batch, Index, Layout, Metadata, Metric, Space

if TYPE_CHECKING:
    from vecbridge.types import Floats

DIM = 8


def manifest(
    name: str = "papers", layout: Layout | None = None, *, dim: int = DIM, metric: Metric = "cosine"
) -> Manifest:
    return Manifest(name, Space(dim, metric), layout or Layout(), rows=1000)


def vectors(n: int, *, dim: int = DIM, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def batch(
    ids: Sequence[str],
    matrix: Floats | None = None,
    *,
    documents: Sequence[str | None] | None = None,
    metadata: Sequence[Metadata] | None = None,
    digests: Sequence[bytes | None] | None = None,
) -> Batch:
    n = len(ids)
    return Batch(
        ids,
        vectors(n) if matrix is None else matrix,
        documents or [None] * n,
        metadata or [{}] * n,
        digests or [None] * n,
    )


@pytest.fixture
def store(pg: str) -> Iterator[Postgres]:
    backend = connect(pg)
    yield backend
    backend.close()


@pytest.fixture
def table(store: Postgres) -> Table:
    return store.create(manifest())


def admin(url: str, *statements: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def end_connections(url: str) -> None:
    admin(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'vecbridge' AND datname = current_database()",
    )


# records


def test_records_come_back_byte_for_byte(table: Table) -> None:
    hostile = [
        "'; DROP TABLE x; --",
        '"',
        "\\",
        "ä\u202e\U0001f9ea",
        " ",
        "x" * 1024,
        "%s",
        "{}",
        "\t\n\r\x01",
    ]
    digests = [bytes([number]) * 32 for number in range(len(hostile))]
    metadata: list[Metadata] = [{text: [text, {text: 1.5}]} for text in hostile]
    written = batch(hostile, documents=hostile, metadata=metadata, digests=digests)
    table.write(written)
    read = table.read([*hostile, "missing"])
    assert list(read.ids) == hostile
    assert list(read.documents) == hostile
    assert list(read.metadata) == metadata
    assert list(read.digests) == digests
    assert np.array_equal(read.vectors, written.vectors)
    assert read.vectors.dtype == np.float32
    assert table.digests([*hostile, "missing"]) == dict(zip(hostile, digests, strict=True))


def test_a_document_of_10_MB_comes_back_whole(table: Table) -> None:
    document = "".join(map(chr, range(0x20, 0x5000))) * 250
    assert len(document.encode()) > 10_000_000
    table.write(batch(["a", "b"], documents=[document, None]))
    assert list(table.read(["b", "a"]).documents) == [None, document]


def test_numbers_come_back_with_their_type_and_value(table: Table) -> None:
    numbers = [1e23, 1e16, 1.2345678901234567e18, 5e-324, 1.7976931348623157e308, 0.1, 1.0, 1, -(2**63), True]
    table.write(batch(["a"], metadata=[{"n": numbers}]))
    back = table.read(["a"]).metadata[0]["n"]
    assert back == numbers
    assert list(map(type, back)) == list(map(type, numbers))


def test_writing_the_same_ids_again_replaces_and_does_not_grow(table: Table) -> None:
    first, second = vectors(3, seed=1), vectors(3, seed=2)
    table.write(batch(["a", "b", "c"], first, documents=["1", "2", "3"]))
    table.write(batch(["d", "c", "a"], second, documents=["4", None, "6"]))
    assert table.count() == 4
    read = table.read(["a", "b", "c", "d"])
    assert list(read.documents) == ["6", "2", None, "4"]
    assert np.array_equal(read.vectors, [second[2], first[1], second[1], second[0]])


def test_a_batch_that_fails_leaves_nothing(table: Table) -> None:
    table.write(batch(["a"], documents=["before"]))
    for ids in (["b", "a"], ["x", "y"]):
        with pytest.raises(StoreError, match=r"invalid byte sequence|null character"):
            table.write(batch(ids, documents=["fine", "NUL \0"]))
    assert table.count() == 1
    assert list(table.read(["a"]).documents) == ["before"]


def test_deleting_tells_how_many_were_there(table: Table) -> None:
    table.write(batch([str(n) for n in range(10)], metadata=[{"n": n} for n in range(10)]))
    assert table.delete(["1", "2", "none"]) == 2
    assert table.delete_where(parse({"n": {"$gte": 8}})) == 2
    assert table.count() == 6
    assert table.count(parse({"n": {"$lt": 5}})) == 3


def test_a_delete_that_fails_deletes_nothing_however_many_ids_it_has(table: Table, pg: str) -> None:
    there = [f"{n:05}" for n in range(0, 25_000, 1_000)]
    table.write(batch(there))
    admin(
        pg,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION 'not %', OLD.id; END$$",
        "CREATE TRIGGER refuse BEFORE DELETE ON vecbridge_papers FOR EACH ROW "
        "WHEN (OLD.id = '24000') EXECUTE FUNCTION refuse()",
    )
    ids = [f"{n:05}" for n in range(25_000)]
    with pytest.raises(StoreError, match="not 24000"):
        table.delete(ids)
    assert table.count() == len(there)
    admin(pg, "DROP TRIGGER refuse ON vecbridge_papers")
    assert table.delete(ids) == len(there)
    assert table.count() == 0


def filled(table: Table, n: int) -> dict[str, bytes | None]:
    """Write `n` records in no order of their ids; returns their digests."""
    ids = [f"{row:06}" for row in np.random.default_rng(n).permutation(n)]
    digests = [id.encode() * 4 for id in ids]
    table.write(batch(ids, digests=digests))
    return dict(zip(ids, digests, strict=True))


def test_an_inventory_runs_on_the_primary_key_whatever_the_planner_would_prefer(pg: str) -> None:
    """Else each part would read and sort the whole table."""
    # dear random reads, as for slow disks, speak against an index
    admin(pg, f'ALTER DATABASE "{_database(pg)}" SET random_page_cost = 1000')
    store = connect(pg)
    try:
        table = store.create(manifest())
        there = filled(table, 30_000)
        admin(pg, "ANALYZE vecbridge_papers")

        def scans() -> tuple[int, int]:
            table.run(lambda connection: connection.execute("SELECT pg_stat_force_next_flush()"))
            found = admin(
                pg, "SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 'vecbridge_papers'"
            )
            return int(found[0][0]), int(found[0][1])

        whole, by_key = scans()
        for _ in range(2):
            # twice, so that the statement is prepared and planned for any values
            assert inventory(table.inventory()) == there
        after = scans()
        assert after[0] == whole
        assert after[1] >= by_key + 2 * 6
    finally:
        store.close()


def test_digests_of_more_ids_than_one_statement_takes_are_all_found(table: Table) -> None:
    there = filled(table, 25_000)
    assert table.digests([*there, "missing"]) == there


def test_between_the_parts_of_an_inventory_nothing_is_held(table: Table, pg: str) -> None:
    there = filled(table, 12_000)
    met: list[list[tuple[str, bytes | None]]] = []
    for part in table.inventory():
        met.append(part)
        running = admin(
            pg,
            "SELECT state, query FROM pg_stat_activity WHERE application_name = 'vecbridge' "
            "AND datname = current_database() AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL)",
        )
        assert running == []
        locks = admin(
            pg, "SELECT count(*) FROM pg_locks WHERE relation = 'vecbridge_papers'::regclass AND granted"
        )
        assert locks == [(0,)]
        end_connections(pg)
    assert len(met) > 2
    assert inventory(met) == there


def test_a_collection_dropped_between_two_parts_of_an_inventory_is_not_found(
    store: Postgres, table: Table
) -> None:
    filled(table, 6_000)
    parts = table.inventory()
    assert len(next(parts)) < 6_000
    store.drop("papers")
    with pytest.raises(CollectionNotFound, match="'papers' has been dropped"):
        next(parts)


def test_a_sample_depends_on_the_seed_alone(table: Table) -> None:
    table.write(batch([str(n) for n in range(50)], documents=[str(n) for n in range(50)]))
    one = table.sample(10, seed=1)
    assert list(one.ids) == list(table.sample(10, seed=1).ids)
    assert set(one.ids) != set(table.sample(10, seed=2).ids)
    assert list(one.ids) == list(one.documents)
    assert len(table.sample(100, seed=-(2**80)).ids) == 50
    assert len(table.sample(0, seed=0)) == 0


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("element", ["float32", "float16"])
def test_exact_search_agrees_with_brute_force(store: Postgres, metric: Metric, element: Any) -> None:
    table = store.create(manifest(layout=Layout(element=element), metric=metric))
    matrix = vectors(200)
    if element == "float16":
        matrix = matrix.astype(np.float16).astype(np.float32)
    table.write(batch([f"{n:03}" for n in range(200)], matrix))
    queries = matrix[:5] * np.float32(2)
    for query, hits in zip(queries, table.search(queries, None, k=7, where=None, exact=True), strict=True):
        scores = matrix @ query
        if metric == "cosine":
            scores = scores / np.linalg.norm(matrix, axis=1) / np.linalg.norm(query)
        elif metric == "l2":
            scores = -np.linalg.norm(matrix - query, axis=1)
        best = np.argsort(-scores)[:7]
        assert [hit.id for hit in hits] == [f"{n:03}" for n in best]
        assert [hit.score for hit in hits] == pytest.approx(scores[best], rel=1e-5, abs=1e-5)


def test_equal_scores_are_ordered_by_id_in_code_points(table: Table) -> None:
    ids = ["b", "\uffff", "a", "\U0001f9ea", "B", "ä"]
    table.write(batch(ids, np.ones((6, DIM), np.float32)))
    hits = table.search(np.ones((1, DIM), np.float32), None, k=6, where=None, exact=True)[0]
    assert [hit.id for hit in hits] == sorted(ids)


def test_an_empty_collection_is_searched_and_more_hits_than_rows_are_all_rows(table: Table) -> None:
    query = np.ones((1, DIM), np.float32)
    assert table.search(query, None, k=5, where=None, exact=False) == [[]]
    table.write(batch(["a", "b"]))
    assert len(table.search(query, None, k=5, where=None, exact=False)[0]) == 2
    assert table.search(query[:0], None, k=5, where=None, exact=False) == []


# filters

KEYS = st.sampled_from(["a", "b", "a b", "'", '"', "\\", "0", "ä", "$", "%s", "{}"])
TEXTS = st.sampled_from(
    ["", "a", "b", "A", "ä", "\uffff", "\U0001f9ea", "'", '"', "\\", "1", "true", "%s", "\u202e"]
)
EXTREMES = [0.5, -0.5, 1.0, 1e16, 1e23, 10**18, 1.2345678901234567e18, 2**63 - 1, -(2**63), 0.1, 5e-324]
NUMBERS = st.integers(-3, 3) | st.sampled_from(EXTREMES)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)
PATHS = st.lists(KEYS, min_size=1, max_size=2).map(tuple)


def _tests() -> st.SearchStrategy[filters.Filter]:
    bounds = st.tuples(PATHS, st.sampled_from(["gt", "gte", "lt", "lte"]), NUMBERS | TEXTS)
    equal = st.tuples(PATHS, st.just("eq"), VALUES)
    exists = st.tuples(PATHS, st.just("exists"), st.none())
    inside = st.tuples(PATHS, st.sampled_from(["contains", "icontains"]), TEXTS)
    return (bounds | equal | exists | inside).map(lambda parts: filters.Test(*parts))  # type: ignore[arg-type]  # a sampled operator is str to mypy


TREES = st.recursive(
    _tests(),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: filters.And(tuple(parts)))
        | st.lists(inner, max_size=3).map(lambda parts: filters.Or(tuple(parts)))
        | inner.map(filters.Not)
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def scratch(pg18: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    with psycopg.connect(pg18) as connection:
        connection.execute("CREATE TEMP TABLE records (number int, metadata jsonb)")
        yield connection
        connection.rollback()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(objects=st.lists(OBJECTS, min_size=1, max_size=12), trees=st.lists(TREES, min_size=1, max_size=12))
def test_a_compiled_filter_means_what_matches_says(
    scratch: psycopg.Connection[tuple[Any, ...]], objects: list[Metadata], trees: list[filters.Filter]
) -> None:
    scratch.execute("DELETE FROM records")
    with scratch.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO records VALUES (%s, %s)", [(n, to_json(one)) for n, one in enumerate(objects)]
        )
    for tree in trees:
        condition, values = compile(tree)
        rows = scratch.execute(sql.SQL("SELECT number, {} FROM records").format(condition), values).fetchall()
        assert dict(rows) == {n: matches(tree, one) for n, one in enumerate(objects)}


def test_a_filter_with_twenty_thousand_choices_works(table: Table) -> None:
    table.write(batch(["a", "b"], metadata=[{"n": 19_999}, {"n": -1}]))
    assert table.count(parse({"n": {"$in": list(range(20_000))}})) == 1
    assert table.count(parse({"n": {"$nin": list(range(20_000))}})) == 1


# collections


def test_a_collection_is_opened_with_what_it_was_created_with(store: Postgres, pg: str) -> None:
    assert store.names() == []
    made = store.create(manifest("b-1", Layout(index=Index("hnsw", "float16"))))
    store.create(manifest("Ä".encode().hex()))
    assert store.names() == ["b-1", "c384"]
    other = connect(pg)
    assert other.open("b-1").manifest.dump() == made.manifest.dump()
    other.close()
    with pytest.raises(CollectionExists, match=r"'b-1' is in .* already"):
        store.create(manifest("b-1"))
    store.drop("b-1")
    assert store.names() == ["c384"]
    for missing in (store.open, store.drop):
        with pytest.raises(CollectionNotFound, match="no collection 'b-1'"):
            missing("b-1")
    with pytest.raises(CollectionNotFound, match="'b-1' has been dropped"):
        made.count()


def test_names_that_look_like_our_own_are_ordinary_names(store: Postgres) -> None:
    names = [
        "collections",
        "papers",
        "papers_index",
        "papers_idx",
        "papers_pkey",
        "staging",
        "Papers",
        "x" * 48,
    ]
    for name in names:
        table = store.create(manifest(name, Layout(index=Index("hnsw"))))
        table.write(batch([name]))
        table.build_index(None)
    assert store.names() == sorted(names)
    for name in names:
        assert list(store.open(name).read([name]).ids) == [name]
        store.drop(name)


def test_a_table_that_is_no_collection_is_left_alone(store: Postgres, pg: str) -> None:
    admin(pg, "CREATE TABLE vecbridge_papers (precious int)")
    with pytest.raises(CollectionExists, match="a table vecbridge_papers that is no collection's"):
        store.create(manifest())
    assert store.names() == []
    assert admin(pg, "SELECT count(*) FROM vecbridge_papers") == [(0,)]


def test_schemas_hold_collections_apart(pg: str) -> None:
    one, other = connect(f"{pg}&schema=one"), connect(f"{pg}&schema=The%20%22other%22")
    one.create(manifest()).write(batch(["a"]))
    other.create(manifest()).write(batch(["a", "b"]))
    assert (one.open("papers").count(), other.open("papers").count()) == (1, 2)
    one.drop("papers")
    assert (one.names(), other.names()) == ([], ["papers"])
    one.close()
    other.close()


def test_the_extension_may_live_in_a_schema_that_no_search_path_names(pg: str) -> None:
    admin(pg, 'CREATE SCHEMA "Ext ""x"', 'CREATE EXTENSION vector SCHEMA "Ext ""x"')
    store = connect(pg)
    table = store.create(manifest(layout=Layout(index=Index("hnsw", "float16"))))
    table.write(batch([str(n) for n in range(50)]))
    table.build_index(None)
    table.build_index(None)
    assert table.index_state().used
    assert len(table.search(vectors(1), None, k=5, where=None, exact=False)[0]) == 5
    assert len(store.open("papers").read(["1"])) == 1
    store.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ALTER TABLE vecbridge_papers DROP COLUMN embedding", r"embedding is missing, expected vector\(8\)"),
        ("ALTER TABLE vecbridge_papers ALTER embedding TYPE vector(9)", r"is vector\(9\) EXTERNAL, expected"),
        ("ALTER TABLE vecbridge_papers ALTER embedding SET STORAGE PLAIN", r"PLAIN, expected .* EXTERNAL"),
        ("ALTER TABLE vecbridge_papers ALTER metadata TYPE text", "metadata is text, expected jsonb"),
        ("DROP TABLE vecbridge_papers", "lost its table vecbridge_papers"),
        ("DROP EXTENSION vector CASCADE", "embedding is missing"),
    ],
)  # fmt: skip
def test_a_table_unlike_its_manifest_is_not_opened(
    store: Postgres, table: Table, pg: str, change: str, said: str
) -> None:
    admin(pg, change)
    with pytest.raises(ManifestError, match=said):
        store.open("papers")


def test_two_processes_create_the_same_name_and_one_wins(pg: str) -> None:
    program = (
        "import sys\n"
        "from vecbridge.backends.postgres import connect\n"
        "from vecbridge.errors import CollectionExists\n"
        "from vecbridge.manifest import Manifest\n"
        "from vecbridge.types import Layout, Space\n"
        "store = connect(sys.argv[1])\n"
        "sys.stdin.readline()\n"
        "try:\n    store.create(Manifest('papers', Space(8), Layout(), 1)); print('made')\n"
        "except CollectionExists: print('there')\n"
        "store.close()\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, pg], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = [process.communicate("\n", timeout=60)[0].strip() for process in running]
    assert sorted(said) == ["made", "there", "there"]


def test_drop_waits_for_a_reader_only_so_long(
    store: Postgres, table: Table, pg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecbridge.backends.postgres.succession.PATIENCE", 0.2)
    with psycopg.connect(pg) as reader:
        reader.execute("SELECT count(*) FROM vecbridge_papers")
        with pytest.raises(Busy, match="another process holds the collection"):
            store.drop("papers")
    assert store.names() == ["papers"]


# several writers and readers


def test_two_writers_of_the_same_ids_never_fail(table: Table) -> None:
    ids = [f"{n:03}" for n in range(60)]

    def write(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(60)[:40]
        table.write(batch([ids[n] for n in order], documents=[str(seed)] * 40))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(60)))
    assert table.count() == len(set(table.read(ids).ids)) == 60


@pytest.mark.parametrize("other", ["commit", "rollback"])
def test_a_record_that_another_writer_adds_meanwhile_is_replaced(table: Table, pg: str, other: str) -> None:
    table.write(batch(["a", "c"], documents=["old", "old"]))
    written = batch(["c", "b", "a"], vectors(3, seed=1), documents=["new"] * 3)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(pg) as connection:
        connection.execute(
            "INSERT INTO vecbridge_papers (id, embedding, document, metadata) "
            "SELECT 'b', embedding, 'theirs', metadata FROM vecbridge_papers WHERE id = 'a'"
        )
        writing = pool.submit(table.write, written)
        for _ in range(1000):
            waiting = admin(
                pg,
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'COPY%'",
            )
            if waiting == [(1,)]:
                break
            time.sleep(0.01)
        # the record is not there yet for a DELETE, and in the way of a COPY
        assert waiting == [(1,)]
        getattr(connection, other)()
        writing.result(30)
    read = table.read(["c", "b", "a"])
    assert list(read.documents) == ["new"] * 3
    assert np.array_equal(read.vectors, written.vectors)
    assert table.count() == 3


def test_what_refers_to_a_record_stays_when_it_is_replaced(table: Table, pg: str) -> None:
    table.write(batch(["a", "b"], documents=["old", "old"]))
    with psycopg.connect(pg) as connection:
        connection.execute(
            'CREATE TABLE notes (paper text COLLATE "C" REFERENCES vecbridge_papers ON DELETE CASCADE)'
        )
        connection.execute("INSERT INTO notes VALUES ('a')")
    written = batch(["c", "a"], vectors(2, seed=1), documents=["new", "new"])
    table.write(written)
    read = table.read(["c", "a"])
    assert list(read.documents) == ["new", "new"]
    assert np.array_equal(read.vectors, written.vectors)
    assert admin(pg, "SELECT paper FROM notes") == [("a",)]
    table.delete(["a"])
    assert admin(pg, "SELECT count(*) FROM notes") == [(0,)]


def test_searches_go_on_while_rows_are_written_and_deleted(store: Postgres) -> None:
    table = store.create(manifest(layout=Layout(index=Index("hnsw"))))
    table.write(batch([f"{n:03}" for n in range(100)], vectors(100)))
    table.build_index(None)
    stop = threading.Event()

    def search() -> int:
        searches = 0
        while not stop.is_set():
            hits = table.search(vectors(2, seed=searches), None, k=20, where=None, exact=False)
            assert [len(found) for found in hits] == [20, 20]
            searches += 1
        return searches

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(search) for _ in range(8)]
        for turn in range(6):
            table.write(batch([f"{n:03}" for n in range(50, 150)], vectors(100, seed=turn)))
            table.delete([f"{n:03}" for n in range(100, 150)])
        stop.set()
        assert all(one.result() for one in running)
    assert table.count() == 100


# connections


def test_a_lost_connection_is_replaced_unnoticed(table: Table, pg: str) -> None:
    table.write(batch(["a", "b"]))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: table.count(), range(20)))
    query = vectors(1)
    calls = {
        "count": lambda: table.count() == 2,
        "read": lambda: len(table.read(["a"])) == 1,
        "search": lambda: len(table.search(query, None, k=2, where=None, exact=False)[0]) == 2,
        "write": lambda: table.write(batch(["b"])) is None,
        "digests": lambda: table.digests(["a"]) == {},
        "inventory": lambda: len(inventory(table.inventory())) == 2,
        "delete": lambda: table.delete(["a"]) == 1,
    }
    for name, call in calls.items():
        end_connections(pg)
        assert call(), name


def test_a_connection_lost_in_the_middle_of_a_call_is_replaced_too(table: Table, pg: str) -> None:
    table.write(batch(["a"]))
    killed = []

    def work(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
        connection.execute("SELECT 1")
        if not killed:
            killed.append(connection.info.backend_pid)
            admin(pg, f"SELECT pg_terminate_backend({killed[0]})")
            time.sleep(0.1)
        row = connection.execute("SELECT count(*) FROM vecbridge_papers").fetchone()
        assert row is not None
        return int(row[0])

    assert table.run(work) == 1
    assert killed


def test_no_call_leaves_a_setting_behind(store: Postgres) -> None:
    table = store.create(manifest(layout=Layout(index=Index("hnsw", ef_search=77))))
    table.write(batch(["a", "b"]))
    table.build_index(None)
    table.search(vectors(1), None, k=1, where=None, exact=False)
    table.digests(["a"])
    assert len(inventory(table.inventory())) == 2
    assert table.delete(["a"]) == 1

    def left(connection: psycopg.Connection[tuple[Any, ...]]) -> tuple[Any, ...] | None:
        return connection.execute(
            "SELECT current_setting('hnsw.ef_search'), current_setting('enable_seqscan'), "
            "current_setting('enable_sort'), current_setting('jit')"
        ).fetchone()

    assert table.run(left) == ("40", "on", "on", "on")


def test_the_reason_is_told_when_nothing_listens() -> None:
    with pytest.raises(Unavailable, match=r"postgresql://me@127\.0\.0\.1:1/d: .*[Rr]efused"):
        connect("postgresql://me:s3cret@127.0.0.1:1/d")


def test_the_reason_is_told_when_the_host_is_unknown() -> None:
    with pytest.raises(Unavailable, match=r"nowhere\.invalid"):
        connect("postgresql://me:s3cret@nowhere.invalid/d")


def test_the_reason_is_told_when_the_database_is_missing(pg: str) -> None:
    with pytest.raises(Unavailable, match='database "none" does not exist'):
        connect(pg.replace(_database(pg), "none"))


def _database(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


def test_a_password_is_in_no_error_and_no_repr(pg: str) -> None:
    secret = "s3cret%40%2F"
    url = pg.replace("postgres@", f"postgres:{secret}@")
    store = connect(url)
    assert "s3cret" not in f"{store!r} {store.url}"
    with pytest.raises(CollectionNotFound, match="no collection") as caught:
        store.open("none")
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    store.close()
    for bad in (url.replace(_database(pg), "s3cret@/"), f"postgresql://me:{secret}@127.0.0.1:1/d"):
        with pytest.raises((Unavailable, UrlError)) as failed:
            connect(bad)
        assert "s3cret" not in "".join(traceback.format_exception(failed.value))


def test_a_secret_in_the_servers_own_words_is_hidden_and_its_cause_left_out(pg: str) -> None:
    secret = "s3" + "cret"  # as tracebacks quote the lines of this file
    store = connect(pg.replace("postgres@", f"postgres:{secret}@"))
    table = store.create(manifest())
    with pytest.raises(StoreError, match=r"\*\*\*") as caught:
        table.run(lambda connection: connection.execute(sql.Identifier(secret) + sql.SQL(" syntax")))
    assert secret not in "".join(traceback.format_exception(caught.value))
    store.close()


def test_a_closed_store_says_so(store: Postgres, table: Table) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        table.count()


def test_closing_calls_back_once(pg: str) -> None:
    calls: list[int] = []
    store = connect(pg, shown="pgvector:./here", on_close=lambda: calls.append(1))
    assert store.url == "pgvector:./here"
    with pytest.raises(CollectionNotFound, match=r"pgvector:\./here"):
        store.open("none")
    store.close()
    store.close()
    assert calls == [1]


def _child(table: Table, answers: Any) -> None:
    answers.put((table.count(), table.count(parse({"n": 1}))))


@pytest.mark.filterwarnings(
    "ignore:This process:DeprecationWarning"
)  # Python warns of any fork beside threads
def test_a_forked_child_opens_connections_of_its_own(table: Table) -> None:
    table.write(batch(["a", "b"], metadata=[{"n": 1}, {}]))
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=_child, args=(table, answers)) for _ in range(3)]
    for child in children:
        child.start()
    assert [answers.get(timeout=30) for _ in children] == [(2, 1)] * 3
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert table.count() == 2


def test_more_threads_than_connections_take_turns(table: Table, pg: str) -> None:
    table.write(batch(["a"]))
    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(lambda _: table.count(), range(400))) == [1] * 400
    assert admin(
        pg,
        "SELECT count(*) <= 8 FROM pg_stat_activity WHERE application_name = 'vecbridge' "
        "AND datname = current_database()",
    ) == [(True,)]


def test_a_pooler_that_loses_prepared_statements_is_survived(table: Table) -> None:
    table.write(batch(["a"]))
    for _ in range(8):
        table.count()
    # what a pooler in transaction mode does: the session behind the connection is another one
    table.run(lambda connection: connection.execute("DEALLOCATE ALL"))
    for _ in range(8):
        assert table.count() == 1


@contextmanager
def starting(folder: str, refusals: int) -> Iterator[int]:
    """A port that says what a server says while it starts, so many times, and then leads to the real one."""
    message = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
    refusal = b"E" + struct.pack(">i", len(message) + 4) + message

    def serve() -> None:
        for _ in range(refusals):
            with listener.accept()[0] as client:
                client.recv(4096)
                client.sendall(refusal)
        with listener.accept()[0] as client, socket.socket(socket.AF_UNIX) as server:
            server.connect(f"{folder}/.s.PGSQL.5432")
            back = threading.Thread(target=_pass_on, args=(server, client))
            back.start()
            _pass_on(client, server)
            back.join(10)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    while data := one.recv(65_536):
        other.sendall(data)
    other.shutdown(socket.SHUT_WR)


def test_a_server_that_is_still_starting_is_waited_for(pg: str) -> None:
    folder = unquote(pg.partition("host=")[2].partition("&")[0])
    with starting(folder, refusals=4) as port:
        store = connect(
            f"postgresql://postgres@127.0.0.1:{port}/{_database(pg)}?sslmode=disable&gssencmode=disable"
        )
        assert store.names() == []
        store.close()


# rights


@contextmanager
def role(url: str, name: str, *grants: str) -> Iterator[str]:
    name = f"{name}_{os.getpid()}"
    admin(url, f"CREATE ROLE {name} LOGIN", *(grant.format(name) for grant in grants))
    try:
        yield url.replace("postgres@", f"{name}@")
    finally:
        admin(url, f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")


def test_no_right_to_create_the_extension_says_what_a_superuser_runs(pg: str) -> None:
    with role(pg, "plain", "GRANT CREATE ON SCHEMA public TO {}") as url:
        store = connect(url)
        assert store.names() == []
        with pytest.raises(
            Forbidden, match=rf"superuser run CREATE EXTENSION vector; in database {_database(pg)}"
        ):
            store.create(manifest())
        store.close()


def test_no_right_to_create_a_table_says_what_to_grant(pg: str) -> None:
    admin(pg, "CREATE EXTENSION vector")
    with role(pg, "guest", "REVOKE CREATE ON SCHEMA public FROM PUBLIC") as url:
        store = connect(url)
        with pytest.raises(Forbidden, match=r'GRANT USAGE, CREATE ON SCHEMA "public" TO "guest_\d+";'):
            store.create(manifest())
        store.close()


def test_no_right_to_read_says_what_to_grant(table: Table, pg: str) -> None:
    with role(pg, "reader") as url:
        store = connect(url)
        with pytest.raises(Forbidden, match=r"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA"):
            store.open("papers")
        store.close()


def test_one_who_may_only_read_opens_and_searches_but_writes_nothing(table: Table, pg: str) -> None:
    table.write(batch(["a"]))
    with role(pg, "reader", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}") as url:
        store = connect(url)
        opened = store.open("papers")
        assert len(opened.search(vectors(1), None, k=3, where=None, exact=False)[0]) == 1
        with pytest.raises(Forbidden, match="permission denied for table vecbridge_papers; have the owner"):
            opened.write(batch(["b"]))
        with pytest.raises(Forbidden, match="must be owner of table vecbridge_papers; only the owner"):
            store.drop("papers")
        store.close()


def test_a_read_only_session_reads_and_says_why_it_does_not_write(table: Table, pg: str) -> None:
    table.write(batch(["a"]))
    store = connect(f"{pg}&options=-cdefault_transaction_read_only%3Don")
    opened = store.open("papers")
    assert opened.count() == 1
    assert len(opened.search(vectors(1), None, k=3, where=None, exact=False)[0]) == 1
    for write in (
        lambda: opened.write(batch(["b"])),
        lambda: opened.delete(["a"]),
        lambda: store.create(manifest("other")),
        lambda: store.drop("papers"),
    ):
        with pytest.raises(Forbidden, match="read-only; connect to the primary"):
            write()
    store.close()


def test_a_server_without_pgvector_is_told_so_at_once(
    pg18: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vecbridge.backends import postgres

    found = postgres._ask

    def without(connection: Any, schema: str | None) -> Any:
        facts = found(connection, schema)
        return type(facts)(*(getattr(facts, name) for name in facts.__slots__[:-3]), None, None, None)

    monkeypatch.setattr(postgres, "_ask", without)
    with pytest.raises(
        FeatureMissing, match=r"pgvector is not installed on this server .*postgresql-18-pgvector"
    ):
        connect(pg18)


def test_an_extension_that_was_dropped_is_created_again(store: Postgres, table: Table, pg: str) -> None:
    admin(pg, "DROP EXTENSION vector CASCADE")
    store.create(manifest("other")).write(batch(["a"]))
    assert store.open("other").count() == 1


def test_a_database_that_is_not_utf8_is_refused(pg18: str) -> None:
    name = f"latin_{os.getpid()}"
    admin(pg18, f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        store = connect(pg18.replace("/postgres?", f"/{name}?"))
        with pytest.raises(StoreError, match=r"encoded in LATIN1, .* ENCODING 'UTF8'"):
            store.create(manifest())
        store.close()
    finally:
        admin(pg18, f"DROP DATABASE {name} WITH (FORCE)")


# an old server


@pytest.mark.parametrize(
    ("layout", "feature"),
    [
        (Layout(element="float16"), "halfvec"),
        (Layout(index=Index("hnsw", "float16")), "halfvec"),
        (Layout(index=Index("hnsw", "bit"), oversample=8), "bit"),
        (Layout(index=Index("scan", "float16"), oversample=4), "halfvec"),
    ],
)
def test_pgvector_0_6_says_what_it_lacks(pg062: str, fresh: Fresh, layout: Layout, feature: str) -> None:
    store = connect(fresh(pg062))
    assert store.limits().version == "0.6.2"
    with pytest.raises(FeatureMissing, match=rf"{feature}.* needs pgvector 0\.7\.0, this is 0\.6\.2"):
        store.create(manifest(layout=layout))
    assert store.names() == []
    store.close()


def test_metadata_of_a_record_is_found_by_its_own_json(table: Table) -> None:
    values: list[Any] = ["1", 1, 1.5, True, None, ["x", [1]], {"k": [None]}, "é\U0001f9ea'\"\\"]
    table.write(batch([str(n) for n in range(8)], metadata=[{"v": value} for value in values]))
    for n, value in enumerate(values):
        expected = sum(matches(parse({"v": {"$eq": value}}), {"v": other}) for other in values)
        assert table.count(parse({"v": {"$eq": value}})) == expected >= 1, json.dumps(value)
        hits = table.search(vectors(1), None, k=8, where=parse({"v": {"$eq": value}}), exact=False)[0]
        assert str(n) in {hit.id for hit in hits}
