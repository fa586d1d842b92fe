"""Engines that hold the counts of limits."""

from __future__ import annotations

import os
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .engine import Engine
from .memory import MemoryCounters

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Engine", "MemoryCounters", "open_counters", "resolve_counters"]

_MEMORY = "memory:"
_opened: dict[str, Engine] = {}
_lock = Lock()


def open_counters(url: str | Engine) -> Engine:
    """Open a counters engine; the same shared one twice in a process is the same object.

    Args:
        url: `memory:`, a new engine in the memory of this process; `lmdb:///run/aigw` for all
            processes of this machine, without a server, extra `lmdb` (with three slashes relative
            to the working directory, with four absolute); `redis://host:6379/0`, `rediss://` or
            `unix://` for many machines, extra `redis` (Redis 6.2 and up, Valkey, or any node of a
            cluster of these). An engine that is open already is returned as it is.

    Raises:
        ValueError: the URL names no engine, or its extra is not installed.
        StoreUnavailable: its directory cannot be used.
    """
    if not isinstance(url, str) and hasattr(url, "reserve"):
        return url
    if url == _MEMORY:
        return MemoryCounters()
    name, opening = _locate(url)
    with _lock:
        known = _opened.get(name)
        if known is None or getattr(known, "closed", False):
            known = _opened[name] = opening()
        return known


def resolve_counters(counters: Engine | str | None) -> Engine:
    """Return the engine that an option `counters` stands for.

    None is a new one of the layer's own; the URL `memory:` is one for the whole process, so
    that layers which name the same URL share their counts.
    """
    if counters is None:
        return MemoryCounters()
    if counters == _MEMORY:
        with _lock:
            return _opened.setdefault(_MEMORY, MemoryCounters())
    if not isinstance(counters, str) and not hasattr(counters, "reserve"):
        raise ValueError(f"counters: {type(counters).__name__} is no engine and no URL")
    return open_counters(counters)


def _locate(url: object) -> tuple[str, Callable[[], Engine]]:
    scheme = url.partition(":")[0] if isinstance(url, str) else type(url).__name__
    if isinstance(url, str) and url.startswith("lmdb:///"):
        path = os.path.realpath(unquote(url.removeprefix("lmdb:///")))
        return f"lmdb {path}", lambda: _lmdb(path)
    if isinstance(url, str) and scheme in ("redis", "rediss", "unix"):
        return url, lambda: _redis(url)
    # A URL may hold a password: only its scheme is repeated.
    raise ValueError(
        f"counters: {scheme!r} is no engine; memory:, lmdb:///DIR and redis://HOST are"
    )


def _lmdb(path: str) -> Any:
    try:
        from .lmdb import LMDBCounters
    except ModuleNotFoundError:
        raise ValueError("counters: lmdb needs pip install 'aigw-middleware[lmdb]'") from None
    return LMDBCounters(path)


def _redis(url: str) -> Any:
    try:
        from .redis import RedisCounters
    except ModuleNotFoundError:
        raise ValueError("counters: redis needs pip install 'aigw-middleware[redis]'") from None
    return RedisCounters(url)


def _new_lock() -> None:
    global _lock
    _lock = Lock()


os.register_at_fork(after_in_child=_new_lock)
