"""Seal secrets for the disk: AES-256-GCM, enveloped.

Each secret has a data key of its own, and only that is sealed with the master key; so changing the
master key rewrites 60 bytes a record and no secret is opened for it. Both layers are bound to the
record that they belong to: a ciphertext that is moved to another record does not open.

The master key is made from `AIGW_SECRET` with HKDF-SHA256 (RFC 5869). It says nothing of a weak
secret, so one that is short is refused.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# cryptography is imported where it is used: a store without sealed secrets does without it.

SHORTEST = 16
_NONCE = 12
_DATA_KEY = 32

HOW_TO_MAKE_ONE = (
    "AIGW_SECRET seals provider keys and must be kept; make one with "
    "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
)


class WrongSecret(ValueError):
    """A sealed record does not open: another `AIGW_SECRET` sealed it, or it was tampered with."""


class Sealed(NamedTuple):
    """A sealed secret.

    Attributes:
        master: which master key wrapped it, 16 letters that say nothing of the key.
        wrapped: the data key, sealed with the master key.
        sealed: the secret, sealed with the data key.
    """

    master: str
    wrapped: bytes
    sealed: bytes


class Sealer:
    """Seals and opens with one master key.

    Args:
        secret: the text of `AIGW_SECRET`, at least 16 characters.

    Raises:
        ValueError: it is too short.
    """

    def __init__(self, secret: str) -> None:
        if len(secret) < SHORTEST:
            raise ValueError(f"secret: shorter than {SHORTEST} characters. {HOW_TO_MAKE_ONE}")
        material = secret.encode()
        self._master = _cipher(_derive(material, b"aigw master key"))
        self.master = _derive(material, b"aigw master key id")[:8].hex()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.master}>"

    def seal(self, secret: str, record: str) -> Sealed:
        """Seal `secret` for the record of that id."""
        data_key = os.urandom(_DATA_KEY)
        return Sealed(
            self.master,
            _encrypt(self._master, data_key, f"{record} key"),
            _encrypt(_cipher(data_key), secret.encode(), f"{record} secret"),
        )

    def open(self, sealed: Sealed, record: str) -> str:
        """Return the secret of the record of that id.

        Raises:
            WrongSecret: it was sealed with another master key, or is not this record's.
        """
        data_key = self._unwrap(sealed, record)
        return _decrypt(_cipher(data_key), sealed.sealed, f"{record} secret").decode()

    def rewrap(self, sealed: Sealed, record: str, old: Sealer) -> Sealed:
        """Return the same secret, its data key sealed with this master key instead of `old`'s.

        Raises:
            WrongSecret: `old` did not seal it.
        """
        data_key = old._unwrap(sealed, record)
        wrapped = _encrypt(self._master, data_key, f"{record} key")
        return Sealed(self.master, wrapped, sealed.sealed)

    def _unwrap(self, sealed: Sealed, record: str) -> bytes:
        if sealed.master != self.master:
            raise WrongSecret(f"{record} was sealed with another AIGW_SECRET")
        return _decrypt(self._master, sealed.wrapped, f"{record} key")


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _derive(material: bytes, purpose: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, salt=None, info=purpose).derive(material)


def _encrypt(cipher: AESGCM, data: bytes, bound_to: str) -> bytes:
    nonce = os.urandom(_NONCE)
    return nonce + cipher.encrypt(nonce, data, bound_to.encode())


def _decrypt(cipher: AESGCM, data: bytes, bound_to: str) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(data[:_NONCE], data[_NONCE:], bound_to.encode())
    except InvalidTag:
        record = bound_to.rpartition(" ")[0]
        raise WrongSecret(f"{record} does not open: it was changed, or is another's") from None
