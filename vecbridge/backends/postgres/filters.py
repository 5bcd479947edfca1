"""Filters as SQL on the `metadata` column, meaning what `vecbridge.filters.matches` says.

Every condition is true or false, never NULL, so that NOT is the exact opposite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from psycopg.sql import SQL, Composable, Composed, Identifier, Placeholder

from ...filters import And, Filter, Not, Or, Test
from .copy import to_json

_SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def compile(where: Filter) -> tuple[Composed, dict[str, Any]]:
    """A condition, and its parameters by name (`f0`, `f1`, …)."""
    values: dict[str, Any] = {}

    def bind(value: Any) -> Placeholder:
        name = f"f{len(values)}"
        values[name] = value
        return Placeholder(name)

    return _compile(where, bind), values


_Bind = Callable[[Any], Composable]


def _compile(where: Filter, bind: _Bind) -> Composed:
    match where:
        case And(parts):
            return _join(" AND ", [_compile(part, bind) for part in parts], "true")
        case Or(parts):
            return _join(" OR ", _any(parts, bind), "false")
        case Not(part):
            return SQL("NOT {}").format(_compile(part, bind))
        case Test(path, "exists"):
            return SQL("({} IS NOT NULL)").format(_value(path, bind))
        case Test(path, "eq", operand):
            return _equal(path, [operand], bind)
        case Test(path, operator, operand):
            return _range(_value(path, bind), SQL(_SIGNS[operator]), operand, bind)


def _join(word: str, parts: list[Composed], none: str) -> Composed:
    return SQL("({})").format(SQL(word).join(parts) if parts else SQL(none))


def _any(parts: Iterable[Filter], bind: _Bind) -> list[Composed]:
    """The parts of an OR. Equalities with one key become one: a statement takes 65,535 parameters at most."""
    choices: dict[tuple[str, ...], list[Any]] = {}
    compiled = []
    for part in parts:
        if isinstance(part, Test) and part.operator == "eq":
            choices.setdefault(part.path, []).append(part.operand)
        else:
            compiled.append(_compile(part, bind))
    return compiled + [_equal(path, operands, bind) for path, operands in choices.items()]


def _value(path: tuple[str, ...], bind: _Bind) -> Composed:
    """The value at a path, NULL where there is none; `->` with text does not descend into lists."""
    steps = [SQL(" -> {}::text").format(bind(key)) for key in path]
    return SQL("({}{})").format(Identifier("metadata"), SQL("").join(steps))


def _equal(path: tuple[str, ...], operands: list[Any], bind: _Bind) -> Composed:
    whole = [operand for operand in operands if isinstance(operand, list | dict)]
    single = [operand for operand in operands if not isinstance(operand, list | dict)]
    missing = SQL("true" if None in single else "false")
    tests = []
    # in jsonb, a list contains a scalar that is one of its elements, and a scalar contains itself
    for sign, group in (("@>", single), ("=", whole)):
        if group:
            texts = bind([to_json(operand) for operand in group])
            tests.append(
                SQL("coalesce({} {} ANY ({}::text[]::jsonb[]), {})").format(
                    _value(path, bind), SQL(sign), texts, missing
                )
            )
    return _join(" OR ", tests, "false")


def _range(value: Composed, sign: SQL, operand: Any, bind: _Bind) -> Composed:
    if isinstance(operand, str):
        # bytes of UTF-8 are ordered as code points are
        kind, typed, bound = "string", "({} #>> '{{}}') COLLATE \"C\"", SQL("{}::text").format(bind(operand))
    else:
        kind, typed, bound = "number", "{}::numeric", SQL("{}::text::numeric").format(bind(to_json(operand)))

    def holds(element: Composable, otherwise: Composable) -> Composed:
        # CASE, because AND may try the cast before the type is known
        return SQL("CASE jsonb_typeof({0}) WHEN {1} THEN {2} {3} {4} {5} END").format(
            element, SQL(f"'{kind}'"), SQL(typed).format(element), sign, bound, otherwise
        )

    one = holds(SQL("element"), SQL("ELSE false"))
    some = SQL(
        "WHEN 'array' THEN EXISTS (SELECT FROM jsonb_array_elements({}) AS elements (element) WHERE {}) "
        "ELSE false"
    ).format(value, one)
    return holds(value, some)
