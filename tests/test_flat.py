"""The flat backend: exact, durable, safe to share, and clear about what is wrong with a folder."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scans import METRICS, scans

from vecbridge.backends.flat import FlatBackend, FlatTable, connect, database
from vecbridge.backends.flat.bounds import Best, bounds, needed
from vecbridge.backends.flat.matrix import Files, Vectors, lengths
from vecbridge.backends.flat.nearest import nearest
from vecbridge.backends.flat.sql import condition
from vecbridge.errors import (
    Busy,
    CollectionExists,
    CollectionNotFound,
    InputError,
    ManifestError,
    StoreError,
    UrlError,
)
from vecbridge.filters import Filter, matches, parse
from vecbridge.limits import limits
from vecbridge.manifest import Manifest
from vecbridge.reduction import fit
from vecbridge.testing.oracle import inventory
from vecbridge.types import Batch, Hit, IndexState, Layout, Metric, Shorten, Space


def manifest(
    name: str = "papers", *, dim: int = 8, metric: Metric = "cosine", half: bool = False
) -> Manifest:
    layout = Layout(element="float16" if half else "float32")
    return Manifest(name=name, space=Space(dim, metric), layout=layout, rows=1000)


def batch(
    ids: Sequence[str],
    vectors: Any,
    metadata: Sequence[dict[str, Any]] | None = None,
    document: str = "text of",
) -> Batch:
    return Batch(
        ids=ids,
        vectors=np.ascontiguousarray(vectors, dtype=np.float32),
        documents=[f"{document} {one}" for one in ids],
        metadata=metadata or [{"id": one} for one in ids],
        digests=[one.encode()[:32] for one in ids],
    )


def random_batch(n: int, *, dim: int = 8, seed: int = 0, start: int = 0) -> Batch:
    vectors = np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)
    return batch([f"r{i:05}" for i in range(start, start + n)], vectors, [{"n": i} for i in range(n)])


def truth(vectors: Any, query: Any, metric: Metric) -> Any:
    """Scores by brute force in float64."""
    x, q = np.asarray(vectors, dtype=np.float64), np.asarray(query, dtype=np.float64)
    if metric == "l2":
        return -np.sqrt(((x - q) ** 2).sum(axis=1))
    if metric == "ip":
        return (x * q).sum(axis=1)
    return (x * q).sum(axis=1) / (np.sqrt((x * x).sum(axis=1)) * np.sqrt((q * q).sum()))


def check(
    hits: Sequence[Hit], ids: Sequence[str], vectors: Any, query: Any, *, metric: Metric, k: int
) -> None:
    """The hits are the k best by brute force, each with its own score, ordered by (score, id)."""
    scores = truth(vectors, query, metric)
    x, q = np.asarray(vectors, dtype=np.float64), np.asarray(query, dtype=np.float64)
    # what float64 itself may lose: relative for distances, relative to both lengths for products
    size = np.sqrt((x * x).sum(axis=1)) * np.sqrt((q * q).sum()) if metric == "ip" else np.abs(scores)
    slack = dict(zip(ids, 1e-12 * (size + (metric == "cosine")), strict=True))
    score_of = dict(zip(ids, scores, strict=True))
    assert len(hits) == min(k, len(ids))
    assert len({hit.id for hit in hits}) == len(hits)
    best, most = sorted(scores, reverse=True), max(slack.values(), default=0)
    for place, hit in enumerate(hits):
        assert abs(hit.score - score_of[hit.id]) <= slack[hit.id]
        assert abs(hit.score - best[place]) <= most
    assert [(-hit.score, hit.id) for hit in hits] == sorted((-hit.score, hit.id) for hit in hits)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[FlatBackend]:
    made = connect(f"flat:{tmp_path / 'data'}")
    yield made
    made.close()


@pytest.fixture
def papers(backend: FlatBackend) -> FlatTable:
    return backend.create(manifest())


def search(papers: FlatTable, query: Any, *, k: int = 10, where: dict[str, Any] | None = None) -> list[Hit]:
    queries = np.asarray(query, dtype=np.float32)[None]
    return papers.search(queries, None, k=k, where=None if where is None else parse(where), exact=False)[0]


def run(script: str, *arguments: object, cwd: Path | None = None) -> str:
    """What a Python process of its own prints; its failure is the test's."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Folders and names


def test_connecting_to_a_missing_folder_creates_nothing_until_create(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    backend = connect(f"flat:{folder}")
    assert backend.names() == []
    with pytest.raises(CollectionNotFound, match="no collection 'papers' in flat:"):
        backend.open("papers")
    with pytest.raises(CollectionNotFound, match="no collection 'papers'"):
        backend.drop("papers")
    assert not folder.parent.exists()
    backend.create(manifest())
    assert folder.joinpath("papers", "records.sqlite").is_file()
    backend.close()


def test_paths_are_relative_to_the_working_directory_at_the_time_of_connecting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    backends = [connect("flat:"), connect("flat:deep/er"), connect("FLAT:~/store")]
    tmp_path.joinpath("elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for backend in backends:
        backend.create(manifest())
        backend.close()
    assert [backend.url for backend in backends] == ["flat:./vecbridge-data", "flat:deep/er", "flat:~/store"]
    for folder in ("vecbridge-data", "deep/er", "home/store"):
        assert (tmp_path / folder / "papers" / "records.sqlite").is_file()
    assert list(tmp_path.joinpath("elsewhere").iterdir()) == []


def test_a_url_that_names_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UrlError, match="NUL character"):
        connect("flat:a\0b")
    with pytest.raises(UrlError, match="home folder is unknown"):
        connect("flat:~nobody-of-this-name/x")
    tmp_path.joinpath("file").write_text("")
    with pytest.raises(StoreError, match=r"expected a folder at .*found a file"):
        connect(f"flat:{tmp_path / 'file'}")


def test_folders_with_spaces_percent_signs_and_question_marks_work(tmp_path: Path) -> None:
    backend = connect(f"flat:{tmp_path}/a b%20?x=1#y é")
    papers = backend.create(manifest())
    papers.write(random_batch(3))
    assert papers.count() == 3
    backend.close()


def test_a_created_collection_is_listed_opened_and_dropped(backend: FlatBackend) -> None:
    for name in ("papers", "Zoo", "a-1"):
        backend.create(manifest(name)).close()
    assert backend.names() == ["Zoo", "a-1", "papers"]
    opened = backend.open("papers")
    assert opened.manifest == manifest()
    backend.drop("Zoo")
    assert backend.names() == ["a-1", "papers"]
    with pytest.raises(CollectionExists, match="already 'papers' in flat:"):
        backend.create(manifest())
    backend.create(manifest("Zoo"))
    assert backend.limits() == limits("flat")
    assert opened.index_state() == IndexState("none")
    opened.build_index(None)
    assert opened.sizes().index == 0
    assert opened.sizes().table > 0


@pytest.mark.parametrize("name", ["../papers", "a/b", ".papers", "", "-x", "é", "x" * 49])
def test_names_that_would_leave_the_folder_are_refused(backend: FlatBackend, name: str) -> None:
    for verb in (backend.open, backend.drop, lambda name: backend.create(manifest(name))):
        with pytest.raises(InputError, match="expected a collection name"):
            verb(name)


def test_a_manifest_with_a_fitted_basis_survives_reopening(backend: FlatBackend) -> None:
    sample = np.random.default_rng(5).standard_normal((50, 12), dtype=np.float32)
    reduction = fit(Shorten("pca", 4), source=12, metric="ip", sample=sample)
    made = Manifest(
        "papers",
        Space(12, "ip", nested=(6, 3), model="m"),
        Layout(shorten=Shorten("pca", 4)),
        rows=7,
        reduction=reduction,
    )
    backend.create(made).write(random_batch(2, dim=4))
    found = backend.open("papers").manifest
    assert found.dump() == made.dump()
    assert found.reduction is not None
    np.testing.assert_array_equal(found.reduction.basis, reduction.basis)


def test_what_dead_processes_left_behind_is_invisible_and_cleared_away(
    backend: FlatBackend, tmp_path: Path
) -> None:
    backend.create(manifest())
    data = tmp_path / "data"
    for name in (".papers.tmp-0123456789abcdef", ".other.drop-0123456789abcdef"):
        shutil.copytree(data / "papers", data / name)
    data.joinpath(".mine").mkdir()
    assert backend.names() == ["papers"]
    backend.create(manifest("more"))
    assert sorted(path.name for path in data.iterdir()) == [".lock", ".mine", "more", "papers"]


def test_a_failed_create_leaves_nothing(
    backend: FlatBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Manifest) -> tuple[str, bytes]:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "dump", fail)
        with pytest.raises(StoreError, match="no room to write"):
            backend.create(manifest())
    assert [path.name for path in tmp_path.joinpath("data").iterdir()] == [".lock"]
    backend.create(manifest())


