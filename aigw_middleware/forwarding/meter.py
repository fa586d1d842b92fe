"""Read what was used off an answer as it passes, from a copy: bytes in, figures out.

The bytes that the client gets are those of the provider, but for one event: the usage of an
OpenAI stream that was asked for by us and not by the client.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from ..dialects import Dialect, Tier, Tokens, merged_details
from .codings import CODINGS, decompressor

MOST = 32 * 1024 * 1024
"""Bytes of a whole answer that are read; of a longer one nothing is known."""
MOST_EVENT = 8 * 1024 * 1024
"""Bytes of one event that are held together; a longer one passes unread."""
BYTES_A_TOKEN = 4
"""By what the text of an answer that broke off is counted, where nobody has told its tokens."""

# The text of what is said, in every dialect, as it stands in an event.
_TEXT = re.compile(
    rb'"(?:content|text|delta|partial_json|thinking|reasoning_content|arguments)"\s*:\s*'
    rb'"((?:[^"\\]|\\.)*)"'
).findall
# Only these are looked into: those with usage (in every other one it may be null), and the last.
_MAY_TELL = re.compile(
    rb'usage"\s*:\s*(?:data:\s*)?\{|usageMetadata|message_stop|response\.(?:completed|incomplete|failed)|\[DONE'
    rb'|"error"\s*(?::\s*(?:data:\s*)?\{|[,}])'
).search
_FEW = 2048
"""Bytes of events whose text is counted together."""
event_end = re.compile(rb"\r\n\r\n|\n\n|\r\r").search
"""Finds the end of an event."""
_END_BYTES = 3
"""Of an event's end at most so many bytes stand in one piece and the last in the next."""


Seen = Callable[[dict[str, Any]], None]


class Meter(Protocol):
    """Reads one answer."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came; return those for the client, which may be none yet."""

    def finish(self) -> bytes:
        """Take note of the end; return what was held back."""

    @property
    def tokens(self) -> Tokens | None:
        """What was used, as far as it was told."""

    @property
    def is_over(self) -> bool:
        """Whether the answer's own last event has been read."""

    @property
    def is_complete(self) -> bool:
        """Whether the answer has come to its own end."""

    @property
    def has_failed(self) -> bool:
        """Whether the answer tells of an error of its own."""

    @property
    def text_bytes(self) -> int:
        """How much text has passed."""


class WholeMeter:
    """Reads an answer that is one JSON document (or an array of them, as Gemini streams).

    Args:
        dialect: whose it is.
        coding: its Content-Encoding.
        seen: called with each document that was read.
    """

    is_over = False
    has_failed = False

    def __init__(self, dialect: Dialect, coding: str, *, seen: Seen | None = None) -> None:
        self._dialect = dialect
        self._seen = seen
        self._decode = _decoder(coding)
        self._data: bytearray | None = bytearray()
        self._tokens: Tokens | None = None
        self._read = False

    def feed(self, data: bytes) -> bytes:
        if self._data is not None:
            try:
                self._data += self._decode(data)
            except zlib.error:
                self._data = None
            else:
                if len(self._data) > MOST:
                    self._data = None
        return data

    def finish(self) -> bytes:
        self._look()
        return b""

    @property
    def tokens(self) -> Tokens | None:
        self._look()
        return self._tokens

    @property
    def is_complete(self) -> bool:
        self._look()
        return self._read

    @property
    def text_bytes(self) -> int:
        return sum(map(len, _TEXT(self._data or b"")))

    def _look(self) -> None:
        if self._read or not self._data:
            return
        document = document_of(bytes(self._data))
        if document is None:
            return  # not all of it has come
        self._read = True
        found = document if isinstance(document, list) else [document]
        for one in found:
            if isinstance(one, dict):
                self._tokens = _merged(self._tokens, self._dialect.tokens(one))
                if self._seen is not None:
                    self._seen(one)


