"""Limit how many requests are let in, exactly.

Most limiters count in fixed windows, which admit twice the limit around a boundary, or check
before they count, which admits more when requests come at once. Here no span of the window's
length ever holds more admitted requests than the limit says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

from ._addresses import address_of, header_name
from ._options import flag
from ._saying import OnceAMinute
from .counters import Engine, resolve_counters
from .denial import Denial, store_denial
from .environ import CLAIMS, KEY, MODEL, PROVIDER
from .errors import BodyError, StoreUnavailable
from .limits import parse_limits
from .limits.enforcing import NamedLimits
from .limits.limited import LimitedGate
from .limits.naming import name_of
from .limits.newcomers import Newcomers
from .limits.wanted import wanted_model

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    Bucket = Callable[[WSGIEnvironment], str]

logger = logging.getLogger(__name__)


class RateLimiter(LimitedGate):
    """Refuse requests over a limit, with 429 `rate_limit_exceeded` and `Retry-After`.

    ::

        app = RateLimiter(app, ["10/s", "1000/day"], by="key")

    A window slides: in no span of its length are more units admitted than the limit, over all
    threads, and one comes back at the latest a sixtieth of the window after it has left it. All
    limits of one limiter are reserved in one step or none is; what is refused spends nothing.
    Tokens and money are reserved by bounds and settled, when the answer is closed, to what
    `aigw.usage` tells; `docs/limits.md` has the rules. Every answer tells what is left in
    `RateLimit` and `RateLimit-Policy`, and in the headers that the client's SDK knows, in the
    place of a provider's of the same name.

    Other refusals: 400 `invalid_request` (a request that can never fit, a cap that is none), 429
    `budget_exceeded` (money), 403 `price_unknown`, 503 `store_unavailable` (the engine is down).

    Args:
        app: the wrapped WSGI application.
        limits: one limit or several: `"100/min"`, `"30/90s"`, `"100000 tokens/min"`, `"5
            usd/day"`, `"50 usd/calendar-month"`, `"100/min burst 20"`, `"10 usd/day for
            openai/gpt-4o*"`, `"8 concurrent"`; windows of 1 second to 31 days.
        by: whose requests are counted together: `"key"` (the gateway key; where there is none,
            the address), `"ip"` (IPv6 by /64), `"global"`, `"model"`, `"header:NAME"`,
            `"claim:NAME"` (an absent header or claim is one shared bucket), a callable
            `environ -> str`, or a list of these, counted per combination. One address without a
            key or claims makes at most 1000 such buckets an hour, in each process, by what it
            says of itself (a header, a model); its further ones are counted together.
        counters: an engine from `open_counters`, or its URL; None is memory of this instance's
            own. Memory counts for one process: under several workers each counts alone.
        name: limiters of the same name on one engine share their counts. By default it is made
            from `by`, and a limit's unit and window always belong to it, but not its amount, so
            that a changed limit goes on counting. Name it where `by` is a lambda, a closure or a
            partial that may change: another one is counted anew.
        prices: from `provider/model` to USD a million (input, output) tokens, before those of
            `genai-prices`.
        fail_open: True lets requests in when the engine gives no answer, and logs it.
        enforce: False counts and reports in `aigw.decisions`, and refuses nothing.

    Raises:
        ValueError: a limit or `by` cannot be read, or there is no limit.
    """

    def __init__(
        self,
        app: WSGIApplication,
        limits: str | Iterable[str] = (),
        *,
        by: str | Bucket | Iterable[str | Bucket] = "key",
        counters: Engine | str | None = None,
        name: str | None = None,
        prices: Mapping[str, tuple[float, float]] | None = None,
        fail_open: bool = False,
        enforce: bool = True,
    ) -> None:
        super().__init__(app, enforce=enforce)
        parsed = parse_limits(limits)
        if not parsed:
            raise ValueError('limits: empty; write one like "100/min"')
        if name is not None and not _is_name(name):
            raise ValueError(f"name: {name!r} must be printable ASCII without quotes")
        self._bucket, by_text = _bucket(by)
        self._by_model = "model" in by_text.split("+")
        self._limits = NamedLimits(
            parsed, name or f"by={by_text}", name, prices=prices, by_model=self._by_model
        )
        # By what a client cannot choose at will there are no more buckets than clients.
        self._is_free = set(by_text.split("+")) <= {"key", "ip", "global"}
        self._newcomers = Newcomers()
        self._counters = resolve_counters(counters)
        self._fail_open = flag("fail_open", fail_open)
        self._warned = False
        self._said = OnceAMinute(logger)

    def judge(self, environ: WSGIEnvironment) -> Denial | None:
        """Tell whether the request would be refused, spending nothing."""
        bucket = self._bucket_of(environ, self._newcomers.has_room)
        return self._limits.judge(self._counters, bucket, environ)

    def apply(self, environ: WSGIEnvironment) -> Denial | None:
        """Reserve what the request may use of each limit, or say which of them is reached."""
        if environ.get("wsgi.multiprocess") and not self._warned:
            self._warn()
        try:
            bucket = self._bucket_of(environ, self._newcomers.make)
            late = partial(self._bucket_of, may=self._newcomers.make) if self._by_model else None
            return self.spend(self._limits, self._counters, bucket, environ, self.app, late)
        except StoreUnavailable as error:
            return self.engine_down(error)

    def _bucket_of(self, environ: WSGIEnvironment, may: Callable[[str, str], bool]) -> str:
        """Return the request's bucket; of who has made too many, one for all others of theirs."""
        bucket = self._bucket(environ)
        if self._is_free or KEY in environ or CLAIMS in environ:
            return bucket
        client = _by_ip(environ)
        return bucket if may(client, bucket) else f"many:{client}"

    def engine_down(self, error: StoreUnavailable) -> Denial | None:
        """Refuse, or let in with `fail_open`; either is said once a minute."""
        if not self._fail_open:
            self._said.error("counters unavailable, requests are refused: %s", error)
            return store_denial(error)
        self._said.error("counters unavailable, requests are let in uncounted: %s", error)
        return None

    def _warn(self) -> None:
        self._warned = True
        if not self._counters.shared:
            logger.warning(
                "this server runs several processes and each of them counts alone: together they "
                "admit up to as many times the limit"
            )


