"""A new collection for records that are elsewhere: planned, marked as unfinished until all are there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from . import conform, planner
from .collection import Collection, table_of
from .comparing import fingerprint, reduced
from .errors import CollectionExists, CollectionNotFound, InputError, PlanError, RecallMissed
from .manifest import Manifest
from .planner import Plan, Wishes
from .store import Place, Store
from .types import Layout, Progress, Space

if TYPE_CHECKING:
    from .comparing import Fingerprint
    from .types import Floats

SAMPLE = 20_000  # vectors that a layout is planned on, and a PCA is fitted on


def there(store: Store, name: str) -> Collection | None:
    """The collection that has the name already, if any has."""
    try:
        return store.open(name)
    except CollectionNotFound:
        return None


def made(
    old: Manifest,
    sampled: Callable[[], Floats],
    to: Store,
    name: str,
    origin: str,
    *,
    count: int,
    layout: Layout | None = None,
    wishes: Wishes,
    on_plan: Callable[[Plan], object] | None,
) -> Collection:
    """A new, empty collection for the `count` records that `old` is of, marked as an unfinished copy.

    `origin`: the mark (see `unfinished`). `sampled` gives some of its stored vectors, up to `SAMPLE` rows; it
    is called where they are needed. `on_plan` is given the plan. Raises PlanError, InputError,
    CollectionExists.
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
    try:
        table = place.ask(lambda backend: backend.create(manifest))
    except CollectionExists as error:
        raise CollectionExists(
            f"another process has made {name!r} in {place.url} meanwhile; run this again: if it is the same "
            f"copy, it goes on"
        ) from error
    if on_plan is not None and plan is not None:
        on_plan(plan)
    return Collection(table, place=place, plan=plan)


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


def check_begun(old: Manifest, target: Collection, origin: str, layout: Layout | None) -> None:
    """Raise InputError where an unfinished copy cannot be gone on with."""
    new = target.manifest
    where = f"the unfinished copy of {origin}, {new.name!r} in {target.url},"
    remedy = f"drop {new.name!r} there, and copy again"
    if not _alike(old, new):
        raise InputError(f"{where} was begun when the source held other vectors; {remedy}")
    if layout is not None and _built(layout) != _built(new.layout):
        raise InputError(f"{where} was begun with another layout; leave it out to go on, or {remedy}")


def _alike(old: Manifest, new: Manifest) -> bool:
    """Whether records of `old` can be those of `new`: one space, and shortened in the same way if at all."""
    same = replace(old.space, nested=new.space.nested) == new.space
    return same and (old.reduction is None or reduced(old) == reduced(new))


def _built(layout: Layout) -> Layout:
    """The layout but for its search widths, which tuning changes."""
    index = None if layout.index is None else replace(layout.index, ef_search=0, probes=0)
    return replace(layout, index=index, oversample=1)


def check_settled(old: Manifest, source: Callable[[], Fingerprint], target: Collection, origin: str) -> None:
    """Raise CollectionExists unless a collection is complete, and seems to hold what `origin` does.

    `source`: the fingerprint of what `origin` holds.
    """
    new = target.manifest
    if new.copy_of is not None or not _alike(old, new) or fingerprint(table_of(target)) != source():
        raise taken(target, origin)


def taken(target: Collection, origin: str) -> CollectionExists:
    """That the name is that of something else."""
    of = target.manifest.copy_of
    what = f"does not hold what {origin} does" if of is None else f"is an unfinished copy of {of}"
    return CollectionExists(
        f"there is already a collection {target.name!r} in {target.url}, and it {what}; drop it, or give the "
        f"copy another name"
    )


def finish(target: Collection, progress: Progress | None) -> None:
    """Build the index, and take the mark away. Whether a recall was met stands in the manifest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecallMissed)
        target.build_index(progress=progress)
    table = table_of(target)
    table.keep(replace(table.manifest, copy_of=None))


def aim(target: Collection, recall: float | None) -> None:
    """Ask for another recall, if one is given, of a copy that was begun."""
    if recall not in (None, target.manifest.recall):
        table = table_of(target)
        table.keep(replace(table.manifest, recall=recall))


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
