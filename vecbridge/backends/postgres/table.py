"""One collection's records in PostgreSQL."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from psycopg import errors as pg
from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from ...manifest import Manifest
from ...types import Batch, Hit, Index, IndexState, Layout, Progress, Sizes
from . import build, choice, copy, reading, sql, succession
from .filters import compile
from .pool import Connection, Pool
from .sql import Place

if TYPE_CHECKING:
    from ...filters import Filter
    from ...types import Floats

T = TypeVar("T")
_ATTEMPTS = 6
_TOGETHER = 64  # queries sent before their results are awaited
# a filtered scan ends when it has enough rows, though nearer ones may follow: with k of them recall@10 fell
# to 0.90 (one row in fifty matching), with 4 k it stayed at 0.99
_FILTERED = 4
# in one statement; always as %b, since psycopg takes four times as long to write them as text
_IDS = 10_000
_BY_ID = "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true)"
# Foreign keys onto a table are triggers of it, too. PostgreSQL copies into no table with row security.
_STAGED = (
    "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid) OR row_security_active(c.oid) "
    "OR c.relnatts <> %s FROM pg_class c WHERE c.oid = %s::regclass"
)
_CLEARED = f"DELETE FROM {{}} WHERE id = ANY(%b) AND NOT ({_STAGED})"  # noqa: S608  both are written here
# the table's number in the upper half: other advisory locks are hashes of names
_TOGETHER_OR_ALONE = "SELECT {}(%s::regclass::oid::bigint << 32)"
_MOST_CANDIDATES = 1_000  # of one HNSW scan that cannot go on: the largest hnsw.ef_search


class Table:
    """A collection in a table `vecbridge_NAME`, or `vecbridge_NAME$GENERATION` once it was laid out anew.

    `iterative`: this server's index scans can go on until enough rows match (pgvector 0.8). `number`: the
    server's own of a table that is no collection yet, None for any other. `name`: what records are selected
    from, which is more than the name of `relation` where that is another's.
    """

    def __init__(
        self, pool: Pool, place: Place, manifest: Manifest, *, iterative: bool, number: int | None = None
    ) -> None:
        self.pool = pool
        self.place = place
        self.name = place.records(manifest)
        self.relation = place.table(manifest)
        self.number = number
        self._manifest = manifest
        self._iterative = iterative
        self._columns = sql.vector_columns(manifest)

        @lru_cache(maxsize=64)
        def statement(k: int, candidates: int | None) -> str:
            return sql.search(manifest, place, k=k, candidates=candidates, where=None).as_string(None)

        self._statement = statement

    @property
    def manifest(self) -> Manifest:
        """What the collection says of itself."""
        return self._manifest

    @property
    def lock(self) -> int:
        """The advisory lock of whoever builds its index; a successor's is not the collection's."""
        if self.number is None:
            return self.place.lock(self._manifest.name)
        return succession.successor_lock(self.place, self._manifest)

    def run(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns; a table that is gone becomes CollectionNotFound or LayoutChanged."""

        def named(connection: Connection) -> T:
            try:
                return work(connection)
            except pg.UndefinedTable as error:
                raise _Absent from error

        with self.there():
            return self.pool.run(named)

    @contextmanager
    def there(self) -> Iterator[None]:
        """Turns the absence of the table into CollectionNotFound, or LayoutChanged.

        It asks the catalogue with a connection of the pool: whoever holds one meanwhile may wait for himself.
        """
        try:
            yield
        except _Absent as error:
            raise succession.gone(self) from error.__cause__
        except pg.UndefinedTable as error:
            raise succession.gone(self) from error

    def write(self, batch: Batch) -> None:
        """Insert or replace these records: all of them or none, durable when the call returns.

        Those that are there are deleted, and all are copied: through a staging table, as INSERT … ON CONFLICT
        needs one, every vector would be written twice. They still go that way where others have put triggers,
        foreign keys, columns or row security on the table, for which a record that is replaced is not gone.

        Another writer may add one of them between our DELETE and our COPY, or wait for one of ours while we
        wait for one of his: then all is done again, with no other writer of ours beside it.
        """
        # in the order of COLLATE "C", so that two writers of the same ids seldom wait for each other
        order = sorted(range(len(batch)), key=batch.ids.__getitem__)
        ids = [batch.ids[row] for row in order]
        columns = [(self._content(column, batch), column.type) for column in self._columns]
        here = self.name.as_string(None)
        staging = [len(sql.columns(self._manifest)), here]
        # a lock of the table would do as well, but wait for an index that is built, and all others with it
        locks = chain(["pg_advisory_xact_lock_shared"], repeat("pg_advisory_xact_lock"))

        def once(connection: Connection) -> None:
            with connection.transaction():
                with connection.pipeline():
                    # before anything is read: who reads first and then waits to write, may be waited for
                    connection.execute(self._sql("LOCK TABLE {} IN ROW EXCLUSIVE MODE"))
                    connection.execute(_TOGETHER_OR_ALONE.format(next(locks)), [here])
                    # the planner would read the whole table to look for some hundred ids, or take them in
                    # the order in which they lie there
                    connection.execute(_BY_ID)
                    connection.execute(self._sql(_CLEARED), [ids, *staging])
                    answer = connection.execute(_STAGED, staging)
                staged = answer.fetchone() == (True,)
                blocks = copy.blocks(batch, order, columns)
                if staged:
                    self._replace(connection, blocks)
                else:
                    self._copy(connection, self.name, blocks)

        self.run(_repeated(once))

    def _content(self, column: sql.Column, batch: Batch) -> Floats:
        if column.name == "embedding":
            return batch.vectors
        return self._searched(batch.vectors, batch.short)

    def _searched(self, vectors: Floats, short: Floats | None) -> Floats:
        """What the index compares, of vectors (n, stored dim): float32 (n, index dim)."""
        return (
            vectors[:, : self._manifest.layout.index_dim(self._manifest.space.dim)]
            if short is None
            else short
        )

    def _copy(self, connection: Connection, table: Composable, blocks: Iterable[memoryview]) -> None:
        names = SQL(", ").join(map(Identifier, sql.columns(self._manifest)))
        statement = SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table, names)
        with connection.cursor() as cursor, cursor.copy(statement) as stream:
            for block in blocks:
                stream.write(block)

    def _replace(self, connection: Connection, blocks: Iterable[memoryview]) -> None:
        staging = Identifier("pg_temp", sql.STAGING)
        names = list(map(Identifier, sql.columns(self._manifest)))
        updates = SQL(", ").join(SQL("{0} = EXCLUDED.{0}").format(name) for name in names[1:])
        listed = SQL(", ").join(names)
        connection.execute(
            SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
                Identifier(sql.STAGING), listed, self.name
            ),
            prepare=False,
        )
        self._copy(connection, staging, blocks)
        connection.execute(
            SQL("INSERT INTO {0} ({1}) SELECT {1} FROM {2} ON CONFLICT (id) DO UPDATE SET {3}").format(
                self.name, listed, staging, updates
            ),
            prepare=False,
        )

    def read(self, ids: Sequence[str]) -> Batch:
        """The records of these ids in the order given; ids that are not there are left out."""
        found = self._records(*self._named(ids))
        rows = {row[0]: row for row in found}
        return reading.batch(self, [rows[id] for id in ids if id in rows])

    def _named(self, ids: Sequence[str]) -> tuple[Composable, Any]:
        """The condition for the records of these ids, and its parameters."""
        return SQL("WHERE id = ANY(%b)"), [list(ids)]

    def sample(self, n: int, *, seed: int) -> Batch:
        """Up to `n` records in an order that depends on ids and seed alone."""
        # bigint is signed
        number = (seed + 2**63) % 2**64 - 2**63
        chosen = self._sql(
            "WHERE id IN (SELECT id FROM {} ORDER BY hashtextextended(id, %(seed)s), id LIMIT %(n)s) "
            "ORDER BY hashtextextended(id, %(seed)s), id"
        )
        return reading.batch(self, self._records(chosen, {"seed": number, "n": n}))

    def _records(self, condition: Composable, values: Any) -> list[tuple[Any, ...]]:
        statement = self._sql("SELECT id, embedding, digest, document, metadata FROM {} ") + condition

        def fetch(connection: Connection) -> list[tuple[Any, ...]]:
            return connection.execute(statement, values, binary=True).fetchall()

        return self.run(fetch)

    def digests(self, ids: Sequence[str]) -> dict[str, bytes]:
        """The stored digests of those of these ids that are there and have one."""
        statement = self._sql("SELECT id, digest FROM {} WHERE id = ANY(%b) AND digest IS NOT NULL")

        def fetch(some: list[str], connection: Connection) -> list[tuple[Any, ...]]:
            return connection.execute(statement, [some], binary=True).fetchall()

        found: dict[str, bytes] = {}
        for some in _parts(ids):
            found.update(self.run(partial(fetch, some)))
        return found

    def inventory(self) -> Iterator[list[tuple[str, bytes | None]]]:
        """Ids and digests of all records in the order of their ids."""
        return reading.inventory(self)

    def scan(self, where: Filter | None, *, vectors: bool) -> Iterator[Batch]:
        """All records, or those that match, in the order of their ids."""
        return reading.scan(self, where, vectors=vectors)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove these ids, all of them or none; returns how many were there."""
        statement = self._sql("DELETE FROM {} WHERE id = ANY(%b)")
        # in one order, so that two who delete the same ids seldom wait for each other
        parts = list(_parts(sorted(ids)))

        def once(connection: Connection) -> int:
            # one round trip; what is sent before its end is one transaction
            with connection.pipeline():
                cursors = [connection.execute(statement, [some]) for some in parts]
            return sum(cursor.rowcount for cursor in cursors)

        return self.run(_repeated(once))

    def delete_where(self, where: Filter) -> int:
        """Remove the records that match; returns how many."""
        condition, values = compile(where)
        statement = self._sql("DELETE FROM {} WHERE ") + condition

        def once(connection: Connection) -> int:
            return connection.execute(statement, values).rowcount

        return self.run(_repeated(once))

    def count(self, where: Filter | None = None) -> int:
        """Number of records, or of those that match."""
        return self._count(where, None)

    def _count(self, where: Filter | None, most: int | None) -> int:
        condition, values = compile(where) if where is not None else (SQL("true"), {})
        statement = self._sql("SELECT count(*) FROM (SELECT FROM {} WHERE ") + condition
        statement += (
            SQL(") AS matching") if most is None else SQL(" LIMIT {}) AS matching").format(Literal(most))
        )

        def fetch(connection: Connection) -> int:
            row = connection.execute(statement, values).fetchone()
            assert row is not None
            return int(row[0])

        return self.run(fetch)

    def search(
        self, queries: Floats, short: Floats | None, *, k: int, where: Filter | None, exact: bool
    ) -> list[list[Hit]]:
        """For each row of `queries` the k nearest records; see `vecbridge.backends.Table`."""
        candidates = None if exact else self._candidates(k, filtered=where is not None)
        if candidates is not None and where is not None and self._selective(where, k, candidates):
            candidates = None
        found = self._ask(queries, short, k, candidates, where)
        if candidates is None:
            return found
        lacking = [row for row, hits in enumerate(found) if len(hits) < k]
        if lacking:
            # an approximate scan ends early where few rows match
            there = self._count(where, k)
            lacking = [row for row in lacking if len(found[row]) < there]
            for row, hits in zip(lacking, self._ask(queries[lacking], None, k, None, where), strict=True):
                found[row] = hits
        return found

    def _candidates(self, k: int, *, filtered: bool) -> int | None:
        """How many rows the index is asked for; None where only an exact scan finds k of them."""
        layout = self._manifest.layout
        if layout.index is None:
            return None
        candidates = k * layout.oversample
        if filtered and layout.index.kind != "scan":
            candidates = k * max(layout.oversample, _FILTERED)
        if (
            layout.index.kind != "scan"
            and not self._iterative
            and (filtered or candidates > _MOST_CANDIDATES)
        ):
            return None
        return candidates

    def _selective(self, where: Filter, k: int, candidates: int) -> bool:
        """Whether so few rows seem to match that the index would only cost time."""
        if sql.indexed(self._manifest) is None:
            return False
        condition, values = compile(where)
        operands = sum(len(value) for value in values.values() if isinstance(value, list))
        text = sql.probe(
            self._manifest,
            self.place,
            where=condition,
            density=choice.density(self._manifest),
            sample=choice.sample(operands),
            most=choice.LARGEST,
        )
        settings = self._settings(None, filtered=True)

        def fetch(connection: Connection) -> tuple[float, int, int] | None:
            with connection.pipeline():
                connection.execute(settings)
                # a plan for any parameters would read the array of $in's operands anew for each row
                cursor = connection.execute(text, values, prepare=False)
            return cursor.fetchone()

        row = self.run(fetch)
        return row is not None and choice.exact_is_cheaper(
            self._manifest, choice.Probe(*row), k=k, candidates=candidates, operands=operands
        )

    def _ask(
        self, queries: Floats, short: Floats | None, k: int, candidates: int | None, where: Filter | None
    ) -> list[list[Hit]]:
        values: dict[str, Any] = {}
        text: str | SQL | Composed
        if where is None:
            text = self._statement(k, candidates)
        else:
            condition, values = compile(where)
            text = sql.search(self._manifest, self.place, k=k, candidates=candidates, where=condition)
        index = self._manifest.layout.index if candidates is not None else None
        settings = self._settings(candidates, filtered=where is not None)
        metric = self._manifest.space.metric
        hits: list[list[Hit]] = []

        def fetch(start: int, connection: Connection) -> list[list[tuple[Any, ...]]]:
            rows = slice(start, start + _TOGETHER)
            # before anything is sent: between two messages the server falls asleep
            wholes = copy.parameters(queries[rows], self._columns[0].type)
            asked: Sequence[copy.Wire | None] = [None] * len(wholes)
            if index is not None:
                part = None if short is None else short[rows]
                asked = copy.parameters(self._searched(queries[rows], part), sql.type_of(index.element))
            # one round trip; what is sent before its end is one transaction, for which the settings hold
            with connection.pipeline():
                connection.execute(settings)
                cursors = [
                    connection.execute(text, {**values, "q": whole, "s": searched}, binary=True)
                    for whole, searched in zip(wholes, asked, strict=True)
                ]
            return [cursor.fetchall() for cursor in cursors]

        for start in range(0, len(queries), _TOGETHER):
            for rows in self.run(partial(fetch, start)):
                hits.append(
                    [Hit(id, sql.score(metric, far), document, data) for id, document, data, far in rows]
                )
        return hits

    def _settings(self, candidates: int | None, *, filtered: bool) -> str:
        # of the widths that hold now: `keep` changes them
        index = None if candidates is None else self._manifest.layout.index
        return _settings(index, candidates or 0, filtered=filtered, iterative=self._iterative)

    def explain(self, connection: Connection) -> list[str]:
        """The indexes that a search of ten hits runs on, by the server's own account."""
        statement = "EXPLAIN (FORMAT JSON) " + self._statement(10, self._candidates(10, filtered=False))
        ones = np.ones((1, self._columns[0].dim), np.float32)
        index = self._manifest.layout.index
        assert index is not None
        short = np.ones((1, self._manifest.layout.index_dim(self._manifest.space.dim)), np.float32)
        values = {
            "q": copy.parameters(ones, self._columns[0].type)[0],
            "s": copy.parameters(short, sql.type_of(index.element))[0],
        }
        with connection.pipeline():
            connection.execute(self._settings(self._candidates(10, filtered=False), filtered=False))
            cursor = connection.execute(statement, values, prepare=False)
        row = cursor.fetchone()
        assert row is not None
        return _indexes(row[0])

    def build_index(self, progress: Progress | None, *, concurrently: bool = False) -> None:
        """Bring the index to status "ready" and used; see `vecbridge.backends.Table`.

        `concurrently` lets other processes write meanwhile, and takes longer.
        """
        build.build(self, progress, concurrently=concurrently)

    def index_state(self) -> IndexState:
        """What has become of the index, by the server's own account."""
        return self.run(lambda connection: build.state(self, connection))

    def searched(self, layout: Layout) -> Table:
        """The same records, for searching with other widths."""
        manifest = replace(self._manifest, layout=layout)
        return type(self)(self.pool, self.place, manifest, iterative=self._iterative, number=self.number)

    def keep(self, manifest: Manifest) -> None:
        """Replace what the collection says of itself, for its generation only."""
        if not self.pool.run(lambda connection: succession.keep(connection, self.place, manifest)):
            raise succession.gone(self)
        # nothing but widths differ: statements that were composed before stay what they are
        self._manifest = manifest

    @contextmanager
    def paused(self) -> Iterator[None]:
        """All writers wait, of any process, and searches go on; see `succession`."""
        with self.pool.own() as connection:
            with self.there():
                succession.hold(connection, self)
            name = self._manifest.name
            self.pool.pausing[name] = connection
            try:
                yield
            finally:
                # after a switch another thread may be pausing it already
                if self.pool.pausing.get(name) is connection:
                    del self.pool.pausing[name]

    def sizes(self) -> Sizes:
        """Bytes on disk."""
        statement = SQL(
            "SELECT pg_table_size(c.oid) + (SELECT coalesce(sum(pg_relation_size(indexrelid)), 0) "
            "FROM pg_index WHERE indrelid = c.oid AND indisprimary), "
            "coalesce(pg_relation_size(to_regclass(%s)), 0) FROM pg_class c WHERE c.oid = %s::regclass"
        )
        index = self.place.index(self._manifest).as_string(None)

        def fetch(connection: Connection) -> Sizes:
            row = connection.execute(statement, [index, self.relation.as_string(None)]).fetchone()
            assert row is not None
            return Sizes(int(row[0]), int(row[1]))

        return self.run(fetch)

    def close(self) -> None:
        """Nothing to give back: the connections are the backend's."""

    def _sql(self, text: Any) -> Composed:
        return SQL(text).format(self.name)


