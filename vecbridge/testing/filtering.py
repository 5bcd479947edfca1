"""Filters: what `vecbridge.filters.matches` says, every store does."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from ..errors import FilterError
from ..filters import matches, parse
from ..store import Collection, Store
from ..types import Layout
from . import data
from .base import Base

# One value under "v" for each record, and some records without it.
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, 1.5, -0.0, 2, 10, "1", "", "a", "A", "b", "ab", "é", "e\u0301", "Z",
    "z", "10", "2", "true", "null", "ÿ", "\U00010000", "\uffff", [], [1], ["1"], [1, 2], [2, 1], [[1]],
    [[1], 2], [None], [True], ["a", "b"], ["a", 1, None], {}, {"x": 1}, {"x": "1"},
    {"x": None}, {"x": [1, 2]},
    {"x": {"y": 1}}, {"x": {"y": None}}, {"x": {}}, {"0": 1}, [{"x": 1}], [{}], 2**53, 2**53 + 1, 2**63 - 1,
    "Straẞe ÄB%_\\", "ΟΔΟΣ", "ὁδός", "İi", "\u212a", ["No", "NAÏVE", 1, ["ab"]],
    -(2**63), 1e300, -1e300, 5e-324, 0.1, 0.30000000000000004, 1e16, 10**16, 9223372036854774784.0,
]  # fmt: skip

RECORDS: list[dict[str, Any]] = [
    *({"v": value, "n": number} for number, value in enumerate(VALUES)),
    {"n": -1},
    {"n": -2, "w": 1},
    {"n": -3, "v": 1, "w": {"v": 2}},
    {"n": -4, "": 1, "a.b": 1, "a": {"b": 2}},
    {"n": -5, "v ": 1, "$v": 1, "'": 1},
    {},
]

OPERANDS: list[Any] = [
    None, True, False, 0, 1, 1.0, -0.0, 1.5, "1", "", "a", "Z", "é", "\uffff", 2**53, 2**53 + 1, 2**63 - 1,
    9223372036854774784.0, 5e-324, 1e16, 0.1, 0.30000000000000004,
]  # fmt: skip

# what is looked for inside of texts
TEXTS = [
    "",
    "a",
    "A",
    "aB",
    "10",
    "é",
    "É",
    "\u0301",
    "σ",
    "ς",
    "Σ",
    "i",
    "İ",
    "k",
    "ß",
    "ss",
    "%",
    "_",
    "\\",
    "ÄB%",
]

WHOLE: list[Any] = [
    [], [1], ["1"], [1.0, 2], [[1]], [None], {}, {"x": 1}, {"x": 1.0}, {"x": {"y": None}}, [{"x": 1}],
    ["a", 1, None],
]  # fmt: skip


def _table() -> dict[str, dict[str, Any]]:
    """Every operator with every operand it takes, and their combinations."""
    found: list[dict[str, Any]] = [{}]
    found += [{"v": operand} for operand in [*OPERANDS, [1], [1, 2], []]]
    found += [{"v": {"$eq": operand}} for operand in WHOLE]
    found += [{"v": {"$ne": operand}} for operand in [*OPERANDS, *WHOLE]]
    for operator in ("$gt", "$gte", "$lt", "$lte"):
        found += [
            {"v": {operator: operand}}
            for operand in OPERANDS
            if isinstance(operand, int | float | str) and not isinstance(operand, bool)
        ]
    for operator in ("$contains", "$icontains"):
        found += [{"v": {operator: operand}} for operand in TEXTS]
    for operator in ("$in", "$nin"):
        found += [
            {"v": {operator: operand}}
            for operand in ([], [1], ["1"], [1, "a", None], [None], [True, False], [[1], {"x": 1}], OPERANDS)
        ]
    for path in ("v", "w", "v.x", "v.x.y", "v.0", "v.x.y.z", "w.v", "", "a.b", "v ", "'", "nobody", "n.v"):
        found += [
            {path: {"$exists": True}},
            {path: {"$exists": False}},
            {path: None},
            {path: {"$ne": None}},
            {path: 1},
            {path: {"$ne": 1}},
            {path: {"$gte": 0}},
            {path: {"$contains": "a"}},
            {path: {"$nin": [1, None]}},
        ]
    found += [
        {"v": {"$gte": 0, "$lt": 2}},
        {"v": {"$gt": 0, "$ne": 1}},
        {"v": {"$not": {"$gt": 0}}},
        {"v": {"$not": {"$contains": "a"}}},
        {"$or": [{"v": {"$icontains": "A"}}, {"v": 1}]},
        {"v": {"$not": {"$eq": 1, "$exists": True}}},
        {"v": {"$not": {"$not": {"$eq": 1}}}},
        {"v": 1, "n": {"$lt": 0}},
        {"$and": [{"v": 1}, {"n": {"$lt": 0}}]},
        {"$or": [{"v": 1}, {"n": {"$lt": 0}}]},
        {"$or": [{"v": 1}]},
        {"$not": {"v": 1}},
        {"$not": {"v": {"$ne": 1}}},
        {"$not": {}},
        {"$not": {"$or": [{"v": {"$gt": 0}}, {"v": {"$lt": 0}}]}},
        {"$or": [{"v": "a"}, {"$and": [{"v": {"$gte": 1}}, {"$not": {"v": {"$gt": 1}}}]}], "n": {"$gte": 0}},
        {"$and": [{}, {"v": 1}]},
        {"$or": [{}, {"v": 1}]},
    ]
    return {label(where): where for where in found}


def label(where: object) -> str:
    """A filter as the name of a test: printable, and the same in every process."""
    text = re.sub(r" at 0x[0-9a-f]+", "", ascii(where))
    return text if len(text) <= 100 else f"{text[:80]}… of {len(text)}"


TABLE = _table()

# What is no filter, and a part of the text that says so.
BAD: list[tuple[Any, str]] = [
    ("v = 1", "expected a filter"),
    ([{"v": 1}], "expected a filter"),
    (1, "expected a filter"),
    ({1: 2}, "as text"),
    ({"$eq": 1}, "unknown operator"),
    ({"$where": "1"}, "unknown operator"),
    ({"v": {"$regex": "a"}}, "unknown operator"),
    ({"v": {"x": 1}}, "unknown operator"),
    ({"v": {"$gt": 1, "x": 1}}, "unknown operator"),
    ({"v": {1: 1}}, "unknown operator"),
    ({"v": {}}, "no condition"),
    ({"$and": []}, "one or more"),
    ({"$or": {}}, "one or more"),
    ({"$or": [1]}, "expected a filter"),
    ({"$not": [1]}, "expected a filter"),
    ({"v": {"$not": 1}}, r"\$not takes"),
    ({"v": {"$not": {}}}, r"\$not takes"),
    ({"v": {"$in": 1}}, "list of values"),
    ({"v": {"$in": "abc"}}, "list of values"),
    ({"v": {"$nin": {"a": 1}}}, "list of values"),
    ({"v": {"$gt": None}}, "number or a string"),
    ({"v": {"$gt": True}}, "number or a string"),
    ({"v": {"$gt": [1]}}, "number or a string"),
    ({"v": {"$lt": {"x": 1}}}, "number or a string"),
    ({"v": {"$contains": 1}}, "a text to look for"),
    ({"v": {"$contains": ["a"]}}, "a text to look for"),
    ({"v": {"$icontains": None}}, "a text to look for"),
    ({"v": {"$icontains": "a\0"}}, "NUL"),
    ({"v": {"$exists": 1}}, "true or false"),
    ({"v": {"$exists": "true"}}, "true or false"),
    ({"v": float("nan")}, "finite"),
    ({"v": {"$lt": float("inf")}}, "finite"),
    ({"v": 2**63}, "64 bits"),
    ({"v": {"$gt": -(2**63) - 1}}, "64 bits"),
    ({"v": {"$in": [1, 10**400]}}, "64 bits"),
    ({"v": b"1"}, "expected text"),
    ({"v": {"$eq": {"a": {1}}}}, "expected text"),
    ({"v": {"$eq": {1: 1}}}, "keys as text"),
    ({"v": object()}, "expected text"),
]


class FilterTests(Base):
    """Filters: what `vecbridge.filters.matches` says, every store does."""

    @pytest.fixture(scope="class")
    @classmethod
    def cabinet(cls, shared: Store) -> Collection:
        """One record for each entry of RECORDS; its id is the position, its vector lies at that distance."""
        collection = shared.create("cabinet", dim=2, metric="l2", layout=Layout())
        vectors = np.stack([np.arange(len(RECORDS)), np.zeros(len(RECORDS))], axis=1)
        collection.upsert(data.names(len(RECORDS)), vectors, metadata=RECORDS)
        return collection

    @pytest.mark.parametrize("name", TABLE)
    def test_a_filter_lets_through_what_matches_and_nothing_else(
        self, cabinet: Collection, name: str
    ) -> None:
        where = TABLE[name]
        condition = parse(where)
        ids = data.names(len(RECORDS))
        right = [ids[row] for row, record in enumerate(RECORDS) if matches(condition, record)]
        assert [hit.id for hit in cabinet.search([0, 0], k=len(RECORDS), where=where)] == right
        assert cabinet.count(where=where) == len(right)

    @pytest.mark.parametrize("where", [
        {"v": 1}, {"v": {"$ne": 1}}, {"v": {"$in": ["a", [1]]}}, {"v.x": {"$exists": True}},
        {"$not": {"v": {"$gte": 0}}}, {"$or": [{"n": {"$lt": 0}}, {"v": None}]},
    ], ids=label)  # fmt: skip
    def test_delete_by_filter_takes_what_matches_and_nothing_else(
        self, store: Store, where: dict[str, Any]
    ) -> None:
        collection = store.create("cabinet", dim=2, metric="l2", layout=Layout())
        ids = data.names(len(RECORDS))
        collection.upsert(ids, np.ones((len(RECORDS), 2)), metadata=RECORDS)
        condition = parse(where)
        left = [name for name, record in zip(ids, RECORDS, strict=True) if not matches(condition, record)]
        assert 0 < len(left) < len(ids)
        assert collection.delete(where=where) == len(ids) - len(left)
        assert list(collection.get(ids).ids) == left
        assert collection.count() == len(left)

    @pytest.mark.parametrize(("where", "text"), BAD, ids=[label(where) for where, _ in BAD])
    def test_what_is_no_filter_is_refused_everywhere(
        self, cabinet: Collection, where: dict[str, Any], text: str
    ) -> None:
        for call in (
            lambda: cabinet.search([0, 0], where=where),
            lambda: cabinet.search_many([[0, 0]], where=where),
            lambda: cabinet.count(where=where),
            lambda: cabinet.delete(where=where),
        ):
            with pytest.raises(FilterError, match=text):
                call()
        assert cabinet.count() == len(RECORDS)

    def test_an_empty_filter_never_deletes_everything(self, cabinet: Collection) -> None:
        with pytest.raises(ValueError, match="would delete every record"):
            cabinet.delete(where={})
        with pytest.raises(ValueError, match="got none"):
            cabinet.delete()
        with pytest.raises(ValueError, match="got both"):
            cabinet.delete(["a"], where={"v": 1})
        assert cabinet.count() == len(RECORDS)

    def test_filters_may_be_long(self, store: Store) -> None:
        collection = store.create("cabinet", dim=2, layout=Layout())
        collection.upsert(["a", "b", "c"], np.ones((3, 2)), metadata=[{"v": "a"}, {"v": 7}, {}])
        many = [f"no {number}" for number in range(70_000)]
        assert collection.count(where={"v": {"$in": [*many, "a"]}}) == 1
        numbers = range(2_000)
        assert collection.count(where={"$or": [{"v": number} for number in numbers]}) == 1
        assert collection.count(where={"$and": [{"v": {"$ne": number}} for number in numbers]}) == 2
        assert collection.delete(where={"v": {"$nin": [*many, 7]}}) == 2

    def test_filters_may_be_deep(self, cabinet: Collection) -> None:
        where: dict[str, Any] = {"v": 1}
        for _ in range(25):
            where = {"$not": {"$and": [where, {"n": {"$exists": True}}]}}
        condition = parse(where)
        assert cabinet.count(where=where) == sum(matches(condition, record) for record in RECORDS)
        for _ in range(60):
            where = {"$not": where}
        with pytest.raises(FilterError, match="deep"):
            cabinet.count(where=where)
        assert cabinet.count(where={".".join(["v"] * 200): {"$exists": True}}) == 0
