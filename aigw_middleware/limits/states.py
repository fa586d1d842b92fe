"""What is kept of a limit and a bucket, and how it changes: integers in, integers out.

A state is a sequence of 64 bit integers, so that an engine may keep it as it likes; times are
microseconds. Each kind of limit has its arithmetic:

- `WINDOW`, a sliding window. Time is cut into slots of a sixtieth of the window, and a slot counts
  until its end has left the window: a unit is never given back early, and at the latest a
  sixtieth of the window late, with at most 61 counts. With W the window and
  slot(t) = floor(60 t / W), what was admitted at u counts at t as long as slot(t) - slot(u) <= 60,
  and t < u + W implies that: in no span of W are more units admitted than the limit.
- `PACE`, the generic cell rate algorithm (ITU-T I.371): a burst, then an even pace.
- `PERIOD`, a calendar window, which begins anew at a time of the wall clock.
- `LEASES`, of which so many may be held at once, each until it is given back or has expired.

The Redis engine has a twin of this in Lua; a test feeds both the same histories.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from typing import NamedTuple, Protocol

SLOTS = 60
SECOND = 1_000_000
"""Microseconds, the unit of every time in this room."""
LEASE = 30 * SECOND
"""How long a lease lives without being renewed."""

State = MutableSequence[int]

new_tuple = tuple.__new__
"""A third of what a named tuple's own call takes, on every decision."""


class Rule(NamedTuple):
    """A limit, as the arithmetic needs it.

    Attributes:
        kind: `window`, `pace`, `period` or `leases`.
        amount: the units that may be admitted; for a pace, the length of its burst in
            microseconds.
        window: the window's length in microseconds; for a pace, what the whole of `amount` units
            of its limit takes. 0 for a period and for leases.
        pace: units in a window, of which a pace is made; 0 elsewhere.
    """

    kind: str
    amount: int
    window: int
    pace: int = 0


class Moment(NamedTuple):
    """When something is decided.

    Attributes:
        now: microseconds of a clock that does not step.
        begins: when the present period began, by the wall clock; 0 where none is asked for.
        ends: microseconds from now until it ends.
    """

    now: int
    begins: int = 0
    ends: int = 0


class Outcome(NamedTuple):
    """What became of one demand.

    Attributes:
        remaining: the units that are left, after this demand where it was admitted; may be
            below zero after a settlement.
        reset: microseconds until units come back; 0 where none are counted.
        wait: microseconds until the demand would fit; 0 where it did.
    """

    remaining: int
    reset: int
    wait: int


class Arithmetic(Protocol):
    """What an engine asks of each kind."""

    def expire(self, state: State, rule: Rule, when: Moment) -> None:
        """Drop what no longer counts."""

    def reserve(
        self, state: State, rule: Rule, when: Moment, units: int, lease: Callable[[], int]
    ) -> tuple[int, Outcome] | None:
        """Count `units` as reserved, where they may be admitted.

        Args:
            state: the state.
            rule: the limit.
            when: the moment.
            units: how many.
            lease: returns the number of a new lease.

        Returns:
            The mark by which they are settled, and what is told of the state then; None where
            they do not fit, and then nothing was done but to drop what no longer counts.
        """

    def settle(
        self, state: State, rule: Rule, when: Moment, mark: int, units: int, used: int
    ) -> bool:
        """Count `used` in the place of the `units` that were taken under `mark`.

        False where nothing is known of `mark` any more, so that nothing was to be given back.
        """

    def outcome(self, state: State, rule: Rule, when: Moment, units: int) -> Outcome:
        """Tell of a state; `units` are what a refused demand wanted, 0 for one that was met."""

    def expires(self, state: State, rule: Rule, when: Moment) -> int:
        """Return from when on, in microseconds, the state is as good as none."""

    def counts(self, state: State, when: Moment) -> tuple[int, int]:
        """Return what counts in a state that is not empty, and what of that is reserved."""


def slot_of(now: int, window: int) -> int:
    """Return the number of the slot that `now` is in."""
    return now * SLOTS // window


