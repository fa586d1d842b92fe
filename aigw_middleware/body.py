"""The request's body: read whole once, by whoever comes first, and still there for the app.

Layers that judge a body and a forwarder that may have to send it twice need it whole. They get
it here, in memory up to `MEMORY` bytes and in an unnamed file above, and `wsgi.input` is put
back so that the next layer reads it as if nobody had.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

from ._watchdog import watchdog
from .environ import BODY
from .errors import (
    BodyError,
    BodyIncomplete,
    BodyInvalid,
    BodyStalled,
    BodyTooLarge,
    LengthRequired,
)
from .splice import Path, drop, put, put_all

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

MEMORY = 1024 * 1024
"""Bytes of a body that are kept in memory; a longer one goes to an unnamed file."""
BLOCK = 64 * 1024
STALL = 60.0
"""Seconds without a byte after which a body is refused, where the server shows its socket."""
LEAST_RATE = 16 * 1024
"""Bytes a second, beside `STALL`, below which a body is refused as a whole, under such a server."""
DISCARD = 64 * 1024
DISCARD_SECONDS = 1.0


class Body:
    """A request's body that has been read whole.

    Args:
        file: holds it.
        size: its length in bytes.
        document: the JSON object that is known to be in it; None for one that nobody has read.

    Attributes:
        size: its length in bytes.
        counted: its tokens by encoding, where somebody has counted them.
        asked: how much text it asks for, by its path in its dialect, where somebody has looked.
        inner: the models that it has a provider ask, in the same way.
    """

    def __init__(self, file: IO[bytes], size: int, document: dict[str, Any] | None = None) -> None:
        self._file = file
        self.size = size
        self.counted: dict[str, int] = {}
        self.asked: dict[str, Any] = {}
        self.inner: dict[str, tuple[str, ...]] = {}
        self._json = document

    def read(self) -> bytes:
        """Return all of it."""
        if isinstance(self._file, BytesIO):
            return self._file.getvalue()
        return os.pread(self._file.fileno(), self.size, 0)

    def buffer(self) -> bytes | mmap.mmap:
        """Return all of it, to be searched and cut: one on disk is not read into memory."""
        if isinstance(self._file, BytesIO):
            return self._file.getvalue()
        return mmap.mmap(self._file.fileno(), self.size, prot=mmap.PROT_READ)

    def blocks(self) -> Iterator[bytes]:
        """Yield it in blocks; as often as wanted, whatever others have read."""
        if isinstance(self._file, BytesIO):
            if self.size:
                yield self._file.getvalue()
            return
        for offset in range(0, self.size, BLOCK):
            yield os.pread(self._file.fileno(), BLOCK, offset)

    def json(self) -> dict[str, Any]:
        """Return it as a JSON object, read strictly and once.

        Raises:
            BodyInvalid: it is not one (see `strict_json`).
        """
        if self._json is None:
            self._json = strict_json(self.read())
        return self._json

    def forget(self) -> None:
        """Let go of what was read of it, which `json` reads anew: an answer may take minutes."""
        self._json = None

    def close(self) -> None:
        """Free the file; a body in memory is left readable."""
        if not isinstance(self._file, BytesIO):
            self._file.close()

    def __del__(self) -> None:
        # The environ may be dropped by a server without any layer learning of it.
        self.close()


def content_length(environ: WSGIEnvironment) -> int | None:
    """Return CONTENT_LENGTH in bytes, None where there is none.

    Raises:
        BodyIncomplete: it is not a plain decimal number (RFC 9110 §8.6).
    """
    value = environ.get("CONTENT_LENGTH") or ""
    if not value:
        return None
    if not (value.isascii() and value.isdigit()) or len(value) > 18:
        raise BodyIncomplete("The Content-Length is not a number.")
    return int(value)


def has_body(environ: WSGIEnvironment) -> bool:
    """Whether the request may have a body (RFC 9112 §6.3, RFC 9113 §8.1)."""
    return (
        bool(environ.get("HTTP_TRANSFER_ENCODING"))
        or bool(content_length(environ))
        or is_unframed(environ)
    )


def is_unframed(environ: WSGIEnvironment) -> bool:
    """Whether only reading tells if there is a body: HTTP/2 needs no header for it."""
    return (
        environ.get("SERVER_PROTOCOL", "").startswith(("HTTP/2", "HTTP/3"))
        and not environ.get("CONTENT_LENGTH")
        and not environ.get("HTTP_TRANSFER_ENCODING")
        and bool(environ.get("wsgi.input_terminated"))
    )


def whole(environ: WSGIEnvironment, max_bytes: int) -> Body:
    """Read the body to its end, once; later calls return the same one.

    Raises:
        BodyTooLarge: more than `max_bytes`; with a Content-Length nothing was read.
        BodyError: it broke off, stalled, or cannot be delimited.
    """
    body = environ.get(BODY)
    if isinstance(body, Body):
        if body.size > max_bytes:
            raise _too_large(max_bytes)
        return body
    file: IO[bytes] = BytesIO()
    size = 0
    length = content_length(environ)
    seconds = STALL + (max_bytes if length is None else min(length, max_bytes)) / LEAST_RATE
    cut = ReadCut(client_socket(environ), seconds)
    try:
        with cut:
            for block in blocks(environ, max_bytes):
                size += len(block)
                if size > MEMORY and isinstance(file, BytesIO):
                    file = _on_disk(file)
                file.write(block)
        file.flush()
    except BaseException as error:
        file.close()
        if cut.is_cut and isinstance(error, BodyIncomplete):
            raise BodyStalled("The request's body did not arrive in time.") from None
        raise
    file.seek(0)
    body = environ[BODY] = Body(file, size)
    environ["wsgi.input"] = file
    environ["wsgi.input_terminated"] = True
    return body


def put_members(environ: WSGIEnvironment, values: Mapping[Path, Any]) -> None:
    """Put each of `values` at its path into the JSON object that was read whole.

    Raises:
        BodyInvalid: it is none.
    """
    if len(values) == 1:
        put_member(environ, *next(iter(values.items())))
    elif values:
        replace(environ, put_all(environ[BODY].read(), values))


def put_member(environ: WSGIEnvironment, path: Path, value: Any) -> None:
    """Put `value` at `path` into the JSON object that was read whole; see `splice.put`.

    Raises:
        BodyInvalid: it is none.
    """
    body = environ[BODY]
    document = body.json()
    replace(environ, put(body.read(), path, value, document), _with(document, path, value))


def drop_member(environ: WSGIEnvironment, path: tuple[str, ...]) -> None:
    """Take the member at `path` out of the JSON object that was read whole; see `splice.drop`.

    Raises:
        BodyInvalid: it is none.
    """
    body = environ[BODY]
    document = body.json()
    replace(environ, drop(body.read(), *path), _without(document, path))


def _with(document: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    name, rest = path[0], path[1:]
    if isinstance(document, list) and isinstance(name, int):
        return [*document[:name], _with(document[name], rest, value), *document[name + 1 :]]
    known = document if isinstance(document, dict) else {}
    return {**known, name: _with(known.get(name), rest, value)}


def _without(document: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    name, rest = path[0], path[1:]
    if not rest:
        return {key: value for key, value in document.items() if key != name}
    inner = document.get(name)
    return {**document, name: _without(inner, rest)} if isinstance(inner, dict) else document


def replace(environ: WSGIEnvironment, data: bytes, document: dict[str, Any] | None = None) -> None:
    """Put another body in the place of one that was read whole.

    Args:
        environ: the request.
        data: the body.
        document: the JSON object in it, where that is known.
    """
    environ[BODY] = Body(BytesIO(data), len(data), document)
    environ["wsgi.input"] = BytesIO(data)
    environ["CONTENT_LENGTH"] = str(len(data))
    environ.pop("HTTP_TRANSFER_ENCODING", None)


def blocks(environ: WSGIEnvironment, max_bytes: int) -> Iterator[bytes]:
    """Yield the body as it comes from the server, counting it.

    Raises:
        BodyError: as `whole` does.
    """
    length = content_length(environ)
    stream = environ["wsgi.input"]
    if is_unframed(environ):
        return _chunked_blocks(environ, stream, max_bytes)
    if environ.get("HTTP_TRANSFER_ENCODING"):
        if not environ.get("wsgi.input_terminated"):
            raise LengthRequired("A chunked body needs a server that can tell where it ends.")
        return _chunked_blocks(environ, stream, max_bytes)
    if not length:
        return iter(())
    if length > max_bytes:
        raise _too_large(max_bytes)
    return _counted_blocks(environ, stream, length)


def _counted_blocks(environ: WSGIEnvironment, stream: Any, length: int) -> Iterator[bytes]:
    left = length
    while left:
        block = _read(environ, stream, min(left, BLOCK))
        if not block:
            raise BodyIncomplete("The request's body broke off.")
        left -= len(block)
        yield block


def _chunked_blocks(environ: WSGIEnvironment, stream: Any, max_bytes: int) -> Iterator[bytes]:
    size = 0
    while block := _read(environ, stream, BLOCK):
        size += len(block)
        if size > max_bytes:
            raise _too_large(max_bytes)
        yield block


def _read(environ: WSGIEnvironment, stream: Any, size: int) -> bytes:
    """Read up to `size` bytes: what has come where the server can tell, else a block."""
    # `read(n)` waits for n bytes; only `read1` hands on what has arrived.
    read1 = getattr(stream, "read1", None)
    try:
        with _ClientTimeout(environ, STALL):
            data: bytes = stream.read(min(size, 8192)) if read1 is None else read1(size)
            return data
    except TimeoutError:
        raise BodyStalled("The request's body did not arrive in time.") from None
    except BodyError:
        raise
    except Exception as error:
        raise BodyIncomplete("The request's body broke off.") from error


def client_socket(environ: WSGIEnvironment) -> Any:
    """Return the client's socket where the server shows it, else None."""
    return environ.get("gunicorn.socket") or environ.get("werkzeug.socket")


