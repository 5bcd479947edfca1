"""HTML pages and office documents as Markdown: what a reader reads of them, without what stands around it."""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile, ZipFile

import markdownify
from bs4 import BeautifulSoup, Tag
from bs4.dammit import EncodingDetector
from bs4.element import PreformattedString
from bs4.exceptions import ParserRejectedMarkup

from ..errors import MissingExtra
from .lines import TEXT_BYTES, Fault, content, decoded
from .memo import Memo, context_of, key_of
from .records import short

# a tree takes up to 120 times the size of its page
HTML_BYTES = 8_000_000
# most of a large PDF or presentation is pictures
FILE_BYTES = 512_000_000

# whose versions decide what a document becomes
_PACKAGES = ("beautifulsoup4", "markdownify")
_CONVERTERS = (
    "markitdown", "pdfminer.six", "pdfplumber", "pypdfium2", "charset-normalizer", "mammoth", "python-pptx",
    "lxml",
)  # fmt: skip

# what no reader sees, or sees on each page of a site
_ALWAYS_OUT = frozenset(("script", "style", "template", "title"))
_OUT = frozenset(("noscript", "iframe", "object", "svg", "nav"))
_AROUND = ("header", "footer")
# blocks that markdownify does not know as such: it would run the words of one into the next
_DIVISIONS = frozenset((
    "address", "aside", "center", "details", "fieldset", "figure", "footer", "form", "header", "hgroup",
    "legend", "main", "menu", "option", "search", "summary",
))  # fmt: skip
_WITHIN = ("main", "article", "section")

# end tags that HTML allows to leave out, and pages do: what a start tag closes, and where that ends
# (https://html.spec.whatwg.org/multipage/syntax.html#optional-tags)
_CELLS, _ROWS = ("td", "th"), ("tr", "td", "th")
_PARTS = ("thead", "tbody", "tfoot", "tr", "td", "th", "caption", "colgroup")
_ENDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "li": (("li",), ("ul", "ol", "menu")),
    **dict.fromkeys(("dt", "dd"), (("dt", "dd"), ("dl",))),
    **dict.fromkeys(_CELLS, (_CELLS, ("tr", "table"))),
    "tr": (_ROWS, ("table",)),
    **dict.fromkeys(("thead", "tbody", "tfoot"), (_PARTS, ("table",))),
    **dict.fromkeys(("option", "optgroup"), (("option",), ("select",))),
}
_BLOCKS = frozenset(
    ("address", "article", "aside", "blockquote", "details", "div", "dl", "fieldset", "figcaption", "figure",
     "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "hr", "main", "menu", "nav",
     "ol", "p", "pre", "search", "section", "table", "ul", "li", "dt", "dd")
)  # fmt: skip
_NO_PARAGRAPH_BEYOND = ("button", "td", "th", "caption", "object", "template", "table")
_DEEPEST_LOOK = 100

