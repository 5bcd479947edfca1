"""The flat backend when a collection is laid out anew: processes that die, that search, write and fork."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecbridge.backends.flat import FlatBackend, FlatTable, connect, database, homes
from vecbridge.backends.flat import table as tables
from vecbridge.errors import Busy, CollectionNotFound, LayoutChanged, ManifestError, StoreError
from vecbridge.manifest import Manifest
from vecbridge.replanning import replan
from vecbridge.types import Batch, Layout, Space

DIM, ROWS = 16, 300


def records(n: int = ROWS, *, value: float = 0.0, prefix: str = "r") -> Batch:
    vectors = np.full((n, DIM), value, np.float32)
    vectors[:, 0] = np.arange(n)
    return Batch(
        [f"{prefix}{i:04}" for i in range(n)], vectors, [f"text {i}" for i in range(n)],
        [{"i": i} for i in range(n)], [None] * n,
    )  # fmt: skip


def manifest(name: str = "papers", *, generation: int = 0) -> Manifest:
    return Manifest(name=name, space=Space(DIM, "l2"), layout=Layout(), rows=ROWS, generation=generation)


def following(table: FlatTable) -> Manifest:
    """What the successor of a collection says of itself: the other element, the next generation."""
    element: Any = "float16" if table.manifest.layout.element == "float32" else "float32"
    return replace(table.manifest, layout=Layout(element=element), generation=table.manifest.generation + 1)


def relaid(backend: FlatBackend) -> FlatTable:
    return replan_flat(backend, backend.open("papers"))


def replan_flat(backend: FlatBackend, table: FlatTable) -> FlatTable:
    made = replan(backend, table, following(table))
    assert isinstance(made, FlatTable)
    table.close()
    return made


def whole(table: FlatTable) -> None:
    """The table holds the first records, every one of them as it was written."""
    assert table.count() == ROWS
    found, expected = table.read([f"r{i:04}" for i in range(ROWS)]), records()
    assert list(found.ids) == list(expected.ids)
    assert list(found.documents) == list(expected.documents)
    np.testing.assert_array_equal(found.vectors, expected.vectors)
    hits = table.search(np.zeros((1, DIM), np.float32), None, k=ROWS, where=None, exact=False)[0]
    assert [hit.id for hit in hits] == list(expected.ids)


def lying(folder: Path) -> list[str]:
    """What lies in a folder of collections and in each of them, homes without their random part."""
    found = [path.relative_to(folder) for depth in ("*", "*/*") for path in folder.glob(depth)]
    return sorted(
        "/".join(part.partition("-")[0] if part[0].isdigit() else part for part in path.parts)
        for path in found
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def backend(folder: Path) -> Iterator[FlatBackend]:
    made = connect(f"flat:{folder}")
    made.create(manifest()).write(records())
    yield made
    made.close()


@pytest.fixture
def other(backend: FlatBackend) -> Iterator[FlatBackend]:
    made = connect(backend.url)
    yield made
    made.close()


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    found = process.stdout.readline().strip()
    if not found:
        process.kill()
        pytest.fail(f"a process ended early: {process.communicate()[1]}")
    return found


def ended(process: subprocess.Popen[str], said: str = "") -> list[str]:
    """The lines that a process prints until it ends, after it was told something."""
    out, errors = process.communicate(said, timeout=120)
    assert (process.returncode, errors) == (0, "")
    return out.split()


# Searches without a pause until standard input is closed, and prints every generation that it meets.
SEARCHER = """
import sys, threading, numpy as np
from vecbridge.backends.flat import connect
from vecbridge.errors import LayoutChanged
backend = connect(sys.argv[1])
rows = int(sys.argv[2])
papers, last, met = backend.open("papers"), threading.Event(), []
threading.Thread(target=lambda: (sys.stdin.read(), last.set()), daemon=True).start()
while True:
    done = last.is_set()
    if done:
        papers.close()
        papers = backend.open("papers")
    try:
        hits = papers.search(np.zeros((1, 16), np.float32), None, k=rows, where=None, exact=False)[0]
        # between opening and counting, too
        assert connect(sys.argv[1]).open("papers").count() == rows
    except LayoutChanged:
        papers.close()
        papers = backend.open("papers")
        continue
    assert [hit.id for hit in hits] == [f"r{i:04}" for i in range(rows)], len(hits)
    if papers.manifest.generation not in met:
        met.append(papers.manifest.generation)
        print(met[-1], flush=True)
    if done:
        break
