"""From a file to a searchable collection, in one call; and the second call changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sources import jsonl

from vecbridge import store
from vecbridge.errors import (
    DimensionMismatch,
    EmbedderError,
    InputError,
    MissingExtra,
    ModelMismatch,
    SourceError,
    TooManyRejects,
    UrlError,
    VectorError,
)
from vecbridge.ingestion import Origin, Record, ingest, load
from vecbridge.ingestion.survey import digest
from vecbridge.types import Layout, Shorten

WORDS = ["apple", "banana", "cherry", "damson", "elder", "fig", "grape", "hazel", "iris", "juniper"]


class Counting:
    """Hashing that keeps what it was asked for, and stops when told to."""

    def __init__(self, dim: int = 64, stop_after: int | None = None) -> None:
        self._inner = load(f"hashing:{dim}")
        self.model = self._inner.model
        self.dim = self._inner.dim
        self.nested: tuple[int, ...] | None = ()
        self.texts: list[str] = []
        self.stop_after = stop_after
        self.closed = False

    def embed(self, texts: Sequence[str]) -> Any:
        if self.stop_after is not None and len(self.texts) + len(texts) > self.stop_after:
            raise KeyboardInterrupt
        self.texts += texts
        return self._inner.embed(texts)

    def embed_query(self, text: str) -> Any:
        return self._inner.embed_query(text)

    def close(self) -> None:
        self.closed = True


def corpus(n: int) -> list[dict[str, Any]]:
    return [{"id": f"d{i}", "text": f"{WORDS[i % 10]} number {i}", "n": i} for i in range(n)]


@pytest.fixture
def to(tmp_path: Path) -> str:
    return f"flat:{tmp_path / 'store'}"


def test_a_file_becomes_a_collection_that_can_be_searched(tmp_path: Path, to: str) -> None:
    done = ingest(jsonl(tmp_path / "a.jsonl", *corpus(30)), to=to, collection="fruit", embedder="hashing:512")
    assert (done.read, done.new, done.changed, done.unchanged, done.written) == (30, 30, 0, 0, 30)
    assert (done.dim, done.model, done.collection) == (512, "hashing-512", "fruit")
    assert done.plan is not None
    assert done.plan["rows"] == 30
    assert done.recall is not None
    assert done.recall.recall == 1.0
    assert str(done).startswith("30 records read, 30 written to fruit at flat:")
    with store.connect(to) as place:
        fruit = place.open("fruit", model="hashing-512")
        hits = fruit.search(load("hashing:512").embed_query("cherries"), k=3)
        assert {hit.id for hit in hits} == {"d2", "d12", "d22"}
        assert fruit.get(["d12"]).documents == ["cherry number 12"]
        assert fruit.get(["d12"]).metadata == [{"n": 12}]


def test_the_summary_is_ready_for_json(tmp_path: Path, to: str) -> None:
    done = ingest(jsonl(tmp_path / "a.jsonl", *corpus(12)), to=to, collection="c", embedder="hashing:16")
    found = json.loads(json.dumps(done.to_dict()))
    assert found["written"] == 12
    assert found["unchanged"] == 0
    assert found["layout"] == done.layout.to_dict()
    assert found["recall"]["recall"] == 1.0
    assert set(found["seconds"]) == {"read", "create", "embed", "write", "index", "evaluate"}
    assert all(seconds >= 0 for seconds in found["seconds"].values())


@pytest.mark.parametrize("kind", ["jsonl", "csv", "folder", "npy"])
def test_a_second_run_embeds_nothing_writes_nothing_and_says_so(tmp_path: Path, to: str, kind: str) -> None:
    embedder: Counting | None = Counting()
    source = tmp_path / f"a.{kind}"
    if kind == "folder":
        source.mkdir()
        for name in ("x.md", "y.md"):
            (source / name).write_text("# One\n\nText.\n\n# Two\n\nMore of it.")
    elif kind == "csv":
        source.write_text("text,n\n" + "".join(f"text {n},{n}\n" for n in range(600)))
    elif kind == "npy":
        embedder = None
        np.save(source, np.random.default_rng(1).standard_normal((600, 8)))
        jsonl(tmp_path / "a.jsonl", *corpus(600))
    else:
        jsonl(source, *corpus(600))
    first = ingest(source, to=to, collection="c", embedder=embedder)
    assert first.written == first.read > 0
    asked = len(embedder.texts) if embedder else 0
    second = ingest(source, to=to, collection="c", embedder=embedder, evaluate=False)
    assert (second.read, second.written, second.unchanged) == (first.read, 0, first.read)
    assert (second.plan, second.recall) == (None, None)
    assert "all unchanged; nothing was written to c at flat:" in str(second)
    assert len(embedder.texts if embedder else ()) == asked
    with store.connect(to) as place:
        assert place.open("c").count() == first.read


def test_only_what_has_changed_is_embedded_again(tmp_path: Path, to: str) -> None:
    rows = corpus(700)
    ingest(jsonl(tmp_path / "a.jsonl", *rows), to=to, collection="c", embedder="hashing:64", evaluate=False)
    rows[3]["text"] = "another text"
    rows[650]["n"] = -1
    rows[651]["n"] = "651"
    rows.append({"id": "new", "text": "added"})
    embedder = Counting()
    done = ingest(
        jsonl(tmp_path / "a.jsonl", *rows), to=to, collection="c", embedder=embedder, evaluate=False
    )
    assert (done.read, done.new, done.changed, done.unchanged) == (701, 1, 3, 697)
    assert embedder.texts == ["another text", rows[650]["text"], rows[651]["text"], "added"]
    with store.connect(to) as place:
        found = place.open("c").get(["d3", "d650", "d651", "new"])
        assert found.documents[0] == "another text"
        assert [entry.get("n") for entry in found.metadata] == [3, -1, "651", None]


def test_the_order_of_metadata_keys_is_no_change(tmp_path: Path, to: str) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"id": "x", "text": "t", "a": 1, "b": {"c": 2, "d": 3}})
    ingest(source, to=to, collection="c", embedder="hashing:8")
    jsonl(source, {"b": {"d": 3, "c": 2}, "text": "t", "a": 1, "id": "x"})
    assert ingest(source, to=to, collection="c", embedder="hashing:8").written == 0


def test_a_repeated_id_is_refused_with_both_places_and_nothing_is_made(tmp_path: Path, to: str) -> None:
    source = jsonl(tmp_path / "a.jsonl", *corpus(600), {"id": "d7", "text": "again"}, *corpus(0))
    embedder = Counting()
    with pytest.raises(
        SourceError, match=r"a\.jsonl:601: expected an id of its own, got 'd7', which .*:8 has too"
    ):
        ingest(source, to=to, collection="c", embedder=embedder)
    assert embedder.texts == []
    with store.connect(to) as place:
        assert place.collections() == []


def test_a_mistake_in_the_last_line_is_found_before_anything_is_embedded_or_written(
    tmp_path: Path, to: str
) -> None:
    source = jsonl(tmp_path / "a.jsonl", *corpus(1200), {"id": "bad"})
    embedder = Counting()
    with pytest.raises(SourceError, match=r"a\.jsonl:1201: expected text"):
        ingest(source, to=to, collection="c", embedder=embedder)
    assert embedder.texts == []
    with store.connect(to) as place:
        assert place.collections() == []


def test_an_interrupted_run_leaves_whole_batches_and_the_next_completes_them(tmp_path: Path, to: str) -> None:
    source = jsonl(tmp_path / "a.jsonl", *corpus(100))
    first = Counting(stop_after=60)
    with pytest.raises(KeyboardInterrupt):
        ingest(source, to=to, collection="c", embedder=first, batch=20)
    with store.connect(to) as place:
        assert place.open("c").count() == 60
    second = Counting()
    done = ingest(source, to=to, collection="c", embedder=second, batch=20)
    assert (done.new, done.unchanged) == (40, 60)
    assert second.texts == [row["text"] for row in corpus(100)[60:]]
    with store.connect(to) as place:
        assert place.open("c").count() == 100


def test_vectors_made_beforehand_are_stored_as_they_are(tmp_path: Path, to: str) -> None:
    vectors = np.random.default_rng(3).standard_normal((40, 6)).astype(np.float32)
    rows = [{"id": f"v{n}", "vector": row.tolist(), "n": n} for n, row in enumerate(vectors)]
    done = ingest(jsonl(tmp_path / "a.jsonl", *rows), to=to, collection="c", model="bge-m3", metric="l2")
    assert (done.written, done.dim, done.model) == (40, 6, "bge-m3")
    with store.connect(to) as place:
        found = place.open("c")
        assert found.space.metric == "l2"
        assert np.array_equal(found.get([f"v{n}" for n in range(40)]).vectors, vectors)
    rows[5]["vector"][0] += 0.5
    again = ingest(jsonl(tmp_path / "a.jsonl", *rows), to=to, collection="c")
    assert (again.changed, again.unchanged) == (1, 39)


def test_an_embedder_embeds_the_text_even_where_the_source_has_vectors(tmp_path: Path, to: str) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"id": "x", "text": "t", "vector": [1, 2, 3]})
    done = ingest(source, to=to, collection="c", embedder="hashing:8")
    assert done.dim == 8
    with store.connect(to) as place:
        found = place.open("c").get(["x"])
        assert np.allclose(found.vectors[0], load("hashing:8").embed_query("t"))
        assert found.metadata == [{}]


@pytest.mark.parametrize(
    ("row", "embedder", "error", "message"),
    [
        (
            {"text": "t"},
            None,
            SourceError,
            r"a\.jsonl:2: expected a vector, got text alone; choose an embedder",
        ),
        ({"vector": [1, 2]}, "hashing:8", SourceError, r"a\.jsonl:2: expected text to embed, got none"),
        ({"vector": [0, 0]}, None, VectorError, r"a\.jsonl:2: the vector is zero; it has no direction"),
        ({"vector": [1e30, 0]}, None, VectorError, r"a\.jsonl:2: the vector has length 1e\+30"),
    ],
)
def test_a_record_that_cannot_be_stored_is_named_by_its_line(
    tmp_path: Path, to: str, row: Any, embedder: str | None, error: type[Exception], message: str
) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"text": "t", "vector": [1, 2]}, row)
    with pytest.raises(error, match=message):
        ingest(source, to=to, collection="c", embedder=embedder)
    with store.connect(to) as place:
        assert place.collections() == []


def test_a_zero_vector_is_welcome_under_inner_product(tmp_path: Path, to: str) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"vector": [0, 0]}, {"vector": [0, 1]})
    assert ingest(source, to=to, collection="c", metric="ip").written == 2


def test_vectors_of_another_length_than_the_collections_are_refused_at_their_line(
    tmp_path: Path, to: str
) -> None:
    ingest(jsonl(tmp_path / "a.jsonl", {"vector": [1, 2]}), to=to, collection="c")
    with pytest.raises(DimensionMismatch, match=r"b\.jsonl:1: expected the vector of 2 dimensions, got 3"):
        ingest(jsonl(tmp_path / "b.jsonl", {"vector": [1, 2, 3]}), to=to, collection="c")


def test_another_model_than_the_collections_is_refused_before_anything_is_embedded(
    tmp_path: Path, to: str
) -> None:
    source = jsonl(tmp_path / "a.jsonl", *corpus(3))
    ingest(source, to=to, collection="c", embedder="hashing:32")
    embedder = Counting(64)
    with pytest.raises(ModelMismatch, match=r"expected vectors of hashing-32, got vectors of hashing-64"):
        ingest(source, to=to, collection="c", embedder=embedder)
    assert embedder.texts == []


def test_what_a_collection_cannot_become_is_refused(tmp_path: Path, to: str) -> None:
    source = jsonl(tmp_path / "a.jsonl", *corpus(3))
    ingest(source, to=to, collection="c", embedder="hashing:32")
    with pytest.raises(InputError, match=r"collection c compares by cosine, which cannot be changed to l2"):
        ingest(source, to=to, collection="c", embedder="hashing:32", metric="l2")
    with pytest.raises(InputError, match=r"collection c has another layout than the one given"):
        ingest(source, to=to, collection="c", embedder="hashing:32", layout=Layout(oversample=3))
    assert ingest(source, to=to, collection="c", embedder="hashing:32", metric="cosine").written == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"to": "nowhere:x"}, UrlError, r"expected a store URL"),
        ({"collection": "no/name"}, InputError, r"expected a collection name"),
        ({"metric": "dot"}, InputError, r"expected the metric 'cosine', 'ip' or 'l2', got 'dot'"),
        ({"batch": 0}, InputError, r"expected batches of 1 or more records, got 0"),
        ({"embedder": "e5"}, InputError, r"expected an embedder as hashing:DIM"),
        ({"model": "bge-m3"}, InputError, r"expected model='hashing-8' as the embedder's, got 'bge-m3'"),
        ({"chunk_tokens": 5}, InputError, r"expected chunks of 32 or more tokens, got 5"),
        ({"text_field": "body"}, SourceError, r"a\.jsonl:1: expected a field 'body', got "),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, to: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    source = jsonl(tmp_path / "a.jsonl", *corpus(3))
    with pytest.raises(error, match=message):
        ingest(source, **{"to": to, "collection": "c", "embedder": "hashing:8", **options})


def test_a_missing_source_is_refused_before_the_store_is_made(tmp_path: Path, to: str) -> None:
    with pytest.raises(SourceError, match=r"expected a file or a folder, found nothing there"):
        ingest(tmp_path / "none.jsonl", to=to, collection="c", embedder="hashing:8")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("shape", [(1, 8), (0, 8), (16,)])
def test_an_embedder_that_gives_another_number_of_vectors_is_refused(
    tmp_path: Path, to: str, shape: tuple[int, ...]
) -> None:
    class Broken(Counting):
        def embed(self, texts: Sequence[str]) -> Any:
            return np.ones(shape if len(texts) > 1 else (1, 8), dtype=np.float32)

    with pytest.raises(EmbedderError, match=r"expected 2 vectors from hashing-8, got an array of shape"):
        ingest(jsonl(tmp_path / "a.jsonl", *corpus(2)), to=to, collection="c", embedder=Broken(8))


def test_the_dimension_that_arrives_counts_not_the_one_announced(tmp_path: Path, to: str) -> None:
    embedder = Counting(24)
    embedder.dim = 1000
    assert ingest(jsonl(tmp_path / "a.jsonl", *corpus(2)), to=to, collection="c", embedder=embedder).dim == 24


def test_a_zero_vector_of_an_embedder_is_named_by_its_line(tmp_path: Path, to: str) -> None:
    class Zero(Counting):
        def embed(self, texts: Sequence[str]) -> Any:
            return super().embed(texts) * np.array(
                [[float("7" not in text)] for text in texts], dtype=np.float32
            )

    source = jsonl(tmp_path / "a.jsonl", *corpus(9))
    with pytest.raises(
        VectorError, match=r"a\.jsonl:8: expected a vector with a length, got zeros from the model"
    ):
        ingest(source, to=to, collection="c", embedder=Zero(8), batch=4)


def test_a_layout_with_a_pca_is_fitted_on_the_whole_length_of_the_source(tmp_path: Path, to: str) -> None:
    # the first half lies in one plane, the second half in another: a basis of the first rows would lose these
    rng = np.random.default_rng(7)
    matrix = np.zeros((400, 32), dtype=np.float32)
    matrix[:200, :4] = rng.standard_normal((200, 4))
    matrix[200:, 16:20] = rng.standard_normal((200, 4))
    np.save(tmp_path / "a.npy", matrix)
    jsonl(tmp_path / "a.jsonl", *corpus(400))
    layout = Layout(shorten=Shorten("pca", 8))
    done = ingest(tmp_path / "a.npy", to=to, collection="c", layout=layout, batch=50)
    assert (done.new, done.changed, done.layout) == (400, 0, layout)
    with store.connect(to) as place:
        found = place.open("c")
        assert found.count() == 400
        assert found.manifest.reduction is not None
        assert found.manifest.reduction.kept is not None
        assert found.manifest.reduction.kept > 0.999
    assert ingest(tmp_path / "a.npy", to=to, collection="c").written == 0


def test_the_sample_for_a_pca_is_embedded_once(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecbridge.ingestion.loading._SAMPLE_ROWS", 40)
    embedder = Counting(64)
    source = jsonl(tmp_path / "a.jsonl", *corpus(200))
    layout = Layout(shorten=Shorten("pca", 16))
    done = ingest(source, to=to, collection="c", embedder=embedder, layout=layout, batch=20)
    assert done.new == 200
    assert sorted(embedder.texts) == sorted(row["text"] for row in corpus(200))
    # a batch that tells the dimension, what the sample needs beside it, and the rest
    numbers = [int(text.split()[-1]) for text in embedder.texts]
    assert numbers[:20] == list(range(20))
    assert numbers[20:56] == list(range(20, 200, 5))


def test_a_batch_ends_where_its_texts_get_long(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecbridge.ingestion.flow._CHARS", 1000)
    sizes: list[int] = []

    class Sizes(Counting):
        def embed(self, texts: Sequence[str]) -> Any:
            sizes.append(len(texts))
            return super().embed(texts)

    rows = [{"id": str(n), "text": "word " * 100} for n in range(6)]
    ingest(jsonl(tmp_path / "a.jsonl", *rows), to=to, collection="c", embedder=Sizes(8))
    assert sizes == [2, 2, 2]


def test_an_embedder_made_by_ingest_is_closed_and_one_that_was_given_is_not(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = jsonl(tmp_path / "a.jsonl", *corpus(3))
    given, made = Counting(8), Counting(8)
    monkeypatch.setattr("vecbridge.ingestion.making.embedders.load", lambda spec: made)
    ingest(source, to=to, collection="c", embedder=given)
    ingest(source, to=to, collection="c", embedder="hashing:8")
    assert (given.closed, made.closed) == (False, True)


def test_progress_runs_forward_to_the_end_of_every_stage(tmp_path: Path, to: str) -> None:
    rows = corpus(1500)
    source = jsonl(tmp_path / "a.jsonl", *rows)
    for run in range(3):
        if run == 2:
            # the one changed record waits for its batch while all others pass by
            rows[100]["text"] = "changed"
            jsonl(source, *rows)
        heard: dict[str, list[tuple[int, int | None]]] = {}

        def progress(stage: str, done: int, total: int | None, heard: Any = heard) -> None:
            heard.setdefault(stage, []).append((done, total))

        ingest(source, to=to, collection="c", embedder="hashing:16", batch=300, progress=progress)
        assert heard["read"] == [(1000, None), (1500, 1500)]
        assert heard["evaluate"] == [(0, 1), (1, 1)]
        if run != 1:
            wanted = 1500 if run == 0 else 1
            assert heard["write"][-1] == heard["embed"][-1] == (wanted, wanted)
        for steps in heard.values():
            assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert ("embed" in heard) == ("write" in heard) == (run != 1)


def test_parquet_without_its_package_names_the_extra(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        MissingExtra, match=r"Parquet needs the package pyarrow; .*pip install 'vecbridge\[parquet\]'"
    ):
        ingest(tmp_path / "a.parquet", to=to, collection="c")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_stays_small_however_large_the_source(tmp_path: Path) -> None:
    code = """
