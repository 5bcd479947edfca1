"""What the figures have in common: axes, legends, and a figure drawn for both widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from ..recall import Recall
from .drawing import COLOURS, Width, drawing, svg

# what is known of drawn things, by their gid
Marks: TypeAlias = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure for a page: both drawings, and what stands below."""

    name: str
    title: str
    caption: str
    wide: Markup
    narrow: Markup


def both(name: str, draw: Callable[[Width], tuple[Figure, Marks]], *, title: str, caption: str) -> Drawn:
    """A figure drawn for both widths; `draw` gives the drawing and what is known of its marks."""
    parts: dict[Width, Markup] = {}
    widths: tuple[Width, ...] = ("wide", "narrow")
    with drawing():
        for width in widths:
            figure, marks = draw(width)
            parts[width] = svg(figure, name=f"{name}-{width}", title=title, text=caption, marks=marks)
    return Drawn(name, title, caption, parts["wide"], parts["narrow"])


def target_line(axes: Axes, target: float | None) -> None:
    """The recall that is wanted, as a broken line with its name."""
    if target is None:
        return
    line = axes.axhline(target, color=COLOURS["ink"], linewidth=1.2, linestyle=(0, (5, 3)), zorder=2)
    line.set_gid("target")
    axes.annotate(
        f"wanted: {target:g}", (0, target), xycoords=("axes fraction", "data"),
        xytext=(4, -4), textcoords="offset points", va="top", fontsize=10.5, zorder=5,
    ).set_gid("target-label")  # fmt: skip


def recall_axis(axes: Axes, k: int, found: Iterable[Recall], target: float | None) -> None:
    """Recall upwards, with room for the intervals and the target."""
    low = min([one.low for one in found] + ([] if target is None else [target]))
    span = max(1 - low, 0.05)
    axes.set_ylim(max(low - 0.12 * span, -0.04), 1 + 0.06 * span)
    axes.set_ylabel(f"recall@{k}")
    axes.yaxis.set_major_locator(_UpToOne())


# how much of a stretched axis belongs to recall close to 1: the smaller, the more
_KNEE = 0.03
_STRETCHED = (0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 1)


def stretched(axes: Axes, k: int, found: Sequence[Recall], target: float | None) -> None:
    """Recall upwards, with more room the closer to 1 where much lies far below: there layouts compete."""
    low = min([one.low for one in found] + ([] if target is None else [target]))
    if low > 0.8:
        recall_axis(axes, k, found, target)
        return
    axes.set_yscale("function", functions=(_stretch, _shrink))
    bottom, top = _stretch(np.array([low, 1.0]))
    axes.set_ylim(*_shrink(np.array([bottom - 0.05 * (top - bottom), top + 0.07 * (top - bottom)])))
    axes.yaxis.set_major_locator(FixedLocator(_STRETCHED))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel(f"recall@{k} (stretched towards 1)")


def _stretch(recall: NDArray[np.float64]) -> NDArray[np.float64]:
    # matplotlib asks for values beyond the axis, too
    return -np.log(np.maximum(1 + _KNEE - recall, 1e-9))


def _shrink(height: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 + _KNEE - np.exp(-height)


class _UpToOne(MaxNLocator):
    """Round values of recall; the room above 1 is for marks, not for numbers."""

    def __init__(self) -> None:
        super().__init__(nbins=6, steps=[1, 2, 2.5, 5, 10])

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Ticks from 0 to 1."""
        return [value for value in super().tick_values(vmin, vmax) if -1e-9 <= value <= 1 + 1e-9]


def log_ticks(axes: Axes, low: float, high: float, text: Callable[[float], str], *, most: int) -> None:
    """Round values on a logarithmic axis from `low` to `high`: as dense as `most` allows."""
    for steps in ((1, 2, 5), (1, 3), (1,), (1,)):
        ticks = [
            step * 10.0**power
            for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for step in steps
            if low <= step * 10.0**power <= high
        ]
        if len(ticks) <= most:
            break
    else:
        ticks = ticks[:: math.ceil(len(ticks) / most)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value).replace(".0 ", " ")))


def legend(figure: Figure, handles: Sequence[Line2D], columns: int) -> None:
    """A legend above the axes, in so many columns."""
    figure.legend(
        handles=handles, loc="outside upper left", ncols=columns, handletextpad=0.5, columnspacing=1.4,
        borderpad=0.0, borderaxespad=0.2, handlelength=1.6,
    )  # fmt: skip


def in_use(axes: Axes, value: float) -> None:
    """A broad line behind everything at what is in use."""
    axes.axvline(value, color=COLOURS["soft"], linewidth=7, alpha=0.35, zorder=1)
