"""Two collections that are one: documents with an embedding, and beside them those without."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from haystack.dataclasses import Document

from ... import checks
from ...errors import CollectionExists, CollectionNotFound, DimensionMismatch, InputError
from ...manifest import check_name
from ...planner import make_space
from ...store import Collection, Store, connect
from ...types import Batch, FieldKind, Layout, Metric
from .documents import check_meta, document, metadata
from .filters import Condition

if TYPE_CHECKING:
    from ...types import Floats

SUFFIX = "-unembedded"

# records read, written or deleted by id in one call
_SLICE = 5_000
# how many times more hits to ask for where a filter of Haystack's left too few
_WIDER = 4


class Pair:
    """The collection NAME, and NAME-unembedded, each opened or made when it is needed. Safe for threads.

    A document that is in both, as a crash between two writes leaves it, is the one in the first. What is to
    be gone from both goes from the second first: what it may hold of a document is older.
    """

    def __init__(
        self,
        url: Callable[[], str],
        *,
        name: str,
        dim: int | None,
        metric: Metric | None,
        model: str | None,
        rows: int,
        filterable: Mapping[str, FieldKind] | None,
    ) -> None:
        """`url`: asked when there is something to connect to. Raises InputError for what cannot be made."""
        check_name(f"{check_name(name)}{SUFFIX}")
        checks.filterable(filterable)
        make_space(2 if dim is None else dim, metric=metric or "cosine", model=model if dim else None)
        self._url = url
        self._name, self._second = name, f"{name}{SUFFIX}"
        self._dim, self._metric, self._model = dim, metric, model
        self._rows, self._filterable = rows, filterable
        self._store: Store | None = None
        self._open: dict[str, Collection] = {}
        self._opening = threading.RLock()

    def close(self) -> None:
        """Give back connections, files and locks; whatever is asked next opens them again."""
        with self._opening:
            store, self._store, self._open = self._store, None, {}
            if store is not None:
                store.close()

    def main(self) -> Collection | None:
        """The collection of documents with an embedding, if it is there.

        Raises DimensionMismatch, ModelMismatch, InputError where it is for other embeddings than asked for.
        """
        return self._found(self._name)

    def _bare(self) -> Collection | None:
        return self._found(self._second)

    def _there(self) -> list[Collection]:
        """Those that are there, the second first."""
        return [one for one in (self._bare(), self.main()) if one is not None]

    def _connected(self) -> Store:
        if self._store is None:
            self._store = connect(self._url())
        return self._store

    def _found(self, name: str) -> Collection | None:
        with self._opening:
            if name not in self._open:
                try:
                    found = self._connected().open(name)
                except CollectionNotFound:
                    return None
                if name == self._name:
                    self._check(found)
                self._open[name] = found
            return self._open[name]

    def _check(self, found: Collection) -> None:
        space = found.space
        if self._dim not in (None, space.dim):
            raise DimensionMismatch(
                f"expected embeddings of {self._dim} dimensions in {self._name!r}, which holds {space.dim}; "
                f"leave embedding_dimension out, or take another name"
            )
        if self._metric not in (None, space.metric):
            raise InputError(
                f"expected metric {self._metric!r} in {self._name!r}, which was made for {space.metric!r}; "
                f"leave metric out, or take another name"
            )
        checks.check_model(self._model, space)

    def _made(self, name: str, create: Callable[[Store], Collection]) -> Collection:
        with self._opening:
            found = self._found(name)
            if found is None:
                try:
                    found = self._open[name] = create(self._connected())
                except CollectionExists:  # another process made it just now
                    found = self._found(name)
            assert found is not None
            return found

    def _made_main(self, dim: int) -> Collection:
        return self._made(
            self._name,
            lambda store: store.create(
                self._name,
                dim=dim,
                metric=self._metric or "cosine",
                model=self._model,
                rows=self._rows,
                filterable=self._filterable,
            ),
        )

    def _made_bare(self) -> Collection:
        # under l2, zero has a place; nothing is ever searched for here
        return self._made(
            self._second,
            lambda store: store.create(
                self._second, dim=1, metric="l2", layout=Layout(), filterable=self._filterable
            ),
        )

    def put(self, documents: Sequence[Document]) -> None:
        """Insert or replace documents; ids must be unique. Checks all of them before it writes any.

        Raises DimensionMismatch, VectorError, MetadataError, InputError; StoreError.
        """
        ids = checks.ids(one.id for one in documents)
        contents = checks.documents((one.content for one in documents), n=len(ids))
        objects = checks.metadata(map(metadata, documents), n=len(ids))
        whole = [row for row, one in enumerate(documents) if one.embedding is not None]
        rest = [row for row, one in enumerate(documents) if one.embedding is None]
        vectors = self._vectors([documents[row] for row in whole]) if whole else None

        def write(collection: Collection, rows: list[int], vectors: Floats) -> None:
            collection.upsert(
                [ids[row] for row in rows],
                vectors,
                documents=[contents[row] for row in rows],
                metadata=[objects[row] for row in rows],
            )

        if vectors is not None:
            write(self._made_main(vectors.shape[1]), whole, vectors)
            if bare := self._bare():
                bare.delete([ids[row] for row in whole])
        if rest:
            write(self._made_bare(), rest, np.zeros((len(rest), 1), dtype=np.float32))
            if main := self.main():
                main.delete([ids[row] for row in rest])

    def _vectors(self, documents: Sequence[Document]) -> Floats:
        """The embeddings, float32 (n, dim). Raises DimensionMismatch, VectorError, InputError."""
        main = self.main()
        embeddings = [one.embedding or [] for one in documents]
        dim = main.space.dim if main else self._dim or len(embeddings[0])
        for one, embedding in zip(documents, embeddings, strict=True):
            if len(embedding) != dim:
                raise DimensionMismatch(
                    f"expected embeddings of {dim} dimensions in {self._name!r}, got {len(embedding)} of "
                    f"document {one.id!r}; nothing was written"
                )
        space = main.space if main else make_space(dim, metric=self._metric or "cosine")
        return checks.vectors(embeddings, space=space, what="embeddings")

    def present(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are there."""
        return {
            found
            for collection in self._there()
            for some in _slices(ids)
            for found in collection.get(some).ids
        }

    def remove(self, ids: Sequence[str]) -> None:
        """Remove documents; missing ids are no error."""
        for collection in self._there():
            for some in _slices(ids):
                collection.delete(some)

    def empty(self) -> None:
        """Remove all documents that are there now, and leave the collections."""
        for collection in self._there():
            for some in collection.inventory():
                collection.delete([id for id, _ in some])

    def drop(self) -> None:
        """Delete both collections; they are made anew when they are needed."""
        with self._opening:
            for name in (self._second, self._name):
                held = self._open.pop(name, None)
                if held is not None:
                    held.close()
                with suppress(CollectionNotFound):
                    self._connected().drop(name)

    def count(self) -> int:
        """Number of documents."""
        counted = [(one.count(), one) for one in self._there()]
        total = sum(number for number, _ in counted)
        if all(number for number, _ in counted) and len(counted) == 2:
            (_, fewer), (_, more) = sorted(counted, key=lambda one: one[0])
            total -= sum(len(more.get([id for id, _ in some])) for some in fewer.inventory())
        return total

    def scan(self, condition: Condition, *, embeddings: bool) -> Iterator[Document]:
        """All documents that match, in no order, each once; with `embeddings`, those that have one bring it.

        The second collection comes first: what gets its embedding meanwhile is then met at least once.
        """
        met: set[str] = set()
        bare, main = self._bare(), self.main()
        if bare is not None:
            for batch in bare.scan(where=condition.where, vectors=False):
                found = list(_read(batch, condition, embeddings=False))
                newer = set(main.get([one.id for one in found]).ids) if main and found else set()
                for one in found:
                    if one.id not in newer:
                        met.add(one.id)
                        yield one
        if main is not None:
            needed = embeddings or condition.embedding
            for batch in main.scan(where=condition.where, vectors=needed):
                for one in _read(batch, condition, embeddings=needed):
                    if one.id not in met:
                        yield one if embeddings else _without(one)

    def nearest(
        self, query: Sequence[float], *, k: int, condition: Condition, embeddings: bool
    ) -> list[Document]:
        """The k nearest documents that match, nearest first, each with its score."""
        main = self.main()
        if main is None or not k:
            return []
        asked = k
        while True:
            hits = main.search(query, k=asked, where=condition.where)
            rows: dict[str, list[float]] = {}
            if embeddings or condition.embedding:
                batch = main.get([hit.id for hit in hits])
                rows = dict(zip(batch.ids, batch.vectors.tolist(), strict=True))
            found = [
                document(hit.id, hit.document, hit.metadata, score=hit.score, embedding=rows.get(hit.id))
                for hit in hits
            ]
            matching = [one for one in found if condition.matches(one)]
            if len(matching) >= k or len(hits) < asked or asked == checks.K_MAX:
                return [one if embeddings else _without(one) for one in matching[:k]]
            # the core's filter let others through
            asked = min(_WIDER * asked, checks.K_MAX)

    def amend(self, ids: Sequence[str], meta: Mapping[str, Any]) -> None:
        """Put `meta` over the metadata of these documents. Raises MetadataError, InputError."""
        check_meta(meta, "the new meta")
        (fresh,) = checks.metadata([meta], n=1)
        main = self.main()
        if main is not None and main.manifest.reduction is not None:
            raise InputError(
                f"the embeddings in {self._name!r} were shortened when they were stored, so they cannot be "
                f"written again with other meta; write the documents again"
            )
        for collection in self._there():
            for some in _slices(ids):
                batch = collection.get(some)
                collection.upsert(
                    batch.ids,
                    batch.vectors,
                    documents=batch.documents,
                    metadata=[{**one, **fresh} for one in batch.metadata],
                    digests=batch.digests,
                )


def _read(batch: Batch, condition: Condition, *, embeddings: bool) -> Iterator[Document]:
    """The documents of the batch that match."""
    rows = batch.vectors.tolist() if embeddings else [None] * len(batch)
    for id, content, stored, embedding in zip(batch.ids, batch.documents, batch.metadata, rows, strict=True):
        found = document(id, content, stored, embedding=embedding)
        if condition.matches(found):
            yield found


def _without(one: Document) -> Document:
    """The document without its embedding, which was read for the filter's sake."""
    return one if one.embedding is None else replace(one, embedding=None)


def _slices(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + _SLICE] for start in range(0, len(ids), _SLICE))
