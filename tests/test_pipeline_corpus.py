"""A corpus that changes from night to night: what is new, changed, shorter, gone, or unusable."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecbridge import store
from vecbridge.collection import Collection
from vecbridge.embedders import Embedded, Service, Usage
from vecbridge.errors import (
    DimensionMismatch,
    EmbedderError,
    InputError,
    ModelMismatch,
    SourceError,
    TooManyRejects,
    VectorError,
)
from vecbridge.ingestion import Summary, ingest, load
from vecbridge.manifest import Chunking

PARAGRAPH = "Alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu. "


class Model:
    """A service in this process: hashing, in many requests at once, that refuses some texts."""

    model = "service-16"
    dim: int | None = None
    nested: tuple[int, ...] | None = ()
    address = "here"
    items = 4
    chars = 100_000

    def __init__(self, concurrency: int = 1, *, fail_after: int | None = None) -> None:
        self.concurrency = concurrency
        self.texts: list[str] = []
        self.requests = 0
        self._fail_after = fail_after
        self._inner = load("hashing:16")
        self._lock = threading.Lock()

    def request(self, texts: Sequence[str]) -> Embedded:
        with self._lock:
            self.requests += 1
            if self._fail_after is not None and self.requests > self._fail_after:
                raise EmbedderError("the model is gone")
            self.texts += texts
        refused = {
            row: EmbedderError("expected a shorter text")
            for row, text in enumerate(texts)
            if "refuse" in text
        }
        kept = [text for row, text in enumerate(texts) if row not in refused]
        return Embedded(self._inner.embed(kept) if kept else np.empty((0, 16), np.float32), refused)

    def embed(self, texts: Sequence[str]) -> Any:
        return self.request(texts).vectors

    def embed_query(self, text: str) -> Any:
        return self._inner.embed_query(text)

    def usage(self) -> Usage:
        return Usage(texts=len(self.texts), requests=self.requests, tokens=3 * len(self.texts))

    def close(self) -> None:
        raise AssertionError("an embedder that was given stays open")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder of three documents."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "long.txt").write_text("\n\n".join(f"{n}. {PARAGRAPH * 3}" for n in range(40)))
    (folder / "short.md").write_text("# Short\n\nA short text.\n")
    (folder / "other.md").write_text("# Other\n\nAnother text.\n")
    return folder


@pytest.fixture
def to(tmp_path: Path) -> str:
    return f"flat:{tmp_path / 'store'}"


def night(source: Path | str, to: str, **options: Any) -> Summary:
    """One run as a job would do it."""
    given = {"embedder": "hashing:64", "chunk_tokens": 100, "evaluate": False, "max_rejects": 10}
    return ingest(source, to=to, collection="c", **{**given, **options})


def ids(to: str, name: str = "c") -> list[str]:
    with store.connect(to) as place:
        return sorted(key for part in place.open(name).inventory() for key, _ in part)


def test_chunks_know_their_document_their_position_and_their_heading(docs: Path, to: str) -> None:
    done = night(docs, to)
    assert done.documents == 3
    assert done.read == done.new == len(ids(to)) > 15
    with store.connect(to) as place:
        found = place.open("c")
        batch = found.get(["short.md#0", "long.txt#3"])
        assert batch.metadata == [
            {"source": "short.md", "position": 0, "heading": "Short"},
            {"source": "long.txt", "position": 3},
        ]
        assert found.manifest.chunking == done.chunking == Chunking(100, 0, "cl100k_base")
    assert f"3 documents read, {done.read} chunks, {done.read} written to c at flat:" in str(done)


def test_records_with_vectors_are_not_called_chunks(tmp_path: Path, to: str) -> None:
    source = tmp_path / "v.jsonl"
    source.write_text('{"id": "z", "vector": [0, 0]}\n{"id": "a", "vector": [1, 2]}\n')
    done = ingest(str(source), to=to, collection="c", evaluate=False, max_rejects=1)
    assert (done.read, done.rejected, done.chunking) == (1, 1, None)
    assert str(done).startswith("1 records read, 1 written")


def test_a_document_that_became_shorter_loses_its_last_chunks_and_no_others(docs: Path, to: str) -> None:
    before = night(docs, to)
    long = docs / "long.txt"
    paragraphs = long.read_text().split("\n\n")
    long.write_text("\n\n".join(paragraphs[:20]))
    done = night(docs, to)
    left = ids(to)
    assert done.removed == before.read - len(left) > 5
    assert done.unchanged + done.new + done.changed == len(left)
    longest = [key for key in left if key.startswith("long.txt#")]
    assert sorted(longest) == sorted(f"long.txt#{n}" for n in range(len(longest)))
    assert {"short.md#0", "other.md#0"} <= set(left)
    assert night(docs, to).removed == 0


def test_a_document_that_became_much_shorter_loses_more_chunks_than_one_look_finds(
    docs: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecbridge.ingestion.survey.GROUP", 3)
    night(docs, to)
    (docs / "long.txt").write_text("Nothing is left.")
    assert night(docs, to).removed > 9
    assert ids(to) == ["long.txt#0", "other.md#0", "short.md#0"]


def test_chunks_of_another_source_are_not_taken_for_surplus_ones(docs: Path, to: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": "short.md#1", "text": "a row with such an id"}))
    night(rows, to)
    night(docs, to)
    assert "short.md#1" in ids(to)


def test_what_has_left_the_source_stays_until_it_is_pruned(docs: Path, to: str) -> None:
    before = night(docs, to)
    (docs / "short.md").unlink()
    assert night(docs, to).removed == 0
    assert "short.md#0" in ids(to)
    done = night(docs, to, prune=True)
    assert done.removed == 1
    assert len(ids(to)) == before.read - 1
    assert "1 removed" in str(done)
    assert night(docs, to, prune=True).removed == 0


def test_pruning_leaves_the_records_of_other_sources_and_of_nobody(
    docs: Path, to: str, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": "row", "text": "from elsewhere"}))
    night(rows, to)
    night(docs, to)
    with store.connect(to) as place:
        place.open("c").upsert(["hand"], load("hashing:64").embed(["by hand"]))
    (docs / "other.md").unlink()
    assert night(docs, to, prune=True).removed == 1
    assert {"row", "hand", "short.md#0"} <= set(ids(to))


def test_a_source_is_known_by_its_name_wherever_it_lies(docs: Path, to: str, tmp_path: Path) -> None:
    night(docs, to, source_name="handbook")
    moved = docs.rename(tmp_path / "moved")
    (moved / "other.md").unlink()
    assert night(moved, to, prune=True).removed == 0
    assert night(moved, to, prune=True, source_name="handbook").removed == 1


def test_pruning_most_of_a_source_is_refused_before_anything_is_changed(docs: Path, to: str) -> None:
    before = night(docs, to).read
    (docs / "long.txt").unlink()
    (docs / "new.md").write_text("# New\n\nA new text.")
    with pytest.raises(InputError, match=rf"would remove {before - 2} of the {before} records .*--yes"):
        night(docs, to, prune=True)
    assert len(ids(to)) == before
    assert "new.md#0" not in ids(to)
    assert night(docs, to, prune=True, prune_limit=1.0).removed == before - 2
    assert ids(to) == ["new.md#0", "other.md#0", "short.md#0"]


def test_nothing_is_pruned_while_something_cannot_be_read(docs: Path, to: str) -> None:
    before = night(docs, to).read
    (docs / "short.md").write_bytes(b"\x00\xff broken tonight")
    (docs / "other.md").unlink()
    done = night(docs, to, prune=True)
    assert (done.removed, done.rejected) == (0, 1)
    assert len(ids(to)) == before
    assert "nothing was pruned" in done.notes[0]


def test_another_size_of_chunks_is_refused_with_the_way_to_start_afresh(docs: Path, to: str) -> None:
    night(docs, to)
    with pytest.raises(
        InputError, match=r"100 tokens by cl100k_base .* got 200 tokens .*vecbridge drop flat:.* c --yes"
    ):
        night(docs, to, chunk_tokens=200)
    with pytest.raises(InputError, match=r"overlap of 0, rows left whole, got .* overlap of 10"):
        night(docs, to, overlap=10)
    with pytest.raises(InputError, match=r"rows left whole, got .* rows cut too"):
        night(docs, to, chunk_rows=True)
    # what is not said is as it was
    assert night(docs, to, chunk_tokens=None).written == 0


def test_another_model_is_refused_with_the_way_to_start_afresh(docs: Path, to: str) -> None:
    night(docs, to)
    with pytest.raises(ModelMismatch, match=r"start afresh: vecbridge drop flat:.* c --yes"):
        night(docs, to, embedder="hashing:32")


def test_long_texts_of_rows_are_cut_where_that_is_wanted(to: str, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    rows = [{"id": "a", "text": PARAGRAPH * 20, "year": 7}, {"id": "b", "text": "short"}]
    source.write_text("\n".join(map(json.dumps, rows)))
    done = night(source, to, chunk_rows=True)
    assert (done.documents, done.read) == (2, len(ids(to)))
    assert "b#0" in ids(to)
    with store.connect(to) as place:
        assert place.open("c").get(["a#1"]).metadata == [{"position": 1, "year": 7}]
    # the next run remembers
    assert night(source, to).written == 0
    rows[0]["text"] = "short now"
    source.write_text("\n".join(map(json.dumps, rows)))
    assert night(source, to).removed == done.read - 2
    assert ids(to) == ["a#0", "b#0"]
    source.write_text("\n".join(map(json.dumps, [rows[0], rows[0]])))
    with pytest.raises(
        SourceError, match=r"rows\.jsonl:2: expected an id of its own, got 'a', which .*:1 has"
    ):
        night(source, to)


def test_rejects_are_counted_listed_and_tried_again(docs: Path, to: str, tmp_path: Path) -> None:
    listed = tmp_path / "rejects.jsonl"
    (docs / "empty.md").write_text("")
    (docs / "refused.md").write_text("please refuse this text")
    model = Model()
    done = night(docs, to, embedder=model, rejects=listed)
    assert (done.rejected, done.rejects) == (2, str(listed))
    assert done.new == done.read - 1
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["empty.md", "refused.md#0"]
    assert lines[1] == {
        "source": str(docs / "refused.md"),
        "position": "chunk 0",
        "id": "refused.md#0",
        "reason": "expected a shorter text",
    }
    assert "2 rejected" in str(done)
    (docs / "empty.md").unlink()
    (docs / "refused.md").write_text("please take this text")
    again = night(docs, to, embedder=model, rejects=listed)
    assert (again.new, again.rejected, again.rejects) == (1, 0, None)
    assert not listed.exists()


def test_a_file_of_something_else_is_not_overwritten_by_rejects(docs: Path, to: str, tmp_path: Path) -> None:
    other = tmp_path / "data.jsonl"
    other.write_text('{"id": 1}\n')
    with pytest.raises(InputError, match=r"data\.jsonl: expected a new file, .* would be overwritten"):
        night(docs, to, rejects=other)
    assert other.read_text() == '{"id": 1}\n'
    with pytest.raises(InputError, match=r"expected a folder .*nowhere for the rejects, found none"):
        night(docs, to, rejects=tmp_path / "nowhere" / "r.jsonl")


def test_a_device_takes_rejects_and_stays(docs: Path, to: str, tmp_path: Path) -> None:
    device = tmp_path / "null"
    device.symlink_to("/dev/null")
    assert night(docs, to, rejects=device).rejected == 0
    assert device.is_symlink()
    (docs / "empty.md").write_text("")
    assert night(docs, to, rejects=device).rejected == 1
    assert device.is_char_device()


def test_too_many_rejects_stop_a_run_before_anything_is_changed(to: str, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("no json\n" * 4 + '{"id": "a", "text": "good"}\n')
    listed = tmp_path / "rejects.jsonl"
    with pytest.raises(
        TooManyRejects, match=r"stopped: 4 rejects, where 3 are borne with \(--max-rejects\); the"
    ):
        night(source, to, max_rejects=3, rejects=listed)
    assert len(listed.read_text().splitlines()) == 4
    with store.connect(to) as place:
        assert place.collections() == []
    assert night(source, to, max_rejects=4).new == 1
    with pytest.raises(
        InputError, match=r"expected 0 or more rejects to bear with \(--max-rejects\), got -1"
    ):
        night(source, to, max_rejects=-1)


def test_without_patience_the_first_reject_is_an_error(docs: Path, to: str) -> None:
    (docs / "empty.md").write_text("")
    with pytest.raises(SourceError, match=r"empty\.md: expected text, got an empty file"):
        night(docs, to, max_rejects=0)
    (docs / "empty.md").write_text("refuse")
    with pytest.raises(EmbedderError, match=r"empty\.md, chunk 0: expected a shorter text"):
        night(docs, to, max_rejects=0, embedder=Model())


def test_a_source_without_anything_usable_is_an_error(to: str, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("no json\n")
    with pytest.raises(SourceError, match=r"nothing .* can be used; its first reject is .*rows\.jsonl:1: "):
        night(source, to)
    source.write_text('{"text": "refuse"}\n')
    with pytest.raises(
        SourceError, match=r"nothing of the source could be embedded; its first reject .*shorter text"
    ):
        night(source, to, embedder=Model())


def test_the_vectors_around_one_that_cannot_be_stored_are_stored(to: str, tmp_path: Path) -> None:
    matrix = np.random.default_rng(3).standard_normal((50, 8)).astype(np.float32)
    matrix[[0, 20]] = 0
    np.save(tmp_path / "a.npy", matrix)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": f"r{n}"}) + "\n" for n in range(50)))
    done = night(tmp_path / "a.npy", to, embedder=None, chunk_tokens=None)
    assert (done.new, done.rejected, done.usage) == (48, 2, None)
    with store.connect(to) as place:
        batch = place.open("c").get([f"r{n}" for n in range(50)])
    np.testing.assert_array_equal(batch.vectors, np.delete(matrix, [0, 20], axis=0))
    matrix[5] += 1
    np.save(tmp_path / "a.npy", matrix)
    again = night(tmp_path / "a.npy", to, embedder=None, chunk_tokens=None)
    assert (again.changed, again.unchanged, again.rejected) == (1, 47, 2)
    with pytest.raises(VectorError, match=r"a\.jsonl:1: "):
        night(tmp_path / "a.npy", to, embedder=None, chunk_tokens=None, max_rejects=0)


def test_a_document_needs_an_embedder(docs: Path, to: str) -> None:
    with pytest.raises(SourceError, match=r"expected a vector, got text alone; choose an embedder for it"):
        night(docs, to, embedder=None)


def test_vectors_of_another_length_than_the_collections_are_not_written(docs: Path, to: str) -> None:
    night(docs, to, embedder=Model())

    class Longer(Model):
        def request(self, texts: Sequence[str]) -> Embedded:
            return Embedded(load("hashing:32").embed(texts))

    (docs / "new.md").write_text("A new text.")
    with pytest.raises(DimensionMismatch, match=r"16 dimensions.*got.*32|expected .*16.*32"):
        night(docs, to, embedder=Longer(), cache=False)
    assert "new.md#0" not in ids(to)


@pytest.mark.parametrize("concurrency", [1, 5])
def test_what_came_before_a_model_failed_is_stored(docs: Path, to: str, concurrency: int) -> None:
    with pytest.raises(EmbedderError, match="the model is gone"):
        night(docs, to, embedder=Model(concurrency, fail_after=3), cache=False)
    assert len(ids(to)) == 12
    model = Model(concurrency)
    done = night(docs, to, embedder=model, cache=False)
    assert done.unchanged == 12
    assert len(model.texts) == done.new == done.read - 12


def test_a_cache_saves_what_a_store_could_not_take(
    docs: Path, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache.sqlite"

    def broken(*_: object, **__: object) -> Iterator[None]:
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("vecbridge.collection.Collection.upsert", broken)
        with pytest.raises(OSError, match="no room"):
            night(docs, to, embedder=Model(), cache=cache)
    model = Model()
    done = night(docs, to, embedder=model, cache=cache)
    assert done.usage is not None
    assert done.usage.cached >= 4
    assert len(model.texts) == done.usage.texts == done.read - done.usage.cached
    with store.connect(to) as place:
        place.drop("c")
    again = night(docs, to, embedder=Model(), cache=cache)
    assert again.usage == Usage(cached=done.read)


def test_no_thread_goes_on_asking_when_a_write_has_failed(
    docs: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (docs / "long.txt").write_text("\n\n".join(f"{n}. {PARAGRAPH * 3}" for n in range(200)))
    upsert, writes = Collection.upsert, []

    def second(self: Collection, *given: Any, **more: Any) -> int:
        writes.append(given)
        if len(writes) == 2:
            time.sleep(0.3)  # until the thread has asked for as much as may wait
            raise OSError("no room")
        return upsert(self, *given, **more)

    monkeypatch.setattr(Collection, "upsert", second)
    # while the error is looked at, what it passed through is still there
    with pytest.raises(OSError, match="no room") as caught:
        night(docs, to, embedder=Model(), cache=False, batch=4)
    assert [one.name for one in threading.enumerate() if one.name.startswith("vecbridge-embed")] == []
    assert caught.value is not None


def test_what_came_before_too_much_was_refused_is_stored(docs: Path, to: str) -> None:
    (docs / "long.txt").write_text("\n\n".join(f"{n}. {PARAGRAPH * 3}" for n in range(9)))
    (docs / "other.md").write_text("refuse this")
    (docs / "short.md").write_text("refuse that, too")
    with pytest.raises(TooManyRejects, match=r"stopped: 2 rejects, where 1 "):
        night(docs, to, embedder=Model(), cache=False, max_rejects=1)
    assert len(ids(to)) > 0


def test_a_model_in_this_process_is_a_service_if_it_says_so() -> None:
    assert isinstance(Model(), Service)
    assert not isinstance(load("hashing:8"), Service)


def test_many_requests_at_once_store_every_chunk_once(docs: Path, to: str) -> None:
    model = Model(8)
    done = night(docs, to, embedder=model, cache=False)
    assert len(ids(to)) == done.read == len(set(ids(to)))
    assert sorted(model.texts) == sorted(set(model.texts))
    assert done.usage == Usage(texts=done.read, requests=model.requests, tokens=3 * done.read)
    with store.connect(to) as place:
        batch = place.open("c").get(ids(to))
    wanted = load("hashing:16").embed([text or "" for text in batch.documents])
    np.testing.assert_allclose(batch.vectors, wanted, atol=1e-6)


def test_chunk_ids_and_digests_are_the_same_in_every_run(docs: Path, to: str, tmp_path: Path) -> None:
    night(docs, to)
    other = f"flat:{tmp_path / 'other'}"
    night(docs, other)
    with store.connect(to) as one, store.connect(other) as two:
        keys = ids(to)
        assert one.open("c").digests(keys) == two.open("c").digests(keys)
        assert all(len(digest) == 24 for digest in one.open("c").digests(keys).values())


def test_the_same_model_by_another_providers_name_changes_nothing(docs: Path, to: str) -> None:
    one, other = Model(), Model()
    one.model, other.model = "bge-m3", "BAAI/bge-m3"
    first = night(docs, to, embedder=one)
    second = night(docs, to, embedder=other, cache=False)
    assert (second.unchanged, other.requests) == (first.read, 0)
    other.model = "bge-large-en-v1.5"
    with pytest.raises(ModelMismatch, match=r"vectors of bge-m3, got vectors of bge-large-en-v1\.5"):
        night(docs, to, embedder=other)


def test_a_source_under_another_name_is_pointed_out(docs: Path, to: str) -> None:
    first = night(docs, to, source_name="one")
    assert first.notes == ()
    done = night(docs, to, source_name="two")
    assert (done.unchanged, done.removed) == (first.read, 0)
    assert f"{first.read} of the records are there from a source of another name" in done.notes[0]
    assert night(docs, to, source_name="one").notes == ()


def test_standard_input_has_no_name_to_prune_by(to: str) -> None:
    with pytest.raises(InputError, match=r"expected source_name \(--source-name NAME\) beside prune"):
        night("-", to, prune=True)
