"""Sources in, collections out: read, embed, store, index, measure."""

from .embedders import Embedder, load
from .pipeline import Summary, ingest
from .readers import read
from .records import Record

__all__ = ["Embedder", "Record", "Summary", "ingest", "load", "read"]
