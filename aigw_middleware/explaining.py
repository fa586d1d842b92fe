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

from .body import replace, whole
from .denial import Denial, body_denial, store_denial
from .dialects import PLAIN, spoken
from .environ import CLIENT_IP, DECISIONS, KEY, STAND_INS, enter
from .errors import BodyError, StoreUnavailable
from .forwarding.planning import Planner
from .forwarding.route import ai_path
from .gate import Decision, Gate
from .key_auth import KeyAuth
from .keys import ApiKey
from .model_access import ModelAccess
from .splice import put
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


def explain_layers(app: WSGIApplication, request: Described) -> Iterator[Finding]:
    """Yield what each gate of a stack says of a request, the outermost first."""
    environ = request.environ()
    yield from _walk(app, environ, "")


def _walk(app: object, environ: WSGIEnvironment, label: str) -> Iterator[Finding]:
    while app is not None:
        if isinstance(app, UpstreamForwarder):
            yield _forwarded(app, environ, label)
            return
        if isinstance(app, Gate):
            finding = _judged(app, environ, label)
            yield finding
            if finding.ends:
                return
        app = getattr(app, "app", None)


def _judged(gate: Gate, environ: WSGIEnvironment, label: str) -> Finding:
    name = type(gate).__name__
    part = f"{label}: {name}" if label else name
    _name_the_provider(gate, environ)
    try:
        denial = gate.judge(environ)
    except StoreUnavailable as error:
        denial = store_denial(error)
    code, reason = (None, "") if denial is None else (denial.code, denial.message)
    decision = Decision(name, denial is None, code, reason, gate.enforce)
    environ.setdefault(DECISIONS, []).append(decision)
    if denial is not None:
        return _refusal(part, denial, enforced=gate.enforce)
    if isinstance(gate, KeyAuth):
        _show_key(gate, environ)
    return Finding(part, "passes")


def _refusal(part: str, denial: Denial, *, enforced: bool = True) -> Finding:
    reason = f"{denial.code}: {denial.message}"
    return Finding(part, "refuses", reason, denial.status, enforced)


def _show_key(gate: KeyAuth, environ: WSGIEnvironment) -> None:
    """Leave in the environ what the gate would."""
    key = gate._keys.verify(_TOKEN)
    if key is not None and "HTTP_X_API_KEY" in environ:
        del environ["HTTP_X_API_KEY"]
        environ[KEY] = key
        environ.setdefault(STAND_INS, {})["HTTP_X_API_KEY"] = f"redacted:{key.id}"


def _name_the_provider(gate: Gate, environ: WSGIEnvironment) -> None:
    """Have the body name the provider that would be asked: rules are judged on that one."""
    if not isinstance(gate, KeyAuth | ModelAccess):
        return
    forwarder = forwarder_within(gate)
    path = ai_path(environ)
    if forwarder is None or path is None or spoken(environ)[0] is PLAIN:
        return
    planner: Planner = forwarder.planner
    try:
        plan = planner.plan(dict(environ), path)
        body = whole(environ, 1 << 20)
        document = body.json()
    except (BodyError, StoreUnavailable):
        return
    if isinstance(plan, Denial) or "model" not in document:
        return
    first = plan.candidates[0]
    if first.provider is not None and first.model is not None:
        replace(environ, put(body.read(), ("model",), f"{first.provider}/{first.model}"))


def forwarder_within(app: object) -> UpstreamForwarder | None:
    """Return the forwarder behind layers of ours; None where there is none."""
    while app is not None:
        if isinstance(app, UpstreamForwarder):
            return app
        app = getattr(app, "app", None)
    return None


def _forwarded(forwarder: UpstreamForwarder, environ: WSGIEnvironment, label: str) -> Finding:
    part = f"{label}: UpstreamForwarder" if label else "UpstreamForwarder"
    path = ai_path(environ)
    if path is None:
        return Finding(part, "passes", "the path is no AI API's")
    try:
        plan = forwarder.planner.plan(environ, path)
    except BodyError as error:
        return _refusal(part, body_denial(error))
    except StoreUnavailable as error:
        return _refusal(part, store_denial(error))
    if isinstance(plan, Denial):
        return _refusal(part, plan)
    return Finding(part, "asks", ", then ".join(c.name for c in plan.candidates))


def explain_policy(policy: TrafficPolicy, request: Described) -> Iterator[Finding]:
    """Yield what each rule of a document says of a request, in their order."""
    from .policy.actions import nobody
    from .policy.expressions import EvaluationError
    from .policy.policy import REQUEST
    from .policy.state import state_of
    from .policy.steps import Noted, Step, holds

    environ = request.environ()
    state = state_of(environ, policy)
    for rule in policy.rules[REQUEST]:
        label = rule.place.label.removeprefix(f"{REQUEST} ")
        try:
            if not holds(rule.expressions, state):
                yield Finding(label, "skipped", "its expressions are not all true")
                continue
        except EvaluationError as error:
            status = 403 if rule.place.guards else 0
            yield Finding(
                label, "refuses" if status else "skipped", f"policy_error: {error}", status
            )
            if status:
                return
            continue
        for action in rule.actions:
            part = f"{label}: {action.type}"
            app: Any = action.action.layer(action.config, action.building)(nobody)
            if isinstance(app, Step) and action.type != "log":
                finding = _stepped(app, state, part, guards=rule.place.guards)
                yield finding
                if finding.ends:
                    return
                continue
            for finding in _walk(_unkeyed(app, environ), environ, part):
                yield finding
                if finding.ends or finding.verdict == "asks":
                    return
            inner = getattr(app, "app", None)
            if isinstance(inner, Noted):
                inner._note(state)
    yield Finding("the end", "passes", "to the application")


def _unkeyed(app: Any, environ: WSGIEnvironment) -> Any:
    """Return the layers of a gateway: with its own KeyAuth, where no key was shown before."""
    asking = getattr(app, "_asking", None)
    return app if asking is None or KEY in environ else asking


def _stepped(step: Any, state: Any, part: str, *, guards: bool) -> Finding:
    from .policy.expressions import EvaluationError

    try:
        own = step._run(state)
    except EvaluationError as error:
        status = 403 if guards else 0
        return Finding(part, "refuses" if guards else "skipped", f"policy_error: {error}", status)
    if own is None:
        return Finding(part, "passes")
    return Finding(part, "answers", f"with {own.status}", own.status)
