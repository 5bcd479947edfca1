"""Qdrant Edge: the real engine inside this process, on a folder, without a server.

One process at a time; threads and several connections in it share everything. Not for Windows.
"""

from __future__ import annotations

import json
import os
import struct
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import qdrant_edge as qe

from ....errors import StoreError, UrlError
from ....limits import Limits, limits
from ....types import Progress, Sizes
from ..engine import Found, Json, Points, Query, Scored, raw_id
from . import build
from .config import INDEXING_THRESHOLD, indexed, told, vectors
from .files import check_room, free, sentences, taken
from .place import Collection, Place, give_back, lease
from .query import filter_of, given, request

if TYPE_CHECKING:
    from ....types import Floats

# below this many free bytes the payloads of a write are weighed before it
_AMPLE = 4 << 30

_SCHEMAS = {
    "keyword": qe.PayloadSchemaType.Keyword,
    "integer": qe.PayloadSchemaType.Integer,
    "float": qe.PayloadSchemaType.Float,
    "bool": qe.PayloadSchemaType.Bool,
}


def connect(path: str, *, shown: str) -> Edge:
    """The collections in a folder, which is made if it is not there; `shown` is its URL, for messages.

    Raises UrlError, Busy where another process has it open, Forbidden, StoreError.
    """
    try:
        folder = Path(os.path.realpath(Path(path).expanduser()))
        os.fsencode(folder)
    except (ValueError, RuntimeError) as error:  # NUL, lone surrogates; ~ of an unknown user
        raise UrlError(f"expected a folder after qdrant:, got {path!a}: {error}") from error
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"expected a folder at {folder}, found a file; name another path after qdrant:")
    return Edge(lease(folder, shown), shown)


class Edge:
    """Collections of Qdrant Edge; see `vecbridge.backends.qdrant.engine.Engine`."""

    def __init__(self, place: Place, shown: str) -> None:
        self._url = shown
        self._place = place
        self._closed = False
        # also where it is only forgotten, and at exit
        self._end = weakref.finalize(self, give_back, place)

    @property
    def url(self) -> str:
        return self._url

    def limits(self) -> Limits:
        return _limits()

    def collections(self) -> list[str]:
        return self._checked().names()

    def create(self, name: str, config: Json) -> None:
        # what JSON makes of it is what any later process will find
        self._checked().create(name, json.loads(json.dumps(config)))

    def describe(self, name: str) -> Json:
        collection = self._collection(name)
        with collection.reading() as shard:
            info, config = shard.info(), collection.config
        waiting = info.points_count * len(vectors(config)) - info.indexed_vectors_count
        size = max(params["size"] for params in vectors(config).values())
        least = (config.get("optimizers_config") or {}).get("indexing_threshold") or INDEXING_THRESHOLD
        late = indexed(config) and not collection.built and waiting * size * 4 > least * 1024
        return {
            "status": "yellow" if late else "green",
            "optimizer_status": "ok",
            "points_count": info.points_count,
            "indexed_vectors_count": info.indexed_vectors_count,
            "segments_count": info.segments_count,
            "config": told(config),
            "payload_schema": {
                field: {"data_type": _data_type(index), "points": index.points}
                for field, index in info.payload_schema.items()
            },
        }

    def drop(self, name: str) -> None:
        self._checked().drop(name)

    def index_field(self, name: str, field: str, schema: str) -> None:
        if schema not in _SCHEMAS:
            raise StoreError(f"expected a field's schema as one of {', '.join(_SCHEMAS)}, got {schema!r}")
        collection = self._collection(name)
        with sentences(self._url):
            operation = qe.UpdateOperation.create_field_index(field, _SCHEMAS[schema])
        collection.update(operation, size=0)

    def annotate(self, name: str, values: Json) -> None:
        # what JSON makes of it, as in `create`
        self._collection(name).annotate(json.loads(json.dumps(values)))

    def paused(self, name: str) -> AbstractContextManager[None]:
        return self._collection(name).paused()

    def optimise(self, name: str, change: Json, progress: Progress | None) -> None:
        build.optimise(self._collection(name), change, progress)

    def upsert(self, name: str, points: Points) -> None:
        collection = self._collection(name)
        if not len(points):
            return
        size = sum(matrix.nbytes for matrix in points.vectors.values())
        left = free(self._place.path)
        if left < _AMPLE + 4 * size:
            size += len(json.dumps(points.payloads))
            check_room(self._place.path, 2 * size, "what is to be written")
        with sentences(self._url):
            operation = qe.UpdateOperation.upsert_points(_points(points))
        collection.update(operation, size=size)

    def query(self, name: str, queries: Sequence[Query]) -> list[list[Scored]]:
        collection = self._collection(name)
        with sentences(self._url):
            requests = [request(one) for one in queries]
        with collection.reading() as shard:
            if len(requests) == 1:
                answers = [shard.query(requests[0])]
            else:
                answers = shard.query_batch(qe.QueryBatchRequest(requests)) if requests else []
        return [[Scored(hit.score, hit.payload or {}, str(hit.id)) for hit in hits] for hits in answers]

    def retrieve(
        self, name: str, ids: Sequence[str], *, payload: Sequence[str] | bool, vectors: str | None
    ) -> Found:
        collection = self._collection(name)
        with collection.reading() as shard:
            records = shard.retrieve(list(map(raw_id, ids)), _selector(payload), _wanted(vectors))
        return _found(collection, records, payload, vectors)

    def scroll(
        self,
        name: str,
        *,
        limit: int,
        filter: Json | None = None,
        offset: str | None = None,
        payload: Sequence[str] | bool,
        vectors: str | None = None,
    ) -> tuple[Found, str | None]:
        collection = self._collection(name)
        with sentences(self._url):
            page = qe.ScrollRequest(
                offset=None if offset is None else raw_id(offset),
                limit=limit,
                filter=filter_of(filter),
                with_payload=_selector(payload),
                with_vector=_wanted(vectors),
            )
        with collection.reading() as shard:
            records, following = shard.scroll(page)
        found = _found(collection, records, payload, vectors)
        return found, None if following is None else str(following)

    def count(self, name: str, filter: Json | None = None) -> int:
        collection = self._collection(name)
        with sentences(self._url):
            wanted = qe.CountRequest(exact=True, filter=filter_of(filter))
        with collection.reading() as shard:
            return shard.count(wanted)

    def delete(self, name: str, ids: Sequence[str]) -> None:
        collection = self._collection(name)
        if not ids:
            return
        with sentences(self._url):
            operation = qe.UpdateOperation.delete_points(list(ids))
        collection.update(operation, size=0)

    def sizes(self, name: str) -> Sizes:
        collection = self._collection(name)
        with collection.reading(), sentences(self._url):
            index = table = 0
            for path, size in taken(collection.folder):
                if "/vector_index" in path or "/quantized." in path:
                    index += size
                else:
                    table += size
        return Sizes(table=table, index=index)

    @property
    def moves(self) -> int:
        return self._place.moves

    def moved(self, names: Sequence[str]) -> None:
        self._checked().moved(names)

    def keep(self, key: str, content: bytes) -> None:
        self._checked().keep(key, content)

    def kept(self, key: str) -> bytes | None:
        return self._checked().kept(key)

    def forget(self, key: str) -> None:
        self._checked().forget(key)

    def close(self) -> None:
        if not self._forked():
            self._closed = True
            self._end()

    def _collection(self, name: str) -> Collection:
        return self._checked().collection(name)

    def _checked(self) -> Place:
        # before any lock is asked for: in a forked child it may be held by a thread that is not there
        if self._forked():
            raise StoreError(
                f"{self._url} was opened before this process was forked; close it before the fork and "
                f"connect again, in one of the two processes"
            )
        if self._closed:
            raise self._place.closed_error()
        return self._place

    def _forked(self) -> bool:
        return self._place.process != os.getpid()


