"""Who did what to which record: rows that are chained, so that a change of the past shows.

Each row's mark is a keyed hash over the row and the mark before it, so a row that was changed,
removed or moved breaks the chain there. The head (the last number and its mark) is signed too, so
rows that were cut off at the end show as well; who holds the database and an old copy of it could
still put all of that back, which only a head that was kept elsewhere tells: each is logged.

The chain's key is sealed with `AIGW_SECRET` where there is one. Without, it lies in the database
in the clear, and the chain tells of accidents only. Who changes a record without the secret that
sealed it (a key must be revocable at any time) leaves a row that nobody vouches for, and `verify`
says so.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from ..keys.sealing import Sealed, Sealer, WrongSecret
from . import rows
from .database import Connection, Database

logger = logging.getLogger("aigw_middleware.audit")

T = TypeVar("T")

_RECORD = "audit key"
_FIRST = bytes(32)
_COLUMNS = "number, at, actor, origin, action, record, changes"


class Actor(NamedTuple):
    """Who is acting, and from where."""

    name: str
    origin: str


_LIBRARY = Actor("library", "")
_actor: ContextVar[Actor] = ContextVar("aigw_actor", default=_LIBRARY)


@contextmanager
def acting(name: str, origin: str = "") -> Iterator[None]:
    """Say who makes the changes within.

    Args:
        name: who, such as `api:admin` or `command:root`.
        origin: from where, such as an address.
    """
    token = _actor.set(Actor(name, origin))
    try:
        yield
    finally:
        _actor.reset(token)


class AuditRow(NamedTuple):
    """One entry.

    Attributes:
        number: its place in the chain, from 1 on without gaps.
        at: when, UTC.
        actor: who.
        origin: from where; empty where nobody said.
        action: `create`, `update`, `rotate`, `delete` or `rekey`.
        record: the id of the record.
        changes: the fields that were set, with their new values; of a secret only that it was.
    """

    number: int
    at: datetime | None
    actor: str
    origin: str
    action: str
    record: str
    changes: dict[str, Any]


class AuditLog:
    """The audit of a store; `store.audit`."""

    def __init__(self, database: Database, sealer: Sealer | None) -> None:
        self._database = database
        self._sealer = sealer
        self._pending = threading.local()

    def record(
        self, connection: Connection, action: str, record: str, changes: dict[str, Any]
    ) -> None:
        """Add a row, within the transaction of the change that it tells of; see `write`."""
        number, mark = _head(connection)
        key = self._usable_key(connection, number + 1, mark)
        actor = _actor.get()
        row = (
            number + 1, rows.now(), actor.name, actor.origin, action, record,
            json.dumps(changes, sort_keys=True, default=_plain),
        )  # fmt: skip
        mark = _mark(key, mark, row)
        connection.execute(
            f"INSERT INTO audit ({_COLUMNS}, mark) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (*row, mark),
        )
        _put(connection, "audit_head", _signed_head(key, number + 1, mark))
        told = (action, record, actor.name, number + 1, mark.hex())
        self._pending.told = [*getattr(self._pending, "told", ()), told]

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which records what it does, in a transaction; then log the heads."""
        self._pending.told = []
        result = self._database.write(work)
        for told in self._pending.told:
            logger.info("%s %s by %s; head %d:%s", *told)
        return result

    def list(self, limit: int = 100, before: int | None = None) -> list[AuditRow]:
        """Return rows, the newest first.

        Args:
            limit: how many at most, 1 to 100.
            before: only those with a smaller number.

        Raises:
            ValueError: `limit` is out of bounds.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= 100:
            raise ValueError(f"limit: {limit!r} is not between 1 and 100")
        bound = rows.LARGEST if before is None else before
        statement = (
            f"SELECT {_COLUMNS} FROM audit WHERE number < ? "  # noqa: S608  (our own names)
            "ORDER BY number DESC LIMIT ?"
        )
        found = self._database.read(lambda c: c.execute(statement, (bound, limit)).fetchall())
        return [
            AuditRow(
                row[0],
                rows.from_microseconds(row[1]),
                row[2],
                row[3],
                row[4],
                row[5],
                json.loads(row[6]),
            )
            for row in found
        ]

    def head(self) -> str:
        """Return the head, `NUMBER:MARK`, to be kept elsewhere."""
        number, mark = self._database.snapshot(_head)
        return f"{number}:{mark.hex()}"

    def verify(self, head: str | None = None) -> builtins_list[str]:
        """Return what is wrong with the chain, each in one sentence; empty for nothing.

        Args:
            head: a head that was kept elsewhere; the chain must still hold it.

        Raises:
            ValueError: `head` is no `NUMBER:MARK`.
            WrongSecret: the chain's key does not open.
        """
        kept = _parsed(head)

        def work(connection: Connection) -> builtins_list[str]:
            stored = _get(connection, "audit_head")
            if stored is None:
                missing = _anything(connection) or (kept is not None and kept[0] > 0)
                return ["the head is missing"] if missing else []
            key = self._known_key(connection)
            if key is None:
                return ["the key of the audit is missing"]
            problems = self._check_seal(connection)
            found = _Chain(connection, key, self._plain_part(connection, key, problems))
            problems += found.problems
            return problems + _check_head(key, stored, found) + _check_kept(kept, found.marks)

        return self._database.snapshot(work)

    def rekey(self, old: Sealer) -> None:
        """Seal the chain's key with this store's secret instead of `old`'s; harmless again."""

        def work(connection: Connection) -> None:
            sealed = _sealed(_get(connection, "audit_key"))
            if self._sealer is None or sealed is None or sealed.master == self._sealer.master:
                return
            again = self._sealer.rewrap(sealed, _RECORD, old)
            _put(connection, "audit_key", _sealed_text(again))
            self.record(connection, "rekey", "store", {})

        self.write(work)

    def _usable_key(self, connection: Connection, number: int, before: bytes) -> bytes | None:
        """Return the key for row `number`, None where it cannot be opened.

        It is made with the first row. Where it lay in the clear and there is something to seal
        with now, another one begins: anybody could have written what stands before.
        """
        stored = _get(connection, "audit_key")
        if stored is None or (self._sealer is not None and _sealed(stored) is None):
            key = os.urandom(32)
            _put(connection, "audit_key", self._kept(key.hex()))
            if stored is not None:
                _put(connection, "audit_plain_key", stored)
            if number > 1 and self._sealer is not None:
                _put(connection, "audit_from", _signed_from(key, number, before))
            return key
        try:
            return self._known_key(connection)
        except WrongSecret as error:
            logger.warning("a row of the audit is written without its key: %s", error)
            return None

    def _known_key(self, connection: Connection) -> bytes | None:
        """Return the chain's key; None where there is none."""
        stored = _get(connection, "audit_key")
        sealed = _sealed(stored)
        if stored is None or sealed is None:
            return None if stored is None else bytes.fromhex(stored)
        if self._sealer is None:
            raise WrongSecret("the audit's key is sealed; AIGW_SECRET is not set")
        return bytes.fromhex(self._sealer.open(sealed, _RECORD))

    def _check_seal(self, connection: Connection) -> builtins_list[str]:
        stored = _get(connection, "audit_key")
        if self._sealer is not None and _sealed(stored) is None:
            return ["the key of the audit is not sealed; anybody could have written the rows"]
        return []

    def _plain_part(
        self, connection: Connection, key: bytes, problems: builtins_list[str]
    ) -> tuple[int, bytes | None]:
        """Return the first row under `key`, and the key of those before it."""
        stored = _get(connection, "audit_from")
        if stored is None:
            return 1, None
        number = int(stored.partition(":")[0])
        row = connection.execute(
            "SELECT mark FROM audit WHERE number = ?", (number - 1,)
        ).fetchone()
        if row is None or not hmac.compare_digest(_signed_from(key, number, row[0]), stored):
            problems.append("where the sealed chain begins was changed")
            return 1, None
        problems.append(f"rows 1 to {number - 1} were written before there was AIGW_SECRET")
        plain = _get(connection, "audit_plain_key")
        return number, None if plain is None else bytes.fromhex(plain)

    def _kept(self, key: str) -> str:
        return key if self._sealer is None else _sealed_text(self._sealer.seal(key, _RECORD))


