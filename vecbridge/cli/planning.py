"""plan: the layout for vectors that may not exist yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from . import options, output

if TYPE_CHECKING:
    from ..types import Metric


def plan(
    dim: Annotated[int, typer.Option(metavar="N", help="Dimensions of the vectors.")],
    rows: Annotated[int, typer.Option(metavar="N", help="How many vectors there will be.")] = 100_000,
    on: Annotated[
        list[str],
        typer.Option(
            metavar="BACKEND",
            help="pgvector, qdrant, edge or flat, or with a version: pgvector@0.6.2. Several are compared.",
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
    as_json: options.Json = False,
) -> None:
    """Show the layout for vectors of a size, why it was chosen, and what it takes. Needs no server."""
    from .. import planner

    made = planner.plan(
        dim,
        rows=rows,
        metric=cast("Metric", metric),
        on=on,
        nodes=nodes,
        model=model,
        nested=nested or None,
        **options.budget(memory, disk, latency),
    )
    if as_json:
        output.write_json(made.to_dict())
        return
    from . import render

    render.plan(made)
