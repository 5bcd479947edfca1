"""A collection copied from one store to another: planned, resumable, compared at the end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks, planner, receiving, unfinished
from .backends import Table
from .collection import Collection, table_of
from .comparing import Fingerprint, chosen, conformed, differing, fingerprint, reduced
from .errors import InputError, StoreError
from .manifest import Tuned, check_name
from .planner import Plan, Wishes
from .store import Store
from .types import Batch, Hit, IndexState, Layout, Progress

if TYPE_CHECKING:
    from .types import Floats, Metric

_COMPARED = 200  # records that are compared in full at the end
_ASKED, _K = 10, 10  # records whose neighbours are looked for on both sides, and how many of them
_SECONDS = 60.0  # no further neighbours are looked for after it: exact search of millions takes long
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
    wanted = planner.share(recall)
    if name == source.name and source.url in to.urls:
        raise InputError(
            f"expected another store or another name for the copy of {name!r} in {source.url}, got its own"
        )
    unfinished.check_whole(source.manifest, source.url)
    table = table_of(source)
    origin = unfinished.of_collection(source.url, source.name)
    with ExitStack() as held:
        target = receiving.there(to, name)
        fresh = target is None
        if target is None:
            wishes: Wishes = {
                "rows": table.count() if rows is None else rows,
                "memory": memory,
                "disk": disk,
                "latency": latency,
                "nodes": nodes,
                "recall": table.manifest.recall if wanted is None else wanted,
                "seed": seed,
                "progress": progress,
            }
            target = receiving.made(
                table.manifest,
                lambda: table.sample(receiving.SAMPLE, seed=seed).vectors,
                to,
                name,
                origin,
                count=table.count(),
                layout=layout,
                wishes=wishes,
                on_plan=on_plan,
            )
        held.callback(target.close)
        run = _Run(table, target, to, origin, progress)
        if target.manifest.copy_of != origin:
            compared, neighbours = run.settled(seed)
        else:
            receiving.check_begun(table.manifest, target, origin, layout)
            receiving.aim(target, wanted)
            run.fill(fresh=fresh)
            compared, neighbours = run.verify(seed)
            receiving.finish(target, progress)
        goal = table_of(target)
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
            notes=(*run.notes, *receiving.notes(table.manifest, goal.manifest)),
        )


class _Differs(StoreError):
    """What was compared is not the same; no other failure of a store is one."""


@dataclass(slots=True)
class _Run:
    """One run of copying `table` into `target`: what it has done so far."""

    table: Table
    target: Collection
    to: Store
    origin: str
    progress: Progress | None
    written: int = 0
    removed: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def goal(self) -> Table:
        """What is below the copy."""
        return table_of(self.target)

    def settled(self, seed: int) -> tuple[int, int]:
        """What `verify` gives, of a copy that is complete already. Raises CollectionExists if it is none."""
        old = self.table.manifest
        receiving.check_settled(old, lambda: fingerprint(self.table), self.target, self.origin)
        try:
            found = self.verify(seed)
        except _Differs:
            raise receiving.taken(self.target, self.origin) from None
        self.notes.insert(0, "it was there already: nothing was written")
        return found

    def fill(self, *, fresh: bool) -> None:
        """Write whatever is missing or differs, remove what is not in the source. Raises StoreError."""
        changed = False
        for _ in range(_ROUNDS):
            seen = self._pass(fresh=fresh)
            there, here = fingerprint(self.table), fingerprint(self.goal)
            changed |= there != seen
            if there != here:
                self._check_ours()
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

    def _check_ours(self) -> None:
        """Raise StoreError where another process has completed the copy: it may hold new records by now."""
        with closing(self.to.open(self.target.name)) as now:
            if now.manifest.copy_of != self.origin:
                raise StoreError(
                    f"another process has completed {self.target.name!r} in {self.target.url}, the copy of "
                    f"{self.origin}, and one of the two has changed since; nothing was removed from it"
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
            raise _Differs(
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
                raise _Differs(
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
