"""Locks and threads of the operating system, also where gevent has patched Python's.

For what is held for microseconds and never waits for anything else: a greenlet lock would need
the hub of the thread that took it.
"""

from __future__ import annotations

import _thread
import sys
import time
from collections.abc import Callable
from typing import Any


def _original(module: str, name: str, now: Any) -> Any:
    monkey = sys.modules.get("gevent.monkey")
    return now if monkey is None else monkey.get_original(module, name)


def allocate_lock() -> _thread.LockType:
    """Return a lock of the operating system."""
    lock: _thread.LockType = _original("_thread", "allocate_lock", _thread.allocate_lock)()
    return lock


def start_thread(function: Callable[[], None]) -> None:
    """Run `function` in a thread of the operating system, which ends with the process."""
    _original("_thread", "start_new_thread", _thread.start_new_thread)(function, ())


def sleep(seconds: float) -> None:
    """Sleep without giving other greenlets their turn."""
    _original("time", "sleep", time.sleep)(seconds)
