"""Haystack's filters: the core narrows down what is read, Haystack itself judges what comes.

The two dialects differ in corners that data do reach: to Haystack 1 equals True, a list equals only a list,
"2024-01-01" equals "2024-01-01T00:00:00", and text has an order only where it is a date. So a filter is
compiled to a core filter that lets through at least what matches, and each document that comes is put to
`haystack.utils.filters.document_matches_filter`, one comparison at a time. The mistakes that Haystack's own
store finds when it first meets a document are found before anything is read. A stored value that has no order
with the operand (text with a number, a list) does not match; there, Haystack's own store raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeAlias

from haystack.dataclasses import Document
from haystack.errors import FilterError
from haystack.utils.filters import document_matches_filter

from ... import errors
from ...filters import parse
from .documents import RESERVED

Where: TypeAlias = dict[str, Any]

_ORDER = {">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
_COMPARISONS = ("==", "!=", *_ORDER, "in", "not in")
_LOGIC = ("AND", "OR", "NOT")
_FIELDS = {field.name for field in fields(Document)}
# what Haystack takes for a date when it compares two texts for equality
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt ]|$)")


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter. `where`: the core's, which all that match satisfy, None for everything. `matches`: whether a
    document does. `embedding`: whether that depends on the embedding."""

    where: Where | None
    matches: Callable[[Document], bool]
    embedding: bool = False


ALL = Condition(None, lambda document: True)


def condition(filters: Mapping[str, Any] | None) -> Condition:
    """The filter, ready to be asked; without any, or with an empty one, everything matches.

    Raises haystack.errors.FilterError.
    """
    if filters is None or filters == {}:
        return ALL
    found = _node(filters)
    if found.where is not None:
        try:
            parse(found.where)
        except errors.FilterError as error:
            raise FilterError(str(error)) from error
    return found


def _node(node: object) -> Condition:
    if not isinstance(node, Mapping):
        raise FilterError(f"expected a filter as a dictionary, got {_short(node)}")
    return _comparison(node) if "field" in node else _logic(node)


def _entry(node: Mapping[str, Any], key: str) -> Any:
    if key not in node:
        raise FilterError(f"{key!r} is missing in the filter {_short(node)}")
    return node[key]


def _logic(node: Mapping[str, Any]) -> Condition:
    operator, parts = _entry(node, "operator"), _entry(node, "conditions")
    if operator not in _LOGIC:
        raise FilterError(f"expected one of {', '.join(_LOGIC)} to join conditions, got {_short(operator)}")
    if not isinstance(parts, list | tuple):
        raise FilterError(f"expected a list of conditions, got {_short(parts)}")
    conditions = [_node(part) for part in parts]
    tests = [one.matches for one in conditions]
    wheres = [one.where for one in conditions if one.where is not None]
    embedding = any(one.embedding for one in conditions)
    if operator == "AND":
        every = {"$and": wheres} if wheres else None
        return Condition(every, lambda document: all(test(document) for test in tests), embedding)
    if operator == "OR":
        some = {"$or": wheres} if wheres and len(wheres) == len(conditions) else None
        return Condition(some, lambda document: any(test(document) for test in tests), embedding)
    # the opposite of "at least what matches" is "at most what does not": no bound
    return Condition(None, lambda document: not all(test(document) for test in tests), embedding)


def _comparison(node: Mapping[str, Any]) -> Condition:
    field, operator, value = node["field"], _entry(node, "operator"), _entry(node, "value")
    if not isinstance(field, str):
        raise FilterError(f"expected the name of a field as text, got {_short(field)}")
    if operator not in _COMPARISONS:
        raise FilterError(f"expected one of {', '.join(_COMPARISONS)} to compare by, got {_short(operator)}")
    if operator in ("in", "not in") and not isinstance(value, list):
        raise FilterError(f"{operator!r} takes a list of values, got {_short(value)}")
    if operator in _ORDER:
        _check_order(operator, value)
    key = _key(field)
    where = None if key is None else _known(_narrowed(key, operator, value))
    asked = dict(node)

    def matches(document: Document) -> bool:
        try:
            return bool(document_matches_filter(asked, document))
        except (FilterError, TypeError, OverflowError):
            # the filter has been checked: it is the stored value that has no order
            return False

    return Condition(where, matches, embedding=field == "embedding")


def _check_order(operator: str, value: object) -> None:
    """Raise FilterError for what nothing can be larger or smaller than; None, which nothing is, may come."""
    if value is None or isinstance(value, int | float | datetime):
        return
    if isinstance(value, str):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            raise FilterError(
                f"{operator!r} takes text only as an ISO 8601 date, such as '2024-05-31', got {_short(value)}"
            ) from None
        return
    raise FilterError(f"{operator!r} takes a number or a date, got {_short(value)}")


def _key(field: str) -> str | None:
    """The metadata key that a field names; None for the document's own fields, and where there is none."""
    key = field.removeprefix("meta.")
    if key == field and (field in _FIELDS or "." in field):
        return None
    return None if key.split(".")[0] == RESERVED else key


def _narrowed(key: str, operator: str, value: Any) -> Where | None:
    """A core filter for at least the records that the comparison holds for."""
    if operator == "==":
        return _equal(key, value)
    if operator == "in":
        return {"$or": [_equal(key, one) for one in value]} if value else None
    if operator == "!=" and value is None:
        return {key: {"$exists": True}}
    if operator in _ORDER and isinstance(value, int | float):
        number = int(value) if isinstance(value, bool) else value
        return {"$or": [{key: {_ORDER[operator]: number}}, {key: {"$in": [True, False]}}]}
    if operator in _ORDER and value is not None:
        return {key: {"$exists": True}}
    return None


def _equal(key: str, value: Any) -> Where:
    if isinstance(value, int | float) and value in (0, 1):
        return {key: {"$in": [int(value), bool(value)]}}
    if value is None or isinstance(value, int | float) or (isinstance(value, str) and not _DATE.match(value)):
        return {key: {"$eq": value}}
    return {key: {"$exists": True}}


def _known(where: Where | None) -> Where | None:
    """The filter, if the core takes it: not every number and text that is asked for can be stored."""
    try:
        parse(where or {})
    except errors.FilterError:
        return None
    return where


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
