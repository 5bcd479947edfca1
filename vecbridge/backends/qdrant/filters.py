"""Filters as Qdrant's own, meaning what `vecbridge.filters.matches` says, or bounds where Qdrant cannot.

Five things that Qdrant cannot tell apart, or not in every version, are written beside the payload as marks:

* A boolean and a number are one to Edge; a missing key and an empty list are one to `is_empty`; whether
  `is_null` looks into lists changed in 1.19.1 (qdrant#10096). Hence marks for true, false, null and [].
* Qdrant keeps payloads as JSON text and reads numbers with an error of one or two units in the last place,
  each time a segment is rewritten (serde_json without `float_roundtrip`): about a tenth of random doubles
  come back changed. Short decimals do not: at most 53 bits of digits and a power of ten up to 22 take one
  rounding (Clinger 1990). The others are marked, and compared within a margin.
* `match` with a whole number finds 1, not 1.0 (qdrant#9584). Whole floats are marked for the sake of long
  lists, which only `match` compares quickly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ...filters import And, Filter, Not, Or, Test, matches
from .conditions import (
    NOTHING,
    Pair,
    all_of,
    any_of,
    around,
    filled,
    in_range,
    in_ranges,
    matching,
    negated,
    shallow,
    spans,
)
from .engine import Json

# true, false, null, [], a float Qdrant may change, a whole float it will not; what "t:a.b" begins with
_Kind = Literal["t", "f", "n", "e", "x", "w"]

# levels of metadata in a payload; lists and objects at the last one are empty there (see `points`), so that
# filters say nothing of it, nor marks
LEVELS = 24
# each range is a reading of the payload where there is no index: 16 take 0.2 s on 20,000 points,
# 1,000 take 14 s, and a `match` with 70,000 numbers 0.05 s (Edge 0.9.0)
_RANGES, _WHOLES = 8, 16
_EXACT = 2**53
_SIGNS = {"gt": ("gt", "gte"), "gte": ("gt", "gte"), "lt": ("lt", "lte"), "lte": ("lt", "lte")}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What Qdrant can say of a filter: every record that matches passes `over`; all that pass `under` match.

    `exact`: the two are one, and `over` alone decides. `{}` lets every point pass.
    """

    over: Json
    under: Json
    exact: bool

    @property
    def doubt(self) -> Json:
        """The points that have to be looked at: they pass `over`, and not `under`."""
        return all_of([self.over, negated(self.under)])


@dataclass(frozen=True, slots=True)
class Reading:
    """What Qdrant can say of one path in the metadata, as its payload is laid out.

    `equal`: that at least one of the operands equals the value there. `compare`: a test by another operator.
    """

    equal: Callable[[tuple[str, ...], list[Any]], Pair]
    compare: Callable[[Test], Pair]


def compile(where: Filter, reading: Reading | None = None) -> Bounds:
    """Qdrant filters, as its REST API has them, between which the records that match lie.

    `reading`: for payloads that are not vecbridge's own.
    """
    over, under = _bounds(where, _OWN if reading is None else reading)
    return Bounds(over, under, over == under)


def checker(where: Filter) -> Callable[[Mapping[str, Any]], bool]:
    """`matches` for this filter: long lists of operands are looked up, not gone through."""
    match where:
        case And():
            parts, negated = _split(where)
            checks = [checker(part) for part in parts]
            none = checker(Or(negated))
            return lambda metadata: all(check(metadata) for check in checks) and not none(metadata)
        case Or():
            operands: dict[tuple[str, ...], set[tuple[type, Any]]] = {}
            others = []
            for part in _flat(where):
                if (
                    isinstance(part, Test)
                    and part.operator == "eq"
                    and not isinstance(part.operand, list | Mapping)
                ):
                    operands.setdefault(part.path, set()).add(_typed(part.operand))
                else:
                    others.append(checker(part))
            return lambda metadata: (
                any(not known.isdisjoint(_values(path, metadata)) for path, known in operands.items())
                or any(check(metadata) for check in others)
            )
        case Not(part):
            check = checker(part)
            return lambda metadata: not check(metadata)
        case Test():
            return partial(matches, where)


def _values(path: tuple[str, ...], metadata: Any) -> list[tuple[type, Any]]:
    """What a scalar may be equal to at this path; a missing value is null."""
    value = metadata
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    elements = value if isinstance(value, list) else [value]
    return [_typed(element) for element in elements if not isinstance(element, list | Mapping)]


def _typed(scalar: Any) -> tuple[type, Any]:
    """Equal where Python and JSON agree that scalars are: 1 is 1.0, but not True."""
    return (float if type(scalar) is int else type(scalar)), scalar


