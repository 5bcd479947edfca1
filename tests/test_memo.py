"""An unchanged document is cut and converted once; and what is remembered changes nothing but the time."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import markdownify
import pytest
import semantic_text_splitter
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import pdf, written

from vecbridge import store
from vecbridge.cache import Cache
from vecbridge.errors import EmbedderError, SourceError
from vecbridge.ingestion import Summary, chunking, ingest, load, memo, pages
from vecbridge.ingestion.chunking import Chunker, counter
from vecbridge.ingestion.lines import Fault
from vecbridge.ingestion.memo import Memo
from vecbridge.ingestion.records import Document, Origin

office = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("markitdown", "pdfminer")),
    reason="the extra 'documents' is not installed",
)

SECTION = "Alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omikron pi. "
TEXT = "\n\n".join(f"## Part {number}\n\n{number}. {SECTION * 4}" for number in range(8))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.sqlite"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    written(folder / "a.md", f"# A\n\n{TEXT}")
    written(folder / "b.txt", TEXT * 2)
    written(folder / "page.html", f"<title>Page</title><h1>One</h1><p>{SECTION * 20}</p>")
    return folder


@contextmanager
def remembering(path: Path) -> Iterator[Memo]:
    """A memo as another process would open it."""
    cache = Cache(path)
    known = Memo(cache)
    yield known
    known.flush()
    assert cache.problem is None
    cache.close()


class Counted:
    """How often the splitters and the converters were called."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.cuts = self.pages = self.files = 0
        for name in ("MarkdownSplitter", "TextSplitter"):
            patch.setattr(semantic_text_splitter, name, self.splitter(getattr(semantic_text_splitter, name)))
        converter = markdownify.MarkdownConverter
        patch.setattr(converter, "convert_soup", self.before("pages", converter.convert_soup))
        if importlib.util.find_spec("markitdown"):
            from markitdown import converters

            patch.setattr(
                converters.PdfConverter, "convert", self.before("files", converters.PdfConverter.convert)
            )

    def before(self, what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            setattr(self, what, getattr(self, what) + 1)
            return call(*args, **named)

        return counted

    def splitter(self, kind: Any) -> Any:
        """The same with methods that count."""
        counts = self

        class Splitter:
            def __init__(self, *sizes: int, inner: Any = None) -> None:
                self.inner = inner or kind(*sizes)

            from_huggingface_tokenizer_str = kind.from_huggingface_tokenizer_str

            @classmethod
            def from_tiktoken_model(cls, *args: Any, **named: Any) -> Splitter:
                return cls(inner=kind.from_tiktoken_model(*args, **named))

            def chunk_indices(self, text: str) -> Any:
                counts.cuts += 1
                return self.inner.chunk_indices(text)

            def chunks(self, text: str) -> Any:
                counts.cuts += 1
                return self.inner.chunks(text)

        return Splitter

    def take(self) -> tuple[int, int, int]:
        """Cuts, pages and files since the last time."""
        found = self.cuts, self.pages, self.files
        self.cuts = self.pages = self.files = 0
        return found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def chunker(known: Memo | None, tokens: int = 64, overlap: int = 0) -> Chunker:
    count = counter()
    return Chunker(chunking.chunking(count, tokens=tokens, overlap=overlap), counter=count, memo=known)


def cut(by: Chunker, text: str = TEXT, *, markdown: bool = True) -> list[tuple[str, str | None, Any]]:
    records = by.cut(Document("d", text, {"source": "d"}, Origin("d"), markdown))
    return [(record.id, record.text, record.metadata) for record in records]


def night(source: Path, to: str, **options: Any) -> Summary:
    named = {"embedder": "hashing:32", "chunk_tokens": 64, "evaluate": False, "max_rejects": 10}
    return ingest(source, to=to, collection="c", **{**named, **options})


def stored(to: str) -> dict[str, Any]:
    """Digests by id: they tell every text and its metadata."""
    with store.connect(to) as place:
        return {key: digest for part in place.open("c").inventory() for key, digest in part}


# --- where texts are cut

parts = st.sampled_from((
    SECTION, "# One\n\n", "\n## Two\n", "Title\n=====\n", "- item\n", "```\n# code\n```\n", "\r\n\r\n",
    "\n\n", "word ", "文章。", "👩‍👩‍👧‍👦 ", "\t", "x" * 300,
    "<!-- # no -->\n", "| a | b |\n|---|---|\n| 1 | 2 |\n",
))  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(parts, min_size=20, max_size=120).map("".join),
    st.booleans(),
    st.sampled_from([(32, 0), (32, 9), (100, 0)]),
)
def test_chunks_are_the_same_whether_remembered_or_not(
    text: str, markdown: bool, size: tuple[int, int]
) -> None:
    plain = cut(chunker(None, *size), text, markdown=markdown)
    with TemporaryDirectory() as folder:
        for _ in range(2):
            with remembering(Path(folder) / "c") as known:
                assert cut(chunker(known, *size), text, markdown=markdown) == plain
                assert cut(chunker(known, *size), text, markdown=markdown) == plain


