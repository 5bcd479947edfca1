"""Collections as Parquet files: what is in them, that they are whole or not there, that they come back."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import Ran, Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vecbridge
from vecbridge import cli, parquet
from vecbridge.comparing import chosen
from vecbridge.errors import (
    Busy,
    CollectionExists,
    FilterError,
    InputError,
    MissingExtra,
    SourceError,
    StoreError,
)
from vecbridge.manifest import Chunking
from vecbridge.parquet import File, Header
from vecbridge.testing import data, strategies
from vecbridge.types import Batch, Layout, Shorten

DIM, ROWS = 24, 400
GUIDE = (Path(__file__).parent.parent / "docs" / "moving.md").read_text().partition("## Parquet\n")[2]


def records(n: int = ROWS, *, seed: int = 0) -> Batch:
    """Records whose texts, values and components are at the edges of what stores hold."""
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((n, DIM)).astype(np.float32)
    vectors[0, 1:5] = [-0.0, 1e-45, -1e-38, 3e8]
    vectors[1] *= np.float32(1e-12)
    vectors[2] *= np.float32(1e12)
    texts: list[str | None] = [None, "", *data.ODD_TEXT.values()]
    values: list[dict[str, Any]] = [{}, {"": {}}, {"zero": -0.0, "many": [2**53 + 1, {"é": [None]}]}]
    values += [{name: value} for name, value in data.ODD_VALUES.items()]
    digests = [None, b"", bytes(range(32)), b"\0\xff"]
    ids = [*data.ODD_TEXT.values(), *data.names(n)][:n]
    return Batch(
        ids,
        vectors,
        [texts[row % len(texts)] for row in range(n)],
        [values[row % len(values)] for row in range(n)],
        [digests[row % len(digests)] for row in range(n)],
    )


def plain(count: int, *, dim: int = DIM) -> Batch:
    vectors = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    texts, metadata = [f"text {row}" for row in range(count)], [{"n": row} for row in range(count)]
    return Batch(data.names(count), vectors, texts, metadata, [None] * count)


def filled(store: vecbridge.Store, batch: Batch, name: str = "papers", **wishes: Any) -> vecbridge.Collection:
    made = store.create(name, **{"dim": batch.vectors.shape[1], "model": "mine", **wishes})
    made.upsert(
        batch.ids,
        batch.vectors,
        documents=batch.documents,
        metadata=batch.metadata,
        digests=batch.digests,
    )
    return made


def told(batch: Batch) -> dict[str, tuple[bytes, str | None, str, bytes | None]]:
    """Each record by its id, so that 1, 1.0 and True differ, and 0.0 and -0.0 do."""
    return {
        id: (vector.tobytes(), document, json.dumps(metadata, sort_keys=True), digest)
        for id, vector, document, metadata, digest in zip(
            batch.ids, batch.vectors, batch.documents, batch.metadata, batch.digests, strict=True
        )
    }


def content(collection: vecbridge.Collection) -> dict[str, tuple[bytes, str | None, str, bytes | None]]:
    found: dict[str, tuple[bytes, str | None, str, bytes | None]] = {}
    for batch in collection.scan():
        found |= told(batch)
    return found


@pytest.fixture
def flat(tmp_path: Path) -> Iterator[vecbridge.Store]:
    with vecbridge.connect(f"flat:{tmp_path / 'flat'}") as store:
        yield store


@pytest.fixture
def other(tmp_path: Path) -> Iterator[vecbridge.Store]:
    with vecbridge.connect(f"flat:{tmp_path / 'other'}") as store:
        yield store


@pytest.fixture
def file(flat: vecbridge.Store, tmp_path: Path) -> Path:
    """A file of 400 plain records."""
    path = tmp_path / "papers.parquet"
    vecbridge.export_parquet(filled(flat, plain(ROWS)), path)
    return path


# --- there and back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_every_store_gives_back_what_the_file_of_another_holds(
    metric: str, tmp_path: Path, pg: str, flat: vecbridge.Store, other: vecbridge.Store
) -> None:
    batch = records()
    wanted = told(batch)
    one = filled(flat, batch, metric=metric)
    vecbridge.export_parquet(one, tmp_path / "1.parquet")
    edge = f"qdrant:{tmp_path / 'edge'}"
    with vecbridge.connect(edge) as embedded, vecbridge.connect(pg) as server:
        for number, store in enumerate([embedded, other, server], 1):
            done = vecbridge.import_parquet(tmp_path / f"{number}.parquet", store)
            assert (done.records, done.written, done.compared) == (ROWS, ROWS, 200)
            made = store.open("papers")
            assert made.space == one.space
            assert made.manifest.copy_of is None
            if store is server:
                # numbers have no negative zero there
                wanted = told(replace(batch, metadata=[{**one, **_positive(one)} for one in batch.metadata]))
            assert content(made) == wanted
            vecbridge.export_parquet(made, tmp_path / f"{number + 1}.parquet")
    vecbridge.import_parquet(tmp_path / "4.parquet", other, name="last")
    assert content(other.open("last")) == wanted


def _positive(metadata: Mapping[str, Any]) -> dict[str, float]:
    return {name: 0.0 for name, value in metadata.items() if value == 0 and isinstance(value, float)}


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(strategies.metadata, min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_any_json_and_any_components_come_back(
    tmp_path_factory: pytest.TempPathFactory, metadata: list[dict[str, Any]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    bits = np.random.default_rng(seed).integers(0, 2**32, (len(metadata), 4), dtype=np.uint32)
    vectors = bits.view(np.float32)
    ordinary = np.isfinite(vectors) & (np.abs(vectors) < 1e18)
    vectors = np.where(ordinary, vectors, np.float32(1)).astype(np.float32)
    n = len(metadata)
    batch = Batch(data.names(n), vectors, [None] * n, metadata, [None] * n)
    with vecbridge.connect(f"flat:{folder / 'a'}") as store:
        one = filled(store, batch, metric="ip")
        vecbridge.export_parquet(one, folder / "a.parquet")
        vecbridge.import_parquet(folder / "a.parquet", store, name="again")
        assert content(store.open("again")) == told(batch)


def test_an_empty_collection_comes_back(flat: vecbridge.Store, tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    done = vecbridge.export_parquet(flat.create("none", dim=3, metric="ip"), path)
    assert (done.records, done.bytes) == (0, path.stat().st_size)
    again = vecbridge.import_parquet(path, flat, name="again")
    assert (again.records, again.written, again.compared) == (0, 0, 0)
    assert flat.open("again").space == flat.open("none").space


def test_the_file_remembers_what_the_collection_does(
    flat: vecbridge.Store, other: vecbridge.Store, tmp_path: Path
) -> None:
    one = filled(
        flat,
        plain(ROWS),
        metric="ip",
        nested=[8],
        filterable={"n": "number"},
        chunking=Chunking(200, 20, "cl100k_base"),
        recall=0.9,
    )
    vecbridge.export_parquet(one, tmp_path / "a.parquet")
    vecbridge.import_parquet(tmp_path / "a.parquet", other, name="again")
    old, new = one.manifest, other.open("again").manifest
    assert new == replace(old, name="again", layout=new.layout, rows=ROWS, tuned=new.tuned)
    assert new.space.nested == (8,)


@pytest.mark.parametrize("method", ["truncate", "pca"])
def test_vectors_shortened_at_the_door_come_back_with_what_shortens_queries(
    method: Any, flat: vecbridge.Store, tmp_path: Path, pg: str
) -> None:
    batch = plain(ROWS)
    layout = Layout(shorten=Shorten(method, 8))
    one = filled(flat, batch, layout=layout, sample=batch.vectors, nested=[8])
    vecbridge.export_parquet(one, tmp_path / "a.parquet")
    query = np.random.default_rng(5).standard_normal(DIM)
    with vecbridge.connect(pg) as server:
        done = vecbridge.import_parquet(tmp_path / "a.parquet", server)
        made = server.open("papers")
        assert made.layout.shorten == layout.shorten
        assert content(made) == content(one)
        assert [hit.id for hit in made.search(query, exact=True)] == [hit.id for hit in one.search(query)]
    assert any("shortened from 24 to 8 dimensions" in note for note in done.notes)
    vecbridge.import_parquet(tmp_path / "a.parquet", flat, name="again")
    assert flat.open("again").search(query) == one.search(query)


def test_half_precision_comes_back_as_it_was_and_takes_half_the_room(
    flat: vecbridge.Store, other: vecbridge.Store, tmp_path: Path
) -> None:
    batch = plain(2_000, dim=64)
    sizes = {}
    for element in ("float32", "float16"):
        one = filled(flat, batch, element, layout=Layout(element=element))
        sizes[element] = vecbridge.export_parquet(one, tmp_path / f"{element}.parquet").bytes
        vecbridge.import_parquet(tmp_path / f"{element}.parquet", other)
        made = other.open(element)
        assert made.layout.element == element
        assert content(made) == content(one)
    assert sizes["float16"] < 0.6 * sizes["float32"]
    assert pq.read_schema(tmp_path / "float16.parquet").field("vector").type.value_type == pa.float32()


def test_the_layout_is_planned_for_the_store_it_goes_to(
    flat: vecbridge.Store, tmp_path: Path, pg: str
) -> None:
    batch = plain(600)
    one = filled(flat, batch, recall=0.9)
    vecbridge.export_parquet(one, tmp_path / "a.parquet")
    plans: list[vecbridge.Plan] = []
    with vecbridge.connect(pg) as server:
        done = vecbridge.import_parquet(
            tmp_path / "a.parquet", server, rows=3_000_000, recall=0.8, on_plan=plans.append
        )
        made = server.open("papers")
        assert made.layout.index is not None
        assert (made.manifest.rows, made.manifest.recall) == (3_000_000, 0.8)
        assert done.index.used
        assert done.tuned == made.manifest.tuned
        assert done.tuned is not None
    assert [plan.rows for plan in plans] == [3_000_000]
    assert plans[0].evidence is not None, "the plan rests on vectors of the file"


# --- the file ----------------------------------------------------------------------------------------


def test_the_columns_are_what_the_guide_says(flat: vecbridge.Store, tmp_path: Path) -> None:
    batch = records()
    path = tmp_path / "a.parquet"
    done = vecbridge.export_parquet(filled(flat, batch), path)
    assert (done.path, done.records, done.bytes) == (str(path), ROWS, path.stat().st_size)
    found = pq.read_table(path)
    assert str(found.schema.field("vector").type) == f"fixed_size_list<element: float not null>[{DIM}]"
    assert [(one.name, str(one.type)) for one in found.schema if one.name != "vector"] == [
        ("id", "string"),
        ("document", "string"),
        ("metadata", "string"),
        ("digest", "binary"),
    ]
    rows = {row["id"]: row for row in found.to_pylist()}
    assert sorted(rows) == sorted(batch.ids)
    for id, vector, document, metadata, digest in zip(
        batch.ids, batch.vectors, batch.documents, batch.metadata, batch.digests, strict=True
    ):
        row = rows[id]
        assert np.array(row["vector"], np.float32).tobytes() == vector.tobytes()
        assert (row["document"], row["digest"]) == (document, digest)
        assert json.loads(row["metadata"]) == metadata
    header = json.loads(pq.ParquetFile(path).metadata.metadata[b"vecbridge"])
    assert sorted(header) == ["basis", "format", "id", "manifest", "where"]
    assert header["manifest"]["space"]["model"] == "mine"
    (shown,) = re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)
    assert sorted(json.loads(shown)) == sorted(header)
    assert sorted(json.loads(shown)["manifest"]) == sorted(header["manifest"])


def test_only_records_that_match_are_taken(flat: vecbridge.Store, tmp_path: Path) -> None:
    one = filled(flat, plain(ROWS))
    where = {"n": {"$gte": 390}}
    assert vecbridge.export_parquet(one, tmp_path / "a.parquet", where=where).records == 10
    done = vecbridge.import_parquet(tmp_path / "a.parquet", flat, name="ten")
    assert sorted(content(flat.open("ten"))) == data.names(10, start=390)
    assert any("papers that matched {'n': {'$gte': 390}}" in note for note in done.notes)
    with pytest.raises(FilterError, match=r"\$near"):
        vecbridge.export_parquet(one, tmp_path / "b.parquet", where={"n": {"$near": 1}})
    assert not (tmp_path / "b.parquet").exists()


def test_row_groups_have_some_megabytes_whatever_the_batches(
    flat: vecbridge.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP_BYTES", 10_000)
    one = filled(flat, plain(ROWS))
    path = tmp_path / "a.parquet"
    with path.open("wb") as out, parquet.Writer(out, Header(one.manifest)) as writer:
        for start in range(0, ROWS, 7):
            writer.add(one.get(data.names(7, start=start)))
        writer.finish()
    about = pq.ParquetFile(path).metadata
    # a record weighs 24 * 4 + 64 bytes and its text: 9 batches of 7 come to 10,000
    assert [about.row_group(number).num_rows for number in range(about.num_row_groups)] == [63] * 6 + [22]
    monkeypatch.setattr(parquet, "PART_BYTES", 2_000)
    with File(path) as file:
        sizes = [len(batch) for batch in file.batches()]
    assert max(sizes) < 30
    assert sum(sizes) == ROWS
    vecbridge.import_parquet(path, flat, name="again")
    assert content(flat.open("again")) == content(one)


def test_memory_holds_a_few_row_groups_of_a_long_file(
    flat: vecbridge.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP_BYTES", 200_000)
    monkeypatch.setattr(parquet, "PART_BYTES", 200_000)
    batch, path = plain(12_000, dim=256), tmp_path / "long.parquet"
    before, peaks = pa.total_allocated_bytes(), [0]
    with path.open("wb") as out, parquet.Writer(out, Header(flat.create("a", dim=256).manifest)) as writer:
        for start in range(0, len(batch), 100):
            writer.add(chosen(batch, range(start, start + 100)))
            peaks.append(pa.total_allocated_bytes() - before)
        writer.finish()
    with File(path) as file:
        for _ in file.batches():
            peaks.append(pa.total_allocated_bytes() - before)
    assert path.stat().st_size > 10_000_000
    assert max(peaks) < 4_000_000


def test_a_file_that_arrow_has_written_again_is_still_one(file: Path, flat: vecbridge.Store) -> None:
    again = file.with_name("again.parquet")
    pq.write_table(pq.read_table(file), again, compression="none")
    vecbridge.import_parquet(again, flat, name="again")
    assert content(flat.open("again")) == content(flat.open("papers"))


# --- whole or not at all -----------------------------------------------------------------------------


def test_a_file_that_is_there_is_replaced_only_when_told_to(flat: vecbridge.Store, tmp_path: Path) -> None:
    one, path = filled(flat, plain(9)), tmp_path / "a.parquet"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"a\.parquet is there already: name another file, or say"):
        vecbridge.export_parquet(one, path)
    assert path.read_text() == "mine"
    link = tmp_path / "link.parquet"
    link.symlink_to(path)
    vecbridge.export_parquet(one, link, overwrite=True)
    assert link.is_symlink()
    assert pq.read_table(path).num_rows == 9
    with pytest.raises(InputError, match="expected a file to write to"):
        vecbridge.export_parquet(one, tmp_path / "flat", overwrite=True)
    with pytest.raises(InputError, match=r"nowhere is not there: make it first"):
        vecbridge.export_parquet(one, tmp_path / "nowhere" / "a.parquet")
    assert not list(tmp_path.glob("*.part"))


def test_what_appears_meanwhile_is_not_replaced(flat: vecbridge.Store, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"

    def appear(stage: str, done: int, total: int | None) -> None:
        path.write_text("mine")

    with pytest.raises(InputError, match="is there already"):
        vecbridge.export_parquet(filled(flat, plain(9)), path, progress=appear)
    assert path.read_text() == "mine"
    assert not list(tmp_path.glob("*.part"))


def test_two_exports_to_one_file_do_not_mix(flat: vecbridge.Store, tmp_path: Path) -> None:
    one, path = filled(flat, plain(9)), tmp_path / "a.parquet"

    def second(stage: str, done: int, total: int | None) -> None:
        with pytest.raises(Busy, match=r"another process exports to .*a\.parquet\.part right now"):
            vecbridge.export_parquet(one, path)

    vecbridge.export_parquet(one, path, progress=second)
    assert pq.read_table(path).num_rows == 9


def program(code: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    lines = f"import os, signal, sys, vecbridge\nfrom vecbridge import parquet\n{code}"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", lines, *words], cwd=folder, capture_output=True, text=True
    )


DYING = """
parquet.GROUP_BYTES = parquet.PART_BYTES = 4_000
left = int(sys.argv[1])
def die(stage, done, total):
    global left
    if stage == (sys.argv[2] if len(sys.argv) > 2 else stage):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_export_leaves_no_file_and_the_next_takes_over(
    flat: vecbridge.Store, tmp_path: Path
) -> None:
    one, path = filled(flat, plain(ROWS)), tmp_path / "a.parquet"
    code = f"""{DYING}
with vecbridge.connect("flat:flat") as store:
    vecbridge.export_parquet(store.open("papers"), "a.parquet", progress=die)
"""
    assert program(code, tmp_path, "1").returncode == -signal.SIGKILL
    assert not path.exists()
    left = tmp_path / "a.parquet.part"
    assert left.exists()
    # much longer than what comes
    left.write_bytes(os.urandom(2_000_000))
    vecbridge.export_parquet(one, path)
    assert not left.exists()
    vecbridge.import_parquet(path, flat, name="again")
    assert content(flat.open("again")) == content(one)


