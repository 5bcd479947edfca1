"""Stores: one place that holds collections, or several that are one. The only door to `Collection`."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from numpy.typing import ArrayLike

from . import adopting, backends, calibrations, checks, conform, planner
from .adopting import Adoption
from .backends import Adopting, Backend, Table, Wanted
from .collection import Collection, table_of
from .errors import (
    Busy,
    CollectionExists,
    CollectionNotFound,
    InputError,
    ManifestError,
    PlanError,
    StoreError,
    Unavailable,
    UrlError,
)
from .limits import Limits
from .manifest import Chunking, Manifest, check_name
from .planner import DEFAULT_ROWS, Plan, Wishes, make_space, whole_number
from .speeds import Speeds
from .types import FieldKind, Layout, Metric, Progress, Space

if TYPE_CHECKING:
    from .evidence import Evidence

__all__ = ["Collection", "Place", "Store", "connect", "table_of"]

T = TypeVar("T")


# a place may come back from these by itself
_AWAY = (Unavailable, Busy)
# seconds for which a place that did not answer is not waited for where another one has what is looked for
_REST = 30.0


def connect(*urls: str) -> Store:
    """The store that URLs name, each as `flat:PATH`, `pgvector:PATH`, `postgresql://…` or `qdrant://…`.

    Several URLs are one store made of several places. It connects to those that answer, and raises where
    none does. The order counts: among places that suit a collection equally, the first gets it.

    Raises UrlError, MissingExtra, Unavailable, Forbidden, FeatureMissing, Busy.
    """
    if not urls:
        raise UrlError("expected one or more store URLs, got none")
    if len(set(urls)) < len(urls):
        raise UrlError("expected every store URL once, got one of them twice")
    with ExitStack() as undo:
        places = []
        for url in urls:
            place = Place(url)
            undo.callback(place.close)
            places.append(place)
        silent = []
        for place in places:
            try:
                place.ask(lambda backend: backend.url)
            except _AWAY as error:
                silent.append(error)
        if len(silent) == len(places):
            raise silent[0]
        shown = [place.url for place in places]
        for url in shown:
            if shown.count(url) > 1:
                raise UrlError(f"expected every place once, got {url} twice")
        undo.pop_all()
    return Store(places)


class Place:
    """One of the places that a store is made of. It connects when it is needed, and again if that failed."""

    def __init__(self, url: str) -> None:
        self._given = url
        self._shown = backends.shown(url)
        self._backend: Backend | None = None
        self._closed = False
        self._connecting = threading.Lock()
        self._failed = -math.inf

    @property
    def url(self) -> str:
        """Where this is, without password."""
        return self._shown

    @property
    def limits(self) -> Limits:
        """What can be held and indexed here. Raises Unavailable while it does not answer."""
        return self.ask(lambda backend: backend.limits())

    @property
    def speeds(self) -> Speeds | None:
        """How fast it is, as `vecbridge calibrate` found the last time; None where that was never run."""
        try:
            return calibrations.known(self.url)
        except InputError:
            # a damaged file makes times rough; the next calibration sets it aside
            return None

    @property
    def away(self) -> bool:
        """Whether it did not answer just now."""
        return monotonic() - self._failed < _REST

    def __repr__(self) -> str:
        return f"<vecbridge.Place {self.url}>"

    def ask(self, question: Callable[[Backend], T]) -> T:
        """What the question returns when it is put to the backend. Raises what connecting raises, too."""
        try:
            answer = question(self._connected())
        except _AWAY:
            self._failed = monotonic()
            raise
        self._failed = -math.inf
        return answer

    def _connected(self) -> Backend:
        with self._connecting:
            if self._closed:
                raise StoreError(f"{self.url} was closed; connect again")
            if self._backend is None:
                self._backend = backends.connect(self._given)
                self._shown = self._backend.url
            return self._backend

    def close(self) -> None:
        """Give back connections, files and locks. May be called twice."""
        with self._connecting:
            self._closed = True
            if self._backend is not None:
                self._backend.close()


class Store:
    """What holds collections: one place or several. Close it, or use it in a `with`; safe for threads.

    In a store of several places a name exists once, wherever the collection lies. While a place does not
    answer, collections in the others can be used; what has to know all places (`create`, `collections`, a
    name that no other place has) raises Unavailable, and asks it again each time.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = tuple(places)

    @property
    def places(self) -> tuple[Place, ...]:
        """The places that it is made of, in the order given."""
        return self._places

    @property
    def urls(self) -> tuple[str, ...]:
        """Where they are, without passwords."""
        return tuple(place.url for place in self._places)

    @property
    def url(self) -> str:
        """Where this is, without password; several URLs with blanks between them."""
        return " ".join(self.urls)

    @property
    def limits(self) -> Limits:
        """What this very store can hold and index, where it is a single place.

        Raises InputError for a store of several places: each has its own, see `places`.
        """
        if len(self._places) > 1:
            raise InputError(
                f"{self.url} are several places; each has its own limits: store.places[0].limits"
            )
        return self._places[0].limits

    def __repr__(self) -> str:
        return f"<vecbridge.Store {self.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back connections, files and locks, those of every place even if one of them fails."""
        with ExitStack() as each:
            for place in self._places:
                each.callback(place.close)

    def collections(self) -> list[str]:
        """Names of the collections here, sorted. Raises Unavailable while a place does not answer."""
        return sorted({name for place in self._places for name in place.ask(lambda backend: backend.names())})

    def plan(
        self,
        dim: int | None = None,
        *,
        metric: Metric = "cosine",
        rows: int = DEFAULT_ROWS,
        model: str | None = None,
        nested: Sequence[int] | None = None,
        memory: int | str | None = None,
        disk: int | str | None = None,
        latency: float | None = None,
        nodes: int | None = None,
        recall: float | None = None,
        k: int = planner.K,
        sample: ArrayLike | Evidence | None = None,
        queries: ArrayLike | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Plan:
        """What `create` would make of these vectors here, and why; makes nothing. See `vecbridge.plan`."""
        wishes: Wishes = {
            "metric": metric,
            "rows": rows,
            "model": model,
            "nested": nested,
            "memory": memory,
            "disk": disk,
            "latency": latency,
            "nodes": nodes,
            "recall": recall,
            "k": k,
            "sample": sample,
            "queries": queries,
            "seed": seed,
            "progress": progress,
        }
        return self._planned(dim, wishes)[1]

    def _planned(self, dim: int | None, wishes: Wishes) -> tuple[Place, Plan]:
        """Where the collection would go, and the plan for it."""
        places = [(place.url, place.limits) for place in self._places]
        speeds = [place.speeds for place in self._places]
        number, plan = planner.plan_places(dim, places=places, wishes=wishes, speeds=speeds)
        return self._places[number], plan

    def create(
        self,
        name: str,
        *,
        dim: int,
        metric: Metric = "cosine",
        rows: int = DEFAULT_ROWS,
        model: str | None = None,
        nested: Sequence[int] | None = None,
        layout: Layout | None = None,
        plan: Plan | None = None,
        sample: ArrayLike | None = None,
        memory: int | str | None = None,
        disk: int | str | None = None,
        latency: float | None = None,
        nodes: int | None = None,
        recall: float | None = None,
        filterable: Mapping[str, FieldKind] | None = None,
        chunking: Chunking | None = None,
        seed: int = 0,
    ) -> Collection:
        """A new, empty collection, whose layout (and place) is planned for this store and `rows` rows.

        `layout` overrules the plan; the collection goes to the first place that can hold it. `plan`: one that
        `Store.plan` made of these vectors, to be carried out as it is. `sample`, float (n, dim), is needed
        where the layout has a PCA; with `recall`, the plan rests on what is measured on it. `recall`: the
        recall@10 that searches shall have: once loaded, `build_index` tunes the search width for it and
        confirms it. `nested` are Matryoshka sizes of a model that vecbridge does not know; `memory` and
        `disk` (bytes, or "16GB") and `latency` (seconds) are budgets for the plan. `nodes`: machines of a
        Qdrant cluster, for servers that do not tell (by gRPC), to spread the collection over them.
        `filterable`: metadata fields that filters will use, as {"topic": "text", "year": "number",
        "draft": "boolean"}; Qdrant indexes them, other stores filter without. `chunking`: how the texts that
        will be loaded are cut, for the collection to remember. `seed` is that of measuring and fitting.
        Raises CollectionExists, PlanError, InputError, Unavailable; nothing is made then.
        """
        check_name(name)
        fields = checks.filterable(filterable)
        target = planner.share(recall)
        self._check_free(name)
        if layout is not None and plan is not None:
            raise InputError("expected a layout or a plan to make the collection by, got both")
        if plan is not None:
            place = self._place_for(plan, dim)
            space, layout, rows = plan.space, plan.layout, plan.rows
            target = plan.target if target is None else target
        elif layout is None:
            wishes: Wishes = {
                "metric": metric,
                "rows": rows,
                "model": model,
                "nested": nested,
                "memory": memory,
                "disk": disk,
                "latency": latency,
                "nodes": nodes,
                "recall": recall,
                "sample": None if recall is None else sample,
                "seed": seed,
            }
            place, plan = self._planned(dim, wishes)
            space, layout = plan.space, plan.layout
        else:
            space = make_space(dim, metric=metric, model=model, nested=nested)
            rows = whole_number(rows, "rows", 0)
            place = self._able(space, layout, nodes)
        rows_of = None if sample is None else checks.vectors(sample, space=space, what="the sample")
        reduction, inner = conform.fitted(space, layout, rows_of, seed=seed)
        manifest = Manifest(
            name, space, layout, rows, reduction, inner, filterable=fields, chunking=chunking, recall=target
        )
        table = place.ask(lambda backend: backend.create(manifest))
        return Collection(table, place=place, plan=plan)

    def _place_for(self, plan: Plan, dim: int) -> Place:
        """The place that a plan of this store is for. Raises InputError."""
        if plan.space.dim != dim:
            raise InputError(
                f"expected a plan for vectors of {dim:,} dimensions, got one for {plan.space.dim:,}"
            )
        for place in self._places:
            if place.url == plan.place:
                return place
        raise InputError(
            f"expected a plan that this store made ({', '.join(self.urls)}), got one for {plan.place}; "
            f"plan with store.plan(...)"
        )

    def _able(self, space: Space, layout: Layout, nodes: int | None) -> Place:
        """The first place that can hold this layout. Raises PlanError."""
        limits = planner.clustered([(place.url, place.limits) for place in self._places], nodes)
        objections = [
            (place, known.objection(space, layout))
            for place, (_, known) in zip(self._places, limits, strict=True)
        ]
        able = [place for place, objection in objections if objection is None]
        if not able:
            reasons = "; ".join(f"on {place.url}: {objection}" for place, objection in objections)
            raise PlanError(f"this layout cannot be made {reasons}")
        return able[0]

    def adoption(
        self,
        table: str,
        *,
        name: str | None = None,
        id: str | None = None,
        embedding: str | None = None,
        document: str | None = None,
        metadata: Sequence[str] | None = None,
        part: str | None = None,
        metric: Metric | None = None,
        model: str | None = None,
        nested: Sequence[int] | None = None,
        memory: int | str | None = None,
        disk: int | str | None = None,
        latency: float | None = None,
        recall: float | None = None,
        build_index: bool = True,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Adoption:
        """How a table that another library made would become a collection here; changes nothing.

        `table`: in PostgreSQL, as "notes" or "schema.notes", or the name of a Qdrant server's collection;
        what LangChain, LlamaIndex, Haystack, Mastra and Supabase vecs make is recognised. `id`, `embedding`,
        `document`, `metadata`: columns of others; in Qdrant keys of the payload, and the name of a vector.
        `part`: which of the collections that share the table. `name`: of the collection; that of the part or
        the table, if not given. `metric`: where no index of the table tells. The rest as for `create`: what
        index suits is planned, with `recall` on vectors of the table. `build_index`: whether the statements
        tell how it is built.
        Raises InputError where it must be said more clearly what is meant, CollectionExists, PlanError,
        Forbidden.
        """
        wanted = Wanted(
            table, name, id, embedding, document, None if metadata is None else tuple(metadata), part, metric
        )
        wishes: Wishes = {
            "model": model,
            "nested": nested,
            "memory": memory,
            "disk": disk,
            "latency": latency,
            "recall": recall,
            "seed": seed,
            "progress": progress,
        }
        for place in self._places:
            if place.ask(lambda backend: isinstance(backend, Adopting)):
                found = adopting.adoption(place, wanted, wishes, build_index=build_index)
                self._check_free(found.manifest.name)
                return found
        raise InputError(
            f"expected a PostgreSQL database or a Qdrant server, where others keep what can be adopted; got "
            f"{self.url}: what lies in flat: and in Qdrant Edge (qdrant:PATH) is vecbridge's own"
        )

    def adopt(self, adoption: Adoption) -> Collection:
        """The collection that `adoption` said. Its table stays its owner's: vecbridge never writes to it.

        Call `build_index` on what comes back; in Qdrant, the graph is its owner's, too. Raises
        CollectionExists, InputError, ManifestError, Forbidden.
        """
        for place in self._places:
            if place.url == adoption.url:
                table = place.ask(lambda backend: backend.create(adoption.manifest))
                return Collection(table, place=place, plan=adoption.plan)
        raise InputError(
            f"expected an adoption in this store ({', '.join(self.urls)}), got one in {adoption.url}"
        )

    def _check_free(self, name: str) -> None:
        """Raise CollectionExists where one of several places has the name; a single one looks itself."""
        if len(self._places) == 1:
            return
        try:
            found = self._having(name, lambda backend: _there(backend, name))
        except CollectionNotFound:
            return
        raise CollectionExists(
            f"collection {name!r} is in {found[0][0].url} already; open it, drop it, or take another name"
        )

    def open(self, name: str, *, model: str | None = None) -> Collection:
        """The collection of this name, wherever it lies; with `model`, only if its vectors are of that model.

        Raises CollectionNotFound, ModelMismatch, ManifestError; Unavailable where it may be in a place that
        does not answer; InputError where two places have a collection of this name.
        """
        _findable(name)
        found = self._having(name, lambda backend: _opened(backend, name))
        if len(found) > 1:
            for _, table in found:
                if not isinstance(table, ManifestError):
                    table.close()
        place, table = _only(name, found)
        if isinstance(table, ManifestError):
            raise table
        collection = Collection(table, place=place)
        checks.check_model(model, collection.space)
        return collection

    def find(self, name: str) -> Place:
        """The place that has the collection, which need not be fit to be opened. Raises as `open` does."""
        _findable(name)
        return _only(name, self._having(name, lambda backend: _listed(backend, name)))[0]

    def drop(self, name: str) -> None:
        """Delete the collection and everything in it. Raises as `find` does."""
        _findable(name)
        place = self._places[0] if len(self._places) == 1 else self.find(name)
        place.ask(lambda backend: backend.drop(name))

    def _having(self, name: str, look: Callable[[Backend], T]) -> list[tuple[Place, T]]:
        """The places that have the collection, and what `look` makes of each; it raises CollectionNotFound.

        Raises CollectionNotFound where none has it; Unavailable or Busy where one that does not answer might.
        """
        if len(self._places) == 1:
            return [(self._places[0], self._places[0].ask(look))]
        found: list[tuple[Place, T]] = []
        silent: list[tuple[Place, Unavailable | Busy]] = []
        for place in sorted(self._places, key=lambda place: place.away):
            if found and place.away:
                break
            try:
                found.append((place, place.ask(look)))
            except CollectionNotFound:
                continue
            except _AWAY as error:
                silent.append((place, error))
        if found:
            return found
        if silent:
            place, why = silent[0]
            raise type(why)(
                f"{name!r} is in none of the places that answer; it may be in {place.url}: {why}"
            ) from why
        raise CollectionNotFound(f"no collection {name!r} in {self.url}")


def _opened(backend: Backend, name: str) -> Table | ManifestError:
    """The collection; or why it cannot be opened, because it is there all the same."""
    try:
        return backend.open(name)
    except ManifestError as error:
        return error


def _there(backend: Backend, name: str) -> None:
    """Return if the backend has the collection. Raises CollectionNotFound."""
    table = _opened(backend, name)
    if not isinstance(table, ManifestError):
        table.close()


def _listed(backend: Backend, name: str) -> None:
    """Return if the backend lists the collection, whatever state it is in. Raises CollectionNotFound."""
    if name not in backend.names():
        raise CollectionNotFound(f"no collection {name!r} in {backend.url}")


def _only(name: str, found: list[tuple[Place, T]]) -> tuple[Place, T]:
    """The one that was found. Raises InputError where it is not the only one."""
    if len(found) > 1:
        # taking the first would write to, or delete, what may be the wrong one
        urls = " and in ".join(place.url for place, _ in found)
        raise InputError(
            f"there is a collection {name!r} in {urls}; connect to one of them alone, to use it or to drop it"
        )
    return found[0]


def _findable(name: str) -> str:
    try:
        return check_name(name)
    except InputError as error:
        raise CollectionNotFound(f"no such collection: {error}") from error
