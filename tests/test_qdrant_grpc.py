"""The gRPC engine against a server on loopback: what it sends, and what it makes of every kind of answer."""

from __future__ import annotations

import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from qdrant_client import grpc as q
from qdrant_fakes_grpc import Fake, Fault, cutting, free_port, grpc_server

from vecbridge.backends.qdrant import grpc as module
from vecbridge.backends.qdrant import server as qdrant_server
from vecbridge.backends.qdrant.address import parse
from vecbridge.backends.qdrant.engine import FULL, SHORT, Json, Points, Query
from vecbridge.backends.qdrant.failures import ATTEMPTS
from vecbridge.backends.qdrant.grpc import Grpc, connect
from vecbridge.backends.qdrant.grpc import calls as grpc_calls
from vecbridge.errors import (
    Busy,
    CollectionExists,
    CollectionNotFound,
    FeatureMissing,
    Forbidden,
    IndexFailure,
    InputError,
    StoreError,
    Unavailable,
    VecbridgeError,
)

KEY = "s3cret-Key"
DIM = 8
CONFIG: Json = {
    "vectors": {"size": DIM, "distance": "Cosine"},
    "hnsw_config": {"m": 0},
    "metadata": {"vecbridge": {"manifest": "{}", "none": None, "large": 2**63 - 1, "half": 0.5}},
}


@pytest.fixture
def fake() -> Iterator[Fake]:
    with grpc_server(key=KEY) as server:
        yield server


@pytest.fixture
def waits() -> list[float]:
    """The seconds that the engine would have waited."""
    return []


@pytest.fixture
def engine(fake: Fake, waits: list[float]) -> Iterator[Grpc]:
    with closing(Grpc(parse(fake.url), sleep=waits.append)) as opened:
        yield opened


def points(n: int, dim: int = DIM, *, start: int = 0) -> Points:
    """Unit vectors of one seed, with payloads that tell them apart."""
    rows = np.random.default_rng(start).standard_normal((n, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(start + row))) for row in range(n)]
    return Points(names, {"": rows}, [{"id": f"p{start + row}", "n": start + row} for row in range(n)])


# what comes back


def test_a_collection_is_described_as_it_was_made(engine: Grpc) -> None:
    engine.create("papers", CONFIG)
    there = engine.describe("papers")
    assert engine.collections() == ["papers"]
    assert there["config"]["params"]["vectors"] == {"size": DIM, "distance": "Cosine"}
    assert there["config"]["hnsw_config"]["m"] == 0
    assert there["config"]["metadata"] == CONFIG["metadata"]
    assert (there["status"], there["points_count"], there["indexed_vectors_count"]) == ("green", 0, 0)


def test_points_are_found_read_counted_and_deleted(engine: Grpc) -> None:
    engine.create("papers", CONFIG)
    some = points(9)
    rows = some.vectors[""]
    engine.upsert("papers", some)
    over_5: Json = {"must": [{"key": "n", "range": {"gt": 5}}]}
    first, second = engine.query("papers", [Query(rows[3], 2), Query(rows[3], 9, filter=over_5)])
    assert first[0].payload == {"id": "p3", "n": 3}
    assert first[0].score == pytest.approx(1.0, abs=1e-6)
    assert sorted(one.payload["n"] for one in second) == [6, 7, 8]

    found = engine.retrieve("papers", [some.ids[4], str(uuid.uuid4())], payload=["n"], vectors="")
    assert (found.ids, found.payloads) == ([some.ids[4]], [{"n": 4}])
    assert found.vectors is not None
    assert np.allclose(found.vectors, rows[4:5], atol=1e-6)
    bare = engine.retrieve("papers", some.ids, payload=False, vectors=None)
    assert (bare.payloads, bare.vectors, sorted(bare.ids)) == ([], None, sorted(some.ids))

    assert engine.count("papers") == 9
    assert engine.count("papers", over_5) == 3
    engine.delete("papers", [*some.ids[:2], str(uuid.uuid4())])
    assert engine.count("papers") == 7


