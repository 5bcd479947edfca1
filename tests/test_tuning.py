"""Search widths are found on one half of the queries, confirmed on the other, kept, and used ever after."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from servers import quick_place

import vecbridge
from vecbridge import Index, Layout, Shorten, evaluate, tuning, widths
from vecbridge.backends import Table
from vecbridge.errors import IndexFailure, InputError
from vecbridge.limits import Limits, limits
from vecbridge.store import Store
from vecbridge.testing import data

if TYPE_CHECKING:
    from vecbridge.types import Floats, Hit

PGVECTOR, EDGE = limits("pgvector"), limits("edge")
ROWS, DIM = 1_200, 48
# few links, built in haste: such a graph loses its way, so that the width of the walk matters
SPARSE = Index("hnsw", m=5, ef_construction=16, ef_search=1)
LAYOUTS = {
    "graph": Layout(index=SPARSE),
    "codes": Layout(index=Index("hnsw", "bit", ef_search=40), oversample=2),
    "lists": Layout(index=Index("ivfflat", lists=24, probes=1)),
    "scan": Layout(index=Index("scan", "float16", Shorten("truncate", 16))),
    "exact": Layout(),
}


def spread(n: int, dim: int, *, seed: int) -> Floats:
    """Unit vectors (n, dim) in all directions, the first components larger, as a projection leaves them."""
    matrix = np.random.default_rng(seed).standard_normal((n, dim)) / np.arange(1, dim + 1) ** 0.4
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.ascontiguousarray(matrix, np.float32)


VECTORS = spread(ROWS, DIM, seed=1)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A place on the embedded PostgreSQL with one collection of every layout, built."""
    with TemporaryDirectory(prefix="vecbridge-", dir=quick_place()) as folder:
        url = f"pgvector:{folder}/pg"
        with vecbridge.connect(url) as store:
            for name, layout in LAYOUTS.items():
                papers = store.create(name, dim=DIM, nested=(16,), layout=layout)
                papers.upsert(
                    data.names(ROWS), VECTORS, metadata=[{"tenth": row % 10} for row in range(ROWS)]
                )
                papers.build_index()
            yield url


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """The collections as they were planned, whatever another test has tuned."""
    with vecbridge.connect(url) as store:
        for name, layout in LAYOUTS.items():
            table = table_of(store, name)
            table.keep(replace(table.manifest, layout=layout, recall=None, tuned=None))
        yield store


def table_of(store: Store, name: str) -> Table:
    return store.open(name)._table


def tune(
    table: Table,
    *,
    recall: float = 0.95,
    queries: Floats | None = None,
    sample: int = 80,
    seed: int = 0,
    seconds: float | None = None,
    limits: Limits = PGVECTOR,
    **rest: Any,
) -> tuning.Tuning:
    given: dict[str, Any] = {"k": 10, "progress": None} | rest
    return tuning.tune(
        table,
        recall=recall,
        queries=queries,
        sample=sample,
        seed=seed,
        seconds=seconds,
        limits=limits,
        **given,
    )


class Heard:
    """A table that remembers which queries it is asked, at which width, and which manifest it keeps."""

    def __init__(self, table: Table, log: list[tuple[Layout | None, bytes]] | None = None) -> None:
        self._table = table
        self.log: list[tuple[Layout | None, bytes]] = [] if log is None else log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def searched(self, layout: Layout) -> Heard:
        return Heard(self._table.searched(layout), self.log)

    def search(self, queries: Floats, short: Floats | None, **how: Any) -> list[list[Hit]]:
        self.log.append((None if how["exact"] else self._table.manifest.layout, queries.tobytes()))
        return self._table.search(queries, short, **how)


# --- what is found is kept and used -------------------------------------------------------------------


