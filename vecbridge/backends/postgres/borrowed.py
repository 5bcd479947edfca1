"""Records in a table of another's, as SQL: what is selected from it, and which rows an index on it holds.

The selection has no sub-structure that the planner would have to keep: it is pulled up into the query around
it, so that an index on the table serves a search as if the table had been named. A view would do the same,
and keep its owner from dropping the table or changing a column's type.
"""

from __future__ import annotations

from psycopg.sql import SQL, Composable, Composed, Identifier
from psycopg.sql import Literal as Value

from ...manifest import Adopted

__all__ = ["indexed", "records", "rows", "same"]

_MOST = 40  # fields of one call, which takes 100 arguments


def records(adopted: Adopted, spread: Composable | None = None) -> Composed:
    """The records as a table with the columns of our own, and `key`, the id in its own type.

    `spread`: what follows the name of the table, TABLESAMPLE for example.
    """
    condition = rows(adopted)
    return SQL(
        "(SELECT {id}::text AS id, {id} AS key, {embedding} AS embedding, NULL::bytea AS digest, "
        "{document} AS document, {metadata} AS metadata FROM {table}{spread}{where}) AS records"
    ).format(
        id=Identifier(adopted.id),
        embedding=Identifier(adopted.embedding),
        document=SQL("NULL::text")
        if adopted.document is None
        else SQL("{}::text").format(Identifier(adopted.document)),
        metadata=_metadata(adopted),
        table=Identifier(adopted.schema, adopted.table),
        spread=SQL("") if spread is None else spread,
        where=SQL("") if condition is None else SQL(" WHERE {}").format(condition),
    )


def _metadata(adopted: Adopted) -> Composable:
    parts: list[Composable] = []
    if adopted.metadata is not None:
        # a list, a number or null are JSON, too, and no metadata
        parts.append(
            SQL("CASE jsonb_typeof({0}::jsonb) WHEN 'object' THEN {0}::jsonb ELSE '{{}}'::jsonb END").format(
                Identifier(adopted.metadata)
            )
        )
    for start in range(0, len(adopted.fields), _MOST):
        pairs = [
            SQL("{}::text, {}").format(Value(name), Identifier(name))
            for name in adopted.fields[start : start + _MOST]
        ]
        parts.append(SQL("jsonb_build_object({})").format(SQL(", ").join(pairs)))
    return SQL("({})").format(SQL(" || ").join(parts)) if parts else SQL("'{}'::jsonb")


def rows(adopted: Adopted) -> Composable | None:
    """Which rows of the table are records; None for all."""
    conditions = [] if adopted.part is None else [_part(adopted)]
    if adopted.nullable:
        conditions.append(SQL("{} IS NOT NULL").format(Identifier(adopted.embedding)))
    return SQL(" AND ").join(conditions) if conditions else None


def indexed(adopted: Adopted, dim: int, home: str) -> Composable | None:
    """Which rows an index holds; None for all. `home`: the schema of pgvector.

    A vector of another length, which its owner may add to a column without dimensions, stays out of it: the
    index would else refuse the row.
    """
    conditions = [] if adopted.part is None else [_part(adopted)]
    if adopted.free:
        conditions.append(same(Identifier(adopted.embedding), dim, home))
    return SQL(" AND ").join(conditions) if conditions else None


def same(column: Composable, dim: int, home: str) -> Composed:
    """That a vector has so many dimensions."""
    return SQL("{}({}) = {}").format(Identifier(home, "vector_dims"), column, Value(dim))


def _part(adopted: Adopted) -> Composed:
    assert adopted.part is not None
    # a literal of unknown type becomes one of the column's
    return SQL("{} = {}").format(Identifier(adopted.part), Value(adopted.key))
