"""Collections in Qdrant: manifests, real configurations, gates, and what each search asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_fakes_grpc import grpc_server
from qdrant_fakes_rest import Fault, RestServer, rest_server

from vecbridge import Index, Layout, connect
from vecbridge.backends import qdrant
from vecbridge.backends.qdrant import blobs, config
from vecbridge.errors import (
    CollectionExists,
    CollectionNotFound,
    Forbidden,
    IndexFailure,
    InputError,
    ManifestError,
    PlanError,
)
from vecbridge.limits import limits
from vecbridge.manifest import Manifest
from vecbridge.testing import data, oracle
from vecbridge.types import Element, Shorten, Space, Spread

HNSW = Layout(index=Index("hnsw", ef_search=100))


@pytest.fixture
def server() -> Iterator[RestServer]:
    with rest_server() as fake:
        yield fake


@contextmanager
def behind(url: str) -> Iterator[Any]:
    """What speaks to Qdrant, to do things behind vecbridge's back."""
    with closing(qdrant.connect(url)) as opened:
        yield opened._engine


@pytest.mark.parametrize("version", ["1.15.5", "1.16.0", "1.19.0"])
def test_the_manifest_lies_in_the_collection_or_beside_it(version: str) -> None:
    sample = data.clustered(60, 16, seed=1)
    with rest_server(version=version) as fake:
        with connect(fake.url) as store:
            made = store.create("papers", dim=16, layout=Layout(shorten=Shorten("pca", 8)), sample=sample)
            made.upsert(["a"], sample[:1])
            body = fake.sent("PUT /collections/papers$")[0].json
            assert ("metadata" in body) == (version != "1.15.5")
            assert store.collections() == ["papers"]
        with connect(fake.url) as store:
            assert store.open("papers").manifest.dump() == made.manifest.dump()
            assert store.open("papers").search(sample[0], k=1)[0].id == "a"
            store.drop("papers")
            assert store.collections() == []
            # nothing of it is left beside the collections
            with behind(fake.url) as engine:
                assert engine.scroll(blobs.NAME, limit=10, payload=True)[0].ids == []


def test_a_collection_that_others_made_is_not_ours(server: RestServer) -> None:
    with behind(server.url) as engine, connect(server.url) as store:
        engine.create("theirs", {"vectors": {"size": 4, "distance": "Dot"}})
        assert store.collections() == []
        for use in (store.open, store.drop):
            with pytest.raises(CollectionNotFound, match=r"'theirs'.*was not made by vecbridge"):
                use("theirs")
        with pytest.raises(CollectionExists, match="'theirs'"):
            store.create("theirs", dim=4)
        assert engine.describe("theirs")["config"]["params"]["vectors"]["size"] == 4


@pytest.mark.parametrize(("there", "wrong"), [
    ({"size": 8, "distance": "Cosine"}, "size of the vector is 8, expected 4"),
    ({"size": 4, "distance": "Dot"}, "distance of the vector is Dot, expected Cosine"),
    ({"size": 4, "distance": "Cosine", "datatype": "float16"},
     "datatype of the vector is float16, expected float32"),
    ({"full": {"size": 4, "distance": "Cosine"}}, "the vector is missing; there is another vector 'full'"),
])  # fmt: skip
def test_a_collection_that_is_not_as_its_manifest_says_is_refused(
    server: RestServer, there: dict[str, Any], wrong: str
) -> None:
    with behind(server.url) as engine, connect(server.url) as store:
        store.create("papers", dim=4, layout=Layout())
        metadata = engine.describe("papers")["config"]["metadata"]
        engine.drop("papers")
        engine.create("papers", {"vectors": there, "metadata": metadata})
        with pytest.raises(ManifestError, match=f"not as its manifest says: {wrong}"):
            store.open("papers")
        assert store.collections() == ["papers"]
        store.drop("papers")


def test_a_lost_basis_is_told(server: RestServer) -> None:
    sample = data.clustered(60, 16, seed=1)
    with behind(server.url) as engine, connect(server.url) as store:
        store.create("papers", dim=16, layout=Layout(shorten=Shorten("pca", 8)), sample=sample)
        engine.drop(blobs.NAME)
        with pytest.raises(ManifestError, match="has lost the basis"):
            store.open("papers")


