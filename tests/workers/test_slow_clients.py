"""RUN-5: clients that send their headers slowly hold nobody up."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aigw_middleware import open_store

SERVE = """
import sys
from aigw_middleware.cli import main, worker
worker.HEAD_SECONDS = 2.0
sys.argv = ["aigw", "serve", "--bind", sys.argv[1], "--threads", "4", "--store", sys.argv[2]]
main()
"""
SLOW = 200


def test_slow_headers_hold_nobody_up_and_are_cut(tmp_path: Path) -> None:
    """With 200 dripping connections on 4 threads others are served; the slow ones are closed."""
    url = f"sqlite:///{tmp_path}/aigw.db"
    _, token = open_store(url).keys.create()
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        fd = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, f"fd://{fd}", url],
            env={**os.environ, "OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"},
            pass_fds=[fd],
        )
        port = listener.getsockname()[1]
        try:
            assert _ask(port, "/healthz") == 200
            _send_ahead(port)
            _drip(port, token)
            for beginning, more in OTHER_WAYS:
                _hold(port, beginning, more)
        finally:
            process.terminate()
            process.wait(40)


_REFUSED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
OTHER_WAYS = [
    (b"\r\n\r\n", b"\r\n"),  # empty lines in front of a head
    (b"GET /healthz HTTP/1.1\r\n" + b"X-Long: a\r\n" * 8000, b"a"),  # a head without an end
    (b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n", b"a"),  # unread bodies
    (b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nea60\r\n", b"a"),
    (_REFUSED + b"Content-Length: 60000\r\n\r\n", b"a"),
]


@contextmanager
def _dripping(
    port: int, clients: int, beginning: bytes, more: bytes, seconds: float
) -> Iterator[list[socket.socket]]:
    """Begin so many requests, and let each drip on every few seconds, until it is cut."""
    slow = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(clients)]
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(seconds):
            for sock in slow:
                with suppress(OSError):  # it was cut
                    sock.sendall(more)

    for sock in slow:
        with suppress(OSError):
            sock.sendall(beginning)
    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield slow
    finally:
        stop.set()
        thread.join()
        for sock in slow:
            sock.close()


def _hold(port: int, beginning: bytes, more: bytes) -> None:
    """Begin twelve requests on four threads and let each drip: others are served, they are cut."""
    with _dripping(port, 12, beginning, more, 0.1) as slow:
        for _ in range(5):
            assert _ask(port, "/healthz") == 200
        for sock in slow:
            with suppress(ConnectionResetError):
                while sock.recv(65536):
                    continue


def _send_ahead(port: int) -> None:
    """Send requests without waiting for answers (RFC 9112 §9.3.2): each is answered in its order."""
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    post = b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(get + get + post + last)
        data = b""
        while more := sock.recv(65536):
            data += more
    assert data.count(b"HTTP/1.1 200") == 4


def _drip(port: int, token: str) -> None:
    with _dripping(port, SLOW, b"GET /healthz HTTP/1.1\r\nX-Slow: ", b"a", 0.2) as slow:
        for _ in range(20):
            assert _ask(port, "/healthz") == 200
            assert _ask(port, "/v1/models", {"X-Api-Key": token}) == 502
        for sock in slow:
            with suppress(ConnectionResetError):
                assert sock.recv(1) == b""


def _ask(port: int, path: str, headers: dict[str, str] | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()