def _is_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and bool(name)
        and name.isascii()
        and name.isprintable()
        and not set(name) & set('"\\|')
    )


def _bucket(by: str | Bucket | Iterable[str | Bucket]) -> tuple[Bucket, str]:
    """Return the function that names a request's bucket, and a text that names the function."""
    if isinstance(by, str) or callable(by):
        return _one_bucket(by)
    parts = [_one_bucket(part) for part in by] if isinstance(by, Iterable) else []
    if not parts:
        raise ValueError("by: names nothing to count by")
    functions = [function for function, _ in parts]

    def combined(environ: WSGIEnvironment) -> str:
        # The lengths keep ("a|", "b") and ("a", "|b") apart.
        values = [function(environ) for function in functions]
        return "|".join(f"{len(value)}:{value}" for value in values)

    return combined, "+".join(text for _, text in parts)


def _one_bucket(by: str | Bucket) -> tuple[Bucket, str]:
    if callable(by):
        return lambda environ: _bounded(str(by(environ))), name_of(by)
    if by in _BUCKETS:
        return _BUCKETS[by], by
    kind, _, name = by.partition(":") if isinstance(by, str) else ("", "", "")
    if kind == "header" and name:
        key = header_name("by", name)
        return lambda environ: _bounded(environ.get(key, "")), f"header:{key}"
    if kind == "claim" and name:
        return lambda environ: _claim(environ, name), by
    raise ValueError(
        f"by: {by!r} is none of key, ip, global, model, header:NAME, claim:NAME, a callable "
        "or a list"
    )


def _bounded(value: str) -> str:
    """Return a client's value, or its hash where it is long or could be a credential."""
    if not value:
        return ""
    return "#" + blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _claim(environ: WSGIEnvironment, name: str) -> str:
    value = environ.get(CLAIMS, {}).get(name)
    return "" if value is None else _bounded(str(value))


def _by_ip(environ: WSGIEnvironment) -> str:
    address = address_of(environ)
    if address is None:
        return "ip:"
    if address.version == 6:
        # Who has an IPv6 address has a /64 of them (RFC 6177).
        return f"ip:{address.value >> 64:x}::/64"
    return f"ip:{address.text}"


def _by_key(environ: WSGIEnvironment) -> str:
    key = environ.get(KEY)
    return _by_ip(environ) if key is None else f"key:{key.id}"


def _by_model(environ: WSGIEnvironment) -> str:
    """Return the model that is asked for; empty, one bucket, where none is named.

    The forwarder tells which one it is in the end, with its provider; else the body does.
    """
    if PROVIDER in environ and MODEL in environ:
        return f"{environ[PROVIDER]}/{environ[MODEL]}".lower()
    try:
        return (wanted_model(environ) or "").lower()
    except BodyError:
        return ""


_BUCKETS: dict[str, Bucket] = {
    "key": _by_key,
    "ip": _by_ip,
    "global": lambda environ: "",
    "model": _by_model,
}
