"""Texts on their way into a collection that may still have to be made: what adapters have in common.

    records = Records.checked(texts, metadatas, ids)
    with ExitStack() as held:
        target = Target.found(held, store, name, wishes)
        vectors = Vectors(target.space)
        for part in records.parts(1_000):
            vectors.take(model(part), part)
        collection = target.filled(held, records, vectors)

Embedding stands in the middle, and is the caller's own: some await it. What can be found wrong is found
before anything is paid for, or by the first answer; nothing is made or written before all is embedded.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import checks
from ..errors import CollectionExists, CollectionNotFound, EmbedderError, InputError
from ..planner import DEFAULT_ROWS
from ..store import Collection, Store, connect
from ..types import Space

if TYPE_CHECKING:
    from ..types import Floats

# vectors that a new collection is planned on, and below which a recall is not measured on them: it would be
# too uncertain, and of a few dozen it is refused
_SAMPLE = 20_000
_TELLING = 1_000


@dataclass(frozen=True, slots=True)
class Records:
    """Texts to be stored, checked before anything is paid for."""

    ids: list[str]
    texts: list[str]
    metadata: list[dict[str, Any]]

    @staticmethod
    def checked(
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any]] | None,
        ids: Sequence[str | None] | None,
    ) -> Records:
        """The records that these make; ids that are not given are made. Raises InputError, MetadataError."""
        if isinstance(texts, str):
            raise InputError("expected a list of texts, got a single one")
        found = list(texts)
        for position, text in enumerate(found):
            if not isinstance(text, str):
                raise InputError(f"expected texts, got {type(text).__name__} at position {position}")
        names: list[str | None] = [None] * len(found) if ids is None else list(ids)
        if len(names) != len(found):
            raise InputError(f"expected {len(found)} ids, one for each text, got {len(names)}")
        if metadatas is not None and len(metadatas) != len(found):
            raise InputError(f"expected {len(found)} metadatas, one for each text, got {len(metadatas)}")
        checks.documents(found, n=len(found))
        return Records(
            checks.ids(str(uuid.uuid4()) if name is None else name for name in names),
            found,
            checks.metadata(metadatas, n=len(found)),
        )

    def parts(self, size: int) -> Iterator[list[str]]:
        """The texts, `size` at a time. Raises InputError."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"expected batch_size as a whole number of 1 or more, got {size!r}")
        return (self.texts[start : start + size] for start in range(0, len(self.texts), size))

    def write(self, collection: Collection, vectors: Vectors) -> None:
        """Put them into the collection; all of them or none."""
        collection.upsert(self.ids, vectors.matrix(), documents=self.texts, metadata=self.metadata)


class Vectors:
    """What a model made of texts, checked as it comes: a wrong model is found out by its first answer."""

    def __init__(self, space: Space | None) -> None:
        """`space`: that of the collection; None where the first answer tells the dimension."""
        self._space = space
        self._parts: list[Floats] = []

    def take(self, vectors: list[list[float]], texts: Sequence[str]) -> None:
        """Keep the vectors of these texts. Raises EmbedderError, DimensionMismatch, VectorError."""
        if len(vectors) != len(texts):
            raise EmbedderError(f"expected {len(texts)} vectors, one for each text, got {len(vectors)}")
        space = self._space = self._space or _any(len(vectors[0]))
        self._parts.append(checks.vectors(vectors, space=space, what="embeddings"))

    def matrix(self) -> Floats:
        """All of them, float32 (n, dim); the dimension is 0 where none came and none is known."""
        if len(self._parts) != 1:
            empty = np.empty((0, self._space.dim if self._space else 0), dtype=np.float32)
            self._parts = [np.concatenate(self._parts or [empty])]
        return self._parts[0]


@dataclass(frozen=True, slots=True)
class Target:
    """Where texts go: a collection that is there, or one that is still to be made."""

    store: Store
    name: str
    wishes: Mapping[str, Any]
    collection: Collection | None

    @staticmethod
    def found(held: ExitStack, store: Store | str, name: str, wishes: Mapping[str, Any] | None) -> Target:
        """What is there under this name. What is opened is closed by `held`. Raises InputError and others."""
        wishes = {} if wishes is None else wishes
        if unknown := sorted(wishes.keys() - _WISHES):
            raise InputError(
                f"expected wishes that Store.create takes ({', '.join(sorted(_WISHES))}), got {unknown[0]!r}"
            )
        home = held.enter_context(connect(store)) if isinstance(store, str) else store
        try:
            collection = _opened(home, name, wishes)
        except CollectionNotFound:
            return Target(home, name, wishes, None)
        held.callback(collection.close)
        return Target(home, name, wishes, collection)

    @property
    def space(self) -> Space | None:
        """The space of the collection, as far as it is known."""
        if self.collection is not None:
            return self.collection.space
        return _any(self.wishes["dim"]) if "dim" in self.wishes else None

    def filled(self, held: ExitStack, records: Records, vectors: Vectors) -> Collection:
        """The collection with the records in it. If it had to be made, it is indexed, too."""
        if self.collection is not None:
            records.write(self.collection, vectors)
            return self.collection
        matrix = vectors.matrix()
        dim = self.wishes.get("dim", matrix.shape[1])
        if not dim:
            raise InputError(
                f"expected one or more texts, whose vectors tell the dimension of {self.name!r}, got none; "
                f'say it: wishes={{"dim": 1024}}'
            )
        sample = _sample(matrix, measured=self.wishes.get("recall") is not None)
        planned = {"dim": dim, "rows": max(DEFAULT_ROWS, len(matrix)), "sample": sample}
        try:
            collection = self.store.create(self.name, **{**planned, **self.wishes})
        except CollectionExists:
            # someone else made it while the texts were embedded
            collection = _opened(self.store, self.name, self.wishes)
        held.callback(collection.close)
        records.write(collection, vectors)
        collection.build_index()
        return collection


_WISHES = inspect.signature(Store.create).parameters.keys() - {"self", "name"}


def _any(dim: int) -> Space:
    """A space that bears every finite vector of so many dimensions; the collection will look again."""
    return Space(dim, "ip")


def _opened(store: Store, name: str, wishes: Mapping[str, Any]) -> Collection:
    """The collection, if it is of the space that is wished for."""
    collection = store.open(name, model=wishes.get("model"))
    for wish, there in (("dim", collection.space.dim), ("metric", collection.space.metric)):
        if wishes.get(wish, there) != there:
            collection.close()
            raise InputError(
                f"expected {wish} {there!r}, which the collection {name!r} was made with, got "
                f"{wishes[wish]!r}; leave it out, or take another name"
            )
    return collection


def _sample(matrix: Floats, *, measured: bool) -> Floats | None:
    """Rows to fit a PCA on, or, where recall is `measured`, to plan on; None where they are too few."""
    if len(matrix) < (_TELLING if measured else 1):
        return None
    if len(matrix) <= _SAMPLE:
        return matrix
    return matrix[np.sort(np.random.default_rng(0).choice(len(matrix), _SAMPLE, replace=False))]
