"""SQL for a collection, from its manifest alone: no connection, no values.

Everything of pgvector's is named with its schema, so that nothing depends on the search path. Names with a
`$` are ours: no collection's name holds one, so that no collection's table can take them.

A collection that was laid out anew lies in a table of another name: `vecbridge_NAME$GENERATION`. So whoever
still has the old one open finds nothing, instead of a table that is not what it takes it for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from psycopg.sql import SQL, Composable, Composed, Identifier, Placeholder
from psycopg.sql import Literal as Value

from ...manifest import Manifest
from ...objections import ROW_BYTES, has_copy, largest_inline
from ...types import Element, Index, Metric
from . import borrowed

CATALOGUE = "vecbridge$collections"
STAGING = "vecbridge$staging"

Type = Literal["vector", "halfvec", "bit"]

_TYPES: dict[Element, Type] = {"float32": "vector", "float16": "halfvec", "bit": "bit"}
_OPERATORS = {"cosine": "<=>", "ip": "<#>", "l2": "<->", "hamming": "<~>"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where things are: `schema` of our tables, `home` of the extension."""

    schema: str
    home: str

    def table(self, manifest: Manifest) -> Identifier:
        """The table that the records of a collection lie in, which may be another's."""
        return Identifier(*self.names(manifest))

    def names(self, manifest: Manifest) -> tuple[str, str]:
        """Schema and name of that table."""
        if manifest.adopted is not None:
            return manifest.adopted.schema, manifest.adopted.table
        return self.schema, table_name(manifest)

    def records(self, manifest: Manifest) -> Composable:
        """What is selected from: id, vectors, digest, document and metadata of each record."""
        if manifest.adopted is not None:
            return borrowed.records(manifest.adopted)
        return self.table(manifest)

    def table_of(self, name: str, generation: int) -> Identifier:
        """The table of a collection in one of its generations."""
        return Identifier(self.schema, f"{PREFIX}{_numbered(name, generation)}")

    def index(self, manifest: Manifest) -> Identifier:
        """The search index of a collection."""
        return Identifier(self.names(manifest)[0], index_name(manifest))

    def key(self, manifest: Manifest) -> Identifier:
        """The index of a collection's primary key."""
        return Identifier(self.schema, key_name(manifest))

    @property
    def catalogue(self) -> Identifier:
        """The table of manifests."""
        return Identifier(self.schema, CATALOGUE)

    def type(self, type: Type, dim: int | None = None) -> Composed:
        """A type, with its dimensions where given: `halfvec(3584)`."""
        # unquoted, bit means bit(1)
        name = SQL('pg_catalog."bit"') if type == "bit" else Identifier(self.home, type)
        return SQL("{}({})").format(name, Value(dim)) if dim else SQL("{}").format(name)

    def lock(self, name: str = "") -> int:
        """The advisory lock of a collection, or of the catalogue: 64 bits, signed."""
        text = f"vecbridge\0{self.schema if name else ''}\0{name}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def quoted(name: str) -> str:
    """A name as SQL for people to run."""
    return Identifier(name).as_string(None)


def type_of(element: Element) -> Type:
    """The type that holds an element."""
    return _TYPES[element]


PREFIX = "vecbridge_"
# PostgreSQL cuts names at 63 bytes, of which the prefix, a name of 48 and the `$` take 59
MOST_GENERATIONS = 9_999


def table_name(manifest: Manifest) -> str:
    """The table of a collection, without its schema."""
    return f"{PREFIX}{_numbered(manifest.name, manifest.generation)}"


def index_name(manifest: Manifest) -> str:
    """The search index of a collection, without its schema: that which vecbridge makes."""
    if manifest.adopted is not None:
        return manifest.adopted.index
    return _beside(manifest, "idx")


def key_name(manifest: Manifest) -> str:
    """The primary key of a collection's table."""
    return _beside(manifest, "key")


def _numbered(name: str, generation: int) -> str:
    return f"{name}${generation}" if generation else name


def _beside(manifest: Manifest, what: str) -> str:
    """What belongs to a collection's table; the short prefix leaves room for the generation."""
    prefix = "vb_" if manifest.generation else PREFIX
    return f"{prefix}{_numbered(manifest.name, manifest.generation)}${what}"


