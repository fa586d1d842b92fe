"""What a limiter and a key's own limits share: from limits and a bucket to a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..counters.memory import Demand, Outcome
from ..denial import Denial, store_denial
from ..dialects import client_dialect
from ..environ import RATE_REPORTS
from ..errors import StoreUnavailable
from .grammar import SECOND, Limit
from .headers import Report, policy, rate_headers

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class Engine(Protocol):
    """What a limiter asks of a counters engine."""

    shared: bool

    def reserve(self, demands: Sequence[Demand]) -> tuple[bool, list[Outcome]]:
        """Admit all demands or none."""

    def test(self, demands: Sequence[Demand]) -> tuple[bool, list[Outcome]]:
        """Tell what `reserve` would answer."""


class NamedLimits:
    """Limits with the names under which they are counted and told of.

    Args:
        limits: the limits, all reserved together or not at all.
        name: what distinguishes their counts from those of other limiters on one engine.
        label: the name that the client sees; with several limits their kind is added.
    """

    def __init__(self, limits: Sequence[Limit], name: str, label: str | None = None) -> None:
        self.limits = tuple(limits)
        self._prefixes = tuple(f"{name}|{limit.kind}|" for limit in limits)
        self._labels = tuple(
            (label if len(limits) == 1 else f"{label}-{limit.kind}") if label else limit.kind
            for limit in limits
        )

        self._policies = tuple(
            policy(label, limit.amount, limit.window)
            for label, limit in zip(self._labels, self.limits, strict=True)
        )

    def demands(self, bucket: str) -> list[Demand]:
        """Return what one request of `bucket` wants."""
        return [
            Demand(prefix + bucket, limit, 1)
            for prefix, limit in zip(self._prefixes, self.limits, strict=True)
        ]

    def reports(self, outcomes: Sequence[Outcome]) -> list[Report]:
        """Return what is to be told of each limit."""
        return [
            Report(label, limit.unit, limit.amount, limit.window, remaining, reset, policy)
            for label, limit, policy, (remaining, reset, _) in zip(
                self._labels, self.limits, self._policies, outcomes, strict=True
            )
        ]

    def judge(self, engine: Engine, bucket: str) -> Denial | None:
        """Tell whether a request of `bucket` would be refused, spending nothing."""
        try:
            admitted, outcomes = engine.test(self.demands(bucket))
        except StoreUnavailable as error:
            return store_denial(error)
        return None if admitted else self._denial(outcomes)

    def reserve(self, engine: Engine, bucket: str, environ: WSGIEnvironment) -> Denial | None:
        """Spend one request of `bucket`, or say why not; leave what is to be told in the environ.

        Raises:
            StoreUnavailable: the engine gave no answer.
        """
        admitted, outcomes = engine.reserve(self.demands(bucket))
        environ.setdefault(RATE_REPORTS, []).extend(self.reports(outcomes))
        return None if admitted else self._denial(outcomes)

    def _denial(self, outcomes: Sequence[Outcome]) -> Denial:
        wait, limit = max(
            ((outcome.wait, limit) for outcome, limit in zip(outcomes, self.limits, strict=True)),
            key=lambda pair: pair[0],
        )
        message = f"The limit of {limit.text} is reached."
        return Denial("rate_limit_exceeded", message).with_retry_after(wait / SECOND)


def with_rate_headers(environ: WSGIEnvironment, start_response: StartResponse) -> StartResponse:
    """Return a `start_response` that puts the rate headers in the place of a provider's.

    With several limiters around each other each does it, from all that the request has met, so
    that the last word is complete.
    """

    def respond(
        status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None, /
    ) -> object:
        ours = rate_headers(environ.get(RATE_REPORTS, ()), client_dialect(environ).name)
        names = {name.lower() for name, _ in ours}
        kept = [header for header in headers if header[0].lower() not in names]
        kept += ours
        return start_response(status, kept, exc_info) if exc_info else start_response(status, kept)

    return respond  # type: ignore[return-value]
