"""vecbridge: embeddings into vector stores, whatever their dimension.

    import vecbridge

    print(vecbridge.plan(3584, rows=1_000_000, on="pgvector").explain())
    with vecbridge.connect("flat:./data") as store:
        papers = store.create("papers", dim=3584, model="bge-multilingual-gemma2")

Names load when they are first used: importing the package loads neither numpy nor a driver.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .adopting import Adoption
    from .copying import copy
    from .errors import RecallMissed, VecbridgeError
    from .evaluate import Report
    from .evidence import Evidence
    from .exporting import export_parquet
    from .importing import import_parquet
    from .ingestion import ingest
    from .limits import Limits
    from .manifest import Manifest
    from .measuring import measure
    from .planner import Plan, plan
    from .reembedding import reembed
    from .store import Collection, Store, connect
    from .tuning import Tuning
    from .types import Batch, Hit, Index, Layout, Shorten, Space

_HOME = {
    "Adoption": "adopting",
    "Batch": "types",
    "Collection": "store",
    "Evidence": "evidence",
    "Hit": "types",
    "Index": "types",
    "Layout": "types",
    "Limits": "limits",
    "Manifest": "manifest",
    "Plan": "planner",
    "RecallMissed": "errors",
    "Report": "evaluate",
    "Shorten": "types",
    "Space": "types",
    "Store": "store",
    "Tuning": "tuning",
    "VecbridgeError": "errors",
    "connect": "store",
    "copy": "copying",
    "export_parquet": "exporting",
    "import_parquet": "importing",
    "ingest": "ingestion",
    "measure": "measuring",
    "plan": "planner",
    "reembed": "reembedding",
}

__all__ = [
    "Adoption",
    "Batch",
    "Collection",
    "Evidence",
    "Hit",
    "Index",
    "Layout",
    "Limits",
    "Manifest",
    "Plan",
    "RecallMissed",
    "Report",
    "Shorten",
    "Space",
    "Store",
    "Tuning",
    "VecbridgeError",
    "__version__",
    "connect",
    "copy",
    "export_parquet",
    "import_parquet",
    "ingest",
    "measure",
    "plan",
    "reembed",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vecbridge' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
