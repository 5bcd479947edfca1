"""A collection copied from one store to another: planned, resumable, compared at the end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks, conform, planner
from .backends import Table
from .collection import Collection
from .comparing import Fingerprint, chosen, conformed, differing, fingerprint, reduced
from .errors import CollectionExists, CollectionNotFound, InputError, PlanError, RecallMissed, StoreError
from .manifest import Manifest, Tuned, check_name
from .planner import Plan, Wishes
from .store import Place, Store
from .types import Batch, Hit, IndexState, Layout, Progress, Space

if TYPE_CHECKING:
    from .types import Floats, Metric

_COMPARED = 200  # records that are compared in full at the end
_ASKED, _K = 10, 10  # records whose neighbours are looked for on both sides, and how many of them
_SECONDS = 60.0  # no further neighbours are looked for after it: exact search of millions takes long
SAMPLE = 20_000  # vectors that a layout is planned on, and a PCA is fitted on
# stores add in float32 and in different orders; relative to the vectors' lengths
_ROUNDING = 1e-5
# once more where the source was written to meanwhile
_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did.

    `records` are in `collection` at `to` now, which is as `source` is: its URL and name. `written` of them by
    this run; what an interrupted one had written before was compared. `removed`: what an interrupted run had
    copied and is no longer in the source. `compared`: records that were read back from both and were the same
    to the bit; `neighbours`: how many of them were searched for on both sides, exactly, and found the same.
    `tuned`: how the search width was found, None where no recall was asked for. `notes`: what should be known
    of it, in sentences.
    """

    source: str
    to: str
    collection: str
    records: int
    written: int
    removed: int
    compared: int
    neighbours: int
    index: IndexState
    tuned: Tuned | None
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        said = f"{self.records:,} records of {self.source} are in {self.collection} at {self.to}"
        parts = [f"{self.written:,} written now"]
        if self.removed:
            parts.append(f"{self.removed:,} removed that are no longer in the source")
        return f"{said}: {', '.join(parts)}"


def copy(
    source: Collection,
    to: Store,
    *,
    name: str | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    disk: int | str | None = None,
    latency: float | None = None,
    nodes: int | None = None,
    recall: float | None = None,
    layout: Layout | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], object] | None = None,
) -> Copied:
    """The collection `source` in another store, or under another name: planned, loaded, indexed, compared.

    `to` may hold no collection `name` (the source's own, if not given). Ids, vectors, documents, metadata and
    digests are copied, and so is what the source says of itself (model, how texts are cut, fields to filter
    by), so that an ingest that has filled the source goes on there, and embeds nothing again. `layout`
    overrules the plan, which is made for `rows` records (those that are there, if not given); `memory`,
    `disk`, `latency`, `nodes` and `recall` as for `Store.create`; without a recall, the source's. Vectors
    that the source keeps shortened or halved are copied as they are.

    Reading and writing overlap; memory holds a few batches. The source is only read. Whatever ends it, the
    same call goes on where it was: it compares what is there, and writes what is missing. Until all of it has
    been compared, the collection's manifest says of which source it is a copy. Where the source is written to
    meanwhile, what was copied before is brought up to date once, and `notes` says so.

    At the end, ids and digests of all records are compared, 200 records in full, and the nearest neighbours
    of 10 of them, by exact search on both sides. Once there, the same call compares and writes nothing.

    `progress`: the stages "copying" and "comparing", and those of building the index. `on_plan` is given the
    plan of a new collection before records are written.

    Raises CollectionExists where `name` is something else, PlanError, InputError, VectorError where the
    layout cannot hold a vector; StoreError, also where source and copy differ at the end because the source
    is being written to: then the next call goes on.
    """
    begun = monotonic()
    name = check_name(source.name if name is None else name)
    target_recall = planner.share(recall)
    if name == source.name and source.url in to.urls:
        raise InputError(
            f"expected another store or another name for the copy of {name!r} in {source.url}, got its own"
        )
    # what was opened, not whatever is there later: a layout that changes meanwhile raises LayoutChanged
    table = table_of(source)
    origin = f"{source.url} {source.name}"
    try:
        target = to.open(name)
    except CollectionNotFound:
        wishes: Wishes = {
            "rows": table.count() if rows is None else rows,
            "memory": memory,
            "disk": disk,
            "latency": latency,
            "nodes": nodes,
            "recall": table.manifest.recall if target_recall is None else target_recall,
            "seed": seed,
            "progress": progress,
        }
        target = made(
            table.manifest,
            lambda: table.sample(SAMPLE, seed=seed).vectors,
            to,
            name,
            origin,
            count=table.count(),
            layout=layout,
            wishes=wishes,
        )
        fresh = True
        if on_plan is not None and target.plan is not None:
            on_plan(target.plan)
    else:
        fresh = False
        if target.manifest.copy_of != origin:
            return _settled(table, target, origin, seed=seed, seconds=lambda: monotonic() - begun)
        _check_begun(table.manifest, target, origin, layout)
        if target_recall is not None and target_recall != target.manifest.recall:
            goal = table_of(target)
            goal.keep(replace(goal.manifest, recall=target_recall))
    run = _Run(table, table_of(target), origin, progress)
    run.fill(fresh=fresh)
    compared, neighbours = run.verify(seed)
    with warnings.catch_warnings():
        # whether the recall was met stands in what is returned
        warnings.simplefilter("ignore", RecallMissed)
        target.build_index(progress=progress)
    goal = table_of(target)
    goal.keep(replace(goal.manifest, copy_of=None))
    return Copied(
        source=origin,
        to=target.url,
        collection=name,
        records=goal.count(),
        written=run.written,
        removed=run.removed,
        compared=compared,
        neighbours=neighbours,
        index=goal.index_state(),
        tuned=goal.manifest.tuned,
        seconds=monotonic() - begun,
        notes=(*notes(table.manifest, goal.manifest), *run.notes),
    )


