"""What an exact scan may be given: any values, few or many rows, some of them or all."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from vecbridge.types import Metric

METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")

components = st.one_of(
    st.integers(-2, 2).map(float),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([1e-45, 1e-38, 1e-31, 7.9e-31, 1e-20, 1e19, 1e30, 3.4e38, 3.4028235e38, -3.4028235e38]),
)


@st.composite
def scans(
    draw: st.DrawFn,
) -> tuple[Metric, NDArray[np.float32], NDArray[np.float32], int, NDArray[Any] | None]:
    """Metric, rows (n, d), queries (m, d), how many are asked for, and the positions to look at or None."""
    metric = draw(st.sampled_from(METRICS))
    dim = draw(st.integers(1, 5))
    rows = st.lists(components, min_size=dim, max_size=dim)
    matrix = np.array(draw(st.lists(rows, min_size=1, max_size=30)), dtype=np.float32)
    queries = np.array(draw(st.lists(rows, min_size=1, max_size=3)), dtype=np.float32)
    if metric == "cosine":
        # zero rows have no cosine; the front refuses them there
        matrix[~matrix.any(axis=1), 0] = 1
        queries[~queries.any(axis=1), 0] = 1
    k = draw(st.integers(1, len(matrix)))
    chosen = np.array(sorted(draw(st.sets(st.integers(0, len(matrix) - 1), min_size=1))))
    positions = draw(st.sampled_from([None, chosen]))
    return metric, matrix, queries, k if positions is None else min(k, len(positions)), positions