def gone_at(slot: int, window: int) -> int:
    """Return the first microsecond at which `slot` no longer counts."""
    return -(-(slot + SLOTS + 1) * window // SLOTS)


class _Window:
    """State: the total, then of each slot its number, its units and what of them is reserved.

    The oldest slot is the first.
    """

    def expire(self, state: State, rule: Rule, when: Moment) -> None:
        if len(state) < 2:
            return
        oldest = when[0] * SLOTS // rule[2] - SLOTS
        if state[1] >= oldest:
            return
        end = 1
        while end < len(state) and state[end] < oldest:
            state[0] -= state[end + 1]
            end += 3
        if end > 1:
            del state[1:end]

    def reserve(
        self, state: State, rule: Rule, when: Moment, units: int, lease: Callable[[], int]
    ) -> tuple[int, Outcome] | None:
        now, (_, amount, window, _) = when[0], rule
        slot = now * SLOTS // window
        length = len(state)
        if length > 1 and state[1] < slot - SLOTS:
            self.expire(state, rule, when)
            length = len(state)
        total = state[0] + units if length else units
        if total > amount:
            return None
        slot = self._add(state, slot, units, units)
        reset = -(-(state[1] + SLOTS + 1) * window // SLOTS) - now
        return slot, new_tuple(Outcome, (amount - total, reset if reset > 0 else 0, 0))

    @staticmethod
    def _add(state: State, slot: int, units: int, reserved: int) -> int:
        """Count units in a slot; where time seems to run backwards, in the newest one."""
        if len(state) > 3 and state[-3] >= slot:
            slot = state[-3]
            state[-2] += units
            state[-1] += reserved
        else:
            if not state:
                state.append(0)
            state.append(slot)
            state.append(units)
            state.append(reserved)
        state[0] += units
        return slot

    def settle(
        self, state: State, rule: Rule, when: Moment, mark: int, units: int, used: int
    ) -> bool:
        more = used - units
        known = False
        for position in range(1, len(state), 3):
            if state[position] == mark:
                known = True
                state[position + 2] -= min(units, state[position + 2])
                if more < 0:
                    back = min(-more, state[position + 1])
                    state[position + 1] -= back
                    state[0] -= back
                break
        if more > 0:
            self._add(state, when.now * SLOTS // rule.window, more, 0)
            return True
        return known

    def outcome(self, state: State, rule: Rule, when: Moment, units: int) -> Outcome:
        total = state[0] if state else 0
        wait = reset = 0
        if len(state) > 1:
            reset = -(-(state[1] + SLOTS + 1) * rule.window // SLOTS) - when.now
            reset = reset if reset > 0 else 0
        if units:
            excess = total + units - rule.amount
            for position in range(1, len(state), 3):
                if excess <= 0:
                    break
                excess -= state[position + 1]
                wait = gone_at(state[position], rule.window) - when.now
        return new_tuple(Outcome, (rule.amount - total, reset, wait if wait > 0 else 0))

    def expires(self, state: State, rule: Rule, when: Moment) -> int:
        return gone_at(state[-3], rule.window) if len(state) > 1 else 0

    def counts(self, state: State, when: Moment) -> tuple[int, int]:
        return state[0], sum(state[3::3])


class _Pace:
    """State: when, at its even pace, everything that was admitted would be done.

    Behind it how much of that time is reserved.
    """

    def expire(self, state: State, rule: Rule, when: Moment) -> None:
        if state and state[0] <= when.now:
            del state[:]

    def reserve(
        self, state: State, rule: Rule, when: Moment, units: int, lease: Callable[[], int]
    ) -> tuple[int, Outcome] | None:
        self.expire(state, rule, when)
        time = takes(rule, units)
        if (state[0] - when.now if state else 0) + time > rule.amount:
            return None
        self._add(state, when, time)
        state[1] += time
        return 0, self.outcome(state, rule, when, 0)

    @staticmethod
    def _add(state: State, when: Moment, time: int) -> None:
        if not state:
            state.append(when.now)
            state.append(0)
        state[0] += time

    def settle(
        self, state: State, rule: Rule, when: Moment, mark: int, units: int, used: int
    ) -> bool:
        if state:
            state[1] -= min(takes(rule, units), state[1])
        if used > units:
            self._add(state, when, takes(rule, used - units))
        elif state:
            state[0] -= min(takes(rule, units) - takes(rule, used), state[0] - when.now)
        return bool(state)

    def outcome(self, state: State, rule: Rule, when: Moment, units: int) -> Outcome:
        ahead = state[0] - when.now if state else 0
        one = takes(rule, 1)
        remaining = (rule.amount - ahead) // one
        wait = ahead + takes(rule, units) - rule.amount if units else 0
        return Outcome(remaining, min(ahead, one), max(0, wait))

    def expires(self, state: State, rule: Rule, when: Moment) -> int:
        return state[0] if state else 0

    def counts(self, state: State, when: Moment) -> tuple[int, int]:
        ahead = state[0] - when.now
        return ahead, min(state[1], ahead)


def takes(rule: Rule, units: int) -> int:
    """Return how long units take at the rule's pace; rounded up, so that it is never faster."""
    return -(-units * rule.window // rule.pace)


class _Period:
    """State: when the period began (wall clock), what was counted in it, when it ends (`now`).

    Behind these what of it is reserved.
    """

    def expire(self, state: State, rule: Rule, when: Moment) -> None:
        # A clock that is set back does not open a period anew.
        if state and when.begins > state[0]:
            del state[:]

    def reserve(
        self, state: State, rule: Rule, when: Moment, units: int, lease: Callable[[], int]
    ) -> tuple[int, Outcome] | None:
        self.expire(state, rule, when)
        if (state[1] if state else 0) + units > rule.amount:
            return None
        self._add(state, when, units)
        state[3] += units
        return state[0], self.outcome(state, rule, when, 0)

    @staticmethod
    def _add(state: State, when: Moment, units: int) -> None:
        if not state:
            for number in (when.begins, 0, when.now + when.ends, 0):
                state.append(number)
        state[1] += units

    def settle(
        self, state: State, rule: Rule, when: Moment, mark: int, units: int, used: int
    ) -> bool:
        if state and state[0] == mark:
            state[3] -= min(units, state[3])
            state[1] -= min(max(0, units - used), state[1])
        if used > units:
            self._add(state, when, used - units)
        return bool(state)

    def outcome(self, state: State, rule: Rule, when: Moment, units: int) -> Outcome:
        used = state[1] if state else 0
        wait = when.ends if units and used + units > rule.amount else 0
        return Outcome(rule.amount - used, when.ends if used else 0, wait)

    def expires(self, state: State, rule: Rule, when: Moment) -> int:
        return state[2] if state else 0

    def counts(self, state: State, when: Moment) -> tuple[int, int]:
        return state[1], state[3]


class _Leases:
    """State: pairs of a lease and when it expires."""

    def expire(self, state: State, rule: Rule, when: Moment) -> None:
        for position in range(len(state) - 2, -1, -2):
            if state[position + 1] <= when.now:
                del state[position : position + 2]

    def reserve(
        self, state: State, rule: Rule, when: Moment, units: int, lease: Callable[[], int]
    ) -> tuple[int, Outcome] | None:
        self.expire(state, rule, when)
        if len(state) // 2 + units > rule.amount:
            return None
        mark = lease()
        state.append(mark)
        state.append(when.now + LEASE)
        return mark, self.outcome(state, rule, when, 0)

    def settle(
        self, state: State, rule: Rule, when: Moment, mark: int, units: int, used: int
    ) -> bool:
        """Give a lease back, or renew it where `used` is `units`; nothing for one that is gone."""
        for position in range(0, len(state), 2):
            if state[position] == mark:
                if used == units:
                    state[position + 1] = when.now + LEASE
                else:
                    del state[position : position + 2]
                return True
        return False

    def outcome(self, state: State, rule: Rule, when: Moment, units: int) -> Outcome:
        held = len(state) // 2
        # Nobody can tell when a request ends: a second is a good time to ask again.
        wait = SECOND if units and held + units > rule.amount else 0
        return Outcome(rule.amount - held, 0, wait)

    def expires(self, state: State, rule: Rule, when: Moment) -> int:
        return max(state[1::2], default=0)

    def counts(self, state: State, when: Moment) -> tuple[int, int]:
        return len(state) // 2, 0


ARITHMETIC: dict[str, Arithmetic] = {
    "window": _Window(),
    "pace": _Pace(),
    "period": _Period(),
    "leases": _Leases(),
}
"""The arithmetic of each kind."""
