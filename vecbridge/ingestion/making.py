"""What every run that embeds has in common: its embedder, its new collection, its index."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TypedDict

from .. import embedders, store
from ..cache import Cache
from ..embedders import Embedder, Service, Usage
from ..embedders.cached import Cached
from ..errors import RecallMissed
from ..manifest import Chunking
from ..planner import WORTHWHILE
from ..types import FieldKind, Layout, Metric, Progress
from .loading import Load

# seconds that measuring recall may take: exact search of a million wide rows takes 15 s a query
EVALUATION = 60.0
_TUNING = 600.0
# bytes of the cache
CACHE = "1GB"


class Meaning(TypedDict):
    """What a collection's vectors mean."""

    metric: Metric
    model: str | None
    nested: Sequence[int] | None


class Budgets(TypedDict):
    """What a plan may cost, and what it is to find."""

    memory: int | str | None
    disk: int | str | None
    latency: float | None
    nodes: int | None
    recall: float | None


def create(
    place: store.Store,
    name: str,
    load: Load,
    *,
    rows: int,
    layout: Layout | None,
    meaning: Meaning,
    budgets: Budgets,
    filterable: Mapping[str, FieldKind],
    chunking: Chunking | None,
    progress: Progress | None,
) -> store.Collection:
    """A new collection for what `load` brings: of the dimension that arrives, planned on vectors of its own.

    Raises CollectionExists, PlanError, EmbedderError, and what `Store.create` raises.
    """
    dim = load.first()
    plan, wanted, measured = None, layout, False
    if wanted is None:
        plan = place.plan(dim, rows=rows, **meaning, **budgets)
        wanted = plan.layout
        measured = budgets["recall"] is not None and not _exact(wanted) and load.total >= WORTHWHILE
    sample = load.sample(wanted, dim, measured=measured)
    if measured:
        plan = place.plan(dim, rows=rows, sample=sample, progress=progress, **meaning, **budgets)
    return place.create(
        name,
        dim=dim,
        rows=rows,
        layout=layout,
        plan=plan,
        sample=sample,
        filterable=filterable,
        chunking=chunking,
        **meaning,
        **budgets,
    )


def _exact(layout: Layout) -> bool:
    """Whether every search of a layout compares the whole vectors."""
    return layout.index is None and layout.shorten is None and layout.element == "float32"


def index(target: store.Collection, recall: float | None, progress: Progress | None) -> None:
    """Build the index, and tune it where a recall is wanted that was not asked for when it was made.

    What is missed stands in the collection's manifest, and with it in the summary.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecallMissed)
        target.build_index(progress=progress)
    if recall is not None and recall != target.manifest.recall and target.layout.index and target.count():
        target.tune(recall=recall, seconds=_TUNING, progress=progress)


def using(embedder: str | Embedder, stack: ExitStack, kept: Cache | None) -> Embedder:
    """The embedder, closed by `stack` where it is made here; behind a cache where it is a service."""
    if isinstance(embedder, str):
        embedder = embedders.load(embedder)
        stack.callback(embedder.close)
    return Cached(embedder, kept) if kept is not None and isinstance(embedder, Service) else embedder


def spent(embedder: Embedder | None, before: Usage) -> Usage | None:
    """What a service was asked for since it told `before`; None where it is none."""
    if not isinstance(embedder, Service):
        return None
    now = embedder.usage()
    return Usage(
        **{one.name: getattr(now, one.name) - getattr(before, one.name) for one in dataclasses.fields(Usage)}
    )


def silent(stage: str, done: int, total: int | None) -> None:
    """A progress callback for nobody."""
