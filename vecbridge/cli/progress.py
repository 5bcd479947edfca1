"""How far a long job has come, on standard error: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from . import output
from .render import console

# between two lines of one stage where there is no terminal
_SECONDS = 10.0


class _Rate(ProgressColumn):
    """Units a second, as over the last half minute."""

    def render(self, task: Task) -> Text:
        """The rate, blank until there is one."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{_rate(speed)}/s", style="progress.data.speed")


class Show:
    """A vecbridge progress callback; `console` prints above the bars. It is what `shown` gives."""

    def __init__(self, console: Console, bars: Progress | None, *, quiet: bool) -> None:
        self.console = console
        self._bars = bars
        self._quiet = quiet
        self._tasks: dict[str, TaskID] = {}
        # when a stage began and where it stood then, and when it was last told of
        self._begun: dict[str, tuple[float, int]] = {}
        self._told: dict[str, float] = {}
        self._finished: set[str] = set()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` units of `stage` are done."""
        if self._quiet:
            return
        stage = output.line(stage, 30)
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
            return
        now = monotonic()
        begun, first = self._begun.setdefault(stage, (now, done))
        finished = total is not None and done >= total
        if finished and stage not in self._finished:
            self._finished.add(stage)
        elif finished or now - self._told.setdefault(stage, now) < _SECONDS:
            return
        self._told[stage] = now
        text = f"{stage}: {done:,}" if total is None else f"{stage}: {done:,} of {total:,}"
        if now - begun > 1 and done > first:
            speed = (done - first) / (now - begun)
            text += f", {_rate(speed)}/s"
            if total is not None and not finished:
                text += f", {_span((total - done) / speed)} left"
        output.say(text)


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def shown(*, quiet: bool) -> Iterator[Show]:
    """Progress on standard error while the block runs."""
    out = console(sys.stderr)
    if quiet or not out.is_terminal:
        yield Show(out, None, quiet=quiet)
        return
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out) as bars:
        yield Show(out, bars, quiet=False)