def test_declared_fields_are_indexed_before_anything_else(server: RestServer) -> None:
    with connect(server.url) as store:
        papers = store.create(
            "papers", dim=4, layout=HNSW,
            filterable={"topic": "text", "a.year": "number", "odd name": "text", "draft": "boolean"},
        )  # fmt: skip
        papers.upsert(["a"], np.eye(4)[:1], metadata=[{"draft": True}])
        papers.build_index()
    indexes = [request.json for request in server.sent("PUT /collections/papers/index")]
    assert {one["field_name"]: one["field_schema"] for one in indexes} == {
        "metadata.topic": "keyword", "metadata.a.year": "float",
        'metadata."odd name"': "keyword", "odd": "keyword",
    }  # fmt: skip
    lines = [str(request) for request in server.requests if request.method != "GET"]
    last = max(at for at, line in enumerate(lines) if line.endswith("/index"))
    assert last < lines.index("PUT /collections/papers/points") < lines.index("PATCH /collections/papers")


def test_a_collection_whose_fields_cannot_be_indexed_is_not_there_afterwards(server: RestServer) -> None:
    with connect(server.url) as store:
        server.faults.append(Fault(status=403, body={"status": {"error": "no"}}, on="PUT .*/index"))
        with pytest.raises(Forbidden, match="no"):
            store.create("papers", dim=4, filterable={"topic": "text"})
        assert store.collections() == []
        with pytest.raises(InputError, match="cannot index the metadata field"):
            store.create("papers", dim=4, filterable={'a"b': "text"})
        assert store.collections() == []
        store.create("papers", dim=4, filterable={"topic": "text"})


def asked(server: RestServer) -> dict[str, Any]:
    """The last search that the server was asked for."""
    searches: list[dict[str, Any]] = server.sent("/points/query/batch")[-1].json["searches"]
    return searches[0]


@pytest.mark.parametrize("element", ["int8", "turbo4", "turbo2", "turbo1", "bit"])
def test_rescoring_and_oversampling_are_always_said(server: RestServer, element: Element) -> None:
    with connect(server.url) as store:
        papers = store.create(
            "papers", dim=8, layout=Layout(index=Index("hnsw", element, ef_search=99), oversample=7)
        )
        papers.upsert(["a"], np.eye(8)[:1])
        papers.build_index()
        papers.search(np.eye(8)[0], k=1)
        assert asked(server)["params"] == {
            "hnsw_ef": 99, "exact": False,
            "quantization": {"ignore": False, "rescore": True, "oversampling": 7.0},
        }  # fmt: skip
        papers.search(np.eye(8)[0], k=1, exact=True)
        assert asked(server)["params"] == {"exact": True, "quantization": {"ignore": True}}
    change = server.sent("PATCH /collections/papers")[0].json
    ((kind, said),) = change["quantization_config"].items()
    assert said["always_ram"] is True
    assert kind == {"int8": "scalar", "bit": "binary"}.get(element, "turbo")
    assert change["hnsw_config"]["m"] == 16


def test_a_prefix_is_searched_by_prefetch_and_ranked_by_the_whole(server: RestServer) -> None:
    layout = Layout(index=Index("hnsw", "float32", Shorten("truncate", 4), ef_search=50), oversample=20)
    vectors = data.clustered(30, 8, seed=2)
    with connect(server.url) as store:
        papers = store.create("papers", dim=8, layout=layout, nested=[4])
        papers.upsert(data.names(30), vectors)
        hits = papers.search(vectors[3], k=3)
        assert hits[0].id == "id-000003"
        search = asked(server)
        prefetch = search["prefetch"] if isinstance(search["prefetch"], dict) else search["prefetch"][0]
        assert (search["using"], search["limit"], len(search["query"])) == ("full", 3, 8)
        assert (prefetch["using"], prefetch["limit"], len(prefetch["query"])) == ("short", 60, 4)
        assert prefetch["params"]["hnsw_ef"] == 50
    body = server.sent("PUT /collections/papers$")[0].json
    assert body["vectors"]["full"]["hnsw_config"] == {"m": 0}
    assert body["vectors"]["full"]["on_disk"] is True
    stored = server.sent("PUT /collections/papers/points")[0].json["points"][3]["vector"]
    assert np.linalg.norm(stored["short"]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("fields", "selectivity"), [({}, 1.0), ({"topic": "text"}, 0.4)])
