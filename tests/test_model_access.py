"""`ModelAccess` (MOD-1 to MOD-7)."""

from __future__ import annotations

import gc
import io
import json
import time
import weakref
from functools import partial
from typing import Any

import pytest
from werkzeug.middleware.proxy_fix import ProxyFix

from aigw_middleware import (
    AccessLog,
    ApiKey,
    KeyAuth,
    ModelAccess,
    Provider,
    RateLimiter,
    UpstreamForwarder,
    stack,
)

from .support import CHAT, Inner, answering, call, call_oddly, make_environ, raw_provider

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
NOWHERE = "http://127.0.0.1:9"
GEMINI = "/v1beta/models/gemini-pro:generateContent"


def chat(model: Any = "gpt-4o", **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [], **fields}).encode()


RULES = [
    (["gpt-4o"], [], "gpt-4o", True),
    (["gpt-4o"], [], "gpt-4o-mini", False),
    (["gpt-4o*"], [], "gpt-4o-mini", True),
    (["openai/gpt-4o*"], [], "openai/gpt-4o", True),
    (["openai/*"], [], "anthropic/claude", False),
    (["openai/*"], [], "openai/vendor/deep", True),
    (["GPT-4o"], [], "gpt-4O", True),
    (None, ["gpt-4o-mini"], "GPT-4o-MINI", False),
    (["*"], ["openai/*"], "openai/gpt-4o", False),
    (["gpt.4o"], [], "gptx4o", False),
    ([], [], "gpt-4o", False),
    (None, [], "gpt-4o", True),
    (None, ["*-preview"], "o1-preview", False),
    (["openai/gpt-4o*"], [], "openai:gpt-4o", True),
    (None, ["gpt-4o"], "openai:gpt-4o", False),
    (None, ["openai/gpt-4o"], "openai:gpt-4o", False),
    (None, ["openai/gpt-4o*"], "gpt-4o-mini", False),  # nobody knows whose it is
    (None, ["openai/*"], "gpt-4o", True),
    (["llama3:8b"], [], "llama3:8b", True),
    (["mistral:7b"], [], "mistral:7b", True),  # a model of Ollama's, and a provider's name
    (None, ["mistral:7b"], "mistral:7b", False),
    (["*"], ["openai:gpt-4o"], "openai:gpt-4o", False),
    (["xai/*"], [], "x-ai/grok-4", True),
    (None, ["xai/grok-4"], "x-ai/grok-4", False),
]


@pytest.mark.parametrize(("allow", "deny", "model", "passes"), RULES)
def test_patterns(allow: Any, deny: Any, model: str, passes: bool) -> None:
    """MOD-2, MOD-4: `*` alone is a wildcard, case does not matter, deny beats allow."""
    answer = call(ModelAccess(Inner(), allow, deny=deny), CHAT, body=chat(model))
    assert answer.status == (200 if passes else 403)
    assert answer.code == (None if passes else "model_not_allowed")


@pytest.mark.parametrize(
    ("path", "environ"),
    [
        ("v1/chat/completions", {}),
        ("/v1/ch\xffat/completions", {}),
        ("/v1/chat/completions\n", {}),
        (CHAT, {"REQUEST_METHOD": "post"}),
        (CHAT, {"SCRIPT_NAME": "/v1/models"}),
        (CHAT, {"SCRIPT_NAME": "/v1/files"}),
        ("v1/chat/completions", {"SCRIPT_NAME": "/a"}),
    ],
)
def test_what_an_app_serves_as_a_chat_is_judged_as_one(path: str, environ: dict[str, Any]) -> None:
    """Spellings of path and method that Flask, Bottle or Falcon take for a chat, some servers do."""
    app = ModelAccess(Inner(), deny=["gpt-4o"], paths=["/v1/files/*"])
    assert call_oddly(app, path, body=chat(), **environ).code == "model_not_allowed"
    capped = ModelAccess(Inner(), max_output_tokens=100, lower_output=False)
    answer = call_oddly(capped, path, body=chat(max_tokens=9999), **environ)
    assert answer.code == "invalid_request"


class Keys:
    """Every token is one of a key for these models."""

    def __init__(self, *models: str) -> None:
        self.models = models

    def verify(self, token: str, *, endpoint: str | None = None) -> ApiKey:
        return ApiKey(id="k", models=self.models)


BAD_CAPS = [{"max_tokens": -1}, {"max_tokens": 0}, {"max_tokens": 1.5}, {"max_tokens": "5"},
            {"n": 0}, {"n": True}]  # fmt: skip


@pytest.mark.parametrize("fields", BAD_CAPS, ids=str)
def test_a_cap_that_is_none_is_refused_where_rules_are_set(fields: Any) -> None:
    """By a layer or by a key's models, around an application or a forwarder."""
    upstream = Provider("openai", base_url=NOWHERE, api_keys=["k"])
    for inner in (Inner(), UpstreamForwarder(upstream=upstream)):
        for app in (ModelAccess(inner, ["*"]), KeyAuth(inner, Keys("*"))):
            answer = call(app, CHAT, body=chat(**fields), HTTP_AUTHORIZATION="Bearer s")
            assert (answer.status, answer.code) == (400, "invalid_request")


def test_a_form_without_its_model_is_refused_where_rules_are_set() -> None:
    """It needs exactly one, unless its path is listed as one that needs none."""
    form = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n'
    kind, path = "multipart/form-data; boundary=x", "/v1/images/edits"
    upstream = Provider("openai", base_url=NOWHERE, api_keys=["k"])
    for inner in (Inner(), UpstreamForwarder(upstream=upstream)):
        answer = call(ModelAccess(inner, ["*"]), path, body=form, CONTENT_TYPE=kind)
        assert (answer.status, answer.code) == (400, "invalid_request")
        listed = ModelAccess(inner, ["*"], paths=[path])
        assert call(listed, path, body=form, CONTENT_TYPE=kind).status in (200, 502)


