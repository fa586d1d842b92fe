"""Count requests, tokens and money for Prometheus.

Put it outermost, beside `AccessLog`. Under several worker processes set
`PROMETHEUS_MULTIPROC_DIR` to an empty directory before anything is imported, as prometheus-client
asks for; then whoever exposes the metrics tells of all workers. `aigw serve --admin-bind` does
both. Labels hold names of providers and models and never what a client may choose at will.
"""

from __future__ import annotations

import os
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from ._observing import Fields, Observer
from .environ import TRIED, USAGE
from .usage.figures import figures_of

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the directory in which processes share their counts."""
MOST_MODELS = 500
"""Pairs of provider and model that are told apart in a process; further ones are `other`."""

_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1)


class Metrics(Observer):
    """Count every request.

    ::

        app = Metrics(app)
        management = ManagementAPI(store, token, metrics=exposition)   # GET /metrics

    - `aigw_requests_total{provider, model, status, code, end}`
    - `aigw_requests_in_progress`
    - `aigw_attempts_total{provider, outcome}`: whom the forwarder has asked
    - `aigw_tokens_total{provider, model, kind}`: `input`, `output`, `cached`
    - `aigw_cost_usd_total{provider, model}`
    - `aigw_request_duration_seconds{provider}`, `aigw_first_byte_seconds{provider}`,
      `aigw_overhead_seconds`: histograms

    `model` is empty where the request was refused: a client may name what it likes. `code` and
    `end` are those of `AccessLog`.

    Args:
        app: the wrapped WSGI application.
        registry: the registry that the metrics are in; None for prometheus-client's own.
    """

    def __init__(self, app: WSGIApplication, *, registry: CollectorRegistry | None = None) -> None:
        super().__init__(app)
        self._metrics = _of(REGISTRY if registry is None else registry)

    def begin(self, environ: WSGIEnvironment) -> None:
        """Count a request that has come."""
        self._metrics.in_progress.inc()

    def observe(self, fields: Fields, environ: WSGIEnvironment) -> None:
        """Count a request that is over."""
        metrics = self._metrics
        metrics.in_progress.dec()
        status = fields["status"] or 0
        # Of another method nobody has judged the name.
        is_served = fields["method"] == "POST" and 0 < status < 400
        provider, model = metrics.named(
            fields["provider"] or "", (fields["model"] or "") if is_served else ""
        )
        metrics.requests.labels(
            provider, model, str(status), fields["code"] or "", fields["end"]
        ).inc()
        for attempt in environ.get(TRIED, ()):
            metrics.attempts.labels(attempt.provider or "", attempt.outcome).inc()
        if environ.get(USAGE) is not None:
            self._count_usage(environ[USAGE], provider, model)
        metrics.duration.labels(provider).observe(fields["duration"])
        if fields["first_byte"] is not None:
            metrics.first_byte.labels(provider).observe(fields["first_byte"])
            metrics.overhead.observe(fields["overhead"])

    def _count_usage(self, usage: Any, provider: str, model: str) -> None:
        figures = figures_of(usage)
        tokens = self._metrics.tokens
        tokens.labels(provider, model, "input").inc(figures.input_tokens)
        tokens.labels(provider, model, "output").inc(figures.output_tokens)
        tokens.labels(provider, model, "cached").inc(figures.cached_input_tokens)
        if figures.cost is not None:
            self._metrics.cost.labels(provider, model).inc(figures.cost / 1e9)


class _Metrics:
    """The metrics of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        named = ["provider", "model"]
        self.requests = Counter(
            "aigw_requests",
            "Requests that are over.",
            [*named, "status", "code", "end"],
            registry=registry,
        )
        self.in_progress = Gauge(
            "aigw_requests_in_progress",
            "Requests that are not over.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.attempts = Counter(
            "aigw_attempts", "Candidates that were asked.", ["provider", "outcome"],
            registry=registry,
        )  # fmt: skip
        self.tokens = Counter(
            "aigw_tokens", "Tokens that were used.", [*named, "kind"], registry=registry
        )
        self.cost = Counter("aigw_cost_usd", "What they cost, in USD.", named, registry=registry)
        self.duration = Histogram(
            "aigw_request_duration_seconds",
            "From the request to its answer's end.",
            ["provider"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_byte = Histogram(
            "aigw_first_byte_seconds",
            "From the request to its answer's first byte.",
            ["provider"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.overhead = Histogram(
            "aigw_overhead_seconds",
            "Of these what was not spent waiting for the provider.",
            buckets=_OVERHEAD,
            registry=registry,
        )
        self._named: set[tuple[str, str]] = set()

    def named(self, provider: str, model: str) -> tuple[str, str]:
        """Return the labels of a provider and a model; `other` beyond the bound."""
        pair = (provider, model)
        if pair in self._named:
            return pair
        if len(self._named) >= MOST_MODELS:
            return provider, "other"
        self._named.add(pair)
        return pair


_known: WeakKeyDictionary[CollectorRegistry, _Metrics] = WeakKeyDictionary()
_lock = Lock()


def _of(registry: CollectorRegistry) -> _Metrics:
    """Return a registry's metrics: the same for all layers, a registry has each name once."""
    with _lock:
        found = _known.get(registry)
        if found is None:
            found = _known[registry] = _Metrics(registry)
        return found


def exposition(registry: CollectorRegistry | None = None) -> tuple[str, bytes]:
    """Return the metrics in Prometheus' text form: their content type, and the text.

    Where `PROMETHEUS_MULTIPROC_DIR` is set it is that of all processes.

    Args:
        registry: the registry; None for prometheus-client's own.
    """
    if registry is None and os.environ.get(MULTIPROCESS):
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return CONTENT_TYPE_LATEST, generate_latest(REGISTRY if registry is None else registry)


def worker_ended(pid: int) -> None:
    """Forget what a worker process was doing; what it has counted stays."""
    if os.environ.get(MULTIPROCESS):
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid)  # type: ignore[no-untyped-call]
