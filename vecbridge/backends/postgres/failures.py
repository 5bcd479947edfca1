"""The server's errors as ours: what happened, and what to run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors as pg
from psycopg.sql import Identifier

from ...errors import Busy, Forbidden, StoreError, Unavailable, VecbridgeError
from .address import Address


@contextmanager
def failures(address: Address) -> Iterator[None]:
    """Turns the driver's errors into vecbridge's, without secrets; the driver's error is the cause."""
    try:
        yield
    except psycopg.Error as error:
        raise translated(error, address) from printable(error, address)


def printable(error: psycopg.Error, address: Address) -> psycopg.Error | None:
    """The error as a cause, which is printed with its effect; None where it holds a secret."""
    text = str(error)
    return error if address.hide(text) == " ".join(text.split()) else None


def translated(error: psycopg.Error, address: Address) -> VecbridgeError:
    """The error to raise for one of the driver's."""
    said = address.hide(error.diag.message_primary or str(error)) or type(error).__name__
    text = f"{address.shown}: {said}"
    match error:
        case pg.InsufficientPrivilege():
            return Forbidden(f"{text}; {_grant(error, address)}")
        case pg.ReadOnlySqlTransaction():
            return Forbidden(
                f"{text}: this server or this session is read-only; connect to the primary server, "
                f"or have an administrator run ALTER DATABASE "
                f"{_quoted(address.params.get('dbname') or 'your database')} "
                f"SET default_transaction_read_only = off;"
            )
        case pg.LockNotAvailable():
            return Busy(f"{text}: another process holds the collection; try again when it has finished")
        case pg.DiskFull() | pg.QueryCanceled() | pg.OutOfMemory():
            return StoreError(text)
        case pg.TooManyConnections() | pg.ConfigurationLimitExceeded():
            return Busy(text)
        case psycopg.OperationalError() if error.sqlstate is None or error.sqlstate[:2] in ("08", "57"):
            return Unavailable(text)
    return StoreError(text)


def _grant(error: psycopg.Error, address: Address) -> str:
    user = _quoted(address.params.get("user") or os.environ.get("PGUSER") or "your user")
    database = _quoted(address.params.get("dbname") or "your database")
    schema = _quoted(address.schema or "public")
    said = error.diag.message_primary or ""
    if "extension" in said:
        return f"have a superuser run CREATE EXTENSION vector; in database {database}"
    if "temporary" in said:
        return f"have its owner run GRANT TEMPORARY ON DATABASE {database} TO {user};"
    if "must be owner" in said:
        return f"only the owner of a table indexes or drops it: have it run GRANT its role TO {user};"
    if "database" in said:
        return f"have its owner run GRANT CREATE ON DATABASE {database} TO {user};"
    if "for schema" in said:
        return f"have its owner run GRANT USAGE, CREATE ON SCHEMA {schema} TO {user};"
    return (
        f"have the owner of the tables run GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "
        f"{schema} TO {user};"
    )


def _quoted(name: str) -> str:
    return Identifier(name).as_string(None)
