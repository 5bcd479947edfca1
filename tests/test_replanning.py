"""Another layout for a collection: what is copied, compared, refused and cleared away. On PostgreSQL."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vecbridge import replanning
from vecbridge.backends.postgres import Postgres, Table, connect
from vecbridge.comparing import fingerprint
from vecbridge.errors import InputError, LayoutChanged, StoreError, VectorError
from vecbridge.manifest import Manifest
from vecbridge.reduction import Reduction, fit
from vecbridge.replanning import replan
from vecbridge.types import Batch, Index, Layout, Shorten, Space

if TYPE_CHECKING:
    from vecbridge.types import Floats

DIM, ROWS = 16, 300
PCA = Shorten("pca", 8)


@pytest.fixture
def backend(pg: str) -> Iterator[Postgres]:
    backend = connect(pg)
    yield backend
    backend.close()


def vectors() -> Floats:
    return np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32)


def manifest(layout: Layout | None = None, *, sample: Floats | None = None) -> Manifest:
    layout = layout or Layout()
    sample = vectors() if sample is None else sample

    def fitted(shorten: Shorten | None) -> Reduction | None:
        return None if shorten is None else fit(shorten, source=DIM, metric="cosine", sample=sample)

    inner = layout.index.shorten if layout.index else None
    return Manifest("papers", Space(DIM), layout, ROWS, fitted(layout.shorten), fitted(inner))


def records(n: int = ROWS, *, document: str = "text") -> Batch:
    ids = [f"{row:04}" for row in range(n)]
    return Batch(
        ids, vectors()[:n], [f"{document} {id}" for id in ids], [{"id": id} for id in ids], [b"d"] * n
    )


def filled(backend: Postgres) -> Table:
    table = backend.create(manifest())
    table.write(records())
    return table


def following(table: Table, new: Manifest) -> Manifest:
    return replace(new, generation=table.manifest.generation + 1)


def copied(backend: Postgres, table: Table) -> Table:
    """A successor that holds what the collection holds."""
    successor = backend.successor(following(table, manifest()))
    successor.write(records())
    return successor


def test_vectors_are_shortened_as_the_new_manifest_says(backend: Postgres) -> None:
    table = filled(backend)
    new = following(table, manifest(Layout(shorten=PCA)))
    anew = replan(backend, table, new)
    assert new.reduction is not None
    np.testing.assert_array_equal(anew.read(records().ids).vectors, new.reduction.apply(vectors()))


def test_an_index_on_a_projection_finds_what_it_is_asked(backend: Postgres) -> None:
    table = filled(backend)
    layout = Layout(index=Index("hnsw", "float16", PCA, ef_search=200), oversample=20)
    anew = replan(backend, table, following(table, manifest(layout)))
    assert anew.index_state().used
    basis = anew.manifest.index_reduction
    assert basis is not None
    hits = anew.search(vectors(), basis.apply(vectors()), k=1, where=None, exact=False)
    assert [hit[0].id for hit in hits] == list(records().ids)


def test_what_was_shortened_cannot_be_brought_back(backend: Postgres) -> None:
    table = backend.create(manifest(Layout(shorten=PCA)))
    assert table.manifest.reduction is not None
    table.write(replace(records(), vectors=table.manifest.reduction.apply(vectors())))
    other = manifest(Layout(shorten=PCA), sample=np.ascontiguousarray(vectors()[:, ::-1]))
    for new in (manifest(), other, manifest(Layout(shorten=Shorten("pca", 4)))):
        with pytest.raises(
            InputError, match="shortened from 16 to 8 dimensions, and what was cut off is gone"
        ):
            replan(backend, table, following(table, new))
    with pytest.raises(InputError, match="expected a manifest for collection 'papers'"):
        replan(backend, table, following(table, replace(table.manifest, space=Space(DIM, "l2"))))
    same = replan(
        backend, table, following(table, replace(table.manifest, layout=Layout(shorten=PCA, inline=True)))
    )
    assert same.manifest.layout.inline
    assert same.read(records().ids).vectors.tobytes() == table.manifest.reduction.apply(vectors()).tobytes()


def test_what_half_precision_cannot_hold_stops_a_replan(backend: Postgres) -> None:
    table = filled(backend)
    table.write(Batch(["large"], vectors()[:1] * np.float32(1e5), [None], [{}], [None]))
    with pytest.raises(VectorError, match="stored vectors"):
        replan(backend, table, following(table, manifest(Layout(element="float16"))))
    assert backend.open("papers").manifest.generation == 0
    assert backend.open("papers").count() == ROWS + 1
    with pytest.raises(LayoutChanged, match="papers"):
        backend.switch(Table(table.pool, table.place, following(table, manifest()), iterative=True, number=1))


def test_progress_counts_every_record_once(backend: Postgres) -> None:
    table = filled(backend)
    told: list[tuple[str, int, int | None]] = []
    layout = Layout(index=Index("hnsw"))
    replan(backend, table, following(table, manifest(layout)), progress=lambda *step: told.append(step))
    copying = [(done, total) for stage, done, total in told if stage == "copying"]
    assert copying[0] == (0, ROWS)
    assert copying[-1] == (ROWS, ROWS)
    assert copying == sorted(set(copying))
    assert {stage for stage, _, _ in told[len(copying) :]} == {"index"}


@pytest.mark.parametrize("tamper", ["missing", "extra", "digest", "document", "metadata", "vector"])
def test_a_copy_that_differs_is_not_switched_to(backend: Postgres, tamper: str) -> None:
    table = filled(backend)
    successor = copied(backend, table)
    replanning._compare(table, successor)
    one = records(1)
    match tamper:
        case "missing":
            successor.delete(["0007"])
        case "extra":
            successor.write(replace(one, ids=["new"]))
        case "digest":
            successor.write(replace(one, digests=[None]))
        case "document":
            successor.write(records(document="other"))
        case "metadata":
            successor.write(replace(records(), metadata=[{}] * ROWS))
        case "vector":
            successor.write(replace(records(), vectors=vectors() + np.float32(1e-6)))
    with pytest.raises(StoreError, match="nothing was changed, try again while nobody writes"):
        replanning._compare(table, successor)


def test_a_mark_that_moves_between_id_and_digest_is_seen(backend: Postgres) -> None:
    table = filled(backend)
    one, other = backend.successor(following(table, manifest())), filled_as(backend, "other")
    one.write(replace(records(2), ids=["a", "b"], digests=[b"b", b"c"]))
    other.write(replace(records(2), ids=["a", "b"], digests=[b"c", b"b"]))
    assert fingerprint(one) != fingerprint(other)
    other.write(replace(records(2), ids=["b", "a"], digests=[b"c", b"b"]))
    assert fingerprint(one) == fingerprint(other)


def filled_as(backend: Postgres, name: str) -> Table:
    return backend.create(replace(manifest(), name=name))


def test_the_first_error_is_the_one_that_is_told(
    backend: Postgres, pg: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = filled(backend)

    def end(stage: str, done: int, total: int | None) -> None:
        if done:
            backend.close()
            raise KeyboardInterrupt("enough")

    with (
        caplog.at_level(logging.WARNING, logger="vecbridge"),
        pytest.raises(KeyboardInterrupt, match="enough"),
    ):
        replan(backend, table, following(table, manifest()), progress=end)
    assert (
        "a half-finished copy of collection papers is left over, and goes with the next attempt"
        in caplog.text
    )
    again = connect(pg)
    try:
        opened = again.open("papers")
        assert opened.count() == ROWS
        assert replan(again, opened, following(opened, manifest())).count() == ROWS
    finally:
        again.close()
