"""Exact search on disk, without a server: `flat:PATH`.

PATH is a folder, each collection a folder in it: `records.sqlite` for ids, documents, metadata and the
manifest, and a matrix file that is mapped into memory and scanned by BLAS; once it was laid out anew, they
lie in a folder inside it (see `homes`). One writer and many readers at a time, from any number of threads
and processes of one machine.
"""

from __future__ import annotations

import re
import secrets
import shutil
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from ...errors import (
    CollectionExists,
    CollectionNotFound,
    InputError,
    LayoutChanged,
    StoreError,
    UrlError,
    VecbridgeError,
)
from ...limits import Limits, limits
from ...manifest import Manifest, check_name
from ...names import check_two
from ...types import Finding
from .. import Table
from . import findings, homes
from .database import (
    CURRENT,
    NAMES,
    RECORDS,
    alone,
    check_json,
    create,
    current,
    locked,
    names,
    pausing,
    translated,
)
from .matrix import Files, sync_folder
from .table import FORMAT, FlatTable

__all__ = ["FlatBackend", "FlatTable", "connect"]

_DEFAULT = "./vecbridge-data"
# folders on their way in or out; under the lock they can only belong to a process that died
_LEFTOVER = re.compile(r"\.[A-Za-z0-9_-]+\.(tmp|drop)-[0-9a-f]{16}")


def connect(url: str) -> FlatBackend:
    """The collections in the folder that `flat:PATH` names; it need not exist yet.

    PATH may start with `~`; a relative one starts at the working directory; empty means ./vecbridge-data.
    Raises UrlError, StoreError where PATH is a file.
    """
    path = url.partition(":")[2] or _DEFAULT
    if "\0" in path:
        raise UrlError(f"expected a folder after flat:, got a path with a NUL character: {path!a}")
    check_json()
    try:
        folder = Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UrlError(
            f"expected a folder after flat:, got {path!a}, whose home folder is unknown"
        ) from error
    with translated(folder):
        if folder.exists() and not folder.is_dir():
            raise StoreError(f"expected a folder at {folder}, found a file; name another path after flat:")
    return FlatBackend(f"flat:{path}", folder)


