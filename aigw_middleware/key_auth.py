"""Ask for a gateway key, and enforce all that is stored on it.

Clients hold gateway keys instead of provider keys. Use it in front of anything that only known
clients may reach; it says who a client is, not who a person is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import unquote_plus

from ._addresses import NetworkSet, address_of, header_name
from ._headers import misnamed
from ._iterables import WHOLE, Wrapped
from ._options import several
from ._paths import PathPatterns
from ._saying import OnceAMinute
from .counters import Engine, resolve_counters
from .denial import Denial, store_denial
from .dialects import PLAIN, spoken
from .environ import (
    GOOGLE_CLIENT,
    KEY,
    KEY_ALIVE,
    QUERY_CREDENTIALS,
    STAND_INS,
    WATCHED,
    is_listed,
    stand_in,
)
from .errors import KeyRevoked, StoreUnavailable
from .keys import ApiKey
from .limits import parse_limits
from .limits.enforcing import NamedLimits
from .limits.limited import LimitedGate
from .model_rules import ModelRules, judge_models

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

_BAD_KEY = Denial(
    "invalid_api_key",
    "A valid gateway API key is required.",
    headers=(("WWW-Authenticate", 'Bearer realm="ai-gateway"'),),
)
_BAD_ADDRESS = Denial("ip_not_allowed", "This key may not be used from this address.")


logger = logging.getLogger(__name__)


class Keys(Protocol):
    """Where keys are looked up: `store.keys`, `StaticKeys`, or an object of your own."""

    def verify(self, token: str, *, endpoint: str | None = None) -> ApiKey | None:
        """Return the live key of `token`, None for any that is not good.

        Raises:
            StoreUnavailable: it cannot be told.
        """


class KeyAuth(LimitedGate):
    """Let requests pass that present a good gateway key; 401 `invalid_api_key` for any other.

    ::

        app = KeyAuth(app, open_store("sqlite:///aigw.db").keys, exempt=["/healthz"])

    What is stored on the key is enforced here: its endpoint, expiry and whether it is disabled
    (401, one answer for every reason), its networks (403 `ip_not_allowed`), its models (403
    `model_not_allowed`), its limits (429 `rate_limit_exceeded`). The record, never the token, is
    left in `environ["aigw.key"]`. Whether let through or refused, no header or parameter that
    can carry a key is left for the next layer.

    A stream that is open under a key of a store ends when the key is deleted, disabled or
    expires: one of `UpstreamForwarder` within a second, with an error event, one of another app
    at its next chunk, by raising `KeyRevoked`.

    Args:
        app: the wrapped WSGI application.
        keys: `store.keys`, a `StaticKeys`, or an object with
            `verify(token, *, endpoint=None) -> ApiKey | None`.
        endpoint: the endpoint that this is; a key made for another one is refused.
        exempt: paths (`/healthz`) or prefixes (`/static/*`) that need no key and are left
            untouched, judged on SCRIPT_NAME + PATH_INFO, and on PATH_INFO alone too where
            SCRIPT_NAME may have come in a header (gunicorn, `ProxyFix`); a path with dot or empty
            segments, controls or bytes that are no UTF-8 never is exempt.
        headers: the headers that may carry the key: `Authorization` as a bearer token (the
            scheme in any case, RFC 6750 §2.1), the others bare. Two different tokens in one
            request are refused.
        paths: AI paths without a model that a key with `models` may ask all the same, as those of
            `ModelAccess`: `/v1/responses/*` to fetch by its id what was made in the background,
            `/v1/files`.
        query_parameter: a query parameter that may carry it as well; None for none. A query
            string ends up in logs of others, so prefer a header.
        counters: an engine or its URL for the keys' own limits; None is memory of this
            instance's own.
        enforce: False reports in `aigw.decisions` and refuses nothing.

    Raises:
        ValueError: an option is wrong.
    """

    authenticates = True

    def __init__(
        self,
        app: WSGIApplication,
        keys: Keys,
        *,
        endpoint: str | None = None,
        exempt: Iterable[str] = (),
        headers: Iterable[str] = ("authorization", "x-api-key", "api-key", "x-goog-api-key"),
        query_parameter: str | None = None,
        paths: Iterable[str] = (),
        counters: Engine | str | None = None,
        enforce: bool = True,
    ) -> None:
        super().__init__(app, enforce=enforce)
        if isinstance(keys, Mapping):
            raise ValueError("keys: a mapping of secrets belongs in StaticKeys(...)")
        if not callable(getattr(keys, "verify", None)):
            raise ValueError(f"keys: {type(keys).__name__} has no verify(token, endpoint=...)")
        self._keys = keys
        # Not of every kind of `keys`: fixed secrets cannot be revoked.
        self._watch: Callable[[str, str], Callable[[], bool]] | None = getattr(keys, "watch", None)
        if endpoint is not None and not isinstance(endpoint, str):
            raise ValueError(f"endpoint: must be a text, not {type(endpoint).__name__}")
        self._endpoint = endpoint
        self._exempt = PathPatterns("exempt", exempt)
        names = several("headers", headers)
        self._headers = tuple(dict.fromkeys(header_name("headers", name) for name in names))
        self._misnamed = misnamed(self._headers)
        if query_parameter is not None and not (
            isinstance(query_parameter, str) and query_parameter
        ):
            raise ValueError(
                "query_parameter: must be a text that is not empty; None reads no parameter"
            )
        self._parameter = query_parameter
        self._paths = PathPatterns("paths", paths)
        if not self._headers and query_parameter is None:
            raise ValueError("headers: empty, and no query_parameter: no key could be presented")
        self._counters = resolve_counters(counters)
        self._said = OnceAMinute(logger)

    def judge(self, environ: WSGIEnvironment, *, hand_on: bool = False) -> Denial | None:
        """Return what is against the request, spending nothing and taking nothing out.

        Args:
            environ: the request.
            hand_on: whether rules over models are handed to a forwarder within, as `apply` does.
        """
        if self._is_exempt(environ):
            return None
        found = self._look_up(_presented(environ, self._headers, self._parameter))
        if isinstance(found, Denial):
            return found
        rules = _rules_of(found)
        if isinstance(rules, Denial):
            return rules
        denial = self._judge_rules(rules, environ, hand_on=hand_on)
        if denial is None and rules.limits is not None:
            denial = rules.limits.judge(self._counters, found.id, environ)
        return denial

    def apply(self, environ: WSGIEnvironment) -> Denial | None:
        """Take the credentials out, judge the key that they name, and spend from its limits."""
        if self._is_exempt(environ):
            return None
        tokens = _presented(environ, self._headers, self._parameter)
        taken = self._take_out(environ)
        presented = next(iter(tokens), "")
        found = self._look_up(tokens)
        stand_ins = environ.setdefault(STAND_INS, {})
        if isinstance(found, Denial):
            stand_ins.update((name, stand_in(value)) for name, value in taken)
            return found
        stand_ins.update((name, f"redacted:{found.id}") for name, _ in taken)
        environ[KEY] = found
        if self._watch is not None:
            environ[KEY_ALIVE] = self._watch(found.id, presented)
        rules = _rules_of(found)
        if isinstance(rules, Denial):
            return rules
        denial = self._judge_rules(rules, environ, hand_on=self.enforce)
        if denial is None and rules.limits is not None:
            denial = self._spend_of(rules.limits, found, environ)
        return denial

    def take_out(self, environ: WSGIEnvironment) -> None:
        """Take every credential out that this gate looks for."""
        self._take_out(environ)

    def watched(self, environ: WSGIEnvironment, iterable: Iterable[bytes]) -> Iterable[bytes]:
        """Return the app's iterable, ended at its next chunk when the key is revoked."""
        iterable = super().watched(environ, iterable)
        alive = environ.get(KEY_ALIVE)
        if alive is None or WATCHED in environ or isinstance(iterable, WHOLE):
            return iterable
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(iterable, wrapper):
            return iterable  # so that the server can still send the file by itself
        return _RevocableBody(iterable, alive)

    def _judge_rules(
        self, rules: _KeyRules, environ: WSGIEnvironment, *, hand_on: bool
    ) -> Denial | None:
        if rules.networks is not None:
            address = address_of(environ)
            if address is None or address not in rules.networks:
                return _BAD_ADDRESS
        if rules.models is None:
            return None
        return judge_models(
            rules.models,
            environ,
            self.app,
            gate=self.gate_name,
            hand_on=hand_on,
            optional=is_listed(environ, self._paths),
        )

    def _is_exempt(self, environ: WSGIEnvironment) -> bool:
        if not is_listed(environ, self._exempt):
            return False
        # What SCRIPT_NAME adds must not make an AI path look like an exempt one.
        dialect, path, _ = spoken(environ)
        return dialect is PLAIN or self._exempt.opens(path)

    def _look_up(self, tokens: set[str]) -> ApiKey | Denial:
        if len(tokens) != 1:
            return _BAD_KEY
        try:
            key = self._keys.verify(tokens.pop(), endpoint=self._endpoint)
        except StoreUnavailable as error:
            self._said.error("records unavailable, requests are refused: %s", error)
            return store_denial(error)
        # Judged here too, whatever kind of `keys` the record comes from.
        if key is None or not key.is_live(datetime.now(UTC)) or not self._is_for_here(key):
            return _BAD_KEY
        return key

    def _is_for_here(self, key: ApiKey) -> bool:
        return self._endpoint is None or key.endpoint_id in (None, self._endpoint)

    def _spend_of(
        self, limits: NamedLimits, key: ApiKey, environ: WSGIEnvironment
    ) -> Denial | None:
        try:
            return self.spend(limits, self._counters, key.id, environ, self.app)
        except StoreUnavailable as error:
            self._said.error("counters unavailable, requests are refused: %s", error)
            return store_denial(error)

    def _take_out(self, environ: WSGIEnvironment) -> list[tuple[str, str]]:
        """Take all credentials out; return those of headers, by environ key."""
        if "HTTP_X_GOOG_API_KEY" in environ:
            environ[GOOGLE_CLIENT] = True  # which dialect it speaks is told by that
        taken = [(name, environ.pop(name)) for name in self._headers if name in environ]
        for name in self._misnamed:
            environ.pop(name, None)
        if self._parameter is not None:
            environ.setdefault(QUERY_CREDENTIALS, set()).add(self._parameter)
            _remove_parameter(environ, self._parameter)
        return taken


