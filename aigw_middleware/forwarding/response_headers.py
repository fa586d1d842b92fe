"""Which of an upstream's headers go on to the client."""

from __future__ import annotations

from .._headers import HOP_BY_HOP, without
from .http1 import connection_options

# The WSGI server in front writes the first two for itself (gunicorn always does), we the others.
_OF_OURS = frozenset({"date", "server", "x-aigw-request-id", "x-aigw-code", "x-aigw-attempts"})
_DROPPED = HOP_BY_HOP | _OF_OURS
_NEVER_NOMINATED = frozenset({"content-length", "content-type", "close", "keep-alive"})


def response_headers(headers: list[tuple[str, str]], request_id: str) -> list[tuple[str, str]]:
    """Return the headers for the client, in their order, duplicates kept."""
    nominated = connection_options(headers) - _NEVER_NOMINATED
    dropped = _DROPPED | nominated if nominated else _DROPPED
    kept = _one_length([header for header in headers if header[0].lower() not in dropped])
    kept.append(("X-Aigw-Request-Id", request_id))
    return kept


def _one_length(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Keep one Content-Length: an upstream may repeat it, a WSGI server may not."""
    lengths = [value for name, value in headers if name.lower() == "content-length"]
    if len(lengths) < 2 and not any("," in value for value in lengths):
        return headers
    return [
        *without(headers, "content-length"),
        ("Content-Length", lengths[0].partition(",")[0].strip(" \t")),
    ]
