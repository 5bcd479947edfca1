"""What a run prints: a table for each job, and what changed between two runs; and the file that keeps it."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .measure import AnyLine, Change, Line, compared, from_json, to_json

FORMAT = 1
PACKAGES = (
    "numpy",
    "psycopg",
    "qdrant-edge-py",
    "qdrant-client",
    "pyarrow",
    "scikit-learn",
    "simsimd",
    "numkong",
)
WIDTH = 150


def machine() -> dict[str, Any]:
    """The processor, how many cores and bytes of memory, and the system."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return {
        "processor": found[1] if found else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(others: Sequence[str] = ()) -> dict[str, str]:
    """Of Python, and of each package that is installed."""
    found = {"python": platform.python_version()}
    for name in ("vecbridge", *PACKAGES, *others):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def heading(about: dict[str, Any]) -> str:
    """Where and how it was measured, in a few lines."""
    where = about["machine"]
    lines = [
        ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        f"{where['processor']}, {where['cores']} cores, {where['memory'] / 1e9:.0f} GB, {where['system']}",
        f"seed {about['seed']}, {about['rounds']} rounds; {about['rules']}",
    ]
    return "\n".join(lines)


def show(lines: Sequence[AnyLine], about: dict[str, Any], *, console: Console | None = None) -> None:
    """Print a table for each job, in the order in which they were measured."""
    out = console or _console()
    out.print(heading(about), markup=False)
    for job, some in groupby(lines, key=lambda line: line.job):
        table = Table(title=job, title_justify="left", title_style="bold")
        for column in ("what", "vecbridge", "beside", "ratio [quartiles]", "goal", ""):
            table.add_column(column, overflow="fold")
        for line in some:
            # brackets in a reason or a ratio are no markup
            table.add_row(*(cell.replace("[", "\\[") for cell in line.cells()))
        out.print(table)


def markdown(lines: Sequence[AnyLine]) -> str:
    """The same tables, as documents hold them."""
    parts = []
    for job, some in groupby(lines, key=lambda line: line.job):
        shown = ["| job | vecbridge | beside | ratio | goal |  |", "|---|---|---|---|---|---|"]
        for line in some:
            cells = (" ".join(cell.split()).replace("|", "\\|") for cell in line.cells())
            shown.append(f"| {' | '.join(cells)} |")
        parts.append(f"### {job}\n\n" + "\n".join(shown) + "\n")
    return "\n".join(parts)


def changes(
    old: Sequence[AnyLine], new: Sequence[AnyLine], *, console: Console | None = None
) -> list[Change]:
    """Print each line in both runs, and return what got worse by more than noise."""
    out = console or _console()
    found = compared(old, new)
    table = Table(title="new to old; of ratios where there are any", title_justify="left")
    for column in ("job", "line", "old", "new", "by", "noise", ""):
        table.add_column(column, overflow="fold")
    for one in found:
        line = one.line
        unit = "times" if line.ratios else line.unit
        noise = "?" if one.noise is None else f"±{one.noise:.0%}"
        what = f"{line.what} ({line.against})" if line.against else line.what
        table.add_row(
            line.job,
            what,
            f"{one.old:.3g} {unit}",
            f"{one.new:.3g} {unit}",
            f"{one.by:.2f}",
            noise,
            one.verdict,
        )
    out.print(table)
    for title, some, others in (("only in the old run", old, new), ("only in the new run", new, old)):
        known = {line.key for line in others if not _silent(line)}
        for line in some:
            if not _silent(line) and line.key not in known:
                out.print(f"{title}: {line.job}: {line.what} {_against(line)}".rstrip(), markup=False)
    before = {line.key: line.met for line in old}
    for line in new:
        if line.met is not None and before.get(line.key) is not None and before[line.key] != line.met:
            out.print(f"{'now met' if line.met else 'no longer met'}: {line.job}: {line.what}", markup=False)
    worse = [one for one in found if one.verdict == "worse"]
    unknown = sum(one.verdict == "unknown" for one in found)
    out.print(
        f"{len(found)} lines in both: {len(worse)} worse, "
        f"{sum(one.verdict == 'better' for one in found)} better, {unknown} with too few pairs to tell",
    )
    return worse


def _silent(line: AnyLine) -> bool:
    return isinstance(line, Line) and not line.pairs


def _against(line: AnyLine) -> str:
    return f"({line.against})" if isinstance(line, Line) and line.against else ""


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def write(path: Path, lines: Sequence[AnyLine], about: dict[str, Any], details: dict[str, Any]) -> None:
    """Keep a run: every single pair of every line."""
    content = {"format": FORMAT, **about, "lines": to_json(lines), **details}
    path.write_text(json.dumps(content, indent=1) + "\n")


def read(path: Path) -> list[AnyLine]:
    """The lines of a run that `write` kept. Raises ValueError for anything else."""
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(
                f"expected format {FORMAT}, got {content['format']!r}; measure again with this program"
            )
        lines = content["lines"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"expected a file that scripts/bench --json wrote, got {path} ({type(error).__name__}: {error}); "
            f"measure again"
        ) from error
    return from_json(lines)
