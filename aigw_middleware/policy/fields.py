"""What may stand in a field of an action: read with its place, and told as JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from .document import Node
from .expressions import EvaluationError, Expression, ExpressionError, Scope
from .mistakes import Mistake, nearest
from .state import State
from .templates import Template

Json = dict[str, Any]
BAD: Any = object()
"""Stands for a value that could not be read; what is wrong has been noted."""


class Reading:
    """The reading of one document: its mistakes so far, and what expressions may read here.

    Args:
        secret: returns the secret of a vault and a name; raises `LookupError` where there is none.
        checking: whether the document is only checked: secrets are then not asked for.

    Attributes:
        mistakes: what is wrong.
        rule: the rule that is read, for its mistakes.
        phase: `request` or `response`.
        vars: what `set-vars` has set so far in this phase.
        actions: the actions that stand before.
    """

    def __init__(self, secret: Callable[[str, str], str], *, checking: bool = False) -> None:
        self._secret = secret
        self.checking = checking
        self.mistakes: list[Mistake] = []
        self.rule = ""
        self.phase = "request"
        self.vars: set[str] = set()
        self.actions: set[str] = set()
        self.extra: Mapping[str, Any] = {}

    def wrong(self, node: Node, message: str, key: str | None = None) -> Any:
        """Note a mistake at a node, or at one of its keys; return `BAD`."""
        line, column = node.keys.get(key, (node.line, node.column)) if key else (
            node.line, node.column,
        )  # fmt: skip
        self.mistakes.append(Mistake(message, line, column, self.rule))
        return BAD

    def secret(self, vault: str, name: str) -> str:
        """Return a secret; what stands for one where the document is only checked."""
        return _UNKNOWN if self.checking else self._secret(vault, name)

    def scope(self, *, static: bool = False) -> Scope:
        """Return what expressions may read here.

        Args:
            static: whether the value is needed before a request comes.
        """
        scope = Scope(self.phase, frozenset(self.vars), frozenset(self.actions), self.secret)
        scope = scope._replace(**self.extra)
        return scope._replace(variables={}) if static else scope

    @contextmanager
    def within(self, **extra: Any) -> Iterator[None]:
        """Read with another scope."""
        before, self.extra = self.extra, extra
        try:
            yield
        finally:
            self.extra = before


_UNKNOWN = "unknown-secret"


class Kind:
    """A kind of value."""

    def read(self, node: Node, reading: Reading) -> Any:
        """Return the value of a node, or `BAD`."""
        raise NotImplementedError

    def schema(self) -> Json:
        """Return its JSON Schema."""
        raise NotImplementedError


class Boolean(Kind):
    """True or false."""

    def read(self, node: Node, reading: Reading) -> Any:
        if not isinstance(node.value, bool):
            return reading.wrong(node, f"must be true or false, not {node.kind}")
        return node.value

    def schema(self) -> Json:
        return {"type": "boolean"}


class Integer(Kind):
    """A whole number between two bounds, both included."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def read(self, node: Node, reading: Reading) -> Any:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, int):
            return reading.wrong(node, f"must be a whole number, not {node.kind}")
        if not self._least <= value <= self._most:
            return reading.wrong(node, f"must be {self._least:,} to {self._most:,}")
        return value

    def schema(self) -> Json:
        return {"type": "integer", "minimum": self._least, "maximum": self._most}


class Text(Kind):
    """A text as it stands, or one of several; `static` completes `${secrets.get(...)}` in it."""

    def __init__(
        self,
        *choices: str,
        most: int = 64 * 1024,
        static: bool = False,
        form: Callable[[str], str | None] | None = None,
    ) -> None:
        self._choices = choices
        self._most = most
        self._static = static
        self._form = form

    def read(self, node: Node, reading: Reading) -> Any:
        value = node.value
        if not isinstance(value, str):
            return reading.wrong(node, f"must be a text, not {node.kind}")
        if len(value) > self._most:
            return reading.wrong(node, f"must have at most {self._most} characters")
        if self._choices and value not in self._choices:
            shown = ", ".join(self._choices)
            return reading.wrong(node, f"must be one of {shown}{nearest(value, self._choices)}")
        if "${" in value and self._static:
            value = _completed(node, value, reading)
            if value is BAD or reading.checking:
                return value
            if self._form is not None and self._form(value):
                # What is wrong with it would repeat what may be a secret.
                return reading.wrong(node, "what it stands for cannot stand here")
            return value
        problem = self._form(value) if self._form is not None else None
        return reading.wrong(node, problem) if problem else value

    def schema(self) -> Json:
        return {"type": "string", **({"enum": [*self._choices]} if self._choices else {})}


