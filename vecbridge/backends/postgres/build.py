"""The search index: built once for all processes, watched, repaired, and proved to be used."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import errors as pg
from psycopg.sql import SQL, Composed

from ... import sizes
from ...errors import IndexFailure
from ...types import Index, IndexState, Progress
from . import sql
from .pool import Connection

if TYPE_CHECKING:
    from .table import Table

_GB = 2**30
_MOST = 8 * _GB  # of the server's memory, where nothing is known about it
_LEAST = 64 * 2**20  # maintenance_work_mem's default
_WORKER = 32 * 2**20  # pgvector starts no parallel worker with less
_PAUSE = 0.2  # seconds between two looks at the progress


@dataclass(frozen=True, slots=True)
class _Found:
    """An index that is there; `own`: vecbridge made it, else the owner of an adopted table did."""

    name: str
    own: bool
    valid: bool
    method: str
    opclass: str
    expression: str
    options: dict[str, int]


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that the graph needs to be built in memory, bytes that a build takes at most, and its workers."""

    memory: int
    most: int
    workers: int


def needs(table: Table, index: Index, *, rows: int) -> Needs:
    """What building `index` over so many rows would take."""
    most, workers = _machine(local=table.pool.local, rows=rows)
    return Needs(_memory(table, index, rows, sys.maxsize), most, workers)


def state(table: Table, connection: Connection) -> IndexState:
    """What has become of the index."""
    index = sql.indexed(table.manifest)
    if index is None:
        scan = table.manifest.layout.index is not None
        return IndexState("none", detail="searches scan a compact copy of every vector" if scan else "")
    found = _find(table, connection)
    if found is None:
        rows = connection.execute(SQL("SELECT EXISTS (SELECT FROM {})").format(table.name)).fetchone()
        if index.kind == "ivfflat" and rows == (False,):
            return IndexState("missing", detail="ivfflat is built from rows, and there are none yet")
        return IndexState("missing", detail="call build_index() after loading")
    if not found.valid:
        return IndexState("invalid", detail="an interrupted build left it; build_index() repairs it")
    if reason := _objection(table, index, found, rows=None):
        return IndexState("invalid", detail=f"{reason}; build_index() rebuilds it")
    detail = "" if found.own else f"{found.name}, which the owner of the table made"
    return IndexState("ready", used=found.name in table.explain(connection), detail=detail)


def build(table: Table, progress: Progress | None, *, concurrently: bool) -> None:
    """Build the index where it is missing, invalid or not the manifest's; then prove that it is used."""
    index = sql.indexed(table.manifest)
    if index is None:
        return
    watch = _Watch(table, progress)
    with table.pool.own() as connection, table.there(), _alone(table, connection, watch):
        count = connection.execute(SQL("SELECT count(*) FROM {}").format(table.name)).fetchone()
        assert count is not None
        rows = int(count[0])
        found = _find(table, connection)
        if found is None or not found.valid or _objection(table, index, found, rows=rows):
            if found is not None:
                drop = SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(table.place.index(table.manifest))
                connection.execute(drop)
            if index.kind == "ivfflat" and not rows:
                return
            watch.rows = rows
            adopted = table.manifest.adopted is not None
            # others write to a table that is not ours, and when it is analyzed is their business, too
            _create(table, connection, index, watch, concurrently=concurrently or adopted)
            if not adopted:
                connection.execute(SQL("ANALYZE {}").format(table.relation))
            found = None
        name = sql.index_name(table.manifest) if found is None else found.name
        if name not in (used := table.explain(connection)):
            raise IndexFailure(
                f"index {name} is there, but the search of collection {table.manifest.name!r} does not run "
                f"on it (it uses {', '.join(used) or 'no index'}); look at EXPLAIN of the search, and at "
                f"settings such as enable_indexscan"
            )
        watch.done(rows)


def used(table: Table, connection: Connection) -> str | None:
    """The name of the valid index that there is for searches, by whomever; None where there is none."""
    found = None if sql.indexed(table.manifest) is None else _find(table, connection)
    return found.name if found is not None and found.valid else None


@contextmanager
def removed(table: Table) -> Iterator[Connection]:
    """A connection during which nobody builds the index, after dropping what vecbridge has made of it."""
    with table.pool.own() as connection, _alone(table, connection, _Watch(table, None)):
        connection.execute(
            SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(table.place.index(table.manifest))
        )
        yield connection


