"""A deleted key ends the streams that are open under it (STR-5)."""

from __future__ import annotations

import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from requests.adapters import HTTPAdapter

from aigw_middleware import KeyAuth, Provider, UpstreamForwarder, open_store, stack
from aigw_middleware.errors import KeyRevoked
from aigw_middleware.store import Store

from .support import CHAT, Inner, RawRequest, make_environ, raw_provider

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b'{"model": "gpt-4o"}'
EVENT = b"data: 1\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"sqlite:///{tmp_path}/aigw.db")


@pytest.fixture(params=["socket", "adapter"])
def transport(request: pytest.FixtureRequest) -> Any:
    adapter = HTTPAdapter() if request.param == "adapter" else None
    yield {"transport": adapter} if adapter else {}
    if adapter:
        adapter.close()


def open_stream(store: Store, url: str, token: str, path: str = CHAT, **options: Any) -> Any:
    name = "anthropic" if "messages" in path else "openai"
    upstream = Provider(name, base_url=url, api_keys=["sk-x"])
    app = stack(UpstreamForwarder(upstream=upstream, **options), partial(KeyAuth, keys=store.keys))
    environ = make_environ(path, body=BODY, HTTP_X_API_KEY=token)
    return app(environ, lambda *args: lambda data: None)


ENDS = [
    pytest.param(lambda keys, id_: keys.delete(id_), id="deleted"),
    pytest.param(lambda keys, id_: keys.update(id_, disabled=True), id="disabled"),
]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
def test_a_stream_on_a_silent_provider_ends_within_a_second(
    store: Store, end: Any, path: str, transport: Any
) -> None:
    """The reader is woken, the client gets an error event in its dialect, upstream is closed."""

    def handler(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(STREAM + chunk(EVENT))
        provider.wait_gone(connection)

    with raw_provider(handler) as provider:
        key, token = store.keys.create()
        iterable = open_stream(store, provider.url, token, path, **transport)
        assert next(iterable) == EVENT
        answered: list[float] = []

        def revoke() -> None:
            end(store.keys, key.id)
            answered.append(time.monotonic())

        thread = threading.Thread(target=revoke)
        thread.start()
        told = next(iterable)
        ended = time.monotonic()
        thread.join()
        assert ended - answered[0] < 1
        assert b"no longer valid" in told
        assert told.startswith(b"event: error" if "messages" in path else b"data: ")
        assert provider.gone.wait(1)
        with pytest.raises(KeyRevoked):
            next(iterable)
        iterable.close()


def test_a_stream_in_full_flow_ends_too(store: Store, transport: Any) -> None:
    """A provider that never pauses does not keep a revoked stream alive."""
    stop = threading.Event()

    def handler(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(STREAM)
        while not stop.wait(0.001):
            connection.sendall(chunk(EVENT))

    with raw_provider(handler) as provider:
        key, token = store.keys.create()
        iterable = open_stream(store, provider.url, token, **transport)
        next(iterable)
        store.keys.delete(key.id)
        deadline = time.monotonic() + 1
        with pytest.raises(KeyRevoked):
            list(iterable)
        assert time.monotonic() < deadline
        iterable.close()
        stop.set()


def test_many_streams_end_together_and_others_go_on(store: Store) -> None:
    """Twenty streams of a deleted key end within a second; one of another key does not."""
    events = threading.Event()

    def handler(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(STREAM + chunk(EVENT))
        if b"keeps" in request.body:
            assert events.wait(10)
            connection.sendall(chunk(b"data: 2\n\n") + b"0\r\n\r\n")
        else:
            provider.wait_gone(connection)

    with raw_provider(handler) as provider:
        key, token = store.keys.create()
        _, other = store.keys.create()
        app = stack(
            UpstreamForwarder(upstream=Provider("openai", base_url=provider.url, api_keys=["k"])),
            partial(KeyAuth, keys=store.keys),
        )

        def ask(token: str, model: bytes) -> Any:
            environ = make_environ(CHAT, body=b'{"model": "%b"}' % model, HTTP_X_API_KEY=token)
            iterable = app(environ, lambda *args: lambda data: None)
            assert next(iterable) == EVENT
            return iterable

        streams = [ask(token, b"m") for _ in range(20)]
        kept = ask(other, b"keeps")
        ended: list[float] = []

        def read(iterable: Any) -> None:
            with pytest.raises(KeyRevoked):
                list(iterable)
            ended.append(time.monotonic())
            iterable.close()

        threads = [threading.Thread(target=read, args=(stream,)) for stream in streams]
        for thread in threads:
            thread.start()
        store.keys.delete(key.id)
        answered = time.monotonic()
        for thread in threads:
            thread.join()
        assert len(ended) == 20
        assert max(ended) - answered < 1
        events.set()
        assert list(kept) == [b"data: 2\n\n"]
        kept.close()


def test_a_stream_of_another_app_ends_at_its_next_chunk(store: Store) -> None:
    """KeyAuth around any app: the iterable raises instead of going on, and is closed."""
    inner = Inner((b"a", b"b", b"c"))
    key, token = store.keys.create()
    app = KeyAuth(inner, store.keys)
    iterable = app(make_environ(HTTP_X_API_KEY=token), lambda *args: lambda data: None)
    chunks = iter(iterable)
    assert next(chunks) == b"a"
    store.keys.delete(key.id)
    with pytest.raises(KeyRevoked):
        next(chunks)
    iterable.close()  # type: ignore[attr-defined]
    assert inner.closed == 1


def test_what_is_whole_already_is_handed_on_as_it_is(store: Store) -> None:
    """A list, or a file that the server sends by itself, is not wrapped."""

    class FileWrapper:
        def __iter__(self) -> Any:
            return iter([b"x"])

    _, token = store.keys.create()
    for body in ([b"x"], FileWrapper()):
        app = KeyAuth(lambda environ, start, body=body: body, store.keys)  # type: ignore[misc]
        environ = make_environ(HTTP_X_API_KEY=token)
        environ["wsgi.file_wrapper"] = FileWrapper
        assert app(environ, lambda *args: lambda data: None) is body


def test_a_store_that_is_away_ends_no_stream(store: Store, tmp_path: Path) -> None:
    """While nobody can say that the key was deleted, what is open goes on."""
    key, token = store.keys.create()
    alive = store.keys.watch(key.id, token)
    assert alive()
    (tmp_path / "aigw.db").unlink()
    assert alive()


def test_a_stream_that_cannot_be_checked_harms_no_other() -> None:
    """An object of the user's own that raises leaves the watchdog at work."""
    from aigw_middleware._watchdog import Watchdog

    seen = threading.Event()

    class Broken:
        def check(self) -> None:
            raise RuntimeError("no")

    class Good:
        def check(self) -> None:
            seen.set()

    watchdog = Watchdog()
    broken, good = Broken(), Good()
    watchdog.add(broken)
    watchdog.add(good)
    for _ in range(2):
        seen.clear()
        assert seen.wait(10)
    watchdog.remove(broken)
    watchdog.remove(good)
