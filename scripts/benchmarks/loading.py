"""Loading: new rows, existing rows, and rows from Parquet."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg

import vecbridge
from vecbridge.types import Layout

from . import edge, peers, postgres
from .bench import BATCH, Bench, layout, size
from .measure import Line, Side, least, pairs, timed, turns
from .rows import Rows, clustered, made

HAND = "hand"
BATCHES = 5  # of one round; then the collections are emptied


def ingest(bench: Bench) -> list[Line]:
    """New rows into empty collections, batch by batch in turn."""
    lines: list[Line] = []
    for dim in bench.wide(384, 1536, 3584):
        rows = made(_even(bench.many(BATCHES * BATCH)), dim)
        lines += _postgres(bench, rows, dim)
        lines += _edge(bench, rows, dim)
        lines += _flat(bench, rows, dim)
        if bench.peers:
            lines += _peers(bench, rows[:BATCH], dim)
    return lines


def _line(
    found: dict[str, list[float]], rows: int, what: str, against: str, goal: float, job: str = "ingest"
) -> Line:
    return Line(
        job,
        what,
        "rows/s",
        against,
        pairs(found, "ours", HAND, per=rows),
        more=True,
        goal=least(goal),
    )


def _upserted(papers: Any, part: Rows) -> float:
    return timed(
        lambda: papers.upsert(part.ids, part.vectors, documents=part.documents, metadata=part.metadata)
    )


def _emptied(store: Any, name: str, dim: int, kind: str) -> Any:
    if name in store.collections():
        store.drop(name)
    return store.create(name, dim=dim, layout=layout(kind, dim))


def _postgres(bench: Bench, rows: Rows, dim: int) -> list[Line]:
    parts = rows.batches(BATCH)
    bytes_of = [postgres.encoded(part) for part in parts]
    papers: list[Any] = []
    with (
        vecbridge.connect(bench.postgres) as store,
        psycopg.connect(bench.conninfo) as connection,
        psycopg.connect(bench.conninfo, autocommit=True) as admin,
    ):

        def fresh() -> None:
            papers[:] = [_emptied(store, "ingest", dim, "pgvector")]
            postgres.table(connection, "by_hand", dim)
            # so that no checkpoint falls into one side's turn
            admin.execute("CHECKPOINT")

        def ours(turn: int) -> float:
            return _upserted(papers[0], parts[turn % len(parts)])

        def by_hand(turn: int) -> float:
            def work() -> None:
                postgres.copy(connection, "by_hand", bytes_of[turn % len(parts)])
                connection.commit()

            return timed(work)

        found = rounds(ours, by_hand, fresh, bench.rounds, len(parts))
        there = connection.execute("SELECT count(*) FROM by_hand").fetchone()
        assert there == (papers[0].count(),) == (len(rows),)
        store.drop("ingest")
        connection.execute("DROP TABLE by_hand")
    what = f"pgvector, new rows of {dim:,} dims"
    return [_line(found, _whole(rows), what, "binary COPY of bytes encoded before", 0.95)]


def _whole(rows: Rows) -> int:
    return min(BATCH, len(rows))


def _even(rows: int) -> int:
    # every turn is one batch: none may be shorter than others
    return rows if rows < BATCH else rows // BATCH * BATCH


def rounds(
    ours: Side, by_hand: Side, fresh: Callable[[], object], count: int, batches: int
) -> dict[str, list[float]]:
    """Both sides in turn, batch by batch; `fresh` is called before the first batch of each round."""

    begun: set[int] = set()

    def prepared(side: Side) -> Side:
        def run(turn: int) -> float:
            if turn % batches == 0 and turn not in begun:
                begun.add(turn)
                fresh()
            return side(turn)

        return run

    # a whole round to warm up: files are extended, statements prepared
    return turns({"ours": prepared(ours), HAND: prepared(by_hand)}, count * batches, warm=batches)


def _edge(bench: Bench, rows: Rows, dim: int) -> list[Line]:
    parts = rows.batches(BATCH)
    numbers = itertools.count()
    with bench.place("ingest-edge") as folder, ExitStack() as stack:
        store = stack.enter_context(vecbridge.connect(f"qdrant:{folder / 'ours'}"))
        papers: list[Any] = []
        shards: list[tuple[Any, Path]] = []

        def fresh() -> None:
            papers[:] = [_emptied(store, "ingest", dim, "edge")]
            for old, _ in shards:
                old.close()
            path = folder / f"hand-{next(numbers)}"
            path.mkdir(parents=True)
            shards[:] = [(edge.shard(path, dim), path)]

        def ours(turn: int) -> float:
            return _upserted(papers[0], parts[turn % len(parts)])

        def by_hand(turn: int) -> float:
            at = turn % len(parts)
            return timed(lambda: edge.upsert(*shards[0], parts[at], at * BATCH))

        found = rounds(ours, by_hand, fresh, bench.rounds, len(parts))
        assert papers[0].count() == len(rows)
        for old, _ in shards:
            old.close()
    return [_line(found, _whole(rows), f"Edge, new rows of {dim:,} dims", "bare qdrant_edge", 0.95)]


def _flat(bench: Bench, rows: Rows, dim: int) -> list[Line]:
    parts = rows.batches(BATCH)
    raw = [
        (part.vectors.tobytes(), json.dumps([part.ids, part.documents, part.metadata]).encode())
        for part in parts
    ]
    with bench.place("ingest-flat") as folder, ExitStack() as stack:
        store = stack.enter_context(vecbridge.connect(f"flat:{folder / 'ours'}"))
        papers: list[Any] = []

        def fresh() -> None:
            papers[:] = [_emptied(store, "ingest", dim, "flat")]
            (folder / "hand").write_bytes(b"")

        def ours(turn: int) -> float:
            return _upserted(papers[0], parts[turn % len(parts)])

        def by_hand(turn: int) -> float:
            def work() -> None:
                with (folder / "hand").open("ab") as file:
                    for some in raw[turn % len(parts)]:
                        file.write(some)
                    file.flush()
                    os.fsync(file.fileno())

            return timed(work)

        found = rounds(ours, by_hand, fresh, bench.rounds, len(parts))
        assert papers[0].count() == len(rows)
    return [
        _line(
            found, _whole(rows), f"flat, new rows of {dim:,} dims", "write and fsync of the same bytes", 0.7
        )
    ]


def _peers(bench: Bench, rows: Rows, dim: int) -> list[Line]:
    """The first batch, into an empty collection each time; each peer beside the store that it stands for."""
    lines = []
    for peer in peers.PEERS:
        if peer.beside == "client" or not peer.keeps:
            continue
        what = f"{peer.beside}, {size(len(rows), dim)} into an empty collection"
        goal = least(40) if peer.name == "langchain-postgres" and dim == 3584 else None
        line = Line("ingest", what, "rows/s", peer.name, more=True, goal=goal, note=peer.note)
        bench.tell(f"{peer.name}, {what}")
        try:
            found = _beside(bench, peer, rows, dim)
        except peers.Unusable as error:
            lines.append(replace(line, why=str(error)))
        else:
            lines.append(replace(line, pairs=pairs(found, "ours", HAND, per=len(rows))))
    return lines


def _beside(bench: Bench, peer: peers.Peer, rows: Rows, dim: int) -> dict[str, list[float]]:
    numbers = itertools.count()
    with bench.place("ingest-peer") as folder, vecbridge.connect(bench.url(peer.beside)) as store:

        def ours(turn: int) -> float:
            return _upserted(_emptied(store, "peer", dim, peer.beside), rows)

        def theirs(turn: int) -> float:
            url = bench.conninfo if peer.beside == "pgvector" else ""
            with peers.opened(peer, url, folder / str(next(numbers)), dim) as one:
                prepared = one.prepare(rows)
                return timed(lambda: one.add(prepared))

        try:
            return turns({"ours": ours, HAND: theirs}, min(bench.rounds, 3))
        finally:
            if "peer" in store.collections():
                store.drop("peer")


def upsert(bench: Bench) -> list[Line]:
    """Rows that are there already, with other vectors."""
    lines = []
    for dim in bench.wide(384, 1536, 3584):
        rows = made(_even(bench.many(3 * BATCH)), dim)
        lines += _upsert_postgres(bench, rows, dim)
    return lines


def _upsert_postgres(bench: Bench, rows: Rows, dim: int) -> list[Line]:
    other = Rows(rows.ids, clustered(len(rows), dim, seed=7), rows.documents, rows.metadata)
    parts = [rows.batches(BATCH), other.batches(BATCH)]
    bytes_of = [[postgres.encoded(part) for part in some] for some in parts]
    batches = len(parts[0])
    with (
        vecbridge.connect(bench.postgres) as store,
        psycopg.connect(bench.conninfo) as connection,
        psycopg.connect(bench.conninfo, autocommit=True) as admin,
    ):
        papers = _emptied(store, "upsert", dim, "pgvector")
        tables = {"staging": "by_hand_staging", "rewrite": "by_hand_rewrite"}
        for name in tables.values():
            postgres.table(connection, name, dim)
        for at, part in enumerate(parts[0]):
            _upserted(papers, part)
            for name in tables.values():
                postgres.copy(connection, name, bytes_of[0][at])
                connection.commit()
        seen: set[int] = set()

        def settled(turn: int) -> None:
            # rows that were replaced lie in every table; so each round begins with the same room to reuse
            if turn % batches == 0 and turn not in seen:
                seen.add(turn)
                for name in ("vecbridge_upsert", *tables.values()):
                    admin.execute(f"VACUUM {name}")
                admin.execute("CHECKPOINT")

        def which(turn: int) -> tuple[int, int]:
            return (turn // batches + 1) % 2, turn % batches

        def ours(turn: int) -> float:
            settled(turn)
            kind, at = which(turn)
            return _upserted(papers, parts[kind][at])

        def staging(turn: int) -> float:
            settled(turn)
            kind, at = which(turn)
            return timed(lambda: postgres.replace(connection, tables["staging"], bytes_of[kind][at]))

        def rewrite(turn: int) -> float:
            settled(turn)
            kind, at = which(turn)
            ids = parts[kind][at].ids
            return timed(lambda: postgres.rewrite(connection, tables["rewrite"], ids, bytes_of[kind][at]))

        found = turns(
            {"ours": ours, "staging": staging, "rewrite": rewrite}, bench.rounds * batches, warm=batches
        )
        assert papers.count() == len(rows)
        store.drop("upsert")
        for name in tables.values():
            connection.execute(f"DROP TABLE {name}")
    what = f"pgvector, existing rows of {dim:,} dims"
    return [
        Line(
            "upsert",
            what,
            "rows/s",
            against,
            pairs(found, "ours", key, per=_whole(rows)),
            more=True,
            goal=goal,
        )
        for key, against, goal in (
            ("staging", "staging table and INSERT ON CONFLICT, bytes encoded before", least(0.8)),
            ("rewrite", "DELETE and COPY, bytes encoded before; refuses no race", None),
        )
    ]


# --- from Parquet


def parquet(bench: Bench) -> list[Line]:
    """From a Parquet file into a store, end to end, beside the store's own limit for the same rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (dim,) = bench.wide(3584)[-1:]
    rows = made(bench.many(10 * BATCH), dim)
    count = min(bench.rounds, 3)
    lines = []
    with bench.place("parquet") as folder:
        folder.mkdir()
        file = folder / "rows.parquet"
        flat = pa.array(rows.vectors.reshape(-1))
        columns = {
            "id": rows.ids,
            "text": rows.documents,
            "vector": pa.FixedSizeListArray.from_arrays(flat, dim),
            "topic": [entry["topic"] for entry in rows.metadata],
            "senses": [entry["senses"] for entry in rows.metadata],
        }
        pq.write_table(pa.table(columns), file, row_group_size=BATCH)
        del flat, columns
        plain = [{"topic": entry["topic"], "senses": entry["senses"]} for entry in rows.metadata]
        rows = Rows(rows.ids, rows.vectors, rows.documents, plain)
        limits = {
            "pgvector": (bench.postgres, _limit_postgres, "binary COPY of bytes encoded before"),
            "Edge": (f"qdrant:{folder / 'edge'}", _limit_edge, "bare qdrant_edge, rows in memory"),
            "flat": (f"flat:{folder / 'flat'}", _limit_flat, "Collection.upsert, rows in memory"),
        }
        for place, (url, limit, against) in limits.items():
            with vecbridge.connect(url) as store:

                def ours(turn: int, url: str = url, store: Any = store) -> float:
                    if "parquet" in store.collections():
                        store.drop("parquet")
                    return timed(
                        lambda: vecbridge.ingest(
                            file,
                            to=url,
                            collection="parquet",
                            layout=Layout(),
                            batch=BATCH,
                            evaluate=False,
                            cache=False,
                        )
                    )

                with limit(bench, folder, rows, dim) as theirs:
                    found = turns({"ours": ours, HAND: theirs}, count)
                assert store.open("parquet").count() == len(rows)
                store.drop("parquet")
            lines.append(
                _line(
                    found,
                    len(rows),
                    f"Parquet into {place}, {size(len(rows), dim)}",
                    against,
                    0.85,
                    "parquet",
                )
            )
    return lines


