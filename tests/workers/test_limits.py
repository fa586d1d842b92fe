"""Limits over four workers: none is passed, nearly all of it is given, and workers may die."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aigw_middleware import open_counters
from aigw_middleware.counters.engine import Demand
from aigw_middleware.limits import parse_limits

from ..redis_server import RedisServer
from ..support import CHAT, RawRequest, raw_provider
from .test_workers import OK, STREAM, gunicorn

BODY = json.dumps({"model": "gpt-4o", "messages": [], "max_tokens": 10}).encode()
TOKENS = len(BODY) + 10


@pytest.fixture(params=["lmdb", "redis"])
def counters(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an engine that all workers share."""
    if request.param == "lmdb":
        return f"lmdb:///{tmp_path}/counters"
    server: RedisServer = request.getfixturevalue("redis_server")
    server.client().flushall()
    return server.url


def chat(port: int, body: bytes = BODY) -> tuple[int, str]:
    """Send a chat; return the status and the answer's text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", CHAT, body)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def most_in_a_span(decided: list[Admitted], span: float) -> int:
    """Return how many decisions, each made between two times, surely fell into one span."""
    entered = sorted(one.entered for one in decided)
    return max(
        sum(1 for one in decided if start <= one.entered and one.admitted < start + span)
        for start in entered
    )


def fewest_behind_a_refusal(
    refused: list[tuple[float, float]], decided: list[Admitted], span: float
) -> int:
    """Return how many decisions at most can have made the limit full when it was said to be."""
    # A unit comes back at the latest a sixtieth of the window after it has left it.
    return min(
        sum(1 for one in decided if one.admitted >= begun - span - span / 60 and one.entered <= end)
        for begun, end in refused
    )


class Admitted(NamedTuple):
    """Two times between which a request was admitted."""

    entered: float
    admitted: float


class Load(NamedTuple):
    """How many clients ask for how long, and what they may have."""

    requests: int
    window: int
    tokens: int
    at_a_time: int
    clients: int

    @property
    def limits(self) -> str:
        window = f"{self.window}s"
        return f"{self.requests}/{window},{self.tokens} tokens/{window},{self.at_a_time} concurrent"


LOAD = (
    Load(500, 10, 500 * TOKENS, 8, 40)
    if os.environ.get("HYPOTHESIS_PROFILE") == "long"
    else Load(200, 4, 200 * TOKENS, 8, 16)
)


@pytest.mark.timeout(180)
def test_no_span_has_more_than_the_limit_and_none_is_refused_below_it(counters: str) -> None:
    """Clients without a pause on four workers, over three windows: exact, and not stingy."""
    admitted: list[Admitted] = []
    refused: list[tuple[float, float]] = []
    statuses: list[int] = []
    present, most = 0, 0
    lock = threading.Lock()
    pause = threading.Event()

    def handler(connection: socket.socket, request: RawRequest) -> bool:
        nonlocal present, most
        times = [float(request.headers[name]) for name in ("X-Entered", "X-Admitted")]
        with lock:
            admitted.append(Admitted(*times))
            present += 1
            most = max(most, present)
        pause.wait(0.005)
        with lock:
            present -= 1
        connection.sendall(OK)
        return True

    with (
        raw_provider(handler) as provider,
        gunicorn(
            "limited", "", provider.url, TEST_COUNTERS=counters, TEST_LIMITS=LOAD.limits
        ) as server,
    ):
        enough, patience = (time.monotonic() + n for n in (3 * LOAD.window, 120))

        def client() -> None:
            # On a slow machine until the window was full for once.
            while (now := time.monotonic()) < enough or (not refused and now < patience):
                status, message = chat(server.port)
                statuses.append(status)
                if status == 429 and "concurrent" not in message:
                    refused.append((now, time.monotonic()))

        threads = [threading.Thread(target=client) for _ in range(LOAD.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # An engine that this machine does not let answer in 250 ms keeps what it may have counted.
    unanswered = statuses.count(503)
    assert set(statuses) - {503} == {200, 429}
    assert len(admitted) == statuses.count(200)
    assert most <= LOAD.at_a_time
    assert most_in_a_span(admitted, LOAD.window) <= LOAD.requests
    fewest = fewest_behind_a_refusal(refused, admitted, LOAD.window)
    assert fewest + unanswered >= 0.95 * LOAD.requests


def test_a_killed_worker_leaves_its_slots_to_their_leases(tmp_path: Path) -> None:
    """Requests and tokens stay charged; a slot is taken until its lease ends, not for ever."""
    url = f"lmdb:///{tmp_path}/counters"
    limits = "50/min,5000 tokens/min,5 concurrent"
    begun = threading.Semaphore(0)

    def silent(connection: socket.socket, request: RawRequest) -> None:
        connection.sendall(STREAM + b"9\r\ndata: 1\n\n\r\n")
        begun.release()
        connection.recv(1)

    with (
        raw_provider(silent) as provider,
        gunicorn("limited", "", provider.url, TEST_COUNTERS=url, TEST_LIMITS=limits) as server,
    ):

        def client() -> None:
            with suppress(http.client.HTTPException, ConnectionError):
                chat(server.port)

        threads = [threading.Thread(target=client) for _ in range(5)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert begun.acquire(timeout=20)
        assert chat(server.port)[0] == 429
        for pid in server.workers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
        engine = open_counters(url)
        counts = {count.name.split("|")[1]: count for count in engine.counts()}
        assert counts["requests-60s"].used == 1 + 5  # one of them to see that it runs
        assert counts["tokens-60s"].used == 5 * (len(BODY) + 10)
        assert counts["concurrent"].used == 5
        assert 0 < counts["concurrent"].expires <= 30_000_000
        engine.close()


def test_a_worker_that_stands_still_holds_nobody_up(tmp_path: Path) -> None:
    """A process that is stopped while it holds the lock: others get 503 in time, then go on."""
    engine = open_counters(f"lmdb:///{tmp_path}/counters")
    (limit,) = parse_limits("1000000/min")
    demand = Demand("n", limit.rule, 1)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with engine._locked():  # type: ignore[attr-defined]
            os.write(write, b"x")
            signal.pause()
        os._exit(0)
    try:
        assert os.read(read, 1) == b"x"
        os.kill(pid, signal.SIGSTOP)
        before = time.monotonic()
        with pytest.raises(Exception, match="another process holds"):
            engine.reserve([demand])
        assert time.monotonic() - before < 5
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert engine.reserve([demand]).admitted
    engine.close()


def test_no_decision_is_lost_to_kill_9(tmp_path: Path) -> None:
    """Writers that are killed again and again: every acknowledged unit is counted."""
    engine = open_counters(f"lmdb:///{tmp_path}/counters")
    (limit,) = parse_limits("100000000/hour")
    demand = Demand("n", limit.rule, 1)
    acknowledged = 0
    for _ in range(20):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            while True:
                engine.reserve([demand])
                os.write(write, b"x")
        os.close(write)
        seen = 0
        while seen < 200:
            seen += len(os.read(read, 4096))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while more := os.read(read, 65536):
            seen += len(more)
        os.close(read)
        acknowledged += seen
    (count,) = engine.counts()
    assert acknowledged <= count.used <= acknowledged + 20
    engine.close()


def reserve(engine: Any, name: str = "n") -> bool:
    (limit,) = parse_limits("1000/min")
    admitted: bool = engine.reserve([Demand(name, limit.rule, 1)]).admitted
    return admitted
