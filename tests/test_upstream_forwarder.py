"""`UpstreamForwarder`, over both transports (FWD-1 to FWD-9, STR, HDR-2, SEC-2)."""

from __future__ import annotations

import errno
import gzip
import json
import logging
import os
import socket
import threading
from functools import partial
from io import BytesIO
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from aigw_middleware import ModelAccess, Provider, UpstreamForwarder, open_store, stack
from aigw_middleware.errors import ClientLeft, UpstreamBroken, UpstreamTimeout
from aigw_middleware.forwarding.health import health
from aigw_middleware.forwarding.transport import _Connection
from aigw_middleware.forwarding.url import BaseURL, _spelled, raw_path
from aigw_middleware.testing import StandInProvider, serving

from .support import (
    CHAT,
    Inner,
    RawRequest,
    answering,
    call,
    in_child,
    make_environ,
    raw_provider,
    send,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = json.dumps({"model": "gpt-4o", "messages": []}).encode()
KEY = "sk-provider-0123456789"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture(params=["socket", "adapter"])
def transport(request: pytest.FixtureRequest) -> Any:
    """Options that choose the transport: our own, or a requests adapter."""
    if request.param == "socket":
        yield {}
        return
    adapter = HTTPAdapter()
    yield {"transport": adapter}
    adapter.close()


def openai(url: str, **options: Any) -> Provider:
    return Provider("openai", base_url=f"{url}/v1", **{"api_keys": [KEY], **options})


def start(app: Any, environ: dict[str, Any]) -> tuple[list[Any], Any]:
    """Call `app` without reading its body."""
    started: list[Any] = []
    iterable = app(environ, lambda *args: started.append(args))
    return started, iterable


# --- what reaches the provider


def test_a_chat_reaches_the_provider_with_its_own_key(transport: Any) -> None:
    """The body byte for byte, the provider's key, nothing of the client's."""
    provider = StandInProvider(api_keys=[KEY])
    body = b'{ "model" : "m",\n "messages":[{"role":"user","content":"h\xc3\xa9"}] }'
    with serving(provider) as url:
        app = UpstreamForwarder(upstream=openai(url), **transport)
        answer = call(
            app,
            CHAT,
            body=body,
            CONTENT_TYPE="application/json; charset=utf-8",
            HTTP_AUTHORIZATION="Bearer client",
            HTTP_X_API_KEY="client",
            HTTP_API_KEY="client",
            HTTP_X_GOOG_API_KEY="client",
            HTTP_COOKIE="session=client",
            HTTP_PROXY_AUTHORIZATION="client",
            QUERY_STRING="key=client",
        )
    assert answer.json["choices"][0]["message"]["content"] == "You said: hé"
    (seen,) = provider.requests
    assert seen.body == body
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.headers["content-type"] == "application/json; charset=utf-8"
    assert "client" not in repr(seen)


AUTH = [
    pytest.param("openai", CHAT, "authorization", f"Bearer {KEY}", id="OpenAI"),
    pytest.param("anthropic", "/v1/messages", "x-api-key", KEY, id="Anthropic"),
    pytest.param("anthropic", CHAT, "authorization", f"Bearer {KEY}", id="Anthropic's OpenAI form"),
    pytest.param(
        "google", "/v1beta/models/g:generateContent", "x-goog-api-key", KEY, id="SEC-2: Gemini"
    ),
    pytest.param("google", CHAT, "authorization", f"Bearer {KEY}", id="Gemini's OpenAI form"),
]


@pytest.mark.parametrize(("name", "path", "header", "value"), AUTH)
def test_each_provider_gets_its_key_in_its_header(
    name: str, path: str, header: str, value: str, transport: Any
) -> None:
    """SEC-2: the key goes in the header that the vendor documents, never into the URL."""
    with raw_provider(answering(OK)) as provider:
        upstream = Provider(name, base_url=f"{provider.url}/base", api_keys=[KEY])
        answer = call(UpstreamForwarder(upstream=upstream, **transport), path, body=BODY)
    (seen,) = provider.requests
    assert answer.status == 200
    assert seen.headers[header] == value
    assert sum(KEY in line for line in seen.header_lines) == 1
    assert KEY not in seen.line


TARGETS = [
    pytest.param("openai", CHAT, "/base/chat/completions", id="/v1 stands for the base URL"),
    pytest.param("google", "/v1beta/models/g:generateContent", "/base/models/g:generateContent", id="/v1beta too"),
    pytest.param("google", "/v1/models/g:generateContent", "/base/models/g:generateContent", id="Gemini at /v1"),
    pytest.param("google", CHAT, "/base/openai/chat/completions", id="Gemini's OpenAI form"),
    pytest.param("openai", "/v1/files/a b/content", "/base/files/a%20b/content", id="quoted anew"),
    pytest.param("openai", "/v1/files/", "/base/files/", id="a slash at the end"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "target"), TARGETS)
def test_where_a_provider_is_asked(name: str, path: str, target: str, transport: Any) -> None:
    """The client's version prefix stands for the provider's base URL."""
    with raw_provider(answering(OK)) as provider:
        upstream = Provider(name, base_url=f"{provider.url}/base/", api_keys=[KEY])
        method = {} if "files" in path else {"body": BODY}
        call(UpstreamForwarder(upstream=upstream, **transport), path, **method)
    assert provider.requests[0].line.split()[1] == target


RAW = [
    pytest.param("/v1/files/a%2Fb", "/v1/files/a/b", "", "/v1/files/a%2Fb", id="an encoded slash"),
    pytest.param("/v1/files/%C3%A9?a=%20", "/v1/files/\xc3\xa9", "a=%20", "/v1/files/%C3%A9?a=%20", id="UTF-8 and a query"),
    pytest.param("http://x:8/v1/models", "/v1/models", "", "/v1/models", id="absolute form"),
    pytest.param("/v1/files/a%20b", "/v1/files/changed", "", "/v1/files/changed", id="a layer changed the path"),
    pytest.param("/%761/models", "/v1/models", "", "/%761/models", id="an encoded letter"),
    pytest.param(None, "/v1/files/a?b", "", "/v1/files/a%3Fb", id="no raw target"),
    pytest.param(None, "/v1/files/a", "b=c&d=%26", "/v1/files/a?b=c&d=%26", id="the query as it came"),
    pytest.param(None, "/v1/files", "key=s&a=1&k%65y=t", "/v1/files?a=1", id="?key= is never sent"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "path", "query", "target"), RAW)
def test_the_path_that_is_judged_is_the_path_that_is_sent(
    raw: str | None, path: str, query: str, target: str, transport: Any
) -> None:
    """The raw target is sent where it means the judged path, else that path quoted anew."""
    extra = {} if raw is None else {"RAW_URI": raw}
    with raw_provider(answering(OK)) as provider:
        app = UpstreamForwarder(upstream=provider.url, **transport)
        call(app, path, QUERY_STRING=query, **extra)
    assert provider.requests[0].line.split()[1] == target


JOINS = [
    ("", "/v1/models", "/v1/models"),
    ("/", "/v1/models", "/v1/models"),
    ("/v1", "/v1/models", "/v1/models"),
    ("/api/v1/", "/v1/models", "/api/v1/models"),
    ("/api", "/v1/models", "/api/v1/models"),
    ("/v1", "/v10/x", "/v1/v10/x"),
    ("/base", "/", "/base/"),
    ("", "//double", "//double"),
]


@pytest.mark.parametrize(("base", "path", "target"), JOINS)
def test_a_plain_url_gets_the_path_behind_its_own(base: str, path: str, target: str) -> None:
    """A common /v1 at the seam is not doubled."""
    with raw_provider(answering(OK)) as provider:
        call(UpstreamForwarder(upstream=provider.url + base), path)
    assert provider.requests[0].line.split()[1] == target


def test_mounted_below_a_prefix() -> None:
    """A provider gets the path behind the mount, a plain URL the whole one."""
    with raw_provider(answering(OK)) as provider:
        call(UpstreamForwarder(upstream=openai(provider.url)), CHAT, SCRIPT_NAME="/gw", body=BODY)
        call(UpstreamForwarder(upstream=provider.url), "/x", SCRIPT_NAME="/gw")
        call(UpstreamForwarder(upstream=openai(provider.url)), "/models", SCRIPT_NAME="/v1")
        call(UpstreamForwarder(upstream=openai(provider.url)), "/models", SCRIPT_NAME="/app/v1")
    targets = [request.line.split()[1] for request in provider.requests]
    assert targets == [CHAT, "/gw/x", "/v1/models", "/v1/models"]


def test_headers_go_on_but_for_those_of_the_connection(transport: Any) -> None:
    """HDR-2: hop-by-hop headers and those that `Connection` names go; our credential stays."""
    with raw_provider(answering(OK)) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url), **transport)
        call(
            app,
            CHAT,
            body=BODY,
            HTTP_CONNECTION="authorization, x-api-key, X-Named",
            HTTP_X_NAMED="1",
            HTTP_X_KEPT="2",
            HTTP_TE="trailers",
            HTTP_UPGRADE="websocket",
            HTTP_KEEP_ALIVE="5",
            HTTP_X_FORWARDED_FOR="192.0.2.1",
            HTTP_FORWARDED="for=192.0.2.1",
            HTTP_OPENAI_ORGANIZATION="org-1",
            HTTP_OPENAI_PROJECT="proj-1",
            HTTP_ACCEPT_ENCODING="gzip, br",
            HTTP_USER_AGENT="sdk/1",
            HTTP_HOST="gateway.example",
        )
    names = {line.partition(":")[0].lower() for line in provider.requests[0].header_lines}
    assert names - {"connection"} == {
        "host", "x-kept", "accept-encoding", "user-agent", "content-length", "authorization",
    }  # fmt: skip
    assert provider.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    # No coding is asked for in which no meter here could read the usage.
    assert provider.requests[0].headers["Accept-Encoding"] == "gzip"
    assert provider.requests[0].headers["Host"] == f"127.0.0.1:{provider.port}"


