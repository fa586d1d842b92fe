"""Each action with its fields, over HTTP, as the reference says."""

from __future__ import annotations

import base64
import gc
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from aigw_middleware import KeyAuth, StaticKeys, TrafficPolicy, open_counters, stack
from aigw_middleware.environ import DECISIONS, KEY
from aigw_middleware.policy import steps
from aigw_middleware.policy.steps import Place, say

from ..support import CHAT, Inner, call, make_environ, send
from .support import action, document, policy, rule

TOKEN = "gateway-key-0123456789"
SEED = """
on_http_request:
  - actions:
      - type: rate-limit
        config:
          name: ai-gateway-limit
          algorithm: sliding_window
          capacity: 100
          rate: 100/min
          bucket_key:
            - req.headers['authorization']
"""


# --- rate-limit


def test_the_seeds_own_document_limits_word_for_word() -> None:
    """100 a minute for each credential, and the counters never hold one."""
    engine = open_counters("memory:")
    app = TrafficPolicy.parse(SEED, counters=engine)(Inner())
    statuses = [call(app, "/x", HTTP_AUTHORIZATION="Bearer sk-one").status for _ in range(101)]
    assert statuses == [200] * 100 + [429]
    assert call(app, "/x", HTTP_AUTHORIZATION="Bearer sk-two").status == 200
    assert not any("sk-" in count.name for count in engine.counts())


def test_the_seeds_document_works_behind_a_key_too() -> None:
    """What the key's layer took out reads as a stand-in, so each key has a bucket of its own."""
    keys = StaticKeys({"one": TOKEN, "two": TOKEN[::-1]})
    engine = open_counters("memory:")
    text = SEED.replace("capacity: 100", "capacity: 2").replace("100/min", "60s")
    layer = TrafficPolicy.parse(text, counters=engine)
    app = stack(Inner(), lambda app: KeyAuth(app, keys), layer)
    for token in (TOKEN, TOKEN[::-1]):
        head = f"Bearer {token}"
        assert [call(app, "/x", HTTP_AUTHORIZATION=head).status for _ in range(3)] == [
            200,
            200,
            429,
        ]
    assert not any(TOKEN in count.name for count in engine.counts())


def limit(**config: Any) -> dict[str, Any]:
    return action(
        "rate-limit",
        **{
            "name": "n",
            "algorithm": "sliding_window",
            "capacity": 1,
            "rate": "60s",
            "bucket_key": ["conn.client_ip"],
            **config,
        },
    )


def test_a_limit_is_refused_with_retry_after_and_leaves_its_result() -> None:
    """429; `actions.ngrok.rate_limit.limited` is there for what comes after it."""
    app = policy(
        rule(limit(enforce=False)),
        rule(action("deny", status_code=418), when=["actions.ngrok.rate_limit.limited"]),
    )
    assert [call(app, "/x").status for _ in range(2)] == [200, 418]
    enforced = policy(rule(limit()))
    call(enforced, "/x")
    refused = call(enforced, "/x")
    assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    assert 0 < int(refused.headers["Retry-After"]) <= 61


def test_buckets_are_combinations_and_failing_ones_are_shared() -> None:
    """Up to ten expressions together; what fails is one bucket."""
    app = policy(rule(limit(bucket_key=["req.headers['x-a']", "req.headers['x-b']"])))
    pairs = [("1", "2"), ("1", "3"), ("2", "1"), ("1", "2")]
    statuses = [call(app, "/x", HTTP_X_A=a, HTTP_X_B=b).status for a, b in pairs]
    assert statuses == [200, 200, 200, 429]
    assert [call(app, "/x").status, call(app, "/x", HTTP_X_A="1").status] == [200, 429]


def test_two_limits_of_one_name_share_their_counts() -> None:
    """Also over documents on one engine: a reloaded one goes on counting."""
    engine = open_counters("memory:")
    first = policy(rule(limit()), counters=engine)
    second = policy(rule(limit()), counters=engine)
    assert [call(app, "/x").status for app in (first, second)] == [200, 429]


