"""`aigw demo`: a whole gateway on this machine, shown step by step."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import requests
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax

from ..store import open_store
from ..testing import StandInProvider, serving

_START_SECONDS = 30
_MODEL = "stand-in-small"


@click.command()
@click.option("--once", is_flag=True, help="Exit when everything was shown.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
    help="Port of the gateway on 127.0.0.1; another one is taken when it is in use.",
)  # fmt: skip
def demo(once: bool, port: int) -> None:
    """Show a whole gateway with a stand-in provider, on this machine alone.

    Creates a key, sends a chat request, plain and streamed, shows a refusal and a limit, and
    leaves the gateway running until Ctrl-C.
    """
    console = Console(highlight=False, soft_wrap=True)
    provider_key = f"sk-stand-in-{secrets.token_hex(12)}"
    provider = StandInProvider(api_keys=[provider_key], pace=0.08)
    with (
        tempfile.TemporaryDirectory(prefix="aigw-demo-") as directory,
        serving(provider) as provider_url,
    ):
        store_url = f"sqlite:///{directory}/aigw.db"
        with _gateway(store_url, provider_url, provider_key, port, Path(directory)) as url:
            token = _show(console, url, store_url, provider, provider_url)
            # Before the last line says so: a signal that comes at once must count.
            stopped = _stop_on_signal()
            _next_steps(console, url, token, once=once)
            if not once:
                stopped.wait()
                click.echo("stopped")


def _show(
    console: Console, url: str, store_url: str, provider: StandInProvider, provider_url: str
) -> str:
    """Walk through what a gateway does; return the token of a key to go on with."""
    console.print(f"[bold]1. A gateway runs[/] at {url}")
    console.print(f"   its provider is a stand-in at {provider_url} that says back what it hears\n")

    store = open_store(store_url)
    key, token = store.keys.create(name="demo", description="made by aigw demo")
    console.print("[bold]2. A gateway key is created[/] (aigw keys create)")
    console.print(f"   id    {key.id}\n   token {token}\n")

    console.print("[bold]3. A chat request[/] with that key, POST /v1/chat/completions")
    answer = _chat(url, token, "Hello, gateway!")
    _expect(answer, 200)
    console.print(f"   {answer.status_code} {answer.json()['choices'][0]['message']['content']}")
    _show_what_the_provider_saw(console, provider, token)

    console.print("[bold]4. The same, streamed[/]: each piece as the provider sends it")
    console.print("   ", end="")
    for piece in _streamed(url, token, "every word arrives when it is said"):
        console.print(piece, end="")
    console.print("\n")

    console.print("[bold]5. A refusal[/]: a key that is not known never reaches the provider")
    before = len(provider.requests)
    answer = _chat(url, "aigw-unknown", "Let me in!")
    _expect(answer, 401)
    console.print(f"   {answer.status_code} {answer.json()['error']['message']}")
    console.print(f"   requests that the provider saw of it: {len(provider.requests) - before}\n")

    console.print("[bold]6. A limit[/]: a key with two requests a minute")
    _, limited = store.keys.create(name="limited", limits=["2/min"])
    for _ in range(3):
        answer = _chat(url, limited, "Once more!")
        told = f"RateLimit: {answer.headers['RateLimit']}"
        if answer.status_code == 429:
            told += f"   Retry-After: {answer.headers['Retry-After']}"
        console.print(f"   {answer.status_code} {told}")
    _expect(answer, 429)

    deleted, deleted_token = store.keys.create(name="deleted")
    _expect(_chat(url, deleted_token, "Still there?"), 200)
    store.keys.delete(deleted.id)
    answer = _chat(url, deleted_token, "Still there?")
    _expect(answer, 401)
    console.print("\n[bold]7. A deleted key[/] stops working at once")
    console.print(f"   {answer.status_code} {answer.json()['error']['message']}\n")
    return token


def _show_what_the_provider_saw(console: Console, provider: StandInProvider, token: str) -> None:
    seen = provider.requests[-1]
    if token in repr(seen):
        raise click.ClickException("the provider saw the gateway key")
    shown = seen.headers["authorization"][:19]
    console.print(f"   the provider saw  Authorization: {shown}...  and never the gateway key\n")


def _next_steps(console: Console, url: str, token: str, *, once: bool) -> None:
    python = f"""\
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="{token}")
answer = client.chat.completions.create(
    model="{_MODEL}", messages=[{{"role": "user", "content": "Hello"}}]
)
print(answer.choices[0].message.content)"""
    body = json.dumps({"model": _MODEL, "messages": [{"role": "user", "content": "Hello"}]})
    curl = f"""\
