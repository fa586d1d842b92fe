"""Counts in the memory of one process: exact over all its threads, gone with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import monotonic_ns, time_ns

from .. import _native
from .._forks import in_child
from ..limits.calendar import Calendar
from ..limits.states import ARITHMETIC, Moment, Rule, State, new_tuple
from .engine import Count, Decision, Demand, Settlement, new_lease


class MemoryCounters:
    """Counts in the memory of this process.

    All demands of a request are decided in one step under one lock, which is held for a few
    microseconds. A state that has expired is dropped while others are counted, so the memory is
    bounded by the number of buckets in use.

    Args:
        clock: returns microseconds that never step back; for tests.
        wall_clock: returns microseconds since 1970; for tests.
    """

    shared = False
    native = True

    def __init__(
        self,
        *,
        clock: Callable[[], int] = lambda: monotonic_ns() // 1000,
        wall_clock: Callable[[], int] = lambda: time_ns() // 1000,
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._new_lock()
        in_child(self._new_lock)
        self._table: OrderedDict[str, tuple[State, Rule]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} buckets>"

    def __len__(self) -> int:
        return len(self._table)

    def reserve(self, demands: Sequence[Demand]) -> Decision:
        """Meet all demands or none."""
        with self._lock:
            present = new_tuple(Moment, (self._clock(), 0, 0))
            table = self._table
            marks, outcomes, fresh = [], [], []
            before: list[tuple[State, State]] = []
            for name, rule, units, calendar in demands:
                entry = table.get(name)
                state: State = [] if entry is None else entry[0]
                when = present if calendar is None else self._at(present, calendar)
                was = state[:]
                found = ARITHMETIC[rule[0]].reserve(state, rule, when, units, new_lease)
                if found is None:
                    # Nothing is spent of the limits that would have admitted it.
                    for taken, old in before:
                        taken[:] = old
                    return self._refused(demands, present)
                before.append((state, was))
                marks.append(found[0])
                outcomes.append(found[1])
                if entry is None or entry[1] is not rule:
                    fresh.append((name, state, rule))
            for name, state, rule in fresh:
                if name not in table:
                    self._make_room(present)
                table[name] = state, rule
            return new_tuple(Decision, (True, outcomes, marks))

    def test(self, demands: Sequence[Demand]) -> Decision:
        """Tell what `reserve` would answer, spending nothing."""
        with self._lock:
            refused = self._refused(demands, Moment(self._clock()))
            admitted = all(outcome.wait == 0 for outcome in refused.outcomes)
            return Decision(admitted, refused.outcomes, [])

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Count what was used in the place of what was reserved."""
        known = []
        with self._lock:
            present = new_tuple(Moment, (self._clock(), 0, 0))
            table = self._table
            for (name, rule, units, calendar), mark, used in settlements:
                entry = table.get(name)
                state: State = [] if entry is None else entry[0]
                when = present if calendar is None else self._at(present, calendar)
                kind = ARITHMETIC[rule[0]]
                kind.expire(state, rule, when)
                known.append(kind.settle(state, rule, when, mark, units, used))
                if state and (entry is None or entry[1] is not rule):
                    table[name] = state, rule
        return known

    def counts(self, prefix: str = "") -> list[Count]:
        """Return what is counted under the names that begin with `prefix`."""
        with self._lock:
            now = self._clock()
            found = [
                count_of(name, state, rule, now)
                for name, (state, rule) in self._table.items()
                if name.startswith(prefix)
            ]
        return [count for count in found if count is not None]

    def reset(self, prefix: str = "") -> int:
        """Forget those counts."""
        with self._lock:
            gone = [name for name in self._table if name.startswith(prefix)]
            for name in gone:
                del self._table[name]
        return len(gone)

    def forget(self, names: Sequence[str]) -> int:
        """Forget the counts of just these names."""
        with self._lock:
            return sum(self._table.pop(name, None) is not None for name in names)

    def close(self) -> None:
        """Forget all counts."""
        with self._lock:
            self._table.clear()

    def _at(self, present: Moment, calendar: Calendar) -> Moment:
        return moment(present, calendar, self._wall_clock())

    def _refused(self, demands: Sequence[Demand], present: Moment) -> Decision:
        outcomes = []
        for name, rule, units, calendar in demands:
            entry = self._table.get(name)
            state: State = [] if entry is None else entry[0]
            when = present if calendar is None else self._at(present, calendar)
            kind = ARITHMETIC[rule.kind]
            kind.expire(state, rule, when)
            outcomes.append(kind.outcome(state, rule, when, units))
        return Decision(False, outcomes, [])

    def _make_room(self, present: Moment) -> None:
        """Look at two states before one is added: more are dropped than come in.

        Those that still count go to the end, so that all are looked at in turn.
        """
        for _ in range(min(2, len(self._table))):
            name, (state, rule) = self._table.popitem(last=False)
            if state and ARITHMETIC[rule.kind].expires(state, rule, present) > present.now:
                self._table[name] = state, rule

    def _new_lock(self) -> None:
        self._lock = _native.allocate_lock()


def moment(present: Moment, calendar: Calendar, wall: int) -> Moment:
    """Return the moment with what a calendar says of it; `wall` is microseconds since 1970."""
    period = calendar.period(wall)
    return Moment(present.now, period.begins, period.ends - wall)


def count_of(name: str, state: State, rule: Rule, now: int) -> Count | None:
    """Return what people are told of a state; None for one that has expired."""
    when = Moment(now)
    kind = ARITHMETIC[rule.kind]
    if rule.kind != "period":  # whose present beginning is not known here
        kind.expire(state, rule, when)
    if not state or kind.expires(state, rule, when) <= now:
        return None
    used, reserved = kind.counts(state, when)
    if not used:
        return None
    expires = kind.expires(state, rule, when) - now
    left = kind.outcome(state, rule, when, 0).remaining
    return Count(name, rule.kind, used, reserved, left, expires)
