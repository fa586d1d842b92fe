"""OpenAI's dialect, which most other providers speak as well.

Sources: https://platform.openai.com/docs/api-reference and its guide to error codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ._base import (
    ANY_MODEL,
    ANYWHERE,
    AnyOf,
    Dialect,
    Json,
    Later,
    Output,
    Tokens,
    _event,
    caps,
    count_of,
    details_of,
    figure,
    later_of,
    named_in,
    objects_in,
    tier_of,
    values_at,
)

SEGMENTS = frozenset(
    {
        "assistants", "audio", "batches", "chat", "chatkit", "completions", "containers",
        "content_provenance_checks", "conversations", "decisions", "edits", "embeddings", "evals",
        "files", "fine_tuning", "images", "live", "models", "moderations", "organization",
        "projects", "realtime", "rerank", "responses", "safety", "skills", "threads", "uploads",
        "vector_stores", "videos",
    }
)  # fmt: skip
"""The first segments of OpenAI's paths below `/v1`."""

_REASONING = re.compile(r"o[0-9]|gpt-(?:[5-9]|[1-9][0-9])", re.IGNORECASE).match
_RUNS = re.compile(r"threads/(?:[^/]+/)?runs").fullmatch
_DONE = re.compile(rb"(?:\A|[\r\n])data: ?\[DONE\]").search
_SAID = (
    "image_generation.completed", "image_edit.completed", "transcript.text.done",
    "speech.audio.done",
)  # fmt: skip
_LAST = ("response.completed", "response.incomplete", "response.failed")
_MADE = {"batch": "batches", "response": "responses", "thread.run": "threads/runs"}
_OVER = ("completed", "incomplete", "failed", "cancelled", "expired")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


# https://openrouter.ai/docs/guides/features/server-tools
_CHOOSING = ("openrouter:advisor", "openrouter:fusion", "openrouter:image", "openrouter:subagent")
_OWN_TOOLS = ("function", "custom")
"""Kinds of tools in which all but their name is a user's own."""


def _of_tool(tool: Any) -> Iterator[object]:
    """Yield the models that a tool has the provider ask."""
    kind = tool.get("type") if type(tool) is dict else None
    if not isinstance(kind, str) or kind in _OWN_TOOLS:
        return
    if kind.startswith("openrouter:"):
        yield from _of_openrouters(kind, tool)
        return
    yield from named_in(tool) if tool.get("model") != "" else ()
    yield from values_at(tool, ("svg", "model"))
    if kind == "image_generation" and not tool.get("model"):
        yield AnyOf("gpt-image-*")


def _of_openrouters(kind: str, tool: dict[str, Any]) -> Iterator[object]:
    """Yield the models of one of OpenRouter's tools: of it, of its advisors, of their tools."""
    holders = list(objects_in(tool, beyond=frozenset({"messages", "content"})))
    named = [name for holder in holders for name in _panel(holder) if name is not None]
    yield from named
    fused = kind.startswith("openrouter:fusion")
    if kind.startswith(_CHOOSING) and not (
        any(holder.get("analysis_models") for holder in holders) if fused else named
    ):
        yield ANY_MODEL


def _panel(holder: dict[str, Any]) -> list[Any]:
    panel = holder.get("analysis_models")
    return [holder.get("model") or None, *(panel if isinstance(panel, list) else [])]


def _of_plugin(plugin: Any) -> Iterator[object]:
    """Yield the models that one of OpenRouter's plugins asks."""
    if type(plugin) is dict:
        yield from _panel(plugin)
        if plugin.get("id") == "fusion" and not plugin.get("analysis_models"):
            yield ANY_MODEL


