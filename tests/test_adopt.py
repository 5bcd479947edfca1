"""Tables of other libraries, adopted as collections where they lie: as those libraries made them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest
from commands import Ran, Run
from conftest import Fresh
from psycopg import sql

import vecbridge
from vecbridge import Layout, cli
from vecbridge.backends.postgres import foreign_findings
from vecbridge.backends.postgres.adoption import AdoptedTable
from vecbridge.errors import (
    CollectionExists,
    Forbidden,
    InputError,
    ManifestError,
)
from vecbridge.manifest import Manifest
from vecbridge.types import Index, IndexState

if TYPE_CHECKING:
    from vecbridge.types import Floats

DUMPS = Path(__file__).parent / "data" / "foreign"
DOCS = Path(__file__).parent.parent / "docs"

# dump, table, which part of it; id, vector and document as SQL, and the condition for the rows that are meant
TABLES: dict[str, tuple[str, dict[str, Any], str, str, str, str]] = {
    "langchain v1": (
        "langchain_pg_embedding", {"part": "tides"}, "id", "embedding", "document",
        "collection_id = '000000c0-0000-4000-8000-000000000000'",
    ),
    "langchain v2": ("notes", {}, "langchain_id", "embedding", "content", "true"),
    "llama-index": ("data_notes", {}, "node_id", "embedding", "text", "true"),
    "llama-index halves": ("data_halves", {}, "node_id", "embedding", "text", "true"),
    "haystack": ("haystack_documents", {}, "id", "embedding", "content", "embedding IS NOT NULL"),
    "mastra": ("notes", {"part": "second"}, "vector_id", "embedding", "NULL", "namespace = 'second'"),
    "vecs": ("vecs.docs", {}, "id", "vec", "NULL", "true"),
}  # fmt: skip
FILES = {
    "langchain v1": "langchain_v1",
    "langchain v2": "langchain_v2",
    "llama-index": "llama_index",
    "llama-index halves": "llama_index",
    "haystack": "haystack",
    "mastra": "mastra",
    "vecs": "vecs",
}


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def fetch(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()


def load(url: str, kind: str) -> None:
    """Put what a library made into a database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((DUMPS / f"{FILES[kind]}.sql").read_bytes())


def rows_of(url: str, kind: str) -> tuple[list[str], Floats, list[str | None]]:
    """Ids, vectors and documents that a search of the table has to find, read without vecbridge."""
    table, _, id, vector, document, condition = TABLES[kind]
    rows = fetch(url, f"SELECT {id}::text, {vector}::text, {document} FROM {table} WHERE {condition}")
    matrix = np.array([[float(one) for one in row[1][1:-1].split(",")] for row in rows], np.float32)
    return [row[0] for row in rows], matrix, [row[2] for row in rows]


def nearest(ids: list[str], vectors: Floats, query: Floats, metric: str, k: int) -> list[tuple[str, float]]:
    """The k nearest by numpy, in double precision; equal scores in the order of ids."""
    rows, asked = vectors.astype(np.float64), query.astype(np.float64)
    if metric == "cosine":
        scores = rows @ asked / np.linalg.norm(rows, axis=1) / np.linalg.norm(asked)
    elif metric == "l2":
        scores = -np.linalg.norm(rows - asked, axis=1)
    else:
        scores = rows @ asked
    order = sorted(range(len(ids)), key=lambda row: (-scores[row], ids[row]))[:k]
    return [(ids[row], float(scores[row])) for row in order]


@pytest.mark.parametrize("kind", TABLES)
def test_search_of_an_adopted_table_finds_what_numpy_finds(pg: str, kind: str) -> None:
    load(pg, kind)
    table, options, *_ = TABLES[kind]
    ids, vectors, documents = rows_of(pg, kind)
    with vecbridge.connect(pg) as store:
        collection = store.adopt(store.adoption(table, **options))
        collection.build_index()
        again = store.open(collection.name)
        # eighths: a table of halves is asked in half precision
        queries = np.random.default_rng(3).integers(-16, 16, size=(7, vectors.shape[1])) / np.float32(8)
        for exact in (True, False):
            found = again.search_many(queries, k=4, exact=exact)
            for query, hits in zip(queries, found, strict=True):
                expected = nearest(ids, vectors, query, again.space.metric, 4)
                assert [hit.id for hit in hits] == [id for id, _ in expected]
                assert [hit.score for hit in hits] == pytest.approx([far for _, far in expected], abs=1e-5)
                assert [hit.document for hit in hits] == [documents[ids.index(hit.id)] for hit in hits]
        assert again.count() == len(ids)
        assert {id for part in again.inventory() for id, _ in part} == set(ids)
        assert {id for part in again.scan(vectors=False) for id in part.ids} == set(ids)
        batch = again.get([*reversed(ids), "nothing"])
        assert list(batch.ids) == ids[::-1]
        np.testing.assert_array_equal(batch.vectors, vectors[::-1])
        assert again.index_state().status in ("none", "ready")
        assert again.sizes().table > 0
        assert again.evaluate(k=2).recall == 1.0


