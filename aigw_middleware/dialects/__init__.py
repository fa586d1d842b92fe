"""The wire dialects of the AI APIs: which paths are theirs, what an error looks like in them.

One module a dialect. Here is decided which one a request speaks, from its path and, where a
path is shared, from the headers that the vendors' SDKs always send.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._paths import is_canonical, resolved
from ..environ import GOOGLE_CLIENT, full_path, suffixes
from . import anthropic, gemini, openai, plain
from ._base import EVENT_ENDS, Dialect, Output, Tokens

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = [
    "ANTHROPIC",
    "DIALECTS",
    "EVENT_ENDS",
    "GEMINI",
    "OPENAI",
    "PLAIN",
    "Dialect",
    "Output",
    "Tokens",
    "client_dialect",
    "dialect_of",
    "spoken",
]

OPENAI = openai.OPENAI
ANTHROPIC = anthropic.ANTHROPIC
GEMINI = gemini.GEMINI
PLAIN = plain.PLAIN

DIALECTS = {dialect.name: dialect for dialect in (OPENAI, ANTHROPIC, GEMINI)}
"""The dialects of AI APIs by name; `PLAIN`, the answer to other paths, is none of them."""

_GOOGLE = ("HTTP_X_GOOG_API_CLIENT", "HTTP_X_GOOG_API_KEY", GOOGLE_CLIENT)
_CLIENT_DIALECT = "aigw.client_dialect"


def dialect_of(path: str, environ: WSGIEnvironment) -> Dialect:
    """Return the dialect of a request for `path`; `PLAIN` where no AI API has that path.

    Gemini's paths: below `/v1beta`, `/v1/models/NAME:VERB`, and below `/v1/models` with a header
    of its SDK. Anthropic's: `/v1/messages`, and of the paths that it shares with OpenAI
    (`/v1/models`, `/v1/files`) those asked for with `anthropic-version`, which it requires.
    """
    if path.startswith("/v1beta/"):
        return GEMINI
    if not path.startswith("/v1/"):
        return PLAIN
    segment, _, rest = path[4:].partition("/")
    if segment in anthropic.SEGMENTS:
        return ANTHROPIC
    if segment not in openai.SEGMENTS:
        return PLAIN
    if segment == "models" and (
        # A fine-tuned model of OpenAI's has several colons in its name.
        gemini.is_call(rest) or any(name in environ for name in _GOOGLE)
    ):
        return GEMINI
    if segment in anthropic.SHARED_SEGMENTS and "HTTP_ANTHROPIC_VERSION" in environ:
        return ANTHROPIC
    return OPENAI


def client_dialect(environ: WSGIEnvironment) -> Dialect:
    """Return the dialect in which the client wants its errors.

    Found once, as the request arrived: a credential's header that an inner layer takes out, or
    a path that it rewrites, does not change what the client understands.
    """
    dialect: Dialect | None = environ.get(_CLIENT_DIALECT)
    if dialect is None:
        dialect = environ[_CLIENT_DIALECT] = spoken(environ)[0]
    return dialect


def spoken(environ: WSGIEnvironment) -> tuple[Dialect, str]:
    """Return the dialect of a request and its path in that dialect.

    The whole path counts; where it means nothing, what is left of it behind the prefixes that
    the gateway is mounted below. `PLAIN` and the whole path where none of it is an AI API's.
    """
    for path in suffixes(environ):
        dialect = dialect_of(path, environ)
        if dialect is not PLAIN:
            return dialect, path
    path = full_path(environ)
    if not is_canonical(path):
        # Whoever resolves `/v1//x` or `/a/../v1/x` sees an AI path: it is judged as that.
        path = resolved(path)
        dialect = dialect_of(path, environ)
        if dialect is not PLAIN:
            return dialect, path
    return PLAIN, full_path(environ)
