"""Starting: importing the package, and planning on the command line, as whole processes."""

from __future__ import annotations

import subprocess
import sys

from .bench import Bench
from .measure import Line, most, timed, turns

PLAN = ("-m", "vecbridge", "plan", "--dim", "3584", "--rows", "1000000", "--on", "pgvector")


def start(bench: Bench) -> list[Line]:
    """Wall time, bare Python beside both in turn."""

    def run(*arguments: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True))

    found = turns(
        {
            "bare": lambda turn: run("-c", "pass"),
            "import": lambda turn: run("-c", "import vecbridge"),
            "plan": lambda turn: run(*PLAN),
        },
        2 * bench.rounds + 1,
    )
    bare, imported, planned = (found[name] for name in ("bare", "import", "plan"))
    more = tuple(((b - a) * 1e3, None) for a, b in zip(bare, imported, strict=True))
    return [
        Line("start", "import vecbridge, over bare Python", "ms", pairs=more, goal=most(200, ours=True)),
        Line(
            "start",
            "vecbridge plan, whole process",
            "ms",
            "python -c pass",
            tuple((b * 1e3, a * 1e3) for a, b in zip(bare, planned, strict=True)),
            goal=most(500, ours=True),
        ),
    ]
