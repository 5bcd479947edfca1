"""What engines for a server share, whatever the protocol: uploads in parts, waiting, what is not listed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import numpy as np
import pytest
from grpc import StatusCode
from qdrant_fakes_grpc import Fault as GrpcFault
from qdrant_fakes_grpc import grpc_server
from qdrant_fakes_rest import Fault, error, opened, rest_server

from vecbridge.backends.qdrant.address import parse
from vecbridge.backends.qdrant.failures import Refused
from vecbridge.backends.qdrant.grpc import Grpc
from vecbridge.backends.qdrant.server import Server, cut, upload
from vecbridge.errors import Busy, CollectionNotFound, StoreError

Fail = Callable[[str, int], None]
CONFIG = {"vectors": {"size": 8, "distance": "Dot"}, "hnsw_config": {"m": 0}}


@contextmanager
def server(protocol: str) -> Iterator[tuple[Server, Fail, list[float]]]:
    """An engine on a server of its own; what makes its next look at a collection fail; the engine's waits."""
    waits: list[float] = []
    if protocol == "grpc":
        with grpc_server() as fake, closing(Grpc(parse(fake.url), sleep=waits.append)) as engine:
            yield engine, lambda text, seconds: fake.fail("Collections/Get", refusal(text, seconds)), waits
    else:
        with rest_server() as state, opened(state.url) as (engine, waits):

            def fail(text: str, seconds: int) -> None:
                headers = {"Retry-After": str(seconds)}
                state.faults = [Fault(429, error(text), headers, on="GET /collections/papers")]

            yield engine, fail, waits


def refusal(text: str, seconds: int) -> GrpcFault:
    return GrpcFault(StatusCode.RESOURCE_EXHAUSTED, text, (("retry-after", str(seconds)),))


RUNS = [range(start, start + 10) for start in range(0, 100, 10)]


@pytest.mark.parametrize("failing", ["_0", "_1"])
def test_whichever_part_fails_no_further_one_is_begun_and_the_stored_ones_are_told(failing: str) -> None:
    failed = threading.Event()
    sent: list[str] = []

    def send(rows: range, stream: int) -> None:
        name = threading.current_thread().name
        sent.append(name)
        if name.endswith(failing):
            failed.set()
            raise Refused("full", "no space")
        assert failed.wait(30)

    with pytest.raises(Refused, match="no space") as caught:
        upload(RUNS, send, streams=2)
    # one more may have been taken between the failure and the word of it
    assert len(sent) <= 3
    assert caught.value.stored == ((10 * (len(sent) - 1), 100) if len(sent) > 1 else None)


def test_smaller_parts_take_the_place_of_one_that_is_too_large() -> None:
    sent: list[range] = []
    lock = threading.Lock()

    def send(rows: range, stream: int) -> Sequence[range] | None:
        with lock:
            sent.append(rows)
        if len(rows) > 3:
            middle = (rows.start + rows.stop) // 2
            return [range(rows.start, middle), range(middle, rows.stop)]
        return None

    for runs in ([range(100)], RUNS):
        sent.clear()
        upload(runs, send, streams=3)
        assert sorted(row for rows in sent if len(rows) <= 3 for row in rows) == list(range(100))


def test_a_single_part_is_sent_by_the_thread_that_asks_for_it() -> None:
    seen: list[tuple[str, int]] = []
    upload([range(5)], lambda rows, stream: seen.append((threading.current_thread().name, stream)), streams=3)
    assert seen == [(threading.current_thread().name, 0)]


def test_an_error_that_is_no_refusal_comes_out_as_it_is() -> None:
    def send(rows: range, stream: int) -> None:
        if rows.start == 30:
            raise StoreError("closed")

    with pytest.raises(StoreError, match=r"^closed$"):
        upload(RUNS, send, streams=3)


def test_runs_cover_everything_once_in_order() -> None:
    seed = 7
    random = np.random.default_rng(seed)
    for _ in range(200):
        sizes = random.integers(1, 40, random.integers(0, 30)).tolist()
        most = None if random.random() < 0.3 else int(random.integers(1, 8))
        runs = list(cut(sizes, room=50, most=most))
        assert [row for run in runs for row in run] == list(range(len(sizes))), f"seed {seed}"
        for run in runs:
            assert len(run) == 1 or sum(sizes[run.start : run.stop]) <= 50
            assert most is None or len(run) <= most


# both protocols


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_where_bytes_are_kept_is_not_listed_among_the_collections(protocol: str) -> None:
    with server(protocol) as (engine, _, _):
        engine.create("papers", CONFIG)
        engine.keep("basis-1", b"bytes")
        assert engine.kept("basis-1") == b"bytes"
        assert engine.collections() == ["papers"]


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_a_server_that_asks_to_wait_during_a_build_is_not_asked_sooner(protocol: str) -> None:
    with server(protocol) as (engine, fail, waits):
        engine.create("papers", CONFIG)
        fail("busy", 30)
        engine.optimise("papers", {"hnsw_config": {"m": 16}}, None)
        assert 30.0 in waits
        assert waits.count(30.0) == 1


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_a_server_that_asks_for_too_long_a_wait_during_a_build_is_busy(protocol: str) -> None:
    with server(protocol) as (engine, fail, waits):
        engine.create("papers", CONFIG)
        fail("busy", 600)
        with pytest.raises(Busy, match="busy; the server asks to wait 600 s"):
            engine.optimise("papers", {"hnsw_config": {"m": 16}}, None)
        assert waits == []


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_a_collection_that_others_drop_during_its_build_is_not_found(protocol: str) -> None:
    with server(protocol) as (engine, _, _):
        engine.create("papers", CONFIG)
        stages: list[int] = []

        def dropping(stage: str, done: int, total: int | None) -> None:
            stages.append(done)
            engine.drop("papers")

        with pytest.raises(CollectionNotFound, match="there is no collection 'papers'"):
            engine.optimise("papers", {"hnsw_config": {"m": 16}}, dropping)
        assert stages == [0]


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_nothing_found_has_no_vectors_and_nothing_to_delete_is_not_sent(protocol: str) -> None:
    with server(protocol) as (engine, fail, _):
        engine.create("papers", CONFIG)
        found = engine.retrieve("papers", [], payload=True, vectors="")
        assert (found.ids, found.payloads, found.vectors) == ([], [], None)
        page, after = engine.scroll("papers", limit=5, payload=True, vectors="")
        assert (page.ids, page.vectors, after) == ([], None, None)
        fail("busy", 600)
        engine.delete("papers", [])
        with pytest.raises(Busy, match="busy"):
            engine.describe("papers")
