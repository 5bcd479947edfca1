"""Collections of Qdrant laid out anew: what a crash at any moment leaves, and two who do it at once."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_fakes_grpc import grpc_server
from qdrant_fakes_rest import Fault, RestServer, error, rest_server
from qdrant_places import ExactServers, parts

from vecbridge import connect
from vecbridge.backends import qdrant
from vecbridge.backends.qdrant import Qdrant, Table, blobs, generations
from vecbridge.backends.qdrant.engine import Engine
from vecbridge.errors import Busy, CollectionExists, CollectionNotFound, LayoutChanged, Unavailable
from vecbridge.manifest import Manifest
from vecbridge.reduction import fit
from vecbridge.replanning import replan
from vecbridge.testing import data, oracle
from vecbridge.types import Batch, Index, Layout, Shorten, Space

VECTORS = data.clustered(12, 6, seed=3)
PCA = Shorten("pca", 3)
# a fitted basis lies beside the collection: one more thing that must come and go with it
INDEXED = Layout(index=Index("hnsw", shorten=PCA, ef_search=50), oversample=4)
KINDS = ["edge", "rest", "grpc", "rest before metadata"]


class TestBeforeMetadata(ExactServers):
    """A server that knows no metadata of collections."""

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls) -> Iterator[Callable[[], str]]:
        with rest_server(version="1.15.5") as server, parts(server.url) as place:
            yield place


@contextmanager
def place(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty Qdrant of this kind."""
    if kind == "edge":
        pytest.importorskip("qdrant_edge")
        yield f"qdrant:{folder / 'place'}"
    elif kind == "grpc":
        with grpc_server() as fake:
            yield fake.url
    else:
        with rest_server(version="1.15.5" if "before" in kind else "1.19.0") as fake_rest:
            yield fake_rest.url


