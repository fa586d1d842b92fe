"""Start real servers as processes of their own, on loopback, and end them again."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
APP = "tests.servers.apps:application"
START = 30.0
STOP = 5.0
# What no inner app may see where a server copies the process's variables into the environ;
# `MARKED` is harmless and shows whether it does.
VARIABLES = {
    "OPENAI_API_KEY": "sk-of-the-process",
    "AIGW_SECRET": "secret-of-the-process",
    "HTTP_PROXY": "http://proxy.invalid:3128",
    "MARKED": "seen",
}


class Running(NamedTuple):
    """A server that answers."""

    name: str
    port: int
    log: Path


class _DidNotStart(Exception):
    pass


def command(name: str, fd: int, port: int) -> list[str]:
    """Return the command that runs `APP` under a server, on the socket `fd` where it takes one."""
    gunicorn = [sys.executable, "-m", "gunicorn", APP, "-b", f"fd://{fd}", "--log-level=warning"]
    uwsgi = str(Path(sys.executable).parent / "uwsgi")
    return {
        "gunicorn gthread": [*gunicorn, "-k", "gthread", "--threads", "8"],
        "gunicorn gevent": [*gunicorn, "-k", "gevent"],
        "gunicorn sync": [*gunicorn, "-k", "sync"],
        "waitress": [sys.executable, "-m", "tests.servers.serve", "waitress", str(fd)],
        "uWSGI": [
            uwsgi,
            "--http-socket",
            f"fd://{fd}",
            "--module",
            APP,
            "--enable-threads",
            "--threads",
            "8",
            "--need-app",
            "--disable-logging",
            "--die-on-term",
            "--virtualenv",
            sys.prefix,
        ],
        "cheroot": [sys.executable, "-m", "tests.servers.serve", "cheroot", str(fd)],
        "Granian": [
            sys.executable,
            "-m",
            "granian",
            "--interface",
            "wsgi",
            APP,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--blocking-threads",
            "8",
            "--log-level",
            "warning",
        ],
        "Werkzeug": [sys.executable, "-m", "tests.servers.serve", "werkzeug", str(fd)],
    }[name]


@contextmanager
def running(name: str) -> Iterator[Running]:
    """Run the server `name`, yield it when it answers, and end it."""
    with listener() as sock:
        if name != "Granian":
            with process(
                name, command(name, sock.fileno(), 0), port=sock.getsockname()[1], hand_over=sock
            ) as server:
                yield server
            return
    for _ in range(5):  # it opens its port itself: another process may have taken it
        port = free_port()
        try:
            with process(name, command(name, -1, port), port=port) as server:
                yield server
                return
        except _DidNotStart:
            continue
    raise AssertionError(f"{name} found no free port")


def listener() -> socket.socket:
    """Return a socket that listens on a free port of loopback."""
    return socket.create_server(("127.0.0.1", 0), backlog=128)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with listener() as sock:
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def process(
    name: str,
    argv: Sequence[str],
    *,
    port: int,
    hand_over: socket.socket | None = None,
    variables: Mapping[str, str] = VARIABLES,
    ready: str = "/",
) -> Iterator[Running]:
    """Run a command that serves `port`, yield when it answers, and end it and its children."""
    with tempfile.TemporaryDirectory(prefix="aigw-server-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            started = subprocess.Popen(
                argv,
                cwd=ROOT,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[hand_over.fileno()] if hand_over else [],
                start_new_session=True,
            )
        if hand_over:
            hand_over.close()  # else requests to a dead server would wait in its queue
        try:
            _wait_ready(started, port, ready, log)
            yield Running(name, port, log)
        finally:
            _end(started)


def _wait_ready(started: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    deadline = time.monotonic() + START
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START)
            connection.request("GET", path)
            if connection.getresponse().read() and started.poll() is None:
                return
        except OSError:
            pass
        finally:
            connection.close()
        if started.poll() is not None or time.monotonic() > deadline:
            raise _DidNotStart(log.read_text(errors="replace"))
        time.sleep(0.05)


def _end(started: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, then end it and what it has started (a session of its own)."""
    started.terminate()
    with suppress(subprocess.TimeoutExpired):
        started.wait(STOP)
    with suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()
