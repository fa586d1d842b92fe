"""What the rules of a document know of one request: as it arrived, and what they have found."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from .._headers import environ_key, header_of
from ..environ import DECISIONS, QUERY_CREDENTIALS, STAND_INS, stand_in

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_STATE = "aigw.policy"


class Answer:
    """The head of an answer, for the rules of its phase.

    Attributes:
        status: its status.
        headers: `(name, value)` pairs; rules may change them.
    """

    def __init__(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.status = status
        self.headers = headers


class State:
    """One request under one document.

    Expressions see the request as it arrived. What an earlier layer took out as a credential reads
    as a stand-in, the same for the same credential.

    Attributes:
        environ: the request, as it is now.
        vars: what `set-vars` has set, in this phase.
        actions: what actions have left behind, by name.
        answer: the answer's head, in the phase of answers.
        values: variables that were looked up before.
    """

    def __init__(self, environ: WSGIEnvironment) -> None:
        self.environ = environ
        self._arrived = {
            key: value
            for key, value in environ.items()
            if key.startswith("HTTP_") or key in _REQUEST_KEYS
        }
        self.came = datetime.now(UTC)
        self.monotonic = time.monotonic()
        self.vars: dict[str, Any] = {}
        self.actions: dict[str, dict[str, Any]] = {}
        self.answer: Answer | None = None
        self.values: dict[Any, Any] = {}

    def arrived(self, key: str) -> str:
        """Return a value of the environ as the request arrived; empty where there is none."""
        value: str = self._arrived.get(key, "")
        if key in _QUERIES and "=" in value:
            return self._masked(value)
        return value

    def _masked(self, text: str) -> str:
        """Return a query or target with stand-ins for the credentials in it."""
        names = {_QUERY_KEY, *self.environ.get(QUERY_CREDENTIALS, ())}
        head, mark, query = text.rpartition("?")
        if head + mark == "" and "?" not in text:
            query = text
        parts = [
            f"{name}={stand_in(value)}" if sign and value and unquote_plus(name) in names else part
            for part in query.split("&")
            for name, sign, value in (part.partition("="),)
        ]
        return head + mark + "&".join(parts)

    def header(self, name: str) -> list[str]:
        """Return the values of a request's header, of any case; a WSGI server joins them."""
        key = environ_key(name)
        stand_in = self._stand_ins().get(key)
        if stand_in is not None:
            return [stand_in]
        # PEP 3333 lets a server give these two empty where there is no such header.
        is_there = key in self._arrived and (key.startswith("HTTP_") or self._arrived[key])
        return [self._arrived[key]] if is_there else []

    def headers(self) -> dict[str, list[str]]:
        """Return all headers of the request, by name in lower case."""
        stand_ins = self._stand_ins()
        keys = [key for key in (*self._arrived, *stand_ins) if _is_header(key)]
        names = {_name(key): key for key in keys}
        return {name: found for name in names if (found := self.header(name))}

    def _stand_ins(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.environ.get(STAND_INS, {})
        return found

    def begin_answer(self, status: int, headers: list[tuple[str, str]]) -> Answer:
        """Go over to the phase of answers, which has variables of its own."""
        self.vars = {}
        self.values = {path: v for path, v in self.values.items() if path[0] not in ("res", "vars")}
        self.answer = Answer(status, headers)
        for decision in self.environ.get(DECISIONS, ()):
            if not decision.allowed and decision.gate in _REFUSED:
                name, result = _REFUSED[decision.gate]
                self.actions.setdefault(name, dict(result))
        return self.answer


_QUERIES = ("QUERY_STRING", "RAW_URI", "REQUEST_URI")
_QUERY_KEY = "key"  # where Gemini takes a key
_REQUEST_KEYS = frozenset(
    {"REQUEST_METHOD", "PATH_INFO", "SCRIPT_NAME", "QUERY_STRING", "CONTENT_TYPE", "CONTENT_LENGTH",
     "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL", "REMOTE_ADDR", "REMOTE_PORT", "RAW_URI",
     "REQUEST_URI", "wsgi.url_scheme"}
)  # fmt: skip


_REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "RateLimiter": ("rate_limit", {"limited": True}),
    "IPAllowlist": ("restrict_ips", {"action": "deny", "matched_cidr": ""}),
    "BasicAuth": ("basic_auth", {"authorized": False}),
}
"""What a gate that has refused would have left behind, for the phase of answers."""


def _is_header(key: str) -> bool:
    return key.startswith("HTTP_") or key in ("CONTENT_TYPE", "CONTENT_LENGTH")


def _name(key: str) -> str:
    bare = {"CONTENT_TYPE": "content-type", "CONTENT_LENGTH": "content-length"}
    return bare.get(key) or header_of(key).lower()


def state_of(environ: WSGIEnvironment, owner: object) -> State:
    """Return the state of a request under one document, made when the request meets it."""
    states: dict[int, State] = environ.setdefault(_STATE, {})
    state = states.get(id(owner))
    if state is None:
        state = states[id(owner)] = State(environ)
    return state
