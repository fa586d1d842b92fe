"""The `aigw` command."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner, Result

from aigw_middleware import KeyAuth, ManagementAPI, open_store
from aigw_middleware.cli.root import aigw
from aigw_middleware.keys import TOKEN_PATTERN
from aigw_middleware.testing import StandInProvider, serving
from aigw_middleware.wsgi import build

from .servers.running import free_port
from .support import CHAT, Inner, call


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command makes by default lands beside the test's own files."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/aigw.db"


def run(*args: str, store: str = "", **options: Any) -> Result:
    env = {"AIGW_STORE": store} if store else {}
    before = dict(os.environ)
    try:
        return CliRunner(env=env).invoke(aigw, args, **options)
    finally:
        # `serve` shares a directory of metrics with its processes by a variable.
        os.environ.clear()
        os.environ.update(before)


def test_a_key_may_be_created_disabled(store_url: str) -> None:
    """For a client that is to begin later."""
    token = run("keys", "create", "--disable", store=store_url).stdout.strip()
    (listed,) = json.loads(run("keys", "list", "--json", store=store_url).stdout)
    assert listed["disabled"] is True
    assert open_store(store_url).keys.verify(token) is None


def test_a_directory_of_metrics_that_is_not_there_is_a_mistake(store_url: str) -> None:
    """Exit status 2 and the variable's name, not a traceback of a library's."""
    variables = {
        "PROMETHEUS_MULTIPROC_DIR": "/nonexistent",
        "AIGW_ADMIN_TOKEN": "admin-0123456789",
        "OPENAI_API_KEY": "sk-env",
    }
    told = run("serve", "--admin-bind", "127.0.0.1:0", store=store_url, env=variables)
    assert told.exit_code == 2
    assert "PROMETHEUS_MULTIPROC_DIR" in told.output


def test_a_port_that_there_is_not_is_a_mistake(store_url: str) -> None:
    """Exit status 2 and the option's name, for either address."""
    for option in ("--bind", "--admin-bind"):
        for port in ("99999", "abc", "-1", ""):
            told = run("serve", option, f"127.0.0.1:{port}", store=store_url)
            assert told.exit_code == 2
            assert option in told.output


def test_a_key_is_created_listed_shown_and_deleted(store_url: str) -> None:
    """The life of a key by command; the token is printed once, alone on standard output."""
    made = run("keys", "create", "--name", "web", "--limit", "5/min", store=store_url)
    assert made.exit_code == 0
    assert re.fullmatch(TOKEN_PATTERN, made.stdout.strip())
    token = made.stdout.strip()
    (listed,) = json.loads(run("keys", "list", "--json", store=store_url).stdout)
    assert (listed["name"], listed["limits"]) == ("web", ["5/min"])
    shown = json.loads(run("keys", "get", listed["id"], "--json", store=store_url).stdout)
    assert shown == listed
    assert open_store(store_url).keys.verify(token) is not None
    assert token not in run("keys", "get", listed["id"], store=store_url).output
    assert run("keys", "delete", listed["id"], store=store_url).exit_code == 0
    assert run("keys", "delete", listed["id"], store=store_url).exit_code == 1
    assert open_store(store_url).keys.verify(token) is None


def test_every_field_of_a_key_can_be_given(store_url: str) -> None:
    """Each option of `keys create` is in the record."""
    made = run(
        "keys", "create", "--name", "n", "--description", "d", "--metadata", "m",
        "--endpoint-id", "ep_1", "--expires", "2031-01-02T03:04:05Z", "--limit", "5/min",
        "--model", "openai/*", "--network", "10.0.0.0/8",
        "--active", "mon-fri 08:00-18:00", "--json", store=store_url,
    )  # fmt: skip
    document = json.loads(made.stdout)
    assert document["token"]
    wanted = {
        "name": "n", "description": "d", "metadata": "m", "endpoint_id": "ep_1",
        "expires_at": "2031-01-02T03:04:05Z", "limits": ["5/min"], "models": ["openai/*"],
        "networks": ["10.0.0.0/8"], "active": ["mon-fri 08:00-18:00"], "disabled": False, "last_used": None,
    }  # fmt: skip
    assert {name: document[name] for name in wanted} == wanted