def collection_of(table: str) -> tuple[str, int] | None:
    """The collection and the generation that a table would be of by its name; None where of none."""
    if not table.startswith(PREFIX):
        return None
    name, numbered, generation = table.removeprefix(PREFIX).partition("$")
    if not numbered:
        return name, 0
    # as table_name writes it, so that no other table is taken for ours
    right = generation.isascii() and generation.isdigit() and not generation.startswith("0")
    return (name, int(generation)) if right else None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of vectors; `inline`: within its row's page (STORAGE PLAIN), else beside it (EXTERNAL)."""

    name: str
    type: Type
    dim: int
    inline: bool


def stored(manifest: Manifest) -> Column:
    """The column of the stored vectors."""
    layout = manifest.layout
    return Column("embedding", _TYPES[layout.element], manifest.stored_dim, layout.inline)


def copied(manifest: Manifest) -> Column | None:
    """The column of what is searched, where that is no expression of the stored vector, else None."""
    layout, index = manifest.layout, manifest.layout.index
    if index is None or not has_copy(layout):
        return None
    dim = layout.index_dim(manifest.space.dim)
    inline = not layout.inline and dim <= largest_inline(layout, ROW_BYTES)
    return Column("short", _TYPES[index.element], dim, inline)


def vector_columns(manifest: Manifest) -> list[Column]:
    """The stored vectors, and what is searched instead where it has a column of its own."""
    copy = copied(manifest)
    return [stored(manifest)] if copy is None else [stored(manifest), copy]


def columns(manifest: Manifest) -> list[str]:
    """Every column of the table in its order."""
    vectors = [column.name for column in vector_columns(manifest)]
    return ["id", *vectors, "digest", "document", "metadata"]


def create_catalogue(place: Place) -> Composed:
    """The table of manifests, where it is missing."""
    return SQL(
        'CREATE TABLE IF NOT EXISTS {} (name text COLLATE "C" PRIMARY KEY, manifest text NOT NULL, '
        "basis bytea NOT NULL, created timestamptz NOT NULL DEFAULT now())"
    ).format(place.catalogue)


def create_table(manifest: Manifest, place: Place) -> list[Composed]:
    """The table of a collection; nothing where it is another's.

    `id` and `metadata` are STORAGE MAIN: beside an inline vector, PostgreSQL would else move them out of the
    row, where a filter over them took 2.4 times as long (measured). Statistics on vectors serve nobody.
    """
    if manifest.adopted is not None:
        return []
    table = place.table(manifest)
    vectors = vector_columns(manifest)
    declared = [
        SQL("{} {} NOT NULL").format(Identifier(column.name), place.type(column.type, column.dim))
        for column in vectors
    ]
    create = SQL(
        'CREATE TABLE {} (id text COLLATE "C" CONSTRAINT {} PRIMARY KEY, {}, digest bytea, document text, '
        "metadata jsonb NOT NULL)"
    ).format(table, Identifier(key_name(manifest)), SQL(", ").join(declared))
    settings = [
        SQL("ALTER {0} SET STORAGE {1}, ALTER {0} SET STATISTICS 0").format(
            Identifier(column.name), SQL("PLAIN" if column.inline else "EXTERNAL")
        )
        for column in vectors
    ]
    # not in CREATE TABLE, which takes STORAGE from PostgreSQL 16 on only
    alter = SQL("ALTER TABLE {} ALTER id SET STORAGE MAIN, ALTER metadata SET STORAGE MAIN, {}").format(
        table, SQL(", ").join(settings)
    )
    return [create, alter]


def indexed(manifest: Manifest) -> Index | None:
    """The approximate index of a layout; None where every search scans."""
    index = manifest.layout.index
    return index if index and index.kind != "scan" else None


def _searched_metric(manifest: Manifest, index: Index) -> str:
    if index.element == "bit":
        return "hamming"
    # a prefix has another length than the whole; cosine makes it a unit vector in passing
    if index.shorten and index.shorten.method == "truncate":
        return "cosine"
    return manifest.space.metric


def _held(manifest: Manifest, place: Place, index: Index) -> Composable:
    """What an index holds of a row of the table, whose column of vectors may have another name than ours."""
    adopted = manifest.adopted
    return _searched(manifest, place, index, None if adopted is None else adopted.embedding)


