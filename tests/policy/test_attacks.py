"""What tries to get by the rules of a document, or out of it what it must not tell."""

from __future__ import annotations

import json
import logging
import time
from functools import partial
from typing import Any

import pytest

from aigw_middleware import (
    IPAllowlist,
    KeyAuth,
    ModelAccess,
    RateLimiter,
    TrafficPolicy,
    open_counters,
    open_store,
    stack,
)
from aigw_middleware.explaining import Described, KnownKey, explain
from aigw_middleware.policy import expressions
from aigw_middleware.policy.document import read
from aigw_middleware.policy.mistakes import PolicyError
from aigw_middleware.policy.moving import from_ngrok
from aigw_middleware.policy.policy import TrafficPolicy as Policy
from aigw_middleware.policy.reloading import Reloading
from aigw_middleware.policy.secrets import Vaults

from ..support import CHAT, Inner, answering, call, make_environ, raw_provider
from .support import action, building, document, policy, rule
from .test_actions import limit
from .test_gateway import OK, chat, entry, gateway

TOKEN = "gateway-key-0123456789"
REWRITE = action("url-rewrite", from_="/ai/", to="/v1/")
MINI = action("restrict-models", allow=["openai/gpt-4o-mini"])


@pytest.fixture
def provider() -> Any:
    with raw_provider(answering(OK, keep=True)) as running:
        yield running


# --- rules that are dodged


@pytest.mark.parametrize("path", ["//v1/chat/completions", "/v1//chat/completions"])
def test_another_spelling_of_a_path_does_not_get_by(path: str, provider: Any) -> None:
    """What rules judged by the path is what is asked for, or nothing is."""
    guard = rule(action("deny"), when=["req.url.path == '/v1/chat/completions'"])
    app = policy(guard, gateway(entry("openai", provider)))
    assert call(app, CHAT, body=chat()).status == 403
    assert call(app, path, body=chat()).code == "not_found"
    assert provider.requests == []


def test_rules_before_a_rewritten_url_are_refused_when_read(provider: Any) -> None:
    """Models and keys are judged on the URL that is asked for: the rewrite belongs before them."""
    for first in (MINI, action("api-key-auth", keys={"a": TOKEN})):
        with pytest.raises(PolicyError, match="put it before"):
            policy(first, REWRITE, gateway(entry("openai", provider)))
    app = policy(REWRITE, MINI, gateway(entry("openai", provider)))
    assert call(app, "/ai/chat/completions", body=chat()).code == "model_not_allowed"


def test_layers_outside_of_a_rewriting_document_still_judge(provider: Any, sqlite_url: str) -> None:
    """Models, caps and money are judged by the forwarder, whatever the path was outside."""
    store = open_store(sqlite_url)
    _, poor = store.keys.create(limits=["0.000001 usd/day"])
    layer = TrafficPolicy.parse(document(REWRITE, gateway(entry("openai", provider))))
    models = stack(
        Inner(),
        partial(ModelAccess, allow=["openai/gpt-4o-mini"], max_output_tokens=5),
        layer,
    )
    assert call(models, "/ai/chat/completions", body=chat()).code == "model_not_allowed"
    assert (
        call(models, "/ai/chat/completions", body=chat("gpt-4o-mini", max_tokens=99)).status == 200
    )
    assert json.loads(provider.requests[0].body)["max_tokens"] == 5
    for limited in (
        stack(Inner(), partial(KeyAuth, keys=store.keys), layer),
        stack(Inner(), partial(RateLimiter, limits="0.000001 usd/day", by="global"), layer),
    ):
        answer = call(limited, "/ai/chat/completions", body=chat(), HTTP_X_API_KEY=poor)
        assert answer.code == "budget_exceeded"
    assert len(provider.requests) == 1


