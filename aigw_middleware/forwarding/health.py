"""What this process has lately seen of keys and providers: who rests, and who is busy.

A circuit breaker that only orders: what rests is asked after what doesn't, never left out, so that
it can turn no request away that a provider would have served. When its rest is over one request
at a time tries it first (half-open); the first success clears it, of one whose answers broke off
the first that has come whole.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from cachetools import LRUCache

from .route import Candidate

_MOST = 10_000
_PROBE_SECONDS = 10.0


class _Rest(NamedTuple):
    """How a kind of failure makes something rest.

    Attributes:
        of_key: whether the key rests, and not all of the place.
        after: how many failures in a row it takes.
        first: seconds of the first rest; each further one is twice as long.
        most: seconds of the longest.
    """

    of_key: bool
    after: int
    first: float
    most: float


class Failure(Enum):
    """Why a candidate gave no good answer."""

    REFUSED_KEY = _Rest(True, 1, 30.0, 600.0)
    LIMITED = _Rest(True, 1, 2.0, 60.0)
    FAULT = _Rest(False, 3, 1.0, 60.0)
    UNREACHABLE = _Rest(False, 1, 1.0, 60.0)


def failure_of(status: int) -> Failure | None:
    """Return what a status tells of who answered; None for nothing bad."""
    if status in (401, 403):
        return Failure.REFUSED_KEY
    if status == 429:
        return Failure.LIMITED
    return Failure.FAULT if status >= 500 else None


@dataclass(slots=True)
class _State:
    failures: int = 0
    breaks: int = 0
    rests: int = 0
    until: float = 0.0
    probed_until: float = 0.0
    failed_at: float = 0.0


class Health:
    """The state of keys and places.

    Args:
        clock: returns seconds that never step.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._states: LRUCache[object, _State] = LRUCache(_MOST)
        self._in_flight: dict[object, int] = {}
        self._lock = threading.Lock()

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._in_flight = {}

    def forget(self) -> None:
        """Forget all that was seen of who fails."""
        with self._lock:
            self._states.clear()

    def is_ready(self, candidate: Candidate) -> bool:
        """Whether neither its key nor its place rests."""
        if not self._states:
            return True
        now = self._clock()
        with self._lock:
            states = [self._states.get(name) for name in _names(candidate)]
        return all(
            state is None or (state.until <= now and state.probed_until <= now) for state in states
        )

    def busy(self, candidate: Candidate) -> int:
        """Return how many requests its place is answering for this process."""
        return self._in_flight.get(_place(candidate), 0)

    def begin(self, candidate: Candidate) -> None:
        """Note that a candidate is asked."""
        place = _place(candidate)
        with self._lock:
            self._in_flight[place] = self._in_flight.get(place, 0) + 1
            if self._states:
                for name in _names(candidate):
                    state = self._states.get(name)
                    if state is not None and state.rests:
                        state.probed_until = self._clock() + _PROBE_SECONDS

    def end(self, candidate: Candidate) -> None:
        """Note that its answer has ended, or that there was none."""
        place = _place(candidate)
        with self._lock:
            left = self._in_flight.get(place, 0) - 1
            if left > 0:
                self._in_flight[place] = left
            else:
                self._in_flight.pop(place, None)

    def now(self) -> float:
        """Return the time by which `succeeded` is told when an attempt began."""
        return self._clock()

    def succeeded(self, candidate: Candidate, begun: float) -> None:
        """Note that it answered; while it rests, one begun before its failure tells nothing new."""
        if not self._states:
            return
        with self._lock:
            for name in _names(candidate):
                state = self._states.get(name)
                if state is None or (state.failed_at > begun and state.until > self._clock()):
                    continue
                if state.breaks:  # its answers begin well: only a whole one clears it
                    state.failures, state.probed_until = 0, 0.0
                else:
                    del self._states[name]

    def came_whole(self, candidate: Candidate, status: int) -> None:
        """Note that an answer of it, with that status, has come to its end."""
        if not self._states or failure_of(status) is not None:
            return
        with self._lock:
            state = self._states.get(_place(candidate))
            if state is not None and state.breaks and state.until <= self._clock():
                del self._states[_place(candidate)]

    def broke_off(self, candidate: Candidate) -> None:
        """Note that its answer broke off after it had begun: a fault like others in a row."""
        with self._lock:
            state = self._states.setdefault(_place(candidate), _State())
            state.breaks += 1
            in_a_row = state.failures + state.breaks
            self._let_rest(state, Failure.FAULT.value, in_a_row, None)

    def failed(
        self, candidate: Candidate, failure: Failure, retry_after: float | None = None
    ) -> None:
        """Note that it gave no good answer.

        Args:
            candidate: who was asked.
            failure: why.
            retry_after: seconds for which the provider asks to be left alone; it is then, at once.
        """
        rest = failure.value
        place, key = _names(candidate)
        with self._lock:
            state = self._states.setdefault(key if rest.of_key else place, _State())
            state.failures += 1
            self._let_rest(state, rest, state.failures + state.breaks, retry_after)

    def _let_rest(
        self, state: _State, rest: _Rest, in_a_row: int, retry_after: float | None
    ) -> None:
        state.failed_at = self._clock()
        state.probed_until = 0.0
        if retry_after is None and in_a_row < rest.after:
            return
        seconds = min(rest.most, rest.first * 2**state.rests)
        state.rests = min(state.rests + 1, 16)
        state.until = self._clock() + (seconds if retry_after is None else retry_after)


health = Health()
"""What is shared by all forwarders of the process."""
os.register_at_fork(after_in_child=health._after_fork)


def _place(candidate: Candidate) -> object:
    base = candidate.base
    return base.scheme, base.authority, base.path


def is_spent(candidate: Candidate, failed: Candidate, failure: Failure, status: int) -> bool:
    """Whether asking a candidate is in vain within a request in which another one has failed.

    Args:
        candidate: who would be asked.
        failed: who was asked.
        failure: in which way that failed.
        status: of its answer; a 403 may be about the model, a 401 is about the key.
    """
    if failure is Failure.REFUSED_KEY:
        is_alike = status == 401 or candidate.model == failed.model
        return is_alike and _names(candidate) == _names(failed)
    return failure is Failure.UNREACHABLE and _place(candidate) == _place(failed)


def _names(candidate: Candidate) -> tuple[object, object]:
    """Return the names of a candidate's place and key; the second holds no secret."""
    place = _place(candidate)
    return place, (place, hash(candidate.secret))
