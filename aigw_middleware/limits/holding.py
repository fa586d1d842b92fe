"""What is held for one request: units until its answer is closed, a slot while it lives."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from .._saying import OnceAMinute
from ..counters.engine import DEADLINE, Demand, Engine, Settlement
from ..counters.keeper import keeper_of
from ..environ import MODEL, PROVIDER, USAGE
from ..errors import StoreUnavailable
from ..usage.figures import Figures, figures_of
from ..usage.prices import Price, Prices
from .grammar import CONCURRENT, REQUESTS, TOKENS, USD, tokens_of
from .headers import Report
from .states import LEASE, SECOND

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger(__name__)
_said = OnceAMinute(logger)


class _Held(NamedTuple):
    unit: str
    demand: Demand
    mark: int
    price: Price | None
    late: bool


class Holding:
    """The reservations of one request.

    Args:
        engine: where they are.
        prices: by which money is settled that was reserved when nobody knew the model.

    Attributes:
        engine: where they are.
        refused: whether the last candidate was refused what depends on it.
        early_output: the output tokens an answer that were reserved where the client named no cap,
            of limits that do not depend on the candidate.
        late_reports: what was told of the limits that depend on the candidate.
        good_until: the `time.monotonic()` until which its slots are known to be held.
    """

    def __init__(self, engine: Engine, prices: Prices) -> None:
        keeper_of(engine).drain()
        self.engine = engine
        self._prices = prices
        self._held: list[_Held] = []
        self._closed = False
        self._charged = Figures(0, 0, 0, 0, None)
        self.refused = False
        self.early_output: int | None = None
        self.late_reports: list[Report] = []
        self._attempts = 0
        self.good_until = float("inf")

    def __bool__(self) -> bool:
        return bool(self._held)

    def __del__(self) -> None:
        # Some servers never call `close`: at least the slot must not wait for its lease's end.
        # The garbage collector may call this inside any lock, so that none is taken here.
        if self._held and not self._closed:
            keeper_of(self.engine).abandoned.append(
                (self.engine, list(self._settlements(200, None)))
            )

    def add(self, unit: str, demand: Demand, mark: int, *, price: Price | None, late: bool) -> None:
        """Hold what was reserved."""
        self._held.append(_Held(unit, demand, mark, price, late))
        if unit == CONCURRENT:
            self.renewed(known=True)
            keeper_of(self.engine).add(self)

    def drop_late(self, attempts: int) -> None:
        """Give back what the last candidate's attempt was reserved.

        Args:
            attempts: how many candidates were asked by now. A request that the last one was
                asked stays counted there.
        """
        was_asked, self._attempts = attempts != self._attempts, attempts
        kept, dropped = [], []
        for held in self._held:
            if not held.late:
                kept.append(held)
            elif was_asked and held.unit == REQUESTS:
                kept.append(held._replace(late=False))
            else:
                dropped.append(Settlement(held.demand, held.mark, 0))
        self._held = kept
        self._settle(dropped)

    def counts(self, name: str) -> bool:
        """Whether the request is counted under that name already."""
        return any(held.unit == REQUESTS and held.demand.name == name for held in self._held)

    def close(self, status: int, environ: WSGIEnvironment) -> None:
        """Settle to what was really used; harmless a second time.

        Args:
            status: the answer's; 0 where none was begun (the app has raised, and may have asked
                its provider).
            environ: the request, in whose `aigw.usage` stands what the answer has used. Where
                nobody tells, all that was reserved stays counted for an answer that succeeded,
                nothing for another.
        """
        if self._closed:
            return
        usage = environ.get(USAGE)
        if usage is not None and any(h.unit == USD and h.price is None for h in self._held):
            self._price(environ)
        if self.refused:  # what is refused spends nothing
            settlements = [Settlement(h.demand, h.mark, 0) for h in self._held]
        else:
            settlements = list(self._settlements(status, usage))
        self._closed = True
        if any(held.unit == CONCURRENT for held in self._held):
            keeper_of(self.engine).remove(self)
        self._held = []
        self._settle(settlements)

    def _price(self, environ: WSGIEnvironment) -> None:
        """Price what was reserved before anybody knew the model: an app of its own tells it."""
        price = self._prices.of(environ.get(PROVIDER), environ.get(MODEL))
        if price is not None:
            self._held = [
                held if held.price is not None else held._replace(price=price)
                for held in self._held
            ]
        elif figures_of(environ[USAGE]).cost is None:
            _said.error(
                "a limit of money cannot count what %s used: neither a cost nor the price of a "
                "model is known (see aigw.usage, aigw.provider and aigw.model)",
                environ.get("PATH_INFO", ""),
            )

    def renewals(self) -> list[Settlement]:
        """Return what renews its slots."""
        return [
            Settlement(held.demand, held.mark, held.demand.units)
            for held in self._held
            if held.unit == CONCURRENT
        ]

    def renewed(self, *, known: bool) -> None:
        """Take note of a renewal; False where the slots had expired."""
        self.good_until = time.monotonic() + LEASE / SECOND - 2 * DEADLINE if known else 0.0

    def take_again(self) -> bool:
        """Take slots anew that have expired (after a pause of the process); whether it worked."""
        expired = [held for held in self._held if held.unit == CONCURRENT]
        try:
            decision = self.engine.reserve([held.demand for held in expired])
        except StoreUnavailable:
            return False
        if not decision.admitted:
            return False
        self._held = [held for held in self._held if held.unit != CONCURRENT]
        for held, mark in zip(expired, decision.marks, strict=True):
            self._held.append(held._replace(mark=mark))
        self.renewed(known=True)
        return True

    def outgrown_by(self, usage: Any) -> str | None:
        """Reserve more where an answer has used more than is held; the unit that is refused.

        Asked while it streams; None where all that was used is covered.
        """
        figures = figures_of(usage)
        if figures.output_tokens <= self._charged.output_tokens:
            return None
        self._charged = figures
        more = [
            held[0]._replace(demand=held[0].demand._replace(units=step))
            for held in self._by_name()
            if (step := _missing(held, figures))
        ]
        if not more:
            return None
        try:
            decision = self.engine.reserve([held.demand for held in more])
        except StoreUnavailable as error:
            logger.error("counters unavailable while an answer streams: %s", error)
            return None  # what it uses is settled at its end
        if decision.admitted:
            self._held += [
                held._replace(mark=mark) for held, mark in zip(more, decision.marks, strict=True)
            ]
            return None
        refused = [
            held.unit for held, outcome in zip(more, decision.outcomes, strict=True) if outcome.wait
        ]
        return refused[0] if refused else more[0].unit

    def _by_name(self) -> list[list[_Held]]:
        """Return what is held, the reservations of one limit together."""
        found: dict[str, list[_Held]] = {}
        for held in self._held:
            found.setdefault(held.demand.name, []).append(held)
        return list(found.values())

    def _settle(self, settlements: list[Settlement]) -> None:
        if not settlements:
            return
        try:
            self.engine.settle(settlements)
        except StoreUnavailable as error:
            # More than was used stays counted; a slot's lease ends by itself.
            logger.error("counters unavailable, units stay reserved: %s", error)

    def _settlements(self, status: int, usage: Any) -> Iterator[Settlement]:
        figures = None if usage is None else figures_of(usage)
        for held in self._by_name():
            unit = held[0].unit
            if unit == REQUESTS:
                continue
            if unit == CONCURRENT:
                yield from (Settlement(one.demand, one.mark, 0) for one in held)
                continue
            used = _used(held[0], figures) if figures is not None else None
            if used is not None and unit == USD and getattr(usage, "costs_more", False):
                used = max(used, sum(one.demand.units for one in held))
            if used is None:
                # Where nobody tells, all of it was used by an answer that succeeded.
                used = sum(one.demand.units for one in held) if status < 400 else 0
            yield from _spread(held, used)


def _spread(held: list[_Held], used: int) -> Iterator[Settlement]:
    """Settle the reservations of one limit: the first ones are used first, the last one pays."""
    for one in held[:-1]:
        share = min(used, one.demand.units)
        used -= share
        yield Settlement(one.demand, one.mark, share)
    last = held[-1]
    yield Settlement(last.demand, last.mark, used)


def _missing(held: list[_Held], figures: Figures) -> int:
    """Return how many units more than are held an answer needs, in steps; 0 for none."""
    if held[0].unit not in TOKENS and held[0].unit != USD:
        return 0
    used = _used(held[0], figures)
    units = sum(one.demand.units for one in held)
    if used is None or used <= units:
        return 0
    return max(used - units, units // 8)


def _used(held: _Held, figures: Figures) -> int | None:
    """Return what an answer has used of a limit's unit; None where it cannot be told."""
    if held.unit == USD:
        if figures.cost is not None:
            return figures.cost
        if held.price is None:
            return None
        return held.price.cost(figures.input_tokens, figures.output_tokens)
    return tokens_of(held.unit, figures.input_tokens, figures.output_tokens)