def test_a_renamed_folder_is_a_renamed_collection(backend: FlatBackend, tmp_path: Path) -> None:
    backend.create(manifest()).close()
    tmp_path.joinpath("data", "papers").rename(tmp_path / "data" / "essays")
    assert backend.names() == ["essays"]
    assert backend.open("essays").manifest.name == "essays"


# Records


def test_records_are_read_back_as_they_were_written(papers: FlatTable) -> None:
    written = random_batch(1200)
    papers.write(written)
    order = ["r01199", "nobody", "r00000", "r00700"]
    found = papers.read(order)
    assert list(found.ids) == ["r01199", "r00000", "r00700"]
    np.testing.assert_array_equal(found.vectors, written.vectors[[1199, 0, 700]])
    assert found.vectors.dtype == np.float32
    assert found.vectors.flags.c_contiguous
    assert list(found.documents) == ["text of r01199", "text of r00000", "text of r00700"]
    assert list(found.metadata) == [{"n": 1199}, {"n": 0}, {"n": 700}]
    assert list(found.digests) == [b"r01199", b"r00000", b"r00700"]
    everything = papers.read(written.ids)
    np.testing.assert_array_equal(everything.vectors, written.vectors)
    assert papers.digests(["r00003", "nobody"]) == {"r00003": b"r00003"}
    assert len(papers.digests(written.ids)) == papers.count() == 1200


def test_records_without_document_and_digest_are_read_back_without(papers: FlatTable) -> None:
    papers.write(Batch(["a"], np.ones((1, 8), np.float32), [None], [{}], [None]))
    found = papers.read(["a"])
    assert (list(found.documents), list(found.metadata), list(found.digests)) == ([None], [{}], [None])
    assert papers.digests(["a"]) == {}
    assert search(papers, np.ones(8)) == [Hit("a", 1.0, None, {})]


def test_an_empty_batch_changes_nothing(papers: FlatTable) -> None:
    papers.write(batch([], np.empty((0, 8))))
    assert papers.count() == 0
    assert len(papers.read([])) == len(papers.read(["a"])) == len(papers.sample(5, seed=1)) == 0
    assert papers.read([]).vectors.shape == (0, 8)
    assert papers.delete([]) == papers.delete(["a"]) == 0


def test_writing_an_id_again_replaces_the_record(papers: FlatTable) -> None:
    papers.write(random_batch(5))
    papers.write(batch(["r00002", "new"], [[1] * 8, [-1] * 8], [{"v": 2}, {"v": 2}], document="second"))
    assert papers.count() == 6
    found = papers.read(["r00002"])
    assert (found.documents[0], found.metadata[0]) == ("second r00002", {"v": 2})
    np.testing.assert_array_equal(found.vectors, np.ones((1, 8)))
    best, *others = search(papers, [1] * 8)
    assert (best.id, best.score, best.document) == ("r00002", 1.0, "second r00002")
    assert len(others) == 5


def test_deleted_records_are_gone_from_everything(papers: FlatTable) -> None:
    papers.write(random_batch(20))
    assert papers.delete(["r00001", "nobody", "r00002"]) == 2
    assert papers.delete_where(parse({"n": {"$gte": 10}})) == 10
    assert papers.count() == 8
    left = {f"r{i:05}" for i in range(10)} - {"r00001", "r00002"}
    assert {hit.id for hit in search(papers, [1] * 8, k=99)} == left
    assert set(papers.sample(99, seed=0).ids) == left
    assert list(papers.read(["r00001", "r00012", "r00003"]).ids) == ["r00003"]
    assert papers.delete_where(parse({})) == 8
    assert papers.count() == 0
    assert search(papers, [1] * 8) == []
    papers.write(random_batch(3))
    assert len(search(papers, [1] * 8)) == 3


def test_between_the_parts_of_an_inventory_no_transaction_is_open(papers: FlatTable, tmp_path: Path) -> None:
    """One would keep SQLite's log from being emptied, and so growing for as long as the reader takes."""
    papers.write(random_batch(6_000))
    parts = papers.inventory()
    met = [next(parts)]
    papers.write(random_batch(100, start=100))
    other = sqlite3.connect(tmp_path / "data" / "papers" / database.RECORDS)
    try:
        busy, left, _ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        other.close()
    assert (busy, left) == (0, 0)
    met += parts
    assert len(met) == 2
    assert set(inventory(met)) == set(random_batch(6_000).ids)


def test_a_record_that_is_replaced_is_met_once_in_an_inventory(papers: FlatTable) -> None:
    """It moves to another row, and must not be met there again."""
    papers.write(random_batch(6_000))
    parts = papers.inventory()
    met = [next(parts)]
    papers.write(random_batch(6_000))
    assert len(inventory([*met, *parts])) == 6_000


