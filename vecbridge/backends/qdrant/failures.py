"""Qdrant's refusals as vecbridge's errors, and which of them are worth another attempt.

REST and gRPC say the same things in different codes; `Kind` is what they have in common. The table comes from
Qdrant's source: src/actix/helpers.rs, lib/storage/src/content_manager/errors.rs and its conversions.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Literal, TypeVar

from ...errors import (
    Busy,
    CollectionExists,
    CollectionNotFound,
    FeatureMissing,
    Forbidden,
    InputError,
    StoreError,
    Unavailable,
    VecbridgeError,
)

Kind = Literal[
    "input",  # 400, 422, INVALID_ARGUMENT: also strict mode
    "missing",  # 404, NOT_FOUND
    "exists",  # 409, ALREADY_EXISTS
    "forbidden",  # 401, 403, UNAUTHENTICATED, PERMISSION_DENIED
    "locked",  # FAILED_PRECONDITION
    "rate",  # 429, RESOURCE_EXHAUSTED with retry-after
    "full",  # 507, RESOURCE_EXHAUSTED without
    "too large",  # 413, a body above the server's limit
    "timeout",  # 408, 504, DEADLINE_EXCEEDED
    "unavailable",  # 502, 503, UNAVAILABLE, no connection, a connection lost
    "unsupported",  # 405, 501, UNIMPLEMENTED
    "server",  # 500, INTERNAL, and what is not in the table
]

T = TypeVar("T")

# what may pass if one waits; nothing else is ever sent twice
PASSING: frozenset[Kind] = frozenset({"rate", "timeout", "unavailable"})
ATTEMPTS = 6
FIRST, LONGEST = 0.25, 20.0  # seconds
# a server that asks for a longer wait than this is not waited for
PATIENCE = 120.0


class Refused(Exception):
    """What an engine makes of an answer that is none: its kind, the server's text, seconds to wait.

    `stored`: how many points of how many are stored, where this ended an upload after its first part.
    """

    stored: tuple[int, int] | None = None

    def __init__(self, kind: Kind, text: str, *, wait: float | None = None) -> None:
        super().__init__(text)
        self.kind: Kind = kind
        self.text = text
        self.wait = wait


def attempt(
    call: Callable[[], T],
    *,
    attempts: int = ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
    jitter: Callable[[], float] = random.random,
) -> T:
    """What `call` returns, after waiting and calling again where it raises a `Refused` that may pass.

    Waits grow from 0.25 s, doubled each time up to 20 s, times a random factor of 0.5 to 1; where the server
    names a time, that is waited, not less. Gives up after so many `attempts`.
    """
    for turn in range(attempts):
        try:
            return call()
        except Refused as refused:
            last = turn == attempts - 1
            if last or refused.kind not in PASSING or (refused.wait or 0.0) > PATIENCE:
                raise
            backoff = min(FIRST * 2**turn, LONGEST) * (0.5 + jitter() / 2)
            wait = max(backoff, refused.wait or 0.0)
        sleep(wait)
    raise AssertionError


def translated(refused: Refused, where: str, *, collection: str | None = None) -> VecbridgeError:
    """The error to raise for a refusal by the Qdrant at `where`; `collection` where the call named one."""
    text = f"{where}: {refused.text}"
    if refused.stored is not None:
        text += "; {:,} of {:,} points are stored, the same call again completes them".format(*refused.stored)
    match refused.kind:
        case "missing" if collection is not None:
            return CollectionNotFound(f"there is no collection {collection!r} in {where}")
        case "exists" if collection is not None:
            return CollectionExists(
                f"collection {collection!r} is in {where} already; open it, drop it, or take another name"
            )
        case "input" if refused.stored is None:
            return InputError(f"{text} (Qdrant refused the request; nothing was changed by it)")
        case "forbidden":
            return Forbidden(
                f"{text}; set QDRANT_API_KEY to a key that may do this, or put it into the URL as "
                f"qdrant://KEY@HOST"
            )
        case "rate":
            asked = f"; the server asks to wait {refused.wait:.0f} s" if refused.wait else ""
            return Busy(f"{text}{asked}; send fewer requests at a time, or raise the limit of the collection")
        case "full":
            return StoreError(f"{text}; free disk or memory on the server, or raise its quota")
        case "too large":
            return StoreError(
                f"{text}; raise service.max_request_size_mb on the server, or use gRPC (qdrant://HOST:6334)"
            )
        case "timeout":
            return Unavailable(f"{text}; the server did not finish in time: is it overloaded?")
        case "unavailable":
            return Unavailable(text)
        case "unsupported":
            return FeatureMissing(text)
    return StoreError(text)
