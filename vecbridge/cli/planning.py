"""plan: the layout for vectors that may not exist yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import InputError
from . import arrays, options, output

if TYPE_CHECKING:
    from ..planner import Plan
    from ..types import Metric, Progress


def plan(
    dim: Annotated[
        int | None, typer.Option(metavar="N", help="Dimensions of the vectors; those of the sample.")
    ] = None,
    rows: Annotated[int, typer.Option(metavar="N", help="How many vectors there will be.")] = 100_000,
    on: Annotated[
        list[str],
        typer.Option(
            metavar="BACKEND",
            help="pgvector, qdrant, edge or flat, or with a version: pgvector@0.6.2; or the URL of a store, "
            "which is asked for its limits. Several are compared.",
        ),
    ] = ["pgvector"],  # noqa: B006 - typer reads it as the default, nobody changes it
    nodes: options.Nodes = None,
    metric: options.Metric = "cosine",
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The embedding model, for its Matryoshka sizes.")
    ] = None,
    nested: options.Nested = None,
    memory: options.Memory = None,
    disk: options.Disk = None,
    latency: options.Latency = None,
    recall: options.Promised = None,
    k: Annotated[int, typer.Option("-k", metavar="N", help="How many hits the recall is of.")] = 10,
    sample: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npy", help="Measure on these vectors, one a row: some thousand are enough."
        ),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npy", help="Measure with these; without, some of the sample are held out."
        ),
    ] = None,
    seed: options.Seed = 0,
    page: options.Page = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show the layout for vectors of a size, why it was chosen, and what it takes. Needs no server."""
    from .. import planner

    if page is not None:
        # what is missing shall be said before anything is measured
        from ..report import plan_page, write
    given = None if sample is None else arrays.matrix(sample)
    asked = None if queries is None else arrays.matrix(queries)

    urls = [one for one in on if ":" in one]
    if urls and len(urls) < len(on):
        names = ", ".join(one for one in on if ":" not in one)
        raise InputError(f"expected backends or URLs with --on, got both: {names} and {len(urls)} URLs")

    def planned(show: Progress | None) -> Plan:
        wishes: planner.Wishes = {
            "rows": rows,
            "metric": cast("Metric", metric),
            "nodes": nodes,
            "model": model,
            "nested": nested or None,
            "recall": options.target(recall),
            "k": k,
            "sample": given,
            "queries": asked,
            "seed": seed,
            "progress": show,
            **options.budget(memory, disk, latency),
        }
        if urls:
            from ..store import connect

            with connect(*urls) as store:
                return store.plan(dim, **wishes)
        return planner.plan(dim, on=on, **wishes)

    if sample is None:
        made = planned(None)
    else:
        from . import progress

        with progress.shown(quiet=quiet) as show:
            made = planned(show)
    if page is not None:
        write(page, plan_page(made))
    if as_json:
        output.write_json(made.to_dict())
        return
    from . import render

    render.plan(made)
