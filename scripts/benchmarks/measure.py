"""Measuring side by side: pairs, the lines made of them, and whether two runs differ by more than noise."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Pair = tuple[float, float | None]
# two runs differ where the change is more than this, and more than twice what chance makes of medians
FLOOR = 0.03
FEWEST = 3  # pairs without which nothing is known about chance


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def p50(work: Callable[[Any], object], queries: Sequence[Any]) -> float:
    """The median of the seconds that `work` takes for each query."""
    taken = []
    for query in queries:
        start = time.perf_counter()
        work(query)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


Side = Callable[[int], float]


def turns(sides: Mapping[str, Side], count: int, *, warm: int = 1) -> dict[str, list[float]]:
    """What each side returned in each of `count` turns, which they take one after the other.

    A side is called with the number of the turn. Who goes first rotates, so that in the long run nobody has
    the better place. `warm`: turns before the first one that counts, whose results are thrown away; their
    numbers are negative, and the last of them is -1.
    """
    names = list(sides)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warm, count):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken = sides[name](turn)
            if turn >= 0:
                found[name].append(taken)
    return found


def pairs(
    found: Mapping[str, Sequence[float]], ours: str, theirs: str, *, scale: float = 1.0, per: float = 0.0
) -> tuple[Pair, ...]:
    """The figures of two sides, turn by turn: seconds times `scale`, or `per` things by the second."""

    def figure(seconds: float) -> float:
        return per / seconds if per else seconds * scale

    both = zip(found[ours], found[theirs], strict=True)
    return tuple((figure(mine), figure(other)) for mine, other in both)


@dataclass(frozen=True, slots=True)
class Goal:
    """At least or at most so much; of the ratio, or of our own figure."""

    sense: Literal[">=", "<="]
    value: float
    of: Literal["ratio", "ours"] = "ratio"

    def met(self, figure: float) -> bool:
        """Whether a figure is as good as that."""
        return figure >= self.value if self.sense == ">=" else figure <= self.value


def least(value: float, *, ours: bool = False) -> Goal:
    """A goal that is met by this much or more."""
    return Goal(">=", value, "ours" if ours else "ratio")


def most(value: float, *, ours: bool = False) -> Goal:
    """A goal that is met by this much or less."""
    return Goal("<=", value, "ours" if ours else "ratio")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table: what was measured, every single pair, and the goal.

    `unit` tells what the figures are; `more`: whether larger ones are better. `against`: what the other side
    is. `pairs`: ours and theirs, or ours and None. `note`: what else there is to know, such as recall.
    `why`: why there is no figure; then there are no pairs.
    """

    job: str
    what: str
    unit: str = ""
    against: str = ""
    pairs: tuple[Pair, ...] = ()
    more: bool = False
    goal: Goal | None = None
    note: str = ""
    why: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same line in another run."""
        return self.job, self.what, self.against

    @property
    def ours(self) -> float | None:
        """The median of our figures."""
        return statistics.median(mine for mine, _ in self.pairs) if self.pairs else None

    @property
    def theirs(self) -> float | None:
        """The median of theirs."""
        known = [other for _, other in self.pairs if other is not None]
        return statistics.median(known) if known else None

    @property
    def ratios(self) -> list[float]:
        """Ours to theirs, pair by pair."""
        return [mine / other for mine, other in self.pairs if other]

    @property
    def ratio(self) -> float | None:
        """The median of the ratios."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none, or nothing to judge it by."""
        if self.goal is None:
            return None
        figure = self.ratio if self.goal.of == "ratio" else self.ours
        return None if figure is None else self.goal.met(figure)

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """What stands in the table: what, ours, theirs, ratio, goal, verdict."""
        if self.why:
            return self.what, "", self.against, "", _goal(self.goal), f"not measured: {self.why}"
        ours = "" if self.ours is None else f"{_number(self.ours)} {self.unit}".strip()
        theirs = "" if self.theirs is None else f"{_number(self.theirs)} {self.unit}".strip()
        if self.against:
            theirs = f"{theirs} ({self.against})" if theirs else self.against
        ratio = ""
        if self.ratio is not None:
            low, high = spread(self.ratios)
            ratio = f"{_number(self.ratio)} [{_number(low)}-{_number(high)}]"
        return self.what, ours, theirs, ratio, _goal(self.goal), _verdict(self.met, self.note)


