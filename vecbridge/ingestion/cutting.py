"""How this run cuts texts: as the collection was made, as the caller says, or as the model wants it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ..embedders import Embedder, Measured, document_prefix
from ..errors import InputError
from ..manifest import Chunking
from .chunking import ENCODINGS, Chunker, Counter, chunking, counter, counter_file
from .memo import Memo
from .records import Document, Record


class Cutting:
    """What cuts texts for one embedder, and says which of them are too long for it.

    `kept`: how the collection's texts were cut, None where there is no collection, or it does not know. What
    is None of the rest is as there, else as the model wants it. `afresh`: the advice how to start afresh.
    `memo`: remembers where texts were cut. Raises InputError where the two differ, and what `chunking`
    raises.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        kept: Chunking | None,
        tokens: int | None,
        overlap: int | None,
        rows: bool | None,
        tokenizer: str | Path | None,
        afresh: str,
        memo: Memo | None,
    ) -> None:
        self._memo = memo
        self._measured = embedder if isinstance(embedder, Measured) else None
        self._counter = _counter(embedder, tokenizer, kept)
        wanted = chunking(
            self._counter,
            tokens=kept.tokens if kept and tokens is None else tokens,
            overlap=kept.overlap if kept and overlap is None else overlap,
            max_tokens=self._measured.max_tokens if self._measured else None,
            prefix=document_prefix(embedder),
        )
        self.chunking = replace(wanted, rows=kept.rows if kept and rows is None else bool(rows))
        if kept is not None and kept != self.chunking:
            raise InputError(
                f"expected texts cut as those in the collection are, {_said(kept)}, "
                f"got {_said(self.chunking)}; leave the options for chunks as they were, or {afresh}"
            )

    def cut(self, unit: Document | Record) -> Iterator[Record]:
        """The chunks of a document, or of the text of a row."""
        if isinstance(unit, Document):
            return self._chunker.cut(unit)
        # a vector that the row has belongs to the whole text, and is not used
        return self._chunker.cut_record(replace(unit, vector=None))

    def too_long(self, text: str) -> str | None:
        """What speaks against embedding a row's text as a whole; None where nothing is known to."""
        reason = self.beyond(text)
        return None if reason is None else f"{reason}; cut long rows with chunk_rows (--chunk-rows)"

    def beyond(self, text: str) -> str | None:
        """Why the model cannot take a text; None where nothing is known to speak against it."""
        most = self._measured.max_tokens if self._measured else None
        if self._measured is None or most is None or not (self._counter.exact or self._measured.truncates):
            return None
        # no vocabulary has less than one byte to a token
        if len(text.encode()) <= most or (found := self._chunker.count(text)) <= most:
            return None
        cut = ", and its server would cut it short in silence" if self._measured.truncates else ""
        about = "" if self._counter.exact else "about "
        return (
            f"expected text of up to {most:,} tokens, which {self._measured.model} takes, "
            f"got {about}{found:,}{cut}"
        )

    @cached_property
    def _chunker(self) -> Chunker:
        return Chunker(self.chunking, counter=self._counter, memo=self._memo)


def carried(kept: Chunking, embedder: Embedder) -> Chunking:
    """How texts are cut from now on where another embedder takes over: as before, where that can be.

    Else in chunks of as many tokens by its own count; else as it wants them. Raises InputError.
    """
    wishes = ((kept, None, None), (None, kept.tokens, kept.overlap), (None, None, None))
    for number, (before, tokens, overlap) in enumerate(wishes, 1):
        try:
            return Cutting(
                embedder,
                kept=before,
                tokens=tokens,
                overlap=overlap,
                rows=kept.rows,
                tokenizer=None,
                afresh="",
                memo=None,
            ).chunking
        except InputError:
            if number == len(wishes):
                raise
    raise AssertionError("unreachable: the last wish returns or raises")


def _counter(embedder: Embedder, tokenizer: str | Path | None, kept: Chunking | None) -> Counter:
    if tokenizer is not None:
        return counter_file(tokenizer)
    own = counter()
    if isinstance(embedder, Measured):
        own = counter(embedder.tokenizer, model=embedder.model)
    # cut otherwise, nearly every chunk of a collection that got another model would be new
    if kept is not None and kept.counter != own.name and kept.counter in ENCODINGS:
        return Counter(kept.counter, exact=False)
    return own


def _said(cut: Chunking) -> str:
    rows = "rows cut too" if cut.rows else "rows left whole"
    return f"{cut.tokens:,} tokens by {cut.counter} with an overlap of {cut.overlap:,}, {rows}"