# --- restrict-ips


@pytest.mark.parametrize(
    ("allow", "deny", "ip", "status", "matched"),
    [
        (["192.0.2.0/24"], [], "192.0.2.7", 200, "192.0.2.0/24"),
        (["192.0.2.0/24"], ["192.0.2.7/32"], "192.0.2.7", 403, ""),
        (["10.0.0.0/8"], [], "192.0.2.7", 403, ""),
        (["2001:db8::/32"], [], "2001:db8::1", 200, "2001:db8::/32"),
        (["0.0.0.0/0", "::/0"], ["192.0.2.0/24"], "198.51.100.1", 200, "0.0.0.0/0"),
    ],
)
def test_addresses(allow: Any, deny: Any, ip: str, status: int, matched: str) -> None:
    """At least one allow matches and no deny; 403 ends the chain."""
    shown = action(
        "add-headers", headers={"X-Matched": "${actions.ngrok.restrict_ips.matched_cidr}"}
    )
    inner = Inner()
    app = policy(rule(action("restrict-ips", allow=allow, deny=deny)), rule(shown), app=inner)
    answer = call(app, "/x", REMOTE_ADDR=ip)
    assert answer.status == status
    assert answer.code == (None if status == 200 else "ip_not_allowed")
    if status == 200:
        assert inner.environs[0]["HTTP_X_MATCHED"] == matched


def test_the_network_that_matched_in_either_phase() -> None:
    """Of a deny the one that denied, not one that would have allowed; in both phases."""
    networks = {"allow": ["0.0.0.0/0"], "deny": ["192.0.2.7/32"], "enforce": False}
    shown = action(
        "add-headers", headers={"X-Matched": "${actions.ngrok.restrict_ips.matched_cidr}"}
    )
    check = rule(action("restrict-ips", **networks))
    inner = Inner()
    call(policy(check, rule(shown), app=inner), "/x")
    assert inner.environs[0]["HTTP_X_MATCHED"] == "192.0.2.7/32"
    for ip, matched in (("192.0.2.7", "192.0.2.7/32"), ("192.0.2.8", "0.0.0.0/0")):
        answer = call(policy(answers=[check, rule(shown)]), "/x", REMOTE_ADDR=ip)
        assert answer.headers["X-Matched"] == matched


def test_addresses_that_are_only_reported() -> None:
    """`enforce: false` sets the variables and refuses nothing."""
    app = policy(
        rule(action("restrict-ips", allow=["10.0.0.0/8"], enforce=False)),
        rule(action("deny", status_code=410),
             when=["actions.ngrok.restrict_ips.action == 'deny'"]),
    )  # fmt: skip
    assert call(app, "/x").status == 410
    assert call(app, "/x", REMOTE_ADDR="10.1.2.3").status == 200


def test_addresses_in_the_phase_of_answers() -> None:
    """The answer is replaced, and the application's is closed."""
    inner = Inner()
    app = policy(app=inner, answers=[rule(action("restrict-ips", allow=["10.0.0.0/8"]))])
    answer = call(app, "/x")
    assert (answer.status, answer.code, inner.closed) == (403, "ip_not_allowed", 1)
    assert call(app, "/x", REMOTE_ADDR="10.0.0.1").body == b"inner"


# --- jwt-validation

