"""Show the stack that a document builds, layer by layer; what is secret is not shown."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .fields import shown
from .policy import CompiledAction, CompiledRule, TrafficPolicy

_CLASSES = {
    "restrict-ips": "IPAllowlist",
    "rate-limit": "RateLimiter",
    "jwt-validation": "JWTAuth",
    "add-headers": "HeaderRewriter",
    "remove-headers": "HeaderRewriter",
    "api-key-auth": "KeyAuth",
    "restrict-models": "ModelAccess",
}


def layers(policy: TrafficPolicy) -> Iterator[str]:
    """Yield the lines that show a document's rules, the outermost first."""
    for phase, rules in policy.rules.items():
        if rules:
            yield phase
        for rule in rules:
            yield from _rule(rule, phase)


def _rule(rule: CompiledRule, phase: str) -> Iterator[str]:
    yield f"  {rule.place.label.removeprefix(phase).strip()}"
    for expression in rule.expressions:
        yield f"    if {' '.join(expression.source.split())}"
    for action in rule.actions:
        yield f"    {action.type}{_built(action)}"
        options = shown(action.action.fields, action.node)
        for name, value in options.items() if isinstance(options, dict) else ():
            yield f"      {name}: {json.dumps(value, ensure_ascii=False)}"


def _built(action: CompiledAction) -> str:
    if action.type == "ai-gateway":
        keyed = action.config.get("authentication") != "none"
        return f" ({'KeyAuth, ' if keyed else ''}ModelAccess, UpstreamForwarder)"
    name = _CLASSES.get(action.type)
    return f" ({name})" if name else ""
