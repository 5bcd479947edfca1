"""Chunks: within the limit, nothing lost, always the same, and each under its heading."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vecbridge.errors import InputError
from vecbridge.ingestion.chunking import Chunker, Counter, chunking, counter, counter_file
from vecbridge.ingestion.outline import Outline
from vecbridge.ingestion.records import Document, Origin, Record

FAMILY = "👩‍👩‍👧‍👦"


def words_tokenizer() -> Any:
    """A token a letter or known word, one for a word above 20 letters; adds marks, cuts at 8, pads to 16."""
    letters = {letter: n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz0123456789#", start=3)}
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, **letters}
    vocabulary |= {f"##{letter}": n + 100 for letter, n in letters.items()}
    vocabulary |= {"word": 300, "text": 301}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=20))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16, pad_id=0, pad_token="[UNK]")
    return tokenizer


@cache
def wordllama() -> Any:
    """The tokenizer inside wordllama's wheel: byte-pair encoding over the whole text, not over its words."""
    import wordllama as package

    (path,) = Path(package.__file__).parent.glob("tokenizers/*tokenizer*.json")
    return Tokenizer.from_file(str(path))


@cache
def counted_by(name: str) -> Counter:
    if name == "wordllama":
        return counter(wordllama(), model="wordllama")
    return counter(words_tokenizer(), model="words") if name == "words" else counter(name)


@cache
def chunker(tokens: int = 32, overlap: int = 0, name: str = "cl100k_base") -> Chunker:
    counts = counted_by(name)
    return Chunker(chunking(counts, tokens=tokens, overlap=overlap), counter=counts)


def document(text: str, *, markdown: bool = True) -> Document:
    return Document("d", text, {"source": "d.md"}, Origin("d.md"), markdown)


def cut(text: str, *, markdown: bool = True, by: Chunker | None = None) -> list[tuple[str, Any]]:
    records = (by or chunker()).cut(document(text, markdown=markdown))
    return [(record.text or "", record.metadata.get("heading")) for record in records]


def texts(text: str, *, markdown: bool = True, by: Chunker | None = None) -> list[str]:
    return [chunk for chunk, _ in cut(text, markdown=markdown, by=by)]


def solid(text: str) -> str:
    return "".join(text.split())


# --- records


def test_a_chunk_knows_its_document_its_position_and_its_heading() -> None:
    text = "Before.\n\n# One\n\n" + "First. " * 12 + "\n\n## Two ##\n\n" + "Second. " * 12
    first, second, third = chunker().cut(document(text))
    assert (first.id, first.text, first.document) == ("d#0", "Before.", "d")
    assert first.metadata == {"source": "d.md", "position": 0}
    assert str(first.origin) == "d.md, chunk 0"
    assert second.id == "d#1"
    assert second.text == "# One\n\n" + ("First. " * 12).strip()
    assert second.metadata == {"source": "d.md", "position": 1, "heading": "One"}
    assert (third.text or "").startswith("## Two ##\n\nSecond.")
    assert third.metadata == {"source": "d.md", "position": 2, "heading": "Two"}
    assert third.vector is None


def test_a_row_is_cut_like_a_document_and_what_it_says_itself_stays() -> None:
    row = Record("r", "# T\n\n" + "word " * 60, {"position": "left", "n": 1}, Origin("a.csv", "row", 7))
    plain = list(chunker().cut_record(row))
    assert [record.id for record in plain] == [f"r#{n}" for n in range(len(plain))]
    assert len(plain) > 1
    assert all(record.metadata == {"position": "left", "n": 1} for record in plain)
    assert all((record.document, str(record.origin)) == ("r", "a.csv: row 7") for record in plain)
    formatted = chunker().cut_record(row, markdown=True)
    assert {record.metadata["heading"] for record in formatted} == {"T"}


def test_a_row_with_a_vector_or_without_text_is_not_cut() -> None:
    import numpy as np

    whole = Record("r", "word " * 60, {}, Origin("a"), vector=np.ones(3, np.float32))
    empty = Record("r", None, {}, Origin("a"))
    assert list(chunker().cut_record(whole)) == [whole]
    assert list(chunker().cut_record(empty)) == [empty]


@pytest.mark.parametrize("text", ["", " \n\t\n", "\u2028\x1c\u00a0", "\n" * 100_000, " " * 100_000])
@pytest.mark.parametrize("markdown", [True, False])
def test_a_blank_document_has_no_chunks(text: str, markdown: bool) -> None:
    assert texts(text, markdown=markdown) == []


# --- what a chunk stands under


