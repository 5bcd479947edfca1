"""Tables of other libraries, adopted as collections where they lie: real ones, as those libraries made them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest
from conftest import Fresh
from psycopg import sql

import vecbridge
from vecbridge import Layout
from vecbridge.errors import (
    CollectionExists,
    CollectionNotFound,
    Forbidden,
    InputError,
    ManifestError,
    StoreError,
)
from vecbridge.manifest import Manifest
from vecbridge.types import Index

if TYPE_CHECKING:
    from vecbridge.types import Floats

DUMPS = Path(__file__).parent / "data" / "foreign"

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
