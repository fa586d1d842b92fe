"""`ai-gateway`: who may use it, which models it serves, and what it leaves behind."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from aigw_middleware import TrafficPolicy, Usage, open_store
from aigw_middleware.environ import TRIED
from aigw_middleware.wsgi import own_paths

from ..support import CHAT, Inner, RawProvider, answering, call, raw_provider
from .support import action, policy, rule

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
ERROR = b"HTTP/1.1 500 X\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nno"
TOKEN = "gateway-key-0123456789"


def chat(model: str | None = "gpt-4o", **fields: Any) -> bytes:
    named = {} if model is None else {"model": model}
    return json.dumps({**named, "messages": [], **fields}).encode()


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def providers() -> Iterator[tuple[RawProvider, RawProvider]]:
    with ExitStack() as opened:
        first = opened.enter_context(raw_provider(answering(OK, keep=True)))
        second = opened.enter_context(raw_provider(answering(OK, keep=True)))
        yield first, second


def gateway(*entries: dict[str, Any], **config: Any) -> dict[str, Any]:
    options = {
        "providers": list(entries),
        "only_allow_configured_providers": True,
        "authentication": "none",
        **config,
    }
    return action("ai-gateway", **options)


def entry(id_: str, provider: RawProvider, *models: Any, **fields: Any) -> dict[str, Any]:
    listed = [model if isinstance(model, dict) else {"id": model} for model in models]
    found = {"id": id_, "base_url": f"{provider.url}/v1", "api_keys": [{"value": "sk-p"}]}
    return {**found, **({"models": listed} if listed else {}), **fields}


# --- who may use it


def test_a_gateway_key_is_required(providers: Any, sqlite_url: str) -> None:
    """POL-6: with no word on keys a request without one is refused, and nothing passes through."""
    store = open_store(sqlite_url)
    _, token = store.keys.create()
    config = gateway(entry("openai", providers[0]))
    del config["config"]["authentication"]
    inner = Inner()
    app = policy(config, app=inner, store=store)
    assert call(app, CHAT, body=chat()).code == "invalid_api_key"
    assert call(app, "/elsewhere").code == "invalid_api_key"
    assert call(app, CHAT, body=chat(), HTTP_AUTHORIZATION="Bearer sk-proj-own").status == 401
    assert call(app, CHAT, body=chat(), HTTP_AUTHORIZATION=f"Bearer {token}").status == 200
    assert call(app, "/elsewhere", HTTP_X_API_KEY=token).body == b"inner"
    assert len(providers[0].requests) == 1
    assert providers[0].requests[0].headers["Authorization"] == "Bearer sk-p"
    without_store = policy(config)
    assert call(without_store, CHAT, body=chat(), HTTP_X_API_KEY=token).code == "invalid_api_key"


def test_a_key_that_was_shown_before_is_enough(providers: Any) -> None:
    """Behind `api-key-auth` no second key is asked for."""
    config = gateway(entry("openai", providers[0]))
    del config["config"]["authentication"]
    app = policy(action("api-key-auth", keys={"ci": TOKEN}), config)
    assert call(app, CHAT, body=chat()).status == 401
    assert call(app, CHAT, body=chat(), HTTP_X_API_KEY=TOKEN).status == 200


def test_a_document_may_guard_by_itself(providers: Any, monkeypatch: Any) -> None:
    """`authentication: none`: the published guard with a shared secret."""
    monkeypatch.setenv("AIGW_VAULT_GATEWAY_AUTH_ACCESS_TOKEN", "s3cret")
    guard = rule(
        action(
            "custom-response",
            status_code=401,
            headers={"content-type": "application/json"},
            body='{"error": {"message": "no", "type": "authentication_error"}}',
        ),
        when=[
            "req.headers['authorization'][0] != 'Bearer ' + "
            "secrets.get('gateway-auth', 'access-token')"
        ],
    )
    app = policy(guard, gateway(entry("openai", providers[0])))
    assert call(app, CHAT, body=chat(), HTTP_AUTHORIZATION="Bearer s3cret").status == 200
    assert call(app, CHAT, body=chat(), HTTP_AUTHORIZATION="Bearer wrong").status == 401
    assert call(app, CHAT, body=chat()).code == "policy_error"
    assert "s3cret" not in repr(providers[0].requests[0].headers)


# --- models


def test_aliases_and_providers_before_a_name(providers: Any) -> None:
    """`id_aliases` of models and providers; `provider:model` and `provider/model`."""
    app = policy(
        gateway(
            entry("openai", providers[0], {"id": "gpt-4o", "id_aliases": ["fast"]}),
            entry("mine", providers[1], "llama-3", id_aliases=["my-ollama"]),
        )
    )
    for name in (
        "gpt-4o",
        "fast",
        "FAST",
        "openai:gpt-4o",
        "open-ai/gpt-4o",
        "openai/Fast",
        "unlisted",
    ):
        assert call(app, CHAT, body=chat(name)).environ["aigw.provider"] == "openai", name
    assert json.loads(providers[0].requests[5].body)["model"] == "gpt-4o"
    for name in ("llama-3", "mine:llama-3", "my-ollama/llama-3", "my-ollama:any/thing"):
        assert call(app, CHAT, body=chat(name)).environ["aigw.provider"] == "mine", name
    assert json.loads(providers[0].requests[1].body)["model"] == "gpt-4o"
    assert json.loads(providers[1].requests[-1].body)["model"] == "any/thing"


def test_only_configured_models(providers: Any) -> None:
    """403 `model_not_allowed` for any other, and for one that is disabled."""
    app = policy(
        gateway(
            entry("openai", providers[0], "gpt-4o", {"id": "old", "disabled": True}),
            entry("mine", providers[1], "llama-3"),
            only_allow_configured_models=True,
        )
    )
    for name in ("gpt-4o", "openai/gpt-4o", "llama-3"):
        assert call(app, CHAT, body=chat(name)).status == 200
    for name in ("gpt-5", "openai/gpt-5", "old", "mine/other"):
        assert call(app, CHAT, body=chat(name)).code == "model_not_allowed", name
        painted = chat("gpt-4o", input="x", tools=[{"type": "image_generation", "model": name}])
        assert call(app, "/v1/responses", body=painted).code == "model_not_allowed", name
    assert call(app, "/v1/files").code == "model_not_allowed"


def test_what_is_disabled(providers: Any) -> None:
    """A model, or a whole provider, also by its name in front."""
    app = policy(
        gateway(
            entry("openai", providers[0], {"id": "old", "disabled": True}),
            entry("groq", providers[1], disabled=True),
        )
    )
    assert call(app, CHAT, body=chat("old")).code == "model_not_allowed"
    assert call(app, CHAT, body=chat("groq/llama")).code == "model_not_allowed"
    assert call(app, CHAT, body=chat("new")).status == 200
    assert len(providers[1].requests) == 0


def test_a_model_of_the_providers_choice_may_be_a_disabled_one(providers: Any) -> None:
    """Claude's `"fallbacks": "default"`; of another provider's it cannot be one."""
    for owner, status in (("anthropic", 403), ("openai", 200)):
        entries = {
            "anthropic": entry("anthropic", providers[0]),
            "openai": entry("openai", providers[1]),
        }
        entries[owner]["models"] = [{"id": "old", "disabled": True}]
        app = policy(gateway(*entries.values()))
        body = chat("claude-new", max_tokens=9, fallbacks="default")
        assert call(app, "/v1/messages", body=body).status == status


def test_every_provider_with_a_key_is_served_unless_told_otherwise(
    providers: Any, monkeypatch: Any
) -> None:
    """`only_allow_configured_providers`: false, the default, serves those of the environment too."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{providers[1].url}/v1")
    mine = entry("mine", providers[0], "llama-3")
    is_open = policy(gateway(mine, only_allow_configured_providers=False))
    assert call(is_open, CHAT, body=chat("openai/gpt-4o")).status == 200
    assert providers[1].requests[0].headers["Authorization"] == "Bearer sk-env"
    closed = policy(gateway(mine))
    call(closed, CHAT, body=chat("openai/gpt-4o"))
    assert len(providers[1].requests) == 1
    all_of_them = policy(action("ai-gateway", authentication="none"))
    assert call(all_of_them, CHAT, body=chat("gpt-4o")).status == 200


