"""What people and programs are shown of a count."""

from __future__ import annotations

from typing import Any

from ..counters.engine import Count
from .grammar import NANO, REQUESTS, USD
from .states import SECOND


def document(count: Count) -> dict[str, Any]:
    """Return a count as JSON shows it.

    Returns:
        `limiter` (the limiter's name, or what it counts by), `limit` (its unit and window),
        `bucket`, `used` (dollars for money; for concurrency the slots that are held), `reserved`
        (for requests that still run, and of workers that have died), `left` (units that may still
        be admitted, below zero where an answer cost more than was reserved), `unit` of all three,
        and `expires_in`, the seconds until all of it has left. Of a limit with a burst `used` and
        `reserved` are the seconds that it is ahead of its pace, and `left` is units.
    """
    limiter, _, rest = count.name.partition("|")
    limit, _, bucket = rest.partition("|")
    unit = limit.partition("-")[0]
    # A request is counted as it comes in, and that is never settled.
    reserved: float = 0 if unit == REQUESTS else count.reserved
    used: float = count.used - reserved
    left: float = count.left
    if count.kind == "pace":
        unit, used, reserved = "seconds ahead", used / SECOND, reserved / SECOND
    elif unit == USD:
        used, reserved, left = used / NANO, reserved / NANO, left / NANO
    return {
        "limiter": limiter,
        "limit": limit,
        "bucket": bucket,
        "used": used,
        "reserved": reserved,
        "left": left,
        "unit": unit,
        "expires_in": round(count.expires / SECOND, 3),
    }


def is_of(row: dict[str, Any], key_id: str) -> bool:
    """Whether a count, as `document` shows it, is of a key's own limits or by that key."""
    return row["bucket"] in (key_id, f"key:{key_id}")
