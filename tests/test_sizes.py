"""Sizes against the real thing: within 10 % of what PostgreSQL says and of what lies on the disk."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psycopg
import pytest
import qdrant_edge
from hypothesis import given
from hypothesis import strategies as st

import vecbridge
from vecbridge import sizes
from vecbridge.limits import limits
from vecbridge.objections import QUANTISED
from vecbridge.sizes import (
    LOG,
    estimate,
    graph_bytes,
    hnsw_bytes,
    hnsw_memory,
    ivfflat_bytes,
    ivfflat_memory,
    quantised_bytes,
    row_bytes,
)
from vecbridge.types import Element, Index, Layout, Shorten, Space, Spread

Connection = psycopg.Connection[tuple[Any, ...]]
TYPES = {"float32": "vector", "float16": "halfvec", "bit": "bit"}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """On a disk, whatever other tests take: files that lie in memory have no holes."""
    with TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def server(pg18: str) -> Iterator[Connection]:
    # one transaction for all tests here, never committed: the server stays as it was
    with psycopg.connect(pg18) as connection, connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL client_min_messages = error")
        connection.execute("SET LOCAL max_parallel_maintenance_workers = 0")
        connection.execute("SET LOCAL maintenance_work_mem = '256MB'")
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute("SELECT setseed(0.5)")
        yield connection


@pytest.fixture
def database(server: Connection) -> Iterator[Connection]:
    with server.transaction(force_rollback=True):
        yield server


def fill(connection: Connection, element: Element, dim: int, rows: int) -> None:
    """A table `t` of random vectors, one column `v`. Components repeat: no page knows of it."""
    signs = "string_agg((random() > 0.5)::int::text, '')"
    values = {"float32": "array_agg(random() - 0.5)::vector", "float16": "array_agg(random() - 0.5)::halfvec"}
    value = f"{values.get(element, signs)}::{TYPES[element]}({dim})"
    connection.execute(
        f"CREATE TABLE t AS SELECT (SELECT {value} FROM generate_series(1, {dim}) WHERE i > 0) AS v "
        f"FROM generate_series(1, {rows}) i".encode()
    )


def built(connection: Connection, element: Element, index: str) -> int:
    operators = "bit_hamming_ops" if element == "bit" else f"{TYPES[element]}_l2_ops"
    connection.execute(f"CREATE INDEX i ON t USING {index.format(operators)}".encode())
    return size(connection, "SELECT pg_relation_size('i')")


def size(connection: Connection, query: str) -> int:
    [(value,)] = connection.execute(query.encode()).fetchall()
    assert isinstance(value, int)
    return value


@pytest.mark.parametrize(
    ("element", "dim", "m", "rows"),
    [
        ("float32", 8, 16, 3000),
        ("float32", 384, 16, 600),
        ("float32", 768, 16, 300),
        ("float32", 948, 16, 300),
        ("float32", 949, 16, 300),
        ("float32", 1920, 32, 300),
        ("float32", 1921, 32, 200),
        ("float32", 1968, 16, 300),
        ("float32", 1969, 16, 200),
        ("float32", 2000, 16, 200),
        ("float32", 128, 100, 400),
        ("float16", 1024, 16, 300),
        ("float16", 3584, 16, 200),
        ("float16", 3936, 16, 300),
        ("float16", 3937, 16, 200),
        ("float16", 4000, 16, 200),
        ("bit", 1024, 16, 1000),
        ("bit", 4096, 32, 500),
        ("bit", 16000, 16, 200),
    ],
)
def test_an_hnsw_index_is_as_large_as_predicted(
    database: Connection, element: Element, dim: int, m: int, rows: int
) -> None:
    fill(database, element, dim, rows)
    found = built(database, element, f"hnsw (v {{}}) WITH (m = {m}, ef_construction = {max(2 * m, 8)})")
    assert hnsw_bytes(rows, element, dim, m=m) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize(
    ("element", "dim", "lists", "rows"),
    [
        ("float32", 8, 10, 12_000),
        ("float32", 768, 5, 300),
        ("float32", 2000, 3, 200),
        ("float16", 1536, 5, 300),
        ("float16", 4000, 3, 200),
        ("bit", 3584, 5, 1000),
    ],
)
def test_an_ivfflat_index_is_as_large_as_predicted(
    database: Connection, element: Element, dim: int, lists: int, rows: int
) -> None:
    fill(database, element, dim, rows)
    found = built(database, element, f"ivfflat (v {{}}) WITH (lists = {lists})")
    assert ivfflat_bytes(rows, element, dim, lists=lists) == pytest.approx(found, rel=0.1)


SCAN = Layout(index=Index("scan", "float16"), oversample=4)
PROJECTED = Layout(index=Index("hnsw", "float16", Shorten("pca", 512)), oversample=20)


@pytest.mark.parametrize(
    ("layout", "dim", "rows"),
    [
        (Layout(), 8, 3000),
        (Layout(), 384, 500),
        (Layout(), 488, 300),
        (Layout(), 500, 300),
        (Layout(), 768, 300),
        (Layout(), 1536, 300),
        (Layout(), 3584, 200),
        (Layout(), 16000, 60),
        (Layout(inline=True), 384, 500),
        (Layout(inline=True), 768, 300),
        (Layout(inline=True), 2008, 300),
        (Layout(element="float16"), 3584, 200),
        (Layout(element="float16", inline=True), 4016, 200),
        (SCAN, 3584, 200),
        (PROJECTED, 3584, 200),
        (Layout(index=Index("scan", "bit"), oversample=40), 8000, 100),
    ],
)
def test_a_table_is_as_large_as_predicted(database: Connection, layout: Layout, dim: int, rows: int) -> None:
    kind = TYPES[layout.element]
    columns, values = (
        f"embedding {kind}({dim}) STORAGE {'PLAIN' if layout.inline else 'EXTERNAL'} NOT NULL",
        "v",
    )
    fill(database, layout.element, dim, rows)
    if layout is SCAN:
        columns, values = f"{columns}, short halfvec({dim}) STORAGE PLAIN", "v, v::halfvec"
    elif layout is PROJECTED:
        columns, values = f"{columns}, short halfvec(512) STORAGE PLAIN", "v, subvector(v, 1, 512)::halfvec"
    elif layout.index:
        columns, values = f"{columns}, short bit({dim}) STORAGE PLAIN", "v, binary_quantize(v)"
    database.execute(
        f'CREATE TABLE c (id text COLLATE "C" PRIMARY KEY, {columns}, digest bytea, document text, '
        f"metadata jsonb NOT NULL)".encode()
    )
    database.execute(
        f"INSERT INTO c SELECT lpad(n::text, 16, '0'), {values}, sha256(n::text::bytea), NULL, '{{}}' "
        f"FROM (SELECT row_number() OVER () AS n, v FROM t) rows".encode()
    )
    found = size(
        database,
        "SELECT (pg_relation_size('c') + pg_relation_size(reltoastrelid) + pg_indexes_size(reltoastrelid))"
        "::int8 FROM pg_class WHERE oid = 'c'::regclass",
    )
    row = row_bytes(layout, dim)
    assert rows * (row.heap + row.beside) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize(
    ("element", "dim", "m"), [("float32", 256, 16), ("float16", 512, 16), ("float32", 256, 32)]
)
def test_an_hnsw_graph_spills_when_its_predicted_memory_is_exceeded(
    database: Connection, element: Element, dim: int, m: int
) -> None:
    memory = 2 * 2**20
    fill(database, element, dim, round(1.15 * memory / hnsw_memory(1, element, dim, m=m)))
    database.execute("SET client_min_messages = notice")
    database.execute(f"SET maintenance_work_mem = '{memory // 1024}kB'".encode())
    notices: list[str] = []
    database.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    built(database, element, f"hnsw (v {{}}) WITH (m = {m}, ef_construction = {2 * m})")
    [spilled] = [int(found[1]) for text in notices if (found := re.search(r"after (\d+) tuples", text))]
    assert hnsw_memory(spilled, element, dim, m=m) == pytest.approx(memory, rel=0.1)


@pytest.mark.parametrize(
    ("element", "dim", "lists", "allowed"),
    [("float32", 128, 400, 11), ("float32", 384, 400, 31), ("float16", 512, 400, 21)],
)
def test_ivfflat_asks_for_the_predicted_memory(
    database: Connection, element: Element, dim: int, lists: int, allowed: int
) -> None:
    rows = 1200
    fill(database, element, dim, rows)
    database.execute(f"SET maintenance_work_mem = '{allowed}MB'".encode())
    message = r"memory required is \d+ MB"
    with pytest.raises(psycopg.Error, match=message) as refused, database.transaction():
        built(database, element, f"ivfflat (v {{}}) WITH (lists = {lists})")
    found = re.search(r"required is (\d+) MB", str(refused.value))
    assert found
    # the server rounds up to the next whole megabyte
    assert ivfflat_memory(rows, element, dim, lists=lists) / 2**20 == pytest.approx(
        int(found[1]) - 0.5, rel=0.1
    )


layouts = st.sampled_from(
    [
        Layout(),
        Layout(inline=True),
        SCAN,
        Layout(index=Index("hnsw", "float16")),
        Layout(index=Index("hnsw", "bit"), oversample=40),
        Layout(index=Index("ivfflat", lists=100, probes=15)),
    ]
)


# what a shard of Edge takes, by its vectors and what is kept beside them
SHARDS: dict[str, Layout] = {
    "exact": Layout(),
    "hnsw": Layout(index=Index("hnsw", ef_construction=100)),
    "float16": Layout("float16", index=Index("hnsw", "float16", ef_construction=100)),
    "int8": Layout(index=Index("hnsw", "int8", ef_construction=100), oversample=4),
    "turbo4": Layout(index=Index("hnsw", "turbo4", ef_construction=100), oversample=4),
    "turbo2": Layout(index=Index("hnsw", "turbo2", ef_construction=100), oversample=10),
    "bit": Layout(index=Index("hnsw", "bit", ef_construction=100), oversample=40),
    "prefix": Layout(index=Index("hnsw", shorten=Shorten("truncate", 64)), oversample=20),
}


@given(
    st.one_of(
        st.tuples(st.just("pgvector"), layouts),
        st.tuples(st.just("qdrant"), st.sampled_from([*SHARDS.values()])),
    ),
    st.integers(600, 16_000),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
)
def test_more_rows_never_take_less(place: tuple[str, Layout], dim: int, one: int, other: int) -> None:
    on, layout = place
    few, many = (estimate(Space(dim), layout, rows=rows, limits=limits(on)) for rows in sorted((one, other)))
    # Qdrant throws away its log where a file of it is full
    assert few.table_bytes <= many.table_bytes + (LOG if on == "qdrant" else 0)
    assert few.index_bytes <= many.index_bytes
    assert few.build_memory_bytes <= many.build_memory_bytes
    assert few.serve_memory_bytes <= many.serve_memory_bytes
    assert few.scan_seconds <= many.scan_seconds


def test_what_the_memory_does_not_hold_is_read_from_disk() -> None:
    for on in ("flat", "pgvector", "qdrant", "edge"):
        ample = estimate(Space(3584), Layout(), rows=10**6, limits=limits(on), memory=10**11)
        scarce = estimate(Space(3584), Layout(), rows=10**6, limits=limits(on), memory=10**9)
        assert scarce.scan_seconds > ample.scan_seconds
        assert ample == estimate(Space(3584), Layout(), rows=10**6, limits=limits(on))


def quantisation(element: Element) -> Any:
    if element == "int8":
        return qdrant_edge.ScalarQuantizationConfig(type=qdrant_edge.ScalarType.Int8)
    if element == "bit":
        return qdrant_edge.BinaryQuantizationConfig()
    bits = {"turbo4": "Bits4", "turbo2": "Bits2", "turbo1": "Bits1"}
    if element in bits:
        size = getattr(qdrant_edge.TurboQuantBitSize, bits[element])
        return qdrant_edge.TurboQuantQuantizationConfig(bits=size)
    return None


def files(folder: Path) -> dict[str, int]:
    """Bytes that a shard's files occupy, by name; those made longer than needed count as far as filled."""
    found: dict[str, int] = {}
    for file in folder.rglob("*"):
        if file.is_file():
            found[file.name] = found.get(file.name, 0) + file.stat().st_blocks * 512
    return found


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_of_edge_is_as_large_as_predicted(name: str, tmp_path: Path) -> None:
    layout, dim, rows = SHARDS[name], 256, 2_000
    short = layout.index.shorten.dim if layout.index and layout.index.shorten else 0
    made = np.random.default_rng(5)
    vectors = made.standard_normal((rows, dim), dtype=np.float32)

    def graph(m: int) -> qdrant_edge.HnswIndexConfig:
        return qdrant_edge.HnswIndexConfig(m=m, ef_construct=16, full_scan_threshold=10)

    def kept(size: int, m: int) -> qdrant_edge.EdgeVectorParams:
        half = qdrant_edge.VectorStorageDatatype.Float16 if layout.element == "float16" else None
        return qdrant_edge.EdgeVectorParams(
            size=size, distance=qdrant_edge.Distance.Cosine, datatype=half, hnsw_config=graph(m)
        )

    m = 16 if layout.index else 0
    shard = qdrant_edge.EdgeShard.create(
        str(tmp_path),
        qdrant_edge.EdgeConfig(
            vectors={"full": kept(dim, 0), "short": kept(short, m)} if short else kept(dim, m),
            quantization_config=quantisation(layout.index.element) if layout.index else None,
            optimizers=qdrant_edge.EdgeOptimizersConfig(indexing_threshold=10, default_segment_number=1),
        ),
    )
    for start in range(0, rows, 500):
        points = []
        for row in range(start, start + 500):
            vector = vectors[row]
            id = str(uuid.uuid5(uuid.NAMESPACE_OID, str(row)))
            payload = {"id": f"{row:016}", "digest": f"{row:064x}"}
            both = {"full": vector, "short": vector[:short]} if short else vector
            points.append(qdrant_edge.Point(id, both, payload))
        shard.update(qdrant_edge.UpdateOperation.upsert_points(points))
    shard.flush()
    shard.optimize()
    # what is merged into another segment goes with the next look
    shard.optimize()
    shard.flush()
    shard.close()

    space = Space(dim, nested=(short,) if short else ())
    costs = estimate(space, layout, rows=rows, limits=limits("edge"))
    found = files(tmp_path)
    total = sum(found.values())
    assert costs.table_bytes + costs.index_bytes == pytest.approx(total, rel=0.1)
    links = found.get("links_compressed.bin", 0)
    if layout.index is None:
        assert costs.index_bytes == 0
        assert links < 0.01 * total
        return
    # links in as many bits as there are rows, in lists that are filled by half or to the brim
    assert 0.5 * graph_bytes(rows, 16) < links < 1.5 * graph_bytes(rows, 16)
    if layout.index.element in QUANTISED:
        copy = rows * quantised_bytes(layout.index.element, dim)
        assert found["quantized.data"] - 8192 < copy <= found["quantized.data"]  # files end with a block
        assert costs.index_bytes == graph_bytes(rows, 16) + copy


