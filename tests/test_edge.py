"""Qdrant Edge behind the Engine protocol: data, configuration, filters, searches, builds."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_architecture import HEAVY, loaded

pytest.importorskip("qdrant_edge")

from vecbridge import backends
from vecbridge.backends.qdrant.edge import Edge, connect
from vecbridge.backends.qdrant.edge import build as edge_build
from vecbridge.backends.qdrant.edge import place as edge_place
from vecbridge.backends.qdrant.engine import FULL, SHORT, Points, Query, Scored
from vecbridge.errors import CollectionExists, CollectionNotFound, LayoutChanged, StoreError, UrlError
from vecbridge.manifest import Manifest
from vecbridge.types import Batch, Layout, Space

PLAIN = {"vectors": {"size": 8, "distance": "Dot"}, "hnsw_config": {"m": 0}}
GRAPH = {"hnsw_config": {"m": 16, "ef_construct": 64}, "optimizers_config": {"indexing_threshold": 1}}


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    made = connect(str(tmp_path / "place"), shown="qdrant:place")
    yield made
    made.close()


def point(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


def matrix(n: int, size: int, seed: int = 0) -> Any:
    made = np.random.default_rng(seed).normal(size=(n, size)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def some(n: int, size: int = 8, start: int = 0, seed: int = 0) -> Points:
    ids = [point(number) for number in range(start, start + n)]
    payloads = [{"id": str(number), "metadata": {"n": number}} for number in range(start, start + n)]
    return Points(ids, {"": matrix(n, size, seed)}, payloads)


def test_what_is_written_is_read_back_unchanged(edge: Edge) -> None:
    edge.create("papers", PLAIN)
    deep: dict[str, Any] = {}
    for _ in range(60):
        deep = {"k": [deep]}
    metadata = [
        {"v": 2**63 - 1, "w": -(2**63), "x": 2**64 - 1},
        {"v": 5e-324, "w": -0.0, "x": 1.7976931348623157e308},
        {"v": "日本 \U0001f600 \x00 \u0301", "": "empty key", "a.b": {"c": None}},
        {"v": deep, "w": [], "x": {}, "y": [True, False, None, 1, 1.0]},
    ]
    points = Points(
        [point(i) for i in range(4)],
        {"": matrix(4, 8)},
        [{"id": str(i), "metadata": m} for i, m in enumerate(metadata)],
    )
    edge.upsert("papers", points)
    found = edge.retrieve("papers", [*points.ids, point(99)], payload=True, vectors="")
    order = [found.ids.index(id) for id in points.ids]
    assert len(found.ids) == 4
    # repr tells 1 from 1.0 and from True, and 0.0 from -0.0
    assert [repr(found.payloads[i]["metadata"]) for i in order] == [repr(dict(m)) for m in metadata]
    assert found.vectors is not None
    np.testing.assert_array_equal(found.vectors[order], points.vectors[""])
    only = edge.retrieve("papers", points.ids[:1], payload=["id"], vectors=None)
    assert (only.payloads, only.vectors) == ([{"id": "0"}], None)
    nothing = edge.retrieve("papers", [point(99)], payload=False, vectors="")
    assert (nothing.ids, nothing.payloads, nothing.vectors) == ([], [], None)


def test_pages_come_in_the_order_of_ids_and_cover_everything_once(edge: Edge) -> None:
    edge.create("papers", PLAIN)
    points = some(257)
    edge.upsert("papers", points)
    seen: list[str] = []
    offset: str | None = None
    while True:
        found, offset = edge.scroll("papers", limit=50, offset=offset, payload=False)
        seen += found.ids
        if offset is None:
            break
    assert seen == sorted(points.ids)
    few = {"must": [{"key": "metadata.n", "range": {"lt": 3}}]}
    found, offset = edge.scroll("papers", limit=50, filter=few, payload=["id"], vectors="")
    assert sorted(one["id"] for one in found.payloads) == ["0", "1", "2"]
    assert offset is None
    assert found.vectors is not None
    for id, vector in zip(found.ids, found.vectors, strict=True):
        np.testing.assert_array_equal(vector, points.vectors[""][points.ids.index(id)])


@pytest.mark.parametrize("distance", ["Cosine", "Dot", "Euclid"])
def test_scores_are_those_of_the_rest_api(edge: Edge, distance: str) -> None:
    edge.create("papers", {"vectors": {"size": 8, "distance": distance}, "hnsw_config": {"m": 0}})
    points = some(100)
    edge.upsert("papers", points)
    vectors, query = points.vectors[""], matrix(1, 8, seed=7)[0]
    # Euclid: the distance itself, smaller is nearer
    distances = np.linalg.norm(vectors - query, axis=1)
    expected = np.sort(distances)[:5] if distance == "Euclid" else np.sort(vectors @ query)[::-1][:5]
    for queries in ([Query(query, 5)], [Query(query, 5), Query(query, 5)]):
        for hits in edge.query("papers", queries):
            np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)
            assert {*hits[0].payload} == {"id", "metadata"}
    assert edge.query("papers", []) == []


def test_upserts_replace_and_deletes_remove(edge: Edge) -> None:
    edge.create("papers", PLAIN)
    edge.upsert("papers", some(10))
    edge.upsert("papers", some(5, start=7, seed=3))
    edge.upsert("papers", some(0))
    assert edge.count("papers") == 12
    edge.delete("papers", [point(0), point(1), point(99)])
    edge.delete("papers", [])
    assert edge.count("papers") == 10
    found = edge.retrieve("papers", [point(7)], payload=False, vectors="")
    np.testing.assert_array_equal(found.vectors, matrix(5, 8, seed=3)[:1])


def matching(wanted: dict[str, Any], value: dict[str, Any]) -> bool:
    """What the conditions below mean, in Python."""
    is_there = "v" in value
    values = value["v"] if isinstance(value.get("v"), list) else [value["v"]] if is_there else []
    plain = [one for one in values if one is not None]
    if "min_should" in wanted:
        least = wanted["min_should"]
        return sum(matching(one, value) for one in least["conditions"]) >= least["min_count"]
    if {"must", "should", "must_not"} & set(wanted):
        return (
            all(matching(one, value) for one in wanted.get("must", []))
            and not any(matching(one, value) for one in wanted.get("must_not", []))
            and (not wanted.get("should") or any(matching(one, value) for one in wanted["should"]))
        )
    if "is_empty" in wanted:
        # a list of nothing but null is not empty
        return not values or value["v"] is None
    if "is_null" in wanted:
        # also where a list has a null in it
        return None in values
    if "match" in wanted:
        typed = [one for one in plain if isinstance(one, int | str)]
        match = wanted["match"]
        if "value" in match:
            return match["value"] in typed
        if "any" in match:
            return any(one in match["any"] for one in typed)
        return any(one not in match["except"] for one in plain)
    numbers = [one for one in plain if isinstance(one, int | float)]
    tests = {
        "gte": lambda a, b: a >= b,
        "gt": lambda a, b: a > b,
        "lte": lambda a, b: a <= b,
        "lt": lambda a, b: a < b,
    }
    return any(all(tests[k](one, bound) for k, bound in wanted["range"].items()) for one in numbers)


def condition(chance: random.Random, depth: int) -> dict[str, Any]:
    if depth and chance.random() < 0.5:
        clause = chance.choice(["must", "should", "must_not", "min_should"])
        inner = [condition(chance, depth - 1) for _ in range(chance.randint(1, 3))]
        if clause == "min_should":
            return {clause: {"conditions": inner, "min_count": chance.randint(1, len(inner))}}
        return {clause: inner}
    key, numbers, texts = "metadata.v", [-(2**63), -1, 0, 1, 2**63 - 1], ["", "a", "é"]
    match chance.randint(0, 4):
        case 0:
            return {"key": key, "match": {"value": chance.choice([*numbers, *texts])}}
        case 1:
            listed = chance.sample(chance.choice([numbers, texts]), chance.randint(1, 2))
            return {"key": key, "match": {chance.choice(["any", "except"]): listed}}
        case 2:
            bound = chance.choice([-1, 0, 0.5, 1, 1e300, 5e-324])
            return {"key": key, "range": {chance.choice(["gte", "gt", "lte", "lt"]): bound}}
        case 3:
            return {"is_empty": {"key": key}}
    return {"is_null": {"key": key}}


def test_filters_select_what_they_say(edge: Edge) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    edge.create("papers", PLAIN)
    found = [
        None,
        0,
        1,
        -1,
        2**63 - 1,
        -(2**63),
        0.5,
        5e-324,
        1e300,
        "",
        "a",
        "é",
        [],
        [1, "a"],
        [None, 0],
        [None],
    ]
    values: list[dict[str, Any]] = [{}, *({"v": one} for one in found)]
    points = some(len(values))
    edge.upsert(
        "papers",
        Points(points.ids, points.vectors, [{"id": str(i), "metadata": v} for i, v in enumerate(values)]),
    )
    for _ in range(300):
        wanted = {"must": [condition(chance, 2)]}
        expected = {i for i, value in enumerate(values) if matching(wanted, value)}
        page, _ = edge.scroll("papers", limit=99, filter=wanted, payload=["id"])
        assert {int(one["id"]) for one in page.payloads} == expected, wanted
        assert edge.count("papers", wanted) == len(expected), wanted
    chosen = {"must": [{"has_id": points.ids[:3]}], "must_not": {"has_id": points.ids[:1]}}
    assert edge.count("papers", chosen) == 2
    assert edge.count("papers", {"must": [{"key": "metadata.v", "values_count": {"gte": 2}}]}) == 2
    hits = edge.query("papers", [Query(points.vectors[""][0], 9, filter=chosen)])[0]
    assert {hit.payload["id"] for hit in hits} == {"1", "2"}


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"must": [{"key": "v", "match": {"value": True}}]}, "cannot match the boolean True"),
        ({"must": [{"key": "v", "match": {"any": [1, False]}}]}, "cannot match the boolean False"),
        ({"must": [{"key": "v", "match": {"value": 1.5}}]}, "texts and 64-bit integers, got 1.5"),
        ({"must": [{"key": "v", "match": {"value": 2**63}}]}, "texts and 64-bit integers"),
        ({"must": [{"key": "v", "match": {"any": [1, "a"]}}]}, "not both in one list"),
        ({"must": [{"key": "v", "match": {"text": "a"}}]}, "no kind of match 'text'"),
        ({"must": [{"key": "v", "range": {"gte": "2020-01-01"}}]}, "compares numbers in a range"),
        ({"must": [{"key": "v", "range": {"gte": True}}]}, "compares numbers in a range"),
        ({"must": [{"key": "v", "range": {"lt": 10**400}}]}, "bounds that a float64 holds"),
        ({"must": [{"key": "v", "geo_radius": {}}]}, "no condition 'geo_radius'"),
        ({"must": [{"key": "v"}]}, "a condition with a key and match, range or values_count"),
        ({"all": []}, "no filter clause 'all'"),
        ({"must": [{"key": "a..b", "match": {"value": 1}}]}, "refused: invalid JSON path a..b"),
    ],
)
def test_a_filter_that_edge_would_misread_is_refused(edge: Edge, wanted: dict[str, Any], reason: str) -> None:
    edge.create("papers", PLAIN)
    with pytest.raises(StoreError, match=reason):
        edge.count("papers", wanted)


QUANTISATIONS = {
    "scalar": {"scalar": {"type": "int8", "quantile": 0.99, "always_ram": True}},
    "binary": {"binary": {"always_ram": True}},
    "binary2": {"binary": {"encoding": "two_bits", "query_encoding": "scalar8bits"}},
    "binary1.5": {"binary": {"encoding": "one_and_half_bits", "memory": "pinned"}},
    "turbo1": {"turbo": {"bits": "bits1"}},
    "turbo1.5": {"turbo": {"bits": "bits1_5"}},
    "turbo2": {"turbo": {"bits": "bits2"}},
    "turbo4": {"turbo": {"bits": "bits4", "always_ram": True}},
    "product": {"product": {"compression": "x4"}},
    "none": None,
}


@pytest.mark.parametrize("params", [None, {"exact": True}, {"hnsw_ef": 40}, {"acorn": {"enable": True}}])
@pytest.mark.parametrize("filter", [None, {"must": [{"key": "n", "range": {"lt": 90}}]}])
def test_one_query_finds_what_it_finds_among_several(edge: Edge, params: Any, filter: Any) -> None:
    edge.create("papers", {"vectors": {"size": 16, "distance": "Cosine"}, "hnsw_config": {"m": 0}})
    rows = np.random.default_rng(7).standard_normal((300, 16), dtype=np.float32)
    rows[200:] = rows[100:200]  # equal vectors, in two writes
    for part in (range(150), range(150, 300)):
        some = slice(part.start, part.stop)
        edge.upsert("papers", Points([point(n) for n in part], {"": rows[some]}, [{"n": n} for n in part]))
    edge.optimise("papers", GRAPH, None)
    edge.upsert("papers", Points([point(3)], {"": rows[:1]}, [{"n": 3, "new": True}]))
    asked = [Query(row, 7, params=params, filter=filter) for row in rows[:5]]
    several = edge.query("papers", asked)
    for query, among in zip(asked, several, strict=True):
        (alone,) = edge.query("papers", [query])
        assert [one.score for one in alone] == [one.score for one in among]
        assert _payloads(alone) == _payloads(among)
    assert {"n": 3, "new": True} in [one.payload for one in several[0]]


def _payloads(found: list[Scored]) -> list[tuple[float, str]]:
    """In one order where scores are equal; without those at the end, of which any may be left out."""
    last = found[-1].score
    return sorted((one.score, json.dumps(one.payload)) for one in found if one.score > last)


@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_every_quantisation_is_built_and_searched(edge: Edge, kind: str) -> None:
    size, n = 64, 1800
    edge.create("papers", {"vectors": {"size": size, "distance": "Cosine"}, "hnsw_config": {"m": 0}})
    points = some(n, size)
    edge.upsert("papers", points)
    before = edge.sizes("papers")
    quantisation = QUANTISATIONS[kind]
    graph = {"m": 16, "ef_construct": 64, "full_scan_threshold": 10}
    edge.optimise("papers", {**GRAPH, "hnsw_config": graph, "quantization_config": quantisation}, None)
    told = edge.describe("papers")
    assert told["indexed_vectors_count"] == told["points_count"] == n
    assert told["status"] == "green"
    assert told["config"]["quantization_config"] == quantisation
    assert told["config"]["hnsw_config"] == graph
    assert edge.sizes("papers").index > before.index
    # isotropic vectors are the hardest case for one bit per component
    oversampling = 60.0 if kind.startswith("binary") else 8.0
    params: dict[str, Any] = {
        "hnsw_ef": 128,
        "quantization": {"rescore": True, "oversampling": oversampling},
    }
    vectors = points.vectors[""]
    queries = matrix(20, size, seed=5)
    hits = edge.query("papers", [Query(query, 10, params=params) for query in queries])
    nearest = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    shared = [
        len({int(hit.payload["id"]) for hit in one} & set(map(int, best)))
        for one, best in zip(hits, nearest, strict=True)
    ]
    assert sum(shared) / 200 >= 0.8
    exact = edge.query("papers", [Query(query, 10, params={"exact": True}) for query in queries])
    assert [[int(hit.payload["id"]) for hit in one] for one in exact] == nearest.tolist()
    # rescored with the stored vectors, so that scores are the true ones
    best = hits[0][0]
    assert math.isclose(best.score, float(vectors[int(best.payload["id"])] @ queries[0]), abs_tol=1e-5)


def test_two_vectors_of_a_point_are_built_and_searched_each_in_its_own_way(edge: Edge) -> None:
    vectors = {FULL: {"size": 64, "distance": "Dot"}, SHORT: {"size": 16, "distance": "Dot"}}
    edge.create("papers", {"vectors": vectors, "hnsw_config": {"m": 0}})
    points = some(1800, 64)
    full = points.vectors[""]
    both = {FULL: full, SHORT: np.ascontiguousarray(full[:, :16])}
    edge.upsert("papers", Points(points.ids, both, points.payloads))
    short = {"hnsw_config": {"m": 16, "ef_construct": 64}, "quantization_config": QUANTISATIONS["scalar"]}
    edge.optimise("papers", {"vectors": {SHORT: short}, "optimizers_config": {"indexing_threshold": 1}}, None)
    told = edge.describe("papers")["config"]["params"]["vectors"]
    assert told == {FULL: vectors[FULL], SHORT: {**vectors[SHORT], **short}}
    inner = Query(both[SHORT][3], 200, using=SHORT, params={"quantization": {"rescore": True}})
    hit = edge.query("papers", [Query(full[3], 1, using=FULL, prefetch=inner)])[0][0]
    assert hit.payload["id"] == "3"
    assert math.isclose(hit.score, 1.0, abs_tol=1e-5)
    # only what the prefetch found is compared
    only = {"must": [{"has_id": [point(5)]}]}
    inner = Query(both[SHORT][3], 9, using=SHORT, filter=only)
    hits = edge.query("papers", [Query(full[3], 9, using=FULL, prefetch=inner)])[0]
    assert [hit.payload["id"] for hit in hits] == ["5"]
    for name in (FULL, SHORT):
        found = edge.retrieve("papers", [point(3)], payload=False, vectors=name)
        np.testing.assert_array_equal(found.vectors, both[name][3:4])


def test_building_twice_does_nothing_until_something_is_written(edge: Edge) -> None:
    edge.create("papers", PLAIN)
    edge.upsert("papers", some(500))
    stages: list[tuple[str, int, int | None]] = []

    def told(stage: str, done: int, total: int | None) -> None:
        stages.append((stage, done, total))

    edge.optimise("papers", GRAPH, told)
    assert stages[-1] == ("index", 500, 500)
    assert {stage for stage, _, _ in stages} >= {"copy (MiB)", "index"}
    stages.clear()
    edge.optimise("papers", GRAPH, told)
    assert stages == []
    edge.upsert("papers", some(500, start=500, seed=1))
    assert edge.describe("papers")["status"] == "yellow"
    edge.optimise("papers", GRAPH, told)
    assert stages[-1] == ("index", 1000, 1000)
    assert edge.describe("papers")["indexed_vectors_count"] == 1000
    assert edge.count("papers") == 1000


def test_a_build_goes_on_until_nothing_is_left_to_do(tmp_path: Path) -> None:
    """The building process with an engine that wants three rounds and writes down what is asked of it."""
    (tmp_path / "qdrant_edge.py").write_text(
        "class EdgeShard:\n"
        "    rounds = 3\n"
        "    load = staticmethod(lambda folder: EdgeShard())\n"
        "    def optimize(self):\n"
        "        self.rounds -= 1\n"
        "        print('optimize')\n"
        "        return self.rounds > 0\n"
        "    flush = staticmethod(lambda: print('flush'))\n"
        "    close = staticmethod(lambda: print('close'))\n"
    )
    given = ["folder", str(tmp_path), str(os.getpid())]
    command = [sys.executable, "-I", "-S", "-c", edge_build._SCRIPT, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["optimize"] * 3 + ["flush", "close"]


def _log(place: Path) -> list[int]:
    """Bytes of the files of a log that are there, whether full or being filled."""
    files = [path for path in place.rglob("wal/*") if path.name.startswith(("open", "closed"))]
    return [size for path in files if (size := path.stat().st_blocks * 512)]


def test_the_log_does_not_grow_for_as_long_as_the_process_lives(
    edge: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files hold 32 MiB each; Edge removes one when it loads what they say has reached the segments."""
    monkeypatch.setattr(edge_place, "LOGGED", 50 << 20)
    wide = {"vectors": {"size": 2048, "distance": "Dot"}, "hnsw_config": {"m": 0}}
    edge.create("papers", wide)
    for start in range(0, 18_000, 1_000):
        edge.upsert("papers", some(1_000, size=2048, start=start % 3_000, seed=start))
    assert 0 < sum(_log(tmp_path)) < 120 << 20  # 190 MiB were written to it
    last = some(1_000, size=2048, start=2_000, seed=17_000)
    found = edge.retrieve("papers", last.ids, payload=False, vectors="")
    assert found.vectors is not None
    order = [found.ids.index(id) for id in last.ids]
    assert np.array_equal(found.vectors[order], last.vectors[""])
    assert edge.count("papers") == 3_000
    # a build copies the shard, and little of the log with it
    edge.optimise("papers", {}, None)
    assert 0 < sum(_log(tmp_path)) < 70 << 20


