"""Read a short answer whole, in a bounded time: what the gateway asks for itself."""

from __future__ import annotations

import time
import zlib

from .._headers import header
from ..errors import UpstreamBroken
from .transport import Request, Timeouts, Transport

IDENTITY = ("Accept-Encoding", "identity")


def read_whole(request: Request, transport: Transport, deadline: float, *, most: int) -> bytes:
    """Return the body of the answer to a request, without its coding.

    Args:
        request: what is asked.
        transport: what sends it.
        deadline: the `time.monotonic()` at which all of it must be there, however slowly it comes.
        most: the largest body, in bytes.

    Raises:
        UpstreamError: no whole answer came in time, or one with another status than 200, or a
            longer one.
    """
    left = max(0.001, deadline - time.monotonic())
    response = transport.send(request, Timeouts(left, left, left, left, left), deadline)
    try:
        if response.status != 200:
            raise UpstreamBroken(f"status {response.status}")
        data = bytearray()
        while block := response.read(max(0.001, deadline - time.monotonic())):
            data += block
            if len(data) > most:
                raise UpstreamBroken("the answer is too long")
    finally:
        response.close()
    return _decoded(bytes(data), header(response.headers, "content-encoding").lower(), most)


def _decoded(data: bytes, coding: str, most: int) -> bytes:
    """Take the coding off that some servers use unasked."""
    if coding in ("", "identity"):
        return data
    reader = zlib.decompressobj(wbits=47)  # gzip or zlib, as the data says
    try:
        plain = reader.decompress(data, most)
    except zlib.error:
        raise UpstreamBroken(f"the answer's coding {coding} cannot be read") from None
    if not reader.eof:
        raise UpstreamBroken("the answer is too long, or broke off")
    return plain