def _completed(node: Node, text: str, reading: Reading) -> Any:
    """Return a text whose templates need no request."""
    template = _template(node, text, reading, static=True)
    if template is BAD:
        return BAD
    try:
        return template.text_for(State({}))
    except EvaluationError as error:
        return reading.wrong(node, f"an expression in it fails: {error}")


def _template(node: Node, text: str, reading: Reading, *, static: bool = False) -> Any:
    try:
        return Template(text, reading.scope(static=static))
    except ExpressionError as error:
        return wrong_expression(node, text, error, reading)
    except LookupError as error:
        return reading.wrong(node, str(error.args[0]))


def wrong_expression(node: Node, text: str, error: ExpressionError, reading: Reading) -> Any:
    """Note what is wrong in an expression, at its place in the document; return `BAD`."""
    message = f"{error}"
    if len(text) > 40 or "\n" in text:
        message += f" (at character {error.offset + 1})"
    return reading.wrong(node, message)


class Completed(Kind):
    """A text that may hold `${...}`, completed for each request."""

    def __init__(self, form: Callable[[str], str | None] | None = None) -> None:
        self._form = form

    def read(self, node: Node, reading: Reading) -> Any:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return reading.wrong(node, f"must be a text, not {node.kind}")
        if not isinstance(value, str):
            value = str(value)
        if "${" in value:
            return _template(node, value, reading)
        problem = self._form(value) if self._form is not None else None
        return reading.wrong(node, problem) if problem else value

    def schema(self) -> Json:
        return {"type": ["string", "number"]}


class Anything(Kind):
    """Any value, in whose texts `${...}` is completed for each request."""

    def read(self, node: Node, reading: Reading) -> Any:
        if isinstance(node.value, dict):
            return {key: self.read(inner, reading) for key, inner in node.value.items()}
        if isinstance(node.value, list):
            return [self.read(inner, reading) for inner in node.value]
        if isinstance(node.value, str) and "${" in node.value:
            return _template(node, node.value, reading)
        return node.value

    def schema(self) -> Json:
        return {}


class Condition(Kind):
    """An expression in CEL, without `${}`."""

    def read(self, node: Node, reading: Reading) -> Any:
        value = node.value
        if not isinstance(value, str):
            return reading.wrong(node, f"must be an expression as a text, not {node.kind}")
        if value.startswith("${") and value.endswith("}"):
            return reading.wrong(node, "an expression stands here without ${}")
        try:
            return Expression(value, reading.scope())
        except ExpressionError as error:
            return wrong_expression(node, value, error, reading)
        except LookupError as error:
            return reading.wrong(node, str(error.args[0]))

    def schema(self) -> Json:
        return {"type": "string"}


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|µs|ns)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def seconds(text: str) -> float | None:
    """Return the seconds of a duration as Go writes it (`1h30m`, `500ms`); None for no duration."""
    if not re.fullmatch(rf"(?:{_DURATION.pattern})+", text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))


class Duration(Kind):
    """A duration (`60s`, `1h30m`) between two bounds in seconds; read as seconds."""

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = least, most

    def read(self, node: Node, reading: Reading) -> Any:
        if not isinstance(node.value, str):
            return reading.wrong(node, f'must be a duration like "60s", not {node.kind}')
        found = seconds(node.value)
        if found is None:
            return reading.wrong(node, 'must be a duration like "60s" or "1h30m"')
        if not self._least <= found <= self._most:
            return reading.wrong(node, f"must be {self._least:g} to {self._most:g} seconds")
        return found

    def schema(self) -> Json:
        return {"type": "string", "pattern": r"^(\d+(\.\d+)?(h|m|s|ms|us|µs|ns))+$"}


class ListOf(Kind):
    """A list of values of one kind."""

    def __init__(self, kind: Kind, least: int = 0, most: int = 10_000) -> None:
        self._kind = kind
        self._least, self._most = least, most

    def read(self, node: Node, reading: Reading) -> Any:
        if not isinstance(node.value, list):
            return reading.wrong(node, f"must be a list, not {node.kind}")
        if not self._least <= len(node.value) <= self._most:
            return reading.wrong(node, f"must have {self._least} to {self._most} entries")
        found = [self._kind.read(item, reading) for item in node.value]
        return BAD if any(value is BAD for value in found) else found

    def schema(self) -> Json:
        bounds = {"minItems": self._least} if self._least else {}
        return {"type": "array", "items": self._kind.schema(), **bounds, "maxItems": self._most}


