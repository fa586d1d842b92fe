"""Read HTTP/1.1 answers strictly: bytes in, facts out, no socket.

A client of providers gains nothing from being lenient: what two readers could take for
different messages (conflicting lengths, folded headers, odd chunk sizes, bare line feeds) is
refused. Rules by RFC 9112.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import UpstreamUnreachable

MAX_HEAD = 64 * 1024
MAX_TRAILERS = 16 * 1024
_MAX_CHUNK_LINE = 4096

_STATUS = re.compile(r"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t -~\x80-\xff]*))?").fullmatch
_FIELD = re.compile(
    r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*"
    r"((?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*"
).fullmatch
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~\x80-\xff]*)?").fullmatch
_NUMBER = re.compile(r"[0-9]{1,18}").fullmatch


class ProtocolError(UpstreamUnreachable):
    """The peer's bytes are not HTTP/1.1."""


class Head(NamedTuple):
    """The head of an answer.

    Attributes:
        status: three digits, as a number.
        reason: the text behind it; may be empty.
        headers: `(name, value)` pairs in their order, duplicates kept.
        persistent: whether the connection may serve another request.
    """

    status: int
    reason: str
    headers: list[tuple[str, str]]
    persistent: bool


class Framing(NamedTuple):
    """How a body's end is told: by chunks, by length, or (both unset) by the connection's end."""

    chunked: bool
    length: int | None


def parse_head(data: bytes) -> Head:
    """Read a status line and headers, without the empty line that ends them.

    Raises:
        ProtocolError: it is not exactly that.
    """
    first, *lines = data.decode("latin-1").split("\r\n")
    status = _STATUS(first)
    if status is None:
        raise ProtocolError("the upstream's status line is not HTTP/1.1")
    headers = []
    for line in lines:
        field = _FIELD(line)
        if field is None:  # obsolete folding (§5.2), a space before the colon, a control, ...
            raise ProtocolError("the upstream sent a malformed header")
        headers.append((field[1], field[2]))
    options = connection_options(headers)
    persistent = "close" not in options and (status[1] == "1" or "keep-alive" in options)
    return Head(int(status[2]), status[3] or "", headers, persistent)


def connection_options(headers: list[tuple[str, str]]) -> set[str]:
    """Return what the `Connection` headers name, in lower case (RFC 9110 §7.6.1)."""
    return {
        option.strip(" \t").lower()
        for name, value in headers
        if name.lower() == "connection"
        for option in value.split(",")
    }


def framing(method: str, head: Head) -> Framing:
    """Return how the body is delimited (§6.3).

    Raises:
        ProtocolError: by several rules at once, or by one that is not known here.
    """
    if method == "HEAD" or head.status in (204, 304):
        return Framing(False, 0)
    codings = _all(head, "transfer-encoding")
    lengths = set(_all(head, "content-length"))
    if codings:
        if [coding.lower() for coding in codings] != ["chunked"] or lengths:
            raise ProtocolError("the upstream's answer has no single transfer coding")
        return Framing(True, None)
    if not lengths:
        return Framing(False, None)
    length = lengths.pop()
    if lengths or not _NUMBER(length):
        raise ProtocolError("the upstream's answer has no single length")
    return Framing(False, int(length))


def _all(head: Head, name: str) -> list[str]:
    return [
        part.strip(" \t")
        for field, value in head.headers
        if field.lower() == name
        for part in value.split(",")
    ]


class ChunkedReader:
    """Take the chunks' frames off a body, however its bytes are cut (§7.1).

    Attributes:
        done: whether the last chunk and its trailers were seen.
        broken: what is wrong with the frames, once the data before that was handed out.
        rest: bytes behind the end.
    """

    def __init__(self) -> None:
        self.done = False
        self.broken: ProtocolError | None = None
        self.rest = b""
        self._buffer = bytearray()
        self._left = 0  # of the present chunk's data
        self._state = self._size

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came; return the data that is in them, before `done` or `broken`."""
        self._buffer += data
        found: list[bytes] = []
        try:
            while not self.done and self._state(found):
                pass
        except ProtocolError as error:
            self.broken = error
        if self.done:
            self.rest = bytes(self._buffer)
        return found[0] if len(found) == 1 else b"".join(found)

    def _line(self, most: int) -> bytes | None:
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) > most:
                raise ProtocolError("the upstream sent an endless line in a chunked body")
            return None
        if self._buffer[end - 1 : end] != b"\r" or end > most:
            raise ProtocolError("the upstream sent a malformed chunk")
        line = bytes(self._buffer[: end - 1])
        del self._buffer[: end + 1]
        return line

    def _size(self, found: list[bytes]) -> bool:
        line = self._line(_MAX_CHUNK_LINE)
        if line is None:
            return False
        match = _CHUNK(line)
        if match is None:
            raise ProtocolError("the upstream sent a malformed chunk size")
        self._left = int(match[1], 16)
        self._state = self._data if self._left else self._trailers
        self._trailer_bytes = 0
        return True

    def _data(self, found: list[bytes]) -> bool:
        data = bytes(self._buffer[: self._left])
        if not data:
            return False
        del self._buffer[: len(data)]
        self._left -= len(data)
        found.append(data)
        if not self._left:
            self._state = self._data_end
        return True

    def _data_end(self, found: list[bytes]) -> bool:
        if len(self._buffer) < 2:
            if self._buffer and self._buffer != b"\r":
                raise ProtocolError("the upstream's chunk is longer than its size")
            return False
        if self._buffer[:2] != b"\r\n":
            raise ProtocolError("the upstream's chunk is longer than its size")
        del self._buffer[:2]
        self._state = self._size
        return True

    def _trailers(self, found: list[bytes]) -> bool:
        line = self._line(MAX_TRAILERS)
        if line is None:
            return False
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_TRAILERS:
            raise ProtocolError("the upstream sent too many trailers")
        if line and _FIELD(line.decode("latin-1")) is None:
            raise ProtocolError("the upstream sent a malformed trailer")
        self.done = not line  # trailers are dropped: WSGI has no place for them
        return True
