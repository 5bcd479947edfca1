"""The layout that suits an embedding space, with the reasons: the first candidate without an objection.

`candidates` is the policy: layouts in order of preference, the most exact first. Limits and budgets object,
each with a sentence. Nothing here talks to a server or loads a driver.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from . import models, sizes
from .errors import InputError, PlanError
from .explain import describe, explain, grouped, human, lasting
from .limits import Limits, largest_inline
from .limits import limits as limits_of
from .sizes import Estimates, estimate
from .types import Element, Index, Layout, Metric, Shorten, Space

DEFAULT_ROWS = 100_000
LATENCY = 0.1

# what the index holds instead of the whole vector where it is shortened: 512 dimensions with re-ranking found
# 99 % of the neighbours in 3,072 (Supabase, 1,000,000 x text-embedding-3-large, February 2024)
_INDEXED = (1024, 512, 256)
_DOOR = (1024, 512, 256, 128, 64)
# below this many signs too many vectors share a code: 128 and 960 dimensions of image features found 0 to
# 16 % of the neighbours even re-ranked (J. Katz, April 2024), text embeddings of 1,536 found 99 %
_SIGNS = 512
# the share of a float32 index's bytes below which half precision is the better default
_HALF = 0.6


@dataclass(frozen=True, slots=True)
class Refusal:
    """A layout that was preferred, and the sentence that speaks against it."""

    layout: Layout
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The layout chosen for a space, and why; `print(plan.explain())` shows it as text.

    `refused`: the layouts that would have been preferred, in order, each with its reason. `notes`: what was
    assumed, and what to watch.
    """

    space: Space
    rows: int
    layout: Layout
    limits: Limits = field(repr=False)
    refused: tuple[Refusal, ...]
    estimates: Estimates
    notes: tuple[str, ...]

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
    on: str | Limits = "pgvector",
    model: str | None = None,
    nested: Sequence[int] | None = None,
    memory: int | str | None = None,
    disk: int | str | None = None,
    latency: float = LATENCY,
) -> Plan:
    """The best layout for `rows` vectors of `dim` dimensions, with the reasons. Needs no server.

    `on`: "flat", "pgvector", a version such as "pgvector@0.6.2", or the Limits of a server.
    `nested`: Matryoshka sizes of the vectors; None takes those known for `model`.
    `memory` (for the index, while building and serving) and `disk` (for table and index): bytes, or text
    such as "16GB" or "512MiB"; None sets no bound. `latency`: seconds that one search may take; a store
    without indexes only notes it.
    Raises InputError for arguments that make no sense, PlanError where no layout fits.
    """
    space, rows = make_space(dim, metric=metric, model=model, nested=nested), whole_number(rows, "rows", 0)
    if isinstance(latency, bool) or not isinstance(latency, int | float) or not 0 < latency < math.inf:
        raise InputError(f"expected a latency above 0, in seconds, got {latency!r}")
    budget = _Budget(_bytes(memory, "memory"), _bytes(disk, "disk"), float(latency))
    limits = limits_of(on) if isinstance(on, str) else on
    notes = list(_about_model(space, asked=nested is None))

    refused: list[Refusal] = []
    for layout in candidates(space, rows, limits):
        reason = limits.objection(space, layout)
        if reason is None:
            costs = estimate(space, layout, rows=rows, limits=limits, memory=budget.memory)
            reason = _too_much(space, layout, rows, limits, budget, costs)
            if reason is None:
                notes += _notes(space, layout, rows, limits, budget, costs)
                return Plan(space, rows, layout, limits, tuple(refused), costs, tuple(notes))
        refused.append(Refusal(layout, reason))
    lines = "\n".join(f"- {line}" for line in grouped(refused))
    raise PlanError(
        f"no layout for {rows:,} vectors of {dim:,} dimensions on {limits.backend} {limits.version} fits; "
        f"refused were:\n{lines}"
    )


def candidates(space: Space, rows: int, limits: Limits) -> Iterator[Layout]:
    """Layouts worth considering, in order of preference: the more exact first, what cannot be undone last."""
    yield from _whole_vectors(space.dim, rows, limits, None)
    if limits.indexed:
        yield from _shortened_index(space, rows, limits)
    for size in space.nested:
        yield from _whole_vectors(size, rows, limits, Shorten("truncate", size))
    for size in _DOOR:
        if size * 2 <= space.dim:
            yield from _whole_vectors(size, rows, limits, Shorten("pca", size))


def _whole_vectors(dim: int, rows: int, limits: Limits, door: Shorten | None) -> Iterator[Layout]:
    """Layouts that search all of the `dim` stored dimensions."""
    elements: tuple[Literal["float32", "float16"], ...] = ("float32", "float16")
    for element in elements:
        plain = Layout(element=element, shorten=door)
        yield from _exact(plain, dim, limits)
        if not limits.indexed:
            continue
        if element == "float16":
            yield Layout(element=element, shorten=door, index=_hnsw("float16", 100))
            yield Layout(element=element, shorten=door, index=_ivfflat("float16", rows))
            continue
        half = Layout(shorten=door, index=_hnsw("float16", 100), oversample=2)
        full = Layout(shorten=door, index=_hnsw("float32", 100))
        half_lists = Layout(shorten=door, index=_ivfflat("float16", rows), oversample=2)
        full_lists = Layout(shorten=door, index=_ivfflat("float32", rows))
        fits = limits.indexed.get("hnsw float32")
        if fits and dim <= fits.high and _halves(dim):
            yield from (half, full, half_lists, full_lists)
        else:
            yield from (full, half, full_lists, half_lists)


