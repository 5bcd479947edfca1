"""The folder of Qdrant Edge: one process holds it, and all who open it there share its open shards.

    PATH/edge.lock                           held from the first connect to the last close; names the holder
    PATH/kept/KEY                            small files beside the collections
    PATH/collections/FOLDER/collection.json  name, configuration, and which shard is the current one
    PATH/collections/FOLDER/shard-1/         Edge's own files
    PATH/collections/FOLDER/built            there while nothing was written since the last build

`collection.json` is replaced in one step, so that configuration and shard always belong together.

A forked child gets nothing of this. Edge hangs there, and what it would write on the way out would land in
the files that its parent has mapped; the child also inherits the locks, which must not outlive the parent in
it. Locks are asked for in this order: a collection's writing, the place's guard, a collection's access.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import json
import os
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import qdrant_edge as qe

from ....errors import Busy, CollectionExists, CollectionNotFound, StoreError
from ..engine import Json
from .config import merged, shard_config
from .files import check_room, clear, folder_name, sentences, sync, sync_log, sync_tree, write

FORMAT = 1
_ABOUT, _BUILT, _LOCK = "collection.json", "built", "edge.lock"
_LEFTOVER = re.compile(r"\.(new|old)-[0-9a-f]{16}")
# each open shard has threads, mapped files and a log of 32 MiB
OPEN = 16
# bytes written after which the segments are brought to disk
FLUSH = 256 << 20
# bytes written after which the shard is loaded anew: Edge removes what is done with from its log at no other
# time, so that it would grow for as long as the process lives. Loading takes a second.
LOGGED = 1 << 30
# seconds that a pause is waited for; the build of a large index takes longer
PATIENCE = 60.0


class Collection:
    """One collection's folder and its shard, which is loaded when it is first used.

    `writing` is held by whoever changes it, for as long as a build takes; `access` for one call into Edge,
    by readers too: Edge keeps Python's interpreter lock during each call, so that nothing is lost.
    """

    def __init__(self, place: Place, folder: Path, name: str) -> None:
        self.place = place
        self.folder = folder
        self.name = name
        self.writing = threading.RLock()
        self.access = threading.RLock()
        self.used = 0
        self._shard: qe.EdgeShard | None = None
        self._gone = False
        self._unflushed = self._logged = 0
        about = _about(folder)
        if about["format"] != FORMAT:
            raise StoreError(
                f"{folder} was written by a newer vecbridge (format {about['format']}, this one reads "
                f"{FORMAT}); update vecbridge"
            )
        self.config: Json = about["config"]
        self.shard = folder / about["shard"]
        # of builds and writes that were killed. Not later: then it may belong to a build of this process
        for entry in folder.iterdir():
            if entry.name.startswith((".", "shard-")) and entry != self.shard:
                if entry.is_dir():
                    clear(entry)
                else:
                    entry.unlink()
        self.built = (folder / _BUILT).exists()

    @property
    def loaded(self) -> bool:
        """Whether the shard is open."""
        return self._shard is not None

    @contextmanager
    def reading(self) -> Iterator[qe.EdgeShard]:
        """The shard, for one call."""
        with self.access, sentences(self.place.shown):
            yield self._loaded()

    def update(self, operation: qe.UpdateOperation, *, size: int) -> None:
        """Apply one operation of so many bytes: all or nothing, durable when this returns."""
        with self.writing, sentences(self.place.shown):
            # twice: once in the log, once in the segment
            check_room(self.place.path, 2 * size, "what is to be written")
            with self.access:
                shard = self._loaded()
                self.unbuilt()
                shard.update(operation)
            sync_log(self.shard)
            self._unflushed += size
            self._logged += size
            if self._logged > LOGGED:
                self.shorten()
            elif self._unflushed > FLUSH:
                with self.access:
                    self._loaded().flush()
                    self._unflushed = 0

    def shorten(self) -> None:
        """Bring what the log holds into the segments, and remove all but its last file or two."""
        with self.access, sentences(self.place.shown):
            self.close()
            self._loaded()

    def unbuilt(self) -> None:
        """Remember, before anything is written, that the next build has something to do."""
        if self.built:
            self.built = False
            (self.folder / _BUILT).unlink(missing_ok=True)
            sync(self.folder)

    def switch(self, shard: Path, config: Json, loaded: qe.EdgeShard) -> None:
        """Go over to another shard, freshly built, and forget the old one."""
        with self.access:
            if self._gone:
                raise self.gone()
            old, before = self._shard, self.shard
            try:
                save(self.folder, self.name, shard.name, config)
            finally:
                # an error may also come after the file was replaced
                if _about(self.folder)["shard"] == shard.name:
                    self._shard, self.shard, self.config = loaded, shard, config
            if old is not None:
                old.close()
            self._unflushed = self._logged = 0
            self.set_built()
        clear(before)

    def annotate(self, values: Json) -> None:
        """Replace these keys of the collection's metadata, in one step and durably."""
        # a build writes down the configuration that it began with
        with self.writing, self.access, sentences(self.place.shown):
            self._check()
            config = merged(self.config, {"metadata": values})
            check_room(self.place.path, 0, "what is to be kept")
            save(self.folder, self.name, self.shard.name, config)
            self.config = config

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While this is held, whoever else writes or builds waits. Raises Busy."""
        if not self.writing.acquire(timeout=PATIENCE):
            raise Busy(
                f"{self.place.shown}: collection {self.name!r} has been written to, or its index built, for "
                f"{PATIENCE:.0f} s without a pause; wait for that to end, then try again"
            )
        try:
            yield
        finally:
            self.writing.release()

    def set_built(self) -> None:
        """Remember that there is nothing to build until something is written."""
        write(self.folder / _BUILT, b"")
        self.built = True

    def close(self) -> None:
        """Close the shard; the next use loads it again."""
        with self.access:
            shard, self._shard = self._shard, None
            if shard is not None:
                shard.flush()
                shard.close()
                self._unflushed = self._logged = 0

    def leave(self) -> None:
        """Close it for good, when whoever writes has finished."""
        with self.writing, self.access:
            self._gone = True
            self.close()

    def leak(self) -> None:
        """In a forked child: never let the shard be destroyed, not even at exit (see above)."""
        if self._shard is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._shard))

    def gone(self) -> StoreError | CollectionNotFound:
        """The error for a collection that was closed or dropped under its user."""
        return self.place.closed_error() if self.place.closed else self.missing()

    def missing(self) -> CollectionNotFound:
        """The error for a collection that is not there."""
        return CollectionNotFound(f"there is no collection {self.name!r} in {self.place.shown}")

    def _check(self) -> None:
        if self._gone:
            raise self.gone()
        if not self.folder.exists():
            # deleted under us: what is mapped would still answer, and swallow what is written
            raise self.missing()

    def _loaded(self) -> qe.EdgeShard:
        self.used = next(self.place.clock)
        self._check()
        if self._shard is None:
            self.place.spare(self)
            self._shard = qe.EdgeShard.load(str(self.shard))
        return self._shard


class Place:
    """A folder of collections that this process holds; see `lease`."""

    def __init__(self, path: Path, shown: str, lock: int) -> None:
        self.path = path
        self.shown = shown
        self.process = os.getpid()
        self.closed = False
        self.leases = 0
        self.moves = 0
        self.lock = lock
        self.ended = threading.Event()
        self.guard = threading.RLock()
        self.clock = itertools.count(1)
        self._open: dict[str, Collection] = {}

    def names(self) -> list[str]:
        """The collections here."""
        with self.guard, sentences(self.shown):
            folders = self._folder.iterdir() if self._folder.is_dir() else iter(())
            found = [folder / _ABOUT for folder in folders if not _LEFTOVER.fullmatch(folder.name)]
            return [json.loads(about.read_text("utf-8"))["name"] for about in found if about.exists()]

    def collection(self, name: str) -> Collection:
        """The collection of this name. Raises CollectionNotFound."""
        found = self._open.get(name)
        if found is not None:
            return found
        with self.guard, sentences(self.shown):
            if self.closed:
                raise self.closed_error()
            found = self._open.get(name)
            if found is None:
                try:
                    found = Collection(self, self._folder / folder_name(name), name)
                except FileNotFoundError:
                    raise CollectionNotFound(f"there is no collection {name!r} in {self.shown}") from None
                self._open[name] = found
            return found

    def create(self, name: str, config: Json) -> None:
        """A new collection: all of it or nothing. Raises CollectionExists."""
        made = shard_config(config)
        with self.guard, sentences(self.shown):
            if self.closed:
                raise self.closed_error()
            folder = self._folder / folder_name(name)
            if (folder / _ABOUT).exists():
                raise CollectionExists(
                    f"collection {name!r} is in {self.shown} already; open it, drop it, or take another name"
                )
            self._folder.mkdir(exist_ok=True)
            check_room(self.path, 0, "a new collection")
            new = self._folder / f".new-{secrets.token_hex(8)}"
            try:
                (new / "shard-1").mkdir(parents=True)
                shard = qe.EdgeShard.create(str(new / "shard-1"), made)
                shard.close()
                save(new, name, "shard-1", config)
                sync_tree(new)
                new.rename(folder)
            except BaseException:
                clear(new)
                raise
            sync(self._folder)
            # of one whose folder was deleted under us
            old = self._open.pop(name, None)
        if old is not None:
            old.leave()

    def drop(self, name: str) -> None:
        """Delete a collection with everything in it. Raises CollectionNotFound."""
        collection = self.collection(name)
        with collection.writing, self.guard, sentences(self.shown):
            if self._open.get(name) is not collection:
                raise collection.missing()
            del self._open[name]
            with collection.access:
                collection.leave()
                old = self._folder / f".old-{secrets.token_hex(8)}"
                try:
                    collection.folder.rename(old)
                except FileNotFoundError:
                    raise collection.missing() from None
            sync(self._folder)
            clear(old)

    def moved(self, names: Sequence[str]) -> None:
        """Let whoever waits to write to these find them gone; the next use loads them again.

        Only while they are paused: nobody may write meanwhile.
        """
        with self.guard:
            self.moves += 1
            for one in [self._open.pop(name) for name in names if name in self._open]:
                one.leave()

    def keep(self, key: str, content: bytes) -> None:
        """Store bytes under a key, in one step."""
        with self.guard, sentences(self.shown):
            self._kept.mkdir(exist_ok=True)
            check_room(self.path, len(content), "what is to be kept")
            write(self._kept / folder_name(key), content)

    def kept(self, key: str) -> bytes | None:
        """The bytes under a key, None where there are none."""
        with sentences(self.shown):
            try:
                return (self._kept / folder_name(key)).read_bytes()
            except FileNotFoundError:
                return None

    def forget(self, key: str) -> None:
        """Remove what is under a key."""
        with self.guard, sentences(self.shown), suppress(FileNotFoundError):
            (self._kept / folder_name(key)).unlink()
            sync(self._kept)

    def spare(self, wanted: Collection) -> None:
        """Close the shards that were not used for longest, so that there is one to spare for `wanted`."""
        others = [one for one in list(self._open.values()) if one.loaded and one is not wanted]
        for one in sorted(others, key=lambda one: one.used)[: max(0, len(others) - OPEN + 1)]:
            # never waited for: its user may wait for us
            if one.access.acquire(blocking=False):
                try:
                    one.close()
                finally:
                    one.access.release()

    def closed_error(self) -> StoreError:
        """The error for a place that was closed."""
        return StoreError(f"{self.shown} was closed; connect again")

    def close(self) -> None:
        """Close all shards and give the folder free."""
        # seen by builds, which then give up
        self.closed = True
        with self.guard:
            collections = list(self._open.values())
        for one in collections:
            # what cannot be flushed is in the log
            with suppress(StoreError), sentences(self.shown):
                one.leave()
        lock, self.lock = self.lock, -1
        # explicit: a process forked a moment ago shares the lock until it has closed its copy
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)

    def clear(self) -> None:
        """Remove what processes that died left half done; under the lock it can only be theirs."""
        for folder in (self._folder, self._kept):
            with suppress(FileNotFoundError):
                for entry in folder.iterdir():
                    if _LEFTOVER.fullmatch(entry.name):
                        clear(entry)
                    elif entry.name.startswith(".") and entry.name.endswith(".new"):
                        entry.unlink()

    def still_there(self) -> bool:
        """Whether the folder is the one that is locked: it may have been deleted and made anew."""
        return _is(self.lock, self.path / _LOCK)

    def forked(self) -> None:
        """In a forked child: give back the inherited locks without releasing them, and nothing else."""
        with suppress(OSError):
            os.close(self.lock)
        for one in self._open.values():
            one.leak()
        logs = set()
        for one in self._open.values():
            with suppress(OSError):
                status = (one.shard / "wal").stat()
                logs.add((status.st_dev, status.st_ino))
        if not logs:
            return
        void = os.open(os.devnull, os.O_RDONLY)
        # a number that Edge believes to be its own must not become another file's
        for entry in Path("/dev/fd").iterdir():
            with suppress(OSError, ValueError):
                status = os.fstat(int(entry.name))
                if (status.st_dev, status.st_ino) in logs:
                    os.dup2(void, int(entry.name), inheritable=False)
        os.close(void)

    @property
    def _folder(self) -> Path:
        return self.path / "collections"

    @property
    def _kept(self) -> Path:
        return self.path / "kept"


def save(folder: Path, name: str, shard: str, config: Json) -> None:
    """Write down, in one step, what the collection in `folder` is and which shard is its current one."""
    about = {"format": FORMAT, "name": name, "shard": shard, "config": config}
    write(folder / _ABOUT, json.dumps(about, indent=1).encode())


def _about(folder: Path) -> Json:
    about: Json = json.loads((folder / _ABOUT).read_text("utf-8"))
    return about


_places: dict[Path, Place] = {}
_ending: dict[Path, Place] = {}
_guard = threading.RLock()


def lease(path: Path, shown: str) -> Place:
    """The place in a folder, which is made if it is not there; to be given back by `give_back`.

    `path` is what realpath gives. Raises Busy where another process holds it, Forbidden, StoreError.
    """
    while True:
        with _guard, sentences(shown):
            ending = _ending.get(path)
            if ending is None:
                place = _places.get(path)
                if place is None or not place.still_there():
                    path.mkdir(parents=True, exist_ok=True)
                    place = Place(path, shown, _locked(path, shown))
                    place.clear()
                    _places[path] = place
                place.leases += 1
                return place
        ending.ended.wait()


def give_back(place: Place) -> None:
    """The end of a lease; the last one closes the place. Does nothing in a forked child."""
    if place.process != os.getpid():
        return
    with _guard:
        place.leases -= 1
        if place.leases:
            return
        if _places.get(place.path) is place:
            del _places[place.path]
            _ending[place.path] = place
    try:
        # without the guard: a build may have to be ended first
        place.close()
    finally:
        with _guard:
            if _ending.get(place.path) is place:
                del _ending[place.path]
            place.ended.set()


def _locked(path: Path, shown: str) -> int:
    while True:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(lock, path / _LOCK):
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
                return lock
            # the folder was deleted and made anew between the two calls
            os.close(lock)
        except BlockingIOError as error:
            holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
            os.close(lock)
            raise Busy(
                f"{shown} is in use by process {holder or '(unknown)'}: Qdrant Edge serves one process at a "
                f"time; close it there first, or use a store that several processes share: a Qdrant server "
                f"(qdrant://HOST), flat:PATH or pgvector:PATH"
            ) from error
        except BaseException:
            os.close(lock)
            raise


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _forget_all() -> None:
    global _guard
    _guard = threading.RLock()
    for place in (*_places.values(), *_ending.values()):
        place.forked()
    _places.clear()
    _ending.clear()


os.register_at_fork(after_in_child=_forget_all)
