"""SQLite under one collection: connections, the lock between writers, and driver errors as sentences."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ...errors import (
    Busy,
    CollectionNotFound,
    FeatureMissing,
    Forbidden,
    LayoutChanged,
    ManifestError,
    StoreError,
    VecbridgeError,
)
from ...names import Names

RECORDS = "records.sqlite"
CURRENT = "current"
NAMES = ".names"
_POINTER = re.compile(r"(\d+-[0-9a-f]{16}) ([0-9a-f]+)\n")
PATIENCE = 60.0  # seconds that a writer waits for another one
_IDLE = 8  # connections kept open between calls

# Metadata lies before the document: a filter reads it without walking through the pages of a 10 MB text.
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE state (generation TEXT NOT NULL, rows INTEGER NOT NULL, next_row INTEGER NOT NULL,
                    dead INTEGER NOT NULL, version INTEGER NOT NULL);
CREATE TABLE records (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, digest BLOB,
                      metadata TEXT NOT NULL, document TEXT);
CREATE TABLE dead (row INTEGER PRIMARY KEY);
"""


def create(path: Path, *, meta: dict[str, str | bytes], generation: str) -> None:
    """A new SQLite file at `path` with an empty collection in it, durable when the call returns."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(f"BEGIN; {_SCHEMA}")
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        connection.execute("INSERT INTO state VALUES (?, 0, 0, 0, 0)", (generation,))
        connection.execute("COMMIT")
    finally:
        connection.close()


def check_json() -> None:
    """Raises FeatureMissing where Python's SQLite was built without its JSON functions."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("SELECT value FROM json_each('[1]')")
    except sqlite3.OperationalError as error:
        raise FeatureMissing(
            f"flat collections need SQLite with JSON functions (built in from 3.38 on); this Python has "
            f"SQLite {sqlite3.sqlite_version} without them; use another Python build"
        ) from error
    finally:
        connection.close()


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds the lock on the file at `path`, against other threads and processes; dies with its holder.

    Raises Busy, saying that `what` is held, after PATIENCE seconds.
    """
    deadline = time.monotonic() + PATIENCE
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise Busy(
                        f"another process has been {what} for {PATIENCE:.0f} s; "
                        f"wait until it is done, then try again"
                    ) from error
                time.sleep(0.002)
        yield
    finally:
        # explicit: a child forked meanwhile shares the lock, and closing alone would leave it to the child
        fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)


def held(path: Path) -> bool:
    """Whether a living process holds a lock on the file at `path`."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The only right to write to the collection in `folder`. Raises Busy after PATIENCE seconds."""
    with ExitStack() as held:
        # Two locks make a queue: whoever writes again at once finds the turn taken by the one who waits.
        with locked(folder / "turn.lock", f"waiting to write to {folder}"):
            held.enter_context(locked(folder / "write.lock", f"writing to {folder}"))
        yield


def pausing(folder: Path) -> bool:
    """Whether this process keeps writers waiting there already, so that `alone` would wait for itself."""
    return folder in _pauses


def current(place: Path) -> tuple[str, str]:
    """The folder inside `place` that counts, and the uid of its collection; both empty where it is `place`.

    Raises ManifestError where that cannot be told.
    """
    try:
        text = (place / CURRENT).read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return "", ""
    found = _POINTER.fullmatch(text)
    if found is None:
        raise ManifestError(
            f"expected the name of a folder and an id in {place / CURRENT}, found {text[:60]!a}: it is "
            f"damaged; restore the folder from a backup or drop the collection"
        )
    return found[1], found[2]


def names(folder: Path) -> Names:
    """The names that collections in a folder of collections exchanged. Raises ManifestError."""
    path = folder / NAMES
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Names()
    return Names.load(content, str(path))


@contextmanager
def translated(folder: Path) -> Iterator[None]:
    """Errors of SQLite and of the file system in `folder` become sentences."""
    try:
        yield
    except VecbridgeError:
        raise
    except sqlite3.Error as error:
        raise _of_sqlite(error, folder) from error
    except OSError as error:
        raise _of_system(error, folder) from error