def test_headings_wait_for_the_text_below_them() -> None:
    body = "word " * 24
    chunks = texts(f"# A\n\n{body}\n\n## B\n\n{body}\n\n## C\n\n### D\n\n{body * 4}")
    assert [chunk.split("word")[0] for chunk in chunks[:3]] == ["# A\n\n", "## B\n\n", "## C\n\n### D\n\n"]
    assert all(not chunk.splitlines()[-1].startswith("#") for chunk in chunks)


@pytest.mark.parametrize("below", ["| a | b |\n" * 40, "- item\n" * 60, "x = 1\n" * 60, "日本語の" * 80])
def test_a_heading_takes_in_a_part_of_what_is_too_long_below_it(below: str) -> None:
    first, *rest = texts(f"# Head\n\n{below}")
    assert len(first) > len("# Head\n\n")
    assert rest
    assert solid(first + "".join(rest)) == solid(f"# Head\n\n{below}")


def test_headings_at_the_end_of_a_document_stay_where_they_are() -> None:
    assert texts("# Only\n\n# Headings") == ["# Only\n\n# Headings"]
    assert texts("Text.\n\n# End") == ["Text.\n\n# End"]


def test_the_heading_of_a_chunk_is_that_of_its_first_text() -> None:
    several = "# Title\n\n## Part\n\nText.\n\n## Next\n\nMore."
    assert cut(several, by=chunker(512)) == [(several, "Part")]
    assert cut("Intro.\n\n# Title\n\nText.", by=chunker(512))[0][1] is None


def test_what_overlaps_does_not_decide_under_which_heading_a_chunk_stands() -> None:
    text = (
        "# A\n\nOne. Two. Three. Four. Five. Six. Seven. Eight. Nine.\n# B\nTen. Eleven. Twelve. "
        + "More. " * 40
    )
    found = cut(text, by=chunker(32, 15))
    assert any(heading == "B" for _, heading in found)
    position = text.index("# B")
    for chunk, heading in found:
        begins_after = text.index(chunk) >= position
        ends_before = text.index(chunk) + len(chunk) <= position
        assert heading == ("B" if begins_after else "A") or not (begins_after or ends_before)


def test_a_long_code_block_keeps_its_heading_and_has_none_inside() -> None:
    text = (
        "# Code\n\n```py\n# comment\n" + "x = 1\n" * 200 + "# Not\n```\n\nAfter.\n\n# End\n\n" + "yes " * 40
    )
    headings = [heading for _, heading in cut(text)]
    assert headings.index("End") > 30
    assert set(headings[: headings.index("End")]) == {"Code"}
    assert set(headings[headings.index("End") :]) == {"End"}


@pytest.mark.parametrize(
    ("text", "headings"),
    [
        ("# A\n## B ##\n### C #\n####### no\n#no\n", ["A", "B", "C"]),
        ("   # A\n    # code\n\t# code\n", ["A"]),
        ("One\n===\n\nTwo\nlines\n---\n\n---\n\n***\n", ["One", "Two lines"]),
        ("- item\n---\n\n> quote\n---\n\n1. item\n===\n", []),
        ("```\n# a\n~~~\n# b\n```\n# C\n", ["C"]),
        ("~~~~ md\n```\n# a\n```\n~~~\n# b\n~~~~~\n# C\n", ["C"]),
        ("``` a`b\n# C\n", ["C"]),
        ("```\n# open until the end\n", []),
        ("<!--\n# a\n\n# b --> # c\n# D\n", ["D"]),
        ("<!-- one line -->\n# D\n", ["D"]),
        ("<pre>\n# a\n\n# b\n</pre>\n# D\n", ["D"]),
        ("---\ntitle: x\n# comment\n---\n# D\n", ["D"]),
        ("---\n\n# D\n\n---\n", ["D"]),
        ("# \n#\n## D", ["D"]),
        ("    code\n---\n\n***\nD\n---\n", ["D"]),
        ("# `code` *and* more\t\n", ["`code` *and* more"]),
    ],
)
def test_a_heading_is_what_common_mark_calls_one(text: str, headings: list[str]) -> None:
    assert Outline(text)._titles == headings


def test_a_position_in_a_code_block_is_known_as_such() -> None:
    text = "a\n```\n# b\n```\nc\n~~~\nd"
    outline = Outline(text)
    assert [outline.fenced(text.index(sign)) for sign in "a`bc~d"] == [False, False, True, False, False, True]


ORACLE = MarkdownIt("commonmark")
LINES = [
    "# one",
    "## two ##",
    "text",
    "more text",
    "",
    "",
    "```",
    "~~~",
    "```py",
    "===",
    "---",
    "- - -",
    "    indented",
]


@given(
    st.lists(
        st.sampled_from([*LINES, "<!--", "-->", "<pre>", "</pre>\n", "#", "####### x", " # three"]),
        max_size=25,
    )
)
@settings(max_examples=150, deadline=None)
def test_headings_are_those_that_a_parser_finds(lines: list[str]) -> None:
    text = "\n".join(["start", "", *lines])  # not at the beginning: front matter is no part of CommonMark
    tokens = ORACLE.parse(text)
    expected = [
        (token.map[0], " ".join(inline.content.split()))
        for token, inline in pairwise(tokens)
        if token.type == "heading_open" and token.level == 0 and token.map and inline.content
    ]
    outline = Outline(text)
    found = [
        (text.count("\n", 0, at), title) for at, title in zip(outline._starts, outline._titles, strict=True)
    ]
    assert found == expected


def test_a_heading_of_great_length_is_cut_short_in_the_metadata() -> None:
    (_, heading), *_ = cut("# " + "long " * 2_000 + "\n\nText.")
    assert len(heading) == 200
    assert heading.endswith("…")


# --- the limit, and nothing lost

PIECES = [
    "word ", "Some sentence. ", "\n", "\n\n", "# h\n", "## Head ##\n", "```\n", "```py\n", "~~~\n",
    "> q\n", "- item\n", "  - sub\n", "| a | b |\n|---|---|\n", "---\n", "===\n", "<!-- c\n", "-->\n",
    "<div>\n", "日本語", FAMILY, "é", "a\u0300\u0301", "x" * 90, "<|endoftext|>", "    code\n", "\t",
    "[^1]: n\n", "[a](http://x.y)", "$$\n", "\\", "\x1c", "\u2028", "&amp;", "+++\n", " " * 200,
    "A" * 60 + " ", "</s>", "[SEP]", "\r\n", "\r", ": def\n",
]  # fmt: skip
TEXTS = (
    st.lists(st.sampled_from(PIECES) | st.text(max_size=20), max_size=60)
    .map("".join)
    .map(lambda text: text.encode("utf-8", "ignore").decode())
)


@pytest.mark.parametrize("name", ["cl100k_base", "wordllama", "words"])
@given(text=TEXTS, markdown=st.booleans(), overlap=st.sampled_from([0, 4, 15]))
@settings(max_examples=60, deadline=None)
def test_chunks_fit_the_limit_and_lose_nothing_but_space(
    name: str, text: str, markdown: bool, overlap: int
) -> None:
    by = chunker(32, overlap, name)
    chunks = texts(text, markdown=markdown, by=by)
    assert all(chunk.strip() for chunk in chunks)
    assert [chunk for chunk in chunks if by.count(chunk) > 32] == []
    if not overlap:
        assert solid("".join(chunks)) == solid(text)


NUMBERED = st.lists(
    st.sampled_from([" ", " ", ". ", "\n", "\n\n", "\n\n# ", "\n- ", "\n---\n"]), max_size=150
)


@given(NUMBERED, st.booleans(), st.sampled_from([4, 15]))
@settings(max_examples=60, deadline=None)
def test_chunks_that_overlap_lose_nothing_and_keep_the_order(
    spaces: list[str], markdown: bool, overlap: int
) -> None:
    text = "".join(f"w{n}x{space}" for n, space in enumerate(spaces))
    chunks = texts(text, markdown=markdown, by=chunker(32, overlap))
    start = end = 0
    for chunk in chunks:
        # each begins where the one before begins or later, ends behind it, and leaves out nothing in between
        start = text.index(chunk, max(start, end - len(chunk) + 1))
        assert not text[end:start].strip()
        end = start + len(chunk)
    assert not text[end:].strip()


def test_neighbours_share_up_to_the_overlap() -> None:
    sentences = [f"Sentence {n} says little." for n in range(60)]
    by = chunker(64, 20)
    chunks = texts(" ".join(sentences), markdown=False, by=by)
    for left, right in pairwise(chunks):
        shared = next(n for n in range(len(right), -1, -1) if left.endswith(right[:n]))
        assert 0 < by.count(right[:shared]) <= 20


@pytest.mark.parametrize("markdown", [True, False])
def test_line_ends_of_windows_and_old_macs_cut_like_others(markdown: bool) -> None:
    text = "# A\n\n" + "One line.\nAnother.\n\n" * 30 + "B\n---\n\n" + "Last. " * 20
    assert cut(text.replace("\n", "\r\n"), markdown=markdown) == cut(text, markdown=markdown)
    assert cut(text.replace("\n", "\r"), markdown=markdown) == cut(text, markdown=markdown)


def test_a_sign_of_several_characters_stays_whole() -> None:
    assert set(texts(FAMILY * 50, markdown=False)) == {FAMILY}
    accents = texts("a\u0300\u0301" * 200, markdown=False)
    assert all(chunk.startswith("a") and chunk.endswith("\u0301") for chunk in accents)


def test_text_without_spaces_is_cut_after_sentences() -> None:
    chunks = texts("東京は日本の首都です。" * 40, markdown=False)
    assert len(chunks) > 5
    assert all(chunk.endswith("。") for chunk in chunks)


def test_a_long_paragraph_is_cut_after_sentences() -> None:
    chunks = texts(" ".join(f"Sentence {n} says a little." for n in range(60)))
    assert len(chunks) > 5
    assert all(chunk.endswith(".") for chunk in chunks)


def test_the_mark_of_a_special_token_is_text() -> None:
    assert chunker().count("<|endoftext|>") == 7  # not 1, which the API would not count either
    assert all(len(chunk) <= 80 for chunk in texts("<|endoftext|> " * 50))


# --- long texts


def test_chunks_do_not_depend_on_how_long_the_text_goes_on() -> None:
    choice = random.Random(7)
    text = "".join(choice.choice(PIECES[:14]) for _ in range(3_000))
    whole, longer = texts(text), texts(text + "\n\n# More\n\nAnd more.")
    assert len(whole) > 100
    assert longer[: len(whole) - 5] == whole[:-5]


def test_another_process_cuts_alike() -> None:
    text = "# A\n\n" + "One line. Another.\n\n" * 50
    code = (
        "import sys, json\n"
        "from vecbridge.ingestion.chunking import *\n"
        "from vecbridge.ingestion.records import *\n"
        "by = counter('cl100k_base')\n"
        "cutter = Chunker(chunking(by, tokens=32), counter=by)\n"
        "text = json.load(sys.stdin)\n"
        "print(json.dumps([r.text for r in cutter.cut(Document('d', text, {}, Origin('d'), True))]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(text), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == texts(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("base64", base64.b64encode(random.Random(5).randbytes(60_000)).decode()),
        ("one letter", "a" * 60_000),
        ("spaces", "a" + " " * 200_000 + "b"),
        ("blank lines", "a" + "\n" * 200_000 + "b"),
        ("fences", "```\n" * 5_000),
        ("headings", "# h\n" * 5_000),
        ("underlines", "a\n---\n" * 3_000),
        ("quotes", ">" * 5_000),
    ],
)
@pytest.mark.parametrize("counts", ["cl100k_base", "words"])
def test_text_that_no_one_wrote_comes_through(name: str, text: str, counts: str) -> None:
    by = chunker(128, 0, counts)
    chunks = texts(text, by=by)
    assert solid("".join(chunks)) == solid(text), name
    assert max(map(len, chunks)) <= 128 * 32, name
    assert len({by.count(chunk) <= 128 for chunk in chunks[:5] + chunks[-5:]}) == 1, name


# --- what counts


def test_a_tokenizer_counts_text_and_nothing_else(tmp_path: Path) -> None:
    tokenizer = words_tokenizer()
    assert len(tokenizer.encode("word " * 50).ids) != 50  # it cuts, pads and marks
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    for counts in (counter(tokenizer, model="m"), counter_file(path)):
        assert counts.specials == 2
        assert counts.exact
        by = Chunker(chunking(counts, tokens=40), counter=counts)
        assert by.count("word " * 50) == 50
        assert [by.count(chunk) for chunk in texts("word " * 100, by=by)] == [40, 40, 20]
    assert len(tokenizer.encode("word " * 50).ids) == 16  # and is left as it was


