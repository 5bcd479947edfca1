"""The collections of Qdrant behind one of vecbridge's: as it was made, and what it is laid out anew as.

Generation 0 of `papers` is Qdrant's collection `papers`, a later one `papers~2-9f31…`: a name that no
collection of vecbridge can have, that Qdrant and file systems take, and that no two attempts share. What is
current is said in their metadata, which Qdrant changes key by key (merge_map in lib/segment), in one step:

    vecbridge            the entry: manifest, and key of the basis
    vecbridge_next       of a predecessor: the name of its successor. It tells where to look, no more, and is
                         written first: while it is not there, opening takes no further request
    vecbridge_state      of a successor: "waiting", then "current". The switch is this one write
    vecbridge_abandoned  of a successor: somebody is about to remove it
    vecbridge_exchanged  its name may be another's: which, is kept beside all collections, as Qdrant cannot
                         rename, and replaced in one step; see `vecbridge.names`. In this module a collection
                         goes by the name that it was made as

Nobody can compare and swap there. So whoever removes a successor says so first, then looks whether it has
become current, and if so lets it be. Whoever makes it current looks afterwards whether somebody wants to
remove it, and leaves the predecessor alone until that is settled: one of the two at least sees the other. The
predecessor goes last; where that fails, whoever opens the collection completes it, and is not served by it
meanwhile.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...errors import CollectionNotFound, InputError, LayoutChanged, StoreError
from ...manifest import check_name
from ...names import Names
from .engine import Engine, Json

ENTRY = "vecbridge"
_NEXT, _STATE, _ABANDONED = "vecbridge_next", "vecbridge_state", "vecbridge_abandoned"
_EXCHANGED, _NAMES = "vecbridge_exchanged", "names"
_WAITING, _CURRENT = "waiting", "current"
# a second: the other one has two requests to make
_LOOKS, _PAUSE = 20, 0.05
_LATER = re.compile(r"(.+)~([1-9][0-9]*)-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Generation:
    """One of Qdrant's collections: its name there, what `describe` says of it, and what we wrote in it."""

    physical: str
    description: Json
    metadata: Json

    @property
    def entry(self) -> Json | None:
        """The manifest and the key of its basis; None where another program made the collection."""
        found = self.metadata.get(ENTRY)
        return found if isinstance(found, dict) else None

    @property
    def order(self) -> tuple[int, str]:
        """Later ones are larger."""
        later = _LATER.fullmatch(self.physical)
        return (int(later[2]) if later else 0, self.physical)

    @property
    def number(self) -> int:
        """The generation in its manifest."""
        assert self.entry is not None
        found: int = json.loads(self.entry["manifest"]).get("generation", 0)
        return found

    @property
    def following(self) -> str | None:
        """The name of the one that succeeds it, if that has become current."""
        found = self.metadata.get(_NEXT)
        return found if isinstance(found, str) else None

    @property
    def waiting(self) -> bool:
        """Whether it is a successor that has never become current."""
        return bool(self.order[0]) and self.metadata.get(_STATE) != _CURRENT

    @property
    def abandoned(self) -> bool:
        """Whether somebody has begun to remove it."""
        return bool(self.metadata.get(_ABANDONED))

    @property
    def exchanged(self) -> bool:
        """Whether its name may be another's now."""
        return bool(self.metadata.get(_EXCHANGED))

    @property
    def ours(self) -> bool:
        """Whether vecbridge made it, or began to."""
        return self.entry is not None or self.waiting

    @property
    def settled(self) -> bool:
        """Whether it takes the place of what precedes it."""
        return self.entry is not None and not self.waiting and not self.abandoned


def name_of(physical: str) -> str | None:
    """The collection that Qdrant's collection of this name may be a generation of; None for others' names."""
    later = _LATER.fullmatch(physical)
    name = later[1] if later else physical
    try:
        return check_name(name)
    except InputError:
        return None


