"""What is planned, and what is said about it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vecbridge import models, sizes
from vecbridge.candidates import candidates
from vecbridge.errors import InputError, PlanError
from vecbridge.explain import best, describe, human, lasting
from vecbridge.limits import Limits, limits
from vecbridge.planner import Plan, plan, plan_places
from vecbridge.sizes import estimate
from vecbridge.types import Index, Layout, Metric, Shorten, Space, Spread

M = 1_000_000


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat storage without vecbridge[fast], whatever is installed here."""
    monkeypatch.setattr(sizes, "coded", lambda: False)


INLINE = Layout(inline=True)
SCAN = Layout(index=Index("scan", "float16"), oversample=4)
SIGNS = Layout(index=Index("scan", "bit"), oversample=40)
FULL = Layout(index=Index("hnsw", "float32", ef_search=200))
HALF = Layout(index=Index("hnsw", "float16", ef_search=200), oversample=2)
STORED_HALF = Layout(element="float16", index=Index("hnsw", "float16", ef_search=200))
BINARY = Layout(index=Index("hnsw", "bit", ef_search=400), oversample=40)


def prefix(dim: int) -> Layout:
    return Layout(index=Index("hnsw", "float16", Shorten("truncate", dim), ef_search=200), oversample=20)


def projected(dim: int, element: Any = "float16") -> Layout:
    return Layout(index=Index("hnsw", element, Shorten("pca", dim), ef_search=200), oversample=20)


def lists(element: Any, lists: int, probes: int, oversample: int) -> Layout:
    return Layout(index=Index("ivfflat", element, lists=lists, probes=probes), oversample=oversample)


def graph(element: Any, ef_search: int = 256, shorten: Shorten | None = None) -> Index:
    """A graph as the planner lays it out for Qdrant."""
    return Index("hnsw", element, shorten, ef_construction=100, ef_search=ef_search)


INT8 = Layout(index=graph("int8"), oversample=4)
TURBO4 = Layout(index=graph("turbo4"), oversample=4)
TURBO2 = Layout(index=graph("turbo2"), oversample=10)
TURBO1 = Layout(index=graph("turbo1", 400), oversample=40)
CODES = Layout(index=graph("bit", 400), oversample=40)
QWEN = "Qwen/Qwen3-Embedding-8B"


