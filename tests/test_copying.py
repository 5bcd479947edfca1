"""A collection in another store: the same records, however often it is ended, and whatever else is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from commands import Ran

import vecbridge
from vecbridge import cli, copying, unfinished
from vecbridge.copying import Copied
from vecbridge.errors import (
    CollectionExists,
    CollectionNotFound,
    InputError,
    PlanError,
    StoreError,
    Unavailable,
    VectorError,
)
from vecbridge.manifest import Chunking
from vecbridge.types import Index, Layout, Shorten

if TYPE_CHECKING:
    from vecbridge.types import Floats

DIM, ROWS = 96, 300
MIB = 2**20
EVERY: dict[str, Any] = {
    "null": None,
    "yes": True,
    "no": False,
    "whole": 1,
    "float": 1.0,
    "large": 2**63 - 1,
    "small": -(2**63),
    "huge": 1e300,
    "tiny": 5e-324,
    "point": 0.1,
    "text": 'é\u2028\U0001f600 \\ "quoted"\n',
    "none": [],
    "list": [1, 1.0, True, None, "1", [[]], {"a": {}}],
    "object": {"a": {"b": [{"c": 0}]}, "": "no name"},
    "empty": {},
}


SCHEMES = {"flat": "flat", "edge": "qdrant", "back": "flat"}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flat source is read in several batches."""
    monkeypatch.setattr("vecbridge.backends.flat.table._PART", 50)


@pytest.fixture
def stores(pg: str, place: Path) -> Iterator[dict[str, vecbridge.Store]]:
    """Two flat ones, a PostgreSQL and an Edge, all empty."""
    pytest.importorskip("qdrant_edge")
    folders = {name: f"{scheme}:{place / name}" for name, scheme in SCHEMES.items()}
    opened = {name: vecbridge.connect(url) for name, url in {**folders, "pgvector": pg}.items()}
    yield opened
    for store in opened.values():
        store.close()


@pytest.fixture
def flat(place: Path) -> Iterator[vecbridge.Store]:
    with vecbridge.connect(f"flat:{place / 'flat'}") as store:
        yield store


@pytest.fixture
def other(place: Path) -> Iterator[vecbridge.Store]:
    with vecbridge.connect(f"flat:{place / 'other'}") as store:
        yield store


def vectors(rows: int = ROWS, seed: int = 0, *, unit: bool = False) -> Floats:
    """Some of unit length, as models return them, others of all lengths unless `unit`."""
    chance = np.random.default_rng(seed)
    made = chance.standard_normal((rows, DIM)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    if unit:
        return made
    made[::2] *= np.exp(chance.normal(0, 8, (len(made[::2]), 1))).astype(np.float32)
    return made


def filled(
    store: vecbridge.Store, name: str = "papers", *, rows: int = ROWS, unit: bool = False, **options: Any
) -> vecbridge.Collection:
    collection = store.create(name, dim=DIM, rows=rows, **options)
    collection.upsert(
        [f"id-{row:04}" for row in range(rows)],
        vectors(rows, unit=unit),
        documents=[None if row % 7 == 0 else f"text {row}" for row in range(rows)],
        metadata=[{**EVERY, "row": row} if row % 3 else {} for row in range(rows)],
        digests=[bytes([row % 256]) * (row % 33) if row % 5 else None for row in range(rows)],
    )
    return collection


def content(collection: vecbridge.Collection) -> dict[str, tuple[bytes, str | None, str, bytes | None]]:
    """Everything in it, by id; vectors to the bit."""
    return {
        id: (
            batch.vectors[row].tobytes(),
            batch.documents[row],
            json.dumps(batch.metadata[row], sort_keys=True),
            batch.digests[row],
        )
        for batch in collection.scan()
        for row, id in enumerate(batch.ids)
    }


class Ended(Exception):
    """What ends a run in the middle."""


def ended(source: vecbridge.Collection, to: vecbridge.Store, *, after: int = 100) -> int:
    """End a copy once so many records are written; how many there are then."""

    def end(stage: str, done: int, total: int | None) -> None:
        if stage == "copying" and done >= after:
            raise Ended

    with pytest.raises(Ended, match=r"^$"):
        vecbridge.copy(source, to, progress=end)
    return to.open(source.name).count()


# --- what is copied ----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_round_all_stores_every_record_comes_back_to_the_bit(
    stores: dict[str, vecbridge.Store], metric: Any
) -> None:
    cut = Chunking(200, 20, "cl100k_base")
    source = filled(
        stores["flat"], metric=metric, model="some-model", filterable={"row": "number"}, chunking=cut
    )
    before, current = content(source), source
    assert len(before) == ROWS
    for name in ("pgvector", "edge", "back"):
        done = vecbridge.copy(current, stores[name])
        assert (done.records, done.written, done.removed) == (ROWS, ROWS, 0)
        assert (done.compared, done.neighbours, done.notes) == (200, 10, ())
        assert (done.source, done.to) == (f"{current.url} papers", stores[name].url)
        current = stores[name].open("papers")
        assert content(current) == before
        manifest = current.manifest
        assert (manifest.space, manifest.chunking) == (source.space, cut)
        assert (manifest.filterable, manifest.copy_of) == ({"row": "number"}, None)
        assert manifest.rows == ROWS
    assert content(source) == before


