"""Recall and latency against the search width, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from .axes import Drawn, Marks, both, in_use, legend, log_ticks, recall_axis, target_line
from .drawing import COLOURS, Colour, Dashes, Width, canvas

if TYPE_CHECKING:
    from ..tuning import Step


def sweep(
    steps: Sequence[Step], *, k: int, target: float | None, current: tuple[str, int, int]
) -> Drawn | None:
    """Recall and latency against the search width; None where nothing was tried.

    `current`: the name of the width ("ef_search" or "probes"), what it is now, and the oversampling.
    """
    name, now, oversampling = current
    tried = [one for one in steps if one.layout.index is not None]
    if not tried:
        return None

    def width_of(step: Step) -> int:
        assert step.layout.index is not None
        return step.layout.index.probes if name == "probes" else step.layout.index.ef_search

    groups: dict[int, list[Step]] = {}
    for step in tried:
        groups.setdefault(step.layout.oversample, []).append(step)
    styles: list[tuple[str, Colour, Dashes]] = [
        ("o", "blue", "-"), ("s", "orange", "--"), ("^", "green", "-."), ("D", "purple", ":"),
        ("v", "blue", "--"), ("P", "orange", ":"), ("X", "green", "-"), ("p", "purple", "-."),
    ]  # fmt: skip

    def draw(width: Width) -> tuple[Figure, Marks]:
        figure = canvas(800, 520) if width == "wide" else canvas(330, 560)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        marks: dict[str, Mapping[str, str]] = {}
        handles: list[Line2D] = []
        for number, (oversample, own) in enumerate(sorted(groups.items())):
            shape, colour, dashes = styles[number % len(styles)]
            own = sorted(own, key=width_of)
            x = [width_of(one) for one in own]
            above.fill_between(
                x, [one.recall.low for one in own], [one.recall.high for one in own],
                color=COLOURS[colour], alpha=0.13, linewidth=0,
            )  # fmt: skip
            above.plot(
                x, [one.recall.mean for one in own], marker=shape, color=COLOURS[colour], linestyle=dashes
            )
            below.plot(x, [one.p50_ms for one in own], marker=shape, color=COLOURS[colour], linestyle=dashes)
            below.fill_between(
                x, [one.p50_ms for one in own], [one.p95_ms for one in own],
                color=COLOURS[colour], alpha=0.13, linewidth=0,
            )  # fmt: skip
            if len(groups) > 1:
                label = "no oversampling" if oversample == 1 else f"{oversample}x oversampling"
                handles.append(
                    Line2D([], [], marker=shape, color=COLOURS[colour], linestyle=dashes, label=label)
                )
            for one in own:
                if (width_of(one), oversample) == (now, oversampling):
                    for axes, value, gid, text in (
                        (above, one.recall.mean, "current", f"recall {one.recall}"),
                        (
                            below,
                            one.p50_ms,
                            "current-latency",
                            f"p50 {one.p50_ms:.1f} ms, p95 {one.p95_ms:.1f} ms",
                        ),
                    ):
                        (mark,) = axes.plot(
                            [now], [value], linestyle="none", marker="*", markersize=20, zorder=5,
                            color=COLOURS["ink"], markeredgecolor=COLOURS["ground"],
                        )  # fmt: skip
                        mark.set_gid(gid)
                        marks[gid] = {
                            "title": f"{name}={now}: {text}",
                            "value": f"{value:.6f}",
                            "width": str(now),
                        }
        widths = sorted({width_of(one) for one in tried} | ({now} if now > 0 else set()))
        for axes in (above, below):
            axes.set_xscale("log")
            if now > 0:
                in_use(axes, now)
        low, high = max(widths[0], 1) / 1.2, max(widths[-1], 2) * 1.2
        below.set_xlim(low, high)
        log_ticks(below, low, high, lambda value: f"{value:,.0f}", most=10 if width == "wide" else 6)
        above.xaxis.set_minor_locator(NullLocator())
        recall_axis(above, k, [one.recall for one in tried], target)
        target_line(above, target)
        below.set_ylim(0, None)
        below.set_ylabel("ms: p50 to p95")
        below.set_xlabel(f"{name} (logarithmic)")
        if now > 0:
            handles.append(
                Line2D([], [], color=COLOURS["soft"], linewidth=5, alpha=0.35, label=f"now: {name} {now:,}")
            )
        legend(figure, handles, 4 if width == "wide" else 1)
        return figure, marks

    caption = (
        "Above, what is found, with 95 % intervals; below, how long one query takes, from the median to the "
        "slowest in twenty. The star and the grey line are the setting in use."
    )
    return both("sweep", draw, title=f"Recall@{k} and latency against {name}", caption=caption)