@cache
def _limits() -> Limits:
    return limits(f"edge@{version('qdrant-edge-py')}")


def _points(points: Points) -> list[qe.Point]:
    if len(points.vectors) == 1 and "" in points.vectors:
        rows = zip(points.ids, points.vectors[""], points.payloads, strict=True)
        return [qe.Point(id, given(row), payload) for id, row, payload in rows]
    names = list(points.vectors)
    several = zip(*points.vectors.values(), strict=True)
    return [
        qe.Point(id, {name: given(row) for name, row in zip(names, parts, strict=True)}, payload)
        for id, parts, payload in zip(points.ids, several, points.payloads, strict=True)
    ]


def _selector(payload: Sequence[str] | bool) -> list[str] | bool:
    return payload if isinstance(payload, bool) else list(payload)


def _wanted(name: str | None) -> list[str] | bool:
    if name is None:
        return False
    return [name] if name else True


def _found(
    collection: Collection, records: Sequence[Any], payload: Sequence[str] | bool, name: str | None
) -> Found:
    return Found(
        ids=[str(record.id) for record in records],
        payloads=[] if payload is False else [record.payload or {} for record in records],
        vectors=None
        if name is None or not records
        else _matrix(records, name, vectors(collection.config)[name]["size"]),
    )


def _matrix(records: Sequence[Any], name: str, size: int) -> Floats:
    """The vectors of records, float32 (n, size); Edge gives lists, which numpy reads slowly."""
    packed, row = bytearray(4 * size * len(records)), struct.Struct(f"={size}f")
    for position, record in enumerate(records):
        vector = record.vector[name] if name else record.vector
        row.pack_into(packed, 4 * size * position, *vector)
    return np.frombuffer(packed, np.float32).reshape(len(records), size)


def _data_type(index: Any) -> str:
    return next(name for name, schema in _SCHEMAS.items() if schema == index.data_type)
