"""The first pass: all of the source is read and checked before anything is embedded, paid for or written."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from .. import checks
from ..errors import DimensionMismatch, InputError, SourceError
from ..types import Metric, Space
from .cutting import Cutting
from .records import Document, Record, Reject, objection
from .rejects import Rejects
from .spool import Work

if TYPE_CHECKING:
    from ..store import Collection
    from ..types import Progress

# records whose digests are asked for at once
GROUP = 1_024
_REPORTED = 1_000
CONTENT, OWNER = 16, 8
_METADATA = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def owner(source: str) -> bytes:
    """8 bytes that stand for the name of a source, behind each digest of its records."""
    return blake2b(source.encode(errors="backslashreplace"), digest_size=OWNER).digest()


def digest(record: Record, model: str | None, prefix: str, mark: bytes, *, embedded: bool) -> bytes:
    """16 bytes that change whenever the stored record would, by model, text, metadata or own vector, and the
    8 bytes of the source's name."""
    metadata = _METADATA.encode(record.metadata)
    text = json.dumps([model, record.text, metadata, *([prefix] if prefix else [])])
    content = blake2b(text.encode(), digest_size=CONTENT)
    if not embedded and record.vector is not None:
        content.update(b"\n")
        content.update(np.ascontiguousarray(record.vector, dtype="<f4").data)
    return content.digest() + mark


