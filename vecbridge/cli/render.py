"""Plans, hits and reports as people read them: on a wide terminal, a narrow one, or in a pipe.

Text from records and files becomes `Text`, never markup, so that [bold] in a document stays what it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..evidence import SHOWN
from ..explain import best, by_reason, describe, human, lasting, measured, representations, title, why
from ..unfinished import command
from . import output

if TYPE_CHECKING:
    # planning shall not wait for numpy
    from ..copying import Copied
    from ..embedders import Usage
    from ..evaluate import Report
    from ..evidence import Evidence
    from ..exporting import Exported
    from ..importing import Imported
    from ..ingestion import Summary
    from ..manifest import Manifest, Tuned
    from ..planner import Plan
    from ..reembedding import Reembedding
    from ..tuning import Tuning
    from ..types import Hit, IndexState, Metadata, Sizes

# lines longer than this are hard to read, however wide the terminal
_WIDEST = 110
# a recall that few would want more of
_GOOD = 0.95
_DOCUMENT, _METADATA, _VALUE = 240, 160, 60

# a name, a value and a remark
Fact: TypeAlias = tuple[str, str | Text, str]


def console(stream: TextIO | None = None) -> Console:
    """A console on standard output, or on another stream, that is not too wide to read."""
    made = Console(file=stream or sys.stdout, highlight=False, markup=False, emoji=False)
    made.width = min(made.width, _WIDEST)
    return made


def plan(made: Plan, out: Console | None = None) -> None:
    """The plan: what was chosen and why, what it takes, what was refused before it."""
    out = out or console()
    where = output.safe(made.place) if made.others else ""
    chosen: list[RenderableType] = [
        Text(_capital(describe(made.layout, made.space.dim)), style="bold green"),
        Text(),
    ]
    chosen += [_bullet(reason) for reason in why(made)]
    out.print(Text(output.safe(title(made)), style="bold"))
    if made.here:
        chosen += [Text(), *(_bullet(reason) for reason in made.here)]
    out.print(
        Panel(
            Group(*chosen),
            title=f"chosen: {where}" if where else "chosen",
            title_align="left",
            border_style="green",
            padding=(0, 1),
        )
    )
    if made.evidence is not None:
        said = (_bullet(line) for line in measured(made))
        _section(out, "Measured", Group(*said, Text(), _representations(made.evidence)))
    costs = made.estimates
    each = f", on each of {made.limits.nodes:,} machines" if made.limits.nodes > 1 else ""
    rows = [
        ("table on disk", human(costs.table_bytes), "documents and metadata come on top"),
        ("index on disk", human(costs.index_bytes) if costs.index_bytes else "none", ""),
        (
            "memory to build",
            human(costs.build_memory_bytes) if costs.build_memory_bytes else "none",
            "",
        ),
        ("memory to serve", human(costs.serve_memory_bytes), "what searches read and should stay cached"),
    ]
    how = (
        "as measured there"
        if costs.calibrated
        else "roughly; vecbridge calibrate measures it on your own store"
    )
    if costs.build_seconds:
        rows.append(("time to build", lasting(costs.build_seconds), how))
    rows.append(("one search", lasting(costs.query_seconds), how))
    _section(out, f"Takes{each}", _facts(rows))
    if made.notes:
        _section(out, "Notes", Group(*(_bullet(note) for note in made.notes)))
    if made.others:
        _section(out, "Elsewhere", _elsewhere(made))
    if made.refused:
        _section(out, "Refused before it", _refused(made))


def _representations(evidence: Evidence) -> Table:
    """What is found with each representation of the vectors, by how many candidates are re-ranked."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, pad_edge=False)
    table.add_column(f"recall@{evidence.k} at oversampling")
    for size in SHOWN:
        table.add_column(f"{size}x", justify="right")
    for name, found in representations(evidence):
        table.add_row(name, *(Text(f"{share:.3f}", style=_style(share)) for share in found))
    return table


def _style(share: float) -> str:
    return "green" if share >= _GOOD else "dim"


def _elsewhere(made: Plan) -> Table:
    """The places that were not chosen: what each would have done, and why not."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, pad_edge=False)
    table.add_column("place", style="cyan", ratio=1)
    table.add_column("at best", ratio=2)
    table.add_column("why not", ratio=2, style="yellow")
    for number, other in enumerate(made.others):
        if number:
            table.add_row()
        why_not = "\n".join(output.safe(reason) for reason in other.reasons)
        table.add_row(Text(output.safe(other.place)), Text(best(other, made.space.dim)), Text(why_not))
    return table


def _refused(made: Plan) -> Table:
    """Refused layouts in order, those that fail for one reason in one row."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, pad_edge=False)
    table.add_column("layout", ratio=1)
    table.add_column("why not", ratio=1, style="yellow")
    for number, (reason, layouts) in enumerate(by_reason(made.refused).items()):
        if number:
            table.add_row()
        more = f"\n… and {len(layouts) - 1} more" if len(layouts) > 1 else ""
        first = describe(layouts[0], made.space.dim)
        table.add_row(Text(f"{first}{more}"), Text(output.safe(reason)))
    return table


