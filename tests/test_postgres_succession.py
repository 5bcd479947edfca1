"""Another table for a collection on real PostgreSQL: kills, writers that wait, rights, locks of others."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import psycopg
import pytest
from psycopg import sql

from vecbridge.backends.postgres import Postgres, Table, connect, succession
from vecbridge.errors import Busy, LayoutChanged, StoreError, Unavailable
from vecbridge.manifest import Manifest
from vecbridge.replanning import replan
from vecbridge.types import Batch, Index, Layout, Space

if TYPE_CHECKING:
    from vecbridge.types import Floats

DIM, ROWS = 8, 200
HNSW = Layout(index=Index("hnsw", ef_search=40))
_LIMIT = 60.0  # seconds after which something that should have happened has not

REPLAN = """
import sys
from dataclasses import replace
from vecbridge.backends import connect
from vecbridge.replanning import replan
from vecbridge.types import Index, Layout

url, wanted = sys.argv[1:]

def progress(stage, done, total):
    print(stage, done, flush=True)
    if stage == wanted and done:
        sys.stdin.readline()

backend = connect(url)
table = backend.open("papers")
layout = Layout(index=Index("hnsw", ef_search=40))
replan(backend, table, replace(table.manifest, layout=layout, generation=1), progress=progress)
print("switched", flush=True)
"""

WRITE = """
import sys
import numpy as np
from vecbridge.backends import connect
from vecbridge.errors import LayoutChanged
from vecbridge.types import Batch

backend = connect(sys.argv[1])
table = backend.open("papers")
new = Batch(["new"], np.ones((1, table.manifest.space.dim), np.float32), ["written late"], [{}], [None])
print("open", flush=True)
sys.stdin.readline()
try:
    table.write(new)
except LayoutChanged:
    backend.open("papers").write(new)
    print("again", flush=True)
print("written", flush=True)
"""


@pytest.fixture
def backend(pg: str) -> Iterator[Postgres]:
    backend = connect(pg)
    yield backend
    backend.close()


def vectors() -> Floats:
    return np.random.default_rng(5).normal(size=(ROWS, DIM)).astype(np.float32)


def filled(backend: Postgres) -> Table:
    table = backend.create(Manifest("papers", Space(DIM), Layout(), ROWS))
    ids = [str(row) for row in range(ROWS)]
    table.write(Batch(ids, vectors(), ids, [{"row": row} for row in range(ROWS)], [b"d"] * ROWS))
    return table


def following(table: Table, layout: Layout = HNSW) -> Manifest:
    return replace(table.manifest, layout=layout, generation=table.manifest.generation + 1)


def check(table: Table, *, generation: int, rows: int = ROWS) -> None:
    """Fail unless the collection is of this generation and holds what was written."""
    assert table.manifest.generation == generation
    assert table.count() == rows
    found = table.read([str(row) for row in range(ROWS)])
    np.testing.assert_array_equal(found.vectors, vectors())
    assert list(found.documents) == list(found.ids)


def tables(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND starts_with(relname, 'vecbridge_')"
        ).fetchall()
    return sorted(name for (name,) in rows)


def wait(url: str, condition: str, *, what: str) -> None:
    """Return once a condition holds in the database; fail if that takes too long."""
    end = time.monotonic() + _LIMIT
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute("SELECT " + condition).fetchone() != (True,):  # type: ignore[arg-type]  # ours
            assert time.monotonic() < end, f"{what} did not happen in {_LIMIT:.0f} s"
            time.sleep(0.05)


def blocked(pattern: str) -> str:
    """The condition that some session waits for a lock in a statement like this."""
    return (
        "EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() "
        f"AND wait_event_type = 'Lock' AND query LIKE '{pattern}')"
    )


@contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def said(child: subprocess.Popen[str], wanted: str) -> None:
    """Wait until the process has said what matches this; fail if it ends before, or takes too long."""
    assert child.stdout is not None
    # who waits for its next line would wait for ever
    limit = threading.Timer(_LIMIT, child.kill)
    limit.start()
    try:
        for line in child.stdout:
            if re.match(wanted, line):
                return
    finally:
        limit.cancel()
    pytest.fail(f"the process ended without saying {wanted!r}")


def in_time(work: Callable[[], Any]) -> Any:
    """What a call returns that must not have to wait for anybody."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(_LIMIT)


