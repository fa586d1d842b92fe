"""RUN-4: what `aigw serve` makes of requests that two readers could take differently."""

from __future__ import annotations

from contextlib import suppress

import pytest

from ..support import CHAT, answering, raw_provider
from .apps import TOKEN
from .client import chat, connected, test_header
from .running import Running

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
BODY = chat()
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + TOKEN.encode()

CASES = [
    pytest.param(
        [f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"], CHUNKED, id="both"
    ),
    pytest.param(["Content-Length: 5_0"], BODY, id="5_0"),
    pytest.param([f"Content-Length: +{len(BODY)}"], BODY, id="a sign"),
    pytest.param([f"Content-Length: {len(BODY)}, {len(BODY)}"], BODY, id="a list"),
    pytest.param([f"Content-Length: {len(BODY)}", "Content-Length: 5"], BODY, id="two lengths"),
    pytest.param(["Transfer-Encoding: chunked"], CHUNKED.replace(b"\r\n", b"\n"), id="bare LF"),
    pytest.param(["Transfer-Encoding: chunked"], b"0x5\r\nabcde\r\n0\r\n\r\n", id="0x5"),
    pytest.param(["Transfer-Encoding: xchunked"], CHUNKED, id="another coding"),
    pytest.param(["Transfer-Encoding : chunked"], CHUNKED, id="a space before the colon"),
]


@pytest.mark.parametrize(
    "server", ["gunicorn gthread", "gunicorn gevent"], indirect=True, scope="session"
)
@pytest.mark.parametrize(("lines", "body"), CASES)
def test_no_second_request_is_seen(server: Running, lines: list[str], body: bytes) -> None:
    """RUN-4: refused, or read in one way; what is behind never becomes a request of its own."""
    with raw_provider(answering(OK, keep=True)) as provider:
        head = "\r\n".join(
            [
                f"POST {CHAT} HTTP/1.1",
                "Host: gateway.test",
                f"X-Test: {test_header('gateway', provider.url)}",
                f"Authorization: Bearer {TOKEN}",
                "Content-Type: application/json",
                *lines,
                "",
                "",
            ]
        ).encode()
        with connected(server) as connection:
            connection.sendall(head + body + SMUGGLED)
            connection.settimeout(2)
            answered = b""
            # It waits for the rest of what stands behind, or has cut us off.
            with suppress(TimeoutError, ConnectionError):
                while block := connection.recv(65536):
                    answered += block
        assert len(provider.requests) <= 1
        assert all(request.body == BODY for request in provider.requests)
        assert answered.count(b"HTTP/1.1 200") <= 1
