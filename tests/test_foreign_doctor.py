"""`vecbridge doctor` on tables of others: each fault is made for real, found, and mended by the remedy."""

from __future__ import annotations

import json
import re

import psycopg
import pytest
from conftest import Fresh
from test_foreign import DUMPS, execute, load

from vecbridge.backends import connect
from vecbridge.backends.postgres import foreign, foreign_findings
from vecbridge.backends.postgres.searches import Search, searches
from vecbridge.types import Finding

SEARCHES: dict[str, list[str]] = json.loads((DUMPS / "searches.json").read_text())


@pytest.fixture
def empty(pg18: str, fresh: Fresh) -> str:
    """URL of an empty database with pgvector."""
    return fresh(pg18, extension=True)


@pytest.fixture
def all_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of a few rows are judged as large ones are."""
    monkeypatch.setattr(foreign_findings, "_SLOW", 0.0)


def findings(url: str) -> list[Finding]:
    """What is said of the columns of others."""
    backend = connect(url)
    try:
        return [one for one in backend.findings() if "." in one.subject or one.subject == "other columns"]
    finally:
        backend.close()


def wrong(url: str) -> list[Finding]:
    return [one for one in findings(url) if one.level != "ok"]


def statements(remedy: str) -> list[str]:
    words = "ALTER|ANALYZE|CREATE|DROP|REINDEX|VACUUM"
    return re.findall(rf"(?:{words}) [^;]*;", remedy)


def query_in(remedy: str) -> str:
    found = re.search(r"(SELECT .*);$", remedy, re.MULTILINE)
    assert found is not None
    return found[1]


def plan(url: str, query: str, value: str) -> str:
    """How the server runs a query with $1, where it takes an index whenever one can be used."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET enable_seqscan = off")
        connection.execute("SET enable_sort = off")
        connection.execute(f"PREPARE asked AS {query}".encode())
        rows = connection.execute(f"EXPLAIN EXECUTE asked ('{value}')".encode()).fetchall()
    return "\n".join(row[0] for row in rows)


def vector(dim: int) -> str:
    return str([round(0.1 * (n % 7 - 3), 1) for n in range(dim)])


def fill(url: str, dim: int, *, rows: int = 20, type: str = "vector") -> None:
    value = f"'{vector(dim)}'::vector::{type}" if type != "bit" else f"'{'01' * (dim // 2)}'::varbit"
    execute(url, f"INSERT INTO a (v) SELECT {value} FROM generate_series(1, {rows})", "ANALYZE a")


# --- an index where there is none ---------------------------------------------------------------------

MISSING = {
    "declared": ("vector(8)", 8, '("v" "public"."vector_cosine_ops")'),
    "undeclared": ("vector", 8, '(("v"::"public"."halfvec"(8)) "public"."halfvec_cosine_ops")'),
    "too long": ("vector(3072)", 3072, '(("v"::"public"."halfvec"(3072)) "public"."halfvec_cosine_ops")'),
    "far too long": (
        "vector(4001)",
        4001,
        '(("public"."binary_quantize"("v")::pg_catalog."bit"(4001)) "public"."bit_hamming_ops")',
    ),
    "half": ("halfvec(8)", 8, '("v" "public"."halfvec_cosine_ops")'),
    "half undeclared": ("halfvec", 8, '(("v"::"public"."halfvec"(8)) "public"."halfvec_cosine_ops")'),
    "half too long": (
        "halfvec(4002)",
        4002,
        '(("public"."binary_quantize"("v")::pg_catalog."bit"(4002)) "public"."bit_hamming_ops")',
    ),
    "bits": ("bit(64)", 64, '("v" "public"."bit_hamming_ops")'),
}


