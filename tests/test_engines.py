"""The engines of counts: equal decisions over any history, and what each promises."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigw_middleware.counters.engine import Demand, Engine, Settlement
from aigw_middleware.counters.lmdb import LMDBCounters
from aigw_middleware.counters.memory import MemoryCounters
from aigw_middleware.counters.redis import RedisCounters
from aigw_middleware.counters.redis_script import SCRIPT
from aigw_middleware.limits import parse_limits
from aigw_middleware.limits.states import LEASE, SECOND, SLOTS, slot_of

from .redis_server import RedisServer
from .support import Clock

PATIENCE = 60.0
START = 1_790_000_000 * SECOND
LIMITS = [
    "5/10s", "40 tokens/7s", "0.000003 usd/min", "6/3s burst 2", "9/calendar-hour", "2 concurrent",
    "30 tokens/5s burst 9",
]  # fmt: skip


class TestClock(Clock):
    """One clock for every engine, kept in Redis as well."""

    __test__ = False

    def __init__(self, client: Any) -> None:
        super().__init__(START)
        self._client = client
        self.tell()

    def tell(self) -> None:
        self._client.set("{aigw2}:test-clock", self.now)

    def move(self, microseconds: int) -> None:
        self.now += microseconds
        self.tell()


def timed_redis(server: RedisServer, clock: TestClock) -> RedisCounters:
    """Return an engine whose script reads the test's clock instead of the server's."""
    # A machine under load may pause for longer than a decision may take.
    counters = RedisCounters(server.url, deadline=PATIENCE, wall_clock=clock)
    told = SCRIPT.replace(
        "local clock = redis.call('TIME')",
        "local told = tonumber(redis.call('GET', '{aigw2}:test-clock'))\n"
        "local clock = {math.floor(told / 1000000), told % 1000000}",
    )
    assert told != SCRIPT
    counters._use(told)
    counters._client.time = lambda: divmod(clock.now, SECOND)  # type: ignore[method-assign]
    return counters


_numbers = itertools.count()


class Machine:
    """All engines at once, fed with the same history."""

    def __init__(self, clock: TestClock, engines: dict[str, Engine]) -> None:
        self.clock = clock
        self.engines = engines
        # One store for many histories, each under names of its own.
        self.prefix = f"h{next(_numbers)}|"
        self.held: list[tuple[Demand, dict[str, int]]] = []
        self.model: dict[str, list[list[int]]] = {}

    def reserve(self, demands: list[Demand]) -> None:
        answers = {name: engine.reserve(demands) for name, engine in self.engines.items()}
        tests = {name: engine.test(demands) for name, engine in self.engines.items()}
        first = answers["memory"]
        for answer in answers.values():
            assert answer.admitted == first.admitted
            assert answer.outcomes == first.outcomes
        assert len({test.admitted for test in tests.values()}) == 1
        assert first.admitted == all(outcome.wait == 0 for outcome in first.outcomes)
        for demand in demands:
            if demand.rule.kind == "window" and not first.admitted:
                continue
            self.expect(demand, first.admitted)
        if first.admitted:
            for position, demand in enumerate(demands):
                marks = {name: answer.marks[position] for name, answer in answers.items()}
                self.held.append((demand, marks))

    def expect(self, demand: Demand, admitted: bool) -> None:
        """The slow, obvious model of a window: every admission, looked at one by one."""
        if demand.rule.kind != "window":
            return
        counted = self.model.setdefault(demand.name, [])
        slot = slot_of(self.clock.now, demand.rule.window)
        total = sum(units for at, units in counted if slot - at <= SLOTS)
        assert admitted == (total + demand.units <= demand.rule.amount)
        counted.append([slot, demand.units])

    def settle(self, position: int, used: int) -> None:
        demand, marks = self.held.pop(position % len(self.held))
        if demand.rule.kind == "leases":
            used = 0
        known = {
            name: engine.settle([Settlement(demand, marks[name], used)])
            for name, engine in self.engines.items()
        }
        assert known["lmdb"] == known["redis"] == known["memory"]
        if demand.rule.kind == "window":
            counted = self.model[demand.name]
            if used > demand.units:
                slot = slot_of(self.clock.now, demand.rule.window)
                counted.append([slot, used - demand.units])
                return
            back = demand.units - used
            slot = slot_of(self.clock.now, demand.rule.window)
            for entry in counted:
                if entry[0] == marks["memory"] and slot - entry[0] <= SLOTS:
                    taken = min(back, entry[1])
                    entry[1] -= taken
                    back -= taken


def demands_of(machine: Machine, choice: list[tuple[int, int]]) -> list[Demand]:
    demands = {}
    for which, units in choice:
        for limit in parse_limits(LIMITS[which % len(LIMITS)]):
            wanted = 1 if limit.unit == "concurrent" else min(units, limit.most)
            name = machine.prefix + limit.kind
            demands[name] = Demand(name, limit.rule, wanted, limit.calendar)
    return list(demands.values())


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("reserve"),
            st.lists(st.tuples(st.integers(0, 6), st.integers(1, 12)), min_size=1, max_size=3),
        ),
        st.tuples(st.just("settle"), st.integers(0, 50), st.integers(0, 30)),
        st.tuples(st.just("move"), st.integers(0, 4 * SECOND)),
        st.tuples(st.just("move"), st.sampled_from([LEASE, 60 * SECOND, 3600 * SECOND, 100_000])),
    ),
    max_size=30,
)


@pytest.fixture(scope="module")
def engines(redis_server: RedisServer) -> Iterator[tuple[TestClock, dict[str, Engine]]]:
    """One engine of each kind, by one clock."""
    directory = mkdtemp(prefix="aigw-lmdb-")
    clock = TestClock(redis_server.client())
    found: dict[str, Engine] = {
        "memory": MemoryCounters(clock=clock, wall_clock=clock),
        "lmdb": LMDBCounters(directory, deadline=PATIENCE, clock=clock, wall_clock=clock),
        "redis": timed_redis(redis_server, clock),
    }
    yield clock, found
    for engine in found.values():
        engine.close()
    shutil.rmtree(directory)


@settings(max_examples=max(300, settings().max_examples))
@given(steps=STEPS)
def test_every_engine_decides_as_the_others(
    engines: tuple[TestClock, dict[str, Engine]], steps: list[Any]
) -> None:
    """The same history of reserves, settlements and time gives equal answers on all three."""
    machine = Machine(*engines)
    for step in steps:
        if step[0] == "reserve":
            machine.reserve(demands_of(machine, step[1]))
        elif step[0] == "settle" and machine.held:
            machine.settle(step[1], step[2])
        elif step[0] == "move":
            machine.clock.move(step[1])
    shown = [sorted(engine.counts(machine.prefix)) for engine in machine.engines.values()]
    assert shown[0] == shown[1] == shown[2]
    for engine in machine.engines.values():
        engine.reset(machine.prefix)
        assert engine.counts(machine.prefix) == []


def test_machines_whose_clocks_differ_count_the_same(redis_server: RedisServer) -> None:
    """Two gateways 5 s apart on one Redis, over the end of a calendar's hour: the server decides."""
    clock = TestClock(redis_server.client())
    clock.now = 1_790_002_800 * SECOND - 2 * SECOND  # two seconds before the hour
    clock.tell()
    (limit,) = parse_limits("2/calendar-hour")
    demand = Demand("machines|hour", limit.rule, 1, limit.calendar)
    behind = timed_redis(redis_server, clock)
    ahead = timed_redis(redis_server, clock)
    ahead._wall_clock = lambda: clock.now + 5 * SECOND
    behind._wall_clock = lambda: clock.now - 5 * SECOND
    assert [engine.reserve([demand]).admitted for engine in (ahead, behind, ahead, behind)] == [
        True, True, False, False,
    ]  # fmt: skip
    assert ahead.reserve([demand]).outcomes == behind.reserve([demand]).outcomes
    clock.move(2 * SECOND)
    assert [engine.reserve([demand]).admitted for engine in (behind, ahead, behind)] == [
        True, True, False,
    ]  # fmt: skip
    ahead.close()
    behind.close()
