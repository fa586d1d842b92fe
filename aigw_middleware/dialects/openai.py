"""OpenAI's dialect, which most other providers speak as well.

Sources: https://platform.openai.com/docs/api-reference and its guide to error codes.
"""

from __future__ import annotations

import re

from ._base import Dialect, Json, _event

SEGMENTS = frozenset(
    {
        "assistants", "audio", "batches", "chat", "chatkit", "completions", "containers",
        "conversations", "edits", "embeddings", "evals", "files", "fine_tuning", "images",
        "models", "moderations", "organization", "projects", "realtime", "rerank", "responses",
        "skills", "threads", "uploads", "vector_stores", "videos",
    }
)  # fmt: skip
"""The first segments of OpenAI's paths below `/v1`."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class _OpenAI(Dialect):
    name = "openai"
    needs_json = re.compile(
        r"/(?:chat/completions|completions|responses|responses/compact|responses/input_tokens"
        r"|embeddings|moderations|audio/speech|images/generations|rerank)/?"
    )
    # `responses` may continue a stored prompt that names the model, `moderations` and
    # `images/generations` have a default.
    needs_model = re.compile(r"/(?:chat/completions|completions|embeddings|audio/speech|rerank)/?")

    def error(
        self, status: int, code: str, message: str, request_id: str, param: str | None
    ) -> Json:
        type_ = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return {"error": {"message": message, "type": type_, "param": param, "code": code}}

    def error_event(self, path: str, error: Json) -> bytes:
        if "/responses" in path:
            # The stream of the Responses API has typed events; `error` is one of them, and the
            # SDK raises on any event that holds an `error` object.
            fields = {key: error["error"][key] for key in ("message", "code", "param")}
            return _event("error", {"type": "error", **fields, **error})
        return _event(None, error)


OPENAI = _OpenAI()
