"""From a URL to the databases of a store."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import unquote

from ..errors import StoreUnavailable
from . import usage
from .schema import MIGRATIONS, TABLES
from .sqlite import SQLiteDatabase
from .store import USAGE_SUFFIX, Store

if TYPE_CHECKING:
    from collections.abc import Callable

_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql", "postgres")
_VARIABLES = {
    "user": "PGUSER", "host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT",
    "dbname": "PGDATABASE", "service": "PGSERVICE",
}  # fmt: skip
_HOW = "write sqlite:///aigw.db or postgresql://user@host/database"


def locate(url: object) -> tuple[str, Callable[[str | None], Store]]:
    """Return what names the store of a URL in this process, and what opens it with a secret.

    Raises:
        ValueError: the URL names no store.
    """
    if isinstance(url, str) and url.startswith(_SQLITE):
        path = os.path.realpath(_path(url))
        return path, lambda secret: _open_sqlite(path, secret)
    # A URL may hold a password: only its scheme is repeated.
    scheme = url.partition(":")[0] if isinstance(url, str) else type(url).__name__
    if not isinstance(url, str) or scheme not in _POSTGRES:
        raise ValueError(f"store: {scheme!r} is no store; {_HOW}")
    parameters = _parameters(url)
    name = _name(parameters)
    return name, lambda secret: _open_postgres(parameters, name, secret)


def _path(url: str) -> str:
    path = unquote(url.removeprefix(_SQLITE))
    if not path or "?" in path or path == ":memory:":
        raise ValueError("store: a sqlite URL names a file, without parameters")
    return path


def _open_sqlite(path: str, secret: str | None) -> Store:
    database = SQLiteDatabase(path)
    used = SQLiteDatabase(
        f"{path}{USAGE_SUFFIX}", usage.MIGRATIONS, synchronous="NORMAL", announced=False
    )
    # Not "-journal": a file of that name is SQLite's own.
    return Store(database, usage.UsageStore(used, f"{path}-spool"), secret)


def _parameters(url: str) -> dict[str, object]:
    try:
        from psycopg import Error, conninfo
    except ModuleNotFoundError:
        raise ValueError(
            "store: postgresql needs pip install 'aigw-middleware[postgres]'"
        ) from None
    try:
        return dict(conninfo.conninfo_to_dict(url))
    except Error:
        # libpq repeats the part that it cannot read, and that may be of the password.
        raise ValueError(f"store: the PostgreSQL URL cannot be read; {_HOW}") from None


def _name(parameters: dict[str, object]) -> str:
    """Return what names a database, without password and options; libpq's variables count."""

    def found(name: str) -> object:
        return parameters.get(name) or os.environ.get(_VARIABLES[name]) or ""

    user = f"{found('user')}@" if found("user") else ""
    port = f":{found('port')}" if found("port") else ""
    host = "+".join(str(part) for part in (found("host"), found("hostaddr")) if part)
    service = f"?service={found('service')}" if found("service") else ""
    return f"postgresql://{user}{host}{port}/{found('dbname')}{service}"


def _open_postgres(parameters: dict[str, object], name: str, secret: str | None) -> Store:
    from .change import ChangeWord
    from .postgres import PostgresDatabase, Server

    state = _state_directory(name)
    try:
        os.makedirs(state, mode=0o700, exist_ok=True)
        word = ChangeWord(os.path.join(state, "word"))
    except OSError as error:
        raise StoreUnavailable(
            f"{state} cannot be used: {error.strerror}; AIGW_STATE names another directory"
        ) from error
    server = Server(parameters, name)
    database = PostgresDatabase(server, "records", MIGRATIONS, TABLES, word)
    used = PostgresDatabase(server, "usage", usage.MIGRATIONS, usage.TABLES)
    return Store(database, usage.UsageStore(used, os.path.join(state, "spool")), secret)


def state_directory(url: str) -> str:
    """Return where the processes of this machine keep what they share beside a store.

    Raises:
        ValueError: the URL names no store.
    """
    if url.startswith(_SQLITE):
        return f"{os.path.realpath(_path(url))}-state"
    return _state_directory(_name(_parameters(url)))


def _state_directory(name: str) -> str:
    """Return where the processes of this machine keep what they share about a database."""
    base = os.environ.get("AIGW_STATE")
    if not base:
        home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        base = os.path.join(home, "aigw-middleware")
    return os.path.join(os.path.abspath(base), sha256(name.encode()).hexdigest()[:16])
