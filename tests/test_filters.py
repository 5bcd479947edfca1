"""Filters: every row of the table of meanings, by hand; what is no filter; and laws that hold for all."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecbridge import filters
from vecbridge.errors import FilterError
from vecbridge.filters import And, Not, Or, folded, matches, parse, same
from vecbridge.testing import strategies
from vecbridge.testing.filtering import BAD, label

# metadata, filter, whether it matches
MEANINGS: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({}, {}, True),
    ({"a": 1}, {}, True),
    # equality, typed
    ({"a": 1}, {"a": 1}, True),
    ({"a": 1}, {"a": 1.0}, True),
    ({"a": 1.0}, {"a": 1}, True),
    ({"a": 1}, {"a": "1"}, False),
    ({"a": "1"}, {"a": 1}, False),
    ({"a": 1}, {"a": True}, False),
    ({"a": True}, {"a": 1}, False),
    ({"a": True}, {"a": True}, True),
    ({"a": False}, {"a": 0}, False),
    ({"a": 0}, {"a": -0.0}, True),
    ({"a": ""}, {"a": None}, False),
    ({"a": 2**53 + 1}, {"a": 2.0**53}, False),
    ({"a": "é"}, {"a": "e\u0301"}, False),
    ({"a": "A"}, {"a": "a"}, False),
    # null and missing
    ({"a": None}, {"a": None}, True),
    ({}, {"a": None}, True),
    ({"a": 0}, {"a": None}, False),
    ({"a": [None]}, {"a": None}, True),
    ({"a": []}, {"a": None}, False),
    ({}, {"a": {"$ne": None}}, False),
    ({"a": 1}, {"a": {"$ne": None}}, True),
    # the opposite includes what is missing
    ({}, {"a": {"$ne": 1}}, True),
    ({"a": None}, {"a": {"$ne": 1}}, True),
    ({"a": "1"}, {"a": {"$ne": 1}}, True),
    ({"a": 1}, {"a": {"$ne": 1}}, False),
    ({"a": [1, 2]}, {"a": {"$ne": 1}}, False),
    ({}, {"a": {"$nin": [1]}}, True),
    ({}, {"a": {"$nin": [1, None]}}, False),
    ({"a": 1}, {"a": {"$nin": []}}, True),
    ({"a": 1}, {"a": {"$in": []}}, False),
    ({"a": 1}, {"a": {"$in": ["1", 1.0]}}, True),
    ({}, {"a": {"$in": [None]}}, True),
    # parts of texts
    ({"a": "sand and sea"}, {"a": {"$contains": "and s"}}, True),
    ({"a": "sand"}, {"a": {"$contains": "And"}}, False),
    ({"a": "sand"}, {"a": {"$icontains": "And"}}, True),
    ({"a": "sand"}, {"a": {"$contains": ""}}, True),
    ({"a": 10}, {"a": {"$contains": "1"}}, False),
    ({}, {"a": {"$contains": ""}}, False),
    ({"a": ["sea", "sand"]}, {"a": {"$contains": "and"}}, True),
    ({"a": "ΟΔΟΣ"}, {"a": {"$icontains": "οδοσ"}}, True),
    ({"a": "İ"}, {"a": {"$icontains": "i"}}, False),
    ({}, {"a": {"$not": {"$contains": "x"}}}, True),
    # lists
    ({"a": [1, 2]}, {"a": 1}, True),
    ({"a": [1, 2]}, {"a": [1, 2]}, True),
    ({"a": [1, 2]}, {"a": [2, 1]}, False),
    ({"a": [1, 2]}, {"a": [1]}, False),
    ({"a": [[1]]}, {"a": [1]}, False),
    ({"a": [[1]]}, {"a": 1}, False),
    ({"a": 1}, {"a": [1]}, False),
    ({"a": [1.0]}, {"a": [1]}, True),
    ({"a": [True]}, {"a": [1]}, False),
    ({"a": [1, "x"]}, {"a": {"$in": ["x", "y"]}}, True),
    ({"a": [[1], 2]}, {"a": {"$in": [[[1], 2]]}}, True),
    ({"a": [1, 5]}, {"a": {"$gt": 4}}, True),
    ({"a": [1, 5]}, {"a": {"$gt": 2, "$lt": 4}}, True),
    ({"a": []}, {"a": {"$gte": 0}}, False),
    ({"a": [{"b": 1}]}, {"a.b": 1}, False),
    ({"a": [5]}, {"a.0": 5}, False),
    ({"a": {"0": 5}}, {"a.0": 5}, True),
    # objects
    ({"a": {"b": 1, "c": 2}}, {"a": {"$eq": {"c": 2.0, "b": 1}}}, True),
    ({"a": {"b": 1}}, {"a": {"$eq": {"b": 1, "c": None}}}, False),
    ({"a": [{"b": 1}]}, {"a": {"$eq": {"b": 1}}}, False),
    # paths
    ({"a": {"b": {"c": 1}}}, {"a.b.c": 1}, True),
    ({"a": {"b": 1}}, {"a.b.c": None}, True),
    ({"a": {"b": 1}}, {"a.b.c": {"$exists": True}}, False),
    ({"a.b": 1}, {"a.b": 1}, False),
    ({"": 1}, {"": 1}, True),
    ({"a": {"": 1}}, {"a.": 1}, True),
    ({"a": {"$x": 1}}, {"a.$x": 1}, True),
    # existence
    ({"a": None}, {"a": {"$exists": True}}, True),
    ({}, {"a": {"$exists": True}}, False),
    ({}, {"a": {"$exists": False}}, True),
    # order
    ({"a": 2}, {"a": {"$gt": 1}}, True),
    ({"a": 1}, {"a": {"$gt": 1}}, False),
    ({"a": 1}, {"a": {"$gte": 1.0}}, True),
    ({"a": 1}, {"a": {"$lt": 1.5}}, True),
    ({"a": 1}, {"a": {"$lte": 1}}, True),
    ({"a": "2"}, {"a": {"$gt": 1}}, False),
    ({"a": 2}, {"a": {"$gt": "1"}}, False),
    ({"a": True}, {"a": {"$gt": 0}}, False),
    ({"a": None}, {"a": {"$gte": 0}}, False),
    ({"a": None}, {"a": {"$lt": ""}}, False),
    ({}, {"a": {"$lt": 1}}, False),
    ({}, {"a": {"$not": {"$lt": 1}}}, True),
    ({"a": "b"}, {"a": {"$gt": "B"}}, True),
    ({"a": "é"}, {"a": {"$gt": "z"}}, True),
    ({"a": "\U00010000"}, {"a": {"$gt": "\uffff"}}, True),
    ({"a": "10"}, {"a": {"$lt": "9"}}, True),
    ({"a": 2**53 + 1}, {"a": {"$gt": 2.0**53}}, True),
    # and, or, not
    ({"a": 1, "b": 2}, {"a": 1, "b": 2}, True),
    ({"a": 1, "b": 3}, {"a": 1, "b": 2}, False),
    ({"a": 1}, {"$or": [{"a": 2}, {"a": 1}]}, True),
    ({"a": 1}, {"$or": [{"a": 2}, {"a": 3}]}, False),
    ({"a": 1}, {"$and": [{"a": {"$gt": 0}}, {"a": {"$lt": 2}}]}, True),
    ({"a": 1}, {"$not": {"a": 1}}, False),
    ({"a": 1}, {"$not": {}}, False),
    ({"a": 5}, {"a": {"$not": {"$gt": 1, "$lt": 4}}}, True),
    ({"a": 2}, {"a": {"$not": {"$gt": 1, "$lt": 4}}}, False),
    ({"a": 1, "b": 1}, {"a": 1, "$or": [{"b": 2}, {"b": 1}]}, True),
]  # fmt: skip


@pytest.mark.parametrize(("metadata", "where", "right"), MEANINGS, ids=[ascii(row)[:90] for row in MEANINGS])
def test_a_filter_means(metadata: dict[str, Any], where: dict[str, Any], right: bool) -> None:
    assert matches(parse(where), metadata) is right


@pytest.mark.parametrize(("where", "text"), BAD, ids=[label(where) for where, _ in BAD])
def test_what_is_no_filter_is_refused(where: Any, text: str) -> None:
    with pytest.raises(FilterError, match=text):
        parse(where)


def test_the_tree_is_small() -> None:
    assert parse({"a": 1}) == filters.Test(("a",), "eq", 1)
    assert parse({}) == And(())
    assert parse({"a.b": {"$ne": 1}, "c": {"$in": [1, 2]}}) == And(
        (
            Not(filters.Test(("a", "b"), "eq", 1)),
            Or((filters.Test(("c",), "eq", 1), filters.Test(("c",), "eq", 2))),
        )
    )
    assert parse({"a": (1, 2)}) == filters.Test(("a",), "eq", [1, 2])


def test_tests_are_listed_in_order() -> None:
    tree = parse({"a": 1, "$or": [{"b": {"$gt": 2}}, {"$not": {"c": {"$exists": True}}}]})
    assert [(".".join(test.path), test.operator) for test in filters.tests(tree)] == [
        ("a", "eq"), ("b", "gt"), ("c", "exists")
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["$not", "$and", "$or"])
def test_a_filter_is_nested_50_levels_at_most(key: str) -> None:
    where: Any = {"a": 1}
    for _ in range(50):
        where = {key: where if key == "$not" else [where]}
    matches(parse(where), {"a": 1})
    for _ in range(100_000):
        where = {key: where if key == "$not" else [where]}
    with pytest.raises(FilterError, match="50 levels deep"):
        parse(where)


def test_conditions_and_values_are_nested_50_levels_at_most() -> None:
    condition: Any = {"$eq": 1}
    value: Any = 1
    for _ in range(10_000):
        condition, value = {"$not": condition}, [value]
    with pytest.raises(FilterError, match="50 levels deep"):
        parse({"a": condition})
    with pytest.raises(FilterError, match="50 levels deep"):
        parse({"a": value})


def test_a_refused_text_is_not_repeated_at_length() -> None:
    with pytest.raises(FilterError, match="unknown operator") as caught:
        parse({"$" + "x" * 100_000: 1})
    assert len(str(caught.value)) < 400
    assert str(caught.value).isascii()


@settings(deadline=None, print_blob=True)
@given(strategies.filters, strategies.metadata)
def test_not_is_the_opposite(where: dict[str, Any], metadata: dict[str, Any]) -> None:
    assert matches(parse({"$not": where}), metadata) is not matches(parse(where), metadata)


@settings(deadline=None, print_blob=True)
@given(st.sampled_from(strategies.KEYS[:3]), strategies.values, strategies.metadata)
def test_ne_is_the_opposite_of_eq_and_nin_of_in(key: str, value: Any, metadata: dict[str, Any]) -> None:
    for one, other, operand in (("$eq", "$ne", value), ("$in", "$nin", [value, 1])):
        assert matches(parse({key: {one: operand}}), metadata) is not matches(
            parse({key: {other: operand}}), metadata
        )


@settings(deadline=None, print_blob=True)
@given(strategies.metadata)
def test_every_record_matches_its_own_values(metadata: dict[str, Any]) -> None:
    for key, value in metadata.items():
        if "." not in key and not key.startswith("$"):
            assert matches(parse({key: {"$eq": value}}), metadata)
            assert matches(parse({key: {"$in": [value]}}), metadata)


@settings(deadline=None, print_blob=True)
@given(strategies.wild_filters, strategies.metadata)
def test_anything_is_a_filter_or_refused(where: Any, metadata: dict[str, Any]) -> None:
    try:
        condition = parse(where)
    except FilterError:
        return
    assert matches(condition, metadata) in (True, False)


@settings(deadline=None, print_blob=True)
@given(strategies.values, strategies.values)
def test_same_is_symmetric_and_reflexive(one: Any, other: Any) -> None:
    assert same(one, one)
    assert same(one, other) is same(other, one)


@given(st.text())
def test_folding_keeps_every_character_in_its_place(text: str) -> None:
    assert len(folded(text)) == len(text)
    assert folded(text) == "".join(map(folded, text)) == folded(folded(text))


def test_no_letter_beyond_the_first_two_planes_has_a_case() -> None:
    """PostgreSQL's `$icontains` rests on it."""
    beyond = "".join(map(chr, range(0x20000, sys.maxunicode + 1)))
    assert folded(beyond) == beyond
