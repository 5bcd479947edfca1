"""The lines of a text file, plain or compressed, in any of the encodings that can be told apart."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from ..errors import SourceError

# a file that is no text, or JSON in a single line, would be read into memory as a whole
LINE_BYTES = 128_000_000
_ADVICE = "convert the file, for example with iconv -f LATIN1 -t UTF-8"


def lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file (or UTF-16 with a byte order mark), line ends included; `.gz` is unpacked.

    Raises SourceError naming file and line.
    """
    number = 1
    try:
        with _binary(path) as file:
            head = cast(io.BufferedReader, file).peek(4)[:4]
            if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
                raise SourceError(f"{shown(path)}: expected UTF-8 or UTF-16, got UTF-32; {_ADVICE}")
            if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                with io.TextIOWrapper(file, encoding="utf-16", newline="\n") as text:
                    while line := text.readline(LINE_BYTES):
                        _check_length(line, path, number)
                        yield line
                        number += 1
                return
            if head.startswith(codecs.BOM_UTF8):
                file.read(len(codecs.BOM_UTF8))
            while raw := file.readline(LINE_BYTES):
                _check_length(raw, path, number)
                yield raw.decode("utf-8")
                number += 1
    except UnicodeDecodeError as error:
        if error.encoding == "utf-8":
            got = f"byte 0x{error.object[error.start]:02X} at position {error.start} of the line"
        else:
            got = f"broken {error.encoding} in this line or soon after"
        # the error holds the whole line, which may be long and private
        raise SourceError(
            f"{shown(path)}:{number}: expected text in UTF-8 (or UTF-16 with a byte order mark), "
            f"got {got}; {_ADVICE}"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(
            f"{shown(path)}:{number}: expected a whole gzip file, got a broken one: {error}"
        ) from error
    except OSError as error:
        raise SourceError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error


def _binary(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _check_length(line: str | bytes, path: Path, number: int) -> None:
    if len(line) >= LINE_BYTES:
        raise SourceError(
            f"{shown(path)}:{number}: expected lines shorter than {LINE_BYTES:,} bytes, got a longer one"
        )


def shown(path: Path) -> str:
    """The path as it can be printed, whatever bytes a file name holds."""
    return str(path).encode("utf-8", "backslashreplace").decode()
