"""Documents in use: `aigw serve POLICY`, exchanged under load, and the examples with a real SDK."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt as pyjwt
import openai
import pytest
import requests
from click.testing import CliRunner, Result

from aigw_middleware import TrafficPolicy, open_store
from aigw_middleware.cli.root import aigw
from aigw_middleware.policy.reloading import Reloading
from aigw_middleware.policy.schema import document_schema
from aigw_middleware.testing import StandInProvider, serving

from ..support import CHAT, Inner, RawRequest, call, in_child, raw_provider
from ..test_cli import clean_environment, free_port, gateway, wait_for
from ..workers.test_workers import STREAM
from .support import action, building, document, rule
from .test_actions import key_set, token
from .test_mistakes import MISTAKES

EXAMPLES = Path(__file__).parents[2] / "examples" / "policies"
BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}]}
PROVIDER_KEY = "sk-provider-0123456789"


# --- the examples


@contextmanager
def example(name: str, **options: Any) -> Iterator[tuple[openai.OpenAI, str]]:
    """Serve an example in front of a stand-in; yield a client without a key, and the URL."""
    with serving(StandInProvider(api_keys=[PROVIDER_KEY])) as upstream:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPENAI_BASE_URL", f"{upstream}/v1")
            patch.setenv("AIGW_VAULT_GATEWAY_OPENAI", PROVIDER_KEY)
            patch.setenv("AIGW_VAULT_GATEWAY_ACCESS_TOKEN", "shared-secret")
            patch.setenv("AIGW_VAULT_GATEWAY_TOKEN_ONE", "one")
            patch.setenv("AIGW_VAULT_GATEWAY_TOKEN_TWO", "two")
            text = (EXAMPLES / name).read_text()
            for before, after in options.pop("replaced", {}).items():
                assert before in text
                text = text.replace(before, after)
            inner = Inner(headers=[("X-Powered-By", "x")])
            app = TrafficPolicy.parse(text, **options)(inner)
        with (
            serving(app) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):
            yield client, url


def ask(client: openai.OpenAI, api_key: str, model: str = "gpt-4o", **options: Any) -> str:
    told = client.with_options(api_key=api_key).chat.completions.create(
        model=model, messages=[{"role": "user", "content": "hi"}], **options
    )
    return str(told.choices[0].message.content)


def test_the_shared_secret() -> None:
    """Whoever shows it is served, anybody else gets the document's own 401."""
    with example("shared-secret.yaml") as (client, _):
        assert ask(client, "shared-secret") == "You said: hi"
        with pytest.raises(openai.AuthenticationError, match="Invalid or missing access token"):
            ask(client, "another")


def test_the_rotating_tokens() -> None:
    """Each of them is good, and each has its own limit."""
    replaced = {"capacity: 100": "capacity: 2"}
    with example("rotating-tokens.yaml", replaced=replaced) as (client, url):
        assert ask(client, "one") == ask(client, "one") == "You said: hi"
        with pytest.raises(openai.RateLimitError):
            ask(client, "one")
        assert ask(client, "two") == "You said: hi"
        with pytest.raises(openai.AuthenticationError):
            ask(client, "three")
        assert requests.post(url + CHAT, json=BODY, timeout=30).status_code == 401


def test_the_gateway_keys(sqlite_url: str) -> None:
    """A key is asked for; other models than those listed are refused."""
    store = open_store(sqlite_url)
    _, key = store.keys.create()
    with example("gateway-keys.yaml", store=store) as (client, url):
        assert ask(client, key, "fast") == "You said: hi"
        with pytest.raises(openai.AuthenticationError):
            ask(client, "none")
        with pytest.raises(openai.PermissionDeniedError, match="not served"):
            ask(client, key, "gpt-5")
        names = [model.id for model in client.with_options(api_key=key).models.list()]
        assert names == ["gpt-4o", "gpt-4o-mini", "fast"]
        other = requests.get(f"{url}/x", headers={"x-api-key": key}, timeout=30)
        assert (other.status_code, "X-Powered-By" in other.headers) == (200, False)


def test_the_tokens_of_an_identity_provider() -> None:
    """A good JWT is served, a bad one is not."""
    with key_set() as keys:
        replaced = {
            "https://id.example.com/.well-known/jwks.json": keys,
            "value: ai-gateway\n": "value: gw\n",
        }
        with example("jwt.yaml", replaced=replaced) as (client, _):
            assert ask(client, token()) == "You said: hi"
            with pytest.raises(openai.AuthenticationError):
                ask(client, pyjwt.encode({"sub": "x"}, "k" * 32))


