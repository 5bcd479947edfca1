"""Collections in Qdrant: a server by gRPC or REST, a cluster, or Edge inside this process.

qdrant://HOST[:6334]       gRPC           qdrants://…       the same over TLS
qdrant+http://HOST[:6333]  REST           qdrant+https://…  the same over TLS
qdrant:PATH                Edge: the engine itself, in this process, in a folder
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import (
    CollectionExists,
    CollectionNotFound,
    InputError,
    LayoutChanged,
    ManifestError,
    StoreError,
)
from ...limits import Limits
from ...manifest import Manifest
from ...names import check_two
from ...types import FieldKind, Finding
from .. import Found, Wanted
from . import adoption, config, looking
from .address import Address, parse
from .engine import Engine, Json
from .filters import key
from .generations import Generation, Generations, current, grouped, name_of, successor_name
from .table import Table

if TYPE_CHECKING:
    from .. import Table as AnyTable

__all__ = ["Qdrant", "QdrantServer", "Table", "connect"]

# where Edge keeps collections if no path is given
_DEFAULT = "./vecbridge-qdrant"
# the payload key that holds the marks; see `filters`
_MARKS = "odd"
# what a field's values are indexed as; booleans are told by marks, see `filters`
_SCHEMAS: dict[FieldKind, str] = {"text": "keyword", "number": "float", "boolean": "keyword"}


def connect(url: str) -> Qdrant:
    """The collections in the Qdrant that a URL names.

    Raises UrlError, Unavailable, Forbidden, Busy, MissingExtra.
    """
    if "://" not in url:
        from . import edge

        path = url.partition(":")[2] or _DEFAULT
        return Qdrant(edge.connect(path, shown=f"qdrant:{path}"))
    address = parse(url)
    return QdrantServer(_engine(address), exposed=address.bare_key)


def _engine(address: Address) -> Engine:
    if address.rest:
        from . import rest

        return rest.connect(address)
    from . import grpc

    return grpc.connect(address)


class Qdrant:
    """The collections of vecbridge in one Qdrant; see `vecbridge.backends.Backend`.

    A collection carries its manifest: in its metadata, or beside it on servers that know none. A fitted basis
    is too large for that, and lies beside it under a key of its own. `exposed`: the key travels unencrypted.
    """

    def __init__(self, engine: Engine, *, exposed: bool = False) -> None:
        self._engine = engine
        self._exposed = exposed
        self._generations = Generations(engine)

    def __repr__(self) -> str:
        return f"<Qdrant {self.url}>"

    @property
    def url(self) -> str:
        return self._engine.url

    def limits(self) -> Limits:
        return self._engine.limits()

    def names(self) -> list[str]:
        groups, called = grouped(self._engine.collections()), self._generations.names()
        return sorted(
            called.now(made)
            for made, physicals in groups.items()
            if self._generations.is_there(made, physicals)
        )

    def create(self, manifest: Manifest) -> Table:
        made = self._generations.names().made_as(manifest.name)
        before = self._generations.all(made)
        if current(before) is not None:
            raise CollectionExists(
                f"collection {manifest.name!r} is in {self.url} already; open it, drop it, or take another "
                f"name"
            )
        for one in before:
            # of one that was dropped while it was laid out anew
            if one.ours:
                self._generations.clear(one)
        return self._make(manifest, made)

    def _make(self, manifest: Manifest, physical: str) -> Table:
        text, basis = manifest.dump()
        fields = dict(_field(field, kind) for field, kind in manifest.filterable.items())
        if fields:
            # conditions on other kinds of values look at the marks, too
            fields[_MARKS] = "keyword"
        entry: Json = {"manifest": text}
        if basis:
            entry["basis"] = f"basis-{secrets.token_hex(16)}"
            self._engine.keep(entry["basis"], basis)
        try:
            self._generations.create(
                physical,
                config.creation(manifest),
                entry,
                sorted(fields.items()),
                exchanged=name_of(physical) != manifest.name,
            )
        except BaseException:
            if basis:
                with suppress(StoreError):
                    self._engine.forget(entry["basis"])
            raise
        return Table(self._engine, manifest, physical=physical)

    def open(self, name: str) -> Table:
        table, former = self.look(name)
        for one in former:
            # whoever made `now` current did not come to it; who may not delete can work all the same
            with suppress(StoreError):
                self._generations.remove(one)
        return table

    def look(self, name: str) -> tuple[Table, list[Generation]]:
        """What `open` opens, and what it would remove; nothing is changed."""
        while True:
            moves = self._engine.moves
            *former, now = self._line(name)
            table = self._opened(name, now)
            # exchanged meanwhile, it would be another's
            if self._engine.moves == moves:
                return table, former

    def _line(self, name: str) -> list[Generation]:
        if name_of(name) != name:
            # also the names of single generations, which are nobody's business
            raise self._generations.missing(name)
        first = self._generations.look(name)
        line = self._generations.find(name, first)
        # what was never exchanged takes no further request
        if (not line or line[-1].exchanged) and (made := self._generations.names().made_as(name)) != name:
            line = self._generations.find(made, self._generations.look(made))
        if line:
            return line
        if first is not None:
            raise CollectionNotFound(
                f"there is a Qdrant collection {name!r} in {self.url}, but it was not made by vecbridge"
            )
        raise self._generations.missing(name)

    def _opened(self, name: str, found: Generation) -> Table:
        entry = found.entry
        assert entry is not None
        basis = b""
        if (where := entry.get("basis")) is not None:
            kept = self._engine.kept(where)
            if kept is None:
                raise ManifestError(
                    f"collection {name!r} in {self.url} has lost the basis of its projection ({where}); "
                    f"restore it from a backup, or drop the collection"
                )
            basis = kept
        manifest = replace(Manifest.load(entry["manifest"], basis), name=name)
        if wrong := config.disagreements(manifest, found.description):
            raise ManifestError(
                f"collection {name!r} in {self.url} is not as its manifest says: {'; '.join(wrong)}"
            )
        return Table(self._engine, manifest, physical=found.physical)

    def drop(self, name: str) -> None:
        there = self._generations.all(self._generations.names().made_as(name))
        now = current(there)
        for one in there:
            if one is not now and one.ours:
                self._generations.remove(one)
        # the current one last: until then the collection is whole, and nothing older can come back
        if now is None or not self._generations.remove(now):
            self._line(name)  # tells why there is none
            raise self._generations.missing(name)

    def successor(self, manifest: Manifest) -> Table:
        name, generations = manifest.name, self._generations
        before = self._before(manifest)
        made_as = generations.names().made_as(name)
        made = self._make(manifest, successor_name(made_as, manifest.generation))
        try:
            # another attempt that was begun at the same moment, of which at most one may stay
            if self._before(manifest, besides=made.physical).physical != before.physical:
                raise generations.changed(name)
        except BaseException:
            with suppress(StoreError):
                self.discard(made)
            raise
        return made

    def _before(self, manifest: Manifest, *, besides: str | None = None) -> Generation:
        """The collection that a successor is for; other attempts, and what was left over, are removed."""
        there = self._generations.all(self._generations.names().made_as(manifest.name))
        now = current(there)
        if now is None:
            raise self._generations.missing(manifest.name)
        if manifest.generation != now.number + 1:
            raise self._generations.changed(manifest.name)
        for one in there:
            if one is not now and one.physical != besides and one.ours:
                self._generations.clear(one)
        return now

    def switch(self, successor: AnyTable) -> None:
        assert isinstance(successor, Table)
        name, physical = successor.manifest.name, successor.physical
        there = self._generations.all(name_of(physical) or name)
        now = current(there)
        if now is None:
            raise self._generations.missing(name)
        if now.physical != physical:
            mine = next((one for one in there if one.physical == physical), None)
            if mine is None or mine.entry is None or mine.abandoned or mine.number != now.number + 1:
                raise self._generations.changed(name)
            self._generations.appoint(now, physical)
        # also what a switch that was cut off has left
        for one in there:
            if one.physical not in (physical, now.physical) and one.ours:
                self._generations.remove(one)

    def discard(self, successor: AnyTable) -> None:
        assert isinstance(successor, Table)
        left = self._generations.look(successor.physical)
        if left is not None and left.waiting:
            with suppress(LayoutChanged):
                self._generations.clear(left)

    def exchange(self, one: str, other: str) -> None:
        check_two(one, other)
        with ExitStack() as held:
            # by one order, as two may exchange them at the same time
            names = sorted((one, other))
            physicals = [physical for name in names for physical in self._physicals(name)]
            for physical in physicals:
                held.enter_context(self._engine.paused(physical))
            if physicals != [physical for name in names for physical in self._physicals(name)]:
                raise self._generations.changed(one)
            self._generations.exchange(one, other, physicals)
            self._engine.moved(physicals)

    def _physicals(self, name: str) -> list[str]:
        """What Qdrant calls that which vecbridge made for the collection. Raises CollectionNotFound."""
        return [self._line(name)[-1].physical]

    def findings(self) -> list[Finding]:
        from .findings import findings

        return findings(self, self._engine, exposed=self._exposed)

    def close(self) -> None:
        self._engine.close()


class QdrantServer(Qdrant):
    """A Qdrant server, where other programs make collections, too, which can be adopted.

    Edge has none of those: a folder of it is one program's, and vecbridge's are in vecbridge's own order.
    """

    def __init__(self, engine: Engine, *, exposed: bool = False) -> None:
        super().__init__(engine, exposed=exposed)
        self._adoptions = adoption.Adoptions(engine)

    def names(self) -> list[str]:
        called = self._generations.names()
        return sorted({*super().names(), *map(called.now, self._adoptions.names())})

    def create(self, manifest: Manifest) -> Table:
        made = self._generations.names().made_as(manifest.name)
        if self._adoptions.there(made):
            raise adoption.exists(manifest.name, self.url)
        if manifest.adopted is None:
            return super().create(manifest)
        if self._taken(manifest.name):
            raise adoption.exists(manifest.name, self.url)
        return adoption.adopt(self._engine, manifest, made)

    def _taken(self, name: str) -> bool:
        try:
            self.look(name)
        except CollectionNotFound:
            return False
        except ManifestError:
            return True
        return True

    def look(self, name: str) -> tuple[Table, list[Generation]]:
        try:
            return super().look(name)
        except CollectionNotFound:
            made = self._generations.names().made_as(name)
            manifest = self._adoptions.find(made)
            if manifest is None:
                raise
        manifest = replace(manifest, name=name)
        table = adoption.AdoptedTable(self._engine, manifest, made=made)
        there = self._generations.look(table.physical)
        adoption.compare(manifest, None if there is None else there.description, self.url)
        return table, []

    def drop(self, name: str) -> None:
        """Delete the collection and everything in it; an adopted one is forgotten, and its points stay."""
        try:
            super().drop(name)
        except CollectionNotFound:
            made = self._generations.names().made_as(name)
            if not self._adoptions.there(made):
                raise
            self._adoptions.forget(made)
            # whoever has it open here looks whether it is still there
            self._engine.moved([])

    def _physicals(self, name: str) -> list[str]:
        try:
            return super()._physicals(name)
        except CollectionNotFound:
            if not self._adoptions.there(self._generations.names().made_as(name)):
                raise
            return []

    def adoptable(self, wanted: Wanted) -> Found:
        """What is in a collection that another program made, and how it would be read; changes nothing.

        Raises InputError where it must be said more clearly what is meant, CollectionExists, FeatureMissing.
        """
        return looking.look(self._engine, wanted, self._taken)

    def adopting(self, manifest: Manifest, *, rows: int, build_index: bool) -> list[str]:
        """The requests that `create` would send to adopt the collection; no index is ever built."""
        made = self._generations.names().made_as(manifest.name)
        return self._adoptions.requests(made, manifest)

    def about_index(self, manifest: Manifest, served: str) -> str:
        """What the owner's graph serves, in sentences."""
        return adoption.about_index(self.peek(manifest))

    def peek(self, manifest: Manifest) -> adoption.AdoptedTable:
        """The records as the collection would have them, which is not made."""
        return adoption.AdoptedTable(self._engine, manifest)


def _field(name: str, kind: FieldKind) -> tuple[str, str]:
    """The payload key and the schema of the index that serves filters on a metadata field."""
    if kind == "boolean":
        return _MARKS, _SCHEMAS[kind]
    found = key(tuple(name.split(".")))
    if found is None:
        raise InputError(
            f"Qdrant cannot index the metadata field {name!r}: its name has characters beyond its paths"
        )
    return found, _SCHEMAS[kind]
