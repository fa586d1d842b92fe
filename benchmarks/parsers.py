"""Reading an answer: our parser against httptools (llhttp), in its cost and in what it refuses."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from aigw_middleware.errors import UpstreamUnreachable
from aigw_middleware.forwarding.http1 import ChunkedReader, framing, parse_head

from .table import print_table

HEADERS = (
    b"HTTP/1.1 200 OK\r\nDate: Thu, 26 Nov 2026 12:00:00 GMT\r\nContent-Type: application/json\r\n"
    b"x-request-id: req_0123456789\r\nopenai-processing-ms: 412\r\nopenai-version: 2020-10-01\r\n"
    b"x-ratelimit-limit-requests: 10000\r\nx-ratelimit-remaining-requests: 9999\r\n"
    b"strict-transport-security: max-age=31536000\r\ncf-cache-status: DYNAMIC\r\n"
)
BODY = b"x" * 1000
WHOLE = HEADERS + b"Content-Length: 1000\r\n\r\n" + BODY
EVENT = b'data: {"choices": [{"delta": {"content": "word "}}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
CHUNKED = HEADERS + b"Transfer-Encoding: chunked\r\n\r\n"

OK = b"HTTP/1.1 200 OK\r\n"
IN_CHUNKS = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ODD = {
    "a bare line feed ends a header": OK + b"A: b\nContent-Length: 0\r\n\r\n",
    "a folded header": OK + b"A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "a space before the colon": OK + b"Content-Length : 0\r\n\r\n",
    "a NUL in a value": OK + b"A: b\0c\r\nContent-Length: 0\r\n\r\n",
    "a bare CR in a value": OK + b"A: b\rc\r\nContent-Length: 0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\nabcde",
    "length and chunked": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "another coding": OK + b"Transfer-Encoding: gzip\r\n\r\nabc",
    "a sign in a length": OK + b"Content-Length: +5\r\n\r\nabcde",
    "no such status": b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
    "two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "another version": b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a chunk's size with a prefix": IN_CHUNKS + b"0x5\r\nabcde\r\n0\r\n\r\n",
    "a chunk longer than its size": IN_CHUNKS + b"1\r\nab\r\n0\r\n\r\n",
    "a bare line feed behind a size": IN_CHUNKS + b"1\na\r\n0\r\n\r\n",
}  # fmt: skip


def ours(data: bytes) -> bytes:
    """Read an answer with our parser; return its body."""
    head, _, rest = data.partition(b"\r\n\r\n")
    answer = parse_head(head)
    frame = framing("GET", answer)
    if frame.chunked:
        reader = ChunkedReader()
        body = reader.feed(rest)
        if reader.broken is not None:
            raise reader.broken
        return body
    return rest[: frame.length]


def theirs() -> Callable[[bytes], bytes]:
    """Return what reads an answer with httptools, keeping of it what a forwarder needs."""
    import httptools

    class Answer:
        def __init__(self) -> None:
            self.reason = ""
            self.headers: list[tuple[str, str]] = []
            self.body: list[bytes] = []

        def on_status(self, reason: bytes) -> None:
            self.reason = reason.decode("latin-1")

        def on_header(self, name: bytes, value: bytes) -> None:
            self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

        def on_body(self, data: bytes) -> None:
            self.body.append(data)

    def read(data: bytes) -> bytes:
        answer = Answer()
        parser = httptools.HttpResponseParser(answer)
        parser.feed_data(data)
        if parser.get_status_code() != 200:
            raise ValueError("another status")
        return b"".join(answer.body)

    return read


def run(*, quick: bool) -> None:
    """Measure, and print the tables."""
    try:
        httptools = theirs()
    except ModuleNotFoundError:
        print("\nhttptools is not installed, so there is nothing to compare with")
        return
    rounds, count = (3, 500) if quick else (9, 5000)
    answers = {"an answer of 1 kB": WHOLE, "50 events": CHUNKED + CHUNK * 50 + b"0\r\n\r\n"}
    rows = [
        [name, *(timed(read, data, rounds, count) for read in (ours, httptools))]
        for name, data in answers.items()
    ]
    print_table("Reading an answer, us", ["", "ours", "httptools"], rows)
    print_table(
        "What two readers could take for different answers (all of it is to be refused)",
        ["", "ours", "httptools"],
        [
            [name, *(verdict(read, data) for read in (ours, httptools))]
            for name, data in ODD.items()
        ],
    )


def timed(read: Callable[[bytes], bytes], data: bytes, rounds: int, count: int) -> float:
    """Return the microseconds that reading takes, the median of the rounds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(count):
            read(data)
        times.append((time.perf_counter() - started) / count * 1e6)
    return statistics.median(times)


def verdict(read: Callable[[bytes], bytes], data: bytes) -> str:
    """Tell whether an answer is refused."""
    try:
        read(data)
    except UpstreamUnreachable:
        return "refused"
    except Exception as error:  # noqa: BLE001  (each library has its own)
        return f"refused ({type(error).__name__})"
    return "TAKEN"
