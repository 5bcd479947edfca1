"""Collections in tables that other libraries made: looked at, read, indexed; never written to.

Nothing is copied and nothing of the owner's is changed. What vecbridge adds is a row in its own catalogue
and, where none of the owner's serves, one index. There is no view: its owner could not drop the table then,
as his library does, nor change the type of a column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast
from uuid import UUID

from psycopg.sql import SQL, Composable, Identifier
from psycopg.sql import Literal as Value

from ...backends import Found, Wanted
from ...errors import CollectionExists, Forbidden, InputError, ManifestError
from ...limits import limits
from ...manifest import Adopted, Manifest, check_name
from ...types import Batch, Index, Layout, Metric, Shorten, Sizes, Space
from . import borrowed, build, foreign, sql
from .foreign import VectorColumn, VectorIndex
from .pool import Connection, Pool
from .sql import Place
from .table import Table

if TYPE_CHECKING:
    from ...filters import Filter

__all__ = ["AdoptedTable", "about_index", "compare", "look", "statements"]

_PART = 5_000  # records of one part of the inventory
_METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")
# types of ids whose index serves only who asks with the same type
_WHOLE = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}
_ELEMENTS: dict[str, Literal["float32", "float16", "bit"]] = {
    "vector": "float32",
    "halfvec": "float16",
    "bit": "bit",
}


class AdoptedTable(Table):
    """A collection in a table that others own. They may write to it at any time; here nobody does."""

    def write(self, batch: Batch) -> None:
        """Raises Forbidden."""
        raise self._refusal()

    def delete(self, ids: Sequence[str]) -> int:
        """Raises Forbidden."""
        raise self._refusal()

    def delete_where(self, where: Filter) -> int:
        """Raises Forbidden."""
        raise self._refusal()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Raises Forbidden: whoever owns the table is not made to wait."""
        if self.manifest.adopted is not None:
            raise self._refusal()
        yield

    def _refusal(self) -> Forbidden:
        adopted = self._adopted
        maker = foreign.MAKERS.get(adopted.maker, ("", ""))[0]
        whose = f"{maker}'s" if maker else "its owner's"
        return Forbidden(
            f"collection {self.manifest.name!r} is the table {adopted.schema}.{adopted.table}, which is "
            f"{whose}: vecbridge only reads it. Write with {whose} own code; for a collection that vecbridge "
            f"may change, copy it to one of its own (vecbridge copy)"
        )

    @property
    def _adopted(self) -> Adopted:
        assert self.manifest.adopted is not None
        return self.manifest.adopted

    def _named(self, ids: Sequence[str]) -> tuple[Composable, Any]:
        kind = self._adopted.id_type
        if kind != "uuid" and kind not in _WHOLE:
            return super()._named(ids)
        # asked for as text, no index would serve; what is not written as the server writes it is no id
        valid = [id for id in ids if _written(id, kind)]
        return SQL("WHERE key = ANY(%b::text[]::{}[])").format(SQL(kind)), [valid]

    def _settings(self, candidates: int | None, *, filtered: bool) -> str:
        text = super()._settings(candidates, filtered=filtered)
        if candidates is None or filtered:
            return text
        # what tells collections apart may have an index, from which a small collection would be sorted
        return f"{text}, set_config('enable_sort', 'off', true)"

    def inventory(self) -> Iterator[list[tuple[str, bytes | None]]]:
        """Ids of all records in the order of the ids, each with None: nobody kept a digest."""
        kind = self._adopted.id_type
        if kind != "uuid" and kind not in _WHOLE:
            yield from super().inventory()
            return
        statement = SQL("SELECT id FROM {} WHERE key > %s::{} ORDER BY key LIMIT %s")
        first = SQL("SELECT id FROM {} ORDER BY key LIMIT %s").format(self.name)
        following = statement.format(self.name, SQL(kind))

        def fetch(last: str | None, connection: Connection) -> list[tuple[Any, ...]]:
            if last is None:
                return connection.execute(first, [_PART]).fetchall()
            return connection.execute(following, [last, _PART]).fetchall()

        last = None
        while part := self.run(partial(fetch, last)):
            yield [(id, None) for (id,) in part]
            if len(part) < _PART:
                return
            last = part[-1][0]

    def sizes(self) -> Sizes:
        """Bytes on disk: of the whole table, whoever's rows are in it, and of the index that searches use."""
        name = self.run(lambda connection: build.used(self, connection))
        index = None if name is None else Identifier(self._adopted.schema, name).as_string(None)
        statement = (
            "SELECT (SELECT sum(pg_table_size(relid)) FROM (SELECT relid FROM pg_partition_tree(%(table)s) "
            "WHERE isleaf UNION SELECT %(table)s::regclass) AS parts), "
            "(SELECT coalesce(sum(pg_relation_size(indexrelid)), 0) FROM pg_index "
            "WHERE indrelid = %(table)s::regclass AND indisprimary), "
            "coalesce(pg_relation_size(to_regclass(%(index)s)), 0)"
        )
        values = {"table": self.relation.as_string(None), "index": index}

        def fetch(connection: Connection) -> Sizes:
            row = connection.execute(statement, values).fetchone()
            assert row is not None
            return Sizes(int(row[0]) + int(row[1]), int(row[2]))

        return self.run(fetch)


