"""Embedding models by name: their dimensions and the Matryoshka sizes that they were trained for.

A hint, not the truth: public catalogues contradict one another, and servers cut vectors short. The length of
the vectors that really come counts; this table only says whether a prefix of them is an embedding too.
"""

from __future__ import annotations

from dataclasses import dataclass

_MTEB = "mteb 2.26.24, ModelMeta"
_CARD = "model card"


@dataclass(frozen=True, slots=True)
class Model:
    """An embedding model.

    `nested`: prefix lengths below `dim` that are embeddings in their own right, longest first; for models
    that allow any length, the usual ones.
    """

    name: str
    dim: int
    nested: tuple[int, ...]
    source: str


def _down(dim: int, least: int) -> tuple[int, ...]:
    """The powers of two below `dim`, down to `least`: the usual sizes of a model that allows any."""
    return tuple(1 << bit for bit in range(20, 0, -1) if least <= 1 << bit < dim)


MODELS = (
    Model(
        "text-embedding-3-small", 1536, _down(1536, 256), "OpenAI API reference, dimensions; 512 published"
    ),
    Model(
        "text-embedding-3-large",
        3072,
        (1536, *_down(1536, 256)),
        "OpenAI API reference, dimensions; 256, 1024",
    ),
    Model("text-embedding-ada-002", 1536, (), "OpenAI API reference: dimensions only from version 3 on"),
    Model("bge-multilingual-gemma2", 3584, (), _MTEB),
    Model("bge-m3", 1024, (), _MTEB),
    Model("text-embedding-bge-m3", 1024, (), "Telekom LLM Hub's name of bge-m3"),
    Model("bge-small-en-v1.5", 384, (), _MTEB),
    Model("bge-base-en-v1.5", 768, (), _MTEB),
    Model("bge-large-en-v1.5", 1024, (), _MTEB),
    Model("bge-en-icl", 4096, (), _MTEB),
    Model("Qwen3-Embedding-0.6B", 1024, _down(1024, 32), "model card: any size from 32 on"),
    Model("Qwen3-Embedding-4B", 2560, _down(2560, 32), "model card: any size from 32 on"),
    Model("Qwen3-Embedding-8B", 4096, _down(4096, 32), "model card: any size from 32 on"),
    Model("e5-mistral-7b-instruct", 4096, (), _MTEB),
    Model("NV-Embed-v2", 4096, (), _MTEB),
    Model("gte-Qwen2-7B-instruct", 3584, (), _MTEB),
    Model("gte-Qwen2-1.5B-instruct", 1536, (), "model card; mteb's 8960 is wrong"),
    Model("gte-multilingual-base", 768, (512, 256, 128), "model card: elastic, 128 to 768"),
    Model("gte-modernbert-base", 768, (), _MTEB),
    Model("SFR-Embedding-Mistral", 4096, (), _MTEB),
    Model("SFR-Embedding-2_R", 4096, (), _MTEB),
    Model("Linq-Embed-Mistral", 4096, (), _MTEB),
    Model("llama-embed-nemotron-8b", 4096, (), _MTEB),
    Model("inf-retriever-v1", 3584, (), _MTEB),
    Model("nomic-embed-code", 3584, (), _MTEB),
    Model("nomic-embed-text-v1", 768, (), _MTEB),
    # its card applies layer_norm before the cut, which a served vector has not seen: no plain prefix
    Model("nomic-embed-text-v1.5", 768, (), "model card: layer_norm before truncation"),
    Model("mxbai-embed-large-v1", 1024, (512,), _CARD),
    Model("snowflake-arctic-embed-l", 1024, (), _MTEB),
    Model("snowflake-arctic-embed-m-v1.5", 768, (256,), _CARD),
    Model("snowflake-arctic-embed-m-v2.0", 768, (256,), _CARD),
    Model("snowflake-arctic-embed-l-v2.0", 1024, (256,), _CARD),
    Model("jina-embeddings-v2-base-en", 768, (), _MTEB),
    Model("jina-embeddings-v2-base-de", 768, (), _MTEB),
    Model("jina-embeddings-v3", 1024, (768, 512, 256, 128, 64, 32), "config.json, matryoshka_dimensions"),
    Model("embed-english-v3.0", 1024, (), "Cohere"),
    Model("embed-multilingual-v3.0", 1024, (), "Cohere"),
    Model("embed-v4.0", 1536, (1024, 512, 256), "Cohere, output_dimension"),
    Model("voyage-3", 1024, (), "mteb 2.26.24, voyage_models.py"),
    Model("voyage-3-large", 2048, (1024, 512, 256), "Voyage, output_dimension; 1024 unless asked"),
    Model("voyage-3.5", 2048, (1024, 512, 256), "Voyage, output_dimension; 1024 unless asked"),
    Model(
        "gemini-embedding-001", 3072, (1536, 768, 512, 256, 128), "Google: 128 to 3072; 768 and 1536 advised"
    ),
    Model("gemini-embedding-2", 3072, (1536, 768), "Google"),
    Model("amazon.titan-embed-text-v2", 1024, (512, 256), "AWS"),
    Model("mistral-embed", 1024, (), "Mistral"),
    Model("codestral-embed", 3072, (1536, *_down(1536, 256)), "Mistral: any, ordered; 1536 unless asked"),
    Model("all-MiniLM-L6-v2", 384, (), _MTEB),
    Model("all-mpnet-base-v2", 768, (), _MTEB),
    Model("sentence-t5-xxl", 768, (), _MTEB),
    Model("multilingual-e5-small", 384, (), _MTEB),
    Model("multilingual-e5-base", 768, (), _MTEB),
    Model("multilingual-e5-large", 1024, (), _MTEB),
    Model("multilingual-e5-large-instruct", 1024, (), _MTEB),
    # its sizes are separate heads: a prefix of the served vector is none of them
    Model("stella_en_1.5B_v5", 1024, (), "model card: one Dense head per size"),
    Model("stella_en_400M_v5", 1024, (), "model card: one Dense head per size"),
    Model("embeddinggemma-300m", 768, (512, 256, 128), _CARD),
    Model("granite-embedding-278m-multilingual", 768, (), _MTEB),
    Model("static-retrieval-mrl-en-v1", 1024, _down(1024, 32), _CARD),
    Model("wordllama", 256, (128, 64), "l2_supercat_256, in the wordllama wheel"),
)

_BY_NAME = {model.name.lower(): model for model in MODELS}


def find(name: str) -> Model | None:
    """The model of this name, in any case, with or without its organisation ("BAAI/bge-m3"); None if unknown.

    What follows a colon ("sentence-t5-xxl:fp32") is a precision or a tag and is left out.
    """
    return _BY_NAME.get(name.strip().rsplit("/", 1)[-1].split(":", 1)[0].lower())


def nested_sizes(name: str | None, *, dim: int | None = None) -> tuple[int, ...]:
    """The Matryoshka sizes of a model, longest first: those below `dim` where its vectors have that length.

    Empty where the model is unknown, or gives no vectors of `dim`: they are something else then.
    """
    model = find(name) if name else None
    if model is None:
        return ()
    length = model.dim if dim is None else dim
    if length not in (model.dim, *model.nested):
        return ()
    return tuple(size for size in model.nested if size < length)
