"""The variables that expressions may read, and where each comes from.

Those of ngrok's that a WSGI request has. A name stands for a text, a number, a list or a map; some
are a text and have fields as well (`req.url`, `req.url.path`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, quote

from .._addresses import address_of
from ..environ import request_id
from ..forwarding.url import raw_path
from .state import State

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

MOST_ENTRIES = 128
"""Entries of a map of the request that are judged at most; more is an error, which refuses."""

Path = tuple[str, ...]
Look = Callable[[State], Any]


class Absent(Exception):
    """A variable that this request has not."""


class TooMany(ValueError):
    """A request with more entries than are judged."""


class Variable(NamedTuple):
    """A variable.

    Attributes:
        look: returns its value.
        one: returns the value of one of its names, where it is a map whose names have no case;
            None where it is no such map.
        is_open: whether what stands behind it is not known beforehand.
        is_map: whether it has names of its own behind it.
    """

    look: Look
    one: Callable[[State, str], Any] | None = None
    is_open: bool = False
    is_map: bool = False


def _arrived(key: str) -> Look:
    return lambda state: state.arrived(key)


def _host(state: State | _Now) -> str:
    return state.arrived("HTTP_HOST") or state.arrived("SERVER_NAME")


def _path(state: State) -> str:
    path = state.arrived("SCRIPT_NAME") + state.arrived("PATH_INFO")
    return path.encode("latin-1", "replace").decode("utf-8", "replace") or "/"


def _raw_path(state: State | _Now) -> str:
    return raw_path({key: state.arrived(key) for key in _TARGET})


_TARGET = ("SCRIPT_NAME", "PATH_INFO", "RAW_URI", "REQUEST_URI")


def _uri(state: State | _Now) -> str:
    query = state.arrived("QUERY_STRING")
    return _raw_path(state) + (f"?{query}" if query else "")


def url(state: State | _Now) -> str:
    """Return the whole URL that was asked for."""
    return f"{state.arrived('wsgi.url_scheme') or 'http'}://{_host(state)}{_uri(state)}"


class _Now:
    """A request as it is now, for what reads one as it arrived."""

    def __init__(self, environ: WSGIEnvironment) -> None:
        self._environ = environ

    def arrived(self, key: str) -> str:
        """Return a value of the environ."""
        value: str = self._environ.get(key, "")
        return value


def url_now(environ: WSGIEnvironment) -> str:
    """Return the URL that a request asks for now, after what layers have changed of it."""
    return url(_Now(environ))


def _port(state: State) -> int:
    host, _, port = _host(state).rpartition(":")
    if host and port.isascii() and port.isdigit():
        return int(port)
    raise Absent


def _bare_host(state: State) -> str:
    host = _host(state)
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _few(found: dict[str, Any]) -> dict[str, Any]:
    if len(found) > MOST_ENTRIES:
        raise TooMany(f"the request has more than {MOST_ENTRIES} of them")
    return found


def _query_params(state: State) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    text = state.arrived("QUERY_STRING")
    if text.count("&") > MOST_ENTRIES:
        raise TooMany(f"the query has more than {MOST_ENTRIES} parameters")
    for name, value in parse_qsl(text, keep_blank_values=True):
        found.setdefault(name, []).append(value)
    return _few(found)


def _cookies(state: State) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for part in state.arrived("HTTP_COOKIE").split(";"):
        name, sign, value = part.strip().partition("=")
        if sign and name:
            found.setdefault(name, []).append({"name": name, "value": value.strip('"')})
    return _few(found)


def _media(text: str) -> tuple[str, dict[str, str]]:
    """Return a media type and its parameters."""
    from werkzeug.http import parse_options_header

    kind, options = parse_options_header(text)
    return kind.lower(), dict(options)


def _length(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    raise Absent


def _codings(text: str) -> list[str]:
    return [coding.strip().lower() for coding in text.split(",") if coding.strip()]


def _client_ip(state: State) -> str:
    address = address_of(state.environ)
    return "" if address is None else address.text


def _number(key: str) -> Look:
    return lambda state: _length(state.arrived(key))


def time_text(when: datetime) -> str:
    """Return a time as CEL's `timestamp` reads it (RFC 3339, UTC)."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- the answer


