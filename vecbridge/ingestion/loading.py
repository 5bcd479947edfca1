"""The second pass: what is new or changed is embedded and written, in batches that each count."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EmbedderError, SourceError, TooManyRejects, VectorError
from ..types import Layout
from .flow import Encoder, Flow, Part
from .records import Reject
from .rejects import Rejects
from .spool import Item, Work
from .summary import Clock

if TYPE_CHECKING:
    from ..store import Collection
    from ..types import Floats, Progress

# a PCA gains nothing measurable from more rows than about 2,000
_SAMPLE_ROWS = 5_000
_SAMPLE_BYTES = 32_000_000
_SAMPLE_CHARS = 32_000_000
# for measuring more is better: a tenth of them are the queries
_MEASURED_BYTES = 80_000_000
_LEAST = 500
# characters of the texts in one write
_CHARS = 8_000_000
_ZERO = "expected a vector with a length, got zeros from the model; cosine compares directions"


class Load:
    """The work on its way into a collection. `new`, `changed`: records that were written.

    `cosine`: vectors without a length are rejects.
    """

    def __init__(
        self,
        encoder: Encoder,
        work: Work,
        *,
        cosine: bool,
        rejects: Rejects,
        clock: Clock,
        report: Progress,
    ) -> None:
        self.new = self.changed = 0
        self._encoder = encoder
        self._work = work
        self._cosine = cosine
        self._rejects = rejects
        self._clock = clock
        self._report = report
        # what was embedded before the collection was there, and the positions that need no second request
        self._kept: list[Part] = []
        self._dealt: set[int] = set()
        self._embedded = 0

    @property
    def total(self) -> int:
        """How many records there are to embed."""
        return self._work.total

    def first(self) -> int:
        """The dimension that really arrives, whatever a catalogue says: from the first batch, which is kept.

        Raises SourceError where every record is refused.
        """
        for batch in self._encoder.batches(iter(self._work)):
            with self._clock("embed"):
                part = self._checked(self._encoder.part(batch))
            self._keep(part)
            if len(part.items):
                return int(part.vectors.shape[1])
        first = self._rejects.first
        assert first is not None, "where none is borne with, the first one raises"
        raise SourceError(f"nothing of the source could be embedded; its first reject is {first}")

    def sample(self, layout: Layout, dim: int, *, measured: bool) -> Floats | None:
        """Vectors to fit the layout's PCA on, spread over the whole of the work; None where it has none.

        `measured`: also where a layout without one is to be measured. As many of them as fit into memory are
        kept and written later.
        """
        size = _sample_size(layout, dim, self._work.total, measured=measured)
        if not size:
            return None
        spread = {number * self._work.total // size for number in range(size)}
        found: list[Floats] = []
        for part in self._kept:
            found.append(part.vectors[[item.position in spread for item in part.items]])
        chars, done = 0, sum(map(len, found))
        wanted = spread - self._dealt
        rest = (item for item in self._work if item.position in wanted)
        with closing(self._parts(rest)) as parts:
            for part in parts:
                found.append(part.vectors)
                done += len(part.items)
                self._report("sample", done, size)
                if chars < _SAMPLE_CHARS:
                    self._keep(part)
                    chars += part.chars
        return np.concatenate(found)

    def run(self, target: Collection) -> None:
        """Embed and write what is left. Whatever has come before the model fails, or too much is refused, is
        written."""
        rest = (item for item in self._work if item.position not in self._dealt)
        kept, self._kept = self._kept, []
        waiting: list[Part] = []
        try:
            # closed as soon as a write fails: the error keeps this frame, and with it the threads
            with closing(self._fresh(rest)) as fresh:
                for part in chain(kept, fresh):
                    waiting.append(part)
                    rows = sum(len(part.items) for part in waiting)
                    if rows >= self._encoder.rows or sum(part.chars for part in waiting) >= _CHARS:
                        self._write(target, waiting)
                        waiting = []
        except (EmbedderError, TooManyRejects):
            self._write(target, waiting)
            raise
        self._write(target, waiting)
        if written := self.new + self.changed:
            # what was refused is never written
            self._report("write", written, written)

    def _fresh(self, items: Iterable[Item]) -> Generator[Part, None, None]:
        with closing(self._parts(items)) as parts:
            for part in parts:
                self._count(part)
                yield part

    def _keep(self, part: Part) -> None:
        self._kept.append(part)
        self._dealt.update(item.position for item in part.items)
        self._count(part)

    def _count(self, part: Part) -> None:
        self._embedded += len(part.items) + len(part.refused)
        self._report("embed", self._embedded, self._work.total)

    def _parts(self, items: Iterable[Item]) -> Generator[Part, None, None]:
        with Flow(self._encoder, items) as parts:
            while True:
                with self._clock("embed"):
                    part = next(parts, None)
                if part is None:
                    return
                yield self._checked(part)

    def _checked(self, part: Part) -> Part:
        """The part without vectors that cannot be compared; what was refused goes to the rejects."""
        if self._cosine and len(part.items) and not part.vectors.any(axis=1).all():
            dead = set(np.flatnonzero(~part.vectors.any(axis=1)).tolist())
            part = Part(
                [item for row, item in enumerate(part.items) if row not in dead],
                np.delete(part.vectors, list(dead), axis=0),
                [*part.refused, *((part.items[row], VectorError(_ZERO)) for row in sorted(dead))],
            )
        for item, error in part.refused:
            # once is enough: a text that was refused for the sample is not sent again
            self._dealt.add(item.position)
            self._rejects.add(Reject(item.record.origin, str(error), item.record.id), error=error)
        return part

    def _write(self, target: Collection, parts: list[Part]) -> None:
        """Store the records, batch by batch."""
        items = [item for part in parts for item in part.items]
        if items:
            found = [part.vectors for part in parts if len(part.items)]
            vectors = found[0] if len(found) == 1 else np.concatenate(found)
        for start in range(0, len(items), self._encoder.rows):
            part = items[start : start + self._encoder.rows]
            with self._clock("write"):
                try:
                    target.upsert(
                        [item.record.id for item in part],
                        vectors[start : start + len(part)],
                        documents=[item.record.text for item in part],
                        metadata=[item.record.metadata for item in part],
                        digests=[item.digest for item in part],
                    )
                except VectorError as error:
                    where = f"{part[0].record.origin} to {part[-1].record.origin}"
                    raise VectorError(f"{where}, in the vectors of {target.space.model}: {error}") from error
            new = sum(item.new for item in part)
            self.new += new
            self.changed += len(part) - new
            self._report("write", self.new + self.changed, self._work.total)


def _sample_size(layout: Layout, dim: int, total: int, *, measured: bool) -> int:
    """Records to fit the layout's PCA on, or to measure other layouts with; 0 where neither is wanted."""
    if measured:
        return min(total, max(_LEAST, min(_SAMPLE_ROWS, _MEASURED_BYTES // (4 * dim))))
    shortened = (layout.shorten, layout.index.shorten if layout.index else None)
    least = max((each.dim for each in shortened if each and each.method == "pca"), default=0)
    if not least:
        return 0
    return min(total, max(least + least // 4, min(_SAMPLE_ROWS, _SAMPLE_BYTES // (4 * dim))))