def test_a_plain_url_gets_cookies_and_forwarding_headers_but_no_credentials(transport: Any) -> None:
    """A reverse proxy passes on what is not a credential."""
    with raw_provider(answering(OK)) as provider:
        app = UpstreamForwarder(upstream=provider.url, **transport)
        call(app, "/x", HTTP_COOKIE="a=1", HTTP_X_FORWARDED_FOR="192.0.2.1", HTTP_X_API_KEY="k")
    headers = provider.requests[0].headers
    assert (headers["Cookie"], headers["X-Forwarded-For"]) == ("a=1", "192.0.2.1")
    assert "X-Api-Key" not in headers


@pytest.mark.parametrize(
    ("path", "header"),
    [(CHAT, "authorization"), ("/v1/messages", "x-api-key"), ("/v1beta/models", "x-goog-api-key"), ("/page", "authorization")],
)  # fmt: skip
def test_a_plain_urls_key_goes_into_the_header_of_the_paths_dialect(path: str, header: str) -> None:
    """`api_key` is presented as the dialect of the path wants it."""
    with raw_provider(answering(OK)) as provider:
        call(UpstreamForwarder(upstream=provider.url, api_key=KEY), path)
    assert KEY in provider.requests[0].headers[header]


def test_no_headers_are_invented(transport: Any) -> None:
    """A client that sends no User-Agent or Accept-Encoding is not given one."""
    with raw_provider(answering(OK)) as provider:
        call(UpstreamForwarder(upstream=provider.url, **transport), "/x", HTTP_HOST="h")
    names = {line.partition(":")[0].lower() for line in provider.requests[0].header_lines}
    assert names <= {"host", "connection"}


def test_a_header_with_a_line_end_is_refused() -> None:
    """What a faulty layer put into the environ cannot split the request."""
    with raw_provider(answering(OK)) as provider:
        app = UpstreamForwarder(upstream=provider.url)
        environ = make_environ("/x", HTTP_X_A="1\r\nX-Admin: 1")
        started, _ = start(app, environ)
    assert started[0][0].startswith("400")
    assert provider.requests == []


# --- bodies


def test_bodies_of_any_size_arrive_whole(transport: Any) -> None:
    """Empty, small, and larger than memory keeps; to a provider with their length."""
    with raw_provider(answering(OK, keep=True)) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url), **transport)
        for size in (0, 10, 3_000_000):
            data = os.urandom(size)
            assert call(app, "/v1/files", body=data).status == 200
            assert provider.requests[-1].body == data
            assert provider.requests[-1].headers["Content-Length"] == str(size)


def test_a_chunked_body_goes_to_a_plain_url_as_it_comes(transport: Any) -> None:
    """Each block is sent before the next one is read from the client."""
    seen = threading.Event()
    order: list[str] = []

    def handler(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(OK)

    class Input(BytesIO):
        blocks = iter([b"first", b"second", b""])

        def read1(self, size: int | None = -1) -> bytes:
            block = next(self.blocks)
            if block == b"second":
                order.append("waiting")
                assert seen.wait(10)
            return block

    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        data = b""
        while b"first" not in data:
            data += connection.recv(65536)
        seen.set()
        while not data.endswith(b"0\r\n\r\n"):
            data += connection.recv(65536)
        order.append(data.partition(b"\r\n\r\n")[2].decode())
        connection.sendall(OK)
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    app = UpstreamForwarder(upstream=f"http://127.0.0.1:{listener.getsockname()[1]}", **transport)
    environ = make_environ("/up", body=b"", HTTP_TRANSFER_ENCODING="chunked")
    environ["wsgi.input"] = Input()
    _, iterable = start(app, environ)
    assert b"".join(iterable) == b"ok"
    thread.join()
    listener.close()
    assert order == ["waiting", "5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("kind", ["provider", "url"])
def test_a_body_over_the_bound_is_refused(chunked: bool, kind: str, transport: Any) -> None:
    """FWD-9: 413 with and without a length, and no answer of the provider is waited for."""
    with raw_provider(answering(OK)) as provider:
        upstream = openai(provider.url) if kind == "provider" else provider.url
        app = UpstreamForwarder(upstream=upstream, max_body_bytes=100, **transport)
        extra = {"HTTP_TRANSFER_ENCODING": "chunked"} if chunked else {}
        answer = call(app, "/v1/files", body=b"x" * 101, **extra)
    assert (answer.status, answer.code) == (413, "request_too_large")
    assert provider.requests == []


@pytest.mark.parametrize("kind", ["provider", "url"])
def test_a_body_that_breaks_off_is_400_and_never_whole_upstream(kind: str, transport: Any) -> None:
    """The provider never sees a request that looks complete."""
    with raw_provider(answering(OK)) as provider:
        upstream = openai(provider.url) if kind == "provider" else provider.url
        app = UpstreamForwarder(upstream=upstream, **transport)
        environ = make_environ("/v1/files", body=b"abc")
        environ["CONTENT_LENGTH"] = "5"
        assert send(app, environ).code == "invalid_request"
    assert provider.requests == []


NOT_JSON = [b"", b"x", b"[]", b'{"model":"a","model":"b"}', b'{"model":5}', b"{}", b'{"model":""}']


@pytest.mark.parametrize("body", NOT_JSON, ids=repr)
def test_what_is_no_json_with_a_model_is_refused_and_not_sent(body: bytes) -> None:
    """`invalid_request`, and the provider sees nothing."""
    with raw_provider(answering(OK)) as provider:
        answer = call(UpstreamForwarder(upstream=openai(provider.url)), CHAT, body=body)
    assert (answer.status, answer.code, provider.requests) == (400, "invalid_request", [])


def test_what_a_body_names_as_an_address_has_no_effect() -> None:
    """FWD-6: `api_base`, `base_url` and `api_key` in a body are the provider's to read."""
    body = json.dumps(
        {"model": "m", "api_base": "http://other", "base_url": "http://other", "api_key": "x"}
    ).encode()
    with raw_provider(answering(OK)) as provider:
        assert call(UpstreamForwarder(upstream=openai(provider.url)), CHAT, body=body).status == 200
    assert provider.requests[0].body == body
    assert provider.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def test_multipart_and_other_paths_are_not_judged() -> None:
    """A path that takes no JSON gets what the client sends."""
    with raw_provider(answering(OK)) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url))
        data = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n\x00\xff\r\n--x--'
        call(
            app,
            "/v1/audio/transcriptions",
            body=data,
            CONTENT_TYPE="multipart/form-data; boundary=x",
        )
    assert provider.requests[0].body == data


