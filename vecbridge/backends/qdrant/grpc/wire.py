"""Points and queries as Qdrant's gRPC messages, vectors straight from the matrix.

A packed repeated float is, on the wire, the bytes of a float32 row. Python's protobuf would make an object of
each component; here a message is laid out around the rows as they lie. Field numbers: points.proto of Qdrant.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from qdrant_client import grpc
from qdrant_client.conversions.conversion import payload_to_grpc

from ..engine import Points

if TYPE_CHECKING:
    from ....types import Floats

# a message in pieces, so that rows are copied once, into the request
Pieces: TypeAlias = list[bytes | memoryview]

_WAIT = b"\x10\x01"  # UpsertPoints.wait


class Requests:
    """UpsertPoints messages, each made in the memory of one that has been sent.

    Fresh memory for each would cost more than everything else: the system clears it page by page, 14 MB in
    about 10 ms, and takes it back when the message is gone. Safe to use from several threads.
    """

    def __init__(self, most: int) -> None:
        # memory that is free; more than `most` are never kept
        self._free: deque[io.BytesIO] = deque(maxlen=most)

    @contextmanager
    def made(self, collection: str, messages: Sequence[Pieces]) -> Iterator[bytes]:
        """One message for points that `pieces` gave, answered by the server when they are stored."""
        name = collection.encode()
        try:
            memory = self._free.pop()
        except IndexError:
            memory = io.BytesIO()
        memory.seek(0)
        memory.writelines((_opened(1, len(name)), name, _WAIT))
        memory.writelines(part for message in messages for part in message)
        memory.truncate()
        # no copy: BytesIO hands out what it holds, and makes itself another if that is still in use when it
        # is written to again
        yield memory.getvalue()
        self._free.append(memory)


def pieces(points: Points, *, dense: bool = True) -> list[Pieces]:
    """For each point its bytes inside an UpsertPoints message; rows are views of the matrix, not copies.

    `dense`: vectors as `Vector.dense`, which servers know from 1.12 on; else as the older `Vector.data`.
    """
    columns = [_Column(name, matrix, dense=dense) for name, matrix in points.vectors.items()]
    rows = sum(column.length for column in columns)
    # a point without vectors has an empty map of them, as the official client sends it
    single = len(columns) == 1 and not columns[0].name
    opening = b"" if single else _opened(2, rows)  # Vectors.vectors
    opening = _opened(4, len(opening) + rows) + opening  # PointStruct.vectors
    length = len(opening) + rows
    found: list[Pieces] = []
    for row, (id, payload) in enumerate(zip(points.ids, points.payloads, strict=True)):
        uuid = id.encode()
        uuid = _opened(2, len(uuid)) + uuid
        start = _opened(1, len(uuid)) + uuid
        if payload:
            start += grpc.PointStruct(payload=payload_to_grpc(payload)).SerializeToString()
        point: Pieces = [_opened(3, len(start) + length) + start + opening]
        for column in columns:
            point += (column.prefix, column.bytes[row * column.width : (row + 1) * column.width])
        found.append(point)
    return found


class _Column:
    """The vectors of one name: the bytes of their matrix, and what stands before each row in a point."""

    def __init__(self, name: str, matrix: Floats, *, dense: bool) -> None:
        self.name = name
        self.width = 4 * matrix.shape[1]
        # Qdrant's protobuf is little-endian; on such machines this copies nothing
        self.bytes = np.ascontiguousarray(matrix, dtype="<f4").data.cast("B")
        prefix = _opened(1, self.width)  # DenseVector.data, or Vector.data
        if dense:
            prefix = _opened(101, len(prefix) + self.width) + prefix
        if name:
            # an entry of the map NamedVectors.vectors
            text = name.encode()
            prefix = _opened(1, len(text)) + text + _opened(2, len(prefix) + self.width) + prefix
        self.prefix = _opened(1, len(prefix) + self.width) + prefix  # Vectors.vector, or NamedVectors.vectors
        self.length = len(self.prefix) + self.width


def weight(message: Pieces) -> int:
    """Bytes of a message in pieces."""
    return sum(map(len, message))


def vector(row: Floats) -> grpc.DenseVector:
    """A query's vector, float32 (d,), as a message."""
    raw = np.ascontiguousarray(row, dtype="<f4").tobytes()
    message: grpc.DenseVector = grpc.DenseVector.FromString(_opened(1, len(raw)) + raw)
    return message


def matrix(points: Sequence[Any], name: str) -> Floats | None:
    """The vectors called `name` of points that were read, float32 (n, d); None where there are no points."""
    found: Floats | None = None
    for row, point in enumerate(points):
        output = output_of(point, name)
        # servers before 1.16 fill `data`, later ones `dense`
        data = output.dense.data if output.HasField("dense") else output.data
        if found is None:
            found = np.empty((len(points), len(data)), dtype=np.float32)
        found[row] = data
    return found


def output_of(point: Any, name: str) -> Any:
    """The vector of this name of a point that was read, None where it has none."""
    vectors = point.vectors
    if vectors.HasField("vector"):
        return None if name else vectors.vector
    there = vectors.vectors.vectors
    # a protobuf map makes what it is asked for, unless it is asked with get
    return there.get(name)


def _opened(field: int, length: int) -> bytes:
    """What stands before a field of `length` bytes: its number, wire type 2, and the length."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