def test_a_filtered_walk_steps_over_what_does_not_match(
    server: RestServer, fields: dict[str, Any], selectivity: float
) -> None:
    with connect(server.url) as store:
        papers = store.create("papers", dim=4, layout=HNSW, filterable=fields)
        papers.upsert(["a", "b"], np.eye(4)[:2], metadata=[{"topic": "x"}] * 2)
        papers.search(np.eye(4)[0], k=2, where={"topic": "x"})
        assert asked(server)["params"]["acorn"] == {"enable": True, "max_selectivity": selectivity}
        papers.search(np.eye(4)[0], k=2)
        assert "acorn" not in asked(server)["params"]


def test_a_server_before_acorn_is_not_asked_for_it() -> None:
    with rest_server(version="1.15.1") as fake, connect(fake.url) as store:
        papers = store.create("papers", dim=4, layout=HNSW)
        papers.upsert(["a", "b"], np.eye(4)[:2], metadata=[{"topic": "x"}] * 2)
        assert len(papers.search(np.eye(4)[0], k=2, where={"topic": "x"})) == 2
        assert "acorn" not in asked(fake)["params"]


def test_what_a_server_is_too_old_for_is_refused_with_both_versions() -> None:
    with rest_server(version="1.17.2") as fake, connect(fake.url) as store:
        with pytest.raises(PlanError, match=r"needs qdrant 1\.18\.0, this is 1\.17\.2"):
            store.create("papers", dim=8, layout=Layout(index=Index("hnsw", "turbo4"), oversample=4))
        assert store.collections() == []


def test_a_collection_is_spread_over_the_machines_of_a_cluster(server: RestServer) -> None:
    server.peers = 3
    with connect(server.url) as store:
        assert store.limits.nodes == 3
        papers = store.create("papers", dim=8, rows=1_000_000)
        assert papers.layout.spread == Spread(6, 2, 1)
    body = server.sent("PUT /collections/papers$")[0].json
    assert (body["shard_number"], body["replication_factor"], body["write_consistency_factor"]) == (6, 2, 1)


def test_where_the_server_does_not_tell_its_machines_the_user_does() -> None:
    with grpc_server() as fake, connect(fake.url) as store:
        assert store.create("one", dim=8).layout.spread is None
        assert store.create("three", dim=8, nodes=3).layout.spread == Spread(6, 2, 1)
        layout = Layout(spread=Spread(4, 2, 2))
        with pytest.raises(PlanError, match=r"machine|node"):
            store.create("four", dim=8, layout=layout)
        assert store.create("four", dim=8, layout=layout, nodes=2).layout == layout


def test_the_index_is_missing_until_it_is_built_and_broken_where_qdrant_says_so(server: RestServer) -> None:
    with connect(server.url) as store:
        papers = store.create("papers", dim=64, layout=HNSW)
        assert papers.index_state().status == "missing"
        papers.upsert(data.names(100), data.clustered(100, 64, seed=1))
        assert papers.index_state().status == "missing"
        papers.build_index()
        assert (papers.index_state().status, papers.index_state().used) == ("ready", True)
        changes = len(server.sent("PATCH /collections/papers"))
        papers.build_index()
        assert len(server.sent("PATCH /collections/papers")) == changes, "built again for nothing"
        server.states.append({"status": "red", "optimizer_status": {"error": "disk is full"}})
        state = papers.index_state()
        assert (state.status, state.used) == ("invalid", False)
        assert "disk is full" in state.detail