@pytest.mark.parametrize(
    ("dim", "arguments", "layout"),
    [
        # small collections stay flat and exact
        (3, {"rows": 0}, INLINE),
        (768, {"rows": 10_000}, INLINE),
        (2008, {"rows": 20_000}, INLINE),
        (2009, {"rows": 5_000}, Layout()),
        (3584, {"rows": 5_000}, Layout()),
        (16_000, {"rows": 1_000}, Layout()),
        (3584, {"rows": 1_000, "on": "pgvector@0.6.2"}, Layout()),
        # too many to scan beside the rows, few enough to scan a copy
        (3584, {"rows": 20_000}, SCAN),
        (4006, {"rows": 20_000}, SCAN),
        (4007, {"rows": 20_000}, replace(INLINE, element="float16")),
        (4017, {"rows": 20_000}, SIGNS),
        (16_000, {"rows": 20_000}, SIGNS),
        # indexes on the whole vector
        (128, {"rows": M}, FULL),
        (384, {"rows": M, "metric": "l2"}, HALF),
        (768, {"rows": M, "metric": "ip"}, HALF),
        (1536, {"rows": M, "model": "text-embedding-3-small"}, HALF),
        (1969, {"rows": M}, HALF),
        (2000, {"rows": M, "on": "pgvector@0.6.2"}, FULL),
        (3584, {"rows": M, "model": "bge-multilingual-gemma2"}, HALF),
        (4000, {"rows": M}, HALF),
        # half precision stored, because the disk does not hold more
        (1536, {"rows": M, "disk": "10GB"}, STORED_HALF),
        (3584, {"rows": M, "disk": "20 GB"}, STORED_HALF),
        # what no index holds whole
        (4096, {"rows": M, "model": QWEN}, prefix(1024)),
        (4096, {"rows": M, "model": QWEN, "memory": "2GB"}, prefix(512)),
        (4096, {"rows": M, "model": "e5-mistral-7b-instruct"}, BINARY),
        (16_000, {"rows": M}, BINARY),
        (3584, {"rows": M, "memory": "2GB"}, BINARY),
        # before half precision was there
        (3584, {"rows": M, "on": "pgvector@0.6.2"}, projected(512, "float32")),
        (4096, {"rows": M, "on": "pgvector@0.5.1", "model": QWEN}, projected(512, "float32")),
        # nothing but lists, or lists because the graph needs more memory than there is
        (1536, {"rows": 100_000, "on": "pgvector@0.4.4"}, lists("float32", 100, 15, 1)),
        (768, {"rows": M, "memory": "2GB"}, lists("float16", 1000, 48, 2)),
        (64, {"rows": M, "memory": "500MB"}, lists("float32", 1000, 48, 1)),
        # shortened at the door: too long to store, or the disk holds no more
        (20_000, {"rows": M}, replace(HALF, shorten=Shorten("pca", 1024))),
        (
            32_768,
            {"rows": M, "nested": [16_384, 8_192, 2_048]},
            replace(HALF, shorten=Shorten("truncate", 2048)),
        ),
        (65_536, {"rows": 10_000}, replace(INLINE, shorten=Shorten("pca", 1024))),
        (4096, {"rows": M, "model": QWEN, "disk": "9GB"}, replace(HALF, shorten=Shorten("truncate", 1024))),
        (3584, {"rows": M, "disk": "9GB"}, replace(HALF, shorten=Shorten("pca", 1024))),
        # a store that can only scan
        (3584, {"rows": M, "on": "flat"}, Layout()),
        (100_000, {"rows": 100, "on": "flat"}, Layout()),
        (3584, {"rows": M, "on": "flat", "disk": "8GB"}, Layout(element="float16")),
        (
            4096,
            {"rows": M, "on": "flat", "disk": "6GB", "model": QWEN},
            Layout(element="float16", shorten=Shorten("truncate", 2048)),
        ),
        # Qdrant scans what fits the time, then walks a graph over the whole vectors
        (3, {"rows": 0, "on": "qdrant"}, Layout()),
        (3584, {"rows": 20_000, "on": "qdrant"}, Layout()),
        (3584, {"rows": 20_000, "on": "edge"}, Layout()),
        (3584, {"rows": M, "on": "qdrant"}, Layout(index=graph("float32"))),
        (3584, {"rows": M, "on": "edge"}, Layout(index=graph("float32"))),
        (65_536, {"rows": M, "on": "qdrant"}, Layout(index=graph("float32"))),
        # with less and less memory
        (3584, {"rows": M, "on": "qdrant", "memory": "8GB"}, INT8),
        (3584, {"rows": M, "on": "qdrant@1.12.0", "memory": "8GB"}, INT8),
        (3584, {"rows": M, "on": "qdrant", "memory": "2.1GB"}, TURBO4),
        (4096, {"rows": M, "on": "qdrant", "memory": "1.8GB", "model": QWEN},
         Layout(index=graph("float32", shorten=Shorten("truncate", 256)), oversample=20)),
        (3584, {"rows": M, "on": "qdrant", "memory": "1.2GB"}, TURBO2),
        (3584, {"rows": M, "on": "edge", "memory": "700MB"}, TURBO1),
        (3584, {"rows": M, "on": "qdrant@1.17.0", "memory": "700MB"}, CODES),
        (300, {"rows": M, "on": "qdrant", "memory": "350MB"}, TURBO2),
        (300, {"rows": M, "on": "qdrant", "memory": "300MB"}, Layout("float16", shorten=Shorten("pca", 128))),
        # and with less disk
        (3584, {"rows": M, "on": "qdrant", "disk": "9GB"}, Layout("float16", index=graph("float16"))),
        (3584, {"rows": M, "on": "qdrant", "disk": "6GB"},
         Layout(shorten=Shorten("pca", 1024), index=graph("float32"))),
        # too long to store
        (70_000, {"rows": M, "on": "qdrant", "nested": [4096]},
         Layout(shorten=Shorten("truncate", 4096), index=graph("float32"))),
    ],
)  # fmt: skip
def test_the_plan_is_the_one_expected(dim: int, arguments: dict[str, Any], layout: Layout) -> None:
    planned = plan(dim, **arguments)
    assert planned.layout == layout, planned.explain()


def test_a_million_gemma_vectors_get_half_precision_and_the_reason() -> None:
    planned = plan(3584, rows=M, model="BAAI/bge-multilingual-gemma2", on="pgvector")
    reasons = [one.reason for one in planned.refused]
    assert "hnsw on float32 vectors stops at 2,000 dimensions; these have 3,584" in reasons
    assert any(re.search(r"an exact scan of 1,000,000 x 3,584 takes about \d+ s; the budget is 0.1 s", one)
               for one in reasons)  # fmt: skip
    assert planned.layout.element == "float32"
    assert describe(planned.layout, 3584) == (
        "half-precision HNSW index (float16, 3,584 dims, m=16), exact re-ranking on the stored float32 "
        "vectors, 2x oversampling"
    )


def test_the_explanation_says_what_was_chosen_why_and_what_was_refused() -> None:
    text = plan(4096, rows=M, model=QWEN).explain()
    assert max(map(len, text.splitlines())) <= 88
    flowing = " ".join(text.split())
    for part in (
        "1,000,000 vectors of Qwen/Qwen3-Embedding-8B, 4,096 dimensions, cosine, on pgvector 0.8.0",
        "on the prefix (float16, 1,024 of 4,096 dims, m=16)",
        "disk: 20.0 GB (table 17.3 GB, index 2.7 GB)",
        "2.8 GB to build the index",
        "ef_search=200",
        "200 candidates are re-ranked",
        "pgvector 0.8.0 is assumed",
        "0.1 s, the default",
        "hnsw on half-precision vectors stops at 4,000 dimensions; these have 4,096",
    ):
        assert part in flowing