@pytest.mark.parametrize(
    "refusing",
    [
        [MINI],
        [gateway, {"headers": {"X-A": "${req.headers['nope'][0]}"}}],
        [gateway, {"model_selection": {"strategy": ["ai.models.only(['other'])"]}}],
        [gateway, {"max_input_tokens": 1}],
    ],
    ids=["models", "header", "strategy", "size"],
)
def test_a_refusal_is_no_error_to_continue_after(refusing: list[Any], provider: Any) -> None:
    """`on_error: continue` is for providers that failed, not for what the gateway refuses."""
    extra = refusing[1] if len(refusing) > 1 else {}
    config = gateway(entry("openai", provider), on_error="continue", **extra)
    rules = [config] if len(refusing) > 1 else [refusing[0], config]
    inner = Inner()
    assert call(policy(*rules, app=inner), CHAT, body=chat()).status in (403, 413)
    assert inner.calls == 0


def test_continuing_inside_of_another_stacks_paths() -> None:
    """What goes by a guarded path is not forwarded, and an application is asked once."""
    calls = []

    def generator(environ: Any, start_response: Any) -> Any:
        calls.append(environ["PATH_INFO"])
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        yield b"no"

    with raw_provider(answering(OK)) as provider:
        layer = TrafficPolicy.parse(
            document(gateway(entry("openai", provider), on_error="continue"))
        )
        app = stack(
            layer(generator), partial(IPAllowlist, allow=["10.0.0.0/8"]), paths=["/admin/*"]
        )
        call(app, CHAT, body=chat())
    assert len(calls) <= 1
    assert provider.requests == []


@pytest.mark.parametrize(
    "guard", [action("restrict-ips", allow=["10.0.0.0/8"]), action("custom-response")]
)
def test_a_guarding_rule_for_answers_that_fails_lets_nothing_out(guard: Any) -> None:
    """403 `policy_error` takes the answer's place."""
    failing = ["res.headers['x-nope'][0] == 'a'"]
    inner = Inner()
    answer = call(policy(app=inner, answers=[rule(guard, when=failing)]), "/x")
    assert (answer.status, answer.code, inner.closed) == (403, "policy_error", 1)


def test_a_disabled_model_has_no_other_way_in(provider: Any) -> None:
    """Not by its alias, nor inside a batch."""
    models = [{"id": "claude-opus", "id_aliases": ["opus-2025"], "disabled": True}, "claude-haiku"]
    app = policy(gateway(entry("anthropic", provider, *models)))
    for name in ("claude-opus", "opus-2025", "anthropic/claude-opus"):
        answer = call(app, "/v1/messages", body=chat(name, max_tokens=1))
        assert answer.code == "model_not_allowed", name
    batch = json.dumps({"requests": [{"params": {"model": "claude-opus"}}]}).encode()
    assert call(app, "/v1/messages/batches", body=batch).code == "model_not_allowed"
    assert call(app, "/v1/messages", body=chat("claude-haiku", max_tokens=1)).status == 200


def test_another_providers_model_of_that_name_is_another_one(provider: Any) -> None:
    """`only_allow_configured_models` is about a provider's own models."""
    app = policy(
        gateway(
            entry("openai", provider, "gpt-4o-mini"),
            entry("openrouter", provider, "meta/llama-3"),
            only_allow_configured_models=True,
        )
    )
    for name in ("openrouter:openai/gpt-4o-mini", "openrouter:gpt-4o-mini"):
        assert call(app, CHAT, body=chat(name)).code == "model_not_allowed", name
    for name in ("openrouter:meta/llama-3", "meta/llama-3", "gpt-4o-mini"):
        assert call(app, CHAT, body=chat(name)).status == 200, name


def test_a_slash_belongs_to_the_model_where_its_provider_is_named(provider: Any) -> None:
    """A provider that is disabled is no other provider's author."""
    app = policy(gateway(entry("openrouter", provider), {"id": "openai", "disabled": True}))
    assert call(app, CHAT, body=chat("openrouter:openai/gpt-4o")).status == 200
    assert call(app, CHAT, body=chat("openai/gpt-4o")).code == "model_not_allowed"


