"""SQL, bytes and URLs of the PostgreSQL backend: everything that needs no server."""

from __future__ import annotations

import json
import math
import re
import struct
import traceback
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecbridge.backends.postgres import address, copy, sql
from vecbridge.backends.postgres.filters import compile
from vecbridge.backends.postgres.sql import Place
from vecbridge.errors import UrlError
from vecbridge.filters import parse
from vecbridge.manifest import Manifest
from vecbridge.types import Batch, Index, Layout, Shorten, Space

PLACE = Place("our", "ext")
PREFIX = Shorten("truncate", 16)
PCA = Shorten("pca", 16)


def manifest(layout: Layout, *, dim: int = 64, metric: Any = "cosine", name: str = "papers") -> Manifest:
    return Manifest(name, Space(dim, metric, nested=(16,)), layout, rows=1000)


def indexed_as(layout: Layout, **space: Any) -> str:
    return sql.create_index(manifest(layout, **space), PLACE).as_string(None).partition(" USING ")[2]


@pytest.mark.parametrize(
    ("layout", "metric", "expected"),
    [
        (Layout(index=Index("hnsw")), "l2", 'hnsw ("embedding" "ext"."vector_l2_ops")'),
        (
            Layout(index=Index("hnsw", "float16")),
            "cosine",
            'hnsw (("embedding"::"ext"."halfvec"(64)) "ext"."halfvec_cosine_ops")',
        ),
        (
            Layout(element="float16", index=Index("hnsw", "float16")),
            "ip",
            'hnsw ("embedding" "ext"."halfvec_ip_ops")',
        ),
        (
            Layout(index=Index("hnsw", "bit")),
            "ip",
            'hnsw (("ext"."binary_quantize"("embedding")::pg_catalog."bit"(64)) "ext"."bit_hamming_ops")',
        ),
        (
            Layout(index=Index("hnsw", "float16", PREFIX)),
            "ip",
            'hnsw (("ext"."subvector"("embedding", 1, 16)::"ext"."halfvec"(16)) "ext"."halfvec_cosine_ops")',
        ),
        (Layout(index=Index("hnsw", "float16", PCA)), "ip", 'hnsw ("short" "ext"."halfvec_ip_ops")'),
        (Layout(index=Index("hnsw", "bit", PCA)), "l2", 'hnsw ("short" "ext"."bit_hamming_ops")'),
    ],
)
def test_the_index_holds_what_the_layout_says(layout: Layout, metric: str, expected: str) -> None:
    assert indexed_as(layout, metric=metric).startswith(expected)


@pytest.mark.parametrize("element", ["float32", "float16", "bit"])
@pytest.mark.parametrize("shorten", [None, PREFIX, PCA])
@pytest.mark.parametrize("kind", ["hnsw", "ivfflat"])
def test_a_query_spells_the_indexed_expression_exactly_as_the_index_does(
    kind: Any, shorten: Shorten | None, element: Any
) -> None:
    made = manifest(Layout(index=Index(kind, element, shorten, lists=10)))
    expression = indexed_as(made.layout).partition(" (")[2].rpartition(' "ext"."')[0]
    text = sql.search(made, PLACE, k=10, candidates=40, where=None).as_string(None)
    assert f'ORDER BY {expression} OPERATOR("ext".' in text
    assert "LIMIT 40)" in text
    assert text.endswith("ORDER BY distance, id LIMIT 10")


def test_an_exact_search_cannot_run_on_the_index() -> None:
    made = manifest(Layout(index=Index("hnsw")))
    text = sql.search(made, PLACE, k=10, candidates=None, where=None).as_string(None)
    assert '("embedding" OPERATOR("ext".<=>) %(q)b::"ext"."vector") + 0 AS distance' in text


def test_a_vector_beside_its_row_and_a_copy_within_it() -> None:
    create, alter = sql.create_table(manifest(Layout(index=Index("scan", "float16")), dim=3584), PLACE)
    assert '"embedding" "ext"."vector"(3584) NOT NULL, "short" "ext"."halfvec"(3584) NOT NULL' in (
        create.as_string(None)
    )
    assert 'ALTER "embedding" SET STORAGE EXTERNAL' in alter.as_string(None)
    assert 'ALTER "short" SET STORAGE PLAIN' in alter.as_string(None)


