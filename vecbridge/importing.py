"""A collection out of a Parquet file that `export_parquet` wrote, in any store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from . import planner, receiving, unfinished
from .backends import Table
from .collection import Collection, table_of
from .comparing import Fingerprint, chosen, conformed, differing, fingerprint
from .errors import StoreError
from .manifest import Manifest, Tuned, check_name
from .planner import Plan, Wishes
from .store import Store, connect
from .types import Batch, IndexState, Progress

if TYPE_CHECKING:
    from .parquet import File
    from .types import Floats

# vectors to plan on, beside the rows that planning looks at
_SAMPLE_BYTES = 128 * 2**20
# records that are compared in full at the end, in rows and bytes
_COMPARED = 200
_COMPARED_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did.

    `records` of the file `source` are in `collection` at `to` now. `written` of them by this run; what an
    interrupted one had written before was compared. `compared`: records that were read back and were as the
    file has them, to the bit. `tuned`: how the search width was found, None where no recall was asked for.
    `notes`: what should be known of it, in sentences.
    """

    source: str
    to: str
    collection: str
    records: int
    written: int
    compared: int
    index: IndexState
    tuned: Tuned | None
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)


def import_parquet(
    path: str | Path,
    to: Store | str,
    *,
    name: str | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    disk: int | str | None = None,
    latency: float | None = None,
    nodes: int | None = None,
    recall: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], object] | None = None,
) -> Imported:
    """Make a collection of what `export_parquet` wrote: planned for its store, filled, compared, indexed.

    `name`: of the collection; that of the exported one, if not given. Model, metric, fields to filter by and
    how texts are cut are those of the file, so that an ingest that filled the exported collection goes on
    here. The layout is planned for `rows` records (those in the file, if not given); `memory`, `disk`,
    `latency`, `nodes` and `recall` as for `Store.create`; without a recall, that of the file. Vectors that
    were shortened at the door or halved stay as they are, with what shortens queries.

    The whole file is read and checked before anything is made. Whatever ends it, the same call goes on where
    it was: it compares what is there, and writes what is missing. Until all is compared, the collection's
    manifest says which file it is an unfinished copy of. At the end, ids and digests of all records are
    compared, and 200 records in full. Once there, the same call compares and writes nothing.

    `seed` chooses what is planned on and compared. `progress`: the stages "checking" and "importing", and
    those of building the index. `on_plan` is given the plan of a new collection before records are written.

    Raises SourceError for a file that is damaged, of a newer format or not of vecbridge's, and PlanError:
    nothing is made then. VectorError where the new layout cannot hold a vector. CollectionExists where `name`
    is something else. MissingExtra without pyarrow. StoreError where what was stored is not what the file
    holds.
    """
    from .parquet import File

    begun, wanted = monotonic(), planner.share(recall)
    with ExitStack() as held:
        file = held.enter_context(File(path))
        home = held.enter_context(connect(to)) if isinstance(to, str) else to
        old = file.header.manifest
        name = check_name(old.name if name is None else name)
        origin = unfinished.of_file(file.path.name, file.header.id)
        target = receiving.there(home, name)
        fresh = target is None
        if target is not None:
            held.callback(target.close)
            if not _ours(target, file) and (target.manifest.copy_of or target.count() != file.rows):
                raise receiving.taken(target, origin)
        survey = _survey(file, seed, progress)
        if target is not None and not _ours(target, file):
            receiving.check_settled(old, lambda: survey.fingerprint, target, origin)
            compared = _compare(table_of(target), survey, old)
            if compared is None:
                raise receiving.taken(target, origin)
            return _imported(file, target, 0, compared, begun, "it was there already: nothing was written")
        if target is None:
            wishes: Wishes = {
                "rows": file.rows if rows is None else rows,
                "memory": memory,
                "disk": disk,
                "latency": latency,
                "nodes": nodes,
                "recall": old.recall if wanted is None else wanted,
                "seed": seed,
                "progress": progress,
            }
            target = receiving.made(
                old,
                lambda: _sample(file, seed),
                home,
                name,
                origin,
                count=file.rows,
                wishes=wishes,
                on_plan=on_plan,
            )
            held.callback(target.close)
        receiving.aim(target, wanted)
        table = table_of(target)
        written = _fill(file, table, fresh=fresh, progress=progress)
        if fingerprint(table) != survey.fingerprint:
            raise StoreError(
                f"{name!r} in {target.url} now holds {table.count():,} records, {file.path} {file.rows:,}, "
                f"and they are not the same: something else writes to it, or the file has an id twice; drop "
                f"the collection and import again"
            )
        same = _compare(table, survey, old)
        if same is None:
            raise StoreError(
                f"of the records of {name!r} in {target.url} that were compared, some are not as {file.path} "
                f"has them: something else writes to it; import again, which goes on from here"
            )
        receiving.finish(target, progress)
        return _imported(file, target, written, same, begun)


