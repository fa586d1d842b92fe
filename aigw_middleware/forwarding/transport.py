"""Send a request over a pooled HTTP/1.1 connection and read the answer as it comes.

One pool a process, last in first out, made on first use and never carried over a fork. Every
wait has a deadline of its own; nothing is sent twice: a connection that has died in the pool is
noticed before it is used, and only a request without a body that is safe to repeat (RFC 9110
§9.2.2) is sent again when a used connection turns out to be dead.
"""

from __future__ import annotations

import atexit
import os
import re
import select
import socket
import ssl
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache, partial
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from .http1 import (
    MAX_HEAD,
    ChunkedReader,
    Framing,
    Head,
    ProtocolError,
    framing,
    parse_head,
)
from .url import BaseURL

if TYPE_CHECKING:
    from .waiting import Waiting

_RECEIVE = 64 * 1024
_STEP = 30.0
"""Seconds of one wait for bytes."""
_IDLE_IN_POOL = 55.0  # many servers close an idle connection after 60 s
_MOST_IN_POOL = 256
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_MOST_INFORMATIONAL = 16
_INFORMATIONAL = re.compile(rb"HTTP/1\.[01] 1(?!01)").match
_STATUS_BYTES = len("HTTP/1.1 200")


class Request(NamedTuple):
    """What is sent.

    Attributes:
        method: the method.
        base: scheme, host and port.
        target: path and query.
        headers: `(name, value)` pairs, without `Host` and framing.
        body: its blocks; each call of `blocks` begins anew where it may be sent twice.
        length: its length in bytes; None for chunked.
        waiting: what may end the wait for the answer; None for nothing.
    """

    method: str
    base: BaseURL
    target: str
    headers: list[tuple[str, str]]
    body: Iterable[bytes]
    length: int | None
    waiting: Waiting | None = None

    @property
    def url(self) -> str:
        """The whole URL."""
        return f"{self.base.scheme}://{self.base.authority}{self.target}"


class Timeouts(NamedTuple):
    """Bounds in seconds.

    Attributes:
        connect: for the connection, TLS included.
        first_byte: from the request's last byte to the answer's first body byte.
        idle: between two bytes, either way.
        total: for the whole answer.
        stream: the same for an event stream.
        attempt: from its beginning to the answer's first body byte.
    """

    connect: float
    first_byte: float
    idle: float
    total: float
    stream: float
    attempt: float = float("inf")


class Response(Protocol):
    """An answer whose head was read."""

    status: int
    reason: str
    headers: list[tuple[str, str]]

    @property
    def done(self) -> bool:
        """Whether the body's end is known to have been read."""

    def read(self, seconds: float) -> bytes:
        """Return what has come next, waiting at most `seconds`; empty at the whole body's end.

        Raises:
            UpstreamTimeout: nothing came in that time.
            UpstreamBroken: the body ended before its end.
        """

    def shutdown(self) -> None:
        """Wake a `read` of another thread: it then finds the body's end or raises."""

    def close(self) -> None:
        """Let go of the connection: to the pool after the body's end, else it is closed."""


class Transport(Protocol):
    """What sends requests."""

    def send(self, request: Request, timeouts: Timeouts, deadline: float) -> Response:
        """Send a request and return the answer's head.

        Args:
            request: what is sent.
            timeouts: the bounds of each step.
            deadline: the `time.monotonic()` at which all must be over.

        Raises:
            UpstreamUnreachable: no connection, or no HTTP; `sent` tells what may have happened.
            UpstreamTimeout: a step took too long.
            BodyError: the request's own body broke off while it was read.
        """


