"""How a collection gets another table: writers wait, a successor is made beside it, one transaction switches.

Who holds what, always taken in this order, each for a transaction:

1. the collection's advisory lock: whoever creates, drops or pauses it, switches it, or builds its index
2. the successor's advisory lock: whoever makes, discards or switches to it, or builds its index
3. the catalogue's advisory lock: whoever adds or drops tables
4. the table's own lock

A pause is a transaction of a connection of its own with 1 and SHARE ROW EXCLUSIVE on the table, which lets
others read. The switch runs in that transaction and raises its lock to ACCESS EXCLUSIVE: in another one it
would wait for the pause for ever. Nobody deadlocks on that, because `Table.write` and `Table.delete` lock the
table for writing before they read in it.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from psycopg import errors as pg
from psycopg.sql import SQL, Identifier

from ...errors import (
    CollectionNotFound,
    InputError,
    LayoutChanged,
    ManifestError,
    StoreError,
    VecbridgeError,
)
from ...manifest import Manifest
from . import attached, sql
from .pool import Connection
from .sql import Place

if TYPE_CHECKING:
    from .table import Table

PATIENCE = 60.0  # seconds for locks that other processes hold while they create, drop, build or search
# for which searches queue behind a switch that itself waits for a longer one
_ATTEMPT = "1s"
_PAUSE = 0.5  # seconds between two attempts, in which searches go on


def lock(connection: Connection, *keys: int) -> None:
    """Take advisory locks for this transaction; whatever it waits for later gets as long. Raises Busy."""
    connection.execute("SELECT set_config('lock_timeout', %s, true)", [f"{PATIENCE}s"])
    for key in keys:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [key])


def generation(connection: Connection, place: Place, name: str) -> int | None:
    """The generation of a collection by the catalogue; None where it lists none of this name."""
    statement = SQL("SELECT manifest FROM {} WHERE name = %s").format(place.catalogue)
    try:
        row = connection.execute(statement, [name]).fetchone()
    except pg.UndefinedTable:
        return None
    return None if row is None else _generation(row[0])


def listed(connection: Connection, place: Place) -> dict[str, int]:
    """The collections in the catalogue, which is there, and their generations."""
    rows = connection.execute(SQL("SELECT name, manifest FROM {}").format(place.catalogue)).fetchall()
    return {name: _generation(text) for name, text in rows}


def _generation(text: str) -> int:
    """The generation that a manifest as text names; 0 where it is damaged, which `open` complains of."""
    try:
        return int(json.loads(text).get("generation", 0))
    except (ValueError, TypeError, AttributeError):
        return 0


def gone(table: Table) -> VecbridgeError:
    """Why there is no table of this name any more."""
    manifest = table.manifest
    now = table.pool.run(lambda connection: generation(connection, table.place, manifest.name))
    if now is None or now == manifest.generation:
        if now is not None and manifest.adopted is not None:
            table_name = ".".join(table.place.names(manifest))
            return ManifestError(f"collection {manifest.name!r} has lost its table {table_name}: it is gone")
        return CollectionNotFound(f"collection {manifest.name!r} has been dropped")
    return changed(manifest, now)


def changed(manifest: Manifest, now: int) -> LayoutChanged:
    """The error for a table that is of another generation than the collection."""
    return LayoutChanged(
        f"collection {manifest.name!r} was laid out anew meanwhile: it is in generation {now}, this was for "
        f"generation {manifest.generation}; open it again"
    )


def keep(connection: Connection, place: Place, manifest: Manifest) -> bool:
    """Replace a collection's manifest, basis excepted; False where its generation is another by now."""
    statement = SQL(
        "UPDATE {} SET manifest = %s WHERE name = %s "
        "AND coalesce((manifest::jsonb ->> 'generation')::int, 0) = %s"
    ).format(place.catalogue)
    values = [manifest.dump()[0], manifest.name, manifest.generation]
    return connection.execute(statement, values).rowcount == 1


def hold(connection: Connection, table: Table) -> None:
    """Begin a transaction during which nobody else writes to the table or changes it. Raises Busy."""
    connection.execute("BEGIN")
    # it lasts as long as copying and indexing; some servers end transactions that only wait
    connection.execute(
        "SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN "
        "('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')"
    )
    lock(connection, table.lock)
    connection.execute(SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(table.name))


