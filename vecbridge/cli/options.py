"""Arguments and options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import takewhile
from typing import Annotated, Any, TypedDict

import typer

from ..errors import FilterError, InputError, UrlError
from . import settings

# the planner's own default, repeated because importing it would slow every command down
LATENCY = 0.1

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
Nodes = Annotated[
    int | None, typer.Option(metavar="N", help="Machines of a Qdrant cluster; budgets are for each.")
]
Nested = Annotated[
    list[int] | None,
    typer.Option(metavar="N", help="A Matryoshka size of the model; may be given several times."),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="For openai:MODEL: the API, up to /v1. The key is in OPENAI_API_KEY."),
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
    """The store's URLs, and one word for each of `names`, of which the first is a collection's name.

    Raises InputError.
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
    return stores(words[:split]), words[split:]


def api(base_url: str | None, spec: str) -> str | None:
    """The API to embed with: what was typed, or for openai:MODEL what the environment or the file says."""
    if base_url is not None or not spec.startswith("openai:") or os.environ.get("OPENAI_BASE_URL"):
        return base_url
    return settings.read().base_url


class Budget(TypedDict):
    """What a plan may cost."""

    memory: int | str | None
    disk: int | str | None
    latency: float


def budget(memory: str | None, disk: str | None, latency: float | None) -> Budget:
    """The budget that was typed, completed from vecbridge.toml. Raises InputError."""
    said = settings.read()
    if latency is None:
        latency = LATENCY if said.latency is None else said.latency
    return {
        "memory": said.memory if memory is None else memory,
        "disk": said.disk if disk is None else disk,
        "latency": latency,
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
