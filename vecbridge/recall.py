"""Recall with its uncertainty: the share of the true neighbours found, as far as some queries can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# two-sided 95 % of the normal distribution
_Z = 1.959964


@dataclass(frozen=True, slots=True)
class Recall:
    """The mean over `queries` queries of the share of true neighbours found, with its 95 % interval."""

    mean: float
    low: float
    high: float
    queries: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def mean_recall(shares: Sequence[float], k: int) -> Recall:
    """The mean of `shares`, one for each query and each of k neighbours, with its interval.

    Wilson's score interval, with as many trials as would scatter like these shares: at least one for each
    query, since the neighbours of a query are found or missed together, at most one for each neighbour.
    Unlike mean ± error it does not claim certainty where all shares are 1. Source: E. B. Wilson, Probable
    Inference, the Law of Succession, and Statistical Inference, JASA 22 (1927).
    Without any query the interval is 0 to 1.
    """
    queries = len(shares)
    if not queries:
        return Recall(1.0, 0.0, 1.0, 0)
    mean = math.fsum(shares) / queries
    spread = math.fsum((share - mean) ** 2 for share in shares)
    trials = float(queries)
    if queries > 1 and spread > 0:
        trials = min(max(mean * (1 - mean) * queries * (queries - 1) / spread, queries), queries * k)
    shift = _Z * _Z / trials
    centre = (mean + shift / 2) / (1 + shift)
    half = _Z * math.sqrt(mean * (1 - mean) / trials + shift / trials / 4) / (1 + shift)
    return Recall(mean, max(min(centre - half, mean), 0.0), min(max(centre + half, mean), 1.0), queries)
