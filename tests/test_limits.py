"""The grammar of limits, the arithmetic of windows, the headers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigw_middleware.counters.engine import Demand
from aigw_middleware.counters.memory import MemoryCounters
from aigw_middleware.limits import parse_limit, parse_limits
from aigw_middleware.limits.headers import Report, duration, policy, rate_headers
from aigw_middleware.limits.states import SECOND, SLOTS, gone_at, slot_of

from .support import Clock

GOOD = [
    ("100/min", 100, 60),
    ("10/s", 10, 1),
    ("30/90s", 30, 90),
    ("1000 requests/day", 1000, 86_400),
    ("1 request/hour", 1, 3600),
    ("1_000/31d", 1000, 31 * 86_400),
    ("5 per minute", 5, 60),
    (" 5 / 2 h ", 5, 7200),
]


@pytest.mark.parametrize(("text", "amount", "window"), GOOD)
def test_limits_are_read(text: str, amount: int, window: int) -> None:
    """Amount, unit and window, in the ways that people write them."""
    limit = parse_limit(text)
    assert (limit.amount, limit.unit, limit.window) == (amount, "requests", window)


BAD = ["", "100", "/min", "0/min", "-1/min", "1.5/min", "100/fortnight", "100/32d", "100/0s",
       "100 apples/min", "ten/min", "100/min/min", "9" * 30 + "/min", "١٠/min", None, 5]  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=repr)
def test_what_is_no_limit_is_told(text: Any) -> None:
    """A limit that cannot be kept as written is a ValueError that shows it."""
    with pytest.raises(ValueError, match=r"^limits: "):
        parse_limit(text)


def test_two_limits_of_one_kind_are_a_mistake() -> None:
    """Two amounts for one unit and window: only the smaller could ever matter."""
    with pytest.raises(ValueError, match="another limit"):
        parse_limits(["10/min", "20/60s"])
    assert len(parse_limits(["10/min", "20/hour"])) == 2
    assert len(parse_limits("10/min")) == 1


@given(st.text(max_size=30))
def test_no_text_crashes_the_reader(text: str) -> None:
    """Whatever stands there, it is a limit or a ValueError."""
    try:
        limit = parse_limit(text)
    except ValueError:
        return
    assert limit.amount >= 1


@given(st.integers(0, 10**19), st.integers(1, 31 * 86_400))
def test_a_slot_is_gone_just_when_the_arithmetic_says(now: int, seconds: int) -> None:
    """`gone_at` is the first nanosecond at which the slot no longer counts, W to 61/60 W later."""
    window = seconds * SECOND
    slot = slot_of(now, window)
    gone = gone_at(slot, window)
    assert slot_of(gone, window) - slot > SLOTS
    assert slot_of(gone - 1, window) - slot <= SLOTS
    assert now + window <= gone <= now + window + -(-window // SLOTS)


class Obvious:
    """The slow model: every admission with its time, looked at one by one."""

    def __init__(self, limit: int, window: int) -> None:
        self.limit, self.window = limit, window
        self.admitted: list[int] = []

    def counted(self, now: int) -> int:
        return sum(
            1
            for at in self.admitted
            if slot_of(now, self.window) - slot_of(at, self.window) <= SLOTS
        )

    def hit(self, now: int) -> bool:
        fits = self.counted(now) < self.limit
        if fits:
            self.admitted.append(now)
        return fits


steps = st.lists(st.integers(0, 2 * SECOND), min_size=1, max_size=80)


@given(st.integers(1, 6), st.integers(1, 5), steps, st.integers(0, 10**16))
def test_the_engine_decides_as_the_obvious_model(
    amount: int, seconds: int, waits: list[int], start: int
) -> None:
    """Over any history the engine admits what the slow model admits, and tells the same rest."""
    limit = parse_limit(f"{amount}/{seconds}s")
    clock = Clock(start)
    engine, model = MemoryCounters(clock=clock), Obvious(amount, limit.rule.window)
    for wait in waits:
        clock.now += wait
        admitted, (outcome,), _ = engine.reserve([Demand("b", limit.rule, 1)])
        assert admitted == model.hit(clock.now)
        assert outcome.remaining == amount - model.counted(clock.now)
        assert (outcome.wait == 0) == admitted


@given(st.integers(1, 6), st.integers(1, 5), steps, st.integers(0, 10**16))
def test_no_window_admits_more_and_no_unit_is_held_longer(
    amount: int, seconds: int, waits: list[int], start: int
) -> None:
    """In no span of W are more admitted than the limit; a refusal is never idle for W/60 more."""
    limit = parse_limit(f"{amount}/{seconds}s")
    window = limit.rule.window
    clock = Clock(start)
    engine = MemoryCounters(clock=clock)
    admitted: list[int] = []
    for wait in waits:
        clock.now += wait
        passed, _, _ = engine.reserve([Demand("b", limit.rule, 1)])
        if passed:
            admitted.append(clock.now)
        else:
            # Those in the last W + W/60 fill the limit: nothing older was held against it.
            longest = window + -(-window // SLOTS)
            assert sum(1 for at in admitted if clock.now - at < longest) >= amount
    for at in admitted:
        assert sum(1 for other in admitted if at <= other < at + window) <= amount


@given(st.integers(1, 6), st.integers(1, 5), steps, st.integers(0, 10**16))
def test_a_refused_request_passes_when_it_was_told_to_come(
    amount: int, seconds: int, waits: list[int], start: int
) -> None:
    """LIM-5: `wait` is never early, and at most W/60 later than the window needs."""
    limit = parse_limit(f"{amount}/{seconds}s")
    clock = Clock(start)
    engine = MemoryCounters(clock=clock)
    for pause in waits:
        clock.now += pause
        admitted, (outcome,), _ = engine.reserve([Demand("b", limit.rule, 1)])
        if not admitted:
            clock.now += outcome.wait - 1
            assert engine.test([Demand("b", limit.rule, 1)])[0] is False
            clock.now += 1
            assert engine.reserve([Demand("b", limit.rule, 1)])[0] is True


def test_all_demands_or_none() -> None:
    """What one limit refuses is spent in none of them."""
    clock = Clock()
    engine = MemoryCounters(clock=clock)
    wide, narrow = parse_limits(["5/min", "1/s"])
    demands = [Demand("w", wide.rule, 1), Demand("n", narrow.rule, 1)]
    assert engine.reserve(demands)[0] is True
    assert engine.reserve(demands)[0] is False
    clock.advance(1.1)
    assert [outcome.remaining for outcome in engine.test(demands)[1]] == [4, 1]


def test_buckets_whose_window_has_passed_are_dropped() -> None:
    """CNT-6: a million names leave no more than two windows' worth behind."""
    clock = Clock()
    engine = MemoryCounters(clock=clock)
    limit = parse_limit("5/s")
    most = 0
    for number in range(20_000):
        engine.reserve([Demand(str(number), limit.rule, 1)])
        clock.now += SECOND // 100
        most = max(most, len(engine))
    assert most <= 2 * 104


