"""Forward requests to a provider, or to any URL, and stream the answer back.

The terminal of a gateway: whatever stands in front of it decides, this class sends. Do not
point a plain URL at a host that clients may choose; the address comes from options alone.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from ._headers import header, is_event_stream, is_token, without
from ._iterables import Block
from ._options import flag
from ._responding import with_headers
from .body import (
    Body,
    blocks,
    client_socket,
    content_length,
    has_body,
    is_unframed,
    whole,
)
from .denial import Denial, body_denial, refuse, status_line, store_denial
from .dialects import client_dialect
from .environ import (
    BODY,
    BYPASSED,
    CLAIMS,
    DECISIONS,
    END,
    KEY,
    KEY_ALIVE,
    MODEL,
    OVER,
    PROVIDER,
    REDACTED,
    SENT_TO,
    TRIED,
    UPSTREAM_WAIT,
    USAGE,
    WATCHED,
    Bypassed,
    enter,
    full_path,
    request_id,
)
from .errors import (
    BodyError,
    ClientLeft,
    GatewayError,
    KeyRevoked,
    StoreUnavailable,
    UpstreamBroken,
    UpstreamError,
)
from .forwarding.attempting import Answered, attempt, raise_if_ended, shown, upstream_denial
from .forwarding.health import health
from .forwarding.later import MADE, LaterMetering
from .forwarding.metering import (
    Metering,
    may_tell,
    metering_of,
    with_codings_read,
    without_codings,
)
from .forwarding.models_list import ModelsList
from .forwarding.naming import read_aliases
from .forwarding.own_address import tells_address, with_own_address
from .forwarding.planning import Plan, Planner
from .forwarding.redaction import redact_body, redact_headers
from .forwarding.request_headers import request_headers
from .forwarding.response_headers import response_headers
from .forwarding.route import (
    AIPath,
    Candidate,
    ai_path,
    is_safe_path,
    url_candidate,
)
from .forwarding.strategies import STRATEGIES
from .forwarding.stream import ForwardedBody, WholeResponse
from .forwarding.transport import Response, Timeouts, Transport, shared_transport
from .forwarding.url import BaseURL, query
from .forwarding.waiting import Waiting, awaited
from .gate import refused_within
from .named_models import MAX_BODY_BYTES
from .providers import Provider
from .usage.prices import Prices

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from requests.adapters import BaseAdapter

    from .keys import ApiKey
    from .store import Store

logger = logging.getLogger(__name__)

_MOST_ERROR_BYTES = 1024 * 1024
_LEAST_READ = 1.0
_REFUSED_KEY = (401, 403)
_UNGUARDED = Denial("not_found", "No AI API has this path.")
_REVOKED = Denial("invalid_api_key", "The gateway API key of this stream is no longer valid.")


class UpstreamForwarder:
    """Forward requests upstream with a provider's key in the place of the client's.

    ::

        app = UpstreamForwarder(upstream=Provider("openai", api_keys=["sk-..."]))
        app = UpstreamForwarder(upstream="http://127.0.0.1:8000")      # a plain reverse proxy

    Which provider is asked is told by the dialect and the model: `openai/gpt-4o` (or
    `openai:gpt-4o`) names one, a provider's `models` list those that it serves, and else the first
    that speaks the dialect is asked. With a `Provider` the client's `/v1` (Gemini: `/v1beta` too)
    stands for its base URL, only paths of AI APIs are served, and bodies are judged: what must be
    JSON and is not is refused, and nothing is sent. `GET /v1/models` lists, over all of them and in
    the client's dialect, what the client may use. A plain URL gets every path behind its own, and
    bodies as they come. WebSockets (OpenAI's Realtime, Google's Live) are no WSGI and not served.

    The client's credentials (`Authorization`, `X-Api-Key`, `Api-Key`, `X-Goog-Api-Key`, `?key=`)
    are never sent upstream. No redirects are followed, no cookies kept, no proxy variables or
    netrc read. Answers stream back as they arrive; `Date` and `Server` are left to the WSGI
    server. An answer that breaks off raises, after an error event in an event stream; when the
    client goes, the connection upstream is closed. Where an answer is metered it is asked for in
    no content coding but gzip and deflate, which can be read. Where Anthropic tells a batch's
    `results_url` it is a path at the gateway: the SDKs would take its key to the provider.

    Refusals: 400 `invalid_request`, 404 `not_found`, 405 `method_not_allowed`, 408
    `request_timeout`, 411 `length_required`, 413 `request_too_large`, 502
    `upstream_unreachable` and `upstream_auth_failed` (the provider refused our key), 504
    `upstream_timeout`.

    Args:
        app: where requests go whose path belongs to no AI API; None: this is the end.
        upstream: a URL, a `Provider`, or a list of `Provider`s in order of preference.
        api_key: the key for a plain URL, sent in the header of the path's dialect; None for none.
        store: a store, or its URL, that has keys for the providers that were given none, and
            in which usage is booked: a row a request, before its last bytes are handed on. A key
            that is added, rotated or deleted there counts from the next request on.
        connect_timeout: seconds for connecting, TLS included.
        first_byte_timeout: seconds until the answer's head, and again until its first byte.
        idle_timeout: seconds between two bytes of the answer, and for each block of the body.
        total_timeout: seconds for all of it, but for an event stream.
        stream_timeout: seconds for an event stream.
        attempt_timeout: seconds for one attempt, connecting and sending included, until the first
            byte of its answer; None for no bound beside the others.
        max_body_bytes: the largest request body, 32 MiB.
        meter: whether what an answer has used is read off it, for `aigw.usage`. A chat that
            OpenAI's dialect streams is then asked for its usage (`stream_options`), and the extra
            event is taken out again where the client did not ask for it.
        aliases: from a model's name to the one that is asked for, `{"fast": "openai/gpt-4o-mini"}`,
            or to several in order of preference; the value in the body is replaced, and no other
            byte of it.
        prices: from `provider/model` to USD a million (input, output) tokens, before those of
            `genai-prices`, for the cost in `aigw.usage`.
        retry_unsafe: True asks the next candidate also where the last one may have done the work
            (no answer came after the request went out), which it then may bill twice.
        strategy: in which order the providers of a model are asked: `order` (as they are named),
            `weighted` (by chance, `Provider(weight=...)`), `least-busy` (who answers the fewest
            requests of this process), `cheapest` (by `prices` and `genai-prices`).
        show_attempts: whether an answer lists who was asked, in `X-Aigw-Attempts`
            (`openai/gpt-4o=429, groq/llama-3=200`): True, or a function of the client's `ApiKey`.
        transport: a `requests` transport adapter that sends in the place of our own client.

    Raises:
        ValueError: an option is wrong.
    """

    def __init__(
        self,
        app: WSGIApplication | None = None,
        upstream: str | Provider | Sequence[Provider] | None = None,
        *,
        api_key: str | None = None,
        store: Store | str | None = None,
        connect_timeout: float = 5,
        first_byte_timeout: float = 300,
        idle_timeout: float = 60,
        total_timeout: float = 600,
        stream_timeout: float = 900,
        attempt_timeout: float | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        meter: bool = True,
        aliases: Mapping[str, str | Sequence[str]] | None = None,
        prices: Mapping[str, tuple[float, float]] | None = None,
        retry_unsafe: bool = False,
        strategy: str = "order",
        show_attempts: bool | Callable[[ApiKey | None], bool] = False,
        transport: BaseAdapter | None = None,
    ) -> None:
        if app is not None and not callable(app):
            raise ValueError("app: not a WSGI application; the upstream is named upstream=...")
        self.app = app
        self._url: BaseURL | None = None
        self._providers: tuple[Provider, ...] = ()
        if isinstance(upstream, str):
            self._url = BaseURL(upstream, option="upstream")
        else:
            self._providers = _providers(upstream, has_store=store is not None)
            if api_key is not None:
                raise ValueError("api_key: is for a URL; give a Provider its api_keys")
        if api_key is not None and not (
            isinstance(api_key, str) and api_key.isascii() and api_key.isprintable() and api_key
        ):
            raise ValueError("api_key: empty, or cannot be sent in a header")
        self._api_key = api_key
        self._store = None if store is None else _resolved_store(store)
        self._timeouts = Timeouts(
            _seconds("connect_timeout", connect_timeout),
            _seconds("first_byte_timeout", first_byte_timeout),
            _seconds("idle_timeout", idle_timeout),
            _seconds("total_timeout", total_timeout),
            _seconds("stream_timeout", stream_timeout),
            math.inf if attempt_timeout is None else _seconds("attempt_timeout", attempt_timeout),
        )
        if type(max_body_bytes) is not int or max_body_bytes < 0:
            raise ValueError(f"max_body_bytes: {max_body_bytes!r} is no number of bytes")
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy: {strategy!r} is none of {', '.join(STRATEGIES)}")
        self._max_body_bytes = max_body_bytes
        self._meter = flag("meter", meter)
        self._prices = Prices(prices)
        names = read_aliases(aliases)
        self.planner = Planner(
            self._providers,
            aliases=names,
            store=self._store,
            max_body_bytes=max_body_bytes,
            meter=self._meter,
            strategy=strategy,
            prices=self._prices,
        )
        self._models = ModelsList(self._providers, names, self.planner.keys)
        self._retry_unsafe = flag("retry_unsafe", retry_unsafe)
        self._show_attempts = (
            show_attempts if callable(show_attempts) else flag("show_attempts", show_attempts)
        )
        self._transport = _transport(transport)

    @property
    def judges_models(self) -> bool:
        """Whether rules over models that outer gates hand inwards are judged here."""
        return bool(self._providers)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        enter(environ)
        path = ai_path(environ)
        if BYPASSED in environ and not _was_let_in(environ) and (path or self._api_key):
            # It went by the layers of a stack that guards other paths.
            path = None
            if self.app is None:
                return refuse(environ, start_response, _UNGUARDED)
        if path is None and self.app is not None:
            return self.app(environ, start_response)
        try:
            if path is not None and self._providers and self._models.is_for(environ, path):
                return self._list_models(environ, start_response, path)
            plan = self._plan(environ, path)
        except BodyError as error:
            return refuse(environ, start_response, body_denial(error))
        except StoreUnavailable as error:
            return refuse(environ, start_response, store_denial(error))
        if isinstance(plan, Denial):
            return _refused(environ, start_response, plan)
        shows_attempts = self._shows_attempts(environ)
        started = time.monotonic()
        environ.pop(SENT_TO, None)
        try:
            answer = self._ask(environ, plan, started)
        except (ClientLeft, KeyRevoked) as error:
            answer = _ended(environ, error)
        if isinstance(answer, Denial) and SENT_TO in environ:
            # Somebody may bill it.
            asked = environ[SENT_TO]
            book = self._booking(environ, answer.status, started, None, asked)
            if book is not None:
                book()
        if shows_attempts:
            start_response = _telling(environ, start_response)
        if isinstance(answer, Denial):
            return _refused(environ, start_response, answer)
        return self._respond(environ, start_response, answer)

    def _list_models(
        self, environ: WSGIEnvironment, start_response: StartResponse, path: AIPath
    ) -> list[bytes]:
        body = self._models.body(environ, path, self._transport())
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("X-Aigw-Request-Id", request_id(environ)),
        ]
        start_response("200 OK", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _shows_attempts(self, environ: WSGIEnvironment) -> bool:
        shows = self._show_attempts
        return bool(shows(environ.get(KEY)) if callable(shows) else shows)

    def _plan(self, environ: WSGIEnvironment, path: AIPath | None) -> Plan | Denial:
        """Find out where the request may go, and with what body."""
        method = environ["REQUEST_METHOD"]
        if not is_token(method) or method in ("CONNECT", "TRACE"):
            return Denial("method_not_allowed", "This method is not served.")
        if not is_safe_path(full_path(environ)):
            return Denial("not_found", "A path that could be read as another one is not served.")
        if self._url is not None:
            candidate = url_candidate(self._url, self._api_key, environ)
            body, length = _streamed_body(environ, self._max_body_bytes)
            headers = request_headers(environ, provider=False)
            if path is not None and tells_address(environ):
                headers = without_codings(headers)
            elif self._meter and path is not None and may_tell(method, path):
                headers = with_codings_read(headers)
            return Plan(method, [candidate], query(environ), headers, body, length)
        if path is None:
            return Denial("not_found", "No AI API has this path.")
        return self.planner.plan(environ, path)

    def _ask(self, environ: WSGIEnvironment, plan: Plan, started: float) -> _Answer | Denial:
        """Ask the candidates, and read the first bytes of the answer."""
        client, alive = client_socket(environ), environ.get(KEY_ALIVE)
        try:
            if client is None and alive is None:
                return self._first_of(environ, plan, started, None)
            with Waiting(client, alive) as waiting:
                return self._first_of(environ, plan, started, waiting)
        finally:
            environ[UPSTREAM_WAIT] = time.monotonic() - started

    def _first_of(
        self, environ: WSGIEnvironment, plan: Plan, started: float, waiting: Waiting | None
    ) -> _Answer | Denial:
        found = attempt(
            environ,
            plan,
            self._transport(),
            self._timeouts,
            retry_unsafe=self._retry_unsafe,
            waiting=waiting,
        )
        if isinstance(found, Denial):
            return found
        try:
            answer = self._begin(environ, found, started, waiting)
        except BaseException:
            health.end(found.candidate)
            raise
        if isinstance(answer, Denial):
            health.end(found.candidate)
        return answer

    def _begin(
        self, environ: WSGIEnvironment, found: Answered, started: float, waiting: Waiting | None
    ) -> _Answer | Denial:
        """Read the first bytes of a failure too, and of our keys' sake more of every error."""
        response, candidate, first = found
        if response.status in _REFUSED_KEY and candidate.secret:
            response.close()
            logger.error(
                "the provider %s refused our key with %d",
                candidate.provider or candidate.base.authority,
                response.status,
            )
            return Denial("upstream_auth_failed", "The provider refused the gateway's key.")
        stream = is_event_stream(response.headers)
        total = self._timeouts.stream if stream else self._timeouts.total
        deadline = started + total
        secrets = _secrets(candidate, environ)
        cleans = response.status >= 400 and bool(secrets)
        tells = response.status == 200 and tells_address(environ)
        try:
            if first is None:
                # Its head is there; the attempts after it may have used all of the time up.
                deadline = max(deadline, time.monotonic() + _LEAST_READ)
            if first is None or cleans or tells:
                read = partial(self._more_of, response, first, deadline, whole=cleans or tells)
                first = awaited(waiting, response.shutdown, read)
            if not first or cleans:  # perhaps a read that we have ended ourselves
                raise_if_ended(environ, waiting, was_sent=response.status < 400)
            if cleans:
                unshown = _unshown(environ)
                return self._begin_error(
                    response, candidate, first, started, deadline, secrets, unshown
                )
        except UpstreamError as error:
            response.close()
            raise_if_ended(environ, waiting, was_sent=response.status < 400)
            error.sent = True
            return upstream_denial(error)
        except BaseException:
            response.close()
            raise
        headers = redact_headers(response.headers, secrets)
        if tells and first and response.done and not header(headers, "content-encoding"):
            first = with_own_address(environ, first)
            headers = _replaced_length(headers, len(first), decoded=False)
        reason = _shown_reason(response.reason, secrets)
        return _Answer(
            response, candidate, reason, headers, first, deadline, stream, started, time.monotonic()
        )

    def _more_of(
        self, response: Response, first: bytes | None, deadline: float, *, whole: bool
    ) -> bytes:
        """Read the first bytes, where that was not done; or all, or enough to be too long."""
        if first is None:
            first = response.read(min(self._timeouts.first_byte, deadline - time.monotonic()))
        body = bytearray(first)
        while whole and first and len(body) <= _MOST_ERROR_BYTES:
            data = response.read(min(self._timeouts.idle, deadline - time.monotonic()))
            if not data:
                break
            body += data
        return bytes(body)

    @staticmethod
    def _begin_error(
        response: Response,
        candidate: Candidate,
        body: bytes,
        started: float,
        deadline: float,
        secrets: list[str],
        unshown: Callable[[int], bytes],
    ) -> _Answer:
        """Begin an error answer that was read whole: what it repeats of our key is taken out."""
        coding = header(response.headers, "content-encoding")
        headers = redact_headers(response.headers, secrets)
        clean = redact_body(body, coding, secrets) if body else (b"", False)
        if clean is None or len(body) > _MOST_ERROR_BYTES:
            # Its status and headers (`Retry-After`) still tell the client what to do.
            response.close()
            data = unshown(response.status)
            headers = _replaced_body(headers, len(data))
            response = WholeResponse(response.status, response.reason, headers)
        else:
            data, decoded = clean
            if data != body:
                headers = _replaced_length(headers, len(data), decoded=decoded)
        stream = is_event_stream(headers)
        reason = _shown_reason(response.reason, secrets)
        return _Answer(
            response, candidate, reason, headers, data, deadline, stream, started, time.monotonic()
        )

    def _respond(
        self, environ: WSGIEnvironment, start_response: StartResponse, answer: _Answer
    ) -> Iterable[bytes]:
        response = answer.response
        headers = response_headers(answer.headers, request_id(environ))
        metering = self._metering(environ, answer)
        # Neither of the two has a body, whatever the upstream announces.
        if response.status in (204, 304) or (metering is not None and metering.cuts):
            headers = without(headers, "content-length")
        on_end = self._ending(environ, answer, metering)
        whole = None
        try:
            if not answer.first or (response.done and not answer.stream):
                # Nothing is left to wait for: no layer has to look after it any more.
                whole = _metered(answer.first, metering)
                response.close()
                on_end(None)
            start_response(status_line(response.status, answer.reason), headers)
        except BaseException:
            response.close()
            on_end(None)
            raise
        if whole is not None:
            return Block([whole] if whole else [])
        environ[WATCHED] = True
        body = environ.get(BODY)
        if isinstance(body, Body):
            body.forget()
        return ForwardedBody(
            response,
            answer.first,
            idle=self._timeouts.idle,
            deadline=answer.deadline,
            error_event=_error_event(environ) if _takes_event(answer) else None,
            client=client_socket(environ),
            alive=environ.get(KEY_ALIVE),
            meter=None if metering is None else metering.meter,
            on_end=on_end,
        )

    def _metering(
        self, environ: WSGIEnvironment, answer: _Answer
    ) -> Metering | LaterMetering | None:
        """Return what reads the answer's usage, None where it has none that could be read."""
        if not self._meter:
            return None
        return metering_of(
            environ,
            answer.headers,
            self._prices,
            streams=answer.stream,
            status=answer.response.status,
        )

    def _ending(
        self, environ: WSGIEnvironment, answer: _Answer, metering: Metering | LaterMetering | None
    ) -> Callable[[GatewayError | None], None]:
        """Return what is done when the answer has ended: what it used is known, then booked."""
        asked = (environ.get(PROVIDER), environ.get(MODEL))
        first_byte = answer.first_byte - answer.started
        book = self._booking(environ, answer.response.status, answer.started, first_byte, asked)

        is_over = False

        def end(ended_by: GatewayError | None) -> None:
            nonlocal is_over
            if is_over:
                return
            is_over = True
            health.end(answer.candidate)
            is_told = metering is not None and metering.meter.is_over
            if isinstance(ended_by, UpstreamBroken):
                health.broke_off(answer.candidate)
            elif answer.response.done or is_told:
                health.came_whole(answer.candidate, answer.response.status)
            if answer.response.done or is_told:
                environ[OVER] = True
            try:
                if metering is not None:
                    metering.conclude()
            finally:
                if book is not None:
                    book()

        return end

    def _booking(
        self,
        environ: WSGIEnvironment,
        status: int,
        started: float,
        first_byte: float | None,
        asked: tuple[str | None, str | None],
    ) -> Callable[[], None] | None:
        """Return what books the request's usage in the store, None where there is no store."""
        store = self._store
        if store is None:
            return None
        key = environ.get(KEY)
        provider, model = asked
        path, id_ = full_path(environ), request_id(environ)

        def book() -> None:
            made = environ.get(MADE)
            usage = environ.get(USAGE)
            if made is not None and getattr(usage, "cost", None) is None:
                usage = made.usage  # it may know the model
            try:
                store.usage.book(
                    request_id=id_,
                    key_id=None if key is None else key.id,
                    provider=provider,
                    model=made.model if model is None and made is not None else model,
                    path=path,
                    status=status,
                    usage=usage,
                    duration=time.monotonic() - started,
                    first_byte=first_byte,
                    once=None if made is None else made.once,
                )
            except OSError as error:
                logger.error("usage of request %s cannot be kept: %s", id_, error)

        return book


