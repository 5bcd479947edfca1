"""Records as the bytes of a binary COPY: whole columns at once for vectors, joined per row with the rest.

Source of the formats: PostgreSQL's documentation of COPY, pgvector src/vector.c, src/halfvec.c, PostgreSQL
src/backend/utils/adt/varbit.c.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.adapt import Dumper
from psycopg.pq import Format

from ...types import Batch
from .sql import Type

if TYPE_CHECKING:
    from ...types import Floats

# from 128 KiB on, libpq moves what it has not sent yet again and again
PIECE = 65_536
# rows whose vectors are encoded at once: about what a socket holds, so that the server is never idle
_TOGETHER = 16
_START = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
# json.dumps makes one of these for each call
_as_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_LARGE = re.compile(r'"(?:[^"\\]|\\.)*"|(-?[\d.]+e\+\d+)')


def fields(vectors: Floats, type: Type) -> NDArray[np.uint8]:
    """A column as the server reads it: (n, 4 + bytes of a value), the first four telling that length."""
    n, dim = vectors.shape
    size = {"vector": 4 * dim, "halfvec": 2 * dim, "bit": (dim + 7) // 8}[type]
    out = np.empty((n, 8 + size), np.uint8)
    head = struct.pack(">ii", 4 + size, dim) if type == "bit" else struct.pack(">ihh", 4 + size, dim, 0)
    out[:, :8] = np.frombuffer(head, np.uint8)
    if type == "bit":
        out[:, 8:] = np.packbits(vectors > 0, axis=1)
    elif type == "halfvec":
        # rounded first, then swapped: both at once take numpy twice as long
        out[:, 8:].view(">f2")[...] = vectors.astype(np.float16)
    else:
        out[:, 8:].view(">f4")[...] = vectors
    return out


class Wire(bytes):
    """A value as the server reads it in binary; the statement's cast says of which type."""


class _WireDumper(Dumper):
    # no type: pgvector's have other numbers in every database
    oid = 0
    format = Format.BINARY

    def dump(self, obj: Wire) -> bytes:
        return obj


psycopg.adapters.register_dumper(Wire, _WireDumper)


def parameters(vectors: Floats, type: Type) -> list[Wire]:
    """Each row as a parameter of a statement."""
    return [Wire(row) for row in fields(vectors, type)[:, 4:]]


def floats(values: Sequence[bytes], type: Type, dim: int) -> Floats:
    """The matrix in values of a result, float32 (n, dim)."""
    raw = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)[:, 4:]
    return raw.view(">f4" if type == "vector" else ">f2").astype(np.float32).reshape(len(values), dim)


def to_json(value: Any) -> str:
    """JSON that jsonb gives back equal.

    jsonb forgets exponents, so that 1e+23 would come back as the whole number 10**23, which it is not: such
    numbers are written out as what they are, with a point.
    """
    text = _as_json(value)
    return _LARGE.sub(_written_out, text) if "e+" in text else text


def _written_out(found: re.Match[str]) -> str:
    return f"{int(float(found[1]))}.0" if found[1] else found[0]


def blocks(
    batch: Batch, order: Sequence[int], columns: Sequence[tuple[Floats, Type]]
) -> Iterator[memoryview]:
    """The whole COPY in pieces of at most 64 KiB, rows in `order`; `columns` are its vectors and their types.

    Made while it is asked for: the server reads what came before.
    """
    count = struct.pack(">h", 4 + len(columns))  # id, digest, document and metadata
    pieces: list[bytes | memoryview] = [_START]
    size = 0
    for start in range(0, len(order), _TOGETHER):
        rows = order[start : start + _TOGETHER]
        encoded = [fields(matrix[rows], type) for matrix, type in columns]
        width = sum(field.shape[1] for field in encoded)
        for at, row in enumerate(rows):
            first, last = count + _text(batch.ids[row]), _rest(batch, row)
            length = len(first) + width + len(last)
            if size + length > PIECE:
                yield from _cut(b"".join(pieces))
                pieces, size = [], 0
            pieces += (first, *(field[at].data for field in encoded), last)
            size += length
    yield from _cut(b"".join([*pieces, _END]))


def _cut(block: bytes) -> Iterator[memoryview]:
    view = memoryview(block)
    for start in range(0, len(view), PIECE):
        yield view[start : start + PIECE]


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">i", len(data)) + data


def _rest(batch: Batch, row: int) -> bytes:
    digest, document = batch.digests[row], batch.documents[row]
    metadata = to_json(batch.metadata[row]).encode()
    return b"".join(
        (
            _NULL if digest is None else struct.pack(">i", len(digest)) + digest,
            _NULL if document is None else _text(document),
            struct.pack(">ib", len(metadata) + 1, 1),
            metadata,
        )
    )
