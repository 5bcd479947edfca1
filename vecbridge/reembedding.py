"""Another model for a collection: embedded beside it from the stored documents, then exchanged with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import checks, store, unfinished
from .cache import Cache
from .embedders import Embedder, Service, Usage
from .errors import (
    CollectionNotFound,
    InputError,
    ModelMismatch,
)
from .ingestion import making
from .ingestion.beside import Filling, Refused, Wishes, check_exchangeable, related
from .ingestion.flow import BATCH
from .ingestion.making import CACHE, EVALUATION, Budgets
from .manifest import Tuned, check_name
from .planner import Plan, share
from .types import IndexState, Layout, Progress

if TYPE_CHECKING:
    from .evaluate import Report

# what a nightly run may have written while this one embedded is caught up with before writers have to wait
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Reembedding:
    """What a run of `reembed` did.

    `records`: those of the collection now. `embedded`: by this run; `found`: embedded already by an earlier
    one. `removed`: what was embedded and had left the collection meanwhile. `missing`: records without a
    document, which were left out; `rejected`: those that the model refused; `rejects`: the file that lists
    both, None where there is none. `switched`: whether this run gave the name to the new model; False where
    that had happened before. `kept`: the name that the old collection has now, None where it was dropped or
    is not there. `before` and `model`: the two models, None where the old one was unknown. `seconds`: per
    stage, as `ingest` tells them. `plan`, `recall`, `tuned`, `usage`: as in the summary of `ingest`. `notes`:
    what else a user should know.
    """

    url: str
    collection: str
    before: str | None
    model: str | None
    dim: int
    records: int
    embedded: int
    found: int
    removed: int
    missing: int
    rejected: int
    switched: bool
    kept: str | None
    usage: Usage | None
    seconds: dict[str, float]
    layout: Layout
    index: IndexState
    plan: dict[str, Any] | None = None
    recall: Report | None = None
    tuned: Tuned | None = None
    rejects: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {**asdict(self), "layout": self.layout.to_dict()}

    def __str__(self) -> str:
        where = f"{self.collection} at {self.url}"
        if not self.switched:
            what = f"{where} is of {self.model} already; nothing was embedded"
        else:
            what = (
                f"{where} is of {self.model} now: {self.records:,} records, {self.embedded:,} embedded by "
                f"this run, {self.found:,} before"
            )
        if self.kept is not None:
            return f"{what}; the old one ({self.before or 'model unknown'}) is there as {self.kept}"
        return what


def reembed(
    url: str | Sequence[str],
    name: str,
    *,
    embedder: str | Embedder,
    beside: str | None = None,
    rows: int | None = None,
    layout: Layout | None = None,
    memory: int | str | None = None,
    disk: int | str | None = None,
    latency: float | None = None,
    nodes: int | None = None,
    recall: float | None = None,
    skip_missing: bool = False,
    drop_old: bool = False,
    rejects: str | Path | None = None,
    max_rejects: int = 0,
    cache: bool | str | Path = True,
    cache_limit: int | str = CACHE,
    batch: int = BATCH,
    evaluate: bool = True,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], object] | None = None,
) -> Reembedding:
    """Give the collection `name` the vectors of another model, from the documents that it stores.

    A collection `beside` (NAME-beside, if not given) is made in the same place and filled like any other:
    planned for `rows` records of the new dimension (see `ingest` for `layout`, budgets and `recall`, which is
    that of the old one if not given), indexed, tuned and measured. Then it is compared with the old one, with
    writers waiting where the store can make them, and the two exchange their names in one step. The old one
    is untouched, and from then on there as `beside`, until it is dropped: `drop_old` does so, also in a later
    run with the same embedder. Ids, documents, metadata and fields for filters stay, and the marks by which
    `ingest` knows a source: it goes on with the new embedder, and embeds what has changed.

    Run again after whatever stopped it, it embeds what is missing, what has changed, and no more. What a
    nightly run writes to the old one meanwhile is embedded before the switch. Processes that have the
    collection open are refused with ModelMismatch from then on, until they open it again; on a Qdrant server
    they go on in the old one, whose name has changed, until it is dropped, and what they write in the moment
    of the switch may be in the old one alone.

    Records without a document cannot be embedded: refused before anything is made, or left out and listed
    with `skip_missing`. `embedder`, `rejects`, `max_rejects`, `cache`, `cache_limit`, `batch`, `evaluate`,
    `progress`, `on_plan`: as for `ingest`; stages are "read" (the stored documents), "embed", "write", those
    of the index, "evaluate", "compare".

    Raises InputError, ModelMismatch where `beside` is something else, CollectionNotFound, EmbedderError,
    TooManyRejects, PlanError, MissingExtra, StoreError; the old collection is as it was.
    """
    if batch < 1:
        raise InputError(f"expected batches of 1 or more records, got {batch}")
    check_name(name)
    beside = _beside(name) if beside is None else check_name(beside)
    if beside == name:
        raise InputError(f"expected another name than {name!r} for the collection beside it, got the same")
    target_recall = share(recall)
    with ExitStack() as stack:
        kept = None
        if cache is not False:
            kept = Cache(None if cache is True else cache, limit=cache_limit)
            stack.callback(kept.close)
        using = making.using(embedder, stack, kept)
        refused = Refused(rejects, most=max_rejects)
        stack.callback(refused.close, finished=False)
        whole = stack.enter_context(store.connect(*((url,) if isinstance(url, str) else tuple(url))))
        home = whole.find(name)
        place = store.Store([home])
        old = place.open(name)
        stack.callback(old.close)
        unfinished.check_whole(old.manifest, old.url)
        if old.manifest.adopted is not None:
            raise InputError(_adopted(old))
        if _is_of(old, using):
            return _done(place, old, beside, drop_old=drop_old)
        check_exchangeable(home, name)
        before = using.usage() if isinstance(using, Service) else Usage()
        budgets: Budgets = {
            "memory": memory,
            "disk": disk,
            "latency": latency,
            "nodes": nodes,
            "recall": old.manifest.recall if target_recall is None else target_recall,
        }
        run = Filling(
            place,
            old,
            using,
            beside=beside,
            wishes=Wishes(rows, layout, budgets, on_plan),
            rejects=refused,
            skip_missing=skip_missing,
            batch=batch,
            report=progress or making.silent,
        )
        for _ in range(_ROUNDS):
            if not run.catch_up():
                break
        new = run.new
        assert new is not None, "a first round makes it, or raises"
        stack.callback(new.close)
        with run.clock("index"):
            making.index(new, target_recall, progress)
        found = None
        if evaluate:
            run.report("evaluate", 0, 1)
            with run.clock("evaluate"):
                found = new.evaluate(seconds=EVALUATION)
            run.report("evaluate", 1, 1)
        table = home.ask(lambda backend: backend.open(name))
        stack.callback(table.close)
        with table.paused():
            _check_still(old, home)
            if run.catch_up():
                new.build_index(progress=progress)
            with run.clock("compare"):
                run.compare()
            run.complete()
            home.ask(lambda backend: backend.exchange(name, beside))
        refused.close(finished=True)
        notes = run.notes
        if drop_old:
            place.drop(beside)
            notes.append(f"{beside}, the old one, was dropped")
        if kept is not None and kept.problem:
            notes.append(kept.problem)
        with_name = place.open(name)
        stack.callback(with_name.close)
        return Reembedding(
            url=home.url,
            collection=name,
            before=old.space.model,
            model=with_name.space.model,
            dim=with_name.space.dim,
            records=with_name.count(),
            embedded=run.embedded,
            found=run.found,
            removed=run.removed,
            missing=run.missing,
            rejected=refused.count,
            switched=True,
            kept=None if drop_old else beside,
            usage=making.spent(using, before),
            seconds=run.clock.seconds,
            layout=with_name.layout,
            index=with_name.index_state(),
            plan=new.plan.to_dict() if new.plan else None,
            recall=found,
            tuned=with_name.manifest.tuned,
            rejects=str(refused.path) if refused.path and (refused.count or run.missing) else None,
            notes=tuple(notes),
        )


def _beside(name: str) -> str:
    try:
        return check_name(f"{name}-beside")
    except InputError as error:
        raise InputError(
            f"expected a name for the collection beside {name} (beside=, --beside): {name}-beside is too long"
        ) from error


def _adopted(collection: store.Collection) -> str:
    """Why a collection that another library made is not given another model, and what to do."""
    adopted = collection.manifest.adopted
    assert adopted is not None
    return (
        f"expected a collection of vecbridge's own, got {collection.name}, which is {adopted.said}: what its "
        f"owner writes later would have no vector of the new model; copy it (vecbridge copy {collection.url} "
        f"{collection.name} {collection.url} NAME), and give the copy another model"
    )


def _check_still(old: store.Collection, home: store.Place) -> None:
    """Raise ModelMismatch where the name is another's by now: to exchange once more would undo that."""
    with closing(home.ask(lambda backend: backend.open(old.name))) as now:
        there = now.manifest.space
    if (there.dim, there.metric, there.model) != (old.space.dim, old.space.metric, old.space.model):
        raise ModelMismatch(
            f"another process has given {old.name} vectors of {there.model or 'an unknown model'} "
            f"({there.dim:,} dimensions) meanwhile; nothing was switched, run again to see what is left to do"
        )


