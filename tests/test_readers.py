"""Files become records, and whatever cannot become one is named with its file and line."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import tracemalloc
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from vecbridge.errors import InputError, SourceError
from vecbridge.ingestion import Record, read
from vecbridge.ingestion.chunks import chunks


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def plain(records: Iterable[Record]) -> list[tuple[str, str | None, dict[str, Any]]]:
    return [(record.id, record.text, dict(record.metadata)) for record in records]


# --- JSON lines


def test_every_field_without_a_meaning_of_its_own_is_metadata(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "a.jsonl", {"id": "x", "text": "one", "topic": "law", "year": 1999, "old": None}
    )
    assert plain(read(source)) == [("x", "one", {"topic": "law", "year": 1999, "old": None})]


def test_the_entries_of_a_metadata_object_join_the_other_fields(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"id": "x", "text": "one", "metadata": {"a": {"b": 1}}, "c": 2})
    assert plain(read(source)) == [("x", "one", {"a": {"b": 1}, "c": 2})]


def test_a_key_in_the_metadata_object_and_beside_it_is_refused(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"id": "x", "text": "one", "metadata": {"a": 1}, "a": 2})
    with pytest.raises(SourceError, match=r"a\.jsonl:1: expected 'a' once, got it inside the metadata and"):
        list(read(source))


@pytest.mark.parametrize("name", ["text", "document", "content"])
def test_the_text_has_one_of_three_names(tmp_path: Path, name: str) -> None:
    assert next(read(jsonl(tmp_path / "a.jsonl", {"id": "x", name: "one"}))).text == "one"


def test_a_null_text_gives_way_to_the_next_name(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"id": "x", "text": None, "content": "one"})
    assert plain(read(source)) == [("x", "one", {})]


@pytest.mark.parametrize("name", ["vector", "embedding"])
def test_a_vector_is_a_list_of_numbers_under_one_of_two_names(tmp_path: Path, name: str) -> None:
    record = next(read(jsonl(tmp_path / "a.jsonl", {"id": "x", name: [1, -0.5, 2e-3]})))
    assert record.text is None
    assert record.vector is not None
    assert record.vector.dtype == np.float32
    assert record.vector.tolist() == np.float32([1, -0.5, 2e-3]).tolist()
    assert record.metadata == {}


def test_a_record_without_id_is_named_by_its_line_and_blank_lines_count(tmp_path: Path) -> None:
    source = written(tmp_path / "notes.jsonl", '{"text": "a"}\n\n \n{"text": "b"}\n')
    assert [record.id for record in read(source)] == ["notes.jsonl:1", "notes.jsonl:4"]
    assert [record.id for record in read(source)] == ["notes.jsonl:1", "notes.jsonl:4"]


def test_a_whole_number_is_an_id(tmp_path: Path) -> None:
    assert next(read(jsonl(tmp_path / "a.jsonl", {"id": 17, "text": "a"}))).id == "17"


def test_fields_can_be_named(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"key": "x", "body": "one", "v": [1.0], "text": "kept", "id": 3})
    record = next(read(source, id_field="key", text_field="body", vector_field="v"))
    assert (record.id, record.text, record.metadata) == ("x", "one", {"text": "kept", "id": 3})
    assert record.vector is not None


def test_a_named_field_must_be_in_every_record(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"body": "one"}, {"text": "two"})
    with pytest.raises(SourceError, match=r"a\.jsonl:2: expected a field 'body', got 'text'"):
        list(read(source, text_field="body"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', r"expected a JSON object in one line, got Expecting value at column"),
        ('{"text": "a"} {"text": "b"}', r"in one line, got Extra data at column 15"),
        ("[", r"in one line, got the start of a list over several lines"),
        ('["a"]', r"expected a JSON object in each line, got a list: \['a'\]"),
        ('{"text": "a", "n": NaN}', r"expected a JSON object, got NaN, which is no JSON number"),
        ('{"text": "a", "n": ' + "[" * 100_000, r"expected a JSON object"),
        ('{"text": "a", "n": ' + "[" * 60 + "]" * 60 + "}", r"expected metadata nested up to 50 levels"),
        ('{"text": "a", "n": 99999999999999999999}', r"whole numbers of 64 bits in metadata"),
        ('{"id": "", "text": "a"}', r"expected the id as text or a whole number, got ''"),
        ('{"id": 1.5, "text": "a"}', r"expected the id as text or a whole number, got 1\.5"),
        ('{"id": true, "text": "a"}', r"expected the id as text or a whole number, got True"),
        ('{"id": "' + "x" * 1025 + '", "text": "a"}', r"expected an id of up to 1,024 bytes, got 1,025"),
        ('{"text": 5}', r"expected the text as text, got 5"),
        ('{"id": "a"}', r"expected text \(in text or document or content\) or a vector, got neither"),
        ('{"text": " \\n"}', r"expected text \(in .*\) or a vector, got blank text"),
        ('{"text": "a\\u0000b"}', r"the text holds a NUL character"),
        ('{"text": "a\\ud800b"}', r"the text holds a lone surrogate \(U\+D800\)"),
        ('{"id": "\\u0000", "text": "a"}', r"the id holds a NUL character"),
        ('{"vector": "abc"}', r"expected the vector as a list of numbers, got str"),
        ('{"vector": []}', r"expected the vector as a list of numbers, got an empty list"),
        ('{"vector": [1, "2"]}', r"expected the vector as a list of numbers, got a list that holds str"),
        ('{"vector": [1, true]}', r"expected the vector as a list of numbers, got a list that holds bool"),
        ('{"vector": [1, [2]]}', r"expected the vector as a list of numbers, got a list that holds list"),
        ('{"vector": [1, 1e39]}', r"as a list of numbers, got 1e\+39 at component 1"),
        ('{"vector": [1, ' + "9" * 400 + "]}", r"a number beyond the range of floats"),
    ],
)
def test_what_is_no_record_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    source = written(tmp_path / "a.jsonl", '{"text": "fine"}\n' + line + "\n")
    with pytest.raises(SourceError, match=rf"a\.jsonl:2: .*{message}"):
        list(read(source))


def test_vectors_of_two_lengths_are_refused_with_both_places(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"vector": [1, 2, 3]}, {"vector": [1, 2]})
    with pytest.raises(SourceError, match=r"a\.jsonl:2: expected a vector of 3 numbers as at .*:1, got 2"):
        list(read(source))


# --- encodings and packing


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        lambda text: text.replace("\n", "\r\n").encode(),
    ],
    ids=["utf-8", "utf-8 with mark", "utf-16 little", "utf-16 big", "windows line ends"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_text_is_read_in_every_encoding_that_can_be_told_apart(
    tmp_path: Path, encode: Any, packed: bool
) -> None:
    raw = encode('{"id": "ä", "text": "日本 €"}\n{"id": "b", "text": "two"}\n')
    source = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    source.write_bytes(gzip.compress(raw) if packed else raw)
    assert plain(read(source)) == [("ä", "日本 €", {}), ("b", "two", {})]


def test_another_encoding_is_refused_with_the_line_and_the_byte(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(
        SourceError, match=r"a\.jsonl:2: expected text in UTF-8 .*, got byte 0xE9 at position 13"
    ):
        list(read(source))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (codecs.BOM_UTF16_LE + b"{\x00\x00\xd8a\x00", r"a\.jsonl:1: expected text in UTF-8 .*broken utf-16"),
        (codecs.BOM_UTF32_LE + "x".encode("utf-32-le"), r"expected UTF-8 or UTF-16, got UTF-32"),
    ],
)
def test_broken_utf_16_and_utf_32_are_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(raw)
    with pytest.raises(SourceError, match=message):
        list(read(source))


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-9], lambda raw: b"no gzip at all", lambda raw: raw[:20] + b"\xff" * 9 + raw[29:]],
)
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, damage: Any) -> None:
    source = tmp_path / "a.jsonl.gz"
    source.write_bytes(damage(gzip.compress(b"".join(b'{"text": "%d"}\n' % n for n in range(2000)))))
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz:\d+: expected a whole gzip file"):
        list(read(source))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.md"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=rf"{name}: expected at least one record, got none"):
        list(read(written(tmp_path / name, "\n")) if name != "a.csv" else read(written(tmp_path / name, "")))


def test_a_missing_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.jsonl: expected a file or a folder, found nothing there"):
        read(tmp_path / "none.jsonl")


@pytest.mark.parametrize("name", ["a.json", "a.pdf", "a", "a.txt.gz", "a.gz"])
def test_another_kind_of_file_is_refused_with_the_known_kinds(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        SourceError, match=r"expected a folder, or a file that ends in \.jsonl, \.ndjson, \.csv"
    ):
        read(written(tmp_path / name, "[]"))


def test_a_pipe_is_refused_instead_of_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(SourceError, match=r"expected a file that can be read twice, got a pipe or a device"):
        read(tmp_path / "a.jsonl")


def test_reading_takes_constant_memory(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl.gz"
    with gzip.open(source, "wt", compresslevel=1) as file:
        file.writelines(json.dumps({"id": n, "text": "word " * 200}) + "\n" for n in range(4_000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read(source)) == 4_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# --- CSV


def test_values_of_csv_stay_text_and_empty_cells_are_left_out(tmp_path: Path) -> None:
    source = written(tmp_path / "a.csv", 'id,text,zip,note\n1,"one, two",00501,\n2,"a\nb",7,x\n')
    assert plain(read(source)) == [
        ("1", "one, two", {"zip": "00501"}),
        ("2", "a\nb", {"zip": "7", "note": "x"}),
    ]


def test_columns_named_as_numbers_are_numbers(tmp_path: Path) -> None:
    source = written(tmp_path / "a.csv", "id,text,n,x\na,t,7,1.5\nb,t,,-2e3\nc,t, 8 ,4.\n")
    found = [record.metadata for record in read(source, numbers=["n", "x"])]
    assert found == [{"n": 7, "x": 1.5}, {"x": -2000.0}, {"n": 8, "x": 4.0}]
    assert type(found[0]["n"]) is int


@pytest.mark.parametrize("cell", ["seven", "1_000", "nan", "inf", "0x10", "1e999", "٣"])
def test_what_is_no_number_in_such_a_column_is_refused(tmp_path: Path, cell: str) -> None:
    with pytest.raises(SourceError, match=r"a\.csv:2: expected a number in 'n', got "):
        list(read(written(tmp_path / "a.csv", f"text,n\nt,{cell}\n"), numbers=["n"]))


def test_numbers_are_refused_where_the_source_has_types(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"numbers= is for CSV"):
        read(jsonl(tmp_path / "a.jsonl", {"text": "a", "n": 1}), numbers=["n"])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_header_tells_the_separator(tmp_path: Path, separator: str) -> None:
    source = written(tmp_path / "a.csv", "id;text;a\nx;one, two, three;b\n".replace(";", separator))
    if separator == ",":
        source = written(tmp_path / "a.csv", 'id,text,a\nx,"one, two, three",b\n')
    assert plain(read(source)) == [("x", "one, two, three", {"a": "b"})]


def test_a_vector_in_csv_is_a_json_list_of_any_length(tmp_path: Path) -> None:
    vector = np.random.default_rng(5).standard_normal(12_000)
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "vector"], ["x", json.dumps(vector.tolist())]])
    before = csv.field_size_limit()
    record = next(read(tmp_path / "a.csv"))
    assert record.vector is not None
    assert np.array_equal(record.vector, vector.astype(np.float32))
    assert csv.field_size_limit() == before


def test_a_row_of_csv_without_id_is_named_by_the_line_it_starts_on(tmp_path: Path) -> None:
    source = written(tmp_path / "a.csv", 'text\n"a\nb"\n\nc\n')
    assert [(record.id, record.text) for record in read(source)] == [("a.csv:2", "a\nb"), ("a.csv:5", "c")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,text,text\n", r"a\.csv:1: expected each column once, got 'text' twice"),
        (",text\n0,a\n", r"a\.csv:1: expected a name for column 1, got none \(pandas"),
        ("id,text\nx,a,b\n", r"a\.csv:2: expected 2 cells as in the header, got 3"),
        ("id,text\nx\n", r"a\.csv:2: expected 2 cells as in the header, got 1"),
        ('id,text\nx,"a\n', r"a\.csv:\d: expected CSV, got a broken row: unexpected end of data"),
        ("\nid,text\n", r"a\.csv:1: expected the names of the columns in the first line, got a blank one"),
        ("id,text\nx,\n", r"a\.csv:2: expected text .* or a vector, got neither"),
        ('id,vector\nx,"[1, oops]"\n', r"a\.csv:2: expected a vector such as \[0\.1, -0\.2\], got"),
        ("id,vector\nx,1 2 3\n", r"a\.csv:2: expected the vector as a list of numbers, got str"),
        ("id,text\n", r"a\.csv: expected at least one record, got none"),
    ],
)
def test_broken_csv_is_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        list(read(written(tmp_path / "a.csv", text)))


# --- matrices


def matrix_with(tmp_path: Path, matrix: Any, rows: int | None = None) -> Path:
    np.save(tmp_path / "m.npy", matrix)
    jsonl(
        tmp_path / "m.jsonl", *({"id": f"r{n}", "n": n} for n in range(len(matrix) if rows is None else rows))
    )
    return tmp_path / "m.npy"


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2", "i2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_row_i_of_a_matrix_belongs_to_record_i_beside_it(tmp_path: Path, kind: str, order: Any) -> None:
    matrix = np.asarray(np.random.default_rng(1).standard_normal((700, 5)) * 9, dtype=kind, order=order)
    records = list(read(matrix_with(tmp_path, matrix)))
    assert [record.id for record in records] == [f"r{n}" for n in range(700)]
    assert [record.metadata["n"] for record in records] == list(range(700))
    assert np.array_equal([record.vector for record in records], matrix.astype(np.float32))


def test_a_csv_beside_a_matrix_takes_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.ones((2, 3)))
    written(tmp_path / "m.csv", "id,n\na,1\nb,2\n")
    assert [record.metadata for record in read(tmp_path / "m.npy", numbers=["n"])] == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("rows", [2, 4])
def test_a_matrix_and_its_records_must_agree_before_the_first_is_given(tmp_path: Path, rows: int) -> None:
    records = read(matrix_with(tmp_path, np.ones((3, 2)), rows))
    with pytest.raises(
        SourceError, match=rf"m\.jsonl: expected 3 records, one for each row of .*, got {rows}"
    ):
        next(records)


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
        (np.array([[{}], [{}]], dtype=object), r"expected a matrix of numbers as \.npy: .*Python objects"),
        (np.ones(3), r"of shape \(n, dim\), got float64 of shape \(3,\)"),
        (np.ones((2, 2), dtype=bool), r"of shape \(n, dim\), got bool"),
        (np.ones((2, 2), dtype=complex), r"of shape \(n, dim\), got complex128"),
        (np.ones((2, 0)), r"expected a matrix of numbers"),
        (np.array([[1.0, 2.0], [1.0, np.nan]]), r"m\.npy: row 1, counted from 0: expected numbers, got nan"),
        (np.array([[1.0, 2.0], [1e39, 1.0]]), r"m\.npy: row 1, counted from 0: expected numbers, got 1e\+39"),
    ],
)
def test_a_matrix_that_holds_no_vectors_is_refused(tmp_path: Path, matrix: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        list(read(matrix_with(tmp_path, matrix)))


def test_a_truncated_matrix_is_refused(tmp_path: Path) -> None:
    source = matrix_with(tmp_path, np.ones((50, 4)))
    source.write_bytes(source.read_bytes()[:-8])
    with pytest.raises(SourceError, match=r"m\.npy: expected a matrix of numbers as \.npy"):
        list(read(source))


def test_a_second_vector_beside_a_matrix_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.ones((1, 2)))
    jsonl(tmp_path / "m.jsonl", {"id": "a", "vector": [1, 2]})
    with pytest.raises(
        SourceError, match=r"m\.jsonl:1: expected vectors in .*m\.npy alone, got a field 'vector'"
    ):
        list(read(tmp_path / "m.npy"))


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
    records = list(read(source))
    assert [record.id for record in records] == [str(n) for n in range(700)]
    assert [record.metadata for record in records] == [{"n": n * 2} for n in range(700)]
    assert np.array_equal([record.vector for record in records], matrix.astype(np.float32))


@pytest.mark.parametrize(
    "kind", [pyarrow.list_(pyarrow.float32()), pyarrow.list_(pyarrow.float32(), 2)], ids=str
)
def test_a_null_vector_is_none_and_shifts_no_other(tmp_path: Path, kind: pyarrow.DataType) -> None:
    vectors = [[1.0, 2.0], None, [3.0, 4.0]]
    records = list(
        read(table(tmp_path / "a.parquet", {"text": ["a", "b", "c"], "vector": vectors}, vector=kind))
    )
    assert [None if record.vector is None else record.vector.tolist() for record in records] == vectors
    assert [record.id for record in records] == ["a.parquet:1", "a.parquet:2", "a.parquet:3"]


def test_nulls_and_nans_of_parquet_are_left_out_and_dates_become_text(tmp_path: Path) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5)
    source = table(
        tmp_path / "a.parquet",
        {
            "id": ["a", "b"],
            "text": ["x", "y"],
            "n": [None, 1],
            "f": [float("nan"), 0.5],
            "when": [moment, None],
        },
    )
    assert [record.metadata for record in read(source)] == [
        {"when": "2026-01-02T03:04:05"},
        {"n": 1, "f": 0.5},
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": ["a", "b"], "vector": [[1.0, 2.0], [1.0]]},
            r"row 2: expected a vector of 2 numbers as at .*, got 1",
        ),
        ({"text": ["a", "b"], "vector": [[1.0], []]}, r"row 2: expected a vector, got an empty list"),
        (
            {"text": ["a", "b"], "vector": [[1.0, 2.0], [None, 1.0]]},
            r"row 2: expected numbers in the vector, got null",
        ),
        ({"text": ["a", "b"], "vector": [[1.0], [float("inf")]]}, r"row 2: expected a vector, got inf"),
        ({"text": ["a"], "vector": ["[1]"]}, r"expected the vectors as lists of numbers, got string"),
        ({"text": ["a"], "blob": [b"\x00"]}, r"row 1: .*metadata, got bytes; JSON cannot hold it"),
        ({"text": ["a", None]}, r"row 2: expected text .* or a vector, got neither"),
        ({"text": pyarrow.array([], pyarrow.string())}, r"expected at least one record, got none"),
    ],
)
def test_parquet_that_cannot_be_stored_is_named_by_row(tmp_path: Path, columns: Any, message: str) -> None:
    with pytest.raises(SourceError, match=rf"a\.parquet.*{message}"):
        list(read(table(tmp_path / "a.parquet", columns)))


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.parquet: expected a Parquet file"):
        list(read(written(tmp_path / "a.parquet", "nothing of the kind")))


# --- folders


def test_a_folder_is_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "a.md",
        "sub/deep/c.markdown",
        "Z.TXT",
        ".hidden.md",
        ".git/x.md",
        "sub/.no.txt",
        "d.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        written(tmp_path / name, f"text of {name}")
    assert [record.id for record in read(tmp_path)] == [
        "Z.TXT#0",
        "a.md#0",
        "b.txt#0",
        "sub/deep/c.markdown#0",
    ]


def test_a_blank_file_among_others_is_skipped(tmp_path: Path) -> None:
    written(tmp_path / "a.md", " \n\n")
    written(tmp_path / "b.md", "text")
    assert [record.id for record in read(tmp_path)] == ["b.md#0"]


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"expected files with text \(\.txt, \.md, \.markdown\), got none"):
        list(read(tmp_path))


def test_a_link_back_into_the_folder_is_not_followed(tmp_path: Path) -> None:
    written(tmp_path / "a.md", "text")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere.md")
    assert [record.id for record in read(tmp_path)] == ["a.md#0"]


def test_a_file_in_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes("eins\n\nGrüße".encode("latin-1"))
    with pytest.raises(SourceError, match=r"a\.md:3: expected text in UTF-8 .*, got byte 0xFC at position 2"):
        list(read(tmp_path))


def test_a_file_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:  # noqa: PTH123 - a name of raw bytes
        file.write("text")
    with pytest.raises(SourceError, match=r"expected a file name in UTF-8; rename the file"):
        list(read(tmp_path))


def test_a_chunk_knows_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "guide").mkdir()
    written(tmp_path / "guide" / "start.md", "Before.\n\n# One\n\nFirst.\n\n## Two ##\n\nSecond.\n")
    assert plain(read(tmp_path)) == [
        ("guide/start.md#0", "Before.", {"source": "guide/start.md", "position": 0}),
        (
            "guide/start.md#1",
            "# One\n\nFirst.",
            {"source": "guide/start.md", "position": 1, "heading": "One"},
        ),
        (
            "guide/start.md#2",
            "## Two ##\n\nSecond.",
            {"source": "guide/start.md", "position": 2, "heading": "Two"},
        ),
    ]


# --- chunks


def texts(text: str, *, markdown: bool = True, limit: int = 200) -> list[str]:
    return [chunk.text for chunk in chunks(text.splitlines(keepends=True), markdown=markdown, limit=limit)]


def test_paragraphs_share_a_chunk_until_the_next_does_not_fit() -> None:
    assert texts("a" * 90 + "\n\n" + "b" * 90 + "\n\n" + "c" * 90) == ["a" * 90 + "\n\n" + "b" * 90, "c" * 90]


def test_a_chunk_may_be_filled_to_the_last_character() -> None:
    assert texts("a" * 99 + "\n\n" + "b" * 99) == ["a" * 99 + "\n\n" + "b" * 99]
    assert texts("a" * 99 + "\n\n" + "b" * 100) == ["a" * 99, "b" * 100]


def test_headings_wait_for_the_text_below_them() -> None:
    assert texts("# Title\n\n## Part\n\nText.\n\n## Next\n\nMore.") == [
        "# Title\n\n## Part\n\nText.",
        "## Next\n\nMore.",
    ]


def test_underlined_headings_are_headings_and_lines_of_text_files_are_not() -> None:
    text = "One\n===\n\nText.\n\nTwo\n---\n\nMore."
    assert texts(text) == ["One\n===\n\nText.", "Two\n---\n\nMore."]
    assert len(texts(text, markdown=False)) == 1


def test_a_comment_in_a_code_block_is_no_heading() -> None:
    text = "# Shell\n\n```sh\n# list\nls\n```\n\nAfter."
    assert [chunk.heading for chunk in chunks(text.splitlines(), markdown=True)] == ["Shell"]


def test_a_long_paragraph_is_cut_after_a_sentence() -> None:
    sentences = [f"Sentence number {n} says a little more than nothing." for n in range(12)]
    found = texts(" ".join(sentences))
    assert all(chunk.endswith(".") and len(chunk) <= 200 for chunk in found)
    assert " ".join(found) == " ".join(sentences)


@given(
    st.lists(
        st.text(st.sampled_from("ab .\n#=-`~é日。\t"), max_size=80)
        | st.just("\n\n")
        | st.just("x" * 450)
        | st.just("# h\n")
    ),
    st.booleans(),
)
def test_chunks_fit_the_limit_and_lose_nothing_but_space(parts: list[str], markdown: bool) -> None:
    text = "".join(parts)
    found = texts(text, markdown=markdown)
    assert all(0 < len(chunk) <= 200 and chunk.strip() for chunk in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_chunks_of_a_text_without_paragraphs_take_constant_memory() -> None:
    tracemalloc.start()
    try:
        found = sum(len(chunk.text) for chunk in chunks(("word " * 20 for _ in range(15_000)), markdown=True))
        assert found > 1_400_000
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()
