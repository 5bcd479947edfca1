"""Sources in, collections out: read, embed, store, index, measure."""

from ..embedders import Embedder, load
from .pipeline import ingest
from .readers import read
from .records import Document, Origin, Record, Reject
from .summary import Summary

__all__ = ["Document", "Embedder", "Origin", "Record", "Reject", "Summary", "ingest", "load", "read"]
