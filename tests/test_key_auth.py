"""`KeyAuth` (KEY-1 to KEY-7, MOD in keys)."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from werkzeug.middleware.proxy_fix import ProxyFix

from aigw_middleware import (
    ApiKey,
    IPAllowlist,
    KeyAuth,
    Provider,
    StaticKeys,
    StoreUnavailable,
    UpstreamForwarder,
    open_counters,
    open_store,
    stack,
)
from aigw_middleware.keys.token import new_token

from .support import CHAT, Inner, answering, call, make_environ, raw_provider

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
SECRETS = {"ci": "s3cret", "web": "0ther"}
CARRIERS = ["HTTP_AUTHORIZATION", "HTTP_X_API_KEY", "HTTP_API_KEY", "HTTP_X_GOOG_API_KEY"]


class Keys:
    """Keys of one record, for any token."""

    def __init__(self, key: ApiKey | None = None, **fields: Any) -> None:
        self.key = key or replace(ApiKey(id="aigk_1"), **fields)

    def verify(self, token: str, *, endpoint: str | None = None) -> ApiKey | None:
        return self.key


def guarded(**options: Any) -> tuple[KeyAuth, Inner]:
    inner = Inner()
    return KeyAuth(inner, options.pop("keys", StaticKeys(SECRETS)), **options), inner


CARRIED = [
    pytest.param({"HTTP_AUTHORIZATION": "Bearer s3cret"}, id="Authorization"),
    pytest.param({"HTTP_AUTHORIZATION": "bEARER   s3cret "}, id="the scheme in any case"),
    pytest.param({"HTTP_X_API_KEY": "s3cret"}, id="x-api-key"),
    pytest.param({"HTTP_API_KEY": "s3cret"}, id="api-key"),
    pytest.param({"HTTP_X_GOOG_API_KEY": " s3cret\t"}, id="KEY-3: x-goog-api-key"),
    pytest.param(
        {"HTTP_AUTHORIZATION": "Bearer s3cret", "HTTP_X_API_KEY": "s3cret"}, id="twice the same"
    ),
    pytest.param(
        {"HTTP_AUTHORIZATION": "Basic dTpw", "HTTP_X_API_KEY": "s3cret"}, id="beside Basic"
    ),
]


@pytest.mark.parametrize("headers", CARRIED)
def test_a_good_key_passes_and_is_taken_out(headers: dict[str, str]) -> None:
    """KEY-3: a key in any of the headers passes; none that can carry one is left."""
    app, inner = guarded()
    answer = call(app, **headers)
    assert answer.status == 200
    assert not set(CARRIERS) & set(inner.environs[0])
    assert inner.environs[0]["aigw.key"].id == "ci"


BAD = [
    pytest.param({}, id="none"),
    pytest.param({"HTTP_AUTHORIZATION": "Bearer x"}, id="malformed"),
    pytest.param({"HTTP_AUTHORIZATION": "Bearer"}, id="a scheme alone"),
    pytest.param({"HTTP_AUTHORIZATION": "s3cret"}, id="no scheme"),
    pytest.param({"HTTP_AUTHORIZATION": "Basic s3cret"}, id="another scheme"),
    pytest.param({"HTTP_AUTHORIZATION": "Bearer s3cret, Bearer s3cret"}, id="joined duplicates"),
    pytest.param({"HTTP_X_API_KEY": "Bearer s3cret"}, id="a scheme where none belongs"),
    pytest.param({"HTTP_X_API_KEY": ""}, id="empty"),
    pytest.param({"HTTP_AUTHORIZATION": "Bearer ' OR '1'='1' --"}, id="KEY-4: SQL"),
    pytest.param({"HTTP_AUTHORIZATION": "Bearer s3cret", "HTTP_X_API_KEY": "0ther"}, id="KEY-2"),
    pytest.param({"HTTP_AUTHORIZATION": "Bearer " + "x" * 100_000}, id="a long one"),
    pytest.param({"HTTP_AUTHORIZATION": "Bearer s3cr\xe9t"}, id="not ASCII"),
]


@pytest.mark.parametrize("headers", BAD)
def test_every_bad_key_gets_the_same_answer(headers: dict[str, str]) -> None:
    """KEY-1: one answer for each kind of bad key, request id apart; the app sees nothing."""
    app, inner = guarded()
    expected = call(app, CHAT)
    answer = call(app, CHAT, **headers)
    assert (answer.status, answer.code, inner.calls) == (401, "invalid_api_key", 0)
    assert answer.body == expected.body
    for got in (answer, expected):
        got.headers.remove("X-Request-Id")
    assert answer.headers == expected.headers
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="ai-gateway"'


@pytest.mark.parametrize("enforce", [True, False])
def test_credentials_are_gone_whatever_is_decided(enforce: bool) -> None:
    """Refused, or let through without being enforced: the headers are gone."""
    app, inner = guarded(enforce=enforce)
    answer = call(app, HTTP_AUTHORIZATION="Bearer wrong", HTTP_X_API_KEY="b", HTTP_API_KEY="c")
    assert not set(CARRIERS) & set(answer.environ)
    assert answer.status == (401 if enforce else 200)
    assert answer.environ["aigw.decisions"][0].code == "invalid_api_key"
    if not enforce:
        assert "aigw.key" not in inner.environs[0]


def test_only_the_named_headers_are_read_and_taken() -> None:
    """`headers=["x-api-key"]` leaves Authorization to another layer."""
    app, inner = guarded(headers=["X-Api-Key"])
    call(app, HTTP_X_API_KEY="s3cret", HTTP_AUTHORIZATION="Bearer jwt")
    assert inner.environs[0]["HTTP_AUTHORIZATION"] == "Bearer jwt"
    assert call(app, HTTP_AUTHORIZATION="Bearer s3cret").status == 401


QUERIES = [
    pytest.param("key=s3cret", "", id="alone"),
    pytest.param("a=1&key=s3cret&b=%20+", "a=1&b=%20+", id="between others, kept as they are"),
    pytest.param("k%65y=s3cret&x", "x", id="its name encoded"),
    pytest.param("key=s3cret&key=s3cret", "", id="twice the same"),
    pytest.param("key=s%33cret", "", id="its value encoded"),
    pytest.param("key=&key=s3cret", "", id="an empty one beside it"),
]


@pytest.mark.parametrize(("query", "left"), QUERIES)
def test_a_query_parameter_carries_a_key_where_it_is_named(query: str, left: str) -> None:
    """`query_parameter="key"` reads it, and takes it out of the query and the raw targets."""
    app, inner = guarded(query_parameter="key")
    raw = {"RAW_URI": f"/x?{query}", "REQUEST_URI": f"/x?{query}"}
    assert call(app, "/x", QUERY_STRING=query, **raw).status == 200
    environ = inner.environs[0]
    target = f"/x?{left}" if left else "/x"
    assert (environ["QUERY_STRING"], environ["RAW_URI"], environ["REQUEST_URI"]) == (
        left,
        target,
        target,
    )
    assert "s3cret" not in repr(environ)


def test_the_query_is_not_read_unless_asked() -> None:
    """By default a key in the query is none, and the query is left alone."""
    app, inner = guarded(exempt=["/open"])
    assert call(app, "/x", QUERY_STRING="key=s3cret").status == 401
    call(app, "/open", QUERY_STRING="key=s3cret")
    assert inner.environs[0]["QUERY_STRING"] == "key=s3cret"


def test_query_and_header_that_differ_are_refused() -> None:
    """KEY-2 with a query: two different tokens in one request are refused."""
    app, _ = guarded(query_parameter="key")
    assert call(app, QUERY_STRING="key=0ther", HTTP_X_API_KEY="s3cret").status == 401


EXEMPT = [
    pytest.param("/healthz", True, id="exact"),
    pytest.param("/static/app.css", True, id="below a prefix"),
    pytest.param("/static/", True, id="the prefix"),
    pytest.param("/static", False, id="the prefix without its slash"),
    pytest.param("/healthz/x", False, id="below an exact path"),
    pytest.param("/static/../v1/chat/completions", False, id="KEY-7: dot segments"),
    pytest.param("/static/./x", False, id="KEY-7: a single dot"),
    pytest.param("/static/..", False, id="KEY-7: dots at the end"),
    pytest.param("/static//x", False, id="KEY-7: an empty segment"),
    pytest.param("//static/x", False, id="KEY-7: two slashes"),
    pytest.param("/STATIC/x", False, id="KEY-7: another case"),
    pytest.param("/static\\..\\v1", False, id="KEY-7: backslashes"),
    pytest.param("/static/..;x/v1", False, id="KEY-7: dots with a parameter"),
    pytest.param("/static/a\0b", False, id="a NUL"),
]


@pytest.mark.parametrize(("path", "free"), EXEMPT)
def test_exempt_paths_need_no_key_in_their_one_spelling(path: str, free: bool) -> None:
    """KEY-7: only the plain spelling of an exempt path is exempt."""
    app, _ = guarded(exempt=["/healthz", "/static/*"])
    assert call(app, path).status == (200 if free else 401)


def test_an_exempt_request_is_left_untouched() -> None:
    """Headers of an exempt request reach the app as they came."""
    app, inner = guarded(exempt=["/webhook"])
    call(app, "/webhook", HTTP_AUTHORIZATION="Bearer theirs")
    assert inner.environs[0]["HTTP_AUTHORIZATION"] == "Bearer theirs"


def test_exempt_is_judged_on_the_whole_path() -> None:
    """SCRIPT_NAME counts: /healthz below a mount is another path."""
    app, _ = guarded(exempt=["/app/healthz"])
    assert call(app, "/healthz", SCRIPT_NAME="/app").status == 200
    assert call(app, "/healthz").status == 401


def test_a_prefix_from_the_client_opens_no_ai_path() -> None:
    """KEY-7: SCRIPT_NAME=/static before an AI path does not make it an exempt one."""
    app, _ = guarded(exempt=["/static/*", "/v1/models"])
    assert call(app, CHAT, SCRIPT_NAME="/static").status == 401
    assert call(app, "/app.css", SCRIPT_NAME="/static").status == 200
    assert call(app, "/v1/models").status == 200


def test_a_prefix_that_came_in_a_header_opens_no_path_of_the_app() -> None:
    """SCRIPT_NAME comes from a header under gunicorn: then what the app routes by must be exempt too."""
    app, _ = guarded(exempt=["/static/*"])
    header = {"SCRIPT_NAME": "/static", "HTTP_SCRIPT_NAME": "/static"}
    assert call(app, "/admin", **header).status == 401
    assert call(app, "/static/app.css", **header).status == 200
    proxied = ProxyFix(app, x_prefix=1)
    assert call(proxied, "/admin", HTTP_X_FORWARDED_PREFIX="/static").status == 401
    assert call(proxied, "/static/app.css", HTTP_X_FORWARDED_PREFIX="/static").status == 200
    assert call(app, "/static/app.css", HTTP_X_VHM_ROOT="/admin").status == 401


def test_a_store_key_end_to_end(tmp_path: Path) -> None:
    """A key of a store passes until it is deleted; the record in the environ has no token."""
    store = open_store(f"sqlite:///{tmp_path}/aigw.db")
    key, token = store.keys.create()
    app, inner = guarded(keys=store.keys)
    assert call(app, HTTP_AUTHORIZATION=f"Bearer {token}").status == 200
    assert inner.environs[0]["aigw.key"] == key
    assert token not in repr(inner.environs[0])
    store.keys.delete(key.id)
    assert call(app, HTTP_AUTHORIZATION=f"Bearer {token}").status == 401


def test_a_store_that_is_down_is_said_and_never_blamed_on_the_key(tmp_path: Path) -> None:
    """KEY-6: a well-formed token while the store is gone is 503, a broken one 401."""
    store = open_store(f"sqlite:///{tmp_path}/aigw.db")
    app, inner = guarded(keys=store.keys)
    (tmp_path / "aigw.db").unlink()
    answer = call(app, CHAT, HTTP_AUTHORIZATION=f"Bearer {new_token().token}")
    assert (answer.status, answer.code) == (503, "store_unavailable")
    assert answer.headers["Retry-After"] == "1"
    assert "records" in answer.json["error"]["message"]
    assert call(app, HTTP_AUTHORIZATION="Bearer aigw-x-g1-y").status == 401
    assert inner.calls == 0


def test_keys_of_ones_own_may_say_that_they_cannot_tell() -> None:
    """`StoreUnavailable` from any `verify` is 503."""

    class Down:
        def verify(self, token: str, *, endpoint: str | None = None) -> ApiKey | None:
            raise StoreUnavailable("no route to it")

    assert call(KeyAuth(Inner(), Down()), HTTP_X_API_KEY="x").code == "store_unavailable"


NOW = datetime.now(UTC)
RULES = [
    pytest.param({}, 200, None, id="none"),
    pytest.param({"disabled": True}, 401, "invalid_api_key", id="disabled"),
    pytest.param({"expires_at": NOW - timedelta(1)}, 401, "invalid_api_key", id="expired"),
    pytest.param({"expires_at": NOW + timedelta(1)}, 200, None, id="not yet expired"),
    pytest.param({"endpoint_id": "other"}, 401, "invalid_api_key", id="another endpoint"),
    pytest.param({"endpoint_id": "here"}, 200, None, id="this endpoint"),
    pytest.param({"networks": ("10.0.0.0/8",)}, 403, "ip_not_allowed", id="another network"),
    pytest.param({"networks": ("192.0.2.0/24",)}, 200, None, id="its network"),
]


@pytest.mark.parametrize(("fields", "status", "code"), RULES)
def test_what_is_stored_on_a_key_is_enforced(
    fields: dict[str, Any], status: int, code: str | None
) -> None:
    """Every rule of a record holds, wherever the record comes from."""
    app, _ = guarded(keys=Keys(**fields), endpoint="here")
    answer = call(app, HTTP_X_API_KEY="x")
    assert (answer.status, answer.code) == (status, code)


def test_the_address_behind_a_proxy_is_judged() -> None:
    """A key's networks are judged on the address that an outer layer found."""
    app = stack(
        Inner(),
        partial(IPAllowlist, allow=["0.0.0.0/0"], trusted_proxies=["192.0.2.7"]),
        partial(KeyAuth, keys=Keys(networks=("10.0.0.0/8",))),
    )
    answer = call(app, HTTP_X_API_KEY="x", HTTP_X_FORWARDED_FOR="10.1.1.1")
    assert answer.status == 200
    assert call(app, HTTP_X_API_KEY="x", HTTP_X_FORWARDED_FOR="11.1.1.1").status == 403


