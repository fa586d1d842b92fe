"""The action `ai-gateway`: a key is asked for, models are judged, the request is forwarded."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from .._headers import HOP_BY_HOP, header, is_token, is_value
from .._iterables import Begun, close_iterable
from .._paths import is_canonical
from .._responding import with_headers
from ..denial import Denial, refuse
from ..dialects import PLAIN, AnyOf, spoken
from ..environ import (
    CHOOSER,
    DECISIONS,
    KEY,
    REDACTED,
    TRIED,
    UNSERVED,
    UPSTREAM_HEADERS,
    UPSTREAM_QUERY,
    full_path,
)
from ..errors import GatewayError
from ..forwarding.health import failure_of
from ..forwarding.request_headers import CREDENTIALS
from ..key_auth import KeyAuth
from ..keys import StaticKeys
from ..model_access import ModelAccess
from ..model_rules import MODEL_RULES
from ..named_models import MAX_BODY_BYTES
from ..providers import CATALOGUE, Provider
from ..providers.catalogue import NAMES
from ..providers.configured import configured_base, configured_providers
from ..upstream_forwarder import UpstreamForwarder
from ..usage.prices import Prices
from .actions import TOKENS, Action, Building, Config
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
    wrong_expression,
)
from .state import State, state_of
from .steps import failed, refused
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
NO_MODEL = Denial("model_not_allowed", "No model is left that may be asked.", param="model")
_NO_NAME = Denial("model_not_allowed", "This path names no model and is not served.")
_NOT_SERVED = Denial("model_not_allowed", "This model is not served here.", param="model")
_ODD_PATH = Denial("not_found", "A path that could be read as another one is not served.")
_OF_PROVIDERS = ("upstream_unreachable", "upstream_timeout", "upstream_auth_failed")
"""The codes of refusals by which all providers have failed."""
_LONG = 6
"""Shorter secrets are not looked for in answers: they could stand anywhere."""
_NOWHERE = "http://127.0.0.1:9"
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
_MODELS = ("ai", "models")
"""The variable's path, under which its value is kept: each choice is from other models."""
_SCOPE = {
    "variables": {
        **VARIABLES,
        _MODELS: Variable(lambda state: state.values[_MODELS]),
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
                return wrong_expression(node, value, error, reading)

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}


# --- what may stand in it


def _upstream_header(name: str) -> str | None:
    folded = name.lower()
    if folded in CREDENTIALS:
        return f'"{name}" carries a provider\'s key; name that in api_keys'
    if not is_token(name) or folded in HOP_BY_HOP or folded in ("host", "content-length"):
        return f'"{name}" cannot be set'
    return None


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
        "max_input_tokens": Field(TOKENS, doc="estimated; 413 above"),
        "max_output_tokens": Field(TOKENS),
        "headers": Field(
            MapOf(Completed(), 0, 50, name=_upstream_header), doc="of the provider's request"
        ),
        "query_params": Field(MapOf(Completed(), 0, 50), doc="added to the provider's query"),
        "on_error": Field(Text("halt", "continue"), doc="halt"),
        "per_request_timeout": Field(Duration(0.001, 3600), doc="30s, to the first byte"),
        "total_timeout": Field(Duration(0.001, 86400), doc="5m, of all attempts; streams 15m"),
        "max_body_bytes": Field(Integer(1, 2**40), doc="ours; 32 MiB, of a request; 413 above"),
        "authentication": Field(
            Text("none", "key"), doc="ours; none: the document's own rules guard it"
        ),
    },
    unsupported=("body", "api_key_selection"),
)


def _check(config: Config, node: Node, reading: Reading) -> None:
    providers = node.members.get("providers")
    seen: set[str] = set()
    aliases: set[str] = set()
    ids = {
        model["id"].lower()
        for entry in config.get("providers", ())
        for model in entry.get("models", ())
    }
    for number, entry in enumerate(config.get("providers", ())):
        where = providers.value[number] if providers and isinstance(providers.value, list) else node
        name = _known(entry)
        if name not in CATALOGUE and "base_url" not in entry:
            reading.wrong(where, f'"{entry["id"]}" is not in the catalogue; it needs "base_url"')
        if name in seen:
            reading.wrong(where, f'the provider "{name}" stands here twice')
        seen.add(name)
        for model in entry.get("models", ()):
            for alias in map(str.lower, model.get("id_aliases", ())):
                if alias in aliases:
                    reading.wrong(where, f'the alias "{alias}" stands for two models')
                if alias in ids:
                    reading.wrong(where, f'the alias "{alias}" is the id of a model')
                aliases.add(alias)
    if config.get("only_allow_configured_providers") and not config.get("providers"):
        reading.wrong(node, '"only_allow_configured_providers" needs "providers"')


