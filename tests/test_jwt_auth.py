"""`JWTAuth` (JWT-1 to JWT-6)."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from aigw_middleware import JWTAuth, RateLimiter, stack
from aigw_middleware.keys import jwks
from aigw_middleware.keys.jwks import RemoteKeySet
from aigw_middleware.testing import serving

from .support import CHAT, Inner, RawRequest, call, raw_provider

ISSUER = "https://id.example.com"
RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
STRANGER = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
EC_384 = ec.generate_private_key(ec.SECP384R1())
ED = ed25519.Ed25519PrivateKey.generate()


def pem(key: Any) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    text: str = key.public_key().public_bytes(encoding, form).decode()
    return text


def jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    kind = {rsa.RSAPrivateKey: "RSA", ec.EllipticCurvePrivateKey: "EC"}
    name = next((n for k, n in kind.items() if isinstance(key, k)), "OKP")
    algorithm = {
        "RSA": jwt.algorithms.RSAAlgorithm, "EC": jwt.algorithms.ECAlgorithm,
        "OKP": jwt.algorithms.OKPAlgorithm,
    }[name]  # fmt: skip
    made: dict[str, Any] = json.loads(algorithm.to_jwk(key.public_key()))
    return {**made, **({"kid": kid} if kid else {}), **more}


def token(key: Any = RSA, algorithm: str = "RS256", kid: str | None = None, **claims: Any) -> str:
    now = int(time.time())
    given = {"iss": ISSUER, "aud": "gateway", "exp": now + 60, "sub": "u1", **claims}
    kept = {name: value for name, value in given.items() if value is not None}
    headers = {"kid": kid} if kid else None
    return jwt.encode(kept, key, algorithm=algorithm, headers=headers)


def guard(inner: Any = None, **options: Any) -> JWTAuth:
    given: dict[str, Any] = {
        "issuer": ISSUER, "audience": "gateway", "algorithms": ["RS256"], "keys": pem(RSA),
    }  # fmt: skip
    return JWTAuth(inner or Inner(), **{**given, **options})


def ask(app: Any, presented: str, path: str = CHAT) -> Any:
    return call(app, path, HTTP_AUTHORIZATION=f"Bearer {presented}")


def test_a_good_token_passes_and_leaves_its_claims() -> None:
    """The claims are in the environ, the token is not."""
    inner = Inner()
    presented = token()
    answer = ask(guard(inner), presented)
    assert answer.status == 200
    assert answer.environ["aigw.claims"]["sub"] == "u1"
    assert presented not in str(inner.environs[0])


GOOD = [
    (EC, "ES256", pem(EC)),
    (EC, "ES256", [pem(EC_384), pem(EC)]),
    (EC_384, "ES384", {"keys": [jwk(EC, None), jwk(EC_384, None)]}),
    (ED, "EdDSA", {"keys": [jwk(ED, "k")]}),
    (RSA, "PS256", {"keys": [jwk(OTHER, "a"), jwk(RSA, "b")]}),
    ("s" * 32, "HS256", {"keys": [{"kty": "oct", "k": base64.urlsafe_b64encode(b"s" * 32).decode()}]}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "algorithm", "keys"), GOOD)
def test_every_kind_of_key(key: Any, algorithm: str, keys: Any) -> None:
    """PEM and key sets; without a `kid` each key of the set may be the one."""
    app = guard(keys=keys, algorithms=["RS256", algorithm])
    assert ask(app, token(key, algorithm)).status == 200
    assert ask(app, token(STRANGER)).status == 401


def unsigned(algorithm: str) -> str:
    def part(document: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()

    claims = {"iss": ISSUER, "aud": "gateway", "exp": int(time.time()) + 60}
    return f"{part({'alg': algorithm})}.{part(claims)}."


def confused(secret: bytes) -> str:
    """Sign with HMAC by hand: PyJWT itself refuses a public key as a secret."""
    import hmac

    head, claims, _ = token("x" * 32, "HS256").split(".")
    signature = hmac.digest(secret, f"{head}.{claims}".encode(), "sha256")
    return f"{head}.{claims}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


NOW = int(time.time())
DER = RSA.public_key().public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)
BAD = [
    pytest.param(lambda: unsigned("none"), id="JWT-1: none"),
    pytest.param(lambda: unsigned("nOnE"), id="JWT-1: nOnE"),
    pytest.param(lambda: confused(pem(RSA).encode()), id="JWT-2: the PEM as a secret"),
    pytest.param(lambda: confused(DER), id="JWT-2: the DER as a secret"),
    pytest.param(lambda: token(iss=ISSUER[:-1]), id="JWT-3: a prefix"),
    pytest.param(lambda: token(iss=ISSUER.upper()), id="JWT-3: another case"),
    pytest.param(lambda: token(iss=ISSUER + "/"), id="JWT-3: longer"),
    pytest.param(lambda: token(iss=None), id="no issuer"),
    pytest.param(lambda: token(aud="other"), id="another audience"),
    pytest.param(lambda: token(aud=None), id="no audience"),
    pytest.param(lambda: token(exp=NOW - 120), id="JWT-4: expired"),
    pytest.param(lambda: token(exp=None), id="JWT-4: no exp"),
    pytest.param(lambda: token(nbf=NOW + 3600), id="JWT-4: not yet"),
    pytest.param(lambda: token(exp="soon"), id="a text for exp"),
    pytest.param(lambda: token(OTHER), id="another key"),
    pytest.param(lambda: token()[:-4] + "AAAA", id="a changed signature"),
    pytest.param(lambda: token(algorithm="RS512"), id="an algorithm that is not allowed"),
    pytest.param(lambda: token() + "x" * 20_000, id="too long"),
    pytest.param(lambda: "a.b.c", id="no token"),
    pytest.param(lambda: "", id="nothing"),
    pytest.param(lambda: jwt.encode({"iss": ISSUER, "aud": "gateway", "exp": NOW + 60}, RSA, "RS256", {"crit": ["x"], "x": 1}), id="critical"),
]  # fmt: skip


@pytest.mark.parametrize("algorithms", [["RS256"], ["RS256", "HS256"]], ids=str)
@pytest.mark.parametrize("make", BAD)
def test_a_bad_token(make: Any, algorithms: list[str]) -> None:
    """One answer for every reason, and nothing reaches the app."""
    inner = Inner()
    answer = ask(guard(inner, algorithms=algorithms), make())
    assert (answer.status, answer.code, inner.calls) == (401, "invalid_token", 0)
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert "token" in answer.json["error"]["message"]


def test_clocks_may_differ_by_the_leeway() -> None:
    """JWT-4: within it an expired token passes, a second beyond it does not."""
    now = int(time.time())
    app = guard(leeway=60)
    assert ask(app, token(exp=now - 50)).status == 200
    assert ask(app, token(exp=now - 62)).status == 401


def test_several_issuers_audiences_and_another_header() -> None:
    """One of each is enough; another header carries the token bare."""
    app = guard(issuer=["https://x", ISSUER], audience=["a", "gateway"], header="X-Token")
    assert call(app, HTTP_X_TOKEN=token(aud=["z", "gateway"])).status == 200
    assert ask(app, token()).status == 401


def test_a_limit_by_claim() -> None:
    """What the token says may be what is counted by."""
    app = stack(
        Inner(),
        partial(JWTAuth, issuer=ISSUER, audience="gateway", algorithms="RS256", keys=pem(RSA)),
        partial(RateLimiter, limits="1/min", by="claim:sub"),
    )
    subjects = ("a", "a", "b")
    assert [ask(app, token(sub=subject)).status for subject in subjects] == [200, 429, 200]


def test_a_report_refuses_nothing() -> None:
    """With `enforce=False` a bad token is reported, and is gone all the same."""
    inner = Inner()
    answer = ask(guard(inner, enforce=False), "bad")
    assert answer.status == 200
    assert answer.environ["aigw.decisions"][0].code == "invalid_token"
    assert "HTTP_AUTHORIZATION" not in inner.environs[0]


# --- key sets at an address


class Issuer:
    """An issuer's key set over a real socket."""

    def __init__(self) -> None:
        self.keys: Any = [jwk(RSA, "one")]
        self.fetches = 0
        self.status = "200 OK"
        self.body: bytes | None = None
        self.headers: list[tuple[str, str]] = []

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        self.fetches += 1
        body = self.body if self.body is not None else json.dumps({"keys": self.keys}).encode()
        start_response(self.status, [("Content-Length", str(len(body))), *self.headers])
        return [body]


