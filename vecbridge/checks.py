"""The door: what comes in is checked once here, before a byte is sent, and trusted inside.

The rules are the same for every store, so that a collection can move between them:

* ids: text of 1 to 1,024 bytes (a PostgreSQL key ends at 2,704), no NUL (PostgreSQL), no lone surrogates.
* documents: text of up to 100 MB, or None.
* metadata: JSON objects; whole numbers of 64 bits; finite floats; nested up to 50 levels; up to 16 MB.
* vectors: finite; within float32; of a length that float32 arithmetic can square and divide by.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sized
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import ArrayLike

from . import models
from .errors import DimensionMismatch, InputError, MetadataError, ModelMismatch, VectorError
from .filters import Filter, parse
from .types import FieldKind, Metadata, Metric, Space

if TYPE_CHECKING:
    from .types import Floats

ID_BYTES = 1_024
DOCUMENT_BYTES = 100_000_000
METADATA_BYTES = 16_000_000
METADATA_DEPTH = 50
_NUMBER = 32  # more characters than any number has as JSON, with its punctuation
K_MAX = 1_000_000

# |x - y|^2 of two vectors of this length is 3.24e38, just below the largest float32 (3.40e38)
LONGEST = 9e18
# |x|^2 below the smallest normal float32 (1.18e-38) loses its digits, and then cosine divides by it
SHORTEST = 1.1e-19
# 65,519.99 still rounds to the largest half, 65,504; 65,520 rounds to infinity (IEEE 754 binary16)
HALF_MAX = 65_520.0
# half of the smallest subnormal half is 3e-8; below 1e-7 hardly a digit is left
HALF_MIN = 1e-7


def vectors(value: ArrayLike, *, space: Space, what: str = "vectors") -> Floats:
    """A matrix (n, `space.dim`), float32 and C-contiguous, every row fit for the space's metric.

    Raises DimensionMismatch, VectorError (naming the first bad row) and InputError.
    """
    matrix = _floats(value, what)
    if matrix.shape == (0,):  # what an empty list becomes
        matrix = matrix.reshape(0, space.dim)
    if matrix.ndim != 2:
        raise InputError(
            f"expected {what} as a float array of shape (n, {space.dim}), got {matrix.ndim} "
            f"dimension(s) of shape {matrix.shape}"
        )
    if matrix.shape[1] != space.dim and matrix.shape[0]:
        raise DimensionMismatch(_mismatch(space, matrix.shape[1], what))
    if not matrix.shape[0]:
        return np.empty((0, space.dim), dtype=np.float32)
    return _fit(matrix, space.metric, what)


def query(value: ArrayLike, *, space: Space) -> Floats:
    """One query vector (`space.dim`,) as a matrix of one row. Raises like `vectors`."""
    vector = _floats(value, "a query")
    if vector.ndim != 1:
        raise InputError(
            f"expected a query as a float array of shape ({space.dim},), got shape {vector.shape}; "
            f"search_many takes several queries"
        )
    if vector.shape[0] != space.dim:
        raise DimensionMismatch(_mismatch(space, vector.shape[0], "a query"))
    return _fit(vector[None, :], space.metric, "the query")


def _mismatch(space: Space, got: int, what: str) -> str:
    model = f" ({space.model})" if space.model else ""
    return (
        f"expected {what} of {space.dim} dimensions{model}, got {got}; "
        f"embed with the model that made the collection, or make a collection for the new one"
    )


def _floats(value: ArrayLike, what: str) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"expected {what} as a float array with rows of one length; {error}") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"expected {what} as an array of real numbers, got dtype {array.dtype}")
    return array


def _fit(matrix: np.ndarray[Any, np.dtype[Any]], metric: Metric, what: str) -> Floats:
    with np.errstate(over="ignore", under="ignore"):
        single = np.ascontiguousarray(matrix, dtype=np.float32)
    if _ordinary(_squares(single), metric):
        return single
    if not (finite := np.isfinite(matrix)).all():
        row, column = np.argwhere(~finite)[0]
        raise VectorError(
            f"{_row(what, int(row), len(matrix))} holds {matrix[row, column]} at component {column}; "
            f"only finite numbers can be stored and compared"
        )
    if matrix.dtype != np.float32 and not (finite := np.isfinite(single)).all():
        row, column = np.argwhere(~finite)[0]
        raise VectorError(
            f"{_row(what, int(row), len(matrix))} holds {matrix[row, column]} at component {column}, "
            f"more than float32 can hold (3.4e38)"
        )
    check_lengths(single, metric, what)
    return single


def _squares(matrix: Floats) -> Floats:
    """Squared length of each row in float32: one fast pass, which NaN and infinity do not survive."""
    with np.errstate(all="ignore"):
        squares: Floats = np.einsum("ij,ij->i", matrix, matrix)
    return squares


def _ordinary(squares: Floats, metric: Metric) -> bool:
    """Whether squared lengths are so far from every limit that no row needs a closer look."""
    if not len(squares):
        return True
    low, high = float(squares.min()), float(squares.max())
    # false for NaN, too
    return high < 1e37 and (metric != "cosine" or low > 1e-37)


def check_lengths(matrix: Floats, metric: Metric, what: str) -> None:
    """Raise VectorError for rows that are too long for float32 arithmetic, or zero under cosine."""
    if _ordinary(_squares(matrix), metric):
        return
    norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    if len(too_long := np.flatnonzero(norms > LONGEST)):
        row = int(too_long[0])
        raise VectorError(
            f"{_row(what, row, len(matrix))} has length {norms[row]:.3g}; distances are computed in float32, "
            f"which overflows beyond {LONGEST:.0e}; scale the vectors down"
        )
    if metric == "cosine" and len(too_short := np.flatnonzero(norms < SHORTEST)):
        row = int(too_short[0])
        if not matrix[row].any():
            raise VectorError(
                f"{_row(what, row, len(matrix))} is zero; it has no direction, so cosine similarity "
                f"is undefined for it; leave it out, or use metric 'l2' or 'ip'"
            )
        raise VectorError(
            f"{_row(what, row, len(matrix))} has length {norms[row]:.3g}, which float32 arithmetic cannot "
            f"tell from zero (below {SHORTEST:.1e}); normalise the vectors first"
        )


def check_half(matrix: Floats, what: str = "vectors", *, vanishing: bool = False) -> None:
    """Raise VectorError for rows that half precision cannot hold: too large, or vanishing altogether.

    `vanishing`: a row may vanish, as the projection of a vector rightly does that lies across it.
    """
    squares = _squares(matrix)
    # no component is longer than its row, and the largest is at least an equal share of it
    if len(squares) and squares.max() < 1e9 and squares.min() > 1e-13 * matrix.shape[1]:
        return
    largest = np.maximum(matrix.max(axis=1, initial=0), -matrix.min(axis=1, initial=0))
    if len(over := np.flatnonzero(largest >= HALF_MAX)):
        row = int(over[0])
        raise VectorError(
            f"{_row(what, row, len(matrix))} holds a component of size {largest[row]:.6g}; this collection "
            f"keeps half precision, which ends below 65,520; normalise the vectors, or create the "
            f"collection with a layout in float32"
        )
    if not vanishing and len(under := np.flatnonzero((largest < HALF_MIN) & (largest > 0))):
        row = int(under[0])
        raise VectorError(
            f"{_row(what, row, len(matrix))} has no component above {largest[row]:.2g}; this collection "
            f"keeps half precision, which loses everything below 1e-7; normalise the vectors first"
        )


def _row(what: str, row: int, rows: int) -> str:
    return what if rows == 1 and what.startswith("the ") else f"row {row} of {what}"


def ids(values: Iterable[str]) -> list[str]:
    """The ids as a list. Raises InputError with the position of the first that no store could keep."""
    if isinstance(values, str | bytes):
        raise InputError(f"expected a list of ids, got a single {type(values).__name__}")
    checked = list(values)
    for position, value in enumerate(checked):
        if not isinstance(value, str):
            raise InputError(
                f"expected ids as text, got {type(value).__name__} at position {position}; use str(…)"
            )
        if not value:
            raise InputError(
                f"expected ids of 1 to {ID_BYTES} bytes, got an empty one at position {position}"
            )
        size = text_bytes(value, f"the id at position {position}")
        if size > ID_BYTES:
            raise InputError(
                f"expected ids of 1 to {ID_BYTES:,} bytes, got {size:,} bytes at position {position} "
                f"({value[:20]!a}…); use a hash of it"
            )
    return checked


def documents(values: Iterable[str | None] | None, *, n: int) -> list[str | None]:
    """The documents as a list of length `n`; all None where there are none. Raises InputError."""
    if values is None:
        return [None] * n
    if isinstance(values, str | bytes):
        raise InputError(f"expected a list of {n} documents, got a single {type(values).__name__}")
    checked = list(values)
    check_length(checked, n, "documents")
    for position, value in enumerate(checked):
        if value is None:
            continue
        if not isinstance(value, str):
            raise InputError(
                f"expected documents as text or None, got {type(value).__name__} at position {position}"
            )
        size = text_bytes(value, f"the document at position {position}")
        if size > DOCUMENT_BYTES:
            raise InputError(
                f"expected documents of up to {DOCUMENT_BYTES:,} bytes, got {size:,} at position {position}; "
                f"split it into chunks"
            )
    return checked


def metadata(values: Iterable[Metadata | None] | None, *, n: int) -> list[dict[str, Any]]:
    """The metadata as a list of `n` plain dicts; empty ones where there are none. Raises MetadataError."""
    if values is None:
        return [{} for _ in range(n)]
    if isinstance(values, Mapping):
        raise InputError(f"expected a list of {n} metadata objects, got a single one")
    checked = list(values)
    check_length(checked, n, "metadata objects")
    return [
        _flat(value) or _object(value, f"metadata at position {position}")
        for position, value in enumerate(checked)
    ]


def _flat(value: object) -> dict[str, Any] | None:
    """A copy of an object that nothing can be said against; None where it takes a closer look.

    Most metadata are a few texts and numbers, whose texts can be looked at all at once.
    """
    if type(value) is not dict:
        return None
    texts = []
    for key, element in value.items():
        if type(key) is not str:
            return None
        texts.append(key)
        kind = type(element)
        if kind is str:
            texts.append(element)
        elif kind is int:
            if not -(2**63) <= element < 2**63:
                return None
        elif kind is float:
            if not math.isfinite(element):
                return None
        elif kind is not bool and element is not None:
            return None
    text = "".join(texts)
    if "\0" in text or 6 * (_NUMBER * len(value) + len(text)) > METADATA_BYTES:
        return None
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return None
    return value.copy()


def _object(value: Metadata | None, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise MetadataError(f"expected {where} as an object with text keys, got {type(value).__name__}")
    weight = _Weight()
    plain: dict[str, Any] = _json(value, where, 0, weight)
    # a character is at most 6 bytes of JSON, so most objects are known to be small without encoding them
    if (
        6 * weight.total > METADATA_BYTES
        and (size := len(json.dumps(plain, ensure_ascii=False).encode())) > METADATA_BYTES
    ):
        raise MetadataError(
            f"expected {where} of up to {METADATA_BYTES:,} bytes as JSON, got {size:,}; "
            f"keep large text in the document"
        )
    return plain


class _Weight:
    """At least the number of characters that an object has as JSON, counted while it is checked."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


