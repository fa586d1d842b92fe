"""Addresses of upstreams, and the path that is sent to them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_plus, unquote_to_bytes, urlsplit

from .._paths import LONGEST

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_PORTS = {"http": 80, "https": 443}
# Visible ASCII only: what is sent stands in one line of the request.
_VISIBLE = re.compile(r"[!-~]+").fullmatch
_HOST = re.compile(r"[0-9A-Za-z._-]+|[0-9A-Fa-f:.]+").fullmatch
_NAMED = re.compile(r"[A-Za-z_-]").search
# What `pchar` of RFC 3986 §3.3 allows beside letters and digits, and the slash.
_PATH_SAFE = "/!$&'()*+,;=:@-._~"


class BaseURL:
    """The base URL of an upstream, taken apart once.

    Args:
        url: `http://` or `https://`, a host, perhaps a port and a path.
        option: the option that it comes from, for the error.

    Attributes:
        scheme: `http` or `https`.
        host: the host's name or address, without brackets.
        port: the port.
        authority: the value of the `Host` header.
        path: the path without a slash at its end; empty for none.

    Raises:
        ValueError: it is no such URL, or holds a user, a query or a fragment. The URL is not
            repeated in the message where it may hold a secret.
    """

    __slots__ = ("authority", "host", "path", "port", "scheme")

    def __init__(self, url: object, *, option: str) -> None:
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError(f"{option}: not an http or https URL with a host")
        if "@" in parts.netloc:
            raise ValueError(f"{option}: a URL must not hold a user or password")
        if "?" in str(url) or "#" in str(url):
            raise ValueError(f"{option}: {parts.hostname}: a query or fragment has no place here")
        try:
            port = parts.port
            host = (
                parts.hostname.encode("idna").decode()
                if not _HOST(parts.hostname)
                else parts.hostname
            )
            host.encode("idna")  # as the resolver does: no empty or overlong label
            if port == 0:
                raise ValueError
        except (ValueError, UnicodeError):
            raise ValueError(f"{option}: {parts.hostname!r}: bad host or port") from None
        if not _HOST(host) or (parts.path and not _VISIBLE(parts.path)):
            raise ValueError(f"{option}: {url!r} has characters that no URL holds")
        self.scheme = parts.scheme
        self.host = host
        self.port = port if port is not None else _PORTS[parts.scheme]
        bracketed = f"[{host}]" if ":" in host else host
        default = self.port == _PORTS[parts.scheme]
        self.authority = bracketed if default else f"{bracketed}:{self.port}"
        self.path = parts.path.rstrip("/")

    def __repr__(self) -> str:
        return f"<{self.scheme}://{self.authority}{self.path}>"

    @property
    def is_literal(self) -> bool:
        """Whether the host is an address, which needs no lookup."""
        return self.host == "localhost" or ":" in self.host or not _NAMED(self.host)

    def join(self, path: str) -> str:
        """Return `path`, which begins with `/`, behind the base path; a `/v1` is not doubled."""
        if self.path.endswith("/v1") and (path == "/v1" or path.startswith("/v1/")):
            path = path[3:]
        return self.path + path or "/"


def raw_path(environ: WSGIEnvironment) -> str:
    """Return SCRIPT_NAME + PATH_INFO as it stood in the request line, where that is known.

    The server's raw target is taken only when it means the same path: what was judged is what
    is sent. Otherwise (no raw target, or a layer has changed the path) it is quoted anew.
    """
    judged = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    path = _without_authority(raw).partition("?")[0]
    is_short = len(path) + len(judged) <= LONGEST
    return (_spelled if is_short else _spelled.__wrapped__)(path, judged)


@lru_cache(maxsize=1024)
def _spelled(path: str, judged: str) -> str:
    if path and _VISIBLE(path) and unquote_to_bytes(path) == judged.encode("latin-1"):
        return path
    return quote_path(judged)


def quote_path(path: str) -> str:
    """Quote a path whose bytes are given as Latin-1 (PEP 3333)."""
    return quote(path.encode("latin-1"), safe=_PATH_SAFE) or "/"


def _without_authority(target: str) -> str:
    """Cut scheme and authority off a target in absolute form (RFC 9112 §3.2.2)."""
    if target.startswith("/"):
        return target
    match = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", target)
    return target[match.end() :] or "/" if match else target


def query(environ: WSGIEnvironment) -> str:
    """Return the query to send, with its `?`; empty for none.

    `key` is left out: Gemini takes a key there, so it may be a client's, and a URL is no place
    for a secret.
    """
    text = environ.get("QUERY_STRING", "")
    if not text:
        return ""
    if "k" in text or "%" in text:
        parts = text.split("&")
        text = "&".join(p for p in parts if unquote_plus(p.partition("=")[0]) != "key")
    if text and not _VISIBLE(text):
        text = quote(text.encode("latin-1"), safe=_PATH_SAFE + "%?")
    return f"?{text}" if text else ""


def with_query(query: str, added: str) -> str:
    """Return a query (with its `?`, or empty) with others' parameters instead of its own."""
    names = {unquote_plus(part.partition("=")[0]) for part in added.split("&")}
    kept = [
        part
        for part in query[1:].split("&")
        if part and unquote_plus(part.partition("=")[0]) not in names
    ]
    return "?" + "&".join([*kept, added])