@pytest.fixture
def issuer() -> Any:
    found = Issuer()
    with serving(found) as url:
        found.url = url  # type: ignore[attr-defined]
        yield found


def remote(issuer: Any) -> tuple[JWTAuth, list[float]]:
    """Return a guard that fetches, by a clock that a test moves."""
    now = [1000.0]
    app = guard(keys=None, jwks_url=f"{issuer.url}/jwks.json")
    app._keys = RemoteKeySet(f"{issuer.url}/jwks.json", clock=lambda: now[0])
    return app, now


def test_a_set_is_fetched_once_and_a_new_key_at_once(issuer: Any) -> None:
    """Rotation: a key that the set does not have is looked for, the first time without a wait."""
    app, now = remote(issuer)
    for _ in range(5):
        assert ask(app, token(kid="one")).status == 200
    assert issuer.fetches == 1
    issuer.keys = [jwk(OTHER, "two")]
    now[0] += 31
    assert ask(app, token(OTHER, kid="two")).status == 200
    assert ask(app, token(kid="one")).status == 401
    assert issuer.fetches == 2


def test_unknown_keys_cost_one_fetch_in_thirty_seconds(issuer: Any) -> None:
    """JWT-5: however many ask; tokens that are good pass meanwhile."""
    app, now = remote(issuer)
    assert ask(app, token(kid="one")).status == 200
    now[0] += 31
    for number in range(200):
        assert ask(app, token(OTHER, kid=str(number))).status == 401
        now[0] += 0.01
    assert ask(app, token(kid="one")).status == 200
    assert issuer.fetches == 2