def test_a_full_disk_leaves_what_was_there(flat: vecbridge.Store, tmp_path: Path) -> None:
    filled(flat, plain(5_000))
    path = tmp_path / "a.parquet"
    path.write_text("mine")
    code = """
import resource
parquet.GROUP_BYTES = 50_000
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
with vecbridge.connect("flat:flat") as store:
    try:
        vecbridge.export_parquet(store.open("papers"), "a.parquet", overwrite=True)
    except vecbridge.VecbridgeError as error:
        print(type(error).__name__, error)
"""
    ran = program(code, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(r"InputError .*a\.parquet cannot be written: File too large\n", ran.stdout)
    assert ran.stderr == ""
    assert path.read_text() == "mine"
    assert not list(tmp_path.glob("*.part"))


# --- files that cannot be taken ----------------------------------------------------------------------


def refused(path: Path, store: vecbridge.Store, why: str) -> None:
    with pytest.raises(SourceError, match=why):
        vecbridge.import_parquet(path, store)
    assert store.collections() == []


def test_what_is_no_file_of_vecbridges_is_refused(file: Path, other: vecbridge.Store, tmp_path: Path) -> None:
    refused(tmp_path, other, "which is no file")
    refused(
        tmp_path / "absent.parquet", other, r"expected a Parquet file, got .*absent\.parquet, which is no"
    )
    (tmp_path / "text.parquet").write_text("id,vector\n")
    refused(tmp_path / "text.parquet", other, "something else, or a part of it is missing")
    (tmp_path / "empty.parquet").write_bytes(b"")
    refused(tmp_path / "empty.parquet", other, "something else, or a part of it is missing")
    pq.write_table(pa.table({"id": ["a"], "vector": [[1.0]]}), tmp_path / "foreign.parquet")
    refused(
        tmp_path / "foreign.parquet",
        other,
        r"was not exported by vecbridge \(its columns: 'id', 'vector'\): vecbridge ingest loads .* as: "
        r"vecbridge ingest .*foreign\.parquet -c NAME --to URL",
    )


def test_a_truncated_file_is_refused(file: Path, other: vecbridge.Store, tmp_path: Path) -> None:
    whole, torn = file.read_bytes(), tmp_path / "torn.parquet"
    for size in (3, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        torn.write_bytes(whole[:size])
        refused(torn, other, "something else, or a part of it is missing")


def changed(path: Path, header: Any) -> Path:
    """The file with another header."""
    found = pq.read_table(path)
    again = path.with_name("changed.parquet")
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    pq.write_table(found.replace_schema_metadata({b"vecbridge": text}), again)
    return again


def test_a_header_that_makes_no_sense_is_refused(file: Path, other: vecbridge.Store) -> None:
    header = json.loads(pq.ParquetFile(file).metadata.metadata[b"vecbridge"])
    refused(changed(file, {**header, "format": 2}), other, "it has format 2, this vecbridge reads up to 1")
    newer = {**header["manifest"], "format": 9}
    refused(changed(file, {**header, "manifest": newer}), other, "manifest format 9, .* upgrade vecbridge")
    for wrong in (b"{", b"[]", b"7", b"{}", b"\xff"):
        refused(changed(file, wrong), other, "what it says of itself cannot be read")
    for key, value in {"id": 7, "manifest": None, "basis": "?", "format": "1"}.items():
        refused(changed(file, {**header, key: value}), other, "cannot be imported: ")
    space = {**header["manifest"]["space"], "dim": 25}
    refused(
        changed(file, {**header, "manifest": {**header["manifest"], "space": space}}),
        other,
        r"expected the columns 'id' \(string\), 'vector' \(fixed_size_list<element: float not null>\[25\]\)",
    )


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("id", "", "an empty one at position 5"),
        ("id", "a\0b", "NUL character"),
        ("id", "id-000006", "expected every id once"),
        ("document", "a\0b", "the document at position 5 holds a NUL"),
        ("metadata", "{", "expected metadata as JSON, got '{'"),
        ("metadata", "[1]", r"expected metadata as a JSON object, got '\[1\]'"),
        ("metadata", '{"a": NaN}', "expected finite numbers in metadata at position 5"),
        ("metadata", '{"a":' * 2_000, "expected metadata as JSON"),
        ("metadata", '{"a":' * 60 + "1" + "}" * 60, "nested up to 50 levels"),
        ("digest", b"x" * 33, "expected digests of up to 32 bytes"),
        ("vector", [np.nan] * DIM, "row 5 of vectors holds nan"),
        ("vector", [0.0] * DIM, "row 5 of vectors is zero"),
    ],
)
def test_a_record_that_no_store_could_keep_is_named_before_anything_is_made(
    column: str, value: Any, why: str, file: Path, other: vecbridge.Store, tmp_path: Path
) -> None:
    found = pq.read_table(file)
    rows = found.to_pylist()
    rows[5][column] = value
    pq.write_table(pa.Table.from_pylist(rows, found.schema), tmp_path / "bad.parquet")
    refused(tmp_path / "bad.parquet", other, rf"bad\.parquet, rows 1 to 400: .*{why}")


