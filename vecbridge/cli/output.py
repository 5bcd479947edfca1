"""What leaves the program: JSON and sentences, free of control characters and passwords."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any, NoReturn, TextIO

# C0 and C1 controls steer a terminal, direction marks reorder the line they stand in, surrogates are not text
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SPACE = re.compile(r"\s+")
# up to the last @ of a word, because a password may itself hold /, : and @
_USERINFO = re.compile(r"(://[^\s:/@]*):\S*@")
# Qdrant's URLs have a key where others have a user
_KEY = re.compile(r"(?i)(qdrants?(?:\+https?)?://)\S*@")
_SECRET = re.compile(r"(?i)\b((?:ssl)?password|passwd|api[-_]?key|token)=[^\s&'\"]+")

BROKEN_PIPE = 141


class ReaderGone(BaseException):
    """Whoever read the output has gone, as `head` does. No Exception: nothing between may handle it."""


def safe(text: str) -> str:
    """The text with every character that could steer a terminal written as an escape such as \\x1b."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def line(text: str, width: int) -> str:
    """The text on one line of at most `width` characters, safe for a terminal."""
    # cut before cleaning: a document may have megabytes
    start = text[: 4 * width]
    one = safe(_SPACE.sub(" ", start).strip())
    return one if len(one) <= width and len(start) == len(text) else f"{one[: width - 1].rstrip()}…"


def redact(text: str) -> str:
    """The text without the passwords and keys of the URLs in it."""
    return _SECRET.sub(r"\1=***", _USERINFO.sub(r"\1:***@", _KEY.sub(r"\1***@", text)))


def to_json(value: Any) -> str:
    """The value as indented JSON, safe for a terminal."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write_json(value: Any) -> None:
    """One JSON value on standard output."""
    answer(to_json(value))


def answer(text: str) -> None:
    """A line on standard output."""
    _write(sys.stdout, text)


def say(text: str) -> None:
    """A line on standard error."""
    _write(sys.stderr, text)


def _write(stream: TextIO, text: str) -> None:
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        gone()


def gone() -> NoReturn:
    """End quietly because the reader of the output has gone. Raises ReaderGone."""
    # what is still buffered would fail again, with a message, when the interpreter ends
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    raise ReaderGone
