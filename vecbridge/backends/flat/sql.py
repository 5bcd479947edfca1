"""Filters as SQL conditions on `records.metadata`, with the meaning of `vecbridge.filters.matches`.

Keys and operands are bound parameters. Where SQLite cannot be trusted to agree with `matches` in every
version (keys that JSON escapes, whole lists and objects, numbers that differ in the last digits of a real,
letters whatever their case) the condition calls `matches` itself, through the SQL function
`vecbridge_matches(test, metadata)`.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ...filters import And, Filter, Not, Or, Test, matches

_MANY = 50  # looks into the JSON from which on one call of `matches` is cheaper
_DEEP = 20  # keys in a path; SQLite joins at most 64 tables
_NESTED = 8  # levels of $and, $or and $not; SQLite's parser stops at a stack of 100
_ESCAPED = re.compile(r'["\\\x00-\x1f]')
_SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "eq": "="}
_BELOW = {"gt": 0, "gte": 0, "lt": 1, "lte": 1, "eq": 0}  # whether a value below the operand passes
_ABOVE = {"gt": 1, "gte": 1, "lt": 0, "lte": 0, "eq": 0}

# SQL about one JSON value, given the name of the json_each row that holds it
_Leaf: TypeAlias = Callable[[str], str]


@dataclass(slots=True)
class Condition:
    """An SQL expression over `records`, its parameters in order, and the filters that it leaves to Python."""

    sql: str = "1"
    values: list[Any] = field(default_factory=list)
    python: list[Filter] = field(default_factory=list)
    looks: int = 0

    def install(self, connection: sqlite3.Connection) -> None:
        """Make the Python part known to a connection, until another condition is installed."""
        if self.python:
            connection.create_function("vecbridge_matches", 2, self._matches, deterministic=True)

    def _matches(self, test: int, metadata: str) -> bool:
        return matches(self.python[test], json.loads(metadata))

    def bind(self, value: object) -> str:
        """A placeholder for `value`; must be called in the order of the SQL text."""
        self.values.append(value)
        return "?"

    def call(self, where: Filter) -> str:
        """The filter as a call of `matches`."""
        self.python.append(where)
        return f"vecbridge_matches({len(self.python) - 1}, records.metadata)"


def condition(where: Filter) -> Condition:
    """The filter as SQL."""
    made = Condition()
    made.sql = _compile(where, made, 0)
    if made.looks > _MANY:
        made = Condition()
        made.sql = made.call(where)
    return made


def _compile(where: Filter, made: Condition, level: int) -> str:
    if level > _NESTED:
        made.looks += 1
        return made.call(where)
    match where:
        case And(parts):
            return "(" + " AND ".join([_compile(part, made, level + 1) for part in parts] or ["1"]) + ")"
        case Or(parts):
            return _choice(parts, made, level)
        case Not(part):
            return f"(NOT {_compile(part, made, level + 1)})"
        case Test():
            return _test(where, made)


def _choice(parts: Sequence[Filter], made: Condition, level: int) -> str:
    """Alternatives; those that ask one value for one of several texts, or integers, cost a single look."""
    found: list[str] = []
    rest = list(parts)
    for kind in (str, int):
        group = [part for part in rest if isinstance(part, Test) and _is_equal(part, kind)]
        same_path = [part for part in group if part.path == group[0].path]
        if len(same_path) > 1:
            taken = set(
                map(id, same_path)
            )  # comparing them would be quadratic, and lists of choices are long
            rest = [part for part in rest if id(part) not in taken]
            found.append(_one_of(same_path, kind, made))
    found += [_compile(part, made, level + 1) for part in rest]
    return "(" + " OR ".join(found or ["0"]) + ")"


def _is_equal(part: Filter, kind: type) -> bool:
    return (
        isinstance(part, Test)
        and part.operator == "eq"
        and type(part.operand) is kind
        and _is_plain(part.path)
    )


def _one_of(same_path: Sequence[Test], kind: type, made: Condition) -> str:
    choices = json.dumps([test.operand for test in same_path], ensure_ascii=False)

    def text(at: str) -> str:
        among = f"SELECT value FROM json_each({made.bind(choices)})"  # noqa: S608  # a placeholder
        return f"({at}.type = 'text' AND {at}.value IN ({among}))"

    def integer(at: str) -> str:
        among = f"SELECT value FROM json_each({made.bind(choices)})"  # noqa: S608  # a placeholder
        return (
            f"({at}.type IN ('integer', 'real') AND "
            f"CASE WHEN typeof({at}.value) = 'integer' THEN {at}.value IN ({among}) ELSE {call} END)"
        )

    if kind is str:
        return _find(same_path[0].path, _or_element(text), made)
    call = made.call(Or(tuple(same_path)))
    return _find(same_path[0].path, _or_element(integer), made)


def _test(test: Test, made: Condition) -> str:
    operand = test.operand
    if not _is_plain(test.path) or isinstance(operand, list | dict):
        made.looks += 1
        return made.call(test)
    if test.operator == "exists":
        return _find(test.path, lambda at: "1", made)
    if operand is None:
        missing = _find(test.path, lambda at: "1", made)
        null = _find(test.path, _or_element(lambda at: f"{at}.type = 'null'"), made)
        return f"(NOT {missing} OR {null})"
    if isinstance(operand, bool):
        name = "true" if operand else "false"
        return _find(test.path, _or_element(lambda at: f"{at}.type = '{name}'"), made)
    if test.operator == "icontains":
        made.looks += 1
        return made.call(test)
    if test.operator == "contains":
        return _find(
            test.path,
            _or_element(lambda at: f"({at}.type = 'text' AND instr({at}.value, {made.bind(operand)}) > 0)"),
            made,
        )
    if isinstance(operand, str):
        sign = _SIGNS[test.operator]
        return _find(
            test.path,
            _or_element(lambda at: f"({at}.type = 'text' AND {at}.value {sign} {made.bind(operand)})"),
            made,
        )
    return _find(test.path, _or_element(lambda at: _number(test, at, made)), made)


def _number(test: Test, at: str, made: Condition) -> str:
    """Comparison with a number: SQLite decides what is clear, `matches` what is close.

    SQLite reads the text of a real with 15 sure digits, Python with 17; integers are exact in both.
    """
    cases = ""
    if isinstance(test.operand, int):
        sign = _SIGNS[test.operator]
        cases += f"WHEN typeof({at}.value) = 'integer' THEN {at}.value {sign} {made.bind(test.operand)} "
    margin = abs(float(test.operand)) * 1e-9 + 1e-300
    cases += f"WHEN {at}.value < {made.bind(test.operand - margin)} THEN {_BELOW[test.operator]} "
    cases += f"WHEN {at}.value > {made.bind(test.operand + margin)} THEN {_ABOVE[test.operator]} "
    return f"({at}.type IN ('integer', 'real') AND CASE {cases} ELSE {made.call(test)} END)"


def _is_plain(path: Sequence[str]) -> bool:
    """Whether JSON holds these keys as they are. How SQLite compares escaped ones depends on its version."""
    return len(path) <= _DEEP and not any(map(_ESCAPED.search, path))


def _find(path: Sequence[str], leaf: _Leaf, made: Condition) -> str:
    """Whether there is a value at `path` for which `leaf` holds."""
    made.looks += 1
    tables, keys, source = [], [], "records.metadata"
    for depth, key in enumerate(path):
        tables.append(f"json_each({source}) AS v{depth}")
        keys.append(f"v{depth}.key = {made.bind(key)}")
        source = _inside(f"v{depth}", "object", "{}")
    tests = " AND ".join([*keys, leaf(f"v{len(path) - 1}")])
    return f"EXISTS (SELECT 1 FROM {', '.join(tables)} WHERE {tests})"  # noqa: S608  # keys are bound


def _or_element(leaf: _Leaf) -> _Leaf:
    """`leaf` of a value, or of any of its elements where it is a list."""

    def either(at: str) -> str:
        itself = leaf(at)
        elements = f"json_each({_inside(at, 'array', '[]')}) AS element"
        any_of = f"EXISTS (SELECT 1 FROM {elements} WHERE {leaf('element')})"  # noqa: S608  # operands are bound
        return f"({itself} OR {any_of})"

    return either


def _inside(at: str, kind: str, otherwise: str) -> str:
    # json_each of a plain text is an error, and the order in which SQLite tests conditions is its own
    return f"CASE {at}.type WHEN '{kind}' THEN {at}.value ELSE '{otherwise}' END"
