"""What a forked child must do anew, for objects that hold a lock, a thread or a connection."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from threading import Condition, Lock
from weakref import WeakMethod


class ForkGate:
    """Work that no fork may cut in two: a library's own lock would stay taken in the child.

    As many threads as want may be within at a time; a fork waits until none is.
    """

    def __init__(self, patience: float = 5.0) -> None:
        self._patience = patience
        self._anew()
        os.register_at_fork(
            before=self._close, after_in_parent=self._open, after_in_child=self._anew
        )

    def _anew(self) -> None:
        self._condition = Condition(Lock())
        self._within = 0
        self._forking = False

    def __enter__(self) -> None:
        with self._condition:
            while self._forking:
                self._condition.wait(self._patience)
            self._within += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._condition:
            self._within -= 1
            if not self._within:
                self._condition.notify_all()

    def _close(self) -> None:
        with self._condition:
            self._forking = True
            self._condition.wait_for(lambda: not self._within, self._patience)

    def _open(self) -> None:
        with self._condition:
            self._forking = False
            self._condition.notify_all()


_methods: dict[int, WeakMethod[Callable[[], None]]] = {}
_next_number = count().__next__


def in_child(method: Callable[[], None]) -> None:
    """Have a bound method called in every forked child, for as long as its object lives."""
    number = _next_number()
    _methods[number] = WeakMethod(method, lambda _: _methods.pop(number, None))


def _call_all() -> None:
    for known in list(_methods.values()):
        method = known()
        if method is not None:
            method()


os.register_at_fork(after_in_child=_call_all)
