"""Models that run in this process: model2vec, fastembed (ONNX) and sentence-transformers (PyTorch).

A model is a folder, or a name that the model hub knows. A folder needs no network, nor does a model that the
hub's own cache holds; any other is downloaded once, by the library that runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EmbedderError
from ..models import find, nested_sizes
from .texts import check_texts
from .weights import digest, fetch, importing, onnx, place, prompts, quiet, read, roles, said, weights

if TYPE_CHECKING:
    from ..types import Floats

    Run = Callable[[list[str]], Any]

# attention takes memory by the square of a text's tokens, and a batch is padded to its longest text: 8 texts
# of 512 tokens, or 16 KiB, are some 130 MB in a model of 16 heads
_BATCH_BYTES = 16_384
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Runner:
    """A loaded model as `Local` needs it.

    `known_as`: its name in the catalogue. `documents`, `queries`: vectors of texts, prefixes put before them.
    `limit`: tokens that it takes, its own special ones included; None where it takes any number.
    """

    name: str
    known_as: str
    documents: Run
    queries: Run
    tokenizer: Any
    limit: int | None
    document_prefix: str
    query_prefix: str


class Local:
    """Vectors from a model in this process; `vecbridge.embedders.load` makes one.

    `model` is the name that the hub knows or, for a folder, the folder's name and a digest of what is in it
    ("my-model@5f0c92ab"): two models of one name are told apart, and a copy of the folder is the same model.
    `max_tokens` counts the tokens of the text and its prefix, as `tokenizer` does, without those that the
    model puts around them. A longer text would be cut in silence, wherefore `truncates` says so.
    """

    def __init__(self, runner: Runner) -> None:
        self.model: str = runner.name
        self.tokenizer: Any = None if runner.tokenizer is None else counting(runner.tokenizer)
        self.max_tokens: int | None = _room(runner)
        self.truncates: bool = self.max_tokens is not None
        self.document_prefix: str = runner.document_prefix
        self.query_prefix: str = runner.query_prefix
        self._runner: Runner | None = runner
        self.dim: int = self._run(runner.queries, ["a"]).shape[1]
        self.nested: tuple[int, ...] | None = (
            nested_sizes(runner.known_as, dim=self.dim) if find(runner.known_as) else None
        )

    def __repr__(self) -> str:
        return f"<vecbridge embedder {self.model}>"

    def embed(self, texts: Sequence[str]) -> Floats:
        """Vectors of documents, float32 (n, dim). Raises InputError for blank texts, EmbedderError."""
        checked = check_texts(texts)
        vectors = np.zeros((len(checked), self.dim), dtype=np.float32)
        for positions in _batches(checked):
            batch = [checked[position] for position in positions]
            vectors[positions] = self._run(self._open().documents, batch)
        if len(useless := np.flatnonzero(~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1))):
            position = int(useless[0])
            raise EmbedderError(
                f"expected text that {self.model} has a vector for, got {checked[position][:40]!a} at "
                f"position {position}"
            )
        return vectors

    def embed_query(self, text: str) -> Floats:
        """The vector of a question, float32 (dim,). Raises like `embed`."""
        vectors = self._run(self._open().queries, check_texts([text]))
        if not np.isfinite(vectors).all() or not vectors.any():
            raise EmbedderError(f"expected text that {self.model} has a vector for, got {text[:40]!a}")
        row: Floats = vectors[0]
        return row

    def close(self) -> None:
        """Give back the model's memory; `embed` in another thread ends after its batch with EmbedderError."""
        self._runner = None

    def _open(self) -> Runner:
        if (runner := self._runner) is None:
            raise EmbedderError(f"the embedder {self.model} is closed; load it again")
        return runner

    def _run(self, run: Run, batch: list[str]) -> Floats:
        try:
            vectors = np.ascontiguousarray(run(batch), dtype=np.float32)
        except Exception as error:
            raise EmbedderError(
                f"{self.model} failed on {len(batch)} texts of up to {max(map(len, batch)):,} characters: "
                f"{said(error)}"
            ) from error
        if vectors.ndim != 2 or len(vectors) != len(batch):
            raise EmbedderError(
                f"expected {len(batch)} vectors from {self.model}, got an array of shape {vectors.shape}"
            )
        return vectors


