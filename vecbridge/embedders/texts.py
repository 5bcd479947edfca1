"""What can be embedded at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from ..errors import InputError

T = TypeVar("T")


def check_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list, if each of them can be embedded. Raises InputError with the first position."""
    if isinstance(texts, str):
        raise InputError("expected a list of texts, got a single one; embed_query takes one")
    checked = list(texts)
    for position, text in enumerate(checked):
        if not isinstance(text, str):
            raise InputError(f"expected texts, got {type(text).__name__} at position {position}")
        if not text or text.isspace():
            raise InputError(
                f"expected texts to embed, got {'white space' if text else 'an empty one'} at position "
                f"{position}; a vector of nothing would be near to everything or nothing"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"expected Unicode text at position {position}, got a lone surrogate "
                f"(U+{ord(text[error.start]):04X})"
            ) from None
    return checked


def parts(things: Iterable[T], items: int, size: int, measure: Callable[[T], int]) -> Iterator[list[T]]:
    """The things in order, in lists of at most `items`, and of up to `size` as `measure` sees them.

    One that is larger by itself comes alone.
    """
    part: list[T] = []
    total = 0
    for thing in things:
        length = measure(thing)
        if part and (len(part) >= items or total + length > size):
            yield part
            part, total = [], 0
        part.append(thing)
        total += length
    if part:
        yield part
