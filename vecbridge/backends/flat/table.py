"""One collection on disk: records in SQLite, vectors in mapped files, both seen at one moment in time."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import Forbidden, LayoutChanged, ManifestError, StoreError
from ...manifest import Manifest
from ...types import Batch, Hit, IndexState, Layout, Progress, Sizes
from .. import PART_BYTES
from .choices import Choices, column
from .database import RECORDS, Database
from .homes import Claim
from .matrix import Files, Vectors
from .nearest import nearest
from .sql import Condition, condition

if TYPE_CHECKING:
    import sqlite3

    from ...filters import Filter
    from ...types import Floats
    from .matrix import Array

FORMAT = 1
_DEAD = 1000  # dead positions that are always tolerated
_DEAD_SHARE = 0.3
_IDS = 500  # parameters in one statement; old SQLite takes 999
_PART = 5_000  # records of one part of the inventory or of a scan, at most
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, slots=True)
class _State:
    """What a snapshot sees: positions written, the next free row, how many positions are dead."""

    generation: str
    rows: int
    next_row: int
    dead: int
    version: int
    coded: int  # the first positions, those whose vectors lie in bytes as well


class FlatTable:
    """One collection's records in a folder; see `vecbridge.backends.Table`."""

    def __init__(
        self, place: Path, *, name: str | None = None, home: str = "", base: str | None = None
    ) -> None:
        """Opens the collection whose folder is `place`, and whose files lie in its folder `home`.

        `name`: what it is called, its folder's name if not given. `base`: the home that it shall succeed,
        None where it is the collection already. Raises ManifestError where files are missing or too short.
        """
        folder = place / home
        if not (folder / RECORDS).is_file():
            raise ManifestError(
                f"expected {RECORDS} in {folder}, found none: this is not a collection, or it is damaged; "
                f"restore the folder from a backup or delete it"
            )
        self._folder = folder
        name = place.name if name is None else name
        self._database = Database(place, name=name, home=home, base=base)
        self.place, self.home, self.base = place, home, base
        self.claim: Claim | None = None
        self._mapped: Vectors | None = None
        self._choices = Choices()
        try:
            with self._database.reading() as connection:
                meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
            # whoever renames the folder renames the collection
            self._manifest = replace(_manifest(meta, place), name=name)
            element = self._manifest.layout.element
            self._files = Files(folder, self._manifest.stored_dim, element)
            with self._snapshot():
                pass  # maps the files, and so compares them with what SQLite expects
        except BaseException:
            self._database.close()
            raise

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def uid(self) -> str:
        """What tells the collection, and its successors, from others that had or will have its name."""
        return self._database.uid

    def check(self) -> None:
        """Raises StoreError once closed, CollectionNotFound once dropped, LayoutChanged once replaced."""
        self._database.check()

    def write(self, batch: Batch) -> None:
        if not len(batch):
            return
        with self._database.writing() as connection:
            state = _state(connection)
            # whoever was killed while compacting left files behind
            self._files.sweep(state.generation)
            dead = _remove(connection, batch.ids)
            rows = range(state.next_row, state.next_row + len(batch))

            def insert() -> None:
                connection.executemany(
                    "INSERT INTO records (row, id, digest, metadata, document) VALUES (?, ?, ?, ?, ?)",
                    zip(
                        rows,
                        batch.ids,
                        batch.digests,
                        [_JSON.encode(dict(one)) for one in batch.metadata],
                        batch.documents,
                        strict=True,
                    ),
                )

            coded = self._files.append(
                state.generation,
                state.rows,
                batch.vectors,
                state.next_row,
                coded=state.coded,
                meanwhile=insert,
            )
            state = replace(
                state,
                rows=state.rows + len(batch),
                next_row=rows.stop,
                dead=state.dead + dead,
                coded=coded,
            )
            _save(connection, state)
        self._compact(state)

    def delete(self, ids: Sequence[str]) -> int:
        with self._database.writing() as connection:
            gone = _remove(connection, ids)
            state = _bury(connection, gone)
        self._compact(state)
        return gone

    def delete_where(self, where: Filter) -> int:
        chosen = condition(where)
        with self._database.writing() as connection:
            chosen.install(connection)
            gone = connection.execute(
                f"INSERT INTO dead SELECT row FROM records WHERE {chosen.sql}",  # noqa: S608  # operands are bound
                chosen.values,
            ).rowcount
            connection.execute("DELETE FROM records WHERE row IN (SELECT row FROM dead)")
            state = _bury(connection, gone)
        self._compact(state)
        return gone

    def read(self, ids: Sequence[str]) -> Batch:
        with self._snapshot() as (connection, _, vectors):
            found: dict[str, tuple[Any, ...]] = {}
            columns = "id, row, document, metadata, digest"
            for some in _chunks(ids):
                for row in connection.execute(
                    f"SELECT {columns} FROM records WHERE id IN ({_marks(some)})",  # noqa: S608  # only question marks
                    some,
                ):
                    found[row[0]] = row
            return _batch(vectors, [found[one] for one in ids if one in found])

    def digests(self, ids: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        with self._database.reading() as connection:
            for some in _chunks(ids):
                found.update(
                    connection.execute(
                        f"SELECT id, digest FROM records WHERE digest IS NOT NULL AND id IN ({_marks(some)})",  # noqa: S608  # only question marks
                        some,
                    )
                )
        return found

    def inventory(self) -> Iterator[list[tuple[str, bytes | None]]]:
        # Each part is read by itself: a transaction kept open between them would keep the log growing. By id,
        # because a record that is replaced gets a new row, and would be met once more.
        last = ""
        while True:
            with self._database.reading() as connection:
                part: list[tuple[str, bytes | None]] = connection.execute(
                    "SELECT id, digest FROM records WHERE id > ? ORDER BY id LIMIT ?", (last, _PART)
                ).fetchall()
            if part:
                yield part
            if len(part) < _PART:
                return
            last = part[-1][0]

    def scan(self, where: Filter | None, *, vectors: bool) -> Iterator[Batch]:
        width = 4 * self._manifest.stored_dim if vectors else 0
        last: str | None = ""
        while last is not None:
            with self._snapshot() as (connection, _, mapped):
                part, more = _following(connection, last, where, width)
                batch = _batch(mapped, part, full=vectors)
            if part:
                yield batch
            last = part[-1][0] if more else None

    def sample(self, n: int, *, seed: int) -> Batch:
        with self._snapshot() as (connection, _, vectors):
            # by id: the order of the rows tells how records came and went, not what is there
            rows = column(connection.execute("SELECT row FROM records ORDER BY id"))
            chosen = np.random.default_rng(seed).choice(len(rows), size=min(n, len(rows)), replace=False)
            picked = json.dumps(rows[np.sort(chosen)].tolist())
            found = connection.execute(
                "SELECT id, row, document, metadata, digest FROM records "
                "WHERE row IN (SELECT value FROM json_each(?)) ORDER BY id",
                (picked,),
            ).fetchall()
            return _batch(vectors, found)

    def count(self, where: Filter | None = None) -> int:
        with self._database.reading() as connection:
            if where is None:
                state = _state(connection)
                return state.rows - state.dead
            chosen = condition(where)
            chosen.install(connection)
            counted = connection.execute(
                f"SELECT count(*) FROM records WHERE {chosen.sql}",  # noqa: S608  # operands are bound
                chosen.values,
            )
            return int(counted.fetchone()[0])

    def search(
        self, queries: Floats, short: Floats | None, *, k: int, where: Filter | None, exact: bool
    ) -> list[list[Hit]]:
        with self._snapshot() as (connection, state, vectors):
            positions = self._choices.positions(connection, state, vectors, where)
            size = state.rows if positions is None else len(positions)
            if not size:
                return [[] for _ in queries]
            found = nearest(
                vectors,
                queries,
                metric=self._manifest.space.metric,
                k=min(k, size),
                positions=positions,
            )
            return _hits(connection, [(vectors.rows[at], scores) for at, scores in found], k)

    def build_index(self, progress: Progress | None) -> None:
        # every search is an exact scan; what an older program stored is still to be put into bytes for it
        with self._snapshot() as (_, state, vectors):
            if not self._files.coding or not state.rows or vectors.codes is not None:
                return
        with suppress(Forbidden), self._database.writing() as connection:
            state = _state(connection)
            self._files.sweep(state.generation)
            self._files.code(self._files.map(state.generation, state.rows, coded=0))
            _save(connection, replace(state, coded=state.rows))
            self._mapped = None  # it may have been mapped while a file was missing

    def index_state(self) -> IndexState:
        self.check()
        return IndexState("none")

    def searched(self, layout: Layout) -> FlatTable:
        same = copy.copy(self)
        same._manifest = replace(self._manifest, layout=layout)
        return same

    def keep(self, manifest: Manifest) -> None:
        text, _ = manifest.dump()  # the basis stays as it is
        with self._database.writing() as connection:
            if manifest.generation != self._manifest.generation:
                raise LayoutChanged(
                    f"expected what generation {self._manifest.generation} of the collection in {self.place} "
                    f"says of itself, got it of generation {manifest.generation}; open it again"
                )
            connection.execute("UPDATE meta SET value = ? WHERE key = 'manifest'", (text,))
        self._manifest = manifest

    def paused(self) -> AbstractContextManager[None]:
        return self._database.paused()

    def sizes(self) -> Sizes:
        total = 0
        with self._database.reading():
            for entry in os.scandir(self._folder):
                with suppress(FileNotFoundError):  # compaction and checkpoints delete files
                    total += entry.stat().st_size if entry.is_file() else 0
        return Sizes(table=total, index=0)

    def close(self) -> None:
        self._database.close()
        self._mapped = None
        self._choices.clear()
        if self.claim is not None:
            self.claim.release()

    @contextmanager
    def _snapshot(self) -> Iterator[tuple[sqlite3.Connection, _State, Vectors]]:
        """Records and vectors as they are at one moment."""
        for last in (False, False, False, False, True):
            with self._database.reading() as connection:
                state = _state(connection)
                vectors = self._map(state, last=last)
                if vectors is not None:
                    yield connection, state, vectors
                    return
        raise AssertionError("unreachable: the last attempt raises")

    def _map(self, state: _State, *, last: bool) -> Vectors | None:
        """The vectors of a snapshot; None, except on the `last` try, where compaction deleted the file."""
        mapped = self._mapped
        if (
            mapped is None
            or mapped.generation != state.generation
            or len(mapped.matrix) < state.rows
            or (mapped.codes is None and mapped.coded < state.rows <= state.coded)
        ):
            try:
                mapped = self._files.map(state.generation, state.rows, coded=state.coded)
            except FileNotFoundError as error:
                if not last:
                    return None
                raise ManifestError(
                    f"expected the file {Path(error.filename).name} in {self._folder}, found none; "
                    f"restore the folder from a backup or drop the collection"
                ) from error
            self._mapped = mapped
        return mapped.head(state.rows)

    def _compact(self, state: _State) -> None:
        if state.dead <= max(_DEAD, _DEAD_SHARE * state.rows):
            return
        try:
            with self._database.writing() as connection:
                state = _state(connection)
                if state.dead <= max(_DEAD, _DEAD_SHARE * state.rows):
                    return  # another writer was quicker
                old = self._files.map(state.generation, state.rows, coded=0)
                new = self._files.copy(old, self._choices.living(connection, state, old))
                connection.execute("DELETE FROM dead")
                rows = state.rows - state.dead
                coded = rows if self._files.coding else 0
                _save(connection, replace(state, generation=new, rows=rows, dead=0, coded=coded))
        except StoreError:
            return  # what the caller asked for is done; a later writer finds room, and sweeps what is left
        self._files.discard(old.generation)


def _manifest(meta: dict[str, Any], folder: Path) -> Manifest:
    if missing := {"format", "manifest", "basis"} - meta.keys():
        raise ManifestError(f"{folder / RECORDS} lacks {sorted(missing)}: it was not made by vecbridge")
    if int(meta["format"]) > FORMAT:
        raise ManifestError(
            f"{folder} has file format {int(meta['format'])}, this vecbridge reads up to {FORMAT}; "
            f"upgrade vecbridge"
        )
    return Manifest.load(meta["manifest"], meta["basis"])


def _state(connection: sqlite3.Connection) -> _State:
    row = connection.execute(
        "SELECT generation, rows, next_row, dead, version, "
        "(SELECT value FROM meta WHERE key = 'coded') FROM state"
    ).fetchone()
    if row is None:
        raise ManifestError(f"{RECORDS} has an empty table 'state': it is damaged; restore it from a backup")
    *state, coded = row
    # older programs write neither codes nor this entry, and may have gone on to another generation
    generation, _, count = (coded or "").partition(" ")
    state.append(int(count) if generation == state[0] else 0)
    return _State(*state)


def _save(connection: sqlite3.Connection, state: _State) -> None:
    connection.execute(
        "UPDATE state SET generation = ?, rows = ?, next_row = ?, dead = ?, version = ?",
        (state.generation, state.rows, state.next_row, state.dead, state.version + 1),
    )
    connection.execute(
        "INSERT OR REPLACE INTO meta VALUES ('coded', ?)", (f"{state.generation} {state.coded}",)
    )


def _remove(connection: sqlite3.Connection, ids: Sequence[str]) -> int:
    """Take these records out, and note their positions as dead; returns how many there were."""
    gone = 0
    for some in _chunks(ids):
        marks = _marks(some)
        found = connection.execute(
            f"INSERT INTO dead SELECT row FROM records WHERE id IN ({marks})",  # noqa: S608  # only question marks
            some,
        ).rowcount
        gone += found
        if found:
            connection.execute(f"DELETE FROM records WHERE id IN ({marks})", some)  # noqa: S608  # only question marks
    return gone


def _bury(connection: sqlite3.Connection, gone: int) -> _State:
    state = _state(connection)
    if gone:
        state = replace(state, dead=state.dead + gone)
        _save(connection, state)
    return state


def _hits(connection: sqlite3.Connection, found: Sequence[tuple[Array, Array]], k: int) -> list[list[Hit]]:
    """The k best of each query as hits, nearest first, equal scores by id; `found`: rows and their scores."""
    ids = dict(_about(connection, "row, id", {row for rows, _ in found for row in rows.tolist()}))
    best = [
        sorted((-score, ids[row], row) for row, score in zip(rows.tolist(), scores.tolist(), strict=True))[:k]
        for rows, scores in found
    ]
    payload = {
        row: (document, metadata)
        for row, document, metadata in _about(
            connection, "row, document, metadata", {row for some in best for _, _, row in some}
        )
    }
    # each hit has metadata of its own, to be changed as anybody likes; 0.0 -: never "-0.0"
    return [
        [Hit(name, 0.0 - score, payload[row][0], json.loads(payload[row][1])) for score, name, row in some]
        for some in best
    ]


def _about(connection: sqlite3.Connection, columns: str, rows: set[int]) -> Iterator[tuple[Any, ...]]:
    return connection.execute(
        f"SELECT {columns} FROM records WHERE row IN (SELECT value FROM json_each(?))",  # noqa: S608  # names of columns
        (json.dumps(list(rows)),),
    )


def _following(
    connection: sqlite3.Connection, last: str, where: Filter | None, width: int
) -> tuple[list[tuple[Any, ...]], bool]:
    """Rows for `_batch` after the id `last`, a part of them, and whether there may be more.

    `width`: bytes of the vector that comes with each.
    """
    chosen = Condition() if where is None else condition(where)
    chosen.install(connection)
    found, size = [], 0
    # closed before the transaction ends, which it would keep open
    with closing(
        connection.execute(
            f"SELECT id, row, document, metadata, digest FROM records "  # noqa: S608  # operands are bound
            f"WHERE id > ? AND {chosen.sql} ORDER BY id LIMIT ?",
            (last, *chosen.values, _PART),
        )
    ) as rows:
        for row in rows:
            found.append(row)
            size += width + len(row[2] or "") + len(row[3])
            if size >= PART_BYTES:
                return found, True
    return found, len(found) == _PART


def _batch(vectors: Vectors, found: Sequence[tuple[Any, ...]], *, full: bool = True) -> Batch:
    """Records from rows of (id, row, document, metadata, digest), in their order; vectors where `full`."""
    matrix = np.empty((len(found), 0), np.float32)
    if full:
        rows = np.array([row for _, row, _, _, _ in found], dtype=np.int64)
        matrix = vectors.matrix[np.searchsorted(vectors.rows, rows)].astype(np.float32, copy=False)
    return Batch(
        ids=[name for name, _, _, _, _ in found],
        vectors=matrix,
        documents=[document for _, _, document, _, _ in found],
        metadata=[json.loads(metadata) for _, _, _, metadata, _ in found],
        digests=[digest for _, _, _, _, digest in found],
    )


def _chunks(ids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _IDS):
        yield list(ids[start : start + _IDS])


def _marks(some: Sequence[str]) -> str:
    return ", ".join("?" * len(some))