@pytest.mark.parametrize("name", ["openai/gpt-4o", "openai:gpt-4o", "gpt-4o"])
def test_the_model_that_was_let_through_is_told(name: str) -> None:
    """Around an application nobody else would tell what the request asks for."""
    environ = call(ModelAccess(Inner(), ["*"]), CHAT, body=chat(name)).environ
    assert environ["aigw.model"] == "gpt-4o"
    assert environ.get("aigw.provider") == ("openai" if name != "gpt-4o" else None)


def behind_others(app: Any) -> Any:
    """A layer of somebody else's, of which nobody knows what it does."""
    return ProxyFix(lambda environ, start_response: app(environ, start_response))


@pytest.mark.parametrize("around", [lambda app: app, behind_others])
def test_the_final_model_is_judged_behind_layers_of_others_too(around: Any) -> None:
    """MOD-3: a foreign layer in between opens no way past a rule: alias, failover, key's models."""
    fails = b"HTTP/1.1 500 X\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n"
    with (
        raw_provider(answering(fails, keep=True)) as first,
        raw_provider(answering(OK, keep=True)) as second,
    ):
        upstream = [
            Provider("a", base_url=first.url, models=["m", "x"], api_keys=["k"]),
            Provider("b", base_url=second.url, models=["m"], api_keys=["k"]),
        ]
        forwarder = UpstreamForwarder(upstream=upstream, aliases={"fast": "b/m"})
        denies = ModelAccess(around(forwarder), deny=["b/*"])
        assert call(denies, CHAT, body=chat("fast")).code == "model_not_allowed"
        assert call(denies, CHAT, body=chat("m")).status == 500  # `b` is not asked
        guarded = KeyAuth(around(forwarder), Keys("a/x", "fast"))
        answer = call(guarded, CHAT, body=chat("fast"), HTTP_AUTHORIZATION="Bearer s")
        assert answer.code == "model_not_allowed"
        assert not second.requests


def test_of_two_gates_of_one_kind_the_one_that_refuses_is_told() -> None:
    """The other one, which only reports and has nothing to say, stays as it is."""
    forwarder = UpstreamForwarder(upstream=Provider("openai", base_url=NOWHERE, api_keys=["k"]))
    app = ModelAccess(ModelAccess(forwarder, ["*"], enforce=False), deny=["gpt-4o"])
    decisions = call(app, CHAT, body=chat()).environ["aigw.decisions"]
    assert [(one.allowed, one.enforced) for one in decisions] == [(False, True), (True, False)]


def test_a_body_that_the_forwarder_takes_is_judged() -> None:
    """Rules set no bound of their own."""
    with raw_provider(answering(OK, keep=True)) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=["k"])
        forwarder = UpstreamForwarder(upstream=upstream, max_body_bytes=2**26)
        body = chat(prompt="x" * 33 * 2**20)
        assert call(ModelAccess(forwarder, ["gpt-4o"]), CHAT, body=body).status == 200


def test_a_rule_that_is_judged_by_the_forwarder_is_told_of_as_its_gates() -> None:
    """`aigw.decisions`, and with it the log, names the gate whose rule has refused."""
    forwarder = UpstreamForwarder(upstream=Provider("openai", base_url=NOWHERE, api_keys=["k"]))
    prices = {"openai/gpt-4o": (1, 1)}
    gates = [
        (ModelAccess(forwarder, ["x"]), "model_not_allowed"),
        (KeyAuth(forwarder, Keys("x")), "model_not_allowed"),
        (RateLimiter(forwarder, "0.00000001 usd/day", prices=prices), "budget_exceeded"),
    ]
    for gate, code in gates:
        file = io.StringIO()
        app = AccessLog(gate, file)
        answer = call(app, CHAT, body=chat(max_tokens=9), HTTP_AUTHORIZATION="Bearer s")
        assert answer.code == code
        (decision,) = answer.environ["aigw.decisions"]
        assert (decision.gate, decision.allowed, decision.code) == (
            type(gate).__name__,
            False,
            code,
        )
        assert json.loads(file.getvalue())["gate"] == type(gate).__name__


def test_the_final_model_is_judged_for_each_candidate() -> None:
    """MOD-3: with a forwarder within, the provider that is asked belongs to the name."""
    with (
        raw_provider(answering(OK, keep=True)) as first,
        raw_provider(answering(OK, keep=True)) as second,
    ):
        upstream = [
            Provider("a", base_url=first.url, models=["m"]),
            Provider("b", base_url=second.url, models=["m"]),
        ]
        app = stack(UpstreamForwarder(upstream=upstream), partial(ModelAccess, allow=["b/*"]))
        assert call(app, CHAT, body=chat("m")).status == 200
        none = stack(UpstreamForwarder(upstream=upstream), partial(ModelAccess, allow=["c/*"]))
        assert call(none, CHAT, body=chat("m")).code == "model_not_allowed"
    assert (len(first.requests), len(second.requests)) == (0, 1)


def test_a_key_and_a_layer_must_both_allow() -> None:
    """Neither opens what the other closes."""
    app = stack(
        Inner(), partial(KeyAuth, keys=Keys("gpt-4o", "o1")), partial(ModelAccess, deny=["o1"])
    )
    statuses = [
        call(app, CHAT, body=chat(model), HTTP_X_API_KEY="t").status
        for model in ("gpt-4o", "o1", "gpt-3")
    ]
    assert statuses == [200, 403, 403]


def test_a_key_with_models_may_fetch_what_it_made_where_paths_say_so() -> None:
    """Else it could begin in the background what it can never read or stop."""
    for paths, status in (((), 403), (["/v1/responses/*"], 200)):
        app = KeyAuth(Inner(), Keys("gpt-4o"), paths=paths)
        for method, path in (("GET", "/v1/responses/r"), ("POST", "/v1/responses/r/cancel")):
            assert call(app, path, method=method, HTTP_X_API_KEY="t").status == status
        assert call(app, "/v1/files", method="GET", HTTP_X_API_KEY="t").status == 403
        assert call(app, CHAT, body=chat("o1"), HTTP_X_API_KEY="t").status == 403