def test_scrolling_goes_through_all_points_in_the_order_of_their_ids(engine: Grpc) -> None:
    engine.create("papers", CONFIG)
    some = points(7)
    engine.upsert("papers", some)
    seen: list[str] = []
    offset = None
    while True:
        found, offset = engine.scroll("papers", limit=3, offset=offset, payload=False, vectors="")
        assert found.vectors is not None
        assert found.vectors.shape == (len(found.ids), DIM)
        seen += found.ids
        if offset is None:
            break
    assert seen == sorted(some.ids)
    matching, _ = engine.scroll(
        "papers", limit=9, filter={"must": [{"key": "n", "match": {"value": 4}}]}, payload=True
    )
    assert matching.payloads == [{"id": "p4", "n": 4}]


def test_two_vectors_are_kept_and_the_short_one_narrows_the_search(engine: Grpc, fake: Fake) -> None:
    vectors = {
        FULL: {"size": DIM, "distance": "Dot", "hnsw_config": {"m": 0}},
        SHORT: {"size": 2, "distance": "Dot"},
    }
    engine.create("papers", {**CONFIG, "vectors": vectors})
    some = points(6)
    full = some.vectors[""]
    short = np.ascontiguousarray(full[:, :2])
    engine.upsert("papers", Points(some.ids, {FULL: full, SHORT: short}, some.payloads))
    narrow = Query(short[0], 3, using=SHORT)
    (hits,) = engine.query("papers", [Query(full[1], 6, using=FULL, prefetch=narrow)])
    nearest = np.argsort(-(short @ short[0]))[:3]
    assert sorted(hit.payload["n"] for hit in hits) == sorted(nearest.tolist())
    by_full = sorted(nearest.tolist(), key=lambda row: -float(full[row] @ full[1]))
    assert [hit.payload["n"] for hit in hits] == by_full
    found = engine.retrieve("papers", some.ids[:1], payload=False, vectors=FULL)
    assert found.vectors is not None
    assert np.array_equal(found.vectors, full[:1])


def test_the_score_of_euclid_is_the_distance_itself(engine: Grpc) -> None:
    engine.create("papers", {**CONFIG, "vectors": {"size": 2, "distance": "Euclid"}})
    rows = np.array([[0, 0], [3, 4]], dtype=np.float32)
    engine.upsert("papers", Points(points(2).ids, {"": rows}, [{"n": 0}, {"n": 1}]))
    (hits,) = engine.query("papers", [Query(rows[0], 2)])
    assert [(hit.payload["n"], hit.score) for hit in hits] == [(0, 0.0), (1, 5.0)]


def test_bytes_are_kept_beside_the_collections(engine: Grpc) -> None:
    content = np.random.default_rng(1).bytes(7 * 1024 * 1024)
    assert engine.kept("basis") is None
    engine.keep("basis", content)
    assert engine.kept("basis") == content
    assert engine.collections() == []
    engine.forget("basis")
    assert engine.kept("basis") is None


def test_sizes_grow_by_the_vectors_and_by_the_graph(engine: Grpc) -> None:
    engine.create("papers", CONFIG)
    before = engine.sizes("papers")
    engine.upsert("papers", points(100))
    loaded = engine.sizes("papers")
    assert before.table == before.index == loaded.index == 0
    assert loaded.table >= 100 * DIM * 4
    change = {"hnsw_config": {"m": 16}, "quantization_config": {"scalar": {"type": "int8"}}}
    engine.optimise("papers", change, None)
    assert engine.sizes("papers").table == loaded.table
    assert engine.sizes("papers").index > 100 * DIM


def test_a_payload_field_is_indexed(engine: Grpc, fake: Fake) -> None:
    engine.create("papers", CONFIG)
    for schema in ("keyword", "integer", "float", "bool"):
        engine.index_field("papers", f"metadata.{schema}", schema)
    described = engine.describe("papers")["payload_schema"]
    assert {field: entry["data_type"] for field, entry in described.items()} == {
        f"metadata.{schema}": schema for schema in ("keyword", "integer", "float", "bool")
    }


