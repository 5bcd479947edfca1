"""vecbridge beside the same work done by hand and by others, measured in turn in one run; a table for each
job.

What is fair, and holds for every line:

- both sides have the same rows, the same k, the same kind of index with the same search width, one server;
  what they found is compared with exact search: recall stands beside every search, theirs after ours;
- both commit after the same rows and are durable then: fsync is on, nothing is unlogged;
- who goes first rotates from turn to turn, so that neither side has the warmer caches or the emptier disk;
- one turn (one round of batches where rows are loaded) goes before the first that counts; where a process is
  what is measured, nothing is warmed;
- what is done by hand is the best that we can write for that one purpose: bytes encoded before the clock
  starts, statements prepared, settings made once for the session. Where there are several good
  ways, the fastest that finds enough is taken;
- others (`--peers`) are used as they document it, with vectors already made into what they take;
- every figure is a median, every ratio the median of ratios pair by pair, with its quartiles beside it: a
  machine that slows down for a while slows down both sides. "met" and "MISSED" follow from the figures alone.

Data are clustered random vectors. Nothing here reaches the network.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from benchmarks import (
    adopted,
    building,
    client,
    costs,
    growing,
    loading,
    moving,
    peers,
    promises,
    reducing,
    searching,
    starting,
    tables,
    texts,
)
from benchmarks.bench import Bench
from benchmarks.measure import AnyLine, Line
from benchmarks.rows import SEED
from rich.console import Console

ALL = "all of it"  # of a job that failed
RULES = "medians; ratios pair by pair; fsync on; commits of 1,000 rows on all sides; who goes first rotates"


JOBS: dict[str, Callable[[Bench], list[AnyLine]]] = {
    "start": starting.start,
    "ingest": loading.ingest,
    "upsert": loading.upsert,
    "search": searching.search,
    "batch": searching.batch,
    "filtered": searching.filtered,
    "index": building.index,
    "flat": searching.flat,
    "client": client.client,
    "reduction": reducing.reduce,
    "plan": reducing.plan,
    "parquet": loading.parquet,
    "memory": growing.memory,
    "growth": growing.growth,
    "adopt": adopted.adopt,
    "copy": moving.copy,
    "texts": texts.texts,
    "costs": costs.costs,
    "promises": promises.promises,
}
# promises takes longer than all others together, and costs want a machine to themselves
DEFAULT = tuple(name for name in JOBS if name not in ("costs", "promises"))


def measured(bench: Bench, names: list[str], console: Console) -> Iterator[AnyLine]:
    """The lines of these jobs, in their usual order, as soon as a job is done."""
    for name, job in JOBS.items():
        if name in names:
            try:
                with heartbeat(console, name):
                    lines = job(bench)
            except Exception as error:  # noqa: BLE001 -- what the other jobs found is not lost
                traceback.print_exc()
                lines = [Line(name, ALL, why=f"{type(error).__name__}: {error}")]
            yield from lines


@contextmanager
def heartbeat(console: Console, job: str) -> Iterator[None]:
    """Says what is being measured, that it is still going on, and how long it took."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(60):
            console.print(f"  … still measuring {job}", style="dim")

    console.print(f"measuring {job}", style="dim")
    start = time.perf_counter()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    console.print(f"  {job} took {time.perf_counter() - start:.0f} s", style="dim")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--jobs",
        nargs="+",
        choices=tuple(JOBS),
        default=DEFAULT,
        help="measure these only (default: all but costs and promises)",
    )
    parser.add_argument("--rows", type=int, help="so many rows; each job has its own number if not given")
    parser.add_argument(
        "--dim", type=int, nargs="+", help="so many dimensions; jobs of one size take the last"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--peers", action="store_true", help="measure others beside it; scripts/bench installs them"
    )
    parser.add_argument("--json", type=Path, help="also write every single figure to this file")
    parser.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("OLD", "NEW"),
        help="measure nothing, compare two such files",
    )
    parser.add_argument(
        "--markdown",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing, print the tables of such files as Markdown",
    )
    parser.add_argument(
        "--glosses",
        type=Path,
        help="texts: these definitions of WordNet (JSON lines) instead of the package's",
    )
    parser.add_argument(
        "--folder", type=Path, help="costs, promises: keep embedded texts here, for the next time"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="also print every single measurement of promises"
    )
    options = parser.parse_args(arguments)
    for name, least in (("rows", 200), ("rounds", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"expected --{name} of {least} or more, got {value}")
    if options.dim and min(options.dim) < 16:
        parser.error(f"expected --dim of 16 or more, got {min(options.dim)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the jobs and print the tables. 1 if a goal is missed, or if a comparison finds something worse."""
    options = parsed(arguments)
    if kept := options.compare or options.markdown:
        try:
            runs = [tables.read(path) for path in kept]
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
        if options.compare:
            return 1 if tables.changes(*runs) else 0
        print("\n".join(map(tables.markdown, runs)), end="")
        return 0
    if options.peers:
        peers.silenced()
        logging.disable(logging.WARNING)
    # so that the server is stopped and the folder deleted, whoever ends the run
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    console, lines = Console(stderr=True), list[AnyLine]()
    with (
        tempfile.TemporaryDirectory(prefix="vecbridge-bench-", ignore_cleanup_errors=True) as name,
        Bench(
            Path(name),
            rounds=options.rounds,
            rows=options.rows,
            dims=tuple(options.dim) if options.dim else None,
            peers=options.peers,
            tell=lambda text: console.print(f"  {text}", style="dim", markup=False),
            glosses=options.glosses,
            keep=options.folder,
        ) as bench,
    ):
        with psycopg.connect(bench.conninfo) as connection:
            server = connection.info.parameter_status("server_version")
        about = {
            "machine": tables.machine(),
            "versions": tables.versions([peer.name for peer in peers.PEERS] if options.peers else [])
            | {"PostgreSQL": server},
            "seed": SEED,
            "rounds": options.rounds,
            "rules": RULES,
        }
        try:
            for line in measured(bench, options.jobs, console):
                lines.append(line)
        finally:
            # whatever ends the run: what was measured until then is worth something
            details = bench.details
            for said in details.pop("said", []) if options.verbose else ():
                console.print(said, markup=False)
            tables.show(lines, about)
            if options.json:
                tables.write(options.json, lines, about, details)
    failed = any(isinstance(line, Line) and line.what == ALL for line in lines)
    return 1 if failed or any(line.met is False for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
