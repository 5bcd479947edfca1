"""Embedders give one finite float32 vector for each text, in order, or say in one sentence why not."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecbridge.errors import EmbedderError, InputError
from vecbridge.ingestion import embedders, load
from vecbridge.ingestion.openai import OpenAI

KEY = "sk-geheim/4711+abc"


def cosine(embedder: Any, one: str, two: str) -> float:
    a, b = embedder.embed([one, two])
    return float(a @ b)


# --- specifications


@pytest.mark.parametrize(
    ("spec", "model", "dim", "nested"),
    [
        ("hashing:3584", "hashing-3584", 3584, ()),
        ("hashing:2", "hashing-2", 2, ()),
        ("wordllama", "wordllama-256", 256, (128, 64)),
        ("wordllama:128", "wordllama-128", 128, (64,)),
        ("wordllama:64", "wordllama-64", 64, ()),
    ],
)
def test_a_specification_names_an_embedder(spec: str, model: str, dim: int, nested: tuple[int, ...]) -> None:
    embedder = load(spec)
    assert (embedder.model, embedder.dim, embedder.nested) == (model, dim, nested)
    vectors = embedder.embed(["one text", "another", "a third"])
    assert vectors.shape == (3, dim)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(embedder.embed_query("another"), vectors[1])
    embedder.close()
    embedder.close()


@pytest.mark.parametrize(
    "spec", ["", "hashing", "hashing:", "hashing:x", "hashing:-5", "openai", "openai:", "e5", "٣"]
)
def test_an_unknown_specification_is_refused_with_the_known_ones(spec: str) -> None:
    with pytest.raises(
        InputError, match=r"expected an embedder as hashing:DIM, wordllama, .* or openai:MODEL"
    ):
        load(spec)


@pytest.mark.parametrize("spec", ["hashing:1", "hashing:0", "hashing:1048577"])
def test_hashing_has_a_smallest_and_a_largest_dimension(spec: str) -> None:
    with pytest.raises(InputError, match=r"expected hashing into 2 to 1,048,576 dimensions, got"):
        load(spec)


def test_wordllama_has_three_dimensions() -> None:
    with pytest.raises(InputError, match=r"256, 128 and 64 dimensions, got '512'"):
        load("wordllama:512")


def test_an_offline_embedder_takes_no_key() -> None:
    with pytest.raises(
        InputError, match=r"a base URL and a key are for openai:MODEL; 'hashing' runs without"
    ):
        load("hashing:8", api_key=KEY)


def test_loading_one_embedder_loads_no_other_and_touches_no_logging() -> None:
    code = """