def test_an_ingest_that_filled_the_source_goes_on_in_the_copy(place: Path, other: vecbridge.Store) -> None:
    lines = [json.dumps({"id": f"a{row}", "text": f"text number {row}"}) + "\n" for row in range(60)]
    (place / "corpus.jsonl").write_text("".join(lines))
    at, to = f"flat:{place / 'from'}", other.url

    def load(url: str) -> tuple[int, int, int]:
        made = vecbridge.ingest(
            str(place / "corpus.jsonl"), to=url, collection="night", embedder="hashing:64", evaluate=False,
            source_name="corpus", prune=True, prune_limit=1.0,
        )  # fmt: skip
        return made.written, made.unchanged, made.removed

    assert load(at) == (60, 0, 0)
    with vecbridge.connect(at) as store:
        vecbridge.copy(store.open("night"), other)
    assert load(to) == (0, 60, 0)
    (place / "corpus.jsonl").write_text("".join([*lines[:40], lines[41].replace("number", "changed")]))
    assert load(to) == (1, 40, 19)


def test_another_name_in_the_same_store_and_no_record_at_all(flat: vecbridge.Store) -> None:
    source = filled(flat)
    assert vecbridge.copy(source, flat, name="twin").records == ROWS
    assert content(flat.open("twin")) == content(source)
    nothing = flat.create("nothing", dim=DIM)
    done = vecbridge.copy(nothing, flat, name="still-nothing")
    assert (done.records, done.compared, done.neighbours) == (0, 0, 0)
    assert flat.open("still-nothing").manifest.copy_of is None


def test_the_plan_is_made_for_the_place_and_the_wishes(stores: dict[str, vecbridge.Store]) -> None:
    source = filled(stores["flat"])
    plans: list[vecbridge.Plan] = []
    told: list[tuple[str, int, int | None]] = []
    to = stores["pgvector"]

    def tell(stage: str, done: int, total: int | None) -> None:
        told.append((stage, done, total))

    done = vecbridge.copy(source, to, rows=5_000_000, on_plan=plans.append, progress=tell)
    goal = stores["pgvector"].open("papers")
    assert [plan.rows for plan in plans] == [goal.manifest.rows] == [5_000_000]
    assert goal.layout == plans[0].layout
    assert goal.layout.index is not None
    assert done.index.status == "ready"
    assert done.index.used
    copied = [(at, total) for stage, at, total in told if stage == "copying"]
    assert copied == [(at, ROWS) for at in range(0, ROWS + 1, 50)]
    assert [(at, total) for stage, at, total in told if stage == "comparing"][-1] == (10, 10)
    assert "index" in {stage for stage, _, _ in told}