def test_a_keys_own_limit_counts_for_it_alone() -> None:
    """Two keys with the same limit have a count each, and the answer tells of it."""
    counters = open_counters("memory:")
    apps = [KeyAuth(Inner(), Keys(id=name, limits=("2/min",)), counters=counters) for name in "ab"]
    statuses = [[call(app, CHAT, HTTP_X_API_KEY="x").status for _ in range(3)] for app in apps]
    assert statuses == [[200, 200, 429], [200, 200, 429]]
    answer = call(apps[0], CHAT, HTTP_X_API_KEY="x")
    assert answer.headers["RateLimit-Policy"] == '"key";q=2;w=60'
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"


def test_judging_spends_and_changes_nothing() -> None:
    """`judge` alone tells what would happen: no unit spent, no header taken out."""
    app, _ = guarded(keys=Keys(limits=("1/min",)))
    environ = {"HTTP_X_API_KEY": "x", "PATH_INFO": "/", "REMOTE_ADDR": "10.0.0.1"}
    before = dict(environ)
    assert [app.judge(environ) for _ in range(3)] == [None] * 3
    assert environ == before
    assert call(app, HTTP_X_API_KEY="x").status == 200
    denial = app.judge(environ)
    assert denial is not None
    assert denial.code == "rate_limit_exceeded"