def _searched(manifest: Manifest, place: Place, index: Index, name: str | None = None) -> Composable:
    """What an index holds of a row, exactly as the index and every query must spell it."""
    if (copy := copied(manifest)) is not None:
        return Identifier(copy.name)
    column = stored(manifest)
    type, dim = _TYPES[index.element], manifest.layout.index_dim(manifest.space.dim)
    expression: Composable = Identifier(name or column.name)
    if index.shorten:
        expression = SQL("{}({}, 1, {})").format(
            Identifier(place.home, "subvector"), expression, Value(index.shorten.dim)
        )
    if type == "bit":
        expression = SQL("{}({})").format(Identifier(place.home, "binary_quantize"), expression)
    free = manifest.adopted is not None and manifest.adopted.free
    if index.shorten or type != column.type or free:
        expression = SQL("({}::{})").format(expression, place.type(type, dim))
    return expression


def create_index(
    manifest: Manifest, place: Place, *, lists: int | None = None, concurrently: bool = False
) -> Composed:
    """The search index; `lists` overrules the layout's where there are too few rows for them."""
    index = indexed(manifest)
    assert index is not None
    adopted = manifest.adopted
    only = None if adopted is None else borrowed.indexed(adopted, manifest.stored_dim, place.home)
    return SQL("CREATE INDEX {}{} ON {} USING {} ({} {}) WITH ({}){}").format(
        SQL("CONCURRENTLY " if concurrently else ""),
        Identifier(index_name(manifest)),
        place.table(manifest),
        SQL(index.kind),
        _held(manifest, place, index),
        Identifier(place.home, _opclass(manifest, index)),
        SQL(", ").join(
            SQL("{} = {}").format(SQL(name), Value(value)) for name, value in options(index, lists).items()
        ),
        SQL("") if only is None else SQL(" WHERE {}").format(only),
    )


def options(index: Index, lists: int | None = None) -> dict[str, int]:
    """The parameters that an index is built with."""
    if index.kind == "hnsw":
        return {"m": index.m, "ef_construction": index.ef_construction}
    return {"lists": lists or max(index.lists, 1)}


def definition(manifest: Manifest, place: Place) -> tuple[str, str, str]:
    """Method, operator class and `plain` expression of the search index."""
    index = indexed(manifest)
    assert index is not None
    expression = plain(_held(manifest, place, index).as_string(None), place)
    return index.kind, _opclass(manifest, index), expression


def _opclass(manifest: Manifest, index: Index) -> str:
    return f"{_TYPES[index.element]}_{_searched_metric(manifest, index)}_ops"


def plain(expression: str, place: Place) -> str:
    """An expression without what the server may print or leave out: quotes, parentheses, spaces, schemas."""

    def bare(text: str) -> str:
        return text.translate(str.maketrans("", "", '"() '))

    return bare(expression).replace(f"{bare(place.home)}.", "").replace("pg_catalog.", "")


def _distance(column: Composable, metric: str, parameter: Composable, place: Place) -> Composed:
    return SQL("{} OPERATOR({}.{}) {}").format(
        column, Identifier(place.home), SQL(_OPERATORS[metric]), parameter
    )


