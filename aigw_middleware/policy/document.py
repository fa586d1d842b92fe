"""Read a document: JSON or YAML in, values with their places out.

JSON is tried first: it is indented with tabs at times, which YAML refuses. Of YAML the plain part
is read: no tags, no merge keys, no key twice, and aliases only so far that a small text cannot
stand for a large document.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from json.decoder import JSONDecodeError, scanstring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import yaml

from .mistakes import Mistake, PolicyError

MOST_BYTES = 1024 * 1024
MOST_DEPTH = 64
MOST_NODES = 100_000

Value = dict[str, "Node"] | list["Node"] | str | int | float | bool | None


class Node:
    """A value of a document, and where it stands.

    Attributes:
        value: a mapping or a list of nodes, or a scalar.
        line: from 1.
        column: from 1.
        keys: of a mapping, the place of each key.
        size: how many values it stands for, itself included.
        depth: how deep it is nested, 0 for a scalar.
    """

    __slots__ = ("column", "depth", "keys", "line", "size", "value")

    def __init__(self, value: Value, line: int, column: int) -> None:
        self.value = value
        self.line = line
        self.column = column
        self.keys: dict[str, tuple[int, int]] = {}
        self.size = 1
        self.depth = 0

    def plain(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    @property
    def members(self) -> dict[str, Node]:
        """The members of a mapping; none of anything else."""
        return self.value if isinstance(self.value, dict) else {}

    def moved(self, lines: int) -> None:
        """Count its places from other lines: it stood in a text within a document."""
        seen: set[int] = set()
        left: list[Node] = [self]
        while left:
            node = left.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            node.line += lines
            node.keys = {key: (line + lines, column) for key, (line, column) in node.keys.items()}
            left += node.members.values()
            left += node.value if isinstance(node.value, list) else ()

    @property
    def kind(self) -> str:
        """What it is, in words."""
        if self.value is None:
            return "nothing"
        if isinstance(self.value, bool):
            return "true or false"
        for kind, name in ((dict, "a mapping"), (list, "a list"), (str, "a text")):
            if isinstance(self.value, kind):
                return name
        return "a number"


def text_of(path: str) -> bytes:
    """Return a document's text.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def read(text: str | bytes, name: str) -> Node:
    """Read a document.

    Args:
        text: the document, in UTF-8.
        name: what it is called in errors.

    Raises:
        PolicyError: it cannot be read, or is larger than 1 MB or deeper than 64.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > MOST_BYTES:
        raise PolicyError(name, [Mistake("the document is larger than 1 MB")])
    try:
        decoded = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise PolicyError(name, [Mistake("the document is not in UTF-8")]) from None
    try:
        if decoded.lstrip()[:1] in ("{", "["):
            try:
                return _JSON(decoded).read()
            except _Refused as error:
                if not error.is_syntax:
                    raise
                try:
                    return _read_yaml(decoded)
                except _Refused as other:
                    # YAML has the same form for it, and here says more of what is no JSON.
                    quoted = decoded.lstrip()[1:].lstrip()[:1] == '"'
                    raise (error if quoted else other) from None
        return _read_yaml(decoded)
    except _Refused as error:
        raise PolicyError(name, [error.mistake]) from None


class _Refused(Exception):
    def __init__(self, message: str, line: int, column: int, *, is_syntax: bool = False) -> None:
        super().__init__(message)
        self.mistake = Mistake(message, line, column)
        self.is_syntax = is_syntax


def _add(mapping: Node, key: str, place: tuple[int, int], node: Node) -> None:
    if key in mapping.keys:
        line = mapping.keys[key][0]
        raise _Refused(f'"{key}" stands here twice; first in line {line}', *place)
    mapping.members[key] = node
    mapping.keys[key] = place
    _count(mapping, node)


def _count(outer: Node, inner: Node) -> None:
    outer.size += inner.size
    outer.depth = max(outer.depth, inner.depth + 1)
    if outer.size > MOST_NODES:
        raise _Refused("the document stands for too many values", outer.line, outer.column)


# --- JSON

_SANE = re.compile(r"[^\ud800-\udfff]*", re.DOTALL).fullmatch
_SPACE = re.compile(r"[ \t\r\n]*").match
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?").match
_WORDS = {"true": True, "false": False, "null": None}


class _JSON:
    """Reads JSON (RFC 8259) with places."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]

    def read(self) -> Node:
        node, end = self._value(self._skip(0), 0)
        end = self._skip(end)
        if end != len(self._text):
            raise self._syntax("there is more behind the document's end", end)
        return node

    def _place(self, position: int) -> tuple[int, int]:
        line = bisect_right(self._lines, position)
        return line, position - self._lines[line - 1] + 1

    def _syntax(self, message: str, position: int) -> _Refused:
        return _Refused(f"this is no JSON: {message}", *self._place(position), is_syntax=True)

    def _skip(self, position: int) -> int:
        match = _SPACE(self._text, position)
        return position if match is None else match.end()

    def _value(self, position: int, depth: int) -> tuple[Node, int]:
        if depth > MOST_DEPTH:
            raise _Refused("the document is nested too deeply", *self._place(position))
        first = self._text[position : position + 1]
        if first == "{":
            return self._mapping(position, depth)
        if first == "[":
            return self._list(position, depth)
        if first == '"':
            text, end = self._string(position)
            return Node(text, *self._place(position)), end
        for word, value in _WORDS.items():
            if self._text.startswith(word, position):
                return Node(value, *self._place(position)), position + len(word)
        match = _NUMBER(self._text, position)
        if match is None:
            raise self._syntax("a value was expected", position)
        number: int | float = float(match[0]) if match[1] or match[2] else _integer(match[0])
        return Node(number, *self._place(position)), match.end()

    def _string(self, position: int) -> tuple[str, int]:
        try:
            text, end = scanstring(self._text, position + 1)
        except JSONDecodeError as error:
            raise self._syntax(error.msg, error.pos) from None
        if not _SANE(text):
            raise _Refused("a text has half of a surrogate pair", *self._place(position))
        return text, end

    def _mapping(self, position: int, depth: int) -> tuple[Node, int]:
        mapping = Node({}, *self._place(position))
        position = self._skip(position + 1)
        if self._text[position : position + 1] == "}":
            return mapping, position + 1
        while True:
            if self._text[position : position + 1] != '"':
                raise self._syntax("a name in double quotes was expected", position)
            place = self._place(position)
            key, end = self._string(position)
            end = self._skip(end)
            if self._text[end : end + 1] != ":":
                raise self._syntax("a colon was expected", end)
            node, end = self._value(self._skip(end + 1), depth + 1)
            _add(mapping, key, place, node)
            position = self._skip(end)
            if self._text[position : position + 1] == "}":
                return mapping, position + 1
            position = self._comma(position)

    def _list(self, position: int, depth: int) -> tuple[Node, int]:
        items: list[Node] = []
        node = Node(items, *self._place(position))
        position = self._skip(position + 1)
        if self._text[position : position + 1] == "]":
            return node, position + 1
        while True:
            item, end = self._value(position, depth + 1)
            items.append(item)
            _count(node, item)
            position = self._skip(end)
            if self._text[position : position + 1] == "]":
                return node, position + 1
            position = self._comma(position)

    def _comma(self, position: int) -> int:
        if self._text[position : position + 1] != ",":
            raise self._syntax("a comma was expected", position)
        return self._skip(position + 1)


