"""Change one value of a JSON object and leave every other byte as it came.

What was judged is strict JSON in UTF-8 (`body.strict_json`); a document that was read and written
again would lose its order of spaces, escapes and the spelling of its numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NamedTuple

_SPACE = " \t\n\r"
_DECODER = json.JSONDecoder()
_quoted = json.encoder.encode_basestring_ascii


Path = tuple[str | int, ...]
"""Where a value stands: the name of a member, or the number of an element, on each level."""


class _Member(NamedTuple):
    """A member of an object or an element of an array: where it and its value begin and end."""

    name: str | int
    starts: int
    begins: int
    ends: int


def put(
    data: bytes,
    path: Path,
    value: Any,
    document: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the object in `data` with `value` at `path`.

    A value that is there is replaced; one that is not is inserted in front, as are the objects
    on the way to it. `document` is the object where it was read before: then nobody has to look
    through all of `data` for a member that is not there.
    """
    if document is not None and path[0] not in document:
        behind = data.index(b"{") + 1  # strict JSON: nothing but spaces stands before it
        inserted = _inserted({path: value}, is_followed=bool(document))
        return data[:behind] + inserted.encode() + data[behind:]
    return put_all(data, {path: value})


def put_all(data: bytes, values: Mapping[Path, Any]) -> bytes:
    """Return the object in `data` with each of `values` at its path, looked through once.

    As `put`; an element of an array that is not there is not inserted.
    """
    text = data.decode()
    edits: list[tuple[int, int, str]] = []
    _edit(text, _object_at(text, 0), values, edits)
    pieces, position = [], 0
    for begins, ends, written in sorted(edits):
        pieces += [text[position:begins], written]
        position = ends
    return ("".join(pieces) + text[position:]).encode()


def _edit(
    text: str, opening: int, values: Mapping[Path, Any], edits: list[tuple[int, int, str]]
) -> None:
    """Find what is replaced in the object or array that opens there, and by what."""
    by_name: dict[str | int, dict[Path, Any]] = {}
    for path, value in values.items():
        by_name.setdefault(path[0], {})[path[1:]] = value
    members = _members(text, opening) if text[opening] == "{" else _elements(text, opening)
    for member in members:
        within = by_name.pop(member.name, None)
        if within is None:
            continue
        if () not in within and text[member.begins] == _bracket(within):
            _edit(text, member.begins, within, edits)
        else:
            edits.append((member.begins, member.ends, _written(_nested(within))))
    fresh = {(name, *path): v for name, within in by_name.items() for path, v in within.items()}
    if fresh and text[opening] == "{":
        written = _inserted(fresh, is_followed=bool(members))
        edits.append((opening + 1, opening + 1, written))


def _bracket(values: Mapping[Path, Any]) -> str:
    """Return what opens the value in which `values` stand."""
    return "[" if isinstance(next(iter(values))[0], int) else "{"


def drop(data: bytes, *path: str) -> bytes:
    """Return the object in `data` without the member at `path`, and without one comma."""
    text = data.decode()
    opening = _object_at(text, 0)
    name = path[-1]
    for outer in path[:-1]:
        found = [member for member in _members(text, opening) if member.name == outer]
        if not found or text[found[0].begins] != "{":
            return data
        opening = found[0].begins
    members = _members(text, opening)
    for number, member in enumerate(members):
        if member.name != name:
            continue
        if number + 1 < len(members):
            begins, ends = member.starts, members[number + 1].starts
        elif number:
            begins, ends = members[number - 1].ends, member.ends
        else:
            begins, ends = member.starts, member.ends
        return (text[:begins] + text[ends:]).encode()
    return data


def _inserted(values: Mapping[Path, Any], *, is_followed: bool) -> str:
    members = ", ".join(
        f"{_quoted(str(name))}: {_written(value)}" for name, value in _nested(values).items()
    )
    return f"{members}, " if is_followed else members


def _written(value: Any) -> str:
    return str(value) if type(value) is int else json.dumps(value)


def _nested(values: Mapping[Path, Any]) -> Any:
    if () in values:
        return values[()]
    found: dict[Any, dict[Path, Any]] = {}
    for path, value in values.items():
        found.setdefault(path[0], {})[path[1:]] = value
    return {name: _nested(within) for name, within in found.items()}


def _object_at(text: str, position: int) -> int:
    position = _skip(text, position)
    if text[position : position + 1] != "{":
        raise ValueError("the document is no JSON object")
    return position


def _members(text: str, opening: int) -> list[_Member]:
    members = []
    position = _skip(text, opening + 1)
    while text[position] == '"':
        starts = position
        name, position = scanstring(text, position + 1)
        begins = _skip(text, _skip(text, position) + 1)  # behind the colon
        _, ends = _DECODER.raw_decode(text, begins)
        members.append(_Member(name, starts, begins, ends))
        position = _skip(text, ends)
        if text[position] == ",":
            position = _skip(text, position + 1)
    return members


def _elements(text: str, opening: int) -> list[_Member]:
    elements: list[_Member] = []
    position = _skip(text, opening + 1)
    while text[position] != "]":
        _, ends = _DECODER.raw_decode(text, position)
        elements.append(_Member(len(elements), position, position, ends))
        position = _skip(text, ends)
        if text[position] == ",":
            position = _skip(text, position + 1)
    return elements


def _skip(text: str, position: int) -> int:
    while text[position : position + 1] in _SPACE and position < len(text):
        position += 1
    return position
