"""`GET /v1/models`: the models that a client may use, over all providers, in its own dialect.

A provider that lists none of its own is asked for them, at most once in `FRESH_SECONDS` for each
key and process, and all at the same time; one that gives no answer is left out, for 30 s.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, NamedTuple

from cachetools import LRUCache, TLRUCache

from ..body import strict_json
from ..dialects import Dialect
from ..environ import CHOOSER
from ..errors import BodyInvalid, UpstreamError
from ..model_rules import MODEL_RULES
from ..providers import Provider
from .codings import IDENTITY
from .naming import Aliases, resolve
from .reading import read_whole
from .route import AIPath, provider_candidates
from .transport import Request, Transport

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger(__name__)

FRESH_SECONDS = 300.0
_RETRY_SECONDS = 30.0
_PATIENCE = 5.0
_MOST_MODELS = 5000
_MOST_NAMES = 20_000
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
        self._known: TLRUCache[object, _Told] = TLRUCache(256, _good_until)
        self._names: LRUCache[object, str | None] = LRUCache(_MOST_NAMES)
        self._lock = threading.Lock()

    def is_for(self, environ: WSGIEnvironment, path: AIPath) -> bool:
        """Whether a request is answered here; one provider's own list is its own to tell."""
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD") or path.rest.strip("/") != "models":
            return False
        able = self._able(path.dialect)
        return bool(
            environ.get(MODEL_RULES)
            or _selects(environ)
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
            for listed in self._listed(able, transport)
            if all(rule(environ, listed.provider, listed.model) is None for rule in rules)
        ]
        if _selects(environ):
            allows = environ[CHOOSER].allows
            allowed = [one for one in allowed if allows((one.provider, one.model))]
        shown: dict[str, Listed] = {}
        for listed in allowed:
            name = self._name(listed, able, path)
            if name is not None:
                shown.setdefault(name, listed)
        known = {(listed.provider, listed.model.lower()) for listed in allowed}
        for alias in self._aliases:
            targets = self._targets(alias, able, path)
            if any((provider, model.lower()) in known for provider, model in targets):
                shown.setdefault(alias, Listed("aigw", alias, {}))
        return json.dumps(_rendered(path.dialect.name, shown)).encode()

    def _able(self, dialect: Dialect) -> list[_Able]:
        """Return the providers that speak a dialect and can be asked, with their keys."""
        speaking = [p for p in self._providers if dialect.name in p.dialects]
        keyed = [(provider, self._keys(provider)) for provider in speaking]
        return [(provider, keys) for provider, keys in keyed if keys or not provider.needs_key]

    def _listed(self, able: Sequence[_Able], transport: Transport) -> list[Listed]:
        """Return the models of all providers; those that do not list theirs are asked at once."""
        unknown = [one for one in able if one[0].models is None and self._remembered(one) is None]
        deadline = time.monotonic() + _PATIENCE
        if len(unknown) == 1:
            self._remember(unknown[0], _told(*unknown[0], transport, deadline))
        elif unknown:
            pool = ThreadPoolExecutor(len(unknown), "aigw-models")
            asked = {pool.submit(_told, *one, transport, deadline): one for one in unknown}
            done, late = wait(asked, _PATIENCE + 0.5)
            pool.shutdown(wait=False, cancel_futures=True)
            for future in done:
                self._remember(asked[future], future.result())
            for future in late:  # a resolver of names, which nothing bounds
                self._remember(asked[future], None)
        found: list[Listed] = []
        for one in able:
            provider = one[0]
            if provider.models is None:
                found += self._remembered(one) or ()
            else:
                found += [Listed(provider.name, model, {}) for model in provider.models]
        return found

    def _remembered(self, one: _Able) -> tuple[Listed, ...] | None:
        """Return what a provider has told lately: nothing where it did not answer; None: ask it."""
        with self._lock:
            told = self._known.get(_place(one))
        return None if told is None else told.models

    def _remember(self, one: _Able, models: tuple[Listed, ...] | None) -> None:
        with self._lock:
            self._known[_place(one)] = _Told(models or (), models is not None)

    def _name(self, listed: Listed, able: Sequence[_Able], path: AIPath) -> str | None:
        """Return the name by which a client gets this very model: bare where that is enough."""
        key = (path.dialect.name, tuple(one[0].name for one in able), listed.provider, listed.model)
        with self._lock:
            if key in self._names:
                return self._names[key]
        provider, model = listed.provider, listed.model
        for name in (model, f"{provider}/{model}", f"{provider}:{model}"):
            first = next(self._targets(name, able, path), None)
            if first is not None and (first[0], first[1].lower()) == (provider, model.lower()):
                break
        else:
            name = None
        with self._lock:
            self._names[key] = name
        return name

    def _targets(
        self, name: str, able: Sequence[_Able], path: AIPath
    ) -> Iterator[tuple[str | None, str]]:
        """Yield the providers that are asked for a name, and for which model."""
        for named in resolve(name, self._providers, self._aliases):
            chosen = [one for one in able if named.provider in (None, one[0].name)]
            for candidates in provider_candidates(chosen, path, named.model):
                for candidate in candidates[:1]:
                    yield candidate.provider, named.model


