"""The main job in a straight line: read, skip what is unchanged, embed, store, index, measure."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from .. import checks, store
from ..errors import CollectionExists, CollectionNotFound, EmbedderError, InputError, SourceError, VectorError
from ..manifest import check_name
from ..planner import LATENCY, Plan, make_space
from ..types import FieldKind, IndexState, Layout, Metric, Progress, Space
from . import chunks, embedders
from .embedders import Embedder
from .readers import read
from .records import Record

if TYPE_CHECKING:
    from ..evaluate import Report
    from ..types import Floats

BATCH = 512
_BYTES = 8_000_000
_CHARS = 8_000_000
# a PCA gains nothing measurable from more rows than about 2,000
_SAMPLE_ROWS = 5_000
_SAMPLE_BYTES = 32_000_000
_SAMPLE_CHARS = 32_000_000
_REPORTED = 1_000
# seconds that measuring recall may take: exact search of a million wide rows takes 15 s a query
_EVALUATION = 60.0
# records in a batch while the length of the vectors is unknown
_UNKNOWN = 128


class _Meaning(TypedDict):
    metric: Metric
    model: str | None
    nested: Sequence[int] | None


class _Budgets(TypedDict):
    memory: int | str | None
    disk: int | str | None
    latency: float
    nodes: int | None


@dataclass(frozen=True, slots=True)
class Summary:
    """What an ingest did.

    Counts of records: `read` = `new` + `changed` + `unchanged`; `written` = `new` + `changed`. A record that
    was stored by other means than `ingest` counts as new. `seconds` per stage: "read" (checking the source),
    "create" (planning, fitting), "embed", "write", "index", "evaluate". `plan`: the plan as a dict if this
    run made the collection by one, else None. `recall`: the measured recall, None where it was not asked
    for. `url` is without password.
    """

    url: str
    collection: str
    model: str | None
    dim: int
    read: int
    new: int
    changed: int
    seconds: dict[str, float]
    layout: Layout
    index: IndexState
    plan: dict[str, Any] | None = field(default=None, repr=False)
    recall: Report | None = None

    @property
    def written(self) -> int:
        """Records that were embedded and stored."""
        return self.new + self.changed

    @property
    def unchanged(self) -> int:
        """Records that were left as they are."""
        return self.read - self.written

    def to_dict(self) -> dict[str, Any]:
        """The summary, ready for JSON."""
        return {
            **asdict(self),
            "written": self.written,
            "unchanged": self.unchanged,
            "layout": self.layout.to_dict(),
        }

    def __str__(self) -> str:
        where = f"{self.collection} at {self.url}"
        if not self.written:
            return f"{self.read:,} records read, all unchanged; nothing was written to {where}"
        return (
            f"{self.read:,} records read, {self.written:,} written to {where} "
            f"({self.new:,} new, {self.changed:,} changed, {self.unchanged:,} unchanged)"
        )


@dataclass(frozen=True, slots=True)
class _Item:
    """A record on its way, its digest, and how far in the source it stands (counted from 1)."""

    record: Record
    digest: bytes
    position: int


def ingest(
    source: str | Path,
    *,
    to: str | Sequence[str],
    collection: str,
    embedder: str | Embedder | None = None,
    model: str | None = None,
    nested: Sequence[int] | None = None,
    metric: Metric | None = None,
    rows: int | None = None,
    layout: Layout | None = None,
    memory: int | str | None = None,
    disk: int | str | None = None,
    latency: float = LATENCY,
    nodes: int | None = None,
    filterable: Mapping[str, FieldKind] | None = None,
    id_field: str | None = None,
    text_field: str | None = None,
    vector_field: str | None = None,
    numbers: Sequence[str] = (),
    chunk_chars: int = chunks.CHARS,
    batch: int = BATCH,
    evaluate: bool = True,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], object] | None = None,
) -> Summary:
    """A searchable collection from a file or a folder; a second run on the same source changes nothing.

    `source`: see `read`, which also explains `id_field`, `text_field`, `vector_field`, `numbers` and
    `chunk_chars`. `to`: a store URL, or several as for `connect`. `embedder`: a specification (see `load`) or
    an Embedder; with one, every text is embedded, and vectors in the source are not used. Without one the
    source's own vectors are stored, and `model` and `nested` say what made them.

    The collection is made if it is not there, for the dimension that really arrives and a layout planned
    for `rows` records (those in the source, if not given); `layout`, `memory`, `disk`, `latency`,
    `nodes`, `filterable` as in `Store.create`. `metric` is cosine for a new collection. A layout with a
    PCA is fitted on vectors from the whole length of the source.

    The source is read twice: first all of it is checked, so that a mistake in the last line is found before
    anything is embedded, paid for or written. Ids must be unique in a source: one record would replace the
    other, in every run anew. Then records whose text, metadata and model (or vector) are stored already are
    skipped, and the rest is embedded and written in batches of at most `batch` records. Memory holds a few
    batches and 8 bytes per record. Interrupted, it leaves whole batches, and the next run completes them.
    Records that are no longer in the source stay in the collection.

    `progress` hears of the stages "read", "sample" (for a PCA), "embed", "load" (records that are stored,
    unchanged ones included), "evaluate", and of those of building the index. `on_plan` is given the plan of a
    new collection before records are written.

    Raises SourceError, DimensionMismatch, VectorError, ModelMismatch, InputError before anything is written;
    EmbedderError, PlanError, MissingExtra, StoreError.
    """
    if batch < 1:
        raise InputError(f"expected batches of 1 or more records, got {batch}")
    check_name(collection)
    make_space(1, metric=metric or "cosine")
    fields = checks.filterable(filterable)
    again = partial(
        read,
        source,
        id_field=id_field,
        text_field=text_field,
        vector_field=vector_field,
        numbers=numbers,
        chunk_chars=chunk_chars,
    )
    records = again()
    with ExitStack() as stack:
        if isinstance(embedder, str):
            embedder = embedders.load(embedder)
            stack.callback(embedder.close)
        if embedder is not None:
            if model is not None and model != embedder.model:
                raise InputError(f"expected model={embedder.model!r} as the embedder's, got {model!r}")
            model, nested = embedder.model, embedder.nested if nested is None else nested
        urls = (to,) if isinstance(to, str) else tuple(to)
        place = stack.enter_context(store.connect(*urls))
        target = _open(place, collection, model, metric, layout, fields)
        if model is None and target is not None:
            model = target.space.model
        job = _Job(embedder, model, batch, progress or _silent)
        job.check(records, again, target.space if target else None, metric or "cosine")

        if target is None:
            # one vector tells the dimension that really arrives, whatever a catalogue says
            dim = job.embed([next(job.items(again()))], stage="probe").shape[1]
            budgets: _Budgets = {"memory": memory, "disk": disk, "latency": latency, "nodes": nodes}
            meaning: _Meaning = {"metric": metric or "cosine", "model": model, "nested": nested}
            planned = job.total if rows is None else rows
            with job.clock("create"):
                wanted = layout or place.plan(dim, rows=planned, **meaning, **budgets).layout
                size = _sample_size(wanted, dim, job.total)
                kept, sample = job.sample(again(), size) if size else ([], None)
                try:
                    target = place.create(
                        collection,
                        dim=dim,
                        rows=planned,
                        layout=layout,
                        sample=sample,
                        filterable=fields,
                        **meaning,
                        **budgets,
                    )
                except CollectionExists:
                    # another process was faster: what it made serves as well if it is of the same kind
                    target = _open(place, collection, model, metric, layout, fields)
                    if target is None:
                        raise
            if on_plan is not None and target.plan is not None:
                on_plan(target.plan)
            if sample is not None:
                job.new += len(kept)
                job.write(target, kept, sample)

        for part in _batches(job.changed(again(), target), job.rows):
            job.write(target, part, job.embed(part))
        job.report("load", job.total, job.total)
        with job.clock("index"):
            target.build_index(progress=progress)
        recall = None
        if evaluate:
            job.report("evaluate", 0, 1)
            with job.clock("evaluate"):
                recall = target.evaluate(seconds=_EVALUATION)
            job.report("evaluate", 1, 1)
        return Summary(
            url=target.url,
            collection=collection,
            model=target.space.model,
            dim=target.space.dim,
            read=job.total,
            new=job.new,
            changed=job.replaced,
            seconds=job.clock.seconds,
            layout=target.layout,
            index=target.index_state(),
            plan=target.plan.to_dict() if target.plan else None,
            recall=recall,
        )


def _silent(stage: str, done: int, total: int | None) -> None:
    pass


def _open(
    place: store.Store,
    name: str,
    model: str | None,
    metric: Metric | None,
    layout: Layout | None,
    filterable: Mapping[str, FieldKind],
) -> store.Collection | None:
    """The collection if it is there, and is what was asked for."""
    try:
        found = place.open(name, model=model)
    except CollectionNotFound:
        return None
    if metric is not None and metric != found.space.metric:
        raise InputError(
            f"collection {name} compares by {found.space.metric}, which cannot be changed to {metric}; "
            f"leave the metric out, or make another collection"
        )
    if layout is not None and layout != found.layout:
        raise InputError(
            f"collection {name} has another layout than the one given, and keeps it; "
            f"leave the layout out, or make another collection"
        )
    declared = found.manifest.filterable
    for field_name, kind in filterable.items():
        if declared.get(field_name) != kind:
            there = ", ".join(f"{one} ({declared[one]})" for one in sorted(declared)) or "none"
            raise InputError(
                f"collection {name} was not made with {field_name} ({kind}) as a filterable field, and its "
                f"fields cannot be changed (it has {there}); filters on others work, without an index of "
                f"their own: leave the field out, or make another collection"
            )
    return found


class _Clock:
    """Seconds spent in each stage; a stage inside another one is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = 0.0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        before, self._inner = self._inner, 0.0
        start = perf_counter()
        try:
            yield
        finally:
            spent = perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent - self._inner
            self._inner = before + spent


