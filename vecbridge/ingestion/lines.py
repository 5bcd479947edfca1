"""Text files as lines or as a whole: plain or packed, in the encoding they say or you name.

A byte that is no text does not end the reading: it becomes a mark, a lone surrogate, which decoded text never
holds. `fault` finds the mark, and what holds it is refused by line.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from ..errors import SourceError

# a file that is no text, or JSON in a single line, would be read into memory as a whole
LINE_CHARS = 64_000_000
TEXT_BYTES = 64_000_000

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_MARK = re.compile("[\ud800-\udfff]")
_TOO_LONG = "\udfff\n"
_ERRORS = "vecbridge.mark"
_ADVICE = "convert the file, for example with iconv -f LATIN1 -t UTF-8, or name its encoding"


class Fault(ValueError):
    """Why a row or file is refused. `line`: where in a file, counted from 1."""

    def __init__(self, reason: str, *, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


def _mark(error: UnicodeError) -> tuple[str, int]:
    """One lone surrogate, U+DC00 + byte, in place of what cannot be decoded."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(0xDC00 + error.object[error.start]), error.end


codecs.register_error(_ERRORS, _mark)


def check_encoding(name: str | None) -> None:
    """Raise SourceError for a name that is no encoding of text."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=name or "utf-8").close()
    except (LookupError, ValueError):
        raise SourceError(
            f"expected the name of a text encoding, such as utf-8, latin-1, cp1252 or shift_jis, got {name!a}"
        ) from None


def lines(path: Path, *, encoding: str | None = None, file: str | None = None) -> Iterator[str]:
    """The lines of a text file, line ends included; `.gz` is unpacked.

    The encoding is that of the byte order mark, else the named one, else UTF-8. A line that cannot be
    decoded, or is too long, is given too, and `fault` says so. `file`: how errors call the file. Raises
    SourceError where nothing more can be read.
    """
    file = file or shown(path)
    number = 0
    try:
        with _binary(path) as raw:
            name = _decoding(cast(io.BufferedReader, raw).peek(4)[:4], encoding)
            with io.TextIOWrapper(raw, encoding=name, errors=_ERRORS, newline="\n") as text:
                while line := text.readline(LINE_CHARS):
                    number += 1
                    if len(line) == LINE_CHARS and not line.endswith("\n"):
                        while (line := text.readline(1 << 20)) and not line.endswith("\n"):
                            pass
                        line = _TOO_LONG
                    yield line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(
            f"{file}:{number + 1}: expected a whole gzip file, got a broken one: {error}"
        ) from error
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror or error}") from error
    except UnicodeError as error:
        raise SourceError(f"{file}:{number + 1}: cannot be decoded: {error}") from None


def fault(text: str, encoding: str | None) -> str | None:
    """Why a line, or a cell of it, is no text; None where it is."""
    if text.isascii() or not (mark := _MARK.search(text)):
        return None
    if mark[0] == _TOO_LONG[0]:
        return f"expected lines shorter than {LINE_CHARS:,} characters, got a longer one; split it"
    return f"expected text in {_wanted(encoding)}, got byte 0x{ord(mark[0]) & 0xFF:02X}; {_ADVICE}"


def content(path: Path, *, limit: int = TEXT_BYTES) -> bytes:
    """The bytes of a file of at most `limit`. Raises Fault."""
    try:
        size = path.stat().st_size
        raw = b"" if size > limit else path.read_bytes()
    except OSError as error:
        raise Fault(f"cannot be read: {error.strerror or error}") from None
    if size > limit or len(raw) > limit:
        raise Fault(
            f"expected a file of up to {limit // 1_000_000} MB, got {max(size, len(raw)) / 1e6:,.0f} MB; "
            f"split it into several files"
        )
    return raw


def whole(path: Path, *, encoding: str | None = None) -> str:
    """The text of a file, with line ends as newlines. Raises Fault."""
    return decoded(content(path), encoding)


def decoded(raw: bytes, encoding: str | None, *, declared: str | None = None) -> str:
    """The text of a file's bytes: in the encoding of its byte order mark, else the named one, else the one
    that it declares, else UTF-8; with line ends as newlines. Raises Fault with the line of what is none."""
    name = _decoding(raw[:4], encoding or declared)
    binary = (
        "expected text, got a NUL character: the file is binary, or its encoding (UTF-16 without byte order "
        "mark, for example) must be named"
    )
    try:
        text = raw.decode(name)
    except UnicodeDecodeError as error:
        line = raw[: error.start].decode(name, "replace").count("\n") + 1
        if b"\0" in raw and not name.startswith(("utf-16", "utf-32")):
            raise Fault(binary, line=line) from None
        # the error holds the whole file, which may be long and private
        raise Fault(
            f"expected text in {_wanted(encoding or declared)}, got byte 0x{raw[error.start]:02X}; {_ADVICE}",
            line=line,
        ) from None
    except UnicodeError as error:
        raise Fault(f"cannot be decoded: {error}") from None
    if (nul := text.find("\0")) >= 0:
        raise Fault(binary, line=text.count("\n", 0, nul) + 1)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoding(head: bytes, encoding: str | None) -> str:
    return next((name for bom, name in _BOMS if head.startswith(bom)), encoding or "utf-8")


def _wanted(encoding: str | None) -> str:
    return encoding or "UTF-8 (or UTF-16 with a byte order mark)"


def _binary(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def shown(path: Path | str) -> str:
    """The path as it can be printed, whatever bytes a file name holds."""
    return str(path).encode("utf-8", "backslashreplace").decode()