def table_of(collection: Collection) -> Table:
    """What is below a collection: stored vectors pass as they are, which its own calls would shorten."""
    return collection._now(lambda table: table)


# --- where it goes -----------------------------------------------------------------------------------


def made(
    old: Manifest,
    sampled: Callable[[], Floats],
    to: Store,
    name: str,
    origin: str,
    *,
    count: int,
    layout: Layout | None,
    wishes: Wishes,
) -> Collection:
    """A new, empty collection for the `count` records that `old` is of, marked as an unfinished copy of
    `origin`.

    `sampled` gives some of its stored vectors, up to `SAMPLE` rows; it is called where they are needed.
    Raises PlanError, InputError.
    """
    seed = wishes["seed"]
    # what was cut off at the door is gone: the rest is all that can be planned with
    space = old.space if old.reduction is None else replace(old.space, dim=old.stored_dim, model=None)
    plan = None
    if layout is None:
        target = wishes["recall"]
        sample = None
        if target is not None and count >= planner.WORTHWHILE:
            sample = sampled()
        wishes = {
            **wishes,
            "metric": space.metric,
            "model": space.model,
            # a shortened vector is not shortened a second time at the door
            "nested": space.nested if old.reduction is None else (),
            "sample": sample,
        }
        number, plan = planner.plan_places(
            space.dim,
            places=[(place.url, place.limits) for place in to.places],
            wishes=wishes,
            speeds=[place.speeds for place in to.places],
        )
        place, planned = to.places[number], plan.layout
        if old.reduction is not None and planned.shorten is not None:
            raise PlanError(
                f"the vectors of {origin} were shortened to {old.stored_dim:,} dimensions already, and no "
                f"layout on {place.url} holds them as they are within the budgets; give more, or a layout"
            )
        space = replace(old.space, nested=plan.space.nested) if old.reduction is None else old.space
        kept = _as_kept(old, planned, place, space)
        if reason := place.limits.objection(space, kept):
            raise PlanError(f"the layout of {origin} cannot be kept on {place.url}: {reason}")
        rows = plan.rows
    else:
        space, kept, rows = old.space, layout, planner.whole_number(wishes["rows"], "rows", 0)
        if old.reduction is not None and layout.shorten != old.layout.shorten:
            raise InputError(
                f"expected a layout that keeps the vectors of {origin} shortened as they are, to "
                f"{old.stored_dim:,} dimensions: what was cut off is gone"
            )
        place = _able(to, space, layout)
    fitted = (kept.shorten, kept.index.shorten if kept.index else None)
    rows_of = None
    if any(one is not None and one.method == "pca" for one in fitted):
        rows_of = sampled()
    if old.reduction is None:
        reduction, inner = conform.fitted(space, kept, rows_of, seed=seed)
    else:
        short = replace(space, dim=old.stored_dim)
        reduction = old.reduction
        inner = conform.fitted(short, replace(kept, shorten=None), rows_of, seed=seed)[1]
    manifest = Manifest(
        name,
        space,
        kept,
        rows,
        reduction,
        inner,
        filterable=old.filterable,
        chunking=old.chunking,
        recall=wishes["recall"],
        copy_of=origin,
    )
    return Collection(place.ask(lambda backend: backend.create(manifest)), place=place, plan=plan)


def _as_kept(old: Manifest, planned: Layout, place: Place, space: Space) -> Layout:
    """The planned layout, with vectors that the source shortened or halved as they are, where that can be."""
    if old.reduction is not None:
        planned = replace(planned, shorten=old.layout.shorten)
    if old.layout.element == "float32":
        return planned
    halved = replace(planned, element="float16")
    # where the index needs whole components, they are stored as such: nothing more is lost
    return planned if place.limits.objection(space, halved) else halved


