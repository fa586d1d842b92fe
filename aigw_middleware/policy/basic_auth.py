"""Ask for a user and a password, as `basic-auth` does (RFC 7617)."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable
from hashlib import sha256
from typing import TYPE_CHECKING

from ..denial import Denial
from ..environ import STAND_INS, stand_in
from ..gate import Gate

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment


class BasicAuth(Gate):
    """Refuse requests that show none of the credentials, with 401 `invalid_api_key`.

    Args:
        app: the wrapped WSGI application.
        credentials: `user:password` each.
        realm: what the client is told that they are for.
        enforce: False reports in `aigw.decisions` and refuses nothing.
    """

    authenticates = True

    def __init__(
        self,
        app: WSGIApplication,
        credentials: Iterable[str],
        *,
        realm: str = "ngrok",
        enforce: bool = True,
    ) -> None:
        super().__init__(app, enforce=enforce)
        self._hashes = tuple(sha256(pair.encode()).digest() for pair in credentials)
        quoted = realm.replace("\\", "\\\\").replace('"', '\\"')
        header = ("WWW-Authenticate", f'Basic realm="{quoted}", charset="UTF-8"')
        self._refusal = Denial(
            "invalid_api_key", "A user and a password are required.", headers=(header,)
        )

    def judge(self, environ: WSGIEnvironment) -> Denial | None:
        """Return the refusal for what the request shows."""
        scheme, _, encoded = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "basic":
            return self._refusal
        try:
            shown = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return self._refusal
        hashed = sha256(shown).digest()
        # All are compared, so that the time tells nothing of which one it is.
        matches = [hmac.compare_digest(hashed, known) for known in self._hashes]
        return None if any(matches) else self._refusal

    def apply(self, environ: WSGIEnvironment) -> Denial | None:
        """Judge it, and take the credential out."""
        denial = self.judge(environ)
        self.take_out(environ)
        return denial

    def take_out(self, environ: WSGIEnvironment) -> None:
        """Take the credential out."""
        presented = environ.pop("HTTP_AUTHORIZATION", None)
        if presented:
            environ.setdefault(STAND_INS, {})["HTTP_AUTHORIZATION"] = stand_in(presented)
