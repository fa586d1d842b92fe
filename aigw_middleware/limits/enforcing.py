"""What a limiter and a key's own limits share: from limits and a bucket to a verdict.

A request's units are reserved before it goes in, all of a limiter's in one step or none, and
settled when its answer is closed. What depends on the model that is asked for in the end (its
price, a limit for some models) is reserved by the forwarder, before each attempt, where one
stands within.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from .._responding import Headers, with_headers
from ..body import put_members
from ..counters.engine import Decision, Demand, Engine
from ..denial import Denial, Judge, body_denial, judge_of, store_denial
from ..dialects import PLAIN, AnyOf, client_dialect, spoken
from ..environ import ATTEMPTS, MODEL, PROVIDER, RATE_REPORTS
from ..errors import BodyError, StoreUnavailable
from ..model_rules import ModelRules, has_final_judge
from ..named_models import bare_name
from ..providers.catalogue import readings
from ..usage.prices import Price, Prices
from .capping import with_cap, without_cap
from .grammar import CONCURRENT, REQUESTS, USD, Limit, tokens_of
from .headers import Report, policy, rate_headers
from .holding import Holding
from .states import SECOND
from .wanted import DEFAULT_OUTPUT, LEAST_OUTPUT, Wanted, wanted

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

RESERVERS = "aigw.reservers"
"""list of callables `(environ, provider, model) -> Denial | None`, called by the forwarder before
each attempt: each reserves what the candidate may cost, in the place of what the last one did."""

_ATTEMPTS = 4
_NOBODY = Judge("", -1)


class NamedLimits:
    """Limits with the names under which they are counted and told of.

    Args:
        limits: the limits, all reserved together or not at all.
        name: what distinguishes their counts from those of other limiters on one engine.
        label: the name that the client sees; with several limits their kind is added.
        prices: USD a million (input, output) tokens by model, for limits of money.
        by_model: whether the bucket depends on the model that is asked for in the end.

    Attributes:
        counted_once: whether a request is counted and that is all: nothing is to be settled.
    """

    def __init__(
        self,
        limits: Sequence[Limit],
        name: str,
        label: str | None = None,
        *,
        prices: Mapping[str, tuple[Any, Any]] | None = None,
        by_model: bool = False,
    ) -> None:
        self.limits = tuple(limits)
        self._prices = Prices(prices)
        several = len(self.limits) > 1
        named = [
            _Named(limit, name, _label(label, limit, several=several)) for limit in self.limits
        ]
        self._now = [one for one in named if not (one.is_late or by_model)]
        self._late = [one for one in named if one.is_late or by_model]
        units = {limit.unit for limit in limits}
        self.counted_once = units == {REQUESTS} and not self._late
        self._looks_inside = bool(units - {REQUESTS, CONCURRENT}) or bool(self._late)

    def judge(self, engine: Engine, bucket: str, environ: WSGIEnvironment) -> Denial | None:
        """Tell whether a request of `bucket` would be refused, spending nothing."""
        try:
            want = wanted(environ) if self._looks_inside else None
            chosen = [*self._now, *self._late]
            provider, model = _asked_for(environ, want)
            price = self._price_of(want, provider, model)
            case = _Case(engine, bucket, environ, want, Holding(engine, self._prices), False)
            output = None if want is None else _most_output(chosen, want, price)
            prepared = _prepare(chosen, case, provider, model, price, output)
            if isinstance(prepared, Denial):
                return prepared
            decision = engine.test([demand for _, demand in prepared])
        except BodyError as error:
            return body_denial(error)
        except StoreUnavailable as error:
            return store_denial(error)
        return None if decision.admitted else _denial(prepared, decision)

    def reserve_once(self, engine: Engine, bucket: str, environ: WSGIEnvironment) -> Denial | None:
        """Count one request of `bucket`, or say why not; leave what is to be told in the environ.

        Raises:
            StoreUnavailable: the engine gave no answer.
        """
        demands = [one.demand(bucket) for one in self._now]
        decision = engine.reserve(demands)
        self._report(environ, self._now, decision)
        if decision.admitted:
            return None
        return _denial(list(zip(self._now, demands, strict=True)), decision)

    def reserve(
        self,
        engine: Engine,
        bucket: str,
        environ: WSGIEnvironment,
        app: WSGIApplication,
        *,
        gate: str,
        enforce: bool,
        on_down: Callable[[StoreUnavailable], Denial | None],
        bucket_of: Callable[[WSGIEnvironment], str] | None = None,
    ) -> tuple[Denial | None, Holding]:
        """Reserve what a request may use; return why not, and what is held for it.

        Args:
            engine: where it is counted.
            bucket: whose request it is.
            environ: the request.
            app: what the gate wraps.
            gate: the gate's name.
            enforce: False hands nothing inwards and changes no body.
            on_down: what becomes of a candidate whose reservation the engine did not answer.
            bucket_of: returns the bucket for a candidate, where it depends on that.

        Raises:
            StoreUnavailable: the engine gave no answer; nothing is held.
        """
        holding = Holding(engine, self._prices)
        try:
            want = wanted(environ) if self._looks_inside else None
        except BodyError as error:
            return body_denial(error), holding
        judge = judge_of(environ, gate)
        case = _Case(engine, bucket, environ, want, holding, enforce, judge)
        hands_on = bool(self._late) and enforce
        waits = hands_on and has_final_judge(app)
        # Without a forwarder within all that will be known is known: one step, or none. Behind
        # layers of others there may be one, which then reserves anew what depends on the model.
        chosen = self._now if waits else [*self._now, *self._late]
        denial = None
        if chosen:
            provider, model = _asked_for(environ, want)
            denial = self._hold(case, chosen, provider, model, late=False, again=hands_on)
        if denial is not None and waits and denial.retry_after:
            # What is reserved late may take longer: nobody is sent away to be refused again.
            wait = self._wait_for_late(engine, bucket) / SECOND
            if wait > denial.retry_after:
                denial = denial.with_retry_after(wait)
        if denial is None and waits and spoken(environ)[0] is PLAIN:
            # Most likely an application's own request; a layer within may make it the forwarder's.
            denial = self._hold(case, self._late, None, None, late=True)
        if denial is None and hands_on:
            late = partial(self._hold_late, case._replace(environ={}), on_down, bucket_of)
            environ.setdefault(RESERVERS, []).append(late)
        return denial, holding

    def _wait_for_late(self, engine: Engine, bucket: str) -> int:
        """Return the microseconds until the limits that count every model have anything left.

        How much of them a candidate will want, and what holds for some models, is not known yet.
        """
        demands = [one.demand(bucket) for one in self._late if one.rules is None]
        if not demands:
            return 0
        try:
            outcomes = engine.test(demands).outcomes
        except StoreUnavailable:
            return 0  # it is refused in any case
        return max(outcome.wait for outcome in outcomes)

    def _hold_late(
        self,
        case: _Case,
        on_down: Callable[[StoreUnavailable], Denial | None],
        bucket_of: Callable[[WSGIEnvironment], str] | None,
        environ: WSGIEnvironment,
        provider: str | None,
        model: str | None,
    ) -> Denial | None:
        """Reserve for a candidate what depends on it, in the place of the last one's."""
        case, holding = case._replace(environ=environ), case.holding
        holding.drop_late(case.environ.get(ATTEMPTS, 0))
        without_cap(case.environ, holding, holding.early_output)
        if bucket_of is not None:
            case = case._replace(bucket=bucket_of(case.environ))
        if case.want is not None and case.want.is_nothing:
            try:
                case = case._replace(want=wanted(case.environ))
            except BodyError as error:
                return body_denial(error)
        told = case.environ[RATE_REPORTS]
        counted = [one.label for one in self._late if holding.counts(one.prefix + case.bucket)]
        # Of who is asked again under one limit it is the same request, and counts once.
        stay = [report for report in holding.late_reports if report.name in counted]
        told[:] = [
            report for report in told if report in stay or report not in holding.late_reports
        ]
        holding.late_reports = stay
        try:
            denial = self._hold(case, self._late, provider, model, late=True)
        except StoreUnavailable as error:
            denial = on_down(error)
        # Of a request that is refused for good nothing is kept; another candidate may still do.
        holding.refused = denial is not None and not case.environ.get(ATTEMPTS)
        return None if denial is None else denial.of(case.judge)

    def _hold(
        self,
        case: _Case,
        chosen: Sequence[_Named],
        provider: str | None,
        model: str | None,
        *,
        late: bool,
        again: bool = False,
    ) -> Denial | None:
        """Reserve one step; without a cap of the client's as much output as is left.

        Args:
            case: the request.
            chosen: the limits.
            provider: who is asked, as far as it is known.
            model: what for.
            late: whether it is a candidate that is reserved for.
            again: whether a forwarder may reserve anew for a candidate, in the place of this.
        """
        want, holding = case.want, case.holding
        uncapped = want is not None and want.output_tokens is None
        price = self._price_of(want, provider, model)
        # What depends on the candidate is asked for anew, within what was reserved before.
        output = holding.early_output
        if want is not None and uncapped:
            most = _most_output(chosen, want, price)
            output = most if output is None else min(output, most)
        prepared, decision = [], Decision(False, [], [])
        for _ in range(_ATTEMPTS):
            found = _prepare(chosen, case, provider, model, price, output)
            if isinstance(found, Denial):
                return found
            prepared = [pair for pair in found if not (late and holding.counts(pair[1].name))]
            if not prepared:
                return None
            decision = case.engine.reserve([demand for _, demand in prepared])
            if decision.admitted or want is None or not uncapped:
                break
            smaller = _what_is_left(prepared, decision, want, price, output or DEFAULT_OUTPUT)
            if smaller is None:
                break
            output = smaller
        reports = self._report(case.environ, [one for one, _ in prepared], decision)
        # What goes with the candidate that it is reserved for.
        passing = chosen if late else self._late if again else ()
        holding.late_reports += [
            report for report, (one, _) in zip(reports, prepared, strict=True) if one in passing
        ]
        if not decision.admitted:
            return _denial(prepared, decision)
        settles = bool(self._late)  # else a request that was counted stays counted
        for (one, demand), mark in zip(prepared, decision.marks, strict=True):
            if one.limit.unit == REQUESTS and not settles:
                continue
            holding.add(one.limit.unit, demand, mark, price=price, late=one in passing)
        if want is not None and uncapped and _bounds_output(prepared):
            cap = output or DEFAULT_OUTPUT
            if _bounds_output([pair for pair in prepared if pair[0] not in passing]):
                holding.early_output = cap
            if case.enforce:
                with_cap(case.environ, want.cap, cap, holding)
                put_members(case.environ, dict.fromkeys(want.lacking, cap))
        return None

    def _price_of(
        self, want: Wanted | None, provider: str | None, model: str | None
    ) -> Price | None:
        """Return the price of what is asked, None where one that counts is not known.

        Of a batch, whose requests name models of their own, that of the dearest.
        """
        if not self._late or (want is not None and not want.priced):
            return None
        counts_money = any(one.limit.unit == USD for one in self._late)
        inner = (
            () if want is None else tuple(one for one in want.inner if not isinstance(one, AnyOf))
        )
        if not inner or not counts_money:
            return self._prices.of(provider, model)
        asked = inner if model is None else (model, *inner)
        prices: list[Price] = []
        for one in asked:
            price = self._prices.of(provider, one)
            if price is None:
                return None
            prices.append(price)
        return prices[0] if model is not None else max(prices, key=lambda p: (p.output, p.input))

    def _report(
        self, environ: WSGIEnvironment, chosen: Sequence[_Named], decision: Decision
    ) -> list[Report]:
        reports = [
            Report(one.label, limit.unit, limit.amount, limit.window, remaining, reset, one.policy)
            for one, limit, (remaining, reset, _) in zip(
                chosen, [one.limit for one in chosen], decision.outcomes, strict=True
            )
        ]
        environ.setdefault(RATE_REPORTS, []).extend(reports)
        return reports


