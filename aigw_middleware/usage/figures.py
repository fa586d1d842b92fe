"""The figures of a request's usage."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from types import SimpleNamespace
from typing import Any, NamedTuple

NANO = 10**9
"""Nano-dollars in a dollar: costs are summed as integers."""
Details = tuple[tuple[str, int], ...]
"""Tokens of kinds that may have a price of their own, by the names of `genai_prices.Usage`."""
_MOST_TOKENS = 10**12
_MOST_COST = 10**15


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request has used, left in `environ["aigw.usage"]`.

    Any object with these attributes will do there, or a dict with these members; a missing one
    counts as 0 or None.

    Attributes:
        input_tokens: all of them, cache reads and writes included.
        output_tokens: all of them, reasoning included.
        cached_input_tokens: those of the input that were read from a cache.
        reasoning_tokens: those of the output that were spent on reasoning.
        cost: in USD; None where it is not known.
        cache_write_tokens: those of the input that were written to a cache.
        estimated: whether the figures are a guess, of an answer that broke off before its
            provider told any.
        costs_more: whether it is billed at more than the model's own price, nobody knows by how
            much: then what was reserved of a limit of money stays charged at least.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | Decimal | None = None
    cache_write_tokens: int = 0
    estimated: bool = False
    costs_more: bool = False


class Figures(NamedTuple):
    """The same as checked integers; the cost in nano-dollars."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    reasoning_tokens: int
    cost: int | None


def figures_of(usage: Any) -> Figures:
    """Return the figures of a usage object, clamped to what can be: nothing adds to a balance."""
    if isinstance(usage, dict):
        usage = SimpleNamespace(**{n: usage[n] for n in Figures._fields if n in usage})
    return Figures(
        sane_tokens(getattr(usage, "input_tokens", 0)),
        sane_tokens(getattr(usage, "output_tokens", 0)),
        sane_tokens(getattr(usage, "cached_input_tokens", 0)),
        sane_tokens(getattr(usage, "reasoning_tokens", 0)),
        _cost(getattr(usage, "cost", None)),
    )


def sane_tokens(value: Any) -> int:
    """Return a number of tokens; 0 for what is none, and never more than can be."""
    if type(value) is int and 0 <= value <= _MOST_TOKENS:  # nearly always
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        return 0
    return min(max(value, 0), _MOST_TOKENS)


def _cost(value: Any) -> int | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        nano = int((value if type(value) is Decimal else Decimal(str(value))) * NANO)
    except (InvalidOperation, ValueError, OverflowError):
        return None
    return min(max(nano, 0), _MOST_COST)
