"""Engines that hold the counts of limits."""

from __future__ import annotations

from threading import Lock

from .memory import MemoryCounters

__all__ = ["MemoryCounters", "open_counters", "resolve_counters"]

_shared: MemoryCounters | None = None
_shared_lock = Lock()


def open_counters(url: str | MemoryCounters) -> MemoryCounters:
    """Open a counters engine.

    Args:
        url: `memory:`, a new engine in the memory of this process; an engine that is open
            already is returned as it is.

    Raises:
        ValueError: the URL names no engine.
    """
    if isinstance(url, MemoryCounters):
        return url
    _check(url)
    return MemoryCounters()


def resolve_counters(counters: MemoryCounters | str | None) -> MemoryCounters:
    """Return the engine that an option `counters` stands for.

    None is a new one of the layer's own; the URL `memory:` is one for the whole process, so
    that layers which name the same URL share their counts.
    """
    global _shared
    if counters is None:
        return MemoryCounters()
    if not isinstance(counters, str):
        if not hasattr(counters, "reserve"):
            raise ValueError(f"counters: {type(counters).__name__} is no engine and no URL")
        return counters
    _check(counters)
    with _shared_lock:
        if _shared is None:
            _shared = MemoryCounters()
        return _shared


def _check(url: object) -> None:
    if url != "memory:":
        # A URL may hold a password: only its scheme is repeated.
        scheme = url.partition(":")[0] if isinstance(url, str) else type(url).__name__
        raise ValueError(f"counters: {scheme!r} is no engine; memory: is")
