"""What was worked out or paid for once, kept in a file: bytes by key.

The file is SQLite. What `put` was given is on the disk when the call returns, so kill -9 and power cuts lose
nothing that a request gave back.

Space: what was used longest ago leaves first, a few megabytes with each `put`; its pages are used again, and
given back to the file system (incremental vacuum) while the file is larger than its limit. Beside the file
there is SQLite's log of a few megabytes.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from zlib import crc32

from .errors import InputError
from .sizes import in_bytes

APPLICATION = 0x56424543  # "VBEC" in the file's head says whose it is
FORMAT = 2
PATIENCE = 10.0  # seconds that a writer waits for another process
_PAGE = 4096  # larger ones are written whole for each of the keys, which lie anywhere
_LOG = 8 * 2**20
_LEAST = 2**20
_EVICTED = 8 * 2**20  # bytes that leave in one transaction beside what comes in: blocks nobody for long
_STAMP = 3600  # seconds that one access stamp stands for
_STAMPED = 4096  # stamps that are collected before they are written for themselves
_ASKED = 500  # keys in one statement; SQLite before 3.32 takes 999

# Stamps change often and values are long, so they lie apart.
_SCHEMA = f"""
PRAGMA page_size = {_PAGE};
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE entries (key BLOB PRIMARY KEY, id INTEGER NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX oldest ON entries (used, id);
CREATE TABLE contents (id INTEGER PRIMARY KEY, crc INTEGER NOT NULL, value BLOB NOT NULL);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT};
COMMIT;
"""


class Cache:
    """A file of values by key. Safe for threads and for several processes at once.

    `path`: else $XDG_CACHE_HOME/vecbridge/cache.sqlite, else ~/.cache/vecbridge/cache.sqlite; only its owner
    may read it. `limit`: bytes that the file should not exceed, or text such as "2GB". A key is a hash of all
    that its value follows from, of 16 bytes or more.

    A cache must not stop the work that it is to make cheaper: where it fails (disk full, no rights),
    `problem` says so in a sentence, and from then on nothing is found and nothing kept. A damaged file is
    set aside as NAME.damaged, one of another version of vecbridge is replaced. Only a file at `path` that is
    no cache of vecbridge's is left as it is: that raises InputError.
    """

    def __init__(self, path: str | Path | None = None, *, limit: int | str = "1GB") -> None:
        self.limit = in_bytes(limit, "the limit of the cache")
        if self.limit < _LEAST:
            raise InputError(f"expected a cache of at least {_LEAST:,} bytes, got {self.limit:,}")
        self.problem: str | None = None
        self._lock = threading.RLock()
        self._database: sqlite3.Connection | None = None
        self._guard: int | None = None
        self._puts: deque[_Put] = deque()
        self._used: set[bytes] = set()
        self._named = path is not None
        self._process = os.getpid()
        try:
            self.path = Path(path).expanduser() if path is not None else folder() / "cache.sqlite"
            if self._state() == "damaged" and self._named:
                raise InputError(
                    f"{self.path} is not a cache of vecbridge's and was left as it is; "
                    f"name another file, or remove it"
                )
            self._open()
        except sqlite3.Error as error:
            self._failed(error)
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
            self._give_up(error)
        except BaseException:
            self._leave()
            raise

    def __repr__(self) -> str:
        return f"<vecbridge cache {getattr(self, 'path', None)}>"

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values that are there. One that the disk gives back otherwise than it was put is not."""
        with self._lock:
            if self._unusable() or not keys:
                return {}
            assert self._database is not None
            found: dict[bytes, bytes] = {}
            wanted, stamp = list(dict.fromkeys(keys)), int(time.time()) // _STAMP
            try:
                for at in range(0, len(wanted), _ASKED):
                    part = wanted[at : at + _ASKED]
                    marks = ",".join("?" * len(part))
                    for key, stale, crc, value in self._database.execute(
                        "SELECT key, used < ?, crc, value FROM entries JOIN contents "  # noqa: S608 - only ?
                        f"USING (id) WHERE key IN ({marks})",
                        (stamp, *part),
                    ):
                        if not isinstance(value, bytes) or crc != _check(key, value):
                            continue
                        found[key] = value
                        if stale:
                            self._used.add(key)
                if len(self._used) >= _STAMPED:
                    self._write({}, stamp)
            except sqlite3.Error as error:
                self._failed(error)
            return found

    def put(self, rows: Mapping[bytes, bytes]) -> None:
        """Keeps values by key; they are on the disk when the call returns.

        What several threads put at the same time goes into one transaction: each waits for the disk once.
        """
        if self._unusable() or not rows:
            return
        mine = _Put(rows)
        if mine.size > self.limit // 2:
            return  # it would push out everything, itself included
        self._puts.append(mine)
        with self._lock:
            while not mine.done and not self._unusable():
                self._write_together()
            mine.done = True  # nobody is to write it later, should the file be given up

    def _write_together(self) -> None:
        """Writes what waits to be put, as much as one transaction may hold; the lock is held."""
        puts: list[_Put] = []
        size = 0
        while self._puts and size + self._puts[0].size <= self.limit // 2:
            puts.append(self._puts.popleft())
            size += puts[-1].size
        rows = {key: row for put in puts for key, row in put.rows.items()}
        try:
            self._write(rows, int(time.time()) // _STAMP)
        except sqlite3.Error as error:
            self._failed(error)
        finally:
            for put in puts:
                put.done = True

    def close(self) -> None:
        """Close the file. May be called twice, and from another thread."""
        with self._lock:
            if self._database is not None and self._used and not self._unusable():
                with suppress(sqlite3.Error):
                    self._write({}, int(time.time()) // _STAMP)
            self._leave()

    def _write(self, rows: Mapping[bytes, bytes], stamp: int) -> None:
        """One transaction: room, new values, stamps."""
        database = self._database
        assert database is not None
        new = sum(_on_disk(len(row)) for row in rows.values())
        database.execute("BEGIN IMMEDIATE")
        try:
            self._make_room(database, new)
            used, self._used = self._used, set()
            database.executemany(
                "UPDATE entries SET used = ? WHERE key = ?", ((stamp, key) for key in sorted(used))
            )
            for key, row in rows.items():
                # another process may have put the same meanwhile, or what is there was damaged
                known = database.execute("SELECT id FROM entries WHERE key = ?", (key,)).fetchone()
                place = known[0] if known is not None else None
                place = database.execute(
                    "INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", (place, _check(key, row), row)
                ).lastrowid
                if known is None:
                    database.execute("INSERT INTO entries VALUES (?, ?, ?)", (key, place, stamp))
            database.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                database.rollback()
            raise
        self._shrink(database)

    def _make_room(self, database: sqlite3.Connection, new: int) -> None:
        """Removes what was used longest ago, until `new` bytes fit or enough was done for once."""
        pages, free = (_number(database, f"PRAGMA {name}") for name in ("page_count", "freelist_count"))
        over = (pages - free) * _PAGE + new - self.limit
        if over > 0:
            # a little more than needed, so that not every call has to
            over = min(over + self.limit // 50, new + _EVICTED)
            leaving: list[tuple[bytes, int]] = []
            for key, place, size in database.execute(
                "SELECT key, id, length(value) FROM entries JOIN contents USING (id) ORDER BY used, id"
            ):
                if over <= 0:
                    break
                leaving.append((key, place))
                over -= _on_disk(size)
            database.executemany("DELETE FROM contents WHERE id = ?", ((place,) for _, place in leaving))
            database.executemany("DELETE FROM entries WHERE key = ?", ((key,) for key, _ in leaving))

    def _shrink(self, database: sqlite3.Connection) -> None:
        """Gives free pages back to the file system while the file is too large; a few at once."""
        pages, free = (_number(database, f"PRAGMA {name}") for name in ("page_count", "freelist_count"))
        count = min(pages - self.limit // _PAGE, free, _EVICTED // _PAGE)
        if count > 0:
            # execute() would step once, and each step frees one page
            database.executescript(f"PRAGMA incremental_vacuum({count})")

    def _unusable(self) -> bool:
        # a forked child must not touch the connection that it inherits: its locks are the parent's
        return self._database is None or os.getpid() != self._process

    def _failed(self, error: sqlite3.Error) -> None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            self._say(f"the cache {self.path} was held by another process for {PATIENCE:.0f} s")
            return  # next time it may be free
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._leave()
            try:
                self._open(damaged=True)
            except (OSError, sqlite3.Error, InputError) as second:
                self._give_up(second)
            return
        self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        where = getattr(self, "path", None) or "in the home directory"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self._say(f"the cache {where} cannot be used ({reason}); the run goes on without it")
        self._leave()

    def _say(self, problem: str) -> None:
        self.problem = self.problem or problem

    def _leave(self) -> None:
        if self._database is not None and os.getpid() == self._process:
            with suppress(sqlite3.Error):
                self._database.close()
        self._database = None
        if self._guard is not None:
            os.close(self._guard)
            self._guard = None

    def _open(self, *, damaged: bool = False) -> None:
        """Opens the file; makes or replaces it where that is needed."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Whoever has the database open holds this lock with others; whoever replaces it, alone: SQLite writes
        # into the wrong log when a file is renamed under it (sqlite.org/howtocorrupt.html, 1.4).
        guard = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._guard = guard
        _share(guard)
        state = "damaged" if damaged else self._state()
        if state != "ours":
            try:
                fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # while it was given up for the other lock, somebody may have made what is missing
                _share(guard)
                if damaged or self._state() != "ours":
                    raise sqlite3.OperationalError("it is damaged or outdated, and in use") from None
            else:
                if damaged or self._state() != "ours":
                    self._replace(state)
                fcntl.flock(guard, fcntl.LOCK_SH)
        self._database = _connect(self.path)

    def _state(self) -> str:
        """What lies at the path: "ours", "absent", "outdated", or "damaged" if it cannot be one."""
        try:
            with self.path.open("rb") as file:
                head = file.read(100)
        except FileNotFoundError:
            return "absent"
        except IsADirectoryError:
            return "damaged"
        if not head:
            return "absent"
        whose, version = head[68:72], int.from_bytes(head[60:64], "big")
        if head.startswith(b"SQLite format 3\0") and whose == APPLICATION.to_bytes(4, "big"):
            return "ours" if version == FORMAT else "outdated"
        return "damaged"

    def _replace(self, state: str) -> None:
        """Puts a new, empty file at the path, whole at once; the lock is held alone."""
        if state == "damaged":
            aside = self.path.with_name(f"{self.path.name}.damaged")
            self.path.replace(aside)
            self._say(f"the cache was damaged; it was set aside as {aside}, and a new one begun")
        for suffix in ("-wal", "-shm", "-journal"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        fresh = self.path.with_name(f"{self.path.name}.new")
        for suffix in ("", "-wal", "-shm"):
            Path(f"{fresh}{suffix}").unlink(missing_ok=True)
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(fresh, isolation_level=None)
        try:
            database.executescript(_SCHEMA)
        finally:
            database.close()
        fresh.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # or a power cut takes the file with all that is in it
        finally:
            os.close(folder)


class _Put:
    """Values that wait to be written, by key."""

    def __init__(self, rows: Mapping[bytes, bytes]) -> None:
        self.rows = rows
        self.size = sum(_on_disk(len(row)) for row in rows.values())
        self.done = False


def folder() -> Path:
    """Where vecbridge keeps what it worked out for this user; it need not exist.

    Source: XDG Base Directory Specification; a path that is not absolute does not count.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (given if given.is_absolute() else Path.home() / ".cache") / "vecbridge"


def _share(guard: int) -> None:
    """Takes the lock that all users hold; somebody else holds it alone only for a moment."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(guard, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=PATIENCE,
        isolation_level=None,
        check_same_thread=False,
    )
    # a value that was damaged may look like a text, and a broken one
    database.text_factory = bytes
    try:
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute(f"PRAGMA journal_size_limit = {_LOG}")
        database.execute(f"PRAGMA wal_autocheckpoint = {_LOG // 2 // _PAGE}")
        database.execute("SELECT count(*) FROM (SELECT id FROM entries LIMIT 1)").fetchone()
    except BaseException:
        database.close()
        raise
    return database


def _check(key: bytes, value: bytes) -> int:
    """What tells a value that was damaged, or belongs to another key: SQLite has no checksums of its own."""
    return crc32(value, crc32(key))


@lru_cache(maxsize=1024)
def _on_disk(size: int) -> int:
    """Bytes that a value of `size` bytes takes with its entry: its share of a leaf, and overflow pages.

    Source: sqlite.org/fileformat2.html, 1.6 B-tree Pages, "Cell Payload Overflow Pages".
    """
    payload, beyond = size + 12, 0
    if payload > _PAGE - 35:
        least = (_PAGE - 12) * 32 // 255 - 23
        local = least + (payload - least) % (_PAGE - 4)
        local = local if local <= _PAGE - 35 else least
        beyond, payload = -(-(payload - local) // (_PAGE - 4)), local
    return _PAGE // ((_PAGE - 8) // (payload + 12)) + beyond * _PAGE + 100


def _number(database: sqlite3.Connection, question: str) -> int:
    return int(database.execute(question).fetchone()[0])
