"""Fresh places on a Qdrant server, which has no databases or schemas: collections with a prefix of their own.

`part-of:PREFIX@URL` is the Qdrant at URL as if only the collections whose names begin with PREFIX were there.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from vecbridge.backends import SCHEMES, Scheme, qdrant
from vecbridge.backends.qdrant import Qdrant
from vecbridge.backends.qdrant.engine import Engine

_numbers = itertools.count(1)
_NAMED = {
    "create", "describe", "drop", "index_field", "optimise", "upsert", "query", "retrieve", "scroll", "count",
    "delete", "sizes", "keep", "kept", "forget",
}  # fmt: skip


class Part:
    """An engine that adds a prefix to the name in every call."""

    def __init__(self, engine: Engine, prefix: str) -> None:
        self._engine, self._prefix = engine, prefix

    def __getattr__(self, method: str) -> Any:
        whole = getattr(self._engine, method)
        if method not in _NAMED:
            return whole
        return lambda name, *others, **named: whole(f"{self._prefix}{name}", *others, **named)

    def collections(self) -> list[str]:
        return [
            name.removeprefix(self._prefix)
            for name in self._engine.collections()
            if name.startswith(self._prefix)
        ]


def connect(url: str) -> Qdrant:
    """The part of a Qdrant that a URL names."""
    prefix, _, whole = url.partition(":")[2].partition("@")
    return Qdrant(Part(qdrant.connect(whole)._engine, prefix))  # type: ignore[arg-type]  # __getattr__ gives what is missing


@contextmanager
def parts(url: str) -> Iterator[Callable[[], str]]:
    """A function that returns the URL of a new part each time; all of them are dropped at the end."""
    start = f"vecbridge-test-{os.getpid()}-"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCHEMES, "part-of", Scheme(__name__))
        try:
            yield lambda: f"part-of:{start}{next(_numbers)}-@{url}"
        finally:
            engine = qdrant.connect(url)._engine
            for name in engine.collections():
                if name.startswith(start):
                    engine.drop(name)
            engine.close()
