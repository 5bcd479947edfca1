"""Bytes kept on a Qdrant server beside its collections, in a collection of their own that has no vectors.

A blob is cut into parts, each a point whose payload holds base64. Its head, a point that counts the parts and
has the digest of the whole, is written last: before that, the blob is not there, or still the one before.
Parts are named by the content, so that a blob which replaces another never overwrites what the head names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import quote

from ...errors import CollectionExists, CollectionNotFound
from .engine import Engine, Json, Points

NAME = "vecbridge$kept"
# bytes in one part: 4 MB as base64, far from the 32 MB that a request may have
PART = 3 * 1024 * 1024

# payloads are read once in a while and need no memory of the server
_CONFIG: Json = {"vectors": {}, "on_disk_payload": True}
_SPACE = uuid.UUID("b9f4ff0a-3a0d-5a4c-9a6e-3f1c7a5f8e21")
_PAGE = 256


def keep(engine: Engine, key: str, content: bytes) -> None:
    """Store bytes under a key of letters, digits and dashes; what was there before is replaced at once."""
    *parts, head = _points(key, content)
    for point, payload in parts:
        _write(engine, point, payload)
    before = _head(engine, key)
    _write(engine, *head)
    if before is not None and before["sha256"] != head[1]["sha256"]:
        engine.delete(NAME, [_part(key, before["sha256"], number) for number in range(before["parts"])])


def requests(engine: Engine, key: str, content: bytes) -> list[str]:
    """What `keep` would send, in the words of Qdrant's REST API."""
    path = f"PUT /collections/{quote(NAME, safe='')}"
    made = [f"{path} {json.dumps(_CONFIG)}"]
    with suppress(CollectionNotFound):
        engine.describe(NAME)
        made.clear()
    for point, payload in _points(key, content):
        body = {"points": [{"id": point, "vector": {}, "payload": payload}]}
        made.append(f"{path}/points?wait=true {json.dumps(body)}")
    return made


def _points(key: str, content: bytes) -> Iterator[tuple[str, Json]]:
    """The points of a blob, id and payload, its head last."""
    digest = hashlib.sha256(content).hexdigest()
    parts = range(0, len(content), PART)
    for number, start in enumerate(parts):
        text = base64.b64encode(content[start : start + PART]).decode("ascii")
        yield _part(key, digest, number), {"blob": key, "content": text}
    yield _id(key), {"blob": key, "parts": len(parts), "bytes": len(content), "sha256": digest}


def keys(engine: Engine, start: str) -> list[str]:
    """The keys that begin so, of which something is kept."""
    heads = {"must_not": [{"is_empty": {"key": "sha256"}}]}
    found: list[str] = []
    at: str | None = None
    with suppress(CollectionNotFound):
        while True:
            page, at = engine.scroll(NAME, limit=_PAGE, filter=heads, offset=at, payload=["blob"])
            found += [payload["blob"] for payload in page.payloads]
            if at is None:
                break
    return [key for key in found if key.startswith(start)]


def kept(engine: Engine, key: str) -> bytes | None:
    """The bytes under this key; None where there are none, or not all of them."""
    head = _head(engine, key)
    if head is None:
        return None
    parts = []
    for number in range(head["parts"]):
        payload = _read(engine, _part(key, head["sha256"], number))
        if payload is None:
            return None
        parts.append(base64.b64decode(payload["content"]))
    content = b"".join(parts)
    return content if hashlib.sha256(content).hexdigest() == head["sha256"] else None


def forget(engine: Engine, key: str) -> None:
    """Remove what is under this key, and with it what broken-off writes left."""
    mine = {"must": [{"key": "blob", "match": {"value": key}}]}
    with suppress(CollectionNotFound):
        # the head first: parts without it are nothing, it without parts would be a broken blob
        engine.delete(NAME, [_id(key)])
        while ids := engine.scroll(NAME, limit=_PAGE, filter=mine, payload=False)[0].ids:
            engine.delete(NAME, ids)


def _id(key: str) -> str:
    return str(uuid.uuid5(_SPACE, key))


def _part(key: str, digest: str, number: int) -> str:
    # keys have no slash, so that no head can have the id of a part
    return _id(f"{key}/{digest}/{number}")


def _head(engine: Engine, key: str) -> Json | None:
    return _read(engine, _id(key))


def _read(engine: Engine, point: str) -> Json | None:
    try:
        found = engine.retrieve(NAME, [point], payload=True, vectors=None).payloads
    except CollectionNotFound:
        return None
    return found[0] if found else None


def _write(engine: Engine, point: str, payload: Json) -> None:
    points = Points([point], {}, [payload])
    try:
        engine.upsert(NAME, points)
    except CollectionNotFound:
        # another process may make it at this moment
        with suppress(CollectionExists):
            engine.create(NAME, _CONFIG)
        engine.upsert(NAME, points)
