"""The URL of a Qdrant server: where it is, how to speak to it, and what may be shown."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from ...errors import UrlError

_FORM = (
    "expected qdrant://HOST[:6334] (gRPC) or qdrant+http://HOST[:6333] (REST), with TLS qdrants:// or "
    "qdrant+https://; a key goes before the host, as KEY@HOST, with / : @ ? # % in it percent-encoded "
    "(%2F for /)"
)
# scheme: whether it is REST, whether it is encrypted
_SCHEMES = {
    "qdrant": (False, False),
    "qdrants": (False, True),
    "qdrant+http": (True, False),
    "qdrant+https": (True, True),
}
_PORTS = {False: 6334, True: 6333}
TIMEOUT = 60.0  # seconds
_LONGEST = 86_400.0


@dataclass(frozen=True, slots=True)
class Address:
    """One server, or one cluster behind one name.

    `rest`: HTTP and JSON, else gRPC. `host`: without the brackets of IPv6. `prefix`: the path in front of all
    others where REST passes a proxy, "" or "/path". `timeout`: seconds that one request may take. `shown` is
    fit for messages.
    """

    scheme: str
    rest: bool
    tls: bool
    host: str
    port: int
    prefix: str
    timeout: float
    shown: str
    key: str | None = field(default=None, repr=False)

    def hide(self, text: str) -> str:
        """The text on one line and without the key."""
        if self.key:
            for secret in (self.key, quote(self.key, safe="")):
                text = text.replace(secret, "***")
        return " ".join(text.split())

    @property
    def base(self) -> str:
        """The URL that REST paths are appended to."""
        return f"{'https' if self.tls else 'http'}://{_netloc(self.host, self.port)}{self.prefix}"

    @property
    def local(self) -> bool:
        """Whether the server runs on this machine."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def bare_key(self) -> bool:
        """Whether the key travels to another machine unencrypted, for everybody on the way to read."""
        return self.key is not None and not self.tls and not self.local


def parse(url: str) -> Address:
    """The address in `qdrant://…` and its like. Raises UrlError, without repeating what may be a key.

    The key comes from the user part (`KEY@HOST` or `:KEY@HOST`), from `?api_key=`, or from QDRANT_API_KEY.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise UrlError(f"{_FORM}; got a URL without //, which is the folder of Qdrant Edge: qdrant:PATH")
    if scheme not in _SCHEMES:
        raise UrlError(f"{_FORM}; got a URL with another scheme")
    over_rest, tls = _SCHEMES[scheme]
    before, _, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    # what is left of a key that was not encoded must not become a host or a path
    if "#" in rest or "@" in path or "@" in query or authority.count("@") > 1 or "\\" in rest:
        raise UrlError(f"{_FORM}; got a URL that does not fit")
    user, _, place = authority.rpartition("@")
    host, port = _place(place, _PORTS[over_rest])
    options = _options(query)
    prefix = _prefix(options.get("prefix", slash + path), over_rest=over_rest)
    if user and "api_key" in options:
        raise UrlError("expected one API key, got one before the host and another one in ?api_key=")
    key = _key(_user(user) or options.get("api_key", "") or os.environ.get("QDRANT_API_KEY", "").strip())
    shown = f"{scheme}://{_netloc(host, port)}{prefix}"
    timeout = _timeout(options.get("timeout"))
    return Address(scheme, over_rest, tls, host, port, prefix, timeout, shown, key)


def _place(place: str, default: int) -> tuple[str, int]:
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?", place)
    if not found:
        raise UrlError(f"{_FORM}; got a URL without a host, or with a host or port that is none")
    six, name, port = found.groups()
    if six is not None:
        try:
            ipaddress.IPv6Address(six)
        except ValueError:
            raise UrlError(f"{_FORM}; got brackets without an IPv6 address in them") from None
    if port is not None and not 1 <= int(port) <= 65_535:
        raise UrlError(f"expected a port from 1 to 65535, got {int(port)}")
    return (six or name).lower(), default if port is None else int(port)


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _user(user: str) -> str:
    name, colon, password = user.partition(":")
    if name and colon:
        raise UrlError(f"{_FORM}; got two parts before the host, and Qdrant has no user names")
    return unquote(password if colon else name)


def _options(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in query.split("&") if query else []:
        name, _, value = pair.partition("=")
        if name not in ("api_key", "timeout", "prefix") or name in found:
            # not repeated: after a ? in a key, this is the rest of the key
            raise UrlError("expected ?timeout=SECONDS, ?prefix=/path or ?api_key=KEY, each once; got another")
        found[name] = unquote(value)
    return found


def _prefix(path: str, *, over_rest: bool) -> str:
    path = path.rstrip("/")
    if path and not over_rest:
        raise UrlError(f"{_FORM}; got a path, which gRPC has none of")
    if path and not re.fullmatch(r"(?:/[A-Za-z0-9._~%-]+)+", path):
        raise UrlError(
            "expected a path such as /qdrant in front of Qdrant's own, of letters, digits and . _ ~ -"
        )
    if any(part in (".", "..") for part in path.split("/")):
        raise UrlError(
            "expected a path such as /qdrant in front of Qdrant's own, got one with dots alone in it"
        )
    return path


def _key(key: str) -> str | None:
    # a header takes nothing else, and a line break would start another header
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise UrlError("expected an API key of visible ASCII characters, got one with others in it")
    return key or None


def _timeout(text: str | None) -> float:
    if text is None:
        return TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST:
        raise UrlError(f"expected ?timeout= with seconds above 0 and up to {_LONGEST:.0f}, got another value")
    return seconds
