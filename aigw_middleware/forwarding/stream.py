"""The body of a forwarded answer, handed on as it comes."""

from __future__ import annotations

import _socket
import logging
import socket
import time
from collections.abc import Callable
from threading import Lock

from .._watchdog import watchdog
from ..dialects import EVENT_ENDS
from ..errors import ClientLeft, GatewayError, KeyRevoked, UpstreamTimeout
from .meter import Meter
from .transport import Response

logger = logging.getLogger(__name__)


class ForwardedBody:
    """The iterable that a WSGI server takes the provider's bytes from.

    A body that breaks off never ends as if it were whole: an event stream gets an error event,
    and then the iterable raises, on which a server aborts the connection.

    Args:
        response: the answer, whose first bytes were read already.
        first: those bytes.
        idle: seconds that may pass between two reads.
        deadline: the `time.monotonic()` at which it must be over.
        error_event: returns the event that tells of an error; None for no event stream.
        client: the client's socket where the server shows it: when the client hangs up, the
            provider's connection is closed, also while the provider is silent.
        alive: tells whether the client's key is still good; None where nobody can revoke it.
        meter: reads what was used off the bytes as they pass; None for nobody.
        on_end: called once, before the last bytes are handed on, or in `close` at the latest, with
            what has ended it; None where nothing did.
    """

    def __init__(
        self,
        response: Response,
        first: bytes,
        *,
        idle: float,
        deadline: float,
        error_event: Callable[[GatewayError], bytes] | None,
        client: socket.socket | None = None,
        alive: Callable[[], bool] | None = None,
        meter: Meter | None = None,
        on_end: Callable[[GatewayError | None], None] | None = None,
    ) -> None:
        self._response = response
        self._first = first
        self._idle = idle
        self._deadline = deadline
        self._error_event = error_event
        self._client = client
        self._alive = alive
        self._meter = meter
        self._on_end = on_end
        self._error: GatewayError | None = None
        self._ends_event = True
        # Held by whoever closes the response or shuts it down: a descriptor's number is used
        # again as soon as it is closed.
        self._lock = Lock()
        self._closed = False
        self._ended_by: GatewayError | None = None
        # Of an answer that has come whole there is nothing left to end.
        self._watched = (alive is not None or client is not None) and not response.done
        if self._watched:
            watchdog.add(self)

    def __iter__(self) -> ForwardedBody:
        return self

    def __next__(self) -> bytes:
        data = self._metered()
        if not data:
            self._end()
            raise StopIteration
        if self._response.done or (self._meter is not None and self._meter.is_over):
            self._end()
        self._ends_event = data.endswith(EVENT_ENDS)
        return data

    def _metered(self) -> bytes:
        """Return the next bytes for the client, of which the meter knows; empty at the end."""
        while True:
            if self._first and self._ended_by is None:
                data, self._first = self._first, b""
            else:
                data = self._read()
            if not data:
                return self._rest()
            if self._meter is None or self._error is not None:
                return data
            data = self._meter.feed(data)
            if self._response.done:
                data += self._rest()
            if data:
                return data

    def _rest(self) -> bytes:
        """Return what the meter has held back, at the answer's end."""
        return b"" if self._meter is None else self._meter.finish()

    def check(self) -> None:
        """End the stream if nobody may or will read it; called by the watchdog."""
        reason = reason_to_end(self._client, self._alive)
        if reason is None:
            return
        with self._lock:
            if not self._closed and self._ended_by is None:
                self._ended_by = reason  # first, so that the reader that wakes knows why
                self._response.shutdown()

    def _read(self) -> bytes:
        if self._error is not None:
            raise self._error
        try:
            data = self._next_bytes()
        except GatewayError as error:
            self._error = self._reason(error)
            self.close()
            if self._error_event is None:
                raise self._error from None
            # A line that was torn off is ended, so that the event stands alone.
            return (b"" if self._ends_event else b"\n\n") + self._error_event(self._error)
        return data

    def _next_bytes(self) -> bytes:
        if self._ended_by is not None:
            raise self._ended_by
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise UpstreamTimeout("the answer took longer than it may")
        data = self._response.read(min(self._idle, left))
        if self._ended_by is not None:  # an empty read that we caused ourselves is no end
            raise self._ended_by
        return data

    def _reason(self, error: GatewayError) -> GatewayError:
        """Return what really ended the stream: a read that we broke ourselves raises too."""
        if self._ended_by is not None:
            return self._ended_by
        try:
            return reason_to_end(self._client, self._alive) or error
        except Exception:
            # It asks an object of the user's own.
            logger.exception("whether a stream may go on cannot be told")
            return error

    def _end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self._error)

    def close(self) -> None:
        """Let go of the provider's connection; the server calls it whatever happened."""
        try:
            self._end()
        finally:
            if self._watched:
                watchdog.remove(self)
            with self._lock:
                if not self._closed:
                    self._closed = True
                    self._response.close()


class WholeResponse:
    """An answer of which nothing is left to read; see `Response`."""

    done = True

    def __init__(self, status: int, reason: str, headers: list[tuple[str, str]]) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers

    def read(self, seconds: float) -> bytes:
        """Return nothing: it was read."""
        return b""

    def shutdown(self) -> None:
        """Wake nobody."""

    def close(self) -> None:
        """Let go of nothing."""


def reason_to_end(
    client: socket.socket | None, alive: Callable[[], bool] | None
) -> GatewayError | None:
    """Return why nobody may or will read an answer any more; None where somebody does.

    Args:
        client: the client's socket; None where the server does not show it.
        alive: tells whether the client's key is still good; None where nobody can revoke it.
    """
    if alive is not None and not alive():
        return KeyRevoked("the key of this request was revoked")
    if client is not None and has_hung_up(client):
        return ClientLeft()
    return None


def has_hung_up(client: socket.socket) -> bool:
    """Whether a client has closed its end; asked without a wait, and nothing is taken.

    Asked of the descriptor: a socket of gevent's, or one with a timeout, would wait.
    """
    try:
        # So marked the object waits for nothing, whatever the default timeout; the descriptor's
        # own mode is the server's and stays as it is.
        kind = client.type | socket.SOCK_NONBLOCK
        peeked = _socket.socket(client.family, kind, client.proto, client.fileno())
    except (OSError, ValueError):
        return True  # it is closed
    try:
        return not peeked.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        peeked.detach()  # it is the client's to close
