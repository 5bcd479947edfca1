"""The main job in a straight line: read, skip what is unchanged, embed, store, index, measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from os.path import normpath
from pathlib import Path

from .. import checks, store
from ..cache import Cache
from ..embedders import Embedder, Service, Usage, document_prefix
from ..errors import (
    CollectionExists,
    CollectionNotFound,
    InputError,
    ModelMismatch,
    SourceError,
)
from ..manifest import check_name
from ..planner import Plan, make_space, share
from ..types import FieldKind, Layout, Metric, Progress
from . import making
from .cutting import Cutting
from .flow import BATCH, Encoder
from .loading import Load
from .making import CACHE, EVALUATION, Budgets, Meaning, create, index, silent, spent
from .memo import Memo
from .readers import STDIN, materialised, read
from .records import Document, Kind, Origin, Record, Reject
from .rejects import Rejects
from .spool import Reread, Spool, Work
from .summary import Clock, Summary
from .survey import Survey, digest, id_mark, owner


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
    latency: float | None = None,
    nodes: int | None = None,
    recall: float | None = None,
    filterable: Mapping[str, FieldKind] | None = None,
    kind: Kind | None = None,
    encoding: str | None = None,
    id_field: str | None = None,
    text_field: str | None = None,
    vector_field: str | None = None,
    numbers: Sequence[str] = (),
    chunk_tokens: int | None = None,
    overlap: int | None = None,
    chunk_rows: bool | None = None,
    tokenizer: str | Path | None = None,
    source_name: str | None = None,
    prune: bool = False,
    prune_limit: float = 0.5,
    rejects: str | Path | None = None,
    max_rejects: int = 0,
    cache: bool | str | Path = True,
    cache_limit: int | str = CACHE,
    batch: int = BATCH,
    evaluate: bool = True,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], object] | None = None,
) -> Summary:
    """A searchable collection from a file or a folder; a second run on the same source changes nothing.

    `source`: see `read`, which also explains `kind`, `encoding`, `id_field`, `text_field`, `vector_field` and
    `numbers`; "-" is standard input. `to`: a store URL, or several as for `connect`. `embedder`: a
    specification (see `load`) or an Embedder; with one, every text is embedded, and vectors in the source are
    not used. Without one the source's own vectors are stored, and `model` and `nested` say what made them.

    The collection is made if it is not there, for the dimension that really arrives and a layout planned
    for `rows` records (those in the source, if not given); `layout`, `memory`, `disk`, `latency`,
    `nodes`, `filterable` as in `Store.create`. `metric` is cosine for a new collection. A layout with a
    PCA is fitted on vectors from the whole length of the source. `recall`: the recall@10 that searches shall
    have. Where the plan is not exact, it then rests on what is measured on 500 to 5,000 such vectors, and
    once the index is there its search width is tuned and confirmed; a collection that is there already is
    tuned for it, too.

    Files of text are cut into chunks of up to `chunk_tokens` tokens (512, or what the model takes), of which
    neighbours share `overlap`; with `chunk_rows` the texts of rows are cut, too. `tokenizer`: the model's
    tokenizer.json, to count exactly where neither the embedder nor vecbridge has it. The collection keeps
    these settings: a later run uses them if it says nothing, and is refused if it says something else.

    First, all of the source is read, checked and compared with the collection; so a mistake in the last line
    is found before anything is embedded, paid for or written. Ids must be unique in a source: one record
    would replace the other, in every run anew. Then what is new or changed is embedded, in as many requests
    at once as the embedder wants, while the store writes batches of at most `batch` records. Chunks that a
    document had before it became shorter are removed. Memory holds a few batches and 9 bytes per record;
    texts wait in a temporary file. Interrupted, it leaves whole batches, and the next run completes them.

    `cache`: whether (or in which file) up to `cache_limit` bytes are kept: vectors from an API, so that what
    was paid for is not asked for again when a run ends between embedding and storing; and with any embedder,
    where unchanged documents are cut, and the text of pages and office documents that were converted.

    `prune`: remove records that came from this source before and have left it. A source is known by
    `source_name`, or the path as it was given; other sources' records in the collection stay. Refused where
    more than `prune_limit` of the source's records would go, and left out where something was rejected while
    reading, as that may be what is missing.

    `max_rejects`: how many inputs may be unusable; with 0, the first one raises. They are counted in the
    summary, and listed in the file `rejects` as JSON lines with source, position, id and reason.

    `progress` hears of the stages "read", "sample" (for a PCA, and to measure), "measure", "embed", "write",
    "tuning", "evaluate", and of those of building the index. `on_plan` is given the plan of a new collection
    before records are written.

    Raises SourceError, DimensionMismatch, VectorError, ModelMismatch, InputError before anything is written;
    EmbedderError, TooManyRejects, PlanError, MissingExtra, StoreError.
    """
    if batch < 1:
        raise InputError(f"expected batches of 1 or more records, got {batch}")
    if not 0 <= prune_limit <= 1:
        raise InputError(f"expected prune_limit as a share from 0 to 1, got {prune_limit}")
    if prune and source == STDIN and source_name is None:
        raise InputError(
            "expected source_name (--source-name NAME) beside prune and standard input: without a name, "
            "records that came from there another time would be removed, whatever they were"
        )
    check_name(collection)
    make_space(1, metric=metric or "cosine")
    target_recall = share(recall)
    fields = checks.filterable(filterable)
    clock, report = Clock(), progress or silent
    with ExitStack() as stack:
        path = stack.enter_context(materialised(source, kind))
        kept = memo = None
        if cache is not False and embedder is not None:
            kept = Cache(None if cache is True else cache, limit=cache_limit)
            stack.callback(kept.close)
            memo = Memo(kept)
            stack.callback(memo.flush)
            path = dataclasses.replace(path, memo=memo)
        again = partial(
            read,
            path,
            kind=kind,
            encoding=encoding,
            id_field=id_field,
            text_field=text_field,
            vector_field=vector_field,
            numbers=numbers,
        )
        refused = Rejects(rejects, most=max_rejects)
        stack.callback(refused.close, finished=False)
        using = None if embedder is None else making.using(embedder, stack, kept)
        if using is not None:
            if model is not None and model != using.model:
                raise InputError(f"expected model={using.model!r} as the embedder's, got {model!r}")
            model, nested = using.model, using.nested if nested is None else nested
        before = using.usage() if isinstance(using, Service) else Usage()
        urls = (to,) if isinstance(to, str) else tuple(to)
        place = stack.enter_context(store.connect(*urls))
        target = _open(place, collection, model, metric, layout, fields)
        if target is not None and target.space.model is not None:
            # the same one, maybe by another provider's name: what is stored stays unchanged
            model = target.space.model
        cutting = None
        if using is not None:
            cutting = Cutting(
                using,
                kept=target.manifest.chunking if target else None,
                tokens=chunk_tokens,
                overlap=overlap,
                rows=chunk_rows,
                tokenizer=tokenizer,
                afresh=_afresh(place, collection),
                memo=memo,
            )
        known_as = source_name or normpath(str(source))
        digests = partial(
            digest,
            model=model,
            prefix=document_prefix(using) if using is not None else "",
            mark=owner(known_as),
            embedded=using is not None,
        )
        work: Work = Reread(lambda: _records(again()), digests) if using is None else Spool(digests)
        stack.callback(work.close)
        survey = Survey(
            target=target,
            work=work,
            rejects=refused,
            space=target.space if target else None,
            metric=metric or "cosine",
            digest=digests,
            mark=owner(known_as),
            cutting=cutting,
            report=report,
        )
        with clock("read"):
            survey.run(again(whole=using is None))
            if marks := survey.repeated():
                _check_repeated(again(whole=False), marks)
            if memo is not None:
                memo.flush()
            gone, notes = _gone(survey, target, known_as, prune_limit) if prune else ([], [])
        if survey.foreign:
            notes.append(
                f"{survey.foreign:,} of the records are there from a source of another name: either this one "
                f"was named in another way before (source_name, --source-name), or two sources have the same "
                f"ids and replace each other"
            )

        load = Load(
            Encoder(using, batch=batch, dim=target.space.dim if target else None),
            work,
            cosine=using is not None and (target.space.metric if target else metric or "cosine") == "cosine",
            rejects=refused,
            clock=clock,
            report=report,
        )
        if target is None:
            meaning: Meaning = {"metric": metric or "cosine", "model": model, "nested": nested}
            budgets: Budgets = {
                "memory": memory,
                "disk": disk,
                "latency": latency,
                "nodes": nodes,
                "recall": target_recall,
            }
            with clock("create"):
                try:
                    target = create(
                        place,
                        collection,
                        load,
                        rows=survey.records if rows is None else rows,
                        layout=layout,
                        meaning=meaning,
                        budgets=budgets,
                        filterable=fields,
                        chunking=cutting.chunking if cutting else None,
                        progress=progress,
                    )
                except CollectionExists:
                    # another process was faster: what it made serves as well if it is of the same kind
                    target = _open(place, collection, model, metric, layout, fields)
                    if target is None:
                        raise
            if on_plan is not None and target.plan is not None:
                on_plan(target.plan)
        load.run(target)
        removed = 0
        if survey.stale or gone:
            with clock("remove"):
                removed = target.delete([*survey.stale, *gone])
        with clock("index"):
            index(target, target_recall, progress)
        found = None
        if evaluate:
            report("evaluate", 0, 1)
            with clock("evaluate"):
                found = target.evaluate(seconds=EVALUATION)
            report("evaluate", 1, 1)
        refused.close(finished=True)
        if kept is not None and kept.problem:
            notes.append(kept.problem)
        return Summary(
            url=target.url,
            collection=collection,
            model=target.space.model,
            dim=target.space.dim,
            documents=survey.documents,
            read=survey.records,
            new=load.new,
            changed=load.changed,
            unchanged=survey.unchanged,
            removed=removed,
            rejected=refused.count,
            usage=spent(using, before),
            seconds=clock.seconds,
            layout=target.layout,
            index=target.index_state(),
            chunking=target.manifest.chunking,
            plan=target.plan.to_dict() if target.plan else None,
            recall=found,
            tuned=target.manifest.tuned,
            rejects=str(refused.path) if refused.count and refused.path else None,
            notes=tuple(notes),
        )


def _records(units: Iterable[Record | Document | Reject]) -> Iterator[Record]:
    """The records of a source whose vectors are stored, leaving out what the survey has rejected."""
    for unit in units:
        if isinstance(unit, Record):
            yield unit


def _gone(
    survey: Survey, target: store.Collection | None, source: str, limit: float
) -> tuple[list[str], list[str]]:
    """Ids that the source has lost, and what to say about it. Raises InputError where they are too many."""
    if target is None:
        return [], []
    if survey.lost:
        return [], [
            "nothing was pruned: what was rejected may be stored, and would look as if it had left the source"
        ]
    gone, of = survey.gone()
    if len(gone) > limit * of:
        raise InputError(
            f"pruning would remove {len(gone):,} of the {of:,} records that came from {source}, more than "
            f"{limit:.0%} of them; nothing was changed: see that the source is complete, or allow it with "
            f"prune_limit=1 (--yes)"
        )
    return gone, []


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
    except ModelMismatch as error:
        raise ModelMismatch(f"{error}, or {_afresh(place, name)}") from None
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


def _check_repeated(units: Iterable[Record | Document | Reject], marks: set[int]) -> None:
    """Raise SourceError naming both places of the first id that occurs twice; `marks` of those that may."""
    places: dict[str, Origin] = {}
    for unit in units:
        # of a row that is cut, only the chunks have been seen
        if isinstance(unit, Reject) or not {id_mark(unit.id), id_mark(f"{unit.id}#0")} & marks:
            continue
        if unit.id in places:
            raise SourceError(
                f"{unit.origin}: expected an id of its own, got {unit.id[:60]!a}, which "
                f"{places[unit.id]} has too; one would replace the other"
            )
        places[unit.id] = unit.origin


def _afresh(place: store.Store, name: str) -> str:
    """The advice for a collection that cannot become what is wanted."""
    return f"start afresh: vecbridge drop {place.url} {name} --yes, then ingest again"
