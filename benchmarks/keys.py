"""What keys cost: verifying one among many, creating many, and keeping what was used."""

from __future__ import annotations

import http.client
import json
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from typing import Any, NamedTuple

from aigw_middleware import ManagementAPI, open_store
from aigw_middleware.keys.token import new_token
from aigw_middleware.store import Store
from aigw_middleware.store.rows import insert
from aigw_middleware.testing import serving

from .forwarding import Candidate, gunicorn, load, loaded, medians, provider
from .table import print_table

WORKERS = 4
CONNECTIONS = 64


def run(*, quick: bool) -> None:
    """Measure, and print the tables."""
    verifying(1_000 if quick else 100_000)
    creating(100 if quick else 10_000)
    booking(2 if quick else 9, 640 if quick else 3200)


def verifying(count: int) -> None:
    """Verify keys of a store that has many."""
    with tempfile.TemporaryDirectory() as directory:
        store = open_store(f"sqlite:///{directory}/aigw.db")
        tokens = fill(store, count)
        chosen = random.Random(1).sample(tokens, min(count, 5_000))
        first = timed(store, chosen)
        again = statistics.median(timed(store, chosen) for _ in range(5))
        one = statistics.median(timed(store, [chosen[0]] * 5_000) for _ in range(5))
        store.close()
    print_table(
        f"store.keys.verify among {count:,} keys, SQLite (target: a good key <= 15 us)",
        ["", "us"],
        [["one key again and again", one], ["5,000 keys, known", again], ["the same, new", first]],
    )


def fill(store: Store, count: int) -> list[str]:
    """Put many keys into a store in one transaction; return their tokens."""
    _, token = store.keys.create()
    model = store._database.read(_row)
    made = [new_token() for _ in range(count)]

    def work(connection: Any) -> None:
        for new in made:
            row = {**model, "public_id": new.public_id, "digest": new.digest}
            insert(connection, "keys", row)

    store._database.write(work)
    return [new.token for new in made] + [token]


def _row(connection: Any) -> dict[str, Any]:
    cursor = connection.execute("SELECT * FROM keys")
    names = [column[0] for column in cursor.description]
    row = dict(zip(names, cursor.fetchone(), strict=True))
    del row["number"]
    return row


def timed(store: Store, tokens: list[str]) -> float:
    """Return the microseconds that verifying a token takes."""
    started = time.perf_counter()
    for token in tokens:
        if store.keys.verify(token) is None:
            raise SystemExit("a good key was refused")
    return (time.perf_counter() - started) / len(tokens) * 1e6


def creating(count: int) -> None:
    """Create keys through the management API over a socket, one after the other."""
    with tempfile.TemporaryDirectory() as directory:
        store = open_store(f"sqlite:///{directory}/aigw.db")
        with serving(ManagementAPI(store, "admin")) as url:
            connection = http.client.HTTPConnection(url.removeprefix("http://"))
            headers = {"Authorization": "Bearer admin", "Content-Type": "application/json"}
            body = json.dumps({"description": "a key of the benchmark"})
            started = time.perf_counter()
            for _ in range(count):
                connection.request("POST", "/ai_gateway_api_keys", body, headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 201:
                    raise SystemExit("a key was not created")
            elapsed = time.perf_counter() - started
            connection.close()
        store.close()
    print_table(
        f"{count:,} keys through the API, each on disk and in the audit before it is answered",
        ["", "keys/s", "ms a key"],
        [["SQLite", count / elapsed, elapsed / count * 1e3]],
    )


def booking(rounds: int, count: int) -> None:
    """Forward with usage and last_used on and off, under four workers."""
    seen: dict[str, list[Round]] = {"gateway": [], "unbooked": []}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as servers:
        store_url = f"sqlite:///{directory}/aigw.db"
        _, token = open_store(store_url).keys.create()
        upstream = servers.enter_context(provider())
        found = [
            servers.enter_context(gunicorn(name, upstream, store_url, workers=WORKERS))
            for name in seen
        ]
        for candidate in found:
            load(candidate, token, 640, CONNECTIONS)
        for _ in range(rounds):
            for candidate in found:
                seen[candidate.name].append(one_round(candidate, token, count))
    on, off = (medians(seen[name]) for name in seen)
    print_table(
        f"usage and last_used on and off, {WORKERS} workers, {CONNECTIONS} connections (targets: "
        "at most 10 % fewer requests a second, 10 % more CPU, half more at the 99th percentile)",
        ["", "req/s", "x off", "CPU us", "x off", "p99 ms", "x off"],
        [
            [
                name,
                one.rate,
                one.rate / off.rate,
                one.cpu,
                one.cpu / off.cpu,
                one.p99 / 1000,
                one.p99 / off.p99,
            ]
            for name, one in (("on", on), ("off", off))
        ],
    )


class Round(NamedTuple):
    """What one round has shown: requests a second, CPU and latency in microseconds."""

    rate: float
    cpu: float
    p99: float


def one_round(candidate: Candidate, token: str, count: int) -> Round:
    """Load one candidate."""
    cpu, rate, times = loaded(candidate, token, count, CONNECTIONS)
    return Round(rate, cpu, sorted(times)[int(len(times) * 0.99)])
