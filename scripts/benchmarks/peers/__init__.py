"""Other adapters and libraries, measured on the same rows: what they are, and how each is opened.

None of them reaches the network. Where one is not installed, or fails, its line says so.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..rows import Rows

Floats = NDArray[np.float32]


class Opened(Protocol):
    """One peer with an empty collection. Whatever it needs vectors to be is made before the clock starts."""

    def prepare(self, rows: Rows) -> Any:
        """The rows as this peer takes them."""

    def add(self, prepared: Any) -> object:
        """Store what `prepare` gave; durable as far as the peer makes it so."""

    def index(self) -> object:
        """Build what searches run on, where that is a step of its own."""

    def ask(self, query: Floats) -> Any:
        """A query as this peer takes it."""

    def search(self, asked: Any) -> list[str]:
        """The ids of the k nearest."""

    def close(self) -> None:
        """Give everything back."""


@dataclass(frozen=True, slots=True)
class Peer:
    """`name`: of its package. `beside`: which store of ours it is measured beside. `home`: its module here.

    `exact`: it finds the true neighbours. `keeps`: it stores rows, so that loading can be measured. `note`:
    what it does otherwise than we do.
    """

    name: str
    home: str
    beside: Literal["pgvector", "edge", "flat", "client"]
    note: str = ""
    exact: bool = False
    keeps: bool = True

    def open(self, url: str, folder: Path, dim: int) -> Opened:
        """An empty collection; `url` of the server where it needs one. Raises what its modules raise."""
        made: Callable[[str, Path, int], Opened] = getattr(
            importlib.import_module(f".{self.home}", __name__), self.name.replace("-", "_")
        )
        return made(url, folder, dim)


PEERS = (
    Peer("langchain-postgres", "postgres", "pgvector", "an INSERT and a commit for each row"),
    Peer("llama-index-vector-stores-postgres", "postgres", "pgvector", "one transaction for all rows"),
    Peer("pgvector-haystack", "postgres", "pgvector", "executemany"),
    Peer("langchain-qdrant", "qdrant", "client"),
    Peer("llama-index-vector-stores-qdrant", "qdrant", "client"),
    Peer("qdrant-haystack", "qdrant", "client"),
    Peer(
        "faiss-cpu", "local", "flat", "IndexFlatIP: row numbers alone, all in memory", exact=True, keeps=False
    ),
    Peer(
        "usearch", "local", "flat", "exact search: row numbers alone, all in memory", exact=True, keeps=False
    ),
    Peer("lancedb", "local", "flat", "no index", exact=True),
    Peer("chromadb", "local", "edge"),
)


class Unusable(Exception):
    """Why a peer cannot be measured, in a sentence."""


@contextmanager
def opened(peer: Peer, url: str, folder: Path, dim: int) -> Iterator[Opened]:
    """The peer, open; whatever goes wrong with it from here on is Unusable."""
    try:
        importlib.metadata.version(peer.name)
    except importlib.metadata.PackageNotFoundError:
        raise Unusable("not installed; scripts/bench --peers installs it") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with closing(peer.open(url, folder, dim)) as one:
            yield one
    except Unusable:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or "no reason given"
        raise Unusable(f"{type(error).__name__}: {said:.200}") from error


def version(peer: Peer) -> str | None:
    """Which version is installed; None where none is."""
    try:
        return importlib.metadata.version(peer.name)
    except importlib.metadata.PackageNotFoundError:
        return None


def silenced() -> None:
    """Keep the peers from the network: from reporting, and from whatever else leads off this machine."""
    os.environ |= {
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "ANONYMIZED_TELEMETRY": "False",
        "LANGSMITH_TRACING": "false",
        "LANGCHAIN_TRACING_V2": "false",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
    }
    sys.addaudithook(_offline)


def _offline(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "localhost"
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    name = host.decode() if isinstance(host, bytes) else host
    if name not in (None, "", "localhost", "127.0.0.1", "::1"):
        raise PermissionError(f"the benchmark stays on this machine; something asked for {name}")