MODELS = [
    pytest.param(("gpt-4o",), "gpt-4o", 200, id="named"),
    pytest.param(("gpt-4o",), "GPT-4O", 200, id="MOD-2: in any case"),
    pytest.param(("gpt-4o",), "gpt-4o-mini", 403, id="another"),
    pytest.param(("gpt-4o*",), "gpt-4o-mini", 200, id="a wildcard"),
    pytest.param(("openai/gpt-4o*",), "openai/gpt-4o-mini", 200, id="with its provider"),
    pytest.param(("gpt-4o",), "openai/gpt-4o", 200, id="a bare pattern, a provider named"),
    pytest.param(("*",), "anything", 200, id="all"),
    pytest.param((), "gpt-4o", 403, id="MOD-4: an empty list blocks all"),
    pytest.param(None, "gpt-4o", 200, id="MOD-4: None allows all"),
]


@pytest.mark.parametrize(("models", "model", "status"), MODELS)
def test_a_keys_models(models: tuple[str, ...] | None, model: str, status: int) -> None:
    """The model that the body names is judged by the key's patterns; the app can read the body."""
    app, inner = guarded(keys=Keys(models=models))
    body = json.dumps({"model": model}).encode()
    answer = call(app, CHAT, body=body, HTTP_X_API_KEY="x")
    assert (answer.status, answer.code) == (status, None if status == 200 else "model_not_allowed")
    if status == 200:
        assert inner.environs[0]["wsgi.input"].read(len(body) + 1) == body