# --- the layers


def _gateway(config: Config, building: Building) -> Layer:
    entries: list[Config] = config.get("providers", [])
    providers = _providers(config, entries, building)
    per_request = config.get("per_request_timeout", _PER_REQUEST)
    total = config.get("total_timeout", _TOTAL)
    bounds = {
        name: config[name] for name in ("max_input_tokens", "max_output_tokens") if name in config
    }

    def layer(app: WSGIApplication) -> WSGIApplication:
        inner: WSGIApplication = UpstreamForwarder(
            app,
            providers,
            store=building.store,
            aliases=_aliases(entries),
            attempt_timeout=per_request,
            total_timeout=total,
            stream_timeout=config.get("total_timeout", _STREAM),
            max_body_bytes=config.get("max_body_bytes", MAX_BODY_BYTES),
        )
        if bounds:
            inner = ModelAccess(inner, **bounds)
        inner = Gateway(inner, app, config, _served(config, entries), building)
        if config.get("authentication") == "none":
            return inner
        return Keyed(inner, building)

    return layer


def _providers(config: Config, entries: Sequence[Config], building: Building) -> list[Provider]:
    listed = [_provider(entry) for entry in entries if not entry.get("disabled")]
    names = {_known(entry) for entry in entries}
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
    # A disabled one is known by its name, so that this is not taken for a part of a model's.
    off = [_disabled(entry) for entry in entries if entry.get("disabled")]
    return (found or [Provider("openai", api_keys=["unknown"])]) + off


def _disabled(entry: Config) -> Provider:
    return Provider(
        entry["id"],
        base_url=_NOWHERE,
        api_keys=["disabled"],
        models=[],
        others=True,
        aliases=entry.get("id_aliases", ()),
    )


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
    # Of a disabled model too: its other names are not to lead elsewhere.
    return {
        alias: f"{entry['id']}/{model['id']}"
        for entry in entries
        for model in entry.get("models", ())
        for alias in model.get("id_aliases", ())
    }


class _Served(NamedTuple):
    """Which models of which providers are served.

    Attributes:
        allowed: `(provider, model)` in lower case; None for all.
        denied: those that are disabled.
        gone: models that are disabled and served by no other provider that lists them.
        off: the providers that are disabled.
    """

    allowed: frozenset[tuple[str, str]] | None
    denied: frozenset[tuple[str, str]]
    gone: frozenset[str]
    off: frozenset[str]

    def __bool__(self) -> bool:
        return self.allowed is not None or bool(self.denied) or bool(self.off)

    def judge(
        self, environ: WSGIEnvironment, provider: str | None, model: str | None
    ) -> Denial | None:
        """Return the refusal for a model of a provider; a rule for the forwarder."""
        name = (provider or "").lower()
        if name in self.off:
            return _DISABLED
        if model is None:
            return _NO_NAME if self.allowed is not None or self.denied else None
        pair = (name, model.lower())
        if isinstance(model, AnyOf) and any(
            name == owner and denied.startswith(model.begins) for owner, denied in self.denied
        ):
            return _NOT_SERVED  # it may be one of them
        if (
            pair in self.denied
            or pair[1] in self.gone
            or (self.allowed is not None and pair not in self.allowed)
        ):
            return _NOT_SERVED
        return None


def _served(config: Config, entries: Sequence[Config]) -> _Served:
    named = [
        ((_known(entry).lower(), model["id"].lower()), bool(model.get("disabled")))
        for entry in entries
        for model in entry.get("models", ())
        if not entry.get("disabled")
    ]
    enabled = frozenset(name for name, is_disabled in named if not is_disabled)
    denied = frozenset(name for name, is_disabled in named if is_disabled)
    return _Served(
        enabled if config.get("only_allow_configured_models") else None,
        denied,
        frozenset({model for _, model in denied} - {model for _, model in enabled}),
        frozenset(_known(entry).lower() for entry in entries if entry.get("disabled")),
    )


