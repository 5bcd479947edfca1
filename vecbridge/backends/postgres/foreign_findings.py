"""What `vecbridge doctor` finds in the vector columns of others: each with the SQL that helps.

A sound column is one line. A database with hundreds of them shows the worst and the largest first chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from psycopg.sql import SQL

from ...errors import ManifestError
from ...explain import human, lasting
from ...limits import Limits
from ...manifest import Manifest
from ...objections import ROW_BYTES
from ...sizes import hnsw_memory, vector_bytes
from ...speeds import ROUGH
from ...types import Element, Finding
from . import proposals, sql
from .facts import Server
from .foreign import MAKERS, Metric, Part, VectorColumn, VectorIndex, columns
from .pool import Connection
from .proposals import OPERATORS, Proposal, proposal, qualified
from .searches import Search, Statement, searches, statements
from .sql import Place

SHOWN = 40  # columns
_PARTS = 5  # collections of one table for which an index is proposed
_SLOW = 0.05  # seconds of an exact search, from which on an index is worth it
_UNCOUNTED = 1_000  # rows, below which statistics change no plan
_OUTSIDE = 2_000  # bytes of a row, above which PostgreSQL moves values out of it
_PAGE = 8_000  # bytes of a vector that fits a row's page beside a few short columns
_LEVELS = {"broken": 0, "warning": 1, "ok": 2}
_ELEMENTS: dict[str, Element] = {"vector": "float32", "halfvec": "float16", "bit": "bit"}


Readers: TypeAlias = Mapping[tuple[str, str, str], Mapping[str | None, str]]
"""By schema, table and column: the collections that adopted it, by the key of the part that each reads."""


def readers(connection: Connection, place: Place) -> Readers:
    """Which collections of the catalogue read whose columns."""
    found: dict[tuple[str, str, str], dict[str | None, str]] = {}
    rows = connection.execute(SQL("SELECT name, manifest FROM {}").format(place.catalogue)).fetchall()
    for name, text in rows:
        try:
            adopted = Manifest.load(text, b"").adopted
        except ManifestError:
            continue  # which the look at that collection tells
        if adopted is not None:
            column = (adopted.schema, adopted.table, adopted.embedding)
            found.setdefault(column, {})[adopted.key] = name
    return found


def findings(
    connection: Connection, server: Server, limits: Limits, adopted: Readers | None = None
) -> list[Finding]:
    """What there is to say of the vector columns that others made, table by table.

    `adopted`: those that collections read, of which there is more in the findings of those.
    """
    found = columns(connection)
    if not found:
        return []
    counted = statements(connection)
    said = counted if isinstance(counted, str) else None
    texts: Sequence[Statement] = counted if isinstance(counted, list) else ()
    known = adopted or {}
    looked = [
        (
            one,
            list(
                _Look(
                    one,
                    searches(one, texts),
                    server,
                    limits,
                    known.get((one.schema, one.table, one.column), {}),
                ).all()
            ),
        )
        for one in found
    ]
    looked.sort(key=lambda pair: (_worst(pair[1]), -(pair[0].bytes or 0)))
    shown = sorted(looked[:SHOWN], key=lambda pair: (pair[0].schema, pair[0].table, pair[0].column))
    result = [finding for _, several in shown for finding in several]
    if rest := looked[SHOWN:]:
        sound = [_worst(several) for _, several in rest].count(_LEVELS["ok"])
        result.append(
            Finding(
                "ok" if sound == len(rest) else "warning",
                "other columns",
                f"{len(rest):,} further vector columns, {sound:,} of them without fault, are not listed: the "
                f"worst come first, then the largest",
                "" if sound == len(rest) else "mend what is listed above, then ask again",
            )
        )
    if said:
        result.append(Finding("ok", "searches", f"{said}; indexes were not compared with the queries"))
    return result


def _worst(found: Sequence[Finding]) -> int:
    return min(_LEVELS[one.level] for one in found)


@dataclass(frozen=True, slots=True)
class _Look:
    column: VectorColumn
    searches: Sequence[Search]
    server: Server
    limits: Limits
    readers: Mapping[str | None, str]

    @property
    def subject(self) -> str:
        return f"{self.column.schema}.{self.column.table}.{self.column.column}"

    def all(self) -> Iterator[Finding]:
        if self._adopted:
            names = ", ".join(sorted(self.readers.values()))
            several = len(self.readers) > 1
            read = f"collections {names} read it" if several else f"collection {names} reads it"
            yield Finding("ok", self.subject, f"{read}: see what is said of {'them' if several else 'that'}")
            return
        yield Finding("ok", self.subject, self._description())
        if self.column.readable and self.column.bytes is not None:
            yield from self._dimensions()
            yield from self._indexes()
            yield from self._searched()
            yield from self._storage()
            yield from self._statistics()

    @property
    def _adopted(self) -> bool:
        """Whether collections read all of it."""
        return bool(self.readers) and (
            None in self.readers or all(part.key in self.readers for part in self.column.parts)
        )

    # --- what it is ----------------------------------------------------------------------------------

    def _description(self) -> str:
        column = self.column
        maker = MAKERS[column.maker][0]
        words = [f"{maker}: " if maker else "", "a materialised view with " if column.kind == "view" else ""]
        words.append("an unknown number of" if column.rows is None else f"about {column.rows:,}")
        words.append(f" rows, {column.type} {self._sizes()}")
        if column.bytes is None:
            words.append("; somebody holds it locked, so it was not looked into")
        else:
            words.append(f", {human(column.bytes)}")
        if column.parts:
            words.append(f", {len(column.parts)} collection{'s' if len(column.parts) > 1 else ''}")
        if not column.readable:
            words.append(f"; user {self.server.user} may not read it, so it was not looked into")
        for index in column.indexes:
            if index.valid:
                words.append(f"; {self._named(index)}")
        if not column.indexes:
            words.append("; no index")
        for name in sorted(self.readers.values()):
            words.append(f"; collection {name} reads some of it")
        return "".join(words)

    def _sizes(self) -> str:
        column = self.column
        if column.declared is not None:
            return f"of {column.declared:,} dimensions"
        if not column.dims:
            return "without a declared dimension"
        sizes = " and ".join(f"{dim:,}" for dim in column.dims[:5])
        return f"without a declared dimension, {sizes} found in {column.seen:,} rows"

    def _named(self, index: VectorIndex) -> str:
        what = f"on {index.expression}" if not index.plain else ""
        some = f"where {index.predicate}" if index.predicate else ""
        of = f"of partition {index.partition} alone" if index.partition else ""
        words = [f"{index.method} index {index.name}", f"({index.opclass})", what, some, of]
        return " ".join(word for word in words if word)

    # --- what is wrong -------------------------------------------------------------------------------

    def _dimensions(self) -> Iterator[Finding]:
        column = self.column
        if len(column.dims) < 2 or (column.parts and all(len(part.dims) < 2 for part in column.parts)):
            return
        sizes = " and ".join(f"{dim:,}" for dim in column.dims[:5])
        size = _SIZES[column.type].format(home=sql.quoted(column.home), column=sql.quoted(column.column))
        yield Finding(
            "broken",
            f"{self.subject}: dimensions",
            f"vectors of {sizes} dimensions lie in one column: a search over all of them fails, and no index "
            f"holds them",
            f"see which are of which: SELECT {size} AS dim, count(*) FROM {qualified(column)} GROUP BY 1;",  # noqa: S608 - to print
        )

    def _indexes(self) -> Iterator[Finding]:
        column, subject = self.column, f"{self.subject}: index"
        for index in column.indexes:
            if index.building:
                yield Finding("ok", subject, f"{index.name} is being built right now")
            elif not index.valid:
                yield self._invalid(index)
        if self._usable or any(index.building or not index.valid for index in column.indexes):
            return
        seconds = self._scan()
        if seconds < _SLOW:
            return
        much = f"every search reads all of the about {column.rows:,} vectors, roughly {lasting(seconds)} each"
        for metric in self._metrics():
            for part in self._parts():
                yield self._missing(metric, part, much)

    @property
    def _usable(self) -> list[VectorIndex]:
        return [index for index in self.column.indexes if index.valid and index.ready]

    def _invalid(self, index: VectorIndex) -> Finding:
        column = self.column
        name = f"{sql.quoted(index.schema)}.{sql.quoted(index.name)}"
        twin = any((one.opclass, one.expression, one.predicate) == (index.opclass, index.expression,
                    index.predicate) for one in self._usable)  # fmt: skip
        who = self._who()
        subject = f"{self.subject}: index"
        if column.kind == "partitioned" and not index.partition:
            return Finding(
                "broken",
                subject,
                f"{index.name} is invalid: not every partition has an index that belongs to it",
                f"{who}-- writers wait while it is built\nDROP INDEX {name};\n{self._again(index)}",
            )
        if twin:
            return Finding(
                "warning",
                subject,
                f"{index.name} is invalid: an interrupted build left it, and writes may still have to "
                f"maintain it",
                f"{who}DROP INDEX CONCURRENTLY {name};",
            )
        return Finding(
            "broken",
            subject,
            f"{index.name} is invalid: an interrupted build left it, no search uses it, and CREATE INDEX IF "
            f"NOT EXISTS keeps it",
            f"{who}REINDEX INDEX CONCURRENTLY {name};",
        )

    def _again(self, index: VectorIndex) -> str:
        """The statement that builds an index of a partitioned table as it is."""
        column = self.column
        options = f" WITH ({', '.join(index.options)})" if index.options else ""
        where = f" WHERE {index.predicate}" if index.predicate else ""
        opclass = f"{sql.quoted(column.home)}.{sql.quoted(index.opclass)}"
        return (
            f"CREATE INDEX {sql.quoted(index.name)} ON {qualified(column)} USING {index.method} "
            f"({index.expression} {opclass}){options}{where};"
        )

    def _missing(self, metric: Metric, part: Part | None, much: str) -> Finding:
        column, subject = self.column, f"{self.subject}: index"
        of = f" of collection {part.name}" if part else ""
        offer = proposal(column, metric, self.limits, part=part)
        if isinstance(offer, str):
            return Finding("warning", subject, f"none{of}, and none can be built: {offer}; {much}",
                           "upgrade pgvector, or store shorter vectors: vecbridge plan says which"
                           )  # fmt: skip
        why = [f"none{of}: {much}"]
        if column.declared is None:
            why.append("the column declares no dimension, so an index needs a cast, and so does the query")
        if offer.type != column.type:
            bound = self.limits.indexed[f"hnsw {_ELEMENTS[column.type]}"].high
            if offer.dim > bound:
                why.append(
                    f"an index on {column.type} stops at {bound:,} dimensions; these have {offer.dim:,}"
                )
        if offer.type == "bit" and column.type != "bit":
            why.append("signs alone find what a measurement on your own vectors has to show")
        if not offer.own and column.maker != "plain":
            why.append(f"the search of {MAKERS[column.maker][0]} carries no such cast, and stays exact")
        rows = max(int((column.rows or 0) * (1 if part is None else part.share or 0)), 1)
        memory = hnsw_memory(rows, _ELEMENTS[offer.type], offer.dim)
        if memory > self.server.memory:
            why.append(
                f"built in memory it takes about {human(memory)} of maintenance_work_mem, the server's is "
                f"{human(self.server.memory)}"
            )
        return Finding("warning", subject, "; ".join(why), self._who() + self._pasted(offer))

    def _pasted(self, offer: Proposal) -> str:
        waits = "-- writers wait while it is built\n" if offer.blocking else ""
        lead = "\n" if self.column.owned else ""
        return f"{lead}{waits}{offer.remedy()}".lstrip("\n")

    def _searched(self) -> Iterator[Finding]:
        """What the queries ask for, beside what the indexes can do."""
        column, subject = self.column, f"{self.subject}: searches"
        usable = self._usable
        heavy = self._scan() >= _SLOW
        if not usable and not heavy:
            return
        for search in self.searches:
            sign = OPERATORS[search.metric]
            times = f"{search.calls:,} search{'es' if search.calls > 1 else ''} by {sign} ({search.metric})"
            if not search.nearest:
                if usable or heavy:
                    yield Finding(
                        "warning",
                        subject,
                        f"{times} do not order by the bare distance, nearest first: such a query reads every "
                        f"vector, whatever index there is",
                        f"write ORDER BY {sql.quoted(column.column)} {sign} $1 LIMIT 10, and make the score "
                        f"of the distance outside",
                    )
                continue
            same = [index for index in usable if index.metric == search.metric]
            if not usable or any(self._runs(search, index) for index in same):
                continue
            if not same:
                others = ", ".join(f"{index.name} ({index.opclass})" for index in usable)
                offer = proposal(column, search.metric, self.limits)
                yield Finding(
                    "warning",
                    subject,
                    f"{times} cannot use what is there, {others}: it is for another distance",
                    offer if isinstance(offer, str) else self._who() + self._pasted(offer),
                )
                continue
            index = same[0]
            cast = f"cast the column to {search.type}" if search.type else "take the column bare"
            if search.dim:
                cast = f"{cast}({search.dim})"
            yield Finding(
                "warning",
                subject,
                f"{times} {cast}, while {index.name} is on {index.expression}: it is not used",
                f"write the query as the index has it: {proposals.query_for(column, index)}",
            )

    def _runs(self, search: Search, index: VectorIndex) -> bool:
        """Whether such a search can run on an index, as far as its text tells."""
        if index.plain:
            # a cast to what the column is anyway changes nothing
            same = search.type == self.column.type and search.dim == self.column.declared
            return not search.type or same
        if search.type:
            return search.type == index.type and search.dim in (None, index.dim)
        return False

    def _storage(self) -> Iterator[Finding]:
        column, dim = self.column, self.column.dim
        if dim is None or column.type == "bit":
            return
        value = vector_bytes(_ELEMENTS[column.type], dim)
        subject = f"{self.subject}: storage"
        alter = f"ALTER {'MATERIALIZED VIEW' if column.kind == 'view' else 'TABLE'} {qualified(column)}"
        name = sql.quoted(column.column)
        if column.storage == "plain":
            if value > ROW_BYTES:
                yield Finding(
                    "broken",
                    subject,
                    f"STORAGE PLAIN keeps each vector of {human(value)} within its row's page of 8 kB: no "
                    f"row can be added",
                    f"{self._who()}{alter} ALTER {name} SET STORAGE EXTERNAL;",
                )
            return
        if self._usable or not _OUTSIDE < value <= _PAGE or self._scan() < _SLOW or column.kind != "table":
            return
        yield Finding(
            "warning",
            subject,
            f"each vector of {human(value)} lies beside its row (TOAST): an exact search takes about three "
            f"times as long as over vectors within their rows",
            f"{self._who()}if searches shall stay exact, and the table may be locked while it is rewritten: "
            f"{alter} ALTER {name} SET STORAGE PLAIN; VACUUM FULL {qualified(column)};",
        )

    def _statistics(self) -> Iterator[Finding]:
        column = self.column
        if not column.analyzed and (column.rows is None or column.rows >= _UNCOUNTED):
            yield Finding(
                "warning",
                f"{self.subject}: statistics",
                "never collected: the server guesses how many rows there are, and which index pays",
                f"{self._who()}ANALYZE {qualified(column)};",
            )

    # --- what it comes to ----------------------------------------------------------------------------

    def _scan(self) -> float:
        """Seconds of an exact search, roughly."""
        column = self.column
        dim = column.dim or max(column.dims, default=0)
        if not column.rows or not dim:
            return 0.0
        value = vector_bytes(_ELEMENTS[column.type], dim)
        beside = column.storage != "plain" and value > _OUTSIDE
        return ROUGH["pgvector"].scans["beside" if beside else "inline"].seconds(column.rows, value)

    def _metrics(self) -> list[Metric]:
        """The distances that an index is wanted for."""
        asked = [search.metric for search in self.searches]
        return list(dict.fromkeys(asked)) or ["hamming" if self.column.type == "bit" else "cosine"]

    def _parts(self) -> list[Part | None]:
        """The collections that need an index each, as their dimensions differ; else the table as a whole."""
        column = self.column
        if len(column.dims) < 2 or any(len(part.dims) > 1 for part in column.parts):
            return [None]
        large = [part for part in column.parts if part.dims]
        return [*large[:_PARTS]] or [None]

    def _who(self) -> str:
        return "" if self.column.owned else f"have {self.column.owner} run\n"


_SIZES = {
    "vector": "{home}.vector_dims({column})",
    "halfvec": "{home}.vector_dims({column})",
    "bit": "length({column})",
}
