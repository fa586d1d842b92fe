"""Events of open streams: how late each arrives, and what handing it on costs."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from aigw_middleware import open_store

from .forwarding import PATH, Candidate, cpu_seconds, gunicorn, medians, nginx, pin
from .provider import read_request
from .streams import HEAD
from .table import print_table

STREAMS = 16
PAUSE = 0.004
_EVENT = b'data: {"choices": [{"delta": {"content": "a word or two"}}], "sent": %d}\n\n'
_BODY = b'{"model": "gpt-4o", "stream": true, "messages": []}'
_LAST = b"data: [DONE]\n\n"


class Seen(NamedTuple):
    """What one round has shown: CPU microseconds a chunk, and how late one was."""

    cpu: float
    p50: float
    p99: float


class Provider:
    """Answers each request with so many events, each of which tells when it was sent."""

    def __init__(self, events: int) -> None:
        self._events = events

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the requests of one connection."""
        # A server that is started asks for something else, and the loop's end cancels what waits.
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while await read_request(reader):
                writer.write(HEAD)
                for _ in range(self._events):
                    await asyncio.sleep(PAUSE)
                    event = _EVENT % time.perf_counter_ns()
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                    await writer.drain()
                writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(_LAST), _LAST))
        writer.close()


async def read(port: int, token: str) -> list[float]:
    """Read a stream to its end; return how late each event was, in microseconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(_BODY)}\r\n\r\n".encode()
        + _BODY
    )
    late = []
    data = b""
    while _LAST not in data:
        more = await asyncio.wait_for(reader.read(65536), 60)
        now = time.perf_counter_ns()
        if not more:
            raise SystemExit(f"a stream broke off: {data[-200:]!r}")
        data = data[-400:] + more
        late += [
            (now - int(part.partition(b"}")[0])) / 1000 for part in more.split(b'"sent": ')[1:]
        ]
    writer.close()
    return late


async def one_round(candidate: Candidate, token: str, events: int) -> Seen:
    """Read so many streams at once."""
    before = cpu_seconds(candidate.pids)
    late = [
        n
        for one in await asyncio.gather(*(read(candidate.port, token) for _ in range(STREAMS)))
        for n in one
    ]
    cpu = (cpu_seconds(candidate.pids) - before) / (STREAMS * events) * 1e6
    if len(late) < 0.99 * STREAMS * events:  # an event may be cut by the read's end
        raise SystemExit(f"{candidate.name}: events were lost")
    late.sort()
    return Seen(cpu, statistics.median(late), late[int(len(late) * 0.99)])


async def measure(rounds: int, events: int) -> dict[str, list[Seen]]:
    """Measure all candidates in turns."""
    server = await asyncio.start_server(Provider(events).serve, "127.0.0.1", 0)
    upstream = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with tempfile.TemporaryDirectory() as directory, ExitStack() as servers:
        pin(0)
        store_url = f"sqlite:///{directory}/aigw.db"
        _, token = open_store(store_url).keys.create()
        gevent = ("--worker-class", "gevent")
        starting = [
            gunicorn("gateway", upstream, store_url),
            gunicorn("bare", upstream, store_url),
            gunicorn("gateway", upstream, store_url, options=gevent),
            gunicorn("bare", upstream, store_url, options=gevent),
        ]
        names = ["gateway", "bare", "gateway, gevent", "bare, gevent"]
        if shutil.which("nginx"):
            starting.append(nginx(upstream, Path(directory)))
            names.append("nginx")
        else:
            print("\nnginx is not installed, so it is left out")
        # Started beside the loop: each is asked for something until it answers.
        found = [await asyncio.to_thread(servers.enter_context, one) for one in starting]
        candidates = [one._replace(name=name) for one, name in zip(found, names, strict=True)]
        results: dict[str, list[Seen]] = {name: [] for name in names}
        for _ in range(rounds):
            for candidate in candidates:
                results[candidate.name].append(await one_round(candidate, token, events))
    server.close()
    return results


def run(*, quick: bool) -> None:
    """Measure, and print the table."""
    results = asyncio.run(measure(2 if quick else 3, 50 if quick else 1000))
    seen = {name: medians(rounds) for name, rounds in results.items()}
    base = seen["bare"]
    print_table(
        f"Events of {STREAMS} streams, each one every {PAUSE * 1000:.0f} ms, one worker "
        "(targets: CPU <= 1.0 x bare, the delay's p50 <= 1.7 x nginx's)",
        ["", "CPU us", "CPU x bare", "delay p50 us", "p99 us"],
        [[name, s.cpu, s.cpu / base.cpu, s.p50, s.p99] for name, s in seen.items()],
    )
