"""What a request to providers becomes: its candidates in their order, and what is sent to each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from .._paths import LONGEST
from ..body import drop_member, put_member, replace, whole
from ..denial import Denial
from ..dialects import AnyOf, id_of
from ..environ import BODY, CHOOSER, MODEL, UPSTREAM_QUERY
from ..errors import BodyInvalid, StoreUnavailable
from ..limits.capping import CAP_PATH
from ..limits.enforcing import RESERVERS
from ..model_rules import MODEL_RULES, ModelRule
from ..named_models import (
    NO_MODEL,
    bare_name,
    form_boundary,
    inner_models,
    json_of,
    named_models,
    put_in_form,
)
from ..providers import Provider
from ..usage.prices import Prices
from .health import health
from .metering import (
    ASKED,
    TELLS_UNASKED,
    may_tell,
    streams_without_usage,
    with_codings_read,
    without_codings,
)
from .naming import Aliases, Named, resolve
from .own_address import tells_address
from .request_headers import request_headers
from .route import AIPath, Candidate, is_safe_path, provider_candidates
from .strategies import Wish, arranged
from .transport import Request
from .url import query, quote_path, with_query

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..store import Store
    from .waiting import Waiting

logger = logging.getLogger(__name__)

_KNOWN = 1024
"""How many paths and models are kept in mind."""
_INCLUDE_USAGE = ("stream_options", "include_usage")
Keyed = tuple[tuple[Provider, tuple[str, ...]], ...]
"""Providers, each with its keys."""
AUTO = "ngrok/auto"
"""The model's name that stands for none, where a policy chooses."""


class Plan(NamedTuple):
    """What is sent, and to whom in which order.

    Attributes:
        method: the request's method.
        candidates: who is asked, one after the other until one answers.
        query: the client's query, with its `?`; empty for none.
        headers: the headers for all of them, without a credential.
        blocks: returns the body's blocks.
        length: its length; None for one that is sent as it comes, chunked.
        place: where the model's name stands in the body; None where it doesn't.
    """

    method: str
    candidates: list[Candidate]
    query: str
    headers: list[tuple[str, str]]
    blocks: Callable[[], Iterable[bytes]]
    length: int | None
    place: ModelPlace | None = None

    def with_body_for(self, environ: WSGIEnvironment, candidate: Candidate) -> Plan:
        """Return the plan with the body for a candidate: its model, and a cap of a limiter's."""
        if self.place is not None:
            self.place.put(environ, candidate)
        elif RESERVERS not in environ:
            return self
        body = environ.get(BODY)
        return self if body is None else self._replace(blocks=body.blocks, length=body.size)

    def request(self, candidate: Candidate, waiting: Waiting | None) -> Request:
        """Return the request for one candidate, and what may end the wait for its answer."""
        headers = self.headers
        if candidate.credential is not None:
            headers = [*headers, candidate.credential]
        target = candidate.target + self.query
        if candidate.query:
            target = candidate.target + with_query(self.query, candidate.query)
        return Request(
            self.method, candidate.base, target, headers, self.blocks(), self.length, waiting
        )