import json, re, sys
from pathlib import Path
from vecbridge.ingestion import ingest
folder, n = Path(sys.argv[1]), int(sys.argv[2])
with (folder / "a.jsonl").open("w") as file:
    file.writelines(json.dumps({"id": n, "text": f"record number {n} " * 9}) + chr(10) for n in range(n))
to = f"flat:{folder / 'store'}"
ingest(folder / "a.jsonl", to=to, collection="c", embedder="hashing:3584", evaluate=False)
# not getrusage, whose figure begins with this process's memory at the time of the fork
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""

    def megabytes(n: int) -> int:
        folder = tmp_path / str(n)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder), str(n)], capture_output=True, check=True
        )
        return int(done.stdout)

    # 10,000 x 3584 x 4 bytes are 143 MB
    small, large = megabytes(2_000), megabytes(10_000)
    assert large < 400
    assert large < small + 40


def _matrix(folder: Path, kind: str, matrix: NDArray[np.float32]) -> Path:
    """Records "0", "1", … with the rows of a matrix, as Parquet or as .npy with a sidecar."""
    if kind == "npy":
        (folder / "m.jsonl").write_text("".join(f'{{"id": "{n}"}}\n' for n in range(len(matrix))))
        np.save(folder / "m.npy", matrix)
        return folder / "m.npy"
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    columns = {"id": [str(n) for n in range(len(matrix))], "vector": list(matrix)}
    parquet.write_table(pyarrow.table(columns), folder / "m.parquet")
    return folder / "m.parquet"


