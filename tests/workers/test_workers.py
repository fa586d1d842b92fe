"""Four gunicorn workers under load: keys that come and go, streams that end, workers that die."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aigw_middleware import open_store
from aigw_middleware.store import Store

from ..support import CHAT, RawRequest, raw_provider

WORKERS = 4
CLIENTS = 8
BODY = b'{"model": "gpt-4o"}'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


class Gunicorn(NamedTuple):
    port: int
    pid: int

    def workers(self) -> list[int]:
        """Return the workers' pids."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


@contextmanager
def gunicorn(app: str, url: str, upstream: str = "", **environ: str) -> Iterator[Gunicorn]:
    """Run `apps` under four workers that were forked after it was built."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        fd = listener.fileno()
        command = [
            sys.executable, "-m", "gunicorn", "--bind", f"fd://{fd}", "--workers", str(WORKERS),
            "--worker-class", "gthread", "--threads", "32", "--preload", "--log-level", "critical",
            "--no-control-socket", "--graceful-timeout", "5", f"tests.workers.apps:{app}()",
        ]  # fmt: skip
        process = subprocess.Popen(
            command,
            env={**os.environ, "TEST_STORE": url, "TEST_UPSTREAM": upstream, **environ},
            pass_fds=[fd],
            cwd=Path(__file__).parents[2],
        )
        server = Gunicorn(listener.getsockname()[1], process.pid)
        try:
            assert ask(server.port, "nobody") in (401, 404)
            yield server
        finally:
            process.terminate()
            process.wait(40)


def ask(port: int, token: str, body: bytes | None = None) -> int:
    """Send one request on a connection of its own; return the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        method = "GET" if body is None else "POST"
        path = "/" if body is None else CHAT
        connection.request(method, path, body, {"X-Api-Key": token})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


class Load:
    """Clients that ask with the present keys without a pause, and write down what they saw."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.tokens: list[str] = []
        self.seen: list[tuple[str, float, float, int]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self) -> None:
        choose = random.Random()
        while not self._stop.is_set():
            tokens = self.tokens[-4:]
            if not tokens:
                continue
            token = choose.choice(tokens)
            began = time.monotonic()
            status = ask(self.port, token)
            self.seen.append((token, began, time.monotonic(), status))


def test_keys_come_and_go_under_load(store: Store, url: str) -> None:
    """100 keys: none works after DELETE answered, each works at once and until DELETE was sent."""
    deleted: dict[str, tuple[float, float]] = {}
    with gunicorn("guarded", url) as server, Load(server.port) as load:
        for _ in range(100):
            key, token = store.keys.create()
            assert {ask(server.port, token) for _ in range(WORKERS)} == {200}
            load.tokens.append(token)
            sent = time.monotonic()
            store.keys.delete(key.id)
            deleted[token] = (sent, time.monotonic())
            assert {ask(server.port, token) for _ in range(WORKERS)} == {401}
    checked = 0
    for token, began, ended, status in load.seen:
        sent, answered = deleted[token]
        if began > answered:
            assert status == 401
        if ended < sent:
            assert status == 200
        checked += 1
    assert checked > 500  # the load was there all the time


CHANGES = [
    pytest.param(lambda keys, id_: keys.update(id_, disabled=True), 401, id="disable"),
    pytest.param(lambda keys, id_: keys.rotate(id_, grace=0), 401, id="rotate"),
    pytest.param(
        lambda keys, id_: keys.update(id_, expires_at=datetime.now(UTC)), 401, id="expiry"
    ),
    pytest.param(lambda keys, id_: keys.update(id_, networks=["10.0.0.0/8"]), 403, id="networks"),
]


@pytest.mark.parametrize(("change", "status"), CHANGES)
def test_a_change_counts_on_every_worker_with_the_next_request(
    store: Store, url: str, change: Any, status: int
) -> None:
    """Twenty keys are changed: every request after the change is judged by it."""
    with gunicorn("guarded", url) as server:
        for _ in range(20):
            key, token = store.keys.create()
            assert {ask(server.port, token) for _ in range(WORKERS * 2)} == {200}
            change(store.keys, key.id)
            assert {ask(server.port, token) for _ in range(WORKERS * 2)} == {status}


def test_streams_on_all_workers_end_within_a_second(store: Store, url: str) -> None:
    """Twenty streams, half of them on a silent provider: after DELETE all end, upstream too."""
    gone = threading.Semaphore(0)

    def handler(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(STREAM + b"9\r\ndata: 1\n\n\r\n")
        silent = b"silent" in request.body
        connection.settimeout(30 if silent else 0.05)
        try:
            while True:
                try:
                    if not connection.recv(1):
                        return
                except TimeoutError:
                    connection.sendall(b"9\r\ndata: 2\n\n\r\n")
        finally:
            gone.release()

    with raw_provider(handler) as provider, gunicorn("gateway", url, provider.url) as server:
        key, token = store.keys.create()
        started = threading.Barrier(21)
        ended: list[float] = []
        texts: list[bytes] = []

        def client(number: int) -> None:
            body = b'{"model": "silent"}' if number % 2 else BODY
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request("POST", CHAT, body, {"X-Api-Key": token})
            response = connection.getresponse()
            data = response.read1(100)
            started.wait()
            with suppress(http.client.HTTPException, ConnectionError):
                while block := response.read1(65536):
                    data += block
            ended.append(time.monotonic())
            texts.append(data)
            connection.close()

        threads = [threading.Thread(target=client, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        started.wait()
        store.keys.delete(key.id)
        answered = time.monotonic()
        for thread in threads:
            thread.join()
        assert max(ended) - answered < 1
        assert all(b"no longer valid" in text for text in texts)
        for _ in range(20):
            assert gone.acquire(timeout=1)


def test_killed_workers_lose_no_finished_request(store: Store, url: str) -> None:
    """Kill -9 of a random worker again and again: every answer that was read whole is booked."""

    def handler(connection: socket.socket, request: RawRequest) -> bool:
        connection.sendall(OK)
        return True

    _, token = store.keys.create()
    stop = threading.Event()
    finished = [0] * CLIENTS
    broken = [0] * CLIENTS

    def client(number: int, port: int) -> None:
        while not stop.is_set():
            try:
                if ask(port, token, BODY) == 200:
                    finished[number] += 1
                else:
                    broken[number] += 1
            except (http.client.HTTPException, ConnectionError):
                broken[number] += 1

    with raw_provider(handler) as provider, gunicorn("gateway", url, provider.url) as server:
        threads = [threading.Thread(target=client, args=(n, server.port)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for round_ in range(15):
            goal = sum(finished) + 30  # work goes on between the kills
            deadline = time.monotonic() + 20
            while sum(finished) < goal and time.monotonic() < deadline:
                stop.wait(0.005)
            with suppress(ProcessLookupError, IndexError):
                os.kill(random.Random(round_).choice(server.workers()), signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join()
    (row,) = store.usage.totals()
    assert sum(finished) >= 15 * 30
    assert sum(finished) <= row["requests"] <= sum(finished) + sum(broken)
    assert store.check() == []
    assert store.keys.verify(token) is not None
