"""gunicorn's gevent worker, which ends without waiting for clients that ask for nothing.

A worker that is told to end waits for its connections, those included that are only kept for
another request: as long as the graceful timeout, with one idle client.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from gunicorn.workers.ggevent import GeventWorker


class PromptWorker(GeventWorker):  # type: ignore[misc, unused-ignore]
    """A gevent worker that lets go of idle connections when it ends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: set[socket.socket] = set()

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Serve a connection."""
        self._idle.add(client)
        try:
            super().handle(listener, client, addr)
        finally:
            self._idle.discard(client)

    def handle_request(self, listener_name: Any, req: Any, sock: socket.socket, addr: Any) -> None:
        """Serve a request, during which its connection is not idle."""
        self._idle.discard(sock)
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            self._idle.add(sock)
            if not self.alive:
                _end(sock)

    def handle_exit(self, sig: Any, frame: Any) -> None:
        """End once the requests that have come are answered."""
        super().handle_exit(sig, frame)
        for sock in list(self._idle):
            _end(sock)


def _end(sock: socket.socket) -> None:
    """Have whoever waits for another request find the connection's end."""
    with suppress(OSError):  # the client was faster
        sock.shutdown(socket.SHUT_RD)