def test_gemini_names_its_model_in_the_path() -> None:
    """MOD-5: refused in Gemini's shape, streamed or not."""
    app = ModelAccess(Inner(), ["gemini-flash"])
    for path in (GEMINI, GEMINI.replace("generate", "streamGenerate")):
        answer = call(app, path, body=b"{}")
        assert (answer.status, answer.json["error"]["status"]) == (403, "PERMISSION_DENIED")
    assert call(app, GEMINI.replace("-pro", "-flash"), body=b"{}").status == 200


HOSTILE = [
    pytest.param(b'{"model":"gpt-4o-mini","model":"gpt-4o"}', id="MOD-1: two models"),
    pytest.param(b"[" * 100_000, id="MOD-6: deep"),
    pytest.param(b'{"model":NaN}', id="MOD-6: NaN"),
    pytest.param(b'{"model":["gpt-4o"]}', id="MOD-6: a list"),
    pytest.param(b'{"model":{"id":"gpt-4o"}}', id="an object, as agents have it"),
    pytest.param(b"\xef\xbb\xbf{}", id="MOD-6: a byte order mark"),
    pytest.param('{"model":"gpt-4o"}'.encode("utf-16"), id="MOD-6: UTF-16"),
    pytest.param(b'{"model":"gpt-4o","n":1e400}', id="MOD-7: infinite"),
    pytest.param(b'{"model":"gpt-4o","max_tokens":' + b"9" * 5000 + b"}", id="MOD-7: long"),
    pytest.param(b'{"model":"gpt 4o"}', id="no name of a model"),
]


@pytest.mark.parametrize("body", HOSTILE)
def test_bodies_that_cannot_be_judged(body: bytes) -> None:
    """Refused as `invalid_request`, quickly, and nothing of it reaches the app."""
    inner = Inner()
    before = time.monotonic()
    answer = call(ModelAccess(inner, ["gpt-4o*"]), CHAT, body=body)
    assert (answer.status, answer.code, inner.calls) == (400, "invalid_request", 0)
    assert time.monotonic() - before < 5


def test_a_body_with_a_coding_cannot_be_judged() -> None:
    """What the provider would unpack is not what was judged."""
    app = ModelAccess(Inner(), ["gpt-4o"])
    answer = call(app, CHAT, body=chat(), HTTP_CONTENT_ENCODING="gzip")
    assert answer.code == "invalid_request"


@pytest.mark.parametrize(
    ("path", "listed", "status"),
    [("/v1/files", (), 403), ("/v1/files", ["/v1/files"], 200), ("/v1/files/x", ["/v1/files/*"], 200),
     ("/v1/batches", ["/v1/files"], 403), ("/docs", (), 200), ("/v1//files", ["/v1/files"], 403)],
)  # fmt: skip
def test_paths_without_a_model(path: str, listed: Any, status: int) -> None:
    """Refused where rules are set, unless they are listed; other paths are none of its affair."""
    app = ModelAccess(Inner(), ["gpt-4o"], paths=listed)
    assert call(app, path).status == status


def test_a_listed_path_that_names_a_model_is_judged_all_the_same() -> None:
    """`paths` opens what names no model, not any model."""
    app = ModelAccess(Inner(), ["gpt-4o"], paths=["/v1/chat/completions"])
    assert call(app, CHAT, body=chat("o1")).status == 403
    assert call(app, CHAT, body=b'{"messages": []}').status == 200


