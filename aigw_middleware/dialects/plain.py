"""Paths of no AI API: errors are plain JSON."""

from __future__ import annotations

from ._base import Dialect, Json


class _Plain(Dialect):
    name = "plain"
    prefixes = ()

    def error(
        self, status: int, code: str, message: str, request_id: str, param: str | None
    ) -> Json:
        return {"error": {"message": message, "code": code}}


PLAIN = _Plain()
