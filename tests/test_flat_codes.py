"""Vectors in bytes: the bound holds row by row, results are those of the plain scan, damage is noticed."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import METRICS, components, scans

from vecbridge.backends.flat import FlatBackend, FlatTable, codes, connect, table
from vecbridge.backends.flat.matrix import Files, Vectors, lengths
from vecbridge.backends.flat.nearest import nearest
from vecbridge.errors import StoreError
from vecbridge.filters import parse
from vecbridge.manifest import Manifest
from vecbridge.types import Batch, Element, Hit, Layout, Metric, Space

DIM = codes.LEAST


def by_numpy(rows: Any, queries: Any) -> Any:
    """What a library has to return, by integers that cannot overflow."""
    return queries.astype(np.int64) @ rows.astype(np.int64).T


@pytest.fixture(params=["numkong", "numpy"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes are read however little there is to read, by the library or by numpy."""
    if request.param == "numkong":
        pytest.importorskip("numkong", reason="vecbridge[fast] is not installed")
        assert codes.dots() is not None
    else:
        monkeypatch.setattr(codes, "dots", lambda: by_numpy)
        monkeypatch.setattr("vecbridge.backends.flat.matrix.dots", lambda: by_numpy)
    monkeypatch.setattr(codes, "_SCANNED", 0)
    monkeypatch.setattr(codes, "_SHARED", 1000)
    monkeypatch.setattr(codes, "_SHARE", 1)


def coded(matrix: Any) -> Vectors:
    norms = lengths(matrix)
    return Vectors("g", matrix, np.arange(len(matrix)), norms, codes.encode(matrix, norms), len(matrix))


def plain(vectors: Vectors) -> Vectors:
    return Vectors("g", vectors.matrix, vectors.rows, vectors.lengths)


def found(vectors: Vectors, queries: Any, **how: Any) -> list[dict[int, float]]:
    return [
        dict(zip(at.tolist(), scores.tolist(), strict=True))
        for at, scores in nearest(vectors, queries, **how)
    ]


