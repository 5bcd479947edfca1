"""Conditions on metadata: one small tree, one meaning (`matches`), compiled by each backend.

The dictionaries are MongoDB's, as Chroma and Pinecone users know them:

    {"topic": "noun.animal", "senses": {"$gte": 2}}
    {"$or": [{"year": {"$lt": 1990}}, {"tags": {"$in": ["old", "rare"]}}], "author.name": {"$exists": True}}

The meaning, the same on every backend:

* Several keys are joined by AND. Dots reach into nested objects; a list is not descended into by dots.
* Values are typed: 1 equals 1.0, but neither "1" nor True.
* A list in the metadata is matched if any of its elements is; a list as operand of `$eq` is compared whole.
* None equals null and a missing key.
* `$ne` is the exact opposite of `$eq`, `$nin` of `$in`: both include records where the key is missing.
* `$gt $gte $lt $lte` take a number or a string; numbers compare with numbers, strings with strings by
  Unicode code point; nothing else matches.
* `$contains` takes a text and matches texts that have it in them; for `$icontains`, upper and lower case are
  one, character by character (`folded`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .errors import FilterError

Operator = Literal["eq", "gt", "gte", "lt", "lte", "contains", "icontains", "exists"]

_DEPTH = 50
_ORDER: dict[str, Operator] = {"$gt": "gt", "$gte": "gte", "$lt": "lt", "$lte": "lte"}
_INSIDE: dict[str, Operator] = {"$contains": "contains", "$icontains": "icontains"}
_KNOWN = "$eq $ne $gt $gte $lt $lte $in $nin $contains $icontains $exists $and $or $not"


@dataclass(frozen=True, slots=True)
class Test:
    """One condition on the value at `path`. `operand` is a list only for "eq"; for "exists" it is None."""

    path: tuple[str, ...]
    operator: Operator
    operand: Any = None


@dataclass(frozen=True, slots=True)
class And:
    """All of `parts` hold; true when there are none."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of `parts` holds; false when there are none."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """`part` does not hold."""

    part: Filter


Filter: TypeAlias = Test | And | Or | Not


def parse(where: Mapping[str, Any]) -> Filter:
    """The tree of a filter dictionary. Raises FilterError with the place of the first mistake."""
    return _parse(where, 0)


def _parse(where: object, depth: int) -> Filter:
    if depth > _DEPTH:
        raise FilterError(f"a filter may be nested {_DEPTH} levels deep, this one is deeper")
    if not isinstance(where, Mapping):
        raise FilterError(f'expected a filter such as {{"topic": "law"}}, got {_short(where)}')
    return _join([_entry(key, value, depth) for key, value in where.items()])


def _join(parts: list[Filter]) -> Filter:
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _entry(key: object, value: Any, depth: int) -> Filter:
    if not isinstance(key, str):
        raise FilterError(f"expected a metadata key as text in the filter, got {_short(key)}")
    if key in ("$and", "$or"):
        if not isinstance(value, list | tuple) or not value:
            raise FilterError(f"{key} takes a list of one or more filters, got {_short(value)}")
        parts = tuple(_parse(part, depth + 1) for part in value)
        return And(parts) if key == "$and" else Or(parts)
    if key == "$not":
        return Not(_parse(value, depth + 1))
    if key.startswith("$"):
        raise FilterError(f"unknown operator {_short(key)}; known are {_KNOWN}")
    _check_text(key)
    path = tuple(key.split("."))
    if not isinstance(value, Mapping):
        return _equal(path, value)
    if not value:
        raise FilterError(f'{_short(key)} has no condition; compare with {{"$eq": …}} or {{"$exists": …}}')
    return _join([_condition(path, operator, operand, depth) for operator, operand in value.items()])