class _OpenAI(Dialect):
    name = "openai"
    needs_json = re.compile(
        r"/(?:chat/completions|completions|responses|responses/compact|responses/input_tokens"
        r"|embeddings|moderations|audio/speech|images/generations|images/edits|rerank|decisions"
        r"|assistants|assistants/[^/]+|threads/runs|threads/[^/]+/runs|fine_tuning/jobs"
        r"|fine_tuning/alpha/graders/(?:run|validate)|evals|evals/[^/]+/runs"
        r"|realtime/(?:(?:translations/)?client_secrets|sessions|transcription_sessions)"
        r"|realtime/calls/[^/]+/accept|live/sessions)/?"
    )
    # `responses` may continue a stored prompt that names the model, `moderations` and
    # `images/generations` have a default.
    needs_model = re.compile(
        r"/(?:chat/completions|completions|embeddings|audio/speech|rerank|decisions)/?"
    )
    takes_models = re.compile(
        r"/(?:chat/completions|completions|responses|embeddings|audio/speech|rerank)/?"
    )
    takes_form = re.compile(
        r"/(?:audio/transcriptions|audio/translations|images/edits"
        r"|images/variations|videos)/?"
    )
    makes_nothing = re.compile(
        r"/(?:files|uploads|vector_stores|moderations)(?:/.*)?"
        r"|/audio/voice_consents(?:/.*)?"
        r"|/(?:assistants|skills|evals)(?:/[^/]+)?/?|/threads(?:/(?!.*\bruns\b).*)?"
        r"|/threads/[^/]+/runs/[^/]+/?"
        r"|/realtime/calls/[^/]+/(?:hangup|reject|refer)/?"
        r"|/fine_tuning/jobs/[^/]+/(?:pause|resume)/?"
        r"|/responses/input_tokens/?|/.*/cancel/?"
    )
    inner = (
        (re.compile(r"/(?:chat/completions|responses)/?"), ()),  # in tools and plugins
        (re.compile(r"/images/(?:generations|edits)/?"), (("svg",),)),
        (
            re.compile(
                r"/(?:fine_tuning/jobs|fine_tuning/alpha/.*|evals|evals/[^/]+/runs|realtime/.*|live/.*)/?"
            ),
            (ANYWHERE,),
        ),
    )
    choosing = frozenset({"fallbacks", "input", "plugins", "preset", "tools"})
    inner_fields = frozenset({"svg[model]"})
    # The price of a model's tokens is not what they cost, or nobody here learns how many there are.
    unpriced = re.compile(r"/(?:fine_tuning|realtime|live)/.*|/evals/[^/]+/runs/?")
    tells_later = re.compile(
        r"/(?:batches|responses)/[^/]+(?:/cancel)?/?|/batches/?|/threads/[^/]+/runs/[^/]+/?"
    )
    told_again = re.compile(
        r"/(?:responses|threads/(?:[^/]+/)?runs(?:/[^/]+/submit_tool_outputs)?)/?"
    )

    def error(
        self, status: int, code: str, message: str, request_id: str, param: str | None
    ) -> Json:
        type_ = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return {"error": {"message": message, "type": type_, "param": param, "code": code}}

    def cap_name(self, path: str, model: str) -> tuple[str, ...] | None:
        return (_cap_name(model),) if path.strip("/") == "chat/completions" else None

    def output(self, path: str, document: Mapping[str, Any]) -> Output | None:
        kind = path.strip("/")
        if kind == "responses":
            return Output(1, ("max_output_tokens",), caps(document, "max_output_tokens"))
        if kind in ("responses/compact", "images/generations", "images/edits"):
            return Output(count_of(document, "n"), (), {})  # makes tokens, and takes no cap
        if kind == "audio/speech":
            # A minute has some 900 letters, and 1,250 tokens of sound:
            # https://developers.openai.com/api/docs/models/gpt-4o-mini-tts
            text = document.get("input")
            return Output(1, (), {}, fixed=2 * len(text) if isinstance(text, str) else None)
        if kind == "completions":
            prompts = document.get("prompt")
            answers = count_of(document, "n", "best_of")
            if isinstance(prompts, list) and all(isinstance(p, str | list) for p in prompts):
                answers *= max(1, len(prompts))
            return Output(answers, ("max_tokens",), caps(document, "max_tokens"))
        if _RUNS(kind):
            return Output(1, ("max_completion_tokens",), caps(document, "max_completion_tokens"))
        if kind != "chat/completions":
            return None
        named = caps(document, "max_completion_tokens", "max_tokens")
        return Output(count_of(document, "n"), (_cap_name(document.get("model")),), named)

    def further(self, path: str, document: Mapping[str, Any]) -> Iterator[object]:
        yield from super().further(path, document)
        if document.get("fallbacks") or document.get("preset"):  # other gateways take these
            yield ANY_MODEL
        for plugin in values_at(document, ("plugins", "*")):
            yield from _of_plugin(plugin)
        tools = values_at(document, ("tools", "*"))
        tools += values_at(document, ("input", "*", "tools", "*"))
        if self.takes(path).anywhere:
            tools = [
                tool for one in objects_in(document) for tool in values_at(one, ("tools", "*"))
            ]
        for tool in tools:
            yield from _of_tool(tool)

    def tokens(self, document: Mapping[str, Any]) -> Tokens | None:
        usage = document.get("usage")
        if usage is None and isinstance(document.get("response"), dict):
            document = document["response"]  # of response.completed and its like
            usage = document.get("usage")
        if usage is None and isinstance(document.get("x_groq"), dict):
            usage = document["x_groq"].get("usage")
        if not isinstance(usage, dict):
            return None
        if "prompt_tokens" in usage:
            given, said = "prompt_tokens", "completion_tokens"
        else:
            given, said = "input_tokens", "output_tokens"
        total = figure(usage, "total_tokens")
        if given not in usage and said not in usage:
            # Some tell one sum alone, of what was read (rerank); others no tokens but seconds.
            return Tokens(total, 0) if "total_tokens" in usage else None
        taken = figure(usage, given)
        read, made = usage.get(f"{given}_details"), usage.get(f"{said}_details")
        found = Tokens(
            taken,
            # Some count the reasoning beside the answer, and only the sum has both:
            # https://docs.x.ai/docs/guides/reasoning
            max(figure(usage, said), total - taken),
            # DeepSeek's own name for it: https://api-docs.deepseek.com/guides/kv_cache
            figure(read, "cached_tokens") or figure(usage, "prompt_cache_hit_tokens"),
            figure(read, "cache_write_tokens"),
            figure(made, "reasoning_tokens"),
            tier=tier_of(document.get("service_tier")),
        )
        if "tool_usage" in document or not _DRAWN.isdisjoint(document):
            found = found._replace(others=(*_of_tools(document), *_of_drawings(document)))
        heard = usage.get("input_token_details")  # of a transcription
        if not (read or made or heard or "tool_usage" in document):
            return found
        return found._replace(
            details=details_of(
                input_audio_tokens=figure(read, "audio_tokens") or figure(heard, "audio_tokens"),
                input_image_tokens=figure(read, "image_tokens"),
                output_audio_tokens=figure(made, "audio_tokens"),
                output_image_tokens=figure(made, "image_tokens"),
                web_searches=figure(document, "tool_usage", "web_search", "num_requests"),
            )
        )

    def later(self, path: str, document: Mapping[str, Any]) -> Iterator[Later]:
        one = document.get("response", document)  # that of an event which ends a stream
        if not isinstance(one, dict) or one.get("status") not in _OVER:
            return
        kind = _MADE.get(str(one.get("object")))
        batched = kind == "batches"
        if kind == "responses" and one.get("background") is not True:
            return  # it was counted when it was answered
        if kind is not None and isinstance(one.get("id"), str):
            id_ = f"{kind}/{one['id']}"
            yield from later_of(id_, one, self.tokens(one), batched=batched, sums=batched)

    def is_usage_alone(self, document: Mapping[str, Any]) -> bool:
        return document.get("choices") == [] and isinstance(document.get("usage"), Mapping)

    def has_said_all(self, document: Mapping[str, Any]) -> bool:
        is_run = document.get("object") == "thread.run" and document.get("status") in _OVER
        return is_run or document.get("type") in _SAID or self.is_usage_alone(document)

    def is_last(self, event: bytes, document: Mapping[str, Any] | None) -> bool:
        if document is None:
            return b"[DONE" in event and _DONE(event) is not None
        return document.get("type") in _LAST

    def error_event(self, path: str, error: Json) -> bytes:
        if "/responses" in path:
            # The stream of the Responses API has typed events; `error` is one of them, and the
            # SDK raises on any event that holds an `error` object.
            fields = {key: error["error"][key] for key in ("message", "code", "param")}
            return _event("error", {"type": "error", **fields, **error})
        return _event(None, error)


