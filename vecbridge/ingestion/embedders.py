"""Text in, vectors out: the embedders, each found by a short specification.

hashing:3584              lexical, offline, any dimension
wordllama, wordllama:128  static word vectors, offline
openai:MODEL              any API that speaks OpenAI's /v1/embeddings
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import EmbedderError, InputError, MissingExtra

if TYPE_CHECKING:
    from ..types import Floats

_LARGEST = 1_048_576
_SPECS = "hashing:DIM, wordllama, wordllama:DIM or openai:MODEL"


class Embedder(Protocol):
    """Text in, float32 matrix out."""

    @property
    def model(self) -> str:
        """What names the embedding space: vectors are compared only within one model."""

    @property
    def dim(self) -> int | None:
        """Length of the vectors; None until the first ones have arrived from an API."""

    @property
    def nested(self) -> tuple[int, ...] | None:
        """Matryoshka sizes: prefixes of these lengths are embeddings, too; None where that is not known."""

    def embed(self, texts: Sequence[str]) -> Floats:
        """Vectors of documents, float32 (n, dim). Raises InputError for blank texts, EmbedderError."""

    def embed_query(self, text: str) -> Floats:
        """The vector of a question, float32 (dim,). Raises like `embed`."""

    def close(self) -> None:
        """Give back connections. May be called twice."""


def load(spec: str, *, base_url: str | None = None, api_key: str | None = None) -> Embedder:
    """The embedder that a specification names: hashing:DIM, wordllama, wordllama:DIM, openai:MODEL.

    `base_url` and `api_key` are for APIs; without them OPENAI_BASE_URL and OPENAI_API_KEY are read from the
    environment. Raises InputError for an unknown specification, MissingExtra.
    """
    kind, _, argument = spec.partition(":")
    if kind == "openai" and argument:
        # httpx takes a while to load, and offline embedders do without it
        from .openai import OpenAI

        return OpenAI(argument, base_url=base_url, api_key=api_key)
    if base_url is not None or api_key is not None:
        raise InputError(f"a base URL and a key are for openai:MODEL; {kind[:40]!a} runs without an API")
    if kind == "hashing" and argument.isascii() and argument.isdigit():
        return Hashing(int(argument))
    if kind == "wordllama" and argument in ("", "256", "128", "64"):
        return WordLlama(int(argument or 256))
    if kind == "wordllama":
        raise InputError(f"wordllama has vectors of 256, 128 and 64 dimensions, got {argument[:40]!a}")
    raise InputError(f"expected an embedder as {_SPECS}, got {spec[:60]!a}")


def check_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list, if each of them can be embedded. Raises InputError with the first position."""
    if isinstance(texts, str):
        raise InputError("expected a list of texts, got a single one; embed_query takes one")
    checked = list(texts)
    for position, text in enumerate(checked):
        if not isinstance(text, str):
            raise InputError(f"expected texts, got {type(text).__name__} at position {position}")
        if not text or text.isspace():
            raise InputError(
                f"expected texts to embed, got {'white space' if text else 'an empty one'} at position "
                f"{position}; a vector of nothing would be near to everything or nothing"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"expected Unicode text at position {position}, got a lone surrogate "
                f"(U+{ord(text[error.start]):04X})"
            ) from None
    return checked


# --- hashing -----------------------------------------------------------------------------------------

# pieces of bounded length, so that one endless word is no memory problem
_WORD = re.compile(r"\w{1,64}")
_SIGNS = re.compile(r"\S{1,64}")
_GRAMS = (3, 4, 5)
# writing without spaces between words (from Thai on): two characters there say what a word says elsewhere
_DENSE = "\u0e00"
_DENSE_GRAMS = (1, 2, 3)
# chosen among 39 settings on 20,000 WordNet glosses by MRR@10 of 600 queries each: "what is X?" 0.82, an
# inflected form of X 0.66, a third of the gloss's words 0.70 (no held-out set, so a little optimistic);
# words alone, without grams and weights for length: 0.20, 0.03, 0.75
_WHOLE = 0.7
_LONG = 7
_BLOCK = 2_048


class Hashing:
    """Vectors by the letters of a text: texts that share words, or parts of words, lie near one another.

    Lexical, not semantic: "car" and "automobile" have nothing in common here. Every word, and every run of
    three to five letters in it, is hashed to one of `dim` components with a sign (scikit-learn's feature
    hashing), so inflected forms of a word meet. Short words count less, as most of them say little; repeated
    words count by the square root. Case and Unicode compatibility forms are ignored. A text without letters
    or digits is represented by its signs. Unit length; offline; the same on every machine.
    """

    def __init__(self, dim: int) -> None:
        if not 2 <= dim <= _LARGEST:
            raise InputError(f"expected hashing into 2 to {_LARGEST:,} dimensions, got {dim:,}")
        from sklearn.feature_extraction import FeatureHasher

        self.dim: int = dim
        self.model = f"hashing-{dim}"
        self.nested: tuple[int, ...] | None = ()
        self._hasher = FeatureHasher(dim, input_type="pair", dtype=np.float32, alternate_sign=True)

    def __repr__(self) -> str:
        return f"<vecbridge embedder {self.model}, lexical>"

    def embed(self, texts: Sequence[str]) -> Floats:
        """Unit vectors, float32 (n, dim). Raises InputError for blank texts."""
        from scipy.sparse import csr_matrix

        checked = check_texts(texts)
        vocabulary: dict[str, int] = {}
        columns: list[int] = []
        ends = [0]
        for text in checked:
            plain = unicodedata.normalize("NFKC", text).casefold()
            # NFKC turns some signs into spaces, which would leave nothing
            words = _WORD.findall(plain) or _SIGNS.findall(plain) or [ascii(text)]
            columns.extend(vocabulary.setdefault(word, len(vocabulary)) for word in words)
            ends.append(len(columns))
        ones = np.ones(len(columns), dtype=np.float32)
        counts = csr_matrix((ones, columns, ends), shape=(len(checked), len(vocabulary)))
        counts.sum_duplicates()
        np.sqrt(counts.data, out=counts.data)
        counts = counts.tocsc()
        words = list(vocabulary)
        vectors = np.zeros((len(checked), self.dim), dtype=np.float32)
        for start in range(0, len(words), _BLOCK):
            hashed = self._hasher.transform(_features(word) for word in words[start : start + _BLOCK])
            part = (counts[:, start : start + _BLOCK] @ hashed).tocoo()
            vectors[part.row, part.col] += part.data
        return _unit(vectors, checked)

    def embed_query(self, text: str) -> Floats:
        """The unit vector of one text, float32 (dim,)."""
        return _first(self.embed([text]))

    def close(self) -> None:
        """Nothing is held open."""


