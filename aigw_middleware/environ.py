"""The keys that layers leave in the WSGI environ, and the request id.

A layer learns about a request from the environ and tells others through keys with the prefix
`aigw.`; nothing about a request is kept on an instance. The environ is one dict from layer to
layer (PEP 3333), so an outer layer sees what the inner ones found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from hashlib import blake2b
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ._paths import PathPatterns

REQUEST_ID = "aigw.request_id"
"""str: set by the outermost layer; the client's `X-Request-Id` where it is sane."""
GOOGLE_CLIENT = "aigw.google_client"
"""True where the request came with Google's credential header, which a layer has taken out."""
CLIENT_IP = "aigw.client_ip"
"""str: the client's address, IPv4-mapped IPv6 as IPv4; `""` where a trusted proxy named none
that can be read. Where the key is absent, `REMOTE_ADDR` counts."""
KEY = "aigw.key"
"""`ApiKey`: the record of the key that was presented, never its token."""
STAND_INS = "aigw.stand_ins"
"""dict: for each credential that a layer has taken out, by its environ key, what stands for it in
the expressions of a policy: the same for the same credential, and nothing that could be used."""
QUERY_CREDENTIALS = "aigw.query_credentials"
"""set: names of query parameters in which a layer looks for credentials; rules see stand-ins."""
UPSTREAM_HEADERS = "aigw.upstream_headers"
"""list of `(name, value)`: headers that the provider gets instead of the client's of that name."""
UPSTREAM_QUERY = "aigw.upstream_query"
"""str: what is put behind the query that the provider gets."""
REDACTED = "aigw.redacted"
"""tuple of secrets of ours, besides the provider's key, that an error answer must not repeat."""
KEY_ALIVE = "aigw.key_alive"
"""callable `() -> bool`: whether the key is still good; cheap enough to be asked often."""
BYPASSED = "aigw.bypassed"
"""`Bypassed`, where a `stack` with `paths` has let the request go by its layers: then the forwarder
does not forward it unless other gates have judged it."""
WATCHED = "aigw.watched"
"""True where the forwarder ends the answer by itself when the key is no longer good."""
CLAIMS = "aigw.claims"
"""dict: the claims of a verified JWT."""
MODEL = "aigw.model"
"""str: the model that the request names, without its provider."""
PROVIDER = "aigw.provider"
"""str: the provider that answers."""
USAGE = "aigw.usage"
"""`Usage`, or any object like it: what the request has used."""
ATTEMPTS = "aigw.attempts"
"""int: how many candidates the forwarder has asked."""
UNSERVED = "aigw.unserved"
"""True where `aigw serve` has answered that it serves no such path."""
CHOOSER = "aigw.chooser"
"""callable `(offers, is_open) -> list of offers`: which of the `(provider, model)` pairs that could
be asked are, in their order; `is_open` where the client has named no model. Its `allows(offer)`
tells whether a pair that is asked for alone may be, its `selects` whether any may not. Set by a
policy."""
POLICY_ERRORS = "aigw.policy_errors"
"""int: how many expressions of a policy have failed for the request."""
TRIED = "aigw.tried"
"""list of `Attempt`: whom the forwarder has asked for what, and what came of it."""
UPSTREAM_WAIT = "aigw.upstream_wait"
"""float: seconds that the forwarder has waited for the first bytes of upstreams."""
END = "aigw.end"
"""str: why an answer ended, where that cannot be seen from how: `budget`, `revoked`, ..."""
OVER = "aigw.over"
"""True where the forwarder has read an answer to its own end, or all that is said in it."""
SENT_TO = "aigw.sent_to"
"""tuple of the provider and the model that were sent the request, and did not answer it."""
UNSEEN = "aigw.unseen"
"""True where a provider was sent the request, and its answer given up before any of it came."""
DECISIONS = "aigw.decisions"
"""list of `Decision`, one a gate, in the order met."""
BODY = "aigw.body"
"""`Body`: the request's body, where a layer has read it whole."""
RATE_REPORTS = "aigw.rate_reports"
"""list of what each limiter has to tell the client in `RateLimit` headers."""

_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}").fullmatch

# Some servers (wsgiref, Granian) copy the variables of the process into the environ, where a
# debugging page of the wrapped app would show them. These are never a CGI or WSGI key.
_SECRET_VARIABLES = (
    "AIGW_SECRET",
    "AIGW_SECRET_OLD",
    "AIGW_ADMIN_TOKEN",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "AZURE_OPENAI_API_KEY",
    "CEREBRAS_API_KEY",
    "COHERE_API_KEY",
    "CO_API_KEY",
    "DEEPSEEK_API_KEY",
    "FIREWORKS_API_KEY",
    "GEMINI_API_KEY",
    "GOOGLE_API_KEY",
    "GROQ_API_KEY",
    "HYPERBOLIC_API_KEY",
    "INFERENCE_API_KEY",
    "MISTRAL_API_KEY",
    "MOONSHOT_API_KEY",
    "OPENAI_ADMIN_KEY",
    "OPENAI_API_KEY",
    "OPENROUTER_API_KEY",
    "PERPLEXITY_API_KEY",
    "TOGETHER_API_KEY",
    "XAI_API_KEY",
    "ZAI_API_KEY",
)
# `AIGW_STORE` and the like may hold a password in a URL, `AIGW_VAULT_*` are secrets by intent.
_REMOVED = tuple({*_SECRET_VARIABLES, *(name for name in os.environ if name.startswith("AIGW_"))})


