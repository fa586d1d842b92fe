"""Windows of the week in which a key is good: `mon-fri 08:00-18:00 Europe/Berlin`."""

from __future__ import annotations

import re
from datetime import datetime, time
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FORM = re.compile(
    r"(?:(?P<days>[a-z,-]+) +)?(?P<from>\d\d:\d\d)-(?P<to>\d\d:\d\d)(?: +(?P<zone>[\w+/-]+))?"
).fullmatch


class Window(NamedTuple):
    """A span of some days of the week.

    Attributes:
        days: the days on which it begins, 0 for Monday.
        begins: when; the minute is in it.
        ends: when; the minute is not in it. Not after `begins`: on the next day.
        zone: the zone of both.
    """

    days: frozenset[int]
    begins: time
    ends: time
    zone: ZoneInfo

    def holds(self, now: datetime) -> bool:
        """Whether `now`, an aware datetime, is in it."""
        local = now.astimezone(self.zone)
        today, clock = local.weekday(), local.time()
        if self.begins < self.ends:
            return today in self.days and self.begins <= clock < self.ends
        if clock >= self.begins:
            return today in self.days
        return clock < self.ends and (today - 1) % 7 in self.days


@lru_cache(maxsize=1024)
def read_window(text: str) -> Window:
    """Read a window: days (`mon-fri`, `sat,sun`; none: all), a span, a time zone (none: UTC).

    Raises:
        ValueError: it is none.
    """
    match = _FORM(text.strip())
    if match is None:
        raise ValueError(
            f"active: {text!r} is no window of the week, like mon-fri 08:00-18:00 Europe/Berlin"
        )
    return Window(
        _days(match["days"]), _time(match["from"]), _time(match["to"]), _zone(match["zone"])
    )


def _days(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"active: {part!r} is none of {', '.join(DAYS)}, or a span of them")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        found |= {day % 7 for day in range(begin, end + (7 if end < begin else 0) + 1)}
    return frozenset(found)


def _time(text: str) -> time:
    if text == "24:00":
        return time(0)
    try:
        return time.fromisoformat(text)
    except ValueError:
        raise ValueError(f"active: {text!r} is no time of the day") from None


def _zone(text: str | None) -> ZoneInfo:
    try:
        return ZoneInfo(text or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"active: {text!r} is no time zone") from None
