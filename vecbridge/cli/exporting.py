"""export and import: a collection as a Parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from . import options, output
from .evaluating import idle, missed_tuning, warn


def export(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[URL]... COLLECTION FILE.parquet", show_default=False, help=options.PLACE_HELP
        ),
    ],
    where: options.Where = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write a collection into a Parquet file that others can read, and `import` takes back."""
    urls, (name, path) = options.place(words, "COLLECTION", "FILE.parquet")
    condition = options.condition(where)
    from ..exporting import export_parquet
    from ..store import connect
    from . import progress, render

    with connect(*urls) as store, progress.shown(quiet=quiet) as show:
        collection = store.open(name)
        done = export_parquet(collection, path, where=condition, overwrite=force, progress=show)
        at = collection.url
    if as_json:
        output.write_json({"url": at, "collection": name, **done.to_dict()})
    else:
        render.exported(done, name)


def import_(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE.parquet [URL]... [COLLECTION]",
            show_default=False,
            help="What export wrote; where the collection goes, and its name, if it is another. "
            + options.PLACE_HELP,
        ),
    ],
    rows: Annotated[
        int | None, typer.Option(metavar="N", help="Plan for this many records; else for those in the file.")
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
    """Make a collection of a file that `export` wrote. Run again, it goes on where it was ended."""
    path, urls, called = _parts(words)
    wanted, budget = options.target(recall), options.budget(memory, disk, latency)
    from ..importing import import_parquet
    from ..store import connect
    from . import progress, render

    with connect(*urls) as store, progress.shown(quiet=quiet) as show:
        done = import_parquet(
            path,
            store,
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
        render.imported(done)
    for note in done.notes:
        output.say(f"Note: {note}")
    warn(idle(done.index, done.collection), missed_tuning(done.tuned, done.collection))


def _parts(words: list[str]) -> tuple[Path, tuple[str, ...], str | None]:
    """The file, the URLs of the store, and the collection's name if one was typed. Raises InputError."""
    path, *rest = words
    called = rest.pop() if rest and ":" not in rest[-1] else None
    if wrong := [word for word in rest if ":" not in word]:
        raise InputError(
            f"expected FILE.parquet [URL]... [COLLECTION], got {wrong[0][:60]!a} where a URL should be; for "
            f"example vecbridge import papers.parquet pgvector:./pg papers"
        )
    return Path(path), options.stores(rest), called