def test_bounds_on_tokens(providers: Any) -> None:
    """413 for a prompt that is too long; the cap is lowered in the body."""
    app = policy(gateway(entry("openai", providers[0]), max_input_tokens=100, max_output_tokens=50))
    long = chat("gpt-4o", messages=[{"role": "user", "content": "x" * 1000}])
    assert call(app, CHAT, body=long).code == "input_tokens_exceeded"
    call(app, CHAT, body=chat("gpt-4o", max_tokens=500))
    assert json.loads(providers[0].requests[0].body)["max_tokens"] == 50


def test_the_largest_body(providers: Any) -> None:
    """413 for a larger one; ours."""
    body = chat("gpt-4o")
    for most, status in ((len(body), 200), (len(body) - 1, 413)):
        app = policy(gateway(entry("openai", providers[0]), max_body_bytes=most))
        assert call(app, CHAT, body=body).status == status


def test_models_that_a_client_lists(providers: Any) -> None:
    """`models` is asked through in order, and keys of one provider one after the other."""
    with raw_provider(answering(ERROR, keep=True)) as broken:
        app = policy(
            gateway(
                entry("bad", broken, "a", api_keys=[{"value": "k1"}, {"value": "k2"}]),
                entry("good", providers[0], "b"),
            )
        )
        answer = call(app, CHAT, body=chat("a", models=["b"]))
    assert answer.status == 200
    assert [attempt.model for attempt in answer.environ[TRIED]] == ["a", "a", "b"]
    assert [r.headers["Authorization"] for r in broken.requests] == ["Bearer k1", "Bearer k2"]


