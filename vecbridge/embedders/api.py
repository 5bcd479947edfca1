"""Embeddings from any API that speaks OpenAI's /v1/embeddings: cloud providers, one's own servers, gateways.

Servers differ most where they fail. Every answer is therefore checked, every failure is read by `failures`,
and what the provider's profile says decides: try again, send fewer texts, refuse one text, or stop. Sources:
the OpenAI API specification (CreateEmbeddingRequest) and the retry rules of the openai-python client.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import threading
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import httpx
import numpy as np

from .. import models
from .._version import __version__
from ..errors import EmbedderError, InputError
from . import Embedded, Usage, endpoint, vectors
from .failures import Answer, Fault, Verdict, forms_of, judge, read, told
from .pace import LONGEST_WAIT, Pace
from .providers import Provider
from .texts import check_texts, parts

if TYPE_CHECKING:
    from ..types import Floats

# more texts in a request gain nothing that more requests in flight do not, and cost more when one fails
ITEMS = 128
# where no limit of tokens is documented: below 1 MB as UTF-8, which gateways let through
_CHARS = 250_000
# an answer that cannot be used is asked for again this often
_BROKEN = 2
# the most attempts for a question, and the longest pause in seconds that a server may ask for before one
_QUERY = 3
_QUERY_WAIT = 10.0
# how many times more often "too fast" is borne with than a fault
_PATIENCE = 2
# so many texts refused in a row without a reason, and the service itself is doubted
_DOUBTS = 8
_PROBE = "A sentence."
# "too fast": statuses of a server that works, but not for so many
_BUSY = frozenset({429, 503})
# statuses of a gateway that has waited long enough
_SLOW = frozenset({408, 504, 524})
_CL100K = re.compile(r"text-embedding-(3-(small|large)|ada-002)$")


class Api:
    """Vectors from an API that speaks OpenAI's /v1/embeddings. Safe for threads.

    `provider`: what is known of the service. `base_url`: up to what `/embeddings` follows, instead of the
    profile's; `{NAME}` in it stands for an environment variable. `api_key`: instead of the profile's
    environment variables. `dimensions`: ask for vectors of this length. `pace`: holds requests back; closed
    with this. `document_prefix`, `query_prefix`: instead of those in the catalogue of models. `timeout`:
    seconds without a byte of an answer. `attempts`: the most for one request while its failure may pass.

    Raises InputError, before anything is sent, where address, key or dimensions cannot be used.
    """

    def __init__(
        self,
        model: str,
        *,
        provider: Provider,
        base_url: str | None = None,
        api_key: str | None = None,
        dimensions: int | None = None,
        pace: Pace | None = None,
        document_prefix: str | None = None,
        query_prefix: str | None = None,
        timeout: float = 60.0,
        attempts: int = 8,
    ) -> None:
        if attempts < 1:
            raise InputError(f"expected 1 or more attempts, got {attempts}")
        if not timeout > 0:
            raise InputError(f"expected a timeout of more than 0 seconds, got {timeout}")
        known = models.find(model)
        self.model = model
        self.dim: int | None = None
        self.max_tokens = known.max_tokens if known else None
        self.tokenizer = "cl100k_base" if _CL100K.search(model) else None
        self.truncates = provider.truncates
        self.items = min(provider.items or ITEMS, ITEMS)
        # no usual tokenizer makes more than one token of a character on average, whatever the language
        self.chars = provider.tokens or _CHARS
        self.document_prefix = (
            (known.document_prefix if known else "") if document_prefix is None else document_prefix
        )
        self._query_prefix = (known.query_prefix if known else "") if query_prefix is None else query_prefix
        self._provider = provider
        self._known = known is not None
        self._asked = dimensions
        self._field = _dimensions(dimensions, known, model=model, provider=provider)
        url, userinfo = endpoint.address(base_url, provider)
        self._url = url
        self._place = str(url.copy_with(query=None, fragment=None))
        self.address = self._place if dimensions is None else f"{self._place} dimensions={dimensions}"
        key = endpoint.key(api_key, provider, url=url, userinfo=userinfo)
        self._secrets = forms_of(key)
        headers = {"Accept": "application/json", "User-Agent": f"vecbridge/{__version__}"}
        headers |= endpoint.headers(provider)
        if key is not None:
            bearer = provider.key_header.lower() == "authorization"
            headers[provider.key_header] = f"Bearer {key}" if bearer else key
        if userinfo:
            # httpx would write a password that stands in the URL into its log
            basic = b64encode(userinfo).decode()
            headers["Authorization"] = f"Basic {basic}"
            name, _, password = userinfo.decode().partition(":")
            # without a password, the name is a token
            self._secrets |= forms_of(password or name) | forms_of(basic)
        self._timeout = timeout
        self._attempts = attempts
        self._pace = pace or Pace(concurrency=provider.concurrency)
        self._lock = threading.Lock()
        self._usage = Usage()
        self._bytes = 0
        self._doubts = _DOUBTS
        self._closed = False
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            # Pace bounds the requests in flight
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            verify=endpoint.certificates(url),
        )

    def __repr__(self) -> str:
        return f"<vecbridge embedder {self._name}>"

    @property
    def _name(self) -> str:
        return f"{self._provider.name}:{self.model} at {self._place}"

    @property
    def nested(self) -> tuple[int, ...] | None:
        """Matryoshka sizes by the catalogue of models; None where it does not know the model."""
        return models.nested_sizes(self.model, dim=self.dim or self._asked) if self._known else None

    @property
    def concurrency(self) -> int:
        """How many calls of `request` are worth having in flight."""
        return self._pace.most

    def usage(self) -> Usage:
        """What was asked for so far."""
        with self._lock:
            return self._usage

    def embed(self, texts: Sequence[str]) -> Floats:
        """Vectors as the API gives them, float32 (n, dim), in the order of the texts.

        Raises InputError for blank texts before anything is sent, EmbedderError also for a refused text.
        """
        return self._all([self.document_prefix + text for text in check_texts(texts)])

    def embed_query(self, text: str) -> Floats:
        """The vector of a question, float32 (dim,).

        Tried again less often than documents, and not where the server asks to wait for more than 10 s.
        """
        texts = [self._query_prefix + checked for checked in check_texts([text])]
        # somebody waits for the answer
        row: Floats = self._all(texts, attempts=min(_QUERY, self._attempts))[0]
        return row

    def request(self, texts: Sequence[str]) -> Embedded:
        """Vectors of documents, float32, and the errors of those that the service refuses.

        Sent as one request, which is repeated while its failure may pass, and halved while the service finds
        it too large or does not say which text it refuses. Where it refuses without a known reason, and has
        not lately taken a text, one short sentence is sent to see whether it takes any.
        """
        return self._gather([self.document_prefix + text for text in check_texts(texts)])

    def close(self) -> None:
        """Close the connections; calls in other threads end soon with EmbedderError."""
        with self._lock:
            self._closed = True
            open_ones = list(self._sockets)
        self._pace.close()
        for one in open_ones:
            _cut_off(one)
        self._client.close()

    # --- several texts

    def _all(self, texts: list[str], *, attempts: int | None = None) -> Floats:
        found = []
        for part in parts(texts, self.items, self.chars, len):
            embedded = self._gather(part, attempts=attempts)
            for error in embedded.refused.values():
                raise error
            found.append(embedded.vectors)
        return np.concatenate(found) if found else np.empty((0, self.dim or 0), dtype=np.float32)

    def _gather(self, texts: list[str], *, attempts: int | None = None) -> Embedded:
        outcomes: list[Floats | EmbedderError] = []
        waiting = [texts] if texts else []
        try:
            while waiting:
                part = waiting.pop()
                outcome = self._ask(part, attempts=attempts)
                if isinstance(outcome, list):
                    outcomes += outcome
                elif len(part) == 1:
                    outcomes.append(outcome)
                else:
                    middle = len(part) // 2
                    waiting += [part[middle:], part[:middle]]
        except EmbedderError:
            if self._closed:
                raise EmbedderError(f"{self._name} was closed before it answered") from None
            raise
        refused = {at: outcome for at, outcome in enumerate(outcomes) if isinstance(outcome, EmbedderError)}
        rows = [outcome for outcome in outcomes if not isinstance(outcome, EmbedderError)]
        return Embedded(np.stack(rows) if rows else np.empty((0, self.dim or 0), dtype=np.float32), refused)

    # --- one request, and what to do when it fails

    def _ask(
        self, texts: list[str], *, attempts: int | None = None, doubting: Fault | None = None
    ) -> list[Floats | EmbedderError] | EmbedderError:
        """A vector or an error for each text; or one error, where fewer texts may do better.

        `doubting`: the failure of another request, for which this one finds out whether the service works.
        Raises EmbedderError where neither time nor fewer texts help.
        """
        content, size = self._body(texts)
        slow = broken = busy = 0
        for attempt in itertools.count(1):
            answer = self._send(content, texts, size)
            if isinstance(answer, list):
                return answer
            verdict = judge(answer, self._provider)
            error = self._error(answer, verdict, attempt)
            kind = verdict.kind
            if kind == "final":
                raise error
            if kind in ("size", "text"):
                return error
            if doubting and (kind == "unclear" or _same(answer, doubting)):
                return error
            if kind == "unclear":
                if not self._trusted(answer):
                    raise error
                self._doubt(texts)
                return error
            slow += answer.slow or answer.status in _SLOW
            if slow >= 2 and len(texts) > 1:
                return error
            asked = answer.wait or 0.0
            if attempts is not None and (slow >= 2 or asked > _QUERY_WAIT):
                note = _wait(asked) if asked > _QUERY_WAIT else None
                raise self._error(answer, verdict, attempt, note=note)
            broken = broken + 1 if kind == "broken" else 0
            # a limit by the minute takes some waiting, and says nothing against the request
            busy += answer.status in _BUSY
            most = attempts or self._attempts
            if attempt - busy >= most or busy >= most * _PATIENCE or broken > _BROKEN:
                # a text on which a server always stumbles must not stop the run for good; but neither must
                # an outage reject texts, so another one has to pass right now
                if attempts is None and answer.status not in _BUSY and not doubting and self._works(answer):
                    return error
                raise error
            if not self._pace.again(attempt, answer.wait):
                note = _wait(asked) if asked > LONGEST_WAIT else "the retries of this run are spent"
                raise self._error(answer, verdict, attempt, note=note)
            self._count(retries=1)
        raise AssertionError("the last attempt returns or raises")

    def _trusted(self, fault: Fault) -> bool:
        """Whether the service has lately taken texts, so that a refusal can be the fault of one."""
        with self._lock:
            if self._doubts < _DOUBTS:
                return True
        return self._works(fault)

    def _works(self, fault: Fault) -> bool:
        return isinstance(self._ask([_PROBE], doubting=fault), list)

    def _doubt(self, texts: list[str]) -> None:
        if len(texts) == 1:
            with self._lock:
                self._doubts += 1

    def _body(self, texts: list[str]) -> tuple[bytes, int]:
        """The request as JSON, and the bytes of its texts."""
        body: dict[str, Any] = {"model": self.model, "input": texts}
        if self._provider.encoding is not None:
            body["encoding_format"] = self._provider.encoding
        if self._field is not None:
            body[self._field] = self._asked
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        return content, sum(len(text.encode()) for text in texts)

    def _tokens(self, size: int) -> int:
        """About how many tokens so many bytes of text are, by what the answers have said so far."""
        with self._lock:
            rate = self._usage.tokens / self._bytes if self._usage.tokens else 0.25
        return max(1, round(size * rate))

    def _send(self, content: bytes, texts: list[str], size: int) -> list[Floats | EmbedderError] | Fault:
        with self._pace.turn(self._tokens(size)):
            self._count(requests=1)
            response = self._post(content)
        # the turn is over: while this answer is read, another request is on its way
        if isinstance(response, Fault):
            return response
        # response.text would decode it piece by piece
        text = response.content.decode(errors="replace")
        answer = Answer(response.status_code, response.headers, text)
        fault = read(answer) if answer.status != 200 else None
        if fault is None:
            found = self._good(answer, len(texts), size)
            if not isinstance(found, Fault):
                self._pace.answered(response.headers)
                return found
            fault = found
        if fault.status in _BUSY:
            self._pace.refused(response.headers)
        return fault

    def _post(self, content: bytes) -> httpx.Response | Fault:
        try:
            return self._client.post(
                self._url,
                content=content,
                headers={"Content-Type": "application/json"},
                extensions={"trace": self._traced},
            )
        except httpx.ReadTimeout:
            return Fault(f"nothing within {self._timeout:g} seconds", slow=True)
        except httpx.HTTPError as error:
            return Fault(f"{type(error).__name__}: {error}")
        except RuntimeError:
            # httpx says so of a client that is closed
            if not self._closed:
                raise
            return Fault("closed")

    def _traced(self, event: str, info: dict[str, Any]) -> None:
        """Notes each new connection: only a shutdown of its socket wakes the thread that reads from it."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            one = info["return_value"].get_extra_info("socket")
            with self._lock:
                self._sockets.add(one)
                closed = self._closed
            if closed:
                _cut_off(one)

    def _count(
        self, *, requests: int = 0, retries: int = 0, texts: int = 0, tokens: int = 0, size: int = 0
    ) -> None:
        with self._lock:
            if requests and self._closed:
                raise EmbedderError("closed")
            was = self._usage
            self._usage = Usage(
                texts=was.texts + texts,
                requests=was.requests + requests,
                retries=was.retries + retries,
                tokens=was.tokens + tokens,
            )
            self._bytes += size

    # --- reading an answer

    def _good(self, answer: Answer, n: int, size: int) -> list[Floats | EmbedderError] | Fault:
        try:
            body = json.loads(answer.text)
        except (ValueError, RecursionError):
            return read(answer, unusable="an answer that is no JSON, or is cut off")
        # some gateways answer 200 and put the failure, with its status, into the body
        if not isinstance(body, dict) or body.get("error") or not isinstance(data := body.get("data"), list):
            return read(answer, unusable="an answer without data")
        try:
            rows = vectors.of_answer(data, n)
        except ValueError as error:
            return read(answer, unusable=str(error))
        self._measure(rows)
        usage = body.get("usage")
        tokens = (usage.get("total_tokens") or usage.get("prompt_tokens")) if isinstance(usage, dict) else 0
        self._count(texts=n, tokens=tokens if type(tokens) is int and tokens > 0 else 0, size=size)
        with self._lock:
            self._doubts = 0
        return [self._no_vector() if row is None else row for row in rows]

    def _measure(self, rows: list[Floats | None]) -> None:
        """Raises EmbedderError for vectors of another length than asked for, or than before."""
        length = next((len(row) for row in rows if row is not None), None)
        if length is None:
            return
        if self._asked is not None and length != self._asked:
            raise self._error(
                Fault(f"asked for vectors of {self._asked} dimensions, got {length}", status=200),
                Verdict("final", "this server does not heed the wish: leave dimensions out"),
            )
        with self._lock:
            before = self.dim = self.dim or length
        if length != before:
            raise self._error(
                Fault(f"expected vectors of {before} dimensions as before, got {length}", status=200),
                Verdict("final", "another model answers now under this name: see which one the server runs"),
            )

    def _no_vector(self) -> EmbedderError:
        return self._error(
            Fault("the vector of this text holds numbers that are not finite", status=200),
            Verdict("text", "the model has no finite vector for this text: leave it out, or change it"),
        )

    def _error(
        self, fault: Fault, verdict: Verdict, attempt: int = 1, *, note: str | None = None
    ) -> EmbedderError:
        notes = [f"tried {attempt} times"] if attempt > 1 else []
        if note is not None:
            notes.append(note)
        return told(
            fault,
            verdict,
            provider=self._provider,
            name=self._name,
            address=self._place.removesuffix("/embeddings"),
            secrets=self._secrets,
            notes=notes,
        )


