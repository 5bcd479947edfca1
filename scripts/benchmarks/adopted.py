"""A table that LangChain made and searches, before and after it is adopted."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import psycopg
from numpy.typing import NDArray

import vecbridge

from .bench import BATCH, WIDEST, Bench, size
from .measure import Line, most, p50, pairs, turns
from .rows import K, Rows, made, questions, recall, truth

Floats = NDArray[np.float32]
Search = Callable[[list[float]], list[str]]
TABLE, COLLECTION = "theirs", "adopted"
ASKED = 10  # queries of one p50: each reads the whole table while there is no index
ITSELF = 100  # records that LangChain stores itself, before all others are copied in as it stores them
PACKAGE = "langchain-postgres"


def adopt(bench: Bench) -> list[Line]:
    """LangChain's own search before the index that `adopt` proposes, after it, and ours on the same table."""
    lines = []
    for dim in bench.wide(1536, 3584):
        rows = bench.many(50_000)
        what = f"p50, LangChain's table, {size(rows, dim)}"
        if not bench.peers:
            lines.append(Line("adopt", what, "ms", PACKAGE, why="--peers measures it"))
        elif not installed():
            lines.append(
                Line("adopt", what, "ms", PACKAGE, why="not installed; scripts/bench --peers installs it")
            )
        else:
            lines += _one(bench, made(rows, dim), dim, what)
    return lines


def installed() -> bool:
    """Whether LangChain's package for PostgreSQL is."""
    return importlib.util.find_spec("langchain_postgres") is not None


def _one(bench: Bench, data: Rows, dim: int, what: str) -> list[Line]:
    queries = questions(data, ASKED)
    right = truth(data, queries)
    asked = [query.tolist() for query in queries]
    bench.tell(f"loading {size(len(data), dim)} into LangChain's table")
    with langchain(bench.conninfo, data, dim) as theirs, vecbridge.connect(bench.postgres) as store:
        found = turns({"before": lambda turn: p50(theirs, asked)}, bench.rounds)
        first = [theirs(one) for one in asked]
        bench.tell("adopting it")
        papers = store.adopt(store.adoption(TABLE, name=COLLECTION))
        papers.build_index()

        def ours(query: Floats) -> list[str]:
            return [hit.id for hit in papers.search(query, k=K)]

        found |= turns(
            {"theirs": lambda turn: p50(theirs, asked), "ours": lambda turn: p50(ours, list(queries))},
            bench.rounds,
        )
        theirs_now, mine = [theirs(one) for one in asked], [ours(query) for query in queries]
        store.drop(COLLECTION)

    def line(who: str, side: str, hits: list[list[str]], *, serves: bool, note: str = "") -> Line:
        return Line(
            "adopt",
            f"{what}, {who} after adopting",
            "ms",
            "LangChain before",
            pairs(found, side, "before", scale=1e3),
            goal=most(0.2) if serves else None,
            note=f"recall@{K} {recall(hits, right):.3f} / {recall(first, right):.3f}{note}",
        )

    serves = dim <= WIDEST
    return [
        line("vecbridge", "ours", mine, serves=True),
        line(
            "LangChain",
            "theirs",
            theirs_now,
            serves=serves,
            note="" if serves else "; no index can serve what it sends",
        ),
    ]


@contextmanager
def langchain(url: str, data: Rows, dim: int) -> Iterator[Search]:
    """How LangChain searches a table of its own that holds these rows."""
    from langchain_core.embeddings import FakeEmbeddings
    from langchain_postgres import Column, PGEngine, PGVectorStore

    drop = f"DROP TABLE IF EXISTS {TABLE}"
    engine = PGEngine.from_connection_string(url=url.replace("postgresql://", "postgresql+psycopg://", 1))
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(drop)
            # its own ids are of the type uuid
            engine.init_vectorstore_table(
                TABLE, dim, id_column=Column("langchain_id", "TEXT", nullable=False)
            )
            store = PGVectorStore.create_sync(engine, FakeEmbeddings(size=dim), TABLE)
            own, rest = data[:ITSELF], data[ITSELF:]
            store.add_embeddings(own.documents, own.vectors.tolist(), metadatas=own.metadata, ids=own.ids)
            for part in rest.batches(BATCH):
                copied(connection, part)
            connection.execute(f"VACUUM ANALYZE {TABLE}")

        def search(asked: list[float]) -> list[str]:
            return [
                str(document.id) for document, _ in store.similarity_search_with_score_by_vector(asked, k=K)
            ]

        yield search
    finally:
        engine._run_as_sync(engine.close())
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(drop)


def copied(connection: psycopg.Connection[object], rows: Rows) -> None:
    """Put rows into LangChain's table as it lays them."""
    columns = "langchain_id, content, embedding, langchain_metadata"
    with connection.cursor() as cursor, cursor.copy(f"COPY {TABLE} ({columns}) FROM STDIN") as stream:
        for id, document, vector, entry in zip(
            rows.ids, rows.documents, rows.vectors, rows.metadata, strict=True
        ):
            stream.write_row((id, document, f"[{','.join(map(repr, vector.tolist()))}]", json.dumps(entry)))
