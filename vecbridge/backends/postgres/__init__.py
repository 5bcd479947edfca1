"""Collections in PostgreSQL with pgvector: `postgresql://user@host/database?schema=name`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from psycopg import errors as pg
from psycopg.sql import SQL, Identifier

from ... import backends
from ...backends import Found, Wanted
from ...errors import (
    CollectionExists,
    CollectionNotFound,
    FeatureMissing,
    Forbidden,
    InputError,
    ManifestError,
    StoreError,
    UrlError,
)
from ...limits import Limits, limits
from ...manifest import Manifest
from ...names import check_two
from ...types import Finding
from . import adoption, build, findings, sql, succession
from .address import Address, parse
from .failures import failures
from .pool import Connection, Pool
from .sql import Place
from .table import Table

__all__ = ["Postgres", "Table", "connect"]


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the server says of itself.

    `vector` is the version of pgvector in this database and `home` its schema, None where it is not created;
    `offered` is the version that the server has at hand.
    """

    schema: str | None
    database: str
    user: str
    postgres: int
    encoding: str
    vector: str | None
    home: str | None
    offered: str | None


def connect(
    url: str,
    *,
    shown: str | None = None,
    on_close: Callable[[], None] | None = None,
    revive: Callable[[], str] | None = None,
) -> Postgres:
    """The collections in a PostgreSQL database.

    `shown` stands for the URL in messages; `on_close` is called once, by close(); `revive` brings a server
    back that does not answer, and returns its URL. Raises UrlError, Unavailable, Forbidden, FeatureMissing.
    """
    address = parse(url, shown=shown)
    pool = Pool(address, revive)
    try:
        return Postgres(
            address, pool, pool.run(lambda connection: _ask(connection, address.schema)), on_close
        )
    except BaseException:
        pool.close()
        raise


def _ask(connection: Connection, schema: str | None) -> _Facts:
    row = connection.execute(
        "SELECT coalesce(%s::text, current_schema()), current_database(), current_user,"
        " current_setting('server_version_num')::int / 10000, current_setting('server_encoding'),"
        " e.extversion, n.nspname,"
        " (SELECT default_version FROM pg_available_extensions WHERE name = 'vector')"
        " FROM (SELECT) AS one LEFT JOIN pg_extension e ON e.extname = 'vector'"
        " LEFT JOIN pg_namespace n ON n.oid = e.extnamespace",
        [schema],
    ).fetchone()
    assert row is not None
    return _Facts(*row)


