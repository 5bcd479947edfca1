"""The tables that other libraries keep vectors in, made by those libraries and dumped as SQL.

Called by scripts/foreign-tables. Each library gets a database of its own, which is dropped afterwards; each
dump is SQL that any driver can execute in an empty database, with its origin at the top.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import numpy as np
import psycopg

TEXTS = ["a heron waits", "the tide turns", "rain on slate", "seven bells", "salt and rope"]
METADATA = [{"kind": kind, "n": n} for n, kind in enumerate(["bird", "sea", "sky", "sea", "sea"])]
IDS = [f"{n:08}-0000-4000-8000-000000000000" for n in range(1, len(TEXTS) + 1)]


def vectors(dim: int, rows: int = len(TEXTS)) -> list[list[float]]:
    """A few vectors that are short to print."""
    drawn = np.random.default_rng(dim).integers(-8, 9, size=(rows, dim)) / 8
    return [[float(value) for value in row] for row in drawn]


def _langchain_v1(url: str) -> None:
    from langchain_core.embeddings import DeterministicFakeEmbedding
    from langchain_postgres import PGVector

    for name, dim, some in (("tides", 8, slice(0, 3)), ("birds", 6, slice(3, 5))):
        store = PGVector(
            DeterministicFakeEmbedding(size=dim),
            connection=url.replace("postgresql:", "postgresql+psycopg:"),
            collection_name=name,
        )
        store.add_embeddings(
            TEXTS[some], vectors(dim)[some], metadatas=METADATA[some], ids=[f"{name}-{n}" for n in IDS[some]]
        )


def _langchain_v2(url: str) -> None:
    from langchain_core.embeddings import DeterministicFakeEmbedding
    from langchain_postgres import Column, PGEngine, PGVectorStore
    from langchain_postgres.v2.indexes import HNSWIndex

    engine = PGEngine.from_connection_string(url.replace("postgresql:", "postgresql+psycopg:"))
    engine.init_vectorstore_table(
        "notes", 8, metadata_columns=[Column("kind", "TEXT"), Column("n", "INTEGER")]
    )
    store = PGVectorStore.create_sync(
        engine, DeterministicFakeEmbedding(size=8), "notes", metadata_columns=["kind", "n"]
    )
    metadata = [{**one, "page": 1} for one in METADATA]
    store.add_embeddings(TEXTS, vectors(8), metadatas=metadata, ids=IDS)
    store.apply_vector_index(HNSWIndex(name="notes_hnsw"))


def _llama_index(url: str) -> None:
    from llama_index.core.schema import TextNode
    from llama_index.vector_stores.postgres import PGVectorStore

    for name, half in (("notes", False), ("halves", True)):
        store = PGVectorStore(
            connection_string=url.replace("postgresql:", "postgresql+psycopg2:"),
            async_connection_string=url.replace("postgresql:", "postgresql+asyncpg:"),
            table_name=name,
            embed_dim=8,
            use_jsonb=half,
            use_halfvec=half,
            hnsw_kwargs={"hnsw_m": 16, "hnsw_ef_construction": 64, "hnsw_ef_search": 40},
        )
        rows = zip(IDS, TEXTS, METADATA, vectors(8), strict=True)
        store.add(
            [
                TextNode(id_=id, text=text, metadata=metadata, embedding=vector)
                for id, text, metadata, vector in rows
            ]
        )


def _haystack(url: str) -> None:
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.document_stores.pgvector import PgvectorDocumentStore

    store = PgvectorDocumentStore(
        connection_string=Secret.from_token(url), embedding_dimension=8, search_strategy="hnsw"
    )
    rows = zip(IDS, TEXTS, METADATA, vectors(8), strict=True)
    documents = [
        Document(id=id, content=text, meta=metadata, embedding=vector) for id, text, metadata, vector in rows
    ]
    # without a vector, which is legal there
    documents.append(Document(id="bare", content="nothing yet", meta={}))
    store.write_documents(documents)


def _vecs(url: str) -> None:
    import vecs

    client = vecs.create_client(url)
    docs = client.get_or_create_collection("docs", dimension=8)
    docs.upsert(list(zip(IDS, vectors(8), METADATA, strict=True)))
    docs.create_index(measure=vecs.IndexMeasure.cosine_distance, method=vecs.IndexMethod.hnsw)
    client.disconnect()


_MASTRA = """
import { PgVector } from '@mastra/pg';
const { url, vectors, metadata, ids } = JSON.parse(process.env.FOREIGN);
const store = new PgVector({ id: 'foreign', connectionString: url });
const indexConfig = { type: 'hnsw' };
await store.createIndex({ indexName: 'notes', dimension: 8, metric: 'cosine', indexConfig });
await store.upsert({ indexName: 'notes', vectors, metadata, ids });
await store.upsert({ indexName: 'notes', vectors, metadata, ids, namespace: 'second' });
await store.disconnect();
"""


def mastra(node: Path) -> Callable[[str], None]:
    """Makes its tables with the library that npm put into a folder."""

    def make(url: str) -> None:
        script = node / "make.mjs"
        script.write_text(_MASTRA)
        given = {"url": url, "vectors": vectors(8), "metadata": METADATA, "ids": IDS}
        subprocess.run(
            ["node", script.name],
            cwd=node,
            env={**os.environ, "FOREIGN": json.dumps(given)},
            check=True,
            stdout=sys.stderr,
        )

    return make


def _release(node: Path) -> str:
    return json.loads((node / "node_modules/@mastra/pg/package.json").read_text())["version"]


def dump(url: str) -> str:
    """The whole database as statements, without what only psql understands, or what differs by server."""
    words = ["--inserts", "--no-owner", "--no-privileges", "--no-comments", "--no-tablespaces"]
    text = subprocess.run(
        ["pg_dump", *words, "--dbname", url], check=True, capture_output=True, text=True
    ).stdout
    text = re.sub(
        r"^(--.*|\\.*|SET .*|SELECT pg_catalog\.set_config.*|CREATE EXTENSION .*)\n", "", text, flags=re.M
    )
    # the ids that it draws by itself
    drawn = dict.fromkeys(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", text))
    for n, id in enumerate(id for id in drawn if id not in IDS):
        text = text.replace(id, str(UUID(int=0xC0_0000_4000_8000_0000_0000_0000 + n)))
    return re.sub(r"\n{2,}", "\n\n", text).strip() + "\n"


def main() -> None:
    """Make, dump and drop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="postgresql:// URL of a server with pgvector")
    parser.add_argument("folder", type=Path, help="where the dumps go")
    parser.add_argument("--node", type=Path, required=True, help="folder with @mastra/pg in node_modules")
    parser.add_argument("--only", help="one of the libraries")
    asked = parser.parse_args()
    jobs: dict[str, tuple[str, Callable[[str], None]]] = {
        "langchain_v1": (f"langchain-postgres {version('langchain-postgres')}, PGVector", _langchain_v1),
        "langchain_v2": (f"langchain-postgres {version('langchain-postgres')}, PGVectorStore", _langchain_v2),
        "llama_index": (
            f"llama-index-vector-stores-postgres {version('llama-index-vector-stores-postgres')}",
            _llama_index,
        ),
        "haystack": (f"pgvector-haystack {version('pgvector-haystack')}", _haystack),
        "vecs": (f"vecs {version('vecs')}", _vecs),
        "mastra": (f"@mastra/pg {_release(asked.node)}", mastra(asked.node)),
    }
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name, (origin, make) in jobs.items():
        if asked.only not in (None, name):
            continue
        database = f"foreign_{name}"
        url = urlunsplit(urlsplit(asked.url)._replace(path=f"/{database}"))
        with psycopg.connect(asked.url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {database} TEMPLATE template0")
        try:
            with psycopg.connect(url) as connection:
                connection.execute("CREATE EXTENSION vector")
                [release] = connection.execute(
                    "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
                ).fetchone()
            make(url)
            top = (
                f"-- Made by {origin}, on pgvector {release}; scripts/foreign-tables makes it again.\n"
                f"CREATE EXTENSION IF NOT EXISTS vector;\n\n"
            )
            (asked.folder / f"{name}.sql").write_text(top + dump(url))
            print(f"{name}: {origin}", file=sys.stderr)
        finally:
            with psycopg.connect(asked.url, autocommit=True) as connection:
                connection.execute(f"DROP DATABASE {database} WITH (FORCE)")


if __name__ == "__main__":
    main()