def model2vec(model: str) -> Local:
    """Averages of static token vectors, distilled from a larger model: fast on any CPU.

    A text counts up to the length in the model's own configuration, 512 tokens where that says nothing.
    Raises MissingExtra, EmbedderError.
    """
    with importing("model2vec", "model2vec"):
        from huggingface_hub import snapshot_download
        from model2vec import StaticModel
    name, folder = place(model)
    with quiet():
        if folder is not None:
            loaded = read(folder, lambda: StaticModel.from_pretrained(folder))
            name = f"{name}@{digest(weights(folder))}"
        else:
            loaded = fetch(
                name,
                name,
                cached=lambda: StaticModel.from_pretrained(snapshot_download(name, local_files_only=True)),
                online=lambda: StaticModel.from_pretrained(name),
            )
    # model2vec 0.10 cuts a text at max_length times the median length of a token in characters, too, which is
    # before the last token that counts wherever words are long
    loaded.median_token_length = 1 << 31

    def run(texts: list[str]) -> Any:
        return loaded.encode(texts, show_progress_bar=False, use_multiprocessing=False)

    # tokens at the ends of a text are left out by model2vec, so the whole length is there for the text
    plain = counting(loaded.tokenizer)
    return Local(Runner(name, _plain(name), run, run, plain, loaded.max_length, "", ""))


def fastembed(model: str, *, document_prefix: str | None = None, query_prefix: str | None = None) -> Local:
    """Vectors from an ONNX model, on the CPU without PyTorch.

    `model`: one of fastembed's own list, or a folder with an ONNX file, its tokenizer and the modules.json of
    sentence-transformers, which says how token vectors become one. fastembed 0.9 puts no prefix before texts
    (its list calls them "necessary" for some models), so they come from the folder's own configuration or
    from the catalogue of models, unless given. Raises MissingExtra, EmbedderError.
    """
    with importing("fastembed", "fastembed"):
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType
        from fastembed.common.utils import define_cache_dir
    name, folder = place(model)
    own: dict[str, str] = {}
    with quiet():
        listed = {entry["model"].lower(): entry for entry in TextEmbedding.list_supported_models()}
        if folder is not None:
            file, pooling, normalised = onnx(folder)
            name = f"{name}@{digest(weights(folder))}"
            own = prompts(folder)
            if name.lower() not in listed:
                TextEmbedding.add_custom_model(
                    name,
                    pooling=PoolingType(pooling),
                    normalization=normalised,
                    # it asks for a source, and takes none where a folder is given
                    sources=ModelSource(hf=name),
                    # of no consequence: the length of the vectors that come counts
                    dim=0,
                    model_file=file,
                )
            loaded = read(folder, lambda: TextEmbedding(name, specific_model_path=str(folder)))
        else:
            entry = listed.get(name.lower())
            if entry is None:
                near = get_close_matches(_plain(name), map(_plain, listed), n=1, cutoff=0.6)
                hint = "".join(
                    f"; did you mean {entry['model']}?"
                    for key, entry in listed.items()
                    if near and _plain(key) == near[0]
                )
                raise EmbedderError(
                    f"expected one of the {len(listed)} models that fastembed knows, or a folder, got "
                    f"{name[:80]!a}{hint}"
                )
            name = entry["model"]
            files = [entry["model_file"], *entry["additional_files"]]

            def download(*, local: bool) -> Any:
                path = TextEmbedding.download_files_from_huggingface(
                    entry["sources"]["hf"], str(define_cache_dir()), files, local_files_only=local
                )
                if missing := [file for file in files if not (Path(path) / file).exists()]:
                    raise FileNotFoundError(f"{missing[0]} is missing in {path}")
                return TextEmbedding(name, specific_model_path=path)

            # TextEmbedding(name) alone tries for 39 s without a network, and prints what fails
            loaded = fetch(
                name,
                entry["sources"]["hf"],
                cached=lambda: download(local=True),
                online=lambda: download(local=False),
            )
    tokenizer = getattr(loaded.model, "tokenizer", None)
    cut = None if tokenizer is None else tokenizer.truncation
    before, asked = _prefixes(name, own, document_prefix, query_prefix)

    def run(prefix: str, embed: Callable[..., Any], texts: list[str]) -> Any:
        return np.stack(list(embed([f"{prefix}{text}" for text in texts], batch_size=len(texts))))

    return Local(
        Runner(
            name,
            _plain(name),
            lambda texts: run(before, loaded.passage_embed, texts),
            lambda texts: run(asked, loaded.query_embed, texts),
            tokenizer,
            None if cut is None else cut["max_length"],
            before,
            asked,
        )
    )


