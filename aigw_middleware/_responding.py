"""The head of an app's answer in the hands of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse

Headers = list[tuple[str, str]]


def with_headers(
    start_response: StartResponse, change: Callable[[str, Headers], Headers]
) -> StartResponse:
    """Return a `start_response` that hands on the headers that `change(status, headers)` gives."""

    def respond(status: str, headers: Headers, exc_info: OptExcInfo | None = None, /) -> object:
        return _begin(start_response, status, change(status, headers), exc_info)

    return respond  # type: ignore[return-value]


def hearing(start_response: StartResponse, hear: Callable[[str, Headers], None]) -> StartResponse:
    """Return a `start_response` that tells `hear(status, headers)` of the head that was taken.

    Not of one that came too late: a server raises where another has been sent (PEP 3333).
    """

    def respond(status: str, headers: Headers, exc_info: OptExcInfo | None = None, /) -> object:
        write = _begin(start_response, status, headers, exc_info)
        hear(status, headers)
        return write

    return respond  # type: ignore[return-value]


def _begin(
    start_response: StartResponse, status: str, headers: Headers, exc_info: OptExcInfo | None
) -> object:
    """Begin an answer; with `exc_info` only where the app gave it: some servers take no third."""
    return (
        start_response(status, headers, exc_info) if exc_info else start_response(status, headers)
    )
