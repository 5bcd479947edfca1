"""LangChain's vector store over a collection: what LangChain calls things, and what vecbridge does.

    from vecbridge.integrations.langchain import VecbridgeVectorStore

    with VecbridgeVectorStore.from_texts(
        texts, embeddings, store="pgvector:./db", collection_name="papers"
    ) as papers:
        papers.similarity_search("old keys", k=4, filter={"year": {"$gte": 2020}})

Needs the extra vecbridge[langchain]. Every method has its async twin: texts are embedded by the model's own
async calls, the collection works in threads, and the event loop waits for neither.
"""

# LangChain's signatures let any keyword through; here each is named, and a wrong one is a TypeError:
# mypy: disable-error-code="override"

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeAlias, cast

from .. import checks, conform
from ..errors import FilterError, InputError, MissingExtra
from ..store import Collection, Store, connect
from ..types import Metadata, Metric
from .loading import Records, Target, Vectors

try:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.runnables.config import run_in_executor
    from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
    from langchain_core.vectorstores.utils import maximal_marginal_relevance
    from pydantic import ConfigDict, model_validator
except ImportError as error:
    raise MissingExtra(
        f"the LangChain adapter needs the package {error.name}; "
        f"install it with pip install 'vecbridge[langchain]'"
    ) from error

__all__ = ["VecbridgeRetriever", "VecbridgeVectorStore"]

Where: TypeAlias = Mapping[str, Any] | None

# texts that are embedded by one call of the model's
_TEXTS = 1_000
# a filter that is nested deeper is refused by vecbridge
_DEEP = 60


