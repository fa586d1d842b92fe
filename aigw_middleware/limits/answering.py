"""The answer to a request for which something is held: settled when it is closed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .._headers import header, is_event_stream
from .._iterables import Wrapped
from .._responding import Headers, hearing
from ..denial import Denial
from ..dialects import EVENT_ENDS, client_dialect
from ..environ import END, OVER, UNSEEN, USAGE, request_id
from ..errors import LimitReached
from .holding import Holding

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class Head:
    """What is known of an answer's head: its status (0 before it was begun) and its kind."""

    __slots__ = ("is_events", "status")

    def __init__(self) -> None:
        self.status = 0
        self.is_events = False

    def status_of(self, environ: WSGIEnvironment) -> int:
        """Return the status to settle by: 0 where what a provider answered went unseen."""
        return 0 if UNSEEN in environ else self.status

    def noting(self, start_response: StartResponse) -> StartResponse:
        """Return a `start_response` that takes note of the head."""

        def note(status: str, headers: Headers) -> None:
            self.status = int(status[:3])
            self.is_events = is_event_stream(headers) and not (
                header(headers, "content-length") or header(headers, "content-encoding")
            )

        return hearing(start_response, note)


class HeldAnswer(Wrapped):
    """The iterable of an app, for which something is held.

    An event stream ends with an error event when more is used than its limits give. Any answer
    ends when its slot was lost, without events by raising, on which the server aborts.

    Args:
        iterable: the app's.
        holding: what is held.
        head: the answer's head.
        environ: the request.
        refusal: returns the refusal for a unit that is refused; None ends nothing.
    """

    def __init__(
        self,
        iterable: Iterable[bytes],
        holding: Holding,
        head: Head,
        environ: WSGIEnvironment,
        refusal: Callable[[str], Denial] | None,
    ) -> None:
        self._holding = holding
        self._head = head
        self._environ = environ
        self._refusal = refusal
        self._ended: Denial | None = None
        super().__init__(iterable)

    def __next__(self) -> bytes:
        if self._ended is not None:
            if self._head.is_events:
                raise StopIteration
            raise LimitReached(self._ended.message)
        refusal = self._refusal
        if refusal is None:
            return self._next()
        if time.monotonic() > self._holding.good_until and not self._holding.take_again():
            return self._end(refusal("concurrent"), b"")
        data = self._next()
        usage = self._environ.get(USAGE)
        # Only a stream can be told to end: of another answer all is used when its usage is known,
        # and so it is with the stream's last event.
        if usage is not None and self._head.is_events and OVER not in self._environ:
            unit = self._holding.outgrown_by(usage)
            if unit is not None:
                return self._end(refusal(unit), data)
        return data

    def _end(self, denial: Denial, data: bytes) -> bytes:
        """Hand on what has come, and in an event stream say why no more does."""
        self._ended = denial
        self._environ[END] = "budget"
        self.close_inner()  # the provider is not to go on for nobody
        if not self._head.is_events:
            if not data:
                raise LimitReached(denial.message)
            return data
        dialect, environ = client_dialect(self._environ), self._environ
        error = dialect.error(
            denial.status, denial.code, denial.message, request_id(environ), denial.param
        )
        torn = data and not data.endswith(EVENT_ENDS)
        event = dialect.error_event(environ.get("PATH_INFO", ""), error)
        return data + (b"\n\n" if torn else b"") + event

    def close(self) -> None:
        """Close the app's iterable, and settle what is held."""
        try:
            self.close_inner()
        finally:
            self._holding.close(self._head.status_of(self._environ), self._environ)
