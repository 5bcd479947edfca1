"""vecbridge beside the same work done by hand, measured in turn in one run; prints one table.

Every figure is a median over rounds, every ratio a median of ratios taken pair by pair, so that a machine
that slows down for a while slows down both sides. Data are clustered random vectors, seed 0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench_edge
import bench_ingest
import bench_plan
import bench_qdrant
import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb
from rich.console import Console
from rich.table import Table

import vecbridge
from vecbridge.backends import embedded
from vecbridge.types import Index, Layout

Floats = NDArray[np.float32]
SEED = 0
BATCH = 1000
JOBS = ("start", "flat", "edge", "qdrant", "pgvector", "memory", "ingest", "plan")


@dataclass(frozen=True)
class Row:
    """One line of the table. `ratio` is ours to theirs, median of pairs; `goal` is a sentence."""

    job: str
    ours: str
    by_hand: str
    ratio: float | None
    goal: str
    met: bool


def clustered(rows: int, dim: int, *, seed: int = SEED) -> Floats:
    """Unit vectors (rows, dim) around 200 centres: neighbours exist, as in real embeddings."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((200, dim), dtype=np.float32)
    vectors = centres[rng.integers(0, 200, rows)] + 0.7 * rng.standard_normal((rows, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def records(rows: int) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """Ids, documents of about 200 characters, metadata."""
    ids = [f"record-{n:07d}" for n in range(rows)]
    documents = [f"document {n} " + "lorem ipsum dolor sit amet " * 7 for n in range(rows)]
    metadata = [{"topic": f"topic-{n % 40}", "senses": n % 7} for n in range(rows)]
    return ids, documents, metadata


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Medians of both, and of their ratio pair by pair; who goes first alternates."""
    pairs = []
    for turn in range(rounds):
        if turn % 2:
            second = theirs()
            first = ours()
        else:
            first = ours()
            second = theirs()
        pairs.append((first, second))
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def bench_upsert(url: str, conninfo: str, vectors: Floats, rounds: int) -> Row:
    """Rows/s of upsert of new rows against a hand-written binary COPY into the same kind of table."""
    rows, dim = vectors.shape
    ids, documents, metadata = records(rows)
    layout = Layout(index=Index("hnsw", "float16", ef_search=100), oversample=2)

    def ours() -> float:
        with vecbridge.connect(url) as store:
            if "bench" in store.collections():
                store.drop("bench")
            papers = store.create("bench", dim=dim, layout=layout)

            def work() -> None:
                for at in range(0, rows, BATCH):
                    part = slice(at, at + BATCH)
                    papers.upsert(
                        ids[part], vectors[part], documents=documents[part], metadata=metadata[part]
                    )

            return timed(work)

    def by_hand() -> float:
        with psycopg.connect(conninfo) as connection:
            register_vector(connection)
            connection.execute("DROP TABLE IF EXISTS by_hand")
            # the columns of a collection's table, so that the server has the same to do
            connection.execute(
                f'CREATE TABLE by_hand (id text COLLATE "C" PRIMARY KEY, embedding vector({dim}) NOT NULL, '
                f"digest bytea, document text, metadata jsonb NOT NULL)"
            )
            connection.execute("ALTER TABLE by_hand ALTER embedding SET STORAGE EXTERNAL")
            connection.commit()

            def work() -> None:
                for at in range(0, rows, BATCH):
                    with (
                        connection.cursor() as cursor,
                        cursor.copy(
                            "COPY by_hand (id, embedding, document, metadata) FROM STDIN (FORMAT BINARY)"
                        ) as copy,
                    ):
                        copy.set_types(["text", "vector", "text", "jsonb"])
                        for n in range(at, min(at + BATCH, rows)):
                            copy.write_row((ids[n], Vector(vectors[n]), documents[n], Jsonb(metadata[n])))
                    connection.commit()

            return timed(work)

    ours_s, hand_s, slower = paired(ours, by_hand, rounds)
    ratio = 1 / slower
    return Row(
        f"pgvector upsert, {rows:,} new rows x {dim:,}",
        f"{rows / ours_s:,.0f} rows/s",
        f"{rows / hand_s:,.0f} rows/s (binary COPY)",
        ratio,
        ">= 0.85 of the rows/s",
        ratio >= 0.85,
    )


def bench_reupsert(url: str, vectors: Floats) -> Row:
    """Rows/s of replacing rows that are there; for information."""
    rows, dim = vectors.shape
    ids, documents, metadata = records(rows)
    with vecbridge.connect(url) as store:
        papers = store.open("bench")

        def work() -> None:
            for at in range(0, rows, BATCH):
                part = slice(at, at + BATCH)
                papers.upsert(ids[part], vectors[part], documents=documents[part], metadata=metadata[part])

        seconds = timed(work)
    return Row(
        f"pgvector upsert, {rows:,} existing rows x {dim:,}",
        f"{rows / seconds:,.0f} rows/s",
        "",
        None,
        "",
        True,
    )


def bench_search(url: str, conninfo: str, vectors: Floats, rounds: int) -> list[Row]:
    """p50 of search against the same SQL through bare psycopg, settings made once for the session."""
    rows, dim = vectors.shape
    rng = np.random.default_rng(SEED + 1)
    queries = vectors[rng.choice(rows, 200, replace=False)]
    queries = (queries + 0.01 * rng.standard_normal(queries.shape, dtype=np.float32)).astype(np.float32)
    with vecbridge.connect(url) as store, psycopg.connect(conninfo, autocommit=True) as connection:
        papers = store.open("bench")
        build = timed(papers.build_index)
        register_vector(connection)
        connection.execute("SET hnsw.ef_search = 100")
        connection.execute("SET hnsw.iterative_scan = relaxed_order")
        connection.execute("SET enable_seqscan = off")
        connection.execute("SET jit = off")
        statement = (
            f"WITH c AS MATERIALIZED (SELECT id, embedding, document, metadata FROM vecbridge_bench "
            f"ORDER BY embedding::halfvec({dim}) <=> %(q)s::halfvec({dim}) LIMIT 20) "
            f"SELECT id, document, metadata, 1 - (embedding <=> %(q)s) FROM c "
            f"ORDER BY (embedding <=> %(q)s) + 0 LIMIT 10"
        )

        def ours() -> float:
            return statistics.median(timed(lambda q=q: papers.search(q, k=10)) for q in queries)

        def by_hand() -> float:
            def one(query: Floats) -> None:
                connection.execute(statement, {"q": Vector(query)}, prepare=True, binary=True).fetchall()

            return statistics.median(timed(lambda q=q: one(q)) for q in queries)

        ours()
        by_hand()
        ours_s, hand_s, ratio = paired(ours, by_hand, rounds)
        report = papers.evaluate(k=10, sample=50)
    return [
        Row(
            f"pgvector search, p50, {rows:,} x {dim:,}, half-precision HNSW",
            f"{ours_s * 1e3:.2f} ms",
            f"{hand_s * 1e3:.2f} ms (bare psycopg)",
            ratio,
            "<= 1.15 times",
            ratio <= 1.15,
        ),
        Row(
            "  its recall@10, and exact p50",
            f"{report.recall:.3f}",
            f"{report.exact_p50_ms:.0f} ms exact",
            None,
            ">= 0.95",
            report.recall >= 0.95,
        ),
        Row("  its index, built after loading", f"{build:.1f} s", "", None, "", True),
    ]


def bench_flat(folder: Path, vectors: Floats, rounds: int) -> list[Row]:
    """Flat search against numpy on a matrix in memory; and how fast flat storage takes rows."""
    rows, dim = vectors.shape
    ids, documents, metadata = records(rows)
    with vecbridge.connect(f"flat:{folder}") as store:
        papers = store.create("bench", dim=dim, layout=Layout())

        def load() -> None:
            for at in range(0, rows, BATCH):
                part = slice(at, at + BATCH)
                papers.upsert(ids[part], vectors[part], documents=documents[part], metadata=metadata[part])

        loading = timed(load)
        rng = np.random.default_rng(SEED + 2)
        queries = vectors[rng.choice(rows, 30, replace=False)]

        def ours() -> float:
            return statistics.median(timed(lambda q=q: papers.search(q, k=10)) for q in queries)

        def one(query: Floats) -> list[int]:
            scores = vectors @ query
            best = np.argpartition(scores, -10)[-10:]
            return [int(n) for n in best[np.argsort(-scores[best])]]

        def by_hand() -> float:
            return statistics.median(timed(lambda q=q: one(q)) for q in queries)

        ours()
        by_hand()
        ours_s, hand_s, ratio = paired(ours, by_hand, rounds)
        for query in queries:
            assert [hit.id for hit in papers.search(query, k=10)] == [ids[n] for n in one(query)]
    return [
        Row(
            f"flat search, p50, {rows:,} x {dim:,}, exact",
            f"{ours_s * 1e3:.1f} ms",
            f"{hand_s * 1e3:.1f} ms (numpy in memory)",
            ratio,
            "<= 1.15 times",
            ratio <= 1.15,
        ),
        Row("  flat upsert, new rows", f"{rows / loading:,.0f} rows/s", "", None, "", True),
    ]


# what an ingesting process says at its end: its most resident memory, and the most of it that no file backs
INGEST = """
import re, sys, threading, time, vecbridge
source, to, name = sys.argv[1:]
status = lambda key: int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
most, done = 0, threading.Event()
def watch():
    global most
    while not done.wait(0.01):
        most = max(most, status("RssAnon"))
watcher = threading.Thread(target=watch)
watcher.start()
vecbridge.ingest(source, to=to, collection=name, layout=vecbridge.Layout(), evaluate=False)
done.set()
watcher.join()
print(status("VmHWM"), most)
"""


def bench_memory(url: str, folder: Path, dim: int) -> list[Row]:
    """Peak resident memory of an ingesting process, for a source and one four times as large.

    From /proc, because getrusage's figure counts this process's own memory at the time of the fork. Edge maps
    its files into memory, where they count as resident until the system wants the room: not counted there.
    """
    found = []
    for rows in (10_000, 40_000):
        matrix = folder / f"source-{rows}.npy"
        lines = matrix.with_suffix(".jsonl")
        shape = np.lib.format.open_memmap(matrix, mode="w+", dtype=np.float32, shape=(rows, dim))
        for at in range(0, rows, BATCH):
            shape[at : at + BATCH] = clustered(BATCH, dim, seed=at)
        shape.flush()
        del shape
        ids, documents, metadata = records(rows)
        with lines.open("w") as file:
            for n in range(rows):
                file.write(json.dumps({"id": ids[n], "text": documents[n], **metadata[n]}) + "\n")
        for name, to in (
            ("flat", f"flat:{folder / f'memory-{rows}'}"),
            ("Edge", f"qdrant:{folder / f'edge-{rows}'}"),
            ("pgvector", url),
        ):
            command = [sys.executable, "-c", INGEST, str(matrix), to, f"memory{rows}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            whole, own = (int(number) / 1024 for number in done.stdout.split()[-2:])
            found.append((name, rows, own if name == "Edge" else whole, whole))
    return [
        Row(
            f"peak resident memory, ingest of {rows:,} x {dim:,} into {name}",
            f"{peak:.0f} MiB",
            f"{whole:.0f} MiB with mapped files" if name == "Edge" else "",
            None,
            "< 400 MB",
            peak * 1.048576 < 400,
        )
        for name, rows, peak, whole in found
    ]


def bench_start(rounds: int) -> list[Row]:
    """Wall time of importing the package and of planning, as whole processes."""

    def run(*arguments: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True))

    bare = [run("-c", "pass") for _ in range(rounds)]
    package = [run("-c", "import vecbridge") for _ in range(rounds)]
    planning = ["-m", "vecbridge", "plan", "--dim", "3584", "--rows", "1000000", "--on", "pgvector"]
    plans = [run(*planning) for _ in range(rounds)]
    start, imported, planned = (statistics.median(times) for times in (bare, package, plans))
    return [
        Row(
            "import vecbridge, over bare Python",
            f"{(imported - start) * 1e3:.0f} ms",
            f"{start * 1e3:.0f} ms (python -c pass)",
            None,
            "< 200 ms",
            imported - start < 0.2,
        ),
        Row("vecbridge plan, whole process", f"{planned * 1e3:.0f} ms", "", None, "< 500 ms", planned < 0.5),
    ]


@contextmanager
def heartbeat(console: Console, job: str) -> Iterator[None]:
    """Says what is being measured, and that it is still going on."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(60):
            console.print(f"  … still measuring {job}", style="dim")

    console.print(f"measuring {job}", style="dim")
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def main() -> int:
    """Run the jobs, print the table, and exit with 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=3584)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS, help="measure these only")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument(
        "--glosses",
        type=Path,
        default=bench_ingest.GLOSSES,
        help="ingest these definitions of WordNet (JSON lines) instead of those in the package",
    )
    parser.add_argument("--folder", type=Path, help="keep embedded texts here, for the next time")
    parser.add_argument("--verbose", action="store_true", help="also print every single measurement of plans")
    options = parser.parse_args()
    details: dict[str, Any] = {}
    console = Console(stderr=True)
    vectors = clustered(options.rows, options.dim)
    table: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="vecbridge-bench-") as name:
        folder = Path(name)
        if "start" in options.jobs:
            with heartbeat(console, "start-up"):
                table += bench_start(options.rounds * 2 + 1)
        if "flat" in options.jobs:
            with heartbeat(console, "flat storage"):
                table += bench_flat(folder / "flat", vectors, options.rounds)
        ids, documents, metadata = records(options.rows)
        if "edge" in options.jobs:
            with heartbeat(console, "Qdrant Edge"):
                lines = bench_edge.rows(
                    folder, vectors, ids, documents, metadata, paired=paired, rounds=options.rounds
                )
                table += [Row(**line) for line in lines]
        if "qdrant" in options.jobs:
            with heartbeat(console, "Qdrant's client"):
                lines = bench_qdrant.rows(vectors, documents, metadata, paired=paired, rounds=options.rounds)
                table += [Row(**line) for line in lines]
        url = f"pgvector:{folder / 'pg'}"
        with closing(embedded.lease(folder / "pg")) as lease:
            with psycopg.connect(lease.url) as connection:
                server = connection.info.parameter_status("server_version")
            if "pgvector" in options.jobs:
                with heartbeat(console, "pgvector"):
                    table.append(bench_upsert(url, lease.url, vectors, options.rounds))
                    table.append(bench_reupsert(url, vectors[:5000]))
                    table += bench_search(url, lease.url, vectors, options.rounds)
            if "memory" in options.jobs:
                with heartbeat(console, "memory"):
                    table += bench_memory(url, folder, options.dim)
            if "ingest" in options.jobs:
                with heartbeat(console, "ingesting texts"):
                    lines = bench_ingest.rows(
                        folder / "ingest",
                        url,
                        paired=paired,
                        rounds=options.rounds,
                        glosses=options.glosses,
                    )
                    table += [Row(**line) for line in lines]
            if "plan" in options.jobs:
                with heartbeat(console, "plans"):
                    lines, details = bench_plan.rows(
                        folder / "plan",
                        url,
                        rows=min(options.rows, bench_plan.ROWS),
                        glosses=options.glosses,
                        keep=options.folder,
                        tell=lambda text: console.print(f"  {text}", style="dim", markup=False),
                    )
                    table += [Row(**line) for line in lines]
                if options.verbose:
                    for said in details.pop("said"):
                        console.print(said, markup=False)
    about = (
        f"vecbridge {vecbridge.__version__}, Python {platform.python_version()}, numpy {np.__version__}, "
        f"psycopg {psycopg.__version__}, PostgreSQL {server}, {os.cpu_count()} cores, seed {SEED}, "
        f"medians of {options.rounds} rounds, fsync on, commits of {BATCH:,} rows on both sides"
    )
    shown = Table(title=about, title_justify="left")
    for column in ("job", "vecbridge", "by hand", "ratio", "goal", ""):
        shown.add_column(column, overflow="fold")
    for row in table:
        mark = "" if not row.goal else "met" if row.met else "MISSED"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        shown.add_row(row.job, row.ours, row.by_hand, ratio, row.goal, mark)
    Console(width=None if sys.stdout.isatty() else 140).print(shown)
    if options.json:
        options.json.write_text(
            json.dumps({"about": about, "rows": [asdict(row) for row in table], **details}, indent=1)
        )
    return 0 if all(row.met for row in table) else 1


if __name__ == "__main__":
    sys.exit(main())