Opened = Callable[[str], Qdrant]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """What connects to a Qdrant for as long as the test takes."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(closing(qdrant.connect(url)))


@pytest.fixture
def server() -> Iterator[RestServer]:
    with rest_server() as fake:
        yield fake


def manifest(generation: int = 0, *, name: str = "papers", layout: Layout = INDEXED) -> Manifest:
    """A collection of the layout; each generation has a basis of its own."""
    sample = VECTORS * (1 + generation)
    basis = fit(PCA, source=6, metric="l2", sample=sample) if layout.index else None
    return Manifest(
        name,
        Space(6, "l2"),
        layout,
        12,
        index_reduction=basis,
        filterable={"n": "number"},
        generation=generation,
    )


def fill(table: Table) -> Table:
    reduction = table.manifest.index_reduction
    short = None if reduction is None else reduction.apply(VECTORS)
    table.write(
        Batch(data.names(12), VECTORS, ["é"] * 12, [{"n": n} for n in range(12)], [b"digest"] * 12, short)
    )
    return table


def assert_whole(table: Table) -> None:
    batch = table.read(data.names(12))
    assert (list(batch.ids), list(batch.documents)) == (data.names(12), ["é"] * 12)
    np.testing.assert_array_equal(batch.vectors, VECTORS)
    assert table.count() == 12


def physicals(engine: Engine, name: str = "papers") -> list[str]:
    """What Qdrant holds of a collection."""
    return generations.grouped(engine.collections()).get(name, [])


def kept(engine: Engine) -> set[str]:
    """The keys of what lies beside the collections."""
    if hasattr(engine, "_place"):
        folder = engine._place.path / "kept"
        return {one.name for one in folder.iterdir()} if folder.exists() else set()
    with suppress(CollectionNotFound):
        found, _ = engine.scroll(blobs.NAME, limit=1_000, payload=True)
        return {payload["blob"] for payload in found.payloads}
    return set()


class Killed(BaseException):
    """The process is gone: nothing catches this, and nothing is done after it."""


CHANGES = {"create", "drop", "annotate", "keep", "forget", "index_field", "upsert", "delete"}


class Mortal:
    """An engine whose process is killed at its n-th change, `done` or not."""

    def __init__(self, engine: Engine, at: int, *, done: bool) -> None:
        self._engine, self._left, self._done = engine, at, done
        self.dead = False

    def __getattr__(self, method: str) -> Any:
        whole = getattr(self._engine, method)
        if not callable(whole):
            return whole

        def call(*given: Any, **named: Any) -> Any:
            if self.dead:
                raise Killed
            if method in CHANGES:
                self._left -= 1
                if not self._left:
                    if self._done:
                        whole(*given, **named)
                    self.dead = True
                    raise Killed
            return whole(*given, **named)

        return call


def lay_out_anew(here: Qdrant, name: str) -> None:
    """Everything from the first request for a successor to the last one of the switch."""
    successor = here.successor(manifest(1, name=name))
    assert isinstance(successor, Table)
    here.switch(fill(successor))


@pytest.mark.parametrize("done", [False, True], ids=["before it", "after it"])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_change_it_is_one_collection_or_the_other_and_whole(
    tmp_path: Path, kind: str, done: bool, opened: Opened
) -> None:
    with place(kind, tmp_path) as url:
        here = opened(url)
        engine = here._engine
        seen = []
        for at in range(1, 100):
            name = f"papers{at}"
            fill(here.create(manifest(name=name)))
            mortal = Mortal(engine, at, done=done)
            with suppress(Killed):
                lay_out_anew(Qdrant(mortal), name)  # type: ignore[arg-type]  # __getattr__ gives what is missing
            before = {
                one.subject: one.level for one in here.findings() if one.subject.startswith(f"{name}: ")
            }
            assert ("broken" in before.values()) is False or before[f"{name}: index"] == "broken"
            assert (before.get(f"{name}: leftover") == "warning") == (len(physicals(engine, name)) > 1)
            assert name in here.names()
            table = here.open(name)
            assert_whole(table)
            seen.append(table.manifest.generation)
            # one that has taken over has nothing before it once it has been opened
            if table.manifest.generation:
                assert physicals(engine, name) == [table.physical]
            else:
                assert table.physical == name
            following = table.manifest.generation + 1
            again = here.successor(manifest(following, name=name))
            assert isinstance(again, Table)
            here.switch(fill(again))
            assert physicals(engine, name) == [again.physical]
            with pytest.raises(LayoutChanged, match=name):
                table.count()
            assert_whole(here.open(name))
            here.drop(name)
            assert physicals(engine, name) == []
            if not mortal.dead:
                break
        else:
            pytest.fail("it never came to its end")
        # every step before the switch leaves the old one, every later one the new one
        assert seen == sorted(seen)
        assert (seen[0], seen[-1]) == (0, 1)
        assert len(seen) > 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_drop_that_is_killed_leaves_a_whole_collection_or_none(
    tmp_path: Path, kind: str, opened: Opened
) -> None:
    with place(kind, tmp_path) as url:
        here = opened(url)
        for at in range(1, 100):
            fill(here.create(manifest()))
            waiting = here.successor(manifest(1))
            mortal = Mortal(here._engine, at, done=True)
            with suppress(Killed):
                Qdrant(mortal).drop("papers")  # type: ignore[arg-type]  # __getattr__ gives what is missing
            if here.names():
                assert_whole(here.open("papers"))
                here.drop("papers")
            with pytest.raises(CollectionNotFound, match="papers"):
                here.switch(waiting)
            if not mortal.dead:
                break
        assert at > 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_replaced_takes_its_basis_along(tmp_path: Path, kind: str, opened: Opened) -> None:
    with place(kind, tmp_path) as url:
        here = opened(url)
        table = fill(here.create(manifest()))
        before = kept(here._engine)
        assert before
        for generation in (1, 2):
            successor = here.successor(manifest(generation))
            assert isinstance(successor, Table)
            here.switch(fill(successor))
            table = here.open("papers")
            reduction = table.manifest.index_reduction
            expected = manifest(generation).index_reduction
            assert reduction is not None
            assert expected is not None
            assert reduction.basis_bytes() == expected.basis_bytes()
            now = kept(here._engine)
            assert len(now) == len(before)
            assert not now & before
            before = now
        here.discard(here.successor(manifest(3)))
        assert kept(here._engine) == before
        here.drop("papers")
        assert kept(here._engine) == set()


class Meeting:
    """An engine that lets somebody else act in full before its n-th request."""

    def __init__(self, engine: Engine, at: int, act: Callable[[], None]) -> None:
        self._engine, self._left, self._act = engine, at, act

    @property
    def met(self) -> bool:
        return self._left <= 0

    def __getattr__(self, method: str) -> Any:
        whole = getattr(self._engine, method)
        if not callable(whole) or method == "limits":
            return whole

        def call(*given: Any, **named: Any) -> Any:
            self._left -= 1
            if not self._left:
                self._act()
            return whole(*given, **named)

        return call


# what is asked of Edge is the same, and each of its collections takes a fifth of a second to make
@pytest.mark.parametrize("kind", KINDS[1:])
def test_of_two_who_lay_it_out_anew_at_once_one_wins_and_nothing_is_lost(
    tmp_path: Path, kind: str, opened: Opened
) -> None:
    """The second begins, or does all of it, at any moment while the first switches."""
    with place(kind, tmp_path) as url:
        here = opened(url)
        winners = set()
        for whole in (False, True):
            for at in range(1, 100):
                fill(here.create(manifest()))
                first = here.successor(manifest(1))
                assert isinstance(first, Table)
                fill(first)
                second: list[Table | Exception] = []

                def act(whole: bool = whole, second: list[Any] = second) -> None:
                    try:
                        made = here.successor(manifest(1))
                        assert isinstance(made, Table)
                        if whole:
                            here.switch(fill(made))
                        second.append(made)
                    except (LayoutChanged, CollectionNotFound) as lost:
                        second.append(lost)

                meeting = Meeting(here._engine, at, act)
                try:
                    Qdrant(meeting).switch(first)  # type: ignore[arg-type]  # __getattr__ gives what is missing
                    won = True
                except LayoutChanged:
                    won = False
                table = here.open("papers")
                assert_whole(table)
                if won:
                    assert table.physical == first.physical
                if second and isinstance(second[0], Table) and whole:
                    assert not won
                    assert table.physical == second[0].physical
                if second and not whole and isinstance(second[0], Table) and not won:
                    here.switch(fill(second[0]))
                    assert_whole(here.open("papers"))
                winners.add((whole, won))
                here.drop("papers")
                if not meeting.met:
                    break
            else:
                pytest.fail("it never came to its end")
        assert winners == {(False, False), (False, True), (True, False), (True, True)}


class Held:
    """An engine that answers so many requests, and the following ones only when it is let go."""

    def __init__(self, engine: Engine, requests: int, act: Callable[[Held], None]) -> None:
        self._engine, self._left = engine, requests
        self._state = threading.Condition()
        self._stopped = False
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=[act])

    def _run(self, act: Callable[[Held], None]) -> None:
        try:
            act(self)
        except BaseException as error:  # noqa: BLE001 - looked at by who started it
            self.failure = error
        self._stop()

    def _stop(self) -> None:
        with self._state:
            self._stopped = True
            self._state.notify_all()

    def run(self) -> None:
        """Begin, and return when it is held, or at its end."""
        self._thread.start()
        with self._state:
            assert self._state.wait_for(lambda: self._stopped, 60)

    def finish(self) -> None:
        """Let it go on to its end."""
        with self._state:
            self._left = 1_000
            self._state.notify_all()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def __getattr__(self, method: str) -> Any:
        whole = getattr(self._engine, method)
        if not callable(whole) or method == "limits":
            return whole

        def call(*given: Any, **named: Any) -> Any:
            if not self._left:
                self._stop()
            with self._state:
                assert self._state.wait_for(lambda: self._left > 0, 60)
                self._left -= 1
            return whole(*given, **named)

        return call


def test_a_switch_and_another_attempt_interleaved_in_any_way_lose_nothing(
    server: RestServer, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A switch stops after some requests, so does who wants its successor gone; then both go on."""
    monkeypatch.setattr(generations, "_PAUSE", 0.0)
    here = opened(server.url)
    won = set()
    for before, between in itertools.product(range(8), range(3, 10)):
        fill(here.create(manifest(layout=Layout())))
        first = here.successor(manifest(1, layout=Layout()))
        assert isinstance(first, Table)
        fill(first)
        switching = Held(
            here._engine,
            before,
            lambda engine, first=first: Qdrant(engine).switch(first),  # type: ignore[misc,arg-type]  # __getattr__ gives what is missing
        )
        clearing = Held(
            here._engine,
            between,
            lambda engine: Qdrant(engine).successor(manifest(1, layout=Layout())),  # type: ignore[arg-type,func-returns-value]  # as above
        )
        switching.run()
        clearing.run()
        switching.finish()
        clearing.finish()
        table = here.open("papers")
        assert_whole(table)
        for one in (switching, clearing):
            assert isinstance(one.failure, LayoutChanged | None), one.failure
        if switching.failure is None:
            assert table.physical == first.physical
        won.add((switching.failure is None, clearing.failure is None))
        here.drop("papers")
    # both may lose, and it is as it was; never do both win
    assert won >= {(True, False), (False, True)}
    assert (True, True) not in won


