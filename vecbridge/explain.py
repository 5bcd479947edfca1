"""A plan in words: for people who read it on a terminal, and for messages."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .evidence import SHOWN
from .objections import BITS, times
from .types import Element, Index, Layout, Shorten, Spread

if TYPE_CHECKING:
    from .evidence import Curve, Evidence
    from .places import Other
    from .planner import Plan, Refusal

_WIDTH = 88
_CODES: dict[Element, str] = {
    "float32": "float32",
    "float16": "float16",
    "int8": "8 bits",
    "turbo4": "4 bits",
    "turbo2": "2 bits",
    "turbo1": "1 bit",
    "bit": "signs",
}
# sizes of shortened vectors that a terminal shows; the rest is in the JSON and in the report
_SIZES = 5
_PRECISION: dict[Element, str] = {
    "float32": "",
    "float16": "half-precision ",
    "int8": "8-bit quantised ",
    "turbo4": "4-bit quantised ",
    "turbo2": "2-bit quantised ",
    "turbo1": "1-bit quantised ",
    "bit": "binary ",
}


def human(size: float) -> str:
    """A number of bytes in the unit that keeps it short: 8.2 GB."""
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if size < 999.5 or unit == "PB":
            return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 99.95 else f"{size:,.1f} {unit}"
        size /= 1000
    raise AssertionError


def lasting(seconds: float) -> str:
    """A duration with as many digits as a rough model deserves: 3.2 ms, 0.1 s, 15 s, 65 min, 3.5 h."""
    if seconds >= 7_200:
        return f"{seconds / 3_600:,.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    if 0 < seconds < 0.01:
        return f"{seconds * 1_000:.2g} ms"
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def describe(layout: Layout, dim: int) -> str:
    """A layout for vectors of `dim` dimensions in words."""
    stored, parts = layout.stored_dim(dim), []
    if layout.shorten:
        how = "reduced by centred PCA to" if layout.shorten.centred else "reduced by PCA to"
        if layout.shorten.method == "truncate":
            how = "cut to the prefix of"
        parts.append(f"vectors {how} {stored:,} dims at the door")
    half = layout.element == "float16"
    if layout.index is None:
        where = " inline in the table's pages" if layout.inline else ""
        parts.append(f"exact scan of {layout.element} vectors ({stored:,} dims){where}")
    else:
        parts.append(_index(layout.index, layout.index_dim(dim), stored))
        if layout.oversample > 1:
            parts.append(f"exact re-ranking on the stored {layout.element} vectors")
            parts.append(f"{layout.oversample}x oversampling")
        elif half:
            parts.append("vectors stored as float16")
    if layout.spread:
        parts.append(_spread(layout.spread))
    return ", ".join(parts)


def _spread(spread: Spread) -> str:
    confirmed = spread.write_consistency
    confirm = f", writes confirmed by {confirmed:,} machines" if confirmed > 1 else ""
    return f"spread in {spread.shards:,} shards, each kept {times(spread.replication)}{confirm}"


def _index(index: Index, dim: int, stored: int) -> str:
    precision = _PRECISION[index.element]
    dims = f"{dim:,} dims"
    source = ""
    if index.shorten:
        dims = f"{dim:,} of {stored:,} dims"
        source = {False: " on a PCA projection", True: " on a centred PCA projection"}[index.shorten.centred]
        if index.shorten.method == "truncate":
            source = " on the prefix"
    if index.kind == "scan":
        return f"scan of a {precision}copy{source} ({index.element}, {dims}) inline in the table's pages"
    if index.kind == "hnsw":
        return f"{precision}HNSW index{source} ({index.element}, {dims}, m={index.m})"
    return f"{precision}IVFFlat index{source} ({index.element}, {dims}, {index.lists:,} lists)"


def title(plan: Plan) -> str:
    """What was planned for, and on what, in one line."""
    space, limits = plan.space, plan.limits
    model = f" of {space.model}" if space.model else ""
    vectors = f"{plan.rows:,} vectors{model}, {space.dim:,} dimensions, {space.metric}"
    machines = f", {limits.nodes:,} machines" if limits.nodes > 1 else ""
    return f"{vectors}, on {limits.backend} {limits.version}{machines}"


def explain(plan: Plan) -> str:
    """The whole plan as text, at most 88 columns wide."""
    lines = [*textwrap.wrap(title(plan), _WIDTH)]
    lines += _section("Chosen", [describe(plan.layout, plan.space.dim)])
    lines += _section("Because", list(why(plan)))
    lines += _section("Why here", list(plan.here))
    lines += _section("Measured", list(measured(plan)))
    if plan.evidence is not None:
        lines += _table(plan.evidence)
    lines += _section("Takes", list(_takes(plan)))
    lines += _section("Search width", list(_width(plan.layout)))
    lines += _section("Note", list(plan.notes))
    for number, other in enumerate(plan.others):
        lines += ["", "Elsewhere"] if not number else []
        lines += _wrapped("- ", f"{other.place}: {best(other, plan.space.dim)}")
        for reason in other.reasons:
            lines += _wrapped("  - ", reason)
    lines += _section("Refused", list(grouped(plan.refused)))
    return "\n".join(lines)


def best(other: Other, dim: int) -> str:
    """What a place that was not chosen would have done with vectors of `dim` dimensions."""
    return "nothing" if other.layout is None else describe(other.layout, dim)


def by_reason(refused: Sequence[Refusal]) -> dict[str, list[Layout]]:
    """The refused layouts in order, those together that fail for one reason."""
    layouts: dict[str, list[Layout]] = {}
    for one in refused:
        layouts.setdefault(one.reason, []).append(one.layout)
    return layouts


def grouped(refused: Sequence[Refusal]) -> Iterator[str]:
    """One line for each reason, with the layouts that it met in a few words, in order."""
    for reason, layouts in by_reason(refused).items():
        who = [_label(layout) for layout in layouts]
        more = f", and {len(who) - 3} more" if len(who) > 3 else ""
        yield f"{', '.join(who[:3])}{more}: {reason}"


def _label(layout: Layout) -> str:
    index, details = layout.index, []
    if index is None:
        text = "exact scan"
    else:
        text = f"{'scan of a copy' if index.kind == 'scan' else index.kind} on {index.element}"
        if index.shorten:
            details.append(_shortened(index.shorten))
    if layout.element == "float16":
        details.append("stored as float16")
    if layout.inline:
        details.append("inline")
    if layout.spread:
        details.append(f"{layout.spread.shards:,} shards")
    if layout.shorten:
        details.append(f"{_shortened(layout.shorten)} at the door")
    return f"{text} ({', '.join(details)})" if details else text


def _shortened(shorten: Shorten) -> str:
    if shorten.method == "truncate":
        return f"prefix {shorten.dim:,}"
    return f"{'centred ' if shorten.centred else ''}PCA {shorten.dim:,}"


def measured(plan: Plan) -> Iterator[str]:
    """What a sample said about the chosen layout, and how it was asked; nothing without evidence."""
    evidence, expected = plan.evidence, plan.expected
    if evidence is None:
        return
    if expected is not None:
        wanted = "" if plan.target is None else f"; {plan.target:g} is wanted"
        among = f" among {plan.rows:,} vectors" if plan.rows > evidence.rows else ""
        rest = ", before what the index itself loses" if plan.layout.index is not None else ""
        yield f"recall@{evidence.k} expected of this layout: {expected}{among}{rest}{wanted}"
    source = f"held out of the sample, seed {evidence.seed}" if evidence.held_out else "given"
    yield (
        f"measured with {evidence.queries:,} queries ({source}) against exact search in all dimensions among "
        f"{evidence.rows:,} vectors, in {lasting(evidence.seconds)}"
    )


def representations(evidence: Evidence) -> Iterator[tuple[str, list[float]]]:
    """Representations in a few words, each with its recall at the oversamplings `SHOWN`.

    Of many sizes some, of two projections to one size the better.
    """
    for one in evidence.curves:
        if one.shorten is None:
            yield _CODES[one.element], _shown(one, evidence.rows)
    for method in ("truncate", "pca"):
        sizes = evidence.sizes(method)
        step = -(-len(sizes) // _SIZES)
        for size in sizes[::-1][:: max(step, 1)]:
            shorten = Shorten("truncate", size) if method == "truncate" else evidence.projection(size)
            curve = evidence.curve("float16", shorten)
            if shorten is not None and curve is not None:
                yield _shortened(shorten), _shown(curve, evidence.rows)


def _shown(curve: Curve, rows: int) -> list[float]:
    """Recall among so many rows; a projection was measured among those that had no part in its fit."""
    return [curve.at(oversample, curve.doublings(rows)).mean for oversample in SHOWN]


def _table(evidence: Evidence) -> Iterator[str]:
    yield "  recall where for each hit so many candidates are re-ranked:"
    yield f"  {'':<18}" + "".join(f"{size:>7}x" for size in SHOWN)
    for name, found in representations(evidence):
        yield f"  {name:<18}" + "".join(f"{share:>8.3f}" for share in found)


def _section(title: str, items: list[str]) -> Iterator[str]:
    if not items:
        return
    yield ""
    yield title
    for item in items:
        yield from _wrapped("- ", item)


def _wrapped(mark: str, text: str) -> list[str]:
    indent = " " * len(mark)
    return textwrap.wrap(text, _WIDTH, initial_indent=mark, subsequent_indent=indent, break_on_hyphens=False)


def why(plan: Plan) -> Iterator[str]:
    """The reasons for the chosen layout, a sentence each."""
    layout, index = plan.layout, plan.layout.index
    if plan.refused:
        before = "1 was" if len(plan.refused) == 1 else f"{len(plan.refused):,} were"
        yield f"it is the first in order of preference that nothing speaks against; {before} refused"
    else:
        yield "it is the layout preferred most, and nothing speaks against it"
    if layout.shorten:
        yield "nothing fits that keeps the whole vectors"
    if layout.spread:
        kept = times(layout.spread.replication)
        yield (
            f"it is spread over {plan.limits.nodes:,} machines in {layout.spread.shards:,} shards, each kept "
            f"{kept}: they share memory and searches, and any one may fail"
        )
    if layout.element == "float16":
        yield "half precision halves what is stored, and rarely changes which vectors are nearest"
    if index is None:
        yield "a scan is exact: it finds the true neighbours, needs no index and no tuning"
    elif index.kind == "scan":
        yield "the copy lies in the table's pages and is read far faster than vectors kept beside the rows"
    elif index.kind == "ivfflat":
        yield "its lists are built in less memory than an hnsw graph"
    if index is None:
        return
    # without oversampling the index alone decides which records are found
    again = "re-ranking on the whole is exact" if layout.oversample > 1 else "no more are needed"
    order = "; re-ranking on the whole restores the order" if layout.oversample > 1 else ""
    if index.shorten and index.shorten.method == "truncate":
        if plan.evidence is not None and plan.target is not None:
            yield f"a prefix finds enough candidates, by measure; {again}"
        else:
            yield f"the model is trained so that a prefix is an embedding; {again}"
    elif index.shorten:
        yield f"the projection keeps most of what tells the vectors apart; {again}"
    elif index.element in ("int8", "turbo4", "turbo2", "turbo1"):
        bits = BITS[index.element]
        yield (f"{bits} bit{'s' if bits > 1 else ''} for each dimension: {32 // bits} times smaller{order}")
    elif index.element == "bit":
        yield f"one bit for each dimension is 32 times smaller{order}"
    elif index.element == "float16" and layout.element == "float32":
        kept = "; float32 stays, to re-rank" if layout.oversample > 1 else ""
        yield f"half precision finds the same neighbours in half the bytes{kept}"


def _takes(plan: Plan) -> Iterator[str]:
    costs = plan.estimates
    both = costs.table_bytes + costs.index_bytes
    each = " on each machine" if plan.limits.nodes > 1 else ""
    yield (
        f"disk{each}: {human(both)} (table {human(costs.table_bytes)}, index {human(costs.index_bytes)}), "
        f"documents and metadata not counted"
    )
    if costs.build_memory_bytes:
        build, serve = human(costs.build_memory_bytes), human(costs.serve_memory_bytes)
        yield f"memory{each}: {build} to build the index, {serve} to serve"
    else:
        yield f"memory{each}: {human(costs.serve_memory_bytes)} to keep all that is scanned cached"
    how = "as measured there" if costs.calibrated else "roughly"
    built = f", {lasting(costs.build_seconds)} to build the index" if costs.build_seconds else ""
    yield f"time, {how}: {lasting(costs.query_seconds)} for one search{built}"


def _width(layout: Layout) -> Iterator[str]:
    index = layout.index
    if index is None:
        return
    if index.kind == "hnsw":
        yield f"ef_search={index.ef_search}: candidates kept while walking the graph"
    elif index.kind == "ivfflat":
        yield f"probes={index.probes}: lists read of {index.lists:,}"
    if layout.oversample > 1:
        again = 10 * layout.oversample
        yield f"oversampling {layout.oversample}: for 10 hits, {again} candidates are re-ranked"