HOSTILE = [
    pytest.param(b'{"model":"ok","model":"bad"}', id="MOD-1: two models"),
    pytest.param(b"[" * 100_000, id="MOD-6: deep"),
    pytest.param(b'{"model":NaN}', id="MOD-6: NaN"),
    pytest.param(b'{"model":["ok"]}', id="MOD-6: a list"),
    pytest.param(b'\xef\xbb\xbf{"model":"ok"}', id="MOD-6: BOM"),
    pytest.param('{"model":"ok"}'.encode("utf-16"), id="MOD-6: UTF-16"),
    pytest.param(b'{"model":"ok","n":1e400}', id="MOD-7: a float too large"),
    pytest.param(b'{"model":"ok","n":' + b"9" * 5000 + b"}", id="MOD-7: a long integer"),
    pytest.param(b'{"model":"ok\\u0000"}', id="a NUL in the name"),
    pytest.param(b'{"model":"ok ok"}', id="a space in the name"),
    pytest.param(b'["ok"]', id="no object"),
    pytest.param(b"", id="nothing"),
    pytest.param(b"model=ok", id="a form"),
]


@pytest.mark.parametrize("body", HOSTILE)
def test_hostile_bodies_are_refused_before_a_model_is_judged(body: bytes) -> None:
    """MOD-1, MOD-6, MOD-7: what two readers could read differently is `invalid_request`."""
    app, inner = guarded(keys=Keys(models=("ok",)))
    answer = call(app, CHAT, body=body, HTTP_X_API_KEY="x")
    assert (answer.status, answer.code, inner.calls) == (400, "invalid_request", 0)