def _of_sqlite(error: sqlite3.Error, folder: Path) -> VecbridgeError:
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary == sqlite3.SQLITE_FULL or code in (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE):
        return StoreError(
            f"no room to write in {folder} ({error}); this write changed nothing; free some disk space"
        )
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Busy(f"another process holds the collection in {folder} ({error}); try again")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return _read_only(folder)
    if primary == sqlite3.SQLITE_CANTOPEN:
        return StoreError(
            f"cannot open {folder / RECORDS} ({error}); check the rights on the folder. Where this user may "
            f"only read and the last writer was killed, a user who may write must open it once"
        )
    damaged = primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    if damaged or str(error).startswith(("no such table", "no such column")):
        return ManifestError(
            f"{folder / RECORDS} is damaged or was not made by vecbridge ({error}); "
            f"restore the folder from a backup or delete it"
        )
    return StoreError(f"SQLite failed in {folder}: {error}")


def _of_system(error: OSError, folder: Path) -> VecbridgeError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreError(
            f"no room to write in {folder} ({error.strerror}); this write changed nothing; "
            f"free some disk space"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _read_only(folder)
    return StoreError(f"the file system failed in {folder}: {error}")


def _read_only(folder: Path) -> Forbidden:
    return Forbidden(
        f"this user may not write in {folder}; make it writable (chmod u+w), or write as the user who owns it"
    )


class Database:
    """The SQLite file of one collection: a few connections, each used by one thread at a time.

    Every use checks that the file is still the one that was opened: a collection that was dropped and
    created anew at the same place is never written to by mistake, nor one that was laid out anew since.
    """

    def __init__(
        self, place: Path, *, name: str | None = None, home: str = "", base: str | None = None
    ) -> None:
        """Opens the file in the folder `home` of the collection's folder `place`.

        `name`: what the collection is called, its folder's name if not given. `base`: the home whose
        successor this is, None where it is what counts.
        """
        self.folder = folder = place / home
        self._name = place.name if name is None else name
        # as the file of exchanged names was when it last said that this is still so called
        self._named: tuple[int, int] | None = None
        self._place = place
        self._path = folder / RECORDS
        self._homes = {home} if base is None else {home, base}
        self._idle: list[sqlite3.Connection] = []
        self._busy = 0
        self._paused = False
        self._closed = False
        self._uid: str | None = None
        self._gate = threading.Condition(threading.Lock())
        self._base = None if base is None else place / base / RECORDS
        with translated(folder):
            self._file = _identity(self._path)
            self._succeeded = None if self._base is None else _identity(self._base)
            if self._file is None:
                raise self._gone()
        _open.add(self)
        # a connection that is only forgotten stays open until the garbage collector comes by
        weakref.finalize(self, _close_all, self._idle)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection inside a read transaction: one consistent state, whatever writers do."""
        with translated(self.folder), self._connection() as connection:
            connection.execute("BEGIN")
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection inside the only write transaction; commits at the end, or changes nothing.

        Raises Busy, Forbidden, StoreError.
        """
        with translated(self.folder), ExitStack() as held:
            self._stop_writers(held)
            with self._connection() as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nobody writes while this is held, neither this process nor another. Raises Busy, Forbidden."""
        with ExitStack() as held:
            with translated(self.folder):
                self._stop_writers(held)
                self._check_place()  # it may be another one after waiting
            _pauses.add(self.folder)
            held.callback(_pauses.discard, self.folder)
            yield

    def check(self) -> None:
        """Raises StoreError once closed, CollectionNotFound once dropped, LayoutChanged once replaced."""
        with translated(self.folder):
            self._check()
            self._check_place()

    @property
    def uid(self) -> str:
        """What tells the collection from others that had or will have its name."""
        assert self._uid is not None
        return self._uid

    def close(self) -> None:
        """Close what is idle now, and what is in use as soon as it is given back."""
        with self._gate:
            self._closed = True
            _close_all(self._idle)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._gate:
            self._gate.wait_for(lambda: not self._paused)
            self._check()
            self._busy += 1
            connection = self._idle.pop() if self._idle else None
        pooled = connection is not None
        try:
            self._check_place()
            if connection is None:
                try:
                    connection, pooled = self._connect()
                finally:
                    # SQLite opens the file, then its log: when both go meanwhile, it reads an older state
                    self._check_place()
            yield connection
        except BaseException:
            pooled = False  # it may be the connection that is ill
            raise
        finally:
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.rollback()
            with self._gate:
                if connection is not None and pooled and not self._closed and len(self._idle) < _IDLE:
                    self._idle.append(connection)
                    connection = None
            if connection is not None:
                connection.close()
            with self._gate:
                self._busy -= 1
                self._gate.notify_all()

    def _check(self) -> None:
        if self._closed:
            raise StoreError(f"the collection in {self.folder} was closed; open it again")

    def _check_place(self) -> None:
        named = _version(self._place.parent / NAMES)
        if named != self._named:
            if names(self._place.parent).made_as(self._name) != self._place.name:
                raise LayoutChanged(
                    f"collection {self._name!r} in {self._place.parent} has exchanged its name with another; "
                    f"open it again"
                )
            self._named = named
        if current(self._place)[0] not in self._homes or _identity(self._path) != self._file:
            raise self._gone()

    def _stop_writers(self, held: ExitStack) -> None:
        self._check()
        self._check_place()
        try:
            held.enter_context(alone(self.folder))
        except FileNotFoundError:
            self._check_place()  # the folder went meanwhile
            raise

    def _at_rest(self) -> bool:
        return self._busy == 0

    def _gone(self) -> CollectionNotFound | LayoutChanged:
        home, uid = current(self._place)
        if home not in self._homes and uid == self._uid:
            return LayoutChanged(
                f"the collection in {self._place} was laid out anew meanwhile; open it again"
            )
        if self._base is not None and _identity(self._base) == self._succeeded:
            return LayoutChanged(
                f"another attempt to lay out the collection in {self._place} anew came after this one; "
                f"open it again"
            )
        return CollectionNotFound(f"the collection in {self._place} was dropped or replaced; open it again")

    def _connect(self) -> tuple[sqlite3.Connection, bool]:
        """A new connection, and whether it may be used again."""
        if os.access(self.folder, os.W_OK):
            return self._attach("mode=rw"), True
        log = self._path.with_name(f"{RECORDS}-wal")
        if log.exists() and log.stat().st_size:
            return self._attach("mode=ro"), True
        # Without a log and without the right to make one, SQLite reads only what it is told cannot change.
        # A writer with more rights may appear later, so the promise is given for a single use.
        return self._attach("mode=ro&immutable=1"), False

    def _attach(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?{mode}",
            uri=True,
            timeout=PATIENCE,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA trusted_schema=OFF")
            (uid,) = connection.execute("SELECT value FROM meta WHERE key = 'uid'").fetchone() or (None,)
            if self._uid is None:
                self._uid = uid
            if uid is None or uid != self._uid:
                raise self._gone()
        except BaseException:
            connection.close()
            raise
        return connection


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _version(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _close_all(connections: list[sqlite3.Connection]) -> None:
    while connections:
        connections.pop().close()


# folders where this process keeps writers waiting
_pauses: set[Path] = set()

# SQLite's bookkeeping of file locks does not survive a fork: a child that inherits open connections believes
# that it holds locks which only its parent has. So there are none to inherit at the moment of a fork.
_open: weakref.WeakSet[Database] = weakref.WeakSet()
_forking: list[Database] = []
_FORK_PATIENCE = 30.0


def _before_fork() -> None:
    for database in list(_open):
        database._gate.acquire()
        _forking.append(database)
        database._paused = True
        database._gate.wait_for(database._at_rest, timeout=_FORK_PATIENCE)
        _close_all(database._idle)


def _after_fork_in_child() -> None:
    for database in _forking:
        database._busy = 0  # the threads that were not done in time do not exist here
    _after_fork()


def _after_fork() -> None:
    while _forking:
        database = _forking.pop()
        database._paused = False
        database._gate.notify_all()
        database._gate.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
