"""The applications that gunicorn runs for the benchmark of forwarding."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from aigw_middleware import (
    AccessLog,
    HeaderRewriter,
    IPAllowlist,
    KeyAuth,
    ModelAccess,
    Provider,
    RateLimiter,
    UpstreamForwarder,
    open_store,
    stack,
)
from aigw_middleware.usage.prices import load as load_prices

HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding")


def gateway() -> Any:
    """The whole gateway: log, address, key, model, limits, headers, metering, a row of usage."""
    return _gateway(booked=True)


def unbooked() -> Any:
    """The same, but for the row of usage and `last_used`."""
    return _gateway(booked=False)


def _gateway(*, booked: bool) -> Any:
    load_prices()  # as `aigw serve` does, before a request needs them
    store = open_store(os.environ["BENCH_STORE"])
    if not booked:
        store.usage.touch = lambda key_id: None  # type: ignore[method-assign]
    provider = Provider("openai", base_url=os.environ["BENCH_UPSTREAM"] + "/v1", api_keys=["sk-x"])
    directory = os.environ["BENCH_STORE"].removeprefix("sqlite:///").rpartition("/")[0]
    return stack(
        UpstreamForwarder(upstream=provider, store=store if booked else None),
        partial(AccessLog, destination=f"{directory}/access-{os.getpid()}.log"),
        partial(IPAllowlist, allow=["127.0.0.0/8"]),
        partial(KeyAuth, keys=store.keys),
        partial(ModelAccess, allow=["openai/*"]),
        partial(
            RateLimiter,
            limits=["9000000/s", "900000000/day", "900000000000 tokens/day"],
            by="key",
            counters=f"lmdb:///{directory}/counts",
        ),
        partial(HeaderRewriter, request={"set": {"X-Team": "a"}}),
    )


def forwarder() -> Any:
    """The forwarder alone, with metering."""
    url = os.environ["BENCH_UPSTREAM"] + "/v1"
    return UpstreamForwarder(upstream=Provider("openai", base_url=url, api_keys=["sk-x"]))


def bare() -> Any:
    """What anyone would write first: urllib3 behind a WSGI app, and nothing else."""
    import urllib3

    pool = urllib3.PoolManager(maxsize=64, retries=False)
    upstream = os.environ["BENCH_UPSTREAM"]

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        headers = {
            key[5:].replace("_", "-").title(): value
            for key, value in environ.items()
            if key.startswith("HTTP_") and key not in ("HTTP_HOST", "HTTP_CONNECTION")
        }
        headers["Content-Type"] = environ.get("CONTENT_TYPE", "")
        headers["Authorization"] = "Bearer sk-x"
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        response = pool.request(
            environ["REQUEST_METHOD"],
            upstream + environ["PATH_INFO"],
            body=body,
            headers=headers,
            preload_content=False,
            decode_content=False,
        )
        kept = [(k, v) for k, v in response.headers.items() if k.lower() not in HOP_BY_HOP]
        start_response(f"{response.status} {response.reason}", kept)
        try:
            yield from response.stream(65536)
        finally:
            response.release_conn()

    return app
