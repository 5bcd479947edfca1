"""Embedding ahead of the store: several threads ask the model while the caller writes what has come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from queue import Full, Queue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

import numpy as np

from ..embedders import Embedded, Embedder, Service
from ..embedders.texts import parts
from ..errors import EmbedderError, VecbridgeError
from .spool import Item

if TYPE_CHECKING:
    from ..types import Floats

# records and characters in a batch where no service says how many it takes
BATCH = 512
_CHARS = 8_000_000
_BYTES = 8_000_000
# records in a batch while the length of the vectors is unknown
_UNKNOWN = 128
# how long threads are waited for that are in the middle of a request, and between looks at a full queue
_SECONDS = 5.0
_MOMENT = 0.1


@dataclass(frozen=True, slots=True)
class Part:
    """Records with their vectors, float32 (n, dim), and what was refused of the batch that they came in."""

    items: Sequence[Item]
    vectors: Floats
    refused: Sequence[tuple[Item, VecbridgeError]] = ()

    @property
    def chars(self) -> int:
        """Characters of the texts."""
        return sum(item.chars for item in self.items)


class Encoder:
    """Where vectors come from: a service, an embedder in this process, or the records themselves.

    `dim`: the length of vectors, where that is known of records. `threads`: how many calls of `part` are
    worth making at once.
    """

    def __init__(self, embedder: Embedder | None, *, batch: int, dim: int | None = None) -> None:
        self._embedder = embedder
        self._batch = batch
        # a model that has taken a text is not broken as a whole
        self._accepted = False
        self.dim = embedder.dim if embedder else dim
        self.threads = 1
        if isinstance(embedder, Service):
            # the service bounds what is in flight: while one thread keeps an answer, another one can ask
            self.threads = 2 * embedder.concurrency - 1

    @property
    def rows(self) -> int:
        """Records that are written at once."""
        return min(self._batch, max(1, _BYTES // (4 * self.dim)) if self.dim else _UNKNOWN)

    def batches(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """The items as they go to the model."""
        if isinstance(self._embedder, Service):
            most = min(self._batch, self._embedder.items)
            return parts(items, most, self._embedder.chars, attrgetter("chars"))
        return parts(items, self.rows, _CHARS, attrgetter("chars"))

    def part(self, items: Sequence[Item]) -> Part:
        """The vectors of a batch. Raises EmbedderError."""
        if self._embedder is None:
            rows = [item.record.vector for item in items]
            vectors = np.stack([row for row in rows if row is not None])
            self.dim = vectors.shape[1]
            return Part(items, vectors)
        texts = [item.record.text or "" for item in items]
        if isinstance(self._embedder, Service):
            answer = self._embedder.request(texts)
        else:
            answer = self._embed(self._embedder, texts)
        vectors, refused = answer.vectors, answer.refused
        if vectors.ndim != 2 or len(vectors) != len(items) - len(refused):
            raise EmbedderError(
                f"expected {len(items) - len(refused)} vectors from {self._embedder.model}, got an array of "
                f"shape {vectors.shape}"
            )
        if len(vectors):
            self.dim = vectors.shape[1]
        if not refused:
            return Part(items, vectors)
        return Part(
            [item for row, item in enumerate(items) if row not in refused],
            vectors,
            [(items[row], error) for row, error in sorted(refused.items())],
        )

    def _embed(self, embedder: Embedder, texts: list[str]) -> Embedded:
        """The vectors of texts; one that the model fails for alone is refused, if it takes others."""
        try:
            vectors = embedder.embed(texts)
        except EmbedderError as error:
            if len(texts) == 1:
                if not self._accepted:
                    raise
                return Embedded(np.empty((0, self.dim or 0), dtype=np.float32), {0: error})
            half = len(texts) // 2
            one, other = self._embed(embedder, texts[:half]), self._embed(embedder, texts[half:])
            refused = {**one.refused, **{half + row: error for row, error in other.refused.items()}}
            return Embedded(np.concatenate([one.vectors, other.vectors]), refused)
        self._accepted = True
        return Embedded(vectors)


class Flow:
    """Parts as they come, not in order, while `encoder.threads` threads ask for more.

    What waits to be taken is bounded: two parts for each thread. An error of a thread is raised after the
    parts that came before it. To be used as a context manager: leaving it stops the threads.
    """

    def __init__(self, encoder: Encoder, items: Iterable[Item]) -> None:
        self._encoder = encoder
        self._batches = encoder.batches(items)
        self._lock = Lock()
        # no further batch is asked for once one has failed; what others have in hand still comes
        self._stopped = Event()
        self._left = Event()
        self._parts: Queue[Part | BaseException | None] = Queue(2 * encoder.threads)
        # daemons: an answer that takes a minute must not hold back Ctrl-C
        self._threads = [
            Thread(target=self._work, name=f"vecbridge-embed-{number}", daemon=True)
            for number in range(encoder.threads)
        ]

    def __enter__(self) -> Iterator[Part]:
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            # nothing leaves a block that was not entered: those that did start would go on
            self.__exit__()
            raise EmbedderError(
                f"{len(self._threads)} threads to embed with cannot be started ({error}); ask for fewer "
                f"requests at once (--concurrency)"
            ) from error
        return self._come()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._left.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_SECONDS / len(self._threads))

    def _come(self) -> Iterator[Part]:
        running = len(self._threads)
        problem: BaseException | None = None
        while running:
            part = self._parts.get()
            if part is None:
                running -= 1
            elif isinstance(part, BaseException):
                problem = problem or part
                self._stopped.set()
            else:
                yield part
        if problem is not None:
            raise problem

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                with self._lock:
                    batch = next(self._batches, None)
                if batch is None:
                    break
                self._put(self._encoder.part(batch))
        except BaseException as error:  # noqa: BLE001 - raised again where the parts are taken
            self._put(error)
        finally:
            self._put(None)

    def _put(self, part: Part | BaseException | None) -> None:
        while not self._left.is_set():
            try:
                self._parts.put(part, timeout=_MOMENT)
            except Full:
                continue
            return
