"""Records from .npy matrices and from Parquet, a block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import date, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import MissingExtra, SourceError
from . import vectors
from .lines import shown
from .records import Fields, Record, build
from .tables import rows

if TYPE_CHECKING:
    from ..types import Floats

_ROWS = 256
_BYTES = 8_000_000


def npy(
    path: Path,
    sidecar: Path,
    kind: Literal["jsonl", "csv"],
    *,
    fields: Fields,
    numbers: Sequence[str],
) -> Iterator[Record]:
    """The rows of a matrix, each with the record of the sidecar at the same position."""
    place = shown(path)
    n, dim = _matrix(path).shape
    described = sum(1 for _ in rows(sidecar, kind, fields=fields, numbers=numbers))
    if described != n:
        raise SourceError(
            f"{shown(sidecar)}: expected {n:,} records, one for each row of {place}, got {described:,}"
        )
    step = max(1, min(_ROWS, _BYTES // (4 * dim)))
    block = np.empty((0, dim))
    for row, (where, name, values) in enumerate(rows(sidecar, kind, fields=fields, numbers=numbers)):
        if row % step == 0:
            # a map that stayed open would count as this process's memory, page by page
            block = np.array(_matrix(path)[row : row + step])
        try:
            vector = vectors.single(block[row % step])
        except ValueError as error:
            raise SourceError(f"{place}: row {row}, counted from 0: expected numbers, got {error}") from None
        if both := [field for field in fields.vectors if values.get(field) is not None]:
            raise SourceError(f"{where}: expected vectors in {place} alone, got a field {both[0]!a} too")
        yield build(values, fields, place=where, name=name, nulls=kind == "jsonl", vector=vector)


def _matrix(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    """The array of a .npy file, mapped into memory."""
    try:
        matrix: np.ndarray[Any, np.dtype[Any]] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise SourceError(f"{shown(path)}: expected a matrix of numbers as .npy: {error}") from None
    if matrix.ndim != 2 or not matrix.shape[1] or matrix.dtype.kind not in "fiu":
        raise SourceError(
            f"{shown(path)}: expected a matrix of numbers of shape (n, dim), "
            f"got {matrix.dtype} of shape {matrix.shape}"
        )
    return matrix


def parquet(path: Path, fields: Fields) -> Iterator[Record]:
    """The rows of a Parquet file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra(
            f"Parquet needs the package {error.name}; install it with pip install 'vecbridge[parquet]'"
        ) from error
    place, file = shown(path), shown(Path(path.name))
    number = 0
    try:
        # with a buffer the columns are read in parts; without it a whole row group lies in memory
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20) as source:
            columns, lists = _columns(list(source.schema_arrow.names), fields, place)
            for batch in source.iter_batches(batch_size=_ROWS, columns=[*columns, *lists]):
                found: Sequence[Floats | None] = [None] * batch.num_rows
                if lists:
                    found = _lists(batch.column(lists[0]), place, number)
                for values, vector in zip(batch.select(columns).to_pylist(), found, strict=True):
                    number += 1
                    yield build(
                        {key: _plain(value) for key, value in values.items()},
                        Fields(fields.id, fields.text),
                        place=f"{place}: row {number}",
                        name=f"{file}:{number}",
                        nulls=False,
                        vector=vector,
                    )
    except SourceError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"{place}: expected a Parquet file: {error}") from error


def _columns(names: list[str], fields: Fields, place: str) -> tuple[list[str], list[str]]:
    """The columns to read: those with plain values, and the one with vectors if there is one."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise SourceError(f"{place}: expected each column once, got {twice[0]!a} twice")
    lists = [name for name in fields.vectors if name in names][:1]
    if fields.vector and not lists:
        raise SourceError(
            f"{place}: expected a column {fields.vector!a}, got {', '.join(map(ascii, names[:20]))}"
        )
    # pandas writes its row numbers under such names
    return [name for name in names if name not in lists and not name.startswith("__index_level_")], lists


def _lists(column: Any, place: str, before: int) -> list[Floats | None]:
    """The vectors of a list column; None for its nulls."""
    import pyarrow
    from pyarrow import compute

    kind = column.type
    inner = getattr(kind, "value_type", None)
    if inner is None or not (pyarrow.types.is_floating(inner) or pyarrow.types.is_integer(inner)):
        raise SourceError(f"{place}: expected the vectors as lists of numbers, got {kind}")
    flat = column.flatten()
    lengths = compute.fill_null(compute.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    if flat.null_count:
        row = int(
            np.searchsorted(ends, int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False))), "right")
        )
        raise SourceError(f"{place}: row {before + row + 1}: expected numbers in the vector, got null")
    values = flat.to_numpy(zero_copy_only=False)
    present = column.is_valid().to_numpy(zero_copy_only=False)
    found: list[Floats | None] = []
    for row, end in enumerate(ends):
        try:
            part = values[end - lengths[row] : end]
            if present[row] and not len(part):
                raise ValueError("an empty list")
            found.append(vectors.single(part) if present[row] else None)
        except ValueError as error:
            raise SourceError(f"{place}: row {before + row + 1}: expected a vector, got {error}") from None
    return found


def _plain(value: Any) -> Any:
    """A value of Parquet as JSON can hold it: dates and times as ISO 8601 text, no NaN."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list):
        return [_plain(element) for element in value]
    if isinstance(value, dict):
        return {key: _plain(element) for key, element in value.items()}
    return value
