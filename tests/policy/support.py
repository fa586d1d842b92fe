"""What the tests of documents share."""

from __future__ import annotations

import json
from typing import Any

from aigw_middleware import StoreUnavailable, TrafficPolicy

from ..support import Inner


def rule(*actions: dict[str, Any], when: list[str] | None = None, name: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"actions": list(actions)}
    if when is not None:
        found["expressions"] = when
    if name:
        found["name"] = name
    return found


def action(type_: str, **config: Any) -> dict[str, Any]:
    """Return an action; `from_` stands for `from`."""
    return {"type": type_, "config": {key.rstrip("_"): value for key, value in config.items()}}


def document(*requests: dict[str, Any], answers: list[dict[str, Any]] | None = None) -> str:
    found: dict[str, Any] = {"on_http_request": list(requests)}
    if answers is not None:
        found["on_http_response"] = answers
    return json.dumps(found)


def policy(*requests: Any, answers: Any = None, app: Any = None, **options: Any) -> Any:
    """Return an app behind rules, `Inner` by default."""
    return TrafficPolicy.parse(document(*requests, answers=answers), **options)(app or Inner())


def building(fails: list[bool]) -> Any:
    """Return what builds an app that answers with its document, while `fails[0]` is not set."""

    def build(text: bytes) -> Any:
        if fails[0]:
            raise StoreUnavailable("down")
        return Inner((text,))

    return build
