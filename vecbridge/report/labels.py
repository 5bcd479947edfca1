"""Words beside marks, where they hide nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox, BboxBase

from ..explain import human
from .drawing import COLOURS
from .values import Candidate

# half of a mark's width in pixels
_HALF = {"chosen": 11.0, "refused": 6.0, "spare": 4.0}
# the room around words that stays clear, across and along: numbers side by side would read as one
_CLEAR = 5.0, 2.0
# marks this close to each other share one label
_SAME = 8.0
# how far away words may stand, with a line that leads to their mark
_FAR = {"chosen": 150, "refused": 60, "spare": 0}
_DIRECTIONS = 16


def labels(figure: Figure, axes: Axes, known: Sequence[tuple[int, Candidate]]) -> None:
    """Writes what was chosen beside its mark, and numbers beside the others where there is room.

    Marks in nearly one place share a label. Words farther off than the nearest place have a line that leads
    to their mark; those preferred less than the chosen one have a number at once beside them, or none.
    """
    figure.draw_without_rendering()

    def at(one: Candidate, recall: float) -> tuple[float, float]:
        x, y = axes.transData.transform((one.bytes or 1, recall))
        return float(x), float(y)

    found = [(one, one.recall) for _, one in known if one.recall is not None]
    points = [at(one, recall.mean) for one, recall in found]
    surroundings = _Surroundings(
        axes.get_window_extent(),
        [_around(point, _HALF[one.state]) for point, (one, _) in zip(points, found, strict=True)],
        [text.get_window_extent() for text in axes.texts],
        [Bbox([at(one, recall.low), at(one, recall.high)]).padded(1) for one, recall in found],
    )
    for group in _groups(points, known):
        _label(axes, [known[place] for place in group], points[group[0]], surroundings)


def _around(point: tuple[float, float], half: float) -> Bbox:
    return Bbox.from_bounds(point[0] - half, point[1] - half, 2 * half, 2 * half)


def _groups(points: Sequence[tuple[float, float]], known: Sequence[tuple[int, Candidate]]) -> list[list[int]]:
    """The marks around each first one; a chosen one stays alone."""
    groups: list[list[int]] = []
    for place, point in enumerate(points):
        near = (
            group
            for group in groups
            if known[group[0]][1].state != "chosen" and math.dist(point, points[group[0]]) < _SAME
        )
        group = next(near, None)
        if group is None:
            groups.append([place])
        else:
            group.append(place)
    return groups


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What words shall stay within, and what they shall not hide.

    `texts` grows as words are written, and with the lines that lead to them.
    """

    frame: BboxBase
    marks: list[Bbox]
    texts: list[Bbox]
    bars: list[Bbox]


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where words could stand: `x` and `y` from their mark in pixels, and which side of them lies there."""

    x: float
    y: float
    across: str
    along: str
    far: bool

    def box(self, point: tuple[float, float], width: float, height: float) -> Bbox:
        left = {"left": 0.0, "center": width / 2, "right": width}[self.across]
        down = {"bottom": 0.0, "center": height / 2, "top": height}[self.along]
        return Bbox.from_bounds(point[0] + self.x - left, point[1] + self.y - down, width, height)


def _spots(half: float, far: float) -> Iterator[_Spot]:
    """Places around a mark: at once beside it, then in wider and wider rings; the best first."""
    across, along = (half + room + 1 for room in _CLEAR)
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 1), (0.8, -1), (-0.8, 1), (-0.8, -1)):
        yield _spot(across * x, along * y, far=False)
    radius = half + 14
    while radius <= far:
        for step in range(_DIRECTIONS):
            angle = math.tau * step / _DIRECTIONS
            yield _spot(radius * math.cos(angle), radius * math.sin(angle), far=True)
        radius += 8


def _spot(x: float, y: float, *, far: bool) -> _Spot:
    size = math.hypot(x, y)
    across = "left" if x > 0.3 * size else "right" if x < -0.3 * size else "center"
    along = "bottom" if y > 0.3 * size else "top" if y < -0.3 * size else "center"
    return _Spot(x, y, across, along, far)


def _label(
    axes: Axes,
    group: Sequence[tuple[int, Candidate]],
    point: tuple[float, float],
    surroundings: _Surroundings,
) -> None:
    number, one = group[0]
    chosen = one.state == "chosen"
    assert one.recall is not None
    assert one.bytes is not None
    at = (one.bytes, one.recall.mean)
    text = axes.annotate(
        f"chosen: {one.recall.mean:.3f}, {human(one.bytes)}" if chosen else _numbers(group),
        at, xytext=(0, 0), textcoords="offset points", annotation_clip=False, zorder=6,
        fontweight="bold" if chosen else "normal", fontsize=11 if chosen else 10,
    )  # fmt: skip
    # what stands inside the axes shall not make them smaller
    text.set_in_layout(False)
    text.set_gid("chosen-label" if chosen else f"number-{number}")
    size = text.get_window_extent()
    half = _HALF[one.state]

    def cost(spot: _Spot) -> float:
        return _cost(spot, spot.box(point, size.width, size.height), point, surroundings)

    # min takes the first of equals
    best = min(_spots(half, _FAR[one.state]), key=cost)
    if cost(best) >= _HIDES and not chosen:
        text.remove()
        return
    _put(text, best)
    surroundings.texts.append(best.box(point, size.width, size.height))
    if best.far:
        surroundings.texts.extend(_around(step, 1) for step in _steps(best, point))
        leader = axes.annotate(
            "", at, xytext=(best.x, best.y), textcoords="offset points", annotation_clip=False, zorder=3.5,
            arrowprops={
                "arrowstyle": "-", "shrinkA": 1, "shrinkB": half, "linewidth": 1.0,
                "color": COLOURS["ink" if chosen else "soft"],
            },
        )  # fmt: skip
        leader.set_in_layout(False)
        if leader.arrow_patch is not None:
            leader.arrow_patch.set_gid("chosen-leader" if chosen else f"leader-{number}")


def _numbers(group: Sequence[tuple[int, Candidate]]) -> str:
    numbers = [str(number) for number, _ in group]
    more = f" +{len(numbers) - 3}" if len(numbers) > 3 else ""
    return ", ".join(numbers[:3]) + more


# the cost from which on words hide something, or are hidden
_HIDES = 100.0


def _cost(spot: _Spot, box: Bbox, point: tuple[float, float], around: _Surroundings) -> float:
    frame = around.frame
    outside = (
        max(frame.x0 - box.x0, 0) + max(box.x1 - frame.x1, 0)
        + max(frame.y0 - box.y0, 0) + max(box.y1 - frame.y1, 0)
    )  # fmt: skip
    words = box.padded(*_CLEAR)
    hidden = sum(bool(words.overlaps(other)) for other in (*around.marks, *around.texts))
    crossed = 0
    if spot.far:
        # the line passes under marks, but never through words
        steps = _steps(spot, point)
        crossed = sum(one.contains(*step) for one in around.marks for step in steps)
        hidden += any(one.contains(*step) for one in around.texts for step in steps)
    bars = sum(bool(words.overlaps(bar)) for bar in around.bars)
    return float(
        1000 * (outside > 0) + outside + _HIDES * hidden + 6 * crossed + 3 * bars
        + 0.2 * math.hypot(spot.x, spot.y)
    )  # fmt: skip


def _steps(spot: _Spot, point: tuple[float, float]) -> list[tuple[float, float]]:
    """Points on the line from a mark to its words, without those on the mark itself."""
    return [(point[0] + spot.x * step / 20, point[1] + spot.y * step / 20) for step in range(10, 20)]


def _put(text: Annotation, spot: _Spot) -> None:
    text.set_position((spot.x, spot.y))
    text.set(horizontalalignment=spot.across, verticalalignment=spot.along)
