"""Qdrant Edge when processes compete, fork and die: nothing confirmed is lost, nothing is half done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("qdrant_edge")

from vecbridge.backends.qdrant.edge import connect
from vecbridge.errors import Busy, IndexFailure

PATIENCE = 60

PRELUDE = """
import os, signal, sys, time, uuid
import numpy as np
from pathlib import Path
from vecbridge.backends.qdrant.edge import build as edge_build, place as edge_place
from vecbridge.backends.qdrant.edge import connect
from vecbridge.backends.qdrant.engine import Points, Query
from vecbridge.errors import Busy, IndexFailure, StoreError
path = sys.argv[1]
GRAPH = {"hnsw_config": {"m": 16, "ef_construct": 64}, "optimizers_config": {"indexing_threshold": 1}}
# takes seconds for a few thousand points
SLOW = {**GRAPH, "hnsw_config": {"m": 64, "ef_construct": 2000}}
def some(n, start=0, size=64):
    ids = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(i))) for i in range(start, start + n)]
    vectors = np.random.default_rng(start).normal(size=(n, size)).astype(np.float32)
    return Points(ids, {"": vectors}, [{"id": str(i)} for i in range(start, start + n)])
def made():
    edge = connect(path, shown="qdrant:place")
    if "papers" not in edge.collections():
        edge.create("papers", {"vectors": {"size": 64, "distance": "Dot"}, "hnsw_config": {"m": 0}})
    return edge
"""


def start(script: str, place: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PRELUDE + script, str(place), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, place: Path, *more: str) -> str:
    process = start(script, place, *more)
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_a_second_process_is_told_who_holds_the_place_until_it_closes(tmp_path: Path) -> None:
    place = tmp_path / "place"
    holder = start(
        "edge = made()\nprint(os.getpid(), flush=True)\ninput()\n"
        "edge.close()\nprint('closed', flush=True)\ninput()",
        place,
    )
    try:
        pid = line(holder)
        told = rf"in use by process {pid}: Qdrant Edge serves one process at a time; close it there"
        with pytest.raises(Busy, match=told):
            connect(str(place), shown="qdrant:place")
        assert holder.stdin is not None
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert line(holder) == "closed"
        edge = connect(str(place), shown="qdrant:place")
        assert edge.collections() == ["papers"]
        edge.close()
    finally:
        end(holder)


def test_the_lock_ends_with_a_killed_holder_and_its_forked_child_keeps_nothing(tmp_path: Path) -> None:
    place = tmp_path / "place"
    script = """
