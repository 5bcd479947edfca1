"""Vector columns that others made: whose tables they are in, what is in them, which indexes they have.

Reads the catalogues and a bounded sample, changes nothing, waits for no lock longer than a moment. Tables are
recognised by their columns, which were read in the source of the newest version of each library; `MAKERS`
names it. Nothing is guessed where two columns would do.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from psycopg import errors as pg
from psycopg.rows import dict_row
from psycopg.sql import SQL, Composable, Composed, Identifier
from psycopg.sql import Literal as Value

from . import sql
from .pool import Connection

__all__ = ["MAKERS", "Columns", "Part", "VectorColumn", "VectorIndex", "columns", "recognised"]

# what makes such tables: its name for people, and where its CREATE TABLE was read
MAKERS: Mapping[str, tuple[str, str]] = {
    "langchain v1": ("LangChain (PGVector)", "langchain-postgres 0.0.19, vectorstores.py EmbeddingStore"),
    "langchain v2": (
        "LangChain (PGVectorStore)",
        "langchain-postgres 0.0.19, v2/engine.py _ainit_vectorstore_table",
    ),
    "llama-index": (
        "LlamaIndex",
        "llama-index-vector-stores-postgres 0.9.0, base.py get_data_model",
    ),
    "haystack": ("Haystack", "pgvector-haystack 8.1.2, document_store.py CREATE_TABLE_STATEMENT"),
    "mastra": ("Mastra", "@mastra/pg 1.27.1 and 0.17.10, vector/index.ts createIndex"),
    "vecs": ("Supabase vecs", "vecs 0.4.5, collection.py build_table"),
    "plain": ("", ""),
}

SAMPLE = 1_000  # rows of a column without declared dimension that are looked at
_PAGES = 64  # of its table, spread over all of it
_PATIENCE = 10.0  # seconds for all samples of a database
_MOMENT = "2s"  # for one of them, and for a lock
_SMALLEST_BIT = 64  # dimensions; a shorter bit column holds flags, not the signs of a vector
_PARTS = 100  # collections of one table that are listed

Type = Literal["vector", "halfvec", "bit"]
Metric = Literal["cosine", "l2", "ip", "l1", "hamming", "jaccard", ""]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column of a table is what; None where there is none, or where several could be it.

    `part` tells the collections apart that share the table (LangChain's collection_id, Mastra's namespace).
    `others` are further columns that hold metadata, one field each.
    """

    id: str | None
    embedding: str
    document: str | None
    metadata: str | None
    part: str | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """An index over a vector column.

    `method`: hnsw, ivfflat, or that of another extension. `type` and `dim`: what it holds, after a cast.
    `expression`: what it is over as the server prints it, the column's name where `plain`. `predicate`: of
    the rows that it covers, "" for all. `building`: somebody builds it right now. `scans`: searches since the
    statistics began, None where they are not kept. `partition`: the one that it is on, where the partitioned
    table has no index that it belongs to.
    """

    schema: str
    name: str
    method: str
    opclass: str
    type: str
    dim: int | None
    expression: str
    plain: bool
    predicate: str
    options: tuple[str, ...]
    valid: bool
    ready: bool
    building: bool
    bytes: int
    scans: int | None
    partition: str = ""

    @property
    def metric(self) -> Metric:
        """What its operator class measures; "" where it is none of pgvector's."""
        middle = self.opclass.removesuffix("_ops").rpartition("_")[2]
        return _METRICS.get(middle, "")