def test_what_is_not_there_is_named_by_every_call(engine: Grpc) -> None:
    some = points(1)
    match = r"^there is no collection 'none' in qdrant://127\.0\.0\.1:\d+$"
    for call in (
        lambda: engine.describe("none"),
        lambda: engine.drop("none"),
        lambda: engine.upsert("none", some),
        lambda: engine.query("none", [Query(some.vectors[""][0], 1)]),
        lambda: engine.retrieve("none", some.ids, payload=True, vectors=None),
        lambda: engine.scroll("none", limit=1, payload=True),
        lambda: engine.count("none"),
        lambda: engine.delete("none", some.ids),
        lambda: engine.index_field("none", "a", "keyword"),
        lambda: engine.optimise("none", {"hnsw_config": {"m": 16}}, None),
        lambda: engine.sizes("none"),
    ):
        with pytest.raises(CollectionNotFound, match=match):
            call()


# refusals


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (StatusCode.INVALID_ARGUMENT, InputError, "what went wrong.*nothing was changed"),
        (StatusCode.OUT_OF_RANGE, InputError, "what went wrong"),
        (StatusCode.NOT_FOUND, CollectionNotFound, "there is no collection 'papers'"),
        (StatusCode.ALREADY_EXISTS, CollectionExists, "'papers' is in .* already"),
        (StatusCode.UNAUTHENTICATED, Forbidden, "what went wrong; set QDRANT_API_KEY"),
        (StatusCode.PERMISSION_DENIED, Forbidden, "what went wrong; set QDRANT_API_KEY"),
        (StatusCode.FAILED_PRECONDITION, StoreError, "what went wrong"),
        (StatusCode.RESOURCE_EXHAUSTED, StoreError, "what went wrong; free disk or memory"),
        (StatusCode.UNIMPLEMENTED, FeatureMissing, "what went wrong"),
        (StatusCode.INTERNAL, StoreError, "what went wrong"),
        (StatusCode.UNKNOWN, StoreError, "what went wrong"),
        (StatusCode.DATA_LOSS, StoreError, "what went wrong"),
        (StatusCode.ABORTED, StoreError, "what went wrong"),
    ],
    ids=lambda value: value.name if isinstance(value, StatusCode) else "",
)
@pytest.mark.parametrize("method", ["Points/Upsert", "Points/Count", "Collections/Create"])
def test_what_is_permanent_is_said_once_and_never_sent_again(
    engine: Grpc, fake: Fake, waits: list[float], code: StatusCode, error: type, text: str, method: str
) -> None:
    calls = {
        "Points/Upsert": lambda: engine.upsert("papers", points(2)),
        "Points/Count": lambda: engine.count("papers"),
        "Collections/Create": lambda: engine.create("papers", CONFIG),
    }
    if method != "Collections/Create":
        engine.create("papers", CONFIG)
    before = fake.count(method)
    fake.fail(method, Fault(code, "what went wrong"))
    with pytest.raises(error, match=text) as raised:
        calls[method]()
    assert type(raised.value) is error
    assert fake.count(method) - before == 1
    assert waits == []


@pytest.mark.parametrize(
    "code", [StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED], ids=lambda c: c.name
)
def test_what_may_pass_is_sent_again_after_growing_waits(
    engine: Grpc, fake: Fake, waits: list[float], code: StatusCode
) -> None:
    engine.create("papers", CONFIG)
    fake.fail("Points/Upsert", *[Fault(code, "later")] * 4)
    engine.upsert("papers", points(3))
    sent = fake.raw("Points/Upsert")
    assert len(sent) == 5
    assert set(sent) == {sent[0]}
    assert engine.count("papers") == 3
    assert all(0.125 * 2**turn <= wait <= 0.25 * 2**turn for turn, wait in enumerate(waits))
    assert len(waits) == 4


