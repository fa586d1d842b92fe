"""What gunicorn runs: the layers over a store that the environment names."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

from aigw_middleware import (
    HeaderRewriter,
    KeyAuth,
    Provider,
    RateLimiter,
    UpstreamForwarder,
    open_store,
    stack,
)


def hello(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


def guarded() -> Any:
    """An app behind a key, built before the workers are forked."""
    return KeyAuth(hello, open_store(os.environ["TEST_STORE"]).keys)


def gateway() -> Any:
    """A gateway that books usage."""
    store = open_store(os.environ["TEST_STORE"])
    upstream = Provider("openai", base_url=os.environ["TEST_UPSTREAM"], api_keys=["sk-x"])
    return stack(
        UpstreamForwarder(upstream=upstream, store=store), partial(KeyAuth, keys=store.keys)
    )


def _now(environ: Any) -> str:
    return repr(time.monotonic())


def limited() -> Any:
    """A gateway whose limits are counted for all workers."""
    upstream = Provider("openai", base_url=os.environ["TEST_UPSTREAM"], api_keys=["sk-x"])
    return stack(
        UpstreamForwarder(upstream=upstream),
        # Around the decision, which falls in between: at the provider nobody could tell when.
        partial(HeaderRewriter, request={"set": {"X-Entered": _now}}),
        partial(
            RateLimiter,
            limits=os.environ["TEST_LIMITS"].split(","),
            by="global",
            counters=os.environ["TEST_COUNTERS"],
        ),
        partial(HeaderRewriter, request={"set": {"X-Admitted": _now}}),
    )