def test_a_switch_whose_removal_fails_is_a_switch_and_is_completed(
    server: RestServer, opened: Opened
) -> None:
    here, there = opened(server.url), opened(server.url)
    fill(here.create(manifest()))
    successor = here.successor(manifest(1))
    assert isinstance(successor, Table)
    fill(successor)
    server.faults.append(Fault(status=500, body=error("no"), on="DELETE /collections/papers$"))
    with pytest.raises(Exception, match="no"):
        here.switch(successor)
    assert len(physicals(here._engine)) == 2
    # whoever may not delete is served by the new one all the same
    server.faults.append(Fault(status=403, body=error("Forbidden"), on="DELETE /collections/papers$"))
    assert there.open("papers").manifest.generation == 1
    assert len(physicals(here._engine)) == 2
    here.switch(successor)
    assert physicals(here._engine) == [successor.physical]
    assert_whole(there.open("papers"))


def test_an_unreachable_server_in_the_middle_of_a_switch_is_said_so(
    server: RestServer, opened: Opened
) -> None:
    here = opened(server.url)
    here._engine._sleep = lambda seconds: None  # type: ignore[attr-defined]  # of servers alone
    fill(here.create(manifest()))
    successor = here.successor(manifest(1))
    assert isinstance(successor, Table)
    fill(successor)
    down = [Fault(status=503, body=b"restarting", on="PATCH .*~1-") for _ in range(6)]
    server.faults += down
    with pytest.raises(Unavailable, match="503"):
        here.switch(successor)
    assert here.open("papers").manifest.generation == 0
    here.switch(successor)
    assert here.open("papers").manifest.generation == 1