def clustered(rows: int, dim: int, *, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((12, dim))
    made = centres[rng.integers(0, 12, rows)] + 0.5 * rng.standard_normal((rows, dim))
    return made.astype(np.float32)


# The bound


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_codes_leave_out_is_never_more_than_they_say(data: st.DataObject) -> None:
    dim = data.draw(st.integers(1, 40))
    row = st.lists(components, min_size=dim, max_size=dim)
    matrix = np.array(data.draw(st.lists(row, min_size=1, max_size=8)), dtype=np.float32)
    norms = lengths(matrix)
    made = codes.encode(matrix, norms)
    assert np.abs(made.matrix.astype(int)).max() <= 127
    scale, error = made.scales["scale"].astype(np.longdouble), made.scales["error"]
    assert np.isfinite(scale).all()
    assert np.isfinite(error).all()
    left = matrix.astype(np.longdouble) - made.matrix * scale[:, None]
    known = norms <= 2.0**120
    assert (np.sqrt((left * left).sum(axis=1)) <= error)[known].all()


def test_the_bound_is_hardly_larger_than_what_is_left_out() -> None:
    """It may not be loose either: then too many rows would be left, or it would have been found by luck."""
    matrix = np.random.default_rng(1).standard_normal((500, 3584)).astype(np.float32)
    made = codes.encode(matrix, lengths(matrix))
    left = matrix.astype(np.float64) - made.matrix * made.scales["scale"].astype(np.float64)[:, None]
    ratio = made.scales["error"] / np.sqrt((left * left).sum(axis=1))
    assert ratio.min() >= 1
    assert ratio.max() < 1.001


def test_rows_of_half_precision_are_coded_as_they_are_stored() -> None:
    matrix = np.random.default_rng(2).standard_normal((50, DIM)).astype(np.float16)
    single = matrix.astype(np.float32)
    one, other = codes.encode(matrix, lengths(matrix)), codes.encode(single, lengths(single))
    np.testing.assert_array_equal(one.matrix, other.matrix)
    np.testing.assert_array_equal(one.scales, other.scales)


def worst(metric: Metric, matrix: Any, query: Any) -> tuple[Vectors, Any, Any, Any]:
    """What is searched, and of each row its score and the two bounds of it."""
    vectors, length = coded(matrix), np.sqrt((query * query).sum(axis=1))
    seen: list[tuple[Any, Any, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes.Best, "offer", lambda self, *what: seen.append(what))
        codes.candidates(vectors, query, length, metric=metric, k=1, positions=None)
    at, low, high = (np.concatenate([one[i] for one in seen]) for i in range(3))
    assert at.tolist() == list(range(len(matrix)))
    x = matrix.astype(np.longdouble)
    score = (x * query[0]).sum(axis=1)
    if metric == "cosine":
        size = np.sqrt((x * x).sum(axis=1)) * length[0]
        score = np.divide(score, size, out=np.zeros_like(score), where=size > 0)
    if metric == "l2":
        score = -((x - query[0]) ** 2).sum(axis=1)
    return vectors, score, low, high


@pytest.mark.parametrize("metric", METRICS)
def test_every_score_lies_between_its_bounds(metric: Metric, kernel: None) -> None:
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((400, DIM)).astype(np.float32)
    matrix *= 10.0 ** rng.integers(-44, 37, (400, 1)).astype(np.float32)
    matrix[:20] = 0
    vectors, score, low, high = worst(metric, matrix, rng.standard_normal((1, DIM)) * 1e3)
    assert (low <= score).all()
    assert (score <= high).all()
    if metric == "cosine":
        ordinary = (vectors.lengths > 1e-25) & (vectors.lengths < 2.0**120)
        assert (high - low)[ordinary].max() < 0.1


@pytest.mark.parametrize("side", ["row", "query"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_bound_is_kept_where_all_that_is_left_out_points_one_way(
    metric: Metric, side: str, kernel: None
) -> None:
    """Rounding that agrees in sign with the other vector in every component: the worst there is."""
    signs = np.where(np.random.default_rng(14).random(DIM) < 0.5, -1.0, 1.0)
    exact = 127 * signs  # its own codes, nothing is left out
    rounded = np.random.default_rng(15).integers(-90, 90, DIM) + 0.499 * signs
    rounded[0] = 127
    row, query = (rounded, exact) if side == "row" else (exact, rounded)
    matrix = np.stack([row, -row, 8 * row]).astype(np.float32)
    _, score, low, high = worst(metric, matrix, query[None])
    assert (low <= score).all()
    assert (score <= high).all()
    # of what the bound allows nearly all is used up: half of it would not do
    assert (np.maximum(score - low, high - score) > 0.95 * (high - low)).all()


# Results


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_results_are_those_of_the_plain_scan_on_any_values(data: st.DataObject) -> None:
    metric, matrix, queries, k, positions = data.draw(scans())
    vectors = coded(matrix)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_SCANNED", 0), ("_SHARE", 0), ("_CROWD", 1), ("dots", lambda: by_numpy)):
            patch.setattr(codes, name, value)
        fast = found(vectors, queries, metric=metric, k=k, positions=positions)
    assert fast == found(plain(vectors), queries, metric=metric, k=k, positions=positions)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("metric", METRICS)
def test_one_query_and_many_find_what_the_plain_scan_finds(metric: Metric, half: bool, kernel: None) -> None:
    matrix = clustered(6000, DIM + 3, seed=4)
    matrix[100:110] = matrix[100]  # ties, some of them at the very end of what is asked for
    matrix[50], matrix[51] = 0.25 * matrix[100], 3 * matrix[100]
    vectors = coded(matrix.astype(np.float16) if half else matrix)
    queries = np.concatenate([matrix[99:101], clustered(codes.FEW - 3, DIM + 3, seed=5)])
    some = np.sort(np.random.default_rng(6).choice(6000, 4000, replace=False))
    for positions in (None, some, some[::8], np.arange(2000, 4000)):
        for k in (1, 3, 10, 15):
            how = {"metric": metric, "k": k, "positions": positions}
            expected = found(plain(vectors), queries, **how)
            assert found(vectors, queries, **how) == expected
            for query, one in zip(queries[:5], expected, strict=False):
                assert found(vectors, query[None], **how) == [one]
    left = codes.candidates(
        vectors, queries.astype(np.float64), lengths(queries), metric=metric, k=10, positions=None
    )
    assert sum(one is not None for one in left) > len(left) // 2, "the codes were hardly made use of"


def test_where_nothing_can_be_told_apart_the_plain_scan_answers(kernel: None) -> None:
    base = np.random.default_rng(8).standard_normal(DIM)
    matrix = (base + 1e-5 * np.random.default_rng(9).standard_normal((3000, DIM))).astype(np.float32)
    vectors, query = coded(matrix), matrix[:1]
    for k in (1, 10, 3000):
        how: dict[str, Any] = {"metric": "cosine", "k": k, "positions": None}
        assert codes.candidates(vectors, query.astype(np.float64), lengths(query), **how) == [None]
        assert found(vectors, query, **how) == found(plain(vectors), query, **how)


def test_a_library_that_multiplies_wrongly_is_not_used() -> None:
    assert codes._exact(by_numpy)
    # what sums in float32, in int16 pairs, or takes bytes for unsigned would give
    assert not codes._exact(lambda rows, queries: by_numpy(rows, queries) + 1)
    assert not codes._exact(lambda rows, queries: np.clip(by_numpy(rows, queries), -(2**15), 2**15 - 1))
    assert not codes._exact(lambda rows, queries: by_numpy(rows.view(np.uint8), queries))


def test_the_library_multiplies_exactly_in_many_dimensions() -> None:
    pytest.importorskip("numkong", reason="vecbridge[fast] is not installed")
    multiply = codes.dots()
    assert multiply is not None
    rng = np.random.default_rng(10)
    for dim in (*range(128, 200, 7), 1536, 3584, 4097, codes.MOST):
        rows = rng.integers(-127, 128, (9, dim), dtype=np.int8)
        rows[0], rows[1] = 127, -127
        for count in (1, 2, 9):
            np.testing.assert_array_equal(multiply(rows, rows[:count]), by_numpy(rows, rows[:count]))


def test_several_threads_share_the_helpers(kernel: None) -> None:
    matrix = clustered(4000, DIM, seed=11)
    vectors, how = coded(matrix), {"metric": "ip", "k": 5, "positions": None}
    expected = [found(plain(vectors), row[None], **how) for row in matrix[:8]]
    got: list[Any] = [None] * 8

    def ask(at: int) -> None:
        for _ in range(10):
            got[at] = found(vectors, matrix[at : at + 1], **how)

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected


def test_a_forked_child_does_not_wait_for_threads_of_its_parent(
    kernel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "_THREADS", 2)
    matrix = clustered(4000, DIM, seed=11)
    vectors, how = coded(matrix), {"metric": "ip", "k": 5, "positions": None}
    expected = found(vectors, matrix[:1], **how)
    assert len(codes._pool) == 1
    child = os.fork()
    if not child:
        try:
            os._exit(0 if not codes._pool and found(vectors, matrix[:1], **how) == expected else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Files


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[FlatBackend]:
    made = connect(f"flat:{tmp_path / 'data'}")
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "papers"


def create(backend: FlatBackend, *, dim: int = DIM, element: Element = "float32") -> FlatTable:
    return backend.create(
        Manifest(name="papers", space=Space(dim), layout=Layout(element=element), rows=1000)
    )


def batch(first: int, last: int) -> Batch:
    ids = [f"{i:05}" for i in range(first, last)]
    vectors = np.concatenate([clustered(1, DIM, seed=100 + i) for i in range(first, last)])
    return Batch(ids, vectors, ids, [{"n": i} for i in range(first, last)], [None] * len(ids))


def search(papers: FlatTable, query: Any) -> list[Hit]:
    return papers.search(query[None], None, k=4, where=None, exact=True)[0]


def has_codes(papers: FlatTable) -> bool:
    with papers._snapshot() as (_, state, vectors):
        assert len(vectors.matrix) == state.rows
        if vectors.codes is not None:
            again = codes.encode(vectors.matrix, vectors.lengths)
            np.testing.assert_array_equal(vectors.codes.matrix, again.matrix)
            np.testing.assert_array_equal(vectors.codes.scales, again.scales)
        return vectors.codes is not None


def right(papers: FlatTable) -> bool:
    """Whether a search finds what it has to find, and by bytes; fails where it finds something else."""
    everything = papers.read([f"{i:05}" for i in range(1000)])
    for query in clustered(3, DIM, seed=12):
        x, q = everything.vectors.astype(np.float64), query.astype(np.float64)
        scores = x @ q / np.sqrt((x * x).sum(axis=1) * (q * q).sum())
        assert [hit.id for hit in search(papers, query)] == [
            everything.ids[i] for i in np.argsort(-scores, kind="stable")[:4]
        ]
    return has_codes(papers)


def names(folder: Path) -> set[str]:
    return {path.name.split(".")[0] for path in folder.iterdir()} & {"vectors", "rows", "codes", "scales"}


@pytest.mark.parametrize("element", ["float32", "float16"])
def test_codes_grow_with_the_collection_and_are_there_for_the_next(
    backend: FlatBackend, folder: Path, element: Element, kernel: None
) -> None:
    papers = create(backend, element=element)
    for start in range(0, 300, 50):
        papers.write(batch(start, start + 50))
        assert has_codes(papers)
    papers.delete([f"{i:05}" for i in range(20)])
    assert has_codes(backend.open("papers"))
    assert names(folder) == {"vectors", "rows", "codes", "scales"}
    if element == "float32":
        assert right(papers)


def test_short_vectors_have_no_codes(backend: FlatBackend, folder: Path, kernel: None) -> None:
    papers = create(backend, dim=DIM - 1)
    ids = [f"{i:05}" for i in range(50)]
    papers.write(Batch(ids, clustered(50, DIM - 1, seed=1), ids, [{}] * 50, [None] * 50))
    papers.build_index(None)
    assert names(folder) == {"vectors", "rows"}


def test_without_a_library_there_are_no_codes_and_the_same_results(
    backend: FlatBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "dots", lambda: None)
    monkeypatch.setattr("vecbridge.backends.flat.matrix.dots", lambda: None)
    papers = create(backend)
    papers.write(batch(0, 100))
    papers.build_index(None)
    assert not right(papers)
    assert names(folder) == {"vectors", "rows"}


def test_compaction_takes_the_codes_along(
    backend: FlatBackend, folder: Path, monkeypatch: pytest.MonkeyPatch, kernel: None
) -> None:
    monkeypatch.setattr(table, "_DEAD", 10)
    papers = create(backend)
    papers.write(batch(0, 200))
    before = {path.name for path in folder.glob("codes.*")}
    papers.delete([f"{i:05}" for i in range(150)])
    papers.write(batch(200, 210))
    assert right(papers)
    after = {path.name for path in folder.iterdir() if path.name.startswith(("codes.", "scales."))}
    assert len(after) == 2
    assert not after & before


def forget(folder: Path) -> None:
    """What a program that knows nothing of codes leaves behind: no files, and no word of them."""
    for path in (*folder.glob("codes.*"), *folder.glob("scales.*")):
        path.unlink()
    with sqlite3.connect(folder / "records.sqlite") as connection:
        connection.execute("DELETE FROM meta WHERE key = 'coded'")
    connection.close()


def test_a_folder_of_an_older_program_is_searched_and_coded_by_build_index(
    backend: FlatBackend, folder: Path, kernel: None
) -> None:
    create(backend).write(batch(0, 100))
    forget(folder)
    papers = backend.open("papers")
    assert not right(papers)
    papers.write(batch(100, 150))
    assert not right(papers)
    papers.build_index(None)
    assert right(papers)
    papers.write(batch(150, 200))
    assert right(papers)
    assert right(backend.open("papers"))
    assert not list(folder.glob("*.new"))


def test_positions_that_an_older_program_added_are_not_believed_to_have_codes(
    backend: FlatBackend, folder: Path, kernel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where a writer died there and left codes of what was never committed."""
    papers = create(backend)
    papers.write(batch(0, 100))
    lost = batch(500, 550)
    generation = next(folder.glob("vectors.*")).name.split(".")[1]
    Files(folder, DIM, "float32").append(generation, 100, lost.vectors, 100, coded=100)
    with monkeypatch.context() as patch:
        patch.setattr("vecbridge.backends.flat.matrix.dots", lambda: None)
        backend.open("papers").write(batch(100, 150))
    again = backend.open("papers")
    assert not right(again)
    again.write(batch(150, 160))
    assert not right(again)
    again.build_index(None)
    assert right(again)
    assert right(papers) or not has_codes(papers)


@pytest.mark.parametrize("which", ["codes", "scales"])
@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_codes_that_are_missing_or_cut_off_are_done_without_and_made_anew(
    backend: FlatBackend, folder: Path, which: str, damage: str, kernel: None
) -> None:
    create(backend).write(batch(0, 100))
    (path,) = folder.glob(f"{which}.*")
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 1 if damage == "short" else 0)
    papers = backend.open("papers")
    assert not right(papers)
    papers.write(batch(100, 120))
    assert not right(papers)
    papers.build_index(None)
    assert right(papers)


def test_what_a_dead_writer_left_behind_the_codes_is_written_over(
    backend: FlatBackend, folder: Path, kernel: None
) -> None:
    papers = create(backend)
    papers.write(batch(0, 100))
    for path in folder.glob("[cs][oc]*.*[8n]"):
        with path.open("ab") as file:
            file.write(random.Random(1).randbytes(777))
    assert right(papers)
    papers.write(batch(100, 130))
    assert right(papers)
    assert right(backend.open("papers"))


def test_an_append_that_fails_cuts_the_codes_back(
    backend: FlatBackend, folder: Path, kernel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    papers = create(backend)
    papers.write(batch(0, 100))
    before = {path.name: path.stat().st_size for path in folder.iterdir() if "." in path.name}
    calls: list[int] = []

    def full(file: int, data: Any, offset: int) -> int:
        calls.append(len(data))
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return len(data)

    with monkeypatch.context() as patch:
        patch.setattr("vecbridge.backends.flat.matrix.os.pwrite", full)
        with pytest.raises(StoreError, match="no room to write"):
            papers.write(batch(100, 150))
    for name, size in before.items():
        if name.startswith(("vectors", "rows", "codes", "scales")):
            assert (folder / name).stat().st_size == size
    papers.write(batch(100, 150))
    assert right(papers)


def test_filters_and_deletes_are_searched_by_codes_too(
    backend: FlatBackend, kernel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    papers = create(backend)
    papers.write(batch(0, 400))
    papers.delete([f"{i:05}" for i in range(0, 400, 7)])
    everything = papers.read([f"{i:05}" for i in range(400)])
    query = clustered(1, DIM, seed=13)
    for where in (None, {"n": {"$lt": 300}}, {"n": {"$in": list(range(0, 400, 9))}}):
        parsed = None if where is None else parse(where)
        fast = papers.search(query, None, k=3, where=parsed, exact=True)
        with monkeypatch.context() as patch:
            patch.setattr(codes, "dots", lambda: None)
            assert papers.search(query, None, k=3, where=parsed, exact=True) == fast
        assert {hit.id for hit in fast[0]} <= set(everything.ids)
