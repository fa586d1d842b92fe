"""The grammar of a limit.

::

    "100/min"   "10/s"   "30/90s"   "1000 requests/day"          requests in a sliding window
    "100000 tokens/min"   "20000 output_tokens/min"              tokens
    "5 usd/day"   "50 usd/calendar-month"   "... Europe/Berlin"  money; a window of the calendar
    "100/min burst 20"                                           at most so many at once
    "10 usd/day for openai/gpt-4o*"                              of some models
    "8 concurrent"                                               at a time
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from .._options import several
from .calendar import UNITS as CALENDAR_UNITS
from .calendar import Calendar, zone_named
from .states import SECOND, Rule

LONGEST = 31 * 86_400
MOST = 10**15
NANO = 10**9
"""Nano-dollars in a dollar: money is counted in whole ones, never in floats."""
MOST_USD = 9_007_199
"""The largest limit of money: its nano-dollars are exact in every engine (2 to the 53rd)."""

REQUESTS, CONCURRENT, USD = "requests", "concurrent", "usd"
TOKENS = ("tokens", "input_tokens", "output_tokens")

_WINDOWS = {
    "s": 1, "sec": 1, "second": 1,
    "m": 60, "min": 60, "minute": 60,
    "h": 3600, "hour": 3600,
    "d": 86_400, "day": 86_400,
}  # fmt: skip
_UNITS = {
    "request": REQUESTS, "requests": REQUESTS, "usd": USD,
    **{unit: unit for unit in TOKENS}, **{unit[:-1]: unit for unit in TOKENS},
}  # fmt: skip

_MODEL = r"(?:\s+for\s+(?P<model>\S+))?"
_FORM = re.compile(
    r"(?P<amount>[0-9][0-9_]{0,30}(?:\.[0-9]{1,9})?)(?:\s+(?P<unit>[a-z_]+))?\s*(?:/|\s+per\s+)\s*"
    r"(?:calendar-(?P<calendar>[a-z]+)(?:\s+(?!for\b|burst\b)(?P<zone>[A-Za-z0-9_+/-]+))?"
    r"|(?P<count>[0-9]{1,9})?\s*(?P<window>[a-z]+))"
    r"(?:\s+burst\s+(?P<burst>[0-9][0-9_]{0,30}))?" + _MODEL,
    re.IGNORECASE,
).fullmatch
_AT_A_TIME = re.compile(
    r"(?P<amount>[0-9][0-9_]{0,30})\s+concurrent" + _MODEL, re.IGNORECASE
).fullmatch


@dataclass(frozen=True, slots=True)
class Limit:
    """So many units in any span of a window's length, in a calendar's period, or at a time.

    Attributes:
        amount: the units that may be admitted, at least 1; of money, nano-dollars.
        unit: `requests`, `tokens`, `input_tokens`, `output_tokens`, `usd` or `concurrent`.
        window: the length of the window in seconds; 0 for a calendar's and for `concurrent`.
        text: the limit as it was written.
        calendar: the period of a calendar; None for a sliding window.
        model: the pattern of the models that it is for; None for all.
        burst: for the second half of a limit with a burst, how many are admitted at once.
        rule: the limit as the engines need it.
    """

    amount: int
    unit: str
    window: int
    text: str
    calendar: Calendar | None = None
    model: str | None = None
    burst: int | None = None
    rule: Rule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Kept, since every decision asks for it.
        object.__setattr__(self, "rule", self._made_rule())

    def _made_rule(self) -> Rule:
        if self.unit == CONCURRENT:
            return Rule("leases", self.amount, 0)
        if self.calendar is not None:
            return Rule("period", self.amount, 0)
        window = self.window * SECOND
        if self.burst is None:
            return Rule("window", self.amount, window)
        return Rule("pace", -(-self.burst * window // self.amount), window, self.amount)

    @property
    def most(self) -> int:
        """How many units one request may ever want."""
        return self.amount if self.burst is None else self.burst

    @property
    def kind(self) -> str:
        """What distinguishes it from other limits: not its amount, which may be changed."""
        parts = [self.unit]
        if self.calendar is not None:
            parts.append(f"calendar-{self.calendar.unit}")
            if self.calendar.zone != "UTC":
                parts.append(self.calendar.zone)
        elif self.window:
            parts.append(f"{self.window}s")
        if self.burst is not None:
            parts.append("burst")
        if self.model is not None:
            parts.append(self.model)
        return "-".join(parts)


def tokens_of(unit: str, input_tokens: int, output_tokens: int) -> int:
    """Return how many of so many tokens a limit of `unit` (one of `TOKENS`) counts."""
    if unit == "input_tokens":
        return input_tokens
    return output_tokens if unit == "output_tokens" else input_tokens + output_tokens


def parse_limit(text: str, *, option: str = "limits") -> Limit:
    """Read one limit without a burst; see `parse_limits`."""
    return _parse(text, option)[0]


def parse_limits(texts: str | Iterable[str], *, option: str = "limits") -> tuple[Limit, ...]:
    """Read one limit or several; two of the same unit, window and models are a mistake.

    Args:
        texts: amount, unit (`requests` where none is named) and window: `s`, `min`, `h`, `day`,
            so many of them (`30/90s`), from 1 second to 31 days, or `calendar-hour`, `-day`,
            `-week`, `-month`, in UTC or the zone behind it. Then, where wanted, `burst N` and
            `for PATTERN`. Or `N concurrent`.
        option: the option that they come from, for the error.

    Returns:
        The limits; one with a burst makes two.

    Raises:
        ValueError: one cannot be read, or is out of bounds, or stands there twice.
    """
    limits = tuple(limit for text in several(option, texts) for limit in _parse(text, option))
    kinds = [limit.kind for limit in limits]
    for position, kind in enumerate(kinds):
        if kind in kinds[:position]:
            raise ValueError(
                f"{option}: {limits[position].text!r} has the unit and the window of another limit"
            )
    return limits


def _parse(text: object, option: str) -> tuple[Limit, ...]:
    stripped = text.strip() if isinstance(text, str) else ""
    at_a_time = _AT_A_TIME(stripped)
    match = at_a_time or _FORM(stripped)
    if match is None or not stripped.isascii():
        raise ValueError(f'{option}: {text!r} is no limit; write one like "100/min" or "30/90s"')
    try:
        model = _model(match["model"])
        if at_a_time is not None:
            amount = _amount(match["amount"], CONCURRENT)
            return (Limit(amount, CONCURRENT, 0, stripped, model=model),)
        return _windowed(match, stripped, model)
    except ValueError as error:
        raise ValueError(f"{option}: {text!r}: {error}") from None


def _windowed(match: re.Match[str], text: str, model: str | None) -> tuple[Limit, ...]:
    name = (match["unit"] or REQUESTS).lower()
    unit = _UNITS.get(name)
    if unit is None:
        known = ", ".join((REQUESTS, *TOKENS, USD, CONCURRENT))
        raise ValueError(f"the unit {name!r} is none of {known}")
    amount = _amount(match["amount"], unit)
    if match["calendar"]:
        if match["burst"]:
            raise ValueError("a burst has no place in a calendar's period")
        calendar = _calendar(match["calendar"].lower(), match["zone"])
        return (Limit(amount, unit, 0, text, calendar=calendar, model=model),)
    window = _window(match["count"], match["window"].lower())
    limit = Limit(amount, unit, window, text, model=model)
    if not match["burst"]:
        return (limit,)
    burst = _amount(match["burst"], unit)
    if burst > amount:
        raise ValueError("a burst is at most the amount of its window")
    return limit, Limit(amount, unit, window, text, model=model, burst=burst)


def _amount(text: str, unit: str) -> int:
    number = Decimal(text.replace("_", ""))
    if unit == USD:
        if not 0 < number <= MOST_USD:
            raise ValueError(f"the amount is more than 0 and at most {MOST_USD:,} usd")
        return int(number * NANO)
    if number != int(number) or "." in text:
        raise ValueError(f"the amount of {unit} is a whole number")
    if not 1 <= number <= MOST:
        raise ValueError(f"the amount is between 1 and {MOST:,}")
    return int(number)


def _window(count: str | None, name: str) -> int:
    seconds = _WINDOWS.get(name)
    if seconds is None:
        raise ValueError("the window is in s, min, h or day, or one of the calendar")
    window = int(count or 1) * seconds
    if not 1 <= window <= LONGEST:
        raise ValueError("a window is between 1 second and 31 days")
    return window


def _calendar(unit: str, zone: str | None) -> Calendar:
    if unit not in CALENDAR_UNITS:
        raise ValueError(f"the calendar has {', '.join(CALENDAR_UNITS)}, not {unit!r}")
    zone_named(zone or "UTC")
    return Calendar(unit, zone or "UTC")


def _model(pattern: str | None) -> str | None:
    if pattern is None:
        return None
    if not re.fullmatch(r"[A-Za-z0-9._:/@+*-]{1,256}", pattern):
        raise ValueError(f"{pattern!r} is no pattern of a model's name")
    return pattern.lower()
