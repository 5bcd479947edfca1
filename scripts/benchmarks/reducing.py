"""Shortening vectors, and planning on a sample."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from vecbridge import reduction
from vecbridge.types import Shorten

from .bench import Bench, size
from .measure import Line, least, most, pairs, timed, turns

Floats = NDArray[np.float32]


def _falling(rows: int, dim: int) -> Floats:
    """Vectors whose spectrum falls slowly, as that of real texts: float32 (rows, dim), unit length."""
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((rows, dim), dtype=np.float32)
    sample *= np.arange(1, dim + 1, dtype=np.float32) ** -0.4
    sample /= np.linalg.norm(sample, axis=1, keepdims=True)
    return sample


def reduce(bench: Bench) -> list[Line]:
    """PCA: fitting it, and applying it, beside the matrix products that it cannot do without."""
    dim = bench.wide(3584)[-1]
    rows, short = bench.many(10_000), max(dim // 7, 1)
    sample = _falling(max(rows, short), dim)
    count = min(bench.rounds, 3)
    wanted = Shorten("pca", short)
    fitted = reduction.fit(wanted, source=dim, metric="cosine", sample=sample)
    assert fitted.basis is not None
    basis, out = fitted.basis, np.empty((len(sample), short), np.float32)

    def by_hand() -> Floats:
        # unit vectors already: the mean stays in, as vecbridge's does by default
        gram = sample.T @ sample
        _, axes = scipy.linalg.eigh(gram, subset_by_index=(dim - short, dim - 1), overwrite_a=True)
        return np.ascontiguousarray(axes.T[::-1])

    def energy(axes: Floats) -> float:
        return float(np.square(sample @ axes.T).sum() / np.square(sample).sum())

    kept, theirs = energy(basis), energy(by_hand())
    found = turns(
        {
            "fit": lambda turn: timed(
                lambda: reduction.fit(wanted, source=dim, metric="cosine", sample=sample)
            ),
            "hand": lambda turn: timed(by_hand),
            "gram": lambda turn: timed(lambda: sample.T @ sample),
        },
        count,
    )
    applied = turns(
        {
            "ours": lambda turn: timed(lambda: fitted.apply(sample)),
            "gemm": lambda turn: timed(lambda: np.matmul(sample, basis.T, out=out)),
        },
        2 * bench.rounds,
    )
    fit, products = f"fit a PCA to {short:,} of {size(len(sample), dim)}", 2 * len(sample) * short * dim / 1e9
    note = f"energy kept {kept:.4f} / {theirs:.4f}"
    return [
        Line(
            "reduction",
            fit,
            "s",
            "one Gram matrix and scipy's eigh",
            pairs(found, "fit", "hand"),
            goal=most(1.0),
            note=note,
        ),
        Line("reduction", fit, "s", "the Gram matrix alone", pairs(found, "fit", "gram")),
        Line(
            "reduction",
            f"apply it to {size(len(sample), dim)}",
            "Gflop/s",
            "numpy GEMM alone",
            pairs(applied, "ours", "gemm", per=products),
            more=True,
            goal=least(0.9),
        ),
        *_memory(bench, dim, short),
    ]


# what a process says at its end: seconds, and the most memory beyond what it began with
WATCHED = """
import re, sys, threading, time
import numpy as np
{imports}
status = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
{ready}
before = most = status()
done = threading.Event()
def watch():
    global most
    while not done.wait(0.01):
        most = max(most, status())
watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
{work}
taken = time.perf_counter() - start
done.set()
watcher.join()
print(taken, (most - before) * 1024 / 1e6)
"""
SHORTEN = {
    "imports": "from vecbridge import reduction\nfrom vecbridge.types import Shorten\n"
    "import vecbridge.axes, scipy.linalg, sklearn.decomposition",
    "ready": "matrix = np.load(sys.argv[1], mmap_mode='r')\nsome = np.array(matrix[:2 * int(sys.argv[2])])\n"
    "shorten, dim = Shorten('pca', int(sys.argv[2])), matrix.shape[1]\n"
    "fitted = reduction.fit(shorten, source=dim, metric='cosine', sample=some)",
    "work": "for at in range(0, int(sys.argv[3]), 1000):\n"
    "    at %= len(matrix)\n"
    "    fitted.apply(np.asarray(matrix[at:at + 1000]))",
}
PLAN = {
    "imports": "import vecbridge, sklearn.decomposition, vecbridge.measuring",
    "ready": "sample = np.load(sys.argv[1])",
    "work": "vecbridge.plan(sample.shape[1], rows=1_000_000, on='pgvector', nested=(sample.shape[1] // 4,), "
    "recall=0.9, sample=sample)",
}


def _watched(program: dict[str, str], *arguments: object) -> tuple[float, float]:
    command = [sys.executable, "-c", WATCHED.format(**program), *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, memory = map(float, done.stdout.split()[-2:])
    return seconds, memory


def _memory(bench: Bench, dim: int, short: int) -> list[Line]:
    """Peak memory of shortening a stream of rows, batch by batch, and one ten times as long."""
    with bench.place("reduction") as folder:
        folder.mkdir()
        path = folder / "rows.npy"
        np.save(path, _falling(max(bench.many(4_000) // 2, 2 * short), dim))
        sizes = [bench.many(2_000), 10 * bench.many(2_000)]
        peaks = [_watched(SHORTEN, path, short, rows)[1] for rows in sizes]
    return [
        Line(
            "reduction",
            f"memory beyond the basis, shortening {size(rows, dim)} in batches of 1,000",
            "MB",
            pairs=((peak, None),),
            goal=most(400, ours=True),
        )
        for rows, peak in zip(sizes, peaks, strict=True)
    ]


def plan(bench: Bench) -> list[Line]:
    """Time and memory of planning with a sample, in a process of its own."""
    dim, rows = bench.wide(3584)[-1], bench.many(10_000)
    with bench.place("plan") as folder:
        folder.mkdir()
        path: Path = folder / "sample.npy"
        np.save(path, _falling(rows, dim))
        taken = [_watched(PLAN, path) for _ in range(min(bench.rounds, 3))]
    what = f"with a sample of {size(rows, dim)}"
    times, peaks = (tuple((one[n], None) for one in taken) for n in (0, 1))
    return [
        Line("plan", f"time {what}", "s", pairs=times, goal=most(30, ours=True)),
        Line(
            "plan",
            f"memory beyond the sample, {what}",
            "MB",
            pairs=peaks,
            note=f"the sample has {rows * dim * 4 / 1e6:,.0f} MB",
        ),
    ]