class _Case(NamedTuple):
    """One request under one limiter."""

    engine: Engine
    bucket: str
    environ: WSGIEnvironment
    want: Wanted | None
    holding: Holding
    enforce: bool
    judge: Judge = _NOBODY


class _Named:
    """A limit, and what it is called by whom."""

    def __init__(self, limit: Limit, name: str, label: str) -> None:
        self.limit = limit
        self.prefix = f"{name}|{limit.kind}|"
        self.label = label
        self.policy = policy(label, limit)
        self.rules = None if limit.model is None else ModelRules([limit.model])
        _, slash, model = (limit.model or "").partition("/")
        # Whose model it is nobody can tell before it is asked: then its name alone has to match.
        self.name_rules = ModelRules([model]) if slash and model else None
        self.is_late = limit.unit == USD or limit.model is not None

    def demand(self, bucket: str, units: int = 1) -> Demand:
        """Return the demand for units of a bucket."""
        return Demand(self.prefix + bucket, self.limit.rule, units, self.limit.calendar)

    def is_for(self, provider: str | None, model: str | None) -> bool:
        """Whether the limit counts a model; one that is not known is counted by all."""
        if self.rules is None or model is None:
            return True
        meanings = [(provider, model)]
        if provider is None:
            meanings = [*readings(model), (None, bare_name(model))]
        return any(self._counts(*meaning) for meaning in meanings)

    def _counts(self, provider: str | None, model: str) -> bool:
        rules = self.name_rules if provider is None else None
        return (self.rules is not None and self.rules.allows(provider, model)) or (
            rules is not None and rules.allows(None, model)
        )


