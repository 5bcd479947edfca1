"""What is stored and asked: clustered random vectors with ids, documents and metadata; and who found what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
SEED = 0
K = 10
# metadata fields that say "yes" for such a share of the rows: texts, as Edge takes true for the number 1
SHARES = {"tenth": 0.1, "hundredth": 0.01, "thousandth": 0.001}


@dataclass(frozen=True, eq=False)
class Rows:
    """Records by column. `vectors`: float32 (n, d), unit length."""

    ids: list[str]
    vectors: Floats
    documents: list[str]
    metadata: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.ids[part], self.vectors[part], self.documents[part], self.metadata[part])

    def batches(self, size: int) -> list[Rows]:
        """The same rows in parts of `size`."""
        return [self[at : at + size] for at in range(0, len(self), size)]


@lru_cache(maxsize=2)
def clustered(rows: int, dim: int, *, seed: int = SEED) -> Floats:
    """Unit vectors (rows, dim) around 200 centres: neighbours exist, as in real embeddings."""
    # the same centres whatever the seed of the rows
    centres = np.random.default_rng(SEED).standard_normal((200, dim), dtype=np.float32)
    rng = np.random.default_rng(seed + 1)
    vectors = centres[rng.integers(0, 200, rows)] + 0.7 * rng.standard_normal((rows, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors.setflags(write=False)
    return vectors


def made(rows: int, dim: int, *, seed: int = SEED) -> Rows:
    """Records with documents of about 200 characters, and fields in `SHARES` that filters can ask for."""
    rng = np.random.default_rng(SEED)
    marked = {name: rng.permutation(rows) < max(1, round(rows * share)) for name, share in SHARES.items()}
    metadata = [
        {
            "topic": f"topic-{n % 40}",
            "senses": n % 7,
            **{name: "yes" if mark[n] else "no" for name, mark in marked.items()},
        }
        for n in range(rows)
    ]
    return Rows(
        [f"record-{n:07d}" for n in range(rows)],
        clustered(rows, dim, seed=seed),
        [f"document {n} " + "lorem ipsum dolor sit amet " * 7 for n in range(rows)],
        metadata,
    )


def questions(rows: Rows, count: int) -> Floats:
    """Queries near stored rows, but none of them: float32 (count, d)."""
    rng = np.random.default_rng(SEED + 1)
    count = min(count, len(rows))
    chosen = rows.vectors[rng.choice(len(rows), count, replace=False)]
    noise = rng.standard_normal(chosen.shape, dtype=np.float32) / np.sqrt(chosen.shape[1], dtype=np.float32)
    return np.ascontiguousarray(chosen + np.float32(0.3) * noise)


def truth(rows: Rows, queries: Floats, *, field: str | None = None, k: int = K) -> list[list[str]]:
    """For each query the ids of the k nearest rows by cosine, nearest first; where `field` says "yes"."""
    at = np.arange(len(rows))
    if field is not None:
        at = np.flatnonzero([entry[field] == "yes" for entry in rows.metadata])
    scores = queries @ rows.vectors[at].T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [[rows.ids[n] for n in at[row]] for row in best]


def recall(found: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> float:
    """The share of the true neighbours that were found."""
    hits = sum(len(set(some) & set(wanted)) for some, wanted in zip(found, right, strict=True))
    return hits / sum(map(len, right))