def key(path: Sequence[str], within: Sequence[str] = ("metadata",)) -> str | None:
    """The payload key of the metadata at `path`, as Qdrant's JSON path; None where it cannot say it.

    `within`: where in the payload the metadata is.
    """
    path = [*within, *path]
    if any(set(name) & {'"', "\\"} for name in path):
        return None
    return ".".join(name if re.fullmatch("[A-Za-z0-9_-]+", name) else f'"{name}"' for name in path)


def marks(metadata: Mapping[str, Any]) -> list[str]:
    """What the payload key "odd" of a record must hold, in order; empty for most records.

    "t:a.b" says that metadata["a"]["b"] is true or a list with an element that is, and so on: "f:" false,
    "n:" null, "e:" an empty list, "x:" a number Qdrant may change, "w:" a whole float it will not.
    """
    return sorted(set(_marks(metadata, "", 1)))


def faithful(value: Any) -> bool:
    """Whether Qdrant gives this JSON back as it was; False where a float in it may come back changed."""
    match value:
        case Mapping():
            return all(map(faithful, value.values()))
        case list() | tuple():
            return all(map(faithful, value))
        case float():
            return _plain(value)
    return True


def _marks(value: Mapping[str, Any], prefix: str, level: int) -> Iterator[str]:
    for name, inner in value.items():
        if "." in name:
            continue  # no filter can name it
        path = prefix + name
        if isinstance(inner, Mapping):
            if level < LEVELS - 1:
                yield from _marks(inner, f"{path}.", level + 1)
        elif isinstance(inner, list | tuple):
            if not inner:
                yield f"e:{path}"
            yield from (f"{kind}:{path}" for element in inner if (kind := _kind(element)))
        elif kind := _kind(inner):
            yield f"{kind}:{path}"


def _kind(value: Any) -> _Kind | None:
    if value is None:
        return "n"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, float):
        return "x" if not _plain(value) else "w" if value.is_integer() else None
    return "x" if isinstance(value, int) and not _is_int64(value) else None


def _plain(number: int | float) -> bool:
    """Whether Qdrant compares and keeps this number exactly."""
    if abs(number) >= _EXACT:
        return False
    if isinstance(number, int):
        return True
    digits, _, power = repr(abs(number)).partition("e")
    whole, _, broken = digits.partition(".")
    return int(whole + broken) < _EXACT and int(power or 0) - len(broken) >= -22


def _is_int64(number: int | float) -> bool:
    return -(2**63) <= number < 2**63


def _bounds(where: Filter, reading: Reading) -> Pair:
    match where:
        case And():
            parts, others = _split(where)
            pairs = [_bounds(part, reading) for part in parts]
            if others:
                pairs.append(_bounds(Not(Or(others)), reading))
            return shallow(all_of(over for over, _ in pairs), all_of(under for _, under in pairs))
        case Or():
            pairs = list(_choices(_flat(where), reading))
            return shallow(any_of(over for over, _ in pairs), any_of(under for _, under in pairs))
        case Not(part):
            over, under = _bounds(part, reading)
            return shallow(negated(under), negated(over))
        case Test(path, operator, operand):
            if len(path) >= LEVELS or any("." in name for name in path):
                return {}, NOTHING
            return reading.equal(path, [operand]) if operator == "eq" else reading.compare(where)


def _compare(test: Test) -> Pair:
    path, at = test.path, key(test.path)
    if at is None:
        return {}, NOTHING
    if test.operator == "exists":
        present = negated(_missing(path, at))
        return present, present
    if isinstance(test.operand, str):
        return filled(at), NOTHING
    return _order(path, at, test.operator, test.operand)


def _split(where: And) -> tuple[list[Filter], tuple[Filter, ...]]:
    """What has to hold, and what must not: together one Or, which joins the equalities with one key."""
    parts = list(_flat(where))
    plain: list[Filter] = [part for part in parts if not isinstance(part, Not)]
    return plain, tuple(part.part for part in parts if isinstance(part, Not))


def _flat(where: And | Or) -> Iterator[Filter]:
    for part in where.parts:
        if isinstance(part, And | Or) and type(part) is type(where):
            yield from _flat(part)
        else:
            yield part


def _choices(parts: Iterable[Filter], reading: Reading) -> Iterator[Pair]:
    """The bounds of each part of an Or; equalities with one key are one part."""
    operands: dict[tuple[str, ...], list[Any]] = {}
    for part in parts:
        if isinstance(part, Test) and part.operator == "eq" and len(part.path) < LEVELS:
            operands.setdefault(part.path, []).append(part.operand)
        else:
            yield _bounds(part, reading)
    for path, group in operands.items():
        yield reading.equal(path, group)


