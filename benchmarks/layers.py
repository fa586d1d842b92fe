"""What each layer adds to a request, in-process, against Flask's hello world."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from wsgiref.util import setup_testing_defaults

import flask

from aigw_middleware import HeaderRewriter, IPAllowlist, KeyAuth, RateLimiter, open_store, stack

from .table import print_table

PATH = "/v1/chat/completions"


def hello(environ: Any, start_response: Any) -> list[bytes]:
    """The app that costs nothing."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def flask_hello() -> flask.Flask:
    """Flask's hello world."""
    app = flask.Flask(__name__)
    app.add_url_rule(PATH, view_func=lambda: "hello")
    return app


def candidates(directory: str) -> tuple[dict[str, Any], str]:
    """Return the apps by name, and a token that they take."""
    store = open_store(f"sqlite:///{directory}/aigw.db")
    _, token = store.keys.create()
    networks = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(1000)]
    layers: dict[str, Callable[[Any], Any]] = {
        "IPAllowlist, 1,000 networks": partial(IPAllowlist, allow=networks),
        "KeyAuth, SQLite": partial(KeyAuth, keys=store.keys),
        "RateLimiter, two limits": partial(RateLimiter, limits=["9000000/s", "900000000/day"]),
        "HeaderRewriter, both ways": partial(
            HeaderRewriter, request={"set": {"X-Team": "a"}}, response={"set": {"X-By": "b"}}
        ),
    }
    apps = {"no layer": hello, "Flask, hello world": flask_hello().wsgi_app}
    apps |= {name: layer(hello) for name, layer in layers.items()}
    apps["the stack of four"] = stack(hello, *layers.values())
    return apps, token


def request(token: str) -> dict[str, Any]:
    """Return an environ as a server would make it."""
    environ: dict[str, Any] = {
        "REMOTE_ADDR": "10.1.2.3",
        "PATH_INFO": PATH,
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "HTTP_AUTHORIZATION": f"Bearer {token}",
        "HTTP_USER_AGENT": "benchmark",
        "HTTP_ACCEPT": "application/json",
    }
    setup_testing_defaults(environ)
    return environ


def measure(app: Any, environ: dict[str, Any], count: int) -> float:
    """Return the microseconds that a request took."""
    statuses: list[str] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> None:
        statuses.append(status)

    started = time.perf_counter()
    for _ in range(count):
        iterable = app(dict(environ), start_response)
        for _ in iterable:
            pass
        close = getattr(iterable, "close", None)
        if close is not None:
            close()
    elapsed = time.perf_counter() - started
    if set(statuses) != {"200 OK"}:
        raise SystemExit(f"a request was not answered: {set(statuses)}")
    return elapsed / count * 1e6


def medians_of(
    apps: dict[str, Any], environ: dict[str, Any], rounds: int, count: int
) -> dict[str, float]:
    """Return the median of what a request takes by application, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in apps}
    for _ in range(rounds):
        for name, app in apps.items():
            times[name].append(measure(app, environ, count))
    return {name: statistics.median(values) for name, values in times.items()}


def run(*, quick: bool) -> None:
    """Measure, and print the table."""
    rounds, count = (3, 500) if quick else (15, 2000)
    with tempfile.TemporaryDirectory() as directory:
        apps, token = candidates(directory)
        environ = request(token)
        medians = medians_of(apps, environ, rounds, count)
    base = medians["no layer"]
    flask_cost = medians["Flask, hello world"] - base
    print_table(
        "What a layer adds to a request, in-process (target: the stack of four <= 1.00 x Flask)",
        ["", "us a request", "us added", "x Flask"],
        [
            [name, value, value - base, (value - base) / flask_cost]
            for name, value in medians.items()
        ],
    )
