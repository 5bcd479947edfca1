"""What `vecbridge doctor` looks at in a PostgreSQL database: server, rights, collections, others' vectors.

Reads only what any user may read, so that the rights of a mere reader suffice. What a right is missing for is
itself a finding. A remedy that is SQL can be pasted as it stands.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import pq

from ...errors import InputError
from ...explain import human
from ...manifest import check_name
from ...types import Finding
from . import facts, foreign_findings, sql, succession
from .checkup import Checkup
from .facts import Server
from .pool import SIZE, Pool
from .sql import Place

if TYPE_CHECKING:
    from . import Postgres

# the last day with corrections; https://www.postgresql.org/support/versioning/
_ENDS = {
    13: date(2025, 11, 13),
    14: date(2026, 11, 12),
    15: date(2027, 11, 11),
    16: date(2028, 11, 9),
    17: date(2029, 11, 8),
    18: date(2030, 11, 14),
}
_OLDEST = 13  # pgvector 0.8 starts here

_SHARE = 0.8  # of the connections in use, from which on it gets tight


def findings(postgres: Postgres, pool: Pool, place: Place, *, socket: bool) -> list[Finding]:
    """Everything that can be said of this database; `socket`: it is reached through a Unix socket."""
    server = pool.run(lambda connection: facts.server(connection, place))
    room = _room() if socket and server.shared_memory == "posix" else None
    return list(_Doctor(postgres, pool, place, server, room).all())


@dataclass(frozen=True, slots=True)
class _Doctor:
    postgres: Postgres
    pool: Pool
    place: Place
    server: Server
    room: int | None

    def all(self) -> Iterator[Finding]:
        server = self.server
        yield Finding("ok", "reachable", f"{self.postgres.url} answers as user {server.user}")
        yield version(server.major, server.version, datetime.now(UTC).date())
        yield _client()
        yield self._extension()
        yield from self._database()
        yield connections(server.used, server.most)
        yield from self._schema()
        adopted: foreign_findings.Readers = {}
        if not server.catalogue:
            if server.may_use or not server.there:
                yield Finding("ok", "collections", "there are none yet")
        elif server.may_use and server.may_read:
            listed = self.pool.run(lambda one: succession.listed(one, self.place))
            names = sorted(listed)
            yield Finding("ok", "collections", f"{len(names)} in schema {server.schema}")
            yield from self._strays(listed)
            adopted = self.pool.run(lambda one: foreign_findings.readers(one, self.place))
            checkup = Checkup(self.postgres, self.pool, self.place, server, self.room)
            for name in names:
                yield from checkup.look(name)
        if server.vector is not None and server.may_use_vector:
            limits = self.postgres.limits()
            yield from self.pool.run(lambda one: foreign_findings.findings(one, server, limits, adopted))

    # --- the server ----------------------------------------------------------------------------------

    def _extension(self) -> Finding:
        server, subject = self.server, "pgvector"
        create = f"CREATE EXTENSION vector; -- in database {server.database}"
        if server.vector is None:
            if server.superuser or (server.trusted and server.may_create):
                return Finding(
                    "ok",
                    subject,
                    f"{server.offered} is installed; the first collection creates the extension",
                )
            return Finding(
                "broken",
                subject,
                f"{server.offered} is installed, but not created in database {server.database}, and user "
                f"{server.user} may not create it",
                f"have a superuser run {create}",
            )
        if not server.may_use_vector:
            return Finding(
                "broken",
                subject,
                f"user {server.user} may not use the schema {self.place.home}, in which pgvector lies",
                f"GRANT USAGE ON SCHEMA {sql.quoted(self.place.home)} TO {sql.quoted(server.user)};",
            )
        if server.offered is not None and server.offered != server.vector:
            return Finding(
                "warning",
                subject,
                f"database {server.database} has {server.vector}, the server has {server.offered} installed",
                "ALTER EXTENSION vector UPDATE;",
            )
        limits = self.postgres.limits()
        if not limits.has("iterative scan"):
            since = limits.features["iterative scan"].since
            return Finding(
                "warning",
                subject,
                f"{server.vector}: before {since} a filtered search cannot go on along an index and scans "
                f"every vector instead",
                f"install pgvector {since} or later on the server, then run ALTER EXTENSION vector UPDATE;",
            )
        return Finding("ok", subject, f"{server.vector}, in schema {self.place.home}")

    def _database(self) -> Iterator[Finding]:
        server = self.server
        if server.encoding == "UTF8":
            yield Finding("ok", "encoding", "UTF8")
        else:
            yield Finding(
                "broken",
                "encoding",
                f"database {server.database} is encoded in {server.encoding}, which does not hold every text",
                "make another database: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0;",
            )
        if server.standby:
            yield Finding(
                "warning",
                "writing",
                "this server is a standby: it only reads",
                "connect to the primary to write",
            )
        elif server.read_only:
            yield Finding(
                "warning",
                "writing",
                f"sessions of user {server.user} in database {server.database} only read",
                f"if they shall write: SET default_transaction_read_only = off; "
                f"ALTER ROLE {sql.quoted(server.user)} IN DATABASE {sql.quoted(server.database)} "
                f"SET default_transaction_read_only = off;",
            )
        if not server.autovacuum:
            yield Finding(
                "warning",
                "autovacuum",
                "off: nobody clears away what is deleted or replaced",
                "have a superuser run ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf();",
            )
        yield shared_memory(server.shared_memory, self.room)

    def _schema(self) -> Iterator[Finding]:
        server = self.server
        subject, user, schema = "rights", sql.quoted(server.user), sql.quoted(server.schema)
        catalogue = self.place.catalogue.as_string(None)
        if not server.there:
            if server.may_create:
                yield Finding("ok", subject, f"schema {server.schema} comes with the first collection")
            else:
                yield Finding(
                    "broken",
                    subject,
                    f"there is no schema {server.schema}, and user {server.user} may not create it",
                    f"GRANT CREATE ON DATABASE {sql.quoted(server.database)} TO {user};",
                )
        elif not server.may_use:
            yield Finding(
                "broken",
                subject,
                f"user {server.user} may not use schema {server.schema}; its collections were not checked",
                f"GRANT USAGE ON SCHEMA {schema} TO {user};",
            )
        elif server.catalogue and not server.may_read:
            yield Finding(
                "broken",
                subject,
                f"user {server.user} may not read {sql.CATALOGUE}; the collections in it were not checked",
                f"GRANT SELECT ON {catalogue} TO {user};",
            )
        elif not server.may_add:
            yield Finding(
                "warning",
                subject,
                f"user {server.user} may not create collections in schema {server.schema}",
                f"if it shall: GRANT CREATE ON SCHEMA {schema} TO {user};",
            )
        elif server.catalogue and not server.may_write:
            yield Finding(
                "warning",
                subject,
                f"user {server.user} may not add collections to {sql.CATALOGUE}",
                f"if it shall: GRANT INSERT, UPDATE, DELETE ON {catalogue} TO {user};",
            )
        else:
            yield Finding("ok", subject, f"user {server.user} may create collections in {server.schema}")

    def _strays(self, listed: Mapping[str, int]) -> Iterator[Finding]:
        """Tables that look like a collection's and are none, by the generations that the catalogue lists."""
        statement = (
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relkind = 'r' AND starts_with(c.relname, %s)"
            " AND 4 = (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid"
            " AND a.attname IN ('id', 'embedding', 'metadata', 'digest')) ORDER BY 1"
        )
        rows = self.pool.run(lambda one: one.execute(statement, [self.place.schema, sql.PREFIX]).fetchall())
        for (table,) in rows:
            name, generation = sql.collection_of(table) or ("", 0)
            if not _possible(name) or listed.get(name) == generation:
                continue
            drop = f"DROP TABLE {self.place.table_of(name, generation).as_string(None)};"
            if name not in listed:
                yield Finding(
                    "warning",
                    f"table {table}",
                    f"it looks like a collection, but {sql.CATALOGUE} does not list it: nothing opens it",
                    f"restore the catalogue from a backup, or, if nobody needs the table: {drop}",
                )
            elif self._paused(name, listed[name]):
                yield Finding("ok", f"{name}: layout", "it is being laid out anew right now")
            else:
                yield Finding(
                    "warning",
                    f"{name}: layout",
                    f"{table} was begun for another layout and never became the collection",
                    f"it goes with the next attempt, or now: {drop}",
                )

    def _paused(self, name: str, generation: int) -> bool:
        """Whether somebody keeps the writers of a collection waiting."""
        statement = (
            "SELECT EXISTS (SELECT FROM pg_locks WHERE granted AND mode = 'ShareRowExclusiveLock' "
            "AND relation = to_regclass(%s))"
        )
        relation = self.place.table_of(name, generation).as_string(None)
        return self.pool.run(lambda one: one.execute(statement, [relation]).fetchone()) == (True,)


