"""Calls to a Qdrant server by gRPC, on channels of our own; what is no answer becomes a `Refused`."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no types

from ....errors import StoreError
from ..failures import Kind, Refused

if TYPE_CHECKING:
    from ..address import Address

_KINDS: dict[grpc.StatusCode, Kind] = {
    grpc.StatusCode.INVALID_ARGUMENT: "input",
    grpc.StatusCode.OUT_OF_RANGE: "input",
    grpc.StatusCode.NOT_FOUND: "missing",
    grpc.StatusCode.ALREADY_EXISTS: "exists",
    grpc.StatusCode.UNAUTHENTICATED: "forbidden",
    grpc.StatusCode.PERMISSION_DENIED: "forbidden",
    grpc.StatusCode.FAILED_PRECONDITION: "locked",
    grpc.StatusCode.DEADLINE_EXCEEDED: "timeout",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    # this side never cancels: a server going down did, or a proxy
    grpc.StatusCode.CANCELLED: "unavailable",
    grpc.StatusCode.UNIMPLEMENTED: "unsupported",
}

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # a connection that died without a word is noticed while a long call waits on it
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # gRPC's own pause after a failed connection grows to two minutes, longer than any wait of ours
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # else all channels to one server share a single connection
    ("grpc.use_local_subchannel_pool", 1),
]


class Calls:
    """The channels to one server. `lane` 0 is for everything; uploads side by side have one each."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._metadata = (("api-key", address.key),) if address.key else ()
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._lanes: dict[int, grpc.Channel] = {}
        self._methods: dict[tuple[int, str], grpc.UnaryUnaryMultiCallable[Any, Any]] = {}
        self._closed = False

    def __call__(self, path: str, request: Any, answer: Any, *, timeout: float, lane: int = 0) -> Any:
        """The answer, a message of the type `answer`, to a message or to its bytes.

        Raises Refused; StoreError once closed, and in a process forked from the one that connected.
        """
        method = self._method(path, answer, lane)
        try:
            return method(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            self._usable()
            raise self._refused(error) from self._printable(error)
        except ValueError as error:  # "Cannot invoke RPC on closed channel!"
            self._usable()
            raise StoreError(f"{self._address.shown}: {self._address.hide(str(error))}") from None

    def close(self) -> None:
        # the channels of the parent belong to it: closing them here could wait for threads that are not here
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closed = True
            channels = list(self._lanes.values())
            self._lanes.clear()
            self._methods.clear()
        for channel in channels:
            channel.close()

    def _usable(self) -> None:
        if os.getpid() != self._process:
            raise StoreError(
                f"{self._address.shown} was opened before this process was forked, and gRPC connections do "
                f"not survive that; open it again here with vecbridge.connect, or start processes by spawn"
            )
        if self._closed:
            raise StoreError(f"{self._address.shown} is closed; open it again with vecbridge.connect")

    def _method(self, path: str, answer: Any, lane: int) -> grpc.UnaryUnaryMultiCallable[Any, Any]:
        self._usable()
        with self._lock:
            self._usable()
            if (lane, path) not in self._methods:
                if lane not in self._lanes:
                    self._lanes[lane] = self._channel()
                self._methods[lane, path] = self._lanes[lane].unary_unary(
                    path, request_serializer=_serialised, response_deserializer=answer.FromString
                )
            return self._methods[lane, path]

    def _channel(self) -> grpc.Channel:
        host = f"[{self._address.host}]" if ":" in self._address.host else self._address.host
        target = f"{host}:{self._address.port}"
        # a proxy would look for this machine's own addresses on itself
        options = [*_OPTIONS, ("grpc.enable_http_proxy", 0)] if self._address.local else _OPTIONS
        if self._address.tls:
            return grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)
        return grpc.insecure_channel(target, options)

    def _refused(self, error: Any) -> Refused:
        code = error.code()
        text = self._address.hide(error.details() or "") or f"gRPC status {code.name}"
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            if "larger than max" in text:
                return Refused(
                    "server", f"{text}: something between here and Qdrant limits the size of gRPC messages"
                )
            trailers = {item.key: item.value for item in error.trailing_metadata() or ()}
            if "retry-after" not in trailers:
                return Refused("full", text)
            return Refused("rate", text, wait=_seconds(trailers["retry-after"]))
        # how gRPC says that the stream was cut off while the connection, to a proxy perhaps, lives
        kind: Kind = "unavailable" if "RST_STREAM" in text else _KINDS.get(code, "server")
        return Refused(kind, text)

    def _printable(self, error: Exception) -> Exception | None:
        """The error as a cause, which is printed with its effect; None where it holds the key."""
        text = str(error)
        return error if self._address.hide(text) == " ".join(text.split()) else None


def _serialised(request: Any) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def _seconds(value: Any) -> float | None:
    text = str(value).strip()
    return float(text) if text.isascii() and text.isdecimal() else None