@dataclass(frozen=True, slots=True)
class Told:
    """A line that another program worded and judged; for plans."""

    job: str
    what: str
    ours: str
    theirs: str
    ratio: float | None
    goal: str
    met: bool | None

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same line in another run."""
        return self.job, self.what, ""

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """What stands in the table: what, ours, theirs, ratio, goal, verdict."""
        ratio = "" if self.ratio is None else _number(self.ratio)
        return self.what, self.ours, self.theirs, ratio, self.goal, _verdict(self.met, "")


AnyLine = Line | Told


def told(job: str, line: Mapping[str, Any]) -> Told:
    """A line as the fields job, ours, by_hand, ratio, goal, met."""
    met = line["met"] if line["goal"] else None
    return Told(job, line["job"], line["ours"], line["by_hand"], line["ratio"], line["goal"], met)


def _verdict(met: bool | None, note: str) -> str:
    word = "" if met is None else "met" if met else "MISSED"
    return "; ".join(part for part in (word, note) if part)


def _goal(goal: Goal | None) -> str:
    if goal is None:
        return ""
    return f"{goal.sense} {_number(goal.value)}" + (" times" if goal.of == "ratio" else "")


def _number(value: float) -> str:
    """Three significant digits, thousands with commas."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(digits, 0)}f}"


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The quarter of the way and three quarters of the way through the values in their order."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


# --- two runs


@dataclass(frozen=True, slots=True)
class Change:
    """One line in two runs. `by`: new to old, of the ratio where there is one, else of our own figure.

    `noise`: what chance alone may make of it, as a share; None where there are too few pairs to tell.
    """

    line: Line
    old: float
    new: float
    by: float
    noise: float | None

    @property
    def verdict(self) -> str:
        """better, worse, same, or unknown."""
        if self.noise is None:
            return "unknown"
        if abs(math.log(self.by)) <= math.log1p(max(FLOOR, self.noise)):
            return "same"
        return "better" if (self.by > 1) == self.line.more else "worse"


def compared(old: Sequence[AnyLine], new: Sequence[AnyLine]) -> list[Change]:
    """The lines that both runs have figures for, in the order of the new one."""
    before = {line.key: line for line in old if isinstance(line, Line) and line.pairs}
    found = []
    for line in new:
        if not isinstance(line, Line) or not line.pairs or (then := before.get(line.key)) is None:
            continue
        a, b = _figures(then), _figures(line)
        if not a or not b:
            continue
        first, second = statistics.median(a), statistics.median(b)
        if first > 0 and second > 0:
            noise = None if min(len(a), len(b)) < FEWEST else 2 * math.hypot(_error(a), _error(b))
            found.append(Change(line, first, second, second / first, noise))
    return found


def _figures(line: Line) -> list[float]:
    return line.ratios or [mine for mine, _ in line.pairs]


def _error(values: Sequence[float]) -> float:
    """The standard error of a median, as a share of it: that of the mean of logarithms, times 1.2533."""
    known = [math.log(value) for value in values if value > 0]
    return 1.2533 * statistics.stdev(known) / math.sqrt(len(known)) if len(known) >= FEWEST else 0.0


# --- as JSON


def to_json(lines: Sequence[AnyLine]) -> list[dict[str, Any]]:
    """Lines as JSON holds them: with every pair, and the medians for whoever reads it."""
    return [
        asdict(line)
        | ({} if isinstance(line, Told) else {"ours": line.ours, "theirs": line.theirs, "ratio": line.ratio})
        | {"met": line.met}
        for line in lines
    ]


def from_json(lines: Sequence[Mapping[str, Any]]) -> list[AnyLine]:
    """The lines that `to_json` gave. Raises ValueError for what it did not give."""
    return [_line(one) for one in lines]


def _line(one: Mapping[str, Any]) -> AnyLine:
    try:
        if "pairs" not in one:
            return Told(**{field.name: one[field.name] for field in fields(Told)})
        known = {field.name: one[field.name] for field in fields(Line)}
        known["pairs"] = tuple((mine, other) for mine, other in known["pairs"])
        known["goal"] = None if known["goal"] is None else Goal(**known["goal"])
        return Line(**known)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"expected a line as this program writes them, got {dict(one)!r:.200}; measure again"
        ) from error
