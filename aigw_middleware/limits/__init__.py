"""Limits: their grammar, the arithmetic of windows, and the headers that tell of them.

Nothing here reads a clock or keeps state; the engines in `aigw_middleware.counters` do.
"""

from .grammar import Limit, parse_limit, parse_limits

__all__ = ["Limit", "parse_limit", "parse_limits"]
