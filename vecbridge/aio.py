"""Stores for asyncio: the names, parameters and results of `vecbridge`, and what talks to a store is awaited.

    import vecbridge.aio

    async with vecbridge.aio.connect("postgresql://localhost/rag") as store:
        papers = await store.open("papers")
        hits = await papers.search(query, k=5)

Calls run in threads that belong to the store, so that the event loop goes on: eight for what reads, and four
for what writes, builds or measures, which never keeps a search waiting for a thread. Others wait for their
turn. A store may be used by several event loops, and from a forked child.

A call that is cancelled raises CancelledError at once. What had not begun never happens. A search or another
read is ended on a PostgreSQL server, and elsewhere ends by itself; what it returns is dropped. A write goes
on to its end: it is all or nothing, as ever, and has happened unless it fails.

`progress` is called in a thread. `vecbridge.ingest` is a batch job: `await
asyncio.to_thread(vecbridge.ingest, …)`.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial, wraps
from types import GenericAlias, TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, get_type_hints

from . import store as plain
from .errors import StoreError
from .stopping import Call

if TYPE_CHECKING:
    from .limits import Limits
    from .manifest import Manifest
    from .planner import Plan
    from .speeds import Speeds
    from .types import Layout, Space

__all__ = ["Collection", "Connecting", "Place", "Store", "connect"]

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")
S = TypeVar("S")

# as many as a store keeps connections to PostgreSQL; more would only wait for one
_READERS = 8
# of those connections, half remain for who reads
_WORKERS = 4


class Threads:
    """The threads of one store: some for what reads, and others for what takes its time."""

    def __init__(self) -> None:
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="vecbridge-read")
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="vecbridge-work")

    async def read(self, work: Callable[[], T]) -> T:
        """What `work` returns; it is ended, where that is possible, if the caller is cancelled."""
        call = Call()
        future = self._submit("_readers", partial(call.run, work))
        try:
            return await _claimed(future)
        except asyncio.CancelledError:
            if not future.done() and (end := call.give_up()):
                _alone(end)
            raise

    async def work(self, work: Callable[[], T]) -> T:
        """What `work` returns; it goes on, if it has begun, where the caller is cancelled."""
        return await _claimed(self._submit("_workers", work))

    def _submit(self, those: str, work: Callable[[], T]) -> Future[T]:
        if self._process != os.getpid():
            # the threads are the parent's, and who waits for them here waits for ever
            self._start()
        try:
            threads: ThreadPoolExecutor = getattr(self, those)
            return threads.submit(copy_context().run, work)
        except RuntimeError as error:
            if not self._closed:
                raise
            raise StoreError("the store was closed; connect again") from error

    def close(self) -> None:
        """Take nothing more; what was taken is still done."""
        self._closed = True
        self._readers.shutdown(wait=False)
        self._workers.shutdown(wait=False)


async def _claimed(future: Future[T]) -> T:
    """The future's result. Where the caller is cancelled, what was opened for him is closed again."""
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if not future.cancel():
            future.add_done_callback(_unclaimed)
        raise


def _unclaimed(done: Future[Any]) -> None:
    if done.exception() is None and isinstance(found := done.result(), plain.Collection | plain.Store):
        found.close()


def _alone(work: Callable[[], T]) -> Future[T]:
    """`work` in a thread of its own, which ends with it: it waits for no other."""
    threads = ThreadPoolExecutor(1, thread_name_prefix="vecbridge-alone")
    future = threads.submit(copy_context().run, work)
    threads.shutdown(wait=False)
    return future


class Face(Generic[S]):
    """Something of `vecbridge`, and the threads in which it is used."""

    def __init__(self, sync: S, threads: Threads) -> None:
        self._sync = sync
        self._threads = threads