"""

# Lays the collection out anew, again and again, and kills itself at a moment that is named.
REPLANNER = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from vecbridge.backends.flat import connect, homes
from vecbridge.replanning import replan
from vecbridge.types import Layout
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
moment = sys.argv[2]
if moment == "filling":
    homes.point = die
elif moment == "before":
    Path.replace = die
elif moment == "after":
    homes.sync_folder = die
elif moment == "clearing":
    unlink = Path.unlink
    def last(path, missing_ok=False):
        unlink(path, missing_ok=missing_ok)
        die()
    point = homes.point
    def pointed(*arguments):
        point(*arguments)
        Path.unlink = last
    homes.point = pointed
backend = connect(sys.argv[1])
papers = backend.open("papers")
print("ready", flush=True)
while True:
    element = "float16" if papers.manifest.layout.element == "float32" else "float32"
    generation = papers.manifest.generation + 1
    layout = Layout(element=element)
    papers = replan(backend, papers, replace(papers.manifest, layout=layout, generation=generation))
    print(generation, flush=True)
"""


@pytest.mark.parametrize(
    ("moment", "generation"), [("filling", 0), ("before", 0), ("after", 1), ("clearing", 1)]
)
def test_a_kill_at_any_step_leaves_the_old_or_the_new_and_searches_never_fail(
    backend: FlatBackend, folder: Path, moment: str, generation: int
) -> None:
    searcher = start(SEARCHER, backend.url, ROWS)
    assert line(searcher) == "0"
    killed = start(REPLANNER, backend.url, moment)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert backend.names() == ["papers"]
    papers = backend.open("papers")
    assert papers.manifest.generation == generation
    whole(papers)
    assert [finding.subject for finding in backend.findings() if finding.level != "ok"] == ["leftovers"]
    if generation:
        assert line(searcher) == "1"
    # the next one clears it all away
    whole(relaid(backend))
    assert ended(searcher) == [str(generation + 1)]
    assert [finding for finding in backend.findings() if finding.level != "ok"] == []
    assert lying(folder) == [".lock", "papers", f"papers/{generation + 1}", "papers/current"]


