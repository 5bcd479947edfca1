"""The smallest search width that finds enough: found on one half of the queries, confirmed on the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from . import evaluate, widths
from .backends import Table
from .errors import IndexFailure, InputError
from .limits import Limits
from .manifest import Tuned
from .recall import Recall
from .types import Layout
from .widths import Grid

if TYPE_CHECKING:
    from .types import Floats, Progress

# oversamplings of which each gets the narrowest walk that goes with it, and the fastest pair wins
_COLUMNS = 3
_CONFIRMATIONS = 5
# how much wider walks were that unknown vectors needed than those that sufficed for blends of known ones
_SPARE = 1.5
# queries of each half that are asked however little time there is
_FEWEST = 10
# of the time, for exact search, and until something is chosen; the rest is for confirming it
_EXACT, _CHOOSING = 0.5, 0.85
# what a width may find less than the widest and still count as finding as much
_SAME = 0.002
# the walk of Qdrant where nothing else is said: its default ef_construct
_PLAIN = 100
_SWEPT = 10


@dataclass(frozen=True, slots=True)
class Step:
    """One search width, measured: `layout` differs from the collection's in `ef_search`, `probes`,
    `oversample`.

    Latencies of one query in milliseconds. `short`: queries that returned fewer hits than exact search.
    """

    layout: Layout
    recall: Recall
    p50_ms: float
    p95_ms: float
    short: int


@dataclass(frozen=True, slots=True)
class Tuning:
    """What tuning found. `tuned` is kept with the collection; its `met` tells whether the target was
    confirmed.

    `before` and `after`: the layouts with the search width that was and that now is. `steps`: every width
    that was measured, in that order, on the choosing half. `confirmations`: widths that were tried on the
    other half, the last of which is `after` where the target was met. `p50_ms`: what a search takes with
    `after`; `exact_p50_ms`: what exact search takes. `against`: what exact search saw ("stored vectors", or
    vectors shortened at the door, whose own loss is then no part of the recall). `advice`, in sentences: what
    would meet the target where it was not met, what was left undone where time ran out, and where exact
    search is no slower or the walk makes no difference, that; else empty.
    """

    tuned: Tuned
    before: Layout
    after: Layout
    steps: tuple[Step, ...]
    confirmations: int
    p50_ms: float
    exact_p50_ms: float
    against: str
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What was found, ready for JSON."""
        return {**asdict(self), "met": self.tuned.met}

    def __str__(self) -> str:
        tuned = self.tuned
        found = f"recall@{tuned.k} {tuned.recall} on {tuned.recall.queries} queries"
        said = f"{'confirmed' if tuned.met else 'NOT met'}: {found}, {tuned.target:g} wanted"
        if self.after.index is None:
            return f"{said}; every search is exact on {self.against}"
        return ". ".join(
            [f"{said}, with {widths.shown(self.after)} (before: {widths.shown(self.before)})", *self.advice]
        )


