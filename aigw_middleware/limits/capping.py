"""Write a cap into a request that names none: what is reserved is what may come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..body import replace, whole
from ..named_models import MAX_BODY_BYTES
from ..splice import put
from .wanted import CAPPED

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .wanted import Wanted

CAP_PATH = "aigw.cap_path"
"""tuple: where in the body a cap stands that was put in; the client has named none."""
_CAPS = "aigw.caps"


def with_cap(environ: WSGIEnvironment, want: Wanted, tokens: int, owner: object) -> None:
    """Put a cap of `tokens` an answer into the request's body, in its dialect.

    The lowest of all that were put there counts; `owner` may put another in the place of its own.
    """
    if not want.cap:
        return
    caps: dict[int, int] = environ.setdefault(_CAPS, {})
    caps[id(owner)] = tokens
    lowest = min(caps.values())
    if lowest != environ.get(CAPPED):
        environ[CAPPED] = lowest
        path = environ.setdefault(CAP_PATH, want.cap)
        replace(environ, put(whole(environ, MAX_BODY_BYTES).read(), path, lowest))
