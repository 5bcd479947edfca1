"""`vecbridge doctor`: each thing that goes wrong is made for real, found, and mended by the remedy given."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import numpy as np
import psycopg
import pytest
from conftest import Fresh
from servers import binaries, running, with_database

from vecbridge import cli
from vecbridge.backends import connect
from vecbridge.backends.flat import findings as flat
from vecbridge.backends.postgres import findings as postgres
from vecbridge.backends.qdrant import Qdrant
from vecbridge.backends.qdrant import findings as qdrant
from vecbridge.cli.doctor import explained
from vecbridge.errors import FeatureMissing, StoreError
from vecbridge.manifest import Manifest
from vecbridge.types import Batch, Index, Layout, Space

DIM, ROWS = 16, 300
HNSW = Layout(index=Index("hnsw", ef_search=40))
FLAT = Layout()
SECRET = "geh3im!"


@dataclass(frozen=True)
class Ran:
    """What `doctor --json` said of one place."""

    code: int
    text: str

    @property
    def findings(self) -> list[dict[str, str]]:
        [place] = json.loads(self.text)["places"]
        found: list[dict[str, str]] = place["findings"]
        return found

    def one(self, subject: str) -> dict[str, str]:
        [finding] = [one for one in self.findings if one["subject"] == subject]
        return finding

    def wrong(self) -> list[tuple[str, str]]:
        """Level and subject of what is not ok, but the age of the server, which comes by itself."""
        return [
            (one["level"], one["subject"])
            for one in self.findings
            if one["level"] != "ok" and one["subject"] != "server"
        ]


Doctor = Callable[[str], Ran]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    def run(url: str) -> Ran:
        capsys.readouterr()
        code = cli.run(["doctor", url, "--json"])
        said = capsys.readouterr()
        assert said.err == ""
        return Ran(code, said.out)

    return run


def fill(
    url: str,
    name: str,
    layout: Layout,
    *,
    rows: int = ROWS,
    planned: int = ROWS,
    dim: int = DIM,
    built: bool = True,
) -> None:
    """A collection with random vectors, its index built where it has one."""
    matrix = np.random.default_rng(5).normal(size=(rows, dim)).astype(np.float32)
    ids = [f"{row:05}" for row in range(rows)]
    backend = connect(url)
    try:
        table = backend.create(Manifest(name, Space(dim), layout, planned))
        if rows:
            table.write(Batch(ids, matrix, [None] * rows, [{"n": n} for n in range(rows)], [None] * rows))
        if built:
            table.build_index(None)
    finally:
        backend.close()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def statements(remedy: str) -> list[str]:
    """The SQL in a remedy: what starts with a keyword in capitals and ends with a semicolon."""
    words = "ALTER|ANALYZE|CREATE|DROP|GRANT|REINDEX|SET|VACUUM"
    return re.findall(rf"(?:{words}) [^;]*;", remedy)


def as_user(url: str, name: str, password: str = "") -> str:
    parts = urlsplit(url)
    userinfo = f"{name}:{quote(password, safe='')}" if password else name
    return urlunsplit(parts._replace(netloc=f"{userinfo}@"))


@pytest.fixture
def sound(pg: str) -> str:
    """URL of a database with one collection, "things", where all is as it should be."""
    fill(pg, "things", HNSW)
    return pg


@pytest.fixture
def role(pg18: str) -> Iterator[str]:
    """A user without any rights of its own, for this test alone."""
    name = f"doctor_{os.getpid()}"
    execute(pg18, f"CREATE ROLE {name} LOGIN")
    yield name
    # the test's database, and with it what was granted there, goes later
    for (database,) in _databases(pg18):
        execute(with_database(pg18, database), f"DROP OWNED BY {name} CASCADE")
    execute(pg18, f"DROP ROLE {name}")


def _databases(url: str) -> list[tuple[str]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT datname FROM pg_database WHERE datallowconn").fetchall()


# --- PostgreSQL ----------------------------------------------------------------------------------------


def test_a_sound_database_has_nothing_wrong(doctor: Doctor, sound: str) -> None:
    ran = doctor(sound)
    assert ran.wrong() == []
    assert ran.code == 0
    assert {one["subject"] for one in ran.findings} == {
        "reachable", "server", "client", "pgvector", "encoding", "shared memory", "connections", "rights",
        "collections", "things: manifest", "things: rights", "things: index", "things: vacuum",
    }  # fmt: skip
    assert ran.one("things: index")["found"] == "ready, and searches run on it"
    assert [one for one in ran.findings if one["level"] == "ok" and one["remedy"]] == []


def test_an_empty_database_has_nothing_wrong(doctor: Doctor, pg: str) -> None:
    ran = doctor(pg)
    assert (ran.code, ran.wrong()) == (0, [])
    assert ran.one("pgvector")["found"].endswith("the first collection creates the extension")
    assert ran.one("collections")["found"] == "there are none yet"


# what breaks it, what is found, and how bad it is; the remedy is SQL that mends it
BREAKAGES = {
    "index dropped": (
        ['DROP INDEX "vecbridge_things$idx"'],
        ("broken", "things: index", "missing, so every search scans every vector"),
    ),
    "index invalid": (
        ["UPDATE pg_index SET indisvalid = false WHERE indexrelid = '\"vecbridge_things$idx\"'::regclass"],
        ("broken", "things: index", "invalid: an interrupted build left it"),
    ),
    "index of another kind": (
        [
            'DROP INDEX "vecbridge_things$idx"',
            'CREATE INDEX "vecbridge_things$idx" ON vecbridge_things USING hnsw (embedding vector_l2_ops)',
        ],
        ("broken", "things: index", "invalid: it is hnsw (embedding vector_l2_ops), expected hnsw (embed"),
    ),
    "indexes switched off": (
        ["DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET enable_indexscan = off', "
         "current_database());END$$"],
        ("broken", "things: index", "does not run on it: enable_indexscan is off"),
    ),
    "index of a stopped rebuild": (
        ["CREATE INDEX stray ON vecbridge_things (digest)", "UPDATE pg_index SET indisvalid = false "
         "WHERE indexrelid = 'stray'::regclass"],
        ("warning", "things: index", "stray is invalid: an interrupted build left it"),
    ),
    "outside the catalogue": (
        ['DELETE FROM "vecbridge$collections"'],
        ("warning", "table vecbridge_things", "vecbridge$collections does not list it: nothing opens it"),
    ),
    "extension behind the server's": (
        ["UPDATE pg_extension SET extversion = '0.8.4' WHERE extname = 'vector'"],
        ("warning", "pgvector", "has 0.8.4, the server has 0.8.5 installed"),
    ),
    "read-only sessions": (
        ["DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', "
         "current_database());END$$"],
        ("warning", "writing", "only read"),
    ),
    "rows that died": (
        ["ALTER TABLE vecbridge_things SET (autovacuum_enabled = off)"]
        + ["UPDATE vecbridge_things SET document = 'changed'"] * 8,
        ("warning", "things: vacuum", "% of the rows are dead ("),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BREAKAGES)
def test_what_is_broken_is_found_and_its_remedy_mends_it(doctor: Doctor, sound: str, case: str) -> None:
    breaking, (level, subject, found) = BREAKAGES[case]
    execute(sound, *breaking)
    ran = doctor(sound)
    [finding] = [one for one in ran.findings if one["subject"] == subject and one["level"] != "ok"]
    assert finding["level"] == level
    assert found in finding["found"]
    assert ran.code == (1 if level == "broken" else 0)
    mending = statements(finding["remedy"])
    assert mending != []
    execute(sound, *mending)
    assert doctor(sound).wrong() == []


def test_an_interrupted_build_beside_the_index_is_found(doctor: Doctor, sound: str) -> None:
    execute(sound, "UPDATE vecbridge_things SET document = 'the same'")
    with pytest.raises(psycopg.errors.UniqueViolation, match="could not create unique index"):
        execute(sound, "CREATE UNIQUE INDEX CONCURRENTLY once ON vecbridge_things (document)")
    ran = doctor(sound)
    assert ran.wrong() == [("warning", "things: index")]
    [finding] = [one for one in ran.findings if one["level"] == "warning"]
    execute(sound, *statements(finding["remedy"]))
    assert doctor(sound).wrong() == []


@pytest.mark.parametrize(
    ("change", "back", "found"),
    [
        ("document TYPE varchar(9)", "document TYPE text", "document is varchar, expected text"),
        (
            "embedding SET STORAGE MAIN",
            "embedding SET STORAGE EXTERNAL",
            "embedding is vector(16) MAIN, expected vector(16) EXTERNAL",
        ),
    ],
)
def test_a_changed_column_is_found(doctor: Doctor, sound: str, change: str, back: str, found: str) -> None:
    execute(sound, f"ALTER TABLE vecbridge_things ALTER {change}")
    ran = doctor(sound)
    assert (ran.code, ran.wrong()) == (1, [("broken", "things: manifest")])
    finding = ran.one("things: manifest")
    assert found in finding["found"]
    assert "ALTER TABLE … ALTER COLUMN" in finding["remedy"]
    execute(sound, f"ALTER TABLE vecbridge_things ALTER {back}")
    assert doctor(sound).wrong() == []


def test_a_lost_table_is_found_and_can_be_given_up(doctor: Doctor, sound: str) -> None:
    execute(sound, "DROP TABLE vecbridge_things")
    ran = doctor(sound)
    assert (ran.code, ran.wrong()) == (1, [("broken", "things: manifest")])
    assert "has lost its table" in ran.one("things: manifest")["found"]
    assert ran.one("things: manifest")["remedy"].endswith("vecbridge drop URL things")
    assert cli.run(["drop", sound, "things", "--yes"]) == 0
    assert (doctor(sound).code, doctor(sound).wrong()) == (0, [])


def test_vectors_that_lost_their_records_are_found(doctor: Doctor, tmp_path: Path) -> None:
    fill(f"flat:{tmp_path}", "things", FLAT)
    for path in (tmp_path / "things").glob("records.sqlite*"):
        path.unlink()
    ran = doctor(f"flat:{tmp_path}")
    assert (ran.code, ran.wrong()) == (1, [("broken", "records")])
    assert f"{tmp_path}/things holds vectors, but no records.sqlite" in ran.one("records")["found"]
    assert ran.one("records")["remedy"].endswith(f"rm -r {tmp_path}/things")


def test_a_damaged_manifest_is_found_beside_a_sound_collection(doctor: Doctor, sound: str) -> None:
    fill(sound, "others", HNSW)
    execute(sound, """UPDATE "vecbridge$collections" SET manifest = '{' WHERE name = 'things'""")
    ran = doctor(sound)
    assert (ran.code, ran.wrong()) == (1, [("broken", "things: manifest")])
    assert ran.one("others: index")["level"] == "ok"


def test_statistics_that_were_never_collected_are_found(doctor: Doctor, pg: str) -> None:
    fill(pg, "things", FLAT, rows=0)
    execute(
        pg,
        "ALTER TABLE vecbridge_things SET (autovacuum_enabled = off)",
        "INSERT INTO vecbridge_things SELECT n, array_fill(n, '{16}')::vector, NULL, NULL, '{}' "
        "FROM generate_series(1, 300) n",
    )
    ran = doctor(pg)
    assert (ran.code, ran.wrong()) == (0, [("warning", "things: vacuum")])
    execute(pg, *statements(ran.one("things: vacuum")["remedy"]))
    assert doctor(pg).wrong() == []


def test_a_build_that_outgrows_its_memory_is_foretold(doctor: Doctor, pg: str) -> None:
    # 22.7 GB, more than a build takes anywhere unless it is told to
    fill(pg, "large", HNSW, rows=3, planned=3_000_000, dim=1536, built=False)
    execute(pg, "ANALYZE vecbridge_large")
    ran = doctor(pg)
    assert ran.code == 1
    assert ("broken", "large: index") in ran.wrong()
    finding = ran.one("large: memory")
    assert finding["level"] == "warning"
    assert "over 3,000,000 records in memory takes about 22.7 GB of maintenance_work_mem" in finding["found"]
    [remedy] = statements(finding["remedy"])
    assert remedy.endswith("SET maintenance_work_mem = '22GB';")
    execute(pg, remedy)
    assert doctor(pg).one("large: memory")["level"] == "ok"
    execute(pg, *statements(doctor(pg).one("large: index")["remedy"]))
    assert doctor(pg).wrong() == []


def test_a_collection_that_outgrew_its_plan_is_found(doctor: Doctor, pg: str) -> None:
    fill(pg, "things", HNSW, planned=50)
    ran = doctor(pg)
    assert (ran.code, ran.wrong()) == (0, [("warning", "things: plan")])
    finding = ran.one("things: plan")
    assert finding["found"] == "planned for 50 records, it has about 300"
    command = finding["remedy"].partition("vecbridge ")[2].split()
    assert cli.run(command) == 0


def test_an_index_on_which_nobody_searched_for_weeks_is_found(doctor: Doctor, sound: str) -> None:
    execute(sound, """UPDATE "vecbridge$collections" SET created = now() - interval '20 days 1 hour'""")
    ran = doctor(sound)
    assert (ran.code, ran.wrong()) == (0, [("warning", "things: index")])
    assert ran.one("things: index")["found"] == "ready, but no search has run on it in 20 days"
    backend = connect(sound)
    backend.open("things").search(np.ones((1, DIM), np.float32), None, k=3, where=None, exact=False)
    backend.close()
    assert doctor(sound).wrong() == []


def test_an_empty_collection_needs_no_index_yet(doctor: Doctor, pg: str) -> None:
    backend = connect(pg)
    backend.create(Manifest("empty", Space(DIM), HNSW, ROWS))
    backend.close()
    ran = doctor(pg)
    assert (ran.code, ran.wrong()) == (0, [])
    assert ran.one("empty: index")["found"] == "not built yet: there are no records"


# what a user may do, what is found then, and how bad it is
RIGHTS = {
    "no schema": (
        ["REVOKE ALL ON SCHEMA public FROM PUBLIC"],
        ("broken", "rights", "may not use schema public"),
    ),
    "no catalogue": ([], ("broken", "rights", "may not read vecbridge$collections")),
    "no table": (
        ['GRANT SELECT ON "vecbridge$collections" TO {}'],
        ("broken", "things: rights", "may not SELECT, INSERT, UPDATE or DELETE"),
    ),
    "reader": (
        ['GRANT SELECT ON "vecbridge$collections", vecbridge_things TO {}'],
        ("warning", "things: rights", "may not INSERT, UPDATE or DELETE"),
    ),
    "no new collections": (
        [
            'GRANT SELECT ON "vecbridge$collections" TO {}',
            "GRANT SELECT, INSERT, UPDATE, DELETE ON vecbridge_things TO {}",
        ],
        ("warning", "rights", "may not create collections in schema public"),
    ),
}


@pytest.mark.parametrize("case", RIGHTS)
def test_a_missing_right_is_found_and_granted_by_its_remedy(
    doctor: Doctor, sound: str, role: str, case: str
) -> None:
    granted, (level, subject, found) = RIGHTS[case]
    execute(sound, *(statement.format(role) for statement in granted))
    url = f"{as_user(sound, role)}&schema=public"
    ran = doctor(url)
    finding = ran.one(subject)
    assert (finding["level"], found in finding["found"]) == (level, True)
    assert ran.code == (1 if level == "broken" else 0)
    execute(sound, *statements(finding["remedy"]))
    assert doctor(url).one(subject) != finding


def test_all_that_a_reader_lacks_is_granted_step_by_step(doctor: Doctor, sound: str, role: str) -> None:
    execute(sound, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
    url = f"{as_user(sound, role)}&schema=public"
    for _ in range(10):
        ran = doctor(url)
        if not ran.wrong():
            break
        for finding in ran.findings:
            execute(sound, *statements(finding["remedy"]))
    assert (ran.code, ran.wrong()) == (0, [])
    assert "only postgres may build the index" in ran.one("things: rights")["found"]


def test_the_doctor_changes_nothing(doctor: Doctor, sound: str, role: str) -> None:
    execute(sound, f'GRANT SELECT ON "vecbridge$collections", vecbridge_things TO {role}',
            f"ALTER ROLE {role} SET default_transaction_read_only = on")  # fmt: skip
    ran = doctor(as_user(sound, role))
    assert ran.one("writing")["found"].endswith("only read")
    assert ran.one("things: index")["found"] == "ready, and searches run on it"


def test_a_user_who_may_not_create_the_extension_is_told_who_may(doctor: Doctor, pg: str, role: str) -> None:
    url = as_user(pg, role)
    ran = doctor(url)
    assert ran.code == 1
    finding = ran.one("pgvector")
    assert f"user {role} may not create it" in finding["found"]
    execute(pg, *statements(finding["remedy"]))
    assert doctor(url).one("pgvector")["level"] == "ok"


def test_a_schema_that_a_user_may_not_make_is_found(doctor: Doctor, sound: str, role: str) -> None:
    url = f"{as_user(sound, role)}&schema=mine"
    ran = doctor(url)
    assert (ran.code, ran.one("rights")["level"]) == (1, "broken")
    execute(sound, *statements(ran.one("rights")["remedy"]))
    assert doctor(url).wrong() == []


def test_pgvector_0_6_is_warned_of(doctor: Doctor, pg062: str, fresh: Fresh) -> None:
    url = fresh(pg062)
    fill(url, "things", HNSW)
    ran = doctor(url)
    assert (ran.code, ran.wrong()) == (0, [("warning", "pgvector"), ("warning", "things: vacuum")])
    assert "before 0.8.0 a filtered search" in ran.one("pgvector")["found"]
    [damage] = [one for one in ran.findings if "can damage an hnsw index" in one["found"]]
    assert "no vacuum yet" in damage["found"]
    assert "REINDEX" not in damage["remedy"]
    execute(url, "VACUUM vecbridge_things")
    [damage] = [one for one in doctor(url).findings if "can damage an hnsw index" in one["found"]]
    assert 'REINDEX INDEX CONCURRENTLY "public"."vecbridge_things$idx";' in damage["remedy"]


def test_another_encoding_than_utf8_is_broken(doctor: Doctor, pg18: str) -> None:
    name = f"latin_{os.getpid()}"
    execute(pg18, f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        ran = doctor(with_database(pg18, name))
    finally:
        execute(pg18, f"DROP DATABASE {name} WITH (FORCE)")
    assert (ran.code, ran.wrong()) == (1, [("broken", "encoding")])


# --- not reached -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(pg18: str) -> Iterator[str]:
    """URL of a server of its own, whose pg_hba.conf has rules for the users `known`, `peer` and `barred`."""
    folder = binaries("pg18")
    assert folder is not None
    with running(folder, fsync=False) as url:
        execute(url, f"CREATE ROLE known LOGIN PASSWORD '{SECRET}'", "CREATE ROLE peer LOGIN",
                "CREATE ROLE barred LOGIN", "CREATE ROLE mute NOLOGIN")  # fmt: skip
        with psycopg.connect(url) as connection:
            row = connection.execute("SHOW hba_file").fetchone()
        assert row is not None
        rules = Path(row[0])
        own = "local all known scram-sha-256\nlocal all peer peer\nlocal all barred reject\n"
        rules.write_text(own + rules.read_text())
        execute(url, "SELECT pg_reload_conf()")
        while True:  # until the server has read them
            try:
                psycopg.connect(as_user(url, "barred")).close()
            except psycopg.OperationalError:
                break
        yield url


REFUSALS = {
    "wrong password": (("known", f"{SECRET}x"), "credentials", "check user and password"),
    "no password": (("known", ""), "credentials", "in PGPASSWORD"),
    "peer": (("peer", ""), "credentials", "run as peer, or connect by TCP"),
    "barred": (("barred", ""), "credentials", "pg_hba.conf and runs SELECT pg_reload_conf();"),
    "no such user": (("nobody_known", ""), "credentials", 'CREATE ROLE "nobody_known" LOGIN'),
    "may not log in": (("mute", ""), "credentials", 'ALTER ROLE "mute" LOGIN;'),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_login_says_what_to_do(doctor: Doctor, strict: str, case: str) -> None:
    (user, password), subject, remedy = REFUSALS[case]
    ran = doctor(as_user(strict, user, password))
    assert (ran.code, ran.wrong()) == (1, [("broken", subject)])
    assert remedy in ran.one(subject)["remedy"]
    assert SECRET not in ran.text
    assert quote(SECRET, safe="") not in ran.text


def test_a_right_password_is_not_printed_either(doctor: Doctor, strict: str) -> None:
    ran = doctor(as_user(strict, "known", SECRET))
    assert ran.one("reachable")["found"].endswith("answers as user known")
    assert SECRET not in ran.text
    assert quote(SECRET, safe="") not in ran.text


def test_autovacuum_that_is_off_is_found(doctor: Doctor, strict: str) -> None:
    execute(strict, "ALTER SYSTEM SET autovacuum = off", "SELECT pg_reload_conf()")
    _until(strict, "SHOW autovacuum", "off")
    finding = doctor(strict).one("autovacuum")
    assert finding["level"] == "warning"
    execute(strict, *statements(finding["remedy"]), "SELECT pg_reload_conf()")
    _until(strict, "SHOW autovacuum", "on")
    assert doctor(strict).wrong() == []


def _until(url: str, question: str, answer: str) -> None:
    while True:
        with psycopg.connect(url) as connection:
            if connection.execute(question.encode()).fetchone() == (answer,):
                return


def test_a_database_that_is_not_there_says_how_to_make_it(doctor: Doctor, pg18: str) -> None:
    name = f"absent_{os.getpid()}"
    url = with_database(pg18, name)
    ran = doctor(url)
    assert (ran.code, ran.wrong()) == (1, [("broken", "database")])
    [create] = statements(ran.one("database")["remedy"])
    execute(pg18, create)
    try:
        assert doctor(url).code == 0
    finally:
        execute(pg18, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize(
    ("url", "subject", "remedy"),
    [
        (f"postgresql://me:{SECRET}@127.0.0.1:1/db", "reachable", "scripts/stack up"),
        ("postgresql://me@/db?host=/nowhere/at/all", "reachable", "scripts/stack up"),
        ("postgresql://me@no-such-host.invalid/db", "reachable", "check the spelling of the host"),
        (f"postgresql://me:{SECRET}@x@127.0.0.1/db", "URL", "correct the URL"),
        ("qdrant://a@b@c", "URL", "correct the URL"),
        (f"qdrant+http://{SECRET}@127.0.0.1:1", "reachable", "scripts/stack up"),
        ("nonsense", "URL", "correct the URL"),
        ("nosuch:thing", "URL", "correct the URL"),
    ],
)
def test_what_cannot_be_reached_is_a_finding(doctor: Doctor, url: str, subject: str, remedy: str) -> None:
    ran = doctor(url)
    assert (ran.code, ran.wrong()) == (1, [("broken", subject)])
    assert remedy in ran.one(subject)["remedy"]
    assert SECRET not in ran.text


@pytest.mark.parametrize(
    ("error", "subject", "remedy"),
    [
        (
            FeatureMissing(
                "x: pgvector is not installed on this server (PostgreSQL 18); install its package"
            ),
            "pgvector",
            "install its package",
        ),
        (StoreError("qdrant://h: something is wrong; do this"), "reachable", "do this"),
    ],
)
def test_an_error_that_names_its_remedy_keeps_it(error: StoreError, subject: str, remedy: str) -> None:
    assert (explained(error).subject, explained(error).remedy) == (subject, remedy)


def test_the_others_are_still_checked(sound: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(f"flat:{tmp_path}", "things", FLAT)
    code = cli.run(["doctor", "postgresql://me@127.0.0.1:1/db", f"flat:{tmp_path}", sound, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (code, said["broken"], said["warnings"]) == (1, 1, 0)
    assert [place["url"] for place in said["places"]][1] == f"flat:{tmp_path}"
    assert [len(place["findings"]) > 5 for place in said["places"]] == [False, True, True]


# --- flat -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of flat storage with one collection, "things"."""
    fill(f"flat:{tmp_path}/place", "things", FLAT, rows=2000)
    return tmp_path / "place"


