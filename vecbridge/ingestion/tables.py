"""Rows of JSON lines and CSV files, one after the other, with the number of their line."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from ..errors import SourceError
from .lines import lines, shown
from .records import Fields, Row, short

_CELL = 100_000_000
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def rows(
    path: Path, kind: Literal["jsonl", "csv"], *, fields: Fields, numbers: Sequence[str]
) -> Iterator[tuple[str, str, Row]]:
    """Place, name and values of each row; an empty cell of CSV is None. Raises SourceError."""
    found = _json_rows(path) if kind == "jsonl" else _csv_rows(path, fields.vectors, numbers)
    file = shown(Path(path.name))
    for number, row in found:
        yield f"{shown(path)}:{number}", f"{file}:{number}", row


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    def constant(name: str) -> None:
        raise ValueError(f"{name}, which is no JSON number")

    for number, line in enumerate(lines(path), 1):
        if line.isspace():
            continue
        where = f"{shown(path)}:{number}: expected a JSON object"
        try:
            row = json.loads(line, parse_constant=constant)
        except json.JSONDecodeError as error:
            got = "the start of a list over several lines" if line.strip() == "[" else error.msg
            raise SourceError(f"{where} in one line, got {got} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:
            got = "one nested too deep" if isinstance(error, RecursionError) else str(error)
            raise SourceError(f"{where}, got {got}") from None
        if not isinstance(row, dict):
            raise SourceError(f"{where} in each line, got a {type(row).__name__}: {short(row)}")
        yield number, row


def _csv_rows(path: Path, lists: Sequence[str], numbers: Sequence[str]) -> Iterator[tuple[int, Row]]:
    place = shown(path)
    text = lines(path)
    header = next(text, "")
    separator = max(",;\t", key=header.count)
    table = csv.reader(chain((header,), text), delimiter=separator, strict=True)
    names = _cells(table, place) or []
    if header and not names:
        raise SourceError(f"{place}:1: expected the names of the columns in the first line, got a blank one")
    for column, name in enumerate(names, 1):
        if not name:
            raise SourceError(
                f"{place}:1: expected a name for column {column}, got none "
                f"(pandas writes its row numbers so: use to_csv(index=False))"
            )
        if names.index(name) != column - 1:
            raise SourceError(f"{place}:1: expected each column once, got {name!a} twice")
    if absent := [name for name in numbers if name not in names]:
        raise SourceError(f"{place}:1: expected a column {absent[0]!a}, got {', '.join(map(ascii, names))}")
    while True:
        number = table.line_num + 1
        cells = _cells(table, place)
        if cells is None:
            return
        if not cells:
            continue
        if len(cells) != len(names):
            raise SourceError(
                f"{place}:{number}: expected {len(names)} cells as in the header, got {len(cells)}"
            )
        row: Row = {name: cell or None for name, cell in zip(names, cells, strict=True)}
        for name in numbers:
            if row[name] is not None:
                row[name] = _number(row[name], name, f"{place}:{number}")
        for name in lists:
            if (cell := row.get(name)) is not None and cell.lstrip().startswith("["):
                row[name] = _json_list(cell, f"{place}:{number}")
        yield number, row


def _cells(table: Iterator[list[str]], place: str) -> list[str] | None:
    """The next row, or None at the end. The limit of a cell belongs to the process: it is put back."""
    before = csv.field_size_limit(_CELL)
    try:
        return next(table, None)
    except csv.Error as error:
        line = table.line_num  # type: ignore[attr-defined] # csv's reader has no public type
        raise SourceError(f"{place}:{line}: expected CSV, got a broken row: {error}") from None
    finally:
        csv.field_size_limit(before)


def _number(cell: str, name: str, place: str) -> int | float:
    plain = cell.strip()
    if _INTEGER.fullmatch(plain):
        return int(plain)
    if not _NUMBER.fullmatch(plain) or not math.isfinite(value := float(plain)):
        raise SourceError(f"{place}: expected a number in {name!a}, got {short(cell)}")
    return value


def _json_list(cell: str, place: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        raise SourceError(f"{place}: expected a vector such as [0.1, -0.2], got {short(cell)}") from None
