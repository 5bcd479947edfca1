"""Fresh places on a Qdrant server, which has no databases or schemas: collections with a prefix of their own.

`part-of:PREFIX@URL` is the Qdrant at URL as if only the collections whose names begin with PREFIX were there.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from vecbridge.backends import SCHEMES, Backend, Scheme, qdrant
from vecbridge.backends.qdrant import Qdrant, Table
from vecbridge.backends.qdrant.engine import Engine, Query, Scored
from vecbridge.testing import LAYOUTS
from vecbridge.testing.succession import SuccessionTests, filled, hits_of, made_vectors, widened

_numbers = itertools.count(1)
_NAMED = {
    "create", "describe", "drop", "index_field", "annotate", "paused", "optimise", "upsert", "query",
    "retrieve", "scroll", "count", "delete", "sizes", "keep", "kept", "forget",
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


class ExactServers(SuccessionTests):
    """Servers that search in numpy whatever they are asked: the widths are looked for in what is asked."""

    writers_wait = False

    @pytest.mark.parametrize("name", ["hnsw bit", "hnsw prefix"])
    def test_a_table_is_searched_as_wide_as_it_is_told(self, backend: Backend, name: str) -> None:
        layout = LAYOUTS["hnsw bit"]
        narrow, wide = widened(layout, oversample=2, width=10), widened(layout, oversample=40, width=400)
        table = cast(Table, filled(backend, narrow))
        here = table.searched(wide)
        assert [_asked(one) for one in (table, here, here.searched(narrow))] == [(10, 2), (400, 40), (10, 2)]
        assert _asked(table.searched(wide)) == (400, 40)
        assert (here.manifest.layout, table.manifest.layout) == (wide, narrow)
        assert backend.open("papers").manifest.layout == narrow

    def test_widths_that_are_kept_are_used(self, backend: Backend) -> None:
        narrow, wide = (
            widened(LAYOUTS["hnsw bit"], oversample=of, width=width) for of, width in ((2, 10), (40, 400))
        )
        table = cast(Table, filled(backend, narrow))
        table.keep(replace(table.manifest, layout=wide))
        assert _asked(table) == _asked(cast(Table, backend.open("papers"))) == (400, 40)


def _asked(table: Table) -> tuple[int, float]:
    """The width of the walk through the graph, and the oversampling, that a search asks Qdrant for."""
    asked: list[Query] = []
    engine = table._engine

    def query(name: str, queries: Sequence[Query]) -> list[list[Scored]]:
        asked.extend(queries)
        return engine.query(name, queries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "_engine", Watched(engine, query))
        hits_of(table, made_vectors()[:1])
    [one] = asked
    params = (one.prefetch or one).params or {}
    if one.prefetch is not None:
        return params["hnsw_ef"], one.prefetch.limit / one.limit
    return params["hnsw_ef"], params["quantization"]["oversampling"]


class Watched:
    """An engine whose searches go another way."""

    def __init__(self, engine: Engine, query: Callable[..., Any]) -> None:
        self._engine, self.query = engine, query

    def __getattr__(self, method: str) -> Any:
        return getattr(self._engine, method)
