"""Which models a request names: in its JSON body, in a form's field, or in its path.

The first is the one that is wished for; further ones stand in a chat's `models` list (as
OpenRouter and ngrok have it) and are asked for when the first cannot be had.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from .body import Body, whole
from .dialects import PLAIN, AnyOf, Dialect, Takes, id_of, spellings, spoken
from .errors import BodyInvalid

if TYPE_CHECKING:
    from mmap import mmap

    from _typeshed.wsgi import WSGIEnvironment

MAX_BODY_BYTES = 32 * 1024 * 1024
MOST_MODELS = 20
"""How many models one request may name, for which it may be asked one after the other."""

_UNUSUAL = spellings("model") | spellings("models")
_NAME = re.compile(r"[A-Za-z0-9._:/@+-]{1,256}").fullmatch
_INNER_NAME = re.compile(r"[A-Za-z0-9._:/@+~-]{1,256}").fullmatch  # `~` is OpenRouter's
_ODDLY_SPELT = "The request's body spells a model's name in an unusual way."
_MOST_PARTS = 1000
_MOST_HEAD = 8 * 1024
_BOUNDARY = re.compile(
    r"[^;]*;(?:[^;]*;)*?\s*boundary="
    r"(?:\"([A-Za-z0-9'()+_,./:=? -]{1,70})\"|([A-Za-z0-9'+_./=-]{1,70}))\s*(?:;.*)?",
    re.IGNORECASE,
).fullmatch
_BOUNDARY_NAMES = re.compile(r"[;\s\"]boundary[\s*0-9]*=", re.IGNORECASE).findall
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*").fullmatch
_QUOTED = r'"((?:[^"\\\r\n]|\\.)*)"'
_DISPOSITION = re.compile(
    r"content-disposition:\s*form-data"
    rf"((?:\s*;\s*(?:name|filename|filename\*)=(?:{_QUOTED}|[^\s;\"]+))+)\s*",
    re.IGNORECASE,
).fullmatch
_PARAMETER = re.compile(rf"(name|filename\*?)=(?:{_QUOTED}|([^\s;\"]+))", re.IGNORECASE).findall


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
    takes = dialect.takes(rest)
    first: object = takes.named
    further: list[Any] = []
    if environ.get("REQUEST_METHOD") == "POST" and dialect is not PLAIN:
        if takes.form and (boundary := form_boundary(environ)):
            return form_models(_judged(environ, max_bytes), boundary)
        if takes.json:
            document = json_of(_judged(environ, max_bytes), takes)
            if not _UNUSUAL.isdisjoint(document):
                # Some readers take `Model` for `model`.
                raise BodyInvalid(_ODDLY_SPELT)
            if first is None:
                first = document.get("model")
                if takes.anywhere:
                    first = id_of(first)
            if takes.models and "models" in document:
                further = _further(document["models"])
    if further:
        found = further if first is None else [first, *further]
        return tuple(dict.fromkeys(_checked(model) for model in found))
    return () if first is None else (_checked(first),)


def inner_models(
    environ: WSGIEnvironment, dialect: Dialect, rest: str, *, max_bytes: int = MAX_BODY_BYTES
) -> tuple[str, ...]:
    """Return the models that the provider is to ask by itself, for what a request is about.

    An advisor, those that answer what the first one declines, one that makes pictures, those of
    the requests in a batch. Other than `named_models`, all of them may be asked.

    Args:
        environ: the request.
        dialect: its dialect.
        rest: its path without the dialect's prefix.
        max_bytes: the largest body that is read.

    Returns:
        Each once; `AnyOf` among them where the provider chooses one.

    Raises:
        BodyError: as `named_models` does.
    """
    takes = dialect.takes(rest)
    if not takes.further or environ.get("REQUEST_METHOD") != "POST":
        return ()
    if takes.form and (boundary := form_boundary(environ)):
        return _in_form(_judged(environ, max_bytes), boundary, dialect.inner_fields)
    if not takes.json:
        return ()
    return models_within(dialect, rest, _judged(environ, max_bytes))


def models_within(dialect: Dialect, rest: str, body: Body) -> tuple[str, ...]:
    """Return what `inner_models` does, of the JSON body of a POST.

    Raises:
        BodyInvalid: as `named_models` does.
    """
    takes = dialect.takes(rest)
    if not takes.further:
        return ()
    found = body.inner.get(rest)
    if found is None:
        found = body.inner[rest] = _further_in(dialect, rest, takes, json_of(body, takes))
    return found


def json_of(body: Body, takes: Takes) -> dict[str, Any]:
    """Return the JSON object that a path takes; nothing at all is as good, where all is optional.

    Raises:
        BodyInvalid: it is none.
    """
    return {} if not body.size and takes.anywhere else body.json()


def _further_in(
    dialect: Dialect, rest: str, takes: Takes, document: dict[str, Any]
) -> tuple[str, ...]:
    if not takes.odd.isdisjoint(document):
        raise BodyInvalid(_ODDLY_SPELT)
    if takes.firsts.isdisjoint(document) and not takes.anywhere:
        return ()
    found: dict[str, None] = {}
    most = MOST_MODELS * (5 if "requests" in document else 1)
    for name in dialect.further(rest, document):
        if name is None:
            continue
        if not isinstance(name, AnyOf) and not (isinstance(name, str) and _INNER_NAME(name)):
            raise BodyInvalid("The name of a model that the request has asked is not valid.")
        found[name] = None
        if len(found) > most:
            raise BodyInvalid("The request has too many models asked.")
    return tuple(found)


def _in_form(body: Body, boundary: bytes, fields: frozenset[str]) -> tuple[str, ...]:
    data = body.buffer()
    found = [
        part
        for part in _parts(data, boundary)
        if part.name.lower() in fields and part.ends > part.begins
    ]
    return tuple(
        dict.fromkeys(_checked(bytes(data[p.begins : p.ends]).decode("latin-1")) for p in found)
    )


NO_MODEL = "The request's body names no model."


def needs_model(environ: WSGIEnvironment) -> bool:
    """Whether the body of a request has to name a model, by its path."""
    if environ.get("REQUEST_METHOD") != "POST":
        return False
    dialect, _, rest = spoken(environ)
    takes = dialect.takes(rest)
    return takes.model or (takes.form and bool(form_boundary(environ)))


def form_boundary(environ: WSGIEnvironment) -> bytes:
    """Return what separates the parts of a multipart form; empty where the body is none.

    Raises:
        BodyInvalid: readers could take different boundaries.
    """
    text = environ.get("CONTENT_TYPE", "")
    if text.partition(";")[0].strip().lower() != "multipart/form-data":
        return b""
    match = _BOUNDARY(text)
    if match is None or len(_BOUNDARY_NAMES(text)) != 1:
        raise BodyInvalid("The form's Content-Type names no single boundary.")
    return str(match[1] or match[2]).encode("latin-1")


class _Part(NamedTuple):
    """A part of a form: its field's name, and where its content begins and ends."""

    name: str
    is_file: bool
    begins: int
    ends: int


