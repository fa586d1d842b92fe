"""Ask one candidate after the other, until one answers for good."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from werkzeug.http import parse_date

from ..denial import Denial, body_denial, store_denial
from ..environ import ATTEMPTS, MODEL, PROVIDER, TRIED, request_id
from ..errors import (
    BodyError,
    StoreUnavailable,
    UpstreamError,
    UpstreamTimeout,
)
from ..limits.enforcing import RESERVERS
from .health import Failure, failure_of, health
from .planning import Plan
from .response_headers import header
from .route import Candidate
from .transport import Response, Timeouts, Transport

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .waiting import Waiting

logger = logging.getLogger(__name__)

MOST_RETRY_AFTER = 600.0
"""Seconds for which a key rests at most because its provider says so."""


class Attempt(NamedTuple):
    """One candidate that was asked.

    Attributes:
        provider: its name; None for a plain URL.
        model: the name by which the model was asked for; None where the path names none.
        outcome: the status of its answer, or `unreachable`, `timeout`, or the code of a refusal.
        seconds: how long it took until the answer's head.
    """

    provider: str | None
    model: str | None
    outcome: str
    seconds: float


class Answered(NamedTuple):
    """A candidate's answer, of which the head was read."""

    response: Response
    candidate: Candidate


def attempt(
    environ: WSGIEnvironment,
    plan: Plan,
    transport: Transport,
    timeouts: Timeouts,
    *,
    retry_unsafe: bool,
    waiting: Waiting | None = None,
) -> Answered | Denial:
    """Return the answer of the first candidate that gives a good one, or of the last one.

    `health` is told of each; whoever gets an answer tells it of its end.

    Args:
        environ: the request.
        plan: what is sent to whom.
        transport: what sends it.
        timeouts: the bounds of each step; `total` is one of all attempts together.
        retry_unsafe: whether a request that may have been processed is sent to the next one.
        waiting: what may end the wait for an answer; None for nothing.

    Raises:
        GatewayError: the wait was ended.
    """
    deadline = time.monotonic() + timeouts.total
    last = len(plan.candidates) - 1
    for number, candidate in enumerate(plan.candidates):
        _tell(environ, candidate)
        denial = _reserved(environ, candidate)
        if denial is not None:
            _note(environ, candidate, denial.code, 0.0)
            if number < last:
                continue
            return denial
        plan = plan.with_body_for(environ, candidate)
        environ[ATTEMPTS] = environ.get(ATTEMPTS, 0) + 1
        begun = time.monotonic()
        health.begin(candidate)
        try:
            response = transport.send(plan.request(candidate, waiting), timeouts, deadline)
        except BodyError as error:
            health.end(candidate)
            return body_denial(error)
        except UpstreamError as error:
            health.end(candidate)
            if waiting is not None and waiting.ended_by is not None:
                raise waiting.ended_by from None
            is_late = isinstance(error, UpstreamTimeout)
            health.failed(candidate, Failure.FAULT if error.sent else Failure.UNREACHABLE)
            _note(environ, candidate, "timeout" if is_late else "unreachable", begun)
            again = retry_unsafe or not error.sent
            if number < last and again and time.monotonic() < deadline:
                continue
            return upstream_denial(error)
        except BaseException:
            health.end(candidate)
            raise
        _note(environ, candidate, str(response.status), begun)
        failure = failure_of(response.status)
        if failure is None:
            health.succeeded(candidate)
            return Answered(response, candidate)
        health.failed(candidate, failure, retry_after(response.headers, time.time()))
        if number == last or time.monotonic() >= deadline:
            return Answered(response, candidate)
        logger.info(
            "request %s: %s answered %d, the next is asked",
            request_id(environ), candidate.name, response.status,
        )  # fmt: skip
        response.close()
        health.end(candidate)
    raise AssertionError("a plan has a candidate")


def shown(attempts: list[Attempt]) -> str:
    """Return attempts as a header shows them: `openai/gpt-4o=429, groq/llama-3=200`."""
    return ", ".join(
        f"{'/'.join(filter(None, (one.provider, one.model)))}={one.outcome}" for one in attempts
    )


def retry_after(headers: list[tuple[str, str]], now: float) -> float | None:
    """Return the seconds for which a provider asks to be left alone; None where it doesn't.

    `Retry-After` in seconds or as a date (RFC 9110 §10.2.3), or OpenAI's `retry-after-ms`.

    Args:
        headers: the answer's.
        now: seconds since 1970.
    """
    thousandths = _number(header(headers, "retry-after-ms"))
    text = header(headers, "retry-after").strip()
    seconds = _number(text) if thousandths is None else thousandths / 1000
    if seconds is None and text:
        date = parse_date(text)
        seconds = None if date is None else date.timestamp() - now
    return None if seconds is None else min(max(seconds, 0.0), MOST_RETRY_AFTER)


def upstream_denial(error: UpstreamError) -> Denial:
    """Return the refusal for an answer that did not come; never with the upstream's address."""
    logger.warning("no answer from upstream: %s", error)
    if isinstance(error, UpstreamTimeout):
        return Denial("upstream_timeout", "The provider did not answer in time.", retryable=False)
    message = "The provider could not be reached or broke off."
    return Denial("upstream_unreachable", message, retryable=not error.sent)


def _number(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _tell(environ: WSGIEnvironment, candidate: Candidate) -> None:
    """Leave in the environ who is asked for what."""
    if candidate.provider is not None:
        environ[PROVIDER] = candidate.provider
    if candidate.model is not None:
        environ[MODEL] = candidate.model


def _note(environ: WSGIEnvironment, candidate: Candidate, outcome: str, begun: float) -> None:
    seconds = time.monotonic() - begun if begun else 0.0
    tried = Attempt(candidate.provider, candidate.model, outcome, seconds)
    environ.setdefault(TRIED, []).append(tried)


def _reserved(environ: WSGIEnvironment, candidate: Candidate) -> Denial | None:
    """Have outer limiters reserve what this candidate may cost."""
    for reserve in environ.get(RESERVERS, ()):
        try:
            denial: Denial | None = reserve(candidate.provider, environ.get(MODEL))
        except StoreUnavailable as error:
            denial = store_denial(error)
        if denial is not None:
            return denial
    return None