def test_an_expiry_may_be_a_span(store_url: str) -> None:
    """`--expires 30d` is thirty days from now."""
    run("keys", "create", "--expires", "30d", store=store_url)
    (key,) = open_store(store_url).keys.list()
    assert key.expires_at is not None
    assert abs(key.expires_at - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=5)


def test_lists_page(store_url: str) -> None:
    """`--page-size` and `--before-id` walk from the newest key to the oldest."""
    keys = open_store(store_url).keys
    for number in range(3):
        keys.create(name=str(number))
    first = json.loads(run("keys", "list", "--page-size", "2", "--json", store=store_url).stdout)
    rest = json.loads(
        run("keys", "list", "--before-id", first[-1]["id"], "--json", store=store_url).stdout
    )
    assert [key["name"] for key in first + rest] == ["2", "1", "0"]


def test_a_table_for_people_shows_no_instruction_to_the_terminal(store_url: str) -> None:
    """What a field holds is text: no markup and no escape sequence reaches the terminal."""
    open_store(store_url).keys.create(name="[red]x[/red]\x1b[31m", description="[link]")
    output = run("keys", "list", store=store_url).output
    assert "[red]x[/red]" in output
    assert "\x1b" not in output


MISTAKES = [
    pytest.param(["keys", "get", "aigk_none"], 1, "no record aigk_none", id="an unknown key"),
    pytest.param(["keys", "list", "--before-id", "aigk_none"], 1, "no record", id="an unknown page"),
    pytest.param(["keys", "create", "--limit", "x"], 2, "limits: 'x'", id="a wrong limit"),
    pytest.param(["keys", "create", "--expires", "soon"], 2, "soon", id="a wrong expiry"),
    pytest.param(["keys", "create", "--expires", "2030-01-01T00:00:00"], 2, "time zone", id="no zone"),
    pytest.param(["keys", "create", "--expires", "9" * 30 + "d"], 2, "neither", id="a span too long"),
    pytest.param(["keys", "create", "--expires", "0001-01-01T00:00:00+14:00"], 2, "neither", id="before all years"),
    pytest.param(["audit", "list", "--before-id", "9" * 20], 2, "before-id", id="a row that cannot be"),
    pytest.param(["keys", "list", "--page-size", "0"], 2, "page-size", id="a page of nothing"),
    pytest.param(["keys", "create", "--store", "mysql://x"], 2, "store: ", id="a wrong store"),
    pytest.param(["keys", "list", "--store", "sqlite:////no/such/dir/x"], 2, "cannot be made", id="a store that is not there"),
    pytest.param(["keys", "update", "aigk_none", "--name", "x"], 1, "no record", id="changing nothing"),
    pytest.param(["keys", "update", "aigk_none"], 2, "at least one", id="no change"),
    pytest.param(["keys", "rotate", "aigk_none", "--grace", "x"], 2, "no span", id="no grace"),
    pytest.param(["keys", "rotate", "aigk_none", "--grace", "31d"], 2, "grace: ", id="a long grace"),
    pytest.param(["provider-keys", "rotate", "aigpk_none", "--from-env", "NONE"], 2, "NONE", id="no variable"),
    pytest.param(["provider-keys", "add", "openai", "--from-file", "/no/file"], 2, "cannot be read", id="no file"),
    pytest.param(["store", "rekey"], 2, "there is no store", id="rekey of nothing"),
    pytest.param(["store", "check"], 2, "there is no store", id="a mistyped store is not made"),
    pytest.param(["audit", "verify"], 2, "there is no store", id="an audit of nothing"),
    pytest.param(["keys", "get", "aigw-a-g1-secret"], 1, "no record of that id", id="a token for an id"),
    pytest.param(["serve", "--admin-bind", "127.0.0.1:0"], 2, "no provider has a key", id="serving nothing apart"),
    pytest.param(["keys", "explode"], 2, "No such command", id="an unknown command"),
    pytest.param(["serve"], 2, "no provider has a key", id="serving nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "code", "told"), MISTAKES)
def test_mistakes_are_one_line_and_an_exit_code(
    args: list[str], code: int, told: str, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 for refused or not found, 2 for wrong use or unreadable; never a traceback."""
    for name in list(os.environ):
        if name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)  # and gone again afterwards
    result = run(*args, store=store_url)
    assert result.exit_code == code
    assert told in result.output
    assert "Traceback" not in result.output


def test_a_key_is_changed_and_rotated(store_url: str) -> None:
    """`update` changes what is given, an empty text clears a list, `rotate` prints a new token."""
    made = json.loads(
        run(
            "keys", "create", "--limit", "5/min", "--expires", "30d", "--json", store=store_url
        ).stdout
    )
    changed = run(
        "keys", "update", made["id"], "--name", "web", "--limit", "", "--expires", "never",
        "--model", "gpt-4o", "--disable", "--json", store=store_url,
    )  # fmt: skip
    document = json.loads(changed.stdout)
    wanted = {
        "name": "web",
        "limits": [],
        "expires_at": None,
        "models": ["gpt-4o"],
        "disabled": True,
    }
    assert {name: document[name] for name in wanted} == wanted
    again = run("keys", "update", made["id"], "--model", "", "--enable", "--json", store=store_url)
    assert json.loads(again.stdout)["models"] is None
    rotated = run("keys", "rotate", made["id"], "--grace", "0", store=store_url).stdout.strip()
    keys = open_store(store_url).keys
    assert keys.verify(made["token"]) is None
    assert keys.verify(rotated) is not None


SECRET = "a master secret for the tests"


@pytest.mark.parametrize("way", ["input", "env", "file"])
def test_a_provider_key_comes_in_by_every_way_but_an_argument(
    way: str, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard input, a variable or a file; it is sealed, shown redacted, rotated and deleted."""
    monkeypatch.setenv("AIGW_SECRET", SECRET)
    secret = "sk-live-0123456789abcdefghij"
    monkeypatch.setenv("MY_KEY", f"{secret}\n")
    (tmp_path / "key").write_text(f"{secret}\n")
    args = {
        "input": [],
        "env": ["--from-env", "MY_KEY"],
        "file": ["--from-file", f"{tmp_path}/key"],
    }
    added = run(
        "provider-keys", "add", "openai", *args[way], "--json", store=store_url, input=secret
    )
    assert added.exit_code == 0, added.output
    record = json.loads(added.stdout)
    assert open_store(store_url).provider_keys.secrets("openai") == (secret,)
    listed = run("provider-keys", "list", store=store_url).output
    assert "***ghij" in listed
    assert secret not in listed + added.output
    run("provider-keys", "rotate", record["id"], store=store_url, input="sk-other")
    assert open_store(store_url).provider_keys.secrets("openai") == ("sk-other",)
    assert run("provider-keys", "delete", record["id"], store=store_url).exit_code == 0
    assert run("provider-keys", "delete", record["id"], store=store_url).exit_code == 1


def test_a_store_is_copied_while_it_is_in_use(store_url: str, tmp_path: Path) -> None:
    """`store backup` is whole: each key that was there works from the copy."""
    keys = open_store(store_url).keys
    stop = threading.Event()
    made: list[str] = []

    def write() -> None:
        while not stop.is_set():
            made.append(keys.create()[1])

    thread = threading.Thread(target=write)
    thread.start()
    while len(made) < 5:
        pass
    before = list(made)
    copy = tmp_path / "copy.db"
    done = run("store", "backup", str(copy), store=store_url)
    stop.set()
    thread.join()
    assert done.exit_code == 0, done.output
    restored = open_store(f"sqlite:///{copy}")
    assert all(restored.keys.verify(token) is not None for token in before)
    assert restored.check() == []
    assert copy.stat().st_mode & 0o077 == 0
    assert run("store", "backup", str(copy), store=store_url).exit_code == 1


def test_the_master_secret_is_changed_by_command(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`store rekey` once, again, and `store check` before and after."""
    monkeypatch.setenv("AIGW_SECRET", SECRET)
    run("provider-keys", "add", "openai", store=store_url, input="sk-x")
    assert "1 secrets open" in run("store", "check", store=store_url).output
    open_store(store_url).close()
    monkeypatch.setenv("AIGW_SECRET", "the new secret of this store")
    assert run("store", "check", store=store_url).exit_code == 1
    assert "AIGW_SECRET_OLD" in run("store", "rekey", store=store_url).output
    monkeypatch.setenv("AIGW_SECRET_OLD", SECRET)
    assert "1 secrets were" in run("store", "rekey", store=store_url).output
    assert "0 secrets were" in run("store", "rekey", store=store_url).output
    assert run("store", "check", store=store_url).exit_code == 0


def test_a_damaged_store_is_told(store_url: str, tmp_path: Path) -> None:
    """`store check` exits with 1 or 2 and never says that all is well."""
    keys = open_store(store_url).keys
    for _ in range(50):
        keys.create(metadata="x" * 2000)
    open_store(store_url).close()
    with sqlite3.connect(tmp_path / "aigw.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with (tmp_path / "aigw.db").open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(4096))
    result = run("store", "check", store=store_url)
    assert result.exit_code in (1, 2)
    assert "whole" not in result.output


def test_without_the_extra_the_command_says_what_to_install() -> None:
    """`aigw` from a bare library names the extra and exits with 2."""
    code = "import sys; sys.modules['click'] = None\nfrom aigw_middleware.cli import main\nmain()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert "aigw-middleware[gateway]" in result.stderr


# --- the application from environment variables


def test_the_application_asks_for_a_key_everywhere_but_healthz(store_url: str) -> None:
    """`wsgi.build`: /healthz is open, every other path needs a gateway key."""
    provider = StandInProvider(api_keys=["sk-env"])
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'
    with serving(provider) as url:
        variables = {
            "AIGW_STORE": store_url,
            "OPENAI_API_KEY": "sk-env",
            "OPENAI_BASE_URL": f"{url}/v1",
            "ANTHROPIC_API_KEY": "sk-env",
            "ANTHROPIC_BASE_URL": url,
            "GEMINI_API_KEY": "sk-env",
            "GOOGLE_GEMINI_BASE_URL": f"{url}/",
        }
        app = build(variables)
        _, token = open_store(store_url).keys.create()
        auth = {"HTTP_AUTHORIZATION": f"Bearer {token}"}
        assert call(app, "/healthz").json == {"status": "ok"}
        assert call(app, "/healthz", REQUEST_METHOD="HEAD").body == b""
        assert [call(app, path).status for path in ("/", CHAT, "/healthz/x")] == [401] * 3
        assert call(app, "/nothing", **auth).code == "not_found"
        assert call(app, CHAT, body=body, **auth).status == 200
        assert call(app, "/v1/messages", body=body, **auth).status == 200
        gemini = b'{"contents": [{"parts": [{"text": "x"}]}]}'
        path = "/v1beta/models/g:generateContent"
        assert call(app, path, body=gemini, **auth).status == 200


def test_the_largest_body_is_set(store_url: str) -> None:
    """`AIGW_MAX_BODY_BYTES`: for uploads that are larger than 32 MiB, or to allow less."""
    with serving(StandInProvider(api_keys=["sk-env"])) as url:
        variables = {
            "AIGW_STORE": store_url,
            "OPENAI_API_KEY": "sk-env",
            "OPENAI_BASE_URL": f"{url}/v1",
        }
        _, token = open_store(store_url).keys.create()
        body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'
        for most, status in ((str(len(body)), 200), (str(len(body) - 1), 413), ("", 200)):
            app = build({**variables, "AIGW_MAX_BODY_BYTES": most})
            assert call(app, CHAT, body=body, HTTP_X_API_KEY=token).status == status


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "no provider has a key"),
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "nonsense"}, "base_url"),
        ({"OPENAI_API_KEY": "k", "AIGW_STORE": "x"}, "store: "),
        ({"OPENAI_API_KEY": "k", "AIGW_MAX_BODY_BYTES": "1 MB"}, "AIGW_MAX_BODY_BYTES: '1 MB'"),
        ({"AIGW_POLICY": "p.yaml", "AIGW_MAX_BODY_BYTES": "9"}, "max_body_bytes of its ai-gateway"),
        ({"OPENAI_API_KEY": "k", "AIGW_STORE": "sqlite:////tmp/x.db", "AIGW_COUNTERS": "x"}, "counters: "),
    ],
)  # fmt: skip
def test_wrong_variables_are_told_when_it_is_built(
    variables: Any, told: str, tmp_path: Path
) -> None:
    """A gateway that could not work does not start."""
    if variables.get("AIGW_STORE", "").endswith("x.db"):
        variables = {**variables, "AIGW_STORE": f"sqlite:///{tmp_path}/x.db"}
    with pytest.raises(ValueError, match=told):
        build(variables)


# --- real processes


def clean_environment(**extra: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.endswith(("_API_KEY", "_BASE_URL")) and not name.startswith("AIGW_")
    }
    return {**kept, **extra}


@contextmanager
def gateway(*args: str, pass_fds: Any = (), **variables: str) -> Any:
    """Run `aigw serve` on a free port; yield its URL and the process."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "aigw_middleware", "serve", "--bind", f"fd://{fd}", *args],
            env=clean_environment(**variables),
            pass_fds=[fd, *pass_fds],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            assert requests.get(f"{url}/healthz", timeout=30).ok
            yield url, process
        finally:
            process.terminate()
            process.communicate(timeout=30)


@pytest.mark.parametrize("worker_class", ["gthread", "gevent"])
def test_serve_runs_the_gateway(worker_class: str, store_url: str) -> None:
    """`aigw serve` under gunicorn: a key passes, a deleted one is refused by every worker at once."""
    provider = StandInProvider(api_keys=["sk-env"])
    with serving(provider) as upstream:
        variables = {
            "AIGW_STORE": store_url,
            "OPENAI_API_KEY": "sk-env",
            "OPENAI_BASE_URL": f"{upstream}/v1",
        }
        args = ["--worker-class", worker_class, "--workers", "2"]
        with gateway(*args, **variables) as (url, process):
            keys = open_store(store_url).keys
            key, token = keys.create()
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}

            def ask() -> int:
                return requests.post(
                    url + CHAT, json=body, headers={"x-api-key": token}, timeout=30
                ).status_code

            assert {ask() for _ in range(8)} == {200}
            keys.delete(key.id)
            assert {ask() for _ in range(8)} == {401}
            command_lines = processes_of(process.pid)
    assert command_lines
    assert all("sk-env" not in line and token not in line for line in command_lines)


EARLY = """
import os, signal, sys
from aigw_middleware.cli.serve import _options, _run

def early(server, worker):
    if worker.age == 1:
        os.kill(os.getpid(), signal.SIGTERM)

def ended(server, worker):
    print("ended", worker.age, flush=True)

options = _options(f"fd://{sys.argv[1]}", 1, 1, sys.argv[2])
_run(lambda environ, start_response: [], {**options, "post_fork": early, "worker_exit": ended})
"""


@pytest.mark.parametrize("worker_class", ["gthread", "gevent"])
def test_ending_waits_for_no_idle_client(worker_class: str, store_url: str) -> None:
    """A connection that is kept for another request, and one that never asked: both are let go."""
    with (
        gateway("--worker-class", worker_class, AIGW_STORE=store_url, OPENAI_API_KEY="sk-x") as (
            url,
            process,
        ),
        requests.Session() as client,
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))),
    ):
        assert client.get(f"{url}/healthz", timeout=30).ok
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)  # gunicorn gives requests 30 s to be answered


