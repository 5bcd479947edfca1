"""The cost model: how many vectors searches and builds touch, and what that takes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecbridge.errors import InputError
from vecbridge.limits import limits
from vecbridge.sizes import Estimates, estimate
from vecbridge.speeds import PARALLEL, ROUGH, Rate, Speeds, build_graph, inserts, visits
from vecbridge.types import Index, Layout, Shorten, Space

GRAPH = Index("hnsw", ef_search=200)
LAYOUTS = {
    "flat": [Layout(), Layout("float16")],
    "pgvector": [
        Layout(),
        Layout(inline=True),
        Layout(index=Index("scan", "bit"), oversample=40),
        Layout(index=GRAPH),
        Layout(index=replace(GRAPH, element="float16"), oversample=2),
        Layout(index=replace(GRAPH, element="bit"), oversample=40),
        Layout(index=replace(GRAPH, element="float16", shorten=Shorten("pca", 128)), oversample=20),
        Layout(index=Index("ivfflat", "float16", lists=100, probes=15), oversample=2),
    ],
    "qdrant": [
        Layout(),
        Layout("float16"),
        Layout(index=GRAPH),
        Layout(index=replace(GRAPH, element="int8"), oversample=4),
        Layout(index=replace(GRAPH, element="bit"), oversample=40),
        Layout(index=replace(GRAPH, shorten=Shorten("truncate", 128)), oversample=20),
    ],
}
LAYOUTS["edge"] = LAYOUTS["qdrant"]
EVERYWHERE = st.sampled_from([(on, layout) for on, layouts in LAYOUTS.items() for layout in layouts])


def costs(on: str, layout: Layout, *, rows: int, dim: int = 768, speeds: Speeds | None = None) -> Estimates:
    return estimate(Space(dim, nested=(128,)), layout, rows=rows, limits=limits(on), speeds=speeds)


@given(EVERYWHERE, st.integers(0, 10**9), st.integers(0, 10**9))
def test_more_rows_never_take_less_time(place: tuple[str, Layout], one: int, other: int) -> None:
    on, layout = place
    few, many = (costs(on, layout, rows=rows) for rows in sorted((one, other)))
    assert few.query_seconds <= many.query_seconds
    if (one < PARALLEL) == (other < PARALLEL):  # from there on a build has helpers
        assert few.build_seconds <= many.build_seconds


@given(EVERYWHERE, st.integers(0, 10**8), st.integers(128, 16_000))
def test_times_are_finite_and_above_nothing(place: tuple[str, Layout], rows: int, dim: int) -> None:
    on, layout = place
    found = costs(on, layout, rows=rows, dim=dim)
    assert ROUGH[on].trip <= found.query_seconds < math.inf
    assert found.scan_seconds <= found.query_seconds
    indexed = layout.index is not None and layout.index.kind != "scan"
    assert (found.build_seconds > 0) == (indexed and rows > 0)
    assert found.build_seconds < math.inf


@given(st.integers(1, 10**9), st.integers(1, 1000), st.integers(2, 100))
def test_a_walk_never_visits_more_than_there_is(rows: int, width: int, m: int) -> None:
    assert 0 < visits(rows, width=width, m=m) <= rows
    assert visits(rows, width=width, m=m) <= visits(rows, width=width + 10, m=m)
    assert visits(rows, width=width, m=m) <= inserts(2 * rows, width=width, m=m)


@pytest.mark.parametrize("on", LAYOUTS)
def test_a_place_that_is_twice_as_fast_takes_half_the_time(on: str) -> None:
    rough = ROUGH[on]

    def doubled(rate: Rate) -> Rate:
        return Rate(rate.row / 2, rate.bytes * 2)

    fast = replace(
        rough,
        trip=rough.trip / 2,
        start=rough.start / 2,
        stage=rough.stage / 2,
        copies=rough.copies * 2,
        scans={name: doubled(rate) for name, rate in rough.scans.items()},
        visit=doubled(rough.visit),
        again=doubled(rough.again),
        insert=doubled(rough.insert),
        calibrated=True,
    )
    for layout in LAYOUTS[on]:
        slow = costs(on, layout, rows=50_000)
        quick = costs(on, layout, rows=50_000, speeds=fast)
        for name in ("scan_seconds", "build_seconds", "query_seconds"):
            assert getattr(quick, name) == pytest.approx(getattr(slow, name) / 2)
        assert quick.calibrated
        assert not slow.calibrated
        assert quick.table_bytes == slow.table_bytes


def test_what_the_memory_does_not_hold_costs_a_search_the_disk() -> None:
    scarce = estimate(Space(3584), Layout(), rows=10**6, limits=limits("pgvector"), memory=10**9)
    # 14 GB at 0.5 GB a second
    assert scarce.query_seconds == pytest.approx(28.7, rel=0.05)


def test_a_build_of_many_rows_has_helpers() -> None:
    speeds = replace(ROUGH["pgvector"], workers=2.0)
    alone = build_graph(speeds, PARALLEL - 1, size=1000, index=GRAPH)
    helped = build_graph(speeds, PARALLEL, size=1000, index=GRAPH)
    assert helped == pytest.approx(alone / 2, rel=0.01)


def test_reranking_more_candidates_takes_longer_and_more_so_beside_the_table() -> None:
    index = Index("hnsw", "float16", ef_search=800)
    times = {
        (inline, oversample): costs(
            "pgvector", Layout(inline=inline, index=index, oversample=oversample), rows=100_000
        ).query_seconds
        for inline in (True, False)
        for oversample in (1, 40)
    }
    assert times[False, 40] - times[False, 1] > times[True, 40] - times[True, 1] > 0


@pytest.mark.parametrize("on", LAYOUTS)
def test_speeds_survive_json(on: str) -> None:
    speeds = replace(ROUGH[on], calibrated=True, source="measured on somewhere", trip=0.123)
    again = Speeds.from_dict(json.loads(json.dumps(speeds.to_dict())))
    assert again == speeds
    assert again.to_dict() == speeds.to_dict()


def broken(**changes: Any) -> dict[str, Any]:
    return {**ROUGH["pgvector"].to_dict(), **changes}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "backend|visit"),
        (broken(backend="nobody"), "nobody"),
        (broken(trip=-1), "-1.0 is no speed"),
        (broken(trip=math.nan), "nan is no speed"),
        (broken(visit={"row": 0.0, "bytes": 0.0}), "0 bytes a second"),
        (broken(scans={}), "beside"),
        (broken(workers=0), "0 workers"),
        (broken(scans=None), "expected speeds as vecbridge writes them"),
    ],
)
def test_what_cannot_be_speeds_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Speeds.from_dict(data)


def test_speeds_of_another_backend_are_refused() -> None:
    with pytest.raises(InputError, match="expected speeds of pgvector, got those of flat"):
        costs("pgvector", Layout(), rows=10, speeds=ROUGH["flat"])


def test_the_cost_model_loads_no_numpy() -> None:
    code = "import sys, vecbridge.speeds, vecbridge.sizes; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_pgvector_visits_as_many_vectors_as_the_formula_says(pg18: str) -> None:
    """Counted by the pages that it reads: one for each vector compared, one for each whose neighbours are."""
    rows, dim = 2_000, 128
    made = np.random.default_rng(11).standard_normal((rows + 20, dim), dtype=np.float32)
    made *= np.arange(1, dim + 1, dtype=np.float32) ** -0.3
    with psycopg.connect(pg18) as connection, connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL client_min_messages = error")
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"CREATE TABLE visited (v vector({dim}))".encode())
        with connection.cursor() as cursor, cursor.copy("COPY visited FROM STDIN") as copy:
            for row in made[:rows]:
                copy.write_row([str(row.tolist())])
        connection.execute("CREATE INDEX ON visited USING hnsw (v vector_cosine_ops)")
        connection.execute("SET LOCAL enable_seqscan = off")
        for width in (40, 100, 200):
            connection.execute(f"SET LOCAL hnsw.ef_search = {width}".encode())
            read = [pages(connection, str(query.tolist())) for query in made[rows:]]
            found = np.mean(read) - width
            assert visits(rows, width=width, m=16) == pytest.approx(found, rel=0.25)


def pages(connection: psycopg.Connection[tuple[Any, ...]], query: str) -> int:
    row = connection.execute(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT 1 FROM visited ORDER BY v <=> %s::vector LIMIT 1",
        [query],
    ).fetchone()
    assert row is not None
    [scan] = row[0][0]["Plan"]["Plans"]
    assert scan["Node Type"] == "Index Scan"
    return int(scan["Shared Hit Blocks"]) + int(scan["Shared Read Blocks"])


def test_speeds_that_were_kept_before_stages_were_measured_take_the_rough_one() -> None:
    kept = {name: value for name, value in ROUGH["qdrant"].to_dict().items() if name != "stage"}
    assert Speeds.from_dict(kept) == ROUGH["qdrant"]
    assert Speeds.from_dict({**kept, "stage": 0.25}).stage == 0.25


def test_searching_two_sets_of_vectors_takes_a_stage_more() -> None:
    known = limits("qdrant")
    layout = Layout(index=Index("hnsw", shorten=Shorten("truncate", 256), ef_search=200), oversample=4)
    plain, staged = (
        estimate(
            Space(1024, nested=(256,)), layout, rows=10_000, limits=known,
            speeds=replace(ROUGH["qdrant"], stage=stage),
        ).query_seconds
        for stage in (0.0, 0.5)
    )  # fmt: skip
    assert staged - plain == pytest.approx(0.5)