def tune(
    table: Table,
    *,
    recall: float,
    k: int,
    queries: Floats | None,
    sample: int,
    seed: int,
    seconds: float | None,
    limits: Limits,
    progress: Progress | None,
) -> Tuning:
    """Find the search width that meets `recall`, keep it with the collection, and say what was found.

    `queries`: float32 (m, stored dim), or None to take `sample` stored records, and as many blends of them
    where a graph is walked; both kinds have to find enough (see `evaluate.ask`). `seed` halves them. On the
    first half the narrowest width is looked for that meets the target by one standard error, or else by its
    mean; where oversampling and the walk can be traded for each other, the pair of the least median latency
    wins: which of several sufficient pairs that is may change from run to run, all else depends on content
    and seed. Where no queries were given, a walk is made half as wide again, as unknown vectors may need
    that. The other half has no part in that. It confirms the choice; if it finds too little, a wider one
    is confirmed, one step on, then two, then four, and last the widest. The more were tried, the less is the
    last one an independent judgement. What is kept where none meets the target is the width that found most,
    and `Tuned.met` is false. Where the narrowest walk finds exactly what the widest finds, the walk stays as
    it was.

    Without an index there is nothing to tune, and the target is met by definition. The recall of vectors
    shortened at the door is measured against the shortened ones.

    After `seconds` what was found so far is confirmed, and the advice says what was left undone; ten queries
    of each half are asked in any case. `progress` hears of the stage "tuning" in queries asked.

    With stored records as queries, k + 1 hits are asked for and one falls away: `oversample` - 1 candidates
    more are compared than a search for k compares, with oversampling of 4 and k of 10 one in ten.

    Raises InputError where there are less than two queries or the target is no share, IndexFailure where the
    index is not built or not used; LayoutChanged where the collection was laid out anew meanwhile.
    """
    if isinstance(recall, bool) or not isinstance(recall, int | float) or not 0 < recall <= 1:
        raise InputError(f"expected a recall above 0, up to 1, such as 0.95, got {recall!r:.40}")
    started = perf_counter()
    bench = _ready(table, k=k, queries=queries, sample=sample, seed=seed, limits=limits)
    manifest, asked, grid = table.manifest, bench.queries, bench.grid
    before = manifest.layout
    tell = _Told(progress, len(asked), grid)
    exact = evaluate.truth(
        table,
        asked.rows(_order(asked, seed)),
        end=_share(started, seconds, _EXACT),
        fewest=2 * _FEWEST,
        heard=lambda done: tell.more(1),
    )
    # every second one: however far exact search got, the halves are alike
    choosing, confirming = exact.rows(range(0, len(exact), 2)), exact.rows(range(1, len(exact), 2))
    if not any(confirming.there):
        raise InputError(
            f"collection {manifest.name!r} has become empty meanwhile: there is nothing to search"
        )
    notes: list[str] = []
    if len(exact) < len(asked):
        notes.append(
            f"Time ran out after {len(exact)} of {len(asked)} queries had been answered by exact search, so "
            f"that the recall is less certain than it could be; allow more than {seconds:g} s"
        )
    exact_p50, exact_p95 = (evaluate.percentile(exact.exact_ms, percent) for percent in (50, 95))
    steps: list[Step] = []
    tried: list[tuple[Step, int]] = []
    after = Step(before, Recall(1.0, 1.0, 1.0, len(exact)), exact_p50, exact_p95, 0)
    if before.index is not None:
        trials = _Trials(table, choosing, _share(started, seconds, _CHOOSING), tell)
        chosen, enough = _choose(trials, grid, recall)
        steps = trials.steps
        if trials.stopped:
            notes.append(
                f"Time ran out after {len(steps)} widths had been measured, so that a narrower one may do as "
                f"well; allow more than {seconds:g} s"
            )
        elif chosen is not None and enough and _idle(trials, grid, chosen):
            chosen = _planned(chosen, before)
            notes.append(
                "Every width finds the same, as if the store compared all records, which some do while they "
                "are few; so the width is as it was planned: tune again when there are more"
            )
        elif chosen is not None and enough and any(asked.blended):
            chosen = _spared(chosen, grid)
        end = _share(started, seconds, 1.0)
        tried = _confirm(table, confirming, chosen or before, grid if enough else (), recall, end, tell)
        after, answered = max(tried, key=lambda one: one[0].recall.mean)
        if answered < len(confirming):
            notes.append(
                f"Time ran out when {answered} of {len(confirming)} queries had confirmed it, so "
                f"that the recall is less certain than it could be; allow more than {seconds:g} s"
            )
    tuned = Tuned(recall, k, after.recall, table.count(), queries is None, seed)
    table.keep(replace(table.manifest, layout=after.layout, recall=recall, tuned=tuned))
    tell.end()
    return Tuning(
        tuned=tuned,
        before=before,
        after=after.layout,
        steps=tuple(steps),
        confirmations=len(tried),
        p50_ms=after.p50_ms,
        exact_p50_ms=exact_p50,
        against=evaluate.against(manifest),
        advice=(*notes, *(() if before.index is None else _advice(tuned, after, exact_p50))),
    )


