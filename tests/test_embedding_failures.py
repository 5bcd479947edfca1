"""Whatever a provider says when it fails becomes one sentence, one verdict, and one remedy."""

from __future__ import annotations

import html
import json
import logging
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

import pytest
from embedding_server import EmbeddingServer, Reply, good

from vecbridge.embedders.api import Api
from vecbridge.embedders.failures import Answer, Fault, judge, read
from vecbridge.embedders.pace import Pace
from vecbridge.embedders.providers import PROVIDERS
from vecbridge.errors import EmbedderError

KEY = "sk-geheim/4711+abc&x"
ATTEMPTS = 3
# requests for two texts at a server that says nothing else: once; repeated, and a sentence that finds out
# whether it takes any; repeated twice as often without that, as it works but not for so many; halved; one
# and that sentence
REQUESTS = {
    "final": 1,
    "passing": ATTEMPTS + 1,
    "busy": 2 * ATTEMPTS,
    "size": 3,
    "text": 3,
    "unclear": 2,
    "broken": 4,
}

Make = Callable[..., Api]


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with EmbeddingServer() as server:
        yield server


@pytest.fixture
def make(server: EmbeddingServer) -> Iterator[Make]:
    made: list[Api] = []

    def make(provider: str = "openai", **options: Any) -> Api:
        pace = Pace(concurrency=4, fixed=True, backoff=0.0001)
        options = {"base_url": server.url, "api_key": KEY, "pace": pace, "attempts": ATTEMPTS, **options}
        made.append(Api("some-model", provider=PROVIDERS[provider], **options))
        return made[-1]

    yield make
    for api in made:
        api.close()


def openai(message: str, code: Any = None, kind: str = "invalid_request_error", param: Any = None) -> Any:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def legacy(message: str, code: int, kind: str = "BadRequestError") -> Any:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


CONTEXT = (
    "This model's maximum context length is 8192 tokens, however you requested 17143 tokens (17143 in your "
    "prompt; 0 for the completion). Please reduce your prompt; or completion length."
)
QUOTA = "You exceeded your current quota, please check your plan and billing details."
MANY = "Requested 453357 tokens, max 300000 tokens per request"
PHYSICAL = "input is too large to process. increase the physical batch size"
NAN = "failed to encode response: json: unsupported value: NaN"
S0 = (
    "Requests to the Embeddings_Create Operation under Azure OpenAI API version 2023-05-15 have exceeded "
    "call rate limit of your current OpenAI S0 pricing tier. Please retry after {} seconds."
)
PREFILL = "Illegal param: prefill 744 tokens exceed n_ctx_per_seq, try increasing total context size"
MRL = 'Model "x" does not support matryoshka representation, changing output dimensions will lead to poor'
PAGE = b"<!DOCTYPE html>\n<html><head><title>502 Bad\n Gateway</title></head><body>cloudflare</body></html>"

