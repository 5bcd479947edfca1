"""Another layout for a collection: built beside the old one, then taken over in one step."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from . import conform
from .backends import Backend, Table
from .comparing import conformed, differing, fingerprint, reduced
from .errors import InputError, StoreError, VecbridgeError
from .manifest import Manifest
from .types import Progress

if TYPE_CHECKING:
    from .types import Floats

_log = logging.getLogger("vecbridge")

_COMPARED = 200  # records that are compared in full before the switch


def anew(old: Manifest, wanted: Manifest, *, sample: Floats | None, seed: int = 0) -> Manifest:
    """The manifest of the next generation: `wanted`, with a PCA fitted on `sample`, stored vectors.

    Raises InputError where it needs what is not stored any more.
    """
    layout = wanted.layout
    if old.whole:
        reduction, inner = conform.fitted(wanted.space, layout, sample, seed=seed)
    elif (layout.shorten, layout.element) == (old.layout.shorten, old.layout.element):
        # what was cut at the door stays cut; an index on it can be fitted anew
        short = replace(wanted.space, dim=old.stored_dim)
        inner = conform.fitted(short, replace(layout, shorten=None), sample, seed=seed)[1]
        reduction = old.reduction
    else:
        raise InputError(
            f"expected a layout that stores the vectors of {old.name} as they are stored now "
            f"({old.layout.element}, {old.stored_dim:,} dimensions): the rest of them is gone"
        )
    return replace(
        wanted,
        reduction=reduction,
        index_reduction=inner,
        tuned=None,
        generation=old.generation + 1,
    )


def replan(backend: Backend, table: Table, manifest: Manifest, *, progress: Progress | None = None) -> Table:
    """The collection of `table` in the layout of `manifest`, whose generation is one more than its own.

    Searches go on in the old one until the new one is filled, indexed and compared; then one step makes it
    the collection. Writers wait meanwhile where the store can make them; where it cannot, a collection that
    was written to is not switched. Whatever fails, Ctrl-C included, leaves the collection as it was; what a
    killed process left is cleared away by the next attempt, and by dropping the collection.

    `progress`: stage "copying" in records, then what building the index tells. `table` stays open, for its
    owner to close; after the switch it raises LayoutChanged.

    Raises InputError where the stored vectors are shortened in another way than `manifest` wants, VectorError
    where half precision cannot hold one of them, Busy, LayoutChanged, IndexFailure, StoreError.
    """
    _check(table.manifest, manifest)
    with table.paused():
        successor = backend.successor(manifest)
        try:
            _copy(table, successor, progress)
            successor.build_index(progress)
            _compare(table, successor)
            backend.switch(successor)
        except BaseException:
            _clear(backend, successor)
            raise
    successor.close()
    return backend.open(manifest.name)


def _check(old: Manifest, new: Manifest) -> None:
    # prefixes that have proved to serve may have been added to the sizes that were known
    if (old.name, replace(old.space, nested=new.space.nested)) != (new.name, new.space):
        raise InputError(
            f"expected a manifest for collection {old.name!r} and its space, got one for {new.name!r} with "
            f"{new.space}"
        )
    if old.reduction is None:
        return
    if reduced(old) != reduced(new):
        raise InputError(
            f"collection {old.name!r} stores its vectors shortened from {old.space.dim} to {old.stored_dim} "
            f"dimensions, and what was cut off is gone; keep that reduction, or load the vectors anew"
        )


def _copy(table: Table, successor: Table, progress: Progress | None) -> None:
    total = table.count()
    done = 0
    if progress is not None:
        progress("copying", done, total)
    for batch in table.scan(None, vectors=True):
        successor.write(conformed(batch, table.manifest, successor.manifest))
        done += len(batch)
        if progress is not None:
            progress("copying", done, max(total, done))


def _compare(table: Table, successor: Table) -> None:
    """Raise StoreError unless both hold the same records: all ids and digests, and some of them in full."""
    there, here = fingerprint(table), fingerprint(successor)
    if there != here:
        raise StoreError(
            f"the new layout of collection {table.manifest.name!r} holds {here.records:,} records, the old "
            f"one now {there.records:,}, and they are not the same: it was written to while it was copied; "
            f"nothing was changed, try again while nobody writes"
        )
    sample = table.sample(_COMPARED, seed=0)
    expected = conformed(sample, table.manifest, successor.manifest)
    if differing(expected, successor.read(sample.ids), successor.manifest):
        raise StoreError(
            f"of {len(sample):,} records of collection {table.manifest.name!r} that were compared, some "
            f"differ from their copy: they were written while they were copied; nothing was changed, try "
            f"again while nobody writes"
        )


def _clear(backend: Backend, successor: Table) -> None:
    """Remove what was begun, as far as that is possible; the error that stopped it is the one to raise."""
    try:
        backend.discard(successor)
        successor.close()
    except VecbridgeError as error:
        _log.warning(
            "a half-finished copy of collection %s is left over, and goes with the next attempt: %s",
            successor.manifest.name,
            error,
        )