def _written(id: str, kind: str) -> bool:
    """Whether the text of an id is what the server makes of such a value."""
    if kind == "uuid":
        try:
            return str(UUID(id)) == id
        except ValueError:
            return False
    if not re.fullmatch(r"0|-?[1-9][0-9]{0,18}", id):
        return False
    return -_WHOLE[kind] <= int(id) < _WHOLE[kind]


def compare(manifest: Manifest, there: dict[str, tuple[str, int, str]], url: str) -> None:
    """Raise ManifestError where the table is not what was adopted. `there`: type and dimension by column."""
    adopted = manifest.adopted
    assert adopted is not None
    wrong = [f"column {name} is missing" for name in adopted.columns if name not in there]
    type, dim = sql.type_of(manifest.layout.element), manifest.space.dim
    name = adopted.embedding
    found, declared, _ = there.get(name, (type, dim, ""))
    if found in ("vector", "halfvec") and found != type:
        wrong.append(f"{name} is {found}, expected {type}")
    elif declared != dim and not (adopted.free and declared < 0):
        wrong.append(f"{name} has {max(declared, 0) or 'no declared'} dimensions, expected {dim:,}")
    if wrong:
        raise ManifestError(
            f"table {adopted.schema}.{adopted.table} in {url} is not as it was when collection "
            f"{manifest.name!r} adopted it: {'; '.join(wrong)}; drop the collection, which leaves the table "
            f"alone, and adopt it again"
        )


# --- looking ------------------------------------------------------------------------------------------


def look(pool: Pool, place: Place, wanted: Wanted, url: str, peek: Callable[[Manifest], Table]) -> Found:
    """What is in a table, and how it would be read; changes nothing. Raises as `Adopting.adoptable` does."""
    return pool.run(lambda connection: _Look(connection, place, wanted, url, peek).all())