def test_a_built_collection_keeps_no_segment_that_is_not_used(edge: Edge) -> None:
    edge.create("papers", PLAIN)
    for start in range(0, 900, 300):
        edge.upsert("papers", some(300, start=start, seed=start))
        edge.optimise("papers", GRAPH, None)
    segments = list((edge._collection("papers").shard / "segments").iterdir())
    assert len(segments) == edge.describe("papers")["segments_count"]


def test_a_shard_that_is_closed_and_loaded_again_during_its_build_disturbs_nothing(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_place, "OPEN", 1)
    for name in ("papers", "other"):
        edge.create(name, PLAIN)
        edge.upsert(name, some(300))
    closed: list[bool] = []

    def told(stage: str, done: int, total: int | None) -> None:
        if len(closed) == 3:
            return
        assert edge.count("other") == 300
        closed.append(not edge._collection("papers").loaded)
        assert edge.count("papers") == 300

    edge.optimise("papers", GRAPH, told)
    assert any(closed)
    assert edge.describe("papers")["indexed_vectors_count"] == 300


def test_an_error_of_the_progress_callback_ends_the_build_and_comes_out_as_it_is(edge: Edge) -> None:
    edge.create("papers", PLAIN)
    edge.upsert("papers", some(100))

    def stop(stage: str, done: int, total: int | None) -> None:
        raise TypeError("not today")

    with pytest.raises(TypeError, match="not today"):
        edge.optimise("papers", GRAPH, stop)
    assert edge.describe("papers")["config"]["hnsw_config"]["m"] == 0
    edge.optimise("papers", GRAPH, None)
    assert edge.describe("papers")["indexed_vectors_count"] == 100


