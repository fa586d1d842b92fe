"""The grammar of a limit: `"100/min"`, `"10/s"`, `"30/90s"`, `"1000 requests/day"`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from .._options import several

SECOND = 1_000_000_000
"""Nanoseconds, the unit of every time in this room."""
LONGEST = 31 * 86_400
MOST = 10**15

_UNITS = {
    "s": 1, "sec": 1, "second": 1,
    "m": 60, "min": 60, "minute": 60,
    "h": 3600, "hour": 3600,
    "d": 86_400, "day": 86_400,
}  # fmt: skip

_FORM = re.compile(
    r"(?P<amount>[0-9][0-9_]*)(?:\s+(?P<unit>[a-z_]+))?\s*(?:/|\s+per\s+)\s*"
    r"(?P<count>[0-9]+)?\s*(?P<window>[a-z]+)",
    re.IGNORECASE,
).fullmatch


@dataclass(frozen=True, slots=True)
class Limit:
    """So many units in any span of a window's length.

    Attributes:
        amount: the units that may be admitted, at least 1.
        unit: what is counted: `requests`.
        window: the length of the window in seconds.
        text: the limit as it was written.
        window_ns: the length of the window in nanoseconds.
    """

    amount: int
    unit: str
    window: int
    text: str
    window_ns: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Kept, since every decision asks for it.
        object.__setattr__(self, "window_ns", self.window * SECOND)

    @property
    def kind(self) -> str:
        """What distinguishes it from other limits: not its amount, which may be changed."""
        return f"{self.unit}-{self.window}s"


def parse_limit(text: str, *, option: str = "limits") -> Limit:
    """Read one limit.

    Args:
        text: amount, unit (`requests` where none is named) and window: `s`, `min`, `h`, `day`,
            or so many of them (`30/90s`), from 1 second to 31 days.
        option: the option that it comes from, for the error.

    Raises:
        ValueError: it cannot be read, or its amount or window is out of bounds.
    """
    match = _FORM(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'{option}: {text!r} is no limit; write one like "100/min" or "30/90s"')
    unit = (match["unit"] or "requests").lower()
    if unit not in ("request", "requests"):
        raise ValueError(f"{option}: {text!r}: the unit {unit!r} is not known; requests is")
    seconds = _UNITS.get(match["window"].lower())
    if seconds is None:
        raise ValueError(f"{option}: {text!r}: the window is in s, min, h or day")
    window = int(match["count"] or 1) * seconds
    if not 1 <= window <= LONGEST:
        raise ValueError(f"{option}: {text!r}: a window is between 1 second and 31 days")
    amount = int(match["amount"].replace("_", ""))
    if not 1 <= amount <= MOST:
        raise ValueError(f"{option}: {text!r}: the amount is between 1 and {MOST:,}")
    return Limit(amount, "requests", window, text.strip())


def parse_limits(texts: str | Iterable[str], *, option: str = "limits") -> tuple[Limit, ...]:
    """Read one limit or several; two of the same unit and window are a mistake.

    Raises:
        ValueError: as `parse_limit`, or a unit and window stand there twice.
    """
    limits = tuple(parse_limit(text, option=option) for text in several(option, texts))
    kinds = [limit.kind for limit in limits]
    for position, kind in enumerate(kinds):
        if kind in kinds[:position]:
            raise ValueError(
                f"{option}: {limits[position].text!r} has the unit and the window of another limit"
            )
    return limits
