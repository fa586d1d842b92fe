"""Let requests pass that one of several gates lets pass: a gateway key or a JWT, say.

Both are asked for by two layers, one around the other; either needs this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .denial import Denial
from .environ import enter
from .gate import Gate

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    Layer = Callable[[WSGIApplication], WSGIApplication]


def either(*layers: Layer) -> Layer:
    """Return a layer that lets a request pass that one of several gates lets pass.

    ::

        app = stack(
            app,
            either(
                partial(KeyAuth, keys=store.keys),
                partial(JWTAuth, issuer=..., audience=..., algorithms=["RS256"], jwks_url=...),
            ),
        )

    The gates are tried in their order: the first that does not answer 401 decides, so that a key
    over its limit is refused as that, and not asked for a token. Where all answer 401, the last
    one's refusal is sent. The credentials of all of them are gone from what the next layer sees.

    Args:
        layers: two gates or more, each as a layer (`functools.partial` of a class).

    Returns:
        a layer.

    Raises:
        ValueError: there are fewer than two; or, when it is put around an app, one is no gate.
    """
    if len(layers) < 2:
        raise ValueError("either: name two gates or more")
    return lambda app: _Either(app, layers)


class _Either(Gate):
    """Several gates of which one has to let a request pass."""

    authenticates = True

    def __init__(self, app: WSGIApplication, layers: Iterable[Layer]) -> None:
        super().__init__(app)
        self._gates: list[Any] = []
        for layer in layers:
            gate = layer(_Bare(app, self._gates))
            if not isinstance(gate, Gate):
                raise ValueError(f"either: {type(gate).__name__} is no gate")
            self._gates.append(gate)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        enter(environ)
        gate: WSGIApplication = self._deciding(environ)[0]
        return gate(environ, start_response)

    def judge(self, environ: WSGIEnvironment) -> Denial | None:
        """Return what the gate that decides has against the request."""
        gate, denial, is_known = self._deciding(environ)
        found: Denial | None = denial if is_known else gate.judge(environ)
        return found

    def _deciding(self, environ: WSGIEnvironment) -> tuple[Any, Denial | None, bool]:
        """Return the gate that decides, and what it says where that is known already."""
        for gate in self._gates[:-1]:
            denial: Denial | None = gate.judge(environ)
            if denial is None or denial.status != 401:
                return gate, denial, True
        return self._gates[-1], None, False


class _Bare:
    """Takes out the credentials of the gates that did not decide; stands within each of them.

    Args:
        app: what is behind them.
        gates: all of them.
    """

    def __init__(self, app: WSGIApplication, gates: list[Any]) -> None:
        self.app = app
        self._gates = gates

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        for gate in self._gates:
            gate.take_out(environ)
        return self.app(environ, start_response)