def form_models(body: Body, boundary: bytes) -> tuple[str, ...]:
    """Return the model that a multipart form names; empty for none.

    Raises:
        BodyInvalid: it is no such form, names the model twice, or could be read in several ways.
    """
    data = body.buffer()
    found = [part for part in _parts(data, boundary) if part.name.lower() == "model"]
    if len(found) > 1:
        raise BodyInvalid("The request's form names the model twice.")
    if any(part.is_file or part.name != "model" or part.ends - part.begins > 256 for part in found):
        raise BodyInvalid("The model's name is not valid.")
    return tuple(_checked(bytes(data[p.begins : p.ends]).decode("latin-1")) for p in found)


def put_in_form(data: bytes, boundary: bytes, new: str) -> bytes:
    """Return a form that names the model `new`; no other byte is changed."""
    for part in _parts(data, boundary):
        if part.name == "model":
            return data[: part.begins] + new.encode() + data[part.ends :]
    return data


def _parts(data: bytes | mmap, boundary: bytes) -> list[_Part]:
    """Return the parts of a form (RFC 7578), read so strictly that no reader sees others.

    Every line ends in CR LF, the boundary stands nowhere but between parts, and each part has one
    Content-Disposition of the plain form.
    """
    mark = b"--" + boundary
    delimiter = b"\r\n" + mark
    found: list[_Part] = []
    if data[: len(mark) + 2] != mark + b"\r\n":
        raise BodyInvalid("The request's form cannot be read.")
    position = len(mark) + 2
    while True:
        head = data.find(b"\r\n\r\n", position, position + _MOST_HEAD)
        ends = -1 if head < 0 else data.find(delimiter, head + 2)
        if ends < 0 or len(found) == _MOST_PARTS:
            raise BodyInvalid("The request's form cannot be read.")
        name, is_file = _disposition(bytes(data[position:head]))
        found.append(_Part(name, is_file, head + 4, max(head + 4, ends)))
        position = ends + len(delimiter) + 2
        if data[position - 2 : position] == b"--":
            break
        if data[position - 2 : position] != b"\r\n":
            raise BodyInvalid("The request's form cannot be read.")
    if data[position : position + 3] not in (b"", b"\r\n") or _count(data, mark) != len(found) + 1:
        raise BodyInvalid("The request's form could be read in several ways.")
    return found


def _count(data: bytes | mmap, mark: bytes) -> int:
    count, position = 0, data.find(mark)
    while position >= 0:
        count += 1
        position = data.find(mark, position + 1)
    return count


def _disposition(head: bytes) -> tuple[str, bool]:
    """Return the name of a part's field, and whether it is a file."""
    lines = head.decode("latin-1").split("\r\n")
    named = [line for line in lines if line.lower().startswith("content-disposition")]
    odd = any(not _HEADER(line) for line in lines)
    match = _DISPOSITION(named[0]) if len(named) == 1 and not odd else None
    if match is None:
        raise BodyInvalid("A part of the request's form has no plain Content-Disposition.")
    parameters = _PARAMETER(match[1])
    names = [name.lower() for name, _, _ in parameters]
    name = next(((quoted or bare) for key, quoted, bare in parameters if key.lower() == "name"), "")
    if len(set(names)) != len(names) or not name or "\\" in name:
        raise BodyInvalid("A part of the request's form has no plain Content-Disposition.")
    is_file = any(key.startswith("filename") for key in names)
    is_coded = any(
        line.lower().startswith("content-transfer-encoding")
        and line.partition(":")[2].strip().lower() not in ("binary", "8bit", "7bit")
        for line in lines
    )
    if is_coded:
        raise BodyInvalid("A part of the request's form is encoded.")
    return name, is_file


def bare_name(model: Any) -> Any:
    """Return a model's name without what Google's own names begin with."""
    return model.removeprefix("models/") if isinstance(model, str) else model


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