def test_a_key_that_is_only_reported_does_not_open_the_gateway(
    provider: Any, sqlite_url: str
) -> None:
    """`enforce: false` before it: the gateway's own question is still asked."""
    store = open_store(sqlite_url)
    _, token = store.keys.create(networks=["10.0.0.0/8"])
    config = gateway(entry("openai", provider))
    del config["config"]["authentication"]
    app = policy(action("api-key-auth", enforce=False), config, store=store)
    assert call(app, CHAT, body=chat(), HTTP_X_API_KEY=token).status in (401, 403)
    assert call(app, CHAT, body=chat()).status == 401


@pytest.mark.parametrize(
    "expression",
    [
        "'x-' + 'blocked' in req.headers",
        "('X-' + 'Blocked') in req.headers",
        "has(req.headers['X-Blocked'][0])",
        "['X-Blocked'].exists(k, k in req.headers)",
        "['X-Blocked'].exists(k, has(req.headers[k]))",
        "['X-Blocked'].exists(k, req.headers[k][0] == '1')",
        "req.method == 'GET' && 'X-Blocked' in req.headers",
        "true ? 'X-Blocked' in req.headers : false",
        "vars.name in req.headers",
        "req.headers[vars.name][0] == '1'",
    ],
)
def test_every_way_to_name_a_header_is_without_regard_to_case(expression: str) -> None:
    """A rule that is quietly false would let through."""
    app = policy(
        rule(action("set-vars", vars=[{"name": "X-BLOCKED"}])),
        rule(action("deny"), when=[expression]),
    )
    assert call(app, "/x", HTTP_X_BLOCKED="1").status == 403


def test_an_empty_secret_is_none(monkeypatch: Any) -> None:
    """A variable that is set to nothing would be shown by a header with nothing in it."""
    monkeypatch.setenv("AIGW_VAULT_G_T", "")
    with pytest.raises(PolicyError, match="is empty"):
        policy(rule(action("deny"), when=["req.headers['x-api-key'][0] != secrets.get('g', 't')"]))


@pytest.mark.parametrize(
    "rules",
    [
        [{"actions": [{"type": "oauth"}]}, rule(action("deny"), when=["req.url.path == '/admin'"])],
        [rule(action("deny"), when=["req.method == 'TRACE'"])],
        [rule(action("custom-response", body="hi"), when=["req.url.path == '/'"])],
        [rule(action("basic-auth", credentials=["a:password1"], enforce=False))],
        [rule(action("deny"), when=["req.method == 'X'", "!hasReqHeader('authorization')"])],
    ],
)
def test_what_is_carried_over_is_not_opened(rules: list[Any]) -> None:
    """A rule that looks like a guard and is none adds no `authentication: none`."""
    text = json.dumps({"on_http_request": [*rules, {"type": "ai-gateway", "config": {}}]})
    assert "authentication" not in from_ngrok(text, "x").text()


@pytest.mark.parametrize(
    "rules",
    [
        [{"type": ["a"]}],
        [{"actions": 3}],
        [{"actions": [{"type": {}}]}],
        [{"type": "deny", "config": "x"}, {"type": "ai-gateway", "config": "abc"}],
        [{"expressions": 3, "actions": [{"type": "deny", "config": []}]}],
        [{"type": "basic-auth", "config": [1]}, {"type": "ai-gateway"}],
        [5],
        "x",
    ],
)
def test_carrying_over_nonsense_is_told(rules: Any) -> None:
    """Whatever stands there, it is a line of what was left out."""
    from_ngrok(json.dumps({"on_http_request": rules}), "x").text()


# --- what must not be told


