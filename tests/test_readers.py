"""Files become records and documents."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sources import documents, ids, jsonl, plain, records, written

from vecbridge.errors import SourceError
from vecbridge.ingestion.readers import materialised, read
from vecbridge.ingestion.records import Origin

# --- JSON lines


def test_every_field_without_a_meaning_of_its_own_is_metadata(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "a.jsonl", {"id": "x", "text": "one", "topic": "law", "year": 1999, "old": None}
    )
    assert plain(source) == [("x", "one", {"topic": "law", "year": 1999, "old": None})]


def test_the_entries_of_a_metadata_object_join_the_other_fields(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"id": "x", "text": "one", "metadata": {"a": {"b": 1}}, "c": 2})
    assert plain(source) == [("x", "one", {"a": {"b": 1}, "c": 2})]


@pytest.mark.parametrize("name", ["text", "document", "content"])
def test_the_text_has_one_of_three_names(tmp_path: Path, name: str) -> None:
    assert records(jsonl(tmp_path / "a.jsonl", {"id": "x", name: "one"}))[0].text == "one"


def test_a_null_text_gives_way_to_the_next_name(tmp_path: Path) -> None:
    assert plain(jsonl(tmp_path / "a.jsonl", {"id": "x", "text": None, "content": "one"})) == [
        ("x", "one", {})
    ]


@pytest.mark.parametrize("name", ["vector", "embedding"])
def test_a_vector_is_a_list_of_numbers_under_one_of_two_names(tmp_path: Path, name: str) -> None:
    (record,) = records(jsonl(tmp_path / "a.jsonl", {"id": "x", name: [1, -0.5, 2e-3]}))
    assert record.text is None
    assert record.vector is not None
    assert record.vector.dtype == np.float32
    assert record.vector.tolist() == np.float32([1, -0.5, 2e-3]).tolist()
    assert record.metadata == {}


def test_a_record_without_id_is_named_by_its_line_and_blank_lines_count(tmp_path: Path) -> None:
    source = written(tmp_path / "notes.jsonl", '{"text": "a"}\n\n \n{"text": "b"}\n')
    assert ids(source) == ids(source) == ["notes.jsonl:1", "notes.jsonl:4"]
    assert [str(record.origin) for record in records(source)] == [f"{source}:1", f"{source}:4"]


def test_a_whole_number_is_an_id(tmp_path: Path) -> None:
    assert ids(jsonl(tmp_path / "a.jsonl", {"id": 17, "text": "a"})) == ["17"]


def test_fields_can_be_named(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"key": "x", "body": "one", "v": [1.0], "text": "kept", "id": 3})
    (record,) = records(source, id_field="key", text_field="body", vector_field="v")
    assert (record.id, record.text, record.metadata) == ("x", "one", {"text": "kept", "id": 3})
    assert record.vector is not None


# --- encodings and packing


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        lambda text: text.encode("utf-32"),
        lambda text: text.replace("\n", "\r\n").encode(),
    ],
    ids=["utf-8", "utf-8 with mark", "utf-16 little", "utf-16 big", "utf-32", "windows line ends"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_text_is_read_in_every_encoding_that_can_be_told_apart(
    tmp_path: Path, encode: Any, packed: bool
) -> None:
    raw = encode('{"id": "ä", "text": "日本 €"}\n{"id": "b", "text": "two"}\n')
    source = written(
        tmp_path / ("a.jsonl.gz" if packed else "a.jsonl"), gzip.compress(raw) if packed else raw
    )
    assert plain(source) == [("ä", "日本 €", {}), ("b", "two", {})]


@pytest.mark.parametrize("name", ["latin-1", "cp1252", "utf-16-le", "shift_jis", "koi8_r", "iso2022_jp"])
@pytest.mark.parametrize("file", ["a.jsonl", "a.csv", "a.md"])
def test_another_encoding_can_be_named(tmp_path: Path, name: str, file: str) -> None:
    word = {"shift_jis": "日本", "koi8_r": "слово", "iso2022_jp": "日本"}.get(name, "Grüße")
    text = {
        "a.jsonl": f'{{"text": "{word}"}}\n{{"text": "two"}}\n',
        "a.csv": f"text\n{word}\ntwo\n",
        "a.md": f"{word}\n\ntwo",
    }[file]
    found = plain(written(tmp_path / file, text.encode(name)), encoding=name)
    assert [text for _, text, _ in found] == ([text] if file == "a.md" else [word, "two"])


def test_a_byte_order_mark_says_more_than_the_named_encoding(tmp_path: Path) -> None:
    written(tmp_path / "a.md", codecs.BOM_UTF8 + "Grüße".encode())
    written(tmp_path / "b.md", "Grüße".encode("latin-1"))
    assert [item.text for item in documents(tmp_path, encoding="latin-1")] == ["Grüße", "Grüße"]


@pytest.mark.parametrize("name", ["klingon", "rot13", "hex", "a\0b", "zlib"])
def test_what_is_no_encoding_of_text_is_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"expected the name of a text encoding, such as utf-8"):
        read(written(tmp_path / "a.md", "text"), encoding=name)


def test_line_ends_of_documents_are_newlines(tmp_path: Path) -> None:
    written(tmp_path / "a.md", "one\r\ntwo\r\n\r\nthree\rfour")
    assert documents(tmp_path / "a.md")[0].text == "one\ntwo\n\nthree\nfour"


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


@pytest.mark.parametrize(("name", "kind"), [("a.log", "jsonl"), ("a.jsonl", "text"), ("noname", "markdown")])
def test_the_kind_of_a_file_can_be_said(tmp_path: Path, name: str, kind: Any) -> None:
    source = written(tmp_path / name, '{"id": "x", "text": "one"}\n')
    assert plain(source, kind=kind) == (
        [("x", "one", {})] if kind == "jsonl" else [(name, '{"id": "x", "text": "one"}\n', {"source": name})]
    )


# --- CSV


def test_values_of_csv_stay_text_and_empty_cells_are_left_out(tmp_path: Path) -> None:
    source = written(tmp_path / "a.csv", 'id,text,zip,note\n1,"one, two",00501,\n2,"a\nb",7,x\n')
    assert plain(source) == [
        ("1", "one, two", {"zip": "00501"}),
        ("2", "a\nb", {"zip": "7", "note": "x"}),
    ]


def test_columns_named_as_numbers_are_numbers(tmp_path: Path) -> None:
    source = written(tmp_path / "a.csv", "id,text,n,x\na,t,7,1.5\nb,t,,-2e3\nc,t, 8 ,4.\n")
    found = [record.metadata for record in records(source, numbers=["n", "x"])]
    assert found == [{"n": 7, "x": 1.5}, {"x": -2000.0}, {"n": 8, "x": 4.0}]
    assert type(found[0]["n"]) is int


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_header_tells_the_separator(tmp_path: Path, separator: str) -> None:
    source = written(tmp_path / "a.csv", "id;text;a\nx;one, two, three;b\n".replace(";", separator))
    if separator == ",":
        source = written(tmp_path / "a.csv", 'id,text,a\nx,"one, two, three",b\n')
    assert plain(source) == [("x", "one, two, three", {"a": "b"})]


def test_a_vector_in_csv_is_a_json_list_of_any_length(tmp_path: Path) -> None:
    vector = np.random.default_rng(5).standard_normal(12_000)
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "vector"], ["x", json.dumps(vector.tolist())]])
    before = csv.field_size_limit()
    (record,) = records(tmp_path / "a.csv")
    assert record.vector is not None
    assert np.array_equal(record.vector, vector.astype(np.float32))
    assert csv.field_size_limit() == before


def test_a_row_of_csv_without_id_is_named_by_the_line_it_starts_on(tmp_path: Path) -> None:
    source = written(tmp_path / "a.csv", 'text\n"a\nb"\n\nc\n')
    assert plain(source) == [("a.csv:2", "a\nb", {}), ("a.csv:5", "c", {})]


# --- folders


def test_a_folder_is_read_in_order_without_hidden_files_and_other_kinds(tmp_path: Path) -> None:
    for name in (
        "b.txt", "a.md", "sub/deep/c.markdown", "Z.TXT", "e.html", "f.htm", "g.xhtml",
        ".hidden.md", ".git/x.md", "sub/.no.txt", "d.py", "rows.jsonl", "rows.csv",
    ):  # fmt: skip
        written(tmp_path / name, f"text of {name}")
    found = documents(tmp_path)
    assert [item.id for item in found] == [
        "Z.TXT", "a.md", "b.txt", "e.html", "f.htm", "g.xhtml", "sub/deep/c.markdown",
    ]  # fmt: skip
    assert [item.markdown for item in found] == [False, True, False, True, True, True, True]
    assert all(item.text == f"text of {item.id}" for item in found)
    assert all(item.metadata == {"source": item.id} for item in found)
    assert found[-1].origin == Origin(str(tmp_path / "sub/deep/c.markdown"))


def test_a_link_back_into_the_folder_is_not_followed(tmp_path: Path) -> None:
    written(tmp_path / "a.md", "text")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert ids(tmp_path) == ["a.md"]


def test_a_document_alone_is_named_by_its_file(tmp_path: Path) -> None:
    assert plain(written(tmp_path / "notes/a.md", "# One\n")) == [("a.md", "# One\n", {"source": "a.md"})]


# --- standard input

SCRIPT = """
import sys
from vecbridge.ingestion.readers import materialised, read, strict
kind = sys.argv[1] or None
for item in strict(read("-", kind=kind)):
    print(item.id, item.text, item.origin, sep="|")