ADVISOR = {"type": "advisor_20260301", "name": "advisor", "model": "claude-opus"}
PAINTER = {"type": "image_generation", "model": "gpt-image"}
AUTHOR = {"type": "image_generation", "svg": {"model": "gpt-image"}}
NAMED = [
    ("/v1/messages", {"tools": [{"name": "f", "input_schema": {"model": "x"}}, ADVISOR]}),
    ("/v1/messages", {"fallbacks": [{"model": "m"}, {"model": "claude-opus"}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [
        {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": ADVISOR}}]}]}),
    ("/v1/messages/count_tokens", {"tools": [ADVISOR]}),
    ("/v1/responses", {"tools": [PAINTER]}),
    ("/v1/responses", {"tools": [AUTHOR]}),
    ("/v1/responses", {"input": [{"type": "tool_search_output", "tools": [PAINTER]}]}),
    ("/v1/responses", {"tools": [{"type": "openrouter:fusion", "parameters": {"analysis_models": ["m", "gpt-image"]}}]}),
    (CHAT, {"tools": [{"type": "openrouter:advisor", "parameters": {"model": "claude-opus"}}]}),
    (CHAT, {"plugins": [{"id": "fusion", "analysis_models": ["claude-opus"]}]}),
    ("/v1/images/generations", {"svg": {"model": "gpt-image"}}),
    ("/v1/fine_tuning/jobs", {"method": {"reinforcement": {"grader": {"model": "claude-opus"}}}}),
    (CHAT, {"tools": [{"type": "openrouter:advisor", "parameters": {"model": "m", "advisors": [
        {"name": "a", "model": "claude-opus"}]}}]}),
    (CHAT, {"tools": [{"type": "openrouter:subagent", "parameters": {"model": "m", "tools": [
        {"type": "openrouter:image_generation", "parameters": {"model": "gpt-image"}}]}}]}),
    (CHAT, {"tools": [{"type": "openrouter:advisor", "parameters": {"model": "~claude-opus"}}]}),
]  # fmt: skip
CHOSEN = [
    ("/v1/messages", {"fallbacks": "default"}),
    ("/v1/messages", {"fallbacks": ["claude-opus"]}),
    ("/v1/messages", {"fallbacks": {"model": "claude-opus"}}),
    ("/v1/messages", {"models": ["claude-opus"]}),
    ("/v1/responses", {"tools": [{"type": "image_generation"}]}),
    (CHAT, {"tools": [{"type": "openrouter:image_generation"}]}),
    (CHAT, {"fallbacks": ["claude-opus"]}),
    (CHAT, {"tools": [{"type": "openrouter:advisor", "parameters": {"model": None}}]}),
    (CHAT, {"tools": [{"type": "openrouter:fusion", "parameters": {"model": "m"}}]}),
    (CHAT, {"tools": [{"type": "openrouter:fusion", "parameters": {"analysis_models": []}}]}),
    (CHAT, {"plugins": [{"id": "fusion"}]}),
    (CHAT, {"preset": "boss"}),
]
INNER = [*NAMED, *CHOSEN]
RESTRICTED: list[tuple[Any, Any]] = [
    (lambda app: ModelAccess(app, ["m"]), None),
    (lambda app: ModelAccess(app, ["*"], deny=["*opus*", "*/gpt-image"]), None),
    (lambda app: KeyAuth(app, Keys("m")), None),
    (lambda app: app, ["m"]),
]


@pytest.mark.parametrize(("path", "fields"), INNER)
@pytest.mark.parametrize(("layer", "listed"), RESTRICTED)
def test_a_model_that_the_provider_asks_by_itself_is_judged(
    layer: Any, listed: Any, path: str, fields: Any
) -> None:
    """An advisor, a fallback, a tool's: else one that is forbidden answers through one that is not."""
    with raw_provider(answering(OK, keep=True)) as upstream:
        dialect = "anthropic" if path.startswith("/v1/messages") else "openai"
        provider = Provider("p", base_url=upstream.url, dialect=dialect, models=listed)
        app = layer(UpstreamForwarder(upstream=provider))
        assert call(app, path, body=chat("m"), HTTP_X_API_KEY="t").status == 200
        answer = call(app, path, body=chat("m", **fields), HTTP_X_API_KEY="t")
        if listed and (path, fields) in CHOSEN:
            assert answer.status == 200  # a list is there to route by, and names are in it
            return
        assert answer.code == ("not_found" if listed else "model_not_allowed")
        assert len(upstream.requests) == 1


@pytest.mark.parametrize(("path", "fields"), INNER)
def test_the_models_that_a_provider_asks_are_judged_without_a_forwarder(
    path: str, fields: Any
) -> None:
    """In front of an app of one's own too, and they pass where all of them are allowed."""
    assert call(ModelAccess(Inner(), ["m"]), path, body=chat("m", **fields)).status == 403
    assert call(ModelAccess(Inner(), ["*"]), path, body=chat("m", **fields)).status == 200


@pytest.mark.parametrize(
    ("allow", "deny", "status"),
    [(["anthropic/*"], [], 200), (["claude-*"], [], 403), (None, ["*-preview"], 403)],
)
def test_a_fallback_of_the_providers_choice(allow: Any, deny: Any, status: int) -> None:
    """It passes where all of the provider's models may be asked, and nowhere else."""
    with raw_provider(answering(OK, keep=True)) as upstream:
        provider = Provider("anthropic", base_url=upstream.url, api_keys=["k"])
        app = ModelAccess(UpstreamForwarder(upstream=provider), allow, deny=deny)
        body = chat("claude-x", fallbacks="default")
        assert call(app, "/v1/messages", body=body).status == status


def test_the_requests_of_a_batch_are_judged() -> None:
    """MOD: `paths` opens Claude's batches, and each model in one has to be allowed, its tools' too."""
    app = ModelAccess(Inner(), ["m"], paths=["/v1/messages/batches"])

    def asked(*params: Any) -> Any:
        requests = [{"custom_id": "a", "params": {"model": "m", **one}} for one in params]
        return call(app, "/v1/messages/batches", body=json.dumps({"requests": requests}).encode())

    assert asked({}, {"max_tokens": 5}).status == 200
    assert asked({}, {"model": "claude-opus"}).code == "model_not_allowed"
    assert asked({}, {"tools": [ADVISOR]}).code == "model_not_allowed"
    assert asked({"fallbacks": "default"}).code == "model_not_allowed"


@pytest.mark.parametrize(
    "tool", [{"Model": "claude-opus"}, {"model": "m", "MODEL": "claude-opus"}, {"model": 7}]
)
def test_a_tools_model_that_readers_take_differently_is_refused(tool: Any) -> None:
    """As the one of the whole request is."""
    answer = call(ModelAccess(Inner(), ["m"]), "/v1/messages", body=chat("m", tools=[tool]))
    assert (answer.status, answer.code) == (400, "invalid_request")


@pytest.mark.parametrize("name", ["Tools", "FALLBACKS"])
def test_a_place_that_readers_spell_differently_is_refused(name: str) -> None:
    """Some take `Tools` for `tools`."""
    answer = call(ModelAccess(Inner(), ["m"]), "/v1/messages", body=chat("m", **{name: []}))
    assert (answer.status, answer.code) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/agents", {"model": {"id": "claude-opus", "speed": "fast"}}),
        ("/v1/agents/a", {"multiagent": {"advisor": {"type": "enabled", "model": "claude-opus"}}}),
        ("/v1/sessions", {"agent": {"id": "a", "model": "claude-opus"}}),
        ("/v1/dreams", {"model": "claude-opus"}),
        ("/v1/evals/e/runs", {"data_source": {"type": "responses", "model": "o1"}}),
        ("/v1/evals", {"testing_criteria": [{"type": "score_model", "model": "o1"}]}),
        ("/v1/fine_tuning/alpha/graders/run", {"grader": {"type": "multi", "graders": {"a": {"model": "o1"}}}}),
        ("/v1/realtime/client_secrets", {"session": {"type": "realtime", "model": "gpt-realtime"}}),
        ("/v1/realtime/calls/c/accept", {"audio": {"input": {"transcription": {"model": "whisper"}}}}),
        ("/v1/live/sessions", {"delegation": {"responses": {"model": "o1"}}}),
        ("/v1/decisions", {"model": "o1"}),
        ("/v1beta/decisions", {"model": "gemini-pro"}),
        ("/v1beta/cachedContents", {"model": "models/gemini-pro"}),
        ("/v1beta/interactions", {"agent": "mender", "agent_config": {"model": "gemini-pro"}}),
    ],
)  # fmt: skip
def test_what_paths_opens_is_judged_by_all_models_in_its_body(path: str, fields: Any) -> None:
    """`paths` opens what names no model, however deep one stands."""
    headers = {"HTTP_ANTHROPIC_VERSION": "2023-06-01"} if path[4] in "asd" else {}
    if path == "/v1/decisions":
        headers = {}
    app = ModelAccess(Inner(), ["m"], paths=[path])
    answer = call(app, path, body=json.dumps(fields).encode(), **headers)
    assert answer.code == "model_not_allowed"
    own = {
        "metadata": {"model": "x"},
        "item": {"model": "x"},
        "tools": [{"parameters": {"model": "x"}}],
    }
    named = {"model": "m"} if path.endswith("decisions") else {}
    assert call(app, path, body=json.dumps({**named, **own}).encode(), **headers).status == 200


def test_a_form_names_the_model_of_its_svg_too() -> None:
    """As the SDK sends it: `svg[model]`."""
    parts = {"model": "m", "prompt": "x", "svg[model]": "gpt-6"}
    body = "".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in parts.items()
    )
    data = f"{body}--b--\r\n".encode()
    kind = {"CONTENT_TYPE": "multipart/form-data; boundary=b"}
    for allow, status in ((["m"], 403), (["m", "gpt-6"], 200)):
        answer = call(ModelAccess(Inner(), allow), "/v1/images/edits", body=data, **kind)
        assert answer.status == status


@pytest.mark.parametrize("path", [CHAT, "/v1beta/openai/chat/completions", "/v1beta/interactions"])
def test_googles_own_names_are_the_same_models(path: str) -> None:
    """`models/gemini-pro` is `gemini-pro`: for rules, limits, and the provider's own list."""
    with raw_provider(answering(OK, keep=True)) as upstream:
        google = Provider("google", base_url=upstream.url, api_keys=["k"], models=["gemini-pro"])
        forwarder = UpstreamForwarder(upstream=google)
        for allow, deny, status in (
            (["gemini-pro"], [], 200),
            (["google/*"], ["google/gemini-pro"], 403),
            (None, ["gemini-pro*"], 403),
        ):
            app = ModelAccess(forwarder, allow, deny=deny)
            for name in ("gemini-pro", "models/gemini-pro"):
                answer = call(app, path, body=chat(name))
                assert (answer.status, name) == (status, name)
        assert json.loads(upstream.requests[-1].body)["model"] == "models/gemini-pro"
    for app in (
        ModelAccess(Inner(), ["*"], deny=["google/gemini-pro"]),
        RateLimiter(Inner(), "1 tokens/day for google/gemini-pro", by="global"),
    ):
        assert call(app, path, body=chat("models/gemini-pro")).status in (403, 400)


def test_too_many_models_are_refused() -> None:
    """Each has to be judged and priced."""
    tools = [{"model": f"m{n}"} for n in range(21)]
    for app in (ModelAccess(Inner(), ["*"]), RateLimiter(Inner(), "1 usd/day", by="global")):
        answer = call(app, "/v1/messages", body=chat("m", tools=tools))
        assert answer.code == "invalid_request"


@pytest.mark.parametrize(("owner", "status"), [("anthropic", 403), ("openai", 200)])
def test_a_fallback_of_the_providers_choice_is_none_of_anothers_models(
    owner: str, status: int
) -> None:
    """What is denied of another provider's cannot be what it chooses."""
    with raw_provider(answering(OK, keep=True)) as upstream:
        provider = Provider("anthropic", base_url=upstream.url, api_keys=["k"])
        app = ModelAccess(UpstreamForwarder(upstream=provider), None, deny=[f"{owner}/m-1"])
        body = chat("claude-x", fallbacks="default")
        assert call(app, "/v1/messages", body=body).status == status


def test_a_model_that_is_asked_is_most_likely_of_the_same_provider() -> None:
    """Without a forwarder within: the advisor of `anthropic/claude-x` is Anthropic's too."""
    app = ModelAccess(Inner(), ["anthropic/*"])
    for fields in ({"tools": [ADVISOR]}, {"fallbacks": "default"}):
        assert call(app, "/v1/messages", body=chat("anthropic/claude-x", **fields)).status == 200


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"fallbacks": [], "plugins": None, "preset": None}),
        ("/v1/responses", {"fallbacks": False, "input": "models/x", "metadata": {"model": "x"}}),
        ("/v1/messages", {"models": None, "fallbacks": None}),
        ("/v1/messages", {"models": [], "fallbacks": []}),
        ("/v1/responses", {"input": [{"type": "mcp_list_tools", "tools": [
            {"name": "f", "model": "x", "input_schema": {"Model": {}}}]}]}),
        ("/v1/responses", {"tools": [{"type": "function", "name": "f", "model": "x",
            "parameters": {"type": "object", "model": {"type": "string"}, "Model": {}}}]}),
        ("/v1/responses", {"tools": [{"type": "web_search", "model": ""}]}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"model": "x"}}}]}),
        (CHAT, {"plugins": [{"id": "web"}, {"id": "file-parser", "pdf": {"engine": "x"}}]}),
    ],
)  # fmt: skip
def test_what_asks_no_model_is_no_model(path: str, fields: Any) -> None:
    """Empty members, schemas of one's own, prompts that speak of models."""
    assert call(ModelAccess(Inner(), ["m"]), path, body=chat("m", **fields)).status == 200
    limiter = RateLimiter(Inner(), "999999 tokens/min", by="global")
    assert call(limiter, path, body=chat("m", **fields)).status == 200


