"""Take our secrets out of what an upstream repeats of them.

A provider that refuses a key sometimes says which one. Only answers of 400 and up, and headers,
are searched: a successful answer is passed on as it comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    return (body, False) if clean == plain else (clean, bool(coding))
