"""The flat backend when processes die in the middle of writing, and when several write at once."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vecbridge.backends.flat import FlatBackend, FlatTable, connect
from vecbridge.filters import parse
from vecbridge.manifest import Manifest
from vecbridge.types import Layout, Space

NEW, HOT = 20, 60  # records that each step adds, and records that each step replaces

# Step v adds the records v-0 … v-19 and replaces hot-0 … hot-59, all of them with vectors made of v.
STEPS = """
import sys, numpy as np
from vecbridge.backends.flat import connect, table
from vecbridge.types import Batch
NEW, HOT = 20, 60
url, last, dead = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
table._DEAD, table._DEAD_SHARE = dead, 0.0  # compaction at every step, or at every few
papers = connect(url).open("papers")
hot = papers.read(["hot-0"]).metadata
v = hot[0]["v"] + 1 if hot else 0
print(f"from {v}", flush=True)
while v < last:
    ids = [f"{v}-{i}" for i in range(NEW)] + [f"hot-{i}" for i in range(HOT)]
    vectors = np.stack([np.arange(len(ids)), np.full(len(ids), v)], axis=1).astype(np.float32)
    metadata = [{"v": v, "i": i} for i in range(len(ids))]
    vectors, texts = np.repeat(vectors, 256, axis=1), [f"document {v}"] * len(ids)
    papers.write(Batch(ids, vectors, texts, metadata, [None] * len(ids)))
    print(v, flush=True)
    v += 1
papers.close()
"""


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[FlatBackend]:
    made = connect(f"flat:{tmp_path / 'data'}")
    made.create(Manifest(name="papers", space=Space(512, "l2"), layout=Layout(), rows=1000))
    yield made
    made.close()


def start(url: str, last: int, dead: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STEPS, url, str(last), str(dead)], stdout=subprocess.PIPE, text=True
    )


def verify(papers: FlatTable) -> int:
    """The number of steps found in the collection, each of them whole, and nothing of any other."""
    hot = papers.read([f"hot-{i}" for i in range(HOT)])
    steps = hot.metadata[0]["v"] + 1 if len(hot) else 0
    assert len(hot) == (HOT if steps else 0)
    assert papers.count() == steps * NEW + len(hot)
    assert papers.count(parse({"v": {"$gte": steps}})) == 0
    ids = [f"{v}-{i}" for v in range(steps) for i in range(NEW)]
    for found, versions in ((papers.read(ids), np.repeat(np.arange(steps), NEW)), (hot, steps - 1)):
        assert [one["v"] for one in found.metadata] == np.broadcast_to(versions, len(found)).tolist()
        assert list(found.documents) == [f"document {one['v']}" for one in found.metadata]
        places = np.array([one["i"] for one in found.metadata], dtype=np.float32).reshape(-1, 1)
        np.testing.assert_array_equal(found.vectors[:, :256], np.repeat(places, 256, axis=1))
        expected = np.array([one["v"] for one in found.metadata], dtype=np.float32).reshape(-1, 1)
        np.testing.assert_array_equal(found.vectors[:, 256:], np.repeat(expected, 256, axis=1))
    everything = papers.search(np.zeros((1, 512), np.float32), None, k=10**6, where=None, exact=True)[0]
    assert len({hit.id for hit in everything}) == len(everything) == papers.count()
    return steps


@pytest.mark.parametrize("dead", [0, 150], ids=["compacting always", "compacting sometimes"])
def test_a_writer_killed_at_any_moment_leaves_whole_batches(
    backend: FlatBackend, tmp_path: Path, dead: int
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  # pytest shows it with the failure
    rng = random.Random(seed)
    steps, moments = 0, 0
    while moments < 14:
        worker = start(backend.url, 10**6, dead)
        assert worker.stdout is not None
        assert worker.stdout.readline() == f"from {steps}\n"
        time.sleep(rng.uniform(0, 0.12))
        moments += worker.poll() is None
        worker.kill()
        acknowledged = [int(line) for line in worker.communicate()[0].split("\n")[:-1]]
        # what was acknowledged is there; at most one step more was committed when the kill came
        known = acknowledged[-1] + 1 if acknowledged else steps
        papers = backend.open("papers")
        steps = verify(papers)
        assert steps in (known, known + 1)
        papers.close()
    last = steps + 5
    worker = start(backend.url, last, dead)
    worker.communicate()
    assert worker.returncode == 0
    papers = backend.open("papers")
    assert verify(papers) == last
    assert len(list(tmp_path.glob("data/papers/vectors.*"))) == 1
    assert papers.delete_where(parse({})) == last * NEW + HOT
    assert papers.count() == 0


WRITER = """
import sys, numpy as np
from vecbridge.backends.flat import connect, table
from vecbridge.types import Batch
table._DEAD, table._DEAD_SHARE = 200, 0.0
papers = connect(sys.argv[1]).open("papers")
me = sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for step in range(40):
    ids = [f"{me}-{step}-{i}" for i in range(10)] + [f"shared-{i}" for i in range(20)]
    vectors = np.full((30, 512), step, np.float32)
    papers.write(Batch(ids, vectors, [me] * 30, [{"by": me, "step": step}] * 30, [None] * 30))
    if step % 4 == 3:
        assert papers.delete([f"{me}-{step}-{i}" for i in range(5)]) == 5
papers.close()
"""


def test_two_processes_write_to_one_collection_and_lose_nothing(backend: FlatBackend) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, backend.url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    papers = backend.open("papers")
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    looks = 0
    while any(worker.poll() is None for worker in workers):
        shared = papers.read([f"shared-{i}" for i in range(20)])
        assert len({(one["by"], one["step"]) for one in shared.metadata}) == min(len(shared), 1)
        assert all(
            vector.min() == vector.max() == one["step"]
            for vector, one in zip(shared.vectors, shared.metadata, strict=True)
        )
        looks += 1
    for worker in workers:
        assert worker.communicate()[1] == ""
        assert worker.returncode == 0
    assert looks > 1
    assert papers.count() == 2 * (40 * 10 - 10 * 5) + 20
    for name in ("one", "two"):
        own = papers.count(parse({"by": name}))
        assert own - 350 in (0, 20)
        for step in (0, 3, 39):
            found = papers.read([f"{name}-{step}-{i}" for i in range(10)])
            assert len(found) == (5 if step % 4 == 3 else 10)
            assert set(found.vectors.ravel()) == {step}


def test_a_creator_that_is_killed_leaves_no_collection_and_blocks_nobody(tmp_path: Path) -> None:
    url = f"flat:{tmp_path / 'data'}"
    script = (
        "import os, signal, sys\n"
        "from vecbridge.backends import flat\n"
        "from vecbridge.manifest import Manifest\n"
        "from vecbridge.types import Layout, Space\n"
        "flat.sync_folder = lambda folder: os.kill(os.getpid(), signal.SIGKILL)\n"
        "flat.connect(sys.argv[1]).create(Manifest(name='papers', space=Space(8), layout=Layout(), rows=1))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, url], check=False)
    assert done.returncode == -9
    backend = connect(url)
    assert backend.names() == []
    assert any(path.name.startswith(".papers.tmp-") for path in tmp_path.joinpath("data").iterdir())
    backend.create(Manifest(name="papers", space=Space(8), layout=Layout(), rows=1))
    assert sorted(path.name for path in tmp_path.joinpath("data").iterdir()) == [".lock", "papers"]
    backend.close()