edge = made()
edge.upsert("papers", some(50))
child = os.fork()
if child == 0:
    # holds copies of everything that was open; outlives its parent
    print(os.getpid(), flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    time.sleep(600)
time.sleep(600)
"""
    holder = start(script, place)
    child = int(line(holder))
    try:
        end(holder)
        assert alive(child)
        edge = connect(str(place), shown="qdrant:place")
        assert edge.count("papers") == 50
        edge.close()
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    "ending", ["os._exit(0)", "sys.exit(0)", "del edge, place; gc.collect(); sys.exit(0)"]
)
def test_a_forked_child_is_refused_at_once_and_harms_nothing(tmp_path: Path, ending: str) -> None:
    script = f"""
import gc, signal
edge = made()
edge.upsert("papers", some(50))
place = edge._place
child = os.fork()
if child == 0:
    signal.alarm(30)
    for call in (
        lambda: edge.count("papers"), edge.collections, lambda: edge.kept("a"),
        lambda: edge.upsert("papers", some(5)), lambda: edge.create("b", {{}}),
    ):
        try:
            call()
        except StoreError as error:
            assert "was opened before this process was forked" in str(error), error
        else:
            raise AssertionError
    try:
        connect(path, shown="qdrant:place")
    except Busy as error:
        assert f"in use by process {{os.getppid()}}" in str(error), error
    else:
        raise AssertionError
    edge.close()
    {ending}
_, status = os.waitpid(child, 0)
assert status == 0, status
edge.upsert("papers", some(50, 50))
print(edge.count("papers"))
try:
    os.fork() or os._exit(0)
    edge.optimise("papers", GRAPH, None)
finally:
    edge.close()
print(made().count("papers"))
"""
    assert run(script, tmp_path / "place").split() == ["100", "100"]


def test_a_child_forked_after_the_last_close_may_connect(tmp_path: Path) -> None:
    script = """
made().close()
child = os.fork()
if child == 0:
    edge = connect(path, shown="qdrant:place")
    edge.upsert("papers", some(3))
    edge.close()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print(made().count("papers"))
"""
    assert run(script, tmp_path / "place").strip() == "3"


def test_a_place_that_is_only_forgotten_is_given_free(tmp_path: Path) -> None:
    script = """
import subprocess
edge = made()
edge.upsert("papers", some(3))
del edge
second = "import sys; from vecbridge.backends.qdrant.edge import connect; "
second += "print(connect(sys.argv[1], shown='x').count('papers'))"
print(subprocess.run([sys.executable, "-c", second, path], capture_output=True, text=True, check=True).stdout)
"""
    assert run(script, tmp_path / "place").strip() == "3"


def test_kills_during_writes_lose_nothing_confirmed_and_leave_no_batch_half(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    place, size = tmp_path / "place", 200
    script = f"""
edge = made()
done = edge.count("papers")
assert done % {size} == 0, done
print(done, flush=True)
while True:
    edge.upsert("papers", some({size}, done))
    done += {size}
    print(done, flush=True)
"""
    confirmed = 0
    for _ in range(5):
        writer = start(script, place)
        first = line(writer)
        assert first, writer.communicate()[1]
        # one batch more may be there, whole: it was killed between the write and its confirmation
        assert int(first) - confirmed in (0, size)
        time.sleep(chance.uniform(0.0, 0.3))
        writer.kill()
        rest = writer.communicate()[0].split()
        confirmed = int(rest[-1] if rest else first)
    edge = connect(str(place), shown="qdrant:place")
    assert edge.count("papers") - confirmed in (0, size)
    found, _ = edge.scroll("papers", limit=10**6, payload=["id"])
    assert sorted(int(one["id"]) for one in found.payloads) == list(range(edge.count("papers")))
    edge.close()


def test_a_killed_build_raises_and_the_old_shard_serves_on(tmp_path: Path) -> None:
    script = """
import subprocess, threading
edge = made()
edge.upsert("papers", some(4000))
started = []
real = subprocess.Popen
class Watched(real):
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        started.append(self.pid)
edge_build.subprocess.Popen = Watched
def kill():
    while not started:
        time.sleep(0.01)
    time.sleep(0.4)
    assert edge.count("papers") == 4000  # readers go on
    os.kill(started[0], signal.SIGKILL)
killer = threading.Thread(target=kill)
killer.start()
try:
    edge.optimise("papers", SLOW, None)
except IndexFailure as error:
    print(error)
killer.join()
told = edge.describe("papers")
assert told["indexed_vectors_count"] == 0 and told["config"]["hnsw_config"]["m"] == 0, told
folder = edge._collection("papers").folder
assert sorted(p.name for p in folder.iterdir()) == ["collection.json", "shard-1"]
edge.optimise("papers", GRAPH, None)
print(edge.describe("papers")["indexed_vectors_count"])
assert sorted(p.name for p in folder.iterdir()) == ["built", "collection.json", "shard-2"]
"""
    out = run(script, tmp_path / "place").splitlines()
    assert "the index of 'papers' could not be built: the building process was killed (SIGKILL)" in out[0]
    assert "the collection is as it was and can be searched" in out[0]
    assert out[1] == "4000"


def test_a_build_that_edge_refuses_raises_with_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vecbridge.backends.qdrant.edge import build as edge_build

    edge = connect(str(tmp_path / "place"), shown="qdrant:place")
    edge.create("papers", {"vectors": {"size": 8, "distance": "Dot"}, "hnsw_config": {"m": 0}})
    real = edge_build._configure

    def damaged(collection: object, new: Path, config: dict[str, object]) -> None:
        real(collection, new, config)  # type: ignore[arg-type]  # passed through as it came
        (new / "edge_config.json").write_text("{")

    monkeypatch.setattr(edge_build, "_configure", damaged)
    with pytest.raises(IndexFailure, match=r"could not be built: .*edge_config.json"):
        edge.optimise("papers", {"hnsw_config": {"m": 16}}, None)
    assert edge.count("papers") == 0
    edge.close()


# each script dies at one moment of a build; True where the new shard is then the current one
MOMENTS = {
    "after the copy": ("edge_build._configure = lambda *a: os.kill(os.getpid(), 9)", False),
    "while building": (
        "import threading\nreal = edge_build.subprocess.Popen\n"
        "def popen(*a, **k):\n"
        "    made = real(*a, **k)\n"
        "    print(made.pid, flush=True)\n"
        "    threading.Timer(0.5, os.kill, (os.getpid(), 9)).start()\n"
        "    return made\n"
        "edge_build.subprocess.Popen = popen",
        False,
    ),
    "while the configuration is made": (
        "edge_build.shard_config = lambda *a: os.kill(os.getpid(), 9)",
        False,
    ),
    "before the switch": ("edge_place.save = lambda *a: os.kill(os.getpid(), 9)", False),
    "inside the switch": (
        "real = Path.replace\n"
        "def replace(self, target):\n"
        "    if Path(target).name == 'collection.json': os.kill(os.getpid(), 9)\n"
        "    return real(self, target)\n"
        "Path.replace = replace",
        False,
    ),
    "after the switch": (
        "real = edge_place.save\n"
        "def save(*a):\n"
        "    real(*a)\n"
        "    os.kill(os.getpid(), 9)\n"
        "edge_place.save = save",
        True,
    ),
    "before the old shard is deleted": ("edge_place.clear = lambda *a: os.kill(os.getpid(), 9)", True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment_of_a_build_leaves_the_old_or_the_new(tmp_path: Path, moment: str) -> None:
    patch, is_new = MOMENTS[moment]
    place = tmp_path / "place"
    n = 4000 if moment == "while building" else 500
    script = (
        f"edge = made()\nedge.upsert('papers', some({n}))\nedge._collection('papers').shorten()\n{patch}\n"
    )
    change = "SLOW" if moment == "while building" else "GRAPH"
    process = start(f"{script}edge.optimise('papers', {change}, None)", place)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL, err
    if moment == "while building" and sys.platform == "linux":
        # the builder dies with its parent
        deadline = time.monotonic() + PATIENCE
        while alive(int(out)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    edge = connect(str(place), shown="qdrant:place")
    told = edge.describe("papers")
    assert told["points_count"] == n
    assert told["config"]["hnsw_config"]["m"] == (16 if is_new else 0)
    assert told["indexed_vectors_count"] == (n if is_new else 0)
    folder = next((place / "collections").iterdir())
    assert [p.name for p in folder.glob("shard-*")] == ["shard-2" if is_new else "shard-1"]
    assert [*folder.glob(".*"), *place.glob(".*")] == []
    edge.optimise(
        "papers",
        {"hnsw_config": {"m": 16, "ef_construct": 64}, "optimizers_config": {"indexing_threshold": 1}},
        None,
    )
    assert edge.describe("papers")["indexed_vectors_count"] == n
    assert edge.count("papers") == n
    edge.close()


def test_what_processes_that_died_left_half_made_is_cleared(tmp_path: Path) -> None:
    place = tmp_path / "place"
    script = """
edge = made()
edge_place.sync_tree = lambda *a: os.kill(os.getpid(), 9)
edge.create("half", {"vectors": {"size": 64, "distance": "Dot"}})
"""
    process = start(script, place)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    assert len(list((place / "collections").glob(".new-*"))) == 1
    edge = connect(str(place), shown="qdrant:place")
    assert edge.collections() == ["papers"]
    assert list((place / "collections").glob(".*")) == []
    edge.close()


def test_closing_ends_a_build_and_the_collection_stays_as_it_was(tmp_path: Path) -> None:
    script = """
import threading
edge = made()
edge.upsert("papers", some(4000))
building, said = threading.Event(), []
real = edge_build.subprocess.Popen
def popen(*a, **k):
    building.set()
    return real(*a, **k)
edge_build.subprocess.Popen = popen
def build():
    try:
        edge.optimise("papers", SLOW, None)
    except StoreError as error:
        said.append(str(error))
thread = threading.Thread(target=build)
thread.start()
building.wait()
edge.close()
thread.join()
print(said)
again = made()
print(again.count("papers"), again.describe("papers")["config"]["hnsw_config"]["m"])
"""
    out = run(script, tmp_path / "place").splitlines()
    assert out == ["['qdrant:place was closed; connect again']", "4000 0"]


def test_a_disk_without_room_is_an_error_and_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vecbridge.backends.qdrant.edge import files as edge_files
    from vecbridge.errors import StoreError

    edge = connect(str(tmp_path / "place"), shown="qdrant:place")
    edge.create("papers", {"vectors": {"size": 8, "distance": "Dot"}})
    # Edge itself would be killed by SIGBUS where the disk is really full
    monkeypatch.setattr(edge_files, "free", lambda folder: 1 << 20)
    said = "no room for .* in .*place.*: expected 64 MiB free, found 1 MiB; nothing was changed"
    with pytest.raises(StoreError, match=said):
        edge.delete("papers", ["00000000-0000-0000-0000-000000000001"])
    with pytest.raises(StoreError, match=said):
        edge.keep("basis", b"1")
    with pytest.raises(StoreError, match=said):
        edge.create("more", {"vectors": {"size": 8, "distance": "Dot"}})
    with pytest.raises(StoreError, match=r"no room for building an index .* found 1 MiB"):
        edge.optimise("papers", {"hnsw_config": {"m": 16}}, None)
    assert edge.count("papers") == 0
    edge.close()
