"""The vector files of a collection: append, map, copy.

`vectors.GENERATION` holds the vectors, float32 or float16, little-endian, position after position.
`rows.GENERATION` holds for each position the row of its record (int64, ascending) and the vector's length
(float64). A position that was committed once is never written again: whoever mapped it may go on reading.
GENERATION is a random name, new after each compaction, so that no file is ever mistaken for another.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ...errors import ManifestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...types import Element

    Array: TypeAlias = NDArray[Any]

BLOCK = 32 * 2**20  # bytes of vectors that are converted or copied at once
_ROWS = np.dtype([("row", "<i8"), ("length", "<f8")])


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """The mapped files of one generation: `matrix` (n, d), `rows` and `lengths` (n,), read-only."""

    generation: str
    matrix: Array
    rows: Array
    lengths: Array

    def head(self, n: int) -> Vectors:
        """The first `n` positions."""
        if n == len(self.matrix):
            return self
        return Vectors(self.generation, self.matrix[:n], self.rows[:n], self.lengths[:n])


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

    def create(self) -> str:
        """A new, empty generation; returns its name."""
        generation = secrets.token_hex(8)
        for path in self.paths(generation):
            with path.open("xb") as file:
                os.fsync(file.fileno())
        sync_folder(self.folder)
        return generation

    def map(self, generation: str, rows: int) -> Vectors:
        """The first `rows` positions. Raises FileNotFoundError, ManifestError where a file is too short."""
        vectors, side = self.paths(generation)
        matrix = _map(vectors, rows, self.dim * self.dtype.itemsize)
        table = np.frombuffer(_map(side, rows, _ROWS.itemsize), dtype=_ROWS)
        shaped = np.frombuffer(matrix, dtype=self.dtype).reshape(rows, self.dim)
        return Vectors(generation, shaped, table["row"], table["length"])

    def append(self, generation: str, at: int, vectors: Array, first_row: int) -> None:
        """Write `vectors`, float32 (n, d), at the positions from `at` on; durable when the call returns.

        What lay there is garbage of a writer that died. On failure the files end at `at` again.
        """
        stored = np.ascontiguousarray(vectors, dtype=self.dtype)
        table = np.empty(len(stored), dtype=_ROWS)
        table["row"] = np.arange(first_row, first_row + len(stored))
        table["length"] = lengths(stored)
        with self._tail(generation, at) as (matrix, side):
            _write(matrix, at * stored[:1].nbytes, stored)
            _write(side, at * _ROWS.itemsize, table)
            os.fsync(matrix)
            os.fsync(side)

    def copy(self, source: Vectors, positions: Array) -> str:
        """A new generation that holds only these positions, durable; returns its name."""
        generation = self.create()
        step = max(1, BLOCK // (self.dim * self.dtype.itemsize))
        try:
            with self._tail(generation, 0) as (matrix, side):
                for start in range(0, len(positions), step):
                    chosen = positions[start : start + step]
                    table = np.empty(len(chosen), dtype=_ROWS)
                    table["row"] = source.rows[chosen]
                    table["length"] = source.lengths[chosen]
                    _write(matrix, start * self.dim * self.dtype.itemsize, source.matrix[chosen])
                    _write(side, start * _ROWS.itemsize, table)
                os.fsync(matrix)
                os.fsync(side)
        except BaseException:
            self.discard(generation)
            raise
        return generation

    def discard(self, generation: str) -> None:
        """Delete a generation that nothing refers to."""
        for path in self.paths(generation):
            path.unlink(missing_ok=True)

    def sweep(self, generation: str) -> None:
        """Delete every generation but this one: left by compaction, finished or killed."""
        keep = {path.name for path in self.paths(generation)}
        for entry in os.scandir(self.folder):
            if entry.name.startswith(("vectors.", "rows.")) and entry.name not in keep:
                Path(entry.path).unlink(missing_ok=True)

    @contextmanager
    def _tail(self, generation: str, at: int) -> Iterator[tuple[int, int]]:
        """Both files, open for writing from position `at` on; cut back to it when something fails."""
        vectors, side = self.paths(generation)
        ends = (at * self.dim * self.dtype.itemsize, at * _ROWS.itemsize)
        files: list[int] = []
        try:
            for path, end in zip((vectors, side), ends, strict=True):
                files.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
                _check_size(path, os.fstat(files[-1]).st_size, end)
            try:
                yield files[0], files[1]
            except BaseException:
                # nobody maps positions from `at` on, so nobody can be cut off
                for file, end in zip(files, ends, strict=True):
                    with suppress(OSError):
                        os.ftruncate(file, end)
                raise
        finally:
            for file in files:
                os.close(file)


def lengths(vectors: Array) -> Array:
    """Euclidean length of each row, in float64: float32 squares overflow from 1.8e19 on."""
    found = np.empty(len(vectors))
    step = max(1, BLOCK // (8 * vectors.shape[1]))
    for start in range(0, len(vectors), step):
        block = vectors[start : start + step].astype(np.float64)
        found[start : start + step] = np.sqrt(np.einsum("ij,ij->i", block, block))
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
