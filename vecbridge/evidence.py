"""What was measured on a sample of the user's own vectors, and what it says about a layout.

Measuring itself needs numpy and lies in `measuring`; this is the result as plain data, for planning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from .recall import Recall
from .types import Element, Layout, Shorten

# the most candidates that are re-ranked for each hit
MOST = 32
# a recall of 0 or 1 has no logit; this is half of one neighbour in a thousand
_EDGE = 5e-4


@dataclass(frozen=True, slots=True)
class Curve:
    """How much is found when candidates are looked for in one representation of the vectors.

    `element` and `shorten`: the representation, as in `Index`. `found[s - 1]`: recall@k where k × s
    candidates are re-ranked by their exact distance, s = 1 to `MOST`. `trend[s - 1]`: by how much the logit
    of that recall changes when there are twice as many rows, measured on parts of the sample. `rows`: how
    many vectors it was measured among; fewer than the evidence has where a PCA was measured on vectors that
    its fit had not seen.
    """

    element: Element
    shorten: Shorten | None
    found: tuple[Recall, ...]
    trend: tuple[float, ...]
    rows: int

    def at(self, oversample: int, doublings: float = 0.0) -> Recall:
        """Recall with so much oversampling; expected, not measured, where `rows` are doubled so often."""
        place = min(oversample, MOST) - 1
        one = self.found[place]
        if doublings <= 0:
            return one
        # each trend is measured by itself; but who re-ranks more finds all that was found with less
        expected = [
            _later(found, trend, doublings)
            for found, trend in zip(self.found[: place + 1], self.trend, strict=False)
        ]
        low, mean, high = (max(bounds) for bounds in zip(*expected, strict=True))
        return replace(one, mean=mean, low=low, high=high)

    def doublings(self, rows: int) -> float:
        """How often the rows that the curve was measured among must be doubled to make so many."""
        return _doublings(self.rows, rows)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Recall@k of every representation, measured on `queries` queries against exact search in `rows` vectors.

    Where some curves were measured among fewer vectors, each tells by its own `rows`; this is the largest.
    `held_out`: the queries are vectors of the sample that were left out of the rest; else they were given.
    `seed` chose them, and the sample where there was more. `nested`: prefix sizes that were measured.
    `spectrum`: the share of the sample's energy (sum of squares; for l2 of its variance) in each principal
    direction, the strongest first, as many as were computed. `mean_energy`: the share that lies in the
    direction of the common mean. `seconds`: how long it took.
    `asymmetric_bit`: signs compared with 8 bits of the query, as Qdrant does; the curve of "bit" among the
    others is of signs compared with signs, as pgvector does. `asymmetric()` changes one for the other.
    `at_the_door`: prefixes that are scaled back to the length of the whole vector, as those stored instead of
    it are; an index holds them as they are. Empty under cosine, where both are the same.
    """

    k: int
    rows: int
    queries: int
    dim: int
    held_out: bool
    seed: int
    curves: tuple[Curve, ...] = field(repr=False)
    spectrum: tuple[float, ...] = field(repr=False)
    mean_energy: float
    seconds: float
    asymmetric_bit: Curve | None = field(default=None, repr=False)
    at_the_door: tuple[Curve, ...] = field(default=(), repr=False)

    def asymmetric(self) -> Evidence:
        """The same evidence for a store that compares signs with 8 bits of the query."""
        one = self.asymmetric_bit
        if one is None:
            return self
        return replace(self, curves=tuple(one if old.element == one.element else old for old in self.curves))

    def curve(self, element: Element, shorten: Shorten | None) -> Curve | None:
        """What was measured of a representation; None where it was not.

        A shortened vector was measured in half precision, which stands for full precision, too.
        """
        if shorten is not None and element == "float32":
            element = "float16"
        for one in self.curves:
            if (one.element, one.shorten) == (element, shorten):
                return one
        return None

    def sizes(self, method: str) -> tuple[int, ...]:
        """The dimensions to which shortening by "truncate" or "pca" was measured, ascending."""
        return tuple(
            sorted({one.shorten.dim for one in self.curves if one.shorten and one.shorten.method == method})
        )

    def projection(self, dim: int) -> Shorten | None:
        """The PCA to so many dimensions that finds more: with or without the mean. None if not measured."""
        both = [
            one
            for one in self.curves
            if one.shorten and one.shorten.method == "pca" and one.shorten.dim == dim
        ]
        best = max(both, key=_area, default=None)
        return None if best is None else best.shorten

    def recall(self, layout: Layout, *, rows: int) -> Recall | None:
        """The recall@k to expect of a layout's representation; the graph's own loss comes on top.

        None where the representation was not measured. For more rows than it was measured among, the trend is
        followed. A collection that is shortened at the door finds what the short vectors find by themselves.
        """
        found = self._curve(layout)
        if found is None:
            return None
        curve, most = found
        if curve is _EXACT:
            return Recall(1.0, 1.0, 1.0, self.queries)
        return curve.at(min(layout.oversample, most), curve.doublings(rows))

    def enough(self, layout: Layout, target: float, *, rows: int) -> int | None:
        """The smallest oversampling with which a layout meets the target; None where none does."""
        found = self._curve(layout)
        if found is None:
            return None
        curve, most = found
        if curve is _EXACT:
            return 1
        doublings = curve.doublings(rows)
        for oversample in range(1, most + 1):
            if curve.at(oversample, doublings).mean >= target:
                return oversample
        return None

    def doublings(self, rows: int) -> float:
        """How often the sample's rows must be doubled to make so many."""
        return _doublings(self.rows, rows)

    def _curve(self, layout: Layout) -> tuple[Curve, int] | None:
        """The curve of a layout's representation, and the largest oversampling that helps it."""
        index = layout.index
        if layout.shorten is not None:
            # the whole vectors are gone: re-ranking on the short ones brings nothing back
            own = (one for one in self.at_the_door if one.shorten == layout.shorten)
            curve = next(own, None) or self.curve("float16", layout.shorten)
            return None if curve is None else (curve, 1)
        element, shorten = (index.element, index.shorten) if index else (layout.element, None)
        if element == "float32" and shorten is None:
            return _EXACT, MOST
        curve = self.curve(element, shorten)
        if curve is None:
            return None
        # re-ranking is as exact as what is stored: a float16 index over float16 vectors gains nothing by it
        return curve, 1 if index is None or (layout.element == element and shorten is None) else MOST

    def to_dict(self) -> dict[str, Any]:
        """The evidence ready for JSON; recall at some oversamplings, as text keys."""
        return {
            "k": self.k,
            "rows": self.rows,
            "queries": self.queries,
            "held_out": self.held_out,
            "seed": self.seed,
            "mean_energy": self.mean_energy,
            "seconds": self.seconds,
            "recall": [
                {
                    "element": one.element,
                    "rows": one.rows,
                    "shorten": None
                    if one.shorten is None
                    else {
                        "method": one.shorten.method,
                        "dim": one.shorten.dim,
                        "centred": one.shorten.centred,
                    },
                    "oversampling": {
                        str(size): {"mean": found.mean, "low": found.low, "high": found.high}
                        for size in SHOWN
                        for found in (one.found[size - 1],)
                    },
                }
                for one in self.curves
            ],
        }


# oversamplings that tables and JSON show
SHOWN = (1, 2, 4, 8, 16, 32)
_EXACT = Curve("float32", None, (), (), 0)


def _area(curve: Curve) -> float:
    return sum(one.mean for one in curve.found)


def _doublings(before: int, rows: int) -> float:
    return max(math.log2(max(rows, 1) / max(before, 1)), 0.0)


def _later(found: Recall, trend: float, doublings: float) -> tuple[float, float, float]:
    """The bounds of a recall and its mean in between, ascending, when rows have doubled so often."""
    if trend >= 0:
        # more rows never make the task easier
        return found.low, found.mean, found.high
    shift = trend * doublings
    return _shifted(found.low, shift), _shifted(found.mean, shift), _shifted(found.high, shift)


def _shifted(share: float, shift: float) -> float:
    kept = min(max(share, _EDGE), 1 - _EDGE)
    return 1 / (1 + math.exp(-(math.log(kept / (1 - kept)) + shift)))