@pytest.mark.parametrize(
    ("allow", "deny", "status"),
    [
        (["openai/gpt-5*", "openai/gpt-image-*"], [], 200),
        (["openai/gpt-5*", "openai/gpt-image-1"], [], 403),
        (None, ["o1-pro"], 200),
        (None, ["gpt-image-1"], 403),
        (None, ["gpt-*-mini"], 403),
    ],
)
def test_who_makes_pictures_is_chosen_among_models_that_do(
    allow: Any, deny: Any, status: int
) -> None:
    """An `image_generation` tool without a model, as most send it."""
    with raw_provider(answering(OK, keep=True)) as upstream:
        provider = Provider("openai", base_url=upstream.url, api_keys=["k"])
        app = ModelAccess(UpstreamForwarder(upstream=provider), allow, deny=deny)
        body = chat("gpt-5.4", input="x", tools=[{"type": "image_generation"}])
        assert call(app, "/v1/responses", body=body).status == status


def test_a_model_that_is_an_object_stays_one() -> None:
    """An agent's, with its speed; a name in it that stands for another is changed alone."""
    model = {"id": "claude-x", "speed": "fast", "effort": "high"}
    version = {"HTTP_ANTHROPIC_VERSION": "2023-06-01"}
    with raw_provider(answering(OK, keep=True)) as upstream:
        provider = Provider("anthropic", base_url=upstream.url, api_keys=["k"])
        app = UpstreamForwarder(upstream=provider, aliases={"smart": "claude-y"})
        for name in ("claude-x", "smart"):
            body = json.dumps({"name": "a", "model": {**model, "id": name}}).encode()
            assert call(app, "/v1/agents", body=body, **version).status == 200
    first, second = (json.loads(request.body)["model"] for request in upstream.requests)
    assert first == model
    assert second == {**model, "id": "claude-y"}