def test_it_gives_up_after_six_attempts(engine: Grpc, fake: Fake, waits: list[float]) -> None:
    engine.create("papers", CONFIG)
    fake.fail("Points/Count", *[Fault(StatusCode.UNAVAILABLE, "shard is away")] * 10)
    with pytest.raises(Unavailable, match=r"^qdrant://127\.0\.0\.1:\d+: shard is away$"):
        engine.count("papers")
    assert fake.count("Points/Count") == ATTEMPTS
    assert len(waits) == ATTEMPTS - 1


def test_a_server_that_says_how_long_to_wait_is_obeyed(engine: Grpc, fake: Fake, waits: list[float]) -> None:
    engine.create("papers", CONFIG)
    limited = Fault(StatusCode.RESOURCE_EXHAUSTED, "Rate limiting exceeded", (("retry-after", "7"),))
    fake.fail("Points/Upsert", limited, limited)
    engine.upsert("papers", points(3))
    assert waits == [7.0, 7.0]
    assert fake.count("Points/Upsert") == 3


def test_a_wait_of_many_minutes_is_an_error_at_once(engine: Grpc, fake: Fake, waits: list[float]) -> None:
    engine.create("papers", CONFIG)
    fake.fail("Points/Count", Fault(StatusCode.RESOURCE_EXHAUSTED, "slow down", (("retry-after", "600"),)))
    with pytest.raises(Busy, match="slow down; the server asks to wait 600 s"):
        engine.count("papers")
    assert waits == []


def test_a_wait_that_is_no_number_is_still_a_wait(engine: Grpc, fake: Fake, waits: list[float]) -> None:
    engine.create("papers", CONFIG)
    fake.fail("Points/Count", Fault(StatusCode.RESOURCE_EXHAUSTED, "slow", (("retry-after", "soon"),)))
    assert engine.count("papers") == 0
    assert len(waits) == 1


def test_a_message_that_a_proxy_finds_too_large_is_said_so(engine: Grpc, fake: Fake) -> None:
    engine.create("papers", CONFIG)
    text = "SERVER: Received message larger than max (20 vs. 10)"
    fake.fail("Points/Upsert", Fault(StatusCode.RESOURCE_EXHAUSTED, text))
    with pytest.raises(StoreError, match=r"larger than max \(20 vs. 10\): something between here and Qdrant"):
        engine.upsert("papers", points(1))


@pytest.mark.parametrize("status", ["Acknowledged", "WaitTimeout", "ClockRejected"])
def test_an_update_counts_only_when_it_is_completed(
    engine: Grpc, fake: Fake, waits: list[float], status: str
) -> None:
    engine.create("papers", CONFIG)
    fake.update_statuses.extend([q.UpdateStatus.Value(status)] * 2)
    engine.upsert("papers", points(3))
    assert fake.count("Points/Upsert") == 3
    assert len(waits) == 2
    fake.update_statuses.extend([q.UpdateStatus.Value(status)] * ATTEMPTS)
    with pytest.raises(Unavailable, match=f"expected the update's status Completed, got {status}"):
        engine.delete("papers", points(1).ids)


def test_a_server_that_is_too_slow_is_asked_again(fake: Fake, waits: list[float]) -> None:
    with closing(Grpc(parse(f"{fake.url}?timeout=0.5"), sleep=waits.append)) as engine:
        engine.create("papers", CONFIG)
        fake.fail("Points/Count", Fault(StatusCode.INTERNAL, "too late for this", slow=1.5))
        assert engine.count("papers") == 0
    assert fake.count("Points/Count") == 2
    assert len(waits) == 1


# lost connections


