"""The gateway keys of a store."""

from __future__ import annotations

import builtins
import hmac
import json
import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from cachetools import LRUCache

from .._addresses import NetworkSet
from .._forks import in_child
from ..errors import StoreUnavailable
from ..keys.active import read_window
from ..keys.records import ApiKey
from ..keys.token import digest, new_token, public_id_of, redacted
from ..limits import parse_limits
from ..model_rules import ModelRules
from . import rows
from .database import Connection, Database
from .rows import UNSET

if TYPE_CHECKING:
    from .audit import AuditLog
    from .usage import UsageStore

logger = logging.getLogger(__name__)

PREFIX = "aigk_"
LONGEST_GRACE = 30 * 86_400
_ABSENT = bytes(32)
_CACHED = 100_000

_COLUMNS = (
    "public_id, name, description, metadata, endpoint_id, created_at, updated_at, expires_at, "
    "disabled, limits, models, networks, active"
)


_CLEARED = {
    "digest": b"",
    "old_digest": None,
    "name": "",
    "description": "",
    "metadata": "",
    "endpoint_id": None,
    "limits": "[]",
    "models": None,
    "networks": "[]",
    "active": "[]",
}


class _Verified(NamedTuple):
    """What verifying a token needs of a row.

    Attributes:
        tag: what the database's tag was before the row was read.
        digest: of the present token.
        old_digest: of the token before the last rotation; None for none.
        old_until: until when that one works, in microseconds.
        key: the record.
    """

    tag: Hashable
    digest: bytes
    old_digest: bytes | None
    old_until: int
    key: ApiKey | None

    def accepts(self, presented: bytes) -> bool:
        """Whether the digest is of a token that works; an unknown key costs the same."""
        good = hmac.compare_digest(presented, self.digest)
        old = hmac.compare_digest(presented, self.old_digest or _ABSENT)
        return good or bool(old and self.old_digest and rows.now() < self.old_until)