def test_kills_at_random_moments_lose_nothing(backend: FlatBackend, folder: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  # pytest shows it with the failure
    rng = random.Random(seed)
    searcher = start(SEARCHER, backend.url, ROWS)
    assert line(searcher) == "0"
    known = 0
    for _ in range(6):
        killed = start(REPLANNER, backend.url, "random")
        assert line(killed) == "ready"
        timer = threading.Timer(rng.uniform(0, 0.3), killed.kill)
        timer.start()
        acknowledged = [int(word) for word in killed.communicate()[0].split()]
        timer.join()
        known = max([known, *acknowledged])
        papers = backend.open("papers")
        # what was acknowledged is there; one step more may have been made when the kill came
        assert papers.manifest.generation in (known, known + 1)
        known = papers.manifest.generation
        whole(papers)
        papers.close()
    whole(relaid(backend))
    met = [0, *map(int, ended(searcher))]
    assert met == sorted(met)
    assert met[-1] == known + 1
    assert lying(folder) == [".lock", "papers", f"papers/{known + 1}", "papers/current"]


WRITER = """
import sys, threading, numpy as np
from vecbridge.backends.flat import connect
from vecbridge.errors import LayoutChanged
from vecbridge.types import Batch
backend = connect(sys.argv[1])
papers, last, changes, step = backend.open("papers"), threading.Event(), 0, 0
threading.Thread(target=lambda: (sys.stdin.read(), last.set()), daemon=True).start()
print("ready", flush=True)
while not last.is_set():
    batch = Batch([f"w{step}", "hot"], np.full((2, 16), step, np.float32), [None] * 2, [{}] * 2, [None] * 2)
    try:
        papers.write(batch)
    except LayoutChanged:
        papers.close()
        papers = backend.open("papers")
        changes += 1
        continue
    step += 1
print(step, changes)
"""


def test_no_write_of_another_process_is_lost_while_it_is_laid_out_anew(backend: FlatBackend) -> None:
    writer = start(WRITER, backend.url)
    assert line(writer) == "ready"
    papers = backend.open("papers")
    for _ in range(4):
        before = papers.count()
        while papers.count() == before:
            pass  # the writer has its turn between two changes
        papers = replan_flat(backend, papers)
    steps, changes = map(int, ended(writer))
    assert papers.manifest.generation == 4
    assert 1 <= changes <= 4
    papers = backend.open("papers")
    assert papers.count() == ROWS + steps + 1
    found = papers.read([*(f"w{step}" for step in range(steps)), "hot"])
    assert found.vectors[:, 0].tolist() == [*range(steps), steps - 1]


def test_a_pause_makes_other_processes_wait_and_lets_them_search(
    backend: FlatBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    papers = backend.open("papers")
    script = (
        "import sys, numpy as np\n"
        "from vecbridge.backends.flat import connect, database\n"
        "from vecbridge.errors import Busy\n"
        "papers = connect(sys.argv[1]).open('papers')\n"
        "database.PATIENCE = 0.1\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    papers.delete(['r0000'])\n"
        "except Busy as error:\n"
        "    print(str(error).replace(' ', '_'), flush=True)\n"
        "print(len(papers.search(np.zeros((1, 16), np.float32), None, k=5, where=None, exact=True)[0]))\n"
        "database.PATIENCE = 60\n"
        "print(papers.delete(['r0000']))\n"
    )
    deleting = start(script, backend.url)
    assert line(deleting) == "ready"
    with papers.paused():
        assert deleting.stdin is not None
        deleting.stdin.write("\n")
        deleting.stdin.flush()
        assert "has_been_writing_to" in line(deleting)
        assert line(deleting) == "5"
        assert papers.count() == ROWS
    assert ended(deleting) == ["1"]
    assert papers.count() == ROWS - 1
    monkeypatch.setattr(database, "PATIENCE", 0.05)
    with papers.paused(), pytest.raises(Busy, match="another process has been"):
        papers.delete(["r0001"])
    assert papers.delete(["r0001"]) == 1


def test_a_pause_says_nothing_of_what_fails_while_it_is_held(backend: FlatBackend) -> None:
    papers = backend.open("papers")
    with pytest.raises(FileNotFoundError, match="elsewhere"), papers.paused():
        raise FileNotFoundError("elsewhere")
    assert papers.delete(["r0000"]) == 1


def test_a_switch_without_a_pause_waits_for_the_write_that_is_under_way(backend: FlatBackend) -> None:
    papers = backend.open("papers")
    successor = backend.successor(following(papers))
    successor.write(records())
    with backend.open("papers").paused():
        backend.switch(successor)  # a pause of this very process is no other writer
    successor = backend.successor(following(backend.open("papers")))
    successor.write(records())
    script = (
        "import sys\n"
        "from vecbridge.backends.flat import connect\n"
        "with connect(sys.argv[1]).open('papers').paused():\n"
        "    print('paused', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    pausing = start(script, backend.url)
    assert line(pausing) == "paused"
    switching = threading.Thread(target=backend.switch, args=(successor,))
    switching.start()
    switching.join(0.2)
    assert switching.is_alive()
    assert backend.open("papers").manifest.generation == 1
    assert ended(pausing, "\n") == []
    switching.join(60)
    assert backend.open("papers").manifest.generation == 2


FILLER = """
import sys
from dataclasses import replace
from vecbridge.backends.flat import connect
backend = connect(sys.argv[1])
papers = backend.open("papers")
successor = backend.successor(replace(papers.manifest, generation=papers.manifest.generation + 1))
successor.write(papers.read([f"r{i:04}" for i in range(150)]))
print("half", flush=True)
sys.stdin.readline()
successor.write(papers.read([f"r{i:04}" for i in range(150, 300)]))
backend.switch(successor)
print(successor.count())
"""


def test_a_successor_is_left_alone_while_the_process_that_fills_it_lives(
    backend: FlatBackend, folder: Path
) -> None:
    filling = start(FILLER, backend.url)
    assert line(filling) == "half"
    backend.create(manifest("notes"))
    backend.drop("notes")
    assert backend.names() == ["papers"]
    assert [finding for finding in backend.findings() if finding.level != "ok"] == []
    assert ended(filling, "\n") == [str(ROWS)]
    whole(backend.open("papers"))

    filling = start(FILLER, backend.url)
    assert line(filling) == "half"
    assert "papers/2" in lying(folder)
    filling.kill()
    filling.communicate()
    assert [finding.subject for finding in backend.findings() if finding.level != "ok"] == ["leftovers"]
    backend.create(manifest("notes"))
    assert "papers/2" not in lying(folder)
    whole(backend.open("papers"))


def test_a_forked_child_that_closes_everything_leaves_the_successor_to_its_parent(
    backend: FlatBackend, other: FlatBackend
) -> None:
    papers = backend.open("papers")
    successor = backend.successor(following(papers))
    child = os.fork()
    if not child:
        backend.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    other.create(manifest("notes"))
    successor.write(records())
    backend.switch(successor)
    whole(other.open("papers"))


def test_a_search_under_way_ends_on_what_it_began_with(
    backend: FlatBackend, other: FlatBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    papers = backend.open("papers")
    nearest = tables.nearest

    def late(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(tables, "nearest", nearest)
        table = other.open("papers")
        table.delete(["r0000"])
        replan_flat(other, table)
        return nearest(*arguments, **named)

    monkeypatch.setattr(tables, "nearest", late)
    hits = papers.search(np.zeros((1, DIM), np.float32), None, k=3, where=None, exact=True)[0]
    assert [(hit.id, hit.document) for hit in hits] == [
        ("r0000", "text 0"),
        ("r0001", "text 1"),
        ("r0002", "text 2"),
    ]
    with pytest.raises(LayoutChanged, match=r"papers was laid out anew meanwhile; open it again"):
        papers.count()
    assert backend.open("papers").count() == ROWS - 1


@pytest.mark.parametrize("when", ["is_file", "stat"])
def test_opening_in_the_moment_of_a_switch_finds_the_successor(
    backend: FlatBackend, other: FlatBackend, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The folder that counted has gone when its files are looked at, or is going while they are."""
    real: Callable[..., Any] = getattr(Path, when)

    def late(path: Path, **named: Any) -> Any:
        if path.name == "records.sqlite":
            monkeypatch.setattr(Path, when, real)
            relaid(other)
        return real(path, **named)

    monkeypatch.setattr(Path, when, late)
    opened = backend.open("papers")
    assert opened.manifest.generation == 1
    whole(opened)


def test_connecting_in_the_moment_of_a_switch_reads_nothing_old(
    backend: FlatBackend, other: FlatBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite opens the file before its log: without the log it would find an empty collection."""
    papers = backend.open("papers")
    papers._database._idle.clear()
    real = sqlite3.connect

    def late(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(sqlite3, "connect", real)
        connection = real(*arguments, **named)
        relaid(other)
        return connection

    monkeypatch.setattr(sqlite3, "connect", late)
    with pytest.raises(LayoutChanged, match="papers"):
        papers.count()


def test_who_still_has_the_old_files_open_does_no_harm_to_the_new_ones(
    backend: FlatBackend, other: FlatBackend
) -> None:
    old = other.open("papers")
    assert old.count() == ROWS
    new = relaid(backend)
    new.write(records(1, value=7.0, prefix="new"))
    old.close()
    other.close()
    assert connect(backend.url).open("papers").count() == ROWS + 1
    new.write(records(1, value=7.0, prefix="newer"))
    new.close()
    assert connect(backend.url).open("papers").count() == ROWS + 2


def test_a_collection_made_anew_under_the_old_name_is_another_one(
    backend: FlatBackend, other: FlatBackend
) -> None:
    first, second = other.open("papers"), replan_flat(backend, backend.open("papers"))
    backend.drop("papers")
    backend.create(manifest()).write(records(3))
    for stale in (first, second):
        with pytest.raises(CollectionNotFound, match="papers was dropped or replaced"):
            stale.count()
    relaid(backend)
    for stale in (first, second):
        with pytest.raises(CollectionNotFound, match="papers was dropped or replaced"):
            stale.write(records(1))
    assert other.open("papers").count() == 3


def test_a_successor_of_a_collection_that_was_made_anew_is_not_switched(
    backend: FlatBackend, other: FlatBackend
) -> None:
    successor = backend.successor(following(backend.open("papers")))
    other.drop("papers")
    other.create(manifest()).write(records(3))
    with pytest.raises(CollectionNotFound, match="papers was dropped or replaced"):
        backend.switch(successor)
    assert backend.open("papers").count() == 3


def test_a_switch_that_fails_leaves_the_collection_as_it_was(
    backend: FlatBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    papers = backend.open("papers")
    successor = backend.successor(following(papers))

    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(StoreError, match=r"no room to write in .*papers.*this write changed nothing"):
            backend.switch(successor)
    whole(papers)
    backend.discard(successor)
    assert "papers/1" not in lying(folder)
    whole(relaid(backend))


def test_switching_twice_changes_nothing(backend: FlatBackend) -> None:
    papers = backend.open("papers")
    successor = backend.successor(following(papers))
    successor.write(records())
    backend.switch(successor)
    backend.switch(successor)
    whole(successor)
    backend.discard(successor)
    whole(successor)
    successor.write(records(1, prefix="new"))
    assert backend.open("papers").count() == ROWS + 1
    replan_flat(backend, backend.open("papers"))
    with pytest.raises(LayoutChanged, match="papers"):
        successor.count()


def test_what_is_kept_survives_a_kill(backend: FlatBackend) -> None:
    script = (
        "import os, signal, sys\n"
        "from dataclasses import replace\n"
        "from vecbridge.backends.flat import connect\n"
        "papers = connect(sys.argv[1]).open('papers')\n"
        "papers.keep(replace(papers.manifest, rows=4321, recall=0.9))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    before = backend.open("papers")
    killed = start(script, backend.url)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    kept = backend.open("papers").manifest
    assert (kept.rows, kept.recall) == (4321, 0.9)
    assert before.manifest.rows == ROWS
    whole(before)


def test_what_another_generation_says_of_itself_is_not_kept(backend: FlatBackend) -> None:
    papers = backend.open("papers")
    with pytest.raises(LayoutChanged, match=r"expected what generation 0 .* got it of generation 1"):
        papers.keep(following(papers))
    assert backend.open("papers").manifest.generation == 0


def test_sizes_count_what_is_there_and_no_successor(backend: FlatBackend, folder: Path) -> None:
    papers = backend.open("papers")
    before = papers.sizes().table
    successor = backend.successor(following(papers))
    successor.write(records(2000, prefix="s"))
    assert papers.sizes().table < before + 10_000
    backend.discard(successor)
    papers = replan_flat(backend, papers)
    inside = folder / "papers" / papers.home
    assert papers.sizes().table == sum(path.stat().st_size for path in inside.iterdir())
    assert next(inside.glob("vectors.*")).stat().st_size == ROWS * DIM * 2


def test_a_folder_that_is_renamed_after_a_switch_is_the_collection_renamed(
    backend: FlatBackend, folder: Path
) -> None:
    relaid(backend).close()
    backend.close()
    (folder / "papers").rename(folder / "articles")
    with_other_name = connect(backend.url)
    assert with_other_name.names() == ["articles"]
    opened = with_other_name.open("articles")
    assert (opened.manifest.name, opened.manifest.generation) == ("articles", 1)
    whole(opened)
    with_other_name.close()


@pytest.mark.parametrize("content", ["", "1-00", "../elsewhere 00", "\x00\xff 1 2 3"])
def test_a_damaged_pointer_is_told_and_can_be_dropped(
    backend: FlatBackend, folder: Path, content: str
) -> None:
    relaid(backend).close()
    (folder / "papers" / "current").write_text(content, encoding="utf-8")
    with pytest.raises(ManifestError, match=r"expected the name of a folder and an id in .*current, found"):
        backend.open("papers")
    backend.create(manifest("notes"))
    assert backend.names() == ["notes", "papers"]
    broken = [finding for finding in backend.findings() if finding.level == "broken"]
    assert [finding.subject for finding in broken] == ["papers: manifest"]
    # nothing is cleared away where nobody knows what counts
    assert "papers/1" in lying(folder)
    backend.drop("papers")
    assert backend.names() == ["notes"]


def test_doctor_reads_the_files_that_count(backend: FlatBackend, folder: Path) -> None:
    papers = relaid(backend)
    assert {finding.level for finding in backend.findings()} == {"ok"}
    papers.close()
    (folder / "papers" / papers.home / "records.sqlite").write_bytes(b"this is no database" * 500)
    broken = [finding for finding in backend.findings() if finding.level == "broken"]
    assert [finding.subject for finding in broken] == ["papers: manifest"]


def test_only_what_belongs_to_a_collection_is_cleared_away(backend: FlatBackend, folder: Path) -> None:
    (folder / "papers" / "README").write_text("mine")
    relaid(backend).close()
    assert lying(folder) == [".lock", "papers", "papers/1", "papers/README", "papers/current"]
    assert homes.abandoned(folder / "papers") == []
