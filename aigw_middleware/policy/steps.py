"""The layers that a document's rules become: a condition, and what an action does by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from .._saying import OnceAMinute
from ..denial import Denial, refuse
from ..environ import DECISIONS, POLICY_ERRORS
from ..gate import Decision
from ..model_rules import has_final_judge
from .answers import Own
from .expressions import EvaluationError, Expression
from .state import State, state_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    Layer = Callable[[WSGIApplication], WSGIApplication]

logger = logging.getLogger("aigw_middleware.policy")
# By the document itself: another one that is read later may get the number of one that has gone.
_said: WeakKeyDictionary[object, dict[str, OnceAMinute]] = WeakKeyDictionary()

FAILED = Denial("policy_error", "A rule of the gateway could not be judged for this request.")


class Place(NamedTuple):
    """Where something stands in a document.

    Attributes:
        owner: the document.
        label: the rule, in words.
        guards: whether the rule refuses requests, so that it must not be skipped when it fails.
    """

    owner: object
    label: str
    guards: bool


class Rule:
    """Sends the requests for which all expressions are true through a rule's actions.

    Args:
        within: the actions, around `beyond`.
        beyond: what comes after the rule.
        expressions: what must be true; nothing is always true.
        place: the rule.
    """

    def __init__(
        self,
        within: WSGIApplication,
        beyond: WSGIApplication,
        expressions: Sequence[Expression],
        place: Place,
    ) -> None:
        self.within = within
        self.beyond = beyond
        self.expressions = tuple(expressions)
        self.place = place
        # Rules over models may be handed inwards only where every way leads to who judges them.
        self.judges_models = has_final_judge(within) and has_final_judge(beyond)
        self.authenticates = _authenticates(within) or _authenticates(beyond)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        state = state_of(environ, self.place.owner)
        try:
            app = self.within if holds(self.expressions, state) else self.beyond
        except EvaluationError as error:
            failed(environ, self.place, error)
            if self.place.guards:
                return refused(environ, start_response, self.place)
            app = self.beyond
        return app(environ, start_response)


def _authenticates(app: object) -> bool:
    while app is not None:
        if getattr(app, "authenticates", False):
            return True
        app = getattr(app, "app", None)
    return False


def holds(expressions: Sequence[Expression], state: State) -> bool:
    """Return whether all expressions are true, as `&&` would join them.

    Raises:
        EvaluationError: none is false, and one has failed.
    """
    failure: EvaluationError | None = None
    for expression in expressions:
        try:
            if not expression.holds(state):
                return False
        except EvaluationError as error:
            failure = error
    if failure is not None:
        raise failure
    return True


class Step:
    """An action that no middleware of its own does.

    Args:
        app: what comes after it.
        run: does it; an answer ends the request here.
        place: the rule that it is in.
        skipped: what comes after it where it has failed and is skipped; None: `app` too.
    """

    def __init__(
        self,
        app: WSGIApplication,
        run: Callable[[State], Own | None],
        place: Place,
        *,
        skipped: WSGIApplication | None = None,
    ) -> None:
        self.app = app
        self.skipped = app if skipped is None else skipped
        self.run = run
        self.place = place

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            own = self.run(state_of(environ, self.place.owner))
        except EvaluationError as error:
            failed(environ, self.place, error)
            if self.place.guards:
                return refused(environ, start_response, self.place)
            return self.skipped(environ, start_response)
        if own is None:
            return self.app(environ, start_response)
        _decide(environ, self.place, None if own.status < 400 else "")
        return own.respond(environ, start_response)


class Noted:
    """Takes note of what an action outside of it has found; stands just within that one.

    Args:
        app: what comes after it.
        note: takes the note.
        owner: the document.
    """

    def __init__(self, app: WSGIApplication, note: Callable[[State], Any], owner: object) -> None:
        self.app = app
        self.note = note
        self._owner = owner

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.note(state_of(environ, self._owner))
        return self.app(environ, start_response)


def failed(environ: WSGIEnvironment, place: Place, error: EvaluationError) -> None:
    """Say that an expression has failed, and count it."""
    environ[POLICY_ERRORS] = environ.get(POLICY_ERRORS, 0) + 1
    what = "the request is refused" if place.guards else "the rule is skipped"
    say(place, "an expression failed, %s: %s", what, error)


def say(place: Place, message: str, *arguments: object) -> None:
    """Log what every request could repeat; for each rule once a minute."""
    said = _said.setdefault(place.owner, {}).setdefault(place.label, OnceAMinute(logger))
    said.error(f"%s: {message}", place.label, *arguments)


def refused(
    environ: WSGIEnvironment, start_response: StartResponse, place: Place
) -> Iterable[bytes]:
    """Refuse a request because a rule that guards could not be judged."""
    _decide(environ, place, FAILED.code)
    return refuse(environ, start_response, FAILED)


def _decide(environ: WSGIEnvironment, place: Place, code: str | None) -> None:
    decision = Decision("TrafficPolicy", code is None, code or None, place.label, True)
    environ.setdefault(DECISIONS, []).append(decision)
