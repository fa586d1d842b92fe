"""The action `ai-gateway`: a key is asked for, models are judged, the request is forwarded."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from .._headers import is_value
from .._responding import with_headers
from ..denial import Denial, refuse
from ..dialects import PLAIN, spoken
from ..environ import CHOOSER, KEY
from ..header_rewriter import HeaderRewriter
from ..key_auth import KeyAuth
from ..keys import StaticKeys
from ..model_access import ModelAccess
from ..model_rules import MODEL_RULES
from ..providers import CATALOGUE, Provider
from ..providers.catalogue import NAMES
from ..providers.configured import configured_base, configured_providers
from ..upstream_forwarder import UpstreamForwarder
from ..usage.prices import Prices
from .actions import _TOKENS, Action, Building, Config
from .document import Node
from .expressions import EvaluationError, Expression, ExpressionError
from .fields import (
    Anything,
    Boolean,
    Completed,
    Duration,
    Field,
    Fields,
    Integer,
    Kind,
    ListOf,
    MapOf,
    Reading,
    Text,
    _wrong_expression,
)
from .state import State, state_of
from .steps import Place, Step, failed, refused
from .templates import Template
from .variables import VARIABLES, Variable

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    Layer = Callable[[WSGIApplication], WSGIApplication]
    Offer = tuple[str | None, str | None]

logger = logging.getLogger("aigw_middleware.policy")

_PER_REQUEST = 30.0
_TOTAL = 300.0
_STREAM = 900.0
_NO_MODEL = Denial("model_not_allowed", "No model is left that may be asked.", param="model")
_DISABLED = Denial("model_not_allowed", "This provider is not served here.", param="model")


# --- strategies of model_selection


def _ids(model: Mapping[str, Any]) -> set[str]:
    names = {model["id"], *model.get("id_aliases", ())}
    provider = model["provider_id"]
    return {form for name in names for form in (name, f"{provider}/{name}", f"{provider}:{name}")}


def _only(models: list[Any], names: list[str]) -> list[Any]:
    return [model for model in models if _ids(model) & set(names)]


def _ignore(models: list[Any], names: list[str]) -> list[Any]:
    return [model for model in models if not _ids(model) & set(names)]


def _only_providers(models: list[Any], names: list[str]) -> list[Any]:
    return [model for model in models if model["provider_id"] in names]


def _ignore_providers(models: list[Any], names: list[str]) -> list[Any]:
    return [model for model in models if model["provider_id"] not in names]


def _random(models: list[Any]) -> list[Any]:
    return [random.choice(models)] if models else []  # noqa: S311  (a chance, not a secret)


_STRATEGIES: dict[str, Callable[..., Any]] = {
    "only": _only,
    "ignore": _ignore,
    "onlyProviders": _only_providers,
    "ignoreProviders": _ignore_providers,
    "random": _random,
}
_MODELS = "ai.models"
_SCOPE = {
    "variables": {
        **VARIABLES,
        ("ai", "models"): Variable(lambda state: state.values[_MODELS]),
    },
    "functions": _STRATEGIES,
}
_NOT_HERE = ("metrics", "pricing", "datacenters", "authors", "providers", "keys")


class _Strategy(Kind):
    """A CEL expression over `ai.models`."""

    def read(self, node: Node, reading: Reading) -> Any:
        value = node.value
        if not isinstance(value, str):
            return reading.wrong(node, f"must be an expression as a text, not {node.kind}")
        for name in _NOT_HERE:
            if f".{name}" in value:
                return reading.wrong(node, f'".{name}" is known to ngrok, not supported here')
        with reading.within(**_SCOPE):
            try:
                return Expression(value, reading.scope())
            except ExpressionError as error:
                return _wrong_expression(node, value, error, reading)

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}


# --- what may stand in it


def _base_url(text: str) -> str | None:
    try:
        Provider("x", base_url=text)
    except ValueError as error:
        return str(error).partition(": ")[2]
    return None


def _provider_id(text: str) -> str | None:
    return None if text and "/" not in text and ":" not in text else "must not be empty or hold / :"


def _model_id(text: str) -> str | None:
    try:
        ModelAccess(lambda environ, start: [], [text])
    except ValueError:
        return f'"{text}" is no name of a model'
    return f'"{text}" is no name of a model' if "*" in text else None


_MODEL = Fields(
    {
        "id": Field(Text(form=_model_id), required=True),
        "id_aliases": Field(ListOf(Text(form=_model_id))),
        "author_id": Field(Text()),
        "display_name": Field(Text()),
        "description": Field(Text()),
        "disabled": Field(Boolean()),
        "metadata": Field(Anything()),
        "input_modalities": Field(ListOf(Text())),
        "output_modalities": Field(ListOf(Text())),
        "max_context_window": Field(Integer(1, 10**9)),
        "max_output_tokens": Field(Integer(1, 10**9)),
        "supported_features": Field(ListOf(Text())),
    },
    unsupported=("unsupported_params",),
)
_PROVIDER = Fields(
    {
        "id": Field(Text(form=_provider_id), required=True, doc="of the catalogue, or your own"),
        "id_aliases": Field(ListOf(Text(form=_provider_id))),
        "base_url": Field(Text(form=_base_url), doc="needed for one of your own"),
        "api_keys": Field(
            ListOf(Fields({"value": Field(Text(static=True), required=True, secret=True)})),
            doc="in order of preference; else those of the store, else the environment's",
        ),
        "models": Field(ListOf(_MODEL)),
        "supported_api_surfaces": Field(
            ListOf(
                Fields(
                    {"format": Field(Text("openai", "anthropic"), required=True)},
                    unsupported=("surface", "supported_params"),
                ),
                0,
                1,
            )
        ),
        "disabled": Field(Boolean()),
        "display_name": Field(Text()),
        "description": Field(Text()),
        "website": Field(Text()),
        "metadata": Field(Anything()),
    }
)
FIELDS = Fields(
    {
        "providers": Field(ListOf(_PROVIDER), doc="none: every provider that has a key"),
        "only_allow_configured_providers": Field(Boolean(), doc="false"),
        "only_allow_configured_models": Field(Boolean(), doc="false"),
        "model_selection": Field(
            Fields({"strategy": Field(ListOf(_Strategy(), 1), required=True)})
        ),
        "max_input_tokens": Field(_TOKENS, doc="estimated; 413 above"),
        "max_output_tokens": Field(_TOKENS),
        "headers": Field(MapOf(Completed(), 0, 50), doc="added to the provider's request"),
        "query_params": Field(MapOf(Completed(), 0, 50), doc="added to the provider's query"),
        "on_error": Field(Text("halt", "continue"), doc="halt"),
        "per_request_timeout": Field(Duration(0.001, 3600), doc="30s, to the first byte"),
        "total_timeout": Field(Duration(0.001, 86400), doc="5m, of all attempts; streams 15m"),
        "authentication": Field(
            Text("none", "key"), doc="ours; none: the document's own rules guard it"
        ),
    },
    unsupported=("body", "api_key_selection"),
)


def _check(config: Config, node: Node, reading: Reading) -> None:
    providers = node.members.get("providers")
    seen: dict[str, str] = {}
    for number, entry in enumerate(config.get("providers", ())):
        where = providers.value[number] if providers and isinstance(providers.value, list) else node
        name = NAMES.get(entry["id"].lower(), entry["id"])
        if name not in CATALOGUE and "base_url" not in entry:
            reading.wrong(where, f'"{entry["id"]}" is not in the catalogue; it needs "base_url"')
        if name in seen:
            reading.wrong(where, f'the provider "{name}" stands here twice')
        seen[name] = name
        for model in entry.get("models", ()):
            for alias in model.get("id_aliases", ()):
                if alias.lower() in seen:
                    reading.wrong(where, f'the alias "{alias}" stands for two models')
                seen[alias.lower()] = alias
    if config.get("only_allow_configured_providers") and not config.get("providers"):
        reading.wrong(node, '"only_allow_configured_providers" needs "providers"')


# --- the layers


def _gateway(config: Config, building: Building) -> Layer:
    place = building.place
    entries = [entry for entry in config.get("providers", ()) if not entry.get("disabled")]
    disabled = {entry["id"].lower() for entry in config.get("providers", ())} - {
        entry["id"].lower() for entry in entries
    }
    providers = _providers(config, entries, building)
    per_request = config.get("per_request_timeout", _PER_REQUEST)
    total = config.get("total_timeout", _TOTAL)
    models = _models(config, entries)

    def layer(app: WSGIApplication) -> WSGIApplication:
        inner: WSGIApplication = UpstreamForwarder(
            app,
            providers,
            store=building.store,
            aliases=_aliases(entries),
            first_byte_timeout=min(per_request, total),
            total_timeout=total,
            stream_timeout=config.get("total_timeout", _STREAM),
        )
        inner = _with_additions(inner, config, building)
        if models:
            inner = ModelAccess(inner, **models)
        inner = _Gateway(
            inner,
            app,
            strategies=config.get("model_selection", {}).get("strategy", ()),
            catalogue=_described(entries),
            disabled=frozenset(disabled),
            continues=config.get("on_error") == "continue",
            place=place,
        )
        if config.get("authentication") == "none":
            return inner
        return _Keyed(inner, building)

    return layer


def _providers(config: Config, entries: Sequence[Config], building: Building) -> list[Provider]:
    listed = [_provider(entry) for entry in entries]
    names = {NAMES.get(e["id"].lower(), e["id"]) for e in config.get("providers", ())}
    others: list[Provider] = []
    if not config.get("only_allow_configured_providers"):
        others = [p for p in configured_providers(os.environ) if p.name not in names]
    has_store = building.store is not None
    found = [
        provider
        for provider in (*listed, *others)
        if has_store or provider.given_keys or provider.environment_keys() or not provider.needs_key
    ]
    if not found and not building.checking:
        raise ValueError("providers: no provider has a key")
    return found or [Provider("openai", api_keys=["unknown"])]


def _provider(entry: Config) -> Provider:
    surfaces = entry.get("supported_api_surfaces") or [{}]
    known = NAMES.get(entry["id"].lower())
    base = entry.get("base_url") or (configured_base(known, os.environ) if known else None)
    enabled = [model["id"] for model in entry.get("models", ()) if not model.get("disabled")]
    return Provider(
        entry["id"],
        base_url=base,
        dialect=None if known else surfaces[0].get("format"),
        api_keys=[key["value"] for key in entry.get("api_keys", ())],
        models=enabled or None,
        others=True,
        aliases=entry.get("id_aliases", ()),
    )


def _aliases(entries: Iterable[Config]) -> dict[str, str]:
    return {
        alias: f"{entry['id']}/{model['id']}"
        for entry in entries
        for model in entry.get("models", ())
        if not model.get("disabled")
        for alias in model.get("id_aliases", ())
    }


def _models(config: Config, entries: Sequence[Config]) -> dict[str, Any]:
    """Return the options of the `ModelAccess` that stands in front; empty for none."""
    options: dict[str, Any] = {
        name: config[name] for name in ("max_input_tokens", "max_output_tokens") if name in config
    }
    named = [
        (f"{NAMES.get(entry['id'].lower(), entry['id'])}/{model['id']}", model.get("disabled"))
        for entry in entries
        for model in entry.get("models", ())
    ]
    if config.get("only_allow_configured_models"):
        options["allow"] = [name for name, is_disabled in named if not is_disabled]
    elif any(is_disabled for _, is_disabled in named):
        options["deny"] = [name for name, is_disabled in named if is_disabled]
        options["paths"] = ["/*"]  # what names no model is not what is denied
    return options


_TOLD = (
    "author_id", "display_name", "metadata", "input_modalities", "output_modalities",
    "max_context_window", "max_output_tokens", "supported_features", "id_aliases",
)  # fmt: skip


def _described(entries: Iterable[Config]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what a document says of its models, by provider and model."""
    return {
        (str(NAMES.get(entry["id"].lower(), entry["id"])), model["id"].lower()): {
            name: model[name] for name in _TOLD if name in model
        }
        for entry in entries
        for model in entry.get("models", ())
    }


