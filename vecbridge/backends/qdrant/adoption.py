"""Collections that other programs made in a Qdrant server: read, never written to.

Neither a point of theirs is changed nor a setting. What vecbridge adds is a manifest, kept beside the
collections under a key of its own (see `blobs`); of two that adopt under one name at the same moment, the
later one stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, Self

from ...errors import (
    CollectionExists,
    CollectionNotFound,
    Forbidden,
    IndexFailure,
    ManifestError,
    VecbridgeError,
)
from ...manifest import Manifest
from ...types import Batch, Hit, IndexState, Layout, Metric, Progress
from . import blobs, borrowed, config
from .conditions import all_of, matching
from .engine import Engine, Found, Json, Scored, by_name
from .filters import Bounds, compile, key
from .table import Table

if TYPE_CHECKING:
    from ...filters import Filter

__all__ = ["AdoptedTable", "Adoptions", "about_index", "compare", "exists", "unlike"]

METRICS: dict[str, Metric] = {"Cosine": "cosine", "Dot": "ip", "Euclid": "l2"}
_START = "adopted-"
_IDS = 5_000  # points read at once


class Adoptions:
    """The manifests of adopted collections in one Qdrant, by the names that they were made as."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def names(self) -> list[str]:
        return [one.removeprefix(_START) for one in blobs.keys(self._engine, _START)]

    def find(self, made: str) -> Manifest | None:
        """What is remembered under this name. Raises ManifestError where that is damaged."""
        content = self._engine.kept(_START + made)
        return None if content is None else Manifest.load(content.decode("utf-8", "replace"), b"")

    def there(self, made: str) -> bool:
        """Whether anything is remembered under this name, be it damaged."""
        return self._engine.kept(_START + made) is not None

    def keep(self, made: str, manifest: Manifest) -> None:
        self._engine.keep(_START + made, manifest.dump()[0].encode())

    def forget(self, made: str) -> None:
        self._engine.forget(_START + made)

    def requests(self, made: str, manifest: Manifest) -> list[str]:
        """What `keep` would send."""
        return blobs.requests(self._engine, _START + made, manifest.dump()[0].encode())