@pytest.mark.usefixtures("all_slow")
@pytest.mark.parametrize("case", MISSING)
def test_the_index_that_is_proposed_is_used_by_the_query_that_is_given(empty: str, case: str) -> None:
    type, dim, key = MISSING[case]
    execute(empty, f"CREATE TABLE a (id serial PRIMARY KEY, v {type})")
    fill(empty, dim, type=type.partition("(")[0])
    [finding] = [one for one in wrong(empty) if one.subject == "public.a.v: index"]
    assert (finding.level, key in finding.remedy) == ("warning", True)
    assert "every search reads all of the about 20 vectors" in finding.found
    execute(empty, *statements(finding.remedy))
    value = "01" * (dim // 2) if "bit" in type else vector(dim)
    assert "Index Scan using a_" in plan(empty, query_in(finding.remedy), value)
    assert wrong(empty) == []


@pytest.mark.usefixtures("all_slow")
def test_a_declared_dimension_that_fits_serves_the_owners_queries_as_they_are(empty: str) -> None:
    execute(empty, "CREATE TABLE a (id serial PRIMARY KEY, v vector(8))")
    fill(empty, 8)
    execute(empty, *statements(wrong(empty)[0].remedy))
    assert "Index Scan using a_v_idx" in plan(empty, "SELECT id FROM a ORDER BY v <=> $1 LIMIT 3", vector(8))


@pytest.mark.usefixtures("all_slow")
def test_collections_of_different_dimensions_in_one_table_get_an_index_each(pg: str) -> None:
    load(pg, "langchain_v1")
    execute(pg, "ANALYZE langchain_pg_embedding")
    found = wrong(pg)
    assert [one.subject for one in found] == ["public.langchain_pg_embedding.embedding: index"] * 2
    for finding, (name, dim) in zip(found, [("tides", 8), ("birds", 6)], strict=True):
        assert f"none of collection {name}: every search" in finding.found
        assert "the search of LangChain (PGVector) carries no such cast, and stays exact" in finding.found
        execute(pg, *statements(finding.remedy))
        assert "Index Scan using langchain_pg_embedding_" in plan(pg, query_in(finding.remedy), vector(dim))
    assert wrong(pg) == []


@pytest.mark.usefixtures("all_slow")
def test_a_partitioned_table_and_a_materialised_view_get_an_index(empty: str) -> None:
    execute(
        empty,
        "CREATE TABLE a (id serial, v vector(8)) PARTITION BY HASH (id)",
        "CREATE TABLE a0 PARTITION OF a FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE a1 PARTITION OF a FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    )
    fill(empty, 8)
    execute(empty, "CREATE MATERIALIZED VIEW b AS SELECT * FROM a", "ANALYZE b")
    table, view = wrong(empty)
    assert "writers wait" in table.remedy
    assert "CONCURRENTLY" in view.remedy
    for finding, index in ((table, "a0_v_idx"), (view, "b_v_idx")):
        execute(empty, *statements(finding.remedy))
        assert f"Index Scan using {index}" in plan(empty, query_in(finding.remedy), vector(8))
    assert wrong(empty) == []


def test_a_few_rows_need_no_index(pg: str) -> None:
    load(pg, "langchain_v1")
    assert wrong(pg) == []
    [finding] = findings(pg)
    assert finding.found == (
        "LangChain (PGVector): about 5 rows, vector without a declared dimension, 6 and 8 found in 5 rows, "
        "16.4 kB, 2 collections; no index"
    )


@pytest.mark.parametrize("name", ["langchain_v2", "llama_index", "haystack", "mastra", "vecs"])
def test_what_a_library_made_and_indexed_has_nothing_wrong(pg: str, name: str) -> None:
    load(pg, name)
    found = findings(pg)
    assert [one.level for one in found] == ["ok"] * len(found)
    assert all("; hnsw index " in one.found for one in found)


@pytest.mark.usefixtures("all_slow")
def test_an_old_pgvector_is_told_to_be_upgraded_where_only_a_newer_one_helps(
    pg062: str, fresh: Fresh
) -> None:
    url = fresh(pg062, extension=True)
    execute(url, "CREATE TABLE a (id serial PRIMARY KEY, v vector)")
    execute(url, f"INSERT INTO a (v) VALUES ('{vector(3072)}')", "ANALYZE a")
    [finding] = [one for one in wrong(url) if one.subject == "public.a.v: index"]
    assert "an index on vector stops at 2,000 dimensions; these have 3,072" in finding.found
    assert "an index on halfvec needs pgvector 0.7.0, this is 0.6.2" in finding.found
    assert finding.remedy.startswith("upgrade pgvector")
    execute(url, f"TRUNCATE a; INSERT INTO a (v) VALUES ('{vector(8)}')", "ANALYZE a")
    [finding] = wrong(url)
    execute(url, *statements(finding.remedy))
    assert "Index Scan using a_v_idx" in plan(url, query_in(finding.remedy), vector(8))
    assert wrong(url) == []


# --- what is there and wrong --------------------------------------------------------------------------


def test_an_interrupted_build_is_found_and_repaired(empty: str) -> None:
    execute(
        empty,
        "CREATE TABLE a (id serial PRIMARY KEY, v vector(8))",
        "CREATE INDEX once ON a USING hnsw (v vector_l2_ops)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'once'::regclass",
    )
    [finding] = wrong(empty)
    assert (finding.level, finding.subject) == ("broken", "public.a.v: index")
    assert "once is invalid: an interrupted build left it" in finding.found
    execute(empty, *statements(finding.remedy))
    assert wrong(empty) == []
    execute(
        empty,
        "CREATE INDEX twice ON a USING hnsw (v vector_l2_ops)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'twice'::regclass",
    )
    [finding] = wrong(empty)
    assert (finding.level, statements(finding.remedy)) == (
        "warning",
        ['DROP INDEX CONCURRENTLY "public"."twice";'],
    )
    execute(empty, *statements(finding.remedy))
    assert wrong(empty) == []


def test_an_index_that_not_every_partition_has_is_found_and_repaired(empty: str) -> None:
    execute(
        empty,
        "CREATE TABLE a (id serial, v vector) PARTITION BY HASH (id)",
        "CREATE TABLE a0 PARTITION OF a FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        "CREATE INDEX whole ON ONLY a USING hnsw ((v::vector(8)) vector_l2_ops) WITH (m = 8)",
    )
    [finding] = wrong(empty)
    assert (finding.level, finding.subject) == ("broken", "public.a.v: index")
    assert "not every partition has an index" in finding.found
    execute(empty, *statements(finding.remedy))
    assert wrong(empty) == []


def test_vectors_of_several_lengths_in_one_column_are_found(empty: str) -> None:
    execute(empty, "CREATE TABLE a (id serial PRIMARY KEY, v vector)")
    fill(empty, 8)
    fill(empty, 9)
    [finding] = wrong(empty)
    assert (finding.level, finding.subject) == ("broken", "public.a.v: dimensions")
    assert "vectors of 8 and 9 dimensions lie in one column" in finding.found
    with psycopg.connect(empty) as connection:
        rows = connection.execute(f"{query_in(finding.remedy)} ORDER BY 1".encode()).fetchall()
    assert rows == [(8, 20), (9, 20)]


@pytest.mark.usefixtures("all_slow")
def test_vectors_beside_their_rows_can_be_brought_in(empty: str) -> None:
    execute(empty, "CREATE TABLE a (id serial PRIMARY KEY, v vector(1024))")
    fill(empty, 1024)
    [_, finding] = wrong(empty)
    assert (finding.level, finding.subject) == ("warning", "public.a.v: storage")
    execute(empty, *statements(finding.remedy))
    assert [one.subject for one in wrong(empty)] == ["public.a.v: index"]
    with psycopg.connect(empty) as connection:
        inline = "SELECT pg_relation_size('a') > 20 * 4 * 1024"
        assert connection.execute(inline).fetchone() == (True,)


def test_a_column_that_takes_no_row_is_found(empty: str) -> None:
    execute(
        empty,
        "CREATE TABLE a (id serial PRIMARY KEY, v vector(3072))",
        "ALTER TABLE a ALTER v SET STORAGE PLAIN",
    )
    [finding] = wrong(empty)
    assert (finding.level, finding.subject) == ("broken", "public.a.v: storage")
    with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="row is too big"):
        fill(empty, 3072)
    execute(empty, *statements(finding.remedy))
    fill(empty, 3072)
    assert [one for one in wrong(empty) if one.level == "broken"] == []


def test_statistics_that_were_never_collected_are_found(empty: str) -> None:
    execute(
        empty,
        "CREATE TABLE a (id serial PRIMARY KEY, v vector(2)) WITH (autovacuum_enabled = off)",
        "INSERT INTO a (v) SELECT '[1,2]' FROM generate_series(1, 2000)",
    )
    [finding] = wrong(empty)
    assert (finding.level, finding.subject) == ("warning", "public.a.v: statistics")
    execute(empty, *statements(finding.remedy))
    assert wrong(empty) == []


def test_hundreds_of_tables_give_a_bounded_list_with_the_worst_in_it(empty: str) -> None:
    execute(
        empty,
        "DO $$BEGIN FOR n IN 100..599 LOOP EXECUTE format('CREATE TABLE t%s (v vector(2))', n); END LOOP; "
        "END$$",
        "CREATE INDEX bad ON t555 USING hnsw (v vector_l2_ops)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'bad'::regclass",
    )
    found = findings(empty)
    subjects = [one.subject for one in found]
    assert len([one for one in subjects if one.endswith(".v")]) == foreign_findings.SHOWN
    assert "public.t555.v: index" in subjects
    assert subjects[:-1] == sorted(subjects[:-1])
    assert found[-1].found.startswith("460 further vector columns, 460 of them without fault")


def test_what_may_not_be_read_says_so(empty: str) -> None:
    execute(empty, "CREATE TABLE a (id serial PRIMARY KEY, v vector)")
    fill(empty, 8)
    execute(empty, "GRANT CREATE ON SCHEMA public TO pg_monitor")
    [finding] = findings(f"{empty}&options=-crole%3Dpg_monitor")
    assert (finding.level, finding.subject) == ("ok", "public.a.v")
    assert finding.found.endswith("user pg_monitor may not read it, so it was not looked into; no index")


# --- indexes beside the queries -----------------------------------------------------------------------


def use(url: str, *queries: str) -> None:
    """Stand in for pg_stat_statements, whose library the bundled servers lack: a table as its view is."""
    execute(
        url,
        "CREATE SCHEMA IF NOT EXISTS counted",
        "CREATE TABLE IF NOT EXISTS counted.pg_stat_statements (dbid oid, query text, calls int8)",
        "INSERT INTO pg_extension SELECT 90001, 'pg_stat_statements', 10, 'counted'::regnamespace, true, '1' "
        "WHERE NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_stat_statements')",
    )
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO counted.pg_stat_statements SELECT oid, %s, 7 FROM pg_database "
            "WHERE datname = current_database()",
            [[query] for query in queries],
        )


