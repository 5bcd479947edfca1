"""Vectors in, shorter vectors out: Matryoshka truncation, or projection on a fitted basis.

For cosine and inner product the basis is fitted and applied without subtracting the mean: subtracting one
shared mean changes the neighbours even without any reduction (measured on three models: the basis without
centring kept 4 to 14 points more MRR@10 on two of them and was never detectably worse). For l2 the mean is
removed while fitting; applying needs none, as distances do not change under translation.

A shortened vector is scaled back to the length of the vector it came from: unit vectors stay unit vectors,
and inner products keep the influence of length. Only a projection under l2 is left as it is, since there it
is the distances, not the lengths, that the basis was fitted to keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import InputError, ManifestError
from .types import Metric, Shorten

if TYPE_CHECKING:
    from .types import Floats


@dataclass(frozen=True, slots=True, eq=False)
class Reduction:
    """A fitted way to shorten vectors from `source` to `shorten.dim` components.

    `basis`: float32 (dim, source) with orthonormal rows for "pca", None for "truncate".
    `kept`: share of the sample's energy (sum of squares; for l2 of its variance) that the basis keeps.
    """

    shorten: Shorten
    source: int
    rescale: bool
    basis: Floats | None = None
    kept: float | None = None

    def apply(self, vectors: Floats) -> Floats:
        """Shortened vectors: float32 (n, source) in, float32 (n, dim) out, C-contiguous."""
        import numpy as np

        if self.basis is None:
            short = np.array(vectors[:, : self.shorten.dim], dtype=np.float32, order="C")
        else:
            short = np.ascontiguousarray(vectors @ self.basis.T)
        if self.rescale:
            # float64: the squares of float32 components overflow float32 from 1.8e19 on
            before = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
            after = np.sqrt(np.einsum("ij,ij->i", short, short, dtype=np.float64))
            factor = np.divide(before, after, out=np.zeros_like(before), where=after > 0)
            short *= factor[:, None].astype(np.float32)
        return short

    def basis_bytes(self) -> bytes:
        """The basis as little-endian float32, row by row."""
        assert self.basis is not None
        return self.basis.astype("<f4").tobytes()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the basis, ready for JSON."""
        return {
            "method": self.shorten.method,
            "dim": self.shorten.dim,
            "source": self.source,
            "rescale": self.rescale,
            "kept": self.kept,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any], basis: bytes) -> Reduction:
        """The reduction that `to_dict` and `basis_bytes` gave."""
        import numpy as np

        shorten = Shorten(data["method"], data["dim"])
        matrix = None
        if shorten.method == "pca":
            if len(basis) != 4 * data["dim"] * data["source"]:
                raise ManifestError(
                    f"expected a basis of {data['dim']} x {data['source']} float32 "
                    f"({4 * data['dim'] * data['source']} bytes), found {len(basis)} bytes"
                )
            matrix = np.frombuffer(basis, dtype="<f4").reshape(data["dim"], data["source"]).astype(np.float32)
        return Reduction(shorten, data["source"], data["rescale"], matrix, data["kept"])


def fit(shorten: Shorten, *, source: int, metric: Metric, sample: Floats | None, seed: int = 0) -> Reduction:
    """A Reduction ready to apply; "pca" is fitted on `sample`, float32 (n, source), n ≥ `shorten.dim`.

    Raises InputError where a sample is needed and missing, or too small to span the dimensions asked for.
    """
    if not 1 <= shorten.dim < source:
        raise InputError(
            f"expected a shorter dimension of 1 to {source - 1}, got {shorten.dim}; "
            f"vectors of {source} dimensions can only be made shorter"
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
    from sklearn.decomposition import PCA, TruncatedSVD

    if metric == "l2":
        pca = PCA(n_components=shorten.dim, svd_solver="auto", random_state=seed).fit(sample)
        basis, kept = pca.components_, float(pca.explained_variance_ratio_.sum())
    else:
        if metric == "cosine":
            norms = np.linalg.norm(sample, axis=1, keepdims=True)
            sample = (sample / np.where(norms > 0, norms, 1)).astype(np.float32)
        # arpack refuses the full rank and converges slowly near it; the randomised solver does neither
        svd = TruncatedSVD(n_components=shorten.dim, algorithm="randomized", n_iter=4, random_state=seed)
        projected = svd.fit_transform(sample)
        basis = svd.components_
        kept = float((projected.astype(np.float64) ** 2).sum() / (sample.astype(np.float64) ** 2).sum())
    return Reduction(shorten, source, rescale, np.ascontiguousarray(basis, dtype=np.float32), min(kept, 1.0))
