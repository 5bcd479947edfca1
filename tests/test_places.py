"""Stores made of several places: where collections go, how they are found, and what a dead place changes."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

import numpy as np
import pytest
from conftest import Fresh

import vecbridge
from vecbridge import Index, Layout, backends
from vecbridge.backends import SCHEMES, Scheme
from vecbridge.errors import (
    CollectionExists,
    CollectionNotFound,
    InputError,
    ManifestError,
    MissingExtra,
    PlanError,
    StoreError,
    Unavailable,
    UrlError,
)

SECRET = "s3cret"
# nobody listens on port 1
DEAD = f"postgresql://user:{SECRET}@127.0.0.1:1/db"
DEAD_SHOWN = "postgresql://user@127.0.0.1:1/db"


@pytest.fixture
def a(tmp_path: Path) -> str:
    """A flat place."""
    return f"flat:{tmp_path / 'a'}"


@pytest.fixture
def b(tmp_path: Path) -> str:
    """Another flat place."""
    return f"flat:{tmp_path / 'b'}"


def make(url: str, *names: str) -> None:
    """Collections with one record each, made in one place alone."""
    with vecbridge.connect(url) as store:
        for name in names:
            store.create(name, dim=3, rows=10).upsert(["here"], [[1.0, 0.0, 0.0]], documents=[url])


def names(url: str) -> list[str]:
    with vecbridge.connect(url) as store:
        return store.collections()


# --- where collections go -----------------------------------------------------------------------------


def test_3584_dimensions_leave_a_pgvector_without_halfvec_for_a_place_that_scans_them_whole(
    pg062: str, fresh: Fresh, a: str
) -> None:
    old = fresh(pg062)
    with vecbridge.connect(old, a) as store:
        wide = store.create("wide", dim=3584, rows=20_000)
        assert wide.url == a
        assert wide.layout == Layout()
        assert wide.plan is not None
        assert wide.plan.place == a
        (other,) = wide.plan.others
        assert other.place == store.places[0].url
        assert any("2,000 dimensions; these have 3,584" in reason for reason in other.reasons)
        narrow = store.create("narrow", dim=1024, rows=20_000)
        assert narrow.url == store.places[0].url
    assert names(a) == ["wide"]
    assert names(old) == ["narrow"]


def test_3584_dimensions_leave_a_pgvector_without_halfvec_for_a_qdrant_if_one_is_there(
    pg062: str, fresh: Fresh, tmp_path: Path, a: str
) -> None:
    pytest.importorskip("qdrant_edge", reason="Qdrant Edge is not there: pip install qdrant-edge-py")
    edge = f"qdrant:{tmp_path / 'edge'}"
    with vecbridge.connect(fresh(pg062), a, edge) as store:
        wide = store.create("wide", dim=3584, rows=1_000_000, filterable={"year": "number"})
        assert wide.url == edge
        wide.upsert(["x", "y"], np.eye(2, 3584), metadata=[{"year": 1}, {"year": 2}])
        found = store.open("wide")
        assert found.url == edge
        assert [hit.id for hit in found.search(np.eye(2, 3584)[0], where={"year": {"$gt": 1}})] == ["y"]
        assert store.create("narrow", dim=768, rows=1_000_000).url == store.places[0].url
        assert store.collections() == ["narrow", "wide"]


def test_3584_dimensions_stay_in_a_pgvector_that_can_index_them(pg: str, a: str) -> None:
    with vecbridge.connect(pg, a) as store:
        wide = store.create("wide", dim=3584, rows=50_000)
        assert wide.url == store.places[0].url
        assert wide.layout.index is not None
        assert wide.layout.index.element == "float16"
    assert (names(pg), names(a)) == (["wide"], [])


def test_a_plan_tells_what_create_then_does(pg062: str, fresh: Fresh, a: str) -> None:
    with vecbridge.connect(fresh(pg062), a) as store:
        for rows in (1_000, 20_000):
            plan = store.plan(3584, rows=rows)
            made = store.create(f"r{rows}", dim=3584, rows=rows)
            assert (made.url, made.layout) == (plan.place, plan.layout)
        assert store.collections() == ["r1000", "r20000"]


def test_a_given_layout_goes_to_the_first_place_that_can_hold_it(pg: str, a: str) -> None:
    indexed = Layout(index=Index("hnsw", ef_search=40))
    with vecbridge.connect(a, pg) as store:
        assert store.create("scanned", dim=8, layout=Layout()).url == a
        assert store.create("indexed", dim=8, layout=indexed).url == store.places[1].url
        with pytest.raises(PlanError, match=r"on flat:.* has no index.*; on postgresql:.* stops at 2,000"):
            store.create("nowhere", dim=3000, layout=indexed)
        assert store.collections() == ["indexed", "scanned"]


def test_filterable_fields_are_kept_wherever_the_collection_goes(pg062: str, fresh: Fresh, a: str) -> None:
    with vecbridge.connect(fresh(pg062), a) as store:
        store.create("wide", dim=3584, rows=20_000, filterable={"year": "number"})
        assert dict(store.open("wide").manifest.filterable) == {"year": "number"}


# --- one store ----------------------------------------------------------------------------------------


def test_collections_are_used_wherever_they_lie(a: str, b: str) -> None:
    make(a, "one")
    make(b, "two")
    with vecbridge.connect(a, b) as store:
        assert store.collections() == ["one", "two"]
        for name, url in (("one", a), ("two", b)):
            found = store.open(name)
            assert found.url == url
            assert [hit.document for hit in found.search([1.0, 0.0, 0.0], k=5)] == [url]
            assert store.find(name).url == url
        assert (store.urls, store.url) == ((a, b), f"{a} {b}")
        assert repr(store) == f"<vecbridge.Store {a} {b}>"
        store.drop("two")
        with pytest.raises(CollectionNotFound, match=r"no collection 'two' in flat:.*/a flat:.*/b"):
            store.open("two")
        with pytest.raises(CollectionNotFound, match="no collection 'two'"):
            store.drop("two")
        with pytest.raises(CollectionNotFound, match="no such collection"):
            store.find("no/name")
    assert (names(a), names(b)) == (["one"], [])


def test_a_name_is_taken_wherever_it_is(a: str, b: str) -> None:
    make(b, "papers")
    with vecbridge.connect(a, b) as store:
        with pytest.raises(CollectionExists, match=r"collection 'papers' is in flat:.*/b already"):
            store.create("papers", dim=3)
        with pytest.raises(CollectionExists, match=r"flat:.*/b already"):
            store.create("papers", dim=3, layout=Layout())
    assert names(a) == []


def test_a_name_in_two_places_is_never_chosen_between(a: str, b: str) -> None:
    make(a, "papers", "only")
    make(b, "papers")
    with vecbridge.connect(b, a) as store:
        for use in (store.open, store.drop, store.find):
            with pytest.raises(
                InputError, match=r"'papers' in flat:.*/b and in flat:.*/a; connect to one of them alone"
            ):
                use("papers")
        assert store.collections() == ["only", "papers"]
        with pytest.raises(CollectionExists, match=r"'papers' is in flat:.*/b already"):
            store.create("papers", dim=3)
        assert store.open("only").url == a
    with vecbridge.connect(a) as alone:
        alone.drop("papers")
    with vecbridge.connect(b, a) as store:
        assert store.open("papers").url == b


def test_a_collection_that_cannot_be_opened_still_has_its_name_and_can_be_dropped(pg: str, a: str) -> None:
    make(pg, "papers")
    import psycopg

    with psycopg.connect(pg, autocommit=True) as connection:
        ((table,),) = connection.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE '%papers%'"
        ).fetchall()
        connection.execute(f'ALTER TABLE "{table}" DROP COLUMN document')
    with vecbridge.connect(a, pg) as store:
        with pytest.raises(ManifestError, match="not as its manifest says"):
            store.open("papers")
        with pytest.raises(CollectionExists, match="'papers' is in postgresql:"):
            store.create("papers", dim=3)
        make(a, "papers")
        with pytest.raises(InputError, match="connect to one of them alone"):
            store.open("papers")
        with vecbridge.connect(a) as alone:
            alone.drop("papers")
        store.drop("papers")
        assert store.collections() == []


def test_limits_are_those_of_each_place(pg: str, a: str) -> None:
    with vecbridge.connect(a, pg) as store:
        assert [place.limits.backend for place in store.places] == ["flat", "pgvector"]
        with pytest.raises(InputError, match="each has its own limits"):
            store.limits  # noqa: B018 - the attempt is the test
    with vecbridge.connect(a) as store:
        assert store.limits.backend == "flat"
        assert (store.url, store.urls) == (a, (a,))
        assert repr(store.places) == f"(<vecbridge.Place {a}>,)"


def test_places_are_named_once(tmp_path: Path, a: str, b: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for urls in ((a, b, a), ("flat:", "flat:./vecbridge-data")):
        with pytest.raises(UrlError, match=r"expected every \w+( URL)? once, got .* twice"):
            vecbridge.connect(*urls)
    with pytest.raises(UrlError, match="expected one or more store URLs, got none"):
        vecbridge.connect()


def test_everything_is_closed_even_if_one_place_fails_to(
    a: str, b: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(a, "papers")
    store = vecbridge.connect(b, a)
    papers = store.open("papers")
    first = store.places[0]

    def failing() -> None:
        raise StoreError("it does not close")

    monkeypatch.setattr(first, "close", failing)
    with pytest.raises(StoreError, match="it does not close"):
        store.close()
    with pytest.raises(StoreError, match="closed"):
        papers.count()
    with pytest.raises(StoreError, match=r"flat:.*/a was closed; connect again"):
        store.places[1].limits  # noqa: B018 - the attempt is the test


# --- places that do not answer ------------------------------------------------------------------------


def test_a_dead_place_leaves_the_collections_in_the_others_usable(a: str) -> None:
    make(a, "papers", "old")
    with vecbridge.connect(DEAD, a) as store:
        assert store.url == f"{DEAD_SHOWN} {a}"
        papers = store.open("papers")
        assert papers.url == a
        papers.upsert(["more"], [[0.0, 1.0, 0.0]])
        assert papers.search([0.0, 1.0, 0.0], k=1)[0].id == "more"
        store.drop("old")
    assert names(a) == ["papers"]


def test_what_a_dead_place_may_have_is_not_said_to_be_missing(a: str) -> None:
    make(a, "papers")
    with vecbridge.connect(a, DEAD) as store:
        for use in (store.open, store.drop, store.find):
            with pytest.raises(
                Unavailable, match=rf"'other' is in none of the places that answer; .*{DEAD_SHOWN}"
            ) as raised:
                use("other")
            assert SECRET not in str(raised.value)
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
            store.create("other", dim=3)
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
            store.collections()
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
            store.plan(3)
        # what is known to be taken needs nobody else
        with pytest.raises(CollectionExists, match=r"'papers' is in flat:.*/a already"):
            store.create("papers", dim=3)
    assert names(a) == ["papers"]


def test_nothing_but_dead_places_is_no_store(a: str) -> None:
    for urls in ((DEAD,), (DEAD, DEAD.replace("/db", "/other"))):
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1") as raised:
            vecbridge.connect(*urls)
        assert SECRET not in str(raised.value)
    with pytest.raises(UrlError, match=r"got scheme 'flatt'; did you mean flat:\?"):
        vecbridge.connect(a, "flatt:b")


def test_a_place_that_comes_back_is_one_of_the_store_again(
    pg18: str, fresh: Fresh, place: Path, a: str
) -> None:
    real = fresh(pg18)
    make(real, "there", "both")
    make(a, "both")
    (host,) = parse_qs(urlsplit(real).query)["host"]
    way = place / "way"
    url = urlunsplit(urlsplit(real)._replace(query=f"host={quote(str(way), safe='')}"))
    with vecbridge.connect(a, url) as store:
        assert [place.away for place in store.places] == [False, True]
        with pytest.raises(Unavailable, match="'there' is in none of the places that answer"):
            store.open("there")
        assert store.open("both").url == a
        way.symlink_to(host)
        assert store.open("there").url == store.places[1].url
        assert [place.away for place in store.places] == [False, False]
        assert store.collections() == ["both", "there"]
        with pytest.raises(InputError, match="connect to one of them alone"):
            store.open("both")


# --- ingest -------------------------------------------------------------------------------------------


def test_an_ingest_into_several_places_finds_its_collection_again(
    pg062: str, fresh: Fresh, tmp_path: Path, a: str
) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": "x", "text": "one"}\n{"id": "y", "text": "two"}\n')
    old = fresh(pg062)

    def run(*to: str, rows: int = 20_000) -> vecbridge.ingestion.Summary:
        return vecbridge.ingest(
            tmp_path / "t.jsonl", to=to, collection="wide", embedder="hashing:3584", rows=rows, evaluate=False
        )

    first, again, swapped = run(old, a), run(old, a), run(a, old, rows=10)
    assert (first.url, first.new) == (a, 2)
    assert first.plan is not None
    assert first.plan["place"] == a
    assert [(one.url, one.unchanged, one.plan) for one in (again, swapped)] == [(a, 2, None)] * 2
    with pytest.raises(Unavailable, match="'new' is in none of the places that answer"):
        vecbridge.ingest(tmp_path / "t.jsonl", to=[a, DEAD], collection="new", embedder="hashing:8")


def test_filterable_fields_are_those_that_the_collection_was_made_with(tmp_path: Path, a: str) -> None:
    np.save(tmp_path / "v.npy", np.eye(3, dtype=np.float32))
    (tmp_path / "v.jsonl").write_text("".join(f'{{"id": "{n}", "year": {n}}}\n' for n in range(3)))

    def run(fields: dict[str, vecbridge.types.FieldKind] | None) -> int:
        return vecbridge.ingest(
            tmp_path / "v.npy", to=a, collection="v", filterable=fields, evaluate=False
        ).written

    assert run({"year": "number", "draft": "boolean"}) == 3
    assert run({"year": "number"}) == run(None) == 0
    for fields, said in (({"topic": "text"}, r"topic \(text\)"), ({"year": "text"}, r"year \(text\)")):
        with pytest.raises(InputError, match=rf"{said} .*it has draft \(boolean\), year \(number\)"):
            run(fields)  # type: ignore[arg-type]  # a literal in a tuple widens to str
    with pytest.raises(InputError, match="expected 'text', 'number' or 'boolean'"):
        run({"year": "date"})  # type: ignore[dict-item]  # what is refused


# --- URLs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("flat:./a@b/c", "flat:./a@b/c"),
        ("qdrant:/data", "qdrant:/data"),
        (DEAD, DEAD_SHOWN),
        ("postgresql://u:p@h/db?password=x&schema=s&sslmode=require", "postgresql://u@h/db?schema=s"),
        ("postgresql:///db?host=/run&sslpassword=x", "postgresql:///db?host=/run"),
        ("qdrant://key@h:6334", "qdrant://h:6334"),
        ("qdrant+https://key@h?api-key=x", "qdrant+https://h"),
    ],
)
def test_a_place_that_was_never_reached_is_shown_without_secrets(url: str, shown: str) -> None:
    assert backends.shown(url) == shown


def test_only_the_driver_of_an_extra_is_advised_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = "qdrant_edge"

    def connect(url: str) -> None:
        raise ModuleNotFoundError(f"No module named {absent!r}", name=absent)

    module = types.ModuleType("absent_backend")
    module.connect = connect  # type: ignore[attr-defined]  # made here
    monkeypatch.setitem(sys.modules, "absent_backend", module)
    assert SCHEMES["qdrant"].driver == absent
    monkeypatch.setitem(SCHEMES, "qdrant", Scheme("absent_backend", extra="embedded", driver="qdrant_edge"))
    with pytest.raises(
        MissingExtra, match=r"qdrant_edge; install it with pip install 'vecbridge\[embedded\]'"
    ):
        vecbridge.connect("qdrant:./data")
    absent = "grpc"
    with pytest.raises(ModuleNotFoundError, match="No module named 'grpc'"):
        vecbridge.connect("qdrant://localhost")