# --- what comes back


def test_an_answer_comes_back_as_it_is(transport: Any) -> None:
    """Status, reason, duplicate headers and bytes; our request id beside the provider's."""
    head = (
        b"HTTP/1.1 299 Odd\r\nX-Request-Id: theirs\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nServer: s\r\nDate: d\r\n"
        b"Content-Type: application/octet-stream\r\nContent-Length: 3\r\n\r\n"
    )
    with raw_provider(answering(head + b"\x00\xff\n")) as provider:
        app = UpstreamForwarder(upstream=provider.url, **transport)
        environ = make_environ("/x", HTTP_X_REQUEST_ID="ours")
        started, iterable = start(app, environ)
        body = b"".join(iterable)
    status, headers = started[0]
    assert (status, body) == ("299 Odd", b"\x00\xff\n")
    assert headers == [
        ("X-Request-Id", "theirs"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"),
        ("Content-Type", "application/octet-stream"), ("Content-Length", "3"),
        ("X-Aigw-Request-Id", "ours"),
    ]  # fmt: skip


def test_a_compressed_body_is_not_touched(transport: Any) -> None:
    """FWD-7: gzip goes on as its bytes, with its header."""
    data = gzip.compress(b"x" * 100_000)
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
        % len(data)
    )
    with raw_provider(answering(head + data)) as provider:
        answer = call(
            UpstreamForwarder(upstream=provider.url, **transport), "/x", HTTP_ACCEPT="text/plain"
        )
    assert (answer.body, answer.headers["Content-Encoding"]) == (data, "gzip")


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"],
    ids=["204", "304"],
)  # fmt: skip
def test_answers_without_a_body(head: bytes, transport: Any) -> None:
    """FWD-4: nothing is waited for and nothing goes on."""
    with raw_provider(answering(head)) as provider:
        answer = call(UpstreamForwarder(upstream=provider.url, **transport), "/x")
    assert answer.body == b""
    assert "Content-Length" not in answer.headers


def test_head_has_a_length_and_no_body(transport: Any) -> None:
    """FWD-4: the answer to HEAD keeps its Content-Length and has no body."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\n"
    with raw_provider(answering(head)) as provider:
        answer = call(
            UpstreamForwarder(upstream=provider.url, **transport), "/x", REQUEST_METHOD="HEAD"
        )
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "5")


def test_redirects_are_the_clients_to_follow(transport: Any) -> None:
    """FWD-5: a 307 goes on as it is, and nobody connects to its target."""
    with raw_provider(answering(OK)) as other:
        redirect = f"HTTP/1.1 307 X\r\nContent-Type: a/b\r\nLocation: {other.url}/x\r\nContent-Length: 0\r\n\r\n".encode()
        with raw_provider(answering(redirect)) as provider:
            answer = call(
                UpstreamForwarder(upstream=openai(provider.url), **transport), CHAT, body=BODY
            )
        assert (answer.status, answer.headers["Location"]) == (307, f"{other.url}/x")
        assert other.connections == 0


def test_no_cookies_are_kept(transport: Any) -> None:
    """A cookie that the provider sets is not sent with the next request."""
    cookie = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\n\r\n"
    with raw_provider(answering(cookie, keep=True)) as provider:
        app = UpstreamForwarder(upstream=provider.url, **transport)
        call(app, "/x")
        call(app, "/x")
    assert all("Cookie" not in request.headers for request in provider.requests)


def test_proxy_variables_and_netrc_are_not_read(
    transport: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The environment of the process chooses no way and no credential."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login u password p\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with raw_provider(answering(OK)) as provider:
        assert call(UpstreamForwarder(upstream=provider.url, **transport), "/x").status == 200
    assert "Authorization" not in provider.requests[0].headers


def test_informational_answers_are_skipped() -> None:
    """1xx before the answer is not the answer."""
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    with raw_provider(answering(early + OK)) as provider:
        assert call(UpstreamForwarder(upstream=provider.url), "/x").body == b"ok"


# --- streams


def test_each_event_arrives_before_the_next_is_sent(transport: Any) -> None:
    """STR-1: what has come is handed on, nothing is waited for."""
    seen = [threading.Event() for _ in range(5)]

    def handler(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(STREAM)
        for number, event in enumerate(seen):
            connection.sendall(chunk(b"data: %d\n\n" % number))
            assert event.wait(10)
        connection.sendall(b"0\r\n\r\n")

    with raw_provider(handler) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url), **transport)
        _, iterable = start(app, make_environ(CHAT, body=BODY))
        for number, event in enumerate(seen):
            assert next(iterable) == b"data: %d\n\n" % number
            event.set()
        assert list(iterable) == []
        iterable.close()


def test_when_the_client_goes_the_providers_connection_closes(transport: Any) -> None:
    """STR-2: `close()` in mid-stream is seen by the provider at once."""

    def handler(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(STREAM + chunk(b"data: 1\n\n"))
        provider.wait_gone(connection)

    with raw_provider(handler) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url), **transport)
        _, iterable = start(app, make_environ(CHAT, body=BODY))
        assert next(iterable) == b"data: 1\n\n"
        iterable.close()
        assert provider.gone.wait(5)


def test_a_client_that_goes_before_the_first_chunk_closes_it_too(transport: Any) -> None:
    """`close()` without a read is enough."""

    def handler(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(STREAM + chunk(b"data: 1\n\n"))
        provider.wait_gone(connection)

    with raw_provider(handler) as provider:
        _, iterable = start(
            UpstreamForwarder(upstream=openai(provider.url), **transport),
            make_environ(CHAT, body=BODY),
        )
        iterable.close()
        iterable.close()
        assert provider.gone.wait(5)


def reset(connection: socket.socket) -> None:
    import struct

    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def resetting(data: bytes, first: threading.Event | None = None) -> Any:
    def handler(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(data)
        if first is not None:
            assert first.wait(10)
        reset(connection)

    return handler


BREAKS = [
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789", id="FWD-1: a short body"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n", id="FWD-2: no end"
    ),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n0123456789", id="FWD-2: in a chunk"
    ),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\nzz\r\n",
        id="FWD-2: a chunk size that is none",
    ),
]  # fmt: skip


@pytest.mark.parametrize("data", BREAKS)
def test_a_body_that_breaks_off_raises(data: bytes, transport: Any) -> None:
    """FWD-1, FWD-2: the bytes that came are handed on, then the iterable raises."""
    with raw_provider(answering(data)) as provider:
        _, iterable = start(
            UpstreamForwarder(upstream=provider.url, **transport), make_environ("/x")
        )
        assert next(iterable) == b"0123456789"
        with pytest.raises(UpstreamBroken):
            next(iterable)
        iterable.close()


EVENTS = [
    pytest.param(CHAT, "openai", None, id="OpenAI chat"),
    pytest.param("/v1/responses", "openai", "error", id="OpenAI responses"),
    pytest.param("/v1/messages", "anthropic", "error", id="Anthropic"),
    pytest.param("/v1beta/models/g:streamGenerateContent", "google", None, id="Gemini"),
]


@pytest.mark.parametrize(("path", "name", "event"), EVENTS)
def test_a_stream_that_breaks_off_ends_with_an_error_event(
    path: str, name: str, event: str | None, transport: Any
) -> None:
    """FWD-1, STR-3: an error event in the client's dialect, then the iterable raises."""
    first = threading.Event()
    with raw_provider(resetting(STREAM + chunk(b"data: torn"), first)) as provider:
        upstream = Provider(name, base_url=f"{provider.url}/v1", api_keys=[KEY])
        app = UpstreamForwarder(upstream=upstream, **transport)
        _, iterable = start(app, make_environ(path, body=BODY))
        assert next(iterable) == b"data: torn"
        first.set()
        told = next(iterable).decode()
        with pytest.raises(UpstreamBroken):
            next(iterable)
        iterable.close()
    lines = told.strip().split("\n")
    assert told.startswith("\n\n")  # the torn line is ended first
    assert lines[0] == (f"event: {event}" if event else lines[0])
    assert "error" in json.loads(lines[-1].removeprefix("data: "))


