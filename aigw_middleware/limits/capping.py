"""Write a cap into a request that names none: what is reserved is what may come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..body import drop_member, put_member, whole
from ..named_models import MAX_BODY_BYTES
from .wanted import CAPPED

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


CAP_PATH = "aigw.cap_path"
"""tuple: where in the body a cap stands that was put in; the client has named none."""
_CAPS = "aigw.caps"


def with_cap(environ: WSGIEnvironment, path: tuple[str, ...], tokens: int, owner: object) -> None:
    """Put a cap of `tokens` an answer into the request's body, in which the client has none.

    The lowest of all that were put there counts; `owner` may put another in the place of its own.

    Args:
        environ: the request.
        path: where the body's dialect has it; empty for nowhere, and nothing is done.
        tokens: the cap.
        owner: who puts it there.
    """
    if path:
        environ.setdefault(_CAPS, {})[id(owner)] = tokens
        _write(environ, environ.setdefault(CAP_PATH, path))


def without_cap(environ: WSGIEnvironment, owner: object, before: int | None) -> None:
    """Take back what `owner` has put there last: for a candidate that it does not bound.

    Args:
        environ: the request.
        owner: whose cap it is.
        before: the cap that it had put there for all candidates; None for none.
    """
    caps: dict[int, int] = environ.get(_CAPS, {})
    if caps.get(id(owner)) in (None, before):
        return
    if before is not None:
        caps[id(owner)] = before
    else:
        del caps[id(owner)]
    _write(environ, environ[CAP_PATH])


def _write(environ: WSGIEnvironment, path: tuple[str, ...]) -> None:
    """Have the lowest cap stand in the body, or none."""
    lowest = min(environ[_CAPS].values(), default=None)
    if lowest == environ.get(CAPPED):
        return
    whole(environ, MAX_BODY_BYTES)
    if lowest is not None:
        environ[CAPPED] = lowest
        put_member(environ, path, lowest)
        return
    del environ[CAPPED], environ[CAP_PATH]
    drop_member(environ, path)
