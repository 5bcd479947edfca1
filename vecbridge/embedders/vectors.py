"""Numbers as JSON and base64 carry them, turned into float32 vectors."""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..types import Floats

# a bool is an int for numpy, and a text such as "1" would be parsed
_NUMBERS = frozenset({int, float})


def from_list(values: object) -> Floats:
    """A vector, float32 (n,), from a list of numbers. Raises ValueError with what came instead."""
    if not isinstance(values, list):
        raise ValueError(f"{type(values).__name__}")
    if not values:
        raise ValueError("an empty list")
    if strange := set(map(type, values)) - _NUMBERS:
        raise ValueError(f"a list that holds {' and '.join(sorted(kind.__name__ for kind in strange))}")
    try:
        double = np.array(values, dtype=np.float64)
    except OverflowError:
        raise ValueError("a list with a number beyond the range of floats") from None
    return single(double)


def from_base64(text: str) -> Floats:
    """A vector, float32 (n,), from base64 of little-endian float32. Raises ValueError."""
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        raise ValueError("text that is not base64") from None
    if not raw or len(raw) % 4:
        raise ValueError(f"base64 of {len(raw)} bytes, which is no row of float32")
    return single(np.frombuffer(raw, dtype="<f4"))


def single(values: NDArray[np.floating] | NDArray[np.integer]) -> Floats:
    """The same numbers as float32, C-contiguous. Raises ValueError unless all of them are finite."""
    with np.errstate(over="ignore", under="ignore"):
        array = np.ascontiguousarray(values, dtype=np.float32)
    if not (finite := np.isfinite(array)).all():
        where = tuple(np.argwhere(~finite)[0])
        raise ValueError(f"{values[where]} at component {where[-1]}, and float32 holds numbers up to 3.4e38")
    return array


def of_answer(data: list[Any], n: int) -> list[Floats | None]:
    """Vectors in the order of the request, None for those that are not finite. Raises ValueError."""
    if len(data) != n:
        raise ValueError(f"expected {n} embeddings, one for each text, got {len(data)}")
    if not all(isinstance(item, dict) for item in data):
        raise ValueError(f"expected {n} embeddings, got other things among them")
    places = [item.get("index") for item in data]
    if {place for place in places if type(place) is int} != set(range(n)):
        raise ValueError(f"expected each index from 0 to {n - 1} once, got {places[:10]}")
    rows: list[Floats | None] = [None] * n
    length: int | None = None
    for place, item in zip(places, data, strict=True):
        value = item.get("embedding")
        try:
            row = from_base64(value) if isinstance(value, str) else from_list(value)
        except ValueError as error:
            if _not_finite(value):
                continue
            raise ValueError(f"expected numbers as embedding {place}, got {error}") from None
        if len(row) != (length := length or len(row)):
            raise ValueError(f"expected embeddings of {length} dimensions, got one of {len(row)}")
        rows[place] = row
    return rows


def _not_finite(value: object) -> bool:
    """Whether these are numbers, but NaN or infinite ones; JSON of some servers has null for them."""
    if isinstance(value, list):
        return len(value) > 0 and all(one is None or type(one) in (int, float) for one in value)
    try:
        from_base64(str(value))
    except ValueError as error:
        return " at component " in str(error)
    return False