GARBAGE = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"garbage\r\n\r\n", id="no HTTP"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n1234567", id="FWD-3: two lengths"),
    pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="FWD-2: a bad first chunk"),
    pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", id="FWD-2: no chunk"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", id="FWD-1: no byte of the body"),
]  # fmt: skip


@pytest.mark.parametrize("data", GARBAGE)
def test_an_answer_that_is_none_is_502(data: bytes, transport: Any) -> None:
    """Before the first byte: `upstream_unreachable`, not to be retried, as it may have been billed."""
    with raw_provider(answering(data)) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url), **transport)
        answer = call(app, CHAT, body=BODY)
    assert (answer.status, answer.code) == (502, "upstream_unreachable")
    assert answer.headers["x-should-retry"] == "false"
    assert provider.connections == 1


STRICT = [
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", id="broken off in its headers"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        id="FWD-3: a length and chunks",
    ),
    pytest.param(b"HTTP/1.1 101 X\r\n\r\n", id="switching protocols"),
    pytest.param(b"HTTP/1.1 100 X\r\n\r\n" * 20 + OK, id="endless informational answers"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000, id="endless headers"),
]


@pytest.mark.parametrize("data", STRICT)
def test_the_own_transport_is_stricter(data: bytes) -> None:
    """What http.client would read in some way is refused by ours."""
    with raw_provider(answering(data)) as provider:
        answer = call(UpstreamForwarder(upstream=provider.url), "/x")
    assert answer.code == "upstream_unreachable"


# --- unreachable, slow


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_a_refused_connection_is_502_and_may_be_retried(transport: Any) -> None:
    """Nothing went out: the client may try again."""
    app = UpstreamForwarder(upstream=openai(f"http://127.0.0.1:{free_port()}"), **transport)
    answer = call(app, CHAT, body=BODY)
    assert (answer.status, answer.code) == (502, "upstream_unreachable")
    assert "x-should-retry" not in answer.headers


def test_a_host_that_is_not_known_is_502(transport: Any) -> None:
    """A name that does not resolve is unreachable, and no address is told to the client."""
    app = UpstreamForwarder(upstream="http://no-such-host.invalid", **transport)
    answer = call(app, "/x")
    assert answer.code == "upstream_unreachable"
    assert b"no-such-host" not in answer.body


def test_connecting_that_takes_too_long_is_504(transport: Any) -> None:
    """A listener whose queue is full answers no SYN: 504 `upstream_timeout`."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    address = listener.getsockname()
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(address)
    try:
        app = UpstreamForwarder(
            upstream=f"http://127.0.0.1:{address[1]}", connect_timeout=0.2, **transport
        )
        answer = call(app, "/x")
        assert (answer.status, answer.code) == (504, "upstream_timeout")
    finally:
        for sock in (*fillers, listener):
            sock.close()


def silent_after(*parts: bytes) -> Any:
    def handler(connection: socket.socket, request: RawRequest) -> None:
        for part in parts:
            connection.sendall(part)
        connection.settimeout(20)
        connection.recv(1)

    return handler


def test_no_answer_in_time_is_504(transport: Any) -> None:
    """STR-4: silence before the first byte is `upstream_timeout`, not to be retried."""
    with raw_provider(silent_after()) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url), first_byte_timeout=0.2, **transport)
        answer = call(app, CHAT, body=BODY)
    assert (answer.status, answer.code) == (504, "upstream_timeout")
    assert answer.headers["x-should-retry"] == "false"


def test_a_head_without_a_body_in_time_is_504(transport: Any) -> None:
    """The first byte of the body is waited for as long as that of the head."""
    with raw_provider(silent_after(STREAM)) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url), first_byte_timeout=0.2, **transport)
        assert call(app, CHAT, body=BODY).code == "upstream_timeout"


def test_headers_that_trickle_are_bounded_as_a_whole() -> None:
    """A byte now and then does not renew the time for the head (own transport)."""
    stop = threading.Event()

    def handler(connection: socket.socket, request: RawRequest) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 10_000:
            if stop.wait(0.02):
                return
            connection.sendall(bytes([byte]))

    with raw_provider(handler) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url), first_byte_timeout=0.3)
        answer = call(app, CHAT, body=BODY)
        stop.set()
    assert answer.code == "upstream_timeout"


def test_silence_in_a_stream_ends_it(transport: Any) -> None:
    """STR-4: longer than the idle timeout: an error event, the iterable raises, upstream closed."""

    def handler(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(STREAM + chunk(b"data: 1\n\n"))
        provider.wait_gone(connection)

    with raw_provider(handler) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url), idle_timeout=0.2, **transport)
        _, iterable = start(app, make_environ(CHAT, body=BODY))
        assert next(iterable) == b"data: 1\n\n"
        assert b"upstream_timeout" in next(iterable)
        assert provider.gone.wait(5)
        with pytest.raises(UpstreamTimeout):
            next(iterable)
        iterable.close()


@pytest.mark.parametrize("kind", ["stream", "whole"])
def test_an_answer_that_goes_on_for_too_long_ends(kind: str, transport: Any) -> None:
    """`stream_timeout` bounds an event stream, `total_timeout` anything else."""
    head = STREAM if kind == "stream" else b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    stop = threading.Event()

    def handler(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(head)
        while not stop.wait(0.02):
            connection.sendall(chunk(b"data: 1\n\n"))

    options = {"stream_timeout" if kind == "stream" else "total_timeout": 0.4}
    with raw_provider(handler) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url), **options, **transport)
        _, iterable = start(app, make_environ(CHAT, body=BODY))
        with pytest.raises(UpstreamTimeout):
            for _ in iterable:
                pass
        iterable.close()
        stop.set()


# --- the pool


def test_connections_are_kept(transport: Any) -> None:
    """Two requests after another use one connection."""
    with raw_provider(answering(OK, keep=True)) as provider:
        app = UpstreamForwarder(upstream=provider.url, **transport)
        for _ in range(3):
            assert call(app, "/x").body == b"ok"
    assert (provider.connections, len(provider.requests)) == (1, 3)


def test_a_connection_that_died_in_the_pool_is_replaced(transport: Any) -> None:
    """A peer that closed an idle connection costs no request, also a POST."""
    closed = threading.Event()

    def handler(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(OK)
        connection.close()
        closed.set()

    with raw_provider(handler) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url), **transport)
        for _ in range(3):
            closed.clear()
            assert call(app, CHAT, body=BODY).status == 200
            assert closed.wait(5)
    assert len(provider.requests) == 3


def test_a_post_is_never_sent_twice(transport: Any) -> None:
    """FWD-8: a connection that dies with the request on it is not tried again."""
    count = iter(range(100))

    def handler(connection: socket.socket, request: RawRequest) -> bool:
        if next(count) == 0:
            connection.sendall(OK)
            return True
        return False

    with raw_provider(handler) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url), **transport)
        assert call(app, CHAT, body=BODY).status == 200
        answer = call(app, CHAT, body=BODY)
    assert (answer.code, answer.headers["x-should-retry"]) == ("upstream_unreachable", "false")
    assert len(provider.requests) == 2


def test_a_get_on_a_dead_connection_is_sent_again() -> None:
    """A request without a body that is safe (RFC 9110 §9.2.2) may be repeated, once."""
    count = iter(range(100))

    def handler(connection: socket.socket, request: RawRequest) -> bool:
        number = next(count)
        if number == 1:
            return False
        connection.sendall(OK)
        return True

    with raw_provider(handler) as provider:
        app = UpstreamForwarder(upstream=provider.url)
        assert [call(app, "/x").status for _ in range(2)] == [200, 200]
    assert len(provider.requests) == 3


def test_bytes_behind_an_answer_spoil_the_connection() -> None:
    """What nobody asked for is no answer to the next request."""
    smuggled = OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    with raw_provider(answering(smuggled, keep=True)) as provider:
        app = UpstreamForwarder(upstream=provider.url)
        assert [call(app, "/x").body for _ in range(2)] == [b"ok", b"ok"]
    assert provider.connections == 2


def test_an_early_answer_is_heard() -> None:
    """A provider that refuses a large upload before it has all of it is understood."""
    refusal = (
        b"HTTP/1.1 413 X\r\nContent-Type: a/b\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"
    )
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(1000)
        connection.sendall(refusal)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    app = UpstreamForwarder(upstream=f"http://127.0.0.1:{listener.getsockname()[1]}")
    answer = call(app, "/up", body=b"x" * 5_000_000)
    thread.join()
    listener.close()
    assert (answer.status, answer.body) == (413, b"big")


def test_a_forked_child_does_not_use_the_parents_connections() -> None:
    """RUN-2: after a fork each process has connections of its own."""
    with raw_provider(answering(OK, keep=True)) as provider:
        app = UpstreamForwarder(upstream=provider.url)
        assert call(app, "/x").body == b"ok"
        assert in_child(lambda: call(app, "/x").body == b"ok")
        assert call(app, "/x").body == b"ok"
    assert provider.connections == 2


def test_nothing_is_left_behind() -> None:
    """A hundred failing requests leave no descriptor open."""
    handlers = [answering(b""), answering(b"garbage\r\n\r\n"), answering(BREAKS[0].values[0])]  # type: ignore[arg-type]
    before = None
    for handler in handlers * 2:
        with raw_provider(handler) as provider:
            app = UpstreamForwarder(upstream=provider.url)
            for _ in range(15):
                _, iterable = start(app, make_environ("/x"))
                try:
                    list(iterable)
                except UpstreamBroken:
                    pass
                finally:
                    getattr(iterable, "close", lambda: None)()
        count = len(os.listdir("/proc/self/fd"))
        before = count if before is None else before
    assert count <= before + 1


# --- candidates, keys, echoes


def test_the_providers_refusal_of_our_key_is_ours_to_mend(transport: Any, caplog: Any) -> None:
    """401 and 403 of the provider are `upstream_auth_failed`: the client's key is good."""
    provider = StandInProvider(api_keys=["another"])
    with serving(provider) as url:
        answer = call(UpstreamForwarder(upstream=openai(url), **transport), CHAT, body=BODY)
    assert (answer.status, answer.code) == (502, "upstream_auth_failed")
    assert KEY not in caplog.text + str(answer.headers) + answer.body.decode()


