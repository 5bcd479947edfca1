"""Headings and code blocks of a Markdown text, by position.

A parser that builds a tree is slow, and all that is asked here is what a chunk stands under: so this looks at
no lines but those that can be a heading or hide one.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right

TEXT = re.compile(r"\S")
_FRONT = re.compile(r"(---|\+\+\+)[ \t]*\n(?![ \t]*\n).*?\n\1[ \t]*$", re.DOTALL | re.MULTILINE)
_MARK = re.compile(
    r"^ {0,3}(?:#{1,6}(?=[ \t\n]|\Z)|`{3,}(?=[^`\n]*$)|~{3,}|(?:=+|-+)[ \t]*$"
    r"|<!--|<(?:pre|script|style|textarea)(?=[\s>]))",
    re.MULTILINE | re.IGNORECASE,
)
_COMMENT_END = re.compile("-->")
_RAW_END = re.compile("</(?:pre|script|style|textarea)>", re.IGNORECASE)
_CLOSING = re.compile(r"(?:^|[ \t]+)#+$")
_NO_PARAGRAPH = re.compile(r" {0,3}(?:>|[-+*](?:[ \t]|$)|\d{1,9}[.)](?:[ \t]|$))|<.*>[ \t]*$", re.MULTILINE)
_RULE = re.compile(r" {0,3}([*_-])(?:[ \t]*\1){2,}[ \t]*$", re.MULTILINE)
_TITLE_LINES = 50  # CommonMark knows no limit; whoever writes more than a few means no heading
_TITLE_CHARS = 200


class Outline:
    """Headings and code blocks of a Markdown text whose lines end with `\n`.

    Headings are those of CommonMark 0.31 that stand neither in a list nor in a quote: `#` before or a line
    below, not in code, comments, or the metadata at the beginning. Positions count characters.
    """

    def __init__(self, text: str) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._titles: list[str] = []
        self._fences: list[int] = []  # begin and end of each, in turns
        # no paragraph reaches above `floor`
        position = floor = front.end() if (front := _FRONT.match(text)) else 0
        while (mark := _MARK.search(text, position)) is not None:
            position = mark.end()
            kind = mark[0].strip(" \t")
            if kind[0] == "#":
                position = _line_end(text, position)
                self._add(mark.start(), position, _CLOSING.sub("", text[mark.end() : position].strip()))
            elif kind[0] in "`~":
                close = re.compile(rf"^ {{0,3}}{kind[0]}{{{len(kind)},}}[ \t]*$", re.MULTILINE)
                found = close.search(text, _line_end(text, position))
                position = found.end() if found else len(text)
                self._fences += (mark.end(), position)
            elif kind[0] == "<":
                # a comment may be as short as <!-->
                close, start = (_COMMENT_END, position - 2) if kind == "<!--" else (_RAW_END, position)
                found = close.search(text, start)
                position = _line_end(text, found.end()) if found else len(text)
            elif (above := _paragraph(text, floor, mark.start())) is not None:
                self._add(above, position, text[above : mark.start()])
            elif kind[0] == "=" or len(kind) < 3:
                continue  # text like any other
            floor = position

    def _add(self, start: int, end: int, title: str) -> None:
        if title := " ".join(title.split()):
            self._starts.append(start)
            self._ends.append(end)
            self._titles.append(title if len(title) <= _TITLE_CHARS else f"{title[: _TITLE_CHARS - 1]}…")

    def fenced(self, position: int) -> bool:
        """Whether the position lies within a fenced code block, below its first line's fence."""
        at = bisect_left(self._fences, position)
        return at % 2 == 1 and position < self._fences[at]

    def heading(self, text: str, start: int, end: int) -> str | None:
        """What the first text of a piece stands under: the last heading it begins with, or one above."""
        first = TEXT.search(text, start)
        at = bisect_right(self._starts, start if first is None else first.start()) - 1
        if at < 0:
            return None
        if self._ends[at] > start:
            while at + 1 < len(self._starts) and self._starts[at + 1] < end:
                if text[self._ends[at] : self._starts[at + 1]].strip():
                    break
                at += 1
        return self._titles[at]

    def tail(self, text: str, start: int, end: int) -> int:
        """Where the headings begin with which the piece ends; `end` where it ends with text.

        A heading of which the piece has a part only counts, unless the piece is nothing else.
        """
        head = end
        at = bisect_left(self._starts, end) - 1
        while at >= 0 and self._ends[at] > start and head > start:
            if text[self._ends[at] : head].strip() or (self._starts[at] <= start and self._ends[at] > end):
                break
            head = self._starts[at]
            at -= 1
        return head

    def below(self, text: str, position: int, *, within: int) -> int | None:
        """Where text begins below the headings that follow on the position.

        None where it is more than `within` further on, or nowhere.
        """
        at, end = bisect_left(self._starts, position), position + within
        while (first := TEXT.search(text, position)) is not None and first.start() <= end:
            if at == len(self._starts) or first.start() < self._starts[at]:
                return first.start()
            position = self._ends[at]
            at += 1
        return None


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _paragraph(text: str, floor: int, line: int) -> int | None:
    """Where the paragraph begins that ends above the line at `line`; None where there is none.

    Lists and quotes are no paragraphs here: a line below one is a rule, or belongs to its text.
    """
    start = line
    for _ in range(_TITLE_LINES):
        above = max(floor, text.rfind("\n", floor, max(start - 1, floor)) + 1)
        if start == floor or not text[above:start].strip() or _RULE.match(text, above, start):
            break
        if _NO_PARAGRAPH.match(text, above, start):
            return None
        start = above
    else:
        return None
    while start < line and text.startswith(("    ", "\t"), start):
        start = text.index("\n", start) + 1  # indented code, which a paragraph may follow at once
    return start if start < line else None
