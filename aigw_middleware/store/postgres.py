"""The database of several machines: PostgreSQL.

Everything stands in the schema `aigw` of one database. Triggers count every change of a key in
the table `meta` and announce it (`NOTIFY`), whoever made it, so that each process learns of it in
milliseconds; a process that hears nothing asks for the count, and one that gets no answer trusts
nothing that it remembers for longer than a second.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from threading import Lock
from typing import Any, TypeVar

import psycopg
from psycopg import waiting
from psycopg_pool import ConnectionPool

from .._forks import in_child
from ..errors import StoreUnavailable
from .change import ChangeWord
from .database import Connection, Migrations
from .sqlite import SQLiteDatabase

T = TypeVar("T")

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 2.0
"""How long a request may wait for the records."""
POLL_SECONDS = 0.4
"""How often a process asks whether something has changed, also where nobody has said so."""
TRUST_SECONDS = 1.0
"""How long what was read counts after the last answer to that question."""
CONNECTIONS = 16
"""How many connections a process has at most."""

_SCHEMA = "aigw"
_CHANNEL = "aigw_changes"
_TYPES = {
    "serial": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "integer": "BIGINT",
    "bytes": "BYTEA",
    "table": "",
}
# Any numbers will do, so long as every version has the same.
_MIGRATING, _WRITING = 0x61696777_01, 0x61696777_02

_MARK = re.compile(r":([a-z_]+)").sub

_ANNOUNCING = (
    "INSERT INTO meta VALUES ('changes', '0')",
    f"""
    CREATE FUNCTION changed() RETURNS trigger LANGUAGE plpgsql SET search_path = {_SCHEMA} AS $$
    BEGIN
        UPDATE meta SET value = (value::bigint + 1)::text WHERE name = 'changes';
        PERFORM pg_notify('{_CHANNEL}', '');
        RETURN NULL;
    END $$
    """,  # noqa: S608  (our own names)
    *(
        f"CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION changed()"
        for table in ("keys", "provider_keys")
    ),
)


class Server:
    """The connections of this process to one PostgreSQL database.

    Made anew in a forked child: what was inherited is dropped and never used.

    Args:
        conninfo: libpq's parameters, as `psycopg.conninfo` reads them.
        name: how it is called in messages, without a password.
    """

    def __init__(self, conninfo: dict[str, Any], name: str) -> None:
        self.name = name
        options = " ".join(
            (
                conninfo.get("options") or "",
                f"-c search_path={_SCHEMA}",
                f"-c statement_timeout={round(ANSWER_SECONDS * 1000)}",
            )
        )
        self.parameters = {
            "application_name": "aigw-middleware",
            **conninfo,
            "options": options.strip(),
            "connect_timeout": 2,
            "autocommit": True,
            # Statements that are prepared do not get along with poolers between us and it.
            "prepare_threshold": None,
        }
        self.closed = False
        self._lock = Lock()
        self._pool: ConnectionPool[_Bounded] | None = None
        in_child(self._forget)

    @contextmanager
    def connection(self) -> Iterator[_Bounded]:
        """Lend a connection.

        Raises:
            StoreUnavailable: there is none, or the work on it failed.
        """
        pool = self._opened()
        try:
            connection = _lent(pool)
            try:
                with connection:
                    yield connection
            finally:
                pool.putconn(connection)
        except psycopg.Error as error:
            raise StoreUnavailable(f"{self.name} gave no answer: {_told(error)}") from None

    def alone(self) -> _Bounded:
        """Return a connection that is not of the pool."""
        return _Bounded.connect(**self.parameters)

    def close(self) -> None:
        """Close the connections of this process."""
        with self._lock:
            self.closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _opened(self) -> ConnectionPool[_Bounded]:
        with self._lock:
            if self.closed:
                raise StoreUnavailable(f"{self.name} is closed")
            if self._pool is None:
                self._pool = ConnectionPool(
                    kwargs=self.parameters,
                    connection_class=_Bounded,
                    min_size=0,
                    max_size=CONNECTIONS,
                    timeout=ANSWER_SECONDS,
                    reconnect_timeout=ANSWER_SECONDS,
                    name="aigw-store",
                    open=True,
                )
            return self._pool

    def _forget(self) -> None:
        if self._pool is not None:
            _inherited.append(self._pool)
        self._pool = None
        self._lock = Lock()


def _lent(pool: ConnectionPool[_Bounded]) -> _Bounded:
    """Return a connection of a pool that works.

    The pool's own check waits longer after each that does not. Where one has been cut (a restart,
    a firewall, a pooler) most have: then all that rest are given up at once.

    Raises:
        psycopg.Error: there is none in time.
    """
    until = time.monotonic() + ANSWER_SECONDS
    connection = pool.getconn()
    try:
        ConnectionPool.check_connection(connection)
    except psycopg.Error:
        connection.close()
        pool.putconn(connection)
        pool.drain()
        return pool.getconn(timeout=max(0.0, until - time.monotonic()))
    except BaseException:
        pool.putconn(connection)
        raise
    return connection


class PostgresDatabase:
    """Some tables of a PostgreSQL database.

    Args:
        server: the connections.
        part: which tables these are; each part has a version of its own.
        migrations: the steps to their schema.
        tables: what they are called.
        word: tells the other processes of the machine of a change; None where nobody asks.

    Raises:
        StoreUnavailable: the server gives no answer, or the schema is newer than this code.
    """

    def __init__(
        self,
        server: Server,
        part: str,
        migrations: Migrations,
        tables: tuple[str, ...],
        word: ChangeWord | None = None,
    ) -> None:
        self._server = server
        self._part = part
        self._migrations = migrations
        self._tables = tables
        self._word = word
        self._changes = 0
        self._heard = float("-inf")
        self._listening_pid = 0
        self._stop = threading.Event()
        self._lock = Lock()
        in_child(self._forget)
        self._migrate()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._server.name}>"

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._server.closed

    def close(self) -> None:
        """Close the connections of this process."""
        self._stop.set()
        self._server.close()

    def tag(self) -> Hashable:
        """Return what stays equal for as long as everything that was read is still true.

        It differs at once after a change of a process of this machine, within milliseconds
        after one of another machine, and is never the same twice where the server has not
        answered for a second.

        Raises:
            StoreUnavailable: the database is closed.
        """
        if self._server.closed:
            raise StoreUnavailable(f"{self._server.name} is closed")
        if self._word is None:
            raise AssertionError("the changes of this database are not announced")
        if self._listening_pid != os.getpid():
            self._start_listening()
        if time.monotonic() - self._heard > TRUST_SECONDS:
            return object()
        try:
            self._word.look()
            return self._word.read(), self._changes
        except OSError as error:
            raise StoreUnavailable(f"the state directory is gone: {error}") from error

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on a connection, outside a transaction.

        Raises:
            StoreUnavailable: the server gave no answer in time.
        """
        with self._server.connection() as connection:
            return work(_Portable(connection))

    def snapshot(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which only reads, on one state of the database.

        Raises:
            StoreUnavailable: as `read`.
        """
        with self._server.connection() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            # A whole table takes longer than a key.
            connection.execute("SET LOCAL statement_timeout = 0")
            with connection.patient():
                return work(_Portable(connection))

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction; when this returns it is kept, and this machine knows.

        Raises:
            StoreUnavailable: the server gave no answer in time. Nothing was changed, unless it
                was the commit that was not answered.
        """
        try:
            with self._server.connection() as connection, connection.transaction():
                if self._word is not None:
                    # One writer at a time, as the audit's chain needs it. A statement of its
                    # own: what comes after it sees what the writer before has committed.
                    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_WRITING,))
                return work(_Portable(connection))
        finally:
            # Also after an error: a commit without an answer may have happened.
            if self._word is not None:
                self._word.bump()

    def backup(self, path: str) -> None:
        """Write a whole copy to the SQLite file `path`, which opens as a store of its own.

        Raises:
            StoreUnavailable: it cannot be read or written.
        """
        path = os.path.abspath(path)
        if os.path.exists(path):
            raise StoreUnavailable(f"{path} is there already")
        copy = SQLiteDatabase(path, self._migrations, announced=False)
        try:
            self.snapshot(lambda source: self._copy(source, copy))
        except BaseException:
            copy.close()
            for part in ("", "-wal", "-shm"):  # half a copy would pass for a whole one
                with suppress(OSError):
                    os.unlink(path + part)
            raise
        copy.close()

    def check(self) -> list[str]:
        """Read every row of every table; return what cannot be read."""
        problems = []
        for table in self._tables:
            try:
                self.snapshot(lambda c, table=table: c.execute(f"SELECT * FROM {table}").fetchall())  # type: ignore[misc]  # noqa: S608
            except StoreUnavailable as error:
                problems.append(f"{table}: {error}")
        return problems

    def _copy(self, source: Connection, copy: SQLiteDatabase) -> None:
        for table in self._tables:
            found = source.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608  (our own names)
            if found:
                marks = ", ".join("?" * len(found[0]))
                statement = f"INSERT INTO {table} VALUES ({marks})"  # noqa: S608
                copy.write(lambda c, s=statement, rows=found: c.executemany(s, rows))  # type: ignore[misc]

    def _migrate(self) -> None:
        """Bring the schema up; several processes and machines may do it at once."""
        newest = len(self._migrations)
        with self._server.connection() as connection:
            if _version(connection, self._part) == newest:
                return
            with connection.transaction(), connection.patient():
                connection.execute("SET LOCAL statement_timeout = '60s'")
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS versions "
                    "(part TEXT PRIMARY KEY, version BIGINT NOT NULL)"
                )
                version = _version(connection, self._part)
                if version > newest:
                    raise StoreUnavailable(
                        f"{self._server.name} has schema {version}, and this version of "
                        f"aigw-middleware knows up to {newest}; upgrade it"
                    )
                self._run_steps(connection, version)

    def _run_steps(self, connection: _Bounded, version: int) -> None:
        for step in self._migrations[version:]:
            for statement in step:
                connection.execute(statement.format(**_TYPES).encode())
        if version == 0 and self._word is not None:
            for statement in _ANNOUNCING:
                connection.execute(statement.encode())
        connection.execute(
            "INSERT INTO versions VALUES (%s, %s) "
            "ON CONFLICT (part) DO UPDATE SET version = excluded.version",
            (self._part, len(self._migrations)),
        )

    def _start_listening(self) -> None:
        """Listen for changes in a thread of this process, made on first use."""
        with self._lock:
            if self._listening_pid == os.getpid():
                return
            self._listening_pid = os.getpid()
        thread = threading.Thread(target=self._listen, name="aigw-store-listen", daemon=True)
        thread.start()

    def _listen(self) -> None:
        told = False
        while not self._stop.is_set():
            try:
                with self._server.alone() as connection:
                    told = False
                    self._changes += 1  # what was missed in between
                    self._follow(connection)
            except psycopg.Error as error:
                if not told:
                    logger.error("%s tells of no changes: %s", self._server.name, _told(error))
                    told = True
            self._stop.wait(POLL_SECONDS)

    def _follow(self, connection: _Bounded) -> None:
        connection.execute(f"LISTEN {_CHANNEL}")
        statement = "SELECT value FROM meta WHERE name = 'changes'"
        seen: object = None
        while not self._stop.is_set():
            asked = time.monotonic()
            found = connection.execute(statement).fetchone()
            if found != seen:
                self._changes += 1
                seen = found
            self._heard = asked
            for _ in connection.notifies(timeout=POLL_SECONDS, stop_after=1):
                self._changes += 1

    def _forget(self) -> None:
        """In a forked child: begin anew."""
        self._lock = Lock()
        self._stop = threading.Event()
        self._heard = float("-inf")


