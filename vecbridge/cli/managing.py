"""info, list, delete and drop."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

import typer

from ..errors import CollectionNotFound, InputError, VecbridgeError
from . import options, output


def info(words: options.Place, as_json: options.Json = False) -> None:
    """Show what a collection is: its space, layout, index and sizes."""
    urls, (name,) = options.place(words, "COLLECTION")
    from ..explain import describe
    from ..store import connect

    with connect(*urls) as store:
        collection = store.open(name)
        manifest, sizes = collection.manifest, collection.sizes()
        count, state, at = collection.count(), collection.index_state(), collection.url
    if as_json:
        output.write_json(
            {
                "url": at,
                "collection": name,
                "records": count,
                "planned_rows": manifest.rows,
                "space": asdict(manifest.space),
                "stored_dim": manifest.stored_dim,
                "layout": manifest.layout.to_dict(),
                "layout_in_words": describe(manifest.layout, manifest.space.dim),
                "index": asdict(state),
                "recall": manifest.recall,
                "tuned": None if manifest.tuned is None else asdict(manifest.tuned),
                "adopted": None if manifest.adopted is None else asdict(manifest.adopted),
                "unfinished_copy_of": manifest.copy_of,
                "sizes": asdict(sizes),
                "version": manifest.version,
            }
        )
        return
    from . import render

    render.info(at, manifest, count, state, sizes)


def collections(
    urls: Annotated[
        list[str] | None, typer.Argument(metavar="[URL]...", help=options.PLACE_HELP, show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the collections of a store."""
    from ..store import connect

    names, at = [], options.stores(urls)
    with suppress(CollectionNotFound), connect(*options.there(at)) as store:
        names, at = store.collections(), store.urls
    if as_json:
        output.write_json({"urls": list(at), "collections": names})
    elif names:
        output.answer("\n".join(names))
    else:
        output.say(f"no collections in {' '.join(at)}")


def delete(
    words: options.Place,
    id: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A record to delete; may be given several times.")
    ] = None,
    where: options.Where = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Delete records by id or by filter."""
    urls, (name,) = options.place(words, "COLLECTION")
    condition = options.condition(where)
    if bool(id) == (condition is not None):
        raise InputError(f"expected either --id or --where, got {'both' if id else 'neither'}")
    from ..store import connect

    with connect(*urls) as store:
        collection = store.open(name)
        at = collection.url
        if id:
            there = len(collection.get(id))
        elif condition:
            there = collection.count(where=condition)
        else:
            # an empty filter is refused by the collection, with advice: nothing to ask
            there = 0
        if there:
            options.confirm(f"Delete {there:,} of {collection.count():,} records from {name} in {at}?", yes)
        gone = collection.delete(id) if id else collection.delete(where=condition)
    if as_json:
        output.write_json({"url": at, "collection": name, "deleted": gone})
    else:
        output.answer(f"deleted {gone:,} {'record' if gone == 1 else 'records'} from {name}")


def drop(words: options.Place, yes: options.Yes = False, as_json: options.Json = False) -> None:
    """Delete a collection with everything in it; an adopted table, or collection of Qdrant, itself stays."""
    urls, (name,) = options.place(words, "COLLECTION")
    from ..store import connect

    with connect(*urls) as store:
        # not opened: what cannot be read any more must still be possible to drop
        at = store.find(name).url
        adopted = None
        with suppress(VecbridgeError):
            adopted = store.open(name).manifest.adopted
        what = " with everything in it"
        if adopted is not None:
            what = f"{' and the index made for it' if adopted.index else ''}; {adopted.said} stays"
        options.confirm(f"Drop {name} in {at}{what}?", yes)
        store.drop(name)
    if as_json:
        kept = None if adopted is None else adopted.whole
        output.write_json({"url": at, "collection": name, "dropped": True, "kept": kept})
    else:
        output.answer(f"dropped {name}" + ("" if adopted is None else f"; {adopted.said} is as it was"))
