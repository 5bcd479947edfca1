"""Collections: what is done with records. It checks, reduces and delegates; no SQL is spoken here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from . import checks, evaluate
from .backends import Table
from .errors import InputError
from .manifest import Manifest
from .planner import Plan
from .types import Batch, Hit, IndexState, Layout, Metadata, Progress, Sizes, Space

if TYPE_CHECKING:
    from .types import Floats


class Collection:
    """One set of records: ids, vectors, documents, metadata. Comes from `Store.create` or `Store.open`.

    `url`: the place where it lies, without password. `plan`: the Plan that it was created by in this process,
    else None.
    """

    def __init__(self, table: Table, *, url: str, plan: Plan | None = None) -> None:
        self._table = table
        self.url = url
        self.plan = plan

    @property
    def manifest(self) -> Manifest:
        """What the collection says of itself."""
        return self._table.manifest

    @property
    def name(self) -> str:
        """The collection's name."""
        return self.manifest.name

    @property
    def space(self) -> Space:
        """The embedding space of its vectors."""
        return self.manifest.space

    @property
    def layout(self) -> Layout:
        """How its vectors lie in the store."""
        return self.manifest.layout

    def __repr__(self) -> str:
        return f"<vecbridge.Collection {self.name}: {self.space.dim} dims, {self.space.metric}>"

    def upsert(
        self,
        ids: Iterable[str],
        vectors: ArrayLike,
        *,
        documents: Iterable[str | None] | None = None,
        metadata: Iterable[Metadata | None] | None = None,
        model: str | None = None,
        digests: Sequence[bytes | None] | None = None,
    ) -> int:
        """Insert or replace records; all of them or none. Returns how many were written.

        `vectors`: float (n, dim) with one row for each id. An id that occurs twice keeps its last record, as
        two calls would. `model`: refuse to write vectors of another model than the collection's. `digests`:
        up to 32 bytes per record to recognise an unchanged source by (see `digests()`).

        Raises DimensionMismatch, VectorError, ModelMismatch, MetadataError, InputError before anything is
        sent; StoreError.
        """
        checks.check_model(model, self.space)
        names = checks.ids(ids)
        matrix = checks.vectors(vectors, space=self.space)
        checks.check_length(matrix, len(names), "vectors")
        texts = checks.documents(documents, n=len(names))
        objects = checks.metadata(metadata, n=len(names))
        marks: list[bytes | None] = [None] * len(names) if digests is None else list(digests)
        checks.check_length(marks, len(names), "digests")
        if not all(mark is None or (isinstance(mark, bytes) and len(mark) <= 32) for mark in marks):
            raise InputError("expected digests of up to 32 bytes or None, got something else or a longer one")
        last = {name: row for row, name in enumerate(names)}
        if len(last) < len(names):
            keep = sorted(last.values())
            matrix = matrix[keep]
            names, texts = [names[row] for row in keep], [texts[row] for row in keep]
            objects, marks = [objects[row] for row in keep], [marks[row] for row in keep]
        if not names:
            return 0
        stored = self._stored(matrix, "vectors")
        short = self._short(stored, "vectors")
        self._table.write(Batch(names, stored, texts, objects, marks, short))
        return len(names)

    def _stored(self, matrix: Floats, what: str) -> Floats:
        """Vectors as they are stored: reduced at the door, and fit for half precision where it is used."""
        if self.manifest.reduction is not None:
            matrix = self.manifest.reduction.apply(matrix)
            checks.check_lengths(matrix, self.space.metric, f"{what}, once shortened,")
        if self.layout.half:
            checks.check_half(matrix, what)
        return matrix

    def _short(self, stored: Floats, what: str) -> Floats | None:
        """What an index on a projection holds of them; one component may take up a vector's whole length."""
        short = evaluate.index_queries(self.manifest, stored)
        if short is not None and self.layout.half:
            checks.check_half(short, f"{what}, once projected for the index,", vanishing=True)
        return short

    def search(
        self,
        query: ArrayLike,
        *,
        k: int = 10,
        where: Mapping[str, Any] | None = None,
        exact: bool = False,
        model: str | None = None,
    ) -> list[Hit]:
        """The k nearest records, nearest first; k of them whenever k exist (that match `where`).

        `query`: float (dim,). `where`: see `vecbridge.filters`. `exact` ignores the index: the truth, slower.
        """
        checks.check_model(model, self.space)
        return self._search(checks.query(query, space=self.space), k, where, exact)[0]

    def search_many(
        self,
        queries: ArrayLike,
        *,
        k: int = 10,
        where: Mapping[str, Any] | None = None,
        exact: bool = False,
        model: str | None = None,
    ) -> list[list[Hit]]:
        """For each row of `queries`, float (m, dim), what `search` would return."""
        checks.check_model(model, self.space)
        matrix = checks.vectors(queries, space=self.space, what="queries")
        return self._search(matrix, k, where, exact)

    def _search(
        self, queries: Floats, k: int, where: Mapping[str, Any] | None, exact: bool
    ) -> list[list[Hit]]:
        wanted = checks.hits_wanted(k)
        condition = checks.where_filter(where)
        if not len(queries):
            return []
        stored = self._stored(queries, "queries")
        short = self._short(stored, "queries")
        if short is not None and not short.any(axis=1).all():
            exact = True  # a query that lies across the projection has no neighbours in it
        return self._table.search(stored, short, k=wanted, where=condition, exact=exact)

    def get(self, ids: Iterable[str]) -> Batch:
        """The records of these ids in the order given; ids that are not there are left out."""
        return self._table.read(list(dict.fromkeys(checks.ids(ids))))

    def digests(self, ids: Iterable[str]) -> dict[str, bytes]:
        """The digests that `upsert` was given, for those of these ids that are there and have one."""
        return self._table.digests(checks.ids(ids))

    def inventory(self) -> Iterator[list[tuple[str, bytes | None]]]:
        """Every record's id, with the digest that `upsert` was given or None: lists of a few thousand pairs.

        In no order; no more than one list is held in memory. A record that is there from beginning to end
        comes once, whatever is written or deleted meanwhile; of records that come or go meanwhile, any may be
        missing. So the records that one has just met may be deleted between two lists.
        """
        return self._table.inventory()

    def delete(self, ids: Iterable[str] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
        """Remove records by id or by filter; returns how many were there. Missing ids are no error."""
        if (ids is None) == (where is None):
            raise InputError(
                "expected either ids or where= to delete by, got " + ("none" if ids is None else "both")
            )
        if ids is not None:
            return self._table.delete(list(dict.fromkeys(checks.ids(ids))))
        if not where:
            raise InputError(
                "an empty filter would delete every record; if that is meant, drop the collection "
                "and create it again"
            )
        condition = checks.where_filter(where)
        assert condition is not None
        return self._table.delete_where(condition)

    def count(self, *, where: Mapping[str, Any] | None = None) -> int:
        """Number of records, or of those that match `where`."""
        return self._table.count(checks.where_filter(where))

    def build_index(self, *, progress: Progress | None = None) -> None:
        """Build the layout's index, or repair it, and check that searches run on it.

        Call it after loading: an index that exists while rows arrive slows loading down many times over.
        Raises IndexFailure.
        """
        self._table.build_index(progress)

    def index_state(self) -> IndexState:
        """What has become of the index, by the store's own account."""
        return self._table.index_state()

    def sizes(self) -> Sizes:
        """Bytes on disk."""
        return self._table.sizes()

    def evaluate(
        self,
        *,
        k: int = 10,
        queries: ArrayLike | None = None,
        sample: int = 100,
        seed: int = 0,
        seconds: float | None = None,
    ) -> evaluate.Report:
        """Recall against exact search, latency, and whether the index is used.

        `queries`: float (m, dim); without them, `sample` stored records, each left out of its own results.
        Exact search of a large collection takes its time: after `seconds`, no further query is asked, and the
        report counts those that were.
        """
        wanted = checks.hits_wanted(k)
        stored = None
        if queries is not None:
            stored = self._stored(checks.vectors(queries, space=self.space, what="queries"), "queries")
        elif sample < 1:
            raise InputError(f"expected a sample of 1 or more records, got {sample}")
        return evaluate.evaluate(
            self._table, k=wanted, queries=stored, sample=sample, seed=seed, seconds=seconds
        )

    def close(self) -> None:
        """Give back what this collection holds open; the store stays open."""
        self._table.close()
