"""Tell the gateway's address where a provider tells its own, and the client is to ask there next.

Anthropic's SDKs fetch what a batch has brought at the `results_url` of the batch, whatever base URL
they were given: they would ask the provider itself, with the gateway's key in their hands.
https://platform.claude.com/docs/en/api/retrieving-message-batch-results
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..dialects import ANTHROPIC, spoken

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_TELLS = re.compile(r"/messages/batches(?:/[^/]+(?:/cancel)?)?/?").fullmatch
_TOLD = re.compile(
    rb'("results_url"\s*:\s*")https?://[^"\\/]+/[^"\\]*?(/messages/batches/[\w.-]+/results")'
).sub


def tells_address(environ: WSGIEnvironment) -> bool:
    """Whether the answer to a request may tell where the client is to ask next."""
    if "batches" not in environ.get("PATH_INFO", ""):
        return False  # nearly always
    dialect, _, rest = spoken(environ)
    return dialect is ANTHROPIC and _TELLS(rest) is not None


def with_own_address(environ: WSGIEnvironment, body: bytes) -> bytes:
    """Return an answer's body that tells a path at the gateway, and no host.

    The SDKs put it behind their base URL. What that is nobody here knows for sure: before a proxy
    an address may have another scheme, and with the wrong one a key would be sent in clear.
    """
    _, path, rest = spoken(environ)
    prefix = path.removesuffix(rest).encode("latin-1")
    return _TOLD(lambda match: match[1] + prefix + match[2], body)