def test_a_recall_that_was_asked_for_is_tuned_for_in_the_copy(stores: dict[str, vecbridge.Store]) -> None:
    source = filled(stores["flat"], unit=True, rows=120, recall=0.9)
    layout = Layout(index=Index("hnsw", "float16", Shorten("pca", 32), ef_search=40), oversample=8)
    done = vecbridge.copy(source, stores["pgvector"], layout=layout)
    goal = stores["pgvector"].open("papers")
    assert done.tuned is not None
    assert done.tuned == goal.manifest.tuned
    assert (done.tuned.target, goal.manifest.recall) == (0.9, 0.9)
    assert content(goal) == content(source)
    # another recall, asked for when it goes on
    ended(source, stores["back"])
    assert vecbridge.copy(source, stores["back"], recall=0.8).records == 120
    assert stores["back"].open("papers").manifest.recall == 0.8


def test_with_a_recall_the_plan_rests_on_what_is_stored(
    flat: vecbridge.Store, other: vecbridge.Store
) -> None:
    source = filled(flat, unit=True, rows=600)
    plans: list[vecbridge.Plan] = []
    vecbridge.copy(source, other, recall=0.9, on_plan=plans.append)
    assert plans[0].evidence is not None
    assert plans[0].target == other.open("papers").manifest.recall == 0.9


@pytest.mark.parametrize("shorten", [Shorten("truncate", 32), Shorten("pca", 32)])
@pytest.mark.parametrize("to", ["pgvector", "edge", "back"])
def test_what_the_source_shortened_is_copied_as_it_is(
    stores: dict[str, vecbridge.Store], shorten: Shorten, to: str
) -> None:
    source = filled(stores["flat"], layout=Layout(shorten=shorten), sample=vectors(), nested=[64, 32])
    done = vecbridge.copy(source, stores[to])
    assert done.notes == (
        "the source keeps its vectors shortened from 96 to 32 dimensions; they were copied as they are",
    )
    assert done.neighbours == 10
    goal = stores[to].open("papers")
    assert goal.layout.shorten == shorten
    assert goal.space == source.space
    assert content(goal) == content(source)
    # whole vectors come in, and whole queries
    goal.upsert(["new"], vectors(1, seed=9))
    source.upsert(["new"], vectors(1, seed=9))
    assert content(goal) == content(source)
    found = [[hit.id for hit in one.search(vectors(1, seed=9)[0], exact=True)] for one in (source, goal)]
    assert found[0] == found[1]
    with pytest.raises(InputError, match="shortened as they are, to 32 dimensions: what was cut off is gone"):
        vecbridge.copy(source, stores[to], name="whole", layout=Layout())
    assert stores[to].collections() == ["papers"]


@pytest.mark.parametrize("to", ["pgvector", "edge", "back"])
def test_halves_stay_halves_and_wholes_may_become_them(stores: dict[str, vecbridge.Store], to: str) -> None:
    source = stores["flat"].create("halves", dim=DIM, layout=Layout(element="float16"))
    source.upsert([f"{row}" for row in range(ROWS)], np.random.default_rng(1).normal(size=(ROWS, DIM)))
    done = vecbridge.copy(source, stores[to])
    goal = stores[to].open("halves")
    assert goal.layout.element == "float16"
    if to == "edge":
        rounded = "half precision has rounded vectors once more: this store scales them to length 1"
        assert (done.notes, done.neighbours) == ((rounded,), 0)
        ids = [f"{row}" for row in range(ROWS)]
        np.testing.assert_allclose(goal.get(ids).vectors, source.get(ids).vectors, rtol=2e-3, atol=1e-5)
        assert vecbridge.copy(source, stores[to]).written == 0
        return
    assert (done.notes, done.neighbours) == ((), 10)
    assert content(goal) == content(source)
    whole = stores["flat"].create("wholes", dim=DIM)
    whole.upsert([f"{row}" for row in range(ROWS)], np.random.default_rng(1).normal(size=(ROWS, DIM)))
    less = vecbridge.copy(whole, stores[to], layout=Layout(element="float16"))
    assert less.notes == ("vectors of float32 in the source are kept in half precision (float16) here",)
    assert (less.compared, less.neighbours) == (200, 0)
    assert content(stores[to].open("wholes")) == content(source)


