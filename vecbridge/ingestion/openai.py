"""Embeddings from any API that speaks OpenAI's /v1/embeddings: OpenAI, vLLM, TEI, Ollama, gateways.

Servers differ most where they fail; every answer is therefore checked, and every failure becomes one kind of
sentence. Sources: the OpenAI API specification (CreateEmbeddingRequest), the error documentation of Azure,
Scaleway, SambaNova and Text Embeddings Inference, and the retry rules of the openai-python client.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import numpy as np

from ..errors import EmbedderError, InputError
from . import vectors
from .embedders import check_texts

if TYPE_CHECKING:
    from ..types import Floats

OPENAI = "https://api.openai.com/v1"
BATCH = 128
_LONGEST_BACKOFF = 8.0
# beyond this a server says "not today": waiting would look like a hang (openai-python has the same limit)
_LONGEST_WAIT = 120.0
_RETRIED = frozenset({408, 409, 425, 429})
_CHARS = 300


@dataclass(frozen=True, slots=True)
class _Fault:
    """A failed request in one shape. `status` is None where no answer came; `wait` is in seconds."""

    message: str
    status: int | None = None
    code: str | None = None
    request: str | None = None
    wait: float | None = None

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        if self.code == "insufficient_quota":
            return False
        return self.status is None or self.status in _RETRIED or (self.status >= 500 and self.status != 501)


class OpenAI:
    """Vectors from an API that speaks OpenAI's /v1/embeddings. Safe for threads.

    `base_url`: up to and including `/v1`; else OPENAI_BASE_URL, else OpenAI itself. `api_key`: else
    OPENAI_API_KEY; a server of your own may need none. At most 128 texts go into one request. A request is
    tried up to `attempts` times while the failure may pass (408, 409, 425, 429, 5xx, connection lost), with
    growing pauses that start at `backoff` seconds, or as long as the server asks for. `timeout` in seconds.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        attempts: int = 5,
        backoff: float = 0.5,
    ) -> None:
        if attempts < 1:
            raise InputError(f"expected 1 or more attempts, got {attempts}")
        self.model = model
        self.dim: int | None = None
        self.nested: tuple[int, ...] | None = None
        self._url = _endpoint(base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI)
        self._key = _checked_key(api_key or os.environ.get("OPENAI_API_KEY"))
        self._attempts = attempts
        self._backoff = backoff
        if self._key is None and self._url.host == httpx.URL(OPENAI).host:
            raise InputError("OpenAI needs a key: set OPENAI_API_KEY, or pass api_key=")
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout, connect=10.0))

    def __repr__(self) -> str:
        return f"<vecbridge embedder {self.model} at {self._place}>"

    @property
    def _place(self) -> str:
        return str(self._url.copy_with(username=None, password=None, query=None, fragment=None))

    def embed(self, texts: Sequence[str]) -> Floats:
        """Vectors as the API gives them, float32 (n, dim), in the order of the texts.

        Raises InputError for blank texts before anything is sent, EmbedderError.
        """
        checked = check_texts(texts)
        if not checked:
            return np.empty((0, self.dim or 0), dtype=np.float32)
        parts = [self._request(checked[at : at + BATCH]) for at in range(0, len(checked), BATCH)]
        return np.concatenate(parts)

    def embed_query(self, text: str) -> Floats:
        """The vector of one text, float32 (dim,)."""
        row: Floats = self.embed([text])[0]
        return row

    def close(self) -> None:
        """Close the connections to the API."""
        self._client.close()

    def _request(self, texts: list[str]) -> Floats:
        body = {"model": self.model, "input": texts, "encoding_format": "float"}
        for attempt in range(1, self._attempts + 1):
            answer = self._send(body)
            if not isinstance(answer, _Fault):
                return self._vectors(answer, len(texts))
            too_long = answer.wait is not None and answer.wait > _LONGEST_WAIT
            if not answer.passing or too_long or attempt == self._attempts:
                raise self._error(answer, attempt)
            time.sleep(self._pause(attempt, answer.wait))
        raise AssertionError("the last attempt returns or raises")

    def _send(self, body: dict[str, Any]) -> Any:
        """The parsed answer, or the _Fault that came instead."""
        try:
            response = self._client.post(self._url, json=body)
        except httpx.HTTPError as error:
            return _Fault(f"{type(error).__name__}: {error}")
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.status_code != 200:
            return _fault(response, answer)
        if not isinstance(answer, dict) or "data" not in answer or answer.get("error"):
            # some gateways answer 200 and put the failure, with its status, into the body
            return _fault(response, answer)
        return answer

    def _pause(self, attempt: int, wait: float | None) -> float:
        jitter = random.random()  # noqa: S311 - spreads retries, is no secret
        if wait is not None:
            return wait + 0.1 * self._backoff * jitter
        longest: float = min(self._backoff * 2.0 ** (attempt - 1), _LONGEST_BACKOFF)
        return longest * (1 - 0.5 * jitter)

    def _error(self, fault: _Fault, attempt: int) -> EmbedderError:
        facts = ["no answer" if fault.status is None else f"HTTP {fault.status}"]
        if fault.code:
            facts.append(f"code {self._clean(fault.code)}")
        message = self._clean(fault.message) or "no message"
        text = f"{self.model} at {self._place} failed: {', '.join(facts)}: {message}"
        if fault.request:
            text += f" (request id {self._clean(fault.request)})"
        if fault.wait is not None and fault.wait > _LONGEST_WAIT:
            text += f"; the server asks to wait {fault.wait:,.0f} seconds"
        elif attempt > 1:
            text += f"; tried {attempt} times"
        return EmbedderError(text)

    def _clean(self, text: str) -> str:
        """What a server says, fit for a message: short, printable, and without the key if it repeats it."""
        if self._key is not None:
            forms = {self._key, quote(self._key, safe=""), quote(self._key), self._key.replace("/", "\\/")}
            for form in sorted(forms, key=len, reverse=True):
                text = text.replace(form, "***")
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
        return text if len(text) <= _CHARS else f"{text[:_CHARS]}…"

    def _vectors(self, answer: dict[str, Any], n: int) -> Floats:
        """The vectors of an answer in the order of its request, float32 (n, dim)."""
        items = answer["data"]
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise self._broken(f"a list of {n} embeddings", f"{type(items).__name__}")
        if len(items) != n:
            raise self._broken(f"{n} embeddings, one for each text", f"{len(items)}")
        places = [item.get("index") for item in items]
        if {place for place in places if type(place) is int} != set(range(n)):
            raise self._broken(f"each index from 0 to {n - 1} once", f"{places[:10]}")
        rows: list[Floats] = [np.empty(0, dtype=np.float32)] * n
        for place, item in zip(places, items, strict=True):
            value = item.get("embedding")
            try:
                row = vectors.from_base64(value) if isinstance(value, str) else vectors.from_list(value)
            except ValueError as error:
                raise self._broken(f"numbers as embedding {place}", str(error)) from None
            expected = self.dim or (len(row) if place == places[0] else len(rows[places[0]]))
            if len(row) != expected:
                raise self._broken(f"embeddings of {expected} dimensions", f"one of {len(row)}")
            rows[place] = row
        matrix = np.stack(rows)
        self.dim = int(matrix.shape[1])
        return matrix

    def _broken(self, expected: str, got: str) -> EmbedderError:
        return EmbedderError(f"{self.model} at {self._place}: expected {expected}, got {self._clean(got)}")


