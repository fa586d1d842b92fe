"""Where a provider tells its own address the client is told the gateway's."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from aigw_middleware import Provider, UpstreamForwarder
from aigw_middleware.forwarding.own_address import tells_address, with_own_address

from .support import answering, call, make_environ, raw_provider

BATCH = "/v1/messages/batches/b1"
TOLD = b'"results_url": "https://api.anthropic.com/v1/messages/batches/b1/results"'


@pytest.mark.parametrize(
    "variables", [{}, {"SCRIPT_NAME": "/ai"}, {"HTTP_X_FORWARDED_PROTO": "https"}]
)
def test_the_path_is_told_and_no_host(variables: Any) -> None:
    """SDKs put it behind their base URL, which nobody here knows: its scheme, where it is mounted."""
    environ = {**make_environ(BATCH), **variables}
    told = with_own_address(environ, b"{" + TOLD + b', "a": 1}')
    assert told == b'{"results_url": "/v1/messages/batches/b1/results", "a": 1}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"results_url": null}',
        b'{"results_url": "https://evil/x"}',
        b'{"results_url": "https:\\/\\/a\\/v1\\/messages\\/batches\\/b\\/results"}',
        b'{"other_url": "https://a/v1/messages/batches/b/results"}',
        b'{"text": "\\"results_url\\": \\"https://a/v1/messages/batches/b/results\\""}',
    ],
)
def test_no_other_byte_is_changed(body: bytes) -> None:
    """What is no such address passes as it is, and all of it around one."""
    assert with_own_address(make_environ(BATCH), body) == body


@pytest.mark.parametrize(
    ("rest", "tells"),
    [
        ("/messages/batches", True),
        ("/messages/batches/b", True),
        ("/messages/batches/b/cancel", True),
        ("/messages/batches/b/results", False),  # as long as it likes, and no address of ours
        ("/messages", False),
    ],
)
def test_only_batches_are_read(rest: str, tells: bool) -> None:
    """Every other answer streams as it comes."""
    assert tells_address(make_environ(f"/v1{rest}")) is tells
    assert not tells_address(make_environ("/v1/batches/b"))


def body_of(size: int) -> bytes:
    return b"{" + TOLD + b', "pad": "' + b"x" * size + b'"}'


@pytest.mark.parametrize("chunked", [False, True])
def test_the_length_fits_and_no_coding_is_asked_for(chunked: bool) -> None:
    """The body that the client gets is whole, in whatever form it came."""
    body = body_of(200_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    if chunked:
        data = head + b"Transfer-Encoding: chunked\r\n\r\n"
        data += b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        data = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with raw_provider(answering(data, keep=True)) as upstream:
        for forwarder in (
            UpstreamForwarder(
                upstream=Provider("anthropic", base_url=upstream.url, api_keys=["k"])
            ),
            UpstreamForwarder(upstream=upstream.url),
        ):
            answer = call(forwarder, BATCH, method="GET", HTTP_ACCEPT_ENCODING="gzip")
            assert answer.json["results_url"] == "/v1/messages/batches/b1/results"
            assert answer.headers["Content-Length"] == str(len(answer.body))
    assert {request.headers["Accept-Encoding"] for request in upstream.requests} == {"identity"}


@pytest.mark.parametrize("coded", [False, True])
def test_what_cannot_be_read_passes(coded: bool) -> None:
    """An answer of several MB, and one with a coding that nobody asked for."""
    body = gzip.compress(body_of(1)) if coded else body_of(3_000_000)
    coding = b"Content-Encoding: gzip\r\n" if coded else b""
    data = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b"
    with raw_provider(answering(data % (coding, len(body), body))) as upstream:
        provider = Provider("anthropic", base_url=upstream.url, api_keys=["k"])
        answer = call(UpstreamForwarder(upstream=provider), BATCH, method="GET")
    assert answer.body == body
