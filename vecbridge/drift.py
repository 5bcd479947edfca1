"""Whether vectors still fit the PCA that a collection projects them with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .recall import mean_recall

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .manifest import Manifest
    from .reduction import Reduction
    from .types import Floats

# the share of vectors like those of the fit that keep less than their 5th percentile, `Reduction.usual`
EXPECTED = 0.05
# So many must keep less, with all of the interval above it: the 5th percentile of the 50 to 500 vectors that
# are left out of a fit is, once in a hundred times, what 15 % of all vectors stay below.
_TOO_MANY = 0.15
# standard errors by which the mean must have fallen; one-sided, 3 are exceeded once in 700 times
_ERRORS = 3.0
# fewer vectors are not judged: their spread says too little of how far their mean may be off
_FEWEST = 30
# less is no loss that a search would notice, and may be rounding where a projection keeps all there is
_SLACK = 0.005


@dataclass(frozen=True, slots=True)
class Drift:
    """How well vectors fit a PCA that was fitted earlier: `kept` of their energy now, `fitted` then.

    Both are shares of the sum of squares, about the mean where the PCA has one. `below`: the share of the
    `vectors` that keep less than all but one in twenty kept then, 0.05 where nothing has changed; `low` to
    `high` is its 95 % interval. `dim`: the dimensions projected on. `drifted`: whether they clearly fit
    worse than those of the fit did, as a whole or too many of them; a false alarm in less than one of a
    hundred measurements, and never one of fewer than 30 vectors.
    """

    kept: float
    fitted: float
    below: float
    low: float
    high: float
    vectors: int
    dim: int
    drifted: bool

    def __str__(self) -> str:
        said = (
            f"the PCA to {self.dim} dimensions keeps {self.kept:.1%} of the energy of {self.vectors:,} "
            f"vectors, {self.fitted:.1%} when it was fitted; {self.below:.0%} ({self.low:.0%} to "
            f"{self.high:.0%}) of them lose more than was usual then, {EXPECTED:.0%} are expected"
        )
        if self.drifted:
            return f"{said}: they no longer fit; refit: collection.replan()"
        return f"{said}: they fit"


def drift(manifest: Manifest, vectors: Floats, *, door: bool = False) -> Drift | None:
    """How well vectors fit the collection's PCA; None where it has none, or does not say how it fitted.

    For a projection in the index, `vectors` are stored ones, float32 (n, stored dim). `door`: for the
    projection with which vectors are shortened before they are stored; then `vectors` are whole ones as the
    model returns them, float32 (n, dim). What is stored does not show it: all of it lies in the projection.
    """
    reduction = manifest.reduction if door else manifest.index_reduction
    # collections made before 0.5 say nothing of what is usual, and measured on the fitted sample itself
    if reduction is None or reduction.basis is None or reduction.kept is None or reduction.usual is None:
        return None
    shares = reduction.keeps(vectors)
    if not len(shares):
        return Drift(reduction.kept, reduction.kept, 0.0, 0.0, 1.0, 0, reduction.shorten.dim, drifted=False)
    # one vector is one trial: k = 1
    below = mean_recall((shares < reduction.usual - _SLACK).astype(float).tolist(), 1)
    energy = _energy(reduction, vectors, unit=manifest.space.metric == "cosine")
    kept = float(np.average(shares, weights=energy))
    # of a ratio of two sums, as in W. G. Cochran, Sampling Techniques (1977), section 2.11
    error = float(np.sqrt(((energy * (shares - kept)) ** 2).sum()) / energy.sum())
    fall = max(_ERRORS * error * math.sqrt(1 + len(shares) / max(reduction.left_out, 1)), _SLACK)
    return Drift(
        kept=kept,
        fitted=reduction.kept,
        below=below.mean,
        low=below.low,
        high=below.high,
        vectors=below.queries,
        dim=reduction.shorten.dim,
        drifted=len(shares) >= _FEWEST and (below.low > _TOO_MANY or reduction.kept - kept > fall),
    )


def _energy(reduction: Reduction, vectors: Floats, *, unit: bool) -> NDArray[np.float64]:
    """Each vector's energy, as `Reduction.kept` weighs it; all alike where there is none."""
    # float64: the squares of float32 components overflow float32 from 1.8e19 on
    energy: NDArray[np.float64] = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    lengths = np.sqrt(energy) if unit else np.ones(len(energy))
    lengths[lengths == 0] = 1.0
    energy /= lengths**2
    if reduction.mean is not None:
        mean = reduction.mean.astype(np.float64)
        energy += mean @ mean - 2 * (vectors @ mean) / lengths
    energy = np.maximum(energy, 0.0)
    return energy if energy.any() else np.ones(len(energy))