def test_text_that_is_not_utf8_is_refused(file: Path, other: vecbridge.Store, tmp_path: Path) -> None:
    found = pq.read_table(file)
    wrong = pa.array([b"\xff"] * ROWS, pa.binary()).view(pa.string())
    place = found.schema.get_field_index("document")
    pq.write_table(found.set_column(place, found.schema.field("document"), wrong), tmp_path / "bad.parquet")
    refused(tmp_path / "bad.parquet", other, "expected text in UTF-8, got other bytes")


def test_no_byte_that_changes_goes_unseen(
    file: Path, flat: vecbridge.Store, other: vecbridge.Store, tmp_path: Path
) -> None:
    whole, wanted = file.read_bytes(), content(flat.open("papers"))
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    generator, found = np.random.default_rng(0), 0
    torn = tmp_path / "torn.parquet"
    for place in generator.integers(4, len(whole) - footer, 60).tolist():
        torn.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            vecbridge.import_parquet(torn, other)
        except SourceError:
            found += 1
            assert other.collections() == []
        else:
            # what lies beside the records, as statistics do
            assert content(other.open("papers")) == wanted
            other.drop("papers")
    assert found >= 55


# --- interruptions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "stage"), [(3, "checking"), (0, "importing"), (4, "importing"), (9, "importing")]
)
def test_a_killed_import_goes_on_where_it_was(
    calls: int, stage: str, file: Path, flat: vecbridge.Store, tmp_path: Path
) -> None:
    before = file.read_bytes()
    code = f"""{DYING}
with vecbridge.connect("flat:other") as store:
    vecbridge.import_parquet("papers.parquet", store, progress=die)
"""
    ran = program(code, tmp_path, str(calls), stage)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    # a file may be moved meanwhile
    moved = file.rename(tmp_path / "moved.parquet")
    with vecbridge.connect(f"flat:{tmp_path / 'other'}") as store:
        there = 0
        if stage == "checking":
            assert store.collections() == []
        else:
            begun = store.open("papers")
            there = begun.count()
            assert (begun.manifest.copy_of or "").startswith("papers.parquet (")
            assert 0 < there < ROWS
            with pytest.raises(InputError, match=r"got papers in .* an unfinished copy of papers\.parquet"):
                vecbridge.export_parquet(begun, tmp_path / "b.parquet")
        done = vecbridge.import_parquet(moved, store)
        assert (done.records, done.written) == (ROWS, ROWS - there)
        made = store.open("papers")
        assert made.manifest.copy_of is None
        assert content(made) == content(flat.open("papers"))
    assert moved.read_bytes() == before


