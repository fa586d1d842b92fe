"""The providers that need only a key: one row each, with the page that it comes from."""

from __future__ import annotations

from typing import NamedTuple

BEARER = "authorization"
"""The header of a key that is sent as `Authorization: Bearer`."""


class Surface(NamedTuple):
    """Where a provider speaks one dialect.

    Attributes:
        path: what is put behind the native base URL; empty for that URL itself.
        header: the header that carries the key.
    """

    path: str
    header: str


class Entry(NamedTuple):
    """One row of the catalogue.

    Attributes:
        base_url: the native base URL, which stands for the client's `/v1` (Gemini: `/v1beta`);
            empty where each customer has one of their own.
        surfaces: by the name of the dialect, the native one first.
        key_variables: the environment variables in which the vendor's SDK looks for a key; none
            where it is asked without one.
        base_variable: the one in which it looks for a base URL; empty for none.
        base_suffix: what that URL lacks to be a base URL in the sense of this table.
        aliases: other names of the provider.
    """

    base_url: str
    surfaces: dict[str, Surface]
    key_variables: tuple[str, ...]
    base_variable: str = ""
    base_suffix: str = ""
    aliases: tuple[str, ...] = ()


def _openai_like(base_url: str, key_variable: str | None, *aliases: str) -> Entry:
    surfaces = {"openai": Surface("", BEARER)}
    return Entry(base_url, surfaces, (key_variable,) if key_variable else (), aliases=aliases)


CATALOGUE = {
    # https://platform.openai.com/docs/api-reference/authentication
    "openai": Entry(
        "https://api.openai.com/v1",
        {"openai": Surface("", BEARER)},
        ("OPENAI_API_KEY",),
        "OPENAI_BASE_URL",
        "",
        ("open-ai",),
    ),
    # https://docs.anthropic.com/en/api/overview and, for the OpenAI form,
    # https://docs.anthropic.com/en/api/openai-sdk
    "anthropic": Entry(
        "https://api.anthropic.com/v1",
        {"anthropic": Surface("", "x-api-key"), "openai": Surface("", BEARER)},
        ("ANTHROPIC_API_KEY",),
        "ANTHROPIC_BASE_URL",
        "/v1",
    ),
    # https://ai.google.dev/api and https://ai.google.dev/gemini-api/docs/openai
    "google": Entry(
        "https://generativelanguage.googleapis.com/v1beta",
        {"gemini": Surface("", "x-goog-api-key"), "openai": Surface("/openai", BEARER)},
        ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
        "GOOGLE_GEMINI_BASE_URL",
        "/v1beta",
        ("gemini",),
    ),
    # https://api-docs.deepseek.com
    "deepseek": _openai_like("https://api.deepseek.com", "DEEPSEEK_API_KEY", "deep-seek"),
    # https://console.groq.com/docs/openai
    "groq": _openai_like("https://api.groq.com/openai/v1", "GROQ_API_KEY", "groqcloud"),
    # https://docs.mistral.ai/api
    "mistral": _openai_like("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    # https://docs.x.ai/docs/api-reference
    "xai": _openai_like("https://api.x.ai/v1", "XAI_API_KEY", "x-ai", "grok"),
    # https://docs.together.ai/docs/openai-api-compatibility
    "together": _openai_like("https://api.together.xyz/v1", "TOGETHER_API_KEY", "together-ai"),
    # https://docs.fireworks.ai/tools-sdks/openai-compatibility
    "fireworks": _openai_like(
        "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", "fireworks-ai"
    ),
    # https://docs.cohere.com/docs/compatibility-api
    "cohere": _openai_like("https://api.cohere.ai/compatibility/v1", "CO_API_KEY"),
    # https://docs.perplexity.ai/guides/chat-completions-guide
    "perplexity": _openai_like("https://api.perplexity.ai", "PERPLEXITY_API_KEY"),
    # https://inference-docs.cerebras.ai/resources/openai
    "cerebras": _openai_like("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    # https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle (the v1 API, which
    # asks for no api-version; a model is named by its deployment)
    "azure": Entry(
        "",
        {"openai": Surface("", "api-key")},
        ("AZURE_OPENAI_API_KEY",),
        "AZURE_OPENAI_ENDPOINT",
        "/openai/v1",
        ("azure-openai",),
    ),
    # https://docs.hyperbolic.xyz/docs/rest-api
    "hyperbolic": _openai_like("https://api.hyperbolic.xyz/v1", "HYPERBOLIC_API_KEY"),
    # https://docs.inference.net/quickstart
    "inference-net": _openai_like(
        "https://api.inference.net/v1", "INFERENCE_API_KEY", "inference.net", "inference_net"
    ),
    # https://platform.moonshot.ai/docs/api/chat
    "moonshotai": _openai_like("https://api.moonshot.ai/v1", "MOONSHOT_API_KEY", "moonshot"),
    # https://docs.z.ai/api-reference/introduction
    "z-ai": _openai_like("https://api.z.ai/api/paas/v4", "ZAI_API_KEY", "zai"),
    # https://docs.ollama.com/api/openai-compatibility
    "ollama": _openai_like("http://127.0.0.1:11434/v1", None),
    # https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
    "vllm": _openai_like("http://127.0.0.1:8000/v1", None),
    # https://openrouter.ai/docs/api-reference/overview
    "openrouter": _openai_like("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", "open-router"),
}
"""The providers by name."""

NAMES = {alias: name for name, entry in CATALOGUE.items() for alias in (name, *entry.aliases)}
"""Each name and alias, in lower case, with the name that it stands for."""

Reading = tuple[str | None, str]
"""A provider, None where nobody knows it, and the name of a model of its."""


def readings(model: str) -> list[Reading]:
    """Return what a model's name may mean where nobody knows which providers there are.

    Before a `/` stands a provider. Before a `:` may stand one of the table (`openai:gpt-4o`), or
    a model whose size follows (`mistral:7b`): then it is read both ways.
    """
    found: list[Reading] = []
    provider, slash, rest = model.partition("/")
    if slash:
        found.append((provider, rest))
        known = NAMES.get(provider.lower(), provider)
        if known != provider:
            found.append((known, rest))
    before, colon, behind = model.partition(":")
    known_before = NAMES.get(before.lower()) if colon else None
    if known_before is not None and behind:
        found.append((known_before, behind))
    if not slash:
        found.append((None, model))
    return found


CUSTOM_HEADERS = {"openai": BEARER, "anthropic": "x-api-key", "gemini": "x-goog-api-key"}
"""The header of the key at a custom provider, by its dialect."""