class FlatBackend:
    """A folder of collections; see `vecbridge.backends.Backend`."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._tables: weakref.WeakSet[FlatTable] = weakref.WeakSet()
        self._closed = False

    @property
    def url(self) -> str:
        return self._url

    def limits(self) -> Limits:
        return limits("flat")

    def names(self) -> list[str]:
        self._check()
        with translated(self._folder):
            if not self._folder.is_dir():
                return []
            found = {path.parent for name in (RECORDS, CURRENT) for path in self._folder.glob(f"*/{name}")}
            called = names(self._folder)
            return sorted(called.now(place.name) for place in found if _named(place))

    def create(self, manifest: Manifest) -> FlatTable:
        self._check()
        check_name(manifest.name)
        with translated(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._changing():
                place = self.place(manifest.name)
                if place.exists():
                    raise CollectionExists(
                        f"there is already {manifest.name!r} in {self._url}; "
                        f"open it, drop it, or take another name"
                    )
                made = self._aside(manifest.name, "tmp")
                made.mkdir()
                try:
                    _fill(made, manifest, uid=secrets.token_hex(16))
                    made.rename(place)
                except BaseException:
                    shutil.rmtree(made, ignore_errors=True)
                    raise
                sync_folder(self._folder)
        return self.open(manifest.name)

    def open(self, name: str) -> FlatTable:
        self._check()
        with translated(self._folder):
            while True:
                place = self.place(name)
                if not place.is_dir():
                    raise self._missing(name)
                home, _ = current(place)
                try:
                    table = FlatTable(place, name=name, home=home)
                    break
                except VecbridgeError:
                    if self.place(name) == place and current(place)[0] == home:
                        raise
                    # laid out anew meanwhile, or renamed: what was missing was on its way out
        self._tables.add(table)
        return table

    def successor(self, manifest: Manifest) -> FlatTable:
        self._check()
        with translated(self._folder):
            place = self.place(manifest.name)
            if not place.is_dir():
                raise self._missing(manifest.name)
            with self._changing(), closing(self.open(manifest.name)) as present:
                if manifest.generation != present.manifest.generation + 1:
                    raise LayoutChanged(
                        f"expected the successor of generation {present.manifest.generation} of "
                        f"{manifest.name!r} in {self._url}, got generation {manifest.generation}: it was "
                        f"laid out anew meanwhile; open it again"
                    )
                # whoever lays it out anew keeps its writers waiting: nobody else does at the same time
                homes.clear(place, claimed=True)
                made = homes.fresh(place, manifest.generation)
                try:
                    claim = homes.Claim(made)
                    _fill(made, manifest, uid=present.uid)
                    sync_folder(place)
                    table = FlatTable(place, name=manifest.name, home=made.name, base=present.home)
                except BaseException:
                    homes.delete(made)
                    raise
        table.claim = claim
        self._tables.add(table)
        return table

    def switch(self, successor: Table) -> None:
        self._check()
        assert isinstance(successor, FlatTable), "a successor comes from the same backend"
        assert successor.base is not None, "only what successor() gave can succeed anything"
        place, before = successor.place, successor.place / successor.base
        with translated(place), ExitStack() as held:
            successor.check()
            if current(place)[0] == successor.home:
                return  # it has succeeded already
            # a write that is under way belongs to what goes: it ends first, and nobody begins another
            if not pausing(before):
                try:
                    held.enter_context(alone(before))
                except FileNotFoundError:
                    successor.check()
                    raise
            held.enter_context(self._changing())
            successor.check()
            homes.point(place, successor.home, successor.uid)
            if successor.claim is not None:
                successor.claim.release()
            homes.clear(place, claimed=True)

    def discard(self, successor: Table) -> None:
        self._check()
        assert isinstance(successor, FlatTable), "a successor comes from the same backend"
        place = successor.place
        with translated(place), suppress(CollectionNotFound, LayoutChanged):
            successor.check()
            with self._changing():
                if current(place)[0] != successor.home:
                    homes.delete(place / successor.home)

    def drop(self, name: str) -> None:
        self._check()
        with translated(self._folder):
            if not self.place(name).is_dir():
                raise self._missing(name)
            with self._changing():
                place = self.place(name)
                gone = self._aside(name, "drop")
                try:
                    place.rename(gone)
                except FileNotFoundError:
                    raise self._missing(name) from None
                sync_folder(self._folder)
                shutil.rmtree(gone)

    def exchange(self, one: str, other: str) -> None:
        self._check()
        check_two(one, other)
        with translated(self._folder), ExitStack() as held:
            # a write that is under way belongs to what has the name now: it ends first
            homes_of = {name: self._home(name) for name in (one, other)}
            for name in sorted(homes_of):
                if not pausing(homes_of[name]):
                    held.enter_context(alone(homes_of[name]))
            held.enter_context(self._changing())
            for name, home in homes_of.items():
                if self._home(name) != home:
                    raise LayoutChanged(
                        f"collection {name!r} in {self._url} was laid out anew or exchanged "
                        f"meanwhile; try again"
                    )
            homes.put(self._folder / NAMES, names(self._folder).exchanged(one, other).dump())

    def place(self, name: str) -> Path:
        """The folder of the collection of this name, which need not be there."""
        return self._folder / names(self._folder).made_as(check_name(name))

    def _home(self, name: str) -> Path:
        """The folder where its records lie. Raises CollectionNotFound."""
        place = self.place(name)
        if not place.is_dir():
            raise self._missing(name)
        return place / current(place)[0]

    def findings(self) -> list[Finding]:
        self._check()
        with translated(self._folder):
            return findings.findings(self, self._folder, _LEFTOVER)

    def close(self) -> None:
        self._closed = True
        for table in list(self._tables):
            table.close()

    def _check(self) -> None:
        if self._closed:
            raise StoreError(f"{self._url} was closed; connect again")

    def _missing(self, name: str) -> CollectionNotFound:
        return CollectionNotFound(f"no collection {name!r} in {self._url}")

    def _aside(self, name: str, why: str) -> Path:
        return self._folder / f".{name}.{why}-{secrets.token_hex(8)}"

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The right to add and remove collections here, after clearing away what others left half done."""
        with locked(self._folder / ".lock", f"creating or dropping a collection in {self._folder}"):
            for entry in self._folder.iterdir():
                if _LEFTOVER.fullmatch(entry.name):
                    shutil.rmtree(entry)
                elif entry.is_dir() and _named(entry):
                    homes.clear(entry)
            yield


def _named(place: Path) -> bool:
    try:
        check_name(place.name)
    except InputError:
        return False
    return True


def _fill(folder: Path, manifest: Manifest, *, uid: str) -> None:
    generation = Files(folder, manifest.stored_dim, manifest.layout.element).create()
    text, basis = manifest.dump()
    meta: dict[str, str | bytes] = {
        "format": str(FORMAT),
        "uid": uid,
        "manifest": text,
        "basis": basis,
    }
    create(folder / RECORDS, meta=meta, generation=generation)
    sync_folder(folder)
