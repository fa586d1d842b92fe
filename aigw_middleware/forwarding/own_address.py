"""Tell the gateway's address where a provider tells its own, and the client is to ask there next.

Anthropic's SDKs fetch what a batch has brought at the `results_url` of the batch, whatever base URL
they were given: they would ask the provider itself, with the gateway's key in their hands.
https://platform.claude.com/docs/en/api/retrieving-message-batch-results
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from werkzeug.wsgi import get_host

from ..dialects import ANTHROPIC, spoken
from ..environ import full_path
from .url import quote_path

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_TELLS = re.compile(r"/messages/batches(?:/[^/]+(?:/cancel)?)?/?").fullmatch
_TOLD = re.compile(
    rb'("results_url"\s*:\s*")https?://[^"\\/]+/[^"\\]*?(/messages/batches/[\w.-]+/results")'
).sub
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]+").fullmatch


def tells_address(environ: WSGIEnvironment) -> bool:
    """Whether the answer to a request may tell where the client is to ask next."""
    if "batches" not in environ.get("PATH_INFO", ""):
        return False  # nearly always
    dialect, _, rest = spoken(environ)
    return dialect is ANTHROPIC and _TELLS(rest) is not None


def with_own_address(environ: WSGIEnvironment, body: bytes) -> bytes:
    """Return an answer's body that tells the address by which the gateway was asked."""
    host = get_host(environ)
    path, rest = full_path(environ), spoken(environ).rest
    if not _HOST(host) or not path.endswith(rest):
        return body
    prefix = quote_path(path.removesuffix(rest))
    own = f"{environ['wsgi.url_scheme']}://{host}{prefix}".encode("latin-1")
    return _TOLD(lambda match: match[1] + own + match[2], body)
