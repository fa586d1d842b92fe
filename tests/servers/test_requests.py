"""Requests: refused whole, chunked, with a raw path, odd headers, the process's variables."""

from __future__ import annotations

import http.client
import json
from contextlib import suppress
from typing import Any

import pytest

from aigw_middleware.testing import StandInProvider, serving

from ..support import CHAT, RawRequest, answering, raw_provider
from .apps import PROVIDER_KEY, SECRETS, TOKEN
from .client import (
    SECONDS,
    answer,
    chat,
    connected,
    parsed,
    received,
    request_bytes,
    test_header,
)
from .facts import Facts
from .running import VARIABLES, Running

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
PADDING = 60 * 1024


def exchange(
    server: Running, data: bytes, *, may_reset: bool = False
) -> tuple[http.client.HTTPResponse, bytes]:
    """Send bytes on a connection of their own and read the answer."""
    with connected(server) as connection:
        connection.sendall(data)
        return parsed(received(connection, may_reset=may_reset))


REFUSALS = [
    pytest.param("gateway", "not-the-token", "invalid_api_key", 401, id="401"),
    pytest.param("tight", TOKEN, "rate_limit_exceeded", 429, id="429"),
    pytest.param("small", TOKEN, "request_too_large", 413, id="413"),
]


def refused(server: Running, app: str, url: str) -> str:
    """Return the `X-Test` of an application that refuses, its limit spent."""
    test = test_header(app, url)
    if app == "tight":
        with answer(server, "POST", CHAT, test, body=chat()) as response:
            assert response.status == 200
            response.read()
    return test


@pytest.mark.parametrize(("app", "token", "code", "status"), REFUSALS)
def test_a_refusal_arrives_whole(
    server: Running, facts: Facts, app: str, token: str, code: str, status: int
) -> None:
    """A refusal reaches a client that has sent 60 KiB which nobody read, to a clean end."""
    provider = StandInProvider()
    with serving(provider) as url:
        test = refused(server, app, url)
        before = len(provider.requests)
        body = chat(padding=PADDING)
        head = request_bytes(
            "POST",
            CHAT,
            f"X-Test: {test}",
            f"Authorization: Bearer {token}",
            f"Content-Length: {len(body)}",
            "Content-Type: application/json",
            "Connection: close",
        )
        response, data = exchange(server, head + body)
        assert response.status == status
        assert json.loads(data)["error"]["code"] == code
        assert len(provider.requests) == before
    assert facts.refusal == "whole"


EXPECTING = [pytest.param("gateway", TOKEN, None, 200, id="served"), *REFUSALS]


@pytest.mark.parametrize(("app", "token", "code", "status"), EXPECTING)
def test_a_client_may_expect_100_continue(
    server: Running, facts: Facts, app: str, token: str, code: str | None, status: int
) -> None:
    """A client that sends its body only when asked to gets its answer, good or refused."""
    provider = StandInProvider()
    with serving(provider) as url:
        test = refused(server, app, url)
        body = chat(padding=PADDING)
        head = request_bytes(
            "POST",
            CHAT,
            f"X-Test: {test}",
            f"Authorization: Bearer {token}",
            f"Content-Length: {len(body)}",
            "Content-Type: application/json",
            "Expect: 100-continue",
            "Connection: close",
        )
        data = b""
        with connected(server) as connection:
            connection.sendall(head)
            # RFC 9110 §10.1.1: a client does not wait for ever, but sends its body after a while.
            connection.settimeout(1)
            with suppress(TimeoutError):
                data = connection.recv(25)
            connection.settimeout(SECONDS)
            asked = data == b"HTTP/1.1 100 Continue\r\n\r\n"
            if asked or not data:
                data = b""
                with suppress(ConnectionError):  # it may have been refused meanwhile
                    connection.sendall(body)
            response, content = parsed(data + received(connection, may_reset=True))
        assert response.status == status
        document = json.loads(content)
        assert document.get("error", {}).get("code") == code
        if status == 200:
            assert asked is (facts.expect == "asked")


@pytest.mark.parametrize("app", ["gateway", "proxy"])
def test_a_chunked_body(server: Running, facts: Facts, app: str) -> None:
    """A chunked body is forwarded whole where the server delimits it, else refused with 411."""
    body = chat(padding=PADDING)
    pieces = [body[:10], body[10:20_000], body[20_000:]]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
    provider = StandInProvider()
    with serving(provider) as url:
        head = request_bytes(
            "POST",
            CHAT,
            f"X-Test: {test_header(app, url)}",
            f"Authorization: Bearer {TOKEN}",
            "Content-Type: application/json",
            "Transfer-Encoding: chunked",
            "Connection: close",
        )
        # What cannot be delimited cannot be read away either.
        response, data = exchange(server, head + chunks, may_reset=facts.chunked == "411")
        if facts.chunked == "411":
            assert (response.status, response.headers["X-Aigw-Code"]) == (411, "length_required")
            assert list(provider.requests) == []
        else:
            assert response.status == 200, data
            assert [request.body for request in provider.requests] == [body]