def test_the_next_key_is_tried(transport: Any) -> None:
    """A key that the provider refuses gives way to the next one."""
    provider = StandInProvider(api_keys=["good"])
    with serving(provider) as url:
        upstream = openai(url, api_keys=["bad", "good"])
        body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
        answer = call(UpstreamForwarder(upstream=upstream, **transport), CHAT, body=body)
    assert answer.status == 200
    assert [r.headers["authorization"] for r in provider.requests] == ["Bearer bad", "Bearer good"]


def test_an_error_of_the_provider_is_passed_on_as_it_came(transport: Any) -> None:
    """Any other error is the provider's own answer, with its headers."""
    provider = StandInProvider()
    provider.fail(429, headers=[("Retry-After", "7")])
    with serving(provider) as url:
        answer = call(UpstreamForwarder(upstream=openai(url), **transport), CHAT, body=BODY)
    assert (answer.status, answer.code, answer.headers["Retry-After"]) == (429, None, "7")
    assert "told to fail" in answer.json["error"]["message"]


@pytest.mark.parametrize("coding", ["", "gzip"])
def test_a_key_that_an_error_repeats_is_redacted(coding: str, transport: Any) -> None:
    """Echoes: our key in an error's body or header is `[redacted]`, and the length is right."""
    plain = f'{{"error": "bad key {KEY}"}}'.encode()
    body = gzip.compress(plain) if coding else plain
    encoding = b"Content-Encoding: gzip\r\n" if coding else b""
    head = b"HTTP/1.1 400 X\r\nContent-Type: a/b\r\nX-Echo: %b\r\n%bContent-Length: %d\r\n\r\n" % (
        KEY.encode(),
        encoding,
        len(body),
    )
    with raw_provider(answering(head + body)) as provider:
        answer = call(
            UpstreamForwarder(upstream=openai(provider.url), **transport), CHAT, body=BODY
        )
    assert answer.body == b'{"error": "bad key [redacted]"}'
    assert answer.headers["Content-Length"] == str(len(answer.body))
    assert answer.headers["X-Echo"] == "[redacted]"


@pytest.mark.parametrize("spelling", [r"\/", r"\u002f", r"\u002F"])
def test_a_key_that_json_spells_in_another_way_is_redacted(spelling: str) -> None:
    """PHP escapes each slash; any character may stand as its number (RFC 8259 §7)."""
    key = 'sk/"+key'
    body = '{"error": "bad key sk' + spelling + r'\"\u002bk\u0065y!"}'
    head = (
        f"HTTP/1.1 400 X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with raw_provider(answering(head.encode() + body.encode())) as provider:
        upstream = Provider("openai", base_url=provider.url, api_keys=[key])
        answer = call(UpstreamForwarder(upstream=upstream), CHAT, body=BODY)
    assert answer.body == b'{"error": "bad key [redacted]!"}'


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "gzip"])
def test_an_error_that_cannot_be_read_is_not_shown(coding: str) -> None:
    """In a coding that nobody here can read an error may hold our key; its status still counts."""
    head = (
        b"HTTP/1.1 429 X\r\nRetry-After: 7\r\nContent-Encoding: %b\r\nContent-Length: 3\r\n\r\nxyz"
        % coding.encode()
    )
    with raw_provider(answering(head)) as provider:
        answer = call(UpstreamForwarder(upstream=openai(provider.url)), CHAT, body=BODY)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
    assert answer.json["error"]["type"] == "rate_limit_error"
    assert "Content-Encoding" not in answer.headers


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_an_error_without_a_body_needs_no_reading(method: str) -> None:
    """Nothing is encoded in nothing."""
    head = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n"
    with raw_provider(answering(head)) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url))
        answer = call(app, "/v1/models/x", REQUEST_METHOD=method)
    assert (answer.status, answer.body) == (404, b"")


def test_a_reason_phrase_repeats_no_key_either() -> None:
    """Where the provider's own phrase holds our key, the client gets the standard one."""
    head = f"HTTP/1.1 400 bad key {KEY}\r\nContent-Length: 0\r\n\r\n".encode()
    with raw_provider(answering(head)) as provider:
        started, _ = start(
            UpstreamForwarder(upstream=openai(provider.url)), make_environ(CHAT, body=BODY)
        )
    assert started[-1][0] == "400 Bad Request"


def test_a_stream_that_is_counted_gets_no_event_of_ours() -> None:
    """With a Content-Length an event would fill up what is missing; the answer just breaks."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 100\r\n\r\n"
    with raw_provider(answering(head + b"data: x\n\n")) as provider:
        _, body = start(
            UpstreamForwarder(upstream=openai(provider.url)), make_environ(CHAT, body=BODY)
        )
        with pytest.raises(UpstreamBroken):
            list(body)
        body.close()


def test_a_gateway_behind_us_does_not_speak_for_us() -> None:
    """An upstream's own X-Aigw headers are not passed on beside ours."""
    head = (
        b"HTTP/1.1 200 OK\r\nX-Aigw-Request-Id: theirs\r\nX-Aigw-Code: x\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 2\r\n\r\nok"
    )
    with raw_provider(answering(head)) as provider:
        answer = call(UpstreamForwarder(upstream=openai(provider.url)), CHAT, body=BODY)
    assert answer.headers.getlist("X-Aigw-Request-Id") == [answer.environ["aigw.request_id"]]
    assert answer.code is None


