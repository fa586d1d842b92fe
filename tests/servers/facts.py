"""What each server gives the layers: the one table that the tests and `docs/servers.md` share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """What a server does; the words are those of the document's cells.

    Attributes:
        streams: how an event stream reaches the client.
        raw_path: how a path with `%2F` in it reaches the provider.
        absolute: what becomes of a target in absolute form (`GET http://x/v1/... HTTP/1.1`).
        duplicates: what arrives of a header that the client sends twice.
        underscores: what arrives of `X_Team` beside `X-Team`.
        chunked: what becomes of a chunked request body.
        abort: when a client can tell from the framing that an answer broke off.
        told: whether what was sent just before such an abort, an error event, arrives.
        hang_up: when the provider's connection is closed after the client's.
        socket: whether the client's socket is in the environ.
        environment: whether the process's variables are in the environ.
        refusal: how a refusal reaches a client whose body (60 KiB) was not read.
        expect: whether a client that waits with its body is asked for it.
    """

    streams: str = "unbuffered"
    raw_path: str = "as sent"
    absolute: str = "served"
    duplicates: str = "joined"
    underscores: str = "dropped"
    chunked: str = "forwarded"
    abort: str = "always"
    told: str = "arrives"
    hang_up: str = "at the next write"
    socket: str = "no"
    environment: str = "no"
    refusal: str = "whole"
    expect: str = "asked"


# Where the socket is seen, it can be watched.
_SHOWS_SOCKET = Facts(socket="yes", hang_up="within a second")

SERVERS = {
    "gunicorn gthread": _SHOWS_SOCKET,
    "gunicorn gevent": _SHOWS_SOCKET,
    "gunicorn sync": _SHOWS_SOCKET,
    "waitress": Facts(),
    "uWSGI": Facts(
        chunked="411",
        expect="not asked",
        underscores="joined",
        abort="with a length",
        absolute="404",
    ),
    "cheroot": Facts(
        raw_path="`%2F` as `%252F`", duplicates="last", underscores="last", absolute="400"
    ),
    "Granian": Facts(
        raw_path="quoted anew", underscores="last", told="may be lost", environment="yes"
    ),
    "Werkzeug": _SHOWS_SOCKET,
}