def _condition(path: tuple[str, ...], operator: object, operand: Any, depth: int) -> Filter:
    match operator:
        case "$eq":
            return _equal(path, operand)
        case "$ne":
            return Not(_equal(path, operand))
        case "$in" | "$nin":
            if not isinstance(operand, list | tuple):
                raise FilterError(f"{operator} takes a list of values, got {_short(operand)}")
            choices = Or(tuple(_equal(path, value) for value in operand))
            return choices if operator == "$in" else Not(choices)
        case "$gt" | "$gte" | "$lt" | "$lte":
            if isinstance(operand, bool) or not isinstance(operand, int | float | str):
                raise FilterError(f"{operator} takes a number or a string, got {_short(operand)}")
            _check_scalar(operand)
            return Test(path, _ORDER[operator], operand)
        case "$contains" | "$icontains":
            if not isinstance(operand, str):
                raise FilterError(f"{operator} takes a text to look for, got {_short(operand)}")
            _check_text(operand)
            return Test(path, _INSIDE[operator], operand)
        case "$exists":
            if not isinstance(operand, bool):
                raise FilterError(f"$exists takes true or false, got {_short(operand)}")
            present = Test(path, "exists")
            return present if operand else Not(present)
        case "$not":
            if not isinstance(operand, Mapping) or not operand:
                raise FilterError(f'$not takes conditions such as {{"$gt": 5}}, got {_short(operand)}')
            if depth > _DEPTH:
                raise FilterError(f"a filter may be nested {_DEPTH} levels deep, this one is deeper")
            return Not(_join([_condition(path, key, value, depth + 1) for key, value in operand.items()]))
    raise FilterError(f"unknown operator {_short(operator)} for {_short('.'.join(path))}; known are {_KNOWN}")


def _equal(path: tuple[str, ...], operand: Any) -> Filter:
    _check_value(operand, 0)
    return Test(path, "eq", list(operand) if isinstance(operand, tuple) else operand)


def _check_value(value: Any, depth: int) -> None:
    if depth > _DEPTH:
        raise FilterError(f"a value in a filter may be nested {_DEPTH} levels deep, this one is deeper")
    if isinstance(value, list | tuple):
        for element in value:
            _check_value(element, depth + 1)
    elif isinstance(value, Mapping):
        for key, element in value.items():
            if not isinstance(key, str):
                raise FilterError(f"expected keys as text inside a filter value, got {_short(key)}")
            _check_text(key)
            _check_value(element, depth + 1)
    else:
        _check_scalar(value)


def _check_scalar(value: Any) -> None:
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise FilterError(f"expected a finite number in the filter, got {value}; no metadata holds it")
    elif isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        raise FilterError("expected a whole number of at most 64 bits in the filter, got a larger one")
    elif value is not None and not isinstance(value, str | int | float):
        raise FilterError(
            f"expected text, a number, true, false, null or a list of them in the filter, got {_short(value)}"
        )


def _check_text(text: str) -> None:
    if "\0" in text:
        raise FilterError("text in a filter holds a NUL character, which no metadata can hold")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FilterError("text in a filter holds a lone surrogate, which no metadata can hold") from None


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def matches(where: Filter, metadata: Mapping[str, Any]) -> bool:
    """Whether a record with this metadata satisfies the filter: the definition that backends must meet."""
    match where:
        case And(parts):
            return all(matches(part, metadata) for part in parts)
        case Or(parts):
            return any(matches(part, metadata) for part in parts)
        case Not(part):
            return not matches(part, metadata)
        case Test(path, operator, operand):
            return _holds(operator, operand, _lookup(path, metadata))


_MISSING = object()


def _lookup(path: tuple[str, ...], metadata: Any) -> Any:
    value = metadata
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _holds(operator: Operator, operand: Any, value: Any) -> bool:
    if operator == "exists":
        return value is not _MISSING
    if operator == "eq":
        if operand is None and value is _MISSING:
            return True
        if value is _MISSING:
            return False
        if same(value, operand):
            return True
        whole = isinstance(operand, list | Mapping)
        return not whole and isinstance(value, list) and any(same(element, operand) for element in value)
    elements: Sequence[Any] = value if isinstance(value, list) else [value]
    return any(_compares(operator, element, operand) for element in elements)


def _compares(operator: Operator, value: Any, operand: Any) -> bool:
    if isinstance(operand, str):
        if not isinstance(value, str):
            return False
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return False
    match operator:
        case "gt":
            return bool(value > operand)
        case "gte":
            return bool(value >= operand)
        case "lt":
            return bool(value < operand)
        case "contains":
            return operand in value
        case "icontains":
            return folded(operand) in folded(value)
        case _:
            return bool(value <= operand)


def folded(text: str) -> str:
    """The text in lower case, each character by itself: as long as before, whatever stands beside it.

    So Σ is σ at the end of a word, too, and İ, the one letter whose lower case is two, stays as it is.
    """
    return "İ".join(part.replace("Σ", "σ").lower() for part in text.split("İ"))


def same(one: Any, other: Any) -> bool:
    """Equality as JSON sees it: 1 is 1.0, but True is not 1, and lists and objects compare by content."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def tests(where: Filter) -> Iterator[Test]:
    """Every condition in the tree, in order."""
    match where:
        case And(parts) | Or(parts):
            for part in parts:
                yield from tests(part)
        case Not(part):
            yield from tests(part)
        case Test():
            yield where
