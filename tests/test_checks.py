"""The door: what is refused, with a text that helps; what passes comes out clean."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from vecbridge import checks
from vecbridge.errors import DimensionMismatch, InputError, MetadataError, ModelMismatch, VectorError
from vecbridge.testing import data
from vecbridge.types import Metric, Space

COSINE, IP, L2 = Space(3), Space(3, "ip"), Space(3, "l2")


@pytest.mark.parametrize(
    "given",
    [
        [[1, 2, 3], [4, 5, 6]],
        np.arange(1, 7, dtype=np.float64).reshape(2, 3),
        np.arange(1, 7, dtype=np.float16).reshape(2, 3),
        np.arange(1, 7, dtype=np.uint64).reshape(2, 3),
        np.arange(1, 7, dtype=np.longdouble).reshape(2, 3),
        np.arange(1, 7, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(1, 7, dtype=np.float32).reshape(2, 3)),
        np.arange(1, 13, dtype=np.float32).reshape(4, 3)[:2],
        (np.array([1, 2, 3]), [4.0, 5.0, 6.0]),
    ],
    ids=["list", "float64", "float16", "uint64", "longdouble", "big-endian", "fortran", "view", "rows"],
)
def test_vectors_come_out_as_float32_in_c_order(given: Any) -> None:
    matrix = checks.vectors(given, space=L2)
    assert matrix.dtype == np.dtype("<f4")
    assert matrix.flags.c_contiguous
    assert matrix.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("given", [[], np.empty((0, 3)), np.empty((0, 7)), np.empty(0)])
def test_no_vectors_are_a_matrix_of_no_rows(given: Any) -> None:
    matrix = checks.vectors(given, space=L2)
    assert matrix.shape == (0, 3)
    assert matrix.dtype == np.float32


def test_the_dimension_that_was_expected_stands_before_the_one_that_came() -> None:
    space = Space(3584, model="bge-multilingual-gemma2")
    text = "expected vectors of 3584 dimensions (bge-multilingual-gemma2), got 1024; "
    with pytest.raises(DimensionMismatch, match="^" + re.escape(text)):
        checks.vectors(np.ones((2, 1024)), space=space)
    with pytest.raises(DimensionMismatch, match=r"^expected a query of 3 dimensions, got 2; "):
        checks.query([1, 2], space=COSINE)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_value_that_is_not_finite_is_named(bad: float) -> None:
    matrix = np.ones((5, 3))
    matrix[3, 1] = matrix[4, 0] = bad
    with pytest.raises(VectorError, match=rf"^row 3 of vectors holds {bad} at component 1"):
        checks.vectors(matrix, space=L2)


def test_float64_beyond_float32_is_refused_and_what_rounds_into_it_is_kept() -> None:
    largest = float(np.finfo(np.float32).max)
    with pytest.raises(
        VectorError, match=r"^row 1 of vectors holds 1e\+39 at component 2, more than float32"
    ):
        checks.vectors([[1, 2, 3], [1, 2, 1e39]], space=L2)
    with pytest.raises(VectorError, match="has length"):
        checks.vectors([[largest, 0, 0]], space=L2)
    assert checks.vectors([[0, 0, 1e-60]], space=L2).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_lengths_whose_square_float32_cannot_hold_are_refused(metric: Metric) -> None:
    space = Space(4, metric)
    checks.vectors(np.full((1, 4), checks.LONGEST / 2.001), space=space)
    with pytest.raises(VectorError, match=r"has length 9.0\de\+18; distances .* beyond 9e\+18; scale"):
        checks.vectors(np.full((1, 4), checks.LONGEST / 1.99), space=space)


def test_two_of_the_longest_vectors_have_a_distance_that_float32_holds() -> None:
    one = np.full(4, checks.LONGEST / 2, dtype=np.float32)
    difference = one - -one
    squares = (difference * difference).sum(dtype=np.float32)
    assert np.isfinite(squares)


@pytest.mark.parametrize("row", [[0, 0, 0], [-0.0, 0, 0], [1e-50, 0, 0]])
def test_zero_is_refused_under_cosine_only(row: list[float]) -> None:
    with pytest.raises(VectorError, match=r"^row 1 of vectors is zero; it has no direction"):
        checks.vectors([[1, 2, 3], row], space=COSINE)
    with pytest.raises(VectorError, match=r"^the query is zero"):
        checks.query(row, space=COSINE)
    for space in (IP, L2):
        assert not checks.vectors([row], space=space).any()


def test_what_float32_cannot_tell_from_zero_is_refused_under_cosine() -> None:
    with pytest.raises(VectorError, match=r"has length 1e-20, which float32 .* \(below 1.1e-19\)"):
        checks.vectors([[1e-20, 0, 0]], space=COSINE)
    assert checks.vectors([[1.2e-19, 0, 0]], space=COSINE).any()


def test_half_precision_ends_below_65520_and_above_1e_7() -> None:
    kept = np.array([[65_519.99, 0, 0], [0, 0, 0], [1e-7, 0, 0], [1, 1e-20, 0], [-65_519, 0, 0]], np.float32)
    checks.check_half(kept)
    with np.errstate(over="raise"):
        assert np.isfinite(kept.astype(np.float16)).all()
    with pytest.raises(
        VectorError, match=r"^row 1 of vectors holds a component of size 65520; .* below 65,520"
    ):
        checks.check_half(np.array([[1, 2], [1, -65_520]], np.float32))
    with pytest.raises(VectorError, match=r"^row 0 of vectors has no component above 9e-08; .* below 1e-7"):
        checks.check_half(np.array([[9e-8, 0], [1, 1]], np.float32))
    checks.check_half(np.empty((0, 3), np.float32))
    checks.check_half(np.array([[9e-8, 0]], np.float32), vanishing=True)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([[1, 2, 3], [1, 2]], "rows of one length"),
        ([1, 2, 3], r"shape \(n, 3\), got 1 dimension\(s\) of shape \(3,\)"),
        (np.ones((1, 1, 3)), r"shape \(n, 3\), got 3 dimension"),
        (5.0, r"shape \(n, 3\)"),
        (None, "real numbers, got dtype object"),
        ("abc", "real numbers"),
        ([["1", "2", "3"]], "real numbers"),
        ([[True, False, True]], "real numbers, got dtype bool"),
        ([[1j, 2, 3]], "real numbers, got dtype complex128"),
        ([[10**400, 1, 2]], "real numbers, got dtype object"),
        (iter([[1, 2, 3]]), "real numbers, got dtype object"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "real numbers"),
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused(given: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        checks.vectors(given, space=L2)


def test_ids_are_a_list_of_texts() -> None:
    assert checks.ids(iter(["a", "b", "a"])) == ["a", "b", "a"]
    assert checks.ids(np.array(["a", "é"])) == ["a", "é"]
    assert checks.ids(["x" * 1_024]) == ["x" * 1_024]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("abc", "expected a list of ids, got a single str"),
        (b"abc", "expected a list of ids, got a single bytes"),
        (["a", 1], r"expected ids as text, got int at position 1; use str\(…\)"),
        (["a", None], "got NoneType at position 1"),
        (["a", "b", ""], "got an empty one at position 2"),
        (["x" * 1_025], r"1 to 1,024 bytes, got 1,025 bytes at position 0 \('xxx"),
        (["é" * 513], "got 1,026 bytes"),
        (["a", "b\0"], "the id at position 1 holds a NUL"),
        (["a", "\ud800"], r"the id at position 1 holds a lone surrogate \(U\+D800\)"),
    ],
)
def test_an_id_that_no_store_could_keep_is_named_by_position(given: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        checks.ids(given)


def test_a_refused_id_is_not_repeated_at_length() -> None:
    with pytest.raises(InputError, match="65,536 bytes") as caught:
        checks.ids(["\u202e" * 21_845 + "x"])
    assert len(str(caught.value)) < 300
    assert str(caught.value).replace("…", "").isascii()


def test_documents_are_texts_or_none() -> None:
    assert checks.documents(None, n=2) == [None, None]
    assert checks.documents(iter(["a", None, ""]), n=3) == ["a", None, ""]
    for given, text in (
        ("ab", "expected a list of 2 documents, got a single str"),
        (["a"], "expected 2 documents, one for each id, got 1; nothing was written"),
        (["a", 1], "documents as text or None, got int at position 1"),
        (["a", "\0"], "the document at position 1 holds a NUL"),
        (["a", "x" * 100_000_001], "up to 100,000,000 bytes, got 100,000,001 at position 1"),
    ):
        with pytest.raises(InputError, match=text):
            checks.documents(given, n=2)  # type: ignore[arg-type] # what is refused


@pytest.mark.parametrize("name", data.ODD_VALUES)
def test_metadata_passes_as_it_is(name: str) -> None:
    given = {"value": data.ODD_VALUES[name]}
    (plain,) = checks.metadata([given], n=1)
    assert plain == given
    assert plain is not given


def test_metadata_comes_out_as_plain_dicts_and_lists() -> None:
    assert checks.metadata(None, n=2) == [{}, {}]
    assert checks.metadata([None, {"a": (1, (2,))}], n=2) == [{}, {"a": [1, [2]]}]
    inner = [1]
    (plain,) = checks.metadata([{"a": inner}], n=1)
    inner.append(2)
    assert plain == {"a": [1]}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([1], "an object with text keys, got list"),
        ({1: 2}, "expected text keys in metadata at position 0, got int"),
        ({"a": {None: 2}}, "text keys"),
        ({"a": float("nan")}, "finite numbers in metadata at position 0, got nan"),
        ({"a": -float("inf")}, "got -inf"),
        ({"a": 2**63}, "64 bits"),
        ({"a": -(2**63) - 1}, "64 bits"),
        ({"a": b"x"}, "got bytes; JSON cannot hold it"),
        ({"a": {1, 2}}, "got set"),
        ({"a": np.float32(1)}, "got float32"),
        ({"a": np.int64(1)}, "got int64"),
        ({"a": "\0"}, "metadata at position 0 holds a NUL"),
        ({"\udfff": 1}, r"lone surrogate \(U\+DFFF\)"),
        ({"a": "x" * 16_000_000}, "up to 16,000,000 bytes as JSON, got 16,000,009"),
        ({"a": "é" * 8_000_000}, "up to 16,000,000 bytes as JSON, got 16,000,009"),
        (data.nested(51), "nested up to 50 levels"),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_metadata_that_json_cannot_hold_is_refused(given: Any, text: str) -> None:
    with pytest.raises(MetadataError, match=text):
        checks.metadata([given], n=1)


# what is ordinary and what is at the edge of it, as keys and as values
_TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("\0\ud800\udc00"), max_size=4)
_FLAT = (
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats() | _TEXTS | st.binary(max_size=2)
)


@hypothesis.given(st.dictionaries(_TEXTS | st.integers(), _FLAT, max_size=4))
@hypothesis.example({"a": True, "b": 2**63 - 1, "c": -(2**63), "d": 5e-324, "é": "\U0001f600", "": None})
@hypothesis.example({"a": 2**63})
@hypothesis.example({"\ud83d": "\ude00"})
def test_flat_metadata_are_judged_as_any_mapping_is(given: dict[Any, Any]) -> None:
    def judged(value: Any) -> Any:
        try:
            return checks.metadata([value], n=1)
        except MetadataError as error:
            return str(error)

    # not a dict, and so looked at closely, value by value
    slow, fast = judged(MappingProxyType(given)), judged(given)
    assert fast == slow
    if not isinstance(fast, str):
        assert fast[0] is not given
        assert [*map(type, fast[0].values())] == [*map(type, slow[0].values())]


@pytest.mark.parametrize("k", [1, 1_000_000, np.int64(7)])
def test_k_is_a_whole_number_of_one_or_more(k: Any) -> None:
    assert checks.hits_wanted(k) == k
    assert type(checks.hits_wanted(k)) is int


@pytest.mark.parametrize("k", [0, -1, 1.0, True, "1", None, 1_000_001, np.float64(3)])
def test_any_other_k_is_refused(k: Any) -> None:
    with pytest.raises(InputError, match=r"expected k as a whole number from 1 to 1,000,000, got"):
        checks.hits_wanted(k)


def test_models_are_compared_where_both_are_known() -> None:
    known, unknown = Space(3, model="a"), Space(3)
    for model, space in ((None, known), ("a", known), ("b", unknown), (None, unknown)):
        checks.check_model(model, space)
    with pytest.raises(ModelMismatch, match=r"^expected vectors of a, got vectors of b; "):
        checks.check_model("b", known)
