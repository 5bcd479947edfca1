"""Words beside marks, where they hide least."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox, BboxBase

from ..explain import human
from .values import Candidate


def labels(figure: Figure, axes: Axes, known: Sequence[tuple[int, Candidate]]) -> None:
    """Writes what was chosen beside its mark and numbers beside the others, where they hide least.

    Marks that touch share one label.
    """
    figure.draw_without_rendering()
    points = [axes.transData.transform((one.bytes or 1, one.recall.mean)) for _, one in known if one.recall]
    taken: list[Bbox] = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in points]
    taken += [text.get_window_extent() for text in axes.texts]
    groups: list[list[int]] = []
    for place, (x, y) in enumerate(points):
        near = (
            group
            for group in groups
            if known[group[0]][1].state != "chosen"
            and any(math.hypot(x - points[one][0], y - points[one][1]) < 13 for one in group)
        )
        group = next(near, None)
        if group is None:
            groups.append([place])
        else:
            group.append(place)
    for group in groups:
        number, one = known[group[0]]
        chosen = one.state == "chosen"
        assert one.recall is not None
        assert one.bytes is not None
        text = axes.annotate(
            f"chosen: {one.recall.mean:.3f}, {human(one.bytes)}" if chosen else _numbers(known, group),
            (one.bytes, one.recall.mean),
            xytext=(0, 0), textcoords="offset points", annotation_clip=False, zorder=6,
            fontweight="bold" if chosen else "normal", fontsize=11 if chosen else 10,
        )  # fmt: skip
        # what stands inside the axes shall not make them smaller
        text.set_in_layout(False)
        text.set_gid("chosen-label" if chosen else f"number-{number}")
        own = [taken[place] for place in group]
        _place(text, axes.get_window_extent(), [box for box in taken if not any(box is one for one in own)])
        taken.append(text.get_window_extent())


def _numbers(known: Sequence[tuple[int, Candidate]], group: Sequence[int]) -> str:
    numbers = [known[place][0] for place in group]
    more = f" +{len(numbers) - 3}" if len(numbers) > 3 else ""
    return ", ".join(map(str, numbers[:3])) + more


# offsets from a mark in points, and which side of the text lies there; the best first
_SPOTS = [
    (11, 0, "left", "center"), (-11, 0, "right", "center"), (0, 11, "center", "bottom"),
    (0, -11, "center", "top"), (10, 9, "left", "bottom"), (10, -9, "left", "top"),
    (-10, 9, "right", "bottom"), (-10, -9, "right", "top"), (6, -30, "left", "top"),
    (-6, -30, "right", "top"), (6, 26, "left", "bottom"), (-6, 26, "right", "bottom"),
    (6, -60, "left", "top"), (-6, -60, "right", "top"),
]  # fmt: skip


def _place(text: Annotation, frame: BboxBase, taken: Sequence[Bbox]) -> None:
    """Moves a label to where it covers the least, and stays within the frame."""

    def cost(spot: tuple[int, int, str, str]) -> float:
        _put(text, spot)
        box = text.get_window_extent()
        outside = (
            max(frame.x0 - box.x0, 0) + max(box.x1 - frame.x1, 0)
            + max(frame.y0 - box.y0, 0) + max(box.y1 - frame.y1, 0)
        )  # fmt: skip
        covered = sum(bool(box.padded(1).overlaps(other)) for other in taken)
        return float(1000 * (outside > 0) + outside + 20 * covered)

    # min takes the first of equals
    _put(text, min(_SPOTS, key=cost))


def _put(text: Annotation, spot: tuple[int, int, str, str]) -> None:
    x, y, across, along = spot
    text.set_position((x, y))
    text.set(horizontalalignment=across, verticalalignment=along)
