"""Matrices and Parquet become records; rows that are none are rejected, arrays that are none refused."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from sources import jsonl, kept, plain, records, refused, written

from vecbridge.errors import SourceError
from vecbridge.ingestion.readers import read
from vecbridge.ingestion.records import Origin, Record

# --- matrices


def matrix_with(tmp_path: Path, matrix: Any, rows: int | None = None, *, end: str = ".npy") -> Path:
    save: Any = np.save if end == ".npy" else np.savez
    save(tmp_path / f"m{end}", matrix)
    described = range(len(matrix) if rows is None else rows)
    jsonl(tmp_path / "m.jsonl", *({"id": f"r{n}", "n": n} for n in described))
    return tmp_path / f"m{end}"


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2", "i2"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("end", [".npy", ".npz"])
def test_row_i_of_a_matrix_belongs_to_record_i_beside_it(
    tmp_path: Path, kind: str, order: Any, end: str
) -> None:
    matrix = np.asarray(np.random.default_rng(1).standard_normal((700, 5)) * 9, dtype=kind, order=order)
    found = records(matrix_with(tmp_path, matrix, end=end))
    assert [record.id for record in found] == [f"r{n}" for n in range(700)]
    assert [record.metadata["n"] for record in found] == list(range(700))
    assert np.array_equal([record.vector for record in found], matrix.astype(np.float32))


def test_a_csv_beside_a_matrix_takes_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.ones((2, 3)))
    written(tmp_path / "m.csv", "id,n\na,1\nb,2\n")
    assert [record.metadata for record in records(tmp_path / "m.npy", numbers=["n"])] == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("texts", ["texts", "documents"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_can_hold_ids_and_texts_beside_its_vectors(tmp_path: Path, texts: str, save: Any) -> None:
    matrix = np.random.default_rng(1).standard_normal((600, 3)).astype(np.float32)
    arrays = {"ids": [f"ü{n}" for n in range(600)], texts: [f"text {n} 日本" for n in range(600)]}
    save(tmp_path / "m.npz", anything=matrix, **{name: np.array(value) for name, value in arrays.items()})
    found = records(tmp_path / "m.npz")
    assert [record.id for record in found] == arrays["ids"]
    assert [record.text for record in found] == arrays[texts]
    assert np.array_equal([record.vector for record in found], matrix)
    assert found[1].origin == Origin(str(tmp_path / "m.npz"), "row", 2)


def test_an_npz_without_ids_names_its_rows_and_takes_numbers_as_ids(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", v=np.ones((2, 2)), texts=np.array(["one", "two"]))
    np.savez(tmp_path / "b.npz", v=np.ones((2, 2)), ids=np.array([7, 9]))
    assert plain(tmp_path / "a.npz") == [("a.npz:1", "one", {}), ("a.npz:2", "two", {})]
    assert plain(tmp_path / "b.npz") == [("7", None, {}), ("9", None, {})]


def test_of_several_arrays_one_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", titles=np.zeros((1, 2)), bodies=np.ones((1, 3)))
    jsonl(tmp_path / "m.jsonl", {"id": "a"})
    (record,) = records(tmp_path / "m.npz", vector_field="bodies")
    assert record.vector is not None
    assert record.vector.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("end", [".npy", ".npz"])
def test_a_matrix_and_its_records_must_agree_before_the_first_is_given(
    tmp_path: Path, rows: int, end: str
) -> None:
    items = read(matrix_with(tmp_path, np.ones((3, 2)), rows, end=end))
    with pytest.raises(
        SourceError, match=rf"m\.jsonl: expected 3 records, one for each row of .*, got {rows}"
    ):
        next(items)


def test_a_matrix_needs_exactly_one_file_beside_it(tmp_path: Path) -> None:
    source = matrix_with(tmp_path, np.ones((3, 2)))
    written(tmp_path / "m.csv", "id\na\nb\nc\n")
    with pytest.raises(
        SourceError, match=r"expected one file m\.jsonl or \.csv beside it, .*, got .* and .*"
    ):
        read(source)
    (tmp_path / "m.csv").unlink()
    (tmp_path / "m.jsonl").unlink()
    with pytest.raises(SourceError, match=r"expected one file m\.jsonl or \.csv beside it, .*, got none"):
        read(source)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.array([[{}], [{}]], dtype=object), r"expected (a matrix|plain numbers).*Python objects"),
        (np.ones(3), r"of shape \(n, dim\), got float64 of shape \(3,\)"),
        (np.ones((2, 2), dtype=bool), r"of shape \(n, dim\), got bool"),
        (np.ones((2, 2), dtype=complex), r"of shape \(n, dim\), got complex128"),
        (np.ones((2, 0)), r"expected a matrix of numbers"),
    ],
)
@pytest.mark.parametrize("end", [".npy", ".npz"])
def test_an_array_that_is_no_matrix_of_numbers_is_refused(
    tmp_path: Path, matrix: Any, message: str, end: str
) -> None:
    with pytest.raises(SourceError, match=message):
        list(read(matrix_with(tmp_path, matrix, end=end)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
@pytest.mark.parametrize("end", [".npy", ".npz"])
def test_a_row_without_numbers_is_rejected_with_the_id_of_its_record(
    tmp_path: Path, bad: float, end: str
) -> None:
    source = matrix_with(tmp_path, np.array([[1.0, 2.0], [1.0, bad], [3.0, 4.0]]), end=end)
    ((origin, reason, key),) = refused(source)
    assert (origin, key) == (f"m{end}: row 2", "r1")
    assert reason.startswith(f"expected numbers, got {bad} at component 1")
    assert kept(source) == ["r0", "r2"]


def test_a_broken_line_beside_a_matrix_shifts_no_other(tmp_path: Path) -> None:
    source = matrix_with(tmp_path, np.arange(6.0).reshape(3, 2))
    written(tmp_path / "m.jsonl", '{"id": "a"}\n{broken\n{"id": "c"}\n')
    assert [origin for origin, _, _ in refused(source)] == ["m.jsonl:2"]
    found = {item.id: item.vector.tolist() for item in read(source) if isinstance(item, Record)}  # type: ignore[union-attr] # each row has one
    assert found == {"a": [0.0, 1.0], "c": [4.0, 5.0]}


def test_a_broken_row_of_csv_beside_a_matrix_is_refused_as_rows_may_have_shifted(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.ones((3, 2)))
    written(tmp_path / "m.csv", 'id,n\na,1\nb,"2"2\nc,3\n')
    with pytest.raises(SourceError, match=r"m\.csv:3: expected CSV, got a broken row"):
        list(read(tmp_path / "m.npy"))


@pytest.mark.parametrize("end", [".npy", ".npz"])
def test_a_truncated_matrix_is_refused(tmp_path: Path, end: str) -> None:
    source = matrix_with(tmp_path, np.ones((50, 4)), end=end)
    source.write_bytes(source.read_bytes()[:-8])
    with pytest.raises(SourceError, match=rf"m{end}: expected (a matrix of numbers|arrays) as {end}"):
        list(read(source))


def test_an_npz_whose_numbers_are_damaged_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", v=np.ones((50, 4)), texts=np.array(["t"] * 50))
    raw = bytearray((tmp_path / "m.npz").read_bytes())
    raw[600:608] = b"\1" * 8
    (tmp_path / "m.npz").write_bytes(raw)
    with pytest.raises(SourceError, match=r"m\.npz, array 'v': .*: Bad CRC-32"):
        list(read(tmp_path / "m.npz"))


def test_a_second_vector_beside_a_matrix_is_rejected(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.ones((2, 2)))
    jsonl(tmp_path / "m.jsonl", {"id": "a", "vector": [1, 2]}, {"id": "b"})
    ((origin, reason, _),) = refused(tmp_path / "m.npy")
    assert origin == "m.jsonl:1"
    assert reason == f"expected vectors in {tmp_path}/m.npy alone, got a field 'vector' too"
    assert kept(tmp_path / "m.npy") == ["b"]


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"a": np.ones((1, 2)), "b": np.ones((1, 2))}, {}, r"expected one array of vectors.*'a', 'b'"),
        ({"a": np.ones((1, 2))}, {"vector_field": "v"}, r"expected an array 'v', got 'a'"),
        ({"ids": np.array(["x"])}, {}, r"expected one array of vectors, or its name, got 'ids'"),
        (
            {"a": np.ones((2, 2)), "ids": np.array(["x"])},
            {},
            r"array 'ids': expected 2 texts, one for each vector, got <U1 of shape \(1,\)",
        ),
        (
            {"a": np.ones((1, 2)), "texts": np.array([b"x"])},
            {},
            r"array 'texts': expected 1 texts, .*, got \|S1 of shape",
        ),
        (
            {"a": np.ones((1, 2)), "ids": np.array(["x"], dtype=object)},
            {},
            r"array 'ids': .*Python objects.*pickles are never opened",
        ),
        (
            {"a": np.ones((1, 2)), "ids": np.array(["x"])},
            {"numbers": ["n"]},
            r"numbers \(--number\) is for CSV",
        ),
    ],
)
def test_an_npz_whose_arrays_do_not_fit_is_refused(
    tmp_path: Path, arrays: Any, options: Any, message: str
) -> None:
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(SourceError, match=message):
        list(read(tmp_path / "m.npz", **options))


def test_bad_rows_of_an_npz_with_texts_are_rejected(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "m.npz",
        v=[[1.0], [np.nan], [3.0]],
        ids=np.array(["a", "b", "c"]),
        texts=["x", "y", "z\0z"],
    )
    assert [(origin, key) for origin, _, key in refused(tmp_path / "m.npz")] == [
        ("m.npz: row 2", "b"),
        ("m.npz: row 3", "c"),
    ]


# --- Parquet


def table(path: Path, columns: dict[str, Any], **types: pyarrow.DataType) -> Path:
    arrays = {name: pyarrow.array(values, types.get(name)) for name, values in columns.items()}
    parquet.write_table(pyarrow.table(arrays), path, row_group_size=300)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.list_(pyarrow.float32()),
        pyarrow.list_(pyarrow.float32(), 4),
        pyarrow.large_list(pyarrow.float64()),
        pyarrow.list_(pyarrow.float16(), 4),
    ],
    ids=str,
)
def test_parquet_keeps_types_and_vectors_in_every_kind_of_list(
    tmp_path: Path, kind: pyarrow.DataType
) -> None:
    matrix = np.random.default_rng(2).standard_normal((700, 4)).astype(np.float16)
    source = table(
        tmp_path / "a.parquet",
        {
            "id": list(range(700)),
            "text": [f"t{n}" for n in range(700)],
            "n": [n * 2 for n in range(700)],
            "vector": list(matrix) if kind.value_type == pyarrow.float16() else matrix.astype(float).tolist(),
        },
        vector=kind,
    )
    found = records(source)
    assert [record.id for record in found] == [str(n) for n in range(700)]
    assert [record.metadata for record in found] == [{"n": n * 2} for n in range(700)]
    assert np.array_equal([record.vector for record in found], matrix.astype(np.float32))


@pytest.mark.parametrize(
    "kind", [pyarrow.list_(pyarrow.float32()), pyarrow.list_(pyarrow.float32(), 2)], ids=str
)
def test_a_null_vector_is_none_and_shifts_no_other(tmp_path: Path, kind: pyarrow.DataType) -> None:
    vectors = [[1.0, 2.0], None, [3.0, 4.0]]
    found = records(table(tmp_path / "a.parquet", {"text": ["a", "b", "c"], "vector": vectors}, vector=kind))
    assert [None if record.vector is None else record.vector.tolist() for record in found] == vectors
    assert [record.id for record in found] == ["a.parquet:1", "a.parquet:2", "a.parquet:3"]
    assert str(found[2].origin).endswith("a.parquet: row 3")


def test_nulls_and_nans_of_parquet_are_left_out_and_dates_become_text(tmp_path: Path) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5)
    columns = {"id": ["a", "b"], "text": ["x", "y"], "n": [None, 1], "f": [float("nan"), 0.5]}
    source = table(tmp_path / "a.parquet", {**columns, "when": [moment, None]})
    assert [record.metadata for record in records(source)] == [
        {"when": "2026-01-02T03:04:05"},
        {"n": 1, "f": 0.5},
    ]


@pytest.mark.parametrize(
    ("columns", "origin", "message"),
    [
        (
            {"text": ["a", "b"], "vector": [[1.0, 2.0], [1.0]]},
            "row 2",
            "expected a vector of 2 numbers as at",
        ),
        ({"text": ["a", "b"], "vector": [[1.0], []]}, "row 2", "expected a vector, got an empty list"),
        (
            {"text": ["a", "b", "c"], "vector": [[1.0, 2.0], [None, 1.0], [3.0, 4.0]]},
            "row 2",
            "expected a vector, got a null among its numbers",
        ),
        ({"text": ["a", "b"], "vector": [[1.0], [float("inf")]]}, "row 2", "expected a vector, got inf"),
        ({"text": ["a", "b"], "blob": [None, b"\x00"]}, "row 2", "expected text, numbers, true"),
        ({"text": ["a", None]}, "row 2", "expected text (in text or document or content) or a vector, got"),
        (
            {"text": pyarrow.array([b"a", b"\xe9"]).view("string")},
            "row 2",
            "expected text in UTF-8, got other",
        ),
    ],
)
def test_a_row_of_parquet_that_cannot_be_stored_is_rejected(
    tmp_path: Path, columns: Any, origin: str, message: str
) -> None:
    source = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(columns), source)
    ((place, reason, _),) = refused(source)
    assert place == f"a.parquet: {origin}"
    assert reason.startswith(message)
    assert len(kept(source)) == len(columns["text"]) - 1


def test_memory_holds_a_few_row_groups_of_a_long_parquet_file(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((12_000, 256)).astype(np.float32)
    path, flat = tmp_path / "long.parquet", pyarrow.array(vectors.ravel())
    columns = {"vector": pyarrow.FixedSizeListArray.from_arrays(flat, 256)}
    parquet.write_table(pyarrow.table(columns), path, row_group_size=200)
    del columns, flat
    before = pyarrow.total_allocated_bytes()
    peak = max(pyarrow.total_allocated_bytes() - before for _ in read(path))
    assert path.stat().st_size > 10_000_000
    assert peak < 4_000_000


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "vector": ["[1]"]}, r"expected the vectors as lists of numbers, got string"),
        ({"text": pyarrow.array([], pyarrow.string())}, r"expected at least one record, got none"),
    ],
)
def test_parquet_of_no_use_is_refused(tmp_path: Path, columns: Any, message: str) -> None:
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=rf"a\.parquet: {message}"):
        list(read(tmp_path / "a.parquet"))


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.parquet: expected a Parquet file"):
        list(read(written(tmp_path / "a.parquet", "nothing of the kind")))
