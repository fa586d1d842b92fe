"""Google's Gemini dialect.

Sources: https://ai.google.dev/api and https://cloud.google.com/apis/design/errors (the
`status` names of google.rpc.Code and the HTTP statuses that they map to).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ._base import Dialect, Json

_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

_MODEL = re.compile(r"/(?:models|tunedModels)/([^/:]+)(?::[A-Za-z]+)?/?").fullmatch


is_call = re.compile(r"[^/:]+:[A-Za-z]+/?").fullmatch
"""Whether the rest of a path behind `/models/` is `NAME:VERB`."""


class _Gemini(Dialect):
    name = "gemini"
    prefixes = ("/v1beta", "/v1")
    # The model is in the path: `/models/NAME:generateContent`.
    needs_json = re.compile(
        r"/(?:models|tunedModels)/[^/:]+:[A-Za-z]+/?|/interactions/?"
        r"|/openai/(?:chat/completions|embeddings|images/generations)/?"
    )

    def error(
        self, status: int, code: str, message: str, request_id: str, param: str | None
    ) -> Json:
        name = _STATUSES.get(status, "INTERNAL" if status >= 500 else "INVALID_ARGUMENT")
        return {"error": {"code": status, "message": message, "status": name}}

    def model(self, path: str, document: Mapping[str, Any] | None) -> object:
        match = _MODEL(path)
        if match:
            return match[1]
        return super().model(path, document)


GEMINI = _Gemini()
