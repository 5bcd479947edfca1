"""Vectors of real texts: the kinds are those of the tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent / "tests"))
import real_vectors

__all__ = ["real_vectors"]