def test_a_collection_as_it_was_made_is_opened_by_one_request(server: RestServer, opened: Opened) -> None:
    here = opened(server.url)
    fill(here.create(manifest(layout=Layout())))

    def requests() -> list[str]:
        before = len(server.requests)
        here.open("papers")
        return [str(one) for one in server.requests[before:]]

    assert requests() == ["GET /collections/papers"]
    successor = here.successor(manifest(1, layout=Layout()))
    assert isinstance(successor, Table)
    assert requests() == ["GET /collections/papers"]
    here.switch(successor)
    assert requests() == [
        "GET /collections/papers", "GET /collections", f"GET /collections/{successor.physical}"
    ]  # fmt: skip


def test_searching_otherwise_sends_nothing_and_keeping_changes_the_metadata_alone(
    server: RestServer, opened: Opened
) -> None:
    here = opened(server.url)
    table = fill(here.create(manifest()))
    before = len(server.requests)
    table.searched(replace(INDEXED, oversample=9))
    assert len(server.requests) == before
    table.keep(replace(table.manifest, rows=99))
    sent = server.requests[before:]
    assert [str(one) for one in sent] == ["GET /collections/papers", "PATCH /collections/papers"]
    assert list(sent[-1].json) == ["metadata"]
    assert list(sent[-1].json["metadata"]) == ["vecbridge"]


def test_a_name_with_successors_is_taken_and_a_single_generation_is_nobodys_business(
    tmp_path: Path, opened: Opened
) -> None:
    with place("edge", tmp_path) as url:
        here = opened(url)
        fill(here.create(manifest()))
        successor = here.successor(manifest(1))
        assert isinstance(successor, Table)
        here.switch(fill(successor))
        with pytest.raises(CollectionExists, match="'papers'"):
            here.create(manifest())
        for use in (here.open, here.drop):
            with pytest.raises(CollectionNotFound, match="~1-"):
                use(successor.physical)
        assert_whole(here.open("papers"))


