"""URLs of Qdrant servers: what they name, and that no key ever shows."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecbridge.backends.qdrant.address import parse
from vecbridge.errors import UrlError

KEY = "s3same-Open"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("url", "rest", "tls", "host", "port", "shown"),
    [
        ("qdrant://localhost", False, False, "localhost", 6334, "qdrant://localhost:6334"),
        ("qdrants://db.example:7000", False, True, "db.example", 7000, "qdrants://db.example:7000"),
        ("qdrant+http://127.0.0.1/", True, False, "127.0.0.1", 6333, "qdrant+http://127.0.0.1:6333"),
        ("qdrant+https://[::1]", True, True, "::1", 6333, "qdrant+https://[::1]:6333"),
        ("QDRANT+HTTP://Host:1", True, False, "host", 1, "qdrant+http://host:1"),
        ("qdrant://qdrant_1:6334", False, False, "qdrant_1", 6334, "qdrant://qdrant_1:6334"),
    ],
)
def test_a_url_names_protocol_host_and_port(
    url: str, rest: bool, tls: bool, host: str, port: int, shown: str
) -> None:
    address = parse(url)
    assert (address.rest, address.tls, address.host, address.port) == (rest, tls, host, port)
    assert address.shown == shown
    assert (address.key, address.timeout, address.prefix) == (None, 60.0, "")


@pytest.mark.parametrize(
    "url",
    [
        f"qdrant://{KEY}@host",
        f"qdrant://:{KEY}@host",
        f"qdrant://host?api_key={KEY}",
        f"qdrant+http://{KEY}@host",
    ],
)
def test_the_key_is_read_from_each_place_and_shown_in_none(url: str) -> None:
    address = parse(url)
    assert address.key == KEY
    assert KEY not in repr(address) + address.shown + address.base


def test_the_environment_gives_the_key_that_the_url_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", f"{KEY}\n")
    assert parse("qdrant://host").key == KEY
    assert parse("qdrant://other@host").key == "other"


def test_a_key_is_percent_decoded() -> None:
    assert parse("qdrant://a%2Fb%40c%3F@host").key == "a/b@c?"


def test_hiding_takes_the_key_out_however_it_is_written() -> None:
    address = parse("qdrant://a%2Fb%40c@host")
    assert address.hide("with a/b@c and\n a%2Fb%40c in it") == "with *** and *** in it"


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("qdrant+http://host/qdrant/v1/", "http://host:6333/qdrant/v1"),
        ("qdrant+https://host:443?prefix=/q", "https://host:443/q"),
        ("qdrant+http://[2001:db8::1]", "http://[2001:db8::1]:6333"),
    ],
)
def test_rest_may_lie_behind_a_path(url: str, base: str) -> None:
    assert parse(url).base == base


def test_a_timeout_is_given_in_seconds() -> None:
    assert parse("qdrant://host?timeout=2.5").timeout == 2.5


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("qdrant://localhost", True),
        ("qdrant://127.8.9.1", True),
        ("qdrant://[::1]", True),
        ("qdrant://a.localhost", True),
        ("qdrant://10.0.0.1", False),
        ("qdrant://localhost.example", False),
    ],
)
def test_loopback_is_told_from_other_machines(url: str, local: bool) -> None:
    assert parse(url).local is local


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        (f"qdrant://{KEY}@db.example", True),
        (f"qdrant+http://{KEY}@db.example", True),
        (f"qdrants://{KEY}@db.example", False),
        (f"qdrant://{KEY}@localhost", False),
        ("qdrant://db.example", False),
    ],
)
def test_a_key_that_others_can_read_on_its_way_is_noticed(url: str, bare: bool) -> None:
    assert parse(url).bare_key is bare


def test_a_folder_of_edge_is_told_apart() -> None:
    with pytest.raises(UrlError, match="without //, which is the folder of Qdrant Edge: qdrant:PATH"):
        parse("qdrant:./data")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://host", "another scheme"),
        ("qdrant://", "without a host"),
        ("qdrant:///data", "without a host"),
        ("qdrant://host:0", "a port from 1 to 65535, got 0"),
        ("qdrant://host:99999", "a port from 1 to 65535, got 99999"),
        ("qdrant://host:abc", "a host or port that is none"),
        ("qdrant://ho st", "a host or port that is none"),
        ("qdrant://[::zz]", "a host or port that is none"),
        ("qdrant://[1.2.3]", "without an IPv6 address"),
        ("qdrant://host/path", "a path, which gRPC has none of"),
        ("qdrant+http://host/a b", "a path such as /qdrant"),
        ("qdrant+http://host/a/../b", "with dots alone"),
        ("qdrant://host?timeout=0", "seconds above 0"),
        ("qdrant://host?timeout=nan", "seconds above 0"),
        ("qdrant://host?timeout=soon", "seconds above 0"),
        ("qdrant://host?timeout=1&timeout=2", "each once"),
        ("qdrant://host?colour=red", "each once"),
        ("qdrant://a@host?api_key=b", "one API key"),
        ("qdrant://user:key@host", "Qdrant has no user names"),
        ("qdrant://a%0Ab@host", "visible ASCII"),
    ],
)
def test_a_url_that_names_nothing_is_refused_with_a_reason(url: str, said: str) -> None:
    with pytest.raises(UrlError, match=said):
        parse(url)


def shown(url: str) -> str:
    """All that a user may see of a URL, whether it is accepted or refused."""
    try:
        address = parse(url)
    except UrlError as error:
        return "".join(traceback.format_exception(error))
    return address.shown + repr(address) + address.base


@pytest.mark.parametrize("sign", ["/", "?", "#", "@", ":", "\\", "[", "%0d", " "])
def test_a_key_that_was_not_encoded_is_never_repeated(sign: str) -> None:
    for url in (f"qdrant://sesame{sign}opens@host:6334", f"qdrant+http://host/?api_key=sesame{sign}op&ens"):
        assert "sesame" not in shown(url)
        assert "opens" not in shown(url)


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126)))
def test_whatever_stands_before_the_host_never_shows(rest: str) -> None:
    assert "Zq9" not in shown(f"qdrant+http://Zq9{rest}@host.example:6333")
    assert "Zq9" not in shown(f"qdrants://{rest}Zq9@host.example")
