"""What others have put on a collection's table: written beside, carried to the next table, or in its way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psycopg
import pytest

from vecbridge.backends.postgres import Postgres, Table, connect
from vecbridge.errors import Forbidden, InputError
from vecbridge.manifest import Manifest
from vecbridge.replanning import replan
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
