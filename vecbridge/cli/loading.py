"""ingest: a source in, a searchable collection out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from .. import data
from ..errors import InputError
from ..types import FieldKind
from . import options, output, settings
from .evaluating import idle, missed, missed_tuning, warn

if TYPE_CHECKING:
    from ..ingestion.records import Kind
    from ..types import Metric

# the exit code of a run that is complete but for what was rejected
PARTIAL = 5
# sources that come with the package
_DEMO = {"demo:glosses": data.GLOSSES}


def ingest(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help="A folder of documents (text, Markdown, HTML, PDF, DOCX, PPTX) or one of them; a .jsonl, "
            ".csv or .tsv file (maybe .gz); .parquet, .npy, .npz; - for standard input; or demo:glosses, "
            "6,000 definitions that come with vecbridge.",
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
            help="PROVIDER:MODEL, as scaleway:bge-multilingual-gemma2; openai:MODEL with --base-url; "
            "hashing:DIM, wordllama, model2vec:MODEL, fastembed:MODEL, sentence-transformers:MODEL. Without "
            "it: the one in vecbridge.toml; where there is none, or with `none`, SOURCE has vectors.",
        ),
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
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="What standard input is: jsonl (if not given), csv, text or markdown."
        ),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of text files that are not UTF-8, as latin-1.")
    ] = None,
    id_field: Annotated[str | None, typer.Option(metavar="NAME", help="The field with the id.")] = None,
    text_field: Annotated[str | None, typer.Option(metavar="NAME", help="The field with the text.")] = None,
    vector_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="The field with the vector.")
    ] = None,
    number: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A CSV column that holds numbers; may be given several times."),
    ] = None,
    chunk_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="The most tokens in a chunk; 512, or what the model takes where that is less."
        ),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens that a chunk shares with the one before; 0.")
    ] = None,
    chunk_rows: Annotated[
        bool | None,
        typer.Option(
            "--chunk-rows/--whole-rows", help="Whether the texts of rows are cut, too.", show_default=False
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The model's tokenizer.json, to count tokens exactly.")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove records that came from SOURCE and are no longer in it.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Prune even if more than half of them would go.")
    ] = False,
    source_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What --prune knows SOURCE by; its path as typed, if not given."),
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where rejected inputs are listed; NAME.rejects.jsonl, if there are any."
        ),
    ] = None,
    max_rejects: Annotated[
        int, typer.Option(metavar="N", help="Stop after more rejects than this; 0: at the first one.")
    ] = 100,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep here what an API answered and documents became; in your cache folder, if not given.",
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Keep nothing, and use nothing that was kept.")
    ] = False,
    cache_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The most that is kept, 1GB; the oldest go first.")
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
    if embedder is None:
        needing = {
            "--base-url": base_url,
            "--dimensions": dimensions,
            "--document-prefix": document_prefix,
            "--concurrency": concurrency,
            "--requests-per-minute": requests_per_minute,
            "--tokens-per-minute": tokens_per_minute,
            "--chunk-tokens": chunk_tokens,
            "--overlap": overlap,
            "--chunk-rows": chunk_rows or None,
            "--tokenizer": tokenizer,
        }
        for option, value in needing.items():
            if value is not None:
                raise InputError(
                    f"expected --embedder SPEC beside {option}, got none: the vectors in SOURCE would be "
                    f"stored as they are"
                )
    if cache is not None and no_cache:
        raise InputError("expected --cache FILE or --no-cache, got both")
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

    embed = None
    if embedder is not None:
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
            summary = run(
                _DEMO.get(source, source),
                to=urls,
                collection=collection,
                embedder=embed,
                model=model,
                nested=nested or None,
                metric=cast("Metric | None", metric),
                rows=rows,
                **budget,
                nodes=nodes,
                recall=wanted,
                filterable=fields,
                kind=cast("Kind | None", kind),
                encoding=encoding,
                id_field=id_field,
                text_field=text_field,
                vector_field=vector_field,
                numbers=number or (),
                chunk_tokens=chunk_tokens,
                overlap=overlap,
                chunk_rows=chunk_rows,
                tokenizer=tokenizer,
                prune=prune,
                prune_limit=1.0 if yes else 0.5,
                source_name=source_name,
                rejects=rejects or f"{collection}.rejects.jsonl",
                max_rejects=max_rejects,
                **options.kept(cache, no_cache=no_cache, size=cache_size),
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
    if summary.rejected:
        output.say(
            f"Warning: rejected inputs: {summary.rejected:,}; {summary.rejects} lists them, and the next run "
            f"tries them again"
        )
    for note in summary.notes:
        output.say(f"Note: {note}")
    warn(
        idle(summary.index, collection),
        missed_tuning(summary.tuned, collection),
        missed(summary.recall, wanted, collection),
    )
    if summary.rejected:
        raise typer.Exit(PARTIAL)


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