def test_quantised_copies_are_what_has_to_stay_in_memory() -> None:
    known, space, rows = limits("qdrant"), Space(1024), 10**6
    vectors = rows * 1024 * 4
    whole = estimate(space, SHARDS["hnsw"], rows=rows, limits=known)
    # Qdrant's own rule: half as much again as the vectors take
    assert whole.serve_memory_bytes == pytest.approx(1.5 * vectors, rel=0.02)
    costs = [estimate(space, SHARDS[name], rows=rows, limits=known) for name in ("int8", "turbo4", "turbo2")]
    for shrunk, times in zip(costs, (4, 8, 16), strict=True):
        assert vectors / times < shrunk.serve_memory_bytes < vectors / times * 1.5
        assert shrunk.table_bytes == whole.table_bytes
    half = estimate(space, SHARDS["float16"], rows=rows, limits=known)
    assert half.serve_memory_bytes == pytest.approx(whole.serve_memory_bytes / 2, rel=0.02)


def test_each_machine_of_a_cluster_takes_its_share() -> None:
    single, three = limits("qdrant"), replace(limits("qdrant"), nodes=3)
    rows, layout = 6 * 10**6, SHARDS["int8"]
    one = estimate(Space(768), layout, rows=rows, limits=single)
    for replication in (1, 2, 3):
        spread = replace(layout, spread=Spread(6, replication))
        each = estimate(Space(768), spread, rows=rows, limits=three)
        for field in ("table_bytes", "index_bytes", "build_memory_bytes", "serve_memory_bytes"):
            assert getattr(each, field) == pytest.approx(getattr(one, field) * replication / 3, rel=0.02)
    scanned = estimate(Space(768), Layout(spread=Spread(6, 2)), rows=rows, limits=three)
    alone = estimate(Space(768), Layout(), rows=rows, limits=single)
    assert scanned.scan_seconds == pytest.approx(alone.scan_seconds / 3)


