"""How far a long job has come, on standard error: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from . import output
from .render import console

# between two lines of one stage where there is no terminal
_SECONDS = 10.0


class Show:
    """A vecbridge progress callback; `console` prints above the bars. It is what `shown` gives."""

    def __init__(self, console: Console, bars: Progress | None, *, quiet: bool) -> None:
        self.console = console
        self._bars = bars
        self._quiet = quiet
        self._tasks: dict[str, TaskID] = {}
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
        finished = total is not None and done >= total
        if finished and stage not in self._finished:
            self._finished.add(stage)
        elif finished or monotonic() - self._told.setdefault(stage, monotonic()) < _SECONDS:
            return
        self._told[stage] = monotonic()
        output.say(f"{stage}: {done:,}" if total is None else f"{stage}: {done:,} of {total:,}")


@contextmanager
def shown(*, quiet: bool) -> Iterator[Show]:
    """Progress on standard error while the block runs."""
    out = console(sys.stderr)
    if quiet or not out.is_terminal:
        yield Show(out, None, quiet=quiet)
        return
    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out) as bars:
        yield Show(out, bars, quiet=False)
