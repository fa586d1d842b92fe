"""A whole gateway as a WSGI application, from environment variables.

::

    gunicorn 'aigw_middleware.wsgi:application'

Without a policy every provider that has a key is served, in the store or in its SDK's variable
(`OPENAI_API_KEY`, ...), at the address in its base variable (`OPENAI_BASE_URL`, ...) where that
is set. A gateway key is asked for on every path but `/healthz`.

- `AIGW_STORE`: where the keys are, `sqlite:///aigw.db` by default.
- `AIGW_POLICY`: a Traffic Policy document that describes the gateway instead; it is read anew when
  it changes.
- `AIGW_SECRET`: what seals the keys of providers in the store.
- `AIGW_COUNTERS`: where limits are counted; by default beside the store (`lmdb:`), for all workers
  of the machine, where the extra `lmdb` is installed, else in `memory:`.
- `AIGW_MAX_BODY_BYTES`: the largest body of a request that is forwarded, 32 MiB by default; with a
  policy its `ai-gateway` action says so (`max_body_bytes`).
- `AIGW_ACCESS_LOG`: a file that gets a line of JSON for each request; `-` is standard output.
- `PROMETHEUS_MULTIPROC_DIR`: an empty directory in which the processes count for `GET /metrics`
  (extra `metrics`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .access_log import AccessLog
from .counters import open_counters
from .denial import Denial, refuse
from .environ import UNSERVED, full_path
from .key_auth import KeyAuth
from .limits.tokenizer import load as load_tokenizer
from .management import ManagementAPI
from .named_models import MAX_BODY_BYTES
from .providers import CATALOGUE
from .providers.configured import configured_providers
from .stack import stack
from .store import Store, open_store
from .store.opening import state_directory
from .upstream_forwarder import UpstreamForwarder
from .usage.prices import load as load_prices

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .policy.reloading import Reloading

logger = logging.getLogger(__name__)

_SHORTEST_TOKEN = 16
DEFAULT_STORE = "sqlite:///aigw.db"
MEMORY = "memory:"
HEALTH = "/healthz"

SHARED_METRICS = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus-client's own variable, by which its modules share their counts."""
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

_NOT_FOUND = Denial("not_found", "The gateway serves no such path.")


def build(variables: Mapping[str, str]) -> WSGIApplication:
    """Build the gateway that environment `variables` describe.

    Raises:
        ValueError: a variable is wrong, or no provider has a key.
        StoreUnavailable: the store cannot be opened.
    """
    secret = variables.get("AIGW_SECRET")
    policy = variables.get("AIGW_POLICY")
    max_body_bytes = _max_body_bytes(variables.get("AIGW_MAX_BODY_BYTES"), policy)
    providers = configured_providers(variables)
    store = open_store(variables.get("AIGW_STORE") or DEFAULT_STORE, secret=secret)
    if not policy and not any(provider.given_keys for provider in providers):
        _require_stored_keys(store, sealed=bool(secret))
    if secret:
        store.provider_keys.check()  # another secret is told now, not by the first request
    load_prices()  # no request is to wait for what can be read now
    load_tokenizer()
    counters = counters_of(variables)
    layers: list[Callable[[WSGIApplication], WSGIApplication]] = []
    log = variables.get("AIGW_ACCESS_LOG")
    if log:
        layers.append(partial(AccessLog, destination=None if log == "-" else log))
    if variables.get(SHARED_METRICS):
        layers.append(_metrics)
    if policy:
        return stack(_Healthy(_with_policy(policy, store, counters)), *layers)
    layers.append(partial(KeyAuth, keys=store.keys, exempt=[HEALTH], counters=counters))
    forwarder = UpstreamForwarder(
        own_paths, upstream=providers, store=store, max_body_bytes=max_body_bytes
    )
    return stack(forwarder, *layers)


def _max_body_bytes(text: str | None, policy: str | None) -> int:
    if not text:
        return MAX_BODY_BYTES
    if policy:
        raise ValueError(
            "AIGW_MAX_BODY_BYTES: a policy says it itself, max_body_bytes of its ai-gateway action"
        )
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text)):
        raise ValueError(f"AIGW_MAX_BODY_BYTES: {text[:20]!r} is no number of bytes")
    return int(text)


