"""The seam inside the Qdrant backend: what gRPC, REST and Edge each do in their own way.

Configurations, filters and search parameters are Qdrant's own JSON, as its REST API documents it; each engine
translates at its edge. Point ids are UUIDs, and in the collections of others also whole numbers, as text.
Engines raise vecbridge's errors, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ...limits import Limits
from ...types import Progress, Sizes

if TYPE_CHECKING:
    from ...types import Floats

Json: TypeAlias = dict[str, Any]

# the names of the two vectors where a point has two; a single one is Qdrant's unnamed default vector
FULL, SHORT = "full", "short"


def by_name(vectors: Json) -> dict[str, Json]:
    """The vectors of a collection's configuration by name; a single one, which has none, under ""."""
    return {"": vectors} if "size" in vectors else dict(vectors)


def number_of(id: str) -> int | None:
    """The whole number that a point's id is, None for a UUID."""
    return int(id) if id.isascii() and id.isdecimal() else None


def raw_id(id: str) -> int | str:
    """A point's id as Qdrant's JSON has it."""
    number = number_of(id)
    return id if number is None else number


@dataclass(frozen=True, slots=True)
class Points:
    """Points by column: `vectors` by name (a single one under ""), each float32 (n, d), C-contiguous."""

    ids: Sequence[str]
    vectors: Mapping[str, Floats]
    payloads: Sequence[Json]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Query:
    """One search: the `limit` points nearest to `vector`, float32 (d,), among those that match `filter`.

    `using`: the vector's name, "" for the single one. `params`: Qdrant's SearchParams. `prefetch`: a search
    whose hits alone are then compared with `vector` (its own `filter` counts, this one's is not needed).
    """

    vector: Floats
    limit: int
    using: str = ""
    params: Json | None = None
    filter: Json | None = None
    prefetch: Query | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A point found: Qdrant's own score (the distance itself for Euclid), its payload and its id."""

    score: float
    payload: Json
    id: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """Points read back by column; `payloads` and `vectors` are empty and None where they were not asked for.

    `vectors`: the single or the full vector of each, float32 (n, d); None also where no point came. Points
    without one are left out where they were asked for.
    """

    ids: list[str]
    payloads: list[Json]
    vectors: Floats | None = None


class Engine(Protocol):
    """One Qdrant: a server, a cluster, or Edge in this process. Safe to use from several threads.

    Every method that names a collection raises CollectionNotFound where there is none, StoreError once the
    engine is closed, and else what `failures` makes of Qdrant's answer.
    """

    @property
    def url(self) -> str:
        """Where this is, without key: fit for messages."""

    def limits(self) -> Limits:
        """What this version of Qdrant can do."""

    def collections(self) -> list[str]:
        """Names of all collections, whoever made them, in any order; not of where `keep` keeps."""

    def create(self, name: str, config: Json) -> None:
        """Make a collection as PUT /collections/{name} does; all of it or nothing. Raises CollectionExists.

        `config["metadata"]`, where given, is kept and comes back in `describe`.
        """

    def describe(self, name: str) -> Json:
        """The `result` of GET /collections/{name}: status, config, points_count, indexed_vectors_count."""

    def drop(self, name: str) -> None:
        """Delete a collection with everything in it."""

    def index_field(self, name: str, field: str, schema: str) -> None:
        """Index a payload field as "keyword", "integer", "float" or "bool"."""

    def annotate(self, name: str, values: Json) -> None:
        """Replace these keys of the metadata as PATCH /collections/{name} does: in one step and durably.

        Only where `limits` has "collection metadata".
        """

    def paused(self, name: str) -> AbstractContextManager[None]:
        """While this is held, whoever else in this process writes to the collection waits, where that can be.

        Raises Busy where somebody writes, or builds, for too long.
        """

    def optimise(self, name: str, change: Json, progress: Progress | None) -> None:
        """Change the configuration as PATCH /collections/{name} does, and return when all is built.

        Raises IndexFailure where Qdrant reports an error instead.
        """

    def upsert(self, name: str, points: Points) -> None:
        """Insert or replace points; durable and visible when this returns.

        One request for all where the engine's limits allow, else several; doing it again completes it.
        """

    def query(self, name: str, queries: Sequence[Query]) -> list[list[Scored]]:
        """The answer to each query, nearest first."""

    def retrieve(
        self, name: str, ids: Sequence[str], *, payload: Sequence[str] | bool, vectors: str | None
    ) -> Found:
        """Points by id, those that are there, in any order.

        `payload`: all of it, none, or these top-level keys. `vectors`: the name of the vector to read ("" for
        a single one), None for none.
        """

    def scroll(
        self,
        name: str,
        *,
        limit: int,
        filter: Json | None = None,
        offset: str | None = None,
        payload: Sequence[str] | bool,
        vectors: str | None = None,
    ) -> tuple[Found, str | None]:
        """Up to `limit` points in the order of their ids, from `offset` on; and the id after the last."""

    def count(self, name: str, filter: Json | None = None) -> int:
        """Exact number of points, or of those that match."""

    def delete(self, name: str, ids: Sequence[str]) -> None:
        """Remove points by id; those that are not there are no error."""

    def sizes(self, name: str) -> Sizes:
        """Bytes on disk; computed from counts where Qdrant does not tell."""

    @property
    def moves(self) -> int:
        """How often `moved` was called, as far as is known here: on Edge, by everybody."""

    def moved(self, names: Sequence[str]) -> None:
        """These collections are now another's by name: what waits to write to one of them ends with
        CollectionNotFound, where that can be."""

    def keep(self, key: str, content: bytes) -> None:
        """Store bytes beside the collections, under a key of letters, digits and dashes."""

    def kept(self, key: str) -> bytes | None:
        """The bytes under this key, None where there are none."""

    def forget(self, key: str) -> None:
        """Remove what is under this key, if anything is."""

    def close(self) -> None:
        """Give back connections, files and locks. May be called twice."""