def response_header(state: State, name: str) -> list[str]:
    """Return the values of a header of the answer."""
    if state.answer is None:
        raise Absent
    folded = name.lower()
    return [value for field, value in state.answer.headers if field.lower() == folded]


def _response_headers(state: State) -> dict[str, list[str]]:
    if state.answer is None:
        raise Absent
    found: dict[str, list[str]] = {}
    for name, value in state.answer.headers:
        found.setdefault(name.lower(), []).append(value)
    return _few(found)


def _first(state: State, name: str) -> str:
    return next(iter(response_header(state, name)), "")


def _status(state: State) -> int:
    if state.answer is None:
        raise Absent
    return state.answer.status


def response_cookies(state: State) -> dict[str, list[dict[str, Any]]]:
    """Return the cookies that the answer sets (RFC 6265 §4.1)."""
    found: dict[str, list[dict[str, Any]]] = {}
    for text in response_header(state, "set-cookie"):
        try:
            read = SimpleCookie(text)
        except CookieError:
            continue
        for name, morsel in read.items():
            age = morsel["max-age"]
            found.setdefault(name, []).append(
                {
                    "name": name,
                    "value": morsel.value,
                    "domain": morsel["domain"],
                    "path": morsel["path"],
                    "expires": morsel["expires"],
                    "max_age": int(age) if str(age).isdigit() else 0,
                    "http_only": bool(morsel["httponly"]),
                    "secure": bool(morsel["secure"]),
                    "same_site": morsel["samesite"],
                }
            )
    return _few(found)


def _one_header(state: State, name: str) -> Any:
    return _there(state.header(name))


def _one_response_header(state: State, name: str) -> Any:
    return _there(response_header(state, name))


def _there(values: list[str]) -> list[str]:
    if not values:
        raise Absent
    return values


VARIABLES: dict[Path, Variable] = {
    ("req", "id"): Variable(lambda state: request_id(state.environ)),
    ("req", "method"): Variable(_arrived("REQUEST_METHOD")),
    ("req", "host"): Variable(_host),
    ("req", "version"): Variable(_arrived("SERVER_PROTOCOL")),
    ("req", "location"): Variable(_arrived("HTTP_LOCATION")),
    ("req", "headers"): Variable(lambda state: _few(state.headers()), _one_header),
    ("req", "url"): Variable(url),
    ("req", "url", "raw"): Variable(url),
    ("req", "url", "scheme"): Variable(_arrived("wsgi.url_scheme")),
    ("req", "url", "authority"): Variable(_host),
    ("req", "url", "host"): Variable(_bare_host),
    ("req", "url", "port"): Variable(_port),
    ("req", "url", "path"): Variable(_path),
    ("req", "url", "raw_path"): Variable(_raw_path),
    ("req", "url", "query"): Variable(_arrived("QUERY_STRING")),
    ("req", "url", "uri"): Variable(_uri),
    ("req", "url", "query_params"): Variable(_query_params, is_map=True),
    ("req", "content_type"): Variable(lambda state: _media(state.arrived("CONTENT_TYPE"))[0]),
    ("req", "content_type", "raw"): Variable(_arrived("CONTENT_TYPE")),
    ("req", "content_type", "parameters"): Variable(
        lambda state: _media(state.arrived("CONTENT_TYPE"))[1], is_map=True
    ),
    ("req", "content_length"): Variable(_number("CONTENT_LENGTH")),
    ("req", "content_encoding"): Variable(
        lambda state: _codings(state.arrived("HTTP_CONTENT_ENCODING"))
    ),
    ("req", "cookies"): Variable(_cookies, is_map=True),
    ("req", "user_agent"): Variable(_arrived("HTTP_USER_AGENT")),
    ("req", "ts", "header_received"): Variable(lambda state: state.came),
    ("req", "ts", "body_received"): Variable(lambda state: state.came),
    ("res", "status_code"): Variable(_status),
    ("res", "headers"): Variable(_response_headers, _one_response_header),
    ("res", "content_type"): Variable(lambda state: _media(_first(state, "content-type"))[0]),
    ("res", "content_type", "raw"): Variable(lambda state: _first(state, "content-type")),
    ("res", "content_type", "parameters"): Variable(
        lambda state: _media(_first(state, "content-type"))[1], is_map=True
    ),
    ("res", "content_length"): Variable(lambda state: _length(_first(state, "content-length"))),
    ("res", "content_encoding"): Variable(
        lambda state: _codings(_first(state, "content-encoding"))
    ),
    ("res", "location"): Variable(lambda state: _first(state, "location")),
    ("res", "cookies"): Variable(response_cookies, is_map=True),
    ("conn", "client_ip"): Variable(_client_ip),
    ("conn", "client_port"): Variable(_number("REMOTE_PORT")),
    ("conn", "server_port"): Variable(_number("SERVER_PORT")),
    ("endpoint", "host"): Variable(_bare_host),
    ("endpoint", "port"): Variable(_number("SERVER_PORT")),
    ("endpoint", "url"): Variable(
        lambda state: f"{state.arrived('wsgi.url_scheme') or 'http'}://{_host(state)}"
    ),
    ("endpoint", "protocol"): Variable(_arrived("wsgi.url_scheme")),
    ("time", "now"): Variable(lambda state: time_text(datetime.now(UTC))),
    ("vars",): Variable(lambda state: state.vars, is_open=True),
    ("actions", "ngrok"): Variable(lambda state: state.actions, is_open=True),
}
"""By their path. What has fields and is a text as well stands for the text when it is alone."""

