"""Haystack: a DocumentStore that lies in any of vecbridge's stores, and the retriever that searches it."""

from .retriever import VecbridgeEmbeddingRetriever
from .store import VecbridgeDocumentStore

__all__ = ["VecbridgeDocumentStore", "VecbridgeEmbeddingRetriever"]