class _Absent(Exception):
    """The table is not there; the driver's error is the cause."""


def _parts(ids: Sequence[str]) -> Iterator[list[str]]:
    # one at least: no ids are asked for, too, so that a collection that is gone says so
    for start in range(0, max(1, len(ids)), _IDS):
        yield list(ids[start : start + _IDS])


@lru_cache(maxsize=256)
def _settings(index: Index | None, candidates: int, *, filtered: bool, iterative: bool) -> str:
    """The statement that makes the settings of one search."""
    wanted = sql.settings(index, candidates=candidates, filtered=filtered, iterative=iterative)
    calls = (f"set_config('{name}', '{value}', true)" for name, value in wanted.items())
    return f"SELECT {', '.join(calls)}"


def _repeated(work: Callable[[Connection], T]) -> Callable[[Connection], T]:
    """The same work, started again where another writer got in its way."""

    def repeated(connection: Connection) -> T:
        for attempt in range(_ATTEMPTS):
            try:
                return work(connection)
            except (pg.DeadlockDetected, pg.SerializationFailure, pg.UniqueViolation):
                if attempt == _ATTEMPTS - 1:
                    raise
            time.sleep(random.uniform(0, 0.05) * 2**attempt)  # noqa: S311  spreads writers, keeps no secret
        raise AssertionError("unreachable")

    return repeated


def _indexes(plan: Any) -> list[str]:
    """Every index named in a plan."""
    if isinstance(plan, list):
        return [name for part in plan for name in _indexes(part)]
    if isinstance(plan, dict):
        own = [plan["Index Name"]] if "Index Name" in plan else []
        return own + [name for part in plan.values() for name in _indexes(part)]
    return []
