"""Vectors as a collection keeps them: shortened, projected for its index, fit for half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import checks
from .manifest import Manifest

if TYPE_CHECKING:
    from .types import Floats


def stored(manifest: Manifest, vectors: Floats, what: str, *, shortened: bool = False) -> Floats:
    """Vectors as they are stored, of float32 (n, dim): reduced at the door, unless they are `shortened`
    already.

    Raises VectorError, which calls them `what`.
    """
    if manifest.reduction is not None and not shortened:
        vectors = manifest.reduction.apply(vectors)
        checks.check_lengths(vectors, manifest.space.metric, f"{what}, once shortened,")
    if manifest.layout.half:
        checks.check_half(vectors, what)
    return vectors


def projected(manifest: Manifest, vectors: Floats, what: str) -> Floats | None:
    """What an index on a projection holds of stored vectors, float32 (n, stored dim); None for other indexes.

    Raises VectorError, which calls them `what`.
    """
    short = manifest.projected(vectors)
    if short is not None and manifest.layout.half:
        # one component may take up a vector's whole length
        checks.check_half(short, f"{what}, once projected for the index,", vanishing=True)
    return short