def test_an_alias_is_judged_as_what_it_stands_for_where_models_stand_deep() -> None:
    """The model that the request is for is not judged once more as it is spelt."""
    with raw_provider(answering(OK, keep=True)) as upstream:
        provider = Provider("openai", base_url=upstream.url, api_keys=["k"])
        forwarder = UpstreamForwarder(upstream=provider, aliases={"base": "openai/gpt-4o-mini"})
        app = ModelAccess(forwarder, ["openai/gpt-4o-mini"])
        for name in ("base", "openai:gpt-4o-mini", "openai/gpt-4o-mini"):
            body = json.dumps({"model": name, "training_file": "f"}).encode()
            assert call(app, "/v1/fine_tuning/jobs", body=body).status == 200


@pytest.mark.parametrize(
    "path",
    ["/v1/realtime/calls", "/v1/realtime/calls/c/hangup", "/v1/fine_tuning/jobs/j/cancel",
     "/v1/realtime/client_secrets", "/v1/evals"],
)  # fmt: skip
def test_what_has_no_body_names_no_model(path: str) -> None:
    """With rules, with a provider that serves only some, or with neither."""
    with raw_provider(answering(OK, keep=True)) as upstream:
        for models in (["gpt-5"], None):
            provider = Provider("openai", base_url=upstream.url, api_keys=["k"], models=models)
            forwarder = UpstreamForwarder(upstream=provider)
            for app in (forwarder, ModelAccess(forwarder, ["m"], paths=[path])):
                assert call(app, path, body=b"").status == 200


def test_a_large_batch_of_small_talks_is_no_list_too_long() -> None:
    """4,001 requests of 25 messages; of requests there are 100,000 at most."""
    talk = [{"role": "user", "content": [{"type": "text", "text": "x"}]}] * 25
    requests = [{"custom_id": "a", "params": {"model": "m", "messages": talk}}] * 4001
    app = ModelAccess(Inner(), ["m"], paths=["/v1/messages/batches"])
    body = json.dumps({"requests": requests}).encode()
    assert call(app, "/v1/messages/batches", body=body).status == 200
    body = json.dumps({"requests": [{}] * 100_001}).encode()
    assert call(app, "/v1/messages/batches", body=body).code == "invalid_request"


@pytest.mark.parametrize(
    ("rules", "name", "status"),
    [
        ({"deny": ["models/gemini-pro"]}, "models/gemini-pro", 403),
        ({"deny": ["google/models/gemini-pro"]}, "gemini-pro", 403),
        ({"allow": ["models/gemini-pro"]}, "models/gemini-pro", 200),
        ({"allow": ["google/models/gemini-*"]}, "gemini-pro", 200),
    ],
)
def test_rules_may_be_spelt_as_google_does(rules: Any, name: str, status: int) -> None:
    """As in the list that it tells."""
    with raw_provider(answering(OK, keep=True)) as upstream:
        google = Provider(
            "google", base_url=upstream.url, api_keys=["k"], models=["models/gemini-pro"]
        )
        limited = RateLimiter(
            UpstreamForwarder(upstream=google), "1/min for google/models/gemini-pro", by="global"
        )
        app = ModelAccess(limited, **{"allow": None, **rules})
        assert call(app, CHAT, body=chat(name)).status == status
        if status == 200:
            assert call(app, CHAT, body=chat(name)).status == 429


def test_a_path_of_ones_own_server_is_no_name_of_googles() -> None:
    """A vLLM serves `models/llama` from that directory."""
    with raw_provider(answering(OK, keep=True)) as upstream:
        vllm = Provider("vllm", base_url=upstream.url)
        for rules, status in (({"allow": ["vllm/llama"]}, 403), ({"deny": ["vllm/llama"]}, 200)):
            app = ModelAccess(UpstreamForwarder(upstream=vllm), **{"allow": None, **rules})
            assert call(app, CHAT, body=chat("models/llama")).status == status
        assert json.loads(upstream.requests[-1].body)["model"] == "models/llama"


def test_tools_of_ones_own_pass() -> None:
    """What is no model's place is none of its affair: a schema that has a model, an odd list."""
    schema = {"type": "object", "properties": {"model": {"type": "string"}}}
    tools = [{"name": "f", "input_schema": schema}, "odd", None]
    for path in ("/v1/messages", "/v1/responses", CHAT):
        for body in (chat("m", tools=tools, input="text"), chat("m", tools="odd", fallbacks=None)):
            assert call(ModelAccess(Inner(), ["m"]), path, body=body).status == 200


# --- bounds


BATCH = "/v1beta/models/gpt-4o:batchGenerateContent"


def claude_batch(*tokens: int) -> dict[str, Any]:
    return {"requests": [{"custom_id": "a", "params": {"max_tokens": n}} for n in tokens]}


def gemini_batch(*configs: Any, model: str | None = None) -> dict[str, Any]:
    """Requests in a batch, each with its generationConfig, or without any."""
    requests = [
        {"request": {} if one is None else {"generationConfig": one}, "metadata": {"key": "k"}}
        for one in configs
    ]
    if model is not None:
        requests[-1]["request"]["model"] = model
    return {"batch": {"inputConfig": {"requests": {"requests": requests}}}}


