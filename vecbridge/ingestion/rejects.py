"""What a run could not use: counted, written down, and the run stopped when there is too much of it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ..errors import InputError, SourceError, TooManyRejects, VecbridgeError
from .records import Reject

_KEYS = {"source", "position", "id", "reason"}
# of a line that tells whose file it is: path and id are up to 4,096 bytes each, written with escapes
_LINE = 100_000


class Rejects:
    """The rejects of one run. `path`: a file of JSON lines, made for the first of them.

    A file of an earlier run is replaced, and removed by `close` where there was nothing to reject, so that
    the file always tells of the last run. A device, such as /dev/null, is written to and left alone. More
    than `most` of them raise TooManyRejects; with `most` 0 the first one raises what it would have raised
    without them. Raises InputError where `path` holds something else.
    """

    def __init__(self, path: str | Path | None, *, most: int) -> None:
        if most < 0:
            raise InputError(f"expected 0 or more rejects to bear with (--max-rejects), got {most}")
        self.path = None if path is None else Path(path)
        self.count = 0
        self.first: Reject | None = None
        self._most = most
        self._file: TextIO | None = None
        if self.path is not None:
            _check(self.path)

    def add(self, reject: Reject, *, error: VecbridgeError | None = None) -> None:
        """Count and write down a reject. Where none is borne with, raises an error of the kind of `error`, or
        SourceError."""
        if not self._most:
            raise (SourceError if error is None else type(error))(str(reject)) from error
        self.count += 1
        self.first = self.first or reject
        self._write(reject)
        if self.count > self._most:
            raise TooManyRejects(
                f"stopped: {self.count:,} rejects, where {self._most:,} are borne with (--max-rejects); the "
                f"first is {self.first}" + ("" if self.path is None else f"; all of them are in {self.path}")
            )

    def note(self, reject: Reject) -> None:
        """Write down a reject that the user knows of, and that counts for nothing else."""
        self._write(reject)

    def _write(self, reject: Reject) -> None:
        if self.path is None:
            return
        try:
            if self._file is None:
                self._file = self.path.open("w", encoding="utf-8")
            self._file.write(json.dumps(reject.to_dict()) + "\n")
            # each is there at once: the run may be killed
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"{self.path}: the rejects cannot be written: {error.strerror or error}; name another file"
            ) from error

    def close(self, *, finished: bool) -> None:
        """Close the file; where a finished run had no rejects, remove that of an earlier one."""
        if self._file is not None:
            self._file.close()
        elif finished and self.path is not None and self.path.is_file():
            # all is done: that this cannot be is no reason to fail
            with suppress(OSError):
                self.path.unlink()


def _check(path: Path) -> None:
    """Raise InputError where there is a file that is no list of rejects: it would be overwritten."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            return
        with path.open(encoding="utf-8") as file:
            line = file.readline(_LINE)
    except FileNotFoundError:
        if path.parent.is_dir():
            return
        raise InputError(f"{path}: expected a folder {path.parent} for the rejects, found none") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a file for rejects: {error}; name another") from error
    try:
        ours = not line or json.loads(line).keys() == _KEYS
    except (ValueError, AttributeError):
        ours = False
    if not ours:
        raise InputError(
            f"{path}: expected a new file, or one of rejects from an earlier run, found another; it would be "
            f"overwritten: name another file"
        )
