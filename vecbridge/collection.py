"""Collections: what is done with records. It checks, reduces and delegates; no SQL is spoken here."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from numpy.typing import ArrayLike

from . import adopting, checks, conform, evaluate, planner, replanning, tuning
from .backends import Backend, Table
from .drift import Drift, drift
from .errors import (
    DimensionMismatch,
    InputError,
    LayoutChanged,
    ModelMismatch,
    PlanError,
    RecallMissed,
)
from .limits import Limits
from .manifest import Manifest
from .planner import Plan, Wishes
from .speeds import Speeds
from .tuning import Step, Tuning
from .types import Batch, Hit, IndexState, Layout, Metadata, Progress, Sizes, Space

if TYPE_CHECKING:
    from .types import Floats

T = TypeVar("T")

# seconds for which a search width is looked for when an index has been built: exact search of a million wide
# rows takes 15 s a query
_TUNING = 600.0
# stored vectors on which a new layout is planned
_SAMPLE = 20_000


class Home(Protocol):
    """The place where a collection lies."""

    @property
    def url(self) -> str:
        """Where this is, without password."""

    @property
    def limits(self) -> Limits:
        """What can be held and indexed there."""

    @property
    def speeds(self) -> Speeds | None:
        """How fast it is, where that was measured."""

    def ask(self, question: Callable[[Backend], T]) -> T:
        """What the question returns when it is put to the backend."""


class Collection:
    """One set of records: ids, vectors, documents, metadata. Comes from `Store.create` or `Store.open`.

    `plan`: the Plan that it was created by, or laid out anew, in this process; else None.
    """

    def __init__(self, table: Table, *, place: Home, plan: Plan | None = None) -> None:
        self._table = table
        self._place = place
        self._opening = threading.Lock()
        self.plan = plan

    @property
    def url(self) -> str:
        """The place where it lies, without password."""
        return self._place.url

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

        def write(table: Table) -> None:
            stored = conform.stored(table.manifest, matrix, "vectors")
            short = conform.projected(table.manifest, stored, "vectors")
            table.write(Batch(names, stored, texts, objects, marks, short))

        self._now(write)
        return len(names)

    def _now(self, use: Callable[[Table], T]) -> T:
        """What `use` makes of the records; once more where they were laid out anew since they were opened."""
        table = self._table
        try:
            return use(table)
        except LayoutChanged:
            with self._opening:
                # another thread may have opened it meanwhile; searches of others may still run on the old one
                if self._table is table:
                    opened = self._place.ask(lambda backend: backend.open(table.manifest.name))
                    try:
                        _check_same(table.manifest, opened.manifest)
                    except InputError:
                        opened.close()
                        raise
                    self._table = opened
            return use(self._table)

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

        def search(table: Table) -> list[list[Hit]]:
            stored = conform.stored(table.manifest, queries, "queries")
            short = conform.projected(table.manifest, stored, "queries")
            # a query that lies across the projection has no neighbours in it
            lost = short is not None and not short.any(axis=1).all()
            return table.search(stored, short, k=wanted, where=condition, exact=exact or lost)

        return self._now(search)

    def get(self, ids: Iterable[str]) -> Batch:
        """The records of these ids in the order given; ids that are not there are left out."""
        wanted = list(dict.fromkeys(checks.ids(ids)))
        return self._now(lambda table: table.read(wanted))

    def digests(self, ids: Iterable[str]) -> dict[str, bytes]:
        """The digests that `upsert` was given, for those of these ids that are there and have one."""
        wanted = checks.ids(ids)
        return self._now(lambda table: table.digests(wanted))

    def inventory(self) -> Iterator[list[tuple[str, bytes | None]]]:
        """Every record's id, with the digest that `upsert` was given or None: lists of a few thousand pairs.

        In no order; no more than one list is held in memory. A record that is there from beginning to end
        comes once, whatever is written or deleted meanwhile; of records that come or go meanwhile, any may be
        missing. So the records that one has just met may be deleted between two lists.
        """
        return self._table.inventory()

    def scan(self, *, where: Mapping[str, Any] | None = None, vectors: bool = True) -> Iterator[Batch]:
        """Every record, or every one that matches `where`: batches of some megabytes, none of them empty.

        In no order; no more than one batch is held in memory, and nothing is held open between two of them.
        The same promise as `inventory`. Without `vectors`, none is read, and those of each batch are (n, 0).
        Raises LayoutChanged where the collection is laid out anew meanwhile: begin again then.
        """
        condition = checks.where_filter(where)

        def batches() -> Iterator[Batch]:
            def begun(table: Table) -> tuple[Batch | None, Iterator[Batch]]:
                rest = table.scan(condition, vectors=vectors)
                return next(rest, None), rest

            first, rest = self._now(begun)
            if first is not None:
                yield first
                yield from rest

        return batches()

    def delete(self, ids: Iterable[str] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
        """Remove records by id or by filter; returns how many were there. Missing ids are no error."""
        if (ids is None) == (where is None):
            raise InputError(
                "expected either ids or where= to delete by, got " + ("none" if ids is None else "both")
            )
        if ids is not None:
            gone = list(dict.fromkeys(checks.ids(ids)))
            return self._now(lambda table: table.delete(gone))
        if not where:
            raise InputError(
                "an empty filter would delete every record; if that is meant, drop the collection "
                "and create it again"
            )
        condition = checks.where_filter(where)
        assert condition is not None
        return self._now(lambda table: table.delete_where(condition))

    def count(self, *, where: Mapping[str, Any] | None = None) -> int:
        """Number of records, or of those that match `where`."""
        condition = checks.where_filter(where)
        return self._now(lambda table: table.count(condition))

    def build_index(self, *, progress: Progress | None = None) -> Tuning | None:
        """Build the layout's index, or repair it, and check that searches run on it.

        Call it after loading: an index that exists while rows arrive slows loading down many times over.
        Where a recall was asked for when the collection was made, the search width is then tuned for it, if
        that has not been done for about as many records; what was found comes back, and RecallMissed is
        warned of where it is not enough. Raises IndexFailure.
        """
        self._now(lambda table: table.build_index(progress))
        target = self.manifest.recall
        if target is None or not self._stale(target):
            return None
        found = self.tune(recall=target, seconds=_TUNING, progress=progress)
        if not found.tuned.met:
            warnings.warn(f"{self.name}: {' '.join((str(found), *found.advice))}", RecallMissed, stacklevel=2)
        return found

    def _stale(self, target: float) -> bool:
        """Whether the search width was not tuned for this target and about so many records."""
        if self.layout.index is None:
            return False
        tuned, rows = self.manifest.tuned, self.count()
        if not rows:
            return False
        return tuned is None or tuned.target != target or not rows / 1.5 <= tuned.rows <= rows * 1.5

    def index_state(self) -> IndexState:
        """What has become of the index, by the store's own account."""
        return self._now(lambda table: table.index_state())

    def sizes(self) -> Sizes:
        """Bytes on disk."""
        return self._now(lambda table: table.sizes())

    def evaluate(
        self,
        *,
        k: int = 10,
        queries: ArrayLike | None = None,
        where: Mapping[str, Any] | None = None,
        sample: int = 100,
        seed: int = 0,
        seconds: float | None = None,
    ) -> evaluate.Report:
        """Recall against exact search, latency, and whether the index is used.

        `queries`: float (m, dim); without them, `sample` stored records, each left out of its own results,
        and as many blends of them where the index walks a graph: the recall is that of whichever find less.
        `where`: measure searches with this filter; the report says what share of the records match.
        Exact search of a large collection takes its time: after `seconds`, no further query is asked, and the
        report counts those that were.
        """
        wanted, matrix = checks.hits_wanted(k), self._matrix(queries, sample)
        return self._now(
            lambda table: evaluate.evaluate(
                table,
                k=wanted,
                queries=_asked(table, matrix),
                where=where,
                sample=sample,
                seed=seed,
                seconds=seconds,
            )
        )

    def _matrix(self, queries: ArrayLike | None, sample: int) -> Floats | None:
        """The queries to measure with, float32 (m, dim); None to take `sample` stored records."""
        if queries is not None:
            return checks.vectors(queries, space=self.space, what="queries")
        if sample < 1:
            raise InputError(f"expected a sample of 1 or more records, got {sample}")
        return None

    def drift(self, vectors: ArrayLike) -> Drift | None:
        """How well vectors fit the collection's PCA, at the door or in its index; None where it has none.

        `vectors`: float (n, dim), as the model returns them, some hundred or more. `evaluate` looks at stored
        vectors by itself where the PCA is in the index; of those that were shortened at the door, what is
        stored says nothing.
        """
        matrix = checks.vectors(vectors, space=self.space)
        at_door = self.manifest.reduction is not None
        stored = matrix if at_door else conform.stored(self.manifest, matrix, "vectors")
        return drift(self.manifest, stored, door=at_door)

    def tune(
        self,
        *,
        recall: float | None = None,
        k: int = 10,
        queries: ArrayLike | None = None,
        sample: int = 400,
        seed: int = 0,
        seconds: float | None = None,
        progress: Progress | None = None,
    ) -> Tuning:
        """The smallest search width that finds enough, kept with the collection for every later search.

        `recall`: the recall@k that is wanted; that which was asked for when the collection was made, if not
        given. `queries`: float (m, dim); without them, what `evaluate` asks. One half of them chooses, the
        other confirms: see `vecbridge.tuning`. Where nothing meets the target, the width that finds most is
        kept, and `advice` says what would meet it. Others who have the collection open search as before until
        they open it again. Raises InputError where there is nothing to tune by, IndexFailure where the index
        is not in use.
        """
        target = self.manifest.recall if recall is None else planner.share(recall)
        if target is None:
            raise InputError(
                f"expected the recall@{k} that is wanted, as recall=0.95 (in a terminal --recall 0.95), "
                f"got none: {self.name} was made without one"
            )
        wanted, matrix = checks.hits_wanted(k), self._matrix(queries, sample)
        found = self._now(
            lambda table: tuning.tune(
                table,
                recall=target,
                k=wanted,
                queries=_asked(table, matrix),
                sample=sample,
                seed=seed,
                seconds=seconds,
                limits=self._place.limits,
                progress=progress,
            )
        )
        if found.tuned.met or self.layout.index is None:
            return found
        return replace(found, advice=(*found.advice, self._better(target, wanted, seed)))

    def _better(self, target: float, k: int, seed: int) -> str:
        """What `replan` would make of a collection whose layout does not find enough, in a sentence."""
        if not self.manifest.whole:
            return "what was cut off at the door is gone: only loading again can bring it back"
        if self.manifest.adopted is not None and not self.manifest.adopted.index:
            return (
                "the graph is its owner's: search with exact=True, or copy the collection to one of "
                "vecbridge's own with this recall (vecbridge copy --recall)"
            )
        try:
            plan = self.proposal(recall=target, k=k, seed=seed)
        except (PlanError, InputError) as error:
            return f"no other layout is known to: {error}"
        if self.manifest.adopted is not None:
            return "drop the collection and adopt its table again with this recall: another index may find it"
        if plan.layout == self.layout:
            return "no other layout here promises more: search with exact=True"
        expected = "" if plan.expected is None else f", expected recall {plan.expected}"
        return f"replan() would make it: {plan.describe()}{expected}"

    def sweep(
        self,
        *,
        k: int = 10,
        queries: ArrayLike | None = None,
        sample: int = 100,
        seed: int = 0,
        seconds: float | None = None,
    ) -> tuple[Step, ...]:
        """Recall and latency at search widths from narrow to wide; nothing without an index."""
        wanted, matrix = checks.hits_wanted(k), self._matrix(queries, sample)
        return self._now(
            lambda table: tuning.sweep(
                table,
                k=wanted,
                queries=_asked(table, matrix),
                sample=sample,
                seed=seed,
                seconds=seconds,
                limits=self._place.limits,
            )
        )

    def proposal(
        self,
        *,
        rows: int | None = None,
        memory: int | str | None = None,
        disk: int | str | None = None,
        latency: float | None = None,
        recall: float | None = None,
        k: int = 10,
        sample: int = _SAMPLE,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Plan:
        """The layout that would be chosen for these records now, and why; `replan` carries it out.

        `rows`: how many records there will be, those that are there if not given. `memory`, `disk` and
        `latency` as for `Store.create`. `recall`: the recall@k that is wanted, that which was asked for when
        the collection was made, if not given; with one, the plan rests on what is measured on up to `sample`
        stored vectors, chosen by `seed`, if there are 500 or more. Raises PlanError; InputError where whole
        vectors are not stored.
        """
        if not self.manifest.whole:
            raise InputError(
                f"the vectors of {self.name} were shortened or halved when they were stored: the rest is "
                f"gone, and only loading again can bring it back; an index alone can be changed by "
                f"replan(layout=...)"
            )
        space, target = self.space, self.manifest.recall if recall is None else planner.share(recall)
        stored = None
        if target is not None and self.count() >= planner.WORTHWHILE:
            stored = self._now(lambda table: table.sample(sample, seed=seed)).vectors
        wishes: Wishes = {
            "rows": self.count() if rows is None else rows,
            "metric": space.metric,
            "model": space.model,
            "nested": space.nested,
            "memory": memory,
            "disk": disk,
            "latency": latency,
            "recall": target,
            "k": k,
            "sample": stored,
            "seed": seed,
            "progress": progress,
        }
        limits = adopting.limits(self._place.limits, self.manifest)
        places, speeds = [(self.url, limits)], [self._place.speeds]
        return planner.plan_places(space.dim, places=places, wishes=wishes, speeds=speeds)[1]

    def replan(
        self,
        plan: Plan | None = None,
        *,
        layout: Layout | None = None,
        sample: int = _SAMPLE,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Lay the collection out anew beside the old layout, and switch in one step; searches go on.

        `plan`: what `proposal` gave, which is asked for one where neither is given; `layout` overrules it. A
        PCA is fitted on up to `sample` stored vectors, chosen by `seed`, also where the layout stays the
        same. Where a recall is wanted, the search width is tuned for it afterwards. Writers wait meanwhile,
        or are refused where they would wait for too long; what a Qdrant server cannot keep off is found
        before the switch, which then does not happen. Needs room for both.
        Raises PlanError, InputError, StoreError; the collection is then as it was.
        """
        if plan is not None and layout is not None:
            raise InputError("expected a plan or a layout to lay the collection out by, got both")
        old, space = self.manifest, self.space
        rows, target = self.count(), old.recall
        if layout is None:
            plan = self.proposal(seed=seed, progress=progress) if plan is None else plan
            if plan.space.dim != space.dim:
                raise InputError(
                    f"expected a plan for vectors of {space.dim:,} dimensions, got one for {plan.space.dim:,}"
                )
            layout, space, rows = plan.layout, replace(space, nested=plan.space.nested), plan.rows
            target = target if plan.target is None else plan.target
        if reason := self._place.limits.objection(space, layout):
            raise PlanError(f"this layout cannot be made on {self.url}: {reason}")
        shortened = (layout.shorten, layout.index.shorten if layout.index else None)
        stored = None
        if any(one is not None and one.method == "pca" for one in shortened):
            stored = self._now(lambda table: table.sample(sample, seed=seed)).vectors
        wanted = replace(old, space=space, layout=layout, rows=rows, recall=target)
        manifest = replanning.anew(old, wanted, sample=stored, seed=seed)
        self._table = self._now(
            lambda table: self._place.ask(
                lambda backend: replanning.replan(backend, table, manifest, progress=progress)
            )
        )
        self.plan = plan
        self.build_index(progress=progress)

    def close(self) -> None:
        """Give back what this collection holds open; the store stays open."""
        self._table.close()


def table_of(collection: Collection) -> Table:
    """What is below a collection: stored vectors pass as they are, which its own calls would shorten.

    It is what was opened, not whatever is there later: a layout that changes raises LayoutChanged.
    """
    return collection._table


def _check_same(old: Manifest, new: Manifest) -> None:
    """Raise where what goes by a name now holds other vectors than what went by it when it was opened."""
    one, other = old.space, new.space
    if (one.dim, one.metric, one.model) == (other.dim, other.metric, other.model):
        return
    said = [f"{space.dim:,} dimensions of {space.model or 'an unknown model'}" for space in (one, other)]
    raise (ModelMismatch if one.model != other.model else DimensionMismatch)(
        f"collection {old.name!r} was opened for vectors of {said[0]} and has got others since, {said[1]}: "
        f"open it again, and embed with that model"
    )


def _asked(table: Table, queries: Floats | None) -> Floats | None:
    """Queries that were given, as the collection stores vectors."""
    return None if queries is None else conform.stored(table.manifest, queries, "queries")
