"""A request whose answer has not begun: watched, so that nobody waits for what nobody will read.

Where the server shows the client's socket, the provider's connection is closed within a second of
the client's going, though the provider has not said a word yet; and so it is when the key is
revoked.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

from .._watchdog import watchdog
from ..errors import GatewayError
from .stream import reason_to_end

T = TypeVar("T")


class Waiting:
    """What is watched while a provider is silent.

    Args:
        client: the client's socket; None where the server does not show it.
        alive: tells whether the client's key is still good; None where nobody can revoke it.

    Attributes:
        ended_by: why the wait was ended; None while it was not.
    """

    def __init__(self, client: socket.socket | None, alive: Callable[[], bool] | None) -> None:
        self._client = client
        self._alive = alive
        self._wake: Callable[[], None] | None = None
        self._lock = Lock()
        self.ended_by: GatewayError | None = None

    def __enter__(self) -> Waiting:
        watchdog.add(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        watchdog.remove(self)

    def attach(self, wake: Callable[[], None]) -> None:
        """Have `wake` end the read that is about to begin, from another thread."""
        with self._lock:
            self._wake = wake
            if self.ended_by is not None:
                wake()

    def detach(self) -> None:
        """Forget it: a descriptor's number is used again as soon as it is closed."""
        with self._lock:
            self._wake = None

    def check(self) -> None:
        """End the wait if nobody may or will read the answer; called by the watchdog."""
        reason = reason_to_end(self._client, self._alive)
        if reason is None:
            return
        with self._lock:
            if self.ended_by is None:
                self.ended_by = reason
                if self._wake is not None:
                    self._wake()


def awaited(waiting: Waiting | None, wake: Callable[[], None], read: Callable[[], T]) -> T:
    """Return what `read` does, which may be woken by `wake` when the wait is ended.

    The wake is taken back whatever happens: before the answer is closed, whose descriptor's number
    is used again.
    """
    if waiting is None:
        return read()
    waiting.attach(wake)
    try:
        return read()
    finally:
        waiting.detach()
