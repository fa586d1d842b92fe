"""Texts with `${...}` in them, completed by the value of an expression."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from .expressions import TOKEN, Expression, ExpressionError, Scope
from .state import State
from .variables import time_text


class Template:
    """A text that is completed for each request.

    Args:
        text: the text.
        scope: what its expressions may read.

    Raises:
        ExpressionError: one of them cannot be used, or is not closed.
    """

    def __init__(self, text: str, scope: Scope) -> None:
        self.text = text
        self._parts: list[str | Expression] = []
        position = 0
        while (start := text.find("${", position)) >= 0:
            end = _end(text, start)
            if start > position:
                self._parts.append(text[position:start])
            try:
                self._parts.append(Expression(text[start + 2 : end], scope))
            except ExpressionError as error:
                raise ExpressionError(str(error), start + 2 + error.offset) from None
            position = end + 1
        if position < len(text) or not self._parts:
            self._parts.append(text[position:])

    def value(self, state: State) -> Any:
        """Return its value; that of its expression where it is nothing else.

        Raises:
            EvaluationError: an expression has none.
        """
        if len(self._parts) == 1 and isinstance(self._parts[0], Expression):
            return self._parts[0].evaluate(state)
        return self.text_for(state)

    def text_for(self, state: State) -> str:
        """Return its value as a text.

        Raises:
            EvaluationError: an expression has none.
        """
        return "".join(
            part if isinstance(part, str) else shown(part.evaluate(state)) for part in self._parts
        )


def completed(value: Any, state: State) -> Any:
    """Return a value with all its templates completed, however deep they stand."""
    if isinstance(value, Template):
        return value.value(state)
    if isinstance(value, Mapping):
        return {key: completed(one, state) for key, one in value.items()}
    if isinstance(value, list):
        return [completed(one, state) for one in value]
    return value


def shown(value: Any) -> str:
    """Return a value of an expression as a text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, list) and len(value) == 1:
        return shown(value[0])  # a header's only value
    if isinstance(value, list | dict):
        return json.dumps(value, separators=(",", ":"), default=shown)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


def _end(text: str, start: int) -> int:
    """Return where the `${` at `start` is closed; braces in its strings don't count."""
    depth, position = 0, start + 1
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            break
        if match.lastgroup == "sign":
            depth += (match[0] == "{") - (match[0] == "}")
            if depth == 0:
                return position
        position = match.end()
    raise ExpressionError("${ is not closed by }", start)
