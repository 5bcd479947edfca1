"""Where a provider's API is, and what has to go with every request: address, key, headers."""

from __future__ import annotations

import os
import ssl
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx

from ..errors import InputError
from . import providers
from .providers import Provider


def address(base_url: str | None, provider: Provider) -> tuple[httpx.URL, bytes]:
    """The URL that requests go to, and the name and password that stood in it."""
    if base_url is None:
        base = providers.address(provider, os.environ)
    else:
        filled = providers.filled(base_url, os.environ)
        if filled is None:
            missing = [name for name in providers.variables(base_url) if not os.environ.get(name, "").strip()]
            raise InputError(f"the base URL of {provider.name} needs {' and '.join(missing)}: set it")
        base = filled
    try:
        url = httpx.URL(base)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        # a mistyped URL may hold a password: it is not repeated
        raise InputError(
            f"expected a base URL such as https://api.openai.com/v1 for {provider.name}, got something else; "
            "check its spelling"
        )
    path = url.path.rstrip("/")
    path = path if path.endswith("/embeddings") else f"{path}/embeddings"
    userinfo = f"{url.username}:{url.password}".encode() if url.userinfo else b""
    return url.copy_with(path=path, username=None, password=None), userinfo


def certificates(url: httpx.URL) -> ssl.SSLContext | bool:
    """What TLS trusts: reading the usual certificates takes longer than many requests to a near server."""
    plain = url.scheme == "http" and not getproxies()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else True


def headers(provider: Provider) -> dict[str, str]:
    """The provider's headers with the values of their environment variables, where those are set."""
    found = {}
    for name, template in provider.headers.items():
        value = providers.filled(template, os.environ)
        if value is None:
            continue
        if not value.isascii() or not value.isprintable():
            raise InputError(f"expected printable ASCII in the header {name} of {provider.title}, got others")
        found[name] = value
    return found


def key(given: str | None, provider: Provider, *, url: httpx.URL, userinfo: bytes) -> str | None:
    """The key, given or from the environment; None where none is needed. Raises InputError."""
    bearer = provider.key_header.lower() == "authorization"
    if userinfo and bearer:
        if given:
            raise InputError(
                "expected either an API key or a name and password in the base URL, got both: there is one "
                "Authorization header"
            )
        return None
    values = (os.environ.get(name, "").strip() for name in provider.key_variables)
    key = (given or "").strip() or next(filter(None, values), None)
    if key is None:
        own = urlsplit(providers.filled(provider.base_urls[-1], os.environ) or "").hostname
        if provider.needs_key and own == url.host:
            names = " or ".join(provider.key_variables)
            raise InputError(f"{provider.name} needs a key: set {names}, or in Python the argument api_key")
        return None
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError("expected an API key of printable ASCII characters without spaces, got others in it")
    return key
