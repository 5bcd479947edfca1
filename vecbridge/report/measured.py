"""What a collection's searches were found to be worth, as a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..explain import describe
from ..manifest import Manifest, Tuned
from ..recall import Recall
from ..types import Layout
from .pages import Fact, page
from .sweeps import sweep

if TYPE_CHECKING:
    from ..evaluate import Report
    from ..tuning import Step


def evaluation_page(
    name: str,
    url: str,
    report: Report,
    *,
    filtered: Sequence[Report] = (),
    steps: Sequence[Step] = (),
    manifest: Manifest,
) -> str:
    """The evaluation of collection `name` at `url` (without its password) as one self-contained HTML page.

    `filtered`: the same with filters. `steps`: search widths that were tried; without any, no figure is
    drawn.
    """
    layout, target = manifest.layout, _target(manifest)
    drawn = sweep(steps, k=report.k, target=target, current=_current(layout))
    return page(
        "evaluation.html",
        {
            "heading": f"{name}: {report.rows:,} records",
            "url": url,
            "layout": describe(layout, manifest.space.dim),
            "model": manifest.space.model or "",
            "index": _index(report),
            "report": report,
            "tiles": list(_tiles(report, target)),
            "missed": target is not None and report.queries > 0 and report.recall < target,
            "warnings": list(_warnings(report)),
            "tuning": list(_tuning(manifest)),
            "drawn": drawn,
            "latencies": _latencies(report),
            "filtered": [
                {
                    "filter": json.dumps(dict(one.where or {}), ensure_ascii=False, sort_keys=True),
                    "share": _percent(one.selectivity),
                    "matching": f"{one.matching:,}",
                    "recall": _recall(one) if one.queries else None,
                    "report": one,
                }
                for one in filtered
            ],
            "steps": [
                {"width": _width(one.layout), "step": one, "now": _same(one.layout, layout)} for one in steps
            ],
            "width_name": _current(layout)[0],
            "drift": "" if report.drift is None else str(report.drift),
            "how": list(_how(report)),
        },
    )


def _target(manifest: Manifest) -> float | None:
    return manifest.recall if manifest.tuned is None else manifest.tuned.target


def _recall(report: Report) -> Recall:
    return Recall(report.recall, report.low, report.high, report.queries)


def _current(layout: Layout) -> tuple[str, int, int]:
    """The name of the search width, its value, and the oversampling."""
    index = layout.index
    if index is not None and index.kind == "ivfflat":
        return "probes", index.probes, layout.oversample
    return "ef_search", 0 if index is None else index.ef_search, layout.oversample


def _width(layout: Layout) -> int:
    return _current(layout)[1]


def _same(one: Layout, other: Layout) -> bool:
    return _current(one) == _current(other)


def _percent(share: float) -> str:
    return f"{share:.3g}" if share == 0 else f"{share:.2%}" if share < 0.1 else f"{share:.0%}"


def _tiles(report: Report, target: float | None) -> Iterator[Fact]:
    if not report.queries:
        yield Fact(f"recall@{report.k}", "—", "no query has anything to find")
        return
    found = _recall(report)
    remark, mood = f"likely {found.low:.3f} to {found.high:.3f}", ""
    if target is not None:
        met = found.mean >= target
        remark = f"{'meets' if met else 'MISSES'} the {target:g} wanted; {remark}"
        mood = "good" if met else "bad"
    yield Fact(f"recall@{report.k}", f"{found.mean:.3f}", remark, mood)
    yield Fact("one query, median", f"{report.p50_ms:.1f} ms", f"exact search: {report.exact_p50_ms:.1f} ms")
    yield Fact("95 of 100 within", f"{report.p95_ms:.1f} ms", f"exact search: {report.exact_p95_ms:.1f} ms")
    short = f"of {report.queries:,} queries found fewer than exact search"
    yield Fact("short results", f"{report.short:,}", short, "bad" if report.short else "")


def _index(report: Report) -> Fact:
    state = report.index
    if state.status == "ready":
        if state.used:
            return Fact("index", "used", "by the store's own account of this query", "good")
        return Fact("index", "NOT used", state.detail or "the store searches without it", "bad")
    if state.status == "none":
        return Fact("index", "none", state.detail or "every search is exact")
    if state.status == "missing":
        return Fact("index", "not built", state.detail or "call build_index", "bad")
    return Fact("index", "invalid", state.detail or "build it again", "bad")


def _warnings(report: Report) -> Iterator[str]:
    if report.drift is not None and report.drift.drifted:
        yield str(report.drift)
    if report.tuned is not None and report.outgrown:
        yield (
            f"the search width was tuned when there were {report.tuned.rows:,} records, now there are "
            f"{report.rows:,}: tune again"
        )


def _tuning(manifest: Manifest) -> Iterator[str]:
    tuned: Tuned | None = manifest.tuned
    if tuned is None:
        asked = "" if manifest.recall is None else f" A recall of {manifest.recall:g} is wanted."
        yield f"The search width was not tuned: it is the layout's default.{asked}"
        return
    verdict = "confirmed" if tuned.met else "NOT confirmed"
    yield (
        f"The search width was tuned for recall@{tuned.k} of {tuned.target:g} and {verdict} on queries "
        f"that had no part in the choice: {tuned.recall} with {tuned.recall.queries:,} queries among "
        f"{tuned.rows:,} records."
    )
    source = "stored records and blends of them" if tuned.held_out else "given"
    yield f"Those queries were {source}; seed {tuned.seed} chose and halved them."


def _latencies(report: Report) -> list[tuple[str, float, float]]:
    return [
        ("p50, the median", report.p50_ms, report.exact_p50_ms),
        ("p95", report.p95_ms, report.exact_p95_ms),
        ("p99", report.p99_ms, report.exact_p99_ms),
    ]


def _how(report: Report) -> Iterator[str]:
    yield f"queries: {report.queries:,}, {report.source}"
    yield f"the truth is exact search on {report.against}; a hit as near as its last one counts as right"
    yield "latencies are those of one search at a time, the way to the store and back included"
    yield f"seed {report.seed}; intervals are Wilson's at 95 %: so much could be luck with these queries"