SEEN = {
    "haystack": [("cosine", "", True), ("l2", "", True)],
    "langchain_v1": [("cosine", "", True)],
    "langchain_v2": [("cosine", "", True)],
    "llama_index": [("cosine", "", True), ("cosine", "", True)],
    "mastra": [("cosine", "", True), ("cosine", "", False)],
    "vecs": [("cosine", "", True), ("l2", "", True)],
}


@pytest.mark.parametrize("name", SEEN)
def test_the_searches_of_real_libraries_are_understood(pg: str, name: str) -> None:
    load(pg, name)
    texts = [(text, 1) for text in SEARCHES[name]]
    with psycopg.connect(pg, autocommit=True) as connection:
        found = [one for column in foreign.columns(connection) for one in searches(column, texts)]
    assert sorted(SEEN[name]) == sorted((one.metric, one.type, one.nearest) for one in found)


FORMS = {
    "SELECT id FROM a ORDER BY v <=> $1 LIMIT $2": ("cosine", "", None, True),
    'SELECT id FROM public.a ORDER BY "a"."v" <-> $1::vector(8) ASC LIMIT $2': ("l2", "", None, True),
    "SELECT id FROM a ORDER BY (v::halfvec(8)) <=> $1::halfvec(8) LIMIT 5": ("cosine", "halfvec", 8, True),
    "SELECT id FROM a ORDER BY v::public.halfvec(8) OPERATOR(public.<#>) $1 LIMIT 5":
        ("ip", "halfvec", 8, True),
    "SELECT id FROM a ORDER BY $1::vector <=> v LIMIT 5": ("cosine", "", None, True),
    "SELECT id, v <#> $1 AS d FROM a ORDER BY d LIMIT 5": ("ip", "", None, True),
    "SELECT id, $2 - (v <=> $1) AS score FROM a ORDER BY score DESC LIMIT 5": ("cosine", "", None, False),
    "SELECT id, $2 - (v <=> $1) AS score FROM a ORDER BY score LIMIT 5": ("cosine", "", None, False),
    "SELECT id FROM a ORDER BY $2 - (v <=> $1) LIMIT 5": ("cosine", "", None, False),
    "SELECT id FROM a ORDER BY v <=> $1 DESC LIMIT 5": ("cosine", "", None, False),
    "SELECT id FROM a ORDER BY v <=> $1, id LIMIT 5": ("cosine", "", None, False),
    "SELECT id FROM a WHERE v <=> $1 < $2": ("cosine", "", None, False),
    "SELECT id FROM a ORDER BY cosine_distance(v, $1) LIMIT 5": ("cosine", "", None, False),
    "SELECT * FROM (SELECT * FROM a ORDER BY binary_quantize(v)::bit(8) <~> binary_quantize($1) LIMIT 50) c "
    "ORDER BY v <=> $1 LIMIT 5": ("hamming", "bit", 8, True),
    "SELECT id FROM a ORDER BY subvector(v, 1, 4)::vector(4) <=> $1 LIMIT 5": ("cosine", "vector", 4, True),
    "SELECT id FROM other.a ORDER BY v <=> $1 LIMIT 5": None,
    "SELECT id FROM ab ORDER BY v <=> $1 LIMIT 5": None,
    "SELECT id FROM a ORDER BY vv <=> $1 LIMIT 5": None,
}  # fmt: skip


