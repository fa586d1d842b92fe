"""What every engine of counts is asked for."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..limits.calendar import Calendar
from ..limits.states import Outcome, Rule

DEADLINE = 0.25
"""Seconds that an engine may hold a request."""


class Demand(NamedTuple):
    """Units that a request wants of one limit.

    Attributes:
        name: whose count it is: what distinguishes the limit, and the bucket.
        rule: the limit.
        units: how many, at least 1 and at most what the limit allows at all.
        calendar: when the limit's period begins and ends; None where it has none.
    """

    name: str
    rule: Rule
    units: int
    calendar: Calendar | None = None


class Decision(NamedTuple):
    """What became of a request's demands.

    Attributes:
        admitted: whether all were met; none was where it is False.
        outcomes: one a demand.
        marks: by which each is settled; empty where nothing was counted.
    """

    admitted: bool
    outcomes: list[Outcome]
    marks: list[int]


class Settlement(NamedTuple):
    """What was really used of a demand that was met.

    Attributes:
        demand: the demand.
        mark: its mark.
        used: the units that were used: 0 gives all back; all of a lease renews it.
    """

    demand: Demand
    mark: int
    used: int


class Count(NamedTuple):
    """What an engine knows of one name.

    Attributes:
        name: whose count it is.
        kind: `window`, `pace`, `period` or `leases`.
        used: units that count now, reserved ones included; for a pace, microseconds that it is
            ahead.
        reserved: what of that was reserved and has not been settled; none of leases.
        left: units that may still be admitted, of the limit as it was when it last counted;
            below zero where more was used than had been reserved.
        expires: microseconds until all of it has left.
    """

    name: str
    kind: str
    used: int
    reserved: int
    left: int
    expires: int


class Engine(Protocol):
    """Keeps counts."""

    @property
    def shared(self) -> bool:
        """Whether other processes count in the same engine."""

    @property
    def native(self) -> bool:
        """Whether any thread may use it, also one that gevent knows nothing of."""

    def reserve(self, demands: Sequence[Demand]) -> Decision:
        """Meet all demands or none, in one atomic step.

        Raises:
            StoreUnavailable: no answer came in time.
        """

    def test(self, demands: Sequence[Demand]) -> Decision:
        """Tell what `reserve` would answer, spending nothing."""

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Count what was used in the place of what was reserved.

        Returns:
            For each whether its mark was still known; of a lease that was renewed False means
            that it has expired.
        """

    def counts(self, prefix: str = "") -> list[Count]:
        """Return what is counted under the names that begin with `prefix`."""

    def reset(self, prefix: str = "") -> int:
        """Forget those counts; return how many there were."""

    def forget(self, names: Sequence[str]) -> int:
        """Forget the counts of just these names; return how many there were."""

    def close(self) -> None:
        """Let go of what is open."""


def new_lease() -> int:
    """Return a number that no other lease has (53 random bits, which Lua can hold too)."""
    return secrets.randbits(53)
