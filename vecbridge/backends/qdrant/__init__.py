"""Collections in Qdrant: a server by gRPC or REST, a cluster, or Edge inside this process.

qdrant://HOST[:6334]       gRPC           qdrants://…       the same over TLS
qdrant+http://HOST[:6333]  REST           qdrant+https://…  the same over TLS
qdrant:PATH                Edge: the engine itself, in this process, in a folder
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress

from ...errors import CollectionNotFound, InputError, ManifestError, StoreError
from ...limits import Limits
from ...manifest import Manifest, check_name
from ...types import FieldKind, Finding
from . import config
from .address import Address, parse
from .engine import Engine, Json
from .filters import key
from .table import Table

__all__ = ["Qdrant", "Table", "connect"]

# where Edge keeps collections if no path is given
_DEFAULT = "./vecbridge-qdrant"
_OURS = "vecbridge"
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
    return Qdrant(_engine(address), exposed=address.bare_key)


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

    def __repr__(self) -> str:
        return f"<Qdrant {self.url}>"

    @property
    def url(self) -> str:
        return self._engine.url

    def limits(self) -> Limits:
        return self._engine.limits()

    def names(self) -> list[str]:
        return sorted(name for name in self._engine.collections() if _possible(name) and self._is_ours(name))

    def _is_ours(self, name: str) -> bool:
        try:
            return self._entry(name, self._engine.describe(name)) is not None
        except CollectionNotFound:  # dropped since it was listed
            return False

    def _entry(self, name: str, description: Json) -> Json | None:
        """What we wrote about a collection when we made it: its manifest, and the key of its basis."""
        metadata = (description.get("config") or {}).get("metadata") or {}
        if not self.limits().has("collection metadata"):
            kept = self._engine.kept(f"manifest-{name}")
            metadata = {} if kept is None else json.loads(kept)
        entry = metadata.get(_OURS)
        return entry if isinstance(entry, dict) else None

    def create(self, manifest: Manifest) -> Table:
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
            self._make(manifest, entry, sorted(fields.items()))
        except BaseException:
            if basis:
                with suppress(StoreError):
                    self._engine.forget(entry["basis"])
            raise
        return Table(self._engine, manifest)

    def _make(self, manifest: Manifest, entry: Json, fields: list[tuple[str, str]]) -> None:
        name, body = manifest.name, config.creation(manifest)
        in_metadata = self.limits().has("collection metadata")
        if in_metadata:
            body["metadata"] = {_OURS: entry}
        self._engine.create(name, body)
        try:
            for field, schema in fields:
                self._engine.index_field(name, field, schema)
            if not in_metadata:
                self._engine.keep(f"manifest-{name}", json.dumps({_OURS: entry}).encode())
        except BaseException:
            with suppress(StoreError, CollectionNotFound):
                self._engine.drop(name)
            raise

    def open(self, name: str) -> Table:
        description = self._engine.describe(name)
        entry = self._entry(name, description)
        if entry is None:
            raise CollectionNotFound(
                f"there is a Qdrant collection {name!r} in {self.url}, but it was not made by vecbridge"
            )
        basis = b""
        if (where := entry.get("basis")) is not None:
            kept = self._engine.kept(where)
            if kept is None:
                raise ManifestError(
                    f"collection {name!r} in {self.url} has lost the basis of its projection ({where}); "
                    f"restore it from a backup, or drop the collection"
                )
            basis = kept
        manifest = Manifest.load(entry["manifest"], basis)
        if wrong := config.disagreements(manifest, description):
            raise ManifestError(
                f"collection {name!r} in {self.url} is not as its manifest says: {'; '.join(wrong)}"
            )
        return Table(self._engine, manifest)

    def drop(self, name: str) -> None:
        entry = self._entry(name, self._engine.describe(name))
        if entry is None:
            raise CollectionNotFound(
                f"there is a Qdrant collection {name!r} in {self.url}, but it was not made by vecbridge"
            )
        self._engine.drop(name)
        if "basis" in entry:
            self._engine.forget(entry["basis"])
        if not self.limits().has("collection metadata"):
            self._engine.forget(f"manifest-{name}")

    def findings(self) -> list[Finding]:
        from .findings import findings

        return findings(self, self._engine, exposed=self._exposed)

    def close(self) -> None:
        self._engine.close()


def _possible(name: str) -> bool:
    try:
        check_name(name)
    except InputError:
        return False
    return True


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
