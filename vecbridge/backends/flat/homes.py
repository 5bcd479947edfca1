"""Where the files of a collection lie: in its folder, or, once it was laid out anew, in a folder inside that.

A successor is filled in a folder of its own inside the collection's, `GENERATION-RANDOM`. The file `current`
names the folder that counts; where there is none, it is the collection's own. Replacing `current` is the one
step that makes a successor the collection: before it everything is as it was, after it everything is new,
and what is left over on either side is deleted by whoever comes next.

No path ever names two SQLite files, one after the other: SQLite opens and deletes its log by name, and a
process that still has the old file open would take the new file's log for its own.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import weakref
from contextlib import suppress
from pathlib import Path

from ...errors import ManifestError
from .database import CURRENT, RECORDS, current, held
from .matrix import sync_folder

_NEXT = "current.next"
_OWNER = "owner.lock"
_HOME = re.compile(r"\d+-[0-9a-f]{16}")
# what a collection that was never laid out anew has in its own folder
_OURS = re.compile(
    r"records\.sqlite(-wal|-shm|-journal)?|(vectors|rows|codes|scales)\.[0-9a-f]+\.\w+|(turn|write)\.lock"
)


class Claim:
    """That this process fills a successor: a lock on a file in its folder, which ends with the process."""

    def __init__(self, folder: Path) -> None:
        file = os.open(folder / _OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(file, fcntl.LOCK_EX)
        self._release = weakref.finalize(self, _release, file, os.getpid())

    def release(self) -> None:
        """No longer fill it; who does not make it the collection leaves it to be cleared away."""
        self._release()


def _release(file: int, owner: int) -> None:
    # a forked child shares the lock; it must not end while the parent lives
    if os.getpid() == owner:
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def fresh(place: Path, generation: int) -> Path:
    """A new, empty folder for a successor. Call it under the lock on all collections."""
    made = place / f"{generation}-{secrets.token_hex(8)}"
    made.mkdir()
    return made


def point(place: Path, home: str, uid: str) -> None:
    """Make `home` the folder that counts, in one step, durable when the call returns."""
    put(place / CURRENT, f"{home} {uid}\n".encode("ascii"))


def put(path: Path, content: bytes) -> None:
    """Make this the content of a file, in one step, durable when the call returns."""
    following = path.with_name(f"{path.name}.next")
    with following.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    following.replace(path)
    sync_folder(path.parent)


def abandoned(place: Path, *, claimed: bool = False) -> list[Path]:
    """What in a collection's folder is neither its own nor, unless `claimed`, filled by a living process."""
    try:
        home, _ = current(place)
    except ManifestError:
        return []  # damaged: nobody knows what counts
    found = []
    for entry in place.iterdir():
        if _HOME.fullmatch(entry.name):
            if entry.name != home and (claimed or not held(entry / _OWNER)):
                found.append(entry)
        elif entry.name == _NEXT or (home and _OURS.fullmatch(entry.name)):
            found.append(entry)
    # Without its log SQLite would read an older state and call it whole: the file goes before its log.
    return sorted(found, key=lambda path: path.name != RECORDS)


def clear(place: Path, *, claimed: bool = False) -> None:
    """Delete what is abandoned, as far as this user may. Call it under the lock on all collections."""
    with suppress(OSError):
        for path in abandoned(place, claimed=claimed):
            delete(path)


def delete(path: Path) -> None:
    """Delete a file, or a home and all in it, the records before their log; what cannot be deleted stays."""
    with suppress(OSError):
        if not path.is_dir():
            path.unlink()
            return
        (path / RECORDS).unlink(missing_ok=True)
        shutil.rmtree(path)