def forwarded(server: Running, app: str, target: str, *lines: str) -> tuple[int, RawRequest | None]:
    """Send a GET; return the answer's status and what the provider got."""
    with raw_provider(answering(OK)) as provider:
        test = f"X-Test: {test_header(app, provider.url)}"
        key = f"Authorization: Bearer {TOKEN}"
        head = request_bytes("GET", target, test, key, *lines, "Connection: close")
        response, _ = exchange(server, head)
        assert len(provider.requests) <= 1
        return response.status, provider.requests[0] if provider.requests else None


@pytest.mark.parametrize("app", ["gateway", "proxy"])
def test_the_raw_path(server: Running, facts: Facts, app: str) -> None:
    """The path reaches the provider as the client sent it, or quoted anew from PATH_INFO."""
    _, got = forwarded(server, app, "/v1/files/a%2Fb%20c?q=%2F")
    assert got is not None
    path = {
        "as sent": "/v1/files/a%2Fb%20c",
        "quoted anew": "/v1/files/a/b%20c",
        "`%2F` as `%252F`": "/v1/files/a%252Fb%20c",
    }[facts.raw_path]
    assert got.line == f"GET {path}?q=%2F HTTP/1.1"


@pytest.mark.parametrize("app", ["gateway", "proxy"])
def test_a_target_in_absolute_form(server: Running, facts: Facts, app: str) -> None:
    """A target with scheme and authority is served as its path, or not at all."""
    status, got = forwarded(server, app, "http://elsewhere.test/v1/models?q=1")
    if facts.absolute == "served":
        assert status == 200
        assert got is not None
        assert got.line == "GET /v1/models?q=1 HTTP/1.1"
        assert got.headers["Host"].startswith("127.0.0.1:")
    else:
        assert (status, got) == (int(facts.absolute), None)


def test_duplicate_headers(server: Running, facts: Facts) -> None:
    """Of a header sent twice the provider gets both values in one line, or the last."""
    _, got = forwarded(server, "gateway", "/v1/models", "X-Dup: a", "X-Dup: b")
    assert got is not None
    values = [v.replace(", ", ",") for v in got.headers.getlist("X-Dup")]
    assert values == {"joined": ["a,b"], "last": ["b"]}[facts.duplicates]


def dumped(server: Running, app: str, *lines: str) -> dict[str, Any]:
    """Return the environ that an inner app found behind `app`."""
    test = f"X-Test: {test_header(app)}"
    key = f"Authorization: Bearer {TOKEN}"
    _, data = exchange(server, request_bytes("GET", "/", test, key, *lines, "Connection: close"))
    environ: dict[str, Any] = json.loads(data)
    return environ


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(("X-Team: client-a", "X_Team: client-b"), id="underscore last"),
        pytest.param(("X_Team: client-b", "X-Team: client-a"), id="underscore first"),
    ],
)
def test_an_underscore_is_no_way_past_a_header_that_is_set(
    server: Running, facts: Facts, lines: tuple[str, str]
) -> None:
    """`X_Team` never stands beside the `X-Team` that a HeaderRewriter sets, whatever arrives."""
    arrived = dumped(server, "bare", *lines)["HTTP_X_TEAM"].replace(", ", ",")
    values = ["client-a" if line.startswith("X-") else "client-b" for line in lines]
    assert (
        arrived
        == {
            "dropped": "client-a",
            "joined": ",".join(values),
            "last": values[1],
        }[facts.underscores]
    )
    _, got = forwarded(server, "gateway", "/v1/models", *lines)
    assert got is not None
    assert got.headers.getlist("X-Team") == ["search"]
    assert "client-" not in "\n".join(got.header_lines)


LAYERS = ["KeyAuth", "RateLimiter", "HeaderRewriter", "IPAllowlist", "UpstreamForwarder"]


def test_the_processs_variables(server: Running, facts: Facts) -> None:
    """Some servers copy the process's variables into the environ."""
    environ = dumped(server, "bare")
    assert set(environ["secrets_in_process"]) == set(SECRETS)
    copied = environ.keys() & VARIABLES.keys()
    assert copied == (set(VARIABLES) if facts.environment == "yes" else set())


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_lets_a_secret_variable_in(server: Running, layer: str) -> None:
    """Behind any layer neither the process's secrets nor HTTP_PROXY are in the environ."""
    environ = dumped(server, layer, "Proxy: http://evil.test")
    assert not environ.keys() & set(SECRETS)
    text = json.dumps(environ)
    for name in SECRETS:
        assert VARIABLES[name] not in text
    assert "evil.test" not in text


def test_the_clients_socket(server: Running, facts: Facts) -> None:
    """The client's socket is in the environ of the servers that are said to show it."""
    environ = dumped(server, "bare")
    shown = environ["gunicorn.socket"] or environ["werkzeug.socket"]
    assert shown is (facts.socket == "yes")


def test_the_provider_gets_our_key_alone(server: Running) -> None:
    """Through every server the provider sees its own key and not the client's."""
    _, got = forwarded(server, "gateway", "/v1/models")
    assert got is not None
    assert got.headers.getlist("Authorization") == [f"Bearer {PROVIDER_KEY}"]
    assert TOKEN not in "\n".join([got.line, *got.header_lines])