class _Look:
    def __init__(
        self,
        connection: Connection,
        place: Place,
        wanted: Wanted,
        url: str,
        peek: Callable[[Manifest], Table],
    ) -> None:
        self.connection = connection
        self.place = place
        self.wanted = wanted
        self.url = url
        self.peek = peek
        self.notes: list[str] = []

    def all(self) -> Found:
        column = self._column()
        self.shown = f"{column.schema}.{column.table}"
        if not column.readable:
            raise Forbidden(
                f"{self.url}: this user may not read {self.shown}; have {column.owner} run GRANT SELECT ON "
                f"{column.name.as_string(None)} TO the user"
            )
        if column.type == "bit":
            raise InputError(
                f"{self.shown}.{column.column} holds bits, the signs of vectors: expected a column of type "
                f"vector or halfvec"
            )
        adopted, part = self._columns(column)
        name = self._name(column, part)
        adopted = replace(adopted, index=f"{sql.PREFIX}{name}$idx")
        self._check_names(adopted)
        dim, rows = self._dim(column, adopted)
        if not (self.wanted.id is None and column.id_known) and adopted.id not in column.unique:
            self._check_ids(adopted)
        metric = self._metric(column)
        manifest = Manifest(name, Space(dim, metric), Layout(), rows, adopted=adopted)
        layout, served = self._served(column, manifest)
        return Found(
            name=name,
            adopted=adopted,
            rows=rows,
            dim=dim,
            element="float32" if column.type == "vector" else "float16",
            metric=metric,
            layout=layout,
            served=served,
            no_index=self._no_index(column),
            notes=tuple(self.notes),
        )

    def _ask(self, statement: Any, values: Any = None) -> list[tuple[Any, ...]]:
        return self.connection.execute(statement, values).fetchall()

    def _column(self) -> VectorColumn:
        """The column of vectors that is meant."""
        table = self.wanted.table
        found = foreign.columns(self.connection, table=table)
        if not found and "." in table:
            schema, _, inside = table.partition(".")
            found = foreign.columns(self.connection, schema=schema, table=inside)
        if not found:
            every = sorted({f"{one.schema}.{one.table}" for one in foreign.columns(self.connection)})
            hint = f"; there are vectors in {', '.join(every[:10])}" if every else ""
            relation = Identifier(*table.split(".", 1)).as_string(None)
            [(there,)] = self._ask("SELECT to_regclass(%s) IS NOT NULL", [relation])
            what = f"table {table} has no column of vectors" if there else f"there is no table {table}"
            raise InputError(f"{self.url}: {what}{hint}")
        tables = sorted({f"{one.schema}.{one.table}" for one in found})
        if len(tables) > 1:
            raise InputError(
                f"expected one table, {table} may be {' or '.join(tables)}; name the schema, too"
            )
        if self.wanted.embedding is None and len(found) > 1:
            names = ", ".join(one.column for one in found)
            raise InputError(f"{tables[0]} has several columns of vectors ({names}); say which: --embedding")
        if self.wanted.embedding is not None:
            chosen = [one for one in found if one.column == self.wanted.embedding]
            if not chosen:
                names = ", ".join(one.column for one in found)
                raise InputError(
                    f"{tables[0]} has no column {self.wanted.embedding!r} of vectors; there are {names}"
                )
            return chosen[0]
        return found[0]

    def _columns(self, column: VectorColumn) -> tuple[Adopted, str]:
        """Which column is what, and the name of the collection that shares the table."""
        wanted, names = self.wanted, column.columns
        for name in (wanted.id, wanted.document, *(wanted.metadata or ())):
            if name is not None and name not in column.types:
                raise InputError(f"{self.shown} has no column {name!r}; there are {', '.join(column.types)}")
        id = wanted.id or names.id
        if id is None:
            raise InputError(
                f"no column of {self.shown} alone names a row, and no library that is known made it; say "
                f"which are what: --id, --embedding, --document, --metadata; there are "
                f"{', '.join(column.types)}"
            )
        metadata, fields = names.metadata, names.others
        if wanted.metadata is not None:
            objects = [name for name in wanted.metadata if column.types[name] in ("json", "jsonb")]
            # of several, each is a field of its own
            metadata = objects[0] if len(objects) == 1 else None
            fields = tuple(name for name in wanted.metadata if name != metadata)
        document = wanted.document or names.document
        key, part = self._part(column)
        adopted = Adopted(
            schema=column.schema,
            table=column.table,
            id=id,
            id_type=column.types[id],
            embedding=column.column,
            document=document,
            metadata=metadata,
            fields=fields,
            part=None if key is None else names.part,
            key=key,
            free=column.declared is None,
            nullable=not column.required,
            maker=column.maker if column.maker != "plain" else "",
        )
        left = [name for name in column.types if name not in adopted.columns and name not in column.key]
        if column.maker == "plain" and left:
            self.notes.append(f"not read: {', '.join(left)}; --metadata makes a column part of the metadata")
        return adopted, part

    def _part(self, column: VectorColumn) -> tuple[str | None, str]:
        """The key and the name of the collection that is meant, where the table may have several."""
        within, wanted = column.columns.part, self.wanted.part
        if within is None:
            if wanted is not None:
                raise InputError(
                    f"{self.shown} has no column that would tell collections apart: leave --part"
                )
            return None, ""
        of = Identifier(within)
        if wanted is not None:
            for part in column.parts:
                if wanted in (part.name, part.key):
                    return part.key, part.name
            query = SQL("SELECT EXISTS (SELECT FROM {} WHERE {}::text = %s)").format(column.name, of)
            if self._ask(query, [wanted]) == [(True,)]:
                return wanted, wanted
            known = ", ".join(part.name for part in column.parts)
            raise InputError(f"{self.shown} has no collection {wanted!r}; there are {known or 'none'}")
        names = [part.name for part in column.parts]
        if len(names) == 1:
            query = SQL("SELECT EXISTS (SELECT FROM {} WHERE {}::text <> %s)").format(column.name, of)
            if self._ask(query, [column.parts[0].key]) == [(False,)]:
                return column.parts[0].key, names[0]
            names.append("others")
        if not names:
            raise InputError(f"{self.shown} is empty: there is no collection in it yet")
        raise InputError(f"{self.shown} holds several collections ({', '.join(names)}); say which: --part")

    def _name(self, column: VectorColumn, part: str) -> str:
        name = self.wanted.name
        if name is None:
            name = part if part and part != "default" else column.table
            try:
                check_name(name)
            except InputError as error:
                raise InputError(f"{error}; give the collection another one: --name") from None
        check_name(name)
        if column.schema == self.place.schema and (sql.collection_of(column.table) or ("",))[0] == name:
            raise InputError(
                f"{self.shown} has the name of a table of vecbridge's own collection {name!r}; give the "
                f"collection another one: --name"
            )
        relation = self.place.catalogue.as_string(None)
        [(catalogue,)] = self._ask("SELECT to_regclass(%s) IS NOT NULL", [relation])
        query = SQL("SELECT EXISTS (SELECT FROM {} WHERE name = %s)").format(self.place.catalogue)
        if catalogue and self._ask(query, [name]) == [(True,)]:
            raise CollectionExists(
                f"collection {name!r} is in {self.url} already; open it, drop it, or take another name"
            )
        return name

    def _check_names(self, adopted: Adopted) -> None:
        names = (adopted.schema, adopted.table, *adopted.columns, adopted.key or "")
        odd = [name for name in names if "%" in name]
        if odd:
            raise InputError(f"{odd[0]!r} has a % in it, which the driver takes for a parameter")
        index = Identifier(adopted.schema, adopted.index).as_string(None)
        if self._ask("SELECT to_regclass(%s) IS NOT NULL", [index]) == [(True,)]:
            raise InputError(
                f"schema {adopted.schema} has {adopted.index} already, as the index of this collection would "
                f"be called; drop it, or give the collection another name: --name"
            )

    def _dim(self, column: VectorColumn, adopted: Adopted) -> tuple[int, int]:
        """Dimensions of the records' vectors, and how many there are."""
        condition = borrowed.rows(adopted)
        where = SQL("") if condition is None else SQL(" WHERE {}").format(condition)
        if column.declared is not None:
            query = SQL("SELECT count(*) FROM {}{}").format(column.name, where)
            return column.declared, self._ask(query)[0][0]
        query = SQL("SELECT {}({}) AS dim, count(*) FROM {}{} GROUP BY dim ORDER BY 2 DESC, 1").format(
            Identifier(self.place.home, "vector_dims"), Identifier(column.column), column.name, where
        )
        found = self._ask(query)
        if not found:
            raise InputError(
                f"{self.shown}.{column.column} declares no dimensions, and there is no vector to tell them"
            )
        if len(found) > 1:
            each = ", ".join(f"{dim:,} ({rows:,} rows)" for dim, rows in found[:5])
            raise InputError(
                f"expected vectors of one length, {self.shown}.{column.column} has some of {each} "
                f"dimensions: those of one model at a time can be searched; delete what does not belong there"
            )
        return found[0]

    def _check_ids(self, adopted: Adopted) -> None:
        condition = borrowed.rows(adopted)
        where = SQL("") if condition is None else SQL(" WHERE {}").format(condition)
        query = SQL("SELECT count(*), count({0}), count(DISTINCT {0}::text) FROM {1}{2}").format(
            Identifier(adopted.id), Identifier(adopted.schema, adopted.table), where
        )
        [(rows, named, distinct)] = self._ask(query)
        if named < rows:
            raise InputError(
                f"{rows - named:,} rows of {self.shown} have no {adopted.id}, by which they would be named; "
                f"fill it in, or name them by another column: --id"
            )
        if distinct < named:
            raise InputError(
                f"{named - distinct:,} rows of {self.shown} have a {adopted.id} that another one has, too; "
                f"ids must be unique: name them by another column (--id), or delete what is there twice"
            )
        if adopted.part is None:
            self.notes.append(f"nothing keeps {adopted.id} unique: of rows that share one, get() returns one")

    def _metric(self, column: VectorColumn) -> Metric:
        if self.wanted.metric is not None:
            if self.wanted.metric not in _METRICS:
                raise InputError(f"expected the metric 'cosine', 'ip' or 'l2', got {self.wanted.metric!r}")
            return self.wanted.metric
        known = {index.metric for index in column.indexes if index.valid} & set(_METRICS)
        if len(known) == 1:
            return cast(Metric, known.pop())
        if not known and column.maker != "plain":
            maker = foreign.MAKERS[column.maker][0]
            self.notes.append(f"metric cosine: {maker}'s default, as no index tells; --metric says otherwise")
            return "cosine"
        why = f"its indexes have {' and '.join(sorted(known))}" if known else "there is no index to tell"
        raise InputError(
            f"what metric are the vectors of {self.shown} for? {why}; say --metric cosine, ip or l2"
        )

    def _served(self, column: VectorColumn, manifest: Manifest) -> tuple[Layout | None, str]:
        """The layout of an index of the owner's that our searches run on, by EXPLAIN, and its name."""
        if column.kind == "partitioned":
            return None, ""
        known = limits("pgvector")
        candidates = []
        for index in column.indexes:
            layout = _layout(column, index, manifest.space)
            if layout is None or not (index.valid and index.ready):
                continue
            if known.objection(_open(manifest.space, layout), layout) is None:
                candidates.append((index.method != "hnsw", layout.oversample, index.name, layout))
        for _, _, name, layout in sorted(candidates, key=lambda one: one[:3]):
            if name in self.peek(replace(manifest, layout=layout)).explain(self.connection):
                return layout, name
        return None, ""

    def _no_index(self, column: VectorColumn) -> str:
        if column.kind == "partitioned":
            return (
                f"{self.shown} is partitioned, and PostgreSQL builds no index on such a table while others "
                f"write to it"
            )
        if not column.owned:
            return f"only {column.owner}, who owns {self.shown}, may build an index on it"
        return ""


