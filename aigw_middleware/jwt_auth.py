"""Ask for a JSON Web Token that an identity provider has signed (RFC 7519, RFC 8725).

Use it where people or services already have tokens of an issuer of yours. It needs the extra `jwt`.
It does not log anybody in, and revokes nothing before a token expires: for that a key is better.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ._addresses import header_name
from ._headers import misnamed
from ._options import several
from ._saying import OnceAMinute
from .denial import Denial, store_denial
from .environ import CLAIMS, STAND_INS, stand_in
from .errors import StoreUnavailable
from .gate import Gate
from .keys.jwks import KeySet, RemoteKeySet, SeveralKeySets, StaticKeySet, verified_claims

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
    "HS256", "HS384", "HS512",
)  # fmt: skip
LONGEST = 16 * 1024

_BAD_TOKEN = Denial(
    "invalid_token",
    "A valid access token is required.",
    headers=(("WWW-Authenticate", 'Bearer realm="ai-gateway", error="invalid_token"'),),
)


class JWTAuth(Gate):
    """Let requests pass that present a good token; 401 `invalid_token` for any other.

    ::

        app = JWTAuth(app, issuer="https://id.example.com", audience="gateway",
                      algorithms=["RS256"], jwks_url="https://id.example.com/jwks.json")

    The token's claims are left in `environ["aigw.claims"]`; `exp`, `iss` and `aud` are required.
    Whether let through or refused, the header is gone from what the next layer sees. One answer for
    every reason.

    A key is used with the algorithms of its own kind alone, so that a public key never passes for
    a secret. A key set is fetched from `jwks_url` when it is first needed, over https (http on
    loopback only), without redirects, 1 MB and 5 s at most; anew after an hour, and for a key that
    it does not have: at once the first time, then once in 30 s however many ask. While it cannot be
    fetched, a copy stays good for 24 hours; without one requests are 503 `store_unavailable`.

    Args:
        app: the wrapped WSGI application.
        issuer: the issuer whose tokens are good, or several; compared exactly.
        audience: the audience that a token must name, or several of which it must name one; None
            for tokens of any audience, also those that were made for somebody else.
        algorithms: the algorithms that are allowed, such as `["RS256"]`; never `none`.
        jwks_url: where the issuer's key set is, or several that are looked into in their order.
        keys: instead of that a key set (a dict with `keys`), or public keys in PEM.
        leeway: seconds by which clocks may differ.
        header: the header that carries the token: `Authorization` as a bearer token, another one
            bare.
        prefix: what stands before the token instead, in any case (`"Token "`); empty for nothing.
        enforce: False reports in `aigw.decisions` and refuses nothing.

    Raises:
        ValueError: an option is wrong, or PyJWT is not installed.
    """

    authenticates = True

    def __init__(
        self,
        app: WSGIApplication,
        *,
        issuer: str | Iterable[str],
        audience: str | Iterable[str] | None,
        algorithms: str | Iterable[str],
        jwks_url: str | Iterable[str] | None = None,
        keys: Mapping[str, Any] | str | Iterable[str] | None = None,
        leeway: float = 60,
        header: str = "Authorization",
        prefix: str | None = None,
        enforce: bool = True,
    ) -> None:
        super().__init__(app, enforce=enforce)
        self._issuers = _texts("issuer", issuer)
        self._audiences = None if audience is None else _texts("audience", audience)
        self._algorithms = _texts("algorithms", algorithms)
        for algorithm in self._algorithms:
            if algorithm not in ALGORITHMS:
                raise ValueError(f"algorithms: {algorithm!r} is none of {', '.join(ALGORITHMS)}")
        if (
            isinstance(leeway, bool)
            or not isinstance(leeway, int | float)
            or not 0 <= leeway < 3600
        ):
            raise ValueError(f"leeway: {leeway!r} is no number of seconds below an hour")
        self._leeway = float(leeway)
        self._header = header_name("header", header)
        self._misnamed = misnamed((self._header,))
        if (jwks_url is None) == (keys is None):
            raise ValueError("keys: name either jwks_url or keys")
        self._keys: KeySet = StaticKeySet(keys) if keys is not None else _remote(jwks_url)
        if prefix is None:
            prefix = "Bearer " if self._header == "HTTP_AUTHORIZATION" else ""
        if not isinstance(prefix, str):
            raise ValueError(f"prefix: must be a text, not {type(prefix).__name__}")
        self._prefix = prefix.strip(" \t").lower()
        # A word is told from what follows it by a space; another prefix ends by itself.
        self._spaced = prefix != prefix.rstrip(" \t") or self._prefix.isalnum()
        self._said = OnceAMinute(logger)

    def judge(self, environ: WSGIEnvironment) -> Denial | None:
        """Return what is against the request, taking nothing out."""
        found = self._look_at(environ)
        return found if isinstance(found, Denial) else None

    def apply(self, environ: WSGIEnvironment) -> Denial | None:
        """Take the token out, and leave its claims."""
        found = self._look_at(environ)
        self.take_out(environ)
        if isinstance(found, Denial):
            return found
        environ[CLAIMS] = found
        return None

    def take_out(self, environ: WSGIEnvironment) -> None:
        """Take the token out of the request."""
        presented = environ.pop(self._header, None)
        if presented:
            environ.setdefault(STAND_INS, {})[self._header] = stand_in(presented)
        for name in self._misnamed:
            environ.pop(name, None)

    def _look_at(self, environ: WSGIEnvironment) -> dict[str, Any] | Denial:
        token = self._token(environ.get(self._header, ""))
        if not token or len(token) > LONGEST:
            return _BAD_TOKEN
        try:
            claims = verified_claims(
                token,
                self._keys,
                algorithms=self._algorithms,
                issuers=self._issuers,
                audiences=self._audiences,
                leeway=self._leeway,
            )
        except StoreUnavailable as error:
            self._said.error("tokens cannot be verified, requests are refused: %s", error)
            return store_denial(error)
        return _BAD_TOKEN if claims is None else claims

    def _token(self, value: str) -> str:
        value = value.strip(" \t")
        prefix = self._prefix
        if not prefix:
            return value
        rest = value[len(prefix) :]
        if value[: len(prefix)].lower() != prefix or (self._spaced and rest[:1] not in (" ", "\t")):
            return ""
        return rest.strip(" \t")


def _remote(urls: object) -> KeySet:
    found = _texts("jwks_url", urls)
    sets = [RemoteKeySet(url) for url in found]
    return sets[0] if len(sets) == 1 else SeveralKeySets(sets)


def _texts(option: str, values: object) -> tuple[str, ...]:
    found = several(option, values)
    if not found or not all(isinstance(value, str) and value for value in found):
        raise ValueError(f"{option}: must be a text, or several")
    return tuple(found)
