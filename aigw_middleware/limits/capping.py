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


def with_cap(environ: WSGIEnvironment, want: Wanted, tokens: int) -> None:
    """Put a cap of `tokens` an answer into the request's body, in its dialect.

    One that another limiter has put there is only ever lowered.
    """
    known: int | None = environ.get(CAPPED)
    if want.cap and (known is None or tokens < known):
        environ[CAPPED] = tokens
        replace(environ, put(whole(environ, MAX_BODY_BYTES).read(), want.cap, tokens))
