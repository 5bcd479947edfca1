"""What the front decides for itself, whatever the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Fresh

import vecbridge
from vecbridge import Index, Layout, Shorten
from vecbridge.errors import InputError, UrlError
from vecbridge.manifest import Chunking


@pytest.mark.parametrize("rows", ["x", -5, 1.5, True])
def test_rows_are_checked_beside_a_given_layout(tmp_path: Path, rows: Any) -> None:
    with vecbridge.connect(f"flat:{tmp_path}") as store:
        with pytest.raises(InputError, match="expected rows "):
            store.create("papers", dim=4, layout=Layout(), rows=rows)
        assert store.collections() == []


def test_a_schema_that_would_look_like_a_placeholder_is_refused() -> None:
    with pytest.raises(UrlError, match=r"expected \?schema= with a name of 1 to 63 bytes, without %"):
        vecbridge.connect("postgresql://localhost/rag?schema=a%25s")


def test_a_query_across_the_projection_is_searched_exactly(pg18: str, fresh: Fresh) -> None:
    rng = np.random.default_rng(0)
    vectors = np.zeros((300, 8), dtype=np.float32)
    vectors[:, :4] = rng.standard_normal((300, 4))
    layout = Layout(index=Index("hnsw", shorten=Shorten("pca", 4), ef_search=100), oversample=4)
    with vecbridge.connect(fresh(pg18)) as store:
        papers = store.create("papers", dim=8, layout=layout, sample=vectors)
        # one record has a share of what the projection, fitted without it, does not see
        vectors[123, 7] = 3.0
        papers.upsert([f"id-{row}" for row in range(300)], vectors)
        papers.build_index()
        across = np.zeros(8, dtype=np.float32)
        across[7] = 1.0
        assert not papers.manifest.index_reduction.apply(across[None]).any()  # type: ignore[union-attr]  # pca has one
        assert papers.search(across, k=1)[0].id == "id-123"
        assert papers.search_many([across, vectors[5]], k=1)[1][0].id == "id-5"


def test_a_report_on_a_scanned_copy_says_that_a_copy_is_scanned(pg18: str, fresh: Fresh) -> None:
    layout = Layout(index=Index("scan", "float16"), oversample=4)
    with vecbridge.connect(fresh(pg18)) as store:
        papers = store.create("papers", dim=8, layout=layout)
        papers.upsert([str(row) for row in range(50)], np.random.default_rng(0).standard_normal((50, 8)))
        report = papers.evaluate(k=5, sample=10)
    assert report.recall == 1.0
    assert "compact copy" in str(report)
    assert "every search is exact" not in str(report)


def test_a_single_record_leaves_nothing_to_measure(tmp_path: Path) -> None:
    with vecbridge.connect(f"flat:{tmp_path}") as store:
        papers = store.create("papers", dim=4)
        papers.upsert(["only"], np.ones((1, 4)))
        report = papers.evaluate()
        assert (report.queries, report.rows) == (0, 1)
        assert str(report) == "nothing to measure: no query has anything to find"


def test_an_evaluation_ends_when_its_time_is_up(tmp_path: Path) -> None:
    with vecbridge.connect(f"flat:{tmp_path}") as store:
        papers = store.create("papers", dim=4)
        papers.upsert([str(row) for row in range(50)], np.random.default_rng(0).standard_normal((50, 4)))
        assert papers.evaluate(k=3, sample=20).queries == 20
        # one query is always asked, so that there is something to say
        assert papers.evaluate(k=3, sample=20, seconds=0).queries == 1


def test_a_collection_remembers_the_chunking_it_was_created_with(tmp_path: Path) -> None:
    chunking = Chunking(400, 50, "cl100k_base", rows=True)
    with vecbridge.connect(f"flat:{tmp_path}") as store:
        for name, layout in (("planned", None), ("given", Layout())):
            made = store.create(name, dim=4, layout=layout, chunking=chunking)
            assert made.manifest.chunking == chunking
            assert store.open(name).manifest.chunking == chunking
        assert store.create("other", dim=4).manifest.chunking is None