def _dimensions(
    asked: int | None, known: models.Model | None, *, model: str, provider: Provider
) -> str | None:
    """The field that asks for a length; None where nothing needs to be asked for."""
    if asked is None:
        return None
    if asked < 1:
        raise InputError(f"expected 1 or more dimensions, got {asked}")
    if known is not None and asked == known.dim:
        # some servers refuse the field even then (vLLM); the length is checked when it arrives
        return None
    if provider.dimensions is None:
        raise InputError(
            f"{provider.title} has no way to ask for {asked:,} dimensions: leave dimensions out; "
            "`vecbridge plan` says how to store shorter vectors"
        )
    if known is not None and (asked > known.dim or not known.nested):
        trained = f"at most {known.dim:,}" if known.nested else f"{known.dim:,} and no others"
        raise InputError(f"{model} makes vectors of {trained}, not of {asked:,} dimensions")
    return provider.dimensions


def _same(one: Fault, other: Fault) -> bool:
    return (one.status, one.broken) == (other.status, other.broken)


def _wait(seconds: float) -> str:
    return f"the server asks to wait {seconds:,.0f} seconds"


def _cut_off(one: socket.socket) -> None:
    with suppress(OSError):
        # of the plain socket: that of TLS would first want to talk
        socket.socket.shutdown(one, socket.SHUT_RDWR)
