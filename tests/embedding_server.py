"""A provider of embeddings on the loopback address, which answers as a test tells it to."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecbridge.embedders.pace import Clock, Waiting

DIM = 8


class Hurried(Clock):
    """A clock for `Pace` on which nothing takes long: whoever waits for some seconds puts it forward."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> float:
        return super().now() + self._ahead

    def waiting(self, lock: threading.Lock) -> Waiting:
        clock = self

        class Hurry(threading.Condition):
            def wait(self, timeout: float | None = None) -> bool:
                if timeout is None:
                    return super().wait()
                clock._ahead += timeout
                return False

        return Hurry(lock)


@dataclass(frozen=True)
class Asked:
    """One request: `number` counts from 1."""

    number: int
    body: dict[str, Any]
    path: str
    headers: Mapping[str, str]

    @property
    def texts(self) -> list[str]:
        given = self.body["input"]
        return [given] if isinstance(given, str) else given


@dataclass(frozen=True)
class Reply:
    """What is sent back: `body` as it is if bytes, else as JSON.

    `after`: seconds before anything is sent. `cut`: the connection is closed after so many bytes of the body;
    -1: before the first byte of the answer.
    """

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    after: float = 0.0
    cut: int | None = None

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def vector(text: str, *, dim: int = DIM) -> NDArray[np.float32]:
    """The vector of a text at this provider: of unit length, another one for each text."""
    raw = b"".join(
        hashlib.sha256(f"{n}:{text}".encode("utf-8", "surrogatepass")).digest() for n in range(-(-dim // 32))
    )
    numbers = np.frombuffer(raw, dtype=np.uint8)[:dim].astype(np.float32) - 127.5
    return (numbers / np.linalg.norm(numbers)).astype(np.float32)


def good(asked: Asked, *, dim: int = DIM, **headers: str) -> Reply:
    """A right answer, packed as the request asks for; headers with `_` for `-`."""

    def packed(text: str) -> Any:
        row = vector(text, dim=dim)
        if asked.body.get("encoding_format") == "base64":
            return base64.b64encode(row.astype("<f4").tobytes()).decode()
        return [float(one) for one in row]

    data = [{"object": "embedding", "index": n, "embedding": packed(t)} for n, t in enumerate(asked.texts)]
    tokens = sum(len(text.split()) for text in asked.texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Reply(
        200,
        {"object": "list", "data": data, "model": asked.body["model"], "usage": usage},
        {name.replace("_", "-"): value for name, value in headers.items()},
    )


class EmbeddingServer:
    """An embeddings API at `url`, with a thread for each connection.

    It answers with the replies of `script` one after the other (None: a right answer), then as `answer` says.
    Notes all requests (`asked`), how often each text came with a right answer (`embedded`), and the most
    requests that were in flight at once (`most`).
    """

    def __init__(
        self,
        answer: Callable[[Asked], Reply] = good,
        *,
        script: Iterable[Reply | None] = (),
        delay: float = 0.0,
    ) -> None:
        self.answer = answer
        self.script = list(script)
        self.delay = delay
        self.asked: list[Asked] = []
        self.embedded: Counter[str] = Counter()
        self.most = 0
        self._flying = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def setup(self) -> None:
                super().setup()
                with server._lock:
                    server._open.add(self.connection)

            def finish(self) -> None:
                with server._lock:
                    server._open.discard(self.connection)
                super().finish()

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    server._serve(self, raw)
                except OSError:
                    self.close_connection = True  # the client has gone

            def log_message(self, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *args: object) -> None:
                pass  # a client that hangs up is part of some tests

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> EmbeddingServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def requests(self) -> int:
        """How many requests came."""
        return len(self.asked)

    @property
    def texts(self) -> list[str]:
        """All texts of all requests, in the order in which they came."""
        return [text for asked in self.asked for text in asked.texts]

    def close(self) -> None:
        """Ends at once, whatever is still being answered. May be called twice."""
        if self._over.is_set():
            return
        self._over.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def _serve(self, handler: BaseHTTPRequestHandler, raw: bytes) -> None:
        with self._lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            asked = Asked(len(self.asked) + 1, json.loads(raw), handler.path, headers)
            self.asked.append(asked)
            self._flying += 1
            self.most = max(self.most, self._flying)
            scripted = self.script.pop(0) if self.script else self.answer
        reply = (
            (good if scripted is None else scripted)(asked) if not isinstance(scripted, Reply) else scripted
        )
        content = reply.content
        # waits on the server's end, so that a slow answer does not keep a finished test
        self._over.wait(reply.after + self.delay)
        with self._lock:
            self._flying -= 1
            if reply.status == 200 and reply.cut is None and b'"data"' in content:
                self.embedded.update(asked.texts)
        if reply.cut == -1:
            handler.close_connection = True
            return
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content if reply.cut is None else content[: reply.cut])
        handler.wfile.flush()
        handler.close_connection = handler.close_connection or reply.cut is not None