class _Bounded(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which nothing waits longer than the bound.

    A server that stands still answers on the wire, so no timeout of TCP would ever end it.
    """

    _seconds: float = ANSWER_SECONDS

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Take off the bound, for work that no request waits for."""
        self._seconds = float("inf")
        try:
            yield
        finally:
            self._seconds = ANSWER_SECONDS

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        bounded = _until(gen, time.monotonic() + self._seconds)
        return super().wait(bounded, *args, **options)


def _until(gen: Generator[Any, Any, T], deadline: float) -> Generator[Any, Any, T]:
    try:
        waited_for = next(gen)
        while True:
            ready = yield waited_for
            if ready == waiting.Ready.NONE and time.monotonic() > deadline:
                raise psycopg.OperationalError("no answer in time")
            waited_for = gen.send(ready)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


class _Portable:
    """A connection that takes the tables' SQL."""

    def __init__(self, connection: _Bounded) -> None:
        self._connection = connection

    def execute(self, statement: str, parameters: Any = (), /) -> Any:
        """Run a statement."""
        return self._connection.execute(_translated(statement), parameters)

    def executemany(self, statement: str, parameters: Any, /) -> Any:
        """Run a statement for each of several sets of values."""
        cursor = self._connection.cursor()
        cursor.executemany(_translated(statement), list(parameters))
        return cursor


@lru_cache(256)
def _translated(statement: str) -> bytes:
    """Return a statement with psycopg's marks for values; no statement has a mark in a text."""
    return _MARK(r"%(\1)s", statement.replace("%", "%%").replace("?", "%s")).encode()


def _version(connection: _Bounded, part: str) -> int:
    found = connection.execute("SELECT to_regclass('versions')").fetchone()
    if found is None or found[0] is None:
        return 0
    row = connection.execute("SELECT version FROM versions WHERE part = %s", (part,)).fetchone()
    return 0 if row is None else int(row[0])


def _told(error: psycopg.Error) -> str:
    """Return what an error says in one line; its details would hold the values of a row."""
    return error.diag.message_primary or str(error).partition("\n")[0]


# Kept for ever: what the parent has open is the parent's to close.
_inherited: list[Any] = []
