"""ingest: a source in, a searchable collection out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from .. import data
from ..errors import InputError
from ..types import FieldKind
from . import options, output, settings
from .searching import idle, missed, warn

if TYPE_CHECKING:
    from ..types import Metric

# sources that come with the package
_DEMO = {"demo:glosses": data.GLOSSES}


def ingest(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help="A .jsonl, .csv or .tsv file (maybe .gz), a .parquet or .npy file, text or Markdown, a "
            "folder of texts, or demo:glosses, 6,000 definitions that come with vecbridge.",
        ),
    ],
    collection: Annotated[str, typer.Option("--collection", "-c", metavar="NAME", help="Where records go.")],
    to: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help=f"{options.PLACE_HELP} May be given several times."),
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="hashing:DIM, wordllama, wordllama:DIM or openai:MODEL. Without it: the one in "
            "vecbridge.toml; where there is none, or with `none`, SOURCE has vectors.",
        ),
    ] = None,
    base_url: options.BaseUrl = None,
    rows: Annotated[
        int | None,
        typer.Option(metavar="N", help="Plan for this many records; else for those in SOURCE."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="cosine (for new collections), ip (inner product) or l2 (Euclidean)."
        ),
    ] = None,
    memory: options.Memory = None,
    disk: options.Disk = None,
    latency: options.Latency = None,
    nodes: options.Nodes = None,
    filterable: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD[=KIND]",
            help="A metadata field that filters will use: text, =number or =boolean; for stores that index "
            "such fields, as Qdrant does. May be given several times.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="What made the vectors that SOURCE has.")
    ] = None,
    nested: options.Nested = None,
    id_field: Annotated[str | None, typer.Option(metavar="NAME", help="The field with the id.")] = None,
    text_field: Annotated[str | None, typer.Option(metavar="NAME", help="The field with the text.")] = None,
    vector_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="The field with the vector.")
    ] = None,
    number: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A CSV column that holds numbers; may be given several times."),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Measure the recall afterwards.")
    ] = True,
    recall: options.Recall = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No plan and no progress.")] = False,
    as_json: options.Json = False,
) -> None:
    """Load a source: embed, store, index and measure. Run again, it writes only what has changed."""
    if embedder is None and model is None and vector_field is None:
        embedder = settings.read().embedder
    if embedder == "none":
        embedder = None
    if base_url is not None and embedder is None:
        raise InputError("expected --embedder openai:MODEL beside --base-url")
    if recall is not None and not evaluate:
        raise InputError("expected --evaluate beside --recall: what is not measured cannot be compared")
    wanted = options.target(recall)
    urls, budget, fields = (
        options.stores(to),
        options.budget(memory, disk, latency),
        _fields(filterable or []),
    )
    from ..ingestion import ingest as run
    from ..ingestion import load
    from . import progress, render

    embed = None if embedder is None else load(embedder, base_url=options.api(base_url, embedder))
    try:
        with progress.shown(quiet=quiet) as show:
            summary = run(
                _DEMO.get(source, Path(source)),
                to=urls,
                collection=collection,
                embedder=embed,
                model=model,
                nested=nested or None,
                metric=cast("Metric | None", metric),
                rows=rows,
                **budget,
                nodes=nodes,
                filterable=fields,
                id_field=id_field,
                text_field=text_field,
                vector_field=vector_field,
                numbers=number or (),
                evaluate=evaluate,
                progress=show,
                on_plan=None if quiet else lambda made: render.plan(made, show.console),
            )
    finally:
        if embed is not None:
            embed.close()
    if as_json:
        output.write_json(summary.to_dict())
    else:
        render.summary(summary)
    warn(idle(summary.index, collection), missed(summary.recall, wanted, collection))


def _fields(words: list[str]) -> dict[str, FieldKind]:
    """The fields of --filterable with their kinds. Raises InputError."""
    fields: dict[str, FieldKind] = {}
    for word in words:
        name, _, kind = word.rpartition("=") if "=" in word else (word, "=", "text")
        if not name or kind not in get_args(FieldKind):
            raise InputError(
                f"expected --filterable FIELD, FIELD=text, FIELD=number or FIELD=boolean, got {word[:60]!a}"
            )
        if fields.setdefault(name, cast("FieldKind", kind)) != kind:
            raise InputError(f"expected one kind for the field {name[:60]!a}, got {fields[name]} and {kind}")
    return fields
