"""What `vecbridge doctor` looks at in a folder of flat collections."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import CollectionNotFound, LayoutChanged, ManifestError, VecbridgeError
from ...explain import human
from ...types import Finding
from .database import CURRENT, RECORDS, Database, current, held
from .homes import abandoned

if TYPE_CHECKING:
    from . import FlatBackend

# a larger file is not read from end to end: that would take longer than anybody waits for a doctor
_READ = 512 * 2**20
_LITTLE = 100 * 10**6  # bytes of free disk
# their locks, maps and SQLite's log work on one machine at most
_REMOTE = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs2",
    "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs", "virtiofs",
}  # fmt: skip


def findings(backend: FlatBackend, folder: Path, leftover: re.Pattern[str]) -> list[Finding]:
    """Everything that can be said of this folder; `leftover`: names of what was half made or half dropped."""
    return list(_all(backend, folder, leftover))


def _all(backend: FlatBackend, folder: Path, leftover: re.Pattern[str]) -> Iterator[Finding]:
    yield Finding("ok", "software", f"SQLite {sqlite3.sqlite_version}")
    if not folder.is_dir():
        yield _absent(folder)
        return
    if not os.access(folder, os.R_OK | os.X_OK):
        yield Finding(
            "broken", "folder", f"this user may not read {folder}", f"chmod u+rwx {shlex.quote(str(folder))}"
        )
        return
    yield _writable(folder)
    with suppress(OSError):  # only Linux has it
        yield from filesystem(folder, Path("/proc/mounts").read_text(encoding="utf-8", errors="replace"))
    names = backend.names()
    yield Finding("ok", "collections", f"{len(names)} in {folder}" if names else "there are none yet")
    sizes = {name: _vectors(backend.place(name)) for name in names}
    largest = max(sizes.values(), default=0)
    yield disk(shutil.disk_usage(folder).free, largest)
    with suppress(OSError, ValueError):  # as above
        yield memory(_available(Path("/proc/meminfo").read_text()), largest)
    yield from _leftovers(folder, leftover)
    yield from _headless(folder)
    for name in names:
        yield from _collection(backend, name)


def _absent(folder: Path) -> Finding:
    above = next(path for path in folder.parents if path.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        return Finding(
            "broken",
            "folder",
            f"{folder} does not exist, and this user may not make it in {above}",
            f"chmod u+w {shlex.quote(str(above))}, or name another folder after flat:",
        )
    return Finding(
        "warning",
        "folder",
        f"{folder} does not exist yet; the first collection makes it",
        "nothing, before the first ingest; else check the path after flat:",
    )


def _writable(folder: Path) -> Finding:
    if os.access(folder, os.W_OK):
        return Finding("ok", "folder", f"{folder} can be read and written")
    return Finding(
        "warning",
        "folder",
        f"this user may read {folder}, but not write in it",
        f"if it shall: chmod u+w {shlex.quote(str(folder))}",
    )


def filesystem(folder: Path, mounts: str) -> Iterator[Finding]:
    """What there is to say of the file system under a folder; `mounts`: what /proc/mounts says."""
    found, kind = "", ""
    place = f"{os.path.realpath(folder)}/"
    for line in mounts.splitlines():
        # proc(5): spaces in paths are written as \040
        _, path, type, *_ = [*re.sub(r"\\040", " ", line.replace(" ", "\0")).split("\0"), "", "", ""]
        if place.startswith(f"{path.rstrip('/')}/") and len(path) >= len(found):
            found, kind = path, type
    if kind in _REMOTE:
        yield Finding(
            "warning",
            "file system",
            f"{folder} lies on {kind} ({found}), where locks and SQLite's log cannot be relied on",
            "let one machine alone use it, or move it to a disk of its own; several machines share a server: "
            "postgresql:// or qdrant://",
        )
    elif kind:
        yield Finding("ok", "file system", f"{kind}, of this machine")


def disk(free: int, largest: int) -> Finding:
    """What there is to say of the free disk space beside vectors of up to `largest` bytes."""
    if free < _LITTLE:
        return Finding(
            "warning", "disk", f"{human(free)} free: writing will fail soon", "free some disk space"
        )
    if free < largest:
        return Finding(
            "warning",
            "disk",
            f"{human(free)} free; the vectors of the largest collection take {human(largest)}, and after "
            f"many deletes they are copied before the old ones go",
            f"free {human(largest - free)} of disk space",
        )
    return Finding("ok", "disk", f"{human(free)} free")


def memory(available: int, largest: int) -> Finding:
    """What there is to say of this machine's memory beside vectors of up to `largest` bytes."""
    if available < largest:
        return Finding(
            "warning",
            "memory",
            f"{human(available)} available; a search of the largest collection reads {human(largest)}, "
            f"partly from disk each time",
            "add memory, or move the collection to a store with an index: pgvector: or qdrant:",
        )
    return Finding("ok", "memory", f"{human(available)} available, {human(largest)} read by the largest scan")


