"""pgvector by hand: what whoever knows PostgreSQL would write for one purpose, with nothing else done.

Vectors are encoded before the clock starts where the job is loading; settings are made once for a session.
Every batch is one transaction, committed and therefore synchronised, as a call of `Collection.upsert` is.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.adapt import Dumper
from psycopg.pq import Format

from .bench import EF, WIDEST
from .rows import K, Rows

Floats = NDArray[np.float32]
Connection: TypeAlias = psycopg.Connection[Any]
PIECE = 65_536  # bytes handed to libpq at once: more is moved again and again inside it
COLUMNS = "id, embedding, digest, document, metadata"


def table(connection: Connection, name: str, dim: int) -> None:
    """An empty table with a collection's columns, storage and primary key, in place of an older one."""
    connection.execute(f"DROP TABLE IF EXISTS {name}")
    connection.execute(
        f'CREATE TABLE {name} (id text COLLATE "C" PRIMARY KEY, embedding vector({dim}) NOT NULL, '
        f"digest bytea, document text, metadata jsonb NOT NULL)"
    )
    connection.execute(
        f"ALTER TABLE {name} ALTER id SET STORAGE MAIN, ALTER metadata SET STORAGE MAIN, "
        f"ALTER embedding SET STORAGE EXTERNAL, ALTER embedding SET STATISTICS 0"
    )
    connection.commit()


def encoded(rows: Rows) -> list[bytes]:
    """The binary COPY of these rows, in pieces of 64 KiB."""
    head = struct.pack(">hh", rows.vectors.shape[1], 0)
    parts = [b"PGCOPY\n\xff\r\n\0" + bytes(8)]
    wide = rows.vectors.astype(">f4")
    for n, (id, document, entry) in enumerate(zip(rows.ids, rows.documents, rows.metadata, strict=True)):
        values = (
            id.encode(),
            head + wide[n].tobytes(),
            None,
            document.encode(),
            b"\1" + json.dumps(entry).encode(),
        )
        parts.append(struct.pack(">h", len(values)))
        parts += [b"\xff" * 4 if value is None else struct.pack(">i", len(value)) + value for value in values]
    whole = b"".join([*parts, b"\xff\xff"])
    return [whole[at : at + PIECE] for at in range(0, len(whole), PIECE)]


def copy(connection: Connection, name: str, pieces: Sequence[bytes]) -> None:
    """Send one COPY; commits nothing."""
    statement = f"COPY {name} ({COLUMNS}) FROM STDIN (FORMAT BINARY)"
    with connection.cursor() as cursor, cursor.copy(statement) as stream:
        for piece in pieces:
            stream.write(piece)


def replace(connection: Connection, name: str, pieces: Sequence[bytes]) -> None:
    """Insert or replace: COPY into a temporary table that the session keeps, one INSERT … ON CONFLICT."""
    connection.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name}_staging (LIKE {name}) ON COMMIT DELETE ROWS")
    copy(connection, f"{name}_staging", pieces)
    updates = ", ".join(f"{column} = EXCLUDED.{column}" for column in COLUMNS.split(", ")[1:])
    connection.execute(
        f"INSERT INTO {name} ({COLUMNS}) SELECT {COLUMNS} FROM {name}_staging "
        f"ON CONFLICT (id) DO UPDATE SET {updates}",
        prepare=False,
    )
    connection.commit()


def rewrite(connection: Connection, name: str, ids: Sequence[str], pieces: Sequence[bytes]) -> None:
    """Replace: DELETE by id, COPY straight into the table, so that each vector is written once."""
    connection.execute("SET LOCAL enable_seqscan = off")
    connection.execute(f"DELETE FROM {name} WHERE id = ANY(%s)", [list(ids)])
    copy(connection, name, pieces)
    connection.commit()


class Wire(bytes):
    """A value as the server reads it."""


class _Dumper(Dumper):
    oid = 0  # the statement's cast says of which type
    format = Format.BINARY

    def dump(self, obj: Wire) -> bytes:
        return obj


psycopg.adapters.register_dumper(Wire, _Dumper)

Search = Callable[[Floats], list[tuple[Any, ...]]]


def statement(name: str, dim: int, *, where: str = "", candidates: int = 2 * K) -> str:
    """The k nearest by the index, ordered by their exact distance: id, document, metadata, distance."""
    condition = f"WHERE {where} " if where else ""
    if dim <= WIDEST and not where:
        return (
            f"SELECT id, document, metadata, embedding <=> %(q)b::vector FROM {name} "
            f"ORDER BY embedding <=> %(q)b::vector LIMIT {K}"
        )
    near = "embedding <=> %(q)b::vector"
    if dim > WIDEST:
        near = f"(embedding::halfvec({dim})) <=> %(s)b::halfvec"
    return (
        f"WITH c AS MATERIALIZED (SELECT id, embedding, document, metadata FROM {name} {condition}"
        f"ORDER BY {near} LIMIT {candidates}) "
        f"SELECT id, document, metadata, (embedding <=> %(q)b::vector) + 0 AS distance FROM c "
        f"ORDER BY distance LIMIT {K}"
    )


def exact(name: str, *, where: str) -> str:
    """The same by reading every row that matches."""
    return (
        f"SELECT id, document, metadata, (embedding <=> %(q)b::vector) + 0 AS distance FROM {name} "
        f"WHERE {where} ORDER BY distance LIMIT {K}"
    )


def settle(connection: Connection, *, scans: bool = False) -> None:
    """The settings of a session that searches; `scans`: it may also read the whole table."""
    connection.autocommit = True
    for setting in (
        f"hnsw.ef_search = {EF}",
        "hnsw.iterative_scan = relaxed_order",
        f"enable_seqscan = {'on' if scans else 'off'}",
        "jit = off",
    ):
        connection.execute(f"SET {setting}")


def values(query: Floats, dim: int) -> dict[str, Wire]:
    """A query as the parameters of `statement`."""
    head = struct.pack(">hh", dim, 0)
    given = {"q": Wire(head + query.astype(">f4").tobytes())}
    if dim > WIDEST:
        given["s"] = Wire(head + query.astype(">f2").tobytes())
    return given


def searcher(connection: Connection, text: str, dim: int) -> Search:
    """A function that searches with one prepared binary statement: one message there, one back."""
    names = {"q", "s"} if "%(s)b" in text else {"q"}

    def search(query: Floats) -> list[tuple[Any, ...]]:
        given = {name: value for name, value in values(query, dim).items() if name in names}
        return connection.execute(text, given, prepare=True, binary=True).fetchall()

    return search


def share(connection: Connection) -> None:
    """Let this session build indexes with every core and 2 GB."""
    count = max((os.cpu_count() or 1) - 1, 0)
    connection.execute("SET maintenance_work_mem = '2GB'")
    connection.execute(f"SET max_parallel_maintenance_workers = {count}")
    # vectors lie beside the rows, so that the table looks too small to share the work
    connection.execute("SET min_parallel_table_scan_size = 0")


def build(connection: Connection, name: str, index: str, dim: int) -> None:
    """An index as `statement` needs it."""
    column, kind = (f"(embedding::halfvec({dim}))", "halfvec") if dim > WIDEST else ("embedding", "vector")
    connection.execute(
        f"CREATE INDEX {index} ON {name} USING hnsw ({column} {kind}_cosine_ops) "
        f"WITH (m = 16, ef_construction = 64)"
    )
