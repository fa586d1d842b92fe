"""CPU time a forwarded request: the gateway, a bare urllib3 forwarder, nginx.

Each candidate is one worker process on a core of its own; the provider and the load are on the
other. They take turns, so that what the machine does meanwhile meets all of them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from aigw_middleware import open_store

from .table import print_table

CONNECTIONS = 16
PATH = "/v1/chat/completions"
BODY = json.dumps(
    {"model": "gpt-4o", "messages": [{"role": "user", "content": "x" * 1900}]}
).encode()
TICKS = os.sysconf("SC_CLK_TCK")
R = TypeVar("R", bound=tuple[Any, ...])


class Candidate(NamedTuple):
    """A server that forwards: its name, its port, and the processes whose CPU time counts."""

    name: str
    port: int
    pids: list[int]


class Round(NamedTuple):
    """What one round has shown, a request."""

    cpu: float
    rate: float
    p50: float
    p50_alone: float


def run(*, quick: bool) -> None:
    """Measure, and print the table."""
    rounds, count = (2, 400) if quick else (7, 3000)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as servers:
        pin(0)
        store_url = f"sqlite:///{directory}/aigw.db"
        _, token = open_store(store_url).keys.create()
        upstream = servers.enter_context(provider())
        found = [
            servers.enter_context(gunicorn("gateway", upstream, store_url)),
            servers.enter_context(gunicorn("forwarder", upstream, store_url)),
            servers.enter_context(gunicorn("bare", upstream, store_url)),
            servers.enter_context(granian("gateway", upstream, store_url)),
            servers.enter_context(granian("bare", upstream, store_url)),
        ]
        if shutil.which("nginx"):
            found.append(servers.enter_context(nginx(upstream, Path(directory))))
        else:
            print("\nnginx is not installed, so it is left out")
        idle = {candidate.name: pss(candidate.pids) / 2**20 for candidate in found}
        results: dict[str, list[Round]] = {candidate.name: [] for candidate in found}
        for candidate in found:
            load(candidate, token, 200, CONNECTIONS)
        for _ in range(rounds):
            for candidate in found:
                results[candidate.name].append(one_round(candidate, token, count))
    report(results, idle)


def report(results: dict[str, list[Round]], idle: dict[str, float]) -> None:
    """Print medians, and their ratios to the bare forwarder of the same run."""
    seen = {name: medians(rounds) for name, rounds in results.items()}
    base = seen["bare"]
    print_table(
        "Forwarding under gunicorn gthread, one worker, 16 connections, 2 kB request, 1 kB answer "
        "(targets: the gateway's CPU <= 1.0 x bare, on Granian <= 0.6 x; 45 MB idle, PSS)",
        ["", "CPU us", "x bare", "req/s", "x bare", "p50 us", "alone us", "idle MB"],
        [
            [
                *(name, r.cpu, r.cpu / base.cpu, r.rate, r.rate / base.rate),
                *(r.p50, r.p50_alone, idle[name]),
            ]
            for name, r in seen.items()
        ],
    )


def medians(rounds: Sequence[R]) -> R:
    """Return the median of each figure of several rounds."""
    return type(rounds[0])(*(statistics.median(values) for values in zip(*rounds, strict=True)))


def one_round(candidate: Candidate, token: str, count: int) -> Round:
    """Load one candidate, at sixteen connections and at one."""
    cpu, rate, times = loaded(candidate, token, count, CONNECTIONS)
    alone = load(candidate, token, count // 10, 1)
    return Round(cpu, rate, statistics.median(times), statistics.median(alone))


def loaded(
    candidate: Candidate, token: str, count: int, connections: int
) -> tuple[float, float, list[float]]:
    """Load one candidate; return its CPU microseconds a request, its rate, and each time."""
    before = cpu_seconds(candidate.pids)
    started = time.perf_counter()
    times = load(candidate, token, count, connections)
    elapsed = time.perf_counter() - started
    cpu = (cpu_seconds(candidate.pids) - before) / len(times) * 1e6
    return cpu, len(times) / elapsed, times


def load(candidate: Candidate, token: str, count: int, connections: int) -> list[float]:
    """Send `count` requests over kept connections; return the microseconds of each."""
    request = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{candidate.port}\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        f"Accept: application/json\r\nUser-Agent: benchmark\r\nContent-Length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY
    times: list[float] = []
    failures: list[bytes] = []

    def client() -> None:
        with socket.create_connection(("127.0.0.1", candidate.port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(count // connections):
                started = time.perf_counter()
                connection.sendall(request)
                head = _read_answer(connection)
                times.append((time.perf_counter() - started) * 1e6)
                if not head.startswith(b"HTTP/1.1 200"):
                    failures.append(head)
                    return

    threads = [threading.Thread(target=client) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures or len(times) < count // connections * connections:
        raise SystemExit(f"{candidate.name} did not answer: {failures[:1]}")
    return times


def _read_answer(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65536)
        if not received:
            return data
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    lowered = head.lower()
    if b"content-length: " in lowered:
        left = int(lowered.split(b"content-length: ")[1].split(b"\r\n")[0]) - len(body)
        while left > 0:
            left -= len(connection.recv(65536))
    else:
        while not body.endswith(b"0\r\n\r\n"):
            body += connection.recv(65536)
    return head


def cpu_seconds(pids: list[int]) -> float:
    """Return the user and system time of processes."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def pss(pids: list[int]) -> int:
    """Return the memory of processes, in bytes, what they share counted once."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def children(pid: int) -> list[int]:
    """Return the processes that `pid` has started."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def provider() -> Iterator[str]:
    """Run the provider; yield its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.provider"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.communicate(b"")


@contextmanager
def gunicorn(
    name: str,
    upstream: str,
    store_url: str,
    *,
    workers: int = 1,
    options: Sequence[str] = ("--worker-class", "gthread", "--threads", str(CONNECTIONS)),
) -> Iterator[Candidate]:
    """Run one of `benchmarks.apps` under gunicorn."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        port = listener.getsockname()[1]
        fd = listener.fileno()
        command = [
            sys.executable, "-m", "gunicorn", "--bind", f"fd://{fd}", "--workers", str(workers),
            *options, "--keep-alive", "60", "--log-level", "error", f"benchmarks.apps:{name}()",
        ]  # fmt: skip
        variables = {**os.environ, "BENCH_UPSTREAM": upstream, "BENCH_STORE": store_url}
        process = subprocess.Popen(command, env=variables, pass_fds=[fd])
        try:
            wait_for(port)
            while len(children(process.pid)) < workers:
                time.sleep(0.02)  # they are begun one after the other
            pids = pinned(process.pid) if workers == 1 else children(process.pid)
            yield Candidate(name, port, pids)
        finally:
            process.terminate()
            process.wait()


