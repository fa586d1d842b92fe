"""Anthropic's dialect.

Sources: https://docs.anthropic.com/en/api/errors and /en/api/messages-streaming.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..splice import Path
from ._base import (
    ANY_MODEL,
    ANYWHERE,
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
    values_at,
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


_INNER = (
    ("tools", "*"),
    ("messages", "*", "content", "*", "tool", "definition"),
    ("fallbacks", "*"),
)


class _Anthropic(Dialect):
    name = "anthropic"
    needs_json = re.compile(
        r"/(?:messages|messages/count_tokens|messages/batches|complete"
        r"|agents|agents/[^/]+|dreams|sessions)/?"
    )
    needs_model = re.compile(r"/(?:messages|messages/count_tokens|complete)/?")
    # An advisor, and who answers what the model declines:
    # https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool,
    # https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback
    inner = (
        (re.compile(r"/messages(?:/count_tokens)?/?"), _INNER),
        (
            re.compile(r"/messages/batches/?"),
            tuple(("requests", "*", "params", *place) for place in ((), *_INNER)),
        ),
        (re.compile(r"/(?:agents|agents/[^/]+|sessions|dreams)/?"), (ANYWHERE,)),
    )
    choosing = frozenset({"fallbacks", "models", "requests"})
    later_lines = tells_later = re.compile(r"/messages/batches/([^/]+)/results/?")
    # A session has as many answers as it likes, each told to who asks for its events.
    unpriced = re.compile(r"/(?:sessions|dreams)(?:/.*)?")
    makes_nothing = re.compile(
        r"/messages/count_tokens/?|/messages/batches/[^/]+/cancel/?"
        r"|/(?:files|skills|environments|memory_stores|vaults|user_profiles)(?:/.*)?"
        r"|/agents(?:/[^/]+)?/?|/(?:agents|sessions|deployments)/[^/]+/archive/?"
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
        further, tries = _caps_of_fallbacks(document)
        return Output(
            1,
            (name,),
            caps(document, name, least=0),
            thought=_thought_in(document),
            further=further,
            tries=tries,
        )

    def further(self, path: str, document: Mapping[str, Any]) -> Iterator[object]:
        yield from super().further(path, document)
        batched(document.get("requests"))
        bodies = [document, *values_at(document, ("requests", "*", "params"))]
        if any(map(_chooses, bodies)):
            yield ANY_MODEL

    def tier(self, document: Mapping[str, Any]) -> Tier:
        # https://platform.claude.com/docs/en/build-with-claude/fast-mode; its service tiers are
        # about capacity that is paid for before.
        speeds = [document.get("speed"), *values_at(document, ("fallbacks", "*", "speed"))]
        return Tier.UNKNOWN if "fast" in speeds else Tier.WHOLE

    def tokens(self, document: Mapping[str, Any]) -> Tokens | None:
        usage = document.get("usage")
        if usage is None and isinstance(document.get("message"), Mapping):
            usage = document["message"].get("usage")  # message_start
        if not isinstance(usage, Mapping):
            return None
        iterations = usage.get("iterations")
        return _figures(usage) if not iterations else _of_iterations(usage, iterations)

    def later(self, path: str, document: Mapping[str, Any]) -> Iterator[Later]:
        batch = self.tells_later.fullmatch(path)
        for message in values_at(document, ("result", "message")):
            if batch is not None and isinstance(message, dict):
                tokens = self.tokens(message)
                yield from later_of(f"messages/batches/{batch[1]}", message, tokens, batched=True)

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
        tier=_tier(usage),
    )


def _chooses(body: Any) -> bool:
    """Whether others than the models that stand at their places may answer a request."""
    if not isinstance(body, dict):
        return False
    fallbacks = body.get("fallbacks") or []  # "default", or a list
    named = isinstance(fallbacks, list) and all(
        isinstance(one, dict) and one.get("model") is not None for one in fallbacks
    )
    return bool(body.get("models")) or not named


def _tier(usage: Mapping[str, Any]) -> Tier:
    if usage.get("speed") == "fast":
        return Tier.UNKNOWN
    # https://platform.claude.com/docs/en/about-claude/pricing#data-residency-pricing
    return Tier.NEAR if usage.get("inference_geo") == "us" else Tier.WHOLE


def _of_iterations(usage: Mapping[str, Any], iterations: object) -> Tokens:
    """Return what a request used whose steps are told one by one.

    The top-level figures hold all steps but those that compacted the context and those of an
    advisor; of one that was declined and answered by another model each step tells its own model:
    https://docs.anthropic.com/en/docs/build-with-claude/compaction,
    https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool,
    https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback
    """
    steps = [step for step in values_at(iterations, ("*",)) if isinstance(step, Mapping)]
    changed = any(step.get("type") == "fallback_message" for step in steps)
    found = _figures(usage)
    if changed:
        searches = tuple(pair for pair in found.details if pair[0] == "web_searches")
        found = Tokens(
            0, 0, reasoning=found.reasoning, details=searches, is_all=True, tier=found.tier
        )
    others: list[tuple[str | None, Tokens]] = []
    for step in steps:
        kind, model = step.get("type"), step.get("model")
        if kind == "advisor_message" or (changed and kind != "compaction" and model is not None):
            used = _figures(step)._replace(tier=found.tier)
            others.append((model if isinstance(model, str) else None, used))
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
    thought = 0
    for number, entry in enumerate(entries):
        params = entry.get("params") if isinstance(entry, Mapping) else None
        if isinstance(params, Mapping):
            place = ("requests", number, "params")
            named |= caps(params, "max_tokens", within=place, least=0)
            named |= _caps_of_fallbacks(params, place)[0]
            thought = max(thought, _thought_in(params))
    batch = Batch(sum(named.values()), 0, (), 1)
    return Output(max(1, len(entries)), (), named, batch, thought=thought)


def _caps_of_fallbacks(
    document: Mapping[str, Any], within: Path = ()
) -> tuple[dict[Path, int], int]:
    """Return the caps of a request's fallbacks, and how many models may answer it.

    A cap of 0 asks for no answer: it fills the cache of prompts.
    https://platform.claude.com/docs/en/build-with-claude/prompt-caching#pre-warming-the-cache
    """
    named: dict[Path, int] = {}
    asked = document.get("fallbacks")
    fallbacks = asked if isinstance(asked, list) else []
    for number, fallback in enumerate(fallbacks):
        if isinstance(fallback, Mapping):
            place = (*within, "fallbacks", number)
            named |= caps(fallback, "max_tokens", within=place, least=0)
    return named, 1 + len(fallbacks)


def _thought_in(document: Mapping[str, Any]) -> int:
    """Return the most tokens that a model of a request is to think with.

    https://docs.anthropic.com/en/docs/build-with-claude/extended-thinking
    """
    fallbacks = values_at(document, ("fallbacks", "*"))
    return max(figure(one, "thinking", "budget_tokens") for one in (document, *fallbacks))


ANTHROPIC = _Anthropic()