def test_refused_requests_make_no_bucket() -> None:
    """A test, and a demand that is refused beside another one, keep nothing."""
    engine = MemoryCounters(clock=Clock())
    full, other = parse_limits(["1/min", "9/hour"])
    engine.reserve([Demand("full", full.rule, 1)])
    engine.test([Demand("a", other.rule, 1)])
    engine.reserve([Demand("full", full.rule, 1), Demand("b", other.rule, 1)])
    assert len(engine) == 1


def test_state_is_at_most_61_counts() -> None:
    """However large the limit, a window keeps 61 slots at most."""
    clock = Clock()
    engine = MemoryCounters(clock=clock)
    limit = parse_limit("1000000/min")
    for _ in range(1000):
        engine.reserve([Demand("b", limit.rule, 1)])
        clock.now += SECOND // 7
    state, _ = engine._table["b"]
    assert len(state) <= 1 + 61 * 3


REPORTS = [
    Report(
        "minute", "requests", 100, 60, 42, 30 * SECOND, policy("minute", parse_limit("100/min"))
    ),
    Report(
        "day", "requests", 1000, 86_400, 7, 3_661 * SECOND, policy("day", parse_limit("1000/day"))
    ),
]


def test_the_standard_headers_name_every_limit() -> None:
    """`RateLimit` and `RateLimit-Policy` list each limit, by the draft's form."""
    headers = dict(rate_headers(REPORTS, "plain"))
    assert headers["RateLimit-Policy"] == '"minute";q=100;w=60, "day";q=1000;w=86400'
    assert headers["RateLimit"] == '"minute";r=42;t=30, "day";r=7;t=3661'


def test_sdks_are_told_of_the_nearest_limit() -> None:
    """OpenAI's and Anthropic's headers have room for one limit: the one with the least left."""
    openai = dict(rate_headers(REPORTS, "openai"))
    assert openai["x-ratelimit-limit-requests"] == "1000"
    assert openai["x-ratelimit-remaining-requests"] == "7"
    assert openai["x-ratelimit-reset-requests"] == "1h1m1s"
    anthropic = dict(rate_headers(REPORTS, "anthropic"))
    assert anthropic["anthropic-ratelimit-requests-remaining"] == "7"
    assert anthropic["anthropic-ratelimit-requests-reset"].endswith("Z")
    assert not any(name.startswith("x-ratelimit") for name in anthropic)


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [(0, "0ms"), (1, "1ms"), (17_000, "17ms"), (SECOND, "1s"), (SECOND + 1, "2s"),
     (59_500_000, "1m0s"), (360 * SECOND, "6m0s"), (5_400 * SECOND, "1h30m0s")],
)  # fmt: skip
def test_durations_are_written_as_openai_does(microseconds: int, text: str) -> None:
    """A time is rounded up, never down."""
    assert duration(microseconds) == text
