"""gunicorn's gthread worker, for which a slow client holds no thread.

The worker reads a request's head in a thread of its pool and waits there for as long as a client
sends a byte now and then: as many such clients as threads, and nobody else is served. Here a
connection comes to a thread when its head is there, and is cut when that takes too long.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress
from enum import Enum, auto
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from ..body import DISCARD_SECONDS, ReadCut

HEAD_SECONDS = 15.0
"""Seconds in which a request's head must have come; nginx gives 60, Apache 20 to 40."""
_LOOK_SECONDS = 0.05
_MOMENT_MS = 20
_MOST_PEEKED = 64 * 1024
"""Bytes of a head at most."""
_END = b"\r\n\r\n"


class Head(Enum):
    """How much of a request's head has come."""

    PART = auto()
    WHOLE = auto()
    TOO_LONG = auto()


_TOO_LONG = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"Connection: close\r\nContent-Length: 0\r\n\r\n"
)


class PatientWorker(ThreadWorker):  # type: ignore[misc, unused-ignore]
    """A gthread worker with connections that wait for their heads outside its threads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: dict[Any, float] = {}
        self._waiting_lock = threading.Lock()
        self._waiter: threading.Thread | None = None

    def handle(self, conn: Any) -> Any:
        """Serve a connection whose head is there; put another one aside."""
        head = _head_of(conn)
        if head is Head.PART and _is_readable(conn):
            head = _head_of(conn)  # most clients send all of it a moment after they have connected
        if head is Head.WHOLE:
            return super().handle(conn)
        with self._waiting_lock:
            self._waiting[conn] = time.monotonic() + HEAD_SECONDS
            if self._waiter is None:
                self._waiter = threading.Thread(target=self._wait, name="aigw-heads", daemon=True)
                self._waiter.start()
        return _ASIDE

    def _keepalive_after(self, conn: Any, keepalive: bool) -> Any:
        """Read away what is left of a body, for a moment: each byte would have a timeout else."""
        if not keepalive or _is_read(conn):
            return super()._keepalive_after(conn, keepalive)
        with ReadCut(conn.sock, DISCARD_SECONDS) as cut:
            keepalive = super()._keepalive_after(conn, keepalive)
        return keepalive and not cut.is_cut

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Do what follows a request; nothing for a connection that waits."""
        if not fs.cancelled() and fs.exception() is None and fs.result() is _ASIDE:
            return
        super().finish_request(conn, fs)

    def _wait(self) -> None:
        """Look at the connections that were put aside, until there are none."""
        while True:
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            with self._waiting_lock:
                for conn, deadline in list(self._waiting.items()):
                    head = _head_of(conn)
                    if head is Head.WHOLE:
                        del self._waiting[conn]
                        self.method_queue.defer(self.enqueue_req, conn)
                    elif head is Head.TOO_LONG or now > deadline:
                        del self._waiting[conn]
                        self.method_queue.defer(self._cut, conn, head)
                if not self._waiting:
                    self._waiter = None
                    return

    def _cut(self, conn: Any, head: Head) -> None:
        self.nr_conns -= 1
        if head is Head.TOO_LONG:
            with suppress(OSError):  # it has gone
                conn.sock.send(_TOO_LONG, socket.MSG_DONTWAIT)
        conn.close()


_ASIDE = object()


def _is_readable(conn: Any) -> bool:
    """Whether anything comes within a moment."""
    poll = select.poll()
    poll.register(conn.sock, select.POLLIN)
    return bool(poll.poll(_MOMENT_MS))


def _head_of(conn: Any) -> Head:
    peeked = _peek(conn)
    if peeked == b"":
        return Head.WHOLE  # the connection's end, which the parser finds
    known = _read_ahead(conn) + (peeked or b"")  # a client may send requests one behind the other
    # Empty lines in front are no part of it (RFC 9112 §2.2): the parser reads on behind them.
    if _END in known.lstrip(b"\r\n"):
        return Head.WHOLE
    return Head.TOO_LONG if len(known) >= _MOST_PEEKED else Head.PART


def _is_read(conn: Any) -> bool:
    """Whether nothing is left of the body of the request that was served, as far as it is known."""
    message = getattr(conn.parser, "mesg", None)
    reader = getattr(getattr(message, "body", None), "reader", None)
    return getattr(reader, "length", None) == 0


def _read_ahead(conn: Any) -> bytes:
    """Return what the parser has read of the next request behind the last one's body."""
    parser = conn.parser
    data: bytes = b"" if parser is None else parser.unreader.buf.getvalue()
    return data


def _peek(conn: Any) -> bytes | None:
    """Return what has come and was not read; None for nothing yet, empty for the end."""
    try:
        return conn.sock.recv(_MOST_PEEKED, socket.MSG_PEEK | socket.MSG_DONTWAIT)  # type: ignore[no-any-return]
    except BlockingIOError:
        return None
    except OSError:
        return b""
