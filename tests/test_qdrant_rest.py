"""Qdrant by REST: what is sent, what each answer becomes, and what is tried again."""

from __future__ import annotations

import email.utils
import json
import logging
import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_fakes_rest import Fault, RestServer, error, ids, opened, points, rest_server

from vecbridge.backends.qdrant import address, rest
from vecbridge.backends.qdrant.engine import FULL, SHORT, Json, Points, Query
from vecbridge.backends.qdrant.rest import Rest
from vecbridge.backends.qdrant.rest.text import numbers
from vecbridge.errors import (
    Busy,
    CollectionExists,
    CollectionNotFound,
    FeatureMissing,
    Forbidden,
    InputError,
    StoreError,
    Unavailable,
)

KEY = "s3same-Open"
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


# what is sent


def as_sent_by_qdrants_own(client: Callable[[QdrantClient], object], server: RestServer, on: str) -> Any:
    before = len(server.sent(on))
    own = QdrantClient(url=server.http, check_compatibility=False)
    try:
        client(own)
    finally:
        own.close()
    return server.sent(on)[before].json


def plain(value: Any) -> Any:
    """JSON with its numbers as float32, without what stands for nothing, and the short form of a query."""
    if isinstance(value, dict):
        if list(value) == ["nearest"]:
            return plain(value["nearest"])
        return {key: plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return float(np.float32(value)) if isinstance(value, float) else value


@pytest.mark.parametrize("named", [False, True])
def test_points_are_sent_as_qdrants_own_client_sends_them(
    server: RestServer, engine: Rest, named: bool
) -> None:
    matrix = points(5).vectors[""]
    vectors = {FULL: matrix, SHORT: np.ascontiguousarray(matrix[:, :3])} if named else {"": matrix}
    config: Json = {name: {"size": part.shape[1], "distance": "Dot"} for name, part in vectors.items()}
    engine.create("c", {"vectors": config if named else config[""]})
    payloads: list[Json] = [
        {"id": "é\n\"'", "metadata": {"n": 2**63 - 1, "m": -(2**63), "list": [1, None, True, {"a": []}]}},
        {"id": "b", "metadata": {"tiny": 5e-324, "large": 1e16, "other": 0.1 + 0.2}},
        {"id": "c", "document": "\u2028\x00😀", "odd": ["x"]},
        {},
        {"norm": 3.0},
    ]
    engine.upsert("c", Points(ids(5), vectors, payloads))
    (request,) = server.sent("PUT /collections/c/points")
    records = [
        models.PointStruct(
            id=one,
            vector={name: part[row].tolist() for name, part in vectors.items()}
            if named
            else matrix[row].tolist(),
            payload=payloads[row],
        )
        for row, one in enumerate(ids(5))
    ]
    expected = as_sent_by_qdrants_own(
        lambda client: client.upsert("c", records), server, "PUT /collections/c/points"
    )
    assert plain(request.json) == plain(expected)
    assert [point["payload"] for point in request.json["points"]] == payloads
    assert request.query == {"wait": ["true"]}
    assert request.headers["content-type"] == "application/json"


@pytest.mark.parametrize("prefetch", [False, True])
def test_searches_are_sent_as_qdrants_own_client_sends_them(
    server: RestServer, engine: Rest, prefetch: bool
) -> None:
    engine.create("c", {"vectors": {FULL: VECTORS, SHORT: {"size": 3, "distance": "Euclid"}}})
    vector = points(1).vectors[""][0]
    where: Json = {"must": [{"key": "metadata.year", "range": {"gte": 2000.0}}]}
    params: Json = {"hnsw_ef": 64, "quantization": {"rescore": True, "oversampling": 2.0, "ignore": False}}
    inner = Query(vector[:3], 40, SHORT, params, where) if prefetch else None
    engine.query(
        "c", [Query(vector, 10, FULL, None if prefetch else params, None if prefetch else where, inner)]
    )
    (request,) = server.sent("points/query/batch")
    asked = {"params": models.SearchParams(**params), "filter": models.Filter(**where)}
    own = models.QueryRequest(
        query=vector.tolist(),
        using=FULL,
        limit=10,
        with_payload=True,
        with_vector=False,
        **(
            {"prefetch": [models.Prefetch(query=vector[:3].tolist(), using=SHORT, limit=40, **asked)]}
            if prefetch
            else asked
        ),
    )
    expected = as_sent_by_qdrants_own(
        lambda client: client.query_batch_points("c", [own]), server, "points/query/batch"
    )
    assert plain(request.json) == plain(expected)


def test_the_text_of_a_number_reads_back_as_the_same_number_bit_for_bit() -> None:
    seed = 20_260
    bits = np.random.default_rng(seed).integers(0, 2**32, 400_000, dtype=np.uint32).view(np.float32)
    tens = np.array([float(f"1e{power}") for power in range(-45, 39)], np.float32)
    edges = np.array([0.0, -0.0, 1e-45, 3.4028235e38, 1.17549435e-38, 1.0, 0.1, 16777216.0], np.float32)
    beside = [np.nextafter(tens, np.float32(limit)) for limit in (0, np.inf)]
    values = np.concatenate([bits[np.isfinite(bits)], tens, *beside, edges])
    values = np.concatenate([values, -values])
    text = numbers(values[None])[0, :-2].tobytes()
    back = np.array(json.loads(b"[%b]" % text), np.float32)
    wrong = values[back.view(np.uint32) != values.view(np.uint32)]
    assert not len(wrong), f"seed {seed}: {wrong[:5]}"


def test_rows_are_told_apart_whatever_their_length() -> None:
    for rows, dim in [(1, 1), (3, 1), (1, 70_000), (70_000, 1), (7, 20_000)]:
        matrix = np.arange(rows * dim, dtype=np.float32).reshape(rows, dim)
        texts = numbers(matrix)
        back = np.array([json.loads(b"[%b]" % row[:-2].tobytes()) for row in texts], np.float32)
        assert (back == matrix).all()


def test_the_key_is_sent_and_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with rest_server(key=KEY) as server, opened(server.url.replace("://", f"://{KEY}@")) as (engine, _):
        engine.create("c", CONFIG)
        assert {request.headers.get("api-key") for request in server.requests} == {KEY}
        server.faults = [Fault(400, {"status": {"error": f"a server that repeats {KEY}"}})]
        with pytest.raises(InputError, match=r"repeats \*\*\*") as refused:
            engine.count("c")
        server.faults = [Fault(500, f"<p>{KEY}".encode())]
        with pytest.raises(StoreError, match=r"HTTP 500 .*\*\*\*") as broken:
            engine.count("c")
        seen = "".join(traceback.format_exception(refused.value) + traceback.format_exception(broken.value))
        assert KEY not in seen + caplog.text + repr(engine) + engine.url
        assert "HTTP Request" in caplog.text  # the log was on


def test_a_path_before_all_others_is_kept() -> None:
    with rest_server(prefix="/qdrant/v1") as server, opened(server.url) as (engine, _):
        engine.create("c", CONFIG)
        assert engine.collections() == ["c"]
        assert engine.url == server.url


def test_a_name_cannot_change_the_path(server: RestServer, engine: Rest) -> None:
    engine.create("a b%é", CONFIG)
    assert engine.count("a b%é") == 0
    assert "a b%é" in engine.collections()


def test_a_proxy_is_not_asked_for_this_machine(server: RestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with opened(server.url) as (engine, _):
        assert engine.collections() == []


# what comes back


def test_points_come_back_as_they_were_sent(engine: Rest) -> None:
    engine.create("c", CONFIG)
    sent = points(30)
    engine.upsert("c", sent)
    found = engine.retrieve("c", [*sent.ids, str(UUID(int=5))], payload=True, vectors="")
    order = [sent.ids.index(one) for one in found.ids]
    assert sorted(order) == list(range(30))
    assert found.vectors is not None
    assert (found.vectors == sent.vectors[""][order]).all()
    assert found.payloads == [sent.payloads[row] for row in order]
    bare = engine.retrieve("c", sent.ids[:2], payload=False, vectors=None)
    assert (bare.payloads, bare.vectors) == ([], None)
    assert engine.retrieve("c", sent.ids[:1], payload=["none"], vectors=None).payloads == [{}]


def test_scrolling_passes_every_point_once(engine: Rest) -> None:
    engine.create("c", CONFIG)
    engine.upsert("c", points(10))
    seen: list[str] = []
    offset = None
    while True:
        page, offset = engine.scroll("c", limit=4, offset=offset, payload=False)
        seen += page.ids
        if offset is None:
            break
    assert seen == sorted(ids(10))


def test_each_query_has_its_own_answer_nearest_first(server: RestServer, engine: Rest) -> None:
    engine.create("c", {**CONFIG, "strict_mode_config": {"enabled": True, "search_max_batchsize": 2}})
    sent = points(20)
    engine.upsert("c", sent)
    answers = engine.query("c", [Query(sent.vectors[""][row], 3) for row in (7, 3, 11, 0, 19)])
    assert [answer[0].payload["id"] for answer in answers] == ["7", "3", "11", "0", "19"]
    distances = np.linalg.norm(sent.vectors[""] - sent.vectors[""][7], axis=1)
    # Euclid is the distance itself
    assert [one.score for one in answers[0]] == pytest.approx(np.sort(distances)[:3].tolist(), abs=1e-6)
    assert [len(request.json["searches"]) for request in server.sent("query/batch")] == [2, 2, 1]


def test_nothing_asked_is_nothing_sent(server: RestServer, engine: Rest) -> None:
    before = len(server.requests)
    engine.upsert("c", points(0))
    engine.delete("c", [])
    assert engine.query("c", []) == []
    assert len(server.requests) == before


def test_version_and_nodes_are_asked_for() -> None:
    with rest_server(version="1.15.3-dev") as server:
        server.peers = 3
        with opened(server.url) as (engine, _):
            limits = engine.limits()
    assert (limits.backend, limits.version, limits.nodes, limits.assumed) == ("qdrant", "1.15.3", 3, False)
    assert not limits.has("collection metadata")


def test_a_key_that_may_not_see_the_cluster_is_enough(server: RestServer) -> None:
    server.faults = [Fault(403, {"status": {"error": "Forbidden: Global access is required"}}, on="/cluster")]
    with opened(server.url) as (engine, _):
        assert engine.limits().nodes == 1


# refusals


@pytest.mark.parametrize(
    ("status", "text", "raised", "said"),
    [
        (400, "Wrong input: Vector dimension error", InputError, "Wrong input: Vector dimension error"),
        (400, "Bad request: Limit exceeded. Help: Reduce it", InputError, "Help: Reduce it"),
        (422, "Validation error in JSON body: [limit: 0]", InputError, "Validation error"),
        (404, "Not found: Collection `c` doesn't exist!", CollectionNotFound, "no collection 'c'"),
        (409, "Wrong input: Collection `c` already exists!", CollectionExists, "'c' is in .* already"),
        (401, "Must provide an API key", Forbidden, "Must provide an API key; set QDRANT_API_KEY"),
        (403, "Forbidden: Write access is required", Forbidden, "Write access is required"),
        (403, "Storage locked: for a backup", StoreError, "Storage locked: for a backup"),
        (507, "Insufficient storage: disk", StoreError, "free disk or memory"),
        (405, "Standalone mode", FeatureMissing, "Standalone mode"),
        (501, "not here", FeatureMissing, "not here"),
        (500, "Service internal error: task panicked", StoreError, "task panicked"),
        (413, "too much", StoreError, "max_request_size_mb"),
        (418, "a teapot", StoreError, "a teapot"),
    ],
)
def test_what_is_refused_for_good_is_raised_at_once_with_the_servers_text(
    server: RestServer, status: int, text: str, raised: type[Exception], said: str
) -> None:
    with opened(server.url) as (engine, waits):
        engine.create("c", CONFIG)
        server.faults = [Fault(status, error(text))]
        before = len(server.requests)
        with pytest.raises(raised, match=said) as caught:
            engine.count("c")
        assert type(caught.value) is raised
        assert (len(server.requests) - before, waits) == (1, [])


@pytest.mark.parametrize(
    ("status", "raised"),
    [(429, Busy), (408, Unavailable), (504, Unavailable), (502, Unavailable), (503, Unavailable)],
)
def test_what_may_pass_is_asked_again_and_raised_at_last(
    server: RestServer, status: int, raised: type[Exception]
) -> None:
    with opened(server.url) as (engine, waits):
        engine.create("c", CONFIG)
        server.faults = [Fault(status, error("not now"))] * 2
        assert engine.count("c") == 0
        assert len(waits) == 2
        server.faults = [Fault(status, error("not now"))] * 6
        before = len(server.requests)
        with pytest.raises(raised, match="not now"):
            engine.count("c")
        assert len(server.requests) - before == 6
        assert len(waits) == 2 + 5


def test_retry_after_is_waited_for_in_seconds(server: RestServer) -> None:
    with opened(server.url) as (engine, waits):
        engine.create("c", CONFIG)
        server.faults = [Fault(429, error("slower"), {"Retry-After": "37"})]
        assert engine.count("c") == 0
        assert waits == [37.0]


def test_retry_after_is_waited_for_until_a_date_by_the_servers_clock(server: RestServer) -> None:
    now = time.time()
    # http.server sends its own Date
    later = email.utils.formatdate(now + 50, usegmt=True)
    with opened(server.url) as (engine, waits):
        engine.create("c", CONFIG)
        server.faults = [Fault(503, error("restarting"), {"Retry-After": later})]
        assert engine.count("c") == 0
        assert 0 < waits[0] <= 51


@pytest.mark.parametrize("header", ["soon", "-5", "١٢", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_retry_after_that_says_nothing_is_passed_over(server: RestServer, header: str) -> None:
    with opened(server.url) as (engine, waits):
        engine.create("c", CONFIG)
        headers = {"Retry-After": header} if header.isascii() else {}
        server.faults = [Fault(429, error("slower"), headers)]
        assert engine.count("c") == 0
        assert 0.125 <= waits[0] <= 0.25


@pytest.mark.parametrize(
    ("fault", "raised", "said"),
    [
        (Fault(502, b"<html><b>Bad</b> gateway</html>"), Unavailable, "HTTP 502 Bad Gateway: Bad gateway"),
        (Fault(404, b""), FeatureMissing, "knows no /collections/c/points/count; is it too old"),
        (Fault(400, b"plain request to a TLS port"), StoreError, "HTTP 400 Bad Request: plain request"),
        (Fault(302, b"", {"Location": "/login"}), StoreError, "HTTP 302"),
        (Fault(200, b"<html>Welcome</html>"), StoreError, "expected Qdrant's JSON, got 'Welcome'"),
        (Fault(200, {"count": 3}), StoreError, "expected Qdrant's JSON, got '{\"count\": 3}'"),
        (Fault(200, [1]), StoreError, "expected Qdrant's JSON, got '[1]'"),
        (Fault(200, 5), StoreError, "expected Qdrant's JSON, got '5'"),
    ],
)
def test_what_is_not_qdrants_answer_is_quoted(
    server: RestServer, fault: Fault, raised: type[Exception], said: str
) -> None:
    with opened(server.url) as (engine, _):
        engine.create("c", CONFIG)
        server.faults = [fault] * 6
        with pytest.raises(raised, match=re.escape(said).replace("'Welcome'", ".Welcome.")):
            engine.count("c")


def test_a_server_without_qdrant_is_told() -> None:
    with rest_server() as server:
        for greeting, said in (
            ({"hello": "world"}, 'expected Qdrant\'s JSON, got \'{"hello": "world"}\'; is this Qdrant'),
            (["version"], "expected a Qdrant server that tells its version, got another one"),
            ({"version": "next"}, "expected a Qdrant server that tells its version, got another one"),
        ):
            server.faults = [Fault(200, greeting)]
            with pytest.raises(StoreError, match=re.escape(said)):
                rest.connect(address.parse(server.url))


def test_a_wrong_key_shows_when_connecting() -> None:
    with rest_server(key=KEY) as server:
        with pytest.raises(Forbidden, match="Must provide an API key"):
            rest.connect(address.parse(server.url))
        with pytest.raises(Forbidden, match="Invalid API key"):
            rest.connect(address.parse(server.url.replace("://", "://wrong@")))


# connections


def test_connecting_waits_for_a_server_that_starts() -> None:
    with rest_server() as server:
        server.faults = [Fault(503, b"starting"), Fault(lose="answer")]
        with opened(server.url) as (engine, waits):
            assert engine.limits().version == "1.19.0"
            assert len(waits) == 2


def test_a_closed_port_is_tried_three_times_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tried: list[Any] = []
    real = socket.create_connection

    def connection(address: Any, *more: Any, **named: Any) -> socket.socket:
        tried.append(address)
        return real(address, *more, **named)

    monkeypatch.setattr(socket, "create_connection", connection)
    waits: list[float] = []
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}: no connection"):
        Rest(address.parse(f"qdrant+http://127.0.0.1:{port}"), sleep=waits.append)
    assert tried == [("127.0.0.1", port)] * 3
    assert len(waits) == 2
    assert sum(waits) < 1


def test_a_connection_that_breaks_in_the_middle_of_an_upload_is_tried_again(server: RestServer) -> None:
    with opened(server.url) as (engine, waits):
        engine.create("c", {"vectors": {"size": 1024, "distance": "Dot"}})
        server.faults = [Fault(lose="body", on="PUT .*/points")] * 2
        engine.upsert("c", points(300, dim=1024))
        assert engine.count("c") == 300
        assert len(waits) == 2
        first, second, third = server.sent("PUT .*/points")
        assert len(first.body) == len(second.body) == len(third.body) // 2


def test_a_connection_that_always_breaks_in_an_upload_is_unavailable(server: RestServer) -> None:
    with opened(server.url) as (engine, waits):
        engine.create("c", {"vectors": {"size": 1024, "distance": "Dot"}})
        server.faults = [Fault(lose="body", on="PUT .*/points")] * 6
        with pytest.raises(Unavailable, match=r"the connection was lost while 4\.\d MB were being sent"):
            engine.upsert("c", points(300, dim=1024))
        assert len(waits) == 5
        assert engine.count("c") == 0


def test_an_answer_that_takes_too_long_is_a_timeout(server: RestServer) -> None:
    with opened(f"{server.url}?timeout=0.2") as (engine, waits):
        engine.create("c", CONFIG)
        server.faults = [Fault(delay=1.0, on="count")] * 6
        with pytest.raises(Unavailable, match="no answer in time"):
            engine.count("c")
        assert len(waits) == 5


@contextmanager
def answering(text: bytes) -> Iterator[int]:
    """A port that answers every connection with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, suppress(OSError):
                        connection.recv(65536)
                        connection.sendall(text)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    "text", [b"\x15\x03\x01\x00\x02\x02\x46", b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80"]
)
def test_a_port_that_speaks_tls_or_grpc_is_told_at_once(text: bytes) -> None:
    with answering(text) as port:
        with pytest.raises(Unavailable, match=r"expected HTTP, got something else .*6333") as caught:
            Rest(address.parse(f"qdrant+http://127.0.0.1:{port}"), sleep=lambda _: pytest.fail("waited"))
        assert "qdrant+https://" in str(caught.value)


def test_tls_to_a_plain_port_is_told_at_once() -> None:
    with (
        answering(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n") as port,
        pytest.raises(Unavailable, match=r"no TLS connection .* use qdrant\+http://"),
    ):
        Rest(address.parse(f"qdrant+https://127.0.0.1:{port}"), sleep=lambda _: pytest.fail("waited"))


def test_a_closed_engine_says_so(server: RestServer) -> None:
    with opened(server.url) as (engine, _):
        engine.close()
        engine.close()
        with pytest.raises(StoreError, match="is closed; open it again"):
            engine.collections()


# updates


@pytest.mark.parametrize("status", ["acknowledged", "wait_timeout", "clock_rejected"])
def test_an_update_counts_only_once_it_is_completed(server: RestServer, status: str) -> None:
    partial = Fault(200, {"result": {"operation_id": 1, "status": status}, "status": "ok"}, on="points")
    for change in (
        lambda engine: engine.upsert("c", points(1)),
        lambda engine: engine.delete("c", ids(1)),
        lambda engine: engine.index_field("c", "metadata.x", "keyword"),
    ):
        with opened(server.url) as (engine, waits):
            with suppress(CollectionNotFound):
                engine.drop("c")
            engine.create("c", CONFIG)
            on = "c/(points|index)"
            server.faults = [Fault(200, partial.body, on=on)]
            change(engine)
            assert len(waits) == 1
            server.faults = [Fault(200, partial.body, on=on)] * 6
            with pytest.raises(Unavailable, match=f"expected the update's status completed, got '{status}'"):
                change(engine)
            server.faults = []


def test_a_creation_that_may_not_have_arrived_is_sent_once_more(server: RestServer) -> None:
    with opened(server.url) as (engine, _):
        server.faults = [Fault(503, b"", on="PUT")]
        engine.create("c", CONFIG)
        assert [str(one) for one in server.requests[2:]] == ["PUT /collections/c"] * 2


def test_a_collection_whose_making_was_not_confirmed_is_found(server: RestServer) -> None:
    with opened(server.url) as (engine, _):
        server.faults = [Fault(lose="answer", on="PUT")]
        engine.create("c", CONFIG)
        assert len(server.sent("PUT")) == 2
        assert engine.describe("c")["config"]["metadata"] == CONFIG["metadata"]


@pytest.mark.parametrize(
    "other",
    [{"metadata": {"vecbridge": {"manifest": "another"}}}, {"vectors": {"size": 9, "distance": "Dot"}}],
)
def test_another_collection_of_the_name_is_not_taken_for_ours(server: RestServer, other: Json) -> None:
    with opened(server.url) as (engine, _):
        engine.create("c", {**CONFIG, **other})
        server.faults = [Fault(lose="answer", on="PUT")]
        with pytest.raises(CollectionExists, match="'c' is in"):
            engine.create("c", CONFIG)
        with pytest.raises(CollectionExists, match="'c' is in"):
            engine.create("c", {**CONFIG, **other})


def test_a_drop_whose_answer_was_lost_is_done(server: RestServer) -> None:
    with opened(server.url) as (engine, _):
        engine.create("c", CONFIG)
        server.faults = [Fault(lose="answer", on="DELETE")]
        engine.drop("c")
        assert engine.collections() == []
        with pytest.raises(CollectionNotFound, match="no collection 'c'"):
            engine.drop("c")
