"""A collection into a Parquet file, which is there whole or not at all. docs/moving.md has its layout."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from . import unfinished
from .errors import Busy, InputError
from .types import Progress

if TYPE_CHECKING:
    from .collection import Collection


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export has written: where, how many records, and how large the file is."""

    path: str
    records: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The same as keys, ready for JSON."""
        return asdict(self)


def export_parquet(
    collection: Collection,
    path: str | Path,
    *,
    where: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write every record of a collection, or every one that matches `where`, into a Parquet file.

    It grows as PATH.part and gets its name when it is whole and on the disk: whatever fails, and a kill, too,
    leaves what was there before. What a killed export left is taken over by the next. Memory holds a few
    megabytes of records, however many there are. Of records that are written or deleted meanwhile, any may
    be missing. `overwrite`: replace a file that is there. `progress`: stage "exporting" in records.

    Raises InputError where the file is there already or cannot be written, FilterError, Busy where another
    process writes the same file, LayoutChanged where the collection is laid out anew meanwhile, MissingExtra
    without pyarrow, StoreError.
    """
    from . import parquet

    manifest = collection.manifest
    unfinished.check_whole(manifest, collection.url)
    batches = collection.scan(where=where)
    with _whole(Path(path), overwrite=overwrite) as out:
        total, done = collection.count(where=where), 0
        if progress is not None:
            progress("exporting", done, total)
        # of the records, not of where they lie
        said = replace(manifest, tuned=None, generation=0, adopted=None)
        header = parquet.Header(said, None if where is None else dict(where))
        with parquet.Writer(out, header) as writer:
            for batch in batches:
                writer.add(batch)
                done += len(batch)
                if progress is not None:
                    progress("exporting", done, max(total, done))
            writer.finish()
        size = out.tell()
    return Exported(str(path), done, size)


@contextmanager
def _whole(path: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """A file to write to, which is at `path` once the block has ended without an error. Raises InputError."""
    # through a link, so that it stays one
    place = Path(os.path.realpath(path))
    if not place.parent.is_dir():
        raise InputError(
            f"expected a folder to write {place.name} to; {place.parent} is not there: make it first"
        )
    _free(place, overwrite=overwrite)
    part = place.with_name(f"{place.name}.part")
    try:
        with _held(part) as out:
            try:
                yield out
                out.flush()
                os.fsync(out.fileno())
                _free(place, overwrite=overwrite)
                part.replace(place)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        _sync(place.parent)
    except OSError as error:
        raise InputError(f"{place} cannot be written: {error.strerror or error}") from error


def _free(place: Path, *, overwrite: bool) -> None:
    if place.exists() and not place.is_file():
        raise InputError(f"expected a file to write to; {place} is none: name another path")
    if place.exists() and not overwrite:
        raise InputError(
            f"{place} is there already: name another file, or say that it shall be replaced "
            f"(overwrite=True, --force)"
        )


@contextmanager
def _held(part: Path) -> Iterator[IO[bytes]]:
    """The file, empty, which nobody else writes meanwhile. Raises Busy."""
    while True:
        with part.open("ab") as out:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(
                    f"another process exports to {part} right now; wait for it, or name another file"
                ) from None
            # between the two calls, whoever held it may have given it its final name, or removed it
            try:
                same = os.path.samestat(os.fstat(out.fileno()), part.stat())
            except FileNotFoundError:
                same = False
            if same:
                out.truncate(0)
                out.seek(0)
                yield out
                return


def _sync(folder: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