@pytest.mark.parametrize("text", FORMS)
def test_forms_of_queries_are_told_apart(empty: str, text: str) -> None:
    execute(empty, "CREATE TABLE a (id serial PRIMARY KEY, v vector(8))")
    with psycopg.connect(empty, autocommit=True) as connection:
        [column] = foreign.columns(connection)
    expected = FORMS[text]
    assert searches(column, [(text, 3)]) == ([] if expected is None else [Search(*expected, 3)])  # type: ignore[arg-type] # the table's values are plain strings


def test_an_index_for_another_distance_is_found(pg: str) -> None:
    load(pg, "llama_index")
    use(pg, *SEARCHES["llama_index"])
    [finding] = wrong(pg)
    # what the library itself does by default: an l2 index, and queries by cosine
    assert (finding.level, finding.subject) == ("warning", "public.data_halves.embedding: searches")
    assert "7 searches by <=> (cosine) cannot use what is there, data_halves_embedding_idx" in finding.found
    query = "SELECT id FROM data_halves ORDER BY embedding <=> $1 LIMIT 2"
    assert "Seq Scan" in plan(pg, query, vector(8))
    execute(pg, *statements(finding.remedy))
    assert "Index Scan using data_halves_embedding_idx1" in plan(pg, query, vector(8))
    assert wrong(pg) == []