def _find(table: Table, connection: Connection) -> _Found | None:
    """The index that vecbridge made; else, on an adopted table, the one that searches run on."""
    own = sql.index_name(table.manifest)
    used = [] if table.manifest.adopted is None else table.explain(connection)
    rows = connection.execute(
        "SELECT c.relname, i.indisvalid, m.amname, o.opcname, pg_get_indexdef(c.oid, 1, false), c.reloptions "
        "FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam "
        "JOIN pg_opclass o ON o.oid = i.indclass[0] "
        "WHERE i.indrelid = %s::regclass "
        "AND (c.relname = %s OR c.relname = ANY(%s) AND m.amname IN ('hnsw', 'ivfflat'))",
        [table.relation.as_string(None), own, used],
    ).fetchall()
    if not rows:
        return None
    # a valid one before what an interrupted build left
    name, valid, method, opclass, expression, options = max(rows, key=lambda row: (row[1], row[0] == own))
    pairs = (option.partition("=") for option in options or [])
    numbers = {key: int(value) for key, _, value in pairs if value.isdigit()}
    return _Found(name, name == own, valid, method, opclass, sql.plain(expression, table.place), numbers)


def _objection(table: Table, index: Index, found: _Found, *, rows: int | None) -> str | None:
    """Why the index found is not the one that the manifest wants; others' are as they are."""
    if not found.own:
        return None
    wanted = sql.definition(table.manifest, table.place)
    if (found.method, found.opclass, found.expression) != wanted:
        return (
            f"it is {found.method} ({found.expression} {found.opclass}), "
            f"expected {wanted[0]} ({wanted[2]} {wanted[1]})"
        )
    if index.kind == "hnsw":
        expected = sql.options(index)
        # a value that is not named is pgvector's default
        options = {"m": 16, "ef_construction": 64, **found.options}
        return None if options == expected else f"it was built with {options}, expected {expected}"
    if rows is None:
        return None
    lists, expected_lists = found.options.get("lists", 100), lists_of(index, rows)
    # rows come and go; a rebuild pays when the lists have become a different order of magnitude
    if not expected_lists / 2 <= lists <= expected_lists * 2:
        return f"it has {lists} lists, {expected_lists} suit {rows} rows"
    return None


