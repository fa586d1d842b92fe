"""Streams: in lock step, broken off by the provider, left by the client."""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
from contextlib import ExitStack, suppress

import pytest

from aigw_middleware.testing import StandInProvider, serving

from ..support import CHAT, RawRequest, answering, raw_provider
from .client import SECONDS, answer, chat, events, test_header
from .facts import Facts
from .running import Running

EVENT = b'data: {"choices": []}\n\n'
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_a_stream_is_in_lock_step(server: Running, facts: Facts) -> None:
    """The client has each event before the provider sends the next one."""
    seen = threading.Semaphore(0)
    missed: list[int] = []

    def until_seen(number: int) -> None:
        if not seen.acquire(timeout=SECONDS):
            missed.append(number)

    provider = StandInProvider(between_events=until_seen)
    with serving(provider) as url:
        asked = json.loads(chat("one two three", stream=True))
        # Else the event with the usage is taken out, and nobody sees the last but one.
        body = json.dumps({**asked, "stream_options": {"include_usage": True}}).encode()
        with answer(server, "POST", CHAT, test_header("gateway", url), body=body) as response:
            count = 0
            for _ in events(response):
                count += 1
                seen.release()
    assert response.status == 200
    assert count >= 7
    assert missed == []
    assert facts.streams == "unbuffered"


@pytest.mark.parametrize(
    ("answer_bytes", "framed"),
    [
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n0123456789",
            "length",
            id="100 bytes announced, 10 sent",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunk(b"0123456789"),
            "chunked",
            id="chunks without end",
        ),
    ],
)
def test_a_broken_answer_never_looks_complete(
    server: Running, facts: Facts, answer_bytes: bytes, framed: str
) -> None:
    """A client that reads strictly can tell a broken answer, where the server aborts."""
    whole = None
    with raw_provider(answering(answer_bytes)) as provider:
        test = test_header("gateway", provider.url)
        with (
            suppress(http.client.HTTPException, ConnectionError),
            answer(server, "GET", "/v1/models", test) as response,
        ):
            whole = response.read()
    # A server that has sent nothing yet may still say 500.
    looks_complete = whole is not None and response.status == 200
    assert looks_complete is not (facts.abort == "always" or framed == "length")


def test_a_broken_stream_tells_by_an_event(server: Running, facts: Facts) -> None:
    """An event stream that broke off ends with an error event, then is aborted where it can be."""
    complete = False
    data = b""
    with raw_provider(answering(STREAM_HEAD + chunk(EVENT))) as provider:
        test = test_header("gateway", provider.url)
        with (
            suppress(http.client.HTTPException, ConnectionError),
            answer(server, "POST", CHAT, test, body=chat(stream=True)) as response,
        ):
            while block := response.read1(65536):  # unlike `readline` it tells what broke off
                data += block
            complete = True
    assert complete is (facts.abort != "always")
    if facts.told == "may be lost":
        return
    lines = data.splitlines(keepends=True)
    assert lines[:2] == EVENT.splitlines(keepends=True)
    assert json.loads(lines[2].removeprefix(b"data: "))["error"]["code"] == "upstream_unreachable"


def test_a_client_that_leaves_closes_the_providers_connection(
    server: Running, facts: Facts
) -> None:
    """Once the client has hung up, the provider's connection is closed.

    At once where the server shows the client's socket, though the provider is silent; else when
    more is to be written.
    """
    closed = threading.Event()

    def endless(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(STREAM_HEAD + chunk(EVENT))
        for _ in range(SECONDS * 50):
            if facts.hang_up == "at the next write":
                connection.sendall(chunk(EVENT))
            if select.select([connection], [], [], 0.02)[0]:  # nothing more is sent to it: its end
                closed.set()
                return

    with raw_provider(endless) as provider:
        test = test_header("gateway", provider.url)
        with answer(server, "POST", CHAT, test, body=chat(stream=True)) as response:
            assert next(events(response)) == EVENT
        assert closed.wait(SECONDS)


def test_a_revoked_key_ends_a_silent_stream(server: Running) -> None:
    """KEY-7: however silent the provider, and with other clients that wait as well."""
    gone = threading.Semaphore(0)

    def silent(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(STREAM_HEAD + chunk(EVENT))
        provider.wait_gone(connection)
        gone.release()

    with raw_provider(silent) as provider, ExitStack() as opened:
        for _ in range(2):
            test = test_header("revoked-soon", provider.url)
            opened.enter_context(answer(server, "POST", CHAT, test, body=chat(stream=True)))
        for _ in range(2):
            assert gone.acquire(timeout=SECONDS)
