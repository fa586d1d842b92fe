"""What the layers that decide have in common.

A gate *judges* a request, a pure step that finds a `Denial` or nothing, and then *applies* what
follows: it takes the credential out, or spends from a limit. Kept apart, the first alone tells
which rule would refuse a request; with `enforce=False` both are done and nobody is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from ._options import flag
from ._responding import with_headers
from .denial import Denial, refuse
from .environ import DECISIONS, enter

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Decision(NamedTuple):
    """What one gate found, left in `environ["aigw.decisions"]`.

    Attributes:
        gate: the name of the gate's class.
        allowed: whether its rules let the request pass.
        code: the code of the refusal; None where allowed.
        reason: why, for the operator; never holds a secret.
        enforced: False where the gate only reports (`enforce=False`).
    """

    gate: str
    allowed: bool
    code: str | None
    reason: str
    enforced: bool


class Gate:
    """Base of the layers that let a request pass or refuse it.

    Args:
        app: the wrapped WSGI application.
        enforce: False reports what would be refused, in `aigw.decisions` and in the answer's
            header `X-Aigw-Would-Refuse`, and refuses nothing.
    """

    def __init__(self, app: WSGIApplication, *, enforce: bool = True) -> None:
        if not callable(app):
            raise ValueError(f"app: {type(app).__name__} is not a WSGI application")
        self.app = app
        self.enforce = flag("enforce", enforce)
        self.gate_name = type(self).__name__
        self._passed = Decision(self.gate_name, True, None, "", self.enforce)

    def judge(self, environ: WSGIEnvironment) -> Denial | None:
        """Return what this gate has against the request, changing nothing."""
        raise NotImplementedError

    def apply(self, environ: WSGIEnvironment) -> Denial | None:
        """Judge the request and do what follows from it; gates with effects override this."""
        return self.judge(environ)

    def take_out(self, environ: WSGIEnvironment) -> None:
        """Take the credential that this gate asks for out of the request; for those that do."""

    def responder(self, environ: WSGIEnvironment, start_response: StartResponse) -> StartResponse:
        """Return the `start_response` for the answer; gates that add headers override this."""
        return start_response

    def watched(self, environ: WSGIEnvironment, iterable: Iterable[bytes]) -> Iterable[bytes]:
        """Return the app's iterable; gates that may end an answer override this."""
        return iterable

    def abandoned(self, environ: WSGIEnvironment) -> None:
        """Let go of what is held for a request whose app has raised; gates that hold override."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        enter(environ)
        denial = self.apply(environ)
        environ.setdefault(DECISIONS, []).append(self._decision(denial))
        start_response = self.responder(environ, start_response)
        if denial is not None:
            if self.enforce:
                return refuse(environ, start_response, denial)
            start_response = _reporting(denial, start_response)
        try:
            iterable = self.app(environ, start_response)
        except BaseException:
            self.abandoned(environ)
            raise
        return self.watched(environ, iterable)

    def _decision(self, denial: Denial | None) -> Decision:
        if denial is None:
            return self._passed
        return Decision(self.gate_name, False, denial.code, denial.message, self.enforce)


def refused_within(environ: WSGIEnvironment, denial: Denial) -> None:
    """Tell in the decisions that a gate's rule has refused the request, judged by a forwarder."""
    decisions, judge = environ.get(DECISIONS, ()), denial.judge
    if judge is None or judge.place >= len(decisions):
        return
    decision = decisions[judge.place]
    if decision.gate == judge.gate:
        told = {"allowed": False, "code": denial.code, "reason": denial.message}
        decisions[judge.place] = decision._replace(**told)


def _reporting(denial: Denial, start_response: StartResponse) -> StartResponse:
    """Return a `start_response` that tells the operator which rule would have refused."""
    told = ("X-Aigw-Would-Refuse", denial.code)
    return with_headers(start_response, lambda _, headers: [*headers, told])
