"""Documents in, records out: each a chunk that the embedding model can take whole.

Where a text is cut is the work of `semantic-text-splitter`: at headings, blocks, lines, sentences, words, in
this order, with up to so many tokens to a chunk. Three things are done around it. It is fed a window of a few
chunks at a time, because its time for one chunk grows with all that follows. Headings wait for the text below
them. And a chunk is told the heading that it stands under.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InputError
from ..manifest import Chunking
from .memo import Memo, context_of, key_of
from .outline import TEXT, Outline
from .records import Origin, Record

if TYPE_CHECKING:
    from .records import Document

TOKENS = 512
FEWEST_TOKENS = 32  # a family of emoji, or one Arabic ligature, takes up to 20: below this, characters break

# the vocabularies inside the splitter are found by the name of a model that uses them
ENCODINGS = {"cl100k_base": "text-embedding-3-small", "o200k_base": "gpt-4o"}
_ESTIMATE = 0.8  # what is left of a limit where another vocabulary than the model's counts

# characters for each token of a chunk: in the first window, and in the largest one, which no chunk exceeds
_FIRST_WIDTH, _LARGEST_WIDTH = 8, 32

# characters; what is shorter is cut (0.2 ms) as fast as it is remembered
_REMEMBERED = 1_000


@dataclass(frozen=True, slots=True)
class Counter:
    """What counts tokens: without those that a model puts around every text, of which there are `specials`.

    `name`: as in `Chunking`. `exact`: whether the model itself counts like this. `tokenizer`: a
    tokenizer.json, None where `name` is that of a tiktoken encoding.
    """

    name: str
    exact: bool
    specials: int = 0
    tokenizer: str | None = field(default=None, repr=False)


def counter(tokenizer: Any = None, *, model: str | None = None) -> Counter:
    """The counter for what an embedder says of itself: its `tokenizer`, and its `model` as the name.

    `tokenizer`: the name of a tiktoken encoding, a `tokenizers.Tokenizer`, or None where nothing is known:
    then cl100k_base estimates. Raises InputError.
    """
    if tokenizer is None:
        return Counter("cl100k_base", exact=False)
    if isinstance(tokenizer, str):
        if tokenizer not in ENCODINGS:
            raise InputError(f"expected an encoding of {' or '.join(ENCODINGS)}, got {tokenizer[:40]!a}")
        return Counter(tokenizer, exact=True)
    if not model:
        raise InputError("expected the name of the model together with its tokenizer, got none")
    return _plain(Counter(model, exact=True, tokenizer=tokenizer.to_str()), "the model's tokenizer")


def counter_file(path: Path | str) -> Counter:
    """The counter that a tokenizer.json describes, as it lies beside most models. Raises InputError."""
    shown = ascii(str(path))
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"expected a tokenizer.json, got {shown}: {error.strerror}") from error
    name = f"tokenizer.json:{hashlib.sha256(content).hexdigest()[:12]}"
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"expected a tokenizer.json, got {shown}, which is not UTF-8") from error
    return _plain(Counter(name, exact=True, tokenizer=text), shown)


def _plain(of: Counter, shown: str) -> Counter:
    """The counter of a tokenizer that counts nothing but text.

    Many a tokenizer.json cuts texts at 512 tokens or pads them to a length, and adds marks around them.
    """
    assert of.tokenizer is not None
    try:
        content = json.loads(of.tokenizer)
        specials = _specials(content.get("post_processor"))
        content["model"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"expected a tokenizer.json as the package tokenizers writes it, got {shown}, which is none"
        ) from error
    content.update(truncation=None, padding=None, post_processor=None)
    return replace(of, specials=specials, tokenizer=json.dumps(content, ensure_ascii=False))


def _specials(processor: dict[str, Any] | None) -> int:
    """How many tokens a post-processor puts around one text: see tokenizers, `processors`."""
    if processor is None:
        return 0
    match processor["type"]:
        case "Sequence":
            return sum(map(_specials, processor["processors"]))
        case "TemplateProcessing":
            marks = [piece["SpecialToken"]["id"] for piece in processor["single"] if "SpecialToken" in piece]
            return sum(len(processor["special_tokens"][mark]["ids"]) for mark in marks)
        case "BertProcessing" | "RobertaProcessing":
            return 2
    return 0


def chunking(
    counter: Counter,
    *,
    tokens: int | None = None,
    overlap: int | None = None,
    max_tokens: int | None = None,
    prefix: str = "",
) -> Chunking:
    """How to cut for a model that takes `max_tokens` (None: unlimited or unknown), `prefix` included.

    Without `tokens`: 512, or what the model takes where that is less; where the counter only estimates, 0.8
    of it. Without `overlap`: 0. Raises InputError.
    """
    room = None
    if max_tokens is not None:
        around = (_count(counter, prefix) if prefix else 0) + counter.specials
        room = max_tokens - around
        best = room if counter.exact else int(max_tokens * _ESTIMATE) - around
        if best < FEWEST_TOKENS:
            raise InputError(
                f"expected a model with room for {FEWEST_TOKENS} or more tokens of text, got {max_tokens:,} "
                f"tokens, of which {max_tokens - best:,} are set aside for prefix, marks and safety"
            )
        tokens = min(TOKENS, best) if tokens is None else tokens
        if tokens > room:
            raise InputError(
                f"expected chunks of up to {room:,} tokens (the model takes {max_tokens:,}, {around:,} of "
                f"these for prefix and marks), got {tokens:,}"
            )
    tokens = TOKENS if tokens is None else tokens
    overlap = 0 if overlap is None else overlap
    if tokens < FEWEST_TOKENS:
        raise InputError(f"expected chunks of {FEWEST_TOKENS} or more tokens, got {tokens:,}")
    if not 0 <= overlap < tokens / 2:
        raise InputError(
            f"expected an overlap of 0 to {(tokens - 1) // 2:,} tokens, below half of a chunk of {tokens:,}, "
            f"got {overlap:,}"
        )
    return Chunking(tokens, overlap, counter.name)


class Chunker:
    """Cuts texts into chunks of up to `chunking.tokens` tokens, always at the same places.

    No chunk is blank, and nothing but space is lost between them. A chunk depends on what stands before it
    and on the few chunks after it only: what is added at the end of a text leaves its beginning as it is.
    `memo`: remembers where texts were cut. Safe for threads.
    """

    def __init__(self, chunking: Chunking, *, counter: Counter, memo: Memo | None = None) -> None:
        if chunking.counter != counter.name:
            raise InputError(f"expected the counter {chunking.counter!a}, got {counter.name!a}")
        self.chunking = chunking
        self.counter = counter
        self._memo = memo

    def __repr__(self) -> str:
        return f"<vecbridge chunker {self.chunking}>"

    def cut(self, document: Document) -> Iterator[Record]:
        """The chunks of a document, as records.

        Ids are `document.id` with `#0`, `#1`...; the metadata are the document's, `position` (the same
        number) and, in Markdown, `heading`: the nearest one above the chunk's first text, be it above the
        chunk or in it. (What overlaps with the chunk before is not looked at.) None above the first heading.

        Raises InputError for a tokenizer that cannot be used.
        """
        for position, (text, heading) in enumerate(self._chunks(document.text, markdown=document.markdown)):
            metadata = {**document.metadata, "position": position}
            if heading is not None:
                metadata["heading"] = heading
            yield Record(
                f"{document.id}#{position}",
                text,
                metadata,
                Origin(document.origin.file, "chunk", position),
                document=document.id,
            )

    def cut_record(self, record: Record, *, markdown: bool = False) -> Iterator[Record]:
        """The chunks of a row's text, with the ids and metadata of `cut`; fields of the row go before them.

        A record with a vector, or without text, comes back as it is: a vector belongs to the whole text.
        """
        if record.vector is not None or record.text is None:
            yield record
            return
        for position, (text, heading) in enumerate(self._chunks(record.text, markdown=markdown)):
            known = {"position": position} | ({} if heading is None else {"heading": heading})
            yield replace(
                record,
                id=f"{record.id}#{position}",
                text=text,
                metadata={**known, **record.metadata},
                document=record.id,
            )

    def count(self, text: str) -> int:
        """Tokens of a text.

        For a tiktoken encoding, and without the package `tokenizers`, this is a search: it takes some ten
        milliseconds a page, and for odd texts finds a token too many.
        """
        return _count(self.counter, text)

    @cached_property
    def _markdown(self) -> _Splitter:
        return _splitter(self.counter, self.chunking.tokens, overlap=self.chunking.overlap, markdown=True)

    @cached_property
    def _text(self) -> _Splitter:
        return _splitter(self.counter, self.chunking.tokens, overlap=self.chunking.overlap)

    def _chunks(self, text: str, *, markdown: bool) -> Iterator[tuple[str, str | None]]:
        """Each chunk with its heading. Line ends become `\\n`: a checkout on Windows cuts the same."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        for start, end, heading in self._places(text, markdown=markdown):
            yield text[start:end], heading

    def _places(self, text: str, *, markdown: bool) -> Iterator[tuple[int, int, str | None]]:
        """Where each chunk begins and ends, and its heading: as remembered, or worked out and remembered."""
        if self._memo is None or len(text) < _REMEMBERED:
            yield from self._worked_out(text, markdown=markdown)
            return
        key = key_of(self._context, bytes([markdown]) + text.encode("utf-8", "surrogatepass"))
        if (known := self._memo.get(key)) is not None:
            yield from known
            return
        places = []
        for place in self._worked_out(text, markdown=markdown):
            places.append(place)
            yield place
        self._memo.put(key, places)

    @cached_property
    def _context(self) -> bytes:
        tokenizer = self.counter.tokenizer
        return context_of(
            "chunks",
            self.chunking.tokens,
            self.chunking.overlap,
            self.counter.name,
            # a model may get another tokenizer and keep its name
            hashlib.blake2b(tokenizer.encode()).hexdigest() if tokenizer else None,
            code=("chunking", "outline"),
            packages=("semantic-text-splitter",),
        )

    def _worked_out(self, text: str, *, markdown: bool) -> Iterator[tuple[int, int, str | None]]:
        outline = Outline(text) if markdown else Outline("")
        done = 0
        for start, end in self._spans(text, outline, markdown=markdown):
            yield start, end, outline.heading(text, max(start, done), end)
            done = end

    def _spans(self, text: str, outline: Outline, *, markdown: bool) -> Iterator[tuple[int, int]]:
        """Where each chunk begins and ends."""
        tokens = self.chunking.tokens
        width = _FIRST_WIDTH * tokens
        position = done = 0
        while (begin := TEXT.search(text, position)) is not None:
            # what a window begins with may be indented; blank lines above it are not worth a place in it
            position = max(position, text.rfind("\n", position, begin.start()) + 1)
            if begin.start() - position >= _FIRST_WIDTH * tokens:
                position = begin.start()
            window = text[position : position + width]
            rest = position + len(window) < len(text)
            # in the middle of a code block, its lines are no Markdown
            splitter = self._markdown if markdown and not outline.fenced(position) else self._text
            spans = [
                (position + at, position + at + len(piece))
                for at, piece in splitter.chunk_indices(window)
                if piece.strip()
            ]
            if not rest:
                following = len(text)
            elif len(spans) > 1:
                # how the last one ends is seen only with what follows it
                following = spans.pop()[0]
                width = min(4 * max(end - start for start, end in spans), _LARGEST_WIDTH * tokens)
                width = max(width, 2 * tokens)
            elif width < _LARGEST_WIDTH * tokens:
                width *= 2
                continue
            else:
                # one word without end, or next to nothing but space
                start = begin.start()
                following = _fitting(text, start, start, len(window) // 2, splitter) or start + 1
                spans = [(start, following)]
            for start, end in spans:
                if end <= done:
                    continue
                head = outline.tail(text, start, end)
                if head == end or TEXT.search(text, end) is None:
                    yield start, end
                    done = end
                    continue
                if head > start:
                    stop = start + len(text[start:head].rstrip())
                    if stop > max(start, done):
                        yield start, stop
                        done = stop
                    following = head
                else:
                    following = done = self._with_text(text, start, end, outline, splitter)
                    yield start, done
                break
            position = following

    def _with_text(self, text: str, start: int, end: int, outline: Outline, splitter: _Splitter) -> int:
        """Where a chunk ends that the splitter lets end with its headings: below some text, if it fits."""
        size = 3 * self.chunking.tokens
        below = outline.below(text, end, within=size)
        return end if below is None else _fitting(text, start, below, size, splitter) or end


class _Splitter(Protocol):
    def chunks(self, text: str, /) -> list[str]: ...

    def chunk_indices(self, text: str, /) -> list[tuple[int, str]]: ...


def _splitter(
    counter: Counter, tokens: int, *, overlap: int = 0, markdown: bool = False, trim: bool = True
) -> _Splitter:
    # 18 MB, and the vocabulary takes a quarter of a second: loaded where a text is cut, not before
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    kind = MarkdownSplitter if markdown else TextSplitter
    if counter.tokenizer is None:
        return kind.from_tiktoken_model(ENCODINGS[counter.name], tokens, overlap=overlap, trim=trim)
    try:
        return kind.from_huggingface_tokenizer_str(counter.tokenizer, tokens, overlap=overlap, trim=trim)
    except Exception as error:  # the extension raises nothing more precise
        raise InputError(f"expected a tokenizer that can be loaded, got {counter.name!a}: {error}") from error


def _fitting(text: str, start: int, begin: int, size: int, splitter: _Splitter) -> int | None:
    """Where a chunk from `start` can end, up to `size` characters behind `begin`; None where nothing fits.

    At `begin` stands text, not space.
    """
    from semantic_text_splitter import TextSplitter

    while size:
        at, piece = TextSplitter(size).chunk_indices(text[begin : begin + 2 * size])[0]
        stop = begin + at + len(piece)
        if len(splitter.chunks(text[start:stop])) == 1:
            return stop
        size //= 2
    return None


@lru_cache(maxsize=4)
def _tokenizer(of: Counter) -> Any:
    """The package's tokenizer, None without the package."""
    assert of.tokenizer is not None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    return Tokenizer.from_str(of.tokenizer)


def _count(counter: Counter, text: str) -> int:
    if counter.tokenizer is not None and (tokenizer := _tokenizer(counter)) is not None:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)
    if not text:
        return 0

    # the splitter does not say how long a text is, only whether it fits
    def fits(tokens: int) -> bool:
        return len(_splitter(counter, tokens, trim=False).chunks(text)) == 1

    low, high = 0, max(1, len(text) // 4)
    while not fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
