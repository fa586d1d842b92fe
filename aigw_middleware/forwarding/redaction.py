"""Take our secrets out of what an upstream repeats of them.

A provider that refuses a key sometimes says which one. Only answers of 400 and up, and headers,
are searched: a successful answer is passed on as it comes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from .codings import decode

MARK = "[redacted]"
_MOST_DECODED = 8 * 1024 * 1024


def redact_headers(
    headers: Sequence[tuple[str, str]], secrets: Iterable[str]
) -> list[tuple[str, str]]:
    """Return `headers` with every secret in a value replaced."""
    redacted = list(headers)
    for secret in secrets:
        redacted = [(name, value.replace(secret, MARK)) for name, value in redacted]
    return redacted


def redact_body(body: bytes, coding: str, secrets: Iterable[str]) -> tuple[bytes, bool] | None:
    """Return the body with every secret replaced, and whether it is no longer encoded.

    Args:
        body: the whole body, as the upstream sent it.
        coding: its Content-Encoding, empty for none.
        secrets: what must not be in it.

    Returns:
        None where the body cannot be read: nobody can say that no secret is in it.
    """
    plain = decode(body, coding, most=_MOST_DECODED)
    if plain is None:
        return None
    clean = plain
    for secret in secrets:
        clean = clean.replace(secret.encode(), MARK.encode())
        if b"\\" in clean:
            clean = _spelled(secret).sub(MARK.encode(), clean)
    return (body, False) if clean == plain else (clean, bool(coding))


@lru_cache(maxsize=64)
def _spelled(secret: str) -> re.Pattern[bytes]:
    """Return a pattern for a secret as it stands, or as a JSON string may spell it (RFC 8259 §7).

    PHP escapes each slash, and any character may be escaped by its number.
    """
    return re.compile(b"".join(map(_letter, secret)), re.DOTALL)


def _letter(letter: str) -> bytes:
    plain = re.escape(letter.encode())
    if letter in '"\\':
        plain += b"|" + re.escape(b"\\" + letter.encode())
    if letter == "/":
        plain += rb"|\\/"
    units = letter.encode("utf-16-be").hex()
    numbers = b"".join(
        rb"\\u(?i:" + units[i : i + 4].encode() + b")" for i in range(0, len(units), 4)
    )
    return b"(?:" + plain + b"|" + numbers + b")"
