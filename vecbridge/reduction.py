"""Vectors in, shorter vectors out: Matryoshka truncation, or projection on a fitted basis.

For inner product the basis is fitted and applied without subtracting the mean, which would change every
score. For cosine both are offered, since subtracting the mean changes which vectors are near, for better or
worse, and only measuring tells: on 5,600 WordNet glosses (recall@10 without re-ranking), leaving the mean in
found more for wordllama in 192 dimensions of 256 (0.899 against 0.859), taking it off found more for LSA in
32 dimensions of 384 (0.202 against 0.179). For l2 the mean is removed while fitting; applying needs none, as
distances do not change under translation.

A shortened vector is scaled back to the length of the vector it came from: unit vectors stay unit vectors,
and inner products keep the influence of length. Only a projection under l2 is left as it is, since there it
is the distances, not the lengths, that the basis was fitted to keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .errors import InputError, ManifestError
from .types import Metric, Shorten

if TYPE_CHECKING:
    from .axes import Doubles
    from .types import Floats

# rows left out of a fit to measure it on: no more are needed, fewer say too little of a mean or a percentile
_LEFT_OUT = 500
_WORTHWHILE, _TYPICAL = 20, 50


@dataclass(frozen=True, slots=True, eq=False)
class Reduction:
    """A fitted way to shorten vectors from `source` to `shorten.dim` components.

    `basis`: float32 (dim, source) with orthonormal rows for "pca", None for "truncate".
    `mean`: float32 (source,), of the sample (under cosine of its unit vectors). Taken off before projecting
    where `shorten.centred`; under l2, where that makes no difference, only what `keeps` measures from.
    `kept`: share of the energy (sum of squares, about the mean where there is one) of vectors that were left
    out of the fit that the basis keeps; of the fitted sample itself where it was too small to leave some out.
    `usual`: all but one in twenty of these vectors keep at least this share of their own energy, None where
    too few were left out. `left_out`: how many were.
    """

    shorten: Shorten
    source: int
    rescale: bool
    basis: Floats | None = None
    kept: float | None = None
    mean: Floats | None = None
    usual: float | None = None
    left_out: int = 0

    def apply(self, vectors: Floats) -> Floats:
        """Shortened vectors: float32 (n, source) in, float32 (n, dim) out, C-contiguous."""
        import numpy as np

        if self.basis is None:
            short = np.array(vectors[:, : self.shorten.dim], dtype=np.float32, order="C")
        else:
            short = np.ascontiguousarray(vectors @ self.basis.T)
        before = _lengths(vectors) if self.rescale or self.shorten.centred else None
        if self.shorten.centred:
            assert self.basis is not None
            assert self.mean is not None
            assert before is not None
            # the mean is one of unit vectors: longer vectors have it so many times
            offset = self.basis.astype(np.float64) @ self.mean.astype(np.float64)
            short = np.subtract(short, before[:, None] * offset, dtype=np.float64).astype(np.float32)
        if before is not None:
            after = _lengths(short)
            factor = np.divide(before, after, out=np.zeros_like(before), where=after > 0)
            short *= factor[:, None].astype(np.float32)
        return short

    def keeps(self, vectors: Floats) -> Doubles:
        """The share of each vector's energy that is kept: float32 (n, source) in, float64 (n,) out, 0 to 1.

        Measured as `kept` is: about the mean where the reduction has one, before scaling back. A vector that
        has no energy loses none. Raises InputError for a basis about a mean that was not kept with it, as in
        old collections under l2.
        """
        import numpy as np

        if self.basis is not None and self.mean is None and not self.rescale:
            raise InputError(
                "this PCA was fitted about a mean that was not kept, so what it keeps of a vector cannot be "
                "told; fit it again on a sample"
            )
        step = max(1, 2**22 // self.source)
        shares = np.ones(len(vectors))
        for start in range(0, len(vectors), step):
            block = vectors[start : start + step].astype(np.float64)
            if self.mean is not None:
                if self.shorten.centred:
                    lengths = np.sqrt((block * block).sum(axis=1, keepdims=True))
                    block /= np.where(lengths > 0, lengths, 1)
                block -= self.mean
            # float32 is exact enough for a share, once nothing can overflow
            largest = np.abs(block).max(axis=1, keepdims=True, initial=0)
            unit = (block / np.where(largest > 0, largest, 1)).astype(np.float32)
            short = unit[:, : self.shorten.dim] if self.basis is None else unit @ self.basis.T
            whole = _lengths(unit) ** 2
            np.divide(_lengths(short) ** 2, whole, out=shares[start : start + step], where=whole > 0)
        return np.minimum(shares, 1.0)

    def basis_bytes(self) -> bytes:
        """The basis as little-endian float32, row by row; the mean, where there is one, as one more row."""
        assert self.basis is not None
        mean = b"" if self.mean is None else self.mean.astype("<f4").tobytes()
        return self.basis.astype("<f4").tobytes() + mean

    def to_dict(self) -> dict[str, Any]:
        """Everything but the basis and the mean, ready for JSON."""
        return {
            "method": self.shorten.method,
            "dim": self.shorten.dim,
            "centred": self.shorten.centred,
            "source": self.source,
            "rescale": self.rescale,
            "kept": self.kept,
            "usual": self.usual,
            "left_out": self.left_out,
            "mean": self.mean is not None,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any], basis: bytes) -> Reduction:
        """The reduction that `to_dict` and `basis_bytes` gave."""
        import numpy as np

        # what the first versions wrote says nothing of a mean
        shorten = Shorten(data["method"], data["dim"], data.get("centred", False))
        source, matrix, mean = data["source"], None, None
        if shorten.method == "pca":
            rows = shorten.dim + bool(data.get("mean", False))
            if len(basis) != 4 * rows * source:
                raise ManifestError(
                    f"expected a basis of {shorten.dim} x {source} float32"
                    f"{' and a mean' if rows > shorten.dim else ''} "
                    f"({4 * rows * source} bytes), found {len(basis)} bytes"
                )
            matrix = np.frombuffer(basis, dtype="<f4").reshape(rows, source).astype(np.float32)
            matrix, mean = matrix[: shorten.dim], matrix[-1] if rows > shorten.dim else None
        if shorten.centred and mean is None:
            raise ManifestError("expected the mean of a centred PCA beside its basis, found none")
        return Reduction(
            shorten,
            source,
            data["rescale"],
            matrix,
            data["kept"],
            mean,
            data.get("usual"),
            data.get("left_out", 0),
        )


def fit(shorten: Shorten, *, source: int, metric: Metric, sample: Floats | None, seed: int = 0) -> Reduction:
    """A Reduction ready to apply; "pca" is fitted on `sample`, float32 (n, source), n ≥ `shorten.dim`.

    A tenth of the sample, at most 500 rows chosen by `seed`, is left out of a first fit and tells what that
    keeps of vectors it has not seen; the basis that is used is then fitted on all. Raises InputError where a
    sample is needed and missing, or too small to span the dimensions asked for, and for `centred` where it
    has no meaning.
    """
    if not 1 <= shorten.dim < source:
        raise InputError(
            f"expected a shorter dimension of 1 to {source - 1}, got {shorten.dim}; "
            f"vectors of {source} dimensions can only be made shorter"
        )
    if shorten.centred and (shorten.method != "pca" or metric != "cosine"):
        raise InputError(
            f"centred=True is for a PCA under cosine, got method {shorten.method!r} under {metric!r}; "
            f"leave it out: under l2 a mean changes nothing, under ip taking it off would change every score"
        )
    rescale = shorten.method == "truncate" or metric != "l2"
    if shorten.method == "truncate":
        return Reduction(shorten, source, rescale)
    if sample is None:
        raise InputError(
            f"a PCA to {shorten.dim} dimensions is fitted on your own vectors: pass sample=, "
            f"a float array ({shorten.dim} or more, {source}); 1,000 to 20,000 rows are enough"
        )
    if sample.ndim != 2 or sample.shape[1] != source:
        raise InputError(f"expected a sample of shape (n, {source}), got {sample.shape}")
    if len(sample) < shorten.dim:
        raise InputError(
            f"a PCA to {shorten.dim} dimensions needs a sample of at least {shorten.dim} vectors, "
            f"got {len(sample)}; pass more, or choose a smaller dimension"
        )
    import numpy as np

    from .axes import principal, twice

    unit = np.ascontiguousarray(sample, dtype=np.float32)
    if metric == "cosine":
        lengths = _lengths(unit)
        unit = (unit / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
    fitted, unseen = _parted(unit, shorten.dim, seed)
    about_mean = shorten.centred or metric == "l2"
    if unseen is unit:
        # too few could be left out: what is kept of fitted vectors says nothing of others
        axes = whole = principal(unit, shorten.dim, centred=about_mean, seed=seed)
    else:
        # a basis of nine tenths would treat the tenth that was left out worse than the rest of the collection
        axes, whole = twice(fitted, unseen, shorten.dim, centred=about_mean, seed=seed)
    mean = axes.mean.astype(np.float32) if about_mean else None
    made = Reduction(shorten, source, rescale, axes.basis, mean=mean)
    shares = made.keeps(unseen)
    energies = (_lengths(unseen if mean is None else unseen - mean) / (np.abs(unseen).max() or 1)) ** 2
    kept = float(np.average(shares, weights=energies)) if energies.any() else 1.0
    if unseen is unit:
        return replace(made, kept=min(kept, 1.0))
    return replace(
        made,
        basis=whole.basis,
        mean=whole.mean.astype(np.float32) if about_mean else None,
        kept=min(kept, 1.0),
        usual=float(np.percentile(shares, 5)) if len(unseen) >= _TYPICAL else None,
        left_out=len(unseen),
    )


def _parted(vectors: Floats, dim: int, seed: int) -> tuple[Floats, Floats]:
    """What to fit on, and what to measure on: rows that were left out, or all where too few could be."""
    import numpy as np

    out = min(len(vectors) // 10, _LEFT_OUT, len(vectors) - dim)
    if out < _WORTHWHILE:
        return vectors, vectors
    chosen = np.zeros(len(vectors), dtype=bool)
    chosen[np.random.default_rng(seed).choice(len(vectors), out, replace=False)] = True
    return vectors[~chosen], vectors[chosen]


def _lengths(vectors: Floats) -> Doubles:
    import numpy as np

    # float64: the squares of float32 components overflow float32 from 1.8e19 on
    lengths: Doubles = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return lengths