def _known(entry: Config) -> str:
    """Return a provider's name: that of the catalogue where it is one."""
    return str(NAMES.get(entry["id"].lower(), entry["id"]))


_TOLD = (
    "author_id", "display_name", "metadata", "input_modalities", "output_modalities",
    "max_context_window", "max_output_tokens", "supported_features", "id_aliases",
)  # fmt: skip


def _described(entries: Iterable[Config]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what a document says of its models, by provider and model."""
    return {
        (_known(entry), model["id"].lower()): {name: model[name] for name in _TOLD if name in model}
        for entry in entries
        for model in entry.get("models", ())
    }


class Keyed:
    """Asks for a gateway key, unless one was asked for and found good before.

    Args:
        app: what is behind it.
        building: where keys are.

    Attributes:
        asking: the layer that asks, around `app`.
    """

    authenticates = True

    def __init__(self, app: WSGIApplication, building: Building) -> None:
        self.app = app
        keys = StaticKeys({}) if building.keys is None else building.keys
        self.asking = KeyAuth(app, keys, counters=building.counters)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self.next(environ)(environ, start_response)

    def next(self, environ: WSGIEnvironment) -> WSGIApplication:
        """Return who is next: whoever asks for a key, or what is behind that."""
        found = KEY in environ and any(
            decision.gate == "KeyAuth" and decision.allowed
            for decision in environ.get(DECISIONS, ())
        )
        return self.app if found else self.asking


class Gateway:
    """Chooses models by the document's strategies, and goes on where all have failed.

    Args:
        app: what forwards.
        beyond: what comes after the action.
        config: the action's configuration.
        served: which models are served.
        building: what it is built with.

    Attributes:
        strategies: the expressions that choose among the models that are offered.
    """

    def __init__(
        self,
        app: WSGIApplication,
        beyond: WSGIApplication,
        config: Config,
        served: _Served,
        building: Building,
    ) -> None:
        self.app = app
        self.beyond = beyond
        self.place = building.place
        self._served = served
        self.strategies: Sequence[Expression] = config.get("model_selection", {}).get(
            "strategy", ()
        )
        self._catalogue = _described(config.get("providers", ()))
        self._continues = config.get("on_error") == "continue"
        self._headers: dict[str, str | Template] = config.get("headers", {})
        self._parameters: dict[str, str | Template] = config.get("query_params", {})
        self._secrets = building.secrets
        self._prices = Prices()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if spoken(environ)[0] is PLAIN:
            return self.beyond(environ, start_response)
        state = state_of(environ, self.place.owner)
        if not is_canonical(full_path(environ)):
            # Rules by the path have seen it in another spelling than would be asked for.
            return refuse(environ, start_response, _ODD_PATH)
        if not self._continues:
            noting = with_headers(start_response, lambda s, headers: _note(state, s, headers))
            return self._answer(environ, noting, state)
        return self._or_beyond(environ, start_response, state)

    def prepare(self, environ: WSGIEnvironment, state: State) -> None:
        """Leave what the forwarder within needs to know.

        Raises:
            EvaluationError: the value of a header or parameter fails.
        """
        environ[CHOOSER] = _Choice(self, state)
        if self._served:
            environ.setdefault(MODEL_RULES, []).append(self._served.judge)
        if self._headers:
            headers = [(name, _text(value, state)) for name, value in self._headers.items()]
            if not all(is_value(text) for _, text in headers):
                raise EvaluationError("a value is none that a header can hold")
            environ[UPSTREAM_HEADERS] = headers
        if self._parameters:
            pairs = [(name, _text(value, state)) for name, value in self._parameters.items()]
            environ[UPSTREAM_QUERY] = urlencode(pairs)
        environ[REDACTED] = tuple(secret for secret in self._secrets if len(secret) >= _LONG)

    def _answer(
        self, environ: WSGIEnvironment, start_response: StartResponse, state: State
    ) -> Iterable[bytes]:
        try:
            self.prepare(environ, state)
            return self.app(environ, start_response)
        except EvaluationError as error:
            failed(environ, self.place, error)
            return refused(environ, start_response, self.place)
        except NoModel:
            return refuse(environ, start_response, NO_MODEL)

    def _or_beyond(
        self, environ: WSGIEnvironment, start_response: StartResponse, state: State
    ) -> Iterable[bytes]:
        """Answer, or have what comes after the action answer where every provider has failed."""
        head: list[Any] = []

        def keep(*args: Any) -> Callable[[bytes], object]:
            head[:] = args
            return lambda data: None

        iterable = self._answer(environ, keep, state)
        if not head:  # an application's own, which begins with its first bytes
            iterable = Begun(iterable)
        status, headers = head[0], head[1]
        _note(state, status, headers)
        code = header(headers, "x-aigw-code") or None
        if not environ.get(TRIED) or not _have_failed(int(status[:3]), code):
            start_response(*head)
            return iterable
        # Read and closed before anybody else answers: what it used is booked as its own.
        body = _whole(iterable)
        environ.pop(CHOOSER, None)

        def hear(*args: Any) -> Any:
            if UNSERVED in environ and body is not None:
                return lambda data: None
            return start_response(*args)

        answer = self.beyond(environ, hear)
        if UNSERVED not in environ or body is None:
            return answer
        close_iterable(answer)
        start_response(*head)  # nobody is there: what the providers said tells more
        return [body]

    def choose(self, state: State, offers: list[Offer], is_open: bool) -> list[Offer]:
        """Return the offers that the first strategy leaves that leaves any."""
        if not self.strategies:
            return offers
        state.values[_MODELS] = [self._told(offer) for offer in offers]
        for strategy in self.strategies:
            found = strategy.evaluate(state)
            if isinstance(found, dict):
                found = [found]
            if not isinstance(found, list) or not all(_is_model(one) for one in found):
                raise EvaluationError("a strategy has to yield models")
            chosen = [(model["provider_id"], model["id"]) for model in found]
            chosen = [offer for offer in chosen if offer in offers]
            if chosen:
                return chosen
        raise NoModel

    def _told(self, offer: Offer) -> dict[str, Any]:
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


_MOST_KEPT = 8 * 1024 * 1024


def _whole(iterable: Iterable[bytes]) -> bytes | None:
    """Read a failed answer to its end, and close it; None where it breaks off or has none."""
    data = bytearray()
    try:
        for block in iterable:
            data += block
            if len(data) > _MOST_KEPT:
                return None
    except GatewayError:
        return None
    finally:
        close_iterable(iterable)
    return bytes(data)


class _Choice:
    """The chooser of one request.

    Attributes:
        selects: whether it may take anything away.
    """

    def __init__(self, gateway: Gateway, state: State) -> None:
        self._gateway = gateway
        self._state = state
        self.selects = bool(gateway.strategies)

    def __call__(self, offers: list[Offer], is_open: bool) -> list[Offer]:
        return self._gateway.choose(self._state, offers, is_open)

    def allows(self, offer: Offer) -> bool:
        """Whether a request for this model alone could have it."""
        try:
            return bool(self._gateway.choose(self._state, [offer], is_open=False))
        except (NoModel, EvaluationError):  # as it would be refused
            return False


class NoModel(Exception):
    """No strategy leaves a model."""


def _have_failed(status: int, code: str | None) -> bool:
    """Whether an answer is the failure of all providers, and not of the request."""
    if code is None:
        return failure_of(status) is not None  # a provider's own
    return code in _OF_PROVIDERS


def _is_model(value: object) -> bool:
    return isinstance(value, dict) and "provider_id" in value and "id" in value


def _note(state: State, status: str, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Leave behind what has become of the request."""
    code = header(headers, "x-aigw-code")
    number = int(status[:3])
    state.actions["ai_gateway"] = (
        {"status": "success"}
        if number < 400
        else {"status": "error", "error": {"code": code or str(number), "message": status[4:]}}
    )
    return headers


def _text(value: str | Template, state: State) -> str:
    return value.text_for(state) if isinstance(value, Template) else value


GATEWAY = Action(
    FIELDS,
    _gateway,
    guards=True,
    check=_check,
    doc="ask for a gateway key, and forward to a provider",
)
