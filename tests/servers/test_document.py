"""The document says of each server what the tests expect of it."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import pytest

from .facts import SERVERS

PAGE = Path(__file__).parents[2] / "docs" / "servers.md"


@pytest.mark.parametrize("name", SERVERS)
def test_the_row_of_a_server(name: str) -> None:
    """Each server has a row, with the words of `facts.py`."""
    row = " | ".join([name, *astuple(SERVERS[name])])
    assert f"| {row} |" in PAGE.read_text().splitlines()