@pytest.mark.parametrize("stage", ["importing", "building"])
def test_an_import_that_fails_goes_on_in_a_server(
    stage: str, file: Path, pg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "PART_BYTES", 4_000)
    calls = 0

    def fail(said: str, done: int, total: int | None) -> None:
        nonlocal calls
        if stage == "building":
            calls += said not in ("checking", "importing")
        else:
            calls += done > ROWS // 2 and said == stage
        if calls:
            raise KeyboardInterrupt

    with vecbridge.connect(pg) as store:
        with pytest.raises(KeyboardInterrupt):
            vecbridge.import_parquet(file, store, rows=3_000_000, progress=fail)
        there = store.open("papers").count()
        assert there == ROWS if stage == "building" else ROWS // 2 < there < ROWS
        done = vecbridge.import_parquet(file, store)
        assert done.written == ROWS - there
        assert done.index.used
        assert store.open("papers").manifest.copy_of is None


def test_the_same_import_again_writes_nothing(file: Path, other: vecbridge.Store) -> None:
    vecbridge.import_parquet(file, other)
    again = vecbridge.import_parquet(file, other)
    assert (again.records, again.written, again.compared) == (ROWS, 0, 200)
    assert "it was there already: nothing was written" in again.notes


def test_a_collection_that_is_something_else_is_left_alone(
    file: Path, flat: vecbridge.Store, other: vecbridge.Store, tmp_path: Path
) -> None:
    taken = r"there is already a collection 'papers' in flat:.*, and it does not hold what papers\.parquet \("
    mine = filled(other, plain(9))
    before = content(mine)
    with pytest.raises(CollectionExists, match=taken):
        vecbridge.import_parquet(file, other)
    assert content(mine) == before
    other.drop("papers")
    batch = plain(ROWS)
    # as many records: in another space, or one with another digest, or with other vectors
    for wishes, changes in (
        ({"metric": "l2"}, None),
        ({"model": "other"}, None),
        ({}, {"digests": [b"other"] * ROWS}),
        ({}, {"vectors": batch.vectors[::-1]}),
    ):
        mine = filled(other, replace(batch, **(changes or {})), **wishes)
        before = content(mine)
        with pytest.raises(CollectionExists, match=taken):
            vecbridge.import_parquet(file, other)
        assert content(mine) == before
        other.drop("papers")


