"""Another layout for what is stored: search widths tried and kept, and a successor that takes over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest

from .. import backends
from ..backends import Backend, Table
from ..errors import CollectionNotFound, LayoutChanged
from ..filters import parse
from ..manifest import Chunking, Manifest, Tuned
from ..recall import Recall
from ..reduction import Reduction, fit
from ..replanning import replan
from ..types import Batch, Hit, Layout, Shorten
from . import data, oracle
from .base import Base
from .layouts import APPROXIMATE, DIM, LAYOUTS, allowed, space

if TYPE_CHECKING:
    from ..types import Floats

_ROWS = 600
_FIRST = data.names(1)[0]
_LIMIT = 60.0  # seconds after which a thread that should have gone on has not

# from what, into what; only what the store allows is tried
_CHANGES = (
    ("flat", "hnsw"),
    ("flat", "hnsw bit"),
    ("flat", "hnsw pca"),
    ("hnsw", "flat"),
    ("hnsw pca float16", "hnsw prefix"),
    ("flat", "flat float16"),
    ("flat float16", "flat"),
    ("flat", "pca"),
    ("pca hnsw", "pca"),
    ("truncated", "truncated hnsw"),
    ("ivfflat", "hnsw float16"),
    ("flat", "flat"),
)


class SuccessionTests(Base):
    """Another layout for what is stored: search widths tried and kept, and a successor that takes over."""

    #: Whether this store can keep writers of other processes waiting while a collection is laid out anew.
    writers_wait: ClassVar[bool] = True

    @pytest.fixture
    def backend(self, store_url: str) -> Iterator[Backend]:
        """The narrow edge of a fresh place."""
        backend = backends.connect(store_url)
        yield backend
        backend.close()

    @pytest.fixture
    def other(self, store_url: str, backend: Backend) -> Iterator[Backend]:
        """The same place, as another process would see it."""
        other = backends.connect(store_url)
        yield other
        other.close()

    # --- search widths -------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", ["hnsw bit", "ivfflat", "scan bit"])
    def test_a_table_is_searched_as_wide_as_it_is_told(self, backend: Backend, name: str) -> None:
        layout = LAYOUTS[name]
        if backend.limits().objection(space("cosine"), layout):
            pytest.skip(f"this store has no layout {name!r}")
        narrow, wide = widened(layout, oversample=1, width=10), widened(layout, oversample=40, width=400)
        table = filled(backend, narrow)
        table.build_index(None)
        here, there = table.searched(wide), table.searched(narrow)
        found = {one: _recall(one) for one in (table, here, there)}
        assert found[here] > 0.99
        assert found[here] > found[table] + 0.1
        assert found[there] == found[table]
        assert (here.manifest.layout, table.manifest.layout) == (wide, narrow)
        assert backend.open("papers").manifest.layout == narrow
        table.delete([_FIRST])
        assert here.count() == _ROWS - 1

    def test_a_table_without_index_is_searched_as_before(self, backend: Backend) -> None:
        table = filled(backend, Layout())
        assert _recall(table.searched(table.manifest.layout)) == _recall(table) > 0.99

    def test_what_is_kept_is_there_for_whoever_opens_it(self, backend: Backend, other: Backend) -> None:
        name = next((name for name in APPROXIMATE if name in set(allowed(backend.limits()))), "flat")
        manifest = _manifest(LAYOUTS[name])
        table = filled(backend, manifest.layout)
        before = other.open("papers")
        layout = manifest.layout
        if layout.index is not None:
            layout = widened(layout, oversample=7, width=177)
        tuned = Tuned(0.9, 10, Recall(0.93, 0.9, 0.96, 50), _ROWS, held_out=True, seed=3)
        kept = replace(
            table.manifest,
            layout=layout,
            rows=12_345,
            recall=0.9,
            tuned=tuned,
            chunking=Chunking(tokens=300, overlap=30, counter='tokenizer "é"'),
        )
        table.keep(kept)
        assert table.manifest.dump() == kept.dump()
        for one in (backend, other):
            assert one.open("papers").manifest.dump() == kept.dump()
        assert len(hits_of(before, made_vectors()[:1])[0]) == 10
        assert _recall(table) == _recall(other.open("papers"))
        table.keep(manifest)
        assert other.open("papers").manifest.dump() == manifest.dump()

    def test_widths_that_are_kept_are_used(self, backend: Backend) -> None:
        names = [
            name for name in ("hnsw bit", "ivfflat", "scan bit") if name in set(allowed(backend.limits()))
        ]
        if not names:
            pytest.skip("this store has no approximate index")
        for name in names:
            layout = LAYOUTS[name]
            narrow, wide = widened(layout, oversample=1, width=10), widened(layout, oversample=40, width=400)
            table = filled(backend, narrow)
            table.build_index(None)
            before = _recall(table)
            table.keep(replace(table.manifest, layout=wide))
            assert _recall(table) > max(before + 0.1, 0.99)
            assert _recall(backend.open("papers")) > max(before + 0.1, 0.99)
            table.close()
            backend.drop("papers")

    def test_keeping_leaves_the_fitted_basis_alone(self, backend: Backend) -> None:
        manifest = _manifest(LAYOUTS["pca"])
        table = filled(backend, manifest.layout)
        table.keep(replace(table.manifest, rows=77))
        opened = backend.open("papers").manifest
        assert manifest.reduction is not None
        assert opened.reduction is not None
        assert opened.reduction.basis_bytes() == manifest.reduction.basis_bytes()
        assert opened.rows == 77

    def test_nothing_is_kept_of_a_collection_that_is_gone(self, backend: Backend) -> None:
        table = filled(backend, Layout())
        backend.drop("papers")
        with pytest.raises(CollectionNotFound, match="papers"):
            table.keep(replace(table.manifest, rows=5))
        with pytest.raises(CollectionNotFound, match="papers"), table.paused():
            pytest.fail("a collection that is gone was paused")

    # --- a successor ---------------------------------------------------------------------------------

    def test_a_successor_is_nobodys_business_before_the_switch(
        self, backend: Backend, other: Backend
    ) -> None:
        table = filled(backend, Layout())
        successor = backend.successor(_next(table, Layout()))
        assert successor.count() == 0
        successor.write(_records(10, shift=5.0))
        assert successor.count() == 10
        for one in (backend, other):
            assert one.names() == ["papers"]
            opened = one.open("papers")
            assert opened.manifest.generation == 0
            assert _content(opened) == _content(table)
            assert opened.count() == _ROWS

    def test_a_successor_of_nothing_is_refused(self, backend: Backend) -> None:
        with pytest.raises(CollectionNotFound, match="papers"):
            backend.successor(replace(_manifest(Layout()), generation=1))
        assert backend.names() == []

    def test_an_abandoned_successor_makes_way_for_the_next(self, backend: Backend, other: Backend) -> None:
        table = filled(backend, Layout())
        first = backend.successor(_next(table, Layout()))
        first.write(_records(10, shift=5.0))
        second = other.successor(_next(table, _another(backend)))
        assert second.count() == 0
        # it would bring in what is half filled, or belongs to another
        with pytest.raises(LayoutChanged, match="papers"):
            backend.switch(first)
        assert backend.open("papers").manifest.generation == 0
        _copy(table, second)
        other.switch(second)
        assert backend.open("papers").count() == _ROWS
        assert backend.open("papers").manifest.layout == _another(backend)

    def test_a_successor_that_is_discarded_leaves_nothing(self, backend: Backend) -> None:
        table = filled(backend, Layout())
        successor = backend.successor(_next(table, Layout()))
        successor.write(_records(10, shift=5.0))
        backend.discard(successor)
        backend.discard(successor)
        with pytest.raises((LayoutChanged, CollectionNotFound), match="papers"):
            backend.switch(successor)
        assert backend.open("papers").count() == _ROWS
        assert _content(backend.open("papers")) == _content(table)

    def test_discarding_what_became_the_collection_takes_nothing_away(self, backend: Backend) -> None:
        table = filled(backend, Layout())
        successor = backend.successor(_next(table, Layout()))
        _copy(table, successor)
        backend.switch(successor)
        backend.discard(successor)
        assert backend.open("papers").count() == _ROWS

    def test_dropping_takes_the_successor_along(self, backend: Backend) -> None:
        table = filled(backend, Layout())
        successor = backend.successor(_next(table, Layout()))
        successor.write(_records(10))
        backend.drop("papers")
        assert backend.names() == []
        with pytest.raises(CollectionNotFound, match="papers"):
            backend.switch(successor)
        again = backend.create(_manifest(Layout()))
        assert again.count() == 0
        assert backend.successor(_next(again, Layout())).count() == 0

    # --- the switch ----------------------------------------------------------------------------------

    def test_whoever_opens_it_after_the_switch_finds_the_successor(
        self, backend: Backend, other: Backend
    ) -> None:
        table = filled(backend, Layout())
        before = _content(table)
        manifest = _next(table, LAYOUTS["flat"])
        successor = backend.successor(manifest)
        _copy(table, successor)
        backend.switch(successor)
        for one in (backend, other):
            assert one.names() == ["papers"]
            opened = one.open("papers")
            assert opened.manifest.dump() == manifest.dump()
            assert opened.manifest.generation == 1
            assert _content(opened) == before
            assert _recall(opened) == 1.0
        backend.open("papers").write(_records(1, shift=9.0))
        assert (
            other.open("papers").read([_FIRST]).vectors.tobytes() == _records(1, shift=9.0).vectors.tobytes()
        )

    def test_tables_that_were_open_before_say_that_the_layout_changed(
        self, backend: Backend, other: Backend
    ) -> None:
        table = filled(backend, Layout())
        stale = [table, backend.open("papers"), other.open("papers"), table.searched(Layout())]
        begun = [one.inventory() for one in stale]
        # some of them have been used, and know more than their manifest
        for one in stale[1:]:
            assert one.count() == _ROWS
            assert len(one.read([_FIRST])) == 1
            assert len(hits_of(one, made_vectors()[:1])[0]) == 10
        successor = backend.successor(_next(table, Layout()))
        _copy(table, successor)
        backend.switch(successor)
        for one, inventory in zip(stale, begun, strict=True):
            for use in _uses(one):
                with pytest.raises(LayoutChanged, match="papers"):
                    use()
            with pytest.raises(LayoutChanged, match="papers"):
                next(inventory)
            with pytest.raises(LayoutChanged, match="papers"), one.paused():
                pytest.fail("what is no longer the collection was paused")
        assert backend.open("papers").count() == _ROWS

    def test_a_successor_of_what_it_was_before_is_refused(self, backend: Backend, other: Backend) -> None:
        table = other.open(filled(backend, Layout()).manifest.name)
        successor = backend.successor(_next(table, Layout()))
        _copy(table, successor)
        backend.switch(successor)
        # it would be made in the place of the collection itself
        with pytest.raises(LayoutChanged, match="papers"):
            other.successor(_next(table, Layout()))
        with pytest.raises(LayoutChanged, match="papers"):
            other.successor(replace(_next(table, Layout()), generation=3))
        assert backend.open("papers").count() == _ROWS

    def test_drop_after_a_switch_forgets_everything(self, backend: Backend, other: Backend) -> None:
        table = filled(backend, Layout())
        successor = backend.successor(_next(table, Layout()))
        _copy(table, successor)
        backend.switch(successor)
        opened = backend.open("papers")
        other.drop("papers")
        assert backend.names() == other.names() == []
        with pytest.raises(CollectionNotFound, match="papers"):
            opened.count()
        with pytest.raises(CollectionNotFound, match="papers"):
            backend.open("papers")
        again = backend.create(_manifest(Layout()))
        assert again.count() == 0
        assert again.manifest.generation == 0
        again.write(_records(10))
        assert backend.open("papers").count() == 10

    # --- laying out anew -----------------------------------------------------------------------------

    @pytest.mark.parametrize(("old", "new"), _CHANGES)
    def test_a_collection_laid_out_anew_holds_the_same_records(
        self, backend: Backend, old: str, new: str
    ) -> None:
        if not {old, new} <= set(allowed(backend.limits())):
            pytest.skip(f"this store has no layout {old!r} or {new!r}")
        table = filled(backend, LAYOUTS[old])
        table.build_index(None)
        manifest = _next(table, LAYOUTS[new])
        before = table.read(data.names(_ROWS))
        steps: list[str] = []
        anew = replan(backend, table, manifest, progress=lambda stage, done, total: steps.append(stage))
        assert anew.manifest.dump() == manifest.dump()
        assert anew.count() == _ROWS
        assert oracle.inventory(anew.inventory()) == dict(zip(before.ids, before.digests, strict=True))
        after = anew.read(before.ids)
        assert list(after.ids) == list(before.ids)
        assert (list(after.documents), list(after.metadata)) == (
            list(before.documents),
            list(before.metadata),
        )
        expected = before.vectors
        if manifest.reduction is not None and table.manifest.reduction is None:
            expected = manifest.reduction.apply(expected)
        if manifest.layout.element == "float16":
            expected = expected.astype(np.float16).astype(np.float32)
        assert after.vectors.tobytes() == expected.tobytes()
        state = anew.index_state()
        assert state.status in ("none", "ready")
        assert state.used == (state.status == "ready")
        assert steps[0] == "copying"
        asked = expected[:20]
        short = None if manifest.index_reduction is None else manifest.index_reduction.apply(asked)
        hits = anew.search(asked, short, k=1, where=None, exact=False)
        assert sum(hit[0].id == before.ids[row] for row, hit in enumerate(hits)) >= 18

    def test_a_collection_can_be_laid_out_anew_again_and_again(self, backend: Backend) -> None:
        table = filled(backend, Layout())
        before = _content(table)
        for generation in range(1, 4):
            layout = LAYOUTS["flat"] if generation % 2 else Layout(inline=table.manifest.layout.inline)
            table = replan(backend, table, _next(table, layout), progress=None)
            assert table.manifest.generation == generation
            assert _content(table) == before
        assert _content(backend.open("papers")) == before
        backend.drop("papers")
        assert backend.create(_manifest(Layout())).count() == 0

    def test_an_empty_collection_can_be_laid_out_anew(self, backend: Backend) -> None:
        table = backend.create(_manifest(Layout()))
        anew = replan(backend, table, _next(table, _another(backend)), progress=None)
        assert anew.count() == 0
        assert anew.manifest.layout == _another(backend)
        anew.write(_records(3))
        assert backend.open("papers").count() == 3

    def test_what_stops_a_replan_leaves_the_collection_as_it_was(self, backend: Backend) -> None:
        table = filled(backend, Layout())
        before = _content(table)

        def stop(stage: str, done: int, total: int | None) -> None:
            assert (stage, total) == ("copying", _ROWS)
            if done:
                raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            replan(backend, table, _next(table, _another(backend)), progress=stop)
        assert backend.names() == ["papers"]
        assert backend.open("papers").manifest.dump() == table.manifest.dump()
        assert _content(table) == before
        table.write(_records(1, shift=1.0))
        anew = replan(backend, table, _next(table, Layout()), progress=None)
        assert anew.count() == _ROWS

    def test_searches_go_on_while_a_collection_is_laid_out_anew(
        self, backend: Backend, other: Backend
    ) -> None:
        table = filled(backend, Layout())
        queries = made_vectors()[:5]
        expected = [[hit.id for hit in hits] for hits in hits_of(table, queries, exact=True)]
        done = threading.Event()
        started = threading.Barrier(4, timeout=_LIMIT)

        def search(one: Backend) -> set[int]:
            opened = one.open("papers")
            seen: set[int] = set()
            last = False
            while not last:
                # once more after the end, on what it is then
                last = done.is_set()
                try:
                    found = hits_of(opened, queries, exact=True)
                except LayoutChanged:
                    opened = one.open("papers")
                    found = hits_of(opened, queries, exact=True)
                assert [[hit.id for hit in hits] for hits in found] == expected
                if not seen:
                    started.wait()
                seen.add(opened.manifest.generation)
            return seen

        with ThreadPoolExecutor(3) as pool:
            searching = [pool.submit(search, one) for one in (backend, other, other)]
            try:
                started.wait()
                replan(backend, table, _next(table, Layout()), progress=None)
            finally:
                done.set()
            for one in searching:
                assert one.result(_LIMIT) == {0, 1}

    def test_writers_wait_while_a_collection_is_paused(self, backend: Backend, other: Backend) -> None:
        table = filled(backend, Layout())
        there = other.open("papers")
        new = Batch(["new"], made_vectors()[:1], [None], [{}], [None])
        with ThreadPoolExecutor(1) as pool:
            with table.paused():
                writing = pool.submit(there.write, new)
                if not self.writers_wait:
                    writing.result(_LIMIT)
                assert _recall(table) == 1.0
                assert len(hits_of(other.open("papers"), made_vectors()[:1])[0]) == 10
                with suppress(TimeoutError):
                    writing.result(0.3)
                assert writing.done() != self.writers_wait
                assert table.count() == _ROWS + (not self.writers_wait)
            writing.result(_LIMIT)
        assert table.count() == _ROWS + 1
        with table.paused():
            pass
        assert there.delete(["new"]) == 1

    def test_no_write_is_lost_to_a_collection_that_is_laid_out_anew(
        self, backend: Backend, other: Backend
    ) -> None:
        if not self.writers_wait:
            pytest.skip("this store cannot keep writers waiting")
        table = filled(backend, Layout())
        copying, done = threading.Event(), threading.Event()

        def report(stage: str, done: int, total: int | None) -> None:
            copying.set()

        def write() -> list[str]:
            opened, written = other.open("papers"), list[str]()
            assert copying.wait(_LIMIT)
            until = monotonic() + _LIMIT
            while monotonic() < until:
                last = done.is_set()
                name = f"new {len(written)}"
                batch = Batch([name], made_vectors()[:1], [name], [{}], [None])
                try:
                    opened.write(batch)
                except LayoutChanged:
                    opened = other.open("papers")
                    opened.write(batch)
                written.append(name)
                if last:
                    break
            return written

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            try:
                replan(backend, table, _next(table, Layout()), progress=report)
            finally:
                copying.set()
                done.set()
            written = writing.result(2 * _LIMIT)
        opened = backend.open("papers")
        assert written
        assert list(opened.read(written).documents) == written
        assert opened.count() == _ROWS + len(written)


def made_vectors() -> Floats:
    """The vectors that the suite's collections hold."""
    return data.clustered(_ROWS, DIM, seed=11)