import logging, sys
from vecbridge.ingestion import load
assert not {"sklearn", "wordllama", "httpx", "pyarrow"} & set(sys.modules), "the package alone"
load("hashing:8").embed(["a"])
assert not {"wordllama", "httpx", "pyarrow"} & set(sys.modules), "hashing"
load("wordllama").embed(["a"])
assert not {"httpx", "pyarrow"} & set(sys.modules), "wordllama"
assert logging.getLogger().handlers == [], logging.getLogger().handlers
assert logging.getLogger().level == logging.WARNING
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("spec", ["hashing:16", "wordllama"])
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", ""], r"expected texts to embed, got an empty one at position 1"),
        (["a", " \n\t"], r"expected texts to embed, got white space at position 1"),
        (["a", None], r"expected texts, got NoneType at position 1"),
        (["a", "\ud800"], r"expected Unicode text at position 1, got a lone surrogate \(U\+D800\)"),
        ("text", r"expected a list of texts, got a single one"),
    ],
)
def test_what_cannot_be_embedded_is_refused_with_its_position(spec: str, texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(spec).embed(texts)


@pytest.mark.parametrize("spec", ["hashing:16", "wordllama"])
def test_no_texts_give_no_vectors(spec: str) -> None:
    embedder = load(spec)
    assert embedder.embed([]).shape == (0, embedder.dim)


# --- hashing


def test_hashing_brings_forms_of_one_word_together() -> None:
    embedder = load("hashing:3584")
    assert cosine(embedder, "organization", "organizations") > 0.5
    assert cosine(embedder, "the economy grows", "economic growth") > 0.2
    assert abs(cosine(embedder, "organization", "buttermilk")) < 0.1


def test_hashing_is_lexical_and_knows_no_meaning() -> None:
    assert abs(cosine(load("hashing:3584"), "automobile", "car")) < 0.1


def test_hashing_ignores_case_and_compatibility_forms() -> None:
    assert cosine(load("hashing:512"), "Ｅｃｏｌｅ Straße ﬁne", "ecole STRASSE fine") > 0.999


def test_hashing_finds_a_word_inside_text_without_spaces() -> None:
    embedder = load("hashing:3584")
    assert cosine(embedder, "東京都の天気予報", "天気") > 0.15
    assert abs(cosine(embedder, "東京都の天気予報", "料理")) < 0.1


def test_hashing_is_the_same_in_every_process_and_batch() -> None:
    texts = [f"text {n} of many with more words than the block of {n * n}" for n in range(3000)]
    whole = load("hashing:64").embed(texts)
    assert np.allclose(whole[1234], load("hashing:64").embed_query(texts[1234]), atol=1e-6)
    code = (
        "import sys; from vecbridge.ingestion import load; "
        "sys.stdout.buffer.write(load('hashing:64').embed([sys.argv[1]]).tobytes())"
    )
    other = subprocess.run([sys.executable, "-c", code, texts[7]], check=True, capture_output=True).stdout
    assert np.allclose(np.frombuffer(other, dtype=np.float32), whole[7], atol=1e-6)


@given(
    st.text(min_size=1, max_size=60).filter(lambda text: not text.isspace()), st.sampled_from([2, 3, 17, 300])
)
@settings(deadline=None, max_examples=300)
def test_every_text_has_a_unit_vector_under_hashing(text: str, dim: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    vector = load(f"hashing:{dim}").embed([text, "other"])[0]
    assert np.isfinite(vector).all()
    assert abs(np.linalg.norm(vector) - 1) < 1e-5


def test_a_text_of_signs_alone_is_told_from_another() -> None:
    assert cosine(load("hashing:3584"), "!!! ???", "--- ...") < 0.5


def test_features_that_cancel_leave_a_unit_vector() -> None:
    zero = np.zeros((1, 4), dtype=np.float32)
    found = embedders._unit(zero, ["x"])
    assert sorted(found[0].tolist()) == [0, 0, 0, 1]


# --- wordllama


def test_wordllama_gives_what_its_own_library_gives() -> None:
    wordllama = pytest.importorskip("wordllama")
    from pathlib import Path

    texts = ["a dog", "the quick brown fox jumps over the lazy dog " * 9, "日本語", "x"]
    own = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    assert np.allclose(load("wordllama").embed(texts), own.embed(texts, norm=True), atol=1e-5)


def test_wordllama_is_semantic() -> None:
    embedder = load("wordllama")
    assert cosine(embedder, "automobile", "car") > cosine(embedder, "automobile", "butter") + 0.2


def test_shorter_wordllama_vectors_are_prefixes_of_the_whole_ones() -> None:
    whole = load("wordllama").embed(["a dog", "the law"])[:, :64]
    short = load("wordllama:64").embed(["a dog", "the law"])
    assert np.allclose(whole / np.linalg.norm(whole, axis=1, keepdims=True), short, atol=1e-5)


def test_wordllama_leaves_a_logging_set_up_by_the_host_alone(caplog: pytest.LogCaptureFixture) -> None:
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    load("wordllama")
    assert logging.getLogger().handlers == handlers
    assert logging.getLogger().level == level


# --- APIs

Answer = Callable[[dict[str, Any], int], tuple[int, dict[str, str], bytes]]


class Server:
    """An embeddings API on the loopback address; `answer(request body, number)` says what it replies."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.paths: list[str] = []
        self.answer: Answer = lambda body, number: ok(body)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                outer.headers.append(self.headers)
                outer.paths.append(self.path)
                status, headers, raw = outer.answer(body, len(outer.bodies))
                if status == 0:
                    return  # closes the connection without an answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def vector(text: str) -> list[float]:
    return [float(len(text)), float(ord(text[0])), -0.5]


def ok(body: dict[str, Any], **more: Any) -> tuple[int, dict[str, str], bytes]:
    data = [
        {"object": "embedding", "index": n, "embedding": vector(text)} for n, text in enumerate(body["input"])
    ]
    return reply(200, {"object": "list", "data": data, "model": body["model"], **more})


def reply(status: int, body: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def api(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAI]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    api = OpenAI("some-model", base_url=server.url, api_key=KEY, attempts=3, backoff=0.001, timeout=5)
    yield api
    api.close()


def test_an_api_is_asked_for_floats_with_the_key_in_the_header(server: Server, api: OpenAI) -> None:
    assert api.dim is None
    assert api.embed(["abc", "d"]).tolist() == [vector("abc"), vector("d")]
    assert api.dim == 3
    assert server.bodies == [{"model": "some-model", "input": ["abc", "d"], "encoding_format": "float"}]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.paths == ["/v1/embeddings"]
    assert api.embed_query("abc").tolist() == vector("abc")


def test_url_and_key_come_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    embedder = load("openai:org/model:latest")
    assert embedder.model == "org/model:latest"
    embedder.embed(["a"])
    embedder.close()
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.paths == ["/v1/embeddings"]


def test_a_server_of_ones_own_needs_no_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    embedder = load("openai:m", base_url=server.url)
    embedder.embed(["a"])
    embedder.close()
    assert server.headers[0]["Authorization"] is None


def test_openai_itself_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(InputError, match=r"OpenAI needs a key: set OPENAI_API_KEY"):
        load("openai:text-embedding-3-small")


def test_a_key_that_no_header_can_hold_is_refused_without_repeating_it() -> None:
    with pytest.raises(InputError, match=r"expected an API key of printable ASCII") as caught:
        load("openai:m", base_url="http://127.0.0.1/v1", api_key="sk-gehéim")
    assert "geh" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:80", "ftp://user:geheim@host/v1", "http://", "http://[::1", "user:geheim@x"]
)
def test_a_base_url_that_names_no_server_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(
        InputError, match=r"expected a base URL such as https://api\.openai\.com/v1"
    ) as caught:
        load("openai:m", base_url=url)
    assert "geheim" not in str(caught.value)


def test_many_texts_go_out_in_requests_of_128_and_come_back_in_order(server: Server, api: OpenAI) -> None:
    texts = ["x" * (n + 1) for n in range(300)]
    assert api.embed(texts)[:, 0].tolist() == [float(n + 1) for n in range(300)]
    assert [len(body["input"]) for body in server.bodies] == [128, 128, 44]


def test_vectors_are_ordered_by_their_index_not_by_their_place(server: Server, api: OpenAI) -> None:
    def backwards(body: dict[str, Any], number: int) -> Any:
        status, _, raw = ok(body)
        answer = json.loads(raw)
        answer["data"].reverse()
        return reply(status, answer)

    server.answer = backwards
    assert api.embed(["a", "bb", "ccc"])[:, 0].tolist() == [1, 2, 3]


def test_base64_is_understood_too(server: Server, api: OpenAI) -> None:
    def packed(body: dict[str, Any], number: int) -> Any:
        raws = [np.asarray(vector(text), dtype="<f4").tobytes() for text in body["input"]]
        data = [{"index": n, "embedding": base64.b64encode(raw).decode()} for n, raw in enumerate(raws)]
        return reply(200, {"data": data})

    server.answer = packed
    assert api.embed(["abc", "d"]).tolist() == [vector("abc"), vector("d")]


@pytest.mark.parametrize("texts", [["a", ""], ["a", " \n"]])
def test_blank_texts_are_refused_before_anything_is_sent(
    server: Server, api: OpenAI, texts: list[str]
) -> None:
    with pytest.raises(InputError, match=r"expected texts to embed, got .* at position 1"):
        api.embed(texts)
    assert server.bodies == []


def items(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"data": [{"index": index, "embedding": embedding} for index, embedding in pairs]}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (items((0, [1, 2])), r"expected 2 embeddings, one for each text, got 1"),
        (items(), r"expected 2 embeddings, one for each text, got 0"),
        (items((0, [1]), (1, [1]), (2, [1])), r"expected 2 embeddings, one for each text, got 3"),
        (items((0, [1]), (0, [1])), r"expected each index from 0 to 1 once, got \[0, 0\]"),
        (items((1, [1]), (2, [1])), r"expected each index from 0 to 1 once, got \[1, 2\]"),
        (items((False, [1]), (True, [1])), r"expected each index from 0 to 1 once"),
        (items((None, [1]), (None, [1])), r"expected each index from 0 to 1 once"),
        (items((0, [1, 2]), (1, [1])), r"expected embeddings of 2 dimensions, got one of 1"),
        (
            items((0, [1, 2]), (1, [1, None])),
            r"expected numbers as embedding 1, got a list that holds NoneType",
        ),
        (
            items((0, [1, 2]), (1, [1, float("nan")])),
            r"expected numbers as embedding 1, got nan at component 1",
        ),
        (
            items((0, [1, 2]), (1, "no base64!")),
            r"expected numbers as embedding 1, got text that is not base64",
        ),
        (
            items((0, [1, 2]), (1, "AAAA")),
            r"expected numbers as embedding 1, got base64 of 3 bytes, which is no row of float32",
        ),
        (items((0, []), (1, [])), r"expected numbers as embedding 0, got an empty list"),
        (items((0, None), (1, None)), r"expected numbers as embedding 0, got NoneType"),
        ({"data": "x"}, r"expected a list of 2 embeddings, got str"),
        ({"data": [1, 2]}, r"expected a list of 2 embeddings, got list"),
    ],
)
def test_an_answer_that_does_not_fit_the_question_is_refused(
    server: Server, api: OpenAI, answer: Any, message: str
) -> None:
    server.answer = lambda body, number: reply(200, answer)
    with pytest.raises(
        EmbedderError, match=rf"some-model at http://127\.0\.0\.1:\d+/v1/embeddings: {message}"
    ):
        api.embed(["a", "b"])
    assert len(server.bodies) == 1


def test_a_dimension_that_changes_between_requests_is_refused(server: Server, api: OpenAI) -> None:
    api.embed(["a"])
    server.answer = lambda body, number: reply(200, items((0, [1.0, 2.0])))
    with pytest.raises(EmbedderError, match=r"expected embeddings of 3 dimensions, got one of 2"):
        api.embed(["a"])


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 0])
def test_a_failure_that_may_pass_is_tried_again(server: Server, api: OpenAI, status: int) -> None:
    server.answer = lambda body, number: reply(status, b"") if number < 3 else ok(body)
    assert api.embed(["a"]).tolist() == [vector("a")]
    assert len(server.bodies) == 3


def test_a_failure_that_stays_is_reported_after_the_last_attempt(server: Server, api: OpenAI) -> None:
    server.answer = lambda body, number: reply(503, {"error": {"message": "loading", "code": 503}})
    with pytest.raises(EmbedderError, match=r"failed: HTTP 503, code 503: loading; tried 3 times"):
        api.embed(["a"])
    assert len(server.bodies) == 3


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422, 501, 302])
def test_a_failure_that_will_not_pass_is_reported_at_once(server: Server, api: OpenAI, status: int) -> None:
    server.answer = lambda body, number: reply(
        status, {"error": {"message": "no", "code": None, "type": "t"}}
    )
    with pytest.raises(EmbedderError, match=rf"failed: HTTP {status}, code t: no$"):
        api.embed(["a"])
    assert len(server.bodies) == 1


@pytest.mark.parametrize("where", ["code", "type"])
def test_an_exhausted_quota_is_not_tried_again(server: Server, api: OpenAI, where: str) -> None:
    error = {
        "message": "You exceeded your current quota",
        "type": "x",
        "code": None,
        where: "insufficient_quota",
    }
    server.answer = lambda body, number: reply(429, {"error": error})
    with pytest.raises(
        EmbedderError, match=r"HTTP 429, code insufficient_quota: You exceeded your current quota$"
    ):
        api.embed(["a"])
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "header",
    [{"Retry_After": "0.05"}, {"retry_after_ms": "50"}, {"retry_after_ms": "50", "Retry_After": "500"}],
    ids=str,
)
def test_the_pause_is_the_one_that_the_server_asks_for(
    server: Server, api: OpenAI, header: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("vecbridge.ingestion.openai.time.sleep", pauses.append)
    server.answer = lambda body, number: reply(429, {}, **header) if number == 1 else ok(body)
    api.embed(["a"])
    assert len(pauses) == 1
    assert 0.05 <= pauses[0] < 0.06


def test_a_date_to_retry_after_is_understood(
    server: Server, api: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("vecbridge.ingestion.openai.time.sleep", pauses.append)
    monkeypatch.setattr("vecbridge.ingestion.openai.time.time", lambda: 1_000_000.0)
    date = formatdate(1_000_030, usegmt=True)
    server.answer = lambda body, number: reply(503, b"", Retry_After=date) if number == 1 else ok(body)
    api.embed(["a"])
    assert 30 <= pauses[0] < 30.1


def test_pauses_grow_and_differ(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("vecbridge.ingestion.openai.time.sleep", pauses.append)
    server.answer = lambda body, number: reply(500, b"")
    api = OpenAI("m", base_url=server.url, attempts=8)
    with pytest.raises(EmbedderError, match=r"tried 8 times"):
        api.embed(["a"])
    api.close()
    longest = [0.5, 1, 2, 4, 8, 8, 8]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, longest, strict=True))
    assert len(set(pauses)) == 7


def test_a_pause_of_hours_is_reported_instead_of_waited_for(server: Server, api: OpenAI) -> None:
    server.answer = lambda body, number: reply(429, {"error": {"message": "later"}}, Retry_After="86400")
    with pytest.raises(EmbedderError, match=r"HTTP 429: later; the server asks to wait 86,400 seconds"):
        api.embed(["a"])
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "m", "type": "t", "param": None, "code": "c"}}, r"code c: m"),
        ({"error": {"message": "m", "type": "t", "param": None, "code": 400}}, r"code 400: m"),
        ({"error": "short", "status": 400, "message": "long"}, r"code 400: short: long"),
        ({"object": "error", "message": "m", "type": "t", "param": None, "code": 40001}, r"code 40001: m"),
        ({"message": "m", "code": 20015}, r"code 20015: m"),
        ({"message": "m", "code": 422, "type": "Validation"}, r"code 422: m"),
        ({"statusCode": 400, "message": "m"}, r"code 400: m"),
        ({"detail": "m"}, r"HTTP 400: m"),
        (
            {"detail": [{"loc": ["body", "input"], "msg": "too long", "type": "t"}]},
            r"HTTP 400: body\.input: too long",
        ),
        ({"detail": {"a": 1}}, r'HTTP 400: \{"a": 1\}'),
        ({"other": 1}, r'HTTP 400: an unexpected answer: \{"other": 1\}'),
        (["a"], r'HTTP 400: \["a"\]'),
        (b"", r"HTTP 400: no message"),
        (b"plain\x1b[31m text\n\n", r"HTTP 400: plain \[31m text"),
        (b"<!DOCTYPE html><html><head><title>502\n Bad Gateway</title>", r"HTTP 400: 502 Bad Gateway"),
        (b"<html><body><h1>Oops</h1> there</body></html>", r"HTTP 400: Oops there"),
        (b"\xff\xfe", r"HTTP 400: "),
    ],
)
def test_the_errors_of_all_servers_read_alike(server: Server, api: OpenAI, body: Any, message: str) -> None:
    server.answer = lambda _, number: reply(400, body)
    with pytest.raises(EmbedderError, match=rf"^some-model at \S+ failed: .*{message}"):
        api.embed(["a"])


def test_the_request_id_is_in_the_message(server: Server, api: OpenAI) -> None:
    server.answer = lambda body, number: reply(400, {"error": {"message": "x" * 9000}}, x_request_id="req_77")
    with pytest.raises(EmbedderError, match=r"xxx… \(request id req_77\)$") as caught:
        api.embed(["a"])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "bad input", "code": "x"}}, r"HTTP 200, code x: bad input"),
        ({"error": "bad input", "data": []}, r"HTTP 200: bad input"),
        ({"ok": True}, r"HTTP 200: an unexpected answer"),
        (b"<html><title>Sign in</title></html>", r"HTTP 200: Sign in"),
        ([], r"HTTP 200: \[\]"),
    ],
)
def test_an_error_dressed_as_success_is_an_error(
    server: Server, api: OpenAI, body: Any, message: str
) -> None:
    server.answer = lambda _, number: reply(200, body)
    with pytest.raises(EmbedderError, match=message):
        api.embed(["a"])
    assert len(server.bodies) == 1


def test_an_overload_dressed_as_success_is_tried_again(server: Server, api: OpenAI) -> None:
    busy = reply(200, {"error": {"message": "busy", "code": 429}})
    server.answer = lambda body, number: busy if number == 1 else ok(body)
    assert api.embed(["a"]).tolist() == [vector("a")]


@pytest.mark.parametrize(
    "echo",
    [
        {"error": {"message": f"Incorrect API key provided: {KEY}.", "code": KEY}},
        {"detail": f"Bearer {KEY}"},
        {"unexpected": {"authorization": KEY}},
        f"<title>{KEY}</title>".encode(),
        f"no such page: /?key={KEY.replace('/', '%2F').replace('+', '%2B')}".encode(),
        json.dumps({"k": KEY}).replace("/", "\\/").encode()[:-1],
        {"data": [{"index": 0, "embedding": [KEY]}, {"index": KEY}]},
        {"data": [{"index": 0, "embedding": KEY}, {"index": 1, "embedding": KEY}]},
    ],
    ids=range(8),
)
@pytest.mark.parametrize("status", [200, 401])
def test_the_key_is_in_no_error_even_if_the_server_repeats_it(
    server: Server, api: OpenAI, echo: Any, status: int
) -> None:
    server.answer = lambda body, number: reply(status, echo, x_request_id=KEY)
    with pytest.raises(EmbedderError, match=r"some-model at ") as caught:
        api.embed(["a", "b"])
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "geheim" not in f"{chain} {chain!r}"
        chain = chain.__cause__
    assert "geheim" not in repr(api)


def test_a_server_that_is_not_there_is_named_without_the_password_in_its_url(server: Server) -> None:
    port = server.url.rsplit(":", 1)[1]
    server.close()
    api = OpenAI("m", base_url=f"http://user:geheim@127.0.0.1:{port}", api_key=KEY, attempts=2, backoff=0.001)
    with pytest.raises(
        EmbedderError, match=r"m at http://127\.0\.0\.1:\d+/v1/embeddings failed: no answer: Connect"
    ) as caught:
        api.embed(["a"])
    api.close()
    assert "geheim" not in f"{caught.value} {api!r}"
