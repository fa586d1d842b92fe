"""Google's Gemini dialect.

Sources: https://ai.google.dev/api and https://cloud.google.com/apis/design/errors (the
`status` names of google.rpc.Code and the HTTP statuses that they map to).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .._headers import header
from ..errors import BodyInvalid
from ..splice import Path
from ._base import (
    ANYWHERE,
    Batch,
    Dialect,
    Json,
    Later,
    Output,
    Tier,
    Tokens,
    batched,
    caps,
    count_of,
    details_of,
    figure,
    later_of,
    tier_of,
    values_at,
)
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

_GENERATES = re.compile(r"/(?:models|tunedModels)/[^/:]+:(?:stream)?[gG]enerateContent/?").fullmatch
_INTERACTIONS = re.compile(r"/interactions/?").fullmatch
_GOES_ON = ("in_progress", "queued")
_BATCHES = re.compile(r"/(?:models|tunedModels)/([^/:]+):batchGenerateContent/?").fullmatch


# In both forms: asked, of tools, said, thought beside that, and read from a cache.
_USAGE = (
    "promptTokenCount", "toolUsePromptTokenCount", "candidatesTokenCount", "thoughtsTokenCount",
    "cachedContentTokenCount",
)  # fmt: skip
_INTERACTION_USAGE = (
    "total_input_tokens", "total_tool_use_tokens", "total_output_tokens", "total_thought_tokens",
    "total_cached_tokens",
)  # fmt: skip

SEGMENTS = frozenset(
    {
        "auth_tokens", "cachedContents", "corpora", "fileSearchStores", "interactions",
        "operations", "tunedModels",
    }
)  # fmt: skip
"""The first segments below `/v1` that only Google has."""
SHARED_SEGMENTS = frozenset(
    {
        "agents", "batches", "credentials", "decisions", "environments", "files", "models",
        "triggers", "voices", "webhooks",
    }
)  # fmt: skip
"""Those that others have too; a header of Google's SDK tells whose are meant."""
UPLOADS = ("/upload/v1beta", "/upload/v1")
"""What stands in the place of `/v1beta` or `/v1` where content is uploaded."""
is_upload = re.compile(
    r"/upload/v1(?:beta)?/(?:files|fileSearchStores/[^/:]+:uploadToFileSearchStore"
    r"|environments/[^/]+/files/.+)/?"
).fullmatch
"""Whether a path is one of https://ai.google.dev/api/files or /api/file-search."""

is_call = re.compile(r"[^/:]+:[A-Za-z]+/?").fullmatch
"""Whether the rest of a path behind `/models/` is `NAME:VERB`."""


