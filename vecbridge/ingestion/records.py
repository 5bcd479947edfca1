"""What a source gives: records, and the rules by which a row of named values becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checks import ID_BYTES, text_bytes
from ..checks import metadata as check_metadata
from ..errors import InputError, SourceError
from . import vectors

if TYPE_CHECKING:
    from ..types import Floats, Metadata

Row = dict[str, Any]

_ID = ("id",)
_TEXT = ("text", "document", "content")
_VECTOR = ("vector", "embedding")


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One thing to store. `vector` is float32 (dim,) where the source has it; `place` is for messages."""

    id: str
    text: str | None
    metadata: Metadata
    vector: Floats | None = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the fields with a meaning, where they were given."""

    id: str | None = None
    text: str | None = None
    vector: str | None = None

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of a field that holds a vector, the first that is there."""
        return (self.vector,) if self.vector else _VECTOR


def _take(row: Row, given: str | None, known: Sequence[str], place: str) -> Any:
    """Remove a field from the row and return its value; None where it is absent or null."""
    if given is not None:
        if given not in row:
            fields = ", ".join(map(ascii, list(row)[:20]))
            raise SourceError(f"{place}: expected a field {given!a}, got {fields or 'none'}")
        return row.pop(given)
    for name in known:
        if name in row and (value := row.pop(name)) is not None:
            return value
    return None


def build(
    row: Row, fields: Fields, *, place: str, name: str, nulls: bool, vector: Floats | None = None
) -> Record:
    """The record of a row, which is used up.

    `place` is for messages, `name` the id of a row without one, `vector` its vector where that lies
    elsewhere; `nulls`: whether nulls are metadata, or say that there is nothing. Raises SourceError.
    """
    key = _take(row, fields.id, _ID, place)
    text = _take(row, fields.text, _TEXT, place)
    values = None if vector is not None else _take(row, fields.vector, _VECTOR, place)
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    if key is not None and (not isinstance(key, str) or not key):
        raise SourceError(f"{place}: expected the id as text or a whole number, got {short(key)}")
    if text is not None and not isinstance(text, str):
        raise SourceError(f"{place}: expected the text as text, got {short(text)}")
    if values is not None:
        try:
            vector = vectors.from_list(values)
        except ValueError as error:
            raise SourceError(f"{place}: expected the vector as a list of numbers, got {error}") from None
    if vector is None and (text is None or not text.strip()):
        looked = fields.text or " or ".join(_TEXT)
        got = "neither" if text is None else "blank text"
        raise SourceError(f"{place}: expected text (in {looked}) or a vector, got {got}")
    if isinstance(row.get("metadata"), dict):
        inner = row.pop("metadata")
        if both := inner.keys() & row.keys():
            raise SourceError(
                f"{place}: expected {min(both)!a} once, got it inside the metadata and beside it"
            )
        row = {**inner, **row}
    if not nulls:
        row = {key: value for key, value in row.items() if value is not None}
    return storable(Record(name if key is None else key, text, row, vector, place))


def storable(record: Record) -> Record:
    """The record, if every store can keep it."""
    try:
        size = text_bytes(record.id, "the id")
        if record.text is not None:
            text_bytes(record.text, "the text")
        check_metadata([record.metadata], n=1)
    except InputError as error:
        raise SourceError(f"{record.place}: {str(error).replace(' at position 0', '')}") from None
    if size > ID_BYTES:
        raise SourceError(f"{record.place}: expected an id of up to {ID_BYTES:,} bytes, got {size:,}")
    return record


def short(value: object) -> str:
    """The value as a message can show it."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
