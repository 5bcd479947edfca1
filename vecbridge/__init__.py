"""vecbridge: embeddings into vector stores, whatever their dimension."""

from ._version import __version__

__all__ = ["__version__"]