def sentence_transformers(
    model: str, *, document_prefix: str | None = None, query_prefix: str | None = None
) -> Local:
    """Vectors from a sentence-transformers model, on a GPU where PyTorch finds one.

    What goes before texts is the model's own prompts; where it has none, the prefixes in the catalogue of
    models; where they are given, those. Raises MissingExtra, EmbedderError.
    """
    with importing("sentence-transformers", "sentence_transformers"):
        from sentence_transformers import SentenceTransformer
    name, folder = place(model)
    with quiet():
        if folder is not None:
            if not (folder / "modules.json").is_file():
                # the library would make up mean pooling, which is another space for many models
                raise EmbedderError(
                    f"expected a sentence-transformers model with a modules.json in {folder}, found none; "
                    f"save it there with SentenceTransformer.save"
                )
            loaded = read(folder, lambda: SentenceTransformer(str(folder), local_files_only=True))
            name = f"{name}@{digest(weights(folder))}"
        else:
            loaded = fetch(
                name,
                name,
                cached=lambda: SentenceTransformer(name, local_files_only=True),
                online=lambda: SentenceTransformer(name),
            )
    before, asked = _prefixes(name, roles(loaded.prompts), document_prefix, query_prefix)

    def run(prefix: str, encode: Callable[..., Any], texts: list[str]) -> Any:
        return encode(
            texts, prompt=prefix, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True
        )

    # a model may begin with a module that knows neither
    limit = getattr(loaded, "max_seq_length", None)
    return Local(
        Runner(
            name,
            _plain(name),
            lambda texts: run(before, loaded.encode_document, texts),
            lambda texts: run(asked, loaded.encode_query, texts),
            _backend(getattr(loaded, "tokenizer", None)),
            None if limit is None or not math.isfinite(limit) else int(limit),
            before,
            asked,
        )
    )


def counting(tokenizer: Any) -> Any:
    """A copy of a `tokenizers.Tokenizer` that counts the tokens of a text: nothing cut, padded or added."""
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.post_processor = None
    return copy


def _room(runner: Runner) -> int | None:
    """Tokens that are left for the text, beside those that the model puts around it."""
    if runner.limit is None:
        return None
    around = 0 if runner.tokenizer is None else runner.tokenizer.num_special_tokens_to_add(False)
    return int(runner.limit - around)


def _backend(tokenizer: Any) -> Any:
    """The `tokenizers.Tokenizer` inside a tokenizer of transformers; None where it is written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return backend if hasattr(backend, "to_str") else None


def _batches(texts: list[str]) -> Iterator[list[int]]:
    """Positions of texts that go through the model together, of about one length each."""
    # bytes follow tokens more closely than characters do: three for a character of Chinese, which is a token
    sizes = [len(text.encode()) for text in texts]
    # the longest first: ONNX Runtime keeps the memory of every shape that is larger than those before
    order = sorted(range(len(texts)), key=sizes.__getitem__, reverse=True)
    start = 0
    while start < len(order):
        fit = max(1, min(_BATCH, _BATCH_BYTES // sizes[order[start]]))
        yield order[start : start + fit]
        start += fit


def _prefixes(name: str, own: dict[str, str], document: str | None, query: str | None) -> tuple[str, str]:
    """What goes before documents and questions: what is given, else the model's own, else the catalogue's."""
    known = find(_plain(name))
    if not any(own.values()) and known is not None:
        own = {"document": known.document_prefix, "query": known.query_prefix}
    return (
        own.get("document", "") if document is None else document,
        own.get("query", "") if query is None else query,
    )


def _plain(name: str) -> str:
    """A model's name as the catalogue has it: without organisation and digest."""
    return name.rsplit("/", 1)[-1].partition("@")[0]
