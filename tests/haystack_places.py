"""Where Haystack's documents lie in tests. Import it before Haystack, which then reports nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from servers import quick_place

import vecbridge

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

PLACES = ("flat", "pgvector", "qdrant")


@contextmanager
def opened(scheme: str) -> Iterator[str]:
    """URL of a new place, which stays open meanwhile: an embedded server starts once, not for each store."""
    with TemporaryDirectory(prefix="vecbridge-", dir=quick_place()) as folder:
        url = f"{scheme}:{folder}/place"
        with vecbridge.connect(url):
            yield url
