"""Collections that other programs made in a Qdrant server: looked at and read, never written to.

Neither a point of theirs is changed nor a setting. What vecbridge adds is a manifest, kept beside the
collections under a key of its own (see `blobs`); of two that adopt under one name at the same moment, the
later one stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from ...errors import (
    CollectionExists,
    CollectionNotFound,
    FeatureMissing,
    Forbidden,
    IndexFailure,
    InputError,
    ManifestError,
    VecbridgeError,
)
from ...manifest import Adopted, Manifest, check_name
from ...types import Batch, Element, Hit, Index, IndexState, Layout, Metric, Progress
from .. import Found as Adoptable
from .. import Wanted
from . import blobs, borrowed, config
from .conditions import all_of, filled, matching
from .engine import Engine, Found, Json, Scored, by_name
from .filters import Bounds, compile, key
from .generations import Generations
from .table import Table

if TYPE_CHECKING:
    from ...filters import Filter

__all__ = ["AdoptedTable", "Adoptions", "about_index", "compare", "look", "unlike"]

# what makes such payloads: its name for people, the keys that tell it, and what is in which
MAKERS: Mapping[str, tuple[str, frozenset[str], tuple[str, str, str]]] = {
    # langchain-qdrant 1.1.0, qdrant.py QdrantVectorStore: CONTENT_KEY and METADATA_KEY
    "langchain": ("LangChain", frozenset({"page_content", "metadata"}), ("", "page_content", "metadata")),
    # llama-index-vector-stores-qdrant 0.10.4, base.py _build_points: node_to_metadata_dict
    borrowed.LLAMA_INDEX: (
        "LlamaIndex",
        frozenset({"_node_content", "_node_type"}),
        ("", "_node_content", ""),
    ),
    # qdrant-haystack 13.1.0, converters.py: Document.to_dict(flatten=False), its id made the point's UUID
    "haystack": ("Haystack", frozenset({"id", "content", "meta"}), ("id", "content", "meta")),
}
_METRICS: dict[str, Metric] = {"Cosine": "cosine", "Dot": "ip", "Euclid": "l2"}
_TURBO: dict[str, Element] = {"bits4": "turbo4", "bits2": "turbo2", "bits1": "turbo1"}
# how widely graphs over quantised copies are searched, as in those that vecbridge plans: candidates for each
# hit, and width of the walk
_WIDTHS: dict[Element, tuple[int, int]] = {
    "int8": (4, 256),
    "turbo4": (4, 256),
    "turbo2": (10, 256),
    "turbo1": (40, 400),
    "bit": (40, 400),
}
_SEEN = 100  # points by whose payloads a library is told
_START = "adopted-"
_SINCE = "1.13.0"  # conditions on whether a point has a vector
_IDS = 5_000


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
        whose = f"{MAKERS[self._adopted.maker][0]}'s" if self._adopted.maker in MAKERS else "its owner's"
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
    vector = _vectors(description).get(adopted.embedding)
    if vector is None:
        return f"{_shown(adopted.embedding)} is missing"
    there = (vector["size"], _METRICS.get(vector["distance"]), vector.get("datatype") or "float32")
    wanted = (space.dim, space.metric, manifest.layout.element)
    if there == wanted and not vector.get("multivector_config"):
        return ""
    return (
        f"{_shown(adopted.embedding)} has {vector['size']:,} dimensions of {there[2]} under "
        f"{vector['distance']}, expected {space.dim:,} of {manifest.layout.element} under {space.metric}"
    )


# --- looking ------------------------------------------------------------------------------------------


def look(engine: Engine, wanted: Wanted, taken: Callable[[str], bool]) -> Adoptable:
    """What is in a collection, and how it would be read; changes nothing. Raises as `adoptable` does.

    `taken`: whether there is a collection of vecbridge of this name.
    """
    return _Look(engine, wanted, taken).all()


class _Look:
    def __init__(self, engine: Engine, wanted: Wanted, taken: Callable[[str], bool]) -> None:
        self.engine = engine
        self.wanted = wanted
        self.taken = taken
        self.notes: list[str] = []

    def all(self) -> Adoptable:
        wanted, table = self.wanted, self.wanted.table
        if wanted.part is not None:
            raise InputError("a Qdrant collection is adopted as a whole: leave --part")
        description = self._description()
        vector_name, vector = self._vector(description)
        metric = _METRICS[vector["distance"]]
        if wanted.metric not in (None, metric):
            raise InputError(
                f"{_shown(vector_name)} of {table!r} is compared by {vector['distance']}, which is {metric}; "
                f"got the metric {wanted.metric!r}"
            )
        adopted = self._payload(Adopted("", table, "", "", vector_name))
        name = self._name()
        rows = self.engine.count(table, borrowed.vector(adopted))
        if wanted.id is not None:
            self._check_ids(adopted)
        if metric == "cosine":
            self.notes.append(
                "under cosine Qdrant keeps vectors at unit length, so that those read back have it; scores "
                "and recall are not changed by that"
            )
        layout = self._layout(vector, description)
        return Adoptable(
            name=name,
            adopted=adopted,
            rows=rows,
            dim=vector["size"],
            element=layout.element,
            metric=metric,
            layout=layout,
            served="" if layout.index is None else table,
            no_index="",
            notes=tuple(self.notes),
        )

    def _description(self) -> Json:
        table, url = self.wanted.table, self.engine.url
        if lacking := self.engine.limits().lacks("to adopt a collection", _SINCE):
            raise FeatureMissing(f"{url}: {lacking}")
        generations = Generations(self.engine)
        found = generations.look(table) if table != blobs.NAME else None
        if found is None:
            there = sorted(self.engine.collections())
            hint = f"; there are {', '.join(there[:10])}" if there else ""
            raise InputError(f"{url}: there is no collection {table!r}{hint}")
        if found.ours:
            raise InputError(f"{table!r} in {url} is a collection of vecbridge's own already: open it")
        return found.description

    def _vector(self, description: Json) -> tuple[str, Json]:
        """The vector that is meant, and its parameters."""
        table, wanted, there = self.wanted.table, self.wanted.embedding, _vectors(description)
        if not there:
            params = (description.get("config") or {}).get("params") or {}
            kind = "sparse vectors alone" if params.get("sparse_vectors") else "no vectors"
            raise InputError(f"{table!r} has {kind}: expected a collection with dense vectors")
        if wanted is not None and wanted not in there:
            raise InputError(f"{table!r} has no vector {wanted!r}; it has {_listed(there)}")
        chosen = there if wanted is None else {wanted: there[wanted]}
        fit = {name: one for name, one in chosen.items() if not _objection(one)}
        if not fit:
            name, one = next(iter(chosen.items()))
            raise InputError(f"{_shown(name)} of {table!r} {_objection(one)}")
        if len(fit) > 1:
            raise InputError(f"{table!r} has {_listed(fit)}; say which: --embedding")
        if len(fit) < len(there):
            left = [name for name in there if name not in fit]
            self.notes.append(f"not read: {_listed(left)}")
        return next(iter(fit.items()))

    def _payload(self, adopted: Adopted) -> Adopted:
        """What in the payload is what."""
        wanted, table = self.wanted, self.wanted.table
        page, _ = self.engine.scroll(table, limit=_SEEN, payload=True)
        seen = [set(payload) for payload in page.payloads if payload]
        maker = next((one for one, (_, keys, _) in MAKERS.items() if all(keys <= each for each in seen)), "")
        if not seen:
            maker = ""
            if wanted.document is None and wanted.metadata is None:
                raise InputError(
                    f"{table!r} has no payloads yet that would tell what is in them: say --document and "
                    f"--metadata, or adopt it when there are points"
                )
        if wanted.metadata is not None and len(wanted.metadata) != 1:
            raise InputError(
                f"expected one key of the payload that holds the metadata, got {', '.join(wanted.metadata)}"
            )
        said = (wanted.id, wanted.document, None if wanted.metadata is None else wanted.metadata[0])
        known: set[str] = set().union(*seen)
        for one in said:
            if one is not None:
                self._check_key(one, known)
        id, document, metadata = MAKERS[maker][2] if maker else ("", None, "")
        if maker == borrowed.LLAMA_INDEX and wanted.document is not None:
            maker = ""
        return replace(
            adopted,
            id=id if wanted.id is None else wanted.id,
            document=document if wanted.document is None else wanted.document,
            metadata=metadata if said[2] is None else said[2],
            maker=maker,
        )

    def _check_key(self, name: str, known: set[str]) -> None:
        table, at = self.wanted.table, key((name,), ())
        if not name or at is None:
            raise InputError(f"expected a key of the payload without quotes and backslashes, got {name!r}")
        if known and name not in known and not self.engine.count(table, filled(at)):
            raise InputError(
                f"no point of {table!r} has {name!r} in its payload; the first have "
                f"{', '.join(sorted(known)[:20])}"
            )

    def _name(self) -> str:
        name = self.wanted.name
        if name is None:
            name = self.wanted.table
            try:
                check_name(name)
            except InputError as error:
                raise InputError(f"{error}; give the collection another one: --name") from None
        check_name(name)
        if self.taken(name):
            raise exists(name, self.engine.url)
        return name

    def _check_ids(self, adopted: Adopted) -> None:
        """Raise InputError unless a text of its own names each record."""
        table, at = self.wanted.table, key((adopted.id,), ())
        assert at is not None
        seen: set[str] = set()
        offset: str | None = None
        while True:
            page, offset = self.engine.scroll(
                table, limit=_IDS, filter=borrowed.vector(adopted), offset=offset, payload=[at]
            )
            for payload in page.payloads:
                id = payload.get(adopted.id)
                if not isinstance(id, str):
                    raise InputError(
                        f"expected a text under {adopted.id!r} in the payload of every point of {table!r}, "
                        f"found {str(id)[:40]}; leave --id, and the points' own ids name them"
                    )
                if id in seen:
                    raise InputError(
                        f"several points of {table!r} have {id[:80]!r} as their {adopted.id}; ids must be "
                        f"unique: leave --id, and the points' own ids name them"
                    )
                seen.add(id)
            if offset is None:
                break
        self.notes.append(f"nothing keeps {adopted.id} unique: of points that share one, get() returns one")

    def _layout(self, vector: Json, description: Json) -> Layout:
        """The layout that the owner's graph is the index of."""
        stored = cast(Literal["float32", "float16"], vector.get("datatype") or "float32")
        settings = description.get("config") or {}
        own = {name: one for name, one in (vector.get("hnsw_config") or {}).items() if one is not None}
        graph = {**(settings.get("hnsw_config") or {}), **own}
        if not graph.get("m"):
            return Layout(stored)
        element = _quantised(vector.get("quantization_config") or settings.get("quantization_config") or {})
        oversample, width = (1, 256) if element is None else _WIDTHS[element]
        built = max(graph.get("ef_construct") or 100, 4)
        index = Index(
            "hnsw", element or stored, m=graph["m"], ef_construction=built, ef_search=max(width, built)
        )
        return Layout(stored, index=index, oversample=oversample)


def _vectors(description: Json) -> dict[str, Json]:
    return by_name(((description.get("config") or {}).get("params") or {}).get("vectors") or {})


def _objection(vector: Json) -> str:
    """Why a vector cannot be searched, "" where it can."""
    if vector.get("multivector_config"):
        return "holds several vectors for each point (multivector): expected one"
    if vector["distance"] not in _METRICS:
        return f"is compared by {vector['distance']}: expected Cosine, Dot or Euclid"
    if (datatype := vector.get("datatype") or "float32") not in ("float32", "float16"):
        return f"is stored as {datatype}: expected float32 or float16"
    return ""


def _quantised(quantisation: Json) -> Element | None:
    """The quantised copies that a graph is walked over, None where there are none that vecbridge knows."""
    if "scalar" in quantisation:
        return "int8"
    if "binary" in quantisation:
        return "bit"
    if "turbo" in quantisation:
        return _TURBO.get(quantisation["turbo"].get("bits") or "bits4")
    return None


def _shown(vector: str) -> str:
    return f"vector {vector!r}" if vector else "the vector without a name"


def _listed(vectors: Iterable[str]) -> str:
    return " and ".join(_shown(one) for one in sorted(vectors))


# --- saying -------------------------------------------------------------------------------------------


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