builtins_list = list


class _Chain:
    """The chain, followed.

    Args:
        connection: where it is.
        key: its key.
        plain: the first row under that key, and the key of the rows before it.

    Attributes:
        problems: what is wrong in it.
        marks: the marks by number.
        unvouched: the numbers of rows that were written without the key.
    """

    def __init__(self, connection: Connection, key: bytes, plain: tuple[int, bytes | None]) -> None:
        self.problems: list[str] = []
        self.marks: dict[int, bytes] = {}
        self.unvouched: set[int] = set()
        self._follow(connection, key, plain)

    def _follow(self, connection: Connection, key: bytes, plain: tuple[int, bytes | None]) -> None:
        expected, before = 1, _FIRST
        for row in connection.execute(f"SELECT {_COLUMNS}, mark FROM audit ORDER BY number"):  # noqa: S608
            number, mark = row[0], row[-1]
            of_row = key if number >= plain[0] else plain[1]
            if number != expected:
                self.problems.append(f"rows {expected} to {number - 1} are missing")
            elif hmac.compare_digest(_mark(None, before, row[:-1]), mark):
                self.unvouched.add(number)
                self.problems.append(
                    f"row {number} was written without AIGW_SECRET; nobody vouches for it"
                )
            elif not hmac.compare_digest(_mark(of_row, before, row[:-1]), mark):
                self.problems.append(f"row {number} was changed")
            expected, before = number + 1, mark
            self.marks[number] = mark