# --- going on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["pgvector", "edge", "back"])
def test_a_run_that_was_ended_is_gone_on_with(stores: dict[str, vecbridge.Store], to: str) -> None:
    source = filled(stores["flat"])
    before = content(source)
    there = ended(source, stores[to])
    assert there == 100
    goal = stores[to].open("papers")
    assert goal.manifest.copy_of == f"{source.url} papers"
    done = vecbridge.copy(source, stores[to])
    assert (done.records, done.written) == (ROWS, ROWS - there)
    assert content(goal) == content(source) == before
    again = vecbridge.copy(source, stores[to])
    assert (again.records, again.written, again.compared, again.neighbours) == (ROWS, 0, 200, 10)
    assert again.notes == ("it was there already: nothing was written",)


@pytest.mark.parametrize("stage", ["comparing", "index"])
def test_a_run_that_was_ended_late_is_gone_on_with(stores: dict[str, vecbridge.Store], stage: str) -> None:
    source = filled(stores["flat"], unit=True)

    def end(now: str, done: int, total: int | None) -> None:
        if now == stage:
            raise Ended

    layout = Layout(index=Index("hnsw", "float16", ef_search=40), oversample=2)
    with pytest.raises(Ended, match=r"^$"):
        vecbridge.copy(source, stores["pgvector"], layout=layout, progress=end)
    assert stores["pgvector"].open("papers").manifest.copy_of is not None
    done = vecbridge.copy(source, stores["pgvector"], layout=layout)
    assert (done.written, done.index.used) == (0, True)
    assert stores["pgvector"].open("papers").manifest.copy_of is None


def test_whatever_differs_in_an_unfinished_copy_is_mended(
    flat: vecbridge.Store, other: vecbridge.Store
) -> None:
    source = filled(flat)
    assert ended(source, other) == 100
    goal = other.open("papers")
    whole = source.get(["id-0001", "id-0002", "id-0004", "id-0007"])
    given = {
        "documents": list(whole.documents),
        "metadata": list(whole.metadata),
        "digests": list(whole.digests),
    }

    def spoil(row: int, **changed: Any) -> None:
        one = {key: [values[row]] for key, values in given.items()} | changed
        vector = one.pop("vector", whole.vectors[row : row + 1])
        goal.upsert([whole.ids[row]], vector, **one)

    spoil(0, vector=np.nextafter(whole.vectors[:1], np.float32(9)))
    spoil(1, documents=["another"])
    spoil(2, metadata=[{**whole.metadata[2], "whole": 1.0}])
    spoil(3, digests=[None])
    goal.upsert(["stale"], vectors(1))
    source.delete(["id-0005"])
    done = vecbridge.copy(source, other)
    assert (done.records, done.written, done.removed) == (ROWS - 1, ROWS - 100 + 4, 2)
    assert content(goal) == content(source)


# --- a source that others write to -------------------------------------------------------------------


def test_what_changed_meanwhile_is_copied_and_said(flat: vecbridge.Store, other: vecbridge.Store) -> None:
    source = filled(flat)
    writes = 0

    def write(stage: str, done: int, total: int | None) -> None:
        nonlocal writes
        if stage == "copying" and done == 250 and not writes:
            writes += 1
            source.upsert(["id-0001", "a-new-one"], vectors(2, seed=5), digests=[b"changed", b"new"])
            source.delete(["id-0002"])

    done = vecbridge.copy(source, other, progress=write)
    assert writes == 1
    assert done.notes == (
        "the source was written to while it was copied; the copy has the records that it holds now",
    )
    assert (done.records, done.removed) == (ROWS, 1)
    assert content(other.open("papers")) == content(source)


