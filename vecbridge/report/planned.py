"""A plan as a page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..evidence import SHOWN, Evidence
from ..explain import best, describe, grouped, human, lasting, title, why
from ..recall import Recall
from ..sizes import Estimates
from ..types import Layout
from . import figures, values
from .pages import Fact, page

if TYPE_CHECKING:
    from ..planner import Plan


@dataclass(frozen=True, slots=True)
class _Line:
    """A candidate as the last tables show it; `number` is beside its mark in the figure."""

    number: int
    words: str
    disk: str
    recall: Recall | None
    verdict: str
    reason: str


def plan_page(plan: Plan) -> str:
    """The plan as one self-contained HTML page; with evidence, with figures of what was measured."""
    evidence, dim = plan.evidence, plan.space.dim
    found = values.considered(plan)
    lines = [
        _Line(
            number,
            describe(one.layout, dim),
            "—" if one.bytes is None else human(one.bytes),
            one.recall,
            _VERDICTS[one.state],
            one.reason,
        )
        for number, one in enumerate(found, 1)
    ]
    drawn = (
        figures.bytes_and_recall(plan, found),
        figures.dimension_and_recall(plan),
        figures.spectrum(plan),
    )
    return page(
        "plan.html",
        {
            "heading": title(plan),
            "place": plan.place if plan.others else "",
            "choice": describe(plan.layout, dim),
            "tiles": list(_tiles(plan)),
            "missed": any(one.mood == "bad" for one in _tiles(plan)),
            "because": list(why(plan)),
            "here": plan.here,
            "evidence": evidence,
            "figures": [one for one in drawn if one is not None],
            "measured": "" if evidence is None else _measured(plan, evidence),
            "table_note": "" if evidence is None else _table_note(plan, evidence),
            "beyond": evidence is not None and evidence.doublings(plan.rows) > 0,
            "oversamplings": SHOWN,
            "rows": () if evidence is None else values.measured(plan, evidence),
            "command": _command(plan),
            "takes": [*_takes(plan), *_width(plan.layout)],
            "notes": plan.notes,
            "others": [
                {"place": one.place, "best": best(one, dim), "reasons": one.reasons} for one in plan.others
            ],
            "refused": list(grouped(plan.refused)),
            "refused_note": _refused_note(found),
            "considered": [one for one in lines if one.verdict != _VERDICTS["spare"]],
            "spare": [one for one in lines if one.verdict == _VERDICTS["spare"]],
            "few": _FEW,
            "how": [] if evidence is None else list(_how(evidence)),
        },
    )


_VERDICTS = {
    "chosen": "chosen",
    "refused": "refused",
    "impossible": "not possible here",
    "spare": "preferred less",
}
# more candidates that are preferred less than these are folded away
_FEW = 8


def _tiles(plan: Plan) -> Iterator[Fact]:
    """The numbers that a reader looks for first."""
    if plan.evidence is not None and (found := plan.expected) is not None:
        remark, mood = f"likely {found.low:.3f} to {found.high:.3f}", ""
        if plan.target is not None:
            met = found.mean >= plan.target
            remark = f"{'meets' if met else 'MISSES'} the {plan.target:g} wanted; {remark}"
            mood = "good" if met else "bad"
        yield Fact(f"recall@{plan.evidence.k} to expect", f"{found.mean:.3f}", remark, mood)
    elif plan.target is not None:
        yield Fact("recall wanted", f"{plan.target:g}", "not measured: no sample")
    costs, each = plan.estimates, _each(plan)
    parts = f"table {human(costs.table_bytes)}"
    if costs.index_bytes:
        parts += f", index {human(costs.index_bytes)}"
    yield Fact(f"on disk{each}", human(values.whole(costs)), parts)
    yield Fact(f"memory to serve{each}", human(costs.serve_memory_bytes), "what searches read")
    if costs.build_memory_bytes:
        yield Fact(f"memory to build{each}", human(costs.build_memory_bytes), "the index, once")
    yield Fact("one search", _took(costs.query_seconds), _source(costs))


def _each(plan: Plan) -> str:
    return ", each machine" if plan.limits.nodes > 1 else ""


def _took(seconds: float) -> str:
    """A time of which one or two digits are known."""
    if seconds >= 1:
        return lasting(seconds)
    return f"{seconds * 1000:.2g} ms" if seconds < 0.1 else f"{seconds:.1g} s"


def _source(costs: Estimates) -> str:
    return "by the speeds measured there" if costs.calibrated else "roughly; vecbridge calibrate tells more"


def _takes(plan: Plan) -> Iterator[Fact]:
    costs, each = plan.estimates, _each(plan)
    yield Fact(f"table on disk{each}", human(costs.table_bytes), "documents and metadata come on top")
    yield Fact(f"index on disk{each}", human(costs.index_bytes) if costs.index_bytes else "none")
    yield Fact(
        f"memory to build{each}", human(costs.build_memory_bytes) if costs.build_memory_bytes else "none"
    )
    yield Fact(
        f"memory to serve{each}",
        human(costs.serve_memory_bytes),
        "what searches read again and again and should stay cached",
    )
    if costs.build_seconds:
        yield Fact("building the index", _took(costs.build_seconds), _source(costs))
    yield Fact("one search for 10 hits", _took(costs.query_seconds), _source(costs))


def _width(layout: Layout) -> Iterator[Fact]:
    index = layout.index
    if index is not None and index.kind == "hnsw":
        yield Fact("ef_search", f"{index.ef_search:,}", "candidates kept while walking the graph")
    elif index is not None and index.kind == "ivfflat":
        yield Fact("probes", f"{index.probes:,}", f"lists read of {index.lists:,}")
    if layout.oversample > 1:
        yield Fact(
            "oversampling",
            f"{layout.oversample:,}x",
            f"for 10 hits, {10 * layout.oversample:,} candidates are re-ranked",
        )


def _measured(plan: Plan, evidence: Evidence) -> str:
    text = (
        f"Recall@{evidence.k} is the share of the {evidence.k} nearest vectors that a search finds. It was "
        f"measured with {evidence.queries:,} queries against exact search among {evidence.rows:,} of your "
        f"own vectors."
    )
    if evidence.doublings(plan.rows) > 0:
        text += (
            f" For {plan.rows:,} vectors the figures follow the trend that parts of the sample show: they "
            f"are expected, not measured."
        )
    return text


def _table_note(plan: Plan, evidence: Evidence) -> str:
    text = "Recall by how many times more candidates are re-ranked than hits are wanted. "
    if evidence.doublings(plan.rows) > 0:
        text += f"Large: expected among {plan.rows:,} vectors; small: measured in the sample."
    else:
        text += "Small: the 95 % interval."
    if plan.target is not None:
        text += f" ✓ finds the {plan.target:g} that is wanted."
    return text


def _refused_note(found: Sequence[values.Candidate]) -> str:
    impossible = sum(one.state == "impossible" for one in found)
    count = sum(one.state in ("refused", "impossible") for one in found)
    if not impossible:
        return f"{count:,} layouts would have been preferred, had nothing spoken against them."
    return (
        f"{count:,} layouts would have been preferred, had nothing spoken against them; {impossible:,} of "
        f"them the store cannot hold at all, and they are in no figure."
    )


def _how(evidence: Evidence) -> Iterator[str]:
    if evidence.held_out:
        yield (
            f"queries: {evidence.queries:,} vectors of the sample, left out of the rest and chosen at random "
            f"with seed {evidence.seed}; questions that are unlike your records may find less or more"
        )
    else:
        yield f"queries: {evidence.queries:,}, given; the sample was drawn with seed {evidence.seed}"
    yield (
        f"exact search in all {evidence.dim:,} dimensions among {evidence.rows:,} vectors is the truth; "
        f"every representation was computed as the stores do"
    )
    yield "intervals are Wilson's at 95 %: so much could be luck with these queries"
    yield f"measuring took {lasting(evidence.seconds)}"


def _command(plan: Plan) -> str:
    parts = ["vecbridge", "plan", "--sample", "vectors.npy", "--rows", str(plan.rows)]
    if plan.space.metric != "cosine":
        parts += ["--metric", plan.space.metric]
    if plan.space.model:
        parts += ["--model", plan.space.model]
    parts += ["--recall", f"{plan.target or 0.95:g}", "--on", plan.limits.backend, "--report", "plan.html"]
    return shlex.join(parts)