_METRICS: Mapping[str, Metric] = {
    "cosine": "cosine",
    "l2": "l2",
    "ip": "ip",
    "l1": "l1",
    "hamming": "hamming",
    "jaccard": "jaccard",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One of the collections in a table: its `key` in the column `part`, name, and dimensions found.

    `share`: of the sampled rows, None where nothing was sampled.
    """

    key: str
    name: str
    dims: tuple[int, ...]
    share: float | None


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """A column of vectors in a table that vecbridge did not make.

    `kind` of the table: "table", "partitioned" or "view" (materialised). `declared`: its dimension, None
    where the type names none. `dims`: the dimensions found, sorted, which is the declared one where there is
    one; `seen`: how many values were looked at to find them, 0 where none had to be or could be. `rows`:
    estimated, None where the server has no idea; `analyzed`: whether it has statistics of the columns.
    `bytes`: of the table with what lies beside it (TOAST), without indexes; None where it is locked.
    `storage`: plain, main, external or extended. `key`: the columns of the primary key; `unique`: those that
    alone are unique and not null. `readable`: whether this user may read it. `maker`: a key of `MAKERS`.
    `parts`: the collections in it, where `columns.part` tells them apart.
    """

    schema: str
    table: str
    column: str
    kind: Literal["table", "partitioned", "view"]
    type: Type
    declared: int | None
    dims: tuple[int, ...]
    seen: int
    rows: int | None
    analyzed: bool
    bytes: int | None
    storage: Literal["plain", "main", "external", "extended"]
    required: bool
    key: tuple[str, ...]
    unique: tuple[str, ...]
    types: Mapping[str, str] = field(hash=False)
    readable: bool
    owner: str
    owned: bool
    home: str
    maker: str
    columns: Columns
    indexes: tuple[VectorIndex, ...] = ()
    parts: tuple[Part, ...] = ()

    @property
    def name(self) -> Identifier:
        """The table, with its schema."""
        return Identifier(self.schema, self.table)

    @property
    def dim(self) -> int | None:
        """The one dimension that it has, None where that is not known or where it has several."""
        return self.declared or (self.dims[0] if len(self.dims) == 1 else None)

    @property
    def id_known(self) -> bool:
        """Whether a column is known that names each row: alone unique, and never null."""
        return self.columns.id is not None and self.columns.id in self.unique


_COLUMNS = """
WITH home AS (
    SELECT n.oid, n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
    WHERE e.extname = 'vector'
), locked AS (
    SELECT relation FROM pg_locks WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock' AND granted
        AND pid <> pg_backend_pid() AND database = (SELECT oid FROM pg_database
        WHERE datname = current_database())
), found AS (
    SELECT c.oid, n.nspname, c.relname, c.relkind, c.relowner, a.attnum, a.attname, a.attstorage,
        a.attnotnull, home.nspname AS home, b.typname, c.reltuples,
        CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END AS declared,
        ARRAY(SELECT inside.relid::oid FROM pg_partition_tree(c.oid) inside WHERE inside.isleaf
            UNION SELECT c.oid WHERE c.relkind <> 'p') AS leaves
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type t ON t.oid = a.atttypid
        JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
        CROSS JOIN home
    WHERE c.relkind IN ('r', 'p', 'm') AND NOT c.relispartition AND c.relpersistence <> 't'
        AND (b.typnamespace = home.oid AND b.typname IN ('vector', 'halfvec')
            OR b.typnamespace = 'pg_catalog'::regnamespace AND b.typname IN ('bit', 'varbit'))
        AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
        AND (%(schema)s::text IS NULL OR n.nspname = %(schema)s)
        AND (%(table)s::text IS NULL OR c.relname = %(table)s)
        AND NOT (starts_with(c.relname, %(prefix)s) AND 4 = (SELECT count(*) FROM pg_attribute own
            WHERE own.attrelid = c.oid AND own.attname IN ('id', 'embedding', 'metadata', 'digest')))
)
SELECT f.oid::int8 AS oid, f.nspname AS schema, f.relname AS table, f.attname AS column, f.typname AS type,
    CASE f.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned' ELSE 'view' END AS kind,
    f.declared, f.home, f.attnotnull AS required,
    CASE f.attstorage WHEN 'p' THEN 'plain' WHEN 'm' THEN 'main' WHEN 'e' THEN 'external'
        ELSE 'extended' END AS storage,
    pg_get_userbyid(f.relowner) AS owner, pg_has_role(f.relowner, 'USAGE') AS owned,
    has_schema_privilege(f.nspname, 'USAGE') AND has_column_privilege(f.oid, f.attnum, 'SELECT') AS readable,
    inside.locked, inside.bytes::int8 AS bytes, inside.pages::int8 AS pages,
    CASE WHEN inside.guessed THEN NULL ELSE inside.rows::int8 END AS rows,
    EXISTS (SELECT FROM pg_stats s WHERE s.schemaname = f.nspname AND s.tablename = f.relname)
        OR EXISTS (SELECT FROM pg_stat_user_tables s
            WHERE (s.relid = f.oid OR s.relid = ANY (f.leaves))
            AND greatest(s.last_analyze, s.last_autoanalyze) IS NOT NULL) AS analyzed,
    (SELECT json_object_agg(a.attname, format_type(a.atttypid, NULL) ORDER BY a.attnum) FROM pg_attribute a
        WHERE a.attrelid = f.oid AND a.attnum > 0 AND NOT a.attisdropped) AS types,
    ARRAY(SELECT a.attname::text FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY k(attnum, nth)
        JOIN pg_attribute a ON a.attrelid = f.oid AND a.attnum = k.attnum
        WHERE i.indrelid = f.oid AND i.indisprimary ORDER BY k.nth) AS key,
    ARRAY(SELECT DISTINCT a.attname::text FROM pg_index i
        JOIN pg_attribute a ON a.attrelid = f.oid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = f.oid AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 1
        AND i.indpred IS NULL AND i.indexprs IS NULL AND (a.attnotnull OR f.relkind = 'm')) AS unique
FROM found f CROSS JOIN LATERAL (
    SELECT bool_or(l.relation IS NOT NULL) AS locked,
        -- a size waits for the lock that it needs, so that of a locked table is not asked for
        sum(CASE WHEN l.relation IS NULL THEN pg_table_size(leaf.oid) END) AS bytes,
        sum(size.pages) AS pages,
        -- as the planner does: rows on a page when last counted, times the pages that there are now
        sum(CASE WHEN leaf.relpages > 0 AND leaf.reltuples >= 0
            THEN leaf.reltuples * size.pages / leaf.relpages ELSE coalesce(s.n_live_tup, 0) END) AS rows,
        bool_or(size.pages > 0 AND (leaf.relpages = 0 OR leaf.reltuples < 0)
            AND coalesce(s.n_live_tup, 0) = 0) AS guessed
    FROM pg_class leaf LEFT JOIN pg_stat_user_tables s ON s.relid = leaf.oid
        LEFT JOIN (SELECT DISTINCT relation FROM locked) l ON l.relation = leaf.oid
        CROSS JOIN LATERAL (SELECT CASE WHEN l.relation IS NULL AND leaf.relkind IN ('r', 'm')
            THEN pg_relation_size(leaf.oid) / current_setting('block_size')::int
            ELSE leaf.relpages END AS pages) size
    WHERE leaf.oid = ANY (f.leaves)
) inside
ORDER BY 2, 3, f.attnum
"""

_INDEXES = """
SELECT over.table::int8 AS oid, over.column, n.nspname AS schema, x.relname AS name, am.amname AS method,
    o.opcname AS opclass, t.typname AS type, NULLIF(held.atttypmod, -1) AS dim,
    pg_get_indexdef(i.indexrelid, 1, true) AS expression, i.indkey[0] <> 0 AS plain,
    coalesce(pg_get_expr(i.indpred, i.indrelid, true), '') AS predicate,
    coalesce(x.reloptions, '{}') AS options, i.indisvalid AS valid, i.indisready AS ready,
    EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid) AS building,
    (SELECT sum(pg_relation_size(one)) FROM unnest(inside.ids) one)::int8 AS bytes,
    (SELECT sum(s.idx_scan) FROM pg_stat_user_indexes s WHERE s.indexrelid = ANY (inside.ids))::int8 AS scans,
    CASE WHEN i.indrelid = over.table THEN '' ELSE i.indrelid::regclass::text END AS partition
