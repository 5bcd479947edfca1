"""One run of the benchmark: what was asked for, the servers that it holds open, the collections it shares."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg

import vecbridge
from vecbridge.backends import embedded
from vecbridge.types import Index, Layout

from .rows import SHARES, Rows, made

T = TypeVar("T")
BATCH = 1000  # records in a commit, on every side
EF = 100  # candidates kept while walking a graph, on every side
HALF = Layout(index=Index("hnsw", "float16", ef_search=EF), oversample=2)
WHOLE = Layout(index=Index("hnsw", ef_search=EF))
DIMS = (384, 1536, 3584)
WIDEST = 2000  # dimensions that an HNSW index of pgvector takes as float32
FILTERABLE = dict.fromkeys(SHARES, "text")


@dataclass
class Bench:
    """`rows` and `dims` are None where each job is to choose its own; `peers`: measure them, too."""

    folder: Path
    rounds: int = 5
    rows: int | None = None
    dims: tuple[int, ...] | None = None
    peers: bool = False
    tell: Callable[[str], None] = print
    glosses: Path | None = None
    keep: Path | None = None
    details: dict[str, Any] = field(default_factory=dict)
    _open: ExitStack = field(default_factory=ExitStack)
    _kept: dict[Any, Any] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._open.close()

    def many(self, usual: int) -> int:
        """How many rows: those that were asked for, or as many as a job takes if not told otherwise."""
        return self.rows or usual

    def wide(self, *usual: int) -> tuple[int, ...]:
        """How many dimensions, in the same way."""
        return self.dims or usual

    @property
    def postgres(self) -> str:
        """The URL of an embedded PostgreSQL, for vecbridge."""
        _ = self.conninfo
        return f"pgvector:{self.folder / 'pg'}"

    @property
    def conninfo(self) -> str:
        """The same server for psycopg; it starts when it is first asked for."""

        def start(stack: ExitStack) -> embedded.Lease:
            server = stack.enter_context(closing(embedded.lease(self.folder / "pg")))
            # whichever job comes first
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            return server

        return self.once("server", start).url

    @contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """A folder that is deleted afterwards."""
        path = self.folder / name
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def once(self, key: Any, make: Callable[[ExitStack], T]) -> T:
        """What `make` gives the first time; what it puts on the stack is closed at the end of the run."""
        if key not in self._kept:
            self._kept[key] = make(self._open)
        found: T = self._kept[key]
        return found

    def loaded(self, kind: str, rows: int, dim: int) -> tuple[str, str, Rows]:
        """URL and name of a collection with its index, and its rows; made once in a run.

        `kind`: "pgvector" (half precision, re-ranked; float32 up to 2,000 dimensions), "edge" or "flat".
        """
        data, name = made(rows, dim), f"{kind}{dim}x{rows}"
        url = self.url(kind)

        def load(stack: ExitStack) -> None:
            self.tell(f"loading {size(rows, dim)} into {kind}")
            wanted = layout(kind, dim)
            with vecbridge.connect(url) as store:
                papers = store.create(name, dim=dim, layout=wanted, rows=rows, filterable=FILTERABLE)
                for part in data.batches(BATCH):
                    papers.upsert(part.ids, part.vectors, documents=part.documents, metadata=part.metadata)
                papers.build_index()
            if kind == "pgvector":
                with psycopg.connect(self.conninfo, autocommit=True) as connection:
                    connection.execute(f"VACUUM ANALYZE vecbridge_{name}")

        self.once((kind, rows, dim), load)
        return url, name, data

    def url(self, kind: str) -> str:
        """Where the store of this kind is that a run shares."""
        if kind == "pgvector":
            return self.postgres
        return f"{'qdrant' if kind == 'edge' else kind}:{self.folder / kind}"


def layout(kind: str, dim: int) -> Layout:
    """What a store of this kind is measured with."""
    if kind == "flat":
        return Layout()
    return HALF if kind == "pgvector" and dim > WIDEST else WHOLE


def size(rows: int, dim: int) -> str:
    """As it stands in the tables."""
    return f"{rows:,} x {dim:,}"
