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


class _Member(NamedTuple):
    """A member of an object: its name, where it starts, and where its value begins and ends."""

    name: str
    starts: int
    begins: int
    ends: int


def put(
    data: bytes,
    path: tuple[str, ...],
    value: Any,
    document: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the object in `data` with `value` at `path`, a member or a member of a member.

    A value that is there is replaced; one that is not is inserted in front, as are the objects
    on the way to it. `document` is the object where it was read before: then nobody has to look
    through all of `data` for a member that is not there.
    """
    if document is not None and path[0] not in document:
        behind = data.index(b"{") + 1  # strict JSON: nothing but spaces stands before it
        return data[:behind] + _inserted(path, value, bool(document)).encode() + data[behind:]
    text = data.decode()
    begins, ends, written = _place(text, _object_at(text, 0), path, value)
    return (text[:begins] + written + text[ends:]).encode()


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


def _place(text: str, opening: int, path: tuple[str, ...], value: Any) -> tuple[int, int, str]:
    """Return the span to replace and what takes its place."""
    name, rest = path[0], path[1:]
    members = _members(text, opening)
    for member in members:
        if member.name == name:
            if rest and text[member.begins] == "{":
                return _place(text, member.begins, rest, value)
            return member.begins, member.ends, json.dumps(_nested(rest, value))
    return opening + 1, opening + 1, _inserted(path, value, bool(members))


def _inserted(path: tuple[str, ...], value: Any, is_followed: bool) -> str:
    member = json.dumps(_nested(path, value))[1:-1]
    return f"{member}, " if is_followed else member


def _nested(path: tuple[str, ...], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


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


def _skip(text: str, position: int) -> int:
    while text[position : position + 1] in _SPACE and position < len(text):
        position += 1
    return position