def _anything(connection: Connection) -> bool:
    """Whether there is a row of the audit, or a record that one should tell of."""
    tables = ("audit", "keys", "provider_keys", "admin_tokens")
    return any(
        connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()  # noqa: S608
        for table in tables
    )


def _check_head(key: bytes, stored: str, chain: _Chain) -> list[str]:
    number, mark, _ = _parts(stored)
    marks = chain.marks
    # Without the key only where the last row is without it too, which is told already.
    signer = None if number in chain.unvouched else key
    if not hmac.compare_digest(_signed_head(signer, number, mark), stored):
        return ["the head was changed"]
    last = max(marks, default=0)
    if last < number:
        return [f"rows {last + 1} to {number} are missing at the end"]
    if last > number or marks[number] != mark:
        return ["the head is not that of the last row"]
    return []


def _check_kept(kept: tuple[int, bytes] | None, marks: dict[int, bytes]) -> list[str]:
    if kept is None or kept[0] == 0 or marks.get(kept[0]) == kept[1]:
        return []
    return [f"row {kept[0]} is not the one of the head that was kept"]


def _parsed(head: str | None) -> tuple[int, bytes] | None:
    if head is None:
        return None
    try:
        number, mark = head.strip().split(":")
        return int(number), bytes.fromhex(mark)
    except ValueError:
        raise ValueError("head: is no NUMBER:MARK") from None


def _mark(key: bytes | None, before: bytes, row: tuple[Any, ...]) -> bytes:
    text = json.dumps(list(row), separators=(",", ":"))
    return hmac.digest(key or b"no key", before + text.encode(), sha256)


def _signed_head(key: bytes | None, number: int, mark: bytes) -> str:
    signature = hmac.digest(key or b"no key", f"head {number} {mark.hex()}".encode(), sha256)
    return f"{number}:{mark.hex()}:{signature.hex()}"


def _parts(stored: str) -> tuple[int, bytes, bytes]:
    number, mark, signature = stored.split(":")
    return int(number), bytes.fromhex(mark), bytes.fromhex(signature)


def _signed_from(key: bytes, number: int, before: bytes) -> str:
    signature = hmac.digest(key, f"from {number} {before.hex()}".encode(), sha256)
    return f"{number}:{signature.hex()}"


def _head(connection: Connection) -> tuple[int, bytes]:
    stored = _get(connection, "audit_head")
    if stored is not None:
        return _parts(stored)[:2]
    # Nobody may hinder a change by removing the head; `verify` tells of it.
    row = connection.execute(
        "SELECT number, mark FROM audit ORDER BY number DESC LIMIT 1"
    ).fetchone()
    return (0, _FIRST) if row is None else (row[0], row[1])


def _get(connection: Connection, name: str) -> str | None:
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else row[0]


def _put(connection: Connection, name: str, value: str) -> None:
    connection.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, value),
    )


def _sealed_text(sealed: Sealed) -> str:
    return f"{sealed.master}:{sealed.wrapped.hex()}:{sealed.sealed.hex()}"


def _sealed(stored: str | None) -> Sealed | None:
    """Return the sealed form in a text, None where it is not sealed."""
    if stored is None or ":" not in stored:
        return None
    master, wrapped, sealed = stored.split(":")
    return Sealed(master, bytes.fromhex(wrapped), bytes.fromhex(sealed))


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
