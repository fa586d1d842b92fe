"""Meter what was made before and is fetched by its id: a batch's answers, one of the background.

Whoever asks is told, as often as he asks; so what is told here counts once, by its id, and only
where rows are booked: limits have counted what was reserved when it was asked for.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from ..dialects import Dialect, Later, Tier, Tokens, spoken
from ..environ import PROVIDER
from ..usage.figures import NANO, Usage
from .codings import CODINGS, decompressor
from .meter import MOST, data_of, document_of, event_end

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..usage.prices import Price, Prices

_Find = Callable[..., re.Match[bytes] | None]
MADE = "aigw.made_before"
"""The `Made` that an answer tells of."""
_line_end = re.compile(rb"\n").search
_SELL_FLEX = ("openai", "azure", "google")
"""Who takes half for what may wait; of others it has only the name (Groq)."""


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


class LaterMeter:
    """A `Meter` that reads the documents of an answer: one alone, or each line, or each event.

    Args:
        coding: the answer's Content-Encoding.
        end: finds the end of a document; None where it is the answer's.
        seen: called with each document and whether it is the last one of a stream, which it tells.
    """

    tokens = None
    has_failed = False
    text_bytes = 0

    def __init__(self, coding: str, end: _Find | None, seen: Callable[[bytes], bool]) -> None:
        self._reader = decompressor(coding) if coding in CODINGS - {"identity"} else None
        self._coding = coding
        self._reads = not coding or coding in CODINGS
        self._end = end
        self._seen = seen
        self._held = bytearray()
        self._searched = 0
        self.is_over = False
        self.is_complete = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came; return them."""
        if self._reads:
            self._held += self._decoded(data)
            self._take()
            if len(self._held) > MOST:
                self._reads = False
                self._held.clear()
        return data

    def finish(self) -> bytes:
        """Take note of the end; nothing was held back."""
        is_whole = self._reader is None or self._reader.eof
        if self._reads and is_whole and not self.is_complete:
            self._seen(bytes(self._held))
            self.is_complete = True
        return b""

    def _decoded(self, data: bytes) -> bytes:
        """Return bytes without their coding: of each member, where there are several."""
        if self._reader is None:
            return data
        found = b""
        while data and self._reads:
            if self._reader.eof:
                self._reader = decompressor(self._coding)
            try:
                found += self._reader.decompress(data, MOST)
            except zlib.error:
                self._reads = False
            if self._reader.unconsumed_tail:
                self._reads = False
            data = self._reader.unused_data
        return found

    def _take(self) -> None:
        start = 0
        while self._end is not None:
            end = self._end(self._held, max(start, self._searched))
            if end is None:
                break
            if self._seen(bytes(self._held[start : end.end()])):
                self.is_over = self.is_complete = True
            start = end.end()
        del self._held[:start]
        self._searched = max(0, len(self._held) - 3)  # an end may have begun there


class LaterMetering:
    """The meter of an answer that tells of something made before, and the environ that is told.

    Args:
        environ: the request.
        dialect: the answer's.
        coding: its Content-Encoding.
        prices: by which its cost is told.
        streams: whether it is an event stream.
    """

    cuts = False

    def __init__(
        self,
        environ: WSGIEnvironment,
        dialect: Dialect,
        coding: str,
        prices: Prices,
        *,
        streams: bool,
    ) -> None:
        self._environ = environ
        self._dialect = dialect
        self._rest = spoken(environ).rest
        self._streams = streams
        self._sum = Sum(environ, prices)
        end = _line_end if dialect.later_lines.fullmatch(self._rest) else None
        self.meter = LaterMeter(coding, event_end if streams else end, self._read)

    def conclude(self) -> None:
        """Tell what was told, of an answer that has come whole."""
        made = self._sum.made() if self.meter.is_complete else None
        if made is not None:
            self._environ[MADE] = made

    def _read(self, piece: bytes) -> bool:
        found = document_of(data_of(piece) if self._streams else piece)
        document = found if isinstance(found, dict) else None
        if document is not None:
            self._sum.add(self._dialect.later(self._rest, document))
        return self._streams and self._dialect.is_last(piece, document)


class Sum:
    """What was told of one thing, in one document or in several.

    Args:
        environ: the request.
        prices: by which its cost is told: of each answer alone, since a long one may cost more.
    """

    def __init__(self, environ: WSGIEnvironment, prices: Prices) -> None:
        self._environ = environ
        self._prices = prices
        self._id = ""
        self._models: set[str | None] = set()
        self._used = Tokens(0, 0)
        self._cost: int | None = 0

    def add(self, found: Iterable[Later]) -> None:
        """Add what a document tells."""
        provider = self._environ.get(PROVIDER)
        for one in found:
            parts = ((one.model, one.tokens), *one.tokens.others)
            cost = cost_of(self._prices, provider, parts, sums=one.sums)
            self._cost = None if cost is None or self._cost is None else self._cost + cost
            self._used = self._used.plus(one.tokens.together())
            self._models |= {model for model, _ in parts}
            self._id = one.id

    def made(self) -> Made | None:
        """Return it as it is booked; None for nothing, or what has used nothing so far."""
        used = self._used
        if not self._id or not (used.input or used.output):
            return None
        cost = None if self._cost is None else Decimal(self._cost) / NANO
        usage = Usage(used.input, used.output, used.cached, used.reasoning, cost, used.written)
        model = next(iter(self._models)) if len(self._models) == 1 else None
        return Made(f"{self._environ.get(PROVIDER) or ''} {self._id}", model, usage)


def cost_of(
    prices: Prices,
    provider: str | None,
    parts: Iterable[tuple[str | None, Tokens]],
    *,
    sums: bool = False,
) -> int | None:
    """Return what tokens of several models cost, in nano-dollars; None where one has no price.

    Args:
        prices: by which it is told.
        provider: who is paid.
        parts: models, each with what it has used.
        sums: whether these are sums of many answers, each of which may be a short one.
    """
    total = 0
    for model, used in parts:
        if model is None and not (used.input or used.output or used.details):
            continue
        price = prices.of(provider, model)
        if price is None or used.tier is Tier.UNKNOWN:
            return None
        total += _part_of(price.first_step if sums else price, used, provider)
    return total


def _part_of(price: Price, used: Tokens, provider: str | None) -> int:
    if used.tier is Tier.WHOLE or (used.tier is Tier.FLEX and provider not in _SELL_FLEX):
        return price.cost(used.input, used.output, used.cached, used.written, used.details)
    of, part = _SHARES[used.tier]
    # Tokens are billed at another price then, searches are not.
    searches = tuple(pair for pair in used.details if pair[0] == "web_searches")
    details = tuple(pair for pair in used.details if pair not in searches)
    cost = price.cost(used.input, used.output, used.cached, used.written, details)
    return -(-cost * of // part) + (price.cost(0, 0, details=searches) if searches else 0)


_SHARES = {Tier.BATCH: (1, 2), Tier.FLEX: (1, 2), Tier.NEAR: (11, 10), Tier.NEAR_BATCH: (11, 20)}
"""The parts of the price that are billed, as fractions."""
