"""How the owner's queries search a vector column, as far as pg_stat_statements has seen them.

The texts are read, never run, and not planned either: planning would evaluate what strangers wrote, with the
rights of whoever asks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from psycopg import errors as pg
from psycopg.sql import SQL, Identifier

from .foreign import Metric, VectorColumn
from .pool import Connection
from .proposals import OPERATORS

Statement: TypeAlias = tuple[str, int]  # its text with $1 for constants, and how often it ran

_MOST = 500  # statements, those that run most
_LONGEST = 8_000  # characters of one


@dataclass(frozen=True, slots=True)
class Search:
    """One way in which queries measure the distance to a column.

    `type` and `dim`: what the column is cast to, "" and None where it is taken bare. `nearest`: whether the
    rows come ordered by that distance alone, nearest first, which is what an index can do. `calls`: how
    often.
    """

    metric: Metric
    type: str
    dim: int | None
    nearest: bool
    calls: int


_METRICS: dict[str, Metric] = {operator: metric for metric, operator in OPERATORS.items()}
_FUNCTIONS: dict[str, Metric] = {
    "cosine_distance": "cosine", "l2_distance": "l2", "inner_product": "ip", "l1_distance": "l1",
    "hamming_distance": "hamming", "jaccard_distance": "jaccard",
}  # fmt: skip
_SIGN = r"(?:OPERATOR\s*\(\s*(?:[\w\"$]+\s*\.\s*)?)?(<=>|<->|<#>|<\+>|<~>|<%>)(?:\s*\))?"


def statements(connection: Connection) -> list[Statement] | str | None:
    """The statements of this database that measure distances, most called first.

    None where nobody counts statements, a sentence where they cannot be read.
    """
    row = connection.execute(
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
        " WHERE e.extname = 'pg_stat_statements'"
    ).fetchone()
    if row is None:
        return None
    asked = SQL(
        "SELECT left(query, {}), sum(calls)::int8 FROM {} WHERE dbid = (SELECT oid FROM pg_database"
        " WHERE datname = current_database()) AND query ~ '<=>|<->|<#>|<[+]>|<~>|<%>|_distance|inner_product'"
        " AND query ~* 'select' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {}"
    ).format(_LONGEST, Identifier(row[0], "pg_stat_statements"), _MOST)
    hidden = SQL("SELECT EXISTS (SELECT FROM {} WHERE query = '<insufficient privilege>')").format(
        Identifier(row[0], "pg_stat_statements")
    )
    try:
        found = [(str(text), int(calls)) for text, calls in connection.execute(asked).fetchall()]
        if not found and connection.execute(hidden).fetchone() == (True,):
            return "pg_stat_statements shows this user no statements of others"
    except (pg.InsufficientPrivilege, pg.ObjectNotInPrerequisiteState) as error:
        return f"pg_stat_statements cannot be read: {error.diag.message_primary}"
    return found


def searches(column: VectorColumn, statements: Sequence[Statement]) -> list[Search]:
    """How these statements search a column, the most called first."""
    table = re.compile(rf'(?:"?([\w$]+)"?\s*\.\s*)?(?<![\w$"])"?{re.escape(column.table)}"?(?![\w$])')
    counted: dict[tuple[Metric, str, int | None, bool], int] = {}
    for text, calls in statements:
        # the second: a table of this name in another schema only
        if all(found[1] not in (None, column.schema) for found in table.finditer(text)):
            continue
        for key in _uses(column.column, _LITERAL.sub("''", text)):
            counted[key] = counted.get(key, 0) + calls
    found = [Search(*key, calls) for key, calls in counted.items()]
    return sorted(found, key=lambda search: (-search.calls, search.metric, search.type, search.nearest))


def _uses(column: str, text: str) -> set[tuple[Metric, str, int | None, bool]]:
    name = rf'(?<![\w$"])"?{re.escape(column)}"?(?![\w$])'
    cast = r'(?:\s*::\s*((?:"?[\w$]+"?\s*\.\s*)?"?(?:vector|halfvec|bit)"?)\s*(?:\(\s*(\d+)\s*\))?)?'
    before = re.compile(rf"{name}(?:\s*,[^()]*)?\s*\)*{cast}\s*\)*\s*{_SIGN}", re.IGNORECASE)
    after = re.compile(rf'{_SIGN}\s*(?:\(\s*)*(?:[\w$"]+\s*\.\s*)*{name}\s*\)*{cast}', re.IGNORECASE)
    called = re.compile(rf'\b({"|".join(_FUNCTIONS)})\s*\(\s*(?:[\w$"]+\s*\.\s*)*{name}', re.IGNORECASE)
    uses: set[tuple[Metric, str, int | None, bool]] = set()
    for match in before.finditer(text):
        uses.add((_METRICS[match[3]], _bare(match[1]), _number(match[2]), _nearest(text, match)))
    for match in after.finditer(text):
        uses.add((_METRICS[match[1]], _bare(match[2]), _number(match[3]), _nearest(text, match)))
    if not uses:
        uses = {(_FUNCTIONS[match[1].lower()], "", None, False) for match in called.finditer(text)}
    # what is selected beside what is ordered by, and what re-orders candidates that an index found
    ordered = {use for use in uses if use[3]}
    return {use for use in ordered if use[1]} or ordered or uses


_ORDER = re.compile(r"\bORDER\s+BY\s+", re.IGNORECASE)
_LITERAL = re.compile(r"'(?:[^']|'')*'")  # not every constant becomes a $1
_CHANGED = re.compile(r"[-+*/]")  # by arithmetic: another value than the distance
_KEY_END = re.compile(r"\b(?:LIMIT|OFFSET|FETCH|FOR)\b|;", re.IGNORECASE)


def _nearest(text: str, distance: re.Match[str]) -> bool:
    """Whether something is ordered by this distance itself, ascending."""
    for found in _ORDER.finditer(text):
        key, keys = _first_key(text, found.end())
        if keys > 1 or re.search(r"\bDESC\b", key, re.IGNORECASE):
            continue
        if found.end() <= distance.start() < found.end() + len(key):
            return not _CHANGED.search(key[: distance.start() - found.end()])
        alias = (
            re.sub(r"\s+(?:ASC|NULLS\s+\w+)\b.*", "", key, flags=re.IGNORECASE | re.DOTALL).strip().strip('"')
        )
        if re.fullmatch(r"[\w$]+", alias) and _names(text, distance, alias):
            return True
    return False


def _first_key(text: str, start: int) -> tuple[str, int]:
    """The first key of an ORDER BY, and how many there are."""
    depth, keys, end = 0, 1, len(text)
    first = None
    for at in range(start, len(text)):
        sign = text[at]
        if sign == "(":
            depth += 1
        elif sign == ")":
            depth -= 1
            if depth < 0:
                end = at
                break
        elif sign == "," and depth == 0:
            keys += 1
            first = first if first is not None else at
        elif depth == 0 and _KEY_END.match(text, at) and not text[at - 1].isalnum():
            end = at
            break
    return text[start : first if first is not None else end].strip(), keys


def _names(text: str, distance: re.Match[str], alias: str) -> bool:
    """Whether `alias` is the name of the bare distance, of nothing made of it."""
    behind = re.compile(rf'([^,]*?)\bAS\s+"?{re.escape(alias)}"?(?![\w$])', re.IGNORECASE | re.DOTALL)
    if not (found := behind.match(text, distance.end())) or _CHANGED.search(found[1]):
        return False
    before = re.split(r"(?:,|\bSELECT\b)", text[: distance.start()], flags=re.IGNORECASE)[-1]
    return not _CHANGED.search(before)


def _bare(type: str | None) -> str:
    return (type or "").rpartition(".")[2].strip().strip('"').lower()


def _number(text: str | None) -> int | None:
    return int(text) if text else None
