"""Change headers on their way in and out.

Do not use it for framing (`Content-Length`, `Transfer-Encoding`) or connection management:
those belong to the server, and are refused as options.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ._headers import HOP_BY_HOP, environ_key, is_token, is_value
from ._options import application, several
from ._responding import with_headers
from .environ import enter

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Value = str | Callable[[dict[str, Any]], str | None]

logger = logging.getLogger(__name__)

_OPERATIONS = ("remove", "rename", "set", "add")


class HeaderRewriter:
    """Remove, rename, set and add headers of the request and of the response.

    ::

        app = HeaderRewriter(
            app,
            request={"set": {"X-Team": "search"}},
            response={"remove": ["Server"], "set": {"X-Served-By": lambda environ: hostname()}},
        )

    In the order `remove`, `rename`, `set`, `add`, and after whatever the wrapped app has sent:

    - `remove`: a list of names; all of that name go.
    - `rename`: `{old: new}`; what had the new name is replaced. Nothing happens where there is
      no old one.
    - `set`: `{name: value}`; what had the name is replaced.
    - `add`: `{name: value}`; on a request it is appended to what is there, after a comma
      (`Cookie`: a semicolon), on a response it is a further header.

    `-` and `_` are one letter in names, as in the environ: `X_User_Id` cannot stand beside an
    `X-User-Id` that is set here. A value may be a callable `environ -> str | None`; for None,
    and for a value that could not be a header's (CR, LF, NUL; logged by its name), there is no
    such header, neither the client's nor ours.

    Args:
        app: the wrapped WSGI application.
        request: what to do with the request's headers; None for nothing.
        response: the same for the response's.

    Raises:
        ValueError: a name or a value cannot stand in a header, two names fold into one, or the
            header belongs to the connection (hop-by-hop) or to the framing (`Content-Length`).
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        request: Mapping[str, Any] | None = None,
        response: Mapping[str, Any] | None = None,
    ) -> None:
        self.app = application(app)
        self._request = _read("request", request)
        self._response = _read("response", response)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        enter(environ)
        self.rewrite_request(environ)
        if self._response is not None:
            start_response = _rewriting(self._response, environ, start_response)
        return self.app(environ, start_response)

    def rewrite_request(self, environ: WSGIEnvironment) -> None:
        """Change the headers of a request."""
        if self._request is not None:
            _rewrite_request(self._request, environ)


class _Changes(NamedTuple):
    """Changes, their names folded to lower case with `-`; `names` keeps how they were written."""

    remove: frozenset[str]
    rename: dict[str, str]
    set: dict[str, Value]
    add: dict[str, Value]
    names: dict[str, str]


def _fold(name: str) -> str:
    return name.lower().replace("_", "-")


def _read(option: str, changes: Mapping[str, Any] | None) -> _Changes | None:
    if changes is not None and not isinstance(changes, Mapping):
        raise ValueError(f"{option}: must be a mapping of operations")
    if not changes:
        return None
    unknown = set(changes) - set(_OPERATIONS)
    if unknown:
        raise ValueError(
            f"{option}: {min(map(str, unknown))!r} is none of {', '.join(_OPERATIONS)}"
        )
    names: dict[str, str] = {}
    removed = several(f"{option}: remove", changes.get("remove") or ())
    renamed = _pairs(option, "rename", changes.get("rename"))
    return _Changes(
        frozenset(_name(option, "remove", name, names) for name in removed),
        _renames(option, renamed, names),
        _values(option, "set", _pairs(option, "set", changes.get("set")), names),
        _values(option, "add", _pairs(option, "add", changes.get("add")), names),
        names,
    )


def _pairs(option: str, operation: str, pairs: object) -> Mapping[str, Any]:
    if pairs is None:
        return {}
    if not isinstance(pairs, Mapping):
        raise ValueError(f"{option}: {operation} must be a mapping of names")
    return pairs