def _endpoint(base: str) -> httpx.URL:
    try:
        url = httpx.URL(base)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        # a mistyped URL may hold a password: it is not repeated
        raise InputError(f"expected a base URL such as {OPENAI}, got something else; check its spelling")
    path = url.path.rstrip("/")
    return url.copy_with(path=path if path.endswith("/embeddings") else f"{path}/embeddings")


def _checked_key(key: str | None) -> str | None:
    key = (key or "").strip()
    if not key:
        return None
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError("expected an API key of printable ASCII characters without spaces, got others in it")
    return key


def _fault(response: httpx.Response, answer: Any) -> _Fault:
    status = response.status_code
    message, code = _reason(answer) if isinstance(answer, dict) else (_plain(response.text), None)
    if status == 200 and code and code.isdigit() and 400 <= int(code) < 600:
        status = int(code)
    request = response.headers.get("x-request-id") or response.headers.get("request-id")
    return _Fault(message, status=status, code=code, request=request, wait=_wait(response.headers))


def _reason(body: dict[str, Any]) -> tuple[str, str | None]:
    """Message and code of an error body, in any of the shapes that servers use."""
    error = body.get("error")
    if isinstance(error, dict):
        found = error
    elif isinstance(error, str):
        found = {**body, "message": ": ".join(filter(None, (error, str(body.get("message") or ""))))}
    elif body.get("detail"):
        found = {**body, "message": _detail(body["detail"])}
    else:
        found = body
    message = found.get("message")
    codes = (found.get("code"), found.get("type"), found.get("status"), found.get("statusCode"))
    # the quota may be named in either place, and decides whether to try again
    if "insufficient_quota" in codes:
        code: object = "insufficient_quota"
    else:
        named = (value for value in codes if isinstance(value, str | int) and not isinstance(value, bool))
        code = next((value for value in named if value != ""), None)
    if not isinstance(message, str) or not message:
        message = f"an unexpected answer: {json.dumps(body)}"
    return message, None if code is None else str(code)


def _detail(detail: object) -> str:
    """FastAPI's detail: a text, or a list of {loc, msg, type}."""
    if isinstance(detail, list):
        parts = []
        for item in detail:
            if isinstance(item, dict):
                where = ".".join(map(str, item.get("loc") or ()))
                parts.append(f"{where}: {item.get('msg')}")
            else:
                parts.append(str(item))
        return "; ".join(parts)
    return detail if isinstance(detail, str) else json.dumps(detail)


def _plain(text: str) -> str:
    """What a page says that is no JSON: its title if it has one."""
    title = re.search(r"<title[^>]*>(.*?)</title>", text[:20_000], re.IGNORECASE | re.DOTALL)
    return (title[1] if title else re.sub(r"<[^>]*>", " ", text[:2_000])).strip()


def _wait(headers: httpx.Headers) -> float | None:
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
            except ValueError:
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None