def sweep(
    table: Table,
    *,
    k: int,
    queries: Floats | None,
    sample: int,
    seed: int,
    seconds: float | None,
    limits: Limits,
) -> tuple[Step, ...]:
    """Recall and latency at some ten search widths, the narrowest first, with the oversampling that is set.

    For an index that is scanned it is the oversampling that varies; without an index there is nothing. The
    collection's own width is among them. After `seconds` no further width is begun; one is measured in any
    case. Nothing is stored. Queries and errors are those of `tune`.
    """
    started = perf_counter()
    bench = _ready(table, k=k, queries=queries, sample=sample, seed=seed, limits=limits)
    layout = table.manifest.layout
    if layout.index is None:
        return ()
    if layout.index.kind == "scan":
        ladder = [column[-1] for column in bench.grid]
    else:
        ladder = list(widths.column(layout, layout.oversample, asked=bench.queries.asked, limits=limits))
    thin = ladder[:: max(1, math.ceil(len(ladder) / _SWEPT))]
    shown = sorted({*thin, ladder[-1], layout}, key=lambda one: (widths.walk(one), one.oversample))
    exact = evaluate.truth(table, bench.queries, end=_share(started, seconds, _EXACT), fewest=2 * _FEWEST)
    steps: list[Step] = []
    for one in shown:
        if steps and perf_counter() >= _share(started, seconds, 1.0):
            break
        steps.append(_step(one, evaluate.measure(table.searched(one), exact), k))
    return tuple(steps)