# name: provider, status, body, what is done, code, a part of the message, a part of the remedy
CASES: dict[str, tuple[str, int, Any, str, str | None, str, str]] = {
    "openai: too long": ("openai", 400, openai(CONTEXT), "text", "invalid_request_error", "8192", "short"),
    "openai: too many tokens": (
        "openai", 400, openai(MANY, "max_tokens_per_request", "max_tokens_per_request"), "size",
        "max_tokens_per_request", "453357", "fewer",
    ),
    "openai: bad key": (
        "openai", 401, openai("Incorrect API key provided", "invalid_api_key"), "final", "invalid_api_key",
        "Incorrect API key", "key",
    ),
    "openai: no credit": (
        "openai", 429, openai(QUOTA, "insufficient_quota", "insufficient_quota"), "final",
        "insufficient_quota", "current quota", "credits",
    ),
    "openai: no credit by type": (
        "openai", 429, openai(QUOTA, None, "insufficient_quota"), "final", "insufficient_quota", "quota",
        "credits",
    ),
    "openai: rate": (
        "openai", 429, openai("Rate limit reached for requests", "rate_limit_exceeded", "requests"), "busy",
        "rate_limit_exceeded", "Rate limit", "per-minute",
    ),
    "openai: unknown model": (
        "openai", 404, openai("The model `x` does not exist", "model_not_found", param="model"), "final",
        "model_not_found", "does not exist", "model",
    ),
    "openai: dimensions": (
        "openai", 400, openai("This model does not support specifying dimensions."), "final",
        "invalid_request_error", "specifying", "dimensions",
    ),
    "openai: encoding": (
        "openai", 400, openai("'base65' is not one of the options", param="encoding_format"), "final",
        "invalid_request_error", "base65", "dimensions",
    ),
    "openai: overloaded": (
        "openai", 503, openai("The engine is currently overloaded", kind="server_error"), "busy",
        "server_error", "overloaded", "",
    ),
    "openai: internal": (
        "openai", 500, openai("The server had an error", kind="server_error"), "passing", "server_error",
        "error", "",
    ),
    "openai: unexplained": ("openai", 400, openai("no"), "unclear", "invalid_request_error", "no", ""),
    "openai: unreadable": (
        "openai", 400, openai("We could not parse the JSON body"), "unclear", "invalid_request_error",
        "could not parse", "proxy",
    ),
    "azure: rate": (
        "azure", 429, {"error": {"code": "429", "message": S0.format(0)}}, "busy", "429", "S0", "tokens",
    ),
    "azure: rate, newer": (
        "azure", 429, {"error": {"code": "RateLimitReached", "message": "slow"}}, "busy",
        "RateLimitReached", "slow", "tokens",
    ),
    "azure: no error key": ("azure", 429, {"message": "Too many"}, "busy", None, "Too many", "tokens"),
    "azure: gateway": (
        "azure", 401, {"statusCode": 401, "message": "Access denied due to invalid subscription key"},
        "final", "401", "Access denied", "AZURE_OPENAI_ENDPOINT",
    ),
    "azure: deployment": (
        "azure", 404, {"error": {"code": "DeploymentNotFound", "message": "does not exist"}}, "final",
        "DeploymentNotFound", "does not exist", "deployment",
    ),
    "azure: one at a time": (
        "azure", 400, openai("Too many inputs. The max number of inputs is 1."), "size",
        "invalid_request_error", "Too many inputs", "fewer",
    ),
    "scaleway: older": (
        "scaleway", 400, {"error": "Bad Request", "status": 400, "message": "wrong content-type"},
        "unclear", "400", "Bad Request: wrong content-type", "",
    ),
    "scaleway: recent": (
        "scaleway", 429, {"error": {"message": "exceeding your current quota", "type": "t", "param": None,
        "code": 429}}, "busy", "429", "exceeding", "",
    ),
    "scaleway: legacy": (
        "scaleway", 422, legacy("Model Not Found", 422, "NotFound"), "final", "422", "Model", "odel",
    ),
    "scaleway: forbidden": (
        "scaleway", 403, {"error": "Forbidden", "status": 403, "message": "insufficient permissions"},
        "final", "403", "Forbidden: insufficient permissions", "roject",
    ),
    "scaleway: no header": (
        "scaleway", 401, {"error": "Unauthorized", "status": 401}, "final", "401", "Unau", "SCW",
    ),
    "scaleway: too large": (
        "scaleway", 400, {"error": "Bad Request", "status": 400, "message": "request body too large"},
        "size", "400", "body too large", "fewer",
    ),
    "wandb: key": (
        "wandb", 401, openai("Authentication failed"), "final", "invalid_request_error", "failed", "WANDB",
    ),
    "wandb: credit": ("wandb", 402, {"detail": QUOTA}, "final", None, "current quota", "credits"),
    "wandb: region": (
        "wandb", 403, {"detail": "Country, region, or territory not supported"}, "final", None, "territory",
        "",
    ),
    "wandb: concurrency": (
        "wandb", 429, openai("Concurrency limit reached for requests"), "busy", "invalid_request_error",
        "Concurrency", "concurren",
    ),
    "wandb: quota as 429": ("wandb", 429, {"detail": QUOTA}, "final", None, "current quota", "credits"),
    "wandb: 500": ("wandb", 500, {"detail": "The server had an error"}, "passing", None, "had an error", ""),
    "wandb: 503": (
        "wandb", 503, {"detail": "The engine is currently overloaded"}, "busy", None, "overloaded", "",
    ),
    "telekom: native": (
        "telekom", 401, {"detail": "Invalid API key"}, "final", None, "Invalid API key", "TELEKOM",
    ),
    "telekom: azure": (
        "telekom", 429, {"error": {"message": "slow down", "type": "rate_limit", "code": "429"}}, "busy",
        "429", "slow down", "",
    ),
    "telekom: 404": ("telekom", 404, {"detail": "Model not found"}, "final", None, "Model not found", "odel"),
    "sambanova: rate": (
        "sambanova", 429, openai("Rate limit exceeded", "insufficient_quota"), "busy", "insufficient_quota",
        "Rate", "",
    ),
    "sambanova: model": (
        "sambanova", 400, openai("no such model", "model_not_found"), "final", "model_not_found", "no such",
        "odel",
    ),
    "sambanova: too long": (
        "sambanova", 400, openai("too many", "context_length_exceeded"), "text", "context_length_exceeded",
        "too many", "",
    ),
    "sambanova: gone": (
        "sambanova", 410, openai("deprecated"), "final", "invalid_request_error", "deprecated", "odel",
    ),
    "vllm: older": ("vllm", 400, legacy(CONTEXT, 400), "text", "400", "context length", "max-model-len"),
    "vllm: newer": (
        "vllm", 404, {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError",
        "param": None, "code": 404}}, "final", "404", "does not exist", "served-model-name",
    ),
    "vllm: matryoshka": ("vllm", 400, legacy(MRL, 400), "final", "400", "matryoshka", "dimensions"),
    "tei: flat": (
        "tei", 422, {"message": "batch size 33 > maximum allowed batch size 32", "code": 422,
        "type": "Validation"}, "size", "422", "batch size 33", "max-client-batch-size",
    ),
    "tei: native": (
        "tei", 422, {"error": "`inputs` must have less than 512 tokens. Given: 900",
        "error_type": "Validation"}, "text", "Validation", "512 tokens", "",
    ),
    "tei: overloaded": (
        "tei", 429, {"message": "Model is overloaded", "code": 429, "type": "overloaded"}, "busy", "429",
        "overloaded", "max-concurrent-requests",
    ),
    "tei: backend": (
        "tei", 424, {"message": "CUDA", "code": 424, "type": "backend"}, "passing", "424", "CUDA", "log",
    ),
    "tei: key": ("tei", 401, b"", "final", None, "no message", "TEI_API_KEY"),
    "ollama: NaN": ("ollama", 500, openai(NAN, kind="api_error"), "text", "api_error", "NaN", "NaN"),
    "ollama: model": (
        "ollama", 404, openai('model "x" not found, try pulling it first', kind="not_found_error"), "final",
        "not_found_error", "pulling", "ollama pull",
    ),
    "ollama: too long": (
        "ollama", 400, {"error": "the input length exceeds the context length"}, "text", None,
        "context length", "",
    ),
    "llamacpp: physical batch": (
        "llamacpp", 500, {"error": {"code": 500, "message": PHYSICAL, "type": "server_error"}}, "text",
        "500", "physical batch", "ubatch",
    ),
    "llamacpp: context": (
        "llamacpp", 400, {"error": {"code": 400,
        "message": "the request exceeds the available context size", "type": "exceed_context_size_error",
        "n_ctx": 512}}, "text", "400", "context size", "ctx-size",
    ),
    "llamacpp: loading": (
        "llamacpp", 503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
        "busy", "503", "Loading model", "loaded",
    ),
    "llamacpp: not supported": (
        "llamacpp", 501, {"error": {"code": 501, "message": "This server does not support embeddings",
        "type": "not_supported_error"}}, "final", "501", "does not support", "--embeddings",
    ),
    "litellm: openai's": (
        "litellm", 400, {"error": {"message": "litellm.BadRequestError: no", "type": "None",
        "param": "None", "code": "400"}}, "unclear", "400", "BadRequestError", "",
    ),
    "litellm: validation": (
        "litellm", 422, {"detail": [{"loc": ["body", "dimensions"], "msg": "not an integer",
        "type": "int_type"}]}, "final", None, "body.dimensions: not an integer", "dimensions",
    ),
    "mistral: tokens": (
        "mistral", 400, {"object": "error", "message": "Too many tokens overall, split into more batches.",
        "type": "invalid_request_prompt", "param": None, "code": "3210"}, "size", "3210", "more batches",
        "fewer",
    ),
    "mistral: validation": (
        "mistral", 422, {"detail": [{"loc": ["body", "input", 0], "msg": "Input should be a string",
        "type": "s"}]}, "unclear", None, "body.input.0: Input should be", "",
    ),
    "siliconflow": (
        "openai", 400, {"code": 20015, "message": "bad \n\n", "data": None}, "unclear", "20015", "bad", "",
    ),
    "siliconflow: too long": (
        "openai", 413, {"code": 20042, "message": "input must have less than 512 tokens", "data": None},
        "size", "20042", "512 tokens", "fewer",
    ),
    "voyage: batch": (
        "openai", 400,
        {"detail": "The max allowed tokens per submitted batch is 120000. Your batch has 121138"}, "size",
        None, "submitted batch", "fewer",
    ),
    "gpustack": (
        "openai", 400, {"error": {"code": 400, "message": PREFILL, "type": "invalid_request_error"},
        "detail": PREFILL}, "text", "400", "n_ctx_per_seq", "shorter",
    ),
    "gateway: page": ("openai", 502, PAGE, "passing", None, "502 Bad Gateway", "try again"),
    "gateway: untitled page": ("openai", 500, b"<h1>Oops</h1> there", "passing", None, "Oops there", ""),
    "gateway: plain text": (
        "openai", 503, b"upstream\x1b[31m connect\n error", "busy", None, "[31m connect", "",
    ),
    "gateway: empty": ("openai", 500, b"", "passing", None, "no message", "status page"),
    "gateway: origin down": ("openai", 521, b"error code: 521", "passing", None, "521", ""),
    "gateway: 413 page": (
        "openai", 413, b"<title>413 Request Entity Too Large</title>", "size", None, "413", "fewer",
    ),
    "gateway: redirect": ("openai", 308, b"", "final", None, "no message", "http or https"),
    "gateway: payment": ("openai", 402, b"pay", "final", None, "pay", "credit"),
    "gateway: teapot": (
        "openai", 418, {"title": "teapot", "detail": {"error": {"message": "short"}}}, "final", None,
        "short", "",
    ),
    "gateway: in a list": ("openai", 401, [openai("in a list", "c")], "final", "c", "in a list", "key"),
    "gateway: unknown shape": ("openai", 400, {"other": 1}, "unclear", None, 'answer: {"other": 1}', ""),
    "gateway: not UTF-8": ("openai", 409, b"\xff\xfe", "passing", None, "�", ""),
    "200: with a status inside": ("openai", 200, openai("busy", 429), "busy", "429", "busy", "per-minute"),
    "200: with a bad key": ("openai", 200, {"error": "x", "status": 401}, "final", "401", "x", "key"),
    "200: with a code inside": (
        "openai", 200, openai("slow", "rate_limit_exceeded"), "passing", "rate_limit_exceeded", "slow", "",
    ),
    "200: with an error beside data": (
        "openai", 200, {"error": "bad", "data": []}, "unclear", None, "bad", "",
    ),
    "200: with a detail": ("openai", 200, {"detail": "no"}, "unclear", None, "no", ""),
    "200: empty data": (
        "openai", 200, {"object": "list", "data": [], "model": "m"}, "broken", None,
        "expected 2 embeddings", "base URL",
    ),
    "200: no data": ("openai", 200, {"ok": True}, "broken", None, "without data", "base URL"),
    "200: sign in": (
        "openai", 200, b"<html><title>Sign in</title></html>", "broken", None, "no JSON", "base URL",
    ),
    "200: empty": ("openai", 200, b"", "broken", None, "no JSON", "base URL"),
    "200: truncated": (
        "openai", 200, b'{"data": [{"index": 0, "embedd', "broken", None, "cut off", "base URL",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_documented_failure_is_told_and_treated_as_what_it_is(
    server: EmbeddingServer, make: Make, name: str
) -> None:
    provider, status, body, kind, code, message, remedy = CASES[name]
    server.answer = lambda asked: Reply(status, body, {"x-request-id": "req_77"})
    api = make(provider)
    if kind in ("size", "text"):
        embedded = api.request(["one", "two"])
        assert sorted(embedded.refused) == [0, 1]
        assert embedded.vectors.shape[0] == 0
        error = embedded.refused[1]
    else:
        with pytest.raises(
            EmbedderError, match=rf"^{provider}:some-model at http://\S+ failed: HTTP"
        ) as caught:
            api.request(["one", "two"])
        error = caught.value
        assert error.__cause__ is error.__context__ is None
    assert server.requests == REQUESTS[kind]
    inside = error.status != status
    assert error.status == status or (status == 200 and inside and error.status in (401, 429))
    assert (error.provider, error.code, error.request_id) == (provider, code, "req_77")
    assert error.detail is None if message == "no message" else message in str(error.detail)
    assert message in str(error)
    assert remedy in (error.remedy or "")
    assert str(error).endswith(f"; {error.remedy}") or error.remedy is None
    assert "request id req_77" in str(error)
    assert "{" not in (error.remedy or "")
    tries = {"passing": ATTEMPTS, "busy": 2 * ATTEMPTS, "broken": ATTEMPTS}.get(kind, 1)
    assert (f"tried {tries} times" in str(error)) == (tries > 1)
    assert api.usage().requests == server.requests
    assert api.usage().texts == 0


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        (openai("m", param="dimensions"), "dimensions"),
        ({"detail": [{"loc": ["body", "input", 3], "msg": "m", "type": "t"}]}, "input.3"),
        (openai("m", param=None), None),
        (openai("m", param="None"), None),
        ({"detail": "m"}, None),
    ],
)
def test_the_parameter_at_fault_is_named(
    server: EmbeddingServer, make: Make, body: Any, parameter: str | None
) -> None:
    server.answer = lambda asked: Reply(400, body)
    with pytest.raises(EmbedderError, match=r"HTTP 400") as caught:
        make().embed(["one"])
    assert caught.value.parameter == parameter
    assert (f"parameter {parameter}" in str(caught.value)) == (parameter is not None)