def version(major: int, text: str, today: date) -> Finding:
    """What there is to say of the server's version on a day."""
    subject = "server"
    end = _ENDS.get(major)
    if major < _OLDEST:
        return Finding(
            "broken",
            subject,
            f"PostgreSQL {text}; pgvector 0.8 starts at PostgreSQL {_OLDEST}",
            f"upgrade to PostgreSQL {max(_ENDS)}",
        )
    if end is not None and today > end:
        return Finding(
            "warning",
            subject,
            f"PostgreSQL {text} has had no corrections since {end:%Y-%m-%d}",
            f"upgrade to PostgreSQL {max(_ENDS)}",
        )
    return Finding("ok", subject, f"PostgreSQL {text}")


def connections(used: int, most: int) -> Finding:
    """What there is to say of the connections in use."""
    found = f"{used} of {most} in use"
    if used < _SHARE * most:
        return Finding("ok", "connections", found)
    return Finding(
        "warning",
        "connections",
        f"{found}; each process takes up to {SIZE}",
        f"end sessions that are not needed, put a pooler such as PgBouncer between, or have a superuser "
        f"run ALTER SYSTEM SET max_connections = {2 * most}; and restart the server",
    )


def shared_memory(kind: str, free: int | None) -> Finding:
    """What there is to say of the memory that parallel builds share; `free` in /dev/shm, None if unseen."""
    subject = "shared memory"
    if kind != "posix":
        return Finding("ok", subject, f"parallel builds share memory by {kind}, not in /dev/shm")
    if free is None:
        return Finding(
            "ok",
            subject,
            "parallel builds share the server's /dev/shm, whose size cannot be seen from here; where it is "
            "too small (64 MB in a container without --shm-size) an index is built without workers",
        )
    return Finding("ok", subject, f"{human(free)} free in /dev/shm for parallel builds")


def _room() -> int | None:
    """Bytes free in this machine's /dev/shm, None where there is none."""
    if not Path("/dev/shm").is_dir():  # noqa: S108 - looked at, not written to
        return None
    found = os.statvfs("/dev/shm")  # noqa: S108 - as above
    return found.f_bavail * found.f_frsize


def _client() -> Finding:
    library = pq.version()
    return Finding(
        "ok", "client", f"psycopg {psycopg.__version__} with libpq {library // 10_000}.{library % 10_000}"
    )


def _possible(name: str) -> bool:
    try:
        check_name(name)
    except InputError:
        return False
    return True
