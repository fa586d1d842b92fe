"""Records at rest: gateway keys."""

from __future__ import annotations

import os
from threading import Lock
from urllib.parse import unquote, urlsplit

from .sqlite import SQLiteStore

__all__ = ["SQLiteStore", "open_store", "resolve_store"]

_opened: dict[str, SQLiteStore] = {}
_lock = Lock()


def open_store(url: str) -> SQLiteStore:
    """Open a store of records; the same one twice in a process is the same object.

    Args:
        url: `sqlite:///aigw.db` (three slashes: relative to the working directory) or
            `sqlite:////var/lib/aigw/aigw.db` (four: absolute), as in SQLAlchemy. The file is
            made, with access for its owner alone, where there is none.

    Raises:
        ValueError: the URL names no store.
        StoreUnavailable: the store cannot be opened, or its schema is newer than this code.
    """
    path = os.path.realpath(_path(url))
    with _lock:
        store = _opened.get(path)
        if store is None or store.closed:
            store = _opened[path] = SQLiteStore(path)
        return store


def resolve_store(store: SQLiteStore | str) -> SQLiteStore:
    """Return the store that an option stands for: an open one, or the URL of one."""
    return open_store(store) if isinstance(store, str) else store


def _path(url: object) -> str:
    prefix = "sqlite:///"
    if not isinstance(url, str) or not url.startswith(prefix):
        # A URL may hold a password: only its scheme is repeated.
        scheme = urlsplit(url).scheme if isinstance(url, str) else type(url).__name__
        raise ValueError(f"store: {scheme!r} is no store; write sqlite:///aigw.db")
    path = unquote(url.removeprefix(prefix))
    if not path or "?" in path or path == ":memory:":
        raise ValueError("store: a sqlite URL names a file, without parameters")
    return path