class _RevocableBody(Wrapped):
    """An iterable that raises at its next chunk when the key is no longer good."""

    def __init__(self, iterable: Iterable[bytes], alive: Callable[[], bool]) -> None:
        self._alive = alive
        super().__init__(iterable)

    def __next__(self) -> bytes:
        data = self._next()
        if not self._alive():
            raise KeyRevoked("the key of this answer was revoked")
        return data


class _KeyRules(NamedTuple):
    networks: NetworkSet | None
    models: ModelRules | None
    limits: NamedLimits | None


def _rules_of(key: ApiKey) -> _KeyRules | Denial:
    try:
        return _compiled(key.networks, key.models, key.limits)
    except ValueError as error:
        # From an object of the user's own; a store has checked what it keeps.
        logger.error("the rules of key %s cannot be read: %s", key.id, error)
        return store_denial(StoreUnavailable("the rules of the key cannot be read"))


@lru_cache(maxsize=4096)
def _compiled(
    networks: tuple[str, ...], models: tuple[str, ...] | None, limits: tuple[str, ...]
) -> _KeyRules:
    """Parse a key's rules once for all keys that have the same ones."""
    return _KeyRules(
        NetworkSet("networks", networks) if networks else None,
        None if models is None else ModelRules(models),
        NamedLimits(parse_limits(limits), "key", "key") if limits else None,
    )