def test_a_body_that_names_no_model_is_refused_where_models_are_ruled() -> None:
    """MOD-6: `{}` names no model, so no rule can allow it."""
    app, _ = guarded(keys=Keys(models=("ok",)))
    answer = call(app, CHAT, body=b"{}", HTTP_X_API_KEY="x")
    assert (answer.status, answer.code) == (400, "invalid_request")


def test_an_encoded_body_is_refused_where_models_are_ruled() -> None:
    """A body behind a Content-Encoding cannot be judged."""
    app, _ = guarded(keys=Keys(models=("ok",)))
    answer = call(app, CHAT, body=b"x", HTTP_CONTENT_ENCODING="gzip", HTTP_X_API_KEY="x")
    assert answer.code == "invalid_request"


def test_the_model_in_a_gemini_path_is_judged() -> None:
    """MOD-5: Gemini names the model in the path; the refusal has Gemini's form."""
    app, _ = guarded(keys=Keys(models=("gemini-flash",)))
    for verb in ("generateContent", "streamGenerateContent"):
        path = f"/v1beta/models/gemini-pro:{verb}"
        answer = call(app, path, body=b"{}", HTTP_X_GOOG_API_KEY="x")
        assert answer.status == 403
        assert answer.json["error"]["status"] == "PERMISSION_DENIED"
    path = "/v1beta/models/gemini-flash:generateContent"
    assert call(app, path, body=b"{}", HTTP_X_GOOG_API_KEY="x").status == 200


WRONG = [
    pytest.param({"keys": {"a": "b"}}, "keys", id="a dict"),
    pytest.param({"keys": None}, "keys", id="none"),
    pytest.param({"exempt": ["healthz"]}, "exempt", id="exempt"),
    pytest.param({"headers": ["x api"]}, "headers", id="a header's name"),
    pytest.param({"headers": []}, "headers", id="nothing to read"),
    pytest.param({"query_parameter": ""}, "query_parameter", id="an empty parameter"),
    pytest.param({"counters": "redis"}, "counters", id="counters"),
]


@pytest.mark.parametrize(("options", "named"), WRONG)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    """A wrong option is a ValueError when the layer is built, and says which."""
    with pytest.raises(ValueError, match=f"^{named}: "):
        guarded(**options)


def test_a_report_alone_refuses_no_model() -> None:
    """With `enforce=False` a key's models are reported, also where a forwarder stands within."""
    with raw_provider(answering(OK)) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=["k"])
        app = KeyAuth(UpstreamForwarder(upstream=upstream), Keys(models=["a"]), enforce=False)
        answer = call(app, CHAT, body=b'{"model": "b"}', HTTP_X_API_KEY="t")
    assert answer.status == 200
    (decision,) = answer.environ["aigw.decisions"]
    assert (decision.allowed, decision.code, decision.enforced) == (
        False, "model_not_allowed", False,
    )  # fmt: skip