"""


@pytest.mark.parametrize(
    ("kind", "text", "lines"),
    [
        ("", '{"text": "a"}\n\n{"id": "x", "text": "b"}\n', ["stdin:1|a|<stdin>:1", "x|b|<stdin>:3"]),
        ("csv", "text\na\n", ["stdin:2|a|<stdin>:2"]),
        ("text", "just words", ["stdin|just words|<stdin>"]),
        ("markdown", "# h", ["stdin|# h|<stdin>"]),
    ],
)
def test_standard_input_is_read_as_the_kind_that_is_said(
    tmp_path: Path, kind: str, text: str, lines: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind],
        input=text,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.stdout.splitlines() == lines
    assert list(tmp_path.iterdir()) == [], "the copy of standard input is still there"


def stdin(monkeypatch: pytest.MonkeyPatch, folder: Path, raw: bytes) -> None:
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))


def test_standard_input_can_be_read_twice_while_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin(monkeypatch, tmp_path, b'{"text": "a"}\n')
    with materialised("-") as source:
        assert plain(source) == plain(source) == [("stdin:1", "a", {})]
    assert list(tmp_path.iterdir()) == []


def test_the_copy_of_standard_input_is_gone_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin(monkeypatch, tmp_path, b"text\n" + b"a\n" * 9)
    with pytest.raises(SourceError, match=r"<stdin>:1: expected a column 'id', got 'text'"):
        list(read("-", kind="csv", id_field="id"))
    assert list(tmp_path.iterdir()) == []
    stdin(monkeypatch, tmp_path, b'{"text": "a"}\n')
    some = read("-")
    next(some)
    assert len(list(tmp_path.iterdir())) == 1
    del some
    assert list(tmp_path.iterdir()) == []


def test_standard_input_that_is_closed_or_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=r"expected the kind of standard input as one of jsonl, csv, text"):
        read("-", kind="parquet")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SourceError, match=r"expected a corpus on standard input, which is closed"):
        list(read("-"))


def test_standard_input_that_does_not_fit_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Full()))
    with pytest.raises(SourceError, match=rf"cannot be copied to {tmp_path}.*No space left.*TMPDIR"):
        list(read("-"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_named_minus_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "-", "words")
    monkeypatch.chdir(tmp_path)
    assert plain(Path("./-"), kind="text") == [("-", "words", {"source": "-"})]


def test_a_source_of_a_path_keeps_its_kind(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.log", {"text": "a"})
    with materialised(path, "jsonl") as source:
        assert plain(source) == [("a.log:1", "a", {})]
