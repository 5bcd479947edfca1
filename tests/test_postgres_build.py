"""Indexes on real servers: each layout uses its own, finds what exact search finds, survives interruption."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest
from conftest import Fresh
from psycopg import errors as pg_errors

from vecbridge import reduction
from vecbridge.backends.postgres import Postgres, Table, build, connect
from vecbridge.errors import CollectionNotFound, FeatureMissing, Forbidden, IndexFailure
from vecbridge.filters import parse
from vecbridge.manifest import Manifest
from vecbridge.types import Batch, Index, IndexState, Layout, Metric, Shorten, Space

if TYPE_CHECKING:
    from vecbridge.types import Floats

DIM, ROWS, QUERIES, K, NESTED = 128, 2000, 25, 10, 64
SEED = 7
PREFIX, PCA = Shorten("truncate", NESTED), Shorten("pca", NESTED)

HNSW = Index("hnsw", ef_search=100)
LAYOUTS = {
    "hnsw": Layout(index=HNSW),
    "hnsw on half": Layout(index=Index("hnsw", "float16", ef_search=100)),
    "half with hnsw": Layout(element="float16", index=Index("hnsw", "float16", ef_search=100)),
    "bit": Layout(index=Index("hnsw", "bit", ef_search=200), oversample=20),
    "prefix": Layout(index=Index("hnsw", "float16", PREFIX, ef_search=200), oversample=20),
    "pca": Layout(index=Index("hnsw", "float32", PCA, ef_search=200), oversample=10),
    "pca on half": Layout(index=Index("hnsw", "float16", PCA, ef_search=200), oversample=10),
    "ivfflat": Layout(index=Index("ivfflat", lists=30, probes=15)),
    "ivfflat on half": Layout(index=Index("ivfflat", "float16", lists=30, probes=15)),
    "ivfflat on bit": Layout(index=Index("ivfflat", "bit", lists=30, probes=20), oversample=20),
}
COPIES = {
    "scan half": Layout(index=Index("scan", "float16"), oversample=4),
    "scan bit": Layout(index=Index("scan", "bit"), oversample=20),
    "scan prefix": Layout(index=Index("scan", "float16", PREFIX), oversample=20),
    "scan pca": Layout(index=Index("scan", "float16", PCA), oversample=10),
}


def clustered(n: int, dim: int, *, seed: int = SEED) -> Floats:
    """Vectors as embeddings are: in clusters, and with most of their length in the first components."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(SEED).normal(size=(20, dim))
    scale = 1 / np.sqrt(1 + np.arange(dim) / (dim / 8))
    matrix = (centres[rng.integers(0, 20, n)] + 0.8 * rng.normal(size=(n, dim))) * scale
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def described(name: str, layout: Layout, metric: Metric, *, dim: int = DIM) -> Manifest:
    index = layout.index
    fitted = None
    if index and index.shorten and index.shorten.method == "pca":
        fitted = reduction.fit(index.shorten, source=dim, metric=metric, sample=clustered(ROWS, dim, seed=1))
    return Manifest(name, Space(dim, metric, (NESTED,)), layout, ROWS, index_reduction=fitted)


def shortened(manifest: Manifest, matrix: Floats) -> Floats | None:
    return None if manifest.index_reduction is None else manifest.index_reduction.apply(matrix)


def fill(table: Table, matrix: Floats) -> None:
    n = len(matrix)
    table.write(
        Batch(
            [f"{row:05}" for row in range(n)],
            matrix,
            [f"document {row}" for row in range(n)],
            [{"n": row, "tenth": row % 10, "rare": row % 100 == 3} for row in range(n)],
            [None] * n,
            shortened(table.manifest, matrix),
        )
    )


@pytest.fixture
def store(pg: str) -> Iterator[Postgres]:
    backend = connect(pg)
    yield backend
    backend.close()


@pytest.fixture
def store16(pg16: str, fresh: Fresh) -> Iterator[Postgres]:
    backend = connect(fresh(pg16))
    yield backend
    backend.close()


