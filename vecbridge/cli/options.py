"""Arguments and options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import typer

from ..errors import CollectionNotFound, FilterError, InputError, UrlError
from . import output, settings

# the planner's and the pipeline's own defaults, repeated because importing them would slow every command down
LATENCY = 0.1
CACHE = "1GB"

PLACE_HELP = (
    "URL: flat:PATH, pgvector:PATH, qdrant:PATH, postgresql://… or qdrant://…; several are one store. "
    "Without any: VECBRIDGE_URL, then places in vecbridge.toml, then flat:./vecbridge-data."
)

Place = Annotated[
    list[str], typer.Argument(metavar="[URL]... COLLECTION", show_default=False, help=PLACE_HELP)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Where = Annotated[
    str | None,
    typer.Option(metavar="JSON", help="""Only records that match, as '{"year": {"$gte": 2000}}'."""),
]
Metric = Annotated[str, typer.Option(help="cosine, ip (inner product) or l2 (Euclidean distance).")]
Memory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory to build and to serve the index with, as 16GB.")
]
Disk = Annotated[str | None, typer.Option(metavar="SIZE", help="Disk for table and index, as 200GB.")]
Latency = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", help=f"How long one search may take ({LATENCY}); an exact scan above is refused."
    ),
]
Recall = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="End with 4 where less is measured, as 0.95. Or in vecbridge.toml."),
]
Promised = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="The recall@10 that is wanted, as 0.95. Or in vecbridge.toml."),
]
Queries = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npy", help="Measure with these vectors, one a row, not with stored ones."),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Chooses which; the same number, the same choice.")]
Page = Annotated[
    Path | None, typer.Option("--report", metavar="FILE.html", help="Write a page with figures, too.")
]
Nodes = Annotated[
    int | None, typer.Option(metavar="N", help="Machines of a Qdrant cluster; budgets are for each.")
]
Nested = Annotated[
    list[int] | None,
    typer.Option(metavar="N", help="A Matryoshka size of the model; may be given several times."),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The API, up to /v1, where it is not the provider's own."),
]
Dimensions = Annotated[
    int | None,
    typer.Option(metavar="N", help="Ask the API for vectors of this length, where it can shorten."),
]
Concurrency = Annotated[
    int | None,
    typer.Option(metavar="N", help="Requests to the API at once; the provider's usual, if not given."),
]
RequestsPerMinute = Annotated[
    float | None, typer.Option(metavar="N", help="The most requests a minute; else learned from the answers.")
]
TokensPerMinute = Annotated[
    float | None, typer.Option(metavar="N", help="The most tokens a minute; else learned from the answers.")
]


def stores(urls: Sequence[str] | None) -> tuple[str, ...]:
    """The URLs that were typed; where none was, those of the environment or of vecbridge.toml.

    Raises InputError.
    """
    if urls:
        return tuple(urls)
    found, origin = settings.places()
    from ..backends import scheme

    for url in found:
        try:
            scheme(url)
        except UrlError as error:
            raise UrlError(f"{origin}: {error}") from None
    return found


def place(words: list[str], *names: str) -> tuple[tuple[str, ...], list[str]]:
    """The URLs where the collection may be, and one word for each of `names`; the first is its name.

    Raises InputError, CollectionNotFound.
    """
    expected = f"expected [URL]... {' '.join(names)}"
    split = len(words) - len(names)
    # a URL has a colon, which no collection's name has; a text may have one
    if split < 0 or ":" in words[split]:
        urls = sum(1 for _ in takewhile(lambda word: ":" in word, words))
        raise InputError(f"{expected}; {names[len(words) - urls]} is missing")
    if not all(":" in word for word in words[:split]):
        hint = " (a text of several words goes in quotes, a URL begins with a scheme such as flat:)"
        raise InputError(f"{expected}, got {len(words)} arguments{hint}")
    return there(stores(words[:split])), words[split:]


def there(urls: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the URLs that may hold something: whoever looks for a collection makes no folder.

    Raises CollectionNotFound where none does.
    """
    from ..backends import unmade

    found = tuple(url for url in urls if unmade(url) is None)
    if not found:
        raise CollectionNotFound(
            f"expected collections in {' '.join(urls)}, found nothing there yet; check the path, or make the "
            f"first one with vecbridge ingest"
        )
    return found


