"""The embedded database: one SQLite file in WAL mode, for all processes of a machine."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TypeVar

from .._forks import ForkGate, in_child
from ..errors import StoreUnavailable
from .change import ChangeWord
from .database import Migrations
from .schema import MIGRATIONS

T = TypeVar("T")

# A fork while another thread is inside SQLite would leave SQLite's own locks taken in the child.
_gate = ForkGate()

BUSY_SECONDS = 2.0
"""How long a request may wait for the records."""
POLL_SECONDS = 1.0
"""How often a process looks for changes that were not announced."""

APPLICATION_ID = 0x61696777  # "aigw", which `file` shows

_TYPES = {
    "serial": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "integer": "INTEGER",
    "bytes": "BLOB",
    "table": "STRICT",
}


class SQLiteDatabase:
    """One SQLite file and the word that tells of its changes.

    Opened lazily in each process, so that a server may fork after it was built; a connection
    that was inherited over a fork is dropped and never used or closed
    (sqlite.org/howtocorrupt.html §2.6).

    Args:
        path: the file, absolute.
        migrations: the steps to its schema.
        synchronous: how a commit waits for the disk: FULL survives a power loss.
        announced: whether its changes are told by a word beside it, and `tag` can be asked.

    Attributes:
        closed: whether `close` was called.

    Raises:
        StoreUnavailable: the file cannot be made or read, or its schema is newer.
    """

    def __init__(
        self,
        path: str,
        migrations: Migrations = MIGRATIONS,
        *,
        synchronous: str = "FULL",
        announced: bool = True,
    ) -> None:
        self.path = path
        self._migrations = migrations
        self._synchronous = synchronous
        self._announced = announced
        self._directory = os.path.dirname(path) or "."
        self._directory_seen = -1
        self._tagged_identity = (0, 0)
        self._word: ChangeWord | None = None
        self.closed = False
        self._pool: list[sqlite3.Connection] = []
        self._pool_of: tuple[int, int] | None = None
        self._lock = Lock()
        self._watching: sqlite3.Connection | None = None
        self._unannounced = 0
        self._stop = threading.Event()
        self._polling_pid = 0
        in_child(self._forget)
        self._create()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"

    def close(self) -> None:
        """Close the connections of this process."""
        self._stop.set()
        with self._lock:
            self.closed = True
            self._close_connections()

    def tag(self) -> Hashable:
        """Return what stays equal for as long as everything that was read is still true.

        Taken before reading. It differs after any change of any process of the machine that
        was answered, when another file stands at the path, and within a second of a change
        that nobody announced (a process that was killed, a hand at the file).

        Raises:
            StoreUnavailable: the file is gone, or the database is closed.
        """
        if self.closed:
            raise StoreUnavailable(f"the store {self.path} is closed")
        if self._word is None:
            raise AssertionError("the changes of this database are not announced")
        if self._polling_pid != os.getpid():
            self._start_polling()
        try:
            # One look at the directory tells whether a file in it was put in another's place.
            seen = os.stat(self._directory).st_mtime_ns
            if seen != self._directory_seen:
                self._word.look()
                self._tagged_identity = self._identity()
                self._directory_seen = seen
        except OSError as error:
            raise StoreUnavailable(f"the store {self.path} cannot be reached: {error}") from error
        return self._tagged_identity, self._word.read(), self._unannounced

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on a connection, outside a transaction.

        Raises:
            StoreUnavailable: the file is gone, locked for too long or damaged.
        """
        with self._connection() as connection:
            return work(connection)

    def snapshot(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work`, which only reads, on one state of the database.

        Raises:
            StoreUnavailable: as `read`.
        """
        with self._connection() as connection, _transaction(connection, "DEFERRED"):
            return work(connection)

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in a transaction; when this returns it is on disk and every process knows.

        Raises:
            StoreUnavailable: as `read`, or the file cannot be written. Nothing was changed.
        """
        with self._connection() as connection:
            with _transaction(connection, "IMMEDIATE"):
                result = work(connection)
            if self._word is not None:
                self._word.bump()
            return result

    def backup(self, path: str) -> None:
        """Copy the database to a file that is for its owner alone."""
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be made: {error}") from error

        def work(connection: sqlite3.Connection) -> None:
            copy = sqlite3.connect(path)
            try:
                connection.backup(copy)
            finally:
                copy.close()

        self.read(work)

    def check(self) -> list[str]:
        """Return what SQLite's own check finds; empty for nothing."""
        found = self.read(lambda c: c.execute("PRAGMA integrity_check").fetchall())
        return [row[0] for row in found if row[0] != "ok"]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection of this process; one that failed is not lent again."""
        try:
            with _gate:
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
                self._close_connections()
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
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
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
            for suffix in ("", "-wal", "-shm", "-word"):
                _tighten(self.path + suffix)
            if self._announced:
                self._word = ChangeWord(f"{self.path}-word")
        except OSError as error:
            raise StoreUnavailable(f"the store {self.path} cannot be made: {error}") from error
        version = self.read(_version)
        newest = len(self._migrations)
        if version > newest:
            raise StoreUnavailable(
                f"the store {self.path} has schema {version}, and this version of "
                f"aigw-middleware knows up to {newest}; upgrade it"
            )
        if version < newest:
            self._migrate()

    def _migrate(self) -> None:
        self._turn_to_wal()

        def steps(connection: sqlite3.Connection) -> None:
            # Read again under the lock: another process may have done it meanwhile.
            for step in self._migrations[_version(connection) :]:
                for statement in step:
                    connection.execute(statement.format(**_TYPES))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(self._migrations)}")

        self.write(steps)

    def _turn_to_wal(self) -> None:
        """Turn the file to WAL; SQLite does not wait by itself for others that do it too."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self.read(lambda c: c.execute("PRAGMA journal_mode = WAL").fetchone())
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return

    def _start_polling(self) -> None:
        """Watch `data_version` in a thread of this process, made on first use."""
        with self._lock:
            if self._polling_pid == os.getpid():
                return
            self._polling_pid = os.getpid()
        thread = threading.Thread(target=self._poll, name="aigw-store-poll", daemon=True)
        thread.start()

    def _poll(self) -> None:
        """Count the changes that other connections make, until the database is closed."""
        seen: object = None
        while not self._stop.is_set():
            try:
                with _gate:
                    found: object = (self._identity(), self._data_version())
            except (sqlite3.Error, StoreUnavailable):
                # Whoever asks for a key is told; here it only counts as a change.
                found = None
            if found != seen:
                self._unannounced += 1
                seen = found
            self._stop.wait(POLL_SECONDS)

    def _data_version(self) -> int:
        """Return a number that moves with the commits of other connections than the watching one.

        It belongs to that connection, which is therefore never lent.
        """
        with self._lock:
            if self.closed:
                raise StoreUnavailable(f"the store {self.path} is closed")
            if self._watching is None:
                self._watching = self._connect()
            version: int = self._watching.execute("PRAGMA data_version").fetchone()[0]
            return version

    def _close_connections(self) -> None:
        """Close what is open here, but for what is lent; the lock is held."""
        if self._watching is not None:
            self._watching.close()
            self._watching = None
        while self._pool:
            self._pool.pop().close()

    def __del__(self) -> None:
        # Python closes them as well where nobody did, but warns of it from 3.13 on.
        self._close_connections()

    def _forget(self) -> None:
        """In a forked child: let go of what belongs to the parent, without closing it."""
        _inherited.extend(self._pool)
        if self._watching is not None:
            _inherited.append(self._watching)
        self._pool, self._watching = [], None
        self._pool_of = None
        self._lock = Lock()
        self._stop = threading.Event()


def _tighten(path: str) -> None:
    """Take from group and others what an older file (a copy made by hand) gives them."""
    try:
        mode = os.stat(path).st_mode & 0o777
    except FileNotFoundError:
        return
    if mode & 0o077:
        os.chmod(path, mode & 0o700)


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str) -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


# Kept for ever: collecting a connection would close it, and that drops the parent's locks.
_inherited: list[sqlite3.Connection] = []