def test_fields_are_indexed_and_told(edge: Edge) -> None:
    edge.create("papers", PLAIN)
    for schema in ("keyword", "integer", "float", "bool"):
        edge.index_field("papers", f"metadata.{schema}", schema)
    told = edge.describe("papers")["payload_schema"]
    assert {field: one["data_type"] for field, one in told.items()} == {
        f"metadata.{schema}": schema for schema in ("keyword", "integer", "float", "bool")
    }
    with pytest.raises(StoreError, match=r"expected a field's schema as one of keyword, .*, got 'geo'"):
        edge.index_field("papers", "metadata.geo", "geo")


def test_names_that_differ_in_case_only_and_reserved_ones_are_collections_of_their_own(
    edge: Edge, tmp_path: Path
) -> None:
    names = ["B", "b", "con", "a" * 48, "A" * 48, "nul"]
    for number, name in enumerate(names):
        edge.create(name, {**PLAIN, "metadata": {"number": number}})
    assert sorted(edge.collections()) == sorted(names)
    folders = [entry.name for entry in (tmp_path / "place" / "collections").iterdir()]
    assert len({folder.lower() for folder in folders}) == len(names)
    for number, name in enumerate(names):
        assert edge.describe(name)["config"]["metadata"] == {"number": number}
    with pytest.raises(CollectionExists, match="collection 'B' is in qdrant:place already"):
        edge.create("B", PLAIN)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sparse_vectors": {}}, "no collection setting 'sparse_vectors'"),
        (
            {"vectors": {"size": 8, "distance": "Hamming"}},
            r"expected distance as one of cosine, .* 'Hamming'",
        ),
        ({"vectors": {"size": 8, "distance": "Dot", "multivector_config": {}}}, "no vector setting 'multi"),
        ({"quantization_config": {"magic": {}}}, "no quantisation 'magic'"),
        ({"quantization_config": {"turbo": {"bits": "bits3"}}}, "expected bits as one of .* got 'bits3'"),
        ({"hnsw_config": {"n": 3}}, "no hnsw setting 'n'"),
        ({"optimizers_config": {"prevent_unoptimized": True}}, "no optimizer setting 'prevent_unoptimized'"),
    ],
)
def test_a_configuration_that_edge_does_not_have_makes_no_collection(
    edge: Edge, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(StoreError, match=reason):
        edge.create("papers", {**PLAIN, **change})
    assert edge.collections() == []


def test_settings_of_servers_have_no_effect_and_storage_types_hold(edge: Edge) -> None:
    servers = {"shard_number": 3, "replication_factor": 2, "wal_config": {"wal_capacity_mb": 1}}
    edge.create("papers", {**PLAIN, **servers})
    assert edge.count("papers") == 0
    half = {"vectors": {"size": 8, "distance": "Dot", "datatype": "float16"}, "hnsw_config": {"m": 0}}
    edge.create("half", half)
    points = some(10)
    edge.upsert("half", points)
    found = edge.retrieve("half", [point(3)], payload=False, vectors="")
    np.testing.assert_array_equal(found.vectors, points.vectors[""][3:4].astype(np.float16))


def test_what_is_kept_comes_back_and_can_be_forgotten(edge: Edge) -> None:
    content = random.Random(3).randbytes(1 << 20)
    assert edge.kept("basis-B") is None
    edge.keep("basis-B", content)
    edge.keep("basis-b", b"")
    assert (edge.kept("basis-B"), edge.kept("basis-b")) == (content, b"")
    edge.keep("basis-B", b"new")
    edge.forget("basis-b")
    edge.forget("basis-b")
    assert (edge.kept("basis-B"), edge.kept("basis-b")) == (b"new", None)


def test_connections_to_one_place_in_a_process_see_each_others_work(edge: Edge, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "place")
    other = connect(str(tmp_path / "link"), shown="qdrant:link")
    edge.create("papers", PLAIN)
    other.upsert("papers", some(10))
    assert edge.count("papers") == 10
    edge.drop("papers")
    with pytest.raises(CollectionNotFound, match="no collection 'papers'"):
        other.count("papers")
    other.create("papers", PLAIN)
    assert edge.count("papers") == 0
    edge.close()
    edge.close()
    assert other.collections() == ["papers"]
    with pytest.raises(StoreError, match="closed"):
        edge.count("papers")
    other.close()
    with pytest.raises(StoreError, match="closed"):
        other.create("more", PLAIN)
    again = connect(str(tmp_path / "place"), shown="qdrant:place")
    assert again.collections() == ["papers"]
    again.close()


def test_a_dropped_or_unknown_collection_is_not_found_by_any_call(edge: Edge) -> None:
    edge.create("papers", PLAIN)
    edge.drop("papers")
    calls: list[Any] = [
        lambda: edge.describe("papers"),
        lambda: edge.drop("papers"),
        lambda: edge.index_field("papers", "a", "keyword"),
        lambda: edge.optimise("papers", GRAPH, None),
        lambda: edge.upsert("papers", some(1)),
        lambda: edge.query("papers", [Query(matrix(1, 8)[0], 1)]),
        lambda: edge.retrieve("papers", [point(1)], payload=True, vectors=None),
        lambda: edge.scroll("papers", limit=1, payload=True),
        lambda: edge.count("papers"),
        lambda: edge.delete("papers", [point(1)]),
        lambda: edge.sizes("papers"),
    ]
    for call in calls:
        with pytest.raises(CollectionNotFound, match="there is no collection 'papers' in qdrant:place"):
            call()


def test_shards_beyond_the_bound_are_closed_and_loaded_again(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_place, "OPEN", 2)
    for number in range(6):
        edge.create(f"c{number}", PLAIN)
        edge.upsert(f"c{number}", some(number + 1))
    held = [one for one in edge._place._open.values() if one.loaded]
    assert [one.name for one in held] == ["c4", "c5"]
    assert [edge.count(f"c{number}") for number in range(6)] == [1, 2, 3, 4, 5, 6]


def test_eight_threads_see_every_write_whole_and_no_half_of_it(edge: Edge) -> None:
    edge.create("papers", PLAIN)
    size = 50
    ids = [point(i) for i in range(size)]

    def write(version: int) -> None:
        vectors = np.full((size, 8), version, np.float32)
        edge.upsert("papers", Points(ids, {"": vectors}, [{"v": version, "id": id} for id in ids]))

    write(1)
    failed: list[str] = []
    ended = threading.Event()

    def read() -> None:
        query = Query(np.ones(8, np.float32), size, params={"exact": True})
        while not ended.is_set():
            try:
                hits = edge.query("papers", [query])[0]
            except StoreError as error:
                failed.append(str(error))
                return
            versions = {hit.payload["v"] for hit in hits}
            if len(hits) != size or len(versions) != 1 or hits[0].score != 8 * hits[0].payload["v"]:
                failed.append(f"{len(hits)} hits of versions {versions}")

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for version in range(2, 30):
        write(version)
        if version == 15:
            edge.optimise("papers", GRAPH, None)
    ended.set()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"expected a folder at .*, found a file"):
        connect(str(tmp_path / "file"), shown="qdrant:file")
    with pytest.raises(UrlError, match="expected a folder after qdrant:"):
        connect("a\0b", shown="qdrant:?")


