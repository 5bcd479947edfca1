"""The command line over several places, and where its defaults come from."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Ran, Run
from embedding_server import EmbeddingServer, good

import vecbridge
from vecbridge import Index, Layout, cli
from vecbridge.cli import options, settings
from vecbridge.errors import InputError

DOCS = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
SECRET = "s3cret"
DEAD = f"postgresql://user:{SECRET}@127.0.0.1:1/db"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line in a working directory where nothing is but a source of three records."""
    monkeypatch.chdir(tmp_path)
    for name in ("VECBRIDGE_URL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    rows = [{"id": f"r{n}", "text": f"text number {n}", "vector": [1.0, n, 0.5], "year": n} for n in range(3)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(*words: str) -> Ran:
        capsys.readouterr()
        code = cli.run(words)
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err
        return Ran(code, said.out, said.err)

    return command


def toml(text: str) -> None:
    Path(settings.FILE).write_text(text)


def ingest(run: Run, *words: str) -> Any:
    ran = run("ingest", "s.jsonl", "-q", "--no-evaluate", "--json", *words)
    assert ran.code == 0, ran.err
    return ran.json


# --- several URLs -------------------------------------------------------------------------------------


def test_every_command_takes_several_urls_and_says_where_the_collection_lies(run: Run) -> None:
    assert ingest(run, "-c", "one", "--to", "flat:a", "--embedder", "hashing:8")["url"] == "flat:a"
    two = ingest(run, "-c", "two", "--to", "flat:b", "--to", "flat:a", "--embedder", "hashing:8")
    assert two["url"] == "flat:b"
    assert run("list", "flat:a", "flat:b").out == "one\ntwo\n"
    assert run("list", "flat:b", "flat:a", "--json").json == {
        "urls": ["flat:b", "flat:a"],
        "collections": ["one", "two"],
    }
    both = ("flat:a", "flat:b")
    # a text is a text, even if it looks like a URL
    assert run("search", *both, "two", "flat: number 1", "--json").json["url"] == "flat:b"
    for words in (
        ("info", *both, "two"),
        ("evaluate", *both, "two"),
        ("delete", *both, "two", "--id", "r1", "--yes"),
        ("drop", *both, "two", "--yes"),
    ):
        ran = run(*words, "--json")
        assert (ran.code, ran.json["url"], ran.json["collection"]) == (0, "flat:b", "two")
    assert run("list", *both).out == "one\n"
    assert re.search(r"^store +flat:a *$", run("info", *both, "one").out, re.MULTILINE)


def test_commands_go_on_without_a_place_that_is_down_where_they_can(run: Run) -> None:
    ingest(run, "-c", "one", "--to", "flat:a", "--embedder", "hashing:8")
    assert run("search", DEAD, "flat:a", "one", "text", "--json").json["url"] == "flat:a"
    listed, missing = run("list", DEAD, "flat:a", "--json"), run("info", "flat:a", DEAD, "two", "--json")
    for ran in (listed, missing):
        assert (ran.code, ran.json["error"]["type"]) == (1, "Unavailable")


def test_a_name_in_two_places_is_refused_with_what_to_do(run: Run) -> None:
    for to in ("flat:a", "flat:b"):
        ingest(run, "-c", "one", "--to", to, "--embedder", "hashing:8")
    ran = run("drop", "flat:a", "flat:b", "one", "--yes")
    assert ran.code == 2
    assert "in flat:a and in flat:b; connect to one of them alone" in ran.err


def test_filterable_fields_are_declared_with_their_kinds(run: Run) -> None:
    given = ("--filterable", "topic", "--filterable", "year=number", "--filterable", "a=b=boolean")
    ingest(run, "-c", "one", "--embedder", "hashing:8", *given)
    with vecbridge.connect("flat:") as store:
        fields = dict(store.open("one").manifest.filterable)
    assert fields == {"topic": "text", "year": "number", "a=b": "boolean"}
    for words, said in (
        (("--filterable", "year=date"), "FIELD=number or FIELD=boolean, got 'year=date'"),
        (("--filterable", "=text"), "got '=text'"),
        (("--filterable", "year", "--filterable", "year=number"), "'year', got text and number"),
        (("--filterable", "other"), "one was not made with other (text) as a filterable field"),
    ):
        ran = run("ingest", "s.jsonl", "-c", "one", "--embedder", "hashing:8", *words)
        assert (ran.code, said in ran.err) == (2, True), ran.err


# --- precedence ---------------------------------------------------------------------------------------


def test_what_is_typed_wins_over_the_environment_and_that_over_the_file(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def used(*typed: str) -> Any:
        return run("list", *typed, "--json").json["urls"]

    assert used() == ["flat:./vecbridge-data"]
    toml('places = ["flat:file", "flat:more"]')
    assert used() == ["flat:file", "flat:more"]
    monkeypatch.setenv("VECBRIDGE_URL", " flat:env\n flat:other ")
    assert used() == ["flat:env", "flat:other"]
    assert used("flat:typed") == ["flat:typed"]
    monkeypatch.setenv("VECBRIDGE_URL", " ")
    assert used() == ["flat:file", "flat:more"]
    assert ingest(run, "-c", "one", "--embedder", "hashing:8")["url"] == "flat:file"
    assert run("search", "one", "text", "--json").json["url"] == "flat:file"


def test_a_wrong_default_says_where_it_stands(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    toml(f'places = ["flat:a", "postgrsql://u:{SECRET}@h/db"]')
    ran = run("list")
    assert ran.code == 2
    assert "vecbridge.toml: expected a store URL" in ran.err
    assert "got scheme 'postgrsql'; did you mean postgresql:?" in ran.err
    monkeypatch.setenv("VECBRIDGE_URL", f"/my data:{SECRET}")
    assert "VECBRIDGE_URL: expected a store URL" in run("list").err


def test_the_library_reads_neither_file_nor_variable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    toml("what is this")
    monkeypatch.setenv("VECBRIDGE_URL", "flat:env")
    made = vecbridge.ingest("s.jsonl", to="flat:", collection="one", embedder="hashing:8", evaluate=False)
    assert made.url == "flat:./vecbridge-data"


def test_help_and_version_need_no_file_and_say_where_defaults_come_from(run: Run) -> None:
    toml("places = [")
    assert run("--version").code == run("--help").code == run("search", "--help").code == 0
    for words in (("--help",), ("list", "--help"), ("ingest", "--help")):
        shown = " ".join(run(*words).out.replace("│", " ").split())
        assert "VECBRIDGE_URL" in shown
        assert "vecbridge.toml" in shown
    # and none is read where everything is typed
    assert run("list", "flat:").code == 0


# --- embedder and budgets -----------------------------------------------------------------------------


def test_the_embedder_of_the_file_is_used_unless_another_or_none_is_meant(run: Run) -> None:
    toml('embedder = "hashing:16"')
    assert ingest(run, "-c", "default")["model"] == "hashing-16"
    assert ingest(run, "-c", "typed", "--embedder", "hashing:8")["model"] == "hashing-8"
    assert ingest(run, "-c", "none", "--embedder", "none")["dim"] == 3
    assert ingest(run, "-c", "model", "--model", "mine")["model"] == "mine"
    assert ingest(run, "-c", "field", "--vector-field", "vector")["dim"] == 3
    # the model that a collection names is known by itself, whatever the file says
    assert run("search", "typed", "text", "--json").code == 0


def test_searches_use_the_embedder_of_the_file_only_for_its_own_model(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    for name, model in (("unnamed", ()), ("other", ("--model", "theirs"))):
        ingest(run, "-c", name, "--embedder", "none", *model)
    ingest(run, "-c", "mine", "--embedder", "none", "--model", "mine")
    # nobody listens there: a search that gets so far has chosen this embedder
    toml('embedder = "openai:mine"\nbase_url = "http://127.0.0.1:1/v1"')
    for name in ("unnamed", "other"):
        ran = run("search", name, "text")
        assert ran.code == 2
        assert "say what embeds the text, as --embedder openai:" in ran.err
    ran = run("search", "mine", "text", "--json")
    assert (ran.code, ran.json["error"]["type"]) == (1, "EmbedderError")
    assert "127.0.0.1:1" in ran.err
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.2:1/v1")
    assert "127.0.0.2:1" in run("search", "mine", "text").err
    assert "127.0.0.3:1" in run("search", "mine", "text", "--base-url", "http://127.0.0.3:1/v1").err
    # an API in the file does not get into the way of an embedder without one
    toml('embedder = "hashing:8"\nbase_url = "http://127.0.0.1:1/v1"')
    assert ingest(run, "-c", "local")["model"] == "hashing-8"


def test_a_key_for_one_provider_never_goes_to_the_api_of_another(run: Run) -> None:
    theirs = "http://127.0.0.1:1/v1"
    toml(f'embedder = "tei:m"\nbase_url = "{theirs}"')
    assert options.api(None, "tei:m") == theirs
    # its own address then, or that in OPENAI_BASE_URL
    assert options.api(None, "openai:m") is None
    for embedder in ("openai:other", "hashing:8"):
        toml(f'embedder = "{embedder}"\nbase_url = "{theirs}"')
        assert options.api(None, "openai:m") == theirs


def test_a_search_asks_as_the_ingest_before_it_did(run: Run) -> None:
    with EmbeddingServer(lambda asked: good(asked, dim=asked.body.get("dimensions", 8))) as server:
        toml(
            f'embedder = "tei:m"\nbase_url = "{server.url}"\n[embedding]\ndimensions = 4\n'
            'document_prefix = "d: "\nquery_prefix = "q: "\ncache = false'
        )
        assert ingest(run, "-c", "one")["dim"] == 4
        assert run("search", "one", "text").code == 0
        assert run("search", "one", "text", "--query-prefix", "").code == 0
        assert [text[:3] for text in server.texts] == ["d: "] * 3 + ["q: ", "tex"]
        # what is said of one embedder is not for another
        assert ingest(run, "-c", "two", "--embedder", "tei:n", "--base-url", server.url)["dim"] == 8
        assert server.texts[-1].startswith("text number")
        # typed there and not here
        other = ("one", "text", "--embedder", "tei:m", "--base-url", server.url)
        toml("")
        ran = run("search", *other)
        assert ran.code == 2
        assert "were ingested with --dimensions 4, say so here, too" in ran.err
        assert run("search", *other, "--dimensions", "4").code == 0


@pytest.mark.parametrize(
    "typed", [("--dimensions", "4"), ("--concurrency", "2"), ("--chunk-tokens", "99"), ("--chunk-rows",)]
)
def test_options_of_embedders_are_not_left_out_in_silence(run: Run, typed: tuple[str, ...]) -> None:
    ran = run("ingest", "s.jsonl", "-c", "one", *typed, "--json")
    assert ran.code == 2
    assert f"expected --embedder SPEC beside {typed[0]}, got none" in ran.json["error"]["message"]


def test_standard_input_is_pruned_by_a_name_only(run: Run) -> None:
    ran = run("ingest", "-", "-c", "one", "--prune")
    assert ran.code == 2
    assert "expected source_name (--source-name NAME) beside prune and standard input" in ran.err


def test_an_embedder_of_another_model_is_refused_before_it_is_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    ingest(run, "-c", "one", "--embedder", "none", "--model", "mine")
    words = ("search", "one", "text", "--embedder", "openai:other", "--base-url", "http://127.0.0.1:1/v1")
    assert run(*words, "--json").json["error"]["type"] == "ModelMismatch"


def test_budgets_of_the_file_count_unless_others_are_typed(run: Run, pg: str) -> None:
    def chosen(*typed: str) -> str:
        ran = run("plan", "--dim", "1024", "--rows", "50000", "--json", *typed)
        return str(ran.json["chosen"] if ran.code == 0 else ran.json["error"]["message"])

    assert "exact scan" in chosen()
    toml("[budget]\nlatency = 0.001")
    assert "HNSW" in chosen()
    assert "exact scan" in chosen("--latency", "0.1")
    toml('[budget]\ndisk = "1MB"')
    assert "the budget is 1.0 MB" in chosen()
    assert "exact scan" in chosen("--disk", "1TB")
    toml('[budget]\nmemory = 1\nlatency = 0.001\ndisk = "1TB"')
    assert "the budget is 1 bytes" in chosen()
    np.save("v.npy", np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32))
    Path("v.jsonl").write_text("".join(f'{{"id": "{n}"}}\n' for n in range(200)))
    toml("[budget]\nlatency = 0.00001")
    ran = run("ingest", "v.npy", "-c", "v", "--to", pg, "--rows", "100000", "-q", "--no-evaluate", "--json")
    assert ran.json["layout"]["index"]["kind"] == "hnsw"


def test_a_recall_below_what_is_wanted_is_said_and_ends_with_4(run: Run) -> None:
    vectors = np.random.default_rng(0).standard_normal((2_000, 32)).astype(np.float32)
    with vecbridge.connect("qdrant:./edge") as store:
        coarse = store.create("coarse", dim=32, layout=Layout(index=Index("hnsw", "bit", ef_search=10)))
        coarse.upsert([str(n) for n in range(2_000)], vectors)
        coarse.build_index()
    assert run("evaluate", "qdrant:./edge", "coarse").code == 0
    ran = run("evaluate", "qdrant:./edge", "coarse", "--recall", "0.99", "--json")
    assert ran.code == 4
    assert f"recall@10 of coarse is {ran.json['recall']:.3f}, below the 0.99 that is wanted" in ran.err
    toml("recall = 0.99")
    assert run("evaluate", "qdrant:./edge", "coarse").code == 4
    assert run("evaluate", "qdrant:./edge", "coarse", "--recall", "0.01").code == 0
    ran = run("evaluate", "qdrant:./edge", "coarse", "--recall", "95")
    assert ran.code == 2
    assert "expected --recall as a share" in ran.err
    assert run("ingest", "s.jsonl", "-c", "fine", "-q", "--recall", "1.0").code == 0
    ran = run("ingest", "s.jsonl", "-c", "fine", "-q", "--recall", "1.0", "--no-evaluate")
    assert ran.code == 2
    assert "expected --evaluate beside --recall" in ran.err


# --- the file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('places = ["flat:"]]', r"vecbridge\.toml is no TOML: .*line 1"),
        ('place = ["flat:"]', r"unknown key 'place'; did you mean places\?; known are places, embedder"),
        ('embeder = "hashing:8"', r"unknown key 'embeder'; did you mean embedder\?"),
        ('recall = "0.9"', r"expected recall as a share above 0, up to 1, as 0.95; got text"),
        ("recall = 95", r"expected recall as a share above 0"),
        ('metric = "l2"', r"unknown key 'metric'; known are places, embedder, base_url, recall, budget"),
        ('memory = "1GB"', r"unknown key 'memory'; memory belongs into \[budget\]"),
        ('[budget]\nembedder = "x"', r"unknown key 'budget\.embedder'; embedder belongs above the tables"),
        ('[budget]\nmemroy = "1GB"', r"unknown key 'budget\.memroy'; did you mean budget\.memory\?"),
        ('places = "flat:"', r"expected places as a list of one or more URLs, as .*; got text"),
        ("places = []", r"expected places as a list .*; got an empty list"),
        (f'places = ["{SECRET}", 5]', r"expected places as a list .*; got a list with something else in it"),
        ("embedder = 5", "expected embedder as text; got a number"),
        ('embedder = ""', "expected embedder as text; got empty text"),
        ("base_url = true", "expected base_url as text; got true or false"),
        (
            "[embedding]\ndimensions = 0",
            r"embedding\.dimensions as a whole number of 1 or more; got a number",
        ),
        (
            "[embedding]\nconcurrency = true",
            r"embedding\.concurrency as a whole number of 1 or more; got true",
        ),
        ("[embedding]\nrequests_per_minute = inf", r"requests_per_minute as a number above 0; got a number"),
        ("[embedding]\ncache = 5", r"expected embedding\.cache as a file's name, or false; got a number"),
        ("[embedding]\nquery_prefix = []", r"embedding\.query_prefix as text; got an empty list"),
        ("dimensions = 5", r"unknown key 'dimensions'; dimensions belongs into \[embedding\]"),
        ("budget = 5", r"expected budget as a table, as \[budget\] with .*; got a number"),
        (
            "[budget]\nmemory = 1.5",
            r"expected budget\.memory as bytes or text such as \"16GB\"; got a number",
        ),
        ("[budget]\ndisk = true", r"expected budget\.disk as bytes or text .*; got true or false"),
        ('[budget]\nmemory = "lots"', r'expected budget\.memory as bytes or text such as "16GB"; got text'),
        ('[embedding]\ncache_size = "1XB"', r"expected embedding\.cache_size as bytes .*; got text"),
        ("[budget]\ndisk = 0", r"expected budget\.disk as bytes or text such as \"16GB\"; got a number"),
        ("[budget]\nlatency = 0", r"expected budget\.latency as a number of seconds above 0; got a number"),
        ('[budget]\nlatency = "1"', r"expected budget\.latency as a number of seconds above 0; got text"),
        (
            "[budget]\nlatency = 2020-01-01",
            r"budget\.latency as a number of seconds above 0; got a date or time",
        ),
        ('places = ["flat:${NOT_THERE}"]', r"places\[0\] needs the environment variable NOT_THERE, which is"),
        ('places = ["flat:a", "flat:${EMPTY}"]', r"places\[1\] needs the environment variable EMPTY, which"),
        ('places = ["flat:${A-B}"]', r"expected \$\{NAME\} of an environment variable in places\[0\]"),
        ('places = ["flat:${A"]', r"expected \$\{NAME\} of an environment variable in places\[0\]"),
    ],
)
def test_what_is_not_understood_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOT_THERE", raising=False)
    toml(text)
    ran = run("list")
    assert ran.code == 2
    assert ran.err.startswith("Error: vecbridge.toml")
    assert ran.err.count("\n") == 1
    with pytest.raises(InputError, match=said):
        settings.read()


def test_a_file_that_cannot_be_read_is_no_empty_file(run: Run) -> None:
    Path(settings.FILE).write_bytes(b"embedder = '\xff'")
    with pytest.raises(InputError, match=r"vecbridge\.toml cannot be read: .*utf-8"):
        settings.read()
    Path(settings.FILE).unlink()
    Path(settings.FILE).mkdir()
    with pytest.raises(InputError, match=r"vecbridge\.toml cannot be read: .*directory"):
        settings.read()


def test_variables_fill_places_and_passwords_may_hold_anything(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("PW", "p@s/s:w%o?rd"),
        ("HERE", "/a/b c"),
        ("WHOLE", "qdrant://k@h"),
        ("HOST", "h:5"),
    ):
        monkeypatch.setenv(name, value)
    toml(
        'places = ["postgresql://u:${PW}@${HOST}/db", "flat:${HERE}/x$y", "${WHOLE}", "qdrant://${PW}@h", '
        '"postgresql://h/db?host=${HERE}"]'
    )
    assert settings.read().places == (
        "postgresql://u:p%40s%2Fs%3Aw%25o%3Frd@h:5/db",
        "flat:/a/b c/x$y",
        "qdrant://k@h",
        "qdrant://p%40s%2Fs%3Aw%25o%3Frd@h",
        "postgresql://h/db?host=/a/b c",
    )
    assert "p%40s" not in repr(settings.read())


def test_a_password_from_the_environment_opens_the_server(
    run: Run, pg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the server trusts everybody; what counts is that the URL still is one, and is shown without password
    monkeypatch.setenv("PW", f"{SECRET}@/:?")
    toml(f"places = ['{pg.replace('postgres@', 'postgres:${PW}@')}']")
    ran = run("list", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["urls"][0].startswith("postgresql://postgres@/")


def test_the_documented_file_is_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)
    monkeypatch.setenv("VECBRIDGE_PG_PASSWORD", "secret")
    toml(block)
    assert settings.read() == settings.Settings(
        ("postgresql://vecbridge:secret@127.0.0.1:5432/vecbridge", "qdrant://127.0.0.1:6334"),
        embedder="openai:bge-m3",
        base_url="http://127.0.0.1:8080/v1",
        recall=0.95,
        memory="16GB",
        disk="200GB",
        latency=0.1,
        concurrency=8,
        requests_per_minute=300,
    )
    said = tomllib.loads(block)
    assert {*said, *said["budget"]} == {*settings._TOP, *settings._BUDGET}, "a key is not documented"
