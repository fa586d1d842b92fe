"""What the six apps have in common: what they answer with, and how a test looks inside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROBE = "test.probe"
"""The environ key under which a test hands its `Probe` to the app."""

CHUNKS = (b"one\n", b"two\n", b"three\n")
FILES = Path(__file__).parent / "files"
FILE = "report.bin"
"""What is downloaded: each byte once, so that a changed encoding would show."""


class Probe:
    """What an app saw and did during one request.

    Attributes:
        environ: a copy of the environ as a view saw it; empty where none was reached.
        produced: the chunks of the stream that were asked for, in their order.
        ended: how often the stream's generator came to its end or was closed.
    """

    def __init__(self) -> None:
        self.environ: dict[str, Any] = {}
        self.produced: list[bytes] = []
        self.ended = 0


def look(environ: dict[str, Any]) -> Probe:
    """Tell the test what a view sees; every view calls it first."""
    probe: Probe = environ[PROBE]
    probe.environ = dict(environ)
    return probe


def chunks(probe: Probe) -> Iterator[bytes]:
    """Yield the stream's chunks, and tell the test of each one before it is handed out."""
    try:
        for chunk in CHUNKS:
            probe.produced.append(chunk)
            yield chunk
    finally:
        probe.ended += 1


def lowered(headers: Any) -> dict[str, str]:
    """Return headers as a framework gives them, the names in lower case."""
    return {name.lower().replace("_", "-"): value for name, value in headers.items()}