def _able(to: Store, space: Space, layout: Layout) -> Place:
    """The first place that can hold the layout. Raises PlanError."""
    reasons = []
    for place in to.places:
        reason = place.limits.objection(space, layout)
        if reason is None:
            return place
        reasons.append(f"on {place.url}: {reason}")
    raise PlanError(f"this layout cannot be made {'; '.join(reasons)}")


def _check_begun(old: Manifest, target: Collection, origin: str, layout: Layout | None) -> None:
    """Raise InputError where an unfinished copy cannot be gone on with."""
    new = target.manifest
    where = f"the unfinished copy of {origin}, {new.name!r} in {target.url},"
    remedy = f"drop {new.name!r} there, and copy again"
    if replace(old.space, nested=new.space.nested) != new.space or (
        old.reduction is not None and reduced(old) != reduced(new)
    ):
        raise InputError(f"{where} was begun when the source held other vectors; {remedy}")
    if layout is not None and _built(layout) != _built(new.layout):
        raise InputError(f"{where} was begun with another layout; leave it out to go on, or {remedy}")


def _built(layout: Layout) -> Layout:
    """The layout but for its search widths, which tuning changes."""
    index = None if layout.index is None else replace(layout.index, ef_search=0, probes=0)
    return replace(layout, index=index, oversample=1)


def _settled(
    table: Table, target: Collection, origin: str, *, seed: int, seconds: Callable[[], float]
) -> Copied:
    """What is to be said where the copy is complete already. Raises CollectionExists where it is none."""
    goal = table_of(target)
    of = goal.manifest.copy_of
    taken = f"there is already a collection {goal.manifest.name!r} in {target.url}, and it "
    if of is None:
        taken += f"does not hold what {origin} does"
    else:
        taken += f"is an unfinished copy of {of}"
    refusal = CollectionExists(f"{taken}; drop it, or give the copy another name")
    try:
        _check_begun(table.manifest, target, origin, None)
    except InputError:
        raise refusal from None
    if of is not None or table.count() != goal.count() or fingerprint(table) != fingerprint(goal):
        raise refusal
    run = _Run(table, goal, origin, None)
    try:
        compared, neighbours = run.verify(seed)
    except StoreError:
        raise refusal from None
    return Copied(
        source=origin,
        to=target.url,
        collection=target.name,
        records=goal.count(),
        written=0,
        removed=0,
        compared=compared,
        neighbours=neighbours,
        index=goal.index_state(),
        tuned=goal.manifest.tuned,
        seconds=seconds(),
        notes=("it was there already: nothing was written", *notes(table.manifest, goal.manifest)),
    )


def notes(old: Manifest, new: Manifest) -> Iterator[str]:
    """What the copy keeps less of than the source, and what the source has kept less of."""
    if old.reduction is not None:
        yield (
            f"the source keeps its vectors shortened from {old.space.dim:,} to {old.stored_dim:,} "
            f"dimensions; they were copied as they are"
        )
    elif new.reduction is not None:
        yield (
            f"vectors are shortened from {new.space.dim:,} to {new.stored_dim:,} dimensions in the copy: "
            f"what was cut off is in the source alone"
        )
    if new.layout.element != old.layout.element:
        kept = "half precision" if new.layout.element == "float16" else "full precision"
        yield f"vectors of {old.layout.element} in the source are kept in {kept} ({new.layout.element}) here"