curl {url}/v1/chat/completions \\
  -H 'Authorization: Bearer {token}' \\
  -H 'Content-Type: application/json' \\
  -d '{body}'"""
    title = "That was all; without --once it goes on running" if once else "Try it"
    console.print(Panel(title, expand=False))
    for language, text in (("python", python), ("bash", curl)):
        if console.is_terminal:
            console.print(Syntax(text, language, background_color="default", word_wrap=True))
        else:
            click.echo(text)  # as it is, so that it can be copied out of a file
        console.print()
    if not once:
        console.print("The gateway runs until Ctrl-C.")


@contextmanager
def _gateway(
    store_url: str, provider_url: str, provider_key: str, port: int, directory: Path
) -> Iterator[str]:
    """Run `aigw serve` in a process of its own; yield its URL."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AIGW_") and not name.endswith(("_API_KEY", "_BASE_URL"))
    }
    variables |= {
        "AIGW_STORE": store_url,
        "OPENAI_API_KEY": provider_key,
        "OPENAI_BASE_URL": f"{provider_url}/v1",
        "ANTHROPIC_API_KEY": provider_key,
        "ANTHROPIC_BASE_URL": provider_url,
        "GOOGLE_API_KEY": provider_key,
        "GOOGLE_GEMINI_BASE_URL": provider_url,
        "PYTHONUNBUFFERED": "1",
    }
    log_path = directory / "serve.log"
    with _listener(port) as listener, log_path.open("wb") as log:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = _serve(listener.fileno(), variables, log)
        try:
            _wait_until_up(url, process, log_path)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _serve(fd: int, variables: Mapping[str, str], log: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "aigw_middleware", "serve", "--bind", f"fd://{fd}"]
    return subprocess.Popen(  # noqa: S603  (our own command, and no secret in it)
        command, env=variables, pass_fds=[fd], stdout=log, stderr=log
    )


@contextmanager
def _listener(port: int) -> Iterator[socket.socket]:
    """Listen on `port`, or on a free one where that is in use."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        yield listener


def _wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            # The socket listens already: this waits for the first worker to answer.
            if _session().get(f"{url}/healthz", timeout=_START_SECONDS).ok:
                return
        except requests.RequestException:
            continue
    raise click.ClickException(f"the gateway did not start:\n{log.read_text(errors='replace')}")


def _session() -> requests.Session:
    """Return a session that goes to this machine alone, whatever proxy is set."""
    session = requests.Session()
    session.trust_env = False
    return session


def _chat(url: str, token: str, text: str) -> requests.Response:
    return _session().post(
        f"{url}/v1/chat/completions",
        json={"model": _MODEL, "messages": [{"role": "user", "content": text}]},
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
    )


def _streamed(url: str, token: str, text: str) -> Iterator[str]:
    body = {
        "model": _MODEL,
        "messages": [{"role": "user", "content": text}],
        "stream": True,
    }
    with _session().post(
        f"{url}/v1/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
        stream=True,
    ) as answer:
        _expect(answer, 200)
        for line in answer.iter_lines():
            data = line.removeprefix(b"data: ")
            if line and data != b"[DONE]":
                yield json.loads(data)["choices"][0]["delta"].get("content") or ""


def _expect(answer: requests.Response, status: int) -> None:
    if answer.status_code != status:
        raise click.ClickException(
            f"expected {status}, the gateway answered {answer.status_code}: {answer.text[:500]}"
        )


def _stop_on_signal() -> threading.Event:
    """Return what is set by Ctrl-C or SIGTERM from now on."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.set())
    return stopped