class _Job:
    """The state of one ingest: what it embeds with, what it has counted."""

    def __init__(self, embedder: Embedder | None, model: str | None, batch: int, report: Progress) -> None:
        self._embedder = embedder
        self._model = model
        self._batch = batch
        self.report = report
        self.clock = _Clock()
        self.total = 0
        self.new = 0
        self.replaced = 0
        self._done = 0
        self._dim = embedder.dim if embedder else None

    @property
    def rows(self) -> int:
        """Records in one batch."""
        return min(self._batch, max(1, _BYTES // (4 * self._dim)) if self._dim else _UNKNOWN)

    def check(
        self,
        records: Iterator[Record],
        again: Callable[[], Iterator[Record]],
        space: Space | None,
        metric: Metric,
    ) -> None:
        """Count the records. Raises InputError for the first that cannot be stored, and for repeated ids."""
        marks = array("Q")
        with self.clock("read"):
            for record in records:
                if self._embedder is not None:
                    if record.text is None or not record.text.strip():
                        raise SourceError(f"{record.place}: expected text to embed, got none")
                elif record.vector is None:
                    raise SourceError(
                        f"{record.place}: expected a vector, got text alone; choose an embedder for it"
                    )
                else:
                    space = space or Space(len(record.vector), metric)
                    self._dim = space.dim
                    try:
                        checks.vectors(record.vector[None, :], space=space, what="the vector")
                    except InputError as error:
                        raise type(error)(f"{record.place}: {error}") from None
                marks.append(_mark(record))
                if len(marks) % _REPORTED == 0:
                    self.report("read", len(marks), None)
            self.total = len(marks)
            self.report("read", self.total, self.total)
            ordered = np.frombuffer(marks, dtype=np.uint64)
            ordered.sort()
            if len(repeated := ordered[1:][ordered[1:] == ordered[:-1]]):
                _check_repeated(again(), set(repeated.tolist()))

    def items(self, records: Iterable[Record]) -> Iterator[_Item]:
        """The records with their digests."""
        for position, record in enumerate(records, 1):
            yield _Item(record, _digest(record, self._model, embedded=self._embedder is not None), position)

    def changed(self, records: Iterable[Record], target: store.Collection) -> Iterator[_Item]:
        """Those records that the collection does not hold as they are."""
        for group in _batches(self.items(records), BATCH):
            with self.clock("write"):
                known = target.digests([item.record.id for item in group])
            for item in group:
                digest = known.get(item.record.id)
                if digest != item.digest:
                    self.new += digest is None
                    self.replaced += digest is not None
                    yield item
            self._dealt_with(group[-1].position)

    def embed(self, items: Sequence[_Item], *, stage: str = "embed") -> Floats:
        """The vectors of the records, float32 (n, dim)."""
        if self._embedder is None:
            return np.stack([_vector(item) for item in items])
        with self.clock("embed"):
            vectors = self._embedder.embed([item.record.text or "" for item in items])
        if vectors.ndim != 2 or len(vectors) != len(items):
            raise EmbedderError(
                f"expected {len(items)} vectors from {self._model}, got an array of shape {vectors.shape}"
            )
        self._dim = vectors.shape[1]
        if stage == "embed":
            self.report("embed", items[-1].position, self.total)
        return vectors

    def sample(self, records: Iterable[Record], size: int) -> tuple[list[_Item], Floats]:
        """`size` records spread evenly over the source, as many as fit into memory, and all their vectors."""
        spread = (
            item
            for item in self.items(records)
            if item.position * size // self.total > (item.position - 1) * size // self.total
        )
        kept: list[_Item] = []
        parts: list[Floats] = []
        chars = done = 0
        for part in _batches(spread, self.rows):
            parts.append(self.embed(part, stage="sample"))
            if done == len(kept) and chars < _SAMPLE_CHARS:
                kept += part
                chars += sum(map(_chars, part))
            done += len(part)
            self.report("sample", done, size)
        return kept, np.concatenate(parts)

    def write(self, target: store.Collection, items: Sequence[_Item], vectors: Floats) -> None:
        """Store the records, the first of `vectors` belonging to them, batch by batch."""
        for start in range(0, len(items), self.rows):
            part = items[start : start + self.rows]
            with self.clock("write"):
                try:
                    target.upsert(
                        [item.record.id for item in part],
                        vectors[start : start + len(part)],
                        documents=[item.record.text for item in part],
                        metadata=[item.record.metadata for item in part],
                        digests=[item.digest for item in part],
                    )
                except VectorError as error:
                    where = f"{part[0].record.place} to {part[-1].record.place}"
                    raise VectorError(f"{where}, in the vectors of {self._model}: {error}") from error
            self._dealt_with(part[-1].position)

    def _dealt_with(self, position: int) -> None:
        # records to write wait for their batch while unchanged ones pass by: progress never runs backwards
        self._done = max(self._done, position)
        self.report("load", self._done, self.total)


def _check_repeated(records: Iterable[Record], marks: set[int]) -> None:
    """Raise SourceError naming both places of the first id that occurs twice; `marks` of those that may."""
    places: dict[str, str] = {}
    for record in records:
        if _mark(record) in marks:
            if record.id in places:
                raise SourceError(
                    f"{record.place}: expected an id of its own, got {record.id[:60]!a}, which "
                    f"{places[record.id]} has too; one would replace the other"
                )
            places[record.id] = record.place


def _mark(record: Record) -> int:
    return int.from_bytes(blake2b(record.id.encode(), digest_size=8).digest(), "little")


def _vector(item: _Item) -> Floats:
    assert item.record.vector is not None
    return item.record.vector


def _chars(item: _Item) -> int:
    return len(item.record.text or "")


def _digest(record: Record, model: str | None, *, embedded: bool) -> bytes:
    """16 bytes that change whenever the stored record would: by model, text, metadata or own vector."""
    metadata = json.dumps(record.metadata, sort_keys=True, separators=(",", ":"))
    text = json.dumps([model, record.text, metadata])
    digest = blake2b(text.encode(), digest_size=16)
    if not embedded and record.vector is not None:
        digest.update(b"\n" + record.vector.astype("<f4").tobytes())
    return digest.digest()


def _batches(items: Iterable[_Item], rows: int) -> Iterator[list[_Item]]:
    """The items in lists of at most `rows` items, fewer where their texts are long."""
    part: list[_Item] = []
    chars = 0
    for item in items:
        part.append(item)
        chars += _chars(item)
        if len(part) >= rows or chars >= _CHARS:
            yield part
            part, chars = [], 0
    if part:
        yield part


def _sample_size(layout: Layout, dim: int, total: int) -> int:
    """Records to fit the layout's PCA on; 0 where it has none."""
    shortened = (layout.shorten, layout.index.shorten if layout.index else None)
    least = max((each.dim for each in shortened if each and each.method == "pca"), default=0)
    if not least:
        return 0
    return min(total, max(least + least // 4, min(_SAMPLE_ROWS, _SAMPLE_BYTES // (4 * dim))))
