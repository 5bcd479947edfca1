"""evaluate, tune and replan: how much is found, and what to do for more."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from . import arrays, options, output

if TYPE_CHECKING:
    from ..evaluate import Report
    from ..manifest import Tuned
    from ..types import IndexState, Layout

WARNED = 4


def evaluate(
    words: options.Place,
    k: Annotated[int, typer.Option("-k", metavar="N", help="How many hits are compared.")] = 10,
    queries: options.Queries = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="JSON", help='Measure with this filter, too, as \'{"topic": "law"}\'; may be repeated.'
        ),
    ] = None,
    sample: Annotated[int, typer.Option(metavar="N", help="How many stored records serve as queries.")] = 100,
    seed: options.Seed = 0,
    recall: options.Recall = None,
    page: options.Page = None,
    as_json: options.Json = False,
) -> None:
    """Measure recall against exact search, and latency. Ends with 4 if the index is not in use."""
    urls, (name,) = options.place(words, "COLLECTION")
    wanted = options.target(recall)
    vectors = None if queries is None else arrays.matrix(queries)
    conditions = [options.condition(text) for text in where or ()]
    from ..store import connect

    if page is not None:
        from ..report import evaluation_page, write
    with connect(*urls) as store:
        collection = store.open(name)
        report, *filtered = (
            collection.evaluate(k=k, queries=vectors, where=condition, sample=sample, seed=seed)
            for condition in (None, *conditions)
        )
        at, manifest = collection.url, collection.manifest
        # without an index in use, or with nothing to ask, there are no widths; the page has the rest
        widths = page is not None and report.queries > 1 and idle(report.index, name) is None
        steps = collection.sweep(k=k, queries=vectors, sample=sample, seed=seed) if widths else ()
    if page is not None:
        write(page, evaluation_page(name, at, report, filtered=filtered, steps=steps, manifest=manifest))
    if as_json:
        filters = [one.to_dict() for one in filtered]
        output.write_json({"url": at, "collection": name, **report.to_dict(), "filtered": filters})
    else:
        from . import render

        render.report(report, filtered, manifest)
    warn(idle(report.index, name), missed(report, wanted, name))


def tune(
    words: options.Place,
    recall: options.Promised = None,
    k: Annotated[int, typer.Option("-k", metavar="N", help="How many hits are compared.")] = 10,
    queries: options.Queries = None,
    sample: Annotated[int, typer.Option(metavar="N", help="How many stored records serve as queries.")] = 400,
    seed: options.Seed = 0,
    seconds: Annotated[
        float | None, typer.Option(metavar="N", help="How long to look for the width; as long as it takes.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: options.Json = False,
) -> None:
    """Find the smallest search width that finds enough, and keep it. Ends with 4 if none does."""
    urls, (name,) = options.place(words, "COLLECTION")
    wanted = options.target(recall)
    vectors = None if queries is None else arrays.matrix(queries)
    from ..store import connect
    from . import progress, render

    with connect(*urls) as store:
        collection = store.open(name)
        with progress.shown(quiet=quiet) as show:
            found = collection.tune(
                recall=wanted, k=k, queries=vectors, sample=sample, seed=seed, seconds=seconds, progress=show
            )
        at = collection.url
    if as_json:
        output.write_json({"url": at, "collection": name, **found.to_dict()})
    else:
        render.tuning(found)
    warn(missed_tuning(found.tuned, name))


def replan(
    words: options.Place,
    rows: Annotated[
        int | None, typer.Option(metavar="N", help="How many records there will be; those there are now.")
    ] = None,
    memory: options.Memory = None,
    disk: options.Disk = None,
    latency: options.Latency = None,
    recall: options.Promised = None,
    seed: options.Seed = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    yes: options.Yes = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: options.Json = False,
) -> None:
    """Lay a collection out anew, beside the old layout, and switch in one step; searches go on."""
    urls, (name,) = options.place(words, "COLLECTION")
    wanted, budget = options.target(recall), options.budget(memory, disk, latency)
    options.answerable(yes or dry_run)
    from ..store import connect
    from . import progress, render

    with connect(*urls) as store:
        collection = store.open(name)
        at = collection.url
        with progress.shown(quiet=quiet) as show:
            plan = collection.proposal(rows=rows, recall=wanted, seed=seed, progress=show, **budget)
        same = plan.layout == collection.layout
        if not as_json:
            render.plan(plan)
        if not dry_run:
            if same:
                output.say(f"{name} has this layout already: it is written once more{_anew(plan.layout)}")
            options.confirm(f"Lay out {name} in {at} anew? It needs room for both, and writers wait.", yes)
            with progress.shown(quiet=quiet) as show:
                collection.replan(plan, seed=seed, progress=show)
        tuned = collection.manifest.tuned
        state = collection.index_state()
    if as_json:
        output.write_json(
            {
                "url": at,
                "collection": name,
                "done": not dry_run,
                "plan": plan.to_dict(),
                "tuned": None if tuned is None else asdict(tuned),
            }
        )
    elif not dry_run:
        output.answer(f"{name} is laid out anew: {plan.describe()}")
    if not dry_run:
        warn(idle(state, name), missed_tuning(tuned, name))


def _anew(layout: Layout) -> str:
    """What is new where a layout stays as it is."""
    inside = None if layout.index is None else layout.index.shorten
    fitted = any(cut is not None and cut.method == "pca" for cut in (layout.shorten, inside))
    new = ["a new projection"] * fitted + ["a new index"] * (layout.index is not None)
    return f", with {' and '.join(new)}" if new else ""


def warn(*warnings: str | None) -> None:
    """Say those that there are; with any, the program ends with 4."""
    said = [warning for warning in warnings if warning]
    for warning in said:
        output.say(warning)
    if said:
        raise typer.Exit(WARNED)


def missed_tuning(tuned: Tuned | None, name: str) -> str | None:
    """A warning where tuning did not find enough."""
    if tuned is None or tuned.met:
        return None
    return (
        f"Warning: recall@{tuned.k} of {name} is {tuned.recall} with the search width that finds most, below "
        f"the {tuned.target:g} that is wanted"
    )


def missed(report: Report | None, wanted: float | None, name: str) -> str | None:
    """A warning where less recall was measured than is wanted."""
    if report is None or wanted is None or not report.queries or report.recall >= wanted:
        return None
    return (
        f"Warning: recall@{report.k} of {name} is {report.recall:.3f}, below the {wanted:g} that is wanted; "
        f"a layout that keeps more of each vector, or exact search, finds more"
    )


def idle(state: IndexState, name: str) -> str | None:
    """A warning where the layout has an index and searches do without it."""
    if state.status == "none" or (state.status == "ready" and state.used):
        return None
    what = "not used" if state.status == "ready" else state.status
    return f"Warning: the index of {name} is {what}, so searches read everything; ingest again to repair it"
