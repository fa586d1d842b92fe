"""The body of a forwarded answer, handed on as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import UpstreamError, UpstreamTimeout
from .transport import Response


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
    """

    def __init__(
        self,
        response: Response,
        first: bytes,
        *,
        idle: float,
        deadline: float,
        error_event: Callable[[UpstreamError], bytes] | None,
    ) -> None:
        self._response = response
        self._first = first
        self._idle = idle
        self._deadline = deadline
        self._error_event = error_event
        self._error: UpstreamError | None = None
        self._ends_event = True

    def __iter__(self) -> ForwardedBody:
        return self

    def __next__(self) -> bytes:
        if self._first:
            data, self._first = self._first, b""
        else:
            data = self._read()
        if not data:
            raise StopIteration
        self._ends_event = data.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))
        return data

    def _read(self) -> bytes:
        if self._error is not None:
            raise self._error
        left = self._deadline - time.monotonic()
        try:
            if left <= 0:
                raise UpstreamTimeout("the answer took longer than it may")
            return self._response.read(min(self._idle, left))
        except UpstreamError as error:
            self._response.close()
            self._error = error
            if self._error_event is None:
                raise
            # A line that was torn off is ended, so that the event stands alone.
            return (b"" if self._ends_event else b"\n\n") + self._error_event(error)

    def close(self) -> None:
        """Let go of the provider's connection; the server calls it whatever happened."""
        self._response.close()
