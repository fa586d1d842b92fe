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
from collections.abc import Callable
from datetime import datetime
from threading import Lock
from typing import TYPE_CHECKING, Any

from ._observing import LONGEST, Fields, Observer
from ._saying import OnceAMinute

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment


class AccessLog(Observer):
    """Log every request.

    ::

        app = AccessLog(app, "/var/log/aigw/access.log")

    The fields of a line, in JSON: `time` (RFC 3339, UTC, when it came), `request_id`, `key_id`,
    `client_ip`, `method`, `path` (without the query), `provider`, `model`, `attempts` (how many
    candidates were asked), `status`, `code` and `gate` (of a refusal: its code, and who refused),
    `bytes_in`, `bytes_out`, `input_tokens`, `output_tokens`, `cost` (USD), `duration`,
    `first_byte` and `overhead` (seconds: of all of it, until the first byte of the answer, and of
    these what was not spent waiting for the provider), and `end`: `done` (of a refusal too),
    `client_left`, `upstream_broke`, `revoked`, `budget`, `timeout`. What is not known is null, as
    what is sent of a file that the app leaves to the server (`wsgi.file_wrapper`).

    Args:
        app: the wrapped WSGI application.
        destination: a path, whose file is appended to by any number of processes, and opened anew
            when it was moved away (log rotation); an open text file; a `logging.Logger`, which
            gets the line as its message at INFO; None for standard output.
        format: `"json"`; `"text"` for `name=value` pairs; `"combined"` for the form of Apache and
            nginx, with the key's id as the user.

    Raises:
        ValueError: an option is wrong, or the file cannot be opened.
    """

    def __init__(
        self, app: WSGIApplication, destination: Any = None, *, format: str = "json"
    ) -> None:
        super().__init__(app)
        if format not in _FORMATS:
            raise ValueError(f"format: {format!r} is none of {', '.join(_FORMATS)}")
        self._format = _FORMATS[format]
        self._write = _writer(destination)
        self._said = OnceAMinute(logging.getLogger(__name__))

    def observe(self, fields: Fields, environ: WSGIEnvironment) -> None:
        """Write the line of one request."""
        try:
            self._write(self._format(fields, environ))
        except (OSError, ValueError) as error:
            # A full disk or a file that somebody has closed is no reason to refuse the answer.
            self._said.error("a line of the access log is lost: %s", error)


_encode = json.JSONEncoder(separators=(",", ":")).encode


def _as_json(fields: Fields, environ: WSGIEnvironment) -> str:
    return _encode(fields)


def _as_text(fields: Fields, environ: WSGIEnvironment) -> str:
    return " ".join(
        f"{name}={json.dumps(value)}" for name, value in fields.items() if value is not None
    )


def _as_combined(fields: Fields, environ: WSGIEnvironment) -> str:
    """Return a line as https://httpd.apache.org/docs/2.4/logs.html#combined has it.

    Like everywhere here the request's line is without the query, which may hold a secret.
    """
    came = datetime.fromisoformat(fields["time"])
    line = f"{fields['method']} {fields['path']} {environ.get('SERVER_PROTOCOL', 'HTTP/1.1')}"
    referer, agent = environ.get("HTTP_REFERER", ""), environ.get("HTTP_USER_AGENT", "")
    quoted = [_quoted(text) for text in (line, referer.partition("?")[0] or "-", agent or "-")]
    return (
        f"{fields['client_ip'] or '-'} - {fields['key_id'] or '-'} "
        f"[{came:%d/%b/%Y:%H:%M:%S %z}] {quoted[0]} {fields['status'] or '-'} "
        f"{fields['bytes_out'] or '-'} {quoted[1]} {quoted[2]}"
    )


def _quoted(text: str) -> str:
    """Return a client's text in quotes, with whatever could end them or the line escaped."""
    return json.dumps(text[:LONGEST])


_FORMATS: dict[str, Callable[[Fields, WSGIEnvironment], str]] = {
    "json": _as_json,
    "text": _as_text,
    "combined": _as_combined,
}


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
        self._identity = (0, 0)
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
        status = os.fstat(fd)
        self._identity = (status.st_dev, status.st_ino)

    def _is_there(self) -> bool:
        """Whether the path still leads to the file that is open."""
        try:
            status = os.stat(self._path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity
