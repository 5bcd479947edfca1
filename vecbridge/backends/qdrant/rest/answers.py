"""What a Qdrant server's HTTP answers say, and what it means when none came."""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from ....errors import Unavailable
from ..engine import Found, Json
from ..failures import Kind, Refused

if TYPE_CHECKING:
    from ..address import Address

_KINDS: dict[int, Kind] = {
    400: "input",
    422: "input",
    404: "missing",
    409: "exists",
    401: "forbidden",
    403: "forbidden",
    429: "rate",
    507: "full",
    413: "too large",
    408: "timeout",
    504: "timeout",
    502: "unavailable",
    503: "unavailable",
    405: "unsupported",
    501: "unsupported",
}
# actix-web's JsonPayloadError, as src/actix/helpers.rs passes it on
_LARGER = re.compile(r"larger than allowed \(limit: (\d+) bytes\)")


def answer(response: httpx.Response, address: Address) -> Any:
    """The `result` of a good answer, or what the server says of itself. Raises Refused for any other."""
    if not response.is_success:
        raise _refused(response, address)
    try:
        told = json.loads(response.content)
        return told if "version" in told else told["result"]
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(
            "server",
            f"expected Qdrant's JSON, got {_excerpt(response, address)!r}; "
            f"is this Qdrant, and is the path right?",
        ) from error


def _refused(response: httpx.Response, address: Address) -> Refused:
    status = response.status_code
    kind = _KINDS.get(status, "server")
    said = _said(response.content)
    if said is None:
        # not Qdrant itself: a proxy in front of it, or another server altogether
        text = f"HTTP {status} {response.reason_phrase}".rstrip()
        if status == 404:
            kind = "unsupported"
            text += f": this server knows no {response.request.url.path}; is it too old, or the path wrong?"
        elif kind in ("input", "exists"):
            kind = "server"
        if body := _excerpt(response, address):
            text += f": {body}"
        return Refused(kind, address.hide(text), wait=_wait(response))
    if status == 400 and _LARGER.search(said):
        kind = "too large"
    if status == 403 and said.startswith("Storage locked"):
        kind = "locked"
    return Refused(kind, address.hide(said), wait=_wait(response))


def _said(content: bytes) -> str | None:
    """The error text in `{"status": {"error": text}}`, None where the body is not Qdrant's."""
    try:
        return str(json.loads(content)["status"]["error"])
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _excerpt(response: httpx.Response, address: Address) -> str:
    # hidden before it is cut: half a key would no longer be found
    return address.hide(re.sub(r"<[^>]*>", " ", response.text))[:200]


def _wait(response: httpx.Response) -> float | None:
    """Seconds that Retry-After asks for, whether as a number or as a date; None without it."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    until = _moment(text)
    if until is None:
        return None
    # by the server's own clock, which need not be ours
    now = _moment(response.headers.get("date", ""))
    return max(0.0, until - (time.time() if now is None else now))


def _moment(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


def allowed(refused: Refused) -> int | None:
    """The bytes that the server accepts in one body, where its refusal says so."""
    found = _LARGER.search(refused.text)
    return int(found[1]) if found else None


def lost(error: httpx.HTTPError, address: Address, sent: int) -> Refused | Unavailable:
    """What to raise where no answer came to a body of `sent` bytes; Unavailable where none ever will."""
    said = address.hide(str(error)) or type(error).__name__
    causes = list(_chain(error))
    if isinstance(error, httpx.ConnectError):
        tls = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
        if tls is not None and not isinstance(tls, ssl.SSLEOFError):
            return Unavailable(
                f"{address.shown}: no TLS connection ({said}); use qdrant+http:// if this port speaks "
                f"plain HTTP, or have the server's certificate trusted (SSL_CERT_FILE)"
            )
        if any(isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME for cause in causes):
            return Unavailable(f"{address.shown}: there is no host of this name ({said})")
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
        return Refused("unavailable", f"no connection ({said})")
    during = f" while {sent / 1e6:,.1f} MB were being sent" if sent >= 1_000_000 else ""
    if isinstance(error, httpx.TimeoutException):
        return Refused("timeout", f"no answer in time{during} ({type(error).__name__})")
    if isinstance(error, httpx.RemoteProtocolError) and not _broken_off(said):
        return Unavailable(
            f"{address.shown}: expected HTTP, got something else ({said}); is this Qdrant's REST port "
            f"(6333 unless configured), and does it want TLS (qdrant+https://)?"
        )
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError | httpx.ProxyError):
        return Refused("unavailable", f"the connection was lost{during} ({said})")
    return Refused("server", said)


def _broken_off(said: str) -> bool:
    # h11 and httpcore have one class for a connection that ended and for bytes that are not HTTP
    return "disconnected" in said or "closed connection" in said


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def found(records: Sequence[Json], payload: Sequence[str] | bool, vectors: str | None) -> Found:
    """Points as POST /points and /points/scroll return them."""
    matrix = None
    if vectors is not None:
        pairs = [(record, _row(record.get("vector"), vectors)) for record in records]
        records = [record for record, row in pairs if row is not None]
        if records:
            matrix = np.array([row for _, row in pairs if row is not None], np.float32)
    return Found(
        [str(record["id"]) for record in records],
        [] if payload is False else [record.get("payload") or {} for record in records],
        matrix,
    )


def _row(vector: Any, name: str) -> Any:
    """The vector of this name, None where the point has none; a single one comes without its name."""
    if isinstance(vector, dict):
        return vector.get(name)
    return None if name else vector