class SocketTransport:
    """Sends requests over connections of this process."""

    def __init__(self) -> None:
        self._pool = _Pool()

    def close(self) -> None:
        """Close the connections that no request is using."""
        self._pool.close()

    def send(self, request: Request, timeouts: Timeouts, deadline: float) -> Response:
        """Send a request and return the answer's head; see `Transport`."""
        head = _request_head(request)
        connection = self._pool.take(request.base)
        if connection is not None:
            try:
                return self._exchange(connection, head, request, timeouts, deadline)
            except _DeadConnection:
                # Nothing of an answer came. Only what is harmless to repeat goes out again.
                if request.method not in _SAFE_METHODS or request.length != 0:
                    raise UpstreamUnreachable(
                        "the upstream closed the connection without an answer", sent=True
                    ) from None
        connection = _connect(request.base, min(timeouts.connect, deadline - time.monotonic()))
        try:
            return self._exchange(connection, head, request, timeouts, deadline)
        except _DeadConnection:
            raise UpstreamUnreachable(
                "the upstream closed the connection without an answer", sent=True
            ) from None

    def _exchange(
        self,
        connection: _Connection,
        head: bytes,
        request: Request,
        timeouts: Timeouts,
        deadline: float,
    ) -> Response:
        waiting = request.waiting
        if waiting is not None:
            waiting.attach(partial(shutdown, connection.sock))
        try:
            whole = connection.send(head, request, timeouts.idle, deadline)
            until = min(time.monotonic() + timeouts.first_byte, deadline)
            answer = connection.receive_head(until)
            frame = framing(request.method, answer)
            if waiting is not None:
                waiting.detach()
        except UpstreamError as error:
            if waiting is not None:
                waiting.detach()
            connection.close()
            error.sent = error.sent or connection.sent
            raise
        except BaseException:
            if waiting is not None:
                waiting.detach()
            connection.close()
            raise
        persistent = answer.persistent and whole
        return _SocketResponse(answer, frame, connection, self._pool if persistent else None)


class _DeadConnection(UpstreamUnreachable):
    """The peer closed the connection before a byte of its answer."""


