"""Embedders give one finite float32 vector for each text, in order, or say in one sentence why not."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecbridge.embedders import hashing, load
from vecbridge.errors import InputError

KEY = "sk-geheim/4711+abc"


def cosine(embedder: Any, one: str, two: str) -> float:
    a, b = embedder.embed([one, two])
    return float(a @ b)


# --- specifications


@pytest.mark.parametrize(
    ("spec", "model", "dim", "nested"),
    [
        ("hashing:3584", "hashing-3584", 3584, ()),
        ("hashing:2", "hashing-2", 2, ()),
        ("wordllama", "wordllama-256", 256, (128, 64)),
        ("wordllama:128", "wordllama-128", 128, (64,)),
        ("wordllama:64", "wordllama-64", 64, ()),
    ],
)
def test_a_specification_names_an_embedder(spec: str, model: str, dim: int, nested: tuple[int, ...]) -> None:
    embedder = load(spec)
    assert (embedder.model, embedder.dim, embedder.nested) == (model, dim, nested)
    vectors = embedder.embed(["one text", "another", "a third"])
    assert vectors.shape == (3, dim)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(embedder.embed_query("another"), vectors[1])
    embedder.close()
    embedder.close()


@pytest.mark.parametrize(
    "spec", ["", "hashing", "hashing:", "hashing:x", "hashing:-5", "openai", "openai:", "e5", "٣"]
)
def test_an_unknown_specification_is_refused_with_the_known_ones(spec: str) -> None:
    with pytest.raises(
        InputError, match=r"expected an embedder as hashing:DIM, wordllama, .* or PROVIDER:MODEL"
    ):
        load(spec)


@pytest.mark.parametrize("spec", ["hashing:1", "hashing:0", "hashing:1048577"])
def test_hashing_has_a_smallest_and_a_largest_dimension(spec: str) -> None:
    with pytest.raises(InputError, match=r"expected hashing into 2 to 1,048,576 dimensions, got"):
        load(spec)


def test_wordllama_has_three_dimensions() -> None:
    with pytest.raises(InputError, match=r"256, 128 and 64 dimensions, got '512'"):
        load("wordllama:512")


def test_an_offline_embedder_takes_no_key() -> None:
    with pytest.raises(
        InputError, match=r"^api_key is not for 'hashing', which runs without an API: leave it out"
    ) as told:
        load("hashing:8", api_key=KEY)
    assert KEY not in str(told.value)


def test_loading_one_embedder_loads_no_other_and_touches_no_logging() -> None:
    code = """
import logging, sys
from vecbridge.embedders import load
models = {"wordllama", "model2vec", "fastembed", "onnxruntime", "sentence_transformers", "torch"}
others = {"httpx", "pyarrow", "huggingface_hub"} | models
assert not (others | {"sklearn"}) & set(sys.modules), "the package alone"
load("hashing:8").embed(["a"])
assert not others & set(sys.modules), "hashing"
load("wordllama").embed(["a"])
assert not (others - {"wordllama"}) & set(sys.modules), "wordllama"
assert logging.getLogger().handlers == [], logging.getLogger().handlers
assert logging.getLogger().level == logging.WARNING
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("spec", ["hashing:16", "wordllama"])
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", ""], r"expected texts to embed, got an empty one at position 1"),
        (["a", " \n\t"], r"expected texts to embed, got white space at position 1"),
        (["a", None], r"expected texts, got NoneType at position 1"),
        (["a", "\ud800"], r"expected Unicode text at position 1, got a lone surrogate \(U\+D800\)"),
        ("text", r"expected a list of texts, got a single one"),
    ],
)
def test_what_cannot_be_embedded_is_refused_with_its_position(spec: str, texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(spec).embed(texts)


@pytest.mark.parametrize("spec", ["hashing:16", "wordllama"])
def test_no_texts_give_no_vectors(spec: str) -> None:
    embedder = load(spec)
    assert embedder.embed([]).shape == (0, embedder.dim)


# --- hashing


def test_hashing_brings_forms_of_one_word_together() -> None:
    embedder = load("hashing:3584")
    assert cosine(embedder, "organization", "organizations") > 0.5
    assert cosine(embedder, "the economy grows", "economic growth") > 0.2
    assert abs(cosine(embedder, "organization", "buttermilk")) < 0.1


def test_hashing_is_lexical_and_knows_no_meaning() -> None:
    assert abs(cosine(load("hashing:3584"), "automobile", "car")) < 0.1


def test_hashing_ignores_case_and_compatibility_forms() -> None:
    assert cosine(load("hashing:512"), "Ｅｃｏｌｅ Straße ﬁne", "ecole STRASSE fine") > 0.999


def test_hashing_finds_a_word_inside_text_without_spaces() -> None:
    embedder = load("hashing:3584")
    assert cosine(embedder, "東京都の天気予報", "天気") > 0.15
    assert abs(cosine(embedder, "東京都の天気予報", "料理")) < 0.1


def test_hashing_is_the_same_in_every_process_and_batch() -> None:
    texts = [f"text {n} of many with more words than the block of {n * n}" for n in range(3000)]
    whole = load("hashing:64").embed(texts)
    assert np.allclose(whole[1234], load("hashing:64").embed_query(texts[1234]), atol=1e-6)
    code = (
        "import sys; from vecbridge.embedders import load; "
        "sys.stdout.buffer.write(load('hashing:64').embed([sys.argv[1]]).tobytes())"
    )
    other = subprocess.run([sys.executable, "-c", code, texts[7]], check=True, capture_output=True).stdout
    assert np.allclose(np.frombuffer(other, dtype=np.float32), whole[7], atol=1e-6)


@given(
    st.text(min_size=1, max_size=60).filter(lambda text: not text.isspace()), st.sampled_from([2, 3, 17, 300])
)
@settings(deadline=None, max_examples=300)
def test_every_text_has_a_unit_vector_under_hashing(text: str, dim: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    vector = load(f"hashing:{dim}").embed([text, "other"])[0]
    assert np.isfinite(vector).all()
    assert abs(np.linalg.norm(vector) - 1) < 1e-5


def test_a_text_of_signs_alone_is_told_from_another() -> None:
    assert cosine(load("hashing:3584"), "!!! ???", "--- ...") < 0.5


def test_features_that_cancel_leave_a_unit_vector() -> None:
    zero = np.zeros((1, 4), dtype=np.float32)
    found = hashing._unit(zero, ["x"])
    assert sorted(found[0].tolist()) == [0, 0, 0, 1]


# --- wordllama


def test_wordllama_gives_what_its_own_library_gives() -> None:
    wordllama = pytest.importorskip("wordllama")
    from pathlib import Path

    texts = ["a dog", "the quick brown fox jumps over the lazy dog " * 9, "日本語", "x"]
    own = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    assert np.allclose(load("wordllama").embed(texts), own.embed(texts, norm=True), atol=1e-5)


def test_wordllama_is_semantic() -> None:
    embedder = load("wordllama")
    assert cosine(embedder, "automobile", "car") > cosine(embedder, "automobile", "butter") + 0.2


def test_shorter_wordllama_vectors_are_prefixes_of_the_whole_ones() -> None:
    whole = load("wordllama").embed(["a dog", "the law"])[:, :64]
    short = load("wordllama:64").embed(["a dog", "the law"])
    assert np.allclose(whole / np.linalg.norm(whole, axis=1, keepdims=True), short, atol=1e-5)


def test_wordllama_leaves_a_logging_set_up_by_the_host_alone(caplog: pytest.LogCaptureFixture) -> None:
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    load("wordllama")
    assert logging.getLogger().handlers == handlers
    assert logging.getLogger().level == level
