"""Every limit in `limits.py`, on real servers: the largest is accepted, one more is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import psycopg
import pytest

from vecbridge.errors import InputError
from vecbridge.limits import Limits, largest_inline, limits
from vecbridge.types import Element, Index, Layout, Metric, Shorten, Space

TYPES: dict[str, str] = {"float32": "vector", "float16": "halfvec", "bit": "bit"}


class Server(NamedTuple):
    connection: psycopg.Connection[tuple[object, ...]]
    limits: Limits

    def refuses(self, *statements: str, match: str) -> None:
        """The last statement fails with this message; those before it succeed; nothing stays."""
        with self.connection.transaction(force_rollback=True):
            for statement in statements[:-1]:
                self.connection.execute(statement.encode())
            with pytest.raises(psycopg.Error, match=match), self.connection.transaction():
                self.connection.execute(statements[-1].encode())

    def accepts(self, *statements: str) -> None:
        with self.connection.transaction(force_rollback=True):
            for statement in statements:
                self.connection.execute(statement.encode())


@pytest.fixture(scope="module", params=["pg18", "pg16", "pg062"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    url = request.getfixturevalue(request.param)
    # one transaction for all tests here, never committed: the server stays as it was
    with psycopg.connect(url) as connection, connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL client_min_messages = error")
        connection.execute("CREATE EXTENSION vector")
        connection.execute("SELECT '[1]'::vector")  # settings are checked once the library is loaded
        query = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        [(version,)] = connection.execute(query).fetchall()
        yield Server(connection, limits(f"pgvector@{version}"))


def table(element: str, dim: int) -> str:
    return f"CREATE TABLE t (v {TYPES[element]}({dim}))"


def create_index(kind: str, element: str, options: str = "", *, metric: str = "l2") -> str:
    operators = "bit_hamming_ops" if element == "bit" else f"{TYPES[element]}_{metric}_ops"
    return f"CREATE INDEX ON t USING {kind} (v {operators}) {f'WITH ({options})' if options else ''}"


@pytest.mark.parametrize("element", ["float32", "float16"])
def test_the_longest_stored_vector_is_accepted_and_one_more_dimension_refused(
    server: Server, element: Element
) -> None:
    assert element != "bit"
    layout, most = Layout(element=element), server.limits.stored[element].high
    if server.limits.lacks(element, server.limits.stored[element].since):
        server.refuses(table(element, 3), match='type "halfvec" does not exist')
        assert server.limits.objection(Space(3), layout) == "halfvec needs pgvector 0.7.0, this is 0.6.2"
        return
    server.accepts(table(element, most))
    server.refuses(table(element, most + 1), match=f"cannot exceed {most}")
    assert server.limits.objection(Space(most), layout) is None
    assert f"{most + 1:,} and must be shortened" in (server.limits.objection(Space(most + 1), layout) or "")


@pytest.mark.parametrize("element", ["float32", "float16", "bit"])
@pytest.mark.parametrize("kind", ["hnsw", "ivfflat"])
def test_the_longest_indexed_vector_is_accepted_and_one_more_dimension_refused(
    server: Server, kind: str, element: Element
) -> None:
    bound = server.limits.indexed[f"{kind} {element}"]
    if server.limits.lacks(element, bound.since):
        server.refuses(
            *(() if element == "float16" else (table(element, 8),)),
            create_index(kind, element) if element == "bit" else table(element, 8),
            match="does not exist",
        )
        return
    server.accepts(table(element, bound.high), create_index(kind, element))
    server.refuses(
        table(element, bound.high + 1),
        create_index(kind, element),
        match=f"cannot have more than {bound.high} dimensions for {kind} index",
    )


@pytest.mark.parametrize("element", ["float32", "float16", "bit"])
@pytest.mark.parametrize("kind", ["hnsw", "ivfflat"])
def test_the_objection_comes_with_the_first_dimension_that_the_server_refuses(
    kind: str, element: Element
) -> None:
    assert kind in ("hnsw", "ivfflat")
    known = limits("pgvector@0.8.5")
    index = Index(kind, element)  # type: ignore[arg-type]  # narrowed by the assertion, which mypy cannot see
    most = min(known.indexed[f"{kind} {element}"].high, known.stored["float32"].high)
    assert known.objection(Space(most), Layout(index=index)) is None
    reason = known.objection(Space(most + 1), Layout(index=index))
    assert reason
    assert f"{most:,}" in reason
    assert f"{most + 1:,}" in reason


def test_the_sentence_names_both_numbers() -> None:
    reason = limits("pgvector").objection(Space(3584), Layout(index=Index("hnsw")))
    assert reason == "hnsw on float32 vectors stops at 2,000 dimensions; these have 3,584"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hnsw m", "m={}, ef_construction=1000"),
        ("hnsw ef_construction", "m=2, ef_construction={}"),
        ("ivfflat lists", "lists={}"),
    ],
)
def test_index_options_end_where_the_limits_say(server: Server, name: str, options: str) -> None:
    bound, kind = server.limits.ranges[name], name.split()[0]
    for value in (bound.low, bound.high):
        server.accepts(
            "SET LOCAL maintenance_work_mem = '8GB'",  # reserved for 32,768 lists, not used
            table("float32", 3),
            create_index(kind, "float32", options.format(value)),
        )
    for value in (bound.low - 1, bound.high + 1):
        server.refuses(
            table("float32", 3),
            create_index(kind, "float32", options.format(value)),
            match=f'value {value} out of bounds for option "{name.split()[1]}"',
        )


@pytest.mark.parametrize("name", ["hnsw ef_search", "ivfflat probes"])
def test_search_settings_end_where_the_limits_say(server: Server, name: str) -> None:
    bound, setting = server.limits.ranges[name], name.replace(" ", ".")
    for value in (bound.low, bound.high):
        server.accepts(f"SET LOCAL {setting} = {value}")
    for value in (bound.low - 1, bound.high + 1):
        server.refuses(f"SET LOCAL {setting} = {value}", match=f"{value} is outside the valid range")


def test_ef_construction_below_twice_m_is_refused_by_server_and_limits(server: Server) -> None:
    server.refuses(
        table("float32", 3),
        create_index("hnsw", "float32", "m=40, ef_construction=79"),
        match=r"greater than or equal to 2 \* m",
    )
    server.accepts(table("float32", 3), create_index("hnsw", "float32", "m=40, ef_construction=80"))
    refused = Layout(index=Index("hnsw", m=40, ef_construction=79))
    allowed = Layout(index=Index("hnsw", m=40, ef_construction=80))
    assert (
        server.limits.objection(Space(3), refused)
        == "ef_construction must be at least 2 x m = 80; this is 79"
    )
    assert server.limits.objection(Space(3), allowed) is None


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_ivfflat_of_one_dimension_works_under_l2_alone(server: Server, metric: Metric) -> None:
    layout = Layout(index=Index("ivfflat", lists=1))
    build = create_index("ivfflat", "float32", "lists=1", metric=metric)
    if metric == "l2":
        server.accepts(table("float32", 1), build)
        assert server.limits.objection(Space(1, metric), layout) is None
    else:
        server.refuses(table("float32", 1), build, match="dimensions must be greater than one")
        assert "at least 2 dimensions" in (server.limits.objection(Space(1, metric), layout) or "")


def test_half_precision_ends_below_65520(server: Server) -> None:
    if server.limits.has("halfvec"):
        server.accepts("SELECT '[65519]'::halfvec")
        server.refuses("SELECT '[65520]'::halfvec", match="out of range for type halfvec")
    else:
        server.refuses("SELECT '[1]'::halfvec", match='type "halfvec" does not exist')


@pytest.mark.parametrize(
    ("feature", "statement"),
    [
        ("hnsw", "SELECT 1/count(*) FROM pg_am WHERE amname = 'hnsw'"),
        ("halfvec", "SELECT '[1]'::halfvec"),
        ("subvector", "SELECT subvector('[1,2]'::vector, 1, 1)"),
        ("binary_quantize", "SELECT binary_quantize('[1,2]'::vector)"),
        ("iterative scan", "SHOW hnsw.iterative_scan"),
    ],
)
def test_features_are_there_from_their_version_on(server: Server, feature: str, statement: str) -> None:
    if server.limits.has(feature):
        server.accepts(statement)
    else:
        server.refuses(statement, match="does not exist|unrecognized configuration parameter")


# where each column is as long as it can be without being moved out of the row, and where it is longer
_IDS = ["i" * length for length in (1, 22, 23, 24)]
_REST = [
    ("NULL", "NULL", "'{}'"),
    *((f"'\\x{'ab' * n}'::bytea", f"'{'d' * n}'", f'\'{{"a": "{"m" * (n - 9)}"}}\'') for n in range(20, 26)),
    (
        f"'\\x{'ab' * 32}'::bytea",
        "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 200) i)",
        "(SELECT jsonb_build_object('a', string_agg(md5(i::text), '')) FROM generate_series(1, 99) i)",
    ),
]


@pytest.mark.parametrize(
    ("layout", "column"),
    [
        (Layout(inline=True), "embedding vector({0}) STORAGE PLAIN NOT NULL"),
        (Layout(element="float16", inline=True), "embedding halfvec({0}) STORAGE PLAIN NOT NULL"),
        (
            Layout(index=Index("scan", "float16")),
            "embedding vector(9000) STORAGE EXTERNAL NOT NULL, short halfvec({0}) STORAGE PLAIN",
        ),
        (
            Layout(index=Index("hnsw", "float32", Shorten("pca", 100))),
            "embedding vector(9000) STORAGE EXTERNAL NOT NULL, short vector({0}) STORAGE PLAIN",
        ),
    ],
    ids=["float32", "float16", "copy in float16", "copy in float32"],
)
def test_the_widest_inline_vector_fits_its_row_whatever_lies_beside_it(
    server: Server, layout: Layout, column: str
) -> None:
    if "halfvec" in column and not server.limits.has("halfvec"):
        assert layout.half
        reason = server.limits.objection(Space(9000), layout)
        assert reason == "halfvec needs pgvector 0.7.0, this is 0.6.2"
        return
    most = largest_inline(layout, server.limits.page)

    def statements(dim: int) -> list[str]:
        kind = "halfvec" if "halfvec" in column else "vector"
        one = f"array_fill(0.5::float4, ARRAY[{dim}])::{kind}"
        whole = "array_fill(0.5::float4, ARRAY[9000])::vector, " if "short" in column else ""
        rows = [
            f"INSERT INTO t VALUES ('{id}', {whole}{one}, {', '.join(rest)}) ON CONFLICT (id) DO UPDATE SET "
            f"digest = excluded.digest, document = excluded.document, metadata = excluded.metadata"
            for rest in _REST
            for id in _IDS
        ]
        return [
            f'CREATE TABLE t (id text COLLATE "C" PRIMARY KEY, {column.format(dim)}, digest bytea, '
            f"document text, metadata jsonb NOT NULL)",
            *rows,
        ]

    server.accepts(*statements(most))
    # a row holds 8 bytes more or less: its size is a multiple of that
    more = most + (8 if "halfvec" in column else 4)
    *before, _ = statements(more)
    with pytest.raises(psycopg.Error, match="row is too big"):
        server.accepts(*before)


def test_inline_is_refused_one_dimension_after_the_widest() -> None:
    known = limits("pgvector")
    assert known.objection(Space(2008), Layout(inline=True)) is None
    reason = known.objection(Space(2009), Layout(inline=True))
    assert reason
    assert "2,008" in reason
    assert "2,009" in reason
    assert known.objection(Space(4016), Layout(element="float16", inline=True)) is None
    assert known.objection(Space(4017), Layout(element="float16", inline=True))
    assert known.objection(Space(4006), Layout(index=Index("scan", "float16"))) is None
    assert known.objection(Space(4007), Layout(index=Index("scan", "float16")))


@pytest.mark.parametrize(
    ("on", "layout", "reason"),
    [
        ("pgvector@0.4.4", Layout(index=Index("hnsw")), "hnsw needs pgvector 0.5.0, this is 0.4.4"),
        (
            "pgvector@0.6.2",
            Layout(index=Index("hnsw", "float16")),
            "halfvec needs pgvector 0.7.0, this is 0.6.2",
        ),
        (
            "pgvector@0.6.2",
            Layout(index=Index("hnsw", "bit")),
            "indexing bit needs pgvector 0.7.0, this is 0.6.2",
        ),
        (
            "pgvector@0.6.2",
            Layout(index=Index("scan", "float16")),
            "halfvec needs pgvector 0.7.0, this is 0.6.2",
        ),
        (
            "pgvector@0.6.2",
            Layout(index=Index("hnsw", shorten=Shorten("truncate", 64))),
            "subvector (an index on a prefix) needs pgvector 0.7.0, this is 0.6.2",
        ),
        (
            "pgvector",
            Layout(index=Index("hnsw", m=101, ef_construction=300)),
            "m of hnsw takes 2 to 100; this is 101",
        ),
        (
            "pgvector",
            Layout(index=Index("hnsw", ef_construction=1001)),
            "ef_construction of hnsw takes 4 to 1,000; this is 1,001",
        ),
        (
            "pgvector",
            Layout(index=Index("hnsw", ef_search=1001)),
            "ef_search of hnsw takes 1 to 1,000; this is 1,001",
        ),
        (
            "pgvector",
            Layout(index=Index("ivfflat", lists=32_769)),
            "lists of ivfflat takes 1 to 32,768; this is 32,769",
        ),
        (
            "pgvector",
            Layout(index=Index("ivfflat", probes=32_769)),
            "probes of ivfflat takes 1 to 32,768; this is 32,769",
        ),
        (
            "pgvector",
            Layout(element="float16", index=Index("hnsw", "float32")),
            "an index of float32 vectors cannot be more precise than the stored half-precision vectors of "
            "128 dimensions",
        ),
        (
            "pgvector",
            Layout(index=Index("scan", "float32")),
            "a copy to scan must be smaller than the stored float32 vectors of 128 dimensions; this one has "
            "128 of float32",
        ),
        (
            "pgvector",
            Layout(inline=True, index=Index("scan", "float16")),
            "one row holds either the vector of 128 dimensions or its copy inline, not both",
        ),
        ("pgvector", Layout(oversample=0), "oversampling starts at 1; this is 0"),
        (
            "pgvector",
            Layout(shorten=Shorten("pca", 128)),
            "128 dimensions can be shortened to 1 to 127; 128 was asked for",
        ),
        (
            "pgvector",
            Layout(shorten=Shorten("truncate", 100)),
            "mrl was trained for prefixes of 64, 32 dimensions; 100 was asked for",
        ),
        (
            "flat",
            Layout(index=Index("hnsw")),
            "flat storage has no index: it always scans; hnsw was asked for",
        ),
        (
            "flat",
            Layout(inline=True),
            "flat storage keeps vectors in a matrix of their own: there are no pages for them to lie in",
        ),
    ],
)
def test_objections_are_sentences(on: str, layout: Layout, reason: str) -> None:
    assert limits(on).objection(Space(128, nested=(64, 32), model="mrl"), layout) == reason


def test_a_prefix_of_an_unknown_model_is_refused_by_name() -> None:
    space = Space(3584, model="bge-multilingual-gemma2")
    reason = limits("flat").objection(space, Layout(shorten=Shorten("truncate", 1024)))
    assert reason == (
        "bge-multilingual-gemma2 is not known as a Matryoshka model: a prefix of its vectors (1,024 of 3,584 "
        "dimensions) is not an embedding"
    )


@pytest.mark.parametrize("dim", [0, -1])
def test_a_space_without_dimensions_is_refused(dim: int) -> None:
    for on in ("flat", "pgvector"):
        assert limits(on).objection(Space(dim), Layout()) == (
            f"vectors have at least 1 dimension; these have {dim}"
        )


def test_flat_holds_any_dimension_in_either_precision() -> None:
    for dim in (1, 3584, 65_536, 1_000_000):
        assert limits("flat").objection(Space(dim), Layout()) is None
        assert limits("flat").objection(Space(dim), Layout(element="float16")) is None


def test_the_version_is_assumed_only_where_none_is_named() -> None:
    assert (limits("pgvector").version, limits("pgvector").assumed) == ("0.8.0", True)
    assert (limits("PgVector@0.6.2").version, limits("pgvector@0.6.2").assumed) == ("0.6.2", False)


def test_versions_compare_as_numbers() -> None:
    assert limits("pgvector@0.10.0").has("iterative scan")
    assert limits("pgvector@0.7").has("halfvec")
    assert not limits("pgvector@0.6.10").has("halfvec")
    assert not limits("pgvector").has("something else")


@pytest.mark.parametrize(
    "on", ["", "qdrantt", "pgvector@", "pgvector@x", "pgvector@0.8.0;", "pgvector@1.2.3.4.5"]
)
def test_an_unknown_backend_or_version_is_an_error_that_says_what_is_known(on: str) -> None:
    with pytest.raises(InputError, match=r"expected a (backend|version).*pgvector"):
        limits(on)


def test_every_number_has_a_source() -> None:
    for on in ("flat", "pgvector"):
        known = limits(on)
        for bound in (*known.stored.values(), *known.indexed.values(), *known.ranges.values()):
            assert bound.source
            assert bound.low <= bound.high
        for feature in known.features.values():
            assert feature.source