def test_a_plan_is_json() -> None:
    planned = plan(3584, rows=M, model="bge-multilingual-gemma2")
    data = json.loads(json.dumps(planned.to_dict()))
    assert set(data) == {
        "space", "rows", "backend", "version", "chosen", "layout", "refused", "estimates", "notes",
        "nodes", "place", "here", "others", "recall", "expected", "evidence",
    }  # fmt: skip
    assert (data["recall"], data["expected"], data["evidence"]) == (None, None, None)
    assert (data["nodes"], data["place"], data["here"], data["others"]) == (1, "pgvector 0.8.0", [], [])
    assert data["space"] == {
        "dim": 3584, "metric": "cosine", "nested": [], "model": "bge-multilingual-gemma2",
    }  # fmt: skip
    assert (data["backend"], data["version"], data["rows"]) == ("pgvector", "0.8.0", M)
    assert data["chosen"] == describe(planned.layout, 3584)
    assert Layout.from_dict(data["layout"]) == planned.layout
    assert [Layout.from_dict(one["layout"]) for one in data["refused"]] == [
        one.layout for one in planned.refused
    ]
    assert set(data["estimates"]) == {
        "table_bytes", "index_bytes", "build_memory_bytes", "serve_memory_bytes", "scan_seconds",
        "build_seconds", "query_seconds", "calibrated",
    }  # fmt: skip


def test_no_plan_lists_every_reason() -> None:
    with pytest.raises(PlanError, match=r"no layout for 1,000,000 vectors of 3,584 dimensions") as refused:
        plan(3584, rows=M, disk="10MB")
    assert "the budget is 10.0 MB" in str(refused.value)
    assert "hnsw on float32 vectors stops at 2,000 dimensions; these have 3,584" in str(refused.value)
    with pytest.raises(PlanError, match="on disk"):
        plan(3584, rows=M, disk="10MB", on="flat")


def test_a_slow_flat_plan_says_its_seconds_and_never_gives_up_dimensions_for_speed() -> None:
    planned = plan(3584, rows=10 * M, on="flat", latency=0.001)
    assert planned.layout == Layout()
    assert any(re.search(r"takes about \d+ s, the budget is 1 ms", note) for note in planned.notes)


def test_an_exact_scan_at_disk_speed_is_refused_where_memory_is_short() -> None:
    ample = plan(2000, rows=25_000, memory="16GB")
    scarce = plan(2000, rows=25_000, memory="150MB")
    assert ample.layout == INLINE
    assert scarce.layout != INLINE
    assert any("an exact scan of 25,000 x 2,000" in one.reason for one in scarce.refused)


