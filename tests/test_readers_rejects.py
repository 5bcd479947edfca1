"""What cannot be used is rejected by file and line, and the rest is read; a source of no use is refused."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import socket
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from sources import jsonl, kept, refused, written

from vecbridge.errors import SourceError
from vecbridge.ingestion import lines, tables
from vecbridge.ingestion.readers import read, strict
from vecbridge.ingestion.records import Origin, Reject

# --- lines of JSON


@pytest.mark.parametrize(
    ("line", "key", "message"),
    [
        ('{"text": ', None, r"expected a JSON object in one line, got Expecting value at column"),
        ('{"text": "a"} {"text": "b"}', None, r"in one line, got Extra data at column 15"),
        ("[", None, r"in one line, got the start of a list over several lines"),
        ('["a"]', None, r"expected a JSON object in each line, got a list: \['a'\]"),
        ('{"text": "a", "n": NaN}', None, r"expected a JSON object, got NaN, which is no JSON number"),
        ('{"text": "a", "n": ' + "[" * 100_000, None, r"expected a JSON object"),
        (
            '{"text": "a", "n": ' + "[" * 60 + "]" * 60 + "}",
            "a.jsonl:2",
            r"expected metadata nested up to 50",
        ),
        ('{"text": "a", "n": 99999999999999999999}', "a.jsonl:2", r"whole numbers of 64 bits in metadata"),
        ('{"id": "x", "text": "a", "n": ' + "9" * 5000 + "}", None, r"expected a JSON object, got Exceeds"),
        ('{"id": "", "text": "a"}', None, r"expected the id as text or a whole number, got ''"),
        ('{"id": 1.5, "text": "a"}', None, r"expected the id as text or a whole number, got 1\.5"),
        ('{"id": true, "text": "a"}', None, r"expected the id as text or a whole number, got True"),
        (
            '{"id": "' + "x" * 1025 + '", "text": "a"}',
            "x" * 1025,
            r"expected an id of up to 1,024 bytes, got 1,025",
        ),
        ('{"id": "k", "text": 5}', "k", r"expected the text as text, got 5"),
        ('{"id": "a"}', "a", r"expected text \(in text or document or content\) or a vector, got neither"),
        ('{"text": " \\n"}', "a.jsonl:2", r"expected text \(in .*\) or a vector, got blank text"),
        ('{"text": "a\\u0000b"}', "a.jsonl:2", r"the text holds a NUL character"),
        ('{"text": "a\\ud800b"}', "a.jsonl:2", r"the text holds a lone surrogate \(U\+D800\)"),
        ('{"id": "\\u0000", "text": "a"}', "\0", r"the id holds a NUL character"),
        ('{"id": 7, "vector": "abc"}', "7", r"expected the vector as a list of numbers, got str"),
        ('{"vector": []}', "a.jsonl:2", r"expected the vector as a list of numbers, got an empty list"),
        ('{"vector": [1, "2"]}', "a.jsonl:2", r"got a list that holds str"),
        ('{"vector": [1, true]}', "a.jsonl:2", r"got a list that holds bool"),
        ('{"vector": [1, [2]]}', "a.jsonl:2", r"got a list that holds list"),
        ('{"vector": [1, 1e39]}', "a.jsonl:2", r"as a list of numbers, got 1e\+39 at component 1"),
        ('{"vector": [1, ' + "9" * 400 + "]}", "a.jsonl:2", r"a number beyond the range of floats"),
        (
            '{"text": "one", "metadata": {"a": 1}, "a": 2}',
            "a.jsonl:2",
            r"expected 'a' once, got it inside the metadata and beside it",
        ),
    ],
)
def test_a_line_that_is_no_record_is_rejected_and_the_next_is_read(
    tmp_path: Path, line: str, key: str | None, message: str
) -> None:
    source = written(tmp_path / "a.jsonl", '{"text": "fine"}\n' + line + '\n{"text": "good"}\n')
    ((origin, reason, found),) = refused(source)
    assert (origin, found) == ("a.jsonl:2", key)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(reason)
    assert str(source) not in reason
    assert kept(source) == ["a.jsonl:1", "a.jsonl:3"]


def test_a_record_without_a_named_field_is_rejected(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"body": "one"}, {"text": "two", "id": "b"})
    assert refused(source, text_field="body") == [("a.jsonl:2", "expected a field 'body', got 'text'", "b")]


def test_a_vector_of_another_length_than_the_first_is_rejected_with_both_places(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"vector": [1, 2, 3]}, {"vector": [1, 2]}, {"vector": [1, 2, 4]})
    assert refused(source) == [
        ("a.jsonl:2", f"expected a vector of 3 numbers as at {source}:1, got 2", "a.jsonl:2")
    ]
    assert kept(source) == ["a.jsonl:1", "a.jsonl:3"]


def test_strict_reading_raises_at_the_first_reject(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"text": "one"}, {"text": 5})
    items = strict(read(source))
    assert next(items).id == "a.jsonl:1"
    with pytest.raises(SourceError, match=r"a\.jsonl:2: expected the text as text, got 5"):
        next(items)


# --- encodings and packing


def test_a_line_in_another_encoding_is_rejected_with_its_byte(tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n{"text": "caf\xc3\xa9"}\n')
    ((origin, reason, _),) = refused(source)
    assert origin == "a.jsonl:2"
    assert reason.startswith("expected text in UTF-8 (or UTF-16 with a byte order mark), got byte 0xE9; ")
    assert kept(source) == ["a.jsonl:1", "a.jsonl:3"]


def test_a_row_of_csv_in_another_encoding_is_rejected_wherever_its_cell_ends(tmp_path: Path) -> None:
    source = written(tmp_path / "a.csv", b'text,n\n"one\ncaf\xe9",1\ntwo,2\n')
    assert [(origin, reason[:13]) for origin, reason, _ in refused(source)] == [("a.csv:2", "expected text")]
    assert kept(source) == ["a.csv:4"]


def test_a_broken_pair_in_utf_16_costs_its_line_alone(tmp_path: Path) -> None:
    rows = ['{"text": "one"}\n', '{"text": "two"}\n', '{"text": "three"}\n']
    encoded = [row.encode("utf-16-le") for row in rows]
    raw = codecs.BOM_UTF16_LE + encoded[0] + encoded[1].replace(b"w\0", b"\x00\xd8") + encoded[2]
    source = written(tmp_path / "a.jsonl", raw)
    assert [origin for origin, _, _ in refused(source)] == ["a.jsonl:2"]
    assert kept(source) == ["a.jsonl:1", "a.jsonl:3"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_line_that_is_too_long_is_rejected_and_not_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(lines, "LINE_CHARS", 1_000)
    rows = {
        "jsonl": ['{"text": "a"}', json.dumps({"text": "b" * 5_000}), '{"text": "c"}'],
        "csv": ["text", "b" * 5_000, "c"],
    }[kind]
    source = written(tmp_path / f"a.{kind}", "\n".join(rows))
    assert [(origin, reason[:35]) for origin, reason, _ in refused(source)] == [
        (f"a.{kind}:2", "expected lines shorter than 1,000 c")
    ]
    assert kept(source)[-1] == f"a.{kind}:3"


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-9], lambda raw: b"no gzip at all", lambda raw: raw[:20] + b"\xff" * 9 + raw[29:]],
)
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, damage: Any) -> None:
    source = tmp_path / "a.jsonl.gz"
    source.write_bytes(damage(gzip.compress(b"".join(b'{"text": "%d"}\n' % n for n in range(2000)))))
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz:\d+: expected a whole gzip file"):
        list(read(source))


# --- the source as a whole


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_file_without_a_record_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=rf"{name}: expected at least one record, got none"):
        list(read(written(tmp_path / name, "text\n" if name == "a.csv" else "\n \n")))
    with pytest.raises(SourceError, match=rf"{name}: expected at least one record, got none"):
        list(read(written(tmp_path / name, "")))


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html"])
def test_an_empty_or_blank_document_is_rejected(tmp_path: Path, name: str) -> None:
    assert refused(written(tmp_path / name, "")) == [(name, "expected text, got an empty file", name)]
    ((_, reason, _),) = refused(written(tmp_path / name, " \n\n"))
    assert reason.startswith("expected text, got a")


def test_a_missing_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.jsonl: expected a file or a folder, found nothing there"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(SourceError, match=r"cannot be read: .*null"):
        read("a\0b")


@pytest.mark.parametrize("name", ["a.json", "a.doc", "a", "a.txt.gz", "a.gz"])
def test_another_kind_of_file_is_refused_with_the_known_kinds(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        SourceError, match=r"expected a folder, or a file that ends in \.jsonl, \.ndjson, \.csv"
    ):
        read(written(tmp_path / name, "[]"))


def test_a_kind_that_is_none_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    kind: Any = "word"
    with pytest.raises(SourceError, match=r"expected the kind of a source as one of jsonl, .*, got 'word'"):
        read(tmp_path, kind=kind)
    with pytest.raises(SourceError, match=r"expected a csv file, got a folder"):
        read(tmp_path, kind="csv")
    with pytest.raises(SourceError, match=r"expected a folder, got a file"):
        read(written(tmp_path / "a.csv", "text\na\n"), kind="folder")


def test_a_pipe_is_refused_instead_of_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(SourceError, match=r"expected a file that can be read twice, got a pipe or a device"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.md", ""])
def test_numbers_are_refused_where_the_source_has_types(tmp_path: Path, name: str) -> None:
    written(tmp_path / (name or "a.md"), '{"text": "a", "n": 1}\n')
    with pytest.raises(SourceError, match=r"numbers \(--number\) is for CSV"):
        read(tmp_path / name, numbers=["n"])


# --- CSV


@pytest.mark.parametrize("cell", ["seven", "1_000", "nan", "inf", "0x10", "1e999", "٣"])
def test_what_is_no_number_in_such_a_column_is_rejected(tmp_path: Path, cell: str) -> None:
    source = written(tmp_path / "a.csv", f"id,text,n\nx,t,{cell}\ny,t,2\n")
    ((origin, reason, key),) = refused(source, numbers=["n"])
    assert (origin, key) == ("a.csv:2", "x")
    assert reason.startswith("expected a number in 'n', got ")
    assert kept(source, numbers=["n"]) == ["y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,text,text\n", r"a\.csv:1: expected each column once, got 'text' twice"),
        (",text\n0,a\n", r"a\.csv:1: expected a name for column 1, got none \(pandas"),
        ("\nid,text\n", r"a\.csv:1: expected the names of the columns in the first line, got a blank one"),
        (b"id,t\xe9xt\nx,a\n", r"a\.csv:1: expected text in UTF-8 .*, got byte 0xE9"),
        ('id,"text\nx,a\n', r"a\.csv:1: expected the names of the columns as CSV, got a broken row"),
        ("id,text\n", r"a\.csv: expected at least one record, got none"),
    ],
)
def test_csv_without_a_header_of_use_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        list(read(written(tmp_path / "a.csv", text)))


@pytest.mark.parametrize("field", ["id_field", "text_field", "vector_field", "numbers"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_without_a_named_column_is_refused(tmp_path: Path, field: str, kind: str) -> None:
    if field == "numbers" and kind == "parquet":
        pytest.skip("Parquet has numbers of its own")
    written(tmp_path / "a.csv", "id,text\nx,a\n")
    parquet.write_table(pyarrow.table({"id": ["x"], "text": ["a"]}), tmp_path / "a.parquet")
    options: dict[str, Any] = {field: ["n"] if field == "numbers" else "n"}
    with pytest.raises(SourceError, match=rf"a\.{kind}.*: expected a column 'n', got 'id', 'text'"):
        list(read(tmp_path / f"a.{kind}", **options))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,a,b", "expected 2 cells as in the header, got 3"),
        ("x", "expected 2 cells as in the header, got 1"),
        ("x,", "expected text (in text or document or content) or a vector, got neither"),
        ('x,"a"b', "expected CSV, got a broken row: ',' expected after '\"'; write a quote in a cell twice"),
        ('x,"a', "expected CSV, got a broken row: "),
    ],
)
def test_a_broken_row_of_csv_is_rejected_and_the_next_is_read(tmp_path: Path, row: str, message: str) -> None:
    source = written(tmp_path / "a.csv", f"id,text\nw,fine\n{row}\ny,good\nz,good\n")
    ((origin, reason, _),) = refused(source)
    assert origin == "a.csv:3"
    assert reason.startswith(message)
    assert kept(source) == ["w", "y", "z"]


def test_a_quote_that_is_never_closed_costs_its_own_line_alone(tmp_path: Path) -> None:
    rows = "".join(f"r{n},text {n}\n" for n in range(2_000))
    source = written(tmp_path / "a.csv", f'id,text\nx,"open\n{rows}y,"open too\n{rows.replace("r", "s")}')
    assert [origin for origin, _, _ in refused(source)] == ["a.csv:2", "a.csv:2003"]
    assert len(kept(source)) == 4_000


def test_lines_that_cannot_be_tried_again_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_AGAIN", 10)
    source = written(tmp_path / "a.csv", 'id,text\nx,"open\n' + "y,fine\n" * 20)
    ((origin, reason, _),) = refused(source)
    assert origin == "a.csv:2"
    assert "; lines 2 to 22 are lost with it; " in reason


@pytest.mark.parametrize(("cell", "got"), [('"[1, oops]"', "such as [0.1, -0.2]"), ("1 2 3", "got str")])
def test_a_cell_that_is_no_vector_is_rejected(tmp_path: Path, cell: str, got: str) -> None:
    source = written(tmp_path / "a.csv", f'id,vector\nx,{cell}\ny,"[1, 2]"\n')
    ((origin, reason, key),) = refused(source)
    assert (origin, key) == ("a.csv:2", "x")
    assert got in reason
    assert kept(source) == ["y"]


# --- folders


def test_one_bad_file_of_a_folder_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "TEXT_BYTES", 100)
    monkeypatch.setattr(lines.content, "__kwdefaults__", {"limit": 100})
    written(tmp_path / "a.md", "fine")
    written(tmp_path / "b/blank.md", " \n\n")
    written(tmp_path / "b/binary.txt", b"PK\3\4\0\0\xff\xfe")
    written(tmp_path / "b/latin.md", "eins\n\nGrüße".encode("latin-1"))
    written(tmp_path / "b/large.md", "x" * 101)
    written(tmp_path / "b/nul.md", "one\ntwo\0")
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere.md")
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)
        listener.bind("socket.md")
        found = {(origin, key): reason for origin, reason, key in refused(tmp_path)}
    written(tmp_path / "z.md", "fine too")
    expected = {
        ("b/blank.md", "b/blank.md"): "expected text, got a blank file",
        ("b/binary.txt:1", "b/binary.txt"): "expected text, got a NUL character: the file is binary, or ",
        (
            "b/latin.md:3",
            "b/latin.md",
        ): "expected text in UTF-8 (or UTF-16 with a byte order mark), got byte 0xFC",
        ("b/large.md", "b/large.md"): "expected a file of up to 0 MB, got 0 MB; split it into several files",
        ("b/nul.md:2", "b/nul.md"): "expected text, got a NUL character",
        ("gone.md", "gone.md"): "cannot be read: No such file or directory",
        ("pipe.txt", "pipe.txt"): "expected a file, got a pipe, a socket or a device",
        ("socket.md", "socket.md"): "expected a file, got a pipe, a socket or a device",
    }
    assert found.keys() == expected.keys()
    assert [where for where, reason in expected.items() if not found[where].startswith(reason)] == []
    assert kept(tmp_path) == ["a.md", "z.md"]


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.py", "pass")
    with pytest.raises(SourceError, match=r"expected files with text \(\.txt, \.md, .*\.pptx\), got none"):
        list(read(tmp_path))


def test_a_file_name_that_is_no_text_is_rejected(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:  # noqa: PTH123 - a name of raw bytes
        file.write("text")
    assert refused(tmp_path) == [
        ("caf\\udce9.txt", "expected a file name in UTF-8, got other bytes; rename the file", None)
    ]


def test_a_path_that_is_too_long_for_the_ids_of_its_chunks_is_rejected(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 250] * 4)
    written(deep / "abcdefg.md", "text")
    written(tmp_path / "a.md", "text")
    ((_, reason, key),) = refused(tmp_path)
    assert reason == "expected an id of up to 1,008 bytes, got 1,014"
    assert key is not None
    assert kept(tmp_path) == ["a.md"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_listed_is_rejected_and_the_root_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.md", "text")
    written(tmp_path / "secret/b.md", "text")
    (tmp_path / "secret").chmod(0)
    try:
        ((origin, reason, key),) = refused(tmp_path)
        assert (origin, key) == ("secret", None)
        assert reason.startswith("cannot be read: Permission denied")
        with pytest.raises(SourceError, match=r"secret: cannot be read: Permission denied"):
            list(read(tmp_path / "secret"))
    finally:
        (tmp_path / "secret").chmod(0o700)


def test_a_folder_that_vanishes_meanwhile_is_rejected_or_refused(tmp_path: Path) -> None:
    written(tmp_path / "root/a.md", "text")
    written(tmp_path / "root/b/c.md", "text")
    items = read(tmp_path / "root")
    assert not isinstance(next(items), Reject)
    (tmp_path / "root/b/c.md").unlink()
    (tmp_path / "root/b").rmdir()
    (last,) = items
    assert isinstance(last, Reject)
    assert last.origin == Origin(str(tmp_path / "root/b"))
    assert "No such file or directory; what is in this folder is missing" in last.reason
    items = read(tmp_path / "root")
    (tmp_path / "root").rename(tmp_path / "away")
    with pytest.raises(SourceError, match=r"root: cannot be read: No such file or directory"):
        list(items)


# --- anything at all

JUNK = st.binary(max_size=300) | st.lists(
    st.sampled_from(
        [
            b"\n",
            b"\r",
            b'"',
            b",",
            b";",
            b"{",
            b"}",
            b'{"text": "a"}\n',
            b"id,text\n",
            b'x,"a\n',
            b"\0",
            b"\xff\xfe",
            b"\xef\xbb\xbf",
            b"\xe9",
            b"<p>",
            b"<!",
            b"<![",
            b"&#0;",
            b"<table>",
            b"</",
            b"# h\n",
        ]
    ),
    max_size=40,
).map(b"".join)


@given(
    JUNK,
    st.sampled_from(["a.jsonl", "a.csv", "a.md", "a.html", "a.txt", "a.jsonl.gz", "a.npy", "a.npz"]),
    st.sampled_from([None, "latin-1", "utf-16-le", "shift_jis", "undefined"]),
)
@example(b"<![x", "a.html", None)
@example(b'a\n"\n"b\n', "a.csv", None)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_rejected_or_refused(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, name: str, encoding: str | None
) -> None:
    folder = tmp_path_factory.mktemp("junk")
    written(folder / "a.txt", "beside")
    source = written(folder / name, raw)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = list(read(source, encoding=encoding))
        except SourceError:
            return
    assert found
    for item in found:
        assert isinstance(item, Reject) or item.text is None or item.text.encode()


@given(
    st.lists(
        st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b""))
        | st.sampled_from([b'{"text": "a"}', b"", b" ", b'{"id": 7, "vector": [1, 2]}', b'{"vector": [1]}'])
    ).filter(lambda rows: not b"\n".join(rows).startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")))
)
@settings(max_examples=300, deadline=None)
def test_every_line_of_json_lines_is_a_record_a_reject_or_blank(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes]
) -> None:
    source = written(tmp_path_factory.mktemp("lines") / "a.jsonl", b"\n".join(rows))
    try:
        found = list(read(source))
    except SourceError:  # nothing but blank lines: below, none is accounted for
        found = []
    numbers = Counter(item.origin.number for item in found)
    assert set(numbers.values()) <= {1}
    for number, row in enumerate(b"\n".join(rows).removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        text = row.decode("utf-8", "replace")
        assert (number in numbers) == bool(text and not text.isspace()), (number, row)
