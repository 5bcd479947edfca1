"""Tables that others keep vectors in: real ones, as their libraries made them, are recognised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psycopg
import pytest
from conftest import Fresh

import vecbridge
from vecbridge.backends.postgres import foreign
from vecbridge.backends.postgres.foreign import Columns, VectorColumn

DUMPS = Path(__file__).parent / "data" / "foreign"


def load(url: str, *names: str) -> None:
    """Put dumps of what libraries made into a database."""
    for name in names:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute((DUMPS / f"{name}.sql").read_bytes())


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def columns(url: str, *, schema: str | None = None, table: str | None = None) -> list[VectorColumn]:
    with psycopg.connect(url, autocommit=True) as connection:
        return foreign.columns(connection, schema=schema, table=table)


def one(url: str, table: str | None = None) -> VectorColumn:
    [column] = columns(url, table=table)
    return column


def fill(
    url: str, table: str, dims: Sequence[int], *, column: str = "embedding", type: str = "vector"
) -> None:
    """Add rows with random vectors of these dimensions."""
    generator = np.random.default_rng(7)
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {table} ({column}) VALUES (%s::{type})".encode(),
            [[str(np.round(generator.normal(size=dim), 3).tolist())] for dim in dims],
        )


MADE = {
    "langchain_v1": (
        "langchain v1",
        Columns("id", "embedding", "document", "cmetadata", part="collection_id"),
    ),
    "langchain_v2": (
        "langchain v2",
        Columns("langchain_id", "embedding", "content", "langchain_metadata", others=("kind", "n")),
    ),
    "llama_index": ("llama-index", Columns("node_id", "embedding", "text", "metadata_")),
    "haystack": ("haystack", Columns("id", "embedding", "content", "meta")),
    "mastra": ("mastra", Columns("vector_id", "embedding", None, "metadata", part="namespace")),
    "vecs": ("vecs", Columns("id", "vec", None, "metadata")),
}


@pytest.mark.parametrize("name", MADE)
def test_what_a_library_made_is_recognised(pg: str, name: str) -> None:
    load(pg, name)
    for column in columns(pg):
        assert (column.maker, column.columns) == MADE[name]
        assert set(column.types) >= {
            used for used in (column.columns.id, column.columns.document, column.columns.metadata) if used
        }
        assert (column.readable, column.owned, column.kind) == (True, True, "table")


def test_every_known_library_has_its_table_here() -> None:
    assert {maker for maker, _ in MADE.values()} == set(foreign.MAKERS) - {"plain"}
    assert {path.stem for path in DUMPS.glob("*.sql")} == set(MADE)


def test_the_collections_in_one_table_of_langchain_are_told_apart(pg: str) -> None:
    load(pg, "langchain_v1")
    column = one(pg)
    assert (column.declared, column.dims, column.dim, column.seen) == (None, (6, 8), None, 5)
    assert [(part.name, part.dims, part.share) for part in column.parts] == [
        ("tides", (8,), 0.6),
        ("birds", (6,), 0.4),
    ]
    with psycopg.connect(pg) as connection:
        keys = dict(connection.execute("SELECT name, uuid::text FROM langchain_pg_collection").fetchall())
    assert {part.name: part.key for part in column.parts} == keys
    assert column.id_known


def test_a_collection_of_langchain_without_rows_is_listed_too(pg: str) -> None:
    load(pg, "langchain_v1")
    execute(pg, "DELETE FROM langchain_pg_embedding")
    assert [(part.name, part.dims, part.share) for part in one(pg).parts] == [
        ("birds", (), None),
        ("tides", (), None),
    ]


def test_an_id_that_nothing_keeps_unique_is_not_known_as_one(pg: str) -> None:
    load(pg, "llama_index")
    for column in columns(pg):
        assert (column.columns.id, column.key, column.id_known) == ("node_id", ("id",), False)


def test_the_index_that_a_library_built_is_read(pg: str) -> None:
    load(pg, "llama_index")
    [half, whole] = columns(pg)
    [index] = half.indexes
    assert (index.method, index.opclass, index.metric) == ("hnsw", "halfvec_l2_ops", "l2")
    assert (index.type, index.dim, index.expression, index.plain) == ("halfvec", 8, "embedding", True)
    assert (index.valid, index.ready, index.building, index.scans) == (True, True, False, 0)
    assert index.options == ("m=16", "ef_construction=64")
    assert index.bytes > 0
    assert [index.metric for index in whole.indexes] == ["cosine"]


def test_own_collections_are_not_listed(pg: str) -> None:
    with vecbridge.connect(pg) as store:
        collection = store.create("things", dim=8)
        collection.upsert(["a"], np.ones((1, 8), np.float32))
    assert columns(pg) == []
    execute(pg, "CREATE TABLE vecbridge_notes (id int, embedding vector(3))")
    assert [column.table for column in columns(pg)] == ["vecbridge_notes"]


def test_a_database_without_pgvector_has_no_columns(pg: str) -> None:
    execute(pg, "CREATE TABLE flags (id int, embedding bit(512))")
    assert columns(pg) == []


@pytest.fixture
def empty(pg18: str, fresh: Fresh) -> str:
    """URL of an empty database with pgvector."""
    return fresh(pg18, extension=True)


def test_columns_of_a_plain_table_are_named_only_where_there_is_one_choice(empty: str) -> None:
    execute(
        empty,
        "CREATE TABLE a (key uuid PRIMARY KEY, title text, body text, v vector(3), info jsonb)",
        "CREATE TABLE b (x int, y int, one text, two text, m json, n json, v vector(3), PRIMARY KEY (x, y))",
        "CREATE TABLE c (id int PRIMARY KEY, said text, v vector(3))",
        "CREATE TABLE d (id text UNIQUE NOT NULL, metadata jsonb, raw jsonb, v vector(3))",
    )
    assert [(column.maker, column.columns, column.id_known) for column in columns(empty)] == [
        ("plain", Columns("key", "v", "body", "info"), True),
        ("plain", Columns(None, "v", None, None), False),
        ("plain", Columns("id", "v", "said", None), True),
        ("plain", Columns("id", "v", None, "metadata"), True),
    ]


def test_short_bit_columns_are_flags_unless_a_vector_index_says_otherwise(empty: str) -> None:
    execute(
        empty,
        "CREATE TABLE a (flags bit(8), signs bit(64), rest varbit)",
        "CREATE TABLE b (signs bit(16))",
        "CREATE INDEX ON b USING hnsw (signs bit_hamming_ops)",
    )
    assert [(column.table, column.column, column.type, column.dim) for column in columns(empty)] == [
        ("a", "signs", "bit", 64),
        ("b", "signs", "bit", 16),
    ]
    assert columns(empty)[1].indexes[0].metric == "hamming"


def test_found_dimensions_are_of_a_bounded_sample_that_reaches_the_end(empty: str) -> None:
    execute(empty, "CREATE TABLE a (id serial PRIMARY KEY, embedding vector)")
    # inline, so that there are many pages
    execute(empty, "ALTER TABLE a ALTER embedding SET STORAGE PLAIN")
    fill(empty, "a", [300] * 2_000 + [200] * 2_000)
    column = one(empty)
    assert column.storage == "plain"
    assert column.dims == (200, 300)
    assert 0 < column.seen <= foreign.SAMPLE
    assert (column.rows, column.analyzed) == (4_000, False)
    execute(empty, "ANALYZE a")
    assert one(empty).analyzed
    assert one(empty).rows == 4_000


def test_a_partitioned_table_is_one_column(empty: str) -> None:
    execute(
        empty,
        "CREATE TABLE a (id int, half int, v vector) PARTITION BY LIST (half)",
        "CREATE TABLE a0 PARTITION OF a FOR VALUES IN (0)",
        "CREATE TABLE a1 PARTITION OF a FOR VALUES IN (1)",
        "INSERT INTO a SELECT n, n % 2, '[1,2,3]' FROM generate_series(1, 100) n",
        "CREATE INDEX whole ON a USING hnsw ((v::vector(3)) vector_l2_ops)",
        "CREATE INDEX apart ON a0 USING hnsw ((v::vector(3)) vector_ip_ops)",
    )
    column = one(empty)
    assert (column.table, column.kind, column.dims, column.rows) == ("a", "partitioned", (3,), 100)
    assert [(index.name, index.partition, index.valid, index.dim) for index in column.indexes] == [
        ("whole", "", True, 3),
        ("apart", "a0", True, 3),
    ]
    assert all(index.bytes for index in column.indexes)


def test_materialised_views_count_and_domains_are_seen_through(empty: str) -> None:
    execute(
        empty,
        "CREATE DOMAIN place AS vector(3)",
        "CREATE TABLE a (id int PRIMARY KEY, v place)",
        "INSERT INTO a VALUES (1, '[1,2,3]')",
        "CREATE MATERIALIZED VIEW b AS SELECT id, v::vector AS v FROM a",
    )
    assert [(column.table, column.kind, column.declared, column.dims) for column in columns(empty)] == [
        ("a", "table", 3, (3,)),
        ("b", "view", None, (3,)),
    ]


def test_expression_partial_and_invalid_indexes_are_read(empty: str) -> None:
    execute(
        empty,
        "CREATE TABLE a (id int PRIMARY KEY, kind text, embedding vector, other vector(3))",
        "INSERT INTO a SELECT n, 'x', '[1,2,3]', '[1,2,3]' FROM generate_series(1, 10) n",
        "CREATE INDEX half ON a USING hnsw ((embedding::halfvec(3)) halfvec_cosine_ops) WHERE kind = 'x'",
        "CREATE INDEX signs ON a USING hnsw ((binary_quantize(embedding)::bit(3)) bit_hamming_ops)",
        "CREATE INDEX plain ON a (kind)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'signs'::regclass",
    )
    [embedding, other] = columns(empty)
    assert other.indexes == ()
    [half, signs] = embedding.indexes
    assert (half.type, half.dim, half.plain, half.predicate) == ("halfvec", 3, False, "kind = 'x'::text")
    assert half.expression == "(embedding::halfvec(3))"
    assert (signs.type, signs.dim, signs.valid, signs.metric) == ("bit", 3, False, "hamming")


def test_a_locked_table_is_listed_without_waiting(empty: str) -> None:
    execute(empty, "CREATE TABLE a (v vector)", "INSERT INTO a VALUES ('[1,2]')")
    with psycopg.connect(empty) as holder:
        holder.execute("LOCK TABLE a")
        column = one(empty)
    assert (column.bytes, column.dims, column.seen) == (None, (), 0)
    assert one(empty).dims == (2,)


def test_what_may_not_be_read_is_listed_without_its_dimensions(empty: str) -> None:
    execute(empty, "CREATE TABLE a (v vector)", "INSERT INTO a VALUES ('[1,2]')")
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("SET ROLE pg_monitor")
        [column] = foreign.columns(connection)
    assert (column.readable, column.owned, column.dims, column.rows) == (False, False, (), 1)


def test_the_extension_may_lie_in_a_schema_of_its_own(pg: str) -> None:
    execute(
        pg,
        "CREATE SCHEMA extensions",
        "CREATE EXTENSION vector SCHEMA extensions",
        "CREATE TABLE a (v extensions.vector)",
        "INSERT INTO a VALUES ('[1,2]')",
    )
    column = one(pg, "a")
    assert (column.home, column.dims) == ("extensions", (2,))
    assert columns(pg, schema="nowhere") == []
