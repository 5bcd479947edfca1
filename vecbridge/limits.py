"""What a backend at one version can store and index: data with sources, and the sentence when it cannot."""

from __future__ import annotations

from dataclasses import dataclass

from .types import Layout, Space


@dataclass(frozen=True, slots=True)
class Limits:
    """What one backend at one version can store and index."""

    backend: str
    version: str

    def objection(self, space: Space, layout: Layout) -> str | None:
        """Why this layout cannot hold this space here, as one sentence with both numbers; None if it can."""
        raise NotImplementedError
