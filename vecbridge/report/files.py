"""Pages as files: whole or not at all, and never over somebody else's file."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ..errors import InputError

# in the head of every page; tells our own files from all others
GENERATOR = "vecbridge report"
_HEAD = 1024


def write(path: str | Path, page: str) -> Path:
    """Writes a page to `path`, over an earlier page of vecbridge's but over no other file.

    The file is there whole or not at all. Returns where it is. Raises InputError where the folder is missing,
    something else is in the way, or the disk refuses.
    """
    # through a link, so that it stays one
    place = Path(os.path.realpath(path))
    if not place.parent.is_dir():
        raise InputError(
            f"expected a folder to write {place.name} to; {place.parent} is not there: make it first"
        )
    scratch = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        if place.is_symlink() or place.exists():
            _check(place)
        try:
            with scratch.open("x", encoding="utf-8", newline="\n") as out:
                out.write(page)
                out.flush()
                os.fsync(out.fileno())
            scratch.replace(place)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{place} cannot be written: {error.strerror or error}") from error
    return place


def _check(place: Path) -> None:
    if not place.is_file():
        raise InputError(f"expected a file to write the report to; {place} is none: name another path")
    with place.open("rb") as there:
        head = there.read(_HEAD)
    if f'<meta name="generator" content="{GENERATOR}">'.encode() not in head:
        raise InputError(
            f"{place} is there and is no report of vecbridge's: name another file, or remove that one first"
        )
