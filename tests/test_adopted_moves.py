"""What others' tables hold, copied and exported as any collection; and what is refused with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import Fresh
from test_adopt import TABLES, execute, fill_langchain, load, numbers, rows_of, snapshot

import vecbridge
from vecbridge import backends
from vecbridge.errors import Forbidden, InputError, VectorError


def told(collection: vecbridge.Collection) -> dict[str, tuple[bytes, str | None, str]]:
    """Vectors to the bit, documents and metadata by id."""
    return {
        id: (
            batch.vectors[row].tobytes(),
            batch.documents[row],
            json.dumps(batch.metadata[row], sort_keys=True),
        )
        for batch in collection.scan()
        for row, id in enumerate(batch.ids)
    }


def adopted(store: vecbridge.Store, kind: str) -> vecbridge.Collection:
    table, options, *_ = TABLES[kind]
    return store.adopt(store.adoption(table, name="theirs", **options))


@pytest.mark.parametrize("kind", TABLES)
def test_an_adopted_table_is_copied_and_exported_as_it_is(pg: str, kind: str, tmp_path: Path) -> None:
    load(pg, kind)
    before = snapshot(pg, TABLES[kind][0])
    ids, vectors, documents = rows_of(pg, kind)
    flat, edge = f"flat:{tmp_path / 'flat'}", f"qdrant:{tmp_path / 'edge'}"
    with vecbridge.connect(pg) as store, vecbridge.connect(flat) as other, vecbridge.connect(edge) as third:
        source = adopted(store, kind)
        whole = told(source)
        assert {id: one[:2] for id, one in whole.items()} == {
            id: (vectors[row].tobytes(), documents[row]) for row, id in enumerate(ids)
        }
        for to in (store, other, third):
            done = vecbridge.copy(source, to, name="ours")
            assert (done.records, done.written, done.compared) == (len(ids), len(ids), len(ids))
            copy = to.open("ours")
            if source.layout.element == "float32" or to is not third:
                assert told(copy) == whole
            assert (copy.manifest.adopted, copy.manifest.copy_of) == (None, None)
            assert copy.space.metric == source.space.metric
            assert vecbridge.copy(source, to, name="ours").written == 0
        assert vecbridge.export_parquet(source, tmp_path / "theirs.parquet").records == len(ids)
        assert vecbridge.import_parquet(tmp_path / "theirs.parquet", other).records == len(ids)
        imported = other.open("theirs")
        assert told(imported) == whole
        assert imported.manifest.adopted is None
        # the copy is written to as any other
        assert other.open("ours").delete([ids[0]]) == 1
        store.drop("ours")
        store.drop("theirs")
    execute(pg, 'DROP TABLE "vecbridge$collections"')
    assert snapshot(pg, TABLES[kind][0]) == before


def test_the_file_says_nothing_of_where_the_records_lay(pg: str, tmp_path: Path) -> None:
    from vecbridge.parquet import File

    load(pg, "langchain v1")
    with vecbridge.connect(pg) as store:
        vecbridge.export_parquet(adopted(store, "langchain v1"), tmp_path / "theirs.parquet")
    with File(tmp_path / "theirs.parquet") as file:
        assert file.header.manifest.adopted is None


@pytest.fixture
def plain(pg18: str, fresh: Fresh) -> str:
    """URL of an empty database with pgvector."""
    return fresh(pg18, extension=True)


@pytest.fixture
def other_flat(tmp_path: Path) -> Iterator[vecbridge.Store]:
    with vecbridge.connect(f"flat:{tmp_path / 'other'}") as store:
        yield store


@pytest.mark.parametrize("type", ["bigint", "uuid"])
def test_ids_of_another_type_go_on_where_a_copy_was_ended(
    plain: str, type: str, other_flat: vecbridge.Store
) -> None:
    write = "n" if type == "bigint" else "md5(n::text)::uuid"
    execute(
        plain,
        f"CREATE TABLE numbered (id {type} PRIMARY KEY, v vector(3), words text)",
        f"INSERT INTO numbered SELECT {write}, ARRAY[n, 1, -n]::real[]::vector, n::text "
        "FROM generate_series(1, 4000) AS n",
    )

    def end(stage: str, done: int, total: int | None) -> None:
        if stage == "copying" and done:
            raise KeyboardInterrupt

    with vecbridge.connect(plain) as store:
        source = store.adopt(store.adoption("numbered", metric="l2", document="words"))
        with pytest.raises(KeyboardInterrupt):
            vecbridge.copy(source, other_flat, progress=end)
        there = other_flat.open("numbered").count()
        assert 0 < there <= 4000
        # its owner goes on: what has changed and what is gone is seen by the next run
        execute(plain, "UPDATE numbered SET v = '[0, 0, 7]' WHERE words = '7'")
        execute(plain, "DELETE FROM numbered WHERE words IN ('1', '2')")
        done = vecbridge.copy(source, other_flat)
        assert (done.records, done.neighbours) == (3998, 10)
        assert done.written >= 3998 - there
        assert told(other_flat.open("numbered")) == told(source)


def test_a_vector_that_no_search_could_compare_ends_the_copy_with_a_sentence(
    plain: str, other_flat: vecbridge.Store
) -> None:
    execute(
        plain,
        "CREATE TABLE zeros (id text PRIMARY KEY, v vector(3))",
        "INSERT INTO zeros VALUES ('a', '[1, 2, 3]'), ('b', '[0, 0, 0]')",
    )
    with vecbridge.connect(plain) as store:
        source = store.adopt(store.adoption("zeros", metric="cosine"))
        with pytest.raises(VectorError, match=r"the stored vectors of postgresql:.* zeros"):
            vecbridge.copy(source, other_flat)
        assert other_flat.open("zeros").manifest.copy_of is not None


def test_another_model_is_for_a_copy_of_it(pg: str) -> None:
    load(pg, "langchain v1")
    fill_langchain(pg, numbers(30, 16))
    with vecbridge.connect(pg) as store:
        source = adopted(store, "langchain v1")
        whole = told(source)
        with pytest.raises(
            InputError, match=r"which is the table public\.langchain_pg_embedding.* copy it \("
        ):
            vecbridge.reembed(pg, "theirs", embedder="hashing:24", cache=False, evaluate=False)
        assert store.collections() == ["theirs"]
        vecbridge.copy(source, store, name="ours")
        done = vecbridge.reembed(pg, "ours", embedder="hashing:24", cache=False, evaluate=False)
        assert (done.records, done.embedded, done.dim) == (30, 30, 24)
        assert told(store.open("theirs")) == told(store.open("ours-beside")) == whole


def test_the_name_of_an_adopted_table_is_not_exchanged(pg: str) -> None:
    load(pg, "langchain v1")
    with vecbridge.connect(pg) as store:
        source = adopted(store, "langchain v1")
        whole = told(source)
        mine = store.create("mine", dim=3)
        mine.upsert(["a"], [[1, 2, 3]])
        with closing(backends.connect(pg)) as backend:
            for names in (("theirs", "mine"), ("mine", "theirs")):
                with pytest.raises(InputError, match=r"got 'theirs', which is the table public\.langchain"):
                    backend.exchange(*names)
            with (
                pytest.raises(Forbidden, match="vecbridge only reads it"),
                closing(backend.open("theirs")) as table,
                table.paused(),
            ):
                pass
        assert told(store.open("theirs")) == whole
        np.testing.assert_array_equal(store.open("mine").get(["a"]).vectors, [[1, 2, 3]])