def _open(space: Space, layout: Layout) -> Space:
    """The space with the prefix that an index is on among its sizes: that it serves is its owner's choice."""
    index = layout.index
    sizes = (index.shorten.dim,) if index and index.shorten else ()
    return replace(space, nested=sizes)


def _layout(column: VectorColumn, index: VectorIndex, space: Space) -> Layout | None:
    """The layout that an index of the owner's would be the index of; None for what it cannot be."""
    if index.method not in ("hnsw", "ivfflat") or index.type not in _ELEMENTS or index.partition:
        return None
    element, stored = _ELEMENTS[index.type], _ELEMENTS[column.type]
    if element != "bit" and index.metric != space.metric:
        return None
    dim = index.dim or space.dim
    shorten = Shorten("truncate", dim) if dim < space.dim else None
    options = {key: int(value) for key, _, value in (one.partition("=") for one in index.options)}
    if index.method == "hnsw":
        width = 400 if element == "bit" else 200
        kind = Index(
            "hnsw", element, shorten, options.get("m", 16), options.get("ef_construction", 64), width
        )
    else:
        lists = options.get("lists", 100)
        probes = min(lists, max(10, round(1.5 * lists**0.5)))
        kind = Index("ivfflat", element, shorten, lists=lists, probes=probes)
    oversample = 40 if element == "bit" else 20 if shorten else 1 if element == stored else 2
    return Layout(cast(Literal["float32", "float16"], stored), index=kind, oversample=oversample)