class _Connection:
    """One connection: a socket and the bytes that were read ahead of their time."""

    def __init__(self, sock: socket.socket, base: BaseURL) -> None:
        self.sock = sock
        self.base = base
        self.buffer = b""
        self.sent = False
        self.idle_since = 0.0
        self._timeout = -1.0  # of the socket; not known
        self._poll: Any = None

    def send(self, head: bytes, request: Request, idle: float, deadline: float) -> bool:
        """Send the request; False where the peer answered before it had all of it."""
        self.sent = False
        chunked = request.length is None
        blocks = iter(request.body)
        pending = head
        count = 0
        try:
            for block in blocks:
                if not block:
                    continue
                count += 1
                if count > 2 and self.is_readable() and self._has_answer():
                    return False
                self.sent = True  # from its first byte on nobody knows how much has arrived
                self._send(pending + _framed(block, chunked), idle, deadline)
                pending = b""
            if chunked:
                pending += b"0\r\n\r\n"
            self.sent = True
            if pending:
                self._send(pending, idle, deadline)
        except TimeoutError:
            raise UpstreamTimeout("the upstream did not take the request in time") from None
        except OSError:
            # It may have answered (413, 401) and closed without reading all: see what came.
            return False
        return True

    def _send(self, data: bytes, idle: float, deadline: float) -> None:
        self._wait_at_most(_left(min(idle, deadline - time.monotonic())))
        self.sock.sendall(data)

    def _wait_at_most(self, seconds: float) -> None:
        if seconds != self._timeout:
            self._timeout = seconds
            self.sock.settimeout(seconds)

    def receive(self, seconds: float) -> bytes:
        """Return what comes next, empty at the connection's end."""
        until = time.monotonic() + seconds
        while seconds > 0:
            # A long wait is one of several, so that the timeout that is set will mostly do.
            if not 0 < self._timeout <= seconds:
                self._wait_at_most(min(seconds, _STEP))
            try:
                return self.sock.recv(_RECEIVE)
            except TimeoutError as error:
                if error.errno is not None:  # the kernel's, which gives the connection up
                    break
                seconds = until - time.monotonic()
        raise UpstreamTimeout("the upstream did not answer in time")

    def receive_head(self, until: float) -> Head:
        """Read the head of the final answer, skipping informational ones (RFC 9110 §15.2)."""
        for _ in range(_MOST_INFORMATIONAL):
            head = parse_head(self._head_bytes(until))
            if head.status == 101:
                raise ProtocolError("the upstream switched protocols unasked")
            if head.status >= 200:
                return head
        raise ProtocolError("the upstream sent too many informational answers")

    def _head_bytes(self, until: float) -> bytes:
        buffer = self.buffer
        while (end := buffer.find(b"\r\n\r\n")) < 0:
            if len(buffer) > MAX_HEAD:
                raise ProtocolError("the upstream's headers are too long")
            try:
                data = self.receive(until - time.monotonic())
            except OSError:
                data = b""
            if not data:
                if buffer:
                    raise ProtocolError("the upstream's answer broke off in its headers")
                raise _DeadConnection("the upstream closed the connection without an answer")
            buffer += data
        self.buffer = buffer[end + 4 :]
        if end > MAX_HEAD:
            raise ProtocolError("the upstream's headers are too long")
        return buffer[:end]

    def _has_answer(self) -> bool:
        """Whether what has come is the final answer, or the connection's end.

        Something that can be read need not be: TLS has messages of its own, and an
        informational answer (RFC 9110 §15.2) asks nobody to stop.
        """
        self._wait_at_most(0)
        try:
            data = self.sock.recv(_RECEIVE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        self.buffer += data
        if not data or len(self.buffer) > MAX_HEAD:
            return True
        rest = self.buffer
        while _INFORMATIONAL(rest):
            rest = rest.partition(b"\r\n\r\n")[2]
        return len(rest) >= _STATUS_BYTES

    def is_readable(self) -> bool:
        """Whether bytes or the end have come: of a connection at rest, that it is no good."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.sock, select.POLLIN)
        return bool(self._poll.poll(0))

    def close(self) -> None:
        self.sock.close()


class _SocketResponse:
    """An answer on a connection of ours; see `Response`."""

    def __init__(
        self, head: Head, frame: Framing, connection: _Connection, pool: _Pool | None
    ) -> None:
        self.status = head.status
        self.reason = head.reason
        self.headers = head.headers
        self._connection = connection
        self._pool = pool
        self._chunks = ChunkedReader() if frame.chunked else None
        self._left = frame.length
        self._done = frame.length == 0
        self._closed = False

    @property
    def done(self) -> bool:
        return self._done

    def read(self, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while not self._done:
            if self._chunks is not None and self._chunks.broken:
                raise UpstreamBroken(str(self._chunks.broken)) from self._chunks.broken
            data = self._connection.buffer
            if data:
                self._connection.buffer = b""
            else:
                data = self._receive(deadline - time.monotonic())
            data = self._unframe(data)
            if data:
                return data
        return b""

    def _receive(self, seconds: float) -> bytes:
        try:
            data = self._connection.receive(seconds)
        except OSError as error:
            raise UpstreamBroken("the upstream's answer broke off") from error
        if not data:
            if self._chunks is not None or self._left is not None:
                raise UpstreamBroken("the upstream's answer broke off")
            self._done = True
            self._pool = None
        return data

    def _unframe(self, data: bytes) -> bytes:
        if self._chunks is not None:
            data = self._chunks.feed(data)
            self._done = self._chunks.done
            if self._chunks.rest:
                self._pool = None
        elif self._left is not None:
            if len(data) > self._left:  # bytes that nobody asked for: not to be trusted further
                data, self._pool = data[: self._left], None
            self._left -= len(data)
            self._done = not self._left
        return data

    def shutdown(self) -> None:
        self._pool = None
        shutdown(self._connection.sock)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._done and self._pool is not None and not self._connection.buffer:
            self._pool.give(self._connection)
        else:
            self._connection.close()


class _Pool:
    """Connections at rest, by where they lead."""

    def __init__(self) -> None:
        self._reset()
        _pools.append(self)

    def _reset(self) -> None:
        self._lock = Lock()
        self._idle: dict[tuple[str, str, int], list[_Connection]] = {}

    def take(self, base: BaseURL) -> _Connection | None:
        """Return a live connection that was used last, None where there is none."""
        key = (base.scheme, base.host, base.port)
        now = time.monotonic()
        while True:
            with self._lock:
                idle = self._idle.get(key)
                if not idle:
                    return None
                connection = idle.pop()
            if now - connection.idle_since < _IDLE_IN_POOL and not connection.is_readable():
                return connection
            connection.close()

    def give(self, connection: _Connection) -> None:
        """Keep a connection for the next request."""
        connection.idle_since = time.monotonic()
        base = connection.base
        with self._lock:
            idle = self._idle.setdefault((base.scheme, base.host, base.port), [])
            if len(idle) < _MOST_IN_POOL:
                idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close all connections at rest."""
        with self._lock:
            resting, self._idle = self._idle, {}
        for idle in resting.values():
            for connection in idle:
                connection.close()

    def forget(self) -> None:
        """In a forked child: close our copies of the parent's sockets, which stay open there."""
        for idle in self._idle.values():
            for connection in idle:
                # Not SSLSocket.close: nothing must be written on the parent's connection.
                os.close(connection.sock.detach())
        self._reset()


_pools: list[_Pool] = []


def _forget_pools() -> None:
    for pool in _pools:
        pool.forget()
    _tls_context.cache_clear()


def _close_pools() -> None:
    for pool in _pools:
        pool.close()


os.register_at_fork(after_in_child=_forget_pools)
atexit.register(_close_pools)


@lru_cache(maxsize=1)
def shared_transport() -> SocketTransport:
    """Return the transport of this process; all forwarders share its connections."""
    return SocketTransport()


@lru_cache(maxsize=1)
def _tls_context() -> ssl.SSLContext:
    """Return the one TLS context: verification on, 21 ms to make."""
    import certifi

    cafile = os.environ.get("SSL_CERT_FILE") or certifi.where()
    context = ssl.create_default_context(cafile=cafile)
    # Python 3.11 up to some release sets it, and a body that was cut off looked whole.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.set_alpn_protocols(["http/1.1"])
    return context


def shutdown(sock: socket.socket) -> None:
    """End both directions, which wakes whoever reads; also over TLS.

    Not `SSLSocket.shutdown`, which drops the TLS object: a later send would be plain text.
    """
    with suppress(OSError):  # the peer was faster
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _left(seconds: float) -> float:
    """Return a timeout for a socket: 0 would mean not to wait at all."""
    if seconds <= 0:
        raise UpstreamTimeout("the upstream did not take the request in time")
    return seconds


def _connect(base: BaseURL, seconds: float) -> _Connection:
    """Connect, trying each address of the host within one deadline."""
    deadline = time.monotonic() + seconds
    addresses = _addresses(base, seconds)
    failure: UpstreamError = UpstreamUnreachable("the upstream's host has no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        # A dead address leaves time for those behind it.
        now = time.monotonic()
        until = now + (deadline - now) / (len(addresses) - number)
        try:
            return _Connection(_open(base, (family, kind, protocol), address, until), base)
        except TimeoutError:
            failure = UpstreamTimeout("connecting to the upstream took too long")
        except OSError as error:
            failure = UpstreamUnreachable(f"the upstream cannot be reached: {_reason(error)}")
    raise failure


def _addresses(base: BaseURL, seconds: float) -> list[Any]:
    """Look a host up, within a bound: the system's resolver has none that can be set."""
    found: list[Any] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(base.host, base.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    if base.is_literal:
        look_up()
    else:
        thread = Thread(target=look_up, name="aigw-resolve", daemon=True)
        thread.start()
        thread.join(max(0.0, seconds))
    if not found:
        raise UpstreamTimeout("looking up the upstream's host took too long")
    if isinstance(found[0], Exception):
        raise UpstreamUnreachable(f"the upstream's host is not known: {found[0]}")
    addresses: list[Any] = found[0]
    return addresses


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return getattr(error, "verify_message", "") or error.reason or "TLS failed"
    return error.strerror or type(error).__name__


def _open(
    base: BaseURL, kind: tuple[int, int, int], address: tuple[object, ...], deadline: float
) -> socket.socket:
    sock = socket.socket(*kind)
    try:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if base.scheme == "https":
            # A body that is delimited by the connection's end is whole only after a proper
            # end of TLS, which a missing close_notify is not (RFC 9112 §9.8).
            sock = _tls_context().wrap_socket(
                sock, server_hostname=base.host, suppress_ragged_eofs=False
            )
    except BaseException:
        sock.close()
        raise
    return sock


def _framed(block: bytes, chunked: bool) -> bytes:
    return b"%x\r\n%b\r\n" % (len(block), block) if chunked else block


def _request_head(request: Request) -> bytes:
    lines = [f"{request.method} {request.target} HTTP/1.1", f"Host: {request.base.authority}"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    if request.length is None:
        lines.append("Transfer-Encoding: chunked")
    elif request.length or request.method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {request.length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
