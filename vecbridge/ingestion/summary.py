"""What an ingest did, in numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..embedders import Usage
from ..manifest import Chunking, Tuned
from ..types import IndexState, Layout

if TYPE_CHECKING:
    from ..evaluate import Report


@dataclass(frozen=True, slots=True)
class Summary:
    """What an ingest did.

    `documents`: files of text and rows that were read; `read`: the records that they gave, which are chunks
    where texts were cut. Of the records, `new`, `changed` and `unchanged`; the rest of `read` was refused by
    the model. A record that was stored by other means than `ingest` counts as new. `removed`: chunks of
    documents that became shorter, and with prune what has left the source. `rejected`: inputs that could not
    be used, records that the model refused among them; `rejects`: the file that lists them, None where there
    is none. `usage`: what the embedder was asked for, None where there was no embedder.

    `seconds` per stage, one after the other: "read" (the source, compared with the collection), "create"
    (planning, fitting), "embed" (waiting for vectors), "write", "remove", "index", "evaluate"; embedding goes
    on while records are written. `plan`: the plan as a dict if this run made the collection by one, else
    None. `recall`: the measured recall, None where it was not asked for. `tuned`: how the collection's search
    width was found and what it was confirmed to find, None where it is the planner's. `notes`: what else a
    user should know. `url` is without password.
    """

    url: str
    collection: str
    model: str | None
    dim: int
    documents: int
    read: int
    new: int
    changed: int
    unchanged: int
    removed: int
    rejected: int
    usage: Usage | None
    seconds: dict[str, float]
    layout: Layout
    index: IndexState
    chunking: Chunking | None = None
    plan: dict[str, Any] | None = field(default=None, repr=False)
    recall: Report | None = None
    tuned: Tuned | None = None
    rejects: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def written(self) -> int:
        """Records that were embedded and stored."""
        return self.new + self.changed

    def to_dict(self) -> dict[str, Any]:
        """The summary, ready for JSON."""
        return {**asdict(self), "written": self.written, "layout": self.layout.to_dict()}

    def __str__(self) -> str:
        where = f"{self.collection} at {self.url}"
        what = f"{self.read:,} records read"
        if self.chunking is not None and self.documents != self.read:
            what = f"{self.documents:,} documents read, {self.read:,} chunks"
        if self.unchanged == self.read and not self.removed:
            return f"{what}, all unchanged; nothing was written to {where}"
        counts = f"{self.new:,} new, {self.changed:,} changed, {self.unchanged:,} unchanged"
        if self.removed:
            counts += f", {self.removed:,} removed"
        if self.rejected:
            counts += f", {self.rejected:,} rejected"
        return f"{what}, {self.written:,} written to {where} ({counts})"


class Clock:
    """Seconds spent in each stage; a stage inside another one is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = 0.0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count what the block takes to `stage`."""
        before, self._inner = self._inner, 0.0
        start = perf_counter()
        try:
            yield
        finally:
            spent = perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent - self._inner
            self._inner = before + spent
