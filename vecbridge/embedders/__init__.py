"""Text in, vectors out: the embedders, each found by a short specification.

hashing:3584                          lexical, offline, any dimension
wordllama, wordllama:128              static word vectors, offline
model2vec:MODEL                       static word vectors from a folder or the model hub
fastembed:MODEL                       ONNX models in this process
sentence-transformers:MODEL           PyTorch models in this process
PROVIDER:MODEL                        an API that speaks OpenAI's /v1/embeddings; see `providers`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..errors import EmbedderError, InputError

if TYPE_CHECKING:
    from ..types import Floats


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
        """Give back connections; what waits for an answer or a pause ends soon with EmbedderError. May be
        called twice, and from another thread."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an embedder was asked for since it was made.

    `texts`: sent to the model, once for each time they were sent in a request that was answered; `cached`:
    those that a cache answered instead. `requests`: all that were sent, `retries` (repeated ones) included.
    `tokens`: as the API counts them; 0 where it does not say.
    """

    texts: int = 0
    cached: int = 0
    requests: int = 0
    retries: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer to a list of texts, of which some may have been refused for what they are.

    `vectors`: float32 (n - refused, dim), in the order of the texts without the refused ones. `refused`:
    position in the list -> the error, for texts that the model cannot take (too long, NaN as result).
    """

    vectors: Floats
    refused: Mapping[int, EmbedderError] = field(default_factory=dict)


@runtime_checkable
class Service(Embedder, Protocol):
    """An embedder that is asked in many requests at once, and may refuse single texts. Safe for threads."""

    @property
    def address(self) -> str:
        """Which service this is, without secrets: part of a cache's key, as models of one name may differ."""

    @property
    def concurrency(self) -> int:
        """How many calls of `request` are worth having in flight."""

    @property
    def items(self) -> int:
        """The most texts in one request."""

    @property
    def chars(self) -> int:
        """The most characters in one request: texts are sent together up to this sum."""

    def request(self, texts: Sequence[str]) -> Embedded:
        """Vectors of documents, one request's worth of them.

        What fails for a reason that is not in a single text (no rights, unknown model, server gone for good)
        raises EmbedderError; blank texts raise InputError.
        """

    def usage(self) -> Usage:
        """What was asked for so far."""


@runtime_checkable
class Measured(Embedder, Protocol):
    """An embedder that knows how long its texts may be."""

    @property
    def max_tokens(self) -> int | None:
        """The most tokens in one text, prefix included; None where that is not known."""

    @property
    def tokenizer(self) -> Any:
        """What counts them exactly: the name of a tiktoken encoding ("cl100k_base"), a Tokenizer of the
        package `tokenizers`, or None where only the model's own server can."""

    @property
    def document_prefix(self) -> str:
        """What is put before every document: a change of it makes other vectors of the same texts."""

    @property
    def truncates(self) -> bool:
        """Whether a text that is too long is cut short in silence."""


def document_prefix(embedder: Embedder) -> str:
    """What is put before every document, as far as the embedder says."""
    return embedder.document_prefix if isinstance(embedder, Measured) else ""


SPECS = (
    "hashing:DIM, wordllama, wordllama:DIM, model2vec:MODEL, fastembed:MODEL, sentence-transformers:MODEL "
    "or PROVIDER:MODEL"
)
_OFFLINE = ("hashing", "wordllama", "model2vec", "fastembed", "sentence-transformers")


def load(
    spec: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    dimensions: int | None = None,
    concurrency: int | None = None,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
    document_prefix: str | None = None,
    query_prefix: str | None = None,
) -> Embedder:
    """The embedder that a specification names: see the head of this module.

    The rest is for APIs. `base_url` and `api_key` replace what the provider's profile and its environment
    variables say. `dimensions`: ask for vectors of this length, where model and provider can. `concurrency`,
    `requests_per_minute`, `tokens_per_minute`: bounds; learned from the server's answers where not given.
    `document_prefix`, `query_prefix`: put before each document and question, instead of what the catalogue of
    models says; fastembed and sentence-transformers take them, too.

    Raises InputError for an unknown specification, MissingExtra, and EmbedderError where a model does not
    load.
    """
    from .providers import PROVIDERS

    kind, _, argument = spec.partition(":")
    online: dict[str, Any] = {
        "base_url": base_url,
        "api_key": api_key,
        "dimensions": dimensions,
        "concurrency": concurrency,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "document_prefix": document_prefix,
        "query_prefix": query_prefix,
    }
    if argument and kind in PROVIDERS:
        # httpx takes a while to load, and offline embedders do without it
        from .api import Api
        from .pace import Pace

        provider = PROVIDERS[kind]
        return Api(
            argument,
            provider=provider,
            base_url=base_url,
            api_key=api_key,
            dimensions=dimensions,
            pace=Pace(
                concurrency=provider.concurrency if concurrency is None else concurrency,
                fixed=concurrency is not None,
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
            ),
            document_prefix=document_prefix,
            query_prefix=query_prefix,
        )
    if kind not in _OFFLINE:
        near = get_close_matches(kind.lower(), [*PROVIDERS, *_OFFLINE], n=3)
        raise InputError(
            f"expected an embedder as {SPECS}, got {spec[:60]!a}"
            + (f"; did you mean {' or '.join(f'{name}:MODEL' for name in near)}?" if near else ".")
            + f" Providers are {', '.join(PROVIDERS)}; openai:MODEL with a base URL serves any other API"
        )
    if kind in ("fastembed", "sentence-transformers"):
        # these put prefixes before texts, too
        del online["document_prefix"], online["query_prefix"]
    if given := [name for name, value in online.items() if value is not None]:
        name = given[0]
        option = "" if name == "api_key" else f" (--{name.replace('_', '-')})"
        raise InputError(f"{name}{option} is not for {kind!a}, which runs without an API: leave it out")
    if kind == "hashing" and argument.isascii() and argument.isdigit():
        from .hashing import Hashing

        return Hashing(int(argument))
    if kind == "wordllama":
        from .wordllama import WordLlama

        if argument not in ("", "256", "128", "64"):
            raise InputError(f"wordllama has vectors of 256, 128 and 64 dimensions, got {argument[:40]!a}")
        return WordLlama(int(argument or 256))
    if kind == "model2vec" and argument:
        from .local import model2vec

        return model2vec(argument)
    if kind == "fastembed" and argument:
        from .local import fastembed

        return fastembed(argument, document_prefix=document_prefix, query_prefix=query_prefix)
    if kind == "sentence-transformers" and argument:
        from .local import sentence_transformers

        return sentence_transformers(argument, document_prefix=document_prefix, query_prefix=query_prefix)
    raise InputError(f"expected an embedder as {SPECS}, got {spec[:60]!a}")
