"""The keys of providers, sealed."""

from __future__ import annotations

import builtins
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from ..keys.records import ProviderKey
from ..keys.sealing import HOW_TO_MAKE_ONE, Sealed, Sealer, WrongSecret
from ..keys.token import new_public_id
from ..providers.catalogue import NAMES
from . import rows
from .database import Connection, Database
from .rows import UNSET

if TYPE_CHECKING:
    from .audit import AuditLog

PREFIX = "aigpk_"
LONGEST_SECRET = 4096
_COLUMNS = "public_id, provider, description, metadata, created_at, updated_at, disabled, redacted"


_CLEARED = {
    "description": "",
    "metadata": "",
    "redacted": "",
    "master": "",
    "wrapped": b"",
    "sealed": b"",
}


class ProviderKeyStore:
    """Create, look up, change and delete keys of providers; `store.provider_keys`.

    A secret goes in and never comes out again: only `secrets`, which the forwarder calls, opens
    it.
    """

    def __init__(self, database: Database, audit: AuditLog, sealer: Sealer | None) -> None:
        self._database = database
        self._audit = audit
        self._sealer = sealer
        self._sealed: tuple[Hashable, dict[str, builtins.list[tuple[str, Sealed]]]] | None = None

    def create(
        self, *, provider: str, secret: str, description: str = "", metadata: str = ""
    ) -> ProviderKey:
        """Keep a key of a provider, sealed; return its record.

        Args:
            provider: the provider's name, as a `Provider` is called.
            secret: the key.
            description: what it is for, at most 255 characters.
            metadata: free text, at most 4,096 characters.

        Raises:
            ValueError: a value is wrong, or the store was opened without a secret to seal with.
            StoreUnavailable: the store gave no answer; nothing was kept.
        """
        public_id = new_public_id()
        now = rows.now()
        row = {
            "public_id": public_id,
            "provider": _provider(provider),
            "description": rows.text("description", description, 255),
            "metadata": rows.text("metadata", metadata, 4096),
            "created_at": now,
            "updated_at": now,
            "disabled": 0,
        }
        row |= self._seal(secret, public_id, str(row["provider"]))

        def work(connection: Connection) -> ProviderKey:
            rows.insert(connection, "provider_keys", row)
            told = {name: row[name] for name in ("provider", "description", "metadata")}
            self._audit.record(connection, "create", PREFIX + public_id, told | {"secret": "set"})
            return _present(connection, public_id)

        return self._audit.write(work)

    def get(self, id: str) -> ProviderKey:
        """Return the record of a provider key.

        Raises:
            KeyError: there is none.
        """
        public_id = rows.public_id(id, PREFIX)
        return self._database.read(lambda connection: _present(connection, public_id))

    def list(self, limit: int = 100, before_id: str | None = None) -> builtins.list[ProviderKey]:
        """Return provider keys, the newest first.

        Args:
            limit: how many at most, 1 to 100.
            before_id: only those made before that one.

        Raises:
            ValueError: `limit` is out of bounds.
            KeyError: there is no provider key `before_id`.
        """
        found = rows.page(self._database, "provider_keys", _COLUMNS, PREFIX, limit, before_id)
        return [_record(row) for row in found]

    def update(
        self,
        id: str,
        *,
        description: str = UNSET,
        metadata: str = UNSET,
        disabled: bool = UNSET,
    ) -> ProviderKey:
        """Change the fields that are given and return the record.

        Args:
            id: the provider key's id.
            description: what it is for, at most 255 characters.
            metadata: free text, at most 4,096 characters.
            disabled: True leaves it out when requests are forwarded.

        Raises:
            KeyError: there is no such provider key.
            ValueError: a value is wrong; nothing was changed.
        """
        row: dict[str, Any] = {}
        if description is not UNSET:
            row["description"] = rows.text("description", description, 255)
        if metadata is not UNSET:
            row["metadata"] = rows.text("metadata", metadata, 4096)
        if disabled is not UNSET:
            row["disabled"] = rows.flag("disabled", disabled)
        if not row:
            return self.get(id)
        return self._change(rows.public_id(id, PREFIX), row, "update", row)

    def rotate(self, id: str, *, secret: str) -> ProviderKey:
        """Put another secret in the place of the old one; the id stays.

        Raises:
            KeyError: there is no such provider key.
            ValueError: the secret is wrong.
        """
        public_id = rows.public_id(id, PREFIX)
        sealed = self._seal(secret, public_id, self.get(id).provider)
        return self._change(public_id, sealed, "rotate", {"secret": "set"})

    def delete(self, id: str) -> bool:
        """Delete a provider key for good; True, or False where there was none."""
        return rows.delete("provider_keys", id, PREFIX, _CLEARED, self._audit)

    def secrets(self, provider: str) -> tuple[str, ...]:
        """Return the secrets of a provider's keys that are not disabled, the newest first.

        Opened anew for each call, in memory only; which there are costs no query unless a
        record has changed.

        Raises:
            StoreUnavailable: the store gave no answer.
            WrongSecret: they were sealed with another `AIGW_SECRET`.
        """
        sealed = self._all_sealed().get(provider, ())
        if not sealed:
            return ()
        sealer = self._required_sealer()
        return tuple(sealer.open(item, _bound(public_id, provider)) for public_id, item in sealed)

    def providers(self) -> tuple[str, ...]:
        """Return the providers that have a key here that is not disabled."""
        return tuple(self._all_sealed())

    def check(self) -> int:
        """Open every secret once; return how many there are.

        Raises:
            WrongSecret: one does not open.
        """
        found = self._database.read(_sealed_rows)
        for public_id, provider, item, _ in found:
            self._required_sealer().open(item, _bound(public_id, provider))
        return len(found)

    def rekey(self, old: Sealer) -> int:
        """Seal every data key with this store's secret instead of `old`'s; return how many.

        Each record is changed by itself, so that running it again after an interruption goes
        on where it stopped, and running it once more does nothing.

        Raises:
            WrongSecret: a record was sealed with neither of both.
        """
        sealer = self._required_sealer()
        changed = 0
        for public_id, provider, item, _ in self._database.read(_sealed_rows):
            if item.master == sealer.master:
                continue
            again = sealer.rewrap(item, _bound(public_id, provider), old)
            changed += self._database.write(_replacing(public_id, item, again))
        return changed

    def _all_sealed(self) -> dict[str, builtins.list[tuple[str, Sealed]]]:
        tag = self._database.tag()
        known = self._sealed
        if known is not None and known[0] == tag:
            return known[1]
        grouped: dict[str, builtins.list[tuple[str, Sealed]]] = {}
        for public_id, provider, item, disabled in self._database.read(_sealed_rows):
            if not disabled:
                grouped.setdefault(provider, []).append((public_id, item))
        self._sealed = (tag, grouped)
        return grouped

    def _seal(self, secret: object, public_id: str, provider: str) -> dict[str, Any]:
        if not isinstance(secret, str) or not secret or len(secret) > LONGEST_SECRET:
            raise ValueError("secret: empty, too long or no text")
        if not (secret.isascii() and secret.isprintable()) or " " in secret:
            raise ValueError("secret: has characters that cannot be sent in a header")
        sealed = self._required_sealer().seal(secret, _bound(public_id, provider))
        return {
            "redacted": redacted_secret(secret),
            "master": sealed.master,
            "wrapped": sealed.wrapped,
            "sealed": sealed.sealed,
        }

    def _required_sealer(self) -> Sealer:
        if self._sealer is None:
            raise WrongSecret(f"secret: the store was opened without one. {HOW_TO_MAKE_ONE}")
        return self._sealer

    def _change(
        self, public_id: str, row: dict[str, Any], action: str, told: dict[str, Any]
    ) -> ProviderKey:
        def work(connection: Connection) -> ProviderKey:
            changed = {**row, "updated_at": rows.now()}
            if not rows.update(connection, "provider_keys", public_id, changed):
                raise KeyError(PREFIX + public_id)
            self._audit.record(connection, action, PREFIX + public_id, told)
            return _present(connection, public_id)

        return self._audit.write(work)