class MapOf(Kind):
    """A mapping from names to values of one kind."""

    def __init__(
        self,
        kind: Kind,
        least: int = 0,
        most: int = 10_000,
        *,
        name: Callable[[str], str | None] | None = None,
    ) -> None:
        self._kind = kind
        self._least, self._most = least, most
        self._name = name

    def read(self, node: Node, reading: Reading) -> Any:
        if not isinstance(node.value, dict):
            return reading.wrong(node, f"must be a mapping, not {node.kind}")
        if not self._least <= len(node.value) <= self._most:
            return reading.wrong(node, f"must have {self._least} to {self._most} entries")
        found = {}
        for key, inner in node.value.items():
            problem = self._name(key) if self._name is not None else None
            if problem:
                reading.wrong(node, problem, key)
            found[key] = BAD if problem else self._kind.read(inner, reading)
        return BAD if any(value is BAD for value in found.values()) else found

    def schema(self) -> Json:
        bounds = {"minProperties": self._least} if self._least else {}
        return {
            "type": "object",
            "additionalProperties": self._kind.schema(),
            **bounds,
            "maxProperties": self._most,
        }


class OneOrMore(Kind):
    """A list of values of one kind, or one of them alone."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def read(self, node: Node, reading: Reading) -> Any:
        if isinstance(node.value, list):
            return ListOf(self._kind, 1).read(node, reading)
        value = self._kind.read(node, reading)
        return BAD if value is BAD else [value]

    def schema(self) -> Json:
        return {"anyOf": [self._kind.schema(), ListOf(self._kind, 1).schema()]}


class Field(NamedTuple):
    """A field of a mapping.

    Attributes:
        kind: what may stand in it.
        required: whether it must be there.
        doc: what it is for.
        secret: whether its value must not be shown.
    """

    kind: Kind
    required: bool = False
    doc: str = ""
    secret: bool = False


class Fields(Kind):
    """A mapping with known fields.

    Args:
        fields: by name.
        unsupported: names that ngrok knows and that are not supported here.
    """

    def __init__(self, fields: Mapping[str, Field], unsupported: tuple[str, ...] = ()) -> None:
        self.fields = fields
        self._unsupported = unsupported

    def read(self, node: Node, reading: Reading) -> Any:
        if node.value is None:
            node = Node({}, node.line, node.column)
        if not isinstance(node.value, dict):
            return reading.wrong(node, f"must be a mapping, not {node.kind}")
        is_bad = False
        for key in node.value:
            if key in self._unsupported:
                reading.wrong(node, f'"{key}" is known to ngrok, not supported here', key)
                is_bad = True
            elif key not in self.fields:
                hint = nearest(key, self.fields)
                reading.wrong(node, f'there is no field "{key}"{hint}', key)
                is_bad = True
        found = {}
        for name, field in self.fields.items():
            if name in node.value:
                found[name] = field.kind.read(node.value[name], reading)
                is_bad = is_bad or found[name] is BAD
            elif field.required:
                reading.wrong(node, f'"{name}" is missing')
                is_bad = True
        return BAD if is_bad else found

    def schema(self) -> Json:
        required = [name for name, field in self.fields.items() if field.required]
        return {
            "type": "object" if required else ["object", "null"],
            "properties": {
                name: {**field.kind.schema(), **({"description": field.doc} if field.doc else {})}
                for name, field in self.fields.items()
            },
            "additionalProperties": False,
            **({"required": required} if required else {}),
        }


def shown(kind: Kind, node: Node) -> Any:
    """Return a value as it may be shown: what is secret is not."""
    if isinstance(kind, Fields) and isinstance(node.value, dict):
        return {key: _shown_field(kind.fields.get(key), inner) for key, inner in node.value.items()}
    inner_kind = getattr(kind, "_kind", None)
    if isinstance(inner_kind, Kind):
        if isinstance(node.value, list):
            return [shown(inner_kind, item) for item in node.value]
        if isinstance(node.value, dict) and isinstance(kind, MapOf):
            return {key: shown(inner_kind, item) for key, item in node.value.items()}
        return shown(inner_kind, node)
    return node.plain()


def _shown_field(field: Field | None, node: Node) -> Any:
    if field is None:
        return node.plain()
    return _hidden(node) if field.secret else shown(field.kind, node)


def _hidden(node: Node) -> Any:
    """Return a secret value as it may be shown: only where it comes from."""
    if isinstance(node.value, dict):
        return {key: _hidden(inner) for key, inner in node.value.items()}
    if isinstance(node.value, list):
        return [_hidden(inner) for inner in node.value]
    text = str(node.value)
    is_reference = re.fullmatch(r"\$\{\s*secrets\.get\([^${}]*\)\s*\}", text)
    return text if is_reference else "[redacted]"
