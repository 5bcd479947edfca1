"""Static word vectors that come inside a package: offline, small, fast."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EmbedderError, MissingExtra
from .local import counting
from .texts import check_texts

if TYPE_CHECKING:
    from ..types import Floats

_TOKENIZED = 256


class WordLlama:
    """Averages of static word vectors taken from a large language model: small, fast, English first.

    The weights are inside the package's wheel; nothing is downloaded. 256 dimensions, of which the first
    128 and 64 are embeddings in their own right (Matryoshka). Unit length. A text may have any length, as
    all of its tokens are counted. Needs the extra "wordllama".
    """

    max_tokens: int | None = None
    document_prefix: str = ""
    truncates: bool = False

    def __init__(self, dim: int = 256) -> None:
        self.dim: int = dim
        self.model = f"wordllama-{dim}"
        self.nested: tuple[int, ...] | None = tuple(size for size in (128, 64) if size < dim)
        inference = _wordllama(dim)
        self._table: Floats = inference.embedding
        self._tokenizer = inference.tokenizer
        # wordllama pads a batch to its longest text: one long document would take gigabytes
        self._tokenizer.no_padding()
        self.tokenizer: Any = counting(self._tokenizer)

    def __repr__(self) -> str:
        return f"<vecbridge embedder {self.model}>"

    def embed(self, texts: Sequence[str]) -> Floats:
        """Unit vectors, float32 (n, dim). Raises InputError for blank texts, EmbedderError."""
        from scipy.sparse import csr_matrix

        checked = check_texts(texts)
        # a tokenizer's answer holds some hundred bytes for each token, an array of their numbers four
        tokens = [
            np.asarray(coded.ids, dtype=np.int32)
            for start in range(0, len(checked), _TOKENIZED)
            for coded in self._tokenizer.encode_batch(
                checked[start : start + _TOKENIZED], add_special_tokens=False
            )
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
        row: Floats = self.embed([text])[0]
        return row

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