# --- saying -------------------------------------------------------------------------------------------


def statements(table: Table, *, rows: int, build_index: bool) -> list[str]:
    """What `Postgres.create`, and then `build_index`, would run."""
    manifest, place = table.manifest, table.place

    def missing(connection: Connection) -> tuple[bool, bool]:
        row = connection.execute(
            "SELECT NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s), to_regclass(%s) IS NULL",
            [place.schema, place.catalogue.as_string(None)],
        ).fetchone()
        assert row is not None
        return row[0], row[1]

    schema, catalogue = table.pool.run(missing)
    text, basis = manifest.dump()
    listed: list[Composable] = []
    if schema:
        listed.append(SQL("CREATE SCHEMA {}").format(Identifier(place.schema)))
    if catalogue:
        listed.append(sql.create_catalogue(place))
    listed.append(
        SQL("INSERT INTO {} (name, manifest, basis) VALUES ({}, {}, {})").format(
            place.catalogue, Value(manifest.name), Value(text), Value(basis)
        )
    )
    index = sql.indexed(manifest)
    if build_index and index is not None and table.run(lambda one: build.used(table, one)) is None:
        lists = build.lists_of(index, rows)
        listed.append(sql.create_index(manifest, place, lists=lists, concurrently=True))
    return [f"{one.as_string(None)};" for one in listed]