def test_a_collection_dropped_between_two_parts_of_an_inventory_is_not_found(
    backend: FlatBackend, papers: FlatTable
) -> None:
    papers.write(random_batch(6_000))
    parts = papers.inventory()
    assert len(next(parts)) < 6_000
    backend.drop("papers")
    with pytest.raises(CollectionNotFound, match="was dropped or replaced"):
        next(parts)


def test_a_sample_depends_on_the_content_and_the_seed_alone(backend: FlatBackend) -> None:
    one, other = backend.create(manifest("one")), backend.create(manifest("other"))
    full = random_batch(300)
    one.write(full)
    for start in (200, 0, 100):  # in another order, and with records that come and go
        part = slice(start, start + 100)
        other.write(batch(["gone"], [[1] * 8]))
        other.write(
            Batch(
                *(
                    column[part]
                    for column in (full.ids, full.vectors, full.documents, full.metadata, full.digests)
                )
            )
        )
        other.delete(["gone"])
    first, again, elsewhere = one.sample(50, seed=3), one.sample(50, seed=3), other.sample(50, seed=3)
    assert list(first.ids) == list(again.ids) == list(elsewhere.ids)
    np.testing.assert_array_equal(first.vectors, elsewhere.vectors)
    assert len(set(first.ids)) == 50
    assert list(one.sample(50, seed=4).ids) != list(first.ids)
    assert len(one.sample(1000, seed=0)) == 300


HOSTILE = [
    "'; DROP TABLE records; --",
    'quo"te',
    "back\\slash",
    "line\nbreak\r\t",
    "nul\0inside",
    "\u202eright to left",
    "é e\u0301 ß 漢字 🦜",
    "\uffff\ufffe\ufdd0",
    "%s ? :id {} $1",
    "x" * 65536,
    " ",
    "../../etc/passwd",
]


def test_hostile_text_is_stored_and_found_byte_for_byte(papers: FlatTable) -> None:
    vectors = np.random.default_rng(1).standard_normal((len(HOSTILE), 8), dtype=np.float32)
    documents = [*HOSTILE[1:], "d" * 10_000_000]
    metadata = [{text: text, "list": [text]} for text in HOSTILE]
    papers.write(Batch(HOSTILE, vectors, documents, metadata, [None] * len(HOSTILE)))
    found = papers.read(HOSTILE)
    assert (list(found.ids), list(found.documents), list(found.metadata)) == (HOSTILE, documents, metadata)
    for place, text in enumerate(HOSTILE):
        best = search(papers, vectors[place], k=1)[0]
        assert (best.id, best.document, best.metadata) == (text, documents[place], metadata[place])
        if "\0" not in text and not text.startswith("$") and "." not in text:
            assert [hit.id for hit in search(papers, vectors[0], where={text: text})] == [text]
            assert papers.count(parse({"list": {"$in": [text, "absent"]}})) == 1
    assert papers.delete(HOSTILE) == len(HOSTILE)


# Search


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("metric", METRICS)
def test_search_equals_brute_force(backend: FlatBackend, metric: Metric, half: bool) -> None:
    papers = backend.create(manifest(dim=96, metric=metric, half=half))
    records = random_batch(3000, dim=96, seed=11)
    for start in range(0, 3000, 1000):
        part = slice(start, start + 1000)
        papers.write(batch(records.ids[part], records.vectors[part], list(records.metadata[part])))
    stored = records.vectors.astype(np.float16) if half else records.vectors
    np.testing.assert_array_equal(papers.read(records.ids).vectors, stored)
    queries = np.random.default_rng(12).standard_normal((7, 96), dtype=np.float32)
    for k in (1, 10, 3000, 10**9):
        for query, hits in zip(
            queries, papers.search(queries, None, k=k, where=None, exact=True), strict=True
        ):
            check(hits, records.ids, stored, query, metric=metric, k=k)
            assert hits == search(papers, query, k=k)
    # few matches are gathered, many are masked, after deletions too
    papers.delete(list(records.ids[:500]))
    for first, last in ((600, 605), (600, 1500), (100, 3000), (0, 3000)):
        where = {"n": {"$gte": first, "$lt": last}} if (first, last) != (0, 3000) else None
        keep = slice(max(first, 500), last)
        for query, hits in zip(
            queries,
            papers.search(queries, None, k=12, where=None if where is None else parse(where), exact=False),
            strict=True,
        ):
            check(hits, records.ids[keep], stored[keep], query, metric=metric, k=12)
            assert hits == search(papers, query, k=12, where=where)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_scores_are_ordered_by_id_and_cut_there(backend: FlatBackend, metric: Metric) -> None:
    papers = backend.create(manifest(dim=300, metric=metric))
    rng = np.random.default_rng(2)
    distinct = rng.standard_normal((40, 300), dtype=np.float32)
    ids = [f"{i:03}" for i in rng.permutation(400)]
    papers.write(batch(ids, np.repeat(distinct, 10, axis=0)))
    for target in (0, 17):
        scores = np.repeat(truth(distinct, distinct[target], metric), 10)
        expected = [name for _, name in sorted(zip(-scores, ids, strict=True))]
        for k in (1, 5, 10, 33, 400):
            assert [hit.id for hit in search(papers, distinct[target], k=k)] == expected[:k]


@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_that_float32_cannot_tell_apart_are_ranked_exactly(
    backend: FlatBackend, metric: Metric
) -> None:
    seed = 77
    rng = np.random.default_rng(seed)
    papers = backend.create(manifest(dim=512, metric=metric))
    base = rng.standard_normal(512)
    vectors = (base + 1e-6 * rng.standard_normal((500, 512))).astype(np.float32)
    query = (base + 0.1 * rng.standard_normal(512)).astype(np.float32)
    ids = [f"{i:03}" for i in range(500)]
    papers.write(batch(ids, vectors))
    exact = truth(vectors, query, metric)
    rough = vectors @ query / (np.linalg.norm(vectors, axis=1) if metric == "cosine" else 1)
    expected = [ids[i] for i in np.argsort(-exact)[:10]]
    assert expected != [ids[i] for i in np.argsort(-rough)[:10]], f"seed {seed}: float32 would have done"
    assert [hit.id for hit in search(papers, query)] == expected


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e30, 3e37, 1e19, 1e-20, 1e-30, 1e-38, 1e-43])
def test_huge_tiny_and_denormal_values_are_scored_right(
    backend: FlatBackend, metric: Metric, scale: float
) -> None:
    papers = backend.create(manifest(dim=32, metric=metric))
    rng = np.random.default_rng(3)
    vectors = (rng.uniform(-3, 3, (400, 32)) * scale).astype(np.float32)
    vectors[200:] = rng.standard_normal((200, 32))
    ids = [f"{i:03}" for i in range(400)]
    papers.write(batch(ids, vectors))
    for query in (vectors[7], vectors[300], (rng.uniform(-3, 3, 32) * scale).astype(np.float32)):
        for k in (1, 10, 250, 400):
            check(search(papers, query, k=k), ids, vectors, query, metric=metric, k=k)


