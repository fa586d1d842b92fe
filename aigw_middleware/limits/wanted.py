"""What a request may use, before it has: bounds from its body, nothing sent or counted.

A token is a byte at least, so the body's bytes bound its input tokens. What a body only refers to
(a picture's address, a file, a stored answer) is bounded by what a model can read at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..body import whole
from ..dialects import PLAIN, Dialect, Output, spoken
from ..errors import BodyInvalid
from ..named_models import MAX_BODY_BYTES, named_models

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

CONTEXT = 200_000
"""Input tokens that a model is taken to read at most, where nobody knows better."""
CAPPED = "aigw.capped"
"""int: the cap that a layer has put into the body; the client has named none."""
DEFAULT_OUTPUT = 4096
"""Output tokens for which a request that names no cap is reserved, if so many are left."""
LEAST_OUTPUT = 16
"""Fewer are not worth asking a provider for."""
BYTES_A_TOKEN = 8
"""More bytes than this a token has hardly ever, so a body has at least so many tokens."""

_INLINE = (b"base64", b"data:", b"inlineData", b"inline_data", b"input_audio")
_REFERENCES = frozenset(
    {
        "image_url", "file_id", "file_url", "input_audio", "previous_response_id", "conversation",
        "prompt_cache_id", "fileData", "file_data", "fileUri", "file_uri", "cachedContent",
        "cached_content", "container", "vector_store_ids",
    }
)  # fmt: skip


class Wanted(NamedTuple):
    """What a request may use.

    Attributes:
        model: the model that it names; None for none.
        input_tokens: at most.
        least_input: at least.
        output_tokens: at most; None where the client names no cap.
        answers: how many answers it asks for.
        cap: where a cap would be written into its body; empty where none can be.
        default_output: what is reserved for an answer where the client names no cap.
    """

    model: str | None
    input_tokens: int
    least_input: int
    output_tokens: int | None
    answers: int = 1
    cap: tuple[str, ...] = ()
    default_output: int = DEFAULT_OUTPUT

    @property
    def is_nothing(self) -> bool:
        """Whether it is a request of which nobody but an application knows what it uses."""
        return self == _NOTHING


_NOTHING = Wanted(None, 0, 0, 0)


def wanted(environ: WSGIEnvironment) -> Wanted:
    """Return what the request may use.

    Raises:
        BodyError: its body cannot be judged.
    """
    dialect, path = spoken(environ)
    if environ.get("REQUEST_METHOD") in ("GET", "HEAD", "DELETE", "OPTIONS"):
        return _NOTHING
    if dialect is PLAIN:
        return _NOTHING  # an app of its own, which tells what it used in `aigw.usage`
    rest = dialect.rest(path)
    found = _document(environ)
    if found is None:
        # Forms (audio, files) and whatever comes next: nobody has looked into them.
        return Wanted(next(iter(named_models(environ, dialect, rest)), None), CONTEXT, 0, 0)
    document = found[2]
    body = whole(environ, MAX_BODY_BYTES)
    model = next(iter(named_models(environ, dialect, rest)), None)
    bound = max(1, body.size)
    if _refers(document):
        bound += CONTEXT
    output = dialect.output(rest, document)
    if output is None:
        return Wanted(model, bound, body.size // BYTES_A_TOKEN, 0)
    capped: int | None = environ.get(CAPPED)
    most = None if output.cap is None or capped is not None else output.cap * output.answers
    # A picture in the body has far fewer tokens than its letters would.
    inline = any(mark in body.read() for mark in _INLINE)
    least = 0 if inline or bound > body.size + 1 else body.size // BYTES_A_TOKEN
    default = DEFAULT_OUTPUT if capped is None else capped
    return Wanted(model, bound, least, most, output.answers, output.path, default)


def wanted_output(environ: WSGIEnvironment) -> Output | None:
    """Return how much text a request asks for; None where it makes none.

    Raises:
        BodyError: its body cannot be judged.
    """
    found = _document(environ)
    return None if found is None else found[0].output(found[1], found[2])


def text_tokens(environ: WSGIEnvironment) -> int:
    """Return the estimated tokens of a request's prompt: four bytes of its body a token.

    Raises:
        BodyError: its body cannot be judged.
    """
    return 0 if _document(environ) is None else whole(environ, MAX_BODY_BYTES).size // 4


def _document(environ: WSGIEnvironment) -> tuple[Dialect, str, dict[str, Any]] | None:
    """Return the dialect of a request, its path in it and its JSON; None where it has none."""
    dialect, path = spoken(environ)
    if dialect is PLAIN or environ.get("REQUEST_METHOD") != "POST":
        return None
    rest = dialect.rest(path)
    if not dialect.needs_json.fullmatch(rest):
        return None
    if environ.get("HTTP_CONTENT_ENCODING", "").lower() not in ("", "identity"):
        raise BodyInvalid("A body with a Content-Encoding cannot be judged.")
    return dialect, rest, whole(environ, MAX_BODY_BYTES).json()


def _refers(document: Any) -> bool:
    """Whether something in the body stands for content that is not in it."""
    left = [document]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            if _is_reference(value):
                return True
            left += value.values()
    return False


def _is_reference(value: dict[str, Any]) -> bool:
    kind = value.get("type")
    if kind == "item_reference" or (kind in ("url", "file") and "url" in value):
        return True
    for name in ("prompt", "audio"):  # one that is stored, or was said before
        member = value.get(name)
        if isinstance(member, dict) and "id" in member:
            return True
    return any(name in _REFERENCES and not _is_inline(member) for name, member in value.items())


def _is_inline(member: Any) -> bool:
    """Whether the member holds the content itself, or nothing."""
    if isinstance(member, dict):
        member = member.get("url", member.get("data", member))
    return member is None or (isinstance(member, str) and member.startswith("data:"))
