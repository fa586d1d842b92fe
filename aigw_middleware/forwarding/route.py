"""Where a request goes: facts in, candidates out, nothing sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .._paths import has_dot_segment
from ..dialects import PLAIN, Dialect, dialect_of, spoken
from ..dialects.gemini import UPLOADS
from ..environ import full_path
from ..named_models import bare_name
from ..providers.catalogue import BEARER, CUSTOM_HEADERS
from ..providers.provider import Provider, credential
from .url import BaseURL, quote_path, raw_path

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class AIPath(NamedTuple):
    """A path of an AI API.

    Attributes:
        dialect: whose it is.
        rest: the path without the prefix that stands for the base URL, unquoted.
        raw: the same as it is sent.
        uploads: whether it is one of Gemini's uploads, which have a base URL beside the others'.
    """

    dialect: Dialect
    rest: str
    raw: str
    uploads: bool = False


class Candidate(NamedTuple):
    """One way to have a request answered.

    Attributes:
        provider: the provider's name; None for a plain URL.
        base: where it is.
        target: the path that is sent, without the query.
        credential: the header that carries our key; None for none.
        secret: the key in it; empty for none.
        model: the name by which the model is asked for; None where the path names none.
        query: what the provider wants in every query, without a `?`; empty for nothing.
        weight: how often it is asked first, against others, where chance decides.
    """

    provider: str | None
    base: BaseURL
    target: str
    credential: tuple[str, str] | None
    secret: str
    model: str | None = None
    query: str = ""
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Who is asked for what, for logs: `provider/model`."""
        who = self.provider or self.base.authority
        return who if self.model is None else f"{who}/{self.model}"


def is_safe_path(path: str) -> bool:
    """Whether no reader can take `path` for one outside of it, or for a whole URL.

    uWSGI leaves scheme and authority of an absolute target in PATH_INFO.
    """
    return path.startswith("/") and not has_dot_segment(path) and "\0" not in path


def ai_path(environ: WSGIEnvironment) -> AIPath | None:
    """Return the AI path of a request, None where its path belongs to no AI API."""
    dialect, path, rest = spoken(environ)
    if dialect is PLAIN:
        return None
    raw = raw_path(environ) if path == full_path(environ) else quote_path(path)
    prefix = path[: len(path) - len(rest)]
    # An encoded prefix (`/%761/...`) means the same; then the rest is quoted anew.
    raw_rest = raw[len(prefix) :] if raw.startswith(prefix + "/") else quote_path(rest)
    return AIPath(dialect, rest, raw_rest, prefix in UPLOADS)


def url_candidate(base: BaseURL, api_key: str | None, environ: WSGIEnvironment) -> Candidate:
    """Return where a plain URL sends a request: the request's path behind the URL's."""
    target = base.join(raw_path(environ))
    if api_key is None:
        return Candidate(None, base, target, None, "")
    dialect = dialect_of(full_path(environ), environ)
    header = CUSTOM_HEADERS.get(dialect.name, BEARER)
    return Candidate(None, base, target, credential(header, api_key), api_key)


def provider_candidates(
    providers: Sequence[tuple[Provider, Sequence[str]]], path: AIPath, model: str | None
) -> list[list[Candidate]]:
    """Return the candidates in order of preference: by provider, the keys of each.

    Args:
        providers: the providers in order of preference, each with its keys.
        path: the path that is asked for.
        model: the model that is asked for; None where the path names none.

    Only providers that speak the path's dialect come into question. Those that list the model
    come first and alone. Where none does, it is the first that lists none at all, native speakers
    of the dialect before others, and after it those that are known to have the same models: the
    same provider at another address, or servers of one's own.
    """
    name = path.dialect.name
    speaking = [
        (provider, keys)
        for provider, keys in providers
        if name in provider.dialects and (keys or not provider.needs_key)
    ]
    chosen = [pair for pair in speaking if pair[0].lists(_own_name(pair[0], model))]
    if not chosen:
        open_ones = [pair for pair in speaking if pair[0].serves_any or model is None]
        native = [pair for pair in open_ones if pair[0].dialects[0] == name] or open_ones
        chosen = [pair for pair in native if pair is native[0] or pair[0].is_like(native[0][0])]
    return [_keyed_candidates(provider, keys, path, model) for provider, keys in chosen]


def _keyed_candidates(
    provider: Provider, keys: Sequence[str], path: AIPath, model: str | None
) -> list[Candidate]:
    dialect = path.dialect.name
    base = provider.base(dialect)
    below = base.path
    if path.uploads:
        before, slash, version = below.rpartition("/")
        below = f"{before}/upload{slash}{version}"
    target = (below + path.raw) or "/"
    credentials: list[tuple[tuple[str, str] | None, str]]
    credentials = [(provider.credential(dialect, key), key) for key in keys] or [(None, "")]
    own = _own_name(provider, model)
    return [
        Candidate(provider.name, base, target, header, key, own, provider.query, provider.weight)
        for header, key in credentials
    ]


def _own_name(provider: Provider, model: str | None) -> str | None:
    """Return a model's name as it is judged: Google takes `models/NAME` for `NAME`."""
    return bare_name(model) if "gemini" in provider.dialects else model