def _json(value: Any, where: str, depth: int, weight: _Weight) -> Any:
    weight.total += _NUMBER
    if depth > METADATA_DEPTH:
        raise MetadataError(f"expected {where} nested up to {METADATA_DEPTH} levels deep, it is deeper")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        _check_text(value, where)
        weight.total += len(value)
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise MetadataError(
                f"expected whole numbers of 64 bits in {where}, got a larger one; store it as text"
            )
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise MetadataError(f"expected finite numbers in {where}, got {value}; leave it out or use null")
        return value
    if isinstance(value, Mapping):
        plain = {}
        for key, element in value.items():
            if not isinstance(key, str):
                raise MetadataError(f"expected text keys in {where}, got {type(key).__name__}")
            _check_text(key, where)
            weight.total += len(key)
            plain[key] = _json(element, where, depth + 1, weight)
        return plain
    if isinstance(value, list | tuple):
        return [_json(element, where, depth + 1, weight) for element in value]
    raise MetadataError(
        f"expected text, numbers, true, false, null, lists or objects in {where}, got "
        f"{type(value).__name__}; JSON cannot hold it"
    )


def _check_text(text: str, where: str) -> None:
    try:
        text_bytes(text, where)
    except InputError as error:
        raise MetadataError(str(error)) from None


