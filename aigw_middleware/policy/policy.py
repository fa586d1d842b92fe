"""A Traffic Policy document as a layer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from .._iterables import WHOLE, Begun, Wrapped, close_iterable
from ..counters import open_counters, resolve_counters
from ..denial import status_line
from ..environ import enter
from .actions import (
    ACTIONS,
    UNSUPPORTED,
    Action,
    Building,
    Config,
    OnAnswer,
    denied,
    nobody,
    option_of,
)
from .answers import Own
from .document import Node, read, text_of
from .expressions import EvaluationError, Expression
from .fields import BAD, Condition, ListOf, Reading
from .gateway import GATEWAY
from .mistakes import Mistake, PolicyError, nearest
from .secrets import Vaults
from .state import Answer, State, state_of
from .steps import FAILED, Place, Rule, failed, holds

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..counters import Engine
    from ..key_auth import Keys
    from ..store import Store

    Layer = Callable[[WSGIApplication], WSGIApplication]

ALL_ACTIONS = {**ACTIONS, "ai-gateway": GATEWAY}
REQUEST, RESPONSE = "on_http_request", "on_http_response"
PHASES = (REQUEST, RESPONSE)
_JUDGES = frozenset({"restrict-models", "api-key-auth", "ai-gateway"})
"""Actions whose rules go by the path: what is rewritten behind them would be judged by none."""
_OTHER_PHASES = {
    "on_tcp_connect": "put its rules in on_http_request",
    "on_event_stream_message": "events pass as they come",
}
_RULE_FIELDS = ("name", "expressions", "actions")
_ACTION_FIELDS = ("type", "config")
MOST_RULES = 100
MOST_ACTIONS = 100
"""Actions of all rules of a phase; each is a layer or two, and Python's stack has an end."""


class CompiledAction(NamedTuple):
    """An action of a rule.

    Attributes:
        type: its type.
        action: its kind.
        config: its configuration, read.
        node: where it stands.
        building: what it is built with.
    """

    type: str
    action: Action
    config: Config
    node: Node
    building: Building


class CompiledRule(NamedTuple):
    """A rule.

    Attributes:
        place: which it is.
        expressions: what must be true.
        actions: what is done then.
    """

    place: Place
    expressions: tuple[Expression, ...]
    actions: tuple[CompiledAction, ...]


