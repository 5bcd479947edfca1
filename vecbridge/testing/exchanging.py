"""Two collections that exchange their names: in one step, noticed by all who have one of them open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from .. import backends
from ..backends import Backend, Table
from ..errors import CollectionNotFound, InputError, LayoutChanged
from ..manifest import Manifest
from ..replanning import replan
from ..types import Batch, Layout, Space
from . import data
from .base import Base
from .layouts import LAYOUTS, allowed

_ROWS = 120
_DIMS = {"papers": 16, "papers-beside": 24}
_LIMIT = 60.0  # seconds after which a thread that should have gone on has not


class ExchangeTests(Base):
    """Two collections that exchange their names: in one step, noticed by all who have one of them open."""

    #: Whether this store can keep writers of other processes waiting, and tell them that a name has changed.
    writers_wait: ClassVar[bool] = True

    @pytest.fixture
    def edge(self, store_url: str) -> Iterator[Backend]:
        """The narrow edge of a fresh place with two collections of different dimensions."""
        backend = backends.connect(store_url)
        for name in _DIMS:
            _filled(backend, name)
        yield backend
        backend.close()

    @pytest.fixture
    def beside(self, store_url: str, edge: Backend) -> Iterator[Backend]:
        """The same place, as another process would see it."""
        other = backends.connect(store_url)
        yield other
        other.close()

    def test_names_change_places_with_all_that_is_stored(self, edge: Backend, beside: Backend) -> None:
        """Also a second time, which is as it was before."""
        names = list(_DIMS)
        before = {name: _content(edge.open(name)) for name in names}
        for expected in (
            dict(zip(names, reversed(names), strict=True)),
            dict(zip(names, names, strict=True)),
        ):
            edge.exchange(*names)
            for backend in (edge, beside):
                assert backend.names() == sorted(names)
                for name, was in expected.items():
                    opened = backend.open(name)
                    assert opened.manifest.name == name
                    assert opened.manifest.space.dim == _DIMS[was]
                    assert opened.manifest.filterable == {"row": "number"}
                    assert _content(opened) == before[was]
                    assert _nearest(opened) == [f"{was} 0"]
                    opened.close()

    def test_an_index_goes_with_its_collection(self, edge: Backend) -> None:
        layouts = allowed(edge.limits())
        layout = next((LAYOUTS[name] for name in ("hnsw", "hnsw bit") if name in layouts), Layout())
        table = _filled(edge, "indexed", layout=layout)
        table.build_index(None)
        state = table.index_state()
        edge.exchange("indexed", "papers")
        found = edge.open("papers")
        assert found.manifest.layout == layout
        assert found.index_state() == state
        found.build_index(None)
        assert found.index_state() == state
        assert _nearest(found) == ["indexed 0"]
        assert _nearest(edge.open("indexed")) == ["papers 0"]

    def test_what_was_open_is_told(self, edge: Backend, beside: Backend) -> None:
        opened = [edge.open("papers"), edge.open("papers-beside")]
        if self.writers_wait:
            opened += [beside.open("papers"), beside.open("papers-beside")]
        for table in opened:
            assert table.count() == _ROWS
        edge.exchange("papers", "papers-beside")
        new = {16: _batch("new", 1, dim=16), 24: _batch("new", 1, dim=24)}
        for table in opened:
            dim = table.manifest.space.dim
            query = np.ones((1, dim), np.float32)
            for use in (
                lambda table=table, query=query: table.search(query, None, k=3, where=None, exact=True),
                lambda table=table, dim=dim: table.write(new[dim]),
                lambda table=table: table.delete(["papers 0"]),
                lambda table=table: table.read(["papers 0"]),
                lambda table=table: list(table.scan(None, vectors=True)),
                lambda table=table: list(table.inventory()),
                lambda table=table: table.count(),
                lambda table=table: table.keep(replace(table.manifest, rows=7)),
            ):
                with pytest.raises(LayoutChanged, match="open it again"):
                    use()
        for name in _DIMS:
            table = edge.open(name)
            assert table.count() == _ROWS
            assert len(table.read(["new 0"])) == 0
            assert table.manifest.rows == _ROWS

    def test_names_are_free_and_taken_as_before(self, edge: Backend, beside: Backend) -> None:
        edge.exchange("papers", "papers-beside")
        edge.drop("papers-beside")
        for backend in (edge, beside):
            assert backend.names() == ["papers"]
            with pytest.raises(CollectionNotFound):
                backend.open("papers-beside")
        made = _filled(edge, "papers-beside")
        assert made.manifest.name == "papers-beside"
        assert _nearest(beside.open("papers-beside")) == ["papers-beside 0"]
        assert _nearest(beside.open("papers")) == ["papers-beside 0"]
        assert beside.open("papers").manifest.space.dim == 24
        edge.drop("papers")
        assert beside.names() == ["papers-beside"]
        assert _nearest(beside.open("papers-beside")) == ["papers-beside 0"]
        _filled(edge, "papers")
        edge.exchange("papers-beside", "papers")
        assert _nearest(beside.open("papers-beside")) == ["papers 0"]

    def test_what_exchanged_its_name_can_be_laid_out_anew(self, edge: Backend, beside: Backend) -> None:
        edge.exchange("papers", "papers-beside")
        for name in _DIMS:
            table = edge.open(name)
            before = _content(table)
            following = replace(table.manifest, generation=table.manifest.generation + 1)
            new = replan(edge, table, following)
            assert _content(new) == _content(beside.open(name)) == before
        edge.exchange("papers", "papers-beside")
        assert edge.names() == sorted(_DIMS)
        for name in _DIMS:
            opened = beside.open(name)
            assert (opened.manifest.name, opened.manifest.space.dim) == (name, _DIMS[name])
            assert _nearest(opened) == [f"{name} 0"]

    def test_three_names_go_round(self, edge: Backend) -> None:
        _filled(edge, "third")
        edge.exchange("papers", "third")
        edge.exchange("third", "papers-beside")
        found = {name: _nearest(edge.open(name)) for name in ("papers", "papers-beside", "third")}
        assert found == {
            "papers": ["third 0"], "papers-beside": ["papers 0"], "third": ["papers-beside 0"],
        }  # fmt: skip

    def test_what_cannot_be_exchanged_changes_nothing(self, edge: Backend) -> None:
        before = {name: _content(edge.open(name)) for name in _DIMS}
        for pair in (("papers", "nobody"), ("nobody", "papers")):
            with pytest.raises(CollectionNotFound, match="nobody"):
                edge.exchange(*pair)
        with pytest.raises(InputError, match="two collections"):
            edge.exchange("papers", "papers")
        assert edge.names() == sorted(_DIMS)
        assert {name: _content(edge.open(name)) for name in _DIMS} == before

    def test_whoever_waits_to_write_writes_into_neither(self, edge: Backend, beside: Backend) -> None:
        """The writer was kept waiting for the one, and finds that it is the other by now."""
        if not self.writers_wait:
            pytest.skip("this store cannot keep writers waiting")
        table, there = edge.open("papers"), beside.open("papers")
        with ThreadPoolExecutor(1) as pool:
            with table.paused():
                writing = pool.submit(there.write, _batch("new", 1, dim=16))
                with suppress(TimeoutError):
                    writing.result(0.3)
                assert not writing.done()
                edge.exchange("papers", "papers-beside")
            with pytest.raises(LayoutChanged, match="open it again"):
                writing.result(_LIMIT)
        for name in _DIMS:
            opened = edge.open(name)
            assert opened.count() == _ROWS
            opened.write(_batch("new", 1, dim=opened.manifest.space.dim))
            assert opened.count() == _ROWS + 1

    def test_every_search_sees_one_or_the_other(self, edge: Backend, beside: Backend) -> None:
        """While names change again and again, whoever opens one finds one whole collection under it."""
        done = threading.Event()

        def search(backend: Backend) -> set[str]:
            seen: set[str] = set()
            table = backend.open("papers")
            while True:
                try:
                    dim = table.manifest.space.dim
                    found = _nearest(table)
                except LayoutChanged:
                    table = backend.open("papers")
                    continue
                was = next(name for name, size in _DIMS.items() if size == dim)
                assert found == [f"{was} 0"]
                seen.add(was)
                if done.is_set():
                    break
                if not self.writers_wait:
                    # a server tells nobody
                    table = backend.open("papers")
            return seen

        with ThreadPoolExecutor(2) as pool:
            searching = [pool.submit(search, backend) for backend in (edge, beside)]
            try:
                for _ in range(9):
                    edge.exchange("papers", "papers-beside")
            finally:
                done.set()
            seen = [one.result(_LIMIT) for one in searching]
        assert all(one <= set(_DIMS) for one in seen)
        assert edge.open("papers").manifest.space.dim == _DIMS["papers-beside"]


def _vectors(dim: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return data.clustered(_ROWS, dim, seed=dim)


def _batch(name: str, n: int, *, dim: int) -> Batch:
    return Batch(
        [f"{name} {row}" for row in range(n)],
        np.ascontiguousarray(_vectors(dim)[:n]),
        [None if row % 5 == 0 else f"document {row} é" for row in range(n)],
        [{"row": row, "of": name} for row in range(n)],
        [None if row % 3 == 0 else bytes([row]) * 24 for row in range(n)],
    )


def _filled(backend: Backend, name: str, *, layout: Layout | None = None) -> Table:
    dim = _DIMS.get(name, 16)
    manifest = Manifest(
        name, Space(dim, "l2", model=f"model-{dim}"), layout or Layout(), _ROWS, filterable={"row": "number"}
    )
    table = backend.create(manifest)
    table.write(_batch(name, _ROWS, dim=dim))
    return table


def _nearest(table: Table) -> list[str]:
    """The id of the record nearest to the first vector of that length."""
    query = np.ascontiguousarray(_vectors(table.manifest.space.dim)[:1])
    return [hit.id for hit in table.search(query, None, k=1, where=None, exact=True)[0]]


def _content(table: Table) -> list[tuple[object, ...]]:
    """Everything that is stored, to compare with `==`."""
    return sorted(
        (id, row.tobytes(), text, str(sorted(note.items())), digest)
        for batch in table.scan(None, vectors=True)
        for id, row, text, note, digest in zip(
            batch.ids, batch.vectors, batch.documents, batch.metadata, batch.digests, strict=True
        )
    )