def test_what_others_call_nearly_the_same_is_left_alone(server: RestServer, opened: Opened) -> None:
    here = opened(server.url)
    engine = here._engine
    others = ["papers~1", "papers~1-abc", f"papers~0-{'0' * 16}"]
    for name in others:
        engine.create(name, {"vectors": {"size": 4, "distance": "Dot"}})
    fill(here.create(manifest()))
    assert here.names() == ["papers"]
    successor = here.successor(manifest(1))
    assert isinstance(successor, Table)
    here.switch(fill(successor))
    assert {one.found for one in here.findings() if one.subject == "collections"} == {
        "1, beside 3 that are not vecbridge's"
    }
    here.drop("papers")
    assert set(others) <= set(engine.collections())


def test_what_is_left_of_a_dropped_collection_is_told_and_goes_with_the_next(
    server: RestServer, opened: Opened
) -> None:
    here = opened(server.url)
    here.create(manifest())
    successor = here.successor(manifest(1))
    assert isinstance(successor, Table)
    # as another program drops it
    here._engine.drop("papers")
    assert here.names() == []
    [told] = [one for one in here.findings() if one.subject == "papers: leftover"]
    assert (told.level, successor.physical in told.found) == ("warning", True)
    with pytest.raises(CollectionNotFound, match="'papers'"):
        here.open("papers")
    fill(here.create(manifest()))
    assert physicals(here._engine) == ["papers"]
    assert_whole(here.open("papers"))


# Edge


def test_nobody_waits_for_a_writer_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opened
) -> None:
    with place("edge", tmp_path) as url:
        from vecbridge.backends.qdrant.edge import place as edge_place

        monkeypatch.setattr(edge_place, "PATIENCE", 0.05)
        here = opened(url)
        table = fill(here.create(manifest()))
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with table.paused():
                held.set()
                done.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        try:
            assert held.wait(60)
            with (
                pytest.raises(Busy, match="'papers' has been written to, or its index built"),
                table.paused(),
            ):
                pytest.fail("two paused it at once")
            assert_whole(table)
        finally:
            done.set()
            thread.join()
        with table.paused():
            pass


def test_what_is_kept_during_a_build_outlives_it(tmp_path: Path, opened: Opened) -> None:
    with place("edge", tmp_path) as url:
        here = opened(url)
        table = fill(here.create(manifest()))
        changed = replace(table.manifest, rows=4_321)
        threads: list[threading.Thread] = []

        def keep(stage: str, done: int, total: int | None) -> None:
            if not threads:
                threads.append(threading.Thread(target=table.keep, args=[changed]))
                threads[0].start()
                time.sleep(0.05)

        table.build_index(keep)
        threads[0].join()
        assert here.open("papers").manifest.rows == 4_321
        assert here.open("papers").index_state().status == "ready"


KILL = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from test_qdrant_succession import Table, fill, generations, manifest, qdrant
place = qdrant.connect(sys.argv[1])
fill(place.create(manifest()))
def die(*given):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(generations.Generations, sys.argv[3], die)
place.switch(fill(place.successor(manifest(1))))
"""


@pytest.mark.parametrize(("step", "generation"), [("remove", 1), ("appoint", 0)])
def test_a_killed_process_leaves_one_of_both_on_disk(
    tmp_path: Path, step: str, generation: int, opened: Opened
) -> None:
    with place("edge", tmp_path) as url:
        command = [sys.executable, "-W", "error", "-c", KILL, url, str(Path(__file__).parent), step]
        killed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert killed.returncode == -9, killed.stderr
        with connect(url) as store:
            assert store.collections() == ["papers"]
        here = opened(url)
        assert len(physicals(here._engine)) == 2
        table = here.open("papers")
        assert table.manifest.generation == generation
        assert_whole(table)
        table.build_index(None)
        assert oracle.inventory(table.inventory()) == dict.fromkeys(data.names(12), b"digest")
        anew = replan(here, table, manifest(generation + 1), progress=None)
        assert anew.index_state().used
        assert physicals(here._engine) == [here.open("papers").physical]
        assert len(list((tmp_path / "place" / "collections").iterdir())) == 1