class KeyStore:
    """Create, look up, change and delete gateway keys; `store.keys`."""

    def __init__(self, database: Database, usage: UsageStore, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit
        self._usage = usage
        self._cache: LRUCache[str, _Verified] = LRUCache(_CACHED)
        self._new_lock()
        in_child(self._new_lock)

    def _new_lock(self) -> None:
        self._cache_lock = Lock()

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
        active: str | Iterable[str] = (),
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
            active: windows of the week in which it is good, such as `"mon-fri 08:00-18:00
                Europe/Berlin"`; empty for always.

        Raises:
            ValueError: a value is wrong; the option is named.
            StoreUnavailable: the store gave no answer; no key was made.
        """
        made = new_token()
        now = rows.now()
        checked = _checked(
            name=name,
            description=description,
            metadata=metadata,
            endpoint_id=endpoint_id,
            expires_at=expires_at,
            disabled=False,
            limits=limits,
            models=models,
            networks=networks,
            active=active,
        )
        row = checked | {
            "public_id": made.public_id,
            "digest": made.digest,
            "created_at": now,
            "updated_at": now,
        }

        def work(connection: Connection) -> ApiKey:
            rows.insert(connection, "keys", row)
            self._audit.record(connection, "create", PREFIX + made.public_id, checked)
            return _present(connection, made.public_id)

        return self._audit.write(work), made.token

    def get(self, id: str) -> ApiKey:
        """Return the record of a key.

        Raises:
            KeyError: there is none.
        """
        public_id = rows.public_id(id, PREFIX)
        return self._with_last_used(
            [self._database.read(lambda connection: _present(connection, public_id))]
        )[0]

    def list(self, limit: int = 100, before_id: str | None = None) -> list[ApiKey]:
        """Return keys, the newest first.

        Args:
            limit: how many at most, 1 to 100.
            before_id: only those made before that one.

        Raises:
            ValueError: `limit` is out of bounds.
            KeyError: there is no key `before_id`.
        """
        found = rows.page(self._database, "keys", _COLUMNS, PREFIX, limit, before_id)
        return self._with_last_used([_record(row) for row in found])

    def update(
        self,
        id: str,
        *,
        name: str = UNSET,
        description: str = UNSET,
        metadata: str = UNSET,
        endpoint_id: str | None = UNSET,
        expires_at: datetime | None = UNSET,
        disabled: bool = UNSET,
        limits: str | Iterable[str] = UNSET,
        models: Iterable[str] | None = UNSET,
        networks: str | Iterable[str] = UNSET,
        active: str | Iterable[str] = UNSET,
    ) -> ApiKey:
        """Change the fields that are given, as in `create`, and return the record.

        The change is in force on every worker of the machine with the next request.

        `disabled=True` refuses the key for now, False takes that back.

        Raises:
            KeyError: there is no such key.
            ValueError: a value is wrong; nothing was changed.
            StoreUnavailable: the store gave no answer; nothing was changed.
        """
        public_id = rows.public_id(id, PREFIX)
        given = {
            "name": name,
            "description": description,
            "metadata": metadata,
            "endpoint_id": endpoint_id,
            "expires_at": expires_at,
            "disabled": disabled,
            "limits": limits,
            "models": models,
            "networks": networks,
            "active": active,
        }
        row = _checked(**{field: value for field, value in given.items() if value is not UNSET})
        if not row:
            return self.get(id)
        return self._change(public_id, row)

    def rotate(self, id: str, grace: int = 3600) -> tuple[ApiKey, str]:
        """Give a key a new token; return its record and the token, which is never seen again.

        Args:
            id: the key's id, which stays.
            grace: seconds for which the old token still works, 0 to 30 days. A token that an
                earlier rotation left in its grace stops working.

        Raises:
            KeyError: there is no such key.
            ValueError: `grace` is out of bounds.
        """
        if isinstance(grace, bool) or not isinstance(grace, int):
            raise ValueError(f"grace: {grace!r} is no whole number of seconds")
        if not 0 <= grace <= LONGEST_GRACE:
            raise ValueError(f"grace: {grace} is not between 0 and {LONGEST_GRACE} seconds")
        public_id = rows.public_id(id, PREFIX)
        made = new_token(public_id)

        def work(connection: Connection) -> ApiKey:
            row = {
                "digest": made.digest,
                "old_until": rows.now() + grace * 1_000_000,
                "updated_at": rows.now(),
            }
            connection.execute(
                "UPDATE keys SET old_digest = digest WHERE public_id = ? AND deleted_at IS NULL",
                (public_id,),
            )
            if not rows.update(connection, "keys", public_id, row):
                raise KeyError(id)
            self._audit.record(connection, "rotate", id, {"grace": grace})
            return _present(connection, public_id)

        return self._kept(self._audit.write(work)), made.token

    def delete(self, id: str) -> bool:
        """Delete a key for good; True, or False where there was none.

        From when this returns no process of the machine accepts the key, and its id is never
        given again.
        """
        return rows.delete("keys", id, PREFIX, _CLEARED, self._audit)

    def verify(self, token: str, *, endpoint: str | None = None) -> ApiKey | None:
        """Return the live key of a token; None where it is unknown, deleted, disabled, expired.

        A token of the wrong form or with a wrong checksum is refused without the store, and a
        good one that was seen before costs no query unless a record has changed since.

        Args:
            token: as the client presented it.
            endpoint: the endpoint that it is presented to; a key of another one is not good.

        Raises:
            StoreUnavailable: it cannot be told.
        """
        public_id = public_id_of(token)
        if public_id is None:
            return None
        found = self._look_up(public_id)
        key = found.key
        # Compared in any case: an unknown key takes as long as a wrong secret.
        if not found.accepts(digest(token)) or key is None or not key.is_live(datetime.now(UTC)):
            return None
        if endpoint is not None and key.endpoint_id not in (None, endpoint):
            return None
        self._usage.touch(key.id)
        return key

    def watch(self, id: str, token: str) -> Callable[[], bool]:
        """Return what tells whether a token is still good, for streams that are open under it.

        It costs as little as `verify`. While the store gives no answer a key that was good
        stays good: nobody has said otherwise.
        """
        public_id = rows.public_id(id, PREFIX)
        presented = b""

        def alive() -> bool:
            nonlocal presented
            presented = presented or digest(token)  # most answers end before anybody asks
            try:
                found = self._look_up(public_id)
            except StoreUnavailable:
                return True
            return (
                found.accepts(presented)
                and found.key is not None
                and found.key.is_live(datetime.now(UTC))
            )

        return alive

    def _look_up(self, public_id: str) -> _Verified:
        # Taken before the row is read: a change in between is then seen by the next look.
        tag = self._database.tag()
        with self._cache_lock:
            found = self._cache.get(public_id)
        if found is not None and found.tag == tag:
            return found
        columns = f"{_COLUMNS}, digest, old_digest, old_until"
        condition = "public_id = ? AND deleted_at IS NULL"
        statement = f"SELECT {columns} FROM keys WHERE {condition}"  # noqa: S608  (our own names)
        row = self._database.read(
            lambda connection: connection.execute(statement, (public_id,)).fetchone()
        )
        if row is None:
            # Not kept: tokens of no key are anybody's to invent.
            return _Verified(tag, _ABSENT, None, 0, None)
        found = _Verified(tag, row[-3], row[-2], row[-1] or 0, _record(row))
        with self._cache_lock:
            self._cache[public_id] = found
        return found

    def _with_last_used(self, keys: builtins.list[ApiKey]) -> builtins.list[ApiKey]:
        """Return records with when each last let a request in."""
        moments = self._usage.last_used([key.id for key in keys])
        return [replace(key, last_used=moments.get(key.id)) for key in keys]

    def _change(self, public_id: str, row: dict[str, Any]) -> ApiKey:
        def work(connection: Connection) -> ApiKey:
            if not rows.update(connection, "keys", public_id, {**row, "updated_at": rows.now()}):
                raise KeyError(PREFIX + public_id)
            self._audit.record(connection, "update", PREFIX + public_id, row)
            return _present(connection, public_id)

        return self._kept(self._audit.write(work))

    def _kept(self, key: ApiKey) -> ApiKey:
        """Return a record after its change, which nothing may make look as if it had failed."""
        try:
            return self._with_last_used([key])[0]
        except StoreUnavailable as error:
            logger.warning("last_used of %s is not known: %s", key.id, error)
            return key


def _present(connection: Connection, public_id: str) -> ApiKey:
    condition = "public_id = ? AND deleted_at IS NULL"
    statement = f"SELECT {_COLUMNS} FROM keys WHERE {condition}"  # noqa: S608  (our own names)
    row = connection.execute(statement, (public_id,)).fetchone()
    if row is None:
        raise KeyError(PREFIX + public_id)
    return _record(row)


def _record(row: Sequence[Any]) -> ApiKey:
    models = row[10]
    return ApiKey(
        id=PREFIX + row[0],
        name=row[1],
        description=row[2],
        metadata=row[3],
        endpoint_id=row[4],
        created_at=rows.from_microseconds(row[5]),
        updated_at=rows.from_microseconds(row[6]),
        expires_at=rows.from_microseconds(row[7]),
        disabled=bool(row[8]),
        redacted=redacted(row[0]),
        limits=tuple(json.loads(row[9])),
        models=None if models is None else tuple(json.loads(models)),
        networks=tuple(json.loads(row[11])),
        active=tuple(json.loads(row[12])),
    )


def _checked(**fields: Any) -> dict[str, Any]:
    """Return fields as they are stored; ValueError that names the one that is wrong."""
    return {field: _CHECKS[field](value) for field, value in fields.items()}


def _endpoint(value: object) -> str | None:
    return None if value is None else rows.text("endpoint_id", value, 255)


def _expiry(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("expires_at: must be a datetime with a time zone, or None")
    try:
        return rows.to_microseconds(value.astimezone(UTC))
    except OverflowError:
        raise ValueError("expires_at: is outside the years that can be told in UTC") from None


def _limits(limits: str | Iterable[str]) -> str:
    return json.dumps([limit.text for limit in parse_limits(_several("limits", limits))])


def _models(models: Iterable[str] | None) -> str | None:
    if models is None:
        return None
    patterns = _several("models", models)
    ModelRules(patterns)
    return json.dumps(patterns)


def _networks(networks: str | Iterable[str]) -> str:
    texts = [str(network) for network in _several("networks", networks)]
    NetworkSet("networks", texts)
    return json.dumps(texts)


def _active(windows: str | Iterable[str]) -> str:
    texts = [str(window) for window in _several("active", windows)]
    for text in texts:
        read_window(text)
    return json.dumps(texts)


def _several(option: str, values: object) -> list[Any]:
    if isinstance(values, str):
        return [values]
    if not isinstance(values, Iterable):
        raise ValueError(f"{option}: must be a list, not {type(values).__name__}")
    return [*values]


_CHECKS: dict[str, Any] = {
    "name": lambda value: rows.text("name", value, 255),
    "description": lambda value: rows.text("description", value, 255),
    "metadata": lambda value: rows.text("metadata", value, 4096),
    "endpoint_id": _endpoint,
    "expires_at": _expiry,
    "disabled": lambda value: rows.flag("disabled", value),
    "limits": _limits,
    "models": _models,
    "networks": _networks,
    "active": _active,
}