@pytest.mark.parametrize("metric", METRICS)
def test_sums_that_overflow_on_the_way_are_still_right(metric: Metric) -> None:
    dim = 16384
    matrix = np.full((3, dim), 3.3e38, dtype=np.float32)
    matrix[1, 0], matrix[2] = 1e38, 1
    query = np.ones(dim, dtype=np.float32)
    query[dim // 2 :] = -1  # float32 gets inf - inf here, for vectors at a right angle
    vectors = Vectors("g", matrix, np.arange(3), lengths(matrix))
    for k in (1, 2, 3):
        ((at, scores),) = nearest(vectors, query[None], metric=metric, k=k, positions=None)
        ranked = sorted((-score, f"{i}") for i, score in zip(at, scores, strict=True))[:k]
        hits = [Hit(name, -score) for score, name in ranked]
        check(hits, ["0", "1", "2"], matrix, query, metric=metric, k=k)


def test_a_far_origin_does_not_blur_distances(backend: FlatBackend) -> None:
    papers = backend.create(manifest(dim=64, metric="l2"))
    rng = np.random.default_rng(4)
    vectors = (1e6 + rng.standard_normal((1000, 64))).astype(np.float32)
    ids = [f"{i:04}" for i in range(1000)]
    papers.write(batch(ids, vectors))
    for query in vectors[:3]:
        hits = search(papers, query)
        check(hits, ids, vectors, query, metric="l2", k=10)
        assert hits[0].score == 0


@pytest.mark.parametrize("metric", METRICS)
def test_a_vector_finds_itself_with_the_perfect_score(backend: FlatBackend, metric: Metric) -> None:
    papers = backend.create(manifest(dim=500, metric=metric))
    vectors = np.random.default_rng(6).standard_normal((50, 500), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    papers.write(batch([f"{i:02}" for i in range(50)], vectors))
    for place, vector in enumerate(vectors):
        best = search(papers, vector, k=1)[0]
        assert best.id == f"{place:02}"
        assert best.score == pytest.approx({"cosine": 1, "ip": 1, "l2": 0}[metric], abs=1e-6)
        assert metric == "ip" or best.score == {"cosine": 1, "l2": 0}[metric]
        assert str(best.score) != "-0.0"


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_a_zero_query_is_answered(backend: FlatBackend, metric: Metric) -> None:
    papers = backend.create(manifest(metric=metric))
    records = random_batch(30)
    papers.write(records)
    check(search(papers, [0] * 8, k=5), records.ids, records.vectors, [0] * 8, metric=metric, k=5)


def test_empty_and_emptied_collections_are_searched(papers: FlatTable) -> None:
    queries = np.ones((3, 8), dtype=np.float32)
    for where in (None, parse({"a": 1})):
        assert papers.search(queries, None, k=5, where=where, exact=True) == [[], [], []]
    papers.write(random_batch(20))
    assert papers.search(queries[:0], None, k=5, where=None, exact=True) == []
    assert papers.search(queries, None, k=5, where=parse({"n": -1}), exact=True) == [[], [], []]
    papers.delete_where(parse({}))
    assert papers.search(queries, None, k=5, where=None, exact=True) == [[], [], []]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_nearest_equals_brute_force_on_any_values(data: st.DataObject) -> None:
    metric, matrix, queries, k, positions = data.draw(scans())
    vectors = Vectors("g", matrix, np.arange(len(matrix)), lengths(matrix))
    with pytest.MonkeyPatch.context() as patch:
        # a first look at some, then what they say is made use of
        patch.setattr("vecbridge.backends.flat.nearest._FIRST", data.draw(st.sampled_from([1, 5, 512])))
        patch.setattr("vecbridge.backends.flat.nearest._DOTS", data.draw(st.sampled_from([3, 20, 2**22])))
        found = nearest(vectors, queries, metric=metric, k=k, positions=positions)
    kept = np.arange(len(matrix)) if positions is None else positions
    ids = [f"{i:02}" for i in kept]
    for query, (at, scores) in zip(queries, found, strict=True):
        ranked = sorted((-score, f"{i:02}") for i, score in zip(at, scores, strict=True))
        assert len(ranked) >= k
        assert all(-score == ranked[k - 1][0] for score in scores[np.argsort(-scores)][k:])
        hits = [Hit(name, -score) for score, name in ranked[:k]]
        check(hits, ids, matrix[kept], query, metric=metric, k=k)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("spread", [0, 1e-3, 1, 10])
def test_no_row_that_may_be_among_the_best_lies_below_the_product_that_is_needed(
    metric: Metric, spread: float
) -> None:
    rng = np.random.default_rng(7)
    reached = 0
    for share in (1e-7, 1e-4, 0.05):
        norms = np.exp(spread * rng.standard_normal(500))
        norms[:3] = 0 if spread == 1 else norms[:3]
        lengths_of = np.array([1, 1e-3, 50.0])
        dots = (norms * rng.uniform(-1, 1, (3, 500))).astype(np.float32)
        error = share * norms + 1e-30
        some = [
            bounds(row.astype(float), error, norms, q, 64, metric)
            for row, q in zip(dots, lengths_of, strict=True)
        ]
        for k in (1, 20, 450):
            best = [Best(k) for _ in some]
            assert needed(best, error.max(), norms, lengths_of, 64, metric) is None
            for one, (low, high) in zip(best, some, strict=True):
                one.offer(np.arange(500), low, high)
            least = needed(best, error.max(), norms, lengths_of, 64, metric)
            assert least is not None
            for one, (_, high), row, product in zip(best, some, dots, least, strict=True):
                assert not ((high >= one.floor) & (row < product)).any()
                reached += int((row < product).sum())
    assert reached > 1000 or spread == 10, "hardly anything was left out"


def test_hits_of_one_batch_share_nothing_that_can_be_changed(papers: FlatTable) -> None:
    papers.write(batch(["a"], np.ones((1, 8))))
    (one,), (other,) = papers.search(np.ones((2, 8), np.float32), None, k=1, where=None, exact=True)
    assert one == other
    one.metadata["changed"] = True
    assert one.metadata != other.metadata


# Filters

keys = st.sampled_from(["a", "b", "c", "", "a b", 'q"', "back\\", "n\n", "\\n", "é", "🦜", "'", "$x", "0"])
texts = st.one_of(
    st.sampled_from(
        ["", "a", "b", "10", "9", "é", "\uffff", "🦜", "'\"\\\n\x01", "true", "null", "[1]", "{}"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4),
)
numbers = st.one_of(
    st.sampled_from(
        [0, 1, -1, 2, 0.0, -0.0, 1.0, 2.0, 0.3, 0.1 + 0.2, 1e-320, 5e-324, 1.7976931348623157e308, 2.0**53]
    ),
    st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**62 + 1, float(2**63), 1e15 + 0.3, 1e300]),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    st.one_of(scalars, st.integers(2**63, 2**70)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)
records = st.lists(st.dictionaries(keys, values, max_size=4), min_size=1, max_size=6)
operands = st.one_of(scalars, st.lists(scalars, max_size=3))
conditions = st.one_of(
    st.fixed_dictionaries({"$eq": st.one_of(operands, st.dictionaries(keys, scalars, max_size=2))}),
    st.fixed_dictionaries({"$ne": operands}),
    *(st.fixed_dictionaries({sign: st.one_of(numbers, texts)}) for sign in ("$gt", "$gte", "$lt", "$lte")),
    *(st.fixed_dictionaries({sign: st.lists(operands, max_size=4)}) for sign in ("$in", "$nin")),
    *(st.fixed_dictionaries({sign: st.lists(numbers, max_size=60)}) for sign in ("$in", "$nin")),
    st.fixed_dictionaries({"$exists": st.booleans()}),
    st.dictionaries(st.sampled_from(["$gt", "$lte"]), numbers, min_size=1, max_size=2),
)
paths = st.lists(keys, min_size=1, max_size=3).map(".".join).filter(lambda path: not path.startswith("$"))
filters = st.recursive(
    st.dictionaries(paths, st.one_of(operands, conditions), max_size=2),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=5,
)


def by_sql(connection: sqlite3.Connection, where: Filter) -> list[int]:
    chosen = condition(where)
    chosen.install(connection)
    found = connection.execute(f"SELECT row FROM records WHERE {chosen.sql} ORDER BY row", chosen.values)
    return [row for (row,) in found]


@pytest.fixture(scope="module")
def bare() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE records (row INTEGER PRIMARY KEY, metadata TEXT)")
    yield connection
    connection.close()


def fill(connection: sqlite3.Connection, metadata: Sequence[dict[str, Any]]) -> None:
    connection.execute("DELETE FROM records")
    rows = [(row, json.dumps(one, ensure_ascii=False)) for row, one in enumerate(metadata)]
    connection.executemany("INSERT INTO records VALUES (?, ?)", rows)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records, filters)
def test_filters_in_sql_mean_what_matches_means(
    bare: sqlite3.Connection, metadata: list[dict[str, Any]], where: dict[str, Any]
) -> None:
    fill(bare, metadata)
    parsed = parse(where)
    assert by_sql(bare, parsed) == [row for row, one in enumerate(metadata) if matches(parsed, one)]


def test_every_pair_of_awkward_values_compares_as_matches_says(bare: sqlite3.Connection) -> None:
    awkward: list[Any] = [
        *(None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, 0.5, 0.3, 0.1 + 0.2, 5e-324, -5e-324, 1e308),
        *(2**53, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63), float(2**63)),
        *(
            "",
            "0",
            "1",
            "a",
            "A",
            "é",
            "e\u0301",
            "\ud7ff",
            "\uffff",
            "🦜",
            "true",
            "null",
            "a\\n",
            "a\n",
            '"',
        ),
        *([], [1], [1.0], [True], ["a"], [None], [[1]], {}, {"a": 1}),
    ]
    fill(
        bare,
        [{}, {"k": {"deep": 1}}, *({"k": value} for value in awkward), {"k": 2**64}, {"k": [2**64, 0.25]}],
    )
    stored = [json.loads(text) for (text,) in bare.execute("SELECT metadata FROM records ORDER BY row")]
    for operand in awkward:
        wheres: list[dict[str, Any]] = [{"k": {sign: operand}} for sign in ("$eq", "$ne")]
        wheres += [{"k": {sign: [operand, "zz", 77]}} for sign in ("$in", "$nin")]
        if isinstance(operand, int | float | str) and not isinstance(operand, bool):
            wheres += [{"k": {sign: operand}} for sign in ("$gt", "$gte", "$lt", "$lte")]
        for where in wheres:
            parsed = parse(where)
            expected = [row for row, one in enumerate(stored) if matches(parsed, one)]
            assert by_sql(bare, parsed) == expected, where


