"""The DocumentStore: Haystack's calls, translated."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from haystack.core.serialization import default_from_dict, default_to_dict
from haystack.dataclasses import Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.utils import Secret

from ...errors import InputError
from ...planner import DEFAULT_ROWS
from ...store import Place
from ...tuning import Tuning
from ...types import FieldKind, Metric
from . import fields
from .documents import documents as checked
from .filters import condition
from .pair import Pair


class VecbridgeDocumentStore:
    """Haystack documents in a vecbridge collection: a folder, PostgreSQL with pgvector, or Qdrant.

    It connects when it is first used, opens the collection if there is one, and makes one when the first
    embedding is written. A collection that other tools made can be opened, too: `content` is its documents,
    `meta` its metadata.

    Documents without an embedding lie in a second collection, NAME-unembedded, which is made when the first
    of them is written. Every call but retrieval looks at both. A document that is written again with an
    embedding goes into the first collection and is then removed from the second: a crash between leaves it in
    both, and the one in the first is the one that is read.

    A call checks all that it is given before it writes any of it. What it writes to one collection is one
    transaction. FAIL and SKIP look first and write then, which threads of one store do one after the other;
    of two processes that write the same id at the same moment, both may find it free, and the later stays.
    """

    def __init__(
        self,
        url: Secret | str,
        *,
        name: str = "documents",
        embedding_dimension: int | None = None,
        metric: Metric | None = None,
        model: str | None = None,
        rows: int = DEFAULT_ROWS,
        filterable: dict[str, FieldKind] | None = None,
        return_embedding: bool = True,
    ) -> None:
        """Nothing is connected yet.

        `url`: as `vecbridge.connect` takes it; a Secret where it holds a password or a key. `name`: the
        collection. `embedding_dimension`: that of the first embedding written, if not given. `metric`: cosine
        where a collection is made, if not given. `model`: what makes the embeddings. An existing collection
        of another dimension, metric or model is refused. `rows`: how many documents to plan a new collection
        for. `filterable`: metadata fields that Qdrant shall index, as {"year": "number"}. For a layout of
        another kind, make the collection with vecbridge, and open it here. `return_embedding`: whether
        `filter_documents` reads embeddings. Raises InputError.
        """
        self.url = url
        self.name = name
        self.embedding_dimension = embedding_dimension
        self.metric = metric
        self.model = model
        self.rows = rows
        self.filterable = filterable
        self.return_embedding = return_embedding
        self._writing = threading.Lock()
        self._pair = Pair(
            self._resolved,
            name=name,
            dim=embedding_dimension,
            metric=metric,
            model=model,
            rows=rows,
            filterable=filterable,
        )

    def _resolved(self) -> str:
        url = self.url.resolve_value() if isinstance(self.url, Secret) else self.url
        if not isinstance(url, str):
            raise InputError("expected a store URL in the variable of the Secret, got none; set the variable")
        return url

    def __repr__(self) -> str:
        return f"<VecbridgeDocumentStore {self.name}>"

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes the store from. Raises InputError where the URL may hold a secret."""
        url = self.url
        if isinstance(url, str) and Place(url).url != url:
            raise InputError(
                "expected a URL without password, key and options to write into a pipeline, got one that has "
                'some; keep it in the environment: url=Secret.from_env_var("VECBRIDGE_URL")'
            )
        return default_to_dict(
            self,
            url=url.to_dict() if isinstance(url, Secret) else url,
            name=self.name,
            embedding_dimension=self.embedding_dimension,
            metric=self.metric,
            model=self.model,
            rows=self.rows,
            filterable=self.filterable,
            return_embedding=self.return_embedding,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The store that `to_dict` described. A Secret is looked up when the store is first used."""
        return default_from_dict(cls, data)

    def close(self) -> None:
        """Give back connections, files and locks. The next call opens them again."""
        self._pair.close()

    def build_index(self) -> Tuning | None:
        """Build the collection's index, or repair it; call it once the documents are loaded.

        Searches are right without it, and slower. See `vecbridge.Collection.build_index`.
        """
        main = self._pair.main()
        return None if main is None else main.build_index()

    def count_documents(self) -> int:
        """Number of documents."""
        return self._pair.count()

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The documents that match, in no promised order; all of them without filters.

        Raises haystack.errors.FilterError for a filter with a mistake in it.
        """
        return list(self._pair.scan(condition(filters), embeddings=self.return_embedding))

    def _metas(self, filters: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        return (one.meta for one in self._pair.scan(condition(filters), embeddings=False))

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """How many documents were written. NONE means FAIL.

        FAIL writes nothing where one of the ids is there already, or given twice. SKIP leaves out those that
        are there; of an id given twice the first is written. OVERWRITE replaces; of an id given twice the
        last is written, and the number returned is that of the documents given.

        Raises DuplicateDocumentError, and before anything is written DimensionMismatch, VectorError,
        MetadataError, InputError, all of them ValueError; StoreError.
        """
        given = checked(documents)
        with self._writing:
            wanted = self._admitted(given, policy)
            if wanted:
                self._pair.put(wanted)
        return len(given) if policy is DuplicatePolicy.OVERWRITE else len(wanted)

    def _admitted(self, given: Sequence[Document], policy: DuplicatePolicy) -> list[Document]:
        """What is to be written, each id once. Raises DuplicateDocumentError."""
        if policy is DuplicatePolicy.OVERWRITE:
            return list({one.id: one for one in given}.values())
        once: dict[str, Document] = {}
        twice: list[str] = []
        for one in given:
            if one.id in once:
                twice.append(one.id)
            else:
                once[one.id] = one
        there = self._pair.present(list(once))
        if policy is DuplicatePolicy.SKIP:
            return [one for id, one in once.items() if id not in there]
        if there:
            raise DuplicateDocumentError(
                f"{len(there)} of {len(given)} documents are there already, {_some(sorted(there))}; nothing "
                f"was written; write with DuplicatePolicy.SKIP or OVERWRITE"
            )
        if twice:
            raise DuplicateDocumentError(
                f"of {len(given)} documents some have the same id, {_some(twice)}; nothing was written"
            )
        return list(given)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Remove documents; ids that are not there are no error."""
        with self._writing:
            self._pair.remove(list(document_ids))

    def delete_all_documents(self, recreate_collection: bool = False) -> None:
        """Remove all documents.

        `recreate_collection`: drop the collections, so that the next write makes new ones, possibly for
        another dimension; who has them open elsewhere has to open them again. Without, they stay, empty.
        """
        with self._writing:
            if recreate_collection:
                self._pair.drop()
            else:
                self._pair.empty()

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Remove the documents that match; returns how many did. Raises FilterError, also for no filter."""
        with self._writing:
            ids = self._ids(filters, "delete_all_documents() removes all")
            self._pair.remove(ids)
        return len(ids)

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Put `meta` over the meta of the documents that match; returns how many did.

        What another process writes of them meanwhile may be lost. Raises FilterError, also for no filter;
        MetadataError; InputError where embeddings were shortened when they were stored.
        """
        with self._writing:
            ids = self._ids(filters, "name the documents by one")
            self._pair.amend(ids, meta)
        return len(ids)

    def _ids(self, filters: Mapping[str, Any], instead: str) -> list[str]:
        if not filters:
            raise FilterError(f"expected a filter, got none; {instead}")
        return [one.id for one in self._pair.scan(condition(filters), embeddings=False)]

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """Number of documents that match."""
        if not filters:
            return self.count_documents()
        return sum(1 for _ in self._metas(filters))

    def count_unique_metadata_by_filter(
        self, filters: dict[str, Any], metadata_fields: list[str]
    ) -> dict[str, int]:
        """For each of the fields, how many different values the documents that match have in it."""
        found: dict[str, dict[str, Any]] = {fields.plain(field): {} for field in metadata_fields}
        for meta in self._metas(filters):
            for field, values in found.items():
                values.update(fields.unique([fields.lookup(meta, field)]))
        return {field: len(values) for field, values in found.items()}

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """For each field that occurs, {"type": …}: keyword, int, float or boolean."""
        return fields.kinds(self._metas())

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """The smallest ("min") and largest ("max") value of a field; None where there is none to compare."""
        return fields.bounds(fields.lookup(meta, metadata_field) for meta in self._metas())

    def get_metadata_field_unique_values(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """A page of the different values of a field, sorted as text, and how many there are in all.

        `search_term`: only values whose text contains it, whatever the case.
        """
        values = (fields.lookup(meta, metadata_field) for meta in self._metas(filters))
        return fields.page(values, search_term=search_term, from_=from_, size=size)

    def embedding_retrieval(
        self,
        query_embedding: list[float],
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        scale_score: bool = False,
        return_embedding: bool = False,
    ) -> list[Document]:
        """The `top_k` nearest documents that match, nearest first; as many whenever there are as many.

        `score`: larger for nearer, under each metric: cosine similarity, inner product, negated Euclidean
        distance. `scale_score`: brought into 0 to 1, by (1 + s)/2, 1/(1 + exp(-s/100)) and 1/(1 - s).
        Raises FilterError, DimensionMismatch, InputError.
        """
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
            raise InputError(f"expected top_k of 0 or more, got {top_k}")
        found = self._pair.nearest(
            query_embedding, k=top_k, condition=condition(filters), embeddings=return_embedding
        )
        main = self._pair.main()
        if not scale_score or main is None:
            return found
        return [replace(one, score=_scaled(one.score or 0.0, main.space.metric)) for one in found]

    async def count_documents_async(self) -> int:
        """As `count_documents`, in a thread."""
        return await asyncio.to_thread(self.count_documents)

    async def filter_documents_async(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """As `filter_documents`, in a thread."""
        return await asyncio.to_thread(self.filter_documents, filters)

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """As `write_documents`, in a thread."""
        return await asyncio.to_thread(self.write_documents, documents, policy)

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """As `delete_documents`, in a thread."""
        await asyncio.to_thread(self.delete_documents, document_ids)

    async def delete_all_documents_async(self, recreate_collection: bool = False) -> None:
        """As `delete_all_documents`, in a thread."""
        await asyncio.to_thread(self.delete_all_documents, recreate_collection)

    async def delete_by_filter_async(self, filters: dict[str, Any]) -> int:
        """As `delete_by_filter`, in a thread."""
        return await asyncio.to_thread(self.delete_by_filter, filters)

    async def update_by_filter_async(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """As `update_by_filter`, in a thread."""
        return await asyncio.to_thread(self.update_by_filter, filters, meta)

    async def count_documents_by_filter_async(self, filters: dict[str, Any]) -> int:
        """As `count_documents_by_filter`, in a thread."""
        return await asyncio.to_thread(self.count_documents_by_filter, filters)

    async def count_unique_metadata_by_filter_async(
        self, filters: dict[str, Any], metadata_fields: list[str]
    ) -> dict[str, int]:
        """As `count_unique_metadata_by_filter`, in a thread."""
        return await asyncio.to_thread(self.count_unique_metadata_by_filter, filters, metadata_fields)

    async def get_metadata_fields_info_async(self) -> dict[str, dict[str, str]]:
        """As `get_metadata_fields_info`, in a thread."""
        return await asyncio.to_thread(self.get_metadata_fields_info)

    async def get_metadata_field_min_max_async(self, metadata_field: str) -> dict[str, Any]:
        """As `get_metadata_field_min_max`, in a thread."""
        return await asyncio.to_thread(self.get_metadata_field_min_max, metadata_field)

    async def get_metadata_field_unique_values_async(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """As `get_metadata_field_unique_values`, in a thread."""
        return await asyncio.to_thread(
            self.get_metadata_field_unique_values, metadata_field, search_term, from_, size, filters
        )

    async def embedding_retrieval_async(
        self,
        query_embedding: list[float],
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        scale_score: bool = False,
        return_embedding: bool = False,
    ) -> list[Document]:
        """As `embedding_retrieval`, in a thread."""
        return await asyncio.to_thread(
            self.embedding_retrieval,
            query_embedding,
            filters=filters,
            top_k=top_k,
            scale_score=scale_score,
            return_embedding=return_embedding,
        )


def _some(ids: Sequence[str]) -> str:
    """The first of the ids, to show which."""
    return ", ".join(ascii(id) for id in ids[:3]) + ("" if len(ids) <= 3 else ", …")


def _scaled(score: float, metric: Metric) -> float:
    """The score between 0 and 1; those of cosine and ip as Haystack's own store scales them."""
    match metric:
        case "cosine":
            return (1 + score) / 2
        case "ip":
            # tanh, because exp overflows
            return (1 + math.tanh(score / 200)) / 2
        case "l2":
            return 1 / (1 - score)
