"""Which positions a search looks at: those of living records that a filter lets through.

A row of `records` is written once: a record that is replaced gets a row whose number none had before. So what
a filter said of a row stays true, and is kept: a later search asks the filter of rows that came since, alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .sql import condition

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from ...filters import Filter
    from .matrix import Array, Vectors

_KEPT = 64 * 2**20  # bytes of rows and filters


class Snapshot(Protocol):
    """What is to be known of the moment that a search sees."""

    @property
    def generation(self) -> str:
        """The files of vectors."""

    @property
    def rows(self) -> int:
        """Positions in them."""

    @property
    def next_row(self) -> int:
        """Larger than every row so far."""

    @property
    def dead(self) -> int:
        """Positions whose records are gone."""

    @property
    def version(self) -> int:
        """Larger after each change."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """What a filter let through at `version`, of all rows below `end`: ascending."""

    rows: Array
    end: int
    version: int


class Choices:
    """What was found out about the records of one collection, for its next search; any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Choice] = OrderedDict()
        self._size = 0
        self._live: tuple[str, int, Array] | None = None

    def positions(
        self, connection: sqlite3.Connection, state: Snapshot, vectors: Vectors, where: Filter | None
    ) -> Array | None:
        """Where the records that count lie in the matrix, ascending; None when all of it does.

        `connection`: in a transaction that sees `state`, as `vectors` do.
        """
        if where is None:
            return self.living(connection, state, vectors) if state.dead else None
        key = repr(where)
        with self._lock:
            known = self._kept.get(key)
        if known is not None and known.version > state.version:
            # Records that this older moment still sees may be gone from what a later one found.
            known = None
        start, rows = (0, np.empty(0, np.int64)) if known is None else (known.end, known.rows)
        if start < state.next_row:
            rows = np.concatenate((rows, _chosen(connection, where, start)))
        found = self._alive(connection, state, vectors, rows)
        if known is None or known.version < state.version:
            self._keep(key, _Choice(vectors.rows[found], state.next_row, state.version))
        return found

    def living(self, connection: sqlite3.Connection, state: Snapshot, vectors: Vectors) -> Array:
        """The positions of all records, ascending."""
        live = self._live
        if live is None or live[:2] != (state.generation, state.version):
            dead = column(connection.execute("SELECT row FROM dead ORDER BY row"))
            kept = np.delete(np.arange(state.rows), np.searchsorted(vectors.rows, dead))
            self._live = live = (state.generation, state.version, kept)
        return live[2]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self._size = 0
        self._live = None

    def _alive(self, connection: sqlite3.Connection, state: Snapshot, vectors: Vectors, rows: Array) -> Array:
        """The positions of those of these rows that are still there."""
        if not state.rows:
            return np.empty(0, np.int64)
        at: Array = np.searchsorted(vectors.rows, rows)
        at = at[vectors.rows.take(at, mode="clip") == rows]
        if not state.dead:
            return at
        alive = np.zeros(state.rows, dtype=bool)
        alive[self.living(connection, state, vectors)] = True
        found: Array = at[alive[at]]
        return found

    def _keep(self, key: str, choice: _Choice) -> None:
        with self._lock:
            known = self._kept.get(key)
            if known is not None and known.version > choice.version:
                return
            if known is not None:
                self._size -= _weight(key, known)
            self._kept[key] = choice
            self._kept.move_to_end(key)
            self._size += _weight(key, choice)
            while self._size > _KEPT:
                self._size -= _weight(*self._kept.popitem(last=False))


def column(rows: Iterator[tuple[int]]) -> Array:
    """Rows of one integer each as an array of int64."""
    return np.fromiter((row for (row,) in rows), dtype=np.int64)


def _chosen(connection: sqlite3.Connection, where: Filter, start: int) -> Array:
    """The rows from `start` on that a filter lets through, ascending."""
    chosen = condition(where)
    chosen.install(connection)
    found = connection.execute(
        f"SELECT row FROM records WHERE row >= ? AND {chosen.sql}",  # noqa: S608  # operands are bound
        (start, *chosen.values),
    )
    return np.sort(column(found))


def _weight(key: str, choice: _Choice) -> int:
    return len(key) + int(choice.rows.nbytes)
