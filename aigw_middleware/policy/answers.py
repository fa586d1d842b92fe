"""Answers of a document's own: a refusal without a body, a custom one, a redirect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from .._headers import is_token, is_value
from ..body import discard_unread
from ..denial import status_line
from ..environ import request_id

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class Own(NamedTuple):
    """An answer.

    Attributes:
        status: its status.
        headers: `(name, value)` pairs, without those of the framing.
        body: its body.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""

    def complete(self, environ: WSGIEnvironment) -> list[tuple[str, str]]:
        """Return all of its headers."""
        named = {name.lower() for name, _ in self.headers}
        headers = [*self.headers]
        if "x-request-id" not in named:
            headers.append(("X-Request-Id", request_id(environ)))
        if self.status not in (204, 304) and self.status >= 200:
            headers.append(("Content-Length", str(len(self.body))))
            if "content-type" not in named:
                headers.append(("Content-Type", inferred_type(self.body)))
        return headers

    def respond(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        """Send it."""
        discard_unread(environ)
        start_response(status_line(self.status), self.complete(environ))
        return self.sent(environ)

    def sent(self, environ: WSGIEnvironment) -> list[bytes]:
        """Return the body as it is sent: none where the status or the method has none."""
        no_body = self.status in (204, 304) or environ.get("REQUEST_METHOD") == "HEAD"
        return [] if no_body or not self.body else [self.body]


def inferred_type(body: bytes) -> str:
    """Return the media type of a body that was given none."""
    text = body.lstrip()
    if text[:1] in (b"{", b"["):
        try:
            json.loads(text)
            return "application/json"
        except ValueError:
            return "text/plain; charset=utf-8"
    return "text/html; charset=utf-8" if text[:1] == b"<" else "text/plain; charset=utf-8"


def sane_headers(headers: Mapping[str, str]) -> list[tuple[str, str]] | None:
    """Return headers that can be sent; None where one cannot."""
    pairs = [*headers.items()]
    if all(is_token(name) and is_value(value) for name, value in pairs):
        return pairs
    return None