@contextmanager
def _limit_postgres(bench: Bench, folder: Path, rows: Rows, dim: int) -> Iterator[Side]:
    bytes_of = [postgres.encoded(part) for part in rows.batches(BATCH)]
    with psycopg.connect(bench.conninfo) as connection:

        def side(turn: int) -> float:
            postgres.table(connection, "by_hand", dim)

            def work() -> None:
                for pieces in bytes_of:
                    postgres.copy(connection, "by_hand", pieces)
                    connection.commit()

            return timed(work)

        yield side
        connection.execute("DROP TABLE by_hand")


@contextmanager
def _limit_edge(bench: Bench, folder: Path, rows: Rows, dim: int) -> Iterator[Side]:
    numbers = itertools.count()

    def side(turn: int) -> float:
        path = folder / f"limit-{next(numbers)}"
        path.mkdir()
        with closing(edge.shard(path, dim)) as shard:

            def work() -> None:
                for at, part in enumerate(rows.batches(BATCH)):
                    edge.upsert(shard, path, part, at * BATCH)

            return timed(work)

    yield side


@contextmanager
def _limit_flat(bench: Bench, folder: Path, rows: Rows, dim: int) -> Iterator[Side]:
    with vecbridge.connect(f"flat:{folder / 'limit'}") as store:

        def side(turn: int) -> float:
            papers = _emptied(store, "limit", dim, "flat")
            return sum(_upserted(papers, part) for part in rows.batches(BATCH))

        yield side
