"""In which order the providers of a model are asked.

A strategy orders the providers; the keys of each keep their order, and so do the models that a
client wishes for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from decimal import Decimal

from ..usage.prices import Prices
from .health import Health
from .route import Candidate

Wish = Sequence[Sequence[Candidate]]
"""The candidates for one model: by provider, the keys of each."""

STRATEGIES = ("order", "weighted", "least-busy", "cheapest")


def arranged(
    wishes: Sequence[Wish],
    strategy: str,
    health: Health,
    prices: Prices,
    *,
    chance: Callable[[], float] = random.random,
) -> list[Candidate]:
    """Return all candidates in the order in which they are asked.

    Args:
        wishes: the candidates for each model, in the client's order.
        strategy: one of `STRATEGIES`.
        health: knows who rests: those come after all others.
        prices: by which the cheapest is found; one without a price comes last.
        chance: returns a number from 0 to below 1.
    """
    found: list[Candidate] = []
    for wish in wishes:
        ordered = [keys for keys in wish if keys]
        if len(ordered) > 1 and strategy != "order":
            ordered = _ordered(ordered, strategy, health, prices, chance)
        found += [candidate for keys in ordered for candidate in keys]
    found = list(dict.fromkeys(found))
    if len(found) < 2:
        return found
    ready = [candidate for candidate in found if health.is_ready(candidate)]
    if len(ready) in (0, len(found)):
        return found
    return ready + [candidate for candidate in found if candidate not in ready]


def _ordered(
    providers: list[Sequence[Candidate]],
    strategy: str,
    health: Health,
    prices: Prices,
    chance: Callable[[], float],
) -> list[Sequence[Candidate]]:
    if strategy == "weighted":
        # Efraimidis and Spirakis, 2006: drawn without putting back, by weight; by the logarithm of
        # their key, since small weights would leave nothing of the key itself.
        drawn = [(-math.log(1 - chance()) / keys[0].weight, keys) for keys in providers]
        return [keys for _, keys in sorted(drawn, key=lambda pair: pair[0])]
    if strategy == "least-busy":
        return sorted(providers, key=lambda keys: health.busy(keys[0]))
    return sorted(providers, key=lambda keys: _price(keys[0], prices))


def _price(candidate: Candidate, prices: Prices) -> tuple[bool, Decimal]:
    price = prices.of(candidate.provider, candidate.model)
    return (True, Decimal(0)) if price is None else (False, price.input + price.output)