def _ours(target: Collection, file: File) -> bool:
    """Whether it is what an interrupted import of the same file left."""
    return unfinished.same_file(target.manifest.copy_of, file.header.id)


def _fill(file: File, table: Table, *, fresh: bool, progress: Progress | None) -> int:
    """Write whatever is missing or differs; how many records that were."""
    written = done = 0
    for batch in file.batches():
        part = conformed(batch, file.header.manifest, table.manifest)
        if not fresh:
            part = chosen(part, differing(part, table.read(part.ids), table.manifest))
        if len(part):
            table.write(part)
        written, done = written + len(part), done + len(batch)
        if progress is not None:
            progress("importing", done, file.rows)
    return written


def _compare(table: Table, survey: _Survey, old: Manifest) -> int | None:
    """How many records were compared in full; None where one of them is not as it was in the file."""
    for probe in survey.probes:
        if differing(conformed(probe, old, table.manifest), table.read(probe.ids), table.manifest):
            return None
    return sum(map(len, survey.probes))


def _imported(
    file: File, target: Collection, written: int, compared: int, begun: float, *notes: str
) -> Imported:
    header, new = file.header, target.manifest
    said = [*notes, *receiving.notes(header.manifest, new)]
    if header.where is not None:
        said.append(f"the file has those records of {header.manifest.name} that matched {header.where}")
    return Imported(
        source=str(file.path),
        to=target.url,
        collection=target.name,
        records=file.rows,
        written=written,
        compared=compared,
        index=target.index_state(),
        tuned=new.tuned,
        seconds=monotonic() - begun,
        notes=tuple(said),
    )


# --- the first pass ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Survey:
    """What a first pass through the file has found; `probes` are records to compare in full at the end."""

    fingerprint: Fingerprint
    probes: list[Batch]


def _survey(file: File, seed: int, progress: Progress | None) -> _Survey:
    """Read and check the whole file. Raises SourceError."""
    probed = _drawn(file.rows, _COMPARED, seed)
    probes: list[Batch] = []
    weight, total = 0, Fingerprint()
    for batch in file.batches():
        picked = chosen(batch, np.flatnonzero(probed[total.records :][: len(batch)]).tolist())
        weight += sum(len(document or "") for document in picked.documents) + picked.vectors.nbytes
        if len(picked) and weight <= _COMPARED_BYTES:
            probes.append(picked)
        total.add(zip(batch.ids, batch.digests, strict=True))
        if progress is not None:
            progress("checking", total.records, file.rows)
    return _Survey(total, probes)


def _sample(file: File, seed: int) -> Floats:
    """Vectors to plan on, float32 (n, stored dim), of all rows alike. Reads the file once more."""
    dim = file.header.manifest.stored_dim
    sampled = _drawn(file.rows, min(receiving.SAMPLE, _SAMPLE_BYTES // (4 * dim)), seed)
    vectors = np.empty((np.count_nonzero(sampled), dim), dtype=np.float32)
    row = done = 0
    for batch in file.batches():
        some = batch.vectors[sampled[row : row + len(batch)]]
        vectors[done : done + len(some)] = some
        row, done = row + len(batch), done + len(some)
    return vectors


def _drawn(total: int, wanted: int, seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of `total` rows are among `wanted` that are drawn at random, bool (total,)."""
    drawn = np.zeros(total, dtype=bool)
    drawn[np.random.default_rng(seed).choice(total, min(total, wanted), replace=False)] = True
    return drawn