ACTION_RESULTS: dict[str, frozenset[str]] = {
    "rate_limit": frozenset({"limited", "bucket_key", "error"}),
    "restrict_ips": frozenset({"action", "matched_cidr", "error"}),
    "jwt_validation": frozenset({"tokens", "error"}),
    "add_headers": frozenset({"headers_added", "error"}),
    "remove_headers": frozenset({"headers_removed", "error"}),
    "log": frozenset({"metadata", "error"}),
    "custom_response": frozenset({"error"}),
    "set_vars": frozenset({"error"}),
    "redirect": frozenset({"error"}),
    "url_rewrite": frozenset({"error"}),
    "basic_auth": frozenset({"authorized", "error"}),
    "api_key_auth": frozenset({"error"}),
    "restrict_models": frozenset({"error"}),
    "ai_gateway": frozenset({"status", "error"}),
}
"""What each action leaves behind, as `actions.ngrok.<action>.<name>`."""

UNSUPPORTED: tuple[Path, ...] = (
    ("req", "trailers"),
    ("req", "url", "user_password"),
    ("res", "trailers"),
    ("conn", "client_ip", "categories"),
    ("conn", "client_ip", "is_on_blocklist"),
    ("conn", "client_ip", "is_tor_node"),
    ("conn", "client_ip", "as"),
    ("conn", "client_ip", "geo"),
    ("conn", "geo"),
    ("conn", "tls"),
    ("conn", "k8s"),
    ("conn", "ts"),
    ("conn", "server_ip"),
    ("conn", "server_region"),
    ("conn", "bytes_in"),
    ("conn", "bytes_out"),
    ("endpoint", "id"),
    ("endpoint", "addr"),
    *(
        ("req", "user_agent", name)
        for name in (
            "name", "version", "os", "os_version", "device", "is_bot", "is_mobile", "is_tablet",
            "is_desktop", "url",
        )
    ),
)  # fmt: skip
"""What ngrok knows of a request and a WSGI application does not."""


def with_url(text: str) -> str:
    """Return a text as it can stand in a URL."""
    return quote(text, safe="/:?#[]@!$&'()*+,;=%-._~")