def test_a_query_with_another_cast_than_the_index_is_found(empty: str) -> None:
    execute(empty, "CREATE TABLE a (id serial PRIMARY KEY, v vector(8))")
    fill(empty, 8)
    execute(empty, "CREATE INDEX half ON a USING hnsw ((v::halfvec(8)) halfvec_cosine_ops)")
    use(empty, "SELECT id FROM a ORDER BY v <=> $1 LIMIT $2")
    [finding] = wrong(empty)
    assert finding.subject == "public.a.v: searches"
    assert "take the column bare, while half is on (v::halfvec(8)): it is not used" in finding.found
    assert "half" not in plan(empty, "SELECT id FROM a ORDER BY v <=> $1 LIMIT 2", vector(8))
    assert "Index Scan using half" in plan(empty, query_in(finding.remedy), vector(8))
    execute(empty, "DELETE FROM counted.pg_stat_statements")
    use(empty, "SELECT id FROM a ORDER BY v::halfvec(8) <=> $1::halfvec(8) LIMIT $2")
    assert wrong(empty) == []


def test_a_score_that_is_sorted_downwards_is_found(pg: str) -> None:
    load(pg, "mastra")
    use(pg, *SEARCHES["mastra"])
    [finding] = wrong(pg)
    assert finding.subject == "public.notes.embedding: searches"
    assert "do not order by the bare distance, nearest first" in finding.found


@pytest.mark.usefixtures("all_slow")
def test_the_index_proposed_is_for_the_distance_that_is_searched(empty: str) -> None:
    execute(empty, "CREATE TABLE a (id serial PRIMARY KEY, v vector(8))")
    fill(empty, 8)
    use(empty, "SELECT id FROM a ORDER BY v <#> $1 LIMIT $2")
    [finding] = wrong(empty)
    assert '"vector_ip_ops"' in finding.remedy
    execute(empty, *statements(finding.remedy))
    assert wrong(empty) == []


def test_statements_that_cannot_be_read_are_one_line(empty: str) -> None:
    execute(empty, "CREATE TABLE a (id serial PRIMARY KEY, v vector(8))")
    use(empty)
    execute(empty, "GRANT CREATE ON SCHEMA public TO pg_monitor")
    backend = connect(f"{empty}&options=-crole%3Dpg_monitor")
    try:
        [line] = [one for one in backend.findings() if one.subject == "searches"]
    finally:
        backend.close()
    assert line.level == "ok"
    assert line.found.startswith("pg_stat_statements cannot be read: permission denied")
