"""Tell what each gate would decide of a request, and why, without spending anything.

A request is described, not sent: its address, its key by id, its model and path. The gates that a
gateway or a document would put in its way judge it, one after the other until one refuses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from ._paths import is_canonical
from .body import whole
from .denial import Denial, body_denial, store_denial
from .dialects import PLAIN, spoken
from .environ import CHOOSER, CLIENT_IP, DECISIONS, KEY, STAND_INS, enter, full_path
from .errors import BodyError, StoreUnavailable
from .forwarding.route import ai_path
from .gate import Decision, Gate
from .header_rewriter import HeaderRewriter
from .key_auth import KeyAuth
from .keys import ApiKey
from .model_access import ModelAccess
from .upstream_forwarder import UpstreamForwarder

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from .policy import TrafficPolicy

_TOKEN = "explained"  # noqa: S105  (stands where a token would, and opens nothing)


class Finding(NamedTuple):
    """What one part says of the request.

    Attributes:
        part: the rule and the action, or the gate's class.
        verdict: `passes`, `refuses`, `answers`, `skipped` or `asks`.
        reason: why, or who is asked.
        status: of a refusal or an answer; 0 where the request goes on.
        enforced: whether a refusal would be one.
    """

    part: str
    verdict: str
    reason: str = ""
    status: int = 0
    enforced: bool = True

    @property
    def ends(self) -> bool:
        """Whether nothing comes after it."""
        return self.status > 0 and self.enforced


class Described(NamedTuple):
    """A request that is only described."""

    ip: str = "127.0.0.1"
    key: ApiKey | None = None
    model: str | None = None
    path: str = "/v1/chat/completions"
    method: str = "POST"
    headers: Mapping[str, str] = {}

    def environ(self) -> WSGIEnvironment:
        """Return it as a server would hand it on."""
        body: dict[str, Any] = {"messages": []}
        if self.model is not None:
            body = {"model": self.model, **body}
        data = json.dumps(body).encode() if self.method == "POST" else b""
        path, _, query = self.path.partition("?")
        environ: WSGIEnvironment = {
            "REQUEST_METHOD": self.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REMOTE_ADDR": self.ip,
            CLIENT_IP: self.ip,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_LENGTH": str(len(data)),
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(data),
        }
        for name, value in self.headers.items():
            key = name.upper().replace("-", "_")
            environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
        if self.key is not None:
            environ.setdefault("HTTP_X_API_KEY", _TOKEN)
        enter(environ)
        whole(environ, len(data))  # whoever looks ahead leaves it for the next one
        return environ


class KnownKey:
    """Keys of which one is presented, whatever the token; for what is only described.

    Args:
        key: the key; None for none.
    """

    def __init__(self, key: ApiKey | None) -> None:
        self._key = key

    def verify(self, token: str, *, endpoint: str | None = None) -> ApiKey | None:
        """Return the key."""
        key = self._key
        if key is None or not key.is_live(datetime.now(UTC)):
            return None
        return key if endpoint is None or key.endpoint_id in (None, endpoint) else None


def explain(
    app: WSGIApplication, request: Described, labels: Mapping[Any, str] | None = None
) -> Iterator[Finding]:
    """Yield what each part of a stack says of a request, the outermost first.

    The parts are asked in the order and with the environ of a real request; those that spend are
    only judged.

    Args:
        app: the stack, with layers of ours around a forwarder or an application.
        request: the request.
        labels: what layers are called, `TrafficPolicy.labels`; else by their class.
    """
    environ = request.environ()
    walk = _Walk(environ, {} if labels is None else labels)
    yield from walk.through(app)


class _Walk:
    """The way of a described request.

    Args:
        environ: the request.
        labels: what layers are called.
    """

    def __init__(self, environ: WSGIEnvironment, labels: Mapping[Any, str]) -> None:
        self._environ = environ
        self._labels = labels
        self._label = ""

    def through(self, app: Any) -> Iterator[Finding]:
        """Yield what is found on the way through layers."""
        from .policy.gateway import Gateway, Keyed
        from .policy.policy import Entry
        from .policy.steps import Noted, Rule, Step

        state: Any = None
        while app is not None:
            self._label = self._labels.get(app, self._label)
            finding: Finding | None = None
            following = getattr(app, "app", None)
            if isinstance(app, Entry):
                state = _state(self._environ, app.policy)
            elif isinstance(app, Rule):
                finding, following = self._ruled(app, state)
            elif isinstance(app, Step):
                finding, following = self._stepped(app, state)
            elif isinstance(app, Noted):
                app.note(state)
            elif isinstance(app, HeaderRewriter):
                app.rewrite_request(self._environ)
            elif isinstance(app, Keyed):
                following = app.next(self._environ)
            elif isinstance(app, Gateway):
                finding, following = self._prepared(app, state)
            elif isinstance(app, UpstreamForwarder):
                finding, following = self._forwarded(app)
            elif isinstance(app, Gate):
                finding = self._judged(app)
            if finding is not None:
                yield finding
                if finding.ends or finding.verdict == "asks":
                    return
            app = following
        yield Finding("the end", "passes", "to the application")

    def _part(self, name: str) -> str:
        return f"{self._label}: {name}" if self._label else name

    def _judged(self, gate: Gate) -> Finding:
        environ, name = self._environ, type(gate).__name__
        try:
            if isinstance(gate, KeyAuth):
                denial = gate.judge(environ, hand_on=gate.enforce)
            elif isinstance(gate, ModelAccess):
                denial = gate.apply(environ)  # which spends nothing
            else:
                denial = gate.judge(environ)
        except StoreUnavailable as error:
            denial = store_denial(error)
        code, reason = (None, "") if denial is None else (denial.code, denial.message)
        decision = Decision(name, denial is None, code, reason, gate.enforce)
        environ.setdefault(DECISIONS, []).append(decision)
        if isinstance(gate, KeyAuth):
            _show_key(gate, environ)
        if denial is not None:
            return _refusal(self._part(name), denial, enforced=gate.enforce)
        return Finding(self._part(name), "passes")

    def _ruled(self, rule: Any, state: Any) -> tuple[Finding | None, Any]:
        from .policy.expressions import EvaluationError
        from .policy.steps import holds

        part = rule.place.label.removeprefix("on_http_request ")
        try:
            if holds(rule.expressions, state):
                return None, rule.within
        except EvaluationError as error:
            return _failed(part, error, guards=rule.place.guards), rule.beyond
        return Finding(part, "skipped", "its expressions are not all true"), rule.beyond

    def _stepped(self, step: Any, state: Any) -> tuple[Finding, Any]:
        from .policy.expressions import EvaluationError

        try:
            own = step.run(state)
        except EvaluationError as error:
            return _failed(self._label, error, guards=step.place.guards), step.skipped
        if own is None:
            return Finding(self._label, "passes"), step.app
        return Finding(self._label, "answers", f"with {own.status}", own.status), None

    def _prepared(self, gateway: Any, state: Any) -> tuple[Finding | None, Any]:
        from .policy.expressions import EvaluationError

        if spoken(self._environ)[0] is PLAIN:
            return None, gateway.beyond
        if not is_canonical(full_path(self._environ)):
            return Finding(self._label, "refuses", "not_found: an odd path", 404), None
        try:
            gateway.prepare(self._environ, state)
        except EvaluationError as error:
            return _failed(self._label, error, guards=True), None
        return None, gateway.app

    def _forwarded(self, forwarder: UpstreamForwarder) -> tuple[Finding | None, Any]:
        part = self._part("UpstreamForwarder")
        path = ai_path(self._environ)
        if path is None:
            return Finding(part, "passes", "the path is no AI API's"), forwarder.app
        try:
            plan = self._plan(forwarder, path)
        except BodyError as error:
            plan = body_denial(error)
        except StoreUnavailable as error:
            plan = store_denial(error)
        if isinstance(plan, Finding):
            return plan, None
        if isinstance(plan, Denial):
            return _refusal(part, plan), None
        return Finding(part, "asks", ", then ".join(c.name for c in plan.candidates)), None

    def _plan(self, forwarder: UpstreamForwarder, path: Any) -> Any:
        """Return the forwarder's plan, or what a strategy of the document says."""
        if CHOOSER not in self._environ:
            return forwarder.planner.plan(self._environ, path)
        from .policy.expressions import EvaluationError
        from .policy.gateway import NO_MODEL, NoModel

        try:
            return forwarder.planner.plan(self._environ, path)
        except EvaluationError as error:
            return _failed(self._label, error, guards=True)
        except NoModel:
            return NO_MODEL


def _state(environ: WSGIEnvironment, policy: TrafficPolicy) -> Any:
    from .policy.state import state_of

    return state_of(environ, policy)


def _failed(part: str, error: Exception, *, guards: bool) -> Finding:
    verdict, status = ("refuses", 403) if guards else ("skipped", 0)
    return Finding(part, verdict, f"policy_error: {error}", status)


def _refusal(part: str, denial: Denial, *, enforced: bool = True) -> Finding:
    reason = f"{denial.code}: {denial.message}"
    if denial.judge is not None:
        reason += f" (a rule of {denial.judge.gate})"
    return Finding(part, "refuses", reason, denial.status, enforced)


def _show_key(gate: KeyAuth, environ: WSGIEnvironment) -> None:
    """Leave in the environ what the gate would: the key's record where it is good."""
    key = gate._keys.verify(_TOKEN)
    gate.take_out(environ)
    if key is not None:
        environ[KEY] = key
        environ.setdefault(STAND_INS, {})["HTTP_X_API_KEY"] = f"redacted:{key.id}"