def test_no_collection_can_take_the_name_of_a_table_or_index_of_ours() -> None:
    first, second = manifest(Layout()), replace(manifest(Layout()), generation=2)
    ours = {sql.CATALOGUE, "vecbridge_papers$key", sql.table_name(second)}
    ours |= {sql.index_name(one) for one in (first, second)}
    assert len(ours) == 5
    assert all("$" in name for name in ours)


@pytest.mark.parametrize("generation", [0, 1, sql.MOST_GENERATIONS])
def test_every_name_fits_what_postgresql_keeps_of_it(generation: int) -> None:
    longest = replace(manifest(Layout(), name="x" * 48), generation=generation)
    created = sql.create_table(longest, PLACE)[0].as_string(None)
    [key] = re.findall(r'"([^"]*\$key)"', created)
    for name in (sql.table_name(longest), sql.index_name(longest), key):
        assert len(name.encode()) <= 63


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,47}", fullmatch=True), st.integers(0, 9_999))
def test_a_table_says_by_its_name_which_collections_it_is(name: str, generation: int) -> None:
    made = replace(manifest(Layout(), name=name), generation=generation)
    assert sql.collection_of(sql.table_name(made)) == (name, generation)


@pytest.mark.parametrize(
    "table",
    [
        "papers",
        "vecbridge$collections",
        "vecbridge_a$",
        "vecbridge_a$idx",
        "vecbridge_a$01",
        "vecbridge_a$1$2",
    ],
)
def test_other_tables_are_no_collections(table: str) -> None:
    assert sql.collection_of(table) is None


@pytest.mark.parametrize("schema", ['a"b', "a'; DROP TABLE x; --", "ä b"])
def test_a_hostile_schema_stays_an_identifier(schema: str) -> None:
    text = sql.create_table(manifest(Layout()), Place(schema, schema))[0].as_string(None)
    quoted = '"' + schema.replace('"', '""') + '"'
    assert text.startswith(f'CREATE TABLE {quoted}."vecbridge_papers" (')


def test_locks_differ_between_schemas_and_collections_and_fit_a_bigint() -> None:
    keys = {Place(schema, "public").lock(name) for schema in ("a", "b") for name in ("x", "y")}
    assert len(keys) == 4
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert Place("a", "public").lock() == Place("b", "public").lock()


def test_search_settings_reach_as_many_candidates_as_are_wanted() -> None:
    index = Index("hnsw", ef_search=100)
    settings = sql.settings(index, candidates=400, filtered=False, iterative=True)
    assert settings["hnsw.ef_search"] == "400"
    assert settings["hnsw.iterative_scan"] == "relaxed_order"
    assert settings["enable_seqscan"] == "off"
    assert sql.settings(index, candidates=5000, filtered=False, iterative=False)["hnsw.ef_search"] == "1000"
    assert "hnsw.iterative_scan" not in sql.settings(index, candidates=1, filtered=True, iterative=False)
    assert "enable_seqscan" not in sql.settings(index, candidates=1, filtered=True, iterative=True)


def test_filter_keys_and_values_travel_as_parameters() -> None:
    hostile = "'; DROP TABLE x; --"
    text, values = compile(parse({hostile: {"$ne": hostile}, "a.b": {"$gt": hostile}}))
    assert hostile not in text.as_string(None)
    carried = [hostile, [json.dumps(hostile)], "a", "b", hostile]
    assert sorted(map(str, values.values())) == sorted(map(str, carried))


def test_text_is_compared_by_code_point_whatever_the_databases_language() -> None:
    for condition in ({"a": {"$lt": "b"}}, {"a.b": {"$gte": "b"}}):
        text = compile(parse(condition))[0].as_string(None)
        # once for a text, once for the elements of a list
        assert text.count(""" #>> '{}') COLLATE "C" """) == 2
    create = sql.create_table(manifest(Layout()), PLACE)[0].as_string(None)
    assert '(id text COLLATE "C" ' in create


def test_ten_thousand_choices_are_one_parameter() -> None:
    _, values = compile(parse({"a": {"$in": [*range(10_000), None]}}))
    assert len(values) <= 3


