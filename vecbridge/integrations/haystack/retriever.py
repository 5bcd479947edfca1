"""The retriever: the nearest documents of a store, as a component of a pipeline."""

from __future__ import annotations

from typing import Any, Self

from haystack import component
from haystack.core.serialization import default_from_dict, default_to_dict
from haystack.dataclasses import Document
from haystack.document_stores.types import FilterPolicy, apply_filter_policy

from ...errors import InputError
from .store import VecbridgeDocumentStore


@component
class VecbridgeEmbeddingRetriever:
    """Finds the documents of a VecbridgeDocumentStore whose embeddings are nearest to the query's."""

    def __init__(
        self,
        document_store: VecbridgeDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        scale_score: bool = False,
        return_embedding: bool = False,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        """The parameters of `run` for runs that give none.

        `filter_policy`: filters of a run replace these (REPLACE), or are joined with them (MERGE). Raises
        InputError.
        """
        if not isinstance(document_store, VecbridgeDocumentStore):
            raise InputError(
                f"expected a VecbridgeDocumentStore to search in, got {type(document_store).__name__}"
            )
        if top_k <= 0:
            raise InputError(f"expected top_k of 1 or more, got {top_k}")
        self.document_store = document_store
        self.filters = filters
        self.top_k = top_k
        self.scale_score = scale_score
        self.return_embedding = return_embedding
        self.filter_policy = (
            filter_policy if isinstance(filter_policy, FilterPolicy) else FilterPolicy.from_str(filter_policy)
        )

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes the component from, the store included. Raises like the store's."""
        return default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
            scale_score=self.scale_score,
            return_embedding=self.return_embedding,
            filter_policy=self.filter_policy.value,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component that `to_dict` described."""
        parameters = dict(data.get("init_parameters", {}))
        if isinstance(parameters.get("document_store"), dict):
            parameters["document_store"] = VecbridgeDocumentStore.from_dict(parameters["document_store"])
        return default_from_dict(cls, {**data, "init_parameters": parameters})

    def close(self) -> None:
        """Give back what the store holds open; it opens again when it is used."""
        self.document_store.close()

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        scale_score: bool | None = None,
        return_embedding: bool | None = None,
    ) -> dict[str, list[Document]]:
        """{"documents": the nearest, nearest first}. See `VecbridgeDocumentStore.embedding_retrieval`.

        `filters`: applied as `filter_policy` says. `top_k`: 0 gives none. Raises FilterError,
        DimensionMismatch, InputError.
        """
        found = self.document_store.embedding_retrieval(
            query_embedding,
            filters=apply_filter_policy(self.filter_policy, self.filters, filters),
            top_k=self.top_k if top_k is None else top_k,
            scale_score=self.scale_score if scale_score is None else scale_score,
            return_embedding=self.return_embedding if return_embedding is None else return_embedding,
        )
        return {"documents": found}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
        scale_score: bool | None = None,
        return_embedding: bool | None = None,
    ) -> dict[str, list[Document]]:
        """As `run`, in a thread."""
        found = await self.document_store.embedding_retrieval_async(
            query_embedding,
            filters=apply_filter_policy(self.filter_policy, self.filters, filters),
            top_k=self.top_k if top_k is None else top_k,
            scale_score=self.scale_score if scale_score is None else scale_score,
            return_embedding=self.return_embedding if return_embedding is None else return_embedding,
        )
        return {"documents": found}
