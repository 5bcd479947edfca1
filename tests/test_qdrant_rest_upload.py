"""Qdrant by REST: uploads of many points, builds that are waited for, bytes kept beside the collections."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from qdrant_fakes_rest import LARGEST, Fault, Refusal, RestServer, error, opened, points, rest_server

from vecbridge.backends.qdrant import blobs, rest
from vecbridge.backends.qdrant.engine import Json
from vecbridge.backends.qdrant.rest import Rest
from vecbridge.backends.qdrant.server import Strict
from vecbridge.errors import IndexFailure, InputError, StoreError, Unavailable

VECTORS: Json = {"size": 8, "distance": "Euclid"}
CONFIG: Json = {"vectors": VECTORS, "hnsw_config": {"m": 0}, "metadata": {"vecbridge": {"manifest": "m"}}}


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[RestServer]:
    with rest_server() as running:
        yield running


@pytest.fixture
def engine(server: RestServer) -> Iterator[Rest]:
    with opened(server.url) as (opening, _):
        yield opening


# many points


def test_bodies_stay_below_what_the_server_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rest.ROOM == LARGEST
    monkeypatch.setattr(rest, "ROOM", 300_000)
    with rest_server(largest=300_000) as server, opened(server.url) as (engine, _):
        engine.create("c", {"vectors": {"size": 256, "distance": "Dot"}})
        engine.upsert("c", points(130, dim=256))
        sizes = sorted(int(one.headers["content-length"]) for one in server.sent("PUT .*/points"))
        assert len(sizes) == 2
        assert sizes[-1] <= 300_000
        assert engine.count("c") == 130


def test_a_smaller_limit_is_learned_once() -> None:
    with rest_server(largest=100_000) as server, opened(server.url) as (engine, waits):
        engine.create("c", {"vectors": {"size": 256, "distance": "Dot"}})
        engine.upsert("c", points(100, dim=256))
        assert engine.count("c") == 100
        refused, *accepted = [
            int(request.headers["content-length"]) for request in server.sent("PUT .*/points")
        ]
        assert refused > 100_000
        assert max(accepted) <= 100_000
        before = len(server.sent("PUT .*/points"))
        engine.upsert("c", points(100, dim=256, seed=2))
        assert len(server.sent("PUT .*/points")) - before == len(accepted)
        assert waits == []


def test_a_proxy_that_tells_no_limit_is_given_less_and_less(server: RestServer, engine: Rest) -> None:
    engine.create("c", {"vectors": {"size": 256, "distance": "Dot"}})
    server.faults = [Fault(413, b"<h1>Request Entity Too Large</h1>", on="PUT .*/points")] * 2
    engine.upsert("c", points(64, dim=256))
    assert engine.count("c") == 64
    rows = [len(request.json["points"]) for request in server.sent("PUT .*/points")]
    assert rows[0] == 64
    assert rows[1] < 64
    assert sum(rows[2:]) == 64


def test_a_single_point_that_is_too_large_is_refused_with_the_servers_numbers() -> None:
    with rest_server(largest=2_000) as server, opened(server.url) as (engine, waits):
        engine.create("c", {"vectors": {"size": 256, "distance": "Dot"}})
        with pytest.raises(
            StoreError, match=r"larger than allowed \(limit: 2000 bytes\).*max_request_size_mb"
        ):
            engine.upsert("c", points(1, dim=256))
        assert waits == []


def test_strict_mode_bounds_what_one_request_holds(server: RestServer, engine: Rest) -> None:
    mode = {"enabled": True, "upsert_max_batchsize": 7, "max_query_limit": 4}
    engine.create("c", {**CONFIG, "strict_mode_config": mode})
    engine.upsert("c", points(20))
    rows = [len(request.json["points"]) for request in server.sent("PUT .*/points")]
    assert sorted(rows) == [6, 7, 7]
    page, after = engine.scroll("c", limit=100, payload=False)
    assert len(page.ids) == 4
    assert after is not None


def test_strict_mode_that_is_off_bounds_nothing(server: RestServer, engine: Rest) -> None:
    engine.create("c", {**CONFIG, "strict_mode_config": {"enabled": False, "upsert_max_batchsize": 7}})
    engine.upsert("c", points(20))
    assert len(server.sent("PUT .*/points")) == 1


def test_strict_mode_is_read_again_after_a_refusal(server: RestServer, engine: Rest) -> None:
    engine.create("c", CONFIG)
    engine.upsert("c", points(1))
    engine.optimise("c", {"strict_mode_config": {"enabled": True, "upsert_max_batchsize": 5}}, None)
    engine._strict.clear()
    engine.upsert("c", points(1))
    engine._strict["c"] = Strict()
    with pytest.raises(InputError, match="upsert_max_batchsize"):
        engine.upsert("c", points(20))
    engine.upsert("c", points(20))
    assert engine.count("c") == 20


def test_a_failure_between_bodies_stops_and_says_how_much_is_stored(server: RestServer, engine: Rest) -> None:
    mode = {"enabled": True, "upsert_max_batchsize": 10}
    engine.create("c", {**CONFIG, "strict_mode_config": mode})
    sent = points(100)
    bad = f'"id":"{sent.ids[35]}"'
    real = server.answer

    def answer(request: Any) -> Any:
        if request.method == "PUT" and bad.encode() in request.body:
            server.faults = []
            raise Refusal(507, "Insufficient storage: disk")
        return real(request)

    server.answer = answer  # type: ignore[method-assign] # the fault depends on the body
    with pytest.raises(
        StoreError, match=r"Insufficient storage.*; \d\d of 100 points are stored, the same"
    ) as caught:
        engine.upsert("c", sent)
    stored = engine.count("c")
    assert f"{stored} of 100 points" in str(caught.value)
    assert stored < 90
    server.answer = real  # type: ignore[method-assign] # as before
    engine.upsert("c", sent)
    assert engine.count("c") == 100


def test_at_most_two_bodies_are_on_their_way(server: RestServer, engine: Rest) -> None:
    engine.create("c", {**CONFIG, "strict_mode_config": {"enabled": True, "upsert_max_batchsize": 1}})
    real, lock = server.answer, threading.Lock()
    both, third = threading.Barrier(2), threading.Event()
    inside, seen = 0, 0

    def answer(request: Any) -> Any:
        nonlocal inside, seen
        if request.method != "PUT":
            return real(request)
        with lock:
            inside, seen = inside + 1, seen + 1
            first = seen <= 2
            if inside > 2:
                third.set()
        if first:
            both.wait(30)  # two come at a time, or this fails
            third.wait(0.3)  # and nobody else meanwhile
        try:
            return real(request)
        finally:
            with lock:
                inside -= 1

    server.answer = answer  # type: ignore[method-assign] # to see how many are inside
    engine.upsert("c", points(8))
    assert not third.is_set()
    server.answer = real  # type: ignore[method-assign] # as before
    assert engine.count("c") == 8


# building an index


def test_building_is_over_when_the_collection_is_green(server: RestServer) -> None:
    with opened(server.url) as (engine, waits):
        engine.create("c", CONFIG)
        server.states = [
            {"status": "yellow", "indexed_vectors_count": 0, "points_count": 100},
            {"status": "yellow", "indexed_vectors_count": 60, "points_count": 100},
            {"status": "green", "indexed_vectors_count": 200, "points_count": 100},
            {"status": "green", "indexed_vectors_count": 200, "points_count": 100},
        ]
        seen: list[tuple[str, int, int | None]] = []
        engine.optimise("c", {"hnsw_config": {"m": 16}}, lambda *step: seen.append(step))
        assert seen == [("index", 0, 100), ("index", 60, 100), *[("index", 100, 100)] * 2]
        assert len(waits) == 3
        assert len(server.sent("PATCH")) == 1
        assert engine.describe("c")["config"]["hnsw_config"]["m"] == 16


def test_a_grey_collection_is_woken_by_the_same_change(server: RestServer) -> None:
    with opened(server.url) as (engine, _):
        engine.create("c", CONFIG)
        server.states = [{"status": "grey"}, {"status": "yellow"}, {"status": "green"}]
        engine.optimise("c", {"hnsw_config": {"m": 16}}, None)
        assert [request.json for request in server.sent("PATCH")] == [{"hnsw_config": {"m": 16}}] * 2


@pytest.mark.parametrize(
    "state",
    [
        {"status": "red", "optimizer_status": {"error": "no space left"}},
        {"status": "yellow", "optimizer_status": {"error": "no space left"}},
    ],
)
def test_an_optimiser_that_fails_is_an_index_failure(server: RestServer, state: Json) -> None:
    with opened(server.url) as (engine, _):
        engine.create("c", CONFIG)
        server.states = [{"status": "yellow"}, state]
        with pytest.raises(IndexFailure, match="could not build the index of 'c': no space left"):
            engine.optimise("c", {"hnsw_config": {"m": 16}}, None)


def test_building_survives_a_restart_of_the_server(server: RestServer) -> None:
    with opened(server.url) as (engine, _):
        engine.create("c", CONFIG)
        server.states = [{"status": "yellow"}, {"status": "green"}]
        away = [Fault(lose="answer", on="GET /collections/c"), Fault(503, b"", on="GET /collections/c")]
        server.faults = away * 20
        engine.optimise("c", {"hnsw_config": {"m": 16}}, None)
        assert server.faults == []


def test_building_ends_when_the_server_stays_away(
    server: RestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecbridge.backends.qdrant.server.RESTART", 0.0)
    with opened(server.url) as (engine, _):
        engine.create("c", CONFIG)
        server.faults = [Fault(503, error("starting"), on="GET /collections/c")] * 50
        with pytest.raises(
            Unavailable, match=r"no answer for 0 s while it built the index of 'c' \(starting"
        ):
            engine.optimise("c", {"hnsw_config": {"m": 16}}, None)


# what lies beside the collections


def test_bytes_are_kept_replaced_and_forgotten(engine: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "PART", 3_000)
    long = np.random.default_rng(3).bytes(2 * blobs.PART + 5)
    assert engine.kept("k") is None
    engine.forget("k")
    for content in (long, b"", b"short", long[: blobs.PART], long):
        engine.keep("k", content)
        engine.keep("other", b"other")
        assert engine.kept("k") == content
    # the head and its parts, and nothing of what was replaced
    assert engine.count(blobs.NAME) == 1 + 3 + 2
    engine.forget("k")
    assert engine.kept("k") is None
    assert engine.kept("other") == b"other"
    assert engine.count(blobs.NAME) == 2


@pytest.mark.parametrize("before", [None, b"the one before"])
def test_bytes_written_by_half_are_as_if_never_written(
    server: RestServer, engine: Rest, before: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "PART", 3_000)
    if before is not None:
        engine.keep("k", before)
    else:
        engine.keep("other", b"makes the collection")
    real = server.answer
    sent = 0

    def answer(request: Any) -> Any:
        nonlocal sent
        if request.method == "PUT":
            sent += 1
            if sent == 3:
                raise Refusal(507, "Insufficient storage: disk")
        return real(request)

    server.answer = answer  # type: ignore[method-assign] # the third part is refused
    with pytest.raises(StoreError, match="Insufficient storage"):
        engine.keep("k", bytes(3 * blobs.PART))
    server.answer = real  # type: ignore[method-assign] # as before
    assert engine.kept("k") == before
    engine.forget("k")
    assert engine.count(blobs.NAME) == (2 if before is None else 0)


def test_a_part_that_is_missing_is_noticed(engine: Rest) -> None:
    engine.keep("k", bytes(blobs.PART + 1))
    (part,) = [
        one
        for one, payload in zip(*_everything(engine), strict=True)
        if payload.get("content") and len(payload["content"]) < 100
    ]
    engine.delete(blobs.NAME, [part])
    assert engine.kept("k") is None


def _everything(engine: Rest) -> tuple[list[str], list[Json]]:
    page, _ = engine.scroll(blobs.NAME, limit=100, payload=True)
    return page.ids, page.payloads
