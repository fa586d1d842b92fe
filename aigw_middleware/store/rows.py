"""What the tables share: times, texts, ids, pages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from .database import Connection, Database

if TYPE_CHECKING:
    from .audit import AuditLog

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LARGEST = 2**63 - 1


class Unset:
    """The default of a field that an update leaves as it is; None means something there."""

    def __repr__(self) -> str:
        return "unset"


UNSET: Any = Unset()


def from_microseconds(value: int | None) -> datetime | None:
    """Return a stored time as an aware datetime in UTC."""
    return None if value is None else _EPOCH + timedelta(microseconds=value)


def to_microseconds(moment: datetime) -> int:
    """Return an aware datetime as it is stored."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def day(value: int) -> str:
    """Return the day (UTC) of a stored time, `2026-11-25`."""
    return (_EPOCH + timedelta(microseconds=value)).date().isoformat()


def now() -> int:
    """Return the present time as it is stored."""
    return time.time_ns() // 1000


def text(option: str, value: object, longest: int) -> str:
    """Return a text field, checked.

    Raises:
        ValueError: it is no text, too long, or could not be stored.
    """
    if not isinstance(value, str):
        raise ValueError(f"{option}: must be a text, not {type(value).__name__}")
    if len(value) > longest:
        raise ValueError(f"{option}: {len(value)} characters; at most {longest} are kept")
    if "\0" in value:
        raise ValueError(f"{option}: holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{option}: holds half a surrogate pair, which is no character") from None
    return value


def flag(option: str, value: object) -> int:
    """Return a yes or no as it is stored; ValueError for anything else."""
    if not isinstance(value, bool):
        raise ValueError(f"{option}: must be true or false, not {type(value).__name__}")
    return int(value)


def public_id(id_: object, prefix: str) -> str:
    """Return the public id in a record's id.

    Raises:
        KeyError: it has another form, so it names nothing.
    """
    if not isinstance(id_, str) or not id_.startswith(prefix) or "\0" in id_:
        raise KeyError(id_)
    return id_.removeprefix(prefix)


def page(
    database: Database, table: str, columns: str, prefix: str, limit: int, before_id: str | None
) -> list[Sequence[Any]]:
    """Return a page of rows, the newest first.

    Raises:
        ValueError: `limit` is not 1 to 100.
        KeyError: there is no row `before_id`.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= 100:
        raise ValueError(f"limit: {limit!r} is not between 1 and 100")

    def work(connection: Connection) -> list[Sequence[Any]]:
        before = LARGEST
        if before_id is not None:
            found = connection.execute(
                f"SELECT number FROM {table} WHERE public_id = ?",  # noqa: S608  (our own names)
                (public_id(before_id, prefix),),
            ).fetchone()
            if found is None:
                raise KeyError(before_id)
            before = found[0]
        return connection.execute(
            f"SELECT {columns} FROM {table} "  # noqa: S608  (our own names)
            "WHERE number < ? AND deleted_at IS NULL ORDER BY number DESC LIMIT ?",
            (before, limit),
        ).fetchall()

    return database.read(work)


def insert(connection: Connection, table: str, row: dict[str, Any]) -> None:
    """Insert one row."""
    marks = ", ".join(f":{column}" for column in row)
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", row)  # noqa: S608


def update(connection: Connection, table: str, id_: str, row: dict[str, Any]) -> bool:
    """Change the row with public id `id_`; False where there is none."""
    changes = ", ".join(f"{column} = :{column}" for column in row)
    condition = "public_id = :public_id AND deleted_at IS NULL"
    statement = f"UPDATE {table} SET {changes} WHERE {condition}"  # noqa: S608  (our own names)
    return connection.execute(statement, {**row, "public_id": id_}).rowcount > 0


def delete(
    table: str,
    id_: str,
    prefix: str,
    cleared: dict[str, Any],
    audit: AuditLog,
) -> bool:
    """Delete a record for good; False where there is none.

    Its row keeps no more than that there was one: `cleared` is what takes the place of the rest.
    """
    try:
        key = public_id(id_, prefix)
    except KeyError:
        return False
    row = {**cleared, "deleted_at": now()}

    def work(connection: Connection) -> bool:
        found = update(connection, table, key, row)
        if found:
            audit.record(connection, "delete", id_, {})
        return found

    return audit.write(work)
