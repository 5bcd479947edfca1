"""What a report says is what was measured: recall with its interval, latencies, filters, drift, and age."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from servers import quick_place

import vecbridge
from vecbridge import Index, Layout, Shorten, evaluate
from vecbridge.backends import Table
from vecbridge.errors import FilterError
from vecbridge.evaluate import Report
from vecbridge.manifest import Tuned
from vecbridge.recall import Recall, mean_recall
from vecbridge.testing import data

if TYPE_CHECKING:
    from vecbridge.types import Floats

ROWS, DIM = 600, 24
VECTORS = data.clustered(ROWS, DIM, seed=1)
METADATA = [{"row": row, "tenth": row % 10} for row in range(ROWS)]
COARSE = Layout(index=Index("scan", "bit"), oversample=2)


@pytest.fixture(scope="module")
def coarse() -> Iterator[Table]:
    """Records that are searched by their signs, so that much is missed."""
    with (
        TemporaryDirectory(prefix="vecbridge-", dir=quick_place()) as folder,
        vecbridge.connect(f"pgvector:{folder}/pg") as store,
    ):
        papers = store.create("coarse", dim=DIM, layout=COARSE)
        papers.upsert(data.names(ROWS), VECTORS, metadata=METADATA)
        yield papers._table


def report(table: Table, **given: Any) -> Report:
    how: dict[str, Any] = {"k": 10, "queries": None, "sample": 60, "seed": 0, "seconds": None}
    return evaluate.evaluate(table, **how | given)


def shares(table: Table, queries: Floats, own: list[int | None], rows: list[int], where: Any) -> list[float]:
    """The recall@10 of each query, by comparing with every record of `rows` but its own here."""
    found = []
    condition = None if where is None else vecbridge.filters.parse(where)
    for query, left_out in zip(queries, own, strict=True):
        among = [row for row in rows if row != left_out]
        right = {among[place] for place in np.argsort(-(VECTORS[among] @ query))[:10]}
        hits = table.search(query[None], None, k=11, where=condition, exact=False)[0]
        got = [int(hit.id[3:]) for hit in hits if left_out is None or hit.id != data.names(ROWS)[left_out]]
        found.append(len(right & set(got[:10])) / len(right))
    return found


def test_recall_comes_with_the_interval_of_its_queries(coarse: Table) -> None:
    made = report(coarse)
    batch = coarse.sample(60, seed=0)
    own: list[int | None] = [int(name[3:]) for name in batch.ids]
    expected = shares(coarse, batch.vectors, own, list(range(ROWS)), None)
    assert made.recall == pytest.approx(np.mean(expected))
    assert 0.2 < made.recall < 0.95
    recall = mean_recall(expected, 10)
    assert (made.low, made.high) == pytest.approx((recall.low, recall.high))
    assert made.low < made.recall < made.high
    assert (made.queries, made.rows, made.matching, made.selectivity) == (60, ROWS, ROWS, 1.0)
    assert f"recall@10 {made.recall:.3f} ({made.low:.3f} to {made.high:.3f}) on 60 queries" in str(made)
    # fewer queries tell less
    few = report(coarse, sample=10)
    assert few.high - few.low > made.high - made.low


def test_latencies_are_ordered_as_their_names_say(coarse: Table) -> None:
    made = report(coarse)
    assert 0 < made.p50_ms <= made.p95_ms <= made.p99_ms
    assert 0 < made.exact_p50_ms <= made.exact_p95_ms <= made.exact_p99_ms
    assert f"p99 {made.p99_ms:.1f} ms" in str(made)


@pytest.mark.parametrize("where", [{"tenth": 3}, {"row": {"$lt": 5}}, {"tenth": {"$ne": 0}}], ids=str)
def test_a_filter_is_measured_with_records_that_do_not_match_as_queries_too(
    coarse: Table, where: dict[str, Any]
) -> None:
    made = report(coarse, where=where)
    condition = vecbridge.filters.parse(where)
    rows = [row for row in range(ROWS) if vecbridge.filters.matches(condition, METADATA[row])]
    batch = coarse.sample(60, seed=0)
    own: list[int | None] = [int(name[3:]) for name in batch.ids]
    assert len(set(rows) & set(own)) not in (0, 60) or len(rows) < 10
    assert made.recall == pytest.approx(np.mean(shares(coarse, batch.vectors, own, rows, where)))
    assert (made.where, made.matching) == (where, len(rows))
    assert made.selectivity == pytest.approx(len(rows) / ROWS)
    assert made.short == 0
    assert f"among the {len(rows)} of 600 records ({len(rows) / ROWS:.2%}) that match the filter" in str(made)
    assert json.loads(json.dumps(made.to_dict()))["where"] == where


def test_given_queries_are_measured_under_a_filter(coarse: Table) -> None:
    queries = data.clustered(20, DIM, seed=7)
    where = {"tenth": 3}
    made = report(coarse, queries=queries, where=where)
    rows = [row for row in range(ROWS) if row % 10 == 3]
    own: list[int | None] = [None] * 20
    found = []
    for query in queries:
        right = {rows[place] for place in np.argsort(-(VECTORS[rows] @ query))[:10]}
        condition = vecbridge.filters.parse(where)
        hits = coarse.search(query[None], None, k=10, where=condition, exact=False)[0]
        found.append(len(right & {int(hit.id[3:]) for hit in hits}) / 10)
    assert made.recall == pytest.approx(np.mean(found))
    assert (made.source, made.queries) == ("given", len(own))


def test_a_filter_that_nothing_matches_leaves_nothing_to_measure(coarse: Table) -> None:
    made = report(coarse, where={"row": -1})
    assert (made.queries, made.matching, made.selectivity) == (0, 0, 0.0)
    assert (made.low, made.high) == (0.0, 1.0)
    assert str(made) == "nothing to measure: no record matches the filter"


def test_a_filter_with_a_mistake_is_refused(coarse: Table) -> None:
    with pytest.raises(FilterError, match=r"unknown operator '\$near'"):
        report(coarse, where={"row": {"$near": 3}})


def test_an_empty_collection_has_nothing_to_measure_with_or_without_filter(tmp_path: Path) -> None:
    with vecbridge.connect(f"flat:{tmp_path}") as store:
        papers = store.create("papers", dim=DIM)
        made = report(papers._table)
        assert str(made) == "nothing to measure: no query has anything to find"
        assert (made.rows, made.selectivity) == (0, 1.0)
        assert "no record matches" in str(report(papers._table, where={"row": 1}))


def test_time_ends_the_measuring_and_at_least_one_query_is_asked(coarse: Table) -> None:
    made = report(coarse, seconds=0)
    assert made.queries == 1
    assert made.low < 0.5 or made.high - made.low > 0.3


def test_a_collection_that_grew_by_half_since_it_was_tuned_is_to_be_tuned_again(tmp_path: Path) -> None:
    with vecbridge.connect(f"flat:{tmp_path}") as store:
        papers = store.create("papers", dim=DIM)
        table = papers._table
        papers.upsert(data.names(200), VECTORS[:200])
        assert report(table).tuned is None
        tuned = Tuned(0.95, 10, Recall(1.0, 0.9, 1.0, 40), rows=200, held_out=True, seed=0)
        table.keep(replace(table.manifest, recall=0.95, tuned=tuned))
        papers.upsert(data.names(99, start=200), VECTORS[200:299])
        made = report(table)
        assert (made.tuned, made.outgrown) == (tuned, False)
        assert "tune again" not in str(made)
        papers.upsert(data.names(1, start=299), VECTORS[299:300])
        made = report(table)
        assert made.outgrown
        assert "tuned when there were 200 records, now there are 300: tune again" in str(made)
        assert json.loads(json.dumps(made.to_dict()))["tuned"]["rows"] == 200


def test_vectors_that_no_longer_fit_the_projection_are_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    dim, axes = 64, np.linalg.qr(np.random.default_rng(3).standard_normal((64, 64)))[0]

    def along(first: int, n: int) -> Floats:
        """Vectors that lie along eight axes but for a little noise."""
        noise = 0.05 * rng.standard_normal((n, dim))
        return np.ascontiguousarray(rng.standard_normal((n, 8)) @ axes[first : first + 8] + noise, np.float32)

    layout = Layout(index=Index("hnsw", shorten=Shorten("pca", 8), ef_search=100), oversample=4)
    with vecbridge.connect(f"qdrant:{tmp_path}") as store:
        papers = store.create("papers", dim=dim, layout=layout, sample=along(0, 600))
        papers.upsert(data.names(300), along(0, 300))
        papers.build_index()
        made = report(papers._table)
        assert made.drift is not None
        assert not made.drift.drifted
        assert str(made.drift) not in str(made)
        papers.upsert(data.names(300, start=300), along(40, 300))
        drifted = report(papers._table)
        assert drifted.drift is not None
        assert drifted.drift.drifted
        assert drifted.drift.kept < made.drift.kept
        assert str(drifted.drift) in str(drifted)
        # what is looked at is what is stored, whatever is asked
        asked = report(papers._table, queries=along(0, 30))
        assert asked.drift is not None
        assert asked.drift.drifted
        assert json.loads(json.dumps(drifted.to_dict()))["drift"]["drifted"] is True


def test_a_query_across_the_projection_is_compared_with_all(tmp_path: Path) -> None:
    vectors = np.zeros((60, 8), np.float32)
    vectors[:, :4] = np.random.default_rng(0).standard_normal((60, 4))
    layout = Layout(index=Index("hnsw", shorten=Shorten("pca", 4), ef_search=100), oversample=2)
    with vecbridge.connect(f"qdrant:{tmp_path}") as store:
        papers = store.create("papers", dim=8, layout=layout, sample=vectors)
        papers.upsert(data.names(60), vectors)
        papers.build_index()
        across = np.zeros((1, 8), np.float32)
        across[0, 7] = 1.0
        made = report(papers._table, queries=across, k=3)
    assert (made.recall, made.queries, made.short) == (1.0, 1, 0)