def grouped(physicals: Sequence[str]) -> dict[str, list[str]]:
    """The names of Qdrant's collections by the collection that they may be generations of."""
    groups: dict[str, list[str]] = {}
    for physical in physicals:
        if (name := name_of(physical)) is not None:
            groups.setdefault(name, []).append(physical)
    return groups


def successor_name(name: str, number: int) -> str:
    """A name for this generation that no other attempt has."""
    return f"{name}~{number}-{secrets.token_hex(8)}"


def current(generations: Sequence[Generation]) -> Generation | None:
    """Of all generations of a collection the one that it is; None where there is none."""
    made = sorted((one for one in generations if one.entry is not None and not one.waiting), key=_order)
    # where its predecessor is gone already, it does not count that somebody wanted to remove it
    return next((one for one in reversed(made) if not one.abandoned), made[-1] if made else None)


def _order(generation: Generation) -> tuple[int, str]:
    return generation.order


class Generations:
    """The generations in one Qdrant: looked up, changed, removed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def _in_metadata(self) -> bool:
        return self._engine.limits().has("collection metadata")

    # names

    def names(self) -> Names:
        """The names that collections here exchanged."""
        return Names.load(self._engine.kept(_NAMES), self._engine.url)

    def exchange(self, one: str, other: str, physicals: Sequence[str]) -> None:
        """Let these two names change places, in one step; `physicals`: what they stand for in Qdrant."""
        for physical in physicals:
            # whoever finds nothing under a name looks at the names by himself
            self.note(physical, {_EXCHANGED: True})
        self._engine.keep(_NAMES, self.names().exchanged(one, other).dump())

    # looking

    def look(self, physical: str) -> Generation | None:
        """What Qdrant says of its collection of this name, None where there is none."""
        try:
            description = self._engine.describe(physical)
        except CollectionNotFound:
            return None
        return Generation(physical, description, self._metadata(physical, description))

    def _metadata(self, physical: str, description: Json) -> Json:
        if self._in_metadata:
            found: Any = (description.get("config") or {}).get("metadata") or {}
        else:
            kept = self._engine.kept(_key(physical))
            found = {} if kept is None else json.loads(kept)
        return found if isinstance(found, dict) else {}

    def all(self, name: str) -> list[Generation]:
        """All generations of a collection, and what is left of attempts, the oldest first."""
        while True:
            physicals = grouped(self._engine.collections()).get(name, [])
            found = [one for one in map(self.look, physicals) if one is not None]
            # what vanished since the list was made may have a successor that is not in it
            if len(found) == len(physicals):
                return sorted(found, key=_order)

    def find(self, name: str, first: Generation | None) -> list[Generation]:
        """What the collection is now, last, after what it succeeds and is still there; empty where it is not.

        `first`: what looking at its name gave. No further request where it is as it was made.
        """
        if first is not None and first.entry is not None:
            return self._line(first)
        there = self.all(name)
        now = current(there)
        if now is None:
            return []
        return [one for one in there if one.entry and not one.waiting and one.order < now.order] + [now]

    def _line(self, first: Generation) -> list[Generation]:
        line = [first]
        while (following := line[-1].following) is not None:
            successor = self.look(following)
            if successor is None or not successor.settled:
                break
            line.append(successor)
        return line

    def is_there(self, name: str, physicals: Sequence[str]) -> bool:
        """Whether there is such a collection, where just now Qdrant had those of these names."""
        found = [self.look(physical) for physical in physicals]
        there = [one for one in found if one is not None]
        return current(there) is not None or (
            len(there) < len(found) and self.find(name, self.look(name)) is not None
        )

    def missing(self, name: str) -> CollectionNotFound:
        """The error for a collection that is not there."""
        return CollectionNotFound(f"there is no collection {name!r} in {self._engine.url}")

    def changed(self, name: str) -> LayoutChanged:
        """The error for one that is laid out anew."""
        return LayoutChanged(
            f"collection {name!r} in {self._engine.url} was laid out anew meanwhile; open it again"
        )

    def lost(self, name: str, physical: str) -> CollectionNotFound | LayoutChanged:
        """The error for whoever used Qdrant's collection `physical`, which was not there any more.

        `name` is what the collection is called.
        """
        made = name_of(physical) or name
        # it may be there again: names that were exchanged twice are what they were
        if self.find(made, self.look(made)) or self.names().now(made) != name:
            return self.changed(name)
        return self.missing(name)

    # changing

    def create(
        self,
        physical: str,
        body: Json,
        entry: Json,
        fields: Sequence[tuple[str, str]],
        *,
        exchanged: bool = False,
    ) -> None:
        """Make Qdrant's collection with an entry and indexed fields: all of it or nothing.

        One of a later generation waits. `exchanged`: it is called otherwise. Raises CollectionExists.
        """
        metadata: Json = {ENTRY: entry}
        if exchanged:
            metadata[_EXCHANGED] = True
        if _LATER.fullmatch(physical):
            metadata[_STATE] = _WAITING
        if self._in_metadata:
            body = {**body, "metadata": metadata}
        self._engine.create(physical, body)
        try:
            for field, schema in fields:
                self._engine.index_field(physical, field, schema)
            if not self._in_metadata:
                self._engine.keep(_key(physical), json.dumps(metadata).encode())
        except BaseException:
            with suppress(StoreError, CollectionNotFound):
                self._engine.drop(physical)
            raise

    def note(self, physical: str, values: Json) -> None:
        """Write these keys of the metadata, in one step and durably. Raises CollectionNotFound."""
        if self._in_metadata:
            self._engine.annotate(physical, values)
            return
        there = self.look(physical)
        if there is None or there.entry is None:
            raise self.missing(physical)
        self._engine.keep(_key(physical), json.dumps({**there.metadata, **values}).encode())

    def replace_entry(self, name: str, physical: str, text: str) -> None:
        """Put another manifest in the place of the present one. Raises CollectionNotFound, LayoutChanged."""
        there = self.look(physical)
        if there is None or there.entry is None:
            raise self.lost(name, physical)
        if there.abandoned or self._line(there)[-1] is not there:
            raise self.changed(name)
        self.note(physical, {ENTRY: {**there.entry, "manifest": text}})

    def appoint(self, before: Generation, physical: str) -> None:
        """Make a successor current, and remove what it succeeds. Raises LayoutChanged."""
        name = name_of(physical) or physical
        try:
            self.note(before.physical, {_NEXT: physical})
        except CollectionNotFound:
            raise self.lost(name, before.physical) from None
        try:
            self.note(physical, {_STATE: _CURRENT})
        except CollectionNotFound:
            raise self.changed(name) from None
        for _ in range(_LOOKS):
            now = self.look(physical)
            if now is None:
                raise self.changed(name)
            if now.settled:
                self.remove(before)
                return
            # whoever wants it removed is about to see that it is current, or has not seen it and removes it
            time.sleep(_PAUSE)
        raise self.changed(name)

    def clear(self, generation: Generation) -> None:
        """Remove what is not current. Raises LayoutChanged where it has just become so."""
        if generation.waiting:
            try:
                self.note(generation.physical, {_ABANDONED: True})
            except CollectionNotFound:
                return
            now = self.look(generation.physical)
            if now is not None and not now.waiting:
                with suppress(CollectionNotFound):
                    self.note(now.physical, {_ABANDONED: False})
                raise self.changed(name_of(now.physical) or now.physical)
        self.remove(generation)

    def remove(self, generation: Generation) -> bool:
        """Delete Qdrant's collection and what lies beside it; whether it was still there."""
        try:
            self._engine.drop(generation.physical)
        except CollectionNotFound:
            return False
        if (basis := (generation.entry or {}).get("basis")) is not None:
            self._engine.forget(basis)
        if not self._in_metadata:
            self._engine.forget(_key(generation.physical))
        return True


def _key(physical: str) -> str:
    return f"manifest-{physical}"