CAPPED = [
    (CHAT, {}, {"max_tokens": 100}),
    (CHAT, {"max_tokens": 50}, {"max_tokens": 50}),
    (CHAT, {"max_tokens": 500}, {"max_tokens": 100}),
    (CHAT, {"max_tokens": 500, "max_completion_tokens": 700},
     {"max_tokens": 100, "max_completion_tokens": 100}),
    (CHAT, {"max_tokens": 50, "max_completion_tokens": 700},
     {"max_tokens": 50, "max_completion_tokens": 100}),
    (CHAT, {"n": 4}, {"n": 4, "max_tokens": 25}),
    ("/v1/responses", {"max_output_tokens": 900}, {"max_output_tokens": 100}),
    ("/v1/messages", {"max_tokens": 900}, {"max_tokens": 100}),
    ("/v1/messages", {"max_tokens": 50, "fallbacks": [{"model": "m"}, {"max_tokens": 900}]},
     {"max_tokens": 50, "fallbacks": [{"model": "m"}, {"max_tokens": 100}]}),
    (GEMINI, {"generationConfig": {"maxOutputTokens": 900, "topK": 1}},
     {"generationConfig": {"maxOutputTokens": 100, "topK": 1}}),
    (GEMINI, {}, {"generationConfig": {"maxOutputTokens": 100}}),
    ("/v1beta/interactions", {}, {"generation_config": {"max_output_tokens": 100}}),
    ("/v1beta/interactions", {"generation_config": {"max_output_tokens": 900}},
     {"generation_config": {"max_output_tokens": 100}}),
    ("/v1/embeddings", {"input": "x"}, {"input": "x"}),
    ("/v1/messages/batches", claude_batch(5000, 20, 140), claude_batch(100, 20, 100)),
    (BATCH, gemini_batch({"maxOutputTokens": 900}, {"topK": 1}, {"maxOutputTokens": 9}),
     gemini_batch({"maxOutputTokens": 100}, {"maxOutputTokens": 100, "topK": 1}, {"maxOutputTokens": 9})),
    (BATCH, gemini_batch({"candidateCount": 3}, None), gemini_batch(
        {"candidateCount": 3, "maxOutputTokens": 33}, {"maxOutputTokens": 33})),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "wanted"), CAPPED)
def test_the_output_is_bounded(path: str, fields: Any, wanted: Any) -> None:
    """A cap is put in where there is none and lowered where it is higher, for all answers together."""
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    body = json.dumps({"model": "gpt-4o", **fields}).encode()
    assert call(ModelAccess(app, max_output_tokens=100), path, body=body).status == 200
    assert seen == [{"model": "gpt-4o", **wanted}]


@pytest.mark.parametrize(
    "model", ["o4-mini", "ft:o4-mini-2025-04-16:org::abc", "ft:gpt-5-mini:o::a"]
)
def test_a_reasoning_model_gets_the_cap_that_it_takes(model: str) -> None:
    """Fine-tuned ones too."""
    inner = Inner()
    call(ModelAccess(inner, max_output_tokens=100), CHAT, body=chat(model))
    body = json.loads(inner.environs[0]["aigw.body"].read())
    assert body["max_completion_tokens"] == 100


@pytest.mark.parametrize(
    "path",
    ["/v1/images/edits", "/v1/threads/runs", "/v1/threads/t/runs", "/v1/assistants",
     "/v1/fine_tuning/jobs"],
)  # fmt: skip
def test_a_path_that_may_name_a_model_is_judged_by_it(path: str) -> None:
    """In JSON as in a form, though `paths` lists it: it needs none, but one that it names counts."""
    app = ModelAccess(Inner(), ["gpt-4o"], paths=[path])
    assert call(app, path, body=b"{}").status == 200
    assert call(app, path, body=b'{"model": "gpt-4o"}').status == 200
    assert call(app, path, body=b'{"model": "gpt-evil"}').code == "model_not_allowed"


def test_a_batch_stays_with_the_model_of_its_path() -> None:
    """What a request in it names for itself was judged by nobody."""
    app = ModelAccess(Inner(), ["gpt-4o"], max_output_tokens=100)
    for model in ("gpt-4o", "models/gpt-4o"):
        body = json.dumps(gemini_batch({}, model=model)).encode()
        assert call(app, BATCH, body=body).status == 200
    answer = call(app, BATCH, body=json.dumps(gemini_batch({}, model="models/o1")).encode())
    assert (answer.status, answer.code) == (400, "invalid_request")


def test_more_answers_than_tokens_are_refused() -> None:
    """What could not even be one token each."""
    answer = call(ModelAccess(Inner(), max_output_tokens=3), CHAT, body=chat(n=4))
    assert (answer.status, answer.code) == (400, "invalid_request")


def test_a_larger_cap_is_refused_on_demand() -> None:
    """With `lower_output=False` nothing that the client asks for is changed; what is absent is put."""
    inner = Inner()
    app = ModelAccess(inner, max_output_tokens=100, lower_output=False)
    answer = call(app, CHAT, body=chat(n=2, max_tokens=51))
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert answer.json["error"]["param"] == "max_tokens"
    assert call(app, CHAT, body=chat(n=2, max_tokens=50)).status == 200
    assert call(app, CHAT, body=chat()).status == 200
    assert json.loads(inner.environs[-1]["wsgi.input"].getvalue())["max_tokens"] == 100
    limited = RateLimiter(app, "100000 tokens/min")  # which puts in a larger one of its own
    assert call(limited, CHAT, body=chat()).status == 200


def test_the_caps_of_fallbacks_are_no_caps_of_the_request() -> None:
    """Without one of its own it gets one, and in a batch theirs are lowered too."""
    fallback = {"model": "m", "max_tokens": 9000}
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    bounded = ModelAccess(app, max_output_tokens=2000)
    call(bounded, "/v1/messages", body=chat("m", fallbacks=[{"model": "m", "max_tokens": 1}]))
    assert (seen[0]["max_tokens"], seen[0]["fallbacks"][0]["max_tokens"]) == (2000, 1)
    params = {"model": "m", "max_tokens": 5, "fallbacks": [fallback]}
    body = json.dumps({"requests": [{"custom_id": "a", "params": params}]}).encode()
    call(bounded, "/v1/messages/batches", body=body)
    assert seen[1]["requests"][0]["params"]["fallbacks"][0]["max_tokens"] == 2000