def search(
    manifest: Manifest, place: Place, *, k: int, candidates: int | None, where: Composable | None
) -> Composed:
    """The k nearest as rows of id, document, metadata and distance; parameters `q`, and `s` with an index.

    `candidates`: how many come from the index before they are ordered exactly; None scans exactly.
    `q` is the query as the stored type, `s` as the index's: a parameter of another type would make the server
    cast the column instead, and the index would not be used. "+ 0" keeps the planner from taking a relaxed
    scan for sorted (PostgreSQL 17 and later), and from using the index where the scan is to be exact. Ids of
    an adopted table may be of another collation.
    """
    table, column = place.records(manifest), stored(manifest)
    condition = SQL("") if where is None else SQL(" WHERE {}").format(where)
    order = SQL('distance, id COLLATE "C"' if manifest.adopted is not None else "distance, id")
    whole = SQL("{}::{}").format(Placeholder("q", format="b"), place.type(column.type))
    exact = _distance(Identifier(column.name), manifest.space.metric, whole, place)
    index = manifest.layout.index
    if candidates is None or index is None:
        return SQL(
            "SELECT id, document, metadata, ({}) + 0 AS distance FROM {}{} ORDER BY {} LIMIT {}"
        ).format(exact, table, condition, order, Value(k))
    if manifest.adopted is not None and manifest.adopted.free:
        # as the index says it, or the planner would not know that it may be used
        same = borrowed.same(SQL("embedding"), column.dim, place.home)
        condition = SQL(" WHERE {}").format(same if where is None else SQL("{} AND {}").format(same, where))
    asked = SQL("{}::{}").format(Placeholder("s", format="b"), place.type(_TYPES[index.element]))
    near = _distance(_searched(manifest, place, index), _searched_metric(manifest, index), asked, place)
    return SQL(
        "WITH candidates AS MATERIALIZED (SELECT id, {}, document, metadata FROM {}{} ORDER BY {} LIMIT {}) "
        "SELECT id, document, metadata, ({}) + 0 AS distance FROM candidates ORDER BY {} LIMIT {}"
    ).format(Identifier(column.name), table, condition, near, Value(candidates), exact, order, Value(k))


def settings(index: Index | None, *, candidates: int, filtered: bool, iterative: bool) -> dict[str, str]:
    """What a search sets for its own transaction.

    `iterative`: the server can go on scanning where too few rows match (pgvector 0.8).
    """
    wanted = {"jit": "off"}
    if index is None or index.kind == "scan":
        return wanted
    if index.kind == "hnsw":
        # 40 is pgvector's default; 1,000 its maximum
        width = min(max(index.ef_search or 40, candidates), 1_000)
        wanted["hnsw.ef_search"] = str(width)
        if iterative:
            wanted["hnsw.iterative_scan"] = "relaxed_order"
            wanted["hnsw.max_scan_tuples"] = str(scanned(candidates))
    else:
        wanted["ivfflat.probes"] = str(max(index.probes, 1))
        if iterative:
            wanted["ivfflat.iterative_scan"] = "relaxed_order"
    if not filtered:
        # a small table would be scanned; with a filter that may be the better plan
        wanted["enable_seqscan"] = "off"
    return wanted


def scanned(candidates: int) -> int:
    """How many rows a filtered HNSW scan passes by before it gives up; 20,000 is pgvector's default."""
    return max(20_000, 4 * candidates)


def probe(
    manifest: Manifest, place: Place, *, where: Composable, density: float, sample: int, most: int
) -> Composed:
    """One row of the fraction sampled, rows seen and rows that match; none where there are above `most`.

    Pages are sampled, about `sample` rows of them and always the same, so that the same search takes the same
    way. `density`: rows on a page, assumed until ANALYZE has counted them (reltuples is -1 or 0).
    """
    return SQL(
        "SELECT fraction, seen, matching "
        "FROM (SELECT least(1, {sample} / greatest(rows, 1)) AS fraction FROM ("
        "SELECT pg_relation_size(oid) / current_setting('block_size')::float8 "
        "* CASE WHEN reltuples > 0 AND relpages > 0 THEN reltuples / relpages ELSE {density} END AS rows "
        "FROM pg_class WHERE oid = {regclass}::regclass) AS size WHERE rows <= {most}) AS plan, "
        "LATERAL (SELECT count(*) AS seen, count(*) FILTER (WHERE {where}) AS matching "
        "FROM {sampled}) AS sample"
    ).format(
        sample=Value(float(sample)),
        density=Value(density),
        regclass=Value(place.table(manifest).as_string(None)),
        most=Value(most),
        where=where,
        sampled=_sampled(manifest, place),
    )


def _sampled(manifest: Manifest, place: Place) -> Composable:
    spread = SQL(" TABLESAMPLE SYSTEM (100 * fraction) REPEATABLE (0)")
    if manifest.adopted is not None:
        return borrowed.records(manifest.adopted, spread)
    return place.table(manifest) + spread


def score(metric: Metric, distance: float) -> float:
    """Distance as score, larger for nearer."""
    return 1.0 - distance if metric == "cosine" else -distance