class _ClientTimeout:
    """Bounds each wait for the client; where the socket isn't shown, the server's bound holds."""

    __slots__ = ("_before", "_seconds", "_sock")

    def __init__(self, environ: WSGIEnvironment, seconds: float) -> None:
        self._sock = client_socket(environ)
        self._seconds = seconds

    def __enter__(self) -> None:
        if self._sock is not None:
            self._before = self._sock.gettimeout()
            self._sock.settimeout(self._seconds)

    def __exit__(self, *exc_info: object) -> None:
        if self._sock is not None:
            self._sock.settimeout(self._before)


def discard_unread(environ: WSGIEnvironment) -> None:
    """Read away up to 64 KiB of a body that nobody has read, for a second at most.

    Not under `Expect: 100-continue`: that client sends its body only when it is asked to
    (RFC 9110 §10.1.1).
    """
    if BODY in environ or environ.get("HTTP_EXPECT", "").lower() == "100-continue":
        return
    try:
        if not has_body(environ):
            return
        length = content_length(environ)
        if length is None and not environ.get("wsgi.input_terminated"):
            return
        _discard(environ, DISCARD if length is None else min(length, DISCARD))
    except Exception:  # noqa: BLE001  (the request is refused whatever comes of its body)
        return


def _discard(environ: WSGIEnvironment, left: int) -> None:
    stream = environ["wsgi.input"]
    deadline = time.monotonic() + DISCARD_SECONDS
    sock = client_socket(environ)
    with ReadCut(sock, DISCARD_SECONDS):
        while left > 0 and (seconds := deadline - time.monotonic()) > 0:
            with _ClientTimeout(environ, seconds):
                block = stream.read(min(left, 8192))
            if not block:
                return
            left -= len(block)


