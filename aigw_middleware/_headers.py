"""Header names and values: what RFC 9110 allows, and how WSGI spells a name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]").search

# RFC 9110 §7.6.1 and the ones that proxies have long treated alike.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Names, in lower case, of headers that concern one connection."""

# Only these two stand in the environ without HTTP_ (PEP 3333, from CGI).
_BARE = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}


def is_token(name: str) -> bool:
    """Whether `name` can be a header's name (RFC 9110 §5.6.2)."""
    return _TOKEN(name) is not None


def is_value(value: str) -> bool:
    """Whether `value` can be a header's value: no CR, LF, NUL or other control, all Latin-1."""
    return _BAD_VALUE(value) is None


@lru_cache(maxsize=1024)
def environ_key(name: str) -> str:
    """Return the environ key of header `name`; `-` and `_` fold into one."""
    folded = name.lower().replace("_", "-")
    return _BARE.get(folded) or "HTTP_" + folded.upper().replace("-", "_")


def misnamed(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the environ keys that a lenient reader could take for one of `keys`.

    Some servers hand on what is no header's name, such as `X-Api-Key : ...`
    (RFC 9112 §5.1 asks them to refuse it).
    """
    return tuple(odd for key in keys for odd in (f"{key} ", f"{key}\t"))


@lru_cache(maxsize=1024)
def header_of(key: str) -> str:
    """Return the header's name for an environ key that begins with `HTTP_`."""
    return key[5:].replace("_", "-").title()


def header(headers: Sequence[tuple[str, str]], name: str) -> str:
    """Return the first value of header `name` (lower case), empty where there is none."""
    for field, value in headers:  # asked several times for each answer
        if field.lower() == name:
            return value
    return ""


def without(headers: Sequence[tuple[str, str]], name: str) -> list[tuple[str, str]]:
    """Return headers without those called `name` (lower case)."""
    return [pair for pair in headers if pair[0].lower() != name]


def is_event_stream(headers: Sequence[tuple[str, str]]) -> bool:
    """Whether the body is an event stream (https://html.spec.whatwg.org/#parsing-an-event-stream)."""
    return header(headers, "content-type").partition(";")[0].strip().lower() == "text/event-stream"
