"""The figures of the pages, each drawn wide and narrow; marks differ in shape as well as in colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..evidence import Evidence
from ..explain import describe, human
from ..recall import Recall
from ..types import Shorten
from .axes import Drawn, Marks, both, in_use, legend, log_ticks, recall_axis, stretched, target_line
from .drawing import COLOURS, Colour, Dashes, Width, canvas
from .labels import labels
from .values import FAMILIES, Candidate, shown

if TYPE_CHECKING:
    from ..planner import Plan

# shape, colour and size of a family's mark; a star is kept for what was chosen
MARKS: dict[str, tuple[str, Colour, float]] = {
    "exact scan": ("o", "blue", 8),
    "full precision": ("s", "blue", 7.5),
    "half precision": ("D", "green", 7),
    "quantised": ("p", "green", 9),
    "signs": ("P", "green", 8.5),
    "prefix": ("^", "orange", 8.5),
    "PCA": ("v", "purple", 8.5),
    "cut at the door": ("X", "soft", 8.5),
}
_LINES: dict[str, tuple[str, Colour, Dashes]] = {
    "prefix": ("^", "orange", "-"),
    "PCA": ("v", "purple", "--"),
    "centred PCA": ("o", "blue", ":"),
}
# the oversamplings at which recall is drawn against dimension
_PANELS = (1, 4, 16)


def bytes_and_recall(plan: Plan, found: Sequence[Candidate]) -> Drawn | None:
    """Recall against bytes on disk for every candidate of which both are known; None where none is."""
    # numbered as in the table of candidates, where the chosen one is the first
    known = [(number, one) for number, one in enumerate(found, 1) if one.recall is not None and one.bytes]
    if not known or plan.evidence is None:
        return None
    k = plan.evidence.k

    def draw(width: Width) -> tuple[Figure, Marks]:
        figure = canvas(800, 430) if width == "wide" else canvas(330, 470)
        axes = figure.subplots()
        assert isinstance(axes, Axes)
        marks: dict[str, Mapping[str, str]] = {}
        # the chosen one last, on top of all others
        for number, one in reversed(known):
            marks |= _candidate(axes, one, number, dim=plan.space.dim)
        target_line(axes, plan.target)
        _sizes_axis(axes, [one.bytes or 0 for _, one in known])
        stretched(axes, k, [one.recall for _, one in known if one.recall], plan.target)
        _families(figure, [one for _, one in known], columns=5 if width == "wide" else 2)
        labels(figure, axes, known)
        return figure, marks

    caption = (
        "Each mark is a layout that was considered: the further up the more it finds, the further left the "
        "less it takes on disk, table and index together. The star was chosen; hollow marks were refused; "
        "small solid ones are preferred less. Thin vertical bars are 95 % intervals. What a graph itself "
        "loses comes on top, and is tuned away after loading."
    )
    return both("bytes", draw, title=f"Recall@{k} against bytes on disk", caption=caption)


def _candidate(axes: Axes, one: Candidate, number: int, *, dim: int) -> dict[str, Mapping[str, str]]:
    assert one.recall is not None
    assert one.bytes is not None
    chosen, spare = one.state == "chosen", one.state == "spare"
    colour = COLOURS[MARKS[one.family][1]]
    axes.plot(
        [one.bytes] * 2, [one.recall.low, one.recall.high], color=colour, solid_capstyle="butt",
        linewidth=2.0 if chosen else 1.0, alpha=0.45 if spare else 1.0,
    )  # fmt: skip
    gid = "chosen" if chosen else f"candidate-{number}"
    mark = _mark(one.family, one.state)
    mark.set_data([one.bytes], [one.recall.mean])
    mark.set_zorder({"chosen": 5, "refused": 4, "spare": 3}[one.state])
    mark.set_gid(gid)
    axes.add_line(mark)
    words = f"{describe(one.layout, dim)}: {shown(one)}"
    verdicts = {
        "chosen": f"chosen: {words}",
        "refused": f"{words}. Refused: {one.reason}",
        "spare": f"{words}. Preferred less{f': {one.reason}' if one.reason else ''}",
    }
    known = {
        "title": f"{number}. {verdicts[one.state]}",
        "recall": f"{one.recall.mean:.6f}",
        "bytes": str(one.bytes),
        "family": one.family,
        "state": one.state,
    }
    return {gid: known}


def _mark(family: str, state: str, colour: Colour | None = None) -> Line2D:
    """A mark as it is drawn: a star was chosen, hollow was refused, small and solid is preferred less."""
    shape, own, size = MARKS[family]
    ink, ground = COLOURS[colour or own], COLOURS["ground"]
    mark = Line2D([], [], linestyle="none", marker=shape, markersize=size, markeredgewidth=1.8)
    mark.set(markerfacecolor=ground, markeredgecolor=ink)
    if state == "chosen":
        mark.set(marker="*", markersize=22, markerfacecolor=ink, markeredgecolor=ground, markeredgewidth=1.0)
    elif state == "spare":
        mark.set(markersize=0.82 * size, markerfacecolor=ink, markeredgecolor=ground, markeredgewidth=0.6)
    return mark


def _sizes_axis(axes: Axes, values: Sequence[int]) -> None:
    low, high = min(values), max(values)
    # room at both ends, and never so little between them that no tick falls in
    ratio = max(high / low, 4.0)
    middle = math.sqrt(low * high)
    edge = math.sqrt(ratio) * ratio**0.08
    axes.set_xscale("log")
    axes.set_xlim(middle / edge, middle * edge)
    log_ticks(axes, middle / edge, middle * edge, human, most=6)
    axes.set_xlabel("table and index on disk (logarithmic)")


def _families(figure: Figure, known: Sequence[Candidate], *, columns: int) -> None:
    """What states and shapes mean, of those that are there."""
    states, there = {one.state for one in known}, {one.family for one in known}
    handles = []
    if known[0].state == "chosen":
        star = _mark(known[0].family, "chosen")
        star.set(markersize=14, label="chosen")
        handles.append(star)
    for state, name in (("refused", "refused"), ("spare", "preferred less")):
        if state in states:
            mark = _mark("exact scan", state, "soft")
            mark.set_label(name)
            handles.append(mark)
    for family in FAMILIES:
        if family in there:
            mark = _mark(family, "refused")
            mark.set_label(family)
            handles.append(mark)
    legend(figure, handles, columns)


def dimension_and_recall(plan: Plan) -> Drawn | None:
    """Recall against the dimension that vectors are shortened to, at some oversamplings; None without any."""
    evidence = plan.evidence
    if evidence is None:
        return None
    lines = _shortened(evidence)
    if not lines:
        return None
    k = evidence.k
    used = plan.layout.shorten or (plan.layout.index.shorten if plan.layout.index else None)

    def draw(width: Width) -> tuple[Figure, Marks]:
        panels = len(_PANELS)
        if width == "wide":
            figure = canvas(800, 330)
            grid = figure.subplots(1, panels, sharey=True, squeeze=False)
        else:
            figure = canvas(330, 760)
            grid = figure.subplots(panels, 1, sharey=True, squeeze=False)
        marks: dict[str, Mapping[str, str]] = {}
        everything: list[Recall] = []
        for axes, oversample in zip(grid.flat, _PANELS, strict=True):
            for name, sizes in lines.items():
                shape, colour, dashes = _LINES[name]
                found = [evidence_at(evidence, one, oversample, plan.rows) for one in sizes]
                everything += found
                dims = [one.dim for one in sizes]
                (line,) = axes.plot(
                    dims, [one.mean for one in found], marker=shape, color=COLOURS[colour], linestyle=dashes,
                    markersize=6.5,
                )  # fmt: skip
                axes.fill_between(
                    dims, [one.low for one in found], [one.high for one in found],
                    color=COLOURS[colour], alpha=0.13, linewidth=0,
                )  # fmt: skip
                gid = f"curve-{name.replace(' ', '-')}-{oversample}"
                line.set_gid(gid)
                marks[gid] = {"title": f"{name}, {oversample}x oversampling"}
            axes.set_title("no oversampling" if oversample == 1 else f"{oversample}x oversampling")
            _dimension_axis(axes, sorted({one.dim for sizes in lines.values() for one in sizes}))
            if used is not None:
                in_use(axes, used.dim)
            if plan.target is not None:
                axes.axhline(
                    plan.target, color=COLOURS["ink"], linewidth=1.2, linestyle=(0, (5, 3)), zorder=2
                ).set_gid(f"wanted-{oversample}")
        for number, axes in enumerate(grid.flat):
            recall_axis(axes, k, everything, plan.target)
            if width == "wide" and number:
                axes.set_ylabel("")
        handles = [
            Line2D([], [], marker=shape, color=COLOURS[colour], linestyle=dashes, markersize=6.5, label=name)
            for name in lines
            for shape, colour, dashes in (_LINES[name],)
        ]
        if plan.target is not None:
            handles.append(
                Line2D(
                    [],
                    [],
                    color=COLOURS["ink"],
                    linewidth=1.2,
                    linestyle=(0, (5, 3)),
                    label=f"wanted: {plan.target:g}",
                )
            )
        if used is not None:
            handles.append(
                Line2D([], [], color=COLOURS["soft"], linewidth=5, alpha=0.35, label=f"chosen: {used.dim:,}")
            )
        legend(figure, handles, 5 if width == "wide" else 1)
        return figure, marks

    caption = (
        "How much is found when candidates are looked for in shortened vectors and then re-ranked on the "
        "whole: without oversampling the shortened vectors decide alone; with more of it, more candidates "
        "are re-ranked. Centred: the common mean is taken off before. Bands are 95 % intervals."
    )
    return both("dimension", draw, title=f"Recall@{k} against dimension", caption=caption)


def _shortened(evidence: Evidence) -> dict[str, list[Shorten]]:
    """What was measured of shortened vectors, by the name of its line, by dimension."""
    found: dict[str, list[Shorten]] = {}
    curves = [one.shorten for one in evidence.curves if one.shorten and one.element == "float16"]
    for one in sorted(curves, key=lambda one: (one.method == "pca", one.centred, one.dim)):
        name = "prefix" if one.method == "truncate" else "centred PCA" if one.centred else "PCA"
        found.setdefault(name, []).append(one)
    return found


def evidence_at(evidence: Evidence, shorten: Shorten, oversample: int, rows: int) -> Recall:
    """Recall of shortened vectors among so many rows; they are known to be measured."""
    curve = evidence.curve("float16", shorten)
    assert curve is not None
    return curve.at(oversample, curve.doublings(rows))


def _dimension_axis(axes: Axes, dims: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(dims[0] / 1.25, dims[-1] * 1.25)
    # labels closer than this run into each other
    ticks = [dims[0]]
    for dim in dims[1:]:
        if dim >= 1.9 * ticks[-1]:
            ticks.append(dim)
    if len(ticks) > 5:
        ticks = ticks[:: math.ceil(len(ticks) / 5)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("dimensions")


def spectrum(plan: Plan) -> Drawn | None:
    """How much of the vectors lies in the first principal directions, as many as were computed."""
    evidence = plan.evidence
    if evidence is None or not evidence.spectrum:
        return None
    shares: list[float] = []
    for one in evidence.spectrum:
        shares.append(min((shares[-1] if shares else 0.0) + one, 1.0))
    used = plan.layout.shorten or (plan.layout.index.shorten if plan.layout.index else None)
    pca = used if used is not None and used.method == "pca" else None

    def draw(width: Width) -> tuple[Figure, Marks]:
        figure = canvas(800, 290) if width == "wide" else canvas(330, 280)
        axes = figure.subplots()
        assert isinstance(axes, Axes)
        count = len(shares)
        # 200 points draw the same curve as thousands
        kept = sorted({min(round(count ** (step / 199)), count) for step in range(200)})
        (line,) = axes.plot(kept, [shares[one - 1] for one in kept], color=COLOURS["purple"], linewidth=2.4)
        line.set_gid("spectrum")
        axes.fill_between(
            kept, [shares[one - 1] for one in kept], color=COLOURS["purple"], alpha=0.12, linewidth=0
        )
        if pca is not None and pca.dim <= count:
            in_use(axes, pca.dim)
        axes.set_xscale("log")
        axes.set_xlim(1, max(count, 2))
        axes.set_ylim(0, 1.03)
        log_ticks(axes, 1, max(count, 2), lambda value: f"{value:,.0f}", most=10 if width == "wide" else 5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.set_xlabel("strongest directions (logarithmic)")
        axes.set_ylabel("energy kept")
        if pca is not None and pca.dim <= count:
            legend(
                figure,
                [
                    Line2D(
                        [], [], color=COLOURS["soft"], linewidth=5, alpha=0.35, label=f"chosen: {pca.dim:,}"
                    )
                ],
                1,
            )
        return figure, {"spectrum": {"title": f"{shares[-1]:.1%} in {count:,} directions"}}

    what = "variance" if plan.space.metric == "l2" else "energy"
    caption = (
        f"The share of the vectors' {what} that lies in their strongest principal directions: the faster it "
        f"rises, the better a projection works. {evidence.mean_energy:.0%} lie in the direction of the "
        f"common mean."
    )
    return both("spectrum", draw, title=f"Spectrum: {what} in the first directions", caption=caption)
