"""Copies that were begun and are not complete: the mark in their manifest, and what goes on with them."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    # what only prints shall not wait for numpy
    from .manifest import Manifest

_FILE = re.compile(r"(.*) \(([0-9a-f]{32})\)", re.DOTALL)
_MODEL = re.compile(r"([A-Za-z0-9_-]+), embedded by .*", re.DOTALL)


def of_collection(url: str, name: str) -> str:
    """The mark of a copy of a collection. `url`: fit for messages, as `Collection.url` is."""
    return f"{url} {name}"


def of_file(file: str, id: str) -> str:
    """The mark of a copy of an exported file, by its name and the id in it."""
    return f"{file} ({id})"


def of_model(name: str, model: str) -> str:
    """The mark of what shall take the place of a collection beside it, with vectors of another model."""
    return f"{name}, embedded by {model}"


def same_name(mark: str | None, name: str) -> bool:
    """Whether a mark is that of what shall take the place of the collection `name`."""
    found = None if mark is None else _MODEL.fullmatch(mark)
    return found is not None and found[1] == name


def same_file(mark: str | None, id: str) -> bool:
    """Whether a mark is that of the file with this id, under whatever name the file had."""
    found = None if mark is None else _FILE.fullmatch(mark)
    return found is not None and found[2] == id


def command(manifest: Manifest, url: str) -> str:
    """The command that goes on with an unfinished copy at `url`; passwords are for the user to put in."""
    mark = manifest.copy_of
    assert mark is not None
    if found := _FILE.fullmatch(mark):
        words = ["vecbridge", "import", found[1], url, manifest.name]
    elif found := _MODEL.fullmatch(mark):
        words = ["vecbridge", "reembed", url, found[1], "--embedder", "SPEC", "--beside", manifest.name]
    else:
        source, _, name = mark.rpartition(" ")
        words = ["vecbridge", "copy", source, name, url, manifest.name]
    return shlex.join(words)


def check_whole(manifest: Manifest, url: str) -> None:
    """Raise InputError where a collection at `url` is an unfinished copy: a part would be taken for all."""
    if manifest.copy_of is not None:
        raise InputError(
            f"expected a collection that is complete, got {manifest.name} in {url}, which is an unfinished "
            f"copy of {manifest.copy_of}; go on with it first: {command(manifest, url)}"
        )