def lists_of(index: Index, rows: int) -> int:
    """The lists that an ivfflat index over so many rows is built with; of no meaning for others."""
    return min(max(index.lists, 1), max(1, rows // 50))


def _create(table: Table, connection: Connection, index: Index, watch: _Watch, *, concurrently: bool) -> None:
    statement = sql.create_index(
        table.manifest, table.place, lists=lists_of(index, watch.rows), concurrently=concurrently
    )
    cap, workers = _machine(local=table.pool.local, rows=watch.rows)
    memory = _memory(table, index, watch.rows, cap)
    for _ in range(3):
        try:
            _configure(connection, memory, workers)
            if table.number is not None:
                _tie(connection)
            _execute(connection, statement, watch)
            return
        except (pg.DiskFull, pg.OutOfMemory) as error:
            # parallel workers share memory that containers keep small (/dev/shm); a serial build needs none
            if not workers:
                raise _failed(table, error) from error
            workers = 0
        except pg.ProgramLimitExceeded as error:
            required = re.search(r"memory required is (\d+) MB", str(error))
            if required is None or memory > int(required[1]) * 2**20:
                raise _failed(table, error) from error
            memory = (int(required[1]) + 1) * 2**20
        except (pg.InsufficientPrivilege, pg.ReadOnlySqlTransaction, psycopg.OperationalError):
            raise
        except psycopg.Error as error:
            raise _failed(table, error) from error
        _drop_invalid(table, connection)
    raise IndexFailure(f"the index of collection {table.manifest.name!r} could not be built")


def _failed(table: Table, error: psycopg.Error) -> IndexFailure:
    said = error.diag.message_primary or type(error).__name__
    return IndexFailure(f"the index of collection {table.manifest.name!r} could not be built: {said}")


def _drop_invalid(table: Table, connection: Connection) -> None:
    found = _find(table, connection)
    if found is not None and not found.valid:
        connection.execute(SQL("DROP INDEX CONCURRENTLY {}").format(table.place.index(table.manifest)))


def _machine(*, local: bool, rows: int) -> tuple[int, int]:
    """Memory and parallel workers that a build may take."""
    workers = 0 if rows < 10_000 else 2 if rows < 100_000 else 4 if rows < 1_000_000 else 8
    if not local:
        return _MOST, workers
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(_MOST, memory // 4), min(workers, (os.cpu_count() or 1) - 1)


def _memory(table: Table, index: Index, rows: int, cap: int) -> int:
    dim = table.manifest.layout.index_dim(table.manifest.space.dim)
    if index.kind == "hnsw":
        need = sizes.hnsw_memory(rows, index.element, dim, m=index.m)
    else:
        need = sizes.ivfflat_memory(rows, index.element, dim, lists=lists_of(index, rows))
    return min(need + need // 10 + 8 * 2**20, cap)


def _configure(connection: Connection, memory: int, workers: int) -> None:
    """Set what a build needs; what the administrator gave stays where it is more.

    A server whose machine cannot be seen from here, as one in a container, may say how much a build gets at
    most: `vecbridge.build_memory`, a setting of PostgreSQL's kind that nobody but this function reads.
    """
    least = max(memory, _LEAST, _WORKER * (workers + 1))
    connection.execute(
        # least() passes over NULL, which is what an unset or empty setting becomes
        "SELECT set_config('maintenance_work_mem', greatest("
        " least(%s, pg_size_bytes(nullif(current_setting('vecbridge.build_memory', true), '')) / 1024),"
        " pg_size_bytes(reset_val || unit) / 1024) || 'kB', false),"
        " set_config('max_parallel_maintenance_workers', %s, false),"
        # vectors lie beside the table, which therefore looks too small for parallel workers
        " set_config('min_parallel_table_scan_size', '0', false), set_config('statement_timeout', '0', false)"
        " FROM pg_settings WHERE name = 'maintenance_work_mem'",
        [min(least // 1024, 2**31 - 1), str(workers)],
    )


def _tie(connection: Connection) -> None:
    """Let a build end with the process that wants it: nobody needs the index of an abandoned successor."""
    # PostgreSQL 14 and later; else the server notices only when it has built for hours
    connection.execute(
        "SELECT set_config(name, '2s', false) FROM pg_settings "
        "WHERE name = 'client_connection_check_interval'"
    )


@contextmanager
def _alone(table: Table, connection: Connection, watch: _Watch) -> Iterator[None]:
    """Waits until no other process builds this index."""
    key = table.lock
    # asked again and again instead of waited for: a waiting statement would be one that a concurrent build,
    # which waits for all others, waits for
    while connection.execute("SELECT pg_try_advisory_lock(%s)", [key]).fetchone() != (True,):
        watch.look()
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", [key])


def _execute(connection: Connection, statement: Composed, watch: _Watch) -> None:
    """Run a statement while this thread reports how far it is, so that an error in the report ends both."""
    with ThreadPoolExecutor(1, thread_name_prefix="vecbridge-build") as pool:
        running = pool.submit(connection.execute, statement)
        try:
            while not wait([running], _PAUSE).done:
                watch.look()
        except BaseException:
            connection.cancel_safe()
            raise
        running.result()


class _Watch:
    """Reports the progress of whichever process builds the index; `rows` are its unit once they are known."""

    def __init__(self, table: Table, progress: Progress | None) -> None:
        self._table = table
        self._progress = progress
        self._last = 0
        self.rows = 0

    def look(self) -> None:
        """Report how far it is now."""
        if self._progress is None:
            return
        relation = self._table.relation.as_string(None)

        def fetch(connection: Connection) -> tuple[int, ...] | None:
            return connection.execute(
                "SELECT blocks_done, blocks_total, tuples_done, tuples_total "
                "FROM pg_stat_progress_create_index WHERE relid = %s::regclass",
                [relation],
            ).fetchone()

        blocks, all_blocks, tuples, all_tuples = self._table.run(fetch) or (0, 0, 0, 0)
        done, total = (tuples, all_tuples) if all_tuples else (blocks, all_blocks)
        if not total:  # waiting for a lock, or looking for centres
            self._progress("index", self._last, self.rows if self._last else None)
            return
        rows = self.rows or total
        self._last = max(self._last, min(rows * done // total, rows))
        self._progress("index", self._last, rows)

    def done(self, rows: int) -> None:
        """Report the end."""
        if self._progress is not None:
            self._progress("index", rows, rows)