def test_the_tuned_width_is_used_by_every_later_search(url: str, store: Store) -> None:
    before = store.open("graph").evaluate(sample=80, seed=5)
    found = tune(table_of(store, "graph"))
    assert found.tuned.met
    assert found.before == LAYOUTS["graph"]
    index = found.after.index
    assert index is not None
    # of the index, the width alone may change
    assert replace(index, ef_search=1) == SPARSE
    assert 11 < index.ef_search < 1000
    with vecbridge.connect(url) as again:
        papers = again.open("graph")
        assert papers.layout == found.after
        assert papers.manifest.tuned == found.tuned
        assert papers.manifest.recall == 0.95
        after = papers.evaluate(sample=80, seed=5)
        queries = spread(20, DIM, seed=9)
        narrow = table_of(again, "graph").searched(found.before)
        there = papers.search_many(queries, k=10)
        wide = table_of(again, "graph").searched(found.after)
        assert there == wide.search(queries, None, k=10, where=None, exact=False)
        assert there != narrow.search(queries, None, k=10, where=None, exact=False)
    assert before.recall < 0.9 < after.recall


def test_the_queries_that_confirm_had_no_part_in_the_choice(store: Store) -> None:
    for name in ("graph", "lists", "codes"):
        heard = Heard(table_of(store, name))
        found = tune(heard, recall=0.8, sample=42)
        truth = [query for width, query in heard.log if width is None]
        # where a graph is walked, as many blends are asked as stored records
        every = 42 if name == "lists" else 84
        assert len(truth) == len(set(truth)) == every  # exact search is asked once for each
        asked = [query for width, query in heard.log if width is not None]
        # three of each twenty are asked twice, so that nothing is cold
        last = -(every // 2 + 3) * found.confirmations
        choosing, confirming = set(asked[:last]), set(asked[last:])
        assert (len(choosing), len(confirming)) == (every // 2, every // 2)
        assert choosing | confirming == set(truth)
        assert found.tuned.recall.queries == 21  # of blends, as many again
        assert {step.recall.queries for step in found.steps} == {21}


def test_a_walk_is_as_wide_as_vectors_need_that_are_not_in_the_graph(store: Store) -> None:
    table = table_of(store, "graph")
    unknown = spread(300, DIM, seed=17)

    def found(narrow: Layout, queries: Floats | None) -> float:
        asked, _ = evaluate.ask(table, k=10, queries=queries, where=None, sample=150, seed=2)
        return evaluate.measure(table.searched(narrow), evaluate.truth(table, asked, end=inf)).recall(10).mean

    tuned = tune(table).after
    assert found(tuned, unknown) > 0.93
    # stored records themselves are found by a walk that is far narrower
    before = table.manifest.layout
    stored = table.sample(150, seed=2)
    asked = evaluate.Queries(10, None, stored.vectors, None, list(stored.ids), [False] * 150)
    alone = evaluate.measure(table.searched(LAYOUTS["graph"]), evaluate.truth(table, asked, end=inf))
    assert alone.recall(10).mean > found(LAYOUTS["graph"], unknown) + 0.05
    assert found(LAYOUTS["graph"], None) < alone.recall(10).mean - 0.05
    assert table.manifest.layout == before


def test_no_narrower_width_that_was_measured_meets_the_target(store: Store) -> None:
    queries = spread(160, DIM, seed=19)
    found = tune(table_of(store, "graph"), queries=queries)
    for step in found.steps:
        if widths.walk(step.layout) < widths.walk(found.after):
            assert step.recall.low < 0.95, step
    assert found.tuned.recall.mean >= 0.95
    higher = tune(table_of(store, "graph"), recall=0.99, queries=queries)
    assert widths.walk(higher.after) > widths.walk(found.after)
    # unknown queries may need more than blends of known ones
    guessed = tune(table_of(store, "graph"))
    enough = [step.layout for step in guessed.steps if step.recall.mean >= 0.95]
    assert widths.walk(guessed.after) >= 1.5 * min(map(widths.walk, enough))


def test_lists_are_probed_as_far_as_needed(store: Store) -> None:
    found = tune(table_of(store, "lists"))
    assert found.tuned.met
    index = found.after.index
    assert index is not None
    assert 1 < index.probes < 24
    assert found.after == replace(LAYOUTS["lists"], index=index)
    assert store.open("lists").layout == found.after
    every = tune(table_of(store, "lists"), recall=1.0)
    assert every.tuned.met
    assert index.probes < widths.walk(every.after) <= 24


def test_of_a_scanned_copy_only_the_oversampling_is_tuned(store: Store) -> None:
    found = tune(table_of(store, "scan"))
    assert found.tuned.met
    assert found.after == replace(LAYOUTS["scan"], oversample=found.after.oversample)
    assert found.after.oversample > 1
    assert store.open("scan").layout == found.after


def test_oversampling_and_walk_are_traded_for_each_other(store: Store) -> None:
    found = tune(table_of(store, "codes"), recall=0.8)
    assert found.tuned.met
    index = found.after.index
    assert index is not None
    assert found.after.oversample > LAYOUTS["codes"].oversample
    # a narrower walk than the candidates that have to come would change nothing
    assert index.ef_search >= found.after.oversample * 10
    for step in found.steps:
        assert step.layout.index is not None
        assert step.layout.index.ef_search >= min(11 * step.layout.oversample, 1000)


def test_the_same_seed_finds_the_same(store: Store) -> None:
    for name in ("graph", "lists", "scan"):
        one, other = (tune(table_of(store, name), seed=3) for _ in range(2))
        assert one.after == other.after
        assert one.tuned == other.tuned
        assert [(step.layout, step.recall) for step in one.steps] == [
            (step.layout, step.recall) for step in other.steps
        ]
    # latency decides between pairs, so that only what was sufficient is the same
    queries = spread(80, DIM, seed=19)
    one, other = (tune(table_of(store, "codes"), recall=0.8, seed=3, queries=queries) for _ in range(2))
    measured = {step.layout: step.recall for step in one.steps}
    assert {step.layout: step.recall for step in other.steps} == measured
    assert {one.after, other.after} <= set(measured) or one.confirmations + other.confirmations > 2


def test_a_filtered_search_finds_k_before_and_after(store: Store) -> None:
    tune(table_of(store, "graph"))
    hits = store.open("graph").search(VECTORS[7], k=10, where={"tenth": 3})
    assert len(hits) == 10
    assert {hit.metadata["tenth"] for hit in hits} == {3}


# --- where confirming fails ---------------------------------------------------------------------------


def halves(easy: Floats, hard: Floats, *, seed: int) -> Floats:
    """Queries of which tuning by this seed chooses with the easy ones and confirms with the hard ones."""
    order = np.random.default_rng(seed).permutation(len(easy) * 2)
    queries = np.empty((len(order), easy.shape[1]), np.float32)
    queries[order[0::2]], queries[order[1::2]] = easy, hard
    return queries


def test_where_confirming_fails_the_width_grows_until_it_is_confirmed(store: Store) -> None:
    lists = table_of(store, "lists")
    # whoever asks for what is stored in the middle of a list finds it in the first
    middle = VECTORS[:400]
    alone = lists.searched(replace(LAYOUTS["lists"], index=Index("ivfflat", lists=24, probes=4)))
    truth = lists.search(middle, None, k=10, where=None, exact=True)
    near = alone.search(middle, None, k=10, where=None, exact=False)
    shares = np.array(
        [
            len({hit.id for hit in hits} & {hit.id for hit in right})
            for hits, right in zip(near, truth, strict=True)
        ]
    )
    order = np.argsort(-shares, kind="stable")
    queries = halves(middle[order[:40]], middle[order[-40:]], seed=2)
    found = tune(lists, queries=queries, seed=2, recall=0.9)
    assert found.tuned.met
    assert found.confirmations > 1
    assert not found.tuned.held_out
    chosen = {step.layout for step in found.steps if step.recall.mean >= 0.9}
    assert widths.walk(found.after) > min(map(widths.walk, chosen))
    # the easy ones would have been content with less
    assert min(map(widths.walk, chosen)) <= 7


def test_a_target_that_nothing_meets_is_said_to_be_missed_with_what_would_meet_it(store: Store) -> None:
    found = tune(table_of(store, "codes"), recall=1.0)
    assert not found.tuned.met
    papers = store.open("codes")
    assert papers.manifest.tuned == found.tuned
    assert papers.manifest.recall == 1.0
    best = max(step.recall.mean for step in found.steps)
    after = next(step for step in found.steps if step.layout == found.after)
    assert after.recall.mean >= best - 0.01
    most, exact, layout, graph = (one for one in found.advice if not one.startswith("Time"))
    assert f"recall@10 {found.tuned.recall}" in most
    assert f"oversampling {found.after.oversample} " in most
    assert f"{found.exact_p50_ms:.1f} ms" in exact
    assert "exact=True" in exact
    assert "in bit" in layout
    assert "m=16 and ef_construction=64" in graph
    assert str(found).startswith("NOT met: recall@10 0.")
    # what would meet it does
    hits = papers.search_many(VECTORS[:20], k=10, exact=True)
    truth = np.argsort(-(VECTORS[:20] @ VECTORS.T), axis=1)[:, :10]
    assert [{hit.id for hit in one} for one in hits] == [
        {data.names(ROWS)[row] for row in one} for one in truth
    ]


# --- what needs no tuning -----------------------------------------------------------------------------


def test_without_index_the_target_is_met_by_definition(tmp_path: Path) -> None:
    with vecbridge.connect(f"flat:{tmp_path}") as store:
        for name, layout in (("whole", Layout()), ("short", Layout(shorten=Shorten("truncate", 16)))):
            papers = store.create(name, dim=DIM, nested=(16,), layout=layout)
            papers.upsert(data.names(100), VECTORS[:100])
            found = tune(papers._table, recall=0.99, limits=limits("flat"), sample=30)
            assert found.tuned.met
            assert (found.before, found.after, found.steps, found.confirmations) == (layout, layout, (), 0)
            assert found.tuned.recall == vecbridge.recall.Recall(1.0, 1.0, 1.0, 30)
            assert found.exact_p50_ms > 0
            assert store.open(name).manifest.tuned == found.tuned
            assert store.open(name).manifest.recall == 0.99
    # the loss at the door is no part of it, and that is said
    assert "truncated to 16 of 48 dimensions" in found.against
    assert "every search is exact on stored float32 vectors truncated to 16 of 48" in str(found)


def test_records_so_few_that_the_store_compares_all_leave_the_width_as_planned(tmp_path: Path) -> None:
    layout = Layout(index=Index("hnsw", ef_search=200))
    with vecbridge.connect(f"qdrant:{tmp_path}") as store:
        papers = store.create("few", dim=DIM, layout=layout)
        papers.upsert(data.names(ROWS), VECTORS)
        papers.build_index()
        found = tune(papers._table, limits=EDGE)
        narrow = [step for step in found.steps if widths.walk(step.layout) == 11]
        assert narrow[0].recall.mean == 1.0
        assert found.tuned.met
        # Qdrant scans what is below 10,000 kB: a walk of 11 would be found to do, and fail later
        assert found.after == layout
        assert "tune again when there are more" in found.advice[0]
        assert store.open("few").layout == layout


def test_a_graph_of_qdrant_is_tuned(tmp_path: Path) -> None:
    # above 10,000 kB, from where on Qdrant walks the graph
    vectors = np.ascontiguousarray(np.tile(spread(1_400, 64, seed=4), (1, 32)), np.float32)
    layout = Layout(index=Index("hnsw", m=4, ef_construction=8, ef_search=900))
    with vecbridge.connect(f"qdrant:{tmp_path}") as store:
        papers = store.create("many", dim=vectors.shape[1], layout=layout)
        papers.upsert(data.names(len(vectors)), vectors)
        papers.build_index()
        found = tune(papers._table, limits=EDGE, recall=0.9)
        measured = [step.recall.mean for step in found.steps]
        assert min(measured) < max(measured)
        assert found.tuned.met
        assert widths.walk(found.after) < 900
        assert papers.layout == found.after
    with vecbridge.connect(f"qdrant:{tmp_path}") as store:
        assert store.open("many").layout == found.after


# --- what cannot be tuned, and little time --------------------------------------------------------------


def test_an_empty_collection_is_not_tuned(store: Store) -> None:
    papers = store.create("empty", dim=DIM, layout=LAYOUTS["graph"])
    with pytest.raises(InputError, match="'empty' is empty: there is nothing to search; load it"):
        tune(papers._table)
    papers.upsert(["one"], VECTORS[:1])
    papers.build_index()
    with pytest.raises(
        InputError, match=r"expected 2 or more queries.* got 1 .the collection holds 1 record.;"
    ):
        tune(papers._table)
    with pytest.raises(InputError, match=r"got 0 .the collection holds 1 record"):
        tune(papers._table, queries=VECTORS[:0])
    assert papers.manifest.tuned is None
    store.drop("empty")


def test_an_index_that_is_not_built_is_not_tuned(store: Store) -> None:
    papers = store.create("unbuilt", dim=DIM, layout=LAYOUTS["graph"])
    papers.upsert(data.names(50), VECTORS[:50])
    with pytest.raises(IndexFailure, match=r"'unbuilt' to be ready, it is missing.*build_index, then tune"):
        tune(papers._table)
    with pytest.raises(IndexFailure, match="build it with build_index"):
        tuning.sweep(papers._table, k=3, queries=None, sample=9, seed=0, seconds=None, limits=PGVECTOR)
    store.drop("unbuilt")


@pytest.mark.parametrize("target", [0, 1.01, -0.5, float("nan"), "0.9", True, None])
def test_a_target_that_is_no_share_is_refused(store: Store, target: Any) -> None:
    with pytest.raises(InputError, match=r"expected a recall above 0, up to 1, such as 0\.95, got "):
        tune(table_of(store, "graph"), recall=target)


def test_fewer_records_than_k_are_tuned_all_the_same(store: Store) -> None:
    papers = store.create("few", dim=DIM, layout=LAYOUTS["graph"])
    # twins and triplets, too: what is equally near is equally right
    papers.upsert(data.names(7), np.repeat(VECTORS[:3], 3, axis=0)[:7])
    papers.build_index()
    found = tune(papers._table, recall=1.0)
    assert found.tuned.met
    assert found.tuned.recall.queries <= 4
    # so few queries prove little, and the interval says so
    assert found.tuned.recall.low < 0.6
    store.drop("few")


def test_without_time_ten_queries_of_each_half_are_asked_and_it_is_said(store: Store) -> None:
    found = tune(table_of(store, "graph"), seconds=0)
    assert found.steps == ()
    assert found.after == found.before
    assert found.tuned.recall.queries == 5  # of stored records, and of blends
    assert not found.tuned.met
    assert found.advice[0].startswith("Time ran out after 20 of 160 queries")
    assert found.advice[1].startswith("Time ran out after 0 widths had been measured")
    assert store.open("graph").manifest.tuned == found.tuned


def test_progress_never_goes_back_and_ends_with_all(store: Store) -> None:
    heard: list[tuple[str, int, int | None]] = []
    tune(table_of(store, "lists"), progress=lambda stage, done, total: heard.append((stage, done, total)))
    assert {stage for stage, _, _ in heard} == {"tuning"}
    totals = {total for _, _, total in heard}
    assert len(totals) == 1
    done = [done for _, done, _ in heard]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == totals.pop()


def test_what_was_found_is_ready_for_json(store: Store) -> None:
    found = tune(table_of(store, "graph"))
    told = json.loads(json.dumps(found.to_dict()))
    assert told["met"] is True
    assert told["tuned"]["recall"]["mean"] == found.tuned.recall.mean
    assert told["after"]["index"]["ef_search"] == widths.walk(found.after)
    assert len(told["steps"]) == len(found.steps)


# --- sweeping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["graph", "lists", "scan", "codes"])
def test_a_sweep_shows_recall_and_latency_from_narrow_to_wide(store: Store, name: str) -> None:
    table = table_of(store, name)
    manifest = table.manifest
    steps = tuning.sweep(table, k=10, queries=None, sample=40, seed=0, seconds=None, limits=PGVECTOR)
    places = [(widths.walk(step.layout), step.layout.oversample) for step in steps]
    assert places == sorted(set(places))
    assert 5 <= len(places) <= 12
    assert manifest.layout in [step.layout for step in steps]
    if name != "scan":
        assert {step.layout.oversample for step in steps} == {manifest.layout.oversample}
    # with two candidates for each hit, a wider walk brings other codes, not better ones
    assert steps[-1].recall.mean > steps[0].recall.mean or name == "codes"
    assert {step.recall.queries for step in steps} == {40}
    assert all(0 < step.p50_ms <= step.p95_ms for step in steps)
    assert table_of(store, name).manifest == manifest


def test_a_sweep_without_index_or_time_is_short(store: Store) -> None:
    ask: dict[str, Any] = {"k": 10, "queries": None, "sample": 40, "seed": 0, "limits": PGVECTOR}
    assert tuning.sweep(table_of(store, "exact"), seconds=None, **ask) == ()
    assert len(tuning.sweep(table_of(store, "graph"), seconds=0, **ask)) == 1


# --- the grid -----------------------------------------------------------------------------------------


def test_widths_stay_within_what_the_backend_takes() -> None:
    old = limits("pgvector@0.7.0")
    for layout, place, k in itertools.product(LAYOUTS.values(), (PGVECTOR, old, EDGE), (1, 10, 700, 5_000)):
        kind = layout.index.kind if layout.index else None
        if kind == "ivfflat" and place is EDGE:
            continue
        grid = widths.grid(layout, asked=k, rows=100_000, limits=place)
        assert bool(grid) == (layout.index is not None)
        for column in grid:
            assert len({one.oversample for one in column}) == 1
            walks = [widths.walk(one) for one in column]
            assert walks == sorted(set(walks))
            for one in column:
                assert one.index is not None
                if kind == "hnsw":
                    bound = place.ranges["hnsw ef_search"]
                    assert bound.low <= one.index.ef_search <= bound.high
                    # pgvector 0.7 cannot go on with a scan: beyond 1,000 candidates it would compare all
                    if place is old and one.oversample > 1:
                        assert k * one.oversample <= 1_000
                if kind == "ivfflat":
                    assert 1 <= one.index.probes <= one.index.lists


def test_oversampling_is_left_alone_where_the_index_knows_all_that_is_stored() -> None:
    for index in (SPARSE, Index("ivfflat", lists=8)):
        grid = widths.grid(Layout(index=index, oversample=4), asked=10, rows=10_000, limits=PGVECTOR)
        assert [column[0].oversample for column in grid] == [1]
    half = Layout(element="float16", index=Index("hnsw", "float16"))
    assert len(widths.grid(half, asked=10, rows=10_000, limits=PGVECTOR)) == 1
    assert len(widths.grid(LAYOUTS["codes"], asked=10, rows=10_000, limits=PGVECTOR)) > 9
    # ten times three is more than all there are
    assert len(widths.grid(LAYOUTS["codes"], asked=10, rows=25, limits=PGVECTOR)) == 3