_DRAWN = frozenset({"output", "svg_usage"})


def _of_tools(document: Mapping[str, Any]) -> tuple[tuple[str | None, Tokens], ...]:
    """Return what the model that makes pictures for another one has used; nothing for none.

    https://developers.openai.com/api/docs/guides/tools-image-generation
    """
    told = document.get("tool_usage")
    used = told.get("image_gen") if isinstance(told, Mapping) else None
    if not isinstance(used, Mapping):
        return ()
    found = Tokens(
        figure(used, "input_tokens"),
        figure(used, "output_tokens"),
        figure(used, "cached_tokens"),
        details=details_of(
            input_image_tokens=figure(used, "input_tokens_details", "image_tokens"),
            output_image_tokens=figure(used, "output_tokens_details", "image_tokens"),
            cache_image_read_tokens=figure(used, "cached_tokens_details", "cached_image_tokens"),
        ),
    )
    if not (found.input or found.output):
        return ()
    tools = [tool for tool in values_at(document, ("tools", "*")) if isinstance(tool, Mapping)]
    models = [tool.get("model") for tool in tools if tool.get("type") == "image_generation"]
    model = models[0] if len(models) == 1 else None
    return ((model if isinstance(model, str) else None, found),)


def _of_drawings(document: Mapping[str, Any]) -> tuple[tuple[str | None, Tokens], ...]:
    """Return what models have used that wrote an SVG: of no other figure is it a part."""
    told = [document.get("svg_usage"), *values_at(document, ("output", "*", "svg_usage"))]
    return tuple(
        (
            model if isinstance(model := one.get("model"), str) else None,
            Tokens(
                figure(one, "input_tokens"),
                figure(one, "output_tokens"),
                reasoning=figure(one, "reasoning_tokens"),
            ),
        )
        for one in told
        if isinstance(one, Mapping)
    )


def _cap_name(model: object) -> str:
    """Return the name of a chat's cap.

    OpenAI's reasoning models take the new one alone, many compatible providers only the old one.
    """
    name = str(model).rpartition("/")[2].removeprefix("ft:")
    return "max_completion_tokens" if _REASONING(name) else "max_tokens"


OPENAI = _OpenAI()
