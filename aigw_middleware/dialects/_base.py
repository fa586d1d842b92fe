"""What the other rooms ask of a dialect."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]


class Dialect:
    """One wire dialect.

    Attributes:
        name: `openai`, `anthropic`, `gemini`, or `plain` for no AI API.
        prefixes: the path prefixes that stand for a provider's base URL.
        needs_json: paths (without the prefix) whose POST body is a JSON object.
        needs_model: those of them whose JSON body must name a `model`.
    """

    name: str
    prefixes: tuple[str, ...] = ("/v1",)
    needs_json: re.Pattern[str] = re.compile(r"(?!)")
    needs_model: re.Pattern[str] = re.compile(r"(?!)")

    def error(
        self, status: int, code: str, message: str, request_id: str, param: str | None
    ) -> Json:
        """Return the body of an error answer."""
        raise NotImplementedError

    def error_event(self, path: str, error: Json) -> bytes:
        """Return `error` as an event of an event stream that answers `path`."""
        return _event(None, error)

    def model(self, path: str, document: Mapping[str, Any] | None) -> object:
        """Return what `path` (without the prefix) and its JSON body name as the model."""
        return None if document is None else document.get("model")

    def __repr__(self) -> str:
        return f"<dialect {self.name}>"


def _event(name: str | None, document: Json) -> bytes:
    import json

    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(document)}\n\n".encode()