# --- what is moved -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """One run of copying `table` into `goal`: what it has done so far."""

    table: Table
    goal: Table
    origin: str
    progress: Progress | None
    written: int = 0
    removed: int = 0
    notes: list[str] = field(default_factory=list)

    def fill(self, *, fresh: bool) -> None:
        """Write whatever is missing or differs, remove what is not in the source. Raises StoreError."""
        changed = False
        for _ in range(_ROUNDS):
            seen = self._pass(fresh=fresh)
            there, here = fingerprint(self.table), fingerprint(self.goal)
            changed |= there != seen
            if there != here:
                self.removed += self._prune()
                there, here = fingerprint(self.table), fingerprint(self.goal)
            fresh = False
            if there == here:
                break
        else:
            raise StoreError(
                f"{self.origin} now holds {there.records:,} records, its copy {here.records:,}, and they are "
                f"not the same: the source is being written to; copy again while nobody writes, which goes "
                f"on from here"
            )
        if changed:
            self.notes.append(
                "the source was written to while it was copied; the copy has the records that it holds now"
            )

    def _pass(self, *, fresh: bool) -> Fingerprint:
        """Go through the source once, and write what is not there; what was seen of it."""
        old, new = self.table.manifest, self.goal.manifest
        space = replace(old.space, dim=old.stored_dim)
        seen, total = Fingerprint(), self.table.count()
        self._tell("copying", 0, total)
        with closing(_ahead(self.table.scan(None, vectors=True))) as batches:
            for batch in batches:
                # a table of others holds what nobody has checked
                checks.ids(batch.ids)
                checks.vectors(batch.vectors, space=space, what=f"the stored vectors of {self.origin}")
                checks.documents(batch.documents, n=len(batch))
                checks.metadata(batch.metadata, n=len(batch))
                seen.add(zip(batch.ids, batch.digests, strict=True))
                part = conformed(batch, old, new)
                if not fresh:
                    part = chosen(part, differing(part, self.goal.read(part.ids), new))
                if len(part):
                    self.goal.write(part)
                self.written += len(part)
                self._tell("copying", seen.records, max(total, seen.records))
        return seen

    def _prune(self) -> int:
        """Remove from the copy what is not in the source; how many records that were."""
        gone = 0
        for part in self.goal.inventory():
            ids = [id for id, _ in part]
            for start in range(0, len(ids), _COMPARED):
                some = ids[start : start + _COMPARED]
                there = set(self.table.read(some).ids)
                if stale := [id for id in some if id not in there]:
                    gone += self.goal.delete(stale)
        return gone

    def verify(self, seed: int) -> tuple[int, int]:
        """How many records were compared in full, and of how many the neighbours. Raises StoreError."""
        old, new = self.table.manifest, self.goal.manifest
        sample = self.table.sample(_COMPARED, seed=seed)
        found = self.goal.read(sample.ids)
        if differ := differing(conformed(sample, old, new), found, new):
            raise StoreError(
                f"{len(differ):,} of {len(sample):,} records of {self.origin} that were compared differ from "
                f"their copy, {sample.ids[differ[0]]!r} among them: the source is being written to; copy "
                f"again while nobody writes, which goes on from here"
            )
        if found.vectors.tobytes() == sample.vectors.tobytes():
            return len(sample), self._neighbours(sample)
        if reduced(old) == reduced(new) and old.layout.element == new.layout.element:
            self.notes.append(
                "half precision has rounded vectors once more: this store scales them to length 1"
            )
        # what is near by less of each vector is not what is near by all of it
        return len(sample), 0

    def _neighbours(self, sample: Batch) -> int:
        """For how many of these records both sides find the same neighbours. Raises StoreError."""
        count, started = min(_ASKED, len(sample)), monotonic()
        for row in range(count):
            self._tell("comparing", row, count)
            if row and monotonic() - started > _SECONDS:
                return row
            query = np.ascontiguousarray(sample.vectors[row : row + 1])
            one, other = (self._found(table, query) for table in (self.table, self.goal))
            if not self._agree(query, one, other):
                raise StoreError(
                    f"the {_K} nearest neighbours of {sample.ids[row]!r} are not the same in {self.origin} "
                    f"and in its copy; copy again while nobody writes, which goes on from here"
                )
        self._tell("comparing", count, count)
        return count

    @staticmethod
    def _found(table: Table, query: Floats) -> list[Hit]:
        short = table.manifest.projected(query)
        return table.search(query, short, k=_K, where=None, exact=True)[0]

    def _agree(self, query: Floats, one: list[Hit], other: list[Hit]) -> bool:
        """Whether both are equally near, as float64 counts it: ties may be told in another order."""
        ids = list(dict.fromkeys(hit.id for hit in (*one, *other)))
        batch = self.table.read(ids)
        if list(batch.ids) != ids or len(one) != len(other):
            return False
        scores, rounding = _scores(query, batch.vectors, self.table.manifest.space.metric)
        near = dict(zip(ids, scores, strict=True))
        first, second = (sorted(near[hit.id] for hit in hits) for hits in (one, other))
        return bool(np.allclose(first, second, rtol=0, atol=rounding))

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)


def _scores(query: Floats, vectors: Floats, metric: Metric) -> tuple[list[float], float]:
    """Scores of vectors (n, d) for a query (1, d), larger for nearer, and what rounding may make of them."""
    left, right = query[0].astype(np.float64), vectors.astype(np.float64)
    lengths = np.linalg.norm(right, axis=1)
    longest, length = float(lengths.max(initial=0)), float(np.linalg.norm(left))
    if metric == "l2":
        return (-np.linalg.norm(right - left, axis=1)).tolist(), _ROUNDING * (longest + length)
    products = right @ left
    if metric == "ip":
        return products.tolist(), _ROUNDING * longest * length
    return (products / np.maximum(lengths * length, np.finfo(np.float64).tiny)).tolist(), _ROUNDING


def _ahead(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    """The same batches; the next one is read in a thread while the caller uses the one before."""
    with ThreadPoolExecutor(1, thread_name_prefix="vecbridge-copy") as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch
