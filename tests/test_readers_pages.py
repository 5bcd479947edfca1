"""HTML pages and office documents become Markdown with what a reader reads of them."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sources import documents, kept, pdf, refused, written

from vecbridge.errors import MissingExtra
from vecbridge.ingestion import pages
from vecbridge.ingestion.readers import read

office = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("markitdown", "pptx", "mammoth", "pdfminer")),
    reason="the extra 'documents' is not installed",
)


def page(tmp_path: Path, html: str | bytes, **options: Any) -> str:
    return documents(written(tmp_path / "a.html", html), **options)[0].text


# --- HTML


def test_headings_lists_tables_and_code_become_markdown(tmp_path: Path) -> None:
    html = """<h1>One</h1><p>A <b>bold</b> snake_case <a href="/x">link</a>.</p><h2>Two</h2>
    <ul><li>a<ul><li>b</li></ul></li></ul><table><tr><th>k</th><th>v</th></tr><tr><td>1</td><td>2</td></tr>
    </table><pre>def f():
    # no heading
</pre><img src="x.png" alt="a cat">"""
    assert page(tmp_path, html) == (
        "# One\n\nA **bold** snake_case link.\n\n## Two\n\n- a\n  - b\n\n| k | v |\n"
        "| --- | --- |\n| 1 | 2 |\n\n```\ndef f():\n    # no heading\n```\n\na cat"
    )


def test_the_title_is_metadata_and_stands_in_no_text(tmp_path: Path) -> None:
    source = written(tmp_path / "a.html", "<title>\n A &amp; B\n page</title><p>words</p>")
    (document,) = documents(source)
    assert document.metadata == {"source": "a.html", "title": "A & B page"}
    assert document.text == "words"
    assert document.markdown
    assert documents(written(tmp_path / "b.html", "<title> </title><p>words"))[0].metadata == {
        "source": "b.html"
    }


def test_what_no_reader_reads_is_left_out(tmp_path: Path) -> None:
    html = """<head><style>css</style><script>var js</script></head><body><!-- remark -->
    <header>banner</header><nav>menu</nav><main><header><h1>Title</h1></header>
    <p>Words.<script>more js</script></p>
    <noscript>enable</noscript><template>later</template><footer>By the author</footer></main>
    <aside>beside</aside><figure>shown</figure><footer>imprint</footer></body>"""
    assert page(tmp_path, html) == "# Title\n\nWords.\n\nBy the author\n\nbeside\n\nshown"


def test_a_header_with_the_only_title_of_the_page_is_kept(tmp_path: Path) -> None:
    html = "<body><header><h1>Title</h1></header><p>Words.</p></body>"
    assert page(tmp_path, html) == "# Title\n\nWords."
    assert page(tmp_path, f"{html}<h1>Another</h1>") == "Words.\n\n# Another"


def test_a_page_of_nothing_but_a_header_is_kept(tmp_path: Path) -> None:
    assert page(tmp_path, "<header>all there is</header>") == "all there is"


def test_end_tags_that_html_allows_to_leave_out_may_be_missing(tmp_path: Path) -> None:
    html = (
        "<p>One<p>Two<ul><li>a<li>b<ul><li>c</ul><li>d</ul><table><tr><td>1<td>2<tr><td>3<td>4</table>"
        "<dl><dt>t<dd>d<dt>u<dd>e</dl><p>Last<h2>Part</h2>"
    )
    closed = (
        "<p>One</p><p>Two</p><ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul><table><tr><td>1</td>"
        "<td>2</td></tr><tr><td>3</td><td>4</td></tr></table><dl><dt>t</dt><dd>d</dd><dt>u</dt><dd>e</dd></dl>"
        "<p>Last</p><h2>Part</h2>"
    )
    assert page(tmp_path, html) == page(tmp_path, closed)
    assert page(tmp_path, "<p>x" * 5_000) == "\n\n".join("x" * 5_000)


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 3_000 + "words",
        "<b>" * 30_000 + "words",
        "<p>words</div></table></p></p>",
        "<p>words<![x y",
        "<p>words<!DOCTYPE",
        "<p>words</p><",
        "<table><td><table><tr>words",
        "<a b='c>words</a><p>words</p>'",
        "words",
        "\ufeff<p>words",
    ],
)
def test_broken_pages_keep_their_words(tmp_path: Path, html: str) -> None:
    assert "words" in page(tmp_path, html)


def test_characters_that_no_store_keeps_are_replaced(tmp_path: Path) -> None:
    assert page(tmp_path, "<p>a&#xD800;b&#0;c</p>") == "a\ufffdb\ufffdc"


def test_xhtml_is_read_as_html_and_opens_no_files(tmp_path: Path) -> None:
    secret = written(tmp_path / "secret", "sesame")
    html = (
        f'<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html SYSTEM "file://{secret}">'
        '<html xmlns="http://www.w3.org/1999/xhtml"><body><p>é &amp; so on</p></body></html>'
    )
    assert documents(written(tmp_path / "a.xhtml", html))[0].text == "é & so on"
    entity = f'<!DOCTYPE x [<!ENTITY x SYSTEM "file://{secret}">]><p>words &x;</p>'
    assert "sesame" not in documents(written(tmp_path / "b.xhtml", entity))[0].text


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("utf-8", "utf-8"),
        ("iso-8859-1", "cp1252"),
        ("Windows-1252", "cp1252"),
        ("shift_jis", "cp932"),
        ("gb2312", "gb18030"),
        ("utf-16", "utf-8"),
        ("no-such-thing", "utf-8"),
    ],
)
def test_a_page_says_its_own_encoding(tmp_path: Path, declared: str, encoding: str) -> None:
    word = {"cp932": "日本", "gb18030": "中文"}.get(encoding, "„Grüße“")
    for meta in (f'<meta charset="{declared}">', f'<meta content="text/html; charset={declared}">'):
        assert page(tmp_path, f"<head>{meta}</head><p>{word}</p>".encode(encoding)) == word


def test_a_byte_order_mark_and_a_named_encoding_say_more_than_the_page(tmp_path: Path) -> None:
    html = '<meta charset="utf-8"><p>Grüße</p>'
    assert page(tmp_path, html.encode("utf-16")) == "Grüße"
    assert page(tmp_path, html.encode("latin-1"), encoding="latin-1") == "Grüße"


def test_a_page_in_another_encoding_than_it_says_is_rejected_by_line(tmp_path: Path) -> None:
    source = written(tmp_path / "a.html", b'<meta charset="utf-8">\n<p>caf\xe9</p>')
    ((origin, reason, key),) = refused(source)
    assert (origin, key) == ("a.html:2", "a.html")
    assert reason.startswith("expected text in utf-8, got byte 0xE9; convert the file, ")


def test_a_page_without_words_or_too_large_is_rejected(tmp_path: Path) -> None:
    written(tmp_path / "a.html", "<script>alert(1)</script><p> </p>")
    written(tmp_path / "b.html", "<p>" + "x" * pages.HTML_BYTES)
    assert [(origin, reason[:38]) for origin, reason, _ in refused(tmp_path)] == [
        ("a.html", "expected text, got an empty file"),
        ("b.html", "expected a file of up to 8 MB, got 8 M"),
    ]


# --- office documents

OOXML = "http://schemas.openxmlformats.org"
WORDS = "<w:p><w:r><w:t>Words of a document.</w:t></w:r></w:p>"


def docx(path: Path, body: str = WORDS, links: str = "") -> Path:
    """A Word document of the given paragraphs, without what Word adds."""
    relations = f"{OOXML}/package/2006/relationships"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{OOXML}/package/2006/content-types">'
            '<Default Extension="rels" '
            'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            '<Default Extension="xml" ContentType="application/xml"/><Override PartName="/word/document.xml" '
            'ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/>'
            "</Types>",
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{relations}"><Relationship Id="r1" Target="word/document.xml" '
            f'Type="{OOXML}/officeDocument/2006/relationships/officeDocument"/></Relationships>',
        )
        archive.writestr(
            "word/_rels/document.xml.rels", f'<Relationships xmlns="{relations}">{links}</Relationships>'
        )
        archive.writestr(
            "word/document.xml",
            f'<w:document xmlns:w="{OOXML}/wordprocessingml/2006/main" xmlns:a="{OOXML}/drawingml/2006/main" '
            f'xmlns:r="{OOXML}/officeDocument/2006/relationships" '
            f'xmlns:wp="{OOXML}/drawingml/2006/wordprocessingDrawing" '
            f'xmlns:pic="{OOXML}/drawingml/2006/picture"><w:body>{body}</w:body></w:document>',
        )
    return path


ENCRYPTED = (
    f"/ID [<{'00' * 16}><{'00' * 16}>] /Encrypt << /Filter /Standard /V 1 /R 2 "
    f"/O <{'ab' * 32}> /U <{'cd' * 32}> /P -4 >>"
)


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    pptx = pytest.importorskip("pptx", reason="the extra 'documents' is not installed")
    presentation = pptx.Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[1])
    slide.shapes.title.text = "First slide"
    slide.placeholders[1].text = "What it says"
    slide.notes_slide.notes_text_frame.text = "What is meant"
    presentation.slides.add_slide(presentation.slide_layouts[5]).shapes.title.text = "Second slide"
    presentation.save(tmp_path / "talk.pptx")
    return tmp_path / "talk.pptx"


@office
def test_a_word_document_becomes_markdown(tmp_path: Path) -> None:
    heading = '<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>A heading</w:t></w:r></w:p>'
    (document,) = documents(docx(tmp_path / "a.docx", heading + WORDS))
    assert (document.text, document.markdown) == ("# A heading\n\nWords of a document.", True)
    assert (document.id, document.metadata) == ("a.docx", {"source": "a.docx"})


@office
def test_slides_become_headings_with_their_notes(slides: Path) -> None:
    assert documents(slides)[0].text == (
        "# First slide\nWhat it says\n\n### Notes:\nWhat is meant\n\n# Second slide"
    )


@office
def test_the_pages_of_a_pdf_are_its_text(tmp_path: Path) -> None:
    source = written(tmp_path / "a.pdf", pdf("First page", "Second page"))
    assert documents(source)[0].text.split("\n\n") == ["First page", "Second page"]


@office
def test_office_documents_that_cannot_be_read_are_rejected(tmp_path: Path, slides: Path) -> None:
    written(tmp_path / "blank.pdf", pdf(""))
    written(tmp_path / "broken.pdf", pdf("text")[:300])
    written(tmp_path / "encrypted.pdf", pdf("secret", trailer=ENCRYPTED))
    written(tmp_path / "junk.pdf", b"%PDF-1.4\n" + b"\0junk" * 99)
    written(tmp_path / "other.pdf", "no PDF")
    written(tmp_path / "cut.pptx", slides.read_bytes()[:5_000])
    written(tmp_path / "old.docx", bytes.fromhex("D0CF11E0A1B11AE1") + bytes(900))
    with zipfile.ZipFile(tmp_path / "odd.docx", "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    docx(tmp_path / "void.docx", "<w:p/>")
    with zipfile.ZipFile(tmp_path / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", bytes(70_000_000))
    expected = {
        "blank.pdf": "expected a PDF file with text, got none; if its pages are pictures, run OCR on",
        "broken.pdf": "expected a PDF file, got one that cannot be read (",
        "encrypted.pdf": "expected a PDF that opens without a password, got an encrypted one",
        "junk.pdf": "expected a PDF file, got one that cannot be read (",
        "other.pdf": "expected a PDF file, got one that begins with b'no PDF'",
        "cut.pptx": "expected a PPTX file, got one that cannot be read: File is not a zip file",
        "old.docx": "expected a DOCX file, got an encrypted one or one of Office before 2007",
        "odd.docx": "expected a DOCX file, got one that cannot be read (",
        "void.docx": "expected a DOCX file with text, got none",
        "bomb.docx": "expected up to 64 MB of text in the file, got 70 MB (70 MB unpacked); split it",
    }
    found = {origin: reason for origin, reason, _ in refused(tmp_path)}
    assert found.keys() == expected.keys()
    assert [name for name, reason in expected.items() if not found[name].startswith(reason)] == []
    assert kept(tmp_path) == ["talk.pptx"]


@pytest.fixture
def visits() -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and the paths that it was asked for."""
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@office
def test_no_document_opens_an_address_or_a_file(tmp_path: Path, visits: tuple[str, list[str]]) -> None:
    address, asked = visits
    secret = written(tmp_path / ".secret/word.txt", "sesame")
    picture = (
        '<w:p><w:r><w:drawing><wp:inline><wp:docPr id="{n}" name="p" descr="picture {n}"/><a:graphic>'
        "<a:graphicData><pic:pic><pic:blipFill><a:blip r:link='r{n}'/></pic:blipFill></pic:pic>"
        "</a:graphicData></a:graphic></wp:inline></w:drawing></w:r></w:p>"
    )
    link = (
        '<Relationship Id="r{n}" Type="' + OOXML + '/officeDocument/2006/relationships/image" '
        'Target="{to}" TargetMode="External"/>'
    )
    targets = {1: f"{address}/picture.png", 2: f"file://{secret}", 3: str(secret)}
    for n, to in targets.items():
        docx(tmp_path / f"{n}.docx", WORDS + picture.format(n=n), link.format(n=n, to=to))
    written(
        tmp_path / "a.html", f'<p>words<img src="{address}/a.png"><link rel=stylesheet href="{address}/b">'
    )
    for item in read(tmp_path):
        assert "sesame" not in repr(item)
        assert "c2VzYW1l" not in repr(item), "base64 of the secret"
    assert asked == []


@office
def test_converters_write_nothing_to_standard_error(tmp_path: Path, slides: Path) -> None:
    written(tmp_path / "grey.pdf", pdf("words) Tj (x) scn /P0 gs (more"))
    written(tmp_path / "broken.pdf", pdf("text")[:400])
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            "import sys; from vecbridge.ingestion.readers import read; print(len(list(read(sys.argv[1]))))",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("3\n", "")
    assert logging.getLogger("pdfminer").propagate, "those who listen still hear"


def test_without_the_extra_a_document_alone_raises_and_in_a_folder_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "markitdown", None)  # what an absent package is to an import
    written(tmp_path / "a.md", "words")
    source = written(tmp_path / "a.pdf", pdf("words"))
    with pytest.raises(MissingExtra, match=r"PDF needs markitdown .* pip install 'vecbridge\[documents\]'"):
        list(read(source))
    ((origin, reason, key),) = refused(tmp_path)
    assert (origin, key) == ("a.pdf", "a.pdf")
    assert "pip install 'vecbridge[documents]'" in reason
    assert kept(tmp_path) == ["a.md"]
