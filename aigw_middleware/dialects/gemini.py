"""Google's Gemini dialect.

Sources: https://ai.google.dev/api and https://cloud.google.com/apis/design/errors (the
`status` names of google.rpc.Code and the HTTP statuses that they map to).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import BodyInvalid
from ._base import Dialect, Json, Output, Tokens, caps, count_of, figure
from .openai import OPENAI

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

_GENERATES = re.compile(
    r"/(?:models|tunedModels)/[^/:]+:(?:stream)?[gG]enerateContent/?|/interactions/?"
).fullmatch


is_call = re.compile(r"[^/:]+:[A-Za-z]+/?").fullmatch
"""Whether the rest of a path behind `/models/` is `NAME:VERB`."""


class _Gemini(Dialect):
    name = "gemini"
    prefixes = ("/v1beta", "/v1")
    # The model is in the path: `/models/NAME:generateContent`.
    model_path = re.compile(r"/(?:models|tunedModels)/([^/:]+)(?::[A-Za-z]+)?/?")
    takes_models = re.compile(r"/openai/(?:chat/completions|embeddings)/?")
    needs_json = re.compile(
        r"/(?:models|tunedModels)/[^/:]+:[A-Za-z]+/?|/interactions/?"
        r"|/openai/(?:chat/completions|embeddings|images/generations)/?"
    )

    def error(
        self, status: int, code: str, message: str, request_id: str, param: str | None
    ) -> Json:
        name = _STATUSES.get(status, "INTERNAL" if status >= 500 else "INVALID_ARGUMENT")
        return {"error": {"code": status, "message": message, "status": name}}

    def cap_name(self, path: str, model: str) -> tuple[str, ...] | None:
        return OPENAI.cap_name(path.removeprefix("/openai"), model)

    def tokens(self, document: Mapping[str, Any]) -> Tokens | None:
        usage = document.get("usageMetadata")
        if not isinstance(usage, Mapping):
            return OPENAI.tokens(document)  # its OpenAI form
        thoughts = figure(usage, "thoughtsTokenCount")
        return Tokens(
            figure(usage, "promptTokenCount") + figure(usage, "toolUsePromptTokenCount"),
            figure(usage, "candidatesTokenCount") + thoughts,
            figure(usage, "cachedContentTokenCount"),
            0,
            thoughts,
        )

    def is_usage_alone(self, document: Mapping[str, Any]) -> bool:
        return OPENAI.is_usage_alone(document)

    def is_last(self, event: bytes, document: Mapping[str, Any] | None) -> bool:
        # Its own streams have no last event: each candidate has a reason of its own to finish.
        return OPENAI.is_last(event, document)

    def output(self, path: str, document: Mapping[str, Any]) -> Output | None:
        if path.startswith("/openai/"):
            return OPENAI.output(path.removeprefix("/openai"), document)
        if not _GENERATES(path):
            return None
        # protobuf's JSON has two spellings of every name.
        name = "generation_config" if "generation_config" in document else "generationConfig"
        named: dict[tuple[str, ...], int] = {}
        answers = 1
        for spelled in ("generationConfig", "generation_config"):
            config = document.get(spelled)
            if config is None:
                continue
            if not isinstance(config, Mapping):
                raise BodyInvalid(f"{spelled} must be an object.")
            named |= caps(config, "maxOutputTokens", "max_output_tokens", within=spelled)
            answers = max(answers, count_of(config, "candidateCount", "candidate_count"))
        return Output(answers, (name, "maxOutputTokens"), named)


GEMINI = _Gemini()