def test_claude_may_be_asked_for_no_answer() -> None:
    """A cap of 0 fills the cache of prompts; elsewhere it is none."""
    for app in (ModelAccess(Inner(), max_output_tokens=9), RateLimiter(Inner(), "9999 tokens/s")):
        assert call(app, "/v1/messages", body=chat("m", max_tokens=0)).status == 200
        assert call(app, CHAT, body=chat("m", max_tokens=0)).code == "invalid_request"


def test_an_agent_gets_no_cap_of_an_answer() -> None:
    """Google's agents take a bound of all they use, and no `generation_config`."""
    inner = Inner()
    app = ModelAccess(inner, max_output_tokens=100)
    for config in ({}, {"agent_config": {"type": "a", "max_total_tokens": 9000}}):
        body = json.dumps({"agent": "a", "input": "x", **config}).encode()
        assert call(app, "/v1beta/interactions", body=body).status == 200
    bodies = [json.loads(environ["aigw.body"].read()) for environ in inner.environs]
    assert bodies[0] == {"agent": "a", "input": "x"}
    assert bodies[1]["agent_config"]["max_total_tokens"] == 100


def test_tools_in_between_may_be_thought_about_for_longer() -> None:
    """Where the client's own budget is larger than its cap, that is no fault of ours."""
    thinking = {"type": "enabled", "budget_tokens": 9000}
    app = ModelAccess(Inner(), max_output_tokens=2000)
    body = chat("claude-x", max_tokens=4000, thinking=thinking)
    assert call(app, "/v1/messages", body=body).status == 200


def test_a_batch_is_not_lowered_below_what_is_thought_with() -> None:
    """Any request in it."""
    thinking = {"type": "enabled", "budget_tokens": 8000}
    params = [{"max_tokens": 5}, {"max_tokens": 8500, "thinking": thinking}]
    body = json.dumps({"requests": [{"params": one} for one in params]}).encode()
    app = ModelAccess(Inner(), max_output_tokens=2000)
    assert call(app, "/v1/messages/batches", body=body).code == "invalid_request"


@pytest.mark.parametrize(
    ("most", "thought", "status"), [(2000, 1999, 200), (2000, 2000, 400), (9000, 8000, 200)]
)
def test_a_cap_is_not_lowered_below_what_is_thought_with(
    most: int, thought: int, status: int
) -> None:
    """Claude would refuse that with words about a cap that the client did not send."""
    thinking = {"type": "enabled", "budget_tokens": thought}
    body = chat("claude-x", max_tokens=8500, thinking=thinking)
    answer = call(ModelAccess(Inner(), max_output_tokens=most), "/v1/messages", body=body)
    assert answer.status == status


def test_a_prompt_that_is_too_long_is_refused() -> None:
    """413, estimated by the body's bytes."""
    app = ModelAccess(Inner(), max_input_tokens=100)
    assert call(app, CHAT, body=chat(prompt="x" * 300)).status == 200
    answer = call(app, CHAT, body=chat(prompt="x" * 400))
    assert (answer.status, answer.code) == (413, "input_tokens_exceeded")


def test_a_report_changes_nothing() -> None:
    """With `enforce=False` neither a refusal nor a cap."""
    inner = Inner()
    app = ModelAccess(inner, ["o1"], max_output_tokens=5, enforce=False)
    body = chat(max_tokens=50)
    answer = call(app, CHAT, body=body)
    assert answer.status == 200
    assert answer.environ["aigw.decisions"][0].code == "model_not_allowed"
    assert inner.environs[0]["CONTENT_LENGTH"] == str(len(body))


def test_judging_changes_nothing() -> None:
    """`judge` tells what would be, and leaves the environ as it is."""
    app = ModelAccess(Inner(), ["o1"], max_output_tokens=5)
    environ = make_environ(CHAT, body=chat("o1"))
    length = environ["CONTENT_LENGTH"]
    assert app.judge(environ) is None
    assert environ["CONTENT_LENGTH"] == length
    assert "aigw.model_rules" not in environ


@pytest.mark.parametrize(
    ("options", "named"),
    [({"allow": 5}, "allow"), ({"allow": ["a b"]}, "allow"), ({"deny": [""]}, "deny"),
     ({"paths": ["files"]}, "paths"), ({"max_input_tokens": 0}, "max_input_tokens"),
     ({"max_output_tokens": "5"}, "max_output_tokens"), ({"max_output_tokens": True}, "max_output_tokens")],
)  # fmt: skip
def test_wrong_options_are_named(options: Any, named: str) -> None:
    """A wrong option is a ValueError when it is built."""
    with pytest.raises(ValueError, match=f"^{named}: "):
        ModelAccess(Inner(), **options)


def test_a_requests_memory_is_free_when_it_is_over() -> None:
    """Nothing that layers leave in the environ holds the environ: a body waits for no collector."""
    prices = {"openai/gpt-4o": (1, 1)}
    with raw_provider(answering(OK, keep=True)) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=["k"])
        app = stack(
            UpstreamForwarder(upstream=upstream),
            partial(AccessLog, destination=io.StringIO()),
            partial(KeyAuth, keys=Keys("*")),
            partial(ModelAccess, allow=["*"], max_output_tokens=50),
            partial(RateLimiter, limits=["5 usd/day", "9000 tokens/min"], prices=prices),
        )
        gc.collect()
        gc.disable()
        try:
            environ = make_environ(CHAT, body=chat(), HTTP_X_API_KEY="t")
            iterable = app(environ, lambda *args: lambda data: None)
            list(iterable)
            iterable.close()
            body = weakref.ref(environ["aigw.body"])
            del environ, iterable
            assert body() is None
        finally:
            gc.enable()