def test_an_unfinished_import_of_another_file_is_left_alone(
    file: Path, flat: vecbridge.Store, other: vecbridge.Store, tmp_path: Path
) -> None:
    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "importing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vecbridge.import_parquet(file, other, progress=stop)
    second = tmp_path / "second.parquet"
    vecbridge.export_parquet(flat.open("papers"), second)
    with pytest.raises(CollectionExists, match=r"it is an unfinished copy of papers\.parquet \("):
        vecbridge.import_parquet(second, other)
    vecbridge.import_parquet(second, other, name="second")
    assert content(other.open("second")) == content(flat.open("papers"))


def test_a_writer_in_between_is_found_out(file: Path, other: vecbridge.Store) -> None:
    def meddle(stage: str, done: int, total: int | None) -> None:
        if stage == "importing" and done == ROWS:
            other.open("papers").delete(["id-000007"])

    with pytest.raises(StoreError, match=r"now holds 399 records, .* 400, and they are not the same"):
        vecbridge.import_parquet(file, other, progress=meddle)
    assert other.open("papers").manifest.copy_of is not None
    assert vecbridge.import_parquet(file, other).written == 1


def test_a_changed_record_in_between_is_found_out(file: Path, other: vecbridge.Store) -> None:
    def meddle(stage: str, done: int, total: int | None) -> None:
        if stage == "importing" and done == ROWS:
            batch = plain(ROWS)
            other.open("papers").upsert(batch.ids, batch.vectors[::-1])

    with pytest.raises(StoreError, match=r"some are not as .* has them"):
        vecbridge.import_parquet(file, other, progress=meddle)
    assert vecbridge.import_parquet(file, other).written == ROWS