def test_a_connection_lost_in_the_middle_of_an_upload_loses_nothing(fake: Fake, waits: list[float]) -> None:
    some = points(400, 500)
    with cutting(fake.port, after=300_000) as port:
        url = fake.url.replace(str(fake.port), str(port))
        with closing(Grpc(parse(url))) as engine:
            engine.create("papers", {**CONFIG, "vectors": {"size": 500, "distance": "Dot"}})
            engine.upsert("papers", some)
            assert engine.count("papers") == 400
            found = engine.retrieve("papers", some.ids, payload=True, vectors="")
    by_id = {id: row for row, id in enumerate(found.ids)}
    assert found.vectors is not None
    assert np.array_equal(found.vectors[[by_id[id] for id in some.ids]], some.vectors[""])
    # the message that was cut off never reached the server whole
    assert fake.count("Points/Upsert") == 1


def test_a_connection_that_is_lost_every_time_is_an_error(fake: Fake, waits: list[float]) -> None:
    with cutting(fake.port, after=300_000, times=100) as port:
        url = fake.url.replace(str(fake.port), str(port))
        with closing(Grpc(parse(url), sleep=waits.append)) as engine:
            engine.create("papers", {**CONFIG, "vectors": {"size": 500, "distance": "Dot"}})
            with pytest.raises(Unavailable, match=rf"^qdrant://127\.0\.0\.1:{port}: "):
                engine.upsert("papers", points(400, 500))
    assert fake.count("Points/Upsert") == 0
    assert len(waits) == ATTEMPTS - 1


def test_a_server_that_is_killed_and_comes_back_is_found_again(fake: Fake) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            fake.start()
        threading.Event().wait(seconds)

    with closing(Grpc(parse(fake.url), sleep=sleep)) as engine:
        engine.create("papers", CONFIG)
        fake.stop()
        engine.upsert("papers", points(5))
        assert engine.count("papers") == 5
    assert waits


def test_a_collection_whose_creation_was_not_confirmed_is_taken_as_made(
    engine: Grpc, fake: Fake, waits: list[float]
) -> None:
    fake.fail("Collections/Create", Fault(StatusCode.UNAVAILABLE, "lost", done=True))
    engine.create("papers", CONFIG)
    assert fake.count("Collections/Create") == 2
    assert engine.describe("papers")["config"]["metadata"] == CONFIG["metadata"]


def test_a_collection_that_somebody_else_made_meanwhile_is_not(engine: Grpc, fake: Fake) -> None:
    engine.create("papers", {**CONFIG, "metadata": {"vecbridge": "another"}})
    fake.fail("Collections/Create", Fault(StatusCode.UNAVAILABLE, "lost"))
    with pytest.raises(CollectionExists, match=r"'papers' is in .* already"):
        engine.create("papers", CONFIG)
    with pytest.raises(CollectionExists, match=r"'papers' is in .* already"):
        engine.create("papers", {**CONFIG, "metadata": {"vecbridge": "another"}})


def test_a_collection_whose_deletion_was_not_confirmed_is_gone(engine: Grpc, fake: Fake) -> None:
    engine.create("papers", CONFIG)
    fake.fail("Collections/Delete", Fault(StatusCode.UNAVAILABLE, "lost", done=True))
    engine.drop("papers")
    assert engine.collections() == []


# large uploads


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE", 2000)
    monkeypatch.setattr(module, "PART", 1000)