def _presented(
    environ: WSGIEnvironment, headers: tuple[str, ...], parameter: str | None
) -> set[str]:
    """Return the different tokens that a request presents."""
    tokens = set()
    for name in headers:
        value = environ.get(name)
        if not value:
            continue
        token = _bearer(value) if name == "HTTP_AUTHORIZATION" else value.strip(" \t")
        if token:
            tokens.add(token)
    if parameter is not None:
        tokens.update(_parameter_values(environ.get("QUERY_STRING", ""), parameter))
    return tokens


def _bearer(value: str) -> str:
    scheme, _, token = value.strip(" \t").partition(" ")
    return token.strip(" \t") if scheme.lower() == "bearer" else ""


def _parameter_values(query: str, name: str) -> Iterable[str]:
    for part in query.split("&"):
        key, _, value = part.partition("=")
        if unquote_plus(key) == name and value:
            yield unquote_plus(value)


def without_parameter(query: str, name: str) -> str:
    """Return `query` without the parameters called `name`, however they are spelled."""
    return "&".join(
        part for part in query.split("&") if unquote_plus(part.partition("=")[0]) != name
    )


def _remove_parameter(environ: WSGIEnvironment, name: str) -> None:
    """Take the parameter out of the query string and of the raw targets that servers keep."""
    query = environ.get("QUERY_STRING", "")
    if query:
        environ["QUERY_STRING"] = without_parameter(query, name)
    for raw in ("RAW_URI", "REQUEST_URI"):
        path, mark, query = environ.get(raw, "").partition("?")
        if mark:
            kept = without_parameter(query, name)
            environ[raw] = f"{path}?{kept}" if kept else path
