"""reembed: another model for a collection, from the documents that it stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from . import options, output, settings
from .evaluating import idle, missed, missed_tuning, warn
from .loading import PARTIAL


def reembed(
    words: options.Place,
    embedder: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="The new model, as for ingest; the one in vecbridge.toml."),
    ] = None,
    base_url: options.BaseUrl = None,
    dimensions: options.Dimensions = None,
    document_prefix: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Put before every text, instead of what the model is known to want."
        ),
    ] = None,
    concurrency: options.Concurrency = None,
    requests_per_minute: options.RequestsPerMinute = None,
    tokens_per_minute: options.TokensPerMinute = None,
    beside: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What the new collection is called until the switch, and the old one afterwards; "
            "COLLECTION-beside, if not given.",
        ),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(metavar="N", help="Plan for this many records; those there are now.")
    ] = None,
    memory: options.Memory = None,
    disk: options.Disk = None,
    latency: options.Latency = None,
    nodes: options.Nodes = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out records without a document, and list them.")
    ] = False,
    rejects: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where rejected records are listed; COLLECTION.rejects.jsonl, if any are."
        ),
    ] = None,
    max_rejects: Annotated[
        int, typer.Option(metavar="N", help="Stop after more rejects than this; 0: at the first one.")
    ] = 100,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep here what an API answered; in your cache folder."),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Keep nothing, and use nothing that was kept.")
    ] = False,
    cache_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The most that is kept, 1GB; the oldest go first.")
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Measure the recall before the switch.")
    ] = True,
    recall: options.Recall = None,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Drop the old collection afterwards; also in a later run.")
    ] = False,
    yes: options.Yes = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No plan and no progress.")] = False,
    as_json: options.Json = False,
) -> None:
    """Give a collection the vectors of another model: made beside it from its documents, then switched."""
    urls, (name,) = options.place(words, "COLLECTION")
    embedder = embedder or settings.read().embedder
    if embedder in (None, "none"):
        raise InputError("expected --embedder SPEC, the new model, or one in vecbridge.toml; got none")
    if cache is not None and no_cache:
        raise InputError("expected --cache FILE or --no-cache, got both")
    if recall is not None and not evaluate:
        raise InputError("expected --evaluate beside --recall: what is not measured cannot be compared")
    assert embedder is not None
    wanted, budget = options.target(recall), options.budget(memory, disk, latency)
    if drop_old:
        other = beside or f"{name}-beside"
        options.confirm(f"Drop the old {name} ({other} by then) once {name} is of {embedder}?", yes)
    from ..ingestion import load
    from ..reembedding import reembed as run
    from . import progress, render

    embed = load(
        embedder,
        base_url=options.api(base_url, embedder),
        document_prefix=options.prefix(document_prefix, embedder, "document_prefix"),
        **options.online(
            embedder,
            dimensions=dimensions,
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        ),
    )
    try:
        with progress.shown(quiet=quiet) as show:
            made = run(
                urls,
                name,
                embedder=embed,
                beside=beside,
                rows=rows,
                **budget,
                nodes=nodes,
                recall=wanted,
                skip_missing=skip_missing,
                drop_old=drop_old,
                rejects=rejects or f"{name}.rejects.jsonl",
                max_rejects=max_rejects,
                **options.kept(cache, no_cache=no_cache, size=cache_size),
                evaluate=evaluate,
                progress=show,
                on_plan=None if quiet else lambda plan: render.plan(plan, show.console),
            )
    finally:
        embed.close()
    if as_json:
        output.write_json(made.to_dict())
    else:
        render.reembedding(made)
    left_out = made.missing + made.rejected
    if left_out:
        output.say(
            f"Warning: records without a vector of the new model: {left_out:,}; {made.rejects} lists them"
        )
    for note in made.notes:
        output.say(f"Note: {note}")
    warn(idle(made.index, name), missed_tuning(made.tuned, name), missed(made.recall, wanted, name))
    if left_out:
        raise typer.Exit(PARTIAL)