def hits(found: Sequence[Hit], *, filtered: bool) -> None:
    """Search results, nearest first."""
    out = console()
    if not found:
        out.print("no record matches the filter" if filtered else "the collection is empty")
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, pad_edge=False)
    table.add_column("#", justify="right")
    table.add_column("score", justify="right", style="green")
    table.add_column("record", ratio=1)
    for rank, hit in enumerate(found, 1):
        table.add_row(str(rank), _score(hit.score), _record(hit))
    out.print(table)


def _score(score: float) -> str:
    return f"{score:.3f}" if abs(score) < 1000 else f"{score:.4g}"


def _record(hit: Hit) -> RenderableType:
    parts = [Text(output.line(hit.id, 80), style="bold cyan")]
    if hit.document:
        parts.append(Text(output.line(hit.document, _DOCUMENT)))
    if hit.metadata:
        parts.append(Text(_pairs(hit.metadata), style="dim"))
    return Group(*parts)


def _pairs(metadata: Metadata) -> str:
    shown = (f"{output.line(key, _VALUE)}: {_value(value)}" for key, value in metadata.items())
    return output.line(" · ".join(shown), _METADATA)


def _value(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return output.line(", ".join(value), _VALUE)
    return output.line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), _VALUE)


def report(made: Report, filtered: Sequence[Report] = (), manifest: Manifest | None = None) -> None:
    """Measured recall and latency, without filter and with some; what the search width was tuned for."""
    out = console()
    rows = _measured(made)
    if manifest is not None and manifest.tuned is not None:
        rows.append(("tuned", *_tuned(manifest.tuned)))
    if made.drift is not None:
        rows.append(("projection", str(made.drift), ""))
    out.print(_facts(rows))
    for one in filtered:
        share = f"{one.matching:,} of {one.rows:,} records match ({one.selectivity:.2%})"
        title = output.line(json.dumps(one.where, ensure_ascii=False), _METADATA)
        _section(out, f"Where {title}", _facts([("matching", share, ""), *_measured(one)]))


def _tuned(tuned: Tuned) -> tuple[str | Text, str]:
    met = Text("confirmed" if tuned.met else "MISSED", style="green" if tuned.met else "bold red")
    return (
        met,
        f"recall@{tuned.k} {tuned.recall} where {tuned.target:g} was wanted, at {tuned.rows:,} records",
    )


def tuning(found: Tuning) -> None:
    """The search width that was found, and how it compares with the one before."""
    out = console()
    index, before = found.after.index, found.before.index
    rows: list[Fact] = [("target", *_tuned(found.tuned))]
    if index is not None and before is not None:
        if index.kind == "hnsw":
            rows.append(("ef_search", f"{index.ef_search:,}", f"it was {before.ef_search:,}"))
        if index.kind == "ivfflat":
            rows.append(("probes", f"{index.probes:,}", f"it was {before.probes:,}"))
        rows.append(("oversampling", f"{found.after.oversample:,}", f"it was {found.before.oversample:,}"))
    rows.append(("latency", f"{found.p50_ms:.1f} ms", f"exact search takes {found.exact_p50_ms:.1f} ms"))
    rows.append(("widths tried", f"{len(found.steps):,}", ""))
    out.print(_facts(rows))
    if found.advice:
        _section(out, "What would meet it", Group(*(_bullet(line) for line in found.advice)))


def summary(made: Summary) -> None:
    """What an ingest did, and the recall it ended with."""
    rows = _ended(made)
    if made.chunking is not None and made.documents != made.read:
        cut = made.chunking
        rows.append(("chunks", f"up to {cut.tokens:,} tokens", f"counted by {output.safe(cut.counter)}"))
    _done(made, rows)


def reembedding(made: Reembedding) -> None:
    """What a run with another model did, and the recall that the new collection has."""
    rows = _ended(made)
    if made.missing:
        rows.append(("without document", f"{made.missing:,}", output.safe(made.rejects or "")))
    if made.removed:
        rows.append(("removed", f"{made.removed:,}", "they had left the collection meanwhile"))
    _done(made, rows)


def _ended(made: Summary | Reembedding) -> list[Fact]:
    rows = [_index(made.index)] if made.recall is None else _measured(made.recall)
    if made.tuned is not None:
        rows.append(("tuned", *_tuned(made.tuned)))
    if made.rejected:
        count = Text(f"{made.rejected:,}", style="bold yellow")
        rows.append(("rejected", count, output.safe(made.rejects or "")))
    return rows


def _done(made: Summary | Reembedding, rows: list[Fact]) -> None:
    if made.usage is not None:
        rows.append(("embedding", f"{made.usage.texts:,} texts", _usage(made.usage)))
    seconds = (f"{stage} {lasting(spent)}" for stage, spent in made.seconds.items() if spent >= 0.05)
    out = console()
    out.print(Text(output.safe(str(made)), style="bold"))
    out.print(_facts([*rows, ("time", ", ".join(seconds) or "under 0.1 s", "")]))