def test_long_and_deep_filters_work(papers: FlatTable) -> None:
    papers.write(random_batch(50))
    deep: dict[str, Any] = {"n": 3}
    for _ in range(49):
        deep = {"$not": deep}
    assert papers.count(parse(deep)) == 49
    nested: dict[str, Any] = {"n": {"$in": [1, 2, "a", None]}, "a.b": {"$not": {"$lt": 0.5}}}
    for _ in range(23):
        assert papers.count(parse(nested)) == 2
        nested = {"$or": [{"$and": [{"n": {"$gte": 0}}, nested]}, {"x": 1}]}
    assert papers.count(parse({"n": {"$in": list(range(40, 5000))}})) == 10
    assert papers.count(parse({"n": {"$nin": [float(i) for i in range(40, 5000)]}})) == 40
    assert papers.count(parse({"n": {"$in": [str(i) for i in range(40_000)]}})) == 0
    assert papers.count(parse({"$or": [{"n": i, "m": {"$exists": False}} for i in range(3000)]})) == 50
    assert papers.count(parse({".".join("a" * 200): None})) == 50


def test_a_filter_never_reaches_sql_as_text() -> None:
    secret = "sneaky' OR 1=1 --"
    compiled = condition(parse({secret: secret, "x": {"$in": [secret, "b"]}, "y": {"$gt": 123456789}}))
    assert secret not in compiled.sql
    assert "123456789" not in compiled.sql
    assert secret in compiled.values


def test_filters_choose_the_same_records_in_every_verb(papers: FlatTable) -> None:
    metadata = [{"topic": "ab"[i % 2], "n": i, "tags": [i % 3, "x"]} for i in range(60)]
    papers.write(batch([f"{i:02}" for i in range(60)], np.eye(60, 8) + 1, metadata))
    where = {"topic": "a", "tags": {"$in": [0, 1]}, "n": {"$lt": 50.5}}
    chosen = {f"{i:02}" for i in range(0, 51, 2) if i % 3 != 2}
    assert papers.count(parse(where)) == len(chosen)
    assert {hit.id for hit in search(papers, [1] * 8, k=60, where=where)} == chosen
    assert len(search(papers, [1] * 8, k=3, where=where)) == 3
    assert papers.delete_where(parse(where)) == len(chosen)
    assert papers.count(parse(where)) == 0
    assert papers.count() == 60 - len(chosen)


# Compaction


def generations(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(("vectors.", "rows.")))


