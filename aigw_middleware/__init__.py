"""An AI gateway made of WSGI middleware.

Each protection is one class that wraps a WSGI application and is useful alone::

    from functools import partial
    from aigw_middleware import IPAllowlist, KeyAuth, RateLimiter, open_store, stack

    store = open_store("sqlite:///aigw.db")
    app = stack(
        app,
        partial(IPAllowlist, allow=["10.0.0.0/8"]),
        partial(KeyAuth, keys=store.keys),
        partial(RateLimiter, limits="100/min"),
    )

The names below are imported when they are first used, so that whoever takes one class
pays for nothing that only another one needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Not lazily: importing the submodule later would bind the package's name `stack` to it.
from .stack import stack

if TYPE_CHECKING:
    from .access_log import AccessLog
    from .client_address import ClientAddress
    from .counters import open_counters
    from .either import either
    from .errors import StoreUnavailable
    from .gate import Decision
    from .header_rewriter import HeaderRewriter
    from .ip_allowlist import IPAllowlist
    from .jwt_auth import JWTAuth
    from .key_auth import KeyAuth
    from .keys import ApiKey, StaticKeys
    from .management import ManagementAPI
    from .model_access import ModelAccess
    from .policy import TrafficPolicy
    from .providers import Provider
    from .rate_limiter import RateLimiter
    from .store import open_store
    from .upstream_forwarder import UpstreamForwarder
    from .usage import Usage

__version__ = "0.1.0"

__all__ = [
    "AccessLog",
    "ApiKey",
    "ClientAddress",
    "Decision",
    "HeaderRewriter",
    "IPAllowlist",
    "JWTAuth",
    "KeyAuth",
    "ManagementAPI",
    "ModelAccess",
    "Provider",
    "RateLimiter",
    "StaticKeys",
    "StoreUnavailable",
    "TrafficPolicy",
    "UpstreamForwarder",
    "Usage",
    "either",
    "open_counters",
    "open_store",
    "stack",
]

_HOMES = {
    "AccessLog": ".access_log",
    "ApiKey": ".keys",
    "ClientAddress": ".client_address",
    "Decision": ".gate",
    "HeaderRewriter": ".header_rewriter",
    "IPAllowlist": ".ip_allowlist",
    "JWTAuth": ".jwt_auth",
    "KeyAuth": ".key_auth",
    "ManagementAPI": ".management",
    "ModelAccess": ".model_access",
    "Provider": ".providers",
    "RateLimiter": ".rate_limiter",
    "StaticKeys": ".keys",
    "StoreUnavailable": ".errors",
    "TrafficPolicy": ".policy",
    "UpstreamForwarder": ".upstream_forwarder",
    "Usage": ".usage",
    "either": ".either",
    "open_counters": ".counters",
    "open_store": ".store",
}


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    # Kept in the module's namespace, so that this runs once a name.
    value = globals()[name] = getattr(import_module(home, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
