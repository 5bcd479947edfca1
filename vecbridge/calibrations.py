"""What calibrations found, kept for later plans in a file of this user's, beside the cache of embeddings."""

from __future__ import annotations

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import backends
from ._version import __version__
from .cache import folder
from .errors import InputError, StoreError
from .speeds import Speeds

FILE = "calibrations.json"
FORMAT = 1


def known(url: str) -> Speeds | None:
    """What the last calibration of the place at `url` found; None where there was none.

    Raises InputError where the file of calibrations is damaged.
    """
    entry = _read().get(_key(url))
    if entry is None:
        return None
    try:
        return Speeds.from_dict(entry["speeds"])
    except (InputError, KeyError, TypeError) as error:
        raise _damaged(f"the entry of {_key(url)} holds no speeds: {error}") from error


def keep(url: str, speeds: Speeds) -> Path:
    """Keep speeds for later plans for the place at `url`; returns the file that they are in.

    The file is whole at any moment, and no other process's calibration is lost; a damaged one is set aside as
    calibrations.json.damaged. Raises StoreError where it cannot be written.
    """
    try:
        return _keep(_key(url), speeds)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StoreError(
            f"what was measured cannot be kept for later plans: {FILE} could not be written ({reason}); set "
            f"XDG_CACHE_HOME to a folder where this user may write"
        ) from error


def _keep(key: str, speeds: Speeds) -> Path:
    path = _path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.with_name(f"{FILE}.lock").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        try:
            entries = _read()
        except InputError:
            path.replace(path.with_name(f"{FILE}.damaged"))
            entries = {}
        entries[key] = {
            "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "backend": speeds.backend,
            "vecbridge": __version__,
            "speeds": speeds.to_dict(),
        }
        content = json.dumps({"format": FORMAT, "places": entries}, indent=1)
        fresh = path.with_name(f"{FILE}.new")
        with open(fresh, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    return path


def _path() -> Path:
    return folder() / FILE


def _read() -> dict[str, Any]:
    try:
        content = json.loads(_path().read_text())
    except (FileNotFoundError, RuntimeError):  # RuntimeError: there is no home directory
        return {}
    except (ValueError, RecursionError) as error:
        raise _damaged(str(error)) from error
    if not isinstance(content, dict) or not isinstance(content.get("places"), dict):
        raise _damaged("it is no list of places")
    if content.get("format") != FORMAT:
        return {}  # another version's numbers may mean something else
    return dict(content["places"])


def _damaged(why: str) -> InputError:
    return InputError(
        f"expected calibrations in {_path()}, which is damaged ({why}); remove it and calibrate again"
    )


def _key(url: str) -> str:
    """The URL without password, and with a whole path: what a place is called wherever one works."""
    shown = backends.shown(url)
    scheme, _, rest = shown.partition(":")
    if rest.startswith("//"):
        return shown
    return f"{scheme.lower()}:{os.path.realpath(Path(rest).expanduser())}"
