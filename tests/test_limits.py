"""Every limit in `limits.py`, on real servers: the largest is accepted, one more is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
import qdrant_edge

from vecbridge.errors import InputError
from vecbridge.limits import Limits, limits
from vecbridge.objections import QUANTISED, largest_inline
from vecbridge.types import Element, Index, Layout, Metric, Shorten, Space, Spread

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
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
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
    assert element in ("float32", "float16")
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
        (
            "pgvector",
            Layout(index=Index("hnsw", "turbo4")),
            "quantised turbo4 copies (4 bits for each dimension) are Qdrant's: other stores index float32, "
            "float16 and single bits",
        ),
        (
            "flat",
            Layout(index=Index("hnsw", "int8")),
            "quantised int8 copies (8 bits for each dimension) are Qdrant's: other stores index float32, "
            "float16 and single bits",
        ),
        (
            "pgvector",
            Layout(spread=Spread(6, 2)),
            "pgvector keeps a table on one machine; 6 shards, each kept twice, are for a Qdrant cluster of "
            "at least 2 machines",
        ),
        (
            "flat",
            Layout(spread=Spread(2)),
            "flat storage lies in one folder; 2 shards, each kept once, are for a Qdrant cluster of at least "
            "2 machines",
        ),
        (
            "edge",
            Layout(spread=Spread(2)),
            "Edge runs in this process; 2 shards, each kept once, are for a Qdrant cluster of at least 2 "
            "machines",
        ),
        (
            "qdrant",
            Layout(spread=Spread(2)),
            "this Qdrant is a single machine; 2 shards, each kept once, are for a Qdrant cluster of at least "
            "2 machines",
        ),
        (
            "qdrant",
            Layout(inline=True),
            "inline is PostgreSQL's: Qdrant has no pages for vectors to lie in",
        ),
        (
            "edge",
            Layout(index=Index("ivfflat", lists=10)),
            "hnsw is the one index that Qdrant has for vectors; ivfflat was asked for",
        ),
        (
            "qdrant",
            Layout(index=Index("scan", "float16")),
            "Qdrant keeps no copy to scan; one of float16 was asked for: it scans what it stores",
        ),
        (
            "qdrant",
            Layout(index=Index("hnsw", "float16")),
            "an hnsw index without quantisation holds the stored float32 vectors of 128 dimensions "
            "themselves, not float16: store float16, or quantise",
        ),
        (
            "qdrant",
            Layout("float16", index=Index("hnsw", "float32")),
            "an hnsw index without quantisation holds the stored float16 vectors of 128 dimensions "
            "themselves, not float32: store float32, or quantise",
        ),
        (
            "qdrant",
            Layout(index=Index("hnsw", "int8", Shorten("truncate", 64))),
            "Qdrant quantises the whole vectors of 128 dimensions here, not what is shortened to 64 for the "
            "index; int8 was asked for",
        ),
        (
            "qdrant@1.17.1",
            Layout(index=Index("hnsw", "turbo2")),
            "turboquant needs qdrant 1.18.0, this is 1.17.1",
        ),
        (
            "qdrant",
            Layout(index=Index("hnsw", m=0)),
            "m of hnsw takes 1 to 10,000; this is 0",
        ),
        (
            "edge",
            Layout(index=Index("hnsw", ef_construction=3)),
            "ef_construction of hnsw takes 4 to 2,147,483,647; this is 3",
        ),
        (
            "qdrant",
            Layout(index=Index("hnsw", ef_search=-1)),
            "ef_search of hnsw takes 1 to 2,147,483,647; this is -1",
        ),
    ],
)
def test_objections_are_sentences(on: str, layout: Layout, reason: str) -> None:
    assert limits(on).objection(Space(128, nested=(64, 32), model="mrl"), layout) == reason


@pytest.mark.parametrize("on", ["qdrant", "edge", "qdrant@1.12.0"])
def test_qdrant_stores_and_indexes_up_to_65536_dimensions(on: str) -> None:
    known = limits(on)
    for layout in (
        Layout(),
        Layout("float16"),
        Layout(index=Index("hnsw")),
        Layout(index=Index("hnsw", "bit")),
    ):
        assert known.objection(Space(1), layout) is None
        assert known.objection(Space(65_536), layout) is None
        assert known.objection(Space(65_537), layout) == (
            "Qdrant stores vectors of up to 65,536 dimensions; these have 65,537 and must be shortened at "
            "the door"
        )


@pytest.mark.parametrize(
    "layout",
    [
        Layout("float16", index=Index("hnsw", "float16")),
        *(Layout(index=Index("hnsw", code), oversample=4) for code in sorted(QUANTISED)),
        *(Layout("float16", index=Index("hnsw", code), oversample=4) for code in sorted(QUANTISED)),
        Layout(index=Index("hnsw", "float16", Shorten("truncate", 64)), oversample=20),
        Layout(index=Index("hnsw", "float32", Shorten("pca", 32)), oversample=20),
        Layout(shorten=Shorten("truncate", 64), index=Index("hnsw", "int8"), oversample=4),
    ],
)
@pytest.mark.parametrize("on", ["qdrant", "edge"])
def test_qdrant_walks_what_is_stored_what_is_quantised_and_what_has_a_vector_of_its_own(
    on: str, layout: Layout
) -> None:
    assert limits(on).objection(Space(128, nested=(64,)), layout) is None


@pytest.mark.parametrize(
    ("spread", "reason"),
    [
        (Spread(6, 2, 1), None),
        (Spread(1, 3, 3), None),
        (Spread(0), "a collection is cut into at least 1 shard; this is 0"),
        (Spread(6, 4), "each shard is kept 1 to 3 times on 3 machines; this is 4"),
        (Spread(6, 0), "each shard is kept 1 to 3 times on 3 machines; this is 0"),
        (Spread(6, 2, 3), "1 to 2 of the machines that hold a shard can confirm a write; this is 3"),
        (Spread(6, 2, 0), "1 to 2 of the machines that hold a shard can confirm a write; this is 0"),
    ],
)
def test_a_cluster_spreads_over_the_machines_that_it_has(spread: Spread, reason: str | None) -> None:
    three = replace(limits("qdrant"), nodes=3)
    assert three.objection(Space(128), Layout(spread=spread)) == reason


@pytest.mark.parametrize(
    ("feature", "since"),
    [
        ("asymmetric binary quantization", "1.15.0"),
        ("collection metadata", "1.16.0"),
        ("acorn", "1.16.0"),
        ("turboquant", "1.18.0"),
        ("memory placement", "1.19.0"),
    ],
)
def test_a_feature_of_qdrant_is_there_from_its_version_on_and_always_in_edge(
    feature: str, since: str
) -> None:
    major, minor, _ = since.split(".")
    assert limits(f"qdrant@{since}").has(feature)
    assert not limits(f"qdrant@{major}.{int(minor) - 1}.9").has(feature)
    assert limits("edge").has(feature)
    assert limits("edge@0.7.2").has(feature)


@pytest.mark.parametrize("m", [1, 100])
def test_the_engine_builds_graphs_of_every_m_within_the_limits(m: int, tmp_path: Path) -> None:
    assert limits("edge").objection(Space(8), Layout(index=Index("hnsw", m=m, ef_construction=4))) is None
    graph = qdrant_edge.HnswIndexConfig(m=m, ef_construct=4, full_scan_threshold=1)
    shard = qdrant_edge.EdgeShard.create(
        str(tmp_path),
        qdrant_edge.EdgeConfig(
            vectors=qdrant_edge.EdgeVectorParams(size=8, distance=qdrant_edge.Distance.Dot),
            hnsw_config=graph,
            optimizers=qdrant_edge.EdgeOptimizersConfig(indexing_threshold=1),
        ),
    )
    points = [qdrant_edge.Point(n, [float(n >> bit & 1) for bit in range(8)], {}) for n in range(200)]
    shard.update(qdrant_edge.UpdateOperation.upsert_points(points))
    shard.optimize()
    assert shard.info().indexed_vectors_count == 200
    shard.close()


def test_a_prefix_of_an_unknown_model_is_refused_by_name() -> None:
    space = Space(3584, model="bge-multilingual-gemma2")
    reason = limits("flat").objection(space, Layout(shorten=Shorten("truncate", 1024)))
    assert reason == (
        "bge-multilingual-gemma2 is not known as a Matryoshka model: a prefix of its vectors (1,024 of 3,584 "
        "dimensions) is not an embedding"
    )


@pytest.mark.parametrize("dim", [0, -1])
def test_a_space_without_dimensions_is_refused(dim: int) -> None:
    for on in ("flat", "pgvector", "qdrant", "edge"):
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
    assert (limits("qdrant").version, limits("qdrant").assumed) == ("1.19.0", True)
    assert (limits("qdrant@1.15.1").version, limits("qdrant@1.15.1").assumed) == ("1.15.1", False)
    assert (limits("edge").version, limits("edge@0.9.0").assumed) == ("0.9.0", False)


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
    for on in ("flat", "pgvector", "qdrant", "edge"):
        known = limits(on)
        for bound in (*known.stored.values(), *known.indexed.values(), *known.ranges.values()):
            assert bound.source
            assert bound.low <= bound.high
        for feature in known.features.values():
            assert feature.source
