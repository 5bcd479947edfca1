"""Records from .npy and .npz arrays and from Parquet, a block of rows at a time."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import date, time
from itertools import chain, repeat
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar
from zipfile import BadZipFile, ZipFile

import numpy as np

from ..embedders import vectors
from ..errors import MissingExtra, SourceError
from .lines import Fault
from .records import LATER, Fields, Origin, Record, Reject, Source, build, short
from .tables import count, rows

if TYPE_CHECKING:
    from ..types import Floats

    Array = np.ndarray[Any, np.dtype[Any]]

T = TypeVar("T")

_ROWS = 256
_BYTES = 8_000_000
_IDS = ("ids",)
_TEXTS = ("texts", "documents")
_BROKEN = (ValueError, EOFError, OSError, BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def described(
    source: Source,
    fields: Fields,
    *,
    sidecar: Source,
    kind: Literal["jsonl", "csv"],
    encoding: str | None = None,
    whole: bool,
) -> Iterator[Record | Reject]:
    """The rows of a matrix (.npy, or .npz), each with the record of the sidecar at the same position.

    Unless `whole`, LATER stands for the vectors, and of the matrix only its shape is read.
    """
    member = None if source.kind == "npy" else _vector_member(source, fields.vector)
    fields = Fields(fields.id, fields.text, numbers=fields.numbers)
    n, dim = _shape(source, member)
    if (there := count(sidecar, fields, kind=kind, encoding=encoding)) != n:
        raise SourceError(
            f"{sidecar.file}: expected {n:,} records, one for each row of {source.file}, got {there:,}"
        )
    records = rows(sidecar, fields, kind=kind, encoding=encoding, aligned=True)
    for row, vector in enumerate(_vectors(source, member, dim) if whole else repeat(LATER, n)):
        found = next(records, None)
        if found is None:
            raise SourceError(f"{sidecar.file}: expected {n:,} records, got {row:,}; it changed while read")
        if isinstance(found, Reject):
            yield found
            continue
        origin, name, cells = found
        if both := [field for field in fields.vectors if cells.get(field) is not None]:
            reason = f"expected vectors in {source.file} alone, got a field {both[0]!a} too"
            yield Reject(origin, reason, name)
            continue
        record = build(cells, fields, origin=origin, name=name, nulls=kind == "jsonl", vector=LATER)
        yield _with_vector(record, vector, source, row)


def named(source: Source, fields: Fields, *, whole: bool) -> Iterator[Record | Reject] | None:
    """The rows of an .npz that holds its ids or texts beside the vectors; None where it holds neither.

    `whole`: see `described`.
    """
    member, members = _vector_member(source, fields.vector), _members(source)
    ids = next((name for name in _IDS if name in members), None)
    texts = next((name for name in _TEXTS if name in members), None)
    if ids is None and texts is None:
        return None
    return _named(source, member, ids, texts, whole=whole)


def _named(
    source: Source, member: str, ids: str | None, texts: str | None, *, whole: bool
) -> Iterator[Record | Reject]:
    n, dim = _shape(source, member)
    columns = [_column(source, name, n) for name in (ids, texts)]
    found = _vectors(source, member, dim) if whole else repeat(LATER, n)
    for row, (vector, key, text) in enumerate(zip(found, *columns, strict=True)):
        cells = {"id": key, "text": text}
        origin, name = Origin(source.file, "row", row + 1), f"{source.name}:{row + 1}"
        record = build(cells, Fields(), origin=origin, name=name, nulls=False, vector=LATER)
        yield _with_vector(record, vector, source, row)


def _with_vector(
    record: Record | Reject, vector: Floats | Fault, source: Source, row: int
) -> Record | Reject:
    if isinstance(record, Reject):
        return record
    if isinstance(vector, Fault):
        return Reject(Origin(source.file, "row", row + 1), f"expected numbers, got {vector}", record.id)
    return Record(record.id, record.text, record.metadata, record.origin, vector)


def _vector_member(source: Source, wanted: str | None) -> str:
    """The name of the array of an .npz that holds the vectors. Raises SourceError."""
    members = _members(source)
    found = [name for name in members if name not in (*_IDS, *_TEXTS)] if wanted is None else [wanted]
    if len(found) != 1 or found[0] not in members:
        what = "one array of vectors, or its name" if wanted is None else f"an array {wanted!a}"
        raise SourceError(f"{source.file}: expected {what}, got {', '.join(map(ascii, members)) or 'none'}")
    return found[0]


def _members(source: Source) -> list[str]:
    try:
        with ZipFile(source.path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except _BROKEN as error:
        raise SourceError(f"{source.file}: expected arrays as .npz: {error}") from None


def _shape(source: Source, member: str | None) -> tuple[int, int]:
    """Rows and dimensions of a matrix. Raises SourceError where it is none."""
    place = source.file if member is None else f"{source.file}, array {member!a}"
    if member is None:
        matrix = _mapped(source)
        shape, dtype = matrix.shape, matrix.dtype
    else:
        shape, _, dtype = _header_of(source, member)
    if len(shape) != 2 or not shape[1] or dtype.kind not in "fiu":
        raise SourceError(
            f"{place}: expected a matrix of numbers of shape (n, dim), got {dtype} of shape {shape}"
        )
    return shape[0], shape[1]


def _vectors(source: Source, member: str | None, dim: int) -> Iterator[Floats | Fault]:
    """The rows of a matrix one by one, or why one is no vector."""
    if member is not None:
        for block in _stored(source, member):
            yield from _rows(block)
        return
    step = max(1, min(_ROWS, _BYTES // (4 * dim)))
    start = 0
    # a map that stayed open would count as this process's memory, page by page
    while len(block := np.array(_mapped(source)[start : start + step])):
        yield from _rows(block)
        start += step


def _rows(block: Array) -> Iterator[Floats | Fault]:
    """The rows of a matrix as vectors, or why one is none."""
    try:
        whole = vectors.single(block)
    except ValueError:
        for values in block:
            try:
                yield vectors.single(values)
            except ValueError as error:
                yield Fault(str(error))
        return
    yield from whole


def _mapped(source: Source) -> Array:
    """The array of a .npy file, mapped into memory."""
    try:
        matrix: Array = np.load(source.path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise SourceError(f"{source.file}: expected a matrix of numbers as .npy: {error}") from None
    if not isinstance(matrix, np.ndarray):  # an .npz under the name of a .npy
        raise SourceError(
            f"{source.file}: expected a matrix of numbers as .npy, got several arrays; use .npz"
        )
    return matrix


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type; the file stands at the first number then."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format {version} of an array with named fields")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("Python objects, which only pickle could read; pickles are never opened")
    return shape, columns_first, dtype


def _header_of(source: Source, member: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        with ZipFile(source.path) as archive, archive.open(f"{member}.npy") as file:
            return _header(file)
    except _BROKEN as error:
        raise SourceError(
            f"{source.file}, array {member!a}: expected plain numbers or text: {error}"
        ) from None


def _stored(source: Source, member: str) -> Iterator[Array]:
    """The entries of an array of an .npz, some at once; whole in memory only if its columns come first."""
    try:
        with ZipFile(source.path) as archive, archive.open(f"{member}.npy") as file:
            shape, columns_first, dtype = _header(file)
            size = dtype.itemsize * math.prod(shape[1:])
            if columns_first or not size:
                with np.load(source.path, allow_pickle=False) as arrays:
                    yield arrays[member]
                return
            step, left = max(1, min(_ROWS, _BYTES // size)), shape[0]
            while left:
                raw = file.read(size * min(step, left))
                if len(raw) != size * min(step, left):
                    raise ValueError(f"the last {left} of {shape[0]} entries are missing")
                yield np.frombuffer(raw, dtype).reshape(-1, *shape[1:])
                left -= min(step, left)
    except _BROKEN as error:
        raise SourceError(f"{source.file}, array {member!a}: cannot be read: {error}") from None


def _column(source: Source, member: str | None, n: int) -> Iterator[Any]:
    """The ids or texts of an .npz; n times None where it has none."""
    if member is None:
        return iter([None] * n)
    shape, _, dtype = _header_of(source, member)
    if shape != (n,) or dtype.kind not in ("Uiu" if member in _IDS else "U"):
        raise SourceError(
            f"{source.file}, array {member!a}: expected {n:,} texts, one for each vector, "
            f"got {dtype} of shape {shape}"
        )
    return chain.from_iterable(block.tolist() for block in _stored(source, member))


def parquet(source: Source, fields: Fields, *, whole: bool) -> Iterator[Record | Reject]:
    """The rows of a Parquet file; unless `whole`, LATER stands for the vectors, which are not read then."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra(
            f"Parquet needs the package {error.name}; install it with pip install 'vecbridge[parquet]'"
        ) from error
    number = 0
    try:
        # with a buffer the columns are read in parts; without it a whole row group lies in memory, and
        # buffered beforehand all that has been read stays there
        with pyarrow.parquet.ParquetFile(source.path, buffer_size=1 << 20, pre_buffer=False) as file:
            columns, lists = _columns(list(file.schema_arrow.names), fields, source.file)
            named = Fields(fields.id, fields.text)
            if lists:
                _check_lists(file.schema_arrow.field(lists[0]).type, source.file)
            wanted = [*columns, *(lists if whole else ())]
            batches = file.iter_batches(batch_size=_ROWS, columns=wanted)

            def following() -> tuple[Any, Iterable[Floats | Fault | None]] | None:
                if (batch := next(batches, None)) is None:
                    return None
                found: Iterable[Floats | Fault | None] = repeat(LATER if lists else None, batch.num_rows)
                if lists and whole:
                    found = list(_lists(batch.column(lists[0])))
                return batch.select(columns), found

            with closing(_ahead(following)) as parts:
                for batch, found in parts:
                    for values, vector in zip(_values(batch), found, strict=True):
                        number += 1
                        origin, name = Origin(source.file, "row", number), f"{source.name}:{number}"
                        yield _row(values, vector, named, origin, name)
    except SourceError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"{source.file}: expected a Parquet file: {error}") from error