# --- strategies


def chosen(app: Any, model: str | None = None, **fields: Any) -> Any:
    answer = call(app, CHAT, body=chat(model, **fields))
    return answer.environ.get("aigw.model") if answer.status == 200 else answer.code


def models(*strategies: str, providers: Any) -> Any:
    return policy(
        gateway(
            entry("openai", providers[0], {"id": "small", "metadata": {"tier": "low"}}, "large"),
            entry("mine", providers[1], {"id": "llama", "metadata": {"tier": "low"}}),
            model_selection={"strategy": list(strategies)},
        )
    )


STRATEGIES = [
    (["ai.models.filter(m, m.id == 'large')"], None, "large"),
    (["ai.models.filter(m, m.provider_id == 'mine')"], None, "llama"),
    (["ai.models.filter(m, has(m.metadata.tier) && m.metadata.tier == 'low')"], None, "small"),
    (["ai.models.only(['openai:large'])"], None, "large"),
    (["ai.models.only(['mine/llama', 'nothing'])"], None, "llama"),
    (["ai.models.ignore(['small'])"], None, "large"),
    (["ai.models.onlyProviders(['mine'])"], None, "llama"),
    (["ai.models.ignoreProviders(['openai'])"], None, "llama"),
    (["ai.models.onlyProviders(['mine']).random()"], None, "llama"),
    (["ai.models.only(['nothing'])", "ai.models.only(['large'])"], None, "large"),
    (["ai.models[1]"], None, "large"),
    (["ai.models.filter(m, m.custom)"], None, "llama"),
    (["ai.models.only(['large'])"], "ngrok/auto", "large"),
    (["ai.models.filter(m, 'x-large' in req.headers ? m.id == 'large' : true)"], None, "small"),
    # What the client names a strategy may take away, and never add to.
    (["ai.models.only(['large'])"], "large", "large"),
    (["ai.models.only(['large'])"], "small", "model_not_allowed"),
    (["ai.models.filter(m, m.known)"], "openai/made-up", "model_not_allowed"),
    (["ai.models.filter(m, m.id.size() / 0 == 1)"], None, "policy_error"),
    (["ai.models.map(m, m.id)"], None, "policy_error"),
]


@pytest.mark.parametrize(("strategy", "model", "expected"), STRATEGIES)
def test_strategies(strategy: list[str], model: str | None, expected: str, providers: Any) -> None:
    """The plain forms: the first that yields models wins."""
    assert chosen(models(*strategy, providers=providers), model) == expected


def test_a_strategy_keeps_the_clients_order(providers: Any) -> None:
    """Of the models that the client lists it only takes away."""
    app = models("ai.models.ignore(['small'])", providers=providers)
    assert chosen(app, "small", models=["llama", "large"]) == "llama"


def test_without_a_strategy_no_model_means_the_first(providers: Any) -> None:
    """`ngrok/auto` and no model at all are the same; Gemini's and other paths are unaffected."""
    app = policy(gateway(entry("openai", providers[0], "one", "two")))
    assert chosen(app) == "one"
    assert chosen(app, "ngrok/auto") == "one"
    assert call(app, "/v1/models").status == 200
    no_list = policy(gateway(entry("openai", providers[0])))
    assert call(no_list, CHAT, body=chat(None)).code in ("not_found", "invalid_request")


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        ("ai.models.filter(m, m.metrics.global.error_rate.total < 0.1)", "metrics"),
        ("ai.models.sortBy('price')", "sortBy"),
        ("ai.models.randomize()", "randomize"),
        ("ai.models.underCost('input', 1.0)", "underCost"),
        ("ai.keys.filter(k, true)", "keys"),
        ("ai.models.inRegion('eu')", "inRegion"),
    ],
)
def test_other_strategies_are_refused_by_name(strategy: str, told: str, providers: Any) -> None:
    """Known to ngrok, not supported here."""
    with pytest.raises(ValueError, match=f'"?\\.?{told}"? is known to ngrok, not supported here'):
        models(strategy, providers=providers)


