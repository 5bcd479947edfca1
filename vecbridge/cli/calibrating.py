"""calibrate: measure how fast stores are, and keep it for later plans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options, output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..limits import Limits
    from ..speeds import Speeds

# what the numbers are shown by
_DIM, _COMPARED, _INDEXED = 1024, 1_000_000, 100_000


def calibrate(
    urls: Annotated[
        list[str] | None, typer.Argument(metavar="[URL]...", help=options.PLACE_HELP, show_default=False)
    ] = None,
    seconds: Annotated[
        float, typer.Option(metavar="N", help="About how long to measure each place.", show_default=True)
    ] = 60.0,
    as_json: options.Json = False,
) -> None:
    """Measure how fast a store scans, builds and searches, so that plans for it tell real times.

    Collections of random vectors named vecbridge-calibration-… come and go; yours are not touched.
    """
    from .. import calibrate as measuring
    from .. import calibrations
    from ..store import connect
    from . import progress

    told: list[dict[str, Any]] = []
    # every place by itself: a store of several would put the collections where it likes
    for url in options.stores(urls):
        with connect(url) as store, progress.shown(quiet=as_json) as show:
            speeds = measuring.calibrate(store, seconds=seconds, progress=show)
            limits, shown = store.limits, store.url
        file = calibrations.keep(shown, speeds)
        examples = _examples(speeds, limits)
        told.append({"url": shown, "file": str(file), "speeds": speeds.to_dict(), "examples": examples})
        if not as_json:
            _show(shown, speeds, examples)
    if as_json:
        output.write_json({"places": told})


def _examples(speeds: Speeds, limits: Limits) -> list[dict[str, Any]]:
    """What the speeds come to: a scan, a build and a search that everybody can imagine."""
    from ..explain import describe
    from ..sizes import estimate
    from ..types import Index, Layout, Space

    space, scan = Space(_DIM), Layout()
    compared = estimate(space, scan, rows=_COMPARED, limits=limits, speeds=speeds)
    found = [_example("exact search", _COMPARED, describe(scan, _DIM), compared.query_seconds)]
    if not limits.indexed:
        return found
    graph = Layout(index=Index("hnsw", "float32", ef_search=200))
    if limits.objection(space, graph):
        return found
    built = estimate(space, graph, rows=_INDEXED, limits=limits, speeds=speeds)
    words = describe(graph, _DIM)
    return [
        *found,
        _example("build the index", _INDEXED, words, built.build_seconds),
        _example("one search", _INDEXED, words, built.query_seconds),
    ]


def _example(what: str, rows: int, layout: str, seconds: float) -> dict[str, Any]:
    return {"what": what, "rows": rows, "dim": _DIM, "layout": layout, "seconds": seconds}


def _show(url: str, speeds: Speeds, examples: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from . import render

    out = render.console()
    out.print(Text(output.safe(url), style="bold"))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, pad_edge=False)
    table.add_column("of random vectors", style="dim")
    table.add_column("takes", justify="right", style="bold", no_wrap=True)
    table.add_column("for")
    for one in examples:
        table.add_row(
            _words(one["what"]),
            _words(_lasting(one["seconds"])),
            _words(f"{one['rows']:,} x {one['dim']:,}, {one['layout']}"),
        )
    table.add_row(_words("round trip"), _words(_lasting(speeds.trip)), _words("whatever a search reads"))
    out.print(table)
    out.print(Text("Kept: plans for this store use what was measured, until it is calibrated again."))


def _words(text: str) -> RenderableType:
    from rich.text import Text

    return Text(output.safe(text))


def _lasting(seconds: float) -> str:
    """A duration in the unit that keeps it readable; three digits would promise too much."""
    if seconds < 1:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
