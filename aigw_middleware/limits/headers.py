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
from operator import attrgetter
from typing import NamedTuple

from .grammar import SECOND


class Report(NamedTuple):
    """What is to be told of one limit.

    Attributes:
        name: the limit's name for the client.
        unit: `requests`.
        amount: the limit, in units.
        window: its window in seconds.
        remaining: the units that are left.
        reset: nanoseconds until more units are there than now; 0 where all are.
        policy: its part of `RateLimit-Policy`.
    """

    name: str
    unit: str
    amount: int
    window: int
    remaining: int
    reset: int
    policy: str = ""


def policy(name: str, amount: int, window: int) -> str:
    """Return what `RateLimit-Policy` tells of a limit: the same for every answer."""
    return f'"{name}";q={amount};w={window}'


def rate_headers(reports: Sequence[Report], dialect: str) -> list[tuple[str, str]]:
    """Return the headers for the limits that a request has met, the outermost first."""
    if not reports:
        return []
    headers = [
        ("RateLimit-Policy", ", ".join([report.policy for report in reports])),
        ("RateLimit", ", ".join([_left(report) for report in reports])),
    ]
    # The SDKs' headers have room for one limit: the one that is nearest.
    nearest = min(reports, key=_remaining)
    headers += _anthropic(nearest) if dialect == "anthropic" else _openai(nearest)
    return headers


_remaining = attrgetter("remaining")


def _seconds(nanoseconds: int) -> int:
    return -(-nanoseconds // SECOND)


def _left(report: Report) -> str:
    return f'"{report.name}";r={report.remaining};t={_seconds(report.reset)}'


def _openai(report: Report) -> list[tuple[str, str]]:
    return [
        ("x-ratelimit-limit-requests", str(report.amount)),
        ("x-ratelimit-remaining-requests", str(report.remaining)),
        ("x-ratelimit-reset-requests", duration(report.reset)),
    ]


def _anthropic(report: Report) -> list[tuple[str, str]]:
    reset = datetime.fromtimestamp(math.ceil(time.time() + report.reset / SECOND), UTC)
    return [
        ("anthropic-ratelimit-requests-limit", str(report.amount)),
        ("anthropic-ratelimit-requests-remaining", str(report.remaining)),
        ("anthropic-ratelimit-requests-reset", reset.strftime("%Y-%m-%dT%H:%M:%SZ")),
    ]


def duration(nanoseconds: int) -> str:
    """Return a time as OpenAI writes it: `17ms`, `1s`, `6m0s`, `1h30m0s`; never too short."""
    if nanoseconds < SECOND:
        return f"{math.ceil(nanoseconds / 1_000_000)}ms"
    seconds = _seconds(nanoseconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}s"
