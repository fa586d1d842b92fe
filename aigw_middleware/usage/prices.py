"""What tokens cost, in whole nano-dollars.

Prices that were given come first, then those of `genai-prices`, where it is installed (extra
`prices`). A model that neither knows has no price, which is not the same as being free.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from operator import mul
from typing import Any

from ..providers.catalogue import readings
from .figures import NANO, Details

logger = logging.getLogger(__name__)

MILLION = 10**6
_FEW = 1000
_Exact = Callable[[int, int, int, int, Details], Decimal]


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a model: USD for a million tokens.

    Attributes:
        input: of the request.
        output: of the answer.
        cached: of the request, read from a cache; None for no other price.
        written: of the request, written to a cache; None for no other price.
        exact: returns the price in USD of so many tokens, where it is not the same for each
            (input, output, cached, written, details); None where it is.
        detailed: the same for tokens of kinds that have a price of their own (audio, pictures);
            None where none has.
    """

    input: Decimal
    output: Decimal
    cached: Decimal | None = None
    written: Decimal | None = None
    exact: _Exact | None = None
    detailed: _Exact | None = None
    _rates: tuple[int, int, int, int] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Nearly every price is a whole number of nano-dollars a token: integers then.
        rates = [rate * NANO / MILLION for rate in self._all()]
        whole = self.exact is None and all(rate == int(rate) for rate in rates)
        found = (int(rates[0]), int(rates[1]), int(rates[2]), int(rates[3])) if whole else None
        object.__setattr__(self, "_rates", found)

    def _all(self) -> tuple[Decimal, Decimal, Decimal, Decimal]:
        cached = self.input if self.cached is None else self.cached
        written = self.input if self.written is None else self.written
        return self.input, self.output, cached, written

    def cost(
        self,
        input_tokens: int,
        output_tokens: int,
        cached: int = 0,
        written: int = 0,
        details: Details = (),
    ) -> int:
        """Return what so many tokens cost, in nano-dollars, rounded up."""
        # A provider may tell of more than there was: nothing is paid for twice.
        cached = min(cached, input_tokens)
        written = min(written, input_tokens - cached)
        plain = input_tokens - cached - written
        exact = self.detailed if details and self.detailed is not None else self.exact
        if self._rates is not None and exact is None:
            given, said, read, kept = self._rates
            return given * plain + said * output_tokens + read * cached + kept * written
        nano: Decimal | None = None
        if exact is not None:
            try:
                nano = exact(input_tokens, output_tokens, cached, written, details) * NANO
            except Exception:
                # A table of others': what it does not expect is no reason to lose an answer.
                logger.exception("a price cannot be told exactly; its first step counts for all")
        if nano is None:
            prices, tokens = self._all(), (plain, output_tokens, cached, written)
            nano = sum(map(mul, prices, tokens), Decimal(0)) * (NANO // MILLION)
        return int(nano.to_integral_value(rounding="ROUND_CEILING"))

    @property
    def first_step(self) -> Price:
        """The same without the steps by which a long prompt costs more."""
        return self if self.exact is None else replace(self, exact=None, detailed=None)

    def output_for(self, nano: int, input_tokens: int, answers: int) -> int:
        """Return how many tokens each of `answers` may have for `nano`, behind such a prompt."""
        rest = nano - self.cost(input_tokens, 0)
        million = self.cost(input_tokens, MILLION) - self.cost(input_tokens, 0)
        if million <= 0:
            return MILLION
        return max(0, rest * MILLION // million // answers)


class Prices:
    """The prices of models.

    Args:
        given: from `provider/model`, or a model alone, to USD a million (input, output) tokens.

    Raises:
        ValueError: a price is no pair of numbers of 0 and up.
    """

    def __init__(self, given: Mapping[str, tuple[Any, Any]] | None = None) -> None:
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"prices: must be a mapping, not {type(given).__name__}")
        self._given = {_name(name): _price(name, pair) for name, pair in (given or {}).items()}
        for name in [name for name in self._given if name.startswith("google/models/")]:
            self._given.setdefault(name.replace("models/", "", 1), self._given[name])
        # Where nobody knows whose a model is, the dearest that has its name.
        self._given_anywhere: dict[str, Price] = {}
        for name, price in self._given.items():
            model = readings(name)[0][1]
            known = self._given_anywhere.get(model)
            if known is None or price.output > known.output:
                self._given_anywhere[model] = price

    def of(self, provider: str | None, model: str | None) -> Price | None:
        """Return the price of a model at a provider; None where nobody knows one."""
        if model is None:
            return None
        if provider is not None:
            return self._of(provider.lower(), model.lower())
        name = model.lower()
        found = self._given.get(name) or self._given_anywhere.get(name)
        if found is not None:
            return found
        prices = (self._of(*meaning) for meaning in readings(name))
        return next((price for price in prices if price is not None), None)

    def _of(self, provider: str | None, model: str) -> Price | None:
        if self._given:
            before = () if provider is None else (f"{provider}/{model}", f"{provider}:{model}")
            for name in (*before, model):
                if name in self._given:
                    return self._given[name]
        return _listed(provider, model)


def load() -> None:
    """Read the table of `genai-prices`, where it is installed: a tenth of a second, once."""
    _listed("openai", "gpt-4o")


def _name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError(f"prices: {name!r} is no name of a model")
    return name.lower()


def _price(name: object, pair: object) -> Price:
    try:
        first, second = (Decimal(str(value)) for value in pair)  # type: ignore[attr-defined]
    except (TypeError, ValueError, InvalidOperation):
        raise ValueError(
            f"prices: {name!r}: must be USD a million (input, output) tokens"
        ) from None
    if not (first.is_finite() and second.is_finite() and first >= 0 and second >= 0):
        raise ValueError(f"prices: {name!r}: a price is a number of 0 and up")
    return Price(first, second)


@lru_cache(maxsize=1024)
def _listed(provider: str | None, model: str) -> Price | None:
    """Return the price that `genai-prices` has (70 µs, so it is asked once a model)."""
    try:
        from genai_prices import Usage, calc_price
    except ModuleNotFoundError:
        return None

    def calculated(
        input_tokens: int, output_tokens: int, cached: int, written: int, details: Details = ()
    ) -> Any:
        used = Usage(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cache_read_tokens=cached,
            cache_write_tokens=written,
            **_completed(dict(details), input_tokens, cached, written),
        )
        return calc_price(used, model_ref=model, provider_id=provider)

    def exact(*tokens: Any) -> Decimal:
        total: Decimal = calculated(*tokens).total_price
        return total

    kinds = ((1, 0, 0, 0), (0, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1))
    try:
        few = [exact(*(n * _FEW for n in kind)) * (MILLION // _FEW) for kind in kinds]
        many = [exact(*(n * MILLION for n in kind)) for kind in kinds]
        priced = {
            unit for unit, rate in vars(calculated(_FEW, 0, 0, 0).model_price).items() if rate
        }
    except LookupError:
        return None
    except Exception:
        logger.exception("the price of %s/%s cannot be looked up", provider, model)
        return None
    if priced and not any(few):
        return None  # by the hour, the page or the letter: tokens do not tell what it costs
    first, second, cached, written = few
    steps = None if few == many else exact
    return Price(first, second, cached, written, steps, exact if priced - _PLAIN else None)


def _completed(found: dict[str, int], given: int, cached: int, written: int) -> dict[str, int]:
    """Return details with what of a kind is in a cache, where nobody tells: as little as can be."""
    for kind in ("audio", "image"):
        of_kind = found.get(f"input_{kind}_tokens")
        if not of_kind:
            continue
        for where, tokens in (("read", cached), ("write", written)):
            if tokens:
                least = max(0, tokens + of_kind - given)
                found.setdefault(f"cache_{kind}_{where}_tokens", least)
    return found


_PLAIN = frozenset({"input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok"})
"""The rates of `genai-prices` that need no details."""
