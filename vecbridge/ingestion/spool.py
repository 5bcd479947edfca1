"""What a survey of the source has found to do, kept on disk until it is done."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ..errors import InputError, SourceError
from .records import Record

# of a record of the source: nothing to do, or to be written
_DONE, _NEW, _CHANGED = range(3)


@dataclass(frozen=True, slots=True)
class Item:
    """A record on its way: the digest to store with it, whether its id is new to the collection, its place in
    the work."""

    record: Record
    digest: bytes | None
    new: bool
    position: int

    @property
    def chars(self) -> int:
        """Characters of its text."""
        return len(self.record.text or "")


Digest: TypeAlias = Callable[[Record], bytes | None]


class Work(Protocol):
    """The records that a collection does not hold as they are. May be read several times."""

    total: int

    def add(self, record: Record, *, new: bool) -> None:
        """One more to do."""

    def keep(self) -> None:
        """One that is done already, or rejected."""

    def __iter__(self) -> Iterator[Item]:
        """What there is to do, in the order of the source."""

    def close(self) -> None:
        """Give back what it holds."""


class Spool:
    """Work in a temporary file: the source is read, converted and cut into chunks only once."""

    def __init__(self, digest: Digest) -> None:
        self.total = 0
        self._digest = digest
        self._file = tempfile.TemporaryFile(prefix="vecbridge-")  # noqa: SIM115 - close() gives it back

    def add(self, record: Record, *, new: bool) -> None:
        """One more to do. Raises InputError where the disk is full."""
        item = Item(record, self._digest(record), new, self.total)
        try:
            pickle.dump(item, self._file, pickle.HIGHEST_PROTOCOL)
        except OSError as error:
            raise _full(error) from error
        self.total += 1

    def keep(self) -> None:
        """What is done already, or rejected, needs no place."""

    def __iter__(self) -> Iterator[Item]:
        try:
            self._file.flush()
        except OSError as error:
            raise _full(error) from error
        # a second reader has its own position: what it reads in between does not move it
        position = 0
        for _ in range(self.total):
            if self._file.tell() != position:
                self._file.seek(position)
            # the file has no name, so that nobody else can have written to it
            item: Item = pickle.load(self._file)  # noqa: S301 - see above
            position = self._file.tell()
            yield item

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


def _full(error: OSError) -> InputError:
    return InputError(
        f"the temporary folder {tempfile.gettempdir()} cannot hold the texts to embed: "
        f"{error.strerror or error}; make room, or name another folder in TMPDIR"
    )


class Reread:
    """Work that is taken from the source once more: vectors would fill a disk, and need no conversion."""

    def __init__(self, again: Callable[[], Iterable[Record]], digest: Digest) -> None:
        self.total = 0
        self._again = again
        self._digest = digest
        # one for each record of the source
        self._marks = bytearray()

    def add(self, record: Record, *, new: bool) -> None:
        """One more to do."""
        self._marks.append(_NEW if new else _CHANGED)
        self.total += 1

    def keep(self) -> None:
        """One that is done already, or rejected."""
        self._marks.append(_DONE)

    def __iter__(self) -> Iterator[Item]:
        position = 0
        records = iter(self._again())
        # nothing is read behind the last one that there is to do
        for mark in self._marks.rstrip(bytes([_DONE])):
            if (record := next(records, None)) is None:
                raise SourceError(
                    "expected a source that stays as it is while it is read, got fewer records the second "
                    "time; run again"
                )
            if mark != _DONE:
                yield Item(record, self._digest(record), mark == _NEW, position)
                position += 1

    def close(self) -> None:
        """Nothing is held open."""
