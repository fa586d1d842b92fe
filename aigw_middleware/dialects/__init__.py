"""The wire dialects of the AI APIs: which paths are theirs, what an error looks like in them.

One module a dialect. Here is decided which one a request speaks, from its path and, where a
path is shared, from the headers that the vendors' SDKs always send.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from .._paths import LONGEST, is_canonical, resolved
from ..environ import GOOGLE_CLIENT, segments_in
from . import anthropic, gemini, openai, plain
from ._base import (
    ANY_MODEL,
    EVENT_ENDS,
    AnyOf,
    Batch,
    Dialect,
    Later,
    Output,
    Takes,
    Tier,
    Tokens,
    id_of,
    merged_details,
    spellings,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = [
    "ANTHROPIC",
    "ANY_MODEL",
    "DIALECTS",
    "EVENT_ENDS",
    "GEMINI",
    "OPENAI",
    "PLAIN",
    "AnyOf",
    "Batch",
    "Dialect",
    "Later",
    "Output",
    "Spoken",
    "Takes",
    "Tier",
    "Tokens",
    "client_dialect",
    "dialect_of",
    "id_of",
    "merged_details",
    "spellings",
    "spoken",
]

OPENAI = openai.OPENAI
ANTHROPIC = anthropic.ANTHROPIC
GEMINI = gemini.GEMINI
PLAIN = plain.PLAIN

DIALECTS = {dialect.name: dialect for dialect in (OPENAI, ANTHROPIC, GEMINI)}
"""The dialects of AI APIs by name; `PLAIN`, the answer to other paths, is none of them."""

_CLIENT, _CREDENTIAL = "HTTP_X_GOOG_API_CLIENT", "HTTP_X_GOOG_API_KEY"
_VERSION = "HTTP_ANTHROPIC_VERSION"
_CLIENT_DIALECT = "aigw.client_dialect"


def dialect_of(path: str, environ: WSGIEnvironment) -> Dialect:
    """Return the dialect of a request for `path`; `PLAIN` where no AI API has that path.

    Gemini's paths: below `/v1beta`, uploads, `/v1/models/NAME:VERB`, what only Google has below
    `/v1` (`cachedContents`, ...) and, with a header of its SDK, `/v1/models`, `/v1/files` and
    `/v1/batches`. Anthropic's: `/v1/messages`, and of the paths that it shares with OpenAI
    (`/v1/models`, `/v1/files`) those asked for with `anthropic-version`, which it requires.
    """
    return _dialect_of(path, _is_google(environ), _VERSION in environ)


def _is_google(environ: WSGIEnvironment) -> bool:
    """Whether a request has a mark of Google's SDKs; unrolled, since every layer asks."""
    return _CLIENT in environ or _CREDENTIAL in environ or GOOGLE_CLIENT in environ


def _dialect_of(path: str, is_google: bool, is_anthropic: bool) -> Dialect:
    if path.startswith("/v1beta/") or gemini.is_upload(path):
        return GEMINI
    if not path.startswith("/v1/"):
        return PLAIN
    segment, _, rest = path[4:].partition("/")
    if segment in anthropic.SEGMENTS:
        return ANTHROPIC
    shared = segment.partition(":")[0] in gemini.SHARED_SEGMENTS  # `files:register`
    if segment in gemini.SEGMENTS or (shared and is_google):
        return GEMINI
    # A fine-tuned model of OpenAI's has several colons in its name.
    if segment == "models" and gemini.is_call(rest):
        return GEMINI
    if segment in anthropic.SHARED_SEGMENTS and is_anthropic:
        return ANTHROPIC
    if segment not in openai.SEGMENTS:
        return PLAIN
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


class Spoken(NamedTuple):
    """What a request speaks.

    Attributes:
        dialect: its dialect; `PLAIN` where its path belongs to no AI API.
        path: its path in that dialect, the whole one for `PLAIN`.
        rest: the same without the prefix that stands for a provider's base URL.
    """

    dialect: Dialect
    path: str
    rest: str


def spoken(environ: WSGIEnvironment) -> Spoken:
    """Return the dialect of a request and its path in that dialect.

    What an application routes by counts, PATH_INFO, then the whole path; where neither means
    anything, what is left of it behind the prefixes that the gateway is mounted below. `PLAIN`
    and the whole path where none of it is an AI API's.
    """
    script, path = environ.get("SCRIPT_NAME", ""), environ.get("PATH_INFO", "")
    # Every layer asks, and few paths are asked for: a long one is not worth a place in memory.
    find = _spoken if len(script) + len(path) <= LONGEST else _spoken.__wrapped__
    return find(script, path, _is_google(environ), _VERSION in environ)


@lru_cache(maxsize=1024)
def _spoken(script: str, path_info: str, is_google: bool, is_anthropic: bool) -> Spoken:
    for path in _meanings(script, path_info):
        dialect = _dialect_of(path, is_google, is_anthropic)
        if dialect is not PLAIN:
            return Spoken(dialect, path, dialect.rest(path))
    whole = script + path_info or "/"
    return Spoken(PLAIN, whole, whole)


_AI_PREFIXES = ("/v1/", "/v1beta/", "/upload/")


def _meanings(script: str, path_info: str) -> Iterator[str]:
    """Yield the paths that a request may mean; of those without segments of SCRIPT_NAME only some.

    A client may choose how long SCRIPT_NAME is, so that not each of them is looked into. Whoever
    resolves `/v1//x` or `/a/../v1/x` sees an AI path: it is judged as that.
    """
    yield _resolved(path_info)
    if not script:
        return
    whole = _resolved(script + path_info)
    yield whole
    for start in segments_in(whole, len(_resolved(script))):
        if whole.startswith(_AI_PREFIXES, start):
            yield whole[start:]


def _resolved(path: str) -> str:
    return path if is_canonical(path) else resolved(path)
