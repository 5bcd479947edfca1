"""Searching: one by one, many at once, with filters, and exactly in flat storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import qdrant_edge as qe
from numpy.typing import NDArray

import vecbridge

from . import edge, peers, postgres
from .bench import BATCH, Bench, size
from .measure import Goal, Line, Side, least, most, p50, pairs, timed, turns
from .rows import SHARES, K, Rows, questions, recall, truth

Floats = NDArray[np.float32]
ASKED = 100  # queries of one p50
TOGETHER = 256  # queries of one batch
FIRST = 10  # searches after opening anew
ENOUGH = 0.95  # recall without which a search does not count
Find = Callable[[Floats], Sequence[str]]


def _ids(hits: Sequence[Any]) -> list[str]:
    return [hit.id for hit in hits]


def _first(found: Sequence[tuple[Any, ...]]) -> list[str]:
    return [row[0] for row in found]


def _side(search: Callable[[Floats], object], queries: Floats) -> Side:
    return lambda turn: p50(search, queries)


def _recalls(
    finders: Mapping[str, Find], queries: Floats, right: Sequence[Sequence[str]]
) -> dict[str, float]:
    return {name: recall([find(query) for query in queries], right) for name, find in finders.items()}


def _found(ours: float, theirs: float) -> str:
    return f"recall@{K} {ours:.3f} / {theirs:.3f}"


def _recall_line(job: str, what: str, mine: float) -> Line:
    return Line(job, f"recall@{K}, {what}", pairs=((mine, None),), more=True, goal=least(ENOUGH, ours=True))


def _shard(bench: Bench, data: Rows, dim: int) -> qe.EdgeShard:
    """The same rows in a bare shard, optimised: its graph is built. Made once in a run."""

    def made(stack: ExitStack) -> qe.EdgeShard:
        folder = stack.enter_context(bench.place(f"hand-edge-{size(len(data), dim)}"))
        folder.mkdir()
        shard = stack.enter_context(closing(edge.shard(folder, dim, filters=True)))
        for at, part in enumerate(data.batches(BATCH)):
            edge.upsert(shard, folder, part, at * BATCH)
        while shard.optimize():
            pass
        return shard

    return bench.once(("shard", len(data), dim), made)


# --- one by one


def search(bench: Bench) -> list[Line]:
    """The median time of one search through an index."""
    lines: list[Line] = []
    dims = bench.wide(3584)
    # an index of float32 ends at 2,000 dimensions, and other adapters know no other
    for dim in (*dims, 1536) if bench.peers and 1536 not in dims else dims:
        lines += _one_postgres(bench, dim)
        lines += _one_edge(bench, dim)
    return lines


def _one_postgres(bench: Bench, dim: int) -> list[Line]:
    url, name, data = bench.loaded("pgvector", bench.many(10_000), dim)
    queries = questions(data, ASKED)
    right = truth(data, queries)
    what = f"pgvector, p50, {size(len(data), dim)}, HNSW"
    with ExitStack() as stack:
        papers = stack.enter_context(vecbridge.connect(url)).open(name)
        connection = stack.enter_context(psycopg.connect(bench.conninfo))
        postgres.settle(connection)
        bare = postgres.searcher(connection, postgres.statement(f"vecbridge_{name}", dim), dim)
        return _beside(
            bench,
            papers.search,
            bare,
            _first,
            ("pgvector", "bare psycopg, prepared, binary"),
            what,
            (data, queries, right),
        )


def _one_edge(bench: Bench, dim: int) -> list[Line]:
    url, name, data = bench.loaded("edge", bench.many(10_000), dim)
    queries = questions(data, ASKED)
    right = truth(data, queries)
    what = f"Edge, p50, {size(len(data), dim)}, HNSW"
    shard = _shard(bench, data, dim)
    with vecbridge.connect(url) as store:
        papers = store.open(name)

        def bare(query: Floats) -> list[qe.ScoredPoint]:
            return shard.query(edge.request(query))

        return _beside(
            bench,
            papers.search,
            bare,
            edge.ids,
            ("edge", "bare qdrant_edge"),
            what,
            (data, queries, right),
        )


def _beside(
    bench: Bench,
    ours: Callable[[Floats], Sequence[Any]],
    bare: Callable[[Floats], Any],
    named: Callable[[Any], list[str]],
    store: tuple[str, str],
    what: str,
    asked: tuple[Rows, Floats, Sequence[Sequence[str]]],
) -> list[Line]:
    """Single searches beside `bare`, whose answers `named` gives the ids of; and beside peers.

    `store`: its name among ours, and what is done by hand. `asked`: rows, queries, and right answers.
    """
    data, queries, right = asked
    found = turns({"ours": _side(ours, queries), "hand": _side(bare, queries)}, 2 * bench.rounds)
    known = _recalls({"ours": lambda q: _ids(ours(q)), "hand": lambda q: named(bare(q))}, queries, right)
    lines = [
        Line(
            "search",
            what,
            "ms",
            store[1],
            pairs(found, "ours", "hand", scale=1e3),
            goal=most(1.05),
            note=_found(known["ours"], known["hand"]),
        ),
        _recall_line("search", what, known["ours"]),
    ]
    if bench.peers:
        lines += _peers(bench, ours, store[0], "search", what, data, queries, right)
    return lines


def _peers(
    bench: Bench,
    ours: Callable[[Floats], Sequence[Any]],
    beside: str,
    job: str,
    what: str,
    data: Rows,
    queries: Floats,
    right: Sequence[Sequence[str]],
) -> list[Line]:
    """Each peer beside `ours` in turn, on the same rows and the same queries."""
    lines = []
    mine = recall([_ids(ours(query)) for query in queries], right)
    dim = data.vectors.shape[1]
    for peer in peers.PEERS:
        if peer.beside != beside:
            continue
        line = Line(job, what, "ms", peer.name, goal=_goal(peer), note=peer.note)
        bench.tell(f"{peer.name}, {what}")
        try:
            with (
                bench.place("search-peer") as folder,
                peers.opened(peer, bench.conninfo if beside == "pgvector" else "", folder, dim) as one,
            ):
                for part in data.batches(BATCH) if peer.keeps else [data]:
                    one.add(one.prepare(part))
                one.index()
                asked = [one.ask(query) for query in queries]
                theirs = recall([one.search(some) for some in asked], right)
                found = turns(
                    {
                        "ours": _side(ours, queries),
                        "peer": lambda turn, one=one, asked=asked: p50(one.search, asked),
                    },
                    bench.rounds,
                )
        except peers.Unusable as error:
            lines.append(replace(line, why=str(error)))
        else:
            note = "; ".join(part for part in (_found(mine, theirs), peer.note) if part)
            lines.append(replace(line, pairs=pairs(found, "ours", "peer", scale=1e3), note=note))
    return lines


def _goal(peer: peers.Peer) -> Goal | None:
    if peer.name == "langchain-postgres":
        return most(0.6)
    return most(1.0) if peer.exact else None


# --- many at once


def batch(bench: Bench) -> list[Line]:
    """Queries per second of `search_many`."""
    dim = bench.wide(3584)[-1]
    return [*_many_postgres(bench, dim), *_many_edge(bench, dim)]


def _many(
    found: Mapping[str, Sequence[float]], theirs: str, what: str, against: str, asked: int, note: str
) -> Line:
    return Line(
        "batch", what, "queries/s", against, pairs(found, "ours", theirs, per=asked), more=True, note=note
    )


def _many_postgres(bench: Bench, dim: int) -> list[Line]:
    url, name, data = bench.loaded("pgvector", bench.many(10_000), dim)
    queries = questions(data, TOGETHER)
    right = truth(data, queries)
    text = postgres.statement(f"vecbridge_{name}", dim)
    with ExitStack() as stack:
        papers = stack.enter_context(vecbridge.connect(url)).open(name)
        connections = [stack.enter_context(psycopg.connect(bench.conninfo)) for _ in range(2)]
        threads = stack.enter_context(ThreadPoolExecutor(2))
        for connection in connections:
            postgres.settle(connection)

        def pipelined(connection: Any, some: Floats) -> list[list[str]]:
            given = [postgres.values(query, dim) for query in some]
            with connection.pipeline():
                cursors = [connection.execute(text, one, prepare=True, binary=True) for one in given]
            return [_first(cursor.fetchall()) for cursor in cursors]

        def two(some: Floats) -> list[list[str]]:
            halves = threads.map(pipelined, connections, np.array_split(some, 2))
            return [ids for half in halves for ids in half]

        found = turns(
            {
                "ours": lambda turn: timed(lambda: papers.search_many(queries)),
                "one": lambda turn: timed(lambda: pipelined(connections[0], queries)),
                "two": lambda turn: timed(lambda: two(queries)),
            },
            bench.rounds,
        )
        mine = recall([_ids(hits) for hits in papers.search_many(queries)], right)
        theirs = recall(two(queries), right)
    what, note = f"pgvector, {len(queries)} queries, {size(len(data), dim)}, HNSW", _found(mine, theirs)
    return [
        _many(found, "one", what, "psycopg pipeline, one connection", len(queries), note),
        _many(found, "two", what, "psycopg pipelines, two connections", len(queries), note),
    ]


def _many_edge(bench: Bench, dim: int) -> list[Line]:
    url, name, data = bench.loaded("edge", bench.many(10_000), dim)
    queries = questions(data, TOGETHER)
    right = truth(data, queries)
    shard = _shard(bench, data, dim)
    with vecbridge.connect(url) as store:
        papers = store.open(name)

        def bare() -> list[list[qe.ScoredPoint]]:
            return shard.query_batch(qe.QueryBatchRequest([edge.request(query) for query in queries]))

        found = turns(
            {
                "ours": lambda turn: timed(lambda: papers.search_many(queries)),
                "hand": lambda turn: timed(bare),
            },
            bench.rounds,
        )
        mine = recall([_ids(hits) for hits in papers.search_many(queries)], right)
        theirs = recall([edge.ids(points) for points in bare()], right)
    what = f"Edge, {len(queries)} queries, {size(len(data), dim)}, HNSW"
    return [_many(found, "hand", what, "qdrant_edge query_batch", len(queries), _found(mine, theirs))]


# --- with filters


def filtered(bench: Bench) -> list[Line]:
    """The median time of one search among the rows where a field of the metadata says "yes"."""
    dim = bench.wide(3584)[-1]
    return [
        line
        for field in SHARES
        for line in (
            *_filtered_postgres(bench, dim, field),
            *_filtered_edge(bench, dim, field),
            *_filtered_flat(bench, dim, field),
        )
    ]


def _best(ways: Mapping[str, Find], queries: Floats, right: Sequence[Sequence[str]]) -> str:
    """The fastest way by hand that finds enough. Raises RuntimeError where none does."""
    some = queries[:20]
    known = _recalls(ways, some, right[:20])
    enough = [name for name in ways if known[name] >= ENOUGH]
    if not enough:
        raise RuntimeError(f"nothing by hand finds {ENOUGH:.0%} of the neighbours: {known}")
    return min(enough, key=lambda name: p50(ways[name], some))


def _filtered_line(
    bench: Bench,
    place: str,
    field: str,
    data: Rows,
    queries: Floats,
    ours: Callable[[Floats], Sequence[Any]],
    ways: Mapping[str, Find],
) -> list[Line]:
    right = truth(data, queries, field=field)
    way = _best(ways, queries, right)
    found = turns({"ours": _side(ours, queries), "hand": _side(ways[way], queries)}, bench.rounds)
    known = _recalls({"ours": lambda q: _ids(ours(q)), "hand": ways[way]}, queries, right)
    what = f"{place}, p50, {SHARES[field]:.1%} match, {size(len(data), data.vectors.shape[1])}"
    return [
        Line(
            "filtered",
            what,
            "ms",
            "by hand, the fastest way that finds enough",
            pairs(found, "ours", "hand", scale=1e3),
            note=f"{_found(known['ours'], known['hand'])}; {way}",
        ),
        _recall_line("filtered", what, known["ours"]),
    ]


def _filtered_postgres(bench: Bench, dim: int, field: str) -> list[Line]:
    url, name, data = bench.loaded("pgvector", bench.many(10_000), dim)
    queries = questions(data, ASKED // 2)
    table, condition = f"vecbridge_{name}", f'metadata @> \'{{"{field}": "yes"}}\''
    with ExitStack() as stack:
        papers = stack.enter_context(vecbridge.connect(url)).open(name)
        walking = stack.enter_context(psycopg.connect(bench.conninfo))
        reading = stack.enter_context(psycopg.connect(bench.conninfo))
        postgres.settle(walking)
        postgres.settle(reading, scans=True)
        ways = {
            f"the index, {wide} candidates": postgres.searcher(
                walking, postgres.statement(table, dim, where=condition, candidates=wide), dim
            )
            for wide in (2 * K, 4 * K)
        }
        ways["every row that matches"] = postgres.searcher(
            reading, postgres.exact(table, where=condition), dim
        )
        finders = {way: lambda q, look=look: _first(look(q)) for way, look in ways.items()}
        return _filtered_line(
            bench, "pgvector", field, data, queries, lambda q: papers.search(q, where={field: "yes"}), finders
        )


def _filtered_edge(bench: Bench, dim: int, field: str) -> list[Line]:
    url, name, data = bench.loaded("edge", bench.many(10_000), dim)
    queries = questions(data, ASKED // 2)
    shard = _shard(bench, data, dim)
    with vecbridge.connect(url) as store:
        papers = store.open(name)
        ways = {
            way: lambda q, acorn=acorn: edge.ids(shard.query(edge.request(q, field=field, acorn=acorn)))
            for way, acorn in (("payload index", False), ("payload index and ACORN", True))
        }
        return _filtered_line(
            bench, "Edge", field, data, queries, lambda q: papers.search(q, where={field: "yes"}), ways
        )


def _filtered_flat(bench: Bench, dim: int, field: str) -> list[Line]:
    url, name, data = bench.loaded("flat", bench.many(10_000), dim)
    queries = questions(data, ASKED // 2)
    column = np.array([entry[field] == "yes" for entry in data.metadata])

    def by_hand(query: Floats) -> list[str]:
        at = np.flatnonzero(column)
        return [data.ids[at[n]] for n in _top(data.vectors[at] @ query)]

    with vecbridge.connect(url) as store:
        papers = store.open(name)
        lines = _filtered_line(
            bench,
            "flat",
            field,
            data,
            queries,
            lambda q: papers.search(q, where={field: "yes"}),
            {"numpy, the field as a column in memory": by_hand},
        )

        # what a filter lets through is kept by the collection that was opened
        def first(query: Floats) -> float:
            again = store.open(name)
            return timed(lambda: again.search(query, where={field: "yes"}))

        once = tuple((first(query) * 1e3, None) for query in queries[:FIRST])
        what = f"flat, first search with a filter, {SHARES[field]:.1%} match, {size(len(data), dim)}"
        return [*lines, Line("filtered", what, "ms", pairs=once, note="reads the metadata of every record")]


# --- exactly


def _top(scores: Floats) -> list[int]:
    """The rows of the K largest, largest first."""
    k = min(K, len(scores))
    best = np.argpartition(scores, len(scores) - k)[len(scores) - k :]
    return [int(n) for n in best[np.argsort(-scores[best])]]


def flat(bench: Bench) -> list[Line]:
    """Exact search in flat storage, one query at a time and many at once."""
    dim = bench.wide(3584)[-1]
    url, name, data = bench.loaded("flat", bench.many(20_000), dim)
    queries, vectors = questions(data, 30), data.vectors
    right = truth(data, queries)

    def by_hand(query: Floats) -> list[str]:
        return [data.ids[n] for n in _top(vectors @ query)]

    what = f"flat, p50, {size(len(data), dim)}, exact"
    with vecbridge.connect(url) as store:
        papers = store.open(name)
        found = turns(
            {"ours": _side(papers.search, queries), "hand": _side(by_hand, queries)}, 2 * bench.rounds
        )
        known = _recalls({"ours": lambda q: _ids(papers.search(q)), "hand": by_hand}, queries, right)
        lines = [
            Line(
                "flat",
                what,
                "ms",
                "numpy matrix-vector in memory",
                pairs(found, "ours", "hand", scale=1e3),
                goal=most(round(1 / 3, 3)),
                note=_found(known["ours"], known["hand"]),
            ),
            replace(_recall_line("flat", what, known["ours"]), goal=least(1.0, ours=True)),
        ]
        if bench.peers:
            lines += _peers(bench, papers.search, "flat", "flat", what, data, queries, right)
        lines += _flat_batches(bench, papers, data, dim)
    return lines


def _flat_batches(bench: Bench, papers: Any, data: Rows, dim: int) -> list[Line]:
    lines = []
    vectors = data.vectors
    for asked in (32, TOGETHER):
        queries = questions(data, asked)
        right = truth(data, queries)
        out = np.empty((len(queries), len(vectors)), np.float32)
        sides: dict[str, Side] = {
            "ours": lambda turn, q=queries: timed(lambda: papers.search_many(q)),
            "gemm": lambda turn, q=queries, out=out: timed(lambda: np.matmul(q, vectors.T, out=out)),
        }
        found = turns(sides, bench.rounds)
        mine = recall([_ids(hits) for hits in papers.search_many(queries)], right)
        what = f"flat, {len(queries)} queries together, {size(len(data), dim)}, exact"
        line = Line("flat", what, "queries/s", more=True, note=f"recall@{K} {mine:.3f}")
        lines.append(
            replace(
                line,
                against="numpy GEMM alone, nothing chosen",
                pairs=pairs(found, "ours", "gemm", per=len(queries)),
                goal=least(0.8),
            )
        )
        for peer in (one for one in peers.PEERS if bench.peers and one.beside == "flat" and not one.keeps):
            try:
                with bench.place("flat-peer") as folder, peers.opened(peer, "", Path(folder), dim) as one:
                    one.add(one.prepare(data))
                    one.index()
                    look: Any = one
                    theirs = recall(look.search_many(queries), right)
                    found = turns(
                        {
                            "ours": lambda turn, q=queries: timed(lambda: papers.search_many(q)),
                            "peer": lambda turn, q=queries, look=look: timed(lambda: look.search_many(q)),
                        },
                        bench.rounds,
                    )
            except peers.Unusable as error:
                lines.append(replace(line, against=peer.name, goal=least(1.0), why=str(error)))
            else:
                lines.append(
                    replace(
                        line,
                        against=peer.name,
                        pairs=pairs(found, "ours", "peer", per=len(queries)),
                        goal=least(1.0),
                        note=f"{_found(mine, theirs)}; {peer.note}",
                    )
                )
    return lines
