"""The index that a vector column of others can have, as SQL, and the form of query that runs on it."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg.sql import SQL, Composable, Composed, Identifier
from psycopg.sql import Literal as Value

from ...limits import Limits
from . import sql
from .foreign import Metric, Part, Type, VectorColumn, VectorIndex
from .sql import Place

OPERATORS: dict[Metric, str] = {
    "cosine": "<=>", "l2": "<->", "ip": "<#>", "l1": "<+>", "hamming": "<~>", "jaccard": "<%>",
}  # fmt: skip

_ELEMENTS = {"vector": "float32", "halfvec": "float16", "bit": "bit"}
_AGAIN = 200  # candidates that a binary index hands on to be ordered exactly


@dataclass(frozen=True, slots=True)
class Proposal:
    """An index for a column: the statement that builds it, and the query that runs on it.

    `type` and `dim`: what it holds. `own`: whether queries on the bare column run on it as they are.
    `blocking`: whether it has to be built while writers wait. `query` has $1 for the vector asked for.
    """

    type: Type
    dim: int
    own: bool
    blocking: bool
    create: str
    query: str

    def remedy(self, settings: str = "") -> str:
        """What to paste, and the query as a comment."""
        return f"{self.create}\n-- a query that runs on it: {settings}{self.query}"


def proposal(
    column: VectorColumn, metric: Metric, limits: Limits, *, part: Part | None = None
) -> Proposal | str:
    """The best HNSW index that this pgvector can build on a column; or, as a sentence, why there is none.

    A declared dimension that fits is indexed as it is, so that the owner's queries run on it unchanged. Else
    in half precision by a cast; from 4,001 dimensions on by signs, which want exact re-ranking. `part`: only
    of one of the collections in the table.
    """
    dims = part.dims if part is not None else column.dims
    if len(dims) != 1:
        if not dims:
            return "no dimension is declared, and no vector was found to tell it by"
        return f"one index holds one dimension, and the column has {_listed(dims)}"
    [dim] = dims
    if lacking := limits.lacks("an hnsw index", limits.features["hnsw"].since):
        return lacking
    if column.type == "bit":
        metric = metric if metric in ("hamming", "jaccard") else "hamming"
    types: dict[Type, list[Type]] = {
        "vector": ["vector", "halfvec", "bit"], "halfvec": ["halfvec", "bit"], "bit": ["bit"],
    }  # fmt: skip
    wanted = types[column.type]
    if column.type == "vector" and column.declared is None and limits.has("halfvec"):
        wanted = wanted[1:]  # the query needs a cast anyway, and at half the size finds the same
    reason = ""
    for type in wanted:
        bound = limits.indexed[f"hnsw {_ELEMENTS[type]}"]
        if dim > bound.high:
            reason = f"an index on {type} stops at {bound.high:,} dimensions; these have {dim:,}"
        elif lacking := limits.lacks(f"an index on {type}", bound.since):
            return f"{reason}; {lacking}" if reason else lacking
        else:
            return _build(column, type, dim, metric, part)
    return reason


def _build(column: VectorColumn, type: Type, dim: int, metric: Metric, part: Part | None) -> Proposal:
    place, name = Place(column.schema, column.home), Identifier(column.column)
    signs = type == "bit" and column.type != "bit"
    searched: Composable = name
    if signs:
        searched = SQL("{}({})").format(Identifier(column.home, "binary_quantize"), name)
    own = type == column.type and column.declared is not None
    if not own:
        searched = SQL("({}::{})").format(searched, place.type(type, dim))
    opclass = f"{type}_{'hamming' if signs else metric}_ops"
    home = "pg_catalog" if opclass == "bit_ops" else column.home
    blocking = column.kind == "partitioned"
    where: Composable = SQL("")
    if part is not None and column.columns.part is not None:
        where = SQL(" WHERE {} = {}").format(Identifier(column.columns.part), Value(part.key))
    create = SQL("CREATE INDEX {}ON {} USING hnsw ({} {}){};").format(
        SQL("" if blocking else "CONCURRENTLY "), column.name, searched, Identifier(home, opclass), where
    )
    return Proposal(
        type, dim, own, blocking, create.as_string(None), _query(column, searched, type, dim, metric, where)
    )


def _query(
    column: VectorColumn, searched: Composable, type: Type, dim: int, metric: Metric, where: Composable
) -> str:
    place = Place(column.schema, column.home)
    asked: Composable = SQL("$1::{}").format(place.type(type, dim))
    if type == "bit" and column.type != "bit":
        whole = SQL("$1::{}").format(place.type(column.type, dim))
        quantize = Identifier(column.home, "binary_quantize")
        asked = SQL("{}({})::{}").format(quantize, whole, place.type("bit", dim))
        near = _distance(searched, "hamming", asked, place)
        exact = _distance(Identifier(column.column), metric, whole, place)
        return (
            SQL("SELECT * FROM (SELECT * FROM {}{} ORDER BY {} LIMIT {}) AS candidates ORDER BY {} LIMIT 10;")
            .format(column.name, where, near, Value(_AGAIN), exact)
            .as_string(None)
        )
    near = _distance(searched, metric, asked, place)
    return SQL("SELECT * FROM {}{} ORDER BY {} LIMIT 10;").format(column.name, where, near).as_string(None)


def query_for(column: VectorColumn, index: VectorIndex) -> str:
    """The query that runs on an index which is there, with $1 for the vector asked for; "" if not known."""
    if not index.metric or index.dim is None or index.type not in _ELEMENTS:
        return ""
    place = Place(column.schema, column.home)
    type: Type = "vector" if index.type == "vector" else "halfvec" if index.type == "halfvec" else "bit"
    searched: Composable = Identifier(column.column)
    if not index.plain:
        # as the server prints it, which is how it takes it back
        searched = SQL("({})").format(SQL(index.expression.replace("{", "{{").replace("}", "}}")))
    where = SQL(" WHERE {}").format(SQL(index.predicate)) if index.predicate else SQL("")
    asked = SQL("$1::{}").format(place.type(type, index.dim))
    near = _distance(searched, index.metric, asked, place)
    return SQL("SELECT * FROM {}{} ORDER BY {} LIMIT 10;").format(column.name, where, near).as_string(None)


def _distance(column: Composable, metric: Metric, asked: Composable, place: Place) -> Composed:
    operator = OPERATORS[metric]
    if place.home == "public":
        return SQL("{} {} {}").format(column, SQL(operator), asked)
    return SQL("{} OPERATOR({}.{}) {}").format(column, Identifier(place.home), SQL(operator), asked)


def _listed(dims: tuple[int, ...]) -> str:
    shown = ", ".join(f"{dim:,}" for dim in dims[:5])
    return f"{shown} and {len(dims) - 5} more" if len(dims) > 5 else shown


def qualified(column: VectorColumn) -> str:
    """The table of a column as SQL for people to run."""
    return f"{sql.quoted(column.schema)}.{sql.quoted(column.table)}"