FROM (SELECT DISTINCT asked.table, asked.column, d.refobjid AS relation, d.objid AS index
        FROM unnest(%(tables)s::oid[], %(columns)s::text[]) asked("table", "column")
        CROSS JOIN LATERAL (SELECT asked.table AS oid UNION SELECT relid FROM pg_partition_tree(asked.table)
            WHERE isleaf) leaf
        JOIN pg_attribute a ON a.attrelid = leaf.oid AND a.attname = asked.column
        -- both a key that is the column and an expression over it depend on it
        JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
            AND d.refobjid = leaf.oid AND d.refobjsubid = a.attnum
    ) over
    JOIN pg_index i ON i.indexrelid = over.index AND i.indrelid = over.relation
    JOIN pg_class x ON x.oid = i.indexrelid AND x.relkind IN ('i', 'I') AND NOT x.relispartition
    JOIN pg_namespace n ON n.oid = x.relnamespace JOIN pg_am am ON am.oid = x.relam
    JOIN pg_opclass o ON o.oid = i.indclass[0]
    JOIN pg_attribute held ON held.attrelid = i.indexrelid AND held.attnum = 1
    JOIN pg_type t ON t.oid = held.atttypid
    CROSS JOIN LATERAL (SELECT ARRAY(SELECT i.indexrelid UNION
        SELECT relid FROM pg_partition_tree(i.indexrelid)) AS ids) inside
