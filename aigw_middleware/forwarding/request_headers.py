"""Which of the client's headers go on to an upstream."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from .._headers import HOP_BY_HOP, header_of, is_token, is_value
from ..environ import UPSTREAM_HEADERS
from ..errors import BodyInvalid

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


def _keys(*names: str) -> frozenset[str]:
    return frozenset("HTTP_" + name.upper().replace("-", "_") for name in names)


CREDENTIALS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
"""Headers that can carry a client's key; they are never sent on."""

ACCOUNT = (
    "openai-organization",
    "openai-project",
    "x-goog-user-project",
    "anthropic-organization-id",
    "anthropic-workspace-id",
    "anthropic-user-profile-id",
)
"""Headers that choose an account at a provider: with our key that is not the client's choice."""

OVERRIDE = ("x-http-method-override", "x-http-method", "x-method-override")
"""Headers that ask for another method than the one that was judged; Google obeys them."""

CLIENT = (
    "cookie",
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "via",
)
"""Headers about the client and its way here, which are no business of a provider's."""

# Content-Length and Content-Type have keys of their own; some servers keep both. `Expect` was
# answered by the server, `Host` is the upstream's, `Proxy` is no header (CVE-2016-5385).
_TO_NOBODY = _keys(
    *HOP_BY_HOP, *CREDENTIALS, "host", "expect", "content-length", "content-type", "proxy"
)
_LONGEST = 128
"""Letters of a header's key that is kept in mind at most."""
_NOT_TO_PROVIDERS = _TO_NOBODY | _keys(*ACCOUNT, *OVERRIDE, *CLIENT)


def request_headers(environ: WSGIEnvironment, *, provider: bool) -> list[tuple[str, str]]:
    """Return the client's headers for an upstream, without credential, host and framing.

    Args:
        environ: the request.
        provider: whether it goes to a `Provider`, which is told nothing of the client.

    Raises:
        BodyInvalid: a name or a value cannot stand in a header.
    """
    nominated = environ.get("HTTP_CONNECTION")
    dropped: frozenset[str] = frozenset()
    if nominated and nominated.lower() not in ("keep-alive", "close"):
        # RFC 9110 §7.6.1. Our own credential is added afterwards and cannot be named away.
        dropped = _keys(*(option.strip(" \t") for option in nominated.split(",")))
    headers = [
        (name, value)
        for key, value in environ.items()
        if key.startswith("HTTP_")
        and (name := _sent_as(key, provider)) is not None
        and key not in dropped
    ]
    extra = environ.get(UPSTREAM_HEADERS) if provider else None
    if extra:
        names = {name.lower() for name, _ in extra}
        headers = [pair for pair in headers if pair[0].lower() not in names] + extra
    # Some servers hand on `X-Api-Key : ...`, which a reader behind us could take for the header.
    if not all(name for name, _ in headers) or (extra and not all(is_token(n) for n, _ in extra)):
        raise BodyInvalid("A header of the request has a name that no header has.")
    content_type = environ.get("CONTENT_TYPE")
    if content_type:
        headers.append(("Content-Type", content_type))
    if not is_value("".join([value for _, value in headers])):
        raise BodyInvalid("A header of the request has a character that no header holds.")
    return headers


def _sent_as(key: str, provider: bool) -> str | None:
    """Return the name by which a header goes on; None where it does not, empty for no name."""
    return (_name_of if len(key) <= _LONGEST else _name_of.__wrapped__)(key, provider)


@lru_cache(maxsize=1024)
def _name_of(key: str, provider: bool) -> str | None:
    if key in (_NOT_TO_PROVIDERS if provider else _TO_NOBODY):
        return None
    if provider and key.startswith("HTTP_X_FORWARDED"):
        return None
    name = header_of.__wrapped__(key)  # kept here already
    return name if is_token(name) else ""
