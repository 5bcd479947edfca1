"""The URL of a PostgreSQL database: what libpq gets, what is ours, and what may be shown."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ...errors import UrlError

_FORM = (
    "expected postgresql://user:password@host:port/database?schema=name, with / : @ ? % in user, password "
    "and names percent-encoded (%40 for @)"
)


@dataclass(frozen=True, slots=True)
class Address:
    """One database. `params` are libpq's own, `schema` is where our tables lie (None: the server's default).

    `shown` is fit for messages; `secrets` are the texts that must never be in one.
    """

    params: dict[str, str] = field(repr=False)
    schema: str | None
    shown: str
    secrets: tuple[str, ...] = field(repr=False)

    def hide(self, text: str) -> str:
        """The text on one line and without secrets."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())

    @property
    def local(self) -> bool:
        """Whether the server runs on this machine."""
        hosts = f"{self.params.get('host', '')},{self.params.get('hostaddr', '')}".split(",")
        return all(host in ("", "localhost", "::1") or host.startswith(("/", "@", "127.")) for host in hosts)

    @property
    def socket(self) -> bool:
        """Whether the server is reached through a Unix socket."""
        host = self.params.get("host") or os.environ.get("PGHOST", "")
        return "hostaddr" not in self.params and (not host or host.startswith(("/", "@")))


def parse(url: str, *, shown: str | None = None) -> Address:
    """The address in `postgresql://…`. Raises UrlError, without repeating any part of the URL.

    What is left of a wrongly quoted password would otherwise end up in a host name, and from there in the
    driver's message.
    """
    scheme, _, rest = url.partition("://")
    authority, slash, tail = rest.partition("/")
    if scheme.lower() not in ("postgresql", "postgres") or "@" in tail.partition("?")[0]:
        raise UrlError(f"{_FORM}; got a URL that does not fit")
    if "?" in authority:  # no path before the query
        authority, _, query = authority.partition("?")
        path, query = "", f"{query}{slash}{tail}"
    else:
        path, _, query = tail.partition("?")
    # a quoted @ is fine, two plain ones are a password that was not quoted
    if authority.count("@") > 1:
        raise UrlError(f"{_FORM}; got a URL that does not fit")
    schema, kept = None, []
    for pair in query.split("&") if query else []:
        key, _, value = pair.partition("=")
        if unquote(key) == "schema":
            schema = unquote(value)
        else:
            kept.append(pair)
    # psycopg would take a % for a placeholder
    if schema is not None and (not schema or set("\0%") & set(schema) or len(schema.encode()) > 63):
        raise UrlError("expected ?schema= with a name of 1 to 63 bytes, without % and NUL")
    plain = f"postgresql://{authority}/{path}" + (f"?{'&'.join(kept)}" if kept else "")
    try:
        params = {key: str(value) for key, value in conninfo_to_dict(plain).items() if value is not None}
    except (psycopg.Error, UnicodeError, ValueError):
        # the driver's text repeats the part that it does not understand, which may be the password
        raise UrlError(f"{_FORM}; got a URL that libpq cannot read") from None
    if any(not port.isdigit() for port in params.get("port", "").split(",") if port):
        raise UrlError(f"{_FORM}; the port in this URL is not a number")
    encoded = authority.rpartition("@")[0].partition(":")[2]
    secrets = [params.get("password"), params.get("sslpassword"), encoded, *_passwords(query)]
    unique = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
    return Address(params, schema, shown or _show(params, schema), tuple(unique))


def _passwords(query: str) -> list[str]:
    return [value for key, value in parse_qsl(query) if "password" in key]


def _show(params: dict[str, str], schema: str | None) -> str:
    user, host, port = (params.get(key, "") for key in ("user", "host", "port"))
    url = "postgresql://" + (f"{quote(user, safe='')}@" if user else "")
    socket = host.startswith(("/", "@")) or "," in host
    extra = {}
    if socket:
        extra["host"] = host
    else:
        url += f"[{host}]" if ":" in host else quote(host, safe="")
        url += f":{port}" if port else ""
    if socket and port:
        extra["port"] = port
    if schema is not None:
        extra["schema"] = schema
    url += f"/{quote(params.get('dbname', ''), safe='')}"
    return url + (f"?{urlencode(extra, safe='/,')}" if extra else "")
