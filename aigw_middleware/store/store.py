"""A store: the records of a gateway, in one database."""

from __future__ import annotations

from ..keys.sealing import Sealer
from .keys import KeyStore
from .provider_keys import ProviderKeyStore
from .sqlite import SQLiteDatabase
from .usage import UsageStore


class Store:
    """The records of a gateway.

    Args:
        database: where they are.
        secret: what seals provider keys, `AIGW_SECRET`; None where there are none.

    Attributes:
        keys: the gateway keys.
        provider_keys: the keys of providers, sealed.
        usage: what was used, by key, model, provider and day.
    """

    def __init__(self, database: SQLiteDatabase, secret: str | None = None) -> None:
        self._database = database
        self.usage = UsageStore(database.path)
        self.keys = KeyStore(database, self.usage)
        self.provider_keys = ProviderKeyStore(database, Sealer(secret) if secret else None)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} in {self._database!r}>"

    def backup(self, path: str) -> None:
        """Write a whole copy of the records to the file `path`, also while they are in use.

        Raises:
            StoreUnavailable: it cannot be written.
        """
        self._database.backup(path)

    def check(self) -> list[str]:
        """Return what the database finds wrong with itself; empty for nothing."""
        return self._database.check()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._database.closed

    def close(self) -> None:
        """Close the connections of this process; the next `open_store` opens anew."""
        self.usage.close()
        self._database.close()