# labels that mean more than they say (https://encoding.spec.whatwg.org/#names-and-labels)
_LABELS = {
    **dict.fromkeys(("ascii", "us-ascii", "iso-8859-1", "iso8859-1", "latin1", "latin-1"), "windows-1252"),
    **dict.fromkeys(("gb2312", "gbk", "x-gbk"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis"), "cp932"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "korean"), "cp949"),
    **dict.fromkeys(("iso-8859-9", "latin5"), "cp1254"),
    # a page whose declaration can be read byte by byte is not in these
    **dict.fromkeys(("utf-16", "utf-16le", "utf-16be", "utf-32"), "utf-8"),
}
_STRANGE = re.compile("[\0\ud800-\udfff]")
_GAPS = re.compile(r"\n[ \t]*\n(?:[ \t]*\n)+")
_SLIDE = re.compile(r"<!-- Slide number: \d+ -->")
_PICTURE = re.compile(r"!\[([^\]]*)\]\([^)\s]*\)")
_OLE = bytes.fromhex("D0CF11E0A1B11AE1")


class _Element(Tag):
    """An element that finds its parent of one name fast: markdownify asks each of them for a `pre`."""

    def find_parent(self, name: Any = None, *args: Any, **kwargs: Any) -> Tag | None:
        if not isinstance(name, str) or args or kwargs:
            return super().find_parent(name, *args, **kwargs)
        return next((parent for parent in self.parents if parent.name == name), None)


class _Page(BeautifulSoup):
    """A page in which an element ends where HTML says so, not only at its end tag."""

    def handle_starttag(self, name: str, *args: Any, **kwargs: Any) -> Tag | None:
        if name in _ENDS:
            self._end(*_ENDS[name])
        if name in _BLOCKS:
            self._end(("p",), _NO_PARAGRAPH_BEYOND)
        return super().handle_starttag(name, *args, **kwargs)

    def _end(self, names: tuple[str, ...], beyond: tuple[str, ...]) -> None:
        if not any(self.open_tag_counter.get(name) for name in names):
            return
        outermost = None
        here: Tag | None = self.currentTag
        for _ in range(_DEEPEST_LOOK):
            if here is None or here.name in beyond:
                break
            if here.name in names:
                outermost = here
            here = here.parent
        while outermost is not None and self.open_tag_counter.get(outermost.name):
            ended = self.currentTag
            assert ended is not None, "an element that is open has one that is innermost"
            self.handle_endtag(ended.name)
            if ended is outermost:
                return


def html(path: Path, *, encoding: str | None = None, memo: Memo | None = None) -> tuple[str, str | None]:
    """The text of a page as Markdown, and its title. Raises Fault.

    Left out: scripts, styles, navigation, and headers and footers outside of `main`, `article` and `section`
    (but for one with the only `h1`). Links keep their words, pictures their description. `memo`: remembers
    what the same bytes became.
    """
    raw = content(path, limit=HTML_BYTES)
    if memo is None:
        return _html(raw, encoding)
    key = key_of(_context("html", encoding, packages=_PACKAGES), raw)
    if (known := memo.get(key)) is not None:
        text, title = known
        return text, title
    found = _html(raw, encoding)
    memo.put(key, found)
    return found


def _context(*settings: str | None, packages: tuple[str, ...]) -> bytes:
    return context_of(*settings, code=("pages", "lines"), packages=packages)


def _html(raw: bytes, encoding: str | None) -> tuple[str, str | None]:
    text = decoded(raw, encoding, declared=None if encoding else _declared(raw))
    with warnings.catch_warnings():
        # about texts that look like file names, and XHTML, which is read as what it is: HTML
        warnings.simplefilter("ignore")
        try:
            page = _parsed(text)
            title = page.title.get_text(" ", strip=True) if page.title else ""
            found = _markdown(_pruned(page)) or _markdown(_parsed(text))
        except Exception as error:  # noqa: BLE001 - broken pages break parsers in ways of their own
            raise Fault(f"cannot be read as HTML ({type(error).__name__}: {short(str(error))})") from None
    return clean(found), clean(" ".join(title.split())) or None


def _declared(raw: bytes) -> str | None:
    """The encoding that a page says it has, if there is one of that name."""
    label = EncodingDetector.find_declared_encoding(raw, is_html=True)
    name = _LABELS.get(label.lower(), label) if label else None
    try:
        return name if name and isinstance(b"a".decode(name), str) else None
    except (LookupError, ValueError):
        return None


def _parsed(text: str) -> BeautifulSoup:
    try:
        return _Page(text, "html.parser", element_classes={Tag: _Element})
    except ParserRejectedMarkup:
        # a declaration that is none, such as "<![x"
        return _Page(text.replace("<!", "&lt;!"), "html.parser", element_classes={Tag: _Element})


def _pruned(page: BeautifulSoup) -> BeautifulSoup:
    titles = page.find_all("h1", limit=2)
    for tag in page.find_all(True):
        around = tag.name in _AROUND
        if around and (tag.find_parent(_WITHIN) or (len(titles) == 1 and tag in titles[0].parents)):
            continue
        if around or tag.name in _OUT:
            tag.extract()
    return page


def _markdown(page: BeautifulSoup) -> str:
    for node in list(page.descendants):
        if isinstance(node, PreformattedString):
            node.extract()
        elif not isinstance(node, Tag):
            continue
        elif node.name in _ALWAYS_OUT:
            node.extract()
        elif node.name in _DIVISIONS:
            node.name = "div"
        elif node.name == "img":
            node.replace_with(str(node.get("alt") or ""))
    try:
        text = markdownify.MarkdownConverter(
            heading_style=markdownify.ATX,
            bullets="-",
            strip=["a"],
            escape_asterisks=False,
            escape_underscores=False,
            table_infer_header=True,
        ).convert_soup(page)
    except RecursionError:
        # hundreds of elements within each other: the words are there, the structure meant nothing
        text = page.get_text("\n", strip=True)
    return text.strip()


def office(path: Path, kind: Literal["pdf", "docx", "pptx"], *, memo: Memo | None = None) -> str:
    """The text of a document as Markdown. Raises Fault, MissingExtra.

    The converters are called by kind, so that nothing is guessed, no plugin runs and no address is opened.
    `memo`: remembers what the same bytes became.
    """
    if memo is None or (key := _key(path, kind)) is None:
        return _office(path, kind)
    if (known := memo.get(key)) is not None:
        return str(known)
    text = _office(path, kind)
    # a file that was written meanwhile may have given the text of what it has become
    if _key(path, kind) == key:
        memo.put(key, text)
    return text


def _key(path: Path, kind: str) -> bytes | None:
    """What an office document is remembered by; None for one that will be refused."""
    try:
        if path.stat().st_size > FILE_BYTES:
            return None
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None
    return key_of(_context(kind, packages=_PACKAGES + _CONVERTERS), found)


def _office(path: Path, kind: Literal["pdf", "docx", "pptx"]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from markitdown import MissingDependencyException, StreamInfo, converters
        except ImportError as error:
            raise _missing(kind, error) from error
        # without a handler of their own they would write to standard error
        for name in ("bs4", "mammoth", "pdfminer", "pdfplumber", "pptx", "pypdfium2"):
            if not (logger := logging.getLogger(name)).handlers:
                logger.addHandler(logging.NullHandler())
        _check_file(path, kind)
        converter: Any = {
            "pdf": converters.PdfConverter,
            "docx": converters.DocxConverter,
            "pptx": converters.PptxConverter,
        }[kind]
        try:
            with path.open("rb") as file:
                text = (
                    converter().convert(file, StreamInfo(extension=f".{kind}", filename=path.name)).markdown
                )
        except MissingDependencyException as error:
            raise _missing(kind, error) from error
        except OSError as error:
            raise Fault(f"cannot be read: {error.strerror or error}") from None
        except Exception as error:  # noqa: BLE001 - broken documents break converters in ways of their own
            if "Password" in f"{type(error).__name__} {error!r}":
                raise Fault("expected a PDF that opens without a password, got an encrypted one") from None
            raise Fault(
                f"expected a {kind.upper()} file, got one that cannot be read "
                f"({type(error).__name__}: {short(str(error))}); open it and save it anew"
            ) from None
    text = _PICTURE.sub(r"\1", _SLIDE.sub("", text)).replace("\f", "\n\n")
    if not text.strip():
        pictures = "; if its pages are pictures, run OCR on it first (ocrmypdf)" if kind == "pdf" else ""
        raise Fault(f"expected a {kind.upper()} file with text, got none{pictures}")
    return clean(text)


def _missing(kind: str, error: Exception) -> MissingExtra:
    return MissingExtra(
        f"{kind.upper()} needs markitdown with its {kind} support; "
        f"install it with pip install 'vecbridge[documents]' ({short(str(error))})"
    )


def _check_file(path: Path, kind: str) -> None:
    """Raise Fault for a file that is another than its name says, or too large once it is unpacked."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(1_024)
        if size > FILE_BYTES:
            raise Fault(
                f"expected a file of up to {FILE_BYTES // 1_000_000} MB, got {size / 1e6:,.0f} MB; split it"
            )
        if kind == "pdf":
            if b"%PDF-" not in head:
                raise Fault(f"expected a PDF file, got one that begins with {short(head[:8])}")
            return
        if head.startswith(_OLE):
            raise Fault(f"expected a {kind.upper()} file, got an encrypted one or one of Office before 2007")
        with ZipFile(path) as archive:
            # what a part unpacks to is never more than its entry says
            text = sum(
                part.file_size for part in archive.infolist() if part.filename.endswith((".xml", ".rels"))
            )
            whole = sum(part.file_size for part in archive.infolist())
        if text > TEXT_BYTES or whole > 2 * FILE_BYTES:
            raise Fault(
                f"expected up to {TEXT_BYTES // 1_000_000} MB of text in the file, got {text / 1e6:,.0f} MB "
                f"({whole / 1e6:,.0f} MB unpacked); split it into several files"
            )
    except (OSError, BadZipFile, NotImplementedError) as error:
        got = getattr(error, "strerror", None) or error
        raise Fault(f"expected a {kind.upper()} file, got one that cannot be read: {got}") from None


def clean(text: str) -> str:
    """The text without what no store keeps, and at most one blank line at a time."""
    return _GAPS.sub("\n\n", _STRANGE.sub("\ufffd", text)).strip()
