"""`either`: one of several gates lets a request pass."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aigw_middleware import (
    IPAllowlist,
    JWTAuth,
    KeyAuth,
    ModelAccess,
    Provider,
    StaticKeys,
    UpstreamForwarder,
    either,
    open_store,
    stack,
)
from aigw_middleware.environ import CLAIMS, DECISIONS, KEY

from .support import CHAT, Inner, answering, call, raw_provider

TOKEN = "gateway-key-0123456789"
PRIVATE = ec.generate_private_key(ec.SECP256R1())
PUBLIC = PRIVATE.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def token(**claims: Any) -> str:
    return jwt.encode({"iss": "i", "aud": "a", "exp": time.time() + 60, **claims}, PRIVATE, "ES256")


def layers(keys: Any = None) -> Any:
    return either(
        partial(KeyAuth, keys=keys or StaticKeys({"ci": TOKEN})),
        partial(JWTAuth, issuer="i", audience="a", algorithms=["ES256"], keys=PUBLIC.decode()),
    )


def test_a_key_or_a_token_lets_a_request_pass() -> None:
    """And neither, or a bad one of either kind, does not; no credential is left."""
    inner = Inner()
    app = stack(inner, layers())
    by_key = call(app, "/x", HTTP_X_API_KEY=TOKEN, HTTP_AUTHORIZATION="Bearer nonsense")
    assert by_key.status == 401  # two different credentials in a key's headers
    by_key = call(app, "/x", HTTP_X_API_KEY=TOKEN)
    assert (by_key.status, by_key.environ[KEY].id, CLAIMS in by_key.environ) == (200, "ci", False)
    by_token = call(app, "/x", HTTP_AUTHORIZATION=f"Bearer {token(sub='ann')}")
    assert (by_token.status, by_token.environ[CLAIMS]["sub"]) == (200, "ann")
    assert KEY not in by_token.environ
    assert [d.gate for d in by_token.environ[DECISIONS]] == ["JWTAuth"]
    assert call(app, "/x").code == "invalid_token"
    assert call(app, "/x", HTTP_X_API_KEY="bad").code == "invalid_token"
    assert call(app, "/x", HTTP_AUTHORIZATION=f"Bearer {token(iss='j')}").code == "invalid_token"
    assert all(
        name not in environ
        for environ in inner.environs
        for name in ("HTTP_AUTHORIZATION", "HTTP_X_API_KEY")
    )


def test_a_keys_own_rules_are_no_reason_to_ask_for_a_token(sqlite_url: str) -> None:
    """Over its limit it is 429, from another network 403; spent is once a request."""
    store = open_store(sqlite_url)
    _, limited = store.keys.create(limits=["2/min"])
    _, elsewhere = store.keys.create(networks=["10.0.0.0/8"])
    app = stack(Inner(), layers(store.keys))
    statuses = [call(app, "/x", HTTP_X_API_KEY=limited).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert call(app, "/x", HTTP_X_API_KEY=elsewhere).code == "ip_not_allowed"


def test_rules_over_models_are_still_handed_inwards() -> None:
    """The forwarder behind it judges the final model."""
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
    with raw_provider(answering(ok, keep=True)) as provider:
        forwarder = UpstreamForwarder(
            upstream=Provider("a", base_url=provider.url), aliases={"fast": "a/m"}
        )
        app = stack(forwarder, partial(ModelAccess, allow=["a/m"]), layers())
        for head in ({"HTTP_X_API_KEY": TOKEN}, {"HTTP_AUTHORIZATION": f"Bearer {token()}"}):
            assert call(app, CHAT, body=b'{"model": "fast"}', **head).status == 200
            assert call(app, CHAT, body=b'{"model": "other"}', **head).status == 403


def test_judging_spends_nothing(sqlite_url: str) -> None:
    """It is a gate itself: what it would say, without saying it."""
    store = open_store(sqlite_url)
    _, secret = store.keys.create(limits=["1/min"])
    gate: Any = layers(store.keys)(Inner())
    for _ in range(3):
        assert gate.judge({"HTTP_X_API_KEY": secret, "REQUEST_METHOD": "GET"}) is None
    assert gate.judge({"REQUEST_METHOD": "GET"}).code == "invalid_token"


def test_what_is_no_gate_is_named() -> None:
    """One alone is no choice, and an app is no gate."""
    with pytest.raises(ValueError, match="two gates or more"):
        either(partial(IPAllowlist, allow=["10.0.0.0/8"]))
    with pytest.raises(ValueError, match="is no gate"):
        either(lambda app: app, lambda app: app)(Inner())
