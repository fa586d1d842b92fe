"""The JSON Schema of documents, for editors that complete and check while one writes."""

from __future__ import annotations

from typing import Any

from .policy import ALL_ACTIONS, MOST_RULES, REQUEST, RESPONSE

Json = dict[str, Any]


def document_schema() -> Json:
    """Return the JSON Schema (draft 2020-12) of a document."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Traffic Policy of aigw-middleware",
        "type": "object",
        "properties": {
            REQUEST: _rules("request", "rules for requests, in their order"),
            RESPONSE: _rules("response", "rules for answers, in their order"),
        },
        "additionalProperties": False,
        "anyOf": [{"required": [REQUEST]}, {"required": [RESPONSE]}],
        "$defs": {
            "request": {"oneOf": [_action(name) for name in ALL_ACTIONS]},
            "response": {
                "oneOf": [_action(n) for n, action in ALL_ACTIONS.items() if action.on_answer]
            },
        },
    }


def _rules(phase: str, doc: str) -> Json:
    action = {"$ref": f"#/$defs/{phase}"}
    rule = {
        "type": "object",
        "properties": {
            "name": {"type": ["string", "null"]},
            "expressions": {
                "type": ["array", "null"],
                "items": {"type": "string"},
                "description": "CEL; all must be true",
            },
            "actions": {"type": "array", "items": action, "minItems": 1},
        },
        "required": ["actions"],
        "additionalProperties": False,
    }
    return {
        "type": ["array", "null"],
        "items": {"anyOf": [rule, action]},
        "maxItems": MOST_RULES,
        "description": doc,
    }


def _action(name: str) -> Json:
    action = ALL_ACTIONS[name]
    needs = any(field.required for field in action.fields.fields.values())
    return {
        "type": "object",
        "description": action.doc,
        "properties": {"type": {"const": name}, "config": action.fields.schema()},
        "required": ["type", "config"] if needs else ["type"],
        "additionalProperties": False,
    }