@pytest.mark.usefixtures("small_parts")
def test_what_is_too_large_for_one_request_goes_in_several(engine: Grpc, fake: Fake) -> None:
    engine.create("papers", CONFIG)
    engine.upsert("papers", points(10))
    assert fake.count("Points/Upsert") == 1
    engine.upsert("papers", points(200, start=100))
    sent = [q.UpsertPoints.FromString(raw) for raw in fake.raw("Points/Upsert")[1:]]
    assert len(sent) > 10
    assert sum(len(one.points) for one in sent) == 200
    assert engine.count("papers") == 210


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_fails_says_what_is_stored_and_begins_nothing_more(engine: Grpc, fake: Fake) -> None:
    engine.create("papers", CONFIG)
    original = fake.local.upsert

    def upsert(name: str, some: Any) -> Any:
        if any(point.payload["n"] == 60 for point in some):
            raise ValueError("no room for 60")
        return original(name, some)

    fake.local.upsert = upsert  # type: ignore[method-assign,assign]  # a fault that depends on the content
    with pytest.raises(StoreError, match="no room for 60") as raised:
        engine.upsert("papers", points(300))
    fake.local.upsert = original  # type: ignore[method-assign]  # as above
    stored = engine.count("papers")
    assert f"; {stored} of 300 points are stored, the same call again completes them" in str(raised.value)
    # which an InputError, or a sentence of it, would deny
    assert not isinstance(raised.value, InputError)
    assert "nothing was changed" not in str(raised.value)
    assert 0 < stored < 150
    engine.upsert("papers", points(300))
    assert engine.count("papers") == 300


def test_strict_mode_is_read_and_respected(engine: Grpc, fake: Fake) -> None:
    engine.create("papers", CONFIG)
    strict = fake.created["papers"].strict_mode_config
    strict.enabled = True
    strict.upsert_max_batchsize, strict.search_max_batchsize, strict.max_query_limit = 3, 2, 4
    some = points(10)
    engine.upsert("papers", some)
    hits = engine.query("papers", [Query(row, 1) for row in some.vectors[""][:5]])
    assert [one[0].payload["n"] for one in hits] == [0, 1, 2, 3, 4]
    assert (fake.count("Points/Upsert"), fake.count("Points/QueryBatch")) == (4, 3)
    assert fake.count("Collections/Get") == 1
    assert len(engine.scroll("papers", limit=9, payload=False)[0].ids) == 4
    strict.upsert_max_batchsize = 2
    with pytest.raises(InputError, match="Upsert limit exceeded: 3 > 2"):
        engine.upsert("papers", some)
    engine.upsert("papers", some)


# building the index


def _statuses(fake: Fake, *names: str) -> None:
    fake.collection_statuses.extend(q.CollectionStatus.Value(name) for name in names)


def test_building_returns_when_the_collection_stays_green(
    engine: Grpc, fake: Fake, waits: list[float]
) -> None:
    engine.create("papers", CONFIG)
    engine.upsert("papers", points(20))
    _statuses(fake, "Green", "Yellow", "Yellow", "Green", "Green")
    seen: list[tuple[str, int, int | None]] = []
    engine.optimise("papers", {"hnsw_config": {"m": 16}}, lambda *state: seen.append(state))
    assert seen == [("index", 20, 20)] * 5
    assert len(waits) == 4
    assert engine.describe("papers")["config"]["hnsw_config"]["m"] == 16


def test_a_build_that_waits_for_an_update_after_a_restart_is_woken(engine: Grpc, fake: Fake) -> None:
    engine.create("papers", CONFIG)
    _statuses(fake, "Grey", "Green", "Green")
    engine.optimise("papers", {"hnsw_config": {"m": 16}}, None)
    first, second = fake.raw("Collections/Update")
    assert first == second


def test_a_build_that_fails_says_why(engine: Grpc, fake: Fake) -> None:
    engine.create("papers", CONFIG)
    _statuses(fake, "Yellow", "Red")
    fake.optimizer_error = "No space left on device"
    with pytest.raises(IndexFailure, match="could not build the index of 'papers': No space left on device"):
        engine.optimise("papers", {"hnsw_config": {"m": 16}}, None)


def test_a_build_outlives_the_server_going_away_for_a_while(
    engine: Grpc, fake: Fake, waits: list[float]
) -> None:
    engine.create("papers", CONFIG)
    away = [Fault(StatusCode.UNAVAILABLE, "starting")] * (3 * ATTEMPTS)
    fake.fail("Collections/Get", *away)
    engine.optimise("papers", {"hnsw_config": {"m": 16}}, None)
    assert fake.count("Collections/Get") == len(away) + 2
    assert max(waits) <= qdrant_server.SLOWEST_POLL


