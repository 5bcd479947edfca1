"""Building an index, beside bare SQL with the same settings, with and without somebody who watches."""

from __future__ import annotations

import psycopg

import vecbridge

from . import postgres
from .bench import Bench, size
from .measure import Line, most, pairs, timed, turns


def index(bench: Bench) -> list[Line]:
    """The same index over the same table: by `build_index`, by it with progress, and by CREATE INDEX."""
    dim = bench.wide(3584)[-1]
    # below 10,000 rows, sharing the work among processes is not worth it
    url, name, data = bench.loaded("pgvector", bench.many(10_000), dim)
    heard: list[int] = []
    with (
        vecbridge.connect(url) as store,
        psycopg.connect(bench.conninfo, autocommit=True) as connection,
    ):
        papers = store.open(name)
        ours = connection.execute(
            "SELECT indexrelid::regclass::text FROM pg_index "
            "WHERE indrelid = %s::regclass AND NOT indisprimary",
            [f"vecbridge_{name}"],
        ).fetchone()
        assert ours is not None
        postgres.share(connection)

        def dropped() -> None:
            connection.execute(f"DROP INDEX IF EXISTS {ours[0]}")
            connection.execute("CHECKPOINT")

        def silent(turn: int) -> float:
            dropped()
            return timed(papers.build_index)

        def watched(turn: int) -> float:
            dropped()
            return timed(lambda: papers.build_index(progress=lambda stage, done, total: heard.append(done)))

        def bare(turn: int) -> float:
            dropped()

            def work() -> None:
                postgres.build(connection, f"vecbridge_{name}", "by_hand", dim)
                connection.execute(f"ANALYZE vecbridge_{name}")

            try:
                return timed(work)
            finally:
                connection.execute("DROP INDEX IF EXISTS by_hand")

        found = turns({"ours": silent, "watched": watched, "hand": bare}, min(bench.rounds, 3), warm=0)
        papers.build_index()
    assert heard, "nothing was said while the index was built"
    found["silent"] = found["ours"]
    what = f"pgvector, {size(len(data), dim)}, HNSW"
    return [
        Line(
            "index",
            what,
            "s",
            "CREATE INDEX and ANALYZE, every core, 2 GB",
            pairs(found, "ours", "hand"),
            goal=most(1.05),
        ),
        Line(
            "index",
            f"{what}, with progress",
            "s",
            "without",
            pairs(found, "watched", "silent"),
            goal=most(1.03),
        ),
    ]