# --- serve, and reload


def served(path: Path, url: str, *rules: Any, **config: Any) -> None:
    """Write a document with rules before a gateway to the provider at `url`."""
    upstream = {"id": "openai", "base_url": f"{url}/v1", "api_keys": [{"value": "sk-p"}]}
    options = {
        "providers": [upstream],
        "only_allow_configured_providers": True,
        "authentication": "none",
        **config,
    }
    fresh = path.with_suffix(".new")
    fresh.write_text(document(*rules, action("ai-gateway", **options)))
    fresh.replace(path)


def test_serve_with_a_document(tmp_path: Path, sqlite_url: str) -> None:
    """The document is the gateway; `/healthz` needs no key; SIGHUP ends nothing."""
    path = tmp_path / "policy.json"
    with serving(StandInProvider(api_keys=["sk-p"])) as upstream:
        served(path, upstream, authentication="key")
        with gateway(str(path), "--workers", "2", AIGW_STORE=sqlite_url) as (url, process):
            _, key = open_store(sqlite_url).keys.create()
            head = {"x-api-key": key}
            assert requests.post(url + CHAT, json=BODY, headers=head, timeout=30).ok
            assert requests.post(url + CHAT, json=BODY, timeout=30).status_code == 401
            assert requests.get(f"{url}/other", headers=head, timeout=30).status_code == 404
            while len(workers := children(process.pid)) < 2:
                assert process.poll() is None  # they are begun one after the other
            process.send_signal(signal.SIGHUP)
            assert requests.post(url + CHAT, json=BODY, headers=head, timeout=30).ok
            assert children(process.pid) == workers