SNAPSHOT = """
SELECT 'column', a.attrelid::regclass::text, a.attname, format_type(a.atttypid, a.atttypmod),
    concat(a.attnotnull, a.attstorage, a.attstattarget, pg_get_expr(d.adbin, d.adrelid))
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
    JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_attrdef d
    ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND a.attnum > 0
UNION ALL SELECT 'index', i.indrelid::regclass::text, i.indexrelid::regclass::text,
    pg_get_indexdef(i.indexrelid), i.indisvalid::text FROM pg_index i
    WHERE i.indrelid::regclass::text !~ '^pg_'
UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), ''
    FROM pg_constraint WHERE conrelid <> 0 AND conrelid::regclass::text !~ '^pg_'
UNION ALL SELECT 'rights', c.relname, c.relacl::text, c.reloptions::text, pg_get_userbyid(c.relowner)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND c.relkind IN ('r', 'v')
UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid), '' FROM pg_trigger
    WHERE NOT tgisinternal
"""


def snapshot(url: str, table: str) -> tuple[set[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Everything in the catalogues that a dump would have, but vecbridge's own, and the rows of a table."""
    there = {row for row in fetch(url, SNAPSHOT) if not any("vecbridge" in str(one) for one in row)}
    return there, sorted(fetch(url, f"SELECT {table.rpartition('.')[2]}::text FROM {table}"))


@pytest.mark.parametrize("kind", TABLES)
def test_adopting_indexing_and_dropping_change_nothing_of_the_owners(pg: str, kind: str) -> None:
    load(pg, kind)
    table, options, *_ = TABLES[kind]
    before = snapshot(pg, table)
    with vecbridge.connect(pg) as store:
        found = store.adoption(table, **options)
        collection = store.adopt(in_full(found))
        collection.build_index()
        assert (collection.index_state().status, collection.index_state().used) == ("ready", True)
        collection.search(np.ones(collection.space.dim), k=3)
        assert snapshot(pg, table) == before
        store.drop(collection.name)
        assert store.collections() == []
    assert snapshot(pg, table) == before
    assert (
        fetch(pg, "SELECT relname::text FROM pg_class WHERE relname ~ 'idx$' AND relname ~ '^vecbridge_'")
        == []
    )


def in_full(found: vecbridge.Adoption, **index: Any) -> vecbridge.Adoption:
    """The same with an index of vecbridge's own in half precision, however few rows there are."""
    if found.manifest.layout.index is not None and not index:
        return found
    layout = replace(
        found.manifest.layout,
        index=Index("hnsw", **{"element": "float16", "ef_search": 40, **index}),
        oversample=2,
    )
    return replace(found, manifest=replace(found.manifest, layout=layout))


def numbers(n: int, dim: int, *, seed: int = 0) -> Floats:
    """Clustered vectors, as embeddings are."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(20, dim))
    return (centres[generator.integers(20, size=n)] + generator.normal(size=(n, dim)) * 0.5).astype(
        np.float32
    )


def fill_langchain(url: str, vectors: Floats, part: str = "tides") -> None:
    """Rows as LangChain's PGVector inserts them."""
    with psycopg.connect(url, autocommit=True) as connection:
        [(key,)] = connection.execute(
            "SELECT uuid FROM langchain_pg_collection WHERE name = %s", [part]
        ).fetchall()
        connection.execute("DELETE FROM langchain_pg_embedding WHERE collection_id = %s", [key])
        with connection.cursor().copy(
            "COPY langchain_pg_embedding (id, collection_id, embedding, document, cmetadata) FROM STDIN"
        ) as stream:
            for row, vector in enumerate(vectors.tolist()):
                stream.write_row((f"row-{row:05}", key, str(vector), f"text {row}", f'{{"n": {row}}}'))


@pytest.fixture
def plain(pg18: str, fresh: Fresh) -> str:
    """URL of an empty database with pgvector."""
    return fresh(pg18, extension=True)


def test_a_langchain_table_of_3584_dimensions_end_to_end(pg: str) -> None:
    load(pg, "langchain v1")
    vectors = numbers(700, 3584)
    fill_langchain(pg, vectors)
    theirs = (
        "SELECT id FROM langchain_pg_embedding WHERE collection_id = "
        "(SELECT uuid FROM langchain_pg_collection WHERE name = 'tides') "
        f"ORDER BY embedding <=> '{vectors[5].tolist()}' LIMIT 5"
    )
    before = fetch(pg, theirs)
    with vecbridge.connect(pg) as store:
        found = store.adoption("langchain_pg_embedding", part="tides", latency=0.0005)
        index = found.manifest.layout.index
        assert index is not None
        assert (index.kind, index.element) == ("hnsw", "float16")
        assert "halfvec(3584)) public.halfvec_cosine_ops" in found.statements[-1].replace('"', "")
        assert "collection_id" in found.statements[-1].partition("WHERE")[2]
        [about] = [note for note in found.notes if "owner's own queries" in note]
        assert "declares no dimensions, so that no index at all can serve them" in about
        collection = store.adopt(found)
        collection.build_index()
        assert collection.index_state() == IndexState("ready", used=True)
        report = collection.evaluate(k=10, sample=20)
        assert report.recall >= 0.9
        assert report.index.used
        hits = collection.search(vectors[5], k=5)
        assert [(hit.id,) for hit in hits] == before
        assert hits[0].metadata == {"n": 5}
        assert collection.sizes().index > 0
    assert fetch(pg, theirs) == before


def test_what_the_owner_writes_goes_on_and_is_seen_by_the_next_search(pg: str) -> None:
    load(pg, "langchain v1")
    fill_langchain(pg, numbers(50, 8))
    with vecbridge.connect(pg) as store:
        collection = store.adopt(in_full(store.adoption("langchain_pg_embedding", part="tides")))
        collection.build_index()
        query = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]

        def first() -> str | None:
            hits = collection.search(query, k=1)
            return hits[0].id if hits else None

        insert = (
            "INSERT INTO langchain_pg_embedding (id, collection_id, embedding, document, cmetadata) VALUES "
            "('{}', '000000c0-0000-4000-8000-00000000000{}', '{}', 'x', '{{}}') ON CONFLICT (id) "
            "DO UPDATE SET embedding = EXCLUDED.embedding"
        )
        execute(pg, insert.format("mine", 0, query))
        assert first() == "mine"
        # another model's vectors in another collection, and even in this one: no index of ours refuses them
        execute(pg, insert.format("theirs", 1, query[:6]), insert.format("odd", 0, query[:3]))
        assert first() == "mine"
        execute(pg, "DELETE FROM langchain_pg_embedding WHERE id IN ('odd', 'theirs')")
        execute(pg, "UPDATE langchain_pg_embedding SET id = 'renamed', document = 'y' WHERE id = 'mine'")
        assert first() == "renamed"
        assert collection.count() == 51
        execute(pg, "DELETE FROM langchain_pg_embedding WHERE id = 'renamed'")
        assert first() not in (None, "mine", "renamed")
        execute(pg, "TRUNCATE langchain_pg_embedding")
        assert (first(), collection.count()) == (None, 0)
        assert collection.index_state().status == "ready"


def test_the_owner_may_alter_and_drop_his_table(pg: str) -> None:
    load(pg, "langchain v2")
    with vecbridge.connect(pg) as store:
        found = store.adoption("notes")
        collection = store.adopt(found)
        collection.build_index()
        execute(pg, "ALTER TABLE notes ADD COLUMN more text, ALTER COLUMN content TYPE varchar(500)")
        assert collection.count() == store.open("notes").count() == 5
        execute(pg, "ALTER TABLE notes DROP COLUMN kind")
        with pytest.raises(ManifestError, match=r"notes in .* column kind is missing; drop the collection"):
            store.open("notes")
        execute(pg, "DROP TABLE notes")
        with pytest.raises(ManifestError, match=r"'notes' has lost its table public.notes"):
            collection.count()
        execute(pg, "CREATE TABLE vecbridge_notes (id int)")
        with pytest.raises(ManifestError, match=r"'notes' in .* has lost its table public.notes"):
            store.open("notes")
        store.drop("notes")
        assert store.collections() == []
    assert "vecbridge_notes" in relations(pg)


def test_columns_beside_the_json_are_fields_of_the_metadata(pg: str) -> None:
    load(pg, "langchain v2")
    execute(
        pg,
        'UPDATE notes SET langchain_metadata = \'{"n": 99, "page": 1, "deep": [1, 2]}\' WHERE n = 3',
        "UPDATE notes SET langchain_metadata = 'null' WHERE n = 2",
        "UPDATE notes SET langchain_metadata = NULL, kind = NULL WHERE n = 1",
    )
    with vecbridge.connect(pg) as store:
        collection = store.adopt(store.adoption("notes"))
        ids = [f"0000000{n}-0000-4000-8000-000000000000" for n in (4, 3, 2)]
        assert list(collection.get(ids).metadata) == [
            {"kind": "sea", "n": 3, "page": 1, "deep": [1, 2]},
            {"kind": "sky", "n": 2},
            {"kind": None, "n": 1},
        ]
        query = np.ones(8)
        for where, expected in (
            ({"n": {"$gte": 3}}, {3, 4}),
            ({"kind": "sea"}, {3, 4}),
            ({"page": {"$exists": False}}, {1, 2}),
            ({"deep": 2}, {3}),
        ):
            for exact in (True, False):
                hits = collection.search(query, where=where, exact=exact)
                assert {hit.metadata["n"] for hit in hits} == expected
            assert collection.count(where=where) == len(expected)


def test_a_filtered_search_of_a_larger_table_is_that_of_numpy(pg: str) -> None:
    load(pg, "langchain v1")
    vectors = numbers(3_000, 16)
    fill_langchain(pg, vectors)
    with vecbridge.connect(pg) as store:
        collection = store.adopt(in_full(store.adoption("langchain_pg_embedding", part="tides")))
        collection.build_index()
        for most in (5, 40, 2_500):
            where = {"n": {"$lt": most}}
            ids = [f"row-{row:05}" for row in range(most)]
            for query in vectors[:3]:
                expected = nearest(ids, vectors[:most], query, "cosine", 5)
                hits = collection.search(query, k=5, where=where, exact=True)
                assert [hit.id for hit in hits] == [id for id, _ in expected]
                found = {hit.id for hit in collection.search(query, k=5, where=where)}
                assert len(found) == 5
                assert len(found & {id for id, _ in expected}) >= 4
        state = store.open("tides").evaluate(k=5, where={"n": {"$lt": 40}})
        assert state.recall >= 0.9


@pytest.mark.parametrize(
    ("type", "write"),
    [("uuid", "'00000000-0000-4000-8000-{:012d}'"), ("bigint", "{} - 2000"), ("varchar(40)", "'id {}'")],
)
def test_ids_of_any_type_are_looked_up_by_the_primary_key(plain: str, type: str, write: str) -> None:
    vectors = numbers(6_000, 4)
    execute(plain, f"CREATE TABLE notes (key {type} PRIMARY KEY, body text, v vector(4))")
    with psycopg.connect(plain, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.executemany(
            b"INSERT INTO notes VALUES (%s, 'text', %s::vector)",
            [
                [write.format(row).strip("'") if "'" in write else row - 2000, str(vector)]
                for row, vector in enumerate(vectors.tolist())
            ],
        )
        cursor.execute("ANALYZE notes")
    with vecbridge.connect(plain) as store:
        collection = store.adopt(store.adoption("notes", metric="l2"))
        known = [id for (id,) in fetch(plain, "SELECT key::text FROM notes ORDER BY key")]
        parts = [[id for id, _ in part] for part in collection.inventory()]
        assert len(parts) > 1
        assert sorted(id for part in parts for id in part) == sorted(known)
        strange = ["nothing", "", "٣", "-0", "1e3", "9" * 30, known[0].upper() + " ", "'"]
        asked = [known[7], *(one for one in strange if one), known[3]]
        assert list(collection.get(asked).ids) == [known[7], known[3]]
        table = collection._table
        assert isinstance(table, AdoptedTable)
        with psycopg.connect(plain) as connection:
            condition, values = table._named([known[7], known[3]])
            query = sql.SQL("EXPLAIN SELECT id, embedding FROM {} ").format(table.name) + condition
            plan = "\n".join(row[0] for row in connection.execute(query, values).fetchall())
        assert "notes_pkey" in plan, plan
        everything = numbers(6_000, 4)
        query_vector = np.round(everything[11], 3)
        hits = collection.search(query_vector, k=3)
        assert [hit.document for hit in hits] == ["text"] * 3


def test_equal_scores_come_in_the_order_of_code_points(plain: str) -> None:
    ids = ["b", "B", "a", "Ä", "_", "10", "9", "é", "z"]
    execute(plain, 'CREATE TABLE notes (id text COLLATE "pg_c_utf8" PRIMARY KEY, v vector(2))')
    for id in ids:
        execute(plain, f"INSERT INTO notes VALUES ('{id}', '[1, 0]')")
    with vecbridge.connect(plain) as store:
        collection = store.adopt(store.adoption("notes", metric="ip"))
        assert [hit.id for hit in collection.search([1, 0], exact=True)] == sorted(ids)
        # no collation that orders otherwise is sure to be here
        assert 'distance, id COLLATE "C" LIMIT' in collection._table._statement(3, None)  # type: ignore[attr-defined]  # of PostgreSQL
        assert {id for part in collection.inventory() for id, _ in part} == set(ids)


def test_writing_is_refused_and_says_whose_table_it_is(pg: str) -> None:
    load(pg, "haystack")
    before = snapshot(pg, "haystack_documents")
    with vecbridge.connect(pg) as store:
        collection = store.adopt(store.adoption("haystack_documents", name="papers"))
        words = r"'papers' is the table public.haystack_documents, which is Haystack's.*vecbridge copy"
        with pytest.raises(Forbidden, match=words):
            collection.upsert(["a"], np.ones((1, 8)))
        with pytest.raises(Forbidden, match=words):
            collection.delete(["bare"])
        with pytest.raises(Forbidden, match=words):
            collection.delete(where={"kind": "sea"})
        with pytest.raises(Forbidden, match=words):
            collection.replan(layout=Layout(inline=True))
        assert collection.digests(["bare"]) == {}
        assert collection.proposal(rows=10).layout.inline is False
    assert snapshot(pg, "haystack_documents") == before


def relations(url: str) -> set[str]:
    return {
        name
        for (name,) in fetch(url, "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r','i','v')")
    }


@pytest.mark.parametrize("kind", ["langchain v1", "mastra"])
def test_a_dry_run_changes_nothing_and_its_statements_do_all_of_it(pg: str, kind: str) -> None:
    load(pg, kind)
    table, options, *_ = TABLES[kind]
    if kind == "langchain v1":
        fill_langchain(pg, numbers(300, 8))
    before = relations(pg)
    with vecbridge.connect(pg) as store:
        found = store.adoption(table, **options, latency=1e-9)
        assert relations(pg) == before
        assert store.collections() == []
    execute(pg, *found.statements)
    with vecbridge.connect(pg) as store:
        collection = store.open(found.manifest.name)
        state = collection.index_state()
        assert (state.status, state.used) == ("ready", True)
        made = relations(pg)
        collection.build_index()
        assert relations(pg) == made
        assert collection.manifest == found.manifest
    own = {name for name in made - before if name.endswith('$idx"')}
    assert bool(own) == (kind == "langchain v1")


def test_an_index_of_the_owners_that_serves_is_used_and_never_touched(pg: str) -> None:
    load(pg, "mastra")
    with vecbridge.connect(pg) as store:
        found = store.adoption("notes", part="default")
        index = found.manifest.layout.index
        assert index is not None
        assert (index.kind, index.m, index.ef_construction) == ("hnsw", 8, 32)
        assert (
            "Searches run on notes_vector_idx, which the owner made, and no other is built."
            in found.notes[-1]
        )
        collection = store.adopt(found)
        collection.build_index()
        state = collection.index_state()
        assert (state.status, state.used) == ("ready", True)
        assert state.detail == "notes_vector_idx, which the owner of the table made"
        assert collection.sizes().index > 0
        execute(pg, "DROP INDEX notes_vector_idx")
        assert collection.index_state().status == "missing"
        collection.build_index()
        assert collection.index_state().detail == ""
        store.drop("notes")
    assert not any("vecbridge_" in name for name in relations(pg))


def test_the_recipes_for_indexes_on_columns_without_dimensions_are_recognised(pg: str) -> None:
    load(pg, "langchain v1")
    fill_langchain(pg, numbers(100, 64))
    recipes = {
        "((embedding::vector(64)) vector_cosine_ops)": "float32",
        "((embedding::halfvec(64)) halfvec_cosine_ops)": "float16",
        "((binary_quantize(embedding)::bit(64)) bit_hamming_ops)": "bit",
    }
    for recipe, element in recipes.items():
        execute(
            pg,
            f"CREATE INDEX theirs ON langchain_pg_embedding USING hnsw {recipe} "
            "WHERE collection_id = '000000c0-0000-4000-8000-000000000000'",
        )
        with vecbridge.connect(pg) as store:
            options = {} if element != "bit" else {"metric": "cosine"}
            found = store.adoption("langchain_pg_embedding", part="tides", **options)
            index = found.manifest.layout.index
            assert index is not None
            assert (index.kind, index.element) == ("hnsw", element)
            assert "theirs, which the owner made" in found.notes[-1]
        execute(pg, "DROP INDEX theirs")


def test_where_the_column_has_dimensions_the_index_serves_the_owner_too(pg: str) -> None:
    load(pg, "langchain v2")
    execute(pg, "DROP INDEX notes_hnsw")
    with vecbridge.connect(pg) as store:
        found = store.adoption("notes", latency=1e-9)
        index = found.manifest.layout.index
        assert index is not None
        assert index.element == "float32"
        assert "and the owner's own queries" in found.notes[-1]
        collection = store.adopt(found)
        collection.build_index()
    with psycopg.connect(pg) as connection:
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute(
            "EXPLAIN SELECT * FROM notes ORDER BY embedding <=> '[1,2,3,4,5,6,7,8]' LIMIT 3"
        ).fetchall()
    assert any("vecbridge_notes$idx" in row[0] for row in plan)


def test_with_a_recall_the_index_is_planned_on_the_vectors_and_tuned(plain: str) -> None:
    vectors = numbers(600, 24)
    execute(plain, "CREATE TABLE notes (id bigserial PRIMARY KEY, text text, v vector(24) NOT NULL)")
    with psycopg.connect(plain, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.executemany(
            b"INSERT INTO notes (text, v) VALUES (%s, %s::vector)",
            [[f"text {row}", str(vector)] for row, vector in enumerate(vectors.tolist())],
        )
    with vecbridge.connect(plain) as store:
        found = store.adoption("notes", metric="l2", recall=0.95, latency=1e-6)
        assert found.plan is not None
        assert found.plan.evidence is not None
        assert found.manifest.layout.index is not None
        collection = store.adopt(found)
        tuning = collection.build_index()
        assert tuning is not None
        assert tuning.tuned.met
        assert store.open("notes").manifest.tuned == tuning.tuned == collection.manifest.tuned
        assert collection.build_index() is None


def refused(url: str, table: str, **options: Any) -> str:
    """What is said instead of adopting; nothing has changed then."""
    before = relations(url)
    with vecbridge.connect(url) as store, pytest.raises((InputError, CollectionExists), match=" ") as caught:
        store.adoption(table, **options)
    assert relations(url) == before
    return str(caught.value)


def test_what_cannot_be_adopted_is_refused_before_anything_is_changed(pg: str) -> None:
    load(pg, "langchain v1")
    table = "langchain_pg_embedding"
    assert "there is no table nothing; there are vectors in public.langchain_pg_embedding" in refused(
        pg, "nothing"
    )
    assert "no column of vectors" in refused(pg, "langchain_pg_collection")
    assert "several collections (tides, birds); say which: --part" in refused(pg, table)
    assert "no collection 'fish'; there are tides, birds" in refused(pg, table, part="fish")
    assert "no column 'x'" in refused(pg, table, part="tides", id="x")
    assert "no column 'document' of vectors" in refused(pg, table, embedding="document")
    assert "'two words'" in refused(pg, table, part="tides", name="two words")
    assert "2 rows of" in refused(pg, table, part="tides", id="collection_id")
    assert "got 'dot'" in refused(pg, table, part="tides", metric="dot")
    execute(pg, "UPDATE langchain_pg_embedding SET embedding = '[1,2,3]' WHERE document = 'rain on slate'")
    assert "has some of 8 (2 rows), 3 (1 rows) dimensions" in refused(pg, table, part="tides")
    execute(pg, "DELETE FROM langchain_pg_embedding WHERE collection_id::text LIKE '%0'")
    assert "declares no dimensions, and there is no vector" in refused(pg, table, part="tides")
    execute(pg, "TRUNCATE langchain_pg_embedding, langchain_pg_collection")
    assert "is empty" in refused(pg, table)


def test_what_a_plain_table_does_not_tell_is_asked_for(plain: str) -> None:
    execute(
        plain,
        "CREATE TABLE one (a int, b int, v vector(3), w vector(3), name text, note text, extra jsonb)",
        "CREATE TABLE signs (id int PRIMARY KEY, v bit(128))",
        'CREATE TABLE odd (id int PRIMARY KEY, "a%b" text, v vector(3))',
        "CREATE SCHEMA other",
        "CREATE TABLE other.one (id int PRIMARY KEY, v vector(3))",
        "INSERT INTO one VALUES (1, 1, '[1,2,3]', '[3,2,1]', 'x', 'y', '{\"z\": 1}')",
        "INSERT INTO one VALUES (2, NULL, '[1,2,4]', '[4,2,1]', 'x', 'y', '[1]')",
        'CREATE TABLE other."vecbridge_taken$idx" (id int)',
    )
    assert "may be other.one or public.one; name the schema, too" in refused(plain, "one")
    one = "public.one"
    assert "several columns of vectors (v, w); say which: --embedding" in refused(plain, one)
    assert "say which are what: --id, --embedding, --document, --metadata" in refused(
        plain, one, embedding="v"
    )
    assert "there is no index to tell; say --metric" in refused(plain, one, embedding="v", id="a")
    assert "1 rows of public.one have no b" in refused(plain, one, embedding="v", id="b", metric="ip")
    assert "have a name that another one has, too" in refused(
        plain, one, embedding="v", id="name", metric="ip"
    )
    execute(plain, "CREATE TABLE vecbridge_ours (id int PRIMARY KEY, v vector(3))")
    assert "vecbridge's own collection 'ours'" in refused(plain, "vecbridge_ours", name="ours", metric="ip")
    assert "leave --part" in refused(plain, one, embedding="v", id="a", part="x")
    assert "holds bits" in refused(plain, "signs")
    assert "has a % in it" in refused(plain, "odd", metric="ip", document="a%b")
    assert "has vecbridge_taken$idx already" in refused(plain, "other.one", metric="ip", name="taken")
    with vecbridge.connect(plain) as store:
        found = store.adoption(
            one, embedding="w", id="a", document="note", metadata=["extra", "name"], metric="ip", name="ones"
        )
        collection = store.adopt(found)
        batch = collection.get(["2", "1"])
        assert list(batch.metadata) == [{"name": "x"}, {"name": "x", "z": 1}]
        assert list(batch.documents) == ["y", "y"]
        assert [hit.id for hit in collection.search([1, 0, 0])] == ["2", "1"]
        assert any("nothing keeps a unique" in note for note in found.notes)
        assert any("not read: b, v" in note for note in found.notes)
    assert "'ones' is in" in refused(plain, one, embedding="v", id="a", metric="ip", name="ones")
    with vecbridge.connect(plain) as store, pytest.raises(CollectionExists, match="'ones' is in"):
        store.adopt(found)


def test_only_a_database_has_tables_to_adopt(tmp_path: Path, pg: str) -> None:
    load(pg, "vecs")
    with (
        vecbridge.connect(f"flat:{tmp_path}") as store,
        pytest.raises(InputError, match="expected a PostgreSQL database"),
    ):
        store.adoption("docs")
    with vecbridge.connect(f"flat:{tmp_path}", pg) as store:
        found = store.adoption("docs")
        with vecbridge.connect(f"flat:{tmp_path}") as other:
            with pytest.raises(InputError, match="expected an adoption in this store"):
                other.adopt(found)
            other.create("docs", dim=3)
        with pytest.raises(CollectionExists, match="'docs' is in flat:"):
            store.adoption("docs")
        assert store.adopt(store.adoption("docs", name="mine")).url == store.urls[1]


def as_user(url: str, name: str) -> str:
    """The URL for another user, who may log in without a password."""
    return url.replace("postgres@", f"{name}@", 1)


def test_who_may_not_read_or_index_the_table_is_told(pg: str) -> None:
    load(pg, "langchain v2")
    user = f"reader_{os.getpid()}"
    execute(
        pg,
        f"CREATE ROLE {user} LOGIN",
        f"GRANT CREATE, USAGE ON SCHEMA public TO {user}",
        "DROP INDEX notes_hnsw",
    )
    try:
        with vecbridge.connect(as_user(pg, user)) as store:
            with pytest.raises(
                Forbidden, match=r"may not read public\.notes; have postgres run GRANT SELECT"
            ):
                store.adoption("notes")
            execute(pg, f"GRANT SELECT ON notes TO {user}")
            with pytest.raises(
                Forbidden, match=r"only postgres, who owns public\.notes, may build an index on it"
            ):
                store.adoption("notes", latency=1e-9)
            found = store.adoption("notes", latency=1e-9, build_index=False)
            assert found.manifest.layout == Layout()
            collection = store.adopt(found)
            assert len(collection.search(np.ones(8), k=3)) == 3
            execute(pg, "ANALYZE notes")
            findings = [one for one in doctor(as_user(pg, user)) if one.subject.startswith("notes:")]
            assert {one.level for one in findings} == {"ok"}
            store.drop("notes")
        execute(pg, f"REVOKE CREATE ON SCHEMA public FROM {user}")
        with vecbridge.connect(as_user(pg, user)) as store:
            execute(pg, 'DROP TABLE "vecbridge$collections"')
            found = store.adoption("notes")
            with pytest.raises(Forbidden, match="permission denied for schema public"):
                store.adopt(found)
    finally:
        execute(pg, f"DROP OWNED BY {user}", f"DROP ROLE {user}")


def doctor(url: str) -> list[Any]:
    with vecbridge.connect(url) as store:
        return store.places[0].ask(lambda backend: backend.findings())


def test_doctor_finds_an_adopted_collection_in_order(pg: str) -> None:
    load(pg, "langchain v1")
    with vecbridge.connect(pg) as store:
        collection = store.adopt(in_full(store.adoption("langchain_pg_embedding", part="tides")))
        said = {one.subject: one for one in doctor(pg)}
        assert said["tides: index"].level == "broken"
        assert "CREATE INDEX CONCURRENTLY" in said["tides: index"].remedy
        collection.build_index()
        execute(pg, "ANALYZE langchain_pg_embedding")
        said = {one.subject: one for one in doctor(pg) if one.subject.startswith("tides:")}
        assert {one.level for one in said.values()} == {"ok"}
        assert said["tides: index"].found == "ready, and searches run on it"


def test_doctor_says_of_an_adopted_column_only_who_reads_it(pg: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # a table of a few rows is judged as a large one is
    monkeypatch.setattr(foreign_findings, "_SLOW", 0.0)
    load(pg, "langchain v1")
    execute(pg, "ANALYZE langchain_pg_embedding")
    column = "public.langchain_pg_embedding.embedding"
    plain = [one for one in doctor(pg) if one.subject.startswith(column)]
    assert len(plain) > 1
    with vecbridge.connect(pg) as store:
        store.adopt(store.adoption("langchain_pg_embedding", part="tides"))
        partly = [one for one in doctor(pg) if one.subject.startswith(column)]
        assert [
            replace(one, found=one.found.removesuffix("; collection tides reads some of it"))
            for one in partly
        ] == plain
        assert partly[0].found.endswith("; collection tides reads some of it")
        store.adopt(store.adoption("langchain_pg_embedding", part="birds"))
        said = [(one.level, one.found) for one in doctor(pg) if one.subject.startswith(column)]
        assert said == [("ok", "collections birds, tides read it: see what is said of them")]
        store.drop("tides")
        store.drop("birds")
        assert [one for one in doctor(pg) if one.subject.startswith(column)] == plain


def test_doctor_says_who_reads_a_column_as_a_whole(pg: str) -> None:
    load(pg, "vecs")
    with vecbridge.connect(pg) as store:
        store.adopt(store.adoption("docs", name="mine"))
    said = [(one.level, one.found) for one in doctor(pg) if one.subject.startswith("vecs.docs.")]
    assert said == [("ok", "collection mine reads it: see what is said of that")]


def test_a_partitioned_table_is_searched_without_an_index(plain: str) -> None:
    execute(
        plain,
        "CREATE TABLE notes (id int, year int, v vector(2), PRIMARY KEY (id, year)) "
        "PARTITION BY RANGE (year)",
        "CREATE TABLE notes_a PARTITION OF notes FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE notes_b PARTITION OF notes FOR VALUES FROM (10) TO (20)",
        "INSERT INTO notes SELECT n, n, ARRAY[n, 1]::vector FROM generate_series(1, 19) n",
    )
    with vecbridge.connect(plain) as store:
        with pytest.raises(Forbidden, match=r"public\.notes is partitioned, and PostgreSQL builds no index"):
            store.adoption("notes", id="id", metric="l2", latency=1e-9)
        collection = store.adopt(store.adoption("notes", id="id", metric="l2"))
        assert [hit.id for hit in collection.search([12, 1], k=2)] == ["12", "11"]
        assert collection.sizes().table > 0


def test_a_materialised_view_is_indexed_as_a_table_is(plain: str) -> None:
    execute(
        plain,
        "CREATE TABLE notes (id int PRIMARY KEY, v vector(2))",
        "INSERT INTO notes SELECT n, ARRAY[n, 1]::vector FROM generate_series(1, 19) n",
        "CREATE MATERIALIZED VIEW seen AS SELECT * FROM notes WHERE id > 5",
    )
    with vecbridge.connect(plain) as store:
        collection = store.adopt(in_full(store.adoption("seen", id="id", metric="l2")))
        collection.build_index()
        assert collection.index_state() == IndexState("ready", used=True)
        assert [hit.id for hit in collection.search([1, 1], k=2)] == ["6", "7"]


ADOPT = """
import sys
import vecbridge
from dataclasses import replace
from vecbridge.types import Index

with vecbridge.connect(sys.argv[1]) as store:
    found = store.adoption("langchain_pg_embedding", part="tides")
    layout = replace(found.manifest.layout, index=Index("hnsw", "float16", ef_construction=200, ef_search=40))
    print("go", flush=True)
    collection = store.adopt(replace(found, manifest=replace(found.manifest, layout=layout)))
    collection.build_index()
"""


def test_a_kill_in_the_middle_leaves_nothing_that_cannot_be_completed_or_dropped(pg: str) -> None:
    load(pg, "langchain v1")
    fill_langchain(pg, numbers(2_000, 64))
    before = snapshot(pg, "langchain_pg_embedding")
    seen = set[str]()
    for turn in range(40):
        # five times, and on until a kill has found something begun
        if turn >= 5 and seen != {"nothing"}:
            break
        process = subprocess.Popen([sys.executable, "-c", ADOPT, pg], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        time.sleep(0.02 + 0.15 * turn)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with vecbridge.connect(pg) as store:
            if "tides" in store.collections():
                collection = store.open("tides")
                assert len(collection.search(np.ones(64), k=3)) == 3
                seen.add(collection.index_state().status)
                if turn % 2:
                    collection.build_index()
                    assert collection.index_state() == IndexState("ready", used=True)
                store.drop("tides")
            else:
                seen.add("nothing")
        assert not any("vecbridge_" in name for name in relations(pg))
        assert snapshot(pg, "langchain_pg_embedding") == before
    assert seen != {"nothing"}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Ran:
        code = cli.run(words)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


def test_the_command_says_what_it_does_and_does_what_it_says(pg: str, run: Run) -> None:
    load(pg, "langchain v1")
    words = ["adopt", pg, "--table", "langchain_pg_embedding", "--part", "tides"]
    before = relations(pg)
    dry = run(*words, "--dry-run", "--latency", "1e-9")
    assert dry.code == 0, dry.err
    assert "3 records of 8 dimensions (cosine); id is id, embedding is embedding" in dry.err
    assert "metric cosine: LangChain (PGVector)'s default" in dry.err
    created, inserted, built = dry.out.splitlines()
    assert created.startswith('CREATE TABLE IF NOT EXISTS "public"."vecbridge$collections"')
    assert inserted.startswith('INSERT INTO "public"."vecbridge$collections"')
    assert built.startswith('CREATE INDEX CONCURRENTLY "vecbridge_tides$idx"')
    assert relations(pg) == before
    assert run(*words, "--dry-run", "--no-index", "--latency", "1e-9").out.splitlines() == [created, inserted]
    assert run(*words).code == 2
    assert relations(pg) == before
    done = run(*words, "--latency", "1e-9", "--yes")
    assert (done.code, done.out) == (0, "adopted langchain_pg_embedding as tides; index ready\n")
    assert run("list", pg).out == "tides\n"
    assert run("info", pg, "tides", "--json").json["adopted"]["table"] == "langchain_pg_embedding"
    again = run(*words, "--yes")
    assert again.code == 2
    assert "Error: collection 'tides' is in" in again.err
    dropped = run("drop", pg, "tides", "--yes")
    assert dropped.out == "dropped tides; the table public.langchain_pg_embedding is as it was\n"
    assert {name for name in relations(pg) - before if "catalogue" in name or "idx" in name} == set()


def test_the_documented_json_is_that_of_the_command(pg: str, run: Run) -> None:
    load(pg, "langchain v1")
    text = (DOCS / "cli.md").read_text().partition("## adopt\n")[2].partition("## info\n")[0]
    documented = json.loads(text.partition("```json\n")[2].partition("```")[0])
    words = ["adopt", pg, "--table", "langchain_pg_embedding", "--part", "tides", "--json"]
    dry = run(*words, "--dry-run").json
    real = run(*words, "--yes").json
    assert documented.keys() == real.keys() == dry.keys() | {"index"}
    for key in ("adopted", "space", "index"):
        assert documented[key].keys() == real[key].keys()
    assert dry == {key: value for key, value in real.items() if key != "index"}


def test_the_example_of_the_page_runs(pg: str) -> None:
    load(pg, "langchain v1")
    code = (DOCS / "adopting.md").read_text().partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code.replace("postgresql://localhost/rag", pg)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2] == "tides-00000001-0000-4000-8000-000000000000 a heron waits"


def test_an_adopted_collection_is_remembered_as_it_was(pg: str) -> None:
    load(pg, "langchain v2")
    with vecbridge.connect(pg) as store:
        manifest = store.adoption("notes").manifest
    assert Manifest.load(*manifest.dump()) == manifest
    assert manifest.adopted is not None
    with pytest.raises(ValueError, match="names of table and columns as text"):
        replace(manifest.adopted, fields=(7,))  # type: ignore[arg-type]  # the refusal is the test
