"""Fixed secrets instead of a store, for a few clients that never change."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from .records import ApiKey
from .token import digest

_ABSENT = bytes(32)


class StaticKeys:
    """Keys that are given once, as `{name: secret}`.

    ::

        KeyAuth(app, StaticKeys({"ci": os.environ["CI_TOKEN"]}))

    Only hashes of the secrets are kept. The name is the key's id and name.

    Raises:
        ValueError: a secret is empty, not printable ASCII (it could not come in a header), or
            stands under two names.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._keys: dict[bytes, ApiKey] = {}
        if not isinstance(secrets, Mapping):
            raise ValueError(f"secrets: must be a mapping, not {type(secrets).__name__}")
        for name, secret in secrets.items():
            self._add(name, secret)

    def _add(self, name: str, secret: str) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError("secrets: a key's name must be a text that is not empty")
        if not isinstance(secret, str) or not secret:
            raise ValueError(f"secrets: the secret of {name!r} is empty")
        if not (secret.isascii() and secret.isprintable()) or " " in secret:
            raise ValueError(f"secrets: the secret of {name!r} cannot be sent in a header")
        hashed = digest(secret)
        if hashed in self._keys:
            raise ValueError(f"secrets: {name!r} has the secret of another name")
        self._keys[hashed] = ApiKey(id=name, name=name, redacted="***")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._keys)} keys>"

    def verify(self, token: str, *, endpoint: str | None = None) -> ApiKey | None:
        """Return the key whose secret `token` is, None where there is none.

        What is looked up is a hash, so the time tells nothing of a secret's letters; the one
        found is compared in constant time all the same.
        """
        hashed = digest(token)
        key = self._keys.get(hashed)
        known = hashed if key is not None else _ABSENT
        return key if hmac.compare_digest(hashed, known) else None