def test_an_outage_is_survived_for_a_day(issuer: Any) -> None:
    """JWT-6: a good copy serves on; without one, and after a day, it is 503."""
    app, now = remote(issuer)
    issuer.status = "500 Internal Server Error"
    answer = ask(app, token(kid="one"))
    assert (answer.status, answer.code) == (503, "store_unavailable")
    issuer.status = "200 OK"
    assert ask(app, token(kid="one")).status == 503  # asked again only after a while
    now[0] += 31
    assert ask(app, token(kid="one")).status == 200
    issuer.status = "500 Internal Server Error"
    now[0] += 23 * 3600
    assert ask(app, token(kid="one")).status == 200
    now[0] += 2 * 3600
    assert ask(app, token(kid="one")).status == 503


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [("302 Found", b"", [("Location", "/other")]), ("200 OK", b"{" * 2_000_000, []),
     ("200 OK", b"[]", []), ("200 OK", b'{"keys": 5}', []), ("200 OK", b'{"keys": [{"kty": "X"}, 5]}', []),
     ("200 OK", b"\xff", [])],
)  # fmt: skip
def test_what_is_no_set_is_none(issuer: Any, status: str, body: bytes, headers: Any) -> None:
    """No redirect is followed, no more than 1 MB is read, nothing of it crashes."""
    app, _ = remote(issuer)
    issuer.status, issuer.body, issuer.headers = status, body, headers
    assert ask(app, token(kid="one")).code == "store_unavailable"
    assert issuer.fetches == 1


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"])
def test_a_set_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    """JWT-6: a fetch is bounded in time, though a byte comes again and again, head or body."""
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 0.2)
    given_up = threading.Event()

    def drips(connection: socket.socket, request: RawRequest) -> None:
        with suppress(OSError):  # it is given up
            connection.sendall(head)
            while not given_up.wait(0.02):
                connection.sendall(b"H")

    with raw_provider(drips) as issuer:
        app = guard(keys=None, jwks_url=f"{issuer.url}/jwks.json")
        assert ask(app, token()).status == 503
        given_up.set()


@pytest.mark.parametrize(
    ("options", "named"),
    [({"issuer": ""}, "issuer"), ({"audience": []}, "audience"), ({"algorithms": []}, "algorithms"),
     ({"algorithms": ["none"]}, "algorithms"), ({"algorithms": "rs256"}, "algorithms"),
     ({"keys": None}, "keys"), ({"jwks_url": "https://x"}, "keys"), ({"keys": "no pem"}, "keys"),
     ({"keys": {"keys": []}}, "keys"), ({"keys": None, "jwks_url": "http://example.com/j"}, "jwks_url"),
     ({"keys": None, "jwks_url": "https://u:p@x/j"}, "jwks_url"), ({"leeway": -1}, "leeway"),
     ({"header": "a b"}, "header")],
)  # fmt: skip
def test_wrong_options_are_named(options: Any, named: str) -> None:
    """A wrong option is a ValueError when it is built."""
    with pytest.raises(ValueError, match=f"^{named}: "):
        guard(**options)
