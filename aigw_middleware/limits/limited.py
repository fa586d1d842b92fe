"""A gate that holds something for a request, from its coming in until its answer is closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from .._iterables import WHOLE
from ..denial import Denial, store_denial
from ..environ import RATE_REPORTS
from ..errors import StoreUnavailable
from ..gate import Gate
from .answering import Head, HeldAnswer
from .enforcing import NamedLimits, refusal, with_rate_headers
from .holding import Holding

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..counters.engine import Engine

_HELD = "aigw.held"


class _Kept(NamedTuple):
    limits: NamedLimits
    holding: Holding
    head: Head


class LimitedGate(Gate):
    """A gate that keeps limits."""

    def spend(
        self,
        limits: NamedLimits,
        engine: Engine,
        bucket: str,
        environ: WSGIEnvironment,
        app: WSGIApplication,
        bucket_of: Callable[[WSGIEnvironment], str] | None = None,
    ) -> Denial | None:
        """Reserve what a request may use, or say why not.

        Raises:
            StoreUnavailable: the engine gave no answer.
        """
        if limits.counted_once:
            return limits.reserve_once(engine, bucket, environ)
        environ.setdefault(RATE_REPORTS, [])
        denial, holding = limits.reserve(
            engine,
            bucket,
            environ,
            app,
            gate=self.gate_name,
            enforce=self.enforce,
            on_down=self.engine_down,
            bucket_of=bucket_of,
        )
        if denial is None:
            environ.setdefault(_HELD, {})[id(self)] = _Kept(limits, holding, Head())
        return denial

    def engine_down(self, error: StoreUnavailable) -> Denial | None:
        """Return what becomes of a request while the engine gives no answer."""
        return store_denial(error)

    def responder(self, environ: WSGIEnvironment, start_response: StartResponse) -> StartResponse:
        """Put the rate headers on the answer where the request has met limits."""
        if RATE_REPORTS in environ:
            start_response = with_rate_headers(environ, start_response)
        kept = self._kept(environ)
        return start_response if kept is None else kept.head.noting(start_response)

    def watched(self, environ: WSGIEnvironment, iterable: Iterable[bytes]) -> Iterable[bytes]:
        """Return the app's iterable, with which what is held ends."""
        kept = self._kept(environ)
        if kept is None:
            return iterable
        if isinstance(iterable, WHOLE):
            # Complete already, and some servers never close a list.
            self._let_go(environ, kept)
            return iterable
        return HeldAnswer(
            iterable,
            kept.holding,
            kept.head,
            environ,
            (lambda unit: _refusal(kept.limits, unit)) if self.enforce else None,
        )

    def abandoned(self, environ: WSGIEnvironment) -> None:
        """Let go of what is held for a request whose app has raised."""
        kept = self._kept(environ)
        if kept is not None:
            self._let_go(environ, kept)

    def _kept(self, environ: WSGIEnvironment) -> _Kept | None:
        held = environ.get(_HELD)
        return None if held is None else held.get(id(self))

    @staticmethod
    def _let_go(environ: WSGIEnvironment, kept: _Kept) -> None:
        kept.holding.close(kept.head.status_of(environ), environ)


def _refusal(limits: NamedLimits, unit: str) -> Denial:
    limit = next((limit for limit in limits.limits if limit.unit == unit), limits.limits[0])
    return refusal(limit)
