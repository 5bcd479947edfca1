"""What the metadata of many documents hold: kinds of fields, smallest and largest, unique values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any


def plain(field: str) -> str:
    """A field's name without the prefix that filters use."""
    return field.removeprefix("meta.")


def lookup(meta: Mapping[str, Any], field: str) -> Any:
    """The value of a field, whose dots reach into nested objects as in filters; None where there is none."""
    value: Any = meta
    for key in plain(field).split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def kinds(metas: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """For each field its type as Haystack's own store names it: boolean, int, float or keyword.

    A field of whole and other numbers is float; one that holds different things otherwise is keyword.
    """
    found: dict[str, str] = {}
    for meta in metas:
        for field, value in meta.items():
            if value is None:
                continue
            kind = _kind(value)
            before = found.setdefault(field, kind)
            if before != kind:
                found[field] = "float" if {before, kind} == {"int", "float"} else "keyword"
    return {field: {"type": kind} for field, kind in found.items()}


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "int"
    return "float" if isinstance(value, float) else "keyword"


def bounds(values: Iterable[Any]) -> dict[str, Any]:
    """Smallest and largest of the numbers or texts; None for both where there are none, or both kinds."""
    comparable = [value for value in values if isinstance(value, int | float | str)]
    if len({isinstance(value, str) for value in comparable}) != 1:
        return {"min": None, "max": None}
    return {"min": min(comparable), "max": max(comparable)}


def unique(values: Iterable[Any]) -> dict[str, Any]:
    """Each value once, None left out, by its JSON: 1, 1.0, true and "1" are four."""
    return {json.dumps(value, sort_keys=True): value for value in values if value is not None}


def page(values: Iterable[Any], *, search_term: str | None, from_: int, size: int) -> tuple[list[Any], int]:
    """`size` of the unique values from position `from_` on, sorted as text, and how many there are.

    `search_term`: only those whose text contains it, whatever the case.
    """
    found = [
        (str(value), key, value)
        for key, value in unique(values).items()
        if not search_term or search_term.lower() in str(value).lower()
    ]
    found.sort(key=lambda one: one[:2])
    return [value for _, _, value in found[from_ : from_ + size]], len(found)
