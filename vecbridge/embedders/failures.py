"""What an embedding API says when it fails, in any of the shapes that servers use, and what it means.

Every failure becomes one `Fault`; `judge` says whether the same request may succeed later, whether fewer
texts would do, whether one text is to blame, and what to do about it. The provider's own rules come first,
then those below, which hold for all: OpenAI, Azure, Scaleway, W&B, Telekom, SambaNova, Mistral, SiliconFlow,
Voyage, vLLM, Text Embeddings Inference, Ollama, llama.cpp, gpustack, LiteLLM and the gateways before them.
"""

from __future__ import annotations

import email.utils
import html
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, quote_plus

from ..errors import EmbedderError
from .providers import Kind, Provider

# "unclear": refused without a reason that is known; whether the text is to blame shows when another is taken.
# "broken": answered, but with nothing that can be used
Judged = Kind | Literal["unclear", "broken"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A failed request in one shape.

    `status`: of HTTP, or the one inside an answer that says 200; None where no answer came. `code`, `type`,
    `parameter`, `request_id`: as the server says them. `wait`: seconds that it asks to wait. `again`: its
    x-should-retry. `slow`: nothing came within the time that a request may take. `broken`: what came says
    neither success nor failure.
    """

    message: str
    status: int | None = None
    code: str | None = None
    type: str | None = None
    parameter: str | None = None
    request_id: str | None = None
    wait: float | None = None
    again: bool | None = None
    slow: bool = False
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a fault means, and what the user can do about it."""

    kind: Judged
    remedy: str | None = None


_SHORTER = "cut the text into shorter chunks: the model takes only so many tokens in one"
_FEWER = "send fewer or shorter texts in one request"
_RATE = (
    "send fewer requests at once (--concurrency) or per minute (--requests-per-minute, "
    "--tokens-per-minute), or ask the provider for a higher limit"
)
_QUOTA = "the account's quota is used up: check plan, credit and spending limit at the provider"
_MODEL = "check the model's name: the provider lists its models at {models}"
_ADDRESS = "check the base URL, which ends where /embeddings follows, mostly in /v1"
_PARAMETER = "leave out what this model or provider does not take: dimensions, or another provider profile"
_WAIT = "try again in a few minutes; the provider's status page may say more"
_DEADLINE = "the request took too long at the server: send fewer texts at once, or give it more time"
_LONG = Verdict("text", _SHORTER)
_LARGE = Verdict("size", _FEWER)
_UNKNOWN = Verdict("final", _MODEL)
_ODD = Verdict("final", _PARAMETER)
_SPENT = Verdict("final", _QUOTA)
_UNREADABLE = Verdict(
    "unclear", "the server could not read the request: see whether a proxy in between changes or cuts it"
)

# code or type (lower case) -> verdict; sources: the OpenAI, SambaNova and llama.cpp documentation
_CODES: dict[str, Verdict] = {
    "insufficient_quota": _SPENT,
    "billing_hard_limit_reached": _SPENT,
    "context_length_exceeded": _LONG,
    "exceed_context_size_error": _LONG,
    "content_filter": Verdict("text", "the provider's content filter refuses this text"),
    "max_tokens_per_request": _LARGE,
    "model_not_found": _UNKNOWN,
    "deploymentnotfound": Verdict("final", "check the name of the deployment and the base URL"),
    "unsupported_parameter": _ODD,
    "unsupported_value": _ODD,
    "unknown_parameter": _ODD,
    "invalid_api_key": Verdict("final", "check the key{key}"),
    "rate_limit_exceeded": Verdict("passing", _RATE),
    "ratelimitreached": Verdict("passing", _RATE),
}

# words in the message, in lower case -> verdict; the first that occurs counts. They are looked for only where
# the status leaves open what is wrong: a 429 that speaks of sizes is a 429
_WORDS: tuple[tuple[str, Verdict], ...] = (
    # OpenAI and W&B: credit, not rate; Scaleway's "you are exceeding your current quota" is a rate
    ("check your plan and billing", _SPENT),
    # several texts are too many, or too long together
    ("tokens per request", _LARGE),
    ("too many tokens", _LARGE),  # Mistral, 3210
    ("more batches", _LARGE),  # Mistral, 3210
    ("submitted batch", _LARGE),  # Voyage
    ("too many inputs", _LARGE),  # Azure
    ("physical batch", Verdict("text", f"{_SHORTER}; llama.cpp: raise --ubatch-size")),
    ("too large to process", Verdict("text", f"{_SHORTER}; llama.cpp: raise --ubatch-size")),
    ("batch size", _LARGE),  # Text Embeddings Inference
    ("body too large", _LARGE),
    ("body is too large", _LARGE),
    ("entity too large", _LARGE),
    ("payload too large", _LARGE),
    # one text is too long, or its vector is none
    ("maximum context length", _LONG),  # OpenAI, vLLM
    ("maximum model length", _LONG),  # vLLM
    ("context length", _LONG),  # Ollama
    ("context size", _LONG),  # llama.cpp
    ("n_ctx_per_seq", _LONG),  # gpustack
    ("must have less than", _LONG),  # Text Embeddings Inference, SiliconFlow
    ("too many characters", _LONG),
    ("too long", _LONG),
    ("unsupported value: nan", Verdict("text", "the model has no finite vector for this text")),  # Ollama
    ("'$.input' is invalid", Verdict("text", "the provider takes no such text")),
    # the request as such
    ("matryoshka", _ODD),  # vLLM
    ("specifying dimensions", _ODD),  # OpenAI
    ("encoding_format", _ODD),
    ("encoding format", _ODD),
    ("unsupported parameter", _ODD),
    ("extra inputs are not permitted", _ODD),
    ("does not support embeddings", Verdict("final", "take a model, and a server, that makes embeddings")),
    ("model not found", _UNKNOWN),
    ("unknown model", _UNKNOWN),
    ("invalid json", _UNREADABLE),
    ("not valid json", _UNREADABLE),
    ("could not parse", _UNREADABLE),
    ("failed to parse", _UNREADABLE),
    ("json decode", _UNREADABLE),
)

_OVERLOAD = Verdict("passing", "the server is overloaded or restarting: try again in a few minutes")
_STATUS: dict[int, Verdict] = {
    401: Verdict("final", "the key is missing, wrong or expired: check it{key}"),
    402: _SPENT,
    403: Verdict(
        "final",
        "the key{key} may not do this: check that it exists, its permissions, the project in the base URL "
        "({address}), and whether the provider serves this region",
    ),
    404: Verdict("final", f"{_MODEL}; {_ADDRESS}"),
    405: Verdict("final", _ADDRESS),
    407: Verdict("final", "the proxy on the way asks for a name and password: see HTTPS_PROXY"),
    408: Verdict("passing", _DEADLINE),
    409: Verdict("passing", _WAIT),
    410: Verdict("final", f"the model is served no more; {_MODEL}"),
    413: _LARGE,
    424: Verdict("passing", "the model behind the server fails: see its log"),
    425: Verdict("passing", _WAIT),
    429: Verdict("passing", _RATE),
    501: Verdict("final", "start the server so that it makes embeddings (llama.cpp: --embeddings)"),
    502: _OVERLOAD,
    503: _OVERLOAD,
    504: Verdict("passing", _DEADLINE),
    524: Verdict("passing", _DEADLINE),
}
_OPEN = frozenset({200, 400, 404, 422, 429, 500})
_ABOUT = frozenset({"model", "dimensions", "output_dimension", "encoding_format"})


def judge(fault: Fault, provider: Provider) -> Verdict:
    """What a fault means at a provider. The caller fills `{key}`, `{address}` and `{models}` in a remedy."""
    verdict = _by_rules(fault, provider) or _in_general(fault)
    if fault.again and verdict.kind in ("final", "unclear", "broken"):
        return Verdict("passing", verdict.remedy)
    if fault.again is False and verdict.kind in ("passing", "broken"):
        return Verdict("final", verdict.remedy)
    return verdict


def _by_rules(fault: Fault, provider: Provider) -> Verdict | None:
    for rule in provider.rules:
        if (
            (rule.status is None or rule.status == fault.status)
            and (rule.code is None or rule.code.lower() in _codes(fault))
            and (rule.words is None or rule.words.lower() in fault.message.lower())
        ):
            general = _in_general(fault)
            same = general.remedy if general.kind == rule.kind else None
            return Verdict(rule.kind, rule.remedy or same)
    return None


def _in_general(fault: Fault) -> Verdict:
    if fault.status is None:
        return _without_answer(fault)
    if fault.broken:
        return Verdict(
            "broken", f"this is not how OpenAI's API answers: {_ADDRESS}; see what stands in between"
        )
    if 300 <= fault.status < 400:
        return Verdict("final", f"the address points elsewhere: {_ADDRESS}; check http or https, too")
    if fault.status in _OPEN:
        for code in _codes(fault):
            if code in _CODES:
                return _CODES[code]
        message = fault.message.lower()
        for words, verdict in _WORDS:
            # a rate is told by its status; of the words, only those on credit overrule it
            if words in message and (fault.status != 429 or verdict is _SPENT):
                return verdict
        if fault.status != 429 and fault.parameter in _ABOUT:
            return _UNKNOWN if fault.parameter == "model" else _ODD
    if fault.status in _STATUS:
        return _STATUS[fault.status]
    if fault.status >= 500:
        return Verdict("passing", _WAIT)
    return Verdict("unclear" if fault.status in (200, 400, 422) else "final")


def _without_answer(fault: Fault) -> Verdict:
    if "CERTIFICATE_VERIFY_FAILED" in fault.message:
        # waiting mends no certificate
        return Verdict(
            "final", "its certificate is not trusted here: see SSL_CERT_FILE, or check the address"
        )
    if fault.slow:
        return Verdict("passing", _DEADLINE)
    return Verdict("passing", "check the address, and that the server runs and can be reached from here")


def _codes(fault: Fault) -> Iterator[str]:
    return (value.lower() for value in (fault.code, fault.type) if value)


# --- reading an answer


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: `headers` are found by lower-case names."""

    status: int
    headers: Mapping[str, str]
    text: str


def read(answer: Answer, *, unusable: str | None = None) -> Fault:
    """The Fault that an answer tells. `unusable`: what is wrong where it says 200 and tells no error."""
    status, headers, text = answer.status, answer.headers, answer.text
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    found = _reason(body) if isinstance(body, dict) else {"message": _plain(text)}
    told = isinstance(body, dict) and bool(_told(body))
    if status == 200 and (inner := _inner(found)) is not None:
        status = inner
    message = found.get("message")
    if not isinstance(message, str) or not message:
        message = f"an unexpected answer: {json.dumps(body)}" if body else ""
    code, kind = _word(found.get("code")), _word(found.get("type") or found.get("error_type"))
    return Fault(
        unusable if unusable and not told and status == 200 else message,
        status=status,
        code=code or kind or _word(found.get("status") or found.get("statusCode")),
        type=kind,
        parameter=_word(found.get("param")),
        request_id=next(
            (headers[name] for name in _REQUEST_IDS if headers.get(name)), _word(found.get("request_id"))
        ),
        wait=_wait_in(message) if (wait := _wait(headers)) is None else wait,
        again={"true": True, "false": False}.get(str(headers.get("x-should-retry")).lower()),
        broken=status == 200 and not told,
    )


# Azure sends apim-request-id, Cloudflare cf-ray
_REQUEST_IDS = ("x-request-id", "request-id", "apim-request-id", "x-ms-request-id", "cf-ray")


def _told(body: dict[str, Any]) -> object:
    """What in a body says that it is an error, whatever its status."""
    return (
        body.get("error")
        or body.get("object") == "error"
        or body.get("detail")
        or (not body.get("data") and (body.get("message") or body.get("code")))
    )


def _reason(body: dict[str, Any]) -> dict[str, Any]:
    """Message, code, type and param of an error body, in one dictionary."""
    error, detail = body.get("error"), body.get("detail")
    if isinstance(error, dict):
        said = error.get("message") or _detail(detail)
        found = {"request_id": body.get("request_id"), **error, "message": said}
    elif isinstance(error, str):
        more = body.get("message") or (_detail(detail) if detail else None)
        found = {**body, "message": ": ".join(str(part) for part in (error, more) if part)}
    elif isinstance(detail, dict) and (detail.get("error") or detail.get("message")):
        found = _reason(detail)
    elif detail:
        found = {**body, "message": _detail(detail), "param": _place(detail)}
    else:
        found = body
    return found


def _detail(detail: object) -> str | None:
    """FastAPI's detail: a text, or a list of {loc, msg, type}."""
    if isinstance(detail, list):
        parts = []
        for item in detail:
            if isinstance(item, dict) and "msg" in item:
                where = ".".join(map(str, item.get("loc") or ()))
                parts.append(f"{where}: {item['msg']}" if where else str(item["msg"]))
            else:
                parts.append(item if isinstance(item, str) else json.dumps(item))
        return "; ".join(parts)
    return detail if isinstance(detail, str) or detail is None else json.dumps(detail)


def _place(detail: object) -> str | None:
    """The parameter that FastAPI's first complaint is about."""
    first = detail[0] if isinstance(detail, list) and detail else None
    where = first.get("loc") if isinstance(first, dict) else None
    if not isinstance(where, list):
        return None
    return ".".join(str(part) for part in where if part != "body") or None


def _inner(found: dict[str, Any]) -> int | None:
    """The status of HTTP that a body states itself."""
    for name in ("status", "statusCode", "code"):
        value = str(found.get(name))
        if len(value) == 3 and value.isascii() and value.isdigit() and 400 <= int(value) < 600:
            return int(value)
    return None


def _word(value: object) -> str | None:
    """A code as text; LiteLLM writes None as "None"."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value in ("", "None", "null"):
        return None
    return str(value)


def _plain(text: str) -> str:
    """What a page says that is no JSON: its title if it has one."""
    title = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
    # whole: a page cut here could end in half a key, which nobody would recognise and hide
    return (title[1] if title else re.sub(r"<[^>]*>", " ", text)).strip()


def _wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, or `Retry-After` as seconds or as a date."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, OverflowError):
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


_UNITS = {"ms": 1e-3, "mil": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def _wait_in(message: str) -> float | None:
    """The same out of the message: Azure's "retry after 21 seconds", OpenAI's "try again in 1m6s"."""
    asked = re.search(r"(?:retry after|try again in)((?:\s*[\d.]+\s*[a-z]+)+)", message.lower())
    seconds = 0.0
    for number, unit in re.findall(r"(\d+(?:\.\d+)?)\s*(ms|mil|[smh])", asked[1] if asked else ""):
        seconds += float(number) * _UNITS[unit]
    return seconds if asked else None


# --- telling the user

_SHOWN = 300


def told(
    fault: Fault,
    verdict: Verdict,
    *,
    provider: Provider,
    name: str,
    address: str,
    secrets: Set[str],
    notes: Sequence[str] = (),
) -> EmbedderError:
    """The fault as an error in one sentence. `address`: the base URL. `secrets`: what is never repeated."""
    code, message, parameter, request = (
        None if value is None else _clean(value, secrets)
        for value in (fault.code, fault.message, fault.parameter, fault.request_id)
    )
    facts = ["no answer" if fault.status is None else f"HTTP {fault.status}"]
    if code and code != str(fault.status):
        facts.append(f"code {code}")
    if parameter:
        facts.append(f"parameter {parameter}")
    more = ", ".join([*([f"request id {request}"] if request else []), *notes])
    remedy = verdict.remedy
    if remedy is not None:
        keys = " or ".join(provider.key_variables)
        remedy = remedy.replace("{key}", f" in {keys}" if keys else "")
        remedy = remedy.replace("{models}", f"{address}/models").replace("{address}", address)
    text = f"{name} failed: {', '.join(facts)}: {message or 'no message'}"
    text += f" ({more})" if more else ""
    return EmbedderError(
        f"{text}; {remedy}" if remedy else text,
        provider=provider.name,
        status=fault.status,
        code=code,
        parameter=parameter,
        detail=message or None,
        request_id=request,
        remedy=remedy,
    )


def _clean(text: str, secrets: Set[str]) -> str:
    """What a server says, fit for a message: short, printable, and without the key if it repeats it."""
    for form in sorted(secrets, key=len, reverse=True):
        text = text.replace(form, "***")
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def forms_of(secret: str | None) -> frozenset[str]:
    """How a server may write a secret when it repeats it.

    Empty for one of less than six signs: that is a placeholder such as "none", and to hide it would make
    messages unreadable.
    """
    if secret is None or len(secret) < 6:
        return frozenset()
    slashed = secret.replace("/", "\\/")
    written = {quote(secret, safe=""), quote(secret), quote_plus(secret), html.escape(secret)}
    return frozenset({secret, slashed, json.dumps(secret)[1:-1], json.dumps(slashed)[1:-1]} | written)