def test_the_name_of_a_file_of_a_tokenizer_changes_with_its_content(tmp_path: Path) -> None:
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    tokenizer = words_tokenizer()
    tokenizer.save(str(path))
    tokenizer.save(str(other))
    assert counter_file(path) == counter_file(other)
    assert counter_file(path).name.startswith("tokenizer.json:")
    tokenizer.add_tokens(["more"])
    tokenizer.save(str(other))
    assert counter_file(path).name != counter_file(other).name
    assert "word" not in repr(counter_file(path))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'"text"', b"\xff\xfe", b'{"model": 1, "post_processor": 3}']
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"expected a tokenizer\.json.*, got '.*tokenizer\.json', which is"):
        counter_file(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a tokenizer\.json, got '.*': No such file or directory"):
        counter_file(tmp_path / "none.json")


def test_a_tokenizer_that_does_not_load_is_refused_when_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {"type": "Unheard"}}')
    counts = counter_file(path)
    with pytest.raises(InputError, match=r"expected a tokenizer that can be loaded, got 'tokenizer\.json:"):
        texts("text", by=Chunker(chunking(counts), counter=counts))


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(
        InputError, match="expected an encoding of cl100k_base or o200k_base, got 'p50k_base'"
    ):
        counter("p50k_base")
    with pytest.raises(InputError, match="expected the name of the model together with its tokenizer"):
        counter(words_tokenizer())


def test_nothing_known_is_estimated() -> None:
    assert counter() == Counter("cl100k_base", exact=False)
    assert counter("cl100k_base") == Counter("cl100k_base", exact=True)


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("hello", 1), ("hello world", 2), ("word " * 100, 101)]
)
def test_tokens_are_counted_as_openai_counts_them(text: str, tokens: int) -> None:
    assert chunker().count(text) == tokens


@pytest.mark.parametrize("text", ["", "word", "# A\n\n" + "Some text. " * 40, "x" * 500, "日本語 " * 30])
def test_without_the_package_tokens_are_counted_alike(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by = chunker(32, 0, "words")
    expected = by.count(text)
    monkeypatch.setattr("vecbridge.ingestion.chunking._tokenizer", lambda of: None)
    assert by.count(text) == expected


# --- sizes


@pytest.mark.parametrize(
    ("name", "max_tokens", "prefix", "tokens"),
    [
        ("cl100k_base", None, "", 512),
        ("cl100k_base", 8_191, "", 512),
        ("cl100k_base", 256, "", 256),
        ("words", 256, "", 254),
        ("words", 256, "text word ", 252),
        (None, 8_191, "", 512),
        (None, 256, "", 204),
        (None, 256, "hello world", 202),
    ],
)
def test_chunks_are_as_long_as_the_model_takes_and_not_above_512(
    name: str | None, max_tokens: int | None, prefix: str, tokens: int
) -> None:
    counts = counted_by(name) if name else counter()
    found = chunking(counts, max_tokens=max_tokens, prefix=prefix)
    assert (found.tokens, found.overlap, found.counter) == (tokens, 0, counts.name)


def test_a_size_above_the_limit_of_the_model_is_refused() -> None:
    assert chunking(counter("cl100k_base"), tokens=8_191, max_tokens=8_191).tokens == 8_191
    with pytest.raises(
        InputError,
        match=r"up to 253 tokens \(the model takes 256, 3 of these for prefix and marks\), got 254",
    ):
        chunking(counted_by("words"), tokens=254, max_tokens=256, prefix="word")


def test_a_model_without_room_for_text_is_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"room for 32 or more tokens of text, got 39 tokens, of which 8 are",
    ):
        chunking(counter(), max_tokens=39)


@pytest.mark.parametrize("tokens", [-1, 0, 31])
def test_a_size_that_breaks_characters_is_refused(tokens: int) -> None:
    with pytest.raises(InputError, match=f"expected chunks of 32 or more tokens, got {tokens}"):
        chunking(counter(), tokens=tokens)


@pytest.mark.parametrize(("tokens", "overlap"), [(64, 32), (65, 33), (64, -1)])
def test_an_overlap_of_half_a_chunk_is_refused(tokens: int, overlap: int) -> None:
    with pytest.raises(InputError, match=rf"an overlap of 0 to {(tokens - 1) // 2} tokens, .*got {overlap}"):
        chunking(counter(), tokens=tokens, overlap=overlap)
    assert chunking(counter(), tokens=65, overlap=32).overlap == 32


def test_another_counter_than_the_one_of_the_chunking_is_refused() -> None:
    with pytest.raises(InputError, match="expected the counter 'words', got 'cl100k_base'"):
        Chunker(chunking(counted_by("words")), counter=counter())


def test_the_splitter_is_loaded_where_a_text_is_cut_and_not_before() -> None:
    code = (
        "import sys\n"
        "from vecbridge.ingestion.chunking import *\n"
        "from vecbridge.ingestion.records import *\n"
        "by = Chunker(chunking(counter()), counter=counter())\n"
        "assert 'semantic_text_splitter' not in sys.modules and 'tokenizers' not in sys.modules\n"
        "list(by.cut(Document('d', 'text', {}, Origin('d'), True)))\n"
        "assert 'semantic_text_splitter' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