@pytest.mark.parametrize(
    ("dim", "model", "said"),
    [
        (3584, "bge-m3", "bge-m3 is known to give vectors of 1,024 dimensions; these have 3,584"),
        (1000, "embed-v4.0", "embed-v4.0 is known to give vectors of 1,536 dimensions, or 1,024, 512, 256; "
            "these have 1,000"),
        (512, "made-up", "made-up is not in the model catalogue"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_the_dimension_is_noted(dim: int, model: str, said: str) -> None:
    planned = plan(dim, model=model)
    assert any(said in note for note in planned.notes)
    assert planned.space.nested == ()


def test_a_served_prefix_keeps_the_shorter_ones() -> None:
    planned = plan(2048, model=QWEN)
    assert planned.space.nested == (1024, 512, 256, 128, 64, 32)
    assert not any("is known to give" in note for note in planned.notes)


def test_nested_sizes_can_be_given_for_any_model() -> None:
    assert plan(5000, model="made-up", nested=[5000, 300, 600, 300]).space.nested == (600, 300)
    assert plan(1536, model="text-embedding-3-small", nested=()).space.nested == ()


def test_an_old_server_with_an_hnsw_index_is_warned_of() -> None:
    assert any("vacuum" in note for note in plan(768, rows=M, on="pgvector@0.8.2").notes)
    assert not any("vacuum" in note for note in plan(768, rows=M, on="pgvector@0.8.5").notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "expected dim of at least 1, got 0"),
        ({"dim": True}, "expected dim as a whole number, got True"),
        ({"dim": 3.5}, r"expected dim as a whole number, got 3\.5"),
        ({"dim": "3"}, "expected dim as a whole number, got '3'"),
        ({"dim": 3, "rows": -1}, "expected rows of at least 0, got -1"),
        ({"dim": 3, "metric": "dot"}, "expected the metric 'cosine', 'ip' or 'l2', got 'dot'"),
        ({"dim": 3, "latency": 0}, "expected a latency above 0, in seconds, got 0"),
        ({"dim": 3, "latency": float("nan")}, "expected a latency above 0, in seconds, got nan"),
        ({"dim": 3, "latency": True}, "expected a latency above 0, in seconds, got True"),
        ({"dim": 3, "memory": "16 parsecs"}, "expected memory in bytes or as text such as '16GB'"),
        ({"dim": 3, "memory": ""}, "expected memory in bytes or as text such as '16GB'"),
        ({"dim": 3, "disk": 0}, "expected disk above 0 bytes, got 0"),
        ({"dim": 3, "disk": "0GB"}, "expected disk above 0 bytes, got '0GB'"),
        ({"dim": 3, "disk": -5}, "expected disk of at least 0, got -5"),
        ({"dim": 3, "nested": [0]}, "expected a nested size of at least 1, got 0"),
        ({"dim": 3, "on": "oracle"}, "expected a backend .* known are edge, flat, pgvector, "
            "qdrant; got 'oracle'"),
        ({"dim": 3, "on": ["flat", "oracle"]}, "expected a backend .* got 'oracle'"),
        ({"dim": 3, "on": []}, "expected at least one backend to plan for, got none"),
        ({"dim": 3, "on": "qdrant", "nodes": 0}, "expected nodes of at least 1, got 0"),
        ({"dim": 3, "on": "qdrant", "nodes": 2.5}, r"expected nodes as a whole number, got 2\.5"),
        ({"dim": 3, "on": ["pgvector", "edge"], "nodes": 3}, "expected qdrant among the backends for a "
            "cluster of 3 nodes, got pgvector, edge: the others keep a collection on one machine"),
        ({"dim": 3, "model": 5}, "expected the model's name as text, got 5"),
    ],
)  # fmt: skip
def test_arguments_without_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(**arguments)


@pytest.mark.parametrize(
    ("text", "size"),
    [("9kB", 9e3), ("9 KiB", 9 * 2**10), ("1.5GB", 1.5e9), ("2gib", 2**31), ("5e8", None), (10**9, 1e9)],
)  # fmt: skip
def test_budgets_are_read_in_decimal_and_binary_units(text: str | int, size: float | None) -> None:
    if size is None:
        with pytest.raises(InputError, match="in bytes or as text"):
            plan(768, disk=text)
        return
    costs = plan(768, rows=100).estimates
    needed = costs.table_bytes + costs.index_bytes
    if needed > size:
        with pytest.raises(PlanError, match=re.escape(f"the budget is {human(size)}")):
            plan(768, rows=100, disk=text)
    else:
        assert plan(768, rows=100, disk=text).estimates == costs


versions = st.sampled_from(
    [
        *("flat", "pgvector@0.4.4", "pgvector@0.5.1", "pgvector@0.6.2", "pgvector@0.7.4", "pgvector@0.8.5"),
        *("qdrant@1.17.1", "qdrant@1.19.0", "edge@0.9.0"),
    ]
)
dims = st.one_of(
    st.integers(1, 70_000),
    st.sampled_from(
        [
            1,
            2,
            499,
            948,
            1969,
            2000,
            2001,
            2008,
            2009,
            4000,
            4001,
            4006,
            4007,
            4016,
            16_000,
            16_001,
            65_536,
            65_537,
        ]
    ),
)
rows = st.one_of(st.integers(0, 10**9), st.integers(0, 100_000))
metrics: st.SearchStrategy[Metric] = st.sampled_from(["cosine", "ip", "l2"])
nested = st.one_of(st.just(()), st.lists(st.integers(1, 20_000), max_size=6))
budgets = st.one_of(st.none(), st.integers(10**6, 10**13))


def attempt(dim: int, **arguments: Any) -> Plan | None:
    try:
        return plan(dim, **arguments)
    except PlanError:
        return None


@settings(deadline=None)
@given(dims, rows, metrics, versions, nested, budgets, budgets)
@example(3584, M, "cosine", "pgvector@0.6.2", (), None, None)
def test_every_plan_stands_on_its_own_reasons(
    dim: int, rows: int, metric: Metric, on: str, nested: Any, memory: int | None, disk: int | None
) -> None:
    arguments = {
        "rows": rows, "metric": metric, "on": on, "nested": nested, "memory": memory, "disk": disk,
    }  # fmt: skip
    planned = attempt(dim, **arguments)
    if planned is None:
        return
    assert planned == plan(dim, **arguments)
    known = limits(on)
    assert known.objection(planned.space, planned.layout) is None
    costs = estimate(planned.space, planned.layout, rows=rows, limits=known, memory=memory)
    assert costs == planned.estimates
    assert disk is None or costs.table_bytes + costs.index_bytes <= disk
    assert not known.indexed or costs.scan_seconds <= 0.1
    index = planned.layout.index
    if index is not None and index.kind != "scan":
        assert memory is None or costs.build_memory_bytes <= memory
        # enough candidates for ten hits, and no more than the index hands out
        assert index.kind != "hnsw" or 10 * planned.layout.oversample <= index.ef_search <= 1000
        assert index.kind != "ivfflat" or 1 <= index.probes <= index.lists
    for one in planned.refused:
        assert re.search(r"\d", one.reason) or "Matryoshka" in one.reason
    assert planned.layout not in [one.layout for one in planned.refused]
    assert json.loads(json.dumps(planned.to_dict()))["rows"] == rows
    assert max(map(len, planned.explain().splitlines())) <= 88


@settings(deadline=None)
@given(dims, rows, versions, budgets, st.floats(1e-4, 100), st.floats(1e-4, 100))
def test_more_time_never_gives_a_less_exact_layout(
    dim: int, rows: int, on: str, memory: int | None, one: float, other: float
) -> None:
    short, long = (
        attempt(dim, rows=rows, on=on, memory=memory, latency=latency) for latency in sorted((one, other))
    )
    if short is None:
        return
    assert long is not None
    # candidates come in order of exactness
    order = list(candidates(short.space, rows, short.limits))
    assert order.index(long.layout) <= order.index(short.layout)


@settings(deadline=None)
@given(dims, rows, versions, nested)
def test_no_candidate_comes_twice(dim: int, rows: int, on: str, nested: list[int]) -> None:
    sizes = tuple(sorted({size for size in nested if size < dim}, reverse=True))
    order = list(candidates(Space(dim, nested=sizes), rows, limits(on)))
    assert len(order) == len(set(order))


@settings(deadline=None)
@given(dims, rows, st.integers(1, 40), budgets)
def test_a_cluster_holds_at_least_what_one_of_its_machines_would(
    dim: int, rows: int, nodes: int, memory: int | None
) -> None:
    alone = attempt(dim, rows=rows, on="qdrant", memory=memory)
    shared = attempt(dim, rows=rows, on="qdrant", memory=memory, nodes=nodes)
    if alone is None:
        return
    assert shared is not None
    assert shared.limits.nodes == nodes
    spread = shared.layout.spread
    assert (spread is None) == (nodes == 1)
    if spread is None:
        assert shared == alone
        return
    assert spread.shards % nodes == 0
    assert spread.shards >= 2 * nodes
    assert rows / spread.shards <= 20_000_000
    assert (spread.replication, spread.write_consistency) == (2, 1)
    order = list(candidates(alone.space, rows, alone.limits))
    assert order.index(replace(shared.layout, spread=None)) <= order.index(alone.layout)


def test_more_rows_than_a_shard_should_hold_make_more_shards() -> None:
    for rows, shards in ((0, 6), (120_000_000, 6), (121_000_000, 9), (10**9, 51)):
        spread = plan(64, rows=rows, on="qdrant", nodes=3).layout.spread
        assert spread == Spread(shards, 2, 1)


def test_a_cluster_is_explained_in_words_and_its_budgets_are_of_each_machine() -> None:
    single = plan(1024, rows=20 * M, on="qdrant", memory="80GB")
    assert single.layout == INT8
    assert any(
        one.reason
        == "building its index takes about 128 GB of memory; the budget is 80.0 GB; a cluster of 4 "
        "such machines would hold it, each shard kept twice"
        for one in single.refused
    ), single.explain()
    # as many as the refusal names hold it, one fewer do not
    planned = plan(1024, rows=20 * M, on="qdrant", memory="80GB", nodes=4)
    assert planned.layout == Layout(index=graph("float32"), spread=Spread(8, 2, 1))
    assert plan(1024, rows=20 * M, on="qdrant", memory="80GB", nodes=3).layout.index == graph("int8")
    whole = estimate(single.space, Layout(index=graph("float32")), rows=20 * M, limits=single.limits)
    assert planned.estimates.serve_memory_bytes == pytest.approx(whole.serve_memory_bytes / 2)
    assert describe(planned.layout, 1024) == (
        "HNSW index (float32, 1,024 dims, m=16), spread in 8 shards, each kept twice"
    )
    text = " ".join(planned.explain().split())
    for part in (
        "on qdrant 1.19.0, 4 machines",
        "it is spread over 4 machines in 8 shards, each kept twice",
        "disk on each machine: 43",
        "memory on each machine:",
        "8 let it grow to 16 machines",
    ):
        assert part in text
    data = planned.to_dict()
    assert data["nodes"] == 4
    assert data["layout"]["spread"] == {"shards": 8, "replication": 2, "write_consistency": 1}
    assert Layout.from_dict(json.loads(json.dumps(data["layout"]))) == planned.layout


def test_machines_share_a_scan() -> None:
    one = plan(1024, rows=150_000, on="qdrant")
    four = plan(1024, rows=150_000, on="qdrant", nodes=4)
    assert one.estimates.scan_seconds == pytest.approx(4 * four.estimates.scan_seconds)
    assert plan(1024, rows=500_000, on="qdrant").layout.index == graph("float32")
    assert plan(1024, rows=500_000, on="qdrant", nodes=4).layout == Layout(spread=Spread(8, 2, 1))


def test_qdrants_own_habits_are_noted() -> None:
    notes = plan(3584, rows=M, on="qdrant", memory="8GB").notes
    assert any("less than 10,000 KB, here 714 vectors" in note for note in notes)
    assert any("quantised copies are made when the index is built" in note for note in notes)
    assert not any("10,000 KB" in note for note in plan(3584, rows=1000, on="qdrant").notes)
    assert not any("hnsw vacuum" in note for note in plan(3584, rows=M, on="qdrant@1.19.0").notes)


# --- several places ----------------------------------------------------------------------------------

OLD = "pgvector@0.6.2"


@pytest.mark.parametrize(
    ("dim", "rows", "on", "chosen"),
    [
        # what pgvector indexes whole stays where it was put first
        (768, M, ["pgvector", "qdrant", "flat"], "pgvector 0.8.0"),
        (2000, M, [OLD, "qdrant", "flat"], "pgvector 0.6.2"),
        (3584, M, ["pgvector@0.8.5", "qdrant"], "pgvector 0.8.5"),
        (768, M, ["qdrant", "pgvector"], "qdrant 1.19.0"),
        (768, 10_000, ["flat", "pgvector", "qdrant"], "flat 0.1.0"),
        (2000, 10_000, ["edge", "flat"], "edge 0.9.0"),
        # what it indexes in part goes where it is searched whole
        (2001, M, [OLD, "qdrant", "flat"], "qdrant 1.19.0"),
        (3584, 100_000, [OLD, "qdrant", "flat"], "qdrant 1.19.0"),
        (3584, 100_000, [OLD, "flat", "edge"], "edge 0.9.0"),
        (4096, M, ["pgvector", "qdrant"], "qdrant 1.19.0"),
        (20_000, M, ["pgvector", "qdrant"], "qdrant 1.19.0"),
        # without such a place: flat while a scan fits the time, else in part
        (3584, 50_000, [OLD, "flat"], "flat 0.1.0"),
        (3584, 100_000, [OLD, "flat"], "pgvector 0.6.2"),
        (768, M, ["flat", OLD], "pgvector 0.6.2"),
        # a place where nothing fits does not count
        (70_000, 1_000, ["qdrant", "flat"], "flat 0.1.0"),
    ],
)
def test_of_several_places_the_first_that_serves_most_exactly_is_chosen(
    dim: int, rows: int, on: list[str], chosen: str
) -> None:
    planned = plan(dim, rows=rows, on=on)
    assert planned.place == chosen == f"{planned.limits.backend} {planned.limits.version}"
    # its plan is the one that it would have alone
    alone = plan(dim, rows=rows, on=planned.limits)
    assert replace(planned, here=(), others=()) == alone
    assert [one.place for one in planned.others] == [
        f"{limits(one).backend} {limits(one).version}" for one in on if limits(one) != planned.limits
    ]
    for other, name in zip(planned.others, [one for one in on if limits(one) != planned.limits], strict=True):
        assert other.layout == plan(dim, rows=rows, on=name).layout
        assert any(re.search(r"\d", reason) for reason in other.reasons), other


def test_the_explanation_says_why_here_and_why_not_elsewhere_with_numbers() -> None:
    planned = plan(3584, rows=100_000, on=[OLD, "qdrant", "flat"])
    assert planned.here == (
        "qdrant 1.19.0 searches the whole vectors; no place named before it serves as exactly",
        "its hnsw takes up to 65,536 dimensions; these have 3,584",
    )
    old, flat = planned.others
    assert old.layout == projected(512, "float32")
    assert old.reasons[0].startswith(
        "it searches a part of what tells the vectors apart, and re-ranks on the whole, 2."
    )
    assert "halfvec needs pgvector 0.7.0, this is 0.6.2" in old.reasons
    assert "hnsw on float32 vectors stops at 2,000 dimensions; these have 3,584" in old.reasons
    assert flat.layout == Layout()
    assert flat.reasons == ("it has no index: one search takes about 0.18 s; the budget is 0.1 s",)
    text = planned.explain()
    assert max(map(len, text.splitlines())) <= 88
    flowing = " ".join(text.split())
    for part in (
        "Why here - qdrant 1.19.0 searches",
        "Elsewhere - pgvector 0.6.2: HNSW index on a PCA",
        "- flat 0.1.0: exact scan of float32 vectors (3,584 dims) - it has no index",
    ):
        assert part in flowing
    data = json.loads(json.dumps(planned.to_dict()))
    assert data["place"] == "qdrant 1.19.0"
    assert data["here"] == list(planned.here)
    assert [(one["place"], one["best"], one["reasons"]) for one in data["others"]] == [
        (one.place, best(one, 3584), list(one.reasons)) for one in (old, flat)
    ]
    assert Layout.from_dict(data["others"][0]["layout"]) == old.layout


def test_a_place_that_serves_as_well_is_said_to_have_been_named_later() -> None:
    planned = plan(768, rows=M, on=["pgvector", "qdrant"])
    assert planned.here[0] == (
        "pgvector 0.8.0 searches the whole vectors; so would others, and it was named first"
    )
    [other] = planned.others
    assert re.fullmatch(
        r"it would serve as exactly \(3\.\d GB on disk, \d\.\d GB at the chosen place\), and was named later",
        other.reasons[0],
    )


def test_a_budget_can_move_a_collection() -> None:
    on = ["pgvector@0.8.5", "qdrant"]
    assert plan(3584, rows=M, on=on).place == "pgvector 0.8.5"
    planned = plan(3584, rows=M, on=on, memory="4.5GB")
    assert (planned.place, planned.layout) == ("qdrant 1.19.0", INT8)
    assert any("the budget is 4.5 GB" in reason for reason in planned.others[0].reasons)


@pytest.mark.parametrize(
    ("disk", "there", "here"),
    [("20GB", STORED_HALF, Layout(index=graph("float32"))),
     ("9GB", replace(HALF, shorten=Shorten("pca", 1024)), Layout("float16", index=graph("float16")))],
)  # fmt: skip
def test_whole_precision_goes_before_half_and_half_before_what_is_cut(
    disk: str, there: Layout, here: Layout
) -> None:
    planned = plan(3584, rows=M, on=["pgvector@0.8.5", "qdrant"], disk=disk)
    assert (planned.place, planned.layout) == ("qdrant 1.19.0", here)
    assert planned.others[0].layout == there


def test_a_place_where_nothing_fits_says_what_was_refused() -> None:
    planned = plan(70_000, rows=1_000, on=["qdrant", "flat"], disk="300MB")
    assert planned.place == "flat 0.1.0"
    [qdrant] = planned.others
    assert qdrant.layout is not None
    planned = plan(3584, rows=M, on=["pgvector", "flat"], disk="350MB")
    assert planned.place == "flat 0.1.0"
    [pgvector] = planned.others
    assert pgvector.layout is None
    assert re.fullmatch(r"nothing fits there; \d+ layouts were refused", pgvector.reasons[0])
    assert any("the budget is 350 MB" in reason for reason in pgvector.reasons)
    assert "- pgvector 0.8.0: nothing" in planned.explain()


def test_where_no_place_fits_the_reasons_of_all_are_listed() -> None:
    with pytest.raises(
        PlanError,
        match=r"(?s)^no layout for 1,000,000 vectors of 3,584 dimensions on pgvector "
        r"0\.8\.0 fits; .*\nand none on qdrant 1\.19\.0 fits; .*the budget is 10\.0 MB",
    ):
        plan(3584, rows=M, on=["pgvector", "qdrant"], disk="10MB")


def test_places_have_the_names_that_they_are_given_and_the_chosen_is_counted_from_0() -> None:
    places = [("postgresql://old", limits(OLD)), ("qdrant://near", limits("qdrant@1.19.0"))]
    number, planned = plan_places(3584, places=places, wishes={"rows": M})
    assert (number, planned.place, planned.others[0].place) == (1, "qdrant://near", "postgresql://old")
    assert planned.here[0].startswith("qdrant://near searches the whole vectors")
    number, planned = plan_places(1536, places=places, wishes={"rows": M})
    assert (number, planned.place, planned.others[0].place) == (0, "postgresql://old", "qdrant://near")
    number, planned = plan_places(1536, places=places[1:], wishes={"rows": M})
    assert (number, planned.place, planned.here, planned.others) == (0, "qdrant://near", (), ())


def test_a_server_that_knows_its_machines_needs_not_be_told() -> None:
    three = replace(limits("qdrant@1.19.0"), nodes=3)
    assert plan(768, rows=M, on=three) == plan(768, rows=M, on="qdrant@1.19.0", nodes=3)
    assert plan(768, rows=M, on=three, nodes=1).layout.spread is None
    assert plan(768, rows=M, on=[three, "pgvector"]).layout.spread == Spread(6, 2, 1)


@settings(deadline=None)
@given(dims, rows, st.lists(versions, min_size=2, max_size=4, unique=True), budgets, budgets)
def test_the_order_of_places_decides_among_equals_alone(
    dim: int, rows: int, on: list[str], memory: int | None, disk: int | None
) -> None:
    alone = [attempt(dim, rows=rows, on=one, memory=memory, disk=disk) for one in on]
    planned = attempt(dim, rows=rows, on=on, memory=memory, disk=disk)
    if planned is None:
        assert alone == [None] * len(on)
        return
    assert len(planned.others) == len(on) - 1
    assert replace(planned, here=(), others=()) in alone
    assert max(map(len, planned.explain().splitlines())) <= 88
    assert json.loads(json.dumps(planned.to_dict()))["place"] == planned.place
    # named first, it is chosen as well: none serves more exactly
    name = next(one for one in on if limits(one).backend == planned.limits.backend
                and limits(one).version == planned.limits.version)  # fmt: skip
    again = plan(dim, rows=rows, on=[name, *(one for one in on if one != name)], memory=memory, disk=disk)
    assert again.place == planned.place


def test_what_keeps_the_whole_vector_is_preferred_to_what_cuts_it() -> None:
    order = list(candidates(Space(4096, nested=(1024, 512)), M, limits("pgvector")))
    cut = [layout.shorten is not None for layout in order]
    assert cut == sorted(cut)
    assert any(cut)


def test_limits_of_a_real_server_serve_as_well_as_their_name() -> None:
    found: Limits = limits("pgvector@0.8.5")
    assert plan(3584, rows=M, on=found) == plan(3584, rows=M, on="pgvector@0.8.5")


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(), "exact scan of float32 vectors (3,584 dims)"),
        (
            replace(INLINE, element="float16"),
            "exact scan of float16 vectors (3,584 dims) inline in the table's pages",
        ),
        (FULL, "HNSW index (float32, 3,584 dims, m=16)"),
        (
            STORED_HALF,
            "half-precision HNSW index (float16, 3,584 dims, m=16), vectors stored as float16",
        ),
        (
            SCAN,
            "scan of a half-precision copy (float16, 3,584 dims) inline in the table's pages, exact "
            "re-ranking on the stored float32 vectors, 4x oversampling",
        ),
        (
            BINARY,
            "binary HNSW index (bit, 3,584 dims, m=16), exact re-ranking on the stored float32 vectors, 40x "
            "oversampling",
        ),
        (
            projected(512),
            "half-precision HNSW index on a PCA projection (float16, 512 of 3,584 dims, m=16), exact "
            "re-ranking on the stored float32 vectors, 20x oversampling",
        ),
        (
            replace(lists("float16", 100, 15, 1), element="float16", shorten=Shorten("truncate", 512)),
            "vectors cut to the prefix of 512 dims at the door, half-precision IVFFlat index "
            "(float16, 512 dims, 100 lists), vectors stored as float16",
        ),
    ],
)
def test_layouts_have_words(layout: Layout, words: str) -> None:
    assert describe(layout, 3584) == words


