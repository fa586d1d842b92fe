"""A store: the records of a gateway, in one database."""

from __future__ import annotations

import os

from ..errors import StoreUnavailable
from ..keys.sealing import Sealer
from .admin_tokens import AdminTokenStore
from .audit import AuditLog
from .database import Database
from .keys import KeyStore
from .provider_keys import ProviderKeyStore
from .usage import UsageStore

USAGE_SUFFIX = "-usage"
"""What the file of the usage has behind the name of the store's own, where both are files."""


class Store:
    """The records of a gateway.

    Args:
        database: where they are.
        usage: what was used; a store of its own, so that it makes nobody read the keys anew.
        secret: what seals provider keys, `AIGW_SECRET`; None where there are none.

    Attributes:
        keys: the gateway keys.
        provider_keys: the keys of providers, sealed.
        admin_tokens: the tokens that open the management API.
        usage: what was used, by key, model, provider and day.
        audit: who changed what.
    """

    def __init__(self, database: Database, usage: UsageStore, secret: str | None = None) -> None:
        self._database = database
        self.usage = usage
        sealer = Sealer(secret) if secret else None
        self.audit = AuditLog(database, sealer)
        self.keys = KeyStore(database, self.usage, self.audit)
        self.provider_keys = ProviderKeyStore(database, self.audit, sealer)
        self.admin_tokens = AdminTokenStore(database, self.audit)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} in {self._database!r}>"

    def backup(self, path: str) -> None:
        """Write a whole copy of the records to the SQLite file `path`, also while in use.

        What was used goes to `path` with `-usage` behind it. Both open as a store of their own.

        Raises:
            StoreUnavailable: they cannot be written, or a file is there already.
        """
        used = f"{path}{USAGE_SUFFIX}"
        for file in (path, used):
            if os.path.exists(file):
                raise StoreUnavailable(f"{file} is there already")
        self._database.backup(path)
        self.usage.backup(used)

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
        return self._database.check() + self.usage.check()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._database.closed

    def close(self) -> None:
        """Close the connections of this process; the next `open_store` opens anew."""
        self.usage.close()
        self._database.close()
