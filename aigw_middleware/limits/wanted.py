"""What a request may use, before it has: bounds from its body, nothing sent or counted.

A token is a byte at least, so the body's bytes bound its input tokens; where a tokenizer is there
they are counted. What a body only refers to (a picture's address, a file, a stored answer) is
bounded by what a model can read at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..body import Body, whole
from ..dialects import OPENAI, PLAIN, Batch, Dialect, Output, Tier, spoken
from ..environ import BODY
from ..errors import BodyInvalid
from ..named_models import MAX_BODY_BYTES, form_boundary, json_of, models_within, named_models
from ..splice import Path
from . import tokenizer

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

_REFERENCES = frozenset(
    {
        "image_url", "file_id", "file_url", "input_audio", "previous_response_id", "conversation",
        "prompt_cache_id", "fileData", "file_data", "fileUri", "file_uri", "cachedContent",
        "cached_content", "container", "vector_store_ids", "fileName", "file_name", "assistant_id",
        "training_file", "previous_interaction_id", "fileSearchStoreNames",
        "file_search_store_names", "continuationToken", "continuation_token",
    }
)  # fmt: skip
_STORED = ("prompt", "audio")
"""What may be stored, or was said before, and is then named by its id."""
_INLINE = frozenset({"inlineData", "inline_data", "input_audio"})
"""What holds content that is no text in the body itself."""
_SUSPECTS = _REFERENCES | set(_STORED)


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
        named_output: of a batch, the tokens of the answers whose requests name a cap; `answers`
            are then those of the others.
        lacking: where a cap would be written of each of those others.
        priced: whether the price of the model's tokens tells what it costs.
        inner: the models that the provider is to ask by itself.
        least_output: output tokens that one answer alone may have; None for all of them.
    """

    model: str | None
    input_tokens: int
    least_input: int
    output_tokens: int | None
    answers: int = 1
    cap: tuple[str, ...] = ()
    default_output: int = DEFAULT_OUTPUT
    named_output: int = 0
    lacking: tuple[Path, ...] = ()
    priced: bool = True
    inner: tuple[str, ...] = ()
    least_output: int | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether it is a request of which nobody but an application knows what it uses."""
        return self == _NOTHING


_ASKS_NOTHING = ("GET", "HEAD", "DELETE", "OPTIONS")
_NOTHING = Wanted(None, 0, 0, 0)


def wanted(environ: WSGIEnvironment) -> Wanted:
    """Return what the request may use.

    Raises:
        BodyError: its body cannot be judged.
    """
    dialect, _, rest = spoken(environ)
    if dialect is PLAIN or environ.get("REQUEST_METHOD") in _ASKS_NOTHING:
        # Nothing, or a request to an app of its own, which tells what it used in `aigw.usage`.
        return _NOTHING
    takes = dialect.takes(rest)
    if takes.nothing:
        return _NOTHING
    found = _document(environ)
    model = wanted_model(environ)
    if found is None:
        # Forms (audio, files) and whatever comes next: nobody has looked into them.
        return Wanted(model, CONTEXT, 0, 0)
    body, document = found
    refers, inline = _content_of(document, body.read())
    counted = None if inline else _counted(dialect, model, body)
    items = document.get("input")
    refers = refers or (type(items) is list and any(map(_is_bare_reference, items)))
    # What an agent does, a session or a run of many is told to nobody here.
    refers = refers or takes.anywhere
    bound = max(1, body.size if counted is None else counted) + (CONTEXT if refers else 0)
    priced = not takes.unpriced and dialect.tier(document) is not Tier.UNKNOWN
    inner = models_within(dialect, rest, body)
    output = _output_of(dialect, rest, body, document)
    if output is None:
        least = body.size // BYTES_A_TOKEN
        return Wanted(model, bound, least, 0, priced=priced, inner=inner)
    least = 0 if refers or inline else min(bound, body.size // BYTES_A_TOKEN)
    if output.batch is not None:
        return _of_batch(model, bound, least, output.batch)._replace(priced=priced, inner=inner)
    capped: int | None = environ.get(CAPPED)
    most = output.fixed if capped is not None else output.most
    default = DEFAULT_OUTPUT if capped is None else capped
    return Wanted(
        model,
        bound,
        least,
        most,
        output.answers,
        output.path,
        default,
        priced=priced,
        inner=inner,
        least_output=None if most is None else (output.cap or 0) * output.answers,
    )


def _of_batch(model: str | None, bound: int, least: int, batch: Batch) -> Wanted:
    if not batch.uncapped:
        return Wanted(model, bound, least, batch.most)
    return Wanted(
        model,
        bound,
        least,
        None,
        batch.uncapped,
        named_output=batch.most,
        lacking=batch.lacking,
    )


def wanted_model(environ: WSGIEnvironment) -> str | None:
    """Return the model that the request names; None for none, and for what makes no answer.

    Raises:
        BodyError: its body cannot be judged.
    """
    dialect, _, rest = spoken(environ)
    if dialect is PLAIN or environ.get("REQUEST_METHOD") in _ASKS_NOTHING:
        return None
    return next(iter(named_models(environ, dialect, rest)), None)


def wanted_output(environ: WSGIEnvironment) -> Output | None:
    """Return how much text a request asks for; None where it makes none.

    Raises:
        BodyError: its body cannot be judged.
    """
    found = _document(environ)
    if found is None:
        return None
    dialect, _, rest = spoken(environ)
    return _output_of(dialect, rest, *found)


def _output_of(dialect: Dialect, rest: str, body: Body, document: dict[str, Any]) -> Output | None:
    """Return how much text a body asks for, found out once: each rule asks, for each candidate."""
    if rest not in body.asked:
        body.asked[rest] = dialect.output(rest, document)
    found: Output | None = body.asked[rest]
    return found


def text_tokens(environ: WSGIEnvironment) -> int:
    """Return the tokens of a request's prompt: counted, or else by four bytes of its body each.

    Never counted is a prompt in which something that is no text may stand, such as a picture.

    Raises:
        BodyError: its body cannot be judged.
    """
    found = _document(environ)
    if found is None:
        return 0
    body, document = found
    counted = None
    if not _content_of(document, body.read()).inline:
        counted = _counted(spoken(environ).dialect, wanted_model(environ), body)
    return body.size // 4 if counted is None else counted


def _counted(dialect: Dialect, model: str | None, body: Body) -> int | None:
    """Return the tokens of a body that is all text; None where they cannot be told."""
    return tokenizer.count(model, body) if dialect is OPENAI else None


def _document(environ: WSGIEnvironment) -> tuple[Body, dict[str, Any]] | None:
    """Return a request's body and the JSON object in it; None where its path takes none."""
    dialect, _, rest = spoken(environ)
    takes = dialect.takes(rest)
    if dialect is PLAIN or environ.get("REQUEST_METHOD") != "POST" or not takes.json:
        return None
    if takes.form and form_boundary(environ):
        return None
    if environ.get("HTTP_CONTENT_ENCODING", "").lower() not in ("", "identity"):
        raise BodyInvalid("A body with a Content-Encoding cannot be judged.")
    known = environ.get(BODY)  # by a forwarder perhaps, that takes larger ones
    body = known if isinstance(known, Body) else whole(environ, MAX_BODY_BYTES)
    return body, json_of(body, takes)


