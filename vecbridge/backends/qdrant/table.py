"""One collection of records in Qdrant, whichever engine speaks to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

import numpy as np

from ...errors import CollectionNotFound, IndexFailure, StoreError, VecbridgeError
from ...filters import Filter, tests
from ...manifest import Manifest
from ...types import Batch, Hit, IndexState, Layout, Progress, Sizes
from .. import PART_BYTES
from . import config, points
from .engine import SHORT, Engine, Found, Json, Points, Query, Scored
from .filters import Bounds, checker, compile
from .generations import Generations, name_of

if TYPE_CHECKING:
    from ...types import Floats

# bytes of vectors that one request reads back
_READ_BYTES = 16_000_000
_IDS = 5_000
_PAGE = 2_000
_FEW = 64  # points of a scan's first request
_NAMED = ["id", "digest"]
# an index that misses fewer than this share of the points is left alone: Qdrant scans them beside it
_UNINDEXED = 0.1


class Table:
    """The records of one collection; see `vecbridge.backends.Table`.

    `physical`: what Qdrant calls it, where it is not as it was first made; see `generations`.
    """

    def __init__(self, engine: Engine, manifest: Manifest, *, physical: str | None = None) -> None:
        self._engine = engine
        self._manifest = manifest
        self._physical = manifest.name if physical is None else physical
        self._generations = Generations(engine)
        self._moves = engine.moves
        self._deleting = threading.Lock()
        self._closed = False
        self._full = config.full_name(manifest)
        self._euclid = manifest.space.metric == "l2"

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def physical(self) -> str:
        """What Qdrant calls it."""
        return self._physical

    @contextmanager
    def _there(self) -> Iterator[str]:
        """What Qdrant calls it, for one call; where that is gone, the error says what has become of it."""
        if self._closed:
            raise StoreError(f"collection {self._manifest.name!r} was closed; open it again")
        self._check_name()
        try:
            yield self._physical
        except CollectionNotFound as error:
            raise self._lost() from error
        # what was written may have come too late for the name
        self._check_name()

    def _lost(self) -> VecbridgeError:
        """Why Qdrant has no such collection any more."""
        return self._generations.lost(self._manifest.name, self._physical)

    def _check_name(self) -> None:
        """Raises LayoutChanged where the collection is called otherwise since it was opened."""
        moves = self._engine.moves
        if moves == self._moves:
            return
        if self._generations.names().now(name_of(self._physical) or "") != self._manifest.name:
            raise self._generations.changed(self._manifest.name)
        self._moves = moves

    def write(self, batch: Batch) -> None:
        vectors, lengths = self._scaled(batch.vectors)
        exact: list[bytes | None] = [None] * len(batch)
        if self._manifest.layout.element == "float32":
            exact = points.lost(batch.vectors, vectors, lengths)
        named = {self._full: vectors}
        if config.two_vectors(self._manifest):
            named[SHORT] = self._short(batch.vectors, batch.short)
        ids = [points.point_id(one) for one in batch.ids]
        made = Points(ids, named, points.payloads(batch, lengths, exact))
        with self._there() as name:
            self._engine.upsert(name, made)

    def _scaled(self, matrix: Floats) -> tuple[Floats, list[float | None]]:
        if self._manifest.space.metric == "cosine":
            return points.unit(matrix)
        return matrix, [None] * len(matrix)

    def _short(self, whole: Floats, projected: Floats | None) -> Floats:
        """What the index holds of these vectors: a prefix, or the projection that came with them."""
        if projected is None:
            dim = self._manifest.layout.index_dim(self._manifest.space.dim)
            projected = np.ascontiguousarray(whole[:, :dim])
        return self._scaled(projected)[0]

    def read(self, ids: Sequence[str]) -> Batch:
        parts = list(self._retrieved(ids, True, vectors=self._full, size=self._reads))
        return self._ordered(parts, ids)

    @property
    def _reads(self) -> int:
        """Records of one request with vectors."""
        return max(1, min(_IDS, _READ_BYTES // (4 * self._manifest.stored_dim)))

    def _ordered(self, parts: Sequence[Found], ids: Sequence[str]) -> Batch:
        batches = [self._batch(part, self._manifest.stored_dim) for part in parts]
        where = {
            one: (number, row) for number, part in enumerate(batches) for row, one in enumerate(part.ids)
        }
        places = [where[one] for one in ids if one in where]
        vectors = np.empty((len(places), self._manifest.stored_dim), np.float32)
        for row, (number, position) in enumerate(places):
            vectors[row] = batches[number].vectors[position]
        return Batch(
            [batches[number].ids[row] for number, row in places],
            vectors,
            [batches[number].documents[row] for number, row in places],
            [batches[number].metadata[row] for number, row in places],
            [batches[number].digests[row] for number, row in places],
        )

    def digests(self, ids: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for part in self._retrieved(ids, _NAMED):
            for payload in part.payloads:
                if (digest := points.digest_of(payload)) is not None:
                    found[payload["id"]] = digest
        return found

    def _retrieved(
        self,
        ids: Sequence[str],
        payload: Sequence[str] | bool,
        *,
        vectors: str | None = None,
        size: int = _IDS,
    ) -> Iterator[Found]:
        for start in range(0, len(ids), size):
            some = [points.point_id(one) for one in ids[start : start + size]]
            with self._there() as name:
                found = self._engine.retrieve(name, some, payload=payload, vectors=vectors)
            yield found

    def inventory(self) -> Iterator[list[tuple[str, bytes | None]]]:
        for found in self._pages(None, _NAMED):
            yield [(payload["id"], points.digest_of(payload)) for payload in found.payloads]

    def scan(self, where: Filter | None, *, vectors: bool) -> Iterator[Batch]:
        bounds = self._among(where)
        over = None if bounds is None else bounds.over
        check = checker(where) if where is not None and bounds is not None and not bounds.exact else None
        dim = self._manifest.stored_dim if vectors else 0
        limit, at = _FEW, None
        while True:
            with self._there() as name:
                found, at = self._engine.scroll(
                    name,
                    limit=limit,
                    filter=over,
                    offset=at,
                    payload=True if vectors else self._plain,
                    vectors=self._full if vectors else None,
                )
            if check is None:
                kept = found
            else:
                kept = _chosen(found, [check(self._metadata(one)) for one in found.payloads])
            if kept.ids:
                yield self._batch(kept, dim)
            if at is None:
                return
            # nobody knows how large payloads are before they have been read: it grows step by step
            size = sum(4 * dim + len(json.dumps(one)) for one in found.payloads)
            limit = max(1, min(PART_BYTES * len(found.ids) // max(size, 1), 2 * limit, _PAGE))

    def sample(self, n: int, *, seed: int) -> Batch:
        """The ids are hashes, so that points in their order lie in no order: any run of them is a sample."""
        start = str(UUID(int=Random(seed).getrandbits(128)))  # noqa: S311 - a sample, not a secret
        size = max(1, min(_PAGE, _READ_BYTES // (4 * self._manifest.stored_dim)))
        parts: list[Found] = []
        missing = n
        for part in self._run(size, start):
            parts.append(_first(part, missing))
            missing -= len(parts[-1].ids)
            if not missing:
                break
        names = [payload["id"] for part in parts for payload in part.payloads]
        return self._ordered(parts, list(dict.fromkeys(names))[:n])

    def _run(self, size: int, start: str) -> Iterator[Found]:
        """Every point once, with payload and vector, from the id `start` on and around to it again."""
        for offset, stop in ((start, None), (None, start)):
            at: str | None = offset
            while True:
                with self._there() as name:
                    found, at = self._engine.scroll(
                        name, limit=size, offset=at, payload=True, vectors=self._full
                    )
                kept = len(found.ids) if stop is None else sum(one < stop for one in found.ids)
                if kept:
                    yield _first(found, kept)
                if at is None or kept < len(found.ids):
                    break

    def delete(self, ids: Sequence[str]) -> int:
        gone = 0
        # one at a time: two that count first and delete then would both count the same records
        with self._deleting:
            for part in self._retrieved(ids, False):
                if part.ids:
                    self._remove(part.ids)
                gone += len(part.ids)
        return gone

    def delete_where(self, where: Filter) -> int:
        gone = 0
        with self._deleting:
            for ids in list(self._matching(where)):
                if ids:
                    self._remove(ids)
                gone += len(ids)
        return gone

    def _remove(self, ids: Sequence[str]) -> None:
        with self._there() as name:
            self._engine.delete(name, ids)

    def count(self, where: Filter | None = None) -> int:
        bounds = self._among(where)
        if where is None or bounds is None or bounds.exact:
            return self._counted(None if bounds is None else bounds.over)
        sure = self._counted(bounds.under)
        return sure + sum(len(ids) for ids in self._checked(where, bounds.doubt))

    def _counted(self, filter: Json | None) -> int:
        with self._there() as name:
            return self._engine.count(name, filter)

    def _matching(self, where: Filter) -> Iterator[list[str]]:
        """Ids of the points that match, page by page."""
        bounds = compile(where)
        for found in self._pages(bounds.under, False):
            yield found.ids
        if not bounds.exact:
            yield from self._checked(where, bounds.doubt)

    def _checked(self, where: Filter, among: Json) -> Iterator[list[str]]:
        """Ids of those points that match, after looking at the metadata of all that pass `among`."""
        check = checker(where)
        for found in self._pages(among, self._told):
            yield [
                one
                for one, payload in zip(found.ids, found.payloads, strict=True)
                if check(self._metadata(payload))
            ]

    def _pages(self, filter: Json | None, payload: Sequence[str] | bool) -> Iterator[Found]:
        at: str | None = None
        while True:
            with self._there() as name:
                found, at = self._engine.scroll(name, limit=_PAGE, filter=filter, offset=at, payload=payload)
            if found.ids:
                yield found
            if at is None:
                return

    def search(
        self, queries: Floats, short: Floats | None, *, k: int, where: Filter | None, exact: bool
    ) -> list[list[Hit]]:
        layout = self._manifest.layout
        bounds = self._bounds(where)
        whole, _ = self._scaled(queries)
        if exact or layout.index is None:
            return self._exact(whole, k, where, bounds)
        narrow = self._short(queries, short) if config.two_vectors(self._manifest) else None
        params = self._approximate(where)
        over = None if bounds is None else bounds.over

        def ask(rows: Sequence[int], limit: int) -> list[list[Scored]]:
            wanted = [self._query(whole[row], _row(narrow, row), limit, params, over) for row in rows]
            with self._there() as name:
                return self._engine.query(name, wanted)

        answers = self._enough(ask, len(queries), k, where, bounds)
        hits = [self._hits(answer)[:k] for answer in answers]
        # an index may miss some where nearly all are asked for, or few match: then everything is compared
        few = [row for row, found in enumerate(hits) if len(found) < k]
        if few:
            for row, found in zip(few, self._exact(whole[few], k, where, bounds), strict=True):
                hits[row] = found
        return hits

    def _query(
        self, whole: Floats, narrow: Floats | None, limit: int, params: Json, over: Json | None
    ) -> Query:
        if narrow is None:
            return Query(whole, limit, self._full, params, over)
        wide = limit * self._manifest.layout.oversample
        return Query(whole, limit, self._full, None, None, Query(narrow, wide, SHORT, params, over))

    def _approximate(self, where: Filter | None) -> Json:
        params = config.search_params(self._manifest)
        if where is not None and self._engine.limits().has("acorn"):
            # The graph falls apart where the points between do not match; ACORN steps over those. Measured at
            # 40,000 x 512 and 15 to 30 % matching: recall 0.63 to 0.94 without, 1.00 with it, at two to three
            # times the time. Qdrant takes half of all points to match where a field has no index, so that the
            # default bound of 0.4 would never let it begin.
            known = all(".".join(test.path) in self._manifest.filterable for test in tests(where))
            params["acorn"] = {"enable": True, "max_selectivity": 0.4 if known else 1.0}
        return params

    def _thorough(self) -> Json:
        return config.exact_params(self._manifest)

    def _exact(self, whole: Floats, k: int, where: Filter | None, bounds: Bounds | None) -> list[list[Hit]]:
        params = self._thorough()
        over = None if bounds is None else bounds.over

        def ask(rows: Sequence[int], limit: int) -> list[list[Scored]]:
            wanted = [Query(whole[row], limit, self._full, params, over) for row in rows]
            with self._there() as name:
                return self._engine.query(name, wanted)

        # one more than wanted shows whether the last place is shared
        answers = self._enough(ask, len(whole), k + 1, where, bounds, ties_at=k)
        return [self._hits(answer)[:k] for answer in answers]

    def _enough(
        self,
        ask: Callable[[Sequence[int], int], list[list[Scored]]],
        queries: int,
        wanted: int,
        where: Filter | None,
        bounds: Bounds | None,
        *,
        ties_at: int | None = None,
    ) -> list[list[Scored]]:
        """Answers with `wanted` points that match, asking for more and more until they are there.

        `ties_at`: also until the score at this place (from 1) is told apart from the last one.
        """
        check = checker(where) if where is not None and bounds is not None and not bounds.exact else None
        answers: list[list[Scored]] = [[] for _ in range(queries)]
        rows, limit = list(range(queries)), wanted
        while rows:
            again = []
            for row, found in zip(rows, ask(rows, limit), strict=True):
                kept = found
                if check is not None:
                    kept = [one for one in found if check(self._metadata(one.payload))]
                answers[row] = kept
                if len(found) < limit:
                    continue
                tied = (
                    ties_at is not None
                    and len(kept) >= ties_at
                    and kept[ties_at - 1].score == found[-1].score
                )
                if len(kept) < wanted or tied:
                    again.append(row)
            rows, limit = again, limit * 4
        return answers

    def _hits(self, answer: Sequence[Scored]) -> list[Hit]:
        hits = [self._hit(one) for one in answer]
        hits.sort(key=lambda hit: (-hit.score, hit.id))
        return hits

    # how records lie in payloads

    # of a payload, all but what restores vectors; and what tells the metadata
    _plain: Sequence[str] | bool = ("id", "document", "metadata", "json", "digest")
    _told: Sequence[str] | bool = ("metadata", "json")

    def _bounds(self, where: Filter | None) -> Bounds | None:
        """What Qdrant can say of a filter; None for none."""
        return None if where is None else compile(where)

    def _among(self, where: Filter | None) -> Bounds | None:
        """The same among all points, of which some may be no records."""
        return self._bounds(where)

    def _batch(self, found: Found, dim: int) -> Batch:
        return points.batch(found, dim)

    def _hit(self, one: Scored) -> Hit:
        return points.hit(one, euclid=self._euclid)

    def _metadata(self, payload: Json) -> dict[str, Any]:
        return points.metadata_of(payload)

    def build_index(self, progress: Progress | None) -> None:
        if self._manifest.layout.index is None:
            return
        description = self._described()
        state = self._state(description)
        there, indexed = description.get("points_count") or 0, description.get("indexed_vectors_count") or 0
        settled = description.get("status") == "green" and there - indexed <= _UNINDEXED * there
        if state.status == "ready" and state.used and settled:
            return
        change = config.indexing(self._manifest, there, self._engine.limits())
        with self._there() as name:
            self._engine.optimise(name, change, progress)
        state = self.index_state()
        if state.status != "ready" or not state.used:
            raise IndexFailure(
                f"the index of {self._manifest.name!r} in {self._engine.url} was built and is not in use: "
                f"{state.detail or state.status}"
            )

    def index_state(self) -> IndexState:
        with self._there():
            if self._manifest.layout.index is None:
                return IndexState("none")
        return self._state(self._described())

    def _described(self) -> Json:
        with self._there() as name:
            return self._engine.describe(name)

    def _state(self, description: Json) -> IndexState:
        if self._manifest.layout.index is None:
            return IndexState("none")
        graph = config.graph_of(self._manifest, description.get("config") or {})
        if not graph.get("m"):
            return IndexState(
                "missing", detail="the graph has not been built yet: Qdrant compares all points"
            )
        if description.get("status") == "red":
            said = description.get("optimizer_status")
            error = said.get("error") if isinstance(said, dict) else said
            return IndexState("invalid", detail=f"Qdrant reports: {error}")
        there, indexed = description.get("points_count") or 0, description.get("indexed_vectors_count") or 0
        if not there or indexed:
            return IndexState("ready", used=True)
        if there <= config.unindexed(self._manifest, description):
            return IndexState("ready", used=True, detail="so few points that Qdrant compares all of them")
        return IndexState("missing", detail="no point is in the graph yet: Qdrant compares all of them")

    def searched(self, layout: Layout) -> Self:
        made = type(self)(self._engine, replace(self._manifest, layout=layout), physical=self._physical)
        made._deleting, made._moves = self._deleting, self._moves
        return made

    def keep(self, manifest: Manifest) -> None:
        with self._there() as name:
            if manifest.generation != self._manifest.generation:
                raise self._generations.changed(manifest.name)
            self._generations.replace_entry(manifest.name, name, manifest.dump()[0])
        self._manifest = manifest

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While this is held, other writers in this process wait where Qdrant is Edge, which has no others.

        Qdrant servers have nothing to keep others from writing with: there nobody waits.
        """
        with ExitStack() as held:
            with self._there() as name:
                held.enter_context(self._engine.paused(name))
                self._engine.describe(name)
            yield

    def sizes(self) -> Sizes:
        with self._there() as name:
            return self._engine.sizes(name)

    def close(self) -> None:
        self._closed = True


def _row(matrix: Floats | None, row: int) -> Floats | None:
    return None if matrix is None else matrix[row]


def _chosen(found: Found, chosen: Sequence[bool]) -> Found:
    """Those of the points that were chosen."""
    rows = [row for row, one in enumerate(chosen) if one]
    vectors = None if found.vectors is None else found.vectors[rows]
    return Found([found.ids[row] for row in rows], [found.payloads[row] for row in rows], vectors)


def _first(found: Found, n: int) -> Found:
    vectors = None if found.vectors is None else found.vectors[:n]
    return Found(found.ids[:n], found.payloads[:n], vectors)
