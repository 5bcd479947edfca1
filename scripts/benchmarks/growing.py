"""Memory while ingesting, and whether loading stays as fast and as small while a collection grows."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import vecbridge

from .bench import BATCH, Bench, size
from .measure import Line, most
from .rows import clustered

# what an ingesting process says at its end: seconds, its most resident memory, the most that no file backs
INGEST = """
import re, sys, threading, time, vecbridge
source, to, name = sys.argv[1:]
status = lambda key: int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
store = vecbridge.connect(to)
most, done = 0, threading.Event()
def watch():
    global most
    while not done.wait(0.01):
        most = max(most, status("RssAnon"))
watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
vecbridge.ingest(source, to=to, collection=name, layout=vecbridge.Layout(), evaluate=False, cache=False)
taken = time.perf_counter() - start
done.set()
watcher.join()
store.close()
print(taken, status("VmHWM") / 1024, most / 1024)
"""


def source(folder: Path, rows: int, dim: int) -> Path:
    """Vectors in a .npy file with their records beside it, written a batch at a time."""
    matrix = folder / f"source-{rows}.npy"
    shape = np.lib.format.open_memmap(matrix, mode="w+", dtype=np.float32, shape=(rows, dim))
    with matrix.with_suffix(".jsonl").open("w") as file:
        for at in range(0, rows, BATCH):
            some = min(BATCH, rows - at)
            shape[at : at + some] = clustered(some, dim, seed=at)
            for n in range(at, at + some):
                entry = {
                    "id": f"record-{n:09d}",
                    "text": f"document {n} " + "lorem ipsum dolor sit amet " * 7,
                }
                file.write(json.dumps(entry | {"topic": f"topic-{n % 40}", "senses": n % 7}) + "\n")
    shape.flush()
    return matrix


def child(matrix: Path, to: str, name: str) -> tuple[float, float, float]:
    """Seconds, peak of resident memory in MB and peak of that without files, of a process that ingests."""
    command = [sys.executable, "-c", INGEST, str(matrix), to, name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, whole, own = map(float, done.stdout.split()[-3:])
    with vecbridge.connect(to) as store:
        store.drop(name)
    return seconds, whole * 1.048576, own * 1.048576


def _places(bench: Bench, folder: Path) -> dict[str, str]:
    return {
        "pgvector": bench.postgres,
        "Edge": f"qdrant:{folder / 'edge'}",
        "flat": f"flat:{folder / 'flat'}",
    }


def memory(bench: Bench) -> list[Line]:
    """Peak resident memory of an ingesting process, for a source and one three times as large.

    From /proc, because getrusage's figure counts this process's own memory at the time of the fork. Edge maps
    its files into memory, where they count as resident until the system wants the room: not counted there.
    """
    dim, fewest = bench.wide(3584)[-1], bench.many(10_000)
    lines = []
    for rows in (fewest, 3 * fewest):
        with bench.place("memory") as folder:
            folder.mkdir()
            matrix = source(folder, rows, dim)
            for place, to in _places(bench, folder).items():
                _, whole, own = child(matrix, to, f"memory{rows}")
                lines.append(
                    Line(
                        "memory",
                        f"peak of a process that ingests {size(rows, dim)} into {place}",
                        "MB",
                        pairs=((own if place == "Edge" else whole, None),),
                        goal=most(400, ours=True),
                        note=f"{whole:,.0f} MB with mapped files" if place == "Edge" else "",
                    )
                )
    return lines


def growth(bench: Bench) -> list[Line]:
    """Time for a row and peak memory at each size, ten times as many rows each, to those of the smallest.

    A process of its own for each size. `--rows` tells how far to go.
    """
    dim, largest = bench.wide(384)[-1], bench.many(100_000)
    sizes = [rows for rows in (10_000, 100_000, 1_000_000) if rows < largest] or [largest // 10]
    lines: list[Line] = []
    smallest: dict[str, tuple[float, float]] = {}
    for rows in (*sizes, largest):
        with bench.place("growth") as folder:
            folder.mkdir()
            matrix = source(folder, rows, dim)
            for place, to in _places(bench, folder).items():
                seconds, whole, own = child(matrix, to, f"growth{rows}")
                figures = seconds / rows * 1e6, own if place == "Edge" else whole
                before = smallest.setdefault(place, figures)
                for n, (what, unit) in enumerate((("time for a row", "µs"), ("peak memory", "MB"))):
                    line = Line("growth", f"{what}, {size(rows, dim)} into {place}", unit)
                    if rows == sizes[0]:
                        lines.append(replace(line, pairs=((figures[n], None),)))
                    else:
                        against = f"of {size(sizes[0], dim)}"
                        lines.append(
                            replace(line, against=against, pairs=((figures[n], before[n]),), goal=most(1.2))
                        )
    return lines
