"""Open streams held on one worker: whether events arrive, what each costs, how they end."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import suppress
from typing import NamedTuple

from aigw_middleware import open_store

from .forwarding import BODY, PATH, Candidate, gunicorn, pss
from .provider import read_request
from .table import print_table

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b'data: {"choices": [{"delta": {"content": "%d"}}]}\n\n'
_FIRST = 8  # streams before those that are measured
_AT_ONCE = 64  # connections that are opened at a time: a listener's queue has an end
WORKERS = {
    "gthread": ["--threads", "256"],
    "gevent": ["--worker-connections", "4000"],
}


class Held(NamedTuple):
    """What was seen of streams that were held open.

    Attributes:
        count: how many were asked for.
        first: how many had their first event while all were open.
        second: how many had their second, which the provider sent to all at once.
        kib: what each took of the worker's memory (PSS), in KiB.
        left: how many the provider still had, `seconds` after all clients had hung up.
        seconds: how long it took until the provider had none.
    """

    count: int
    first: int
    second: int
    kib: float
    left: int
    seconds: float


class Provider:
    """A provider of streams that says one event, and another when it is told to."""

    def __init__(self) -> None:
        self.open: set[asyncio.StreamWriter] = set()
        self.changed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until the gateway closes it."""
        await read_request(reader)
        writer.write(HEAD)
        self.say(writer, 1)
        self.open.add(writer)
        with suppress(ConnectionError):
            await reader.read()
        self.open.discard(writer)
        self.changed.set()
        writer.close()

    @staticmethod
    def say(writer: asyncio.StreamWriter, number: int) -> None:
        """Send an event."""
        event = _EVENT % number
        writer.write(b"%x\r\n%b\r\n" % (len(event), event))


async def hold(candidate: Candidate, provider: Provider, token: str, count: int) -> Held:
    """Hold so many streams open, let all have another event, and hang up on all at once."""
    before = pss(candidate.pids)
    gate = asyncio.Semaphore(_AT_ONCE)
    clients = await asyncio.gather(*(_client(candidate.port, token, gate) for _ in range(count)))
    first = sum(b'"1"' in seen for _, _, seen in clients)
    each = (pss(candidate.pids) - before) / count
    for writer in list(provider.open):
        provider.say(writer, 2)
    seen = await asyncio.gather(*(_until(reader, b'"2"') for reader, _, _ in clients))
    second = sum(b'"2"' in data for data in seen)
    hung_up = time.monotonic()
    for _, writer, _ in clients:
        writer.transport.abort()
    while provider.open and time.monotonic() - hung_up < 20:
        provider.changed.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(provider.changed.wait(), 0.5)
    return Held(count, first, second, each / 1024, len(provider.open), time.monotonic() - hung_up)


async def _client(
    port: int, token: str, gate: asyncio.Semaphore
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    async with gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
            + BODY
        )
        return reader, writer, await _until(reader, b'"1"')


async def _until(reader: asyncio.StreamReader, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        more = await asyncio.wait_for(reader.read(65536), 60)
        if not more:
            break
        data += more
    return data


async def held(worker_class: str, count: int, store_url: str, token: str) -> Held:
    """Run a gateway with one worker of a class, and hold streams on it."""
    provider = Provider()
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0, backlog=4096)
    upstream = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    options = ["--worker-class", worker_class, *WORKERS[worker_class]]
    running = gunicorn("gateway", upstream, store_url, options=options)
    candidate = await asyncio.to_thread(running.__enter__)
    try:
        # What a worker makes once (stores, counters, the watchdog) is no stream's.
        await hold(candidate, provider, token, _FIRST)
        return await hold(candidate, provider, token, count)
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)
        server.close()


def run(*, quick: bool) -> None:
    """Measure, and print the table."""
    counts = {"gthread": 50, "gevent": 100} if quick else {"gthread": 200, "gevent": 1000}
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        store_url = f"sqlite:///{directory}/aigw.db"
        _, token = open_store(store_url).keys.create()
        for worker_class, count in counts.items():
            seen = asyncio.run(held(worker_class, count, store_url, token))
            rows.append(
                [
                    worker_class,
                    seen.count,
                    seen.first,
                    seen.second,
                    seen.kib,
                    seen.left,
                    seen.seconds,
                ]
            )
    print_table(
        "Streams held open on one worker (targets: all; <= 64 KiB each on gthread, 20 on gevent; "
        "none at the provider 3 s after all have hung up)",
        ["", "streams", "first event", "second", "KiB each", "left", "s until none"],
        rows,
    )
