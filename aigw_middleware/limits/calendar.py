"""Calendar windows: an hour, a day, a week (from Monday) or a month of a time zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

UNITS = ("hour", "day", "week", "month")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Period(NamedTuple):
    """From when until when, in microseconds since 1970 (UTC)."""

    begins: int
    ends: int


class Calendar(NamedTuple):
    """A kind of period.

    Attributes:
        unit: `hour`, `day`, `week` or `month`.
        zone: the name of a time zone (IANA), `UTC` by default.
    """

    unit: str
    zone: str = "UTC"

    def period(self, at: int) -> Period:
        """Return the period that the time `at` (microseconds since 1970) is in."""
        known = _last.get(self)
        if known is None or not known.begins <= at < known.ends:
            known = _last[self] = _period(self, at)
        return known


_last: dict[Calendar, Period] = {}


def zone_named(name: str) -> tzinfo:
    """Return a time zone.

    Raises:
        ValueError: there is none of that name.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone") from None


def _period(calendar: Calendar, at: int) -> Period:
    zone = _zone(calendar.zone)
    local = (_EPOCH + timedelta(microseconds=at)).astimezone(zone)
    begins = _floor(calendar.unit, local)
    return Period(_utc(begins, zone), _utc(_next(calendar.unit, begins), zone))


@lru_cache(64)
def _zone(name: str) -> tzinfo:
    return zone_named(name)


def _floor(unit: str, local: datetime) -> datetime:
    """Return the beginning of the period on the clock on the wall."""
    local = local.replace(tzinfo=None, minute=0, second=0, microsecond=0, fold=0)
    if unit == "hour":
        return local
    local = local.replace(hour=0)
    if unit == "week":
        return local - timedelta(days=local.weekday())
    return local.replace(day=1) if unit == "month" else local


def _next(unit: str, begins: datetime) -> datetime:
    if unit == "month":
        return (begins + timedelta(days=32)).replace(day=1)
    return begins + {"hour": timedelta(hours=1), "day": timedelta(1), "week": timedelta(7)}[unit]


def _utc(local: datetime, zone: tzinfo) -> int:
    return (local.replace(tzinfo=zone) - _EPOCH) // _MICROSECOND
