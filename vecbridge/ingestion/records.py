"""What a source gives: records, and the rules by which a row of named values becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..checks import ID_BYTES, text_bytes
from ..checks import metadata as check_metadata
from ..embedders import vectors
from ..errors import InputError
from .lines import Fault

if TYPE_CHECKING:
    from ..types import Floats, Metadata
    from .memo import Memo

Row = dict[str, Any]
Kind = Literal[
    "jsonl", "csv", "parquet", "npy", "npz", "text", "markdown", "html", "pdf", "docx", "pptx", "folder"
]

_ID = ("id",)
_TEXT = ("text", "document", "content")
_VECTOR = ("vector", "embedding")
# stands for a vector that lies apart from the rest of its row, and is read later
LATER: Floats = np.empty(0, dtype=np.float32)
# what chunking puts behind the id of a document: "#" and a position
_SUFFIX_BYTES = 16


@dataclass(frozen=True, slots=True)
class Origin:
    """Where in the source something stands, for messages and for the file of rejects.

    `file`: as it can be printed. `unit` and `number`: "line" and "chunk" of a file, "row" of a table; lines
    and rows are counted from 1, chunks from 0. Without them the whole file is meant.
    """

    file: str
    unit: Literal["line", "row", "chunk"] | None = None
    number: int | None = None

    def __str__(self) -> str:
        if self.unit is None:
            return self.file
        if self.unit == "line":
            return f"{self.file}:{self.number}"
        return f"{self.file}{':' if self.unit == 'row' else ','} {self.unit} {self.number}"


@dataclass(frozen=True, slots=True)
class Source:
    """A file or folder to read. `file`: what messages call it; `name`: what ids made from it begin with.

    `memo`: remembers what pages and office documents become.
    """

    path: Path
    kind: Kind
    file: str
    name: str
    memo: Memo | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One thing to store. `vector` is float32 (dim,) where the source has it, LATER where it was left out.

    `document`: the id of the document that it is a chunk of, else None.
    """

    id: str
    text: str | None
    metadata: Metadata
    origin: Origin
    vector: Floats | None = None
    document: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """A whole text that is to be cut into chunks. `id` is what the ids of its chunks begin with.

    `chunks` of it get `metadata`, and beside it what they know of themselves.
    """

    id: str
    text: str
    metadata: Metadata
    origin: Origin
    markdown: bool


@dataclass(frozen=True, slots=True)
class Reject:
    """What of a source could not be used, and why. `id` where it has one: of a record or a document.

    `reason` does not repeat the origin.
    """

    origin: Origin
    reason: str
    id: str | None = None

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """As a line in the file of rejects."""
        position = None if self.origin.unit is None else f"{self.origin.unit} {self.origin.number}"
        return {"source": self.origin.file, "position": position, "id": self.id, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the fields with a meaning, where they were given; `numbers`: columns of CSV that hold some."""

    id: str | None = None
    text: str | None = None
    vector: str | None = None
    numbers: tuple[str, ...] = ()

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of a field that holds a vector, the first that is there."""
        return (self.vector,) if self.vector else _VECTOR

    @property
    def demanded(self) -> tuple[str, ...]:
        """Names that a table must have as columns."""
        return (*filter(None, (self.id, self.text, self.vector)), *self.numbers)


def _take(row: Row, given: str | None, known: Sequence[str]) -> Any:
    """Remove a field from the row and return its value; None where it is absent or null."""
    if given is not None:
        if given not in row:
            fields = ", ".join(map(ascii, list(row)[:20]))
            raise Fault(f"expected a field {given!a}, got {fields or 'none'}")
        return row.pop(given)
    for name in known:
        if name in row and (value := row.pop(name)) is not None:
            return value
    return None


def _key(value: Any) -> str | None:
    """An id as text; None where there is none. Raises Fault."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and (not isinstance(value, str) or not value):
        raise Fault(f"expected the id as text or a whole number, got {short(value)}")
    return value


def identity(row: Row, fields: Fields, name: str) -> str | None:
    """The id that a row has, or would have had: `name` where it gives none, None where it gives a bad one."""
    found = (row.get(field) for field in ((fields.id,) if fields.id else _ID))
    try:
        return _key(next((value for value in found if value is not None), name))
    except Fault:
        return None


def build(
    row: Row, fields: Fields, *, origin: Origin, name: str, nulls: bool, vector: Floats | None = None
) -> Record | Reject:
    """The record of a row, which is used up; or why it is none.

    `name` is the id of a row without one, `vector` its vector where that lies elsewhere; `nulls`: whether
    nulls are metadata, or say that there is nothing.
    """
    known = None
    try:
        key = _key(_take(row, fields.id, _ID))
        known = name if key is None else key
        record = _build(row, fields, key=known, origin=origin, nulls=nulls, vector=vector)
    except Fault as fault:
        return Reject(origin, str(fault), known)
    reason = objection(record)
    return record if reason is None else Reject(origin, reason, known)


def _build(
    row: Row, fields: Fields, *, key: str, origin: Origin, nulls: bool, vector: Floats | None
) -> Record:
    text = _take(row, fields.text, _TEXT)
    values = None if vector is not None else _take(row, fields.vector, _VECTOR)
    if text is not None and not isinstance(text, str):
        raise Fault(f"expected the text as text, got {short(text)}")
    if values is not None:
        try:
            vector = vectors.from_list(values)
        except ValueError as error:
            raise Fault(f"expected the vector as a list of numbers, got {error}") from None
    if vector is None and (text is None or not text.strip()):
        looked = fields.text or " or ".join(_TEXT)
        got = "neither" if text is None else "blank text"
        raise Fault(f"expected text (in {looked}) or a vector, got {got}")
    if isinstance(row.get("metadata"), dict):
        inner = row.pop("metadata")
        if both := inner.keys() & row.keys():
            raise Fault(f"expected {min(both)!a} once, got it inside the metadata and beside it")
        row = {**inner, **row}
    if not nulls:
        row = {key: value for key, value in row.items() if value is not None}
    return Record(key, text, row, origin, vector)


def objection(thing: Record | Document) -> str | None:
    """Why no store could keep the record, or the chunks of the document; None where all can."""
    room = ID_BYTES - (_SUFFIX_BYTES if isinstance(thing, Document) else 0)
    try:
        size = text_bytes(thing.id, "the id")
        if thing.text is not None:
            text_bytes(thing.text, "the text")
        check_metadata([thing.metadata], n=1)
    except InputError as error:
        return str(error).replace(" at position 0", "")
    if size > room:
        return f"expected an id of up to {room:,} bytes, got {size:,}"
    return None


def short(value: object) -> str:
    """The value as a message can show it."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
