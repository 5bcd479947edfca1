"""Long text in, pieces of a size that an embedding model takes in: by headings, paragraphs, sentences.

Plain rules, no model: a Markdown heading starts a new chunk; paragraphs are collected until the next one
would not fit; a paragraph that is too long alone is cut after a sentence, a line or a word, in this order.
Nothing overlaps and nothing but blank lines and trailing space is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

CHARS = 1_200
FEWEST_CHARS = 100

_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?")
_UNDERLINE = re.compile(r" {0,3}(?:={2,}|-{2,})")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_CUTS = tuple(re.compile(rule) for rule in (r"[.!?…]['\"”’»)\]]*\s+|[。！？]", r"\n+", r"\s+"))


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a text, and the nearest heading above or in it (None before the first heading)."""

    text: str
    heading: str | None


@dataclass(frozen=True, slots=True)
class _Block:
    text: str
    heading: str | None = None


def chunks(lines: Iterable[str], *, markdown: bool, limit: int = CHARS) -> Iterator[Chunk]:
    """The chunks of a text, each of at most `limit` characters, read line by line."""
    parts: list[str] = []
    size = 0
    heading = None
    bare = True  # nothing but headings so far: they wait for their text
    for block in _blocks(lines, markdown=markdown, limit=limit):
        if block.heading is not None:
            if parts and (not bare or size + 2 + len(block.text) > limit // 2):
                yield Chunk("\n\n".join(parts), heading)
                parts, size = [], 0
            heading, bare = block.heading, True
            size += len(block.text) + (2 if parts else 0)
            parts.append(block.text)
            continue
        for piece in _pieces(block.text, first=limit - size - 2 if bare and parts else limit, limit=limit):
            if parts and size + 2 + len(piece) > limit:
                yield Chunk("\n\n".join(parts), heading)
                parts, size = [], 0
            size += len(piece) + (2 if parts else 0)
            parts.append(piece)
            bare = False
    if parts:
        yield Chunk("\n\n".join(parts), heading)


def _blocks(lines: Iterable[str], *, markdown: bool, limit: int) -> Iterator[_Block]:
    """Paragraphs and headings. A paragraph without end comes in parts, so that memory stays small."""
    paragraph: list[str] = []
    size = 0
    fence = ""
    for raw in lines:
        line = raw.rstrip()
        title = None
        if markdown:
            mark = _FENCE.match(line)
            if fence:
                fence = "" if mark and mark[1].startswith(fence) else fence
            elif mark:
                fence = mark[1]
            elif (match := _HEADING.fullmatch(line)) and len(line) <= limit // 4:
                title = match[1]
                if paragraph:
                    yield _Block("\n".join(paragraph))
                paragraph, size = [], 0
            elif len(paragraph) == 1 and len(paragraph[0]) <= limit // 8 and _UNDERLINE.fullmatch(line[:80]):
                title, line = paragraph[0].strip(), f"{paragraph[0]}\n{line[:80]}"
                paragraph, size = [], 0
        if title:
            yield _Block(line, title)
            continue
        if line:
            paragraph.append(line)
            size += len(line) + 1
        if paragraph and (not line or size > 16 * limit):
            yield _Block("\n".join(paragraph))
            paragraph, size = [], 0
    if paragraph:
        yield _Block("\n".join(paragraph))


def _pieces(text: str, *, first: int, limit: int) -> Iterator[str]:
    room, start = first, 0
    while len(text) - start > room:
        end = start + _cut(text[start : start + room])
        if piece := text[start:end].rstrip():
            yield piece
            room = limit
        start = end
    if piece := text[start:].rstrip():
        yield piece


def _cut(window: str) -> int:
    """Where to end a piece: after the last sentence, line or word in the second half, else at the end."""
    for rule in _CUTS:
        ends = [match.end() for match in rule.finditer(window, len(window) // 2)]
        if ends:
            return ends[-1]
    return len(window)
