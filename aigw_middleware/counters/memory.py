"""Counts in the memory of one process: exact over all its threads, gone with it."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple

from ..limits import Limit
from ..limits.window import SLOTS, Window, slot_of


class Demand(NamedTuple):
    """Units that a request wants of one limit.

    Attributes:
        bucket: whose count it is, together with what distinguishes the limit.
        limit: the limit.
        units: how many, at least 1 and at most the limit's amount.
    """

    bucket: str
    limit: Limit
    units: int


class Outcome(NamedTuple):
    """What became of one demand.

    Attributes:
        remaining: the units that are left, after this demand where it was admitted.
        reset: nanoseconds until units come back; 0 where none are counted.
        wait: nanoseconds until the demand would fit; 0 where it did.
    """

    remaining: int
    reset: int
    wait: int


class MemoryCounters:
    """Counts in the memory of this process.

    All demands of a request are decided in one step under one lock, which is held for a few
    microseconds. A bucket whose window has passed is dropped while others are counted, so the
    memory is bounded by the number of buckets in use.

    Args:
        clock: returns nanoseconds that never step back; for tests.
    """

    shared = False
    """Whether other processes count in the same engine."""

    def __init__(self, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._lock = Lock()
        # A table for each length of window, in the order of their last count: the first to be
        # touched is the first to expire, so sweeping looks at the front only.
        self._tables: dict[int, OrderedDict[str, Window]] = {}
        _engines.append(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} buckets>"

    def __len__(self) -> int:
        return sum(len(table) for table in list(self._tables.values()))

    def reserve(self, demands: Sequence[Demand]) -> tuple[bool, list[Outcome]]:
        """Admit all demands or none; return whether, and what became of each."""
        with self._lock:
            now = self._clock()
            found = [(self._window(demand, now), demand) for demand in demands]
            for window, demand in found:
                if window.total + demand.units > demand.limit.amount:
                    return False, [_outcome(*pair, now, False) for pair in found]
            for window, demand in found:
                self._count(window, demand, now)
            return True, [_outcome(*pair, now, True) for pair in found]

    def test(self, demands: Sequence[Demand]) -> tuple[bool, list[Outcome]]:
        """Tell what `reserve` would answer, spending nothing."""
        with self._lock:
            now = self._clock()
            windows = [self._window(demand, now) for demand in demands]
            outcomes = [
                _outcome(window, demand, now, admitted=False)
                for window, demand in zip(windows, demands, strict=True)
            ]
            return all(outcome.wait == 0 for outcome in outcomes), outcomes

    def close(self) -> None:
        """Forget all counts."""
        with self._lock:
            self._tables.clear()

    def _window(self, demand: Demand, now: int) -> Window:
        """Return the bucket's counts as of now; one that nobody has counted in is not kept."""
        length = demand.limit.window_ns
        table = self._tables.get(length)
        window = table.get(demand.bucket) if table is not None else None
        if window is None:
            return Window()
        window.expire(slot_of(now, length))
        return window

    def _count(self, window: Window, demand: Demand, now: int) -> None:
        length = demand.limit.window_ns
        slot = slot_of(now, length)
        window.add(slot, demand.units)
        table = self._tables.get(length)
        if table is None:
            table = self._tables[length] = OrderedDict()
        table[demand.bucket] = window
        table.move_to_end(demand.bucket)
        self._sweep(table, slot)

    @staticmethod
    def _sweep(table: OrderedDict[str, Window], slot: int) -> None:
        """Drop two expired buckets at most: more than one comes in, so none are left over."""
        oldest = slot - SLOTS
        for _ in range(2):
            bucket = next(iter(table))
            if table[bucket].slots[-1][0] >= oldest:
                return
            del table[bucket]

    def _new_lock(self) -> None:
        self._lock = Lock()


def _outcome(window: Window, demand: Demand, now: int, admitted: bool) -> Outcome:
    limit = demand.limit
    length = limit.window_ns
    wait = 0 if admitted else window.fits_at(limit.amount, demand.units, length)
    reset = window.next_gone(length)
    return Outcome(
        max(0, limit.amount - window.total),
        max(0, reset - now),
        max(0, wait - now),
    )


class _Engines:
    """The live engines, so that a fork while another thread holds a lock leaves none locked."""

    def __init__(self) -> None:
        from weakref import WeakSet

        self._engines: WeakSet[MemoryCounters] = WeakSet()
        os.register_at_fork(after_in_child=self._renew)

    def append(self, engine: MemoryCounters) -> None:
        self._engines.add(engine)

    def _renew(self) -> None:
        for engine in self._engines:
            engine._new_lock()


_engines = _Engines()