_PREFIX_HEADERS = frozenset({"HTTP_SCRIPT_NAME", "HTTP_X_FORWARDED_PREFIX", "HTTP_X_SCRIPT_NAME"})
"""Headers by which SCRIPT_NAME is made, of gunicorn, `ProxyFix` and a common recipe for Flask."""
_ROOT_HEADER = "HTTP_X_VHM_ROOT"
_MOST_MOUNTS = 32
_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
)


class Bypassed(NamedTuple):
    """What a request went by.

    Attributes:
        judged: how many gates had judged it by then.
        authenticates: whether a layer that it went by asks who the client is.
    """

    judged: int
    authenticates: bool


_next_number = count(1).__next__
_process_prefix = ""


def _new_prefix() -> None:
    """Give this process its own random prefix of request ids; a fork must not share it."""
    global _process_prefix
    _process_prefix = os.urandom(9).hex()


_new_prefix()
os.register_at_fork(after_in_child=_new_prefix)


def new_request_id() -> str:
    """Return an id that no other request of any process has (0.3 µs, against 2 for a UUID)."""
    return f"req_{_process_prefix}{_next_number():08x}"


def enter(environ: WSGIEnvironment) -> None:
    """Prepare a request: every layer calls it, the outermost one does the work.

    Gives the request its id, and takes out what a server copied from the process's environment:
    our secrets, and `HTTP_PROXY`, which is either that variable or a client's attempt to be
    taken for it (CVE-2016-5385, "httpoxy"). A method is judged as it will be served.
    """
    if REQUEST_ID in environ:
        return
    presented = environ.get("HTTP_X_REQUEST_ID", "")
    environ[REQUEST_ID] = presented if _SANE_ID(presented) else new_request_id()
    for name in _REMOVED:
        if name in environ:
            del environ[name]
    environ.pop("HTTP_PROXY", None)
    method = environ.get("REQUEST_METHOD", "")
    if method not in _METHODS and method.upper() in _METHODS:
        # Another method (RFC 9110 §9.1), but Django, Flask and Bottle serve it as this one.
        environ["REQUEST_METHOD"] = method.upper()


def request_id(environ: WSGIEnvironment) -> str:
    """Return the request's id, giving it one if no layer has yet."""
    enter(environ)
    value: str = environ[REQUEST_ID]
    return value


def stand_in(credential: str) -> str:
    """Return what stands for a credential that was taken out: the same for the same one."""
    digest = blake2b(credential.encode("utf-8", "surrogatepass"), digest_size=16, person=b"aigw")
    return f"redacted:{digest.hexdigest()}"


def suffixes(environ: WSGIEnvironment) -> Iterator[str]:
    """Yield the whole path, and then what is left of it without segments of SCRIPT_NAME.

    A gateway that is mounted below prefixes is asked for by a path that begins with them, and
    whoever routes by PATH_INFO sees it without. A server may even take SCRIPT_NAME from the
    client (gunicorn does, from a proxy that it trusts). So a rule that guards looks at each. The
    parts need not meet at a slash: gunicorn makes `/a` and `dmin` of `/admin`.
    """
    script, path_info = environ.get("SCRIPT_NAME", ""), environ.get("PATH_INFO", "")
    path = script + path_info or "/"
    yield path
    if not script:
        return
    for start in segments_in(path, len(script)):
        yield path[start:]
    yield path_info if path_info[:1] == "/" else "/" + path_info


def segments_in(path: str, end: int) -> Iterator[int]:
    """Yield where segments of a path begin, but for the first one, before `end`."""
    start = 0
    while (start := path.find("/", start + 1)) >= 0 and start < end:
        yield start


def is_mounted_oddly(environ: WSGIEnvironment) -> bool:
    """Whether an application may see a path that nobody else does.

    Pyramid takes the root of its traversal from a header; and no mount has so many segments that
    each could be looked at.
    """
    return _ROOT_HEADER in environ or environ.get("SCRIPT_NAME", "").count("/") > _MOST_MOUNTS


def is_listed(environ: WSGIEnvironment, patterns: PathPatterns) -> bool:
    """Whether every path that a request may mean is one of those."""
    return bool(patterns) and all(map(patterns.opens, meant_paths(environ)))


def meant_paths(environ: WSGIEnvironment) -> tuple[str, ...]:
    """Return the paths of which each must match where a rule opens a door.

    SCRIPT_NAME + PATH_INFO; where SCRIPT_NAME may have come in a header, which gunicorn and
    Werkzeug's `ProxyFix` take from a proxy and a client may have sent through it, PATH_INFO by
    itself too. One that never matches where the application may see another one yet.
    """
    if is_mounted_oddly(environ):
        return ("",)
    path = full_path(environ)
    if not environ.get("SCRIPT_NAME") or _PREFIX_HEADERS.isdisjoint(environ):
        return (path,)
    return (path, environ.get("PATH_INFO") or "/")


def full_path(environ: WSGIEnvironment) -> str:
    """Return SCRIPT_NAME + PATH_INFO, the path that rules judge (bytes as Latin-1, PEP 3333)."""
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return path or "/"
