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
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

HEAD_SECONDS = 15.0
"""Seconds in which a request's head must have come; nginx gives 60, Apache 20 to 40."""
_LOOK_SECONDS = 0.05
_MOMENT_MS = 20
_MOST_PEEKED = 64 * 1024
_END = b"\r\n\r\n"


class PatientWorker(ThreadWorker):  # type: ignore[misc, unused-ignore]
    """A gthread worker with connections that wait for their heads outside its threads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: dict[Any, float] = {}
        self._waiting_lock = threading.Lock()
        self._waiter: threading.Thread | None = None

    def handle(self, conn: Any) -> Any:
        """Serve a connection whose head is there; put another one aside."""
        # Most clients send a whole head a moment after they have connected.
        if _has_head(conn) or (_is_readable(conn) and _has_head(conn)):
            return super().handle(conn)
        with self._waiting_lock:
            self._waiting[conn] = time.monotonic() + HEAD_SECONDS
            if self._waiter is None:
                self._waiter = threading.Thread(target=self._wait, name="aigw-heads", daemon=True)
                self._waiter.start()
        return _ASIDE

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
                    if _has_head(conn):
                        del self._waiting[conn]
                        self.method_queue.defer(self.enqueue_req, conn)
                    elif now > deadline:
                        del self._waiting[conn]
                        self.method_queue.defer(self._cut, conn)
                if not self._waiting:
                    self._waiter = None
                    return

    def _cut(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()


_ASIDE = object()


def _is_readable(conn: Any) -> bool:
    """Whether anything comes within a moment."""
    poll = select.poll()
    poll.register(conn.sock, select.POLLIN)
    return bool(poll.poll(_MOMENT_MS))


def _has_head(conn: Any) -> bool:
    """Whether a whole head, or what no head is, or the connection's end has come."""
    peeked = _peek(conn)
    if peeked == b"":
        return True
    known = _read_ahead(conn) + (peeked or b"")  # a client may send requests one behind the other
    return _END in known or len(known) >= _MOST_PEEKED


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
