"""LlamaIndex: a collection as its vector store.

    from vecbridge.integrations.llama_index import VecbridgeVectorStore

    store = VecbridgeVectorStore.from_url("postgresql://localhost/rag", "papers")
    index = VectorStoreIndex.from_vector_store(store, embed_model=model)

A node becomes a record as in LlamaIndex's own stores: its text is the document, its metadata the metadata,
with the rest of the node in `_node_content` and the id of its document in `doc_id`. Records that were loaded
otherwise come back as text nodes.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import checks, conform
from ..errors import (
    CollectionExists,
    CollectionNotFound,
    DimensionMismatch,
    FilterError,
    InputError,
    MissingExtra,
)
from ..filters import matches
from ..planner import DEFAULT_ROWS
from ..store import Collection, Store, connect
from ..types import Batch, FieldKind, Hit, Metadata, Metric

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
    from llama_index.core.schema import BaseNode, MetadataMode, TextNode
    from llama_index.core.vector_stores.types import (
        BasePydanticVectorStore,
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
except ImportError as error:
    raise MissingExtra(
        "vecbridge.integrations.llama_index needs the package llama-index-core; "
        "install it with pip install 'vecbridge[llama-index]'"
    ) from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..types import Floats

__all__ = ["VecbridgeVectorStore"]

# nodes that are read at once where they are asked for by id
_PART = 1_000
# candidates for each node that MMR chooses, as in LlamaIndex's own stores
_PREFETCH = 4.0
# lets every record through: `Collection.delete` refuses an empty filter, because it may be an accident
_EVERY: dict[str, Any] = {"$and": [{}]}


@dataclass(slots=True)
class _Opening:
    """A collection that may have to be made yet, once the length of its vectors is known."""

    store: Store
    name: str
    metric: Metric | None
    rows: int
    model: str | None
    filterable: Mapping[str, FieldKind]
    making: threading.Lock = field(default_factory=threading.Lock)

    def find(self, dim: int | None) -> Collection | None:
        """The collection, if it is there. Raises DimensionMismatch, InputError where it is another one."""
        try:
            found = self.store.open(self.name, model=self.model)
        except CollectionNotFound:
            return None
        space = found.space
        if dim is not None and dim != space.dim:
            raise DimensionMismatch(
                f"expected a collection {self.name} for vectors of {dim:,} dimensions, got one of "
                f"{space.dim:,} in {found.url}; take another name for another model"
            )
        if self.metric is not None and self.metric != space.metric:
            raise InputError(
                f"expected a collection {self.name} with metric {self.metric!r}, got one with "
                f"{space.metric!r} in {found.url}; leave metric out, or take another name"
            )
        return found

    def make(self, dim: int) -> Collection:
        """The collection, which is made if it is not there."""
        with self.making:
            found = self.find(dim)
            if found is not None:
                return found
            try:
                return self.store.create(
                    self.name,
                    dim=dim,
                    metric=self.metric or "cosine",
                    rows=self.rows,
                    model=self.model,
                    # what nodes are deleted and restricted by
                    filterable={"doc_id": "text", **self.filterable},
                )
            except CollectionExists:
                # another process was faster; what it made need not be what was wanted
                found = self.find(dim)
                if found is None:
                    raise
                return found


class VecbridgeVectorStore(BasePydanticVectorStore):
    """A collection as LlamaIndex's vector store: `VecbridgeVectorStore(collection)`, or `from_url`.

    Nodes with the same id replace each other. `similarities` are larger for nearer nodes: the cosine
    (-1 to 1), the inner product for "ip", the negated distance (0 at most) for "l2". Where filters are
    concerned, see "What filters mean" in docs/llama-index.md. The index that was planned is built by
    `store.client.build_index()`, once the nodes are loaded; until then searches are exact.
    """

    stores_text: bool = True

    _collection: Collection | None = PrivateAttr(default=None)
    _opening: _Opening | None = PrivateAttr(default=None)

    def __init__(self, collection: Collection) -> None:
        super().__init__(stores_text=True)
        self._collection = collection

    @classmethod
    def from_url(
        cls,
        url: str,
        name: str,
        *,
        dim: int | None = None,
        metric: Metric | None = None,
        rows: int = DEFAULT_ROWS,
        model: str | None = None,
        filterable: Mapping[str, FieldKind] | None = None,
    ) -> Self:
        """The collection `name` at a store URL; it is planned and made where it is not there.

        `dim`: the length of vectors; without it, a new collection is made when the first nodes are added,
        for vectors as long as theirs. `metric` is cosine for a new collection. `rows`, `model` and
        `filterable` as for `Store.create`, which has more choices: make a collection by it, and pass that.
        Close the store when you are done. Raises DimensionMismatch, ModelMismatch, InputError where the
        collection is there and is another one, and what `connect`, `open` and `create` raise.
        """
        with ExitStack() as undo:
            store = connect(url)
            undo.callback(store.close)
            opening = _Opening(store, name, metric, rows, model, checks.filterable(filterable))
            made = cls.model_construct(stores_text=True)
            made._opening = opening
            made._collection = opening.find(dim) if dim is None else opening.make(dim)
            undo.pop_all()
        return made

    @classmethod
    def class_name(cls) -> str:
        """The name of the class, by which LlamaIndex tells components apart."""
        return "VecbridgeVectorStore"

    @property
    def client(self) -> Collection | None:
        """The collection; None as long as there is none, because the length of its vectors is not known."""
        if self._collection is None and self._opening is not None:
            # another process may have made it meanwhile
            self._collection = self._opening.find(None)
        return self._collection

    def close(self) -> None:
        """Give back what `from_url` opened; a collection that was passed stays open. May be called twice."""
        if self._opening is not None:
            self._opening.store.close()

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Store nodes, which must have embeddings: all of them or none. Returns their ids."""
        _none_else(kwargs, "add")
        nodes = list(nodes)
        if not nodes:
            return []
        vectors = [_embedding(node) for node in nodes]
        collection = self.client
        if collection is None:
            assert self._opening is not None
            collection = self._collection = self._opening.make(len(vectors[0]))
        ids = [node.node_id for node in nodes]
        collection.upsert(
            ids,
            vectors,
            # a node without text, as of an image, comes back without one
            documents=[node.get_content(metadata_mode=MetadataMode.NONE) or None for node in nodes],
            metadata=[node_to_metadata_dict(node, remove_text=True) for node in nodes],
        )
        return ids

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """`add`, in a thread."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nearest nodes, nearest first; with mode "mmr" those that are near and unlike each other.

        Keywords, for "mmr" alone: `mmr_threshold` from 0 (as different as can be) to 1 (as near as can be),
        0.5 if neither it nor the query says; `mmr_prefetch_k`, among how many of the nearest it chooses, or
        `mmr_prefetch_factor` times `similarity_top_k`, 4 times if not given. Nodes then come in the order in
        which they were chosen, with their similarity to the query. Empty `node_ids` and `doc_ids` restrict
        nothing. Raises InputError for other modes: there is no index of words here.
        """
        _none_else(kwargs, "query", "mmr_threshold", "mmr_prefetch_k", "mmr_prefetch_factor")
        if query.mode not in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
            raise InputError(
                f"expected query mode 'default' or 'mmr', got {VectorStoreQueryMode(query.mode).value!r}; "
                f"vecbridge compares vectors and has no index of words"
            )
        if query.query_embedding is None:
            raise InputError("expected a query with query_embedding, got none; embed the query's text first")
        wanted = checks.hits_wanted(query.similarity_top_k)
        where = _where(query.filters)
        if query.doc_ids:
            documents = {"doc_id": {"$in": list(query.doc_ids)}}
            where = documents if where is None else {"$and": [where, documents]}
        diverse = query.mode == VectorStoreQueryMode.MMR
        among = _prefetch(wanted, kwargs) if diverse else wanted
        threshold = _threshold(query, kwargs)
        collection = self.client
        if collection is None:
            return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
        if query.node_ids:
            hits = _nearest_of(collection, query.node_ids, query.query_embedding, among, where)
        else:
            hits = collection.search(query.query_embedding, k=among, where=where)
        if diverse:
            hits = _unlike(collection, hits, query.query_embedding, wanted, threshold)
        return VectorStoreQueryResult(
            nodes=[_node(hit.id, hit.document, hit.metadata) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """`query`, in a thread."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes that were made of this document; none is no error."""
        _none_else(delete_kwargs, "delete")
        if (collection := self.client) is not None:
            collection.delete(where={"doc_id": ref_doc_id})

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """`delete`, in a thread."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete the nodes of these ids, those that match, or, with both, those of these ids that match.

        Nothing is deleted where neither is given, or no id is listed. Raises InputError for filters without a
        condition, which would delete every node: `clear` does that.
        """
        _none_else(delete_kwargs, "delete_nodes")
        where = _where(filters)
        if node_ids is None and filters is not None and where is None:
            raise InputError(
                "filters without a condition would delete every node; if that is meant, call clear()"
            )
        collection = self.client
        if collection is None:
            return
        if node_ids is None:
            if where is not None:
                collection.delete(where=where)
        elif where is None:
            collection.delete(node_ids)
        else:
            for batch, rows in _read(collection, node_ids, where):
                collection.delete(batch.ids[row] for row in rows)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """`delete_nodes`, in a thread."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """The nodes of these ids in this order, those that match, those of both, or all of them.

        With their embeddings, unless the collection shortens them. Ids that are not there are left out.
        """
        collection, where = self.client, _where(filters)
        if collection is None:
            return []
        if node_ids is None:
            found = ((batch, range(len(batch))) for batch in collection.scan(where=where))
            return [node for batch, rows in found for node in _nodes(collection, batch, rows)]
        read = _read(collection, node_ids, where)
        return [node for batch, rows in read for node in _nodes(collection, batch, rows)]

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """`get_nodes`, in a thread."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    def clear(self) -> None:
        """Delete every node. The collection stays, with its plan, and others may search it meanwhile."""
        if (collection := self.client) is not None:
            # dropping it would fail the searches of others who have it open
            collection.delete(where=_EVERY)

    async def aclear(self) -> None:
        """`clear`, in a thread."""
        await asyncio.to_thread(self.clear)


def _none_else(given: Mapping[str, Any], method: str, *known: str) -> None:
    """Raise InputError where a keyword came that nothing would heed."""
    for name in given:
        if name not in known:
            takes = f"the keywords {', '.join(known)}" if known else "no keywords"
            raise InputError(
                f"expected {takes} for {method}(), got {name!r}; search widths belong to the collection: "
                f"store.client.tune()"
            )


def _embedding(node: BaseNode) -> list[float]:
    if node.embedding is None:
        raise InputError(
            f"expected nodes with embeddings, got none for node {node.node_id!r}; set node.embedding, or "
            f"insert it through a VectorStoreIndex, which embeds it"
        )
    return node.embedding


def _node(name: str, document: str | None, metadata: Metadata) -> BaseNode:
    """The node that a record was made of; a text node for a record that was made of something else."""
    if "_node_content" in metadata:
        return metadata_dict_to_node(dict(metadata), text=document)
    return TextNode(id_=name, text=document or "", metadata=dict(metadata))


def _nodes(collection: Collection, batch: Batch, rows: Sequence[int]) -> Iterator[BaseNode]:
    for row in rows:
        node = _node(batch.ids[row], batch.documents[row], batch.metadata[row])
        if collection.layout.shorten is None:
            node.embedding = batch.vectors[row].tolist()
        yield node


def _read(
    collection: Collection, node_ids: Sequence[str], where: Mapping[str, Any] | None
) -> Iterator[tuple[Batch, list[int]]]:
    """The records of these ids, some at a time, and which of them match."""
    condition = checks.where_filter(where)
    ids = list(dict.fromkeys(checks.ids(node_ids)))
    for start in range(0, len(ids), _PART):
        batch = collection.get(ids[start : start + _PART])
        yield (
            batch,
            [
                row
                for row in range(len(batch))
                if condition is None or matches(condition, batch.metadata[row])
            ],
        )


def _nearest_of(
    collection: Collection,
    node_ids: Sequence[str],
    embedding: Sequence[float],
    k: int,
    where: Mapping[str, Any] | None,
) -> list[Hit]:
    """The k nearest of the records with these ids: filters are about metadata, so the ids are looked up."""
    hits: list[Hit] = []
    for batch, rows in _read(collection, node_ids, where):
        scores = _scores(collection, _stored(collection, embedding), batch.vectors[rows])
        hits += [
            Hit(batch.ids[row], float(score), batch.documents[row], batch.metadata[row])
            for row, score in zip(rows, scores, strict=True)
        ]
        hits = nsmallest(k, hits, key=lambda hit: (-hit.score, hit.id))
    return hits


def _stored(collection: Collection, embedding: Sequence[float]) -> Floats:
    """The query (stored dim,) as the collection compares it."""
    query = checks.query(embedding, space=collection.space)
    row: Floats = conform.stored(collection.manifest, query, "the query")[0]
    return row


def _scores(collection: Collection, query: Floats, vectors: Floats) -> NDArray[np.float64]:
    """Scores (n,) of stored vectors (n, d) for a query (d,), larger for nearer, as `Hit.score` is."""
    asked, stored = query.astype(np.float64), vectors.astype(np.float64)
    if collection.space.metric == "l2":
        distances: NDArray[np.float64] = np.linalg.norm(stored - asked, axis=1)
        return -distances
    products: NDArray[np.float64] = stored @ asked
    if collection.space.metric == "cosine":
        products /= np.linalg.norm(stored, axis=1) * np.linalg.norm(asked)
    return products


def _prefetch(wanted: int, given: Mapping[str, Any]) -> int:
    """How many of the nearest nodes MMR chooses from."""
    most, factor = given.get("mmr_prefetch_k"), given.get("mmr_prefetch_factor")
    if most is not None and factor is not None:
        raise InputError("expected mmr_prefetch_k or mmr_prefetch_factor, got both")
    among = math.ceil(wanted * (_PREFETCH if factor is None else factor)) if most is None else most
    return min(max(wanted, checks.hits_wanted(among)), checks.K_MAX)


def _threshold(query: VectorStoreQuery, given: Mapping[str, Any]) -> float | None:
    threshold = given.get("mmr_threshold")
    threshold = query.mmr_threshold if threshold is None else threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"expected mmr_threshold from 0 (different) to 1 (near), got {threshold}")
    return threshold


def _unlike(
    collection: Collection, hits: list[Hit], embedding: Sequence[float], k: int, threshold: float | None
) -> list[Hit]:
    """k of the hits by LlamaIndex's own maximal marginal relevance, in the collection's metric."""
    batch = collection.get(hit.id for hit in hits)
    if not len(batch):
        return []
    known = {hit.id: hit for hit in hits}
    _, rows = get_top_k_mmr_embeddings(
        _stored(collection, embedding),  # type: ignore[arg-type]  # vectors only go to similarity_fn
        list(batch.vectors),
        similarity_fn=lambda one, other: float(_scores(collection, one, other[None])[0]),
        similarity_top_k=k,
        embedding_ids=list(range(len(batch))),
        mmr_threshold=threshold,
    )
    return [known[batch.ids[row]] for row in rows]


def _where(filters: MetadataFilters | None) -> dict[str, Any] | None:
    """Filters as vecbridge has them; None where they hold no condition."""
    if filters is None:
        return None
    parts = []
    for one in filters.filters:
        part = _where(one) if isinstance(one, MetadataFilters) else _condition(one)
        if part is not None:
            parts.append(part)
    if not parts:
        return None
    match filters.condition:
        case FilterCondition.OR:
            return {"$or": parts}
        case FilterCondition.NOT:
            # none of them holds, as in SimpleVectorStore and QdrantVectorStore
            return {"$not": {"$or": parts}}
        case _:
            return {"$and": parts}


_ORDER = {
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
}
_TEXT = {FilterOperator.TEXT_MATCH: "$contains", FilterOperator.TEXT_MATCH_INSENSITIVE: "$icontains"}
_SEVERAL = (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)
_WHOLE = (FilterOperator.EQ, FilterOperator.NE)


def _condition(one: MetadataFilter) -> dict[str, Any]:
    """One condition as vecbridge has it. Raises FilterError where the operator cannot take the value."""
    key, value, operator = one.key, one.value, one.operator
    if operator == FilterOperator.IS_EMPTY:
        # a list with something in it is not empty, though null or "" may be in it, too
        filled = [{key: {"$gt": ""}}, {key: {"$gte": -sys.float_info.max}}]
        return {key: {"$in": [None, "", []]}, "$not": {"$or": filled}}
    about = f"{operator.value!r} on {key!r}"
    if value is None:
        raise FilterError(
            f"expected a value for {about}, got None; FilterOperator.IS_EMPTY finds what has none"
        )
    if operator in _SEVERAL:
        if not isinstance(value, list):
            raise FilterError(f"expected a list of values for {about}, got {value!r:.60}")
        choices = [alike for element in value for alike in _alike(element)]
        match operator:
            case FilterOperator.NIN:
                return {key: {"$nin": choices}}
            case FilterOperator.ALL:
                there: list[dict[str, Any]] = [{key: {"$exists": True}}]
                return {"$and": [{key: {"$in": _alike(element)}} for element in value] or there}
        return {key: {"$in": choices}}
    if isinstance(value, list):
        if operator not in _WHOLE:
            raise FilterError(
                f"expected one value for {about}, got the list {value!r:.60}; see 'any' and 'all'"
            )
        return {key: {"$eq" if operator == FilterOperator.EQ else "$ne": value}}
    if operator in _TEXT:
        if not isinstance(value, str):
            raise FilterError(f"expected text for {about}, got {value!r:.60}")
        return {key: {_TEXT[operator]: value}}
    if operator in _ORDER:
        return {key: {_ORDER[operator]: value}}
    # CONTAINS means equality with an element, which equality does with lists
    return {key: {"$nin" if operator == FilterOperator.NE else "$in": _alike(value)}}


def _alike(value: float | str) -> list[Any]:
    """What equals the value in Python: 1 is True there, which a MetadataFilter cannot say otherwise."""
    return [value, bool(value)] if value in (0, 1) else [value]