class _Keyed:
    """Asks for a gateway key, unless one was asked for and shown before.

    Args:
        app: what is behind it.
        building: where keys are.
    """

    authenticates = True

    def __init__(self, app: WSGIApplication, building: Building) -> None:
        self.app = app
        keys = StaticKeys({}) if building.keys is None else building.keys
        self._asking = KeyAuth(app, keys, counters=building.counters)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        app = self.app if KEY in environ else self._asking
        return app(environ, start_response)


class _Gateway:
    """Chooses models by the document's strategies, and goes on where all have failed.

    Args:
        app: what forwards.
        beyond: what comes after the action.
        strategies: the first that yields models wins; none leaves them to the client.
        catalogue: what the document says of its models.
        disabled: providers that are not served.
        continues: whether `beyond` answers where no provider could.
        place: the rule.
    """

    def __init__(
        self,
        app: WSGIApplication,
        beyond: WSGIApplication,
        *,
        strategies: Sequence[Expression],
        catalogue: Mapping[tuple[str, str], Mapping[str, Any]],
        disabled: frozenset[str],
        continues: bool,
        place: Place,
    ) -> None:
        self.app = app
        self._beyond = beyond
        self._strategies = tuple(strategies)
        self._catalogue = catalogue
        self._disabled = disabled
        self._continues = continues
        self._place = place
        self._prices = Prices()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if spoken(environ)[0] is PLAIN:
            return self.app(environ, start_response)
        state = state_of(environ, self._place.owner)
        choice = _Choice(self, state)
        environ[CHOOSER] = choice
        if self._disabled:
            environ.setdefault(MODEL_RULES, []).append(self._refuse_disabled)
        noting = with_headers(start_response, lambda s, headers: _note(state, s, headers))
        if not self._continues:
            return self._answer(environ, noting, choice)
        return self._or_beyond(environ, start_response, choice, state)

    def _answer(
        self, environ: WSGIEnvironment, start_response: StartResponse, choice: _Choice
    ) -> Iterable[bytes]:
        try:
            return self.app(environ, start_response)
        except EvaluationError as error:
            failed(environ, self._place, error)
            return refused(environ, start_response, self._place)
        except _NoModel:
            return refuse(environ, start_response, _NO_MODEL)

    def _or_beyond(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        choice: _Choice,
        state: State,
    ) -> Iterable[bytes]:
        """Answer, or have what comes after the action answer where this has failed."""
        head: list[Any] = []

        def keep(*args: Any) -> Callable[[bytes], object]:
            head[:] = args
            return lambda data: None

        iterable = self._answer(environ, keep, choice)
        _note(state, head[0], head[1])
        if int(head[0][:3]) < 400:
            start_response(*head)
            return iterable
        close = getattr(iterable, "close", None)
        if close is not None:
            close()
        environ.pop(CHOOSER, None)
        return self._beyond(environ, start_response)

    def choose(self, state: State, offers: list[Offer], is_open: bool) -> list[Offer]:
        """Return the offers that the first strategy leaves that leaves any."""
        if not self._strategies:
            return offers
        state.values[_MODELS] = [self._described(offer) for offer in offers]
        for strategy in self._strategies:
            found = strategy.evaluate(state)
            if isinstance(found, dict):
                found = [found]
            if not isinstance(found, list) or not all(_is_model(one) for one in found):
                raise EvaluationError("a strategy has to yield models")
            chosen = [(model["provider_id"], model["id"]) for model in found]
            chosen = [offer for offer in chosen if offer in offers]
            if chosen:
                return chosen
        raise _NoModel

    def _described(self, offer: Offer) -> dict[str, Any]:
        """Return a model as strategies see it."""
        provider, model = offer[0] or "", offer[1] or ""
        return {
            "id": model,
            "provider_id": provider,
            "id_aliases": [],
            "author_id": "",
            "metadata": {},
            "known": self._prices.of(provider, model) is not None,
            "custom": provider not in CATALOGUE,
            **self._catalogue.get((provider, model.lower()), {}),
        }

    def _refuse_disabled(self, provider: str | None, model: str | None) -> Denial | None:
        """Refuse a model whose name begins with a provider that is not served."""
        name = (model or "").replace(":", "/").partition("/")[0].lower()
        known = NAMES.get(name, name)
        return _DISABLED if name and (name in self._disabled or known in self._disabled) else None