class _Gemini(Dialect):
    name = "gemini"
    prefixes = ("/v1beta", "/v1", *UPLOADS)
    # The model is in the path: `/models/NAME:generateContent`.
    model_path = re.compile(r"/(?:models|tunedModels)/([^/:]+)(?::[A-Za-z]+)?/?")
    takes_models = re.compile(r"/openai/(?:chat/completions|embeddings)/?")
    needs_json = re.compile(
        r"/(?:models|tunedModels)/[^/:]+:[A-Za-z]+/?"
        r"|/(?:interactions|decisions|cachedContents|triggers|triggers/[^/:]+)/?"
        r"|/openai/(?:chat/completions|embeddings|images/generations)/?"
    )
    inner = (
        (
            re.compile(r"/interactions/?"),
            (("agent_config",), ("agentConfig",)),
        ),
        (re.compile(r"/triggers(?:/[^/:]+)?/?"), (ANYWHERE,)),
    )
    tells_later = re.compile(
        r"/batches/[^/:]+/?|/interactions/[^/:]+(?:/cancel)?/?"
        r"|/openai/batches(?:/[^/]+(?:/cancel)?)?/?"
    )
    told_again = re.compile(r"/interactions/?")
    makes_nothing = re.compile(
        r"/(?:models|tunedModels)/[^/:]+:countTokens/?|/operations/.*|/batches/[^/:]+:cancel/?"
        r"|/(?:files|fileSearchStores|auth_tokens|webhooks|environments)(?:[/:].*)?"
        r"|/interactions/[^/]+/cancel/?"
    )

    def error(
        self, status: int, code: str, message: str, request_id: str, param: str | None
    ) -> Json:
        name = _STATUSES.get(status, "INTERNAL" if status >= 500 else "INVALID_ARGUMENT")
        return {"error": {"code": status, "message": message, "status": name}}

    def cap_name(self, path: str, model: str) -> tuple[str, ...] | None:
        return OPENAI.cap_name(path.removeprefix("/openai"), model)

    def tier(self, document: Mapping[str, Any]) -> Tier:
        asked = [tier_of(document.get(name)) for name in ("serviceTier", "service_tier")]
        return Tier.UNKNOWN if Tier.UNKNOWN in asked else asked[0]

    def tier_told(self, headers: Sequence[tuple[str, str]]) -> Tier:
        # https://ai.google.dev/gemini-api/docs/priority-inference
        return tier_of(header(headers, "x-gemini-service-tier"))

    def tokens(self, document: Mapping[str, Any]) -> Tokens | None:
        usage = document.get("usageMetadata")
        if not isinstance(usage, Mapping):
            return _of_interaction(document) or OPENAI.tokens(document)  # its OpenAI form
        if "promptTokenCount" not in usage and "candidatesTokenCount" not in usage:
            return Tokens(figure(usage, "totalTokenCount"), 0)  # of a cache that was made
        return _figures(usage, _USAGE)._replace(
            details=details_of(
                web_searches=_searches(document),
                input_audio_tokens=_of_kind(usage, "promptTokensDetails", "AUDIO"),
                output_audio_tokens=_of_kind(usage, "candidatesTokensDetails", "AUDIO"),
                output_image_tokens=_of_kind(usage, "candidatesTokensDetails", "IMAGE"),
                cache_audio_read_tokens=_of_kind(usage, "cacheTokensDetails", "AUDIO"),
            ),
            tier=tier_of(usage.get("serviceTier")),
        )

    def later(self, path: str, document: Mapping[str, Any]) -> Iterator[Later]:
        if path.startswith("/openai/"):
            yield from OPENAI.later(path.removeprefix("/openai"), document)
            return
        one = document.get("interaction", document)
        if not isinstance(one, dict):
            return
        id_, status = one.get("id"), one.get("status")
        if isinstance(id_, str) and isinstance(status, str) and status not in _GOES_ON:
            yield from later_of(f"interactions/{id_}", one, _of_interaction(one), batched=False)
        metadata, name = one.get("metadata"), one.get("name")
        if isinstance(name, str) and isinstance(metadata, dict):
            # Google's REST tells both, its SDK reads the second.
            output = one.get("response") or metadata.get("output")
            for answer in _answers(output):
                tokens = self.tokens(answer)
                if tokens is None and "tokenCount" in answer:  # of an embedding
                    tokens = Tokens(figure(answer, "tokenCount"), 0)
                yield from later_of(name, metadata, tokens, batched=True)

    def is_usage_alone(self, document: Mapping[str, Any]) -> bool:
        return OPENAI.is_usage_alone(document)

    def has_said_all(self, document: Mapping[str, Any]) -> bool:
        if document.get("event_type") == "interaction.completed":
            return True
        candidates = document.get("candidates")
        if not isinstance(candidates, list) or not candidates:
            return OPENAI.has_said_all(document)
        return all(isinstance(c, Mapping) and "finishReason" in c for c in candidates)

    def is_last(self, event: bytes, document: Mapping[str, Any] | None) -> bool:
        # Streams of content have no last event: each candidate has its reason to finish.
        return OPENAI.is_last(event, document)

    def output(self, path: str, document: Mapping[str, Any]) -> Output | None:
        if path.startswith("/openai/"):
            return OPENAI.output(path.removeprefix("/openai"), document)
        if _INTERACTIONS(path):
            if document.get("agent") is not None:
                return _of_agent(document)
            return _of_request(document)._replace(path=("generation_config", "max_output_tokens"))
        if _GENERATES(path):
            return _of_request(document)
        batch = _BATCHES(path)
        return None if batch is None else _of_batch(document, batch[1])


def _of_kind(usage: Mapping[str, Any], name: str, modality: str, count: str = "tokenCount") -> int:
    """Return the tokens of one modality: https://ai.google.dev/api/generate-content#ModalityTokenCount."""
    return sum(
        figure(one, count)
        for one in values_at(usage, (name, "*"))
        if isinstance(one, Mapping) and str(one.get("modality")).upper() == modality
    )


