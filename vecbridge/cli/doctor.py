"""doctor: what a user can get wrong, each with its remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import (
    Busy,
    FeatureMissing,
    Forbidden,
    InputError,
    MissingExtra,
    Unavailable,
    UrlError,
    VecbridgeError,
)
from ..types import Finding
from . import options, output

if TYPE_CHECKING:
    from ..backends import Backend

_SICK = 1


@dataclass(frozen=True, slots=True)
class Place:
    """A store's URL, without password, and what was found in it."""

    url: str
    findings: Sequence[Finding]

    def count(self, level: str) -> int:
        """How many findings are of this level."""
        return sum(finding.level == level for finding in self.findings)


def doctor(
    urls: Annotated[
        list[str] | None, typer.Argument(metavar="[URL]...", help=options.PLACE_HELP, show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> int:
    """Check stores: reachable, versions, rights, memory, indexes, collections; each fault with its remedy."""
    places = [examine(url) for url in options.stores(urls)]
    broken = sum(place.count("broken") for place in places)
    warnings = sum(place.count("warning") for place in places)
    if as_json:
        output.write_json(
            {
                "places": [
                    {"url": place.url, "findings": [asdict(finding) for finding in place.findings]}
                    for place in places
                ],
                "broken": broken,
                "warnings": warnings,
            }
        )
    else:
        from . import render_doctor

        render_doctor.places(places, broken=broken, warnings=warnings)
    return _SICK if broken else 0


def examine(url: str) -> Place:
    """What is right and wrong with the store of a URL; that it cannot be reached is a finding as well."""
    from ..backends import connect

    shown = output.redact(url)
    try:
        if absent := _absent(url):
            return Place(shown, [absent])
        backend = connect(url)
    except VecbridgeError as error:
        return Place(shown, [explained(error)])
    try:
        return Place(backend.url, [*backend.findings(), *_unfinished(backend)])
    except VecbridgeError as error:
        return Place(backend.url, [explained(error)])
    finally:
        backend.close()


def _unfinished(backend: Backend) -> Iterator[Finding]:
    """Of each copy that was begun and is not complete, what goes on with it."""
    from .. import unfinished

    # what cannot be opened is among the other findings
    manifests = []
    with suppress(VecbridgeError):
        for name in backend.names():
            with suppress(VecbridgeError), closing(backend.open(name)) as table:
                manifests.append(table.manifest)
    for manifest in manifests:
        if manifest.copy_of is not None:
            yield Finding(
                "warning",
                f"{manifest.name}: copy",
                f"it is an unfinished copy of {manifest.copy_of}",
                f"go on with it: {unfinished.command(manifest, backend.url)}",
            )


def _absent(url: str) -> Finding | None:
    """What to say of a place in a folder that is not there: looking at it must not make it."""
    from ..backends import unmade

    if (folder := unmade(url)) is None:
        return None
    scheme = url.partition(":")[0]
    if scheme.lower() == "pgvector":
        from ..backends import cluster

        cluster.programs()
    return Finding(
        "warning",
        "folder",
        f"{folder} holds nothing yet; the first collection makes it",
        f"nothing, before the first ingest; else check the path after {scheme}:",
    )


# what a server or its driver says, what it is about, and what helps; {0} is what the parentheses caught
_SAID: Sequence[tuple[str, str, str]] = (
    (
        r"Connection refused|ECONNREFUSED|connection to server on socket .* failed: No such file",
        "reachable",
        "start the server (scripts/stack up starts the local ones), and check host and port in the URL",
    ),
    (
        r"could not translate host name|Name or service not known|failure in name resolution|DNS resolution"
        r"|nodename nor servname",
        "reachable",
        "check the spelling of the host in the URL, and that this machine can look it up",
    ),
    (
        r"timeout expired|timed out|Deadline|No route to host|Network is unreachable",
        "reachable",
        "check host and port, firewalls on the way, and that the server listens beyond its own machine "
        "(listen_addresses in PostgreSQL)",
    ),
    (
        r"database system is (?:starting up|shutting down|in recovery)",
        "reachable",
        "wait until the server has started, then ask again",
    ),
    (
        r"password authentication failed for user \"([^\"]*)\"",
        "credentials",
        "check user and password; in a URL, / : @ ? % in them are percent-encoded (%40 for @). An "
        'administrator gives a new password by ALTER ROLE "{0}" PASSWORD …;',
    ),
    (
        r"no password supplied",
        "credentials",
        "give the password: in the URL (user:password@host), in PGPASSWORD, or in ~/.pgpass",
    ),
    (
        r"(?:Peer|Ident) authentication failed for user \"([^\"]*)\"",
        "credentials",
        "the server trusts the system's user of the same name only: run as {0}, or connect by TCP "
        "(@127.0.0.1) with a password",
    ),
    (
        r"no pg_hba.conf entry .*(?:no encryption|SSL off)",
        "credentials",
        "add ?sslmode=require to the URL; else an administrator adds this host, user and database to "
        "pg_hba.conf and runs SELECT pg_reload_conf();",
    ),
    (
        r"no pg_hba.conf entry|pg_hba.conf rejects",
        "credentials",
        "an administrator adds this host, user and database to the server's pg_hba.conf and runs "
        "SELECT pg_reload_conf();",
    ),
    (
        r"role \"([^\"]*)\" does not exist",
        "credentials",
        'check the user in the URL, or have an administrator run CREATE ROLE "{0}" LOGIN PASSWORD …;',
    ),
    (
        r"role \"([^\"]*)\" is not permitted to log in",
        "credentials",
        'have an administrator run ALTER ROLE "{0}" LOGIN;',
    ),
    (
        r"database \"([^\"]*)\" does not exist",
        "database",
        'check the database in the URL, or make it: CREATE DATABASE "{0}";',
    ),
    (
        r"permission denied for database \"([^\"]*)\"",
        "rights",
        'have its owner run GRANT CONNECT ON DATABASE "{0}" TO your user;',
    ),
    (
        r"too many clients|remaining connection slots|too many connections",
        "connections",
        "end sessions that are not needed, put a pooler between, or raise max_connections on the server",
    ),
    (
        r"server does not support SSL|certificate|SSL error|SSL_ERROR|TLS|handshake",
        "encryption",
        "for PostgreSQL set ?sslmode=require (disable on your own machine), and ?sslrootcert= to the file of "
        "its authority; for Qdrant use qdrants:// or qdrant+https:// only where the server speaks TLS",
    ),
    (
        r"pgvector is not installed on this server .*?; (.*)",
        "pgvector",
        "{0}",
    ),
    (
        r"; (set QDRANT_API_KEY .*)",
        "credentials",
        "{0}",
    ),
    (
        r"search_path names no schema",
        "rights",
        "name one by ?schema= in the URL, or have an owner run GRANT USAGE ON SCHEMA public TO your user;",
    ),
)  # fmt: skip

_KINDS: Sequence[tuple[type[VecbridgeError], str, str]] = (
    (MissingExtra, "driver", ""),
    (UrlError, "URL", "correct the URL"),
    (Forbidden, "rights", ""),
    (FeatureMissing, "version", "upgrade the server"),
    (Busy, "in use", "end the other process, or wait for it"),
    (Unavailable, "reachable", "start the server, and check host and port in the URL"),
    (InputError, "input", "correct what the message names"),
    (VecbridgeError, "reachable", "mend what the message names, then ask again"),
)


def explained(error: VecbridgeError) -> Finding:
    """An error as a finding: what it is about and what helps."""
    text = " ".join(output.redact(str(error)).split())
    text = re.sub(r"^[\w+]+:\S*: ", "", text)  # the place, which stands above
    # a URL that cannot be read has not been to any server
    table = () if isinstance(error, UrlError) and "search_path" not in text else _SAID
    for pattern, subject, remedy in table:
        if found := re.search(pattern, text):
            return Finding("broken", subject, text, remedy.format(*found.groups()))
    subject, remedy = next((subject, remedy) for kind, subject, remedy in _KINDS if isinstance(error, kind))
    # most errors name their remedy themselves, behind the last semicolon
    said, _, advice = text.rpartition("; ")
    if not said or advice.startswith("got "):
        return Finding("broken", subject, text, remedy)
    return Finding("broken", subject, said, advice)
