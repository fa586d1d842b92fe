"""What the servers run: one application, in which a request chooses what it meets.

`X-Test: NAME PORT NONCE` names the layers, the provider's port on loopback, and anything that
makes the stack a new one, so that no test finds a limit spent by another. The headers alone are
read: everything else reaches the layers as the server gave it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

from aigw_middleware import (
    HeaderRewriter,
    IPAllowlist,
    KeyAuth,
    Provider,
    RateLimiter,
    StaticKeys,
    UpstreamForwarder,
    stack,
)
from aigw_middleware.environ import KEY_ALIVE

TOKEN = "client-token"
PROVIDER_KEY = "sk-provider-key"
MAX_BODY = 256 * 1024
# Set by whoever starts the server, see `running.py`.
SECRETS = ("OPENAI_API_KEY", "AIGW_SECRET", "HTTP_PROXY")


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Hand the request to the stack that it names."""
    name, _, rest = environ.get("HTTP_X_TEST", "bare").partition(" ")
    return built(name, rest)(environ, start_response)


@lru_cache(maxsize=256)
def built(name: str, rest: str) -> Any:
    """Return the application of that name, the same one for the same `rest`."""
    port = rest.partition(" ")[0]
    return APPS[name](port)


def dump(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer with the environ's texts, as an inner app's debugging page would."""
    shown = {key: value for key, value in environ.items() if isinstance(value, str)}
    shown["secrets_in_process"] = [name for name in SECRETS if name in os.environ]
    for name in ("gunicorn.socket", "werkzeug.socket"):
        shown[name] = name in environ
    body = json.dumps(shown).encode()
    start_response("200 OK", [("Content-Type", "application/json"), _length(body)])
    return [body]


def _length(body: bytes) -> tuple[str, str]:
    return ("Content-Length", str(len(body)))


def gateway(port: str, *, limit: str = "1000/min", max_body: int = MAX_BODY) -> Any:
    """Return the whole gateway in front of the provider at `port`."""
    provider = Provider("openai", base_url=f"http://127.0.0.1:{port}/v1", api_keys=[PROVIDER_KEY])
    return stack(
        UpstreamForwarder(upstream=provider, max_body_bytes=max_body),
        partial(KeyAuth, keys=StaticKeys({"ci": TOKEN})),
        partial(RateLimiter, limits=[limit]),
        partial(
            HeaderRewriter,
            request={"set": {"X-Team": "search"}},
            response={"set": {"X-Served-By": "gateway"}},
        ),
    )


def proxy(port: str) -> Any:
    """Return a plain reverse proxy, which takes bodies as they come."""
    return UpstreamForwarder(upstream=f"http://127.0.0.1:{port}")


def revoked_soon(port: str) -> Any:
    """Return a forwarder whose client's key is good for half a second of each request."""
    provider = Provider("openai", base_url=f"http://127.0.0.1:{port}/v1", api_keys=[PROVIDER_KEY])
    forwarder = UpstreamForwarder(upstream=provider)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        until = time.monotonic() + 0.5
        environ[KEY_ALIVE] = lambda: time.monotonic() < until
        return forwarder(environ, start_response)

    return app


APPS: dict[str, Callable[[str], Any]] = {
    "bare": lambda _: dump,
    "gateway": gateway,
    "tight": partial(gateway, limit="1/min"),
    "small": partial(gateway, max_body=32 * 1024),
    "proxy": proxy,
    "revoked-soon": revoked_soon,
    "team": lambda _: HeaderRewriter(dump, request={"set": {"X-Team": "search"}}),
    "KeyAuth": lambda _: KeyAuth(dump, StaticKeys({"ci": TOKEN})),
    "RateLimiter": lambda _: RateLimiter(dump, "1000/min"),
    "HeaderRewriter": lambda _: HeaderRewriter(dump, request={"set": {"X-Team": "search"}}),
    "IPAllowlist": lambda _: IPAllowlist(dump, ["127.0.0.1"]),
    "UpstreamForwarder": lambda port: UpstreamForwarder(
        dump, Provider("openai", base_url=f"http://127.0.0.1:{port}/v1", api_keys=[PROVIDER_KEY])
    ),
}
