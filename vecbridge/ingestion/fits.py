"""Whether vectors that a source brings fit the collection that they are for."""

from __future__ import annotations

import numpy as np

from .. import checks
from ..errors import DimensionMismatch, InputError
from ..types import Metric, Space
from .records import Record, Reject
from .rejects import Rejects


class Fits:
    """Called with a record: whether it has a vector that the collection can hold; if not, it is rejected.

    `space`: the collection's; where there is none yet, the first vector gives its dimension. Raises
    DimensionMismatch, and what `Rejects.add` raises.
    """

    def __init__(self, space: Space | None, *, metric: Metric, rejects: Rejects) -> None:
        self._space = space
        self._metric = metric
        self._rejects = rejects

    def __call__(self, record: Record) -> bool:
        vector = record.vector
        if vector is None:
            reason = "expected a vector, got text alone; choose an embedder for it"
            self._rejects.add(Reject(record.origin, reason, record.id))
            return False
        space = self._space = self._space or Space(len(vector), self._metric)
        if len(vector) == space.dim:
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                square = vector.dot(vector)
            # far from every limit of `checks.vectors`, which takes ten times as long for a single row
            if 1e-37 < square < 1e37:
                return True
        try:
            checks.vectors(vector[None, :], space=space, what="the vector")
        except DimensionMismatch as error:
            # not one vector is wrong but the source as a whole
            raise DimensionMismatch(f"{record.origin}: {error}") from None
        except InputError as error:
            self._rejects.add(Reject(record.origin, str(error), record.id), error=error)
            return False
        return True
