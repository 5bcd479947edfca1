"""The client of embedding APIs: every text comes back in its place, once, or with the reason why not."""

from __future__ import annotations

import json
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from embedding_server import DIM, Asked, EmbeddingServer, Hurried, Reply, good, vector
from hypothesis import given, settings
from hypothesis import strategies as st

from vecbridge.embedders import Embedded, Measured, Service, Usage, load
from vecbridge.embedders.api import Api
from vecbridge.embedders.pace import Pace
from vecbridge.embedders.providers import PROVIDERS
from vecbridge.errors import EmbedderError, InputError

KEY = "sk-geheim/4711+abc"
TOO_LONG = Reply(400, {"error": {"message": "maximum context length is 9 tokens", "type": "x", "code": None}})
TOO_MANY = Reply(422, {"message": "batch size 9 > maximum allowed batch size 2", "code": 422, "type": "x"})
NO = Reply(400, {"error": {"message": "no", "type": "x", "param": None, "code": None}})
RATE = Reply(429, {"error": {"message": "slow", "type": "x", "code": "rate_limit_exceeded"}})

Make = Callable[..., Api]


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for profile in PROVIDERS.values():
        for name in profile.key_variables:
            monkeypatch.delenv(name, raising=False)
    for name in ("OPENAI_BASE_URL", "OLLAMA_HOST", "SAMBA_NOVA_BASE_URL", "AZURE_OPENAI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with EmbeddingServer() as server:
        yield server


def api_at(server: EmbeddingServer, provider: str = "openai", **options: Any) -> Api:
    pace = Pace(concurrency=16, fixed=True, clock=Hurried())
    options = {"base_url": server.url, "api_key": KEY, "pace": pace, "timeout": 10.0, **options}
    return Api(options.pop("model", "some-model"), provider=PROVIDERS[provider], **options)


@pytest.fixture
def make(server: EmbeddingServer) -> Iterator[Make]:
    made: list[Api] = []

    def make(provider: str = "openai", **options: Any) -> Api:
        made.append(api_at(server, provider, **options))
        return made[-1]

    yield make
    for api in made:
        api.close()


def right(vectors: Any, texts: list[str]) -> bool:
    return np.array_equal(vectors, np.stack([vector(text) for text in texts]))


# --- what is sent


def test_what_is_asked_for_and_how_it_comes_back(server: EmbeddingServer, make: Make) -> None:
    api = make()
    assert isinstance(api, Service)
    assert isinstance(api, Measured)
    assert api.dim is None
    found = api.embed(["abc", "déjà 東京"])
    assert right(found, ["abc", "déjà 東京"])
    assert found.dtype == np.float32
    assert (api.dim, api.concurrency) == (DIM, 16)
    assert server.asked[0].body == {
        "model": "some-model",
        "input": ["abc", "déjà 東京"],
        "encoding_format": "base64",
    }
    assert server.asked[0].path == "/v1/embeddings"
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert server.asked[0].headers["content-type"] == "application/json"
    assert server.asked[0].headers["user-agent"].startswith("vecbridge/")
    assert np.array_equal(api.embed_query("abc"), vector("abc"))
    assert api.embed([]).shape == (0, DIM)
    assert api.request([]).vectors.shape == (0, DIM)
    assert server.requests == 2


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_is_loaded_by_its_name_and_asked_as_its_profile_says(
    server: EmbeddingServer, provider: str
) -> None:
    profile = PROVIDERS[provider]
    api = load(f"{provider}:org/model:tag", base_url=f"{server.url}/", api_key=KEY)
    assert isinstance(api, Api)
    assert api.model == "org/model:tag"
    assert right(api.embed(["a", "b"]), ["a", "b"])
    api.close()
    expected: dict[str, Any] = {"model": "org/model:tag", "input": ["a", "b"]}
    if profile.encoding:
        expected["encoding_format"] = profile.encoding
    assert server.asked[0].body == expected
    bearer = profile.key_header == "Authorization"
    assert server.asked[0].headers[profile.key_header.lower()] == (f"Bearer {KEY}" if bearer else KEY)
    assert server.asked[0].path.partition("?")[0] == "/v1/embeddings"
    assert api.items == min(profile.items or 128, 128)
    assert api.chars == (profile.tokens or 250_000)
    assert api.truncates == profile.truncates


def test_azure_has_its_key_in_a_header_of_its_own(server: EmbeddingServer, make: Make) -> None:
    make("azure").embed(["a"])
    assert server.asked[0].headers["api-key"] == KEY
    assert "authorization" not in server.asked[0].headers


def test_an_unknown_provider_is_refused_with_near_ones_and_the_way_out() -> None:
    with pytest.raises(
        InputError, match=r"did you mean scaleway:MODEL\? .*openai:MODEL with a base URL serves any other API"
    ):
        load("scalewy:bge-m3")
    with pytest.raises(
        InputError, match=r"expected an embedder as .*, got 'nowhere:x'\. Providers are .*wandb"
    ):
        load("nowhere:x")


def test_address_and_key_come_from_the_environment(
    server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f" {server.url}/ ")
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    api = load("openai:m")
    api.embed(["a"])
    api.close()
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert server.asked[0].path == "/v1/embeddings"


def test_a_base_url_may_be_made_of_environment_variables(
    server: EmbeddingServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROJECT_ID", "p-1")
    make("scaleway", base_url=server.url.replace("/v1", "/{PROJECT_ID}/v1")).embed(["a"])
    assert server.asked[0].path == "/p-1/v1/embeddings"
    monkeypatch.delenv("PROJECT_ID")
    with pytest.raises(InputError, match=r"the base URL of scaleway needs PROJECT_ID: set it"):
        make("scaleway", base_url=server.url.replace("/v1", "/{PROJECT_ID}/v1"))
    with pytest.raises(InputError, match=r"Azure OpenAI needs its address: set AZURE_OPENAI_ENDPOINT"):
        make("azure", base_url=None)
    assert server.requests == 1


def test_headers_of_the_profile_are_sent_when_their_variables_are_set(
    server: EmbeddingServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_ENTITY", "team")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    make("wandb").embed(["a"])
    monkeypatch.setenv("WANDB_PROJECT", "corpus")
    make("wandb").embed(["a"])
    assert "openai-project" not in server.asked[0].headers
    assert server.asked[1].headers["openai-project"] == "team/corpus"
    monkeypatch.setenv("WANDB_PROJECT", "größe")
    with pytest.raises(InputError, match=r"printable ASCII in the header OpenAI-Project of W&B"):
        make("wandb")


@pytest.mark.parametrize("provider", [name for name, profile in PROVIDERS.items() if profile.needs_key])
def test_a_provider_that_needs_a_key_says_where_to_put_it(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://resource.openai.azure.com")
    profile = PROVIDERS[provider]
    with pytest.raises(InputError, match=rf"needs a key: set {profile.key_variables[0]}"):
        load(f"{provider}:m")


def test_a_server_of_ones_own_needs_no_key(server: EmbeddingServer, make: Make) -> None:
    make("openai", api_key=None).embed(["a"])
    assert "authorization" not in server.asked[0].headers


def test_a_key_and_a_password_in_the_url_exclude_each_other(server: EmbeddingServer, make: Make) -> None:
    with pytest.raises(
        InputError, match=r"either an API key or a name and password in the base URL, got both"
    ):
        make(base_url=server.url.replace("://", "://me:geheim@"))


@pytest.mark.parametrize("user", ["me:geheimnis", "geheimnis"])
def test_what_stands_in_the_base_url_to_log_in_is_in_no_error(
    server: EmbeddingServer, make: Make, user: str
) -> None:
    def repeating(asked: Asked) -> Reply:
        sent = asked.headers["authorization"]
        return Reply(401, {"error": {"message": f"no: {sent} is {b64decode(sent.split()[1]).decode()}"}})

    server.answer = repeating
    with pytest.raises(EmbedderError, match=r"HTTP 401: no: Basic \*\*\* is (me:)?\*\*\*") as caught:
        make(base_url=server.url.replace("://", f"://{user}@"), api_key=None).embed(["a"])
    assert "geheimnis" not in f"{caught.value!r} {vars(caught.value)}"


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


@pytest.mark.parametrize(
    ("option", "message"), [({"attempts": 0}, "1 or more attempts"), ({"timeout": 0}, "timeout of")]
)
def test_what_makes_no_sense_is_refused(make: Make, option: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**option)


# --- prefixes, dimensions, limits


def test_prefixes_are_those_of_the_model_unless_given(server: EmbeddingServer, make: Make) -> None:
    api = make(model="m", document_prefix="passage: ", query_prefix="query: ")
    api.request(["a"])
    api.embed_query("b")
    assert api.document_prefix == "passage: "
    assert server.texts == ["passage: a", "query: b"]
    known = make(model="intfloat/multilingual-e5-small")
    assert known.document_prefix == "passage: "
    assert make(model="intfloat/multilingual-e5-small", document_prefix="").document_prefix == ""


def test_the_catalogue_says_how_long_texts_may_be_and_who_counts_them(make: Make) -> None:
    small = make(model="text-embedding-3-small")
    assert (small.max_tokens, small.tokenizer) == (8191, "cl100k_base")
    assert make(model="text-embedding-ada-002").tokenizer == "cl100k_base"
    assert make(model="bge-m3").tokenizer is None
    assert make(model="nobody-knows-it").max_tokens is None
    assert make(model="nobody-knows-it").nested is None
    assert make(model="bge-m3").nested == ()
    assert 512 in (small.nested or ())


def test_shorter_vectors_are_asked_for_by_the_name_of_the_field(server: EmbeddingServer, make: Make) -> None:
    server.answer = lambda asked: good(asked, dim=4)
    api = make(dimensions=4)
    assert api.embed(["a"]).shape == (1, 4)
    assert server.asked[0].body["dimensions"] == 4
    assert "dimensions=4" in api.address
    make("mistral", dimensions=4).embed(["a"])
    assert server.asked[1].body["output_dimension"] == 4
    assert "dimensions" not in server.asked[1].body


@pytest.mark.parametrize(
    ("provider", "model", "dimensions", "message"),
    [
        ("scaleway", "x", 512, r"Scaleway .* has no way to ask for 512 dimensions"),
        ("openai", "text-embedding-ada-002", 512, r"makes vectors of 1,536 and no others, not of 512"),
        ("openai", "text-embedding-3-small", 3072, r"makes vectors of at most 1,536, not of 3,072"),
        ("openai", "x", 0, r"expected 1 or more dimensions, got 0"),
    ],
)
def test_dimensions_that_cannot_be_had_are_refused_before_anything_is_sent(
    server: EmbeddingServer, make: Make, provider: str, model: str, dimensions: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(provider, model=model, dimensions=dimensions)
    assert server.requests == 0


def test_the_models_own_dimension_is_checked_and_not_sent(server: EmbeddingServer, make: Make) -> None:
    api = make(model="bge-m3", dimensions=1024)
    with pytest.raises(EmbedderError, match=r"asked for vectors of 1024 dimensions, got 8") as caught:
        api.embed(["a"])
    assert "dimensions" not in server.asked[0].body
    assert "leave dimensions out" in str(caught.value.remedy)
    assert server.requests == 1


def test_many_texts_go_out_in_requests_of_so_many_and_so_long(server: EmbeddingServer, make: Make) -> None:
    texts = [f"text {n}" for n in range(300)]
    api = make()
    assert right(api.embed(texts), texts)
    assert [len(asked.texts) for asked in server.asked] == [128, 128, 44]
    api.chars = 10
    server.asked.clear()
    api.embed(["12345", "12345", "1", "x" * 50, "12"])
    assert [asked.texts for asked in server.asked] == [["12345", "12345"], ["1"], ["x" * 50], ["12"]]


@pytest.mark.parametrize("texts", [["a", ""], ["a", " \n"], "a", [None]])
def test_what_cannot_be_embedded_is_refused_before_anything_is_sent(
    server: EmbeddingServer, make: Make, texts: Any
) -> None:
    for ask in (make().embed, make().request):
        with pytest.raises(InputError, match=r"expected (a list of )?texts"):
            ask(texts)
    assert server.requests == 0


# --- what comes back


def changed(asked: Asked, change: Callable[[list[Any]], None]) -> Reply:
    body = good(asked).body
    change(body["data"])
    return Reply(200, body)


def test_vectors_are_ordered_by_their_index_not_by_their_place(server: EmbeddingServer, make: Make) -> None:
    server.answer = lambda asked: changed(asked, list.reverse)
    texts = ["a", "bb", "ccc"]
    assert right(make().embed(texts), texts)


@pytest.mark.parametrize("provider", ["openai", "mistral", "scaleway"])
@pytest.mark.parametrize("packed", ["base64", "float"])
def test_both_encodings_are_understood_whatever_was_asked(
    server: EmbeddingServer, make: Make, provider: str, packed: str
) -> None:
    def answer(asked: Asked) -> Reply:
        return good(Asked(asked.number, {**asked.body, "encoding_format": packed}, "", {}))

    server.answer = answer
    assert right(make(provider).embed(["a", "b"]), ["a", "b"])


def entries(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"data": [{"index": index, "embedding": embedding} for index, embedding in pairs]}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (entries((0, [1]), (1, [1]), (2, [1])), r"expected 2 embeddings, one for each text, got 3"),
        (entries((0, [1]), (0, [1])), r"expected each index from 0 to 1 once, got \[0, 0\]"),
        (entries((1, [1]), (2, [1])), r"expected each index from 0 to 1 once, got \[1, 2\]"),
        (entries((False, [1]), (True, [1])), r"expected each index from 0 to 1 once"),
        (entries((None, [1]), (None, [1])), r"expected each index from 0 to 1 once"),
        (entries((0, [1, 2]), (1, [1])), r"expected embeddings of 2 dimensions, got one of 1"),
        (entries((0, ["1"]), (1, [1])), r"expected numbers as embedding 0, got a list that holds str"),
        (entries((0, [True]), (1, [1])), r"expected numbers as embedding 0, got a list that holds bool"),
        (entries((0, []), (1, [])), r"expected numbers as embedding 0, got an empty list"),
        (entries((0, None), (1, None)), r"expected numbers as embedding 0, got NoneType"),
        (entries((0, "?"), (1, "?")), r"expected numbers as embedding 0, got text that is not base64"),
        (entries((0, "AAA="), (1, "AAA=")), r"expected numbers as embedding 0, got base64 of 2 bytes"),
        ({"data": "x"}, r"an answer without data"),
        ({"data": [1, 2]}, r"expected 2 embeddings, got other things among them"),
    ],
)
def test_an_answer_that_does_not_fit_the_question_is_asked_for_again_and_then_refused(
    server: EmbeddingServer, make: Make, answer: Any, message: str
) -> None:
    server.answer = lambda asked: Reply(200, answer)
    with pytest.raises(EmbedderError, match=rf"some-model at \S+ failed: HTTP 200: {message}.*tried 3 times"):
        make().embed(["a", "b"])
    assert server.requests == 4
    server.answer = good
    server.script = [Reply(200, answer), Reply(200, answer)]
    assert right(make().embed(["a", "b"]), ["a", "b"])


@pytest.mark.parametrize(
    "bad", [[float("nan")] * DIM, [None] * DIM, [1e39] + [0] * 7, "AADAfwAAwH8="], ids=str
)
def test_a_vector_that_is_not_finite_refuses_its_text_and_no_other(
    server: EmbeddingServer, make: Make, bad: Any
) -> None:
    server.answer = lambda asked: changed(asked, lambda data: data[1].update(embedding=bad))
    embedded = make().request(["a", "b", "c"])
    assert right(embedded.vectors, ["a", "c"])
    assert list(embedded.refused) == [1]
    assert "not finite" in str(embedded.refused[1])
    assert server.requests == 1


def test_a_dimension_that_changes_between_requests_stops_at_once(server: EmbeddingServer, make: Make) -> None:
    server.script = [None]
    server.answer = lambda asked: good(asked, dim=4)
    api = make()
    api.embed(["a"])
    with pytest.raises(
        EmbedderError, match=r"expected vectors of 8 dimensions as before, got 4; another model"
    ):
        api.embed(["a"])
    assert server.requests == 2


def test_an_answer_that_is_cut_off_is_asked_for_again(server: EmbeddingServer, make: Make) -> None:
    server.script = [Reply(200, {"data": []}, cut=5), Reply(cut=-1), None]
    api = make()
    assert right(api.embed(["a"]), ["a"])
    assert api.usage() == Usage(texts=1, requests=3, retries=2, tokens=1)


def test_an_answer_that_comes_too_late_is_asked_for_again(server: EmbeddingServer, make: Make) -> None:
    server.script = [Reply(200, {}, after=30)]
    assert right(make(timeout=0.1).embed(["a"]), ["a"])
    assert server.requests == 2


# --- what is refused


@pytest.mark.parametrize("status", [408, 409, 424, 425, 429, 500, 502, 503, 504, 520, 529])
def test_a_failure_that_may_pass_is_tried_again(server: EmbeddingServer, make: Make, status: int) -> None:
    server.script = [Reply(status), Reply(status)]
    assert right(make().embed(["a"]), ["a"])
    assert server.requests == 3


def test_a_pause_of_hours_is_reported_instead_of_waited_for(server: EmbeddingServer, make: Make) -> None:
    server.answer = lambda asked: Reply(429, {"error": {"message": "later"}}, {"retry-after": "86400"})
    with pytest.raises(EmbedderError, match=r"HTTP 429: later \(the server asks to wait 86,400 seconds\)"):
        make().embed(["a"])
    assert server.requests == 1


def test_whoever_asks_a_question_is_told_soon(server: EmbeddingServer, make: Make) -> None:
    server.answer = lambda asked: Reply(429, {"error": {"message": "later"}}, {"retry-after": "60"})
    with pytest.raises(EmbedderError, match=r"HTTP 429: later \(the server asks to wait 60 seconds\)"):
        make().embed_query("a")
    assert server.requests == 1
    # two answers that are too late, and three faults without a request to see whether another text would do
    server.answer = lambda asked: Reply(504, b"")
    with pytest.raises(EmbedderError, match=r"HTTP 504.* \(tried 2 times\)"):
        make().embed_query("a")
    server.answer = lambda asked: Reply(500, {"error": "broken"})
    with pytest.raises(EmbedderError, match=r"HTTP 500: broken \(tried 3 times\)"):
        make().embed_query("a")
    assert server.requests == 6


def test_the_retries_of_a_run_are_bounded(server: EmbeddingServer, make: Make) -> None:
    server.answer = lambda asked: RATE
    api = make(pace=Pace(concurrency=1, retries=3, clock=Hurried()))
    with pytest.raises(
        EmbedderError, match=r"HTTP 429.* \(tried 4 times, the retries of this run are spent\)"
    ):
        api.embed(["a"])
    assert server.requests == 4


def refusing(bad: set[str], reply: Reply) -> Callable[[Asked], Reply]:
    return lambda asked: reply if bad & set(asked.texts) else good(asked)


@pytest.mark.parametrize("reply", [TOO_LONG, NO, Reply(500, {"error": "the tokenizer stumbles"})])
def test_a_text_that_is_refused_does_not_keep_others_back(
    server: EmbeddingServer, make: Make, reply: Reply
) -> None:
    texts = [f"text {n}" for n in range(20)]
    bad = {"text 3", "text 4", "text 17"}
    server.answer = refusing(bad, reply)
    embedded = make(attempts=2).request(texts)
    assert sorted(embedded.refused) == [3, 4, 17]
    assert all(error.status == reply.status for error in embedded.refused.values())
    assert right(embedded.vectors, [text for text in texts if text not in bad])
    assert all(server.embedded[text] == 1 for text in set(texts) - bad)
    with pytest.raises(EmbedderError, match=rf"HTTP {reply.status}"):
        make(attempts=2).embed(texts)


def test_texts_that_are_too_many_are_sent_in_halves(server: EmbeddingServer, make: Make) -> None:
    server.answer = lambda asked: TOO_MANY if len(asked.texts) > 2 else good(asked)
    texts = [f"text {n}" for n in range(11)]
    api = make()
    assert right(api.request(texts).vectors, texts)
    assert set(server.embedded.values()) == {1}
    assert api.usage().retries == 0


@pytest.mark.parametrize("status", [504, 524, 408])
def test_a_request_that_is_too_slow_twice_is_sent_in_halves(
    server: EmbeddingServer, make: Make, status: int
) -> None:
    server.answer = lambda asked: Reply(status) if len(asked.texts) > 2 else good(asked)
    assert right(make().request(["a", "b", "c", "d"]).vectors, ["a", "b", "c", "d"])
    assert [len(asked.texts) for asked in server.asked] == [4, 4, 2, 2]


def test_a_wrong_configuration_does_not_reject_text_after_text(server: EmbeddingServer, make: Make) -> None:
    server.answer = lambda asked: NO
    for texts in (["a"], ["a", "b", "c", "d"]):
        server.asked.clear()
        with pytest.raises(EmbedderError, match=r"HTTP 400, code x: no$"):
            make().request(texts)
        assert server.requests == 2


def test_a_configuration_that_goes_wrong_on_the_way_stops_after_a_few_texts(
    server: EmbeddingServer, make: Make
) -> None:
    server.script = [None]
    server.answer = lambda asked: NO
    api = make()
    api.request(["a"])
    with pytest.raises(EmbedderError, match=r"HTTP 400, code x: no$"):
        api.request([f"text {n}" for n in range(128)])
    assert server.requests < 30


def test_a_service_that_has_just_taken_a_text_is_not_asked_whether_it_works(
    server: EmbeddingServer, make: Make
) -> None:
    server.answer = refusing({"b"}, NO)
    api = make()
    api.request(["a"])
    assert list(api.request(["a", "b"]).refused) == [1]
    assert [asked.texts for asked in server.asked] == [["a"], ["a", "b"], ["a"], ["b"]]


def test_an_outage_rejects_no_text(server: EmbeddingServer, make: Make) -> None:
    server.script = [None]
    server.answer = lambda asked: Reply(500, {"error": "down"})
    api = make(attempts=3)
    api.request(["a"])
    with pytest.raises(EmbedderError, match=r"HTTP 500: down \(tried 3 times\)"):
        api.request(["b", "c"])
    assert server.requests == 5


# --- many at once


def test_many_threads_share_one_client_and_all_is_counted(server: EmbeddingServer, make: Make) -> None:
    def answer(asked: Asked) -> Reply:
        return RATE if asked.number % 5 == 0 else good(asked)

    server.answer = answer
    server.delay = 0.002
    api = make(attempts=50)
    batches = [[f"text {n} {m}" for m in range(7)] for n in range(60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(api.request, batches))
    assert all(right(embedded.vectors, batch) for embedded, batch in zip(found, batches, strict=True))
    refusals = sum(asked.number % 5 == 0 for asked in server.asked)
    assert server.requests == 60 + refusals
    assert api.usage() == Usage(texts=420, requests=server.requests, retries=refusals, tokens=1260)
    assert 1 < server.most <= 8


def closed_while(api: Api, server: EmbeddingServer) -> BaseException:
    """What a call in another thread ends with when the client is closed after its request has arrived."""
    caught: list[BaseException] = []

    def call() -> None:
        try:
            api.request(["a"])
        except EmbedderError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while not server.asked:
        threading.Event().wait(0.01)
    api.close()
    api.close()
    thread.join(20)
    assert not thread.is_alive()
    return caught[0]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, {}, after=600),
        Reply(429, {}, {"retry-after": "100"}),
        Reply(200, b"x" * 9, after=600, cut=3),
    ],
    ids=["an answer", "its turn", "half an answer"],
)
def test_closing_ends_what_waits(server: EmbeddingServer, make: Make, reply: Reply) -> None:
    server.answer = lambda asked: reply
    api = make(timeout=600.0, pace=Pace(concurrency=4))
    error = closed_while(api, server)
    assert str(error) == f"openai:some-model at {server.url}/embeddings was closed before it answered"
    with pytest.raises(EmbedderError, match=r"was closed before it answered"):
        api.embed(["b"])
    assert server.requests == 1


# --- anything goes wrong in any order

PASSING = [
    RATE,
    Reply(429, b"", {"retry-after-ms": "0.1"}),
    Reply(500, b"oops"),
    Reply(503, {"detail": "overloaded"}),
    Reply(504, b"<title>504 Gateway Time-out</title>"),
    Reply(424, {"message": "backend", "code": 424, "type": "backend"}),
    Reply(409),
    Reply(200, {"error": {"message": "busy", "code": 429}}),
    Reply(cut=-1),
    Reply(200, {"data": [1]}, cut=4),
]  # fmt: skip
BROKEN = [Reply(200, {"data": []}), Reply(200, b'{"data": [{"ind'), Reply(200, b"<html>"), Reply(200)]
FAULTS = {
    "long": TOO_LONG,
    "odd": NO,
    "page": Reply(422, b"<p>no"),
    "nan": Reply(500, b"unsupported value: NaN"),
}


@given(
    # a broken answer is asked for again twice: no more than two come in a row
    script=st.lists(
        st.one_of(st.none(), st.sampled_from(PASSING), st.sampled_from(PASSING), st.sampled_from(BROKEN)),
        max_size=25,
    ).filter(
        lambda script: (
            not any(all(one in BROKEN for one in script[n : n + 3]) for n in range(len(script) - 2))
        )
    ),
    kinds=st.lists(st.sampled_from(["good"] * 6 + ["null", *FAULTS]), min_size=1, max_size=16),
    most=st.integers(1, 20),
    backwards=st.booleans(),
)
@settings(max_examples=80)
def test_any_sequence_of_faults_ends_with_each_text_embedded_once_or_refused_once(
    script: list[Reply | None], kinds: list[str], most: int, backwards: bool
) -> None:
    texts = [f"{kind} {n}" for n, kind in enumerate(kinds)]

    def answer(asked: Asked) -> Reply:
        if len(asked.texts) > most:
            return TOO_MANY
        for text in asked.texts:
            if fault := FAULTS.get(text.split()[0]):
                return fault
        body = good(asked).body
        for text, item in zip(asked.texts, body["data"], strict=True):
            if text.startswith("null"):
                item["embedding"] = [None] * DIM
        if backwards:
            body["data"].reverse()
        return Reply(200, body)

    def scripted(asked: Asked) -> Reply:
        found = script[asked.number - 1] if asked.number <= len(script) else None
        return found or answer(asked)

    with EmbeddingServer(scripted) as server, closing(api_at(server, attempts=30)) as api:
        embedded: Embedded = api.request(texts)
        usage = api.usage()
    fine = [text for text in texts if text.startswith("good")]
    assert sorted(embedded.refused) == [n for n, kind in enumerate(kinds) if kind != "good"]
    assert right(embedded.vectors, fine) if fine else embedded.vectors.shape[0] == 0
    right_ones = [
        asked.texts for asked in server.asked if scripted(asked).status == 200 and json_data(scripted(asked))
    ]
    sent = [text for part in right_ones for text in part]
    assert all(sent.count(text) == 1 for text in fine)
    assert usage.requests == server.requests
    assert usage.texts == len(sent)


def json_data(reply: Reply) -> bool:
    """Whether a reply is a whole and right answer."""
    try:
        return reply.cut is None and bool(json.loads(reply.content).get("data"))
    except ValueError:
        return False