def test_a_flat_collection_is_its_matrix_and_little_more() -> None:
    costs = estimate(Space(3584), Layout(), rows=10_000, limits=limits("flat"))
    assert costs.serve_memory_bytes == 10_000 * 3584 * 4
    assert 1.25 * costs.serve_memory_bytes < costs.table_bytes < 1.3 * costs.serve_memory_bytes
    short = estimate(Space(127), Layout(), rows=10_000, limits=limits("flat"))
    assert short.table_bytes == 10_000 * (127 * 4 + 160)
    assert costs.index_bytes == costs.build_memory_bytes == 0
    half = estimate(Space(3584), Layout(element="float16"), rows=10_000, limits=limits("flat"))
    assert half.serve_memory_bytes * 2 == costs.serve_memory_bytes


# every way in which pgvector keeps vectors, for 1,024 dimensions in which all of them are possible
KEPT: dict[str, Layout] = {
    "exact": Layout(),
    "exact inline": Layout(inline=True),
    "exact half": Layout("float16", inline=True),
    "hnsw": Layout(index=Index("hnsw", ef_search=200)),
    "hnsw float16": Layout(index=Index("hnsw", "float16", ef_search=200), oversample=2),
    "hnsw of half": Layout("float16", index=Index("hnsw", "float16", ef_search=200)),
    "hnsw bit": Layout(index=Index("hnsw", "bit", ef_search=400), oversample=40),
    "hnsw prefix": Layout(
        index=Index("hnsw", "float16", Shorten("truncate", 256), ef_search=200), oversample=20
    ),
    "hnsw pca": Layout(index=Index("hnsw", "float16", Shorten("pca", 256), ef_search=200), oversample=20),
    "ivfflat": Layout(index=Index("ivfflat", "float16", lists=5, probes=5), oversample=2),
    "scan": Layout(index=Index("scan", "float16"), oversample=4),
    "scan bit": Layout(index=Index("scan", "bit"), oversample=40),
    "pca at the door": Layout(shorten=Shorten("pca", 256), index=Index("hnsw", "float16", ef_search=200)),
}