def test_a_key_in_a_query_is_not_shown_to_rules(
    provider: Any, caplog: Any, sqlite_url: str
) -> None:
    """What a layer takes out there reads as a stand-in too, and `?key=` always."""
    caplog.set_level(logging.INFO, logger="aigw_middleware.policy")
    told = action("log", metadata={"u": "${req.url}", "p": "${req.url.query_params}"})
    app = policy(
        rule(action("api-key-auth", keys={"ci": TOKEN}, query_parameter="token")), rule(told)
    )
    query = f"token={TOKEN}&key=AIza-secret&a=1"
    raw = f"/x?{query}"
    assert call(app, "/x", QUERY_STRING=query, RAW_URI=raw).status == 200
    assert TOKEN not in caplog.text
    assert "AIza" not in caplog.text
    assert "redacted:" in caplog.text
    store = open_store(sqlite_url)
    _, key = store.keys.create()
    layer = TrafficPolicy.parse(document(REWRITE, gateway(entry("openai", provider))), store=store)
    outside = stack(Inner(), partial(KeyAuth, keys=store.keys, query_parameter="token"), layer)
    call(outside, "/ai/chat/completions", body=chat(), QUERY_STRING=f"token={key}&a=1")
    assert provider.requests[0].line.split()[1] == "/v1/chat/completions?a=1"


def test_a_mistake_does_not_tell_what_a_secret_is(monkeypatch: Any) -> None:
    """Whatever a secret stands for, it is not in an error."""
    monkeypatch.setenv("AIGW_VAULT_V_N", "hunter2-top-secret")
    value = "${secrets.get('v', 'n')}"
    for config in (
        action("restrict-ips", allow=[value]),
        action("basic-auth", credentials=[value]),
        action("api-key-auth", keys={"a": value + " "}),
    ):
        with pytest.raises(PolicyError) as error:
            policy(rule(config))
        assert "hunter2" not in str(error.value)


def test_what_the_provider_gets_the_application_does_not(provider: Any) -> None:
    """Headers and parameters are added to the provider's request alone, whatever their names."""
    inner = Inner()
    headers = {"X-S": "s3cret", "Cookie": "a=b", "OpenAI-Organization": "org-1"}
    app = policy(
        gateway(entry("openai", provider), headers=headers, query_params={"key": "v"}), app=inner
    )
    call(app, "/app", HTTP_X_S="client's")
    assert inner.environs[0]["HTTP_X_S"] == "client's"
    assert inner.environs[0]["QUERY_STRING"] == ""
    call(app, CHAT, body=chat())
    request = provider.requests[0]
    assert {name: request.headers[name] for name in headers} == headers
    assert request.line.split()[1].endswith("?key=v")
    with pytest.raises(PolicyError, match="name that in api_keys"):
        policy(gateway(entry("openai", provider), headers={"Authorization": "x"}))


