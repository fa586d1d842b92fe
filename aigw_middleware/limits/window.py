"""A sliding window, in whole units and whole nanoseconds.

Time is cut into slots of a sixtieth of the window. What is admitted counts in the slot of its
time, and a slot counts until its end has left the window: so a unit is never given back early,
and at the latest a sixtieth of the window late, with at most 61 counts a window. Two facts
follow from integer arithmetic alone, with W the window and slot(t) = floor(60 t / W):

- what was admitted at u counts at t as long as slot(t) - slot(u) <= 60, and t < u + W implies
  that: in no span of W are more units admitted than the limit;
- slot s is gone from t = ceil((s + 61) W / 60) on.
"""

from __future__ import annotations

from collections import deque

SLOTS = 60


def slot_of(now: int, window: int) -> int:
    """Return the number of the slot that `now` is in (both in nanoseconds)."""
    return now * SLOTS // window


def gone_at(slot: int, window: int) -> int:
    """Return the first nanosecond at which `slot` no longer counts."""
    return -(-(slot + SLOTS + 1) * window // SLOTS)


class Window:
    """The counts of one limit and bucket.

    Attributes:
        total: the units that count now; true after `expire`.
        slots: `[slot, units]` pairs, the oldest first.
    """

    __slots__ = ("slots", "total")

    def __init__(self) -> None:
        self.total = 0
        self.slots: deque[list[int]] = deque()

    def expire(self, slot: int) -> None:
        """Drop what no longer counts in `slot`."""
        slots = self.slots
        oldest = slot - SLOTS
        while slots and slots[0][0] < oldest:
            self.total -= slots.popleft()[1]

    def add(self, slot: int, units: int) -> None:
        """Count `units` in `slot`, or in the newest slot where time seems to run backwards."""
        slots = self.slots
        if slots and slots[-1][0] >= slot:
            slots[-1][1] += units
        else:
            slots.append([slot, units])
        self.total += units

    def fits_at(self, limit: int, units: int, window: int) -> int:
        """Return when `units` would fit if nothing else were admitted, in nanoseconds.

        0 where they fit now. The caller sees to it that `units` is at most `limit`.
        """
        excess = self.total + units - limit
        when = 0
        for slot, count in self.slots:
            if excess <= 0:
                break
            excess -= count
            when = gone_at(slot, window)
        return when

    def next_gone(self, window: int) -> int:
        """Return when the oldest units cease to count, in nanoseconds; 0 where there are none."""
        return gone_at(self.slots[0][0], window) if self.slots else 0
