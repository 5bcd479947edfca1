"""The layout that suits an embedding space, with the reasons: the first candidate without an objection.

`candidates` holds the policy: layouts in order of preference, the most exact first. Limits and budgets
object, each with a sentence; of several places, `places` chooses one. Nothing here talks to a server or loads
a driver.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

from . import models
from .candidates import candidates
from .errors import InputError, PlanError
from .explain import describe, explain, grouped, human, lasting
from .limits import Limits
from .limits import limits as limits_of
from .objections import QUANTISED
from .places import Other, choose
from .sizes import Estimates, estimate, in_bytes
from .types import Layout, Metric, Space

DEFAULT_ROWS = 100_000
LATENCY = 0.1


@dataclass(frozen=True, slots=True)
class Refusal:
    """A layout that was preferred, and the sentence that speaks against it."""

    layout: Layout
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The layout chosen for a space, and why; `print(plan.explain())` shows it as text.

    `refused`: the layouts that would have been preferred, in order, each with its reason. `notes`: what was
    assumed, and what to watch. Where several places were planned for, `place` names the one that was chosen,
    `here` says why, in sentences, and `others` why not the rest.
    """

    space: Space
    rows: int
    layout: Layout
    limits: Limits = field(repr=False)
    refused: tuple[Refusal, ...]
    estimates: Estimates
    notes: tuple[str, ...]
    place: str = ""
    here: tuple[str, ...] = ()
    others: tuple[Other, ...] = ()

    def explain(self) -> str:
        """The plan as text for a terminal: choice, reasons, sizes, assumptions, refusals; 88 columns."""
        return explain(self)

    def to_dict(self) -> dict[str, Any]:
        """The plan ready for JSON; `chosen` is the layout in words."""
        return {
            "space": {**asdict(self.space), "nested": list(self.space.nested)},
            "rows": self.rows,
            "backend": self.limits.backend,
            "version": self.limits.version,
            "chosen": describe(self.layout, self.space.dim),
            "layout": self.layout.to_dict(),
            "refused": [{"layout": one.layout.to_dict(), "reason": one.reason} for one in self.refused],
            "estimates": asdict(self.estimates),
            "notes": list(self.notes),
            "nodes": self.limits.nodes,
            "place": self.place,
            "here": list(self.here),
            "others": [one.to_dict(self.space.dim) for one in self.others],
        }


@dataclass(frozen=True, slots=True)
class _Budget:
    memory: int | None
    disk: int | None
    latency: float


def plan(
    dim: int,
    *,
    rows: int = DEFAULT_ROWS,
    metric: Metric = "cosine",
    on: str | Limits | Sequence[str | Limits] = "pgvector",
    model: str | None = None,
    nested: Sequence[int] | None = None,
    memory: int | str | None = None,
    disk: int | str | None = None,
    latency: float = LATENCY,
    nodes: int | None = None,
) -> Plan:
    """The best layout for `rows` vectors of `dim` dimensions, with the reasons. Needs no server.

    `on`: "flat", "pgvector", "qdrant", "edge", a version such as "pgvector@0.6.2", the Limits of a server, or
    several of them in order of preference, of which the plan then chooses one.
    `nested`: Matryoshka sizes of the vectors; None takes those known for `model`.
    `memory` (for the index, while building and serving) and `disk` (for table and index), of one machine:
    bytes, or text such as "16GB" or "512MiB"; None sets no bound. `latency`: seconds that one search may
    take; a store without indexes only notes it, unless there are others. `nodes`: machines of a Qdrant
    cluster.
    Raises InputError for arguments that make no sense, PlanError where no layout fits.
    """
    wanted = [on] if isinstance(on, str | Limits) else list(on)
    if not wanted:
        raise InputError("expected at least one backend to plan for, got none")
    known = [limits_of(one) if isinstance(one, str) else one for one in wanted]
    places = [(f"{limits.backend} {limits.version}", limits) for limits in known]
    return plan_places(
        dim,
        places=places,
        rows=rows,
        metric=metric,
        model=model,
        nested=nested,
        memory=memory,
        disk=disk,
        latency=latency,
        nodes=nodes,
    )[1]