def _of_interaction(document: Mapping[str, Any]) -> Tokens | None:
    """Return what an interaction tells, or the event that ends a streamed one.

    https://ai.google.dev/api/interactions-api
    """
    inner = document.get("interaction")
    one = inner if isinstance(inner, Mapping) else document
    usage = one.get("usage")
    if not isinstance(usage, Mapping) or not any(name in usage for name in _INTERACTION_USAGE):
        return None
    kinds = {
        name: _of_kind(usage, f"{of}_tokens_by_modality", kind, "tokens")
        for name, of, kind in (
            ("input_audio_tokens", "input", "AUDIO"),
            ("output_audio_tokens", "output", "AUDIO"),
            ("output_image_tokens", "output", "IMAGE"),
            ("cache_audio_read_tokens", "cached", "AUDIO"),
        )
    }
    searches = sum(
        figure(tool, "count")
        for tool in values_at(usage, ("grounding_tool_count", "*"))
        if isinstance(tool, Mapping) and tool.get("type") == "google_search"
    )
    return _figures(usage, _INTERACTION_USAGE)._replace(
        details=details_of(web_searches=searches, **kinds), tier=tier_of(one.get("service_tier"))
    )


def _searches(document: Mapping[str, Any]) -> int:
    """Return the searches that an answer has cost: one a prompt before Gemini 3, then each.

    https://ai.google.dev/gemini-api/docs/google-search#pricing
    """
    place = ("candidates", "*", "groundingMetadata", "webSearchQueries", "*")
    number = len(values_at(document, place))
    older = str(document.get("modelVersion")).startswith(("gemini-1", "gemini-2"))
    return min(number, 1) if older else number


def _answers(output: object) -> Iterator[dict[str, Any]]:
    """Yield the answers that stand in what a batch has brought."""
    for kind in ("inlinedResponses", "inlinedEmbedContentResponses"):
        for answer in values_at(output, (kind, "inlinedResponses", "*", "response")):
            if isinstance(answer, dict):
                yield answer


def _of_agent(document: Mapping[str, Any]) -> Output:
    """Return how much an agent may use, which takes no cap of one answer."""
    config = document.get("agent_config")
    named = caps(config, "max_total_tokens") if isinstance(config, Mapping) else {}
    return Output(1, (), {("agent_config", *path): cap for path, cap in named.items()})


def _figures(usage: Mapping[str, Any], names: tuple[str, str, str, str, str]) -> Tokens:
    asked, tools, said, thoughts, cached = (figure(usage, name) for name in names)
    return Tokens(asked + tools, said + thoughts, cached, 0, thoughts)


def _of_request(document: Mapping[str, Any], within: Path = ()) -> Output:
    """Return how much text one request asks for; `within` is where it stands in the body."""
    name = "generation_config" if "generation_config" in document else "generationConfig"
    named: dict[Path, int] = {}
    answers = 1
    for spelled, config in _objects(document, "generationConfig", "generation_config"):
        place = (*within, spelled)
        named |= caps(config, "maxOutputTokens", "max_output_tokens", within=place)
        answers = max(answers, count_of(config, "candidateCount", "candidate_count"))
    return Output(answers, (name, "maxOutputTokens"), named)


def _of_batch(document: Mapping[str, Any], model: str) -> Output:
    """Return how much text the requests in a batch ask for; of one in a file nothing is known.

    Raises:
        BodyInvalid: a cap is none, a request names another model than the batch's path, or there
            are too many requests.
    """
    answers = most = uncapped = 0
    together = 1
    named: dict[Path, int] = {}
    lacking: list[Path] = []
    for place, request in _batched(document):
        named_model = request.get("model")
        if named_model is not None and str(named_model).rpartition("/")[2] != model:
            raise BodyInvalid("A request of the batch names another model than its path.")
        one = _of_request(request, place)
        answers += one.answers
        together = max(together, one.answers)
        named |= one.caps
        if one.cap is None:
            uncapped += one.answers
            lacking.append((*place, *one.path))
        else:
            most += one.cap * one.answers
    return Output(max(1, answers), (), named, Batch(most, uncapped, tuple(lacking), together))


def _batched(document: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the requests that stand in a batch's body, each with its path."""
    for outer, batch in _objects(document, "batch"):
        for name, config in _objects(batch, "inputConfig", "input_config"):
            for inner, inlined in _objects(config, "requests"):
                place = (outer, name, inner, "requests")
                for number, entry in enumerate(batched(inlined.get("requests"))):
                    if isinstance(entry, Mapping):
                        for last, request in _objects(entry, "request"):
                            yield (*place, number, last), request


def _objects(document: Mapping[str, Any], *names: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the members `names`: protobuf's JSON has two spellings of every name.

    Raises:
        BodyInvalid: one is no object.
    """
    for name in names:
        value = document.get(name)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise BodyInvalid(f"{name} must be an object.")
        yield name, value


GEMINI = _Gemini()