def test_a_source_that_is_written_to_all_the_time_is_not_said_to_be_copied(
    flat: vecbridge.Store, other: vecbridge.Store
) -> None:
    source = filled(flat)
    written = 0

    def write(stage: str, done: int, total: int | None) -> None:
        nonlocal written
        if stage == "copying" and done:
            written += 1
            source.upsert([f"a{written}"], vectors(1, seed=written))

    with pytest.raises(
        StoreError, match="not the same: the source is being written to; copy again while nobody"
    ):
        vecbridge.copy(source, other, progress=write)
    assert other.open("papers").manifest.copy_of is not None
    assert vecbridge.copy(source, other).records == ROWS + written
    assert content(other.open("papers")) == content(source)


def test_a_change_that_no_digest_tells_of_is_found_among_what_is_compared(
    flat: vecbridge.Store, other: vecbridge.Store
) -> None:
    source = filled(flat, rows=200)

    def write(stage: str, done: int, total: int | None) -> None:
        if stage == "copying" and done == 200:
            source.upsert(["id-0000"], vectors(1, seed=8))

    with pytest.raises(StoreError, match=r"1 of 200 records .* differ from their copy, 'id-0000' among them"):
        vecbridge.copy(source, other, progress=write)
    assert vecbridge.copy(source, other).written == 1
    assert content(other.open("papers")) == content(source)


def test_a_copy_whose_neighbours_are_others_is_not_said_to_be_one(
    flat: vecbridge.Store, other: vecbridge.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = filled(flat)
    found = copying._Run._found
    far = f"flat:{other.url.partition(':')[2]}"

    def wrong(table: Any, query: Floats) -> Any:
        hits = found(table, query)
        return (
            hits[1:] + hits[:0] + found(table, -query)[:1] if far.endswith(table.place.parent.name) else hits
        )

    monkeypatch.setattr(copying._Run, "_found", staticmethod(wrong))
    with pytest.raises(StoreError, match=r"the 10 nearest neighbours of .* are not the same"):
        vecbridge.copy(source, other)
    monkeypatch.undo()
    assert vecbridge.copy(source, other).neighbours == 10


def test_what_was_completed_meanwhile_is_not_robbed_of_new_records(
    flat: vecbridge.Store, other: vecbridge.Store, place: Path
) -> None:
    """A second process is faster, and its user goes on at once."""
    source = filled(flat)

    def faster(stage: str, done: int, total: int | None) -> None:
        if stage == "copying" and done == 100:
            with vecbridge.connect(flat.url) as there, vecbridge.connect(other.url) as here:
                assert vecbridge.copy(there.open("papers"), here).records == ROWS
                here.open("papers").upsert(["precious"], vectors(1))

    with pytest.raises(StoreError, match=r"another process has completed 'papers' .* nothing was removed"):
        vecbridge.copy(source, other, progress=faster)
    assert set(content(other.open("papers"))) == {*content(source), "precious"}


def test_two_that_copy_at_once_both_end_well(flat: vecbridge.Store, other: vecbridge.Store) -> None:
    source = filled(flat)

    def second() -> Copied:
        with vecbridge.connect(flat.url) as there, vecbridge.connect(other.url) as here:
            return vecbridge.copy(there.open("papers"), here)

    begun, runs = threading.Event(), []
    with ThreadPoolExecutor(1) as pool:

        def start(stage: str, done: int, total: int | None) -> None:
            if not begun.is_set():
                begun.set()
                runs.append(pool.submit(second))

        first = vecbridge.copy(source, other, progress=start)
        assert [first.records, runs[0].result(60).records] == [ROWS, ROWS]
    assert content(other.open("papers")) == content(source)
    assert other.open("papers").manifest.copy_of is None


def test_who_begins_a_moment_later_is_told_to_go_on(
    flat: vecbridge.Store, other: vecbridge.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = filled(flat)
    ended(source, other)
    monkeypatch.setattr("vecbridge.receiving.there", lambda store, name: None)
    with pytest.raises(CollectionExists, match=r"another process has made 'papers' in .* it goes on"):
        vecbridge.copy(source, other)
    monkeypatch.undo()
    assert vecbridge.copy(source, other).written == ROWS - 100


def test_a_store_that_is_lost_is_not_taken_for_one_that_differs(
    flat: vecbridge.Store, other: vecbridge.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its user would be told to drop what is a complete copy."""
    source = filled(flat)
    vecbridge.copy(source, other)

    def lost(*_: object) -> int:
        raise Unavailable("the connection is lost")

    monkeypatch.setattr(copying._Run, "_neighbours", lost)
    with pytest.raises(Unavailable, match="the connection is lost"):
        vecbridge.copy(source, other)


# --- what is refused ---------------------------------------------------------------------------------


def test_what_is_something_else_is_left_alone(flat: vecbridge.Store, other: vecbridge.Store) -> None:
    source = filled(flat)
    theirs = other.create("papers", dim=DIM)
    theirs.upsert(["theirs"], vectors(1))
    before = content(theirs)
    with pytest.raises(
        CollectionExists, match=r"does not hold what .* does; drop it, or give the copy another name"
    ):
        vecbridge.copy(source, other)
    assert content(theirs) == before
    other.drop("papers")
    other.create("papers", dim=8)
    with pytest.raises(CollectionExists, match=r"does not hold what .* does"):
        vecbridge.copy(source, other)
    other.drop("papers")
    twin = filled(flat, "twin")
    vecbridge.copy(twin, other, name="papers")
    # the same records, the same space: nobody can tell whose copy it is, and nothing is to be done
    assert vecbridge.copy(source, other).written == 0
    one = source.get(["id-0001"])
    other.open("papers").upsert(one.ids, one.vectors, documents=["changed"], digests=[b"changed"])
    with pytest.raises(CollectionExists, match="does not hold"):
        vecbridge.copy(source, other)


def test_an_unfinished_copy_of_something_else_is_left_alone(
    flat: vecbridge.Store, other: vecbridge.Store
) -> None:
    source, twin = filled(flat), filled(flat, "twin")
    ended(source, other)
    with pytest.raises(CollectionExists, match=r"is an unfinished copy of flat:.* papers; drop it, or"):
        vecbridge.copy(twin, other, name="papers")
    layout = Layout(element="float16")
    with pytest.raises(
        InputError, match="was begun with another layout; leave it out to go on, or drop 'papers'"
    ):
        vecbridge.copy(source, other, layout=layout)
    flat.drop("papers")
    anew = flat.create("papers", dim=DIM, metric="l2")
    with pytest.raises(InputError, match="was begun when the source held other vectors; drop 'papers' there"):
        vecbridge.copy(anew, other)
    assert other.open("papers").count() == 100


def test_an_unfinished_copy_is_no_source(
    flat: vecbridge.Store, other: vecbridge.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    source = filled(flat, unit=True)
    ended(source, other)
    goes_on = f"vecbridge copy {flat.url} papers {other.url} papers"
    part = other.open("papers")
    with pytest.raises(InputError, match=rf"got papers in .* go on with it first: {re.escape(goes_on)}"):
        vecbridge.copy(part, flat, name="part")
    with pytest.raises(InputError, match="is an unfinished copy of"):
        vecbridge.reembed(other.url, "papers", embedder="hashing:24", cache=False)
    assert flat.collections() == other.collections() == ["papers"]
    # what it is, and what goes on with it
    told = command(capsys, "info", other.url, "papers")
    assert f"unfinished a copy of {flat.url} papers go on with: {goes_on}" in " ".join(told.out.split())
    assert command(capsys, "info", other.url, "papers", "--json").json["unfinished_copy_of"] == (
        f"{flat.url} papers"
    )
    findings = command(capsys, "doctor", other.url, "--json").json["places"][0]["findings"]
    (found,) = [one for one in findings if one["subject"] == "papers: copy"]
    assert found["level"] == "warning"
    assert found["found"] == f"it is an unfinished copy of {flat.url} papers"
    assert found["remedy"] == f"go on with it: {goes_on}"
    ran = command(capsys, *goes_on.split()[1:])
    assert ran.code == 0, ran.err
    assert content(other.open("papers")) == content(source)
    for line in (["info", other.url, "papers"], ["doctor", other.url]):
        assert "unfinished" not in command(capsys, *line).out


def test_no_password_is_kept_or_said(pg: str, flat: vecbridge.Store, place: Path) -> None:
    """Neither that of the source, which the copy names, nor that of the copy."""
    secret = "s3cr%21t"
    schemed, _, rest = pg.partition("://")
    user, _, host = rest.rpartition("@")
    typed = f"{schemed}://{user.partition(':')[0] or 'postgres'}:{secret}@{host}"
    with vecbridge.connect(pg) as plain:
        filled(plain)
    with vecbridge.connect(typed) as store:
        source = store.open("papers")
        assert ended(source, flat) > 0
        part = flat.open("papers")
        said = [
            repr(source),
            repr(store),
            part.manifest.dump()[0],
            unfinished.command(part.manifest, flat.url),
        ]
        with pytest.raises(InputError, match="unfinished copy") as refused:
            vecbridge.export_parquet(part, place / "part.parquet")
        with pytest.raises(CollectionExists, match="unfinished copy of postgresql:") as taken:
            vecbridge.copy(filled(flat, "twin"), flat, name="papers")
        with pytest.raises(InputError, match="expected another store") as same:
            vecbridge.copy(source, store)
        done = vecbridge.copy(source, flat)
        back = vecbridge.copy(flat.open("papers"), store, name="back")
        said += [*map(str, (refused.value, taken.value, same.value, done, back))]
        said += [json.dumps(one.to_dict()) for one in (done, back)]
        said += [store.open("back").manifest.dump()[0]]
        vecbridge.export_parquet(store.open("back"), place / "back.parquet")
    assert f"unfinished copy of {source.url} papers" in said[4]
    for text in said:
        assert secret not in text
        assert "s3cr!t" not in text
    for file in (place / "flat").rglob("*"):
        if file.is_file():
            assert b"s3cr" not in file.read_bytes()
    assert b"s3cr" not in (place / "back.parquet").read_bytes()


def test_bad_input_makes_nothing(flat: vecbridge.Store, other: vecbridge.Store) -> None:
    source = filled(flat)
    with pytest.raises(InputError, match="expected another store or another name for the copy of 'papers'"):
        vecbridge.copy(source, flat)
    with pytest.raises(InputError, match="expected a collection name of 1 to 48"):
        vecbridge.copy(source, other, name="no good")
    with pytest.raises(InputError, match="recall"):
        vecbridge.copy(source, other, recall=2)
    with pytest.raises(InputError, match="expected rows of at least 0, got -1"):
        vecbridge.copy(source, other, rows=-1)
    with pytest.raises(PlanError, match="this layout cannot be made on flat:"):
        vecbridge.copy(source, other, layout=Layout(index=Index("hnsw")))
    with pytest.raises(PlanError, match="disk"):
        vecbridge.copy(source, other, disk=10)
    assert other.collections() == []


def test_what_the_layout_cannot_hold_ends_it_and_is_said_once(
    flat: vecbridge.Store, other: vecbridge.Store
) -> None:
    source = filled(flat)
    with pytest.raises(VectorError, match="half precision, which ends below 65,520") as raised:
        vecbridge.copy(source, other, layout=Layout(element="float16"))
    assert raised.value.__context__ is None
    assert other.open("papers").manifest.copy_of is not None


def test_the_source_may_be_gone_in_the_middle(flat: vecbridge.Store, other: vecbridge.Store) -> None:
    source = filled(flat)

    def drop(stage: str, done: int, total: int | None) -> None:
        if done == 50:
            flat.drop("papers")

    with pytest.raises(CollectionNotFound, match="papers"):
        vecbridge.copy(source, other, progress=drop)
    assert 50 <= other.open("papers").count() < ROWS


def test_one_batch_is_read_ahead_and_no_more(flat: vecbridge.Store) -> None:
    batches = list(filled(flat).scan())
    read = 0

    def reading() -> Iterator[vecbridge.Batch]:
        nonlocal read
        for batch in batches:
            read += 1
            yield batch

    for number, batch in enumerate(copying._ahead(reading())):
        assert batch is batches[number]
        assert read <= number + 2
    assert read == len(batches) == 6


def test_the_summary_says_it_in_a_sentence(flat: vecbridge.Store) -> None:
    done: Copied = vecbridge.copy(filled(flat), flat, name="twin")
    assert str(done) == f"300 records of {flat.url} papers are in twin at {flat.url}: 300 written now"
    assert json.loads(json.dumps(done.to_dict()))["records"] == ROWS


# --- the command -------------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    capsys.readouterr()
    code = cli.run(words)
    said = capsys.readouterr()
    return Ran(code, said.out, said.err)


def test_the_command_copies_and_goes_on(
    flat: vecbridge.Store, other: vecbridge.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    source = filled(flat)
    ended(source, other)
    ran = command(capsys, "copy", flat.url, "papers", other.url)
    assert ran.code == 0, ran.err
    assert "300 records of" in ran.out
    assert "200 written now" in " ".join(ran.out.split())
    assert "copying: 300 of 300" in ran.err
    assert content(other.open("papers")) == content(source)
    again = command(capsys, "copy", flat.url, "papers", other.url, "papers", "--json", "-q")
    assert (again.code, again.json["written"], again.json["to"]) == (0, 0, other.url)
    assert again.err == "Note: it was there already: nothing was written\n"
    twin = command(capsys, "copy", flat.url, "papers", flat.url, "twin", "--rows", "1000")
    assert twin.code == 0, twin.err
    assert "chosen" in twin.err
    assert flat.open("twin").manifest.rows == 1000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["A", "papers"], "got no URL of the copy"),
        (["A", "B"], "got no name of a collection"),
        (["papers", "B"], "got no URL of the source"),
        (["A", "papers", "B", "one", "more"], "got more behind the copy's name"),
    ],
)
def test_what_is_missing_is_said(
    flat: vecbridge.Store,
    other: vecbridge.Store,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    ran = command(capsys, "copy", *({"A": flat.url, "B": other.url}.get(word, word) for word in words))
    assert ran.code == cli.USAGE
    assert f"expected URL... COLLECTION URL... [NAME], {said}" in ran.err


def test_the_exit_code_says_what_it_was(
    flat: vecbridge.Store, other: vecbridge.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(capsys, "copy", flat.url, "papers", other.url).code == cli.NOT_FOUND
    filled(flat)
    other.create("papers", dim=8)
    refused = command(capsys, "copy", flat.url, "papers", other.url, "--json")
    assert refused.code == cli.USAGE
    assert refused.json["error"]["type"] == "CollectionExists"


def test_the_example_of_the_guide_runs(place: Path) -> None:
    guide = (Path(__file__).parent.parent / "docs" / "moving.md").read_text()
    section = guide[guide.index("## Copying between stores") :].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["500 records, 500 written", "some-model paper-7", "0 written"]
