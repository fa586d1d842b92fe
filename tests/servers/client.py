"""A strict client: http.client for whole answers, a plain socket for bytes of a test's own."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .apps import TOKEN
from .running import Running

SECONDS = 20
_numbers = itertools.count()


def chat(text: str = "one two three", *, stream: bool = False, padding: int = 0) -> bytes:
    """Return the body of a chat request, with `padding` further bytes."""
    message = {"role": "user", "content": text}
    body: dict[str, Any] = {"model": "stand-in-small", "messages": [message], "stream": stream}
    if padding:
        body["metadata"] = {"padding": "p" * padding}
    return json.dumps(body).encode()


def test_header(app: str, url: str = "") -> str:  # noqa: PT028  (no test)
    """Return the `X-Test` that names an application for the provider at `url`, a new one."""
    port = url.rpartition(":")[2] or "9"
    return f"{app} {port} {os.getpid()}.{next(_numbers)}"


test_header.__test__ = False  # type: ignore[attr-defined]


@contextmanager
def answer(
    server: Running, method: str, path: str, test: str, *, body: bytes | None = None, **headers: str
) -> Iterator[http.client.HTTPResponse]:
    """Send a request with a good key and yield the answer, its body unread."""
    sent = {"X-Test": test, "Authorization": f"Bearer {TOKEN}"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    try:
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        with response:
            yield response
    finally:
        connection.close()


def events(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the events of a stream, each as soon as its empty line has come."""
    event = b""
    while line := response.readline():
        event += line
        if line == b"\n":
            yield event
            event = b""


@contextmanager
def connected(server: Running) -> Iterator[socket.socket]:
    """Yield a plain connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as connection:
        yield connection


def request_bytes(method: str, target: str, *lines: str) -> bytes:
    """Return a request's head."""
    head = [f"{method} {target} HTTP/1.1", "Host: gateway.test", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1")


def received(connection: socket.socket, *, may_reset: bool = False) -> bytes:
    """Return one answer, or all that comes until the peer ends; a reset is an error."""
    data = b""
    try:
        while not _is_whole(data) and (block := connection.recv(65536)):
            data += block
    except ConnectionResetError:
        if not may_reset:
            raise
    return data


def _is_whole(data: bytes) -> bool:
    """Whether `data` is an answer of the length that it names.

    Some servers keep the connection open to read the rest of the request away.
    """
    head, end, body = data.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100"):  # Werkzeug says it twice
        head, end, body = body.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return bool(end and length) and len(body) >= int(length[1])  # type: ignore[index]


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.data)


def parsed(data: bytes) -> tuple[http.client.HTTPResponse, bytes]:
    """Read one answer that is all of `data`."""
    response = http.client.HTTPResponse(_Bytes(data))  # type: ignore[arg-type]
    response.begin()
    return response, response.read()