def text_bytes(text: str, what: str) -> int:
    """Size of the text in UTF-8. Raises InputError where a store could not give it back unchanged."""
    if "\0" in text:
        raise InputError(f"{what} holds a NUL character, which PostgreSQL cannot store; remove it")
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds a lone surrogate (U+{ord(text[error.start]):04X}), which is not Unicode text; "
            f"decode the source with errors='replace'"
        ) from None


def check_length(values: Sized, n: int, what: str) -> None:
    """Raise InputError unless there is one value for each id."""
    if len(values) != n:
        raise InputError(f"expected {n} {what}, one for each id, got {len(values)}; nothing was written")


def hits_wanted(k: object) -> int:
    """k as an int of 1 or more. Raises InputError."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= K_MAX:
        raise InputError(f"expected k as a whole number from 1 to {K_MAX:,}, got {k!r}")
    return int(k)


def where_filter(where: Mapping[str, Any] | None) -> Filter | None:
    """The parsed filter; None where there is none. Raises FilterError."""
    return None if where is None else parse(where)


def filterable(fields: Mapping[str, FieldKind] | None) -> dict[str, FieldKind]:
    """The fields that filters will use, with the kind of their values. Raises InputError."""
    if fields is None:
        return {}
    example = '{"topic": "text", "year": "number", "draft": "boolean"}'
    if not isinstance(fields, Mapping):
        raise InputError(f"expected filterable fields as {example}, got {type(fields).__name__}")
    for name, kind in fields.items():
        if not isinstance(name, str) or not name or name.startswith("$"):
            raise InputError(f"expected the name of a metadata field in filterable, got {name!r:.60}")
        text_bytes(name, "the name of a filterable field")
        if kind not in get_args(FieldKind):
            raise InputError(
                f"expected 'text', 'number' or 'boolean' for filterable {name!r:.60}, got {kind!r:.60}"
            )
    return dict(fields)


def check_model(model: str | None, space: Space) -> None:
    """Raise ModelMismatch where vectors of one model meet a collection of another.

    Names that mean one model, as "BAAI/bge-m3" and "bge-m3", are one.
    """
    if model is not None and space.model is not None and not models.same(model, space.model):
        raise ModelMismatch(
            f"expected vectors of {space.model}, got vectors of {model}; distances between two models' "
            f"vectors mean nothing, whatever their length; make a collection for the new model"
        )
