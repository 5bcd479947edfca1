"""copy: a collection from one store to another."""

from __future__ import annotations

from itertools import takewhile
from typing import Annotated

import typer

from ..errors import InputError
from . import options, output
from .evaluating import idle, missed_tuning, warn


def copy(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="URL... COLLECTION URL... [NAME]",
            show_default=False,
            help="Where it is, its name, where the copy goes, and the copy's name, if it is another. URLs: "
            "flat:PATH, pgvector:PATH, qdrant:PATH, postgresql://… or qdrant://…; several are one store.",
        ),
    ],
    rows: Annotated[
        int | None, typer.Option(metavar="N", help="Plan for this many records; else for those there are.")
    ] = None,
    memory: options.Memory = None,
    disk: options.Disk = None,
    latency: options.Latency = None,
    nodes: options.Nodes = None,
    recall: options.Promised = None,
    seed: options.Seed = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No plan and no progress.")] = False,
    as_json: options.Json = False,
) -> None:
    """Copy a collection to another store, and compare both. Run again, it goes on where it was ended."""
    origin, name, place, called = _parts(words)
    wanted, budget = options.target(recall), options.budget(memory, disk, latency)
    from ..copying import copy as run
    from ..store import connect
    from . import progress, render

    with (
        connect(*options.there(tuple(origin))) as there,
        connect(*place) as here,
        progress.shown(quiet=quiet) as show,
    ):
        done = run(
            there.open(name),
            here,
            name=called,
            rows=rows,
            **budget,
            nodes=nodes,
            recall=wanted,
            seed=seed,
            progress=show,
            on_plan=None if quiet else lambda made: render.plan(made, show.console),
        )
    if as_json:
        output.write_json(done.to_dict())
    else:
        render.copied(done)
    for note in done.notes:
        output.say(f"Note: {note}")
    warn(idle(done.index, done.collection), missed_tuning(done.tuned, done.collection))


def _parts(words: list[str]) -> tuple[list[str], str, list[str], str | None]:
    """The URLs and the name of the source, the URLs of the copy, and its name if one was typed.

    Raises InputError.
    """
    origin = list(takewhile(_is_url, words))
    name, rest = words[len(origin) : len(origin) + 1], words[len(origin) + 1 :]
    place = list(takewhile(_is_url, rest))
    called = rest[len(place) :]
    if not origin or not name or not place or len(called) > 1:
        if place and name:
            got = "more behind the copy's name" if origin else "no URL of the source"
        else:
            got = "no URL of the copy" if name else "no name of a collection"
        raise InputError(
            f"expected URL... COLLECTION URL... [NAME], got {got}; for example vecbridge copy flat:./data "
            f"papers pgvector:./pg"
        )
    return origin, name[0], place, called[0] if called else None


def _is_url(word: str) -> bool:
    return ":" in word