def _exact(plain: Layout, dim: int, limits: Limits) -> Iterator[Layout]:
    if limits.page:
        inline = Layout(element=plain.element, shorten=plain.shorten, inline=True)
        yield inline
        if dim <= largest_inline(inline, limits.page):
            return
    yield plain
    if limits.page and plain.element == "float32":
        yield Layout(shorten=plain.shorten, index=Index("scan", "float16"), oversample=4)


def _shortened_index(space: Space, rows: int, limits: Limits) -> Iterator[Layout]:
    """Layouts that keep the whole vector to re-rank, and search less of it."""
    dim = space.dim
    # a model without known prefixes is asked once, for the reader to hear why not
    prefixes = [size for size in space.nested if 64 <= size <= _INDEXED[0]] or [min(dim // 2, _INDEXED[0])]
    for size in prefixes[:3] if dim > 1 else ():
        yield from _both(_hnsw("float16", 200, Shorten("truncate", size)), rows, oversample=20)
    if dim >= _SIGNS:
        if limits.page and dim > largest_inline(Layout(index=Index("scan", "float16")), limits.page):
            yield Layout(index=Index("scan", "bit"), oversample=40)
        yield from _both(_hnsw("bit", 400), rows, oversample=40)
    for size in _INDEXED:
        if size * 2 <= dim:
            yield from _both(_hnsw("float16", 200, Shorten("pca", size)), rows, oversample=20)
            if size < _INDEXED[0]:  # a float32 projection of 1,024 dimensions costs a page per row
                yield from _both(_hnsw("float32", 200, Shorten("pca", size)), rows, oversample=20)


def _both(index: Index, rows: int, *, oversample: int) -> Iterator[Layout]:
    yield Layout(index=index, oversample=oversample)
    yield Layout(index=_ivfflat(index.element, rows, index.shorten), oversample=oversample)


def _hnsw(element: Element, ef_search: int, shorten: Shorten | None = None) -> Index:
    return Index("hnsw", element, shorten, ef_search=ef_search)


def _ivfflat(element: Element, rows: int, shorten: Shorten | None = None) -> Index:
    """Lists as pgvector's README advises; more probes than it does, for recall on clustered vectors."""
    lists = min(max(rows // 1000 if rows <= 1_000_000 else math.isqrt(rows), 1), 32_768)
    probes = min(lists, max(10, math.ceil(1.5 * math.sqrt(lists))))
    return Index("ivfflat", element, shorten, lists=lists, probes=probes)


def _halves(dim: int) -> bool:
    full = sizes.hnsw_bytes(1000, "float32", dim)
    return sizes.hnsw_bytes(1000, "float16", dim) <= _HALF * full


def _too_much(
    space: Space, layout: Layout, rows: int, limits: Limits, budget: _Budget, costs: Estimates
) -> str | None:
    """Why this layout breaks a budget, with both numbers."""
    total, index = costs.table_bytes + costs.index_bytes, layout.index
    if budget.disk is not None and total > budget.disk:
        return (
            f"it takes about {human(total)} on disk (table {human(costs.table_bytes)}, index "
            f"{human(costs.index_bytes)}); the budget is {human(budget.disk)}"
        )
    if budget.memory is not None and index is not None and index.kind != "scan":
        if costs.build_memory_bytes > budget.memory:
            return (
                f"building its index takes about {human(costs.build_memory_bytes)} of memory; the budget is "
                f"{human(budget.memory)}"
            )
        if index.kind == "hnsw" and costs.serve_memory_bytes > budget.memory:
            return (
                f"its index of about {human(costs.serve_memory_bytes)} is read at random and has to stay in "
                f"memory; the budget is {human(budget.memory)}"
            )
    if costs.scan_seconds <= budget.latency or not limits.indexed:
        return None
    took, allowed = lasting(costs.scan_seconds), lasting(budget.latency)
    if index is not None and index.kind == "ivfflat":
        part = f"{index.probes:,} of {index.lists:,} lists"
        return f"one search reads {part}, which takes about {took}; the budget is {allowed}"
    what = "a scan of the copy" if index is not None else "an exact scan"
    return f"{what} of {rows:,} x {layout.index_dim(space.dim):,} takes about {took}; the budget is {allowed}"


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


_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("KMGTP", 1)
    for unit, base in (("B", 1000), ("IB", 1024))
}


def _bytes(value: int | str | None, name: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]{0,3})\s*", value, flags=re.ASCII)
        if found is None or found[2].upper() not in _UNITS:
            raise InputError(
                f"expected {name} in bytes or as text such as '16GB' (10^9) or '512MiB' (2^20), "
                f"got {value[:40]!r}"
            )
        number = int(float(found[1]) * _UNITS[found[2].upper()])
    else:
        number = whole_number(value, name, 0)
    if number < 1:
        raise InputError(f"expected {name} above 0 bytes, got {value!r}")
    return number
