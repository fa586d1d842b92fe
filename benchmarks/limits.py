"""What a decision costs: three limits at once, on each engine, and what others take for one."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aigw_middleware import RateLimiter, open_counters
from aigw_middleware.counters.engine import Demand, Engine, Settlement
from aigw_middleware.limits import parse_limits

from .table import print_table

LIMITS = ["900000000/min", "900000000000 tokens/hour", "9000000 usd/day"]
PROCESSES = 4


def run(*, quick: bool) -> None:
    """Measure, and print the tables."""
    count, rounds = (500, 3) if quick else (10_000, 7)
    with tempfile.TemporaryDirectory(prefix="aigw-bench-") as directory:
        engines = {
            "memory": open_counters("memory:"),
            "LMDB": open_counters(f"lmdb:///{directory}/l"),
        }
        one_process(engines, directory, count, rounds)
        together(f"lmdb:///{directory}/together", count * 4)
        for engine in engines.values():
            engine.close()


def one_process(engines: dict[str, Engine], directory: str, count: int, rounds: int) -> None:
    """Decide in one process, engine after engine, in turns."""
    work: dict[str, Callable[[], Any]] = {}
    for name, engine in engines.items():
        work |= of_engine(name, engine)
    work |= of_limits()
    with_redis(work, directory, count, rounds)


def of_engine(name: str, engine: Engine) -> dict[str, Callable[[], Any]]:
    """Return what is timed of an engine."""
    demands = [Demand(f"b|{limit.kind}|", limit.rule, 1) for limit in parse_limits(LIMITS)]
    marks = engine.reserve(demands).marks
    settlements = [Settlement(d, m, 0) for d, m in zip(demands, marks, strict=True)]
    return {
        f"{name}, reserve 3 limits": lambda: engine.reserve(demands),
        f"{name}, reserve 1 limit": lambda: engine.reserve(demands[:1]),
        f"{name}, settle 3 limits": lambda: engine.settle(settlements),
    }


def of_limits(url: str = "memory://") -> dict[str, Callable[[], Any]]:
    """Return a moving window of the `limits` package (which Flask-Limiter uses), one limit."""
    try:
        from limits import parse
        from limits.storage import storage_from_string
        from limits.strategies import MovingWindowRateLimiter
    except ModuleNotFoundError:
        print("\nlimits is not installed, so it is left out")
        return {}
    limiter = MovingWindowRateLimiter(storage_from_string(url))
    limit = parse("1000/second")
    name = "memory" if url.startswith("memory") else "Redis"
    return {f"limits on {name}, hit 1 limit": lambda: limiter.hit(limit, "b")}


def with_redis(work: dict[str, Callable[[], Any]], directory: str, count: int, rounds: int) -> None:
    """Time everything, with a Redis of its own where there is a server."""
    try:
        from tests.redis_server import running_redis
    except ModuleNotFoundError:
        print("\nredis-wheel is not installed, so Redis is left out")
        report(work, count, rounds)
        return
    with running_redis(Path(directory)) as server:
        engine = open_counters(server.url)
        work |= of_engine("Redis", engine)
        empty = server.client().register_script("return {1, 2, 3}")
        work["Redis, an empty script"] = lambda: empty(keys=["{aigw}:x"], args=["1"])
        work |= of_limits(f"redis+unix://{server.path}")
        report(work, count, rounds)
        added(engine, f"redis+unix://{server.path}", count // 20, rounds)
        engine.close()


def added(engine: Engine, url: str, count: int, rounds: int) -> None:
    """Time what one limit of requests adds to Flask's hello world, ours and Flask-Limiter's."""
    try:
        from .layers import flask_hello, medians_of, request
    except ModuleNotFoundError:
        print("\nFlask is not installed, so what a limit adds to it is left out")
        return
    limit = "9000000/second"
    apps = {
        "Flask": flask_hello().wsgi_app,
        "RateLimiter, memory": RateLimiter(flask_hello().wsgi_app, limit, by="ip"),
        "RateLimiter, Redis": RateLimiter(flask_hello().wsgi_app, limit, by="ip", counters=engine),
    }
    try:
        apps |= {
            "Flask-Limiter, memory": flask_limited(flask_hello(), limit, "memory://"),
            "Flask-Limiter, Redis": flask_limited(flask_hello(), limit, url),
        }
    except ModuleNotFoundError:
        print("\nFlask-Limiter is not installed, so it is left out")
    medians = medians_of(apps, request(""), rounds, count)
    base = medians.pop("Flask")
    print_table(
        "What one limit adds to a request (target: Flask-Limiter on Redis at least twice ours)",
        ["", "us added"],
        [[name, value - base] for name, value in medians.items()],
    )


def flask_limited(app: Any, limit: str, url: str) -> Any:
    """Return an app of Flask's under Flask-Limiter, its moving window, with headers as ours."""
    from flask_limiter import Limiter
    from flask_limiter.util import get_remote_address

    Limiter(
        get_remote_address,
        app=app,
        default_limits=[limit],
        storage_uri=url,
        strategy="moving-window",
        headers_enabled=True,
    )
    return app.wsgi_app


def report(work: dict[str, Callable[[], Any]], count: int, rounds: int) -> None:
    """Time each in turns; print medians."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, function in work.items():
            repeat = count // 20 if "Redis" in name else count
            started = time.perf_counter()
            for _ in range(repeat):
                function()
            times[name].append((time.perf_counter() - started) / repeat * 1e6)
    print_table(
        "A decision, in one process (targets: memory <= 3 us, LMDB <= 8, Redis <= 1.3 x empty)",
        ["", "us"],
        [[name, statistics.median(values)] for name, values in times.items()],
    )


def together(url: str, count: int) -> None:
    """Decide on one key in several processes at once."""
    engine = open_counters(url)
    (limit,) = parse_limits(LIMITS[0])
    demands = [Demand("b", limit.rule, 1)]
    read, write = os.pipe()
    started = time.perf_counter()
    pids = []
    for _ in range(PROCESSES):
        pid = os.fork()
        if pid == 0:
            longest = 0.0
            for _ in range(count):
                before = time.perf_counter()
                engine.reserve(demands)
                longest = max(longest, time.perf_counter() - before)
            os.write(write, f"{longest * 1000:.1f}\n".encode())
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    elapsed = time.perf_counter() - started
    longest = max(float(line) for line in os.read(read, 4096).split())
    (counted,) = engine.counts()
    if counted.used != PROCESSES * count:
        raise SystemExit("a unit was lost")
    engine.close()
    print_table(
        f"LMDB, {PROCESSES} processes on one key (targets: >= 150,000 a second, <= 100 ms)",
        ["", "decisions/s", "longest wait ms"],
        [["reserve 1 limit", PROCESSES * count / elapsed, longest]],
    )