# --- what is sent, and what becomes of failures


def test_headers_and_parameters_are_added(providers: Any) -> None:
    """For the provider alone, with expressions; behind the client's own query."""
    app = policy(
        gateway(
            entry("openai", providers[0]),
            headers={"X-Team": "${req.headers['x-in'][0]}", "api-version": "2"},
            query_params={"v": "1", "m": "${req.method}"},
        )
    )
    query = "v=2&a=b&%76=3"  # what the document sets is not the client's to choose
    call(app, CHAT, body=chat(), QUERY_STRING=query, HTTP_X_IN="t", HTTP_X_TEAM="client's")
    request = providers[0].requests[0]
    assert request.line.split()[1] == "/v1/chat/completions?a=b&v=1&m=POST"
    assert (request.headers["X-Team"], request.headers["Api-Version"]) == ("t", "2")
    assert call(app, CHAT, body=chat()).code == "policy_error"


def test_a_slow_provider_is_left_after_its_time(providers: Any) -> None:
    """`per_request_timeout` bounds one attempt, `total_timeout` all of them."""

    def silent(connection: Any, request: Any) -> None:
        connection.recv(1)

    with raw_provider(silent) as slow:
        app = policy(gateway(entry("openai", slow), per_request_timeout="100ms"))
        assert call(app, CHAT, body=chat()).code == "upstream_timeout"
        app = policy(gateway(entry("openai", slow), total_timeout="100ms"))
        assert call(app, CHAT, body=chat()).code == "upstream_timeout"


def test_on_error_continue(providers: Any) -> None:
    """Where all have failed the next action answers, and knows why."""
    with raw_provider(answering(ERROR, keep=True)) as broken:
        rest = action(
            "custom-response",
            status_code=503,
            body="${actions.ngrok.ai_gateway.status} ${actions.ngrok.ai_gateway.error.code}",
        )
        app = policy(gateway(entry("openai", broken), on_error="continue"), rest)
        answer = call(app, CHAT, body=chat())
        assert (answer.status, answer.body) == (503, b"error 500")
        halted = policy(gateway(entry("openai", broken)), rest)
        assert call(halted, CHAT, body=chat()).status == 500
    working = policy(gateway(entry("openai", providers[0]), on_error="continue"), rest)
    assert call(working, CHAT, body=chat()).body == b"ok"


def test_continuing_with_nobody_behind_tells_what_the_providers_said() -> None:
    """As `aigw serve` has it: an outage is no 404, though rules stand between."""
    with raw_provider(answering(ERROR, keep=True)) as broken:
        config = gateway(entry("openai", broken), on_error="continue")
        app = policy(config, rule(action("log", metadata={})), app=own_paths)
        answer = call(app, CHAT, body=chat())
        assert (answer.status, answer.body) == (500, b"no")
        assert call(app, "/x").code == "not_found"


def test_what_answers_instead_is_not_booked_as_the_providers(sqlite_url: str) -> None:
    """A failed answer is over before the next one begins: its usage is its own."""
    store = open_store(sqlite_url)
    held = b"HTTP/1.1 500 X\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n"

    def slow(connection: Any, request: Any) -> None:
        connection.sendall(held + b"n")
        threading.Event().wait(0.1)
        connection.sendall(b"o")

    def app(environ: Any, start_response: Any) -> list[bytes]:
        environ["aigw.usage"] = Usage(1000, 500)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"mine"]

    with raw_provider(slow) as broken:
        provider = entry("openai", broken)
        config = gateway(provider, on_error="continue")
        assert call(policy(config, app=app, store=store), CHAT, body=chat()).body == b"mine"
    (row,) = store.usage.totals()
    assert (row["requests"], row["output_tokens"]) == (1, 0)


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_mistake_of_the_clients_is_not_continued_after(status: int) -> None:
    """What a provider says of the request itself is the answer; nobody has failed."""
    said = b"HTTP/1.1 %d X\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nno" % status
    with raw_provider(answering(said, keep=True)) as provider:
        app = policy(gateway(entry("openai", provider), on_error="continue"))
        assert call(app, CHAT, body=chat()).status == status