ISSUER = "https://id.example.com/"
KEY_PAIR = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@contextmanager
def key_set() -> Iterator[str]:
    """Serve a key set on loopback."""
    jwk = {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY_PAIR.public_key())), "kid": "k1"}
    body = json.dumps({"keys": [jwk]}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/jwks.json"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def token(**claims: Any) -> str:
    return jwt.encode(
        {"iss": ISSUER, "aud": "gw", "sub": "ann", "exp": time.time() + 60, **claims},
        KEY_PAIR,
        "RS256",
        {"kid": "k1"},
    )


def validation(url: str, *tokens: dict[str, Any], audience: Any = ("gw",)) -> dict[str, Any]:
    config: dict[str, Any] = {
        "issuer": {"allow_list": [{"value": ISSUER}]},
        "http": {
            "tokens": list(tokens)
            or [{"type": "access_token", "method": "header", "name": "Authorization",
                 "prefix": "Bearer "}]
        },
        "jws": {
            "allowed_algorithms": ["RS256"],
            "keys": {"sources": {"additional_jkus": [url]},
                     "identification": {"token_claims": ["kid"]}},
        },
    }  # fmt: skip
    if audience is not None:
        config["audience"] = {"allow_list": [{"value": value} for value in audience]}
    return action("jwt-validation", **config)


def test_a_token_is_asked_for_and_its_claims_can_be_read() -> None:
    """One issuer, one audience, RS256; a limit by `sub` behind it."""
    bucket = ["actions.ngrok.jwt_validation.tokens[0].payload.sub"]
    with key_set() as url:
        inner = Inner()
        app = policy(rule(validation(url)), rule(limit(bucket_key=bucket)), app=inner)
        answers = [
            call(app, "/x", HTTP_AUTHORIZATION=f"Bearer {token(sub=sub)}").status
            for sub in ("ann", "ann", "bob")
        ]
        bad = [
            call(app, "/x").code,
            call(app, "/x", HTTP_AUTHORIZATION=token()).code,
            call(app, "/x", HTTP_AUTHORIZATION=f"Bearer {token(aud='other')}").code,
            call(app, "/x", HTTP_AUTHORIZATION=f"Bearer {token(iss=ISSUER[:-1])}").code,
            call(app, "/x", HTTP_AUTHORIZATION=f"Bearer {token(exp=1)}").code,
        ]
    assert answers == [200, 429, 200]
    assert bad == ["invalid_token"] * 5
    assert "HTTP_AUTHORIZATION" not in inner.environs[0]


def test_all_tokens_that_are_listed_must_be_there() -> None:
    """Each in its header, with its prefix; the audience may be any."""
    tokens = [
        {"type": "jwt", "method": "header", "name": "X-Token", "prefix": "Token "},
        {"type": "jwt", "method": "header", "name": "x-bare"},
        {"type": "jwt", "method": "header", "name": "x-close", "prefix": "jwt="},
    ]
    shown = action(
        "add-headers",
        headers={"X-Seen": "${actions.ngrok.jwt_validation.tokens.map(t, t.location_property)}",
                 "X-Alg": "${actions.ngrok.jwt_validation.tokens.map(t, t.header.alg)}"},
    )  # fmt: skip
    with key_set() as url:
        inner = Inner()
        app = policy(rule(validation(url, *tokens, audience=None)), rule(shown), app=inner)
        one, two = token(aud="any"), token(sub="bob")
        assert call(app, "/x", HTTP_X_TOKEN=f"Token {one}").status == 401
        assert call(app, "/x", HTTP_X_BARE=two).status == 401
        close = {"HTTP_X_CLOSE": f"jwt={two}"}
        assert call(app, "/x", HTTP_X_TOKEN=one, HTTP_X_BARE=two, **close).status == 401
        assert call(app, "/x", HTTP_X_TOKEN=f"token {one}", HTTP_X_BARE=two).status == 401
        assert call(app, "/x", HTTP_X_TOKEN=f"token {one}", HTTP_X_BARE=two, **close).status == 200
    assert inner.environs[0]["HTTP_X_SEEN"] == '["x-token","x-bare","x-close"]'
    assert inner.environs[0]["HTTP_X_ALG"] == '["RS256","RS256","RS256"]'


def test_key_sets_are_tried_in_order() -> None:
    """One that is out of reach does not matter where another has the key."""
    with key_set() as url:
        config = validation("http://127.0.0.1:1/jwks")
        config["config"]["jws"]["keys"]["sources"]["additional_jkus"].append(url)
        app = policy(rule(config))
        assert call(app, "/x", HTTP_AUTHORIZATION=f"Bearer {token()}").status == 200


# --- basic-auth


def basic(pair: str) -> str:
    return "Basic " + base64.b64encode(pair.encode()).decode()


def test_a_user_and_a_password() -> None:
    """401 with a challenge; the credential goes no further."""
    inner = Inner()
    credentials = ["ann:password1", "bob:${secrets.get('v', 'bob')}"]
    app = policy_with_secret(credentials, inner)
    refused = call(app, "/x")
    assert (refused.status, refused.headers["WWW-Authenticate"]) == (
        401,
        'Basic realm="ngrok", charset="UTF-8"',
    )
    for pair, status in (
        ("ann:password1", 200), ("bob:password2", 200), ("ann:password2", 401), ("ann", 401),
    ):  # fmt: skip
        assert call(app, "/x", HTTP_AUTHORIZATION=basic(pair)).status == status
    assert call(app, "/x", HTTP_AUTHORIZATION="Basic !!!").status == 401
    assert all("HTTP_AUTHORIZATION" not in environ for environ in inner.environs)


def policy_with_secret(credentials: list[str], inner: Inner) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGW_VAULT_V_BOB", "password2")
        return policy(rule(action("basic-auth", credentials=credentials)), app=inner)


def test_a_password_that_is_only_reported() -> None:
    """`enforce: false`, and a realm of one's own."""
    app = policy(
        rule(action("basic-auth", credentials=["ann:password1"], realm="x", enforce=False)),
        rule(action("deny", status_code=410), when=["!actions.ngrok.basic_auth.authorized"]),
    )
    assert call(app, "/x").status == 410
    assert call(app, "/x", HTTP_AUTHORIZATION=basic("ann:password1")).status == 200


# --- headers


def test_headers_of_a_request() -> None:
    """Appended, but `host`, which is replaced; to set one remove it first."""
    inner = Inner()
    app = policy(
        rule(
            action("remove-headers", headers=["X-Set", "x-gone"]),
            action("add-headers", headers={"X-Set": "new", "X-Add": "${req.method}", "Host": "h"}),
        ),
        app=inner,
    )
    call(app, "/x", HTTP_X_SET="old", HTTP_X_ADD="old", HTTP_X_GONE="1", HTTP_HOST="before")
    seen = inner.environs[0]
    assert (seen["HTTP_X_SET"], seen["HTTP_X_ADD"], seen["HTTP_HOST"]) == ("new", "old, GET", "h")
    assert "HTTP_X_GONE" not in seen


def test_headers_of_an_answer() -> None:
    """Added beside what is there, and removed; results can be read after them."""
    app = policy(
        app=Inner(headers=[("X-Gone", "1"), ("X-Gone", "2"), ("X-Kept", "1")]),
        answers=[
            rule(action("remove-headers", headers=["x-gone"])),
            rule(action("add-headers", headers={"X-Kept": "${res.status_code}"})),
            rule(action("add-headers", headers={
                "X-Seen": "${actions.ngrok.add_headers.headers_added['x-kept']}"})),
        ],
    )  # fmt: skip
    answer = call(app, "/x")
    assert "X-Gone" not in answer.headers
    assert answer.headers.getlist("X-Kept") == ["1", "200"]
    assert answer.headers["X-Seen"] == "200"


def test_a_value_that_no_header_holds_goes_nowhere(caplog: Any) -> None:
    """HDR-1: an expression with a line end in it: no such header, in neither phase."""
    value = "${url.unescape(req.url.query)}"
    inner = Inner()
    app = policy(
        rule(action("add-headers", headers={"X-A": value})),
        app=inner,
        answers=[rule(action("add-headers", headers={"X-B": value}))],
    )
    answer = call(app, "/x", QUERY_STRING="a%0d%0aSet-Cookie:%20x")
    assert answer.status == 200
    assert "X-B" not in answer.headers
    assert "HTTP_X_A" not in inner.environs[0]


# --- custom-response, deny


def test_an_answer_of_ones_own() -> None:
    """Status, headers, body with expressions; nothing after it runs."""
    inner = Inner()
    app = policy(
        rule(
            action(
                "custom-response",
                status_code=401,
                headers={"content-type": "application/json", "X-Path": "${req.url.path}"},
                body='{"error": {"message": "${req.method}", "type": "authentication_error"}}',
            )
        ),
        app=inner,
    )
    answer = call(app, "/x")
    assert answer.status == 401
    assert answer.json == {"error": {"message": "GET", "type": "authentication_error"}}
    assert answer.headers["X-Path"] == "/x"
    assert inner.calls == 0
    assert call(app, "/x", REQUEST_METHOD="HEAD").body == b""


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ('{"a": 1}', "application/json"),
        ("<p>hi</p>", "text/html; charset=utf-8"),
        ("hi", "text/plain; charset=utf-8"),
        ("{no json", "text/plain; charset=utf-8"),
    ],
)
def test_a_content_type_is_inferred(body: str, content_type: str) -> None:
    """Where none is given; 200 is the default."""
    answer = call(policy(rule(action("custom-response", body=body))), "/x")
    assert (answer.status, answer.headers["Content-Type"]) == (200, content_type)


