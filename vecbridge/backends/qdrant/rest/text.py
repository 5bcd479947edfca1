"""Points and queries as the JSON text that Qdrant's REST API reads, without Python for single components."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine import Json, Points, Query

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ....types import Floats

# characters of one component: its sign, 9 digits, e, a sign, 2 digits, comma, space. 9 digits tell all
# float32 numbers apart (IEEE 754-2019, 5.12.2); Python's own text has up to 20 and takes 30 times as long.
_WIDTH = 16
# rows are written in blocks that stay in the processor's cache
_BLOCK = 1 << 16


def _words(texts: Sequence[str]) -> NDArray[np.uint32]:
    return np.frombuffer("".join(texts).encode("ascii"), np.uint32)


# the four words of a component: sign and 3 digits, 4 digits, 2 digits with e and its sign, exponent
_FIRST = _words([f"{sign}{number:03}" for sign in " -" for number in range(1000)])
_SECOND = _words([f"{number:04}" for number in range(10_000)])
_THIRD = _words([f"{number:02}e{sign}" for sign in "-+" for number in range(100)])
_FOURTH = _words([f"{number:02}, " for number in range(100)])
_ZERO = _words([" 0.0", "    ", "    ", "  , ", "-0.0", "    ", "    ", "  , "]).reshape(2, 4)
# 10 ** k for k from -30 to 53, which brings every float32 number to 9 digits before the point
_TENS = np.array([float(f"1e{power}") for power in range(-30, 54)])


def numbers(matrix: Floats) -> NDArray[np.uint8]:
    """Each row of `matrix`, finite float32 (n, d), as text (n, 16 d) that reads back as the same numbers.

    A row ends with a comma and a space, which belong in no JSON array.
    """
    rows, dim = matrix.shape
    words = np.empty((rows * dim, 4), np.uint32)
    step = max(1, _BLOCK // max(dim, 1))
    for start in range(0, rows, step):
        part = matrix[start : start + step].reshape(-1)
        _write(part, words[start * dim : start * dim + len(part)])
    return words.view(np.uint8).reshape(rows, dim * _WIDTH)


def _write(values: Floats, words: NDArray[np.uint32]) -> None:
    size = np.abs(values).astype(np.float64)
    zero = np.flatnonzero(size == 0)
    size[zero] = 1.0
    power = np.floor(np.log10(size)).astype(np.int32)
    digits = np.rint(size * _TENS.take(38 - power)).astype(np.uint32)
    # just below a power of ten, 9 digits round up to 10
    if len(over := np.flatnonzero(digits >= 1_000_000_000)):
        digits[over] //= 10
        power[over] += 1
    power -= 8
    first = digits // np.uint32(1_000_000)
    digits -= first * np.uint32(1_000_000)
    second = digits // np.uint32(100)
    digits -= second * np.uint32(100)
    negative = np.signbit(values)
    first[negative] += 1000
    digits[power >= 0] += 100
    words[:, 0] = _FIRST.take(first)
    words[:, 1] = _SECOND.take(second)
    words[:, 2] = _THIRD.take(digits)
    words[:, 3] = _FOURTH.take(np.abs(power))
    if len(zero):
        words[zero] = _ZERO.take(negative[zero].astype(np.intp), axis=0)


def dump(value: Any) -> bytes:
    """A value as JSON; whole numbers of any size and floats come back as they were."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def payload_texts(points: Points) -> list[bytes]:
    """The payload of each point as JSON."""
    return [dump(payload) for payload in points.payloads]


def widths(points: Points, payloads: Sequence[bytes]) -> list[int]:
    """Bytes that each point takes in a request, an upper bound by a few bytes."""
    # the id, brackets, and the names of fields and vectors
    fixed = sum(_WIDTH * matrix.shape[1] + len(name) + 8 for name, matrix in points.vectors.items()) + 96
    return [fixed + len(payload) for payload in payloads]


def upsert_body(points: Points, payloads: Sequence[bytes], rows: range) -> bytes:
    """The body of PUT /collections/{name}/points for some rows of `points`."""
    named = {name: numbers(matrix[rows.start : rows.stop]) for name, matrix in points.vectors.items()}
    parts: list[Any] = [b'{"points":[']
    for at, row in enumerate(rows):
        parts.append(b'%b{"id":"%b","vector":' % (b"," if at else b"", points.ids[row].encode("ascii")))
        if "" in named:
            parts += (b"[", named[""][at, :-2], b"]")
        else:
            parts.append(b"{")
            for number, (name, texts) in enumerate(named.items()):
                parts += (b'%b"%b":[' % (b"," if number else b"", name.encode()), texts[at, :-2], b"]")
            parts.append(b"}")
        parts += (b',"payload":', payloads[row], b"}")
    parts.append(b"]}")
    return b"".join(parts)


def query_text(query: Query) -> bytes:
    """One search of POST /collections/{name}/points/query/batch; its hits come with their payload."""
    return _search(query, {"with_payload": True, "with_vector": False})


def _search(query: Query, more: Json) -> bytes:
    fields: Json = {"limit": query.limit}
    if query.using:
        fields["using"] = query.using
    if query.params is not None:
        fields["params"] = query.params
    if query.filter is not None:
        fields["filter"] = query.filter
    vector = numbers(query.vector[None])[0, :-2].tobytes()
    inner = b"" if query.prefetch is None else b'"prefetch":[%b],' % _search(query.prefetch, {})
    return b'{"query":[%b],%b%b' % (vector, inner, dump(fields | more)[1:])
