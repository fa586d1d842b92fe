"""What a store's tables ask of the database that they are in.

The tables write SQL that SQLite and PostgreSQL both understand, with `?` or `:name` for values;
what differs (types, locks, how a change is noticed) is each database's own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Cursor(Protocol):
    """What a statement gave."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""

    def fetchone(self) -> Any:
        """Return the next row; None where there is none."""

    def fetchall(self) -> list[Any]:
        """Return the rows that are left."""

    def __iter__(self) -> Iterator[Any]:
        """Yield the rows that are left."""


class Connection(Protocol):
    """A connection, lent for one piece of work."""

    def execute(self, statement: str, parameters: Any = ..., /) -> Cursor:
        """Run a statement."""

    def executemany(self, statement: str, parameters: Any, /) -> Cursor:
        """Run a statement for each of several sets of values."""


class Database(Protocol):
    """A database of records, for several threads, processes and forks."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""

    def tag(self) -> Hashable:
        """Return what stays equal while everything that was read is still true."""

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` outside a transaction."""

    def snapshot(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which only reads, on one unchanging state of the database."""

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction; when this returns it is kept and every process knows."""

    def backup(self, path: str) -> None:
        """Write a whole copy to the SQLite file `path`."""

    def check(self) -> list[str]:
        """Return what the database finds wrong with itself; empty for nothing."""

    def close(self) -> None:
        """Close the connections of this process."""


Migrations = Sequence[Sequence[str]]
"""Each step from an empty database to the present schema, as statements.

What the two databases call differently stands in braces: `{serial}`, a primary key that counts by
itself and gives no number twice; `{integer}`, 64 bits; `{bytes}`; `{table}`, what ends a table.
"""