def test_what_was_green_before_the_server_went_away_does_not_count(engine: Grpc, fake: Fake) -> None:
    engine.create("papers", CONFIG)
    _statuses(fake, "Green", "Green", "Yellow", "Green", "Green")
    away = [Fault(StatusCode.UNAVAILABLE, "restarting")]

    def restarting(stage: str, done: int, total: int | None) -> None:
        while away:
            fake.fail("Collections/Get", away.pop())

    engine.optimise("papers", {"hnsw_config": {"m": 16}}, restarting)
    # green, nothing, green, yellow, green, green
    assert fake.count("Collections/Get") == 6


def test_a_build_does_not_wait_forever_for_a_server(
    engine: Grpc, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant_server, "RESTART", 0.0)
    engine.create("papers", CONFIG)
    fake.fail("Collections/Get", *[Fault(StatusCode.UNAVAILABLE, "gone")] * 100)
    with pytest.raises(Unavailable, match=r"no answer for 0 s while it built the index of 'papers' \(gone\)"):
        engine.optimise("papers", {"hnsw_config": {"m": 16}}, None)


# connecting


def test_the_version_decides_what_is_possible() -> None:
    for version, metadata in (("1.15.1", False), ("1.16.0", True), ("1.20.0-dev", True)):
        with grpc_server(version) as fake, closing(connect(parse(fake.url))) as engine:
            limits = engine.limits()
            assert limits.backend == "qdrant"
            assert limits.version == version.removesuffix("-dev")
            assert limits.has("collection metadata") is metadata


def test_servers_before_1_12_get_vectors_as_they_know_them() -> None:
    for version, dense in (("1.11.5", False), ("1.12.0", True)):
        with grpc_server(version) as fake, closing(connect(parse(fake.url))) as engine:
            engine.create("papers", CONFIG)
            some = points(2)
            engine.upsert("papers", some)
            (raw,) = fake.raw("Points/Upsert")
            vector = q.UpsertPoints.FromString(raw).points[0].vectors.vector
            assert vector.HasField("dense") is dense
            found = engine.retrieve("papers", some.ids[:1], payload=False, vectors="")
            assert found.vectors is not None
            assert np.allclose(found.vectors[0], some.vectors[""][0], atol=1e-6)


def test_a_server_without_a_version_is_refused() -> None:
    with (
        grpc_server("next") as fake,
        pytest.raises(StoreError, match="expected a Qdrant server that tells its version, got another one"),
    ):
        connect(parse(fake.url))


def test_a_closed_port_is_tried_three_times_within_a_second() -> None:
    waits: list[float] = []
    port = free_port()
    with pytest.raises(Unavailable, match=rf"qdrant://127\.0\.0\.1:{port}: .*is this its gRPC port \(6334"):
        Grpc(parse(f"qdrant://127.0.0.1:{port}"), sleep=waits.append)
    assert len(waits) == 2
    assert sum(waits) < 1


def test_a_server_that_is_starting_is_waited_for() -> None:
    with grpc_server() as fake:
        fake.fail("Qdrant/HealthCheck", *[Fault(StatusCode.UNAVAILABLE, "starting")] * 2)
        with closing(Grpc(parse(fake.url), sleep=lambda _: None)) as engine:
            assert engine.collections() == []


def test_what_the_installed_client_does_not_know_is_said_so(engine: Grpc) -> None:
    with pytest.raises(FeatureMissing, match=r"qdrant-client [\d.]+ does not know all of the collection's"):
        engine.create("papers", {**CONFIG, "hnsw_config": {"warp": 9}})
    with pytest.raises(FeatureMissing, match=r"does not know all of the filter; install a newer one"):
        engine.count("papers", {"must": [{"key": "a", "looks_like": 3}]})


# the key


