"""Who serves embeddings by OpenAI's /v1/embeddings, and how each differs: data, with sources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from ..errors import InputError

Kind = Literal["passing", "size", "text", "final"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What one kind of refusal means at a provider, and what its documentation says to do.

    It applies where `status` is the answer's (None: any), `code` its code or type (None: any), and `words`
    occurs in its message, in any case (None: any). `kind`: "passing" (the same request may succeed later),
    "size" (fewer or shorter texts would do), "text" (one text is refused for what it is), "final". `remedy`:
    what to do, so that it can follow "; " in an error.
    """

    kind: Kind
    status: int | None = None
    code: str | None = None
    words: str | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider's profile.

    `base_urls`: up to what `/embeddings` follows, with `{NAME}` for values of environment variables; the
    first whose variables are all set counts: `address` finds it. `key_variables`: those that may hold the
    key, the first that is set counts. `needs_key`: whether nothing works without one. `key_header`: the
    header it goes into; with "Authorization" as a bearer token. `headers`: further headers, with `{NAME}` as
    in the base URLs; one whose variable is not set is left out: `filled` gives None. `items`, `tokens`: the
    most texts and tokens of one request (None: not documented).
    `dimensions`: the field that asks for shorter vectors, None where there is none. `encoding`: what is sent
    as encoding_format, None where it must not be sent. `rules`: what its refusals mean, looked at before the
    general ones; the first that applies counts. `concurrency`: requests in flight where nothing else is
    said. `truncates`: whether its servers cut long texts short in silence. `source`: where this is written.
    """

    name: str
    title: str
    base_urls: tuple[str, ...]
    key_variables: tuple[str, ...]
    needs_key: bool
    source: str
    key_header: str = "Authorization"
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    items: int | None = None
    tokens: int | None = None
    dimensions: str | None = "dimensions"
    encoding: Literal["float", "base64"] | None = "base64"
    rules: tuple[Rule, ...] = ()
    concurrency: int = 4
    truncates: bool = False


_NAME = re.compile(r"\{([A-Z][A-Z0-9_]*)\}")


def variables(template: str) -> tuple[str, ...]:
    """The environment variables that a base URL or a header is made of."""
    return tuple(_NAME.findall(template))


def filled(template: str, environ: Mapping[str, str]) -> str | None:
    """A template with the values of its environment variables; None where one is not set, or is blank."""
    values = {name: environ.get(name, "").strip() for name in variables(template)}
    if not all(values.values()):
        return None
    return _NAME.sub(lambda match: values[match[1]].rstrip("/"), template)


def address(profile: Provider, environ: Mapping[str, str]) -> str:
    """The base URL of a provider in this environment, without a slash at its end.

    A value may already end with the path that belongs to it: it is not repeated. One without a scheme, such
    as `gpu-box` or `gpu-box:8000` (OLLAMA_HOST is written so), gets that of the profile's last base URL, and
    where it names no port that port, too. Raises InputError that names the variable to set.
    """
    last = profile.base_urls[-1]
    for template in profile.base_urls:
        if (url := filled(template, environ)) is not None:
            path = template.rpartition("}")[2] if "}" in template else ""
            if path and url.endswith(path * 2):
                url = url.removesuffix(path)
            return url if "://" in url else _completed(url, last)
    missing = " and ".join(name for name in variables(last) if not environ.get(name, "").strip())
    raise InputError(f"{profile.title} needs its address: set {missing}, or give --base-url URL")


def _completed(url: str, like: str) -> str:
    """`host/path` or `host:port/path` with the scheme, and if need be the port, of another URL."""
    default = urlsplit(like if "://" in like else "https://host")
    host, slash, path = url.partition("/")
    name, colon, port = host.rpartition(":")
    if not (colon and port.isdigit()):
        name, port = host, str(default.port or "")
    if name in ("", "0.0.0.0"):  # noqa: S104 - what a server listens on is no address to connect to
        name = "127.0.0.1"
    return f"{default.scheme}://{name}{':' if port else ''}{port}{slash}{path}"


# no rule stands for all of 400 or 500: these mean too many things, and the general rules tell them apart
_SHORTER = "make the chunks shorter than the model's limit"
_FEWER = "send fewer or shorter texts in one request"
_PACE = "pace the requests with --requests-per-minute and --tokens-per-minute"
_OPENAI = (
    Rule("final", 429, "credit_balance_exhausted", remedy="buy more credits for the account"),
    Rule("final", 429, "organization_spend_limit_exceeded", remedy="raise the organization's spend limit"),
    Rule("final", 429, "project_spend_limit_exceeded", remedy="raise the project's spend limit"),
    Rule("final", 429, "organization_usage_limit_exceeded", remedy="ask for a higher usage limit"),
    Rule("final", 429, "insufficient_quota", remedy="buy more credits or raise the account's limits"),
    # more tokens than a whole minute allows: waiting would never help
    Rule("size", 429, words="request too large", remedy=_FEWER),
    Rule("passing", 429, remedy=_PACE),
    Rule("size", 400, "max_tokens_per_request", remedy=_FEWER),
    Rule("text", 400, words="maximum context length", remedy=_SHORTER),
    Rule("final", 403, words="country", remedy="run this where the provider offers its API"),
    Rule("final", 404, "model_not_found", remedy="check the model's name, and whether the key may use it"),
)
_SCALEWAY = (
    Rule("text", 400, words="context", remedy=_SHORTER + ", or use a model with a longer context window"),
    Rule("size", 400, words="too large", remedy=_FEWER),
    Rule("final", 401, remedy="set SCW_SECRET_KEY: the authorization header was missing"),
    Rule(
        "final",
        403,
        remedy="ensure that SCW_SECRET_KEY is the secret key of an API key with the permission set "
        "GenerativeApisModelAccess or GenerativeApisFullAccess; if it is for one Project only, set "
        "SCW_DEFAULT_PROJECT_ID to the ID of that Project, which then becomes part of the URL",
    ),
    Rule(
        "final", 404, remedy="check the base URL: https://api.scaleway.ai/v1, or with a Project ID before /v1"
    ),
    Rule("final", 422, remedy="name a supported model: GET /models of the same base URL lists them"),
    Rule("passing", 429, words="concurrent", remedy="keep fewer requests open at once with --concurrency"),
    Rule(
        "passing",
        429,
        remedy=_PACE + ", below the Organization quotas; verify your identity and add a payment method to "
        "raise these",
    ),
    Rule("passing", 504, remedy=_FEWER),
)
_CREDITS = "get more credits, or raise the spending cap, on the W&B billing page"
_WANDB = (
    Rule(
        "final",
        401,
        remedy="ensure that WANDB_API_KEY is right (https://wandb.ai/settings), and that WANDB_ENTITY and "
        "WANDB_PROJECT name your team and project",
    ),
    Rule("final", 402, remedy=_CREDITS),
    Rule("final", 403, words="country", remedy="run this from a location that W&B Inference supports"),
    Rule("final", 403, words="gateway", remedy="ask your W&B administrator to enable the inference gateway"),
    Rule("final", 404, remedy="name a model that GET /models of the same base URL lists"),
    Rule("final", 429, words="current quota", remedy=_CREDITS),
    Rule("final", 429, words="personal accounts", remedy="create a team, and set WANDB_ENTITY to it"),
    Rule("passing", 429, remedy="reduce --concurrency, or ask for a higher limit of concurrent requests"),
    Rule("passing", 503, remedy="retry after a minute or two: the engine is overloaded"),
)
_TELEKOM = (
    Rule("text", 400, words="context length", remedy=_SHORTER + ", max_sequence_length in GET /models"),
    Rule("final", 401, remedy="check TELEKOM_API_KEY at https://apikey.llmhub.t-systems.net: keys expire"),
    Rule("final", 403, remedy="check the plan that the key belongs to, or contact the support"),
    Rule("final", 404, remedy="compare the model's name with GET /models, upper and lower case included"),
    Rule("passing", 429, remedy=_PACE + ", below the limits of the plan"),
    Rule("passing", 503, remedy="check the model at https://uptime.llmhub.t-systems.net/status/health"),
)
_SAMBANOVA = (
    Rule("text", 400, "context_length_exceeded", remedy=_SHORTER),
    Rule(
        "final",
        400,
        "model_not_found",
        remedy="name a model that GET /models lists; E5-Mistral-7B-Instruct is on SambaStack only, whose "
        "base URL goes into SAMBA_NOVA_BASE_URL",
    ),
    Rule("passing", 408, remedy=_FEWER),
    Rule("final", 410, remedy="use a model that is still supported: this one was removed"),
    # at OpenAI this code means an empty account; here it is how every rate limit is reported
    Rule("passing", 429, "insufficient_quota", remedy=_PACE + ", or upgrade the plan"),
    Rule("passing", 429, remedy=_PACE + ", or upgrade the plan"),
    Rule("passing", 503, remedy="retry later: the model is under maintenance"),
    Rule("passing", 504, remedy="retry later, or reduce --concurrency"),
)
_AZURE = (
    Rule("final", 401, remedy="check that the key belongs to the resource that AZURE_OPENAI_ENDPOINT names"),
    Rule("final", 404, "DeploymentNotFound", remedy="give the deployment's name, not that of its model"),
    Rule("final", 404, remedy="check AZURE_OPENAI_ENDPOINT, such as https://RESOURCE.openai.azure.com"),
    Rule("size", 400, words="too many inputs", remedy=_FEWER),
    Rule("text", 400, words="maximum context length", remedy=_SHORTER),
    Rule("final", 429, "insufficient_quota", remedy="check quota and billing of the Azure subscription"),
    Rule("passing", 429, remedy="raise the deployment's tokens per minute, or use --tokens-per-minute"),
)
_MISTRAL = (
    Rule("size", 400, words="too many inputs", remedy=_FEWER),
    Rule("size", 400, words="too many tokens", remedy=_FEWER),
    Rule("text", 400, words="exceeding max", remedy=_SHORTER),
    Rule("final", 400, words="invalid model", remedy="name a model that GET /models lists"),
    Rule("final", 401, remedy="verify MISTRAL_API_KEY at https://console.mistral.ai/api-keys"),
    Rule("final", 402, remedy="check payment method and limits of the organization"),
    Rule("final", 403, remedy="check that your subscription and workspace may use the model"),
    Rule("passing", 429, remedy=_PACE + ", or upgrade the plan"),
)
_OLLAMA = (
    Rule("text", words="unsupported value: nan", remedy="use another build of the model: it gives NaN"),
    Rule("text", words="context length", remedy=_SHORTER + ", or raise num_ctx"),
    Rule("text", words="context size", remedy=_SHORTER + ", or raise num_ctx"),
    Rule("text", words="too large to process", remedy=_SHORTER),
    Rule("final", words="does not support embeddings", remedy="choose an embedding model"),
    Rule("final", 404, remedy="fetch the model first with `ollama pull MODEL`"),
    Rule("passing", 503, remedy="reduce --concurrency, or raise OLLAMA_MAX_QUEUE on the server"),
)
_TEI = (
    Rule("size", 422, words="batch size", remedy="raise --max-client-batch-size of the server"),
    Rule("text", 422, words="must have less than", remedy=_SHORTER),
    Rule("text", 422, words="cannot be empty", remedy="leave blank texts out"),
    Rule("final", 422, words="dimensions", remedy="leave --dimensions out, or ask for fewer"),
    Rule("text", 422, "Tokenizer", remedy="look at this text: the tokenizer cannot read it"),
    Rule("size", 413, remedy=_FEWER),
    Rule("final", 401, remedy="set TEI_API_KEY to what the server was started with as --api-key"),
    Rule("passing", 424, remedy="look into the server's log: the model behind it failed"),
    Rule("passing", 429, remedy="reduce --concurrency, or raise --max-concurrent-requests of the server"),
)
_VLLM = (
    Rule("text", 400, words="context length", remedy=_SHORTER + ", or raise --max-model-len"),
    Rule("final", 400, words="matryoshka", remedy="leave --dimensions out, or ask for a trained size"),
    Rule("final", words="does not support embeddings", remedy="start vLLM with an embedding model"),
    Rule("final", 401, remedy="set VLLM_API_KEY to what the server was started with as --api-key"),
    Rule("final", 404, remedy="use the model's name as GET /models gives it (--served-model-name)"),
)
_LLAMACPP = (
    Rule("text", words="too large to process", remedy="start llama-server with a larger --ubatch-size"),
    Rule("text", words="physical batch", remedy="start llama-server with a larger --ubatch-size"),
    Rule("text", 400, "exceed_context_size_error", remedy="start llama-server with a larger --ctx-size"),
    Rule("final", 400, words="pooling", remedy="start llama-server with --pooling mean, cls or last"),
    Rule("final", 401, remedy="set LLAMA_API_KEY to what the server was started with as --api-key"),
    Rule("final", 501, remedy="start llama-server with --embeddings"),
    Rule("passing", 503, remedy="wait until llama-server has loaded the model"),
)
_BUDGET = "raise the budget of the key, its user or its team in the proxy"
_LITELLM = (
    Rule("final", code="budget_exceeded", remedy=_BUDGET),
    Rule("final", words="exceededbudget", remedy=_BUDGET),
    Rule("final", code="key_model_access_denied", remedy="let the key use the model, or name another one"),
    Rule(
        "final",
        400,
        words="unsupportedparamserror",
        remedy="leave --dimensions out, or set drop_params in the proxy's litellm_settings",
    ),
    Rule("text", 400, words="contextwindowexceedederror", remedy=_SHORTER),
    Rule("final", 400, words="invalid model name", remedy="name a model_name of the proxy's model_list"),
    Rule("final", 401, remedy="set LITELLM_PROXY_API_KEY to a virtual key that has not expired"),
    Rule("final", 429, words="current quota", remedy="buy more credits at the provider behind the proxy"),
    Rule("passing", 429, remedy="raise rpm and tpm of the key or the model in the proxy"),
)

PROVIDERS: dict[str, Provider] = {
    profile.name: profile
    for profile in (
        Provider(
            name="scaleway",
            title="Scaleway Generative APIs",
            base_urls=(
                "https://api.scaleway.ai/{SCW_DEFAULT_PROJECT_ID}/v1",
                "https://api.scaleway.ai/v1",
            ),
            key_variables=("SCW_SECRET_KEY",),
            needs_key=True,
            # both are documented as unsupported
            dimensions=None,
            encoding=None,
            rules=_SCALEWAY,
            source="Scaleway docs: using-embeddings-api, understanding-errors, fixing-common-issues",
        ),
        Provider(
            name="wandb",
            title="W&B Inference",
            base_urls=("https://api.inference.wandb.ai/v1",),
            key_variables=("WANDB_API_KEY",),
            needs_key=True,
            # left out, the account's default team and the project "inference" are charged
            headers={"OpenAI-Project": "{WANDB_ENTITY}/{WANDB_PROJECT}"},
            dimensions=None,
            encoding=None,
            rules=_WANDB,
            concurrency=2,
            source="W&B docs: inference/api-reference, its page on errors, inference/usage-limits",
        ),
        Provider(
            name="telekom",
            title="Telekom AI Foundation Services (LLM Hub)",
            base_urls=("https://llm-server.llmhub.t-systems.net/v2",),
            key_variables=("TELEKOM_API_KEY",),
            needs_key=True,
            dimensions=None,
            encoding=None,
            rules=_TELEKOM,
            source="telekom/aifoundation-docs: authentication, guides/embeddings, error-codes, rate-limits",
        ),
        Provider(
            name="sambanova",
            title="SambaNova",
            base_urls=("{SAMBA_NOVA_BASE_URL}", "https://api.sambanova.ai/v1"),
            key_variables=("SAMBANOVA_API_KEY",),
            needs_key=True,
            # what SambaNova's LangChain package sends at most; the service documents no number
            items=32,
            dimensions=None,
            # only its newer SDKs know the field; without it every server answers with floats
            encoding=None,
            rules=_SAMBANOVA,
            concurrency=2,
            source="SambaNova docs: api-error-codes, features/embeddings; Python SDK sambanova 1.13",
        ),
        Provider(
            name="openai",
            title="OpenAI, or any API like it with --base-url",
            base_urls=("{OPENAI_BASE_URL}", "https://api.openai.com/v1"),
            key_variables=("OPENAI_API_KEY",),
            needs_key=True,
            items=2048,
            tokens=300_000,
            rules=_OPENAI,
            concurrency=8,
            source="OpenAI API specification, CreateEmbeddingRequest; OpenAI docs: guides/error-codes",
        ),
        Provider(
            name="azure",
            title="Azure OpenAI",
            base_urls=("{AZURE_OPENAI_ENDPOINT}/openai/v1",),
            key_variables=("AZURE_OPENAI_API_KEY",),
            needs_key=True,
            key_header="api-key",
            items=2048,
            tokens=300_000,
            rules=_AZURE,
            source="Microsoft Learn: Azure OpenAI api-version-lifecycle, how-to/embeddings, quotas-limits",
        ),
        Provider(
            name="mistral",
            title="Mistral AI",
            base_urls=("https://api.mistral.ai/v1",),
            key_variables=("MISTRAL_API_KEY",),
            needs_key=True,
            items=256,
            # 16,384 in the API's own message; newer reports say 65,536
            tokens=16_384,
            dimensions="output_dimension",
            encoding="float",
            rules=_MISTRAL,
            concurrency=2,
            source="Mistral docs: api/endpoint/embeddings, error-glossary; limits as users report them",
        ),
        Provider(
            name="ollama",
            title="Ollama",
            base_urls=("{OLLAMA_HOST}/v1", "http://localhost:11434/v1"),
            key_variables=("OLLAMA_API_KEY",),
            needs_key=False,
            rules=_OLLAMA,
            # OLLAMA_NUM_PARALLEL is 1 by default: one is computed while the next arrives
            concurrency=2,
            truncates=True,
            source="ollama/ollama: middleware/openai.go, openai/openai.go, envconfig; docs.ollama.com",
        ),
        Provider(
            name="tei",
            title="Text Embeddings Inference",
            base_urls=("http://localhost:8080/v1",),
            key_variables=("TEI_API_KEY",),
            needs_key=False,
            items=32,
            rules=_TEI,
            concurrency=8,
            truncates=True,
            source="huggingface/text-embeddings-inference: README, router/src/main.rs, router/src/http",
        ),
        Provider(
            name="vllm",
            title="vLLM",
            base_urls=("http://localhost:8000/v1",),
            key_variables=("VLLM_API_KEY",),
            needs_key=False,
            rules=_VLLM,
            concurrency=8,
            source="docs.vllm.ai: OpenAI-compatible server, pooling models; vllm/pooling_params.py",
        ),
        Provider(
            name="llamacpp",
            title="llama.cpp (llama-server)",
            base_urls=("http://localhost:8080/v1",),
            key_variables=("LLAMA_API_KEY",),
            needs_key=False,
            # ignored in silence: the answer would have the full length
            dimensions=None,
            rules=_LLAMACPP,
            source="ggml-org/llama.cpp: tools/server README and server.cpp, issues 10887, 12295, 25210",
        ),
        Provider(
            name="litellm",
            title="LiteLLM proxy",
            base_urls=("{LITELLM_PROXY_API_BASE}", "http://localhost:4000/v1"),
            key_variables=("LITELLM_PROXY_API_KEY",),
            needs_key=False,
            # refused, even as "float", where the provider behind has no such parameter (issue 33173)
            encoding=None,
            rules=_LITELLM,
            source="docs.litellm.ai: providers/litellm_proxy, proxy/error_reference",
        ),
    )
}
