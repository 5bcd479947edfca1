"""Vectors by the letters of a text: lexical, offline, of any dimension."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from .texts import check_texts

if TYPE_CHECKING:
    from ..types import Floats

_LARGEST = 1_048_576

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
        row: Floats = self.embed([text])[0]
        return row

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