def plan_places(
    dim: int,
    *,
    places: Sequence[tuple[str, Limits]],
    rows: int = DEFAULT_ROWS,
    metric: Metric = "cosine",
    model: str | None = None,
    nested: Sequence[int] | None = None,
    memory: int | str | None = None,
    disk: int | str | None = None,
    latency: float = LATENCY,
    nodes: int | None = None,
) -> tuple[int, Plan]:
    """Which of `places` suits best, counted from 0, and the plan for it, which says why not the others.

    `places`: the name that a place has in the explanation, as its URL, and its limits; the one that is liked
    best comes first. The rest, and what is raised, as for `plan`.
    """
    space, rows = make_space(dim, metric=metric, model=model, nested=nested), whole_number(rows, "rows", 0)
    if isinstance(latency, bool) or not isinstance(latency, int | float) or not 0 < latency < math.inf:
        raise InputError(f"expected a latency above 0, in seconds, got {latency!r}")
    budget = _Budget(_bytes(memory, "memory"), _bytes(disk, "disk"), float(latency))
    places = clustered(places, nodes)
    about = tuple(_about_model(space, asked=nested is None))
    outcomes = [(name, _plan(space, rows, limits, budget, about)) for name, limits in places]
    chosen = choose(outcomes, latency=budget.latency)
    if chosen is not None:
        return chosen
    what = f"no layout for {rows:,} vectors of {dim:,} dimensions"
    reasons = []
    for name, refused in outcomes:
        assert isinstance(refused, tuple)  # else it would have been chosen
        lines = "\n".join(f"- {line}" for line in grouped(refused))
        reasons.append(f"on {name} fits; refused were:\n{lines}")
    raise PlanError(f"{what} " + "\nand none ".join(reasons))


def clustered(places: Sequence[tuple[str, Limits]], nodes: int | None) -> list[tuple[str, Limits]]:
    """The places with a Qdrant of so many machines; as they are for None. Raises InputError without one."""
    if nodes is None:
        return list(places)
    nodes = whole_number(nodes, "nodes", 1)
    if nodes > 1 and not any(limits.backend == "qdrant" for _, limits in places):
        named = ", ".join(limits.backend for _, limits in places)
        raise InputError(
            f"expected qdrant among the backends for a cluster of {nodes:,} nodes, got {named}: the others "
            f"keep a collection on one machine"
        )
    return [
        (name, replace(limits, nodes=nodes) if limits.backend == "qdrant" else limits)
        for name, limits in places
    ]


def _plan(
    space: Space, rows: int, limits: Limits, budget: _Budget, about: tuple[str, ...]
) -> Plan | tuple[Refusal, ...]:
    """The first candidate that nothing speaks against in one place, or all refusals."""
    refused: list[Refusal] = []
    for layout in candidates(space, rows, limits):
        reason = limits.objection(space, layout)
        if reason is None:
            costs = estimate(space, layout, rows=rows, limits=limits, memory=budget.memory)
            reason = _too_much(space, layout, rows, limits, budget, costs)
            if reason is None:
                notes = (*about, *_notes(space, layout, rows, limits, budget, costs))
                return Plan(space, rows, layout, limits, tuple(refused), costs, notes)
        refused.append(Refusal(layout, reason))
    return tuple(refused)


