"""search."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import DimensionMismatch, InputError
from . import arrays, options, output, settings

if TYPE_CHECKING:
    from ..store import Collection
    from ..types import Floats

# embedders whose models are named after the specification that makes them
_OWN = re.compile(r"(hashing|wordllama)-(\d+)")


def search(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[URL]... COLLECTION TEXT", show_default=False, help=options.PLACE_HELP),
    ],
    k: Annotated[int, typer.Option("-k", metavar="N", help="How many hits.")] = 10,
    where: options.Where = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="What embeds TEXT; known for hashing and wordllama collections, else the one in "
            "vecbridge.toml.",
        ),
    ] = None,
    base_url: options.BaseUrl = None,
    dimensions: options.Dimensions = None,
    query_prefix: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Put before TEXT, instead of what the model is known to want."),
    ] = None,
    vector: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Search for this vector; TEXT is left out then.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with every record: the truth, but slower.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Find the records nearest to a text, or to a vector."""
    names = ("COLLECTION", "TEXT") if vector is None else ("COLLECTION",)
    urls, (name, *text) = options.place(words, *names)
    condition = options.condition(where)
    query = None if vector is None else arrays.one(vector)
    from ..store import connect

    with connect(*urls) as store:
        collection = store.open(name)
        model = None
        if query is None:
            query, model = _embed(
                text[0], embedder, collection, base_url=base_url, dimensions=dimensions, prefix=query_prefix
            )
        hits = collection.search(query, k=k, where=condition, exact=exact, model=model)
        at = collection.url
    if as_json:
        output.write_json(
            {
                "url": at,
                "collection": name,
                "hits": [
                    {
                        "rank": rank,
                        "score": hit.score,
                        "id": hit.id,
                        "document": hit.document,
                        "metadata": dict(hit.metadata),
                    }
                    for rank, hit in enumerate(hits, 1)
                ],
            }
        )
        return
    from . import render

    render.hits(hits, filtered=condition is not None)


def _embed(
    text: str,
    spec: str | None,
    collection: Collection,
    *,
    base_url: str | None,
    dimensions: int | None,
    prefix: str | None,
) -> tuple[Floats, str | None]:
    """The query's vector, and the model that made it."""
    made_by = collection.space.model
    if spec is None and (found := _OWN.fullmatch(made_by or "")):
        spec = f"{found[1]}:{found[2]}"
    from ..checks import check_model
    from ..embedders import Service, load
    from ..models import same

    default = settings.read().embedder if spec is None else None
    # the default may be any model: only a name in the collection tells whether it is the right one
    if spec is None and (default is None or made_by is None):
        raise _unknown(collection.name, made_by)
    chosen = spec or default or ""
    embedder = load(
        chosen,
        base_url=options.api(base_url, chosen),
        query_prefix=options.prefix(prefix, chosen, "query_prefix"),
        **options.online(chosen, dimensions=dimensions),
    )
    try:
        if default is not None and made_by is not None and not same(embedder.model, made_by):
            raise _unknown(collection.name, made_by)
        # before a request is paid for
        check_model(embedder.model, collection.space)
        query, wanted = embedder.embed_query(text), collection.space.dim
        if len(query) > wanted and dimensions is None and isinstance(embedder, Service):
            raise DimensionMismatch(
                f"expected a query of {wanted:,} dimensions, got {len(query):,} from {embedder.model}; if "
                f"the records of {collection.name} were ingested with --dimensions {wanted}, say so here, too"
            )
        return query, embedder.model
    finally:
        embedder.close()


def _unknown(name: str, made_by: str | None) -> InputError:
    """The advice where nobody knows what embeds texts for a collection."""
    made = f"made by {made_by}" if made_by else "of an unnamed model"
    example = f"openai:{made_by}" if made_by else "openai:MODEL"
    return InputError(
        f"the vectors of {name} are {made}, which vecbridge cannot run by itself; say what embeds the text, "
        f"as --embedder {example}, or search with --vector FILE.npy"
    )