class Survey:
    """What a source holds, compared with what a collection holds.

    `cutting`: how texts become chunks, None where the source's own vectors are stored.

    `documents`: files and rows that were read. `records`: those that can be stored. `unchanged`: those that
    are stored already. `foreign`: those that are there from a source of another name. `stale`: ids of chunks
    that documents had before they became shorter. `lost`: whether a reject may stand for records that are
    stored, so that nobody can say what has left the source.
    """

    def __init__(
        self,
        *,
        target: Collection | None,
        work: Work,
        rejects: Rejects,
        space: Space | None,
        metric: Metric,
        digest: Callable[[Record], bytes],
        mark: bytes,
        cutting: Cutting | None,
        report: Progress,
    ) -> None:
        self.documents = self.records = self.unchanged = self.foreign = 0
        self.stale: list[str] = []
        self.lost = False
        self._target = target
        self._work = work
        self._rejects = rejects
        self._space = space
        self._metric = metric
        self._digest = digest
        self._mark = mark
        self._cutting = cutting
        self._report = report
        self._marks = array("Q")
        # in the place of a record that was rejected stands None
        self._group: list[Record | None] = []
        self._ends: list[tuple[str, int]] = []

    def run(self, units: Iterable[Record | Document | Reject]) -> None:
        """Read the whole source. Raises SourceError, DimensionMismatch, TooManyRejects."""
        for unit in units:
            if isinstance(unit, Reject):
                self._refuse(unit)
                continue
            self.documents += 1
            if isinstance(unit, Document) or (self._cutting and self._cutting.chunking.rows):
                self._cut(unit)
            else:
                self._take(unit)
        self._flush()
        self._report("read", self.records, self.records)
        if not self.records:
            first = self._rejects.first
            assert first is not None, "a source without anything raises by itself"
            raise SourceError(f"nothing of the source can be used; its first reject is {first}")

    def repeated(self) -> set[int]:
        """Marks of the ids that occur more than once."""
        ordered = self._ordered()
        return set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())

    def gone(self) -> tuple[list[str], int]:
        """Ids that the collection has from this source and that it no longer holds; and how many records are
        from it in all."""
        assert self._target is not None
        ordered, missing, all_of_it = self._ordered(), [], 0
        known = set(self.stale)
        for part in self._target.inventory():
            own = [key for key, found in part if found is not None and found[CONTENT:] == self._mark]
            all_of_it += len(own)
            wanted = np.array([id_mark(key) for key in own], dtype=np.uint64)
            at = np.searchsorted(ordered, wanted)
            at[at == len(ordered)] = 0
            missing += [
                key
                for key, seen in zip(own, ordered[at] == wanted, strict=True)
                if not seen and key not in known
            ]
        return missing, all_of_it

    def _ordered(self) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        ordered = np.array(self._marks, dtype=np.uint64)
        ordered.sort()
        return ordered

    def _refuse(self, reject: Reject) -> None:
        self.lost = True
        self._rejects.add(reject)

    def _cut(self, unit: Record | Document) -> None:
        """Take the chunks of a text."""
        if self._cutting is None:
            raise SourceError(f"{unit.origin}: expected a vector, got text alone; choose an embedder for it")
        if isinstance(unit, Record) and not (unit.text and unit.text.strip()):
            self._refuse(Reject(unit.origin, "expected text to embed, got none", unit.id))
            return
        # a row's id becomes the beginning of longer ones, as that of a document does
        if reason := objection(Document(unit.id, "", {}, unit.origin, markdown=False)):
            self._refuse(Reject(unit.origin, reason, unit.id))
            return
        count = 0
        for record in self._cutting.cut(unit):
            self._take(record)
            count += 1
        self._ends.append((unit.id, count))

    def _take(self, record: Record) -> None:
        if self._usable(record):
            self._marks.append(id_mark(record.id))
            self.records += 1
            self._group.append(record)
            if self.records % _REPORTED == 0:
                self._report("read", self.records, None)
        else:
            self._group.append(None)
        if len(self._group) >= GROUP:
            self._flush()

    def _usable(self, record: Record) -> bool:
        """Whether the record can become one of the collection; if not, it is rejected."""
        if self._cutting is None:
            return self._fits(record)
        reason = None
        if not (record.text and record.text.strip()):
            reason = "expected text to embed, got none"
        elif record.document is None:
            reason = self._cutting.too_long(record.text)
        if reason is not None:
            self._refuse(Reject(record.origin, reason, record.id))
        return reason is None

    def _fits(self, record: Record) -> bool:
        """Whether the record has a vector that the collection can hold."""
        vector = record.vector
        if vector is None:
            reason = "expected a vector, got text alone; choose an embedder for it"
            self._refuse(Reject(record.origin, reason, record.id))
            return False
        space = self._space = self._space or Space(len(vector), self._metric)
        if len(vector) == space.dim:
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                square = vector.dot(vector)
            # far from every limit of `checks.vectors`, which takes ten times as long for a single row
            if 1e-37 < square < 1e37:
                return True
        try:
            checks.vectors(vector[None, :], space=space, what="the vector")
        except DimensionMismatch as error:
            # not one vector is wrong but the source as a whole
            raise DimensionMismatch(f"{record.origin}: {error}") from None
        except InputError as error:
            self.lost = True
            self._rejects.add(Reject(record.origin, str(error), record.id), error=error)
            return False
        return True

    def _flush(self) -> None:
        """Compare the records at hand with what is stored."""
        group, ends = self._group, self._ends
        self._group, self._ends = [], []
        known: dict[str, bytes] = {}
        if self._target is not None:
            # the chunk behind the last one is there where the document was longer
            known = self._target.digests(
                [*(record.id for record in group if record), *(_chunk(*end) for end in ends)]
            )
        for record in group:
            if record is None:
                self._work.keep()
                continue
            old = known.get(record.id)
            self.foreign += old is not None and old[CONTENT:] not in (self._mark, b"")
            if old is not None and old[:CONTENT] == self._digest(record)[:CONTENT]:
                self.unchanged += 1
                self._work.keep()
            else:
                self._work.add(record, new=old is None)
        if self._target is not None:
            for document, count in ends:
                self._shorter(self._target, document, count, known)

    def _shorter(self, target: Collection, document: str, count: int, known: dict[str, bytes]) -> None:
        """Note the chunks that a document of `count` chunks had before, from this source."""
        while (last := known.get(_chunk(document, count))) is not None:
            if last[CONTENT:] in (self._mark, b""):
                self.stale.append(_chunk(document, count))
            count += 1
            if _chunk(document, count) not in known:
                known = target.digests([_chunk(document, count + more) for more in range(GROUP)])


def id_mark(key: str) -> int:
    """8 bytes that stand for an id, as a number."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")


def _chunk(document: str, position: int) -> str:
    return f"{document}#{position}"