def _available(meminfo: str) -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo, re.MULTILINE)
    if found is None:
        raise ValueError("no MemAvailable")
    return int(found[1]) * 1024


def _vectors(place: Path) -> int:
    """Bytes of the largest file of vectors in a collection's folder."""
    sizes = [0]
    with suppress(ManifestError):  # opening it will tell
        place = place / current(place)[0]
    for path in place.glob("vectors.*"):
        with suppress(FileNotFoundError):  # compaction has just removed it
            sizes.append(path.stat().st_size)
    return max(sizes)


def _headless(folder: Path) -> Iterator[Finding]:
    """Folders with vectors and without the file that says what they are, which no list of names shows."""
    for place in sorted({path.parent for path in folder.glob("*/rows.*.bin")}):
        sound = (place / RECORDS).exists() or (place / CURRENT).exists()
        if not sound and not place.name.startswith(".") and any(place.glob("vectors.*.f??")):
            yield Finding(
                "broken",
                "records",
                f"{place} holds vectors, but no {RECORDS}: a collection that lost its records, and still has "
                f"its name",
                f"restore {place} from a backup, or give it up: rm -r {shlex.quote(str(place))}",
            )


def _leftovers(folder: Path, leftover: re.Pattern[str]) -> Iterator[Finding]:
    left = sorted(path for path in folder.iterdir() if leftover.fullmatch(path.name))
    for place in sorted(folder.iterdir()):
        with suppress(OSError):  # no collection, gone meanwhile, or not for this user to look into
            left += abandoned(place)
    if left and not _changing(folder):
        yield Finding(
            "warning",
            "leftovers",
            f"{len(left)} files or folders of processes that died while they made, replaced or dropped a "
            f"collection, as {left[0].relative_to(folder)}",
            f"the next new collection clears them away; or {shlex.join(['rm', '-r', *map(str, left)])}",
        )


def _changing(folder: Path) -> bool:
    """Whether a living process is creating or dropping a collection."""
    return held(folder / ".lock")


def _collection(backend: FlatBackend, name: str) -> Iterator[Finding]:
    folder = backend.place(name)
    give_up = (
        f"restore {folder} from a backup, or give the collection up: vecbridge drop {backend.url} {name}"
    )
    try:
        table = backend.open(name)
    except CollectionNotFound:
        return  # dropped since it was listed
    except ManifestError as error:
        yield Finding("broken", f"{name}: manifest", str(error), give_up)
        return
    except VecbridgeError as error:
        yield Finding("broken", f"{name}: manifest", str(error), f"check the rights on {folder}")
        return
    table.close()
    yield Finding("ok", f"{name}: manifest", "the files are as the manifest says")
    size = (folder / table.home / RECORDS).stat().st_size
    subject = f"{name}: records"
    if size > _READ:
        yield Finding("ok", subject, f"{RECORDS} ({human(size)}) was not read through: that would take long")
        return
    try:
        with closing(Database(folder, name=name, home=table.home)) as database:
            wrong, count = _wrong(database)
    except (CollectionNotFound, LayoutChanged):
        return
    except VecbridgeError as error:
        wrong, count = str(error), 0
    if wrong:
        yield Finding("broken", subject, f"{RECORDS} is damaged: {wrong}", give_up)
    else:
        yield Finding("ok", subject, f"{count:,}, read through without an error")


def _wrong(database: Database) -> tuple[str, int]:
    """What SQLite finds wrong with its file, empty if nothing; and the number of records."""
    with database.reading() as connection:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            return " ".join(verdict.split()), 0
        rows, dead = connection.execute("SELECT rows, dead FROM state").fetchone()
        (count,) = connection.execute("SELECT count(*) FROM records").fetchone()
    if count != rows - dead:
        return f"{count:,} records, but {rows - dead:,} vectors that belong to one", count
    return "", count
