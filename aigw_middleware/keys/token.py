"""The form of a gateway key's token: `aigw-<public id>-g1-<secret>`; an admin token's is alike.

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

# Two digits of base 62 at a time: every request pays for a checksum.
_PAIRS = tuple(first + second for first in ALPHABET for second in ALPHABET)


class NewToken(NamedTuple):
    """A token that was just made: its public id, the whole token, and the hash to store."""

    public_id: str
    token: str
    digest: bytes


class TokenForm:
    """The form of one kind of token.

    Args:
        prefix: what all of them begin with.

    Attributes:
        length: how many characters each has.
        pattern: the regular expression by which secret scanners find one.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        letters = "[0-9A-Za-z]"
        public, random = f"{letters}{{{PUBLIC_LENGTH}}}", f"{letters}{{{RANDOM_LENGTH}}}"
        checksum = f"{letters}{{{CHECKSUM_LENGTH}}}"
        whole = f"{letters}{{{RANDOM_LENGTH + CHECKSUM_LENGTH}}}"
        self.length = len(prefix) + PUBLIC_LENGTH + RANDOM_LENGTH + CHECKSUM_LENGTH + len("--g1-")
        self.pattern = rf"\b{prefix}-{public}-g1-{whole}\b"
        self._match = re.compile(f"{prefix}-({public})-g1-{random}({checksum})").fullmatch

    def new(self, public_id: str | None = None) -> NewToken:
        """Make a token, for an existing public id or a new one."""
        public_id = public_id or new_public_id()
        body = f"{self._prefix}-{public_id}-g1-{_random(RANDOM_LENGTH)}"
        token = body + _checksum(body)
        return NewToken(public_id, token, digest(token))

    def public_id_of(self, token: str) -> str | None:
        """Return the public id in `token`; None where its form or its checksum is wrong."""
        # `fullmatch` on a str is cheap, but hostile headers may be long.
        match = self._match(token) if len(token) == self.length else None
        if match is None or _checksum(token[:-CHECKSUM_LENGTH]) != match[2]:
            return None
        return match[1]


GATEWAY = TokenForm("aigw")
ADMIN = TokenForm("aigwadmin")
TOKEN_PATTERN = GATEWAY.pattern
"""The regular expression by which secret scanners find a gateway key."""

new_token = GATEWAY.new
public_id_of = GATEWAY.public_id_of


def new_public_id() -> str:
    """Return a public id that no other record has (95 random bits)."""
    return _random(PUBLIC_LENGTH)


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
