"""What was worked out from documents before: where each is cut, and what a converted one says.

Nothing depends on it but time. A key is a hash of the document and of all else that the result follows from:
the settings, the versions of the packages that do the work, and the code of vecbridge that calls them.
"""

from __future__ import annotations

import json
import pkgutil
import sys
import threading
import zlib
from functools import lru_cache
from hashlib import blake2b
from importlib import metadata
from typing import Any

from .._version import __version__
from ..cache import Cache

# what is written at once, as each time the disk is waited for: a few seconds of work
_ROWS, _BYTES = 256, 2**18


class Memo:
    """Results by key, in a cache. A result is what JSON can hold, and not None. Safe for threads."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._rows: dict[bytes, bytes] = {}
        self._size = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Any:
        """What was worked out; None where that is not known."""
        value = self._rows.get(key) or self._cache.get([key]).get(key)
        return None if value is None else json.loads(zlib.decompress(value).decode("utf-8", "surrogatepass"))

    def put(self, key: bytes, result: Any) -> None:
        """Remember a result; it may lie in memory until `flush`."""
        text = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
        value = zlib.compress(text.encode("utf-8", "surrogatepass"))
        with self._lock:
            self._rows[key] = value
            self._size += len(value)
            full = len(self._rows) >= _ROWS or self._size >= _BYTES
        if full:
            self.flush()

    def flush(self) -> None:
        """Write what lies in memory."""
        with self._lock:
            rows, self._rows, self._size = self._rows, {}, 0
        self._cache.put(rows)


def key_of(context: bytes, content: bytes) -> bytes:
    """What a result is known by: `context` as `context_of` gives it, and what it was worked out from."""
    key = blake2b(context, digest_size=20)
    key.update(content)
    return key.digest()


@lru_cache(maxsize=64)
def context_of(*settings: str | int | None, code: tuple[str, ...], packages: tuple[str, ...]) -> bytes:
    """20 bytes that stand for all that a result follows from but the document itself.

    Settings; the source of the modules `code` of this package, so that no change of a rule is forgotten; the
    versions of `packages` and of Python.
    """
    sources = [_source(name) for name in code]
    versions = [sys.version_info[:3], *map(_version, packages)]
    return blake2b(json.dumps([settings, sources, versions]).encode(), digest_size=20).digest()


def _source(module: str) -> str:
    try:
        source = pkgutil.get_data(__package__, f"{module}.py")
    except OSError:
        source = None
    # installed without sources
    return __version__ if source is None else blake2b(source).hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
