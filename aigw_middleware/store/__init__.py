"""Records at rest: gateway keys and, sealed, the keys of providers."""

from __future__ import annotations

import hmac
import os
from hashlib import sha256
from threading import Lock

from .opening import locate
from .store import Store

__all__ = ["Store", "open_store", "resolve_store"]

_opened: dict[str, tuple[Store, bytes]] = {}
_lock = Lock()


def open_store(url: str | Store, *, secret: str | None = None) -> Store:
    """Open a store of records; the same one twice in a process is the same object.

    Args:
        url: `sqlite:///aigw.db` (three slashes: relative to the working directory) or
            `sqlite:////var/lib/aigw/aigw.db` (four: absolute), as in SQLAlchemy. The file is
            made, with access for its owner alone, where there is none. Or
            `postgresql://user@host/database` with libpq's parameters (a password is better
            kept in `PGPASSWORD` or `PGPASSFILE`), for gateways on several machines: all
            stands in its schema `aigw`, which is made where there is none. What the processes
            of one machine share then lies in the directory `AIGW_STATE`, by default
            `~/.local/state/aigw-middleware`. A store that is open already is returned as it is.
        secret: what seals the keys of providers, at least 16 characters; by default the
            environment variable `AIGW_SECRET`. Without one a store holds gateway keys only.

    Raises:
        ValueError: the URL names no store, the secret is too short, or the store is open with
            another one.
        StoreUnavailable: the store cannot be opened, or its schema is newer than this code.
    """
    if isinstance(url, Store):
        return url
    name, opening = locate(url)
    if secret is None:
        secret = os.environ.get("AIGW_SECRET") or None
    if secret is not None and not isinstance(secret, str):
        raise ValueError(f"secret: must be a text, not {type(secret).__name__}")
    mark = sha256((secret or "").encode()).digest()
    with _lock:
        known = _opened.get(name)
        if known is not None and not known[0].closed:
            if not hmac.compare_digest(known[1], mark):
                raise ValueError("secret: the store is open in this process with another one")
            return known[0]
        store = opening(secret)
        _opened[name] = (store, mark)
        return store


def resolve_store(store: Store | str) -> Store:
    """Return the store that an option stands for: an open one, or the URL of one."""
    if isinstance(store, str):
        return open_store(store)
    if not isinstance(store, Store):
        raise ValueError(f"store: {type(store).__name__} is no store and no URL")
    return store


def _new_lock() -> None:
    global _lock
    _lock = Lock()


os.register_at_fork(after_in_child=_new_lock)
