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
        `bucket`, `used` (dollars for money), `unit`, and `expires_in`, the seconds until all of
        it has left; 0 where the engine does not keep that.
    """
    limiter, _, rest = count.name.partition("|")
    limit, _, bucket = rest.partition("|")
    unit = limit.partition("-")[0]
    used: float = count.used
    if count.kind == "pace":
        unit, used = "seconds ahead", count.used / SECOND
    elif unit == USD:
        used = count.used / NANO
    return {
        "limiter": limiter,
        "limit": limit,
        "bucket": bucket,
        "used": used,
        "unit": unit,
        "expires_in": round(count.expires / SECOND, 3),
    }
