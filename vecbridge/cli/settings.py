"""Defaults of the command line: VECBRIDGE_URL, and `vecbridge.toml` in the working directory.

What is typed wins over the environment, the environment over the file. Only the command line reads them.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from ..errors import InputError

FILE = "vecbridge.toml"
VARIABLE = "VECBRIDGE_URL"
# where collections lie if nothing is said anywhere
LAST = "flat:"

_NAME = re.compile(r"\$\{([^}]*)\}?")
# what stands between :// and @ in a URL: user and password
_USER = re.compile(r"([a-z+]+://)([^@/?]*)(@.*)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Settings:
    """What vecbridge.toml says; None and nothing where it is silent. `places` are URLs, with passwords."""

    places: tuple[str, ...] = ()
    embedder: str | None = None
    base_url: str | None = None
    recall: float | None = None
    memory: int | str | None = None
    disk: int | str | None = None
    latency: float | None = None
    dimensions: int | None = None
    concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    document_prefix: str | None = None
    query_prefix: str | None = None
    cache: str | bool | None = None
    cache_size: int | str | None = None

    def __repr__(self) -> str:
        return f"<Settings of {FILE}: {len(self.places)} places>"


def read() -> Settings:
    """The settings in the working directory's vecbridge.toml; empty ones where there is none.

    Raises InputError, naming the key, for whatever is not understood.
    """
    path = Path(FILE)
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{FILE} cannot be read: {error}") from error
    import tomllib  # here, because every command reads the settings, and few find a file

    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        # the parser's text names line and column, and repeats no value
        raise InputError(f"{FILE} is no TOML: {error}") from None
    top = _known(data, _TOP, "")
    budget = _known(top.pop("budget", {}), _BUDGET, "budget.")
    embedding = _known(top.pop("embedding", {}), _EMBEDDING, "embedding.")
    places = tuple(_expanded(place, number) for number, place in enumerate(top.pop("places", ())))
    return Settings(places, **top, **budget, **embedding)


def places() -> tuple[tuple[str, ...], str]:
    """The store's URLs where none is typed, and where they come from, for messages. Raises InputError."""
    if given := os.environ.get(VARIABLE, "").split():
        return tuple(given), VARIABLE
    if given := list(read().places):
        return tuple(given), FILE
    return (LAST,), "the default"


def _places(value: Any) -> str | None:
    if isinstance(value, list) and value and all(isinstance(one, str) and one for one in value):
        return None
    return 'a list of one or more URLs, as ["flat:./data"]'


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "text"


def _size(value: Any) -> str | None:
    from ..sizes import in_bytes  # here, because few files have one

    if isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(InputError):
            in_bytes(value, FILE)
            return None
    return 'bytes or text such as "16GB"'


def _seconds(value: Any) -> str | None:
    return None if _rate(value) is None else "a number of seconds above 0"


def _share(value: Any) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
    return None if number else "a share above 0, up to 1, as 0.95"


def _whole(value: Any) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return None if whole else "a whole number of 1 or more"


def _rate(value: Any) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    return None if number else "a number above 0"


def _prefix(value: Any) -> str | None:
    return None if isinstance(value, str) else "text"


def _cache(value: Any) -> str | None:
    return (
        None if isinstance(value, bool) or (isinstance(value, str) and value) else "a file's name, or false"
    )


def _table(value: Any) -> str | None:
    return None if isinstance(value, dict) else 'a table, as [budget] with memory = "16GB" in it'


# for each key what speaks against a value: what was expected instead
_TOP: dict[str, Callable[[Any], str | None]] = {
    "places": _places,
    "embedder": _text,
    "base_url": _text,
    "recall": _share,
    "budget": _table,
    "embedding": _table,
}
_BUDGET: dict[str, Callable[[Any], str | None]] = {"memory": _size, "disk": _size, "latency": _seconds}
_EMBEDDING: dict[str, Callable[[Any], str | None]] = {
    "dimensions": _whole,
    "concurrency": _whole,
    "requests_per_minute": _rate,
    "tokens_per_minute": _rate,
    "document_prefix": _prefix,
    "query_prefix": _prefix,
    "cache": _cache,
    "cache_size": _size,
}
_TABLES = {"": _TOP, "budget.": _BUDGET, "embedding.": _EMBEDDING}


def _known(
    table: Mapping[str, Any], keys: Mapping[str, Callable[[Any], str | None]], inside: str
) -> dict[str, Any]:
    """The table, if it has no other keys and the right kinds of values. Raises InputError."""
    for key, value in table.items():
        if key not in keys:
            _unknown(key, keys, inside)
        if expected := keys[key](value):
            # the value is not repeated: it may be a URL with a password
            raise InputError(f"{FILE}: expected {inside}{key} as {expected}; got {_kind(value)}")
    return dict(table)


def _unknown(key: str, keys: Mapping[str, object], inside: str) -> NoReturn:
    other = [dot for dot, table in _TABLES.items() if dot != inside and key in table]
    where = "" if not other else f"into [{other[0][:-1]}]" if other[0] else "above the tables"
    elsewhere = f"; {key} belongs {where}" if where else ""
    near = difflib.get_close_matches(key, keys, n=1)
    hint = elsewhere or (f"; did you mean {inside}{near[0]}?" if near else "")
    raise InputError(f"{FILE}: unknown key {inside + key[:60]!a}{hint}; known are {', '.join(keys)}")


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "an empty list" if not value else "a list with something else in it"
    kinds = {bool: "true or false", str: "text", int: "a number", float: "a number", dict: "a table"}
    if value == "":
        return "empty text"
    return kinds.get(type(value), "a date or time")


def _expanded(url: str, number: int) -> str:
    """The URL with values of environment variables for their names. Raises InputError.

    A value that becomes user or password is percent-encoded, so that it may hold any character.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if not found[0].endswith("}") or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InputError(f"{FILE}: expected ${{NAME}} of an environment variable in places[{number}]")
        if not (given := os.environ.get(name)):
            raise InputError(
                f"{FILE}: places[{number}] needs the environment variable {name}, which is not set; export "
                f"{name}=…, or name the places on the command line"
            )
        return given

    if user := _USER.fullmatch(url):
        inner = _NAME.sub(lambda found: quote(value(found), safe=""), user[2])
        return user[1] + inner + _NAME.sub(value, user[3])
    return _NAME.sub(value, url)
