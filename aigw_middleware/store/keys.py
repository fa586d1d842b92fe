"""The gateway keys of a store."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .._addresses import NetworkSet
from ..keys.records import ApiKey
from ..keys.token import digest, new_token, public_id_of, redacted
from ..limits import parse_limits
from ..model_rules import ModelRules

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")

PREFIX = "aigk_"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ABSENT = bytes(32)

_COLUMNS = (
    "public_id, name, description, metadata, endpoint_id, created_at, updated_at, expires_at, "
    "last_used, disabled, limits, models, networks"
)


class _Records(Protocol):
    def read(self, work: Callable[[sqlite3.Connection], T]) -> T: ...
    def write(self, work: Callable[[sqlite3.Connection], T]) -> T: ...


class KeyStore:
    """Create, look up and delete gateway keys; `store.keys`."""

    def __init__(self, records: _Records) -> None:
        self._records = records

    def create(
        self,
        *,
        name: str = "",
        description: str = "",
        metadata: str = "",
        endpoint_id: str | None = None,
        expires_at: datetime | None = None,
        limits: str | Iterable[str] = (),
        models: Iterable[str] | None = None,
        networks: str | Iterable[str] = (),
    ) -> tuple[ApiKey, str]:
        """Create a key; return its record and its token, which is never seen again.

        Args:
            name: a short name for people, at most 255 characters.
            description: what the key is for, at most 255 characters.
            metadata: free text, often JSON, at most 4,096 characters.
            endpoint_id: the endpoint that the key is for; None for every endpoint.
            expires_at: from when on it is refused, an aware datetime; None for never.
            limits: limits of this key alone, such as `"100/min"`.
            models: patterns of the models that it may use (`openai/gpt-4o*`); None for all,
                empty for none.
            networks: networks that it may be used from; empty for all.

        Raises:
            ValueError: a value is wrong; the option is named.
            StoreUnavailable: the store gave no answer; no key was made.
        """
        made = new_token()
        now = _microseconds(datetime.now(UTC))
        row = {
            "public_id": made.public_id,
            "digest": made.digest,
            "name": _text("name", name, 255),
            "description": _text("description", description, 255),
            "metadata": _text("metadata", metadata, 4096),
            "endpoint_id": None if endpoint_id is None else _text("endpoint_id", endpoint_id, 255),
            "created_at": now,
            "updated_at": now,
            "expires_at": _expiry(expires_at),
            "limits": json.dumps(_limits(limits)),
            "models": None if models is None else json.dumps(_models(models)),
            "networks": json.dumps(_networks(networks)),
        }
        names = ", ".join(row)
        marks = ", ".join(f":{column}" for column in row)
        statement = f"INSERT INTO keys ({names}) VALUES ({marks})"  # noqa: S608  (our own names)
        self._records.write(lambda connection: connection.execute(statement, row).lastrowid)
        return self.get(PREFIX + made.public_id), made.token

    def get(self, id: str) -> ApiKey:
        """Return the record of a key.

        Raises:
            KeyError: there is none.
        """
        row = self._row(_public_id(id))
        if row is None:
            raise KeyError(id)
        return _record(row)

    def list(self, limit: int = 100, before_id: str | None = None) -> list[ApiKey]:
        """Return keys, the newest first.

        Args:
            limit: how many at most, 1 to 100.
            before_id: only those made before that one.

        Raises:
            ValueError: `limit` is out of bounds.
            KeyError: there is no key `before_id`.
        """
        if not 1 <= limit <= 100:
            raise ValueError(f"limit: {limit} is not between 1 and 100")

        def work(connection: sqlite3.Connection) -> list[Sequence[Any]]:
            before = 2**63 - 1
            if before_id is not None:
                found = connection.execute(
                    "SELECT number FROM keys WHERE public_id = ?", (_public_id(before_id),)
                ).fetchone()
                if found is None:
                    raise KeyError(before_id)
                before = found[0]
            return connection.execute(
                f"SELECT {_COLUMNS} FROM keys WHERE number < ? ORDER BY number DESC LIMIT ?",  # noqa: S608
                (before, limit),
            ).fetchall()

        return [_record(row) for row in self._records.read(work)]

    def delete(self, id: str) -> bool:
        """Delete a key for good; True, or False where there was none.

        From when this returns no process of the machine accepts the key, and its id is never
        given again.
        """
        if not isinstance(id, str) or not id.startswith(PREFIX):
            return False
        public_id = id.removeprefix(PREFIX)
        return self._records.write(
            lambda connection: (
                connection.execute("DELETE FROM keys WHERE public_id = ?", (public_id,)).rowcount
                > 0
            )
        )

    def verify(self, token: str, *, endpoint: str | None = None) -> ApiKey | None:
        """Return the live key of a token; None where it is unknown, deleted, disabled, expired.

        A token of the wrong form or with a wrong checksum is refused without the store.

        Args:
            token: as the client presented it.
            endpoint: the endpoint that it is presented to; a key of another one is not good.

        Raises:
            StoreUnavailable: it cannot be told.
        """
        public_id = public_id_of(token)
        if public_id is None:
            return None
        row = self._row(public_id)
        # An unknown key costs the same comparison as a wrong secret.
        stored = row[-1] if row is not None else _ABSENT
        if not hmac.compare_digest(digest(token), stored) or row is None:
            return None
        key = _record(row)
        if not key.is_live(datetime.now(UTC)):
            return None
        return key if endpoint is None or key.endpoint_id in (None, endpoint) else None

    def _row(self, public_id: str) -> Sequence[Any] | None:
        def work(connection: sqlite3.Connection) -> Sequence[Any] | None:
            row: Sequence[Any] | None = connection.execute(
                f"SELECT {_COLUMNS}, digest FROM keys WHERE public_id = ?",  # noqa: S608
                (public_id,),
            ).fetchone()
            return row

        return self._records.read(work)


def _public_id(id_: str) -> str:
    """Return the public id in a key's id; an id of another form names no key."""
    if not isinstance(id_, str) or not id_.startswith(PREFIX):
        raise KeyError(id_)
    return id_.removeprefix(PREFIX)


def _record(row: Sequence[Any]) -> ApiKey:
    models = row[11]
    return ApiKey(
        id=PREFIX + row[0],
        name=row[1],
        description=row[2],
        metadata=row[3],
        endpoint_id=row[4],
        created_at=_time(row[5]),
        updated_at=_time(row[6]),
        expires_at=_time(row[7]),
        last_used=_time(row[8]),
        disabled=bool(row[9]),
        redacted=redacted(row[0]),
        limits=tuple(json.loads(row[10])),
        models=None if models is None else tuple(json.loads(models)),
        networks=tuple(json.loads(row[12])),
    )


def _time(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _text(option: str, value: object, longest: int) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{option}: must be a text, not {type(value).__name__}")
    if len(value) > longest:
        raise ValueError(f"{option}: {len(value)} characters; at most {longest} are kept")
    if "\0" in value:
        raise ValueError(f"{option}: holds a NUL character")
    return value


def _expiry(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("expires_at: must be a datetime with a time zone, or None")
    return _microseconds(value)


def _limits(limits: str | Iterable[str]) -> list[str]:
    return [limit.text for limit in parse_limits(limits)]


def _models(models: Iterable[str]) -> list[str]:
    patterns = [models] if isinstance(models, str) else list(models)
    ModelRules(patterns)
    return patterns


def _networks(networks: str | Iterable[str]) -> list[str]:
    texts = [networks] if isinstance(networks, str) else [str(network) for network in networks]
    NetworkSet("networks", texts)
    return texts
