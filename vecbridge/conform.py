"""Vectors as a collection keeps them: shortened, projected for its index, fit for half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import checks
from .manifest import Manifest
from .reduction import Reduction, fit
from .types import Layout, Space

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


def fitted(
    space: Space, layout: Layout, sample: Floats | None, *, seed: int = 0
) -> tuple[Reduction | None, Reduction | None]:
    """What a layout shortens vectors by, at the door and for its index, fitted on `sample` where it is a PCA.

    The prefix that an index is on needs no Reduction: the store cuts it off by itself. Raises InputError.
    """
    door, inner = None, None
    if layout.shorten is not None:
        door = fit(layout.shorten, source=space.dim, metric=space.metric, sample=sample, seed=seed)
    if layout.index and layout.index.shorten and layout.index.shorten.method == "pca":
        stored = sample if sample is None or door is None else door.apply(sample)
        inner = fit(
            layout.index.shorten,
            source=layout.stored_dim(space.dim),
            metric=space.metric,
            sample=stored,
            seed=seed,
        )
    return door, inner
