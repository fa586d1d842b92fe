"""Usage and `last_used`, in a database of their own.

Apart from the records, so that a row that is booked makes nobody read the keys anew.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from .._forks import in_child
from ..errors import StoreUnavailable
from ..usage.figures import NANO, figures_of
from ..usage.journal import Journal, is_abandoned, journals, read_rows
from . import rows
from .database import Connection, Database, Migrations

logger = logging.getLogger(__name__)

MERGE_SECONDS = 5.0
WAIT_SECONDS = 2.0
_MOST_READ = 8 * 1024 * 1024
_USED, _ROW, _ONCE = "k", "u", "o"
_AT_ONCE = 400
"""Ids in one statement: SQLite takes 999 values in some builds."""

MIGRATIONS: Migrations = (
    (
        """
        CREATE TABLE usage (
            number {serial},
            at {integer} NOT NULL,
            request_id TEXT NOT NULL,
            key_id TEXT,
            provider TEXT,
            model TEXT,
            path TEXT NOT NULL,
            status {integer} NOT NULL,
            input_tokens {integer} NOT NULL,
            output_tokens {integer} NOT NULL,
            cached_input_tokens {integer} NOT NULL,
            reasoning_tokens {integer} NOT NULL,
            cost {integer},
            duration {integer} NOT NULL,
            first_byte {integer}
        ) {table}
        """,
        "CREATE INDEX usage_at ON usage (at)",
        "CREATE TABLE last_used (key_id TEXT PRIMARY KEY, at {integer} NOT NULL) {table}",
        "CREATE TABLE journals (name TEXT PRIMARY KEY, read {integer} NOT NULL) {table}",
    ),
    ("CREATE TABLE counted_once (id TEXT PRIMARY KEY, at {integer} NOT NULL) {table}",),
)

TABLES = ("usage", "last_used", "journals", "counted_once")

_DAY = 86_400 * 1_000_000
_BY = {"key": "key_id", "model": "model", "provider": "provider", "day": f"at / {_DAY}"}


class UsageStore:
    """Books what requests have used, and sums it up; `store.usage`.

    Args:
        database: where it is booked.
        spool: the directory of this machine in which rows wait to be moved there.
    """

    def __init__(self, database: Database, spool: str) -> None:
        self._database = database
        self._journal = Journal(spool)
        self._merger_pid = 0
        self._stop = threading.Event()
        self._last_seconds: dict[str, int] = {}
        self._merge_fds: set[int] = set()
        in_child(self._forget)

    def book(
        self,
        *,
        request_id: str,
        key_id: str | None,
        provider: str | None,
        model: str | None,
        path: str,
        status: int,
        usage: Any,
        duration: float,
        first_byte: float | None,
        once: str | None = None,
    ) -> None:
        """Book one request; when this returns its row outlives the process.

        Args:
            request_id: the request's id.
            key_id: the key that it came with; None for none.
            provider: who answered; None for a plain URL.
            model: what was asked for; None where the path names none.
            path: the path that was asked for, without the query.
            status: the answer's status.
            usage: a `Usage`, or any object like it; None where nothing is known.
            duration: seconds from the request's coming to its answer's end.
            first_byte: seconds until the provider's first byte; None where there was none.
            once: the id of what has used it, where others may tell of the same: of all rows with
                one id the first counts, and of the others nothing but that they were requests.

        Raises:
            OSError: the row cannot be kept.
        """
        row = [
            _ROW if once is None else _ONCE,
            rows.now(),
            _kept(request_id),
            None if key_id is None else _kept(key_id),
            None if provider is None else _kept(provider),
            None if model is None else _kept(model),
            _kept(path),
            status,
            *figures_of(usage),
            round(duration * 1_000_000),
            None if first_byte is None else round(first_byte * 1_000_000),
        ]
        if once is not None:
            row.append(_kept(once))
        self._append(row)

    def touch(self, key_id: str) -> None:
        """Remember that a key has let a request in: once a second and process at most."""
        second = int(time.time())
        if self._last_seconds.get(key_id) == second:
            return
        self._last_seconds[key_id] = second
        if len(self._last_seconds) > 100_000:
            self._last_seconds.clear()
        try:
            self._append([_USED, key_id, second])
        except OSError as error:
            # A key that is good lets the request in, also where the disk is full.
            logger.error("last_used cannot be kept: %s", error)

    def last_used(self, key_ids: Sequence[str]) -> dict[str, datetime]:
        """Return when each of the keys last let a request in; a key without is left out."""
        if not key_ids:
            return {}
        self._merge_a_little()
        marks = ", ".join("?" * len(key_ids))
        statement = f"SELECT key_id, at FROM last_used WHERE key_id IN ({marks})"  # noqa: S608
        found = self._database.read(lambda c: c.execute(statement, list(key_ids)).fetchall())
        moments = ((key_id, rows.from_microseconds(at * 1_000_000)) for key_id, at in found)
        return {key_id: moment for key_id, moment in moments if moment is not None}

    def totals(
        self, by: str = "key", since: datetime | None = None, until: datetime | None = None
    ) -> list[dict[str, Any]]:
        """Sum up what was used.

        Args:
            by: `key`, `model`, `provider` or `day` (UTC).
            since: from when on, an aware datetime; None from the beginning.
            until: before when; None until now.

        Returns:
            A dict for each: what it is summed up by under that name, `requests`,
            `input_tokens`, `output_tokens`, `cached_input_tokens`, and `cost` in USD (None
            where nothing is known of it); the most requests first, days in their order.

        Raises:
            ValueError: an argument is wrong.
            StoreUnavailable: the store gave no answer.
        """
        if by not in _BY:
            raise ValueError(f"by: {by!r} is none of {', '.join(_BY)}")
        span = (_moment("since", since, 0), _moment("until", until, rows.LARGEST))
        self.merge()
        statement = (
            f"SELECT {_BY[by]}, COUNT(*), SUM(input_tokens), SUM(output_tokens), "  # noqa: S608
            "SUM(cached_input_tokens), SUM(cost) FROM usage WHERE at >= ? AND at < ? "
            "GROUP BY 1"
        )
        found = self._database.read(lambda c: c.execute(statement, span).fetchall())
        if by == "day":
            found = [(rows.day(row[0] * _DAY), *row[1:]) for row in sorted(found)]
        else:
            found.sort(key=lambda row: (-row[1], row[0] or ""))
        return [_sum(by, row) for row in found]

    def backup(self, path: str) -> None:
        """Write a copy of what is booked to the SQLite file `path`."""
        self.merge()
        self._database.backup(path)

    def check(self) -> list[str]:
        """Return what the database finds wrong with itself; empty for nothing."""
        return self._database.check()

    def merge(self) -> None:
        """Move the journals of all processes into the database.

        Raises:
            StoreUnavailable: another process holds them for too long, or the database gives no
                answer; nothing is lost.
        """
        if not os.path.isdir(self._journal.directory):
            return
        with self._merging():
            for path in journals(self._journal.directory):
                while self._merge_one(path):
                    pass

    def _merge_a_little(self) -> None:
        """Merge, unless another process does it already; it is not waited for."""
        if not os.path.isdir(self._journal.directory):
            return
        with self._merging(wait=0.0) as mine:
            deadline = time.monotonic() + WAIT_SECONDS / 2
            for path in journals(self._journal.directory) if mine else ():
                while time.monotonic() < deadline and self._merge_one(path):
                    pass

    def close(self) -> None:
        """Let go of the journal and the connections of this process."""
        self._stop.set()
        self._journal.close()
        self._database.close()

    def _append(self, row: list[Any]) -> None:
        if self._merger_pid != os.getpid():
            self._start_merging()
        self._journal.append(row)

    def _merge_one(self, path: Any) -> bool:
        """Move a part of one journal; True where there may be more of it."""
        try:
            # Asked first: what an abandoned file holds now is all that it will ever hold.
            abandoned = is_abandoned(path)

            def work(connection: Connection) -> tuple[int, int]:
                known = connection.execute(
                    "SELECT read FROM journals WHERE name = ?", (path.name,)
                ).fetchone()
                start = known[0] if known else 0
                found, end = read_rows(path, start, _MOST_READ)
                _insert(connection, [row for row in found if _is_sound(row)])
                connection.execute(
                    "INSERT INTO journals VALUES (?, ?) "
                    "ON CONFLICT (name) DO UPDATE SET read = excluded.read",
                    (path.name, end),
                )
                return start, end

            start, end = self._database.write(work)
            if start == end and abandoned:
                path.unlink()
                self._database.write(
                    lambda c: c.execute("DELETE FROM journals WHERE name = ?", (path.name,))
                )
        except OSError as error:
            raise StoreUnavailable(f"a journal cannot be read: {error}") from error
        return end > start

    @contextmanager
    def _merging(self, wait: float = WAIT_SECONDS) -> Iterator[bool]:
        """Be the one process of the machine that merges; without a wait, tell whether it is."""
        lock = os.path.join(self._journal.directory, "lock")
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailable(f"the journals cannot be reached: {error}") from error
        self._merge_fds.add(fd)
        try:
            deadline = time.monotonic() + wait
            locked = _try_lock(fd)
            while wait and not locked:
                if time.monotonic() > deadline:
                    raise StoreUnavailable("another process holds the journals")
                time.sleep(0.005)
                locked = _try_lock(fd)
            yield locked
        finally:
            self._merge_fds.discard(fd)
            os.close(fd)

    def _start_merging(self) -> None:
        self._merger_pid = os.getpid()
        thread = threading.Thread(target=self._keep_merging, name="aigw-usage", daemon=True)
        thread.start()

    def _keep_merging(self) -> None:
        while not self._stop.wait(MERGE_SECONDS):
            try:
                self.merge()
            except StoreUnavailable as error:
                logger.error("usage waits in the journal: %s", error)

    def _forget(self) -> None:
        """In a forked child: begin a journal of its own."""
        self._journal.forget()
        while self._merge_fds:
            # The parent's lock lives as long as any copy of its descriptor.
            os.close(self._merge_fds.pop())
        self._stop = threading.Event()
        self._last_seconds = {}


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sum(by: str, row: Sequence[Any]) -> dict[str, Any]:
    # PostgreSQL sums 64 bit integers to a Decimal.
    names = ("requests", "input_tokens", "output_tokens", "cached_input_tokens")
    figures = {name: int(value) for name, value in zip(names, row[1:5], strict=True)}
    return {by: row[0], **figures, "cost": None if row[5] is None else int(row[5]) / NANO}


_NUMBERS = (int,) * 5
_SHAPES: dict[tuple[type, ...], str] = {
    (str, str, int): _USED,
    (str, int, str, str, str, str, str, *_NUMBERS, int, int, int): _ROW,
    (str, int, str, str, str, str, str, *_NUMBERS, type(None), int, int): _ROW,
}
"""What most rows are made of, and how they begin; any other one is looked at more closely."""


def _is_sound(row: list[Any]) -> bool:
    """Whether a row is of the form that was written; one that is not would stop all others."""
    if row and _SHAPES.get(tuple(map(type, row))) == row[0]:
        return True
    if row[:1] == [_USED]:
        kinds: tuple[Any, ...] = (str, str, int)
    else:
        text = (str, type(None))
        number = (int, type(None))
        kinds = (str, int, str, text, text, text, str, *(int,) * 5, number, int, number)
        if row[:1] == [_ONCE]:
            kinds = (*kinds, str)
    sound = len(row) == len(kinds) and all(map(isinstance, row, kinds))
    if not sound:
        logger.error("a row of the journal is none of ours and was left out")
    return sound


def _insert(connection: Connection, found: list[list[Any]]) -> None:
    used: dict[str, int] = {}
    for row in found:
        if row[0] == _USED:
            used[row[1]] = max(row[2], used.get(row[1], 0))
    booked = [row[1:] for row in found if row[0] == _ROW]
    told = [row[1:] for row in found if row[0] == _ONCE]
    new = _new_ids(connection, {row[-1]: row[0] for row in reversed(told)})
    for *figures, id_ in told:
        booked.append(figures if id_ in new else _uncounted(figures))
        new.discard(id_)
    connection.executemany(
        "INSERT INTO last_used VALUES (?, ?) ON CONFLICT (key_id) DO UPDATE SET at = "
        "CASE WHEN excluded.at > last_used.at THEN excluded.at ELSE last_used.at END",
        # In one order everywhere, so that two machines that merge never wait for each other.
        sorted(used.items()),
    )
    connection.executemany(
        "INSERT INTO usage (at, request_id, key_id, provider, model, path, status, input_tokens, "
        "output_tokens, cached_input_tokens, reasoning_tokens, cost, duration, first_byte) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        booked,
    )


def _new_ids(connection: Connection, ids: dict[str, int]) -> set[str]:
    """Keep ids, each with its time; return those that were not there.

    In one order everywhere, so that two machines that merge never wait for each other.
    """
    new: set[str] = set()
    ordered = sorted(ids.items())
    for start in range(0, len(ordered), _AT_ONCE):
        part = ordered[start : start + _AT_ONCE]
        marks = ", ".join("(?, ?)" for _ in part)
        kept = connection.execute(
            f"INSERT INTO counted_once VALUES {marks} "  # noqa: S608
            "ON CONFLICT (id) DO NOTHING RETURNING id",
            [value for pair in part for value in pair],
        )
        new.update(row[0] for row in kept.fetchall())
    return new


def _uncounted(figures: list[Any]) -> list[Any]:
    """Return a row of a request that told again what was counted before."""
    return [*figures[:7], 0, 0, 0, 0, None, *figures[12:]]


def _kept(text: str) -> str:
    """Return a text of a client's as any database takes it: one that none takes would stop all."""
    if len(text) <= 512 and text.isascii() and "\0" not in text:
        return text
    return text[:512].encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _moment(option: str, moment: datetime | None, default: int) -> int:
    if moment is None:
        return default
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError(f"{option}: must be a datetime with a time zone, or None")
    return rows.to_microseconds(moment)
