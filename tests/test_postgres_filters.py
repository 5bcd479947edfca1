"""Filtered searches of indexed pgvector collections: when the index is passed over, and what they find."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import psycopg
import pytest

from vecbridge.backends.postgres import Postgres, Table, choice, connect, sql
from vecbridge.backends.postgres.choice import Probe, exact_is_cheaper
from vecbridge.backends.postgres.filters import compile
from vecbridge.filters import parse
from vecbridge.manifest import Manifest
from vecbridge.types import Batch, Index, Layout, Space

ROWS, DIM = 3_000, 16


def papers(index: Index, *, dim: int = DIM) -> Manifest:
    return Manifest("papers", Space(dim, "l2"), Layout(index=index), rows=ROWS)


def passed_over(share: float, *, rows: int, index: Index | None = None, operands: int = 0) -> bool:
    probe = Probe(1_000 / rows, 1_000, round(share * 1_000))
    manifest = papers(index or Index("hnsw"), dim=256)
    return exact_is_cheaper(manifest, probe, k=10, candidates=40, operands=operands)


@pytest.mark.parametrize("index", [Index("hnsw"), Index("ivfflat", lists=20, probes=4)])
def test_the_index_is_passed_over_only_where_few_rows_match(index: Index) -> None:
    assert [passed_over(share, rows=20_000, index=index) for share in (1.0, 0.5, 0.1, 0.0)] == [
        False,
        False,
        False,
        True,
    ]


def test_the_index_is_kept_where_there_are_too_many_rows_to_read() -> None:
    assert passed_over(0.002, rows=20_000)
    assert not passed_over(0.002, rows=choice.LARGEST)


def test_the_index_is_passed_over_where_it_would_give_up_before_it_has_found_k() -> None:
    # 4 in 10,000 of 100,000 rows: 20,000 rows passed by hold 8
    probe = Probe(0.1, 10_000, 4)
    manifest = papers(Index("hnsw"), dim=256)
    assert exact_is_cheaper(manifest, probe, k=10, candidates=40, operands=0)
    assert not exact_is_cheaper(manifest, probe, k=1, candidates=40, operands=0)


def test_a_filter_with_many_operands_makes_reading_every_row_dearer_and_the_sample_smaller() -> None:
    assert passed_over(0.004, rows=20_000, operands=1)
    assert not passed_over(0.004, rows=20_000, operands=1_000)
    assert choice.sample(0) == 500
    assert choice.sample(1) > choice.sample(1_000) > choice.sample(100_000) == 1


def test_a_sample_without_a_match_does_not_mean_that_there_is_none() -> None:
    assert 0 < Probe(0.5, 500, 0).share < 1 / 500
    assert 0 < Probe(1.0, 0, 0).share <= 1
    assert Probe(0.5, 500, 0).rows == 1_000


@pytest.fixture
def store(pg: str) -> Iterator[Postgres]:
    backend = connect(pg)
    yield backend
    backend.close()


def filled(store: Postgres, index: Index) -> tuple[Table, Batch]:
    draw = np.random.default_rng(3)
    # ten crowds, so that a filter on a crowd matches what is far from most queries
    centres = draw.normal(size=(10, DIM)) * 4
    crowd = draw.integers(0, 10, ROWS)
    matrix = (centres[crowd] + draw.normal(size=(ROWS, DIM))).astype(np.float32)
    ids = [f"r{row:05d}" for row in range(ROWS)]
    metadata = [
        {"order": int(order), "crowd": int(crowd[row])} for row, order in enumerate(draw.permutation(ROWS))
    ]
    batch = Batch(ids, matrix, [None] * ROWS, metadata, [None] * ROWS)
    table = store.create(papers(index))
    table.write(batch)
    table.build_index(None)
    return table, batch


def scans(url: str) -> int:
    """How often the search index has been read, once connections that are closing have reported it."""
    with psycopg.connect(url, autocommit=True) as connection:
        end = time.monotonic() + 30
        while connection.execute(
            "SELECT FROM pg_stat_activity "
            "WHERE application_name = 'vecbridge' AND datname = current_database()"
        ).fetchone():
            assert time.monotonic() < end, "a closed connection is still there after 30 s"
            time.sleep(0.01)
        row = connection.execute(
            "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'vecbridge_papers$idx'"
        ).fetchone()
    assert row is not None
    return int(row[0])


def nearest(batch: Batch, query: Any, rows: list[int], k: int) -> list[str]:
    far = np.linalg.norm(batch.vectors[rows] - query, axis=1)
    return [batch.ids[rows[place]] for place in np.argsort(far, kind="stable")[:k]]


@pytest.mark.parametrize("index", [Index("hnsw"), Index("ivfflat", lists=20, probes=8)])
@pytest.mark.parametrize("matching", [0, 3, 15, 300, 2_999])
def test_a_filtered_search_finds_k_rows_wherever_k_match(
    store: Postgres, index: Index, matching: int
) -> None:
    table, batch = filled(store, index)
    where = {"order": {"$lt": matching}}
    rows = [row for row, data in enumerate(batch.metadata) if data["order"] < matching]
    queries = batch.vectors[:20]
    found = table.search(queries, None, k=10, where=parse(where), exact=False)
    same = 0
    for query, hits in zip(queries, found, strict=True):
        assert len(hits) == min(10, matching)
        assert {hit.id for hit in hits} <= {batch.ids[row] for row in rows}
        same += len({hit.id for hit in hits} & set(nearest(batch, query, rows, 10)))
    assert same >= 0.95 * 20 * min(10, matching)


def test_an_index_finds_nearly_all_where_what_matches_is_far_from_the_queries(store: Postgres) -> None:
    table, batch = filled(store, Index("hnsw"))
    rows = [row for row, data in enumerate(batch.metadata) if data["crowd"] == 4]
    others = [row for row, data in enumerate(batch.metadata) if data["crowd"] != 4]
    queries = batch.vectors[others[:40]]
    found = table.search(queries, None, k=10, where=parse({"crowd": 4}), exact=False)
    same = sum(
        len({hit.id for hit in hits} & set(nearest(batch, query, rows, 10)))
        for query, hits in zip(queries, found, strict=True)
    )
    # 0.82 with a scan that ends at k
    assert same >= 0.95 * 400


def test_the_index_is_read_for_a_filter_that_half_match_and_not_for_one_that_none_matches(pg: str) -> None:
    with closing(connect(pg)) as store:
        filled(store, Index("hnsw"))
    read = [scans(pg)]
    for order in (0, ROWS // 2):
        with closing(connect(pg)) as store:
            where = parse({"order": {"$lt": order}})
            store.open("papers").search(vectors(), None, k=10, where=where, exact=False)
        read.append(scans(pg))
    none, half = np.diff(read)
    assert none == 0
    assert half > 0


def vectors() -> Any:
    return np.random.default_rng(1).normal(size=(3, DIM)).astype(np.float32)


@pytest.mark.parametrize("analysed", [True, False])
def test_a_probe_sees_the_share_of_rows_that_match(store: Postgres, pg: str, *, analysed: bool) -> None:
    table, batch = filled(store, Index("hnsw"))
    condition, values = compile(parse({"crowd": 4}))
    with psycopg.connect(pg, autocommit=True) as connection:
        if not analysed:
            connection.execute("UPDATE pg_class SET reltuples = -1 WHERE relname = 'vecbridge_papers'")
        density = choice.density(table.manifest)

        def probe(*, sample: int, most: int) -> tuple[Any, ...] | None:
            text = sql.probe(
                table.manifest, table.place, where=condition, density=density, sample=sample, most=most
            )
            return connection.execute(text, values).fetchone()

        part = probe(sample=1_000, most=100_000)
        assert part is not None
        seen = Probe(*part)
        assert 600 < seen.seen < 1_500
        assert seen.rows == pytest.approx(ROWS, rel=0.4)
        share = sum(data["crowd"] == 4 for data in batch.metadata) / ROWS
        assert seen.share == pytest.approx(share, abs=0.05)
        assert probe(sample=1_000, most=100_000) == part
        whole = probe(sample=100_000, most=100_000)
        assert whole == (1.0, ROWS, round(share * ROWS))
        assert probe(sample=1_000, most=ROWS // 2) is None


def test_an_empty_table_is_probed_and_searched(store: Postgres) -> None:
    table = store.create(papers(Index("hnsw")))
    assert table.search(vectors(), None, k=10, where=parse({"crowd": 4}), exact=False) == [[], [], []]