@pytest.mark.parametrize(
    ("status", "headers", "body", "seconds"),
    [
        (429, {"retry-after": "0.05"}, {}, 0.05),
        (429, {"retry-after": "7"}, {}, 7),
        (503, {"retry-after-ms": "1500"}, {}, 1.5),
        (429, {"retry-after-ms": "50", "retry-after": "500"}, {}, 0.05),
        (429, {"retry-after-ms": "x", "retry-after": "3"}, {}, 3),
        (429, {"retry-after": "-5"}, {}, 0),
        (429, {"retry-after": "nan"}, {}, None),
        (429, {"retry-after": "soon"}, {}, None),
        (429, {}, {"error": {"message": S0.format(21)}}, 21),
        (429, {"retry-after": "2"}, {"error": {"message": S0.format(21)}}, 2),
        (429, {}, openai("Rate limit reached. Please try again in 6ms."), 0.006),
        (429, {}, openai("Rate limit reached. Please try again in 1m6.5s. Visit"), 66.5),
        (429, {}, openai("Limit 3 / min. Please try again in 20s."), 20),
        (429, {}, openai("Please retry after 2 minutes"), 120),
        (429, {}, openai("try again in a while"), None),
        (429, {}, {}, None),
    ],
)  # fmt: skip
def test_the_pause_that_a_server_asks_for_is_read(
    status: int, headers: dict[str, str], body: Any, seconds: float | None
) -> None:
    assert read(Answer(status, headers, json.dumps(body))).wait == (
        seconds if seconds is None else pytest.approx(seconds)
    )