# --- processes that are killed ---------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["copying", "index", "switch"])
def test_a_kill_during_a_replan_leaves_the_collection_whole_and_the_next_replan_works(
    backend: Postgres, pg: str, moment: str
) -> None:
    table = filled(backend)
    with psycopg.connect(pg) as reader, process(REPLAN, pg, moment) as child:
        if moment == "switch":
            # who reads in a transaction keeps the switch from dropping the table
            reader.execute("SELECT FROM vecbridge_papers")
            wait(pg, blocked("%IN ACCESS EXCLUSIVE MODE"), what="the switch")
        else:
            said(child, f"{moment} {ROWS}" if moment == "index" else moment)
        child.kill()
        child.wait(_LIMIT)
        assert backend.names() == ["papers"]
        assert tables(pg) == ["vecbridge_papers", "vecbridge_papers$1"]
        check(backend.open("papers"), generation=0)
        in_time(lambda: table.write(table.read(["0"])))
    anew = replan(backend, table, following(table))
    check(anew, generation=1)
    assert anew.index_state().used
    assert tables(pg) == ["vecbridge_papers$1"]


def test_doctor_tells_an_abandoned_successor_from_one_in_the_making(backend: Postgres, pg: str) -> None:
    table = filled(backend)

    def finding() -> list[tuple[str, str, str]]:
        return [
            (one.level, one.found, one.remedy)
            for one in backend.findings()
            if one.subject == "papers: layout" or one.subject.startswith("table ")
        ]

    assert finding() == []
    with process(REPLAN, pg, "copying") as child:
        said(child, "copying [1-9]")
        assert finding() == [("ok", "it is being laid out anew right now", "")]
        child.kill()
        child.wait(_LIMIT)
    wait(pg, "NOT EXISTS (SELECT FROM pg_locks WHERE mode = 'ShareRowExclusiveLock')", what="the release")
    [(level, found, remedy)] = finding()
    assert level == "warning"
    assert found == "vecbridge_papers$1 was begun for another layout and never became the collection"
    statement = remedy.rpartition("or now: ")[2]
    assert statement == 'DROP TABLE "public"."vecbridge_papers$1";'
    with psycopg.connect(pg, autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[call-overload]  # what people would paste
    assert finding() == []
    check(replan(backend, table, following(table)), generation=1)
    assert finding() == []


def test_the_build_of_an_abandoned_successor_ends_with_its_process(backend: Postgres, pg: str) -> None:
    filled(backend)
    building = "EXISTS (SELECT FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'CREATE INDEX%')"
    with psycopg.connect(pg) as writer, process(REPLAN, pg, "copying") as child:
        said(child, "copying [1-9]")
        # a build takes long where somebody writes
        writer.execute('LOCK TABLE "vecbridge_papers$1" IN ROW EXCLUSIVE MODE')
        assert child.stdin is not None
        for _ in range(ROWS):
            child.stdin.write("\n")
        child.stdin.flush()
        wait(pg, blocked("CREATE INDEX%"), what="the build")
        child.kill()
        child.wait(_LIMIT)
        wait(pg, f"NOT {building}", what="the end of the build")


def test_a_writer_in_another_process_waits_and_its_record_is_in_the_new_table(
    backend: Postgres, pg: str
) -> None:
    table = filled(backend)
    with process(WRITE, pg) as child:
        said(child, "open")
        waiting = threading.Event()

        def progress(stage: str, done: int, total: int | None) -> None:
            assert child.stdin is not None
            if not waiting.is_set():
                child.stdin.write("go\n")
                child.stdin.flush()
                wait(pg, blocked("LOCK TABLE%"), what="the writer's waiting")
                waiting.set()

        anew = replan(backend, table, following(table), progress=progress)
        assert waiting.is_set()
        said(child, "again")
        said(child, "written")
    check(anew, generation=1, rows=ROWS + 1)
    assert list(anew.read(["new"]).documents) == ["written late"]


def test_the_new_table_is_not_the_old_one_for_a_process_that_is_two_generations_behind(
    backend: Postgres, pg: str
) -> None:
    """A name that was used again would be found by whoever knows the layout before the last."""
    first = filled(backend)
    second = replan(backend, first, following(first))
    third = replan(backend, second, following(second, Layout()))
    for stale, generation in ((first, 0), (second, 1)):
        with pytest.raises(LayoutChanged, match=f"generation 2, this was for generation {generation}"):
            stale.count()
    check(third, generation=2)
    assert tables(pg) == ["vecbridge_papers$2"]


# --- locks -----------------------------------------------------------------------------------------------


def test_a_writer_that_waits_for_a_switch_holds_nothing_that_the_switch_waits_for(
    backend: Postgres, pg: str
) -> None:
    table = filled(backend)
    batch = table.read(["0", "1"])
    with ThreadPoolExecutor(2) as pool:
        with table.paused():
            writing = [pool.submit(table.write, batch), pool.submit(table.delete, ["5"])]
            wait(pg, blocked("LOCK TABLE%"), what="the writer's waiting")
            wait(pg, blocked("DELETE%"), what="the deleter's waiting")
            with psycopg.connect(pg) as connection:
                held = connection.execute(
                    "SELECT mode FROM pg_locks WHERE granted AND relation = 'vecbridge_papers'::regclass"
                ).fetchall()
            assert held == [("ShareRowExclusiveLock",)]
        for one in writing:
            one.result(_LIMIT)


def test_searches_go_on_while_a_switch_waits_for_one_that_takes_long(
    backend: Postgres, pg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "PATIENCE", 3)
    table = filled(backend)
    found: list[int] = []
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            hits = table.search(vectors()[:1], None, k=5, where=None, exact=True)
            found.append(len(hits[0]))

    with psycopg.connect(pg) as reader, ThreadPoolExecutor(1) as pool:
        reader.execute("SELECT FROM vecbridge_papers")
        searching = pool.submit(search)
        try:
            with pytest.raises(Busy, match="another process holds the collection"):
                replan(backend, table, following(table))
        finally:
            done.set()
        searching.result(_LIMIT)
    assert set(found) == {5}
    assert tables(pg) == ["vecbridge_papers"]
    check(backend.open("papers"), generation=0)
    check(replan(backend, table, following(table)), generation=1)


def test_a_pause_waits_for_whoever_writes_and_gives_up_in_the_end(
    backend: Postgres, pg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "PATIENCE", 1)
    table = filled(backend)
    with psycopg.connect(pg) as writer:
        writer.execute("DELETE FROM vecbridge_papers WHERE id = '7'")
        with pytest.raises(Busy, match="another process holds the collection"):
            replan(backend, table, following(table))
        writer.rollback()
    assert tables(pg) == ["vecbridge_papers"]
    check(replan(backend, table, following(table)), generation=1)


def test_nobody_drops_replans_or_builds_a_collection_that_is_paused(
    backend: Postgres, pg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "PATIENCE", 1)
    table = filled(backend)
    other = connect(pg)
    try:
        with table.paused():
            with pytest.raises(Busy, match="another process holds"):
                other.drop("papers")
            with pytest.raises(Busy, match="another process holds"):
                replan(other, other.open("papers"), following(table))
        other.drop("papers")
    finally:
        other.close()
    assert tables(pg) == []


def test_a_pause_outlasts_servers_that_end_what_only_waits(backend: Postgres, pg: str) -> None:
    name = sql.Identifier(urlsplit(pg).path.strip("/"))
    with psycopg.connect(pg, autocommit=True) as connection:
        for setting in ("idle_in_transaction_session_timeout", "transaction_timeout", "statement_timeout"):
            connection.execute(
                sql.SQL("ALTER DATABASE {} SET {} = '1s'").format(name, sql.Identifier(setting))
            )
    table = filled(backend)

    def slow(stage: str, done: int, total: int | None) -> None:
        if not done:
            time.sleep(1.5)

    check(replan(backend, table, following(table, Layout()), progress=slow), generation=1)


def test_a_pause_that_the_server_ends_stops_the_replan_and_changes_nothing(
    backend: Postgres, pg: str
) -> None:
    table = filled(backend)

    def end(stage: str, done: int, total: int | None) -> None:
        if not done:
            wait(
                pg,
                "count(pg_terminate_backend(pid)) > 0 FROM pg_locks WHERE mode = 'ShareRowExclusiveLock' "
                "AND granted AND relation = 'vecbridge_papers'::regclass",
                what="the end of the pause",
            )

    with pytest.raises(Unavailable, match=r"terminating connection|closed|lost"):
        replan(backend, table, following(table), progress=end)
    assert tables(pg) == ["vecbridge_papers"]
    check(backend.open("papers"), generation=0)
    check(replan(backend, table, following(table)), generation=1)


def test_a_switch_that_is_tried_again_after_it_happened_is_no_error(backend: Postgres, pg: str) -> None:
    """The connection may be lost right after the commit; then the pool runs it a second time."""
    table = filled(backend)
    successor = backend.successor(following(table))
    successor.write(table.read([str(row) for row in range(ROWS)]))
    with psycopg.connect(pg, autocommit=True) as connection:
        for _ in range(2):
            succession.switch(connection, table.place, successor)
    check(backend.open("papers"), generation=1)


# --- whose it is -----------------------------------------------------------------------------------------


def test_the_new_table_belongs_to_whom_the_old_one_did_and_others_keep_their_rights(
    backend: Postgres, pg: str
) -> None:
    table = filled(backend)
    database = urlsplit(pg).path.strip("/")
    owner, reader, writer, newcomer = (f"{database}_{role}" for role in ("own", "read", "write", "new"))
    roles = [sql.Identifier(role) for role in (owner, reader, writer, newcomer)]
    shown = "SELECT pg_get_userbyid(relowner), relacl::text FROM pg_class WHERE relname = %s"
    with psycopg.connect(pg, autocommit=True) as connection:
        for role in roles:
            connection.execute(sql.SQL("CREATE ROLE {}").format(role))
        try:
            for text in (
                "GRANT ALL ON SCHEMA public TO {0}",
                "ALTER TABLE vecbridge_papers OWNER TO {0}",
                "GRANT SELECT ON vecbridge_papers TO {1}",
                "GRANT SELECT, INSERT ON vecbridge_papers TO {2} WITH GRANT OPTION",
                "GRANT SELECT ON vecbridge_papers TO PUBLIC",
                # rights that new tables get, and the old one has not
                "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {3}",
            ):
                connection.execute(sql.SQL(text).format(*roles))
            before = connection.execute(shown, ["vecbridge_papers"]).fetchone()
            replan(backend, table, following(table))
            after = connection.execute(shown, ["vecbridge_papers$1"]).fetchone()
            assert before is not None
            assert after is not None
            assert after[0] == before[0] == owner
            assert sorted(after[1].strip("{}").split(",")) == sorted(before[1].strip("{}").split(","))
            assert newcomer not in after[1]
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}, {}, {}, {}").format(*roles))
            connection.execute(sql.SQL("DROP ROLE {}, {}, {}, {}").format(*roles))


def test_names_end_before_postgresql_cuts_them(backend: Postgres) -> None:
    table = filled(backend)
    with pytest.raises(StoreError, match=r"laid out anew 9,999 times.*copy its records"):
        backend.successor(replace(table.manifest, generation=10_000))
