"""Rows of JSON lines and CSV files, one after the other, with the number of their line."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal

from ..errors import SourceError
from .lines import Fault, fault, lines
from .records import Fields, Origin, Reject, Row, Source, identity, short

_CELL = 64_000_000
# lines behind a broken row that are tried again as rows of their own; no file can make it read for ever
_AGAIN = 1_000_000
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def rows(
    source: Source,
    fields: Fields,
    *,
    kind: Literal["jsonl", "csv"],
    encoding: str | None = None,
    aligned: bool = False,
) -> Iterator[tuple[Origin, str, Row] | Reject]:
    """Origin, name and values of each row, or why it cannot be read; an empty cell of CSV is None.

    `aligned`: the position of a row means something, so that one whose extent is in doubt raises SourceError.
    Raises SourceError too where the file has no use at all.
    """
    found = _json_rows(source, encoding) if kind == "jsonl" else _csv_rows(source, fields, encoding)
    for number, row in found:
        origin, name = Origin(source.file, "line", number), f"{source.name}:{number}"
        if isinstance(row, Fault):
            if aligned and kind == "csv":
                raise SourceError(f"{origin}: {row}")
            yield Reject(origin, str(row))
            continue
        if kind == "csv":
            try:
                _convert(row, fields)
            except Fault as wrong:
                yield Reject(origin, str(wrong), identity(row, fields, name))
                continue
        yield origin, name, row


def count(
    source: Source, fields: Fields, *, kind: Literal["jsonl", "csv"], encoding: str | None = None
) -> int:
    """How many rows `rows` gives, those that cannot be read among them."""
    if kind == "csv":
        return sum(1 for _ in rows(source, fields, kind=kind, encoding=encoding, aligned=True))
    return sum(not line.isspace() for line in lines(source.path, encoding=encoding, file=source.file))


def _constant(name: str) -> None:
    raise ValueError(f"{name}, which is no JSON number")


_JSON = json.JSONDecoder(parse_constant=_constant)


def _json_rows(source: Source, encoding: str | None) -> Iterator[tuple[int, Row | Fault]]:
    for number, line in enumerate(lines(source.path, encoding=encoding, file=source.file), 1):
        if not line.isspace():
            try:
                yield number, _json_object(line, encoding)
            except Fault as wrong:
                yield number, wrong


def _json_object(line: str, encoding: str | None) -> Row:
    if reason := fault(line, encoding):
        raise Fault(reason)
    try:
        row = _JSON.decode(line)
    except json.JSONDecodeError as error:
        got = "the start of a list over several lines" if line.strip() == "[" else error.msg
        raise Fault(f"expected a JSON object in one line, got {got} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        got = "one nested too deep" if isinstance(error, RecursionError) else str(error)
        raise Fault(f"expected a JSON object, got {got}") from None
    if not isinstance(row, dict):
        raise Fault(f"expected a JSON object in each line, got a {type(row).__name__}: {short(row)}")
    return row


class _Lines:
    """Lines for csv.reader; behind the first line of a row that turns out to be broken it goes on."""

    def __init__(self, source: Iterator[str]) -> None:
        self._source = source
        self._waiting: deque[str] = deque()
        self._taken: list[str] = []
        self._again = _AGAIN
        self.done = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else next(self._source)
        self._taken.append(line)
        return line

    def accept(self) -> None:
        """All that was taken was a row."""
        self.done += len(self._taken)
        self._taken.clear()

    def refuse(self) -> int:
        """What was taken is no row; how many lines are lost."""
        lost = 1 if len(self._taken) - 1 <= self._again else len(self._taken)
        again = self._taken[lost:]
        self._again -= len(again)
        self._waiting.extendleft(reversed(again))
        self.done += lost
        self._taken.clear()
        return lost


def _csv_rows(
    source: Source, fields: Fields, encoding: str | None
) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    every = lines(source.path, encoding=encoding, file=source.file)
    header = next(every, "")
    separator = max(",;\t", key=header.count)
    text = _Lines(chain((header,), every))
    table = csv.reader(text, delimiter=separator, strict=True)
    try:
        names = _cells(table) or []
    except csv.Error as error:
        raise SourceError(
            f"{source.file}:1: expected the names of the columns as CSV, got a broken row: {error}"
        ) from None
    text.accept()
    if not header:
        return
    _check_header(names, fields, f"{source.file}:1", encoding)
    while True:
        number = text.done + 1
        try:
            cells = _cells(table)
        except csv.Error as error:
            lost = text.refuse()
            more = f"; lines {number} to {number + lost - 1} are lost with it" if lost > 1 else ""
            yield (
                number,
                Fault(f"expected CSV, got a broken row: {error}{more}; write a quote in a cell twice"),
            )
            table = csv.reader(text, delimiter=separator, strict=True)
            continue
        text.accept()
        if cells is None:
            return
        if cells:
            yield number, _named(names, cells, encoding)


def _check_header(names: list[str], fields: Fields, place: str, encoding: str | None) -> None:
    if reason := fault("".join(names), encoding):
        raise SourceError(f"{place}: {reason}")
    if not names:
        raise SourceError(f"{place}: expected the names of the columns in the first line, got a blank one")
    for column, name in enumerate(names, 1):
        if not name:
            raise SourceError(
                f"{place}: expected a name for column {column}, got none "
                f"(pandas writes its row numbers so: use to_csv(index=False))"
            )
        if names.index(name) != column - 1:
            raise SourceError(f"{place}: expected each column once, got {name!a} twice")
    if absent := [name for name in fields.demanded if name not in names]:
        raise SourceError(
            f"{place}: expected a column {absent[0]!a}, got {', '.join(map(ascii, names[:20]))}"
        )


def _named(names: list[str], cells: list[str], encoding: str | None) -> Row | Fault:
    if reason := fault("".join(cells), encoding):
        return Fault(reason)
    if len(cells) != len(names):
        return Fault(f"expected {len(names)} cells as in the header, got {len(cells)}")
    return {name: cell or None for name, cell in zip(names, cells, strict=True)}


def _cells(table: Iterator[list[str]]) -> list[str] | None:
    """The next row, or None at the end. The limit of a cell belongs to the process: it is put back."""
    before = csv.field_size_limit(_CELL)
    try:
        return next(table, None)
    finally:
        csv.field_size_limit(before)


def _convert(row: Row, fields: Fields) -> None:
    """Turn the cells of a row that hold numbers or a vector into those. Raises Fault."""
    for name in fields.numbers:
        if row[name] is not None:
            row[name] = _number(row[name], name)
    for name in fields.vectors:
        if (cell := row.get(name)) is not None and cell.lstrip().startswith("["):
            row[name] = _json_list(cell)


def _number(cell: str, name: str) -> int | float:
    plain = cell.strip()
    if _INTEGER.fullmatch(plain):
        return int(plain)
    if not _NUMBER.fullmatch(plain) or not math.isfinite(value := float(plain)):
        raise Fault(f"expected a number in {name!a}, got {short(cell)}")
    return value


def _json_list(cell: str) -> Sequence[Any]:
    try:
        values: Sequence[Any] = json.loads(cell)
    except (ValueError, RecursionError):
        raise Fault(f"expected a vector such as [0.1, -0.2], got {short(cell)}") from None
    return values
