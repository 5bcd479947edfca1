"""What a plan's page shows, worked out before anything is drawn: each candidate with its recall and bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import sizes
from ..budgets import too_little
from ..candidates import Aim, candidates
from ..evidence import SHOWN, Curve, Evidence
from ..explain import human
from ..objections import QUANTISED
from ..recall import Recall
from ..types import Element, Layout, Shorten

if TYPE_CHECKING:
    from ..planner import Plan

METHODS = {"truncate": "prefix", "pca": "PCA"}
_PRECISION: dict[Element, str] = {
    "float32": "full precision",
    "float16": "half precision",
    "int8": "8 bits",
    "turbo4": "4 bits",
    "turbo2": "2 bits",
    "turbo1": "1 bit",
    "bit": "signs, 1 bit",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout that was considered. `recall` and `bytes` are expected for the planned number of rows.

    `state`: "chosen"; "refused", where a budget or the target speaks against it; "impossible", where the
    store cannot hold it; "spare", where it is preferred less than the chosen one. `reason`: what speaks
    against it, empty where nothing is known to. `recall` is None where it was not measured, `bytes` (table
    and index) where nothing can be stored so.
    """

    layout: Layout
    state: str
    reason: str
    recall: Recall | None
    bytes: int | None

    @property
    def family(self) -> str:
        """What is searched, in two words: candidates of one family share a mark."""
        return family(self.layout)


# in the order of legends
FAMILIES = (
    "exact scan",
    "full precision",
    "half precision",
    "quantised",
    "signs",
    "prefix",
    "PCA",
    "cut at the door",
)


def family(layout: Layout) -> str:
    """Which of `FAMILIES` a layout belongs to."""
    index = layout.index
    if layout.shorten is not None:
        return "cut at the door"
    if index is None:
        return "exact scan"
    if index.shorten is not None:
        return METHODS[index.shorten.method]
    if index.element == "bit":
        return "signs"
    if index.element in QUANTISED:
        return "quantised"
    return "half precision" if index.element == "float16" else "full precision"


def considered(plan: Plan) -> tuple[Candidate, ...]:
    """The chosen layout, then the refused ones in the order of preference, then those preferred less.

    Those come with evidence alone: without, there is nothing to compare them by.
    """
    chosen = Candidate(plan.layout, "chosen", "", recall(plan, plan.layout), whole(plan.estimates))
    refused = [_refused(plan, one.layout, one.reason) for one in plan.refused]
    return chosen, *refused, *_spare(plan)


def _spare(plan: Plan) -> Iterator[Candidate]:
    """What comes after the chosen layout in the order of preference, with what it is known to miss."""
    if plan.evidence is None:
        return
    known = {plan.layout, *(one.layout for one in plan.refused)}
    aim = None if plan.target is None else Aim(plan.target, plan.evidence, plan.rows)
    for layout in candidates(plan.space, plan.rows, plan.limits, aim=aim):
        if layout in known:
            continue
        known.add(layout)
        found = _refused(plan, layout, too_little(layout, aim) or "")
        if found.state == "refused" and found.recall is not None:
            yield replace(found, state="spare")


def _refused(plan: Plan, layout: Layout, reason: str) -> Candidate:
    space = plan.space
    if plan.evidence is not None:
        # a prefix that was measured may be used, whatever is known of the model
        space = replace(space, nested=tuple({*space.nested, *plan.evidence.sizes("truncate")}))
    # what a store cannot hold has no size there that would mean anything
    impossible = plan.limits.objection(space, layout) is not None
    size = (
        None if impossible else whole(sizes.estimate(plan.space, layout, rows=plan.rows, limits=plan.limits))
    )
    return Candidate(layout, "impossible" if impossible else "refused", reason, recall(plan, layout), size)


def recall(plan: Plan, layout: Layout) -> Recall | None:
    """The recall@k to expect of a layout; None where nothing was measured of it."""
    return None if plan.evidence is None else plan.evidence.recall(layout, rows=plan.rows)


def whole(costs: sizes.Estimates) -> int:
    """Bytes on disk, table and index."""
    return costs.table_bytes + costs.index_bytes


def representation(element: Element, shorten: Shorten | None) -> str:
    """What candidates are looked for in, in a few words: centred PCA 512."""
    if shorten is None:
        return f"all dimensions, {_PRECISION[element]}"
    centred = "centred " if shorten.centred else ""
    precision = "" if element == "float16" else f", {_PRECISION[element]}"
    return f"{centred}{METHODS[shorten.method]} {shorten.dim:,}{precision}"


@dataclass(frozen=True, slots=True)
class Cell:
    """Recall of one representation with one oversampling: `expected` for the planned rows, and `measured`."""

    oversample: int
    expected: Recall
    measured: Recall
    meets: bool
    chosen: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One representation, its name and its cells; `chosen` where the plan searches in it."""

    name: str
    cells: tuple[Cell, ...]
    chosen: bool


def measured(plan: Plan, evidence: Evidence) -> tuple[Row, ...]:
    """Every representation that was measured, at the oversamplings that are shown."""
    used = _searched(plan.layout)

    def row(curve: Curve) -> Row:
        own = used is not None and evidence.curve(*used) is curve
        cells = tuple(
            Cell(
                size,
                expected := curve.at(size, curve.doublings(plan.rows)),
                curve.found[size - 1],
                plan.target is not None and expected.mean >= plan.target,
                own and size == plan.layout.oversample,
            )
            for size in SHOWN
            if size <= len(curve.found)
        )
        return Row(representation(curve.element, curve.shorten), cells, own)

    return tuple(row(curve) for curve in evidence.curves)


def _searched(layout: Layout) -> tuple[Element, Shorten | None] | None:
    if layout.shorten is not None:
        return "float16", layout.shorten
    if layout.index is not None:
        return layout.index.element, layout.index.shorten
    return (layout.element, None) if layout.element != "float32" else None


def shown(candidate: Candidate) -> str:
    """A candidate's numbers in a few words, for the pointer."""
    assert candidate.recall is not None
    assert candidate.bytes is not None
    return f"recall {candidate.recall}, {human(candidate.bytes)}"