def _refused(
    environ: WSGIEnvironment, start_response: StartResponse, denial: Denial
) -> list[bytes]:
    refused_within(environ, denial)
    return refuse(environ, start_response, denial)


def _was_let_in(environ: WSGIEnvironment) -> bool:
    """Whether a request that went by a stack was judged elsewhere, by as much as there."""
    if KEY in environ or CLAIMS in environ:
        return True
    bypassed: Bypassed = environ[BYPASSED]
    judged = len(environ.get(DECISIONS, ()))
    return judged > bypassed.judged or (judged > 0 and not bypassed.authenticates)


class _Answer(NamedTuple):
    """An answer whose first bytes have come."""

    response: Response
    candidate: Candidate
    reason: str
    headers: list[tuple[str, str]]
    first: bytes
    deadline: float
    stream: bool
    started: float
    first_byte: float


def _resolved_store(store: Store | str) -> Store:
    from .store import resolve_store

    return resolve_store(store)


def _providers(upstream: object, *, has_store: bool) -> tuple[Provider, ...]:
    providers = (upstream,) if isinstance(upstream, Provider) else tuple(_iterated(upstream))
    if not providers:
        raise ValueError("upstream: name a URL, a Provider or a list of Providers")
    for provider in providers:
        if not isinstance(provider, Provider):
            raise ValueError(
                f"upstream: {type(provider).__name__} in a list is no Provider; a URL stands alone"
            )
        has_key = has_store or provider.given_keys or provider.environment_keys()
        if provider.needs_key and not has_key:
            raise ValueError(
                f"upstream: no key for {provider.name}; give api_keys, a store, or set its SDK's "
                "variable"
            )
    return providers


