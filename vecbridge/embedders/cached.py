"""A service behind a cache."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache import Cache
from ..errors import EmbedderError
from . import Embedded, Service, Usage, document_prefix
from .texts import check_texts, parts

if TYPE_CHECKING:
    from ..types import Floats


class Cached:
    """A service that is asked only for what a cache does not hold; it keeps what comes before giving it back.

    Questions are not kept, nor are refused texts. Service and cache are closed with it. Safe for threads.
    """

    def __init__(self, service: Service, cache: Cache) -> None:
        self.service = service
        self.cache = cache
        self._dim: int | None = None
        self._hits = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<{self.service!r} with {self.cache!r}>"

    @property
    def model(self) -> str:
        """What names the embedding space."""
        return self.service.model

    @property
    def dim(self) -> int | None:
        """Length of the vectors; None until the first ones have come, from the service or the cache."""
        return self.service.dim or self._dim

    @property
    def nested(self) -> tuple[int, ...] | None:
        """Matryoshka sizes."""
        return self.service.nested

    @property
    def address(self) -> str:
        """Which service this is, without secrets."""
        return self.service.address

    @property
    def concurrency(self) -> int:
        """How many calls of `request` are worth having in flight."""
        return self.service.concurrency

    @property
    def items(self) -> int:
        """The most texts in one request."""
        return self.service.items

    @property
    def chars(self) -> int:
        """The most characters in one request."""
        return self.service.chars

    @property
    def document_prefix(self) -> str:
        """What is put before every document."""
        return document_prefix(self.service)

    @property
    def max_tokens(self) -> int | None:
        """The most tokens in one text; None where the service does not know."""
        return getattr(self.service, "max_tokens", None)

    @property
    def tokenizer(self) -> Any:
        """What counts tokens; None where the service does not know."""
        return getattr(self.service, "tokenizer", None)

    @property
    def truncates(self) -> bool:
        """Whether a text that is too long is cut short in silence."""
        return bool(getattr(self.service, "truncates", False))

    def embed(self, texts: Sequence[str]) -> Floats:
        """Vectors of documents, float32 (n, dim). Raises as the service does."""
        checked = check_texts(texts)
        found: list[Floats] = []
        for part in parts(checked, self.items, self.chars, len):
            answer = self.request(part)
            for error in answer.refused.values():
                raise error
            found.append(answer.vectors)
        return np.concatenate(found) if found else np.empty((0, self.dim or 0), dtype=np.float32)

    def embed_query(self, text: str) -> Floats:
        """The vector of a question, float32 (dim,), from the service."""
        return self.service.embed_query(text)

    def request(self, texts: Sequence[str]) -> Embedded:
        """Vectors of documents; where the cache holds all of them, no request goes out."""
        checked = check_texts(texts)
        rows = self._known(checked)
        found = sorted(rows)
        fresh, refused = self._ask(checked, [place for place in range(len(checked)) if place not in rows])
        known = {self.service.dim} if self.service.dim else set()
        if found and len(known | {len(row) for row in (*rows.values(), *fresh.values())}) > 1:
            # the model changed under its name, and what is kept does not fit what comes today
            rows, more = self._ask(checked, found)
            refused, found = refused | more, []
        rows |= fresh
        if rows:
            self._dim = len(next(iter(rows.values())))
        with self._lock:
            self._hits += len(found)
        ordered = [rows[place] for place in sorted(rows)]
        vectors = np.stack(ordered) if ordered else np.empty((0, self.dim or 0), dtype=np.float32)
        return Embedded(vectors, dict(sorted(refused.items())))

    def _ask(self, texts: list[str], places: list[int]) -> tuple[dict[int, Floats], dict[int, EmbedderError]]:
        """Vectors from the service and what it refused, both by position; the vectors are kept."""
        if not places:
            return {}, {}
        answer = self.service.request([texts[place] for place in places])
        refused = {places[place]: error for place, error in answer.refused.items()}
        came = [place for place in places if place not in refused]
        keys = self._keys([texts[place] for place in came])
        matrix = np.ascontiguousarray(answer.vectors, dtype="<f4")
        self.cache.put({key: row.tobytes() for key, row in zip(keys, matrix, strict=True)})
        return dict(zip(came, answer.vectors, strict=True)), refused

    def _known(self, texts: list[str]) -> dict[int, Floats]:
        """Vectors that the cache holds, by position."""
        keys = self._keys(texts)
        kept = self.cache.get(keys)
        return {
            place: np.frombuffer(kept[key], dtype="<f4").astype(np.float32, copy=False)
            for place, key in enumerate(keys)
            if key in kept
        }

    def _keys(self, texts: list[str]) -> list[bytes]:
        """What the cache knows vectors by: service, model, and text as it is sent, prefix included."""
        context = blake2b(json.dumps(["vector", self.address, self.model]).encode() + b"\n", digest_size=20)
        prefix, keys = self.document_prefix, []
        for text in texts:
            key = context.copy()
            key.update((prefix + text).encode())
            keys.append(key.digest())
        return keys

    def usage(self) -> Usage:
        """What was asked for so far; `cached` counts what no request was needed for."""
        usage = self.service.usage()
        return replace(usage, cached=usage.cached + self._hits)

    def close(self) -> None:
        """Close service and cache. May be called twice, and from another thread."""
        self.service.close()
        self.cache.close()
