"""A collection filled beside another one, with the vectors of another model for its documents."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import store, unfinished
from ..backends import Guarded
from ..embedders import Embedder, document_prefix
from ..errors import CollectionNotFound, InputError, ModelMismatch, StoreError, VecbridgeError
from ..planner import Plan
from ..types import Batch, Layout, Progress
from . import making
from .cutting import Cutting, carried
from .flow import Encoder
from .loading import Load
from .making import Budgets, Meaning
from .records import Origin, Record, Reject
from .rejects import Rejects
from .spool import Spool
from .summary import Clock
from .survey import CONTENT, OWNER, digest, id_mark

_COMPARED = 200  # records that are compared in full before the switch
_FEW = 64  # records that are read back at once to compare their texts
# whether what is there already has been begun by an earlier run is seen from so many of its records, of which
# some may have left the collection since
_KNOWN, _SHARE = 200, 0.5
_NO_TEXT = "expected a document to embed, got none"


@dataclass(frozen=True, slots=True)
class Wishes:
    """How the new collection shall be made."""

    rows: int | None
    layout: Layout | None
    budgets: Budgets
    on_plan: Callable[[Plan], object] | None


@dataclass(frozen=True, slots=True)
class There:
    """Of the records of a batch: the digest each is to have, and whether it is stored so already."""

    digests: list[bytes | None]
    same: list[bool]


def check_exchangeable(home: store.Place, name: str) -> None:
    """Raise, before anything is embedded for it, what giving the name to another collection would."""
    home.ask(lambda backend: backend.exchangeable(name) if isinstance(backend, Guarded) else None)


def guard(home: store.Place, name: str, *, like: str) -> None:
    """Let nobody see more of a collection than of another one, where others have rights to it."""
    home.ask(lambda backend: backend.guard(name, like=like) if isinstance(backend, Guarded) else None)


def related(collection: store.Collection, other: store.Collection) -> bool:
    """Whether the records of another collection are, as far as can be seen, those of this one."""
    for part in other.inventory():
        ids = [id for id, _ in part[:_KNOWN]]
        return len(collection.get(ids)) >= _SHARE * len(ids)
    return True


class Refused(Rejects):
    """Rejects that know their ids: what was refused is not asked for again in the same run."""

    def __init__(self, path: str | Path | None, *, most: int) -> None:
        super().__init__(path, most=most)
        self.ids: set[str] = set()

    def add(self, reject: Reject, *, error: VecbridgeError | None = None) -> None:
        super().add(reject, error=error)
        if reject.id is not None:
            self.ids.add(reject.id)


class Filling:
    """One run: the old collection, the new one as soon as it is there, and what was done."""

    def __init__(
        self,
        place: store.Store,
        old: store.Collection,
        using: Embedder,
        *,
        beside: str,
        wishes: Wishes,
        rejects: Refused,
        skip_missing: bool,
        batch: int,
        report: Progress,
    ) -> None:
        self.clock, self.report = Clock(), report
        self.embedded = self.found = self.removed = self.missing = 0
        self.notes: list[str] = []
        self._place = place
        self._old = old
        self._using = using
        self._beside = beside
        self._wishes = wishes
        self._rejects = rejects
        self._skip_missing = skip_missing
        self._batch = batch
        self._rounds = self._records = 0
        self._digests: dict[str, bytes | None] = {}
        self._sampled: list[str] = []
        self._cutting = Cutting(
            using, kept=None, tokens=None, overlap=None, rows=None, tokenizer=None, afresh="", memo=None
        )
        self.new = self._begun()

    def _begun(self) -> store.Collection | None:
        """What an earlier run has begun. Raises ModelMismatch, InputError where it is something else."""
        another = (
            f"name another one with beside= (--beside), or drop it: vecbridge drop {self._place.url} "
            f"{self._beside}"
        )
        try:
            found = self._place.open(self._beside, model=self._using.model)
        except CollectionNotFound:
            return None
        except ModelMismatch as error:
            raise ModelMismatch(f"collection {self._beside}: {error}; {another}") from None
        if found.space.metric != self._old.space.metric:
            raise InputError(
                f"expected {self._beside} to compare by {self._old.space.metric} as {self._old.name} does, "
                f"got {found.space.metric}; {another}"
            )
        if self._using.dim not in (None, found.space.dim):
            raise ModelMismatch(
                f"expected {self._beside} to hold vectors of {self._using.dim:,} dimensions, got "
                f"{found.space.dim:,}; {another}"
            )
        if not unfinished.same_name(found.manifest.copy_of, self._old.name):
            unfinished.check_whole(found.manifest, found.url)
        if not related(self._old, found):
            raise InputError(
                f"expected {self._beside} to hold records of {self._old.name}, got others, which would "
                f"be lost; {another}"
            )
        if found.manifest.copy_of is not None or not found.count():
            # whoever made it may have come no further
            self._guard()
        return found

    def _guard(self) -> None:
        (home,) = self._place.places
        guard(home, self._beside, like=self._old.name)

    def catch_up(self) -> bool:
        """Embed what the new collection lacks, and remove what it has too much; whether there was any.

        Raises what `reembed` does.
        """
        self._rounds += 1
        with ExitStack() as stack:
            work = Spool(lambda record: self._digests[record.id])
            stack.callback(work.close)
            with self.clock("read"):
                stale = self._look(work)
            load = Load(
                Encoder(self._using, batch=self._batch, dim=self.new.space.dim if self.new else None),
                work,
                cosine=self._old.space.metric == "cosine",
                rejects=self._rejects,
                clock=self.clock,
                report=self.report,
            )
            refused = len(self._rejects.ids)
            if self.new is None:
                self.new = self._made(load)
            load.run(self.new)
            self._records -= len(self._rejects.ids) - refused
            self.embedded += load.new + load.changed
            if stale:
                with self.clock("remove"):
                    self.removed += self.new.delete(stale)
            return bool(work.total or stale)

    def _made(self, load: Load) -> store.Collection:
        old = self._old.manifest
        chunking = None if old.chunking is None else carried(old.chunking, self._using)
        if chunking != old.chunking:
            assert chunking is not None
            self.notes.append(
                f"{self._using.model} counts tokens otherwise than what cut the texts: from the next ingest "
                f"on they are cut into up to {chunking.tokens:,} tokens by {chunking.counter}, and what "
                f"changes by that is embedded then"
            )
        meaning: Meaning = {
            "metric": old.space.metric,
            "model": self._using.model,
            "nested": self._using.nested,
        }
        rows = self._records if self._wishes.rows is None else self._wishes.rows
        with self.clock("create"):
            made = making.create(
                self._place,
                self._beside,
                load,
                rows=rows,
                layout=self._wishes.layout,
                meaning=meaning,
                budgets=self._wishes.budgets,
                filterable=old.filterable,
                chunking=chunking,
                progress=self.report,
            )
        self._guard()
        table = store.table_of(made)
        table.keep(replace(table.manifest, copy_of=unfinished.of_model(old.name, self._using.model)))
        if self._wishes.on_plan is not None and made.plan is not None:
            self._wishes.on_plan(made.plan)
        return made

    def _look(self, work: Spool) -> list[str]:
        """Compare all records with those of the new collection: what is to do goes to `work`.

        Returns ids that the old collection no longer has. Raises InputError where documents are missing.
        """
        seen, found, missing, self._records, self._sampled = array("Q"), 0, 0, 0, []
        total = self._old.count()
        for batch in self._old.scan(vectors=False):
            there = self._there(batch)
            self._digests = dict(zip(batch.ids, there.digests, strict=True))
            for row, (id, text) in enumerate(zip(batch.ids, batch.documents, strict=True)):
                origin = Origin(f"{self._old.name}, record {id!a}")
                if text is None or not text.strip():
                    missing += 1
                    if self._skip_missing and self._rounds == 1:
                        self._rejects.note(Reject(origin, _NO_TEXT, id))
                    continue
                if id in self._rejects.ids:
                    continue
                if there.same[row]:
                    found += 1
                elif (reason := self._cutting.beyond(text)) is not None:
                    self._rejects.add(Reject(origin, reason, id))
                    continue
                else:
                    work.add(Record(id, text, batch.metadata[row], origin), new=True)
                self._records += 1
                seen.append(id_mark(id))
            self._sampled = [*self._sampled, *batch.ids[:: 1 + len(batch) // _FEW]][-_COMPARED:]
            self.report("read", self._records + missing, max(total, self._records + missing))
        if missing and not self._skip_missing:
            raise InputError(
                f"expected a document in each record of {self._old.name} to embed, got {missing:,} of "
                f"{missing + self._records:,} without; nothing was changed: store their documents, or leave "
                f"them out with skip_missing (--skip-missing)"
            )
        if not self._records:
            raise InputError(
                f"expected records with documents in {self._old.name}, got none that can be embedded"
            )
        self.missing = missing
        if self._rounds == 1:
            self.found = found
        return self._stale(seen)

    def _there(self, batch: Batch) -> There:
        """What is to be stored as the digests of records, and which of them are stored so already."""
        model = (self.new.space.model if self.new else None) or self._using.model
        prefix = document_prefix(self._using)
        wanted: list[bytes | None] = []
        plain = []
        for row, mark in enumerate(batch.digests):
            if mark is None or len(mark) != CONTENT + OWNER:
                # not what `ingest` writes: it says nothing of the model, and stays
                wanted.append(mark)
                plain.append(row)
                continue
            record = Record(batch.ids[row], batch.documents[row], batch.metadata[row], Origin(""))
            wanted.append(digest(record, model, prefix, mark[CONTENT:], embedded=True))
        if self.new is None:
            return There(wanted, [False] * len(batch))
        stored = self.new.digests(batch.ids)
        same = [
            mark is not None and stored.get(id) == mark for id, mark in zip(batch.ids, wanted, strict=True)
        ]
        for start in range(0, len(plain), _FEW):
            rows = plain[start : start + _FEW]
            read = self.new.get([batch.ids[row] for row in rows])
            copies = {copy[0]: copy[1:] for copy in _contents(read)}
            for row, (id, *content) in zip(rows, _contents(batch, rows), strict=True):
                same[row] = copies.get(id) == tuple(content)
        return There(wanted, same)

    def _stale(self, seen: array[int]) -> list[str]:
        """Ids in the new collection that are not among those of these marks."""
        if self.new is None:
            return []
        ordered = np.array(seen, dtype=np.uint64)
        ordered.sort()
        gone: list[str] = []
        for part in self.new.inventory():
            marks = np.array([id_mark(id) for id, _ in part], dtype=np.uint64)
            at = np.searchsorted(ordered, marks)
            at[at == len(ordered)] = 0
            gone += [id for (id, _), known in zip(part, ordered[at] == marks, strict=True) if not known]
        return gone

    def compare(self) -> None:
        """Raise StoreError unless the new collection holds what can be embedded, and nothing else."""
        assert self.new is not None
        count = self.new.count()
        if count != self._records:
            raise StoreError(
                f"expected {self._records:,} records in {self._beside}, found {count:,}: somebody wrote to "
                f"one of the two meanwhile; {self._old.name} was not changed, run again while nobody writes"
            )
        sampled = [id for id in self._sampled if id not in self._rejects.ids]
        here = {copy[0]: copy for copy in _contents(self._old.get(sampled)) if copy[1] and copy[1].strip()}
        there = {copy[0]: copy for copy in _contents(self.new.get(sampled))}
        digested = {id: copy[:3] for id, copy in here.items()}
        if digested != {id: copy[:3] for id, copy in there.items()}:
            raise StoreError(
                f"of {len(sampled):,} records that were compared, some are not the same in {self._beside}: "
                f"somebody wrote to one of the two meanwhile; {self._old.name} was not changed, run again "
                f"while nobody writes"
            )
        self.report("compare", len(there), len(there))

    def complete(self) -> None:
        """Take away the mark by which others see that it is not complete."""
        assert self.new is not None
        table = store.table_of(self.new)
        if table.manifest.copy_of is not None:
            table.keep(replace(table.manifest, copy_of=None))


def _contents(
    batch: Batch, rows: Sequence[int] | None = None
) -> Iterator[tuple[str, str | None, str, bytes | None]]:
    """Of each record, or of those in `rows`: id, document, metadata as text, digest."""
    for row in range(len(batch)) if rows is None else rows:
        metadata = json.dumps(batch.metadata[row], sort_keys=True)
        yield batch.ids[row], batch.documents[row], metadata, batch.digests[row]