@pytest.mark.parametrize("informational", [b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 1"])
def test_an_informational_answer_does_not_stop_an_upload(informational: bytes) -> None:
    """RFC 9110 §15.2: a 1xx during the upload, whole or begun, is no answer yet."""
    blocks = 40

    def eager(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(informational)
        data = b""
        while data.count(b"x") < blocks * 8192:
            data += connection.recv(65536)
        rest = b"" if informational.endswith(b"\n") else b"00 Continue\r\n\r\n"
        connection.sendall(rest + OK)

    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            eager(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    answer = call(UpstreamForwarder(upstream=url), "/upload", body=b"x" * 8192 * blocks)
    thread.join()
    listener.close()
    assert answer.status == 200


@pytest.mark.parametrize(
    "key", ["HTTP_X_API_KEY ", "HTTP_TRANSFER_ENCODING\t", "HTTP_FOO BAR", "HTTP_", "HTTP_A\r\nB"]
)
@pytest.mark.parametrize("provider", [True, False])
def test_a_header_that_is_none_goes_nowhere(key: str, provider: bool) -> None:
    """RUN-4: what a lenient server hands on as a name is refused, and no byte of it is sent."""
    with raw_provider(answering(OK)) as upstream:
        url: Any = openai(upstream.url) if provider else upstream.url
        environ = make_environ(CHAT, body=BODY)
        environ[key] = "chunked"
        started, _ = start(UpstreamForwarder(upstream=url), environ)
    assert started[-1][0].startswith("400")
    assert upstream.requests == []


def test_a_body_of_http_2_needs_no_header() -> None:
    """RFC 9113 §8.1: without Content-Length the body is what is there; none is none."""
    http2 = {"SERVER_PROTOCOL": "HTTP/2", "wsgi.input_terminated": True}
    with raw_provider(answering(OK, keep=True)) as upstream:
        app = UpstreamForwarder(upstream=upstream.url)
        for body in (b"hello", b""):
            environ = make_environ("/x", body=body, **http2)
            del environ["CONTENT_LENGTH"]
            send(app, environ)
    assert [request.body for request in upstream.requests] == [b"hello", b""]
    assert "Transfer-Encoding" not in upstream.requests[1].headers


def test_a_client_that_hangs_up_frees_a_silent_provider() -> None:
    """STR-2: with the client gone the provider's connection closes, though no byte comes."""
    gone = threading.Event()
    here, there = socket.socketpair()

    def silent(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(STREAM + chunk(b"data: x\n\n"))
        connection.recv(1)  # returns when it is closed
        gone.set()

    with raw_provider(silent) as provider:
        environ = make_environ(CHAT, body=BODY)
        environ["gunicorn.socket"] = here
        _, body = start(UpstreamForwarder(upstream=openai(provider.url)), environ)
        assert next(body) == b"data: x\n\n"
        there.close()
        with pytest.raises(ClientLeft):
            list(body)
        body.close()
        assert gone.wait(10)
    here.close()


def call_and_leave(
    app: Any, begun: threading.Event, client: socket.socket, server: socket.socket
) -> Any:
    """Ask, and hang up once the provider has `begun`."""

    def leave() -> None:
        begun.wait(20)
        client.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=leave)
    thread.start()
    answer = call(app, CHAT, body=BODY, **{"gunicorn.socket": server})
    thread.join()
    return answer


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"])
def test_a_client_that_hangs_up_before_the_first_byte_frees_the_provider(head: bytes) -> None:
    """STR-2: silent before its head or behind it: the connection closes, nobody else is asked."""
    begun = threading.Event()

    def silent(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(head)
        begun.set()
        provider.wait_gone(connection)

    client, server = socket.socketpair()
    with (
        raw_provider(silent) as provider,
        raw_provider(answering(OK)) as second,
        client,
        server,
    ):
        upstream = [
            Provider("a", base_url=provider.url, models=["gpt-4o"]),
            Provider("b", base_url=second.url, models=["gpt-4o"]),
        ]
        app = UpstreamForwarder(upstream=upstream, retry_unsafe=True)

        answer = call_and_leave(app, begun, client, server)
        assert provider.gone.wait(20)
        assert second.connections == 0
    assert answer.environ["aigw.end"] == "client_left"
    assert not health._in_flight


def test_a_client_that_hangs_up_within_an_error_frees_the_provider() -> None:
    """STR-2: while an error is read whole, to be cleaned of our key, nobody waits for nobody."""
    begun = threading.Event()

    def silent(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(b"HTTP/1.1 500 X\r\nContent-Length: 99\r\n\r\n{")
        begun.set()
        provider.wait_gone(connection)

    client, server = socket.socketpair()
    with raw_provider(silent) as provider, client, server:
        upstream = Provider("a", base_url=provider.url, api_keys=["k" * 9])
        app = UpstreamForwarder(upstream=upstream)

        answer = call_and_leave(app, begun, client, server)
        assert provider.gone.wait(20)
    assert answer.environ["aigw.end"] == "client_left"
    assert not health._in_flight


def test_a_key_that_is_revoked_before_the_first_byte_ends_the_wait() -> None:
    """KEY-5: 401, although the provider has not said a word."""
    begun = threading.Event()

    def silent(connection: socket.socket, request: RawRequest) -> None:
        begun.set()
        provider.wait_gone(connection)

    with raw_provider(silent) as provider:
        app = UpstreamForwarder(upstream=openai(provider.url))
        alive = lambda: not begun.is_set()  # noqa: E731
        answer = call(app, CHAT, body=BODY, **{"aigw.key_alive": alive})
        assert provider.gone.wait(20)
    assert (answer.status, answer.environ["aigw.end"]) == (401, "revoked")


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "h:0"])
def test_a_host_that_cannot_be_asked_for_is_refused_at_once(host: str) -> None:
    """What no resolver takes is a ValueError when built, not an error of each request."""
    with pytest.raises(ValueError, match=r"^upstream: "):
        UpstreamForwarder(upstream=f"http://{host}")


def test_an_adapter_may_answer_with_any_file() -> None:
    """A test's adapter has a BytesIO where urllib3 has a response."""

    class Canned(requests.adapters.BaseAdapter):
        def send(self, request: Any, **options: Any) -> Any:
            response = requests.Response()
            response.status_code = 200
            response.raw = BytesIO(b"canned")
            response.headers["Content-Type"] = "text/plain"
            return response

    app = UpstreamForwarder(upstream="http://h", transport=Canned())
    assert call(app, "/x").body == b"canned"


def test_looking_up_a_host_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver's time is a part of `connect_timeout`."""
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **o: answered.wait(20))
    app = UpstreamForwarder(upstream="http://slow.test", connect_timeout=0.05)
    answer = call(app, "/x")
    answered.set()
    assert answer.code == "upstream_timeout"


def test_a_dead_address_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each address of a host gets its part of `connect_timeout`."""
    with raw_provider(answering(OK)) as provider, socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # The queue of a listener that accepts nobody: the next one waits.
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
            for address in (full.getsockname(), ("127.0.0.1", provider.port))
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **o: found)
        app = UpstreamForwarder(upstream="http://two.test", connect_timeout=0.4)
        assert call(app, "/x").status == 200
        for sock in waiting:
            sock.close()


def test_a_list_of_providers_is_chosen_from_by_dialect_and_model() -> None:
    """The path's dialect and the models that they list say who is asked."""
    with (
        raw_provider(answering(OK, keep=True)) as first,
        raw_provider(answering(OK, keep=True)) as second,
    ):
        upstream = [
            openai(first.url),
            Provider("anthropic", base_url=second.url, api_keys=[KEY]),
            Provider("mine", base_url=second.url, models=["llama-3"]),
        ]
        app = UpstreamForwarder(upstream=upstream)
        assert call(app, CHAT, body=BODY).environ["aigw.provider"] == "openai"
        assert call(app, "/v1/messages", body=BODY).environ["aigw.provider"] == "anthropic"
        answer = call(app, CHAT, body=b'{"model": "Llama-3"}')
        assert (answer.environ["aigw.provider"], answer.environ["aigw.model"]) == (
            "mine",
            "Llama-3",
        )
        assert call(app, "/v1beta/models").code == "not_found"


def test_a_model_that_no_provider_lists_is_not_found() -> None:
    """Where every provider lists its models, another one is 404."""
    app = UpstreamForwarder(upstream=Provider("mine", base_url="http://127.0.0.1:9", models=["a"]))
    assert call(app, CHAT, body=BODY).code == "not_found"


def test_a_provider_that_is_down_gives_way_to_the_next_that_lists_the_model() -> None:
    """No connection was made, so another candidate is asked."""
    with raw_provider(answering(OK)) as provider:
        upstream = [
            Provider("down", base_url=f"http://127.0.0.1:{free_port()}", models=["gpt-4o"]),
            Provider("up", base_url=provider.url, models=["gpt-4o"]),
        ]
        answer = call(UpstreamForwarder(upstream=upstream), CHAT, body=BODY)
    assert (answer.status, answer.environ["aigw.provider"]) == (200, "up")


def test_a_request_that_may_have_been_processed_is_not_sent_to_another() -> None:
    """FWD-8: the body went out and no answer came: the other candidate is not asked."""
    with raw_provider(answering(b"")) as first, raw_provider(answering(OK)) as second:
        upstream = [
            Provider("a", base_url=first.url, models=["gpt-4o"]),
            Provider("b", base_url=second.url, models=["gpt-4o"]),
        ]
        answer = call(UpstreamForwarder(upstream=upstream), CHAT, body=BODY)
    assert answer.code == "upstream_unreachable"
    assert second.connections == 0


# --- with an app, and what is not served


def test_with_an_app_other_paths_are_the_apps() -> None:
    """AI paths are forwarded, every other request reaches the app untouched."""
    inner = Inner()
    with raw_provider(answering(OK, keep=True)) as provider:
        for upstream in (openai(provider.url), provider.url):
            app = UpstreamForwarder(inner, upstream)
            assert call(app, "/page", HTTP_AUTHORIZATION="Basic x").body == b"inner"
            assert call(app, CHAT, body=BODY).body == b"ok"
    assert inner.environs[0]["HTTP_AUTHORIZATION"] == "Basic x"


def test_without_an_app_another_path_is_not_found() -> None:
    """A provider serves AI paths alone."""
    assert (
        call(UpstreamForwarder(upstream=Provider("m", base_url="http://127.0.0.1:9")), "/x").code
        == "not_found"
    )


@pytest.mark.parametrize(
    "path", ["/v1/chat/../files", "/v1/files/..", "/v1/files/./x", "/v1/files\\..\\x"]
)
def test_a_path_that_upstream_could_read_otherwise_is_not_sent(path: str) -> None:
    """Dot segments would be judged as one path and served as another."""
    with raw_provider(answering(OK)) as provider:
        for upstream in (openai(provider.url), f"{provider.url}/base"):
            assert call(UpstreamForwarder(upstream=upstream), path).code == "not_found"
    assert provider.requests == []


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "GET X", ""])
def test_methods_that_are_not_forwarded(method: str) -> None:
    """A method that is no token, or that is about the connection, is 405."""
    environ = make_environ(CHAT)
    environ["REQUEST_METHOD"] = method
    started, _ = start(UpstreamForwarder(upstream="http://127.0.0.1:9"), environ)
    assert started[0][0].startswith("405")


WRONG = [
    pytest.param({}, "upstream", id="nothing"),
    pytest.param({"upstream": []}, "upstream", id="an empty list"),
    pytest.param({"upstream": ["http://x"]}, "upstream", id="a URL in a list"),
    pytest.param({"upstream": "ftp://x"}, "upstream", id="another scheme"),
    pytest.param({"upstream": "api.openai.com"}, "upstream", id="no scheme"),
    pytest.param({"upstream": "http://"}, "upstream", id="no host"),
    pytest.param({"upstream": "http://u:s3cret@h"}, "upstream", id="a password"),
    pytest.param({"upstream": "http://h/?a=s3cret"}, "upstream", id="a query"),
    pytest.param({"upstream": "http://h:99999"}, "upstream", id="a port"),
    pytest.param({"upstream": "http://h h"}, "upstream", id="a space"),
    pytest.param({"upstream": "http://h/a b"}, "upstream", id="a space in the path"),
    pytest.param({"upstream": "http://h", "api_key": ""}, "api_key", id="an empty key"),
    pytest.param({"upstream": "http://h", "api_key": "s3cret\n"}, "api_key", id="a key with a line end"),
    pytest.param({"upstream": Provider("m", base_url="http://h"), "api_key": "s3cret"}, "api_key", id="a key beside a provider"),
    pytest.param({"upstream": "http://h", "connect_timeout": 0}, "connect_timeout", id="no time"),
    pytest.param({"upstream": "http://h", "idle_timeout": "5"}, "idle_timeout", id="a text"),
    pytest.param({"upstream": "http://h", "total_timeout": float("inf")}, "total_timeout", id="for ever"),
    pytest.param({"upstream": "http://h", "max_body_bytes": -1}, "max_body_bytes", id="a negative size"),
    pytest.param({"upstream": "http://h", "max_body_bytes": True}, "max_body_bytes", id="no size"),
    pytest.param({"upstream": "http://h", "meter": "no"}, "meter", id="no flag"),
    pytest.param({"upstream": "http://h", "retry_unsafe": "no"}, "retry_unsafe", id="no flag either"),
    pytest.param({"upstream": "http://h", "show_attempts": "no"}, "show_attempts", id="nor that"),
    pytest.param({"upstream": "http://h", "transport": object()}, "transport", id="no adapter"),
    pytest.param({"app": "http://h"}, "app", id="the URL in the place of the app"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "named"), WRONG)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    """A wrong option is a ValueError when the layer is built, never with a secret."""
    with pytest.raises(ValueError, match=f"^{named}: ") as error:
        UpstreamForwarder(**options)
    assert "s3cret" not in str(error.value)


PROVIDERS = [
    pytest.param({"name": "nobody"}, "name", id="unknown"),
    pytest.param({"name": ""}, "name", id="empty"),
    pytest.param({"name": "a/b"}, "name", id="a slash"),
    pytest.param({"name": "m", "base_url": "x"}, "base_url", id="no URL"),
    pytest.param(
        {"name": "m", "base_url": "http://h", "dialect": "soap"}, "dialect", id="a dialect"
    ),
    pytest.param(
        {"name": "openai", "dialect": "gemini"}, "dialect", id="one that it does not speak"
    ),
    pytest.param({"name": "openai", "api_keys": ["s3cret\n"]}, "api_keys", id="a key"),
    pytest.param({"name": "openai", "api_keys": [""]}, "api_keys", id="an empty key"),
    pytest.param({"name": "openai", "models": [""]}, "models", id="an empty model"),
]


@pytest.mark.parametrize(("options", "named"), PROVIDERS)
def test_wrong_providers_are_named(options: dict[str, Any], named: str) -> None:
    """A wrong provider is a ValueError that names the option and no secret."""
    with pytest.raises(ValueError, match=f"^{named}: ") as error:
        Provider(options.pop("name"), **options)
    assert "s3cret" not in str(error.value)


def test_a_provider_without_a_key_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue provider needs a key: given, or in its SDK's variable."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="no key for openai"):
        UpstreamForwarder(upstream=Provider("openai"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    provider = Provider("OpenAI")
    assert UpstreamForwarder(upstream=provider)
    assert KEY not in repr(provider) + repr(vars(provider))


def test_a_secret_is_in_no_log_or_repr(caplog: pytest.LogCaptureFixture) -> None:
    """SEC-1: whatever fails, neither the log nor the answer holds the provider's key."""
    caplog.set_level(logging.DEBUG)
    for handler in (answering(b""), answering(b"x\r\n\r\n"), answering(b"HTTP/1.1 401 X\r\n\r\n")):
        with raw_provider(handler) as provider:
            answer = call(UpstreamForwarder(upstream=openai(provider.url)), CHAT, body=BODY)
            assert KEY not in caplog.text + answer.body.decode() + str(answer.headers)


def test_it_stacks_as_a_layer() -> None:
    """With an app it is a layer like the others."""
    app = stack(Inner(), partial(UpstreamForwarder, upstream="http://127.0.0.1:9"))
    assert call(app, "/page").body == b"inner"


def test_adapters_of_others_are_used() -> None:
    """Any requests transport adapter will do, also one that never opens a socket."""

    class Canned(requests.adapters.BaseAdapter):
        def send(self, request: Any, **options: Any) -> requests.Response:
            from urllib3 import HTTPResponse

            response = requests.Response()
            response.status_code = 201
            response.reason = "Made"
            response.raw = HTTPResponse(
                BytesIO(b"canned"), {"X-A": "1", "Content-Type": "a/b"}, 201, preload_content=False
            )
            self.seen = request
            return response

        def close(self) -> None: ...

    adapter = Canned()
    answer = call(UpstreamForwarder(upstream="http://h/base", transport=adapter), "/x")
    assert (answer.status, answer.body, answer.headers["X-A"]) == (201, b"canned", "1")
    assert (adapter.seen.url, adapter.seen.method) == ("http://h/base/x", "GET")


# --- names of models


NAMED = [
    ("gpt-4o", "openai", "gpt-4o"),
    ("openai/gpt-4o", "openai", "gpt-4o"),
    ("OpenAI:gpt-4o", "openai", "gpt-4o"),
    ("groq/vendor/llama-3", "groq", "vendor/llama-3"),
    ("groqcloud/llama-3", "groq", "llama-3"),
    ("fast", "groq", "llama-3"),
    ("FAST", "groq", "llama-3"),
    ("plain", "openai", "gpt-4o-mini"),
    ("nobody/gpt-4o", "openai", "nobody/gpt-4o"),
    ("mine/odd", "mine", "mine/odd"),
    ("ft:gpt-4o:acme::x", "openai", "ft:gpt-4o:acme::x"),
]


@pytest.mark.parametrize(("model", "asked", "sent"), NAMED)
def test_a_model_may_name_its_provider(model: str, asked: str, sent: str) -> None:
    """`provider/model`, aliases and lists: who is asked, and by which name; no other byte changes."""
    with raw_provider(answering(OK, keep=True)) as provider:
        upstream = [
            openai(provider.url),
            Provider("groq", base_url=provider.url, api_keys=[KEY]),
            Provider("mine", base_url=provider.url, models=["mine/odd"]),
        ]
        aliases = {"fast": "groq/llama-3", "plain": "gpt-4o-mini"}
        app = UpstreamForwarder(upstream=upstream, aliases=aliases)
        body = b'{ "stream":false,\t"model" : "%b", "n": 1.0e0 }' % model.encode()
        answer = call(app, CHAT, body=body)
    assert (answer.environ["aigw.provider"], answer.environ["aigw.model"]) == (asked, sent)
    assert provider.requests[0].body == body.replace(model.encode(), sent.encode())


def test_a_model_in_the_path_may_be_an_alias() -> None:
    """Gemini names it there."""
    with raw_provider(answering(OK)) as provider:
        upstream = Provider("google", base_url=provider.url, api_keys=[KEY])
        app = UpstreamForwarder(upstream=upstream, aliases={"fast": "gemini/gemini-flash"})
        call(app, "/v1beta/models/fast:generateContent", body=b"{}")
    assert provider.requests[0].line == "POST /models/gemini-flash:generateContent HTTP/1.1"


def test_rules_are_judged_on_what_an_alias_stands_for() -> None:
    """MOD-3: allowing the alias opens nothing, allowing the model does."""
    with raw_provider(answering(OK, keep=True)) as provider:
        upstream = openai(provider.url)
        inner = partial(UpstreamForwarder, upstream=upstream, aliases={"fast": "openai/gpt-4o"})
        statuses = [
            call(ModelAccess(inner(), [pattern]), CHAT, body=b'{"model": "fast"}').status
            for pattern in ("fast", "openai/gpt-4o-mini", "openai/gpt-4o", "gpt-4o")
        ]
    assert statuses == [403, 403, 200, 200]


@pytest.mark.parametrize("aliases", [5, {"a b": "x"}, {"a": 5}, {"a": "b", "b": "c"}, {"": "x"}])
def test_wrong_aliases_are_named(aliases: Any) -> None:
    """An alias is a model's name, and stands for no other alias."""
    with pytest.raises(ValueError, match=r"^aliases: "):
        UpstreamForwarder(upstream=openai("http://h"), aliases=aliases)


@pytest.mark.parametrize(("unsafe", "status"), [(False, 504), (True, 200)])
def test_what_may_have_been_done_is_sent_again_only_when_that_is_allowed(
    unsafe: bool, status: int
) -> None:
    """No answer came after the request went out: the next is asked with `retry_unsafe` alone."""

    def silent(connection: socket.socket, request: RawRequest) -> None:
        connection.recv(1)

    with raw_provider(silent) as first, raw_provider(answering(OK)) as second:
        upstream = [
            Provider("a", base_url=first.url, models=["m"]),
            Provider("b", base_url=second.url, models=["m"]),
        ]
        app = UpstreamForwarder(upstream=upstream, first_byte_timeout=0.1, retry_unsafe=unsafe)
        assert call(app, CHAT, body=b'{"model": "m"}').status == status
    assert len(second.requests) == int(unsafe)


class _Dying:
    """A socket whose peer does not answer any more: the kernel gives up, and then tells the end."""

    def __init__(self) -> None:
        self._errors = [TimeoutError(errno.ETIMEDOUT, "Connection timed out")]

    def settimeout(self, seconds: float) -> None:
        pass

    def recv(self, size: int) -> bytes:
        if self._errors:
            raise self._errors.pop()
        return b""


def test_a_connection_that_the_kernel_gives_up_is_no_end() -> None:
    """A body that ends with its connection has not ended when that timed out."""
    connection = _Connection(_Dying(), BaseURL("http://127.0.0.1", option="x"))  # type: ignore[arg-type]
    with pytest.raises(UpstreamTimeout):
        connection.receive(60)


def test_paths_of_any_length_are_not_kept() -> None:
    """What a client asks for once takes no place in the memory of a worker."""
    before = _spelled.cache_info().currsize
    for number in range(20):
        raw_path({"PATH_INFO": f"/{number}/" + "x" * 5000})
    assert _spelled.cache_info().currsize == before


def test_a_key_of_a_provider_that_is_gone_is_not_kept(sqlite_url: str) -> None:
    """Candidates are kept for as long as the keys are those that they were made with."""
    store = open_store(sqlite_url, secret="s" * 32)
    first = store.provider_keys.create(provider="openai", secret="sk-first")
    with raw_provider(answering(OK, keep=True)) as provider:
        upstream = Provider("openai", base_url=provider.url, needs_key=True)
        app = UpstreamForwarder(upstream=upstream, store=store)
        body = json.dumps({"model": "m", "messages": []}).encode()
        assert call(app, CHAT, body=body).status == 200
        store.provider_keys.create(provider="openai", secret="sk-second")
        store.provider_keys.delete(first.id)
        assert call(app, CHAT, body=body).status == 200
    sent = [request.headers["Authorization"] for request in provider.requests]
    assert sent == ["Bearer sk-first", "Bearer sk-second"]
    assert app.planner._made.cache_info().currsize == 1
