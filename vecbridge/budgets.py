"""What a plan may cost, and what it has to find: a sentence for what does not hold, else None."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .candidates import Aim
from .explain import human, lasting
from .limits import Limits
from .sizes import Estimates
from .types import Layout, Space


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes and seconds. `firm`: the latency was asked for, and is not the default."""

    memory: int | None
    disk: int | None
    latency: float
    firm: bool


def too_little(layout: Layout, aim: Aim | None) -> str | None:
    """Why this layout finds too few of the nearest vectors, with both numbers."""
    if aim is None:
        return None
    evidence = aim.evidence
    found = evidence.recall(layout, rows=aim.rows)
    if found is None:
        return f"its recall was not measured on the sample; {aim.target:g} is wanted"
    if aim.met(layout, found):
        return None
    again = f" with {layout.oversample:,}x oversampling" if layout.oversample > 1 else ""
    here = f"recall@{evidence.k} {found.mean:.3f}{again}"
    if aim.rows > evidence.rows:
        there = evidence.recall(layout, rows=evidence.rows)
        assert there is not None
        here = f"its expected {here} among {aim.rows:,} ({there.mean:.3f} among {evidence.rows:,})"
    else:
        here = f"its measured {here}"
    if layout.shorten is not None and found.mean >= aim.target:
        return (
            f"{here} may be as low as {found.low:.3f}, and what is cut off at the door is gone; "
            f"{aim.target:g} is wanted"
        )
    if found.mean >= aim.target:
        return f"{here} leaves too little room for what the index itself loses; {aim.target:g} is wanted"
    return f"{here} is too low; {aim.target:g} is wanted"


def too_big(layout: Layout, limits: Limits, budget: Budget, costs: Estimates) -> str | None:
    """Why this layout breaks the budget for disk or memory, with both numbers."""
    total, index = costs.table_bytes + costs.index_bytes, layout.index
    each = " on each machine" if limits.nodes > 1 else ""
    if budget.disk is not None and total > budget.disk:
        return (
            f"it takes about {human(total)} on disk{each} (table {human(costs.table_bytes)}, index "
            f"{human(costs.index_bytes)}); the budget is {human(budget.disk)}"
        )
    if budget.memory is None or index is None or index.kind == "scan":
        return None
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
    return None


def too_slow(
    space: Space, layout: Layout, rows: int, limits: Limits, budget: Budget, costs: Estimates
) -> str | None:
    """Why one search takes too long, with both numbers."""
    index = layout.index
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
