"""Filters for Qdrant: between their bounds lies what `vecbridge.filters.matches` says, on the real engine."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

qe = pytest.importorskip("qdrant_edge", reason="needs qdrant-edge-py, the engine in process")
client = pytest.importorskip("qdrant_client", reason="needs qdrant-client")

from hypothesis import given  # noqa: E402 - after the check that the engine is there
from hypothesis import strategies as st  # noqa: E402 - the same
from qdrant_client import grpc, models  # noqa: E402 - the same
from qdrant_client.conversions.conversion import RestToGrpc  # noqa: E402 - the same

from vecbridge import filters  # noqa: E402 - the same
from vecbridge.backends.qdrant.conditions import DEEPEST, NOTHING  # noqa: E402 - the same
from vecbridge.backends.qdrant.edge.query import filter_of  # noqa: E402 - the same
from vecbridge.backends.qdrant.filters import (  # noqa: E402 - the same
    LEVELS,
    Bounds,
    checker,
    compile,
    faithful,
    key,
    marks,
)
from vecbridge.backends.qdrant.points import payloads  # noqa: E402 - the same
from vecbridge.filters import And, Filter, Not, Or, matches, parse  # noqa: E402 - the same
from vecbridge.testing import strategies  # noqa: E402 - the same
from vecbridge.testing.filtering import OPERANDS, RECORDS, TABLE  # noqa: E402 - the same
from vecbridge.types import Batch  # noqa: E402 - the same

INDEXES: list[dict[str, str]] = [
    {},
    {"metadata.v": "Keyword", "metadata.n": "Float", "odd": "Keyword"},
    {"metadata.v": "Float", "metadata.v.x": "Float", "odd": "Keyword"},
]

Json = dict[str, Any]


class Shelf:
    """Records in Edge, one point for each; its id is the position."""

    def __init__(
        self, path: Path, records: Sequence[Json] = (), indexes: dict[str, str] | None = None
    ) -> None:
        path.mkdir(parents=True)
        vectors = qe.EdgeVectorParams(size=1, distance=qe.Distance.Dot)
        self.shard = qe.EdgeShard.create(str(path), qe.EdgeConfig(vectors=vectors))
        for field, kind in (indexes or {}).items():
            schema = getattr(qe.PayloadSchemaType, kind)
            self.shard.update(qe.UpdateOperation.create_field_index(field, schema))
        if records:
            self.put(records)

    def put(self, records: Sequence[Json]) -> None:
        self.upsert([{"metadata": record, "odd": marks(record)} for record in records])

    def upsert(self, payloads: Sequence[Json]) -> None:
        points = [qe.Point(number, [1.0], payload) for number, payload in enumerate(payloads)]
        self.shard.update(qe.UpdateOperation.upsert_points(points))

    def find(self, where: Json) -> set[int]:
        request = qe.ScrollRequest(
            limit=1_000_000, filter=filter_of(where), with_payload=False, with_vector=False
        )
        return {point.id for point in self.shard.scroll(request)[0]}

    def read(self) -> list[Json]:
        request = qe.ScrollRequest(limit=1_000_000, with_payload=True, with_vector=False)
        return [point.payload["metadata"] for point in self.shard.scroll(request)[0]]

    def check(self, where: Filter, records: Sequence[Json]) -> Bounds:
        bounds, check = compile(where), checker(where)
        right = {number for number, record in enumerate(records) if check(record)}
        over, under = self.find(bounds.over), self.find(bounds.under)
        assert right <= over, f"{bounds.over} misses {[records[row] for row in right - over]}"
        assert under <= right, f"{bounds.under} takes {[records[row] for row in under - right]}"
        assert over == right or not bounds.exact
        assert self.find(bounds.doubt) == over - under
        return bounds


@pytest.fixture(scope="module", params=INDEXES, ids=["no index", "keyword index", "float index"])
def shelf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path_factory.mktemp("edge") / "shelf", RECORDS, request.param)
    yield shelf
    shelf.shard.close()


@pytest.mark.parametrize("name", TABLE)
def test_what_matches_lies_between_the_bounds(shelf: Shelf, name: str) -> None:
    shelf.check(parse(TABLE[name]), RECORDS)


EXACT: list[Json] = [
    {},
    *({"v": {operator: value}} for operator in ("$eq", "$ne") for value in ("a", "", True, False, None, [])),
    *({"v": {operator: ["a", "b", None, True, []]}} for operator in ("$in", "$nin")),
    *({"v": {operator: []}} for operator in ("$in", "$nin")),
    {"v": {"$exists": True}},
    {"v.x": {"$exists": False}},
    {"$or": [{"v": "a"}, {"$not": {"$and": [{"w": True}, {"v": {"$exists": True}}]}}]},
    {'"': True},
    {"\\": {"$ne": False}},
    {'a."': []},
]


@pytest.mark.parametrize("where", EXACT, ids=str)
def test_texts_booleans_null_and_presence_are_exact(where: Json) -> None:
    assert compile(parse(where)).exact


@pytest.mark.parametrize(
    "where",
    [
        {"v": 1},
        {"v": {"$gt": 1}},
        {"v": {"$gt": "a"}},
        {"v": [1]},
        {"v": {"$eq": {"x": 1}}},
        {'"': 1},
        {'"': None},
    ],
    ids=str,
)
def test_numbers_order_of_texts_wholes_and_strange_keys_are_not(where: Json) -> None:
    assert not compile(parse(where)).exact


def test_as_many_filters_of_the_table_are_exact_or_leave_no_doubt_as_ever(shelf: Shelf) -> None:
    every = [compile(parse(where)) for where in TABLE.values()]
    assert sum(bounds.exact for bounds in every) == 82
    assert sum(not shelf.find(bounds.doubt) for bounds in every) == 176
    assert len(every) == 333


def test_numbers_that_qdrant_keeps_leave_no_doubt(tmp_path: Path) -> None:
    usual = [0, 1, 1.0, 2, 1.5, -7, 0.1, 19.99, 1e-5, 2**53 - 1, 1_700_000_000.25, 2**53 + 1, -(2**63), 3.0]
    records: list[Json] = [{"v": value} for value in usual] + [
        {"v": [1, 2.5, None]},
        {"v": "1"},
        {"v": True},
        {},
    ]
    shelf = Shelf(tmp_path / "edge", records)
    operators = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte")
    for operand in [0, 1, 1.0, 1.5, 0.1, 19.99, -7, 2**53 - 1]:
        for operator in operators:
            where = {"v": {operator: operand}}
            assert not shelf.find(shelf.check(parse(where), records).doubt), where
    for operand in [2**53 + 1, -(2**63), 2**53]:
        for operator in operators[:2]:
            where = {"v": {operator: operand}}
            assert not shelf.find(shelf.check(parse(where), records).doubt), where
    shelf.shard.close()


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Shelf]]:
    path = tmp_path_factory.mktemp("edge")
    fields = ["metadata.a", 'metadata.""', "metadata.a.b"]
    shelves = [
        Shelf(path / "plain"),
        Shelf(path / "keyword", indexes=dict.fromkeys([*fields, "odd"], "Keyword")),
        Shelf(path / "float", indexes={**dict.fromkeys(fields, "Float"), "odd": "Keyword"}),
    ]
    yield shelves
    for shelf in shelves:
        shelf.shard.close()


@given(where=strategies.filters, records=st.lists(strategies.metadata, min_size=6, max_size=6))
def test_any_filter_on_any_metadata_keeps_its_bounds(
    blank: list[Shelf], where: Json, records: list[Json]
) -> None:
    for shelf in blank:
        shelf.put(records)
        shelf.check(parse(where), records)


@given(where=strategies.filters, metadata=strategies.metadata)
def test_the_checker_says_what_matches_says(where: Json, metadata: Json) -> None:
    condition = parse(where)
    assert checker(condition)(metadata) == matches(condition, metadata)


@pytest.mark.parametrize("name", TABLE)
def test_the_checker_says_of_the_table_what_matches_says(name: str) -> None:
    condition = parse(TABLE[name])
    check = checker(condition)
    assert [check(record) for record in RECORDS] == [matches(condition, record) for record in RECORDS]


_operands = st.sampled_from(OPERANDS) | strategies.numbers | st.floats(allow_nan=False, allow_infinity=False)


@given(
    operator=st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]),
    operand=_operands.filter(
        lambda operand: isinstance(operand, int | float) and not isinstance(operand, bool)
    ),
    steps=st.lists(st.integers(-70, 70), min_size=5, max_size=5),
)
def test_numbers_next_to_the_operand_keep_the_bounds(
    blank: list[Shelf], operator: str, operand: float, steps: list[int]
) -> None:
    near = [operand, *(_step(float(operand), step) for step in steps)]
    records: list[Json] = [{"a": value} for value in near]
    for shelf in blank:
        shelf.put(records)
        shelf.check(parse({"a": {operator: operand}}), records)


def _step(number: float, steps: int) -> float:
    """The float so many places away, or the same where that is none."""
    bits = struct.unpack("<q", struct.pack("<d", number))[0] + steps
    moved = struct.unpack("<d", struct.pack("<q", max(-(2**63), min(bits, 2**63 - 1))))[0]
    return float(moved) if abs(moved) <= 1.7976931348623157e308 else number


def _floats(n: int, seed: int) -> list[float]:
    print("seed", seed)  # noqa: T201 - names the seed where a test fails
    chance = random.Random(seed)
    some = [struct.unpack("<d", chance.randbytes(8))[0] for _ in range(n)]
    some += [chance.gauss(0, 1) for _ in range(n)] + [round(chance.gauss(0, 1000), 4) for _ in range(n)]
    return [number for number in some if abs(number) < 1.7e308]


def test_qdrant_gives_back_changed_floats_and_we_know_which(tmp_path: Path) -> None:
    numbers = _floats(2_000, 7)
    shelf = Shelf(tmp_path / "edge", [{"v": number} for number in numbers])
    back = [record["v"] for record in shelf.read()]
    changed = [number for number, other in zip(numbers, back, strict=True) if number != other]
    assert not any(faithful({"a": [{"b": number}]}) for number in changed)
    # were none changed any more, all of this could go
    assert len(changed) > 100
    assert all(faithful(number) for number in numbers[-1_000:])
    assert marks({"v": changed[0]}) == ["x:v"]
    shelf.shard.close()


@pytest.mark.parametrize("index", [None, "Float"])
def test_changed_floats_are_found_all_the_same(tmp_path: Path, index: str | None) -> None:
    numbers = _floats(200, 8)
    records: list[Json] = [{"v": number} for number in numbers]
    shelf = Shelf(tmp_path / "edge", records, {"metadata.v": index} if index else None)
    for number in random.Random(9).sample(numbers, 30):
        for operator in ("$eq", "$gt", "$gte", "$lt", "$lte"):
            bounds = shelf.check(parse({"v": {operator: number}}), records)
            assert len(shelf.find(bounds.doubt)) <= 2
    shelf.check(parse({"v": {"$in": numbers[::3]}}), records)
    shelf.check(parse({"v": {"$nin": numbers[::5]}}), records)
    shelf.shard.close()


def test_a_float_that_qdrant_takes_for_one_is_not_found_as_one(tmp_path: Path) -> None:
    records: list[Json] = [{"v": 0.9999999999999999}, {"v": 1}, {"v": 1.0}]
    shelf = Shelf(tmp_path / "edge", records)
    assert shelf.read()[0] == {"v": 1.0}
    for operator in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte"):
        assert shelf.find(shelf.check(parse({"v": {operator: 1}}), records).doubt) == {0}
    shelf.shard.close()


def test_marks_say_what_lies_where() -> None:
    metadata = {
        "a": True, "b": [False, 1, True], "c": [], "d": {"e": {"f": None}}, "": {"": []}, "x.y": True,
        "g": [[True]], "h": [{"i": True}], "j": 1.0, "k": [0.1, 0.30000000000000004], "l": 1, "m": {},
        "n": "true", "o": -0.0, 'q"': True, "r": 2**53 + 1, "s": 1e16,
    }  # fmt: skip
    assert marks(metadata) == sorted(
        ["t:a", "f:b", "t:b", "e:c", "n:d.e.f", "e:.", "w:j", "x:k", "w:o", 't:q"', "x:s"]
    )
    assert marks({"a": "text", "b": 1, "c": [1.5, "x"]}) == []
    deep: Any = True
    for _ in range(LEVELS - 2):
        deep = {"k": deep}
    assert marks({"k": deep}) == ["t:" + ".".join(["k"] * (LEVELS - 1))]
    assert marks({"k": {"k": deep}}) == []


NAMES = [
    *(chr(number) for number in range(1, 128)), *(f"a{chr(number)}b" for number in range(1, 128)),
    "", "é", "\u200b", "\U00010000", "\uffff", "\x85", "\u2028", "0", "00", "-1", "[]", "[0]", "a[0]",
    "é" * 5_000,
]  # fmt: skip


def test_every_key_but_those_with_quotes_and_backslashes_can_be_named(tmp_path: Path) -> None:
    names = [name for name in NAMES if "." not in name]
    records: list[Json] = [{name: {"y": "here"}} for name in names]
    shelf = Shelf(tmp_path / "edge", records)
    strange = [name for name in names if key([name]) is None]
    assert strange == ['"', "\\", 'a"b', "a\\b"]
    for name in names:
        bounds = shelf.check(filters.Test((name, "y"), "eq", "here"), records)
        assert bounds.exact == (name not in strange)
    shelf.shard.close()


def test_digits_are_keys_and_lists_are_not_entered(tmp_path: Path) -> None:
    records: list[Json] = [
        {"v": [{"y": "a"}]}, {"v": {"0": {"y": "a"}}}, {"v": ["a", "b"]}, {"0": "a"}, {"v": [["a"]]},
        {"v": {"y": [{"z": "a"}]}}, {"v": {"0": "a"}},
    ]  # fmt: skip
    shelf = Shelf(tmp_path / "edge", records)
    for path in ("v.y", "v.0", "v.0.y", "0", "v", "v.y.z"):
        for condition in ({"$eq": "a"}, {"$exists": True}, {"$ne": None}):
            assert shelf.check(parse({path: condition}), records).exact
    shelf.shard.close()


def test_paths_too_deep_say_nothing() -> None:
    for test in (
        filters.Test(("k",) * LEVELS, "eq", True),
        filters.Test(("k",) * 200, "exists"),
        filters.Test(("a.b",), "eq", "x"),
    ):
        assert compile(test) == Bounds({}, NOTHING, False)
        assert compile(Not(test)) == Bounds({}, NOTHING, False)
    assert compile(filters.Test(("k",) * (LEVELS - 1), "eq", True)).exact


def test_metadata_of_any_depth_keeps_the_bounds(tmp_path: Path) -> None:
    leaves: list[Any] = [
        "a",
        ["a", 1],
        [],
        {},
        None,
        [None],
        True,
        [[1]],
        {"k": "a"},
        [{"k": 1}],
        0.9999999999999999,
    ]
    records: list[Json] = []
    for depth in (1, LEVELS - 2, LEVELS - 1, LEVELS, 40):
        for leaf in leaves:
            record = leaf
            for _ in range(depth):
                record = {"k": record}
            records.append(record)
    rows = len(records)
    batch = Batch(
        [*map(str, range(rows))], np.ones((rows, 1), np.float32), [None] * rows, records, [None] * rows
    )
    shelf = Shelf(tmp_path / "edge")
    stored = payloads(batch, [None] * rows, [None] * rows)
    shelf.upsert(stored)
    for length in (1, LEVELS - 2, LEVELS - 1, LEVELS, LEVELS + 1, 41):
        for condition in (
            {"$eq": "a"},
            {"$eq": 1},
            {"$eq": []},
            {"$ne": None},
            {"$eq": True},
            {"$exists": True},
        ):
            shelf.check(parse({".".join(["k"] * length): condition}), records)
    shelf.shard.close()


def _size(part: Json) -> int:
    """How many conditions a filter has."""
    inner = [one for word in ("must", "should", "must_not") for one in part.get(word, ())]
    return sum(map(_size, inner)) if inner else 1


def test_long_lists_are_few_conditions(tmp_path: Path) -> None:
    records: list[Json] = [
        {"v": "a"}, {"v": 7}, {"v": 7.0}, {"v": 7.5}, {"v": 70_001}, {"v": [70_002, 8]}, {"v": 0.1},
        {"v": 2**60}, {"v": float(2**60)}, {},
    ]  # fmt: skip
    shelf = Shelf(tmp_path / "edge", records)
    texts = [f"no {number}" for number in range(70_000)]
    for numbers in (range(70_000), range(0, 70_000, 10), [number + 0.5 for number in range(7_000)]):
        for operator in ("$in", "$nin"):
            bounds = shelf.check(parse({"v": {operator: [*numbers, 2**60, "a", None]}}), records)
            assert _size(bounds.over) < 250
            assert _size(bounds.under) < 250
    whole = shelf.check(parse({"v": {"$in": [*range(0, 70_000, 10)]}}), records)
    assert shelf.find(whole.over) <= {2}, "only floats are in doubt"
    assert not shelf.find(compile(parse({"v": {"$in": [*range(1_000)]}})).doubt) - {2}
    many = compile(parse({"$and": [{"v": {"$ne": number}} for number in range(2_000)]}))
    assert _size(many.over) < 150
    assert many == compile(parse({"v": {"$nin": list(range(2_000))}}))
    same = shelf.check(parse({"v": {"$nin": [*texts, "a"]}}), records)
    assert same.exact
    assert same == compile(parse({"$and": [{"v": {"$ne": text}} for text in [*texts, "a"]]}))
    assert _size(same.over) == 1
    assert _size(compile(parse({"v": {"$in": [[number] for number in range(5_000)]}})).over) < 5
    shelf.shard.close()


def test_the_same_numbers_are_meant_by_a_short_list_and_a_long_one(shelf: Shelf) -> None:
    numbers = [
        operand for operand in OPERANDS if isinstance(operand, int | float) and not isinstance(operand, bool)
    ]
    for chosen in (
        numbers,
        [1, 2, 3, 4, 5, 6, 7, 8, 10],
        [n + 0.5 for n in range(20)],
        list(range(-100, 100)),
    ):
        for operator in ("$in", "$nin"):
            shelf.check(parse({"v": {operator: chosen}}), RECORDS)


def _nest(levels: int) -> Iterator[Filter]:
    """Trees that are deep in the ways a tree can be."""
    leaf = filters.Test(("v",), "eq", "a")
    other = filters.Test(("n",), "exists")
    for step in (
        lambda tree: Not(And((tree, other))),
        lambda tree: Not(Or((tree, other))),
        lambda tree: Or((And((tree, other)), leaf)),
        lambda tree: And((Or((tree, leaf)), other)),
        lambda tree: Not(tree),
        lambda tree: And((tree, other)),
        lambda tree: Or((tree, Not(other))),
    ):
        tree: Filter = leaf
        for _ in range(levels):
            tree = step(tree)
        yield tree


@pytest.mark.parametrize("levels", [1, 10, 25, 50, 100])
def test_deep_trees_are_cut_to_what_qdrant_reads(shelf: Shelf, levels: int) -> None:
    for tree in _nest(levels):
        bounds = shelf.check(tree, RECORDS)
        for part in (bounds.over, bounds.under, bounds.doubt):
            # serde_json reads 128 levels; the request around the filter has at most eight
            assert _levels(part) <= 2 * (DEEPEST + 1) + 5 < 120
            _sent(part)
        if levels <= 10:
            assert bounds.exact


def _levels(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return 1 + max(map(_levels, inner), default=0) if isinstance(value, dict | list) else 0


def _sent(part: Json) -> models.Filter:
    """The filter as the official client takes it, having gone through JSON and protobuf unchanged."""
    assert json.loads(json.dumps(part, allow_nan=False)) == part
    model = models.Filter.model_validate(part)
    assert _bare(model.model_dump(exclude_none=True)) == _bare(part)
    message = RestToGrpc.convert_filter(model)
    assert grpc.Filter.FromString(message.SerializeToString()) == message
    return model


def _bare(value: Any) -> Any:
    """JSON without what is empty: an empty filter is none."""
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", TABLE)
def test_every_filter_is_one_that_the_official_client_sends(name: str) -> None:
    bounds = compile(parse(TABLE[name]))
    for part in (bounds.over, bounds.under, bounds.doubt):
        _sent(part)


# Where the client's local mode, a double for the shape of requests, finds other records than the engine.
DEVIATIONS: dict[str, str] = {}


@pytest.fixture(scope="module")
def double() -> Iterator[client.QdrantClient]:
    double = client.QdrantClient(":memory:")
    vectors = models.VectorParams(size=1, distance=models.Distance.DOT)
    double.create_collection("shelf", vectors_config=vectors)
    points = [
        models.PointStruct(id=number, vector=[1.0], payload={"metadata": record, "odd": marks(record)})
        for number, record in enumerate(RECORDS)
    ]
    double.upsert("shelf", points)
    yield double
    double.close()


@pytest.mark.parametrize("name", TABLE)
def test_local_mode_takes_the_filters_and_finds_the_same(double: client.QdrantClient, name: str) -> None:
    where = parse(TABLE[name])
    right = {number for number, record in enumerate(RECORDS) if matches(where, record)}
    bounds = compile(where)
    over, under = (
        {point.id for point in double.scroll("shelf", scroll_filter=_sent(part), limit=1_000)[0]}
        for part in (bounds.over, bounds.under)
    )
    assert (under <= right <= over and (over == right or not bounds.exact)) == (name not in DEVIATIONS)


def test_long_and_strange_texts_are_found(tmp_path: Path) -> None:
    texts = [
        "x" * 100_000,
        "x" * 99_999,
        "",
        " ",
        "\t\n",
        "\x01\x7f",
        "é",
        "e\u0301",
        "\U0010ffff",
        "\uffff",
        "'\"\\",
    ]
    records: list[Json] = [{"v": text} for text in texts]
    for number, indexes in enumerate(({}, {"metadata.v": "Keyword"})):
        shelf = Shelf(tmp_path / str(number), records, indexes)
        for row, text in enumerate(texts):
            assert shelf.find(shelf.check(parse({"v": text}), records).over) == {row}
        shelf.shard.close()


def test_nothing_finds_nothing_and_its_opposite_everything(shelf: Shelf) -> None:
    assert shelf.find(NOTHING) == set()
    assert shelf.find({"must_not": NOTHING["must"]}) == set(range(len(RECORDS)))
    assert compile(Or(())) == Bounds(NOTHING, NOTHING, True)
    assert compile(And(())) == Bounds({}, {}, True)
    assert compile(Not(Or(()))) == Bounds({}, {}, True)
    assert compile(Or((filters.Test(("v",), "eq", "a"), And(())))) == Bounds({}, {}, True)
    assert compile(And((filters.Test(("v",), "eq", "a"), Or(())))) == Bounds(NOTHING, NOTHING, True)
    assert compile(parse({"v": "a"})).doubt == {
        "must": [{"key": "metadata.v", "match": {"value": "a"}}],
        "must_not": [{"key": "metadata.v", "match": {"value": "a"}}],
    }
