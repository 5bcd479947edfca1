"""Whether two collections hold the same records, and records of one as another stores them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from . import conform
from .backends import Table
from .manifest import Manifest
from .types import Batch

if TYPE_CHECKING:
    from .types import Floats

_MODULUS = 2**128


@dataclass(slots=True)
class Fingerprint:
    """The number of records, and a number that tells sets of ids and digests apart, whatever their order."""

    records: int = 0
    total: int = 0

    def add(self, pairs: Iterable[tuple[str, bytes | None]]) -> None:
        """Count these records, too, each by its id and digest."""
        for id, digest in pairs:
            # the id's length keeps ("a", b"b") and ("ab", b"") apart
            name = id.encode()
            text = len(name).to_bytes(4, "big") + name + (b"\0" if digest is None else b"\1" + digest)
            number = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "big")
            self.records, self.total = self.records + 1, (self.total + number) % _MODULUS


def fingerprint(table: Table) -> Fingerprint:
    """The fingerprint of all records that are there now."""
    found = Fingerprint()
    for part in table.inventory():
        found.add(part)
    return found


def conformed(batch: Batch, old: Manifest, new: Manifest) -> Batch:
    """Records of the collection `old` as `new` stores them. Raises VectorError."""
    vectors = conform.stored(new, batch.vectors, "stored vectors", shortened=old.reduction is not None)
    return replace(batch, vectors=vectors, short=conform.projected(new, vectors, "stored vectors"))


def differing(wanted: Batch, found: Batch, manifest: Manifest) -> list[int]:
    """Which records of `wanted`, by row, are not in `found`, or not the same there, vectors to the bit.

    `wanted` is `conformed` to the manifest of the collection that `found` was read from; where that keeps
    half precision, vectors differ by its rounding. True, 1 and 1.0 are three different things in metadata.
    """
    at = {id: row for row, id in enumerate(found.ids)}
    vectors = wanted.vectors
    same = _rounded if manifest.layout.element == "float16" else _equal
    differ = []
    for row, id in enumerate(wanted.ids):
        other = at.get(id)
        if other is None or not (
            wanted.documents[row] == found.documents[other]
            and wanted.digests[row] == found.digests[other]
            and same(vectors[row], found.vectors[other])
            and _same(wanted.metadata[row], found.metadata[other])
        ):
            differ.append(row)
    return differ


def chosen(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some records of a batch, in this order."""
    picked = list(rows)
    return Batch(
        [batch.ids[row] for row in picked],
        batch.vectors[picked],
        [batch.documents[row] for row in picked],
        [batch.metadata[row] for row in picked],
        [batch.digests[row] for row in picked],
        None if batch.short is None else batch.short[picked],
    )


def reduced(manifest: Manifest) -> tuple[object, bytes] | None:
    """What tells how vectors were shortened at the door; None where they were not."""
    reduction = manifest.reduction
    if reduction is None:
        return None
    return manifest.layout.shorten, b"" if reduction.basis is None else reduction.basis_bytes()


def _equal(one: Floats, other: Floats) -> bool:
    return one.tobytes() == other.tobytes()


def _rounded(one: Floats, other: Floats) -> bool:
    """Whether `other` is what half precision leaves of `one`.

    11 bits of each component, down to 2^-24; under cosine Qdrant rounds the vector once its length is 1.
    """
    least = 2.0**-24 * max(1.0, float(np.linalg.norm(one.astype(np.float64))))
    return bool((np.abs(one - other) <= 2.0**-10 * np.abs(one) + least).all())


def _same(one: object, other: object) -> bool:
    """Whether two values of JSON are of one kind and equal. PostgreSQL keeps no sign of a zero."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other