def test_vectors_become_the_servers_bytes() -> None:
    one = np.array([[1, 2, -3]], np.float32)
    assert copy.parameters(one, "vector") == [struct.pack(">HHfff", 3, 0, 1, 2, -3)]
    assert copy.parameters(one, "halfvec") == [struct.pack(">HHeee", 3, 0, 1, 2, -3)]
    bits = np.array([[1, -1, 1, -1, 1, -1, 1, -1, 1, 1]], np.float32)
    assert copy.parameters(bits, "bit") == [bytes.fromhex("0000000aaac0")]


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3)))
def test_a_matrix_comes_back_from_its_bytes(rows: list[list[float]]) -> None:
    matrix = np.array(rows, np.float32).reshape(len(rows), 3)
    if rows:
        assert np.array_equal(copy.floats(copy.parameters(matrix, "vector"), "vector", 3), matrix)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_means_the_same_and_has_no_number_with_an_exponent_upwards(value: Any) -> None:
    text = copy.to_json(value)
    assert json.loads(text) == value
    assert type(json.loads(text)) is type(value)


@pytest.mark.parametrize("number", [1e16, 1e22, 1e23, 1.2345678901234567e18, -1.7976931348623157e308])
def test_a_large_float_is_written_as_what_it_is(number: float) -> None:
    text = copy.to_json({"e+16": [number, "1e+16"]})
    assert text == f'{{"e+16": [{int(number)}.0, "1e+16"]}}'
    assert math.isclose(json.loads(text)["e+16"][0], number, rel_tol=0)


def test_half_precision_is_rounded_as_numpy_rounds_it() -> None:
    # every half, what lies just beside it, the ties between two, and what is too small for any
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[1:] + halves[:-1]) / 2
    all = np.concatenate(
        [
            halves,
            np.nextafter(halves, np.float32(0)),
            ties,
            np.nextafter(ties, np.float32(9e9)),
            [1e-45, 3e-8],
        ]
    ).astype(np.float32)
    signed = np.concatenate([all, -all]).reshape(-1, 1984)
    found = copy.fields(signed, "halfvec")
    assert found[:, 8:].tobytes() == signed.astype(">f2").tobytes()
    assert bytes(copy.parameters(signed, "halfvec")[1]) == found[1, 4:].tobytes()


def test_copy_goes_in_pieces_of_at_most_64_KiB_whatever_the_documents() -> None:
    vectors = np.zeros((50, 700), np.float32)
    documents = ["x" * (200_000 if row == 7 else row) for row in range(50)]
    batch = Batch([str(row) for row in range(50)], vectors, documents, [{}] * 50, [None] * 50)
    pieces = list(copy.blocks(batch, list(range(50)), [(vectors, "vector")]))
    assert max(map(len, pieces)) <= 65_536
    whole = b"".join(pieces)
    assert whole.startswith(b"PGCOPY\n\xff\r\n\0")
    assert whole.endswith(b"\xff\xff")
    assert len(whole) == 19 + 2 + sum(
        2 + 4 + len(str(row)) + 8 + 2800 + 4 + 4 + len(documents[row]) + 4 + 3 for row in range(50)
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cret@h:5433/d", "postgresql://me@h:5433/d"),
        ("postgres://me@h/d?schema=our&sslmode=require", "postgresql://me@h/d?schema=our"),
        ("postgresql://me:@/d?host=/tmp/x&port=99", "postgresql://me@/d?host=/tmp/x&port=99"),
        ("postgresql://h?password=s3cret", "postgresql://h/"),
        ("postgresql://me:p%40ss@[::1]/d", "postgresql://me@[::1]/d"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    parsed = address.parse(url)
    assert parsed.shown == shown
    assert "s3cret" not in repr(parsed)
    assert address.parse(shown).shown == shown


def test_the_schema_is_ours_and_everything_else_libpqs() -> None:
    parsed = address.parse("postgresql://h/d?schema=a%20b&connect_timeout=3&options=-csearch_path%3Dx")
    assert parsed.schema == "a b"
    assert parsed.params == {
        "host": "h", "dbname": "d", "connect_timeout": "3", "options": "-csearch_path=x"
    }  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@more@h/d",
        "postgresql://me:s3cret/more@h/d",
        "postgresql://me:s3cret?more@h/d",
        "postgresql://me:s3cret%zz@h/d",
        "postgresql://h/d?s3cret",
        "postgresql://h/d?s3cret=1",
        "postgresql://h:s3cret/d",
        "postgresql:s3cret",
        "postgresql://h/d?schema=",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UrlError, match="expected") as caught:
        address.parse(url)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value, chain=True))


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("postgresql:///d", True), ("postgresql://localhost/d", True), ("postgresql://127.0.0.1/d", True),
        ("postgresql:///d?host=/tmp", True), ("postgresql://db.example.org/d", False),
    ],
)  # fmt: skip
def test_a_server_is_local_by_its_host(url: str, local: bool) -> None:
    assert address.parse(url).local is local
