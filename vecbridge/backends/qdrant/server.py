"""What engines for a server have in common: attempts, lost answers, waiting for builds, uploads in parts."""

from __future__ import annotations

import re
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ...errors import Busy, IndexFailure, StoreError, Unavailable, VecbridgeError
from ...limits import Limits, limits
from ...types import Progress, Sizes
from . import blobs, counted
from .engine import Engine, Json, by_name
from .failures import ATTEMPTS, PASSING, PATIENCE, Refused, attempt, translated

if TYPE_CHECKING:
    from .address import Address

# a server that is not there is to be noticed soon: within a second where its port is closed
CONTACTS = 3
SOON = 10.0  # seconds
# uploads, and calls after which the server rebuilds something, may take this many times longer
LONGER = 4
# seconds that a server may be away while it builds an index: restarts of large ones take minutes
RESTART = 300.0
POLL, SLOWEST_POLL = 0.1, 2.0  # seconds

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Strict:
    """What a collection's strict mode allows in one request; None for no bound."""

    upsert: int | None = None
    queries: int | None = None
    limit: int | None = None


def strict(description: Json) -> Strict:
    """The bounds in the `result` of GET /collections/{name}."""
    mode = (description.get("config") or {}).get("strict_mode_config") or {}
    if not mode.get("enabled"):
        return Strict()
    return Strict(
        mode.get("upsert_max_batchsize"), mode.get("search_max_batchsize"), mode.get("max_query_limit")
    )


class Server(Engine):
    """The part of an engine that is the same by any protocol; a protocol adds single requests and points.

    `sleep` waits between attempts.
    """

    def __init__(self, address: Address, *, sleep: Callable[[float], None]) -> None:
        self._address = address
        self._sleep = sleep
        self._strict: dict[str, Strict] = {}
        self._moves = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    @property
    def url(self) -> str:
        return self._address.shown

    # single requests, which raise Refused

    @abstractmethod
    def _list(self) -> list[str]:
        """GET /collections: their names."""

    @abstractmethod
    def _put(self, name: str, config: Json) -> None:
        """PUT /collections/{name}"""

    @abstractmethod
    def _get(self, name: str) -> Json:
        """GET /collections/{name}"""

    @abstractmethod
    def _patch(self, name: str, change: Json) -> None:
        """PATCH /collections/{name}"""

    @abstractmethod
    def _remove(self, name: str) -> bool:
        """DELETE /collections/{name}: whether there was one."""

    # collections

    def collections(self) -> list[str]:
        return [name for name in self._try(self._list) if name != blobs.NAME]

    def create(self, name: str, config: Json) -> None:
        unclear = False

        def call() -> None:
            nonlocal unclear
            try:
                self._put(name, config)
            except Refused as refused:
                # an attempt whose answer was lost may have made it
                if refused.kind == "exists" and unclear and _is_as(self._get(name), config):
                    return
                unclear |= refused.kind in ("timeout", "unavailable")
                raise

        self._try(call, name)
        self._strict.pop(name, None)

    def describe(self, name: str) -> Json:
        description = self._try(lambda: self._get(name), name)
        self._strict[name] = strict(description)
        return description

    def drop(self, name: str) -> None:
        unclear = False

        def call() -> None:
            nonlocal unclear
            try:
                gone = self._remove(name)
            except Refused as refused:
                if refused.kind == "missing" and unclear:
                    return
                unclear |= refused.kind in ("timeout", "unavailable")
                raise
            if not gone and not unclear:
                raise Refused("missing", "Qdrant found no such collection to delete")

        self._try(call, name)
        self._strict.pop(name, None)

    def annotate(self, name: str, values: Json) -> None:
        # merged key by key, kept on disk, and nothing is optimised for it: lib/collection, collection_ops.rs
        # update_metadata and lib/storage, collection_meta_ops.rs; since 1.16.0, as metadata itself
        self._try(lambda: self._patch(name, {"metadata": values}), name)

    def paused(self, name: str) -> AbstractContextManager[None]:
        """Nobody waits: a server has no way to keep others from writing for a while."""
        return nullcontext()

    def optimise(self, name: str, change: Json, progress: Progress | None) -> None:
        self._try(lambda: self._patch(name, change), name)
        away: float | None = None
        greens, pause = 0, POLL
        while True:
            asked = 0.0
            try:
                description = self._get(name)
                if description["status"] == "grey":
                    # after a restart Qdrant waits for an update before it goes on; this one changes nothing
                    self._patch(name, change)
            except Refused as refused:
                asked, greens = refused.wait or 0.0, 0
                if refused.kind not in PASSING or asked > PATIENCE:
                    raise self._error(refused, name) from refused.__cause__
                away = time.monotonic() if away is None else away
                if time.monotonic() - away >= RESTART:
                    raise self._stayed_away(name, refused) from refused.__cause__
            else:
                away = None
                self._check(name, description)
                points = description.get("points_count") or 0
                if progress is not None:
                    # with two vectors for each point, both may be counted
                    progress("index", min(description.get("indexed_vectors_count") or 0, points), points)
                # twice: between the change and its first work a collection may still be green
                greens = greens + 1 if description["status"] == "green" else 0
                if greens == 2:
                    return
            self._sleep(max(pause, asked))
            pause = min(pause * 1.5, SLOWEST_POLL)

    def _stayed_away(self, name: str, refused: Refused) -> StoreError:
        kind = Busy if refused.kind == "rate" else Unavailable
        return kind(
            f"{self.url} gave no answer for {RESTART:.0f} s while it built the index of {name!r} "
            f"({refused.text}); build_index() again once it does"
        )

    def _check(self, name: str, description: Json) -> None:
        said = description.get("optimizer_status")
        error = said.get("error") if isinstance(said, dict) else None
        if error or description["status"] == "red":
            text = self._address.hide(str(error or "its status is red"))
            raise IndexFailure(f"{self.url} could not build the index of {name!r}: {text}")

    def sizes(self, name: str) -> Sizes:
        return counted.sizes(self.describe(name))

    # what lies beside the collections

    @property
    def moves(self) -> int:
        return self._moves

    def moved(self, names: Sequence[str]) -> None:
        """Nobody is told: what other processes have open stays as it is."""
        self._moves += 1

    def keep(self, key: str, content: bytes) -> None:
        blobs.keep(self, key, content)

    def kept(self, key: str) -> bytes | None:
        return blobs.kept(self, key)

    def forget(self, key: str) -> None:
        blobs.forget(self, key)

    # for the protocols

    @property
    def _soon(self) -> float:
        """Seconds that a connection, or the first answer, may take."""
        return min(SOON, self._address.timeout)

    @property
    def _later(self) -> float:
        """Seconds that a change may take."""
        return self._address.timeout * LONGER

    def _try(self, call: Callable[[], T], collection: str | None = None, *, attempts: int = ATTEMPTS) -> T:
        try:
            return attempt(call, attempts=attempts, sleep=self._sleep)
        except Refused as refused:
            raise self._error(refused, collection) from refused.__cause__

    def _error(self, refused: Refused, collection: str | None) -> VecbridgeError:
        if refused.kind == "input" and collection is not None:
            # strict mode may have been changed since it was read
            self._strict.pop(collection, None)
        return translated(refused, self.url, collection=collection)

    def _of_version(self, told: str) -> Limits:
        """What a server can do that says this about its version."""
        found = re.match(r"\d{1,6}(\.\d{1,6}){0,3}", told, flags=re.ASCII)
        if found is None:
            raise StoreError(f"{self.url}: expected a Qdrant server that tells its version, got another one")
        return limits(f"qdrant@{found[0]}")

    def _allowed(self, name: str) -> Strict:
        """What the collection's strict mode allows; asked for once."""
        known = self._strict.get(name)
        return strict(self.describe(name)) if known is None else known

    def _upload(
        self,
        name: str,
        runs: Sequence[range],
        send: Callable[[range, int], Sequence[range] | None],
        *,
        streams: int,
    ) -> None:
        """All rows of `runs` stored by `send`; see `upload`."""
        try:
            upload(runs, send, streams=streams)
        except Refused as refused:
            raise self._error(refused, name) from refused.__cause__