def test_a_date_to_retry_after_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    date = formatdate(1_000_030, usegmt=True)
    assert read(Answer(503, {"retry-after": date}, "")).wait == 30


@pytest.mark.parametrize(
    ("status", "should", "kind"),
    [
        (400, "true", "passing"),
        (403, "TRUE", "passing"),
        (429, "false", "final"),
        (500, "false", "final"),
        (413, "true", "size"),
        (413, "false", "size"),
        (400, "perhaps", "unclear"),
    ],
)
def test_a_server_may_say_itself_whether_to_try_again(status: int, should: str, kind: str) -> None:
    fault = read(Answer(status, {"x-should-retry": should}, ""))
    assert judge(fault, PROVIDERS["openai"]).kind == kind


def test_a_certificate_that_is_not_trusted_is_not_waited_for() -> None:
    fault = Fault("ConnectError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    verdict = judge(fault, PROVIDERS["openai"])
    assert verdict.kind == "final"
    assert "SSL_CERT_FILE" in str(verdict.remedy)


@pytest.mark.parametrize("name", ["x-request-id", "apim-request-id", "cf-ray"])
def test_the_request_id_is_found_in_any_header_and_in_the_body(name: str) -> None:
    assert read(Answer(400, {name: "r-1"}, "{}")).request_id == "r-1"
    assert read(Answer(400, {}, json.dumps({**openai("m"), "request_id": "r-2"}))).request_id == "r-2"


def test_a_long_message_is_cut_and_its_control_characters_are_gone(
    server: EmbeddingServer, make: Make
) -> None:
    server.answer = lambda asked: Reply(401, openai("x\x00y\n" * 9000))
    with pytest.raises(EmbedderError, match=r"HTTP 401, code \S+: x y x y") as caught:
        make().embed(["one"])
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


ECHOES = [
    {"error": {"message": f"Incorrect API key provided: {KEY}.", "code": KEY, "type": KEY, "param": KEY}},
    {"detail": f"Bearer {KEY}"},
    {"detail": [{"loc": ["header", KEY], "msg": KEY}]},
    {"unexpected": {"authorization": KEY}},
    f"<title>{html.escape(KEY)}</title>".encode(),
    f"no such page: /?key={quote(KEY, safe='')}".encode(),
    f"no such page: /?key={quote(KEY)}".encode(),
    json.dumps({"k": KEY}).replace("/", "\\/").encode()[:-1],
    b"<p>" * 700 + KEY.encode(),
    {"data": [{"index": 0, "embedding": [KEY]}, {"index": KEY}]},
    {"data": [{"index": 0, "embedding": KEY}, {"index": 1, "embedding": KEY}]},
]


@pytest.mark.parametrize("echo", range(len(ECHOES)))
@pytest.mark.parametrize("status", [200, 401, 500])
def test_the_key_is_in_no_error_and_no_log_even_if_the_server_repeats_it(
    server: EmbeddingServer, make: Make, echo: int, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.answer = lambda asked: Reply(status, ECHOES[echo], {"x-request-id": "id"})
    api = make()
    with pytest.raises(EmbedderError, match=r"some-model at ") as caught:
        api.embed(["a", "b"])
    seen: BaseException | None = caught.value
    while seen is not None:
        assert "geheim" not in f"{seen} {seen!r} {vars(seen)}"
        seen = seen.__cause__ or seen.__context__
    assert "geheim" not in repr(api)
    assert "geheim" not in caplog.text
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


def test_a_password_in_the_base_url_is_sent_and_shown_nowhere(
    server: EmbeddingServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = server.url.replace("http://", "http://me:geheimes@")
    api = make("tei", base_url=url, api_key=None)
    server.script = [None, Reply(403, {"message": "not with geheimes"})]
    api.embed(["a"])
    with pytest.raises(EmbedderError, match=r"not with \*\*\*") as caught:
        api.embed(["a"])
    assert server.asked[0].headers["authorization"] == "Basic bWU6Z2VoZWltZXM="
    assert "geheimes" not in f"{caught.value} {vars(caught.value)} {api!r} {api.address} {caplog.text}"
    assert "HTTP Request: POST" in caplog.text


def test_a_server_that_is_not_there_is_named_and_tried_a_few_times(
    server: EmbeddingServer, make: Make
) -> None:
    server.close()
    api = make()
    with pytest.raises(
        EmbedderError,
        match=r"some-model at http://127\.0\.0\.1:\d+/v1/embeddings failed: no answer: Connect.*"
        r"tried 3 times\); check the address",
    ) as caught:
        api.embed(["a"])
    assert caught.value.status is None
    assert api.usage().retries == ATTEMPTS - 1


def test_a_placeholder_of_a_key_is_not_cut_out_of_messages(server: EmbeddingServer, make: Make) -> None:
    server.answer = lambda asked: Reply(401, openai("not none of them"))
    with pytest.raises(EmbedderError, match=r"not none of them"):
        make(api_key="none").embed(["a"])


def test_an_error_after_a_good_answer_is_told_alike(server: EmbeddingServer, make: Make) -> None:
    server.script = [None, Reply(401, openai("expired"))]
    api = make()
    assert api.embed(["a"]).shape == (1, 8)
    with pytest.raises(EmbedderError, match=r"HTTP 401, code invalid_request_error: expired"):
        api.embed(["a"])
    assert good(server.asked[0]).status == 200