def _ahead(following: Callable[[], T | None]) -> Generator[T, None, None]:
    """What `following` returns until it returns None, each asked for while the one before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="vecbridge-read") as reader:
        coming = reader.submit(following)
        while (found := coming.result()) is not None:
            coming = reader.submit(following)
            yield found


def _row(
    values: dict[str, Any] | Fault, vector: Floats | Fault | None, fields: Fields, origin: Origin, name: str
) -> Record | Reject:
    if isinstance(values, Fault):
        return Reject(origin, str(values))
    if isinstance(vector, Fault):
        # checked without it, for its id
        record = build(values, fields, origin=origin, name=name, nulls=False, vector=LATER)
        return Reject(origin, f"expected a vector, got {vector}", record.id)
    return build(values, fields, origin=origin, name=name, nulls=False, vector=vector)


def _values(batch: Any) -> Iterator[dict[str, Any] | Fault]:
    """The plain values of each row; why not, where a text is not UTF-8 or a date out of range."""
    names = batch.schema.names
    try:
        # by column: rows of dicts take four times as long
        columns = [_cells(column) for column in batch.columns]
    except (ValueError, OverflowError):
        pass
    else:
        for cells in zip(*columns, strict=True) if columns else repeat((), batch.num_rows):
            yield dict(zip(names, cells, strict=True))
        return
    for row in range(batch.num_rows):
        try:
            yield {name: _cells(column)[0] for name, column in zip(names, batch.slice(row, 1), strict=True)}
        except UnicodeDecodeError:
            yield Fault("expected text in UTF-8, got other bytes; write the file anew with valid text")
        except (ValueError, OverflowError) as error:
            yield Fault(f"expected values that Python can hold: {short(str(error))}")


def _cells(column: Any) -> list[Any]:
    """The values of a column as JSON can hold them."""
    from pyarrow import types

    values: list[Any] = column.to_pylist()
    kind = column.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind):
        return values
    return [_plain(value) for value in values]


def _columns(names: list[str], fields: Fields, place: str) -> tuple[list[str], list[str]]:
    """The columns to read: those with plain values, and the one with vectors if there is one."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise SourceError(f"{place}: expected each column once, got {twice[0]!a} twice")
    if absent := [name for name in fields.demanded if name not in names]:
        raise SourceError(
            f"{place}: expected a column {absent[0]!a}, got {', '.join(map(ascii, names[:20]))}"
        )
    lists = [name for name in fields.vectors if name in names][:1]
    # pandas writes its row numbers under such names
    return [name for name in names if name not in lists and not name.startswith("__index_level_")], lists