WHERE am.amname NOT IN ('btree', 'hash', 'gin', 'gist', 'spgist', 'brin')
ORDER BY 1, 2, partition, name
"""


def columns(
    connection: Connection, *, schema: str | None = None, table: str | None = None
) -> list[VectorColumn]:
    """Every column of vectors in this database, sorted by schema, table and place; or those of one table.

    Left out are vecbridge's own collections, partitions (their table stands for them), temporary tables,
    and bit columns too short for a vector (below 64) that no vector index is over.
    """
    with connection.transaction():
        connection.execute(SQL("SET LOCAL lock_timeout = {}").format(Value(_MOMENT)))
        cursor = connection.cursor(row_factory=dict_row)
        rows = cursor.execute(_COLUMNS, {"schema": schema, "table": table, "prefix": sql.PREFIX}).fetchall()
        free = [row for row in rows if not row["locked"]]
        asked = {"tables": [row["oid"] for row in free], "columns": [row["column"] for row in free]}
        indexes: dict[tuple[int, str], list[VectorIndex]] = {}
        for row in cursor.execute(_INDEXES, asked).fetchall():
            key = (row.pop("oid"), row.pop("column"))
            indexes.setdefault(key, []).append(VectorIndex(**{**row, "options": tuple(row["options"])}))
    until = time.monotonic() + _PATIENCE
    found = []
    for row in rows:
        column = _column(row, tuple(indexes.get((row["oid"], row["column"]), ())))
        if column.type == "bit" and not column.indexes and (column.declared or 0) < _SMALLEST_BIT:
            continue
        if row["readable"] and not row["locked"] and time.monotonic() < until:
            column = _sampled(connection, column, row["pages"] or 0)
        found.append(column)
    return found


def _column(row: Mapping[str, Any], indexes: tuple[VectorIndex, ...]) -> VectorColumn:
    declared = row["declared"] if row["declared"] > 0 else None
    maker, names = recognised(
        row["schema"], row["column"], row["types"], key=row["key"], unique=row["unique"]
    )
    return VectorColumn(
        schema=row["schema"],
        table=row["table"],
        column=row["column"],
        kind=row["kind"],
        type="bit" if row["type"] == "varbit" else row["type"],
        declared=None if row["type"] == "varbit" else declared,
        dims=(declared,) if declared and row["type"] != "varbit" else (),
        seen=0,
        rows=row["rows"],
        analyzed=row["analyzed"],
        bytes=row["bytes"],
        storage=row["storage"],
        required=row["required"],
        key=tuple(row["key"]),
        unique=tuple(row["unique"]),
        types=row["types"],
        readable=row["readable"],
        owner=row["owner"],
        owned=row["owned"],
        home=row["home"],
        maker=maker,
        columns=names,
        indexes=indexes,
    )


def _sampled(connection: Connection, column: VectorColumn, pages: int) -> VectorColumn:
    """With the dimensions and the collections found in a sample, where there is something to find."""
    part = column.columns.part
    if column.declared is not None and part is None:
        return column
    rows: Sequence[tuple[Any, ...]] = ()
    names: Mapping[str, str] = {}
    try:
        with connection.transaction():
            connection.execute(
                SQL("SET LOCAL lock_timeout = {0}; SET LOCAL statement_timeout = {0}").format(Value(_MOMENT))
            )
            rows = connection.execute(_sample(column, pages)).fetchall()
            if column.maker == "langchain v1":
                names = dict(
                    connection.execute(
                        SQL("SELECT uuid::text, name FROM {} ORDER BY name LIMIT {}").format(
                            Identifier(column.schema, "langchain_pg_collection"), Value(_PARTS)
                        )
                    ).fetchall()
                )
    except (
        pg.QueryCanceled,
        pg.LockNotAvailable,
        pg.InsufficientPrivilege,
        pg.UndefinedTable,
        pg.UndefinedColumn,
        pg.WrongObjectType,
    ):
        return column
    seen = sum(count for _, _, count in rows)
    dims: dict[str, set[int]] = {}
    counts: Counter[str] = Counter()
    for key, dim, count in rows:
        if key is not None:
            dims.setdefault(key, set()).add(dim)
            counts[key] += count
    parts = [
        Part(key, names.get(key, key), tuple(sorted(dims.get(key, ()))), counts[key] / seen if seen else None)
        for key in sorted({*names, *counts}, key=lambda key: (-counts[key], names.get(key, key)))
    ]
    if column.declared is None:
        column = replace(column, dims=tuple(sorted({dim for _, dim, _ in rows})))
    return replace(column, seen=seen, parts=tuple(parts[:_PARTS]))


def _sample(column: VectorColumn, pages: int) -> Composed:
    """The dimensions of a sample of the values, with how often each comes, per collection."""
    part, name = column.columns.part, Identifier(column.column)
    size: Composable = SQL("length")
    if column.type != "bit":
        size = Identifier(column.home, "vector_dims")
    # whole pages spread over the table: the first rows may all be of one collection
    spread: Composable = SQL("")
    if pages > 2 * _PAGES:
        spread = SQL(" TABLESAMPLE SYSTEM ({}) REPEATABLE (0)").format(Value(100 * _PAGES / pages))
    return SQL(
        "SELECT part, dim, count(*) FROM (SELECT {}::text AS part, {}({}) AS dim FROM {}{} "
        "WHERE {} IS NOT NULL LIMIT {}) AS sampled GROUP BY part, dim"
    ).format(
        SQL("NULL") if part is None else Identifier(part),
        size,
        name,
        column.name,
        spread,
        name,
        Value(SAMPLE),
    )


# columns that only these libraries' tables have together; the first that fits is it
_SIGNS: Sequence[tuple[str, frozenset[str]]] = (
    ("langchain v1", frozenset({"collection_id", "embedding", "document", "cmetadata"})),
    ("langchain v2", frozenset({"langchain_id"})),
    ("langchain v2", frozenset({"langchain_metadata", "content"})),
    ("llama-index", frozenset({"id", "text", "metadata_", "node_id", "embedding"})),
    (
        "haystack",
        frozenset({"id", "embedding", "content", "blob_data", "blob_meta", "blob_mime_type", "meta"}),
    ),
    ("mastra", frozenset({"id", "vector_id", "embedding", "metadata"})),
    ("vecs", frozenset({"id", "vec", "metadata"})),
)
_DOCUMENTS = ("document", "content", "text", "page_content", "body", "chunk", "chunk_text", "passage")
_METADATAS = ("metadata", "meta", "cmetadata", "metadata_")
_TEXTS = ("text", "character varying", "character")


def recognised(
    schema: str, column: str, types: Mapping[str, str], *, key: Sequence[str], unique: Sequence[str]
) -> tuple[str, Columns]:
    """Whose table it is, a key of `MAKERS`, and which of its columns is what.

    `types`: of its columns, in their order; `key`: the columns of its primary key; `unique`: those that
    alone name a row.
    """
    only = key[0] if len(key) == 1 else _only(unique)
    there = set(types)
    for maker, signs in _SIGNS:
        if signs <= there and (maker != "vecs" or (schema == "vecs" and column == "vec")):
            break
    else:
        return "plain", Columns(only, column, _document(types, {only}), _metadata(types))
    if maker == "langchain v1":
        # langchain-community had a uuid instead of the id
        id = "id" if "id" in there else only
        return maker, Columns(id, column, "document", "cmetadata", part="collection_id")
    if maker == "langchain v2":
        id = "langchain_id" if "langchain_id" in there else only
        document = "content" if "content" in there else _document(types, {id})
        metadata = "langchain_metadata" if "langchain_metadata" in there else None
        apart = {id, column, document, metadata}
        kinds = {"tsvector", types[column], "vector", "halfvec"}
        others = tuple(name for name, kind in types.items() if name not in apart and kind not in kinds)
        return maker, Columns(id, column, document, metadata, others=others)
    if maker == "llama-index":
        return maker, Columns("node_id", column, "text", "metadata_")
    if maker == "haystack":
        return maker, Columns("id", column, "content", "meta")
    if maker == "mastra":
        part = "namespace" if "namespace" in there else None
        return maker, Columns("vector_id", column, None, "metadata", part=part)
    return maker, Columns("id", column, None, "metadata")


def _document(types: Mapping[str, str], taken: set[str | None]) -> str | None:
    texts = [name for name, kind in types.items() if kind in _TEXTS and name not in taken]
    return _only([name for name in texts if name.lower() in _DOCUMENTS] or texts)


def _metadata(types: Mapping[str, str]) -> str | None:
    objects = [name for name, kind in types.items() if kind in ("json", "jsonb")]
    return _only([name for name in objects if name.lower() in _METADATAS] or objects)


def _only(names: Sequence[str]) -> str | None:
    return names[0] if len(names) == 1 else None