def test_a_path_is_one_place_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "place")
    paths = [f"{tmp_path}/place", f"{tmp_path}/place/", "place", "./link/../place//", "link"]
    urls = [f"qdrant:{path}" for path in paths]
    with ExitStack() as stack:
        # a second place would be refused: one connection to a folder at a time
        opened = [stack.enter_context(closing(backends.connect(url))) for url in urls]
        engines = [one._engine for one in opened]  # type: ignore[attr-defined]  # what the front does not show
        engines[0].create("papers", PLAIN)
        for engine in engines:
            assert engine.collections() == ["papers"]
            assert engine._place is engines[0]._place
    assert [one.url for one in opened] == urls


def test_names_that_are_exchanged_twice_during_one_call_do_not_make_a_collection_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = edge_place.Collection.reading
    with closing(backends.connect(f"qdrant:{tmp_path}/place")) as backend:
        for name in ("papers", "others"):
            table = backend.create(Manifest(name, Space(8, "l2"), Layout(), 10))
            table.write(Batch([name], matrix(1, 8), [None], [{}], [None]))
        papers = backend.open("papers")

        def reading(collection: edge_place.Collection) -> Any:
            monkeypatch.undo()
            for _ in range(2):
                backend.exchange("papers", "others")
            return plain(collection)

        monkeypatch.setattr(edge_place.Collection, "reading", reading)
        with pytest.raises(LayoutChanged, match="open it again"):
            papers.search(matrix(1, 8), None, k=1, where=None, exact=True)
        found = backend.open("papers").search(matrix(1, 8), None, k=1, where=None, exact=True)
    assert [hit.id for hit in found[0]] == ["papers"]


def test_edge_needs_nothing_of_the_server_clients(tmp_path: Path) -> None:
    code = f"""
import vecbridge
from vecbridge.backends.qdrant.engine import Points, Query
store = vecbridge.connect("qdrant:{tmp_path}/place")
things = store.create("things", dim=8, rows=10)
vectors = [[1.0, *[0.0] * 7], [0.0, 1.0, *[0.0] * 6]]
things.upsert(["a", "b"], vectors, metadata=[{{"n": 1}}, {{"n": 2}}])
hits = things.search(vectors[0], k=1, where={{"n": {{"$gte": 1}}}})
assert "a" in repr(hits)
store.close()
"""
    there = loaded(code)
    assert "qdrant_edge" in there
    assert there & ((HEAVY | {"grpc", "google", "pydantic"}) - {"numpy"}) == set()


def test_limits_are_those_of_the_installed_edge(edge: Edge) -> None:
    found = edge.limits()
    assert edge.limits() is found
    assert found.backend == "edge"
    assert found.version.startswith("0.")
