"""Documents made from the configurations of other gateways, and what can't be carried over."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from ..providers.catalogue import CATALOGUE, NAMES
from .document import Node, read
from .mistakes import Mistake, PolicyError
from .policy import ALL_ACTIONS, REQUEST, RESPONSE, unwrapped

Json = dict[str, Any]

_ENVIRONMENT = re.compile(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)").fullmatch
# https://docs.litellm.ai/docs/providers: names of LiteLLM's that are not ours.
_LITELLM_PROVIDERS = {
    "gemini": "google", "mistral": "mistral", "together_ai": "together", "fireworks_ai":
    "fireworks", "xai": "xai", "azure": "azure", "cohere_chat": "cohere", "moonshot": "moonshotai",
    "hosted_vllm": "vllm", "ollama_chat": "ollama", "perplexity": "perplexity",
}  # fmt: skip
_LITELLM_OTHER = {
    "general_settings": "set it up with aigw serve's own options",
    "litellm_settings": "has no counterpart",
    "router_settings": "failover goes by the order of providers",
    "environment_variables": "set them in the environment",
    "guardrails": "has no counterpart",
    "mcp_servers": "has no counterpart",
    "model_group_alias": "write an id_alias",
}


class Moved:
    """A document that was made from another configuration.

    Attributes:
        document: the document.
        left: what could not be carried over, a line each.
    """

    def __init__(self) -> None:
        self.document: Json = {}
        self.left: list[str] = []

    def text(self) -> str:
        """Return the document as YAML."""
        return yaml.safe_dump(self.document, sort_keys=False, allow_unicode=True, width=100)


# --- LiteLLM


def from_litellm(text: str | bytes, name: str) -> Moved:
    """Return what a LiteLLM proxy's `config.yaml` becomes.

    Each entry of `model_list` becomes a model of a provider, its `model_name` an alias; `api_base`
    becomes `base_url`, `os.environ/NAME` a secret of the vault `env`.

    Raises:
        ValueError: it is no such configuration.
    """
    node = read(text, name)
    config = node.plain()
    if not isinstance(config, dict) or not isinstance(config.get("model_list"), list):
        raise ValueError(f"{name}: a LiteLLM configuration has a model_list")
    moved = Moved()
    providers: dict[tuple[str, str], Json] = {}
    for number, entry in enumerate(config["model_list"], 1):
        _model(entry, f"model_list entry {number}", providers, moved)
    for key in config:
        if key != "model_list":
            reason = _LITELLM_OTHER.get(key, "is not known here")
            moved.left.append(f"{key}: {reason}")
    gateway = {
        "providers": list(providers.values()),
        "only_allow_configured_providers": True,
        "only_allow_configured_models": True,
    }
    if not providers:
        raise ValueError(f"{name}: no entry of model_list could be carried over")
    moved.document = {REQUEST: [{"type": "ai-gateway", "config": gateway}]}
    return moved


def _model(entry: object, where: str, providers: dict[tuple[str, str], Json], moved: Moved) -> None:
    parameters = entry.get("litellm_params") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(parameters, dict):
        moved.left.append(f"{where}: has no litellm_params")
        return
    full = parameters.get("model")
    alias = entry.get("model_name")
    if not isinstance(full, str) or not isinstance(alias, str) or "*" in full + alias:
        moved.left.append(f"{where}: names no single model")
        return
    prefix, slash, model = full.partition("/")
    known = _LITELLM_PROVIDERS.get(prefix, NAMES.get(prefix.lower()))
    if not slash:
        prefix, model, known = "openai", full, "openai"
    base = parameters.get("api_base")
    if known is None and base is None:
        moved.left.append(f"{where}: the provider {prefix!r} is not in the catalogue")
        return
    provider = _provider(known or prefix, base, providers, where, moved)
    if provider is None:
        return
    _keys(parameters.get("api_key"), provider, where, moved)
    _add_model(provider, model, alias)
    for key in parameters:
        if key not in ("model", "api_key", "api_base"):
            moved.left.append(f"{where}: litellm_params.{key} has no counterpart")
    for key in entry:
        if key not in ("model_name", "litellm_params"):
            moved.left.append(f"{where}: {key} has no counterpart")


def _provider(
    name: str,
    base: object,
    providers: dict[tuple[str, str], Json],
    where: str,
    moved: Moved,
) -> Json | None:
    """Return the provider of a name and an address, made where there is none yet."""
    address = base if isinstance(base, str) else ""
    if address.startswith("os.environ/"):
        moved.left.append(f"{where}: api_base comes from the environment; write the address")
        return None
    if not address and name in CATALOGUE and not CATALOGUE[name].base_url:
        moved.left.append(f"{where}: {name} needs api_base")
        return None
    found = providers.get((name, address))
    if found is not None:
        return found
    used = {provider["id"] for provider in providers.values()}
    id_ = name if name not in used else f"{name}-{len(used) + 1}"
    found = {"id": id_}
    if address:
        found["base_url"] = address.rstrip("/")
    elif id_ != name:
        found["base_url"] = CATALOGUE[name].base_url
    providers[name, address] = found
    return found


def _keys(key: object, provider: Json, where: str, moved: Moved) -> None:
    if key is None:
        return
    match = _ENVIRONMENT(key) if isinstance(key, str) else None
    if match is None:
        moved.left.append(f"{where}: api_key is written out; keep it in a vault, not in a document")
        return
    value = {"value": f"${{secrets.get('env', '{match[1]}')}}"}
    keys = provider.setdefault("api_keys", [])
    if value not in keys:
        keys.append(value)
        moved.left.append(
            f"{where}: set AIGW_VAULT_ENV_{match[1].upper()} to what {match[1]} holds"
        )


def _add_model(provider: Json, model: str, alias: str) -> None:
    models = provider.setdefault("models", [])
    found = next((one for one in models if one["id"] == model), None)
    if found is None:
        found = {"id": model}
        models.append(found)
    if alias.lower() != model.lower() and alias not in found.get("id_aliases", ()):
        found.setdefault("id_aliases", []).append(alias)


# --- ngrok


def from_ngrok(text: str | bytes, name: str) -> Moved:
    """Return what an ngrok document becomes here, with what to add so that it runs.

    Actions and phases that are not supported are left out and told. A document whose rules guard
    the gateway by themselves gets `authentication: none`, which ngrok's has not.

    Raises:
        ValueError: it is no such document.
    """
    node = unwrapped(read(text, name), name)
    if not isinstance(node.value, dict):
        raise PolicyError(name, [Mistake("a document is a mapping of phases")])
    moved = Moved()
    for phase, rules in node.value.items():
        if phase not in (REQUEST, RESPONSE):
            moved.left.append(f"{phase}: this phase is not supported")
        elif not isinstance(rules.value, list):
            moved.left.append(f"{phase}: is no list of rules")
        else:
            moved.document[phase] = _carried(phase, rules.value, moved)
    _guard(moved)
    return moved


def _carried(phase: str, rules: list[Node], moved: Moved) -> list[Any]:
    found = []
    for number, node in enumerate(rules, 1):
        rule = node.plain()
        where = f"{phase} rule {number}"
        if not isinstance(rule, dict):
            moved.left.append(f"{where}: is no rule")
        elif "actions" not in rule:
            if _is_known(rule, where, moved):
                found.append(_with_fields(rule, where, moved))
        elif not isinstance(rule["actions"], list):
            moved.left.append(f"{where}: its actions are no list")
        else:
            actions = [
                _with_fields(action, where, moved)
                for action in rule["actions"]
                if _is_known(action, where, moved)
            ]
            if actions:
                found.append({**rule, "actions": actions})
    return found


def _is_known(action: object, where: str, moved: Moved) -> bool:
    kind = action.get("type") if isinstance(action, dict) else None
    if isinstance(kind, str) and kind in ALL_ACTIONS:
        return True
    moved.left.append(f"{where}: the action {kind!r} is not supported")
    return False


def _with_fields(action: Json, where: str, moved: Moved) -> Json:
    """Return an action without the fields that are not supported here."""
    config = action.get("config")
    if not isinstance(config, Mapping):
        return action
    known = ALL_ACTIONS[action["type"]].fields.fields
    for name in config:
        if name not in known:
            moved.left.append(f"{where}: {action['type']}: {name} is not supported")
    return {**action, "config": {name: v for name, v in config.items() if name in known}}


def _guards(rule: Json) -> bool:
    """Whether a rule asks every client for a credential: what looks like it, and nothing else."""
    expressions = rule.get("expressions") or []
    if not isinstance(expressions, list):
        return False  # it is told of when the document is read
    for action in rule.get("actions", [rule]):
        if action.get("type") in ("jwt-validation", "basic-auth") and not expressions:
            config = action.get("config")
            return not isinstance(config, Mapping) or config.get("enforce") is not False
        if action.get("type") in ("custom-response", "deny") and len(expressions) == 1:
            text = str(expressions[0]).lower()
            return "authorization" in text or "x-api-key" in text
    return False


def _guard(moved: Moved) -> None:
    """Say who may use the gateway of a document: whoever its own rules let through, or keys."""
    guarded = False
    for rule in moved.document.get(REQUEST, []):
        guarded = guarded or _guards(rule)
        for action in rule.get("actions", [rule]):
            if action.get("type") != "ai-gateway":
                continue
            config = action.get("config")
            if guarded and not moved.left and (config is None or isinstance(config, Mapping)):
                action["config"] = {**(config or {}), "authentication": "none"}
                moved.left.append(
                    "ai-gateway: the rules before it ask for a credential, so authentication: none "
                    "was added; take it out to ask for gateway keys as well"
                )
            elif guarded:
                moved.left.append(
                    "ai-gateway: clients need a gateway key (aigw keys create). The rules before "
                    "it seem to ask for a credential too, but parts were left out: add "
                    "authentication: none where what is left guards it"
                )
            else:
                moved.left.append(
                    "ai-gateway: clients need a gateway key (aigw keys create); at ngrok anybody "
                    "could use the keys of this document"
                )