def make(connection: Connection, place: Place, manifest: Manifest) -> int:
    """An empty successor in the place of an abandoned one, which belongs to whom the collection does.

    Returns its number in the server. Raises CollectionNotFound, LayoutChanged, Busy; InputError and Forbidden
    where the collection's table has what would be lost with it (see `attached`).
    """
    if manifest.generation > sql.MOST_GENERATIONS:
        raise StoreError(
            f"collection {manifest.name!r} has been laid out anew {sql.MOST_GENERATIONS:,} times, and the "
            f"names of its tables end there; copy its records into a new collection"
        )
    table = place.table(manifest)
    with connection.transaction():
        lock(connection, successor_lock(place, manifest))
        _check(connection, place, manifest)
        connection.execute(SQL("DROP TABLE IF EXISTS {}").format(table))
        # not before: what is dropped may be waited for, and others want to create
        lock(connection, place.lock())
        old = _check(connection, place, manifest)
        attached.check(connection, place, _manifest(connection, place, manifest.name))
        for statement in sql.create_table(manifest, place):
            connection.execute(statement)
        attached.prepare(connection, table, attached.access(connection, old, sql.table_name(manifest)))
        attached.dress(connection, old, table)
        made = _number(connection, place, manifest)
    assert made is not None
    return made


def switch(connection: Connection, place: Place, successor: Table) -> None:
    """Make the successor the collection, and drop what it was; does nothing where it is already.

    Raises CollectionNotFound, LayoutChanged, Busy.
    """
    manifest = successor.manifest
    with connection.transaction():
        lock(connection, place.lock(manifest.name), successor_lock(place, manifest))
        now = generation(connection, place, manifest.name)
        if _number(connection, place, manifest) == successor.number is not None and (
            now == manifest.generation
        ):
            return
        old = _check(connection, place, manifest)
        if _number(connection, place, manifest) != successor.number:
            raise LayoutChanged(
                f"the successor of collection {manifest.name!r} is gone: another process began one, or "
                f"discarded it; begin again"
            )
        _take(connection, old)
        before = _manifest(connection, place, manifest.name)
        # again: while writers waited, others may still have made views
        attached.check(connection, place, before)
        attached.freeze(connection, old, sql.columns(before))
        was = attached.access(connection, old, sql.table_name(manifest))
        attached.allow(connection, place.table(manifest), was, sql.columns(manifest))
        text, basis = manifest.dump()
        connection.execute(
            SQL("UPDATE {} SET manifest = %s, basis = %b WHERE name = %s").format(place.catalogue),
            [text, basis, manifest.name],
        )
        connection.execute(SQL("DROP TABLE {}").format(old))


def exchange(connection: Connection, place: Place, one: str, other: str) -> None:
    """Let two collections change their names; see `Backend.exchange`.

    Each goes on in the next generation of its new name, so that nobody who knows a table by its old name
    finds it. Afterwards the same rights and row security hold for what has a name now as for what had it.

    Raises CollectionNotFound, InputError where one of them is a table of others or has something of theirs on
    it, Forbidden where row security hides records, Busy, StoreError.
    """
    with connection.transaction():
        lock(connection, *(place.lock(name) for name in sorted((one, other))))
        first, second = _own(connection, place, one), _own(connection, place, other)
        moves = [(first, _following(first, second)), (second, _following(second, first))]
        lock(connection, *(successor_lock(place, new) for _, new in moves), place.lock())
        for _, new in moves:
            # of somebody who began to lay it out anew, and died
            connection.execute(SQL("DROP TABLE IF EXISTS {}").format(place.table(new)))
        for old, _ in moves:
            _take(connection, place.table(old))
            attached.check(connection, place, old)
            attached.freeze(connection, place.table(old), sql.columns(old))
        # who has the name of a table is what the other one becomes
        access = {
            old.name: attached.access(connection, place.table(old), sql.table_name(becomes))
            for (old, _), (_, becomes) in zip(moves, reversed(moves), strict=True)
        }
        for old, new in moves:
            _rename(connection, place, old, new)
        for _, new in moves:
            attached.allow(connection, place.table(new), access[new.name], sql.columns(new))
            text, basis = new.dump()
            connection.execute(
                SQL("UPDATE {} SET manifest = %s, basis = %b WHERE name = %s").format(place.catalogue),
                [text, basis, new.name],
            )


def exchangeable(connection: Connection, place: Place, name: str) -> None:
    """Raises what `exchange` would of a collection: CollectionNotFound, InputError, Forbidden."""
    attached.check(connection, place, _own(connection, place, name))