def test_a_sound_folder_has_nothing_wrong(doctor: Doctor, folder: Path) -> None:
    ran = doctor(f"flat:{folder}")
    assert (ran.code, ran.wrong()) == (0, [])
    assert {one["subject"] for one in ran.findings} == {
        "software", "folder", "file system", "collections", "disk", "memory", "things: manifest",
        "things: records",
    }  # fmt: skip
    assert ran.one("things: records")["found"] == "2,000, read through without an error"


def test_a_folder_that_is_not_there_is_not_made(doctor: Doctor, tmp_path: Path) -> None:
    for url in (f"flat:{tmp_path}/new", f"pgvector:{tmp_path}/new", f"qdrant:{tmp_path}/new"):
        ran = doctor(url)
        assert (ran.code, ran.wrong()) == (0, [("warning", "folder")])
        assert not (tmp_path / "new").exists()


def test_the_folder_that_a_url_without_path_means_is_not_made_either(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("flat:", "pgvector:", "qdrant:"):
        ran = doctor(url)
        assert (ran.code, ran.wrong()) == (0, [("warning", "folder")])
    assert list(tmp_path.iterdir()) == []


def test_a_file_instead_of_a_folder_is_found(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = doctor(f"flat:{tmp_path}/file")
    assert ran.code == 1
    assert "found a file" in ran.findings[0]["found"]
    assert ran.findings[0]["remedy"] == "name another path after flat:"


def _overwritten(place: Path) -> None:
    path = place / "records.sqlite"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8192] = b"\xee" * 8192
    path.write_bytes(content)


def _no_database(place: Path) -> None:
    (place / "records.sqlite").write_bytes(b"this is no database" * 500)


def _no_matrix(place: Path) -> None:
    next(place.glob("vectors.*")).unlink()


def _cut(place: Path) -> None:
    os.truncate(next(place.glob("vectors.*")), 1000)


def _lost_rows(place: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(place / "records.sqlite")
    connection.execute("DELETE FROM records WHERE row < 10")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("damage", "subject", "found"),
    [
        (_overwritten, "things: records", "records.sqlite is damaged"),
        (_no_database, "things: manifest", "is damaged or was not made by vecbridge"),
        (_no_matrix, "things: manifest", "expected the file vectors."),
        (_cut, "things: manifest", "the file was cut off"),
        (_lost_rows, "things: records", "1,990 records, but 2,000 vectors that belong to one"),
    ],
)
def test_damaged_files_are_found(
    doctor: Doctor, folder: Path, damage: Callable[[Path], None], subject: str, found: str
) -> None:
    fill(f"flat:{folder}", "others", FLAT)
    damage(folder / "things")
    ran = doctor(f"flat:{folder}")
    assert (ran.code, ran.wrong()) == (1, [("broken", subject)])
    assert found in ran.one(subject)["found"]
    assert f"vecbridge drop flat:{folder} things" in ran.one(subject)["remedy"]
    assert cli.run(["drop", f"flat:{folder}", "things", "--yes"]) == 0
    assert doctor(f"flat:{folder}").wrong() == []


def test_what_a_dead_process_left_is_found_and_removed(doctor: Doctor, folder: Path) -> None:
    left = folder / f".half.tmp-{'0' * 16}"
    left.mkdir()
    ran = doctor(f"flat:{folder}")
    assert (ran.code, ran.wrong()) == (0, [("warning", "leftovers")])
    command = ran.one("leftovers")["remedy"].partition("; or ")[2]
    subprocess.run(["/bin/sh", "-c", command], check=True)
    assert not left.exists()
    assert doctor(f"flat:{folder}").wrong() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize(("mode", "wrong"), [(0o500, ("warning", "folder")), (0o000, ("broken", "folder"))])
def test_a_folder_without_rights_is_found(
    doctor: Doctor, folder: Path, mode: int, wrong: tuple[str, str]
) -> None:
    folder.chmod(mode)
    try:
        ran = doctor(f"flat:{folder}")
        assert wrong in ran.wrong()
        assert ran.code == (1 if wrong[0] == "broken" else 0)
    finally:
        folder.chmod(0o700)


MOUNTS = """\
/dev/vda / ext4 rw,relatime 0 0
server:/export /mnt/my\\040files nfs4 rw,vers=4.2 0 0
tmpfs /mnt/my\\040files/here tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "level", "kind"),
    [
        ("/srv/data", "ok", "ext4"),
        ("/mnt/my files/data", "warning", "nfs4"),
        ("/mnt/my files", "warning", "nfs4"),
        ("/mnt/my files/here/data", "ok", "tmpfs"),
        ("/mnt/my filesystem", "ok", "ext4"),
    ],
)
def test_a_network_file_system_is_warned_of(path: str, level: str, kind: str) -> None:
    [finding] = flat.filesystem(Path(path), MOUNTS)
    assert finding.level == level
    assert kind in finding.found


def test_disk_and_memory_are_held_against_the_largest_collection() -> None:
    assert flat.disk(10**10, 10**9).level == "ok"
    assert flat.disk(2 * 10**9, 3 * 10**9).remedy == "free 1.0 GB of disk space"
    assert flat.disk(10**6, 0).found == "1.0 MB free: writing will fail soon"
    assert flat.memory(10**10, 10**9).level == "ok"
    assert flat.memory(10**9, 10**10).level == "warning"


# --- embedded PostgreSQL -----------------------------------------------------------------------------------


def test_the_embedded_server_is_examined_as_any_other(doctor: Doctor, pg18: str, place: Path) -> None:
    url = f"pgvector:{place}/pg"
    fill(url, "things", HNSW)
    ran = doctor(url)
    assert (ran.code, ran.wrong()) == (0, [])
    assert ran.one("things: index")["level"] == "ok"
    if Path("/dev/shm").is_dir():
        assert "free in /dev/shm" in ran.one("shared memory")["found"]
    assert (json.loads(ran.text)["places"][0]["url"]) == url


# --- Qdrant Edge -------------------------------------------------------------------------------------------


def qdrant_edge(place: Path) -> Any:
    """The engine on a folder, for what the front does not do."""
    from vecbridge.backends.qdrant import edge

    return edge.connect(str(place), shown=f"qdrant:{place}")


def test_a_sound_edge_has_nothing_wrong(doctor: Doctor, place: Path) -> None:
    fill(f"qdrant:{place}", "things", HNSW)
    ran = doctor(f"qdrant:{place}")
    assert (ran.code, ran.wrong()) == (0, [])
    assert {one["subject"] for one in ran.findings} == {
        "reachable", "engine", "disk", "collections", "things: manifest", "things: index", "things: memory",
    }  # fmt: skip
    assert ran.one("things: index")["found"] == "ready, and searches run on it (300 of 300 points)"


def test_collections_of_others_in_an_edge_are_counted(doctor: Doctor, place: Path) -> None:
    fill(f"qdrant:{place}", "things", FLAT)
    engine = qdrant_edge(place)
    engine.create("theirs", {"vectors": {"size": 4, "distance": "Dot"}})
    engine.close()
    ran = doctor(f"qdrant:{place}")
    assert (ran.code, ran.wrong()) == (0, [])
    assert ran.one("collections")["found"] == "1, beside 1 that are not vecbridge's"


def test_an_edge_without_its_graph_is_broken_until_it_is_built(doctor: Doctor, place: Path) -> None:
    url = f"qdrant:{place}"
    fill(url, "things", HNSW, built=False)
    ran = doctor(url)
    assert (ran.code, ran.wrong()) == (1, [("broken", "things: index")])
    assert ran.one("things: index")["remedy"] == "call build_index() on the collection"
    backend = connect(url)
    backend.open("things").build_index(None)
    backend.close()
    assert doctor(url).wrong() == []


def test_a_collection_that_is_not_as_its_manifest_says_is_broken(doctor: Doctor, place: Path) -> None:
    url = f"qdrant:{place}"
    text, _ = Manifest("things", Space(DIM), FLAT, ROWS).dump()
    engine = qdrant_edge(place)
    engine.create(
        "things",
        {
            "vectors": {"size": DIM + 1, "distance": "Dot"},
            "hnsw_config": {"m": 0},
            "metadata": {"vecbridge": {"manifest": text}},
        },
    )
    engine.close()
    ran = doctor(url)
    assert (ran.code, ran.wrong()) == (1, [("broken", "things: manifest")])
    found = ran.one("things: manifest")["found"]
    assert "size of the vector is 17, expected 16; distance of the vector is Dot, expected Cosine" in found
    assert ran.one("things: manifest")["remedy"].endswith("vecbridge drop URL things")
    assert cli.run(["drop", url, "things", "--yes"]) == 0
    assert doctor(url).wrong() == []


HOLD = """
import sys
from vecbridge.backends import connect
held = connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
held.close()
"""


def test_an_edge_that_another_process_holds_is_a_finding(doctor: Doctor, place: Path) -> None:
    url = f"qdrant:{place}"
    fill(url, "things", FLAT)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        ran = doctor(url)
        other.stdin.close()
    assert (ran.code, ran.wrong()) == (1, [("broken", "in use")])
    assert ran.one("in use")["remedy"] != ""
    assert doctor(url).wrong() == []


def test_a_key_that_travels_in_the_open_is_warned_of(place: Path) -> None:
    engine = qdrant_edge(place)
    backend = Qdrant(engine)
    levels = {
        exposed: [one.level for one in qdrant.findings(backend, engine, exposed=exposed)]
        for exposed in (False, True)
    }
    backend.close()
    assert [levels[exposed].count("warning") for exposed in (False, True)] == [0, 1]


# --- Qdrant servers ----------------------------------------------------------------------------------------


class Refusing(BaseHTTPRequestHandler):
    """A server that refuses every request as Qdrant does where the key is wrong."""

    def do_GET(self) -> None:
        body = b"Invalid API key or JWT"
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Standard error is compared."""


def test_a_wrong_key_is_a_matter_of_credentials(doctor: Doctor) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            ran = doctor(f"qdrant+http://{quote(SECRET, safe='')}@127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
    assert (ran.code, ran.wrong()) == (1, [("broken", "credentials")])
    assert ran.one("credentials")["remedy"].startswith("set QDRANT_API_KEY to a key that may do this")
    assert SECRET not in ran.text


# --- what can be said without a server ---------------------------------------------------------------------


def test_a_version_without_corrections_is_warned_of() -> None:
    assert postgres.version(16, "16.4", date(2028, 11, 9)).level == "ok"
    assert postgres.version(16, "16.4", date(2028, 11, 10)).level == "warning"
    assert postgres.version(12, "12.20", date(2024, 1, 1)).level == "broken"
    assert postgres.version(99, "99.0", date(2090, 1, 1)).level == "ok"


def test_connections_are_warned_of_before_they_run_out() -> None:
    assert postgres.connections(70, 97).level == "ok"
    assert postgres.connections(78, 97).found == "78 of 97 in use; each process takes up to 8"


def test_shared_memory_is_told_as_far_as_it_can_be_seen() -> None:
    assert "64 MB in a container" in postgres.shared_memory("posix", None).found
    assert postgres.shared_memory("posix", 2 * 10**9).found == "2.0 GB free in /dev/shm for parallel builds"
    assert "mmap" in postgres.shared_memory("mmap", None).found


@pytest.mark.parametrize(
    ("installed", "server", "level", "remedy"),
    [
        ("1.20.0", "1.19.0", "ok", ""),
        ("1.20.0", "1.21.3", "ok", ""),
        ("1.20.0", "1.18.0", "warning", "upgrade the server to 1.20"),
        ("1.17.0", "1.20.0", "warning", "pip install -U qdrant-client"),
        (None, "1.20.0", "broken", "pip install"),
    ],
)
def test_a_client_far_from_the_server_is_warned_of(
    installed: str | None, server: str, level: str, remedy: str
) -> None:
    finding = qdrant.client(installed, server)
    assert finding.level == level
    assert finding.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("description", "level", "found"),
    [
        ({"status": "green"}, "ok", "green"),
        ({"status": "yellow"}, "ok", "is building"),
        ({"status": "grey"}, "warning", "waits with its optimisations"),
        ({"status": "red", "optimizer_status": {"error": "no disk"}}, "broken", "no disk"),
    ],
)
def test_the_colours_of_qdrant_are_told(description: dict[str, Any], level: str, found: str) -> None:
    finding = qdrant.status("things", description)
    assert finding.level == level
    assert found in finding.found


# --- as people read it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "good", "bad"), [("utf-8", "✓", "✗"), ("ascii", "+", "x")])
def test_signs_are_what_the_terminal_can_show(folder: Path, encoding: str, good: str, bad: str) -> None:
    _no_matrix(folder / "things")
    done = subprocess.run(
        [sys.executable, "-m", "vecbridge", "doctor", f"flat:{folder}"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "100"},
        check=False,
    )
    said = done.stdout.decode(encoding)
    assert (done.returncode, done.stderr) == (1, b"")
    assert re.search(rf"^{re.escape(good)} software +SQLite", said, re.MULTILINE)
    assert re.search(rf"^{re.escape(bad)} things: manifest +expected the file vectors", said, re.MULTILINE)
    assert re.search(r"^ +restore ", said, re.MULTILINE)
    assert said.splitlines()[0] == f"flat:{folder}"
    assert said.splitlines()[-1] == "1 thing broken, 0 warnings"


def test_a_place_where_all_is_well_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", f"flat:{folder}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is wrong"