def _bound(public_id: str, provider: str) -> str:
    """Return what a secret is bound to: moved to another record or provider it does not open."""
    return f"{PREFIX}{public_id} of {provider}"


def redacted_secret(secret: str) -> str:
    """Return the form in which people may see a secret: its last four letters, if it is long."""
    return f"***{secret[-4:]}" if len(secret) >= 20 else "***"


def _provider(name: object) -> str:
    checked = rows.text("provider", name, 64)
    if not checked or "/" in checked or not checked.isprintable():
        raise ValueError(f"provider: {checked!r} is no name of a provider")
    return NAMES.get(checked.lower(), checked)


def _sealed_rows(connection: Connection) -> list[tuple[str, str, Sealed, bool]]:
    found = connection.execute(
        "SELECT public_id, provider, master, wrapped, sealed, disabled FROM provider_keys "
        "WHERE deleted_at IS NULL ORDER BY number DESC"
    ).fetchall()
    return [(row[0], row[1], Sealed(*row[2:5]), bool(row[5])) for row in found]


def _replacing(public_id: str, before: Sealed, after: Sealed) -> Any:
    """Return the work that replaces a record's data key, unless it was rotated meanwhile."""

    def work(connection: Connection) -> int:
        return connection.execute(
            "UPDATE provider_keys SET master = ?, wrapped = ? WHERE public_id = ? AND wrapped = ?",
            (after.master, after.wrapped, public_id, before.wrapped),
        ).rowcount

    return work


def _present(connection: Connection, public_id: str) -> ProviderKey:
    condition = "public_id = ? AND deleted_at IS NULL"
    statement = f"SELECT {_COLUMNS} FROM provider_keys WHERE {condition}"  # noqa: S608
    row = connection.execute(statement, (public_id,)).fetchone()
    if row is None:
        raise KeyError(PREFIX + public_id)
    return _record(row)


def _record(row: Sequence[Any]) -> ProviderKey:
    return ProviderKey(
        id=PREFIX + row[0],
        provider=row[1],
        description=row[2],
        metadata=row[3],
        created_at=rows.from_microseconds(row[4]),
        updated_at=rows.from_microseconds(row[5]),
        disabled=bool(row[6]),
        redacted=row[7],
    )