class AdoptedTable(Table):
    """A collection whose points are another's. Its owner may write to it at any time; here nobody does.

    `made`: the name that it was adopted as, where it has another one by now.
    """

    _plain = _told = True

    def __init__(
        self, engine: Engine, manifest: Manifest, *, physical: str | None = None, made: str | None = None
    ) -> None:
        assert manifest.adopted is not None
        super().__init__(engine, manifest, physical=physical or manifest.adopted.table)
        self._adopted = manifest.adopted
        self._adoptions = Adoptions(engine)
        self._made = made or manifest.name
        self._full = self._adopted.embedding
        self._reading = borrowed.reading(self._adopted)
        self._records = borrowed.vector(self._adopted)

    def searched(self, layout: Layout) -> Self:
        made = super().searched(layout)
        made._made = self._made
        return made

    # what is refused

    def write(self, batch: Batch) -> None:
        """Raises Forbidden."""
        raise self._refusal()

    def delete(self, ids: Sequence[str]) -> int:
        """Raises Forbidden."""
        raise self._refusal()

    def delete_where(self, where: Filter) -> int:
        """Raises Forbidden."""
        raise self._refusal()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Raises Forbidden: whoever owns the collection is not made to wait."""
        if self.manifest.adopted is not None:
            raise self._refusal()
        yield

    def _refusal(self) -> Forbidden:
        whose = (
            f"{borrowed.MAKERS[self._adopted.maker][0]}'s"
            if self._adopted.maker in borrowed.MAKERS
            else "its owner's"
        )
        return Forbidden(
            f"collection {self.manifest.name!r} is {self._adopted.said}, which is "
            f"{whose}: vecbridge only reads it. Write with {whose} own code; for a collection that vecbridge "
            f"may change, copy it to one of its own (vecbridge copy)"
        )

    # what it is called

    def _lost(self) -> VecbridgeError:
        if not self._adoptions.there(self._made):
            return self._generations.missing(self.manifest.name)
        return _gone(self.manifest, self._engine.url)

    def _check_name(self) -> None:
        moves = self._engine.moves
        if moves == self._moves:
            return
        name = self.manifest.name
        if self._generations.names().now(self._made) != name:
            raise self._generations.changed(name)
        if not self._adoptions.there(self._made):
            raise self._generations.missing(name)
        self._moves = moves

    def keep(self, manifest: Manifest) -> None:
        with self._there():
            if not self._adoptions.there(self._made):
                raise self._generations.missing(manifest.name)
            self._adoptions.keep(self._made, manifest)
        self._manifest = manifest

    # how records lie in payloads

    def _bounds(self, where: Filter | None) -> Bounds | None:
        return None if where is None else compile(where, self._reading)

    def _among(self, where: Filter | None) -> Bounds | None:
        found = self._bounds(where)
        if found is None:
            return Bounds(self._records, self._records, True)
        over, under = (all_of([self._records, one]) for one in (found.over, found.under))
        return Bounds(over, under, found.exact)

    def _batch(self, found: Found, dim: int) -> Batch:
        return borrowed.batch(found, dim, self._adopted)

    def _hit(self, one: Scored) -> Hit:
        return borrowed.hit(one, self._adopted, euclid=self._euclid)

    def _metadata(self, payload: Json) -> dict[str, Any]:
        return borrowed.metadata_of(payload, self._adopted)

    def _retrieved(
        self,
        ids: Sequence[str],
        payload: Sequence[str] | bool,
        *,
        vectors: str | None = None,
        size: int = _IDS,
    ) -> Iterator[Found]:
        at = key((self._adopted.id,), ()) if self._adopted.id else None
        if at is None:
            # what is not written as Qdrant writes it is no id
            ids = [id for id in ids if borrowed.is_point(id)]
        for start in range(0, len(ids), size):
            some = list(ids[start : start + size])
            if at is None:
                with self._there() as name:
                    found = self._engine.retrieve(name, some, payload=payload, vectors=vectors)
                yield found
                continue
            named, offset = all_of([self._records, matching(at, some)]), None
            while True:
                with self._there() as name:
                    found, offset = self._engine.scroll(
                        name, limit=size, filter=named, offset=offset, payload=payload, vectors=vectors
                    )
                yield found
                if offset is None:
                    break

    def digests(self, ids: Sequence[str]) -> dict[str, bytes]:
        """None: nobody kept any."""
        return {}

    def inventory(self) -> Iterator[list[tuple[str, bytes | None]]]:
        """Ids of all records, each with None: nobody kept a digest."""
        for found in self._pages(self._records, bool(self._adopted.id)):
            payloads = found.payloads or [{} for _ in found.ids]
            yield [
                (borrowed.id_of(id, payload, self._adopted), None)
                for id, payload in zip(found.ids, payloads, strict=True)
            ]

    def sample(self, n: int, *, seed: int) -> Batch:
        """Those whose ids, hashed with the seed, come first: ids of others may lie in any order."""
        salt = seed.to_bytes(16, "little", signed=True)

        def hashes() -> Iterator[tuple[bytes, str]]:
            for found in self._pages(self._records, False):
                yield from ((blake2b(id.encode(), digest_size=8, key=salt).digest(), id) for id in found.ids)

        chosen = [id for _, id in nsmallest(n, hashes())]
        size = self._reads
        batches = []
        for start in range(0, len(chosen), size):
            with self._there() as name:
                found = self._engine.retrieve(
                    name, chosen[start : start + size], payload=True, vectors=self._full
                )
            batches.append(found)
        return self._ordered(batches, [id for part in batches for id in self._batch(part, 0).ids])

    # the graph, which is its owner's

    def _thorough(self) -> Json:
        # quantised copies, which its owner may have made since, are no vectors
        return {"exact": True, "quantization": {"ignore": True}}

    def _approximate(self, where: Filter | None) -> Json:
        params = super()._approximate(where)
        return params if config.quantised(self.manifest) else {**params, "quantization": {"ignore": True}}

    def build_index(self, progress: Progress | None) -> None:
        """Nothing where its owner has built the graph. Raises IndexFailure where he has not."""
        state = self.index_state()
        if state.status not in ("none", "ready"):
            raise IndexFailure(
                f"collection {self.manifest.name!r} is {self._adopted.said}, whose "
                f"graph is its owner's to build: {state.detail}. Searches compare all points until then"
            )

    def _state(self, description: Json) -> IndexState:
        state = super()._state(description)
        if state.status != "missing":
            return state
        settings = description.get("config") or {}
        if not config.graph_of(self.manifest, settings).get("m"):
            return replace(state, detail="he has turned it off (m = 0)")
        if (settings.get("optimizer_config") or {}).get("indexing_threshold") == 0:
            return replace(state, detail="he has turned indexing off (indexing_threshold = 0)")
        status = description.get("status")
        if status == "yellow":
            return replace(state, detail="Qdrant is building it")
        if status == "grey":
            return replace(state, detail="the server was started again and waits for the next write")
        return state


def _gone(manifest: Manifest, url: str) -> ManifestError:
    assert manifest.adopted is not None
    return ManifestError(
        f"collection {manifest.name!r} has lost {manifest.adopted.said} in {url}, "
        f"which it reads: it is gone; drop the collection, or adopt another one"
    )


def compare(manifest: Manifest, description: Json | None, url: str) -> None:
    """Raise ManifestError where the owner's collection is not what was adopted; None where it is gone."""
    adopted = manifest.adopted
    assert adopted is not None
    if description is None:
        raise _gone(manifest, url)
    if wrong := unlike(manifest, description):
        raise ManifestError(
            f"{adopted.said} in {url} is not as it was when collection "
            f"{manifest.name!r} adopted it: {wrong}; drop the collection, which leaves that one alone, and "
            f"adopt it again"
        )


