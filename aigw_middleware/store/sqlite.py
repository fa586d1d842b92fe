"""The embedded store: one SQLite file in WAL mode, for all processes of a machine."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TypeVar

from ..errors import StoreUnavailable
from .keys import KeyStore

T = TypeVar("T")

BUSY_SECONDS = 2.0
"""How long a request may wait for the records."""

APPLICATION_ID = 0x61696777  # "aigw", which `file` shows

MIGRATIONS = (
    """
    CREATE TABLE keys (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        public_id TEXT NOT NULL UNIQUE,
        digest BLOB NOT NULL,
        name TEXT NOT NULL,
        description TEXT NOT NULL,
        metadata TEXT NOT NULL,
        endpoint_id TEXT,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        expires_at INTEGER,
        last_used INTEGER,
        disabled INTEGER NOT NULL DEFAULT 0,
        limits TEXT NOT NULL,
        models TEXT,
        networks TEXT NOT NULL
    ) STRICT
    """,
)
"""The steps from an empty file to the present schema; `PRAGMA user_version` counts them."""


class SQLiteStore:
    """Records in one SQLite file.

    Opened lazily in each process, so that a server may fork after it was built; a connection
    that was inherited over a fork is dropped and never used or closed
    (sqlite.org/howtocorrupt.html §2.6).

    Args:
        path: the file, absolute.

    Attributes:
        keys: the gateway keys, a `KeyStore`.
        closed: whether `close` was called.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.closed = False
        self._pool: list[sqlite3.Connection] = []
        self._pool_of: tuple[int, int] | None = None
        self._lock = Lock()
        self.keys = KeyStore(self)
        _stores.append(self)
        self._create()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"

    def close(self) -> None:
        """Close the connections of this process; the next `open_store` opens anew."""
        with self._lock:
            self.closed = True
            while self._pool:
                self._pool.pop().close()

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on a connection, outside a transaction.

        Raises:
            StoreUnavailable: the file is gone, locked for too long or damaged.
        """
        with self._connection() as connection:
            return work(connection)

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in a transaction that is on disk when this returns.

        Raises:
            StoreUnavailable: as `read`, or the file cannot be written. Nothing was changed.
        """
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection of this process; one that failed is not lent again."""
        try:
            connection = self._take()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self._give_back(connection)
        except sqlite3.Error as error:
            # SQLite's messages name tables and states, never values.
            raise StoreUnavailable(f"the store {self.path} gave no answer: {error}") from error

    def _take(self) -> sqlite3.Connection:
        if self.closed:
            raise StoreUnavailable(f"the store {self.path} is closed")
        identity = self._identity()
        with self._lock:
            if identity != self._pool_of:
                # Another file stands there now: a restored copy, or the first use.
                while self._pool:
                    self._pool.pop().close()
                self._pool_of = identity
            if self._pool:
                return self._pool.pop()
        return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self.closed and self._pool_of is not None:
                self._pool.append(connection)
                return
        connection.close()

    def _identity(self) -> tuple[int, int]:
        """Return which file stands at the path: an open connection would not notice a removal."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise StoreUnavailable(f"the store {self.path} cannot be reached: {error}") from error
        return status.st_dev, status.st_ino

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{Path(self.path).as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # FULL: a key that was deleted stays deleted over a power loss.
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _create(self) -> None:
        """Make the file and its schema; several processes may do it at once."""
        try:
            # Made before SQLite opens it, so that nobody else can read it even for a moment;
            # SQLite gives -wal and -shm the same mode.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise StoreUnavailable(f"the store {self.path} cannot be made: {error}") from error
        version = self.read(_version)
        if version > len(MIGRATIONS):
            raise StoreUnavailable(
                f"the store {self.path} has schema {version}, and this version of "
                f"aigw-middleware knows up to {len(MIGRATIONS)}; upgrade it"
            )
        if version < len(MIGRATIONS):
            self._migrate()

    def _migrate(self) -> None:
        self.read(lambda connection: connection.execute("PRAGMA journal_mode = WAL").fetchone())

        def steps(connection: sqlite3.Connection) -> None:
            # Read again under the lock: another process may have done it meanwhile.
            for step in MIGRATIONS[_version(connection) :]:
                connection.execute(step)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

        self.write(steps)

    def _forget(self) -> None:
        """In a forked child: let go of what belongs to the parent, without closing it."""
        _inherited.extend(self._pool)
        self._pool = []
        self._pool_of = None
        self._lock = Lock()


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


_stores: list[SQLiteStore] = []
# Kept for ever: collecting a connection would close it, and that drops the parent's locks.
_inherited: list[sqlite3.Connection] = []


def _forget_all() -> None:
    for store in _stores:
        store._forget()


os.register_at_fork(after_in_child=_forget_all)
