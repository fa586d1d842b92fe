"""A refusal, rendered in the dialect that the client speaks.

One place knows which status belongs to a code and how a refusal looks, so that every layer
refuses in the same way and an SDK raises its own right exception.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from .body import discard_unread
from .dialects import ANTHROPIC, client_dialect
from .environ import DECISIONS, request_id

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from .errors import BodyError, StoreUnavailable

STATUSES = {
    "invalid_api_key": 401,
    "invalid_token": 401,
    "ip_not_allowed": 403,
    "model_not_allowed": 403,
    "rate_limit_exceeded": 429,
    "budget_exceeded": 429,
    "request_too_large": 413,
    "input_tokens_exceeded": 413,
    "policy_error": 403,
    "invalid_request": 400,
    "length_required": 411,
    "upstream_unreachable": 502,
    "upstream_timeout": 504,
    "upstream_auth_failed": 502,
    "price_unknown": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "store_unavailable": 503,
}


class Judge(NamedTuple):
    """A gate that hands its rule inwards.

    Attributes:
        gate: its name.
        place: the number of its decision in `aigw.decisions`.
    """

    gate: str
    place: int


def judge_of(environ: WSGIEnvironment, gate: str) -> Judge:
    """Return a gate as the judge of the request that it is about to decide on."""
    return Judge(gate, len(environ.get(DECISIONS, ())))


_LONGEST_WAIT = 300
"""Seconds of `Retry-After` above which no client's own retry is worth waiting for."""


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a request is refused.

    Attributes:
        code: a key of `STATUSES`.
        message: one sentence for the client; never holds a secret.
        headers: further response headers, `(name, value)` pairs.
        param: the field of the body that is wrong, for dialects that name it.
        retryable: False where the client's own retry could bill a request twice.
        judge: the gate whose rule it is, where a forwarder judges by it; else None.
    """

    code: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()
    param: str | None = None
    retryable: bool = True
    judge: Judge | None = None

    @property
    def status(self) -> int:
        """The HTTP status of the code."""
        return STATUSES[self.code]

    @property
    def retry_after(self) -> int:
        """The seconds in `Retry-After`; 0 where there is none."""
        return int(dict(self.headers).get("Retry-After", 0))

    def of(self, judge: Judge) -> Denial:
        """Return this denial as that of a gate's rule, for a forwarder to speak."""
        return replace(self, judge=judge)

    def with_retry_after(self, seconds: float) -> Denial:
        """Return this denial with `Retry-After` in whole seconds, rounded up (RFC 9110 §10.2.3)."""
        header = ("Retry-After", str(max(1, math.ceil(seconds))))
        others = [pair for pair in self.headers if pair[0] != "Retry-After"]
        return replace(self, headers=(*others, header))


def store_denial(error: StoreUnavailable) -> Denial:
    """Return the refusal for an engine that gave no answer: never that the key is bad."""
    message = f"The gateway's {error.engine} are unavailable; try again shortly."
    return Denial("store_unavailable", message).with_retry_after(1)


def body_denial(error: BodyError) -> Denial:
    """Return the refusal for a body that cannot be used."""
    return Denial(error.code, str(error))


def refuse(environ: WSGIEnvironment, start_response: StartResponse, denial: Denial) -> list[bytes]:
    """Answer the request with `denial`, in the client's dialect.

    Up to 64 KiB of a body that nobody has read are read away first: a server that closes a
    connection with unread bytes sends a reset, which can destroy the answer on its way.
    """
    discard_unread(environ)
    id_ = request_id(environ)
    dialect = client_dialect(environ)
    document = dialect.error(denial.status, denial.code, denial.message, id_, denial.param)
    body = json.dumps(document).encode()
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("X-Request-Id", id_),
        ("X-Aigw-Code", denial.code),
        *denial.headers,
    ]
    if dialect is ANTHROPIC:
        headers.append(("request-id", id_))  # where its SDK looks
    if not denial.retryable or denial.retry_after > _LONGEST_WAIT:
        # Both the openai and the anthropic SDK obey it; the latter would sleep for hours else.
        headers.append(("x-should-retry", "false"))
    start_response(status_line(denial.status), headers)
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


def status_line(status: int, reason: str = "") -> str:
    """Return `status` as PEP 3333 asks for it: three digits, a space and a reason."""
    if not reason:
        try:
            reason = HTTPStatus(status).phrase
        except ValueError:
            reason = "Unknown"
    return f"{status} {reason}"