def unlike(manifest: Manifest, description: Json) -> str:
    """What is not as it was when the collection was adopted, "" where all is."""
    adopted, space = manifest.adopted, manifest.space
    assert adopted is not None
    vector = vectors(description).get(adopted.embedding)
    if vector is None:
        return f"{shown(adopted.embedding)} is missing"
    there = (vector["size"], METRICS.get(vector["distance"]), vector.get("datatype") or "float32")
    wanted = (space.dim, space.metric, manifest.layout.element)
    if there == wanted and not vector.get("multivector_config"):
        return ""
    return (
        f"{shown(adopted.embedding)} has {vector['size']:,} dimensions of {there[2]} under "
        f"{vector['distance']}, expected {space.dim:,} of {manifest.layout.element} under {space.metric}"
    )


def vectors(description: Json) -> dict[str, Json]:
    """The dense vectors of each point by name, and what a collection says of each."""
    return by_name(((description.get("config") or {}).get("params") or {}).get("vectors") or {})


def shown(vector: str) -> str:
    """A vector's name, for messages."""
    return f"vector {vector!r}" if vector else "the vector without a name"


def exists(name: str, url: str) -> CollectionExists:
    """The error for a name that is taken."""
    return CollectionExists(
        f"collection {name!r} is in {url} already; open it, drop it, or take another name"
    )


def about_index(table: AdoptedTable) -> str:
    """What the owner's graph serves, in sentences."""
    index = table.manifest.layout.index
    if index is None:
        return (
            "No graph (m is 0): every search is exact. To have one is its owner's choice, and vecbridge "
            "changes no setting; adopt the collection again once it has one."
        )
    state = table.index_state()
    graph = f"the owner's graph (m={index.m}, ef_construct={index.ef_construction})"
    copies = "" if index.element == table.manifest.layout.element else f" over {index.element} copies"
    said = f"Searches walk {graph}{copies}; vecbridge leaves it as it is."
    if state.status == "ready":
        return f"{said} For now there are {state.detail}." if state.detail else said
    return f"{said} It does not serve yet: {state.detail}. Until then Qdrant compares all points."


def adopt(engine: Engine, manifest: Manifest, made: str) -> AdoptedTable:
    """The collection that a manifest describes. Raises ManifestError, CollectionExists."""
    assert manifest.adopted is not None
    table = AdoptedTable(engine, manifest, made=made)
    try:
        compare(manifest, engine.describe(table.physical), engine.url)
    except CollectionNotFound as error:
        raise _gone(manifest, engine.url) from error
    adoptions = Adoptions(engine)
    adoptions.keep(made, manifest)
    if adoptions.find(made) != manifest:
        raise exists(manifest.name, engine.url)
    return table
