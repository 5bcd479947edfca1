"""The vector files of a collection: append, map, copy.

`vectors.GENERATION` holds the vectors, float32 or float16, little-endian, position after position.
`rows.GENERATION` holds for each position the row of its record (int64, ascending) and the vector's length
(float64). `codes.GENERATION` and `scales.GENERATION` hold the same vectors in bytes (see `codes`), where a
library is installed that makes use of them. They are derived, and count for as many positions as SQLite says:
a program that knows nothing of them may add positions, and they end before those.
A position that was committed once is never written again: whoever mapped it may go on reading.
GENERATION is a random name, new after each compaction, so that no file is ever mistaken for another.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ...errors import ManifestError
from .codes import LEAST, MOST, SCALES, Codes, dots, encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...types import Element

    Array: TypeAlias = NDArray[Any]

BLOCK = 32 * 2**20  # bytes of vectors that are converted or copied at once
_ROWS = np.dtype([("row", "<i8"), ("length", "<f8")])


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """The mapped files of one generation: `matrix` (n, d), `rows` and `lengths` (n,), read-only.

    `codes`: all of it in bytes, None where there are none. `coded`: how many positions had codes by SQLite's
    account when the files were mapped.
    """

    generation: str
    matrix: Array
    rows: Array
    lengths: Array
    codes: Codes | None = None
    coded: int = 0

    @property
    def dim(self) -> int:
        """The number of components."""
        return int(self.matrix.shape[1])

    def head(self, n: int) -> Vectors:
        """The first `n` positions."""
        if n == len(self.matrix):
            return self
        codes = None if self.codes is None else self.codes.head(n)
        return Vectors(self.generation, self.matrix[:n], self.rows[:n], self.lengths[:n], codes, self.coded)


@dataclass(frozen=True, slots=True)
class Files:
    """Where the vectors of one collection lie, and how wide they are."""

    folder: Path
    dim: int
    element: Element

    @property
    def dtype(self) -> np.dtype[Any]:
        """How components lie in the file: little-endian half or single precision."""
        return np.dtype("<f2" if self.element == "float16" else "<f4")

    def paths(self, generation: str) -> tuple[Path, Path]:
        """The file of the vectors and the file of the rows."""
        suffix = "f16" if self.element == "float16" else "f32"
        return self.folder / f"vectors.{generation}.{suffix}", self.folder / f"rows.{generation}.bin"

    @property
    def coding(self) -> bool:
        """Whether vectors are kept in bytes as well: they are long enough, and something here reads them."""
        return LEAST <= self.dim <= MOST and dots() is not None

    def create(self) -> str:
        """A new, empty generation; returns its name."""
        generation = secrets.token_hex(8)
        for path, _ in self._parts(generation, coding=self.coding):
            with path.open("xb") as file:
                os.fsync(file.fileno())
        sync_folder(self.folder)
        return generation

    def map(self, generation: str, rows: int, *, coded: int) -> Vectors:
        """The first `rows` positions, of which `coded` have codes.

        Raises FileNotFoundError, ManifestError where a file is too short; codes may be missing.
        """
        (vectors, width), (side, side_width) = self._parts(generation)
        matrix = np.frombuffer(_map(vectors, rows, width), dtype=self.dtype).reshape(rows, self.dim)
        table = np.frombuffer(_map(side, rows, side_width), dtype=_ROWS)
        codes = self._codes(generation, rows) if rows <= coded and self.coding else None
        return Vectors(generation, matrix, table["row"], table["length"], codes, coded)

    def append(
        self,
        generation: str,
        at: int,
        vectors: Array,
        first_row: int,
        *,
        coded: int,
        meanwhile: Callable[[], None] | None = None,
    ) -> int:
        """Write `vectors`, float32 (n, d), at the positions from `at` on; durable when the call returns.

        What lay there is garbage of a writer that died. On failure the files end at `at` again. Returns how
        many positions have codes now; `coded` had them before. `meanwhile` is called once, in this thread,
        while the disk is at work; what it raises is a failure.
        """
        stored = np.ascontiguousarray(vectors, dtype=self.dtype)
        table = np.empty(len(stored), dtype=_ROWS)
        table["row"] = np.arange(first_row, first_row + len(stored))
        coding = coded == at and self._extensible(generation, at)
        # The threads beside this one ask for the interpreter a few times only: numpy in small steps, beside
        # SQLite, which lets go of it with each row, keeps both waiting for longer than they work.
        with (
            self._tail(generation, at, coding=coding) as tail,
            ThreadPoolExecutor(2, thread_name_prefix="vecbridge-append") as beside,
        ):
            # the disk begins at once with what takes longest
            begun = beside.submit(tail.begin, stored)
            measured = beside.submit(lengths, stored)
            if meanwhile is not None:
                meanwhile()
            table["length"] = measured.result()
            tail.write(1, 0, table)
            if coding:
                tail.write_codes(0, encode(stored, table["length"]))
            begun.result()
        return at + len(stored) if coding else coded

    def copy(self, source: Vectors, positions: Array) -> str:
        """A new generation that holds only these positions, durable; returns its name."""
        generation = self.create()
        step = max(1, BLOCK // (self.dim * self.dtype.itemsize))
        try:
            with self._tail(generation, 0, coding=self.coding) as tail:
                for start in range(0, len(positions), step):
                    chosen = positions[start : start + step]
                    table = np.empty(len(chosen), dtype=_ROWS)
                    table["row"] = source.rows[chosen]
                    table["length"] = source.lengths[chosen]
                    stored = source.matrix[chosen]
                    tail.write(0, start, stored)
                    tail.write(1, start, table)
                    if self.coding:
                        tail.write_codes(start, encode(stored, table["length"]))
        except BaseException:
            self.discard(generation)
            raise
        return generation

    def code(self, source: Vectors) -> None:
        """Make the codes of all that is mapped anew, durable and in place of others when the call returns."""
        step = max(1, BLOCK // (self.dim * 4))
        paths = [path for path, _ in self._parts(source.generation, coding=True)[2:]]
        made = [path.with_suffix(".new") for path in paths]
        try:
            with made[0].open("wb") as matrix, made[1].open("wb") as scales:
                for start in range(0, len(source.matrix), step):
                    part = slice(start, start + step)
                    codes = encode(source.matrix[part], source.lengths[part])
                    _write(matrix.fileno(), start * self.dim, codes.matrix)
                    _write(scales.fileno(), start * SCALES.itemsize, codes.scales)
                os.fsync(matrix.fileno())
                os.fsync(scales.fileno())
            for new, path in zip(made, paths, strict=True):
                new.replace(path)
        finally:
            for new in made:
                new.unlink(missing_ok=True)
        sync_folder(self.folder)

    def discard(self, generation: str) -> None:
        """Delete a generation that nothing refers to."""
        for path, _ in self._parts(generation, coding=True):
            path.unlink(missing_ok=True)

    def sweep(self, generation: str) -> None:
        """Delete every generation but this one: left by compaction, finished or killed."""
        keep = {path.name for path, _ in self._parts(generation, coding=True)}
        for entry in os.scandir(self.folder):
            if entry.name.startswith(("vectors.", "rows.", "codes.", "scales.")) and entry.name not in keep:
                Path(entry.path).unlink(missing_ok=True)

    def _parts(self, generation: str, *, coding: bool = False) -> list[tuple[Path, int]]:
        """The files of vectors and rows, if asked of codes and scales too; each with its bytes per row."""
        vectors, side = self.paths(generation)
        parts = [(vectors, self.dim * self.dtype.itemsize), (side, _ROWS.itemsize)]
        if coding:
            parts.append((self.folder / f"codes.{generation}.i8", self.dim))
            parts.append((self.folder / f"scales.{generation}.bin", SCALES.itemsize))
        return parts

    def _codes(self, generation: str, rows: int) -> Codes | None:
        """The codes of the first `rows` positions; None where a file is missing or too short."""
        (path, width), (side, side_width) = self._parts(generation, coding=True)[2:]
        try:
            matrix, scales = _map(path, rows, width), _map(side, rows, side_width)
        except (FileNotFoundError, ManifestError):
            return None  # derived: all is found without them
        shaped = np.frombuffer(matrix, dtype=np.int8).reshape(rows, self.dim)
        return Codes(shaped, np.frombuffer(scales, dtype=SCALES))

    def _extensible(self, generation: str, at: int) -> bool:
        """Whether codes of all positions before `at` are there."""
        if not self.coding:
            return False
        parts = self._parts(generation, coding=True)[2:]
        return all(path.is_file() and path.stat().st_size >= at * width for path, width in parts)

    @contextmanager
    def _tail(self, generation: str, at: int, *, coding: bool) -> Iterator[_Tail]:
        """What lies behind position `at`, to be written; durable at the end, cut back when it fails."""
        parts = self._parts(generation, coding=coding)
        files: list[int] = []
        try:
            for path, width in parts:
                files.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
                _check_size(path, os.fstat(files[-1]).st_size, at * width)
            try:
                yield _Tail(at, files, [width for _, width in parts])
                for file in files:
                    os.fsync(file)
            except BaseException:
                # nobody maps positions from `at` on, so nobody can be cut off
                for file, (_, width) in zip(files, parts, strict=True):
                    with suppress(OSError):
                        os.ftruncate(file, at * width)
                raise
        finally:
            for file in files:
                os.close(file)


@dataclass(frozen=True, slots=True)
class _Tail:
    """Open files, in the order of `Files._parts`, behind position `at`; `widths`: bytes per row of each."""

    at: int
    files: list[int]
    widths: list[int]

    def write(self, part: int, start: int, array: Array) -> None:
        """Rows of one file, from `start` behind the position on."""
        _write(self.files[part], (self.at + start) * self.widths[part], array)

    def write_codes(self, start: int, codes: Codes) -> None:
        """Rows of the files of codes and scales."""
        self.write(2, start, codes.matrix)
        self.write(3, start, codes.scales)

    def begin(self, vectors: Array) -> None:
        """Write all vectors, and send them on to the disk."""
        self.write(0, 0, vectors)
        os.fsync(self.files[0])


def lengths(vectors: Array) -> Array:
    """Euclidean length of each row, in float64: float32 squares overflow from 1.8e19 on."""
    found: Array = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return found


def sync_folder(folder: Path) -> None:
    """Make new and renamed entries of `folder` survive a power cut."""
    file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _map(path: Path, rows: int, width: int) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        # a map that is longer than its file kills the process when it is read
        _check_size(path, os.fstat(file.fileno()).st_size, rows * width)
        return mmap.mmap(file.fileno(), rows * width, access=mmap.ACCESS_READ) if rows else b""


def _check_size(path: Path, found: int, expected: int) -> None:
    if found < expected:
        raise ManifestError(
            f"expected at least {expected} bytes in {path}, found {found}: the file was cut off; "
            f"restore the folder from a backup or drop the collection"
        )


def _write(file: int, offset: int, array: Array) -> None:
    data = array.view(np.uint8).reshape(-1).data
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
