"""One place out of several for a collection: the one that keeps and searches most of each vector.

Places come in the user's order; a later one is chosen only where it serves more exactly than all before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from .explain import describe, grouped, human, lasting
from .types import Layout

if TYPE_CHECKING:
    from .planner import Plan, Refusal

    # what planning for one place gave: a plan, or nothing but refusals
    Outcome: TypeAlias = Plan | tuple[Refusal, ...]

# what a layout gives up, the less the better
_WHOLE, _PART, _HALF, _CUT, _SLOW = range(5)
_SERVES = {
    _WHOLE: "searches the whole vectors",
    _PART: "searches a part of what tells the vectors apart, and re-ranks on the whole",
    _HALF: "stores the vectors in half precision alone",
    _CUT: "cuts the vectors at the door",
    _SLOW: "has no index",
}
_CODES = ("turbo2", "turbo1", "bit")
# more sentences than this are not read
_MOST = 3


@dataclass(frozen=True, slots=True)
class Other:
    """A place that was not chosen: its own best layout, None where nothing fits; why not, in sentences."""

    place: str
    layout: Layout | None
    reasons: tuple[str, ...]

    def to_dict(self, dim: int) -> dict[str, Any]:
        """The place ready for JSON; `best` is its layout for `dim` dimensions in words."""
        return {
            "place": self.place,
            "best": None if self.layout is None else describe(self.layout, dim),
            "layout": None if self.layout is None else self.layout.to_dict(),
            "reasons": list(self.reasons),
        }


def choose(outcomes: Sequence[tuple[str, Outcome]], *, latency: float) -> tuple[int, Plan] | None:
    """Which of the places suits best, and its plan, which says why; None where nothing fits in any.

    `outcomes`: the name of each place, in order of preference, with what planning for it gave. `latency`:
    seconds that one search may take.
    """
    grades = [_LAST if isinstance(found, tuple) else _grade(found, latency) for _, found in outcomes]
    best = min(range(len(outcomes)), key=grades.__getitem__)
    place, chosen = outcomes[best]
    if isinstance(chosen, tuple):
        return None
    if len(outcomes) == 1:
        return best, replace(chosen, place=place)
    others = tuple(
        Other(name, None, tuple(_nothing(found)))
        if isinstance(found, tuple)
        else Other(name, found.layout, tuple(_worse(found, grades[number], chosen, grades[best], latency)))
        for number, (name, found) in enumerate(outcomes)
        if number != best
    )
    return best, replace(
        chosen, place=place, here=tuple(_here(place, chosen, best, grades, latency)), others=others
    )


_LAST = _SLOW + 1


def _grade(plan: Plan, latency: float) -> int:
    return _SLOW if plan.estimates.scan_seconds > latency else _gives_up(plan.layout)


def _gives_up(layout: Layout) -> int:
    index = layout.index
    if layout.shorten:
        return _CUT
    if layout.element == "float16":
        return _HALF
    return _PART if index is not None and (index.shorten or index.element in _CODES) else _WHOLE


def _here(place: str, chosen: Plan, best: int, grades: Sequence[int], latency: float) -> Iterator[str]:
    grade = grades[best]
    serves = f"{place} {_SERVES[grade]}"
    if best:
        yield f"{serves}; no place named before it serves as exactly"
    elif grades.count(grade) > 1:
        yield f"{serves}; so would others, and it was named first"
    else:
        yield f"{serves}; no other place serves as exactly"
    index, seconds = chosen.layout.index, chosen.estimates.scan_seconds
    if seconds > latency:
        yield f"one search takes about {lasting(seconds)}; the budget is {lasting(latency)}"
    elif seconds:
        yield f"one search takes about {lasting(seconds)} of the {lasting(latency)} that it may"
    elif index is not None:
        bound = chosen.limits.indexed[f"{index.kind} {index.element}"]
        yield (
            f"its {index.kind} takes up to {bound.high:,} dimensions; these have "
            f"{chosen.layout.index_dim(chosen.space.dim):,}"
        )


def _worse(plan: Plan, grade: int, chosen: Plan, best: int, latency: float) -> Iterator[str]:
    """Why a place that could serve was not chosen, with what keeps it from serving better."""
    costs = plan.estimates
    disk = human(costs.table_bytes + costs.index_bytes)
    if grade == best:
        than = human(chosen.estimates.table_bytes + chosen.estimates.index_bytes)
        yield f"it would serve as exactly ({disk} on disk, {than} at the chosen place), and was named later"
        return
    if grade == _SLOW:
        took = lasting(costs.scan_seconds)
        serves = "finds enough only by reading more" if plan.limits.indexed else _SERVES[grade]
        yield f"it {serves}: one search takes about {took}; the budget is {lasting(latency)}"
        return
    yield f"it {_SERVES[grade]}, {disk} on disk"
    better = [one for one in plan.refused if _gives_up(one.layout) < grade]
    # what speaks against a graph says most; lists and pages of rows are refused for much the same
    graphs = [one.reason for one in better if one.layout.index and one.layout.index.kind == "hnsw"]
    scans = [one.reason for one in better if not one.layout.index and not one.layout.inline]
    yield from list(dict.fromkeys((*graphs, *scans)))[:_MOST]


def _nothing(refused: tuple[Refusal, ...]) -> Iterator[str]:
    yield f"nothing fits there; {len(refused):,} layouts were refused"
    yield from list(grouped(refused))[:_MOST]
