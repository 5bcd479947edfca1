"""What others have put on a collection's table: written beside, carried to the next table, or in its way."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psycopg
import pytest
from conftest import Fresh

from vecbridge.backends.postgres import Postgres, Table, attached, connect
from vecbridge.errors import Forbidden, InputError
from vecbridge.manifest import Manifest
from vecbridge.replanning import replan
from vecbridge.stopping import Call, stoppable
from vecbridge.types import Batch, Index, Layout, Space

DIM, ROWS = 8, 60
HNSW = Layout(index=Index("hnsw", ef_search=40))
SHOWN = """
SELECT polname, polpermissive, polcmd, polroles::regrole[]::text, pg_get_expr(polqual, polrelid),
       pg_get_expr(polwithcheck, polrelid)
FROM pg_policy WHERE polrelid = %s::regclass ORDER BY polname
"""


@pytest.fixture
def backend(pg: str) -> Iterator[Postgres]:
    made = connect(pg)
    yield made
    made.close()


def admin(url: str, *statements: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def roles(url: str, *names: str) -> Iterator[list[str]]:
    """Roles that may log in, and their names, which no other test has."""
    made = [f"{urlsplit(url).path.strip('/')}_{name}" for name in names]
    admin(url, *(f"CREATE ROLE {name} LOGIN" for name in made))
    try:
        yield made
    finally:
        admin(url, f"DROP OWNED BY {', '.join(made)} CASCADE", f"DROP ROLE {', '.join(made)}")


def batch(ids: Sequence[str], tenant: str = "a", seed: int = 0) -> Batch:
    vectors = np.random.default_rng(seed).normal(size=(len(ids), DIM)).astype(np.float32)
    metadata = [{"tenant": tenant, "n": n} for n in range(len(ids))]
    return Batch(ids, vectors, [f"text {id}" for id in ids], metadata, [None] * len(ids))


def filled(backend: Postgres, name: str = "papers") -> Table:
    table = backend.create(Manifest(name, Space(DIM), Layout(), ROWS))
    table.write(batch([f"a{n:02}" for n in range(ROWS // 2)]))
    table.write(batch([f"b{n:02}" for n in range(ROWS // 2)], "b", seed=1))
    return table


def following(table: Table) -> Manifest:
    return replace(table.manifest, layout=HNSW, generation=table.manifest.generation + 1)


def seen(url: str, role: str, table: str) -> int:
    """How many records a role sees."""
    with psycopg.connect(url) as connection:
        connection.execute(f"SET ROLE {role}")
        row = connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()
    assert row is not None
    return int(row[0])


def of(url: str, table: str) -> tuple[Any, ...]:
    """Row security, policies and rights of a table, as PostgreSQL shows them."""
    named = f'"{table}"'
    with psycopg.connect(url) as connection:
        flags = connection.execute(
            "SELECT relrowsecurity, relforcerowsecurity, relacl::text[] FROM pg_class "
            "WHERE oid = %s::regclass",
            [named],
        ).fetchone()
        assert flags is not None
        columns = connection.execute(
            "SELECT attname, attacl::text FROM pg_attribute WHERE attrelid = %s::regclass "
            "AND attacl IS NOT NULL AND attnum > 0 ORDER BY attname",
            [named],
        ).fetchall()
        policies = connection.execute(SHOWN, [named]).fetchall()
    return flags[:2], sorted(flags[2] or ()), columns, policies


def policies(reader: str, writer: str) -> list[str]:
    """Row security of every kind."""
    return [
        "ALTER TABLE vecbridge_papers ENABLE ROW LEVEL SECURITY",
        f"GRANT SELECT ON vecbridge_papers TO {reader}",
        f"GRANT SELECT (id, document), UPDATE (document) ON vecbridge_papers TO {writer}",
        f"CREATE POLICY own ON vecbridge_papers FOR SELECT TO {reader}, {writer} "
        "USING (metadata ->> 'tenant' = 'a')",
        f'CREATE POLICY "odd 100% {{name}}" ON vecbridge_papers AS RESTRICTIVE TO {reader} '
        "USING (document NOT LIKE '100%' AND id <> '{}')",
        "CREATE POLICY write ON vecbridge_papers FOR INSERT TO PUBLIC WITH CHECK (id ~ '^[a-z]')",
        f"CREATE POLICY change ON vecbridge_papers FOR UPDATE TO {writer} USING (true) WITH CHECK (id <> '')",
        f"CREATE POLICY remove ON vecbridge_papers FOR DELETE TO {writer} USING (id = current_user)",
    ]


def test_row_security_goes_over_to_the_new_table(backend: Postgres, pg: str) -> None:
    table = filled(backend)
    with roles(pg, "read", "write") as (reader, writer):
        admin(pg, *policies(reader, writer))
        before = of(pg, "vecbridge_papers")
        assert len(before[3]) == 5
        assert seen(pg, reader, "vecbridge_papers") == ROWS // 2
        replan(backend, table, following(table))
        assert of(pg, "vecbridge_papers$1") == before
        assert seen(pg, reader, "vecbridge_papers$1") == ROWS // 2
        # and again, from a table that was itself made so
        again = backend.open("papers")
        replan(backend, again, following(again))
        assert of(pg, "vecbridge_papers$2") == before


def test_row_security_that_was_made_and_not_switched_on_stays_so(backend: Postgres, pg: str) -> None:
    table = filled(backend)
    with roles(pg, "read", "write") as (reader, writer):
        admin(pg, *policies(reader, writer)[1:])
        before = of(pg, "vecbridge_papers")
        replan(backend, table, following(table))
        assert of(pg, "vecbridge_papers$1") == before
        assert seen(pg, reader, "vecbridge_papers$1") == ROWS


def test_while_the_new_table_is_filled_nobody_else_sees_it(backend: Postgres, pg: str) -> None:
    table = filled(backend)
    with roles(pg, "read", "write") as (reader, writer):
        admin(pg, *policies(reader, writer))
        denied: list[str] = []

        def progress(stage: str, done: int, total: int | None) -> None:
            if stage == "copying" and done:
                with pytest.raises(psycopg.errors.InsufficientPrivilege) as error:
                    seen(pg, reader, "vecbridge_papers$1")
                denied.append(str(error.value))

        replan(backend, table, following(table), progress=progress)
        assert denied


def test_roles_that_see_every_new_table_do_not_see_more_while_it_is_filled(
    backend: Postgres, pg: str
) -> None:
    table = filled(backend)
    with roles(pg, "read", "all") as (reader, everything):
        admin(
            pg,
            f"GRANT pg_read_all_data TO {everything}",
            "ALTER TABLE vecbridge_papers ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY own ON vecbridge_papers USING (metadata ->> 'tenant' = 'a')",
            f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {reader}",
        )
        looked: list[int] = []

        def progress(stage: str, done: int, total: int | None) -> None:
            if stage == "copying" and done == ROWS:
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for table"):
                    seen(pg, reader, "vecbridge_papers$1")
                looked.append(seen(pg, everything, "vecbridge_papers$1"))

        replan(backend, table, following(table), progress=progress)
        assert looked == [ROWS // 2]


@pytest.mark.parametrize("suffix", ["", "&schema=rag"])
def test_a_policy_whose_subquery_names_the_column_of_its_table_goes_over(pg: str, suffix: str) -> None:
    schema = "rag" if suffix else "public"
    backend = connect(pg + suffix)
    table = filled(backend)
    filled(backend, "others")
    with roles(pg, "read") as (reader,):
        admin(
            pg,
            f"GRANT USAGE ON SCHEMA {schema} TO {reader}",
            f"CREATE TABLE {schema}.members (paper text)",
            f"INSERT INTO {schema}.members VALUES ('a00'), ('b01'), ('x')",
            f"GRANT SELECT ON {schema}.vecbridge_papers, {schema}.members TO {reader}",
            f"ALTER TABLE {schema}.vecbridge_papers ENABLE ROW LEVEL SECURITY",
            f"CREATE POLICY own ON {schema}.vecbridge_papers USING (EXISTS (SELECT FROM {schema}.members m "
            "WHERE m.paper = vecbridge_papers.id))",
        )

        def visible(table: str) -> int:
            with psycopg.connect(pg) as connection:
                connection.execute(f"SET ROLE {reader}")
                row = connection.execute(f'SELECT count(*) FROM {schema}."{table}"').fetchone()
            assert row is not None
            return int(row[0])

        replan(backend, table, following(table))
        assert visible("vecbridge_papers$1") == 2
        backend.exchange("papers", "others")
        assert visible("vecbridge_papers$2") == 2
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for table"):
            visible("vecbridge_others$1")
        names = admin(pg, "SELECT polrelid::regclass::text FROM pg_policy")
        assert [name.rpartition(".")[2] for (name,) in names] == ['"vecbridge_papers$2"']
    backend.close()


def test_rights_that_were_passed_on_leave_the_name_they_are_not_for(backend: Postgres, pg: str) -> None:
    filled(backend)
    filled(backend, "others")
    with roles(pg, "first", "second") as (first, second):
        admin(
            pg,
            f"GRANT SELECT ON vecbridge_papers TO {first} WITH GRANT OPTION",
            f"GRANT SELECT (id) ON vecbridge_papers TO {first} WITH GRANT OPTION",
            f"SET ROLE {first}",
            f"GRANT SELECT ON vecbridge_papers TO {second}",
            f"GRANT SELECT (id) ON vecbridge_papers TO {second}",
        )
        backend.exchange("papers", "others")
        for role in (first, second):
            assert seen(pg, role, "vecbridge_papers$1") == ROWS
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for table"):
                seen(pg, role, "vecbridge_others$1")


@pytest.mark.parametrize("right", ["SELECT", "SELECT (id)"])
@pytest.mark.parametrize("how", ["replan", "exchange"])
def test_a_right_that_is_taken_away_in_the_moment_of_the_switch_does_not_come_back_unsaid(
    pg062: str, fresh: Fresh, monkeypatch: pytest.MonkeyPatch, right: str, how: str
) -> None:
    """PostgreSQL 16 takes rights away without a lock of the table."""
    url = fresh(pg062, extension=True)
    backend = connect(url)
    table = filled(backend)
    filled(backend, "others")
    allow, failed = attached.allow, []
    with roles(url, "read") as (reader,), ThreadPoolExecutor(1) as pool:
        admin(url, f"GRANT {right} ON vecbridge_papers TO {reader}")
        taken: list[Future[Any]] = []

        def slow(*given: Any) -> None:
            if not taken:
                taken.append(pool.submit(admin, url, f"REVOKE {right} ON vecbridge_papers FROM {reader}"))
                failed.append(not wait(taken, 1).done)
            allow(*given)

        monkeypatch.setattr(attached, "allow", slow)
        if how == "replan":
            replan(backend, table, following(table))
        else:
            backend.exchange("papers", "others")
        assert failed == [True]
        # whoever takes it away is told that it did not happen
        with pytest.raises(psycopg.Error, match=r"tuple concurrently|does not exist"):
            taken[0].result(60)
    backend.close()


def test_storage_parameters_and_the_comment_go_over(backend: Postgres, pg: str) -> None:
    table = filled(backend)
    admin(
        pg,
        "ALTER TABLE vecbridge_papers SET (autovacuum_vacuum_scale_factor = 0.01)",
        "ALTER TABLE vecbridge_papers SET (toast.autovacuum_enabled = off)",
        "COMMENT ON TABLE vecbridge_papers IS 'it''s {ours}, 100% %s'",
    )
    shown = (
        "SELECT c.reloptions, t.reloptions, obj_description(c.oid, 'pg_class') FROM pg_class c "
        "JOIN pg_class t ON t.oid = c.reltoastrelid WHERE c.relname = '{}'"
    )
    before = admin(pg, shown.format("vecbridge_papers"))
    assert before == [
        (["autovacuum_vacuum_scale_factor=0.01"], ["autovacuum_enabled=off"], "it's {ours}, 100% %s")
    ]
    replan(backend, table, following(table))
    assert admin(pg, shown.format("vecbridge_papers$1")) == before


def test_a_call_is_ended_though_the_first_attempt_fails() -> None:
    call, ended, attempts = Call(), threading.Event(), []

    def stop() -> None:
        attempts.append(len(attempts))
        if len(attempts) < 3:
            raise OSError("no connection to cancel with")
        ended.set()

    def work() -> bool:
        with stoppable(stop):
            end = call.give_up()
            assert end is not None
            ending = pool.submit(end)
            found = ended.wait(60)
        ending.result(60)
        return found

    with ThreadPoolExecutor(1) as pool:
        assert call.run(work)
    assert attempts[:3] == [0, 1, 2]


def test_a_view_that_is_made_meanwhile_is_named(backend: Postgres, pg: str) -> None:
    table = filled(backend)

    def progress(stage: str, done: int, total: int | None) -> None:
        if stage == "copying" and not done:
            admin(pg, "CREATE VIEW titles AS SELECT id FROM vecbridge_papers")

    with pytest.raises(InputError, match=r"collection 'papers', got view titles: .*put it back afterwards"):
        replan(backend, table, following(table), progress=progress)
    admin(pg, "DROP VIEW titles")
    assert replan(backend, table, following(table)).count() == ROWS


def test_an_owner_who_cannot_have_the_new_table_is_named(pg: str) -> None:
    superuser = connect(pg)
    filled(superuser)
    with roles(pg, "own", "work") as (owner, worker):
        admin(
            pg,
            f"GRANT {owner} TO {worker}",
            f"GRANT CREATE ON SCHEMA public TO {worker}",
            f"ALTER TABLE vecbridge_papers OWNER TO {owner}",
            f'ALTER TABLE "vecbridge$collections" OWNER TO {owner}',
        )
        limited = connect(pg.replace("postgres@", f"{worker}@"))
        table = limited.open("papers")
        with pytest.raises(
            Forbidden, match=rf"to role {owner}, .*nothing was changed: that role needs CREATE"
        ):
            replan(limited, table, following(table))
        admin(pg, f"GRANT CREATE ON SCHEMA public TO {owner}")
        assert replan(limited, table, following(table)).count() == ROWS
        assert admin(pg, "SELECT tableowner FROM pg_tables WHERE tablename = 'vecbridge_papers$1'") == [
            (owner,)
        ]
        limited.close()
    superuser.close()


def test_row_security_stays_with_the_name_that_is_exchanged(backend: Postgres, pg: str) -> None:
    filled(backend)
    filled(backend, "others")
    with roles(pg, "read", "write") as (reader, writer):
        admin(pg, *policies(reader, writer))
        before = [of(pg, f"vecbridge_{name}") for name in ("papers", "others")]
        assert before[0] != before[1]
        backend.exchange("papers", "others")
        assert [of(pg, f"vecbridge_{name}$1")[0::3] for name in ("papers", "others")] == [
            one[0::3] for one in before
        ]
        assert seen(pg, reader, "vecbridge_papers$1") == ROWS // 2
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            seen(pg, reader, "vecbridge_others$1")
        assert {id[0] for (id,) in admin(pg, 'SELECT id FROM "vecbridge_others$1"')} == {"a", "b"}


THINGS = {
    "a column": (["ALTER TABLE {0} ADD owner_id int"], "column owner_id"),
    "an index": (["CREATE INDEX by_tenant ON {0} ((metadata ->> 'tenant'))"], "index by_tenant"),
    "a trigger": (
        [
            "CREATE FUNCTION quiet() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
            "CREATE TRIGGER audit AFTER INSERT ON {0} FOR EACH ROW EXECUTE FUNCTION quiet()",
        ],
        "trigger audit",
    ),
    "a constraint": (["ALTER TABLE {0} ADD CONSTRAINT short CHECK (length(id) < 99)"], "constraint short"),
    "a unique constraint": (["ALTER TABLE {0} ADD CONSTRAINT once UNIQUE (digest)"], "constraint once"),
    "a foreign key": (
        ['CREATE TABLE notes (paper text COLLATE "C" REFERENCES {0})'],
        r"foreign key notes_paper_fkey of notes",
    ),
    "a view": (["CREATE VIEW titles AS SELECT id, document FROM {0}"], "view titles"),
    "a rule": (["CREATE RULE no_delete AS ON DELETE TO {0} DO INSTEAD NOTHING"], "rule no_delete"),
    "a publication": (["CREATE PUBLICATION feed FOR TABLE {0}"], "publication feed"),
    "a table that inherits": (["CREATE TABLE child () INHERITS ({0})"], "inheriting table child"),
    "a parent": (
        ['CREATE TABLE whole (id text COLLATE "C")', "ALTER TABLE {0} INHERIT whole"],
        "parent table whole",
    ),
    "statistics": (["CREATE STATISTICS both_of ON id, document FROM {0}"], "statistics both_of"),
    "a policy that reads its own table": (
        ["CREATE POLICY once ON {0} FOR INSERT WITH CHECK (id NOT IN (SELECT o.id FROM {0} o))"],
        "policy once, which reads the table itself",
    ),
    "a policy of another table": (
        [
            "CREATE TABLE notes (paper text)",
            "CREATE POLICY seen ON notes USING (paper IN (SELECT id FROM {0}))",
        ],
        "policy seen on table notes",
    ),
    "a function that reads it": (
        ["CREATE FUNCTION f() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM {0}; END"],
        r"function f\(\)",
    ),
    "a function of its rows": (
        ["CREATE FUNCTION f(one {0}) RETURNS text LANGUAGE sql AS 'SELECT one.id'"],
        r"function f\(vecbridge_papers\)",
    ),
    "a column of its rows": (["CREATE TABLE notes (paper {0}[])"], "column paper of table notes"),
}


@pytest.mark.parametrize("what", THINGS)
def test_what_the_next_table_would_lack_is_in_its_way(backend: Postgres, pg: str, what: str) -> None:
    table = filled(backend)
    filled(backend, "others")
    statements, named = THINGS[what]
    admin(pg, *(statement.format("vecbridge_papers") for statement in statements))
    tables = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'vecbridge%' ORDER BY 1"
    before = admin(pg, tables)
    with pytest.raises(InputError, match=rf"collection 'papers', got {named}: .*put it back afterwards"):
        replan(backend, table, following(table))
    for names in (("papers", "others"), ("others", "papers")):
        with pytest.raises(InputError, match=rf"collection 'papers', got {named}: "):
            backend.exchange(*names)
    assert admin(pg, tables) == before
    assert backend.open("papers").count() == backend.open("others").count() == ROWS


def test_whoever_does_not_see_every_record_moves_none(pg: str) -> None:
    with roles(pg, "own") as (owner,):
        admin(pg, "CREATE EXTENSION vector", f"GRANT ALL ON SCHEMA public TO {owner}")
        limited = connect(pg.replace("postgres@", f"{owner}@"))
        table = filled(limited)
        filled(limited, "others")
        admin(
            pg,
            "ALTER TABLE vecbridge_papers ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE vecbridge_papers FORCE ROW LEVEL SECURITY",
            "CREATE POLICY own ON vecbridge_papers USING (metadata ->> 'tenant' = 'a')",
        )
        assert table.count() == ROWS // 2
        with pytest.raises(Forbidden, match=r"hides some from this user; nothing was changed: .*BYPASSRLS"):
            replan(limited, table, following(table))
        with pytest.raises(Forbidden, match="hides some from this user"):
            limited.exchange("others", "papers")
        assert admin(pg, "SELECT count(*) FROM vecbridge_papers") == [(ROWS,)]
        # who sees them all carries also that
        with_all = connect(pg)
        replan(with_all, with_all.open("papers"), following(table))
        assert of(pg, "vecbridge_papers$1")[0] == (True, True)
        assert limited.open("papers").count() == ROWS // 2
        for one in (limited, with_all):
            one.close()


def test_columns_of_others_keep_what_they_hold_when_a_record_is_replaced(backend: Postgres, pg: str) -> None:
    table = filled(backend)
    admin(
        pg,
        "ALTER TABLE vecbridge_papers ADD likes int NOT NULL DEFAULT 7",
        "UPDATE vecbridge_papers SET likes = 100 WHERE id = 'a00'",
    )
    table.write(batch(["a00", "new"], "c", seed=3))
    assert admin(pg, "SELECT id, likes FROM vecbridge_papers WHERE id IN ('a00', 'new') ORDER BY id") == [
        ("a00", 100),
        ("new", 7),
    ]
    read = table.read(["a00"])
    assert read.metadata[0]["tenant"] == "c"
    np.testing.assert_array_equal(read.vectors, batch(["a00", "new"], seed=3).vectors[:1])


def test_under_row_security_a_tenant_writes_his_own_records_and_nobody_elses(pg: str) -> None:
    superuser = connect(pg)
    filled(superuser)
    with roles(pg, "tenant") as (tenant,):
        admin(
            pg,
            f"GRANT USAGE ON SCHEMA public TO {tenant}",
            f'GRANT SELECT ON "vecbridge$collections" TO {tenant}',
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON vecbridge_papers TO {tenant}",
            "ALTER TABLE vecbridge_papers ENABLE ROW LEVEL SECURITY",
            f"CREATE POLICY own ON vecbridge_papers TO {tenant} USING (metadata ->> 'tenant' = 'a')",
        )
        own = connect(pg.replace("postgres@", f"{tenant}@"))
        table = own.open("papers")
        assert table.count() == ROWS // 2
        table.write(batch(["a00", "a99"], seed=5))
        assert table.count() == ROWS // 2 + 1
        for ids, whose in ((["a01"], "b"), (["b00"], "a")):
            with pytest.raises(Forbidden, match="row-level security"):
                table.write(batch(ids, whose, seed=6))
        assert table.delete(["a99", "b00"]) == 1
        own.close()
    assert superuser.open("papers").count() == ROWS
    superuser.close()