def _asked_for(environ: WSGIEnvironment, want: Wanted | None) -> tuple[str | None, str | None]:
    """Return the provider, as far as it is known, and the model that a request asks for."""
    if want is not None and want.model is not None:
        return None, want.model  # as the client has it: who has read it otherwise may be wrong
    return environ.get(PROVIDER), environ.get(MODEL)


def _label(label: str | None, limit: Limit, *, several: bool) -> str:
    if label is None or not several:
        return label or limit.kind
    return f"{label}-{limit.kind}"


def _output_for(unit: str, units: int, want: Wanted, price: Price | None) -> int | None:
    """Return the tokens of each answer that `units` give behind the prompt; None for any number."""
    if unit == USD:
        if price is None:
            return None
        units -= price.cost(0, want.named_output)
        return price.output_for(units, want.input_tokens, want.answers)
    if unit in ("tokens", "output_tokens"):
        fixed = want.input_tokens if unit == "tokens" else 0
        return (units - fixed - want.named_output) // want.answers
    return None


def _most_output(chosen: Sequence[_Named], want: Wanted, price: Price | None) -> int:
    """Return the tokens of an answer that the limits could give if all were free."""
    output = want.default_output
    for one in chosen:
        fits = _output_for(one.limit.unit, one.limit.most, want, price)
        if fits is not None:
            output = min(output, fits)
    return max(LEAST_OUTPUT, output)


