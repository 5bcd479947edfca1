"""Connections to one database: opened when needed, shared by threads, renewed when lost, never inherited.

Not psycopg_pool: that connects in background threads, so that the reason of a failure reaches the log but not
the caller, and its threads and sockets do not survive a fork.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from ... import stopping
from ...errors import Busy, StoreError, Unavailable
from .address import Address, parse
from .failures import failures, printable

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")

SIZE = 8
_WAIT = 60.0  # seconds for a free connection
_STARTING = 15.0  # seconds for a server that says it is starting
_BACK = 5.0  # seconds for a server that went away to come back
_TIMEOUT = "10"  # seconds to connect, unless the URL says otherwise

# connections of the parent process: closing them, even by collecting them, would end the parent's sessions
_inherited: list[list[Connection]] = []


class Turns:
    """At most `most` threads at once, in the order in which they came.

    With a semaphore, whoever gives back takes again before those that wait have woken up: eight threads that
    search without a pause would keep a writer out for minutes.
    """

    def __init__(self, most: int) -> None:
        self._lock = threading.Lock()
        self._free = most
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self, *, timeout: float) -> bool:
        """Wait for a turn, at most so many seconds; whether it came."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            came = turn.acquire(timeout=timeout)
        except BaseException:
            if not self._leave(turn):
                self.release()
            raise
        return came or not self._leave(turn)

    def _leave(self, turn: threading.Lock) -> bool:
        """Wait no longer; False where the turn has come meanwhile."""
        with self._lock:
            if turn not in self._waiting:
                return False
            self._waiting.remove(turn)
            return True

    def release(self) -> None:
        """Hand the turn to who has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


class Pool:
    """At most eight connections, kept for reuse; `revive` brings a server back, and returns its URL."""

    def __init__(self, address: Address, revive: Callable[[], str] | None = None) -> None:
        self._address = address
        self._revive = revive
        self._closed = False
        self._prepare: int | None = 5  # psycopg's default
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._slots = Turns(SIZE)
        self._idle: list[Connection] = []
        # connections that keep a collection paused, by its name
        self.pausing: dict[str, Connection] = {}
        weakref.finalize(self, _close_all, self._idle, self._process)

    @property
    def local(self) -> bool:
        """Whether the server runs on this machine."""
        return self._address.local

    def run(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, given a connection in autocommit mode.

        `work` may run twice: where the connection is lost, it starts again on a new one. Driver errors become
        those of vecbridge.
        """
        with failures(self._address):
            self._check()
            if not self._slots.acquire(timeout=_WAIT):
                raise Busy(
                    f"{self._address.shown}: all {SIZE} connections have been in use for {_WAIT:.0f} s"
                )
            try:
                try:
                    return self._run(self._take(), work)
                except psycopg.OperationalError as error:
                    if not _lost(error):
                        raise
                    self._forget()
                    return self._run(self._connect(patience=_BACK), work)
            finally:
                self._slots.release()

    def _run(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        try:
            with stopping.stoppable(connection.cancel_safe):
                return work(connection)
        except (psycopg.errors.DuplicatePreparedStatement, psycopg.errors.InvalidSqlStatementName) as error:
            # a pooler between us and the server hands one session's statements to another
            self._prepare = None
            connection.close()
            raise _Lost(str(error)) from error
        except psycopg.OperationalError as error:
            if connection.closed or _lost(error):
                connection.close()
                raise _Lost(str(error)) from error
            raise
        finally:
            if stopping.given_up():
                # the server may still be about to end what runs here, which would be the next one's statement
                connection.close()
            self._give(connection)

    @contextmanager
    def own(self) -> Iterator[Connection]:
        """A connection for one long task, outside the eight, closed afterwards."""
        with failures(self._address):
            self._check()
            connection = self._connect(patience=_BACK)
            try:
                yield connection
            finally:
                connection.close()

    def close(self) -> None:
        """Close every connection; those in use close when they come back."""
        if self._process != os.getpid():
            return
        self._closed = True
        self._forget()

    def _check(self) -> None:
        if self._closed:
            raise StoreError(f"{self._address.shown} is closed; connect again")
        if self._process != os.getpid():
            _inherited.append(self._idle)
            self._start()

    def _take(self) -> Connection:
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if not connection.closed:
                    return connection
        return self._connect(patience=0.0)

    def _give(self, connection: Connection) -> None:
        if connection.closed:
            return
        # not connection.info, which is made anew for each look
        if connection.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            with suppress(psycopg.Error):
                connection.rollback()
        with self._lock:
            if connection.pgconn.transaction_status == pq.TransactionStatus.IDLE and not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _forget(self) -> None:
        with self._lock:
            idle = self._idle[:]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def _connect(self, *, patience: float) -> Connection:
        defaults = {"connect_timeout": _TIMEOUT, "application_name": "vecbridge"}
        began = time.monotonic()
        while True:
            text = make_conninfo(**{**defaults, **self._address.params, "client_encoding": "utf8"})
            try:
                return psycopg.connect(text, autocommit=True, prepare_threshold=self._prepare)
            except psycopg.OperationalError as error:
                # by its English text, as libpq keeps the code of a refused connection to itself; its own
                # test, PQping, stops every thread of the process until the server has answered
                starting = "the database system is " in str(error)
                # again while it dies again: at last it does not start, and revive raises with the reason
                if self._revive is not None and not starting and time.monotonic() - began <= _BACK:
                    self._address = replace(self._address, params=parse(self._revive()).params)
                    continue
                if time.monotonic() - began > (_STARTING if starting else patience):
                    raise Unavailable(
                        f"{self._address.shown}: {self._address.hide(str(error))}"
                    ) from printable(error, self._address)
            time.sleep(0.1)


class _Lost(psycopg.OperationalError):
    """The connection broke while it was used."""


def _lost(error: psycopg.OperationalError) -> bool:
    return isinstance(
        error,
        _Lost | psycopg.errors.AdminShutdown | psycopg.errors.CrashShutdown | psycopg.errors.CannotConnectNow,
    )


def _close_all(idle: list[Connection], process: int) -> None:
    if process == os.getpid():
        for connection in idle:
            connection.close()