class ModelPlace:
    """Where in a request's body stands what depends on the candidate, and what stands there now.

    The model's name, the name of a cap that was put in, whether a stream is asked for its usage.

    Args:
        path: the path that is asked for.
        boundary: what separates the parts of a form; empty for a JSON body.
        name: the model's name that stands in the body; None where there is none yet.
        names_model: whether the body is where the model is named.
        asks: whether the stream is to be asked for its usage, where the provider takes that.
        member: where in a JSON body the name stands.
    """

    def __init__(
        self,
        path: AIPath,
        boundary: bytes,
        name: str | None,
        *,
        names_model: bool,
        asks: bool,
        member: tuple[str, ...] = ("model",),
    ) -> None:
        self._path = path
        self._boundary = boundary
        self._name = name
        self._names_model = names_model
        self._member = member
        self._asks = asks

    @property
    def asks(self) -> bool:
        """Whether the stream may be asked for its usage, and an event then taken out of it."""
        return self._asks

    def put(self, environ: WSGIEnvironment, candidate: Candidate) -> None:
        """Put there what `candidate` needs; no other byte is changed."""
        model = candidate.model
        if self._names_model and model is not None and model != self._name:
            if self._boundary:
                replace(environ, put_in_form(environ[BODY].read(), self._boundary, model))
            else:
                put_member(environ, self._member, model)
            self._name = model
        if model is not None and CAP_PATH in environ:
            self._name_cap(environ, model)
        if self._asks:
            self._ask(environ, wanted=candidate.provider not in TELLS_UNASKED)

    def _name_cap(self, environ: WSGIEnvironment, model: str) -> None:
        """Have a cap that was put in stand where the model looks for it."""
        cap = environ[CAP_PATH]
        wanted = self._path.dialect.cap_name(self._path.rest, model)
        if wanted is None or wanted == cap or len(cap) != 1:
            return
        value = environ[BODY].json().get(cap[0])
        drop_member(environ, cap)
        put_member(environ, wanted, value)
        environ[CAP_PATH] = wanted

    @staticmethod
    def _ask(environ: WSGIEnvironment, *, wanted: bool) -> None:
        """Ask a stream for its usage, or take that back."""
        if wanted == (ASKED in environ):
            return
        if wanted:
            environ[ASKED] = True
            put_member(environ, _INCLUDE_USAGE, True)
            return
        del environ[ASKED]
        options = environ[BODY].json().get("stream_options")
        if isinstance(options, dict) and set(options) == {"include_usage"}:
            drop_member(environ, _INCLUDE_USAGE[:1])
        else:
            put_member(environ, _INCLUDE_USAGE, False)


class Inner(NamedTuple):
    """Models that a provider is to ask by itself.

    Attributes:
        models: their names.
        closed: the providers that serve no others than they list, by name.
    """

    models: tuple[str, ...]
    closed: Mapping[str, Provider]

    def denial(
        self, environ: WSGIEnvironment, rules: Sequence[ModelRule], candidate: Candidate
    ) -> Denial | None:
        """Return the refusal of a candidate of whose provider one of them may not be asked."""
        asked = (rule(environ, candidate.provider, one) for one in self.models for rule in rules)
        found = next((denial for denial in asked if denial is not None), None)
        if found is not None:
            return found
        provider = self.closed.get(candidate.provider or "")
        # A list is there to route by: of what the provider chooses it says nothing.
        named = (model for model in self.models if not isinstance(model, AnyOf))
        if provider is None or all(map(provider.lists, named)):
            return None
        return _INNER_NOT_SERVED


_NO_INNER = Inner((), {})
_INNER_NOT_SERVED = Denial(
    "not_found", "No provider here serves all models that the request has it ask.", param="model"
)
_NOT_SERVED = Denial("not_found", "No provider here serves this path and model.", param="model")


