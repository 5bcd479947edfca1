"""The catalogue of models: that it agrees with itself, what names it knows, and the command that shows it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Ran, Run
from hypothesis import given
from hypothesis import strategies as st

from vecbridge import catalogue, cli, limits, models, planner
from vecbridge.cli import models as command
from vecbridge.types import Index, Layout, Shorten

WEB = "Given a web search query, retrieve relevant passages that answer the query"
SENTENCE = "Represent this sentence for searching relevant passages: "
by_name = pytest.mark.parametrize("model", models.MODELS, ids=lambda model: model.name)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line in an empty working directory, on a screen of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def line(*words: str) -> Ran:
        capsys.readouterr()
        code = cli.run(words)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return line


def flat(text: str) -> str:
    return " ".join(text.split())


def known(name: str) -> models.Model:
    found = models.find(name)
    assert found is not None, name
    return found


# --- the data ----------------------------------------------------------------------------------------


def test_no_name_means_two_models() -> None:
    names = [model.name.lower() for model in models.MODELS]
    assert len(set(names)) == len(names) >= 100
    others = [*catalogue.ALIASES, *catalogue.TAGGED]
    assert len(set(others)) == len(others)
    assert set(others) & set(names) == set()
    assert all(name == name.lower() and "/" not in name and ":" not in name for name in others)


def test_every_other_name_leads_to_an_entry() -> None:
    for alias, name in catalogue.ALIASES.items():
        assert known(alias).name == name
    for base, sizes in catalogue.TAGGED.items():
        for tag, name in sizes.items():
            assert known(f"{base}:{tag}" if tag else base).name == name


@by_name
def test_an_entry_agrees_with_itself(model: models.Model) -> None:
    assert model.dim > 0
    assert model.source.strip()
    assert list(model.nested) == sorted(set(model.nested), reverse=True)
    assert all(0 < size < model.dim for size in model.nested)
    assert model.max_tokens is None or model.max_tokens >= 256
    assert models.find(model.name) is models.find(f"Some-Org/{model.name.upper()}") is model
    assert {models.find(alias) for alias in models.aliases(model)} <= {model}


@by_name
def test_a_prefix_ends_where_the_text_can_begin(model: models.Model) -> None:
    for prefix in (model.query_prefix, model.document_prefix):
        assert not prefix or re.search(r"(: |:|<query>)$", prefix), prefix
        assert prefix == prefix.lstrip()
        assert "{" not in prefix
    # documents of a model that is told its task go in as they are
    if "instruct" in model.query_prefix.lower():
        assert model.document_prefix == ""
        assert model.query_prefix.count("\n") == 1


# as the model cards, the files config_sentence_transformers.json and mteb have them, letter by letter
@pytest.mark.parametrize(
    ("name", "query", "document"),
    [
        ("multilingual-e5-small", "query: ", "passage: "),
        ("multilingual-e5-large", "query: ", "passage: "),
        ("bge-large-en-v1.5", SENTENCE, ""),
        ("mxbai-embed-large-v1", SENTENCE, ""),
        ("snowflake-arctic-embed-l", SENTENCE, ""),
        ("snowflake-arctic-embed-m-v1.5", SENTENCE, ""),
        ("snowflake-arctic-embed-l-v2.0", "query: ", ""),
        ("Qwen3-Embedding-8B", f"Instruct: {WEB}\nQuery:", ""),
        ("bge-multilingual-gemma2", f"<instruct>{WEB}.\n<query>", ""),
        ("e5-mistral-7b-instruct", f"Instruct: {WEB}\nQuery: ", ""),
        ("multilingual-e5-large-instruct", f"Instruct: {WEB}\nQuery: ", ""),
        ("SFR-Embedding-2_R", f"Instruct: {WEB}\nQuery: ", ""),
        ("gte-Qwen2-7B-instruct", f"Instruct: {WEB}\nQuery: ", ""),
        ("inf-retriever-v1", f"Instruct: {WEB}\nQuery: ", ""),
        ("stella_en_1.5B_v5", f"Instruct: {WEB}.\nQuery: ", ""),
        ("nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("nomic-embed-text-v2-moe", "search_query: ", "search_document: "),
        ("embeddinggemma-300m", "task: search result | query: ", "title: none | text: "),
        ("bge-m3", "", ""),
        ("text-embedding-3-small", "", ""),
        ("all-MiniLM-L6-v2", "", ""),
        ("jina-embeddings-v2-base-de", "", ""),
    ],
)
def test_texts_get_what_the_model_was_trained_with(name: str, query: str, document: str) -> None:
    model = known(name)
    assert (model.query_prefix, model.document_prefix) == (query, document)


@pytest.mark.parametrize(
    "name", ["voyage-4", "embed-v4.0", "jina-embeddings-v3", "gemini-embedding-001", "text-embedding-005"]
)
def test_an_api_that_writes_the_prompts_itself_gets_none_twice(name: str) -> None:
    model = known(name)
    assert (model.query_prefix, model.document_prefix) == ("", "")
    assert "the API adds the prompts itself" in model.note


@pytest.mark.parametrize("name", ["Linq-Embed-Mistral", "llama-embed-nemotron-8b", "zembed-1"])
def test_what_could_not_be_verified_is_left_out_and_says_so(name: str) -> None:
    model = known(name)
    assert model.query_prefix == ""
    assert "could not be verified" in model.note


def test_openai_counts_one_token_less_than_it_says() -> None:
    assert {known(f"text-embedding-{name}").max_tokens for name in ("3-small", "3-large", "ada-002")} == {
        8191
    }


# --- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("  BAAI/bge-m3 ", "bge-m3"),
        ("bge-m3:latest", "bge-m3"),
        ("text-embedding-bge-m3", "bge-m3"),
        ("@cf/baai/bge-m3", "bge-m3"),
        ("baai/bge-multilingual-gemma2:fp32", "bge-multilingual-gemma2"),
        ("sentence-transformers/sentence-t5-xxl:fp32", "sentence-t5-xxl"),
        ("qwen3-embedding-8b", "Qwen3-Embedding-8B"),
        ("qwen3-embedding", "Qwen3-Embedding-8B"),
        ("qwen3-embedding:0.6b", "Qwen3-Embedding-0.6B"),
        ("qwen3-embedding:4b-q8_0", "Qwen3-Embedding-4B"),
        ("hf.co/Qwen/Qwen3-Embedding-8B-GGUF:Q4_K_M", "Qwen3-Embedding-8B"),
        ("E5-Mistral-7B-Instruct", "e5-mistral-7b-instruct"),
        ("nomic-embed-text", "nomic-embed-text-v1.5"),
        ("nomic-embed-text:latest", "nomic-embed-text-v1.5"),
        ("text-embedding-nomic-embed-text-v1.5", "nomic-embed-text-v1.5"),
        ("mxbai-embed-large", "mxbai-embed-large-v1"),
        ("mxbai-embed-large:335m", "mxbai-embed-large-v1"),
        ("all-minilm", "all-MiniLM-L6-v2"),
        ("all-minilm:33m", "all-MiniLM-L12-v2"),
        ("all-minilm:l6-v2", None),
        ("snowflake-arctic-embed", "snowflake-arctic-embed-l"),
        ("snowflake-arctic-embed:latest", "snowflake-arctic-embed-l"),
        ("snowflake-arctic-embed:110m-m-fp16", "snowflake-arctic-embed-m"),
        ("snowflake-arctic-embed2:568m", "snowflake-arctic-embed-l-v2.0"),
        ("granite-embedding:278m", "granite-embedding-278m-multilingual"),
        ("embeddinggemma:300m", "embeddinggemma-300m"),
        ("amazon.titan-embed-text-v2:0", "amazon.titan-embed-text-v2"),
        ("cohere.embed-multilingual-v3", "embed-multilingual-v3.0"),
        ("models/gemini-embedding-001", "gemini-embedding-001"),
        ("text-embedding-004", "text-embedding-004"),
        ("wordllama-256", "wordllama"),
        ("wordllama-128", "wordllama-128"),
        # a model that one does not know, a tag that no model has, and a server that adds the prefixes itself
        ("bge-m4", None),
        ("bge-m3-finetuned", None),
        ("qwen3-embedding:30b", None),
        ("multilingual-e5-small-q4", None),
        ("text-embedding-", None),
        ("text-embedding", None),
        ("BAAI/", None),
        (":latest", None),
        ("", None),
    ],
)
def test_a_model_is_found_by_the_names_that_providers_give_it(name: str, means: str | None) -> None:
    found = models.find(name)
    assert (found.name if found else None) == means


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_may_be_asked_for(one: str, other: str) -> None:
    found = models.find(one)
    assert found is None or found in models.MODELS
    assert models.same(one, one)
    assert models.same(one, other) == models.same(other, one)
    assert len(models.near(one)) <= 3


@pytest.mark.parametrize(
    ("one", "other", "are"),
    [
        ("BAAI/bge-m3", "text-embedding-bge-m3", True),
        ("nomic-embed-text", "nomic-ai/nomic-embed-text-v1.5", True),
        ("mine", "mine", True),
        ("mine", "Mine", False),
        ("mine", "yours", False),
        ("bge-m3", "mine", False),
        ("bge-m3", "bge-large-en-v1.5", False),
        ("all-minilm:22m", "all-minilm:33m", False),
        ("nomic-embed-text-v1", "nomic-embed-text-v1.5", False),
        ("multilingual-e5-large", "multilingual-e5-large-instruct", False),
        ("voyage-4", "voyage-4-lite", False),
    ],
)
def test_two_names_are_one_model_or_not(one: str, other: str, *, are: bool) -> None:
    assert models.same(one, other) is are
    assert models.same(other, one) is are


def test_names_that_look_alike_are_offered() -> None:
    assert models.near("bge-m4")[0] == "bge-m3"
    assert "Qwen3-Embedding-8B" in models.near("Qwen/qwen3-embeding")
    assert models.near("voyage-4-larg")[0] == "voyage-4-large"
    assert models.near("zzzzzzzz") == models.near("") == ()
    assert models.near("bge-m3" * 10_000) == ()


# --- which indexes take a model ----------------------------------------------------------------------


def layout(key: str, fit: command.Fit, shorten: Shorten | None = None) -> Layout:
    kind, element = key.split()
    return Layout(fit.stored, index=Index(kind, element, shorten))  # type: ignore[arg-type]  # keys of limits


def test_every_backend_is_asked() -> None:
    assert set(command.BACKENDS) == set(limits._BACKENDS)


@by_name
def test_what_is_said_of_an_index_is_what_its_limits_say(model: models.Model) -> None:
    space = planner.make_space(model.dim, model=model.name)
    for on in command.BACKENDS:
        there, seen = limits.limits(on), command.backend(on, model)
        assert seen.version == there.version
        assert seen.plan.layout == planner.plan(model.dim, rows=100_000, on=on, model=model.name).layout
        indexes = {fit.index: fit for fit in seen.fits}
        assert set(there.indexed) == {key for key in indexes if not key.startswith("exact scan")}
        for key, fit in indexes.items():
            if key.startswith("exact scan"):
                assert fit.objection is None
                continue
            assert fit.objection == there.objection(space, layout(key, fit))
            assert fit.largest == there.indexed[key].high
            assert (fit.objection is None) == (model.dim <= fit.largest)
            if fit.prefix is not None:
                assert fit.objection is not None
                assert fit.prefix == max(size for size in model.nested if size <= fit.largest)
                assert there.objection(space, layout(key, fit, Shorten("truncate", fit.prefix))) is None
            elif fit.objection:
                assert not [size for size in model.nested if size <= fit.largest]


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("bge-m3", {"hnsw float32", "hnsw float16", "hnsw bit"}),
        ("bge-multilingual-gemma2", {"hnsw float16", "hnsw bit"}),
        ("e5-mistral-7b-instruct", {"hnsw bit"}),
    ],
)
def test_pgvector_takes_fewer_indexes_as_vectors_grow(name: str, takes: set[str]) -> None:
    fits = command.backend("pgvector", known(name)).fits
    assert {fit.index for fit in fits if fit.objection is None and "hnsw" in fit.index} == takes
    (vector,) = [fit for fit in fits if fit.index == "hnsw float32"]
    assert (vector.objection is None) == ("hnsw float32" in takes)
    assert vector.prefix is None


def test_a_prefix_may_fit_where_the_whole_does_not() -> None:
    fits = {fit.index: fit for fit in command.backend("pgvector", known("qwen3-embedding-8b")).fits}
    assert (fits["hnsw float32"].prefix, fits["hnsw float16"].prefix) == (1024, 2048)
    assert fits["hnsw bit"].prefix is None


def test_vectors_are_stored_whole_unless_the_index_holds_the_stored_ones() -> None:
    for on, stored in (("pgvector", "float32"), ("qdrant", "float16"), ("edge", "float16")):
        (half,) = [fit for fit in command.backend(on, known("bge-m3")).fits if fit.index == "hnsw float16"]
        assert (half.objection, half.stored) == (None, stored)


# --- the command -------------------------------------------------------------------------------------


def test_the_list_has_every_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    ran = run("models")
    assert (ran.code, ran.err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in ran.out.splitlines() if line.strip()}
    assert {model.name for model in models.MODELS} <= set(rows)
    assert rows["Qwen3-Embedding-8B"] == ["4,096", "2,048", "…", "32", "32,768", "yes", "query"]
    assert rows["multilingual-e5-small"] == ["384", "512", "yes", "both"]
    assert rows["wordllama"] == ["256", "128,", "64"]
    assert rows["static-retrieval-mrl-en-v1"] == ["1,024", "512", "…", "32", "no"]


@pytest.mark.parametrize("width", [40, 60, 80, 300])
def test_the_screen_is_never_too_narrow(run: Run, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for words in (["models"], ["models", "bge-multilingual-gemma2"]):
        ran = run(*words)
        assert ran.code == 0
        assert max(map(len, ran.out.splitlines())) <= min(width, 110)
    # nothing is lost, however often a word was broken
    assert "pgvector0.8.0" in "".join(ran.out.split())
    assert "these have 3,584" in flat(ran.out) or width < 80


def test_one_model_is_shown_with_all_that_is_known(run: Run) -> None:
    ran = run("models", "baai/BGE-multilingual-gemma2")
    text = flat(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert text.startswith(
        "bge-multilingual-gemma2 dimensions 3,584 Matryoshka sizes none longest text 8,192"
    )
    assert f'before questions "<instruct>{WEB}.\\n<query>" before documents nothing' in text
    assert known("bge-multilingual-gemma2").source in text
    assert "yes hnsw halfvec up to 4,000 dimensions" in text
    assert "yes hnsw bit up to 64,000 dimensions" in text
    assert re.search(r"no hnsw vector hnsw on float32 vectors stops at 2,000", text)
    assert "qdrant 1.19.0 yes exact scan float32, float16 up to 65,536" in text
    assert text.count("plan for 100,000: ") == len(command.BACKENDS)
    assert "plan for 100,000: half-precision HNSW index (float16, 3,584 dims, m=16)" in text


def test_a_prefix_shows_the_space_at_its_end(run: Run) -> None:
    text = flat(run("models", "multilingual-e5-small").out)
    assert 'before questions "query: " before documents "passage: "' in text


def test_one_model_names_its_other_names_and_the_prefix_that_fits(run: Run) -> None:
    text = flat(run("models", "qwen3-embedding").out)
    assert "also called qwen3-embedding, qwen3-embedding:8b" in text
    assert "it takes the Matryoshka prefix of 1,024" in flat(run("models", "qwen3-embedding:8b").out)


def test_the_list_as_json_is_the_catalogue(run: Run) -> None:
    ran = run("models", "--json")
    assert ran.code == 0
    assert [one["name"] for one in ran.json["models"]] == [model.name for model in models.MODELS]
    (e5,) = [one for one in ran.json["models"] if one["name"] == "multilingual-e5-small"]
    assert e5 == {
        "name": "multilingual-e5-small",
        "dim": 384,
        "nested": [],
        "source": "mteb 2.26.24, e5_models.py",
        "max_tokens": 512,
        "normalised": True,
        "query_prefix": "query: ",
        "document_prefix": "passage: ",
        "note": "",
        "aliases": [],
    }


def test_one_model_as_json_has_the_plan_of_plan(run: Run) -> None:
    ran = run("models", "text-embedding-3-large", "--json")
    assert (ran.code, ran.err) == (0, "")
    shown = {one["backend"]: one for one in ran.json["backends"]}
    assert tuple(shown) == command.BACKENDS
    for on, one in shown.items():
        made = json.loads(
            run("plan", "--dim", "3072", "--on", on, "--model", "text-embedding-3-large", "--json").out
        )
        assert one["plan"] == {"rows": 100_000, "chosen": made["chosen"], "layout": made["layout"]}
    (vector,) = [one for one in shown["pgvector"]["indexes"] if one["index"] == "hnsw float32"]
    assert vector == {
        "index": "hnsw float32",
        "stored": "float32",
        "largest": 2000,
        "objection": "hnsw on float32 vectors stops at 2,000 dimensions; these have 3,072",
        "prefix": 1536,
        "fits": False,
    }
    (half,) = [one for one in shown["qdrant"]["indexes"] if one["index"] == "hnsw float16"]
    assert (half["fits"], half["stored"]) == (True, "float16")


def test_an_unknown_model_ends_with_2_and_with_advice(run: Run) -> None:
    ran = run("models", "bge-m4", "--json")
    assert ran.code == 2
    assert ran.err.startswith(
        "Error: expected a model of the catalogue, got 'bge-m4'; names like it are bge-m3, "
    )
    assert ran.err.endswith("vecbridge plan --dim N works for any model\n")
    assert ran.json["error"]["type"] == "InputError"
    assert "names like it" not in run("models", "zzzzzzzz").err


@pytest.mark.parametrize("name", ["", "   ", "\x1b[31m", "\udcff", "x" * 100_000])
def test_a_strange_name_is_refused_without_steering_the_terminal(run: Run, name: str) -> None:
    ran = run("models", name)
    assert (ran.code, ran.out) == (2, "")
    assert "\x1b" not in ran.err
    assert len(ran.err) < 300


def test_the_catalogue_and_its_command_load_neither_numpy_nor_a_driver() -> None:
    heavy = "'numpy', 'scipy', 'psycopg', 'pgvector', 'sklearn', 'httpx', 'qdrant_client', 'qdrant_edge'"
    code = (
        "import sys, vecbridge.models as m; m.find('bge-m3'); m.near('bge-m4'); "
        f"print([name for name in ({heavy}, 'typer', 'rich') if name in sys.modules]); "
        "from vecbridge import cli; cli.run(['models', 'bge-m3']); cli.run(['models', '--json']); "
        f"print([name for name in ({heavy}) if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == lines[-1] == "[]"
    assert "bge-m3" in lines