class TrafficPolicy:
    """A stack written down: ngrok's Traffic Policy documents, as a layer.

    ::

        policy = TrafficPolicy.load("policy.yaml", store="sqlite:///aigw.db")
        app = stack(app, policy)

    A document lists rules for requests (`on_http_request`) and for answers (`on_http_response`);
    each has CEL `expressions`, which must all be true, and `actions`. JSON or YAML, also below
    `traffic_policy:` or in a Kubernetes resource. With an `ai-gateway` action a gateway key is
    required, unless it says `authentication: none`. `docs/policies.md` has the actions and
    variables.

    An expression that fails for a request refuses it with 403 `policy_error` where its rule may
    refuse or answer requests; any other rule is skipped then. Both are logged, to
    `aigw_middleware.policy`.

    Attributes:
        name: what the document is called.
        has_gateway: whether it has an `ai-gateway` action, without which nothing answers AI paths.
        looks_at_answers: whether it has rules for answers.
        replaces_answers: whether one of them may put an answer in the place of the app's.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        *,
        store: Store | None,
        counters: Engine,
        vaults: Vaults,
        keys: Keys | None = None,
        checking: bool = False,
    ) -> None:
        self.name = name
        self._store = store
        self._keys: Keys | None = store.keys if keys is None and store is not None else keys
        self._counters = counters
        self._numbers = count(1)
        self.labels: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        """The rule and the action of each layer that was built, for who explains them."""
        self._secrets = vaults.known
        reading = Reading(vaults.secret, checking=checking)
        self._rules = self._read(node, reading)
        if not reading.mistakes:
            self._try_out(reading)
        if reading.mistakes:
            raise PolicyError(name, reading.mistakes)
        self.has_gateway = any(
            action.type == "ai-gateway" for rule in self._rules[REQUEST] for action in rule.actions
        )
        self.looks_at_answers = bool(self._rules[RESPONSE])
        self.replaces_answers = any(
            action.action.guards for rule in self._rules[RESPONSE] for action in rule.actions
        )
        self._on_answer = [
            (rule, [_ready(action) for action in rule.actions]) for rule in self._rules[RESPONSE]
        ]

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        store: Store | str | None = None,
        counters: Engine | str | None = None,
    ) -> TrafficPolicy:
        """Read a document from a file.

        Args:
            path: the file.
            store: a store, or its URL, with the keys of clients and providers; None for none.
            counters: the engine that counts limits, or its URL; None is memory of this policy's.

        Returns:
            a layer for `stack`.

        Raises:
            ValueError: what is wrong in the document, each mistake with file, line and rule; or
                the file cannot be read.
        """
        name = os.fspath(path)
        return cls.parse(text_of(name), name=name, store=store, counters=counters)

    @classmethod
    def parse(
        cls,
        text: str | bytes,
        *,
        name: str = "policy",
        store: Store | str | None = None,
        counters: Engine | str | None = None,
    ) -> TrafficPolicy:
        """Read a document.

        Args:
            text: the document, JSON or YAML.
            name: what it is called in errors.
            store: as in `load`.
            counters: as in `load`.

        Returns:
            a layer for `stack`.

        Raises:
            ValueError: what is wrong in the document, each mistake with line and rule.
        """
        records = _resolved_store(store)
        engine = open_counters("memory:") if counters is None else resolve_counters(counters)
        node = unwrapped(read(text, name), name)
        return cls(node, name, store=records, counters=engine, vaults=Vaults(records))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def __call__(self, app: WSGIApplication) -> WSGIApplication:
        """Put the document's rules around an application."""
        for rule in reversed(self._rules[REQUEST]):
            app = self._around(rule, app)
        return Entry(app, self)

    def _around(self, rule: CompiledRule, app: WSGIApplication) -> WSGIApplication:
        within = app
        label = rule.place.label.removeprefix(f"{REQUEST} ")
        for action in reversed(rule.actions):
            within = action.action.layer(action.config, action.building)(within)
            self.labels[within] = f"{label}: {action.type}"
        if not rule.expressions:
            return within
        return Rule(within, app, rule.expressions, rule.place)

    @property
    def rules(self) -> dict[str, list[CompiledRule]]:
        """The rules, by phase."""
        return self._rules

    def run_on_answer(self, state: State, answer: Answer) -> Own | None:
        """Run the rules of the phase of answers; return the answer that takes its place."""
        for rule, actions in self._on_answer:
            try:
                if not holds(rule.expressions, state):
                    continue
                for run in actions:
                    own = run(state)
                    if own is not None:
                        answer.status = own.status
                        answer.headers[:] = own.complete(state.environ)
                        return own
            except EvaluationError as error:
                failed(state.environ, rule.place, error)
                if rule.place.guards:
                    own = denied(state.environ, FAILED)
                    answer.status = own.status
                    answer.headers[:] = own.complete(state.environ)
                    return own
        return None

    # --- reading

    def _read(self, node: Node, reading: Reading) -> dict[str, list[CompiledRule]]:
        rules: dict[str, list[CompiledRule]] = {REQUEST: [], RESPONSE: []}
        if not isinstance(node.value, dict):
            reading.wrong(node, f"a document is a mapping of phases, not {node.kind}")
            return rules
        for key in node.value:
            if key in _OTHER_PHASES:
                advice = _OTHER_PHASES[key]
                reading.wrong(node, f'"{key}" is known to ngrok, not supported here; {advice}', key)
            elif key not in PHASES:
                reading.wrong(node, f'there is no phase "{key}"{nearest(key, PHASES)}', key)
        if not set(node.value) & {*PHASES, *_OTHER_PHASES}:
            reading.wrong(node, f'a document has rules in "{REQUEST}" or "{RESPONSE}"')
        for phase in PHASES:
            if phase in node.value:
                rules[phase] = self._read_phase(phase, node.value[phase], reading)
        return rules

    def _read_phase(self, phase: str, node: Node, reading: Reading) -> list[CompiledRule]:
        reading.phase = "request" if phase == REQUEST else "response"
        reading.vars = set()
        reading.rule = ""
        if node.value is None:
            return []
        if not isinstance(node.value, list):
            reading.wrong(node, f'"{phase}" is a list of rules, not {node.kind}')
            return []
        if len(node.value) > MOST_RULES:
            reading.wrong(node, f"a phase has at most {MOST_RULES} rules")
            return []
        found = []
        ended = ""
        for number, entry in enumerate(node.value, 1):
            reading.rule = f"{phase} rule {number}"
            if ended:
                reading.wrong(entry, f"is never reached: {ended} ends every request")
            rule = self._read_rule(phase, entry, reading)
            if rule is not None:
                found.append(rule)
                if not rule.expressions and rule.actions and rule.actions[-1].action.ends:
                    ended = ended or reading.rule
        reading.rule = ""
        if sum(len(rule.actions) for rule in found) > MOST_ACTIONS:
            reading.wrong(node, f"the rules of a phase have at most {MOST_ACTIONS} actions")
        return found

    def _read_rule(self, phase: str, node: Node, reading: Reading) -> CompiledRule | None:
        if not isinstance(node.value, dict):
            reading.wrong(node, f"a rule is a mapping, not {node.kind}")
            return None
        if "actions" not in node.value and "type" in node.value:
            bare = Node([node], node.line, node.column)  # an action alone stands for a rule
            return self._compile(phase, "", (), self._read_actions(phase, bare, reading), reading)
        for key in node.value:
            if key not in _RULE_FIELDS:
                hint = nearest(key, _RULE_FIELDS)
                reading.wrong(node, f'a rule has no field "{key}"{hint}', key)
        name = node.value.get("name")
        label = ""
        if name is not None and name.value is not None:
            if not isinstance(name.value, str):
                reading.wrong(name, f"a rule's name is a text, not {name.kind}")
            else:
                label = name.value
                reading.rule += f" ({label[:60]})"
        expressions: Any = []
        given = node.value.get("expressions")
        if given is not None and given.value is not None:
            expressions = ListOf(Condition(), 0, 100).read(given, reading)
        actions = node.value.get("actions")
        if actions is None or not actions.value:
            reading.wrong(node, 'a rule has "actions", at least one')
            return None
        compiled = self._read_actions(phase, actions, reading)
        if expressions is BAD:
            return None
        return self._compile(phase, label, tuple(expressions), compiled, reading)

    def _compile(
        self,
        phase: str,
        name: str,
        expressions: Sequence[Expression],
        actions: list[CompiledAction],
        reading: Reading,
    ) -> CompiledRule:
        place = Place(self, reading.rule, any(action.action.guards for action in actions))
        actions = [
            action._replace(building=action.building._replace(place=place)) for action in actions
        ]
        return CompiledRule(place, tuple(expressions), tuple(actions))

    def _read_actions(self, phase: str, node: Node, reading: Reading) -> list[CompiledAction]:
        if not isinstance(node.value, list):
            reading.wrong(node, f'"actions" is a list, not {node.kind}')
            return []
        found: list[CompiledAction] = []
        for entry in node.value:
            if found and found[-1].action.ends:
                reading.wrong(entry, f"is never reached: {found[-1].type} ends the request")
            action = self._read_action(phase, entry, reading)
            if action is not None:
                found.append(action)
        return found

    def _read_action(self, phase: str, node: Node, reading: Reading) -> CompiledAction | None:
        if not isinstance(node.value, dict):
            reading.wrong(node, f'an action is a mapping with "type" and "config", not {node.kind}')
            return None
        for key in node.value:
            if key not in _ACTION_FIELDS:
                hint = nearest(key, _ACTION_FIELDS)
                reading.wrong(node, f'an action has no field "{key}"{hint}', key)
        kind = node.value.get("type")
        if kind is None or not isinstance(kind.value, str):
            reading.wrong(node, 'an action has a "type"')
            return None
        action = ALL_ACTIONS.get(kind.value)
        if action is None:
            self._wrong_type(kind, kind.value, reading)
            return None
        if phase == RESPONSE and action.on_answer is None:
            reading.wrong(kind, f'"{kind.value}" is for {REQUEST} only')
            return None
        if kind.value == "ai-gateway" and "ai-gateway" in reading.actions:
            reading.wrong(kind, 'a document has one "ai-gateway" at most')
        config_node = node.value.get("config") or Node({}, node.line, node.column)
        config = action.fields.read(config_node, reading)
        if config is BAD:
            return None
        if action.check is not None:
            before = len(reading.mistakes)
            action.check(config, config_node, reading)
            if len(reading.mistakes) > before:
                return None
        if kind.value == "rate-limit" and not self._is_new(config["name"], config_node, reading):
            return None
        if kind.value == "url-rewrite" and reading.actions & _JUDGES:
            first = ", ".join(sorted(reading.actions & _JUDGES))
            reading.wrong(kind, f"stands behind {first}, which judges another URL; put it before")
        reading.actions.add(kind.value)
        building = Building(
            Place(self, reading.rule, False),
            self._store,
            self._keys,
            self._counters,
            reading.checking,
            next(self._numbers),
            self._secrets,
        )
        return CompiledAction(kind.value, action, config, config_node, building)

    @staticmethod
    def _is_new(name: str, node: Node, reading: Reading) -> bool:
        """Whether no other limit of the document has the name: they would count together."""
        if f"rate-limit {name}" in reading.actions:
            reading.wrong(
                node, "another rate-limit has this name; they would count together", "name"
            )
            return False
        reading.actions.add(f"rate-limit {name}")
        return True

    @staticmethod
    def _wrong_type(kind: Node, name: str, reading: Reading) -> None:
        if name in UNSUPPORTED:
            reading.wrong(kind, f'the action "{name}" is known to ngrok, not supported here')
        else:
            hint = nearest(name, ALL_ACTIONS)
            reading.wrong(kind, f'there is no action "{name}"{hint}')

    def _try_out(self, reading: Reading) -> None:
        """Build every action once, so that what its middleware refuses is told with its place."""
        for phase, rules in self._rules.items():
            for rule in rules:
                for action in rule.actions:
                    reading.rule = rule.place.label
                    try:
                        if phase == REQUEST:
                            action.action.layer(action.config, action.building)(nobody)
                        elif action.action.on_answer is not None:
                            action.action.on_answer(action.config, action.building)
                    except ValueError as error:
                        key = option_of(error, action.config)
                        reading.wrong(action.node, str(error), key)