def about_index(place: Place, manifest: Manifest, served: str) -> str:
    """What the index serves, and which of the owner's own queries can use it, in sentences."""
    adopted, index = manifest.adopted, sql.indexed(manifest)
    assert adopted is not None
    operator = {"cosine": "<=>", "ip": "<#>", "l2": "<->"}[manifest.space.metric]
    name, dim = sql.quoted(adopted.embedding), manifest.space.dim
    theirs = f"ORDER BY {name} {operator} $1"
    if index is None:
        return f"No index: every search is exact. The owner's own queries ({theirs}) stay as they are."
    if served:
        return f"Searches run on {served}, which the owner made, and no other is built."
    type = f"{sql.type_of(index.element)}({dim})"
    only = borrowed.indexed(adopted, manifest.stored_dim, place.home)
    where = "" if only is None else f"WHERE {only.as_string(None)}"
    if index.shorten is None and index.element == manifest.layout.element and not adopted.free:
        condition = f" where they say {where}" if where else ""
        return (
            f"The index serves vecbridge's searches, and the owner's own queries ({theirs}), too{condition}."
        )
    if adopted.free:
        why = f"{name} declares no dimensions, so that no index at all can serve them"
    elif dim > 2_000:
        why = f"an index on {name} itself stops at 2,000 dimensions, and these have {dim:,}"
    else:
        why = "it is on an expression"
    said = (
        f"The index serves vecbridge's searches. The owner's own queries ({theirs}) cannot use it, as {why}: "
        f"they stay as they are."
    )
    if index.shorten is None and index.element != "bit":
        asked = f"ORDER BY ({name}::{type}) {operator} $1::{type}"
        said += f" Rewritten as {f'{where} ' if where else ''}{asked}, they could."
    return said