def test_an_answer_of_ones_own_still_meets_the_rules_for_answers() -> None:
    """As does a refusal."""
    app = policy(
        rule(action("custom-response", status_code=410, body="gone")),
        answers=[rule(action("add-headers", headers={"X-Status": "${res.status_code}"}))],
    )
    answer = call(app, "/x")
    assert (answer.status, answer.body, answer.headers["X-Status"]) == (410, b"gone", "410")


def test_an_answer_is_overwritten() -> None:
    """In the phase of answers, by what a rule has seen of it; also of a generator's."""
    replaced = rule(
        action("custom-response", status_code=502, body="was ${res.headers['content-type'][0]}"),
        when=["res.status_code == 200"],
    )
    closed = []

    def generator(environ: Any, start_response: Any) -> Any:
        try:
            start_response("200 OK", [("Content-Type", "a/b"), ("X-Old", "1")])
            yield b"one"
            yield b"two"
        finally:
            closed.append(True)

    answer = call(policy(app=generator, answers=[replaced]), "/x")
    assert (answer.status, answer.body) == (502, b"was a/b")
    assert "X-Old" not in answer.headers
    assert closed == [True]
    kept = rule(action("custom-response"), when=["res.status_code == 500"])
    assert call(policy(app=generator, answers=[kept]), "/x").body == b"onetwo"