def copied(made: Copied) -> None:
    """What a copy did, and what was compared at its end."""
    same = f"{made.compared:,} records in full, the neighbours of {made.neighbours:,}"
    rows: list[Fact] = [("compared", "all ids and digests", same), _index(made.index)]
    if made.tuned is not None:
        rows.append(("tuned", *_tuned(made.tuned)))
    out = console()
    out.print(Text(output.safe(str(made)), style="bold"))
    out.print(_facts([*rows, ("time", lasting(made.seconds), "")]))


def exported(made: Exported, name: str) -> None:
    """What an export has written, in a line."""
    line = f"{made.records:,} records of {name} are in {made.path} ({human(made.bytes)})"
    console().print(Text(output.safe(line), style="bold"))


def imported(made: Imported) -> None:
    """What an import did, and what was compared at its end."""
    said = f"{made.records:,} records of {made.source} are in {made.collection} at {made.to}"
    same = f"{made.compared:,} records in full"
    rows: list[Fact] = [("compared", "all ids and digests", same), _index(made.index)]
    if made.tuned is not None:
        rows.append(("tuned", *_tuned(made.tuned)))
    out = console()
    out.print(Text(output.safe(f"{said}: {made.written:,} written now"), style="bold"))
    out.print(_facts([*rows, ("time", lasting(made.seconds), "")]))


def _usage(used: Usage) -> str:
    said = [f"{used.requests:,} requests"]
    if used.retries:
        said.append(f"{used.retries:,} of them retries")
    if used.tokens:
        said.append(f"{used.tokens:,} tokens")
    if used.cached:
        said.append(f"{used.cached:,} texts from the cache")
    return ", ".join(said)


def _measured(made: Report) -> list[Fact]:
    if not made.queries:
        return [("recall", "nothing to measure: no query has anything to find", ""), _index(made.index)]
    recall = Text(f"{made.recall:.3f}", style="bold green" if made.recall >= _GOOD else "bold yellow")
    rows: list[Fact] = [
        (
            f"recall@{made.k}",
            recall,
            f"{made.low:.3f} to {made.high:.3f}, against exact search on {made.against}",
        ),
        ("queries", f"{made.queries:,}", made.source),
        (
            "latency",
            f"{made.p50_ms:.1f} ms",
            f"half of all searches; 95 % within {made.p95_ms:.1f} ms, 99 % within {made.p99_ms:.1f} ms",
        ),
        ("exact search", f"{made.exact_p50_ms:.1f} ms", f"95 % within {made.exact_p95_ms:.1f} ms"),
        _index(made.index),
        ("records", f"{made.rows:,}", ""),
    ]
    if made.short:
        rows.insert(1, ("short", f"{made.short:,}", "searches returned fewer hits than exact search did"))
    return rows


def _index(state: IndexState) -> Fact:
    return ("index", _state(state), state.detail)


def _state(state: IndexState) -> Text:
    if state.status == "none":
        return Text("none")
    if state.status == "ready" and state.used:
        return Text("in use", style="green")
    return Text("NOT used" if state.status == "ready" else state.status, style="bold red")


def info(url: str, manifest: Manifest, count: int, state: IndexState, sizes: Sizes) -> None:
    """What a collection is."""
    space, layout = manifest.space, manifest.layout
    rows: list[Fact] = [
        ("collection", Text(manifest.name, style="bold"), ""),
        ("store", output.safe(url), ""),
        ("records", f"{count:,}", f"planned for {manifest.rows:,}"),
        *([] if manifest.copy_of is None else [_unfinished(url, manifest)]),
        *([] if manifest.adopted is None else [("reads", manifest.adopted.said, "which stays its owner's")]),
        ("vectors", f"{space.dim:,} dimensions, {space.metric}", ""),
        ("model", output.safe(space.model) if space.model else "not named", ""),
    ]
    if space.nested:
        rows.append(("Matryoshka", ", ".join(f"{size:,}" for size in space.nested), ""))
    rows += [
        ("layout", describe(layout, space.dim), ""),
        _index(state),
        *([] if manifest.tuned is None else [("tuned", *_tuned(manifest.tuned))]),
        ("table on disk", human(sizes.table), ""),
        ("index on disk", human(sizes.index) if sizes.index else "none", ""),
        ("made by", f"vecbridge {manifest.version}", ""),
    ]
    console().print(_facts(rows))


def _unfinished(url: str, manifest: Manifest) -> Fact:
    goes_on = f"go on with: {command(manifest, url)}"
    return ("unfinished", f"a copy of {manifest.copy_of}", goes_on)


def _facts(rows: Iterable[Fact]) -> Table:
    """Names, values and remarks in columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value, remark in rows:
        text = Text(output.safe(value)) if isinstance(value, str) else value.copy()
        if remark:
            text.append(f"  {output.safe(remark)}", style="dim")
        table.add_row(name, text)
    return table


def _section(out: Console, title: str, body: RenderableType) -> None:
    out.print()
    out.print(Text(title, style="bold"))
    out.print(Padding(body, (0, 0, 0, 1)))


def _bullet(text: str) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_row("-", Text(output.safe(text)))
    return grid


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
