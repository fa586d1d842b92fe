"""Put layers around a WSGI application."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from ._options import application
from ._paths import PathPatterns
from .environ import BYPASSED, DECISIONS, Bypassed, is_mounted_oddly, suffixes

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    Layer = Callable[[WSGIApplication], WSGIApplication]


def stack(
    app: WSGIApplication, *layers: Layer, paths: Iterable[str] | None = None
) -> WSGIApplication:
    """Wrap `app` in `layers`; the first named is the first that a request meets.

    ::

        app = stack(app, partial(IPAllowlist, allow=["10.0.0.0/8"]), partial(KeyAuth, keys=keys))

    Args:
        app: any WSGI application.
        layers: callables that take an application and return one: a `functools.partial` of a
            middleware class, or any function of that form.
        paths: the paths that the layers guard, exact (`/admin`) or by prefix (`/v1/*`, which is
            `/v1` too); every other request goes straight to `app`. Judged on SCRIPT_NAME +
            PATH_INFO, and on that without segments of SCRIPT_NAME, without regard to case and to
            a slash at the end; always guarded is a path that the application may read as another
            one: with dot or empty segments, controls or bytes that are no UTF-8, or without a
            slash at its beginning. An `UpstreamForwarder` within forwards nothing that no gate has
            judged. None: all paths.

    Raises:
        TypeError: an instance stands where a layer belongs.
        ValueError: a pattern of `paths` is wrong.
    """
    wrapped = application(app)
    for position, layer in reversed(list(enumerate(layers, 1))):
        _check_layer(layer, position)
        wrapped = layer(wrapped)
        if not callable(wrapped):
            raise TypeError(
                f"layer {position} ({_name(layer)}) returned {type(wrapped).__name__}, "
                "not a WSGI application"
            )
    if paths is None:
        return wrapped
    patterns = PathPatterns("paths", paths)
    if not patterns:
        raise ValueError("paths: empty; leave it out to guard every path")
    return _Guarded(patterns, wrapped, app)


class _Guarded:
    """Sends the requests whose path matches through the layers, others straight to the app."""

    def __init__(
        self, patterns: PathPatterns, guarded: WSGIApplication, app: WSGIApplication
    ) -> None:
        self.patterns = patterns
        self.guarded = guarded
        self.app = app
        self.authenticates = _authenticates(guarded, app)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if is_mounted_oddly(environ) or any(map(self.patterns.guards, suffixes(environ))):
            return self.guarded(environ, start_response)
        environ[BYPASSED] = Bypassed(len(environ.get(DECISIONS, ())), self.authenticates)
        return self.app(environ, start_response)


def _authenticates(guarded: Any, app: object) -> bool:
    """Whether one of the layers around `app` asks who the client is."""
    while guarded is not None and guarded is not app:
        if getattr(guarded, "authenticates", False):
            return True
        guarded = getattr(guarded, "app", None)
    return False


def _check_layer(layer: object, position: int) -> None:
    """Refuse what is a WSGI application already: it takes two arguments, a layer takes one."""
    name = _name(layer)
    if not callable(layer):
        raise TypeError(f"layer {position} is {name}, which is not callable")
    if isinstance(layer, type) or not _takes_environ(layer):
        return
    raise TypeError(
        f"layer {position} is an instance of {name}, which is a WSGI application already; "
        f"write partial({name}, ...) so that stack() can give it the application to wrap"
    )


def _takes_environ(layer: Callable[..., Any]) -> bool:
    """Whether `layer` cannot be called with one argument, but with two."""
    import inspect  # 5 ms that importing one middleware need not cost

    try:
        signature = inspect.signature(layer)
    except (TypeError, ValueError):  # a builtin that tells nothing of itself
        return False
    try:
        signature.bind(None)
    except TypeError:
        try:
            signature.bind(None, None)
        except TypeError:
            return False
        return True
    return False


def _name(layer: object) -> str:
    if isinstance(layer, partial):
        return _name(layer.func)
    return layer.__name__ if isinstance(layer, type) else type(layer).__name__