class EventMeter:
    """Reads an event stream (https://html.spec.whatwg.org/#parsing-an-event-stream).

    Args:
        dialect: whose it is.
        coding: its Content-Encoding; of one that is not known here nothing is read.
        hides_usage: whether the event that holds only the usage is left out.
        told: called when more is known of what was used, and with whether all text has come.
        seen: called with each document that tells something.
    """

    def __init__(
        self,
        dialect: Dialect,
        coding: str,
        *,
        hides_usage: bool,
        told: Callable[[Tokens, bool], None],
        seen: Seen | None = None,
    ) -> None:
        self._dialect = dialect
        self._seen = seen
        self._decode = None if coding in ("", "identity") else _decoder(coding)
        self._hides = hides_usage and self._decode is None
        self._told = told
        self._held: list[bytes] = []  # the pieces of an event that has not ended
        self._held_bytes = 0
        self._passing = False
        self._finished = False
        self._uncounted: list[bytes] = []
        self._uncounted_bytes = 0
        self._text_bytes = 0
        self.tokens: Tokens | None = None
        self.is_over = False
        self.has_failed = False

    @property
    def text_bytes(self) -> int:
        self._count_all()
        return self._text_bytes

    def feed(self, data: bytes) -> bytes:
        if self._decode is not None:
            try:
                self._take(self._decode(data))
            except zlib.error:
                self._decode = lambda _: b""  # what follows cannot be read either
            return data
        passed = self._take(data)
        return passed if self._hides else data

    @property
    def is_complete(self) -> bool:
        return self.is_over or self._finished

    def finish(self) -> bytes:
        self._finished = True
        held = self._let_go()
        return held if self._hides else b""

    def _take(self, data: bytes) -> bytes:
        """Read whole events; return those that pass."""
        if not self._held and data.endswith(b"\n\n") and not _MAY_TELL(data):
            self._count(data)  # whole events, of which none tells anything
            self._passing = False
            return data
        passed: list[bytes] = []
        if self._held and event_end(self._held_tail() + data) is None:
            self._hold(data)  # joined once, when it has ended: a picture comes in a thousand pieces
        else:
            buffer = self._let_go() + data
            start = 0
            while (end := event_end(buffer, start)) is not None:
                event = buffer[start : end.end()]
                start = end.end()
                if self._passing or not self._read(event):
                    passed.append(event)
                self._passing = False
            self._hold(buffer[start:])
        if self._held_bytes > MOST_EVENT:
            passed.append(self._let_go())
            self._passing = True
        return b"".join(passed)

    def _hold(self, data: bytes) -> None:
        if data:
            self._held.append(data)
            self._held_bytes += len(data)

    def _held_tail(self) -> bytes:
        """Return the last bytes that are held: those with which an event's end may begin."""
        return b"".join(self._held[-_END_BYTES:])[-_END_BYTES:]

    def _let_go(self) -> bytes:
        held = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        return held

    def _read(self, event: bytes) -> bool:
        """Read an event; whether it is left out."""
        self._count(event)
        found = document_of(data_of(event)) if _MAY_TELL(event) else None
        document = found if isinstance(found, dict) else None
        self.is_over = self.is_over or self._dialect.is_last(event, document)
        tokens = None if document is None else self._dialect.tokens(document)
        if document is not None and (
            isinstance(document.get("error"), dict)
            or document.get("type") in ("error", "response.failed")
        ):
            self.has_failed = True
        if document is None or tokens is None:
            return False
        self.tokens = _merged(self.tokens, tokens)
        if self._seen is not None:
            self._seen(document)
        if self.tokens is not None:
            self._told(self.tokens, self.is_over or self._dialect.has_said_all(document))
        return self._hides and self._dialect.is_usage_alone(document)

    def _count(self, data: bytes) -> None:
        """Have the text in whole events counted, some of them together."""
        self._uncounted.append(data)
        self._uncounted_bytes += len(data)
        if self._uncounted_bytes > _FEW:
            self._count_all()

    def _count_all(self) -> None:
        self._text_bytes += sum(map(len, _TEXT(b"".join(self._uncounted))))
        self._uncounted.clear()
        self._uncounted_bytes = 0


def data_of(event: bytes) -> bytes:
    """Return the data of an event."""
    lines = [line for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(line[5:].lstrip(b" ") for line in lines)


def document_of(data: bytes) -> Any:
    """Return what stands in JSON; None where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, not all of it, or too deep
        return None


def _merged(known: Tokens | None, more: Tokens | None) -> Tokens | None:
    """Return the larger of each figure: streams tell sums, some of them in parts."""
    if known is None or more is None or more.is_all:
        return more or known
    if known.is_all:
        return known  # what is told plainly after it leaves out a part
    return Tokens(
        max(known.input, more.input),
        max(known.output, more.output),
        max(known.cached, more.cached),
        max(known.written, more.written),
        max(known.reasoning, more.reasoning),
        merged_details(max, known.details, more.details),
        more.others or known.others,
        False,
        known.tier if more.tier is Tier.WHOLE else more.tier,
    )


def _decoder(coding: str) -> Callable[[bytes], bytes]:
    """Return what takes a coding off, piece by piece; nothing for one that is not known."""
    if coding in ("", "identity"):
        return bytes
    if coding in CODINGS:
        reader = decompressor(coding)
        return lambda data: reader.decompress(data, MOST)
    return lambda data: b""
