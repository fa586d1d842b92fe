"""Read a short answer whole, in a bounded time: what the gateway asks for itself."""

from __future__ import annotations

import time

from .._headers import header
from ..errors import UpstreamBroken
from .codings import decode
from .transport import Request, Timeouts, Transport


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
    # Some servers use a coding unasked.
    plain = decode(bytes(data), header(response.headers, "content-encoding"), most=most)
    if plain is None:
        raise UpstreamBroken("the answer's coding cannot be read, or it is too long")
    return plain
