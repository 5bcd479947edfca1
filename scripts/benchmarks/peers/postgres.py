"""Adapters for pgvector, on the server that ours uses, with the same kind of index and search width."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import psycopg
from numpy.typing import NDArray

from ..bench import EF
from ..rows import K, Rows
from . import frameworks

Floats = NDArray[np.float32]
TABLE = "peer"
# what our own searches set, too
OPTIONS = f"-c hnsw.ef_search={EF} -c enable_seqscan=off -c jit=off"


class _Postgres:
    """What the three have in common: a table, its index, lists of floats."""

    table = TABLE

    def __init__(self, url: str) -> None:
        self.url = f"{url}{'&' if '?' in url else '?'}options={quote(OPTIONS)}"
        self._drop()

    def _drop(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"DROP TABLE IF EXISTS {self.table}")

    def _address(self, driver: str) -> str:
        return self.url.replace("postgresql://", f"postgresql+{driver}://", 1)

    def index(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                f"CREATE INDEX ON {self.table} USING hnsw (embedding vector_cosine_ops) "
                f"WITH (m = 16, ef_construction = 64)"
            )
            connection.execute(f"VACUUM ANALYZE {self.table}")

    def ask(self, query: Floats) -> Any:
        return query.tolist()


class langchain_postgres(_Postgres):  # noqa: N801 -- named as its package is
    """PGVectorStore, which langchain-postgres recommends."""

    def __init__(self, url: str, folder: Path, dim: int) -> None:
        from langchain_core.embeddings import FakeEmbeddings
        from langchain_postgres import Column, PGEngine, PGVectorStore

        super().__init__(url)
        self._engine = PGEngine.from_connection_string(url=self._address("psycopg"))
        # its own ids are of the type uuid
        self._engine.init_vectorstore_table(
            TABLE, dim, id_column=Column("langchain_id", "TEXT", nullable=False)
        )
        self._store = PGVectorStore.create_sync(self._engine, FakeEmbeddings(size=dim), TABLE)

    def prepare(self, rows: Rows) -> Any:
        return rows.documents, rows.vectors.tolist(), rows.metadata, rows.ids

    def add(self, prepared: Any) -> object:
        texts, vectors, metadata, ids = prepared
        return self._store.add_embeddings(texts, vectors, metadatas=metadata, ids=ids)

    def search(self, asked: Any) -> list[str]:
        found = self._store.similarity_search_with_score_by_vector(asked, k=K)
        return [str(document.id) for document, _ in found]

    def close(self) -> None:
        self._engine._run_as_sync(self._engine.close())
        self._drop()


class llama_index_vector_stores_postgres(_Postgres):  # noqa: N801 -- named as its package is
    """PGVectorStore of LlamaIndex, which puts data_ before the name of its table."""

    table = f"data_{TABLE}"

    def __init__(self, url: str, folder: Path, dim: int) -> None:
        from llama_index.vector_stores.postgres import PGVectorStore

        super().__init__(url)
        self._store = PGVectorStore.from_params(
            connection_string=self._address("psycopg2"),
            async_connection_string=self._address("asyncpg"),
            table_name=TABLE,
            embed_dim=dim,
            use_jsonb=True,
        )
        self._store._initialize()

    def prepare(self, rows: Rows) -> Any:
        return frameworks.nodes(rows)

    def add(self, prepared: Any) -> object:
        return self._store.add(prepared)

    def ask(self, query: Floats) -> Any:
        from llama_index.core.vector_stores.types import VectorStoreQuery

        return VectorStoreQuery(query_embedding=query.tolist(), similarity_top_k=K)

    def search(self, asked: Any) -> list[str]:
        return list(self._store.query(asked).ids or [])

    def close(self) -> None:
        self._store._engine.dispose()
        self._drop()


class pgvector_haystack(_Postgres):  # noqa: N801 -- named as its package is
    """PgvectorDocumentStore of Haystack."""

    def __init__(self, url: str, folder: Path, dim: int) -> None:
        from haystack.utils import Secret
        from haystack_integrations.document_stores.pgvector import PgvectorDocumentStore

        super().__init__(url)
        self._store = PgvectorDocumentStore(
            connection_string=Secret.from_token(self.url),
            create_extension=False,
            table_name=TABLE,
            embedding_dimension=dim,
            recreate_table=True,
        )
        self._store._ensure_db_setup()

    def prepare(self, rows: Rows) -> Any:
        return frameworks.documents(rows)

    def add(self, prepared: Any) -> object:
        return self._store.write_documents(prepared)

    def search(self, asked: Any) -> list[str]:
        found = self._store._embedding_retrieval(asked, top_k=K)
        return [document.id for document in found]

    def close(self) -> None:
        connection = self._store._connection
        if connection is not None:
            connection.close()
        self._drop()
