"""The vocabulary: spaces, layouts, batches and hits.

Scores are larger for nearer vectors, whatever the metric: cosine similarity for "cosine", inner product
for "ip", the negated Euclidean distance for "l2". This is the one place where that is decided; each
backend flips the sign once, at its edge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    # numpy costs a tenth of a second; planning does without it
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

Metric = Literal["cosine", "ip", "l2"]
Element = Literal["float32", "float16", "int8", "turbo4", "turbo2", "turbo1", "bit"]
# how the values of a metadata field that filters use are compared
FieldKind = Literal["text", "number", "boolean"]
Metadata: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Space:
    """An embedding space: what a model's vectors are before anything is done to them.

    `nested` lists the Matryoshka sizes: prefixes of these lengths are embeddings in their own right.
    Empty for models that were not trained for it; their prefixes are never used unasked.
    """

    dim: int
    metric: Metric = "cosine"
    nested: tuple[int, ...] = ()
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Shorten:
    """How vectors lose components: keep the first `dim` ("truncate") or project on a fitted basis ("pca").

    `centred` (pca under cosine): the sample's mean is taken off before. It changes which vectors are near,
    for better or worse; only measuring tells. Under l2 it makes no difference; under ip it is not offered.
    """

    method: Literal["truncate", "pca"]
    dim: int
    centred: bool = False


@dataclass(frozen=True, slots=True)
class Index:
    """What is searched instead of the stored vectors.

    `kind`: "hnsw" and "ivfflat" are approximate indexes; "scan" is a compact copy of every vector that is
    read from end to end, for collections that are small enough.
    `element` and `shorten`: what the index holds for each vector. "int8" is scalar quantisation, "turboN"
    TurboQuant with N bits for each component, "bit" the signs alone.
    `ef_search` (hnsw: candidates kept while walking the graph) and `probes` (ivfflat: lists read) are the
    default search width; both can be changed without rebuilding, the others cannot.
    """

    kind: Literal["hnsw", "ivfflat", "scan"]
    element: Element = "float32"
    shorten: Shorten | None = None
    m: int = 16
    ef_construction: int = 64
    ef_search: int = 0
    lists: int = 0
    probes: int = 0


@dataclass(frozen=True, slots=True)
class Spread:
    """How a collection is spread over the machines of a cluster.

    `shards`: parts that it is cut into, fixed once made. `replication`: machines that hold each part.
    `write_consistency`: how many of them confirm a write before it counts.
    """

    shards: int
    replication: int = 1
    write_consistency: int = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """How the vectors of a collection lie in a store, as a product of small choices.

    `element`: what is stored for good. `inline`: vectors lie inside their row's page (PostgreSQL's STORAGE
    PLAIN) instead of beside it. `shorten`: reduction at the door, irreversible. `index`: None means that
    every search is an exact scan. `oversample`: for k hits, k × oversample candidates come from the index
    and are re-ranked by their exact distance to the stored vectors; 1 where the index is exact enough.
    `spread`: over the machines of a cluster, None on a single one.
    """

    element: Literal["float32", "float16"] = "float32"
    inline: bool = False
    shorten: Shorten | None = None
    index: Index | None = None
    oversample: int = 1
    spread: Spread | None = None

    def to_dict(self) -> dict[str, Any]:
        """The choices as keys, ready for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Layout:
        """The layout that `to_dict` gave."""

        def shorten(value: Mapping[str, Any] | None) -> Shorten | None:
            return None if value is None else Shorten(**value)

        index = data["index"]
        if index is not None:
            index = Index(**{**index, "shorten": shorten(index["shorten"])})
        # collections made before there were clusters say nothing of it
        spread = data.get("spread")
        return Layout(
            **{
                **data,
                "shorten": shorten(data["shorten"]),
                "index": index,
                "spread": None if spread is None else Spread(**spread),
            }
        )

    def stored_dim(self, dim: int) -> int:
        """Components kept of a vector of `dim`, after reduction at the door."""
        return self.shorten.dim if self.shorten else dim

    def index_dim(self, dim: int) -> int:
        """Components of what the index holds."""
        if self.index and self.index.shorten:
            return self.index.shorten.dim
        return self.stored_dim(dim)

    @property
    def half(self) -> bool:
        """Whether any part is kept in half precision, which limits the values it can hold."""
        return self.element == "float16" or (self.index is not None and self.index.element == "float16")


@dataclass(frozen=True, slots=True)
class Batch:
    """Records by column.

    `vectors`: float32 (n, d), C-contiguous. `short`: float32 (n, s), what the index holds where that is a
    projection which the store cannot compute itself (PCA in the index), else None; never read back.
    `digests`: up to 32 bytes per record that tell whether its source has changed, or None.
    """

    ids: Sequence[str]
    vectors: Floats
    documents: Sequence[str | None]
    metadata: Sequence[Metadata]
    digests: Sequence[bytes | None]
    short: Floats | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result. `score` is larger for nearer vectors, whatever the metric."""

    id: str
    score: float
    document: str | None = None
    metadata: Metadata = field(default_factory=dict)


class Progress(Protocol):
    """Called as work goes on: `done` of `total` units of `stage`; total is None while it is unknown."""

    def __call__(self, stage: str, done: int, total: int | None) -> None: ...


@dataclass(frozen=True, slots=True)
class IndexState:
    """What has become of a collection's index.

    `status`: "none" (the layout has none, or scans a compact copy: `detail` says so), "missing" (not built
    yet, as ivfflat on an empty collection), "invalid" (an interrupted build), "ready". `used`: whether the
    collection's own query runs on it, by the store's own account.
    """

    status: Literal["none", "missing", "invalid", "ready"]
    used: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes on disk: `table` with everything but the search index, `index` the search index alone."""

    table: int
    index: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `doctor` looked at.

    `subject`: what was looked at, in a few words. `found`: what is there, as a sentence. `remedy`: what to
    do, with the statement or command to run; empty where nothing has to be done.
    """

    level: Literal["ok", "warning", "broken"]
    subject: str
    found: str
    remedy: str = ""