def test_a_text_that_is_remembered_is_not_cut_again(path: Path, counted: Counted) -> None:
    with remembering(path) as known:
        first = cut(chunker(known))
        assert counted.take() > (3, 0, 0)
        assert cut(chunker(known), TEXT.replace("\n", "\r\n")) == first
    with remembering(path) as known:
        assert cut(chunker(known)) == first
        by = chunker(known)
        row = replace(next(by.cut(Document("d", "x", {}, Origin("d"), True))), id="r", text=TEXT, metadata={})
        counted.take()
        assert [record.text for record in by.cut_record(row, markdown=True)] == [text for _, text, _ in first]
    assert counted.take() == (0, 0, 0)


def test_a_text_that_was_cut_halfway_is_not_remembered(path: Path, counted: Counted) -> None:
    with remembering(path) as known:
        halfway = chunker(known).cut(Document("d", TEXT, {}, Origin("d"), True))
        next(halfway)
        next(halfway)
        halfway.close()
    counted.take()
    with remembering(path) as known:
        assert cut(chunker(known)) == cut(chunker(None))
    assert counted.cuts > 3


def test_other_settings_and_other_texts_are_cut_anew(path: Path, counted: Counted) -> None:
    with remembering(path) as known:
        cut(chunker(known))
        for by, text, markdown in (
            (chunker(known, 65), TEXT, True),
            (chunker(known, 64, 5), TEXT, True),
            (chunker(known), f"{TEXT} ", True),
            (chunker(known), TEXT, False),
        ):
            counted.take()
            found = cut(by, text, markdown=markdown)
            assert counted.take() > (3, 0, 0)
            plain = chunker(None, by.chunking.tokens, by.chunking.overlap)
            assert found == cut(plain, text, markdown=markdown)


def test_a_tokenizer_that_changed_under_its_name_is_another(path: Path) -> None:
    # under the second one a word is a token, under the first a letter
    def by(pattern: str) -> Chunker:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
        count = counter(tokenizer, model="m")
        return Chunker(chunking.chunking(count, tokens=64), counter=count, memo=known)

    with remembering(path) as known:
        letters = cut(by("."))
        words = cut(by(r"\w+"))
    assert len(letters) > len(words)