def test_the_key_goes_with_every_request_and_into_no_error(engine: Grpc, fake: Fake) -> None:
    engine.create("papers", CONFIG)
    engine.count("papers")
    assert {request.metadata.get("api-key") for request in fake.received} == {KEY}
    for code in (StatusCode.INVALID_ARGUMENT, StatusCode.PERMISSION_DENIED, StatusCode.INTERNAL):
        fake.fail("Points/Count", Fault(code, f"the key {KEY} is not for this"))
        with pytest.raises(VecbridgeError, match=r"the key \*\*\* is not for this") as raised:
            engine.count("papers")
        assert KEY not in "".join(traceback.format_exception(raised.value))
    for shown in (repr(engine), engine.url, repr(parse(fake.url))):
        assert KEY not in shown


def test_a_wrong_key_is_forbidden_and_not_shown(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    wrong = "n0t-the-Key"
    with closing(connect(parse(fake.url.replace(KEY, wrong)))) as engine:
        with pytest.raises(Forbidden, match="Invalid API key or JWT; set QDRANT_API_KEY") as raised:
            engine.collections()
        assert fake.count("Collections/List") == 1
    assert wrong not in "".join(traceback.format_exception(raised.value))
    assert wrong not in caplog.text


def test_a_proxy_is_not_asked_for_this_machine(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with closing(connect(parse(fake.url))) as engine:
        assert engine.collections() == []


# closing, forking


def test_a_closed_engine_says_so(engine: Grpc) -> None:
    engine.close()
    engine.close()
    with pytest.raises(StoreError, match=r"^qdrant://127\.0\.0\.1:\d+ is closed; open it again"):
        engine.collections()


def test_closing_ends_calls_under_way(fake: Fake) -> None:
    engine = Grpc(parse(fake.url))
    engine.create("papers", CONFIG)
    fake.fail("Points/Count", Fault(StatusCode.INTERNAL, slow=3.0))
    caught: list[BaseException] = []

    def count() -> None:
        try:
            engine.count("papers")
        except StoreError as error:
            caught.append(error)

    thread = threading.Thread(target=count)
    thread.start()
    while not fake.count("Points/Count"):
        threading.Event().wait(0.01)
    engine.close()
    thread.join(30)
    assert [type(error) for error in caught] == [StoreError]
    assert "is closed" in str(caught[0])


FORKED = """
import os, sys, signal
from vecbridge.backends.qdrant.address import parse
from vecbridge.backends.qdrant.grpc import connect
from vecbridge.errors import StoreError
engine = connect(parse(sys.argv[1]))
engine.collections()
child = os.fork()
if not child:
    signal.alarm(20)
    try:
        engine.collections()
    except StoreError as error:
        print(error, flush=True)
    engine.close()
    # as children of multiprocessing end: gRPC's handlers at exit look for threads that the parent has
    os._exit(0)
_, status = os.waitpid(child, 0)
print("child", status, "parent", engine.collections())
engine.close()
"""


def test_a_forked_child_is_refused_and_does_not_hang(fake: Fake) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, fake.url], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said, end = done.stdout.splitlines()
    assert "was opened before this process was forked" in said
    assert KEY not in said
    assert end == "child 0 parent []"


def test_several_threads_share_one_engine(engine: Grpc) -> None:
    engine.create("papers", CONFIG)
    threads = [
        threading.Thread(target=engine.upsert, args=("papers", points(20, start=100 * number)))
        for number in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.count("papers") == 120


def test_ipv6_addresses_get_their_brackets_back(monkeypatch: pytest.MonkeyPatch) -> None:
    targets: list[str] = []
    original = grpc_calls.grpc.insecure_channel

    def channel(target: str, options: Any) -> Any:
        targets.append(target)
        return original("127.0.0.1:1", options)

    monkeypatch.setattr(grpc_calls.grpc, "insecure_channel", channel)
    with pytest.raises(Unavailable, match=r"qdrant://\[::1\]:6334"):
        Grpc(parse("qdrant://[::1]"), sleep=lambda _: None)
    assert targets == ["[::1]:6334"]