def _order(queries: evaluate.Queries, seed: int) -> list[int]:
    """The queries in random order, but two of a kind after the other, so that halves get as many of each."""
    order = np.random.default_rng(seed).permutation(len(queries))
    blended = np.array(queries.blended, dtype=bool)[order]
    nth = np.where(blended, blended.cumsum(), (~blended).cumsum()) - 1
    return [int(row) for row in order[np.lexsort((blended, nth // 2))]]


@dataclass(frozen=True, slots=True)
class _Bench:
    queries: evaluate.Queries
    grid: Grid


def _ready(table: Table, *, k: int, queries: Floats | None, sample: int, seed: int, limits: Limits) -> _Bench:
    """What to ask and which widths there are, once it is clear that something can be measured."""
    manifest = table.manifest
    rows = table.count()
    if not rows:
        raise InputError(
            f"collection {manifest.name!r} is empty: there is nothing to search; load it, then tune it"
        )
    state = table.index_state()
    if state.status in ("missing", "invalid"):
        raise IndexFailure(
            f"expected the index of {manifest.name!r} to be ready, it is {state.status}"
            f"{f' ({state.detail})' if state.detail else ''}; build it with build_index, then tune it"
        )
    if state.status == "ready" and not state.used:
        raise IndexFailure(
            f"expected searches of {manifest.name!r} to run on its index, they do not"
            f"{f' ({state.detail})' if state.detail else ''}; `vecbridge doctor` may tell why"
        )
    asked, _ = evaluate.ask(table, k=k, queries=queries, where=None, sample=sample, seed=seed)
    single = len(asked) - sum(asked.blended)
    if single < 2:
        raise InputError(
            f"expected 2 or more queries, of which one half chooses the search width and the other confirms "
            f"it, got {single} (the collection holds {rows} record{'s' * (rows != 1)}); some hundred are "
            f"better"
        )
    return _Bench(asked, widths.grid(manifest.layout, asked=asked.asked, rows=rows, limits=limits))


def _step(layout: Layout, found: evaluate.Measured, k: int) -> Step:
    return Step(
        layout,
        found.recall(k),
        evaluate.percentile(found.times_ms, 50),
        evaluate.percentile(found.times_ms, 95),
        found.short,
    )


class _TimeUp(Exception):
    """There is no time for another width."""


class _Trials:
    """Measures search widths on the same queries, each one once."""

    def __init__(self, table: Table, truth: evaluate.Truth, end: float, tell: _Told) -> None:
        self._table = table
        self._truth = truth
        self._end = end
        self._tell = tell
        self._sure: list[float] = []
        self._known: dict[Layout, int] = {}
        self.steps: list[Step] = []
        self.stopped = False

    def step(self, layout: Layout) -> int:
        """The place in `steps` of a width. Raises _TimeUp."""
        if layout not in self._known:
            found = evaluate.measure(self._table.searched(layout), self._truth, end=self._end)
            if found.asked < len(self._truth):
                # fewer queries than the others had: not to be compared with them
                self.stopped = True
                raise _TimeUp
            self._tell.more(found.asked)
            self._sure.append(min((_sure(shares) for shares in found.groups), default=1.0))
            self._known[layout] = len(self.steps)
            self.steps.append(_step(layout, found, self._truth.queries.k))
        return self._known[layout]

    def mean(self, layout: Layout) -> float:
        """The recall of a width."""
        return self.steps[self.step(layout)].recall.mean

    def sure(self, layout: Layout) -> float:
        """The recall of a width, less its standard error; of the kind of query for which that is less."""
        return self._sure[self.step(layout)]


def _sure(shares: Sequence[float]) -> float:
    return fmean(shares) - (stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0)


def _choose(trials: _Trials, grid: Grid, target: float) -> tuple[Layout | None, bool]:
    """The width to confirm, and whether it met the target; None where there was time for none at all."""
    widest = grid[-1][-1]
    try:
        # with the mean alone, every second choice would miss the target on other queries
        if trials.sure(widest) >= target:
            return _fastest(trials, grid, lambda one: trials.sure(one) >= target), True
        if trials.mean(widest) >= target:
            return _fastest(trials, grid, lambda one: trials.mean(one) >= target), True
        most = trials.mean(widest)
        return _fastest(trials, grid, lambda one: trials.mean(one) >= most - _SAME), False
    except _TimeUp:
        met = [step for step in trials.steps if trials.mean(step.layout) >= target]
        if met:
            return min(met, key=lambda step: step.p50_ms).layout, True
        best = max(trials.steps, key=lambda step: step.recall.mean, default=None)
        # whether wider ones do is not known
        return (None, True) if best is None else (best.layout, False)


def _fastest(trials: _Trials, grid: Grid, enough: Callable[[Layout], bool]) -> Layout:
    """Of the pairs of oversampling and walk that are enough and not needlessly wide, the fastest.

    The widest of all is enough. Recall grows with both, so each is found by halving.
    """
    first = widths.first(grid, lambda column: enough(column[-1]))
    assert first is not None
    found: list[Layout] = []
    for column in grid[first : first + _COLUMNS]:
        # more candidates only pay where the walk gets shorter
        shorter = [one for one in column if not found or widths.walk(one) < widths.walk(found[-1])]
        place = widths.first(shorter, enough)
        if place is not None:
            found.append(shorter[place])
    return min(found, key=lambda one: trials.steps[trials.step(one)].p50_ms)


def _idle(trials: _Trials, grid: Grid, chosen: Layout) -> bool:
    """Whether the walk makes no difference: the narrowest finds exactly what a far wider one finds.

    Then the queries say nothing of how wide it has to be. Qdrant, for one, does not use the graph of a
    segment below its full_scan_threshold of 10,000 kB: a width that was chosen there would be far too narrow
    on the day the collection grows beyond that.
    """
    column = _column(grid, chosen)
    if chosen.index is None or chosen.index.kind != "hnsw" or chosen != column[0]:
        return False
    if widths.walk(column[-1]) < 4 * widths.walk(chosen):
        return False
    try:
        return trials.mean(chosen) == trials.mean(column[-1])
    except _TimeUp:
        return False


def _column(grid: Grid, layout: Layout) -> Sequence[Layout]:
    """Every walk with the oversampling of a layout, the narrowest first."""
    return next(one for one in grid if one[0].oversample == layout.oversample)


def _spared(chosen: Layout, grid: Grid) -> Layout:
    """The layout chosen, with a walk that is wider by `_SPARE` where there is one."""
    column = _column(grid, chosen)
    return next((one for one in column if widths.walk(one) >= _SPARE * widths.walk(chosen)), column[-1])


def _planned(chosen: Layout, before: Layout) -> Layout:
    """The layout chosen, with a walk no narrower than before."""
    index, old = chosen.index, before.index
    assert index is not None
    assert old is not None
    return replace(chosen, index=replace(index, ef_search=max(index.ef_search, old.ef_search or _PLAIN)))


def _confirm(
    table: Table,
    truth: evaluate.Truth,
    chosen: Layout,
    grid: Grid,
    target: float,
    end: float,
    tell: _Told,
) -> list[tuple[Step, int]]:
    """What was tried on the other half, ever wider until it met the target, and on how many of its queries.

    Without a grid, only `chosen`.
    """
    tried: list[tuple[Step, int]] = []
    layout = chosen
    while True:
        found = evaluate.measure(table.searched(layout), truth, end=end, fewest=_FEWEST)
        tell.more(found.asked)
        step = _step(layout, found, truth.queries.k)
        tried.append((step, found.asked))
        if step.recall.mean >= target or len(tried) == _CONFIRMATIONS or perf_counter() >= end:
            break
        last = len(tried) == _CONFIRMATIONS - 1
        # one step, two, four: what misses by much is not to end with the widest
        for _ in range(1 if last else 2 ** (len(tried) - 1)):
            layout = widths.wider(grid, layout, widest=last) or layout
        if layout == step.layout:
            break
    return tried


def _advice(tuned: Tuned, after: Step, exact_ms: float) -> tuple[str, ...]:
    index = after.layout.index
    assert index is not None
    if tuned.met:
        if after.p50_ms < exact_ms:
            return ()
        return (
            f"Exact search, which finds all, takes {exact_ms:.1f} ms a query (p50) and this search "
            f"{after.p50_ms:.1f} ms: a layout without index serves these records better",
        )
    said = [
        f"The most that a search of this index was confirmed to find is recall@{tuned.k} {tuned.recall}, "
        f"with {widths.shown(after.layout)} in {after.p50_ms:.1f} ms a query (p50); {tuned.target:g} was "
        f"wanted",
        f"Exact search finds all of them and takes {exact_ms:.1f} ms a query (p50): search with exact=True, "
        f"or lay the collection out without index",
    ]
    if widths.reranks(after.layout):
        kept = f"{index.shorten.dim} dimensions of each vector" if index.shorten else "each vector"
        said.append(
            f"A layout whose index knows more of each vector may meet it: this one searches {kept} in "
            f"{index.element}"
        )
    if index.kind == "hnsw":
        said.append(
            f"So may a denser graph: this one was built with m={index.m} and "
            f"ef_construction={index.ef_construction}"
        )
    return tuple(said)


class _Told:
    """Tells how far tuning has come, in queries asked of as many as it may take at most."""

    def __init__(self, progress: Progress | None, queries: int, grid: Grid) -> None:
        halvings = len(grid).bit_length() + _COLUMNS * max(map(len, grid), default=0).bit_length() + 1
        self._progress = progress
        self._total = queries + (halvings + _COLUMNS + _CONFIRMATIONS) * math.ceil(queries / 2)
        self._done = 0
        self.more(0)

    def more(self, queries: int) -> None:
        self._done = min(self._done + queries, self._total)
        if self._progress is not None:
            self._progress("tuning", self._done, self._total)

    def end(self) -> None:
        self.more(self._total)


def _share(started: float, seconds: float | None, share: float) -> float:
    return math.inf if seconds is None else started + share * seconds
