"""Hundreds of streams on one worker, held open and left all at once (STR-6)."""

from __future__ import annotations

import asyncio

import pytest

from aigw_middleware import open_store
from benchmarks.streams import held


@pytest.mark.parametrize(("worker_class", "count"), [("gthread", 200), ("gevent", 1000)])
def test_streams_are_held_and_end(worker_class: str, count: int, sqlite_url: str) -> None:
    """Every event arrives at each of them; with the clients gone no provider is left waiting."""
    _, token = open_store(sqlite_url).keys.create()
    seen = asyncio.run(held(worker_class, count, sqlite_url, token))
    assert (seen.first, seen.second, seen.left) == (count, count, 0)