def test_judging_changes_nothing() -> None:
    """`judge` leaves the environ as it was."""
    upstream = Provider("openai", base_url="http://127.0.0.1:9", api_keys=["k"])
    app = KeyAuth(UpstreamForwarder(upstream=upstream), Keys(models=["a"]))
    environ = make_environ(CHAT, body=b'{"model": "b"}', HTTP_X_API_KEY="t")
    denial = app.judge(environ)
    assert denial is not None
    assert denial.code == "model_not_allowed"
    assert "aigw.model_rules" not in environ
    assert environ["HTTP_X_API_KEY"] == "t"


def test_a_record_made_by_hand_may_have_lists() -> None:
    """Lists count like tuples, and what cannot be read refuses with 503, never lets in."""
    rules: dict[str, Any] = {"limits": ["1/min"], "networks": ["192.0.2.0/24"], "models": None}
    app = KeyAuth(Inner(), Keys(ApiKey(id="x", **rules)))
    assert [call(app, HTTP_X_API_KEY="t").status for _ in range(2)] == [200, 429]
    broken = KeyAuth(Inner(), Keys(ApiKey(id="x", networks=["nonsense"])))
    assert call(broken, HTTP_X_API_KEY="t").code == "store_unavailable"


def test_the_dialect_outlives_the_header_that_told_it() -> None:
    """A client with Google's header is Google's, also after its key was taken out."""
    app = KeyAuth(Inner(), StaticKeys(SECRETS))
    refused = call(app, "/v1/models", HTTP_X_GOOG_API_KEY="wrong")
    assert refused.json["error"]["status"] == "UNAUTHENTICATED"
    with raw_provider(answering(OK)) as provider:
        upstreams = [
            Provider("openai", base_url="http://127.0.0.1:9", api_keys=["k"]),
            Provider("google", base_url=provider.url, api_keys=["k"]),
        ]
        inner = UpstreamForwarder(upstream=upstreams)
        answer = call(
            KeyAuth(inner, StaticKeys(SECRETS)), "/v1/models", HTTP_X_GOOG_API_KEY="s3cret"
        )
    assert answer.environ["aigw.provider"] == "google"


def test_a_credential_under_a_crooked_name_is_taken_out_too() -> None:
    """`X-Api-Key : ...`, which some servers hand on, reaches no inner layer."""
    inner = Inner()
    environ = make_environ(HTTP_AUTHORIZATION="Bearer s3cret")
    environ["HTTP_X_API_KEY "] = "s3cret"
    environ["HTTP_OTHER "] = "x"
    list(KeyAuth(inner, StaticKeys(SECRETS))(environ, lambda *a: None))
    assert "s3cret" not in str(inner.environs[0])
    assert inner.environs[0]["HTTP_OTHER "] == "x"


def test_an_iterable_that_cannot_begin_is_closed() -> None:
    """`close()` is called whatever the app's iterable does."""
    closed = []

    class Broken:
        def __iter__(self) -> Any:
            raise RuntimeError("no")

        def close(self) -> None:
            closed.append(1)

    class Watched(Keys):
        def watch(self, id_: str, token: str) -> Any:
            return lambda: True

    app = KeyAuth(lambda environ, start_response: Broken(), Watched())
    with pytest.raises(RuntimeError, match="no"):
        list(app(make_environ(HTTP_X_API_KEY="t"), lambda *a: None))
    assert closed == [1]


def test_a_refusal_waits_for_a_dripping_body_for_a_moment_only(monkeypatch: Any) -> None:
    """A client that sends a byte now and then holds a refused request no longer than the bound."""
    monkeypatch.setattr("aigw_middleware.body.DISCARD_SECONDS", 0.3)
    here, there = socket.socketpair()
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.05):
            with suppress(OSError):
                there.send(b"x")

    class Looping:
        """Reads as gunicorn does: again and again until all that was asked for is there."""

        def read(self, size: int) -> bytes:
            data = b""
            while len(data) < size and (more := here.recv(size - len(data))):
                data += more
            return data

    thread = threading.Thread(target=drip)
    thread.start()
    environ = make_environ(body=b"x" * 8000)
    environ |= {"wsgi.input": Looping(), "gunicorn.socket": here}
    assert list(KeyAuth(Inner(), StaticKeys(SECRETS))(environ, lambda *a: None))
    stop.set()
    thread.join()
    here.close()
    there.close()
