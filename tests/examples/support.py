"""Run an example as its own text says: the commands are read from there."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

EXAMPLES = Path(__file__).parents[2] / "examples"
BIND = "127.0.0.1:8000"
PROVIDER_KEY = "sk-provider-9876543210"
DEADLINE = 30
"""Seconds until a server must have answered for the first time, and until it must have ended."""


class Example:
    """An example in a working directory of its own.

    Args:
        text: where its commands stand: a README, or the module with its docstring.
        folder: the working directory.
        variables: the environment variables of its processes, besides `PATH` and `HOME`.
    """

    def __init__(self, text: Path, folder: Path, **variables: str) -> None:
        self.text = text.read_text()
        self.folder = folder
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **variables}

    def command(self, beginning: str) -> list[str]:
        """Return the one command of the text that begins so, cut into arguments."""
        (line,) = re.findall(rf"^ *(?:\$ )?({re.escape(beginning)} .*)$", self.text, re.MULTILINE)
        return shlex.split(line)

    def create_key(self) -> str:
        """Create a key as the text says; return its token."""
        return self.aigw(*self.command("aigw keys create")[1:]).strip()

    def aigw(self, *arguments: str) -> str:
        """Run the `aigw` command; return what it prints."""
        return subprocess.run(
            [sys.executable, "-m", "aigw_middleware", *arguments],
            cwd=self.folder,
            env=self.environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
        ).stdout

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve it with the text's gunicorn command, but on a free port; yield the URL."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            log = self.folder / "gunicorn.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", *self._gunicorn(listener.fileno())],
                    cwd=self.folder,
                    env=self.environment,
                    pass_fds=[listener.fileno()],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
        try:
            _wait_until_ready(url, log)
            yield url
        finally:
            _end(process)

    def _gunicorn(self, fd: int) -> list[str]:
        command = self.command("gunicorn")
        assert BIND in command
        return [f"fd://{fd}" if argument == BIND else argument for argument in command]


def _wait_until_ready(url: str, log: Path) -> None:
    """Wait for the first answer, whatever it is.

    The port is open already, so the question waits there; a server that dies lets it go.
    """
    try:
        requests.get(url, timeout=DEADLINE)
    except requests.RequestException as error:
        raise AssertionError(f"the server did not start:\n{log.read_text()}") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and see that its workers have ended with it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    process.terminate()
    try:
        process.wait(DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    assert [worker for worker in workers if Path(f"/proc/{worker}").exists()] == []
