"""A store: the records of a gateway, in one database."""

from __future__ import annotations

from ..keys.sealing import Sealer
from .audit import AuditLog
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
        audit: who changed what.
    """

    def __init__(self, database: SQLiteDatabase, secret: str | None = None) -> None:
        self._database = database
        self.usage = UsageStore(database.path)
        sealer = Sealer(secret) if secret else None
        self.audit = AuditLog(database, sealer)
        self.keys = KeyStore(database, self.usage, self.audit)
        self.provider_keys = ProviderKeyStore(database, self.audit, sealer)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} in {self._database!r}>"

    def backup(self, path: str) -> None:
        """Write a whole copy of the records to the file `path`, also while they are in use.

        Raises:
            StoreUnavailable: it cannot be written.
        """
        self._database.backup(path)

    def rekey(self, old: str) -> int:
        """Seal everything with this store's secret instead of `old`; return how many secrets.

        Running it again, also after an interruption, is harmless.

        Raises:
            WrongSecret: something was sealed with neither of both.
        """
        sealer = Sealer(old)
        count = self.provider_keys.rekey(sealer)
        self.audit.rekey(sealer)
        return count

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
