"""Folders and files of Qdrant Edge's place: names for them, atomic writes, copies with holes, and errors."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ....errors import Busy, Forbidden, IndexFailure, StoreError, VecbridgeError

_CHUNK = 1 << 20
_HOLE = bytes(_CHUNK)
# what must stay free beside a write: Edge writes into mapped files, and a process that writes into a mapped
# hole on a full disk is killed (SIGBUS) instead of getting an error. The log grows by 32 MiB.
RESERVE = 64 << 20


def folder_name(name: str) -> str:
    """A folder's name for a collection or a key, different for each even where case does not count."""
    plain = re.sub("[^a-z0-9]+", "-", name.lower())[:40].strip("-")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{plain}-{digest}" if plain else digest


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """The same for everything in a folder, from the bottom up."""
    for parent, _, files in os.walk(folder, topdown=False):
        for file in files:
            sync(Path(parent, file))
        sync(Path(parent))


def write(path: Path, content: bytes) -> None:
    """A file with this content, in place of what was there: at no moment anything else, and durable."""
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync_log(shard: Path) -> None:
    """Make what the log of a shard says last through a power cut; Edge itself leaves that to the system."""
    log = shard / "wal"
    with os.scandir(log) as entries:
        names = [entry.path for entry in entries if entry.name.startswith("open-")]
    for name in names:
        # Edge renames a file that is full; a full one was synced after its last entry
        with suppress(FileNotFoundError):
            descriptor = os.open(name, os.O_RDONLY)
            try:
                # macOS has no fdatasync
                getattr(os, "fdatasync", os.fsync)(descriptor)
            finally:
                os.close(descriptor)


def copy_tree(source: Path, target: Path) -> Iterator[int]:
    """Makes a copy in which holes stay holes, and gives the bytes read so far, again and again.

    Edge reserves 32 MiB at a time; without holes an empty collection would take 128 MiB.
    """
    done = 0
    for parent, folders, files in os.walk(source):
        into = target / Path(parent).relative_to(source)
        into.mkdir(exist_ok=True)
        for folder in folders:
            (into / folder).mkdir(exist_ok=True)
        for name in files:
            with Path(parent, name).open("rb", buffering=0) as old, (into / name).open("wb", 0) as new:
                while chunk := old.read(_CHUNK):
                    if chunk == _HOLE[: len(chunk)]:
                        new.seek(len(chunk), os.SEEK_CUR)
                    else:
                        _write_all(new.write, chunk)
                    done += len(chunk)
                    yield done
                new.truncate()


def _write_all(put: Callable[[memoryview], int | None], chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[put(rest) or 0 :]


def taken(folder: Path) -> Iterator[tuple[str, int]]:
    """Each file in a folder by its path there, with the bytes that it takes on disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            file = Path(parent, name)
            with suppress(FileNotFoundError):
                yield file.relative_to(folder).as_posix(), file.stat().st_blocks * 512


def lengths(folder: Path) -> int:
    """Bytes in the files of a folder, holes included."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


def free(folder: Path) -> int:
    """Bytes that this user may still write on the disk of a folder."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raises StoreError where the disk of a folder has no room for so many bytes and the reserve."""
    if (left := free(folder)) < needed + RESERVE:
        raise StoreError(
            f"no room for {what} in {folder}: expected {(needed + RESERVE) >> 20} MiB free, "
            f"found {left >> 20} MiB; nothing was changed; free some disk space"
        )


def clear(folder: Path) -> None:
    """Remove a folder with everything in it, where it is still there."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def sentences(shown: str) -> Iterator[None]:
    """Errors of Edge and of the file system become sentences; `shown` is the place's URL."""
    try:
        yield
    except VecbridgeError:
        raise
    except OSError as error:
        raise _of_system(error, shown) from error
    except Exception as error:
        raise _of_engine(error, shown) from error
    except BaseException as error:
        # what a panic in Edge's Rust arrives as; it is no Exception, so that nothing swallows it by mistake
        if type(error).__name__ != "PanicException":
            raise
        raise _of_engine(error, shown) from error


def failed_build(shown: str, name: str, why: str) -> IndexFailure:
    """The error for a build that did not succeed."""
    return IndexFailure(
        f"{shown}: the index of {name!r} could not be built: {why}; "
        f"the collection is as it was and can be searched; build again when the cause is removed"
    )


def _of_system(error: OSError, shown: str) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _full(shown, str(error.strerror))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Forbidden(
            f"{shown}: this user may not write in {error.filename or 'it'} ({error.strerror}); "
            f"make it writable (chmod u+w), or work as the user who owns it"
        )
    return StoreError(f"{shown}: the file system failed: {error}")


def _of_engine(error: BaseException, shown: str) -> StoreError:
    text = str(error).removeprefix("Service runtime error: ")
    if "WouldBlock" in text:
        return Busy(
            f"{shown}: something other than vecbridge has a shard in it open ({text}); "
            f"close it, then try again"
        )
    if "No space left" in text or "StorageFull" in text or "os error 28" in text:
        return _full(shown, text)
    return StoreError(f"{shown}: Qdrant Edge refused: {text}")


def _full(shown: str, text: str) -> StoreError:
    return StoreError(f"{shown}: the disk is full ({text}); free some disk space, then do it again")
