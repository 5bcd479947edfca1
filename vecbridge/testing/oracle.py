"""Brute force in float64: what a search must return, and a comparison that is fair to ties.

Two records whose scores differ by less than the arithmetic of a store can tell may come in either order and
may stand for each other at the end of the list. Everything else must be as it is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..filters import matches, parse
from ..manifest import Manifest
from ..types import Batch, Hit, Metric

Doubles: TypeAlias = NDArray[np.float64]

# float32 sums over a few thousand components
TOLERANCE = 1e-4
# half precision keeps 11 bits: 5e-4 for each component of either vector, at worst all to one side
HALF_TOLERANCE = 2e-3
# records in one part of an inventory, at most
PART = 10_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search must return: `ids` nearest first (ties by id), and `scores` of every allowed record."""

    ids: list[str]
    scores: dict[str, float]


def scores(queries: ArrayLike, vectors: ArrayLike, *, metric: Metric) -> Doubles:
    """Scores (m, n) of `queries` (m, d) against `vectors` (n, d), larger for nearer."""
    asked, stored = np.asarray(queries, dtype=np.float64), np.asarray(vectors, dtype=np.float64)
    if metric == "l2":
        # row by row from the differences: the expanded square cancels to nothing for near vectors
        return np.array([-np.sqrt(((stored - row) ** 2).sum(axis=1)) for row in asked]).reshape(
            len(asked), len(stored)
        )
    if metric == "cosine":
        asked = asked / np.linalg.norm(asked, axis=1, keepdims=True)
        stored = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    return asked @ stored.T


def kept(manifest: Manifest, vectors: ArrayLike) -> Doubles:
    """The vectors (n, d) as a collection of this manifest keeps them: reduced, rounded to half."""
    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    if manifest.reduction is not None:
        matrix = manifest.reduction.apply(matrix)
    if manifest.layout.element == "float16":
        return matrix.astype(np.float16).astype(np.float64)
    return matrix.astype(np.float64)


def tolerance(manifest: Manifest) -> float:
    """How far a store's score may be from the oracle's, relative to the larger of 1 and the score."""
    return HALF_TOLERANCE if manifest.layout.element == "float16" else TOLERANCE


def answer(
    query: ArrayLike,
    *,
    ids: Sequence[str],
    vectors: ArrayLike,
    metric: Metric,
    k: int,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    where: Mapping[str, Any] | None = None,
) -> Answer:
    """The `k` nearest of the records that match `where`, for one query (d,)."""
    row = scores(np.asarray(query)[None, :], vectors, metric=metric)[0]
    allowed = list(range(len(ids)))
    if where is not None:
        condition = parse(where)
        assert metadata is not None, "a filter needs the metadata"
        allowed = [position for position in allowed if matches(condition, metadata[position])]
    ranked = sorted(allowed, key=lambda position: (-row[position], ids[position]))
    return Answer([ids[position] for position in ranked[:k]], {ids[p]: float(row[p]) for p in ranked})


def assert_right(hits: Sequence[Hit], expected: Answer, *, tolerance: float = TOLERANCE) -> None:
    """Fail unless `hits` is a right answer: as many, near enough, ordered, with true scores."""
    assert len(hits) == len(expected.ids), (
        f"expected {len(expected.ids)} hits, got {len(hits)}; first expected {expected.ids[:3]}"
    )
    assert_scores(hits, expected, tolerance=tolerance)
    if not hits:
        return
    last = expected.scores[expected.ids[-1]]
    floor = last - slack(last, tolerance)
    for hit in hits:
        assert expected.scores[hit.id] >= floor, (
            f"{hit.id!r} is among the hits with {expected.scores[hit.id]}, the last of them must have {last}"
        )


def assert_scores(hits: Sequence[Hit], expected: Answer, *, tolerance: float = TOLERANCE) -> None:
    """Fail unless every hit may be there, occurs once, has its true score, and they are in order."""
    assert len({hit.id for hit in hits}) == len(hits), "a record is there twice"
    for hit in hits:
        assert hit.id in expected.scores, f"{hit.id!r} is not there, or does not match the filter"
        true = expected.scores[hit.id]
        assert abs(hit.score - true) <= slack(true, tolerance), f"{hit.id!r}: score {hit.score}, true {true}"
    given = [hit.score for hit in hits]
    assert given == sorted(given, reverse=True), "hits are not in the order of their scores"


def slack(score: float, tolerance: float) -> float:
    """How far from `score` another one may be and count as the same."""
    return tolerance * max(1.0, abs(score))


def recall(hits: Sequence[Hit], expected: Answer) -> float:
    """Share of the true nearest that were found; a hit as near as the last of them counts."""
    if not expected.ids:
        return 1.0
    last = expected.scores[expected.ids[-1]]
    floor = last - slack(last, 1e-6)
    return min(1.0, sum(expected.scores[hit.id] >= floor for hit in hits) / len(expected.ids))


def rows(batch: Batch) -> dict[str, tuple[bytes, str | None, dict[str, Any]]]:
    """A batch by id: the vector's bytes, document, metadata; to compare content with `==`."""
    return {
        name: (batch.vectors[row].tobytes(), batch.documents[row], dict(batch.metadata[row]))
        for row, name in enumerate(batch.ids)
    }


def inventory(parts: Iterable[Sequence[tuple[str, bytes | None]]]) -> dict[str, bytes | None]:
    """The digests of an inventory by id; fails where a record comes twice, or too many at a time."""
    found: dict[str, bytes | None] = {}
    for part in parts:
        assert len(part) <= PART, f"{len(part):,} records came at a time; memory should hold a few thousand"
        for name, digest in part:
            assert name not in found, f"{name!r} comes twice"
            found[name] = digest
    return found