def test_numbers_are_short() -> None:
    assert [human(size) for size in (0, 999, 1000, 8.19e9, 123.4e9, 999.9e9, 2e15, 5e18)] == [
        "0 bytes", "999 bytes", "1.0 kB", "8.2 GB", "123 GB", "1.0 TB", "2.0 PB", "5,000 PB",
    ]  # fmt: skip
    taken = (0.0, 3.21e-3, 0.1, 0.062, 2.96, 9.96, 15.3, 119.4, 120, 3_914, 7_199, 7_200, 15_300, 7.2e6)
    assert [lasting(seconds) for seconds in taken] == [
        "0 s", "3.2 ms", "0.1 s", "0.062 s", "3 s", "10 s", "15 s", "119 s", "2 min", "65 min", "120 min",
        "2.0 h", "4.2 h", "2,000.0 h",
    ]  # fmt: skip


def test_models_are_found_in_any_case_and_with_their_organisation() -> None:
    for name in ("bge-m3", "BAAI/bge-m3", "baai/BGE-M3", " bge-m3 ", "bge-m3:latest"):
        found = models.find(name)
        assert found is not None
        assert (found.name, found.dim, found.nested) == ("bge-m3", 1024, ())
    assert models.find("bge-m4") is None
    assert models.find("") is None