def cut(sizes: Sequence[int], *, room: int, most: int | None) -> Iterator[range]:
    """Runs of neighbours that fit together into `room` bytes, at most `most` of them; each at least one."""
    start = used = 0
    for at, size in enumerate(sizes):
        if at > start and (used + size > room or at - start == most):
            yield range(start, at)
            start, used = at, 0
        used += size
    if start < len(sizes):
        yield range(start, len(sizes))


def upload(
    runs: Sequence[range], send: Callable[[range, int], Sequence[range] | None], *, streams: int
) -> None:
    """Sends all rows of `runs`, several at a time; after the first failure none is begun, and it is raised.

    `send(run, stream)`: returns when these rows are stored, or smaller runs to send in their place. `stream`
    is 0 where one run is all, else 1 to `streams`. A `Refused` says how many rows are stored all the same.
    """
    waiting = deque(runs)
    total = sum(map(len, runs))
    stored = 0
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work(stream: int) -> None:
        nonlocal stored
        while True:
            with lock:
                if failures or not waiting:
                    return
                run = waiting.popleft()
            try:
                smaller = send(run, stream)
            except BaseException as error:  # noqa: BLE001 - raised by whoever started the threads
                failures.append(error)
                return
            with lock:
                if smaller is None:
                    stored += len(run)
                else:
                    waiting.extendleft(reversed(smaller))

    if len(runs) == 1:
        work(0)
    else:
        with ThreadPoolExecutor(streams, thread_name_prefix="vecbridge-upload") as pool:
            try:
                wait([pool.submit(work, stream) for stream in range(1, streams + 1)])
            except BaseException as error:  # noqa: BLE001 - raised below
                # a Ctrl-C: what is on its way is waited for, and nothing more is begun
                failures.append(error)
    if failures:
        first = failures[0]
        if isinstance(first, Refused) and stored:
            first.stored = (stored, total)
        raise first


def _is_as(there: Json, config: Json) -> bool:
    """Whether a collection that is there is the one that `config` asks for, and still empty."""
    kept = there.get("config") or {}
    wanted, real = config.get("vectors") or {}, (kept.get("params") or {}).get("vectors") or {}
    return (
        not there.get("points_count")
        and (kept.get("metadata") or {}) == (config.get("metadata") or {})
        and _dimensions(wanted) == _dimensions(real)
    )


def _dimensions(vectors: Json) -> dict[str, int]:
    return {name: vector["size"] for name, vector in by_name(vectors).items()}
