"""Arguments and options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ..errors import FilterError, InputError

DEFAULT_URL = "flat:"
PLACE_HELP = "URL: flat:PATH, pgvector:PATH or postgresql://…; without it flat:./vecbridge-data."

Place = Annotated[list[str], typer.Argument(metavar="[URL] COLLECTION", show_default=False, help=PLACE_HELP)]
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
    float,
    typer.Option(metavar="SECONDS", help="How long one search may take; an exact scan above is refused."),
]
Nested = Annotated[
    list[int] | None,
    typer.Option(metavar="N", help="A Matryoshka size of the model; may be given several times."),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="For openai:MODEL: the API, up to /v1. The key is in OPENAI_API_KEY."),
]


def place(words: list[str], *names: str) -> list[str]:
    """The store's URL and one word for each of `names`; the default URL where the first word is none.

    Raises InputError.
    """
    # a URL has a colon, which no collection's name has
    given = words if words and ":" in words[0] else [DEFAULT_URL, *words]
    expected = f"expected [URL] {' '.join(names)}"
    if len(given) > len(names) + 1:
        hint = " (a text of several words goes in quotes, a URL begins with a scheme such as flat:)"
        raise InputError(f"{expected}, got {len(words)} arguments{hint}")
    if len(given) < len(names) + 1:
        raise InputError(f"{expected}; {names[len(given) - 1]} is missing")
    return given


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
