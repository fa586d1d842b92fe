"""Meter what was made before and is fetched by its id: a batch's answers, one of the background.

Whoever asks is told, as often as he asks; so what is told here counts once, by its id, and only
where rows are booked: limits have counted what was reserved when it was asked for.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from ..dialects import Dialect, Later, Tier, Tokens, spoken
from ..environ import PROVIDER
from ..usage.figures import NANO, Usage
from .meter import MOST, data_of, decoder, document_of

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..usage.prices import Prices

MADE = "aigw.made_before"
"""The `Made` that an answer tells of."""
_EVENTS_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINES_END = re.compile(rb"\n")


class Made(NamedTuple):
    """Something that was made before, as it is booked.

    Attributes:
        once: its id; what has this id counts once.
        model: the model that made it; None for several, or where nobody tells it.
        usage: what it has used.
    """

    once: str
    model: str | None
    usage: Usage


class LaterMetering:
    """The meter of an answer that tells of something made before, and the environ that is told.

    It is a `Meter` itself: it reads the documents of the answer, whole, in lines or in events.

    Args:
        environ: the request.
        dialect: the answer's.
        coding: its Content-Encoding.
        prices: by which its cost is told.
        kind: its media type.
    """

    cuts = False
    tokens = None
    is_over = False
    has_failed = False
    text_bytes = 0

    def __init__(
        self, environ: WSGIEnvironment, dialect: Dialect, coding: str, prices: Prices, *, kind: str
    ) -> None:
        self._environ = environ
        self._dialect = dialect
        self._rest = spoken(environ).rest
        self._prices = prices
        self._decode = decoder(coding)
        self._held = bytearray()
        self._reads = True
        self._is_stream = kind == "text/event-stream"
        self._is_whole = kind == "application/json"
        self._ends = _EVENTS_END if self._is_stream else _LINES_END
        self._searched = 0
        self._sum: _Sum | None = None
        self.is_complete = False

    @property
    def meter(self) -> LaterMetering:
        """Itself."""
        return self

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came; return them."""
        if self._reads:
            try:
                self._held += self._decode(data)
            except zlib.error:
                self._reads = False
            self._take()
        return data

    def finish(self) -> bytes:
        """Take note of the end; nothing was held back."""
        if not self.is_complete:
            self.is_complete = True
            self._read(bytes(self._held))
        return b""

    def conclude(self) -> None:
        """Tell what was told, of an answer that has come whole."""
        if self.is_complete and self._reads and self._sum is not None:
            self._environ[MADE] = self._sum.made(self._environ.get(PROVIDER), self._prices)

    def _take(self) -> None:
        start = 0
        while not self._is_whole:
            end = self._ends.search(self._held, max(start, self._searched))
            if end is None:
                break
            self._read(bytes(self._held[start : end.end()]))
            start = end.end()
        del self._held[:start]
        self._searched = max(0, len(self._held) - 3)  # an end may have begun there
        if len(self._held) > MOST:
            self._reads = False
            self._held.clear()

    def _read(self, piece: bytes) -> None:
        document = document_of(data_of(piece) if self._is_stream else piece)
        if isinstance(document, dict):
            self._sum = summed(self._sum, self._dialect.later(self._rest, document))


class _Sum:
    """What was told of one thing, in one document or in several."""

    def __init__(self, first: Later) -> None:
        self._id = first.id
        self._parts: dict[str | None, Tokens] = {}

    def add(self, later: Later) -> None:
        """Add what a further document tells."""
        own = (later.model, later.tokens._replace(others=()))
        for model, tokens in (own, *later.tokens.others):
            known = self._parts.get(model)
            self._parts[model] = tokens if known is None else known.plus(tokens)

    def made(self, provider: str | None, prices: Prices) -> Made:
        """Return it as it is booked."""
        parts = tuple(self._parts.items())
        cost = cost_of(prices, provider, parts)
        used = Tokens(0, 0, others=parts).together()
        usage = Usage(
            used.input,
            used.output,
            used.cached,
            used.reasoning,
            None if cost is None else Decimal(cost) / NANO,
            used.written,
        )
        return Made(f"{provider or ''} {self._id}", parts[0][0] if len(parts) == 1 else None, usage)


def summed(known: _Sum | None, found: Iterable[Later]) -> _Sum | None:
    """Return the sum of what is known and what a document tells; None for nothing."""
    for later in found:
        known = _Sum(later) if known is None else known
        known.add(later)
    return known


def cost_of(
    prices: Prices, provider: str | None, parts: Iterable[tuple[str | None, Tokens]]
) -> int | None:
    """Return what tokens of several models cost, in nano-dollars; None where one has no price."""
    total = 0
    for model, used in parts:
        price = prices.of(provider, model)
        if price is None or used.tier is Tier.UNKNOWN:
            return None
        cost = price.cost(used.input, used.output, used.cached, used.written, used.details)
        total += -(-cost // 2) if used.tier is Tier.HALF else cost
    return total