def ids(rows: int) -> list[str]:
    return [f"{row:016}" for row in range(rows)]


def clustered(rows: int, dim: int) -> Any:
    made = np.random.default_rng(7).standard_normal((rows, dim), dtype=np.float32)
    made *= np.arange(1, dim + 1, dtype=np.float32) ** -0.3
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.mark.parametrize("name", KEPT)
def test_a_collection_in_pgvector_is_as_large_as_predicted(name: str, pg: str) -> None:
    layout, dim = KEPT[name], 1024
    # COPY makes a table up to 64 pages longer than it need be, which counts where rows are short
    rows = 3_000 if layout.shorten else 1_000
    vectors = clustered(rows, dim)
    with vecbridge.connect(pg) as store:
        kept = store.create("kept", dim=dim, nested=[256], layout=layout, sample=vectors[:300])
        kept.upsert(ids(rows), vectors, digests=[bytes(32)] * rows)
        kept.build_index()
        found, known = kept.sizes(), store.limits
    with psycopg.connect(pg) as connection:
        total = size(connection, "SELECT pg_total_relation_size('vecbridge_kept')")
    costs = estimate(Space(dim, nested=(256,)), layout, rows=rows, limits=known)
    assert found.table + found.index == pytest.approx(total, rel=0.02)
    assert costs.table_bytes == pytest.approx(found.table, rel=0.1)
    assert costs.index_bytes == pytest.approx(found.index, rel=0.1)
    assert costs.table_bytes + costs.index_bytes == pytest.approx(total, rel=0.1)