@pytest.mark.parametrize("worker_class", ["gthread", "gevent"])
def test_a_worker_that_is_told_to_end_as_it_begins_ends(worker_class: str) -> None:
    """SIGTERM before it listens to signals is not lost: nobody waits until it is killed."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", EARLY, str(fd), worker_class],
            pass_fds=[fd],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ended 1\n"
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_serve_under_granian(store_url: str) -> None:
    """`--server granian`: the same gateway, and what it cannot keep is said at start."""
    provider = StandInProvider(api_keys=["sk-env"])
    _, token = open_store(store_url).keys.create()
    with serving(provider) as upstream:
        port = free_port()
        process = subprocess.Popen(
            [
                sys.executable, "-m", "aigw_middleware", "serve", "--server", "granian",
                "--bind", f"127.0.0.1:{port}", "--threads", "8",
            ],
            env=clean_environment(
                AIGW_STORE=store_url, OPENAI_API_KEY="sk-env", OPENAI_BASE_URL=f"{upstream}/v1"
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/healthz", process)
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
            answer = requests.post(url + CHAT, json=body, headers={"x-api-key": token}, timeout=30)
            assert answer.ok
            assert requests.post(url + CHAT, json=body, timeout=30).status_code == 401
        finally:
            process.terminate()
            output = process.communicate(timeout=30)[0].decode()
    assert "granian shows no client's socket" in output
    refused = run("serve", "--server", "granian", "--worker-class", "gevent", store=store_url)
    assert (refused.exit_code, "gunicorn's" in refused.output) == (2, True)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server that opens its own port answers."""
    pause = threading.Event()
    while True:
        assert process.poll() is None
        try:
            requests.get(url, timeout=30)
            return
        except requests.ConnectionError:
            pause.wait(0.05)


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_serve_runs_the_management_api_apart(store_url: str, kind: str) -> None:
    """--admin-bind: another address, its own process, the admin token; one command ends both."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        admin = f"http://127.0.0.1:{listener.getsockname()[1]}"
        variables = {
            "AIGW_STORE": store_url,
            "AIGW_ADMIN_TOKEN": "admin-0123456789",
            "OPENAI_API_KEY": "sk-env",
        }
        args = ["--admin-bind", f"fd://{fd}", "--worker-class", kind]
        with gateway(*args, pass_fds=[fd], **variables) as (url, process):
            head = {"Authorization": "Bearer admin-0123456789"}
            made = requests.post(f"{admin}/ai_gateway_api_keys", json={}, headers=head, timeout=30)
            assert made.status_code == 201
            key = {"x-api-key": made.json()["token"]}
            assert requests.get(f"{url}/nothing", headers=key, timeout=30).status_code == 404
            assert (
                requests.get(f"{url}/ai_gateway_api_keys", headers=head, timeout=30).status_code
                == 401
            )
            uri = f"{admin}/ai_gateway_api_keys/{made.json()['id']}"
            counted = requests.get(f"{admin}/metrics", headers=head, timeout=30)
            assert requests.get(f"{admin}/metrics", timeout=30).status_code == 401
            assert requests.delete(uri, headers=head, timeout=30).status_code == 204
            assert requests.get(f"{url}/nothing", headers=key, timeout=30).status_code == 401
        assert process.returncode == 0
    # Counted by the gateway's process, told by the other one.
    assert re.search(r'^aigw_requests_total\{[^}]*status="404"\} 1\.0$', counted.text, re.MULTILINE)


def processes_of(pid: int) -> list[str]:
    """Return the command lines of a process and its children (SEC-4)."""
    lines = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(re.search(r"\) \S (\d+)", (path / "stat").read_text())[1])  # type: ignore[index]
            if pid in (parent, int(path.name)):
                lines.append((path / "cmdline").read_text())
        except (OSError, TypeError):
            continue
    return lines


def test_the_demo_shows_everything_and_ends() -> None:
    """`aigw demo --once`: a chat, a stream, a refusal and a limit, then it exits with 0."""
    result = subprocess.run(
        [sys.executable, "-m", "aigw_middleware", "demo", "--once", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        # It needs no network: what stands between this machine and another is none of it.
        env=clean_environment(HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9"),
    )
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout  # readable in a pipe
    for told in (
        "200 You said: Hello, gateway!",
        "You said: every word arrives when it is said",
        "401 A valid gateway API key is required.",
        "requests that the provider saw of it: 0",
        "429 RateLimit:",
        "from openai import OpenAI",
        "curl http://127.0.0.1:",
    ):
        assert told in result.stdout


def test_the_demo_goes_on_until_it_is_interrupted() -> None:
    """Without --once the gateway of the demo runs, its lines work, and Ctrl-C ends all of it."""
    import signal

    process = subprocess.Popen(
        [sys.executable, "-m", "aigw_middleware", "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean_environment(PYTHONUNBUFFERED="1"),
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "until Ctrl-C" in line:
            break
    text = "".join(lines)
    url = re.search(r"base_url=\"(\S+)/v1\"", text)[1]  # type: ignore[index]
    token = re.search(TOKEN_PATTERN, text)[0]  # type: ignore[index]
    body = {"model": "stand-in-small", "messages": [{"role": "user", "content": "x"}]}
    answer = requests.post(url + CHAT, json=body, headers={"x-api-key": token}, timeout=30)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert answer.status_code == 200
    assert "Traceback" not in rest
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            requests.get(f"{url}/healthz", timeout=5)
        except requests.ConnectionError:
            return
    raise AssertionError("the gateway of the demo is still there")


def test_what_is_counted_is_shown_and_forgotten(tmp_path: Path, store_url: str) -> None:
    """`aigw limits show|reset` and `GET /limits`: every bucket, or those of one key."""
    url = f"lmdb:///{tmp_path}/counters"
    store = open_store(store_url)
    key, token = store.keys.create(limits=["5/min", "1 usd/day"])
    other, second = store.keys.create(limits=["9/min"])
    app = KeyAuth(Inner(), store.keys, counters=url)
    for presented in (token, second):
        assert call(app, HTTP_X_API_KEY=presented).status == 200
    shown = json.loads(run("limits", "show", "--counters", url, "--json").stdout)
    assert {(row["bucket"], row["limit"], row["used"], row["left"]) for row in shown} >= {
        (key.id, "requests-60s", 1, 4), (other.id, "requests-60s", 1, 8),
    }  # fmt: skip
    assert all(0 < row["expires_in"] <= 90_000 for row in shown)
    of_one = json.loads(run("limits", "show", "--key", key.id, "--counters", url, "--json").stdout)
    assert {row["bucket"] for row in of_one} == {key.id}
    assert key.id in run("limits", "show", "--counters", url).stdout
    api = ManagementAPI(store, "admin", counters=url)
    answer = call(
        api, "/limits", HTTP_AUTHORIZATION="Bearer admin", QUERY_STRING=f"key_id={key.id}"
    )
    assert {row["bucket"] for row in answer.json["limits"]} == {key.id}
    assert (
        call(ManagementAPI(store, "admin"), "/limits", HTTP_AUTHORIZATION="Bearer admin").status
        == 404
    )
    run("limits", "reset", "--yes", "--key", key.id, "--counters", url)
    left = json.loads(run("limits", "show", "--counters", url, "--json").stdout)
    assert {row["bucket"] for row in left} == {other.id}
    run("limits", "reset", "--yes", "--counters", url)
    assert json.loads(run("limits", "show", "--counters", url, "--json").stdout) == []
    refused = run("limits", "show", "--counters", "memory:")
    assert (refused.exit_code, "another process" in refused.output) == (2, True)
