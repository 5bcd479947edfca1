"""Whole collections read in parts, in the order of their ids.

Each part is a statement of its own: between them there is neither a transaction that vacuum would have to
wait for nor a connection that could be lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from psycopg.sql import SQL, Composed

from ...types import Batch
from .. import PART_BYTES
from . import copy, sql
from .filters import compile

if TYPE_CHECKING:
    from ...filters import Filter
    from .pool import Connection
    from .table import Table

_PART = 5_000  # records of one part, at most
# with old statistics or dear random reads, the planner may sort the whole table for each part
_UNSORTED = "SELECT set_config('enable_sort', 'off', true)"


def inventory(table: Table) -> Iterator[list[tuple[str, bytes | None]]]:
    """Ids and digests of all records."""
    statement = SQL("SELECT id, digest FROM {} WHERE id > %(last)s ORDER BY id LIMIT %(most)s")
    last = ""
    while True:
        part = _part(table, statement.format(table.name), {"last": last, "most": _PART}, prepare=None)
        if part:
            yield part
        if len(part) < _PART:
            return
        last = part[-1][0]


def scan(table: Table, where: Filter | None, *, vectors: bool) -> Iterator[Batch]:
    """All records, or those that match, in batches of about `PART_BYTES`."""
    condition, values = (SQL("true"), {}) if where is None else compile(where)
    column = sql.vector_columns(table.manifest)[0]
    width = 4 * column.dim if vectors else 0
    # The server adds up how large the part becomes: whoever asked for a number of rows would not know. Of
    # documents and metadata it tells the size without reading them.
    statement = SQL(
        "SELECT id, digest, document, metadata, size{vectors} FROM ("
        "SELECT *, sum(own) OVER (ORDER BY id) AS size FROM ("
        "SELECT id, digest, document, metadata{vectors}, "
        "{width} + coalesce(octet_length(document), 0) + pg_column_size(metadata) AS own "
        "FROM {table} WHERE id > %(last)s AND {condition} ORDER BY id LIMIT %(most)s"
        ") AS following) AS summed WHERE size - own < %(room)s ORDER BY id"
    ).format(
        vectors=SQL(", embedding") if vectors else SQL(""), width=width, table=table.name, condition=condition
    )
    # a plan for any parameters would read the array of $in's operands anew for each row
    prepare = None if where is None else False
    last = ""
    while True:
        part = _part(
            table, statement, {**values, "last": last, "most": _PART, "room": PART_BYTES}, prepare=prepare
        )
        if not part:
            return
        yield batch(table, [(row[0], row[5] if vectors else None, *row[1:4]) for row in part])
        if len(part) < _PART and part[-1][4] < PART_BYTES:
            return
        last = part[-1][0]


def batch(table: Table, rows: list[tuple[Any, ...]]) -> Batch:
    """Records from rows of (id, vector, digest, document, metadata); without vectors, those are None."""
    column = sql.vector_columns(table.manifest)[0]
    if not rows:
        return Batch((), np.empty((0, column.dim), np.float32), (), (), ())
    ids, embeddings, digests, documents, metadata = zip(*rows, strict=True)
    if embeddings[0] is None:
        matrix = np.empty((len(rows), 0), np.float32)
    else:
        matrix = copy.floats(embeddings, column.type, column.dim)
    return Batch(ids, matrix, documents, metadata, digests)


def _part(
    table: Table, statement: Composed, values: Mapping[str, Any], *, prepare: bool | None
) -> list[tuple[Any, ...]]:
    def fetch(connection: Connection) -> list[tuple[Any, ...]]:
        with connection.pipeline():
            connection.execute(_UNSORTED)
            cursor = connection.execute(statement, values, binary=True, prepare=prepare)
        return cursor.fetchall()

    return table.run(fetch)