@pytest.mark.parametrize(
    ("dim", "layout"),
    [
        (64, Layout(index=Index("hnsw", "int8", m=8, ef_construction=16), oversample=4)),
        (256, Layout("float16")),
        (700, Layout()),
        (1024, Layout()),
    ],
    ids=["64 indexed", "256 half", "700", "1024"],
)
def test_twenty_thousand_in_edge_are_as_large_as_predicted(dim: int, layout: Layout, tmp_path: Path) -> None:
    rows, url = 20_000, f"qdrant:{tmp_path / 'edge'}"
    with vecbridge.connect(url) as store:
        kept = store.create("kept", dim=dim, layout=layout)
        vectors, names = clustered(rows, dim), ids(rows)
        for start in range(0, rows, 1_000):
            part = slice(start, start + 1_000)
            kept.upsert(names[part], vectors[part], digests=[bytes(32)] * 1_000)
        kept.build_index()
    # what has been written lies in the log until it is closed
    with vecbridge.connect(url) as store:
        found = store.open("kept").sizes()
        costs = estimate(Space(dim), layout, rows=rows, limits=store.limits)
    assert costs.table_bytes + costs.index_bytes == pytest.approx(found.table + found.index, rel=0.1)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("element", ["float32", "float16"])
def test_flat_storage_is_as_large_as_predicted(
    element: Any, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fast:
        pytest.importorskip("numkong", reason="without vecbridge[fast] there is no copy in bytes")
    else:
        monkeypatch.setattr("vecbridge.backends.flat.matrix.dots", lambda: None)
        monkeypatch.setattr(sizes, "coded", lambda: False)
    rows, dim = 5_000, 256
    with vecbridge.connect(f"flat:{tmp_path}") as store:
        kept = store.create("kept", dim=dim, layout=Layout(element))
        kept.upsert(ids(rows), clustered(rows, dim), digests=[bytes(32)] * rows)
    with vecbridge.connect(f"flat:{tmp_path}") as store:
        found = store.open("kept").sizes()
    costs = estimate(Space(dim), Layout(element), rows=rows, limits=limits("flat"))
    assert costs.table_bytes == pytest.approx(found.table, rel=0.1)
