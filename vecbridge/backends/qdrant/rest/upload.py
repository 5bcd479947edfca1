"""Points on their way to a Qdrant server by REST: cut into bodies that it accepts, sent side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from .engine import Points
from .failures import Refused
from .rest_answers import allowed
from .rest_text import payload_texts, pieces, upsert_body, widths

# bodies on their way at a time: while the server reads one, the next is written
STREAMS = 2
# what stands around the points of a body
_FRAME = 32


class Upload:
    """Points being sent by `send`, which returns when the points in a body are stored, and raises Refused.

    `room`: bytes that a body may have; less after a refusal that said so. `most`: points in one body, None
    for no bound. `stored`: points that are stored so far.
    """

    def __init__(self, points: Points, send: Callable[[bytes], None], *, room: int, most: int | None) -> None:
        self.room = room
        self.stored = 0
        self._points = points
        self._send = send
        self._most = most
        self._payloads = payload_texts(points)
        self._widths = widths(points, self._payloads)
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def run(self) -> None:
        """Sends all points. Raises what `send` raises, after which no further body is begun."""
        runs = self._cut(range(len(self._points)))
        if len(runs) == 1:
            self._write(runs[0])
            return
        waiting = iter(runs)

        def lane() -> None:
            while not self._stop.is_set():
                with self._lock:
                    run = next(waiting, None)
                if run is None:
                    return
                try:
                    self._write(run)
                except BaseException:
                    self._stop.set()
                    raise

        with ThreadPoolExecutor(STREAMS, thread_name_prefix="vecbridge-upload") as pool:
            try:
                lanes = [pool.submit(lane) for _ in range(STREAMS)]
                for running in lanes:
                    running.result()
            finally:
                self._stop.set()

    def _cut(self, rows: range) -> list[range]:
        sizes = self._widths[rows.start : rows.stop]
        return [
            range(rows.start + run.start, rows.start + run.stop)
            for run in pieces(sizes, room=self.room - _FRAME, most=self._most)
        ]

    def _write(self, rows: range) -> None:
        body = upsert_body(self._points, self._payloads, rows)
        try:
            self._send(body)
        except Refused as refused:
            if refused.kind != "too large" or len(rows) == 1:
                raise
            # a proxy does not tell its limit; a body as large as this one is above it in any case
            limit = allowed(refused) or len(body) // 2
            with self._lock:
                self.room = min(self.room, limit, len(body) - 1)
            for part in self._cut(rows):
                if self._stop.is_set():
                    return
                self._write(part)
        else:
            with self._lock:
                self.stored += len(rows)
