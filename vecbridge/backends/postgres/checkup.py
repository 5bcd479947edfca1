"""What `vecbridge doctor` looks at in one collection: manifest, rights, index, memory to build it, vacuum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from psycopg.sql import SQL

from ...errors import CollectionNotFound, VecbridgeError
from ...explain import human
from ...types import Finding, Index
from . import build, facts, sql
from .facts import Server, State
from .pool import Pool
from .sql import Place

if TYPE_CHECKING:
    from . import Postgres
    from .table import Table

_DEAD, _DEAD_SHARE = 1_000, 0.3  # autovacuum comes at a fifth; above this it does not keep up
_GROWN = 4  # times the rows that a layout was planned for
_UNUSED = timedelta(days=7)  # without a single search
_MB, _GB = 2**20, 2**30


@dataclass(frozen=True, slots=True)
class Checkup:
    """The findings in collections of one database; `room`: bytes free in the server's /dev/shm, if known."""

    postgres: Postgres
    pool: Pool
    place: Place
    server: Server
    room: int | None

    def look(self, name: str) -> Iterator[Finding]:
        """What is right and wrong with one collection."""
        try:
            table = self.postgres.open(name)
        except CollectionNotFound:
            return  # dropped since it was listed
        except VecbridgeError as error:
            yield Finding(
                "broken",
                f"{name}: manifest",
                str(error),
                f"undo what was changed by hand (ALTER TABLE … ALTER COLUMN … TYPE or SET STORAGE), restore "
                f"its table from a backup, or give the collection up: "
                f"vecbridge drop URL {name}",
            )
            return
        state = self.pool.run(lambda connection: facts.state(connection, self.place, table.manifest))
        if state is None:
            return
        yield Finding("ok", f"{name}: manifest", "the table is as the manifest says")
        yield self._rights(table, state)
        yield from self._grown(table, state)
        if state.may_read:
            try:
                yield from self._index(table, state)
            except CollectionNotFound:
                return
        else:
            yield Finding(
                "warning", f"{name}: index", "not checked: the server explains searches to readers only"
            )
        yield from self._upkeep(table, state)

    def _rights(self, table: Table, state: State) -> Finding:
        subject, user = f"{table.manifest.name}: rights", self.server.user
        if table.manifest.adopted is not None and state.may_read:
            return Finding(
                "ok", subject, f"reading the table of {state.owner}, to which vecbridge never writes"
            )
        if state.lacking:
            return Finding(
                "warning" if state.may_read else "broken",
                subject,
                f"user {user} may not {_listed(state.lacking)}",
                f"{'if it shall' if state.may_read else f'have {state.owner} run'}: "
                f"GRANT {', '.join(state.lacking)} ON {table.relation.as_string(None)} "
                f"TO {sql.quoted(user)};",
            )
        if not state.owned:
            return Finding("ok", subject, f"reading and writing; only {state.owner} may build the index")
        return Finding("ok", subject, "reading, writing and building the index")

    def _grown(self, table: Table, state: State) -> Iterator[Finding]:
        planned, manifest = max(table.manifest.rows, 1), table.manifest
        if state.rows > _GROWN * planned:
            yield Finding(
                "warning",
                f"{manifest.name}: plan",
                f"planned for {planned:,} records, it has about {state.rows:,.0f}",
                f"see whether another layout suits it now: vecbridge plan --dim {manifest.space.dim} "
                f"--rows {state.rows:.0f} --on pgvector@{self.postgres.limits().version}",
            )

    def _index(self, table: Table, state: State) -> Iterator[Finding]:
        name = table.manifest.name
        subject, index, found = f"{name}: index", sql.indexed(table.manifest), table.index_state()
        for relation in state.broken:
            yield Finding(
                "warning",
                subject,
                f"{relation} is invalid: an interrupted build left it; writes may still have to maintain it",
                f"DROP INDEX CONCURRENTLY {sql.quoted(self.place.schema)}.{sql.quoted(relation)};",
            )
        if index is None:
            yield Finding("ok", subject, found.detail or "none: every search is exact")
        elif state.building:
            yield Finding("ok", subject, "it is being built right now")
        elif found.status == "missing" and not state.filled:
            yield Finding("ok", subject, "not built yet: there are no records")
        elif found.status != "ready":
            yield from self._memory(table, index, state)
            yield self._rebuild(table, index, state, found.status, found.detail)
        elif not found.used:
            yield self._unused(table)
        elif idle := self._idle(table, state):
            yield Finding(
                "warning",
                subject,
                f"ready, but no search has run on it in {idle.days} days",
                f"if nobody searches {name} any more: vecbridge drop URL {name}",
            )
        else:
            yield Finding("ok", subject, "ready, and searches run on it")

    def _rebuild(self, table: Table, index: Index, state: State, status: str, detail: str) -> Finding:
        manifest, place = table.manifest, self.place
        lists = min(max(index.lists, 1), max(1, int(max(state.rows, manifest.rows)) // 50))
        create = sql.create_index(manifest, place, lists=lists, concurrently=True).as_string(None)
        drop = f"DROP INDEX CONCURRENTLY {place.index(manifest).as_string(None)};\n"
        who = "" if state.owned else f" as {state.owner}, who owns the table,"
        found = (
            f"{status}: {detail}" if status == "invalid" else "missing, so every search scans every vector"
        )
        return Finding(
            "broken",
            f"{manifest.name}: index",
            found,
            f"call build_index() on the collection, or{who} run\n"
            f"{drop if status == 'invalid' else ''}{create};\n"
            f"ANALYZE {table.relation.as_string(None)};",
        )

    def _unused(self, table: Table) -> Finding:
        server, name = self.server, table.manifest.name
        subject, found = f"{name}: index", "ready, but the search of this collection does not run on it"
        if not server.indexscan:
            return Finding(
                "broken",
                subject,
                f"{found}: enable_indexscan is off",
                f"ALTER ROLE {sql.quoted(server.user)} IN DATABASE {sql.quoted(server.database)} "
                f"SET enable_indexscan = on;",
            )
        relation = table.relation.as_string(None)
        return Finding(
            "broken",
            subject,
            found,
            f"ANALYZE {relation}; and if that does not help, look at EXPLAIN of the search and at the "
            f"server's enable_… settings",
        )

    def _idle(self, table: Table, state: State) -> timedelta | None:
        """For how long no search has run on the index, where that is remarkable."""
        if state.scans != 0:
            return None
        statement = SQL("SELECT created FROM {} WHERE name = %s").format(self.place.catalogue)
        row = self.pool.run(lambda one: one.execute(statement, [table.manifest.name]).fetchone())
        times = [time for time in ((row or (None,))[0], self.server.statistics_since) if time is not None]
        age = datetime.now(UTC) - max(times, default=datetime.now(UTC))
        return age if age > _UNUSED else None

    def _memory(self, table: Table, index: Index, state: State) -> Iterator[Finding]:
        """Whether what is yet to be built can be built in memory."""
        server, name = self.server, table.manifest.name
        rows = max(int(state.rows), table.manifest.rows)
        needs = build.needs(table, index, rows=rows)
        most = max(needs.most, server.memory)
        subject = f"{name}: memory"
        if index.kind != "hnsw" or needs.memory <= most:
            yield Finding(
                "ok",
                subject,
                f"building the index over {rows:,} records takes about {human(needs.memory)} of "
                f"maintenance_work_mem; build_index() sets it for its own session (the server's is "
                f"{server.memory // _MB} MB)",
            )
        else:
            gigabytes = math.ceil(needs.memory / _GB)
            yield Finding(
                "warning",
                subject,
                f"building the index over {rows:,} records in memory takes about {human(needs.memory)} of "
                f"maintenance_work_mem, and a build gets {human(most)} at most unless the server says more; "
                f"what does not fit is built on disk, many times slower",
                f"if the server's memory holds it: ALTER ROLE {sql.quoted(server.user)} IN DATABASE "
                f"{sql.quoted(server.database)} SET maintenance_work_mem = '{gigabytes}GB'; "
                f"else plan with --memory for a smaller index",
            )
        room = self.room
        taken = min(needs.memory, most)
        if room is not None and needs.workers and taken > room:
            yield Finding(
                "warning",
                f"{name}: shared memory",
                f"a parallel build takes {human(taken)} of /dev/shm, which has {human(room)} free: it goes "
                f"on without workers, which takes longer",
                f"mount -o remount,size={math.ceil(taken / _GB) + 1}G /dev/shm, or start the container with "
                f"--shm-size={math.ceil(taken / _GB) + 1}g",
            )

    def _upkeep(self, table: Table, state: State) -> Iterator[Finding]:
        name, limits = table.manifest.name, self.postgres.limits()
        subject, relation = f"{name}: vacuum", table.relation.as_string(None)
        index = sql.indexed(table.manifest)
        hnsw = index is not None and index.kind == "hnsw"
        reindex = f"REINDEX INDEX CONCURRENTLY {self.place.index(table.manifest).as_string(None)};"
        if hnsw and not limits.has("repaired hnsw vacuum"):
            since = limits.features["repaired hnsw vacuum"].since
            again = f", then {reindex}" if state.vacuumed else ""
            yield Finding(
                "warning",
                subject,
                f"before pgvector {since}, vacuum after many deletes can damage an hnsw index "
                f"({_last('vacuum', state.vacuumed)})",
                f"install pgvector {since} or later, run ALTER EXTENSION vector UPDATE;{again}",
            )
        share = state.dead / max(state.dead + state.live, 1)
        if state.dead > _DEAD and share > _DEAD_SHARE:
            # vacuum repairs the graph around each dead row, which takes longer than building it anew
            yield Finding(
                "warning",
                subject,
                f"{share:.0%} of the rows are dead ({state.dead:,}); {_last('vacuum', state.vacuumed)}",
                f"{f'{reindex} ' if hnsw else ''}VACUUM (ANALYZE) {relation};",
            )
        elif state.filled and state.rows < 0:
            yield Finding(
                "warning",
                subject,
                "statistics were never collected: the server guesses how many records there are",
                f"ANALYZE {relation};",
            )
        else:
            yield Finding(
                "ok",
                subject,
                f"{_last('vacuum', state.vacuumed)}, {_last('analyze', state.analyzed)}, "
                f"{state.dead:,} dead rows",
            )


def _last(what: str, time: datetime | None) -> str:
    return f"last {what} {time:%Y-%m-%d %H:%M}" if time else f"no {what} yet"


def _listed(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
