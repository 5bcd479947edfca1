"""Adapters for Qdrant, which talk to the sink of `client`: vectors are lists, as these want them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient

from ..rows import Rows
from . import frameworks

NAME = "bench"


class _Qdrant:
    def __init__(self, url: str, folder: Path, dim: int) -> None:
        self.host, _, port = url.partition(":")
        self.port, self.dim = int(port), dim
        self.client = QdrantClient(
            host=self.host, grpc_port=self.port, prefer_grpc=True, timeout=60, check_compatibility=False
        )

    def index(self) -> None:
        raise NotImplementedError("the sink keeps nothing that an index could be made of")

    def ask(self, query: Any) -> Any:
        raise NotImplementedError("the sink keeps nothing that could be found")

    def search(self, asked: Any) -> list[str]:
        raise NotImplementedError("the sink keeps nothing that could be found")

    def close(self) -> None:
        self.client.close()


class langchain_qdrant(_Qdrant):  # noqa: N801 -- named as its package is
    """QdrantVectorStore, with an embedder that only hands over what was prepared."""

    def prepare(self, rows: Rows) -> Any:
        from langchain_core.embeddings import Embeddings
        from langchain_qdrant import QdrantVectorStore

        vectors = dict(zip(rows.documents, rows.vectors.tolist(), strict=True))

        class Known(Embeddings):
            def embed_documents(self, texts: list[str]) -> list[list[float]]:
                return [vectors[text] for text in texts]

            def embed_query(self, text: str) -> list[float]:
                return vectors[text]

        store = QdrantVectorStore(
            self.client, NAME, Known(), validate_embeddings=False, validate_collection_config=False
        )
        return store, rows

    def add(self, prepared: Any) -> object:
        store, rows = prepared
        return store.add_texts(rows.documents, metadatas=rows.metadata, ids=rows.ids)


class llama_index_vector_stores_qdrant(_Qdrant):  # noqa: N801 -- named as its package is
    """QdrantVectorStore of LlamaIndex."""

    def __init__(self, url: str, folder: Path, dim: int) -> None:
        from llama_index.vector_stores.qdrant import QdrantVectorStore

        super().__init__(url, folder, dim)
        self._store = QdrantVectorStore(NAME, client=self.client)

    def prepare(self, rows: Rows) -> Any:
        return frameworks.nodes(rows)

    def add(self, prepared: Any) -> object:
        return self._store.add(prepared)


class qdrant_haystack(_Qdrant):  # noqa: N801 -- named as its package is
    """QdrantDocumentStore of Haystack, which replaces what is there instead of looking for it."""

    def __init__(self, url: str, folder: Path, dim: int) -> None:
        from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

        super().__init__(url, folder, dim)
        self._store = QdrantDocumentStore(
            host=self.host,
            grpc_port=self.port,
            prefer_grpc=True,
            index=NAME,
            embedding_dim=dim,
            progress_bar=False,
            client_kwargs={"check_compatibility": False},
        )

    def prepare(self, rows: Rows) -> Any:
        return frameworks.documents(rows)

    def add(self, prepared: Any) -> object:
        from haystack.document_stores.types import DuplicatePolicy

        return self._store.write_documents(prepared, policy=DuplicatePolicy.OVERWRITE)
