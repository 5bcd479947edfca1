"""Collections that promise a recall, and that are laid out anew while others have them open."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import vecbridge
from vecbridge.errors import InputError, LayoutChanged, PlanError, RecallMissed
from vecbridge.store import Store
from vecbridge.testing import data
from vecbridge.types import Index, Layout, Shorten

if TYPE_CHECKING:
    from vecbridge.types import Floats

DIM, ROWS = 64, 1_500
# as both stores can hold it
GRAPH = Layout(index=Index("hnsw", "float32", ef_construction=100, ef_search=200))
PROJECTED = Layout(index=Index("hnsw", "float32", Shorten("pca", 16), ef_search=200), oversample=20)


@pytest.fixture(scope="module")
def vectors() -> Floats:
    return data.clustered(ROWS, DIM, seed=3)


@pytest.fixture(params=["pgvector", "edge", "flat"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "pgvector":
        return str(request.getfixturevalue("pg"))
    return f"qdrant:{tmp_path}" if request.param == "edge" else f"flat:{tmp_path}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with vecbridge.connect(url) as opened:
        for name in opened.collections():
            opened.drop(name)
        yield opened


def filled(store: Store, vectors: Floats, layout: Layout, **wishes: object) -> vecbridge.Collection:
    made = store.create("papers", dim=DIM, layout=layout, sample=vectors, **wishes)  # type: ignore[arg-type]  # each test passes what it is about
    made.upsert(data.names(len(vectors)), vectors, metadata=[{"n": n} for n in range(len(vectors))])
    return made


def able(store: Store, layout: Layout) -> Layout:
    """The layout, or the one that a store without an index has."""
    return layout if store.limits.indexed else Layout()


def test_who_has_it_open_goes_on_with_the_new_layout(store: Store, vectors: Floats) -> None:
    papers = filled(store, vectors, Layout())
    others = [store.open("papers") for _ in range(7)]
    expected = [hit.id for hit in papers.search(vectors[5], k=5, exact=True)]
    papers.replan(layout=able(store, PROJECTED))
    assert papers.manifest.generation == 1
    assert papers.layout == able(store, PROJECTED)
    uses: list[Callable[[vecbridge.Collection], object]] = [
        lambda one: [hit.id for hit in one.search(vectors[5], k=5, exact=True)] == expected,
        lambda one: len(one.get(data.names(3))) == 3,
        lambda one: one.count(where={"n": {"$lt": 10}}) == 10,
        lambda one: one.upsert(iter(["new"]), np.array(vectors[:1]), metadata=iter([{"n": -1}])) == 1,
        lambda one: one.delete(["new"]) == 1,
        lambda one: one.evaluate(sample=5).recall > 0.5,
        lambda one: one.sizes().table > 0,
    ]
    for other, use in zip(others, uses, strict=True):
        assert other.manifest.generation == 0
        assert use(other)
        assert other.manifest.generation == 1
        assert other.layout == papers.layout


def test_searches_of_threads_go_on_throughout(store: Store, vectors: Floats) -> None:
    papers = filled(store, vectors, Layout())
    other = store.open("papers")
    failed: list[BaseException] = []
    done, searches = threading.Event(), [0]

    def search(collection: vecbridge.Collection) -> None:
        try:
            while not done.is_set():
                (hit,) = collection.search(vectors[7], k=1)
                assert hit.id == data.names(8)[7]
                searches[0] += 1
        except BaseException as error:  # noqa: BLE001  it is looked at below
            failed.append(error)

    threads = [threading.Thread(target=search, args=(one,)) for one in (papers, other)]
    for thread in threads:
        thread.start()
    try:
        for layout in (able(store, GRAPH), Layout()):
            papers.replan(layout=layout)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert searches[0] > 10
    assert papers.manifest.generation == 2


def test_a_proposal_is_carried_out_as_it_is(store: Store, vectors: Floats) -> None:
    papers = filled(store, vectors, Layout(), recall=0.9)
    proposed = papers.proposal(rows=5_000_000, memory="1GB")
    assert proposed.target == 0.9
    assert proposed.evidence is not None
    # the whole collection was measured
    assert proposed.evidence.rows + proposed.evidence.queries == ROWS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecallMissed)
        papers.replan(proposed)
    assert papers.layout.index is None or papers.manifest.tuned is not None
    again = store.open("papers")
    assert (again.layout.element, again.layout.shorten) == (proposed.layout.element, proposed.layout.shorten)
    assert again.manifest.recall == 0.9
    assert again.manifest.rows == 5_000_000
    assert again.count() == ROWS


def test_what_was_cut_off_is_not_promised_back(store: Store, vectors: Floats) -> None:
    papers = filled(store, vectors, Layout(shorten=Shorten("pca", 16)))
    with pytest.raises(InputError, match="only loading again can bring it back"):
        papers.proposal(recall=0.9)
    with pytest.raises(InputError, match=r"stored now \(float32, 16 dimensions\): the rest of them is gone"):
        papers.replan(layout=Layout())
    assert store.open("papers").manifest.generation == 0
    before = papers.manifest.reduction
    layout = Layout(shorten=Shorten("pca", 16), index=GRAPH.index if store.limits.indexed else None)
    papers.replan(layout=layout)
    assert papers.layout == layout
    after = papers.manifest.reduction
    assert before is not None
    assert after is not None
    assert after.basis_bytes() == before.basis_bytes()


def test_a_layout_that_the_store_cannot_hold_changes_nothing(store: Store, vectors: Floats) -> None:
    papers = filled(store, vectors, Layout())
    with pytest.raises(PlanError, match="this layout cannot be made"):
        papers.replan(layout=Layout(index=Index("hnsw", "bit", m=1), oversample=0))
    with pytest.raises(InputError, match="a plan or a layout"):
        papers.replan(papers.proposal(), layout=Layout())
    assert store.open("papers").manifest.generation == 0


def test_a_collection_is_made_by_the_plan_that_was_shown(store: Store, vectors: Floats) -> None:
    shown = store.plan(sample=vectors, recall=0.9, rows=200_000)
    made = store.create("papers", dim=DIM, plan=shown, sample=vectors)
    assert made.plan is shown
    assert (made.layout, made.space, made.manifest.recall) == (shown.layout, shown.space, 0.9)
    with pytest.raises(InputError, match="vectors of 65 dimensions, got one for 64"):
        store.create("others", dim=DIM + 1, plan=shown)
    with pytest.raises(InputError, match="a layout or a plan"):
        store.create("others", dim=DIM, plan=shown, layout=Layout())
    with pytest.raises(InputError, match="expected a plan that this store made"):
        store.create("others", dim=DIM, plan=vecbridge.plan(DIM))
    assert store.collections() == ["papers"]


@pytest.mark.parametrize("url", ["pgvector"], indirect=True)
def test_an_index_that_is_built_is_tuned_for_the_recall_that_was_asked_for(
    store: Store, vectors: Floats
) -> None:
    papers = filled(store, vectors, GRAPH, recall=0.95)
    found = papers.build_index()
    assert found is not None
    assert found.tuned.met
    assert store.open("papers").manifest.tuned == found.tuned
    # it is there, and for as many records
    assert papers.build_index() is None
    papers.delete(data.names(ROWS)[: ROWS // 2])
    again = papers.build_index()
    assert again is not None
    assert again.tuned.rows == ROWS - ROWS // 2


@pytest.mark.parametrize("url", ["pgvector"], indirect=True)
def test_a_recall_that_is_missed_is_said_and_what_would_meet_it(store: Store) -> None:
    # the signs of vectors that hardly differ
    strong = np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float32) + 3
    papers = filled(
        store, strong, Layout(index=Index("hnsw", "bit", ef_search=100), oversample=2), recall=0.99
    )
    with pytest.warns(
        RecallMissed, match=r"papers: NOT met: recall@10 .* 0\.99 wanted.*replan\(\) would make"
    ):
        found = papers.build_index()
    assert found is not None
    assert not found.tuned.met
    tuned = store.open("papers").manifest.tuned
    assert tuned is not None
    assert not tuned.met


@pytest.mark.parametrize("url", ["flat"], indirect=True)
def test_tuning_needs_a_target(store: Store, vectors: Floats) -> None:
    papers = filled(store, vectors, Layout())
    with pytest.raises(InputError, match="expected the recall@10 that is wanted, as recall="):
        papers.tune()
    assert papers.tune(recall=0.9).tuned.met
    # asked for once, it is kept
    assert store.open("papers").tune().tuned.target == 0.9


def test_a_collection_that_changes_while_it_is_laid_out_says_so(store: Store, vectors: Floats) -> None:
    papers, other = filled(store, vectors, Layout()), store.open("papers")
    stale = other._table
    papers.replan(layout=Layout())
    with pytest.raises(LayoutChanged, match="papers"):
        stale.count()
