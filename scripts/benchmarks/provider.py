"""An embeddings API that takes so many milliseconds a request and keeps account; a process of its own.

Arguments: dimensions, seconds for each request. Prints its port. GET answers with the account as JSON, one
[begun, ended, texts] for each request since the last GET: `begun` when its first bytes are read, `ended` when
the last of its answer is handed to the system. In the process that is measured, it would compete for the
interpreter.
"""

from __future__ import annotations

import base64
import json
import socket
import sys
import threading
import time
from functools import cache

import numpy as np

MOST = 128


def main() -> None:
    """Serve until killed."""
    dim, seconds = int(sys.argv[1]), float(sys.argv[2])
    vectors = np.random.default_rng(0).standard_normal((MOST, dim), dtype="<f4")
    packed = [base64.b64encode(row.tobytes()).decode() for row in vectors]
    account: list[tuple[float, float, int]] = []

    @cache
    def answer(texts: int) -> bytes:
        data = [{"object": "embedding", "index": n, "embedding": packed[n]} for n in range(texts)]
        usage = {"prompt_tokens": 20 * texts, "total_tokens": 20 * texts}
        return _framed({"object": "list", "data": data, "model": "bench", "usage": usage})

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kept = b""
        while True:
            while b"\r\n\r\n" not in kept:
                if not (part := connection.recv(1 << 20)):
                    return
                kept += part
            begun = time.perf_counter()
            head, _, kept = kept.partition(b"\r\n\r\n")
            if head.startswith(b"GET"):
                connection.sendall(_framed(account))
                account.clear()
                continue
            size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            while len(kept) < size:
                kept += connection.recv(1 << 20)
            body, kept = kept[:size], kept[size:]
            texts = len(json.loads(body)["input"])
            content = answer(texts)
            time.sleep(max(0.0, begun + seconds - time.perf_counter()))
            connection.sendall(content)
            account.append((begun, time.perf_counter(), texts))

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


def _framed(value: object) -> bytes:
    content = json.dumps(value).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


if __name__ == "__main__":
    main()