def _name(option: str, operation: str, name: object, names: dict[str, str]) -> str:
    if not isinstance(name, str) or not is_token(name):
        raise ValueError(f"{option}: {operation}: {name!r} is no header's name")
    folded = _fold(name)
    if folded in HOP_BY_HOP or folded == "content-length":
        raise ValueError(f"{option}: {operation}: {name!r} belongs to the connection or framing")
    names[folded] = name
    return folded


def _renames(option: str, pairs: Mapping[str, Any], names: dict[str, str]) -> dict[str, str]:
    renames: dict[str, str] = {}
    for old, new in pairs.items():
        folded = _name(option, "rename", old, names)
        if folded in renames:
            raise ValueError(f"{option}: rename: {old!r} stands there twice")
        renames[folded] = _name(option, "rename", new, names)
    if len(set(renames.values())) != len(renames):
        raise ValueError(f"{option}: rename: two headers get the same name")
    return renames


def _values(
    option: str, operation: str, pairs: Mapping[str, Any], names: dict[str, str]
) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, value in pairs.items():
        folded = _name(option, operation, name, names)
        if folded in values:
            raise ValueError(f"{option}: {operation}: {name!r} stands there twice")
        if not callable(value) and not (isinstance(value, str) and is_value(value)):
            raise ValueError(
                f"{option}: {operation}: the value of {name!r} is no text that a header can hold"
            )
        values[folded] = value
    return values


def _resolve(name: str, value: Value, environ: WSGIEnvironment) -> str | None:
    if not callable(value):
        return value
    result = value(environ)
    if result is None:
        return None
    if not isinstance(result, str) or not is_value(result):
        logger.error("the callable for header %s gave no value that a header can hold", name)
        return None
    return result


def _rewrite_request(changes: _Changes, environ: WSGIEnvironment) -> None:
    for name in changes.remove:
        environ.pop(environ_key(name), None)
    moved = [
        (new, environ.pop(environ_key(old)))
        for old, new in changes.rename.items()
        if environ_key(old) in environ
    ]
    for new, value in moved:
        environ[environ_key(new)] = value
    for name, wanted in changes.set.items():
        resolved = _resolve(name, wanted, environ)
        if resolved is None:
            environ.pop(environ_key(name), None)
        else:
            environ[environ_key(name)] = resolved
    for name, wanted in changes.add.items():
        resolved = _resolve(name, wanted, environ)
        if resolved is not None:
            _append(environ, environ_key(name), resolved)


def _append(environ: WSGIEnvironment, key: str, value: str) -> None:
    before = environ.get(key)
    separator = "; " if key == "HTTP_COOKIE" else ", "
    environ[key] = f"{before}{separator}{value}" if before else value


def _rewriting(
    changes: _Changes, environ: WSGIEnvironment, start_response: StartResponse
) -> StartResponse:
    return with_headers(
        start_response, lambda _, headers: _rewrite_response(changes, environ, headers)
    )


def _rewrite_response(
    changes: _Changes, environ: WSGIEnvironment, headers: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    kept = [header for header in headers if _fold(header[0]) not in changes.remove]
    kept = _renamed(changes, kept)
    kept = [header for header in kept if _fold(header[0]) not in changes.set]
    for operation in (changes.set, changes.add):
        for name, wanted in operation.items():
            resolved = _resolve(name, wanted, environ)
            if resolved is not None:
                kept.append((changes.names[name], resolved))
    return kept


def _renamed(changes: _Changes, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    present = {_fold(name) for name, _ in headers}
    renames = {old: new for old, new in changes.rename.items() if old in present}
    if not renames:
        return headers
    # What had a new name gives way, unless it is itself renamed (two names that are swapped).
    replaced = set(renames.values()) - set(renames)
    return [
        (changes.names[renames[folded]] if folded in renames else name, value)
        for name, value in headers
        for folded in (_fold(name),)
        if folded not in replaced
    ]