class VecbridgeVectorStore(VectorStore):
    """A collection as LangChain's `VectorStore`, safe for threads.

    It may be made of a Collection and the embeddings that its vectors are of, of the name of a collection
    (`from_existing`), or of texts (`from_texts`, `from_documents`), which makes the collection where it does
    not exist. What is opened by a store's URL is closed by `close`, or at the end of a `with`.

    Keywords: `filter` is a mapping as in `vecbridge.filters`, and may use `$between` and lists under `$not`
    as langchain-postgres does. `exact` ignores the index. Any other keyword is a TypeError.

    Scores are vecbridge's own, larger for nearer records: the cosine, the inner product, or the negated
    Euclidean distance. Other LangChain stores return distances here. Relevance scores lie between 0 and 1:
    see `relevance_score_fn`.

    The index: `from_texts` and `from_documents` build it once they have filled a collection that they made.
    What is added later goes into an index that exists. Where none was built, searches are exact, and
    `collection.build_index()` builds it, best after the bulk is loaded.
    """

    def __init__(
        self,
        collection: Collection,
        embedding: Embeddings,
        *,
        relevance_score_fn: Callable[[float], float] | None = None,
    ) -> None:
        """A store over a collection that is open; closing it is left to whoever opened it.

        `relevance_score_fn`: score -> relevance in 0 to 1, larger for nearer. Without it, relevance is the
        cosine, the inner product, or 1 - distance / √2, cut off at 0 and 1: LangChain's own formulas, made
        for vectors of length 1, where 0 means at right angles or farther. Vectors of other lengths under
        inner product or l2 need a function of their own.
        """
        self._collection = collection
        self._embedding = embedding
        self._relevance = relevance_score_fn
        self._held = ExitStack()

    @classmethod
    def from_existing(
        cls,
        embedding: Embeddings,
        *,
        store: Store | str,
        collection_name: str,
        model: str | None = None,
        relevance_score_fn: Callable[[float], float] | None = None,
    ) -> Self:
        """A store over the collection of this name. `store`: a Store or its URL.

        `model`: refuse a collection of another model's vectors. Raises CollectionNotFound, ModelMismatch, and
        what connecting raises.
        """
        with ExitStack() as held:
            home = held.enter_context(connect(store)) if isinstance(store, str) else store
            collection = home.open(collection_name, model=model)
            held.callback(collection.close)
            opened = cls(collection, embedding, relevance_score_fn=relevance_score_fn)
            opened._held = held.pop_all()
        return opened

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        store: Store | str,
        collection_name: str,
        ids: Sequence[str | None] | None = None,
        wishes: Mapping[str, Any] | None = None,
        batch_size: int = _TEXTS,
        relevance_score_fn: Callable[[float], float] | None = None,
    ) -> Self:
        """A store with these texts in it; its collection is made where there is none of this name.

        `store`: a Store or its URL. `wishes`: how to make the collection, as keywords of `Store.create`:
        metric, rows, recall, model, memory, layout, filterable and so on; `dim` is that of the first vectors
        unless it is among them. What is embedded is the `sample`, unless one is given. Where the collection
        exists, only `metric`, `dim` and `model` are looked at: it is refused if it is of others. The rest as
        in `add_texts`.

        Nothing is made if a text cannot be embedded. A collection that was made here gets its index at the
        end. Raises what `Store.create` and `add_texts` raise.
        """
        records = Records.checked(texts, metadatas, ids)
        with ExitStack() as held:
            target = Target.found(held, store, collection_name, wishes)
            vectors = Vectors(target.space)
            for part in records.parts(batch_size):
                vectors.take(embedding.embed_documents(part), part)
            collection = target.filled(held, records, vectors)
            made = cls(collection, embedding, relevance_score_fn=relevance_score_fn)
            made._held = held.pop_all()
        return made

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        store: Store | str,
        collection_name: str,
        ids: Sequence[str | None] | None = None,
        wishes: Mapping[str, Any] | None = None,
        batch_size: int = _TEXTS,
        relevance_score_fn: Callable[[float], float] | None = None,
    ) -> Self:
        """As `from_texts`, without holding up the event loop."""
        records = await run_in_executor(None, Records.checked, texts, metadatas, ids)
        with ExitStack() as held:
            target = await run_in_executor(None, Target.found, held, store, collection_name, wishes)
            vectors = Vectors(target.space)
            for part in records.parts(batch_size):
                vectors.take(await embedding.aembed_documents(part), part)
            collection = await run_in_executor(None, target.filled, held, records, vectors)
            made = cls(collection, embedding, relevance_score_fn=relevance_score_fn)
            made._held = held.pop_all()
        return made

    @property
    def collection(self) -> Collection:
        """The collection behind it, with all that LangChain has no name for."""
        return self._collection

    @property
    def embeddings(self) -> Embeddings:
        """The model that texts and questions are embedded by."""
        return self._embedding

    def close(self) -> None:
        """Give back what was opened here. A Collection or a Store that was passed in stays open."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int = _TEXTS,
    ) -> list[str]:
        """Embed texts, and insert or replace their records; all of them or none. Returns their ids.

        `metadatas`: JSON objects. `ids`: one for each text; where there are none, or one is None, a random
        one is made. Of an id that occurs twice the last record stays. `batch_size`: texts for one call of the
        model's. Raises InputError, MetadataError before anything is embedded; DimensionMismatch,
        VectorError, EmbedderError before anything is written; StoreError.
        """
        records = Records.checked(texts, metadatas, ids)
        vectors = Vectors(self._collection.space)
        for part in records.parts(batch_size):
            vectors.take(self._embedding.embed_documents(part), part)
        records.write(self._collection, vectors)
        return records.ids

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int = _TEXTS,
    ) -> list[str]:
        """As `add_texts`, without holding up the event loop."""
        records = await run_in_executor(None, Records.checked, texts, metadatas, ids)
        vectors = Vectors(self._collection.space)
        for part in records.parts(batch_size):
            vectors.take(await self._embedding.aembed_documents(part), part)
        await run_in_executor(None, records.write, self._collection, vectors)
        return records.ids

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of these ids in the order given; ids that are not there are left out."""
        found = self._collection.get(ids)
        return [
            _document(id, text, metadata)
            for id, text, metadata in zip(found.ids, found.documents, found.metadata, strict=True)
        ]

    def delete(self, ids: list[str] | None = None, *, filter: Where = None) -> bool:
        """Remove documents by id, or all that match `filter`. True; ids that are not there are no error.

        Without either it raises InputError: a forgotten argument must not empty a collection.
        """
        if (ids is None) == (filter is None):
            raise InputError(
                f"expected either ids or filter= to delete by, got {'none' if ids is None else 'both'}; "
                f"to remove every document, drop the collection: store.drop({self._collection.name!r})"
            )
        self._collection.delete(ids, where=_where(filter))
        return True

    def similarity_search(
        self, query: str, k: int = 4, *, filter: Where = None, exact: bool = False
    ) -> list[Document]:
        """The k documents nearest to a question, nearest first; k of them whenever k match."""
        return _documents(self.similarity_search_with_score(query, k, filter=filter, exact=exact))

    async def asimilarity_search(
        self, query: str, k: int = 4, *, filter: Where = None, exact: bool = False
    ) -> list[Document]:
        """As `similarity_search`, without holding up the event loop."""
        return _documents(await self.asimilarity_search_with_score(query, k, filter=filter, exact=exact))

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Where = None, exact: bool = False
    ) -> list[tuple[Document, float]]:
        """As `similarity_search`, with scores that are larger for nearer documents.

        The score is the cosine, the inner product, or the negated Euclidean distance, by the collection's
        metric; it is no distance, which it is in other stores.
        """
        vector = self._embedding.embed_query(query)
        return self.similarity_search_with_score_by_vector(vector, k, filter=filter, exact=exact)

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Where = None, exact: bool = False
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`, without holding up the event loop."""
        vector = await self._embedding.aembed_query(query)
        return await self.asimilarity_search_with_score_by_vector(vector, k, filter=filter, exact=exact)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Where = None, exact: bool = False
    ) -> list[Document]:
        """The k documents nearest to a vector, nearest first."""
        return _documents(
            self.similarity_search_with_score_by_vector(embedding, k, filter=filter, exact=exact)
        )

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Where = None, exact: bool = False
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_by_vector`, with scores as `similarity_search_with_score` gives them."""
        hits = self._collection.search(embedding, k=k, where=_where(filter), exact=exact)
        return [(_document(hit.id, hit.document, hit.metadata), hit.score) for hit in hits]

    async def asimilarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Where = None, exact: bool = False
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score_by_vector`, without holding up the event loop."""
        return await run_in_executor(
            None, self.similarity_search_with_score_by_vector, embedding, k, filter=filter, exact=exact
        )

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return self._relevance or _RELEVANCE[self._collection.space.metric]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Where = None,
        exact: bool = False,
    ) -> list[Document]:
        """k documents that are near to a question and unlike each other, out of the `fetch_k` nearest.

        `lambda_mult`: 1 minds nearness alone, 0 minds being different alone. Likeness is the cosine, whatever
        the metric.
        """
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, filter=filter, exact=exact
        )

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Where = None,
        exact: bool = False,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, without holding up the event loop."""
        vector = await self._embedding.aembed_query(query)
        return await self.amax_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, filter=filter, exact=exact
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Where = None,
        exact: bool = False,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, for a vector."""
        wanted = max(checks.hits_wanted(k), checks.hits_wanted(fetch_k))
        hits = self._collection.search(embedding, k=wanted, where=_where(filter), exact=exact)
        # what is deleted between the two calls is not among them any more
        found = self._collection.get([hit.id for hit in hits])
        if not len(found):
            return []
        # vectors that are stored shortened are comparable with a question that is shortened alike
        matrix = checks.query(embedding, space=self._collection.space)
        asked = conform.stored(self._collection.manifest, matrix, "the query")
        chosen = maximal_marginal_relevance(asked, cast(Any, found.vectors), lambda_mult, k)
        return [_document(found.ids[row], found.documents[row], found.metadata[row]) for row in chosen]

    def as_retriever(
        self,
        *,
        k: int | None = None,
        filter: Where = None,
        search_type: str = "similarity",
        search_kwargs: Mapping[str, Any] | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> VecbridgeRetriever:
        """A retriever over this store: see `VecbridgeRetriever`. `tags`, `metadata`: for callbacks."""
        given: dict[str, Any] = {
            "k": k,
            "filter": filter,
            "search_type": search_type,
            "search_kwargs": search_kwargs,
            "tags": tags or self._get_retriever_tags(),
            "metadata": metadata,
        }
        return VecbridgeRetriever(
            vectorstore=self, **{name: value for name, value in given.items() if value is not None}
        )


class VecbridgeRetriever(VectorStoreRetriever):
    """LangChain's retriever over a vector store, which takes `k` and `filter` directly, too.

    Both are short for the same in `search_kwargs`, where LangChain looks for `score_threshold`, `fetch_k`,
    `lambda_mult` and `exact`. `search_type`: "similarity", "mmr", or "similarity_score_threshold".
    LangChain's own ignores what it does not know, `k` among it; here that is an error.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = {name: values[name] for name in ("k", "filter") if name in values}
        others = values.get("search_kwargs", {})
        if twice := sorted(given.keys() & others.keys()):
            raise InputError(f"expected {twice[0]} once, got it as a keyword and in search_kwargs")
        rest = {name: value for name, value in values.items() if name not in given}
        return {**rest, "search_kwargs": {**others, **given}}


def _where(filter: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The filter in vecbridge's words. Raises FilterError."""
    if callable(filter):
        raise FilterError(
            'expected filter= as a mapping such as {"topic": "law"}, got a function; the store itself has to '
            "understand it"
        )
    return None if filter is None else cast(Mapping[str, Any], _plain(filter, 0))


def _plain(filter: object, depth: int) -> object:
    """A filter without what langchain-postgres has beyond vecbridge: `$between`, lists under `$not`, `$AND`.

    Whatever is no filter, or too deep for one, is left to vecbridge to refuse.
    """
    if not isinstance(filter, Mapping) or depth > _DEEP:
        return filter
    clauses = [clause for key, value in filter.items() for clause in _clauses(key, value, depth)]
    joined = {key: value for clause in clauses for key, value in clause.items()}
    return joined if len(joined) == sum(map(len, clauses)) else {"$and": clauses}


def _clauses(key: Any, value: object, depth: int) -> Iterator[dict[Any, object]]:
    """One entry of a filter as one or more, all of which have to hold."""
    name = key.lower() if isinstance(key, str) else key
    several = isinstance(value, list | tuple) and len(value) > 0
    if name in ("$and", "$or") and several:
        yield {name: [_plain(part, depth + 1) for part in cast(Sequence[object], value)]}
    elif name == "$not":
        for part in cast(Sequence[object], value) if several else [value]:
            yield {"$not": _plain(part, depth + 1)}
    elif isinstance(value, Mapping) and not value.keys().isdisjoint(("$between", "$not")):
        rest = dict(value)
        if "$between" in rest:
            yield {key: _between(rest.pop("$between"))}
        if isinstance(inner := rest.get("$not"), Mapping):
            del rest["$not"]
            yield {"$not": _plain({key: inner}, depth + 1)}
        if rest:
            yield {key: rest}
    else:
        yield {key: value}


def _between(operand: object) -> dict[str, object]:
    if not isinstance(operand, list | tuple) or len(operand) != 2:
        raise FilterError(
            f"$between takes a list of two values, the lowest and the highest, got {operand!r:.60}"
        )
    return {"$gte": operand[0], "$lte": operand[1]}


def _bounded(value: float) -> float:
    return min(max(value, 0.0), 1.0)


_RELEVANCE: dict[Metric, Callable[[float], float]] = {
    "cosine": _bounded,
    "ip": _bounded,
    "l2": lambda score: _bounded(1 + score / math.sqrt(2)),
}


def _document(id: str, text: str | None, metadata: Metadata) -> Document:
    # LangChain has no documents without text; records that others stored may have none
    return Document(id=id, page_content=text or "", metadata=dict(metadata))


def _documents(scored: Iterable[tuple[Document, float]]) -> list[Document]:
    return [document for document, _ in scored]