class Planner:
    """Makes plans.

    Args:
        providers: the providers, in order of preference.
        aliases: what names of models stand for.
        store: where keys of providers are that were given none; None for nowhere.
        max_body_bytes: the largest body.
        meter: whether streams are asked for their usage.
        strategy: in which order the providers of a model are asked.
        prices: by which the cheapest is found.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        *,
        aliases: Aliases,
        store: Store | None,
        max_body_bytes: int,
        meter: bool,
        strategy: str,
        prices: Prices,
    ) -> None:
        self._providers = tuple(providers)
        self._aliases = aliases
        self._store = store
        self._max_body_bytes = max_body_bytes
        self._meter = meter
        self._strategy = strategy
        self._prices = prices
        self._closed = {p.name: p for p in self._providers if not p.serves_any}
        self._meanings = lru_cache(maxsize=_KNOWN)(self._meanings_of)
        self._made = lru_cache(maxsize=_KNOWN)(_candidates)
        self._known_keys: dict[str, tuple[str, ...]] = {}

    def plan(self, environ: WSGIEnvironment, path: AIPath) -> Plan | Denial:
        """Return what becomes of a request, or why nothing does.

        Raises:
            BodyError: its body is not what its path requires.
            StoreUnavailable: the keys of a provider cannot be read.
        """
        method = environ["REQUEST_METHOD"]
        models = named_models(environ, path.dialect, path.rest, max_bytes=self._max_body_bytes)
        chooser = environ.get(CHOOSER)
        wanted: Sequence[str | None] = models or (None,)
        is_auto = chooser is not None and any(model.lower() == AUTO for model in models)
        needs = method == "POST" and path.dialect.takes(path.rest).model
        if needs and not models and chooser is None:
            raise BodyInvalid(NO_MODEL)
        if is_auto or (needs and not models):
            named = [model for model in models if model.lower() != AUTO]
            wanted = named or self._all_models(path)
            if not wanted:
                raise BodyInvalid("The request's body names no model, and none can be chosen.")
        is_open = not set(wanted) <= set(models) or None in wanted
        wishes = [wish for model in wanted for wish in self._wishes(path, models, model)]
        candidates = arranged(wishes, self._strategy, health, self._prices)
        if chooser is not None and candidates and candidates[0].model is not None:
            candidates = _chosen(candidates, chooser, is_open=is_open)
        if not candidates:
            return _NOT_SERVED
        inner = self._inner(environ, path)
        allowed, denial = _allowed(candidates, environ, inner)
        if not allowed:
            return denial or Denial("model_not_allowed", "No provider may be asked for this.")
        place = self._edited(environ, path, models, allowed)
        body = whole(environ, self._max_body_bytes)
        if allowed[0].model is not None:
            environ[MODEL] = allowed[0].model
        headers = request_headers(environ, provider=True)
        if (place is not None and place.asks) or tells_address(environ):
            headers = without_codings(headers)
        elif self._meter and may_tell(method, path):
            headers = with_codings_read(headers)
        asked, added = query(environ), environ.get(UPSTREAM_QUERY)
        if added:
            asked = with_query(asked, added)
        return Plan(method, allowed, asked, headers, body.blocks, body.size, place)

    def _inner(self, environ: WSGIEnvironment, path: AIPath) -> Inner:
        """Return the models that the provider is to ask by itself, where anybody restricts them."""
        if not self._closed and not environ.get(MODEL_RULES):
            return _NO_INNER
        models = inner_models(environ, path.dialect, path.rest, max_bytes=self._max_body_bytes)
        return Inner(models, self._closed) if models else _NO_INNER

    def _wishes(self, path: AIPath, models: Sequence[str], model: str | None) -> Iterable[Wish]:
        """Yield the candidates for one model that the client names; more where it is an alias."""
        if model is None:
            yield self._candidates(path, None, self._providers)
            return
        for named, providers in self._meanings(model):
            yield self._candidates(path, named.model, providers)

    def _candidates(self, path: AIPath, model: str | None, providers: Sequence[Provider]) -> Wish:
        keyed = tuple((provider, self.keys(provider)) for provider in providers)
        if any(self._known_keys.get(provider.name) != keys for provider, keys in keyed):
            # No key is kept in memory for longer than it is one.
            self._known_keys.update((provider.name, keys) for provider, keys in keyed)
            self._made.cache_clear()
        if len(path.raw) > LONGEST:
            return _candidates(path, model, keyed)
        return self._made(path, model, keyed)

    def _meanings_of(self, model: str) -> list[tuple[Named, list[Provider]]]:
        """Return what a model's name means, each with the providers that come into question."""
        return [
            (
                named,
                [
                    provider
                    for provider in self._providers
                    if named.provider is None or provider.name == named.provider
                ],
            )
            for named in resolve(model, self._providers, self._aliases)
        ]

    def _all_models(self, path: AIPath) -> list[str]:
        """Return the names of all models that providers of a path's dialect list."""
        speaking = [p for p in self._providers if path.dialect.name in p.dialects]
        return [
            f"{provider.name}/{model}" for provider in speaking for model in provider.models or ()
        ]

    def keys(self, provider: Provider) -> tuple[str, ...]:
        """Return a provider's keys: those given, else the store's, else the environment's."""
        if provider.given_keys:
            return provider.given_keys
        stored: tuple[str, ...] = ()
        if self._store is not None:
            try:
                stored = tuple(self._store.provider_keys.secrets(provider.name))
            except ValueError as error:  # sealed with another AIGW_SECRET
                logger.error("a provider key of the store does not open: %s", error)
                raise StoreUnavailable("a provider key does not open") from None
        return stored or provider.environment_keys()

    def _edited(
        self,
        environ: WSGIEnvironment,
        path: AIPath,
        models: Sequence[str],
        candidates: Sequence[Candidate],
    ) -> ModelPlace | None:
        """Change the body where it must be for all candidates; return where its model stands."""
        if environ["REQUEST_METHOD"] != "POST":
            return None
        asks = self._meter and streams_without_usage(environ, path)
        takes = path.dialect.takes(path.rest)
        boundary = form_boundary(environ) if takes.form else b""
        is_json = takes.json and not boundary
        document = json_of(environ[BODY], takes) if is_json and BODY in environ else {}
        if "models" in document and takes.models:
            drop_member(environ, ("models",))
        if candidates[0].model is None:
            return None
        if is_json:
            name = document.get("model")
            member = ("model", "id") if isinstance(name, dict) else ("model",)
            bare = bare_name(id_of(name))
            return ModelPlace(
                path, b"", bare, names_model=takes.named is None, asks=asks, member=member
            )
        if not boundary:
            return None
        return ModelPlace(path, boundary, models[0], names_model=bool(models), asks=False)


