"""SEC-1: a whole gateway at work, and then a search for every secret in all that it left."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from aigw_middleware import StoreUnavailable, open_store
from aigw_middleware.keys.sealing import WrongSecret

from .support import CHAT, RawRequest, raw_provider

BODY = {"model": "gpt-4o", "messages": []}
RUN = 8


def new_secret(prefix: str) -> str:
    return prefix + secrets.token_hex(20)


def runs_of(secret: str) -> set[bytes]:
    """Return every run of 8 characters, without those that a prefix shares with others."""
    text = secret.encode()
    return {text[start : start + RUN] for start in range(len(text) - RUN + 1)}


def leaked(secret: str, data: bytes) -> set[bytes]:
    return {run for run in runs_of(secret) if run in data}


def echoing(connection: socket.socket, request: RawRequest) -> bool:
    """A provider that repeats the key that it got: in a header, and in errors in the body too."""
    key = request.headers.get("Authorization", "")
    model = json.loads(request.body)["model"]
    status = {"gpt-4o": 200, "bad": 400, "limited": 429, "refused": 401, "down": 500}[model]
    echo = f"you sent {key}" if status >= 400 else "ok"
    body = json.dumps({"error": {"message": echo}}).encode()
    head = (
        f"HTTP/1.1 {status} {echo}\r\nContent-Type: application/json\r\nX-Echo: {key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return True


class Gateway:
    """`aigw serve` with two workers and the management API, and all that can be seen of it."""

    def __init__(self, directory: Path, provider_url: str) -> None:
        self.directory = directory
        self.seal = new_secret("seal")
        self.admin = new_secret("admin")
        self.openai = new_secret("sk-env")
        self.url, self.api = free_url(), free_url()
        self.log = directory / "log"
        self.store = f"sqlite:///{directory}/aigw.db"
        environ = {
            "AIGW_SECRET": self.seal, "AIGW_ADMIN_TOKEN": self.admin, "AIGW_STORE": self.store,
            "OPENAI_API_KEY": self.openai, "OPENAI_BASE_URL": f"{provider_url}/v1",
        }  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "aigw_middleware", "serve", "--workers", "2",
                    "--bind", self.url.removeprefix("http://"),
                    "--access-log", f"{directory}/access.log",
                    "--admin-bind", self.api.removeprefix("http://"),
                ],
                env={**os.environ, **environ}, stdout=log, stderr=log,
            )  # fmt: skip
        self.session = requests.Session()
        self.session.trust_env = False
        for url in (self.url, self.api):
            while True:
                try:
                    assert self.session.get(f"{url}/healthz", timeout=10).status_code == 200
                    break
                except requests.ConnectionError:
                    assert self.process.poll() is None, self.log.read_text()

    def manage(self, method: str, path: str, body: Any = None) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.admin}"}
        return self.session.request(method, self.api + path, json=body, headers=headers, timeout=10)

    def chat(self, token: str, model: str = "gpt-4o") -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"}
        body = {**BODY, "model": model}
        return self.session.post(self.url + CHAT, json=body, headers=headers, timeout=10)

    def command_lines(self) -> bytes:
        """What `ps` shows of every process."""
        lines = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lines.append(path.read_bytes())
            except OSError:
                continue  # it has ended
        return b"\n".join(lines)

    def files(self) -> bytes:
        """The log and every file of the store."""
        return b"\n".join(p.read_bytes() for p in self.directory.rglob("*") if p.is_file())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(40)


def free_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with raw_provider(echoing) as provider:
        started = Gateway(tmp_path, provider.url)
        try:
            yield started
        finally:
            started.stop()


def seen_of(answer: requests.Response) -> bytes:
    return repr((answer.status_code, answer.reason, answer.headers)).encode() + answer.content


def test_no_secret_is_in_anything_that_the_gateway_left(gateway: Gateway) -> None:
    """Answers, logs, files, command lines and errors hold no 8 characters of any secret."""
    made = gateway.manage("POST", "/ai_gateway_api_keys", {"name": "web"}).json()
    token, id_ = made["token"], made["id"]
    stored, rotated_secret = new_secret("sk-stored"), new_secret("sk-again")
    models = ("gpt-4o", "bad", "limited", "refused", "down")
    answers = [gateway.chat(token, model) for model in models]
    kept = gateway.manage("POST", "/provider_keys", {"provider": "openai", "secret": stored})
    answers.append(kept)
    answers += [gateway.chat(token, model) for model in ("gpt-4o", "bad", "refused")]
    one = f"/provider_keys/{kept.json()['id']}"
    answers.append(gateway.manage("POST", f"{one}/rotate", {"secret": rotated_secret}))
    answers.append(gateway.manage("POST", f"{one}/rotate", {"secret": stored + "\n"}))
    rotated = gateway.manage("POST", f"/ai_gateway_api_keys/{id_}/rotate", {"grace": 60}).json()
    wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
    answers += [gateway.chat(t) for t in (wrong, gateway.admin, stored, rotated["token"])]
    for path in ("/ai_gateway_api_keys", "/provider_keys", "/audit", "/usage", "/openapi.json"):
        answers.append(gateway.manage("GET", path))
    query = f"{gateway.url}/v1/models?key={token}"
    answers.append(gateway.session.get(query, timeout=10))
    lines = gateway.command_lines()
    gateway.manage("DELETE", f"/ai_gateway_api_keys/{id_}")
    assert [answer.status_code for answer in answers[:5]] == [200, 400, 429, 502, 500]
    everything = b"\n".join([lines, gateway.files(), errors_about(gateway), *map(seen_of, answers)])
    planted = {
        "the gateway key": token.rpartition("-")[2],
        "the gateway key after its rotation": rotated["token"].rpartition("-")[2],
        "the provider key of the environment": gateway.openai,
        "the provider key of the store": stored,
        "the provider key after its rotation": rotated_secret,
        "AIGW_SECRET": gateway.seal,
        "the admin token": gateway.admin,
    }
    # What people may see: the last four letters, behind asterisks.
    found = {what: leaked(secret, everything) for what, secret in planted.items()}
    assert found == {what: set() for what in planted}
    lines = (gateway.directory / "access.log").read_text().splitlines()
    assert {json.loads(line)["status"] for line in lines} >= {200, 400, 401, 429, 500, 502}


def errors_about(gateway: Gateway) -> bytes:
    """Return the texts of the errors that a wrong secret and damaged records raise."""
    texts = []
    wrong = new_secret("other")
    store = open_store(gateway.store, secret=wrong)
    for work in (
        lambda: store.provider_keys.secrets("openai"),
        lambda: store.provider_keys.check(),
        lambda: store.audit.verify(),
        lambda: store.rekey(new_secret("third")),
        lambda: open_store(gateway.store, secret=gateway.seal),
    ):
        try:
            work()
        except (WrongSecret, ValueError, StoreUnavailable) as error:
            texts.append(repr(error) + repr(vars(error)) + repr(store) + repr(store.provider_keys))
    assert len(texts) == 5
    store.close()
    return "\n".join(texts).encode()
