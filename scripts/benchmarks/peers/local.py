"""Libraries that search in this process, each with the k, the metric and the graph that ours has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bench import EF
from ..rows import K, Rows

Floats = NDArray[np.float32]


class _Memory:
    """One matrix in memory; ids are row numbers of it."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.matrix = np.empty((0, 0), np.float32)

    def prepare(self, rows: Rows) -> Rows:
        return rows

    def add(self, prepared: Rows) -> None:
        self.ids, self.matrix = prepared.ids, prepared.vectors

    def index(self) -> None:
        return None

    def ask(self, query: Floats) -> Floats:
        # vectors are of unit length, so that the inner product ranks as the cosine does
        return query[None]

    def close(self) -> None:
        return None


class faiss_cpu(_Memory):  # noqa: N801 -- named as its package is
    """IndexFlatIP."""

    def __init__(self, url: str, folder: Path, dim: int) -> None:
        import faiss

        super().__init__()
        self._index = faiss.IndexFlatIP(dim)

    def index(self) -> None:
        self._index.add(self.matrix)

    def search(self, asked: Floats) -> list[str]:
        return self.search_many(asked)[0]

    def search_many(self, asked: Floats) -> list[list[str]]:
        _, found = self._index.search(asked, K)
        return [[self.ids[n] for n in row] for row in found.tolist()]


class usearch(_Memory):  # noqa: N801 -- named as its package is
    """Its exact search over a matrix."""

    def __init__(self, url: str, folder: Path, dim: int) -> None:
        from usearch.index import MetricKind, search

        super().__init__()
        self._search, self._metric = search, MetricKind.IP

    def search(self, asked: Floats) -> list[str]:
        found = self._search(self.matrix, asked[0], K, self._metric, exact=True)
        return [self.ids[n] for n in found.keys.tolist()]

    def search_many(self, asked: Floats) -> list[list[str]]:
        found = self._search(self.matrix, asked, K, self._metric, exact=True)
        return [[self.ids[n] for n in row] for row in found.keys.tolist()]


class lancedb:  # noqa: N801 -- named as its package is
    """A table without an index, which is searched by reading all of it."""

    def __init__(self, url: str, folder: Path, dim: int) -> None:
        import lancedb as lance
        import pyarrow as pa

        self._arrow = pa
        schema = pa.schema(
            [
                ("id", pa.string()),
                ("vector", pa.list_(pa.float32(), dim)),
                ("document", pa.string()),
                ("metadata", pa.string()),
            ]
        )
        self._table = lance.connect(str(folder)).create_table("peer", schema=schema)

    def prepare(self, rows: Rows) -> Any:
        pa = self._arrow
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.vectors.reshape(-1)), rows.vectors.shape[1])
        return pa.table(
            {
                "id": rows.ids,
                "vector": vectors,
                "document": rows.documents,
                "metadata": [json.dumps(entry) for entry in rows.metadata],
            }
        )

    def add(self, prepared: Any) -> object:
        return self._table.add(prepared)

    def index(self) -> None:
        # the parts that were added become one
        self._table.optimize()

    def ask(self, query: Floats) -> Floats:
        return query

    def search(self, asked: Floats) -> list[str]:
        columns = ["id", "document", "metadata", "_distance"]
        found = self._table.search(asked).distance_type("cosine").limit(K).select(columns).to_list()
        return [row["id"] for row in found]

    def close(self) -> None:
        return None


class chromadb:  # noqa: N801 -- named as its package is
    """A collection on disk, with a graph of the same width."""

    def __init__(self, url: str, folder: Path, dim: int) -> None:
        import chromadb as chroma

        settings = chroma.config.Settings(anonymized_telemetry=False)
        self._client = chroma.PersistentClient(path=str(folder), settings=settings)
        self._collection = self._client.create_collection(
            "peer",
            embedding_function=None,
            configuration={
                "hnsw": {"space": "cosine", "max_neighbors": 16, "ef_construction": 64, "ef_search": EF}
            },
        )

    def prepare(self, rows: Rows) -> Rows:
        return rows

    def add(self, prepared: Rows) -> None:
        # it takes no more at once
        for part in prepared.batches(1000):
            self._collection.add(
                ids=part.ids, embeddings=part.vectors, documents=part.documents, metadatas=part.metadata
            )

    def index(self) -> None:
        return None

    def ask(self, query: Floats) -> Floats:
        return query[None]

    def search(self, asked: Floats) -> list[str]:
        found = self._collection.query(query_embeddings=asked, n_results=K)
        return list(found["ids"][0])

    def close(self) -> None:
        self._client.clear_system_cache()