@contextmanager
def granian(name: str, upstream: str, store_url: str) -> Iterator[Candidate]:
    """Run one of `benchmarks.apps` under Granian, one worker."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "granian", "--interface", "wsgi", "--factory", "--port", str(port),
        "--blocking-threads", str(CONNECTIONS), "--http", "1", "--log-level", "error",
        f"benchmarks.apps:{name}",
    ]  # fmt: skip
    variables = {**os.environ, "BENCH_UPSTREAM": upstream, "BENCH_STORE": store_url}
    process = subprocess.Popen(command, env=variables)
    try:
        wait_for(port)
        yield Candidate(f"{name}, Granian", port, pinned(process.pid))
    finally:
        process.terminate()
        process.wait()


@contextmanager
def nginx(upstream: str, directory: Path) -> Iterator[Candidate]:
    """Run nginx as a reverse proxy with kept connections upstream."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = directory / "nginx.conf"
    config.write_text(
        f"""
        daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr error;
        events {{ worker_connections 512; }}
        http {{
            access_log off; client_body_temp_path {directory}/b; proxy_temp_path {directory}/p;
            fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u;
            scgi_temp_path {directory}/s;
            upstream provider {{ server {upstream.removeprefix("http://")}; keepalive 64; }}
            server {{
                listen 127.0.0.1:{port}; keepalive_requests 10000000;
                location / {{
                    proxy_pass http://provider; proxy_http_version 1.1;
                    proxy_set_header Connection ""; proxy_set_header Authorization "Bearer sk-x";
                }}
            }}
        }}
        """
    )
    process = subprocess.Popen(["nginx", "-c", str(config), "-p", str(directory)])
    try:
        wait_for(port)
        yield Candidate("nginx", port, pinned(process.pid))
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int) -> None:
    """Wait until a request is answered, whatever the answer."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), 30) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if connection.recv(1):
                    return
        except OSError:
            time.sleep(0.02)
    raise SystemExit("a server did not start")


def pinned(master: int) -> list[int]:
    """Put the workers of a server on the last core; return their pids."""
    workers = children(master)
    for pid in workers:
        # Each thread has a mask of its own: one that has answered already would roam.
        for thread in os.listdir(f"/proc/{pid}/task"):
            pin((os.cpu_count() or 1) - 1, int(thread))
    return workers


def pin(core: int, pid: int = 0) -> None:
    """Keep a process or a thread, by default this one, on one core."""
    os.sched_setaffinity(pid, {core})
