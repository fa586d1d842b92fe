"""Which models a request names: in its JSON body, in a form's field, or in its path.

The first is the one that is wished for; further ones stand in a chat's `models` list (as
OpenRouter and ngrok have it) and are asked for when the first cannot be had.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .body import Body, whole
from .dialects import PLAIN, Dialect
from .errors import BodyInvalid

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

MAX_BODY_BYTES = 32 * 1024 * 1024
MOST_MODELS = 20
"""How many models one request may name, for which it may be asked one after the other."""

_NAME = re.compile(r"[A-Za-z0-9._:/@+-]{1,256}").fullmatch
_MOST_PARTS = 1000


def named_models(
    environ: WSGIEnvironment, dialect: Dialect, rest: str, *, max_bytes: int = MAX_BODY_BYTES
) -> tuple[str, ...]:
    """Return the models that a request names, the one that it wishes for first; empty for none.

    Args:
        environ: the request.
        dialect: its dialect.
        rest: its path without the dialect's prefix.
        max_bytes: the largest body that is read.

    Raises:
        BodyError: the body is not what the path requires, or what stands in a model's place is
            no model's name.
    """
    document = None
    if environ.get("REQUEST_METHOD") == "POST" and dialect is not PLAIN:
        if dialect.needs_json.fullmatch(rest):
            document = _judged(environ, max_bytes).json()
        elif dialect.takes_form.fullmatch(rest) and form_boundary(environ):
            return form_models(_judged(environ, max_bytes), form_boundary(environ))
    first = dialect.model(rest, document)
    found = [] if first is None else [first]
    if document is not None and "models" in document and dialect.takes_models.fullmatch(rest):
        found += _further(document["models"])
    return tuple(dict.fromkeys(_checked(model) for model in found))


def form_boundary(environ: WSGIEnvironment) -> bytes:
    """Return what separates the parts of a multipart form; empty where the body is none."""
    from werkzeug.http import parse_options_header

    kind, options = parse_options_header(environ.get("CONTENT_TYPE", ""))
    if kind.lower() != "multipart/form-data":
        return b""
    boundary = options.get("boundary", "")
    if not boundary or not boundary.isascii():
        raise BodyInvalid("The form's Content-Type names no boundary.")
    return boundary.encode()


def form_models(body: Body, boundary: bytes) -> tuple[str, ...]:
    """Return the model that a multipart form names; empty for none.

    Raises:
        BodyInvalid: it is no such form, or names the model twice.
    """
    from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

    decoder = MultipartDecoder(boundary, max_parts=_MOST_PARTS)
    blocks = body.blocks()
    found: list[bytes] = []
    inside = False
    try:
        while not isinstance(event := decoder.next_event(), Epilogue):
            if isinstance(event, NeedData):
                decoder.receive_data(next(blocks, None))
            elif isinstance(event, Field | File):
                inside = event.name == "model"
                if inside:
                    found.append(b"")
            elif isinstance(event, Data) and inside:
                found[-1] += event.data
                if len(found[-1]) > 256:  # a model's name is no file
                    break
    except ValueError:
        raise BodyInvalid("The request's form cannot be read.") from None
    if len(found) > 1:
        raise BodyInvalid("The request's form names the model twice.")
    return tuple(_checked(name.decode("latin-1")) for name in found)


def put_in_form(data: bytes, boundary: bytes, old: str, new: str) -> bytes:
    """Return a form that named the model `old` and names `new`; no other byte is changed."""
    pattern = re.compile(
        rb'(\r\nContent-Disposition:[^\r\n]*\bname="?model"?[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n)'
        + re.escape(old.encode())
        + rb"(?=\r\n--"
        + re.escape(boundary)
        + rb")",
        re.IGNORECASE,
    )
    changed, count = pattern.subn(lambda match: match[1] + new.encode(), data)
    if count != 1:
        raise BodyInvalid("The request's form names its model in an unusual way.")
    return changed


def _judged(environ: WSGIEnvironment, max_bytes: int) -> Body:
    if environ.get("HTTP_CONTENT_ENCODING", "").lower() not in ("", "identity"):
        raise BodyInvalid("A body with a Content-Encoding cannot be judged.")
    return whole(environ, max_bytes)


def _further(models: Any) -> list[Any]:
    if not isinstance(models, list) or len(models) > MOST_MODELS:
        raise BodyInvalid(f"models must be a list of at most {MOST_MODELS} models.")
    return models


def _checked(model: object) -> str:
    if not isinstance(model, str) or not _NAME(model):
        raise BodyInvalid("The model's name is not valid.")
    return model
