"""Anthropic's dialect.

Sources: https://docs.anthropic.com/en/api/errors and /en/api/messages-streaming.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..splice import Path
from ._base import (
    Batch,
    Dialect,
    Json,
    Later,
    Output,
    Tier,
    Tokens,
    _event,
    batched,
    caps,
    details_of,
    figure,
    later_of,
    standing,
)

SEGMENTS = frozenset({"complete", "messages"})
"""The first segments below `/v1` that only Anthropic has."""
SHARED_SEGMENTS = frozenset(
    {
        "agents", "deployment_runs", "deployments", "dreams", "environments", "files",
        "memory_stores", "models", "sessions", "skills", "tunnels", "user_profiles", "vaults",
    }
)  # fmt: skip
"""Those that others may have too; `anthropic-version` tells whose are meant."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


_INNER = (("tools", "*", "model"), ("fallbacks", "*", "model"), ("fallbacks",))


class _Anthropic(Dialect):
    name = "anthropic"
    needs_json = re.compile(r"/(?:messages|messages/count_tokens|messages/batches|complete)/?")
    needs_model = re.compile(r"/(?:messages|messages/count_tokens|complete)/?")
    # An advisor, and who answers what the model declines:
    # https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool,
    # https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback
    inner = (
        (re.compile(r"/messages(?:/count_tokens)?/?"), _INNER),
        (
            re.compile(r"/messages/batches/?"),
            tuple(("requests", "*", "params", *place) for place in (("model",), *_INNER)),
        ),
    )
    makes_nothing = re.compile(
        r"/messages/count_tokens/?|/messages/batches/[^/]+/cancel/?|/(?:files|skills)(?:/.*)?"
    )

    def error(
        self, status: int, code: str, message: str, request_id: str, param: str | None
    ) -> Json:
        type_ = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {
            "type": "error",
            "error": {"type": type_, "message": message},
            "request_id": request_id,
        }

    def output(self, path: str, document: Mapping[str, Any]) -> Output | None:
        kind = path.strip("/")
        if kind == "messages/batches":
            return _of_batch(document.get("requests"))
        if kind not in ("messages", "complete"):
            return None
        name = "max_tokens" if kind == "messages" else "max_tokens_to_sample"
        named = caps(document, name)
        for place, fallback in standing(document, ("fallbacks", "*")):
            if isinstance(fallback, Mapping):
                named |= caps(fallback, "max_tokens", within=place)
        # https://docs.anthropic.com/en/docs/build-with-claude/extended-thinking
        return Output(1, (name,), named, thought=figure(document, "thinking", "budget_tokens"))

    def tier(self, document: Mapping[str, Any]) -> Tier:
        # https://platform.claude.com/docs/en/build-with-claude/fast-mode; its service tiers are
        # about capacity that is paid for before.
        speeds = [document.get("speed")]
        speeds += [speed for _, speed in standing(document, ("fallbacks", "*", "speed"))]
        return Tier.UNKNOWN if "fast" in speeds else Tier.WHOLE

    def tokens(self, document: Mapping[str, Any]) -> Tokens | None:
        usage = document.get("usage")
        if usage is None and isinstance(document.get("message"), Mapping):
            usage = document["message"].get("usage")  # message_start
        if not isinstance(usage, Mapping):
            return None
        iterations = usage.get("iterations")
        return _figures(usage) if not iterations else _of_iterations(usage, iterations)

    tells_later = re.compile(r"/messages/batches/([^/]+)/results/?")

    def later(self, path: str, document: Mapping[str, Any]) -> Iterator[Later]:
        batch = self.tells_later.fullmatch(path)
        for _, message in standing(document, ("result", "message")):
            if batch is not None and isinstance(message, dict):
                tokens = self.tokens(message)
                found = later_of(f"messages/batches/{batch[1]}", message, tokens, batched=True)
                yield from () if found is None else (found,)

    def has_said_all(self, document: Mapping[str, Any]) -> bool:
        delta = document.get("delta")  # of message_delta, the last event but one
        return isinstance(delta, Mapping) and delta.get("stop_reason") is not None

    def is_last(self, event: bytes, document: Mapping[str, Any] | None) -> bool:
        return document is not None and document.get("type") == "message_stop"

    def error_event(self, path: str, error: Json) -> bytes:
        return _event("error", error)


def _figures(usage: Mapping[str, Any]) -> Tokens:
    cached = figure(usage, "cache_read_input_tokens")
    written = figure(usage, "cache_creation_input_tokens")
    return Tokens(
        figure(usage, "input_tokens") + cached + written,
        figure(usage, "output_tokens"),
        cached,
        written,
        figure(usage, "output_tokens_details", "thinking_tokens"),
        details_of(
            cache_write_1h_tokens=figure(usage, "cache_creation", "ephemeral_1h_input_tokens"),
            web_searches=figure(usage, "server_tool_use", "web_search_requests"),
        ),
        tier=Tier.UNKNOWN if usage.get("speed") == "fast" else Tier.WHOLE,
    )


def _of_iterations(usage: Mapping[str, Any], iterations: object) -> Tokens:
    """Return what a request used whose steps are told one by one.

    The top-level figures hold all steps but those that compacted the context and those of an
    advisor; of one that was declined and answered by another model each step tells its own model:
    https://docs.anthropic.com/en/docs/build-with-claude/compaction,
    https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool,
    https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback
    """
    steps = [one for one in standing(iterations, ("*",)) if isinstance(one[1], Mapping)]
    kinds = [step.get("type") for _, step in steps]
    changed = "fallback_message" in kinds
    found = _figures(usage)
    if changed:
        searches = tuple(pair for pair in found.details if pair[0] == "web_searches")
        found = Tokens(
            0, 0, reasoning=found.reasoning, details=searches, is_all=True, tier=found.tier
        )
    others: list[tuple[str | None, Tokens]] = []
    for kind, (_, step) in zip(kinds, steps, strict=True):
        model = step.get("model")
        if kind == "advisor_message" or (changed and kind != "compaction" and model is not None):
            others.append((model if isinstance(model, str) else None, _figures(step)))
        elif kind == "compaction" or changed:
            found = found.plus(_figures(step))
    return found._replace(others=tuple(others))


def _of_batch(requests: object) -> Output:
    """Return how much text a batch asks for; a request without a cap is none.

    Raises:
        BodyInvalid: a cap is none, or there are too many requests.
    """
    entries = batched(requests)
    named: dict[Path, int] = {}
    for number, entry in enumerate(entries):
        params = entry.get("params") if isinstance(entry, Mapping) else None
        if isinstance(params, Mapping):
            named |= caps(params, "max_tokens", within=("requests", number, "params"))
    return Output(max(1, len(entries)), (), named, Batch(sum(named.values()), 0, (), 1))


ANTHROPIC = _Anthropic()