def _records(n: int, *, shift: float = 0.0) -> Batch:
    """The first n records of the tests: some without document, some without digest."""
    return Batch(
        data.names(n),
        np.ascontiguousarray(made_vectors()[:n] + np.float32(shift)),
        [None if row % 5 == 0 else f"document {row} é" for row in range(n)],
        [{} if row % 7 == 0 else {"row": row, "tags": ["a", str(row)]} for row in range(n)],
        [None if row % 3 == 0 else bytes([row % 256, row // 256]) * 16 for row in range(n)],
    )


def _manifest(layout: Layout) -> Manifest:
    """A collection of this layout; its PCA is fitted to the records of the tests."""

    def fitted(shorten: Shorten | None) -> Reduction | None:
        return None if shorten is None else fit(shorten, source=DIM, metric="cosine", sample=made_vectors())

    inner = layout.index.shorten if layout.index else None
    return Manifest(
        "papers",
        space("cosine"),
        layout,
        _ROWS,
        fitted(layout.shorten),
        fitted(inner) if inner and inner.method == "pca" else None,
    )


def _next(table: Table, layout: Layout) -> Manifest:
    """The manifest of a successor."""
    return replace(_manifest(layout), generation=table.manifest.generation + 1)


def _another(backend: Backend) -> Layout:
    """A layout without index that stores whole vectors, and is not the plainest where there is another."""
    names = set(allowed(backend.limits()))
    return LAYOUTS[next((name for name in ("flat float16", "flat inline") if name in names), "flat")]


def filled(backend: Backend, layout: Layout) -> Table:
    """A collection in this layout with all of them."""
    table = backend.create(_manifest(layout))
    _put(table, _records(_ROWS))
    return table


def _put(table: Table, batch: Batch) -> None:
    """Write whole vectors, shortened as the table's manifest says."""
    manifest, vectors = table.manifest, batch.vectors
    if manifest.reduction is not None:
        vectors = manifest.reduction.apply(vectors)
    short = None if manifest.index_reduction is None else manifest.index_reduction.apply(vectors)
    table.write(replace(batch, vectors=vectors, short=short))


def _copy(table: Table, successor: Table) -> None:
    _put(successor, table.read(data.names(_ROWS)))


def _content(table: Table) -> dict[str, object]:
    """Everything that is stored, to compare with `==`."""
    batch = table.read(list(oracle.inventory(table.inventory())))
    marks = dict(zip(batch.ids, batch.digests, strict=True))
    return {id: (*row, marks[id]) for id, row in oracle.rows(batch).items()}


def widened(layout: Layout, *, oversample: int, width: int) -> Layout:
    """The layout with other search widths."""
    assert layout.index is not None
    index = layout.index
    if index.kind == "hnsw":
        index = replace(index, ef_search=width)
    elif index.kind == "ivfflat":
        # one of 20 lists, or all
        index = replace(index, probes=max(width // 20, 1))
    return replace(layout, oversample=oversample, index=index)


def hits_of(table: Table, queries: Floats, *, exact: bool = False) -> list[list[Hit]]:
    """Ten hits for each query, without a filter."""
    return table.search(queries, None, k=10, where=None, exact=exact)


def _recall(table: Table) -> float:
    """The share of the ten nearest that a search finds, over 40 queries between the clusters."""
    queries = np.ascontiguousarray(made_vectors()[:40] + made_vectors()[100:140])
    truth = hits_of(table, queries, exact=True)
    found = hits_of(table, queries)
    shares = [
        len({hit.id for hit in one} & {hit.id for hit in other}) / len(other)
        for one, other in zip(found, truth, strict=True)
    ]
    return float(np.mean(shares))


def _uses(table: Table) -> Sequence[Callable[[], object]]:
    """Everything that can be done with a table."""
    where = parse({"row": 1})
    return (
        lambda: table.write(_records(1)),
        lambda: table.read([_FIRST]),
        lambda: table.digests([_FIRST]),
        lambda: list(table.inventory()),
        lambda: list(table.scan(None, vectors=True)),
        lambda: list(table.scan(where, vectors=False)),
        lambda: table.sample(3, seed=1),
        lambda: table.delete([_FIRST]),
        lambda: table.delete_where(where),
        lambda: table.count(),
        lambda: table.count(where),
        lambda: hits_of(table, made_vectors()[:1]),
        lambda: hits_of(table, made_vectors()[:1], exact=True),
        lambda: table.search(made_vectors()[:1], None, k=3, where=where, exact=False),
        lambda: table.keep(replace(table.manifest, rows=5)),
    )
