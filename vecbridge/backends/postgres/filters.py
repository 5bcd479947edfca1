"""Filters as SQL on the `metadata` column, meaning what `vecbridge.filters.matches` says.

Every condition is true or false, never NULL, so that NOT is the exact opposite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from psycopg.sql import SQL, Composable, Composed, Identifier, Placeholder

from ...filters import And, Filter, Not, Operator, Or, Test, folded
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
_Condition = Callable[[Composable], Composed]


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
            return _holds(_value(path, bind), *_comparison(operator, operand, bind))


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


def _comparison(operator: Operator, operand: Any, bind: _Bind) -> tuple[str, _Condition]:
    """The JSON type that is compared, and the condition on an element of that type."""
    if not isinstance(operand, str):
        number = SQL("{}::text::numeric").format(bind(to_json(operand)))
        return "number", lambda one: SQL("{}::numeric {} {}").format(one, SQL(_SIGNS[operator]), number)

    def text(one: Composable) -> Composed:
        # bytes of UTF-8 are ordered as code points are, and no locale has its own idea of what is alike
        return SQL("({} #>> '{{}}') COLLATE \"C\"").format(one)

    if operator == "contains":
        part = SQL("{}::text").format(bind(operand))
        return "string", lambda one: SQL("strpos({}, {}) > 0").format(text(one), part)
    if operator == "icontains":
        part = SQL("{}::text").format(bind(folded(operand)))
        # lower() differs between locales and versions; none but these letters become what is looked for
        pairs = [(one, letter) for letter in set(folded(operand)) for one in _capitals().get(letter, "")]
        capitals = SQL("{}::text").format(bind("".join(capital for capital, _ in pairs)))
        letters = SQL("{}::text").format(bind("".join(letter for _, letter in pairs)))
        return "string", lambda one: SQL("strpos(translate({}, {}, {}), {}) > 0").format(
            text(one), capitals, letters, part
        )
    bound = SQL("{}::text").format(bind(operand))
    return "string", lambda one: SQL("{} {} {}").format(text(one), SQL(_SIGNS[operator]), bound)


@cache
def _capitals() -> dict[str, str]:
    """For each letter, those that `folded` makes it of; no letter beyond the first two planes has a case."""
    found: dict[str, str] = {}
    for capital in map(chr, range(0x20000)):
        if (letter := folded(capital)) != capital:
            found[letter] = found.get(letter, "") + capital
    return found


def _holds(value: Composed, kind: str, condition: _Condition) -> Composed:
    """Whether the condition holds for a value of this JSON type, or for an element of a list that is."""

    def either(element: Composable, otherwise: Composable) -> Composed:
        # CASE, because AND may try the cast before the type is known
        return SQL("CASE jsonb_typeof({}) WHEN {} THEN {} {} END").format(
            element, SQL(f"'{kind}'"), condition(element), otherwise
        )

    some = SQL(
        "WHEN 'array' THEN EXISTS (SELECT FROM jsonb_array_elements({}) AS elements (element) WHERE {}) "
        "ELSE false"
    ).format(value, either(SQL("element"), SQL("ELSE false")))
    return either(value, some)