def test_dead_positions_are_compacted_away_and_readers_of_the_old_file_go_on(
    backend: FlatBackend, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "papers"
    papers = backend.create(manifest(dim=64, metric="l2"))
    records = random_batch(3000, dim=64)
    papers.write(records)
    reader = backend.open("papers")
    before = generations(folder)
    with reader._snapshot() as (connection, state, vectors):
        assert papers.delete([f"r{i:05}" for i in range(0, 3000, 2)]) == 1500
        assert generations(folder) != before
        # the reader's moment: all 3000 records, and the right vector for each
        assert state.rows == 3000
        rows = dict(connection.execute("SELECT id, row FROM records"))
        at = np.searchsorted(vectors.rows, [rows[one] for one in records.ids])
        np.testing.assert_array_equal(vectors.matrix[at], records.vectors)
    after = generations(folder)
    assert len(after) == 2
    assert sum((folder / name).stat().st_size for name in after) == 1500 * (64 * 4 + 16)
    left = list(range(1, 3000, 2))
    for one in (papers, reader, backend.open("papers")):
        assert one.count() == 1500
        np.testing.assert_array_equal(one.read(records.ids).vectors, records.vectors[left])
        hits = search(one, records.vectors[0], k=20)
        check(
            hits, [records.ids[i] for i in left], records.vectors[left], records.vectors[0], metric="l2", k=20
        )
    papers.write(random_batch(10, dim=64, start=5000))
    assert papers.count() == reader.count() == 1510


def test_a_reader_who_comes_too_late_for_a_file_looks_again(
    backend: FlatBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    papers = backend.create(manifest())
    records = random_batch(3000)
    papers.write(records)
    reader = backend.open("papers")
    reader._mapped = None
    rows: list[int] = []
    original = Files.map

    def late(files: Files, generation: str, n: int, *, coded: int) -> Vectors:
        rows.append(n)
        if len(rows) == 1:  # between the reader's look at SQLite and at the file
            papers.delete(records.ids[:1500])
        return original(files, generation, n, coded=coded)

    with monkeypatch.context() as patch:
        patch.setattr(Files, "map", late)
        hits = search(reader, records.vectors[0], k=20)
    assert (rows[0], rows[-1]) == (3000, 1500)
    check(hits, records.ids[1500:], records.vectors[1500:], records.vectors[0], metric="cosine", k=20)


def test_a_few_dead_positions_are_left_alone(papers: FlatTable, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "papers"
    papers.write(random_batch(1000))
    before = generations(folder)
    papers.delete_where(parse({}))
    assert generations(folder) == before
    papers.write(random_batch(5))
    assert generations(folder) == before
    papers.write(random_batch(5))  # 1,005 dead positions by now, more than the 1,000 that are tolerated
    assert generations(folder) != before
    assert papers.count() == 5
    assert len(search(papers, [1] * 8)) == 5


def test_what_a_killed_compaction_left_is_swept_by_the_next_writer(papers: FlatTable, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "papers"
    papers.write(random_batch(5))
    before = generations(folder)
    folder.joinpath("vectors.0123456789abcdef.f32").write_bytes(b"x" * 100)
    folder.joinpath("rows.0123456789abcdef.bin").write_bytes(b"")
    papers.write(random_batch(5, start=5))
    assert generations(folder) == before
    assert papers.count() == 10


def test_garbage_behind_the_last_commit_is_overwritten(papers: FlatTable, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "papers"
    papers.write(random_batch(5))
    for name in generations(folder):
        with folder.joinpath(name).open("ab") as file:
            file.write(b"\xff" * 333)
    assert len(search(papers, [1] * 8)) == 5
    records = random_batch(40, start=5, seed=9)
    papers.write(records)
    np.testing.assert_array_equal(papers.read(records.ids).vectors, records.vectors)
    assert len(search(papers, [1] * 8, k=99)) == 45


# Damage


def change(folder: Path, statement: str) -> None:
    connection = sqlite3.connect(folder / "records.sqlite")
    connection.execute(statement)
    connection.commit()
    connection.close()


def cut(folder: Path, start: str) -> None:
    path = next(folder.glob(f"{start}.*"))
    os.truncate(path, path.stat().st_size - 1)


def scribble(folder: Path) -> None:
    folder.joinpath("records.sqlite").write_bytes(b"this is no database " * 500)


def foreign(folder: Path) -> None:
    folder.joinpath("records.sqlite").unlink()
    change(folder, "CREATE TABLE other (x)")


NOT_OURS = "damaged or was not made by vecbridge"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no vectors": (lambda f: next(f.glob("vectors.*")).unlink(), "expected the file vectors.*found none"),
    "no rows": (lambda f: next(f.glob("rows.*")).unlink(), "expected the file rows.*found none"),
    "vectors cut": (
        lambda f: cut(f, "vectors"),
        "expected at least 160 bytes in .*found 159: .* was cut off",
    ),
    "rows cut": (lambda f: cut(f, "rows"), "expected at least 80 bytes in .*found 79: .* was cut off"),
    "no database": (lambda f: f.joinpath("records.sqlite").unlink(), "expected records.sqlite in .* none"),
    "scribbled": (scribble, NOT_OURS),
    "emptied": (lambda f: f.joinpath("records.sqlite").write_bytes(b""), NOT_OURS),
    "foreign": (foreign, NOT_OURS),
    "no state": (lambda f: change(f, "DELETE FROM state"), "empty table 'state'"),
    "no manifest": (lambda f: change(f, "DELETE FROM meta WHERE key = 'manifest'"), r"lacks \['manifest'\]"),
    "bad manifest": (
        lambda f: change(f, "UPDATE meta SET value = '{}' WHERE key = 'manifest'"),
        "manifest cannot be read",
    ),
    "newer files": (
        lambda f: change(f, "UPDATE meta SET value = '9' WHERE key = 'format'"),
        "file format 9, this vecbridge reads up to 1; upgrade",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_collection_is_refused_with_a_sentence(
    backend: FlatBackend, tmp_path: Path, case: str
) -> None:
    damage, sentence = DAMAGE[case]
    papers = backend.create(manifest(dim=8))
    papers.write(random_batch(5))
    papers.close()
    damage(tmp_path / "data" / "papers")
    with pytest.raises(ManifestError, match=sentence):
        backend.open("papers")


@pytest.mark.parametrize("kind", ["vectors", "rows"])
def test_a_file_that_is_cut_while_open_is_neither_read_nor_written(
    backend: FlatBackend, tmp_path: Path, kind: str
) -> None:
    backend.create(manifest()).write(random_batch(5))
    papers = backend.open("papers")
    papers._mapped = None
    cut(tmp_path / "data" / "papers", kind)
    for verb in (lambda: search(papers, [1] * 8), lambda: papers.write(random_batch(5))):
        with pytest.raises(ManifestError, match="was cut off"):
            verb()
    assert papers.count() == 5


def test_a_collection_that_was_dropped_elsewhere_is_not_touched_again(
    backend: FlatBackend, tmp_path: Path
) -> None:
    stale = [backend.create(manifest()), backend.open("papers")]
    stale[0].write(random_batch(5))
    stale[1]._database._idle.pop().close()  # one with an open connection, one without
    other = connect(f"flat:{tmp_path / 'data'}")
    other.drop("papers")
    verbs = [
        lambda one: one.write(random_batch(9)),
        lambda one: one.count(),
        lambda one: search(one, [1] * 8),
        lambda one: one.delete(["r00001"]),
        lambda one: one.sizes(),
    ]
    for one in stale:
        for verb in verbs:
            with pytest.raises(CollectionNotFound, match="dropped or replaced; open it again"):
                verb(one)
    fresh = other.create(manifest(dim=4))
    fresh.write(random_batch(2, dim=4))
    for one in stale:
        for verb in verbs:
            with pytest.raises(CollectionNotFound, match="dropped or replaced; open it again"):
                verb(one)
    backend.close()  # must not take the new collection's log with it
    assert fresh.count() == 2
    assert len(other.open("papers").read(["r00000", "r00001"])) == 2
    other.close()


# Open and closed, shared and locked


def test_close_may_be_called_twice_and_use_after_it_is_an_error(backend: FlatBackend) -> None:
    papers = backend.create(manifest())
    other = backend.open("papers")
    for _ in range(2):
        papers.close()
    for verb in (
        papers.count,
        papers.sizes,
        lambda: papers.write(random_batch(1)),
        lambda: search(papers, [1] * 8),
    ):
        with pytest.raises(StoreError, match="was closed; open it again"):
            verb()
    assert other.count() == 0
    for _ in range(2):
        backend.close()
    with pytest.raises(StoreError, match="was closed; open it again"):
        other.count()
    for again in (backend.names, lambda: backend.open("papers"), lambda: backend.drop("papers")):
        with pytest.raises(StoreError, match=r"flat:.* was closed; connect again"):
            again()
    with pytest.raises(StoreError, match="connect again"):
        backend.create(manifest("more"))


def test_closing_leaves_no_log_behind(backend: FlatBackend, tmp_path: Path) -> None:
    backend.create(manifest()).write(random_batch(5))
    backend.close()
    assert not list(tmp_path.joinpath("data", "papers").glob("*-wal"))


def test_a_writer_waits_for_another_one_and_then_says_who_is_in_the_way(
    papers: FlatTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "papers"
    with database.locked(folder / "write.lock", "testing"):
        monkeypatch.setattr(database, "PATIENCE", 0.05)
        with pytest.raises(Busy, match=r"another process has been writing to .* try again"):
            papers.write(random_batch(1))
        assert papers.count() == 0  # readers do not wait
        monkeypatch.setattr(database, "PATIENCE", 60.0)
        writer = threading.Thread(target=papers.write, args=[random_batch(3)])
        writer.start()
        writer.join(0.1)
        assert writer.is_alive()
    writer.join(30)
    assert papers.count() == 3


def test_a_failing_write_changes_nothing(papers: FlatTable) -> None:
    papers.write(random_batch(5))
    twice = batch(["new", "r00001", "new"], np.ones((3, 8)))
    with pytest.raises(StoreError, match="UNIQUE constraint"):
        papers.write(twice)
    assert papers.count() == 5
    assert papers.read(["r00001", "new"]).documents == ["text of r00001"]
    papers.write(random_batch(5, start=5))
    assert len(search(papers, [1] * 8)) == 10


def test_threads_read_whole_batches_while_one_writes_and_compacts(
    backend: FlatBackend, tmp_path: Path
) -> None:
    size, versions = 300, 25
    papers = backend.create(manifest(metric="l2"))
    numbers = np.arange(size)

    def version(v: int) -> Batch:
        vectors = np.stack([numbers, *[np.full(size, v)] * 7], axis=1)
        return batch([f"{i:03}" for i in numbers], vectors, [{"i": int(i), "v": v} for i in numbers])

    papers.write(version(0))
    done = threading.Event()
    problems: list[BaseException] = []
    seen: set[int] = set()

    def look(seed: int) -> None:
        rng = random.Random(seed)
        table = papers if seed % 2 else backend.open("papers")
        try:
            while not done.is_set():
                target = rng.randrange(size)
                query = [target, *[rng.randrange(versions)] * 7]
                hits = search(table, query, k=size, where=rng.choice([None, {"i": {"$gte": 0}}]))
                assert len(hits) == size
                (v,) = {hit.metadata["v"] for hit in hits}
                seen.add(v)
                own = {hit.id: [hit.metadata["i"], *[v] * 7] for hit in hits}
                check(hits, list(own), list(own.values()), query, metric="l2", k=size)
                some = table.read([f"{i:03}" for i in rng.sample(range(size), 20)])
                (v,) = {one["v"] for one in some.metadata}
                assert some.vectors[:, 0].tolist() == [one["i"] for one in some.metadata]
                assert set(some.vectors[:, 1:].ravel()) == {v}
                assert table.count() == size
        except BaseException as problem:  # noqa: BLE001  # the main thread reports it
            problems.append(problem)

    threads = [threading.Thread(target=look, args=[seed]) for seed in range(8)]
    for thread in threads:
        thread.start()
    before = generations(tmp_path / "data" / "papers")
    for v in range(1, versions):
        papers.write(version(v))
    done.set()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert len(seen) > 1
    assert generations(tmp_path / "data" / "papers") != before
    assert papers.read(["000"]).metadata == [{"i": 0, "v": versions - 1}]


FORK = """
import os, sys, threading, numpy as np
from vecbridge.backends.flat import connect
from vecbridge.types import Batch
papers = connect(sys.argv[1]).open("papers")
query = np.ones((1, 8), np.float32)
def record(name): return Batch([name], query, [None], [{}], [None])
stop = threading.Event()
def look():
    while not stop.is_set():
        papers.search(query, None, k=3, where=None, exact=True)
threads = [threading.Thread(target=look) for _ in range(2)]
for thread in threads: thread.start()
children = []
for i in range(8):
    child = os.fork()
    if not child:
        try:
            papers.write(record(f"child {i}"))
            assert papers.read([f"child {i}"]).ids == [f"child {i}"]
            assert papers.search(query, None, k=99, where=None, exact=True)[0]
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    children.append(child)
    papers.write(record(f"parent {i}"))
stop.set()
for thread in threads: thread.join()
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
print(papers.count())
papers.close()
"""


def test_children_of_a_fork_use_the_same_table_as_their_parent(backend: FlatBackend) -> None:
    papers = backend.create(manifest())
    papers.write(random_batch(5))
    assert run(FORK, backend.url).strip() == "21"
    assert papers.count() == 21


FORK_AND_CLOSE = """
import os, sys, numpy as np
from vecbridge.backends.flat import connect
from vecbridge.types import Batch
backend = connect(sys.argv[1])
papers = backend.open("papers")
papers.write(Batch(["mine"], np.ones((1, 8), np.float32), [None], [{}], [None]))
ready, go = os.pipe(), os.pipe()
if not os.fork():
    try:
        assert papers.count() == 1
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        papers.write(Batch(["child"], np.ones((1, 8), np.float32), [None], [{}], [None]))
        os.write(ready[1], b"x")
        os.read(go[0], 1)
    finally:
        os._exit(0)
os.read(ready[0], 1)
papers.close()
os.write(go[1], b"x")
os.read(ready[0], 1)
print(backend.open("papers").count())
os.write(go[1], b"x")
"""


def test_what_a_child_writes_after_its_parent_closed_is_not_lost(backend: FlatBackend) -> None:
    backend.create(manifest()).close()
    assert run(FORK_AND_CLOSE, backend.url) == "2\n"


CREATE = """
import sys
from vecbridge.backends.flat import connect
from vecbridge.errors import CollectionExists
from vecbridge.manifest import Manifest
from vecbridge.types import Layout, Space
backend = connect(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
made = 0
for i in range(30):
    try:
        backend.create(Manifest(name=f"c{i}", space=Space(8), layout=Layout(), rows=1000)).close()
        made += 1
    except CollectionExists:
        assert backend.open(f"c{i}").count() == 0
print(made)
"""


def test_of_two_processes_that_create_one_name_exactly_one_succeeds(backend: FlatBackend) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, backend.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    made = [int(worker.communicate(timeout=60)[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sum(made) == 30
    assert len(backend.names()) == 30


# Rights and room

READ_ONLY = """
import ctypes, os, sys, numpy as np
from vecbridge.backends.flat import connect
from vecbridge.errors import Forbidden
from vecbridge.filters import parse
from vecbridge.manifest import Manifest
from vecbridge.types import Batch, Layout, Space
if os.geteuid() == 0:  # root ignores permission bits until it gives up its capabilities
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0
backend = connect(sys.argv[1])
papers = backend.open("papers")
query = np.ones((1, 8), np.float32)
for _ in range(2):
    assert len(papers.search(query, None, k=3, where=parse({"n": {"$lt": 4}}), exact=True)[0]) == 3
    assert papers.count() == len(papers.sample(9, seed=0)) == int(sys.argv[2])
refused = [
    lambda: papers.write(Batch(["a"], query, [None], [{}], [None])),
    lambda: papers.delete(["r00000"]),
    lambda: backend.drop("papers"),
    lambda: backend.create(Manifest(name="x", space=Space(8), layout=Layout(), rows=1)),
]
for verb in refused:
    try:
        verb()
    except Forbidden as error:
        assert "may not write in" in str(error), error
    else:
        raise AssertionError("was allowed to write")
backend.close()
print("fine")
"""


@pytest.fixture
def read_only(backend: FlatBackend, tmp_path: Path) -> Iterator[FlatBackend]:
    """A backend whose folder is read-only for whoever is not root."""
    papers = backend.create(manifest())
    papers.write(random_batch(5))
    data = tmp_path / "data"
    yield backend
    for path in [data, *data.rglob("*")]:
        path.chmod(0o755)


def protect(data: Path) -> None:
    for path in [*data.rglob("*"), data]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def test_a_read_only_folder_is_searched_but_not_written(read_only: FlatBackend, tmp_path: Path) -> None:
    read_only.close()
    protect(tmp_path / "data")
    assert run(READ_ONLY, read_only.url, 5) == "fine\n"


def test_a_read_only_folder_with_a_writer_elsewhere_shows_what_was_committed(
    read_only: FlatBackend, tmp_path: Path
) -> None:
    papers = read_only.open("papers")
    papers.write(random_batch(2, start=5))  # in the log only, and the connection stays open
    protect(tmp_path / "data")
    assert run(READ_ONLY, read_only.url, 7) == "fine\n"


FULL = """
import os, resource, sys, numpy as np
from pathlib import Path
from vecbridge.backends.flat import connect
from vecbridge.errors import StoreError
from vecbridge.types import Batch
papers = connect(sys.argv[1]).open("papers")
folder = Path(sys.argv[1].removeprefix("flat:")) / "papers"
def record(n, document):
    vectors = np.ones((n, 8), np.float32)
    return Batch([f"new{i}" for i in range(n)], vectors, [document] * n, [{}] * n, [None] * n)
before = {path.name: path.stat().st_size for path in folder.glob("vectors.*")}
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
# no room for the vectors, no room for the text
for case in (record(10_000, "x"), record(1, "x" * 3_000_000)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, unlimited[1]))
    try:
        papers.write(case)
    except StoreError as error:
        assert "no room to write" in str(error), error
    else:
        raise AssertionError("had room")
    assert papers.count() == 5
    assert len(papers.search(np.ones((1, 8), np.float32), None, k=9, where=None, exact=True)[0]) == 5
    if len(case) > 1:
        assert {path.name: path.stat().st_size for path in folder.glob("vectors.*")} == before
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert papers.count() == 5
papers.write(record(100, "x" * 10_000))
assert papers.count() == 105
papers.close()
print("fine")
"""


def test_a_full_disk_changes_nothing_and_says_so(backend: FlatBackend) -> None:
    backend.create(manifest()).write(random_batch(5))
    assert run(FULL, backend.url) == "fine\n"
    assert backend.open("papers").count() == 105


def test_a_compaction_that_finds_no_room_is_put_off(
    papers: FlatTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "papers"
    papers.write(random_batch(1500))
    before = generations(folder)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vecbridge.backends.flat.matrix.os.pwrite", full)
        assert papers.delete([f"r{i:05}" for i in range(1200)]) == 1200
    assert generations(folder) == before
    assert papers.count() == 300
    papers.delete(["r01200"])
    assert generations(folder) != before
    assert len(search(papers, [1] * 8, k=999)) == papers.count() == 299


MEMORY = """
import resource, sys, numpy as np
from vecbridge.backends.flat import connect
from vecbridge.manifest import Manifest
from vecbridge.types import Batch, Layout, Space
papers = connect(sys.argv[1]).create(Manifest(name="papers", space=Space(1024), layout=Layout(), rows=1000))
rng = np.random.default_rng(0)
def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("RssAnon"))
def write(i):
    vectors = rng.standard_normal((1000, 1024), dtype=np.float32)
    ids = [f"{i}-{j}" for j in range(1000)]
    papers.write(Batch(ids, vectors, ids, [{}] * 1000, [None] * 1000))
write(0)
papers.search(np.ones((1, 1024), np.float32), None, k=10, where=None, exact=True)
start = anonymous()
for i in range(1, 100): write(i)
assert papers.count() == 100_000
for queries in (1, 5):
    papers.search(np.ones((queries, 1024), np.float32), None, k=10, where=None, exact=True)
print(anonymous() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory in use from /proc")
def test_memory_does_not_grow_with_the_collection(backend: FlatBackend) -> None:
    grown = int(run(MEMORY, backend.url))
    assert grown < 60, f"{grown} MB more for 390 MB of vectors"
