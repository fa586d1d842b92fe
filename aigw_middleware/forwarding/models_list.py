"""`GET /v1/models`: the models that a client may use, over all providers, in its own dialect.

A provider that lists none of its own is asked for them, at most once in `FRESH_SECONDS` for each
key and process; one that gives no answer is left out.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cachetools import TTLCache

from ..body import strict_json
from ..dialects import Dialect
from ..errors import BodyInvalid, UpstreamError
from ..model_rules import MODEL_RULES
from ..providers import Provider
from .naming import Aliases
from .route import AIPath, provider_candidates
from .transport import Request, Timeouts, Transport

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger(__name__)

FRESH_SECONDS = 300.0
_PATIENCE = 5.0
_MOST_BYTES = 4 * 1024 * 1024
# https://ai.google.dev/api/models and https://docs.anthropic.com/en/api/models-list: all at once.
_QUERIES = {"openai": "", "anthropic": "?limit=1000", "gemini": "?pageSize=1000"}
_ANTHROPIC_VERSION = ("anthropic-version", "2023-06-01")


class Listed(NamedTuple):
    """One model of a provider: its name there, and what the provider tells of it."""

    provider: str
    model: str
    fields: Mapping[str, Any]


class ModelsList:
    """What is answered to `GET /v1/models`.

    Args:
        providers: the providers, in order of preference.
        aliases: names that stand for models.
        keys: returns a provider's keys.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        aliases: Aliases,
        keys: Callable[[Provider], Sequence[str]],
    ) -> None:
        self._providers = tuple(providers)
        self._aliases = aliases
        self._keys = keys
        self._known: TTLCache[object, tuple[Listed, ...]] = TTLCache(256, FRESH_SECONDS)
        self._lock = threading.Lock()

    def is_for(self, environ: WSGIEnvironment, path: AIPath) -> bool:
        """Whether a request is answered here; one provider's own list is its own to tell."""
        if environ["REQUEST_METHOD"] != "GET" or path.rest.strip("/") != "models":
            return False
        able = self._able(path.dialect)
        return bool(
            environ.get(MODEL_RULES)
            or self._aliases
            or len(able) > 1
            or any(not provider.serves_any for provider, _ in able)
        )

    def body(self, environ: WSGIEnvironment, path: AIPath, transport: Transport) -> bytes:
        """Return the list as JSON.

        Raises:
            StoreUnavailable: the keys of a provider cannot be read.
        """
        rules = environ.get(MODEL_RULES, ())
        able = self._able(path.dialect)
        allowed = [
            listed
            for provider, keys in able
            for listed in self._of(provider, keys, transport)
            if all(rule(listed.provider, listed.model) is None for rule in rules)
        ]
        shown = [(self._name(listed, able, path), listed) for listed in allowed]
        names = {name.lower() for name, _ in shown}
        bare = {listed.model.lower() for listed in allowed}
        for alias, targets in self._aliases.items():
            usable = any(target.lower() in names | bare for target in targets)
            full = any(
                f"{listed.provider}/{listed.model}".lower() == target.lower()
                for listed in allowed
                for target in targets
            )
            if (usable or full) and alias not in names:
                shown.append((alias, Listed("aigw", alias, {})))
        return json.dumps(_rendered(path.dialect.name, shown)).encode()

    def _able(self, dialect: Dialect) -> list[tuple[Provider, Sequence[str]]]:
        """Return the providers that speak a dialect and can be asked, with their keys."""
        speaking = [p for p in self._providers if dialect.name in p.dialects]
        keyed = [(provider, self._keys(provider)) for provider in speaking]
        return [(provider, keys) for provider, keys in keyed if keys or not provider.needs_key]

    def _of(
        self, provider: Provider, keys: Sequence[str], transport: Transport
    ) -> tuple[Listed, ...]:
        if provider.models is not None:
            return tuple(Listed(provider.name, model, {}) for model in provider.models)
        base = provider.base(provider.dialects[0])
        name = (provider.name, base.authority, base.path, hash(keys[0]) if keys else None)
        with self._lock:
            known = self._known.get(name)
        if known is None:
            known = tuple(_asked(provider, keys, transport))
            with self._lock:
                self._known[name] = known
        return known

    def _name(
        self, listed: Listed, able: list[tuple[Provider, Sequence[str]]], path: AIPath
    ) -> str:
        """Return the name by which a client gets this very model: bare where that is enough."""
        groups = provider_candidates(able, path, listed.model)
        first = groups[0][0].provider if groups and groups[0] else None
        return listed.model if first == listed.provider else f"{listed.provider}/{listed.model}"


def _asked(provider: Provider, keys: Sequence[str], transport: Transport) -> Iterable[Listed]:
    """Yield what a provider tells of its models; nothing where it does not answer."""
    dialect = provider.dialects[0]
    base = provider.base(dialect)
    headers = [("Accept", "application/json"), ("Accept-Encoding", "identity")]
    if dialect == "anthropic":
        headers.append(_ANTHROPIC_VERSION)
    if keys:
        headers.append(provider.credential(dialect, keys[0]))
    query = _QUERIES[dialect]
    if provider.query:
        query += ("&" if query else "?") + provider.query
    request = Request("GET", base, f"{base.path}/models{query}", headers, (), 0)
    try:
        items = _items(_read(request, transport))
    except (UpstreamError, BodyInvalid) as error:
        logger.warning("%s does not tell its models: %s", provider.name, error)
        return
    for item in items:
        name = item.get("id", item.get("name"))
        if isinstance(name, str):
            yield Listed(provider.name, name.removeprefix("models/"), item)


def _read(request: Request, transport: Transport) -> bytes:
    timeouts = Timeouts(_PATIENCE, _PATIENCE, _PATIENCE, _PATIENCE, _PATIENCE)
    deadline = time.monotonic() + _PATIENCE
    response = transport.send(request, timeouts, deadline)
    try:
        if response.status != 200:
            raise BodyInvalid(f"status {response.status}")
        data = b""
        while block := response.read(max(0.001, deadline - time.monotonic())):
            data += block
            if len(data) > _MOST_BYTES:
                raise BodyInvalid("the list is too long")
        return data
    finally:
        response.close()


def _items(data: bytes) -> list[dict[str, Any]]:
    document = strict_json(b'{"data":' + data + b"}")["data"]
    found = document.get("data", document.get("models")) if isinstance(document, dict) else document
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _rendered(dialect: str, shown: Sequence[tuple[str, Listed]]) -> dict[str, Any]:
    if dialect == "gemini":
        # https://ai.google.dev/api/models#Model
        return {
            "models": [
                {**_fields(listed, "displayName"), "name": f"models/{name}"}
                for name, listed in shown
            ]
        }
    if dialect == "anthropic":
        # https://docs.anthropic.com/en/api/models-list
        data = [
            {
                "display_name": name,
                "created_at": "1970-01-01T00:00:00Z",
                **_fields(listed, "display_name"),
                "type": "model",
                "id": name,
            }
            for name, listed in shown
        ]
        ids = [item["id"] for item in data] or [None]
        return {"data": data, "has_more": False, "first_id": ids[0], "last_id": ids[-1]}
    # https://platform.openai.com/docs/api-reference/models/object
    return {
        "object": "list",
        "data": [
            {
                "created": 0,
                "owned_by": listed.provider,
                **_fields(listed, "owned_by"),
                "id": name,
                "object": "model",
            }
            for name, listed in shown
        ],
    }


def _fields(listed: Listed, sign: str) -> Mapping[str, Any]:
    """Return what the provider tells of a model, where it has told it in the client's dialect."""
    return listed.fields if sign in listed.fields else {}