def test_an_echo_of_a_documents_secret_is_redacted(monkeypatch: Any) -> None:
    """In an error's body and headers, as a provider's key is."""
    monkeypatch.setenv("AIGW_VAULT_V_N", "s3cret-in-a-header")

    def echo(connection: Any, request: Any) -> None:
        body = f"{request.line} {request.headers['X-Prov']}".encode()
        connection.sendall(
            b"HTTP/1.1 400 Bad\r\nContent-Type: text/plain\r\nX-Echo: s3cret-in-a-header\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )

    value = "${secrets.get('v', 'n')}"
    with raw_provider(echo) as provider:
        app = policy(
            gateway(entry("openai", provider), headers={"X-Prov": value}, query_params={"c": value})
        )
        answer = call(app, CHAT, body=chat())
    assert answer.body == b"POST /v1/chat/completions?c=[redacted] HTTP/1.1 [redacted]"
    assert answer.headers["X-Echo"] == "[redacted]"


# --- explain says what happens


EXPLAINED: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("models allowed by provider", [action("restrict-models", allow=["openai/gpt-4o*"])], {}),
    ("models denied by provider", [action("restrict-models", deny=["openai/gpt-4o*"])], {}),
    ("an alias", [action("restrict-models", allow=["openai/gpt-4o"])], {"model": "fast"}),
    ("no model", [], {"model": None}),
    ("auto", [], {"model": "ngrok/auto"}),
    ("a disabled provider", [], {"model": "groq/llama"}),
    ("a header that fails", [action("add-headers", headers={"X": "${req.headers['n'][0]}"})], {}),
    ("the key's header taken out", [action("remove-headers", headers=["x-api-key"])], {}),
    ("a log whose result is read",
     [action("log", metadata={"a": 1}),
      rule(action("deny"), when=["actions.ngrok.log.metadata.a == 1"])], {}),
    ("a redirect", [action("redirect", from_="/v1/.*", to="/elsewhere")], {}),
    ("an odd path", [], {"path": "//v1/chat/completions"}),
    ("only some models", [], {"model": "gpt-5", "only_allow_configured_models": True}),
    ("a strategy that leaves nothing", [], {
        "model_selection": {"strategy": ["ai.models.only(['x'])"]}}),
    ("a strategy that fails", [], {
        "model_selection": {"strategy": ["ai.models.filter(m, m.nope == 1)"]}}),
    ("a gateway's header that fails", [], {"headers": {"X": "${req.headers['nope'][0]}"}}),
    ("a rule that fails", [rule(action("deny"), when=["req.headers['nope'][0] == 'x'"])], {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "options"), [e[1:] for e in EXPLAINED], ids=[e[0] for e in EXPLAINED]
)
def test_explain_says_what_the_stack_does(
    rules: list[Any], options: dict[str, Any], provider: Any, sqlite_url: str
) -> None:
    """The same verdict, and the same status, as a real request gets."""
    options = dict(options)
    model, path = options.pop("model", "gpt-4o"), options.pop("path", CHAT)
    store = open_store(sqlite_url)
    key, token = store.keys.create(models=["openai/*"])
    config = gateway(
        entry("openai", provider, {"id": "gpt-4o", "id_aliases": ["fast"]}),
        {"id": "groq", "disabled": True},
        **options,
    )
    del config["config"]["authentication"]
    text = document(*rules, config)
    real = call(
        TrafficPolicy.parse(text, store=store)(Inner()),
        path,
        body=chat(model),
        HTTP_X_API_KEY=token,
    )
    described = Policy(
        read(text, "x"),
        "x",
        store=store,
        keys=KnownKey(key),
        counters=open_counters("memory:"),
        vaults=Vaults(store),
    )
    request = Described(key=key, model=model, path=path)
    found = list(explain(described(Inner()), request, described.labels))
    status = next((one.status for one in found if one.ends), 200)
    assert status == real.status, found


# --- bounds


def test_a_client_cannot_make_an_expression_dear() -> None:
    """Lists that a client's headers make are bounded before they are gone over."""
    pairs = {"HTTP_X": ",".join(map(str, range(999))), "HTTP_Y": ",".join(map(str, range(999)))}
    for expression in (
        "req.headers['x'][0].split(',').exists(a, req.headers['y'][0].split(',').exists(b, a + b == ''))",
        "json.decode('[' + req.headers['x'][0] + ']').exists(a, json.decode('[' + "
        "req.headers['y'][0] + ']').exists(b, a + b < 0))",
    ):
        app = policy(rule(action("deny"), when=[expression]))
        before = time.process_time()
        assert call(app, "/x", **pairs).code == "policy_error"
        assert time.process_time() - before < 0.5


def test_loops_within_each_other_are_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long header in the inner loop: what takes longer than it may fails, and is refused."""
    nested = (
        "req.headers['x'][0].split(',').map(a, req.headers['x'][0].split(',').map(b, a)).size() > 0"
    )
    app = policy(rule(action("deny"), when=[nested]))
    assert call(app, "/x", HTTP_X="1,2").code is None
    monkeypatch.setattr(expressions, "MOST_SECONDS", 0.0)
    assert call(app, "/x", HTTP_X="1,2").code == "policy_error"
    single = policy(
        rule(action("deny"), when=["req.headers['x'][0].split(',').exists(a, a == '1')"])
    )
    assert call(single, "/x", HTTP_X="1,2").status == 403


def test_variables_cannot_grow_without_end() -> None:
    """Twice the last one, twenty times: an error, not a list of a million."""
    doubled = [{f"v{n}": f"${{vars.v{n - 1} + vars.v{n - 1}}}"} for n in range(1, 21)]
    app = policy(rule(action("set-vars", vars=[{"v0": "${[1, 2]}"}, *doubled])))
    answer = call(app, "/x")
    assert (answer.status, answer.environ["aigw.policy_errors"]) == (200, 1)


def test_aliases_do_not_go_around_the_depth() -> None:
    """Depth counts behind an alias too."""
    lines = ["k0: &k0 " + "[" * 50 + "1" + "]" * 50]
    lines += [f"k{n}: &k{n} {'[' * 50}*k{n - 1}{']' * 50}" for n in range(1, 40)]
    with pytest.raises(PolicyError, match="nested too deeply"):
        read("\n".join(lines), "x")


def test_a_long_expression_is_read_in_bounded_time() -> None:
    """`has(map[name])` is written otherwise so many times and no more."""
    source = " || ".join(["has(req.headers['a'])"] * 980)
    before = time.process_time()
    with pytest.raises(PolicyError, match="at most 50 times"):
        policy(rule(action("deny"), when=[source]))
    assert time.process_time() - before < 5


@pytest.mark.parametrize(
    "make",
    [
        lambda n: limit(name=f"n{n}"),
        lambda n: rule(limit(name=f"n{n}"), when=["true"]),
        lambda n: rule(action("add-headers", headers={"X": "1"}), when=["req.method == 'GET'"]),
    ],
)
def test_as_many_rules_as_a_document_may_have_are_served(make: Any) -> None:
    """Each is a layer: none of them uses up Python's stack."""
    assert call(policy(*[make(n) for n in range(100)]), "/x").status in (200, 429)
    with pytest.raises(PolicyError, match="at most 100"):
        policy(rule(*[action("log", metadata={})] * 101))


# --- answers


def test_a_late_error_of_the_application_is_overwritten_whole() -> None:
    """`start_response` with `exc_info`, when the first bytes are asked for: one answer, not two."""

    class Late:
        def __init__(self, start_response: Any) -> None:
            self._start_response = start_response

        def __iter__(self) -> Late:
            return self

        def __next__(self) -> bytes:
            error = ValueError("x")
            self._start_response("500 X", [], (ValueError, error, None))
            return b"SECRET STACK TRACE"

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Late(start_response)

    sorry = rule(action("custom-response", status_code=503, body="sorry"),
                 when=["res.status_code >= 500"])  # fmt: skip
    served = policy(app=app, answers=[sorry])
    started: list[Any] = []
    body = b"".join(served(make_environ("/x"), lambda *args: started.append(args)))
    assert started[-1][0].startswith("503")
    assert body == b"sorry"


def test_a_gate_that_refuses_leaves_its_result_to_the_rules_for_answers() -> None:
    """`limited`, `action`: read where the refusal is dressed up."""
    told = rule(action("add-headers", headers={"X-L": "${actions.ngrok.rate_limit.limited}"}))
    app = policy(rule(limit()), answers=[told])
    assert [call(app, "/x").headers["X-L"] for _ in range(2)] == ["false", "true"]
    told = rule(action("add-headers", headers={"X-A": "${actions.ngrok.restrict_ips.action}"}))
    app = policy(rule(action("restrict-ips", allow=["10.0.0.0/8"])), answers=[told])
    assert call(app, "/x").headers["X-A"] == "deny"


# --- smaller ones


def test_rewritten_urls_add_up() -> None:
    """The second sees what the first has made of it; a `?key=` of the application's is kept."""
    inner = Inner()
    app = policy(
        action("url-rewrite", from_="/api/", to="/"),
        action("url-rewrite", from_="/v0/", to="/v1/"),
        app=inner,
    )
    call(app, "/api/v0/x", QUERY_STRING="key=own")
    assert (inner.environs[0]["PATH_INFO"], inner.environs[0]["QUERY_STRING"]) == (
        "/v1/x",
        "key=own",
    )


def test_a_host_that_fails_leaves_the_clients() -> None:
    """The rule is skipped as a whole."""
    inner = Inner()
    failing = action("add-headers", headers={"host": "${req.headers['nope'][0]}"})
    call(policy(failing, app=inner), "/x", HTTP_HOST="good")
    assert inner.environs[0]["HTTP_HOST"] == "good"


def test_auto_is_chosen_on_every_path_that_names_models(provider: Any) -> None:
    """Also in the Responses API."""
    app = policy(gateway(entry("openai", provider, "one")))
    body = json.dumps({"model": "ngrok/auto", "input": "x"}).encode()
    assert call(app, "/v1/responses", body=body).status == 200
    assert json.loads(provider.requests[0].body)["model"] == "one"


def test_arguments_have_any_name() -> None:
    """`$arg_page2`, `$arg_userId`."""
    app = policy(action("redirect", from_="^.*$", to="/$arg_page2-$arg_userId-${'x'}"))
    location = call(app, "/x", QUERY_STRING="page2=2&page=1&userId=7&user=8").headers["Location"]
    assert location == "/2-7-x"


def test_what_may_be_absent_can_be_asked_for() -> None:
    """`has` is false then, and no error."""
    for expression in ("has(req.url.port)", "has(req.content_length)"):
        app = policy(rule(action("deny"), when=[expression]))
        assert call(app, "/x", HTTP_HOST="h").status == 200
    app = policy(rule(action("deny"), when=["'content-type' in req.headers"]))
    assert call(app, "/x", CONTENT_TYPE="").status == 200
    app = policy(rule(action("deny"), when=["string(true) == 'true' && r'\\' == '\\\\'"]))
    assert call(app, "/x").status == 403


def test_mistakes_in_an_embedded_text_have_the_outer_line() -> None:
    """Of meaning as of form."""
    text = "a: 1\ntraffic_policy: |\n  on_http_request:\n    - type: dny\n"
    with pytest.raises(PolicyError) as error:
        TrafficPolicy.parse(text)
    assert error.value.mistakes[0].line == 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"on_http_request": [{"type": "custom-response", "config": {"body": "\\ud800"}}]}',
         "surrogate"),
        (document(action("basic-auth", credentials=["a:password1"], realm="a\nb")), "printable"),
        (document(limit(), rule(limit(), when=["true"])), "another rate-limit has this name"),
    ],
)  # fmt: skip
def test_more_mistakes(text: str, told: str) -> None:
    """What every request would fail on is told when it is read."""
    with pytest.raises(PolicyError, match=told):
        TrafficPolicy.parse(text)


def test_no_header_is_sent_twice() -> None:
    """One's own `X-Request-Id` and `Location` are the ones."""
    answer = call(policy(action("custom-response", headers={"X-Request-Id": "mine"})), "/x")
    assert answer.headers.getlist("X-Request-Id") == ["mine"]
    moved = action("redirect", from_="/x", to="/y", headers={"location": "/z"})
    assert len(call(policy(moved), "/x").headers.getlist("Location")) == 1


def test_a_store_that_is_down_for_a_moment_does_not_hold_a_reload_up(tmp_path: Any) -> None:
    """The next look tries again."""
    path = tmp_path / "p"
    path.write_text("1")
    fails = [False]
    app = Reloading(str(path), building(fails))
    path.write_text("22")
    fails[0] = True
    assert app.look() is False
    fails[0] = False
    assert app.look() is True
    assert call(app, "/x").body == b"22"
