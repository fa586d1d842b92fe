"""What gunicorn runs: the layers over a store that the environment names."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from aigw_middleware import KeyAuth, Provider, UpstreamForwarder, open_store, stack


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
