"""Whether a filtered search goes through the index or reads every row.

PostgreSQL cannot tell, as it knows nothing of what is inside the metadata.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...manifest import Manifest
from ...sizes import PAGE, row_bytes, vector_bytes
from ...speeds import ROUGH
from .sql import indexed, scanned

LARGEST = 300_000  # rows; reading more takes above 0.3 s, for which the index gives up or finds enough

# Seconds for each row with metadata of three keys, one query at a time on two shared cores of a 2024 server,
# PostgreSQL 18.4 and pgvector 0.8.5, all in memory: within a factor of two, as `speeds.ROUGH` is. Measured:
# filter 0.65 to 1.4 us, and 0.05 to 0.1 us for each operand of $in; hnsw 5 to 12 us (float32 256), 5 to 10 us
# (bit 1,024), 11 to 40 us (float16 3,584); ivfflat 2.1 to 2.8 us (float32 256).
_FILTER, _OPERAND = 1e-6, 0.08e-6
_VISIT = {"hnsw": (5e-6, 2e-9), "ivfflat": (1.5e-6, 0.7e-9)}  # a row passed by, and each byte of its vector
_CLEARLY = 1.5  # times dearer than the exact search, which also finds all


@dataclass(frozen=True, slots=True)
class Probe:
    """Of a sample that is `fraction` of a table: rows `seen`, and how many of them are `matching`."""

    fraction: float
    seen: int
    matching: int

    @property
    def rows(self) -> float:
        """Rows of the table."""
        return self.seen / self.fraction

    @property
    def share(self) -> float:
        """Share of rows that match; never 0, as what a sample lacks may be elsewhere."""
        return (self.matching + 0.5) / (self.seen + 1)


def exact_is_cheaper(manifest: Manifest, probe: Probe, *, k: int, candidates: int, operands: int) -> bool:
    """Whether reading every row costs clearly less than following the index to `candidates` that match.

    `operands`: how many values the filter compares with.
    """
    index, layout = indexed(manifest), manifest.layout
    assert index is not None
    row, value = row_bytes(layout, manifest.stored_dim), vector_bytes(layout.element, manifest.stored_dim)
    rate = ROUGH["pgvector"].scans["beside" if row.beside and not layout.inline else "inline"]
    test = _FILTER + _OPERAND * operands
    exact = probe.rows * (test + probe.share * rate.seconds(1, value))
    passing, byte = _VISIT[index.kind]
    visit = (
        passing
        + byte * vector_bytes(index.element, layout.index_dim(manifest.space.dim))
        + _OPERAND * operands
    )
    visited = candidates / probe.share
    most = probe.rows
    if index.kind == "hnsw":
        most = min(most, scanned(candidates))
    else:
        visited = max(visited, probe.rows * min(max(index.probes, 1) / max(index.lists, 1), 1.0))
    visited = min(visited, most)
    # where the index gives up with fewer than k, the exact search follows
    lost = exact if visited * probe.share < k else 0.0
    return visited * visit + lost > _CLEARLY * exact


def sample(operands: int) -> int:
    """Rows for a probe to look at: 500, about 1 ms with its round trip; fewer where each takes longer."""
    return max(round(500 * _FILTER / (_FILTER + _OPERAND * operands)), 1)


def density(manifest: Manifest) -> float:
    """Rows on a page of the table, without their documents and metadata."""
    return PAGE / row_bytes(manifest.layout, manifest.stored_dim).heap
