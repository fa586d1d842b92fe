"""Read HTTP/1.1 answers strictly: bytes in, facts out, no socket.

A client of providers gains nothing from being lenient: what two readers could take for
different messages (conflicting lengths, folded headers, odd chunk sizes, bare line feeds) is
refused. Rules by RFC 9112.

`python -m benchmarks parsers` compares it with httptools (llhttp, strict), which takes 4 us less
for an answer and would be one more package for everybody: of what is listed there it takes two odd
answers, those whose transfer coding is none or stands twice, and this one takes none.
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
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~\x80-\xff]*)?\r\n").match
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
        self._buffer = b""  # a line that has not ended
        self._left = 0  # of the present chunk's data
        self._is_behind = False  # its data, where its end stands
        self._trailer_bytes = -1  # no trailers yet

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came; return the data that is in them, before `done` or `broken`."""
        if self._buffer:
            data = self._buffer + data
        found: list[bytes] = []
        position = len(data)
        try:
            position = self._read(data, found)
        except ProtocolError as error:
            self.broken = error
        self._buffer = data[position:]
        if self.done:
            self.rest = self._buffer
        return found[0] if len(found) == 1 else b"".join(found)

    def _read(self, data: bytes, found: list[bytes]) -> int:
        """Read as far as it goes; return the position behind that."""
        position = 0
        while not self.done:
            if self._left:
                piece = data[position : position + self._left]
                if not piece:
                    return position
                found.append(piece)
                position += len(piece)
                self._left -= len(piece)
                self._is_behind = not self._left
            elif self._is_behind:
                behind = data[position : position + 2]
                if behind != b"\r\n":
                    if b"\r\n".startswith(behind):
                        return position
                    raise ProtocolError("the upstream's chunk is longer than its size")
                position += 2
                self._is_behind = False
            elif self._trailer_bytes < 0:
                match = _CHUNK(data, position)
                if match is None or match.end() - position > _MAX_CHUNK_LINE:
                    if self._line_ends(data, position, _MAX_CHUNK_LINE):
                        raise ProtocolError("the upstream sent a malformed chunk size")
                    return position
                position = match.end()
                size = int(match[1], 16)
                end = position + size
                if not size:
                    self._trailer_bytes = 0
                elif data[end : end + 2] == b"\r\n":  # nearly always all of it has come
                    found.append(data[position:end])
                    position = end + 2
                else:
                    self._left = size
            else:
                end = self._line_ends(data, position, MAX_TRAILERS)
                if not end:
                    return position
                self._trailer(data[position:end])
                position = end
        return position

    @staticmethod
    def _line_ends(data: bytes, position: int, most: int) -> int:
        """Return the position behind a line; 0 where not all of it has come."""
        end = data.find(b"\n", position) + 1
        if (end or len(data)) - position > most:
            raise ProtocolError("the upstream sent an endless line in a chunked body")
        return end

    def _trailer(self, line: bytes) -> None:
        """Take note of a trailer, or of the empty line that ends all of them."""
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_TRAILERS:
            raise ProtocolError("the upstream sent too many trailers")
        text = line[:-2].decode("latin-1")
        if line[-2:] != b"\r\n" or (text and _FIELD(text) is None):
            raise ProtocolError("the upstream sent a malformed trailer")
        self.done = not text  # trailers are dropped: WSGI has no place for them
