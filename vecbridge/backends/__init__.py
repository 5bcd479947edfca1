"""The narrow edge: what a store must do, and the one table that finds it by URL scheme.

A backend receives only clean input: finite float32 matrices, C-contiguous, of the right length; ids that are
unique within the call; metadata that JSON holds; filters already parsed. It validates nothing of that again.
It raises nothing but the errors in `vecbridge.errors`; a driver's error is their cause.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast, runtime_checkable

from ..errors import MissingExtra, UrlError
from ..limits import Limits
from ..manifest import Adopted, Manifest
from ..types import Batch, Finding, Hit, IndexState, Layout, Metric, Progress, Sizes

if TYPE_CHECKING:
    from ..filters import Filter
    from ..types import Floats

# vectors, documents and metadata in one batch of a scan, about: a few hundred of the widest records
PART_BYTES = 8 * 2**20


class Backend(Protocol):
    """One place that holds collections, opened from a URL. Safe to use from several threads."""

    @property
    def url(self) -> str:
        """Where this is, without password: fit for messages."""

    def limits(self) -> Limits:
        """What this very server can store and index."""

    def names(self) -> list[str]:
        """The collections here, sorted."""

    def create(self, manifest: Manifest) -> Table:
        """A new, empty collection; all of it or nothing. Raises CollectionExists."""

    def open(self, name: str) -> Table:
        """The collection of this name, after comparing what is really there with its manifest.

        Raises CollectionNotFound, ManifestError.
        """

    def drop(self, name: str) -> None:
        """Delete the collection and everything in it. Raises CollectionNotFound."""

    def successor(self, manifest: Manifest) -> Table:
        """A new, empty table that may become the collection `manifest.name`, which exists.

        `manifest.generation` is one more than the collection's. `names` and `open` do not see it. What an
        abandoned attempt left is removed first. Raises CollectionNotFound, LayoutChanged where the collection
        has another generation by now, and what `create` raises.
        """

    def switch(self, successor: Table) -> None:
        """Make the successor the collection, in one step; what it was before is deleted.

        Whoever opens it from then on finds the successor, and searches that are under way end. Tables that
        were open before raise LayoutChanged at their next use. If this fails, the collection is as before or
        switched, never neither. Raises CollectionNotFound, LayoutChanged where another successor was faster.
        """

    def discard(self, successor: Table) -> None:
        """Delete a successor that shall not become the collection; nothing where it has, or is gone."""

    def exchange(self, one: str, other: str) -> None:
        """Let two collections change their names, in one step: both have, or neither.

        Nothing of their content is touched. Whoever opens one of the names from then on finds the other's
        records. Tables that were open before raise LayoutChanged at their next use, also those that wait to
        write: no record arrives in the wrong one. What another process has open on a Qdrant server is
        the exception: it goes on with the records that it had, under whichever name. Raises
        CollectionNotFound, InputError for one name twice.
        """

    def findings(self) -> list[Finding]:
        """What is right and wrong with this place and the collections in it, for `vecbridge doctor`.

        Changes nothing. What the user's rights do not let it see is a finding, not an error.
        """

    def close(self) -> None:
        """Give back connections, files and locks, those of its tables included. May be called twice."""


class Table(Protocol):
    """One collection's records in a backend. Safe to use from several threads.

    Once the collection has been dropped, every use raises CollectionNotFound; once the backend is closed,
    StoreError.
    """

    @property
    def manifest(self) -> Manifest:
        """What the collection says of itself."""

    def write(self, batch: Batch) -> None:
        """Insert or replace these records: all of them or none, durable when the call returns."""

    def read(self, ids: Sequence[str]) -> Batch:
        """The records of these ids in the order given; ids that are not there are left out."""

    def digests(self, ids: Sequence[str]) -> dict[str, bytes]:
        """The stored digests of those of these ids that are there and have one."""

    def inventory(self) -> Iterator[list[tuple[str, bytes | None]]]:
        """Ids and digests of all records, a few thousand at a time, in no order; memory holds one part.

        Every record that is there from beginning to end comes once. Of those that are written or deleted
        meanwhile, any may be missing.
        """

    def scan(self, where: Filter | None, *, vectors: bool) -> Iterator[Batch]:
        """All records, or those that match, in batches of about `PART_BYTES`, in no order; none is empty.

        The same promise as `inventory`, and nothing is held between two batches: neither a transaction nor a
        connection. Without `vectors`, those of a batch are (n, 0), and none is transferred.
        """

    def sample(self, n: int, *, seed: int) -> Batch:
        """Up to `n` records chosen at random; the same seed on the same content gives the same records."""

    def delete(self, ids: Sequence[str]) -> int:
        """Remove these ids; returns how many were there."""

    def delete_where(self, where: Filter) -> int:
        """Remove the records that match; returns how many."""

    def count(self, where: Filter | None = None) -> int:
        """Number of records, or of those that match."""

    def search(
        self, queries: Floats, short: Floats | None, *, k: int, where: Filter | None, exact: bool
    ) -> list[list[Hit]]:
        """For each row of `queries`, float32 (m, stored dim), the k nearest records, nearest first.

        k records come back whenever k exist (that match). Equal scores are ordered by id where the search is
        exact. `short` (m, s): the queries for an index on a projection (see `Batch.short`). `exact` ignores
        the index.
        """

    def build_index(self, progress: Progress | None) -> None:
        """Bring the index to status "ready" and used; does nothing where it is, or the layout has none.

        Repairs what an interrupted build left. Raises IndexFailure when the collection's own query does not
        run on it afterwards.
        """

    def index_state(self) -> IndexState:
        """What has become of the index, by the store's own account."""

    def searched(self, layout: Layout) -> Table:
        """The same records, for searching with the widths of `layout`.

        It differs from the collection's own in `ef_search`, `probes` and `oversample` alone. Nothing is
        stored; what comes back is not closed by itself.
        """

    def keep(self, manifest: Manifest) -> None:
        """Replace what the collection says of itself, in one step and durably.

        `manifest` differs from the present one in search widths, `recall`, `tuned`, `rows`, `chunking` and
        `copy_of` alone. Others who have it open see it when they open it again. Raises LayoutChanged where
        the collection has another generation by now.
        """

    def paused(self) -> AbstractContextManager[None]:
        """While this is held, all other writers wait, and searches go on.

        A store that cannot keep others from writing lets them. Raises Busy where it would take too long.
        """

    def sizes(self) -> Sizes:
        """Bytes on disk."""

    def close(self) -> None:
        """Give back what this collection holds open. May be called twice."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is said of a table that shall be adopted; None is for the backend to find out.

    `name`: of the collection. `metadata`: the columns that hold it. `part`: which of the collections that
    share the table, by its name or by its key. The rest as in `Adopted`.
    """

    table: str
    name: str | None = None
    id: str | None = None
    embedding: str | None = None
    document: str | None = None
    metadata: tuple[str, ...] | None = None
    part: str | None = None
    metric: Metric | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a table that shall be adopted holds, and how it is read.

    `element`, `dim`: of its vectors. `layout`: that of an index of its owner's which serves our searches,
    None where there is none; `served`: its name. `no_index`: why no other can be made, "" where one can.
    `notes`: what was assumed, in sentences.
    """

    name: str
    adopted: Adopted
    rows: int
    dim: int
    element: Literal["float32", "float16"]
    metric: Metric
    layout: Layout | None
    served: str
    no_index: str
    notes: tuple[str, ...]


@runtime_checkable
class Guarded(Protocol):
    """A backend where others have rights to each collection, or have put something of theirs on it."""

    def exchangeable(self, name: str) -> None:
        """Nothing; raises what `exchange` would raise of this collection as it is now."""

    def guard(self, name: str, *, like: str) -> None:
        """Let the same rights hold for a collection as for another one.

        Raises CollectionNotFound, Forbidden.
        """


@runtime_checkable
class Adopting(Protocol):
    """A backend that can take records for a collection where another library keeps them."""

    def adoptable(self, wanted: Wanted) -> Found:
        """What is in a table that another library made, and how it would be read; changes nothing.

        Raises InputError where it must be said more clearly what is meant, CollectionExists, FeatureMissing,
        Forbidden.
        """

    def adopting(self, manifest: Manifest, *, rows: int, build_index: bool) -> list[str]:
        """The statements that `create`, and then building the index, would run to adopt the table."""

    def about_index(self, manifest: Manifest, served: str) -> str:
        """What the index of an adopted table serves, and which of its owner's own queries, in sentences."""

    def peek(self, manifest: Manifest) -> Table:
        """The records as the collection would have them, which is not made."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """Where a URL scheme lives: `module` has `connect(url) -> Backend`, `extra` installs its driver.

    `driver`: the package that is missing without the extra, where only some URLs of the scheme need it.
    """

    module: str
    extra: str | None = None
    driver: str | None = None


SCHEMES = {
    "flat": Scheme("vecbridge.backends.flat"),
    "postgresql": Scheme("vecbridge.backends.postgres"),
    "postgres": Scheme("vecbridge.backends.postgres"),
    "pgvector": Scheme("vecbridge.backends.embedded", extra="embedded"),
    "qdrant": Scheme("vecbridge.backends.qdrant", extra="embedded", driver="qdrant_edge"),
    "qdrants": Scheme("vecbridge.backends.qdrant"),
    "qdrant+http": Scheme("vecbridge.backends.qdrant"),
    "qdrant+https": Scheme("vecbridge.backends.qdrant"),
}

# of schemes whose `connect` makes a folder: the one without a path, and what lies in one that was made
_MADE = {"pgvector": ("./vecbridge-pg", "data"), "qdrant": ("./vecbridge-qdrant", "")}


def unmade(url: str) -> Path | None:
    """The folder that connecting to a URL would make, where nothing is yet; None for any other URL."""
    scheme, _, path = url.partition(":")
    if scheme.lower() not in _MADE or path.startswith("//") or "\0" in path:
        return None
    default, inside = _MADE[scheme.lower()]
    try:
        folder = Path(path or default).expanduser()
        return None if folder.is_file() or (folder / inside).exists() else folder
    except (OSError, RuntimeError):  # no rights to look, or ~ of an unknown user: connecting says it better
        return None


def connect(url: str) -> Backend:
    """The backend that a URL names. Raises UrlError, MissingExtra, and what the backend raises."""
    name = scheme(url)
    entry = SCHEMES[name]
    try:
        # some modules import their driver when they know what the URL names
        return cast(Backend, importlib.import_module(entry.module).connect(url))
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        ours = missing == __name__.partition(".")[0]
        if (
            ours
            or entry.extra is None
            or isinstance(error, MissingExtra)
            or entry.driver not in (None, missing)
        ):
            raise
        raise MissingExtra(
            f"{name}: URLs need the package {error.name}; "
            f"install it with pip install 'vecbridge[{entry.extra}]'"
        ) from error


def scheme(url: str) -> str:
    """The scheme of a store URL, a key of `SCHEMES`. Raises UrlError."""
    name, colon, _ = url.partition(":")
    name = name.lower() if colon else ""
    if name in SCHEMES:
        return name
    # the text may be a mistyped URL with a password inside: only the scheme is repeated
    named = f"scheme {name[:20]!a}" if name else "no scheme"
    near = difflib.get_close_matches(name[:20], SCHEMES, n=1)
    hint = f"; did you mean {near[0]}:?" if near else ""
    raise UrlError(f"expected a store URL {_examples()}; got {named}{hint}")


def shown(url: str) -> str:
    """A store URL without password and key, for messages while there is no backend to ask."""
    name, slashes, rest = url.partition("://")
    if not slashes:
        return url
    address, _, query = rest.partition("?")
    user, _, host = address.rpartition("@")
    # Qdrant's user is its key
    user = f"{user.partition(':')[0]}@" if user and name.lower().startswith("postgres") else ""
    kept = [pair for pair in query.split("&") if pair.partition("=")[0] in ("host", "port", "schema")]
    return f"{name}://{user}{host}" + (f"?{'&'.join(kept)}" if kept else "")


def _examples() -> str:
    return (
        "such as flat:./data, pgvector:./data, qdrant:./data, postgresql://user@host/database or "
        "qdrant://localhost:6334"
    )