class _Choice:
    """The chooser of one request."""

    def __init__(self, gateway: _Gateway, state: State) -> None:
        self._gateway = gateway
        self._state = state

    def __call__(self, offers: list[Offer], is_open: bool) -> list[Offer]:
        return self._gateway.choose(self._state, offers, is_open)


class _NoModel(Exception):
    """No strategy leaves a model."""


def _is_model(value: object) -> bool:
    return isinstance(value, dict) and "provider_id" in value and "id" in value


def _note(state: State, status: str, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Leave behind what has become of the request."""
    code = next((value for name, value in headers if name.lower() == "x-aigw-code"), "")
    number = int(status[:3])
    state.actions["ai_gateway"] = (
        {"status": "success"}
        if number < 400
        else {"status": "error", "error": {"code": code or str(number), "message": status[4:]}}
    )
    return headers


def _with_additions(app: WSGIApplication, config: Config, building: Building) -> WSGIApplication:
    """Add the headers and query parameters that the provider gets."""
    headers: dict[str, str | Template] = config.get("headers", {})
    parameters: dict[str, str | Template] = config.get("query_params", {})
    if not headers and not parameters:
        return app
    key, owner = ("gateway", building.number), building.place.owner

    def run(state: State) -> None:
        state.values[key] = {name: _text(value, state) for name, value in headers.items()}
        if any(not is_value(text) for text in state.values[key].values()):
            raise EvaluationError("a value is none that a header can hold")
        added = urlencode([(name, _text(value, state)) for name, value in parameters.items()])
        query = state.environ.get("QUERY_STRING", "")
        state.environ["QUERY_STRING"] = "&".join(filter(None, (query, added)))

    def value_of(name: str) -> Callable[[WSGIEnvironment], str | None]:
        return lambda environ: state_of(environ, owner).values.get(key, {}).get(name)

    changes = {"set": {name: value_of(name) for name in headers}}
    return Step(HeaderRewriter(app, request=changes), run, building.place)


def _text(value: str | Template, state: State) -> str:
    return value.text_for(state) if isinstance(value, Template) else value


GATEWAY = Action(
    FIELDS,
    _gateway,
    guards=True,
    check=_check,
    doc="ask for a gateway key, and forward to a provider",
)
