"""The named tokens that open the management API."""

from __future__ import annotations

import builtins
import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..keys.records import AdminToken
from ..keys.token import ADMIN, digest
from . import rows
from .database import Connection, Database

if TYPE_CHECKING:
    from .audit import AuditLog

PREFIX = "aigat_"
ROLES = ("read", "write")
_COLUMNS = "public_id, name, role, created_at"
_ABSENT = bytes(32)


class AdminTokenStore:
    """Create, list and delete admin tokens; `store.admin_tokens`."""

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    def create(self, *, role: str, name: str = "") -> tuple[AdminToken, str]:
        """Create an admin token; return its record and the token, which is never seen again.

        Args:
            role: `read`, which may look at everything, or `write`, which may change it too.
            name: who it is for, at most 255 characters; the audit names it.

        Raises:
            ValueError: a value is wrong.
            StoreUnavailable: the store gave no answer; no token was made.
        """
        if role not in ROLES:
            raise ValueError(f"role: {role!r} is none of {', '.join(ROLES)}")
        made = ADMIN.new()
        told = {"name": rows.text("name", name, 255), "role": role}
        row = {
            **told,
            "public_id": made.public_id,
            "digest": made.digest,
            "created_at": rows.now(),
        }

        def work(connection: Connection) -> AdminToken:
            rows.insert(connection, "admin_tokens", row)
            self._audit.record(connection, "create", PREFIX + made.public_id, told)
            return _record((made.public_id, name, role, row["created_at"]))

        return self._audit.write(work), made.token

    def list(self, limit: int = 100, before_id: str | None = None) -> builtins.list[AdminToken]:
        """Return admin tokens, the newest first; the arguments are those of `keys.list`."""
        found = rows.page(self._database, "admin_tokens", _COLUMNS, PREFIX, limit, before_id)
        return [_record(row) for row in found]

    def delete(self, id: str) -> bool:
        """Delete an admin token for good; True, or False where there was none."""
        cleared = {"digest": b"", "name": ""}
        return rows.delete("admin_tokens", id, PREFIX, cleared, self._audit)

    def verify(self, token: str) -> AdminToken | None:
        """Return the record of a token; None where it is unknown or was deleted.

        Read anew each time: who manages keys does not ask ten thousand times a second.

        Raises:
            StoreUnavailable: it cannot be told.
        """
        public_id = ADMIN.public_id_of(token)
        if public_id is None:
            return None
        condition = "public_id = ? AND deleted_at IS NULL"
        statement = f"SELECT {_COLUMNS}, digest FROM admin_tokens WHERE {condition}"  # noqa: S608
        row = self._database.read(lambda c: c.execute(statement, (public_id,)).fetchone())
        known = _ABSENT if row is None else row[-1]
        return _record(row) if hmac.compare_digest(digest(token), known) else None


def _record(row: Sequence[Any]) -> AdminToken:
    return AdminToken(
        id=PREFIX + row[0], name=row[1], role=row[2], created_at=rows.from_microseconds(row[3])
    )