def test_an_index_that_is_not_there_after_the_build_is_an_error(server: RestServer) -> None:
    with connect(server.url) as store:
        papers = store.create("papers", dim=64, layout=HNSW)
        papers.upsert(data.names(100), data.clustered(100, 64, seed=1))
        server.states += [{}] + [{"indexed_vectors_count": 0}] * 20
        with pytest.raises(IndexFailure, match=r"'papers'.*is not in use: no point is in the graph"):
            papers.build_index()


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_an_index_over_hardly_anything_is_no_failure(tmp_path: Path, rows: int) -> None:
    with connect(f"qdrant:{tmp_path}") as store:
        papers = store.create("papers", dim=4, layout=HNSW)
        papers.upsert(data.names(rows), data.clustered(rows, 4, seed=1))
        papers.build_index()
        assert papers.index_state().used
        assert len(papers.search(np.ones(4), k=100)) == rows


def test_thresholds_follow_what_is_there_and_never_exceed_qdrants_own() -> None:
    manifest = Manifest("papers", Space(1_024), HNSW, 1)
    found = {
        rows: config.indexing(manifest, rows, limits("qdrant"))["optimizers_config"]["indexing_threshold"]
        for rows in (0, 10, 10_000, 100_000_000)
    }
    assert found == {0: 1, 10: 1, 10_000: 640, 100_000_000: 10_000}
    # how few records must match for Qdrant to compare them one by one is left to it
    assert "full_scan_threshold" not in json.dumps(config.indexing(manifest, 10, limits("qdrant")))


def test_a_path_need_not_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with connect("qdrant:") as store:
        store.create("papers", dim=4)
        assert store.url == "qdrant:./vecbridge-qdrant"
    assert (tmp_path / "vecbridge-qdrant").is_dir()


def test_words_are_compared_in_their_order_although_qdrant_knows_none(tmp_path: Path) -> None:
    """Filters that Qdrant can only narrow down still give k records, the nearest that match."""
    rows = 600
    vectors = data.clustered(rows, 16, seed=4)
    days = [f"20{row % 25:02}-{1 + row % 12:02}-01" for row in range(rows)]
    with connect(f"qdrant:{tmp_path}/q") as store, connect(f"flat:{tmp_path}/f") as flat:
        for place in (store, flat):
            papers = place.create("papers", dim=16, layout=Layout(), filterable={"day": "text"})
            papers.upsert(data.names(rows), vectors, metadata=[{"day": day} for day in days])
        ours, truth = store.open("papers"), flat.open("papers")
        for where in (
            {"day": {"$gte": "2023-06-01"}},
            {"day": {"$lt": "2000-05"}},
            {"day": {"$gt": "2024-12-01"}},
        ):
            assert ours.count(where=where) == truth.count(where=where)
            for k in (1, 10, 100):
                assert [hit.id for hit in ours.search(vectors[5], k=k, where=where)] == [
                    hit.id for hit in truth.search(vectors[5], k=k, where=where)
                ]
        where = {"day": {"$lt": "2010"}}
        assert ours.delete(where=where) == truth.delete(where=where) > 100
        assert ours.count() == truth.count()


def found(url: str) -> dict[str, tuple[str, str]]:
    """What doctor finds at a URL: level and sentence by subject."""
    with closing(qdrant.connect(url)) as place:
        return {one.subject: (one.level, one.found) for one in place.findings()}


def test_doctor_sees_what_a_server_says_of_itself(server: RestServer) -> None:
    turbo = Layout(index=Index("hnsw", "turbo4", ef_search=99), oversample=4)
    with behind(server.url) as engine, connect(server.url) as store:
        papers = store.create("papers", dim=64, layout=turbo)
        papers.upsert(data.names(100), data.clustered(100, 64, seed=1))
        assert found(server.url)["papers: index"][0] == "broken"
        papers.build_index()
        healthy = found(server.url)
        assert {level for level, _ in healthy.values()} == {"ok"}
        assert healthy["papers: index"][1] == "ready, and searches run on it (100 of 100 points)"

        engine._patch("papers", {"strict_mode_config": {"enabled": True, "max_query_limit": 1_000}})
        assert found(server.url)["papers: strict mode"] == ("ok", "on: max_query_limit 1000")
        server.states += [{}, {}, {"status": "red", "optimizer_status": {"error": "no space left"}}]
        level, said = found(server.url)["papers: status"]
        assert level == "broken"
        assert "no space left" in said
        server.version = "1.17.0"
        level, said = found(server.url)["papers: layout"]
        assert level == "broken"
        assert "needs qdrant 1.18.0, this is 1.17.0" in said
        assert found(server.url)["client"][0] == "warning"