@pytest.mark.parametrize("status", [204, 304])
def test_an_overwritten_answer_has_no_body_where_its_status_has_none(status: int) -> None:
    """RFC 9110 §15.3.5: bytes behind such a head would be read as the next answer."""
    replaced = rule(action("custom-response", status_code=status, body="HTTP/1.1 200 OK"))

    def generator(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "a/b")])
        yield b"one"

    for app in (Inner(), generator):
        answer = call(policy(app=app, answers=[replaced]), "/x")
        assert (answer.status, answer.body) == (status, b"")
        assert "Content-Length" not in answer.headers


def test_answers_are_not_held_back() -> None:
    """With rules for answers a stream's pieces still come one by one."""
    sent = []

    def stream(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        for piece in (b"1", b"2"):
            sent.append(piece)
            yield piece

    app = policy(
        app=stream,
        answers=[rule(action("custom-response"), when=["res.status_code == 500"])],
    )
    iterator = iter(app(make_environ("/x"), lambda *args: None))
    assert next(iterator) == b"1"
    assert sent == [b"1"]


def test_denied() -> None:
    """403 by default, or another status, without a body; it stands in the decisions."""
    answer = call(policy(rule(action("deny"), name="no")), "/x")
    assert (answer.status, answer.body) == (403, b"")
    (decision,) = answer.environ[DECISIONS]
    assert (decision.allowed, decision.reason) == (False, "on_http_request rule 1 (no)")
    assert call(policy(rule(action("deny", status_code=404))), "/x").status == 404


# --- log, set-vars


def test_a_line_is_logged(caplog: Any) -> None:
    """One line of JSON to the logger of policies."""
    caplog.set_level(logging.INFO, logger="aigw_middleware.policy")
    app = policy(
        rule(action("log", metadata={"path": "${req.url.path}", "deep": [{"n": "${1 + 1}"}]}))
    )
    call(app, "/x")
    (record,) = caplog.records
    assert (record.name, json.loads(record.getMessage())) == (
        "aigw_middleware.policy",
        {"path": "/x", "deep": [{"n": 2}]},
    )


def test_variables_are_set_in_order_and_belong_to_their_phase() -> None:
    """Later ones use earlier ones; a value that is one expression keeps its kind."""
    inner = Inner()
    app = policy(
        rule(action("set-vars", vars=[{"a": "${[1, 2]}"}, {"b": "n${vars.a.size()}"}, {"c": 5}])),
        rule(action("add-headers", headers={"X-B": "${vars.b}${vars.c}"}), when=["vars.a[1] == 2"]),
        app=inner,
    )
    call(app, "/x")
    assert inner.environs[0]["HTTP_X_B"] == "n25"
    with pytest.raises(ValueError, match=r'no set-vars before it sets "vars\.a"'):
        policy(
            rule(action("set-vars", vars=[{"a": "1"}])),
            answers=[rule(action("log", metadata={"a": "${vars.a}"}))],
        )


def test_several_tokens_and_rotation() -> None:
    """The reference's way: a list of good headers in a variable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGW_VAULT_GATEWAY_AUTH_ONE", "t1")
        patch.setenv("AIGW_VAULT_GATEWAY_AUTH_TWO", "t2")
        names = ("one", "two")
        values = [f"${{'Bearer ' + secrets.get('gateway-auth', '{name}')}}" for name in names]
        app = policy(
            rule(action("set-vars", vars=[{"valid_auth_headers": values}])),
            rule(
                action("custom-response", status_code=401),
                when=["!(req.headers['authorization'][0] in vars.valid_auth_headers)"],
            ),
        )
    statuses = [
        call(app, "/x", HTTP_AUTHORIZATION=f"Bearer {token}").status for token in ("t1", "t2", "t3")
    ]
    assert statuses == [200, 200, 401]
    # Without the header the expression fails, and a guarding rule must not be skipped.
    assert call(app, "/x").code == "policy_error"


# --- redirect, url-rewrite


@pytest.mark.parametrize(
    ("from_", "to", "location"),
    [
        (r"/old/(\w+)", "/new/$1", "http://h/new/x?q=1"),
        (r"^http://h/.*$", "https://other$uri", "https://other/old/x?q=1"),
        (r"\?.*$", "", "http://h/old/x"),
        (r"/old", "/$scheme-$host-$arg_q$is_args", "http://h/http-h-1?/x?q=1"),
        (r"/old", "/${req.method}", "http://h/GET/x?q=1"),
        (r"/old", "/a b\r\nX: y", "http://h/a%20b%0D%0AX:%20y/x?q=1"),
    ],
)
def test_clients_are_sent_elsewhere(from_: str, to: str, location: str) -> None:
    """What is found in the whole URL is replaced; 302, and nothing that splits the header."""
    app = policy(rule(action("redirect", from_=from_, to=to)))
    answer = call(app, "/old/x", QUERY_STRING="q=1", HTTP_HOST="h")
    assert (answer.status, answer.headers["Location"]) == (302, location)


@pytest.mark.parametrize("host", ["a:b", "a:99999", "[::1"])
@pytest.mark.parametrize("kind", ["redirect", "url-rewrite"])
def test_a_host_that_is_none_skips_a_rule(host: str, kind: str) -> None:
    """Anybody may send it: it is logged and counted, and raises nothing."""
    app = policy(rule(action(kind, from_="^http://", to="https://$host$uri")))
    answer = call(app, "/x", HTTP_HOST=host)
    assert answer.status == 200
    assert answer.environ["aigw.policy_errors"] == 1


def test_what_is_not_found_is_not_redirected() -> None:
    """And the status and headers are one's own."""
    config: dict[str, Any] = {"from_": "^nothing$", "to": "/x"}
    assert call(policy(rule(action("redirect", **config))), "/x").status == 200
    config = {"from_": "/x", "to": "/y", "status_code": 308, "headers": {"X-Why": "moved"}}
    answer = call(policy(rule(action("redirect", **config))), "/x")
    assert (answer.status, answer.headers["X-Why"]) == (308, "moved")


def test_another_url_is_asked_for() -> None:
    """Path and query as the application sees them; the raw target does not tell otherwise."""
    inner = Inner()
    app = policy(
        rule(action("url-rewrite", from_=r"/v0/(.*?)\?(.*)$", to="/v1/$1?$2&z=%20")), app=inner
    )
    call(app, "/v0/a b", QUERY_STRING="q=1", RAW_URI="/v0/a%20b?q=1")
    seen = inner.environs[0]
    assert (seen["PATH_INFO"], seen["QUERY_STRING"]) == ("/v1/a b", "q=1&z=%20")
    assert seen["RAW_URI"] == "/v1/a%20b?q=1&z=%20"


def test_a_pattern_cannot_take_for_ever() -> None:
    """RE2: a pattern that explodes elsewhere is linear here."""
    app = policy(rule(action("redirect", from_="(a+)+$", to="/x")))
    before = time.process_time()
    assert call(app, "/" + "a" * 5000 + "b").status == 200
    assert time.process_time() - before < 1


# --- ours in addition


def test_keys_are_asked_for() -> None:
    """`api-key-auth` is KeyAuth with its options; a store's keys where none are named."""
    config: dict[str, Any] = {"keys": {"ci": TOKEN}, "exempt": ["/healthz"], "headers": "x-api-key"}
    inner = Inner()
    app = policy(rule(action("api-key-auth", **config)), app=inner)
    assert call(app, "/x").code == "invalid_api_key"
    assert call(app, "/healthz").status == 200
    answer = call(app, "/x", HTTP_X_API_KEY=TOKEN, HTTP_AUTHORIZATION="stays")
    assert answer.environ[KEY].id == "ci"
    assert inner.environs[-1]["HTTP_AUTHORIZATION"] == "stays"
    with pytest.raises(ValueError, match="keys: name some, or give the policy a store"):
        policy(rule(action("api-key-auth")))


def test_models_are_restricted() -> None:
    """`restrict-models` is ModelAccess with its options."""
    app = policy(rule(action("restrict-models", allow=["gpt-4o*"], deny=["*-audio"])))
    body = json.dumps({"model": "gpt-4o-mini"}).encode()
    assert call(app, CHAT, body=body).status == 200
    assert call(app, CHAT, body=body.replace(b"mini", b"audio")).code == "model_not_allowed"


# --- rules


def test_all_expressions_have_to_be_true() -> None:
    """None is always true; the order of rules is the order of the document."""
    inner = Inner()
    app = policy(
        rule(action("add-headers", headers={"X-N": "1"}), when=["true", "req.method == 'GET'"]),
        rule(action("add-headers", headers={"X-N": "2"}), when=["true", "false"]),
        rule(action("add-headers", headers={"X-N": "3"})),
        action("add-headers", headers={"X-N": "4"}),
        app=inner,
    )
    call(app, "/x")
    assert inner.environs[0]["HTTP_X_N"] == "1, 3, 4"


@pytest.mark.parametrize(
    "guard",
    [
        action("deny"),
        action("custom-response"),
        action("restrict-ips", allow=["0.0.0.0/0"]),
        limit(),
        action("api-key-auth", keys={"a": "b"}),
        action("restrict-models"),
        validation("https://id.test/jwks"),
        action("basic-auth", credentials=["ann:password1"]),
    ],
    ids=lambda one: one["type"],
)
def test_a_guarding_rule_that_fails_refuses(guard: dict[str, Any], caplog: Any) -> None:
    """`policy_error`, logged once a minute; beside a false expression it is just false."""
    failing = "req.headers['x-absent'][0] == 'x'"
    answer = call(policy(rule(guard, when=[failing])), "/x")
    assert (answer.status, answer.code) == (403, "policy_error")
    assert "an expression failed, the request is refused" in caplog.text
    assert call(policy(rule(guard, when=[failing, "false"])), "/x").status == 200


def test_what_a_document_has_said_goes_with_it(caplog: Any) -> None:
    """One that is read later says it too, though it may stand where this one stood in memory."""

    class Document:
        pass

    first = Document()
    say(Place(first, "rule 1", True), "failed")
    say(Place(first, "rule 1", True), "failed")
    assert caplog.text.count("rule 1: failed") == 1
    assert first in steps._said
    known = len(steps._said)
    del first
    gc.collect()
    assert len(steps._said) < known


def test_any_other_rule_that_fails_is_skipped(caplog: Any) -> None:
    """And so is an action whose value fails; both are counted."""
    failing = "req.headers['x-absent'][0]"
    inner = Inner()
    app = policy(
        rule(action("add-headers", headers={"X-A": "1"}), when=[f"{failing} == 'x'"]),
        rule(
            action("add-headers", headers={"X-B": f"${{{failing}}}", "X-C": "1"}),
            action("add-headers", headers={"X-D": "1"}),
        ),
        rule(action("set-vars", vars=[{"v": f"${{{failing}}}"}])),
        app=inner,
        answers=[rule(action("add-headers", headers={"X-E": f"${{{failing}}}"}))],
    )
    answer = call(app, "/x")
    assert answer.status == 200
    seen = {name for name in inner.environs[0] if name.startswith("HTTP_X_")}
    assert seen == {"HTTP_X_D"}
    assert answer.environ["aigw.policy_errors"] == 4
    assert "the rule is skipped" in caplog.text


def test_documents_below_other_names() -> None:
    """Ngrok's agent and its Kubernetes resources."""
    inner = json.loads(document(rule(action("deny", status_code=410))))
    for outer in (
        {"traffic_policy": inner},
        {"traffic_policy": json.dumps(inner)},
        {"kind": "NgrokTrafficPolicy", "spec": {"policy": inner}},
        {"spec": {"trafficPolicy": {"policy": inner}}},
        {"spec": {"trafficPolicy": {"inline": inner}}},
    ):
        app = TrafficPolicy.parse(json.dumps(outer))(Inner())
        assert call(app, "/x").status == 410


def test_one_policy_serves_many_threads() -> None:
    """No state of one request is seen by another."""
    inner_seen: list[tuple[str, str]] = []

    def inner(environ: Any, start_response: Any) -> Any:
        inner_seen.append((environ["HTTP_X_IN"], environ["HTTP_X_OUT"]))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    app = policy(
        rule(action("set-vars", vars=[{"v": "${req.headers['x-in'][0]}"}])),
        rule(action("add-headers", headers={"X-Out": "${vars.v}"})),
        app=inner,
    )

    def client(number: int) -> None:
        for _ in range(100):
            call(app, "/x", HTTP_X_IN=str(number))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inner_seen) == 800
    assert all(came == went for came, went in inner_seen)


def test_an_open_environ_needs_no_more_than_wsgi_promises() -> None:
    """The smallest environ that PEP 3333 allows is served."""
    environ = make_environ("/x")
    for key in ("HTTP_HOST", "REMOTE_ADDR"):
        environ.pop(key, None)
    app = policy(rule(action("log", metadata={"u": "${req.url}", "ip": "${conn.client_ip}"})))
    assert send(app, environ).status == 200
