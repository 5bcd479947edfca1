"""The profiles of providers: consistent, as docs/providers.md says, and right about what refusals mean."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from vecbridge.embedders.failures import Fault, judge
from vecbridge.embedders.providers import PROVIDERS, Provider, Rule, address, filled, variables
from vecbridge.errors import InputError

DOCS = (Path(__file__).parent.parent / "docs" / "providers.md").read_text()
ALL = pytest.mark.parametrize("profile", PROVIDERS.values(), ids=PROVIDERS)
# what the documentation calls the kinds
DONE = {
    "passing": "tried again",
    "size": "sent in halves",
    "text": "the text is rejected",
    "final": "the run stops",
}


def rows(title: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", DOCS, re.MULTILINE | re.DOTALL)
    assert found, f"docs/providers.md has no section {title}"
    table = [line for line in found[1].splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def hides(earlier: Rule, later: Rule) -> bool:
    """Whether all that the later rule is for meets the earlier one first."""
    return (
        earlier.status in (None, later.status)
        and (earlier.code is None or (later.code is not None and earlier.code.lower() == later.code.lower()))
        and (earlier.words is None or (later.words is not None and earlier.words in later.words))
    )


def kind(provider: str, status: int, message: str = "", *, code: str | None = None) -> str:
    return judge(Fault(message, status=status, code=code), PROVIDERS[provider]).kind


def test_all_twelve_providers_have_a_profile_under_their_own_name() -> None:
    assert set(PROVIDERS) == {
        *("scaleway", "wandb", "telekom", "sambanova", "openai", "azure", "mistral"),
        *("ollama", "tei", "vllm", "llamacpp", "litellm"),
    }
    assert all(name == profile.name for name, profile in PROVIDERS.items())


@ALL
def test_base_urls_are_addresses_to_which_a_path_can_be_added(profile: Provider) -> None:
    assert profile.base_urls
    for template in profile.base_urls:
        assert not template.endswith("/")
        values = dict.fromkeys(variables(template), "https://host.example:8443")
        if "://" in template:
            values = dict.fromkeys(variables(template), "4f3a")
        url = urlsplit(filled(template, values) or "")
        local = not profile.needs_key and not variables(template)
        assert url.scheme == ("http" if local else "https")
        assert url.hostname
        assert not url.query
        assert not url.fragment
        assert "{" not in url.geturl()


@ALL
def test_only_the_last_base_url_may_need_a_variable_that_has_to_be_set(profile: Provider) -> None:
    # one without variables ends the search: what follows it could never be chosen
    assert all(variables(template) for template in profile.base_urls[:-1])
    if profile.name == "azure":
        with pytest.raises(
            InputError, match=r"^Azure OpenAI needs its address: set AZURE_OPENAI_ENDPOINT, or "
        ):
            address(profile, {})
    else:
        assert address(profile, {}) == profile.base_urls[-1]


@ALL
def test_keys_have_variables_of_the_provider_and_go_into_a_header(profile: Provider) -> None:
    assert profile.key_variables
    assert len(set(profile.key_variables)) == len(profile.key_variables)
    for name in profile.key_variables:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]*", name)
        # a key must never go to another company because its variable happens to be set
        assert all(name not in other.key_variables for other in PROVIDERS.values() if other is not profile)
    assert profile.key_header in ("Authorization", "api-key")
    for header, template in profile.headers.items():
        assert re.fullmatch(r"[A-Za-z-]+", header)
        assert not set(variables(template)) & set(profile.key_variables)


@ALL
def test_limits_are_positive_and_fields_have_names(profile: Provider) -> None:
    assert profile.items is None or profile.items >= 1
    assert profile.tokens is None or profile.tokens >= 8192, "one text of the longest model would not fit"
    assert profile.dimensions in (None, "dimensions", "output_dimension")
    assert profile.encoding in (None, "float", "base64")
    assert profile.concurrency >= 1
    assert profile.title
    assert profile.source


@ALL
def test_every_rule_can_be_reached(profile: Provider) -> None:
    for at, later in enumerate(profile.rules):
        hidden = [earlier for earlier in profile.rules[:at] if hides(earlier, later)]
        assert not hidden, f"{later} comes after {hidden[0]}"


@ALL
def test_no_rule_stands_for_all_answers_of_a_status_that_means_many_things(profile: Provider) -> None:
    for rule in profile.rules:
        assert rule.code or rule.words or rule.status not in (None, 200, 400, 500), rule
        assert rule.status is None or 400 <= rule.status < 600
        assert rule.words is None or rule.words == rule.words.lower(), "words are compared in lower case"


@ALL
def test_remedies_go_on_a_sentence(profile: Provider) -> None:
    for rule in profile.rules:
        assert rule.remedy, rule
        assert re.match(r"[a-z]+ ", rule.remedy), rule.remedy
        assert not rule.remedy.endswith((".", "!", ";", " ")), rule.remedy
        assert not re.search(r"[{}\n]|  ", rule.remedy), rule.remedy


@ALL
def test_a_remedy_names_only_variables_that_are_read(profile: Provider) -> None:
    templates = (*profile.base_urls, *profile.headers.values())
    read = {*profile.key_variables, *(name for template in templates for name in variables(template))}
    for rule in profile.rules:
        named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", rule.remedy or ""))
        # the server's own, which whoever runs it sets
        assert named <= read | {"OLLAMA_MAX_QUEUE"}, rule.remedy


def test_hiding_is_told_from_standing_beside() -> None:
    bare, worded = Rule("passing", 429), Rule("final", 429, words="current quota")
    assert hides(bare, worded)
    assert not hides(worded, bare)
    assert hides(Rule("text", words="context"), Rule("text", 400, words="context length"))
    assert not hides(Rule("final", 429, "a"), Rule("final", 429, "b"))
    assert not hides(Rule("final", 401), Rule("final", 403))


# --- addresses


@pytest.mark.parametrize(
    ("provider", "environ", "url"),
    [
        ("scaleway", {"SCW_DEFAULT_PROJECT_ID": "4f3a-1"}, "https://api.scaleway.ai/4f3a-1/v1"),
        ("scaleway", {"SCW_DEFAULT_PROJECT_ID": "  "}, "https://api.scaleway.ai/v1"),
        ("openai", {"OPENAI_BASE_URL": "https://gateway.example/v1/"}, "https://gateway.example/v1"),
        ("openai", {"OPENAI_BASE_URL": "gateway.example/v1"}, "https://gateway.example/v1"),
        ("sambanova", {"SAMBA_NOVA_BASE_URL": "https://stack.example/v1"}, "https://stack.example/v1"),
        ("azure", {"AZURE_OPENAI_ENDPOINT": "https://r.example/"}, "https://r.example/openai/v1"),
        # as the Foundry portal shows it
        ("azure", {"AZURE_OPENAI_ENDPOINT": "https://r.example/openai/v1/"}, "https://r.example/openai/v1"),
        ("azure", {"AZURE_OPENAI_ENDPOINT": "r.example"}, "https://r.example/openai/v1"),
        ("ollama", {"OLLAMA_HOST": "gpu-box"}, "http://gpu-box:11434/v1"),
        ("ollama", {"OLLAMA_HOST": "gpu-box:8000"}, "http://gpu-box:8000/v1"),
        ("ollama", {"OLLAMA_HOST": "https://gpu-box"}, "https://gpu-box/v1"),
        ("ollama", {"OLLAMA_HOST": "http://gpu-box:11434/v1"}, "http://gpu-box:11434/v1"),
        # what its server listens on
        ("ollama", {"OLLAMA_HOST": "0.0.0.0"}, "http://127.0.0.1:11434/v1"),
        ("ollama", {"OLLAMA_HOST": ":9999"}, "http://127.0.0.1:9999/v1"),
        ("ollama", {"OLLAMA_HOST": "[::1]"}, "http://[::1]:11434/v1"),
        ("ollama", {"OLLAMA_HOST": "[::1]:9999"}, "http://[::1]:9999/v1"),
        ("litellm", {"LITELLM_PROXY_API_BASE": "http://proxy:4000"}, "http://proxy:4000"),
    ],
)
def test_an_address_is_made_of_what_the_environment_says(
    provider: str, environ: dict[str, str], url: str
) -> None:
    assert address(PROVIDERS[provider], environ) == url


def test_the_project_of_wandb_is_told_only_where_both_of_its_names_are_known() -> None:
    [(header, template)] = PROVIDERS["wandb"].headers.items()
    assert header == "OpenAI-Project"
    assert filled(template, {"WANDB_ENTITY": "team", "WANDB_PROJECT": "papers"}) == "team/papers"
    assert filled(template, {"WANDB_ENTITY": "team"}) is None


def test_a_variable_that_is_missing_is_named() -> None:
    profile = dataclasses.replace(PROVIDERS["azure"], base_urls=("https://{A_HOST}/{A_PROJECT}/v1",))
    with pytest.raises(
        InputError, match=r"^Azure OpenAI needs its address: set A_PROJECT, or give --base-url"
    ):
        address(profile, {"A_HOST": "host"})


# --- what four of them mean


def test_an_empty_account_is_final_at_openai_and_the_same_code_a_rate_limit_at_sambanova() -> None:
    quota = "You exceeded your current quota, please check your plan and billing details"
    assert kind("openai", 429, quota, code="insufficient_quota") == "final"
    assert kind("sambanova", 429, "Rate limit exceeded", code="insufficient_quota") == "passing"


def test_openai_tells_a_rate_from_an_account_and_from_a_request_that_can_never_pass() -> None:
    assert kind("openai", 429, "Rate limit reached", code="rate_limit_exceeded") == "passing"
    assert kind("openai", 429, "Request too large: Limit 40000, Requested 90000") == "size"
    for name in ("credit_balance_exhausted", "project_spend_limit_exceeded"):
        assert kind("openai", 429, "", code=name) == "final"
    typed = Fault("", status=429, code="a_new_one", type="insufficient_quota")
    assert judge(typed, PROVIDERS["openai"]).kind == "final"


def test_scaleway_says_422_for_an_unknown_model_and_403_for_a_key_or_the_wrong_project() -> None:
    unknown = judge(Fault("Model not found", status=422), PROVIDERS["scaleway"])
    assert unknown.kind == "final"
    assert "GET /models" in (unknown.remedy or "")
    forbidden = judge(Fault("insufficient permissions", status=403), PROVIDERS["scaleway"])
    assert forbidden.kind == "final"
    for needed in ("SCW_SECRET_KEY", "GenerativeApisModelAccess", "SCW_DEFAULT_PROJECT_ID"):
        assert needed in (forbidden.remedy or "")


def test_scaleway_limits_what_is_open_at_once_and_what_comes_in_a_minute() -> None:
    at_once = "You exceeded your current threshold of concurrent requests"
    per_minute = "You exceeded your current quota of tokens per minute"
    for message, option in ((at_once, "--concurrency"), (per_minute, "--tokens-per-minute")):
        verdict = judge(Fault(message, status=429), PROVIDERS["scaleway"])
        assert verdict.kind == "passing"
        assert option in (verdict.remedy or "")
    assert kind("scaleway", 504) == "passing"
    assert kind("scaleway", 400, "You exceeded maximum context window for this model") == "text"


def test_scaleway_takes_neither_dimensions_nor_a_format() -> None:
    assert (PROVIDERS["scaleway"].dimensions, PROVIDERS["scaleway"].encoding) == (None, None)


def test_wandb_is_asked_at_its_inference_host_and_not_at_its_api_host() -> None:
    assert address(PROVIDERS["wandb"], {"WANDB_BASE_URL": "https://api.wandb.ai"}) == (
        "https://api.inference.wandb.ai/v1"
    )


def test_wandb_says_402_for_no_credit_429_for_too_many_at_once_and_403_for_two_things() -> None:
    assert kind("wandb", 402, "You exceeded your current quota") == "final"
    assert kind("wandb", 429, "Concurrency limit reached for requests") == "passing"
    assert kind("wandb", 429, "You exceeded your current quota, please check your plan") == "final"
    region = judge(Fault("Country, region, or territory not supported", status=403), PROVIDERS["wandb"])
    gateway = judge(Fault("The inference gateway is not enabled for you", status=403), PROVIDERS["wandb"])
    assert (region.kind, gateway.kind) == ("final", "final")
    assert "location" in (region.remedy or "")
    assert "administrator" in (gateway.remedy or "")
    assert kind("wandb", 503, "The engine is currently overloaded") == "passing"


def test_telekom_points_to_its_portals() -> None:
    assert address(PROVIDERS["telekom"], {}) == "https://llm-server.llmhub.t-systems.net/v2"
    expired = judge(Fault("Incorrect API key provided", status=401), PROVIDERS["telekom"])
    assert (expired.kind, "https://apikey.llmhub.t-systems.net" in (expired.remedy or "")) == ("final", True)
    assert kind("telekom", 429) == "passing"
    assert kind("telekom", 404, "Model not found") == "final"


def test_sambanova_says_400_for_an_unknown_model_and_for_a_text_that_is_too_long() -> None:
    assert kind("sambanova", 400, code="model_not_found") == "final"
    assert kind("sambanova", 400, code="context_length_exceeded") == "text"
    assert kind("sambanova", 408, code="request_timeout") == "passing"
    assert kind("sambanova", 410) == "final"


def test_servers_of_ones_own_say_500_for_a_text_and_422_for_a_batch() -> None:
    assert kind("ollama", 500, "failed to encode response: json: unsupported value: NaN") == "text"
    assert kind("ollama", 400, "the input length exceeds the context length") == "text"
    assert kind("ollama", 500, "something else") == "passing"
    assert kind("llamacpp", 500, "input is too large to process. increase the physical batch size") == "text"
    assert kind("llamacpp", 501, "This server does not support embeddings") == "final"
    assert kind("llamacpp", 503, "Loading model", code="unavailable_error") == "passing"
    assert kind("tei", 422, "batch size 64 > maximum allowed batch size 32") == "size"
    assert kind("tei", 422, "`inputs` must have less than 512 tokens. Given: 600") == "text"
    assert kind("tei", 413) == "size"
    assert kind("tei", 424, "Backend error") == "passing"
    assert kind("mistral", 400, "Too many inputs in request, split into more batches.") == "size"
    assert kind("azure", 404, "The API deployment does not exist", code="DeploymentNotFound") == "final"
    assert kind("vllm", 400, "Model does not support matryoshka representation") == "final"
    assert kind("litellm", 429, "OpenAIException - You exceeded your current quota") == "final"


# --- the documentation


def documented() -> dict[str, list[str]]:
    return {code(row[0])[0].partition(":")[0]: row for row in rows("All profiles")}


@ALL
def test_the_documented_profile_is_the_profile(profile: Provider) -> None:
    spec, key, url, texts, tokens, dimensions, encoding, concurrency, cut = documented()[profile.name]
    assert code(spec)[0].startswith(f"{profile.name}:")
    assert code(key) == list(profile.key_variables)
    assert ("if the server asks for one" in key) == (not profile.needs_key)
    assert code(url) == [re.sub(r"[{}]", "", template) for template in profile.base_urls]
    assert texts == (f"{profile.items:,}" if profile.items else "not documented")
    assert tokens == (f"{profile.tokens:,}" if profile.tokens else "not documented")
    assert code(dimensions) == ([profile.dimensions] if profile.dimensions else [])
    assert code(encoding) == ([profile.encoding] if profile.encoding else [])
    assert concurrency == str(profile.concurrency)
    assert cut == ("yes" if profile.truncates else "no")


def test_no_other_profile_is_documented() -> None:
    assert set(documented()) == set(PROVIDERS)


@ALL
def test_the_documented_refusals_and_remedies_are_the_rules(profile: Provider) -> None:
    wanted = [
        [
            str(rule.status or "any"),
            ", ".join([f"`{rule.code}`"] * bool(rule.code) + [f"“{rule.words}”"] * bool(rule.words)) or "any",
            DONE[rule.kind],
            rule.remedy or "",
        ]
        for rule in profile.rules
    ]
    assert rows(profile.title) == wanted


@ALL
def test_the_documentation_says_where_a_profile_comes_from(profile: Provider) -> None:
    [section] = re.findall(
        rf"^### {re.escape(profile.title)}\n(.*?)(?=^#|\Z)", DOCS, re.MULTILINE | re.DOTALL
    )
    assert f"Source: {profile.source}." in section


def test_the_nightly_job_is_shown_for_the_four_providers_with_variables_that_are_read() -> None:
    shown = rows("The nightly job at four providers")
    found = {}
    for _title, environment, command in shown:
        [line] = code(command)
        spec = re.search(r"--embedder ([a-z]+):(\S+)", line)
        assert spec, line
        assert line.startswith("vecbridge ingest docs/ --to postgresql://")
        assert line.endswith(" --prune")
        assert "--collection papers" in line
        profile = PROVIDERS[spec[1]]
        templates = (*profile.base_urls, *profile.headers.values())
        read = {*profile.key_variables, *(name for template in templates for name in variables(template))}
        names = [text.partition("=")[0] for text in code(environment)]
        assert set(names) <= read
        assert profile.key_variables[0] in names
        found[spec[1]] = spec[2]
    assert list(found) == ["scaleway", "wandb", "telekom", "sambanova"]
    assert found["scaleway"] == "bge-multilingual-gemma2"
    # nothing is documented that could be named
    assert found["wandb"] == "MODEL"
