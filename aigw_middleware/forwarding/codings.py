"""The content codings that can be taken off an answer (RFC 9110 §8.4.1)."""

from __future__ import annotations

import zlib
from typing import Any

CODINGS = frozenset({"identity", "gzip", "x-gzip", "deflate"})
"""Those that can be read here."""

IDENTITY = ("Accept-Encoding", "identity")
"""The header that asks for none."""


def decompressor(coding: str) -> Any:
    """Return what reads a coding of `CODINGS` but `identity`, piece by piece."""
    return zlib.decompressobj(wbits=47 if coding != "deflate" else zlib.MAX_WBITS)


def decode(body: bytes, coding: str, *, most: int) -> bytes | None:
    """Return a whole body without its coding.

    Args:
        body: the body.
        coding: its Content-Encoding, empty for none.
        most: how many bytes of it are read at most, decoded.

    Returns:
        None where the coding is not known, the data is bad, or there is more of it.
    """
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return body
    if coding not in CODINGS:
        return None
    reader = decompressor(coding)
    try:
        plain: bytes = reader.decompress(body, most)
    except zlib.error:
        return None
    return plain if reader.eof and not reader.unused_data else None
