"""Hostile input, by Hypothesis: JSON, text, metadata, filters that have a meaning and some that have none."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

# few keys and values, so that filters and metadata meet
KEYS = ["a", "b", "c", "", "a b", "é", "'", '"', "$x", "0", "%s", "\\"]

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
"""Text that every store keeps."""

wild_texts = st.text(max_size=20) | st.sampled_from(["\0", "\ud800", "a\0b"]) | st.text(max_size=1100)
"""Text that may hold NUL and lone surrogates, or be long."""

numbers = (
    st.integers(-(2**63), 2**63 - 1)
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, -0.0, 1.0, 1.5, 2.0**53, 2**53 + 1, 1e16, 1e300, 5e-324, float(2**63 - 1024)])
)
"""Numbers that metadata holds."""

scalars = st.none() | st.booleans() | numbers | texts | st.sampled_from(["", "a", "1", "é", "\uffff"])
"""What a filter compares with."""

keys = st.sampled_from(KEYS) | texts
"""Keys of metadata."""

values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)
"""Any JSON that metadata holds."""

metadata = st.dictionaries(keys, values, max_size=4)
"""Metadata that every store keeps."""

wild_values: st.SearchStrategy[Any] = st.recursive(
    scalars
    | wild_texts
    | st.integers()
    | st.floats()
    | st.binary(max_size=3)
    | st.complex_numbers()
    | st.just(object()),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(wild_texts | st.integers() | st.none(), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=8,
)
"""Anything at all, much of which no store keeps."""

_paths = st.lists(st.sampled_from([*KEYS[:6], "'", "0", "\\"]), min_size=1, max_size=3).map(".".join)


def _conditions(operand: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    ordered = numbers | texts
    plain = st.one_of(
        st.fixed_dictionaries({"$eq": operand}),
        st.fixed_dictionaries({"$ne": operand}),
        st.fixed_dictionaries({"$in": st.lists(operand, max_size=4)}),
        st.fixed_dictionaries({"$nin": st.lists(operand, max_size=4)}),
        st.fixed_dictionaries({"$exists": st.booleans()}),
        *(st.fixed_dictionaries({operator: ordered}) for operator in ("$gt", "$gte", "$lt", "$lte")),
        *(st.fixed_dictionaries({operator: texts}) for operator in ("$contains", "$icontains")),
    )
    return plain | plain.map(lambda condition: {"$not": condition})


filters: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(_paths, scalars | _conditions(values), max_size=2),
    lambda inner: (
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"$not": inner})
    ),
    max_leaves=5,
)
"""Filters that have a meaning."""

_operators = st.sampled_from(
    [
        "$eq",
        "$ne",
        "$gt",
        "$gte",
        "$lt",
        "$lte",
        "$in",
        "$nin",
        "$contains",
        "$icontains",
        "$exists",
        "$and",
        "$or",
        "$not",
        "$regex",
        "$",
    ]
)

wild_filters: st.SearchStrategy[Any] = filters | st.recursive(
    wild_values,
    lambda inner: st.dictionaries(
        _operators | keys | wild_texts, inner | st.lists(inner, max_size=3), max_size=3
    ),
    max_leaves=8,
)
"""Anything that might be taken for a filter."""
