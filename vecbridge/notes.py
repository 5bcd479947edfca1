"""What was assumed for a plan, and what to watch: sentences for its reader."""

from __future__ import annotations

from collections.abc import Iterator

from . import models
from .budgets import Budget
from .evidence import Evidence
from .explain import lasting
from .limits import Limits
from .objections import QUANTISED
from .sizes import Estimates
from .types import Layout, Space


def notes(
    space: Space, layout: Layout, rows: int, limits: Limits, budget: Budget, costs: Estimates
) -> Iterator[str]:
    """What holds for a chosen layout in its place, whatever is known of its recall."""
    if limits.assumed:
        yield f"{limits.backend} {limits.version} is assumed; name another as {limits.backend}@VERSION"
    if limits.indexed:
        default = "" if budget.firm else ", the default"
        times = "times were measured there" if costs.calibrated else "times are rough"
        yield f"one search may take {lasting(budget.latency)}{default}; {times}"
    elif costs.scan_seconds > budget.latency:
        yield (
            f"{limits.backend} storage has no index: one search takes about {lasting(costs.scan_seconds)}, "
            f"the budget is {lasting(budget.latency)}; a store with an index, such as pgvector, is faster"
        )
    if limits.backend in ("qdrant", "edge"):
        yield from _about_qdrant(space, layout, limits)
    for shorten in (layout.shorten, layout.index.shorten if layout.index else None):
        if shorten and shorten.method == "pca":
            yield (
                f"the projection is fitted on your own vectors: creating needs a sample of at least "
                f"{shorten.dim:,}, better some thousand more"
            )
    if layout.shorten:
        yield "what is cut off at the door is not stored: no search can be exact again"
    if layout.half:
        yield "half precision holds values below 65,520 and keeps about three digits of each"
    if layout.index and layout.index.element == "bit":
        yield "signs suit vectors that are centred on zero: measure recall on your own before you rely on it"
        if space.metric != "cosine":
            yield f"signs know directions only: under {space.metric} they serve vectors of equal length"
    if (
        layout.index
        and layout.index.kind == "hnsw"
        and "repaired hnsw vacuum" in limits.features
        and not limits.assumed
        and not limits.has("repaired hnsw vacuum")
    ):
        fixed = limits.features["repaired hnsw vacuum"].since
        yield f"before {limits.backend} {fixed}, vacuum after many deletes can damage hnsw: upgrade"


def about_recall(
    space: Space, layout: Layout, rows: int, target: float | None, evidence: Evidence | None
) -> Iterator[str]:
    """How far the recall of a chosen layout is known."""
    if target is not None and layout.shorten is not None:
        yield (
            "what shortening at the door loses is no part of any recall that is measured later: there is "
            "nothing left to compare with"
        )
    if evidence is None:
        if target is not None and layout.index is not None:
            yield (
                f"a recall of {target:g} is wanted: without a sample nothing is known of it beforehand; once "
                f"loaded, the search width is tuned for it and the result confirmed"
            )
        return
    expected = evidence.recall(layout, rows=rows)
    if expected is None:
        return
    if target is not None and expected.low < target <= expected.mean and expected.queries:
        yield (
            f"the recall lies between {expected.low:.3f} and {expected.high:.3f} (95 %): more queries would "
            f"tell whether it is {target:g}"
        )
    if rows > 2 * evidence.rows and layout.index is not None:
        yield (
            f"recall was measured among {evidence.rows:,} vectors; what is expected among {rows:,} follows "
            f"its trend in parts of the sample, and a larger sample tells more"
        )
    for shorten in (layout.shorten, layout.index.shorten if layout.index else None):
        if shorten and shorten.method == "truncate" and shorten.dim not in space.nested:
            yield (
                f"{space.model or 'the model'} is not known as a Matryoshka model: that a prefix of "
                f"{shorten.dim:,} dimensions serves was measured on the sample, and holds for its like"
            )


def _about_qdrant(space: Space, layout: Layout, limits: Limits) -> Iterator[str]:
    index, spread = layout.index, layout.spread
    if index is not None:
        # Qdrant's full_scan_threshold and indexing_threshold, both of one segment (config/config.yaml)
        few = 10_000 * 1024 // (layout.stored_dim(space.dim) * (4 if layout.element == "float32" else 2))
        yield (
            f"Qdrant itself scans segments of less than 10,000 KB, here {few:,} vectors, exactly and without "
            f"their index"
        )
        if index.element in QUANTISED:
            yield "quantised copies are made when the index is built; the whole vectors may stay on disk"
    if spread is not None:
        yield (
            f"the number of shards is fixed once the collection is made: {spread.shards:,} let it grow to "
            f"{spread.shards * spread.replication:,} machines"
        )


def about_model(space: Space, *, asked: bool) -> Iterator[str]:
    """What is odd about the model's name and its dimension; `asked`: its Matryoshka sizes were looked up."""
    known = models.find(space.model) if space.model else None
    if known and space.dim != known.dim and space.dim not in known.nested:
        trained = f", or {', '.join(f'{size:,}' for size in known.nested)}" if known.nested else ""
        yield (
            f"{known.name} is known to give vectors of {known.dim:,} dimensions{trained}; "
            f"these have {space.dim:,}"
        )
    if asked and space.model and not known:
        yield (
            f"{space.model} is not in the model catalogue: if it is a Matryoshka model, pass its nested sizes"
        )
