"""Write one line for each request, when its answer is closed.

Put it outermost, so that it sees what every other layer has found. It tells who asked for what,
who refused or answered it, what it used and how long it took; never a credential, a query, a
prompt or an answer.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Any

from ._addresses import address_of
from ._iterables import WHOLE, Wrapped
from ._options import application
from ._responding import Headers, with_headers
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

_ENDS: tuple[tuple[type[BaseException], str], ...] = (
    (ClientLeft, "client_left"),
    (KeyRevoked, "revoked"),
    (LimitReached, "budget"),
    (UpstreamTimeout, "timeout"),
    (UpstreamError, "upstream_broke"),
)
_LONGEST = 512


class AccessLog:
    """Log every request.

    ::

        app = AccessLog(app, "/var/log/aigw/access.log")

    The fields of a line, in JSON: `time` (RFC 3339, UTC, when it came), `request_id`, `key_id`,
    `client_ip`, `method`, `path` (without the query), `provider`, `model`, `attempts` (how many
    candidates were asked), `status`, `code` and `gate` (of a refusal: its code, and who refused),
    `bytes_in`, `bytes_out`, `input_tokens`, `output_tokens`, `cost` (USD), `duration`,
    `first_byte` and `overhead` (seconds: of all of it, until the first byte of the answer, and of
    these what was not spent waiting for the provider), and `end`: `done` (of a refusal too),
    `client_left`, `upstream_broke`, `revoked`, `budget`, `timeout`. What is not known is null.

    Args:
        app: the wrapped WSGI application.
        destination: a path, whose file is appended to by any number of processes, and opened anew
            when it was moved away (log rotation); an open text file; a `logging.Logger`, which
            gets the line as its message at INFO; None for standard output.
        format: `"json"`, or `"text"` for `name=value` pairs.

    Raises:
        ValueError: an option is wrong, or the file cannot be opened.
    """

    def __init__(
        self, app: WSGIApplication, destination: Any = None, *, format: str = "json"
    ) -> None:
        self.app = application(app)
        if format not in _FORMATS:
            raise ValueError(f"format: {format!r} is none of {', '.join(_FORMATS)}")
        self._format = _FORMATS[format]
        self._write = _writer(destination)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        enter(environ)
        entry = _Entry(environ, self._log)
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
            entry.finish(None)  # the server sends the file by itself
            return iterable
        return _LoggedBody(iterable, entry)

    def _log(self, fields: Fields) -> None:
        try:
            self._write(self._format(fields))
        except OSError as error:
            # A full disk is no reason to refuse what was answered.
            logging.getLogger(__name__).error("a line of the access log is lost: %s", error)


class _Entry:
    """What is known of one request so far."""

    def __init__(self, environ: WSGIEnvironment, log: Callable[[Fields], None]) -> None:
        self._environ = environ
        self._log: Callable[[Fields], None] | None = log
        self._began = time.monotonic()
        self._time = datetime.now(UTC)
        # As they came: an inner layer may change them.
        self._path = full_path(environ)[:_LONGEST]
        self._method = environ.get("REQUEST_METHOD", "")
        self._status: int | None = None
        self._code: str | None = None
        self.first_byte: float | None = None
        self.bytes_out = 0

    def noting(self, start_response: StartResponse) -> StartResponse:
        """Return a `start_response` that takes note of the status and the refusal's code."""

        def note(status: str, headers: Headers) -> Headers:
            self._status = int(status[:3])
            self._code = next(
                (value for name, value in headers if name.lower() == "x-aigw-code"), None
            )
            return headers

        return with_headers(start_response, note)

    def finish(self, error: BaseException | None, *, left: bool = False) -> None:
        """Write the line, once."""
        log, self._log = self._log, None
        if log is not None:
            log(self._fields(self._end(error, left=left)))

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
            "time": self._time.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
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
            "bytes_out": self.bytes_out,
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


class _LoggedBody(Wrapped):
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
        """Close the app's iterable, then write the line."""
        try:
            self.close_inner()
        finally:
            self._entry.finish(None, left=not self._ended)


def _bytes_in(environ: WSGIEnvironment) -> int | None:
    body = environ.get(BODY)
    if isinstance(body, Body):
        return body.size
    try:
        return content_length(environ)
    except BodyError:
        return None


def _as_json(fields: Fields) -> str:
    return json.dumps(fields, separators=(",", ":"))


def _as_text(fields: Fields) -> str:
    return " ".join(
        f"{name}={json.dumps(value)}" for name, value in fields.items() if value is not None
    )


_FORMATS: dict[str, Callable[[Fields], str]] = {"json": _as_json, "text": _as_text}


def _writer(destination: Any) -> Callable[[str], None]:
    if destination is None:
        return _FileWriter(sys.stdout)
    if isinstance(destination, str | os.PathLike):
        return _PathWriter(os.fspath(destination))
    if isinstance(destination, logging.Logger):
        return lambda line: destination.info("%s", line)
    if callable(getattr(destination, "write", None)):
        return _FileWriter(destination)
    raise ValueError(f"destination: {type(destination).__name__} is no path, file or logger")


class _FileWriter:
    """Writes lines to an open file."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._lock = Lock()

    def __call__(self, line: str) -> None:
        with self._lock:
            self._file.write(line + "\n")
            flush = getattr(self._file, "flush", None)
            if flush is not None:
                flush()


class _PathWriter:
    """Appends lines to the file at a path; each in one write, so that processes may share it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = Lock()
        self._fd = -1
        try:
            self._open()
        except OSError as error:
            raise ValueError(f"destination: {path} cannot be opened: {error.strerror}") from None

    def __call__(self, line: str) -> None:
        data = (line + "\n").encode()
        with self._lock:
            if not self._is_there():
                self._open()
            os.write(self._fd, data)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def _is_there(self) -> bool:
        """Whether the path still leads to the file that is open."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except OSError:
            return False
