"""Fresh places on a PostgreSQL server: one database, and a schema of its own for each place."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import sql
from servers import with_database

_numbers = itertools.count(1)


@contextmanager
def schemas(url: str, *, name: str = "place") -> Iterator[Callable[[], str]]:
    """A function that returns the URL of a new schema, `name` and a number, each time it is called."""
    database = f"vecbridge_places_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(sql.Identifier(database))
        )
    parts = urlsplit(with_database(url, database))
    numbers = itertools.count(1)

    def place() -> str:
        query = [*parse_qsl(parts.query), ("schema", f"{name}{next(numbers)}")]
        return urlunsplit(parts._replace(query=urlencode(query, quote_via=quote)))

    try:
        yield place
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))