@pytest.mark.parametrize("kind", ["parquet", "npy"])
@pytest.mark.parametrize(("bad", "error"), [(np.nan, SourceError), (0.0, VectorError), (1e30, VectorError)])
def test_nothing_stays_of_a_new_collection_where_the_last_vector_is_of_no_use(
    tmp_path: Path, to: str, kind: str, bad: float, error: type[Exception]
) -> None:
    matrix = np.random.default_rng(0).standard_normal((700, 4)).astype(np.float32)
    matrix[-1] = bad
    source = _matrix(tmp_path, kind, matrix)
    with pytest.raises(error, match=r"row 700: |m\.jsonl:700: "):
        ingest(source, to=to, collection="c", batch=100)
    with store.connect(to) as place:
        assert place.collections() == []


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_vectors_of_no_use_are_rejected_once_each_and_the_others_stored(
    tmp_path: Path, to: str, kind: str
) -> None:
    matrix = np.random.default_rng(0).standard_normal((700, 4)).astype(np.float32)
    matrix[[0, 300]] = np.nan
    matrix[[5, 699]] = 0
    source = _matrix(tmp_path, kind, matrix)
    first = ingest(source, to=to, collection="c", batch=100, max_rejects=4, evaluate=False)
    assert (first.read, first.new, first.rejected) == (696, 696, 4)
    again = ingest(source, to=to, collection="c", batch=100, max_rejects=4, evaluate=False)
    assert (again.read, again.unchanged, again.new, again.rejected) == (696, 696, 0, 4)
    with store.connect(to) as place:
        found = place.open("c").get(str(n) for n in range(700))
        kept = [n for n in range(700) if n not in (0, 5, 300, 699)]
        assert found.ids == [str(n) for n in kept]
        assert np.array_equal(found.vectors, matrix[kept])
    with pytest.raises(TooManyRejects, match=r"4 rejects, where 3"):
        ingest(source, to=to, collection="d", batch=100, max_rejects=3)
    with store.connect(to) as place:
        assert place.collections() == ["c"]


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_a_bad_vector_changes_nothing_of_a_collection_that_is_there(
    tmp_path: Path, to: str, kind: str
) -> None:
    matrix = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    ingest(_matrix(tmp_path, kind, matrix), to=to, collection="c", evaluate=False)
    changed = matrix + 1
    changed[-1] = np.nan
    with pytest.raises(SourceError, match=r"row 300: "):
        ingest(_matrix(tmp_path, kind, changed), to=to, collection="c", evaluate=False)
    with store.connect(to) as place:
        assert np.array_equal(place.open("c").get(str(n) for n in range(300)).vectors, matrix)


def test_digests_are_those_of_earlier_versions() -> None:
    vector = np.arange(6, dtype=np.float32)
    record = Record("a", "t\u00e9xt", {"b": 1, "a": [True, None]}, Origin("f"), vector)
    text = json.dumps(["m", record.text, json.dumps(record.metadata, sort_keys=True, separators=(",", ":"))])
    whole = blake2b(text.encode() + b"\n" + vector.astype("<f4").tobytes(), digest_size=16).digest()
    assert digest(record, "m", "", b"mark", embedded=False) == whole + b"mark"
    strided = Record("a", record.text, record.metadata, Origin("f"), np.repeat(vector, 2)[::2])
    assert digest(strided, "m", "", b"mark", embedded=False) == whole + b"mark"