def test_the_catalogue_is_in_order() -> None:
    assert len(models.MODELS) >= 40
    assert len({model.name.lower() for model in models.MODELS}) == len(models.MODELS)
    for model in models.MODELS:
        assert model.source
        assert models.find(model.name) is model
        assert list(model.nested) == sorted(set(model.nested), reverse=True)
        assert all(0 < size < model.dim for size in model.nested)


def test_nested_sizes_are_those_below_the_vectors_that_come() -> None:
    assert models.nested_sizes("jina-embeddings-v3", dim=512) == (256, 128, 64, 32)
    assert models.nested_sizes("jina-embeddings-v3") == (768, 512, 256, 128, 64, 32)
    assert models.nested_sizes("jina-embeddings-v3", dim=500) == ()
    assert models.nested_sizes("unheard of") == models.nested_sizes(None) == ()


def test_planning_loads_neither_numpy_nor_a_driver() -> None:
    code = (
        "import sys, vecbridge.planner as p; p.plan(3584, rows=10**6, model='bge-m3').explain(); "
        "p.plan(3584, on=['pgvector', 'qdrant', 'flat'], nodes=3).explain(); "
        "print([name for name in ('numpy', 'psycopg', 'pgvector', 'sklearn', 'httpx', 'typer', 'rich', "
        "'qdrant_client', 'qdrant_edge') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