@pytest.fixture
def small(store: Postgres) -> Table:
    """300 rows that wait for their HNSW index."""
    table = store.create(described("papers", Layout(index=HNSW), "cosine", dim=16))
    fill(table, clustered(300, 16))
    return table


def admin(url: str, *statements: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def ready(table: Table) -> bool:
    return table.index_state() == IndexState("ready", used=True)


def check_searches(table: Table, *, least: float = 0.95) -> None:
    """Recall, order, scores, and k hits for filters of any selectivity."""
    manifest = table.manifest
    queries = clustered(QUERIES, manifest.space.dim, seed=99)
    short = shortened(manifest, queries)
    found = table.search(queries, short, k=K, where=None, exact=False)
    truth = table.search(queries, None, k=K, where=None, exact=True)
    recalls = [
        len({hit.id for hit in one} & {hit.id for hit in other}) / K
        for one, other in zip(found, truth, strict=True)
    ]
    assert np.mean(recalls) >= least, f"seed {SEED}"
    for one, other in zip(found, truth, strict=True):
        scores = [hit.score for hit in one]
        assert scores == sorted(scores, reverse=True)
        exact = {hit.id: hit for hit in other}
        assert all(hit == exact[hit.id] for hit in one if hit.id in exact)
    rows = table.count()
    wheres: list[tuple[dict[str, Any], int]] = [
        ({"tenth": 3}, rows // 10),
        ({"rare": True}, rows // 100),
        ({"n": {"$lt": 3}}, 3),
        ({"n": -1}, 0),
    ]
    for where, matching in wheres:
        condition = parse(where)
        hits = table.search(
            queries[:3], None if short is None else short[:3], k=K, where=condition, exact=False
        )
        assert [len(one) for one in hits] == [min(K, matching)] * 3, where
        assert all(_holds(where, hit.metadata) for one in hits for hit in one)
    for k in (100, rows, rows + 5):
        hits = table.search(queries[:1], None if short is None else short[:1], k=k, where=None, exact=False)
        assert len({hit.id for hit in hits[0]}) == len(hits[0]) == min(k, rows)


def _holds(where: dict[str, Any], metadata: Any) -> bool:
    from vecbridge.filters import matches

    return matches(parse(where), metadata)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_runs_on_its_index_and_finds_what_exact_search_finds(
    store: Postgres, name: str, metric: Metric
) -> None:
    table = store.create(described("papers", LAYOUTS[name], metric))
    fill(table, clustered(ROWS, DIM))
    assert table.index_state().status == "missing"
    table.build_index(None)
    assert ready(table)
    assert ready(store.open("papers"))
    check_searches(table)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("name", COPIES)
def test_a_compact_copy_is_scanned_and_finds_what_exact_search_finds(
    store: Postgres, name: str, metric: Metric
) -> None:
    table = store.create(described("papers", COPIES[name], metric))
    fill(table, clustered(ROWS, DIM))
    table.build_index(None)
    assert table.index_state().status == "none"
    assert table.sizes().index == 0
    check_searches(table)


@pytest.mark.parametrize("name", ["hnsw on half", "bit", "pca", "ivfflat"])
def test_layouts_on_postgresql_16(store16: Postgres, name: str) -> None:
    table = store16.create(described("papers", LAYOUTS[name], "cosine"))
    fill(table, clustered(ROWS, DIM))
    table.build_index(None)
    assert ready(table)
    check_searches(table)


@pytest.mark.parametrize("name", ["hnsw", "ivfflat", "pca"])
def test_float32_layouts_on_pgvector_0_6(pg062: str, fresh: Fresh, name: str) -> None:
    store = connect(fresh(pg062))
    table = store.create(described("papers", LAYOUTS[name], "cosine"))
    fill(table, clustered(ROWS, DIM))
    table.build_index(None)
    assert ready(table)
    check_searches(table)
    store.close()


def test_a_layout_that_a_server_lacks_is_refused_by_create(pg062: str, fresh: Fresh) -> None:
    store = connect(fresh(pg062))
    with pytest.raises(FeatureMissing, match=r"needs pgvector 0\.7\.0, this is 0\.6\.2"):
        store.create(described("papers", LAYOUTS["prefix"], "cosine"))
    store.close()


def test_3584_dimensions_on_a_half_precision_index(store: Postgres) -> None:
    table = store.create(described("papers", LAYOUTS["hnsw on half"], "cosine", dim=3584))
    fill(table, clustered(400, 3584))
    table.build_index(None)
    assert ready(table)
    check_searches(table)


def test_the_whole_row_with_an_inline_vector_fits_its_page(store: Postgres) -> None:
    from vecbridge.objections import largest_inline

    layouts = {
        "stored": (Layout(inline=True), largest_inline(Layout(inline=True), 8160)),
        "half": (
            Layout(element="float16", inline=True),
            largest_inline(Layout("float16", inline=True), 8160),
        ),
        "copy": (COPIES["scan half"], largest_inline(COPIES["scan half"], 8160)),
    }
    for name, (layout, dim) in layouts.items():
        table = store.create(Manifest(name, Space(dim), layout, 1))
        rng = np.random.default_rng(SEED)
        noise = "".join(map(chr, rng.integers(0x20, 0x4000, 300)))
        matrix = clustered(1, dim)
        table.write(Batch([noise], matrix, [noise * 30], [{"k": noise}], [bytes(range(32))]))
        assert list(table.read([noise]).documents) == [noise * 30]
        assert table.count(parse({"k": noise})) == 1


def test_a_wide_vector_leaves_its_row_and_an_inline_one_does_not(store: Postgres, pg: str) -> None:
    for name, inline in (("beside", False), ("within", True)):
        table = store.create(Manifest(name, Space(1000), Layout(inline=inline), 1))
        fill(table, clustered(50, 1000))
    assert admin(
        pg,
        "SELECT pg_relation_size('vecbridge_beside') < 50 * 4000, "
        "pg_relation_size('vecbridge_within') > 50 * 4000",
    ) == [(True, True)]


# building


def test_progress_ends_at_its_total(small: Table) -> None:
    seen: list[tuple[str, int, int | None]] = []
    small.build_index(lambda stage, done, total: seen.append((stage, done, total)))
    assert seen[-1] == ("index", 300, 300)
    counts = [done for _, done, _ in seen]
    assert counts == sorted(counts)


def test_an_error_in_the_callers_progress_ends_the_build_and_leaves_nothing(
    small: Table, pg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stage: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt("stop")

    # the build is made to last by a lock that it waits for
    monkeypatch.setattr(build, "_PAUSE", 0.01)
    with psycopg.connect(pg) as other:
        other.execute("LOCK TABLE vecbridge_papers IN ROW EXCLUSIVE MODE")
        with pytest.raises(KeyboardInterrupt, match=r"^stop$"):
            small.build_index(fail)
    assert admin(pg, "SELECT count(*) FROM pg_class WHERE relname LIKE '%$idx'") == [(0,)]
    small.build_index(None)
    assert ready(small)


def test_building_twice_builds_once(small: Table, pg: str) -> None:
    small.build_index(None)
    before = admin(pg, "SELECT oid FROM pg_class WHERE relname = 'vecbridge_papers$idx'")
    small.build_index(None)
    assert admin(pg, "SELECT oid FROM pg_class WHERE relname = 'vecbridge_papers$idx'") == before


def test_an_interrupted_concurrent_build_is_found_and_repaired(small: Table, pg: str) -> None:
    statement = (
        'CREATE INDEX CONCURRENTLY "vecbridge_papers$idx" ON vecbridge_papers '
        "USING hnsw (embedding vector_cosine_ops)"
    )
    with psycopg.connect(pg) as writer, psycopg.connect(pg, autocommit=True) as builder:
        writer.execute("DELETE FROM vecbridge_papers WHERE id = '00000'")

        def interrupted() -> None:
            with pytest.raises(psycopg.OperationalError, match="terminating connection"):
                builder.execute(statement)

        thread = threading.Thread(target=interrupted)
        thread.start()
        # it has made the index invalid by now, and waits for the writer
        while not admin(pg, "SELECT 1 FROM pg_class WHERE relname = 'vecbridge_papers$idx'"):
            time.sleep(0.01)
        admin(pg, f"SELECT pg_terminate_backend({builder.info.backend_pid})")
        thread.join(30)
    state = small.index_state()
    assert state.status == "invalid"
    assert "interrupted" in state.detail
    assert len(small.search(clustered(1, 16), None, k=5, where=None, exact=False)[0]) == 5
    small.build_index(None)
    assert ready(small)


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ("hnsw (embedding vector_l2_ops)", "it is hnsw .*vector_l2_ops.*, expected hnsw .*vector_cosine_ops"),
        ("hnsw ((embedding::halfvec(16)) halfvec_cosine_ops)", "embedding::halfvec16"),
        ("hnsw (embedding vector_cosine_ops) WITH (m = 8)", "built with .*8.*, expected .*16"),
        ("ivfflat (embedding vector_cosine_ops) WITH (lists = 2)", "it is ivfflat"),
        ("btree (document)", "it is btree"),
    ],
)
def test_an_index_of_another_definition_is_replaced(
    small: Table, pg: str, definition: str, said: str
) -> None:
    admin(pg, f'CREATE INDEX "vecbridge_papers$idx" ON vecbridge_papers USING {definition}')
    state = small.index_state()
    assert state.status == "invalid"
    assert re.search(said, state.detail)
    small.build_index(None)
    assert ready(small)


def test_an_index_made_by_hand_as_the_manifest_wants_it_is_kept(small: Table, pg: str) -> None:
    admin(
        pg, 'CREATE INDEX "vecbridge_papers$idx" ON vecbridge_papers USING hnsw (embedding vector_cosine_ops)'
    )
    assert ready(small)


def test_a_build_that_writers_need_not_wait_for(small: Table) -> None:
    small.build_index(None, concurrently=True)
    assert ready(small)


def test_two_builders_take_turns_and_the_second_finds_it_ready(small: Table, pg: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        stores = [connect(pg) for _ in range(3)]
        for running in [
            pool.submit(one.open("papers").build_index, None, concurrently=True) for one in stores
        ]:
            running.result(timeout=120)
        for one in stores:
            one.close()
    assert ready(small)


def test_an_index_that_searches_do_not_use_is_an_error(small: Table, pg: str) -> None:
    store = connect(f"{pg}&options=-cenable_indexscan%3Doff")
    with pytest.raises(IndexFailure, match=r"does not run on it \(it uses no index\)"):
        store.open("papers").build_index(None)
    assert store.open("papers").index_state() == IndexState("ready", used=False)
    store.close()


def test_an_index_that_cannot_be_built_is_an_error_with_the_servers_reason(small: Table, pg: str) -> None:
    admin(pg, 'CREATE TABLE "vecbridge_papers$idx" ()')
    with pytest.raises(IndexFailure, match=r"could not be built: relation .* already exists"):
        small.build_index(None)


def test_only_the_owner_builds(small: Table, pg: str) -> None:
    admin(pg, "CREATE ROLE stranger LOGIN", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO stranger")
    store = connect(pg.replace("postgres@", "stranger@"))
    try:
        with pytest.raises(Forbidden, match="must be owner of table vecbridge_papers; only the owner"):
            store.open("papers").build_index(None)
    finally:
        store.close()
        admin(pg, "DROP OWNED BY stranger CASCADE", "DROP ROLE stranger")


def test_building_a_dropped_collection_says_so(store: Postgres, small: Table) -> None:
    store.drop("papers")
    with pytest.raises(CollectionNotFound, match="'papers' has been dropped"):
        small.build_index(None)
    with pytest.raises(CollectionNotFound, match="'papers' has been dropped"):
        small.index_state()


def test_hnsw_is_built_on_an_empty_table_and_ivfflat_waits_for_rows(store: Postgres) -> None:
    hnsw = store.create(described("hnsw", Layout(index=HNSW), "cosine", dim=16))
    hnsw.build_index(None)
    assert ready(hnsw)
    fill(hnsw, clustered(50, 16))
    assert len(hnsw.search(clustered(1, 16), None, k=20, where=None, exact=False)[0]) == 20
    waiting = store.create(described("ivfflat", Layout(index=Index("ivfflat", lists=10)), "cosine", dim=16))
    waiting.build_index(None)
    assert waiting.index_state() == IndexState(
        "missing", detail="ivfflat is built from rows, and there are none yet"
    )
    fill(waiting, clustered(50, 16))
    waiting.build_index(None)
    assert ready(waiting)


def test_ivfflat_takes_as_many_lists_as_the_rows_fill(store: Postgres, pg: str) -> None:
    table = store.create(described("papers", Layout(index=Index("ivfflat", lists=100)), "l2", dim=16))

    def lists() -> str:
        found = admin(pg, "SELECT reloptions[1] FROM pg_class WHERE relname = 'vecbridge_papers$idx'")
        return str(found[0][0])

    fill(table, clustered(500, 16))
    table.build_index(None)
    assert lists() == "lists=10"
    fill(table, clustered(900, 16))
    table.build_index(None)
    assert lists() == "lists=10"
    fill(table, clustered(5000, 16))
    table.build_index(None)
    assert lists() == "lists=100"
    assert ready(table)


def test_ivfflat_gets_the_memory_that_the_server_asks_for(
    store: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = store.create(described("papers", Layout(index=Index("ivfflat", lists=60)), "l2", dim=256))
    fill(table, clustered(4000, 256))
    asked: list[int] = []
    configure = build._configure

    def too_little(connection: Any, memory: int, workers: int) -> None:
        asked.append(memory)
        configure(connection, memory, workers)
        connection.execute(f"SET maintenance_work_mem = '{max(memory // 1024, 1024)}kB'")

    monkeypatch.setattr(build, "_configure", too_little)
    monkeypatch.setattr(build, "_memory", lambda *_: 2**20)
    table.build_index(None)
    assert len(asked) == 2
    assert asked[1] > 4 * 2**20
    assert ready(table)


def test_a_build_without_enough_shared_memory_goes_on_without_workers(
    small: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, workers = build._execute, []
    configure = build._configure

    def configured(connection: Any, memory: int, count: int) -> None:
        workers.append(count)
        configure(connection, memory, count)

    def short_of_memory(connection: Any, statement: Any, watch: Any) -> None:
        if workers[-1]:
            raise pg_errors.DiskFull("could not resize shared memory segment")
        execute(connection, statement, watch)

    monkeypatch.setattr(build, "_machine", lambda **_: (2**30, 2))
    monkeypatch.setattr(build, "_configure", configured)
    monkeypatch.setattr(build, "_execute", short_of_memory)
    small.build_index(None)
    assert workers == [2, 0]
    assert ready(small)


def test_parallel_workers_are_started_although_the_vectors_lie_beside_the_table(
    store: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = store.create(described("papers", Layout(index=HNSW), "cosine", dim=600))
    fill(table, clustered(3000, 600))
    seen: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.append(
                table.run(
                    lambda connection: connection.execute(
                        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel worker'"
                    ).fetchone()
                )[0]  # type: ignore[index]  # a count has one row
            )
            time.sleep(0.02)

    thread = threading.Thread(target=look)
    thread.start()
    monkeypatch.setattr(build, "_machine", lambda **_: (2**30, 1))
    table.build_index(None)
    stop.set()
    thread.join()
    assert max(seen) >= 1


def test_what_an_administrator_gave_is_not_taken_away(small: Table, pg: str) -> None:
    def memory(connection: Any) -> str:
        build._configure(connection, 2**20, 0)
        return str(connection.execute("SHOW maintenance_work_mem").fetchone()[0])

    assert small.run(memory) == "64MB"
    store = connect(f"{pg}&options=-cmaintenance_work_mem%3D1GB")
    assert store.open("papers").run(memory) == "1GB"
    store.close()


def test_a_server_may_say_how_much_memory_a_build_gets_at_most(small: Table, pg: str) -> None:
    def memory(connection: Any) -> str:
        build._configure(connection, 2**30, 0)
        return str(connection.execute("SHOW maintenance_work_mem").fetchone()[0])

    assert small.run(memory) == "1GB"
    for given, expected in (("300MB", "300MB"), ("2GB", "1GB"), ("1MB", "64MB"), ("", "1GB")):
        store = connect(f"{pg}&options=-cvecbridge.build_memory%3D{given}")
        assert store.open("papers").run(memory) == expected
        store.close()


def test_sizes_are_what_the_server_says(small: Table, pg: str) -> None:
    small.build_index(None)
    expected = admin(
        pg,
        "SELECT pg_table_size('vecbridge_papers') + pg_relation_size('\"vecbridge_papers$key\"'), "
        "pg_relation_size('\"vecbridge_papers$idx\"')",
    )[0]
    sizes = small.sizes()
    assert (sizes.table, sizes.index) == expected
    assert sizes.index > 0


# searches that an index alone would get wrong


def test_deleted_rows_do_not_shorten_the_result(small: Table) -> None:
    small.build_index(None)
    small.delete([f"{row:05}" for row in range(0, 300, 2)])
    for k in (40, 150):
        hits = small.search(clustered(1, 16), None, k=k, where=None, exact=False)[0]
        assert len(hits) == k


def test_more_candidates_than_a_scan_can_keep_go_exact_on_an_old_server(pg062: str, fresh: Fresh) -> None:
    store = connect(fresh(pg062))
    table = store.create(described("papers", Layout(index=HNSW), "cosine", dim=16))
    fill(table, clustered(1500, 16))
    table.build_index(None)
    for k in (60, 999, 1000, 1001, 1500, 2000):
        hits = table.search(clustered(1, 16), None, k=k, where=None, exact=False)[0]
        assert len(hits) == min(k, 1500)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    store.close()


def test_the_first_search_of_a_session_has_its_settings(pg062: str, fresh: Fresh) -> None:
    url = fresh(pg062)
    store = connect(url)
    table = store.create(described("papers", Layout(index=Index("hnsw", ef_search=400)), "cosine", dim=16))
    fill(table, clustered(1500, 16))
    table.build_index(None)
    store.close()
    other = connect(url)
    # 40 hits would come back if the server, which has not loaded pgvector yet, had ignored ef_search
    counted: list[int] = []
    opened = other.open("papers")
    opened._count = lambda where, most: counted.append(1) or 0  # type: ignore[method-assign,assign,func-returns-value]  # to see whether it was short
    assert len(opened.search(clustered(1, 16), None, k=300, where=None, exact=False)[0]) == 300
    assert not counted
    other.close()


def test_a_vector_whose_shortened_form_is_zero_is_still_found(store: Postgres) -> None:
    table = store.create(described("papers", LAYOUTS["prefix"], "l2"))
    matrix = clustered(30, DIM)
    matrix[4, :NESTED] = 0
    fill(table, matrix)
    table.build_index(None)
    hits = table.search(matrix[4:5], None, k=30, where=None, exact=False)[0]
    assert hits[0].id == "00004"
    assert len(hits) == 30


def test_every_query_of_many_gets_its_own_answer(small: Table) -> None:
    small.build_index(None)
    matrix = clustered(300, 16)
    found = small.search(matrix, None, k=1, where=None, exact=False)
    assert [hits[0].id for hits in found] == [f"{row:05}" for row in range(300)]
