"""What is in a collection of a Qdrant server that another program made, and how it would be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, cast

from ...errors import (
    FeatureMissing,
    InputError,
)
from ...manifest import Adopted, check_name
from ...types import Element, Index, Layout
from .. import Found as Adoptable
from .. import Wanted
from . import blobs, borrowed
from .adoption import METRICS, exists, shown, vectors
from .conditions import filled
from .engine import Engine, Json
from .filters import key
from .generations import Generations

if TYPE_CHECKING:
    pass

__all__ = ["look"]

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
_IDS = 5_000  # points read at once
_SINCE = "1.13.0"  # conditions on whether a point has a vector


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
        metric = METRICS[vector["distance"]]
        if wanted.metric not in (None, metric):
            raise InputError(
                f"{shown(vector_name)} of {table!r} is compared by {vector['distance']}, which is {metric}; "
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
        table, wanted, there = self.wanted.table, self.wanted.embedding, vectors(description)
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
            raise InputError(f"{shown(name)} of {table!r} {_objection(one)}")
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
        maker = next(
            (one for one, (_, keys, _) in borrowed.MAKERS.items() if all(keys <= each for each in seen)), ""
        )
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
        id, document, metadata = borrowed.MAKERS[maker][2] if maker else ("", None, "")
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


def _objection(vector: Json) -> str:
    """Why a vector cannot be searched, "" where it can."""
    if vector.get("multivector_config"):
        return "holds several vectors for each point (multivector): expected one"
    if vector["distance"] not in METRICS:
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


def _listed(vectors: Iterable[str]) -> str:
    return " and ".join(shown(one) for one in sorted(vectors))