def _features(word: str) -> Iterator[tuple[str, float]]:
    """Names and weights: the word whole, and its runs of letters with the word's ends marked."""
    dense = any(letter >= _DENSE for letter in word)
    weight = 1.0 if dense else min(1.0, len(word) / _LONG)
    yield f"={word}", _WHOLE * weight
    marked = f"<{word}>"
    runs = [
        marked[at : at + size]
        for size in (_DENSE_GRAMS if dense else _GRAMS)
        for at in range(len(marked) - size + 1)
    ]
    share = weight / len(runs) ** 0.5 if runs else 0.0
    for run in runs:
        yield run, share


def _unit(vectors: Floats, texts: list[str]) -> Floats:
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    for row in np.flatnonzero(norms < 1e-6):
        # features of opposite sign may cancel out in few dimensions; cosine refuses what is left
        mark = int.from_bytes(blake2b(texts[row].encode(), digest_size=8).digest(), "little")
        vectors[row] = 0.0
        vectors[row, mark % vectors.shape[1]] = norms[row] = 1.0
    vectors /= norms[:, None]
    return vectors


def _first(vectors: Floats) -> Floats:
    row: Floats = vectors[0]
    return row


# --- WordLlama ---------------------------------------------------------------------------------------


class WordLlama:
    """Averages of static word vectors taken from a large language model: small, fast, English first.

    The weights are inside the package's wheel; nothing is downloaded. 256 dimensions, of which the first
    128 and 64 are embeddings in their own right (Matryoshka). Unit length. Needs the extra "wordllama".
    """

    def __init__(self, dim: int = 256) -> None:
        self.dim: int = dim
        self.model = f"wordllama-{dim}"
        self.nested: tuple[int, ...] | None = tuple(size for size in (128, 64) if size < dim)
        inference = _wordllama(dim)
        self._table: Floats = inference.embedding
        self._tokenizer = inference.tokenizer
        # wordllama pads a batch to its longest text: one long document would take gigabytes
        self._tokenizer.no_padding()

    def __repr__(self) -> str:
        return f"<vecbridge embedder {self.model}>"

    def embed(self, texts: Sequence[str]) -> Floats:
        """Unit vectors, float32 (n, dim). Raises InputError for blank texts, EmbedderError."""
        from scipy.sparse import csr_matrix

        checked = check_texts(texts)
        tokens = [
            np.asarray(coded.ids, dtype=np.int32)
            for coded in self._tokenizer.encode_batch(checked, add_special_tokens=False)
        ]
        ends = np.cumsum([0, *map(len, tokens)])
        columns = np.concatenate([np.empty(0, np.int32), *tokens])
        np.clip(columns, 0, len(self._table) - 1, out=columns)
        ones = np.ones(len(columns), dtype=np.float32)
        counts = csr_matrix((ones, columns, ends), shape=(len(checked), len(self._table)))
        vectors: Floats = counts @ self._table
        norms = np.linalg.norm(vectors, axis=1)
        if not norms.all():
            row = int(np.flatnonzero(norms == 0)[0])
            raise EmbedderError(
                f"expected text that wordllama knows a part of, got {checked[row][:40]!a} at position {row}"
            )
        return np.ascontiguousarray(vectors / norms[:, None], dtype=np.float32)

    def embed_query(self, text: str) -> Floats:
        """The unit vector of one text, float32 (dim,)."""
        return _first(self.embed([text]))

    def close(self) -> None:
        """Nothing is held open."""


def _wordllama(dim: int) -> Any:
    # wordllama calls logging.basicConfig on import, which does nothing where the root logger has a handler
    guard = logging.NullHandler()
    logging.getLogger().addHandler(guard)
    try:
        import wordllama
    except ImportError as error:
        raise MissingExtra(
            f"wordllama embeddings need the package {error.name}; "
            f"install it with pip install 'vecbridge[wordllama]'"
        ) from error
    finally:
        logging.getLogger().removeHandler(guard)
    try:
        # without a folder that holds the tokenizer, load() goes to the network
        return wordllama.WordLlama.load(
            cache_dir=Path(wordllama.__file__).parent,
            trunc_dim=None if dim == 256 else dim,
            disable_download=True,
        )
    except (OSError, ValueError, AttributeError) as error:
        raise EmbedderError(
            f"wordllama {wordllama.__version__} does not load offline ({error}); "
            f"version 0.4.0 is known to hold its weights"
        ) from error