def _ready(action: CompiledAction) -> OnAnswer:
    if action.action.on_answer is None:  # refused when it was read
        return lambda state: None
    return action.action.on_answer(action.config, action.building)


class Entry:
    """What a request meets first of a document.

    Args:
        app: the rules, around the application.
        policy: the document.
    """

    def __init__(self, app: WSGIApplication, policy: TrafficPolicy) -> None:
        self.app = app
        self.policy = policy

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        enter(environ)
        policy = self.policy
        state = state_of(environ, policy)
        if not policy.looks_at_answers:
            return self.app(environ, start_response)
        if policy.replaces_answers:
            return self._maybe_replaced(environ, start_response, state)

        def respond(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
            answer = state.begin_answer(int(status[:3]), list(headers))
            policy.run_on_answer(state, answer)
            told = answer.headers
            return (
                start_response(status, told, exc_info) if exc_info else start_response(status, told)
            )

        return self.app(environ, respond)

    def _maybe_replaced(
        self, environ: WSGIEnvironment, start_response: StartResponse, state: State
    ) -> Iterable[bytes]:
        """Answer with the application's answer, or with the one that a rule puts in its place."""
        held = _Held(self.policy, state, start_response)
        iterable = self.app(environ, held)
        if not held.started:
            iterable = Begun(iterable)  # a generator begins its answer with its first bytes
        if held.replaced is None:
            return (
                iterable if isinstance(iterable, WHOLE) else _MaybeReplaced(iterable, held, environ)
            )
        close_iterable(iterable)
        return held.body(environ)


class _Held:
    """A `start_response` that decides with the head who answers."""

    def __init__(self, policy: TrafficPolicy, state: State, start_response: StartResponse) -> None:
        self._policy = policy
        self._state = state
        self._start_response = start_response
        self.started = False
        self.replaced: Own | None = None

    def __call__(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
        self.started = True
        answer = self._state.begin_answer(int(status[:3]), list(headers))
        self.replaced = self._policy.run_on_answer(self._state, answer)
        if self.replaced is not None:
            status = status_line(answer.status)
        arguments: tuple[Any, ...] = (status, answer.headers)
        write = self._start_response(*arguments, *((exc_info,) if exc_info else ()))
        return write if self.replaced is None else lambda data: None

    def body(self, environ: WSGIEnvironment) -> list[bytes]:
        return [] if self.replaced is None else self.replaced.sent(environ)


class _MaybeReplaced(Wrapped):
    """An application's iterable, until a late `start_response` of it has another one sent."""

    def __init__(self, iterable: Iterable[bytes], held: _Held, environ: WSGIEnvironment) -> None:
        self._held = held
        self._environ = environ
        self._ended = False
        super().__init__(iterable)

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        data = self._next()
        if self._held.replaced is None:
            return data
        self._ended = True
        return b"".join(self._held.body(self._environ))


def unwrapped(node: Node, name: str) -> Node:
    """Return the phases of a document, which may stand below other names.

    Those of ngrok's agent (`traffic_policy:`, a mapping or a text) and of its Kubernetes resources
    (`spec.policy`, `spec.trafficPolicy.policy`, `spec.trafficPolicy.inline`).
    """
    members = node.members
    if set(members) & {*PHASES, *_OTHER_PHASES}:
        return node
    spec = members.get("spec")
    inner = members.get("traffic_policy") or (spec.members.get("policy") if spec else None)
    if inner is None and spec is not None and "trafficPolicy" in spec.members:
        below = spec.members["trafficPolicy"].members
        inner = below.get("policy") or below.get("inline")
    if inner is None:
        return node
    if not isinstance(inner.value, str):
        return inner
    try:
        found = read(inner.value, name)
        found.moved(inner.line)
        return found
    except PolicyError as error:
        moved = [Mistake(m.message, m.line + inner.line, m.column, m.rule) for m in error.mistakes]
        raise PolicyError(name, moved) from None


def _resolved_store(store: Store | str | None) -> Store | None:
    if store is None:
        return None
    from ..store import resolve_store

    return resolve_store(store)
