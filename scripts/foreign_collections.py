"""The Qdrant collections that other libraries keep vectors in, made by those libraries, as JSON.

Called by scripts/foreign-collections. Each file has its origin, the vectors' parameters, and all points.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import UUID

from qdrant_client import QdrantClient, models

RECORDS: list[tuple[str, dict[str, Any]]] = [
    ("a heron waits", {"n": 1, "kind": "sea", "deep": {"tags": ["grey", "tall"]}, "draft": False}),
    ("the tide turns at dusk", {"n": 2, "kind": "sea", "score": 0.1, "draft": True}),
    ("stars over the dunes", {"n": 3, "kind": "sky", "score": 1.0}),
    ("salt on every rope", {"n": 4.0, "kind": None}),
    ("", {}),
]
TEXTS = [text for text, _ in RECORDS]
METADATA = [metadata for _, metadata in RECORDS]
IDS = [str(UUID(int=0x40008000000000000000 | n << 96)) for n in range(len(RECORDS))]
# short to print
VECTORS = [
    [round(((7 * n + 3 * dim) % 11 - 5) / 4 + 0.125 * (n == dim), 3) for dim in range(8)]
    for n in range(len(RECORDS))
]


def _sparse(texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
    return [[1, len(text) + 2] for text in texts], [[1.0, 0.5] for _ in texts]


def _langchain(*, hybrid: bool) -> QdrantClient:
    from langchain_core.embeddings import Embeddings
    from langchain_qdrant import QdrantVectorStore, RetrievalMode, SparseEmbeddings, SparseVector

    class Dense(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            # the library embeds a text of its own to learn the dimensions
            return [VECTORS[TEXTS.index(text) if text in TEXTS else 0] for text in texts]

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    class Sparse(SparseEmbeddings):
        def embed_documents(self, texts: list[str]) -> list[SparseVector]:
            pairs = zip(*_sparse(texts), strict=True)
            return [SparseVector(indices=indices, values=values) for indices, values in pairs]

        def embed_query(self, text: str) -> SparseVector:
            return self.embed_documents([text])[0]

    if hybrid:
        made = QdrantVectorStore.from_texts(
            TEXTS,
            Dense(),
            METADATA,
            ids=IDS,
            location=":memory:",
            collection_name="notes",
            retrieval_mode=RetrievalMode.HYBRID,
            sparse_embedding=Sparse(),
        )
        return made.client
    client = QdrantClient(":memory:")
    client.create_collection("notes", vectors_config=models.VectorParams(size=8, distance="Cosine"))
    QdrantVectorStore(client=client, collection_name="notes", embedding=Dense()).add_texts(
        TEXTS, METADATA, ids=IDS
    )
    return client


def _llama_index(*, hybrid: bool) -> QdrantClient:
    from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    client = QdrantClient(":memory:")
    more = {"enable_hybrid": True, "sparse_doc_fn": _sparse, "sparse_query_fn": _sparse} if hybrid else {}
    store = QdrantVectorStore("notes", client=client, **more)
    nodes = []
    for n, (id, (text, metadata), vector) in enumerate(zip(IDS, RECORDS, VECTORS, strict=True)):
        node = TextNode(id_=id, text=text, metadata=metadata, embedding=vector)
        if not hybrid:
            node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"doc-{n // 2}")
        nodes.append(node)
    store.add(nodes)
    return client


def _haystack() -> QdrantClient:
    from haystack import Document
    from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

    store = QdrantDocumentStore(":memory:", index="notes", embedding_dim=8, return_embedding=True)
    # the last one without a vector, which is legal there
    vectors = [*VECTORS[:-1], None]
    rows = enumerate(zip(RECORDS, vectors, strict=True))
    store.write_documents(
        [
            Document(id=f"h{n}", content=text, meta=metadata, embedding=vector)
            for n, ((text, metadata), vector) in rows
        ]
    )
    return store._client


def dump(client: QdrantClient, origin: str) -> str:
    """The collection with all its points."""
    params = client.get_collection("notes").config.params
    vectors, sparse = params.vectors, params.sparse_vectors
    points, _ = client.scroll("notes", limit=100, with_payload=True, with_vectors=True)
    made = {
        "origin": f"{origin}, by qdrant-client {version('qdrant-client')} in local mode",
        "vectors": {name: _plain(one) for name, one in vectors.items()}
        if isinstance(vectors, dict)
        else _plain(vectors),
        "points": [{"id": one.id, "payload": one.payload, "vector": one.vector} for one in points],
    }
    if sparse:
        made["sparse_vectors"] = {name: _plain(one) for name, one in sparse.items()}
    return json.dumps(made, indent=1, default=_plain) + "\n"


def _plain(model: Any) -> Any:
    return model.model_dump(mode="json", exclude_none=True)


def main() -> None:
    """Make and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--only", help="one of the files, without .json")
    asked = parser.parse_args()
    langchain = f"langchain-qdrant {version('langchain-qdrant')}, QdrantVectorStore"
    package = "llama-index-vector-stores-qdrant"
    llama_index = f"{package} {version(package)}, QdrantVectorStore.add"
    jobs: dict[str, tuple[str, Callable[[], QdrantClient]]] = {
        "langchain": (f"{langchain}.add_texts", lambda: _langchain(hybrid=False)),
        "langchain_hybrid": (
            f"{langchain}.from_texts, RetrievalMode.HYBRID",
            lambda: _langchain(hybrid=True),
        ),
        "llama_index": (llama_index, lambda: _llama_index(hybrid=False)),
        "llama_index_hybrid": (f"{llama_index}, enable_hybrid", lambda: _llama_index(hybrid=True)),
        "haystack": (
            f"qdrant-haystack {version('qdrant-haystack')}, QdrantDocumentStore.write_documents",
            _haystack,
        ),
    }
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name, (origin, make) in jobs.items():
        if asked.only in (None, name):
            (asked.folder / f"{name}.json").write_text(dump(make(), origin))
            print(f"{name}: {origin}", file=sys.stderr)


if __name__ == "__main__":
    main()
