"""Ask one candidate after the other, until one answers for good."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from werkzeug.http import parse_date

from .._headers import header, is_event_stream
from ..denial import Denial, body_denial, store_denial
from ..environ import ATTEMPTS, MODEL, PROVIDER, SENT_TO, TRIED, UNSEEN, request_id
from ..errors import (
    BodyError,
    StoreUnavailable,
    UpstreamError,
    UpstreamTimeout,
)
from ..limits.enforcing import RESERVERS
from .health import Failure, failure_of, health, is_spent
from .planning import Plan
from .route import Candidate
from .transport import Request, Response, Timeouts, Transport
from .waiting import Waiting, awaited

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger(__name__)

MOST_RETRY_AFTER = 600.0
"""Seconds for which a key rests at most because its provider says so."""


class Attempt(NamedTuple):
    """One candidate that was asked.

    Attributes:
        provider: its name; None for a plain URL.
        model: the name by which the model was asked for; None where the path names none.
        outcome: the status of its answer, or `unreachable`, `timeout`, or the code of a refusal.
        seconds: how long it took until the answer's first byte; of a failure until its head.
    """

    provider: str | None
    model: str | None
    outcome: str
    seconds: float


class Answered(NamedTuple):
    """A candidate's answer, of which the head was read, or more.

    Attributes:
        response: the answer.
        candidate: whose it is.
        first: the first bytes of its body; None where they were not asked for yet.
    """

    response: Response
    candidate: Candidate
    first: bytes | None


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
    rest = list(plan.candidates)
    last: Denial | None = None
    kept: Answered | None = None
    try:
        while rest and time.monotonic() < deadline:
            candidate = rest.pop(0)
            _tell(environ, candidate)
            last = _reserved(environ, candidate)
            if last is not None:
                _note(environ, candidate, last.code, 0.0)
                continue
            if kept is not None:
                _tell_of_next(environ, kept)
            plan = plan.with_body_for(environ, candidate)
            result, failure = _ask(
                environ, candidate, plan.request(candidate, waiting), transport, timeouts, deadline
            )
            if failure is not None:
                # A key that was refused will be again, and a host has gone for all of its keys.
                status = 0 if isinstance(result, UpstreamError) else result.response.status
                rest = [one for one in rest if not is_spent(one, candidate, failure, status)]
            if isinstance(result, UpstreamError):
                last = upstream_denial(result)
                if result.sent and not retry_unsafe:
                    return last
                continue
            _drop(kept)
            kept = result
            if failure is None:
                break
        if kept is not None:
            # Also where the next ones may not be asked or cannot be reached: what was answered
            # tells the client more.
            _tell(environ, kept.candidate)
            answered, kept = kept, None
            return answered
    except BodyError as error:
        return body_denial(error)
    finally:
        _drop(kept)
    return last or Denial("upstream_timeout", "The provider did not answer in time.")


def shown(attempts: list[Attempt]) -> str:
    """Return attempts as a header shows them: `openai/gpt-4o=429, groq/llama-3=200`."""
    text = ", ".join(
        f"{'/'.join(filter(None, (one.provider, one.model)))}={one.outcome}" for one in attempts
    )
    return text.encode("unicode_escape").decode("ascii")  # a name may hold what no header may


def _ask(
    environ: WSGIEnvironment,
    candidate: Candidate,
    request: Request,
    transport: Transport,
    timeouts: Timeouts,
    deadline: float,
) -> tuple[Answered | UpstreamError, Failure | None]:
    """Ask one candidate; return what came of it, and in which way it has failed.

    Of an answer that is no failure by its status the first bytes are awaited too: who sends a
    head and nothing more has failed, and nothing has gone to the client yet.

    Raises:
        BodyError: the client's own body broke off.
        GatewayError: the wait was ended.
    """
    environ[ATTEMPTS] = environ.get(ATTEMPTS, 0) + 1
    begun, seen = time.monotonic(), health.now()
    ends = begun + timeouts.attempt
    health.begin(candidate)
    first = response = None
    try:
        response = transport.send(request, timeouts, min(deadline, ends))
        failure = failure_of(response.status)
        if failure is None:
            if is_event_stream(response.headers):
                deadline += timeouts.stream - timeouts.total
            left = min(timeouts.first_byte, min(deadline, ends) - time.monotonic())
            first = _first_bytes(environ, response, request.waiting, left)
            health.succeeded(candidate, seen)
        else:
            health.failed(candidate, failure, retry_after(response.headers, time.time()))
    except UpstreamError as error:
        health.end(candidate)
        if error.sent:
            environ[SENT_TO] = (candidate.provider, candidate.model)
        raise_if_ended(environ, request.waiting, was_sent=error.sent)
        failure = Failure.FAULT if error.sent else Failure.UNREACHABLE
        health.failed(candidate, failure)
        is_late = isinstance(error, UpstreamTimeout)
        _note(environ, candidate, "timeout" if is_late else "unreachable", begun)
        return error, failure
    except BaseException:
        health.end(candidate)
        if response is not None:
            environ[SENT_TO] = (candidate.provider, candidate.model)
            _note(environ, candidate, str(response.status), begun)
        raise
    _note(environ, candidate, str(response.status), begun)
    return Answered(response, candidate, first), failure


def _first_bytes(
    environ: WSGIEnvironment, response: Response, waiting: Waiting | None, seconds: float
) -> bytes:
    """Return the first bytes of an answer's body.

    Raises:
        UpstreamError: they did not come; the answer is closed.
        GatewayError: the wait was ended; the same.
    """
    try:
        first = awaited(waiting, response.shutdown, partial(response.read, seconds))
        if not first:  # perhaps a read that we have ended ourselves
            raise_if_ended(environ, waiting, was_sent=response.status < 400)
    except BaseException as error:
        response.close()
        if isinstance(error, UpstreamError):
            raise_if_ended(environ, waiting, was_sent=response.status < 400)
            error.sent = True
        raise
    return first


def raise_if_ended(environ: WSGIEnvironment, waiting: Waiting | None, *, was_sent: bool) -> None:
    """Raise where the wait was ended by us, and is no fault of the provider's.

    Args:
        environ: the request.
        waiting: the wait; None where none could be ended.
        was_sent: whether the provider may have begun with what it bills.
    """
    if waiting is None or waiting.ended_by is None:
        return
    if was_sent:
        environ[UNSEEN] = True
    raise waiting.ended_by from None


def _tell_of_next(environ: WSGIEnvironment, failed: Answered) -> None:
    logger.info(
        "request %s: %s answered %d, the next is asked",
        request_id(environ), failed.candidate.name, failed.response.status,
    )  # fmt: skip


def _drop(answered: Answered | None) -> None:
    """Let go of an answer that nobody will get."""
    if answered is not None:
        answered.response.close()
        health.end(answered.candidate)


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
        seconds = _until(text, now)
    return None if seconds is None else min(max(seconds, 0.0), MOST_RETRY_AFTER)


def upstream_denial(error: UpstreamError) -> Denial:
    """Return the refusal for an answer that did not come; never with the upstream's address."""
    logger.warning("no answer from upstream: %s", error)
    if isinstance(error, UpstreamTimeout):
        return Denial("upstream_timeout", "The provider did not answer in time.", retryable=False)
    message = "The provider could not be reached or broke off."
    return Denial("upstream_unreachable", message, retryable=not error.sent)


def _until(text: str, now: float) -> float | None:
    """Return the seconds until a date; None for what is none."""
    try:
        date = parse_date(text)
        return None if date is None else date.timestamp() - now
    except (ValueError, OverflowError):  # a year beyond what a timestamp can tell
        return None


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
    if candidate.provider is None:
        return None  # of a plain URL nobody knows more than the body has told
    for reserve in environ.get(RESERVERS, ()):
        try:
            denial: Denial | None = reserve(environ, candidate.provider, environ.get(MODEL))
        except StoreUnavailable as error:
            denial = store_denial(error)
        if denial is not None:
            return denial
    return None
