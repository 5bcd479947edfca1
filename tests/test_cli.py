"""The command line, run for real on flat storage; a server only where an index is needed."""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from commands import Ran, Run
from hypothesis import given
from hypothesis import strategies as st

import vecbridge
from vecbridge import cli, data
from vecbridge.cli import output
from vecbridge.embedders import Usage
from vecbridge.ingestion import Origin, Reject
from vecbridge.types import Index, Layout

DOCS = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
SECRET = "s3cret"
REFUSING = f"postgresql://user:{SECRET}@127.0.0.1:1/db"
PROGRAM = [sys.executable, "-m", "vecbridge"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line in an empty working directory, on a screen of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VECBRIDGE_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def command(*words: str) -> Ran:
        capsys.readouterr()
        code = cli.run(words)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return command


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Thirty texts, three topics, years from 2000 to 2029."""
    topics = {
        "fruit": "a sweet yellow fruit",
        "vehicle": "a fast wheeled vehicle",
        "bird": "a small singing bird",
    }
    rows = [
        {"id": f"{topic}-{n}", "text": f"{text} number {n}", "topic": topic, "year": 2000 + 3 * n + place}
        for place, (topic, text) in enumerate(topics.items())
        for n in range(10)
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def loaded(run: Run, corpus: str) -> Run:
    """`run` where the collection "things" is in the default place."""
    assert run("ingest", corpus, "-c", "things", "--embedder", "hashing:64", "-q").code == 0
    return run


def ids(ran: Ran) -> list[str]:
    assert ran.code == 0, ran.err
    return [hit["id"] for hit in ran.json["hits"]]


# --- plan --------------------------------------------------------------------------------------------


def test_plan_as_json_is_the_plan(run: Run) -> None:
    ran = run(
        *("plan", "--dim", "3584", "--rows", "1000000", "--on", "pgvector@0.8.5", "--metric", "ip"),
        *("--memory", "64GB", "--disk", "1TB", "--latency", "0.2", "--nested", "1024", "--nested", "512"),
        *("--model", "mine", "--json"),
    )
    wanted = vecbridge.plan(
        3584,
        rows=1_000_000,
        on="pgvector@0.8.5",
        metric="ip",
        memory="64GB",
        disk="1TB",
        latency=0.2,
        nested=[1024, 512],
        model="mine",
    )
    assert ran.code == 0
    assert ran.json == json.loads(json.dumps(wanted.to_dict()))
    assert ran.err == ""


def test_plan_shows_choice_reasons_costs_and_refusals(run: Run) -> None:
    ran = run("plan", "--dim", "3584", "--rows", "1000000")
    text = " ".join(ran.out.split())
    plan = vecbridge.plan(3584, rows=1_000_000)
    assert "3,584 dimensions" in text
    assert "Half-precision HNSW index" in text
    assert "half precision finds the same neighbours" in text
    assert "16.7 GB" in text
    assert "8.2 GB" in text
    assert "stops at 2,000" in text
    assert text.count("these have 3,584") == sum("these have 3,584" in one.reason for one in plan.refused)


def test_plan_compares_stores_and_says_why_here_and_why_not_there(run: Run) -> None:
    words = ("plan", "--dim", "3584", "--on", "pgvector@0.6.2", "--on", "qdrant", "--on", "flat")
    wanted = vecbridge.plan(3584, on=["pgvector@0.6.2", "qdrant", "flat"])
    ran = run(*words, "--json")
    assert ran.code == 0
    assert ran.json == json.loads(json.dumps(wanted.to_dict()))
    assert [one["place"] for one in ran.json["others"]] == ["pgvector 0.6.2", "flat 0.1.0"]
    shown = run(*words)
    assert max(map(len, shown.out.splitlines())) <= 80
    assert "chosen: qdrant 1.19.0" in shown.out
    text = " ".join(shown.out.split())
    assert "65,536 dimensions; these have 3,584" in text
    # the table's columns run into each other, line by line
    assert text.index("Elsewhere") < text.index("pgvector 0.6.2") < text.index("flat 0.1.0")
    assert "halfvec needs" in text
    assert "pgvector 0.7.0" in text


def test_plan_spreads_over_the_nodes_of_a_cluster(run: Run) -> None:
    words = ("plan", "--dim", "1024", "--rows", "20000000", "--on", "qdrant", "--nodes", "4")
    ran = run(*words, "--memory", "80GB", "--json")
    assert ran.json["layout"]["spread"] == {"shards": 8, "replication": 2, "write_consistency": 1}
    assert ran.json["nodes"] == 4
    text = " ".join(run(*words, "--memory", "80GB").out.replace("│", " ").split())
    assert "spread over 4 machines in 8 shards, each kept twice" in text
    assert "Takes, on each of 4 machines" in text
    refused = run("plan", "--dim", "1024", "--on", "pgvector", "--nodes", "4", "--json")
    assert refused.code == 2
    assert "expected qdrant among the backends" in refused.json["error"]["message"]


def test_layouts_refused_for_one_reason_share_a_row(run: Run) -> None:
    ran = run("plan", "--dim", "30000", "--rows", "5000")
    refused = vecbridge.plan(30_000, rows=5_000).refused
    more = [int(number) for number in re.findall(r"… and (\d+) more", ran.out)]
    assert sum(more) == len(refused) - len({one.reason for one in refused}) > 0


@pytest.mark.parametrize(
    "words", [["plan", "--dim", "3584", "--rows", "1000000"], ["--help"], ["ingest", "--help"]]
)
def test_output_fits_80_columns_and_has_no_colours_in_a_pipe(run: Run, words: list[str]) -> None:
    ran = run(*words)
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "\x1b" not in ran.out


def test_planning_loads_neither_numpy_nor_a_driver() -> None:
    code = (
        "import sys; from vecbridge import cli; assert cli.run(['plan', '--dim', '3584']) == 0; "
        "heavy = {'numpy', 'psycopg', 'sklearn', 'httpx', 'qdrant_client'}; "
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_no_layout_within_the_budget_is_the_askers_problem(run: Run) -> None:
    ran = run("plan", "--dim", "3584", "--rows", "1000000", "--disk", "1MB", "--json")
    assert ran.code == 2
    assert ran.json["error"]["type"] == "PlanError"
    assert "the budget is 1.0 MB" in ran.json["error"]["message"]


# --- ingest ------------------------------------------------------------------------------------------


def test_a_second_ingest_writes_nothing_and_says_so(run: Run, corpus: str) -> None:
    words = ("ingest", corpus, "--collection", "things", "--embedder", "hashing:64")
    first, second = run(*words, "--json"), run(*words)
    assert first.code == second.code == 0
    assert first.json["written"] == first.json["new"] == first.json["read"] == 30
    assert first.json["recall"]["recall"] == 1.0
    assert first.json["plan"]["chosen"] == "exact scan of float32 vectors (64 dims)"
    assert "all unchanged; nothing was written" in " ".join(second.out.split())


def test_without_to_collections_lie_in_the_working_directory(loaded: Run, tmp_path: Path) -> None:
    assert (tmp_path / "vecbridge-data").is_dir()
    assert loaded("list", "flat:vecbridge-data").out == "things\n"
    assert loaded("list").out == "things\n"


def test_ingest_shows_plan_and_progress_on_standard_error_alone(run: Run, corpus: str) -> None:
    words = ("ingest", corpus, "-c", "things", "--embedder", "hashing:64", "--json")
    ran = run(*words, "--rows", "5000")
    assert "5,000 vectors of hashing-64" in ran.err
    assert ran.err.index("read: 30 of 30") < ran.err.index("chosen") < ran.err.index("write: 30 of 30")
    assert ran.json["plan"]["rows"] == 5000
    again = run(*words)
    assert "chosen" not in again.err
    assert again.json["plan"] is None
    assert run(*words, "--quiet").err == ""


def test_ingest_takes_vectors_from_the_source(run: Run, tmp_path: Path) -> None:
    rows = [{"key": f"r{n}", "emb": [1.0, n, 0.5]} for n in range(5)]
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("ingest", "v.jsonl", "-c", "v", "--id-field", "key", "--vector-field", "emb", "--metric", "l2")
    ran = run(*words, "--model", "mine", "--no-evaluate", "--json")
    assert ran.code == 0
    assert ran.json["recall"] is None
    assert (ran.json["model"], ran.json["dim"]) == ("mine", 3)
    np.save(tmp_path / "q.npy", np.array([[1.0, 3.2, 0.5]]))
    assert ids(run("search", "v", "--vector", "q.npy", "-k", "2", "--json")) == ["r3", "r4"]


def test_ingest_reads_named_number_columns_and_text_fields_of_csv(run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,body,year\na,red apples,1999\nb,green pears,2001\n")
    words = (
        "ingest",
        "t.csv",
        "-c",
        "t",
        "--text-field",
        "body",
        "--number",
        "year",
        "--embedder",
        "hashing:32",
    )
    assert run(*words).code == 0
    assert ids(run("search", "t", "apples", "--where", '{"year": {"$gt": 2000}}', "--json")) == ["b"]


def test_the_glosses_that_come_along_are_6000_definitions_with_their_licence() -> None:
    with gzip.open(data.GLOSSES, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == len({row["id"] for row in rows}) == 6_000
    assert {frozenset(row) for row in rows} == {
        frozenset({"id", "words", "text", "part_of_speech", "topic", "senses"})
    }
    assert min(len(row["text"]) for row in rows) >= 40
    assert len({row["topic"] for row in rows}) == 45
    assert data.GLOSSES.stat().st_size < 400_000
    licence = data.GLOSSES.with_name("WORDNET-LICENSE.txt").read_text()
    assert "Permission to use, copy, modify and distribute" in licence


def test_demo_glosses_answer_a_question(run: Run) -> None:
    words = (
        "ingest",
        "demo:glosses",
        "-c",
        "g",
        "--embedder",
        "hashing:256",
        "-q",
        "--no-evaluate",
        "--json",
    )
    assert run(*words).json["written"] == 6_000
    found = run("search", "g", "a wheeled vehicle moved by foot pedals", "-k", "1", "--json").json["hits"]
    assert "bicycle" in found[0]["metadata"]["words"]


# --- search ------------------------------------------------------------------------------------------


def test_search_embeds_the_text_as_the_collection_was(loaded: Run) -> None:
    found = ids(loaded("search", "things", "singing birds", "-k", "3", "--json"))
    assert len(found) == 3
    assert all(name.startswith("bird-") for name in found)


def test_search_takes_url_filter_and_exactness(loaded: Run) -> None:
    words = ("search", "flat:./vecbridge-data", "things", "a fruit", "--exact", "-k", "30", "--json")
    ran = loaded(*words, "--where", '{"topic": "bird", "year": {"$gte": 2020}}')
    assert sorted(ids(ran)) == ["bird-6", "bird-7", "bird-8", "bird-9"]
    assert [hit["rank"] for hit in ran.json["hits"]] == [1, 2, 3, 4]
    scores = [hit["score"] for hit in ran.json["hits"]]
    assert scores == sorted(scores, reverse=True)


def test_search_shows_hits_with_text_and_metadata(loaded: Run) -> None:
    ran = loaded("search", "things", "singing bird number 4", "-k", "1")
    assert ran.code == 0
    assert re.search(r"^1 +\d\.\d{3} +bird-4 *$", ran.out, re.MULTILINE)
    assert "a small singing bird number 4" in ran.out
    assert "topic: bird · year: 2014" in ran.out


def test_search_says_that_nothing_matches(loaded: Run) -> None:
    assert (
        loaded("search", "things", "x", "--where", '{"topic": "none"}').out
        == "no record matches the filter\n"
    )


def test_search_does_not_guess_an_embedder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text('{"id": "a", "vector": [1.0, 2.0]}\n')
    for model, advice in (((), "--embedder openai:MODEL"), (("--model", "mine"), "--embedder openai:mine")):
        name = f"v{len(model)}"
        assert run("ingest", "v.jsonl", "-c", name, "-q", *model).code == 0
        ran = run("search", name, "text")
        assert ran.code == 2
        assert advice in ran.err
        assert "--vector FILE.npy" in ran.err


def test_search_refuses_another_models_vectors(loaded: Run) -> None:
    ran = loaded("search", "things", "x", "--embedder", "hashing:65", "--json")
    assert ran.code == 2
    assert ran.json["error"]["type"] == "ModelMismatch"


def test_documents_can_neither_style_nor_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    row = {
        "id": "[bold]id[/bold]\x1b]0;title\x07",
        "text": "[red]red[/red] \x1b[31mred\x1b[0m \x9b31m \u202eback [/] \r\n" + "long " * 500,
        "[i]key": {"nested": ["\x1b[2J", None]},
    }
    (tmp_path / "evil.jsonl").write_text(json.dumps(row) + "\n")
    assert run("ingest", "evil.jsonl", "-c", "evil", "--embedder", "hashing:64").code == 0
    shown, printed = run("search", "evil", "red"), run("search", "evil", "red", "--json")
    assert "[bold]id[/bold]\\x1b]0;title\\x07" in shown.out
    assert "[red]red[/red] \\x1b[31mred\\x1b[0m \\x9b31m \\u202eback [/] long" in " ".join(shown.out.split())
    assert len(shown.out) < 1_000
    assert not CONTROL.search(shown.out + printed.out)
    assert printed.json["hits"][0]["document"] == row["text"]
    assert printed.json["hits"][0]["id"] == row["id"]


@pytest.mark.parametrize("content", [b"", b"no array", b"PK\x03\x04"])
def test_a_vector_file_that_is_none_is_refused(loaded: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "q.npy").write_bytes(content)
    ran = loaded("search", "things", "--vector", "q.npy")
    assert ran.code == 2
    assert "expected a .npy file with one array" in ran.err


@pytest.mark.parametrize("option", ["--sample", "--queries"])
def test_vectors_that_cannot_be_read_are_refused_in_a_sentence(run: Run, tmp_path: Path, option: str) -> None:
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "text.npy").write_text("no array")
    for name, why in (
        ("none.npy", "expected a .npy file with one array of numbers, there is no such file; check the path"),
        ("folder.npy", "cannot read it (Is a directory); give a file that you may read"),
        ("text.npy", "write one with numpy.save"),
    ):
        ran = run("plan", "--dim", "3", option, name, "--json")
        assert ran.code == 2
        said = " ".join(ran.err.split())
        assert why in said
        assert "Errno" not in said


def test_a_pickled_vector_file_is_never_run(loaded: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    ran = loaded("evaluate", "things", "--queries", "q.npy")
    assert ran.code == 2
    assert "expected a .npy file with one array of numbers" in ran.err


# --- evaluate and info -------------------------------------------------------------------------------


def test_evaluate_reports_recall_and_latency(loaded: Run, tmp_path: Path) -> None:
    ran = loaded("evaluate", "things", "-k", "5", "--sample", "7", "--seed", "3", "--json")
    assert ran.code == 0
    assert ran.json["recall"] == 1.0
    assert (ran.json["k"], ran.json["queries"], ran.json["rows"], ran.json["seed"]) == (5, 7, 30, 3)
    np.save(tmp_path / "q.npy", np.eye(4, 64))
    assert loaded("evaluate", "things", "--queries", "q.npy", "--json").json["queries"] == 4
    assert re.search(r"^recall@10 +1\.000 ", loaded("evaluate", "things").out, re.MULTILINE)


def test_a_page_is_written_where_no_widths_can_be_tried(run: Run, pg: str, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"id": "a", "vector": [1, 2, 3]}\n')
    assert run("ingest", "one.jsonl", "-c", "one", "-q").code == 0
    ran = run("evaluate", "one", "--report", "one.html")
    assert (ran.code, "nothing to measure" in ran.out, ran.err) == (0, True, "")
    with vecbridge.connect(pg) as store:
        made = store.create("t", dim=8, layout=Layout(index=Index("hnsw", ef_search=40)))
        made.upsert([str(n) for n in range(20)], np.random.default_rng(5).normal(size=(20, 8)))
    ran = run("evaluate", pg, "t", "--report", "t.html")
    assert ran.code == 4
    assert "recall@10" in ran.out
    assert "the index of t is missing" in ran.err
    assert all(
        "<svg" in Path(page).read_text() or "<h1" in Path(page).read_text() for page in ("one.html", "t.html")
    )


def test_replan_says_what_is_new_where_the_layout_stays(loaded: Run, pg: str) -> None:
    ran = loaded("replan", "things", "--yes", "-q")
    assert "things has this layout already: it is written once more\n" in ran.err
    with vecbridge.connect(pg) as store:
        made = store.create("t", dim=8, layout=Layout(index=Index("hnsw", ef_search=40)))
        vectors = np.random.default_rng(5).normal(size=(20, 8))
        made.upsert([str(n) for n in range(20)], vectors)
        made.replan(made.proposal(rows=1_000_000))
    ran = loaded("replan", pg, "t", "--yes", "-q", "--rows", "1000000")
    assert "t has this layout already: it is written once more, with a new index\n" in ran.err


def test_evaluate_ends_with_4_while_the_index_is_not_built(run: Run, pg: str) -> None:
    rng = np.random.default_rng(5)
    with vecbridge.connect(pg) as store:
        layout = Layout(index=Index("hnsw", ef_search=40))
        made = store.create("t", dim=8, layout=layout)
        made.upsert([str(n) for n in range(20)], rng.normal(size=(20, 8)))
        before = run("evaluate", pg, "t", "--json")
        assert (before.code, before.json["index"]["status"]) == (4, "missing")
        assert "the index of t is missing" in before.err
        made.build_index()
    after = run("evaluate", pg, "t", "--json")
    assert (after.code, after.json["index"]["used"], after.err) == (0, True, "")


def test_info_tells_what_a_collection_is(loaded: Run) -> None:
    told = loaded("info", "things", "--json").json
    assert told["records"] == told["planned_rows"] == 30
    assert told["space"] == {"dim": 64, "metric": "cosine", "nested": [], "model": "hashing-64"}
    assert told["layout"] == Layout().to_dict()
    assert told["index"]["status"] == "none"
    assert told["sizes"]["table"] > 30 * 64 * 4
    text = loaded("info", "things").out
    assert "exact scan of float32 vectors (64 dims)" in text
    assert "hashing-64" in text


# --- list, delete, drop ------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["pgvector", "qdrant"])
def test_looking_for_a_collection_makes_no_folder(run: Run, tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}:./typo"
    for words in (
        ("search", url, "papers", "text"),
        ("info", url, "papers"),
        ("drop", url, "papers", "--yes"),
        ("evaluate", url, "papers"),
        ("reembed", url, "papers", "--embedder", "hashing:8", "--yes"),
        ("export", url, "papers", "papers.parquet"),
        ("copy", url, "papers", "flat:./copies"),
        ("adopt", url, "--table", "papers"),
    ):
        gone = run(*words)
        assert gone.code == 3
        assert "found nothing there yet; check the path" in " ".join(gone.err.split())
    assert run("list", url).err == f"no collections in {url}\n"
    assert run("list", url, "--json").json == {"urls": [url], "collections": []}
    assert not list(tmp_path.iterdir())
    # of several places those are looked into that are there
    (tmp_path / "there").mkdir()
    assert run("list", url, "flat:./there").err == "no collections in flat:./there\n"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_list_of_nothing_is_empty_and_no_error(run: Run) -> None:
    ran = run("list")
    assert (ran.code, ran.out) == (0, "")
    assert "no collections in flat:" in ran.err
    assert run("list", "--json").json["collections"] == []


def test_delete_by_id_and_by_filter(loaded: Run) -> None:
    by_id = loaded(
        "delete", "things", "--id", "bird-1", "--id", "bird-2", "--id", "nobody", "--yes", "--json"
    )
    assert by_id.json["deleted"] == 2
    by_filter = loaded("delete", "things", "--where", '{"topic": "fruit"}', "-y")
    assert by_filter.out == "deleted 10 records from things\n"
    assert loaded("info", "things", "--json").json["records"] == 18


def test_nothing_is_deleted_unasked(loaded: Run) -> None:
    for words in (("delete", "things", "--id", "bird-1"), ("drop", "things")):
        ran = loaded(*words, "--json")
        assert ran.code == 2
        assert "add --yes" in ran.json["error"]["message"]
    assert loaded("info", "things", "--json").json["records"] == 30


def test_drop_deletes_the_collection(loaded: Run) -> None:
    ran = loaded("drop", "things", "--yes", "--json")
    assert (ran.code, ran.json["dropped"]) == (0, True)
    assert loaded("list").out == ""
    assert loaded("drop", "things", "--yes").code == 3


def typed(words: list[str], answer: str, folder: Path) -> tuple[int, str]:
    """Run on a terminal and type the answer; returns exit code and screen."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        [*PROGRAM, *words], cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    screen = b""
    try:
        while part := os.read(ours, 65536):
            screen += part
    except OSError:  # Linux says so when the last writer closes
        pass
    os.close(ours)
    return process.wait(60), screen.decode()


def test_a_terminal_is_asked_and_its_answer_counts(loaded: Run, tmp_path: Path) -> None:
    code, screen = typed(["drop", "things"], "n\n", tmp_path)
    assert code == 130
    assert "Drop things in flat:./vecbridge-data with everything in it? [y/N]" in screen
    assert "nothing was changed" in screen
    assert loaded("list").out == "things\n"
    code, screen = typed(["delete", "things", "--where", '{"topic": "bird"}'], "y\n", tmp_path)
    assert code == 0, screen
    assert "Delete 10 of 30 records from things" in screen
    assert loaded("info", "things", "--json").json["records"] == 20


def test_a_terminal_gets_bars_and_colours_unless_it_wants_none(
    run: Run, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["ingest", corpus, "-c", "things", "--embedder", "hashing:64"]
    monkeypatch.delenv("NO_COLOR", raising=False)
    code, screen = typed(words, "", tmp_path)
    assert code == 0, screen
    assert "30/30" in screen
    assert re.search("\x1b\\[[0-9;]*32m", screen)
    monkeypatch.setenv("NO_COLOR", "1")
    code, screen = typed(words, "", tmp_path)
    assert code == 0, screen
    assert not re.search("\x1b\\[[0-9;]*3[0-9]m", screen)


# --- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "kind", "said"),
    [
        (["sarch"], 2, "UsageError", "Did you mean 'search'? see vecbridge --help"),
        (["fly"], 2, "UsageError", "No such command 'fly'; see vecbridge --help"),
        (
            ["plan"],
            2,
            "InputError",
            "expected the number of dimensions, or a sample of the vectors; got neither",
        ),
        (["plan", "--sample", "none.npy"], 2, "InputError", "none.npy: expected a .npy file"),
        (["plan", "--dim", "3", "--queries", "none.npy"], 2, "InputError", "none.npy"),
        (
            ["plan", "--dim", "3", "--recall", "95"],
            2,
            "InputError",
            "share above 0, up to 1, as 0.95; got 95",
        ),
        (["plan", "--dim", "3", "--on", "flat:x", "--on", "qdrant"], 2, "InputError", "backends or URLs"),
        (
            ["tune", "things"],
            2,
            "InputError",
            "expected the recall@10 that is wanted, as recall=0.95 (in a terminal --recall 0.95)",
        ),
        (["tune", "nothing", "--recall", "0.9"], 3, "CollectionNotFound", "nothing"),
        (["replan", "things"], 2, "InputError", "add --yes"),
        (["replan", "nothing", "--yes"], 3, "CollectionNotFound", "nothing"),
        (["calibrate", "flat:", "--seconds", "0"], 2, "InputError", "1 to 3,600 seconds"),
        (["plan", "--dim", "many"], 2, "BadParameter", "Invalid value for '--dim'"),
        (["plan", "--dim", "3", "--fast"], 2, "NoSuchOption", "--fast"),
        (["plan", "--dim", "0"], 2, "InputError", "expected dim of at least 1, got 0"),
        (["plan", "--dim", "3", "--metric", "far"], 2, "InputError", "'far'"),
        (["plan", "--dim", "3", "--memory", "much"], 2, "InputError", "'much'"),
        (["plan", "--dim", "3", "--on", "paper"], 2, "InputError", "paper"),
        (["search"], 2, "MissingParameter", "Missing argument '[URL]... COLLECTION TEXT'"),
        (["search", "things"], 2, "InputError", "expected [URL]... COLLECTION TEXT; TEXT is missing"),
        (["search", "flat:vecbridge-data"], 2, "InputError", "COLLECTION is missing"),
        (["search", "flat:", "flat:x"], 2, "InputError", "COLLECTION is missing"),
        (["search", "flat:", "things"], 2, "InputError", "TEXT is missing"),
        (["search", "flat:", "flat:", "things", "a"], 2, "UrlError", "got one of them twice"),
        (["search", "flatt:", "things", "a"], 2, "UrlError", "got scheme 'flatt'; did you mean flat:?"),
        (["search", "flat:", "what", "things", "a"], 2, "InputError", "got 4 arguments"),
        (["search", "things", "a", "b"], 2, "InputError", "a text of several words goes in quotes"),
        (["info", "flat:vecbridge-data", "things", "more"], 2, "InputError", "got 3 arguments"),
        (["search", "things", "a", "-k", "0"], 2, "InputError", "expected k as a whole number from 1"),
        (["search", "things", "a", "--where", "{"], 2, "FilterError", "expected --where as JSON such as"),
        (["search", "things", "a", "--where", "[1]"], 2, "FilterError", "as a JSON object"),
        (["search", "things", "a", "--where", '{"a": {"$near": 1}}'], 2, "FilterError", "unknown operator"),
        (["search", "things", " "], 2, "InputError", "white space"),
        (["search", "things", "--vector", "none.npy"], 2, "InputError", "none.npy"),
        (["delete", "things", "--yes"], 2, "InputError", "expected either --id or --where, got neither"),
        (["delete", "things", "--yes", "--where", "{}"], 2, "InputError", "delete every record"),
        (["evaluate", "things", "--sample", "0"], 2, "InputError", "sample of 1 or more"),
        (["ingest", "none.jsonl", "-c", "x"], 2, "SourceError", "none.jsonl"),
        (["ingest", "none.jsonl"], 2, "MissingParameter", "--collection"),
        (["ingest", "corpus.jsonl", "-c", "x", "--embedder", "magic"], 2, "InputError", "'magic'"),
        (
            ["ingest", "corpus.jsonl", "-c", "x", "--base-url", "http://127.0.0.1:1/v1"],
            2,
            "InputError",
            "--embedder",
        ),
        (
            ["ingest", "corpus.jsonl", "-c", "a/b", "--embedder", "hashing:8"],
            2,
            "InputError",
            "collection name",
        ),
        (
            ["ingest", "corpus.jsonl", "-c", "things", "--embedder", "hashing:8"],
            2,
            "ModelMismatch",
            "hashing-64",
        ),
        (["list", "things"], 2, "UrlError", "expected a store URL"),
        (["list", "odd:things"], 2, "UrlError", "got scheme 'odd'"),
        (["search", "nothing", "a"], 3, "CollectionNotFound", "nothing"),
        (["info", "nothing"], 3, "CollectionNotFound", "nothing"),
        (["evaluate", "no/thing"], 3, "CollectionNotFound", "no/thing"),
        (["delete", "nothing", "--id", "a", "--yes"], 3, "CollectionNotFound", "nothing"),
        (["drop", "nothing", "--yes"], 3, "CollectionNotFound", "nothing"),
        (["list", REFUSING], 1, "Unavailable", "127.0.0.1"),
    ],
)
def test_errors_are_one_sentence_with_an_exit_code(
    loaded: Run, words: list[str], code: int, kind: str, said: str
) -> None:
    plain, as_json = loaded(*words), loaded(*words, "--json")
    assert (plain.code, as_json.code) == (code, code)
    assert plain.out == ""
    assert plain.err.startswith("Error: ")
    assert plain.err.count("\n") == 1
    assert as_json.err == plain.err
    assert as_json.json == {
        "error": {"type": kind, "message": plain.err.removeprefix("Error: ").rstrip("\n")}
    }
    assert said in plain.err


@pytest.mark.parametrize(
    "words",
    [
        ["list", REFUSING],
        ["info", REFUSING, "things"],
        ["search", REFUSING, "things", "text"],
        ["ingest", "corpus.jsonl", "--to", REFUSING, "-c", "x", "--embedder", "hashing:8"],
        ["drop", REFUSING, "things", "--yes"],
        ["list", REFUSING, "flat:"],
        ["search", "flat:", REFUSING, "things", "text"],
        ["ingest", "corpus.jsonl", "--to", "flat:", "--to", REFUSING, "-c", "x", "--embedder", "hashing:8"],
        ["list", f"qdrunt://{SECRET}@127.0.0.1:1"],
        [REFUSING],
        ["list", "flat:", REFUSING],
        ["plan", "--dim", REFUSING],
        ["info", REFUSING],
        ["list", f"mysql://user:{SECRET}@host/db"],
        ["list", f"postgresql://127.0.0.1:1/db?user=u&password={SECRET}"],
    ],
)
def test_passwords_are_never_printed(run: Run, corpus: str, words: list[str]) -> None:
    for extra in ([], ["--json"]):
        for before in ([], ["--debug"]):
            ran = run(*before, *words, *extra)
            assert ran.code in (1, 2)
            assert SECRET not in ran.out + ran.err


def test_a_fault_is_told_in_one_line_and_traced_on_demand(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"boom at {REFUSING}\x1b[2J")

    monkeypatch.setattr("vecbridge.planner.plan", broken)
    ran = run("plan", "--dim", "3")
    assert ran.code == 1
    assert "RuntimeError: boom at postgresql://user:***@127.0.0.1:1/db\\x1b[2J" in ran.err
    assert ran.err.count("\n") == 1
    traced = run("--debug", "plan", "--dim", "3")
    assert traced.code == 1
    assert "Traceback (most recent call last)" in traced.err
    assert "in broken" in traced.err
    assert SECRET not in traced.err


def test_ctrl_c_ends_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vecbridge.planner.plan", pressed)
    assert run("plan", "--dim", "3") == Ran(130, "", "interrupted\n")
    ran = run("plan", "--dim", "3", "--json")
    assert (ran.code, ran.json["error"]["message"], ran.err) == (130, "interrupted", "interrupted\n")


@pytest.mark.parametrize("words", [["plan", "--dim", "3"], ["plan", "--dim", "3", "--json"], ["--help"]])
def test_a_reader_that_leaves_is_no_error(words: list[str]) -> None:
    process = subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 141
    assert said == b""


def commands() -> dict[str, Any]:
    return dict(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]  # it is a group


def test_version_help_and_nothing_at_all(run: Run) -> None:
    assert run("--version") == Ran(0, f"vecbridge {vecbridge.__version__}\n", "")
    helped = run("-h")
    assert helped.code == 0
    assert all(name in helped.out for name in commands())
    assert run() == helped
    assert run("--debug").code == 2


@pytest.mark.parametrize("name", [None, *commands()])
def test_help_is_whole_in_a_narrow_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    group = typer.main.get_command(cli.app)
    said = run(*([] if name is None else [name]), "--help").out
    assert max(map(len, said.splitlines())) <= 80
    words = re.sub(r"\s+", " ", said)
    if name is None:
        for one in commands().values():
            assert re.match(r"[^.]*", one.help)[0] in words
    for parameter in group.params if name is None else commands()[name].params:
        help = getattr(parameter, "help", None) or ""
        # a long word may be divided after a hyphen
        assert re.sub(r"\s+", "", help) in re.sub(r"\s+", "", said)
        if parameter.param_type_name == "option":
            assert all(option in words for option in (*parameter.opts, *parameter.secondary_opts))


def test_an_installed_program_and_the_module_are_the_same() -> None:
    program = Path(sys.executable).with_name("vecbridge")
    ran = [
        subprocess.run([*words, "plan", "--dim", "0"], capture_output=True, text=True, check=False)
        for words in ([str(program)], PROGRAM)
    ]
    assert ran[0].returncode == ran[1].returncode == 2
    assert ran[0].stderr == ran[1].stderr == "Error: expected dim of at least 1, got 0\n"


# --- documentation -----------------------------------------------------------------------------------


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section {title}"
    return found[1]


def blocks(text: str) -> Iterator[Any]:
    for block in re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield json.loads(block)


@pytest.mark.parametrize("name", commands())
def test_every_option_is_documented_and_no_other(name: str) -> None:
    text = section(name)
    options = {
        option
        for parameter in commands()[name].params
        if parameter.param_type_name == "option"
        for option in (*parameter.opts, *parameter.secondary_opts)
    } - {"--help", "-h"}
    documented = set(re.findall(r"`(--?[a-z][a-z-]*)", text))
    assert options <= documented
    everywhere = {option for one in commands().values() for item in one.params for option in item.opts}
    assert documented - options <= everywhere, "an option that no command has"


def shape(value: Any) -> Any:
    """Keys, nested; the content of empty objects is explained in words."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


def agree(documented: Any, real: Any) -> None:
    if isinstance(documented, dict) and documented and isinstance(real, dict):
        assert documented.keys() == real.keys()
        for key, value in documented.items():
            agree(value, real[key])
    if isinstance(documented, list) and documented and isinstance(real, list) and real:
        agree(documented[0], real[0])


def test_the_documented_json_is_the_real_json(run: Run, corpus: str) -> None:
    given = {
        "plan": ["--dim", "3584", "--rows", "1000000"],
        "models": ["text-embedding-3-large"],
        "ingest": [corpus, "-c", "things", "--embedder", "hashing:64"],
        "search": ["things", "bird", "--where", '{"topic": "bird"}'],
        "evaluate": ["things"],
        "tune": ["things", "--recall", "0.9"],
        "replan": ["things", "--yes"],
        "reembed": ["things", "--embedder", "hashing:48"],
        "info": ["things"],
        "list": [],
        "delete": ["things", "--id", "bird-1", "--yes"],
        "copy": ["flat:vecbridge-data", "things", "flat:elsewhere"],
        "export": ["things", "things.parquet"],
        "import": ["things.parquet", "flat:imported"],
        "drop": ["things", "--yes"],
        "calibrate": ["flat:", "--seconds", "1"],
        "doctor": [],
    }
    # adopt needs a database with a table in it, which test_adopt.py has
    assert given.keys() == commands().keys() - {"adopt"}
    for name, words in given.items():
        documented, *lines = blocks(section(name))
        real = run(name, *words, "--json").json
        if name in ("ingest", "reembed"):
            # null here: what a model in this process is asked for is not counted
            agree(documented["usage"], asdict(Usage()))
        if name == "ingest":
            agree(lines.pop(), Reject(Origin("scan.pdf"), "no text").to_dict())
        assert not lines
        if name == "search":
            for block in (documented, real):
                block["hits"] = [{**hit, "metadata": None} for hit in block["hits"]]
        agree(documented, real)
    (error,) = blocks(DOCS[: DOCS.index("## Exit codes")])
    agree(error, run("info", "things", "--json").json)


def test_every_exit_code_is_documented() -> None:
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE)}
    assert table == {0, cli.FAILED, cli.USAGE, cli.NOT_FOUND, 4, 5, cli.INTERRUPTED, output.BROKEN_PIPE}


# --- what leaves the program -------------------------------------------------------------------------

anything = st.text(st.characters(exclude_categories=()))


@given(anything, st.integers(1, 50))
def test_any_text_becomes_one_safe_line(text: str, width: int) -> None:
    shown = output.line(text, width)
    assert "\n" not in shown
    assert not CONTROL.search(shown)
    shown.encode()  # no surrogates are left
    if len(text) > width and text.isascii() and text.isprintable() and " " not in text:
        assert len(shown) == width


@given(st.dictionaries(anything, anything | st.floats(allow_nan=False) | st.none()))
def test_any_value_becomes_safe_json_that_reads_back(value: dict[str, Any]) -> None:
    text = output.to_json(value)
    assert json.loads(text) == value
    assert not CONTROL.search(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://user:pw@host/db", "postgresql://user:***@host/db"),
        ("at postgresql://u:p/w:@x@host/db, sorry", "at postgresql://u:***@host/db, sorry"),
        ("postgresql://:pw@host", "postgresql://:***@host"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("host=h password=pw user=u", "host=h password=*** user=u"),
        ("postgresql://h/db?sslpassword=pw&x=1", "postgresql://h/db?sslpassword=***&x=1"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
        ("qdrant://key@host:6334 and", "qdrant://***@host:6334 and"),
        ("qdrant+https://k@y@host", "qdrant+https://***@host"),
        ("qdrants://host and a@b", "qdrants://host and a@b"),
    ],
)
def test_passwords_are_starred_out(text: str, shown: str) -> None:
    assert output.redact(text) == shown