def test_the_list_of_models_is_what_the_strategies_leave(providers: Any) -> None:
    """What would be 403 to ask for is not listed; what several providers have is, where one may."""
    app = policy(
        gateway(
            entry("pa", providers[0], "a1", "both"),
            entry("pb", providers[1], "b1", "both"),
            model_selection={"strategy": ["ai.models.onlyProviders(['pb'])"]},
        )
    )
    listed = {one["id"] for one in call(app, "/v1/models").json["data"]}
    assert listed == {"b1", "pb/both"}
    assert call(app, CHAT, body=chat("a1")).code == "model_not_allowed"


def test_the_list_of_one_provider_is_its_own_to_tell_without_strategies() -> None:
    """Its answer passes as it came, an error too."""
    with raw_provider(answering(ERROR, keep=True)) as provider:
        answer = call(policy(gateway(entry("openai", provider))), "/v1/models")
    assert (answer.status, answer.body) == (500, b"no")


def test_a_model_that_is_disabled_goes_to_nobody_else(providers: Any) -> None:
    """A provider that never listed it is not asked for it; one that lists it is."""
    off = {"id": "m", "disabled": True}
    app = policy(gateway(entry("pa", providers[0], off), entry("pb", providers[1], "x")))
    assert call(app, CHAT, body=chat("m")).code == "model_not_allowed"
    app = policy(gateway(entry("pa", providers[0], off), entry("pb", providers[1], "m")))
    assert call(app, CHAT, body=chat("m")).environ["aigw.provider"] == "pb"


def test_what_it_leaves_behind(providers: Any) -> None:
    """`actions.ngrok.ai_gateway.status` for the rules of answers."""
    app = policy(
        gateway(entry("openai", providers[0], "gpt-4o"), only_allow_configured_models=True),
        answers=[
            rule(action("add-headers", headers={"X-S": "${actions.ngrok.ai_gateway.status}"}))
        ],
    )
    assert call(app, CHAT, body=chat()).headers["X-S"] == "success"
    assert call(app, CHAT, body=chat("no")).headers["X-S"] == "error"


def test_rules_over_models_outside_are_judged_within(providers: Any) -> None:
    """`restrict-models` before the gateway judges the model that is asked in the end."""
    config = gateway(entry("openai", providers[0], {"id": "gpt-4o", "id_aliases": ["fast"]}))
    app = policy(action("restrict-models", allow=["openai/gpt-4o"]), config)
    assert call(app, CHAT, body=chat("fast")).status == 200
    assert call(app, CHAT, body=chat("gpt-5")).code == "model_not_allowed"
    # Where only some requests come to the gateway the body's own name is judged.
    some = policy(
        action("restrict-models", allow=["openai/gpt-4o"]),
        rule(config, when=["req.method == 'POST'"]),
    )
    assert call(some, CHAT, body=chat("openai/gpt-4o")).status == 200
    assert call(some, CHAT, body=chat("gpt-5")).code == "model_not_allowed"


def test_the_store_has_the_keys_of_providers(providers: Any, sqlite_url: str) -> None:
    """Without `api_keys` those of the store are used, and secrets may stand there too."""
    store = open_store(sqlite_url, secret="0123456789abcdef")
    store.provider_keys.create(provider="openai", secret="sk-stored")
    store.provider_keys.create(provider="vault:team:token", secret="s3cret")
    plain = {"id": "openai", "base_url": f"{providers[0].url}/v1"}
    shown = {"X-T": "${secrets.get('team', 'token')}"}
    app = policy(gateway(plain, headers=shown), store=store)
    assert call(app, CHAT, body=chat()).status == 200
    request = providers[0].requests[0]
    assert (request.headers["Authorization"], request.headers["X-T"]) == (
        "Bearer sk-stored",
        "s3cret",
    )


def test_a_policy_knows_whether_it_answers() -> None:
    """`has_gateway`, for who would serve it alone."""
    assert not TrafficPolicy.parse('{"on_http_request": []}').has_gateway
    text = '{"on_http_request": [{"type": "ai-gateway", "config": {"providers": [%s]}}]}'
    mine = '{"id": "mine", "base_url": "http://127.0.0.1:9"}'
    assert TrafficPolicy.parse(text % mine).has_gateway
