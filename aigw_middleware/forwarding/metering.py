"""Have an answer metered: which of them, and what becomes of the figures."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .._headers import header, without
from ..body import Body
from ..dialects import PLAIN, Dialect, Tier, Tokens, spoken
from ..environ import BODY, MODEL, OVER, PROVIDER, USAGE
from ..usage.figures import NANO, Usage
from ..usage.prices import Prices
from .codings import CODINGS, IDENTITY
from .later import MADE, LaterMetering, Sum, cost_of
from .meter import BYTES_A_TOKEN, EventMeter, Meter, WholeMeter
from .route import AIPath

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

ASKED = "aigw.asked_for_usage"
"""True where a stream was asked for its usage by us and not by the client."""

TELLS_UNASKED = frozenset({"mistral"})
"""Providers that tell a stream's usage by themselves and refuse to be asked for it."""


class Metering:
    """The meter of one answer, and the environ that is told.

    Args:
        environ: the request.
        dialect: the answer's.
        coding: its Content-Encoding.
        prices: by which its cost is told.
        streams: whether it is an event stream.
        goes_on: whether what makes it goes on when nobody reads it any more.
        repeats: whether it may be told again to who asks for it by its id.
        tier: at what it is billed, where its head tells that.

    Attributes:
        meter: reads the answer.
        cuts: whether an event is taken out of it, so that nobody knows its length before.
    """

    def __init__(
        self,
        environ: WSGIEnvironment,
        dialect: Dialect,
        coding: str,
        prices: Prices,
        *,
        streams: bool,
        goes_on: bool = False,
        repeats: bool = False,
        tier: Tier = Tier.WHOLE,
    ) -> None:
        self._environ = environ
        self._dialect = dialect
        self._goes_on = goes_on
        self._prices = prices
        self._concluded = False
        self._tier = tier
        self.cuts = streams and ASKED in environ
        seen = self._seen if repeats else None
        self.meter: Meter = (
            EventMeter(dialect, coding, hides_usage=self.cuts, told=self._told, seen=seen)
            if streams
            else WholeMeter(dialect, coding, seen=seen)
        )

    def conclude(self) -> None:
        """Tell what was used, of an answer that broke off too: then by the text that has passed."""
        if self._concluded:
            return
        self._concluded = True
        meter, tokens = self.meter, self.meter.tokens
        if meter.is_complete and not meter.has_failed:
            # Of one that is whole and tells nothing, what was reserved for it counts.
            if tokens is not None:
                self._tell(tokens)
            return
        if self._goes_on:
            return  # nobody here learns what it comes to: what was reserved for it counts
        said = -(-meter.text_bytes // BYTES_A_TOKEN)
        if tokens is not None and tokens.together().output >= said:
            self._tell(tokens)
        elif tokens is not None:  # told at its beginning, and then it broke off
            self._tell(tokens._replace(output=said), estimated=True)
        elif meter.has_failed:  # vendors bill nothing then, but for what was said before
            self._tell(Tokens(0, said), estimated=True)
        elif said:
            body = self._environ.get(BODY)
            asked = body.size if isinstance(body, Body) else 0
            self._tell(Tokens(-(-asked // BYTES_A_TOKEN), said), estimated=True)

    def _told(self, tokens: Tokens, has_said_all: bool) -> None:
        if has_said_all:
            self._environ[OVER] = True
        self._tell(tokens)

    def _seen(self, document: dict[str, Any]) -> None:
        """Remember the id of what counts here, and not again when it is asked for."""
        told = Sum(self._environ, self._prices)
        told.add(self._dialect.later(spoken(self._environ).rest, document))
        made = told.made()
        if made is not None:
            self._environ[MADE] = made

    def _tell(self, tokens: Tokens, *, estimated: bool = False) -> None:
        all_of_it = tokens.together() if tokens.others else tokens
        self._environ[USAGE] = Usage(
            all_of_it.input,
            all_of_it.output,
            all_of_it.cached,
            all_of_it.reasoning,
            self._cost(tokens),
            all_of_it.written,
            estimated,
            tokens.tier is Tier.UNKNOWN or self._tier is Tier.UNKNOWN,
        )

    def _cost(self, tokens: Tokens) -> Decimal | None:
        """Return what so many tokens cost, in USD; None where it cannot be told."""
        if tokens.tier is Tier.WHOLE and self._tier is not Tier.WHOLE:
            tokens = tokens._replace(tier=self._tier)
        parts = ((self._environ.get(MODEL), tokens), *tokens.others)
        nano = cost_of(self._prices, self._environ.get(PROVIDER), parts)
        return None if nano is None else Decimal(nano) / NANO


def may_tell(method: str, path: AIPath) -> bool:
    """Whether the answer to a request may tell of usage."""
    return method == "POST" or (method == "GET" and path.dialect.takes(path.rest).later)


def metering_of(
    environ: WSGIEnvironment,
    headers: Sequence[tuple[str, str]],
    prices: Prices,
    *,
    streams: bool,
    status: int = 200,
) -> Metering | LaterMetering | None:
    """Return what meters an answer; None for one that tells no usage (an error, a file, speech)."""
    dialect, _, rest = spoken(environ)
    kind = header(headers, "content-type").partition(";")[0].strip().lower()
    coding = header(headers, "content-encoding").strip().lower()
    if dialect is PLAIN or status >= 400:
        return None
    method, takes = environ.get("REQUEST_METHOD"), dialect.takes(rest)
    if method in ("GET", "POST") and takes.later:
        if status != 200:
            return None  # a part of it
        return LaterMetering(environ, dialect, coding, prices, streams=streams)
    if method != "POST" or not (streams or kind == "application/json"):
        return None
    return Metering(
        environ,
        dialect,
        coding,
        prices,
        streams=streams,
        goes_on=streams and takes.again and _is_background(environ),
        repeats=takes.again,
        tier=dialect.tier_told(headers),
    )


def _is_background(environ: WSGIEnvironment) -> bool:
    """Whether an answer is made in the background, and may be asked for again by its id.

    https://platform.openai.com/docs/guides/background; Google's interactions have the same.
    """
    body = environ.get(BODY)
    return isinstance(body, Body) and body.json().get("background") is True


def streams_without_usage(environ: WSGIEnvironment, path: AIPath) -> bool:
    """Whether a chat is to be streamed, in OpenAI's dialect, by who did not ask for its usage."""
    if path.rest.strip("/") not in ("chat/completions", "completions", "openai/chat/completions"):
        return False
    body = environ.get(BODY)
    if not isinstance(body, Body):
        return False
    document = body.json()
    options = document.get("stream_options")
    if document.get("stream") is not True or not (options is None or isinstance(options, dict)):
        return False
    return not (options or {}).get("include_usage")


def with_codings_read(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return a request's headers, asking for none of the codings that no meter here can read.

    Else a client could choose by its `Accept-Encoding` that nobody counts what it uses.
    """
    return [
        (name, _codings_read(value)) if name.lower() == "accept-encoding" else (name, value)
        for name, value in headers
    ]


@lru_cache(maxsize=128)
def _codings_read(accepted: str) -> str:
    """Return the part of an `Accept-Encoding` (RFC 9110 §12.5.3) that can be read."""
    asked = [part.strip(" \t") for part in accepted.split(",")]
    kept = [part for part in asked if part.partition(";")[0].strip(" \t").lower() in CODINGS]
    return accepted if kept == asked else ", ".join(kept) or "identity"


def without_codings(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return a request's headers, asking for an answer as it is: something in it is changed."""
    return [*without(headers, "accept-encoding"), IDENTITY]