class _Content(NamedTuple):
    """What a body has beside text.

    Attributes:
        refers: whether something in it stands for content that is not there.
        inline: whether something is there that is no text, such as a picture, which has far fewer
            tokens than its letters would.
    """

    refers: bool
    inline: bool


def _content_of(document: Any, data: bytes) -> _Content:
    refers, inline = False, b"data:" in data
    left = [document]
    while left and not (refers and inline):
        value = left.pop()
        if type(value) is dict:  # as JSON is read, and nothing that inherits from it
            refers = refers or _is_reference(value)
            inline = inline or value.get("type") == "base64" or not _INLINE.isdisjoint(value)
            left += value.values()
        elif type(value) is list:
            left += value
    return _Content(refers, inline)


def _is_reference(value: dict[str, Any]) -> bool:
    kind = value.get("type")
    if kind == "item_reference" or (kind in ("url", "file") and "url" in value):
        return True
    if kind == "continue" and "previous_message_id" in value:
        return True
    if "uri" in value and isinstance(kind, str):  # of an interaction: a video, a document, ...
        return True
    if _SUSPECTS.isdisjoint(value):
        return False
    for name in _STORED:
        member = value.get(name)
        if isinstance(member, dict) and "id" in member:
            return True
    return any(name in _REFERENCES and not _is_inline(member) for name, member in value.items())


def _is_bare_reference(item: Any) -> bool:
    """Whether an item of OpenAI's input is nothing but the id of another one."""
    return isinstance(item, dict) and "id" in item and item.keys() <= {"id", "type"}


def _is_inline(member: Any) -> bool:
    """Whether the member holds the content itself, or nothing."""
    if isinstance(member, dict):
        member = member.get("url", member.get("data", member))
    return member is None or (isinstance(member, str) and member.startswith("data:"))