def _is_of(collection: store.Collection, embedder: Embedder) -> bool:
    """Whether a collection's vectors are those of an embedder already."""
    space = collection.space
    try:
        checks.check_model(embedder.model, space)
    except ModelMismatch:
        return False
    if space.model is None:
        return False
    # an API has to be asked: models come in several lengths, and servers cut them short
    return (embedder.dim or embedder.embed(["length"]).shape[1]) == space.dim


def _done(place: store.Store, collection: store.Collection, beside: str, *, drop_old: bool) -> Reembedding:
    """What is left to do, and to say, where the name is the new model's already."""
    before, kept = None, None
    notes: tuple[str, ...] = ()
    try:
        old = place.open(beside)
    except CollectionNotFound:
        pass
    else:
        before, kept = old.space.model, beside
        with closing(old):
            ours = related(collection, old)
        if drop_old and not ours:
            raise InputError(
                f"expected {beside} to be what {collection.name} was before, found records of something else "
                f"in it; nothing was dropped: name the old one with beside= (--beside)"
            )
        if drop_old:
            place.drop(beside)
            kept, notes = None, (f"{beside}, the old one, was dropped",)
    return Reembedding(
        url=collection.url,
        collection=collection.name,
        before=before,
        model=collection.space.model,
        dim=collection.space.dim,
        records=collection.count(),
        embedded=0,
        found=collection.count(),
        removed=0,
        missing=0,
        rejected=0,
        switched=False,
        kept=kept,
        usage=None,
        seconds={},
        layout=collection.layout,
        index=collection.index_state(),
        tuned=collection.manifest.tuned,
        notes=notes,
    )