@pytest.mark.parametrize("what", ["version", "code", "python"])
def test_another_version_of_what_does_the_work_works_anew(
    path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    with remembering(path) as known:
        cut(chunker(known))
        counted.take()
        cut(chunker(known))
        assert counted.take() == (0, 0, 0)
        if what == "version":
            monkeypatch.setattr(memo.metadata, "version", lambda _: "99")
        elif what == "code":
            monkeypatch.setattr(memo.pkgutil, "get_data", lambda _, name: name.encode())
        else:
            monkeypatch.setattr(memo.sys, "version_info", (9, 9, 9))
        memo.context_of.cache_clear()
        cut(chunker(known))
        assert counted.take() > (3, 0, 0)
    memo.context_of.cache_clear()


def test_without_sources_the_version_of_vecbridge_stands_for_them(
    path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: str) -> bytes:
        raise OSError("there are no sources")

    with monkeypatch.context() as patch, remembering(path) as known:
        patch.setattr(memo.pkgutil, "get_data", none)
        for version, cuts in (("1", True), ("1", False), ("2", True)):
            patch.setattr(memo, "__version__", version)
            memo.context_of.cache_clear()
            counted.take()
            cut(chunker(known))
            assert bool(counted.cuts) == cuts
    memo.context_of.cache_clear()


def test_many_results_are_written_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written_: list[int] = []
    put = Cache.put

    def counting(self: Cache, rows: Any) -> None:
        written_.append(len(rows))
        put(self, rows)

    monkeypatch.setattr(Cache, "put", counting)
    with remembering(path) as known:
        for number in range(600):
            known.put(number.to_bytes(20, "big"), ["a result", number, None])
        assert written_ == [256, 256]
        known.put(bytes(16), os.urandom(300_000).hex())
        assert written_ == [256, 256, 89]
        for number in (0, 599):
            assert known.get(number.to_bytes(20, "big")) == ["a result", number, None]
        assert known.get(bytes(17)) is None


# --- what documents became


def test_a_page_is_remembered_by_its_bytes_and_its_encoding(
    tmp_path: Path, path: Path, counted: Counted
) -> None:
    page = written(tmp_path / "a.html", "<title>Tür</title><h1>Größe".encode("latin-1"))
    with remembering(path) as known:
        wanted = pages.html(page, encoding="latin-1")
        assert wanted == ("# Größe", "Tür")
        assert pages.html(page, encoding="latin-1", memo=known) == wanted
        counted.take()
        assert pages.html(page, encoding="latin-1", memo=known) == wanted
        assert counted.take() == (0, 0, 0)
        assert pages.html(page, encoding="cp1251", memo=known) == pages.html(page, encoding="cp1251")
        with pytest.raises(Fault, match="expected text in UTF-8"):
            pages.html(page, memo=known)
        written(page, "<p>other words")
        assert pages.html(page, encoding="latin-1", memo=known) == ("other words", None)


@office
def test_a_document_is_converted_once_wherever_it_lies(tmp_path: Path, path: Path, counted: Counted) -> None:
    file, copy = (written(tmp_path / name, pdf("Some words")) for name in ("a.pdf", "b.pdf"))
    with remembering(path) as known:
        assert pages.office(file, "pdf", memo=known) == "Some words"
    with remembering(path) as known:
        assert pages.office(copy, "pdf", memo=known) == "Some words"
        assert counted.files == 1
        written(copy, pdf("Other words"))
        assert pages.office(copy, "pdf", memo=known) == "Other words"


@office
def test_a_document_that_is_refused_is_tried_again(tmp_path: Path, path: Path, counted: Counted) -> None:
    blank = written(tmp_path / "blank.pdf", pdf(""))
    with remembering(path) as known:
        for times in (1, 2):
            with pytest.raises(Fault, match="expected a PDF file with text, got none"):
                pages.office(blank, "pdf", memo=known)
            assert counted.files == times
        blank.unlink()
        with pytest.raises(Fault, match="cannot be read"):
            pages.office(blank, "pdf", memo=known)


@office
def test_a_file_that_is_written_while_it_is_converted_is_not_remembered(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from markitdown import converters

    before, after = pdf("The words before"), pdf("The words after")
    file = written(tmp_path / "a.pdf", before)
    convert = converters.PdfConverter.convert

    def late(self: Any, stream: Any, *args: Any, **named: Any) -> Any:
        with file.open("wb") as opened:
            opened.write(after)
        return convert(self, stream, *args, **named)

    with remembering(path) as known:
        with monkeypatch.context() as patch:
            patch.setattr(converters.PdfConverter, "convert", late)
            assert pages.office(file, "pdf", memo=known) == "The words after"
        written(file, before)
        assert pages.office(file, "pdf", memo=known) == "The words before"


# --- whole runs


@office
def test_a_second_run_cuts_and_converts_nothing_but_what_changed(
    docs: Path, tmp_path: Path, path: Path, counted: Counted
) -> None:
    written(docs / "paper.pdf", pdf("Words on paper"))
    to = f"flat:{tmp_path / 'store'}"
    first = night(docs, to, cache=path)
    cuts, converted, files = counted.take()
    assert cuts > 10
    assert (converted, files) == (1, 1)
    second = night(docs, to, cache=path)
    # what is shorter than 1,000 characters is cut as fast
    assert counted.take() == (1, 0, 0)
    assert (second.unchanged, second.read) == (first.read, first.read)
    written(docs / "a.md", f"# Another\n\n{TEXT}")
    third = night(docs, to, cache=path)
    assert (third.changed, third.new) == (1, 0)
    assert 1 < counted.cuts < cuts
    assert counted.take()[1:] == (0, 0)
    plain = f"flat:{tmp_path / 'plain'}"
    night(docs, plain, cache=False)
    assert stored(plain) == stored(to)


def test_without_a_cache_everything_is_done_again(
    docs: Path, tmp_path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    to = f"flat:{tmp_path / 'store'}"
    night(docs, to, cache=False)
    first = counted.take()
    night(docs, to, cache=False)
    assert counted.take() == first
    assert not (tmp_path / "xdg").exists()
    night(docs, to)
    assert (tmp_path / "xdg" / "vecbridge" / "cache.sqlite").exists()


def test_vectors_of_a_source_need_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    row = {"id": "a", "vector": [1.0, 2.0]}
    night(
        written(tmp_path / "a.jsonl", json.dumps(row)),
        f"flat:{tmp_path / 'store'}",
        embedder=None,
        chunk_tokens=None,
    )
    assert not (tmp_path / "xdg").exists()


def test_a_damaged_cache_costs_time_alone(docs: Path, tmp_path: Path, path: Path, counted: Counted) -> None:
    to, other = f"flat:{tmp_path / 'store'}", f"flat:{tmp_path / 'other'}"
    night(docs, to, cache=path)
    cuts = counted.take()
    for damage in (
        "randomblob(length(value))",
        "x''",
        "substr(value, 1, length(value) - 1)",
        "value || x'00'",  # a text
        "7",
    ):
        database = sqlite3.connect(path)
        database.execute(f"UPDATE contents SET value = {damage}")
        database.commit()
        database.close()
        done = night(docs, to, cache=path)
        assert (done.unchanged, done.notes) == (done.read, ())
        assert counted.take() == cuts
    night(docs, other, cache=path)
    assert counted.take() == (0, 0, 0)
    assert stored(other) == stored(to)


def test_a_cache_that_cannot_be_used_is_told_once_and_stops_nobody(docs: Path, tmp_path: Path) -> None:
    written(tmp_path / "file", "no folder")
    done = night(docs, f"flat:{tmp_path / 'store'}", cache=tmp_path / "file" / "cache.sqlite")
    assert done.new == done.read > 10
    (note,) = done.notes
    assert note.startswith("the cache ")
    assert note.endswith("the run goes on without it")


def test_a_run_that_fails_while_it_reads_keeps_what_it_has_worked_out(
    docs: Path, tmp_path: Path, path: Path, counted: Counted
) -> None:
    bad = written(docs / "z.txt", b"\xff\xff")
    with pytest.raises(SourceError, match="expected text in UTF-8"):
        night(docs, f"flat:{tmp_path / 'store'}", cache=path, max_rejects=0)
    assert counted.take() > (3, 1, 0)
    bad.unlink()
    night(docs, f"flat:{tmp_path / 'store'}", cache=path)
    assert counted.take() == (0, 0, 0)


def test_what_was_worked_out_is_on_the_disk_before_anything_is_embedded(
    docs: Path, tmp_path: Path, path: Path, counted: Counted
) -> None:
    seen: list[int] = []

    class Killed:
        model, dim, nested = "k", 8, None

        def embed(self, texts: Any) -> Any:
            database = sqlite3.connect(path)
            seen.append(database.execute("SELECT count(*) FROM contents").fetchone()[0])
            database.close()
            raise EmbedderError("the model is gone")

        def embed_query(self, text: str) -> Any:
            raise AssertionError("nobody asks")

        def close(self) -> None:
            pass

    with pytest.raises(EmbedderError, match="the model is gone"):
        night(docs, f"flat:{tmp_path / 'store'}", cache=path, embedder=Killed())
    # three documents are cut, of which one was converted
    assert set(seen) == {4}


RUN = """
import sys
from vecbridge.ingestion import ingest
source, to, cache = sys.argv[1:]
named = {"embedder": "hashing:32", "chunk_tokens": 64, "evaluate": False}
done = ingest(source, to=to, collection="c", cache=cache, **named)
assert done.notes == (), done.notes
print(done.new)
"""


def test_two_processes_share_what_they_work_out(
    docs: Path, tmp_path: Path, path: Path, counted: Counted
) -> None:
    for number in range(20):
        written(docs / f"{number}.md", f"# {number}\n\n{TEXT}")
    places = [f"flat:{tmp_path / name}" for name in ("one", "two")]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, str(docs), to, str(path)], stdout=subprocess.PIPE, text=True
        )
        for to in places
    ]
    said = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert said[0] == said[1]
    assert stored(places[0]) == stored(places[1])
    done = night(docs, places[0], cache=path)
    assert done.unchanged == done.read == int(said[0])
    assert counted.take() == (0, 0, 0)


def test_other_vectors_of_an_embedder_need_no_other_cuts(
    docs: Path, tmp_path: Path, path: Path, counted: Counted
) -> None:
    night(docs, f"flat:{tmp_path / 'one'}", cache=path)
    counted.take()
    night(docs, f"flat:{tmp_path / 'two'}", cache=path, embedder=load("hashing:64"))
    assert counted.take() == (0, 0, 0)