def api(base_url: str | None, spec: str) -> str | None:
    """The API to embed with: what was typed, or what the file says of its own embedder or of openai:MODEL.

    Where the file's embedder is at another provider, so is its API: the key for openai:MODEL is not for that.
    """
    from ..embedders.providers import PROVIDERS

    provider = spec.partition(":")[0]
    if base_url is not None or provider not in PROVIDERS:
        return base_url
    said = settings.read()
    own = (said.embedder or "").partition(":")[0]
    if provider == "openai" and (own == "openai" or own not in PROVIDERS):
        return None if os.environ.get("OPENAI_BASE_URL") else said.base_url
    return said.base_url if spec == said.embedder else None


class Online(TypedDict):
    """How an API is asked."""

    dimensions: int | None
    concurrency: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None


def online(
    spec: str,
    *,
    dimensions: int | None = None,
    concurrency: int | None = None,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
) -> Online:
    """What was typed, completed from vecbridge.toml where `spec` is the embedder that it names."""
    said = settings.read()
    if spec != said.embedder:
        said = settings.Settings()
    return {
        "dimensions": said.dimensions if dimensions is None else dimensions,
        "concurrency": said.concurrency if concurrency is None else concurrency,
        "requests_per_minute": (
            said.requests_per_minute if requests_per_minute is None else requests_per_minute
        ),
        "tokens_per_minute": said.tokens_per_minute if tokens_per_minute is None else tokens_per_minute,
    }


def prefix(typed: str | None, spec: str, key: Literal["document_prefix", "query_prefix"]) -> str | None:
    """The prefix that was typed, or that vecbridge.toml gives to the embedder that it names."""
    said = settings.read()
    if typed is not None or spec != said.embedder:
        return typed
    return said.document_prefix if key == "document_prefix" else said.query_prefix


class Kept(TypedDict):
    """Where vectors from an API are kept, and how many bytes of them."""

    cache: bool | str | Path
    cache_limit: int | str


def kept(cache: Path | None, *, no_cache: bool, size: str | None) -> Kept:
    """The cache that was typed, or that vecbridge.toml names."""
    said = settings.read()
    place: bool | str | Path = True if said.cache is None else said.cache
    return {
        "cache": cache or (not no_cache and place),
        "cache_limit": size or said.cache_size or CACHE,
    }


class Budget(TypedDict):
    """What a plan may cost."""

    memory: int | str | None
    disk: int | str | None
    latency: float | None


def budget(memory: str | None, disk: str | None, latency: float | None) -> Budget:
    """The budget that was typed, completed from vecbridge.toml. Raises InputError."""
    said = settings.read()
    return {
        "memory": said.memory if memory is None else memory,
        "disk": said.disk if disk is None else disk,
        "latency": said.latency if latency is None else latency,
    }


def target(recall: float | None) -> float | None:
    """The recall that is wanted: typed, or in vecbridge.toml. Raises InputError."""
    if recall is None:
        return settings.read().recall
    if not 0 < recall <= 1:
        raise InputError(f"expected --recall as a share above 0, up to 1, as 0.95; got {recall}")
    return recall


def condition(text: str | None) -> dict[str, Any] | None:
    """The filter dictionary in a --where text. Raises FilterError."""
    if text is None:
        return None
    example = """'{"topic": "law"}'"""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FilterError(f"expected --where as JSON such as {example}; this is none: {error}") from None
    if not isinstance(value, dict):
        raise FilterError(f"expected --where as a JSON object such as {example}, got {text[:60]!a}")
    return value


def answerable(yes: bool) -> None:
    """Raise InputError where a question would have to be asked and nobody can answer."""
    if not yes and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InputError("this changes what is stored, and there is no terminal to ask on: add --yes")


def confirm(question: str, yes: bool) -> None:
    """Ask on a terminal. Raises InputError where nobody can answer, typer.Abort if the answer is no."""
    answerable(yes)
    if not yes:
        typer.confirm(output.safe(question), abort=True, err=True)
