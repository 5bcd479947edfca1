"""What was embedded is found again, exactly, after any crash; and a broken cache stops nobody."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecbridge import cache
from vecbridge.cache import Cache
from vecbridge.embedders import Embedded, Embedder, Measured, Service, Usage
from vecbridge.embedders.cached import Cached
from vecbridge.errors import EmbedderError, InputError

if TYPE_CHECKING:
    from vecbridge.types import Floats


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "er" / "cache.sqlite"


def vectors_of(texts: Sequence[str], dim: int = 8) -> Floats:
    rows = [np.random.default_rng(list(text.encode())).standard_normal(dim) for text in texts]
    return np.array(rows, dtype=np.float32).reshape(len(rows), dim)


def keys(texts: Sequence[str]) -> list[bytes]:
    return [blake2b(text.encode(), digest_size=20).digest() for text in texts]


def put(store: Cache, texts: Sequence[str], vectors: Floats) -> None:
    store.put({key: row.tobytes() for key, row in zip(keys(texts), vectors, strict=True)})


def get(store: Cache, texts: Sequence[str]) -> dict[int, Floats]:
    """Vectors that are there, by the position of their text."""
    known = keys(texts)
    found = store.get(known)
    return {
        place: np.frombuffer(found[key], dtype=np.float32) for place, key in enumerate(known) if key in found
    }


class Model:
    """A service whose vectors follow from the text; refuses texts with "bad" in them."""

    model, dim, nested = "m", None, ()
    address, concurrency, items, chars = "here", 2, 3, 1000
    document_prefix, max_tokens, tokenizer, truncates = "passage: ", None, None, False

    def __init__(self, dim: int = 8) -> None:
        self.length = dim
        self.asked: list[list[str]] = []
        self.closed = 0

    def embed(self, texts: Sequence[str]) -> Floats:
        return self.request(texts).vectors

    def embed_query(self, text: str) -> Floats:
        return vectors_of([f"query: {text}"], self.length)[0]

    def request(self, texts: Sequence[str]) -> Embedded:
        self.asked.append(list(texts))
        good = [text for text in texts if "bad" not in text]
        refused = {
            place: EmbedderError(f"too long: {text}") for place, text in enumerate(texts) if "bad" in text
        }
        return Embedded(vectors_of(good, self.length), refused)

    def usage(self) -> Usage:
        return Usage(texts=sum(map(len, self.asked)), requests=len(self.asked))

    def close(self) -> None:
        self.closed += 1


def sound(path: Path) -> bool:
    database = sqlite3.connect(path)
    try:
        return bool(database.execute("PRAGMA integrity_check").fetchall() == [("ok",)])
    finally:
        database.close()


# --- what goes in comes out


def test_vectors_come_back_bit_by_bit_after_the_file_was_closed(path: Path) -> None:
    rows = np.array([[-0.0, 1e-45, 3.4e38], [1 / 3, -1e-38, 0.0]], dtype=np.float32)
    first = Cache(path)
    put(first, ["one", "two"], rows)
    first.close()
    second = Cache(path)
    found = get(second, ["two", "three", "one", "two"])
    assert sorted(found) == [0, 2, 3]
    assert found[2].tobytes() == rows[0].tobytes()
    assert found[0].tobytes() == found[3].tobytes() == rows[1].tobytes()
    second.close()
    second.close()
    assert get(second, ["one"]) == {}
    assert second.problem is None


def test_a_value_that_the_disk_changed_is_not_given_back_and_can_be_put_again(path: Path) -> None:
    store = Cache(path)
    put(store, ["a", "b", "c"], vectors_of(["a", "b", "c"]))
    store.close()
    database = sqlite3.connect(path)
    database.execute("UPDATE contents SET value = zeroblob(32) WHERE id = 1")
    database.execute("UPDATE contents SET value = x'' WHERE id = 2")
    database.commit()
    database.close()
    store = Cache(path)
    assert list(get(store, ["a", "b", "c"])) == [2]
    put(store, ["a", "b"], vectors_of(["a", "b"]))
    assert get(store, ["a"])[0].tobytes() == vectors_of(["a"]).tobytes()
    assert sorted(get(store, ["a", "b", "c"])) == [0, 1, 2]
    assert store.problem is None
    store.close()


def test_values_that_changed_their_places_are_not_given_back(path: Path) -> None:
    store = Cache(path)
    put(store, ["a", "b"], vectors_of(["a", "b"]))
    store.close()
    database = sqlite3.connect(path)
    database.execute("UPDATE entries SET id = 3 - id")
    database.commit()
    database.close()
    store = Cache(path)
    assert get(store, ["a", "b"]) == {}
    store.close()


def test_the_file_is_its_owners_and_holds_no_texts_that_were_embedded(path: Path) -> None:
    old = os.umask(0)
    try:
        both = Cached(Model(), Cache(path))
        both.embed(["confidential words"])
        there = list(path.parent.iterdir())
        assert len(there) >= 3  # with its log
        for file in there:
            assert file.stat().st_mode & 0o777 == 0o600
            assert b"confidential" not in file.read_bytes()
        assert path.parent.stat().st_mode & 0o777 == 0o700
        both.close()
    finally:
        os.umask(old)


def test_without_a_path_it_lies_where_caches_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    with_xdg = Cache()
    assert with_xdg.path == tmp_path / "xdg" / "vecbridge" / "cache.sqlite"
    with_xdg.close()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/does/not/count")
    without = Cache()
    assert without.path == tmp_path / "home" / ".cache" / "vecbridge" / "cache.sqlite"
    assert without.problem is None
    without.close()


# --- around a service


def test_it_looks_like_the_service_it_stands_before(path: Path) -> None:
    model = Model()
    both = Cached(model, Cache(path))
    assert isinstance(both, Service)
    assert isinstance(both, Measured)
    assert (both.max_tokens, both.tokenizer, both.truncates) == (None, None, False)
    assert (both.model, both.address, both.items, both.chars, both.concurrency) == ("m", "here", 3, 1000, 2)
    assert np.array_equal(both.embed_query("q"), vectors_of(["query: q"])[0])
    assert np.array_equal(both.embed_query("q"), vectors_of(["query: q"])[0])
    model.max_tokens = 512  # type: ignore[attr-defined]  # as a service that knows it
    assert both.max_tokens == 512
    embedder: Embedder = both
    embedder.close()
    assert model.closed == 1


def test_what_is_there_costs_no_request(path: Path) -> None:
    texts = [f"text {number}" for number in range(7)]
    first = Cached(Model(), Cache(path))
    expected = first.embed(texts)
    assert first.usage() == Usage(texts=7, requests=3)
    first.close()
    model = Model()
    second = Cached(model, Cache(path))
    assert second.dim is None
    assert np.array_equal(second.embed(texts), expected)
    assert model.asked == []
    assert second.usage() == Usage(cached=7)
    assert second.dim == 8
    assert np.array_equal(second.request(["new", *texts[:2]]).vectors[1:], expected[:2])
    assert model.asked == [["new"]]
    second.close()


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=12),
    st.sets(st.sampled_from("abcdef")),
)
def test_hits_misses_and_refusals_keep_their_places(drawn: list[tuple[str, bool]], known: set[str]) -> None:
    texts = [f"{letter}{' bad' * bad}" for letter, bad in drawn]
    with TemporaryDirectory() as folder:
        model = Model()
        both = Cached(model, Cache(Path(folder) / "c"))
        if known:
            both.request(sorted(known))
        model.asked.clear()
        answer = both.request(texts)
        assert sorted(answer.refused) == [place for place, (_, bad) in enumerate(drawn) if bad]
        for place, error in answer.refused.items():
            assert str(error) == f"too long: {texts[place]}"
        good = [text for text in texts if "bad" not in text]
        assert answer.vectors.shape[0] == len(good)
        if good:
            assert np.array_equal(answer.vectors, vectors_of(good))
        assert [text for asked in model.asked for text in asked] == [t for t in texts if t not in known]
        both.close()


def test_a_refused_text_is_asked_for_again(path: Path) -> None:
    model = Model()
    both = Cached(model, Cache(path))
    for _ in range(2):
        assert list(both.request(["bad"]).refused) == [0]
    assert model.asked == [["bad"], ["bad"]]
    with pytest.raises(EmbedderError, match="too long: bad"):
        both.embed(["good", "bad"])
    with pytest.raises(InputError, match="white space at position 1"):
        both.request(["good", " "])
    both.close()


def test_a_vector_belongs_to_its_service_model_prefix_and_text(path: Path) -> None:
    model = Model()
    both = Cached(model, Cache(path))
    both.request(["text"])
    for address, name, prefix, text in (
        ("x", "m", "passage: ", "text"),
        ("here", "x", "passage: ", "text"),
        ("herem", "", "passage: ", "text"),
        ("here", "m", "search_document: ", "text"),
        ("here", "m", "passage: ", "tex"),
        ("here", "m", "passage: ", "text "),
    ):
        model.asked.clear()
        model.address, model.model, model.document_prefix = address, name, prefix
        both.request([text])
        assert model.asked == [[text]]
    model.asked.clear()
    model.address, model.model, model.document_prefix = "here", "m", "passage: "
    both.request(["text"])
    assert model.asked == []
    both.close()


def test_a_model_that_changed_its_length_is_asked_for_everything(path: Path) -> None:
    first = Cached(Model(dim=8), Cache(path))
    first.request(["a", "b"])
    first.close()
    model = Model(dim=5)
    second = Cached(model, Cache(path))
    texts = ["a", "new", "b"]
    assert np.array_equal(second.request(texts).vectors, vectors_of(texts, 5))
    assert model.asked == [["new"], ["a", "b"]]
    assert second.usage().cached == 0
    assert np.array_equal(second.request(texts).vectors, vectors_of(texts, 5))
    assert len(model.asked) == 2
    second.close()


# --- several at once, and crashes

WRITER = """
import sys
from hashlib import blake2b
import numpy as np
from vecbridge.cache import Cache
store = Cache(sys.argv[1], limit="64MB")
for number in range(int(sys.argv[3])):
    texts = [f"{sys.argv[2]} {number} {row}" for row in range(16)]
    value = np.full(512, number, dtype=np.float32).tobytes()
    store.put({blake2b(text.encode(), digest_size=20).digest(): value for text in texts})
    assert store.problem is None, store.problem
    print(number, flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def assert_there(path: Path, name: str, last: int) -> None:
    store = Cache(path)
    for number in range(last + 1):
        texts = [f"{name} {number} {row}" for row in range(16)]
        found = get(store, texts)
        assert len(found) == 16, (name, number)
        assert all((row == number).all() for row in found.values())
    assert store.problem is None
    store.close()


def test_what_was_put_survives_kill_9_and_the_file_stays_sound(path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)  # noqa: T201 - shown when the test fails
    dice, last = random.Random(seed), {}
    for round_ in range(6):
        process = writer(path, f"round {round_}", 10_000)
        assert process.stdout is not None
        wanted = dice.randrange(1, 25)
        said = -1
        while said < wanted:
            said = int(process.stdout.readline())
        time.sleep(dice.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        rest = [line for line in process.stdout.read().split("\n")[:-1] if line]
        last[round_] = int(rest[-1]) if rest else said
        process.wait()
        process.stdout.close()
    for round_, number in last.items():
        assert_there(path, f"round {round_}", number)
    assert sound(path)


def test_several_processes_and_threads_write_one_file(path: Path) -> None:
    processes = [writer(path, name, 12) for name in ("x", "y", "z")]
    store, failures = Cache(path), []

    def work(name: str) -> None:
        for number in range(12):
            texts = [f"{name} {number} {row}" for row in range(16)]
            put(store, texts, np.full((16, 512), number, dtype=np.float32))
            if len(get(store, texts)) != 16:
                failures.append(texts)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("p", "q", "r")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert failures == []
    store.close()
    for name in "xyzpqr":
        assert_there(path, name, 11)
    assert sound(path)


# --- size


def fill(store: Cache, numbers: range, dim: int = 1024, rows: int = 32) -> None:
    for number in numbers:
        texts = [f"{number} {row}" for row in range(rows)]
        put(store, texts, np.full((rows, dim), number, dtype=np.float32))


@pytest.mark.parametrize("dim", [64, 384, 1024, 3584])
def test_the_file_stays_within_its_limit_and_keeps_what_came_last(path: Path, dim: int) -> None:
    limit = 4_000_000
    store = Cache(path, limit=limit)
    rows = 32 * 1024 // dim
    each = rows * dim * 4
    count = 4 * limit // each
    biggest = 0
    for number in range(count):
        fill(store, range(number, number + 1), dim, rows)
        biggest = max(biggest, path.stat().st_size)
    assert store.problem is None
    store.close()
    assert biggest <= limit * 1.05
    assert path.stat().st_size >= limit * 0.6
    again = Cache(path, limit=limit)
    kept = [bool(get(again, [f"{number} 0"])) for number in range(count)]
    assert kept[-1]
    assert not kept[0]
    assert kept == sorted(kept)  # the oldest left first
    assert sum(kept) * each >= limit * 0.5
    again.close()


def test_what_is_used_outlives_what_is_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(cache.time, "time", lambda: now)
    store = Cache(path, limit="4MB")
    fill(store, range(10))
    for number in range(10, 80):
        now += 3600
        assert len(get(store, [f"3 {row}" for row in range(32)])) == 32
        fill(store, range(number, number + 1))
    assert get(store, ["4 0"]) == {}
    store.close()


def test_a_smaller_limit_shrinks_the_file_bit_by_bit(path: Path) -> None:
    store = Cache(path, limit="40MB")
    fill(store, range(200))
    store.close()
    assert path.stat().st_size > 20_000_000
    small = Cache(path, limit="2MB")
    fill(small, range(1000, 1030))
    small.close()
    assert path.stat().st_size <= 2_100_000
    assert sound(path)


def test_a_put_beyond_the_limit_is_left_out(path: Path) -> None:
    store = Cache(path, limit="1MiB")
    fill(store, range(1))
    fill(store, range(1, 2), dim=65_536)
    assert get(store, ["1 0"]) == {}
    assert len(get(store, ["0 0"])) == 1
    assert store.problem is None
    store.close()


@pytest.mark.parametrize(
    ("limit", "said"),
    [("much", "expected the limit of the cache in bytes or as text"), (1000, "at least 1,048,576")],
)
def test_a_limit_that_is_none_is_refused(path: Path, limit: int | str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Cache(path, limit=limit)


# --- files that are not as they should be


def test_a_file_that_is_no_cache_is_left_as_it_is(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    database = sqlite3.connect(foreign)
    database.execute("CREATE TABLE mine (x)")
    database.close()
    text = tmp_path / "notes.txt"
    text.write_text("not to be lost")
    for file in (foreign, text):
        before = file.read_bytes()
        with pytest.raises(InputError, match="is not a cache of vecbridge's and was left as it is"):
            Cache(file)
        assert file.read_bytes() == before
    with pytest.raises(InputError, match="is not a cache"):
        Cache(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["foreign.sqlite", "notes.txt"]


def test_a_broken_default_cache_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "vecbridge" / "cache.sqlite"
    place.parent.mkdir()
    place.write_bytes(b"\x00" * 5000)
    store = Cache()
    assert "set aside as" in str(store.problem)
    assert place.with_name("cache.sqlite.damaged").read_bytes() == b"\x00" * 5000
    put(store, ["a"], vectors_of(["a"]))
    assert len(get(store, ["a"])) == 1
    store.close()


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * (path.stat().st_size - 100))


def test_a_cache_that_was_damaged_is_set_aside_and_the_work_goes_on(path: Path) -> None:
    store = Cache(path)
    fill(store, range(3))
    store.close()
    damage(path)
    model = Model()
    store = Cache(path)
    both = Cached(model, store)
    for _ in range(2):
        assert np.array_equal(both.request(["a", "b"]).vectors, vectors_of(["a", "b"]))
    assert "set aside as" in str(store.problem)
    assert len(model.asked) == 1
    both.close()
    assert sound(path)


def test_a_damaged_cache_is_not_moved_under_another_process(path: Path) -> None:
    store = Cache(path)
    fill(store, range(3))
    store.close()
    user = Cache(path)
    damage(path)
    second = Cache(path)
    put(second, ["a"], vectors_of(["a"]))
    assert get(second, ["a"]) == {}
    assert "in use" in str(second.problem)
    assert not path.with_name(f"{path.name}.damaged").exists()
    user.close()
    second.close()


def test_a_cache_of_another_version_is_replaced(path: Path) -> None:
    store = Cache(path)
    fill(store, range(1))
    store.close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    store = Cache(path)
    assert store.problem is None
    assert get(store, ["0 0"]) == {}
    fill(store, range(1))
    assert len(get(store, ["0 0"])) == 1
    store.close()


FULL = """
import resource, sys
from vecbridge.cache import Cache
store = Cache(sys.argv[1])
store.put({b"first": bytes(32)})
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
store.put({key: bytes(400_000) for key in (b"a", b"b", b"c")})
print(store.problem)
print(len(store.get([b"a"])))
store.close()
"""


def test_a_full_disk_ends_the_cache_and_not_the_run(path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    problem, found = done.stdout.splitlines()
    assert problem.startswith(f"the cache {path} cannot be used (")
    assert problem.endswith("the run goes on without it")
    assert found == "0"
    store = Cache(path)
    assert store.get([b"first"]) == {b"first": bytes(32)}
    store.close()
    assert sound(path)


def test_where_no_folder_can_be_made_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = Cache(tmp_path / "file" / "below" / "cache.sqlite")
    assert "the run goes on without it" in str(store.problem)
    put(store, ["a"], vectors_of(["a"]))
    assert get(store, ["a"]) == {}
    store.close()


def test_a_forked_child_leaves_its_parents_connection_alone(path: Path) -> None:
    store = Cache(path)
    fill(store, range(1))
    child = os.fork()
    if child == 0:
        os._exit(len(get(store, ["0 0"])))
    assert os.waitpid(child, 0)[1] == 0
    assert len(get(store, ["0 0"])) == 1
    store.close()
