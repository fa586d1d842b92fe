"""What is known of a request when its answer is closed, for layers that tell of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ._addresses import address_of
from ._headers import header
from ._iterables import WHOLE, Wrapped
from ._options import application
from ._responding import Headers, hearing
from .body import Body, content_length
from .environ import (
    ATTEMPTS,
    BODY,
    DECISIONS,
    END,
    KEY,
    MODEL,
    PROVIDER,
    UPSTREAM_WAIT,
    USAGE,
    enter,
    full_path,
    request_id,
)
from .errors import (
    BodyError,
    ClientLeft,
    KeyRevoked,
    LimitReached,
    UpstreamError,
    UpstreamTimeout,
)
from .usage.figures import NANO, figures_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Fields = dict[str, Any]
_Tell = Callable[[Fields, "WSGIEnvironment"], None]

LONGEST = 512
"""Letters of a client's text that are told at most."""

_ENDS: tuple[tuple[type[BaseException], str], ...] = (
    (ClientLeft, "client_left"),
    (KeyRevoked, "revoked"),
    (LimitReached, "budget"),
    (UpstreamTimeout, "timeout"),
    (UpstreamError, "upstream_broke"),
)


class Observer:
    """Base of the layers that tell of a request when it is over, and change nothing.

    Args:
        app: the wrapped WSGI application.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self.app = application(app)

    def begin(self, environ: WSGIEnvironment) -> None:
        """Take note of a request that has come."""

    def observe(self, fields: Fields, environ: WSGIEnvironment) -> None:
        """Tell of a request that is over; `fields` are those of `AccessLog`."""
        raise NotImplementedError

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        enter(environ)
        self.begin(environ)
        entry = _Entry(environ, self.observe)
        try:
            iterable = self.app(environ, entry.noting(start_response))
        except BaseException as error:
            entry.finish(error)
            raise
        if isinstance(iterable, WHOLE):
            # Some servers never close a list; all of it is known.
            entry.bytes_out = sum(map(len, iterable))
            entry.first_byte = time.monotonic()
            entry.finish(None)
            return iterable
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(iterable, wrapper):
            entry.is_sent_by_server = True
            entry.finish(None)
            return iterable
        return _ObservedBody(iterable, entry)


class _Entry:
    """What is known of one request so far."""

    def __init__(self, environ: WSGIEnvironment, tell: _Tell) -> None:
        self._environ = environ
        self._tell: _Tell | None = tell
        self._began = time.monotonic()
        self._came = time.time_ns() // 1000
        # As they came: an inner layer may change them.
        self._path = _shown(full_path(environ))[:LONGEST]
        self._method = environ.get("REQUEST_METHOD", "")
        self._status: int | None = None
        self._code: str | None = None
        self.first_byte: float | None = None
        self.bytes_out = 0
        self.is_sent_by_server = False

    def noting(self, start_response: StartResponse) -> StartResponse:
        """Return a `start_response` that takes note of the status and the refusal's code."""

        def note(status: str, headers: Headers) -> None:
            self._status = int(status[:3])
            if self._status >= 400:
                self._code = header(headers, "x-aigw-code") or None

        return hearing(start_response, note)

    def finish(self, error: BaseException | None, *, left: bool = False) -> None:
        """Tell of it, once."""
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(self._fields(self._end(error, left=left)), self._environ)

    def _end(self, error: BaseException | None, *, left: bool) -> str:
        told: str | None = self._environ.get(END)
        if told is not None:
            return told
        if error is None:
            return "client_left" if left else "done"
        return next((end for kind, end in _ENDS if isinstance(error, kind)), "upstream_broke")

    def _fields(self, end: str) -> Fields:
        environ, now = self._environ, time.monotonic()
        key = environ.get(KEY)
        usage = environ.get(USAGE)
        figures = None if usage is None else figures_of(usage)
        cost = None if figures is None else figures.cost
        first = None if self.first_byte is None else self.first_byte - self._began
        waited = environ.get(UPSTREAM_WAIT, 0.0)
        address = address_of(environ)
        return {
            "time": _told(self._came),
            "request_id": request_id(environ),
            "key_id": None if key is None else key.id,
            "client_ip": None if address is None else address.text,
            "method": self._method,
            "path": self._path,
            "provider": environ.get(PROVIDER),
            "model": environ.get(MODEL),
            "attempts": environ.get(ATTEMPTS),
            "status": self._status,
            "code": self._code,
            "gate": self._gate(),
            "bytes_in": _bytes_in(environ),
            "bytes_out": None if self.is_sent_by_server else self.bytes_out,
            "input_tokens": None if figures is None else figures.input_tokens,
            "output_tokens": None if figures is None else figures.output_tokens,
            "cost": None if cost is None else cost / NANO,
            "duration": round(now - self._began, 6),
            "first_byte": None if first is None else round(first, 6),
            "overhead": None if first is None else round(max(0.0, first - waited), 6),
            "end": end,
        }

    def _gate(self) -> str | None:
        """Return the name of the gate that refused; None where none did."""
        if self._code is None:
            return None
        refused = [d for d in self._environ.get(DECISIONS, ()) if not d.allowed and d.enforced]
        return refused[-1].gate if refused else None


class _ObservedBody(Wrapped):
    """An app's iterable, counted."""

    def __init__(self, iterable: Iterable[bytes], entry: _Entry) -> None:
        self._entry = entry
        self._ended = False
        super().__init__(iterable)

    def __next__(self) -> bytes:
        try:
            data = self._next()
        except StopIteration:
            self._ended = True
            raise
        except BaseException as error:
            # What was used is known once the inner iterable is closed.
            try:
                self.close_inner()
            finally:
                self._entry.finish(error)
            raise
        entry = self._entry
        if data and entry.first_byte is None:
            entry.first_byte = time.monotonic()
        entry.bytes_out += len(data)
        return data

    def close(self) -> None:
        """Close the app's iterable, then tell of it."""
        try:
            self.close_inner()
        finally:
            self._entry.finish(None, left=not self._ended)


def _shown(path: str) -> str:
    """Return a path, whose bytes the environ holds as Latin-1, as it is read (RFC 3987 §3.2)."""
    if path.isascii():
        return path
    return path.encode("latin-1", "replace").decode("utf-8", "backslashreplace")


def _told(moment: int) -> str:
    """Return a moment, in microseconds since 1970, by RFC 3339."""
    seconds, microseconds = divmod(moment, 1_000_000)
    return f"{_second(seconds)}.{microseconds:06}Z"


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _bytes_in(environ: WSGIEnvironment) -> int | None:
    body = environ.get(BODY)
    if isinstance(body, Body):
        return body.size
    try:
        return content_length(environ)
    except BodyError:
        return None
