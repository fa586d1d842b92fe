"""What people and programs are shown of a count."""

from __future__ import annotations

from typing import Any

from ..counters.engine import Count
from .grammar import NANO, USD
from .states import SECOND


def document(count: Count) -> dict[str, Any]:
    """Return a count as JSON shows it.

    Returns:
        `limiter` (the limiter's name, or what it counts by), `limit` (its unit and window),
        `bucket`, `used` (dollars for money; what is reserved for requests that run is in it),
        `left` (units that may still be admitted, below zero where an answer cost more than was
        reserved), `unit` of both, and `expires_in`, the seconds until all of it has left. Of a
        limit with a burst `used` is the seconds that it is ahead of its pace, and `left` units.
    """
    limiter, _, rest = count.name.partition("|")
    limit, _, bucket = rest.partition("|")
    unit = limit.partition("-")[0]
    used: float = count.used
    left: float = count.left
    if count.kind == "pace":
        unit, used = "seconds ahead", count.used / SECOND
    elif unit == USD:
        used, left = used / NANO, left / NANO
    return {
        "limiter": limiter,
        "limit": limit,
        "bucket": bucket,
        "used": used,
        "left": left,
        "unit": unit,
        "expires_in": round(count.expires / SECOND, 3),
    }


def is_of(row: dict[str, Any], key_id: str) -> bool:
    """Whether a count, as `document` shows it, is of a key's own limits or by that key."""
    return row["bucket"] in (key_id, f"key:{key_id}")