def _check_lists(kind: Any, place: str) -> None:
    """Raise SourceError unless a column holds lists of numbers."""
    from pyarrow import types

    inner = getattr(kind, "value_type", None)
    if inner is None or not (types.is_floating(inner) or types.is_integer(inner)):
        raise SourceError(f"{place}: expected the vectors as lists of numbers, got {kind}")


def _lists(column: Any) -> Iterator[Floats | Fault | None]:
    """The vectors of a list column; None for its nulls."""
    from pyarrow import compute

    flat = column.flatten()
    lengths = compute.fill_null(compute.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    values = flat.to_numpy(zero_copy_only=False)
    if not column.null_count and not flat.null_count and lengths[0] and (lengths == lengths[0]).all():
        yield from _rows(values.reshape(len(column), -1))
        return
    ends = np.cumsum(lengths)
    nulls = flat.is_null().to_numpy(zero_copy_only=False) if flat.null_count else None
    present = column.is_valid().to_numpy(zero_copy_only=False)
    for row, end in enumerate(ends):
        part = slice(end - lengths[row], end)
        try:
            if present[row] and not lengths[row]:
                raise ValueError("an empty list")
            if nulls is not None and nulls[part].any():
                raise ValueError("a null among its numbers")
            yield vectors.single(values[part]) if present[row] else None
        except ValueError as error:
            yield Fault(str(error))


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
