"""Renews the slots that the requests of this process hold, in one thread.

A slot of `"8 concurrent"` is a lease: it ends by itself when nobody renews it, so that a process
that dies leaves nothing taken. For engines without a connection that is a native thread also
where gevent has patched the threads: a greenlet that computes would lose the leases of all.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .. import _native
from ..errors import StoreUnavailable

if TYPE_CHECKING:
    from .engine import Engine, Settlement

logger = logging.getLogger(__name__)

RENEW_SECONDS = 8.0
"""How often; three renewals may fail before a lease of 30 s ends."""
_AT_ONCE = 100


class Held(Protocol):
    """What is renewed."""

    engine: Engine

    def renewals(self) -> list[Settlement]:
        """Return what renews it."""

    def renewed(self, *, known: bool) -> None:
        """Be told that it was, or that it had expired."""


class Keeper:
    """Renews the holdings of engines of one kind.

    Args:
        start: runs a function beside the requests.
        pause: waits for so many seconds there.
    """

    def __init__(
        self, start: Callable[[Callable[[], None]], None], pause: Callable[[float], None]
    ) -> None:
        self._start = start
        self._pause = pause
        self._reset()

    def _reset(self) -> None:
        self._held: weakref.WeakValueDictionary[int, Held] = weakref.WeakValueDictionary()
        self._started = False
        # What nobody has closed; appending to a deque takes no lock.
        self.abandoned: deque[tuple[Engine, list[Settlement]]] = deque()
        self._lock = _native.allocate_lock()

    def add(self, held: Held) -> None:
        """Renew what is held until it is removed or nobody knows it any more."""
        with self._lock:
            self._held[id(held)] = held
            start, self._started = not self._started, True
        if start:
            self._start(self._run)

    def remove(self, held: Held) -> None:
        """Renew it no longer."""
        with self._lock:
            self._held.pop(id(held), None)

    def drain(self) -> None:
        """Settle what was held for requests that nobody has closed."""
        while self.abandoned:
            try:
                engine, settlements = self.abandoned.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                engine.settle(settlements)
            except StoreUnavailable as error:
                logger.error("units of a forgotten request stay reserved: %s", error)

    def renew(self) -> None:
        """Renew everything once."""
        self.drain()
        with self._lock:
            held = list(self._held.values())
        for engine in {id(one.engine): one.engine for one in held}.values():
            _renew(engine, [one for one in held if one.engine is engine])

    def _run(self) -> None:
        while True:
            self._pause(RENEW_SECONDS)
            self.renew()


def _renew(engine: Engine, held: list[Held]) -> None:
    # Some at a time, so that no step keeps others waiting for long.
    for start in range(0, len(held), _AT_ONCE):
        renewals = [(one, one.renewals()) for one in held[start : start + _AT_ONCE]]
        try:
            known = iter(engine.settle([one for _, several in renewals for one in several]))
        except StoreUnavailable as error:
            logger.error("slots could not be renewed: %s", error)
            continue
        for one, several in renewals:
            answers = [next(known) for _ in several]
            one.renewed(known=all(answers))


def _start_greenlet_or_thread(function: Callable[[], None]) -> None:
    threading.Thread(target=function, name="aigw-slots", daemon=True).start()


_of_memory = Keeper(_native.start_thread, _native.sleep)
_of_connections = Keeper(_start_greenlet_or_thread, time.sleep)


def keeper_of(engine: Engine) -> Keeper:
    """Return what renews the slots of an engine."""
    return _of_memory if engine.native else _of_connections


def _reset_all() -> None:
    _of_memory._reset()
    _of_connections._reset()


os.register_at_fork(after_in_child=_reset_all)