def _with_policy(path: str, store: Store, counters: str) -> Reloading:
    """Return the stack that a document describes, read anew when it changes."""
    from .policy import TrafficPolicy
    from .policy.reloading import Reloading

    engine = open_counters(counters)

    def build(text: bytes) -> WSGIApplication:
        policy = TrafficPolicy.parse(text, name=path, store=store, counters=engine)
        if not policy.has_gateway:
            raise ValueError(f'{path}: has no "ai-gateway" action: nothing would answer')
        return policy(own_paths)

    return Reloading(path, build)


class _Healthy:
    """Answers the health check before any rule of a document.

    Attributes:
        app: what answers everything else.
    """

    def __init__(self, app: Reloading) -> None:
        self.app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if full_path(environ) == HEALTH:
            return own_paths(environ, start_response)
        return self.app(environ, start_response)


def reloading_within(app: object) -> Reloading | None:
    """Return what reads a document anew within an application; None where there is none."""
    while app is not None:
        if isinstance(app, _Healthy):
            return app.app
        app = getattr(app, "app", None)
    return None


def counters_of(variables: Mapping[str, str]) -> str:
    """Return the URL of the engine that counts limits: the one that is set, or beside the store."""
    chosen = variables.get("AIGW_COUNTERS")
    if chosen:
        return chosen
    if find_spec("lmdb") is None:
        return MEMORY
    return f"lmdb:///{state_directory(variables.get('AIGW_STORE') or DEFAULT_STORE)}/counters"


def build_management(variables: Mapping[str, str], bind: str) -> WSGIApplication:
    """Build the management API for the address that it is served on.

    Raises:
        ValueError: `AIGW_ADMIN_TOKEN` is not set.
        StoreUnavailable: the store cannot be opened.
    """
    token = variables.get("AIGW_ADMIN_TOKEN")
    if not token:
        raise ValueError("AIGW_ADMIN_TOKEN is not set; the management API asks for it")
    if len(token) < _SHORTEST_TOKEN:
        logger.warning(
            "AIGW_ADMIN_TOKEN is shorter than %d characters; it makes keys, and can be guessed",
            _SHORTEST_TOKEN,
        )
    store = open_store(
        variables.get("AIGW_STORE") or DEFAULT_STORE, secret=variables.get("AIGW_SECRET")
    )
    counters = open_counters(counters_of(variables))
    host = (bind.rpartition(":")[0] or bind).lower()
    loopback = host in _LOOPBACK or host.startswith("127.")
    return ManagementAPI(
        store,
        token,
        allowed_hosts=_LOOPBACK if loopback else (),
        counters=counters if counters.shared else None,
        metrics=_exposition() if variables.get(SHARED_METRICS) else None,
    )


def _metrics(app: WSGIApplication) -> WSGIApplication:
    from .metrics import Metrics

    return Metrics(app)


def _exposition() -> Callable[[], tuple[str, bytes]]:
    from .metrics import exposition

    return exposition


def _require_stored_keys(store: Store, *, sealed: bool) -> None:
    """Refuse to start where no provider has a key, and none could be added while it runs."""
    if not sealed:
        names = ", ".join(name for entry in CATALOGUE.values() for name in entry.key_variables)
        raise ValueError(
            f"no provider has a key; set one of {names}, or AIGW_SECRET and keep keys in the store"
        )
    if not store.provider_keys.providers():
        logger.warning("no provider has a key yet; aigw provider-keys add gives it one")


def own_paths(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer what belongs to no AI API: the health check, and nothing else."""
    if full_path(environ) != HEALTH:
        environ[UNSERVED] = True
        return refuse(environ, start_response, _NOT_FOUND)
    body = b'{"status": "ok"}'
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def __getattr__(name: str) -> WSGIApplication:
    # Built when a server asks for it, so that importing `build` needs no configuration.
    if name != "application":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    application = globals()[name] = build(os.environ)
    return application