def _chosen(
    candidates: Sequence[Candidate], chooser: Callable[..., Any], *, is_open: bool
) -> list[Candidate]:
    """Return the candidates that a policy chooses; in its order where the client has none."""
    offers = list(dict.fromkeys((c.provider, c.model) for c in candidates))
    chosen = chooser(offers, is_open)
    if not is_open:
        return [c for c in candidates if (c.provider, c.model) in chosen]
    return [c for offer in chosen for c in candidates if (c.provider, c.model) == offer]


def _candidates(path: AIPath, model: str | None, keyed: Keyed) -> Wish:
    """Return the candidates for a model, or for a path that names none; see `provider_candidates`.

    Raises:
        BodyInvalid: with the model's name the path could be read as another one.
    """
    renamed = path if model is None else _renamed(path, model)
    return provider_candidates(keyed, renamed, model)


def _renamed(path: AIPath, model: str) -> AIPath:
    """Put a model's name in the place of the client's, where it stands in the path.

    Raises:
        BodyInvalid: with it the path could be read as another one.
    """
    rest = path.dialect.with_model(path.rest, model)
    if rest == path.rest:
        return path
    if not is_safe_path(rest):
        raise BodyInvalid("The model's name is not valid.")
    return path._replace(rest=rest, raw=quote_path(rest))


def _allowed(
    candidates: Sequence[Candidate], environ: WSGIEnvironment, inner: Inner
) -> tuple[list[Candidate], Denial | None]:
    """Return the candidates that every rule of an outer gate allows, and the last refusal."""
    rules = environ.get(MODEL_RULES, ())
    if not rules and not inner.models:
        return list(candidates), None
    allowed, denial = [], None
    for candidate in candidates:
        found = next(
            (d for rule in rules if (d := rule(environ, candidate.provider, candidate.model))), None
        )
        if found is None and inner.models:
            found = inner.denial(environ, rules, candidate)
        if found is None:
            allowed.append(candidate)
        else:
            denial = found
    return allowed, denial
