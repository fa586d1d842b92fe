"""A whole gateway: every layer by hand, nothing else served.

Run it from the folder above this one, make a key, and ask:

    export OPENAI_API_KEY=sk-...
    gunicorn examples.whole_gateway:application --bind 127.0.0.1:8000 --threads 16
    aigw keys create --name web --limit 100/min
    curl http://127.0.0.1:8000/v1/models -H 'Authorization: Bearer aigw-...'

`OPENAI_BASE_URL` names another address of the provider, with its `/v1`; `AIGW_STORE` another
place for the keys than `aigw.db` in the working directory.
"""

import os
from functools import partial

from aigw_middleware import (
    HeaderRewriter,
    IPAllowlist,
    KeyAuth,
    Provider,
    RateLimiter,
    UpstreamForwarder,
    open_store,
    stack,
)

store = open_store(os.environ.get("AIGW_STORE", "sqlite:///aigw.db"))

# The first layer named is the first that a request meets.
application = stack(
    UpstreamForwarder(upstream=Provider("openai", base_url=os.environ.get("OPENAI_BASE_URL"))),
    partial(IPAllowlist, allow=["127.0.0.0/8", "::1", "10.0.0.0/8"]),
    partial(KeyAuth, keys=store.keys),
    partial(RateLimiter, limits=["10/s", "1000/day"], by="key"),
    partial(
        HeaderRewriter,
        request={"remove": ["User-Agent"], "set": {"X-Team": "search"}},
        response={"set": {"X-Served-By": "ai-gateway"}},
    ),
)
