"""adopt: a table, or a collection of Qdrant, that another library made is taken over where it lies."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

import typer

from . import options, output

if TYPE_CHECKING:
    from ..types import Metric


def adopt(
    table: Annotated[str, typer.Option(metavar="[SCHEMA.]NAME", help="The table, or Qdrant collection.")],
    urls: Annotated[
        list[str] | None, typer.Argument(metavar="[URL]...", help=options.PLACE_HELP, show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="COLLECTION", help="Its name; else that of the part or the table.")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Which, where several collections share the table, as LangChain's."
        ),
    ] = None,
    id: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column, or payload key, that names each.")
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="The column, or named vector, where there are several."),
    ] = None,
    document: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column, or key, of texts.")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="JSON, or one field of the metadata; may be given several times."
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="cosine, ip or l2, where no index of the table tells.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The embedding model, for its Matryoshka sizes.")
    ] = None,
    nested: options.Nested = None,
    memory: options.Memory = None,
    disk: options.Disk = None,
    latency: options.Latency = None,
    recall: options.Promised = None,
    no_index: Annotated[bool, typer.Option("--no-index", help="Build none now.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every statement or request, and change nothing.")
    ] = False,
    yes: options.Yes = False,
    seed: options.Seed = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: options.Json = False,
) -> None:
    """Search a table, or Qdrant collection, that LangChain, LlamaIndex, Haystack or others made, uncopied."""
    from ..store import connect
    from . import progress

    with connect(*options.there(options.stores(urls))) as store:
        with progress.shown(quiet=quiet) as show:
            found = store.adoption(
                table,
                name=name,
                id=id,
                embedding=embedding,
                document=document,
                metadata=metadata or None,
                part=part,
                metric=cast("Metric | None", metric),
                model=model,
                nested=nested or None,
                recall=options.target(recall),
                build_index=not no_index,
                seed=seed,
                progress=show,
                **options.budget(memory, disk, latency),
            )
        for note in found.notes:
            output.say(output.safe(note))
        if dry_run:
            if as_json:
                output.write_json(found.to_dict())
            else:
                for statement in found.statements:
                    output.answer(output.safe(statement))
            return
        collection_name = found.manifest.name
        options.confirm(f"Adopt {table} as {collection_name} in {found.url}?", yes)
        collection = store.adopt(found)
        with progress.shown(quiet=quiet) as show:
            # an index of the owner's is his to build
            ours = found.plan is not None or collection.index_state().status == "ready"
            tuning = collection.build_index(progress=show) if ours and not no_index else None
        state = collection.index_state()
    if as_json:
        output.write_json({**found.to_dict(), "index": asdict(state)})
        return
    detail = f" ({state.detail})" if state.detail else ""
    index = "" if state.status == "none" else f"; index {state.status}{detail}"
    output.answer(f"adopted {table} as {collection_name}{index}")
    if tuning is not None:
        output.say(str(tuning))