def test_an_id_that_the_file_has_twice_is_found_out(
    file: Path, other: vecbridge.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pq.read_table(file)
    twice = tmp_path / "twice.parquet"
    pq.write_table(pa.concat_tables([found, found.slice(3, 1)]), twice)
    refused(twice, other, "expected every id once")
    monkeypatch.setattr(parquet, "PART_BYTES", 4_000)
    with pytest.raises(StoreError, match="or the file has an id twice"):
        vecbridge.import_parquet(twice, other)


# --- the command line, and what surrounds it ---------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VECBRIDGE_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "100")

    def command(*words: str) -> Ran:
        capsys.readouterr()
        code = cli.run(words)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return command


def test_export_and_import_as_commands(flat: vecbridge.Store, run: Run) -> None:
    filled(flat, plain(ROWS))
    ran = run("export", "flat:./flat", "papers", "a.parquet")
    assert ran.code == 0
    assert ran.out.startswith("400 records of papers are in a.parquet (")
    assert ran.err == "exporting: 400 of 400\n"
    assert run("export", "flat:./flat", "papers", "a.parquet", "-q").code == 2
    ran = run("export", "flat:./flat", "papers", "a.parquet", "--force", "-q", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json == {
        "url": "flat:./flat",
        "collection": "papers",
        "path": "a.parquet",
        "records": 400,
        "bytes": Path("a.parquet").stat().st_size,
    }
    ran = run("export", "flat:./flat", "papers", "few.parquet", "--where", '{"n": {"$lt": 7}}', "-q")
    assert ran.out.startswith("7 records of papers are in few.parquet (")

    ran = run("import", "a.parquet", "flat:./other")
    assert ran.code == 0
    assert ran.out.startswith("400 records of a.parquet are in papers at flat:./other: 400 written now\n")
    assert "200 records in full" in ran.out
    assert "chosen" in ran.err
    assert "importing: 400 of 400" in ran.err
    ran = run("import", "few.parquet", "flat:./other", "few", "-q", "--json")
    assert ran.code == 0
    assert (ran.json["collection"], ran.json["records"], ran.json["written"]) == ("few", 7, 7)
    assert ran.err.startswith("Note: the file has those records of papers that matched")


def test_commands_that_cannot_be_done_say_why(flat: vecbridge.Store, run: Run) -> None:
    filled(flat, plain(9))
    assert run("export", "flat:./flat", "absent", "a.parquet").code == 3
    ran = run("export", "flat:./flat", "papers")
    assert (ran.code, "FILE.parquet is missing" in ran.err) == (2, True)
    ran = run("import", "absent.parquet", "flat:./other", "--json")
    assert ran.code == 2
    assert ran.json["error"]["type"] == "SourceError"
    ran = run("import", "a.parquet", "papers", "flat:./other")
    assert ran.code == 2
    assert "got 'papers' where a URL should be" in ran.err
    run("export", "flat:./flat", "papers", "a.parquet", "-q")
    flat.open("papers").delete(["id-000001"])
    ran = run("import", "a.parquet", "flat:./flat")
    assert ran.code == 2
    assert "there is already a collection 'papers'" in ran.err


def test_without_pyarrow_the_extra_is_named(tmp_path: Path) -> None:
    code = """
import os, sys, vecbridge
sys.modules["pyarrow"] = None
with vecbridge.connect("flat:f") as store:
    for call in (
        lambda: vecbridge.export_parquet(store.create("a", dim=2), "a.parquet"),
        lambda: vecbridge.import_parquet("a.parquet", store),
    ):
        try:
            call()
        except vecbridge.VecbridgeError as error:
            print(type(error).__name__, error)
print(os.listdir())
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    extra = "install it with pip install 'vecbridge[parquet]'"
    said = f"{MissingExtra.__name__} Parquet needs the package pyarrow; {extra}"
    assert ran.stdout.splitlines() == [said, said, "['f']"]


def test_nothing_loads_pyarrow_before_it_is_needed(tmp_path: Path) -> None:
    code = """
import sys, vecbridge, vecbridge.cli
vecbridge.export_parquet, vecbridge.import_parquet
assert "pyarrow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_the_example_of_the_guide_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["500 records", "500 vectors of 3 components", "paper-7 1.000"]