def _iterated(value: object) -> Iterable[Provider]:
    return value if isinstance(value, Iterable) else ()


def _seconds(option: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{option}: {value!r} is no number of seconds")
    if not (0 < value < math.inf):
        raise ValueError(f"{option}: {value!r}: must be more than 0 seconds")
    return float(value)


def _transport(adapter: BaseAdapter | None) -> Callable[[], Transport]:
    if adapter is None:
        return shared_transport
    if not callable(getattr(adapter, "send", None)):
        raise ValueError(f"transport: {type(adapter).__name__} is no requests transport adapter")
    from .forwarding.adapter import AdapterTransport

    transport = AdapterTransport(adapter)
    return lambda: transport


def _streamed_body(
    environ: WSGIEnvironment, max_bytes: int
) -> tuple[Callable[[], Iterable[bytes]], int | None]:
    """Return the body for a plain URL, as it comes, and its length (None: chunked)."""
    if BODY in environ:
        body = whole(environ, max_bytes)
        return body.blocks, body.size
    if not has_body(environ):
        return (lambda: ()), 0
    length = None if environ.get("HTTP_TRANSFER_ENCODING") else content_length(environ)
    stream = blocks(environ, max_bytes)
    if is_unframed(environ):
        first = next(stream, b"")
        if not first:
            return (lambda: ()), 0
        stream = chain([first], stream)
    return (lambda: stream), length


def _ended(environ: WSGIEnvironment, error: GatewayError) -> Denial:
    """Return the refusal of a request that nobody waits for any more, or may."""
    if isinstance(error, ClientLeft):
        environ[END] = "client_left"  # nobody reads what is refused
        return Denial("upstream_unreachable", "The client has closed the connection.")
    environ[END] = "revoked"
    return _REVOKED


def _metered(data: bytes, metering: Metering | LaterMetering | None) -> bytes:
    """Return a whole answer for the client, once its meter has read it."""
    if metering is None:
        return data
    return metering.meter.feed(data) + metering.meter.finish()


def _takes_event(answer: _Answer) -> bool:
    """Whether an event of ours can stand at the end: not where bytes are counted or encoded."""
    return (
        answer.stream
        and not header(answer.headers, "content-length")
        and header(answer.headers, "content-encoding").lower() in ("", "identity")
    )


def _secrets(candidate: Candidate, environ: WSGIEnvironment) -> list[str]:
    """Return the secrets of ours that went to a provider with a request."""
    found = [candidate.secret] if candidate.secret else []
    return [*found, *environ.get(REDACTED, ())]


def _shown_reason(reason: str, secrets: Sequence[str]) -> str:
    """Return an upstream's reason phrase; empty, for the standard one, if it is no plain text."""
    repeats = any(secret in reason for secret in secrets)
    plain = reason.isascii() and reason.isprintable() and not repeats
    return reason if plain else ""


def _unshown(environ: WSGIEnvironment) -> Callable[[int], bytes]:
    """Return what makes the body that stands for an error whose own cannot be searched."""
    dialect, id_ = client_dialect(environ), request_id(environ)

    def body(status: int) -> bytes:
        message = f"The provider answered {status}, in a form that cannot be shown."
        return json.dumps(dialect.error(status, "upstream_error", message, id_, None)).encode()

    return body


def _replaced_body(headers: list[tuple[str, str]], length: int) -> list[tuple[str, str]]:
    kept = without(headers, "content-type")
    return _replaced_length([*kept, ("Content-Type", "application/json")], length, decoded=True)


def _replaced_length(
    headers: list[tuple[str, str]], length: int, *, decoded: bool
) -> list[tuple[str, str]]:
    dropped = {"content-length", "content-encoding"} if decoded else {"content-length"}
    kept = [header for header in headers if header[0].lower() not in dropped]
    return [*kept, ("Content-Length", str(length))]


def _telling(environ: WSGIEnvironment, start_response: StartResponse) -> StartResponse:
    """Return a `start_response` that tells who was asked."""
    told = ("X-Aigw-Attempts", shown(environ.get(TRIED, [])))
    return with_headers(start_response, lambda _, headers: [*headers, told])


def _error_event(environ: WSGIEnvironment) -> Callable[[GatewayError], bytes]:
    dialect = client_dialect(environ)
    path = environ.get("PATH_INFO", "")
    id_ = request_id(environ)

    def event(error: GatewayError) -> bytes:
        denial = upstream_denial(error) if isinstance(error, UpstreamError) else _REVOKED
        document = dialect.error(denial.status, denial.code, denial.message, id_, None)
        return dialect.error_event(path, document)

    return event