def _too_much(
    space: Space, layout: Layout, rows: int, limits: Limits, budget: _Budget, costs: Estimates
) -> str | None:
    """Why this layout breaks a budget, with both numbers."""
    total, index = costs.table_bytes + costs.index_bytes, layout.index
    each = " on each machine" if limits.nodes > 1 else ""
    if budget.disk is not None and total > budget.disk:
        return (
            f"it takes about {human(total)} on disk{each} (table {human(costs.table_bytes)}, index "
            f"{human(costs.index_bytes)}); the budget is {human(budget.disk)}"
        )
    if budget.memory is not None and index is not None and index.kind != "scan":
        if costs.build_memory_bytes > budget.memory:
            return (
                f"building its index takes about {human(costs.build_memory_bytes)} of memory{each}; the "
                f"budget is {human(budget.memory)}{_machines(limits, layout, costs, budget.memory)}"
            )
        if index.kind == "hnsw" and costs.serve_memory_bytes > budget.memory:
            return (
                f"its index of about {human(costs.serve_memory_bytes)}{each} is read at random and has to "
                f"stay in memory; the budget is {human(budget.memory)}"
                f"{_machines(limits, layout, costs, budget.memory)}"
            )
    if costs.scan_seconds <= budget.latency or not limits.indexed:
        return None
    took, allowed = lasting(costs.scan_seconds), lasting(budget.latency)
    if index is not None and index.kind == "ivfflat":
        part = f"{index.probes:,} of {index.lists:,} lists"
        return f"one search reads {part}, which takes about {took}; the budget is {allowed}"
    what = "a scan of the copy" if index is not None else "an exact scan"
    return f"{what} of {rows:,} x {layout.index_dim(space.dim):,} takes about {took}; the budget is {allowed}"


def _machines(limits: Limits, layout: Layout, costs: Estimates, memory: int) -> str:
    """How large a Qdrant cluster would have to be for this layout's memory; nothing to say for others."""
    if limits.backend != "qdrant":
        return ""
    kept = layout.spread.replication if layout.spread else 1
    once = max(costs.build_memory_bytes, costs.serve_memory_bytes) * limits.nodes / kept
    machines = max(math.ceil(2 * once / memory), 2)
    return f"; a cluster of {machines:,} such machines would hold it, each shard kept twice"


def _notes(
    space: Space, layout: Layout, rows: int, limits: Limits, budget: _Budget, costs: Estimates
) -> Iterator[str]:
    if limits.assumed:
        yield f"{limits.backend} {limits.version} is assumed; name another as {limits.backend}@VERSION"
    if limits.indexed:
        default = ", the default" if budget.latency == LATENCY else ""
        yield f"one search may take {lasting(budget.latency)}{default}; times are rough"
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


def make_space(
    dim: int,
    *,
    metric: Metric = "cosine",
    model: str | None = None,
    nested: Sequence[int] | None = None,
) -> Space:
    """A Space, if its parts make sense; `nested` None takes the Matryoshka sizes known for `model`.

    Raises InputError.
    """
    dim = whole_number(dim, "dim", 1)
    if metric not in get_args(Metric):
        raise InputError(f"expected the metric 'cosine', 'ip' or 'l2', got {metric!r}")
    if model is not None and not isinstance(model, str):
        raise InputError(f"expected the model's name as text, got {model!r}")
    if nested is None:
        return Space(dim, metric, models.nested_sizes(model, dim=dim), model)
    given = {whole_number(size, "a nested size", 1) for size in nested}
    return Space(dim, metric, tuple(sorted((size for size in given if size < dim), reverse=True)), model)


def _about_model(space: Space, *, asked: bool) -> Iterator[str]:
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


def whole_number(value: object, name: str, least: int) -> int:
    """`value` as an int of at least `least`. Raises InputError, which calls it `name`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # anything may come; TypeError is caught
    except TypeError:
        raise InputError(f"expected {name} as a whole number, got {value!r}") from None
    if number < least:
        raise InputError(f"expected {name} of at least {least}, got {number}")
    return number


def _bytes(value: int | str | None, name: str) -> int | None:
    if value is None or isinstance(value, str):
        return None if value is None else in_bytes(value, name)
    return in_bytes(whole_number(value, name, 0), name)
