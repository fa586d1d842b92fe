"""What the tests share: a WSGI caller under wsgiref's validator, an inner app, a raw provider."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from werkzeug.datastructures import Headers

from aigw_middleware import Provider

CHAT = "/v1/chat/completions"


def make_environ(path: str = "/", *, body: bytes | None = None, **extra: Any) -> dict[str, Any]:
    """Return a request's environ; `extra` are further keys."""
    environ: dict[str, Any] = {"PATH_INFO": path, "REMOTE_ADDR": "192.0.2.7"}
    environ |= {"QUERY_STRING": "", "SCRIPT_NAME": ""}
    if body is not None:
        environ |= {
            "REQUEST_METHOD": "POST",
            "wsgi.input": BytesIO(body),
            "CONTENT_LENGTH": str(len(body)),
        }
    environ |= extra
    setup_testing_defaults(environ)
    if isinstance(environ.get("HTTP_TRANSFER_ENCODING"), str):
        environ.pop("CONTENT_LENGTH", None)
        environ.setdefault("wsgi.input_terminated", True)
    return environ


class Answer:
    """An answer, read whole."""

    def __init__(self, status: str, headers: list[tuple[str, str]], body: bytes, environ: Any):
        self.status = int(status[:3])
        self.headers = Headers(headers)
        self.body = body
        self.environ = environ

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        return self.headers.get("X-Aigw-Code")


def call(app: Any, path: str = "/", **environ: Any) -> Answer:
    """Call `app` under wsgiref's validator and read its answer whole."""
    return send(app, make_environ(path, **environ))


def call_oddly(app: Any, path: str = "/", **environ: Any) -> Answer:
    """Call `app` with what servers hand on though PEP 3333 has no such thing."""
    return send(app, make_environ(path, **environ), check=lambda app: app)


def send(app: Any, environ: dict[str, Any], *, check: Any = validator) -> Answer:
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        started.append((status, headers))
        return lambda data: None

    iterable = check(app)(environ, start_response)
    try:
        body = b"".join(iterable)
    finally:
        if hasattr(iterable, "close"):
            iterable.close()
    status, headers = started[-1]
    return Answer(status, headers, body, environ)


class Inner:
    """A WSGI app that remembers what it saw and whether its iterable was closed."""

    def __init__(self, body: tuple[bytes, ...] = (b"inner",), headers: Any = ()) -> None:
        self.environs: list[dict[str, Any]] = []
        self.closed = 0
        self.body = body
        self.headers = list(headers)

    @property
    def calls(self) -> int:
        return len(self.environs)

    def __call__(self, environ: Any, start_response: Any) -> Any:
        self.environs.append(dict(environ))
        start_response("200 OK", [("Content-Type", "text/plain"), *self.headers])
        return _Iterable(self)


class _Iterable:
    def __init__(self, inner: Inner) -> None:
        self._inner = inner
        self._chunks = iter(inner.body)

    def __iter__(self) -> _Iterable:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        self._inner.closed += 1


class Clock:
    """A clock in microseconds that moves when a test says so."""

    def __init__(self, now: int = 10**12) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1_000_000)


class RawRequest:
    """A request as its bytes came over the socket."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.line = lines[0]
        self.header_lines = lines[1:]
        self.headers = Headers([tuple(line.split(": ", 1)) for line in lines[1:] if ": " in line])
        self.body = body


Handler = Callable[[socket.socket, RawRequest], None]


class RawProvider:
    """A provider that sends just the bytes that a test tells it to.

    `handler(connection, request)` is called for every request that was read whole; the
    connection is closed after it returns, unless it returns True to read another request.
    """

    def __init__(self, handler: Callable[[socket.socket, RawRequest], Any]) -> None:
        self.handler = handler
        self.requests: list[RawRequest] = []
        self.connections = 0
        self.gone = threading.Event()
        """Set when a client closed a connection that was waiting for it (see `wait_gone`)."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        thread = threading.Thread(target=self._accept, daemon=True)
        thread.start()
        self._threads.append(thread)

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):  # kept alive by a client that is done
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        with connection:
            connection.settimeout(20)
            buffer = b""
            try:
                while True:
                    request, buffer = read_request(connection, buffer)
                    if request is None:
                        return
                    self.requests.append(request)
                    if not self.handler(connection, request):
                        return
            except OSError:
                return

    def wait_gone(self, connection: socket.socket) -> None:
        """Block until the client closes the connection, and remember that it did."""
        try:
            while connection.recv(4096):
                pass
        except OSError:
            pass
        self.gone.set()


def read_request(connection: socket.socket, buffer: bytes) -> tuple[RawRequest | None, bytes]:
    while b"\r\n\r\n" not in buffer:
        data = connection.recv(65536)
        if not data:
            return None, b""
        buffer += data
    head, _, rest = buffer.partition(b"\r\n\r\n")
    request = RawRequest(head, b"")
    if request.headers.get("Transfer-Encoding", "").lower() == "chunked":
        while not rest.endswith(b"0\r\n\r\n"):
            data = connection.recv(65536)
            if not data:
                return None, b""
            rest += data
        request.body = unchunk(rest)
        return request, b""
    length = int(request.headers.get("Content-Length", 0))
    while len(rest) < length:
        data = connection.recv(65536)
        if not data:
            return None, b""
        rest += data
    request.body = rest[:length]
    return request, rest[length:]


def unchunk(data: bytes) -> bytes:
    """Read a chunked body the slow and plain way."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            break
        body += data[:length]
        data = data[length + 2 :]
    return body


@contextmanager
def raw_provider(handler: Callable[..., Any]) -> Iterator[RawProvider]:
    provider = RawProvider(handler)
    provider.start()
    try:
        yield provider
    finally:
        provider.stop()


def answering(*parts: bytes, keep: bool = False) -> Callable[..., bool]:
    """Return a handler that sends `parts` and then closes, or waits for another request."""

    def handler(connection: socket.socket, request: RawRequest) -> bool:
        for part in parts:
            connection.sendall(part)
        return keep

    return handler


def in_child(work: Callable[[], bool]) -> bool:
    """Run `work` in a forked child; whether it returned True. Whatever it raises ends there."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 1
        except BaseException:  # noqa: BLE001  (told, and then the child ends)
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def run_python(code: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
    )
    return done.stdout


def delete_elsewhere(url: str, id_: str) -> None:
    """Delete a key in another process."""
    code = "import sys; from aigw_middleware import open_store\n"
    run_python(code + "assert open_store(sys.argv[1]).keys.delete(sys.argv[2])", url, id_)


def three_providers(upstream: str, key: str) -> list[Provider]:
    """Return a provider of each dialect, all of them at one stand-in."""
    return [
        Provider("openai", base_url=f"{upstream}/v1", api_keys=[key]),
        Provider("anthropic", base_url=f"{upstream}/v1", api_keys=[key]),
        Provider("google", base_url=f"{upstream}/v1beta", api_keys=[key]),
    ]