def _prepare(
    chosen: Sequence[_Named],
    case: _Case,
    provider: str | None,
    model: str | None,
    price: Price | None,
    output: int | None,
) -> list[tuple[_Named, Demand]] | Denial:
    """Return what is demanded of which limit, or why that can never be met."""
    prepared = []
    want = case.want
    for one in chosen:
        limit = one.limit
        if not one.is_for(provider, model):
            continue
        if limit.unit == USD and price is None and want is not None and want.input_tokens:
            message = "The price of this model is not known, and a limit of money asks for it."
            return Denial("price_unknown", message, param="model")
        units = _units(limit, want, price, output or DEFAULT_OUTPUT)
        if units is None:
            return _never(limit)
        prepared.append((one, one.demand(case.bucket, units)))
    return prepared


def _units(limit: Limit, want: Wanted | None, price: Price | None, output: int) -> int | None:
    """Return how many units a request wants; None where the limit can never give so many."""
    if limit.unit in (REQUESTS, CONCURRENT) or want is None:
        return 1
    most_output = want.output_tokens
    least_output = most_output if want.least_output is None else want.least_output
    if most_output is None or least_output is None:
        most_output = want.named_output + output * want.answers
        least_output = want.named_output
    if limit.unit == USD:
        if price is None:
            return 1
        least = price.cost(want.least_input, least_output)
        most = price.cost(want.input_tokens, most_output)
    else:
        least = tokens_of(limit.unit, want.least_input, least_output)
        most = tokens_of(limit.unit, want.input_tokens, most_output)
    if least > limit.most:
        return None
    # The bound is a generous one: what fits by any measure is let in when all is free.
    return min(max(most, 1), limit.most)


def _bounds_output(prepared: Sequence[tuple[_Named, Demand]]) -> bool:
    return any(one.limit.unit in ("tokens", "output_tokens", USD) for one, _ in prepared)


def _what_is_left(
    prepared: Sequence[tuple[_Named, Demand]],
    decision: Decision,
    want: Wanted,
    price: Price | None,
    output: int,
) -> int | None:
    """Return a smaller number of output tokens that may fit; None where it is not about them."""
    smaller = output
    for (one, _), outcome in zip(prepared, decision.outcomes, strict=True):
        if outcome.wait == 0:
            continue
        fits = _output_for(one.limit.unit, outcome.remaining, want, price)
        if fits is None or outcome.remaining <= 0:
            return None
        smaller = min(smaller, fits)
    return smaller if LEAST_OUTPUT <= smaller < output else None


def _never(limit: Limit) -> Denial:
    code = "budget_exceeded" if limit.unit == USD else "invalid_request"
    message = f"The request asks for more than the limit of {limit.text} ever gives."
    return Denial(code, message, retryable=False)


def _denial(prepared: Sequence[tuple[_Named, Demand]], decision: Decision) -> Denial:
    wait, limit = max(
        (
            (outcome.wait, one.limit)
            for outcome, (one, _) in zip(decision.outcomes, prepared, strict=True)
        ),
        key=lambda pair: pair[0],
    )
    return refusal(limit).with_retry_after(wait / SECOND)


def refusal(limit: Limit) -> Denial:
    """Return the refusal for a limit that is reached."""
    message = f"The limit of {limit.text} is reached."
    if limit.unit == USD:
        return Denial("budget_exceeded", message, retryable=False)
    return Denial("rate_limit_exceeded", message)


def with_rate_headers(environ: WSGIEnvironment, start_response: StartResponse) -> StartResponse:
    """Return a `start_response` that puts the rate headers in the place of a provider's.

    With several limiters around each other each does it, from all that the request has met, so
    that the last word is complete.
    """

    def told(status: str, headers: Headers) -> Headers:
        ours = rate_headers(environ.get(RATE_REPORTS, ()), client_dialect(environ).name)
        names = {name.lower() for name, _ in ours}
        return [header for header in headers if header[0].lower() not in names] + ours

    return with_headers(start_response, told)