def _reading(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[Face[S], P], Coroutine[Any, Any, T]]:
    """The method as a coroutine, for what reads."""

    @wraps(method)
    async def read(self: Face[S], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._threads.read(partial(method, self._sync, *args, **kwargs))

    return _here(read)


def _working(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[Face[S], P], Coroutine[Any, Any, T]]:
    """The method as a coroutine, for what changes something or takes its time."""

    @wraps(method)
    async def work(self: Face[S], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._threads.work(partial(method, self._sync, *args, **kwargs))

    return _here(work)


def _listing(
    method: Callable[Concatenate[S, P], Iterator[T]],
) -> Callable[Concatenate[Face[S], P], AsyncGenerator[T, None]]:
    """The method as an asynchronous iterator: a thread makes each part when it is asked for."""

    @wraps(method)
    async def listed(self: Face[S], /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, None]:
        parts = await self._threads.read(partial(method, self._sync, *args, **kwargs))
        end = object()
        try:
            while (part := await self._threads.read(partial(next, parts, end))) is not end:
                yield part
        except GeneratorExit:
            # whoever cancels while a part is made drops the iterator in the thread that makes it
            if isinstance(parts, Generator):
                await asyncio.wrap_future(_alone(parts.close))
            raise

    (part,) = get_type_hints(method)["return"].__args__
    return _here(listed, GenericAlias(AsyncGenerator, (part, None)))


def _turned(
    later: Callable[Concatenate[Face[S], P], Coroutine[Any, Any, T]],
    face: type[U],
    turn: Callable[[Any, T], U],
) -> Callable[Concatenate[Face[S], P], Coroutine[Any, Any, U]]:
    """The coroutine with what `turn`, called with the face, makes of its result."""

    @wraps(later)
    async def turned(self: Face[S], /, *args: P.args, **kwargs: P.kwargs) -> U:
        return turn(self, await later(self, *args, **kwargs))

    return _here(turned, face)


def _here(function: Callable[P, T], returns: Any = None) -> Callable[P, T]:
    """The function as one of this module, for `help` and `inspect`; `returns` where its result is another."""
    function.__module__ = __name__
    if returns is not None:
        function.__annotations__ = {**function.__annotations__, "return": returns}
        signature = inspect.signature(function).replace(return_annotation=returns)
        function.__signature__ = signature  # type: ignore[attr-defined]  # as inspect documents it
    return function


class Collection(Face[plain.Collection]):
    """One set of records: ids, vectors, documents, metadata. Comes from `Store.create` or `Store.open`."""

    @property
    def plan(self) -> Plan | None:
        """The Plan that it was created by, or laid out anew, in this process; else None."""
        return self._sync.plan

    @property
    def url(self) -> str:
        """The place where it lies, without password."""
        return self._sync.url

    @property
    def manifest(self) -> Manifest:
        """What the collection says of itself."""
        return self._sync.manifest

    @property
    def name(self) -> str:
        """The collection's name."""
        return self._sync.name

    @property
    def space(self) -> Space:
        """The embedding space of its vectors."""
        return self._sync.space

    @property
    def layout(self) -> Layout:
        """How its vectors lie in the store."""
        return self._sync.layout

    def __repr__(self) -> str:
        return repr(self._sync).replace("vecbridge.", f"{__name__}.", 1)

    search = _reading(plain.Collection.search)
    search_many = _reading(plain.Collection.search_many)
    get = _reading(plain.Collection.get)
    digests = _reading(plain.Collection.digests)
    inventory = _listing(plain.Collection.inventory)
    scan = _listing(plain.Collection.scan)
    count = _reading(plain.Collection.count)
    index_state = _reading(plain.Collection.index_state)
    sizes = _reading(plain.Collection.sizes)

    upsert = _working(plain.Collection.upsert)
    delete = _working(plain.Collection.delete)
    build_index = _working(plain.Collection.build_index)
    evaluate = _working(plain.Collection.evaluate)
    drift = _working(plain.Collection.drift)
    tune = _working(plain.Collection.tune)
    sweep = _working(plain.Collection.sweep)
    proposal = _working(plain.Collection.proposal)
    replan = _working(plain.Collection.replan)

    async def close(self) -> None:
        """Give back what this collection holds open; the store stays open."""
        await asyncio.wrap_future(_alone(self._sync.close))


class Place(Face[plain.Place]):
    """One of the places that a store is made of. It connects when it is needed, and again if that failed."""

    @property
    def url(self) -> str:
        """Where this is, without password."""
        return self._sync.url

    @property
    def away(self) -> bool:
        """Whether it did not answer just now."""
        return self._sync.away

    async def limits(self) -> Limits:
        """What can be held and indexed here. Raises Unavailable while it does not answer."""
        return await self._threads.read(lambda: self._sync.limits)

    async def speeds(self) -> Speeds | None:
        """How fast it is, as `vecbridge calibrate` found the last time; None where that was never run."""
        return await self._threads.read(lambda: self._sync.speeds)

    def __repr__(self) -> str:
        return f"<{__name__}.Place {self.url}>"

    async def close(self) -> None:
        """Give back connections, files and locks. May be called twice."""
        await asyncio.wrap_future(_alone(self._sync.close))


class Store(Face[plain.Store]):
    """What holds collections: one place or several. Close it, or use it in an `async with`.

    See `vecbridge.Store` for stores of several places.
    """

    def __init__(self, sync: plain.Store, threads: Threads) -> None:
        super().__init__(sync, threads)
        self._places = tuple(Place(place, threads) for place in sync.places)

    @property
    def places(self) -> tuple[Place, ...]:
        """The places that it is made of, in the order given."""
        return self._places

    @property
    def urls(self) -> tuple[str, ...]:
        """Where they are, without passwords."""
        return self._sync.urls

    @property
    def url(self) -> str:
        """Where this is, without password; several URLs with blanks between them."""
        return self._sync.url

    async def limits(self) -> Limits:
        """What this very store can hold and index, where it is a single place.

        Raises InputError for a store of several places: each has its own, see `places`.
        """
        return await self._threads.read(lambda: self._sync.limits)

    def __repr__(self) -> str:
        return f"<{__name__}.Store {self.url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _opened(self, found: plain.Collection) -> Collection:
        return Collection(found, self._threads)

    def _known(self, found: plain.Place) -> Place:
        return self._places[self._sync.places.index(found)]

    collections = _reading(plain.Store.collections)
    open = _turned(_reading(plain.Store.open), Collection, _opened)
    find = _turned(_reading(plain.Store.find), Place, _known)
    plan = _working(plain.Store.plan)
    create = _turned(_working(plain.Store.create), Collection, _opened)
    adoption = _working(plain.Store.adoption)
    adopt = _turned(_working(plain.Store.adopt), Collection, _opened)
    drop = _working(plain.Store.drop)

    async def close(self) -> None:
        """Give back connections, files and locks, those of every place even if one of them fails.

        Calls under way end as they would without it; those that have not begun, and new ones, raise
        StoreError.
        """
        self._threads.close()
        await asyncio.wrap_future(_alone(self._sync.close))


class Connecting:
    """A store to come: `await` it, or use it in an `async with`, which closes the store at its end."""

    def __init__(self, urls: tuple[str, ...]) -> None:
        self._urls = urls
        self._store: Store | None = None

    def __await__(self) -> Generator[Any, None, Store]:
        return self._connect().__await__()

    async def _connect(self) -> Store:
        return Store(await _claimed(_alone(partial(plain.connect, *self._urls))), Threads())

    async def __aenter__(self) -> Store:
        self._store = await self
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._store is not None
        await self._store.close()


def connect(*urls: str) -> Connecting:
    """The store that URLs name, as `vecbridge.connect` gives it, for asyncio.

    `store = await connect(…)`, or `async with connect(…) as store:`. Raises UrlError, MissingExtra,
    Unavailable, Forbidden, FeatureMissing, Busy, when it is awaited.
    """
    return Connecting(urls)