@pytest.mark.parametrize("server", ["gunicorn", "granian"])
def test_serve_shows_what_a_log_action_says(tmp_path: Path, sqlite_url: str, server: str) -> None:
    """One line of JSON on standard error, whichever the server."""
    path = tmp_path / "policy.json"
    served(path, "http://127.0.0.1:9", rule(action("log", metadata={"team": "search"})))
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "aigw_middleware", "serve", str(path), "--server", server,
            "--bind", f"127.0.0.1:{port}",
        ],
        env=clean_environment(AIGW_STORE=sqlite_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/healthz", process)
        assert requests.get(f"http://127.0.0.1:{port}/x", timeout=30).status_code == 404
    finally:
        process.terminate()
        output = process.communicate(timeout=30)[0].decode()
    assert output.count('aigw_middleware.policy {"team": "search"}') == 1


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_serve_refuses_a_document_that_answers_nothing(tmp_path: Path, sqlite_url: str) -> None:
    """Without `ai-gateway`, or with a mistake: exit 2, one line, no traceback, no partial start."""
    path = tmp_path / "policy.yaml"
    for text, told in (
        ("on_http_request: []\n", 'has no "ai-gateway" action: nothing would answer'),
        ("on_http_request:\n  - type: dny\n", "policy.yaml:2:11: on_http_request rule 1: there is"),
    ):
        path.write_text(text)
        result = CliRunner(env={"AIGW_STORE": sqlite_url}).invoke(aigw, ["serve", str(path)])
        assert (result.exit_code, told in result.output) == (2, True), result.output
        assert "Traceback" not in result.output


@pytest.mark.timeout(120)
def test_documents_are_exchanged_under_load(tmp_path: Path, sqlite_url: str) -> None:
    """Fifty changes, good and bad: no allowed request fails, no rule sets mix, no stream ends."""
    path = tmp_path / "policy.json"
    released = threading.Event()

    def provider(connection: socket.socket, request: RawRequest) -> bool:
        if b"stream" in request.body:
            connection.sendall(STREAM + b"9\r\ndata: 1\n\n\r\n")
            released.wait(60)
            connection.sendall(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
            return False
        # Two rules of one document leave the same number: never those of two.
        numbers = request.headers["X-One"], request.headers["X-Two"]
        body = json.dumps(numbers).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n")
        connection.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        return True

    def numbered(number: int) -> list[Any]:
        return [
            rule(action("set-vars", vars=[{"n": str(number)}])),
            rule(action("add-headers", headers={"X-One": "${vars.n}"})),
            rule(action("add-headers", headers={"X-Two": str(number)})),
        ]

    answers: list[tuple[int, str]] = []
    ended: list[str] = []
    stop = threading.Event()
    with raw_provider(provider) as upstream:
        served(path, upstream.url, *numbered(0))
        with gateway(str(path), "--workers", "2", AIGW_STORE=sqlite_url) as (url, _):

            def client() -> None:
                with requests.Session() as session:
                    while not stop.is_set():
                        answer = session.post(url + CHAT, json=BODY, timeout=30)
                        answers.append((answer.status_code, answer.text))

            def stream() -> None:
                body = {**BODY, "stream": True}
                ended.append(requests.post(url + CHAT, json=body, timeout=60).text)

            threads = [threading.Thread(target=client) for _ in range(8)]
            streams = [threading.Thread(target=stream) for _ in range(4)]
            for thread in (*threads, *streams):
                thread.start()
            pause = threading.Event()
            for number in range(1, 51):
                if number % 5 == 0:
                    path.write_text('{"on_http_request": [{"type": "dny"}]}')
                else:
                    served(path, upstream.url, *numbered(number))
                pause.wait(0.05)
            served(path, upstream.url, *numbered(99))
            changed = time.monotonic()
            while answers[-1][1] != '["99", "99"]' or answers[-8][1] != '["99", "99"]':
                assert time.monotonic() - changed < 20
                pause.wait(0.05)
            stop.set()
            released.set()
            for thread in (*threads, *streams):
                thread.join()
    assert {status for status, _ in answers} == {200}
    pairs = {tuple(json.loads(text)) for _, text in answers}
    assert all(one == two for one, two in pairs)
    assert len(pairs) > 3
    assert len(ended) == 4
    assert all(text.endswith("data: [DONE]\n\n") for text in ended)


def test_a_mistake_leaves_the_old_document_in_force(tmp_path: Path, caplog: Any) -> None:
    """It is said once, and the next good one comes into force; so does one that is asked for."""
    path = tmp_path / "policy.json"
    path.write_text(document(rule(action("deny", status_code=401))))

    app = Reloading(str(path), lambda text: TrafficPolicy.parse(text)(Inner()))
    assert call(app, "/x").status == 401
    path.write_text("on_http_request: [{type: dny}]")
    assert app.look() is False
    assert app.look() is False
    assert caplog.text.count("the policy that was in force stays") == 1
    assert call(app, "/x").status == 401
    path.write_text(document(rule(action("deny", status_code=402))))
    assert app.look() is True
    assert call(app, "/x").status == 402
    path.unlink()
    assert app.look() is False
    path.write_text(document(rule(action("deny", status_code=410))))
    assert app.look() is True
    app.ask()
    assert app.look() is True


def deny(status: int) -> str:
    return document(rule(action("deny", status_code=status)))


@pytest.mark.parametrize("left", ["on_http_request: [{type: dny}]", None], ids=["mistake", "gone"])
def test_a_process_that_is_forked_later_serves_what_is_in_force(
    tmp_path: Path, left: str | None
) -> None:
    """In the place of a worker that has died: neither the first document nor the mistake."""
    path = tmp_path / "policy.json"
    path.write_text(deny(401))
    app = Reloading(str(path), lambda text: TrafficPolicy.parse(text)(Inner()))

    def reload() -> bool:
        path.write_text(deny(402))
        return app.look()

    assert in_child(reload)
    path.unlink() if left is None else path.write_text(left)
    assert in_child(lambda: call(app, "/x").status == 402)
    path.write_text(deny(410))
    assert in_child(app.look)
    path.write_text("on_http_request: [{type: dny}]")
    assert in_child(lambda: call(app, "/x").status == 410)


def test_a_text_that_cannot_be_kept_is_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk: served all the same, and whoever is forked later has the one before."""
    path = tmp_path / "policy.json"
    path.write_text(deny(401))
    app = Reloading(str(path), lambda text: TrafficPolicy.parse(text)(Inner()))
    path.write_text(deny(402))
    write = os.pwrite

    def full(fd: int, data: bytes, place: int) -> int:
        if len(data) < 60:
            raise OSError(28, "No space left on device")
        return write(fd, data[:20], place)

    monkeypatch.setattr(os, "pwrite", full)
    assert app.look() is True
    assert call(app, "/x").status == 402
    assert app.look() is False
    assert "begins with the policy before" in caplog.text
    assert app._in_force.text() == deny(401).encode()
    path.write_text("on_http_request: [{type: dny}]")
    assert in_child(lambda: call(app, "/x").status in (401, 402))


def test_what_is_in_force_and_cannot_be_built_is_refused(tmp_path: Path) -> None:
    """A process that is forked while its document's store is down opens nothing: 503 until then."""
    path = tmp_path / "policy.json"
    path.write_text("1")
    down = [False]
    app = Reloading(str(path), building(down))

    def reload() -> bool:
        path.write_text("22")
        return app.look()

    def served_later() -> bool:
        down[0] = True
        refused = call(app, "/x").code == "store_unavailable"
        down[0] = False
        app.look()
        return refused and call(app, "/x").body == b"22"

    assert in_child(reload)
    assert in_child(served_later)


def test_limits_go_on_counting_over_a_reload(tmp_path: Path) -> None:
    """The engine outlives the exchange."""
    from aigw_middleware import open_counters

    path = tmp_path / "policy.json"
    limit = action(
        "rate-limit", name="n", algorithm="sliding_window", capacity=1, rate="60s",
        bucket_key=["conn.client_ip"],
    )  # fmt: skip
    path.write_text(document(rule(limit)))
    engine = open_counters("memory:")
    app = Reloading(str(path), lambda text: TrafficPolicy.parse(text, counters=engine)(Inner()))
    assert call(app, "/x").status == 200
    path.write_text(document(rule(limit), rule(action("log", metadata={}))))
    assert app.look() is True
    assert call(app, "/x").status == 429


# --- the command


def run(*args: str, **environ: str) -> Result:
    return CliRunner(env=environ).invoke(aigw, args)


def test_check_tells_every_mistake_and_asks_for_no_secret(tmp_path: Path) -> None:
    """Exit code 0, 1 or 2; with --json for programs."""
    for path in sorted(EXAMPLES.glob("*.yaml")):
        assert run("policy", "check", str(path)).exit_code == 0
    path = tmp_path / "p.yaml"
    path.write_text("on_http_request:\n  - type: dny\n  - name: x\n")
    result = run("policy", "check", str(path))
    assert result.exit_code == 1
    assert [line.split(":")[1] for line in result.stderr.splitlines()] == ["2", "3"]
    (first, _) = json.loads(run("policy", "check", str(path), "--json").stdout)
    assert (first["line"], first["column"], first["rule"]) == (2, 11, "on_http_request rule 1")
    assert run("policy", "check", str(tmp_path / "absent")).exit_code == 2


def test_show_prints_the_stack_and_no_secret(tmp_path: Path) -> None:
    """Layer by layer with the class that each action builds."""
    path = tmp_path / "p.yaml"
    path.write_text(
        "on_http_request:\n"
        "  - name: who\n    expressions: [\"req.method == 'POST'\"]\n    actions:\n"
        "      - type: basic-auth\n        config: {credentials: ['ann:sk-secret-1']}\n"
        "      - type: api-key-auth\n        config: {keys: {ci: sk-secret-2}}\n"
        "  - type: ai-gateway\n    config:\n      providers:\n"
        "        - {id: openai, api_keys: [{value: sk-secret-3}, "
        "{value: \"${secrets.get('v', 'n')}\"}]}\n"
    )
    shown = run("policy", "show", str(path)).stdout
    assert "sk-secret" not in shown
    assert "secrets.get('v', 'n')" in shown
    for part in ("rule 1 (who)", "if req.method == 'POST'", "(KeyAuth)", "[redacted]",
                 "(KeyAuth, ModelAccess, UpstreamForwarder)"):  # fmt: skip
        assert part in shown


def test_the_schema_accepts_what_the_checker_accepts() -> None:
    """Each example is valid by it, and it names every action."""
    import jsonschema
    import yaml

    schema = json.loads(run("policy", "schema").stdout)
    assert schema == document_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in EXAMPLES.glob("*.yaml"):
        assert list(validator.iter_errors(yaml.safe_load(path.read_text()))) == []
    for name in ("an unknown action", "a misspelt list", "no capacity", "no actions"):
        assert list(validator.iter_errors(yaml.safe_load(MISTAKES[name][0])))
    for one, is_valid in (
        ({"type": "deny", "config": None}, True),
        ({"type": "redirect", "config": None}, False),
        ({"type": "set-vars", "config": {"vars": []}}, True),
        ({"type": "set-vars", "config": {"vars": [{"a-b": 1}]}}, False),
    ):
        document = {"on_http_request": [one]}
        assert validator.is_valid(document) is is_valid
        if is_valid:
            TrafficPolicy.parse(json.dumps(document))
            continue
        with pytest.raises(ValueError, match="rule 1"):
            TrafficPolicy.parse(json.dumps(document))


@pytest.fixture
def explained(tmp_path: Path, sqlite_url: str) -> Any:
    """A document and a key, and what `explain` says of a request."""
    store = open_store(sqlite_url)
    key, _ = store.keys.create(models=["openai/gpt-4o"], limits=["2/min"])
    path = tmp_path / "p.yaml"
    path.write_text(
        "on_http_request:\n"
        "  - type: restrict-ips\n    config: {allow: [127.0.0.0/8]}\n"
        "  - name: teapots\n    expressions: [\"req.headers['x-tea'][0] == 'yes'\"]\n"
        "    actions: [{type: log, config: {metadata: {a: b}}}]\n"
        "  - name: batch\n    expressions: [hasReqHeader('x-batch')]\n"
        "    actions: [{type: deny, config: {status_code: 409}}]\n"
        "  - type: ai-gateway\n    config:\n      providers:\n        - id: openai\n"
        "          base_url: http://127.0.0.1:9/v1\n          api_keys: [{value: sk-p}]\n"
        "          models: [{id: gpt-4o, id_aliases: [fast]}]\n"
    )

    def explain(*args: str, document: bool = True) -> tuple[int, list[dict[str, Any]]]:
        named = [str(path)] if document else []
        result = run(
            "explain", *named, "--json", *args, AIGW_STORE=sqlite_url, OPENAI_API_KEY="sk-x",
            AIGW_COUNTERS=f"lmdb:///{tmp_path}/counters",
        )  # fmt: skip
        return result.exit_code, json.loads(result.stdout)

    return explain, key, sqlite_url


def test_explain_says_what_each_gate_would(explained: Any) -> None:
    """Which rule refuses, and why; exit code 0 or 1; nothing is spent."""
    explain, key, _ = explained
    for _ in range(4):  # a limit of two: asking spends nothing
        code, found = explain("--key-id", key.id, "--model", "fast")
        assert code == 0
    assert [(one["part"], one["verdict"]) for one in found] == [
        ("rule 1: restrict-ips: IPAllowlist", "passes"),
        ("rule 2 (teapots)", "skipped"),
        ("rule 3 (batch)", "skipped"),
        ("rule 4: ai-gateway: KeyAuth", "passes"),
        ("rule 4: ai-gateway: UpstreamForwarder", "asks"),
    ]
    assert found[-1]["reason"] == "openai/gpt-4o"
    code, found = explain("--ip", "192.0.2.1", "--key-id", key.id)
    assert (code, found[-1]["reason"].partition(":")[0]) == (1, "ip_not_allowed")
    code, found = explain("--model", "gpt-4o")
    assert (code, found[-1]["reason"].partition(":")[0]) == (1, "invalid_api_key")
    code, found = explain("--key-id", key.id, "--model", "gpt-5")
    assert (code, found[-1]["reason"].partition(":")[0]) == (1, "model_not_allowed")
    code, found = explain("--key-id", key.id, "--header", "X-Batch: 1")
    assert (code, found[-1]["status"], found[-1]["part"]) == (1, 409, "rule 3 (batch): deny")


def test_explain_a_path_that_is_not_served(explained: Any) -> None:
    """It is 404 as under `aigw serve`; an address that is none is wrong use."""
    explain, key, url = explained
    code, found = explain("--path", "/foo", "--key-id", key.id)
    assert (code, found[-1]["status"]) == (1, 404)
    assert run("explain", "--ip", "bad", AIGW_STORE=url).exit_code == 2


def test_explain_the_gateway_without_a_document(explained: Any) -> None:
    """What `aigw serve` runs by default; a bare model is judged as the provider's that is asked."""
    explain, key, _ = explained
    code, found = explain("--key-id", key.id, "--model", "gpt-4o", document=False)
    assert (code, [one["verdict"] for one in found]) == (0, ["passes", "asks"])
    assert explain("--key-id", key.id, "--model", "gpt-5", document=False)[0] == 1


def test_explain_a_line_of_the_access_log(explained: Any) -> None:
    """The request that a line tells of."""
    explain, key, _ = explained
    line = {
        "client_ip": "127.0.0.1", "key_id": key.id, "model": "gpt-4o", "provider": "openai",
        "path": CHAT, "method": "POST",
    }  # fmt: skip
    assert explain("--log-line", json.dumps(line))[0] == 0
    assert explain("--log-line", json.dumps({**line, "client_ip": "10.0.0.1"}))[0] == 1


# --- moving in


def test_a_litellm_configuration_is_carried_over(tmp_path: Path) -> None:
    """Providers, models and aliases; secrets become references, the rest is told."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "model_list:\n"
        "  - model_name: gpt-4o\n    litellm_params:\n"
        "      model: azure/deployed\n      api_base: https://x.openai.azure.com/openai/v1\n"
        "      api_key: os.environ/AZURE_API_KEY\n      rpm: 6\n"
        "  - model_name: claude\n    litellm_params: {model: anthropic/claude-x, api_key: sk-plain}\n"
        "  - model_name: fast\n    litellm_params: {model: gpt-4o-mini}\n"
        "  - model_name: '*'\n    litellm_params: {model: '*'}\n"
        "  - model_name: odd\n    litellm_params: {model: made_up/odd}\n"
        "general_settings: {master_key: sk-master}\n"
    )
    result = run("import", "litellm", str(path))
    assert result.exit_code == 0
    assert "sk-" not in result.output
    made = tmp_path / "policy.yaml"
    made.write_text(result.stdout)
    assert run("policy", "check", str(made)).exit_code == 0
    import yaml

    (rule_,) = yaml.safe_load(result.stdout)["on_http_request"]
    assert rule_["config"]["providers"] == [
        {
            "id": "azure",
            "base_url": "https://x.openai.azure.com/openai/v1",
            "api_keys": [{"value": "${secrets.get('env', 'AZURE_API_KEY')}"}],
            "models": [{"id": "deployed", "id_aliases": ["gpt-4o"]}],
        },
        {"id": "anthropic", "models": [{"id": "claude-x", "id_aliases": ["claude"]}]},
        {"id": "openai", "models": [{"id": "gpt-4o-mini", "id_aliases": ["fast"]}]},
    ]
    told = result.stderr.splitlines()
    for part in ("rpm has no counterpart", "api_key is written out", "names no single model",
                 "'made_up' is not in the catalogue", "general_settings: ",
                 "set AIGW_VAULT_ENV_AZURE_API_KEY"):  # fmt: skip
        assert any(part in line for line in told), part


def test_an_ngrok_document_is_carried_over(tmp_path: Path) -> None:
    """What is not supported is left out and told; its own guard becomes `authentication: none`."""
    path = tmp_path / "ngrok.yaml"
    path.write_text(
        "on_tcp_connect: []\n"
        "on_http_request:\n"
        "  - expressions: [\"req.headers['authorization'][0] != 'x'\"]\n"
        "    actions: [{type: custom-response, config: {status_code: 401}}, {type: oauth}]\n"
        "  - type: owasp-crs-request\n"
        "  - type: ai-gateway\n    config:\n      body: {a: 1}\n"
        "      providers: [{id: openai, api_keys: [{value: \"${secrets.get('v', 'n')}\"}]}]\n"
    )
    result = run("import", "ngrok", str(path))
    assert result.exit_code == 0
    made = tmp_path / "policy.yaml"
    made.write_text(result.stdout)
    assert run("policy", "check", str(made)).exit_code == 0
    for part in ("on_tcp_connect", "'oauth'", "'owasp-crs-request'", "body is not supported"):
        assert part in result.stderr
    # With parts left out nobody knows whether the rest still guards it.
    assert "\n    authentication: none" not in result.stdout
    guard = "[\"req.headers['authorization'][0] != 'x'\"]"
    path.write_text(
        f"on_http_request:\n  - expressions: {guard}\n"
        "    actions: [{type: custom-response, config: {status_code: 401}}]\n"
        "  - type: ai-gateway\n"
    )
    assert "authentication: none" in run("import", "ngrok", str(path)).stdout
    path.write_text("on_http_request:\n  - type: ai-gateway\n")
    unguarded = run("import", "ngrok", str(path))
    assert "clients need a gateway key" in unguarded.stderr
    assert "authentication" not in unguarded.stdout
    assert run("import", "litellm", str(path)).exit_code == 2
