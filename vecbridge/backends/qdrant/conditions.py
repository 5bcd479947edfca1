"""Qdrant's filters put together: all of them, one of them, none; and what they say of one payload key.

A filter is Qdrant's own JSON, as its REST API has it; `{}` lets every point pass.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from .engine import Json

NOTHING: Json = {"must": [{"has_id": []}]}
"""A filter that no point passes; an empty `should` would let every point pass."""

# filters within filters; each costs two levels of JSON, of which serde_json reads 128, and two of protobuf,
# of which prost reads 100
DEEPEST = 30
# a filter of several thousand ranges is slow: as many cover the others, too
_SPANS = 64
# a number that Qdrant may change moves by up to 2 units in the last place, then by 1 with each rewriting
_MARGIN = 64

Pair: TypeAlias = tuple[Json, Json]
"""Two filters: what matches passes the first, and what passes the second matches."""


def shallow(over: Json, under: Json) -> Pair:
    """The same, or nothing said at all where it lies deeper than Qdrant reads."""
    if max(_depth(over), _depth(under)) > DEEPEST:
        return {}, NOTHING
    return over, under


def _depth(part: Json) -> int:
    inner = [condition for word in ("must", "should", "must_not") for condition in part.get(word, ())]
    return 1 + max(map(_depth, inner)) if inner else 0


def filled(at: str) -> Json:
    """There is a value that is neither null nor []."""
    return {"must_not": [{"is_empty": {"key": at}}]}


def several(at: str) -> Json:
    """The value is a list of two or more."""
    return {"must": [{"key": at, "values_count": {"gt": 1}}]}


def matching(at: str, values: list[str] | list[int] | list[bool]) -> Json:
    """The value is one of these, or a list that has one of them."""
    return {"must": [{"key": at, "match": {"value": values[0]} if len(values) == 1 else {"any": values}}]}


def around(number: float) -> tuple[float, float]:
    """Where a number lies that Qdrant has read and written many times."""
    margin, most = _MARGIN * math.ulp(number), sys.float_info.max
    return max(number - margin, -most), min(number + margin, most)


def in_range(at: str, limits: Mapping[str, float]) -> Json:
    """A number lies within the limits, or one in a list does."""
    return {"must": [{"key": at, "range": dict(limits)}]}


def in_ranges(at: str, within: Iterable[tuple[float, float]]) -> Json:
    """A number lies within one of the spans, ends included."""
    return any_of(in_range(at, {"gte": low, "lte": high}) for low, high in within)


def spans(wanted: list[tuple[float, float]]) -> tuple[list[tuple[float, float]], bool]:
    """At most 64 spans that cover these, which are in order; whether they are the same."""
    if len(wanted) <= _SPANS:
        return wanted, True
    gaps = sorted(range(1, len(wanted)), key=lambda n: wanted[n][0] - wanted[n - 1][1])
    starts = [0, *sorted(gaps[1 - _SPANS :])]
    ends = [*starts[1:], len(wanted)]
    return [(wanted[start][0], wanted[end - 1][1]) for start, end in zip(starts, ends, strict=True)], False


def all_of(parts: Iterable[Json]) -> Json:
    """A filter that all of these pass; conditions of one are joined with those of the others."""
    joined: Json = {}
    for part in parts:
        if part == NOTHING:
            return NOTHING
        if "should" in part and "should" in joined:
            part = {"must": [part]}
        for word, conditions in part.items():
            joined[word] = [*joined.get(word, ()), *conditions]
    return joined


def any_of(parts: Iterable[Json]) -> Json:
    """A filter that each of these passes."""
    found: list[Json] = []
    for part in parts:
        if not part:
            return {}
        if part == NOTHING:
            continue
        found += part["should"] if part.keys() == {"should"} else [_condition(part)]
    return {"should": found} if len(found) > 1 else _filter(found[0]) if found else NOTHING


def negated(part: Json) -> Json:
    """A filter passed by what does not pass this one."""
    if not part:
        return NOTHING
    if part == NOTHING:
        return {}
    if part.keys() == {"should"}:
        return {"must_not": part["should"]}
    if part.keys() == {"must_not"}:
        return {"should": part["must_not"]} if len(part["must_not"]) > 1 else _filter(part["must_not"][0])
    return {"must_not": [_condition(part)]}


def _condition(part: Json) -> Json:
    """A filter as a condition of another."""
    [*only] = part.get("must", ()) if part.keys() == {"must"} else ()
    return only[0] if len(only) == 1 else part


def _filter(condition: Json) -> Json:
    """A condition as a filter of its own."""
    return condition if condition.keys() <= {"must", "should", "must_not"} else {"must": [condition]}
