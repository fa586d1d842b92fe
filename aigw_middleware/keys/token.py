"""The form of a gateway key's token: `aigw-<public id>-g1-<secret>`.

- The public id (16 letters and digits) names the key in logs and in the store; it is no secret.
- The secret (38) is 32 random ones, 190 bits, and a checksum of 6 over all that stands before
  it, so that a typo or another vendor's key is refused without reading the store.
- Only letters and digits stand within the parts, so that a double click selects a whole part
  and a secret scanner finds a token by `TOKEN_PATTERN`.

Only a hash of a token is stored. SHA-256 without salt or rounds is enough: nobody can guess 190
random bits, however fast the hash.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib
from typing import NamedTuple

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
PUBLIC_LENGTH = 16
RANDOM_LENGTH = 32
CHECKSUM_LENGTH = 6
LENGTH = len("aigw-") + PUBLIC_LENGTH + len("-g1-") + RANDOM_LENGTH + CHECKSUM_LENGTH

TOKEN_PATTERN = (
    rf"\baigw-[0-9A-Za-z]{{{PUBLIC_LENGTH}}}-g1-[0-9A-Za-z]{{{RANDOM_LENGTH + CHECKSUM_LENGTH}}}\b"
)
"""The regular expression by which secret scanners find a token."""

# Two digits of base 62 at a time: every request pays for a checksum.
_PAIRS = tuple(first + second for first in ALPHABET for second in ALPHABET)

_FORM = re.compile(
    rf"aigw-([0-9A-Za-z]{{{PUBLIC_LENGTH}}})-g1-"
    rf"[0-9A-Za-z]{{{RANDOM_LENGTH}}}([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})"
).fullmatch


class NewToken(NamedTuple):
    """A token that was just made: its public id, the whole token, and the hash to store."""

    public_id: str
    token: str
    digest: bytes


def new_token(public_id: str | None = None) -> NewToken:
    """Make a token, for an existing public id or a new one."""
    public_id = public_id or new_public_id()
    body = f"aigw-{public_id}-g1-{_random(RANDOM_LENGTH)}"
    token = body + _checksum(body)
    return NewToken(public_id, token, digest(token))


def new_public_id() -> str:
    """Return a public id that no other record has (95 random bits)."""
    return _random(PUBLIC_LENGTH)


def public_id_of(token: str) -> str | None:
    """Return the public id in `token`; None where its form or its checksum is wrong."""
    # `fullmatch` on a str is cheap, but hostile headers may be long.
    match = _FORM(token) if len(token) == LENGTH else None
    if match is None or _checksum(token[:-CHECKSUM_LENGTH]) != match[2]:
        return None
    return match[1]


def digest(token: str) -> bytes:
    """Return what is stored of a token (32 bytes)."""
    return hashlib.sha256(token.encode()).digest()


def redacted(public_id: str) -> str:
    """Return the form in which a key is shown: nothing of the secret is left in it."""
    return f"aigw-{public_id}-g1-***"


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _checksum(text: str) -> str:
    value, low = divmod(zlib.crc32(text.encode()), len(_PAIRS))
    high, middle = divmod(value, len(_PAIRS))
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]