def _equal(path: tuple[str, ...], operands: list[Any]) -> Pair:
    """At least one of the operands equals the value at `path`."""
    if any("." in name for name in path):
        return {}, NOTHING
    kinds: set[_Kind] = set()
    texts: dict[str, None] = {}
    numbers: list[int | float] = []
    wholes = []
    for operand in operands:
        if operand is None or isinstance(operand, bool):
            kinds.add("n" if operand is None else "t" if operand else "f")
        elif isinstance(operand, str):
            texts[operand] = None
        elif isinstance(operand, int | float):
            numbers.append(operand)
        elif isinstance(operand, list) and not operand:
            kinds.add("e")
        else:
            wholes.append(operand)
    marked = _mark(path, *sorted(kinds)) if kinds else NOTHING
    at = key(path)
    if at is None:
        return (marked if not (texts or numbers or wholes or "n" in kinds) else {}), marked
    both = [marked]
    if "n" in kinds:
        both.append(_missing(path, at))
    if texts:
        both.append(matching(at, list(texts)))
    over, under = _numbers(path, at, numbers) if numbers else (NOTHING, NOTHING)
    whole = [_whole(path, at, operand) for operand in wholes[:_WHOLES]]
    if len(wholes) > _WHOLES:
        whole = [filled(at)]
    return any_of([*both, over, *whole]), any_of([*both, under])


def _missing(path: tuple[str, ...], at: str) -> Json:
    """No such key: what `is_empty` finds, without null and []."""
    return {"must": [{"is_empty": {"key": at}}], "must_not": _mark(path, "e", "n")["must"]}


def _mark(path: tuple[str, ...], *kinds: _Kind) -> Json:
    return matching("odd", [f"{kind}:{'.'.join(path)}" for kind in kinds])


def _whole(path: tuple[str, ...], at: str, operand: Any) -> Json:
    """What a value equal to this list or object has at least: the scalars that it holds."""
    if isinstance(operand, Mapping):
        inner = [_bounds(Test((*path, name), "eq", value), _OWN) for name, value in _first(operand.items())]
    else:
        inner = [_equal(path, [value]) for value in _first(operand) if not isinstance(value, list | Mapping)]
    return shallow(all_of([filled(at), *(over for over, _ in inner)]), NOTHING)[0]


def _first(items: Iterable[Any]) -> Iterator[Any]:
    return (item for _, item in zip(range(_WHOLES), items, strict=False))


def _numbers(path: tuple[str, ...], at: str, numbers: list[int | float]) -> Pair:
    """At least one of the numbers equals the value at `path`."""
    plain: set[float] = set()
    large: set[int] = set()
    for number in numbers:
        if _plain(number):
            plain.add(float(number))
        elif _is_int64(number) and number == int(number):
            large.add(int(number))
    if len(plain) <= _RANGES:
        found, sharp = _points(at, plain)
    else:
        whole = {number for number in plain if number.is_integer()}
        large |= set(map(int, whole))
        floats, sharp = _points(at, whole)
        broken, broken_sharp = _points(at, plain - whole)
        found, sharp = any_of([all_of([_mark(path, "w"), floats]), broken]), sharp and broken_sharp
    matched = matching(at, sorted(large)) if large else NOTHING
    # a number that Qdrant may have changed, where one is asked for
    near, _ = spans(sorted(around(float(number)) for number in set(numbers)))
    unsure = all_of([_mark(path, "x"), in_ranges(at, near)])
    certain = all_of([found, negated(unsure)]) if sharp else NOTHING
    return any_of([matched, found, unsure]), any_of([matched, certain])


def _order(path: tuple[str, ...], at: str, operator: str, operand: int | float) -> Pair:
    number = float(operand)
    low, high = around(number)
    strict, wide = _SIGNS[operator]
    if not _plain(operand):
        far, close = (low, high) if strict == "gt" else (high, low)
        return in_range(at, {wide: far}), in_range(at, {strict: close})
    found = in_range(at, {operator: number})
    unsure = all_of([_mark(path, "x"), in_range(at, {"gte": low, "lte": high})])
    return any_of([found, unsure]), all_of([found, negated(unsure)])


def _points(at: str, numbers: Iterable[float]) -> tuple[Json, bool]:
    """Some number of these, or between them where they are too many; whether they alone are found."""
    within, sharp = spans([(number, number) for number in sorted(numbers)])
    return in_ranges(at, within), sharp


_OWN = Reading(_equal, _compare)
