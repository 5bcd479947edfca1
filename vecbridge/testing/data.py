"""Input for the suite: vectors with neighbours worth finding, and text that breaks careless stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..types import Floats


def clustered(n: int, dim: int, *, seed: int, clusters: int = 40, spread: float = 0.35) -> Floats:
    """Unit vectors (n, dim) around `clusters` random directions, as embeddings lie; centred on the origin."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((clusters, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    noise = generator.standard_normal((n, dim)) * spread / np.sqrt(dim)
    points = centres[generator.integers(0, clusters, n)] + noise
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return np.ascontiguousarray(points, dtype=np.float32)


def names(n: int, *, start: int = 0) -> list[str]:
    """Ids that sort in the order they were made."""
    return [f"id-{number:06d}" for number in range(start, start + n)]


# Text that every store gives back byte for byte, wherever it stands.
ODD_TEXT = {
    "quotes": 'O\'Brien said "no" to `it`',
    "injection": "'; DROP TABLE records; --",
    "dollar quoting": "$$ $1 ${x} $tag$ %s %(a)s {0}",
    "backslashes": "C:\\new\\table \\' \\\\ \\x00 \\u0000",
    "copy end": "\\.",
    "copy null": "\\N",
    "white space": " \t\r\n\v\f leading and trailing \n",
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f",
    "line separators": "a\u2028b\u2029c\u0085d",
    "right to left": "\u202eevil\u202c \u200fשלום\u200e مرحبا",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈🇨🇭",
    "combining, composed": "\u00e9 Ω",
    "combining, decomposed": "e\u0301 \u2126",
    "many accents": "Z" + "\u0301\u0327\u0330" * 40,
    "zero width": "a\u200bb\ufeffc\u2060d",
    "outside the basic plane": "\U0001f4a9\U00010000\U0010ffff𝔘𝔫𝔦",
    "non-characters": "\ufffe\uffff\U0001fffe",
    "private use": "\ue000\uf8ff",
    "wildcards": "%_*?[a-z]",
    "JSON": '{"$ne": null}',
    "null word": "null",
    "NULL word": "NULL",
    "number word": "1e5",
    "case": "Straße İstanbul ſ ı K",
    "url": "pgvector:../../etc/passwd?schema=x#y",
    "format": "%n%s%d\\n{}",
}

# Text that no store could give back; refused at the door.
BAD_TEXT = {
    "NUL": "a\0b",
    "only NUL": "\0",
    "high surrogate": "a\ud800b",
    "low surrogate": "\udfff",
    "surrogate pair in two": "\ud83d\ude00",
}

# Names that are refused: no store could hold all of them, and one rule for all keeps collections movable.
BAD_NAMES: dict[str, object] = {
    "empty": "",
    "too long": "a" * 49,
    "blank": " ",
    "inner space": "a b",
    "trailing newline": "a\n",
    "leading dash": "-a",
    "slash": "a/b",
    "parent": "..",
    "absolute": "/etc/passwd",
    "backslash": "a\\b",
    "dot": "a.b",
    "quote": "a'b",
    "double quote": 'a"b',
    "semicolon": "a;drop table a",
    "NUL": "a\0b",
    "surrogate": "a\ud800",
    "accent": "é",
    "full-width": "\uff41",
    "Arabic digit": "a\u0661",
    "emoji": "🦄",
    "percent": "%s",
    "colon": "a:b",
    "number": 7,
    "bytes": b"a",
    "none": None,
    "list": ["a"],
}

# Names that look dangerous and are allowed; they must not meet anything of the store's own.
ODD_NAMES = [
    "_", "0", "a" * 48, "a" * 47 + "b", "select", "SELECT", "Select", "table", "user", "public", "pg_class",
    "pg_catalog", "vector", "vecbridge", "collections", "manifest", "records", "sqlite_master", "id", "a--b",
    "a-", "__init__", "con", "null", "None", "true", "index", "tmp", "lock",
]  # fmt: skip

# Metadata values at the edges of what JSON and 64-bit numbers hold.
ODD_VALUES: dict[str, Any] = {
    "largest whole": 2**63 - 1,
    "smallest whole": -(2**63),
    "beyond double": 2**53 + 1,
    "zero": 0,
    "float one": 1.0,
    "tenth": 0.1,
    "third": 1 / 3,
    "largest float": 1.7976931348623157e308,
    "smallest float": 5e-324,
    "smallest normal": 2.2250738585072014e-308,
    "power of ten": 1e16,
    "odd power of ten": 1e23,
    "float near the largest whole": 9223372036854774784.0,
    "float beyond the largest whole": 9223372036854775808.0,
    "true": True,
    "false": False,
    "null": None,
    "empty text": "",
    "empty list": [],
    "empty object": {},
    "mixed list": [1, "1", True, None, 1.5, [], {}, [[1]], {"a": [{"b": None}]}],
    "odd keys": {
        "": 1,
        ".": 2,
        "a.b": 3,
        "$eq": 4,
        "$": 5,
        " ": 6,
        "'": 7,
        '"': 8,
        "\\": 9,
        "0": 10,
        "é": 11,
    },
    "long text": "x" * 100_000,
    "many keys": {f"k{number}": number for number in range(500)},
    "long list": list(range(2_000)),
}


def nested(depth: int) -> Any:
    """An object with `depth` levels below it."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value