class ReadCut:
    """Ends reading from a client at a deadline; what is written to it still arrives.

    A server's `read` waits for many bytes, each with a timeout of its own: a client that sends one
    now and then would hold it for ever.

    Args:
        sock: the client's socket; None where the server does not show it, and nothing is done.
        seconds: until the deadline.

    Attributes:
        is_cut: whether it came to that.
    """

    def __init__(self, sock: Any, seconds: float) -> None:
        self._sock = sock
        self._deadline = time.monotonic() + seconds
        self.is_cut = False

    def __enter__(self) -> ReadCut:
        if self._sock is not None:
            watchdog.add(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._sock is not None:
            watchdog.remove(self)

    def check(self) -> None:
        """Called by the watchdog."""
        if time.monotonic() > self._deadline:
            self.is_cut = True
            with suppress(OSError):  # it has gone
                socket.socket.shutdown(self._sock, socket.SHUT_RD)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request's body is larger than {max_bytes} bytes.")


def _on_disk(memory: BytesIO) -> IO[bytes]:
    file = tempfile.TemporaryFile(prefix="aigw-body-")  # noqa: SIM115  (closed by Body)
    file.write(memory.getvalue())
    return file


def strict_json(data: bytes) -> dict[str, Any]:
    """Read a JSON object that every reader takes for the same one.

    Refused: what is not UTF-8 or begins with a byte order mark (RFC 8259 §8.1), a name twice in
    one object (§4: readers differ in which they take), NaN and infinities, numbers that do not
    fit, nesting that exhausts the reader, and anything but an object at the top.

    Raises:
        BodyInvalid: with a message that does not repeat the body.
    """
    try:
        document = _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise BodyInvalid("The request's body is not JSON in UTF-8.") from None
    except RecursionError:
        raise BodyInvalid("The request's body is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise BodyInvalid(
            f"The request's body is not valid JSON (line {error.lineno}, column {error.colno})."
        ) from None
    except ValueError as error:  # raised by the hooks below, and by int() for 4,300 digits
        text = str(error) if isinstance(error, _NotStrict) else "A number in it is too long."
        raise BodyInvalid(f"The request's body is not valid JSON. {text}") from None
    if not isinstance(document, dict):
        raise BodyInvalid("The request's body must be a JSON object.")
    return document


class _NotStrict(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise _NotStrict("A name stands twice in one object.")
    return document


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _NotStrict("A number in it is too large.")
    return value


def _constant(text: str) -> float:
    raise _NotStrict(f"{text} is no JSON value.")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)