def test_a_sample_is_the_same_for_the_same_seed_and_another_for_another(tmp_path: Path) -> None:
    with connect(f"qdrant:{tmp_path}") as store:
        papers = store.create("papers", dim=4, metric="l2", layout=Layout())
        papers.upsert(data.names(500), data.clustered(500, 4, seed=1))
        table = papers._table
        first = list(table.sample(50, seed=1).ids)
        assert len(set(first)) == 50
        assert list(table.sample(50, seed=1).ids) == first
        assert list(table.sample(50, seed=2).ids) != first
        assert sorted(table.sample(10_000, seed=3).ids) == data.names(500)
        drawn = {name for seed in range(60) for name in table.sample(50, seed=seed).ids}
        assert len(drawn) > 450, "parts of the collection are never drawn"


@pytest.fixture(params=["rest", "grpc"])
def sizes(request: pytest.FixtureRequest) -> Iterator[tuple[str, Callable[[], list[int]]]]:
    """The URL of a server, and a function that returns the bytes of each request it has had since."""
    if request.param == "rest":
        with rest_server() as rest:
            yield rest.url, lambda: [len(one.body) for one in rest.requests]
    else:
        with grpc_server() as grpc:
            yield grpc.url, lambda: [len(one.raw) for one in grpc.received]


def test_requests_stay_small_however_many_ids_they_are_about(
    sizes: tuple[str, Callable[[], list[int]]],
) -> None:
    """A server refuses bodies above 32 MB, a proxy before it those above 1 MB."""
    url, sent = sizes
    ids = [f"{'a long name/' * 50}{number}" for number in range(40_000)]
    there = ids[::50]
    with connect(url) as store:
        papers = store.create("papers", dim=2, metric="l2", layout=Layout())
        papers.upsert(there, np.ones((len(there), 2)), digests=[b"x" * 32] * len(there))
        before = len(sent())
        assert len(papers.digests(ids)) == len(there)
        assert papers.delete(ids) == len(there)
        assert papers.count() == 0
    assert max(sent()[before:]) < 1_000_000


def test_an_inventory_asks_for_nothing_but_ids_and_digests(server: RestServer) -> None:
    with connect(server.url) as store:
        papers = store.create("papers", dim=2, metric="l2", layout=Layout())
        papers.upsert(data.names(3), np.ones((3, 2)), documents=["long"] * 3, digests=[b"a", None, b""])
        assert oracle.inventory(papers.inventory()) == dict(
            zip(data.names(3), [b"a", None, b""], strict=True)
        )
    asked = server.sent("POST .*/points/scroll$")[-1].json
    assert (asked["with_payload"], asked["with_vector"]) == (["id", "digest"], False)


def test_an_inventory_respects_strict_mode(server: RestServer) -> None:
    with connect(server.url) as store:
        papers = store.create("papers", dim=2, metric="l2", layout=Layout())
        papers.upsert(data.names(10), np.ones((10, 2)))
        with behind(server.url) as engine:
            mode = {"enabled": True, "max_query_limit": 4}
            engine._send("PATCH", "/collections/papers", json.dumps({"strict_mode_config": mode}).encode())
    with connect(server.url) as store:
        parts = list(store.open("papers").inventory())
    assert [len(part) for part in parts] == [4, 4, 2]
    assert set(oracle.inventory(parts)) == set(data.names(10))


def test_an_inventory_survives_a_server_that_is_away_between_two_parts(server: RestServer) -> None:
    rows = data.names(2_500)
    with connect(server.url) as store:
        papers = store.create("papers", dim=2, metric="l2", layout=Layout())
        papers.upsert(rows, np.ones((2_500, 2)))
        parts = papers.inventory()
        met = [next(parts)]
        server.faults += [Fault(status=503, body=b"restarting"), Fault(lose="answer")]
        met += parts
        assert not server.faults
    assert set(oracle.inventory(met)) == set(rows)