def guard(connection: Connection, place: Place, name: str, like: str) -> None:
    """Let the same owner, rights and row security hold for a collection as for another one.

    Raises CollectionNotFound, InputError where one of them is a table of others, Forbidden, Busy.
    """
    with connection.transaction():
        lock(connection, *(place.lock(each) for each in sorted((name, like))))
        one, other = _own(connection, place, name), _own(connection, place, like)
        wanted = attached.access(connection, place.table(other), sql.table_name(one))
        attached.allow(connection, place.table(one), wanted, sql.columns(one))


def _own(connection: Connection, place: Place, name: str) -> Manifest:
    """The manifest of a collection of vecbridge's own. Raises CollectionNotFound, InputError."""
    found = _manifest(connection, place, name)
    if found.adopted is not None:
        raise InputError(
            f"expected a collection of vecbridge's own, got {name!r}, which is the table "
            f"{found.adopted.schema}.{found.adopted.table}: its name is its owner's"
        )
    return found


def _manifest(connection: Connection, place: Place, name: str) -> Manifest:
    statement = SQL("SELECT manifest, basis FROM {} WHERE name = %s").format(place.catalogue)
    try:
        with connection.transaction():
            row = connection.execute(statement, [name], binary=True).fetchone()
    except pg.UndefinedTable:
        row = None
    if row is None:
        raise CollectionNotFound(f"there is no collection {name!r}")
    return Manifest.load(*row)


def _following(collection: Manifest, named: Manifest) -> Manifest:
    """What a collection says of itself once it has the name of another one."""
    if named.generation >= sql.MOST_GENERATIONS:
        raise StoreError(
            f"collection {named.name!r} has been laid out anew {sql.MOST_GENERATIONS:,} times, and the names "
            f"of its tables end there; copy its records into a new collection"
        )
    return replace(collection, name=named.name, generation=named.generation + 1)


def _rename(connection: Connection, place: Place, old: Manifest, new: Manifest) -> None:
    named = SQL("ALTER TABLE {} RENAME TO {}")
    connection.execute(named.format(place.table(old), Identifier(sql.table_name(new))))
    indexes = ((place.key(old), sql.key_name(new)), (place.index(old), sql.index_name(new)))
    for index, name in indexes:
        # not all have a search index
        connection.execute(SQL("ALTER INDEX IF EXISTS {} RENAME TO {}").format(index, Identifier(name)))


def discard(connection: Connection, place: Place, successor: Table) -> None:
    """Drop a successor unless it is the collection, or another's by now."""
    manifest = successor.manifest
    with connection.transaction():
        lock(connection, successor_lock(place, manifest))
        if generation(connection, place, manifest.name) == manifest.generation:
            return
        if _number(connection, place, manifest) == successor.number is not None:
            connection.execute(SQL("DROP TABLE {}").format(place.table(manifest)))


def tables(connection: Connection, place: Place, name: str) -> list[Identifier]:
    """The tables of a collection in all its generations."""
    rows = connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relkind = 'r' AND starts_with(c.relname, %s)",
        [place.schema, f"{sql.PREFIX}{name}"],
    ).fetchall()
    found = [table for (table,) in rows if (of := sql.collection_of(table)) is not None and of[0] == name]
    return [Identifier(place.schema, table) for table in found]


def successor_lock(place: Place, manifest: Manifest) -> int:
    """The advisory lock of one successor."""
    return place.lock(f"{manifest.name}${manifest.generation}")


def _check(connection: Connection, place: Place, manifest: Manifest) -> Identifier:
    """The table that a successor would take the place of."""
    now = generation(connection, place, manifest.name)
    if now is None:
        raise CollectionNotFound(f"there is no collection {manifest.name!r} any more")
    if now != manifest.generation - 1:
        raise changed(manifest, now)
    return place.table_of(manifest.name, now)


def _number(connection: Connection, place: Place, manifest: Manifest) -> int | None:
    text = place.table(manifest).as_string(None)
    row = connection.execute("SELECT to_regclass(%s)::oid::bigint", [text]).fetchone()
    assert row is not None
    return None if row[0] is None else int(row[0])


def _take(connection: Connection, table: Identifier) -> None:
    """Lock a table against everybody, without making searches wait long for one that takes long."""
    end = time.monotonic() + PATIENCE
    connection.execute("SELECT set_config('lock_timeout', %s, true)", [_ATTEMPT])
    while True:
        try:
            with connection.transaction():
                connection.execute(SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
            return
        except pg.LockNotAvailable:
            if time.monotonic() > end:
                raise
        time.sleep(_PAUSE)