def _integer(text: str) -> int | float:
    return int(text) if len(text) < 100 else float("inf")


# --- YAML

_INT = re.compile(r"[-+]?[0-9]{1,99}").fullmatch
_OTHER_INT = re.compile(r"0o[0-7]{1,99}|0x[0-9a-fA-F]{1,99}").fullmatch
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?").fullmatch
_PLAIN = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def _read_yaml(text: str) -> Node:
    try:
        events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return _YAML(events).read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (1, 1) if mark is None else (mark.line + 1, mark.column + 1)
        raise _Refused(f"this is no YAML: {error.problem or error.context}", *place) from None
    except yaml.YAMLError:
        raise _Refused("this is no YAML: it has characters that no text has", 1, 1) from None


class _YAML:
    """Reads the events of PyYAML's parser by the core schema of YAML 1.2 (§10.3)."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self._events = events
        self._anchors: dict[str, Node] = {}

    def read(self) -> Node:
        next(self._events)  # the stream's start
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            raise _Refused("the document is empty", 1, 1)
        node = self._node(next(self._events), 0)
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise _Refused("a second document begins here", *_mark(event))
        return node

    def _node(self, event: Any, depth: int) -> Node:
        place = _mark(event)
        if depth > MOST_DEPTH:
            raise _Refused("the document is nested too deeply", *place)
        if isinstance(event, yaml.AliasEvent):
            found = self._anchors.get(event.anchor or "")
            if found is None:
                raise _Refused("an alias stands for nothing that was read before", *place)
            if depth + found.depth > MOST_DEPTH:
                raise _Refused("the document is nested too deeply", *place)
            return found
        if event.tag not in (None, "!"):
            raise _Refused("YAML tags are not read", *place)
        if isinstance(event, yaml.ScalarEvent):
            node = Node(_scalar(event), *place)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._list(place, depth)
        else:
            node = self._mapping(place, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _list(self, place: tuple[int, int], depth: int) -> Node:
        items: list[Node] = []
        node = Node(items, *place)
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            item = self._node(event, depth + 1)
            items.append(item)
            _count(node, item)
        return node

    def _mapping(self, place: tuple[int, int], depth: int) -> Node:
        node = Node({}, *place)
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            where = _mark(event)
            if key.value == "<<" and isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
                raise _Refused("merge keys (<<) are not read", *where)
            if isinstance(key.value, dict | list) or key.value is None:
                raise _Refused("a name has to be a text", *where)
            text = event.value if isinstance(event, yaml.ScalarEvent) else str(key.value)
            _add(node, text, where, self._node(next(self._events), depth + 1))
        return node


def _mark(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _scalar(event: yaml.ScalarEvent) -> str | int | float | bool | None:
    text: str = event.value
    if not event.implicit[0]:
        return text
    if text in _PLAIN:
        return _PLAIN[text]
    if _INT(text):
        return int(text)
    if _OTHER_INT(text):
        return int(text, 0)
    if _FLOAT(text) and len(text) < 100:
        return float(text)
    return text
