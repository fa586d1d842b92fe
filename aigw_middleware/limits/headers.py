"""The response headers that tell a client of its limits.

Two forms: the standard one, `RateLimit` and `RateLimit-Policy`, by
draft-ietf-httpapi-ratelimit-headers-10 (https://datatracker.ietf.org/doc/
draft-ietf-httpapi-ratelimit-headers/), and the one that the client's SDK knows: OpenAI's
`x-ratelimit-*` (https://platform.openai.com/docs/guides/rate-limits) or Anthropic's
`anthropic-ratelimit-*` (https://docs.anthropic.com/en/api/rate-limits).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from .grammar import CONCURRENT, NANO, REQUESTS, USD, Limit
from .states import SECOND


class Report(NamedTuple):
    """What is to be told of one limit.

    Attributes:
        name: the limit's name for the client.
        unit: `requests`, `tokens`, `usd` (nano-dollars), ...
        amount: the limit, in units.
        window: its window in seconds; 0 where it has none.
        remaining: the units that are left.
        reset: microseconds until more units are there than now; 0 where all are.
        policy: its part of `RateLimit-Policy`.
    """

    name: str
    unit: str
    amount: int
    window: int
    remaining: int
    reset: int
    policy: str = ""


def policy(name: str, limit: Limit) -> str:
    """Return what `RateLimit-Policy` tells of a limit: the same for every answer.

    Money is told in cents, since the field has whole numbers.
    """
    text = f'"{name}";q={_told(limit.unit, limit.amount)}'
    if limit.unit == CONCURRENT:
        return text + ';qu="concurrent-requests"'
    return f"{text};w={limit.window}" if limit.window else text


def _told(unit: str, amount: int) -> int:
    return max(0, amount * 100 // NANO if unit == USD else amount)


def rate_headers(reports: Sequence[Report], dialect: str) -> list[tuple[str, str]]:
    """Return the headers for the limits that a request has met, the outermost first."""
    if not reports:
        return []
    headers = [
        ("RateLimit-Policy", ", ".join([report.policy for report in reports])),
        ("RateLimit", ", ".join([_left(report) for report in reports])),
    ]
    # The SDKs' headers have room for one limit of a unit: the one that is nearest.
    nearest: dict[str, Report] = {}
    for report in reports:
        known = nearest.get(report.unit)
        if known is None or report.remaining < known.remaining:
            nearest[report.unit] = report
    told, units = (_anthropic, _TO_CLAUDE) if dialect == "anthropic" else (_openai, _TO_OTHERS)
    for unit, name in units:
        if unit in nearest:
            headers += told(name, nearest[unit])
    return headers


_TO_OTHERS = ((REQUESTS, "requests"), ("tokens", "tokens"))
_TO_CLAUDE = (
    *_TO_OTHERS,
    ("input_tokens", "input-tokens"),
    ("output_tokens", "output-tokens"),
)


def _seconds(microseconds: int) -> int:
    return -(-microseconds // SECOND)


def _left(report: Report) -> str:
    text = f'"{report.name}";r={_told(report.unit, report.remaining)}'
    return text if report.unit == CONCURRENT else f"{text};t={_seconds(report.reset)}"


def _openai(unit: str, report: Report) -> list[tuple[str, str]]:
    return [
        (f"x-ratelimit-limit-{unit}", str(report.amount)),
        (f"x-ratelimit-remaining-{unit}", str(max(0, report.remaining))),
        (f"x-ratelimit-reset-{unit}", duration(report.reset)),
    ]


def _anthropic(unit: str, report: Report) -> list[tuple[str, str]]:
    reset = datetime.fromtimestamp(math.ceil(time.time() + report.reset / SECOND), UTC)
    return [
        (f"anthropic-ratelimit-{unit}-limit", str(report.amount)),
        (f"anthropic-ratelimit-{unit}-remaining", str(max(0, report.remaining))),
        (f"anthropic-ratelimit-{unit}-reset", reset.strftime("%Y-%m-%dT%H:%M:%SZ")),
    ]


def duration(microseconds: int) -> str:
    """Return a time as OpenAI writes it: `17ms`, `1s`, `6m0s`, `1h30m0s`; never too short."""
    if microseconds < SECOND:
        return f"{math.ceil(microseconds / 1000)}ms"
    seconds = _seconds(microseconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}s"
