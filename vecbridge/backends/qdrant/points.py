"""Records as points: ids as UUIDs, what stands in a payload, and vectors of unit length under cosine.

Under cosine, Qdrant keeps vectors at unit length and forgets how long they were. So we divide by the length
ourselves, in float64 and for every length that float32 can hold, and keep in the payload what is lost by it:
the length, and for each component whether it has to be rounded up or down. A vector comes back bit for bit.
"""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha1
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from ...types import Batch, Hit
from .engine import Found, Json, Scored
from .filters import LEVELS, faithful, marks

if TYPE_CHECKING:
    from ...types import Floats

# uuid5(NAMESPACE_URL, "https://vecbridge.dev/point"); point ids depend on it, so it never changes
_NAMESPACE = UUID("29b3d97f-ce1d-5962-a9a1-2858ae952b23").bytes
# Qdrant leaves vectors alone whose squared length is within 1e-6 of 1 (lib/segment/src/spaces/simple.rs);
# half of that, because its float32 sum and ours differ
_UNIT = 5e-7
# rows that are looked at together, in float64: few enough to stay in the processor's cache
_BLOCK = 16


def point_id(name: str) -> str:
    """The id of a record's point: uuid5 of its name, three times as fast as the uuid module makes it."""
    # RFC 9562, 5.5: a SHA-1 digest with the version and the variant written over six of its bits
    digest = bytearray(sha1(_NAMESPACE + name.encode(), usedforsecurity=False).digest())
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:32]}"


def unit(matrix: Floats) -> tuple[Floats, list[float | None]]:
    """Rows (n, d) at unit length, and how long each was; None for rows that had it already."""
    found: list[float | None] = [None] * len(matrix)
    scaled = matrix
    for start in range(0, len(matrix), _BLOCK):
        wide = matrix[start : start + _BLOCK].astype(np.float64)
        for at, square in enumerate(np.einsum("ij,ij->i", wide, wide).tolist()):
            if abs(square - 1) > _UNIT and square > 0:
                if scaled is matrix:
                    scaled = matrix.copy()
                length = found[start + at] = math.sqrt(square)
                scaled[start + at] = wide[at] / length
    return scaled, found


def lost(matrix: Floats, scaled: Floats, lengths: Sequence[float | None]) -> list[bytes | None]:
    """What each row (n, d) needs beside its length to be restored bit for bit; None where that is nothing.

    Two bits for each component: whether the product is one unit in the last place too small, or too large.
    The whole row where a component was lost altogether.
    """
    found: list[bytes | None] = [None] * len(matrix)
    rows = [row for row, length in enumerate(lengths) if length is not None]
    if not rows:
        return found
    off = matrix[rows].view(np.int32) - _product(scaled[rows], [lengths[row] for row in rows]).view(np.int32)
    for row, error in zip(rows, off, strict=True):
        if not error.any():
            continue
        if error.max() > 1 or error.min() < -1:
            found[row] = matrix[row].tobytes()
        else:
            found[row] = np.packbits(error > 0).tobytes() + np.packbits(error < 0).tobytes()
    return found


def _product(scaled: Floats, lengths: Sequence[float | None]) -> Floats:
    whole: Floats = (scaled * np.array(lengths, dtype=np.float64)[:, None]).astype(np.float32)
    return whole


def restore(matrix: Floats, payloads: Sequence[Json]) -> Floats:
    """Stored rows (n, d) as they came."""
    rows = [row for row, payload in enumerate(payloads) if "norm" in payload]
    if not rows:
        return matrix
    dim, packed = matrix.shape[1], (matrix.shape[1] + 7) // 8
    whole = matrix.copy()
    whole[rows] = _product(matrix[rows], [float.fromhex(payloads[row]["norm"]) for row in rows])
    for row in rows:
        if (text := payloads[row].get("exact")) is None:
            continue
        bits = np.frombuffer(b64decode(text), np.uint8)
        if len(bits) == 4 * dim:
            whole[row] = bits.view("<f4")
        else:
            up, down = (np.unpackbits(part, count=dim) for part in (bits[:packed], bits[packed:]))
            whole[row].view(np.int32)[:] += up.astype(np.int32) - down
    return whole


def payloads(batch: Batch, lengths: Sequence[float | None], exact: Sequence[bytes | None]) -> list[Json]:
    """What stands beside the vectors, for each record; `lengths` from `unit` and `exact` from `lost`."""
    made = []
    for name, document, metadata, digest, length, rest in zip(
        batch.ids, batch.documents, batch.metadata, batch.digests, lengths, exact, strict=True
    ):
        payload: Json = {"id": name}
        if document is not None:
            payload["document"] = document
        if metadata:
            payload["metadata"] = shallow = _shallow(metadata, LEVELS)
            if shallow is not metadata or not faithful(metadata):
                payload["json"] = json.dumps(metadata)
            if odd := marks(metadata):
                payload["odd"] = odd
        if digest is not None:
            payload["digest"] = digest.hex()
        if length is not None:
            # as text, because Qdrant reads floats with an error in the last place
            payload["norm"] = length.hex()
        if rest is not None:
            payload["exact"] = b64encode(rest).decode()
        made.append(payload)
    return made


def _shallow(value: Any, levels: int) -> Any:
    """The value without what lies below `levels`; the value itself where nothing does.

    A protobuf message ends at 100 levels, of which each level of metadata takes three.
    """
    if isinstance(value, Mapping):
        if not any(isinstance(one, list | dict) for one in value.values()):
            return value
        cut = {key: _below(one, levels) for key, one in value.items()}
        return value if all(cut[key] is one for key, one in value.items()) else cut
    kept = [_below(one, levels) for one in value]
    return value if all(one is other for one, other in zip(kept, value, strict=True)) else kept


def _below(value: Any, levels: int) -> Any:
    if not isinstance(value, list | dict):
        return value
    return _shallow(value, levels - 1) if levels > 1 else {}


def metadata_of(payload: Json) -> dict[str, Any]:
    """The metadata in a payload, as it was given."""
    text = payload.get("json")
    found: dict[str, Any] = payload.get("metadata", {}) if text is None else json.loads(text)
    return found


def digest_of(payload: Json) -> bytes | None:
    """The digest in a payload."""
    text = payload.get("digest")
    return None if text is None else bytes.fromhex(text)


def hit(found: Scored, *, euclid: bool) -> Hit:
    """A point as a hit."""
    payload = found.payload
    return Hit(payload["id"], score(found, euclid=euclid), payload.get("document"), metadata_of(payload))


def score(found: Scored, *, euclid: bool) -> float:
    """Its score; the sign is flipped here, and only here, because Qdrant's Euclid is a distance."""
    # not -score, which would make a record at its own place -0.0 away
    return 0.0 - found.score if euclid else found.score


def batch(found: Found, dim: int) -> Batch:
    """Points read back with payload and vectors, as records; `dim` is 0 where no vectors were asked for."""
    vectors = np.empty((len(found.ids), dim), np.float32) if found.vectors is None else found.vectors
    return Batch(
        [payload["id"] for payload in found.payloads],
        restore(vectors, found.payloads),
        [payload.get("document") for payload in found.payloads],
        [metadata_of(payload) for payload in found.payloads],
        [digest_of(payload) for payload in found.payloads],
    )