_Able = tuple[Provider, Sequence[str]]
"""A provider that can be asked, with its keys."""


def _selects(environ: WSGIEnvironment) -> bool:
    """Whether a policy takes some of the models away."""
    chooser = environ.get(CHOOSER)
    return chooser is not None and chooser.selects


class _Told(NamedTuple):
    models: tuple[Listed, ...]
    is_good: bool


def _good_until(_: object, told: _Told, now: float) -> float:
    return now + (FRESH_SECONDS if told.is_good else _RETRY_SECONDS)


def _place(one: _Able) -> object:
    """Return what a provider's models depend on; holds no secret."""
    provider, keys = one
    base = provider.base(provider.dialects[0])
    return provider.name, base.authority, base.path, hash(keys[0]) if keys else None


def _told(
    provider: Provider, keys: Sequence[str], transport: Transport, deadline: float
) -> tuple[Listed, ...] | None:
    """Return what a provider tells of its models; None where it does not answer."""
    dialect = provider.dialects[0]
    base = provider.base(dialect)
    headers = [("Accept", "application/json"), IDENTITY]
    if dialect == "anthropic":
        headers.append(_ANTHROPIC_VERSION)
    if keys:
        headers.append(provider.credential(dialect, keys[0]))
    query = _QUERIES[dialect]
    if provider.query:
        query += ("&" if query else "?") + provider.query
    request = Request("GET", base, f"{base.path}/models{query}", headers, (), 0)
    try:
        items = _items(read_whole(request, transport, deadline, most=_MOST_BYTES))
    except (UpstreamError, BodyInvalid) as error:
        logger.warning("%s does not tell its models: %s", provider.name, error)
        return None
    names = ((item.get("id", item.get("name")), item) for item in items[:_MOST_MODELS])
    return tuple(
        Listed(provider.name, name.removeprefix("models/"), item)
        for name, item in names
        if isinstance(name, str)
    )


def _items(data: bytes) -> list[dict[str, Any]]:
    document = strict_json(b'{"data":' + data + b"}")["data"]
    found = document.get("data", document.get("models")) if isinstance(document, dict) else document
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _rendered(dialect: str, shown: Mapping[str, Listed]) -> dict[str, Any]:
    if dialect == "gemini":
        # https://ai.google.dev/api/models#Model
        return {
            "models": [
                {**_fields(listed, "displayName"), "name": f"models/{name}"}
                for name, listed in shown.items()
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
            for name, listed in shown.items()
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
            for name, listed in shown.items()
        ],
    }


def _fields(listed: Listed, sign: str) -> Mapping[str, Any]:
    """Return what the provider tells of a model, where it has told it in the client's dialect."""
    return listed.fields if sign in listed.fields else {}