class Postgres:
    """One database, or one schema of it, that holds collections. Safe to use from several threads."""

    def __init__(
        self, address: Address, pool: Pool, facts: _Facts, on_close: Callable[[], None] | None
    ) -> None:
        if facts.vector is None and facts.offered is None:
            raise FeatureMissing(
                f"{address.shown}: pgvector is not installed on this server (PostgreSQL {facts.postgres}); "
                f"install its package, such as postgresql-{facts.postgres}-pgvector on Debian, then run "
                f"CREATE EXTENSION vector; in database {facts.database}"
            )
        if facts.schema is None:
            raise UrlError(
                f"{address.shown}: the search_path names no schema that exists; add ?schema= to the URL"
            )
        self._address = address
        self._pool = pool
        self._facts = facts
        self._schema = facts.schema
        self._on_close = on_close

    def __repr__(self) -> str:
        return f"<Postgres {self.url}>"

    @property
    def url(self) -> str:
        """Where this is, without password."""
        return self._address.shown

    def limits(self) -> Limits:
        """What this very server can store and index, or will once its pgvector is created here."""
        return limits(f"pgvector@{self._facts.vector or self._facts.offered}")

    @property
    def _place(self) -> Place:
        return Place(self._schema, self._facts.home or "public")

    def names(self) -> list[str]:
        """The collections here, sorted."""
        statement = SQL("SELECT name FROM {}").format(self._place.catalogue)

        def fetch(connection: Connection) -> list[str]:
            try:
                return sorted(row[0] for row in connection.execute(statement))
            except pg.UndefinedTable:
                return []

        return self._pool.run(fetch)

    def create(self, manifest: Manifest) -> Table:
        """A new, empty collection; all of it or nothing.

        Raises CollectionExists, Forbidden, FeatureMissing, Busy.
        """

        def work(connection: Connection) -> None:
            with connection.transaction():
                succession.lock(connection, self._place.lock(manifest.name), self._place.lock())
                self._prepare(connection)
                self._check(manifest)
                self._insert(connection, manifest)

        self._pool.run(work)
        return self._table(manifest)

    def _prepare(self, connection: Connection) -> None:
        """The schema, the extension and the catalogue, where they are missing."""
        facts = _ask(connection, self._schema)
        if facts.encoding != "UTF8":
            raise StoreError(
                f"{self.url}: database {facts.database} is encoded in {facts.encoding}, which does not hold "
                f"every text; make one with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
            )
        exists = connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", [self._schema]).fetchone()
        if exists is None:
            connection.execute(SQL("CREATE SCHEMA {}").format(Identifier(self._schema)))
        if facts.vector is None:
            self._install(connection, facts)
            facts = _ask(connection, self._schema)
        self._facts = facts
        connection.execute(sql.create_catalogue(self._place))

    def _install(self, connection: Connection, facts: _Facts) -> None:
        if facts.offered is None:
            raise FeatureMissing(f"{self.url}: pgvector is no longer installed on this server")
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except pg.InsufficientPrivilege as error:
            raise Forbidden(
                f"{self.url}: pgvector {facts.offered} is available, but user {facts.user} may not create "
                f"the extension; have a superuser run CREATE EXTENSION vector; in database {facts.database}"
            ) from error

    def _check(self, manifest: Manifest) -> None:
        if reason := self.limits().objection(manifest.space, manifest.layout):
            facts = self._facts
            newer = facts.offered is not None and facts.offered != facts.vector
            hint = f"; ALTER EXTENSION vector UPDATE; brings {facts.offered}" if newer else ""
            raise FeatureMissing(f"{self.url}: {reason}{hint}")

    def _insert(self, connection: Connection, manifest: Manifest) -> None:
        text, basis = manifest.dump()
        added = connection.execute(
            SQL(
                "INSERT INTO {} (name, manifest, basis) VALUES (%s, %s, %b) ON CONFLICT DO NOTHING "
                "RETURNING name"
            ).format(self._place.catalogue),
            [manifest.name, text, basis],
        ).fetchone()
        if added is None:
            raise CollectionExists(
                f"collection {manifest.name!r} is in {self.url} already; open it, drop it, "
                f"or take another name"
            )
        try:
            for statement in sql.create_table(manifest, self._place):
                connection.execute(statement)
        except pg.DuplicateTable as error:
            raise CollectionExists(
                f"{self.url} has a table {sql.table_name(manifest)} that is no collection's; "
                f"rename it, or take another name than {manifest.name!r}"
            ) from error

    def open(self, name: str) -> Table:
        """The collection of this name, after comparing what is really there with its manifest.

        Raises CollectionNotFound, ManifestError.
        """

        def fetch(connection: Connection) -> Manifest:
            if self._facts.home is None:
                self._facts = _ask(connection, self._schema)
            row = self._entry(connection, name)
            while True:
                manifest = Manifest.load(*row)
                if there := self._columns(connection, manifest):
                    self._compare(manifest, there)
                    return manifest
                before, row = row, self._entry(connection, name)
                # it may have got another table between the two looks
                if row == before:
                    adopted = manifest.adopted is not None
                    lost = ".".join(self._place.names(manifest)) if adopted else sql.table_name(manifest)
                    raise ManifestError(
                        f"collection {name!r} in {self.url} has lost its table {lost}; "
                        f"restore it from a backup, or drop the collection"
                    )

        return self._table(self._pool.run(fetch))

    def _entry(self, connection: Connection, name: str) -> tuple[str, bytes]:
        statement = SQL("SELECT manifest, basis FROM {} WHERE name = %s").format(self._place.catalogue)
        try:
            row = connection.execute(statement, [name], binary=True).fetchone()
        except pg.UndefinedTable:
            row = None
        if row is None:
            raise CollectionNotFound(f"there is no collection {name!r} in {self.url}")
        return row[0], row[1]

    def _columns(self, connection: Connection, manifest: Manifest) -> dict[str, tuple[str, int, str]]:
        """Type, dimension and storage of the columns that are there."""
        rows = connection.execute(
            "SELECT a.attname, t.typname, a.atttypmod, a.attstorage::text FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid"
            " JOIN pg_type t ON t.oid = a.atttypid"
            " WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped",
            list(self._place.names(manifest)),
        ).fetchall()
        return {name: (type, dim, storage) for name, type, dim, storage in rows}

    def _compare(self, manifest: Manifest, there: dict[str, tuple[str, int, str]]) -> None:
        if manifest.adopted is not None:
            adoption.compare(manifest, there, self.url)
            return
        others = {"id": "text", "digest": "bytea", "document": "text", "metadata": "jsonb"}
        wrong = [
            f"{name} is {there[name][0] if name in there else 'missing'}, expected {type}"
            for name, type in others.items()
            if name not in there or there[name][0] != type
        ]
        for column in sql.vector_columns(manifest):
            expected = (column.type, column.dim, "p" if column.inline else "e")
            if (found := there.get(column.name)) != expected:
                wrong.append(f"{column.name} is {_column(found)}, expected {_column(expected)}")
        if wrong:
            raise ManifestError(
                f"table {sql.table_name(manifest)} in {self.url} is not as its manifest says: "
                f"{'; '.join(wrong)}"
            )

    def drop(self, name: str) -> None:
        """Delete the collection and everything in it; of an adopted table, only the index made for it.

        Raises CollectionNotFound, Busy.
        """

        def work(connection: Connection, adopted: bool = False) -> None:
            with connection.transaction():
                succession.lock(connection, self._place.lock(name), self._place.lock())
                self._entry(connection, name)
                tables = [] if adopted else succession.tables(connection, self._place, name)
                for table in tables:
                    connection.execute(SQL("DROP TABLE {}").format(table))
                connection.execute(
                    SQL("DELETE FROM {} WHERE name = %s").format(self._place.catalogue), [name]
                )

        entry = self._pool.run(lambda connection: self._entry(connection, name))
        try:
            manifest = Manifest.load(*entry)
        except ManifestError:
            manifest = None  # what cannot be read is dropped all the same: the tables that have its name
        if manifest is None or manifest.adopted is None:
            self._pool.run(work)
            return
        with build.removed(self._table(manifest)) as connection:
            work(connection, adopted=True)

    def adoptable(self, wanted: Wanted) -> Found:
        """What is in a table that another library made, and how it would be read; changes nothing.

        Raises InputError where it must be said more clearly what is meant, FeatureMissing, Forbidden.
        """
        self._facts = self._pool.run(lambda connection: _ask(connection, self._schema))
        if self._facts.home is None:
            raise InputError(f"{self.url} has no vectors: pgvector is not created in this database")
        return adoption.look(self._pool, self._place, wanted, self.url, self.peek)

    def adopting(self, manifest: Manifest, *, rows: int, build_index: bool) -> list[str]:
        """The statements that `create`, and then building the index, would run to adopt a table."""
        return adoption.statements(self.peek(manifest), rows=rows, build_index=build_index)

    def about_index(self, manifest: Manifest, served: str) -> str:
        """What the index of an adopted table serves, and which of its owner's own queries, in sentences."""
        return adoption.about_index(self._place, manifest, served)

    def peek(self, manifest: Manifest) -> Table:
        """The records as the collection would have them, which is not made."""
        return self._table(manifest)

    def successor(self, manifest: Manifest) -> Table:
        """A new, empty table that may become the collection; see `succession`.

        Raises CollectionNotFound, LayoutChanged, FeatureMissing, Forbidden, Busy.
        """

        def work(connection: Connection) -> int:
            self._entry(connection, manifest.name)
            self._facts = _ask(connection, self._schema)
            self._check(manifest)
            return succession.make(connection, self._place, manifest)

        return self._table(manifest, number=self._pool.run(work))

    def switch(self, successor: backends.Table) -> None:
        """Make the successor the collection, in one transaction: that of the pause where there is one.

        Raises CollectionNotFound, LayoutChanged, Busy.
        """
        assert isinstance(successor, Table)
        pausing = self._pool.pausing.get(successor.manifest.name)
        if pausing is None:
            self._pool.run(lambda connection: succession.switch(connection, self._place, successor))
        else:
            with failures(self._address):
                succession.switch(pausing, self._place, successor)
                pausing.commit()
        successor.number = None

    def discard(self, successor: backends.Table) -> None:
        """Drop a successor that shall not become the collection."""
        assert isinstance(successor, Table)
        self._pool.run(lambda connection: succession.discard(connection, self._place, successor))

    def exchange(self, one: str, other: str) -> None:
        """Let two collections change their names, in one transaction: that of a pause where there is one.

        Raises CollectionNotFound, InputError, Busy.
        """
        check_two(one, other)
        pausing = self._pool.pausing.get(one) or self._pool.pausing.get(other)
        if pausing is None:
            self._pool.run(lambda connection: succession.exchange(connection, self._place, one, other))
        else:
            with failures(self._address):
                succession.exchange(pausing, self._place, one, other)
                pausing.commit()

    def exchangeable(self, name: str) -> None:
        """Raises CollectionNotFound, InputError, Forbidden where `exchange` would."""
        self._pool.run(lambda connection: succession.exchangeable(connection, self._place, name))

    def guard(self, name: str, *, like: str) -> None:
        """Let owner, rights and row security of a collection be those of another one.

        Raises CollectionNotFound, Forbidden, Busy.
        """
        self._pool.run(lambda connection: succession.guard(connection, self._place, name, like))

    def findings(self) -> list[Finding]:
        """What is right and wrong with this database and the collections in it; changes nothing."""
        self._facts = self._pool.run(lambda connection: _ask(connection, self._address.schema))
        return findings.findings(self, self._pool, self._place, socket=self._address.socket)

    def _table(self, manifest: Manifest, *, number: int | None = None) -> Table:
        iterative = self.limits().has("iterative scan")
        kind = Table if manifest.adopted is None else adoption.AdoptedTable
        return kind(self._pool, self._place, manifest, iterative=iterative, number=number)

    def close(self) -> None:
        """Give back the connections. May be called twice."""
        self._pool.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()


def _column(found: tuple[str, int, str] | None) -> str:
    if found is None:
        return "missing"
    storage = {"p": "PLAIN", "e": "EXTERNAL", "x": "EXTENDED", "m": "MAIN"}.get(found[2], found[2])
    return f"{found[0]}({found[1]}) {storage}"
